"""Implementation of `evaluate`: compare generated files with recordings; with a checkpoint, generate the files first.

Errors about checkpoint, shards and tasks are raised before anything is generated.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from omniges import __version__
from omniges.data.sequence import trained_on
from omniges.errors import DataError, UsageFault, first_of, grouped_notes
from omniges.evaluation.gesture import score_gesture
from omniges.evaluation.motion import (
    MetricTools,
    TrainSplit,
    learn_train_split,
    load_bodies,
    read_mean_speeds,
    train_rows,
)
from omniges.evaluation.protocol import PROTOCOLS, protocol_facts, protocol_results, published_files, score_protocol
from omniges.evaluation.report import Report, TaskReport
from omniges.evaluation.results import FileResult, find_results
from omniges.evaluation.scores import Heading, Recordings, Resampling, Result, Scored, absent, with_recorded
from omniges.evaluation.settings import EvaluateSettings
from omniges.evaluation.speech import score_speech, score_text
from omniges.generation.run import codecs_of, generate
from omniges.generation.sampler import loader_state, trained_tasks
from omniges.generation.settings import GenerateSettings, Sources, task_named
from omniges.metrics.frechet import Features, load_encoder, load_features
from omniges.metrics.profiles import PROFILES, Profile
from omniges.metrics.registry import registered_metrics
from omniges.model.checkpoint import SavedCheckpoint, find_checkpoint
from omniges.model.spec import load_identity
from omniges.model.streams import StreamName
from omniges.model.tasks import TASKS, SamplingSettings
from omniges.shards.present import STREAM_BITS, present_bits
from omniges.shards.reader import ShardFolder
from omniges.shards.schema import MANIFEST_FILE, Split
from omniges.storage.atomic import refuse_links
from omniges.storage.files import file_sha256, visible_entries

_SIX: Final = ("t2g", "a2g", "t2a", "g2a", "g2t", "a2t")

Counting = Callable[[str], AbstractContextManager[Callable[[float, float], None]]]
"""Function that takes a text, such as "results scored", and returns a context manager that shows progress.

The context manager yields a function to be called with (done, total).
"""


def evaluate(settings: EvaluateSettings, counting: Counting | None = None) -> Report:
    """Score results. If a checkpoint is given, generate the results first.

    Args:
        settings: Settings of the command.
        counting: Progress display; None: show no progress.

    Returns:
        The report.

    Raises:
        UsageFault: The settings are invalid, or the results come from several systems.
        DataError: A file is damaged. Damaged files are not skipped.
        EnvironmentFault: A file cannot be read or written, or a package is not installed.
    """
    counting = counting or (lambda _noun: nullcontext(lambda _done, _total: None))
    tools = MetricTools(
        profile=_profile(settings),
        bodies=load_bodies(settings.body_model),
        encoder=None
        if settings.gesture_encoder is None
        else load_encoder(settings.gesture_encoder, trust_program=settings.trust_encoder_program),
        mean_speeds_m_s=None if settings.mean_speeds is None else read_mean_speeds(settings.mean_speeds),
        precomputed=None if settings.features is None else _features(*settings.features),
    )
    registered_metrics()  # raises an error before generation if a metric cannot be loaded
    shards = ShardFolder(settings.shards)
    task = None if settings.task is None else task_named(settings.task)
    if settings.protocol is not None:
        return _evaluate_protocol(settings, settings.protocol, shards, tools, task, counting)
    if task is not None and settings.checkpoint is not None:
        raise UsageFault(
            f"--task {task}: expected files without records, found --checkpoint; give --tasks {task} in place of --task"
        )
    with tempfile.TemporaryDirectory(prefix="omniges-evaluate-") as temporary:
        if settings.checkpoint is None:
            folders, warnings = settings.generated, list[str]()
        else:
            folders, warnings = _generate(settings, settings.checkpoint, shards, tools, Path(temporary), counting)
        found = find_results(folders, shards, task, motion_rate_hz=settings.motion_rate_hz)
        of_gesture = [name for name in found if "gesture" in TASKS[name].targets]
        if settings.features is not None and len(of_gesture) != 1:  # files of features do not state their task
            raise UsageFault(
                "--features: expected results of exactly one task that generates gesture, found "
                f"{', '.join(of_gesture) or 'none'}; give the results of one such task"
            )
        train = None
        if of_gesture:
            with counting("train recordings measured") as count:
                train = learn_train_split(shards, tools, count)
        how = Resampling(seed=settings.seed, resamples=settings.resamples)
        with counting("results scored") as count:
            tasks = _score(found, shards, tools, train, how, count)
    facts = _facts(settings, shards, tools)
    if tools.profile.published:
        files, unknown = published_files(settings)
        facts, warnings = facts | {"files": files}, [*warnings, *unknown]
    return Report(tasks=tasks, facts=facts, warnings=warnings)


def _evaluate_protocol(
    settings: EvaluateSettings, name: str, shards: ShardFolder, tools: MetricTools, task: str | None, counting: Counting
) -> Report:
    """Score results by a published protocol."""
    files, unknown = published_files(settings)
    found = find_results(settings.generated, shards, task, without_record="a2g", motion_rate_hz=settings.motion_rate_hz)
    task, results, warnings = protocol_results(found, PROTOCOLS[name])
    how = Resampling(seed=settings.seed, resamples=settings.resamples)
    done = itertools.count(1)
    with counting("results scored") as count:
        scored = score_protocol(results, shards, tools, settings.grid, how, lambda: count(next(done), len(results)))
    clips = {"clips": [len({result.key for result in results}), len(PROTOCOLS[name].stems)]}
    return Report(
        tasks={task: _task_report(results, shards, [scored])},
        facts=_facts(settings, shards, tools) | protocol_facts(settings) | clips | {"files": files},
        warnings=[*warnings, *unknown],
    )


def _generate(
    settings: EvaluateSettings,
    checkpoint: Path,
    shards: ShardFolder,
    tools: MetricTools,
    temporary: Path,
    counting: Counting,
) -> tuple[tuple[Path, ...], list[str]]:
    """Generate results for the samples of a split, in one folder for each task; return the folders and warnings."""
    saved = find_checkpoint(checkpoint)
    tasks, warnings = require_fit(saved, shards, settings.split, settings.tasks)
    work = temporary if settings.work_dir is None else settings.work_dir
    refuse_links(work, tasks)
    taken = [work / name for name in tasks if (work / name).is_dir() and visible_entries(work / name)]
    if taken:
        raise UsageFault(
            f"--work-dir {work}: expected no results, found some in {taken[0]}; score them with omniges evaluate "
            f"{work} --shards {settings.shards}, or choose another folder"
        )
    if any("gesture" in TASKS[name].targets for name in tasks):
        train_rows(shards, tools)  # raises errors before the generation, which may take minutes
    inputs, sources = Sources(shards=settings.shards, split=settings.split), dict[str, Sources]()
    for name in tasks:
        sources[name], left_out = _inputs_of(name, shards, settings.split)
        warnings += left_out
    tasks = tuple(name for name in tasks if sources[name].from_shards)
    if not tasks:
        raise UsageFault(
            f"--split {settings.split}: expected a sample that has all streams of a task, found none "
            f"({'; '.join(warnings)}); choose another split or other tasks"
        )
    wanted = [
        GenerateSettings(
            checkpoint=checkpoint,
            task=name,
            output_dir=work / name,
            codecs=settings.codecs,
            t5_tokenizer=settings.t5_tokenizer,
            sources=sources[name],
            sampling=SamplingSettings(num_inference_steps=settings.num_inference_steps),
            seed=settings.seed,
            num_samples=settings.num_samples,
        )
        for name in tasks
    ]
    codecs = codecs_of(wanted[0], load_identity(saved))
    codecs.require([TASKS[name] for name in tasks], inputs)  # may raise errors too; loads each codec once
    for one in wanted:
        with counting(f"s of {one.task} generated") as count:
            generate(one, count, codecs)
    return tuple(one.output_dir for one in wanted), warnings


def _inputs_of(task: str, shards: ShardFolder, split: Split) -> tuple[Sources, list[str]]:
    """Return the samples of a split that have all streams of a task, and a warning if other samples are left out."""
    rows = [row for row in shards.rows if row.split == split]
    streams = (*TASKS[task].conditions, *TASKS[task].targets)
    keys = tuple(row.key for row in rows if all(present_bits(row.present) & STREAM_BITS[name] for name in streams))
    if len(keys) == len(rows):
        return Sources(shards=shards.folder, split=split), []
    lost = f"{task}: {len(rows) - len(keys)} of {len(rows)} samples lack {' or '.join(streams)}, and are left out"
    return (Sources(shards=shards.folder, keys=keys) if keys else Sources()), [lost]


def require_fit(
    saved: SavedCheckpoint, shards: ShardFolder, split: str, named: Sequence[str]
) -> tuple[tuple[str, ...], list[str]]:
    """Check that a checkpoint can generate the tasks for a split.

    Args:
        saved: The checkpoint.
        shards: The recordings.
        split: Split whose samples are used as conditions.
        named: Tasks that the user chose; empty: all tasks that have one condition and that the model was trained on.

    Returns:
        Tasks to generate, and warnings: about tasks that are left out, about clips that the model was (or may have
        been) trained on, and about speakers that it was not trained on.

    Raises:
        UsageFault: The model was not trained on a task, or the split has no samples.
    """
    tasks, warnings = _tasks(saved, named)
    rows = [row for row in shards.rows if row.split == split]
    if not rows:
        held = ", ".join(sorted({row.split for row in shards.rows}))
        raise UsageFault(f"--split {split}: expected samples of it in {shards.folder}, found none; choose among {held}")
    identity = load_identity(saved)
    state = loader_state(saved)
    numbers = [] if state is None else trained_on(state, shards.folder, *identity.read_by_training)
    if state is None or not numbers:
        found = f"the checkpoint was trained on other shards than {shards.folder}"
        warnings.append(f"{found}: whether it was trained on these clips is not known")
    elif split in {state.filters[number].split for number in numbers}:
        warnings.append(f"the model was trained on these clips, the {split} split")
    unknown = sorted({row.speaker for row in rows if row.speaker is not None} - set(identity.speakers))
    if unknown:
        warnings.append(f"speakers the model was not trained on, generated as unknown: {first_of(unknown, 3)}")
    return tasks, warnings


def _tasks(saved: SavedCheckpoint, named: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the chosen tasks, and warnings.

    If `named` is empty, return the tasks that have one condition and that the model was trained on. A warning then
    lists the tasks with one condition that the model was not trained on.
    """
    trained = trained_tasks(saved)
    if trained is None:
        raise DataError(
            f"{saved.path}/settings.json: expected flow settings, found none; use the omniges version that wrote it"
        )
    wanted = tuple(dict.fromkeys(task_named(name) for name in named))
    for name in wanted:
        if name not in trained:
            raise UsageFault(
                f"--tasks {name}: expected tasks on which {saved.path} was trained ({', '.join(sorted(trained))}), "
                "found another task; choose among these"
            )
    identity = load_identity(saved)
    never = {name: gone for name in TASKS if (gone := identity.never_had(TASKS[name]))}
    for name in wanted:
        if name in never:
            raise UsageFault(
                f"--tasks {name}: expected a task on which {saved.path} was trained, found one without samples "
                f"that have {' or '.join(never[name])}; choose another task"
            )
    trained = tuple(name for name in trained if name not in never)
    tasks = wanted or tuple(name for name in _SIX if name in trained)
    if not tasks:
        raise UsageFault(
            f"--tasks: expected names, because {saved.path} was trained on {', '.join(sorted(trained))} and not on "
            "any of the six default tasks, found none; name tasks with --tasks"
        )
    lost = [name for name in _SIX if name not in trained and not wanted]
    return tasks, [f"not generated, because the model was not trained on them: {', '.join(lost)}"] if lost else []


def _score(
    found: Mapping[str, Sequence[FileResult]],
    shards: ShardFolder,
    tools: MetricTools,
    train: TrainSplit | None,
    how: Resampling,
    count: Callable[[float, float], None],
) -> dict[str, TaskReport]:
    total = sum(len(results) * len(TASKS[task].targets) for task, results in found.items())
    done = itertools.count(1)

    def one() -> None:
        count(next(done), total)

    return {
        task: _task_report(
            results,
            shards,
            [score_stream(results, target, shards, tools, lambda: train, how, one) for target in TASKS[task].targets],
        )
        for task, results in found.items()
    }


def score_stream(
    results: Sequence[Result],
    target: StreamName,
    shards: Recordings,
    tools: MetricTools,
    train: Callable[[], TrainSplit | None],
    how: Resampling,
    count: Callable[[], None],
) -> Scored:
    """Score one target stream of results; if a recording lacks this stream, leave out its results and add a warning.

    Args:
        results: Generated results of one task, sorted by recording.
        target: The stream.
        shards: The recordings.
        tools: Body model, encoder and settings for the metrics of motion.
        train: Function that returns statistics of the train split; it is called only for gesture.
        how: Seed and number of resamples of the bootstrap over recordings.
        count: Function that is called after each result.

    Returns:
        Figures (values of metrics), scored seconds of each recording, and warnings.

    Raises:
        DataError: A file cannot be read.
    """
    there, warnings = with_recorded(results, target)
    if not there:
        return Scored([absent(Heading(f"{target} metrics", ""), "; ".join(warnings))], {}, warnings)
    if target == "gesture":
        found = score_gesture(there, shards, tools, train(), how, count)
    else:
        found = (score_text if target == "text" else score_speech)(there, shards, how, count)
    return replace(found, warnings=[*found.warnings, *warnings])


def _task_report(results: Sequence[FileResult], shards: ShardFolder, scored: Sequence[Scored]) -> TaskReport:
    rows = {result.key: result.row for result in results}
    splits: dict[str, tuple[int, int]] = {}
    for split in sorted({row.split for row in rows.values()}):
        held = sum(row.split == split for row in shards.rows)
        splits[split] = sum(row.split == split for row in rows.values()), held
    seconds = {key: min((one.seconds[key] for one in scored if key in one.seconds), default=0.0) for key in rows}
    records = [result.record for result in results if result.record is not None]
    made_by: dict[str, Any] | None = None
    if records:  # the model, and the settings that are equal in all records
        common = {
            name: value
            for name, value in records[0].settings.items()
            if all(record.settings.get(name) == value for record in records)
        }
        made_by = {"model": dict(records[0].model), "settings": common}
    return TaskReport(
        figures=[figure for one in scored for figure in one.figures],
        recordings=list(rows),
        results=len(results),
        splits=splits,
        seconds=sum(seconds.values()),
        recorded_seconds=sum(row.seconds for row in rows.values()),
        made_by=made_by,
        warnings=[
            *(warning for one in scored for warning in one.warnings),
            *grouped_notes((result.name, note) for result in results for note in result.notes),
        ],
    )


def _facts(settings: EvaluateSettings, shards: ShardFolder, tools: MetricTools) -> dict[str, Any]:
    speeds = settings.mean_speeds
    return {
        "omniges": __version__,
        "shards": str(shards.folder),
        "manifest_sha256": shards.dataset["files"][MANIFEST_FILE]["sha256"],
        "profile": tools.profile.name,
        "profile_settings": asdict(tools.profile),
        "skeleton": tools.bodies.name,
        "encoder": tools.encoder_name,
        "mean_speeds": ("of the train split" if settings.protocol is None else "none")
        if speeds is None
        else f"{speeds.name}:{file_sha256(speeds)[:12]}",
        "resamples": settings.resamples,
        "seed": settings.seed,
    }


def _profile(settings: EvaluateSettings) -> Profile:
    """Return the profile; refuse a published profile if a file that it needs is missing.

    Without these files, values would not be comparable with published values.
    """
    if settings.protocol is not None:
        return PROFILES["emage-2024"]
    chosen = PROFILES[settings.profile]
    needed = {
        "--body-model": settings.body_model,
        "--gesture-encoder": settings.gesture_encoder or settings.features,
        "--mean-speeds": settings.mean_speeds,
    }
    lost = [flag for flag, path in needed.items() if path is None]
    if chosen.published and lost:
        raise UsageFault(
            f"--profile {chosen.name}: expected {' and '.join(lost)} too, because values are comparable only "
            "with SMPL-X, the published encoder and the published mean speeds; give the missing files, or "
            "use --profile corrected"
        )
    return chosen


def _features(generated: Path, recorded: Path) -> tuple[Features, Features]:
    made, true = load_features(generated), load_features(recorded)
    if made.rows.shape[1] != true.rows.shape[1]:
        raise UsageFault(
            f"--features: expected features of one encoder, found {made.rows.shape[1]} columns in {generated} and "
            f"{true.rows.shape[1]} in {recorded}; give features of one encoder for both"
        )
    return made, true
