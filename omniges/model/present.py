"""Presence of streams in the windows of a batch, on the host and on the model's device."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from omniges.features.gesture import LAYOUT
from omniges.model.streams import STREAMS, StreamName
from omniges.shards.present import ALL_PRESENT, STREAM_BITS, U8, Bools, channel_flags, part_flags


@dataclass(frozen=True, slots=True)
class Present:
    """Presence of streams in B windows; batches in which nothing is absent use None instead."""

    streams: Bools  # (B, 3) on the host, columns as STREAMS
    lacking: Tensor  # (B, 8) float32, 1 for each of `STREAM_PARTS` that is absent; input of the model
    masks: Mapping[StreamName, Tensor]  # bool (B, 415 or 424) of gesture channels, (B, 1) of other streams and latents

    def at(self, rows: Tensor) -> Present:
        """Return the presence of the given windows (R,), for use on the device."""
        masks = {name: mask[rows] for name, mask in self.masks.items()}
        return replace(self, lacking=self.lacking[rows], masks=masks)


def streams_present(bits: U8) -> Bools | None:
    """Return the presence (B, 3) of `STREAMS` from bits (B,) of `STREAM_PARTS`; None if no stream is absent."""
    if (bits == ALL_PRESENT).all():
        return None
    return np.stack([bits & STREAM_BITS[name] != 0 for name in STREAMS], axis=1)


def present_of(
    bits: U8, device: torch.device, latents: Collection[StreamName] = (), gesture_channels: int = LAYOUT.channels
) -> Present | None:
    """Return the presence of streams on a device.

    Args:
        bits: Bits of `STREAM_PARTS` (B,).
        device: Device of the model.
        latents: Streams that are latents of a codec, which are present or absent completely.
        gesture_channels: Channels of the gesture stream, 415 or 424.

    Returns:
        Masks and flags on the device; None if nothing is absent.
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
    """Return tokens with zeros where a mask is false; masked values may be NaN.

    Args:
        tokens: Tokens (B, N, C).
        mask: Mask (B, V) of the values of a row, or (B, 1) of the complete sample.

    Returns:
        The masked tokens (B, N, C).
    """
    columns = mask if mask.shape[1] == 1 else mask.repeat(1, tokens.shape[-1] // mask.shape[1])
    return torch.where(columns[:, None], tokens, 0.0)
