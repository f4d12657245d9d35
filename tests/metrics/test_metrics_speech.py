"""Speech distances equal scipy's transforms, Parseval's closed form and brute-force matching."""

import itertools
import math

import numpy as np
import pytest
import scipy.fft
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics_builders import clicks, untouched

from omniges.errors import DataError, UsageFault
from omniges.features.audio import log_mel
from omniges.metrics.speech import OnsetCounts, log_mel_l1, mel_cepstral_distortion, mel_onsets, onset_agreement

RNG = np.random.default_rng(0)
P, G = RNG.normal(-4, 2, (2, 50, 64)).astype(np.float32)


class TestDistances:
    def test_l1_by_hand(self):
        total = math.fsum(abs(float(p) - float(g)) for p, g in zip(P.flat, G.flat, strict=True))
        with untouched(P, G):
            found = log_mel_l1(P, G)
        assert (found.value, found.weight) == (pytest.approx(total / P.size, rel=1e-12), 50)
        assert log_mel_l1(G + np.float32(0.5), G).value == pytest.approx(0.5, rel=1e-6)

    def test_distortion_by_scipys_cosine_transform(self):
        c_p, c_g = (scipy.fft.dct(x.astype(np.float64), type=2, axis=1) / 64 for x in (P, G))
        distance = np.sqrt(((c_p - c_g)[:, 1:14] ** 2).sum(axis=1))
        with untouched(P, G):
            found = mel_cepstral_distortion(P, G)
        assert found.value == pytest.approx((10 * math.sqrt(2) / math.log(10) * distance).mean(), rel=1e-12)
        assert found.weight == 50

    def test_with_all_cepstra_it_is_the_level_difference_in_decibels(self):
        p, g = P[:, :14], G[:, :14]
        decibels = 20 / math.log(10) * (p.astype(np.float64) - g)
        decibels -= decibels.mean(axis=1, keepdims=True)
        expected = np.sqrt((decibels**2).mean(axis=1)).mean()
        assert mel_cepstral_distortion(p, g).value == pytest.approx(expected, rel=1e-12)

    def test_a_gain_is_no_distortion_and_order_of_sides_and_frames_does_not_matter(self):
        louder = G.astype(np.float64) + math.log(3)
        assert mel_cepstral_distortion(louder, G).value == pytest.approx(0, abs=1e-12)
        value, order = mel_cepstral_distortion(P, G).value, RNG.permutation(50)
        assert mel_cepstral_distortion(G, P).value == pytest.approx(value, rel=1e-12)
        assert mel_cepstral_distortion(P[order], G[order]).value == pytest.approx(value, rel=1e-12)
        assert log_mel_l1(G, P).value == pytest.approx(log_mel_l1(P, G).value, rel=1e-12)

    @pytest.mark.parametrize("metric", [log_mel_l1, mel_cepstral_distortion])
    def test_refusals(self, metric):
        with pytest.raises(UsageFault, match="expected equal shapes"):
            metric(P, G[:-1])
        with pytest.raises(DataError, match="found 0"):
            metric(P[:0], G[:0])
        with pytest.raises(DataError, match="-inf"):
            metric(P, np.where(G > -4, G, -np.inf))
        assert metric(P, P).value == 0

    def test_cepstra_that_do_not_exist(self):
        with pytest.raises(UsageFault, match="expected more than 13 bands, found 13"):
            mel_cepstral_distortion(P[:, :13], G[:, :13])


def most_pairs(found, expected, tolerance):
    """Brute force over all ways to give each of the fewer onsets a partner."""
    few, many = sorted((list(found), list(expected)), key=len)
    slots = list(range(len(many))) + [None] * len(few)
    best = 0
    for choice in set(itertools.permutations(slots, len(few))):
        fits = [k is None or abs(x - many[k]) <= tolerance for x, k in zip(few, choice, strict=True)]
        if all(fits):
            best = max(best, sum(k is not None for k in choice))
    return best


times = st.lists(st.integers(0, 30).map(lambda k: k / 64), max_size=4)


class TestOnsets:
    @given(times, times)
    @settings(deadline=None)
    def test_as_many_pairs_as_brute_force(self, found, expected):
        counts = onset_agreement(np.array(found), np.array(expected))
        assert counts == OnsetCounts(most_pairs(found, expected, 3 / 64), len(found), len(expected))

    def test_f_score(self):
        expected = np.array([1.0, 2.0, 3.0, 4.0])
        counts = onset_agreement(expected[[0, 1]] + 0.04, expected)
        assert counts.f_score == pytest.approx(2 * 2 / 6)  # precision 1, recall 1/2
        assert onset_agreement(expected + 0.06, expected).f_score == 0
        assert onset_agreement(expected[::-1].copy(), expected).f_score == 1
        assert onset_agreement(np.array([]), expected).f_score == 0

    def test_counts_add_up(self):
        total = OnsetCounts(1, 2, 3) + OnsetCounts(4, 5, 6)
        assert (total, total.f_score) == (OnsetCounts(5, 7, 9), pytest.approx(10 / 16))

    def test_silence_on_both_sides(self):
        with pytest.raises(DataError, match="no onsets on either side"):
            _ = onset_agreement(np.array([]), np.array([])).f_score

    def test_refusals(self):
        with pytest.raises(DataError, match="nan"):
            onset_agreement(np.array([np.nan]), np.array([1.0]))

    def test_clicks_are_found_in_the_mel(self):
        at = np.arange(0.5, 4.5, 0.5)
        mel = log_mel(clicks(5, at), 500)
        with untouched(mel):
            found = mel_onsets(mel)
        assert onset_agreement(found, at).matched == len(at)
        assert len(found) < 2 * len(at)

    def test_a_gain_moves_no_onset(self):
        mel = log_mel(clicks(5, np.arange(0.5, 4.5, 0.5)), 500)
        np.testing.assert_array_equal(mel_onsets(mel.astype(np.float64) + 2), mel_onsets(mel.astype(np.float64)))

    def test_silence_has_none_and_a_few_frames_are_refused(self):
        assert len(mel_onsets(np.full((100, 64), math.log(1e-5)))) == 0
        assert len(mel_onsets(np.full((4, 64), -3.0))) == 0
        with pytest.raises(DataError, match="expected 4 or more rows, found 3"):
            mel_onsets(np.full((3, 64), -3.0))

    def test_the_real_clip_agrees_with_itself_and_not_with_a_shifted_self(self, real_clip):
        mel = log_mel(real_clip.samples, 6353)
        onsets = mel_onsets(mel)
        assert 100 < len(onsets) < 800
        assert onset_agreement(onsets, onsets).f_score == 1
        assert onset_agreement(onsets + 0.049, onsets).f_score == 1
        assert onset_agreement(onsets + 1.37, onsets).f_score < 0.8
