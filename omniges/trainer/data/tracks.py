"""The two arrays that windows are cut from: which members, how many rows a tick, how many numbers a row.

Gesture is always read; audio is the mel, or a codec's latents in its place. Where a tick does not hold a whole number
of rows, windows and their beginnings are multiples of some ticks (`Tracks.tick_multiple`), so that every window holds
the same whole number of rows and begins with one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import UsageFault
from omniges.features.audio import MEL_BANDS
from omniges.features.gesture import LAYOUT
from omniges.shards.codecs import SOURCE_FRAMES_PER_TICK, CodecEntry

__all__ = ["PLAIN_TRACKS", "Track", "Tracks"]

_WORDS: Final = "words.json"


@dataclass(frozen=True, slots=True)
class Track:
    """An array member of every sample: rows of numbers, evenly spaced in time."""

    member: str
    channels: int
    source: str  # the member whose frames the rows stand for: itself, but for latents
    frames_per_row: int = 1

    @classmethod
    def of_codec(cls, entry: CodecEntry) -> Track:
        """The latents of a codec."""
        return cls(entry.member, entry.channels, entry.source, entry.frames_per_row)

    @property
    def rows_per_tick(self) -> Fraction:
        """Rows of 0.1 s."""
        return Fraction(SOURCE_FRAMES_PER_TICK[self.source], self.frames_per_row)

    def rows(self, ticks: int) -> int:
        """Whole rows of some ticks."""
        return ticks * SOURCE_FRAMES_PER_TICK[self.source] // self.frames_per_row  # in the loop that reads

    def lengths(self, frames: npt.NDArray[np.int64], mel_frames: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Rows (N,) of clips with so many gesture and mel frames (N,)."""
        own = {"gesture.npy": frames, "mel.npy": mel_frames}[self.source]
        found: npt.NDArray[np.int64] = own // self.frames_per_row
        return found

    def as_json(self) -> dict[str, Any]:
        """The track for another process."""
        return {name: getattr(self, name) for name in ("member", "channels", "source", "frames_per_row")}


@dataclass(frozen=True, slots=True)
class Tracks:
    """What a batch's arrays are made of."""

    gesture: Track
    audio: Track

    @classmethod
    def with_codecs(cls, entries: Mapping[str, CodecEntry]) -> Tracks:
        """The plain arrays, but for the streams that a codec stands for."""
        chosen = {stream: Track.of_codec(entry) for stream, entry in entries.items()}
        return cls(chosen.get("gesture", PLAIN_TRACKS.gesture), chosen.get("audio", PLAIN_TRACKS.audio))

    @property
    def arrays(self) -> tuple[Track, Track]:
        """Both, in the order in which readers have them."""
        return self.gesture, self.audio

    @property
    def members(self) -> tuple[str, str, str]:
        """The members that batches are made of; the last is not an array."""
        return self.gesture.member, self.audio.member, _WORDS

    @property
    def tick_multiple(self) -> int:
        """Ticks that a window's length and beginning have to be multiples of."""
        return math.lcm(*(track.rows_per_tick.denominator for track in self.arrays))

    def multiple_for_window(self, ticks: int, tick_multiple: int = 1) -> int:
        """Ticks that windows of some ticks begin at multiples of: `tick_multiple`, joined with another one.

        Raises UsageFault for a window that does not hold whole rows, or is no multiple of the other.
        """
        multiple = math.lcm(self.tick_multiple, tick_multiple)
        if ticks % multiple:
            latents = [track.member for track in self.arrays if track.rows_per_tick.denominator > 1]
            raise UsageFault(
                f"--window-ticks {ticks}: a multiple of {multiple} expected, for a window has to hold whole tokens of "
                f"{', '.join(latents) or 'every stream'}"
            )
        return multiple

    def as_json(self) -> dict[str, Any]:
        """The tracks for another process."""
        return {"gesture": self.gesture.as_json(), "audio": self.audio.as_json()}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Tracks:
        """The inverse of `as_json`."""
        return cls(Track(**found["gesture"]), Track(**found["audio"]))


PLAIN_TRACKS: Final = Tracks(
    Track("gesture.npy", LAYOUT.channels, "gesture.npy"), Track("mel.npy", MEL_BANDS, "mel.npy")
)
"""The arrays as `preprocess` writes them."""
