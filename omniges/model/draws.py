"""Random draws for each sample of a batch: its task, the streams it receives, their noise levels, and the noise.

A sample's draws do not depend on its rank, on its batch, or on earlier draws. Therefore there is no generator with a
state: each number is a hash of (seed, purpose, position in the sample sequence, index). The hash is Philox4x32 with
ten rounds (Salmon et al. 2011, *Parallel random numbers: as easy as 1, 2, 3*). The seed is the key of the hash. The
counter consists of the block index, the purpose, and the low and high 32 bits of the position. One block gives four
words of 32 bits, which are converted to four numbers. For n numbers, a position has b = ceil(n / 4) blocks. The i-th
number of a position (from 0) is result i // b of block i mod b.

Words and uniform draws are equal on every machine. Normal draws use the device's logarithm, sine and cosine. They are
equal on machines with the same type of device, and differ in the last bits between types.

Plans of batches (`Plan`) are drawn on the CPU, so that training does not wait for the device. In a plan, each stream of
a sample is a *condition*, a *target* or *absent*. A condition has the noise level 0, unless it gets noise at random. A
target has a random noise level and a loss. B is the batch size. Arrays with three columns have one column for each
stream, in the order of `STREAMS`.
"""

from __future__ import annotations

import enum
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
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
_CACHED_BLOCKS: Final = 1 << 17  # number of blocks whose temporaries fit the cache of a CPU, which is a quarter faster


class Purpose(enum.IntEnum):
    """Purpose of a draw. Draws for different purposes are independent.

    The value of a member is part of the hash's counter, so it must stay the same in all versions of omniges.
    """

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
    """Return the purpose number for the drop-out of a condition stream.

    Draws for this purpose decide which samples of a batch are trained without the condition stream.

    The number is 2³¹ plus the lower 31 bits of the name's CRC-32. Therefore it differs from all members of `Purpose`.

    Args:
        name: Name of the condition stream.

    Returns:
        The number of the purpose.
    """
    return _NAMED | (zlib.crc32(name.encode()) & (_NAMED - 1))


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Compute the hash Philox4x32-10 of counters with a key.

    Products wrap around modulo 2⁶⁴, because int64 does so on every device. Right shifts keep the sign, so their results
    are masked. A compiler can join all rounds in one kernel.

    Args:
        counter: The four words of the counters: int64 tensors of equal shape, with values in [0, 2³²).
        key: The two words of the key, each in [0, 2³²).

    Returns:
        Four words of random bits: tensors of the same shape, int64 in [0, 2³²).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        low, high = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((high >> 32) ^ c1).bitwise_xor_(k0).bitwise_and_(_MASK),
            high.bitwise_and_(_MASK),
            ((low >> 32) ^ c3).bitwise_xor_(k1).bitwise_and_(_MASK),
            low.bitwise_and_(_MASK),
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


@dataclass(frozen=True, slots=True)
class Draws:
    """A request for random numbers: `count` numbers for each of R positions."""

    positions: Tensor  # (R,) int64, positions in the sample sequence
    purpose: int  # a `Purpose` or a result of `named_purpose`
    count: int = 1  # numbers for each position

    @property
    def blocks(self) -> int:
        """Number of blocks of four words for each position."""
        return -(-self.count // 4)


def _drawn(seed: int, wanted: Sequence[Draws], convert: Callable[[Sequence[Tensor]], Tensor]) -> list[Tensor]:
    """Draw numbers for several requests in one call, because an accelerator needs more time for several short calls.

    Args:
        seed: Seed in [0, 2⁶⁴).
        wanted: Requests, each with R positions and a number of Philox blocks for each position.
        convert: Function from the words of Philox blocks (four tensors of any shape S) to a tensor of numbers (4, *S).

    Returns:
        For each request, numbers (R, 4, blocks).
    """
    key = seed & _MASK, seed >> 32
    if torch.compiler.is_compiling():  # compiled code computes counters in registers, without the copies below
        return [convert(philox(_counters(one), key)).movedim(0, 1) for one in wanted]
    sizes = [len(one.positions) * one.blocks for one in wanted]
    counter = wanted[0].positions.new_empty((4, sum(sizes)))
    for part, one in zip(torch.split(counter, sizes, dim=1), wanted, strict=True):
        index, purpose, low, high = part.view(4, len(one.positions), one.blocks)
        index.copy_(torch.arange(one.blocks, device=index.device))
        purpose.fill_(int(one.purpose))
        low.copy_(one.positions[:, None] & _MASK)
        high.copy_((one.positions[:, None] >> 32) & _MASK)
    parts = [convert(philox(piece.unbind(0), key)) for piece in torch.split(counter, _piece(counter), dim=1)]
    numbers = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    split = zip(torch.split(numbers, sizes, dim=1), wanted, strict=True)
    return [part.reshape(4, len(one.positions), one.blocks).movedim(0, 1) for part, one in split]


def _counters(one: Draws) -> list[Tensor]:
    """Return the four words of a request's counters, each (R, blocks)."""
    positions = one.positions[:, None]
    index = torch.arange(one.blocks, device=positions.device)
    words_of = (index, positions.new_full((), int(one.purpose)), positions & _MASK, (positions >> 32) & _MASK)
    return [word.expand(len(positions), one.blocks) for word in words_of]


def _piece(counter: Tensor) -> int:
    """Return the number of blocks to compute at once: on a CPU, blocks that fit its cache; on other devices, all."""
    return _CACHED_BLOCKS if counter.device.type == "cpu" else max(1, counter.shape[1])


def words(seed: int, positions: Tensor, purpose: int, count: int) -> Tensor:
    """Draw random words of 32 bits for each position.

    Args:
        seed: Seed in [0, 2⁶⁴).
        positions: Positions in the sample sequence (B,) int64.
        purpose: A `Purpose` or a result of `named_purpose`.
        count: Number of words for each position.

    Returns:
        Words (B, 4, ceil(count / 4)) int64 in [0, 2³²). `count` is rounded up to whole blocks of four words.
    """
    return _drawn(seed, [Draws(positions, purpose, count)], _stacked)[0]


def uniform(seed: int, positions: Tensor, purpose: int, count: int = 1) -> Tensor:
    """Draw uniform numbers in (0, 1). They are odd multiples of 2⁻²⁴, so never 0 or 1.

    Args:
        seed: Seed in [0, 2⁶⁴).
        positions: Positions in the sample sequence (B,) int64.
        purpose: A `Purpose` or a result of `named_purpose`.
        count: Number of draws for each position.

    Returns:
        Draws (B, count) float32.
    """
    found = _drawn(seed, [Draws(positions, purpose, count)], lambda bits: _stacked([_unit(word) for word in bits]))
    return found[0].flatten(1)[:, :count]


def normal(seed: int, positions: Tensor, purpose: int, count: int = 1) -> Tensor:
    """Draw standard normal numbers (Box and Muller 1958), which lie within ±5.8.

    Args:
        seed: Seed in [0, 2⁶⁴).
        positions: Positions in the sample sequence (B,) int64.
        purpose: A `Purpose` or a result of `named_purpose`.
        count: Number of draws for each position.

    Returns:
        Draws (B, count) float32.
    """
    return normals(seed, [Draws(positions, purpose, count)])[0]


def normals(seed: int, wanted: Sequence[Draws]) -> list[Tensor]:
    """Draw standard normal numbers for several requests in one computation, with the same values as `normal`.

    Args:
        seed: Seed in [0, 2⁶⁴).
        wanted: Requests. Each has its own number R of positions, purpose and count.

    Returns:
        For each request, its draws (R, count) float32.
    """
    found = _drawn(seed, wanted, lambda bits: _box_muller([_unit(word) for word in bits]))
    return [numbers.flatten(1)[:, : one.count] for numbers, one in zip(found, wanted, strict=True)]


def _stacked(numbers: Sequence[Tensor]) -> Tensor:
    """Stack four tensors of equal shape S to one tensor (4, *S)."""
    return torch.stack(list(numbers))


def _unit(bits: Tensor) -> Tensor:
    """Map words of 32 bits to float32 numbers (k + ½) / 2²³ without rounding; k is the upper 23 bits of a word."""
    return (bits >> 9).to(torch.float32).add_(0.5).mul_(2.0**-23)


def _box_muller(unit: Sequence[Tensor]) -> Tensor:
    """Map four tensors of uniform draws, all of the same shape S, to normal draws (4, *S).

    Radii come from the first and third tensor, angles from the second and fourth.
    """
    radii = [x.log().mul_(-2.0).sqrt_() for x in unit[0::2]]
    angles = [x * (2 * math.pi) for x in unit[1::2]]
    pairs = list(zip(angles, radii, strict=True))
    return torch.stack([*(a.cos().mul_(r) for a, r in pairs), *(a.sin().mul_(r) for a, r in pairs)])


# --- plans of batches

_LEVEL: Final = {"gesture": Purpose.LEVEL_GESTURE, "text": Purpose.LEVEL_TEXT, "audio": Purpose.LEVEL_AUDIO}
_DEFAULT_SHARES: Final = MappingProxyType(
    dict.fromkeys(SIX, 2.0) | dict.fromkeys(("ta2g", "tg2a", "ag2t", "joint"), 0.5)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowSettings:
    """Settings of training: distributions of tasks, noise levels and drop-outs, and weights of the losses."""

    shares: Mapping[str, float] = field(default_factory=lambda: dict(_DEFAULT_SHARES))
    """Share of the samples for each task, relative to the sum of all shares. Tasks without a share get no samples."""
    levels: Literal["logit-normal", "uniform"] = "logit-normal"
    """Distribution of the noise levels σ before the shift. Logit-normal: σ = sigmoid(level_mean + level_std · n) with a
    standard normal n (Esser et al. 2024)."""
    level_mean: float = 0.0
    level_std: float = 1.0
    shift: float = 4.0
    """Shift of the noise levels: σ becomes shift · σ / (1 + (shift − 1) · σ) (Esser et al. 2024). A shift above 1 gives
    more noise. A token has hundreds of correlated channels, so noise hides its content only at levels near 1."""
    condition_dropout: float = 0.1
    """Share of samples that lose all their conditions, for classifier-free guidance (Ho and Salimans 2022)."""
    condition_noise: float = 0.0
    """Share of samples whose conditions get noise. Its level is drawn like that of a target."""
    speaker_dropout: float = 0.1
    """Share of samples whose speaker is replaced by *unknown*."""
    condition_stream_dropout: float = 0.1
    """Share of samples that lose a condition stream, drawn for each stream independently. Samples that lose all their
    conditions (`condition_dropout`) also lose all condition streams."""
    weights: Mapping[StreamName, float] = field(default_factory=lambda: dict.fromkeys(STREAMS, 1.0))
    """Weight of each stream's loss."""

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        unknown = sorted(set(self.shares) - set(TASKS))
        if unknown:
            raise UsageFault(
                f"task shares: expected some of {', '.join(TASKS)}, found {', '.join(unknown)}; correct the names"
            )
        if min(self.shares.values(), default=0) < 0 or sum(self.shares.values()) <= 0:
            raise UsageFault(
                f"task shares: expected shares of at least 0 with a positive sum, found {dict(self.shares)}"
            )
        for name in ("condition_dropout", "condition_noise", "speaker_dropout", "condition_stream_dropout"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UsageFault(f"{name.replace('_', ' ')}: expected a share between 0 and 1, found {value}")
        if self.shift <= 0 or self.level_std <= 0:
            raise UsageFault(f"shift, level_std: expected positive numbers, found {self.shift} and {self.level_std}")
        if set(self.weights) != set(STREAMS) or min(self.weights.values()) < 0:
            raise UsageFault(
                f"loss weights: expected a weight of at least 0 for each stream, found {dict(self.weights)}"
            )


@dataclass(frozen=True, slots=True)
class Plan:
    """Tasks, noise levels and drop-outs that were drawn for a batch."""

    task: I64  # (B,), index in `TASKS`
    target: Bools  # (B, 3)
    present: Bools  # (B, 3): targets, and conditions that were not dropped
    levels: F32  # (B, 3): 0 for a clean condition, 1 for an absent stream
    speaker_known: Bools  # (B,)
    kept: Mapping[str, Bools] = field(default_factory=dict)
    """For each condition stream, a mask (B,) of the samples that keep its value. All samples keep a stream without an
    entry."""


def allowed_tasks(shares: Mapping[str, float]) -> tuple[str, ...]:
    """Return the combinations of streams that the tasks of a training run need.

    Args:
        shares: Share of the samples for each task, by the task's name. A task of share 0 is not used.

    Returns:
        For each task that is used: the names of its streams, joined as in ``audio+gesture``. The list is sorted and has
        no duplicates.
    """
    wanted = [task for name, task in TASKS.items() if shares.get(name)]
    return tuple(sorted({"+".join(sorted((*task.conditions, *task.targets))) for task in wanted}))


def draw_plan(
    settings: FlowSettings, seed: int, positions: I64, streams: Bools | None = None, conditions: Iterable[str] = ()
) -> Plan:
    """Draw the plan of a batch: the task, noise levels and drop-outs of each sample.

    Args:
        settings: Distributions of tasks, noise levels and drop-outs.
        seed: Seed in [0, 2⁶⁴).
        positions: Positions in the sample sequence (B,) int64.
        streams: Table (B, 3) that is True where a sample has a stream; None: all samples have all streams. A sample
            gets only tasks whose streams it has.
        conditions: Names of the model's condition streams.

    Returns:
        The plan.

    Raises:
        UsageFault: A sample cannot have any task, because each task with a share above 0 needs a stream that the sample
            lacks.
    """
    chance = _chances(settings, seed, positions, conditions)
    shares = np.array([settings.shares.get(name, 0.0) for name in TASKS])
    drawn_task = chance[Purpose.TASK]
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
                raise UsageFault(
                    f"task shares: expected a task for a sample that has {has}, found none; leave the sample out"
                )
            task[rows] = _tasks_at(possible, drawn_task[rows])
    target = _table("targets")[task]
    condition = _table("conditions")[task]
    conditioned = chance[Purpose.CONDITION_DROPOUT] >= settings.condition_dropout
    condition &= conditioned[:, None]
    noisy = condition & (chance[Purpose.CONDITION_NOISE] < settings.condition_noise)[:, None]
    drawn = np.stack([chance[_LEVEL[name]] for name in STREAMS], axis=1)
    levels = np.where(target | noisy, drawn, np.where(condition, 0.0, 1.0)).astype(np.float32)
    known = chance[Purpose.SPEAKER_DROPOUT] >= settings.speaker_dropout
    rate = settings.condition_stream_dropout
    kept = {name: conditioned & (chance[named_purpose(name)] >= rate) for name in conditions}
    return Plan(task, target, target | condition, levels, known, kept)


def _tasks_at(shares: npt.NDArray[np.float64], drawn: F32) -> I64:
    """Select a task for each uniform draw (B,), with the given shares, and return the indices (B,) of the tasks."""
    bounds = np.cumsum(shares / shares.sum())
    last = np.flatnonzero(shares)[-1]  # rounding must not let the largest draw select a task without a share
    found: I64 = np.minimum(np.searchsorted(bounds, drawn, side="right"), last)
    return found


def _chances(settings: FlowSettings, seed: int, positions: I64, conditions: Iterable[str]) -> dict[int, F32]:
    """Draw all numbers that a plan needs.

    Returns:
        An array (B,) for each purpose: noise levels for ``LEVEL_GESTURE``, ``LEVEL_TEXT`` and ``LEVEL_AUDIO``, uniform
        draws for all other purposes.
    """
    where = torch.from_numpy(positions)
    levels = [Draws(where, purpose) for purpose in _LEVEL.values()]
    others = [Purpose.TASK, Purpose.CONDITION_DROPOUT, Purpose.CONDITION_NOISE, Purpose.SPEAKER_DROPOUT]
    wanted = levels + [Draws(where, purpose) for purpose in (*others, *map(named_purpose, conditions))]
    found: dict[int, F32] = {}
    for one, bits in zip(wanted, _drawn(seed, wanted, _stacked), strict=True):
        unit = [_unit(word) for word in bits.flatten(1).unbind(1)]  # four tensors (B,), one for each word
        found[one.purpose] = (levels_of(settings, unit) if one.purpose in _LEVEL.values() else unit[0]).numpy()
    return found


def levels_of(settings: FlowSettings, unit: Sequence[Tensor]) -> Tensor:
    """Return noise levels (B,) in (0, 1) from uniform draws.

    Args:
        settings: Distribution of the levels before the shift, and the shift.
        unit: Four tensors (B,) of uniform draws.

    Returns:
        Noise levels (B,) float32.
    """
    if settings.levels == "uniform":
        level = unit[0]
    else:
        level = torch.sigmoid(settings.level_mean + settings.level_std * _box_muller(unit)[0])
    return settings.shift * level / (1 + (settings.shift - 1) * level)


def carried_as_noise(plan: Plan) -> Plan:
    """Return a copy of a plan in which all streams are present, for models that need tokens of every stream.

    Streams that were absent keep the noise level 1, so their tokens are pure noise.
    """
    return replace(plan, present=np.ones_like(plan.present))


def _table(role: Literal["conditions", "targets"]) -> Bools:
    """Return a table (tasks, 3) that is True where a stream has the role in a task; tasks are ordered as in `TASKS`."""
    return np.array([[name in getattr(task, role) for name in STREAMS] for task in TASKS.values()])
