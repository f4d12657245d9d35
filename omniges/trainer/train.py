"""A training run from its settings to its summary: open, resume, train, save. docs/how-to/training.md describes it."""

from __future__ import annotations

import reprlib
import time
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from omniges.data.sequence import resume as check_state
from omniges.errors import EnvironmentFault, UsageFault
from omniges.generation.sampler import PROVENANCE_FILE, SETTINGS_FILE, STATE_FILE
from omniges.generation.writers import JAW_EYES_AT_REST
from omniges.model import checkpoint
from omniges.progress import Reporter, duration, make_reporter
from omniges.storage.atomic import locked, new_folder, refuse_links
from omniges.storage.documents import Document
from omniges.storage.files import json_document, parse_json
from omniges.trainer.config import TrainSettings, differences
from omniges.trainer.distributed import Ranks
from omniges.trainer.logging import LOG_FILE, TRACKER_FOLDERS, Logbook, Smoothed, open_trackers
from omniges.trainer.loop import Loop, Outcome, StopReason
from omniges.trainer.provenance import data_provenance, git_state, machine, package_versions
from omniges.trainer.run import Run, RunState, accelerated, open_run
from omniges.trainer.state import RANDOM, STATE_VERSION, read_provenance, read_state, state_of
from omniges.trainer.validation.best import BEST, Best, point_best, remove_best, save_and_prune
from omniges.trainer.validation.validator import VALIDATIONS, RunValidator

_TENSOR_FILES: Final = (checkpoint.MODEL_FILE, checkpoint.EMA_FILE, checkpoint.OPTIMIZER_FILE)
_PRETRAINED: Final = "pretrained"


@dataclass(frozen=True, slots=True)
class Summary:
    """Result of a training run."""

    run: Path
    step: int
    epoch: float
    outcome: Outcome
    best: Best | None
    speaks: bool
    """True on the process that prints the summary."""

    @property
    def lines(self) -> list[str]:
        """Lines for the terminal: why the run ended, its speed and loss, its checkpoints, and how to resume."""
        outcome = self.outcome
        signalled = outcome.stop_reason in {StopReason.STOPPED, StopReason.INTERRUPTED}
        if not outcome.steps and not signalled:
            limits = "--max-train-steps, --num-train-epochs or --max-minutes"
            return [f"nothing to do: {self.run} is at step {self.step}, where these settings end; raise {limits}"]
        how = {
            StopReason.DONE: "all steps done",
            StopReason.TIME_UP: "the time is up",
            StopReason.STOPPED: "stopped by a signal",
            StopReason.INTERRUPTED: "interrupted",
        }[outcome.stop_reason]
        if not outcome.steps:
            way = "resume" if self.step else "start"
            return [f"{how} at step {self.step}, before another step was done; run the same command again to {way}"]
        speed = outcome.samples / outcome.seconds
        where = f"{how} at step {self.step} (epoch {self.epoch:.1f})"
        pace = f"{outcome.steps} steps in {duration(outcome.seconds)}, {speed:.1f} samples/s"
        found = [f"{where}: {pace}, {outcome.waiting:.1%} waiting for data"]
        if outcome.loss is not None:
            found.append(f"loss {outcome.loss:.4f} over the last steps; every step: {self.run / 'log.jsonl'}")
        if outcome.checkpoint is not None:
            found.append(f"checkpoint: {outcome.checkpoint}")
        if self.best is not None:
            found.append(f"best: {self.run / BEST} (step {self.best.step}, {self.best.metric} {self.best.value:.4g})")
        if signalled:
            found.append("run the same command again to resume")
        return found


def train(settings: TrainSettings) -> Summary:
    """Run training, in one process or in several that torchrun or accelerate started.

    Args:
        settings: Settings of the run.

    Returns:
        The summary.

    Raises:
        UsageFault: The settings are invalid.
        DataError: A file is damaged, or losses are NaN or infinite, or diverge.
        EnvironmentFault: The disk, the network or another rank failed.
    """
    began_s = time.monotonic()
    if settings.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UsageFault("--mixed-precision fp16: expected a GPU, found none; use bf16 or no")
    with ExitStack() as stack:
        accelerator = stack.enter_context(accelerated(settings))
        ranks = Ranks(timedelta(seconds=settings.rank_timeout_s))
        if settings.sharding == "full" and ranks.world_size == 1:
            raise UsageFault(
                "--sharding full: expected several processes, found one; start them with torchrun, or use "
                "--sharding none"
            )
        with ranks.together("open the run"):
            if ranks.first:
                stack.enter_context(new_folder(settings.output_dir))
                stack.enter_context(locked(settings.output_dir))
                refuse_links(settings.output_dir, (checkpoint.CHECKPOINTS, VALIDATIONS, LOG_FILE, *TRACKER_FOLDERS))
                for name in (checkpoint.CHECKPOINTS, VALIDATIONS):
                    checkpoint.remove_unfinished(settings.output_dir / name)
        with ranks.together("open the shards"):
            run = open_run(settings, accelerator, ranks, stack)
        return _run_opened(run, began_s, stack)


def _run_opened(run: Run, began_s: float, stack: ExitStack) -> Summary:
    settings, ranks = run.settings, run.ranks
    found = _resume(run)
    state, choice, messages = found.state, found.choice, found.messages
    provenance = {
        "data": data_provenance(run.data),
        "git": git_state(),
        "packages": package_versions(),
        "machine": machine(run.accelerator.device, ranks.world_size),
    }
    if choice.checkpoint is not None:  # the checkpoint names the run's pretrained weights
        origin = read_provenance(choice.checkpoint).get(_PRETRAINED)
        provenance |= {} if origin is None else {_PRETRAINED: origin}
    config = settings.as_json()
    reporter = stack.enter_context(make_reporter("auto" if ranks.first else "silent"))
    with ranks.together("open the log"):
        trackers = open_trackers(settings.report_to, settings.output_dir, config) if ranks.first else []
        logbook = stack.enter_context(
            Logbook(settings.output_dir, trackers, active=ranks.first, log_message=reporter.say)
        )
    messages = _first_lines(run, state) + list(run.warnings) + messages
    for message in messages:
        reporter.say(message)
    passed = [{"path": str(path), "reason": reason} for path, reason in choice.passed]
    held_out = [] if run.validation is None else [one.provenance() for one in run.validation.held_out.windows]
    facts = {"settings": config, "provenance": provenance, "passed": passed, "remarks": messages}
    logbook.write("start", step=state.step, **facts, validation_windows=held_out)
    if run.start is not None and not found.resumed:
        with ranks.together("load the pretrained weights"):
            model = run.identity.build(settings.seed)
            initialized = run.start.fill(model, run.identity)
            run.learner.initialize(model)
            if ranks.first:
                for line in initialized.lines:
                    reporter.say(line)
                provenance[_PRETRAINED] = initialized.provenance()
                statuses = [status.as_json() for status in initialized.statuses]
                logbook.write(
                    "pretrained", **initialized.provenance(), tensors=statuses, remarks=list(initialized.warnings)
                )

    def save(state: RunState, alone: bool) -> Path:
        if alone and run.learner.sharded:
            raise EnvironmentFault(
                "expected all processes to save a sharded model, found only one; save in every process"
            )
        with nullcontext() if alone else ranks.together("save a checkpoint"):
            return _save(run, state, provenance, reporter)

    # The time limit includes the time to open the run.
    state.elapsed_s += time.monotonic() - began_s
    validator = None if run.validation is None else RunValidator(run, run.validation, logbook, reporter)
    outcome = Loop(run, state, save, logbook, reporter, validator).run()
    epoch = state.position / run.feed.windows_per_epoch
    return Summary(settings.output_dir, state.step, epoch, outcome, state.best, speaks=ranks.first)


def _first_lines(run: Run, state: RunState) -> list[str]:
    """Return lines for the terminal that describe the model, the data, the latents and the condition streams."""
    settings, feed = run.settings, run.feed
    count = sum(p.numel() for p in run.learner.model.parameters())
    clips = sum(len(source.catalog.table) for source in run.data)
    hours = sum(float(source.catalog.table.ticks.sum()) for source in run.data) / 36_000
    ranks = f"{run.ranks.world_size} processes, " if run.ranks.world_size > 1 else ""
    short = f", {feed.left_out_clips} shorter clips left out" if feed.left_out_clips else ""
    begins = f"resumes at step {state.step}" if state.step else "starts at step 0"
    model = (
        f"{run.identity.preset} model, {count / 1e6:.2f} million parameters, on {ranks}{run.accelerator.device.type}"
    )
    windows = f"{feed.windows_per_epoch} windows of {settings.window_ticks} ticks an epoch{short}"
    shards = f"{clips} clips ({hours:.2f} h), {windows}; global batch {feed.share.global_batch}"
    latents = [
        f"{stream}: latents of {entry.name}, fingerprint {entry.fingerprint[:16]}…, from the shards"
        for stream, entry in run.identity.codecs.items()
    ]
    streams = [
        f"condition stream {name}: {_shortened(one.settings())}" for name, one in run.identity.conditions.items()
    ]
    still = [] if run.identity.config.with_jaw_eyes else [f"{JAW_EYES_AT_REST}; 424 has them (--gesture-channels)"]
    return [f"{model}; {shards}; the run in {settings.output_dir} {begins}", *latents, *streams, *still]


def _shortened(settings: Mapping[str, Any]) -> str:
    return reprlib.repr(dict(settings)) if settings else "nothing learned from the training set"


# --- checkpoints


def _save(run: Run, state: RunState, provenance: dict[str, Any], reporter: Reporter) -> Path:
    """Save a checkpoint on the first rank; return its path on every rank."""
    with run.learner.complete(run.ranks) as tensors:
        return _write(run, state, provenance, reporter, tensors) if run.ranks.first else run.checkpoint(state.step)


def _write(
    run: Run,
    state: RunState,
    provenance: dict[str, Any],
    reporter: Reporter,
    tensors: Mapping[str, Mapping[str, Tensor]],
) -> Path:
    # The state without the learned tensors. Random numbers have no state: they are hashes of seed, position, purpose.
    document = {
        "version": STATE_VERSION,
        "step": state.step,
        "loader": run.feed.state_at(state.position),
        "random": {"kind": RANDOM, "seed": run.settings.seed},
        "loss_scale": run.learner.scale(),
        "smoothed_loss": state.smoothed.as_json(),
        "elapsed_s": state.elapsed_s,
        "validated": state.validated,
        "validated_tasks": None if run.validation is None else list(run.validation.tasks),
        "best": None if state.best is None else asdict(state.best),
        "machine": machine(run.accelerator.device, run.ranks.world_size),
    }
    documents = {STATE_FILE: document, SETTINGS_FILE: run.settings.as_json(), PROVENANCE_FILE: provenance}
    written = {name: json_document(found) for name, found in documents.items()} | run.identity.documents()
    contents = checkpoint.Contents(state.step, tensors, written)
    limit = run.settings.checkpoints_total_limit
    path, removed = save_and_prune(run.settings.output_dir, contents, limit, state.best)
    for one in removed:
        reporter.say(f"removed {one}: the limit is {limit} checkpoints")
    return path


@dataclass(frozen=True, slots=True)
class _Resumed:
    """Result of `_resume`: the state that the run continues from, and messages for the terminal."""

    state: RunState
    resumed: bool
    choice: checkpoint.Choice  # empty on all ranks but the first; only the first rank reads the files
    messages: list[str]


def _resume(run: Run) -> _Resumed:
    """Load the checkpoint that the settings select; without a checkpoint, start at step 0.

    Only the first rank reads the files.
    """
    settings, ranks = run.settings, run.ranks
    choice, read = checkpoint.Choice(None), {}
    with ranks.together("choose a checkpoint"):
        if ranks.first:
            choice = checkpoint.choose(settings.output_dir, settings.resume_from_checkpoint, partial(require_fit, run))
        saved = choice.checkpoint
        if saved is not None:
            read = {name: saved.fields(name).found for name in (STATE_FILE, SETTINGS_FILE)}
    documents = parse_json(ranks.from_first(json_document(read)))
    if not documents:
        _restore_best(run, None)
        return _Resumed(RunState(), False, choice, [])
    with ranks.together("load the checkpoint"):
        messages = [f"skipped {checkpoint.set_aside(path)}: {reason}" for path, reason in choice.passed]
        files = {} if saved is None else {name: saved.opened(name) for name in _TENSOR_FILES}
        state, more = _load(run, documents, files)
    if saved is not None:
        messages.append(f"resumes from {saved.path}")
    kept = _restore_best(run, state.best)
    if kept != state.best and state.best is not None:
        metric = settings.best_metric
        other = f"it was chosen by {state.best.metric}, now the metric is {metric}"
        why = "its checkpoint is gone" if state.best.metric == metric else other
        more.append(f"step {state.best.step} is no longer the best: {why}")
    state.best = kept
    return _Resumed(state, True, choice, messages + more)


def require_fit(run: Run, saved: checkpoint.SavedCheckpoint) -> None:
    """Check everything that resuming reads from a checkpoint, before any state of the run changes.

    Args:
        run: The run that is to resume.
        saved: The checkpoint.

    Raises:
        UsageFault: The model, the data, or a setting that determines the sequence of windows differs between the
            checkpoint and the run.
        DataError: A document or tensor has content that no run can have written.
    """
    run.identity.require_same(saved)
    state = read_state(saved)
    check_state(run.feed.state_at(0), saved.fields(STATE_FILE).part("loader").found)
    read_provenance(saved)
    run.learner.require_fit({name: saved.opened(name) for name in _TENSOR_FILES}, state.step, saved.path)


def _restore_best(run: Run, best: Best | None) -> Best | None:
    """Restore the best step of a saved run, and the link RUN/best to its checkpoint.

    If the checkpoint of `best` exists and this run uses the same metric, point RUN/best to the checkpoint and return
    `best`. Otherwise, remove RUN/best and return None.
    """
    folder, kept = run.settings.output_dir, 0
    with run.ranks.together("find the best checkpoint"):
        if run.ranks.first and best is not None and run.checkpoint(best.step).is_dir():
            kept = int(best.metric == run.settings.best_metric)
        if kept and best is not None:
            point_best(folder, run.checkpoint(best.step))
        elif run.ranks.first:
            remove_best(folder)
    return best if run.ranks.largest(kept) else None


def _load(
    run: Run, documents: Mapping[str, Any], files: Mapping[str, Mapping[str, Tensor]]
) -> tuple[RunState, list[str]]:
    """Load a checkpoint, and return the state and warnings. Only the first rank passes tensors (`files`)."""
    document = documents[STATE_FILE]
    found = state_of(Document(document, STATE_FILE, checkpoint.EDITED))
    run.learner.load(files, found.loss_scale, run.ranks)
    note = run.feed.load_state_dict(document["loader"]).note
    own, was = machine(run.accelerator.device, run.ranks.world_size), asdict(found.machine)
    other = [f"{name} was {was[name]}, is {own[name]}" for name in own if was[name] != own[name]]
    messages = [note] if note else []
    changed = differences(documents[SETTINGS_FILE], run.settings.as_json())
    if changed:
        messages.append(f"with other settings: {'; '.join(changed)}")
    best = found.best
    of_other_tasks = run.validation is not None and found.validated_tasks != run.validation.tasks
    if best is not None and best.metric == "loss" and of_other_tasks:
        messages.append(f"step {best.step} is no longer the best: its loss was the mean of other tasks")
        best = None
    if other:
        messages.append(f"results may differ in the last bits from a run without a stop: {'; '.join(other)}")
    state = RunState(
        step=found.step,
        position=found.loader.position,
        elapsed_s=found.elapsed_s,
        smoothed=Smoothed.of(found.smoothed_loss.value, found.smoothed_loss.lowest),
        validated=found.validated,
        best=best,
    )
    return state, messages
