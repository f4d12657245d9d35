"""Fréchet distance between two sets of features, without a matrix root that could fail.

The built-in descriptor makes features of motion when no encoder is given; its distance is not a published FGD.
Letters: N rows or windows, D features, T frames, 55 joints. All in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from omniges.errors import UsageFault
from omniges.features.gesture import JOINT_NAMES
from omniges.features.timebase import FRAME_RATE_HZ
from omniges.formats.arrays import checked
from omniges.metrics.profiles import FrechetSettings

F64 = npt.NDArray[np.float64]

DESCRIPTOR_NAME: Final = "omniges-kinematics-1"
_JOINTS: Final = tuple(
    JOINT_NAMES.index(name)
    for name in (*("head", "left_elbow", "right_elbow", "left_wrist", "right_wrist"), *("left_index3", "right_index3"))
)
_WINDOW_FRAMES: Final = 32
_STRIDE_FRAMES: Final = 16
_SPEED_S: Final = 0.1  # these two bring speeds and accelerations to the order of size of positions
_ACCELERATION_S2: Final = 0.01


@dataclass(frozen=True, slots=True)
class FrechetScore:
    """A Fréchet distance with what it rests on. A rank below ``dimensions`` makes it an estimate that is biased up."""

    value: float
    mean_term: float
    """|m1 − m2|²; the rest of the value comes from the covariances."""
    rows_generated: int
    rows_recorded: int
    rank_generated: int
    rank_recorded: int
    dimensions: int
    offset: float
    encoder: str
    """Name of what made the features; distances of different encoders do not compare."""

    @property
    def full_rank(self) -> bool:
        """Whether both covariances are known in all directions."""
        return min(self.rank_generated, self.rank_recorded) == self.dimensions


@dataclass(frozen=True, slots=True)
class _Gaussian:
    """Mean (D,) and covariance V diag(scales²) Vᵀ of a set; ``axes`` is Vᵀ (D, D)."""

    mean: F64
    scales: F64
    axes: F64
    rank: int

    def root(self, offset: float) -> F64:
        """A matrix A (D, D) with AᵀA = covariance + offset · 1."""
        return np.asarray(np.sqrt(self.scales**2 + offset)[:, None] * self.axes)


def _gaussian(features: npt.NDArray[np.floating], what: str) -> _Gaussian:
    rows = checked(features, f"{what} features", (None, None), at_least=2)
    count, dimensions = rows.shape
    if dimensions == 0:
        raise UsageFault(f"{what} features: found no columns; expected at least one")
    mean = rows.mean(axis=0)
    # R of a QR decomposition has the singular values and axes of the rows, and is small however many rows there are.
    triangle = np.linalg.qr(rows - mean, mode="r")
    _, scales, axes = np.linalg.svd(triangle, full_matrices=True)
    scales = np.concatenate([scales, np.zeros(dimensions - len(scales))]) / np.sqrt(count - 1)
    kind = np.asarray(features).dtype
    precision = np.finfo(kind if kind.kind == "f" else np.float64).eps
    # Rounding of the rows themselves, not only of what their deviations are, makes rank where there is none.
    largest = max(float(scales[0]), float(np.abs(mean).max()) * 2)
    rank = int((scales > max(count, dimensions) * precision * largest).sum()) if scales[0] > 0 else 0
    return _Gaussian(mean, scales, axes, rank)


def frechet_distance(
    generated: npt.NDArray[np.floating], recorded: npt.NDArray[np.floating], settings: FrechetSettings, *, encoder: str
) -> FrechetScore:
    """|m1 − m2|² + tr(S1 + S2 − 2 (S1 S2)^½) of features (N1, D) and (N2, D), covariances with divisor N − 1.

    tr (S1 S2)^½ is the sum of the singular values of A1 A2ᵀ for any A1ᵀA1 = S1, A2ᵀA2 = S2: exact, real, and defined
    for singular covariances. Dowson and Landau (1982). With ``settings.offset`` it is taken of S1 + offset · 1 and
    S2 + offset · 1, while the other traces are not, and the value may fall below zero; without, rounding below
    zero is raised to 0. Raises UsageFault for unequal widths, DataError for fewer than 2 rows or non-finite values.
    """
    first, second = _gaussian(generated, "generated"), _gaussian(recorded, "recorded")
    if len(first.mean) != len(second.mean):
        raise UsageFault(
            f"features: found {len(first.mean)} columns generated and {len(second.mean)} recorded; "
            "expected both from one encoder"
        )
    product = first.root(settings.offset) @ second.root(settings.offset).T
    cross = float(np.linalg.svd(product, compute_uv=False).sum())
    difference = first.mean - second.mean
    mean_term = float(difference @ difference)
    value = mean_term + float((first.scales**2).sum() + (second.scales**2).sum()) - 2 * cross
    return FrechetScore(
        value=value if settings.offset else max(value, 0.0),
        mean_term=mean_term,
        rows_generated=len(generated),
        rows_recorded=len(recorded),
        rank_generated=first.rank,
        rank_recorded=second.rank,
        dimensions=len(first.mean),
        offset=settings.offset,
        encoder=encoder,
    )


def describe(joints: npt.NDArray[np.floating]) -> F64:
    """Features (N, 56) of joints (T, 55, 3) in metres, N = 1 + (T − 32) // 16; docs/metrics.md lists them.

    Raises UsageFault for another shape, DataError for fewer than 32 frames or non-finite values.
    """
    positions = checked(joints, "joints", (None, len(JOINT_NAMES), 3), at_least=_WINDOW_FRAMES)
    relative = positions[:, _JOINTS] - positions[:, :1]
    windows = np.lib.stride_tricks.sliding_window_view(relative, _WINDOW_FRAMES, axis=0)[
        ::_STRIDE_FRAMES
    ]  # (N, 7, 3, W)
    velocity = np.diff(windows, axis=-1) * FRAME_RATE_HZ
    acceleration = np.diff(velocity, axis=-1) * FRAME_RATE_HZ
    speed = np.linalg.norm(velocity, axis=2).mean(axis=-1, keepdims=True)
    effort = np.sqrt((acceleration**2).sum(axis=2).mean(axis=-1, keepdims=True))
    parts = [windows.mean(axis=-1), windows.std(axis=-1), _SPEED_S * speed, _ACCELERATION_S2 * effort]
    return np.concatenate(parts, axis=-1).reshape(len(windows), -1)
