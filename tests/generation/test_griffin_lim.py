"""Waveforms of mels: the mel comes back nearly, lengths are exact, bytes repeat, long ones have no holes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from omniges.features.audio import log_mel
from omniges.features.timebase import SAMPLE_RATE_HZ
from omniges.generation import vocoder
from omniges.generation.vocoder import GriffinLim, waveform_from_mel


def tones(seconds: float) -> npt.NDArray[np.float32]:
    """A sweep of a voice-like sound with harmonics."""
    times = np.arange(int(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    phase = 2 * np.pi * (150 * times + 20 * np.sin(2 * times))
    return (0.1 * sum(np.sin(k * phase) / k for k in range(1, 9))).astype(np.float32)


def test_the_mel_of_the_waveform_is_near_the_mel() -> None:
    mel = log_mel(tones(3.0), 300)
    wave = waveform_from_mel(mel, GriffinLim(1))
    assert len(wave) == 300 * 160
    loud = mel > mel.max() - 5
    assert np.abs(log_mel(wave, 300) - mel)[loud].mean() < 0.25


def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    mel = log_mel(tones(0.5), 50)
    first, again, other = (waveform_from_mel(mel, GriffinLim(seed)) for seed in (3, 3, 4))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_segments_fade_into_each_other_without_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocoder, "_SEGMENT_FRAMES", 100)
    mel = log_mel(tones(4.0), 400)
    wave = waveform_from_mel(mel, GriffinLim(0))
    level = np.sqrt(np.square(wave.reshape(-1, 1600).astype(np.float64)).mean(axis=1))
    assert level.min() > 0.5 * np.median(level)


def test_what_is_louder_than_full_scale_is_scaled_down() -> None:
    wave = waveform_from_mel(np.full((20, 64), 5.0, np.float32), GriffinLim(0))
    assert np.abs(wave).max() == pytest.approx(1.0)


@pytest.mark.parametrize("shape", [(3, 64), (10, 80), (64,)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="log-mel"):
        waveform_from_mel(np.zeros(shape, np.float32), GriffinLim(0))
