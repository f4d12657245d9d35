"""Streams of the model: conversion of arrays to tokens and back, token times, predictions and losses.

The flow and the trunk use only the `Stream` interface, so a new kind of token needs only one more class and a line in
the configuration. By default each stream has one token for each tick. A gesture token is 3 frames × 415 channels and an
audio token 10 mel frames × 64 bands, normalised by the statistics of the training data. A text token is the embedding
of an id (`omniges.features.text_tokens`). `Present` stores which streams the windows of a batch have.

Shape letters: B batch, N tokens, C channels of a token, O outputs of the trunk's head, T frames of a window, V values
(channels) of a frame.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from omniges.features.gesture import LAYOUT
from omniges.features.text_tokens import BLANK, MARKS
from omniges.features.timebase import TICKS_PER_SECOND
from omniges.shards.dataset import divisors
from omniges.shards.present import ALL_PRESENT, STREAM_BITS, U8, Bools, channel_flags, part_flags

StreamName = Literal["gesture", "text", "audio"]
STREAMS: Final[tuple[StreamName, ...]] = get_args(StreamName)
"""All streams, in the order in which attention joins them."""

Prediction = Literal["clean", "velocity"]
"""Output of a continuous stream's head: the clean tokens x (often called x0), or the velocity ε − x."""


class Stream(nn.Module, ABC):
    """Interface of a stream: conversion between its arrays and tokens, and its losses."""

    channels: int
    """Number of channels C of a token."""
    outputs: int
    """Number of outputs O of the head for each token."""
    tokens_per_tick: Fraction = Fraction(1)
    """Number of tokens in one tick."""
    complete_windows: bool = False
    """True: a fixed number of tokens encodes a complete window of any length, and windows share no tokens."""
    tokens_at_once: int = 1
    """Number of successive tokens that have the same time; a window contains all of them or none."""
    omniflow_tokens: bool = False
    """True: the tokens equal those of OmniFlow's stream of this name, so OmniFlow's pretrained projections fit."""

    def count(self, ticks: int) -> int:
        """Return the number of tokens in a window of `ticks` ticks; raise ValueError if it is not a whole number."""
        times = ticks * self.tokens_per_tick / self.tokens_at_once
        if times.denominator != 1:
            raise ValueError(f"{ticks} ticks do not contain a whole number of tokens, {self.tokens_per_tick} a tick")
        return int(times) * self.tokens_at_once

    @abstractmethod
    def tokens(self, arrays: Tensor) -> Tensor:
        """Convert arrays (B, …) to clean tokens (B, N, C) of about unit variance."""

    @abstractmethod
    def arrays(self, tokens: Tensor) -> Tensor:
        """Convert tokens (B, N, C) to arrays; the inverse of the method `tokens`.

        Predicted tokens may lie between the tokens of valid arrays. The result is then the nearest valid arrays, for
        example the text tokens with the nearest embeddings.
        """

    @abstractmethod
    def seconds(self, count: int) -> Tensor:
        """Return the times (N,) float32 of the centres of N tokens, in seconds from the window's start."""

    def positions(self, count: int, width: int) -> Tensor | None:
        """Return position embeddings for trunks that add them: sines and cosines of the time in ticks, as in OmniFlow.

        Args:
            count: Number of tokens N.
            width: Features W of an embedding.

        Returns:
            Embeddings (N, W) float32; None if the tokens have no position embeddings.
        """
        return line_embedding(self.seconds(count) * TICKS_PER_SECOND, width).to(torch.float32)

    @property
    def places(self) -> Tensor | None:
        """Learned position embeddings (N, W) for tokens that have the same time; None: no embeddings.

        All trunks add these embeddings, including trunks with rotary positions.
        """
        return None

    @abstractmethod
    def clean(self, output: Tensor, noised: Tensor, levels: Tensor) -> Tensor:
        """Convert outputs of the head to clean tokens.

        Args:
            output: Outputs of the head (B, N, O).
            noised: Noised tokens (B, N, C) that the trunk received.
            levels: Noise levels σ in [0, 1]: one for each sample (B,), or one for each token (B, N).

        Returns:
            Clean tokens (B, N, C).
        """

    @abstractmethod
    def losses(
        self, output: Tensor, arrays: Tensor, clean: Tensor, noise: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Return the loss of each sample.

        Args:
            output: Outputs of the head (B, N, O).
            arrays: The clean arrays (B, …).
            clean: The clean tokens (B, N, C).
            noise: The noise (B, N, C) that was mixed with the clean tokens.
            weights: Weights of a sample's values in the mean of its loss, at least 0. The shape is (B, V) with one
                weight for each of the V values of a frame, or (B, 1) with one weight for all values. In a bool tensor,
                True marks present values. None: all weights are 1.

        Returns:
            Losses (B,).
        """


def _columns(levels: Tensor, tokens: Tensor) -> Tensor:
    """Append axes of length 1 to levels (B,) or (B, N), so that they broadcast to tokens; use the tokens' precision."""
    return levels.to(tokens.dtype).reshape(*levels.shape, *([1] * (tokens.ndim - levels.ndim)))


def noised(clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """Mix tokens with noise: x_σ = (1 − σ) x + σ ε (Liu et al. 2023; Lipman et al. 2023).

    Args:
        clean: Clean tokens x (B, …).
        noise: Noise ε (B, …).
        levels: Noise levels σ in [0, 1]: one for each sample (B,), or one for each token (B, N).

    Returns:
        Tokens x_σ (B, …).
    """
    return torch.lerp(clean, noise, _columns(levels, clean))


def clean_from_velocity(velocity: Tensor, at: Tensor, levels: Tensor) -> Tensor:
    """Return clean tokens x = x_σ − σ v for a velocity v = ε − x.

    Args:
        velocity: Velocity v (B, …).
        at: Noised tokens x_σ (B, …).
        levels: Noise levels σ in [0, 1]: one for each sample (B,), or one for each token (B, N).

    Returns:
        Clean tokens x (B, …).
    """
    return at - _columns(levels, at) * velocity


def velocity_from_clean(clean: Tensor, at: Tensor, levels: Tensor) -> Tensor:
    """Return the velocity v = (x_σ − x) / σ.

    Args:
        clean: Clean tokens x (B, …).
        at: Noised tokens x_σ (B, …).
        levels: Noise levels σ in (0, 1]: one for each sample (B,), or one for each token (B, N).

    Returns:
        Velocity v (B, …).
    """
    return (at - clean) / _columns(levels, at)


def line_embedding(coordinates: Tensor, width: int) -> Tensor:
    """Return sinusoidal embeddings (Vaswani et al. 2017): width / 2 sines, then width / 2 cosines.

    Sine j and cosine j have the angle coordinate · 10⁴^(−j / (width / 2)) in radians, j = 0 … width / 2 − 1.

    Args:
        coordinates: Coordinates (N,).
        width: Even number of features.

    Returns:
        Embeddings (N, width) float64.
    """
    half = width // 2
    frequencies = 10_000.0 ** (-torch.arange(half, dtype=torch.float64, device=coordinates.device) / half)
    angles = coordinates.to(torch.float64)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def tick_seconds(count: int) -> Tensor:
    """Return the centres (N,) float32 of the first N ticks, in seconds."""
    return (torch.arange(count, dtype=torch.float32) + 0.5) / TICKS_PER_SECOND


class FrameTokens(Stream):
    """A stream of frames (B, N · frames, channels) as tokens (B, N, frames · channels), by default one for each tick.

    Latents of a codec are frames too; each row is one token.

    If the head predicts clean tokens of F > 1 frames, the predictions overlap. Each token predicts its own F frames and
    ⌊F/2⌋ more on each side. A frame is the weighted mean of the predictions of the two nearest tokens. The weight falls
    linearly from 1 in the middle of a token to 0 in the middle of its neighbour. This avoids jumps at the borders of
    tokens (overlap-add; Malvar and Staelin 1989, *The LOT: Transform Coding Without Blocking Effects*). Velocities do
    not overlap, because a token does not contain the noise of its neighbour.

    Args:
        frames: Frames in a token.
        mean: Mean of each channel over the training data.
        std: Standard deviation of each channel, by which the channel is divided. Values below 1e-6 are replaced by 1.
        prediction: Output of the head: clean tokens or velocities.
        difference_weight: Loss weight of differences between successive frames.
        tokens_per_tick: Tokens in one tick (0.1 s).
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
        self.overlap = frames // 2 if prediction == "clean" else 0
        self.outputs = (frames + 2 * self.overlap) * len(mean)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("scale", torch.from_numpy(divisors(std)))

    def tokens(self, arrays: Tensor) -> Tensor:
        """Normalise frames (B, T, channels), and concatenate the frames of each token to (B, N, C)."""
        normal = (arrays - self.mean) / self.scale
        return normal.reshape(len(arrays), -1, self.channels)

    def arrays(self, tokens: Tensor) -> Tensor:
        """Convert tokens (B, N, C) to frames (B, T, channels) without normalisation, in the units of the shards."""
        normal = tokens.reshape(len(tokens), -1, len(self.mean))
        return normal * self.scale + self.mean

    def seconds(self, count: int) -> Tensor:
        """Return the times (N,) of the tokens' centres in seconds: (k + ½) · token length for token k."""
        return (tick_seconds(count) / float(self.tokens_per_tick)).to(self.mean.device)

    def clean(self, output: Tensor, noised: Tensor, levels: Tensor) -> Tensor:
        """Return the clean tokens that the outputs predict, directly or through the velocity.

        Args:
            output: Outputs of the head (B, N, O).
            noised: Noised tokens (B, N, C).
            levels: Noise levels σ in [0, 1]: one for each sample (B,), or one for each token (B, N).

        Returns:
            Clean tokens (B, N, C).
        """
        predicted = self.predicted(output)
        return predicted if self.prediction == "clean" else clean_from_velocity(predicted, noised, levels)

    def losses(
        self, output: Tensor, arrays: Tensor, clean: Tensor, noise: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Return the mean of error² plus `difference_weight` times the mean of (error change between frames)².

        The second term penalises errors that change from one frame to the next. It does not change which prediction is
        optimal: the conditional mean. Without this term, a model first learns what the frames of a token have in
        common. Until it has learned more, generated motion stands still within a tick and jumps between ticks. The term
        is the velocity loss of Tevet et al. (2023), *Human Motion Diffusion Model*, ICLR.

        Args:
            output: Outputs of the head (B, N, O).
            arrays: Not used.
            clean: Clean tokens (B, N, C).
            noise: Noise (B, N, C).
            weights: Weights in both means: of each channel (B, V), or of all channels (B, 1). None: all 1.

        Returns:
            Losses (B,).
        """
        del arrays
        target = clean if self.prediction == "clean" else noise - clean
        error = (self.predicted(output).float() - target).reshape(len(output), -1, len(self.mean))
        return self.loss_of(error, clean, weights)

    def loss_of(self, error: Tensor, clean: Tensor, weights: Tensor | None) -> Tensor:
        """Return the losses for the errors of frames, see `losses`.

        Args:
            error: Errors (B, T, V) of predicted normalised frames, or of predicted velocities ε − x.
            clean: Clean tokens (B, N, C); not used by this class.
            weights: Weights of each channel (B, V), or of all channels (B, 1). None: all 1.

        Returns:
            Losses (B,).
        """
        del clean
        found = weighted_square(error, weights)
        if self.difference_weight:
            found = found + self.difference_weight * weighted_square(self.differences(error), weights)
        if weights is not None:  # exactly 1 if nothing is absent
            found = found / weights.float().mean(dim=1)
        return found

    def differences(self, error: Tensor) -> Tensor:
        """Return the differences (B, T - 1, V) between successive frames of errors (B, T, V), for the loss."""
        return error.diff(dim=1)

    def predicted(self, output: Tensor) -> Tensor:
        """Convert outputs of the head to predictions for the frames of each token, by overlap-add.

        Args:
            output: Outputs (B, N, O). Each token predicts its own frames and, if predictions overlap, some frames of
                the tokens before and after it.

        Returns:
            Predictions (B, N, C): clean tokens or velocities. A frame that two tokens predict is their weighted mean.
        """
        if not self.overlap:
            return output
        overlap, frames = self.overlap, self.frames
        at = torch.arange(-overlap, frames + overlap, device=output.device) - (frames - 1) / 2
        hat = 1 - at.abs() / frames
        weighted = output.reshape(*output.shape[:2], frames + 2 * overlap, -1) * hat[:, None]
        before, after = weighted[:, :, :overlap], weighted[:, :, overlap + frames :]
        own = weighted[:, :, overlap : overlap + frames]
        ends = functional.pad(before[:, 1:], (0, 0, frames - overlap, 0, 0, 1))
        starts = functional.pad(after[:, :-1], (0, 0, 0, frames - overlap, 1, 0))
        alone = torch.ones(own.shape[1:3], device=own.device)  # at the window's ends only one token predicts a frame
        alone[0, :overlap] /= hat[overlap : 2 * overlap]
        alone[-1, -overlap:] /= hat[-2 * overlap : -overlap]
        return ((own + ends + starts) * alone[..., None]).flatten(2)


class WindowTokens(FrameTokens):
    """A stream of latents (B, N, V) that encode a complete window. Each latent is one token and has no time.

    With rotary positions, all tokens have the time of the window's middle. A trunk that adds time embeddings adds none
    to these tokens, like OmniFlow. In both cases the trunk adds a learned embedding of each token's index, because the
    codec's decoder depends on the order of latents. This embedding is initialized to zero. So a model that is
    initialized from OmniFlow's weights has OmniFlow's outputs before training.

    Args:
        latents: Number N of latents of a window.
        window_ticks: Length of the codec's windows in ticks.
        width: Features W of the trunk's tokens.
        mean: Mean of each channel over the training data.
        std: Standard deviation of each channel.
        prediction: Output of the head.
        omniflow_tokens: True if the tokens equal OmniFlow's text tokens, so that OmniFlow's pretrained projections fit.
    """

    complete_windows = True

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
        """Return the number of tokens N, which is the same for a window of any length."""
        del ticks
        return self.latents

    def seconds(self, count: int) -> Tensor:
        """Return the times (N,) of the tokens in seconds: the middle of the window for every token."""
        return torch.full((count,), self._middle_s, device=self.mean.device)

    def positions(self, count: int, width: int) -> None:
        """Return None, because the tokens have no times.

        Args:
            count: Not used.
            width: Not used.
        """
        del count, width

    @property
    def places(self) -> Tensor:
        """Learned position embeddings (N, W)."""
        return self.place


class SubwordTokens(Stream):
    """A stream of text tokens (B, N) as embeddings (B, N, piece_width + mark_width), predicted as logits.

    A text token is a *blank* (a tick without a subword), or a subword with two marks: *first tick of the subword* and
    *first subword of the word*. Each mark is true or false, so there are 4 combinations of marks. The embeddings of
    subwords and of combinations of marks are in two tables, and a token concatenates one vector of each table. Both
    tables also contain a vector for the blank. So a vocabulary of V subwords needs (V + 1) + (4 + 1) vectors instead of
    4 V + 1. Each vector of E features is scaled to the norm √E. So a token has the norm √C, about that of a vector of C
    unit Gaussian values. The head predicts logits of subwords and logits of combinations of marks. The clean token is
    the mean embedding under the softmax. The loss is the sum of both cross-entropies, with a lower weight for blanks.

    Noised tokens carry no gradient into the embeddings (see `omniges.model.flow`). Such a gradient would move the
    embeddings apart, because distant embeddings are easy to denoise.

    Args:
        vocab_size: Size of the tokenizer's vocabulary.
        piece_width: Features of a subword's embedding.
        mark_width: Features of the marks' embedding.
        blank_weight: Loss weight of a blank tick; a tick with speech has the weight 1.
    """

    def __init__(self, *, vocab_size: int, piece_width: int, mark_width: int, blank_weight: float) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.blank_weight = blank_weight
        self.channels = piece_width + mark_width
        self.outputs = (vocab_size + 1) + (MARKS + 1)
        self.piece = nn.Parameter(torch.randn(vocab_size + 1, piece_width))
        self.mark = nn.Parameter(torch.randn(MARKS + 1, mark_width))

    def tokens(self, arrays: Tensor) -> Tensor:
        """Return the embeddings (B, N, C) of token ids (B, N) of any integer type."""
        subword, mark = _parts(arrays.long())
        return torch.cat([_scaled(self.piece)[subword], _scaled(self.mark)[mark]], dim=-1)

    def arrays(self, tokens: Tensor) -> Tensor:
        """Return the ids (B, N) int64 of the text tokens whose embeddings are nearest to the tokens (B, N, C).

        The nearest subword and the nearest combination of marks are found separately. If the blank is nearer than all
        subwords, the result is a blank, and the marks are ignored.
        """
        width = self.piece.shape[1]
        subword = (tokens[..., :width] @ _scaled(self.piece).mT).argmax(-1)
        mark = (tokens[..., width:] @ _scaled(self.mark)[1:].mT).argmax(-1)
        return torch.where(subword == 0, BLANK, 1 + MARKS * (subword - 1) + mark)

    def seconds(self, count: int) -> Tensor:
        """Return the times (N,) of the ticks' centres in seconds."""
        return tick_seconds(count).to(self.piece.device)

    def clean(self, output: Tensor, noised: Tensor, levels: Tensor) -> Tensor:
        """Return the mean embeddings of subwords and of marks under the softmax of their logits, concatenated.

        Args:
            output: Logits (B, N, O).
            noised: Not used.
            levels: Not used.

        Returns:
            Clean tokens (B, N, C).
        """
        del noised, levels
        subword, mark = self._logits(output)
        return torch.cat(
            [subword.softmax(-1) @ _scaled(self.piece).float(), mark.softmax(-1) @ _scaled(self.mark).float()], dim=-1
        )

    def losses(
        self, output: Tensor, arrays: Tensor, clean: Tensor, noise: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Return the cross-entropy of the subword plus that of the marks, in nats, as a weighted mean over the ticks.

        Args:
            output: Logits (B, N, O).
            arrays: Token ids (B, N) of any integer type.
            clean: Not used.
            noise: Not used.
            weights: Not used; a blank tick has the weight `blank_weight`, a tick with speech 1.

        Returns:
            Losses (B,).
        """
        del clean, noise, weights
        ids = arrays.long()
        nats = sum(
            functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
            for logits, target in zip(self._logits(output), _parts(ids), strict=True)
        )
        weights = torch.where(ids == BLANK, self.blank_weight, 1.0)
        return (torch.as_tensor(nats).reshape(ids.shape) * weights).sum(1) / weights.sum(1)

    def _logits(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of subwords (B, N, V + 1) and of marks (B, N, 5) as float32; index 0 is the blank."""
        return output[..., : self.vocab_size + 1].float(), output[..., self.vocab_size + 1 :].float()


def weighted_square(error: Tensor, weights: Tensor | None) -> Tensor:
    """Return weighted means of squared errors; an error with the weight 0 may be NaN.

    The sum of the weighted squares is divided by the number of values T · V, not by the sum of the weights.

    Args:
        error: Errors (B, T, V) of T frames with V values.
        weights: Weights (B, V) or (B, 1); None: all are 1.

    Returns:
        Means (B,).
    """
    if weights is not None:  # zeros replace errors of absent values, which may be NaN: 0 · NaN would be NaN
        error = torch.where(weights[:, None] > 0, error, 0.0) * weights[:, None].sqrt()
    return error.square().mean(dim=(1, 2))


def _parts(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the subword index and the marks index of each token id; 0 is the blank in both."""
    return (ids + MARKS - 1) // MARKS, torch.where(ids == BLANK, 0, (ids - 1) % MARKS + 1)


def _scaled(table: Tensor) -> Tensor:
    """Scale the rows of a table (K, E) to the norm √E."""
    return functional.normalize(table, dim=-1) * math.sqrt(table.shape[-1])


@dataclass(frozen=True, slots=True)
class Present:
    """The streams and parts that are present in B windows. If nothing is absent, None is used instead."""

    streams: Bools  # (B, 3) on the host, columns as STREAMS
    lacking: Tensor  # (B, 8) float32, 1 for each part of `STREAM_PARTS` that is absent; input of the model
    masks: Mapping[StreamName, Tensor]  # bool (B, 415 or 424) of gesture channels, (B, 1) of other streams and latents

    def at(self, rows: Tensor) -> Present:
        """Return a copy for R of the B windows, without waiting for the device.

        Args:
            rows: Indices (R,) of the windows, on the device.

        Returns:
            The copy. Its tensors `lacking` and `masks` have R rows. Its array `streams`, on the host, still has B rows.
        """
        masks = {name: mask[rows] for name, mask in self.masks.items()}
        return replace(self, lacking=self.lacking[rows], masks=masks)


def streams_present(bits: U8) -> Bools | None:
    """Return the streams that are present in each sample; None if no part is absent.

    Args:
        bits: Bit masks (B,) of `STREAM_PARTS`.

    Returns:
        Flags (B, 3): True if at least one part of the stream is present. The columns are in the order of `STREAMS`.
    """
    if (bits == ALL_PRESENT).all():
        return None
    return np.stack([bits & STREAM_BITS[name] != 0 for name in STREAMS], axis=1)


def present_of(
    bits: U8, device: torch.device, latents: Collection[StreamName] = (), gesture_channels: int = LAYOUT.channels
) -> Present | None:
    """Return which streams, parts and channels are present, with tensors on a device.

    Args:
        bits: Bit masks (B,) of `STREAM_PARTS`.
        device: Device of the model.
        latents: Streams stored as latents of a codec, which are present or absent completely.
        gesture_channels: Channels of the gesture stream, 415 or 424.

    Returns:
        `Present` with masks and absent parts on the device, and streams on the host; None if nothing is absent.
    """
    streams = streams_present(bits)
    if streams is None:
        return None
    masks: dict[StreamName, Bools] = {name: streams[:, [k]] for k, name in enumerate(STREAMS)}
    if "gesture" not in latents:
        masks["gesture"] = channel_flags(bits, gesture_channels) & streams[:, [STREAMS.index("gesture")]]
    lacking = torch.from_numpy(1 - part_flags(bits).astype(np.float32))
    return Present(
        streams,
        lacking.to(device, non_blocking=True),
        {name: torch.from_numpy(mask).to(device, non_blocking=True) for name, mask in masks.items()},
    )


def masked(tokens: Tensor, mask: Tensor) -> Tensor:
    """Set the values of tokens to zero where a mask is False; the replaced values may be NaN.

    Args:
        tokens: Tokens (B, N, C).
        mask: Mask (B, V) of the V values of a frame, used for each frame of a token; or (B, 1), one for all values.

    Returns:
        The masked tokens (B, N, C).
    """
    columns = mask if mask.shape[1] == 1 else mask.repeat(1, tokens.shape[-1] // mask.shape[1])
    return torch.where(columns[:, None], tokens, 0.0)
