"""What each sample of a batch is asked to do: its task, which streams it sees, and at which noise levels.

Everything here is drawn on the host, from (seed, position, purpose) alone, so a sample's task does not depend on
ranks or on its batch, and the device never has to be asked what was drawn.

A stream is a *condition* (level 0), a *target* (level drawn, has a loss) or *absent*. B is the batch, its three
columns are the streams in the order of `STREAMS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from omniges.errors import UsageFault
from omniges.model.random import Purpose, named_purpose, normal, uniform
from omniges.model.streams import STREAMS, StreamName

Bools = npt.NDArray[np.bool_]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Task:
    """Which streams are given and which are to be made."""

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
"""The numbers of tasks in a plan count these in order."""

_LEVEL: Final = {"gesture": Purpose.LEVEL_GESTURE, "text": Purpose.LEVEL_TEXT, "audio": Purpose.LEVEL_AUDIO}
SIX: Final = tuple(name for name, task in TASKS.items() if len(task.conditions) == 1)
"""Tasks from one stream to another, in the order of `TASKS`; validation reports them so."""
_DEFAULT_SHARES: Final = MappingProxyType(
    dict.fromkeys(SIX, 2.0) | dict.fromkeys(("ta2g", "tg2a", "ag2t", "joint"), 0.5)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowSettings:
    """How tasks, levels and drop-outs are drawn, and what losses weigh."""

    shares: Mapping[str, float] = field(default_factory=lambda: dict(_DEFAULT_SHARES))
    """Each task's share of the samples, relative to the sum; a task that is not named has none."""
    levels: Literal["logit-normal", "uniform"] = "logit-normal"
    """Logit-normal: σ = sigmoid(mean + std · n) (Esser et al. 2024)."""
    level_mean: float = 0.0
    level_std: float = 1.0
    shift: float = 4.0
    """σ becomes shift · σ / (1 + (shift − 1) · σ); above 1 there is more noise. A token has hundreds of channels that
    tell the same thing, so noise hides what it says, and conditions have something to add, only near 1."""
    condition_dropout: float = 0.1
    """Share of samples that lose all their conditions, for guidance without a classifier (Ho and Salimans 2022)."""
    condition_noise: float = 0.0
    """Share of samples whose conditions have a level of their own, drawn as targets' are, instead of 0."""
    speaker_dropout: float = 0.1
    """Share of samples whose speaker is unknown."""
    condition_stream_dropout: float = 0.1
    """Share of samples that lose a condition stream, each on its own; those that lose all conditions lose it too."""
    weights: Mapping[StreamName, float] = field(default_factory=lambda: dict.fromkeys(STREAMS, 1.0))
    """Weight of each stream's loss."""

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn."""
        unknown = sorted(set(self.shares) - set(TASKS))
        if unknown:
            raise UsageFault(
                f"task shares: no task is called {', '.join(unknown)}; expected some of {', '.join(TASKS)}"
            )
        if min(self.shares.values(), default=0) < 0 or sum(self.shares.values()) <= 0:
            raise UsageFault(f"task shares: found {dict(self.shares)}; expected no negative one and a positive sum")
        for name in ("condition_dropout", "condition_noise", "speaker_dropout", "condition_stream_dropout"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UsageFault(f"{name.replace('_', ' ')}: found {value}; expected a share between 0 and 1")
        if self.shift <= 0 or self.level_std <= 0:
            raise UsageFault(f"levels: found shift {self.shift}, std {self.level_std}; expected positive numbers")
        if set(self.weights) != set(STREAMS) or min(self.weights.values()) < 0:
            raise UsageFault(f"loss weights: found {dict(self.weights)}; expected one of at least 0 for each stream")


@dataclass(frozen=True, slots=True)
class Plan:
    """What was drawn for a batch."""

    task: I64  # (B,), number in TASKS
    target: Bools  # (B, 3)
    present: Bools  # (B, 3): targets, and conditions that were not dropped
    levels: F32  # (B, 3): 0 for a clean condition, 1 for what is absent
    speaker_known: Bools  # (B,)
    kept: Mapping[str, Bools] = field(default_factory=dict)
    """(B,) of each condition stream: whether a sample keeps its value; a stream that is not named is kept by all."""


def draw_plan(settings: FlowSettings, seed: int, positions: I64, conditions: Iterable[str] = ()) -> Plan:
    """Draw the plan of positions (B,); `conditions` are the names of the model's condition streams."""
    where = torch.from_numpy(positions)

    def chance(purpose: int) -> F32:
        drawn: F32 = uniform(seed, where, purpose)[:, 0].numpy()
        return drawn

    shares = np.array([settings.shares.get(name, 0.0) for name in TASKS])
    bounds = np.cumsum(shares / shares.sum())
    last = np.flatnonzero(shares)[-1]  # rounding must not let the largest draw fall behind what has a share
    task = np.minimum(np.searchsorted(bounds, chance(Purpose.TASK), side="right"), last)
    target = _table("targets")[task]
    condition = _table("conditions")[task]
    conditioned = chance(Purpose.CONDITION_DROPOUT) >= settings.condition_dropout
    condition &= conditioned[:, None]
    noisy = condition & (chance(Purpose.CONDITION_NOISE) < settings.condition_noise)[:, None]
    drawn = np.stack([draw_levels(settings, seed, positions, _LEVEL[name]) for name in STREAMS], axis=1)
    levels = np.where(target | noisy, drawn, np.where(condition, 0.0, 1.0)).astype(np.float32)
    known = chance(Purpose.SPEAKER_DROPOUT) >= settings.speaker_dropout
    rate = settings.condition_stream_dropout
    kept = {name: conditioned & (chance(named_purpose(name)) >= rate) for name in conditions}
    return Plan(task, target, target | condition, levels, known, kept)


def draw_levels(settings: FlowSettings, seed: int, positions: I64, purpose: Purpose) -> F32:
    """Noise levels (B,) in (0, 1)."""
    where = torch.from_numpy(positions)
    if settings.levels == "uniform":
        level = uniform(seed, where, purpose)[:, 0]
    else:
        level = torch.sigmoid(settings.level_mean + settings.level_std * normal(seed, where, purpose)[:, 0])
    shifted: F32 = (settings.shift * level / (1 + (settings.shift - 1) * level)).numpy()
    return shifted


def carried_as_noise(plan: Plan) -> Plan:
    """The plan for models that know no absent stream: what a sample has not is there, as noise at its level of 1."""
    return replace(plan, present=np.ones_like(plan.present))


def _table(role: Literal["conditions", "targets"]) -> Bools:
    """Which streams (tasks, 3) have a role in each task."""
    return np.array([[name in getattr(task, role) for name in STREAMS] for task in TASKS.values()])


@dataclass(frozen=True, slots=True)
class Group:
    """Samples of a batch that go through the trunk together, and the streams that take part for them."""

    streams: tuple[StreamName, ...]
    rows: I64  # (R,), numbers in the batch
    noised: Mapping[StreamName, I64]  # for each stream the rows of the group whose tokens are noised
    targets: Mapping[StreamName, I64]  # for each stream that is a target somewhere, the rows of the group
    absent: frozenset[StreamName]  # streams that some rows of the group do not have


def groups_of(plan: Plan, *, dense: bool) -> list[Group]:
    """Split a batch by the streams its tasks name, so that streams a sample does not need are not computed.

    ``dense``: one group with all streams instead, whose shapes never change; absent streams are masked. Both give
    the same losses. Dropped conditions stay in their task's group, masked.
    """
    named = (_table("targets") | _table("conditions"))[plan.task]
    patterns = np.ones((1, len(STREAMS)), np.bool_) if dense else np.unique(named, axis=0)
    found = []
    for pattern in patterns:
        rows = np.arange(len(named)) if dense else np.flatnonzero((named == pattern).all(axis=1))
        streams = tuple(name for name, takes_part in zip(STREAMS, pattern, strict=True) if takes_part)
        noisy = plan.present & (plan.levels > 0)
        columns = {name: STREAMS.index(name) for name in streams}
        targets = {name: np.flatnonzero(plan.target[rows, k]) for name, k in columns.items()}
        found.append(
            Group(
                streams=streams,
                rows=rows,
                noised={name: np.flatnonzero(noisy[rows, k]) for name, k in columns.items()},
                targets={name: chosen for name, chosen in targets.items() if len(chosen)},
                absent=frozenset(name for name, k in columns.items() if not plan.present[rows, k].all()),
            )
        )
    return found
