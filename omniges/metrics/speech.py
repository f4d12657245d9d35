"""Distances of speech on log-mels: L1, mel-cepstral distortion, agreement of onsets.

Letters: F mel frames, B bands, K cepstra. Log-mels are natural logarithms of amplitudes, as in shards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from omniges.errors import DataError, UsageFault
from omniges.features.body import Numbers
from omniges.features.timebase import HOP_SAMPLES, SAMPLE_RATE_HZ
from omniges.formats.arrays import F64, checked
from omniges.metrics.clips import ClipValue, checked_pair
from omniges.storage.librosa_import import load_librosa

CEPSTRA: Final = 13
ONSET_TOLERANCE_S: Final = 0.05
_DB: Final = 10 * math.sqrt(2) / math.log(10)  # Kubichek (1993)
_MIN_FRAMES: Final = 4  # fewer have no peaks


@dataclass(frozen=True, slots=True)
class OnsetCounts:
    """Counts of matched, found and expected onsets, which add up over clips."""

    matched: int
    found: int
    expected: int

    @property
    def f_score(self) -> float:
        """F score: 2 · matched / (found + expected).

        Raises:
            DataError: Neither side has an onset.
        """
        if self.found + self.expected == 0:
            raise DataError("onset agreement: expected speech, found no onsets on either side")
        return 2 * self.matched / (self.found + self.expected)

    def __add__(self, other: OnsetCounts) -> OnsetCounts:
        return OnsetCounts(self.matched + other.matched, self.found + other.found, self.expected + other.expected)


def log_mel_l1(generated: Numbers, recorded: Numbers) -> ClipValue:
    """Return the mean absolute difference of two log-mels over frames and bands.

    Args:
        generated: Log-mel (F, B).
        recorded: Log-mel (F, B).

    Returns:
        The difference in nats, with weight F.

    Raises:
        UsageFault: The shapes are wrong or differ.
        DataError: There are no frames, or values that are NaN or infinite.
    """
    found, expected = _mels(generated, recorded)
    return ClipValue(float(np.abs(found - expected).mean()), float(len(found)))


def mel_cepstral_distortion(generated: Numbers, recorded: Numbers) -> ClipValue:
    """Return the mel-cepstral distortion of two log-mels without time warping (Kubichek 1993).

    The value is (10 √2 / ln 10) · mean over frames of √(Σ_k (c_k − c'_k)²), with k = 1..13 and
    c_k = (2/B) Σ_b L_b cos(π k (b + ½)/B).

    Args:
        generated: Log-mel (F, B) with at least 14 bands.
        recorded: Log-mel (F, B).

    Returns:
        The distortion in dB, with weight F.

    Raises:
        UsageFault: The shapes are wrong or differ, or there are fewer than 14 bands.
        DataError: There are no frames, or values that are NaN or infinite.
    """
    found, expected = _mels(generated, recorded)
    bands = found.shape[1]
    if not bands > CEPSTRA:
        raise UsageFault(f"mel-cepstral distortion: expected more than {CEPSTRA} bands, found {bands}")
    k, b = np.arange(1, CEPSTRA + 1)[:, None], np.arange(bands)
    basis = 2 / bands * np.cos(np.pi * k * (b + 0.5) / bands)
    difference = (found - expected) @ basis.T
    return ClipValue(float(_DB * np.linalg.norm(difference, axis=1).mean()), float(len(found)))


def _mels(generated: Numbers, recorded: Numbers) -> tuple[F64, F64]:
    found, expected = checked_pair(generated, recorded, "log-mels", (None, None))
    if found.shape[1] == 0:
        raise UsageFault("log-mels: expected (frames, bands), found no bands")
    return found, expected


def mel_onsets(mel: Numbers) -> F64:
    """Return the onset times (N,) in seconds of a log-mel (F, B) at hop 160.

    Onsets are librosa's peaks of the mean rise over bands. Silence has none.

    Args:
        mel: Log-mel (F, B) with at least 4 frames.

    Returns:
        Onset times (N,) in seconds.

    Raises:
        UsageFault: The shape is wrong.
        DataError: There are fewer than 4 frames, or values that are NaN or infinite.
    """
    levels = checked(mel, "log-mel", (None, None), at_least=_MIN_FRAMES)
    if levels.shape[1] == 0:
        raise UsageFault("log-mel: expected (frames, bands), found no bands")
    rise = np.concatenate([[0.0], np.maximum(np.diff(levels, axis=0), 0.0).mean(axis=1)])
    if rise.max() == 0:
        return np.empty(0)
    detect = load_librosa().onset.onset_detect
    times = detect(onset_envelope=rise, sr=SAMPLE_RATE_HZ, hop_length=HOP_SAMPLES, units="time")
    return np.asarray(times, dtype=np.float64)


def onset_agreement(found_s: Numbers, expected_s: Numbers) -> OnsetCounts:
    """Match onsets in pairs at most 0.05 s apart, and count the largest possible number of pairs.

    Args:
        found_s: Onset times (N,) in seconds, in any order.
        expected_s: Onset times (M,) in seconds, in any order.

    Returns:
        The number of pairs, with N and M.

    Raises:
        UsageFault: The shape is wrong.
        DataError: A time is NaN or infinite.
    """
    found = np.sort(checked(found_s, "onsets found", (None,), at_least=0))
    expected = np.sort(checked(expected_s, "expected onsets", (None,), at_least=0))
    i = j = matched = 0
    # On a line, pairing the earliest two that fit is never worse than any other pairing.
    while i < len(found) and j < len(expected):
        apart = found[i] - expected[j]
        if abs(apart) <= ONSET_TOLERANCE_S:
            matched, i, j = matched + 1, i + 1, j + 1
        elif apart < 0:
            i += 1
        else:
            j += 1
    return OnsetCounts(matched, len(found), len(expected))
