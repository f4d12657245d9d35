"""Tasks (condition streams and target streams) and sampling settings. Quick to import for `omniges --help`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from omniges.options import check, declared, option

if TYPE_CHECKING:
    from omniges.model.streams import StreamName

Solver = Literal["euler", "heun", "dpm++"]


@dataclass(frozen=True, slots=True)
class Task:
    """A task: the streams that are conditions, and the streams that are targets (generated)."""

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
"""Tasks from one stream to another, in the order of `TASKS`; validation reports list them in this order."""


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """Settings of the sampler."""

    num_inference_steps: int = option(
        20, "Sampling steps; more are slower.", minimum=1, maximum=10_000, was=("steps",), panel="Sampling"
    )
    """A step evaluates the model once, or twice with guidance. Heun doubles this number, except in the last step."""
    guidance_scale: float = option(
        1.0,
        "Scale of classifier-free guidance; 1: no guidance; above 1: closer to the conditions.",
        minimum=0,
        was=("guidance",),
    )
    """1 is the conditional model, 0 the unconditional one; values above 1 strengthen the conditions."""
    solver: Solver = option("euler", "Solver of the ordinary differential equation.")
    shift: float = option(3.0, "Shift of the noise levels; above 1, more of the steps are at high noise.", above=0)
    """Levels become shift · σ / (1 + (shift − 1) · σ): above 1, more steps at high noise."""
    sigma_min: float = option(
        0.3, "Lowest noise level σ at which a step starts, 0 to 1.", minimum=0, below=1, was=("last_level",)
    )
    """Only 1 % of the levels in training are below 0.3, so models are unreliable there (docs/how-to/generate.md). It is
    the σ_min of Karras et al. (2022)."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self)

    def document(self) -> dict[str, Any]:
        """Return the settings by their keys in JSON documents, which are the option names of version 1."""
        return {
            "steps": self.num_inference_steps,
            "guidance": self.guidance_scale,
            "solver": self.solver,
            "shift": self.shift,
            "last_level": self.sigma_min,
        }
