"""Tasks from streams to streams, and settings of sampling; light enough for `omniges --help`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

from omniges.options import check, option

if TYPE_CHECKING:
    from omniges.model.streams import StreamName

Solver = Literal["euler", "heun", "dpm++"]


@dataclass(frozen=True, slots=True)
class Task:
    """Condition streams and target streams of a task."""

    conditions: tuple[StreamName, ...]
    targets: tuple[StreamName, ...]


TASKS: Final[Mapping[str, Task]] = MappingProxyType(
    {
        "t2g": Task(("text",), ("gesture",)),
        "g2t": Task(("gesture",), ("text",)),
        "a2g": Task(("audio",), ("gesture",)),
        "g2a": Task(("gesture",), ("audio",)),
        "t2a": Task(("text",), ("audio",)),
        "a2t": Task(("audio",), ("text",)),
        "ta2g": Task(("text", "audio"), ("gesture",)),
        "tg2a": Task(("text", "gesture"), ("audio",)),
        "ag2t": Task(("audio", "gesture"), ("text",)),
        "joint": Task((), ("gesture", "text", "audio")),
    }
)
"""All tasks; a plan numbers them in this order."""

SIX: Final = tuple(name for name, task in TASKS.items() if len(task.conditions) == 1)
"""Tasks from one stream to another, in the order of `TASKS`, which validation reports keep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """Settings of the sampler."""

    steps: int = option(20, "Sampling steps.", least=1, most=10_000)
    """Each is one evaluation of the model, two with guidance, twice that with Heun but for the last."""
    guidance: float = option(1.0, "Weight of the conditions; 1: no classifier-free guidance.", least=0)
    """1 is the conditional model, 0 the unconditional one; values above 1 strengthen the conditions."""
    solver: Solver = option("euler", "How a step is taken.")
    shift: float = option(3.0, "Above 1: more of the steps at high noise.", above=0)
    """Levels become shift · σ / (1 + (shift − 1) · σ): above 1, more steps at high noise."""
    last_level: float = option(0.3, "Noise level below which no step begins.", least=0, below=1)
    """Only 1 % of the levels in training are below 0.3, so models are unreliable there (docs/how-to/generate.md). It is
    the σ_min of Karras et al. (2022)."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self)
