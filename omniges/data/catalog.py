"""A shard folder as numpy columns: the clips that pass the filters, the offsets of their members, and statistics.

The manifest is read column by column, so a million samples take seconds. This module does not import torch.
"""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.data.order import text_hashes
from omniges.data.tracks import PLAIN_TRACKS, WORDS, Normaliser, Tracks
from omniges.errors import DataError, UsageFault
from omniges.features.gesture import LAYOUT
from omniges.features.timebase import FRAMES_PER_TICK, MEL_FRAMES_PER_TICK
from omniges.shards.dataset import read_statistics
from omniges.shards.document import read_dataset
from omniges.shards.latents import CodecEntry, read_entries
from omniges.shards.manifest import ManifestColumns, column_of
from omniges.shards.present import ALL_PRESENT, STREAM_BITS, STREAM_PARTS, unused_bits
from omniges.shards.reader import open_beside, read_beside
from omniges.shards.schema import (
    CONTRACTS,
    LATENTS_FILE,
    MANIFEST_FILE,
    SPLITS,
    STATS_FILE,
    TOKENIZER_FILE,
    VERIFY,
    Split,
    is_real,
    parse_document,
)
from omniges.storage.files import canonical_json

Bools = npt.NDArray[np.bool_]
LabelColumn = tuple[list[str], npt.NDArray[np.int32]]
"""A column of texts: the distinct texts, and the index (N,) of each row's text, -1 for null."""
_LABELS: Final = ("split", "shard", "speaker", "language")
_ID_DIGITS: Final = 19  # a number of this many digits may not fit into 64 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Filters of clips. An empty tuple means no filter."""

    split: Split = "train"
    speakers: tuple[str, ...] = ()  # ids or names
    languages: tuple[str, ...] = ()
    emotions: tuple[str, ...] = ()
    min_seconds: float = 0.0
    max_seconds: float | None = None
    streams: tuple[str, ...] = ()
    """Sets of streams such as ``audio+gesture``; a clip must have all streams of at least one set."""

    def __post_init__(self) -> None:
        """Check the filters; raise UsageFault for an invalid value, or limits of length that no clip can meet."""
        if self.split not in SPLITS:
            raise UsageFault(f"split: expected one of {', '.join(SPLITS)}, found {self.split!r}")
        for name in ("speakers", "languages", "emotions", "streams"):
            values = getattr(self, name)
            if not isinstance(values, tuple | list) or not all(isinstance(value, str) for value in values):
                raise UsageFault(f"{name}: expected a list of texts, found {reprlib.repr(values)}")
        limits = {"min_seconds": self.min_seconds, "max_seconds": self.max_seconds}
        for name, limit in limits.items():
            if not (is_real(limit) or (limit is None and name == "max_seconds")):
                raise UsageFault(f"{name}: expected a number of seconds, found {limit!r:.80}")
        unknown = {name for names in self.streams for name in names.split("+")} - STREAM_BITS.keys()
        if unknown:
            raise UsageFault(
                f"streams: expected names of {', '.join(STREAM_BITS)}, joined by +, found {min(unknown)!r}; "
                "correct the name"
            )
        longest = float("inf") if self.max_seconds is None else self.max_seconds
        if not 0 <= self.min_seconds <= longest:
            raise UsageFault(
                f"min_seconds, max_seconds: expected 0 ≤ min_seconds ≤ max_seconds, found {self.min_seconds} and "
                f"{self.max_seconds}"
            )

    def as_json(self) -> dict[str, Any]:
        """Return the filters as a JSON object for the state of a loader; equal filters give equal objects."""
        found = asdict(self) | {
            **{name: sorted(set(getattr(self, name))) for name in ("speakers", "languages", "emotions", "streams")},
            "min_seconds": float(self.min_seconds),
            "max_seconds": None if self.max_seconds is None else float(self.max_seconds),
        }
        if not self.streams:  # states of earlier versions lack this filter
            del found["streams"]
        return found

    def pass_streams(self, present: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Return which of N clips pass the filter `streams`.

        Args:
            present: Parts that each clip has, as bit masks (N,) of `STREAM_PARTS`.

        Returns:
            Mask (N,), True for clips that pass; all True if the filter `streams` is empty.
        """
        passed = np.full(len(present), not self.streams)
        for names in self.streams:
            passed |= np.all([present & STREAM_BITS[name] for name in names.split("+")], axis=0)
        return passed


@dataclass(frozen=True, slots=True, eq=False)
class ClipTable:
    """A table of N clips, in key order, and of the K shards of the folder. Batches read M members of each clip."""

    keys: npt.NDArray[np.bytes_]  # (N,)
    key_hashes: npt.NDArray[np.uint64]  # (N,)
    frames: npt.NDArray[np.int64]  # (N,) gesture frames
    mel_frames: npt.NDArray[np.int64]  # (N,)
    ticks: npt.NDArray[np.int64]  # (N,)
    present: npt.NDArray[np.uint8]  # (N,) bit masks of `STREAM_PARTS`
    shard: npt.NDArray[np.int32]  # (N,) index of the shard
    offsets: npt.NDArray[np.int64]  # (N, M) offset of the member's data in the shard, in bytes
    sizes: npt.NDArray[np.int64]  # (N, M) size of the member in bytes
    digests: npt.NDArray[np.uint8]  # (N, M, 32) sha256
    shard_names: npt.NDArray[np.bytes_]  # (K,)
    shard_bytes: npt.NDArray[np.int64]  # (K,)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return all arrays of this table by field name, to share them with other processes."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, sample: int) -> str:
        """Return the key of a clip, given its index in the table."""
        return bytes(self.keys[sample]).decode()

    def keys_of(self, samples: npt.NDArray[np.int64]) -> list[str]:
        """Return the keys of k clips, given their indices (k,) in the table."""
        return [key.decode() for key in self.keys[samples].tolist()]

    def shard_name(self, shard: int) -> str:
        """Return the file name of a shard, given its index in the table."""
        return bytes(self.shard_names[shard]).decode()


@dataclass(frozen=True, slots=True, eq=False)
class Catalog:
    """The clips of a shard folder that pass the filters, in key order."""

    folder: Path
    manifest_hash: str
    content_hash: str
    """sha256 that identifies the clips and the members that training reads; other members do not affect it."""
    filters: Filters
    left_out: int
    """Number of clips that pass all filters except `Filters.streams`."""
    table: ClipTable
    speaker: npt.NDArray[np.int32]  # (N,) index in `speaker_names`, -1 if unknown
    speaker_names: tuple[str, ...]
    statistics: dict[str, Any]  # stats.json
    tokenizer: bytes  # tokenizer.json
    tracks: Tracks = PLAIN_TRACKS
    codecs: Mapping[str, CodecEntry] = field(default_factory=dict)  # by the stream that their latents replace
    latents: Mapping[str, Any] = field(default_factory=dict)  # latents.json, if a codec is chosen
    labels: Mapping[str, LabelColumn] = field(default_factory=dict)  # labels that condition streams read
    gesture_channels: int = LAYOUT.channels  # of a batch's gesture: 415, or 424 with jaw and eyes

    def normaliser(self) -> Normaliser:
        """Return the means and divisors that normalise the arrays of a batch.

        Returns:
            Mean and divisor per channel of gesture, of audio and, if text is stored as latents, of text.

        Raises:
            UsageFault: No sample contributed to the statistics.
            DataError: The statistics do not follow the shard contract.
        """
        streams = {"gesture": self.statistics.get("gesture"), "audio": self.statistics.get("mel")}
        streams["jaw_eyes"] = self.statistics.get("jaw_eyes")
        streams |= {stream: self.latents.get(entry.name) for stream, entry in self.codecs.items()}
        source = str(self.folder / (LATENTS_FILE if self.codecs else STATS_FILE))
        return Normaliser.from_statistics(streams, self.tracks, self.statistics.get("samples"), source)

    def speakers_of(self, samples: npt.NDArray[np.int64]) -> list[str | None]:
        """Return the speaker names of k clips, given their indices (k,) in the table; None for an unknown speaker."""
        names = (*self.speaker_names, None)  # index -1 is None
        return [names[number] for number in self.speaker[samples].tolist()]


def read_catalog(
    folder: Path,
    filters: Filters,
    codecs: Mapping[str, str] | None = None,
    labels: Sequence[str] = (),
    gesture_channels: int = LAYOUT.channels,
) -> Catalog:
    """Select clips of a local shard folder; read its manifest, statistics and tokenizer, but not its shards.

    Args:
        folder: The shard folder.
        filters: Filters of clips.
        codecs: Name of the codec for each stream that latents replace, such as ``{"audio": "audioldm2-vae"}``.
        labels: Labels that condition streams read.
        gesture_channels: Channels of a batch's gesture: 415, or 424 with jaw and eyes.

    Returns:
        The catalogue.

    Raises:
        UsageFault: The folder does not exist, it has no latents of the codecs, or no clip passes the filters.
        DataError: A file does not have the checksum that dataset.json states, or a row of the manifest is
            inconsistent.
    """
    dataset = read_dataset(folder)
    statistics = read_statistics(read_beside(folder, STATS_FILE, dataset), str(folder / STATS_FILE))
    tokenizer = read_beside(folder, TOKENIZER_FILE, dataset)
    entries = _entries(folder, dataset, codecs or {})
    latents = _latents(folder, dataset) if entries else {}
    tracks = Tracks.of(gesture_channels, entries)
    words = CONTRACTS[dataset["version"]].words
    with open_beside(folder, MANIFEST_FILE, dataset) as stream:
        manifest = ManifestColumns(folder / MANIFEST_FILE, stream)
        columns_of = {name: manifest.labels(name) for name in _LABELS}
        _check_shards(manifest, columns_of, dataset["shards"])
        columns_of |= {name: manifest.labels_of(name) for name in {"emotion", *labels} - columns_of.keys()}
        left = _selection(folder, manifest, columns_of, filters)
        usable = _with_streams(folder, manifest, left, filters)
        if (left_out := int(left.sum() - usable.sum())) == 0:
            # Filters are part of a loader's state, so a filter that excludes no clip is removed.
            filters = replace(filters, streams=())
        chosen = np.flatnonzero(usable)
        keys = manifest.keys()[chosen]
        if not bool((keys[1:] > keys[:-1]).all()):
            order = np.argsort(keys, kind="stable")
            chosen, keys = chosen[order], keys[order]
        columns = [column_of(words if member == WORDS else member) for member in tracks.members]
        table = _table(manifest, columns_of["shard"], dataset["shards"], chosen, keys, columns)
        table.present[:] |= np.uint8(unused_bits(gesture_channels))
    _check(folder, table)
    own = {name: (values, codes[chosen]) for name, (values, codes) in columns_of.items()}
    speaker_names, speaker = own["speaker"]
    read = {name: own[name] for name in sorted(labels)}
    return Catalog(
        folder=folder,
        manifest_hash=dataset["manifest_hash"],
        content_hash=_content_hash(table, speaker_names, speaker, read, unused_bits(gesture_channels)),
        filters=filters,
        left_out=left_out,
        table=table,
        speaker=speaker,
        speaker_names=tuple(speaker_names),
        statistics=statistics,
        tokenizer=tokenizer,
        tracks=tracks,
        codecs=entries,
        latents=latents,
        labels=read,
        gesture_channels=gesture_channels,
    )


def _check_shards(manifest: ManifestColumns, columns: Mapping[str, LabelColumn], shards: Mapping[str, Any]) -> None:
    """Raise DataError if the manifest has other shards, splits or numbers of rows than dataset.json lists."""
    (names, of_shard), (splits, of_split) = columns["shard"], columns["split"]
    if min(of_shard.min(initial=0), of_split.min(initial=0)) < 0:
        raise DataError(f"{manifest.path}: expected a shard and a split in each row, found null; {VERIFY}")
    found: dict[str, tuple[int, str]] = dict.fromkeys(shards, (0, ""))
    pairs, counts = np.unique(of_shard.astype(np.int64) * len(splits) + of_split, return_counts=True)
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        name, split = names[pair // len(splits)], splits[pair % len(splits)]
        earlier, known = found.get(name, (0, ""))
        found[name] = (earlier + count, f"{known}, {split}" if known else split)
    if unknown := sorted(found.keys() - shards.keys()):
        raise DataError(f"{manifest.path}: expected shards that dataset.json lists, found {unknown[0]}; {VERIFY}")
    for name, (count, split) in found.items():
        wanted = shards[name]["samples"], shards[name]["split"]
        if (count, split) != wanted:
            raise DataError(
                f"{manifest.path}: expected {wanted[0]} rows of {name} in split {wanted[1]} as in dataset.json, "
                f"found {count} in {split or 'none'}; {VERIFY}"
            )


def _content_hash(
    table: ClipTable,
    speaker_names: Sequence[str],
    speaker: npt.NDArray[np.int32],
    labels: Mapping[str, LabelColumn],
    unused: int,
) -> str:
    """Return the sha256 of the content that training reads.

    The content consists of the keys, speakers, lengths, member digests and present parts of all clips, and of the
    labels that condition streams read. Parts in the bit mask `unused` are left out, because batches do not read them.
    """
    digest = hashlib.sha256(canonical_json([str(table.keys.dtype), list(speaker_names), list(table.digests.shape)]))
    read = table.present & ~np.uint8(unused)
    partial = () if (table.present == ALL_PRESENT).all() else (read,)  # as in earlier versions
    for array in (table.keys, speaker, table.frames, table.mel_frames, table.digests, *partial):
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    for name, (values, codes) in labels.items():
        digest.update(canonical_json([name, [values[code] if code >= 0 else "" for code in codes.tolist()]]))
    return digest.hexdigest()


def _latents(folder: Path, dataset: dict[str, Any]) -> dict[str, Any]:
    """Parse latents.json in a shard folder; `dataset` contains the file's expected checksum."""
    return parse_document(read_beside(folder, LATENTS_FILE, dataset), str(folder / LATENTS_FILE))


_STREAM_OF: Final = {"mel.npy": "audio", "gesture.npy": "gesture", "words.json": "text"}


def _entries(folder: Path, dataset: dict[str, Any], codecs: Mapping[str, str]) -> dict[str, CodecEntry]:
    """Return the entries of the chosen codecs, by stream.

    Raises UsageFault if the shards have no latents of a codec, or if its latents are of another stream.
    """
    there = read_entries(dataset)
    for stream, name in codecs.items():
        if name not in there:
            held = f"latents of {', '.join(there)}" if there else "no latents"
            raise UsageFault(
                f"{folder}: expected latents of the codec {name}, found {held}; run omniges encode --shards {folder} "
                f"--codec {name}=FOLDER"
            )
        if _STREAM_OF[there[name].source] != stream:
            raise UsageFault(
                f"codec {name}: expected latents of {stream}, found latents of {_STREAM_OF[there[name].source]}; "
                "choose another codec"
            )
    return {stream: there[name] for stream, name in codecs.items()}


def _selection(
    folder: Path, manifest: ManifestColumns, labels: Mapping[str, LabelColumn], filters: Filters
) -> npt.NDArray[np.bool_]:
    """Return a mask (N,) of the rows that pass all filters except the filter `streams`.

    Filters are applied one after the other. If no row is left after a filter, an error names this filter.
    """
    names, codes = labels["split"]
    left = among(labels["split"], [filters.split])
    if not left.any():
        counts = ", ".join(f"{name} {int((codes == number).sum())}" for number, name in enumerate(names))
        raise UsageFault(
            f"{folder}: expected samples of split {filters.split!r}, found {counts or 'no samples at all'}; "
            "choose another split, or preprocess again with a --split-csv that assigns recordings to it"
        )
    numbers = [int(name) for name in filters.speakers if name.isdecimal() and len(name) < _ID_DIGITS]
    ids = np.isin(manifest.numbers("speaker_id"), numbers)
    left = keep_labelled(folder, left, "speaker", labels["speaker"], filters.speakers, ids)
    left = keep_labelled(folder, left, "language", labels["language"], filters.languages)
    left = keep_labelled(folder, left, "emotion", labels["emotion"], filters.emotions)
    return keep_lengths(folder, left, manifest.numbers("seconds"), filters.min_seconds, filters.max_seconds)


def _with_streams(folder: Path, manifest: ManifestColumns, left: Bools, filters: Filters) -> Bools:
    """Return a mask (N,) of the rows in `left` that also pass the filter `streams`; raise UsageFault if no row does."""
    has: Bools = left & filters.pass_streams(manifest.present(STREAM_PARTS)) if filters.streams else left
    if not has.any():
        raise UsageFault(
            f"{folder}: expected samples that have {' or '.join(filters.streams)}, found none among "
            f"{int(left.sum())} of split {filters.split!r}; choose other tasks or streams, or other shards"
        )
    return has


def _table(
    manifest: ManifestColumns,
    shard_column: LabelColumn,
    shards: Mapping[str, Any],
    rows: npt.NDArray[np.int64],
    keys: npt.NDArray[np.bytes_],
    columns: Sequence[str],
) -> ClipTable:
    """Return the clip table of the given rows of the manifest.

    `columns` lists the members that batches read. Each item is the prefix of a member's columns in the manifest:
    ``mel_npy`` for the member ``mel.npy``.
    """
    names, codes = shard_column
    codes = codes[rows]
    place = {name: number for number, name in enumerate(shards)}
    digests = np.empty((len(rows), len(columns), 32), dtype=np.uint8)
    for number, column in enumerate(columns):
        np.take(manifest.digests(f"{column}_sha256"), rows, axis=0, out=digests[:, number])
    return ClipTable(
        keys=keys,
        key_hashes=text_hashes(keys),
        **{name: manifest.numbers(name)[rows] for name in ("frames", "mel_frames", "ticks")},
        present=manifest.present(STREAM_PARTS)[rows],
        shard=np.array([place.get(name, -1) for name in names], dtype=np.int32)[codes],
        offsets=np.stack([manifest.numbers(f"{column}_offset")[rows] for column in columns], axis=1),
        sizes=np.stack([manifest.numbers(f"{column}_size")[rows] for column in columns], axis=1),
        digests=digests,
        shard_names=np.array([name.encode() for name in shards]),
        shard_bytes=np.array([entry["bytes"] for entry in shards.values()], dtype=np.int64),
    )


def _check(folder: Path, table: ClipTable) -> None:
    """Raise DataError if lengths or byte ranges are inconsistent, or if a key occurs twice.

    Readers use these values without a check.
    """
    mel_frames = table.frames * MEL_FRAMES_PER_TICK // FRAMES_PER_TICK
    lengths = (table.mel_frames == mel_frames) & (table.ticks == table.frames // FRAMES_PER_TICK)
    ends = table.offsets + table.sizes
    inside = (table.offsets >= 0) & (table.sizes >= 0) & (ends <= table.shard_bytes[table.shard][:, None])
    for bad, what in ((~lengths, "lengths in frames, mel frames and ticks"), (~inside.all(axis=1), "byte ranges")):
        if bad.any():
            key = table.key(int(np.flatnonzero(bad)[0]))
            raise DataError(
                f"{folder / MANIFEST_FILE}: row {key}: expected consistent {what}, found a contradiction; {VERIFY}"
            )
    twice = np.flatnonzero(table.keys[1:] == table.keys[:-1])
    if len(twice):
        raise DataError(
            f"{folder / MANIFEST_FILE}: expected each key once, found {table.key(int(twice[0]))} twice; {VERIFY}"
        )


# --- Filters of samples by columns of the manifest. An error names the filter that no sample passes.


def column(values: Sequence[str | None]) -> LabelColumn:
    """Encode texts (N,) as a `LabelColumn`: the distinct texts, and the index of each row's text (-1: no text)."""
    numbers = {text: number for number, text in enumerate(sorted({text for text in values if text is not None}))}
    return list(numbers), np.array([-1 if text is None else numbers[text] for text in values], np.int32)


def among(values: LabelColumn, wanted: Collection[str]) -> Bools:
    """Return which of N rows have one of the wanted texts.

    Args:
        values: The text of each row, as a `LabelColumn`.
        wanted: Texts to look for.

    Returns:
        Mask (N,), True for rows with a wanted text.
    """
    names, codes = values
    return np.isin(codes, [number for number, name in enumerate(names) if name in wanted])


def keep_labelled(
    folder: Path, left: Bools, name: str, values: LabelColumn, wanted: Collection[str], also: Bools | None = None
) -> Bools:
    """Return a mask of the rows that pass the earlier filters and have one of the wanted texts.

    Args:
        folder: Folder of the shards, for the error.
        left: Mask (N,) of the rows that pass earlier filters.
        name: Name of the column, for the error.
        values: The text of each row in this column, as a `LabelColumn`.
        wanted: Accepted texts; empty: all rows pass.
        also: Mask (N,) of rows that pass this filter regardless of their text; None: no rows.

    Returns:
        Mask (N,), True for rows that pass this filter and the earlier filters.

    Raises:
        UsageFault: `wanted` is not empty, and no row passes.
    """
    if not wanted:
        return left
    passed = among(values, wanted)
    found = left & (passed if also is None else passed | also)
    if not found.any():
        names, codes = values
        there = ", ".join(sorted(names[code] for code in np.unique(codes[left]).tolist() if code >= 0 and names[code]))
        texts = " or ".join(wanted)
        remedy = (
            f"choose from {there}" if there else f"remove this filter, because no selected sample has a known {name}"
        )
        raise UsageFault(f"{folder}: expected samples with {name} {texts}, found none; {remedy}")
    return found


def keep_lengths(
    folder: Path, left: Bools, seconds: npt.NDArray[np.floating], min_seconds: float, max_seconds: float | None
) -> Bools:
    """Return a mask of the rows that pass the earlier filters and whose length is within limits.

    Args:
        folder: Folder of the shards, for the error.
        left: Mask (N,) of the rows that pass earlier filters.
        seconds: Length of each row's clip in seconds (N,).
        min_seconds: Minimum length in seconds.
        max_seconds: Maximum length in seconds; None: no limit.

    Returns:
        Mask (N,), True for rows that pass this filter and the earlier filters.

    Raises:
        UsageFault: Rows passed the earlier filters, but the lengths of all these rows are outside the limits.
    """
    longest = float("inf") if max_seconds is None else max_seconds
    found: Bools = left & (seconds >= min_seconds) & (seconds <= longest)
    if left.any() and not found.any():
        others = seconds[left]
        raise UsageFault(
            f"{folder}: expected selected samples that last {min_seconds:g} to {longest:g} s, found only "
            f"{others.min():g} to {others.max():g} s; choose other limits"
        )
    return found
