"""What windows are cut from: which members, how many rows a tick, how many numbers a row.

Gesture and audio are arrays of rows, or a codec's latents in their place; text is words, or a codec's latents of whole
windows in their place. Where a tick does not hold a whole number of rows, windows and their beginnings are multiples of
some ticks (`Tracks.tick_multiple`), so that every window holds the same whole number of rows and begins with one; where
text is latents, windows are those that the latents were made for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import UsageFault
from omniges.features.audio import MEL_BANDS
from omniges.features.gesture import LAYOUT
from omniges.shards.latents import SOURCE_FRAMES_PER_TICK, WORDS_MEMBER, CodecEntry, FrameEntry, WindowEntry
from omniges.shards.window_grid import WindowGrid

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Track:
    """An array member of every sample: rows of numbers, evenly spaced in time."""

    member: str
    channels: int
    source: str  # the member whose frames the rows stand for: itself, but for latents
    frames_per_row: int = 1

    @classmethod
    def of_codec(cls, entry: FrameEntry) -> Track:
        """The latents of a codec."""
        return cls(entry.member, entry.channels, entry.source, entry.frames_per_row)

    @property
    def rows_per_tick(self) -> Fraction:
        """Rows of 0.1 s."""
        return Fraction(SOURCE_FRAMES_PER_TICK[self.source], self.frames_per_row)

    def rows(self, ticks: int) -> int:
        """Whole rows of some ticks."""
        return ticks * SOURCE_FRAMES_PER_TICK[self.source] // self.frames_per_row  # in the loop that reads

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return self.channels

    def span(self, start_tick: int, ticks: int) -> tuple[int, int]:
        """First row and rows of a window."""
        return self.rows(start_tick), self.rows(ticks)

    def lengths(self, frames: I64, mel_frames: I64, ticks: I64) -> I64:
        """Rows (N,) of clips with so many gesture frames, mel frames and ticks (N,)."""
        del ticks
        own = {"gesture.npy": frames, "mel.npy": mel_frames}[self.source]
        found: I64 = own // self.frames_per_row
        return found


@dataclass(frozen=True, slots=True)
class WindowTrack:
    """A codec's latents of whole windows: a row for each window of a grid."""

    member: str
    latents: int  # vectors of a window
    channels: int  # numbers of a vector
    window_ticks: int
    stride_ticks: int

    @classmethod
    def of_codec(cls, entry: WindowEntry) -> WindowTrack:
        """The latents of a codec."""
        return cls(entry.member, entry.latents, entry.channels, entry.window_ticks, entry.stride_ticks)

    @property
    def shape(self) -> tuple[int, int]:
        """Latents and channels of a window."""
        return self.latents, self.channels

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return self.latents * self.channels

    def span(self, start_tick: int, ticks: int) -> tuple[int, int]:
        """First row and rows of a window, which is one of the grid."""
        del ticks
        return start_tick // self.stride_ticks, 1

    def lengths(self, frames: I64, mel_frames: I64, ticks: I64) -> I64:
        """Rows (N,) of clips of so many ticks (N,)."""
        del frames, mel_frames
        grid = WindowGrid(self.window_ticks, self.stride_ticks)
        return np.array([grid.count(count) for count in ticks.tolist()], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Tracks:
    """What a batch's arrays are made of."""

    gesture: Track
    audio: Track
    text: WindowTrack | None = None  # None: slots, of words

    @classmethod
    def with_codecs(cls, entries: Mapping[str, CodecEntry]) -> Tracks:
        """The plain arrays, but for the streams that a codec stands for."""
        rows = {stream: Track.of_codec(entry) for stream, entry in entries.items() if isinstance(entry, FrameEntry)}
        text = next((WindowTrack.of_codec(entry) for entry in entries.values() if isinstance(entry, WindowEntry)), None)
        return cls(rows.get("gesture", PLAIN_TRACKS.gesture), rows.get("audio", PLAIN_TRACKS.audio), text)

    @property
    def arrays(self) -> tuple[Track | WindowTrack, ...]:
        """Gesture, audio and, where it is latents, text: the order in which readers have them."""
        return (self.gesture, self.audio) if self.text is None else (self.gesture, self.audio, self.text)

    @property
    def members(self) -> tuple[str, str, str]:
        """The members that batches are made of; the last is an array where text is latents."""
        return self.gesture.member, self.audio.member, WORDS_MEMBER if self.text is None else self.text.member

    @property
    def row_multiple(self) -> int:
        """Ticks that hold whole rows of gesture and audio."""
        return math.lcm(*(track.rows_per_tick.denominator for track in (self.gesture, self.audio)))

    @property
    def tick_multiple(self) -> int:
        """Ticks that a window's length and beginning in a clip have to be multiples of, so that shards hold it."""
        return self.row_multiple if self.text is None else math.lcm(self.row_multiple, self.text.stride_ticks)

    def multiple_for_window(self, ticks: int, tick_multiple: int = 1, flag: str = "--window-ticks") -> int:
        """Ticks that windows of some ticks begin at multiples of: `tick_multiple`, joined with another one.

        Raises UsageFault for a window that does not hold whole rows, is no multiple of the other, or that no latents
        of text were made for.
        """
        if self.text is not None and ticks != self.text.window_ticks:
            raise UsageFault(
                f"{flag} {ticks}: {self.text.window_ticks} expected, the window that {self.text.member} was made for: "
                f"give {flag} {self.text.window_ticks}, or encode again with this one"
            )
        multiple = math.lcm(self.tick_multiple, tick_multiple)
        if ticks % multiple:
            latents = [track.member for track in (self.gesture, self.audio) if track.rows_per_tick.denominator > 1]
            raise UsageFault(
                f"{flag} {ticks}: a multiple of {multiple} expected, for a window has to hold whole tokens of "
                f"{', '.join(latents) or 'every stream'}"
            )
        return multiple

    def as_json(self) -> dict[str, Any]:
        """The tracks for another process."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Tracks:
        """The inverse of `as_json`."""
        text = None if found["text"] is None else WindowTrack(**found["text"])
        return cls(Track(**found["gesture"]), Track(**found["audio"]), text)


PLAIN_TRACKS: Final = Tracks(
    Track("gesture.npy", LAYOUT.channels, "gesture.npy"), Track("mel.npy", MEL_BANDS, "mel.npy")
)
"""The arrays as `preprocess` writes them."""
