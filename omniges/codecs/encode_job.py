"""Codecs over the shards of a folder: each shard written anew with latents, a journal of them, the new set committed.

`encode` decides what is to be done; this does it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from omniges.codecs.base import Codec, latents_of_sample
from omniges.errors import DataError, EnvironmentFault, UsageFault
from omniges.shards.dataset import seal, tool_versions
from omniges.shards.latents import CodecEntry, latents_document
from omniges.shards.manifest import ManifestRow, MemberPlace, manifest_hash, row_from_json, serialize_manifest
from omniges.shards.reader import ShardFolder, read_beside
from omniges.shards.schema import DATASET_FILE, LATENTS_FILE, MANIFEST_FILE, member_order
from omniges.shards.statistics import Partial, partial_of
from omniges.shards.tar import END_OF_ARCHIVE, build_segment, npy_parts
from omniges.shards.transaction import Begun, Workspace, commit, staged_name
from omniges.storage.atomic import PendingFile, publish_bytes
from omniges.storage.canonical_json import canonical_json, file_sha256, json_document

_MAX_NAME_BYTES: Final = 100  # of a member in a ustar header
_FLUSH_BYTES: Final = 32 << 20

Count = Callable[[int, int], None]
Partials = dict[str, list[Partial]]  # of the train samples, by codec


def _begun(source: ShardFolder, entries: Sequence[CodecEntry]) -> Begun:
    """What decides the output of this run."""
    codecs = {entry.name: entry.as_json() for entry in entries}
    settings = {"encode": {"manifest_hash": source.dataset["manifest_hash"], "codecs": codecs}}
    return Begun(json.loads(canonical_json(settings)), tool_versions(), anew=False)


@dataclass(slots=True)
class _Written:
    """A shard of the new set in the workspace."""

    path: Path
    size: int
    sha256: str
    rows: list[ManifestRow]
    partials: Partials = field(default_factory=dict)


class EncodeJob:
    """Codecs over the shards of a folder."""

    def __init__(
        self, source: ShardFolder, workspace: Workspace, codecs: Mapping[str, Codec], entries: Sequence[CodecEntry]
    ) -> None:
        self._source, self._workspace = source, workspace
        self._codecs, self._entries = codecs, tuple(entries)

    def run(self, count: Count) -> int:
        """Encode what is left and put the new set in its place; returns how many shards were there already."""
        workspace, source = self._workspace, self._source
        begun = _begun(source, self._entries)
        self._check_names()
        earlier = workspace.begun()
        if earlier is not None and earlier != begun:
            raise UsageFault(
                f"{workspace.folder}: an unfinished run of another command or codec lies there. Finish it with its own "
                "command, or remove that folder"
            )
        if earlier is None:
            workspace.wipe()
        _check_space(workspace.out, source)
        workspace.begin(begun)
        rows: dict[str, list[ManifestRow]] = {name: [] for name in source.dataset["shards"]}
        for row in source.rows:
            rows[row.shard].append(row)
        done = self._journalled(rows)
        resumed = len(done)
        finished = sum(row.seconds for name in done for row in rows[name])
        total = sum(row.seconds for row in source.rows)

        def tell(row: ManifestRow) -> None:
            nonlocal finished
            finished += row.seconds
            count(int(finished), int(total))

        workspace.journal.open()
        try:
            for name, own in rows.items():
                if name not in done:
                    path = workspace.folder / staged_name(workspace.free_index())
                    done[name] = self._write(path, own, tell)
                    workspace.journal.append(_line(name, done[name]), durable=True)
        finally:
            workspace.journal.close()
        self._finish({name: done[name] for name in rows})
        return resumed

    def _check_names(self) -> None:
        for entry in self._entries:
            for row in self._source.rows:
                if len(row.key) + 1 + len(entry.member) > _MAX_NAME_BYTES:
                    raise DataError(
                        f"{self._source.folder}: {row.key}.{entry.member}: at most {_MAX_NAME_BYTES} bytes fit into a "
                        "tar header: preprocess this recording under a shorter name"
                    )

    def _journalled(self, rows: Mapping[str, Sequence[ManifestRow]]) -> dict[str, _Written]:
        """Shards that a stopped run finished and that are, byte for byte, what they were then."""
        found = {}
        for line in self._workspace.journal.load():
            path = self._workspace.folder / line["staged"]
            if line["shard"] not in rows or not path.is_file():
                continue
            if file_sha256(path) == line["sha256"]:
                own = [row_from_json(row) for row in line["rows"]]
                found[line["shard"]] = _Written(path, line["bytes"], line["sha256"], own, self._partials(path, own))
        return found

    def _partials(self, path: Path, rows: Sequence[ManifestRow]) -> Partials:
        """Statistics of the latents in a finished shard."""
        found: Partials = {}
        with path.open("rb") as stream:
            for row in rows:
                for entry in self._entries:
                    place = row.members[entry.member]
                    stream.seek(place.offset)
                    _gather(found, entry, row, np.load(BytesIO(stream.read(place.size)), allow_pickle=False))
        return found

    def _write(self, path: Path, rows: Sequence[ManifestRow], tell: Callable[[ManifestRow], None]) -> _Written:
        """One shard with latents."""
        placed: list[ManifestRow] = []
        partials: Partials = {}
        with PendingFile(path) as pending:
            unflushed = 0
            for row in rows:
                members = self._members(row, partials)
                segment = build_segment(row.key, members)
                places = {
                    member: MemberPlace(
                        pending.size + segment.data_offsets[member], segment.data_sizes[member], _digest(pieces)
                    )
                    for member, pieces in members.items()
                }
                placed.append(replace(row, members=places))
                for piece in segment.buffers:
                    pending.write(piece)
                unflushed += segment.size
                if unflushed >= _FLUSH_BYTES:
                    pending.flush_to_disk()
                    unflushed = 0
                tell(row)
            pending.write(END_OF_ARCHIVE)
            size, digest = pending.size, pending.sha256
        return _Written(path, size, digest, placed, partials)

    def _members(self, row: ManifestRow, partials: Partials) -> dict[str, tuple[bytes | memoryview, ...]]:
        """All members of a sample in their order: those it has, read and checked, and the new latents."""
        new = {entry.member for entry in self._entries}
        found: dict[str, tuple[bytes | memoryview, ...]] = {
            member: (self._source.member(row, member),) for member in row.members if member not in new
        }
        for entry in self._entries:
            latents = _encoded(self._codecs[entry.name], b"".join(found[entry.source]), row)
            expected = entry.shape_of(row)
            if latents.shape != expected or latents.dtype != np.float32:
                raise RuntimeError(f"{entry.name}: {expected} float32 expected, found {latents.shape} {latents.dtype}")
            if not np.isfinite(latents).all():
                raise DataError(
                    f"{self._source.folder / row.shard}: {row.key}.{entry.source}: {entry.name} gives latents that are "
                    "no finite numbers: run omniges verify-shards --level deep, or take another codec"
                )
            _gather(partials, entry, row, latents)
            found[entry.member] = npy_parts(np.ascontiguousarray(latents))
        return {member: found[member] for member in sorted(found, key=member_order)}

    def _finish(self, shards: Mapping[str, _Written]) -> None:
        """Everything beside the shards, dataset.json last, and the new set in its place."""
        source, folder = self._source, self._workspace.folder
        rows = [row for shard in shards.values() for row in shard.rows]
        codecs = dict(sorted((source.codecs | {entry.name: entry for entry in self._entries}).items()))
        partials: Partials = {}
        for shard in shards.values():
            for name, own in shard.partials.items():
                partials.setdefault(name, []).extend(own)
        latents = latents_document(self._entries, partials)
        contents = {name: read_beside(source.folder, name, source.dataset) for name in source.dataset["files"]}
        kept = json.loads(contents[LATENTS_FILE]) if LATENTS_FILE in contents else {}
        contents[MANIFEST_FILE] = serialize_manifest(rows)
        contents[LATENTS_FILE] = json_document(kept | latents)
        files = {
            name: {"bytes": len(data), "sha256": publish_bytes(folder / name, data)} for name, data in contents.items()
        }
        listed: dict[str, Any] = source.dataset["shards"]
        document = {name: value for name, value in source.dataset.items() if name != "checksum"}
        document |= {
            "manifest_hash": manifest_hash(rows),
            "shards": {
                name: listed[name] | {"bytes": shard.size, "sha256": shard.sha256} for name, shard in shards.items()
            },
            "files": files,
            "codecs": {name: entry.as_json() for name, entry in codecs.items()},
        }
        publish_bytes(folder / DATASET_FILE, seal(document))
        commit(self._workspace, {name: shard.path for name, shard in shards.items()})


def _line(shard: str, written: _Written) -> dict[str, Any]:
    """The journal's line for a finished shard."""
    return {
        "shard": shard,
        "staged": written.path.name,
        "bytes": written.size,
        "sha256": written.sha256,
        "rows": [asdict(row) for row in written.rows],
    }


def _digest(pieces: Sequence[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _gather(partials: Partials, entry: CodecEntry, row: ManifestRow, latents: Any) -> None:
    """Take in a train sample's latents; a clip that is too short has none."""
    if row.split == "train" and len(latents):
        partials.setdefault(entry.name, []).append(partial_of(entry.vectors(latents)))


def _encoded(codec: Codec, source: bytes, row: ManifestRow) -> Any:
    try:
        return latents_of_sample(codec, source, row)
    except RuntimeError as error:  # torch has a class of its own for a GPU's memory, and none for the host's
        if not isinstance(error, torch.OutOfMemoryError) and "alloc" not in str(error):
            raise
        raise EnvironmentFault(
            f"{row.key}: no memory to encode {row.seconds:.0f} s at once ({codec.entry.name}): take a machine with more"
        ) from error


def _check_space(out: Path, source: ShardFolder) -> None:
    """Refuse before any work where the disk is plainly too small for a second set."""
    needed = sum(shard["bytes"] for shard in source.dataset["shards"].values())
    free = shutil.disk_usage(out).free
    if free < needed:
        raise EnvironmentFault(
            f"{out}: over {needed / 1e9:.1f} GB needed beside what is there, {free / 1e9:.1f} GB free. Free some space "
            "or choose another --out"
        )
