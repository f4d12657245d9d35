"""Read inputs as conditions: audio, TextGrid, plain text, SMPL-X motion, or samples of a shard folder.

Inputs are read and checked by the same functions as in `preprocess`. Files of several streams are paired by name. The
input of an unconditional task consists only of a length.
"""

from __future__ import annotations

import reprlib
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from omniges.conditions.base import STREAM_OF, Content, Recording, constant, labels_of
from omniges.errors import DataError, RecordingFault, UsageFault
from omniges.features.audio import Loudness
from omniges.features.gesture import LAYOUT, gesture_from_motion, stream_channels
from omniges.features.text_tokens import TextTokenCodec
from omniges.features.timebase import (
    FRAMES_PER_TICK,
    LONGEST_S,
    MAX_AUDIO_LONGER_S,
    MAX_MOTION_LONGER_S,
    MEL_FRAMES_PER_TICK,
    TICKS_PER_SECOND,
    lengths_fit,
)
from omniges.formats.npz import Motion, decode_motion
from omniges.formats.textgrid import decode_words, is_textgrid
from omniges.generation.audio import ROWS_PER_TICK, Held, LoadedAudio, Spool, read_log_mel
from omniges.generation.settings import Sources
from omniges.generation.word_timing import estimate_warnings, learn_rate, timed_words
from omniges.model.speaking_rate import SpeakingRate
from omniges.model.streams import STREAMS, StreamName
from omniges.shards.latents import CodecEntry, FrameEntry
from omniges.shards.manifest import ManifestRow
from omniges.shards.present import ALL_PRESENT, STREAM_BITS, absent_parts, at_rest, bits_of, present_bits, unused_bits
from omniges.shards.reader import SampleArrays, ShardFolder, file_betas
from omniges.shards.schema import MANIFEST_FILE, MOTION_PARTS
from omniges.storage.atomic import os_errors
from omniges.storage.files import file_sha256, read_file, require_file, sha256_hex, text_codec

STANDARD_INPUT: Final = "-"

_MAX_BYTES: Final = 4 << 30
_BLOCK_FRAMES: Final = 4096
_SPOKEN_TO_END_S: Final = 5.0
"""A TextGrid gives a warning if it ends more than this number of seconds before the other streams."""

_TAIL_S: Final = 0.3
"""Seconds that are added after the last word of a text, if nothing else defines the length."""

_BINARY: Final = (
    (b"%PDF-", "a PDF"),
    (b"PK\x03\x04", "a document of Word or LibreOffice, or another zip"),
    (b"\xd0\xcf\x11\xe0", "a document of an older Word"),
    (b"\x1f\x8b", "a gzip file"),
    (b"RIFF", "audio"),
    (b"ID3", "audio"),
    (b"fLaC", "audio"),
    (b"OggS", "audio"),
    (b"\0\0\0", "a video"),
    (b"\x93NUMPY", "an array"),
)
"""First bytes and names of binary formats that users may give as a text by mistake."""

_UNCONDITIONAL: Final = "unconditional"


@dataclass(frozen=True, slots=True)
class Body:
    """The body of a motion: shape, gender, body model and start position."""

    betas: npt.NDArray[np.floating]  # shape parameters of SMPL-X
    gender: str
    model: str  # body model, such as smplx2020
    start_xz: npt.NDArray[np.float64]  # (2,) metres

    @classmethod
    def of(cls, motion: Motion) -> Body:
        """Return the body of a motion file."""
        start_xz = np.nan_to_num(np.asarray(motion.trans[0, [0, 2]], dtype=np.float64))  # NaN: the file has no root
        return cls(motion.betas, motion.gender, motion.model, start_xz)

    @classmethod
    def of_sample(cls, sample: SampleArrays) -> Body:
        """Return the body of a sample of a shard folder, or `NEUTRAL` if the sample has no motion."""
        if not present_bits(sample.row.present) & STREAM_BITS["gesture"]:
            return NEUTRAL
        facts = sample.metadata["motion"]
        return cls(
            file_betas(sample), facts["gender"], facts["model"], at_rest(sample.gesture, sample.row.present).start_xz
        )


NEUTRAL: Final = Body(np.zeros(300, np.float32), "neutral", "smplx2020", np.zeros(2))
"""The average body at the origin, used if the inputs have no body."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One stream of one input, cut to complete ticks."""

    stream: StreamName
    name: str  # name of the results
    ticks: int
    series: Held | Spool | None  # gesture (3 ticks, 415 or 424), audio (10 ticks, 64), text (ticks,); None: only words
    path: str
    sha256: str
    warnings: tuple[str, ...] = ()
    words: Sequence[Mapping[str, Any]] = field(default=())  # of a text stream
    body: Body | None = None  # of a gesture stream
    absent: frozenset[str] = frozenset()  # parts that a motion file lacks; they do not move
    latents: npt.NDArray[np.float32] | None = None
    """Latents of the complete clip, if the shards contain latents of the model's codec."""

    def cut(self, ticks: int) -> Condition:
        """Return the condition cut to its first `ticks` ticks; a shorter condition is returned unchanged."""
        if ticks >= self.ticks:
            return self
        words = [word for word in self.words if word["start"] * TICKS_PER_SECOND < ticks]
        return replace(self, ticks=ticks, words=words)

    def array(self, start: int, count: int) -> npt.NDArray[Any]:
        """Return the rows of a range of ticks.

        Args:
            start: First tick.
            count: Number of ticks.

        Returns:
            The rows of these ticks; ticks after the end of the stream are left out.

        Raises:
            ValueError: The stream has only words, because the model's text is stored as latents.
        """
        if self.series is None:
            raise ValueError(f"{self.name}: {self.stream} without an array")
        rows = ROWS_PER_TICK[self.stream]
        return self.series.rows(start * rows, min(start + count, self.ticks) * rows)


def _content(path: Path) -> bytes:
    require_file(path, "a file")
    return read_file(path, _MAX_BYTES)


def read_audio(path: Path, folder: Path | None = None, loudness: Loudness = "none") -> Condition:
    """Read audio in any format that libsndfile reads, of any sample rate and number of channels.

    Args:
        path: The audio file.
        folder: Folder for the temporary file with the mel; None: the system's folder for temporary files.
        loudness: Loudness rule, "none" or "peak", by which the audio is scaled.

    Returns:
        The audio stream of an input (log-mel). Its name is the stem of the file.

    Raises:
        UsageFault: The file does not exist.
        DataError: The audio is damaged, silent, too long, or shorter than a tick.
    """
    require_file(path, "a file")
    loaded = read_log_mel(path, folder, loudness)
    with os_errors(path, "read"):
        digest = file_sha256(path)
    return audio_condition(loaded, path.stem, str(path), digest)


def audio_condition(loaded: LoadedAudio, name: str, path: str, digest: str) -> Condition:
    """Create the audio stream of an input from loaded audio.

    Args:
        loaded: The log-mel of the audio.
        name: Name of the input; the names of its results begin with it.
        path: Path of the file, for records.
        digest: The sha256 of the file.

    Returns:
        The audio stream of an input (log-mel).
    """
    return Condition("audio", name, loaded.ticks, loaded.mel, path, digest, tuple(loaded.warnings))


def read_text(
    source: str,
    codec: TextTokenCodec | None,
    rate: SpeakingRate | None,
    seconds: float | None = None,
    max_s: float | None = None,
) -> Condition:
    """Read words from a TextGrid, or from plain text with times estimated by a speaking rate.

    Args:
        source: Path of the file; ``-``: standard input.
        codec: Tokenizer of text tokens; None: the model's text is stored as latents, which need only words.
        rate: Speaking rate for plain text.
        seconds: Length of the input's other streams in seconds. None: there is no other stream; the text defines the
            length.
        max_s: Length in seconds to which a TextGrid longer than `LONGEST_S` (24 hours) is cut; None: refuse such a
            file.

    Returns:
        The text stream of an input: words with times and, if `codec` is given, text tokens.

    Raises:
        UsageFault: The file does not exist, or plain text is given without a rate.
        DataError: The file is damaged or has no words.
    """
    if source == STANDARD_INPUT:
        data, path, name = sys.stdin.buffer.read(), "standard input", "text"
    else:
        place = Path(source)
        through = "pass words through --text -"
        require_file(place, "a file", "--text", through, missing=f"check the path, or {through}")
        data, path, name = _content(place), source, place.stem
    if Path(source).suffix.lower() == ".textgrid" or is_textgrid(data):
        words, length_s, warnings = _textgrid(path, data, seconds)
    else:
        words, length_s, warnings = _plain(path, data, rate)
    if seconds is not None and length_s is not None:
        warnings += _compare_lengths(path, words, length_s, seconds)
    if length_s is not None and length_s > LONGEST_S and max_s is not None:
        warnings.append(f"cut to {max_s:g} s of {length_s:g} s")
        length_s = max_s
    return words_condition(
        words, codec, length_s if seconds is None else seconds, name, (path, sha256_hex(data)), warnings
    )


def _compare_lengths(path: str, words: Sequence[Mapping[str, Any]], length_s: float, seconds: float) -> list[str]:
    """Compare the length of a TextGrid, `length_s`, with the length of the other streams, `seconds`.

    Refuse the TextGrid if its last word ends far after the other streams. Return a warning if it ends long before them.
    """
    last_s = float(words[-1]["end"])
    if last_s > seconds + MAX_AUDIO_LONGER_S:
        raise DataError(
            f"{path}: expected words up to {seconds:.1f} s, the length of the other input, found some up to "
            f"{last_s:.1f} s; give the TextGrid that belongs to that input"
        )
    if length_s < seconds - _SPOKEN_TO_END_S:
        return [f"it ends at {length_s:.1f} s of {seconds:.1f} s: there are no words after it"]
    return []


def words_condition(
    words: Sequence[Mapping[str, Any]],
    codec: TextTokenCodec | None,
    length_s: float | None,
    name: str,
    origin: tuple[str, str],
    warnings: Sequence[str] = (),
) -> Condition:
    """Create the text stream of an input from words with times.

    Args:
        words: Words (``word``, ``start``, ``end`` in seconds), in order of time.
        codec: Tokenizer of text tokens; None: the model's text is stored as latents.
        length_s: Length in seconds; None: the stream ends 0.3 s after the last word.
        name: Name of the input; the names of its results begin with it.
        origin: Path and sha256 of the file, for records.
        warnings: Warnings about the file; they become warnings of the stream.

    Returns:
        The text stream of an input: the words and, if `codec` is given, their text tokens.

    Raises:
        DataError: The length is below a tick or above `LONGEST_S` (24 hours), no word starts within the length, or all
            words are dropped because they have more subwords than ticks.
    """
    path, digest = origin
    length_s = float(words[-1]["end"]) + _TAIL_S if length_s is None else length_s
    ticks = int(TICKS_PER_SECOND * length_s + 1e-6)
    if ticks < 1:
        raise DataError(f"{path}: expected at least 0.1 s, found {length_s:.3f} s; check the file")
    if length_s > LONGEST_S:
        raise DataError(
            f"{path}: expected at most {LONGEST_S / 3600:g} h, found {length_s:g} s; correct the times, or cut the "
            "length with --seconds"
        )
    inside = [word for word in words if word["start"] * TICKS_PER_SECOND < ticks]
    if not inside:
        raise DataError(
            f"{path}: expected words in the first {ticks / TICKS_PER_SECOND:.1f} s, found none; check the times in "
            "the file"
        )
    found = list(warnings)
    if len(inside) < len(words):
        found.append(f"{len(words) - len(inside)} words beyond {ticks / TICKS_PER_SECOND:.1f} s left out")
    series = None
    if codec is not None:
        encoded = codec.encode(inside, ticks)
        series = Held(encoded.ids)
        if encoded.dropped:
            lost = ", ".join(reprlib.repr(str(word["word"])) for word in encoded.dropped[:3])
            if len(encoded.dropped) == len(inside):
                raise DataError(
                    f"{path}: expected words with at most one subword a tick, found {len(inside)} with more ({lost}); "
                    "correct their times"
                )
            found.append(f"{len(encoded.dropped)} words left out, which have more subwords than ticks: {lost}")
    return Condition("text", name, ticks, series, path, digest, tuple(found), inside)


def _textgrid(path: str, data: bytes, seconds: float | None) -> tuple[list[dict[str, Any]], float | None, list[str]]:
    """Parse a TextGrid; return its words, its length in seconds (unlike in `_plain`, never None) and warnings.

    `seconds` is the length of the input's other streams; None: there are none. A TextGrid that does not fit this length
    is refused.
    """
    try:
        tier = decode_words(data)
        if seconds is not None:
            tier.require_fit(seconds)
    except RecordingFault as fault:
        raise fault.refusal(path) from fault
    if not tier.words:
        raise DataError(f"{path}: expected words, found none; give a file with words")
    words = [{"word": word.word, "start": word.start, "end": word.end} for word in tier.words]
    return words, tier.xmax_s, [f"{note.code}: {note.found}" for note in tier.notes]


def _binary_format(data: bytes) -> str | None:
    return next((kind for start, kind in _BINARY if data.startswith(start)), None)


def _not_words(path: str, kind: str) -> DataError:
    return DataError(f"{path}: expected plain words, found {kind}; give a TextGrid, or the words alone")


def _plain(path: str, data: bytes, rate: SpeakingRate | None) -> tuple[list[dict[str, Any]], float | None, list[str]]:
    """Parse plain text; return its words with estimated times, None (plain text states no length), and warnings."""
    codec = text_codec(data)
    if b"\0" in data[:16] and (kind := _binary_format(data)):
        raise _not_words(path, kind)
    try:
        text = data.decode(codec)
    except UnicodeDecodeError as error:
        if kind := _binary_format(data):
            raise _not_words(path, kind) from error
        expected = codec.removesuffix("-sig").upper()
        raise DataError(
            f"{path}: expected text in {expected}, found other bytes at byte {error.start}; save the file as UTF-8"
        ) from error
    if rate is None:
        raise UsageFault(
            f"{path}: expected words with times, found plain text, for which this checkpoint has no speaking rate; "
            "give --shards DIR to learn a rate from its words, or give a TextGrid"
        )
    try:
        words = timed_words(text, rate)
    except UsageFault as fault:
        raise DataError(f"{path}: {fault}") from fault
    return words, None, estimate_warnings(text, rate)


def read_gesture(
    path: Path, folder: Path | None = None, rate_hz: float | None = None, channels: int = LAYOUT.channels
) -> Condition:
    """Read SMPL-X motion from an NPZ file in the format of BEAT2.

    Args:
        path: NPZ file with SMPL-X motion.
        folder: Folder for the temporary file with the channels; None: the system's folder for temporary files.
        rate_hz: Frames per second of a file that does not state its frame rate.
        channels: Channels of the model's gesture stream, 415 or 424.

    Returns:
        The gesture stream of an input, with the channels and the body of the motion.

    Raises:
        UsageFault: The file does not exist.
        DataError: The file is damaged or shorter than a tick.
    """
    motion, digest = _motion(path, rate_hz)
    absent = motion.absent
    ticks = len(motion.poses) // FRAMES_PER_TICK
    if ticks < 1:
        raise DataError(f"{path}: expected at least 0.1 s of motion, found {len(motion.poses)} frames; check the file")
    series = Spool(folder, (channels,))
    for start in range(0, len(motion.poses), _BLOCK_FRAMES):
        first = max(0, start - 1)  # one frame earlier, because root channels are differences
        part = slice(first, start + _BLOCK_FRAMES)
        clip = gesture_from_motion(motion.poses[part], motion.expressions[part], motion.trans[part])
        complete = at_rest(clip, frozenset(MOTION_PARTS) - absent)
        series.append(stream_channels(complete, channels)[start - first :])
    warnings = tuple(f"{note.code}: {note.found}" for note in motion.notes)
    body = Body.of(motion)
    return Condition("gesture", path.stem, ticks, series, str(path), digest, warnings, body=body, absent=absent)


def read_body(path: Path, rate_hz: float | None = None) -> Body:
    """Read the body of a motion file.

    Args:
        path: NPZ file with SMPL-X motion.
        rate_hz: Frames per second of a file that does not state its frame rate.

    Returns:
        Shape, gender, body model and start position.

    Raises:
        UsageFault: The file does not exist.
        DataError: The file is damaged.
    """
    motion, _ = _motion(path, rate_hz)
    return Body.of(motion)


def _motion(path: Path, rate_hz: float | None) -> tuple[Motion, str]:
    """Return the motion of a file, and the file's sha256."""
    data = _content(path)
    try:
        return decode_motion(data, rate_hz=rate_hz), sha256_hex(data)
    except RecordingFault as fault:
        raise fault.refusal(path) from fault


def sample_condition(
    sample: SampleArrays, stream: StreamName, reading: Reading, shards: Path, latents_of: str | None = None
) -> Condition:
    """Create one stream of an input from a sample of a shard folder.

    Args:
        sample: Sample to read the stream from.
        stream: Name of the stream to create: text, audio or gesture.
        reading: Settings for reading inputs for the model, such as tokenizer and loudness rule.
        shards: Path of the shard folder, for records.
        latents_of: Name of a codec. The stream then also contains the latents of this codec. None: no latents.

    Returns:
        The stream, cut to complete ticks. Its name is the key of the sample.
    """
    row = sample.row
    warnings: tuple[str, ...] = ()
    array: npt.NDArray[Any] | None = None
    if stream == "gesture":
        complete = at_rest(sample.gesture, row.present)
        array = stream_channels(complete, reading.gesture_channels)[: row.ticks * FRAMES_PER_TICK]
    elif stream == "audio":
        array = sample.mel[: row.ticks * MEL_FRAMES_PER_TICK]
    elif reading.token_codec is not None:
        encoded = reading.token_codec.encode(sample.words, row.ticks)
        array = encoded.ids
        if encoded.dropped:
            warnings = (f"{len(encoded.dropped)} words left out, which have more subwords than ticks",)
    member = {"text": row.contract.words, "gesture": "gesture.npy", "audio": "mel.npy"}[stream]
    return Condition(
        stream,
        row.key,
        row.ticks,
        None if array is None else Held(array),
        f"{shards / row.shard}#{row.key}.{member}",
        row.members[member].sha256,
        warnings,
        sample.words if stream == "text" else (),
        latents=None if latents_of is None else sample.latents[latents_of],
    )


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a task, with all its streams."""

    name: str
    ticks: int
    conditions: tuple[Condition, ...]
    speaker: str | None = None
    body: Body | None = None
    source: Mapping[str, Any] | None = None  # origin of a sample of a shard folder
    warnings: tuple[str, ...] = ()
    recorded: tuple[Condition, ...] = ()  # recorded targets of a sample of a shard folder
    present: int = ALL_PRESENT  # bit mask of `STREAM_PARTS`, without the parts that the given streams lack
    sample: Recording | None = None  # contents of a sample of a shard folder, for condition streams

    @property
    def recording(self) -> Recording:
        """The `Recording` from which condition streams are read.

        If the input is a sample of a shard folder, it is `sample`. Otherwise it is made from `conditions`.
        """
        return _recording(self.conditions) if self.sample is None else self.sample


@dataclass(frozen=True, slots=True)
class PlannedInput:
    """Name of one input of a task, and a function that loads the input. Nothing is read before `load` is called."""

    name: str
    load: Callable[[], Input]


@dataclass(frozen=True, slots=True)
class Reading:
    """Settings for reading inputs for a model."""

    token_codec: TextTokenCodec | None  # None: the model's text is stored as latents
    tick_multiple: int = 1  # lengths are cut to multiples of this number of ticks
    loudness: Loudness = "none"  # loudness rule for audio files
    codecs: Mapping[StreamName, CodecEntry] = field(default_factory=dict)  # codecs whose latents are read from shards
    folder: Path | None = None  # folder of temporary files, see `Spool`
    recorded: tuple[StreamName, ...] = ()  # recorded streams of samples to show beside the results
    rate: SpeakingRate | None = None  # speaking rate of the training words
    gesture_channels: int = LAYOUT.channels  # channels of the model's gesture stream, 415 or 424


def planned_inputs(conditions: Sequence[StreamName], sources: Sources, reading: Reading) -> list[PlannedInput]:
    """Return all inputs of a task without reading them; each is read later by its `load`.

    Args:
        conditions: Streams that are conditions of the task.
        sources: Files or samples that the user gives.
        reading: Settings for reading inputs for the model, such as tokenizer and loudness rule.

    Returns:
        The inputs, as names and functions that load them.

    Raises:
        UsageFault: The sources do not fit the task.
    """
    unused = [name for name in STREAMS if sources.files(name) and name not in conditions]
    if unused:
        raise UsageFault(
            f"--{unused[0]}: expected only inputs of this task ({', '.join(conditions) or 'none'}), found another "
            f"input; remove --{unused[0]}"
        )
    if sources.from_shards:
        if any(sources.files(name) for name in STREAMS):
            raise UsageFault(
                "--key and --split: expected either samples of shards or input files, found both; remove one of the two"
            )
        folder = ShardFolder(cast("Path", sources.shards))
        rows = [folder.row(key) for key in sources.keys] or [row for row in folder.rows if row.split == sources.split]
        if not rows:
            raise UsageFault(
                f"--split {sources.split}: expected samples of it in {folder.folder}, found none; choose another split"
            )
        _require_streams(conditions, rows, folder.folder)
        return [PlannedInput(row.key, partial(_of_sample, conditions, folder, row, sources, reading)) for row in rows]
    missing = [name for name in conditions if not sources.files(name)]
    if missing:
        raise UsageFault(
            f"--{missing[0]}: expected an input of this task ({' and '.join(conditions)}), found none; give a "
            "file, or --shards and --key"
        )
    if not conditions and sources.seconds is None:
        raise UsageFault(
            "--seconds: expected a length for results without an input, found none; give a length, such as --seconds 20"
        )
    rate = _rate(sources) or reading.rate
    if sources.seconds is not None and not conditions:
        item = cut_input(Input(_UNCONDITIONAL, int(sources.seconds * TICKS_PER_SECOND + 1e-6), ()), None, reading)
        return [PlannedInput(item.name, lambda: item)]
    return [
        PlannedInput(name, partial(_of_files, name, files, sources, reading, rate))
        for name, files in _paired(conditions, sources).items()
    ]


def _require_streams(conditions: Sequence[StreamName], rows: Sequence[ManifestRow], folder: Path) -> None:
    """Raise UsageFault if a sample lacks a stream that is a condition of the task."""
    for name in conditions:
        lost = [row.key for row in rows if not present_bits(row.present) & STREAM_BITS[name]]
        if lost:
            more = f" and {len(lost) - 1} more samples" if len(lost) > 1 else ""
            raise UsageFault(
                f"--key {lost[0]}: expected a sample with {name} (an input of this task), found that this sample{more} "
                f"in {folder} lacks {name}; name other samples by --key, or choose another task"
            )


def _paired(conditions: Sequence[StreamName], sources: Sources) -> dict[str, dict[StreamName, str]]:
    """Group files into inputs: files of different streams with the same stem belong to one input.

    If each stream has exactly one file, the stems may differ. Return for each input, by its name, the file of each
    stream.
    """
    # Results are named after recordings rather than texts.
    first = min(conditions, key=("audio", "gesture", "text").index)
    if all(len(sources.files(name)) == 1 for name in conditions):
        return {_stem(sources.files(first)[0]): {name: sources.files(name)[0] for name in conditions}}
    found: dict[str, dict[StreamName, str]] = {}
    for name in conditions:
        for file in sources.files(name):
            own = found.setdefault(_stem(file), {})
            if name in own:
                raise UsageFault(
                    f"--{name} {file}: expected another name than that of {own[name]}, because results take the "
                    "names of inputs, found the same name; rename one of the two files"
                )
            own[name] = file
    for stem, own in found.items():
        lost = [name for name in conditions if name not in own]
        if lost:
            file = next(iter(own.values()))
            raise UsageFault(
                f"{file}: expected a --{lost[0]} file called {stem}, because inputs are matched by name, found none; "
                "add such a file, or rename one"
            )
    return found


def _recorded_rows(condition: Condition, first: int, ticks: int) -> npt.NDArray[Any]:
    return condition.array(first, ticks)[:, : LAYOUT.channels]  # without jaw and eyes; mels are unchanged


def _recording(conditions: Sequence[Condition]) -> Recording:
    """Return all streams of an input from user files as one `Recording` without labels."""
    contents: dict[Content, Callable[[int, int], Any]] = {}
    for one in conditions:
        if one.stream == "text":
            contents["words"] = constant(one.words)
        else:
            contents["mel" if one.stream == "audio" else "gesture"] = partial(_recorded_rows, one)
    return Recording({}, contents)


def recording_of_sample(sample: SampleArrays) -> Recording:
    """Convert a sample of a shard folder to a `Recording`, from which condition streams are read."""
    row = sample.row

    def rows_of(array: npt.NDArray[Any], per_tick: int) -> Callable[[int, int], Any]:
        return lambda first, ticks: array[first * per_tick : (first + ticks) * per_tick]

    contents: dict[Content, Callable[[int, int], Any]] = {
        "gesture": rows_of(sample.gesture.gesture, FRAMES_PER_TICK),
        "mel": rows_of(sample.mel, MEL_FRAMES_PER_TICK),
        "words": constant(sample.words),
    }
    bits = present_bits(row.present)
    there = {content: read for content, read in contents.items() if bits & STREAM_BITS[STREAM_OF[content]]}
    return Recording(labels_of(row.labels, row.speaker, row.language), there)


def _stem(file: str) -> str:
    return "text" if file == STANDARD_INPUT else unicodedata.normalize("NFC", Path(file).stem)  # macOS decomposes names


def _rate(sources: Sources) -> SpeakingRate | None:
    """Return the speaking rate of the words in the train split of --shards; None if --shards is not given.

    Raise UsageFault if --shards is given, but no plain text needs the rate.
    """
    if sources.shards is None:
        return None
    if all(Path(file).suffix.lower() == ".textgrid" for file in sources.text):
        raise UsageFault(
            f"--shards {sources.shards}: expected with --key, --split or plain text, found none of these, so no "
            "shards are read; add one of these inputs, or remove --shards"
        )
    folder = ShardFolder(sources.shards)
    return learn_rate(folder.words(row) for row in folder.rows if row.split == "train")


def _of_files(
    name: str, files: Mapping[StreamName, str], sources: Sources, reading: Reading, rate: SpeakingRate | None
) -> Input:
    conditions = []
    for stream, file in files.items():
        if stream == "audio":
            conditions.append(read_audio(Path(file), reading.folder, reading.loudness))
        elif stream == "gesture":
            conditions.append(
                read_gesture(Path(file), reading.folder, sources.motion_rate_hz, reading.gesture_channels)
            )
    # The last word ends before the recording does. Therefore, if there is another stream, it defines the length.
    length_s = min((one.ticks for one in conditions), default=0) / TICKS_PER_SECOND or None
    if "text" in files:
        conditions.append(read_text(files["text"], reading.token_codec, rate, length_s, sources.seconds))
    body = next((one.body for one in conditions if one.body is not None), None)
    return cut_input(Input(name, 0, tuple(conditions), body=body), sources.seconds, reading)


def cut_input(item: Input, seconds: float | None, reading: Reading) -> Input:
    """Cut all streams of an input to the same length, a whole number of tokens of the model.

    Args:
        item: Input whose streams may differ in length.
        seconds: Largest length in seconds; None: the length of the shortest stream.
        reading: Settings for reading inputs for the model, such as tokenizer and loudness rule.

    Returns:
        The input with streams of equal length.

    Raises:
        DataError: The lengths of audio and motion differ by more than `preprocess` allows. The common length is above
            `LONGEST_S` (24 hours) or shorter than one token. A text file has no words within this length.
    """
    lengths = [one.ticks for one in item.conditions] or [item.ticks]
    by_stream = {one.stream: one.ticks / TICKS_PER_SECOND for one in item.conditions}
    if {"audio", "gesture"} <= by_stream.keys() and not lengths_fit(by_stream["audio"], by_stream["gesture"]):
        found = ", ".join(f"{one.path} {one.ticks / TICKS_PER_SECOND:.1f} s" for one in item.conditions)
        raise DataError(
            f"{item.name}: expected audio at most {MAX_AUDIO_LONGER_S:g} s longer than motion and motion at "
            f"most {MAX_MOTION_LONGER_S:g} s longer than audio, found {found}; give files that belong together"
        )
    ticks = min(lengths) if seconds is None else min(*lengths, int(seconds * TICKS_PER_SECOND + 1e-6))
    if ticks > LONGEST_S * TICKS_PER_SECOND:
        raise DataError(
            f"{item.name}: expected at most {LONGEST_S / 3600:g} h, found {ticks / TICKS_PER_SECOND:g} s; cut the file"
        )
    ticks -= ticks % reading.tick_multiple
    if not ticks:
        min_s = reading.tick_multiple / TICKS_PER_SECOND
        raise DataError(f"{item.name}: expected at least {min_s:g} s, found less; give a longer file")
    conditions = tuple(one.cut(ticks) for one in item.conditions)
    absent = frozenset[str]().union(*(one.absent for one in conditions))
    if item.sample is None and (
        silent := next((one for one in conditions if one.stream == "text" and not one.words), None)
    ):
        raise DataError(
            f"{silent.path}: expected words in the first {ticks / TICKS_PER_SECOND:.1f} s, found none; check the "
            "times in the file"
        )
    present = item.present & ~present_bits(absent) | unused_bits(reading.gesture_channels)
    warnings = list(item.warnings)
    if item.conditions and max(lengths) > ticks:
        warnings.append(f"cut to {ticks / TICKS_PER_SECOND:.1f} s")
    if lacking := absent_parts(present):
        warnings.append(f"the input lacks {', '.join(lacking)}; the model received the rest")
    return replace(
        item,
        ticks=ticks,
        conditions=conditions,
        present=present,
        recorded=tuple(one.cut(ticks) for one in item.recorded),
        warnings=tuple(warnings),
    )


def _of_sample(
    streams: Sequence[StreamName], folder: ShardFolder, row: ManifestRow, sources: Sources, reading: Reading
) -> Input:
    sample = folder.sample(row)
    conditions = tuple(
        sample_condition(sample, name, reading, folder.folder, latents_of(folder, reading.codecs.get(name)))
        for name in streams
    )
    bits = present_bits(row.present)
    shown = [name for name in reading.recorded if bits & STREAM_BITS[name]]
    recorded = tuple(sample_condition(sample, name, reading, folder.folder) for name in shown)
    needed = bits_of(streams)
    digest = folder.dataset["files"][MANIFEST_FILE]["sha256"]
    manifest = folder.dataset["manifest_hash"]
    source = {"shards": str(folder.folder), "manifest_sha256": digest, "manifest_hash": manifest, "key": row.key}
    body, all_of_it = Body.of_sample(sample), recording_of_sample(sample)
    item = Input(row.key, row.ticks, conditions, row.speaker, body, source, recorded=recorded, sample=all_of_it)
    item = replace(item, present=bits | ALL_PRESENT & ~needed)
    return cut_input(item, sources.seconds, reading)


def latents_of(folder: ShardFolder, entry: CodecEntry | None) -> str | None:
    """Return the name of a codec if a shard folder contains usable latents of this codec; encoding is then not needed.

    The latents must be from exactly this codec, with one row for each frame or group of frames. Latents that were
    encoded window by window are not used, because those windows may differ from the windows of the result.

    Args:
        folder: Opened shard folder with the recordings.
        entry: Codec of the model for a stream; None: the stream has no codec.

    Returns:
        The name of the codec; None if the folder contains no usable latents.
    """
    if not isinstance(entry, FrameEntry):
        return None
    held = folder.codecs.get(entry.name)
    return entry.name if held is not None and held.fingerprint == entry.fingerprint else None
