"""A training run from its settings to its summary: opens what it needs, goes on where it was, learns, saves.

docs/training.md is the promise.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from omniges.data.sequence import resume as check_state
from omniges.errors import DataError, UsageFault
from omniges.features.text_slots import SlotCodec
from omniges.model.checkpoint import (
    CHECKPOINTS,
    EMA_FILE,
    MODEL_FILE,
    OPTIMIZER_FILE,
    Choice,
    Contents,
    SavedCheckpoint,
    choose,
    open_checkpoint,
    remove_unfinished,
    set_aside,
)
from omniges.model.losses import Smoothed
from omniges.model.presets import parameter_count
from omniges.pretrained.initialize import Start
from omniges.progress import Reporter, duration, make_reporter
from omniges.storage.atomic import locked, make_folder, refuse_links
from omniges.storage.canonical_json import json_document
from omniges.storage.remote import parse_location
from omniges.trainer.config import DEFAULT_VALIDATION_STEPS, TrainSettings, differences
from omniges.trainer.distributed import Ranks
from omniges.trainer.logging import LOG_FILE, TRACKER_FOLDERS, Logbook, open_trackers
from omniges.trainer.loop import Ending, Loop, LoopContext, Outcome
from omniges.trainer.provenance import data_provenance, git_state, machine, package_versions
from omniges.trainer.run import Run, accelerated, deterministic, open_run
from omniges.trainer.signals import Stopper
from omniges.trainer.state import RunState
from omniges.trainer.validation.best import BEST, Best, point_best, remove_best, save_and_prune
from omniges.trainer.validation.callback import HookSettings, RunValidator
from omniges.trainer.validation.store import VALIDATIONS

STATE_FILE: Final = "state.json"
SETTINGS_FILE: Final = "settings.json"
PROVENANCE_FILE: Final = "provenance.json"
_STATE_VERSION: Final = 1
_PRETRAINED: Final = "pretrained"


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run came to, and where it is."""

    run: Path
    step: int
    epoch: float
    outcome: Outcome
    best: Best | None
    speaks: bool
    """Whether this process is the one that tells."""

    @property
    def lines(self) -> list[str]:
        """For a person."""
        outcome = self.outcome
        if not outcome.steps:
            return [f"nothing to do: {self.run} is at step {self.step}, where these settings end; raise the limit"]
        how = {
            Ending.DONE: "all steps done",
            Ending.TIME_UP: "the time is up",
            Ending.STOPPED: "stopped by a signal",
            Ending.INTERRUPTED: "interrupted",
        }[outcome.ending]
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
        if outcome.ending in {Ending.STOPPED, Ending.INTERRUPTED}:
            found.append("the same command goes on from there")
        return found


def train(settings: TrainSettings) -> Summary:
    """Carry out a run; several processes started by torchrun or accelerate make one.

    Raises UsageFault, DataError or EnvironmentFault, each with a line a person can act on.
    """
    began_s = time.monotonic()
    if settings.mixed_precision == "fp16" and not torch.cuda.is_available():
        raise UsageFault("--mixed-precision fp16: a GPU expected, found none: take bf16 or no")
    with ExitStack() as stack:
        accelerator = stack.enter_context(accelerated(settings))
        stack.enter_context(deterministic(accelerator.device))
        ranks = Ranks()
        with ranks.together("open the run"):
            if ranks.first:
                make_folder(settings.output_dir)
                stack.enter_context(locked(settings.output_dir))
                refuse_links(settings.output_dir, (CHECKPOINTS, VALIDATIONS, LOG_FILE, *TRACKER_FOLDERS))
                for name in (CHECKPOINTS, VALIDATIONS):
                    remove_unfinished(settings.output_dir / name)
        with ranks.together("open the shards"):
            run = open_run(settings, accelerator, ranks, stack)
        return _carry_out(run, began_s, stack)


def _carry_out(run: Run, began_s: float, stack: ExitStack) -> Summary:
    settings, ranks = run.settings, run.ranks
    state, choice, remarks = _resume(run)
    provenance = {
        "data": data_provenance(run.data),
        "git": git_state(),
        "packages": package_versions(),
        "machine": machine(run.accelerator.device, ranks.world_size),
    }
    if choice.checkpoint is not None:  # what it goes on from remembers what the run began with
        origin = choice.checkpoint.document(PROVENANCE_FILE).get(_PRETRAINED)
        provenance |= {} if origin is None else {_PRETRAINED: origin}
    config = settings.as_json()
    with ranks.together("open the log"):
        trackers = open_trackers(settings.report_to, settings.output_dir, config) if ranks.first else []
        logbook = stack.enter_context(Logbook(settings.output_dir, trackers, active=ranks.first))
    reporter = stack.enter_context(make_reporter("auto" if ranks.first else "silent"))
    remarks = _welcome(run, state) + list(run.remarks) + remarks
    for remark in remarks:
        reporter.say(remark)
    passed = [{"path": str(path), "reason": reason} for path, reason in choice.passed]
    held_out = [] if run.validation is None else [one.provenance() for one in run.validation.held_out.windows]
    facts = {"settings": config, "provenance": provenance, "passed": passed, "remarks": remarks}
    logbook.write("start", step=state.step, **facts, validation_windows=held_out)
    if run.start is not None and choice.checkpoint is None:
        with ranks.together("load the pretrained weights"):
            provenance |= _begin_with(run, run.start, logbook, reporter)

    def save(state: RunState) -> Path:
        with ranks.together("save a checkpoint"):
            return _save(run, state, provenance, reporter)

    # What it took to get here counts: a limit of minutes is what a person waits.
    state.elapsed_s += time.monotonic() - began_s
    validator = _validator(run, logbook, reporter)
    around = LoopContext(
        rate=run.rate,
        last_step=run.last_step,
        trace=_trace_command(run),
        ranks=ranks,
        save=save,
        logbook=logbook,
        reporter=reporter,
        stopper=Stopper(),
        validator=validator,
    )
    loop = Loop(run.learner, run.feed, state, settings, around)
    outcome = loop.run()
    epoch = state.position / run.feed.windows_per_epoch
    return Summary(settings.output_dir, state.step, epoch, outcome, state.best, speaks=ranks.first)


def _validator(run: Run, logbook: Logbook, reporter: Reporter) -> RunValidator | None:
    settings = run.settings
    if run.validation is None:
        return None
    hook = HookSettings(
        run=settings.output_dir,
        every_steps=settings.validation_steps or DEFAULT_VALIDATION_STEPS,
        best_metric=settings.best_metric,
        preset=run.identity.preset,
        kept=settings.checkpoints_total_limit,
    )
    return RunValidator(run.validation, hook, run.ranks, logbook, reporter)


def _begin_with(run: Run, start: Start, logbook: Logbook, reporter: Reporter) -> dict[str, Any]:
    """Fill the model with pretrained weights, tell where every one comes from; what checkpoints remember of it."""
    begun = run.learner.begin_with(lambda model: start.fill(model, run.identity))
    if not run.ranks.first:
        return {}
    reporter.say("\n".join(begun.lines))
    origin = begun.provenance()
    fates = [fate.as_json() for fate in begun.fates]
    logbook.write("pretrained", **origin, tensors=fates, remarks=list(begun.remarks))
    return {_PRETRAINED: origin}


def _trace_command(run: Run) -> tuple[str, ...] | None:
    """Return the words of the command that lists batches, but for ranks and steps; None where there is none."""
    settings = run.settings
    location = parse_location(settings.shards[0])
    if len(settings.shards) > 1 or not location.path:
        return None
    words = ["omniges", "trace-batches", f"--shards={location}", f"--window-ticks={settings.window_ticks}"]
    words += [f"--{stream}-codec={name}" for stream, name in settings.codecs.items()]
    words += [f"--tick-multiple={run.identity.tick_multiple}"] if run.identity.config.audio_grid else []
    return (*words, f"--seed={settings.seed}")


def _welcome(run: Run, state: RunState) -> list[str]:
    """What a person should know before the first step."""
    settings, feed = run.settings, run.feed
    count = parameter_count(
        run.identity.config,
        pieces=SlotCodec(run.identity.tokenizer).pieces,
        speakers=len(run.identity.speakers),
        codecs=run.identity.codec_latents(),
    )
    clips = sum(len(source.catalog.table) for source in run.data)
    hours = sum(float(source.catalog.table.ticks.sum()) for source in run.data) / 36_000
    ranks = f"{run.ranks.world_size} processes, " if run.ranks.world_size > 1 else ""
    short = f", {feed.left_out_clips} shorter clips left out" if feed.left_out_clips else ""
    begins = f"goes on at step {state.step}" if state.step else "begins"
    model = (
        f"{run.identity.preset} model, {count / 1e6:.2f} million parameters, on {ranks}{run.accelerator.device.type}"
    )
    windows = f"{feed.windows_per_epoch} windows of {settings.window_ticks} ticks an epoch{short}"
    shards = f"{clips} clips ({hours:.2f} h), {windows}; global batch {feed.share.global_batch}"
    latents = [
        f"{stream}: latents of {entry.name}, fingerprint {entry.fingerprint[:16]}…, from the shards"
        for stream, entry in run.identity.codecs.items()
    ]
    return [f"{model}; {shards}; run {settings.output_dir} {begins}", *latents]


# --- checkpoints


def _save(run: Run, state: RunState, provenance: dict[str, Any], reporter: Reporter) -> Path:
    """Save on the first rank; every rank returns the path."""
    folder = run.settings.output_dir / CHECKPOINTS
    if not run.ranks.first:
        return folder / f"step-{state.step:06d}"
    documents = {
        STATE_FILE: json_document(_state_document(run, state)),
        SETTINGS_FILE: json_document(run.settings.as_json()),
        PROVENANCE_FILE: json_document(provenance),
    }
    contents = Contents(state.step, run.learner.tensors(), documents | run.identity.documents())
    limit = run.settings.checkpoints_total_limit
    path, removed = save_and_prune(run.settings.output_dir, contents, limit, state.best)
    for one in removed:
        reporter.say(f"removed {one}, for {limit} newer ones are kept")
    return path


def _state_document(run: Run, state: RunState) -> dict[str, Any]:
    """Everything but what was learned. Random numbers have no state: they are hashes of seed, position and purpose."""
    return {
        "version": _STATE_VERSION,
        "step": state.step,
        "loader": run.feed.state_at(state.position),
        "random": {"kind": "philox4x32-10 of (seed, position, purpose)", "seed": run.settings.seed},
        "loss_scale": run.learner.scale(),
        "smoothed_loss": state.smoothed.as_json(),
        "elapsed_s": state.elapsed_s,
        "validated": state.validated,
        "best": None if state.best is None else state.best.as_json(),
        "machine": machine(run.accelerator.device, run.ranks.world_size),
    }


def _resume(run: Run) -> tuple[RunState, Choice, list[str]]:
    """Load the checkpoint that the settings ask for; the first rank chooses, all of them load it."""
    settings, ranks = run.settings, run.ranks

    def fits(saved: SavedCheckpoint) -> None:
        run.identity.require_same(saved)
        check_state(run.feed.state_at(0), saved.document(STATE_FILE)["loader"])

    choice = Choice(None)
    with ranks.together("choose a checkpoint"):
        if ranks.first:
            choice = choose(settings.output_dir, settings.resume, fits)
    chosen = choice.checkpoint
    step = ranks.largest(-1 if chosen is None else chosen.step)
    if step < 0:
        _crown_again(run, None)
        return RunState(), choice, []
    with ranks.together("load the checkpoint"):
        remarks = [f"passed over {set_aside(path)}: {reason}" for path, reason in choice.passed]
        if chosen is None:  # on the other ranks: the first has checked every byte
            folder = settings.output_dir / CHECKPOINTS / f"step-{step:06d}"
            chosen = open_checkpoint(folder if settings.resume == "latest" else Path(settings.resume), bytewise=False)
        state, more = _load(run, chosen)
    kept = _crown_again(run, state.best)
    if kept != state.best and state.best is not None:
        metric = settings.best_metric
        other = f"it was by {state.best.metric}, now it goes by {metric}"
        why = "its checkpoint is gone" if state.best.metric == metric else other
        more.append(f"step {state.best.step} is no longer the best: {why}")
    state.best = kept
    return state, replace(choice, checkpoint=chosen), remarks + more


def _crown_again(run: Run, best: Best | None) -> Best | None:
    """Let RUN/best lead where a checkpoint's state says; returns it if it is there and of this metric."""
    folder = run.settings.output_dir
    path = None if best is None else folder / CHECKPOINTS / f"step-{best.step:06d}"
    kept = 0
    with run.ranks.together("find the best checkpoint"):
        if run.ranks.first and best is not None and path is not None and path.is_dir():
            kept = int(best.metric == run.settings.best_metric)
        if run.ranks.first and kept and path is not None:
            point_best(folder, path)
        elif run.ranks.first:
            remove_best(folder)
    return best if run.ranks.largest(kept) else None


def _load(run: Run, saved: SavedCheckpoint) -> tuple[RunState, list[str]]:
    document = saved.document(STATE_FILE)
    if document.get("version") != _STATE_VERSION:
        raise DataError(
            f"{saved.path / STATE_FILE}: version {_STATE_VERSION} expected, found {document.get('version')}"
        )
    files = {name: saved.tensors(name) for name in (MODEL_FILE, EMA_FILE, OPTIMIZER_FILE)}
    run.learner.load(files, document["loss_scale"], str(saved.path))
    note = run.feed.load(document["loader"])
    own = machine(run.accelerator.device, run.ranks.world_size)
    other = [f"{name} was {document['machine'].get(name)}, is {own[name]}" for name in own]
    other = [line for line, name in zip(other, own, strict=True) if document["machine"].get(name) != own[name]]
    remarks = [f"goes on from {saved.path}"] + ([note] if note else [])
    changed = differences(saved.document(SETTINGS_FILE), run.settings.as_json())
    if changed:
        remarks.append(f"with other settings: {'; '.join(changed)}")
    if other:
        remarks.append(f"not to the last bit as without the stop, for {'; '.join(other)}")
    state = RunState(
        step=document["step"],
        position=document["loader"]["position"],
        elapsed_s=document["elapsed_s"],
        smoothed=Smoothed.from_json(document["smoothed_loss"]),
        validated=document.get("validated", 0),  # there was no validation once
        best=None if document.get("best") is None else Best.from_json(document["best"]),
    )
    return state, remarks
