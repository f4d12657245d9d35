"""`generate`: inputs through a checkpoint's model to files, any number and any length, whole results or none."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from omniges import __version__
from omniges.errors import UsageFault
from omniges.features.timebase import TICKS_PER_SECOND
from omniges.publish import make_folder, publish_bytes
from omniges.shards.schema import sha256_hex
from omniges.trainer.checkpoint import SavedCheckpoint
from omniges.trainer.flow import FlowModel
from omniges.trainer.generate.codecs import CodecFolders
from omniges.trainer.generate.inputs import Body, read_gesture
from omniges.trainer.generate.outputs import NEUTRAL, Files, picture, render
from omniges.trainer.generate.sources import Input, Reading, Sources, planned_inputs
from omniges.trainer.generate.windows import Timeline, WindowSettings, sample_timelines, window_starts
from omniges.trainer.generated import GeneratedRecord
from omniges.trainer.resuming import find_checkpoint
from omniges.trainer.sampling import SamplingSettings
from omniges.trainer.saved import ModelIdentity, load_model
from omniges.trainer.slots import SlotCodec
from omniges.trainer.streams import StreamName
from omniges.trainer.tasks import TASKS

__all__ = ["GenerateSettings", "GenerateSummary", "Loaded", "generate", "load", "task_named"]

_LETTERS: Final[Mapping[str, StreamName]] = {"t": "text", "a": "audio", "g": "gesture"}
_MOST_WINDOWS: Final = 32
"""Windows of all inputs that are worked on together."""

Weights = Literal["ema", "last"]


def task_named(name: str) -> str:
    """The task of a name such as a2g, at2g (letters in any order) or unconditional; raises UsageFault for no task."""
    if name in {"unconditional", "joint"}:
        return "joint"
    given, _, made = name.partition("2")
    for known, task in TASKS.items():
        letters = [sorted(key for key, stream in _LETTERS.items() if stream in side) for side in _sides(task)]
        if letters == [sorted(given), sorted(made)] and task.conditions:
            return known
    raise UsageFault(
        f"--task {name}: expected one of {', '.join(known for known in TASKS if known != 'joint')} or unconditional "
        "(t text, a audio, g gesture)"
    )


def _sides(task: Any) -> tuple[tuple[StreamName, ...], tuple[StreamName, ...]]:
    return task.conditions, task.targets


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateSettings:
    """All that `omniges generate` can be told."""

    checkpoint: Path
    task: str
    out: Path
    sources: Sources
    codecs: tuple[tuple[str, Path], ...] = ()  # name and folder
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    overlap_ticks: int | None = None  # None: a quarter of the model's window
    seed: int = 0
    num_samples: int = 1
    speaker: str | None = None  # None: that of a sample, else unknown
    body: Path | None = None  # an NPZ whose betas, gender and start are taken
    start_xz: tuple[float, float] | None = None
    weights: Weights = "ema"
    pictures: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be, by the name of the flag."""
        if self.num_samples < 1:
            raise UsageFault(f"--num-samples {self.num_samples}: at least 1 expected")
        if not 0 <= self.seed < 2**32:
            raise UsageFault(f"--seed {self.seed}: from 0 to {2**32 - 1} expected")


@dataclass(frozen=True, slots=True)
class GenerateSummary:
    """What was made."""

    folder: Path
    records: tuple[Path, ...]
    generated_s: float
    elapsed_s: float
    remarks: int

    @property
    def lines(self) -> list[str]:
        """For a person."""
        speed = self.generated_s / self.elapsed_s if self.elapsed_s else 0.0
        pace = f"{self.elapsed_s:.1f} s, {speed:.1f} times real time"
        results = "result" if len(self.records) == 1 else "results"
        found = [f"{len(self.records)} {results}, {self.generated_s:.1f} s, in {self.folder}: {pace}"]
        if self.remarks:
            found.append(f"{self.remarks} remarks on inputs and results: see the JSON beside each")
        return found


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint's model, ready to sample from."""

    model: FlowModel
    identity: ModelIdentity
    codec: SlotCodec
    saved: SavedCheckpoint
    weights: Weights

    def speaker_number(self, name: str | None, *, named: bool) -> int:
        """The number of a speaker, 0 for None and for one who was not in training unless `named` by a person."""
        if name is None:
            return 0
        if name in self.identity.speakers:
            return 1 + self.identity.speakers.index(name)
        if named:
            some = ", ".join(self.identity.speakers[:5])
            more = f" and {len(self.identity.speakers) - 5} more" if len(self.identity.speakers) > 5 else ""
            raise UsageFault(f"--speaker {name}: the model knows {some}{more}")
        return 0


def load(checkpoint: Path, weights: Weights = "ema") -> Loaded:
    """The model of a checkpoint or run, on the GPU where there is one. Raises UsageFault or DataError."""
    saved = find_checkpoint(checkpoint)
    model, identity = load_model(saved, weights)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Loaded(model.to(device), identity, SlotCodec(identity.tokenizer), saved, weights)


def generate(
    settings: GenerateSettings, count: Callable[[int, int], None] = lambda _done, _total: None
) -> GenerateSummary:
    """Make all results; `count` is told how many seconds of how many are made.

    Raises UsageFault, DataError or EnvironmentFault; results that were written before are whole.
    """
    began = time.monotonic()
    task = task_named(settings.task)
    loaded = load(settings.checkpoint, settings.weights)
    windows = _windows(loaded.identity, settings.overlap_ticks)
    codecs = CodecFolders(loaded.identity.codecs, settings.codecs)
    loaded.speaker_number(settings.speaker, named=True)
    body = _body(settings)
    codecs.require(TASKS[task], settings.sources)
    identity = loaded.identity
    reading = Reading(loaded.codec, identity.tick_multiple, identity.loudness, identity.codecs)
    inputs = planned_inputs(TASKS[task].conditions, settings.sources, reading)
    names = [name for plan in inputs for name in _names(plan.name, settings.num_samples)]
    _refuse_taken(settings, names)
    make_folder(settings.out)
    job = _Job(settings, task, loaded, windows, body, codecs)
    records: list[Path] = []
    remarks = made_ticks = 0
    for group in _groups((plan.load() for plan in inputs), windows, settings.num_samples):
        for result in job.results(
            group, lambda ticks: count(ticks // TICKS_PER_SECOND, job.expected // TICKS_PER_SECOND)
        ):
            records.append(result.path)
            remarks += len(result.record.remarks)
            made_ticks += result.record.ticks
    elapsed = time.monotonic() - began
    return GenerateSummary(settings.out, tuple(records), made_ticks / TICKS_PER_SECOND, elapsed, remarks)


def _windows(identity: ModelIdentity, overlap_ticks: int | None) -> WindowSettings:
    """Windows as the model was trained on; overlaps of a quarter unless told otherwise."""
    window, multiple = identity.window_ticks, identity.tick_multiple
    quarter = window // 4 - window // 4 % multiple
    overlap = quarter if overlap_ticks is None else overlap_ticks
    return WindowSettings(window_ticks=window, overlap_ticks=overlap, tick_multiple=multiple)


def _names(name: str, samples: int) -> list[str]:
    return [name] if samples == 1 else [f"{name}-{k + 1}" for k in range(samples)]


def _refuse_taken(settings: GenerateSettings, names: Sequence[str]) -> None:
    """No result may take the place of another."""
    twice = sorted({name for name in names if names.count(name) > 1})[:1]
    if twice:
        raise UsageFault(f"two inputs are called {twice[0]}, and so would be their results: rename one of the files")
    taken = [name for name in names if (settings.out / f"{name}.json").exists()]
    if taken and not settings.overwrite:
        more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        raise UsageFault(f"-o {settings.out}: {taken[0]}.json{more} is there already: choose another or --overwrite")


def _body(settings: GenerateSettings) -> Body | None:
    """The body that was asked for; None: that of the input, else the average one."""
    found = None if settings.body is None else read_gesture(settings.body).body
    if settings.start_xz is not None:
        found = replace(found or NEUTRAL, start_xz=np.array(settings.start_xz))
    return found


def _groups(inputs: Iterator[Input], windows: WindowSettings, samples: int) -> Iterator[list[Input]]:
    """Inputs that are worked on together, read when their turn comes."""
    group: list[Input] = []
    total = 0
    for item in inputs:
        count = samples * len(window_starts(item.ticks, min(item.ticks, windows.window_ticks), windows.overlap_ticks))
        if group and total + count > _MOST_WINDOWS:
            yield group
            group, total = [], 0
        group.append(item)
        total += count
    if group:
        yield group


@dataclass(frozen=True, slots=True)
class _Result:
    path: Path
    record: GeneratedRecord


class _Job:
    """One task with one model."""

    def __init__(
        self,
        settings: GenerateSettings,
        task: str,
        loaded: Loaded,
        windows: WindowSettings,
        body: Body | None,
        codecs: CodecFolders,
    ) -> None:
        self._settings, self._task, self._loaded = settings, task, loaded
        self._windows, self._body, self._codecs = windows, body, codecs
        self.expected = 0  # ticks of all inputs read so far
        self._made = 0

    def results(self, group: Sequence[Input], count: Callable[[int], None]) -> Iterator[_Result]:
        """Make and write the results of some inputs."""
        asked = [(item, sample) for item in group for sample in range(self._settings.num_samples)]
        self.expected += sum(item.ticks for item, _ in asked)
        timelines: list[Timeline] = []
        for item in group:
            conditions = self._conditions(item)  # once for all samples: a codec may take its time
            timelines += [self._timeline(item, sample, conditions) for sample in range(self._settings.num_samples)]
        pieces: dict[int, list[Mapping[StreamName, npt.NDArray[Any]]]] = {}
        left = [timeline.ticks for timeline in timelines]
        targets = TASKS[self._task].targets
        for number, arrays, ticks in sample_timelines(
            self._loaded.model, timelines, targets, self._settings.seed, self._windows, self._settings.sampling
        ):
            pieces.setdefault(number, []).append({name: array.cpu().numpy() for name, array in arrays.items()})
            left[number] -= ticks
            self._made += ticks
            count(self._made)
            if not left[number]:
                parts = pieces.pop(number)
                made = {name: np.concatenate([part[name] for part in parts]) for name in targets}
                yield self._write(*asked[number], made)

    def _conditions(self, item: Input) -> dict[StreamName, Tensor]:
        """What the model takes of an input, by stream."""
        arrays = {given.stream: self._codecs.model_array(given, item.ticks) for given in item.given}
        return {stream: torch.from_numpy(np.array(array)) for stream, array in arrays.items()}

    def _timeline(self, item: Input, sample: int, conditions: Mapping[StreamName, Tensor]) -> Timeline:
        speaker = self._settings.speaker
        number = self._loaded.speaker_number(speaker or item.speaker, named=speaker is not None)
        return Timeline(item.ticks, conditions, number, sample)

    def _write(self, item: Input, sample: int, made: Mapping[StreamName, npt.NDArray[Any]]) -> _Result:
        """All files of a result, its record last."""
        settings = self._settings
        made = {stream: self._codecs.decoded(stream, array) for stream, array in made.items()}
        body = self._body or item.body or NEUTRAL
        name = _names(item.name, settings.num_samples)[sample]
        files = render(made, item.ticks, body, self._loaded.codec, settings.seed + sample)
        if settings.pictures:
            files.add("picture", ".png", self._picture(name, item, made, body))
        entries = {}
        for ending, content in files.contents.items():
            publish_bytes(settings.out / f"{name}{ending}", content)
            entries[files.kinds[ending]] = {"path": f"{name}{ending}", "sha256": sha256_hex(content)}
        record = self._record(name, item, sample, files, entries)
        path = settings.out / f"{name}.json"
        publish_bytes(path, record.document())
        return _Result(path, record)

    def _record(
        self, name: str, item: Input, sample: int, files: Files, entries: Mapping[str, Mapping[str, str]]
    ) -> GeneratedRecord:
        settings, saved, windows = self._settings, self._loaded.saved, self._windows
        starts = window_starts(item.ticks, min(item.ticks, windows.window_ticks), windows.overlap_ticks)
        chosen: dict[str, Any] = asdict(settings.sampling) | {
            "seed": settings.seed,
            "window_ticks": windows.window_ticks,
            "overlap_ticks": windows.overlap_ticks,
            "speaker": settings.speaker or item.speaker,
            "body": None if settings.body is None else str(settings.body),
        }
        inputs = [
            {"stream": g.stream, "path": g.path, "sha256": g.sha256, "remarks": list(g.remarks)} for g in item.given
        ]
        return GeneratedRecord(
            omniges=__version__,
            task=self._task,
            name=name,
            source=item.source,
            sample=sample,
            ticks=item.ticks,
            seconds=item.ticks / TICKS_PER_SECOND,
            files=entries,
            inputs=tuple(inputs),
            model={
                "checkpoint": str(saved.path),
                "step": saved.step,
                "preset": self._loaded.identity.preset,
                "weights": self._loaded.weights,
                "sha256": {file: entry["sha256"] for file, entry in saved.files.items()},
                "codecs": {
                    stream: {"name": entry.name, "fingerprint": entry.fingerprint}
                    for stream, entry in self._loaded.identity.codecs.items()
                },
            },
            settings=chosen,
            seams_s=tuple(start / TICKS_PER_SECOND for start in starts[1:]),
            measures=files.measures,
            remarks=(*item.remarks, *itertools.chain(*(given.remarks for given in item.given)), *files.remarks),
        )

    def _picture(self, name: str, item: Input, made: Mapping[StreamName, npt.NDArray[Any]], body: Body) -> bytes:
        shown = {given.stream: given.array for given in item.given} | dict(made)
        words: Sequence[Mapping[str, Any]] = ()
        if "text" in made:
            words = [word.as_json() for word in self._loaded.codec.decode(np.asarray(made["text"], np.int32))]
        for given in item.given:
            words = given.words or words
        return picture(f"{name}, {self._task} (generated: {', '.join(made)})", shown, words, body)
