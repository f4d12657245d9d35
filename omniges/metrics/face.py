"""Distances of face vertices: mean squared error and landmark velocity difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError, UsageFault
from omniges.metrics.clips import checked_pair
from omniges.metrics.profiles import FaceSettings

__all__ = ["FaceScore", "FaceSums", "face_mse", "face_velocity"]

F64 = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.floating]

_LEAST_FRAMES: Final = 2


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
    sums = FaceSums()
    sums.add(generated, recorded)
    return sums.mse()


def face_velocity(generated: Numbers, recorded: Numbers, settings: FaceSettings) -> FaceScore:
    """LVD as the profile has it: vertices (T, V, 3) m to metres per frame (a position error in m in ``emage-2024``).

    Raises UsageFault for unequal or other shapes, DataError for fewer than 2 or non-finite frames.
    """
    sums = FaceSums()
    sums.add(generated, recorded)
    return sums.velocity(settings)


class FaceSums:
    """Both metrics of a clip whose vertices come block after block, so that memory does not grow with its length."""

    def __init__(self) -> None:
        self._squares = self._positions = self._steps = 0.0
        self._frames = self._vertices = 0
        self._last: F64 | None = None  # error of the last frame

    def add(self, generated: Numbers, recorded: Numbers) -> None:
        """The next frames: vertices (T, V, 3) m. Raises what `face_mse` raises."""
        found, expected = checked_pair(generated, recorded, "vertices", (None, None, 3))
        if self._last is not None and found.shape[1] != self._vertices:
            raise UsageFault(f"vertices: found {found.shape[1]} after {self._vertices}; expected one number of them")
        self._vertices = found.shape[1]
        self._frames += len(found)
        error = found - expected
        self._squares += float(np.square(error).sum())
        if self._last is not None:
            self._positions += float(np.abs(error[0]).sum())
            self._steps += float(np.abs(error[0] - self._last).sum())
        self._positions += float(np.abs(error[1:]).sum())
        self._steps += float(np.abs(np.diff(error, axis=0)).sum())
        self._last = error[-1].copy()

    def mse(self) -> FaceScore:
        """As `face_mse` of all frames."""
        return FaceScore(self._squares / (self._frames * self._vertices * 3), float(self._frames), self._vertices)

    def velocity(self, settings: FaceSettings) -> FaceScore:
        """As `face_velocity` of all frames."""
        frames = self._frames
        if frames < _LEAST_FRAMES:
            raise DataError(f"vertices: found {frames}; expected at least {_LEAST_FRAMES}: leave this clip out")
        total = self._positions if settings.lvd == "position-error" else self._steps
        divisor = frames if settings.lvd == "velocity-by-frames" else frames - 1
        weight = frames - 1 if settings.lvd == "velocity-by-steps" else frames
        return FaceScore(total / (divisor * self._vertices * 3), float(weight), self._vertices)
