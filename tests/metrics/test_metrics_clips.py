"""Intervals repeat, are those of scipy and of the normal theory, and shuffles leave no clip its own audio."""

import math
from collections import Counter

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from omniges.errors import DataError, UsageFault
from omniges.metrics.clips import ClipValue, bootstrap, bootstrap_mean, draw_clips, shuffled_pairing, weighted_mean

RNG = np.random.default_rng(0)
CLIPS = [ClipValue(float(v), float(w)) for v, w in zip(RNG.normal(5, 2, 40), RNG.uniform(1, 9, 40), strict=True)]


class TestDraws:
    def test_the_generator_is_the_documented_one(self):
        """Philox4x64-10 with key 5 from numpy's raw stream, top 53 bits; golden values of its first draws."""
        raw = np.random.Philox(key=5).random_raw(6)
        expected = [math.floor((int(r) >> 11) / 2**53 * 1000) for r in raw]
        assert draw_clips(1000, 1, 5)[0, :6].tolist() == expected

    def test_every_clip_is_as_likely(self):
        drawn = draw_clips(10, 5000, 1)
        assert drawn.shape == (5000, 10)
        assert scipy.stats.chisquare(np.bincount(drawn.ravel(), minlength=10)).pvalue > 1e-4

    @given(st.integers(2, 50), st.integers(0, 2**64 - 1))
    @settings(deadline=None)
    def test_numbers_of_clips(self, clips, seed):
        drawn = draw_clips(clips, 3, seed)
        assert drawn.min() >= 0
        assert drawn.max() < clips
        np.testing.assert_array_equal(drawn, draw_clips(clips, 3, seed))


class TestIntervals:
    def test_same_seed_same_interval_other_seed_another(self):
        one = bootstrap_mean(CLIPS, seed=3)
        assert one == bootstrap_mean(CLIPS, seed=3)
        assert (one.low, one.high) != (bootstrap_mean(CLIPS, seed=4).low, bootstrap_mean(CLIPS, seed=4).high)
        assert one.low < one.value < one.high
        assert one.resamples == 2000

    def test_any_statistic_gives_what_the_quick_mean_gives(self):
        slow = bootstrap(40, lambda rows: weighted_mean([CLIPS[i] for i in rows]), seed=9, resamples=200)
        quick = bootstrap_mean(CLIPS, seed=9, resamples=200)
        assert (slow.value, slow.low, slow.high) == pytest.approx((quick.value, quick.low, quick.high), rel=1e-12)

    def test_close_to_scipys_percentile_bootstrap(self):
        values = np.array([clip.value for clip in CLIPS])
        theirs = scipy.stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20000, rng=1)
        ours = bootstrap_mean([ClipValue(v, 1.0) for v in values], seed=1, resamples=20000)
        width = theirs.confidence_interval.high - theirs.confidence_interval.low
        assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.03 * width)
        assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.03 * width)

    def test_it_covers_the_truth_as_often_as_it_says(self):
        hits, rng = 0, np.random.default_rng(5)
        for seed in range(300):
            clips = [ClipValue(float(v), 1.0) for v in rng.normal(1, 1, 50)]
            interval = bootstrap_mean(clips, seed=seed, resamples=300)
            hits += interval.low <= 1 <= interval.high
        assert 0.9 < hits / 300 < 0.98

    def test_units(self):
        scaled = [ClipValue(1000 * clip.value, clip.weight * 7) for clip in CLIPS]
        one, other = bootstrap_mean(CLIPS, seed=2), bootstrap_mean(scaled, seed=2)
        assert (other.low, other.high) == pytest.approx((1000 * one.low, 1000 * one.high), rel=1e-12)

    def test_refusals(self):
        with pytest.raises(DataError, match="expected at least 2 clips, found 1"):
            bootstrap_mean(CLIPS[:1], seed=1)
        with pytest.raises(DataError, match="NaN or infinite"):
            bootstrap(3, lambda _: math.nan, seed=1, resamples=2)
        with pytest.raises(DataError, match="NaN or infinite"):
            bootstrap_mean([ClipValue(math.nan, 1.0), *CLIPS], seed=1)
        with pytest.raises(DataError, match="weights are all 0"):
            bootstrap_mean([ClipValue(1.0, 0.0), ClipValue(1.0, 1.0)], seed=1)
        for seed in (-1, 2**64):
            with pytest.raises(UsageFault, match="seed"):
                bootstrap_mean(CLIPS, seed=seed)
        with pytest.raises(UsageFault, match="at least 1 resample"):
            bootstrap_mean(CLIPS, seed=1, resamples=0)


class TestShuffles:
    @given(st.integers(2, 40), st.integers(0, 2**64 - 1))
    @settings(deadline=None)
    def test_one_cycle_through_all_clips(self, clips, seed):
        order = shuffled_pairing(clips, seed)
        np.testing.assert_array_equal(order, shuffled_pairing(clips, seed))
        place, seen = 0, set()
        while place not in seen:
            seen.add(place)
            place = int(order[place])
        assert seen == set(range(clips))

    def test_all_cycles_are_as_likely(self):
        counts = Counter(tuple(shuffled_pairing(4, seed).tolist()) for seed in range(6000))
        assert len(counts) == 6  # 3! cycles of four
        assert scipy.stats.chisquare(list(counts.values())).pvalue > 1e-4

    def test_refusals(self):
        with pytest.raises(DataError, match="at least 2 clips, found 1"):
            shuffled_pairing(1, 0)
        with pytest.raises(UsageFault, match="seed"):
            shuffled_pairing(3, -1)
