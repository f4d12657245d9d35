"""What metrics share: a clip's value with its weight, and checks of the arrays they are given.

The checks give float64 views or copies; nothing in this package writes to an argument.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from omniges.errors import DataError, UsageFault
from omniges.formats.arrays import F64, Numbers, checked


@dataclass(frozen=True, slots=True)
class ClipValue:
    """A clip's value of a metric, and how much the clip counts among others; a corpus has the weighted mean."""

    value: float
    weight: float


def weighted_mean(clips: Sequence[ClipValue]) -> float:
    """The corpus value: mean of the clips' values by weight. Raises DataError where no clip has weight."""
    total = math.fsum(clip.weight for clip in clips)
    if not total > 0:
        raise DataError(
            f"mean over clips: found {len(clips)} clips with a total weight of {total}; expected some weight"
        )
    return math.fsum(clip.value * clip.weight for clip in clips) / total


def checked_pair(
    found: Numbers, expected: Numbers, what: str, shape: tuple[int | None, ...], *, at_least: int = 1
) -> tuple[F64, F64]:
    """Both arrays as `checked` gives them, of equal shape. Raises UsageFault where they differ."""
    first = checked(found, f"generated {what}", shape, at_least=at_least)
    second = checked(expected, f"recorded {what}", shape, at_least=at_least)
    if first.shape != second.shape:
        raise UsageFault(f"{what}: found {first.shape} generated and {second.shape} recorded; expected equal shapes")
    return first, second
