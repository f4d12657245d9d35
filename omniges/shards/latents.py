"""Entries of codecs in dataset.json.

A codec encodes one member of a sample as an array of latents. The entry of a codec states its name, which member it
encodes, and the size of the latents. There are two kinds of codec:

* A frame codec (`FrameEntry`): row k covers ``frames_per_row`` frames of an array, from frame ``frames_per_row · k``.
  All lengths and times follow from ``frames_per_row``, a whole number.
* A window codec (`WindowEntry`): row k encodes the words of window k of a grid, as several vectors. The vectors have
  no individual times.

Code that copies, checks, shows or counts latents works with `CodecEntry`, without knowing the kind. Only code that cuts
windows depends on the kind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from math import floor
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import UsageFault
from omniges.features.audio import MEL_BANDS
from omniges.features.gesture import BETAS, JAW_EYES, LAYOUT
from omniges.features.timebase import FRAMES_PER_TICK, MEL_FRAMES_PER_TICK, TICKS_PER_SECOND
from omniges.shards.dataset import SMALLEST_STD, PartialSpool
from omniges.shards.manifest import ManifestRow
from omniges.shards.schema import LATENT_MEMBER, WindowGrid
from omniges.storage.files import is_sha256

F32 = npt.NDArray[np.float32]

SOURCE_FRAMES_PER_TICK: Final[Mapping[str, int]] = {"mel.npy": MEL_FRAMES_PER_TICK, "gesture.npy": FRAMES_PER_TICK}
"""Members with frames that a codec may encode, and their number of frames in a tick."""
WORDS_MEMBER: Final = "words.json"
"""Source of a window codec, as named in contract version 1; `Contract.words` is the name of the member."""
BY_MIDDLE: Final = "middle"
"""Value of `WindowEntry.words`: a window contains the words whose midpoint, (start + end) / 2, lies in it."""

_MOST: Final = 1 << 20  # limit of each count in an entry: frames in a row, channels, ticks, vectors
_LOST: Final = ("windows", "cut", "unknown")


def said_in_windows(
    words: Sequence[Mapping[str, Any]], ticks: int, windows: Iterable[tuple[int, int]]
) -> list[list[Mapping[str, Any]]]:
    """Return the words of each window of a clip.

    A word belongs to each window that contains the midpoint of the word. If the windows cover the clip without overlap,
    each word is in exactly one window. A midpoint at the end of the clip counts as part of the last tick.

    Args:
        words: Words of the clip, each with ``word``, ``start`` and ``end`` in seconds.
        ticks: Length of the clip in ticks of 0.1 s.
        windows: First tick and number of ticks of each window.

    Returns:
        For each window, its words in the order of `words`.
    """
    middles = [min(floor((word["start"] + word["end"]) * TICKS_PER_SECOND / 2), ticks - 1) for word in words]
    return [
        [word for word, middle in zip(words, middles, strict=True) if first <= middle < first + count]
        for first, count in windows
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecEntry(ABC):
    """The entry of one codec under ``codecs`` in dataset.json; the subclasses are `FrameEntry` and `WindowEntry`."""

    name: str  # such as audioldm2-vae
    fingerprint: str  # sha256 of the codec's configuration and weights
    source: str  # member that the codec encodes
    channels: int  # number of values in a vector; each has statistics
    settings: Mapping[str, Any] = field(default_factory=dict)  # further settings, to repeat the encoding

    def __post_init__(self) -> None:
        """Raise ValueError for invalid fields."""
        if not LATENT_MEMBER.fullmatch(self.member):
            raise ValueError(f"name {self.name!r}")
        if not is_sha256(self.fingerprint):
            raise ValueError(f"fingerprint {self.fingerprint!r}")
        self._check_counts("channels")
        if not isinstance(self.settings, dict):
            raise ValueError(f"settings {self.settings!r}")  # noqa: TRY004 - one kind of error for a damaged file
        self._check()

    def _check_counts(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= _MOST:
                raise ValueError(f"{name} {value!r}")

    @abstractmethod
    def _check(self) -> None:
        """Raise ValueError if a field of the subclass is invalid."""

    @property
    def member(self) -> str:
        """Name of the member that contains the latents."""
        return f"{self.name}.npy"

    @property
    @abstractmethod
    def width(self) -> int:
        """Number of values in a row."""

    @abstractmethod
    def rows_of_clip(self, frames: int, mel_frames: int, ticks: int) -> int:
        """Return the number of rows of a clip.

        Args:
            frames: Gesture frames at 30 per second.
            mel_frames: Mel frames at 100 per second.
            ticks: Whole ticks of 0.1 s.

        Returns:
            Number of rows; 0 if the clip is shorter than one row.
        """

    def shape_of(self, row: ManifestRow) -> tuple[int, int]:
        """Return the shape (rows, width) of a sample's latents."""
        return self.rows_of_clip(row.frames, row.mel_frames, row.ticks), self.width

    def vectors(self, latents: F32) -> F32:
        """Reshape a sample's latents (rows, width) to (vectors, channels), the form in which statistics are computed.

        A row of a frame codec is one vector. A row of a window codec has several vectors.
        """
        return latents.reshape(-1, self.channels)

    @property
    @abstractmethod
    def described(self) -> str:
        """Number of latents per second or per window, and their size, as text."""

    def same_codec(self, other: CodecEntry) -> bool:
        """Return whether two entries have the same codec and layout.

        All fields are compared except `settings` and `lost`, the number of windows that a window codec encoded
        incompletely.
        """
        informative = {"settings", "lost"}
        deciding = {f.name for f in fields(self)} - informative
        return type(self) is type(other) and all(getattr(self, name) == getattr(other, name) for name in deciding)

    def as_json(self) -> dict[str, Any]:
        """Return the entry as JSON in the form of dataset.json, without the codec's name."""
        return {name: value for name, value in asdict(self).items() if name != "name"}

    @staticmethod
    def from_json(name: str, found: Any) -> CodecEntry:
        """Return the entry of a codec from the JSON value that `as_json` wrote.

        Args:
            name: Name of the codec.
            found: JSON value from dataset.json.

        Returns:
            The entry, a `FrameEntry` or a `WindowEntry`.

        Raises:
            ValueError: The value is not an entry.
        """
        for kind in (FrameEntry, WindowEntry):
            if isinstance(found, dict) and found.keys() == _fields_of(kind):
                return kind(name=name, **found)
        kinds = " or ".join(", ".join(sorted(_fields_of(kind))) for kind in (FrameEntry, WindowEntry))
        raise ValueError(f"{name!r}: expected {kinds}, found {found!r:.200}")


def _fields_of(kind: type[CodecEntry]) -> set[str]:
    return {f.name for f in fields(kind)} - {"name"}


class FrameRows:
    """Mixin for arrays and latents in which every row covers the same number of frames; computes ranges of rows."""

    __slots__ = ()
    source: str  # member whose frames the rows cover
    channels: int
    frames_per_row: int

    @property
    def rows_per_tick(self) -> Fraction:
        """Rows in a tick of 0.1 s, such as 5/2 for 25 rows a second."""
        return Fraction(SOURCE_FRAMES_PER_TICK[self.source], self.frames_per_row)

    @property
    def tick_multiple(self) -> int:
        """Smallest number of ticks that contains only complete rows; windows must start and end at its multiples."""
        return self.rows_per_tick.denominator

    @property
    def width(self) -> int:
        """Number of values in a row."""
        return self.channels

    def rows(self, ticks: int) -> int:
        """Return the number of complete rows in a number of ticks."""
        return (
            ticks * SOURCE_FRAMES_PER_TICK[self.source] // self.frames_per_row
        )  # integers are fast; the read loop calls this

    def span(self, start_tick: int, ticks: int) -> tuple[int, int]:
        """Return the rows of a window.

        Args:
            start_tick: Start of the window, in ticks of 0.1 s.
            ticks: Length of the window in ticks.

        Returns:
            Index of the first row, and number of rows.
        """
        return self.rows(start_tick), self.rows(ticks)

    def rows_of_clip(self, frames: int, mel_frames: int, ticks: int) -> int:
        """Return the number of rows that a clip's frames fill.

        Args:
            frames: Gesture frames at 30 per second.
            mel_frames: Mel frames at 100 per second.
            ticks: Whole ticks of 0.1 s; unused.

        Returns:
            Number of rows; 0 if the clip is shorter than one row.
        """
        return (mel_frames if self.source == "mel.npy" else frames) // self.frames_per_row


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameEntry(FrameRows, CodecEntry):
    """The entry of a frame codec: each row of its latents (rows, channels) covers the same number of frames."""

    frames_per_row: int  # number of source frames that one row of latents covers

    def _check(self) -> None:
        if self.source not in SOURCE_FRAMES_PER_TICK:
            raise ValueError(f"source {self.source!r}")
        self._check_counts("frames_per_row")

    @property
    def described(self) -> str:
        """Number and size of the latents, such as ``25 rows/s of 128``."""
        return f"{float(self.rows_per_tick * TICKS_PER_SECOND):g} rows/s of {self.channels}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowEntry(CodecEntry):
    """The entry of a window codec, which encodes all words of a window as one row.

    There is a row for each window of a grid. A row has `latents` · `channels` values.
    """

    window_ticks: int
    stride_ticks: int  # ticks between window starts; divides the window
    latents: int  # number of vectors for a window
    words: str = BY_MIDDLE  # rule that assigns words to windows
    lost: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(_LOST, 0))
    """Counts over all samples: all ``windows``, windows with ``cut`` text, and windows with ``unknown`` letters."""

    def _check(self) -> None:
        if self.source != WORDS_MEMBER:
            raise ValueError(f"source {self.source!r}")
        self._check_counts("window_ticks", "stride_ticks", "latents")
        try:
            WindowGrid(self.window_ticks, self.stride_ticks)
        except UsageFault as fault:
            raise ValueError(f"stride_ticks {self.stride_ticks}: {fault}") from fault
        if self.words != BY_MIDDLE:
            raise ValueError(f"words {self.words!r}")
        complete = isinstance(self.lost, dict) and self.lost.keys() == set(_LOST)
        counts = [self.lost[name] for name in _LOST] if complete else [-1]
        if any(type(count) is not int or not 0 <= count <= counts[0] for count in counts):
            raise ValueError(f"lost {self.lost!r}")

    @property
    def grid(self) -> WindowGrid:
        """Grid of the windows that the codec encodes, with length and stride in ticks."""
        return WindowGrid(self.window_ticks, self.stride_ticks)

    @property
    def width(self) -> int:
        """Number of values in a row."""
        return self.latents * self.channels

    def rows_of_clip(self, frames: int, mel_frames: int, ticks: int) -> int:
        """Return the number of rows of a clip: one for each window of the grid in the clip.

        Args:
            frames: Gesture frames; unused.
            mel_frames: Mel frames; unused.
            ticks: Whole ticks of 0.1 s.

        Returns:
            Number of rows; 0 if the clip is shorter than a window.
        """
        return self.grid.count(ticks)

    def span(self, start_tick: int, ticks: int) -> tuple[int, int]:
        """Return the row that encodes a window of the grid.

        Args:
            start_tick: Start of the window, in ticks of 0.1 s.
            ticks: Length of the window in ticks; unused.

        Returns:
            Index of the row, and 1, the number of rows.
        """
        return start_tick // self.stride_ticks, 1

    @property
    def described(self) -> str:
        """Number and size of the latents, such as ``32 × 64 for each 6.4 s, every 1.6 s``."""
        window_s, stride_s = (ticks / TICKS_PER_SECOND for ticks in (self.window_ticks, self.stride_ticks))
        return f"{self.latents} × {self.channels} for each {window_s:g} s, every {stride_s:g} s"


def read_entries(document: Mapping[str, Any]) -> dict[str, CodecEntry]:
    """Return the codec entries of a dataset.json by codec name, sorted; raise ValueError for an invalid entry.

    The result is empty if the document has no codecs.
    """
    found = document.get("codecs", {})
    if not isinstance(found, dict) or ("codecs" in document and not found):
        raise ValueError(f"{found!r:.200}")
    return {name: CodecEntry.from_json(name, found[name]) for name in sorted(found)}


def latents_document(entries: Iterable[CodecEntry], partials: Mapping[str, PartialSpool]) -> dict[str, Any]:
    """Return the content of latents.json: the statistics of each codec's latents over the train samples.

    Args:
        entries: Entries of the codecs in dataset.json.
        partials: Partial statistics of each train sample's latents, by name of the codec.

    Returns:
        The statistics by name of the codec. A codec without train samples has only ``samples: 0``.
    """
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        own = partials.get(entry.name, PartialSpool())
        with np.errstate(over="ignore", invalid="ignore"):
            combined = own.combined(plain=True)
        found[entry.name] = {"samples": len(own)}
        for statistics in combined:  # of one array, unless there are no samples
            found[entry.name] |= {"smallest_std": SMALLEST_STD, "rows": statistics.pop("frames")} | statistics
    return found


def array_specs(
    row: ManifestRow, samples_16k: int | None, codecs: Iterable[CodecEntry]
) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """Return the data type and shape that the contract requires for each array of a sample.

    Args:
        row: Row of the sample.
        samples_16k: Length of the kept waveform, in audio samples at 16 kHz; for None, the result has no entry for
            the waveform.
        codecs: Codecs whose latents the samples contain.

    Returns:
        For each member: the allowed data types, such as ``<f4``, and the shape.
    """
    specs: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
        "gesture.npy": (("<f4",), (row.frames, LAYOUT.channels)),
        "mel.npy": (("<f4",), (row.mel_frames, MEL_BANDS)),
        "jaw_eyes.npy": (("<f4",), (row.frames, JAW_EYES)),
        "betas.npy": (("<f4", "<f8") if row.contract.version == 1 else ("<f8",), (BETAS,)),
        "start_xz.npy": (("<f8",), (2,)),
    }
    specs |= {codec.member: (("<f4",), codec.shape_of(row)) for codec in codecs}
    if "audio.npy" in row.members and samples_16k is not None:
        specs["audio.npy"] = (("<f4",), (samples_16k,))
    return specs
