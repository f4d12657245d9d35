"""Present parts of a sample's streams, as bits, and the replacement values of absent ones.

Absent channels are NaN on disk. Readers mask them by these bits and never by searching for NaN, so a NaN in a channel
that should be present stays visible.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.features.gesture import LAYOUT, GestureClip
from omniges.shards.schema import GESTURE_PARTS, Part

U8 = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

STREAM_PARTS: Final[tuple[Part, ...]] = ("text", "audio", *GESTURE_PARTS)
"""The parts of the streams; bit k of a sample's bits is set if it has part k."""
ALL_PRESENT: Final = (1 << len(STREAM_PARTS)) - 1
STREAM_BITS: Final[Mapping[str, int]] = {"text": 0b1, "audio": 0b10, "gesture": ALL_PRESENT & ~0b11}
"""Bits of each stream; a sample has a stream if it has any of its parts."""
BODY_PARTS: Final[tuple[Part, ...]] = ("upper", "hands", "lower", "root")
"""The parts that place joints."""
CHANNELS_OF: Final[Mapping[Part, slice]] = {part: getattr(LAYOUT, part) for part in GESTURE_PARTS}
"""Gesture channels of each part."""


def present_bits(parts: Collection[str]) -> int:
    """Return the bits of a sample with these parts; parts of no stream are ignored."""
    return sum(1 << k for k, part in enumerate(STREAM_PARTS) if part in parts)


def absent_parts(bits: int) -> tuple[Part, ...]:
    """Return the parts that a sample with these bits lacks."""
    return tuple(part for k, part in enumerate(STREAM_PARTS) if not bits >> k & 1)


def part_flags(bits: U8) -> Bools:
    """Return the present parts (N, 7) of samples with bits (N,), in the order of `STREAM_PARTS`."""
    return (bits[:, None] >> np.arange(len(STREAM_PARTS), dtype=np.uint8) & 1).astype(np.bool_)


def channel_flags(bits: U8) -> Bools:
    """Return the present gesture channels (N, 415) of samples with bits (N,)."""
    found = np.empty((len(bits), LAYOUT.channels), np.bool_)
    flags = part_flags(bits)
    for part, columns in CHANNELS_OF.items():
        found[:, columns] = flags[:, [STREAM_PARTS.index(part)]]
    return found


@cache
def absent_channels(bits: int) -> tuple[slice, ...]:
    """Return the gesture channels that a sample with these bits lacks."""
    return tuple(CHANNELS_OF[part] for part in absent_parts(bits) if part in CHANNELS_OF)


def trained_bits(statistics: Mapping[str, Any]) -> int:
    """Return the bits of the parts that any train sample has, by stats.json; all parts for version 1."""
    gesture = statistics.get("gesture", {})
    if "counts" not in gesture:
        return ALL_PRESENT
    counts = np.asarray(gesture["counts"])
    there = {part for part, columns in CHANNELS_OF.items() if counts[columns].any()}
    there |= {"audio"} if any(statistics["mel"]["counts"]) else set()
    there |= {"text"} if statistics["words"]["total"] else set()
    return present_bits(there)


def rest_channels() -> npt.NDArray[np.float32]:
    """Return the gesture channels (415,) of a body at rest: no rotation, no step, height 0, no expression."""
    rest = np.zeros(LAYOUT.channels, np.float32)
    rest[LAYOUT.rotations].reshape(-1, 6)[:, [0, 4]] = 1.0  # the first two rows of the identity
    return rest


def at_rest(clip: GestureClip, present: Collection[str]) -> GestureClip:
    """Return a clip with its absent parts set to rest, for code that needs a complete body.

    Args:
        clip: The clip; returned unchanged if nothing is absent.
        present: Parts that the clip has.

    Returns:
        The complete clip.
    """
    lacking = absent_channels(present_bits(present) | ~STREAM_BITS["gesture"] & ALL_PRESENT)
    if lacking:
        gesture, rest = clip.gesture.copy(), rest_channels()
        for columns in lacking:
            gesture[:, columns] = rest[columns]
        clip = replace(clip, gesture=gesture)
    if "root" not in present:
        clip = replace(clip, start_xz=np.zeros(2))
    if "jaw_eyes" not in present:
        clip = replace(clip, jaw_eyes=np.zeros_like(clip.jaw_eyes))
    return clip
