"""Tasks, which define conditions and targets, and settings of the sampler.

`omniges --help` imports this module, so its imports must be quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from omniges.options import check, declared, option

if TYPE_CHECKING:
    from omniges.model.streams import StreamName

Solver = Literal["euler", "heun", "dpm++"]


@dataclass(frozen=True, slots=True)
class Task:
    """A task: the streams that are conditions (given), and the streams that are targets (generated)."""

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
"""All tasks by name. `Plan.task` contains indices in this order."""

AUDIO_GUIDANCE: Final = 2.0
"""Default guidance scale for generating mels. At 1, a speech recognizer recognizes fewer of the generated words
(docs/explanation/performance.md#what-half-an-hour-of-synthetic-speech-teaches)."""
_STEPS: Final = 20

SIX: Final = tuple(name for name, task in TASKS.items() if len(task.conditions) == 1)
"""Names of the six tasks with one condition and one target, in the order of `TASKS` and of validation reports."""


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """Settings of the sampler: number of steps, guidance scale, solver and noise levels of the steps."""

    num_inference_steps: int | None = option(
        None,
        "Sampling steps; more are slower.",
        minimum=1,
        maximum=10_000,
        was=("steps",),
        panel="Sampling",
        shown="20; 10 if the model's own guidance scale is used, and is above 1",
    )
    guidance_scale: float | None = option(
        None,
        "Scale of classifier-free guidance; 1: no guidance; above 1: closer to the conditions.",
        minimum=0,
        was=("guidance",),
        shown="the model's own: 2 for generated mels, otherwise 1",
    )
    """1 is the conditional model, 0 the unconditional one; values above 1 strengthen the conditions."""
    solver: Solver = option("euler", "Solver of the ordinary differential equation.")
    shift: float = option(3.0, "Shift of the noise levels; above 1, more of the steps are at high noise.", above=0)
    """Each noise level σ becomes shift · σ / (1 + (shift − 1) · σ). A shift above 1 gives more steps at high noise."""
    sigma_min: float = option(
        0.3,
        "Lowest noise level σ at which a step starts, 0 to 1; the last step ends at 0.",
        minimum=0,
        below=1,
        was=("last_level",),
    )
    """Only 1 % of the levels in training are below 0.3, so models are unreliable below it (docs/how-to/generate.md).
    Karras et al. (2022) call this level σ_min."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check(self)

    @property
    def steps(self) -> int:
        """Number of sampling steps.

        A step evaluates the model once, or twice with guidance. Heun's method doubles these evaluations, except in the
        last step.
        """
        return _STEPS if self.num_inference_steps is None else self.num_inference_steps

    @property
    def guidance(self) -> float:
        """Guidance scale; 1 if none is set."""
        return 1.0 if self.guidance_scale is None else self.guidance_scale

    def for_task(self, task: Task, stated: Mapping[StreamName, float]) -> SamplingSettings:
        """Return the settings with the model's default guidance scale, if the user has set no guidance scale.

        Guidance evaluates the model twice in each step. Therefore the default number of steps is halved, from 20 to 10.
        A number of steps that the user has set is kept.

        Args:
            task: The task.
            stated: Default guidance scales of the model, by target.

        Returns:
            The settings. They are unchanged if the task has no conditions, or if the default scales of its targets are
            all 1 or not all equal.
        """
        scales = {stated.get(name, 1.0) for name in task.targets}
        if self.guidance_scale is not None or not task.conditions or len(scales) > 1 or scales == {1.0}:
            return self
        return replace(self, guidance_scale=scales.pop(), num_inference_steps=self.num_inference_steps or _STEPS // 2)

    def document(self) -> dict[str, Any]:
        """Return the settings as the JSON object that records of generated results contain.

        The keys ``steps``, ``guidance`` and ``last_level`` are the former names of `num_inference_steps`,
        `guidance_scale` and `sigma_min`.
        """
        return {
            "steps": self.steps,
            "guidance": self.guidance,
            "solver": self.solver,
            "shift": self.shift,
            "last_level": self.sigma_min,
        }
