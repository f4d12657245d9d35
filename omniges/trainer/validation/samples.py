"""Samples of the held-out windows as the files that `generate` writes, in memory, and their scores by `evaluate`."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

from omniges import __version__
from omniges.errors import DataError
from omniges.evaluation.body_models import GENERIC
from omniges.evaluation.gesture import score_gesture
from omniges.evaluation.motion import Instruments, TrainSplit
from omniges.evaluation.results import Result, spoken_intervals
from omniges.evaluation.scores import Scored
from omniges.evaluation.speech import score_speech
from omniges.evaluation.statistics import Heading, Resampling, absent
from omniges.evaluation.text import score_text
from omniges.features.text_slots import SlotCodec
from omniges.features.timebase import TICKS_PER_SECOND
from omniges.formats.arrays import decode_npy
from omniges.formats.textgrid import WordInterval
from omniges.generation.inputs import Body
from omniges.generation.long_form import TicksOf, Timeline, WindowSettings, sample_timelines
from omniges.generation.record import GeneratedRecord
from omniges.generation.vocoder import chosen_voice
from omniges.generation.writers import Results, Sink, SpeechSink
from omniges.metrics.profiles import profile
from omniges.model.flow import FlowModel
from omniges.model.sampling import SamplingSettings
from omniges.model.streams import StreamName
from omniges.model.tasks import TASKS
from omniges.shards.latents import CodecEntry
from omniges.storage.canonical_json import sha256_hex
from omniges.trainer.validation.decoders import Decoders
from omniges.trainer.validation.held_out import Window, WindowFolder
from omniges.trainer.validation.losses import VALIDATION_SEED

__all__ = [
    "INSTRUMENTS",
    "Files",
    "Held",
    "Made",
    "MadeBy",
    "Sampled",
    "make_result",
    "pack",
    "record_of",
    "sample_windows",
    "score_task",
    "unpack",
    "with_waveform",
    "words_of",
]

INSTRUMENTS: Final = Instruments(profile=profile("corrected"), bodies=GENERIC, encoder=None, mean_speeds_m_s=None)
"""What motion is measured with."""

_VOICE: Final = chosen_voice(None)
_RESAMPLES: Final = 200
_NOT_OF_WINDOWS: Final = ("seams", "face")
"""Beginnings of the names of metrics that are left away: windows have no seams, and there is no body model."""
_MEMBERS: Final[dict[StreamName, str]] = {"text": "words.json", "gesture": "gesture.npy", "audio": "mel.npy"}


@dataclass(frozen=True, slots=True)
class Held:
    """A held-out window, read."""

    number: int  # among all that are validated on
    window: Window
    arrays: Mapping[StreamName, npt.NDArray[Any]]  # as shards hold them, text as slots
    speaker: int  # 0: unknown to the model

    def ticks_of(self, name: StreamName) -> TicksOf:
        """A stream of it, as a condition."""
        return partial(_whole, self.arrays[name], self.window.ticks)


def _whole(array: npt.NDArray[Any], ticks: int, first: int, count: int) -> npt.NDArray[Any]:
    """All of a window: what latents there are of a part of it is nobody's to say."""
    if (first, count) != (0, ticks):
        raise ValueError(f"ticks 0 to {ticks} of a window expected, found {first} to {first + count}")
    return array


@dataclass(frozen=True, slots=True)
class Files:
    """Files of a result in memory, and what there is to say of them."""

    contents: Mapping[str, bytes] = field(default_factory=dict)  # by the end of the name
    kinds: Mapping[str, str] = field(default_factory=dict)  # likewise
    measures: Mapping[str, float] = field(default_factory=dict)
    remarks: Sequence[str] = ()

    @classmethod
    def of(cls, made: Results | Sink) -> Files:
        """What `omniges generate` would write."""
        contents, kinds = {}, {}
        for file in made.files():
            contents[file.ending], kinds[file.ending] = b"".join(file.parts), file.kind
        return cls(contents, kinds, made.measures, tuple(made.remarks))


@dataclass(frozen=True, slots=True)
class Made:
    """What was made of a window: files, or the reason why there are none."""

    task: str
    number: int  # of the window
    files: Files
    why_not: str | None = None

    @classmethod
    def of_picture(cls, number: int, png: bytes) -> Made:
        """A picture of a window and all its tasks."""
        return cls("", number, Files({".png": png}, {".png": "picture"}))


@dataclass(frozen=True, slots=True)
class MadeBy:
    """What made results, for their records."""

    run: str
    step: int
    preset: str
    sampling: SamplingSettings
    codecs: Mapping[StreamName, CodecEntry] = field(default_factory=dict)  # of streams that are latents
    quantising: frozenset[StreamName] = frozenset()  # of these, those decoded through codes

    def model(self) -> dict[str, Any]:
        """The model as a record names it."""
        codecs = {name: {"name": one.name, "fingerprint": one.fingerprint} for name, one in self.codecs.items()}
        of_run = {"run": self.run, "step": self.step, "preset": self.preset}
        return {"checkpoint": None} | of_run | {"weights": "ema", "codecs": codecs}


Sampled = dict[StreamName, npt.NDArray[Any]]
"""What a model made of a window by stream; latents where the stream is latents."""


def sample_windows(model: FlowModel, task: str, held: Sequence[Held], how: SamplingSettings) -> list[Sampled]:
    """Sample one task for some windows, as `omniges generate` does."""
    ticks, targets = held[0].window.ticks, TASKS[task].targets
    timelines = [
        Timeline(ticks, {name: one.ticks_of(name) for name in TASKS[task].conditions}, one.speaker, one.number)
        for one in held
    ]
    windows = WindowSettings(window_ticks=ticks, overlap_ticks=0, apart=True)
    made = sample_timelines(model, timelines, targets, VALIDATION_SEED, windows, how)
    by_place = {place: arrays for place, arrays, _ in made}  # whole, for each is one window
    return [{name: array.cpu().numpy() for name, array in by_place[place].items()} for place in range(len(held))]


def make_result(
    task: str, one: Held, sampled: Sampled, samples: WindowFolder, codec: SlotCodec, decoders: Decoders
) -> Made:
    """What was sampled of a window as files; without a waveform, which takes long."""
    body = Body.of_sample(samples.sample(samples.row(one.window.name)))
    windows_of_text = [(0, one.window.ticks)] if decoders.untimed_text else None
    results = Results(TASKS[task].targets, body, codec, None, VALIDATION_SEED, None, windows_of_text)
    try:
        results.append({name: decoders.decoded(name, array) for name, array in sampled.items()})
    except DataError as error:  # early on a model may give what is no rotation, or no number: counted, and said
        return Made(task, one.number, Files(), str(error).partition(": the model")[0])
    return Made(task, one.number, Files.of(results))


def with_waveform(made: Made) -> Made:
    """A result with the waveform of its mel, if it has one."""
    mel = made.files.contents.get(".mel.npy")
    if mel is None:
        return made
    sink = SpeechSink(_VOICE, VALIDATION_SEED + made.number, None)
    sink.append(decode_npy(mel))
    return replace(made, files=Files.of(sink))


def words_of(made: Made) -> list[WordInterval]:
    """The words of a result that is text; where these have no times, the window's text as one."""
    intervals, _ = spoken_intervals(made.files.contents[".TextGrid"])
    return intervals


# --- to other ranks and back


def pack(results: Sequence[Made]) -> bytes:
    """Results as bytes for other ranks: a line of JSON, then the files."""
    heads = []
    contents: list[bytes] = []
    for one in results:
        sizes = {ending: len(content) for ending, content in one.files.contents.items()}
        head = {"task": one.task, "number": one.number, "why_not": one.why_not, "sizes": sizes}
        told = {"measures": one.files.measures, "remarks": list(one.files.remarks)}
        heads.append(head | told | {"kinds": one.files.kinds})
        contents += one.files.contents.values()
    line = json.dumps(heads).encode()
    return b"".join([struct.pack("<q", len(line)), line, *contents])


def unpack(data: bytes) -> list[Made]:
    """The inverse of `pack`."""
    (size,) = struct.unpack_from("<q", data)
    at = 8 + size
    results = []
    for head in json.loads(data[8:at]):
        contents = {}
        for ending, length in head["sizes"].items():
            contents[ending] = data[at : at + length]
            at += length
        files = Files(contents, head["kinds"], head["measures"], tuple(head["remarks"]))
        results.append(Made(head["task"], head["number"], files, head["why_not"]))
    return results


# --- records and scores


def record_of(made: Made, window: Window, by: MadeBy) -> GeneratedRecord:
    """The record of a result, as `generate` writes it, with where the window comes from."""
    members = _MEMBERS | {stream: entry.member for stream, entry in by.codecs.items()}
    inputs = [
        {
            "stream": stream,
            "path": f"{window.shard}#{window.row.key}.{members[stream]}",
            "sha256": window.row.members[members[stream]].sha256,
            "remarks": [f"{window.ticks} ticks from tick {window.start_tick}"],
        }
        for stream in TASKS[made.task].conditions
    ]
    return GeneratedRecord(
        omniges=__version__,
        task=made.task,
        name=window.name,
        source=window.provenance(),
        sample=made.number,
        ticks=window.ticks,
        seconds=window.ticks / TICKS_PER_SECOND,
        files={
            made.files.kinds[ending]: {"path": f"{window.name}{ending}", "sha256": sha256_hex(content)}
            for ending, content in made.files.contents.items()
        },
        inputs=tuple(inputs),
        model=by.model(),
        settings=asdict(by.sampling)
        | {
            "seed": VALIDATION_SEED,
            "window_ticks": window.ticks,
            "overlap_ticks": 0,
            "speaker": window.row.speaker,
            "voice": _VOICE.name if ".wav" in made.files.contents else None,
            "quantised": True if by.quantising & set(TASKS[made.task].targets) else None,
        },
        seams_s=(),
        measures=made.files.measures,
        remarks=tuple(made.files.remarks),
    )


@dataclass(frozen=True, slots=True)
class _InMemory(Result):
    """A result whose files have not been written."""

    contents: Mapping[str, bytes]  # by the end of the name

    def _content(self, kind: str, stream: StreamName, ending: str) -> tuple[Path, bytes]:
        del kind, stream
        return Path(f"{self.name}{ending}"), self.contents[ending]


def score_task(
    results: Sequence[Made],
    windows: Sequence[Window],
    samples: WindowFolder,
    by: MadeBy,
    train: Callable[[], TrainSplit | None],
) -> Scored:
    """Scores of one task's results, by the functions of `omniges evaluate`; windows are its recordings.

    ``train`` is asked for where gesture is scored. Results that are no motion or no sound are left out and counted.
    """
    task = results[0].task
    (target,) = TASKS[task].targets
    lost = Counter(one.why_not for one in results if one.why_not is not None)
    found = []
    for one in results:
        if one.why_not is None:
            window = windows[one.number]
            row, record = samples.row(window.name), record_of(one, window, by)
            found.append(_InMemory(task, row, Path(), window.name, record, {}, one.files.contents))
    if not found:
        why = "; ".join(f"{count} × {reason}" for reason, count in lost.items())
        return Scored([replace(absent(Heading(f"{target} metrics", ""), why), left_out=lost)], {})
    how = Resampling(seed=0, resamples=_RESAMPLES)
    if target == "text":
        scored = score_text(found, samples, how, _nobody)
    elif target == "audio":
        scored = score_speech(found, samples, how, _nobody)
    else:
        scored = score_gesture(found, samples, INSTRUMENTS, train(), how, _nobody)
    figures = [one for one in scored.figures if not one.metric.startswith(_NOT_OF_WINDOWS)]
    if lost:
        figures = [replace(one, left_out=dict(Counter(one.left_out) + lost)) for one in figures]
    return replace(scored, figures=figures)


def _nobody() -> None:
    """Nobody counts with us."""
