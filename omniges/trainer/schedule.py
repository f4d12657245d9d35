"""Learning rate and EMA decay as functions of the step alone, so that neither a clock nor a restart decides them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from omniges.errors import UsageFault

__all__ = ["SCHEDULES", "LearningRate", "ScheduleName", "ema_decay"]

ScheduleName = Literal["constant", "cosine", "linear"]
SCHEDULES: tuple[ScheduleName, ...] = get_args(ScheduleName)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRate:
    """Linear warm-up to `peak` over `warmup_steps`, then constant, or down to 0 at `total_steps`.

    Raises UsageFault for a schedule that ends without a last step.
    """

    peak: float
    schedule: ScheduleName = "constant"
    warmup_steps: int = 0
    total_steps: int | None = None

    def __post_init__(self) -> None:
        """Refuse an end that is not known or lies within the warm-up."""
        if self.schedule == "constant":
            return
        if self.total_steps is None:
            raise UsageFault(
                f"--lr-schedule {self.schedule} comes down to 0 at the last step, which nothing names: give "
                "--max-train-steps or --num-train-epochs, or take --lr-schedule constant"
            )
        if self.total_steps <= self.warmup_steps:
            raise UsageFault(
                f"--lr-warmup-steps {self.warmup_steps}: fewer than the {self.total_steps} steps of the run expected"
            )

    def at(self, step: int) -> float:
        """The rate of the update that makes step + 1 out of step; the first is at step 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.schedule == "constant" or self.total_steps is None:
            return self.peak
        gone = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        return self.peak * ((1 - gone) if self.schedule == "linear" else (1 + math.cos(math.pi * gone)) / 2)


def ema_decay(decay: float, step: int) -> float:
    """Decay of the average at the update that makes step + 1 out of step: min(decay, (1 + step) / (10 + step)).

    So the average is over about the last ninth of a run that is too short for its decay.
    """
    return min(decay, (1 + step) / (10 + step))
