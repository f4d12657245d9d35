"""`generate`: inputs through a checkpoint's model to files, any number and any length, whole results or none."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from omniges import __version__
from omniges.errors import DataError, UsageFault
from omniges.features.timebase import TICKS_PER_SECOND
from omniges.generation.inputs import Body, Input, PlannedInput, planned_inputs, read_body
from omniges.generation.long_form import Timeline, WindowSettings, window_borders, window_spans
from omniges.generation.record import GeneratedRecord, read_record
from omniges.generation.sampler import Codecs, Loaded, Sampler, load
from omniges.generation.settings import GenerateSettings, GenerateSummary, task_named
from omniges.generation.vocoder import VoiceOf, chosen_voice
from omniges.generation.writers import NEUTRAL, Results, result_picture
from omniges.model.spec import ModelIdentity
from omniges.model.streams import StreamName
from omniges.model.tasks import TASKS
from omniges.storage.atomic import PendingGroup, make_folder
from omniges.storage.canonical_json import file_sha256

_MOST_WINDOWS: Final = 32
"""Windows of all results that are worked on together."""

_ENDINGS: Final[Mapping[StreamName, tuple[str, ...]]] = {
    "gesture": (".npz",),
    "audio": (".wav", ".mel.npy"),
    "text": (".TextGrid", ".txt"),
}

Count = Callable[[float, float], None]
Item = TypeVar("Item")


def generate(
    settings: GenerateSettings, count: Count = lambda _done, _total: None, codecs: Codecs | None = None
) -> GenerateSummary:
    """Make all results; `count` is told how many seconds are made of how many.

    The latter are estimated from the inputs that were read so far. `codecs`: those that `codecs_of` gives for these
    settings, where somebody has loaded some of them already.

    Raises UsageFault, DataError or EnvironmentFault; results that were written before are whole.
    """
    began = time.monotonic()
    task = task_named(settings.task)
    loaded = load(settings.checkpoint, settings.weights)
    loaded.require_trained(task)
    voice = chosen_voice(settings.vocoder, used="audio" in TASKS[task].targets)
    codecs = codecs or codecs_of(settings, loaded.identity)
    sampler = Sampler(loaded.model, loaded.identity, codecs)
    windows = sampler.windows(settings.overlap_ticks, task)
    sampler.speaker_number(settings.speaker, named=True)
    body = None if settings.body is None else read_body(settings.body)  # None: that of the input, else the average one
    recorded = TASKS[task].targets if settings.pictures else ()
    codecs.require([TASKS[task]], settings.sources)
    if settings.continuous and codecs.through_codes(TASKS[task].targets) is None:
        raise UsageFault("--continuous: latents of gesture-rvqvae to decode expected, found none: leave it away")
    inputs = planned_inputs(TASKS[task].conditions, settings.sources, sampler.reading(settings.out, recorded))
    _refuse_taken(settings, task, inputs)
    new = not settings.out.exists()
    make_folder(settings.out)
    job = _Job(settings, task, loaded, sampler, windows, body, voice)
    progress = _Progress(len(inputs), settings.num_samples, count)
    records: list[Path] = []
    remarks: dict[str, None] = {}
    made_ticks = 0
    try:
        read = (plan.load() for plan in inputs)
        for group in _groups(read, lambda item: settings.num_samples * len(window_spans(item.ticks, windows))):
            progress.begin(group)
            for result in job.results(group, progress.worked):
                records.append(result.path)
                remarks |= dict.fromkeys(result.record.remarks)
                made_ticks += result.record.ticks
    finally:
        if new and not records:
            with contextlib.suppress(OSError):  # something is in it after all
                settings.out.rmdir()
    elapsed = time.monotonic() - began
    return GenerateSummary(settings.out, tuple(records), made_ticks / TICKS_PER_SECOND, elapsed, tuple(remarks))


def codecs_of(settings: GenerateSettings, identity: ModelIdentity) -> Codecs:
    """The codecs of a model, from the folders that the settings name; none is loaded yet."""
    return Codecs(identity.codecs, settings.codecs, settings.t5_tokenizer, quantised=not settings.continuous)


class _Progress:
    """Seconds made, and how many there will be if inputs that were not read yet are as long as those that were."""

    def __init__(self, inputs: int, samples: int, count: Count) -> None:
        self._inputs, self._samples, self._count = inputs, samples, count
        self._read = 0
        self._read_ticks = 0
        self._worked_ticks = 0.0

    def begin(self, group: Sequence[Input]) -> None:
        """Some inputs were read."""
        self._read += len(group)
        self._read_ticks += sum(item.ticks for item in group)
        self.worked(0.0)

    def worked(self, ticks: float) -> None:
        """A share of the work of so many ticks was done."""
        self._worked_ticks += ticks
        total = self._read_ticks / self._read * self._inputs * self._samples
        self._count(self._worked_ticks / TICKS_PER_SECOND, total / TICKS_PER_SECOND)


def _names(name: str, samples: int) -> list[str]:
    return [name] if samples == 1 else [f"{name}-{k + 1}" for k in range(samples)]


def _refuse_taken(settings: GenerateSettings, task: str, inputs: Sequence[PlannedInput]) -> None:
    """No result may take the place of another, of a person's file, or of its own input."""
    names = [name for plan in inputs for name in _names(plan.name, settings.num_samples)]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)[:1]
    if twice:
        raise UsageFault(f"two inputs are called {twice[0]}, and so would be their results: rename one of the files")
    endings = [ending for target in TASKS[task].targets for ending in _ENDINGS[target]]
    endings += [".png"] if settings.pictures else []
    found = [
        path for name in names for ending in (".json", *endings) if (path := settings.out / f"{name}{ending}").exists()
    ]
    given = [Path(file) for stream in TASKS[task].conditions for file in settings.sources.files(stream)]
    own = [path for path in found if any(file.exists() and path.samefile(file) for file in given)]
    if own:
        raise UsageFault(
            f"-o {settings.out}: {own[0].name} is an input, which its result would replace: choose another"
        )
    if found and not settings.overwrite:
        more = f" and {len(found) - 1} more files" if len(found) > 1 else ""
        raise UsageFault(
            f"-o {settings.out}: {found[0].name}{more} would be replaced: choose another folder, or --overwrite"
        )
    for path in found:
        if path.suffix == ".json":
            _earlier_record(path)  # refused before minutes of sampling, not behind them


def _earlier_record(path: Path) -> GeneratedRecord:
    """The record of a result that --overwrite replaces; UsageFault for a file that is none, which stays."""
    try:
        return read_record(path)
    except DataError as error:
        raise UsageFault(f"--overwrite: {error.args[0].partition(': generate it')[0]}: move it away") from error


def _groups(items: Iterable[Item], windows_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    """What is worked on together, read when its turn comes: as many as have at most so many windows, or one."""
    group: list[Item] = []
    total = 0
    for item in items:
        count = windows_of(item)
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
        sampler: Sampler,
        windows: WindowSettings,
        body: Body | None,
        voice: VoiceOf,
    ) -> None:
        self._settings, self._task, self._loaded, self._sampler = settings, task, loaded, sampler
        self._windows, self._body, self._voice = windows, body, voice
        shards = settings.sources.shards if settings.sources.from_shards else None
        self._known = None if shards is None else loaded.knows(shards)

    def results(self, group: Sequence[Input], worked: Callable[[float], None]) -> Iterator[_Result]:
        """Make and write the results of some inputs."""
        settings, asked = self._settings, list[tuple[Input, Timeline]]()
        for read in group:
            conditions = self._sampler.codecs.conditions(read, self._windows)  # once for all samples: it may take time
            item = replace(read, remarks=(*read.remarks, *conditions.remarks))
            speaker = self._sampler.speaker_number(settings.speaker or item.speaker, named=settings.speaker is not None)
            asked += [(item, Timeline(item.ticks, conditions.of, speaker, k)) for k in range(settings.num_samples)]
        for some in _groups(asked, lambda one: len(window_spans(one[1].ticks, self._windows))):
            yield from self._sampled(some, worked)

    def _sampled(self, asked: Sequence[tuple[Input, Timeline]], worked: Callable[[float], None]) -> Iterator[_Result]:
        """Make and write results side by side; each has files open until it is whole."""
        settings, targets = self._settings, TASKS[self._task].targets
        waiting: dict[int, Results] = {}
        timelines = [timeline for _, timeline in asked]
        for part in self._sampler.sample(timelines, targets, settings.seed, self._windows, settings.sampling, worked):
            item, timeline = asked[part.number]
            if part.number not in waiting:
                seed, spans = (
                    settings.seed + timeline.sample,
                    self._sampler.codecs.windows_of_text(item.ticks, self._windows),
                )
                waiting[part.number] = Results(
                    targets, self._of_body(item), self._sampler.slots, self._voice, seed, settings.out, spans
                )
            waiting[part.number].append(part.arrays())
            if part.last:
                yield self._write(item, timeline.sample, waiting.pop(part.number))

    def _of_body(self, item: Input) -> Body:
        found = self._body or item.body or NEUTRAL
        start = self._settings.start_xz
        return found if start is None else replace(found, start_xz=np.array(start))

    def _write(self, item: Input, sample: int, results: Results) -> _Result:
        """All files of a result, its record last; none of them where something comes between."""
        settings = self._settings
        name = _names(item.name, settings.num_samples)[sample]
        path = settings.out / f"{name}.json"
        if settings.overwrite:
            _take_away(path)
        with PendingGroup() as group:
            entries: dict[str, dict[str, str]] = {}

            def write(kind: str, ending: str, parts: Any) -> None:
                file = group.open(settings.out / f"{name}{ending}")
                for part in parts:
                    file.write(part)
                entries[kind] = {"path": file.path.name, "sha256": file.sha256}

            for made in results.files():
                write(made.kind, made.ending, made.parts)
            if settings.pictures:
                picture = result_picture(name, self._task, item, results, self._sampler.slots, self._of_body(item))
                write("picture", ".png", [picture])
            record = self._record(name, item, sample, results, entries)
            group.open(path).write(record.document())
        return _Result(path, record)

    def _record(
        self, name: str, item: Input, sample: int, results: Results, entries: Mapping[str, Mapping[str, str]]
    ) -> GeneratedRecord:
        settings, loaded, windows = self._settings, self._loaded, self._windows
        borders = window_borders(window_spans(item.ticks, windows))
        chosen: dict[str, Any] = asdict(settings.sampling) | {
            "seed": settings.seed,
            "window_ticks": windows.window_ticks,
            "overlap_ticks": windows.overlap_ticks,
            "speaker": settings.speaker or item.speaker,
            "body": None if settings.body is None else str(settings.body),
            "start_xz": None if settings.start_xz is None else list(settings.start_xz),
            "voice": self._voice.name if "audio" in results.sinks else None,
            "quantised": self._sampler.codecs.through_codes(TASKS[self._task].targets),
        }
        inputs = [
            {"stream": g.stream, "path": g.path, "sha256": g.sha256, "remarks": list(g.remarks)} for g in item.given
        ]
        of_inputs = itertools.chain.from_iterable(given.remarks for given in item.given)
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
            model=loaded.facts(),
            settings=chosen,
            seams_s=tuple(tick / TICKS_PER_SECOND for tick in borders),
            measures=results.measures,
            remarks=(*item.remarks, *self._remarks_on(item), *of_inputs, *results.remarks),
        )

    def _remarks_on(self, item: Input) -> Iterator[str]:
        """What a person should know of an input to this model."""
        if item.source is not None and self._known is False:
            yield "the sample is of other shards than those the model was trained on"
        strange = item.speaker is not None and item.speaker not in self._loaded.identity.speakers
        if self._settings.speaker is None and strange:
            yield f"the model does not know the speaker {item.speaker}: an unknown one was taken"


def _take_away(path: Path) -> None:
    """Remove an earlier result: its record first, then those of its files that are still as they were written."""
    if not path.exists():
        return
    record = _earlier_record(path)
    path.unlink()
    for entry in record.files.values():
        file = path.with_name(os.path.basename(entry["path"]))
        if file.is_file() and file_sha256(file) == entry["sha256"]:
            file.unlink()
