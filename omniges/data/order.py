"""The order in which training reads windows: a pure function of the clips, the window length, the seed and a position.

The order is the same on any number of ranks. A position is divided by the number of windows: the quotient is the epoch,
the remainder an index in the epoch. A keyed permutation maps the index to a window, and can be computed for a single
index. Keyed hashes determine the first tick of the window in its clip. The result for a position does not depend on the
results for other positions. Therefore every position has the same cost, resuming is O(1), and epochs need no
preparation.

docs/explanation/batches.md describes the algorithms. They use only 64-bit integers, so library versions cannot change
the order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Final

import numpy as np
import numpy.typing as npt

from omniges.errors import UsageFault

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

PERIOD: Final = 10_000
"""Number of positions after which the pattern of a `Mixture` repeats; it rounds weights to multiples of 1 / PERIOD."""

MAX_POSITION: Final = 2**62
"""Upper bound of positions, so that sums of positions are 64-bit integers."""

_GOLDEN: Final = 0x9E3779B97F4A7C15
_MASK: Final = 2**64 - 1
_PERMUTATION: Final = 1
_GAPS: Final = 2
_ROUNDS: Final = 8


def _fold(state: U64, value: U64) -> U64:
    """Return mix((state xor value) + golden ratio); mix is the finaliser of SplitMix64 (Steele, Lea and Flood 2014).

    Shapes broadcast. Arguments must be arrays, because numpy warns about an overflow of scalars.
    """
    z: U64 = state ^ value
    z += np.uint64(_GOLDEN)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def keyed_hash(*values: U64 | I64 | int) -> U64:
    """Hash the arguments together, element by element, to 64-bit values.

    The state starts at 0, and `_fold` mixes the arguments into it in order. The shapes broadcast. The result has at
    least one axis.
    """
    state = np.zeros(1, dtype=np.uint64)
    for value in values:
        state = _fold(state, np.asarray(value & _MASK if isinstance(value, int) else value).astype(np.uint64))
    return state


def _below(hashed: U64, limit: U64 | int) -> U64:
    """Map the upper 32 bits of a hash to 0 … limit − 1; limit is at most 2³²."""
    limits = np.asarray(limit, dtype=np.uint64)
    return ((hashed >> np.uint64(32)) * limits) >> np.uint64(32)


def _add_modulo(x: U64, y: U64, limit: int) -> U64:
    """Return (x + y) mod `limit` for x, y < `limit`. No division is used, because it takes several times as long."""
    total: U64 = x + y
    total -= (total >= limit) * np.uint64(limit)
    return total


def text_hashes(texts: npt.NDArray[np.bytes_]) -> U64:
    """Return the 64-bit FNV-1a hashes of byte strings (N,), which contain no NUL bytes."""
    width = texts.dtype.itemsize
    columns = np.ascontiguousarray(texts).view(np.uint8).reshape(len(texts), width)
    hashed = np.full(len(texts), 0xCBF29CE484222325, dtype=np.uint64)
    for column in columns.T:
        longer = column != 0
        hashed[longer] = (hashed[longer] ^ column[longer]) * np.uint64(0x100000001B3)
    return hashed


def permuted(indices: I64, size: int, seed: int, epochs: I64 | int) -> I64:
    """Permute indices by a permutation of range(size) that depends on seed and epoch.

    The permutation is an alternating Feistel network (Black and Rogaway 2002) of the numbers from 0 to
    a · b − 1, with a · b ≥ `size`. A result of `size` or more is permuted again until it is below `size` (cycle
    walking). Two indices never give the same result, because the network is bijective for any round function.

    Args:
        indices: P indices (P,), from 0 to `size` − 1.
        size: Number of values that the permutation reorders.
        seed: Seed of the order of windows.
        epochs: Epoch of each index (P,), or one epoch for all indices.

    Returns:
        Permuted indices (P,).
    """
    a = isqrt(max(size - 1, 0)) + 1
    b = -(-size // a)
    distinct, which = np.unique(np.broadcast_to(epochs, indices.shape), return_inverse=True)
    keys = keyed_hash(seed, _PERMUTATION, distinct[None, :], np.arange(_ROUNDS)[:, None])[:, which]
    values = indices.astype(np.uint64)
    outside = np.arange(len(values))
    while len(outside):
        left, right = np.divmod(values[outside], np.uint64(b))
        for number in range(0, _ROUNDS, 2):
            left = _add_modulo(left, _below(_fold(right, keys[number, outside]), a), a)
            right = _add_modulo(right, _below(_fold(left, keys[number + 1, outside]), b), b)
        values[outside] = left * np.uint64(b) + right
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


def window_starts(counts: I64, slack: I64, places: I64, clip_hashes: U64, window_ticks: int) -> I64:
    """Return the first ticks of P windows, each at a random place in its clip.

    Each window of a clip has a random number from 0 to `slack`. Window k starts at k · `window_ticks` plus the k-th
    smallest of these numbers, k from 0. So windows are disjoint.

    Args:
        counts: For each window, the number of windows in its clip (P,).
        slack: For each window, the number of ticks of its clip that no window covers (P,).
        places: Index k of each window in its clip (P,).
        clip_hashes: For each window, a hash of the seed, the epoch and the key of its clip (P,).
        window_ticks: Length of a window in ticks.

    Returns:
        First ticks (P,).
    """
    starts: I64 = places * window_ticks
    loose = np.flatnonzero(slack)
    counts, places = counts[loose], places[loose]
    owner = np.repeat(np.arange(len(loose)), counts)
    first = np.cumsum(counts) - counts
    number = np.arange(len(owner)) - first[owner]
    hashed = _fold(clip_hashes[loose][owner], number.astype(np.uint64))
    drawn = _below(hashed, (slack[loose][owner] + 1).astype(np.uint64)).astype(np.int64)
    ranked = np.sort((owner << 32) | drawn)  # sorts within each clip, because owners are ascending
    starts[loose] += ranked[first + places] & 0xFFFFFFFF
    return starts


@dataclass(frozen=True, slots=True)
class WindowIndices:
    """Folder, epoch, clip and first tick of the windows at P positions; each array is (P,) int64."""

    source: I64  # index of the shard folder
    epoch: I64  # number of the epoch in that folder, from 0
    sample: I64  # index of the clip in the folder's `Catalog`
    start_tick: I64  # first tick of the window in its clip


class ClipOrder:
    """The order of the windows of one shard folder.

    With shuffling, the order is an endless sequence of epochs, and each epoch is a permutation of all windows. Without
    shuffling, the order is one pass over the clips in key order. The first window of each clip then starts at tick 0,
    and there are no gaps between the windows of a clip.
    """

    def __init__(
        self, ticks: I64, key_hashes: U64, window_ticks: int, seed: int, *, shuffle: bool, multiple: int = 1
    ) -> None:
        """Prepare the order; clips shorter than a window are left out.

        Args:
            ticks: Lengths in ticks (N,) of the N clips.
            key_hashes: Hashes of the keys of the clips (N,).
            window_ticks: Length of a window in ticks, a multiple of `multiple`.
            seed: Seed of the order.
            shuffle: True: an endless shuffled order. False: one pass in key order.
            multiple: Windows start at multiples of this number of ticks. If a clip's length is not such a multiple,
                the remaining ticks at the end of the clip are not used.

        Raises:
            UsageFault: All clips are shorter than a window, or the window length is invalid.
        """
        if window_ticks < 1 or window_ticks % multiple:
            minimum = f"a multiple of {multiple} ticks, at least {multiple}" if multiple > 1 else "at least 1 tick"
            raise UsageFault(f"--window-ticks {window_ticks}: expected {minimum}; choose such a length")
        self.window_ticks, self.seed, self.shuffle = window_ticks, seed, shuffle
        self._multiple, self._window = multiple, window_ticks // multiple
        self._lengths, self._key_hashes = ticks // multiple, key_hashes
        self._last = np.cumsum(self._lengths // self._window)  # number of windows in each clip and all clips before it
        self.windows = int(self._last[-1]) if len(ticks) else 0
        short = ticks < window_ticks
        self.left_out_clips = int(short.sum())
        self.left_out_ticks = int(ticks[short].sum())
        if not self.windows:
            longest = int(ticks.max(initial=0))
            fits = max(longest - longest % multiple, multiple)
            raise UsageFault(
                f"--window-ticks {window_ticks}: expected a clip of at least {window_ticks / 10:g} s, found none "
                f"among {len(ticks)}; the longest has {longest} ticks; choose --window-ticks {fits} or less"
            )

    def windows_at(self, positions: I64) -> tuple[I64, I64, I64]:
        """Return the epoch, clip index and first tick of each window; positions and results are arrays (P,)."""
        epochs, indices = np.divmod(positions, self.windows)
        if not self.shuffle:
            samples, _, places = self._clips_of(indices)
            return epochs, samples, places * self.window_ticks
        windows = permuted(indices, self.windows, self.seed, epochs)
        hashes = keyed_hash(self.seed, _GAPS, epochs)
        samples, counts, places = self._clips_of(windows)
        slack = self._lengths[samples] - counts * self._window
        clip_hashes = _fold(hashes, self._key_hashes[samples])
        starts = window_starts(counts, slack, places, clip_hashes, self._window)
        return epochs, samples, starts * self._multiple

    def _clips_of(self, windows: I64) -> tuple[I64, I64, I64]:
        """Return the clip of each window, the number of windows in this clip, and the window's index in the clip.

        `windows` contains indices of windows. The windows of all clips are numbered from 0 in key order. `windows` and
        the three results are arrays (P,).
        """
        samples = np.searchsorted(self._last, windows, side="right")
        counts = self._lengths[samples] // self._window
        return samples, counts, windows - (self._last[samples] - counts)


def mixture_pattern(weights: Sequence[float]) -> I64:
    """Assign each of PERIOD successive positions to a shard folder (source), so that each source is evenly spread.

    The number of positions of a source is proportional to its weight. The largest remainder method rounds these
    numbers to integers of at least 1. If a source has m positions, the ideal place of its k-th position is
    (k + ½)/m · PERIOD, k from 0. The positions of all sources are sorted by their ideal places. If two ideal places are
    equal, the source with the lower index comes first.

    Args:
        weights: Weight of each source, a positive number.

    Returns:
        Index of the source to which each position is assigned (PERIOD,).

    Raises:
        UsageFault: A weight is not a positive finite number, or the number of weights is 0 or above PERIOD.
    """
    if not weights or not all(0 < weight < float("inf") for weight in weights) or len(weights) > PERIOD:
        raise UsageFault(
            f"weights of a mixture: expected 1 to {PERIOD:,} positive numbers, found {len(weights)} "
            f"({list(weights)!s:.80}); correct the weights"
        )
    exact = [weight / sum(weights) * PERIOD for weight in weights]
    counts = [max(1, int(share)) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for turn in range(PERIOD - sum(counts)):
        counts[by_remainder[turn % len(counts)]] += 1
    while sum(counts) > PERIOD:  # shares below 1 were rounded up to 1
        counts[int(np.argmax(counts))] -= 1
    owner = np.repeat(np.arange(len(counts)), counts)
    due = np.concatenate([(2 * np.arange(m) + 1) / (2 * m) for m in counts])
    return owner[np.lexsort((owner, due))].astype(np.int64)


class Mixture:
    """The order of windows of several shard folders, read as one sequence.

    A position in the sequence determines a folder and a position in the folder's own order. Without shuffling, the
    folders are read one after another, and weights have no effect.
    """

    def __init__(self, orders: Sequence[ClipOrder], weights: Sequence[float]) -> None:
        self.orders = tuple(orders)
        self.shuffle = orders[0].shuffle
        self.windows = sum(order.windows for order in orders)
        self._last = np.cumsum([order.windows for order in orders])
        pattern = mixture_pattern(weights)
        member = pattern[None, :] == np.arange(len(orders))[:, None]
        self._pattern = pattern
        self._counts = member.sum(axis=1)  # number of positions of each source in a period
        self._before = np.cumsum(member, axis=1)[pattern, np.arange(PERIOD)] - 1

    def windows_at(self, positions: I64) -> WindowIndices:
        """Return folder, epoch, clip and first tick of the windows at positions (P,) in the sequence."""
        if len(self.orders) == 1:
            sources, own = np.zeros_like(positions), positions
        elif self.shuffle:
            periods, places = np.divmod(positions, PERIOD)
            sources = self._pattern[places]
            own = periods * self._counts[sources] + self._before[places]
        else:
            sources = np.searchsorted(self._last, positions, side="right")
            own = positions - (self._last - [order.windows for order in self.orders])[sources]
        columns = np.empty((3, len(positions)), dtype=np.int64)
        for number, order in enumerate(self.orders):
            chosen = sources == number
            if chosen.any():
                columns[:, chosen] = order.windows_at(own[chosen])
        return WindowIndices(sources, *columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankShare:
    """The positions that one rank reads.

    A step consists of `accumulation` micro-steps. In a micro-step, each rank reads `batch_size` positions. In step k,
    all ranks together read the positions from kG to (k+1)G − 1, with G = ranks · batch size · accumulation.
    """

    rank: int = 0
    world_size: int = 1
    batch_size: int = 1  # windows per rank and micro-step
    accumulation: int = 1  # micro-steps per step

    def __post_init__(self) -> None:
        """Raise UsageFault if a value is out of range."""
        if self.world_size < 1 or self.batch_size < 1 or self.accumulation < 1:
            raise UsageFault(
                f"world size, batch size, accumulation: expected at least 1 each, found {self.world_size}, "
                f"{self.batch_size}, {self.accumulation}"
            )
        if not 0 <= self.rank < self.world_size:
            raise UsageFault(f"rank: expected a number from 0 to {self.world_size - 1}, found {self.rank}")

    @property
    def micro_batch(self) -> int:
        """Number of positions that all ranks together read in a micro-step."""
        return self.world_size * self.batch_size

    @property
    def global_batch(self) -> int:
        """Number of positions G that all ranks together read in a step."""
        return self.micro_batch * self.accumulation

    def positions(self, start: int) -> I64:
        """Return the positions (batch size,) of this rank in the micro-step that begins at global position `start`."""
        first = start + self.rank * self.batch_size
        return np.arange(first, first + self.batch_size, dtype=np.int64)
