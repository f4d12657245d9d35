"""What metrics share: a clip's value with its weight, and checks of the arrays they are given.

The checks give float64 views or copies; nothing in this package writes to an argument.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError, UsageFault

__all__ = ["ClipValue", "Weighted", "checked", "checked_pair", "weighted_mean"]

F64 = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.floating]


class Weighted(Protocol):
    """A clip's value of a metric, and how much the clip counts among others."""

    @property
    def value(self) -> float:
        """The clip's value."""

    @property
    def weight(self) -> float:
        """Its weight in a mean over clips."""


@dataclass(frozen=True, slots=True)
class ClipValue:
    """A clip's value of a metric; a corpus has the mean of its clips' values by weight."""

    value: float
    weight: float


def weighted_mean(clips: Sequence[Weighted]) -> float:
    """The corpus value: mean of the clips' values by weight. Raises DataError where no clip has weight."""
    total = math.fsum(clip.weight for clip in clips)
    if not total > 0:
        raise DataError(
            f"mean over clips: found {len(clips)} clips with a total weight of {total}; expected some weight"
        )
    return math.fsum(clip.value * clip.weight for clip in clips) / total


def checked(array: Numbers, what: str, shape: tuple[int | None, ...], *, at_least: int = 1) -> F64:
    """The array as float64, if it has the shape (None: any length) and is finite and long enough.

    Raises UsageFault for another shape, DataError for fewer than `at_least` rows and for values that are not finite.
    """
    array = np.asarray(array)
    fits = array.ndim == len(shape) and all(n is None or n == m for n, m in zip(shape, array.shape, strict=True))
    if not fits or array.dtype.kind not in "fiu":
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise UsageFault(f"{what}: found an array {array.shape} of {array.dtype}; expected numbers ({wanted})")
    if len(array) < at_least:
        raise DataError(f"{what}: found {len(array)}; expected at least {at_least}: leave this clip out")
    numbers = np.asarray(array, dtype=np.float64)
    if not np.isfinite(numbers).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(numbers))[0])
        raise DataError(f"{what}: found {numbers[where]} at {where}; expected finite numbers")
    return numbers


def checked_pair(
    found: Numbers, expected: Numbers, what: str, shape: tuple[int | None, ...], *, at_least: int = 1
) -> tuple[F64, F64]:
    """Both arrays as `checked` gives them, of equal shape. Raises UsageFault where they differ."""
    first = checked(found, f"generated {what}", shape, at_least=at_least)
    second = checked(expected, f"recorded {what}", shape, at_least=at_least)
    if first.shape != second.shape:
        raise UsageFault(f"{what}: found {first.shape} generated and {second.shape} recorded; expected equal shapes")
    return first, second
