"""Streams of the flow (arrays to tokens and back, times, predictions and losses), and the default tokens.

The flow and the trunk know a stream by the interface alone, so another way to make tokens (a pretrained codec's
latents) is a class and a line in the configuration. The default tokens are one a tick in each stream, so that all
streams lie on one time grid: gesture is 3 frames × 415 channels a token, audio 10 mel frames × 64 bands, both
normalised by the training data's statistics; text is a slot a tick (`omniges.features.text_slots`), embedded.

Shape letters: B batch, N tokens, C channels of a token, O outputs of the trunk's head.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from omniges.features.text_slots import BLANK, MARKS
from omniges.features.timebase import TICKS_PER_SECOND
from omniges.shards.dataset import divisors

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
    def losses(
        self, output: Tensor, arrays: Tensor, clean: Tensor, noise: Tensor, present: Tensor | None = None
    ) -> Tensor:
        """Loss (B,) of outputs (B, N, O), given what was noised (as arrays and as tokens) and the noise.

        ``present``: bool (B, V), which numbers of the arrays' rows are there, or (B, 1); absent ones have no loss.
        """


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


def line_embedding(coordinates: Tensor, width: int) -> Tensor:
    """Embeddings (N, width) of coordinates (N,): sines, then cosines, of coordinate · 10⁴^(−j / (width / 2))."""
    half = width // 2
    frequencies = 10_000.0 ** (-torch.arange(half, dtype=torch.float64, device=coordinates.device) / half)
    angles = coordinates.to(torch.float64)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def tick_seconds(count: int) -> Tensor:
    """Centres (N,) float32 in seconds of the first N ticks."""
    return (torch.arange(count, dtype=torch.float32) + 0.5) / TICKS_PER_SECOND


class FrameTokens(Stream):
    """Frames (B, N · frames, channels) as tokens (B, N, frames · channels), one a tick unless told otherwise.

    A codec's latents are frames too: rows of which each is a token.

    Where the head gives clean frames, and several a token, it is lapped: a token says its own F frames and ⌊F/2⌋ on
    either side, and a frame is the mean of what the two tokens near it say, weighted by a hat that is 1 in a token's
    middle and 0 in its neighbours'. What tokens disagree about is so spread over their frames instead of standing at
    the border as a jump (Malvar and Staelin 1989, *The LOT: Transform Coding Without Blocking Effects*). Velocities
    are not lapped, for a token has no way to know its neighbour's noise.

    Args:
        frames: frames a token.
        mean: each channel's mean over the training data.
        std: each channel's standard deviation; below 1e-6 the scale is 1.
        prediction: what the head gives.
        difference_weight: weight in the loss of differences between a window's successive frames.
        tokens_per_tick: how many tokens 0.1 s has.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        *,
        frames: int,
        mean: Sequence[float],
        std: Sequence[float],
        prediction: Prediction = "clean",
        difference_weight: float = 0.0,
        tokens_per_tick: Fraction = Fraction(1),
    ) -> None:
        super().__init__()
        self.frames = frames
        self.tokens_per_tick = tokens_per_tick
        self.prediction = prediction
        self.difference_weight = difference_weight
        self.channels = frames * len(mean)
        self.laps = frames // 2 if prediction == "clean" else 0
        self.outputs = (frames + 2 * self.laps) * len(mean)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("scale", torch.from_numpy(divisors(std)))

    def tokens(self, arrays: Tensor) -> Tensor:
        """Normalised frames, a tick's frames side by side."""
        normal = (arrays - self.mean) / self.scale
        return normal.reshape(len(arrays), -1, self.channels)

    def arrays(self, tokens: Tensor) -> Tensor:
        """Frames in the units of the shards."""
        normal = tokens.reshape(len(tokens), -1, len(self.mean))
        return normal * self.scale + self.mean

    def seconds(self, count: int) -> Tensor:
        """Centres of tokens: (k + ½) of their length."""
        return (tick_seconds(count) / float(self.tokens_per_tick)).to(self.mean.device)

    def clean(self, output: Tensor, noised: Tensor, levels: Tensor) -> Tensor:
        """Return the clean sample that the outputs predict, directly or through the velocity."""
        said = self._said(output)
        return said if self.prediction == "clean" else clean_from_velocity(said, noised, levels)

    def losses(
        self, output: Tensor, arrays: Tensor, clean: Tensor, noise: Tensor, present: Tensor | None = None
    ) -> Tensor:
        """Mean squared error e² against the clean tokens or the velocity ε − x, and that of e from frame to frame.

        Any weight of the second has the same best answer, the conditional mean: a loss that is quadratic in the error
        has. But most of a token's variance is what its frames have in common, and on the way there a model that is
        told of plain squares alone learns that and little else: frames that stand still for a tick and then jump.
        The velocity loss of Tevet et al. (2023), *Human Motion Diffusion Model*, ICLR. Both are means over the
        channels that are present.
        """
        del arrays
        target = clean if self.prediction == "clean" else noise - clean
        error = (self._said(output).float() - target).reshape(len(output), -1, len(self.mean))
        if present is not None:
            error = torch.where(present[:, None], error, 0.0)
        found = error.square().mean(dim=(1, 2))
        if self.difference_weight:
            found = found + self.difference_weight * error.diff(dim=1).square().mean(dim=(1, 2))
        if present is not None:  # exactly 1 where all is there
            found = found / present.float().mean(dim=1)
        return found

    def _said(self, output: Tensor) -> Tensor:
        """Tokens (B, N, C) of outputs (B, N, O): where they lap, the weighted means."""
        if not self.laps:
            return output
        laps, frames = self.laps, self.frames
        at = torch.arange(-laps, frames + laps, device=output.device) - (frames - 1) / 2
        hat = 1 - at.abs() / frames
        said = output.reshape(*output.shape[:2], frames + 2 * laps, -1) * hat[:, None]
        before, own, after = said[:, :, :laps], said[:, :, laps : laps + frames], said[:, :, laps + frames :]
        ends = functional.pad(before[:, 1:], (0, 0, frames - laps, 0, 0, 1))
        starts = functional.pad(after[:, :-1], (0, 0, 0, frames - laps, 1, 0))
        alone = torch.ones(own.shape[1:3], device=own.device)  # what one token alone says has its whole weight
        alone[0, :laps] /= hat[laps : 2 * laps]
        alone[-1, -laps:] /= hat[-2 * laps : -laps]
        return ((own + ends + starts) * alone[..., None]).flatten(2)


class WindowTokens(FrameTokens):
    """A codec's latents (B, N, V) of what a window says as as many tokens, which have no times among themselves.

    A trunk with rotary positions has all of them at the middle of the windows that the codec was used with; one that
    adds embeddings of times adds none to them, as OmniFlow's. Each has a learned embedding of its number instead, for
    without one a trunk would give them in any order, and a codec's decoder reads them in theirs. It begins at zero, so
    that a run with OmniFlow's weights begins with what OmniFlow computes.

    Args:
        latents: N.
        window_ticks: of those windows.
        width: features of the trunk's tokens, W.
        mean: each channel's mean over the training data.
        std: each channel's standard deviation.
        prediction: what the head gives.
        omniflow_tokens: whether they are OmniFlow's text tokens.
    """

    whole_windows = True

    def __init__(
        self,
        *,
        latents: int,
        window_ticks: int,
        width: int,
        mean: Sequence[float],
        std: Sequence[float],
        prediction: Prediction = "clean",
        omniflow_tokens: bool = False,
    ) -> None:
        super().__init__(frames=1, mean=mean, std=std, prediction=prediction)
        self.latents = latents
        self.omniflow_tokens = omniflow_tokens
        self._middle_s = window_ticks / TICKS_PER_SECOND / 2
        self.place = nn.Parameter(torch.zeros(latents, width))

    def count(self, ticks: int) -> int:
        """N, of a window of any length."""
        del ticks
        return self.latents

    def seconds(self, count: int) -> Tensor:
        """The middle of the window, for all of them."""
        return torch.full((count,), self._middle_s, device=self.mean.device)

    def positions(self, count: int, width: int) -> None:
        """None: they have no times."""
        del count, width

    @property
    def places(self) -> Tensor:
        """Learned position embeddings."""
        return self.place


class SlotTokens(Stream):
    """Text slots (B, N) as embeddings (B, N, piece_width + mark_width), and logits back.

    A slot's piece (or blank) and its marks (or blank) are embedded apart and stand side by side, so a vocabulary of
    V pieces needs V + 6 vectors rather than 4 V + 1. Each vector is scaled to the norm √(its width), which gives the
    token the norm √C of unit noise. The head gives logits of pieces and of marks; its clean token is the softmax's
    mean embedding, its loss the cross-entropy of both, blanks weighted down.

    What was noised carries no gradient into the embeddings (see `omniges.model.flow`): it would move words to
    where they are easy to tell rather than to where they mean something.

    Args:
        pieces: pieces of the tokenizer.
        piece_width: features that tell the piece.
        mark_width: features that tell the marks.
        blank_weight: weight of a blank tick in the loss, where a spoken tick has 1.
    """

    def __init__(self, *, pieces: int, piece_width: int, mark_width: int, blank_weight: float) -> None:
        super().__init__()
        self.pieces = pieces
        self.blank_weight = blank_weight
        self.channels = piece_width + mark_width
        self.outputs = (pieces + 1) + (MARKS + 1)
        self.piece = nn.Parameter(torch.randn(pieces + 1, piece_width))
        self.mark = nn.Parameter(torch.randn(MARKS + 1, mark_width))

    def tokens(self, arrays: Tensor) -> Tensor:
        """Embeddings of slots, any integer type."""
        piece, mark = _parts(arrays.long())
        return torch.cat([_scaled(self.piece)[piece], _scaled(self.mark)[mark]], dim=-1)

    def arrays(self, tokens: Tensor) -> Tensor:
        """The slots (B, N) int64 whose embeddings are nearest: piece first, then marks that fit it."""
        width = self.piece.shape[1]
        piece = (tokens[..., :width] @ _scaled(self.piece).mT).argmax(-1)
        mark = (tokens[..., width:] @ _scaled(self.mark)[1:].mT).argmax(-1)
        return torch.where(piece == 0, BLANK, 1 + MARKS * (piece - 1) + mark)

    def seconds(self, count: int) -> Tensor:
        """Centres of ticks."""
        return tick_seconds(count).to(self.piece.device)

    def clean(self, output: Tensor, noised: Tensor, levels: Tensor) -> Tensor:
        """The mean embedding under the softmax of the logits."""
        del noised, levels
        piece, mark = self._logits(output)
        return torch.cat(
            [piece.softmax(-1) @ _scaled(self.piece).float(), mark.softmax(-1) @ _scaled(self.mark).float()], dim=-1
        )

    def losses(
        self, output: Tensor, arrays: Tensor, clean: Tensor, noise: Tensor, present: Tensor | None = None
    ) -> Tensor:
        """Weighted mean over ticks of the cross-entropy of piece and marks, in nats."""
        del clean, noise, present
        slots = arrays.long()
        nats = sum(
            functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
            for logits, target in zip(self._logits(output), _parts(slots), strict=True)
        )
        weights = torch.where(slots == BLANK, self.blank_weight, 1.0)
        return (torch.as_tensor(nats).reshape(slots.shape) * weights).sum(1) / weights.sum(1)

    def _logits(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of pieces (B, N, V + 1) and of marks (B, N, 5), blank first, float32."""
        return output[..., : self.pieces + 1].float(), output[..., self.pieces + 1 :].float()


def _parts(slots: Tensor) -> tuple[Tensor, Tensor]:
    """Slots as numbers of piece and of marks, in both of which 0 is the blank."""
    return (slots + MARKS - 1) // MARKS, torch.where(slots == BLANK, 0, (slots - 1) % MARKS + 1)


def _scaled(table: Tensor) -> Tensor:
    """Rows (K, E) scaled to the norm √E."""
    return functional.normalize(table, dim=-1) * math.sqrt(table.shape[-1])
