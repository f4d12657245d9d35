"""What a stream is to the flow: arrays to tokens and back, times of tokens, predictions and losses.

The flow and the trunk know a stream by this interface alone, so another way to make tokens (a pretrained codec's
latents) is a class here and a line in the configuration.

Shape letters: B batch, N tokens, C channels of a token, O outputs of the trunk's head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from fractions import Fraction
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn

from omniges.features.timebase import TICKS_PER_SECOND
from omniges.model.latents import line_embedding

StreamName = Literal["gesture", "text", "audio"]
STREAMS: Final[tuple[StreamName, ...]] = get_args(StreamName)
"""In the order in which attention joins them."""

Prediction = Literal["clean", "velocity"]
"""What a continuous stream's head gives: the clean tokens x (often called x0), or the velocity ε − x."""


class Stream(nn.Module, ABC):
    """One stream's tokens."""

    channels: int
    """C."""
    outputs: int
    """O."""
    tokens_per_tick: Fraction = Fraction(1)
    """N of a window of t ticks is t times this, for windows that hold whole tokens."""
    whole_windows: bool = False
    """Whether N tokens stand for a window as a whole, however long it is: windows then share none of them."""
    tokens_at_once: int = 1
    """Tokens that have one time and follow one another; a window holds all of them or none."""
    omniflow_tokens: bool = False
    """Whether the tokens are those of OmniFlow's stream of this name, so that its projections of them fit."""

    def count(self, ticks: int) -> int:
        """N of a window of some ticks; raises ValueError where it holds no whole number of tokens."""
        times = ticks * self.tokens_per_tick / self.tokens_at_once
        if times.denominator != 1:
            raise ValueError(f"{ticks} ticks do not hold whole tokens, {self.tokens_per_tick} a tick")
        return int(times) * self.tokens_at_once

    @abstractmethod
    def tokens(self, arrays: Tensor) -> Tensor:
        """Arrays (B, …) as clean tokens (B, N, C), about of unit variance."""

    @abstractmethod
    def arrays(self, tokens: Tensor) -> Tensor:
        """The inverse of `tokens`; for tokens that no array has, those of the nearest."""

    @abstractmethod
    def seconds(self, count: int) -> Tensor:
        """Times (N,) float32 of N tokens' centres from the window's start."""

    def positions(self, count: int, width: int) -> Tensor | None:
        """Embeddings (N, W) float32 of N tokens' places, for trunks that add them; None: the tokens get none.

        Sines and cosines of the time in ticks, as OmniFlow's tables have them on an axis.
        """
        return line_embedding(self.seconds(count) * TICKS_PER_SECOND, width).to(torch.float32)

    @property
    def places(self) -> Tensor | None:
        """Learned embeddings (N, W) of tokens that no time tells apart, which any trunk adds; None: there are none."""
        return None

    @abstractmethod
    def clean(self, output: Tensor, noised: Tensor, levels: Tensor) -> Tensor:
        """The clean tokens (B, N, C) that outputs (B, N, O) at noised tokens (B, N, C) and levels (B,) stand for."""

    @abstractmethod
    def losses(self, output: Tensor, arrays: Tensor, clean: Tensor, noise: Tensor) -> Tensor:
        """Loss (B,) of outputs (B, N, O), given what was noised (as arrays and as tokens) and the noise."""


def _columns(levels: Tensor, tokens: Tensor) -> Tensor:
    """Levels (B,) with as many axes as tokens (B, …), in their precision."""
    return levels.to(tokens.dtype).reshape(-1, *([1] * (tokens.ndim - 1)))


def noised(clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """Tokens at their levels (B,): x_σ = (1 − σ) x + σ ε for clean x and noise ε (B, …).

    The straight path of Liu et al. (2023) and Lipman et al. (2023).
    """
    return torch.lerp(clean, noise, _columns(levels, clean))


def clean_from_velocity(velocity: Tensor, at: Tensor, levels: Tensor) -> Tensor:
    """Clean tokens x = x_σ − σ v, with v = ε − x."""
    return at - _columns(levels, at) * velocity


def velocity_from_clean(clean: Tensor, at: Tensor, levels: Tensor) -> Tensor:
    """Velocity v = (x_σ − x) / σ for levels in (0, 1]."""
    return (at - clean) / _columns(levels, at)
