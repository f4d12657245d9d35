"""The order of windows: a pure function of (clips, window, seed, position), the same on any number of ranks.

Nothing is drawn one after the other. A position gives its epoch and index by division, the index gives a window
through a keyed permutation that is computed for single indices, and the window's place in its clip comes from a keyed
hash. So any position costs the same, resuming is O(1), and no epoch has to be prepared. The algorithms are written
down in docs/explanation/batches.md; they use 64-bit integers alone, so no library version can change them.
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
"""Positions after which the pattern of a mixture repeats: weights are exact to one in so many."""

_GOLDEN: Final = 0x9E3779B97F4A7C15
_MASK: Final = 2**64 - 1
_PERMUTATION: Final = 1
_GAPS: Final = 2
_ROUNDS: Final = 8


def _fold(state: U64, value: U64) -> U64:
    """Fold a value in: mix((s xor v) + golden ratio); shapes broadcast. No scalars: numpy warns of their overflow.

    To mix is the finaliser of SplitMix64 (Steele, Lea and Flood 2014).
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
    """64-bit hash of a row of 64-bit values, folded one after the other into 0; shapes broadcast to at least (1,)."""
    state = np.zeros(1, dtype=np.uint64)
    for value in values:
        state = _fold(state, np.asarray(value & _MASK if isinstance(value, int) else value).astype(np.uint64))
    return state


def _below(hashed: U64, limit: U64 | int) -> U64:
    """The upper 32 bits of a hash as a number from 0 to limit − 1; limit at most 2³²."""
    limits = np.asarray(limit, dtype=np.uint64)
    return ((hashed >> np.uint64(32)) * limits) >> np.uint64(32)


def _add_modulo(x: U64, y: U64, limit: int) -> U64:
    """The sum x + y modulo a limit that both are below; several times faster than a division."""
    total: U64 = x + y
    total -= (total >= limit) * np.uint64(limit)
    return total


def text_hashes(texts: npt.NDArray[np.bytes_]) -> U64:
    """FNV-1a, 64 bits, of byte strings without NUL (N,)."""
    width = texts.dtype.itemsize
    columns = np.ascontiguousarray(texts).view(np.uint8).reshape(len(texts), width)
    hashed = np.full(len(texts), 0xCBF29CE484222325, dtype=np.uint64)
    for column in columns.T:
        longer = column != 0
        hashed[longer] = (hashed[longer] ^ column[longer]) * np.uint64(0x100000001B3)
    return hashed


def permuted(indices: I64, size: int, seed: int, epochs: I64 | int) -> I64:
    """The images of indices (P,) in the permutations of range(size) that (seed, epoch) name; epochs (P,) or one.

    An alternating Feistel network over a × b ≥ size (Black and Rogaway 2002) with cycle walking: what lands at or
    above `size` goes through again. Bijective whatever the round function is.
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
    """First ticks (P,) of windows: number `places` of `counts` disjoint ones in a clip with `slack` ticks left over.

    Every window of the clip draws a number from 0 to slack; window k starts at k · window plus the k-th smallest of
    them. So the gaps before, between and after the windows add up to the slack. `clip_hashes` name seed, epoch and key.
    """
    starts: I64 = places * window_ticks
    loose = np.flatnonzero(slack)
    counts, places = counts[loose], places[loose]
    owner = np.repeat(np.arange(len(loose)), counts)
    first = np.cumsum(counts) - counts
    number = np.arange(len(owner)) - first[owner]
    hashed = _fold(clip_hashes[loose][owner], number.astype(np.uint64))
    drawn = _below(hashed, (slack[loose][owner] + 1).astype(np.uint64)).astype(np.int64)
    ranked = np.sort((owner << 32) | drawn)  # within each clip, for the owners come in order
    starts[loose] += ranked[first + places] & 0xFFFFFFFF
    return starts


@dataclass(frozen=True, slots=True)
class Picks:
    """Windows at positions (P,); all arrays (P,) int64."""

    source: I64  # number of the shard folder
    epoch: I64  # of that folder
    sample: I64  # number of the clip in its catalogue
    start_tick: I64


class ClipOrder:
    """The windows of one shard folder's clips, in order of position.

    Shuffled: epoch after epoch for ever, each a permutation of all windows. Otherwise one pass in key order, windows
    from the clip's first tick on, without gaps.
    """

    def __init__(
        self, ticks: I64, key_hashes: U64, window_ticks: int, seed: int, *, shuffle: bool, multiple: int = 1
    ) -> None:
        """Lengths (N,) of clips in ticks and hashes (N,) of their keys; clips shorter than a window have no part.

        Windows begin at a `multiple` of ticks, which their length is a multiple of too: all is counted in it, and
        what a clip has beyond its last one is left over. Raises UsageFault if there is no window at all, or the window
        is no such length.
        """
        if window_ticks < 1 or window_ticks % multiple:
            least = f"at least {multiple} ticks and a multiple of it" if multiple > 1 else "at least 1 tick"
            raise UsageFault(f"a window of {least} expected, found --window-ticks {window_ticks}")
        self.window_ticks, self.seed, self.shuffle = window_ticks, seed, shuffle
        self._multiple, self._window = multiple, window_ticks // multiple
        self._lengths, self._key_hashes = ticks // multiple, key_hashes
        self._last = np.cumsum(self._lengths // self._window)  # windows up to and with each clip
        self.windows = int(self._last[-1]) if len(ticks) else 0
        short = ticks < window_ticks
        self.left_out_clips = int(short.sum())
        self.left_out_ticks = int(ticks[short].sum())
        if not self.windows:
            longest = int(ticks.max(initial=0))
            fits = max(longest - longest % multiple, multiple)
            raise UsageFault(
                f"a window of {window_ticks} ticks ({window_ticks / 10:g} s) fits into none of {len(ticks)} clips, the "
                f"longest has {longest} ticks: choose --window-ticks {fits} or less"
            )

    def picks(self, positions: I64) -> tuple[I64, I64, I64]:
        """Epochs, samples and first ticks, each (P,), of positions (P,) of this folder."""
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
        """Clip, number of windows in it, and place among these, of windows counted over all clips in key order."""
        samples = np.searchsorted(self._last, windows, side="right")
        counts = self._lengths[samples] // self._window
        return samples, counts, windows - (self._last[samples] - counts)


def mixture_pattern(weights: Sequence[float]) -> I64:
    """Return the source of each of PERIOD positions, evenly spread.

    Shares are whole numbers of PERIOD by largest remainder, one at least; the k-th position of a source with m of them
    is due at (k + ½)/m of the period, and positions are given out in the order they are due, the first source first.
    Raises UsageFault for weights that are not positive numbers.
    """
    if not weights or not all(0 < weight < float("inf") for weight in weights) or len(weights) > PERIOD:
        raise UsageFault(f"a mixture needs positive weights, found {list(weights)}")
    exact = [weight / sum(weights) * PERIOD for weight in weights]
    counts = [max(1, int(share)) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for turn in range(PERIOD - sum(counts)):
        counts[by_remainder[turn % len(counts)]] += 1
    while sum(counts) > PERIOD:  # shares below one were raised to one
        counts[int(np.argmax(counts))] -= 1
    owner = np.repeat(np.arange(len(counts)), counts)
    due = np.concatenate([(2 * np.arange(m) + 1) / (2 * m) for m in counts])
    return owner[np.lexsort((owner, due))].astype(np.int64)


class Mixture:
    """Several folders as one sequence: each keeps its own epoch and position, both functions of the global position.

    Not shuffled, the folders follow each other and weights have no part.
    """

    def __init__(self, orders: Sequence[ClipOrder], weights: Sequence[float]) -> None:
        self.orders = tuple(orders)
        self.shuffle = orders[0].shuffle
        self.windows = sum(order.windows for order in orders)
        self._last = np.cumsum([order.windows for order in orders])
        pattern = mixture_pattern(weights)
        member = pattern[None, :] == np.arange(len(orders))[:, None]
        self._pattern = pattern
        self._counts = member.sum(axis=1)  # positions of each source in a period
        self._before = np.cumsum(member, axis=1)[pattern, np.arange(PERIOD)] - 1

    def picks(self, positions: I64) -> Picks:
        """Return the windows at global positions (P,)."""
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
                columns[:, chosen] = order.picks(own[chosen])
        return Picks(sources, *columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankShare:
    """Positions of a rank: step k covers [kG, (k+1)G) with G = ranks · batch size · accumulation."""

    rank: int = 0
    world_size: int = 1
    batch_size: int = 1  # windows per rank and micro-step
    accumulation: int = 1  # micro-steps per step

    def __post_init__(self) -> None:
        """Refuse what cannot be a share."""
        if self.world_size < 1 or self.batch_size < 1 or self.accumulation < 1:
            raise UsageFault(
                f"world size, batch size and accumulation of at least 1 expected, found {self.world_size}, "
                f"{self.batch_size}, {self.accumulation}"
            )
        if not 0 <= self.rank < self.world_size:
            raise UsageFault(f"a rank from 0 to {self.world_size - 1} expected, found {self.rank}")

    @property
    def micro_batch(self) -> int:
        """Positions all ranks take together in a micro-step."""
        return self.world_size * self.batch_size

    @property
    def global_batch(self) -> int:
        """G, positions of a step."""
        return self.micro_batch * self.accumulation

    def positions(self, start: int) -> I64:
        """Positions (batch size,) of this rank in the micro-step that begins at global position `start`."""
        first = start + self.rank * self.batch_size
        return np.arange(first, first + self.batch_size, dtype=np.int64)
