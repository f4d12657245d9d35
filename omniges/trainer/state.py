"""How far a run is."""

from __future__ import annotations

from dataclasses import dataclass, field

from omniges.model.losses import Smoothed
from omniges.trainer.validation.best import Best


@dataclass(slots=True)
class RunState:
    """How far a run is, at the end of a step. What is learned is the learner's."""

    step: int = 0
    position: int = 0
    elapsed_s: float = 0.0
    smoothed: Smoothed = field(default_factory=Smoothed)
    validated: int = 0
    """The last step whose validation was finished."""
    best: Best | None = None
