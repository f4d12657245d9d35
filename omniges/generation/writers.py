"""Write generated motion, mel and words as files: SMPL-X NPZ, WAV, mel, TextGrid and PNG.

Results arrive in blocks of rows and are stored on disk, so memory does not grow with their length. A result consists of
one or several files NAME.* and the record NAME.json. The record is written last, so a result with a record is complete.
`evaluate` finds results by their records, whose fields docs/how-to/generate.md describes.
"""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast
from unicodedata import category

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError
from omniges.features.audio import MEL_BANDS
from omniges.features.channels import WITH_JAW_EYES
from omniges.features.gesture import LAYOUT, MotionArrays, clip_of_channels, invalid_rotations, motion_from_gesture
from omniges.features.text_tokens import TextTokenCodec
from omniges.features.timebase import FRAMES_PER_TICK, MEL_FRAMES_PER_TICK, SAMPLE_RATE_HZ, TICKS_PER_SECOND
from omniges.formats.audio import wav_parts
from omniges.formats.npz import MOTION_COLUMNS, write_motion
from omniges.formats.textgrid import WordInterval, encode_tiers, encode_words, is_word
from omniges.generation.audio import Spool
from omniges.generation.inputs import Body, Condition, Input
from omniges.generation.records import WINDOWS_TIER
from omniges.generation.vocoder import Vocoder
from omniges.model.streams import StreamName
from omniges.model.tasks import TASKS
from omniges.options import ShownPart
from omniges.storage.atomic import os_errors

if TYPE_CHECKING:
    from omniges.codecs.base import SpokenText
    from omniges.visualize.pictures import Role, Row


F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

JAW_EYES_AT_REST: Final = "jaw and eyes do not move: the model's gesture stream has 415 channels, without them"
_COPY_BYTES: Final = 1 << 20
_BLOCK_TICKS: Final = 600
_NO_TEXT: Final = "\ufffd"
_UNWRITABLE: Final = frozenset({"Cc", "Cs"})
"""Unicode categories that labels cannot contain: control characters and lone surrogates."""


@dataclass(frozen=True, slots=True)
class OutFile:
    """One file of a result: its kind, the ending of its name, and its content in blocks of bytes."""

    kind: str  # key in `GeneratedRecord.files`
    ending: str  # ending of the file name, such as .npz
    parts: Iterable[bytes]  # content of the file, in blocks


class GestureSink:
    """Writer of gesture channels as an SMPL-X NPZ.

    Rotations are made valid, and root steps are summed to positions.
    """

    def __init__(self, body: Body, folder: Path | None) -> None:
        self.measures: dict[str, float] = {}
        self.warnings = [JAW_EYES_AT_REST]  # until channels of jaw and eyes are appended
        self._body, self._folder = body, folder
        self._channels = Spool(folder, (LAYOUT.channels,))
        self._motion = {name: Spool(folder, (columns,), kind) for name, (columns, kind) in MOTION_COLUMNS.items()}
        self._at_xz = body.start_xz  # position of the last frame
        self._invalid = 0.0

    def append(self, gesture: F32, /) -> None:
        """Append channels (T, 415 or 424) of T frames; raise DataError if `valid_motion` cannot convert them."""
        six_d = gesture[:, LAYOUT.rotations].reshape(len(gesture), -1, 6)
        self._invalid += invalid_rotations(six_d) * len(gesture)
        if len(self._channels):
            self._at_xz = self._at_xz + gesture[0, [LAYOUT.root.start, LAYOUT.root.start + 2]].astype(np.float64)
        motion = valid_motion(gesture, self._at_xz)
        self._at_xz = motion.trans[-1, [0, 2]]
        self._channels.append(gesture[:, : LAYOUT.channels])
        if gesture.shape[1] == WITH_JAW_EYES:
            self.warnings.clear()
        for name, spool in self._motion.items():
            spool.append(getattr(motion, name))
        self.measures["invalid_rotations"] = self._invalid / len(self._channels)

    def motion(self) -> MotionArrays:
        """Return the motion that the NPZ contains."""
        return MotionArrays(**{name: spool.rows(0, len(spool)) for name, spool in self._motion.items()})

    def files(self) -> Iterator[OutFile]:
        """Yield the NPZ file."""
        yield OutFile("gesture", ".npz", self._archive())

    def _archive(self) -> Iterator[bytes]:
        body = self._body
        blocks = {name: spool.blocks() for name, spool in self._motion.items()}
        with os_errors(self._folder or Path(tempfile.gettempdir())), tempfile.TemporaryFile(dir=self._folder) as file:
            write_motion(file, len(self._channels), blocks, body.betas, gender=body.gender, model=body.model)
            file.seek(0)
            while part := file.read(_COPY_BYTES):
                yield part

    def shown(self, start: int, stop: int) -> F32:
        """Return the gesture frames (3 · (stop − start), 415) from tick `start` to tick `stop`, for a picture."""
        return self._channels.rows(FRAMES_PER_TICK * start, FRAMES_PER_TICK * stop)


def valid_motion(gesture: F32, start_xz: npt.NDArray[np.float64]) -> MotionArrays:
    """Convert generated channels to SMPL-X motion with valid rotations.

    Args:
        gesture: Channels (T, 424), or (T, 415); with 415 channels, jaw and eyes do not move.
        start_xz: Start position (x, z) in metres.

    Returns:
        The motion.

    Raises:
        DataError: A value is NaN or infinite, or a 6D rotation has a row of length zero or parallel rows.
    """
    if not np.isfinite(gesture).all():  # otherwise a joint that is NaN in all frames would be written as absent
        raise DataError(
            "generated motion: expected finite values, found NaN or infinite ones; the model is not trained enough; "
            "choose another checkpoint"
        )
    try:
        return motion_from_gesture(clip_of_channels(gesture, start_xz))
    except ValueError as error:
        raise DataError(
            f"generated motion: {error}; the model is not trained enough; choose another checkpoint"
        ) from error


class SpeechSink:
    """Writer of a log-mel as an .npy file and, if there is a vocoder, as a WAV.

    A WAV that is louder than full scale is scaled down. Vocoders are slow, so the WAV is optional.
    """

    def __init__(self, vocoder: Vocoder | None, seed: int, folder: Path | None) -> None:
        self.measures: dict[str, float] = {}
        self.warnings = [] if vocoder is None or vocoder.warning is None else [vocoder.warning]
        self._vocoder = None if vocoder is None else vocoder.begin(seed)
        self._mel = Spool(folder, (MEL_BANDS,))
        self._samples = Spool(folder, ())
        self._peak = 1.0

    def append(self, mel: F32, /) -> None:
        """Append mel frames (F, 64); raise DataError if they are NaN or infinite."""
        if not np.isfinite(mel).all():
            raise DataError(
                "generated audio: expected finite mel values, found NaN or infinite ones; the model is not "
                "trained enough; choose another checkpoint"
            )
        self._mel.append(mel)
        if self._vocoder is not None:
            self._append_samples(self._vocoder.push(mel))

    def _append_samples(self, samples: F32) -> None:
        self._samples.append(samples)
        self._peak = max(self._peak, float(np.abs(samples).max(initial=0.0)))

    def mel(self) -> F32:
        """Return the generated log-mel (F, 64)."""
        return self._mel.rows(0, len(self._mel))

    def files(self) -> Iterator[OutFile]:
        """Yield the file of the mel and, if there is a vocoder, the WAV."""
        yield OutFile("mel", ".mel.npy", self._array())
        if self._vocoder is None:
            return
        self._append_samples(self._vocoder.finish())
        if self._peak > 1:
            self.warnings.append(f"the waveform was {self._peak:.2f} times too loud and was scaled down")
        scaled = ((block / self._peak).astype(np.float32) for block in self._samples.blocks())
        yield OutFile("audio", ".wav", wav_parts(scaled, len(self._samples), SAMPLE_RATE_HZ))

    def _array(self) -> Iterator[bytes]:
        head = io.BytesIO()
        shape = (len(self._mel), MEL_BANDS)
        np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
        yield head.getvalue()
        yield from (block.tobytes() for block in self._mel.blocks())

    def shown(self, start: int, stop: int) -> F32:
        """Return the mel frames (10 · (stop − start), 64) from tick `start` to tick `stop`, for a picture."""
        return self._mel.rows(MEL_FRAMES_PER_TICK * start, MEL_FRAMES_PER_TICK * stop)


class Labels:
    """Converter of generated texts to valid TextGrid labels.

    `warnings` gives the number of texts with control characters. It also lists the texts, such as "sil", that mean
    silence or an unknown word in TextGrids.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind  # plural noun for the labelled texts, for warnings
        self._controls = 0
        self._silences: set[str] = set()

    def label(self, text: str) -> str:
        """Convert a text to one line with single spaces. Control characters and lone surrogates become U+FFFD."""
        joined = " ".join(text.split())
        found = "".join(_NO_TEXT if category(letter) in _UNWRITABLE else letter for letter in joined)
        self._controls += found != joined
        if found and not is_word(found):
            self._silences.add(found)
        return found

    @property
    def warnings(self) -> list[str]:
        """Warnings about the labels so far."""
        warnings = []
        if self._controls:
            warnings.append(f"{self._controls} {self._kind} with control characters, each written as {_NO_TEXT}")
        if self._silences:
            shown = ", ".join(sorted(self._silences))
            warnings.append(f"{self._kind} that readers of TextGrids read as silence: {shown}")
        return warnings


def _without_silences(intervals: Sequence[WordInterval]) -> list[WordInterval]:
    return [one for one in intervals if is_word(one.word)]


class TextSink:
    """Writer of text tokens as a TextGrid and plain text; tokens are kept in memory (4 bytes a tick)."""

    def __init__(self, codec: TextTokenCodec) -> None:
        self.measures: dict[str, float] = {}
        self.warnings: list[str] = []
        self._codec = codec
        self._tokens: list[npt.NDArray[np.int32]] = []

    def append(self, tokens: npt.NDArray[Any], /) -> None:
        """Append text tokens, one for each of the next ticks: (ticks,)."""
        self._tokens.append(tokens.astype(np.int32))

    def _labelled(self, labels: Labels) -> list[WordInterval]:
        decoded = self._codec.decode(np.concatenate(self._tokens))
        return [WordInterval(labels.label(word.word), word.start, word.end) for word in decoded]

    def spoken(self) -> tuple[list[WordInterval], bool]:
        """Return the words and the flag True, which means that the words have times.

        Words that mean silence or an unknown word in TextGrids, such as "sil", are left out.
        """
        return _without_silences(self._labelled(Labels("words"))), True

    def files(self) -> Iterator[OutFile]:
        """Yield the TextGrid and the file of plain text."""
        labels = Labels("words")
        words = self._labelled(labels)
        intervals = [word for word in words if word.word]
        if len(intervals) < len(words):
            self.warnings.append(f"{len(words) - len(intervals)} words without a letter left out")
        self.warnings += labels.warnings
        if not intervals:
            self.warnings.append("no word was generated")
        yield OutFile("text", ".TextGrid", [encode_words(intervals, sum(map(len, self._tokens)) / TICKS_PER_SECOND)])
        yield OutFile("transcript", ".txt", [(" ".join(word.word for word in intervals) + "\n").encode()])

    def shown(self, _start: int, stop: int) -> list[dict[str, Any]]:
        """Return the words of the ticks before `stop`, with their times in the result, for a picture."""
        return [word.as_json() for word in self._codec.decode(np.concatenate(self._tokens)[:stop])]


class WindowTextSink:
    """Writer of the texts of complete windows as a TextGrid and plain text, without word timings."""

    def __init__(self, windows: Sequence[tuple[int, int]]) -> None:
        """Create the writer for the given windows.

        Args:
            windows: First tick and length of each window, in ticks. Windows follow each other without gaps.
        """
        self.measures: dict[str, float] = {}
        self.warnings = ["the words have no times: text stored as latents has no word timings"]
        self._windows = windows
        self._labels = Labels("windows of text")
        self._intervals: list[WordInterval] = []
        self._cut_from_s: list[float] = []

    def append(self, texts: Sequence[SpokenText], /) -> None:
        """Append the texts of the next windows."""
        done = len(self._intervals)
        for spoken, (first, count) in zip(texts, self._windows[done : done + len(texts)], strict=True):
            text = self._labels.label(spoken.text)
            start, end = first / TICKS_PER_SECOND, (first + count) / TICKS_PER_SECOND
            self._intervals.append(WordInterval(text, start, end))
            if not spoken.ended:
                self._cut_from_s.append(start)

    def spoken(self) -> tuple[list[WordInterval], bool]:
        """Return the texts of windows and the flag False, which means that the words have no times.

        Texts that mean silence or an unknown word in TextGrids, such as "sil", are left out.
        """
        return _without_silences(self._intervals), False

    def files(self) -> Iterator[OutFile]:
        """Yield the TextGrid with a tier `windows`, and the file of plain text."""
        texts = [interval.word for interval in self._intervals if interval.word]
        self.warnings += self._labels.warnings
        if self._cut_from_s:
            self.warnings.append(
                f"the texts of {len(self._cut_from_s)} of {len(self._intervals)} windows did not end and were cut, the "
                f"first in the window from {self._cut_from_s[0]:g} s"
            )
        if not texts:
            self.warnings.append("no word was generated")
        yield OutFile("text", ".TextGrid", [encode_tiers([(WINDOWS_TIER, self._intervals)], self._intervals[-1].end)])
        yield OutFile("transcript", ".txt", [(" ".join(texts) + "\n").encode()])

    def shown(self, _start: int, stop: int) -> list[dict[str, Any]]:
        """Return the text of each window that begins before tick `stop`, as one word with times, for a picture."""
        spoken = [interval for interval in self._intervals if interval.word]
        return [asdict(interval) for interval in spoken if interval.start * TICKS_PER_SECOND < stop]


Sink = GestureSink | SpeechSink | TextSink | WindowTextSink
"""A writer of one stream of a result.

`append` receives rows in the format of shards, or texts of windows if text is stored as latents. `files` returns the
files at the end. `shown` returns rows for a picture.
"""


class Results:
    """The writers of one result, one for each target stream."""

    def __init__(
        self,
        targets: Sequence[StreamName],
        body: Body,
        codec: TextTokenCodec,
        vocoder: Vocoder | None,
        seed: int,
        folder: Path | None,
        windows_of_text: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """Create one writer for each target.

        Args:
            targets: Streams of the result.
            body: Body shape, gender, body model and start position, for the NPZ of the motion.
            codec: Tokenizer that converts text tokens to words.
            vocoder: Vocoder; None: no waveform.
            seed: Seed of the vocoder.
            folder: Folder of temporary files, see `Spool`.
            windows_of_text: First tick and length of each window, if text is stored as latents; None: text is stored as
                tokens.
        """
        sink_of: dict[StreamName, Callable[[], Sink]] = {
            "gesture": lambda: GestureSink(body, folder),
            "audio": lambda: SpeechSink(vocoder, seed, folder),
            "text": lambda: TextSink(codec) if windows_of_text is None else WindowTextSink(windows_of_text),
        }
        self.sinks = {name: sink_of[name]() for name in targets}

    def append(self, arrays: Mapping[StreamName, Any]) -> None:
        """Append the next rows of each stream in `arrays`."""
        for name, rows in arrays.items():
            self.sinks[name].append(rows)

    def motion(self) -> MotionArrays:
        """Return the motion; gesture must be a target."""
        return cast("GestureSink", self.sinks["gesture"]).motion()

    def mel(self) -> F32:
        """Return the log-mel (F, 64); audio must be a target."""
        return cast("SpeechSink", self.sinks["audio"]).mel()

    def spoken(self) -> tuple[list[WordInterval], bool]:
        """Return the words and True, or the texts of windows and False; text must be a target."""
        return cast("TextSink | WindowTextSink", self.sinks["text"]).spoken()

    def files(self) -> Iterator[OutFile]:
        """Yield all files."""
        for sink in self.sinks.values():
            yield from sink.files()

    @property
    def measures(self) -> dict[str, float]:
        """Measurements of all streams, such as ``invalid_rotations``, the share of invalid rotations."""
        return {name: value for sink in self.sinks.values() for name, value in sink.measures.items()}

    @property
    def warnings(self) -> list[str]:
        """Warnings about the files. The list is complete only after the iterator of `files` has ended."""
        return [warning for sink in self.sinks.values() for warning in sink.warnings]


def result_picture(
    name: str, task: str, item: Input, results: Results, body: Body, codec: TextTokenCodec, part: ShownPart
) -> bytes:
    """Draw a result as a picture with one row for each stream of the input and of the result.

    Conditions are drawn as the model receives them. Words are drawn at the ticks of their text tokens, without dropped
    words. The mel is scaled by the loudness rule of the model (see `loudness_gain`). Absent parts of motion do not
    move.

    Args:
        name: Name of the result.
        task: Name of the task.
        item: Input that the result was generated from.
        results: Writers of the result, to which all rows have been appended.
        body: Body of the motion. Its field `start_xz` is the position of the root in the first frame of the result.
        codec: Tokenizer that converts text tokens to words.
        part: Start and length of the time span to draw.

    Returns:
        The picture as PNG.
    """
    from omniges.visualize.pictures import MAX_S, Row, draw_result  # noqa: PLC0415 - matplotlib only for pictures

    recorded = item.recorded if item.conditions else ()  # an unconditional result has no recording to compare with
    first = math.floor(part.show_start_s * TICKS_PER_SECOND)
    longest_s = min(MAX_S, math.inf if part.show_seconds is None else part.show_seconds)
    stop = min(math.ceil((part.show_start_s + longest_s) * TICKS_PER_SECOND), item.ticks)

    def row(role: Role, stream: StreamName, rows: Callable[[int, int], Any]) -> Row:
        data, begins_s = rows(first, stop), first / TICKS_PER_SECOND
        if stream != "gesture" or not len(data):
            return Row(role, stream, data, begins_s)
        return Row(role, stream, data, begins_s, _place(rows, first, data, body.start_xz))

    rows = [row("condition", each.stream, partial(_rows_of, each, codec)) for each in item.conditions]
    rows += [row("generated", stream, sink.shown) for stream, sink in results.sinks.items()]
    rows += [row("recorded", each.stream, partial(_rows_of, each, None)) for each in recorded]
    conditions = " and ".join(TASKS[task].conditions) or "nothing"
    title = f"{name}: {' and '.join(results.sinks)} from {conditions} ({task})"
    length_s = item.ticks / TICKS_PER_SECOND
    return draw_result(title=title, rows=rows, length_s=length_s, **part.of_part)


def _rows_of(condition: Condition, codec: TextTokenCodec | None, start: int, stop: int) -> Any:
    """Return the rows of a condition from tick `start` to tick `stop`; for text, return words instead of rows.

    If text is stored as tokens and `codec` is not None, return the words that have text tokens before `stop`.
    Otherwise, return all words of the condition.
    """
    if condition.stream != "text":
        return condition.array(start, stop - start)
    if codec is None or condition.series is None:  # without a series, the latents encode the words
        return condition.words
    return [word.as_json() for word in codec.decode(condition.array(0, stop))]


def _place(rows: Callable[[int, int], F32], first: int, shown: F32, start_xz: F64) -> tuple[float, float]:
    """Return the horizontal position of the root in the first frame of a tick.

    It is the sum of `start_xz` and the root steps of all frames from the second frame of the sequence to this frame.
    The steps are read and summed in blocks, so memory does not grow with length.

    Args:
        rows: Function of a start tick and an end tick (exclusive) that returns the gesture channels of these ticks.
        first: Index of the tick.
        shown: Gesture channels from this tick on.
        start_xz: Position (2,) of the root in the first frame of the sequence, in metres.

    Returns:
        x and z in metres.
    """
    columns, place = [LAYOUT.root.start, LAYOUT.root.start + 2], np.array(start_xz, np.float64)
    for tick in range(0, first, _BLOCK_TICKS):
        place += rows(tick, min(tick + _BLOCK_TICKS, first))[:, columns].sum(axis=0, dtype=np.float64)
    if first:  # the first step is a copy of the second
        place += shown[0, columns].astype(np.float64) - rows(0, 1)[0, columns].astype(np.float64)
    return float(place[0]), float(place[1])
