"""Reading of samples and of the files beside the shards, with checks of their sha256.

A `ShardSource` provides the shards: a local folder, or the local cache of a remote folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError, RecordingFault, UsageFault
from omniges.features.gesture import GestureClip
from omniges.formats.npz import BETAS_LENGTHS
from omniges.shards.dataset import combine, partial_of
from omniges.shards.document import read_dataset, rows_problem
from omniges.shards.latents import CodecEntry, array_specs, read_entries
from omniges.shards.manifest import ManifestRow, read_manifest
from omniges.shards.schema import DATASET_FILE, MANIFEST_FILE, VERIFY, metadata_of, samples_of, spans_of, words_of
from omniges.shards.tar import read_npy
from omniges.storage.atomic import os_errors
from omniges.storage.files import open_file, read_range
from omniges.storage.redact import one_line

Parsed = TypeVar("Parsed")


class ShardSource(Protocol):
    """Provider of the shards of a folder: a local folder, or a local cache of a remote folder."""

    def open(self, shard: str) -> int:
        """Open a complete shard for reading and return a descriptor, which the caller closes.

        The call may wait for a download. The descriptor remains readable even if a cache removes the file.

        Args:
            shard: Name of the shard.

        Returns:
            A file descriptor.

        Raises:
            DataError: The shard does not exist.
            EnvironmentFault: The shard cannot be read or downloaded.
        """
        ...

    def prefetch(self, shards: Iterable[str]) -> None:
        """Announce the shards that will be read next, in this order; return without waiting."""
        ...

    def describe(self, shard: str) -> str:
        """Return the shard's path or URL for errors, without credentials."""
        ...

    def doubt(self, shard: str) -> None:
        """Report that a shard differs from the manifest, so that a cache checks the shard before its next use."""
        ...

    def specification(self) -> dict[str, Any]:
        """Return JSON with which a worker process can open this source (`omniges.data.collate.open_source`)."""
        ...


@dataclass(frozen=True, slots=True)
class LocalShards:
    """Shards in a local folder."""

    folder: Path

    def open(self, shard: str) -> int:
        """Open the file of a shard; raise DataError if it does not exist."""
        try:
            return open_file(self.folder / shard, self.folder)
        except FileNotFoundError as error:
            raise DataError(
                f"{self.folder / shard}: expected this shard, found that the file does not exist; {VERIFY}"
            ) from error

    def prefetch(self, shards: Iterable[str]) -> None:
        """Do nothing; the shards are local."""

    def describe(self, shard: str) -> str:
        """Return the shard's path."""
        return str(self.folder / shard)

    def doubt(self, shard: str) -> None:
        """Do nothing; there is no cache."""

    def specification(self) -> dict[str, Any]:
        """Return the folder as JSON."""
        return {"kind": "local", "folder": str(self.folder.absolute())}


def place_of_member(source: ShardSource, shard: str, key: str, member: str, offset: int) -> str:
    """Describe the position of a member, for errors.

    Args:
        source: Source of the shard.
        shard: Name of the shard.
        key: Sample key.
        member: Member of the sample.
        offset: Byte offset in the shard.

    Returns:
        A text with shard, key, member and byte.
    """
    return f"{source.describe(shard)}: {key}.{member} at byte {offset}"


def check_digest(content: bytes | memoryview, sha256: bytes, place: str) -> None:
    """Refuse content whose sha256 differs from that in the manifest or in dataset.json.

    Args:
        content: All bytes of a member or file.
        sha256: Expected digest, 32 bytes.
        place: Position of the content, for errors.

    Raises:
        DataError: The digest is not the expected one.
    """
    found = hashlib.sha256(content).digest()
    if found != sha256:
        raise DataError(f"{place}: expected sha256 {sha256.hex()}, found {found.hex()}; {VERIFY}")


def check_member(source: ShardSource, shard: str, content: bytes | memoryview, sha256: bytes, place: str) -> None:
    """Refuse a member whose sha256 differs from the manifest, and report its shard to the source (`doubt`).

    Args:
        source: Source of the shard.
        shard: Name of the shard.
        content: All bytes of the member.
        sha256: Expected digest, 32 bytes.
        place: Position of the content, for errors.

    Raises:
        DataError: The digest is not the expected one.
    """
    try:
        check_digest(content, sha256, place)
    except DataError:
        source.doubt(shard)
        raise


@contextlib.contextmanager
def open_beside(folder: Path, name: str, dataset: dict[str, Any]) -> Iterator[BinaryIO]:
    """Open a file beside the shards after comparing its size and sha256 with dataset.json.

    The check and the caller use the same descriptor. So the caller reads the checked bytes even if the file is replaced
    in between.

    Args:
        folder: Folder of the shards.
        name: Name of the file, such as ``manifest.parquet``.
        dataset: Checked dataset.json.

    Yields:
        The open file, positioned at its first byte.

    Raises:
        DataError: The file is absent, or its size or digest is not the one in dataset.json.
    """
    path = folder / name
    listed = dataset["files"].get(name)
    if listed is None:
        raise DataError(f"{path}: expected an entry in {DATASET_FILE}, found none; {VERIFY}")
    try:
        descriptor = open_file(path, folder)
    except FileNotFoundError as error:
        raise DataError(f"{path}: expected this file, found that the file does not exist; {VERIFY}") from error
    with open(descriptor, "rb") as stream:
        with os_errors(path, "read"):
            size = os.fstat(descriptor).st_size
            if size != listed["bytes"]:
                expected = f"expected {listed['bytes']} bytes as in {DATASET_FILE}"
                raise DataError(f"{path}: {expected}, found {size}; {VERIFY}")
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != listed["sha256"]:
            expected = f"expected sha256 {listed['sha256']} as in {DATASET_FILE}"
            raise DataError(f"{path}: {expected}, found {found}; {VERIFY}")
        stream.seek(0)
        yield stream


def read_beside(folder: Path, name: str, dataset: dict[str, Any]) -> bytes:
    """Return the bytes of a file beside the shards, with the checks of `open_beside`.

    Args:
        folder: Folder of the shards.
        name: Name of the file.
        dataset: Checked dataset.json.

    Returns:
        All bytes of the file.
    """
    with open_beside(folder, name, dataset) as stream:
        return stream.read()


def checked_rows(data: bytes, dataset: Mapping[str, Any], place: str) -> list[ManifestRow]:
    """Return the rows of a manifest after checking each row and comparing them with dataset.json.

    Args:
        data: Bytes of the manifest, whose sha256 is already checked.
        dataset: Checked dataset.json.
        place: Path of the manifest, for errors.

    Returns:
        The rows, in the manifest's order.

    Raises:
        DataError: The bytes are not a manifest, or a row contradicts itself, another row or dataset.json.
    """
    try:
        rows = read_manifest(data)
    except ValueError as error:
        raise DataError(f"{place}: {one_line(str(error), 200)}; {VERIFY}") from error
    if problem := rows_problem(rows, dataset):
        raise DataError(f"{place}: {one_line(problem, 200)}; {VERIFY}")
    return rows


@dataclass(frozen=True, slots=True)
class SampleArrays:
    """Decoded content of one sample: manifest row, metadata, arrays and words."""

    row: ManifestRow
    metadata: dict[str, Any]  # KEY.json
    gesture: GestureClip
    betas: npt.NDArray[np.floating]  # (300,)
    mel: npt.NDArray[np.float32]  # (M, 64)
    words: list[dict[str, Any]]  # each with word, start and end in seconds
    semantic: list[dict[str, Any]] | None  # semantic spans; None without annotation
    audio: npt.NDArray[np.float32] | None  # (N,) at 16 kHz; None if it was not kept
    latents: dict[str, npt.NDArray[np.float32]]  # (rows, width) by codec


def file_betas(sample: SampleArrays) -> npt.NDArray[np.floating]:
    """Return the body shape (SMPL-X betas) of a sample for a motion file: 10, 16 or 300 coefficients (`BETAS_LENGTHS`).

    The length is the smallest of these three that is enough for all coefficients of the recording. If the body shape is
    unknown, the result is 300 zeros, the average shape.
    """
    given = int(sample.metadata["motion"]["betas"]) or max(BETAS_LENGTHS)
    return np.asarray(sample.betas[: min(length for length in BETAS_LENGTHS if length >= given)])


def notes_of(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the notes in KEY.json, each as ``code: what was found``, for any contract version."""
    notes = metadata["notes"]
    if isinstance(notes, str):
        return tuple(notes.splitlines())
    return tuple(f"{note['code']}: {note['found']}" for note in notes)


class ShardFolder:
    """A complete shard set for reading. Its small files are in a local folder; a `ShardSource` provides its shards."""

    def __init__(self, folder: Path, source: ShardSource | None = None) -> None:
        """Read dataset.json; raise UsageFault or DataError if it is absent, damaged or of another version.

        Args:
            folder: Folder with dataset.json and the other small files.
            source: Source of the shards; None: the folder contains the shards.
        """
        self.folder = folder
        self.source = source or LocalShards(folder)
        self.dataset = read_dataset(folder)

    @cached_property
    def codecs(self) -> dict[str, CodecEntry]:
        """Codecs whose latents the samples contain, by name."""
        return read_entries(self.dataset)

    @cached_property
    def rows(self) -> Sequence[ManifestRow]:
        """Rows of the manifest, checked against dataset.json."""
        data = read_beside(self.folder, MANIFEST_FILE, self.dataset)
        return checked_rows(data, self.dataset, str(self.folder / MANIFEST_FILE))

    def row(self, name: str) -> ManifestRow:
        """Return the row whose key or stem is `name`; without a match, raise a UsageFault with similar names."""
        for row in self.rows:
            if name in (row.key, row.stem):
                return row
        import difflib  # noqa: PLC0415

        near = difflib.get_close_matches(name, [row.key for row in self.rows], n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "list the keys with omniges inspect DIR"
        raise UsageFault(f"{self.folder}: expected the key or stem of a sample, found {name!r}; {hint}")

    def member(self, row: ManifestRow, member: str) -> bytes:
        """Return a member's bytes after comparing their sha256 with the manifest.

        Args:
            row: Row of the sample.
            member: Member of the sample, such as ``gesture.npy``.

        Returns:
            All bytes of the member.

        Raises:
            DataError: The shard does not exist, or the bytes differ from the manifest's sha256.
            EnvironmentFault: The shard cannot be read.
        """
        return self.read_member(row, member, check=True)

    def read_member(self, row: ManifestRow, member: str, *, check: bool) -> bytes:
        """Return a member's bytes, with or without a check of their sha256; raise the same errors as `member`.

        Args:
            row: Row of the sample.
            member: Member of the sample.
            check: Whether to compare the bytes with the manifest's sha256.

        Returns:
            All bytes of the member.
        """
        place = row.members[member]
        shown = place_of_member(self.source, row.shard, row.key, member, place.offset)
        with os_errors(self.folder / row.shard, "read"), open(self.source.open(row.shard), "rb") as stream:
            data = read_range(stream.fileno(), place.offset, place.size)
        if check:
            check_member(self.source, row.shard, data, bytes.fromhex(place.sha256), shown)
        elif len(data) != place.size:
            raise DataError(f"{shown}: expected {place.size} bytes, found {len(data)}; {VERIFY}")
        return data

    def array(self, row: ManifestRow, member: str) -> npt.NDArray[Any]:
        """Return a member as an array; the caller may change the array.

        Args:
            row: Row of the sample.
            member: Member of the sample, such as ``gesture.npy``.

        Returns:
            The array, with the data type and shape that the contract requires.

        Raises:
            DataError: The shard does not exist, or the bytes differ from the manifest or are not a valid array.
            EnvironmentFault: The shard cannot be read.
        """
        return self.array_of(row, member, self.member(row, member))

    def array_of(self, row: ManifestRow, member: str, data: bytes) -> npt.NDArray[Any]:
        """Decode the array in the bytes of a member.

        Args:
            row: Row of the sample.
            member: Member of the sample, for errors.
            data: Bytes of the member.

        Returns:
            The array, with the data type and shape that the contract requires.

        Raises:
            DataError: The bytes are not a valid array, or its type or shape differs from the contract.
        """
        found = self._parsed(row, member, data, read_npy)
        unknown = ("<f4",), found.shape[:1] if member == "audio.npy" else found.shape  # audio, or latents without entry
        kinds, shape = array_specs(row, None, self.codecs.values()).get(member, unknown)
        if found.dtype.str not in kinds or found.shape != shape:
            expected = f"{shape} of {' or '.join(kinds)}"
            raise self._fault(row, member, f"expected an array {expected}, found {found.shape} of {found.dtype.str}")
        return found.copy()

    def _fault(self, row: ManifestRow, member: str, problem: object) -> DataError:
        """Return the error for a member whose content does not follow the contract."""
        shown = place_of_member(self.source, row.shard, row.key, member, row.members[member].offset)
        return DataError(f"{shown}: {one_line(str(problem), 200)}; {VERIFY}")

    def words(self, row: ManifestRow) -> list[dict[str, Any]]:
        """Return the words of a sample, each with word, start and end in seconds; raise the same errors as `array`."""
        return self.words_in(row, self.member(row, row.contract.words))

    def words_in(self, row: ManifestRow, data: bytes) -> list[dict[str, Any]]:
        """Decode the words in the bytes of a sample's word member.

        Args:
            row: Row of the sample, for errors.
            data: Bytes of the member.

        Returns:
            Each word with ``word``, ``start`` and ``end`` in seconds.

        Raises:
            DataError: The bytes are not a list of words.
        """
        return self._parsed(row, row.contract.words, data, words_of)

    def metadata(self, row: ManifestRow) -> dict[str, Any]:
        """Return KEY.json after checking its notes, audio and motion; raise the same errors as `array`."""
        return self._parsed(row, "json", self.member(row, "json"), metadata_of)

    def _parsed(self, row: ManifestRow, member: str, data: bytes, parse: Callable[[bytes], Parsed]) -> Parsed:
        try:
            return parse(data)
        except ValueError as error:
            raise self._fault(row, member, error) from error

    def gesture(self, row: ManifestRow) -> GestureClip:
        """Return the motion of a sample; raise the same errors as `array`."""
        return GestureClip(
            self.array(row, "gesture.npy"), self.array(row, "jaw_eyes.npy"), self.array(row, "start_xz.npy")
        )

    def semantic(self, row: ManifestRow) -> list[dict[str, Any]] | None:
        """Return the semantic spans of a sample, or None if it has no annotation; raise the same errors as `array`."""
        if "sem" not in row.present:
            return None
        member = row.contract.semantic
        return self._parsed(row, member, self.member(row, member), spans_of)

    def waveform(self, row: ManifestRow) -> npt.NDArray[np.float32] | None:
        """Return the 16 kHz waveform of a sample; None if the sample has no audio or the set did not keep the waveform.

        The shape is (N,) for N audio samples. The same errors as in `array` are raised, and DataError if FLAC cannot be
        decoded.
        """
        if "audio" not in row.present or not row.keeps_audio:
            return None
        if "flac" not in row.members:
            return self.array(row, "audio.npy")
        from omniges.formats.audio import decode_flac  # noqa: PLC0415 - libsndfile, needed for kept audio only

        try:
            pcm, bits = decode_flac(self.member(row, "flac"), samples_of(self.metadata(row)))
        except RecordingFault as fault:
            raise self._fault(row, "flac", fault) from fault
        # The product is exact in float32, so no large float64 array is needed.
        return pcm.astype(np.float32) * np.float32(2.0 ** (1 - bits))

    def sample(self, row: ManifestRow) -> SampleArrays:
        """Return the decoded content of a sample; raise the same errors as `array`."""
        return SampleArrays(
            row=row,
            metadata=self.metadata(row),
            gesture=self.gesture(row),
            betas=self.array(row, "betas.npy"),
            mel=self.array(row, "mel.npy"),
            words=self.words(row),
            semantic=self.semantic(row),
            audio=self.waveform(row),
            latents={name: self.array(row, entry.member) for name, entry in self.codecs.items()},
        )


def train_statistics(folder: ShardFolder, member: str) -> dict[str, Any]:
    """Compute the statistics of an array over the train split, in the form of stats.json of version 2.

    Use this function if stats.json lacks the array or a statistic, as in a set of version 1.

    Args:
        folder: The shard set.
        member: Name of the array, such as ``jaw_eyes.npy``.

    Returns:
        For each statistic, a list with one number for each channel; also the number of frames. An empty dictionary if
        there are no train samples.

    Raises:
        DataError: A shard is damaged.
    """
    return combine([partial_of(folder.array(row, member)) for row in folder.rows if row.split == "train"])
