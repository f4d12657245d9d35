"""The mel equals librosa's on every bin; the logarithm is correctly rounded; blocks and lengths do not show."""

from __future__ import annotations

import decimal
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from omniges.features import audio, timebase
from omniges.storage.librosa_import import load_librosa


def librosa_log_mel(samples: np.ndarray) -> np.ndarray:
    """The reference: librosa in float64."""
    mel = load_librosa().feature.melspectrogram(
        y=samples.astype(np.float64), sr=16000, n_fft=1024, win_length=1024, hop_length=160, window="hann",
        center=True, pad_mode="reflect", power=1.0, n_mels=64, fmin=0.0, fmax=8000.0, htk=False, norm="slaney",
    )  # fmt: skip
    return np.log(np.maximum(mel, 1e-5)).T


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=samples) * 0.1).astype(np.float32)


class TestFilterbank:
    def test_equals_librosas(self) -> None:
        expected = load_librosa().filters.mel(sr=16000, n_fft=1024, n_mels=64, fmin=0.0, fmax=8000.0, dtype=np.float64)
        assert np.abs(audio.mel_filterbank() - expected).max() < 1e-12


class TestLogMel:
    @settings(max_examples=25, deadline=None)
    @given(st.integers(513, 3000) | st.integers(513, 60_000), st.integers(0, 10))
    def test_equals_librosa_for_any_length_edges_included(self, samples: int, seed: int) -> None:
        signal = noise(samples, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # librosa's, about audio shorter than a window
            expected = librosa_log_mel(signal)
        assert np.abs(audio.log_mel(signal, len(expected)) - expected).max() < 2e-4

    @pytest.mark.parametrize("level", [1.0, 1e-2, 1e-4])
    def test_pure_tones_over_silence_keep_every_bin(self, level: float) -> None:
        # 100 dB lie between the tone and the quiet bands: float32 alone is off by 3e-3 here.
        t = np.arange(48_000) / 16_000
        signal = (level * (0.5 * np.sin(2 * np.pi * 440.3 * t) + 0.3 * np.sin(2 * np.pi * 1234.5 * t))).astype(
            np.float32
        )
        expected = librosa_log_mel(signal)
        assert np.abs(audio.log_mel(signal, len(expected)) - expected).max() < 5e-4

    def test_silence_is_the_floor_exactly(self) -> None:
        assert set(np.unique(audio.log_mel(np.zeros(16_000, np.float32), 101))) == {
            np.float32(math.log(np.float32(1e-5)))
        }

    def test_fewer_frames_are_the_first_ones_to_the_last_bit(self) -> None:
        signal = noise(160 * 700)
        whole = audio.log_mel(signal, 701)
        for frames in (1, 159, 160, 161, 500):
            assert np.array_equal(audio.log_mel(signal, frames), whole[:frames])

    def test_a_click_lands_in_the_frame_centred_on_it(self) -> None:
        signal = np.zeros(160 * 100, np.float32)
        signal[160 * 37] = 1.0
        assert audio.log_mel(signal, 100).sum(axis=1).argmax() == 37

    @pytest.mark.parametrize(("samples", "frames"), [(512, 1), (0, 1), (16_000, 102)])
    def test_audio_too_short_is_refused(self, samples: int, frames: int) -> None:
        with pytest.raises(ValueError, match="mel frames need"):
            audio.log_mel(np.zeros(samples, np.float32), frames)

    def test_real_recordings_equal_librosa_to_a_thousandth(self, beat2_sample: Path) -> None:
        paths = sorted(beat2_sample.glob("*/wave16k/*.wav"))
        assert len(paths) == 5
        for path in paths:
            signal = soundfile.read(path, dtype="float32")[0]
            expected = librosa_log_mel(signal)
            assert np.abs(audio.log_mel(signal, len(expected)) - expected).max() < 1e-3, path.name


class TestLogarithm:
    @settings(max_examples=300)
    @given(st.floats(2**-17, 2**15, width=32))
    def test_is_the_float32_nearest_to_the_exact_one(self, value: float) -> None:
        got = audio.log_correctly_rounded(np.array([value], np.float32))[0]
        with decimal.localcontext(prec=50):
            exact = decimal.Decimal(float(np.float32(value))).ln()
            neighbours = [np.nextafter(got, np.float32(side)) for side in (-np.inf, np.inf)]
            error = abs(decimal.Decimal(float(got)) - exact)
            assert all(error <= abs(decimal.Decimal(float(n)) - exact) for n in neighbours)

    def test_a_float64_logarithm_near_a_rounding_boundary_is_settled_exactly(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Widen the margin of doubt until thousands of values take the exact path, and hold the two paths together.
        values = np.random.default_rng(0).uniform(1e-5, 50, 20_000).astype(np.float32)
        quick = audio.log_correctly_rounded(values)
        monkeypatch.setattr(audio, "_LOG_ULPS", 2**24)
        assert np.array_equal(audio.log_correctly_rounded(values), quick)


class TestChannelsAndRates:
    def test_channels_are_averaged(self) -> None:
        stereo = np.stack([noise(100, 1), noise(100, 2)], axis=1)
        assert np.allclose(audio.mix_down(stereo), stereo.mean(axis=1, dtype=np.float64), atol=1e-9)

    def test_mono_at_16_khz_passes_through_untouched(self) -> None:
        signal = noise(1000)
        assert audio.resample(audio.mix_down(signal), 16_000) is signal

    @pytest.mark.parametrize("blocks", [1, 7])
    @pytest.mark.parametrize(
        ("gains", "cancels"),
        [
            ((1.0, -1.0), True),
            ((1.0, -0.9), True),
            ((0.01, -0.01), True),
            ((1.0, -1.0, 1.0, -1.0), True),
            ((1.0, 1.0), False),
            ((1.0, 0.0), False),
            ((1.0, -0.3), False),
            ((0.0,) * 31 + (1.0,), False),
        ],
    )
    def test_channels_that_cancel_are_reported_and_others_are_not(
        self, gains: tuple[float, ...], cancels: bool, blocks: int
    ) -> None:
        noise = np.random.default_rng(0).normal(0, 0.1, (16_000, len(gains) + 1))
        samples = (noise[:, :1] * gains + 0.01 * np.max(np.abs(gains)) * noise[:, 1:] + 0.2).astype(np.float32)
        found = audio.Cancellation()
        for block in np.array_split(samples, blocks):
            found.add(block, audio.mix_down(block))
        assert (found.problem is not None) == cancels

    def test_unrelated_channels_and_mono_never_cancel(self) -> None:
        noise = np.random.default_rng(0).normal(0, 0.1, (16_000, 8)).astype(np.float32)
        found = audio.Cancellation()
        found.add(noise, audio.mix_down(noise))
        assert found.problem is None
        found = audio.Cancellation()
        found.add(noise[:, 0], noise[:, 0])
        assert found.problem is None

    @pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
    def test_a_tone_keeps_its_pitch_and_level_at_any_rate(self, rate: int) -> None:
        source = np.sin(2 * np.pi * 1000 * np.arange(2 * rate) / rate).astype(np.float32)
        expected = np.sin(2 * np.pi * 1000 * np.arange(32_000) / 16_000)
        got = audio.resample(source, rate)
        assert len(got) == 32_000
        assert np.abs(got[2000:-2000] - expected[2000:-2000]).max() < 1e-3

    def test_peak_loudness_brings_the_largest_sample_to_one_half(self) -> None:
        signal = noise(5000)
        assert np.abs(signal * audio.loudness_gain(signal, "peak")).max() == pytest.approx(0.5)
        assert audio.loudness_gain(signal, "none") == 1.0


class TestTimeBase:
    @given(st.integers(0, 10**7), st.integers(0, 10**9), st.integers(1000, 768_000))
    def test_the_common_length_fits_motion_and_audio_and_mel(self, motion: int, samples: int, rate: int) -> None:
        frames = timebase.common_frames(motion, samples, rate)
        assert frames <= motion
        assert frames * rate <= 30 * samples  # ends no later than the audio
        assert frames == motion or (frames + 1) * rate > 30 * samples  # and is the longest such
        mel = timebase.mel_frames_for(frames)
        assert 3 * mel <= 10 * frames < 3 * (mel + 1)
        assert timebase.ticks_of_frames(frames) * 10 <= mel

    def test_the_real_lengths(self) -> None:
        frames = timebase.common_frames(1906, 1_025_558, 16_000)
        assert (frames, timebase.mel_frames_for(frames), timebase.ticks_of_frames(frames)) == (1906, 6353, 635)


class TestMelStream:
    @settings(max_examples=30, deadline=None)
    @given(st.integers(513, 9000), st.integers(1, 4000))
    def test_any_pieces_give_the_mel_of_the_whole(self, samples: int, piece: int) -> None:
        wave = noise(samples)
        stream = audio.MelStream()
        parts = [stream.push(wave[k : k + piece]) for k in range(0, samples, piece)]
        found = np.concatenate([*parts, stream.finish()])
        np.testing.assert_allclose(found, audio.log_mel(wave, 1 + samples // 160), rtol=0, atol=1e-5)

    def test_it_holds_no_more_than_a_piece_and_a_window(self) -> None:
        stream = audio.MelStream()
        for _ in range(50):
            stream.push(noise(1600))
            assert len(stream._held) <= 1600 + 1024 + 160
