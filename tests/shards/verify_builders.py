"""Ways to damage a shard folder: bytes changed as a disk or a bad tool would, and faults with all checksums redone."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from omniges.shards.dataset import dataset_document, seal, statistics_document
from omniges.shards.manifest import ManifestRow, MemberPlace, parse_manifest, serialize_manifest
from omniges.shards.schema import (
    DATASET_FILE,
    MANIFEST_FILE,
    STATS_FILE,
    TOKENIZER_FILE,
    canonical_json,
    json_document,
    sha256_hex,
)
from omniges.shards.statistics import partial_of
from omniges.shards.tar import END_OF_ARCHIVE, build_segment, member_header, npy_parts
from omniges.shards.tokenizer import train_tokenizer
from omniges.shards.verify import VerifyResult, VerifySettings, verify
from omniges.shards.writer import ShardFile

BLOCK = 512


def run(folder: Path, level: str = "full", **settings: Any) -> VerifyResult:
    """Verify in this process."""
    return verify(VerifySettings(folder=folder, level=level, **settings))  # type: ignore[arg-type]


def codes(result: VerifyResult, severity: str = "error") -> set[str]:
    return {finding.code for finding in result.findings if finding.severity == severity}


@contextmanager
def content(path: Path, data: bytes | None) -> Iterator[None]:
    """A file with other content, or without it, for a while."""
    before = path.read_bytes() if path.exists() else None
    try:
        path.write_bytes(data) if data is not None else path.unlink()
        yield
    finally:
        path.unlink(missing_ok=True)
        if before is not None:
            path.write_bytes(before)


@dataclass(frozen=True)
class Member:
    """One member as it lies in a shard."""

    name: str
    header: bytes
    data: bytes

    @property
    def raw(self) -> bytes:
        return self.header + self.data + bytes(-len(self.data) % BLOCK)


def members_of(tar: bytes) -> list[Member]:
    """The members of a sound shard."""
    found, position = [], 0
    while tar[position : position + BLOCK] != bytes(BLOCK):
        header = tar[position : position + BLOCK]
        size = int(header[124:135], 8)
        data = tar[position + BLOCK : position + BLOCK + size]
        found.append(Member(header[:100].rstrip(b"\0").decode(), header, data))
        position += BLOCK + size + -size % BLOCK
    return found


def tar_of(members: Sequence[Member]) -> bytes:
    return b"".join(member.raw for member in members) + END_OF_ARCHIVE


def named(member: Member, name: str) -> Member:
    return Member(name, member_header(name, len(member.data)), member.data)


def with_fields(member: Member, **fields: bytes) -> Member:
    """A member whose header has other raw fields, and a checksum that fits them."""
    places = {"name": (0, 100), "mode": (100, 8), "size": (124, 12), "mtime": (136, 12), "flag": (156, 1)}
    places |= {"link": (157, 100), "magic": (257, 8), "prefix": (345, 155)}
    header = bytearray(member.header)
    for name, value in fields.items():
        start, width = places[name]
        header[start : start + width] = value.ljust(width, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return Member(member.name, bytes(header), member.data)


@dataclass
class Sample:
    """A sample taken apart."""

    row: ManifestRow
    metadata: dict[str, Any]
    arrays: dict[str, Any]
    words: Any
    others: dict[str, bytes]
    raw: dict[str, bytes] = field(default_factory=dict)  # members written as given instead

    def members(self) -> dict[str, tuple[bytes | memoryview, ...]]:
        order = {"json": (canonical_json(self.metadata),)}
        for member in ("gesture.npy", "mel.npy"):
            order[member] = npy_parts(np.ascontiguousarray(self.arrays[member]))
        order["words.json"] = (canonical_json(self.words),)
        for member in ("jaw_eyes.npy", "betas.npy", "start_xz.npy"):
            order[member] = npy_parts(np.ascontiguousarray(self.arrays[member]))
        order |= {member: (data,) for member, data in self.others.items()}
        return order | {member: (data,) for member, data in self.raw.items()}


@dataclass
class ShardSet:
    """A shard folder taken apart, to be written again with a fault and every checksum right."""

    samples: list[Sample]
    document: dict[str, Any]
    files: dict[str, bytes]
    keep_files: bool = True  # statistics and tokenizer stay as they were; else they are made to fit

    @classmethod
    def read(cls, folder: Path) -> ShardSet:
        document = json.loads((folder / DATASET_FILE).read_bytes())
        samples = []
        for row in parse_manifest((folder / MANIFEST_FILE).read_bytes()):
            tar = (folder / row.shard).read_bytes()
            data = {name: tar[place.offset : place.offset + place.size] for name, place in row.members.items()}
            arrays = {
                name: np.frombuffer(value, "<f8" if name == "start_xz.npy" else "<f4", offset=128).copy()
                for name, value in data.items()
                if name.endswith(".npy") and name not in {"betas.npy", "audio.npy"}
            }
            arrays["gesture.npy"] = arrays["gesture.npy"].reshape(-1, 415)
            arrays["mel.npy"] = arrays["mel.npy"].reshape(-1, 64)
            arrays["jaw_eyes.npy"] = arrays["jaw_eyes.npy"].reshape(-1, 9)
            double = len(data["betas.npy"]) > 2000
            arrays["betas.npy"] = np.frombuffer(data["betas.npy"], "<f8" if double else "<f4", offset=128).copy()
            others = {name: value for name, value in data.items() if name in {"sem.json", "flac", "audio.npy"}}
            words = json.loads(data["words.json"])
            samples.append(Sample(row, json.loads(data["json"]), arrays, words, others))
        files = {name: (folder / name).read_bytes() for name in document["files"]}
        return cls(samples, document, files)

    def write(self, folder: Path) -> Path:
        """Write it, every offset, size, count and checksum recomputed."""
        folder.mkdir()
        rows: list[ManifestRow] = []
        shards = []
        for name in sorted({sample.row.shard for sample in self.samples}):
            own = [sample for sample in self.samples if sample.row.shard == name]
            tar = b""
            for sample in own:
                members = sample.members()
                segment = build_segment(sample.row.key, members)
                places = {
                    member: MemberPlace(
                        len(tar) + segment.data_offsets[member],
                        segment.data_sizes[member],
                        sha256_hex(b"".join(map(bytes, pieces))),
                    )
                    for member, pieces in members.items()
                }
                rows.append(replace(sample.row, members=places))
                tar += b"".join(map(bytes, segment.buffers))
            tar += END_OF_ARCHIVE
            (folder / name).write_bytes(tar)
            shards.append(ShardFile(name, own[0].row.split, len(own), len(tar), sha256_hex(tar)))  # type: ignore[arg-type]
        self._write_beside(folder, rows, shards)
        return folder

    def _write_beside(self, folder: Path, rows: list[ManifestRow], shards: list[ShardFile]) -> None:
        files = self.files | {MANIFEST_FILE: serialize_manifest(rows)}
        if not self.keep_files:
            files |= self._fitting(rows)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        listed = {name: (len(data), sha256_hex(data)) for name, data in files.items()}
        plan = self.document["plan"] | {"stems": len(rows) + self.document["plan"]["rejected"]}
        document = dataset_document(rows, shards, listed, self.document["settings"], plan, self._cut_totals())
        (folder / DATASET_FILE).write_bytes(seal(document | {"features": self.document["features"]}))

    def _cut_totals(self) -> dict[str, Any]:
        cuts = [sample.metadata["cut"] for sample in self.samples]
        seconds = {name: round(math.fsum(cut[name] for cut in cuts), 6) for name in ("audio_s", "motion_s")}
        return seconds | {name: sum(cut[name] for cut in cuts) for name in ("words_dropped", "words_clipped")}

    def _fitting(self, rows: list[ManifestRow]) -> dict[str, bytes]:
        train = [sample for sample in self.samples if sample.row.split == "train"]
        partials = [(partial_of(s.arrays["gesture.npy"]), partial_of(s.arrays["mel.npy"])) for s in train]
        words = Counter(word["word"] for sample in train for word in sample.words)
        stats = json_document(statistics_document(rows, partials, words))
        return {STATS_FILE: stats, TOKENIZER_FILE: train_tokenizer(words)}


Fault = Callable[[ShardSet], None]


def rebuilt(source: Path, target: Path, fault: Fault) -> Path:
    """A folder with a fault inserted and all checksums recomputed."""
    shutil.rmtree(target, ignore_errors=True)
    shards = ShardSet.read(source)
    fault(shards)
    return shards.write(target)


def edited_dataset(folder: Path, edit: Callable[[dict[str, Any]], None]) -> bytes:
    """dataset.json edited, its checksum made to fit."""
    document = json.loads((folder / DATASET_FILE).read_bytes())
    edit(document)
    document.pop("checksum", None)
    return seal(document)


def edited_manifest(folder: Path, edit: Callable[[list[ManifestRow]], list[ManifestRow]]) -> dict[str, bytes]:
    """The manifest with edited rows, and a dataset.json that lists its new checksum."""
    data = serialize_manifest(edit(parse_manifest((folder / MANIFEST_FILE).read_bytes())))

    def relist(document: dict[str, Any]) -> None:
        document["files"][MANIFEST_FILE] = {"bytes": len(data), "sha256": sha256_hex(data)}

    return {MANIFEST_FILE: data, DATASET_FILE: edited_dataset(folder, relist)}
