"""Bit masks of the parts that a sample has, and replacement values for absent parts.

Absent channels are NaN on disk. Readers find absent channels by the bit mask, and never search for NaN. Otherwise a
present channel that contains a NaN by error would count as absent. In all shapes, N is the number of samples.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.features.gesture import JAW_EYES_CHANNELS, LAYOUT, GestureClip
from omniges.shards.schema import GESTURE_PARTS, MOTION_PARTS, Part

U8 = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

STREAM_PARTS: Final[tuple[Part, ...]] = ("text", "audio", *MOTION_PARTS)
"""The parts of the streams. In the bit mask of a sample, bit k is set if the sample has part k.

A gesture stream of 415 channels does not use the last part, jaw_eyes. The bit of jaw_eyes is then always set."""
ALL_PRESENT: Final = (1 << len(STREAM_PARTS)) - 1
JAW_EYES_BIT: Final = 1 << STREAM_PARTS.index("jaw_eyes")
STREAM_BITS: Final[Mapping[str, int]] = {"text": 0b1, "audio": 0b10, "gesture": ALL_PRESENT & ~JAW_EYES_BIT & ~0b11}
"""Bit mask of each stream. A sample has a stream if it has at least one of these parts; jaw_eyes does not count."""
BODY_PARTS: Final[tuple[Part, ...]] = ("upper", "hands", "lower", "root")
"""The parts that determine the positions of joints."""
CHANNELS_OF: Final[Mapping[Part, slice]] = {part: getattr(LAYOUT, part) for part in GESTURE_PARTS}
"""Gesture channels of each part, without jaw and eyes."""
STREAM_CHANNELS_OF: Final[Mapping[Part, slice]] = {**CHANNELS_OF, "jaw_eyes": JAW_EYES_CHANNELS}
"""Channels of each part in a gesture stream of 424 channels. With 415 channels, the slice of jaw_eyes is empty."""


def present_bits(parts: Collection[str]) -> int:
    """Return a bit mask of `STREAM_PARTS` for a sample that has these parts; sem and labels are ignored."""
    return sum(1 << k for k, part in enumerate(STREAM_PARTS) if part in parts)


def absent_parts(bits: int) -> tuple[Part, ...]:
    """Return the parts that a sample with this bit mask lacks."""
    return tuple(part for k, part in enumerate(STREAM_PARTS) if not bits >> k & 1)


def bits_of(streams: Collection[str]) -> int:
    """Return a bit mask of all parts of the given streams; gesture includes jaw and eyes."""
    return sum(STREAM_BITS[name] for name in streams) | (JAW_EYES_BIT if "gesture" in streams else 0)


def unused_bits(channels: int) -> int:
    """Return the bit mask of the part that a gesture stream does not use: jaw_eyes with 415 channels, none with 424."""
    return JAW_EYES_BIT if channels == LAYOUT.channels else 0


def part_flags(bits: U8) -> Bools:
    """Convert bit masks (N,) of `STREAM_PARTS` to flags (N, 8): True if a part is present."""
    return (bits[:, None] >> np.arange(len(STREAM_PARTS), dtype=np.uint8) & 1).astype(np.bool_)


def channel_flags(bits: U8, channels: int = LAYOUT.channels) -> Bools:
    """Convert bit masks of present parts to flags of present gesture channels.

    Args:
        bits: Bit mask of `STREAM_PARTS` for each sample (N,).
        channels: Channels of the stream, 415 or 424.

    Returns:
        Flags (N, channels), True for a present channel.
    """
    found = np.empty((len(bits), channels), np.bool_)
    flags = part_flags(bits)
    for part, columns in STREAM_CHANNELS_OF.items():
        found[:, columns] = flags[:, [STREAM_PARTS.index(part)]]
    return found


@cache
def absent_channels(bits: int) -> tuple[slice, ...]:
    """Return the slices of channels that a sample with these bits lacks in a gesture stream of 424 channels."""
    return tuple(STREAM_CHANNELS_OF[part] for part in absent_parts(bits) if part in STREAM_CHANNELS_OF)


def trained_bits(statistics: Mapping[str, Any]) -> int:
    """Return a bit mask of the parts that at least one train sample has, according to stats.json.

    A stats.json of version 1 does not state this. All bits are then set.
    """
    gesture = statistics.get("gesture", {})
    if "counts" not in gesture:
        return ALL_PRESENT
    counts = np.asarray(gesture["counts"])
    there = {part for part, columns in CHANNELS_OF.items() if counts[columns].any()}
    there |= {"jaw_eyes"} if any(statistics.get("jaw_eyes", {}).get("counts", ())) else set()
    there |= {"audio"} if any(statistics["mel"]["counts"]) else set()
    there |= {"text"} if statistics["words"]["total"] else set()
    return present_bits(there)


def rest_channels(channels: int = LAYOUT.channels) -> npt.NDArray[np.float32]:
    """Return the channels (415,) or (424,) of a body at rest: no rotation, no motion, height 0, no expression."""
    rest = np.zeros(channels, np.float32)
    rest[LAYOUT.rotations].reshape(-1, 6)[:, [0, 4]] = 1.0  # the first two rows of the identity
    return rest


def at_rest(clip: GestureClip, present: Collection[str]) -> GestureClip:
    """Return a clip whose absent parts are in the rest pose, for code that needs a complete body.

    Args:
        clip: Clip with NaN in absent channels; returned unchanged if nothing is absent.
        present: Parts that the clip has.

    Returns:
        A clip without absent parts.
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
