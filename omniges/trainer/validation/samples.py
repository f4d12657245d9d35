"""What the model makes of the held-out windows, as `generate` would: as arrays to score, and as files where kept."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges import __version__
from omniges.codecs.base import SpokenText
from omniges.errors import DataError
from omniges.evaluation.gesture import score_gesture
from omniges.evaluation.motion import GENERIC, Instruments, TrainSplit
from omniges.evaluation.scores import Heading, Resampling, Result, Scored, absent
from omniges.evaluation.speech import score_speech, score_text
from omniges.features.gesture import MotionArrays
from omniges.features.timebase import TICKS_PER_SECOND
from omniges.formats.textgrid import WordInterval
from omniges.generation.inputs import Body
from omniges.generation.long_form import TicksOf, Timeline, WindowSettings
from omniges.generation.record import GeneratedRecord
from omniges.generation.sampler import Codecs, Part, Sampler
from omniges.generation.vocoder import VoiceOf, chosen_voice
from omniges.generation.writers import Results
from omniges.metrics.profiles import profile
from omniges.model.settings import SamplingSettings
from omniges.model.streams import StreamName
from omniges.model.tasks import TASKS
from omniges.storage.canonical_json import sha256_hex
from omniges.trainer.validation.held_out import Window, WindowFolder
from omniges.trainer.validation.losses import VALIDATION_SEED

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
class Made:
    """What was made of a window in a task, or the reason why there is nothing."""

    task: str
    number: int  # of the window
    made: npt.NDArray[Any] | SpokenText | None = None  # of the task's one target, decoded
    measures: Mapping[str, float] = field(default_factory=dict)
    why_not: str | None = None

    def packed(self) -> tuple[dict[str, Any], list[bytes]]:
        """What `pack` takes."""
        head: dict[str, Any] = {"task": self.task, "number": self.number, "why_not": self.why_not}
        head["measures"] = dict(self.measures)
        if isinstance(self.made, SpokenText):
            return head | {"text": asdict(self.made)}, []
        if self.made is None:
            return head, []
        return head | {"kind": self.made.dtype.str, "shape": self.made.shape}, [self.made.tobytes()]

    @classmethod
    def unpacked(cls, head: Mapping[str, Any], parts: Sequence[bytes]) -> Made:
        """The inverse of `packed`."""
        made: npt.NDArray[Any] | SpokenText | None = None
        if "text" in head:
            made = SpokenText(**head["text"])
        elif parts:
            made = np.frombuffer(parts[0], head["kind"]).reshape(head["shape"])
        return cls(head["task"], head["number"], made, head["measures"], head["why_not"])


@dataclass(frozen=True, slots=True)
class Kept:
    """A result that is kept: the bytes of its files, and what there is to say of them."""

    task: str
    number: int  # of the window
    contents: Mapping[str, bytes]  # by the end of the name
    kinds: Mapping[str, str]  # likewise
    measures: Mapping[str, float]
    remarks: Sequence[str]
    said: str | None = None  # the words, of a task that makes text
    why_not: str | None = None

    def packed(self) -> tuple[dict[str, Any], list[bytes]]:
        """What `pack` takes."""
        head = {name: getattr(self, name) for name in ("task", "number", "kinds", "measures", "remarks", "said")}
        return head | {"why_not": self.why_not, "endings": list(self.contents)}, list(self.contents.values())

    @classmethod
    def unpacked(cls, head: Mapping[str, Any], parts: Sequence[bytes]) -> Kept:
        """The inverse of `packed`."""
        facts = dict(head)
        return cls(contents=dict(zip(facts.pop("endings"), parts, strict=True)), **facts)


@dataclass(frozen=True, slots=True)
class MadeBy:
    """What made results, for their records."""

    run: str
    step: int
    preset: str
    sampling: SamplingSettings
    codecs: Codecs

    def model(self) -> dict[str, Any]:
        """The model as a record names it."""
        entries = self.codecs.entries
        codecs = {name: {"name": one.name, "fingerprint": one.fingerprint} for name, one in entries.items()}
        of_run = {"run": self.run, "step": self.step, "preset": self.preset}
        return {"checkpoint": None} | of_run | {"weights": "ema", "codecs": codecs}


def sample_windows(sampler: Sampler, task: str, held: Sequence[Held], how: SamplingSettings) -> list[Part]:
    """Sample one task for some windows, as `omniges generate` does."""
    ticks, targets = held[0].window.ticks, TASKS[task].targets
    timelines = [
        Timeline(ticks, {name: one.ticks_of(name) for name in TASKS[task].conditions}, one.speaker, one.number)
        for one in held
    ]
    windows = WindowSettings(window_ticks=ticks, overlap_ticks=0, apart=True)
    parts = sampler.sample(timelines, targets, VALIDATION_SEED, windows, how)
    return sorted(parts, key=lambda part: part.number)  # a part is whole, for each timeline is one window


@dataclass(frozen=True, slots=True)
class WindowResults:
    """Makes the results of windows, as `generate` has them, of what the model gave."""

    samples: WindowFolder
    windows: Sequence[Window]
    sampler: Sampler

    def of(self, task: str, number: int, made: Any, voice: VoiceOf | None = None) -> Results:
        """The results of a window; without a voice, which takes long, there is no waveform.

        Raises DataError for what is no motion, or NaN.
        """
        window = self.windows[number]
        body = Body.of_sample(self.samples.sample(self.samples.row(window.name)))
        spans = [(0, window.ticks)] if self.sampler.codecs.untimed_text else None
        targets, seed = TASKS[task].targets, VALIDATION_SEED + number
        results = Results(targets, body, self.sampler.slots, voice, seed, None, spans)
        results.append({name: [made] if isinstance(made, SpokenText) else made for name in targets})
        return results

    def kept(self, made: Made) -> Kept:
        """Encode the files of a result, with a waveform, as `omniges generate` would write them."""
        if made.why_not is not None:
            return Kept(made.task, made.number, {}, {}, {}, (), None, made.why_not)
        results = self.of(made.task, made.number, made.made, _VOICE)
        contents, kinds = {}, {}
        for file in results.files():
            contents[file.ending], kinds[file.ending] = b"".join(file.parts), file.kind
        said = " ".join(one.word for one in results.spoken()[0]) if "text" in results.sinks else None
        return Kept(made.task, made.number, contents, kinds, results.measures, results.remarks, said)


def make_result(task: str, one: Held, part: Part, results: WindowResults) -> Made:
    """Decode what was sampled of a window, and make sure that it can be scored and written."""
    try:
        ((_, made),) = part.arrays().items()
        made = made[0] if isinstance(made, list) else made  # the text of the one window
        found = results.of(task, one.number, made)
    except DataError as error:  # early on a model may give what is no rotation, or no number: counted, and said
        return Made(task, one.number, why_not=str(error).partition(": the model")[0])
    if "gesture" in found.sinks and not np.isfinite(made).all():  # face and root, which no rotation depends on
        return Made(task, one.number, why_not="generated motion: finite channels expected, found others")
    return Made(task, one.number, made, found.measures)


# --- to other ranks and back


def pack(items: Sequence[tuple[Mapping[str, Any], Sequence[bytes]]]) -> bytes:
    """Heads, which are JSON, and their parts as bytes for other ranks: a line of JSON, then the parts."""
    heads = [{"head": head, "sizes": [len(part) for part in parts]} for head, parts in items]
    line = json.dumps(heads).encode()
    return b"".join([struct.pack("<q", len(line)), line, *(part for _, parts in items for part in parts)])


def unpack(data: bytes) -> list[tuple[dict[str, Any], list[bytes]]]:
    """The inverse of `pack`."""
    (size,) = struct.unpack_from("<q", data)
    at = 8 + size
    items = []
    for head in json.loads(data[8:at]):
        parts = []
        for length in head["sizes"]:
            parts.append(data[at : at + length])
            at += length
        items.append((head["head"], parts))
    return items


# --- records and scores


def record_of(kept: Kept, window: Window, by: MadeBy) -> GeneratedRecord:
    """The record of a result, as `generate` writes it, with where the window comes from."""
    members = _MEMBERS | {stream: entry.member for stream, entry in by.codecs.entries.items()}
    inputs = [
        {
            "stream": stream,
            "path": f"{window.shard}#{window.row.key}.{members[stream]}",
            "sha256": window.row.members[members[stream]].sha256,
            "remarks": [f"{window.ticks} ticks from tick {window.start_tick}"],
        }
        for stream in TASKS[kept.task].conditions
    ]
    return GeneratedRecord(
        omniges=__version__,
        task=kept.task,
        name=window.name,
        source=window.provenance(),
        sample=kept.number,
        ticks=window.ticks,
        seconds=window.ticks / TICKS_PER_SECOND,
        files={
            kept.kinds[ending]: {"path": f"{window.name}{ending}", "sha256": sha256_hex(content)}
            for ending, content in kept.contents.items()
        },
        inputs=tuple(inputs),
        model=by.model(),
        settings=asdict(by.sampling)
        | {
            "seed": VALIDATION_SEED,
            "window_ticks": window.ticks,
            "overlap_ticks": 0,
            "speaker": window.row.speaker,
            "voice": _VOICE.name if ".wav" in kept.contents else None,
            "quantised": by.codecs.through_codes(TASKS[kept.task].targets),
        },
        seams_s=(),
        measures=kept.measures,
        remarks=tuple(kept.remarks),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _ArrayResult(Result):
    """A result as the model made it, of which there are no files."""

    results: Callable[[], Results]  # made when it is scored, so that not all of them wait on the disk

    def motion(self) -> MotionArrays:
        return self.results().motion()

    def mel(self) -> tuple[npt.NDArray[np.float32], str]:
        return self.results().mel(), "the model's mel"

    def spoken(self) -> tuple[list[WordInterval], bool]:
        return self.results().spoken()


def score_task(made: Sequence[Made], results: WindowResults, train: Callable[[], TrainSplit | None]) -> Scored:
    """Scores of one task's results, by the functions of `omniges evaluate`; windows are its recordings.

    ``train`` is asked for where gesture is scored. Results that are no motion or no sound are left out and counted.
    """
    task, samples = made[0].task, results.samples
    (target,) = TASKS[task].targets
    lost = Counter(one.why_not for one in made if one.why_not is not None)
    found = []
    for one in made:
        if one.why_not is None:
            row = samples.row(results.windows[one.number].name)
            found.append(
                _ArrayResult(
                    task=task,
                    row=row,
                    name=row.key,
                    seconds=row.seconds,
                    invalid_rotations=one.measures.get("invalid_rotations"),
                    results=partial(results.of, task, one.number, one.made),
                )
            )
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
