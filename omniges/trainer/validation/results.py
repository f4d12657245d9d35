"""Samples of the held-out windows as the files that `generate` writes, in memory, and their scores by `evaluate`."""

from __future__ import annotations

import io
import json
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from omniges import __version__
from omniges.errors import DataError, RecordingFault
from omniges.features.gesture import JOINT_NAMES
from omniges.features.timebase import FRAMES_PER_TICK, TICKS_PER_SECOND
from omniges.recordings.textgrid import WordInterval, decode_words
from omniges.shards.schema import sha256_hex
from omniges.trainer.evaluate.figures import Figure, Resampling, absent
from omniges.trainer.evaluate.gesture import GestureMeasures, score_gesture
from omniges.trainer.evaluate.pairs import Pair
from omniges.trainer.evaluate.speech import score_speech
from omniges.trainer.evaluate.text import score_text
from omniges.trainer.flow import FlowModel
from omniges.trainer.generate.inputs import Body
from omniges.trainer.generate.outputs import Files, add_waveform, render
from omniges.trainer.generate.windows import Timeline, WindowSettings, sample_timelines
from omniges.trainer.generated import GeneratedRecord
from omniges.trainer.metrics.descriptor import describe
from omniges.trainer.sampling import SamplingSettings
from omniges.trainer.slots import SlotCodec
from omniges.trainer.streams import StreamName
from omniges.trainer.tasks import TASKS
from omniges.trainer.validation.losses import VALIDATION_SEED
from omniges.trainer.validation.windows import Window, WindowFolder

__all__ = [
    "Held",
    "Made",
    "MadeBy",
    "make_results",
    "pack",
    "record_of",
    "score_task",
    "unpack",
    "with_waveform",
    "words_of",
]

_RESAMPLES: Final = 200
_LEAST_FRAMES: Final = 32  # of the built-in descriptor
_MEMBERS: Final = {"text": "words.json", "gesture": "gesture.npy", "audio": "mel.npy"}


@dataclass(frozen=True, slots=True)
class Held:
    """A held-out window, read."""

    number: int  # among all that are validated on
    window: Window
    arrays: Mapping[StreamName, npt.NDArray[Any]]  # as shards hold them, text as slots
    speaker: int  # 0: unknown to the model


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
        files = Files()
        files.add("picture", ".png", png)
        return cls("", number, files)


@dataclass(frozen=True, slots=True)
class MadeBy:
    """What made results, for their records."""

    run: str
    step: int
    preset: str
    sampling: SamplingSettings


def make_results(
    model: FlowModel, task: str, held: Sequence[Held], samples: WindowFolder, codec: SlotCodec, how: SamplingSettings
) -> list[Made]:
    """Sample one task for some windows, as `omniges generate` does; without waveforms, which take long."""
    ticks = held[0].window.ticks
    timelines = [
        Timeline(
            ticks,
            {name: torch.from_numpy(np.array(one.arrays[name])) for name in TASKS[task].conditions},
            one.speaker,
            one.number,
        )
        for one in held
    ]
    windows = WindowSettings(window_ticks=ticks, overlap_ticks=0)
    found = []
    for place, arrays, _ in sample_timelines(model, timelines, TASKS[task].targets, VALIDATION_SEED, windows, how):
        one = held[place]
        body = Body.of_sample(samples.sample(samples.row(one.window.name)))
        made = {name: array.cpu().numpy() for name, array in arrays.items()}
        try:
            files = render(made, ticks, body, codec, seed=None)
        except DataError as error:  # early on a model may give what no rotation is: counted, and said
            found.append(Made(task, one.number, Files(), str(error).partition(": the model")[0]))
        else:
            found.append(Made(task, one.number, files))
    return sorted(found, key=lambda each: each.number)


def with_waveform(made: Made) -> Made:
    """A result with the waveform of its mel, if it has one."""
    mel = made.files.contents.get(".mel.npy")
    if mel is not None:
        add_waveform(made.files, np.load(io.BytesIO(mel), allow_pickle=False), VALIDATION_SEED)
    return made


def words_of(made: Made) -> list[WordInterval]:
    """The words of a result that is text."""
    try:
        return list(decode_words(made.files.contents[".TextGrid"]).words)
    except RecordingFault as fault:
        if fault.problem.code == "textgrid-no-words":
            return []  # a model may say nothing
        raise


# --- to other ranks and back


def pack(results: Sequence[Made]) -> bytes:
    """Results as bytes for other ranks: a line of JSON, then the files."""
    heads = []
    contents: list[bytes] = []
    for one in results:
        sizes = {ending: len(content) for ending, content in one.files.contents.items()}
        head = {"task": one.task, "number": one.number, "why_not": one.why_not, "sizes": sizes}
        heads.append(head | {"kinds": one.files.kinds, "measures": one.files.measures, "remarks": one.files.remarks})
        contents += one.files.contents.values()
    line = json.dumps(heads).encode()
    return b"".join([struct.pack("<q", len(line)), line, *contents])


def unpack(data: bytes) -> list[Made]:
    """The inverse of `pack`."""
    (size,) = struct.unpack_from("<q", data)
    at = 8 + size
    results = []
    for head in json.loads(data[8:at]):
        files = Files()
        for ending, length in head["sizes"].items():
            files.add(head["kinds"][ending], ending, data[at : at + length])
            at += length
        files.measures, files.remarks = head["measures"], head["remarks"]
        results.append(Made(head["task"], head["number"], files, head["why_not"]))
    return results


# --- records and scores


def record_of(made: Made, window: Window, by: MadeBy) -> GeneratedRecord:
    """The record of a result, as `generate` writes it, with where the window comes from."""
    inputs = [
        {
            "stream": stream,
            "path": f"{window.shard}#{window.row.key}.{_MEMBERS[stream]}",
            "sha256": window.row.members[_MEMBERS[stream]].sha256,
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
        model={"checkpoint": None, "run": by.run, "step": by.step, "preset": by.preset, "weights": "ema"},
        settings=asdict(by.sampling) | {"seed": VALIDATION_SEED, "window_ticks": window.ticks, "overlap_ticks": 0},
        seams_s=(),
        measures=made.files.measures,
        remarks=tuple(made.files.remarks),
    )


@dataclass(frozen=True, slots=True)
class _InMemory(Pair):
    """A result whose files have not been written."""

    files: Files

    def _content(self, kind: str, ending: str) -> tuple[Path, bytes]:
        own = next(end for end, name in self.files.kinds.items() if name == kind)
        return Path(f"{self.name}{ending}"), self.files.contents[own]


def score_task(
    results: Sequence[Made],
    windows: Sequence[Window],
    samples: WindowFolder,
    by: MadeBy,
    measures: Callable[[], GestureMeasures],
) -> list[Figure]:
    """Figures of one task over its results, by the functions of `omniges evaluate`; windows are its clips.

    ``measures`` are asked for where gesture is scored. Results that are no motion are left out and counted.
    """
    task = results[0].task
    (target,) = TASKS[task].targets
    lost = Counter(one.why_not for one in results if one.why_not is not None)
    pairs = []
    for one in results:
        if one.why_not is None:
            window = windows[one.number]
            record = record_of(one, window, by)
            pairs.append(_InMemory(task, samples.row(window.name), Path(), window.name, record, one.files))
    how = Resampling(seed=0, resamples=_RESAMPLES)
    why_not = _unscorable(target, pairs, windows[0].ticks)
    if why_not is not None:
        return [absent(f"{target} metrics", "", "generated", why_not)]
    if target == "text":
        figures = score_text(pairs, samples, how)
    elif target == "audio":
        figures = score_speech(pairs, samples, how)
    else:
        figures = score_gesture(pairs, samples, measures(), how)
    figures = [one for one in figures if not one.metric.startswith("seams")]  # a window has none
    if not lost:
        return figures
    return [Figure(**(asdict(one) | {"left_out": dict(Counter(one.left_out) + lost)})) for one in figures]


def _unscorable(target: StreamName, pairs: Sequence[Pair], ticks: int) -> str | None:
    """Why there can be no figures at all."""
    if not pairs:
        return "no result is motion yet"
    frames = ticks * FRAMES_PER_TICK
    if target == "gesture" and frames < _LEAST_FRAMES:
        return f"windows of {frames} frames, of which the descriptor needs {_LEAST_FRAMES}"
    if target == "gesture" and len(describe(np.zeros((frames, len(JOINT_NAMES), 3)))) * len(pairs) < 2:
        return f"one window of {frames} frames, from which there is no distance between distributions"
    return None
