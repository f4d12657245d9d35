"""What losses of single samples say of steps, tasks and streams, and whether learning went wrong. On the host."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.model.streams import STREAMS, StreamName
from omniges.model.tasks import TASKS, Plan

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_KEEP: Final = 0.98


def in_order(gathered: F64, steps: int) -> F64:
    """Losses of ranks (W, steps · M, B, 3) as (steps, G, 3) in the order of positions.

    Micro-step m of rank r has the B positions from m·W·B + r·B on of its step.
    """
    ranks, micro_steps, batch, streams = gathered.shape
    by_micro_step = gathered.transpose(1, 0, 2, 3)
    return by_micro_step.reshape(steps, micro_steps // steps * ranks * batch, streams)


def per_step(losses: F64, weights: Mapping[StreamName, float]) -> F64:
    """Each step's loss (steps,) of losses (steps, G, 3): the mean over samples of the weighted sum over streams."""
    found: F64 = _weighted(losses, weights).mean(axis=1)
    return found


def _weighted(losses: F64, weights: Mapping[StreamName, float]) -> F64:
    found: F64 = losses @ np.array([weights[name] for name in STREAMS])
    return found


def per_task(losses: F64, plan: Plan, weights: Mapping[StreamName, float]) -> dict[str, dict[str, float]]:
    """Mean loss and number of samples of each task that was drawn; losses (N, 3) of the plan's N samples."""
    samples = _weighted(losses, weights)
    return {
        name: {"loss": float(samples[plan.task == number].mean()), "samples": int((plan.task == number).sum())}
        for number, name in enumerate(TASKS)
        if (plan.task == number).any()
    }


def per_stream(losses: F64, plan: Plan) -> dict[str, float]:
    """Mean loss, without weight, of each stream over the samples that have it as a target."""
    return {
        name: float(losses[plan.target[:, k], k].mean()) for k, name in enumerate(STREAMS) if plan.target[:, k].any()
    }


@dataclass(slots=True)
class Smoothed:
    """The loss smoothed over about fifty steps, and the lowest it was: a function of the losses so far."""

    value: float = math.nan
    lowest: float = math.inf

    def add(self, loss: float) -> float:
        """Take in a step's loss; returns how many times the lowest the smoothed loss is now."""
        self.value = loss if math.isnan(self.value) else _KEEP * self.value + (1 - _KEEP) * loss
        self.lowest = min(self.lowest, self.value)
        return self.value / self.lowest if self.lowest > 0 else 1.0

    def as_json(self) -> dict[str, Any]:
        """The form in which checkpoints keep it."""
        if math.isnan(self.value):
            return {"value": None, "lowest": None}
        return {"value": self.value, "lowest": self.lowest}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Smoothed:
        """The inverse of `as_json`."""
        return cls() if found["value"] is None else cls(found["value"], found["lowest"])
