"""Confidence intervals over clips, and pairings of clips with audio that is not theirs.

Random numbers are Philox4x64-10 with the seed as key, mapped here, so they depend on no version of numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError, UsageFault
from omniges.metrics.clips import ClipValue, weighted_mean

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

RESAMPLES: Final = 2000


@dataclass(frozen=True, slots=True)
class Interval:
    """A corpus value with its percentile bootstrap interval over clips."""

    value: float
    low: float
    high: float
    level: float
    clips: int
    resamples: int
    seed: int


def _uniform(bits: np.random.Philox, count: int) -> F64:
    """Numbers (count,) in [0, 1): the top 53 bits of each output."""
    return np.asarray((bits.random_raw(count) >> np.uint64(11)) * 2.0**-53)


def _generator(seed: int) -> np.random.Philox:
    if not 0 <= seed < 1 << 64:
        raise UsageFault(f"seed: found {seed}; expected 0 to 2^64 - 1")
    return np.random.Philox(key=seed)


def draw_clips(clips: int, resamples: int, seed: int) -> I64:
    """Clip numbers (resamples, clips), each row drawn with replacement: ⌊u · clips⌋, row after row.

    Raises DataError for fewer than two clips, UsageFault for a bad seed or number of resamples.
    """
    if clips < 2:
        raise DataError(f"interval: found {clips} clips; expected at least 2: a value of one clip has no interval")
    if resamples < 1:
        raise UsageFault(f"interval: found {resamples} resamples; expected at least 1")
    drawn = _uniform(_generator(seed), resamples * clips)
    return np.minimum((drawn * clips).astype(np.int64), clips - 1).reshape(resamples, clips)


def bootstrap(
    clips: int,
    statistic: Callable[[I64], float],
    *,
    seed: int,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    centred: bool = False,
) -> Interval:
    """Percentile bootstrap interval of a statistic of clip numbers, which may repeat (Efron and Tibshirani 1993).

    ``centred``: the draws are shifted so that their mean is the value, for statistics such as a Fréchet distance that
    grow because a draw has fewer different clips. Raises DataError for fewer than two clips or a statistic that is not
    finite, UsageFault for bad settings.
    """
    if not 0 < level < 1:
        raise UsageFault(f"interval: found level {level}; expected between 0 and 1")
    values = np.array([statistic(rows) for rows in draw_clips(clips, resamples, seed)])
    value = statistic(np.arange(clips))
    return _interval(value, values - values.mean() + value if centred else values, level, clips, seed)


def bootstrap_mean(
    clips: Sequence[ClipValue], *, seed: int, level: float = 0.95, resamples: int = RESAMPLES
) -> Interval:
    """Interval of the weighted mean of clips; the same as `bootstrap` with `weighted_mean`, faster.

    A draw of clips that have no weight at all is an error, as it is in `weighted_mean`.
    """
    if not 0 < level < 1:
        raise UsageFault(f"interval: found level {level}; expected between 0 and 1")
    rows = draw_clips(len(clips), resamples, seed)
    weights = np.array([clip.weight for clip in clips])
    products = np.array([clip.value for clip in clips]) * weights
    totals = weights[rows].sum(axis=1)
    if not (totals > 0).all():
        raise DataError("interval: found a draw of clips without weight; expected every clip to have some")
    return _interval(weighted_mean(clips), products[rows].sum(axis=1) / totals, level, len(clips), seed)


def _interval(value: float, values: F64, level: float, clips: int, seed: int) -> Interval:
    if not (np.isfinite(value) and np.isfinite(values).all()):
        raise DataError("interval: found a value that is not finite; expected finite values of every clip")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high), level, clips, len(values), seed)


def shuffled_pairing(clips: int, seed: int, rounds: int = 1) -> I64:
    """For each round the clip (rounds, clips) whose audio each clip gets: one random cycle, so never its own.

    Sattolo (1986): all cycles are equally likely. Raises DataError for fewer than two clips, UsageFault for no rounds.
    """
    if clips < 2:
        raise DataError(f"shuffled pairing: found {clips} clips; expected at least 2")
    if rounds < 1:
        raise UsageFault(f"shuffled pairing: found {rounds} rounds; expected at least 1")
    bits = _generator(seed)
    pairings = np.tile(np.arange(clips), (rounds, 1))
    for order in pairings:
        for last, u in zip(range(clips - 1, 0, -1), _uniform(bits, clips - 1), strict=True):
            other = min(int(u * last), last - 1)
            order[last], order[other] = order[other], order[last]
    return pairings
