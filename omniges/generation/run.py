"""The command `generate`: read inputs, sample a checkpoint's model and write results as files.

Inputs may have any number and length. Each result is complete or absent.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from omniges import __version__
from omniges.errors import DataError, UsageFault
from omniges.features.timebase import TICKS_PER_SECOND
from omniges.generation.inputs import NEUTRAL, Body, Input, PlannedInput, planned_inputs, read_body
from omniges.generation.long_form import Timeline, WindowSettings, packed, window_borders, window_spans
from omniges.generation.records import FILE_ENDINGS, GeneratedRecord, read_record
from omniges.generation.sampler import Asked, Codecs, Loaded, Sampler, asked_values, load, shown_values, values_of
from omniges.generation.settings import GenerateSettings, GenerateSummary, task_named
from omniges.generation.vocoder import Vocoder, chosen_vocoder
from omniges.generation.writers import Results, result_picture
from omniges.model.spec import ModelIdentity
from omniges.model.tasks import TASKS
from omniges.progress import counted
from omniges.storage.atomic import PendingGroup, make_folder
from omniges.storage.files import file_sha256

_MAX_WINDOWS: Final = 32
"""Maximum number of windows that are generated together, over all results."""

Count = Callable[[float, float], None]
_Written = tuple[Path, GeneratedRecord]


def generate(
    settings: GenerateSettings,
    count: Count = lambda _done, _total: None,
    codecs: Codecs | None = None,
    beside: Sequence[str] = (),
    stale: Sequence[str] = (),
) -> GenerateSummary:
    """Run the command `generate`: read the inputs, sample the model and write all results.

    Args:
        settings: Settings of the command.
        count: Function that is called with the seconds generated so far and an estimate of the total.
        codecs: Result of `codecs_of`, if the caller uses it for several calls; None: create it.
        beside: Endings of files that the caller will write beside each result. Without ``overwrite``, such files must
            not exist.
        stale: Endings or names of files, such as videos, that show an old result and that the caller will not write
            again. If such a file exists beside a result, the result is not replaced, and UsageFault is raised.

    Returns:
        The summary.

    Raises:
        UsageFault: The settings do not fit each other, the model or the inputs, or a file would be replaced.
        DataError: An input or the checkpoint is damaged. Results that were written before the error are complete.
        EnvironmentFault: A file cannot be read or written, or a package is not installed.
    """
    began = time.monotonic()
    task = task_named(settings.task)
    loaded = load(settings.checkpoint, settings.weights)
    loaded.require_trained(task)
    settings = replace(settings, sampling=settings.sampling.for_task(TASKS[task], loaded.identity.guidance))
    vocoder = chosen_vocoder(settings.vocoder) if "audio" in TASKS[task].targets else None
    codecs = codecs or codecs_of(settings, loaded.identity)
    sampler = Sampler(loaded.model, loaded.identity, codecs)
    windows = sampler.windows(settings.overlap_ticks, task)
    sampler.speaker_number(settings.speaker, named=True)
    asked = asked_values(loaded.identity.conditions, settings.conditions, "--condition")
    body = None if settings.body is None else read_body(settings.body, settings.sources.motion_rate_hz)
    recorded = TASKS[task].targets if settings.png else ()
    codecs.require([TASKS[task]], settings.sources)
    if settings.continuous and codecs.through_codes(TASKS[task].targets) is None:
        raise UsageFault("--continuous: expected a target with a quantizing codec, found none; remove --continuous")
    inputs = planned_inputs(TASKS[task].conditions, settings.sources, sampler.reading(settings.output_dir, recorded))
    _refuse_taken(settings, task, inputs, beside, stale)
    new = not settings.output_dir.exists()
    make_folder(settings.output_dir)
    shards = settings.sources.shards if settings.sources.from_shards else None
    known = None if shards is None else loaded.knows(shards)
    job = _Job(settings, task, loaded, sampler, windows, body, vocoder, known, asked)
    progress = _Progress(len(inputs), settings.num_samples, count)
    records: list[Path] = []
    warnings: dict[str, None] = {}
    generated_ticks = 0

    def windows_of(item: Input) -> int:
        return settings.num_samples * len(window_spans(item.ticks, windows))

    try:
        read = (plan.load() for plan in inputs)  # each input is read when it is needed
        for group in packed(read, windows_of, _MAX_WINDOWS):
            progress.begin(group)
            for path, record in job.results(group, progress.worked):
                records.append(path)
                warnings |= dict.fromkeys(record.remarks)
                generated_ticks += record.ticks
    finally:
        if new and not records:
            with contextlib.suppress(OSError):  # the folder is not empty
                settings.output_dir.rmdir()
    elapsed = time.monotonic() - began
    return GenerateSummary(
        settings.output_dir, tuple(records), generated_ticks / TICKS_PER_SECOND, elapsed, tuple(warnings)
    )


def codecs_of(settings: GenerateSettings, identity: ModelIdentity) -> Codecs:
    """Return the codecs of a model without loading them.

    Args:
        settings: Settings with the folders of the codecs.
        identity: Identity of the model, with the entries of the model's codecs.

    Returns:
        The codecs.
    """
    return Codecs(identity.codecs, settings.codecs, settings.t5_tokenizer, quantised=not settings.continuous)


class _Progress:
    """Progress of a run: generated seconds, and an estimate of the total.

    The estimate assumes that unread inputs have the mean length of the inputs read so far.
    """

    def __init__(self, inputs: int, samples: int, count: Count) -> None:
        self._inputs, self._samples, self._count = inputs, samples, count
        self._read = 0
        self._read_ticks = 0
        self._worked_ticks = 0.0

    def begin(self, group: Sequence[Input]) -> None:
        """Add a group of inputs to the total."""
        self._read += len(group)
        self._read_ticks += sum(item.ticks for item in group)
        self.worked(0.0)

    def worked(self, ticks: float) -> None:
        """Add generated ticks, and report the progress."""
        self._worked_ticks += ticks
        total = self._read_ticks / self._read * self._inputs * self._samples
        self._count(self._worked_ticks / TICKS_PER_SECOND, total / TICKS_PER_SECOND)


def _names(name: str, samples: int) -> list[str]:
    return [name] if samples == 1 else [f"{name}-{k + 1}" for k in range(samples)]


def _refuse_taken(
    settings: GenerateSettings, task: str, inputs: Sequence[PlannedInput], beside: Sequence[str], stale: Sequence[str]
) -> None:
    """Refuse to overwrite inputs and, without --overwrite, any existing file.

    Also refuse to replace a result if a file beside it, such as a video, would still show the old result.
    """
    names = [name for plan in inputs for name in _names(plan.name, settings.num_samples)]
    twice = sorted(name for name, count in Counter(names).items() if count > 1)[:1]
    if twice:
        raise UsageFault(
            f"{twice[0]}: expected each name once, because results take the names of inputs, found two inputs; "
            "rename one of the files"
        )
    endings = [ending for target in TASKS[task].targets for ending in FILE_ENDINGS[target]]
    endings += [*beside, *([".png"] if settings.png else [])]
    found = [
        path
        for name in names
        for ending in (".json", *endings)
        if (path := settings.output_dir / f"{name}{ending}").exists()
    ]
    given = [Path(file) for stream in TASKS[task].conditions for file in settings.sources.files(stream)]
    own = [path for path in found if any(file.exists() and path.samefile(file) for file in given)]
    if own:
        raise UsageFault(
            f"--output-dir {settings.output_dir}: expected another folder than that of the inputs, found "
            f"{own[0].name}, which its result would replace; choose another folder"
        )
    if found and not settings.overwrite:
        more = f" and {counted(len(found) - 1, 'more file')}" if len(found) > 1 else ""
        raise UsageFault(
            f"--output-dir {settings.output_dir}: expected no earlier results, found {found[0].name}{more}, which "
            "would be replaced; choose another folder, or add --overwrite"
        )
    for path in found:
        if path.suffix == ".json":
            _earlier_record(path)  # raises before the sampling, which may take minutes
            _refuse_stale(path, stale)


def _refuse_stale(record: Path, stale: Sequence[str]) -> None:
    """Refuse to replace a result if a file beside it, such as a video, shows the old result.

    The file is not removed, because no record says whether the user made it.
    """
    for name in stale:
        path = record.with_suffix(name) if name.startswith(".") else record.with_name(name)
        if path.exists():
            raise UsageFault(
                f"--overwrite: expected only files that this run replaces, found {path}, which shows the old result "
                f"of {record.name}; move that file away"
            )


def _earlier_record(path: Path) -> GeneratedRecord:
    """Read the record of a result that --overwrite will replace; raise UsageFault if the file is not a record."""
    try:
        return read_record(path)
    except DataError as error:
        raise UsageFault(f"--overwrite: {error.args[0].partition('; generate it')[0]}; move it away") from error


@dataclass(frozen=True)
class _Job:
    """The task of one call of `generate`, with the model and settings that all results of the call share."""

    settings: GenerateSettings
    task: str
    loaded: Loaded
    sampler: Sampler
    windows: WindowSettings
    body: Body | None  # None: the body of the input, or `NEUTRAL`
    vocoder: Vocoder | None  # None: audio is not a target
    known: bool | None  # True: the model was trained on the shards that contain the samples; None: not recorded
    asked: Asked  # values of condition streams

    def results(self, group: Sequence[Input], worked: Callable[[float], None]) -> Iterator[_Written]:
        """Generate and write the results of a group of inputs.

        Args:
            group: Inputs; each has as many results as `settings.num_samples`.
            worked: Function called after each step with a number of ticks. The sum of these numbers is the number of
                all generated ticks.

        Yields:
            For each result, the path of its record, and the record.
        """
        settings, asked = self.settings, list[tuple[Input, Timeline]]()
        for read in group:
            if not settings.part.show_start_s < read.ticks / TICKS_PER_SECOND:
                raise UsageFault(
                    f"--show-start {settings.part.show_start_s:g}: expected a time before the end of the result "
                    f"{read.name}, {read.ticks / TICKS_PER_SECOND:.1f} s; choose an earlier time"
                )
            # Encode conditions only once for all samples, because encoding may be slow.
            conditions, warnings = self.sampler.codecs.conditions(read, self.windows)
            item = replace(read, warnings=(*read.warnings, *warnings))
            speaker = self.sampler.speaker_number(settings.speaker or item.speaker, named=settings.speaker is not None)
            described = values_of(self.loaded.identity.conditions, self.asked, item.recording)
            asked += [
                (item, Timeline(item.ticks, conditions, speaker, k, item.present, described))
                for k in range(settings.num_samples)
            ]
        for some in packed(asked, lambda one: len(window_spans(one[1].ticks, self.windows)), _MAX_WINDOWS):
            yield from self._sampled(some, worked)

    def _sampled(self, asked: Sequence[tuple[Input, Timeline]], worked: Callable[[float], None]) -> Iterator[_Written]:
        """Generate several results together, and write each when it is complete."""
        settings, targets = self.settings, TASKS[self.task].targets
        waiting: dict[int, Results] = {}
        timelines = [timeline for _, timeline in asked]
        for part in self.sampler.sample(timelines, targets, settings.seed, self.windows, settings.sampling, worked):
            item, timeline = asked[part.number]
            if part.number not in waiting:
                seed = settings.seed + timeline.sample
                spans = self.sampler.codecs.windows_of_text(item.ticks, self.windows)
                waiting[part.number] = Results(
                    targets,
                    self._of_body(item),
                    self.sampler.token_codec,
                    self.vocoder,
                    seed,
                    settings.output_dir,
                    spans,
                )
            waiting[part.number].append(part.arrays())
            if part.last:
                yield self._write(item, timeline, waiting.pop(part.number))

    def _of_body(self, item: Input) -> Body:
        found = self.body or item.body or NEUTRAL
        start = self.settings.start_xz
        return found if start is None else replace(found, start_xz=np.array(start))

    def _write(self, item: Input, timeline: Timeline, results: Results) -> _Written:
        """Write all files of a result, its record last; remove all of them after an error."""
        settings = self.settings
        name = _names(item.name, settings.num_samples)[timeline.sample]
        path = settings.output_dir / f"{name}.json"
        if settings.overwrite and path.exists():  # remove the record first, then unmodified files of the result
            earlier = _earlier_record(path)
            path.unlink()
            for entry in earlier.files.values():
                file = path.with_name(os.path.basename(entry["path"]))
                if file.is_file() and file_sha256(file) == entry["sha256"]:
                    file.unlink()
        with PendingGroup() as group:
            entries: dict[str, dict[str, str]] = {}

            def write(kind: str, ending: str, parts: Any) -> None:
                pending = group.open(settings.output_dir / f"{name}{ending}")
                for part in parts:
                    pending.write(part)
                entries[kind] = {"path": pending.path.name, "sha256": pending.sha256}

            for out_file in results.files():
                write(out_file.kind, out_file.ending, out_file.parts)
            if settings.png:
                of_body, codec = self._of_body(item), self.sampler.token_codec
                picture = result_picture(name, self.task, item, results, of_body, codec, settings.part)
                write("picture", ".png", [picture])
            record = self._record(name, item, timeline, results, entries)
            group.open(path).write(record.document())
        return path, record

    def _record(
        self, name: str, item: Input, timeline: Timeline, results: Results, entries: Mapping[str, Mapping[str, str]]
    ) -> GeneratedRecord:
        settings, loaded, windows = self.settings, self.loaded, self.windows
        spans = window_spans(item.ticks, windows)
        borders = window_borders(spans)
        chosen: dict[str, Any] = settings.sampling.document() | {
            "seed": settings.seed,
            "window_ticks": windows.window_ticks,
            "overlap_ticks": windows.overlap_ticks,
            "speaker": settings.speaker or item.speaker,
            "body": None if settings.body is None else str(settings.body),
            "start_xz": None if settings.start_xz is None else list(settings.start_xz),
            "voice": None if self.vocoder is None else self.vocoder.name,
            "quantised": self.sampler.codecs.through_codes(TASKS[self.task].targets),
        }
        chosen |= shown_values(loaded.identity.conditions, timeline.described, spans)
        of_inputs = [warning for condition in item.conditions for warning in condition.warnings]
        return GeneratedRecord(
            omniges=__version__,
            task=self.task,
            name=name,
            source=item.source,
            sample=timeline.sample,
            ticks=item.ticks,
            seconds=item.ticks / TICKS_PER_SECOND,
            files=entries,
            inputs=tuple(
                {"stream": g.stream, "path": g.path, "sha256": g.sha256, "remarks": list(g.warnings)}
                for g in item.conditions
            ),
            model=loaded.facts(),
            settings=chosen,
            seams_s=tuple(tick / TICKS_PER_SECOND for tick in borders),
            measures=results.measures,
            remarks=(*item.warnings, *self._warnings_of(item), *of_inputs, *results.warnings),
            absent=self.sampler.absent_from(TASKS[self.task].targets),
        )

    def _warnings_of(self, item: Input) -> Iterator[str]:
        """Yield warnings that come from the model, such as that it does not know the input's speaker."""
        if item.source is not None and self.known is False:
            yield "the model was not trained on the shards of this sample"
        yield from self.sampler.absence_warnings(TASKS[self.task].targets)
        unknown = item.speaker is not None and item.speaker not in self.loaded.identity.speakers
        if self.settings.speaker is None and unknown:
            yield f"the model does not know the speaker {item.speaker}: generated with an unknown speaker"
