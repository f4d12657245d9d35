"""Read shard folders as samples of plain arrays, for programs outside of omniges.

`open_shards` reads the small files of a set and selects samples by filters. Accessing a sample reads its arrays from
its shard. A `Sample` has the same form in both versions of the shard contract. This module does not import torch.
"""

from __future__ import annotations

import difflib
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from omniges import arguments
from omniges.data.catalog import among, column, keep_labelled, keep_lengths
from omniges.data.window_reader import Verify
from omniges.errors import UsageFault
from omniges.shards.manifest import ManifestRow
from omniges.shards.reader import ShardFolder, notes_of, read_beside
from omniges.shards.schema import PARTS, SPLITS, STATS_FILE, TOKENIZER_FILE, Part, parse_document

F32 = npt.NDArray[np.float32]

Texts = str | Iterable[str]
"""The accepted values of a filter: one text, or an iterable of texts."""


@dataclass(frozen=True, slots=True)
class Word:
    """A spoken word. Times are in seconds from the start of the clip (`Sample`) or of the window (`WindowDataset`)."""

    word: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Span:
    """An annotated gesture: class, times, score and keywords. Times are in seconds from the start of the clip."""

    name: str  # gesture class
    start_s: float
    end_s: float
    score: float  # 0 to 1
    keywords: str  # "" if the annotation has none


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One clip of a shard set, completely in memory.

    T is the number of gesture frames (30 a second), M the number of mel frames (100 a second), and N the number of
    audio samples (16,000 a second). M = ⌊T·10/3⌋. Channels that the sample lacks are NaN; `present` lists the parts
    that it has. The caller may change the arrays.
    """

    key: str
    """Name of the sample in the shards: the stem, with characters outside ``[A-Za-z0-9_-]`` escaped."""
    stem: str
    """File name of the recording, without its ending."""
    split: str
    """``train``, ``val``, ``test`` or ``additional``."""
    speaker_id: int | None
    speaker: str | None
    language: str | None
    labels: dict[str, str]
    """Labels by name, such as ``emotion``. All samples of a set have the same names; an unknown value is ""."""
    seconds: float
    """Length of the clip, T / 30."""
    frames: int
    """Number of gesture frames T."""
    present: frozenset[Part]
    """Parts that the sample has, among text, audio, upper, hands, lower, root, face, jaw_eyes, sem and labels."""
    gesture: F32
    """(T, 415) float32, not normalized: upper body, hands and lower body as 6D rotations, root motion in metres
    (dx and dz per frame, y absolute), 100 face expressions. `omniges.features.gesture.LAYOUT` names the channels."""
    jaw_eyes: F32
    """(T, 9) float32, axis-angle in radians: jaw, left eye, right eye."""
    betas: npt.NDArray[np.float64]
    """(300,) float64, SMPL-X body shape; zeros if the sample has no motion."""
    start_xz: npt.NDArray[np.float64]
    """(2,) float64, x and z of the root in the first frame, in metres."""
    mel: F32
    """(M, 64) float32, natural logarithm of mel magnitudes."""
    waveform: F32 | None
    """(N,) float32 at 16 kHz in −1 to 1; None if the set or the sample has no audio."""
    words: tuple[Word, ...]
    """Spoken words in order of time; empty if the sample has no text."""
    semantic: tuple[Span, ...] | None
    """Annotated gestures in order of the annotation; None if the sample has no semantic annotation."""
    notes: tuple[str, ...]
    """Findings of preprocessing about the recording, each as ``code: description``."""
    sources: dict[str, tuple[str, str]]
    """Path and sha256 of each source file, by type (wav, npz, textgrid, sem); paths are relative to the data set."""
    metadata: dict[str, Any]
    """Complete content of the member ``KEY.json``."""


class ShardReader(ShardFolder):
    """A `ShardFolder` that compares the sha256 of each member when the member is first read.

    If `verify` is ``never``, no sha256 is compared.
    """

    def __init__(self, folder: Path, verify: Verify = "first") -> None:
        super().__init__(folder)
        self.verify = verify
        self._checked: set[tuple[str, str]] = set()

    def member(self, row: ManifestRow, member: str) -> bytes:
        """Return a member's bytes; raise the same errors as `ShardFolder.member`.

        Args:
            row: Row of the sample.
            member: Name of the member.

        Returns:
            Content of the member.
        """
        name = row.key, member
        data = self.read_member(row, member, check=self.verify == "first" and name not in self._checked)
        self._checked.add(name)
        return data

    def timed_words(self, row: ManifestRow) -> tuple[Word, ...]:
        """Return the words of a sample; raise DataError if the stored words are not a valid list of words."""
        return tuple(Word(one["word"], float(one["start"]), float(one["end"])) for one in self.words(row))

    def spans(self, row: ManifestRow) -> tuple[Span, ...] | None:
        """Return a sample's annotated gestures, or None without annotation; raise DataError for invalid annotation."""
        spans = self.semantic(row)
        if spans is None:
            return None
        return tuple(
            Span(one["name"], float(one["start"]), float(one["end"]), float(one["score"]), one["keywords"])
            for one in spans
        )


class ShardSet:
    """Samples of a shard folder; supports ``len``, iteration, and indexing by number, key or stem.

    Samples are in the order of the shards, so iteration reads each shard once from start to end. Each access reads the
    sample from its shard again. `open_shards` creates a set; `select` returns a smaller set.
    """

    def __init__(self, reader: ShardReader, rows: Sequence[ManifestRow]) -> None:
        """Select the samples of the given manifest rows."""
        self.reader = reader
        self.rows = tuple(rows)

    @property
    def folder(self) -> Path:
        """The folder of the shards."""
        return self.reader.folder

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the samples, in order."""
        return tuple(row.key for row in self.rows)

    @property
    def seconds(self) -> float:
        """Total length of all samples in seconds."""
        return sum(row.seconds for row in self.rows)

    @cached_property
    def speaker_names(self) -> tuple[str, ...]:
        """Sorted names of all speakers of the folder. Filters do not change them, so a speaker keeps its index."""
        return tuple(sorted({row.speaker for row in self.reader.rows if row.speaker is not None}))

    @cached_property
    def statistics(self) -> dict[str, Any]:
        """The content of stats.json: mean, std, min and max of each channel over the train split."""
        return parse_document(read_beside(self.folder, STATS_FILE, self.reader.dataset), str(self.folder / STATS_FILE))

    @property
    def tokenizer(self) -> bytes:
        """The bytes of tokenizer.json."""
        return read_beside(self.folder, TOKENIZER_FILE, self.reader.dataset)

    def select(
        self,
        *,
        split: str | None = None,
        speakers: Texts | int = (),
        languages: Texts = (),
        labels: Mapping[str, Texts] | None = None,
        min_seconds: float = 0.0,
        max_seconds: float | None = None,
    ) -> ShardSet:
        """Return the samples that pass all filters; an empty filter has no effect.

        Args:
            split: ``train``, ``val``, ``test`` or ``additional``.
            speakers: Names or ids of speakers.
            languages: Names of languages, such as ``english``.
            labels: Accepted values by label: ``{"emotion": ("happiness", "anger")}``.
            min_seconds: Minimum length of a sample in seconds.
            max_seconds: Maximum length of a sample in seconds; None: no limit.

        Returns:
            A set over the same shards, in the same order.

        Raises:
            UsageFault: A filter is invalid, or no sample passes it.
        """
        if split is not None:
            arguments.choice("split", split, SPLITS)
        if labels is not None and not isinstance(labels, Mapping):
            raise arguments.refuse("labels", 'values by label, such as {"emotion": "anger"},', labels)
        min_seconds = arguments.number("min_seconds", min_seconds, 0)
        if max_seconds is not None and min_seconds > arguments.number("max_seconds", max_seconds, 0):
            raise UsageFault(
                f"min_seconds, max_seconds: expected 0 ≤ min_seconds ≤ max_seconds, found {min_seconds} and "
                f"{max_seconds}"
            )
        known = {label for row in self.rows for label in row.labels}
        if unknown := (labels or {}).keys() - known:
            there = ", ".join(sorted(known)) or "none"
            raise UsageFault(
                f"{self.folder}: expected labels of these shards, found {min(map(str, unknown))!r}; choose from {there}"
            )
        names = _texts("speakers", speakers)
        wanted = {"split": [split] if split else [], "speaker": names, "language": _texts("languages", languages)}
        ids = among(column([None if row.speaker_id is None else str(row.speaker_id) for row in self.rows]), names)
        left = np.ones(len(self.rows), np.bool_)
        for name, texts in wanted.items():
            own = column([getattr(row, name) for row in self.rows])
            left = keep_labelled(self.folder, left, name, own, texts, ids if name == "speaker" else None)
        for name, values in (labels or {}).items():
            own = column([row.labels[name] for row in self.rows])
            left = keep_labelled(self.folder, left, name, own, _texts(name, values))
        seconds = np.array([row.seconds for row in self.rows])
        left = keep_lengths(self.folder, left, seconds, min_seconds, max_seconds)
        return ShardSet(self.reader, [self.rows[number] for number in np.flatnonzero(left)])

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Sample]:
        return map(self.read, self.rows)

    def __getitem__(self, name: int | str) -> Sample:
        """Return a sample by number (negative from the end), key or stem.

        Args:
            name: Number, key or stem.

        Returns:
            The sample with all its arrays.

        Raises:
            IndexError: There is no sample of this number.
            UsageFault: There is no sample of this key or stem.
            DataError: The bytes of the sample differ from the manifest.
        """
        return self.read(self.row(name))

    def __contains__(self, name: object) -> bool:
        return name in self._numbers

    def row(self, name: int | str) -> ManifestRow:
        """Return the manifest row of a sample; raise UsageFault for an unknown name, IndexError for a wrong number.

        A name is a key or a stem.
        """
        if isinstance(name, str):
            if name not in self._numbers:
                raise UsageFault(
                    f"{self.folder}: expected the key or stem of a sample, found {name!r}{self._hint(name)}"
                )
            return self.rows[self._numbers[name]]
        if not hasattr(name, "__index__"):
            raise UsageFault(f"{self.folder}: expected a number, key or stem, found {type(name).__name__}")
        number = operator.index(name)
        if not -len(self) <= number < len(self):
            raise IndexError(
                f"{self.folder}: expected the number of a sample, from {-len(self)} to {len(self) - 1}, found {number}"
            )
        return self.rows[number]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """Indices of samples by stem and by key. If a stem equals the key of another sample, the key has priority."""
        by_stem = {row.stem: number for number, row in enumerate(self.rows)}
        return by_stem | {row.key: number for number, row in enumerate(self.rows)}

    def _hint(self, name: str) -> str:
        if any(name in {row.key, row.stem} for row in self.reader.rows):
            return ", which the filters exclude; open the shards without filters"
        near = difflib.get_close_matches(name, self.keys, n=3)
        return (
            f"; did you mean {' or '.join(near)}? The attribute keys lists all keys"
            if near
            else "; choose one of the attribute keys"
        )

    def read(self, row: ManifestRow) -> Sample:
        """Read the sample of a manifest row; raise DataError if the bytes differ from the manifest."""
        reader = self.reader
        metadata = reader.metadata(row)
        waveform = reader.waveform(row)
        return Sample(
            **{name: getattr(row, name) for name in _SAME},
            labels=dict(row.labels),
            sources=dict(row.sources),
            present=frozenset(row.present),
            gesture=reader.array(row, "gesture.npy"),
            jaw_eyes=reader.array(row, "jaw_eyes.npy"),
            betas=reader.array(row, "betas.npy").astype(np.float64),
            start_xz=reader.array(row, "start_xz.npy"),
            mel=reader.array(row, "mel.npy"),
            waveform=waveform,
            words=reader.timed_words(row),
            semantic=reader.spans(row),
            notes=notes_of(metadata),
            metadata=metadata,
        )

    def __repr__(self) -> str:
        splits = Counter(row.split for row in self.rows)
        parts = Counter(part for row in self.rows for part in row.present)
        length = timedelta(seconds=round(self.seconds))
        shown = [part if parts[part] == len(self) else f"{part} in {parts[part]}" for part in PARTS if parts[part]]
        return (
            f"ShardSet({str(self.folder)!r}: {len(self)} samples, {length} h, "
            f"{', '.join(f'{split} {splits[split]}' for split in SPLITS if splits[split])}; {', '.join(shown)})"
        )


_SAME = ("key", "stem", "split", "speaker_id", "speaker", "language", "seconds", "frames")


def _texts(what: str, given: Any) -> list[str]:
    """Convert a filter (a text, an integer, or an iterable of these) to a list of texts; refuse any other value."""
    if isinstance(given, (str, int)):
        return [str(given)]
    if isinstance(given, Iterable):
        found = list(given)
        if not isinstance(given, bytes) and all(isinstance(one, (str, int)) for one in found):
            return [str(one) for one in found]
    raise arguments.refuse(what, "a text or several", given)


def open_shards(  # noqa: PLR0913 - filters, all by keyword
    folder: str | Path,
    *,
    split: str | None = None,
    speakers: Texts | int = (),
    languages: Texts = (),
    labels: Mapping[str, Texts] | None = None,
    min_seconds: float = 0.0,
    max_seconds: float | None = None,
    verify: Verify = "first",
) -> ShardSet:
    """Open a folder of shards, of either version of the contract.

    ::

        shards = open_shards("shards", split="train", labels={"emotion": "happiness"})
        shards[0].gesture.shape, shards["2_scott_0_1_1"].words, len(shards)

    Args:
        folder: A shard folder, written by ``omniges preprocess`` or `write_shards`.
        split: ``train``, ``val``, ``test`` or ``additional``; None: all splits.
        speakers: Names or ids of speakers; empty: all.
        languages: Names of languages, such as ``english``; empty: all.
        labels: Accepted values by label: ``{"emotion": ("happiness", "anger")}``.
        min_seconds: Minimum length of a sample in seconds.
        max_seconds: Maximum length of a sample in seconds; None: no limit.
        verify: ``first``: compare the sha256 of each member when it is first read. ``never``: compare no sha256.

    Returns:
        The samples that pass all filters. Their arrays are read when a sample is accessed.

    Raises:
        UsageFault: The folder does not exist, a filter is invalid, or no sample passes it.
        DataError: The set is incomplete, damaged or of another version.
    """
    if "://" in str(folder):
        raise UsageFault("open_shards: expected a local folder, found a URL; read URLs with omniges.webdataset")
    path = arguments.path("folder", folder)
    if path.is_file():
        raise UsageFault(f"open_shards: {path}: expected a folder, found a file; give its folder, {path.parent}")
    arguments.choice("verify", verify, get_args(Verify))
    reader = ShardReader(path, verify)
    return ShardSet(reader, reader.rows).select(
        split=split,
        speakers=speakers,
        languages=languages,
        labels=labels,
        min_seconds=min_seconds,
        max_seconds=max_seconds,
    )
