"""Channel statistics: one float64 partial per clip, combined exactly, so the split of the work never shows.

A partial holds, per channel, count, mean, sum of squared deviations (M2), minimum and maximum. Partials are combined
after Chan, Golub & LeVeque (1983) with `math.fsum`, whose result does not depend on the order of its terms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

SMALLEST_STD: Final = 1e-6  # a channel that varies less is normalised with scale 1
_BLOCK_FRAMES = 256


def divisors(std: Sequence[float] | F64) -> npt.NDArray[np.float32]:
    """Return what channels are divided by once their mean is taken off: their deviation, or 1 below `SMALLEST_STD`.

    Args:
        std: standard deviations (C,), in the units of the channels.

    Returns:
        Divisors (C,); what is divided by them has a deviation of 1, or stays as it is where it hardly varies.
    """
    spread = np.asarray(std, dtype=np.float64)
    return np.where(spread < SMALLEST_STD, 1.0, spread).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Partial:
    """Statistics of one clip's array (T, C): count T and float64 rows mean, m2, minimum, maximum of shape (4, C)."""

    count: int
    rows: F64


def partial_of(array: npt.NDArray[np.float32]) -> Partial:
    """The partial of one clip: array (T, C) with T >= 1.

    Deviations are taken from the first frame, which costs one pass less than from the mean and leaves a channel
    that never changes with a variance of exactly zero. Sums run down the frames in order.
    """
    first = array[0].astype(np.float64)
    total = np.zeros_like(first)
    squares = np.zeros_like(first)
    block = np.empty((min(_BLOCK_FRAMES, len(array)), array.shape[1]))
    origin = np.tile(first, (len(block), 1))  # as large as a block: a row for all would be subtracted row by row
    for start in range(0, len(array), _BLOCK_FRAMES):
        frames = array[start : start + _BLOCK_FRAMES]
        deviation = block[: len(frames)]
        np.copyto(deviation, frames)  # a plain conversion; subtracting across types would go through small buffers
        deviation -= origin[: len(frames)]
        total += deviation.sum(axis=0)
        np.multiply(deviation, deviation, out=deviation)
        squares += deviation.sum(axis=0)
    count = len(array)
    mean = first + total / count
    m2 = np.maximum(squares - total * (total / count), 0.0)
    rows = np.stack([mean, m2, array.min(axis=0).astype(np.float64), array.max(axis=0).astype(np.float64)])
    return Partial(count, rows)


def combine(partials: Sequence[Partial]) -> dict[str, Any]:
    """Statistics over all clips as stats.json has them, by channel; the same to the last bit in any order of the clips.

    The deviation is that of the population. Without clips there are none, and the dictionary is empty.
    """
    if not partials:
        return {}
    counts = [p.count for p in partials]
    count = sum(counts)
    stacked = np.stack([p.rows for p in partials])  # (clips, 4, C)
    means, m2s = stacked[:, 0], stacked[:, 1]
    weights = np.array(counts, dtype=np.float64)[:, None]
    mean = _fsum_columns(means * weights) / count
    between = weights * (means - mean) ** 2
    variance = _fsum_columns(np.concatenate([m2s, between])) / count
    return {
        "frames": count,
        "mean": mean.tolist(),
        "std": np.sqrt(variance).tolist(),
        "min": stacked[:, 2].min(axis=0).tolist(),
        "max": stacked[:, 3].max(axis=0).tolist(),
    }


def _fsum_columns(values: F64) -> F64:
    return np.array([math.fsum(column) for column in values.T.tolist()])
