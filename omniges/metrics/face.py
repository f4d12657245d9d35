"""Distances of face vertices: mean squared error and landmark velocity difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError, UsageFault
from omniges.metrics.clips import ClipValue, checked_pair
from omniges.metrics.profiles import FaceSettings

F64 = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.floating]

_LEAST_FRAMES: Final = 2


@dataclass(frozen=True, slots=True)
class FaceScore(ClipValue):
    """A clip's value; values over another number of vertices do not compare."""

    vertices: int


class FaceSums:
    """Both metrics of a clip whose vertices come block after block, so that memory does not grow with its length."""

    def __init__(self) -> None:
        self._squares = self._positions = self._steps = 0.0
        self._frames = self._vertices = 0
        self._last: F64 | None = None  # error of the last frame

    def add(self, generated: Numbers, recorded: Numbers) -> None:
        """Take in the next frames: vertices (T, V, 3) m.

        Raises UsageFault for unequal or other shapes, DataError for no or non-finite frames.
        """
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
        """Return the mean of squared errors over frames and coordinates in m², weight T; the same in all profiles."""
        return FaceScore(self._squares / (self._frames * self._vertices * 3), float(self._frames), self._vertices)

    def velocity(self, settings: FaceSettings) -> FaceScore:
        """Return LVD as the profile has it, in metres per frame (a position error in m in ``emage-2024``).

        Raises DataError for fewer than 2 frames.
        """
        frames = self._frames
        if frames < _LEAST_FRAMES:
            raise DataError(f"vertices: found {frames}; expected at least {_LEAST_FRAMES}: leave this clip out")
        total = self._positions if settings.lvd == "position-error" else self._steps
        divisor = frames if settings.lvd == "velocity-by-frames" else frames - 1
        weight = frames - 1 if settings.lvd == "velocity-by-steps" else frames
        return FaceScore(total / (divisor * self._vertices * 3), float(weight), self._vertices)
