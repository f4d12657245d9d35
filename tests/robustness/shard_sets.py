"""Shard folders taken apart and built again: what the damage harness, the fuzzer and the verifier's tests work on.

`ShardSet` holds a folder as samples that can be changed and writes it back with every offset, size, count and checksum
right, so that only the meaning of the data can give a change away. `Member` and `tar_of` do the same for one tar.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.shards.dataset import STATISTICS, partial_of, seal, statistics_document, train_tokenizer
from omniges.shards.manifest import ManifestRow, MemberPlace, manifest_hash, parse_manifest, serialize_manifest
from omniges.shards.schema import DATASET_FILE, MANIFEST_FILE, SPLITS, STATS_FILE, TOKENIZER_FILE, member_order
from omniges.shards.tar import END_OF_ARCHIVE, build_segment, member_header, npy_parts
from omniges.storage.files import canonical_json, json_document, sha256_hex

BLOCK: Final = 512
_ARRAYS: Final = {"gesture.npy": (-1, 415), "mel.npy": (-1, 64), "jaw_eyes.npy": (-1, 9), "start_xz.npy": (-1,)}
_FIELDS: Final = {
    "name": (0, 100),
    "mode": (100, 8),
    "uid": (108, 8),
    "gid": (116, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "flag": (156, 1),
    "link": (157, 100),
    "magic": (257, 8),
    "uname": (265, 32),
    "gname": (297, 32),
    "major": (329, 8),
    "minor": (337, 8),
    "prefix": (345, 155),
    "rest": (500, 12),
}


@dataclass(frozen=True)
class Member:
    """One member as it lies in a shard."""

    name: str
    header: bytes
    data: bytes

    @property
    def raw(self) -> bytes:
        """Header, data and filling."""
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
    """Members as a tar with its end."""
    return b"".join(member.raw for member in members) + END_OF_ARCHIVE


def named(member: Member, name: str) -> Member:
    """A member under another name."""
    return Member(name, member_header(name, len(member.data)), member.data)


def with_fields(member: Member, **fields: bytes) -> Member:
    """A member whose header has other raw fields, and a checksum that fits them."""
    header = bytearray(member.header)
    for name, value in fields.items():
        start, width = _FIELDS[name]
        header[start : start + width] = value.ljust(width, b"\0")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return Member(member.name, bytes(header), member.data)


@dataclass
class Sample:
    """A sample taken apart."""

    row: ManifestRow
    metadata: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]]
    words: Any
    others: dict[str, bytes]  # semantic spans, flac, audio.npy, latents
    raw: dict[str, bytes] = field(default_factory=dict)  # members written as given instead

    def members(self) -> dict[str, tuple[bytes | memoryview, ...]]:
        """Each member's content in pieces, in the contract's order."""
        content: dict[str, tuple[bytes | memoryview, ...]] = {"json": (canonical_json(self.metadata),)}
        content |= {name: npy_parts(np.ascontiguousarray(array)) for name, array in self.arrays.items()}
        content[self.row.contract.words] = (canonical_json(self.words),)
        content |= {name: (data,) for name, data in (self.others | self.raw).items()}
        return {name: content[name] for name in sorted(content, key=member_order)}


@dataclass
class ShardSet:
    """A shard folder taken apart, to be written again with a fault and every checksum right."""

    samples: list[Sample]
    document: dict[str, Any]
    files: dict[str, bytes]
    keep_files: bool = True  # statistics and tokenizer stay as they were; otherwise they are updated
    edit_rows: Callable[[list[ManifestRow]], list[ManifestRow]] | None = None  # just before the manifest is written

    @classmethod
    def read(cls, folder: Path) -> ShardSet:
        """Take a sound folder apart."""
        document = json.loads((folder / DATASET_FILE).read_bytes())
        samples = []
        for row in parse_manifest((folder / MANIFEST_FILE).read_bytes()):
            tar = (folder / row.shard).read_bytes()
            data = {name: tar[place.offset : place.offset + place.size] for name, place in row.members.items()}
            arrays: dict[str, npt.NDArray[Any]] = {
                name: np.frombuffer(data[name], "<f8" if name == "start_xz.npy" else "<f4", offset=128)
                .reshape(shape)
                .copy()
                for name, shape in _ARRAYS.items()
            }
            double = len(data["betas.npy"]) > 2000
            arrays["betas.npy"] = np.frombuffer(data["betas.npy"], "<f8" if double else "<f4", offset=128).copy()
            others = {n: value for n, value in data.items() if n not in {"json", row.contract.words, *arrays}}
            words = json.loads(data[row.contract.words])
            samples.append(Sample(row, json.loads(data["json"]), arrays, words, others))
        files = {name: (folder / name).read_bytes() for name in document["files"]}
        return cls(samples, document, files)

    def build(self) -> dict[str, bytes]:
        """The folder's files by name; every offset, size, count and checksum recomputed."""
        rows: list[ManifestRow] = []
        shards, files = {}, {}
        for name in sorted({sample.row.shard for sample in self.samples}):
            own = [sample for sample in self.samples if sample.row.shard == name]
            pieces: list[bytes | memoryview] = []
            size = 0
            for sample in own:
                segment = build_segment(sample.row.key, sample.members())
                places = {
                    member: MemberPlace(
                        size + segment.data_offsets[member],
                        segment.data_sizes[member],
                        sha256_hex(b"".join(map(bytes, content))),
                    )
                    for member, content in sample.members().items()
                }
                rows.append(replace(sample.row, members=places))
                pieces += segment.buffers
                size += segment.size
            tar = files[name] = b"".join(pieces) + END_OF_ARCHIVE
            shards[name] = {"split": own[0].row.split, "samples": len(own)} | _listed(tar)
        return files | self._beside(rows, shards)

    def write(self, folder: Path) -> Path:
        """`build`, written to a new folder."""
        folder.mkdir()
        for name, data in self.build().items():
            (folder / name).write_bytes(data)
        return folder

    def _beside(self, rows: list[ManifestRow], shards: dict[str, Any]) -> dict[str, bytes]:
        files = dict(self.files)
        if not self.keep_files:
            files |= self._fitting(rows)
        if self.edit_rows is not None:
            rows = self.edit_rows(rows)
        files[MANIFEST_FILE] = serialize_manifest(rows)
        document = {name: value for name, value in self.document.items() if name != "checksum"} | {
            "plan": self.document["plan"] | {"stems": len(rows) + self.document["plan"]["rejected"]},
            "manifest_hash": manifest_hash(rows),
            "totals": _totals(rows) | {"cut": self._cut_totals()},
            "splits": {split: _totals([row for row in rows if row.split == split]) for split in SPLITS},
            "shards": shards,
            "files": {name: _listed(data) for name, data in files.items()},
        }
        return files | {DATASET_FILE: seal(document)}

    def _cut_totals(self) -> dict[str, Any]:
        def values(name: str) -> list[Any]:
            # A fault may have put anything there.
            cuts = [sample.metadata.get("cut") for sample in self.samples]
            found = [cut.get(name) for cut in cuts if isinstance(cut, dict)]
            return [value for value in found if isinstance(value, int | float)]

        seconds = {name: round(math.fsum(values(name)), 6) for name in ("audio_s", "motion_s")}
        return seconds | {name: sum(values(name)) for name in ("words_dropped", "words_clipped")}

    def _fitting(self, rows: list[ManifestRow]) -> dict[str, bytes]:
        train = [sample for sample in self.samples if sample.row.split == "train"]
        version = self.document["version"]
        described = list(STATISTICS.values())[: 2 if version == 1 else None]
        partials = [tuple(partial_of(s.arrays[name]) for name in described) for s in train]
        words = Counter(word["word"] for sample in train for word in sample.words)
        stats = json_document(statistics_document(rows, partials, words, version))
        return {STATS_FILE: stats, TOKENIZER_FILE: train_tokenizer(words)}


def _listed(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": sha256_hex(data)}


def _totals(rows: Sequence[ManifestRow]) -> dict[str, Any]:
    counts = ("frames", "mel_frames", "ticks", "words")
    sums = {name: sum(getattr(row, name) for row in rows) for name in counts}
    return {"samples": len(rows), "seconds": math.fsum(row.seconds for row in rows)} | sums


def edited_dataset(data: bytes, edit: Callable[[dict[str, Any]], object]) -> bytes:
    """dataset.json edited, its checksum updated."""
    document = json.loads(data)
    edit(document)
    document.pop("checksum", None)
    return seal(document)


def relisted(folder: Mapping[str, bytes], changed: Mapping[str, bytes]) -> bytes:
    """dataset.json with the sizes and checksums of changed files, sealed."""

    def relist(document: dict[str, Any]) -> None:
        for name, data in changed.items():
            place = document["shards"] if name in document["shards"] else document["files"]
            place[name] |= _listed(data)

    return edited_dataset(folder[DATASET_FILE], relist)


def edited_rows(
    folder: Mapping[str, bytes], edit: Callable[[list[ManifestRow]], list[ManifestRow]]
) -> dict[str, bytes]:
    """The manifest with edited rows, and a dataset.json that lists its new checksum."""
    data = serialize_manifest(edit(parse_manifest(folder[MANIFEST_FILE])))
    return {MANIFEST_FILE: data, DATASET_FILE: relisted(folder, {MANIFEST_FILE: data})}
