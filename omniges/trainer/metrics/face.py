"""Distances of face vertices: mean squared error and landmark velocity difference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from omniges.trainer.metrics.clips import checked_pair
from omniges.trainer.metrics.profiles import FaceSettings

__all__ = ["FaceScore", "face_mse", "face_velocity"]

Numbers = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class FaceScore:
    """A clip's value; values over another number of vertices do not compare."""

    value: float
    weight: float
    vertices: int


def face_mse(generated: Numbers, recorded: Numbers) -> FaceScore:
    """Mean over frames and coordinates of the squared error: vertices (T, V, 3) m to m², weight T.

    The same in all profiles. Raises UsageFault for unequal or other shapes, DataError for no or non-finite frames.
    """
    found, expected = checked_pair(generated, recorded, "vertices", (None, None, 3))
    return FaceScore(float(np.square(found - expected).mean()), float(len(found)), found.shape[1])


def face_velocity(generated: Numbers, recorded: Numbers, settings: FaceSettings) -> FaceScore:
    """LVD as the profile has it: vertices (T, V, 3) m to metres per frame (a position error in m in ``emage-2024``).

    Raises UsageFault for unequal or other shapes, DataError for fewer than 2 or non-finite frames.
    """
    found, expected = checked_pair(generated, recorded, "vertices", (None, None, 3), at_least=2)
    frames, coordinates = len(found), found[0].size
    if settings.lvd == "position-error":
        difference = found[1:] - expected[1:]
    else:
        difference = np.diff(found, axis=0) - np.diff(expected, axis=0)
    total = float(np.abs(difference).sum())
    divisor = frames if settings.lvd == "velocity-by-frames" else frames - 1
    weight = frames - 1 if settings.lvd == "velocity-by-steps" else frames
    return FaceScore(total / (divisor * coordinates), float(weight), found.shape[1])
