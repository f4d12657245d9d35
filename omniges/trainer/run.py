"""The resources of a training run (device, shards, batches, model, optimizer, validation) and its progress.

Invalid settings are refused before the first step.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
import torch.utils.deterministic as determinism
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState

from omniges.conditions.base import ConditionStream
from omniges.conditions.registry import find_streams, labels_read
from omniges.data.catalog import Filters, read_catalog
from omniges.data.collate import require_readable, training_facts
from omniges.data.loader import LoaderSettings
from omniges.data.order import RankShare
from omniges.data.remote_shards import CacheSettings, RemoteShards, open_location
from omniges.data.sequence import DataSource, Sequencing
from omniges.data.window_reader import ClipReader, ReadMarks
from omniges.errors import EnvironmentFault, OmnigesError, UsageFault
from omniges.evaluation.speech import UNTIMED
from omniges.features.timebase import FRAME_RATE_HZ, FRAMES_PER_TICK
from omniges.generation.sampler import Codecs, Sampler
from omniges.generation.word_timing import MIN_WORDS, learn_rate
from omniges.metrics.gesture import min_frames
from omniges.model.checkpoint import CHECKPOINTS, checkpoints, open_checkpoint
from omniges.model.draws import allowed_tasks
from omniges.model.spec import ModelConfig, ModelIdentity, load_identity
from omniges.model.streams import StreamName
from omniges.model.tasks import AUDIO_GUIDANCE, SIX, SamplingSettings
from omniges.pretrained.initialize import Start, open_start
from omniges.progress import counted
from omniges.registry import foreign
from omniges.shards.document import loudness_of, read_dataset
from omniges.shards.latents import CodecEntry
from omniges.shards.present import STREAM_PARTS, part_flags
from omniges.shards.reader import ShardFolder, read_beside, train_statistics
from omniges.shards.schema import LATENTS_FILE, STATS_FILE
from omniges.storage.atomic import home_expanded
from omniges.storage.files import json_document
from omniges.storage.remote import parse_location
from omniges.trainer.batches import Feed, speakers_of
from omniges.trainer.config import TrainSettings
from omniges.trainer.distributed import Ranks, exchanging
from omniges.trainer.logging import Smoothed
from omniges.trainer.train_step import Learner, LearningRate
from omniges.trainer.validation.best import Best
from omniges.trainer.validation.held_out import HeldOut, SomeRecordings, open_held_out
from omniges.trainer.validation.run import Validation, why_not
from omniges.trainer.validation.samples import METRIC_TOOLS

_RATE_CLIPS: Final = 256


@contextmanager
def accelerated(settings: TrainSettings) -> Iterator[Accelerator]:
    """Set up device, precision and processes; undo the setup afterwards, so that a process can train several times.

    On a CPU, deterministic algorithms are switched on, at no measurable cost.

    Args:
        settings: Settings of the run.

    Yields:
        The accelerator.
    """
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    group = InitProcessGroupKwargs(timeout=timedelta(seconds=settings.rank_timeout_s))
    before = torch.are_deterministic_algorithms_enabled()
    filled = determinism.fill_uninitialized_memory  # type: ignore[attr-defined]
    try:
        with exchanging(int(os.environ.get("WORLD_SIZE", "1"))):
            accelerator = Accelerator(
                cpu=not torch.cuda.is_available(),
                mixed_precision=settings.mixed_precision,
                kwargs_handlers=[ddp, group],
            )
        if accelerator.device.type == "cpu":
            torch.use_deterministic_algorithms(True)
            determinism.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        yield accelerator
    finally:
        torch.use_deterministic_algorithms(before)
        determinism.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The open resources of a run."""

    settings: TrainSettings
    accelerator: Accelerator
    ranks: Ranks
    data: tuple[DataSource, ...]
    feed: Feed
    identity: ModelIdentity
    start: Start | None
    learner: Learner
    validation: Validation | None
    warnings: tuple[str, ...]

    def checkpoint(self, step: int) -> Path:
        """Return the folder of a step's checkpoint."""
        return self.settings.output_dir / CHECKPOINTS / f"step-{step:06d}"


@dataclass(slots=True)
class RunState:
    """Progress of a run after a step, without the weights and the optimizer's moments, which the learner stores."""

    step: int = 0
    position: int = 0
    elapsed_s: float = 0.0
    smoothed: Smoothed = field(default_factory=Smoothed)
    validated: int = 0
    """Last step whose validation is complete."""
    best: Best | None = None


def open_run(settings: TrainSettings, accelerator: Accelerator, ranks: Ranks, stack: ExitStack) -> Run:
    """Open the resources of a run.

    Args:
        settings: Settings of the run.
        accelerator: Device and precision.
        ranks: Ranks of the run.
        stack: Stack that closes the resources at the end of the run.

    Returns:
        The open run.

    Raises:
        UsageFault: The shards, weights or codecs do not fit the settings.
        DataError: A file is damaged.
        EnvironmentFault: A file cannot be read, or a package is not installed.
    """
    settings, not_compiled = with_compile(_with_saved_tokens(settings), accelerator.device)
    weights = settings.shard_weights or (1.0,) * len(settings.shards)
    # A resumed run needs the pretrained weights too, because they define the sizes of the model.
    start = None
    if settings.pretrained_model_name_or_path is not None:
        path, which = settings.pretrained_model_name_or_path, settings.pretrained_weights
        start = open_start(path, which, settings.model_changes, settings.audio_codec)
    config = settings.model_config() if start is None else start.config
    data = tuple(
        _source(settings, config, text, weight, stack) for text, weight in zip(settings.shards, weights, strict=True)
    )
    identity = _identity(settings, data, start)
    feed = Feed(
        data,
        Sequencing(window_ticks=settings.window_ticks, seed=settings.seed, tick_multiple=identity.tick_multiple),
        RankShare(
            rank=ranks.rank,
            world_size=ranks.world_size,
            batch_size=settings.batch_size,
            accumulation=settings.gradient_accumulation_steps,
        ),
        LoaderSettings(workers=settings.num_workers),
        accelerator.device,
        identity,
    )
    stack.enter_context(feed)
    limits = [] if settings.max_train_steps is None else [settings.max_train_steps]
    if settings.num_train_epochs is not None:
        limits.append(max(1, -int(-(settings.num_train_epochs * feed.windows_per_epoch) // feed.share.global_batch)))
    rate = LearningRate(
        peak=cast("float", settings.learning_rate),
        schedule=settings.lr_scheduler,
        warmup_steps=settings.lr_warmup_steps,
        total_steps=min(limits, default=None),
    )
    model = identity.build(settings.seed)
    model.trunk.gradient_checkpointing = settings.gradient_checkpointing
    learner = Learner(model, accelerator, settings, rate)
    validation, warnings = _open_validation(settings, data, identity, learner, ranks)
    return Run(
        settings=settings,
        accelerator=accelerator,
        ranks=ranks,
        data=data,
        feed=feed,
        identity=identity,
        start=start,
        learner=learner,
        validation=validation,
        warnings=(*_left_out(data), *not_compiled, *warnings),
    )


def with_compile(settings: TrainSettings, device: torch.device) -> tuple[TrainSettings, list[str]]:
    """Return settings with a value for `compile`; the default is to compile on a GPU if nothing prevents it.

    Args:
        settings: Settings of the run.
        device: Device of the model.

    Returns:
        Settings whose `compile` is True or False, and a list of warnings. The list has one warning if `compile` was not
        set and something prevents the compilation on a GPU; otherwise it is empty.
    """
    if settings.compile is not None:
        return settings, []
    prevented = None
    if settings.sharding != "none":
        prevented = f"--sharding {settings.sharding} excludes it"
    elif importlib.util.find_spec("triton") is None:
        prevented = "Triton is not installed"
    on_gpu = device.type == "cuda"
    warnings = [f"the pass is not compiled: {prevented}"] if on_gpu and prevented else []
    return replace(settings, compile=on_gpu and prevented is None), warnings


def _with_saved_tokens(settings: TrainSettings) -> TrainSettings:
    """Return settings with the type of gesture tokens that the newest readable checkpoint of the run has.

    Therefore, a run that started before spline tokens existed continues with its old type of tokens. The settings are
    returned unchanged in four cases: they name a type of gesture tokens; they name a gesture codec; the saved type is
    the default of the preset; or the run has no readable checkpoint.
    """
    if "gesture_tokens" in settings.model or settings.gesture_codec is not None:
        return settings
    for path in checkpoints(settings.output_dir / CHECKPOINTS):
        try:
            saved = load_identity(open_checkpoint(path, bytewise=False))
        except OmnigesError:  # reported later, when a checkpoint is chosen
            continue
        tokens = saved.config.gesture_tokens
        if settings.preset is not None and settings.model_config().gesture_tokens == tokens:
            return settings  # naming the default would be reported as another setting
        return replace(settings, model=dict(settings.model) | {"gesture_tokens": tokens})
    return settings


def _source(settings: TrainSettings, config: ModelConfig, text: str, weight: float, stack: ExitStack) -> DataSource:
    """Open a shard set and list its train clips. A shard set at a URL is read through the cache.

    Shard sets of version 1 lack some statistics in stats.json. If the model needs them, compute them from the shards.
    """
    location, cache = parse_location(text), None
    if location.path is None:
        folder = home_expanded("--cache-dir", settings.cache_dir)
        cache = CacheSettings(folder=folder, capacity_bytes=int(settings.cache_gb * 1e9))
    splits = ("train",) if settings.validation_steps == 0 else ("train", "val")
    shards = open_location(location, cache, splits=splits)
    if isinstance(shards, RemoteShards):
        stack.callback(shards.close)
    labels = labels_read(find_streams(settings.condition_streams, "--condition-streams").values())
    wanted = Filters(split="train", streams=allowed_tasks(settings.flow_settings().shares))
    catalog = read_catalog(shards.folder, wanted, settings.codecs, labels, config.gesture_channels)
    found = dict(catalog.statistics)
    if found.get("samples"):  # shard sets of version 1 lack some statistics
        own = ShardFolder(shards.folder, shards)
        if config.with_jaw_eyes and "jaw_eyes" not in found:
            found["jaw_eyes"] = train_statistics(own, "jaw_eyes.npy")
        if config.gesture_tokens == "splines" and "difference_std" not in found["gesture"]:
            differences = train_statistics(own, "gesture.npy")["difference_std"]
            found["gesture"] = found["gesture"] | {"difference_std": differences}
    catalog = replace(catalog, statistics=found)
    return DataSource(catalog, weight, shards=shards)


def _left_out(data: Sequence[DataSource]) -> list[str]:
    """Return warnings about clips that no task of the run can use, and about absent parts."""
    warnings = []
    for source in data:
        catalog = source.catalog
        if catalog.left_out:
            sets = " or ".join(catalog.filters.streams)
            warnings.append(f"{catalog.folder}: {catalog.left_out} clips left out; a task needs {sets}")
        counts = (~part_flags(catalog.table.present)).sum(axis=0).tolist()
        lacking = [f"{part} from {count}" for part, count in zip(STREAM_PARTS, counts, strict=True) if count]
        if lacking:
            warnings.append(f"{catalog.folder}: absent: {', '.join(lacking)} of {len(catalog.table)} clips")
    return warnings


def _conditions(settings: TrainSettings, data: Sequence[DataSource], statistics: bytes) -> dict[str, ConditionStream]:
    """Create the condition streams, by name. Each learns its values from the train clips."""
    facts = training_facts([source.catalog for source in data], json.loads(statistics))
    found = {}
    for name, kind in find_streams(settings.condition_streams, "--condition-streams").items():
        with foreign(f"condition stream {name}", "learning from the training set"):
            found[name] = kind.learn(facts)
    require_readable(found, data[0].catalog.codecs)
    return found


def _identity(settings: TrainSettings, data: Sequence[DataSource], start: Start | None) -> ModelIdentity:
    """Return the identity of the model: everything that defines it except the weights.

    Raise UsageFault if the shard folders were preprocessed with different loudness rules.
    """
    documents = [read_dataset(source.catalog.folder) for source in data]
    rules = [loudness_of(document, source.catalog.folder) for document, source in zip(documents, data, strict=True)]
    if len(set(rules)) > 1:
        found = ", ".join(f"{rule} in {source.catalog.folder}" for rule, source in zip(rules, data, strict=True))
        raise UsageFault(
            f"--shards: expected the same loudness in all folders, found {found}; preprocess them with the same "
            "--loudness"
        )
    first = data[0].catalog
    statistics = read_beside(first.folder, STATS_FILE, documents[0])
    if json.loads(statistics) != first.statistics:  # differs if `_source` added statistics
        statistics = json_document(first.statistics)
    identity = ModelIdentity(
        preset=cast("str", settings.preset) if start is None else start.preset,
        config=settings.model_config() if start is None else start.config,
        window_ticks=settings.window_ticks,
        speakers=speakers_of(data),
        statistics=statistics,
        tokenizer=first.tokenizer,
        codecs=cast("Mapping[StreamName, CodecEntry]", first.codecs),
        latents=read_beside(first.folder, LATENTS_FILE, documents[0]) if first.codecs else b"",
        loudness=rules[0],
        speaking_rate=_speaking_rate(data),
        conditions=_conditions(settings, data, statistics),
        guidance=_guidance(settings, first.codecs),
    )
    return _with_absent_parts(identity if start is None else start.adopt(identity), data)


def _guidance(settings: TrainSettings, codecs: Collection[str]) -> dict[StreamName, float]:
    """Return the model's default scales of classifier-free guidance, by stream.

    Only mel audio has a scale. Guidance requires a model whose training drops conditions at random. If the training of
    this run does not drop conditions, the result is empty.
    """
    return {"audio": AUDIO_GUIDANCE} if settings.flow_settings().condition_dropout and "audio" not in codecs else {}


def _with_absent_parts(identity: ModelIdentity, data: Sequence[DataSource]) -> ModelIdentity:
    """Return the identity unchanged if all clips have all parts; otherwise return it with `tell_absent` set.

    `tell_absent` is a field of the model configuration. If it is True, an input of the model tells which parts of a
    clip are absent.

    Raise UsageFault if a clip has a part for which `identity` contains no statistics.
    """
    flags = part_flags(np.concatenate([source.catalog.table.present for source in data]))
    unknown = [part for k, part in enumerate(STREAM_PARTS) if part in identity.absent and flags[:, k].any()]
    if unknown:
        raise UsageFault(
            f"--shards: expected statistics of {', '.join(unknown)} from train samples of {data[0].catalog.folder} "
            "or the pretrained weights, found none; name a folder that has these statistics first in --shards"
        )
    if flags.all():
        return identity
    return replace(identity, config=replace(identity.config, tell_absent=True))


def _speaking_rate(data: Sequence[DataSource]) -> bytes:
    """Return the estimated speaking rate as JSON; b"" if there are too few words, or if text is stored as latents.

    `generate` needs the rate for text without word times. The estimate uses at most 256 evenly spaced clips of each
    folder. From a remote folder, it reads only the first shard, so that training does not wait for other shards.
    """
    clips: list[list[dict[str, Any]]] = []
    for source in data:
        table, tracks = source.catalog.table, source.catalog.tracks
        if tracks.text is not None:
            return b""
        reader = ClipReader(
            table, source.shard_source(), ReadMarks.blank(len(table), tracks), tracks=tracks, mapped=False
        )
        chosen = np.arange(len(table))
        if isinstance(source.shards, RemoteShards):
            chosen = chosen[table.shard == table.shard[0]]
        clips += [reader.words(int(clip)) for clip in chosen[:: -(-len(chosen) // _RATE_CLIPS)]]
    return learn_rate(clips).as_json() if sum(map(len, clips)) >= MIN_WORDS else b""


# --- validation


def _open_validation(
    settings: TrainSettings, data: tuple[DataSource, ...], identity: ModelIdentity, learner: Learner, ranks: Ranks
) -> tuple[Validation | None, list[str]]:
    """Return the validation of a run (None if validation is turned off) and warnings.

    By default, the run validates if there are held-out windows.

    Raise UsageFault if a requested validation is impossible, DataError if a codec is damaged, and EnvironmentFault if
    matplotlib is missing.
    """
    if settings.validation_steps == 0:
        return None, []
    shares = settings.flow_settings().shares
    tasks = tuple(task for task in SIX if shares.get(task))
    try:
        windows = settings.window_ticks, settings.validation_windows
        held_out = open_held_out(data, *windows, identity.tick_multiple, learner.model.trained, tasks)
    except UsageFault as fault:
        if settings.validation_steps is not None:
            raise
        return None, [f"no validation: {fault}"]
    if settings.validation_samples and importlib.util.find_spec("matplotlib") is None:
        raise EnvironmentFault(
            "validation: expected matplotlib to draw pictures, found that it is not installed; run pip install "
            "'omniges[train]', or train with --validation-samples 0"
        )
    model = learner.averaged()
    device = learner.device
    codecs = _open_decoders(identity, settings, device)
    _require_computable(settings.best_metric, held_out, codecs, tasks)
    sampler = Sampler(model, identity, codecs, learner.autocast)
    sampling = SamplingSettings(num_inference_steps=settings.validation_sampling_steps)
    validation = Validation(held_out, sampler, sampling, settings.validation_samples, ranks, tasks)
    return validation, _validation_warnings(held_out, identity, codecs, tasks)


def _open_decoders(identity: ModelIdentity, settings: TrainSettings, device: torch.device) -> Codecs:
    """Load the codecs that decode the run's latents, from the folders in the settings.

    The codecs decode what validation generates. If the settings have no folder for the codec of a stream, validation
    generates nothing for tasks whose target is this stream, and the report of the validation contains the reason.
    Losses need no codec, so training and validation compute them for these tasks too.

    Constructing a codec draws random weights. Therefore, the state of torch's random generator is restored afterwards.

    Raise UsageFault if a folder contains another codec than the one that encoded the latents. Raise DataError if a
    folder is invalid.
    """
    folders = settings.validation_codecs
    given = {stream: entry.name for stream, entry in identity.codecs.items() if entry.name in folders}
    tokenizer = settings.t5_tokenizer if "text" in identity.codecs else None
    chosen, origin = [(name, folders[name]) for name in given.values()], ("--validation-codec", "the shards")
    codecs = Codecs(identity.codecs, chosen, tokenizer, origin=origin, device=device)
    with torch.random.fork_rng(devices=[]):
        for stream in given:
            codecs.load(stream, "decode")
    return codecs


def _validation_warnings(held_out: HeldOut, identity: ModelIdentity, codecs: Codecs, tasks: Sequence[str]) -> list[str]:
    """Return messages for the start of the run: validation windows, unknown speakers and missing codecs."""
    speakers = {window.row.speaker for window in held_out.windows}
    unknown = sorted(str(name) for name in speakers if name not in identity.speakers)
    recordings = {(window.source, window.row.key) for window in held_out.windows}
    chosen = f"{len(held_out.windows)} of {held_out.available} windows of the val split"
    warnings = [
        f"validates on {chosen}, from {counted(len(recordings), 'recording')} of {counted(len(speakers), 'speaker')}"
    ]
    if unknown:
        warnings.append(f"speakers that are not in the train split count as unknown: {', '.join(unknown[:5])}")
    decoded = [(stream, entry.name) for stream, entry in codecs.entries.items() if codecs.has_folder(stream)]
    warnings += [f"validation decodes {stream} with {name}" for stream, name in decoded]
    reasons: dict[str, list[str]] = {}
    for task in tasks:
        if (why := why_not(codecs, task)) is not None:
            reasons.setdefault(why, []).append(task)
    return warnings + [
        f"metrics and samples of {' and '.join(own)} not computed: {why}" for why, own in reasons.items()
    ]


def _require_computable(metric: str, held_out: HeldOut, codecs: Codecs, tasks: Sequence[str]) -> None:
    """Raise UsageFault if the run cannot compute the metric of ``--best-metric``."""
    task, _, name = metric.partition("/")
    if metric == "loss":
        return
    if task not in tasks:
        raise UsageFault(
            f"--best-metric {metric}: expected loss, or a metric of a trained task ({', '.join(tasks)}), found another "
            f"task; choose, for example, {tasks[0]}/loss"
        )
    if name == "loss":
        return
    why = why_not(codecs, task) or _lacking(name, held_out, codecs)
    if why is not None:
        raise UsageFault(
            f"--best-metric {metric}: expected a metric that this run computes, found one that it cannot compute "
            f"because {why}; otherwise choose loss or {task}/loss"
        )


def _lacking(metric: str, held_out: HeldOut, codecs: Codecs) -> str | None:
    """Return the reason why a metric cannot be computed on any held-out window; None if no reason is found.

    Where settings can help, the reason includes a remedy.
    """
    if metric.startswith(("word_start", "word_end")) and codecs.untimed_text:
        return UNTIMED
    rows = [window.row for window in held_out.windows]
    if metric == "semantic_recall" and not any("sem" in row.present for row in rows):
        return "no validation recording has a semantic annotation"
    if metric != "beat_consistency":
        return None
    if not any(row.keeps_audio for row in rows):
        return "there is no audio in the shards; preprocess with --keep-audio"
    if not SomeRecordings(held_out.folders, held_out.windows[0].ticks, 1).rows:
        return "no train recording has a complete body and the length of a window; beats need its mean speeds"
    minimum = -(-min_frames(METRIC_TOOLS.profile.beats) // FRAMES_PER_TICK)
    if held_out.windows[0].ticks < minimum:
        seconds = minimum * FRAMES_PER_TICK / FRAME_RATE_HZ
        return f"windows are shorter than {seconds:.1f} s; train with --window-ticks {minimum} or more"
    return None
