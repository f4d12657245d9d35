"""Values of a metric per clip: means over clips, confidence intervals, and random pairings for the shuffled scores.

No function in this package changes the arrays that it receives. Arrays that are not float64 are copied to float64.

The random generator is Philox4x64-10 with the seed as key. This module itself converts the generator's raw output to
numbers in a range. So the numbers do not depend on the version of numpy.
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
    """A clip's value of a metric and its weight in the mean over clips."""

    value: float
    weight: float


def weighted_mean(clips: Sequence[ClipValue]) -> float:
    """Return the weighted mean of the values of clips, which is the value of the metric for all clips together.

    Args:
        clips: Value and weight of each clip.

    Returns:
        The mean.

    Raises:
        DataError: The sum of the weights is not above 0.
    """
    total = math.fsum(clip.weight for clip in clips)
    if not total > 0:
        raise DataError(f"mean over clips: expected a total weight above 0, found {total} over {len(clips)} clips")
    return math.fsum(clip.value * clip.weight for clip in clips) / total


def checked_pair(
    found: Numbers, expected: Numbers, what: str, shape: tuple[int | None, ...], *, at_least: int = 1
) -> tuple[F64, F64]:
    """Check that two arrays have the same valid shape, and return both as float64.

    Args:
        found: Generated values, of `shape`.
        expected: Recorded values, of `shape`.
        what: Name of the quantity, shown in error messages.
        shape: Expected shape, with None for axes of any length.
        at_least: Smallest length of the first axis.

    Returns:
        The generated and the recorded array.

    Raises:
        UsageFault: A shape is wrong, or the two shapes differ.
        DataError: There are too few frames, or values that are NaN or infinite.
    """
    first = checked(found, f"generated {what}", shape, at_least=at_least)
    second = checked(expected, f"recorded {what}", shape, at_least=at_least)
    if first.shape != second.shape:
        raise UsageFault(f"{what}: expected equal shapes, found {first.shape} generated and {second.shape} recorded")
    return first, second


@dataclass(frozen=True, slots=True)
class Interval:
    """Value of a metric for all clips, with its 95 % interval by the percentile bootstrap over clips."""

    value: float
    low: float
    high: float
    resamples: int


def _uniform(seed: int, count: int) -> F64:
    """Return random numbers (count,) in [0, 1), each computed from the top 53 bits of one generator output."""
    if not 0 <= seed < 1 << 64:
        raise UsageFault(f"seed: expected 0 to 2^64 - 1, found {seed}")
    return np.asarray((np.random.Philox(key=seed).random_raw(count) >> np.uint64(11)) * 2.0**-53)


def draw_clips(clips: int, resamples: int, seed: int) -> I64:
    """Draw the clips of bootstrap resamples, with replacement.

    A clip's index is ⌊u · clips⌋, where u is a uniform random number in [0, 1). All indices of a resample are drawn
    before those of the next resample.

    Args:
        clips: Number of clips, at least 2.
        resamples: Number of resamples, at least 1.
        seed: Key of the generator, 0 to 2^64 − 1.

    Returns:
        Indices of clips (resamples, clips), from 0 to clips − 1.

    Raises:
        DataError: There are fewer than two clips.
        UsageFault: The seed or the number of resamples is out of range.
    """
    if clips < 2:
        raise DataError(f"interval: expected at least 2 clips, found {clips}; a value of one clip has no interval")
    if resamples < 1:
        raise UsageFault(f"interval: expected at least 1 resample, found {resamples}")
    drawn = _uniform(seed, resamples * clips)
    return np.minimum((drawn * clips).astype(np.int64), clips - 1).reshape(resamples, clips)


def bootstrap(
    clips: int, statistic: Callable[[I64], float], *, seed: int, resamples: int = RESAMPLES, centred: bool = False
) -> Interval:
    """Return the percentile bootstrap interval of a statistic (Efron and Tibshirani 1993).

    Args:
        clips: Number of clips, at least 2.
        statistic: Function that takes indices of clips (clips,), which may repeat, and returns a statistic of these
            clips.
        seed: Key of the generator, 0 to 2^64 − 1.
        resamples: Number of resamples, at least 1.
        centred: True: shift the statistics of the resamples so that their mean equals the value over all clips. This is
            for a statistic, such as a Fréchet distance, that is too large for resamples, because a resample contains
            fewer different clips.

    Returns:
        The value over all clips with its 95 % interval.

    Raises:
        DataError: There are fewer than two clips, or the statistic is NaN or infinite.
        UsageFault: The seed or the number of resamples is out of range.
    """
    values = np.array([statistic(rows) for rows in draw_clips(clips, resamples, seed)])
    value = statistic(np.arange(clips))
    return _interval(value, values - values.mean() + value if centred else values)


def bootstrap_mean(clips: Sequence[ClipValue], *, seed: int, resamples: int = RESAMPLES) -> Interval:
    """Return the bootstrap interval of the weighted mean over clips.

    The result is that of `bootstrap` with the statistic `weighted_mean`, but this function is faster.

    Args:
        clips: Values and weights of at least 2 clips.
        seed: Key of the generator, 0 to 2^64 − 1.
        resamples: Number of resamples, at least 1.

    Returns:
        The weighted mean with its 95 % interval.

    Raises:
        DataError: There are fewer than two clips, all clips of a resample have weight 0, or a value is NaN or infinite.
        UsageFault: The seed or the number of resamples is out of range.
    """
    rows = draw_clips(len(clips), resamples, seed)
    weights = np.array([clip.weight for clip in clips])
    products = np.array([clip.value for clip in clips]) * weights
    totals = weights[rows].sum(axis=1)
    if not (totals > 0).all():
        raise DataError("interval: expected weights above 0, found a resample whose weights are all 0")
    return _interval(weighted_mean(clips), products[rows].sum(axis=1) / totals)


def _interval(value: float, values: F64) -> Interval:
    if not (np.isfinite(value) and np.isfinite(values).all()):
        raise DataError("interval: expected finite values of every clip, found a value that is NaN or infinite")
    low, high = np.quantile(values, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(float(value), float(low), float(high), len(values))


def shuffled_pairing(clips: int, seed: int) -> I64:
    """Assign the audio of another clip to each clip, at random.

    A random cycle through all clips is drawn; all cycles are equally likely (Sattolo 1986). Each clip gets the audio of
    the next clip in the cycle.

    Args:
        clips: Number of clips, at least 2.
        seed: Key of the generator, 0 to 2^64 − 1.

    Returns:
        Indices (clips,): for each clip, the index of the clip from which it gets the audio.

    Raises:
        DataError: There are fewer than two clips.
        UsageFault: The seed is out of range.
    """
    if clips < 2:
        raise DataError(f"shuffled pairing: expected at least 2 clips, found {clips}")
    order = np.arange(clips)
    for last, u in zip(range(clips - 1, 0, -1), _uniform(seed, clips - 1), strict=True):
        other = min(int(u * last), last - 1)
        order[last], order[other] = order[other], order[last]
    return order
