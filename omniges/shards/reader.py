"""Read samples from shards, every byte checked against the manifest, and files beside them against dataset.json.

Shards are in the folder, or wherever a `ShardSource` has them, such as in the cache of a URL.
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
from omniges.shards.dataset import read_dataset
from omniges.shards.documents import metadata_of, samples_of, spans_of, words_of
from omniges.shards.latents import CodecEntry, read_entries
from omniges.shards.manifest import ManifestRow, read_manifest, rows_problem
from omniges.shards.schema import DATASET_FILE, MANIFEST_FILE, VERIFY
from omniges.shards.tar import read_npy
from omniges.storage.atomic import os_errors
from omniges.storage.files import open_file
from omniges.storage.redact import one_line

Parsed = TypeVar("Parsed")


class ShardSource(Protocol):
    """Where the shards of a folder are: the folder itself, or a local cache of a remote one."""

    def open(self, shard: str) -> int:
        """Open a complete shard for reading and return a descriptor, which the caller closes.

        May wait until the shard is here. The descriptor keeps the content even if the file is evicted from a cache
        meanwhile.

        Args:
            shard: the shard's name.

        Returns:
            A file descriptor.

        Raises:
            DataError: there is no such shard.
            EnvironmentFault: it cannot be had.
        """
        ...

    def prefetch(self, shards: Iterable[str]) -> None:
        """Take a hint that these shards are needed soon, the most urgent first; return at once."""
        ...

    def describe(self, shard: str) -> str:
        """Return the shard's path or URL as errors name it, without credentials."""
        ...

    def specification(self) -> dict[str, Any]:
        """Return JSON from which a worker process makes its own (`omniges.data.collate.open_source`)."""
        ...


@dataclass(frozen=True, slots=True)
class LocalShards:
    """Shards in a local folder."""

    folder: Path

    def open(self, shard: str) -> int:
        """Open a shard."""
        try:
            return open_file(self.folder / shard, self.folder)
        except FileNotFoundError as error:
            raise DataError(f"{self.folder / shard}: the shard is not there. {VERIFY}") from error

    def prefetch(self, shards: Iterable[str]) -> None:
        """Do nothing: the shards are here."""

    def describe(self, shard: str) -> str:
        """Return the shard's path."""
        return str(self.folder / shard)

    def specification(self) -> dict[str, Any]:
        """Return the folder."""
        return {"kind": "local", "folder": str(self.folder.absolute())}


def place_of_member(source: ShardSource, shard: str, key: str, member: str, offset: int) -> str:
    """Return how errors name a member: shard, key and byte."""
    return f"{source.describe(shard)}: {key}.{member} at byte {offset}"


def check_digest(content: bytes | memoryview, sha256: bytes, place: str) -> None:
    """Refuse content that does not have the digest that the manifest or dataset.json gives it.

    Args:
        content: all bytes of a member or file.
        sha256: the expected digest, 32 bytes.
        place: what the error names.

    Raises:
        DataError: the content is another one.
    """
    found = hashlib.sha256(content).digest()
    if found != sha256:
        raise DataError(f"{place}: sha256 {sha256.hex()} expected, found {found.hex()}. {VERIFY}")


@contextlib.contextmanager
def open_beside(folder: Path, name: str, dataset: dict[str, Any]) -> Iterator[BinaryIO]:
    """Open a file beside the shards, its digest checked against dataset.json.

    The one descriptor is read twice, so what is parsed is what was checked, whatever is renamed meanwhile.

    Args:
        folder: of the shards.
        name: of the file, such as ``manifest.parquet``.
        dataset: dataset.json, checked.

    Yields:
        The file, at its first byte.

    Raises:
        DataError: the file is absent or not what dataset.json says.
    """
    path = folder / name
    listed = dataset["files"].get(name)
    if listed is None:
        raise DataError(f"{path}: an entry in {DATASET_FILE} expected, found none. {VERIFY}")
    try:
        descriptor = open_file(path, folder)
    except FileNotFoundError as error:
        raise DataError(f"{path}: {error.strerror}. {VERIFY}") from error
    with open(descriptor, "rb") as stream:
        with os_errors(path, "read"):
            size = os.fstat(descriptor).st_size
            if size != listed["bytes"]:
                expected = f"{listed['bytes']} bytes expected as in {DATASET_FILE}"
                raise DataError(f"{path}: {expected}, found {size}. {VERIFY}")
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != listed["sha256"]:
            expected = f"sha256 {listed['sha256']} expected as in {DATASET_FILE}"
            raise DataError(f"{path}: {expected}, found {found}. {VERIFY}")
        stream.seek(0)
        yield stream


def read_beside(folder: Path, name: str, dataset: dict[str, Any]) -> bytes:
    """Return a file beside the shards; raises as `open_beside` does."""
    with open_beside(folder, name, dataset) as stream:
        return stream.read()


def checked_rows(data: bytes, dataset: Mapping[str, Any], place: str) -> list[ManifestRow]:
    """Return the rows of a manifest, each sound in itself and held against dataset.json.

    Args:
        data: the manifest's bytes, whose digest was compared.
        dataset: dataset.json, checked.
        place: what the error names.

    Returns:
        The rows, in the manifest's order.

    Raises:
        DataError: they are no manifest, or a row contradicts itself, another one or dataset.json.
    """
    try:
        rows = read_manifest(data)
    except ValueError as error:
        raise DataError(f"{place}: {one_line(str(error), 200)}. {VERIFY}") from error
    if problem := rows_problem(rows, dataset["shards"]):
        raise DataError(f"{place}: {one_line(problem, 200)}. {VERIFY}")
    return rows


@dataclass(frozen=True, slots=True)
class SampleArrays:
    """One sample's content."""

    row: ManifestRow
    metadata: dict[str, Any]
    gesture: GestureClip
    betas: npt.NDArray[np.floating]  # (300,)
    mel: npt.NDArray[np.float32]  # (M, 64)
    words: list[dict[str, Any]]
    semantic: list[dict[str, Any]] | None
    audio: npt.NDArray[np.float32] | None  # (N,) at 16 kHz, where it was kept
    latents: dict[str, npt.NDArray[np.float32]]  # by codec (rows, channels)


def file_betas(sample: SampleArrays) -> npt.NDArray[np.floating]:
    """Return a sample's shape coefficients as motion files hold them: as many as came, extended to a known number.

    A person whose shape nobody gave has the average one, all zeros.
    """
    given = int(sample.metadata["motion"]["betas"]) or max(BETAS_LENGTHS)
    return np.asarray(sample.betas[: min(length for length in BETAS_LENGTHS if length >= given)])


def notes_of(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the notes of KEY.json as ``code: what was found``, whichever version of the contract it follows."""
    notes = metadata["notes"]
    if isinstance(notes, str):
        return tuple(notes.splitlines())
    return tuple(f"{note['code']}: {note['found']}" for note in notes)


class ShardFolder:
    """A complete shard set: its small files in a local folder, its shards where the source has them."""

    def __init__(self, folder: Path, source: ShardSource | None = None) -> None:
        """Read dataset.json; raises UsageFault or DataError where it is absent, damaged or of another version."""
        self.folder = folder
        self.source = source or LocalShards(folder)
        self.dataset = read_dataset(folder)

    @cached_property
    def codecs(self) -> dict[str, CodecEntry]:
        """The codecs whose latents the samples hold, by name."""
        try:
            return read_entries(self.dataset)
        except ValueError as error:
            raise DataError(f"{self.folder / DATASET_FILE}: {error}. {VERIFY}") from error

    @cached_property
    def rows(self) -> Sequence[ManifestRow]:
        """The manifest, checked against dataset.json."""
        data = read_beside(self.folder, MANIFEST_FILE, self.dataset)
        return checked_rows(data, self.dataset, str(self.folder / MANIFEST_FILE))

    def row(self, name: str) -> ManifestRow:
        """Return the row of a key or stem; raises UsageFault with near names where there is none."""
        for row in self.rows:
            if name in (row.key, row.stem):
                return row
        import difflib  # noqa: PLC0415

        near = difflib.get_close_matches(name, [row.key for row in self.rows], n=3)
        hint = f"Did you mean {', '.join(near)}?" if near else "omniges inspect DIR lists them"
        raise UsageFault(f"{self.folder}: no sample {name!r}. {hint}")

    def member(self, row: ManifestRow, member: str) -> bytes:
        """Return a member's bytes.

        Args:
            row: of the sample.
            member: its name, such as ``gesture.npy``.

        Returns:
            The bytes, checked.

        Raises:
            DataError: there is no such shard, or the bytes are not what the manifest says.
            EnvironmentFault: the shard cannot be read.
        """
        return self.read_member(row, member, check=True)

    def read_member(self, row: ManifestRow, member: str, *, check: bool) -> bytes:
        """Return a member's bytes, compared with the manifest's sha256 if `check`; raises as `member` does."""
        place = row.members[member]
        with os_errors(self.folder / row.shard, "read"), open(self.source.open(row.shard), "rb") as stream:
            stream.seek(place.offset)
            data = stream.read(place.size)
        shown = place_of_member(self.source, row.shard, row.key, member, place.offset)
        if check:
            check_digest(data, bytes.fromhex(place.sha256), shown)
        elif len(data) != place.size:
            raise DataError(f"{shown}: {place.size} bytes expected, found {len(data)}. {VERIFY}")
        return data

    def array(self, row: ManifestRow, member: str) -> npt.NDArray[Any]:
        """Return an array member, which belongs to the caller; raises as `member` does, and DataError for no array."""
        return self.array_of(row, member, self.member(row, member))

    def array_of(self, row: ManifestRow, member: str, data: bytes) -> npt.NDArray[Any]:
        """Return the array that a member's bytes hold; raises DataError where they hold none."""
        return self._parsed(row, member, data, read_npy).copy()

    def _fault(self, row: ManifestRow, member: str, problem: object) -> DataError:
        """Return the error of a member that does not hold what the contract says."""
        shown = place_of_member(self.source, row.shard, row.key, member, row.members[member].offset)
        return DataError(f"{shown}: {one_line(str(problem), 200)}. {VERIFY}")

    def words(self, row: ManifestRow) -> list[dict[str, Any]]:
        """The words of a sample, each with word, start and end; raises as `array` does."""
        return self.words_in(row, self.member(row, row.contract.words))

    def words_in(self, row: ManifestRow, data: bytes) -> list[dict[str, Any]]:
        """The words that the bytes of that member hold; raises DataError where they hold none."""
        return self._parsed(row, row.contract.words, data, words_of)

    def metadata(self, row: ManifestRow) -> dict[str, Any]:
        """All of KEY.json, of which notes, audio and motion are as the contract has them; raises as `array` does."""
        return self._parsed(row, "json", self.member(row, "json"), metadata_of)

    def _parsed(self, row: ManifestRow, member: str, data: bytes, parse: Callable[[bytes], Parsed]) -> Parsed:
        try:
            return parse(data)
        except ValueError as error:
            raise self._fault(row, member, error) from error

    def gesture(self, row: ManifestRow) -> GestureClip:
        """The motion of a sample."""
        return GestureClip(
            self.array(row, "gesture.npy"), self.array(row, "jaw_eyes.npy"), self.array(row, "start_xz.npy")
        )

    def semantic(self, row: ManifestRow) -> list[dict[str, Any]] | None:
        """The semantic spans of a sample, where it has an annotation; raises as `array` does."""
        if "sem" not in row.present:
            return None
        member = row.contract.semantic
        return self._parsed(row, member, self.member(row, member), spans_of)

    def waveform(self, row: ManifestRow) -> npt.NDArray[np.float32] | None:
        """The waveform (N,) of a sample at 16 kHz, whichever member holds it; None where it was not kept.

        Raises as `member` does, and DataError for FLAC that cannot be decoded.
        """
        if "audio" not in row.present or not row.keeps_audio:
            return None
        if "flac" not in row.members:
            return self.array(row, "audio.npy")
        from omniges.formats.audio import decode_flac  # noqa: PLC0415 - libsndfile, only where it was kept

        try:
            pcm, bits = decode_flac(self.member(row, "flac"), samples_of(self.metadata(row)))
        except RecordingFault as fault:
            raise self._fault(row, "flac", fault) from fault
        # Exact, and no float64 of eleven minutes.
        return pcm.astype(np.float32) * np.float32(2.0 ** (1 - bits))

    def sample(self, row: ManifestRow) -> SampleArrays:
        """All of a sample."""
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
