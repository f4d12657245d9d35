"""The order of windows is what docs/explanation/batches.md says, computed again here with Python's integers."""

from __future__ import annotations

import bisect
import math
from collections import Counter
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from omniges.data.order import (
    ClipOrder,
    Mixture,
    RankShare,
    keyed_hash,
    mixture_pattern,
    permuted,
    text_hashes,
    window_starts,
)
from omniges.errors import UsageFault

RELAXED = settings(deadline=None)
MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(z: int) -> int:
    z ^= z >> 30
    z = z * 0xBF58476D1CE4E5B9 & MASK
    z ^= z >> 27
    z = z * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def hashed(*values: int) -> int:
    state = 0
    for value in values:
        state = mix(((state ^ value & MASK) + GOLDEN) & MASK)
    return state


def below(h: int, n: int) -> int:
    return (h >> 32) * n >> 32


def plain_permuted(index: int, size: int, seed: int, epoch: int) -> int:
    """The permutation as the page has it."""
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    keys = [hashed(seed, 1, epoch, i) for i in range(8)]
    while True:
        left, right = divmod(index, b)
        for i in range(0, 8, 2):
            left = (left + below(mix(((right ^ keys[i]) + GOLDEN) & MASK), a)) % a
            right = (right + below(mix(((left ^ keys[i + 1]) + GOLDEN) & MASK), b)) % b
        index = left * b + right
        if index < size:
            return index


def fnv1a(data: bytes) -> int:
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 & MASK
    return h


def plain_window(clips: list[tuple[bytes, int]], ticks: int, seed: int, position: int) -> tuple[int, int, int]:
    """Epoch, clip and first tick at a position, as the page has it; `clips` are (key, ticks) in key order."""
    ends = [0]
    for _, length in clips:
        ends.append(ends[-1] + length // ticks)
    epoch, index = divmod(position, ends[-1])
    window = plain_permuted(index, ends[-1], seed, epoch)
    clip = bisect.bisect_right(ends, window) - 1
    key, length = clips[clip]
    count = length // ticks
    slack = length - count * ticks
    drawn = sorted(below(hashed(seed, 2, epoch, fnv1a(key), j), slack + 1) for j in range(count))
    place = window - ends[clip]
    return epoch, clip, place * ticks + drawn[place]


def order_of(clips: list[tuple[bytes, int]], ticks: int, seed: int, shuffle: bool = True) -> ClipOrder:
    keys = np.array([key for key, _ in clips])
    lengths = np.array([length for _, length in clips], dtype=np.int64)
    return ClipOrder(lengths, text_hashes(keys), ticks, seed, shuffle=shuffle)


KNOWN_PERMUTATION = [1, 18, 14, 5, 9, 15]
# Epochs, clips and first ticks at positions 9 to 14.
KNOWN_WINDOWS = [[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0], [589, 457, 67, 589, 524, 457]]
KEYS = st.text("abcXYZ_-019", min_size=1, max_size=20).map(str.encode)
CLIPS = st.dictionaries(KEYS, st.integers(1, 60), min_size=1, max_size=12).map(lambda found: sorted(found.items()))
SEEDS = st.integers(-(2**63), 2**64 - 1)


class TestAlgorithms:
    def test_fnv1a_has_its_published_values(self) -> None:
        found = text_hashes(np.array([b"", b"a", b"foobar"]))
        assert found.tolist() == [0xCBF29CE484222325, 0xAF63DC4C8601EC8C, 0x85944171F73967E8]

    def test_the_mix_is_splitmix64(self) -> None:
        """Published outputs of SplitMix64 seeded with 1234567, which mixes seed + k · golden ratio."""
        published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
        assert [hashed(1234567 + k * GOLDEN) for k in range(4)] == published
        assert [int(keyed_hash(1234567 + k * GOLDEN)[0]) for k in range(4)] == published

    @RELAXED
    @given(st.lists(SEEDS, min_size=1, max_size=5))
    def test_the_hash_is_that_of_the_page(self, values: list[int]) -> None:
        assert int(keyed_hash(*values)[0]) == hashed(*values)

    @RELAXED
    @given(st.integers(1, 10**7), SEEDS, st.integers(0, 10**6), st.data())
    def test_the_permutation_is_that_of_the_page(self, size: int, seed: int, epoch: int, data: st.DataObject) -> None:
        indices = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=8))
        expected = [plain_permuted(index, size, seed, epoch) for index in indices]
        assert permuted(np.array(indices), size, seed, epoch).tolist() == expected

    @RELAXED
    @given(st.integers(1, 3000), SEEDS, st.integers(0, 100))
    def test_it_is_a_permutation(self, size: int, seed: int, epoch: int) -> None:
        assert sorted(permuted(np.arange(size), size, seed, epoch).tolist()) == list(range(size))

    def test_known_answers(self) -> None:
        """Computed once with the plain functions above; a change of these is a change of every run's data."""
        assert [plain_permuted(i, 24, 1, 0) for i in range(6)] == KNOWN_PERMUTATION
        assert permuted(np.arange(6), 24, 1, 0).tolist() == KNOWN_PERMUTATION
        clips = [(b"1_wayne_0_1_1", 655), (b"2_scott_0_1_1", 150)]
        found = order_of(clips, 64, 7).windows_at(np.arange(9, 15))
        assert [row.tolist() for row in found] == KNOWN_WINDOWS

    @pytest.mark.parametrize("size", [5, 24, 100])
    def test_every_window_comes_at_every_place_equally_often(self, size: int) -> None:
        epochs = 400
        counts = np.zeros((size, size))
        neighbours = np.zeros((size, size))
        for epoch in range(epochs):
            images = permuted(np.arange(size), size, 5, epoch)
            counts[np.arange(size), images] += 1
            neighbours[images[:-1], images[1:]] += 1
        expected = epochs / size
        statistic = ((counts - expected) ** 2 / expected).sum()
        assert chi2.sf(statistic, (size - 1) ** 2) > 1e-4
        pairs = neighbours[~np.eye(size, dtype=bool)]
        expected = epochs * (size - 1) / len(pairs)
        assert chi2.sf(((pairs - expected) ** 2 / expected).sum(), len(pairs) - 1) > 1e-4

    def test_seeds_and_epochs_give_unlike_orders(self) -> None:
        orders = {tuple(permuted(np.arange(50), 50, seed, epoch).tolist()) for seed in range(20) for epoch in range(20)}
        assert len(orders) == 400


class TestWindows:
    @RELAXED
    @given(CLIPS, st.integers(1, 20), SEEDS, st.lists(st.integers(0, 10**9), min_size=1, max_size=6))
    def test_any_position_is_that_of_the_page(
        self, clips: list[tuple[bytes, int]], ticks: int, seed: int, positions: list[int]
    ) -> None:
        if all(length < ticks for _, length in clips):
            return
        found = order_of(clips, ticks, seed).windows_at(np.array(positions))
        expected = [plain_window(clips, ticks, seed, position) for position in positions]
        assert list(zip(*(row.tolist() for row in found), strict=True)) == expected

    @RELAXED
    @given(CLIPS, st.integers(1, 20), SEEDS, st.integers(0, 50))
    def test_an_epoch_has_every_window_once_inside_its_clip_and_apart(
        self, clips: list[tuple[bytes, int]], ticks: int, seed: int, epoch: int
    ) -> None:
        if all(length < ticks for _, length in clips):
            return
        order = order_of(clips, ticks, seed)
        assert order.windows == sum(length // ticks for _, length in clips)
        epochs, samples, starts = order.windows_at(np.arange(order.windows) + epoch * order.windows)
        assert set(epochs.tolist()) == {epoch}
        assert Counter(samples.tolist()) == {
            number: length // ticks for number, (_, length) in enumerate(clips) if length >= ticks
        }
        for number, (_, length) in enumerate(clips):
            own = sorted(starts[samples == number].tolist())
            assert all(start >= 0 and start + ticks <= length for start in own)
            assert all(later - earlier >= ticks for earlier, later in pairwise(own))

    @RELAXED
    @given(CLIPS, st.integers(1, 20), SEEDS)
    def test_the_fixed_order_is_key_order_without_gaps(
        self, clips: list[tuple[bytes, int]], ticks: int, seed: int
    ) -> None:
        if all(length < ticks for _, length in clips):
            return
        order = order_of(clips, ticks, seed, shuffle=False)
        _, samples, starts = order.windows_at(np.arange(order.windows))
        expected = [(n, k * ticks) for n, (_, length) in enumerate(clips) for k in range(length // ticks)]
        assert list(zip(samples.tolist(), starts.tolist(), strict=True)) == expected

    def test_gaps_are_spread_evenly(self) -> None:
        """The start of a single window is uniform; of several, each gap has the same mean: slack / (windows + 1)."""
        epochs, slack = 6000, 11
        one = window_starts(
            np.full(epochs, 1), np.full(epochs, slack), np.zeros(epochs, int), keyed_hash(np.arange(epochs)), 20
        )
        counts = np.bincount(one, minlength=slack + 1)
        expected = epochs / (slack + 1)
        assert chi2.sf(((counts - expected) ** 2 / expected).sum(), slack) > 1e-4
        three = np.stack(
            [
                window_starts(
                    np.full(epochs, 3), np.full(epochs, slack), np.full(epochs, k), keyed_hash(np.arange(epochs)), 20
                )
                for k in range(3)
            ]
        )
        gaps = np.diff(np.vstack([np.full(epochs, -20), three, np.full(epochs, 60 + slack)]), axis=0) - 20
        assert gaps.min() >= 0
        assert (gaps.sum(axis=0) == slack).all()
        # The smallest of 3 draws from 0..11 has mean Σ P(u ≥ j)³; by symmetry the last gap has the same.
        mean = sum(((slack + 1 - j) / (slack + 1)) ** 3 for j in range(1, slack + 1))
        assert gaps[[0, 3]].mean() == pytest.approx(mean, abs=0.1)

    def test_gaps_of_a_clip_do_not_depend_on_other_clips(self) -> None:
        """Gaps depend on seed, epoch and key only: other clips change when windows come, not where they lie."""
        key, length = b"2_scott_0_1_1", 250
        alone = order_of([(key, length)], 40, 3)
        among = order_of([(b"1_a", 90), (key, length), (b"3_c", 500)], 40, 3)
        _, _, starts = alone.windows_at(np.arange(alone.windows))
        _, samples, others = among.windows_at(np.arange(among.windows))
        assert sorted(starts.tolist()) == sorted(others[samples == 1].tolist())

    def test_short_clips_are_counted(self) -> None:
        order = order_of([(b"a", 9), (b"b", 10), (b"c", 3)], 10, 0)
        assert (order.windows, order.left_out_clips, order.left_out_ticks) == (1, 2, 12)

    def test_no_window_at_all_is_refused_with_the_longest_length(self) -> None:
        with pytest.raises(UsageFault, match="--window-ticks 9 or less"):
            order_of([(b"a", 9), (b"b", 5)], 10, 0)
        with pytest.raises(UsageFault, match="at least 1 tick"):
            order_of([(b"a", 9)], 0, 0)


class TestMixture:
    @RELAXED
    @given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6))
    def test_shares_are_the_weights_and_evenly_spread(self, weights: list[float]) -> None:
        pattern = mixture_pattern(weights)
        counts = np.bincount(pattern, minlength=len(weights))
        assert len(pattern) == 10_000
        assert counts.sum() == 10_000
        assert counts.min() >= 1
        exact = [float(Fraction(weight) / sum(map(Fraction, weights)) * 10_000) for weight in weights]
        slack = sum(share < 1 for share in exact)
        assert np.abs(counts - exact).max() <= 1 + slack
        for number, count in enumerate(counts.tolist()):
            due = (np.arange(count) + 0.5) / count * 10_000
            assert np.abs(np.flatnonzero(pattern == number) - due).max() <= len(weights)

    @given(st.lists(st.sampled_from([1.0, 2.0, 5.0]), min_size=2, max_size=4), st.integers(0, 10**6))
    @settings(max_examples=10, deadline=None)
    def test_each_source_runs_through_its_own_sequence(self, weights: list[float], start: int) -> None:
        orders = [order_of([(b"k%d" % n, 40 + 30 * n)], 10, 3) for n in range(len(weights))]
        indices = Mixture(orders, weights).windows_at(np.arange(start, start + 300))
        for number, order in enumerate(orders):
            chosen = np.flatnonzero(indices.source == number)
            own = np.arange(len(chosen)) + own_position(weights, number, start)
            expected = order.windows_at(own)
            found = (indices.epoch[chosen], indices.sample[chosen], indices.start_tick[chosen])
            assert [row.tolist() for row in found] == [row.tolist() for row in expected]

    def test_not_shuffled_the_folders_follow_each_other(self) -> None:
        orders = [order_of([(b"a", 25)], 10, 0, shuffle=False), order_of([(b"a", 31)], 10, 0, shuffle=False)]
        indices = Mixture(orders, [1, 9]).windows_at(np.arange(5))
        assert indices.source.tolist() == [0, 0, 1, 1, 1]
        assert indices.start_tick.tolist() == [0, 10, 0, 10, 20]

    @pytest.mark.parametrize("weights", [[], [0.0], [1.0, -1.0], [float("nan")], [float("inf"), 1.0]])
    def test_other_weights_are_refused(self, weights: list[float]) -> None:
        with pytest.raises(UsageFault, match="expected 1 to 10,000 positive numbers"):
            mixture_pattern(weights)


def own_position(weights: list[float], number: int, start: int) -> int:
    """Return how many positions before `start` belong to a source, counted one by one within a period."""
    pattern = mixture_pattern(weights).tolist()
    periods, rest = divmod(start, len(pattern))
    return periods * pattern.count(number) + pattern[:rest].count(number)


class TestShares:
    @RELAXED
    @given(st.integers(1, 9), st.integers(1, 8), st.integers(1, 4), st.integers(0, 10**12))
    def test_ranks_and_micro_steps_cover_a_step_once(self, world: int, batch: int, micro: int, step: int) -> None:
        shares = [RankShare(rank=r, world_size=world, batch_size=batch, accumulation=micro) for r in range(world)]
        G = world * batch * micro
        covered = [
            position
            for m in range(micro)
            for share in shares
            for position in share.positions(step * G + m * world * batch).tolist()
        ]
        assert shares[0].global_batch == G
        assert covered == list(range(step * G, (step + 1) * G))

    @pytest.mark.parametrize(
        "wrong", [{"rank": 2, "world_size": 2}, {"rank": -1}, {"world_size": 0}, {"batch_size": 0}, {"accumulation": 0}]
    )
    def test_others_are_refused(self, wrong: dict[str, int]) -> None:
        with pytest.raises(UsageFault):
            RankShare(**wrong)
