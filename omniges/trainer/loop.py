"""The training loop: steps, requests to stop, log lines and checkpoints. All ranks take the same steps.

The run aborts if a loss or gradient is NaN or infinite, or if the loss diverges.
"""

from __future__ import annotations

import contextlib
import enum
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
import numpy.typing as npt
import torch

from omniges.errors import DataError, EnvironmentFault, ExitCode, OmnigesError, first_of
from omniges.model.draws import Plan, draw_plan
from omniges.model.flow import Windows
from omniges.model.tasks import TASKS
from omniges.progress import Progress, Reporter, duration
from omniges.storage.redact import one_line
from omniges.storage.remote import parse_location
from omniges.trainer.distributed import Interrupted, StopNow, Stopper, exchanging
from omniges.trainer.logging import Logbook, in_order, per_step, per_stream, per_task
from omniges.trainer.run import Run, RunState
from omniges.trainer.train_step import ema_decay
from omniges.trainer.validation.validator import RunValidator

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_SHOWN: Final = 3
"""Largest number of windows that an error names; the log names all windows."""


class StopReason(enum.IntEnum):
    """Reason why a run stops; NONE while it continues. If ranks have different reasons, all use the largest value."""

    NONE = 0
    DONE = 1
    TIME_UP = 2
    STOPPED = 3
    INTERRUPTED = 4
    FAILED = 5


_OF_SIGNALS: Final = {ExitCode.STOPPED: StopReason.STOPPED, ExitCode.INTERRUPTED: StopReason.INTERRUPTED}
_EXIT_CODES: Final = {StopReason.STOPPED: ExitCode.STOPPED, StopReason.INTERRUPTED: ExitCode.INTERRUPTED}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProgress(Progress):
    """Progress of a run: current step and epoch, loss and speed since the last report, and estimated time left."""

    step: int
    last_step: int | None  # None: only a time limit ends the run
    epoch: float
    loss: float
    learning_rate: float
    samples_per_s: float
    waiting: float  # share of the time spent waiting for data
    left_s: float | None

    @property
    def line(self) -> str:
        """Progress as a line of text for the terminal."""
        of = f"/{self.last_step}" if self.last_step is not None else ""
        left = "" if self.left_s is None else f", {duration(self.left_s)} left"
        return (
            f"step {self.step}{of} (epoch {self.epoch:.1f}): loss {self.loss:.4f}, lr {self.learning_rate:.2g}, "
            f"{self.samples_per_s:.1f} samples/s, {self.waiting:.1%} waiting for data{left}"
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of the loop: stop reason, numbers of steps and windows, seconds, last loss, and last checkpoint."""

    stop_reason: StopReason
    steps: int  # since the run was started or resumed
    samples: int
    seconds: float
    waiting: float  # share of the time spent waiting for data
    loss: float | None  # mean over the steps of the last log line
    checkpoint: Path | None  # last checkpoint since the run was started or resumed

    @property
    def exit_code(self) -> ExitCode:
        """Exit code of `omniges train`."""
        return _EXIT_CODES.get(self.stop_reason, ExitCode.OK)


@dataclass(slots=True)
class _Interval:
    """Measurements of the steps since the last log line. Losses and gradient norms are tensors on the device."""

    each: list[torch.Tensor] = field(default_factory=list)  # losses (B, 3) of each micro-step
    norms: list[torch.Tensor] = field(default_factory=list)  # gradient norm of each step, a scalar
    starts: list[int] = field(default_factory=list)  # first position of each step
    began_s: float = field(default_factory=time.monotonic)
    waited_s: float = 0.0


class Loop:
    """Training loop, which continues from a state until there is a reason to stop."""

    def __init__(
        self,
        run: Run,
        state: RunState,
        save: Callable[[RunState, bool], Path],
        logbook: Logbook,
        reporter: Reporter,
        validator: RunValidator | None,
    ) -> None:
        """Prepare the loop.

        Args:
            run: Settings, data loader, model and other open resources of the run.
            state: State to continue from, which the loop updates.
            save: Function ``save(state, alone)`` that saves a checkpoint and returns its folder. All ranks must call it
                together, except with ``alone=True``, which saves on this rank without waiting for the others.
            logbook: Log of the run.
            reporter: Object that prints progress on the terminal.
            validator: Validation of the run; None: the run has no validation.
        """
        self._identity, self._state, self._save_state = run.identity, state, save
        self._logbook, self._reporter, self._validator = logbook, reporter, validator
        self._settings, self._learner, self._feed, self._ranks = run.settings, run.learner, run.feed, run.ranks
        self._flow, self._rate = run.settings.flow_settings(), run.learner.rate
        self._limit_s = None if run.settings.max_minutes is None else run.settings.max_minutes * 60
        self._stopper = Stopper()
        self._interval = _Interval()
        self._began_s, self._elapsed_before_s = time.monotonic(), state.elapsed_s
        self._first_step = self._saved_step = state.step
        self._checkpoint: Path | None = None
        self._waited_s = 0.0
        self._loss: float | None = None
        self._fault: OmnigesError | None = None
        self._consistent = True  # True if weights and state belong to the same step

    def run(self) -> Outcome:
        """Train until there is a reason to stop; then save a checkpoint, unless the losses are invalid.

        Returns:
            Stop reason, counts and last checkpoint, see `Outcome`.

        Raises:
            DataError: Losses or gradients are NaN or infinite, or losses diverge, or a batch cannot be read.
            EnvironmentFault: Another rank failed, ended or does not answer.
        """
        with self._stopper:
            try:
                with exchanging(self._ranks.world_size):
                    reason = self._learn()
            except Exception as error:
                self._save_before_exit(error)
                raise
        steps = self._state.step - self._first_step
        seconds = time.monotonic() - self._began_s
        self._logbook.write("end", ending=reason.name.lower(), step=self._state.step, seconds=round(seconds, 3))
        if reason is StopReason.FAILED:
            raise self._fault or EnvironmentFault(
                "expected every process to read its batch, found that another process could not; see the message of "
                "that process"
            )
        return Outcome(
            stop_reason=reason,
            steps=steps,
            samples=steps * self._feed.share.global_batch,
            seconds=seconds,
            waiting=self._waited_s / seconds if seconds > 0 else 0.0,
            loss=self._loss,
            checkpoint=self._checkpoint,
        )

    def _learn(self) -> StopReason:
        reason = self._validate() if self._due() else StopReason.NONE  # if the last run stopped before validation
        while reason is StopReason.NONE:
            reason = self._step()
            if reason is StopReason.NONE:
                reason = self._after_step()
        self._read_losses()
        if reason is StopReason.DONE and self._state.step > self._first_step:
            reason = max(reason, self._validate())
        if self._state.step > self._saved_step:
            self._save()
        return reason

    def _save_before_exit(self, error: Exception) -> None:
        """Save the last complete step after an unexpected error, and write the error to the log.

        The other ranks do not know of the error, so this rank saves without them. Errors during the save are
        suppressed: they may have the same cause, and the user needs to see the first error.
        """
        state = self._state
        with contextlib.suppress(OmnigesError):
            if self._consistent and state.step > self._saved_step:
                self._save(alone=True)
        with contextlib.suppress(OmnigesError):
            seconds = round(time.monotonic() - self._began_s, 3)
            failed = {
                "ending": StopReason.FAILED.name.lower(),
                "error": one_line(f"{type(error).__name__}: {error}", 500),
            }
            self._logbook.write("end", step=state.step, seconds=seconds, **failed)

    # --- one step

    def _step(self) -> StopReason:
        """Take one training step and return `StopReason.NONE`.

        If the run has to stop, leave the weights unchanged and return the reason.
        """
        if self._rate.total_steps is not None and self._state.step >= self._rate.total_steps:
            return StopReason.DONE
        each = []
        for micro_step in range(self._feed.share.accumulation):
            fetched, reason = self._fetch(first=micro_step == 0)
            if fetched is None:
                self._learner.discard()
                return reason
            losses = self._compute(*fetched, last=micro_step == self._feed.share.accumulation - 1)
            if losses is None:
                self._learner.discard()
                return self._stop_reason()
            each.append(losses)
        self._consistent = False
        self._interval.norms.append(self._learner.finish_step(self._state.step))
        self._interval.each += each
        self._interval.starts.append(self._state.position)
        self._state.step += 1
        self._state.position = self._feed.position
        self._state.elapsed_s = self._elapsed_before_s + time.monotonic() - self._began_s
        self._consistent = True
        return StopReason.NONE

    def _fetch(self, *, first: bool) -> tuple[tuple[Windows, I64] | None, StopReason]:
        """Return a batch and `StopReason.NONE` if all ranks can continue; otherwise return None and the stop reason.

        `first` is True for the first micro-batch of a step. The time limit of the run is checked only then.
        """
        fetched = None
        own = StopReason.NONE
        began = time.monotonic()
        try:
            with self._stopper.interruptible():
                fetched = self._feed.next()
        except StopNow:
            pass
        except OmnigesError as error:
            self._fault, own = error, StopReason.FAILED
        waited = time.monotonic() - began
        self._interval.waited_s += waited
        self._waited_s += waited
        elapsed = self._elapsed_before_s + time.monotonic() - self._began_s
        late = self._limit_s is not None and elapsed >= self._limit_s
        own = max(own, self._stop_reason(), StopReason.TIME_UP if first and late else StopReason.NONE)
        agreed = StopReason(self._ranks.largest(own))
        return (fetched if agreed is StopReason.NONE else None), agreed

    def _compute(self, windows: Windows, positions: I64, *, last: bool) -> torch.Tensor | None:
        """Compute and return the losses of a micro-batch, and accumulate its gradients; return None on a stop request.

        `last` is True for the last micro-batch of a step. With several ranks, every micro-batch is completed, because
        the other ranks wait for its gradients.
        """
        try:
            with self._stopper.interruptible(self._ranks.world_size == 1):
                streams = None if windows.present is None else windows.present.streams
                plan = draw_plan(self._flow, self._settings.seed, positions, streams, self._identity.conditions)
                return self._learner.micro_step(windows, plan, last=last)
        except StopNow:
            return None

    def _stop_reason(self) -> StopReason:
        code = self._stopper.exit_code
        return StopReason.NONE if code is None else _OF_SIGNALS[code]

    # --- between steps

    def _after_step(self) -> StopReason:
        step = self._state.step
        saves = step % self._settings.checkpointing_steps == 0
        if saves or self._due() or step % self._settings.logging_steps == 0:
            self._read_losses()
        reason = self._validate() if self._due() else StopReason.NONE
        if saves and self._saved_step < step:
            self._save()
        return reason

    def _due(self) -> bool:
        return self._validator is not None and self._state.step % self._validator.every_steps == 0

    def _validate(self) -> StopReason:
        """Validate the current step if it is not validated yet; return the reason to stop, or `StopReason.NONE`.

        If the step is the best so far and has no checkpoint yet, save a checkpoint.
        """
        state = self._state
        if self._validator is None or state.validated >= state.step:
            return StopReason.NONE
        try:
            self._validator.validate(state, self._stopper)
        except Interrupted:
            return StopReason(self._ranks.largest(self._stop_reason()))
        except OmnigesError as error:
            self._fault = error
            return StopReason.FAILED
        finally:
            self._interval = _Interval()  # the time of validation does not count as time of steps
        state.validated = state.step
        if state.best is not None and state.best.step == state.step and not self._validator.mark_best(state):
            self._save()
        return StopReason.NONE

    def _save(self, *, alone: bool = False) -> None:
        began = time.monotonic()
        self._consistent = False  # if the save fails, `_save_before_exit` must not repeat it
        self._checkpoint = self._save_state(self._state, alone)
        self._consistent = True
        self._saved_step = self._state.step
        seconds = round(time.monotonic() - began, 3)
        self._logbook.write("checkpoint", step=self._state.step, path=str(self._checkpoint), seconds=seconds)
        self._logbook.sync()
        self._reporter.say(f"saved {self._checkpoint}")

    def _read_losses(self) -> None:
        """Read the losses since the last log line from the device, check them and log them.

        All other methods leave the losses on the device, so a training step does not have to wait for the device.
        """
        interval, self._interval = self._interval, _Interval()
        steps = len(interval.starts)
        if not steps:
            return
        gathered = self._ranks.gathered(torch.stack(interval.each)).cpu().numpy().astype(np.float64)
        norms = torch.stack(interval.norms).cpu().numpy().astype(np.float64)
        losses = in_order(gathered, steps)
        totals = per_step(losses, self._flow.weights)
        first = self._state.step - steps
        self._require_finite(first, interval.starts, losses, norms)
        smoothed, factor = self._state.smoothed, self._settings.divergence_factor
        for k, (start, total) in enumerate(zip(interval.starts, totals.tolist(), strict=True)):
            if smoothed.add(total) > factor:
                times = f"over {factor:g} times its minimum, {smoothed.lowest:.4g}"
                batch = np.arange(start, start + losses.shape[1])
                self._refuse(first + k, batch, f"the smoothed loss is {smoothed.value:.4g}, {times}")
        self._loss = float(totals.mean())
        self._log(interval, losses, totals, norms)

    def _log(self, interval: _Interval, losses: F64, totals: F64, norms: F64) -> None:
        """Write one log line with the losses of an interval, and report progress.

        `losses` (steps, G, 3) are the losses of G windows in each step, for three streams. `totals` (steps,) are the
        losses of the steps, and `norms` (steps,) are their gradient norms.
        """
        settings, state = self._settings, self._state
        steps, samples = len(totals), losses.shape[1]
        positions = (np.array(interval.starts)[:, None] + np.arange(samples)).reshape(-1)
        plan = self._plan_at(positions)
        flat = losses.reshape(-1, losses.shape[2])
        seconds = max(time.monotonic() - interval.began_s, 1e-9)
        rate = steps * samples / seconds
        facts: dict[str, Any] = {
            "loss": float(totals.mean()),
            "tasks": per_task(flat, plan, self._flow.weights),
            "streams": per_stream(flat, plan),
            "learning_rate": self._rate.at(state.step - 1),
            "gradient_norm": float(norms[np.isfinite(norms)].mean()) if np.isfinite(norms).any() else None,
            "ema_decay": ema_decay(settings.ema_decay, state.step - 1),
            "smoothed_loss": state.smoothed.value,
            "epoch": state.position / self._feed.windows_per_epoch,
            "samples_per_s": round(rate, 3),
            "waiting_for_data": round(interval.waited_s / seconds, 5),
            "elapsed_s": round(state.elapsed_s, 3),
        }
        kept = [norm if np.isfinite(norm) else None for norm in norms.tolist()]  # None: a step that fp16 skipped
        self._logbook.write("steps", step=state.step, **facts, losses=totals.tolist(), gradient_norms=kept)
        self._logbook.track(state.step, facts)
        left = [] if self._rate.total_steps is None else [(self._rate.total_steps - state.step) * (seconds / steps)]
        left += [] if self._limit_s is None else [max(0.0, self._limit_s - state.elapsed_s)]
        self._reporter.update(
            StepProgress(
                step=state.step,
                last_step=self._rate.total_steps,
                epoch=facts["epoch"],
                loss=facts["loss"],
                learning_rate=facts["learning_rate"],
                samples_per_s=rate,
                waiting=facts["waiting_for_data"],
                left_s=min(left, default=None),
            )
        )

    def _plan_at(self, positions: I64) -> Plan:
        """Return the random draws (tasks, noise levels) of P windows; their `positions` (P,) may belong to any rank."""
        return draw_plan(self._flow, self._settings.seed, positions, self._feed.streams_at(positions))

    # --- invalid losses

    def _require_finite(self, first: int, starts: list[int], losses: F64, norms: F64) -> None:
        """Raise DataError for the first step with a NaN or infinite loss or gradient.

        With fp16, a gradient may overflow. Then the loss scale is lowered and the step is skipped, without an error.

        Args:
            first: Index of the training step to which row 0 of `losses` and `norms` belongs.
            starts: First position of each step in the training sequence.
            losses: Losses (steps, G, 3) of the G windows in each step, for three streams.
            norms: Gradient norm of each step, (steps,).
        """
        scaled = self._learner.scale() is not None
        for k, start in enumerate(starts):
            bad = np.flatnonzero(~np.isfinite(losses[k]).all(axis=1))
            if len(bad):
                what = f"the loss of {len(bad)} of {losses.shape[1]} samples is NaN or infinite"
                self._refuse(first + k, start + bad, what)
            if not np.isfinite(norms[k]) and not scaled:
                batch = np.arange(start, start + losses.shape[1])
                self._refuse(
                    first + k, batch, "the gradient is NaN or infinite, although the loss of each sample is finite"
                )

    def _refuse(self, step: int, positions: I64, what: str) -> NoReturn:
        """Log the windows because of which a step is refused, and raise DataError; the step is not saved later.

        `positions` (P,) are the positions of these P windows in the training sequence. The error names the first
        windows. If `_trace_command` returns a command, the error also contains this command.
        """
        self._consistent = False
        plan, places = self._plan_at(positions), self._feed.places(positions)
        tasks = [list(TASKS)[number] for number in plan.task.tolist()]
        samples = [asdict(place) | {"task": task} for place, task in zip(places, tasks, strict=True)]
        command = self._trace_command(int(positions[0]))
        self._logbook.write("refused", step=step, what=what, samples=samples, command=command)
        self._logbook.sync()
        some = first_of([f"{s['key']} from tick {s['start_tick']} ({s['task']})" for s in samples], _SHOWN)
        seen = f"; list the batch with: {command}" if command else ""
        raise DataError(
            f"step {step}: {what}: {some}{seen}; lower --learning-rate, or check the data with omniges "
            f"verify-shards --level deep (this step was not saved; {self._logbook.path} lists its samples)"
        )

    def _trace_command(self, position: int) -> str | None:
        """Return the command line of `omniges trace-batches` that lists the micro-batch at a position.

        Return None if the command cannot read the data of this run: several shard sets, a URL, or a filter by streams.
        """
        settings, identity, share = self._settings, self._identity, self._feed.share
        location = parse_location(settings.shards[0])
        if len(settings.shards) > 1 or not location.path or self._feed.filtered:
            return None
        words: dict[str, Any] = {"shards": location, "window-ticks": settings.window_ticks}
        words |= {f"{stream}-codec": name for stream, name in settings.codecs.items()}
        words |= {"tick-multiple": identity.tick_multiple} if identity.config.audio_grid else {}
        words |= {"seed": settings.seed}
        step, within = divmod(position, share.micro_batch)
        if self._feed.position % share.micro_batch:  # resumed with another global batch: positions do not align
            words |= {"world-size": 1, "rank": 0, "batch-size": 1, "from-step": position}
        else:
            rank = within // share.batch_size
            words |= {"world-size": share.world_size, "rank": rank, "batch-size": share.batch_size, "from-step": step}
        return shlex.join(["omniges", "trace-batches", *(f"--{name}={value}" for name, value in words.items())])
