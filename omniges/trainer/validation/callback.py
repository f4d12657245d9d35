"""Validation as the loop calls it: when, what follows for the best checkpoint, and whom it is told."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from omniges.model.checkpoint import CHECKPOINTS, prune
from omniges.progress import Reporter, duration
from omniges.trainer.distributed import Ranks, Turns
from omniges.trainer.logging import Logbook
from omniges.trainer.signals import Stopper
from omniges.trainer.state import RunState
from omniges.trainer.validation.best import Best, better, point_best
from omniges.trainer.validation.run import Found, Validation
from omniges.trainer.validation.samples import MadeBy
from omniges.trainer.validation.store import VALIDATIONS, samples_of, shown_samples, write_validation

_COSTLY: Final = 0.1
"""Share of the time of a run above which validating is told to be costly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HookSettings:
    """When a run validates, and what it keeps."""

    run: Path
    every_steps: int
    best_metric: str
    preset: str
    kept: int  # validations whose files stay, beside the best one's; 0: all


class RunValidator:
    """The validator of a run (`omniges.trainer.loop.Validator`)."""

    def __init__(
        self,
        validation: Validation,
        settings: HookSettings,
        ranks: Ranks,
        logbook: Logbook,
        reporter: Reporter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._validation, self._settings, self._ranks = validation, settings, ranks
        self._logbook, self._reporter, self._clock = logbook, reporter, clock
        self._began_s = clock()
        self._spent_s = 0.0
        self._warned = False

    def due(self, step: int) -> bool:
        """Every so many steps."""
        return step % self._settings.every_steps == 0

    def validate(self, state: RunState, stopper: Stopper) -> None:
        """Validate, keep files, choose the best, tell."""
        settings, began_s = self._settings, self._clock()
        self._reporter.say(f"validating step {state.step} on {len(self._validation.held_out.windows)} windows")
        sampling, codecs = self._validation.settings.sampling, self._validation.sampler.codecs
        by = MadeBy(str(settings.run), state.step, settings.preset, sampling, codecs)
        found = self._validation.run(by, Turns(self._ranks, stopper))
        value = found.value(settings.best_metric)
        is_best = value is not None and better(settings.best_metric, value, state.best)
        if is_best and value is not None:
            state.best = Best(state.step, settings.best_metric, value)
        folder = settings.run / VALIDATIONS / f"step-{state.step:06d}"
        with self._ranks.together("write the validation"):
            if self._ranks.first:
                write_validation(settings.run, self._validation, found)
                spared = () if state.best is None else (state.best.step,)
                prune(folder.parent, settings.kept, spared)
        self._spent_s += self._clock() - began_s
        self._tell(state, found, folder, self._clock() - began_s)

    def _tell(self, state: RunState, found: Found, folder: Path, seconds: float) -> None:
        """The log, the trackers and the person."""
        settings, step = self._settings, state.step
        share = self._spent_s / max(self._clock() - self._began_s, 1e-9)
        numbers: dict[str, Any] = {
            "loss": found.loss,
            "losses": found.losses,
            "metrics": found.metrics(),
            "recorded": found.metrics("recorded"),
            "shuffled": found.metrics("shuffled"),
            "seconds": round(seconds, 3),
            "share_of_time": round(share, 5),
        }
        value = found.value(settings.best_metric)
        best = None if state.best is None else state.best.as_json()
        self._logbook.write(
            "validation",
            step=step,
            **numbers,
            not_computed=found.not_computed(),
            windows=len(self._validation.held_out.windows),
            folder=str(folder),
            samples=samples_of(self._validation, found),
            best_metric={"name": settings.best_metric, "value": value},
            best=best,
        )
        self._logbook.track(step, {"validation": numbers})
        if self._ranks.first:
            self._logbook.show(step, shown_samples(folder, self._validation, found))
        shown = "not computed" if value is None else f"{value:.4g}"
        rank = ", the best so far" if state.best is not None and state.best.step == step else ""
        self._reporter.say(
            f"validation at step {step}: {settings.best_metric} {shown}{rank}; {duration(seconds)}, {share:.1%} of the "
            f"time; {folder}"
        )
        if share > _COSTLY and not self._warned and state.validated:  # the first one loads libraries
            self._warned = True
            self._reporter.say(
                f"validation takes {share:.1%} of the time: raise --validation-steps, or lower --validation-windows, "
                "--validation-samples or --validation-sampling-steps"
            )

    def crown(self, state: RunState) -> bool:
        """Let RUN/best lead to the state's checkpoint, where there is one already."""
        checkpoint = self._settings.run / CHECKPOINTS / f"step-{state.step:06d}"
        found = 0
        with self._ranks.together(f"make {self._settings.run}/best"):
            if self._ranks.first and checkpoint.is_dir():
                point_best(self._settings.run, checkpoint)
                found = 1
        return self._ranks.largest(found) == 1
