"""A person's files as conditions: audio, TextGrid, plain text, SMPL-X motion, or samples of a shard folder.

What is read is treated as `preprocess` treats it: the same readers, the same features, the same refusals.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError, EnvironmentFault, RecordingFault, UsageFault
from omniges.features.audio import N_FFT, Loudness, log_mel, loudness_gain, mix_down, resample
from omniges.features.gesture import gesture_from_motion
from omniges.features.timebase import (
    FRAMES_PER_TICK,
    MEL_FRAMES_PER_TICK,
    SAMPLE_RATE_HZ,
    SAMPLES_PER_TICK,
    TICKS_PER_SECOND,
)
from omniges.publish import os_errors
from omniges.recordings.npz import Motion, decode_motion
from omniges.recordings.textgrid import decode_words
from omniges.recordings.wav import decode_wav
from omniges.shards.reader import SampleArrays
from omniges.shards.schema import sha256_hex
from omniges.trainer.generate.timing import SpeakingRate, timed_words
from omniges.trainer.slots import SlotCodec
from omniges.trainer.streams import StreamName

__all__ = ["STANDARD_INPUT", "Body", "Given", "given_sample", "read_audio", "read_gesture", "read_text"]

STANDARD_INPUT: Final = "-"

_MAX_BYTES: Final = 4 << 30
_OTHER_DECODER: Final = frozenset({"wav-unsupported-encoding", "wav-not-riff"})  # libsndfile may know it
_TAIL_S: Final = 0.3  # after the last word of plain text


@dataclass(frozen=True, slots=True)
class Body:
    """Whose motion it is."""

    betas: npt.NDArray[np.floating]
    gender: str
    model: str
    start_xz: npt.NDArray[np.float64]  # (2,) metres

    @classmethod
    def of(cls, motion: Motion) -> Body:
        """That of a motion file."""
        return cls(motion.betas, motion.gender, motion.model, np.asarray(motion.trans[0, [0, 2]], dtype=np.float64))

    @classmethod
    def of_sample(cls, sample: SampleArrays) -> Body:
        """That of a sample of a shard folder."""
        facts = sample.metadata["motion"]
        betas = np.asarray(sample.betas[: facts["betas"]])
        return cls(betas, facts["gender"], facts["model"], sample.gesture.start_xz)


@dataclass(frozen=True, slots=True)
class Given:
    """One stream of one input, cut to whole ticks."""

    stream: StreamName
    name: str  # what results are called by
    ticks: int
    array: npt.NDArray[Any]  # gesture (3 ticks, 415), audio (10 ticks, 64), text slots (ticks,)
    path: str
    sha256: str
    remarks: tuple[str, ...] = ()
    words: Sequence[Mapping[str, Any]] = field(default=())  # of text
    body: Body | None = None  # of gesture
    latents: npt.NDArray[np.float32] | None = None  # of the model's codec, where shards hold them; of the whole clip

    def cut(self, ticks: int) -> Given:
        """The first ticks of it."""
        if ticks == self.ticks:
            return self
        words = [word for word in self.words if word["start"] * TICKS_PER_SECOND < ticks]
        return Given(
            self.stream,
            self.name,
            ticks,
            self.array[: len(self.array) * ticks // self.ticks],
            self.path,
            self.sha256,
            self.remarks,
            words,
            self.body,
            self.latents,
        )


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise UsageFault(f"{path}: a file expected, found {'a folder' if path.is_dir() else 'nothing there'}")
    with os_errors(path, "read"):
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path}: at most {_MAX_BYTES >> 30} GiB expected, found {path.stat().st_size} bytes")
        return path.read_bytes()


def read_audio(path: Path, loudness: Loudness = "none") -> Given:
    """Audio of any rate and number of channels, in any format that libsndfile reads, scaled by a rule of loudness.

    Raises UsageFault where there is no such file, DataError for what is damaged, silent or shorter than a tick.
    """
    data = _content(path)
    samples, rate_hz, remarks = _decoded(path, data)
    if not len(samples):
        raise DataError(f"{path}: samples expected, found none: check the recording")
    if not np.isfinite(samples).all():
        raise DataError(f"{path}: finite samples expected, found others: check the recording")
    if not (samples != samples.reshape(-1)[0]).any():
        raise DataError(f"{path}: sound expected, found {len(samples)} samples of one value: check the recording")
    if samples.ndim == 2 and samples.shape[1] > 1:
        remarks.append(f"{samples.shape[1]} channels averaged")
    if rate_hz != SAMPLE_RATE_HZ:
        remarks.append(f"{rate_hz} Hz resampled to {SAMPLE_RATE_HZ} Hz")
    mono = resample(mix_down(samples), rate_hz)
    ticks = len(mono) // SAMPLES_PER_TICK
    if ticks < 1 or len(mono) <= N_FFT // 2:
        raise DataError(f"{path}: at least 0.1 s of audio expected, found {len(mono) / SAMPLE_RATE_HZ:.3f} s")
    gain = loudness_gain(mono, loudness)
    if gain != 1.0:
        remarks.append(f"scaled by {gain:.3g} to loudness {loudness}, as what the model learned from")
        mono = mono * np.float32(gain)
    mel = log_mel(mono, ticks * MEL_FRAMES_PER_TICK)
    return Given("audio", path.stem, ticks, mel, str(path), sha256_hex(data), tuple(remarks))


def _decoded(path: Path, data: bytes) -> tuple[npt.NDArray[np.floating], int, list[str]]:
    """Samples (N,) or (N, channels), the rate, and remarks."""
    if data[:4] == b"RIFF" or path.suffix.lower() == ".wav":
        try:
            wav = decode_wav(data)
        except RecordingFault as fault:
            if fault.problem.code not in _OTHER_DECODER:
                raise DataError(f"{path}: {fault}") from fault
        else:
            notes = [f"{note.code}: {note.found}" for note in wav.notes]
            return np.asarray(wav.samples), wav.rate_hz, notes
    try:
        import soundfile  # noqa: PLC0415 - libsndfile, only where audio is given
    except ModuleNotFoundError as error:
        raise EnvironmentFault(f"{path}: the package soundfile is not installed: pip install soundfile") from error
    try:
        found, rate_hz = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise DataError(f"{path}: audio that libsndfile reads expected, found none ({error.error_string})") from error
    return found, int(rate_hz), []


def read_text(source: str, codec: SlotCodec, rate: SpeakingRate | None, seconds: float | None = None) -> Given:
    """Words of a TextGrid, or of a plain text (``-``: standard input) with times estimated by a speaking rate.

    Raises UsageFault for a plain text without a rate, DataError for what is damaged or has no words.
    """
    if source == STANDARD_INPUT:
        data, path, name = sys.stdin.buffer.read(), "standard input", "text"
    else:
        place = Path(source)
        data, path, name = _content(place), source, place.stem
    if Path(source).suffix.lower() == ".textgrid":
        words, length_s, remarks = _textgrid(path, data)
    else:
        words, remarks = _plain(path, data, rate)
        length_s = words[-1]["end"] + _TAIL_S
    ticks = int(TICKS_PER_SECOND * (length_s if seconds is None else seconds) + 1e-6)
    if ticks < 1:
        raise DataError(f"{path}: at least 0.1 s expected, found {length_s:.3f} s")
    inside = [word for word in words if word["start"] * TICKS_PER_SECOND < ticks]
    if len(inside) < len(words):
        remarks.append(f"{len(words) - len(inside)} words beyond {ticks / TICKS_PER_SECOND:.1f} s left out")
    slots = codec.encode(inside, ticks)
    if slots.overflow:
        lost = ", ".join(str(word["word"]) for word in slots.overflow[:3])
        remarks.append(f"{len(slots.overflow)} words too short for their pieces left out: {lost}")
    return Given("text", name, ticks, slots.ids, path, sha256_hex(data), tuple(remarks), inside)


def _textgrid(path: str, data: bytes) -> tuple[list[dict[str, Any]], float, list[str]]:
    try:
        tier = decode_words(data)
    except RecordingFault as fault:
        raise DataError(f"{path}: {fault}") from fault
    if not tier.words:
        raise DataError(f"{path}: words expected, found none")
    words = [{"word": word.word, "start": word.start, "end": word.end} for word in tier.words]
    return words, tier.xmax_s, [f"{note.code}: {note.found}" for note in tier.notes]


def _plain(path: str, data: bytes, rate: SpeakingRate | None) -> tuple[list[dict[str, Any]], list[str]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: text in UTF-8 expected, found other bytes at {error.start}") from error
    if rate is None:
        raise UsageFault(
            f"{path}: plain text has no times: give --shards DIR, from whose words the speaking rate is learned, or a "
            "TextGrid"
        )
    try:
        words = timed_words(text, rate)
    except UsageFault as fault:
        raise DataError(f"{path}: {fault}") from fault
    return words, [f"times estimated by a speaking rate learned from {rate.words} words"]


def read_gesture(path: Path) -> Given:
    """SMPL-X motion in BEAT2's form. Raises UsageFault where there is no such file, DataError for what is damaged."""
    data = _content(path)
    try:
        motion = decode_motion(data)
    except RecordingFault as fault:
        raise DataError(f"{path}: {fault}") from fault
    ticks = len(motion.poses) // FRAMES_PER_TICK
    if ticks < 1:
        raise DataError(f"{path}: at least 0.1 s of motion expected, found {len(motion.poses)} frames")
    clip = gesture_from_motion(motion.poses, motion.expressions, motion.trans)
    remarks = tuple(f"{note.code}: {note.found}" for note in motion.notes)
    return Given(
        "gesture",
        path.stem,
        ticks,
        clip.gesture[: ticks * FRAMES_PER_TICK],
        str(path),
        sha256_hex(data),
        remarks,
        body=Body.of(motion),
    )


def given_sample(
    sample: SampleArrays, stream: StreamName, codec: SlotCodec, shards: Path, latents_of: str | None = None
) -> Given:
    """One stream of a sample of a shard folder, with the latents of a codec where it has them."""
    row = sample.row
    remarks: tuple[str, ...] = ()
    array: npt.NDArray[Any]
    if stream == "text":
        slots = codec.encode(sample.words, row.ticks)
        array = slots.ids
        if slots.overflow:
            remarks = (f"{len(slots.overflow)} words too short for their pieces left out",)
    elif stream == "gesture":
        array = sample.gesture.gesture[: row.ticks * FRAMES_PER_TICK]
    else:
        array = sample.mel[: row.ticks * MEL_FRAMES_PER_TICK]
    member = {"text": "words.json", "gesture": "gesture.npy", "audio": "mel.npy"}[stream]
    return Given(
        stream,
        row.key,
        row.ticks,
        array,
        f"{shards / row.shard}#{row.key}.{member}",
        row.members[member].sha256,
        remarks,
        sample.words if stream == "text" else (),
        latents=None if latents_of is None else sample.latents[latents_of],
    )
