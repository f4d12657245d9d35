"""Audio in blocks: what `preprocess` makes of the whole, for any format and rate, and a line for what is cut off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from omniges.errors import DataError
from omniges.features.audio import Loudness, log_mel, mix_down, resample
from omniges.generation import audio
from omniges.generation.audio import log_mel_of_samples, read_log_mel


def sound(rate_hz: int, seconds: float, channels: int) -> npt.NDArray[np.float32]:
    times = np.arange(int(seconds * rate_hz)) / rate_hz
    tones = [np.sin(2 * np.pi * (200 + 90 * k) * times) * 0.3 for k in range(channels)]
    noise = np.random.default_rng(0).normal(0, 0.02, (len(times), channels))
    found: npt.NDArray[np.float32] = (np.stack(tones, axis=1) + noise).astype(np.float32)
    return found


@pytest.mark.parametrize(
    ("name", "rate_hz", "channels"),
    [("a.wav", 16000, 1), ("b.flac", 48000, 2), ("c.ogg", 22050, 1), ("d.aiff", 44100, 3), ("e.mp3", 32000, 2)],
)
def test_any_file_is_read_as_the_whole_of_it_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, rate_hz: int, channels: int
) -> None:
    monkeypatch.setattr(audio, "_BLOCK_FRAMES", 4099)
    soundfile.write(tmp_path / name, sound(rate_hz, 2.03, channels), rate_hz)
    loaded = read_log_mel(tmp_path / name, tmp_path)
    samples, _ = soundfile.read(tmp_path / name, dtype="float32", always_2d=True)
    mono = resample(mix_down(samples), rate_hz)
    assert loaded.ticks == len(mono) // 1600
    expected = log_mel(mono, 10 * loaded.ticks)
    np.testing.assert_allclose(loaded.mel.rows(0, 10 * loaded.ticks), expected, rtol=0, atol=2e-4)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_samples_are_read_as_their_file_is(tmp_path: Path) -> None:
    samples = sound(22050, 1.5, 2)
    soundfile.write(tmp_path / "x.wav", samples, 22050, subtype="FLOAT")
    first, second = read_log_mel(tmp_path / "x.wav", None), log_mel_of_samples(samples, 22050, None)
    np.testing.assert_array_equal(first.mel.rows(0, 150), second.mel.rows(0, 150))
    assert first.warnings == second.warnings == ["2 channels averaged", "22050 Hz resampled to 16000 Hz"]


@pytest.mark.parametrize("name", ["a.wav", "b.flac", "c.aiff"])
@pytest.mark.parametrize("loudness", ["none", "peak"])
def test_channels_that_cancel_are_refused(tmp_path: Path, name: str, loudness: Loudness) -> None:
    one = sound(22050, 1.5, 1)
    soundfile.write(tmp_path / name, np.hstack([one, -0.97 * one]), 22050)
    with pytest.raises(DataError, match=r"wav-channels-cancel.*invert one channel") as caught:
        read_log_mel(tmp_path / name, None, loudness)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.wav", "b.aiff", "c.caf", "d.w64", "e.au", "f.rf64"])
def test_floats_in_the_unit_of_integers_are_refused(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / name, 32768 * sound(16000, 1.0, 1), 16000, subtype="FLOAT")
    with pytest.raises(DataError, match=r"wav-out-of-range.*divide the samples by their full scale"):
        read_log_mel(tmp_path / name, None)
    with pytest.raises(DataError, match="wav-out-of-range"):
        log_mel_of_samples(32768 * sound(16000, 1.0, 1), 16000, None)


@pytest.mark.parametrize("name", ["cut.mp3", "cut.flac", "cut.wav"])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, name: str) -> None:
    """libsndfile reads on without a word where an MP3 ends early."""
    path = tmp_path / name
    soundfile.write(path, sound(48000, 20.0, 2), 48000)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(DataError, match=str(path)) as caught:
        read_log_mel(path, None)
    assert "\n" not in str(caught.value)


def test_an_ogg_that_is_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    """libsndfile takes for its length what is there."""
    path = tmp_path / "x.ogg"
    soundfile.write(path, sound(16000, 2.0, 1), 16000)
    whole = path.read_bytes()
    read_log_mel(path, None)
    path.write_bytes(whole + b"a tag that some tool left")
    read_log_mel(path, None)
    for length in (len(whole) - 1, len(whole) - 40, *np.linspace(4, len(whole) - 2, 20).astype(int)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="the file is cut off") as caught:
            read_log_mel(path, None)
        assert "\n" not in str(caught.value)


def test_what_a_low_rate_cannot_hold_is_said() -> None:
    assert log_mel_of_samples(sound(8000, 1.0, 1), 8000, None).warnings == [
        "8000 Hz resampled to 16000 Hz, with nothing above 4000 Hz"
    ]


@pytest.mark.parametrize("samples", [np.zeros(16000, np.float32), np.full(16000, np.nan, np.float32)])
def test_silence_and_what_is_no_number_are_refused(samples: npt.NDArray[np.float32]) -> None:
    with pytest.raises(DataError, match=r"expected sound|expected finite samples"):
        log_mel_of_samples(samples, 16000, None)


@pytest.mark.parametrize(("rate_hz", "channels"), [(1, 1), (999, 1), (768_001, 1), (16000, 33)])
def test_a_rate_that_no_recording_has_is_refused_before_it_is_resampled(
    tmp_path: Path, rate_hz: int, channels: int
) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, (60_000, channels)).astype(np.float32)
    with pytest.raises(DataError, match="samples per second in 1 to 32 channels"):
        log_mel_of_samples(samples, rate_hz, tmp_path)
    if channels == 1 and rate_hz < 999:
        soundfile.write(tmp_path / "a.flac", samples, rate_hz)
        with pytest.raises(DataError, match="samples per second in 1 to 32 channels"):
            read_log_mel(tmp_path / "a.flac", tmp_path)


def test_more_than_a_day_of_audio_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header is enough if it states the length; otherwise the error comes once so much was read."""
    monkeypatch.setattr(audio, "LONGEST_S", 1.0)
    monkeypatch.setattr(audio, "_BLOCK_FRAMES", 4099)
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / name, sound(16000, 1.1, 1), 16000)
        with pytest.raises(DataError, match="h of audio, found more"):
            read_log_mel(tmp_path / name, tmp_path)
        soundfile.write(tmp_path / name, sound(16000, 1.0, 1), 16000)
        assert read_log_mel(tmp_path / name, tmp_path).ticks == 10


@pytest.mark.parametrize("name", ["a.raw", "a.RAW", "a", "a.vox", "a.mp3"])
def test_a_file_is_what_it_holds_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / "a.flac", sound(16000, 1.0, 1), 16000)
    (tmp_path / "a.flac").rename(tmp_path / name)
    assert read_log_mel(tmp_path / name, tmp_path).ticks == 10
    (tmp_path / name).write_bytes(b"no audio" * 99)
    with pytest.raises(DataError, match="expected audio that libsndfile can read"):
        read_log_mel(tmp_path / name, tmp_path)
