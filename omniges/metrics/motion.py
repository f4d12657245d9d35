"""Motion by itself: root drift, foot skate, jerk, rotations that are none, L1 diversity.

Letters: T frames, J joints. World: metres, y up.
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
from omniges.metrics.clips import ClipValue

F64 = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.floating]

TOES: Final = (JOINT_NAMES.index("left_foot"), JOINT_NAMES.index("right_foot"))
CONTACT_HEIGHT_M: Final = 0.025
FLOOR_PERCENTILE: Final = 5.0
ROTATION_TOLERANCE: Final = 0.1
_GROUND: Final = [0, 2]  # x and z


@dataclass(frozen=True, slots=True)
class DriftScore:
    """How far the root strays from where it began, in metres along the floor."""

    end_m: float
    farthest_m: float


@dataclass(frozen=True, slots=True)
class SkateScore(ClipValue):
    """Foot skate in m/s, weighed by the toe frames near the floor, which it is the mean of."""

    toe_frames: int
    """Both toes' frames, near the floor or not: 2 (T − 1)."""

    @property
    def contact_share(self) -> float:
        """Share of toe frames near the floor."""
        return self.weight / self.toe_frames


def root_drift(root: Numbers) -> DriftScore:
    """Horizontal distance of the root from its first frame: positions (T, 3) m. One frame has drifted by 0.

    Raises UsageFault for another shape, DataError for no or non-finite frames.
    """
    positions = checked(root, "root", (None, 3))
    away = np.linalg.norm((positions - positions[0])[:, _GROUND], axis=1)
    return DriftScore(float(away[-1]), float(away.max()))


def foot_skate(joints: Numbers, *, floor_m: float | None = None) -> SkateScore:
    """Mean sliding speed of the toes near the floor, by v (2 − 2^(h/H)): joints (T, 55, 3) m with translation.

    Zhang et al. (2018). ``floor_m``: its height; None takes each toe's 5th percentile. Without any contact the value
    is 0 and so is the share. Raises UsageFault for another shape or floor, DataError for fewer than 2 or non-finite
    frames.
    """
    positions = checked(joints, "joints", (None, len(JOINT_NAMES), 3), at_least=2)[:, TOES]
    if floor_m is not None and not np.isfinite(floor_m):
        raise UsageFault(f"floor: found {floor_m}; expected its height in metres")
    lowest: F64 = np.asarray(np.percentile(positions[..., 1], FLOOR_PERCENTILE, axis=0))
    floor = lowest if floor_m is None else np.full(2, floor_m)
    height = np.maximum(positions[:-1, :, 1] - floor, 0.0)
    speed = np.linalg.norm(np.diff(positions, axis=0)[..., _GROUND], axis=-1) * FRAME_RATE_HZ
    contact = height < CONTACT_HEIGHT_M
    count = int(contact.sum())
    sliding = speed * (2 - 2 ** (height / CONTACT_HEIGHT_M))
    value = float(sliding[contact].sum() / count) if count else 0.0
    return SkateScore(value, float(count), contact.size)


def jerk(joints: Numbers) -> ClipValue:
    """Mean length of the third difference times 30³: joints (T, J, 3) m to m/s³, weight T − 3.

    Raises UsageFault for another shape, DataError for fewer than 4 or non-finite frames.
    """
    positions = checked(joints, "joints", (None, None, 3), at_least=4)
    if positions.shape[1] == 0:
        raise UsageFault("joints: found none; expected (frames, joints, 3)")
    third = np.diff(positions, n=3, axis=0) * float(FRAME_RATE_HZ**3)
    return ClipValue(float(np.linalg.norm(third, axis=-1).mean()), float(len(third)))


def invalid_rotations(six_d: Numbers, *, tolerance: float = ROTATION_TOLERANCE) -> ClipValue:
    """Share of 6D rotations (T, J, 6), as generated, that are far from any rotation; weight T · J.

    Far: a row's length differs from 1, or the dot product of both rows from 0, by more than ``tolerance``; or not
    finite. Raises UsageFault for another shape or no rotations at all.
    """
    rows = np.asarray(six_d)
    if rows.ndim != 3 or rows.shape[-1] != 6 or rows.size == 0 or rows.dtype.kind != "f":
        raise UsageFault(f"rotations: found an array {rows.shape} of {rows.dtype}; expected floats (frames, joints, 6)")
    finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(rows).all(axis=-1))
    values = np.where(finite[..., None], rows, 0.0).astype(np.float64)  # a row of zeros is invalid all the same
    first, second = values[..., :3], values[..., 3:]
    lengths = np.stack([np.linalg.norm(first, axis=-1), np.linalg.norm(second, axis=-1)])
    good = (np.abs(lengths - 1) <= tolerance).all(axis=0) & (np.abs((first * second).sum(axis=-1)) <= tolerance)
    return ClipValue(float(1 - good.mean()), float(finite.size))


def l1_diversity(joints: Numbers) -> ClipValue:
    """Sum over coordinates of the mean absolute deviation from the mean: joints (T, J, 3) m to metres, weight T.

    The same in all profiles. One frame gives 0. Raises UsageFault for another shape, DataError for no or non-finite
    frames.
    """
    positions = checked(joints, "joints", (None, None, 3))
    deviation = np.abs(positions - positions.mean(axis=0)).sum() / len(positions)
    return ClipValue(float(deviation), float(len(positions)))
