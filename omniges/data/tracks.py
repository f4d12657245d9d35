"""Tracks, the arrays from which windows are cut: their members, rows per tick, values per row and scales.

Gesture and audio are arrays of rows, or latents of a codec. Text is words, or latents of complete windows. If a tick is
not a whole number of rows, windows begin and end at multiples of `Tracks.tick_multiple` ticks. Then every window has
the same number of complete rows. If text is stored as latents, windows are exactly the windows that the text codec
encoded.

Values are normalised by the statistics of the train split: (x − mean)/std per channel. If std < 1e-6, the divisor is 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError, UsageFault
from omniges.features.audio import MEL_BANDS
from omniges.features.gesture import JAW_EYES, LAYOUT
from omniges.shards.dataset import divisors
from omniges.shards.latents import CodecEntry, FrameEntry, FrameRows, WindowEntry
from omniges.shards.schema import VERIFY

F32 = npt.NDArray[np.float32]

WORDS: Final = "words"
"""Placeholder for the name of the member with the words, which depends on the version of the contract."""
TILE_TICKS: Final = 64
"""Number of ticks for which `Scale.tiled` repeats means and divisors. The result, 1 MB, fits into a CPU cache."""
STREAMS: Final[tuple[Literal["gesture", "audio", "text"], ...]] = ("gesture", "audio", "text")


@dataclass(frozen=True, slots=True)
class PlainArray(FrameRows):
    """An array as `preprocess` writes it, with one row for each frame."""

    source: str
    channels: int
    frames_per_row: int = 1
    stored_as: str = ""

    @property
    def member(self) -> str:
        """Name of the member that stores the array: `stored_as`, or `source` if `stored_as` is empty."""
        return self.stored_as or self.source


@dataclass(frozen=True, slots=True)
class Tracks:
    """The arrays from which windows are cut: gesture, audio, and text if it is stored as latents."""

    gesture: PlainArray | FrameEntry
    audio: PlainArray | FrameEntry
    text: WindowEntry | None = None  # None: tokens, from words
    jaw_eyes: PlainArray | None = None  # further channels of the batch's gesture; None: no further channels

    @classmethod
    def of(cls, gesture_channels: int, entries: Mapping[str, CodecEntry] = MappingProxyType({})) -> Tracks:
        """Return the array of each stream: the latents of its codec, or the array of `preprocess` if it has no codec.

        Args:
            gesture_channels: Channels of a batch's gesture without a codec: 415, or 424 with jaw and eyes. For latents,
                `entries` states the number of channels.
            entries: Codecs by stream.

        Returns:
            The tracks.
        """
        frames = {stream: entry for stream, entry in entries.items() if isinstance(entry, FrameEntry)}
        text = next((entry for entry in entries.values() if isinstance(entry, WindowEntry)), None)
        gesture, audio = frames.get("gesture", PLAIN_TRACKS.gesture), frames.get("audio", PLAIN_TRACKS.audio)
        return cls(gesture, audio, text, None if gesture_channels == LAYOUT.channels else _JAW_EYES_ARRAY)

    @property
    def arrays(self) -> tuple[PlainArray | FrameEntry | WindowEntry, ...]:
        """Arrays in the order in which windows are read: gesture, audio and, if text is stored as latents, text."""
        return (self.gesture, self.audio) if self.text is None else (self.gesture, self.audio, self.text)

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of values in a row of each array, in the order of `arrays`."""
        return self.gesture_channels, *(track.channels for track in self.arrays[1:])

    @property
    def gesture_channels(self) -> int:
        """Number of values in a row of a batch's gesture."""
        return self.gesture.channels + (0 if self.jaw_eyes is None else self.jaw_eyes.channels)

    @property
    def by_member(self) -> dict[int, PlainArray | FrameEntry | WindowEntry]:
        """The arrays that batches read, by index in `members`. Words are left out, because they are not an array."""
        found = dict(enumerate(self.arrays))
        return found if self.jaw_eyes is None else found | {len(self.members) - 1: self.jaw_eyes}

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the members that batches read: gesture, audio, text and, if gesture includes it, jaw_eyes."""
        found = self.gesture.member, self.audio.member, WORDS if self.text is None else self.text.member
        return found if self.jaw_eyes is None else (*found, self.jaw_eyes.member)

    @property
    def row_multiple(self) -> int:
        """Smallest number of ticks in which gesture and audio both have a whole number of rows."""
        return math.lcm(self.gesture.tick_multiple, self.audio.tick_multiple)

    @property
    def tick_multiple(self) -> int:
        """Number of ticks that must divide the start and the length of every window."""
        return self.row_multiple if self.text is None else math.lcm(self.row_multiple, self.text.stride_ticks)

    def multiple_for_window(self, ticks: int, tick_multiple: int) -> int:
        """Return the number of ticks that must divide the first tick of every window.

        Args:
            ticks: Length of a window in ticks.
            tick_multiple: Multiple that the model requires (``--tick-multiple``).

        Returns:
            The least common multiple of `tick_multiple` and of the multiple that these arrays require.

        Raises:
            UsageFault: `ticks` is not a multiple of the result, or the text codec encoded windows of another length.
        """
        if self.text is not None and ticks != self.text.window_ticks:
            expected = self.text.window_ticks
            raise UsageFault(
                f"--window-ticks {ticks}: expected {expected}, the window length of the latents {self.text.member}; "
                f"give --window-ticks {expected}, or encode again with {ticks}"
            )
        multiple = math.lcm(self.tick_multiple, tick_multiple)
        if ticks % multiple:
            latents = [track.member for track in (self.gesture, self.audio) if track.tick_multiple > 1]
            raise UsageFault(
                f"--window-ticks {ticks}: expected a multiple of {multiple}, because a window has to contain whole "
                f"tokens of {', '.join(latents) or 'every stream'}; choose such a length"
            )
        return multiple


_JAW_EYES_ARRAY: Final = PlainArray("gesture.npy", JAW_EYES, stored_as="jaw_eyes.npy")
PLAIN_TRACKS: Final = Tracks(PlainArray("gesture.npy", LAYOUT.channels), PlainArray("mel.npy", MEL_BANDS))
"""The arrays of a batch without codecs, and without jaw and eyes."""


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """Mean (C,) and divisor (C,) of the C channels of one stream, float32."""

    mean: F32
    divisor: F32

    @classmethod
    def from_statistics(cls, found: Any, name: str, channels: int, source: str) -> Scale:
        """Return the scale of an array from the statistics of its channels.

        Args:
            found: Entry of stats.json or latents.json, with ``mean`` and ``std``.
            name: Name of the array, for errors.
            channels: Expected number of channels C.
            source: Path of the file, for errors.

        Returns:
            Mean (C,) and divisor (C,) of the channels.

        Raises:
            UsageFault: No sample contributed to the statistics.
            DataError: The statistics do not follow the contract.
        """
        if found == {"samples": 0}:
            raise UsageFault(
                f"{source}: expected a train sample that is long enough for latents of {name}, found none; add "
                "longer recordings"
            )
        try:
            mean, std = (np.asarray(found[key], dtype=np.float64) for key in ("mean", "std"))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{source}: expected mean and std of {name}, found none or invalid ones; {VERIFY}"
            ) from error
        if mean.shape != (channels,) or std.shape != mean.shape or not np.isfinite(mean + std).all() or std.min() < 0:
            raise DataError(
                f"{source}: expected {channels} finite means and non-negative deviations of {name}, found "
                f"{mean.shape} and {std.shape}; {VERIFY}"
            )
        return cls(mean.astype(np.float32), divisors(std))

    def joined(self, other: Scale) -> Scale:
        """Return the scale of joined rows (C1 + C2,): C1 values with this scale, then C2 values with `other`."""
        return Scale(np.concatenate([self.mean, other.mean]), np.concatenate([self.divisor, other.divisor]))

    def tiled(self, frames: int) -> Scale:
        """Return the scale that normalises `frames` successive rows at once: repeat mean and divisor `frames` times."""
        return Scale(np.tile(self.mean, frames), np.tile(self.divisor, frames))

    def normalise_into(self, values: F32, out: F32) -> None:
        """Write (values − mean)/divisor to `out`, in float32.

        Call this method on a result of `tiled`. With a scale for a single row, numpy takes 1.5 times as long.

        Args:
            values: Values of complete rows, flattened (rows · channels,).
            out: Array (rows · channels,) for the result.
        """
        length = len(self.mean)
        if len(values) == length:
            np.subtract(values, self.mean, out=out)
            np.divide(out, self.divisor, out=out)
            return
        for start in range(0, len(values), length):
            piece = out[start : start + length]
            np.subtract(values[start : start + length], self.mean[: len(piece)], out=piece)
            np.divide(piece, self.divisor[: len(piece)], out=piece)


@dataclass(frozen=True, slots=True, eq=False)
class Normaliser:
    """The scales of gesture and audio, and of text if it is stored as latents."""

    gesture: Scale
    audio: Scale
    text: Scale | None = None  # only for latents

    @classmethod
    def identity(cls, tracks: Tracks) -> Normaliser:
        """Return a normaliser that changes nothing: mean 0 and divisor 1 for every channel."""
        counts = tracks.widths  # in the order of the fields
        return cls(*(Scale(np.zeros(count, np.float32), np.ones(count, np.float32)) for count in counts))

    @classmethod
    def from_statistics(cls, statistics: Mapping[str, Any], tracks: Tracks, samples: Any, source: str) -> Normaliser:
        """Return scales from the mean and std of each stream's array.

        Args:
            statistics: Entries of stats.json or latents.json, by stream.
            tracks: The array of each stream: features, or latents of a codec.
            samples: Number of train samples.
            source: Path of the file, for errors.

        Returns:
            The scales.

        Raises:
            UsageFault: No sample contributed to the statistics.
            DataError: The statistics do not follow the contract.
        """
        if not samples:
            raise UsageFault(
                f"{source}: expected statistics of train samples, found those of 0 samples; put recordings into "
                "the train split with omniges preprocess --split-csv"
            )
        streams = zip(STREAMS, tracks.arrays, strict=False)  # text has values only if it is stored as latents
        scales = [Scale.from_statistics(statistics.get(name), name, one.channels, source) for name, one in streams]
        if tracks.jaw_eyes is not None:
            own = Scale.from_statistics(statistics.get("jaw_eyes"), "jaw_eyes", tracks.jaw_eyes.channels, source)
            scales[0] = scales[0].joined(own)
        return cls(*scales)
