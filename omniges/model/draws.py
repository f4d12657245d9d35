"""Random draws for each sample of a batch: its task, the streams it sees, their noise levels, and the noise.

A sample's draws must not depend on which rank holds it, on what else is in its batch, or on what was drawn before.
So there is no generator with a state: each number is a hash of (seed, purpose, position in the sample sequence,
index). The hash is Philox4x32 with ten rounds (Salmon et al. 2011, *Parallel random numbers: as easy as 1, 2, 3*):
the seed is its key, and its counter is (index of the block, purpose, position's low half, position's high half).
One block gives four words of 32 bits: element i of n is word i // ceil(n / 4) of block i mod ceil(n / 4).

Draws are equal on every machine of one device type. Words and uniform draws are equal everywhere; normal draws go
through the device's logarithm, sine and cosine, whose last bits differ between devices.

Plans of batches are drawn on the host, so the device never has to be asked what was drawn. In a plan a stream is a
*condition* (level 0), a *target* (level drawn, has a loss) or *absent*. B is the batch, its three columns are the
streams in the order of `STREAMS`.
"""

from __future__ import annotations

import enum
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from omniges.errors import UsageFault
from omniges.model.streams import STREAMS, StreamName
from omniges.model.tasks import SIX, TASKS

Bools = npt.NDArray[np.bool_]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

_MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_ROUNDS: Final = 10
_MASK: Final = 0xFFFF_FFFF
_CACHED_BLOCKS: Final = 1 << 15  # on a CPU a chunk's temporaries stay in its cache; an eighth faster there than whole


class Purpose(enum.IntEnum):
    """Purpose of a draw; draws for different purposes are independent. The numbers never change their meaning."""

    TASK = 1
    CONDITION_DROPOUT = 2
    SPEAKER_DROPOUT = 3
    CONDITION_NOISE = 4
    LEVEL_GESTURE = 16
    LEVEL_TEXT = 17
    LEVEL_AUDIO = 18
    NOISE_GESTURE = 32
    NOISE_TEXT = 33
    NOISE_AUDIO = 34


_NAMED: Final = 1 << 31


def named_purpose(name: str) -> int:
    """Return the purpose of dropping the condition stream of a name, which shares nothing with those of `Purpose`.

    The CRC-32 of the name without its highest bit, plus 2³¹.
    """
    return _NAMED | (zlib.crc32(name.encode()) & (_NAMED - 1))


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10 of four counter words and two key words, each 32 bits: four words, int64 in [0, 2³²).

    The counter's tensors are int64 and of one shape, or broadcast to one. Products wrap around modulo 2⁶⁴, as int64
    does on every device; shifts keep the sign, so results are masked behind them.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        low, high = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((high >> 32) ^ c1).bitwise_xor_(k0).bitwise_and_(_MASK),
            high & _MASK,
            ((low >> 32) ^ c3).bitwise_xor_(k1).bitwise_and_(_MASK),
            low & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def words(seed: int, positions: Tensor, purpose: int, count: int) -> Tensor:
    """Random words (B, 4, ceil(count / 4)) int64 in [0, 2³²) for positions (B,) int64; seed in [0, 2⁶⁴)."""
    blocks = -(-count // 4)
    found = positions.new_empty((len(positions), 4, blocks))
    for rows, part in _chunks(found):
        counter = (
            torch.arange(part.start, part.stop, device=positions.device)[None, :],
            positions.new_full((1, 1), int(purpose)),
            (positions[rows, None] & _MASK),
            (positions[rows, None] >> 32) & _MASK,
        )
        for k, word in enumerate(philox(counter, (seed & _MASK, seed >> 32))):
            found[rows, k, part] = word
    return found


def uniform(seed: int, positions: Tensor, purpose: int, count: int = 1) -> Tensor:
    """Uniform draws (B, count) float32 on the 2²³ odd multiples of 2⁻²⁴, so never 0 and never 1."""
    return _unit(words(seed, positions, purpose, count)).flatten(1)[:, :count]


def normal(seed: int, positions: Tensor, purpose: int, count: int = 1) -> Tensor:
    """Standard normal draws (B, count) float32 by Box and Muller (1958); none is beyond 5.8."""
    unit = _unit(words(seed, positions, purpose, count))
    radius = unit[:, 0::2].log().mul_(-2.0).sqrt_()
    angle = unit[:, 1::2].mul_(2 * math.pi)
    found = torch.stack([angle.cos() * radius, angle.sin_() * radius], dim=1)
    return found.flatten(1)[:, :count]


def _unit(bits: Tensor) -> Tensor:
    """Words of 32 bits to (k + ½) / 2²³ for their upper 23 bits k, which float32 holds exactly."""
    return (bits >> 9).to(torch.float32).add_(0.5).mul_(2.0**-23)


def _chunks(found: Tensor) -> list[tuple[slice, slice]]:
    """Slices over rows and blocks: all at once on an accelerator, cache-sized ones on a CPU."""
    rows, _, blocks = found.shape
    if found.device.type != "cpu":
        return [(slice(0, rows), slice(0, blocks))]
    width = min(blocks, _CACHED_BLOCKS)
    height = max(1, _CACHED_BLOCKS // max(1, width))
    return [
        (slice(row, min(row + height, rows)), slice(start, min(start + width, blocks)))
        for row in range(0, rows, height)
        for start in range(0, blocks, max(1, width))
    ]


# --- plans of batches

_LEVEL: Final = {"gesture": Purpose.LEVEL_GESTURE, "text": Purpose.LEVEL_TEXT, "audio": Purpose.LEVEL_AUDIO}
_DEFAULT_SHARES: Final = MappingProxyType(
    dict.fromkeys(SIX, 2.0) | dict.fromkeys(("ta2g", "tg2a", "ag2t", "joint"), 0.5)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowSettings:
    """Distributions of tasks, noise levels and drop-outs, and weights of the losses."""

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
    """Draws for a batch."""

    task: I64  # (B,), number in TASKS
    target: Bools  # (B, 3)
    present: Bools  # (B, 3): targets, and conditions that were not dropped
    levels: F32  # (B, 3): 0 for a clean condition, 1 for what is absent
    speaker_known: Bools  # (B,)
    kept: Mapping[str, Bools] = field(default_factory=dict)
    """(B,) of each condition stream: whether a sample keeps its value; a stream that is not named is kept by all."""


def allowed_tasks(shares: Mapping[str, float]) -> tuple[str, ...]:
    """Return the streams of each task that has a share, such as ``audio+gesture``, sorted."""
    wanted = [task for name, task in TASKS.items() if shares.get(name)]
    return tuple(sorted({"+".join(sorted((*task.conditions, *task.targets))) for task in wanted}))


def draw_plan(
    settings: FlowSettings, seed: int, positions: I64, streams: Bools | None = None, conditions: Iterable[str] = ()
) -> Plan:
    """Draw the plan of positions (B,).

    ``streams``: (B, 3), which streams the samples have; None: all. A sample gets only tasks whose streams it has, by
    the same draw over these tasks' shares. ``conditions``: names of the model's condition streams. Raises UsageFault
    for a sample that has the streams of no task with a share.
    """
    where = torch.from_numpy(positions)

    def chance(purpose: int) -> F32:
        drawn: F32 = uniform(seed, where, purpose)[:, 0].numpy()
        return drawn

    shares = np.array([settings.shares.get(name, 0.0) for name in TASKS])
    drawn_task = chance(Purpose.TASK)
    if streams is None:
        task = _tasks_at(shares, drawn_task)
    else:
        task = np.zeros(len(positions), np.int64)
        needed = _table("targets") | _table("conditions")
        for pattern in np.unique(streams, axis=0):
            rows = (streams == pattern).all(axis=1)
            possible = shares * (needed <= pattern).all(axis=1)
            if not possible.any():
                has = ", ".join(name for name, there in zip(STREAMS, pattern, strict=True) if there) or "no stream"
                raise UsageFault(f"task shares: a sample that has {has} gets none of the tasks: leave it out")
            task[rows] = _tasks_at(possible, drawn_task[rows])
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


def _tasks_at(shares: npt.NDArray[np.float64], drawn: F32) -> I64:
    """Numbers of the tasks (B,) that uniform draws (B,) fall on."""
    bounds = np.cumsum(shares / shares.sum())
    last = np.flatnonzero(shares)[-1]  # rounding must not let the largest draw fall behind what has a share
    found: I64 = np.minimum(np.searchsorted(bounds, drawn, side="right"), last)
    return found


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
    """Return which streams (tasks, 3) have a role in each task."""
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
