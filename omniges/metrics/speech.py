"""Distances of speech on log-mels: L1, mel-cepstral distortion, agreement of onsets.

Letters: F mel frames, B bands, K cepstra. Log-mels are natural logarithms of amplitudes, as shards hold them.
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
_LEAST_FRAMES: Final = 4  # fewer have no peaks


@dataclass(frozen=True, slots=True)
class OnsetCounts:
    """Onsets found, expected and in pairs. Counts of clips add up."""

    matched: int
    found: int
    expected: int

    @property
    def f_score(self) -> float:
        """2 · matched / (found + expected). Raises DataError where neither side has an onset."""
        if self.found + self.expected == 0:
            raise DataError("onset agreement: found no onsets on either side; expected speech")
        return 2 * self.matched / (self.found + self.expected)

    def __add__(self, other: OnsetCounts) -> OnsetCounts:
        return OnsetCounts(self.matched + other.matched, self.found + other.found, self.expected + other.expected)


def log_mel_l1(generated: Numbers, recorded: Numbers) -> ClipValue:
    """Mean absolute difference over frames and bands: log-mels (F, B) to nats, weight F.

    Raises UsageFault for unequal or other shapes, DataError for no or non-finite frames.
    """
    found, expected = _mels(generated, recorded)
    return ClipValue(float(np.abs(found - expected).mean()), float(len(found)))


def mel_cepstral_distortion(generated: Numbers, recorded: Numbers) -> ClipValue:
    """(10 √2 / ln 10) · mean over frames of √(Σ_k (c_k − c'_k)²), k = 1..13: log-mels (F, B) to dB, weight F.

    c_k = (2/B) Σ_b L_b cos(π k (b + ½)/B). Kubichek (1993), without time warping. Raises UsageFault for unequal or
    other shapes and for fewer than 14 bands, DataError for no or non-finite frames.
    """
    found, expected = _mels(generated, recorded)
    bands = found.shape[1]
    if not bands > CEPSTRA:
        raise UsageFault(f"mel-cepstral distortion: found {bands} bands; expected more than {CEPSTRA}")
    k, b = np.arange(1, CEPSTRA + 1)[:, None], np.arange(bands)
    basis = 2 / bands * np.cos(np.pi * k * (b + 0.5) / bands)
    difference = (found - expected) @ basis.T
    return ClipValue(float(_DB * np.linalg.norm(difference, axis=1).mean()), float(len(found)))


def _mels(generated: Numbers, recorded: Numbers) -> tuple[F64, F64]:
    found, expected = checked_pair(generated, recorded, "log-mels", (None, None))
    if found.shape[1] == 0:
        raise UsageFault("log-mels: found no bands; expected (frames, bands)")
    return found, expected


def mel_onsets(mel: Numbers) -> F64:
    """Onset times (N,) in seconds of a log-mel (F, B) at hop 160: librosa's peaks of the mean rise over bands.

    Silence has none. Raises UsageFault for another shape, DataError for fewer than 4 or non-finite frames.
    """
    levels = checked(mel, "log-mel", (None, None), at_least=_LEAST_FRAMES)
    if levels.shape[1] == 0:
        raise UsageFault("log-mel: found no bands; expected (frames, bands)")
    rise = np.concatenate([[0.0], np.maximum(np.diff(levels, axis=0), 0.0).mean(axis=1)])
    if rise.max() == 0:
        return np.empty(0)
    detect = load_librosa().onset.onset_detect
    times = detect(onset_envelope=rise, sr=SAMPLE_RATE_HZ, hop_length=HOP_SAMPLES, units="time")
    return np.asarray(times, dtype=np.float64)


def onset_agreement(found_s: Numbers, expected_s: Numbers) -> OnsetCounts:
    """The most pairs of onsets (N,), (M,) in seconds, in any order, that are at most 0.05 s apart.

    Raises UsageFault for another shape, DataError for non-finite times.
    """
    found = np.sort(checked(found_s, "onsets found", (None,), at_least=0))
    expected = np.sort(checked(expected_s, "onsets expected", (None,), at_least=0))
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
