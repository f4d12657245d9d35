"""A clip's value of a metric, and what is made of those of many: means, confidence intervals, shuffled pairings.

The checks of arrays give float64 views or copies; nothing in this package writes to an argument. Random numbers are
Philox4x64-10 with the seed as key, mapped here, so they depend on no version of numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError, UsageFault
from omniges.formats.arrays import F64, Numbers, checked

I64 = npt.NDArray[np.int64]

RESAMPLES: Final = 2000
_LEVEL: Final = 0.95


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


@dataclass(frozen=True, slots=True)
class Interval:
    """A corpus value with its 95 % percentile bootstrap interval over clips."""

    value: float
    low: float
    high: float
    resamples: int


def _uniform(seed: int, count: int) -> F64:
    """Numbers (count,) in [0, 1): the top 53 bits of each output."""
    if not 0 <= seed < 1 << 64:
        raise UsageFault(f"seed: found {seed}; expected 0 to 2^64 - 1")
    return np.asarray((np.random.Philox(key=seed).random_raw(count) >> np.uint64(11)) * 2.0**-53)


def draw_clips(clips: int, resamples: int, seed: int) -> I64:
    """Clip numbers (resamples, clips), each row drawn with replacement: ⌊u · clips⌋, row after row.

    Raises DataError for fewer than two clips, UsageFault for a bad seed or number of resamples.
    """
    if clips < 2:
        raise DataError(f"interval: found {clips} clips; expected at least 2: a value of one clip has no interval")
    if resamples < 1:
        raise UsageFault(f"interval: found {resamples} resamples; expected at least 1")
    drawn = _uniform(seed, resamples * clips)
    return np.minimum((drawn * clips).astype(np.int64), clips - 1).reshape(resamples, clips)


def bootstrap(
    clips: int, statistic: Callable[[I64], float], *, seed: int, resamples: int = RESAMPLES, centred: bool = False
) -> Interval:
    """Percentile bootstrap interval of a statistic of clip numbers, which may repeat (Efron and Tibshirani 1993).

    ``centred``: the draws are shifted so that their mean is the value, for statistics such as a Fréchet distance that
    grow because a draw has fewer different clips. Raises DataError for fewer than two clips or a statistic that is not
    finite, UsageFault for bad settings.
    """
    values = np.array([statistic(rows) for rows in draw_clips(clips, resamples, seed)])
    value = statistic(np.arange(clips))
    return _interval(value, values - values.mean() + value if centred else values)


def bootstrap_mean(clips: Sequence[ClipValue], *, seed: int, resamples: int = RESAMPLES) -> Interval:
    """Interval of the weighted mean of clips; the same as `bootstrap` with `weighted_mean`, faster.

    A draw of clips that have no weight at all is an error, as it is in `weighted_mean`.
    """
    rows = draw_clips(len(clips), resamples, seed)
    weights = np.array([clip.weight for clip in clips])
    products = np.array([clip.value for clip in clips]) * weights
    totals = weights[rows].sum(axis=1)
    if not (totals > 0).all():
        raise DataError("interval: found a draw of clips without weight; expected every clip to have some")
    return _interval(weighted_mean(clips), products[rows].sum(axis=1) / totals)


def _interval(value: float, values: F64) -> Interval:
    if not (np.isfinite(value) and np.isfinite(values).all()):
        raise DataError("interval: found a value that is not finite; expected finite values of every clip")
    low, high = np.quantile(values, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(float(value), float(low), float(high), len(values))


def shuffled_pairing(clips: int, seed: int) -> I64:
    """The clip (clips,) whose audio each clip gets: one random cycle, so never its own.

    Sattolo (1986): all cycles are equally likely. Raises DataError for fewer than two clips.
    """
    if clips < 2:
        raise DataError(f"shuffled pairing: found {clips} clips; expected at least 2")
    order = np.arange(clips)
    for last, u in zip(range(clips - 1, 0, -1), _uniform(seed, clips - 1), strict=True):
        other = min(int(u * last), last - 1)
        order[last], order[other] = order[other], order[last]
    return order
