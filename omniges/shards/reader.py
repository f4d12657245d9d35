"""Read samples back from a shard folder by byte range, each member checked against the manifest's digest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError, UsageFault
from omniges.features.gesture import GestureClip
from omniges.shards.dataset import read_dataset
from omniges.shards.latents import CodecEntry, read_entries
from omniges.shards.manifest import ManifestRow, read_manifest
from omniges.shards.schema import DATASET_FILE, MANIFEST_FILE
from omniges.storage.canonical_json import sha256_hex
from omniges.storage.redact import one_line

__all__ = ["SampleArrays", "ShardFolder"]

_VERIFY: str = "Run omniges verify-shards, then preprocess again"


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
    flac: bytes | None
    audio: npt.NDArray[np.float32] | None  # (N,)
    latents: dict[str, npt.NDArray[np.float32]]  # by codec (rows, channels)


class ShardFolder:
    """A complete shard set in a local folder."""

    def __init__(self, folder: Path) -> None:
        """Read dataset.json; raises UsageFault or DataError where it is absent, damaged or of another version."""
        self.folder = folder
        self.dataset = read_dataset(folder)

    @cached_property
    def codecs(self) -> dict[str, CodecEntry]:
        """The codecs whose latents the samples hold, by name."""
        try:
            return read_entries(self.dataset)
        except ValueError as error:
            raise DataError(f"{self.folder / DATASET_FILE}: {error}. {_VERIFY}") from error

    @cached_property
    def rows(self) -> Sequence[ManifestRow]:
        """The manifest, checked against dataset.json."""
        path = self.folder / MANIFEST_FILE
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}. {_VERIFY}") from error
        if sha256_hex(data) != self.dataset["files"].get(MANIFEST_FILE, {}).get("sha256"):
            raise DataError(f"{path}: the checksum differs from dataset.json. {_VERIFY}")
        try:
            return read_manifest(data)
        except ValueError as error:
            raise DataError(f"{path}: {one_line(str(error), 200)}. {_VERIFY}") from error

    def row(self, name: str) -> ManifestRow:
        """The row of a key or stem; raises UsageFault with near names where there is none."""
        for row in self.rows:
            if name in (row.key, row.stem):
                return row
        import difflib  # noqa: PLC0415

        near = difflib.get_close_matches(name, [row.key for row in self.rows], n=3)
        hint = f"Did you mean {', '.join(near)}?" if near else "omniges inspect DIR lists them"
        raise UsageFault(f"{self.folder}: no sample {name!r}. {hint}")

    def member(self, row: ManifestRow, member: str) -> bytes:
        """A member's bytes; raises DataError with shard, key and offset where they are not what the manifest says."""
        place = row.members[member]
        path = self.folder / row.shard
        try:
            with path.open("rb") as stream:
                stream.seek(place.offset)
                data = stream.read(place.size)
        except OSError as error:
            raise DataError(f"{path}: {error.strerror} ({row.key}.{member}). {_VERIFY}") from error
        if sha256_hex(data) != place.sha256:
            raise DataError(f"{path}: {row.key}.{member} at byte {place.offset} is damaged. {_VERIFY}")
        return data

    def array(self, row: ManifestRow, member: str) -> npt.NDArray[Any]:
        """An array member; read-only."""
        loaded: npt.NDArray[Any] = np.load(BytesIO(self.member(row, member)), allow_pickle=False)
        return loaded

    def words(self, row: ManifestRow) -> list[dict[str, Any]]:
        """The words of a sample."""
        found: list[dict[str, Any]] = json.loads(self.member(row, "words.json"))
        return found

    def gesture(self, row: ManifestRow) -> GestureClip:
        """The motion of a sample."""
        return GestureClip(
            self.array(row, "gesture.npy"),
            self.array(row, "jaw_eyes.npy"),
            self.array(row, "start_xz.npy"),
        )

    def semantic(self, row: ManifestRow) -> list[dict[str, Any]] | None:
        """The semantic spans of a sample, where it has an annotation."""
        found: list[dict[str, Any]] | None = (
            json.loads(self.member(row, "sem.json")) if "sem.json" in row.members else None
        )
        return found

    def sample(self, row: ManifestRow) -> SampleArrays:
        """All of a sample."""
        return SampleArrays(
            row=row,
            metadata=json.loads(self.member(row, "json")),
            gesture=self.gesture(row),
            betas=self.array(row, "betas.npy"),
            mel=self.array(row, "mel.npy"),
            words=self.words(row),
            semantic=self.semantic(row),
            flac=self.member(row, "flac") if "flac" in row.members else None,
            audio=self.array(row, "audio.npy") if "audio.npy" in row.members else None,
            latents={name: self.array(row, entry.member) for name, entry in self.codecs.items()},
        )
