"""Random numbers that depend on seed, position and purpose alone: Philox4x32-10, whole batches at a time.

A sample's draws must not depend on which rank holds it, on what else is in its batch, or on what was drawn before.
So there is no generator with a state: each number is a hash of (seed, purpose, position in the sample sequence,
index). The hash is Philox4x32 with ten rounds (Salmon et al. 2011, *Parallel random numbers: as easy as 1, 2, 3*):
the seed is its key, and its counter is (index of the block, purpose, position's low half, position's high half).
One block gives four words of 32 bits: element i of n is word i // ceil(n / 4) of block i mod ceil(n / 4).

Draws are equal on every machine of one device type. Words and uniform draws are equal everywhere; normal draws go
through the device's logarithm, sine and cosine, whose last bits differ between devices.
"""

from __future__ import annotations

import enum
import math
import zlib
from typing import Final

import torch
from torch import Tensor

_MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_ROUNDS: Final = 10
_MASK: Final = 0xFFFF_FFFF
_CACHED_BLOCKS: Final = 1 << 15  # on a CPU a chunk's temporaries stay in its cache; an eighth faster there than whole


class Purpose(enum.IntEnum):
    """What a draw is for; draws for different purposes share nothing. The numbers never change their meaning."""

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
