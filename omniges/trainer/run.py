"""What a training run has open: device, shards, feed, model and learner, from its settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import cast

import torch
import torch.utils.deterministic as determinism
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState

from omniges.data.catalog import Filters, read_catalog
from omniges.data.loader import LoaderSettings
from omniges.data.order import RankShare
from omniges.data.remote_shards import CacheSettings, RemoteShards, open_location
from omniges.data.sequence import DataSource, Sequencing
from omniges.errors import UsageFault
from omniges.features.audio import Loudness
from omniges.model.spec import ModelIdentity
from omniges.model.streams import StreamName
from omniges.pretrained.initialize import Start, open_start
from omniges.shards.dataset import read_dataset
from omniges.shards.latents import CodecEntry
from omniges.shards.reader import read_beside
from omniges.shards.schema import LATENTS_FILE, STATS_FILE
from omniges.storage.remote import parse_location
from omniges.trainer.batches import Feed, speakers_of
from omniges.trainer.config import TrainSettings
from omniges.trainer.distributed import Ranks
from omniges.trainer.optimizer import LearningRate
from omniges.trainer.train_step import Learner
from omniges.trainer.validation.run import Validation
from omniges.trainer.validation.setup import open_validation


@contextmanager
def accelerated(settings: TrainSettings) -> Iterator[Accelerator]:
    """Device, precision and processes; undone behind it, so that a process can train twice."""
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    try:
        yield Accelerator(
            cpu=not torch.cuda.is_available(), mixed_precision=settings.mixed_precision, kwargs_handlers=[ddp]
        )
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On a CPU, sums that threads would add up in any order are added up in one (it costs nothing that one sees)."""
    before = torch.are_deterministic_algorithms_enabled()
    filled = determinism.fill_uninitialized_memory  # type: ignore[attr-defined]
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)
        determinism.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        determinism.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Run:
    """Everything a run has open."""

    settings: TrainSettings
    accelerator: Accelerator
    ranks: Ranks
    data: tuple[DataSource, ...]
    feed: Feed
    identity: ModelIdentity
    start: Start | None
    learner: Learner
    last_step: int | None
    rate: LearningRate
    validation: Validation | None
    remarks: tuple[str, ...]


def open_run(settings: TrainSettings, accelerator: Accelerator, ranks: Ranks, stack: ExitStack) -> Run:
    """Open what the settings name; the stack closes it. Raises UsageFault, DataError or EnvironmentFault."""
    weights = settings.shard_weights or (1.0,) * len(settings.shards)
    data = tuple(_source(settings, text, weight, stack) for text, weight in zip(settings.shards, weights, strict=True))
    share = RankShare(
        rank=ranks.rank,
        world_size=ranks.world_size,
        batch_size=settings.train_batch_size,
        accumulation=settings.gradient_accumulation_steps,
    )
    # Of a run that goes on, pretrained weights decide the model's sizes.
    start = None
    if settings.pretrained_model_name_or_path is not None:
        path, which = settings.pretrained_model_name_or_path, settings.pretrained_weights
        start = open_start(path, which, settings.model, settings.audio_codec)
    identity = _identity(settings, data, start)
    sequencing = Sequencing(
        window_ticks=settings.window_ticks, seed=settings.seed, tick_multiple=identity.tick_multiple
    )
    loading = LoaderSettings(workers=settings.num_workers)
    feed = Feed(data, sequencing, share, loading, accelerator.device, identity)
    stack.enter_context(feed)
    last_step = _last_step(settings, feed.windows_per_epoch, share.global_batch)
    rate = LearningRate(
        peak=cast("float", settings.learning_rate),
        schedule=settings.lr_schedule,
        warmup_steps=settings.lr_warmup_steps,
        total_steps=last_step,
    )
    model = identity.build(settings.seed)
    model.trunk.gradient_checkpointing = settings.gradient_checkpointing
    learner = Learner(model, accelerator, settings, rate)
    validation, remarks = open_validation(settings, data, identity, learner, ranks)
    return Run(
        settings=settings,
        accelerator=accelerator,
        ranks=ranks,
        data=data,
        feed=feed,
        identity=identity,
        start=start,
        learner=learner,
        last_step=last_step,
        rate=rate,
        validation=validation,
        remarks=tuple(remarks),
    )


def _identity(settings: TrainSettings, data: Sequence[DataSource], start: Start | None) -> ModelIdentity:
    first = data[0].catalog
    identity = ModelIdentity(
        preset=cast("str", settings.preset) if start is None else start.preset,
        config=settings.model_config() if start is None else start.config,
        window_ticks=settings.window_ticks,
        speakers=speakers_of(data),
        statistics=read_beside(first.folder, STATS_FILE, read_dataset(first.folder)),
        tokenizer=first.tokenizer,
        codecs=cast("Mapping[StreamName, CodecEntry]", first.codecs),
        latents=read_beside(first.folder, LATENTS_FILE, read_dataset(first.folder)) if first.codecs else b"",
        loudness=_loudness(data),
    )
    return identity if start is None else start.adopt(identity)


def _loudness(data: Sequence[DataSource]) -> Loudness:
    """The rule by which the audio of all folders was scaled; raises UsageFault where they have several."""
    rules = [read_dataset(source.catalog.folder)["settings"]["convert"]["loudness"] for source in data]
    if len(set(rules)) > 1:
        found = ", ".join(f"{rule} in {source.catalog.folder}" for rule, source in zip(rules, data, strict=True))
        raise UsageFault(f"--shards: one loudness expected, found {found}: preprocess them with the same --loudness")
    return cast("Loudness", rules[0])


def _source(settings: TrainSettings, text: str, weight: float, stack: ExitStack) -> DataSource:
    """The train split of a local folder, or of a URL through the cache."""
    location = parse_location(text)
    cache = CacheSettings(folder=settings.cache_dir.expanduser(), capacity_bytes=int(settings.cache_gb * 1e9))
    shards = open_location(location, cache, splits=("train",) if settings.validation_steps == 0 else ("train", "val"))
    if isinstance(shards, RemoteShards):
        stack.callback(shards.close)
    return DataSource(read_catalog(shards.folder, Filters(split="train"), settings.codecs), weight, shards=shards)


def _last_step(settings: TrainSettings, windows: int, global_batch: int) -> int | None:
    """The step at which epochs or steps end the run, whichever is first; None where only the clock does."""
    limits = []
    if settings.max_train_steps is not None:
        limits.append(settings.max_train_steps)
    if settings.num_train_epochs is not None:
        limits.append(max(1, -int(-(settings.num_train_epochs * windows) // global_batch)))
    return min(limits, default=None)
