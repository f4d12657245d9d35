"""The command `encode`: add a codec's latents to a shard folder as members, so that training never runs the codec.

Each shard is rewritten with the same name and samples. The latents follow the other members (files) of each sample. New
shards are first written to a workspace, a hidden folder in the output folder. A journal lists the finished shards. If
the process is killed, the same command continues with the other shards. At the end, all new files are renamed to their
places, as in `preprocess`. Therefore, the new set is complete or absent.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch

from omniges.codecs.base import Codec, End, LoudnessCodec, WindowCodec
from omniges.codecs.registry import load_codec
from omniges.codecs.settings import DEFAULT_MAX_LOST, EncodeSettings
from omniges.errors import DataError, EnvironmentFault, UsageFault
from omniges.shards.dataset import PartialSpool, partial_of, seal, tool_versions
from omniges.shards.document import loudness_of
from omniges.shards.latents import WORDS_MEMBER, CodecEntry, WindowEntry, latents_document
from omniges.shards.manifest import ManifestRow, MemberPlace, manifest_hash, row_from_json, serialize_manifest
from omniges.shards.reader import ShardFolder, read_beside
from omniges.shards.schema import (
    DATASET_FILE,
    GESTURE_PARTS,
    LATENTS_FILE,
    MANIFEST_FILE,
    Part,
    member_order,
    parse_document,
)
from omniges.shards.tar import END_OF_ARCHIVE, build_segment, npy_parts
from omniges.shards.transaction import UnfinishedRun, Workspace, staged_name
from omniges.storage.atomic import PendingFile, locked, make_folder, publish_bytes
from omniges.storage.files import canonical_json, file_sha256, json_document, open_regular, read_range, sha256_hex

Count = Callable[[int, int], None]

_MAX_NAME_BYTES: Final = 100  # largest length of a member's name in a ustar header
_FLUSH_BYTES: Final = 32 << 20
_PACKAGES: Final = {WORDS_MEMBER: ("torch", "transformers", "tokenizers")}
"""Packages whose versions may change the last bits of latents, by the member that a codec reads."""
_READ_PARTS: Final[Mapping[str, tuple[Part, ...]]] = {
    "mel.npy": ("audio",),
    "gesture.npy": GESTURE_PARTS,
    WORDS_MEMBER: ("text",),
}
"""Parts of a sample that a codec needs, by the member that it reads."""
_ENCODE: Final[frozenset[End]] = frozenset({"encode"})


@dataclass(frozen=True, slots=True)
class EncodeSummary:
    """Result of an encode run."""

    folder: Path
    encoded: tuple[CodecEntry, ...]
    there: tuple[str, ...]  # codecs whose latents existed already
    samples: int
    seconds: float
    elapsed_s: float
    resumed: int  # number of shards that an earlier run of the same command finished
    loudness: tuple[str, ...]  # warnings about codecs that were trained on another loudness
    manifest_hash: str

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about lost text, and about shards whose loudness differs from the codec's training audio."""
        return self.loudness + tuple(f"{x.name}: {_losses(x.lost)}" for x in self.encoded if isinstance(x, WindowEntry))

    @property
    def lines(self) -> list[str]:
        """Lines of text that describe the result: codecs, samples, speed, warnings and manifest hash."""
        found = [f"{name}: its latents are in {self.folder} already" for name in self.there]
        if self.encoded:
            names = ", ".join(entry.name for entry in self.encoded)
            pace = f"{self.seconds / self.elapsed_s:.1f} times real time" if self.elapsed_s else ""
            found.append(f"{names}: latents of {self.samples} samples ({self.seconds:.0f} s) in {self.folder}, {pace}")
            if self.resumed:
                found.append(f"{self.resumed} shards were kept from a stopped run")
        found += self.warnings
        return [*found, f"manifest hash {self.manifest_hash[:16]}…"]


def encode(settings: EncodeSettings, count: Count = lambda _done, _total: None) -> EncodeSummary:
    """Add a codec's latents to shards.

    Existing shards do not change until the new set is complete. If the process is stopped before, the next run of the
    same command uses the shards that are already finished.

    Args:
        settings: Codecs, folders and windows.
        count: Function that is called with the finished and the total seconds of recordings.

    Returns:
        The summary of the run.

    Raises:
        UsageFault: The settings, shards and codecs do not fit together.
        DataError: A member is damaged, or the latents would lose too much text.
        EnvironmentFault: Disk space, memory or a package is missing.
    """
    began = time.monotonic()
    target = settings.target
    if settings.shards.resolve() in target.resolve().parents:  # `verify-shards` would report such a folder
        raise UsageFault(
            f"--output-dir {target}: expected a folder outside of the shards {settings.shards}, found a folder "
            "inside them; choose another folder"
        )
    codecs = _loaded(settings)
    if not settings.in_place:
        make_folder(target)
    workspace = Workspace(target)
    with locked(target):
        workspace.recover()
        source = ShardFolder(settings.shards)
        if not settings.in_place and (target / DATASET_FILE).exists():
            entries = {name: _entry(codec, source) for name, codec in codecs.items()}
            return _complete(target, source, entries, time.monotonic() - began)
        wanted, there = _wanted(settings, source, codecs)
        if not wanted:
            if workspace.begun() is None:  # keep the unfinished work of another run
                workspace.wipe()
            return _summary(source, (), there, time.monotonic() - began)
        resumed = _Job(source, workspace, codecs, wanted).run(count)
        summary = _summary(ShardFolder(target), wanted, there, time.monotonic() - began, resumed)
        return replace(summary, loudness=_loudness(wanted, codecs))


def _loaded(settings: EncodeSettings) -> dict[str, Codec]:
    """Load the codecs; a text codec gets the requested windows.

    If shards and codecs do not fit together, an error is raised before the output folder is created.
    """
    target = settings.target
    new = not settings.in_place and not (target / DATASET_FILE).exists()
    source = None if settings.in_place and target.is_dir() else ShardFolder(settings.shards)
    codecs: dict[str, Codec] = {}
    for name, folder in settings.codecs:
        codec = load_codec(name, folder, t5_tokenizer=settings.t5_tokenizer, ends=_ENCODE)
        if isinstance(codec.entry, WindowEntry):
            codec = codec.on(settings.grid(codec.entry.grid))
        codecs[name] = codec
    if settings.of_text and not any(isinstance(codec.entry, WindowEntry) for codec in codecs.values()):
        raise UsageFault(
            f"{settings.of_text[0]}: expected a text codec, found {', '.join(codecs)}; give a text codec with "
            "--codec, or remove this flag"
        )
    if new and source is not None:
        _wanted(settings, source, codecs)
    return codecs


def _wanted(
    settings: EncodeSettings, source: ShardFolder, codecs: Mapping[str, Codec]
) -> tuple[tuple[CodecEntry, ...], tuple[str, ...]]:
    """Return the entries of the codecs to run, and the names of the codecs whose existing latents are kept.

    The entry of a text codec also counts windows: all, those with cut text, and those with unknown letters.
    """
    entries = {name: _entry(codec, source) for name, codec in codecs.items()}
    there = _there(settings, source, entries)
    left = [entry for name, entry in entries.items() if name not in there]
    for entry in left:
        _refuse_absent(entry, source)
    return tuple(_counted(entry, codecs[entry.name], source, settings) for entry in left), there


def _refuse_absent(entry: CodecEntry, source: ShardFolder) -> None:
    """Raise UsageFault if samples lack a part that the codec reads.

    Absent frames cannot be encoded, because they are NaN. Absent words would be encoded as empty texts, as if nobody
    spoke. These texts would change the statistics of the latents.
    """
    parts = _READ_PARTS[entry.source]
    lacking = [row for row in source.rows if not set(parts) <= set(row.present)]
    if not lacking:
        return
    first = lacking[0]
    named = ", ".join(part for part in parts if part not in first.present)
    raise UsageFault(
        f"{source.folder}: expected every sample to have the parts that {entry.name} reads ({', '.join(parts)}), "
        f"found {len(lacking)} of {len(source.rows)} samples that lack some (for example {first.key} without "
        f"{named}); write the complete samples to new shards with omniges.open_shards and omniges.write_shards"
    )


def _counted(entry: CodecEntry, codec: Codec, source: ShardFolder, settings: EncodeSettings) -> CodecEntry:
    """Return the entry of a text codec with counts of lost text, and any other entry unchanged.

    Raises DataError if too many windows would lose text, or if all clips are shorter than a window. This check comes
    before the first clip is encoded.
    """
    if not isinstance(entry, WindowEntry):
        return entry
    texts = cast("WindowCodec", codec)
    lost = [one for row in source.rows for one in texts.lost(texts.texts(source.words(row), row.ticks))]
    if not lost:
        longest = max((row.ticks for row in source.rows), default=0)
        raise DataError(
            f"{source.folder}: expected a clip of at least {entry.window_ticks} ticks (one window), found at "
            f"most {longest}; choose a shorter --window-ticks"
        )
    counts = {"windows": len(lost), "cut": sum(x.cut for x in lost), "unknown": sum(x.unknown for x in lost)}
    share = sum(x.cut or x.unknown for x in lost) / len(lost)
    limit = DEFAULT_MAX_LOST if settings.max_lost is None else settings.max_lost
    if share > limit:
        raise DataError(
            f"{source.folder}: expected {entry.name} to lose text in at most {limit:.3g} of the windows "
            f"(--max-lost), found {share:.3g}: {_losses(counts)}; use a shorter --window-ticks, or shards in "
            "languages that the codec can spell"
        )
    return replace(entry, lost=counts)


def _losses(counts: Mapping[str, int]) -> str:
    return (
        f"of {counts['windows']} windows, {counts['cut']} have more text than the codec reads, and "
        f"{counts['unknown']} have letters that it cannot spell"
    )


def _entry(codec: Codec, source: ShardFolder) -> CodecEntry:
    """Return the codec's entry with added settings: package versions, the device and, for audio, the loudness."""
    packages = _PACKAGES.get(codec.entry.source, ("torch", "diffusers"))
    tool = {name: metadata.version(name) for name in packages}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    more: dict[str, Any] = {"tool": tool | {"device": device}}
    if codec.entry.source == "mel.npy":
        more["loudness"] = loudness_of(source.dataset, source.folder)
    return replace(codec.entry, settings=dict(codec.entry.settings) | more)


def _there(settings: EncodeSettings, source: ShardFolder, entries: Mapping[str, CodecEntry]) -> tuple[str, ...]:
    """Return the names of the codecs whose existing latents are kept.

    With --overwrite, return no names. Raises UsageFault if existing latents were made by another codec or for other
    windows. Also raises UsageFault if all latents exist already and --output-dir is another folder.
    """
    if settings.overwrite:
        return ()
    for name, entry in entries.items():
        found = source.codecs.get(name)
        if found is not None and found.fingerprint != entry.fingerprint:
            raise UsageFault(
                f"{source.folder}: expected latents of {name} with fingerprint {entry.fingerprint[:16]}…, found "
                f"latents with {found.fingerprint[:16]}…; name the folder of that codec, or replace the latents "
                "with --overwrite"
            )
        if found is not None and not found.same_codec(entry):
            raise UsageFault(
                f"{source.folder}: expected latents of {name} with {entry.described}, found {found.described}; "
                "use those windows, or replace the latents with --overwrite"
            )
    there = tuple(name for name in entries if name in source.codecs)
    if len(there) == len(entries) and not settings.in_place:
        raise UsageFault(
            f"{settings.shards}: expected shards without latents of {', '.join(there)}, found these latents already; "
            "a copy would add nothing, so remove --output-dir"
        )
    return there


def _complete(target: Path, source: ShardFolder, entries: Mapping[str, CodecEntry], elapsed_s: float) -> EncodeSummary:
    """Return the summary of a finished output folder; raise UsageFault if it belongs to other shards or codecs."""
    found = ShardFolder(target)
    wanted = source.codecs | dict(entries)
    members = {entry.member for entry in entries.values()}
    same = found.codecs.keys() == wanted.keys() and all(found.codecs[name].same_codec(wanted[name]) for name in wanted)
    if not same or _hash_without(found.rows, members) != _hash_without(source.rows, members):
        raise UsageFault(
            f"{target}: expected no shards, or those of an earlier run of this command, found shards of other "
            "recordings or codecs; choose another --output-dir"
        )
    return _summary(found, (), tuple(entries), elapsed_s)


def _hash_without(rows: Sequence[ManifestRow], members: set[str]) -> str:
    """Return the manifest hash of all rows, computed as if their samples did not have the given members."""
    return manifest_hash(
        [
            replace(row, members={name: place for name, place in row.members.items() if name not in members})
            for row in rows
        ]
    )


def _summary(
    folder: ShardFolder, encoded: tuple[CodecEntry, ...], there: tuple[str, ...], elapsed_s: float, resumed: int = 0
) -> EncodeSummary:
    totals = folder.dataset["totals"]
    return EncodeSummary(
        folder=folder.folder,
        encoded=encoded,
        there=there,
        samples=totals["samples"],
        seconds=totals["seconds"],
        elapsed_s=elapsed_s,
        resumed=resumed,
        loudness=(),
        manifest_hash=folder.dataset["manifest_hash"],
    )


def _loudness(entries: Sequence[CodecEntry], codecs: Mapping[str, Codec]) -> tuple[str, ...]:
    """Return a warning for each codec whose training audio had another loudness than the audio in the shards."""
    found = []
    for entry in entries:
        codec, own = codecs[entry.name], entry.settings.get("loudness")
        if isinstance(codec, LoudnessCodec) and own is not None and own != codec.loudness:
            found.append(
                f"{entry.name}: it was trained on --loudness {codec.loudness}, these shards have {own} "
                f"(omniges preprocess --loudness {codec.loudness})"
            )
    return tuple(found)


@dataclass(slots=True)
class _Written:
    """A finished shard of the new set in the workspace."""

    path: Path
    size: int
    sha256: str
    rows: list[ManifestRow]


@dataclass(frozen=True, slots=True)
class _Job:
    """A run of `encode`: it writes shards with latents to the workspace, and then replaces the old shards."""

    source: ShardFolder
    workspace: Workspace
    codecs: Mapping[str, Codec]
    entries: Sequence[CodecEntry]  # entries of the codecs to run
    statistics: dict[str, PartialSpool] = field(default_factory=dict)  # of the train samples' latents, by codec

    def run(self, count: Count) -> int:
        """Encode the shards that are not finished yet, and commit the new set.

        Args:
            count: Function that is called with the finished and the total seconds of recordings.

        Returns:
            Number of shards that an earlier run of the same command finished.
        """
        workspace, source = self.workspace, self.source
        codecs = {entry.name: entry.as_json() for entry in self.entries}
        settings = {"encode": {"manifest_hash": source.dataset["manifest_hash"], "codecs": codecs}}
        begun = UnfinishedRun(
            json.loads(canonical_json(settings)), tool_versions(), anew=False
        )  # everything that affects output
        self._check_names()
        earlier = workspace.begun()
        if earlier is not None and earlier != begun:
            raise UsageFault(
                f"{workspace.folder}: expected an unfinished run of this command, found one of another command or "
                "codec; finish that other run, or remove this folder"
            )
        if earlier is None:
            workspace.wipe()
        needed = sum(shard["bytes"] for shard in source.dataset["shards"].values())
        free = shutil.disk_usage(workspace.out).free
        if free < needed:
            raise EnvironmentFault(
                f"{workspace.out}: expected over {needed / 1e9:.1f} GB of free space, found {free / 1e9:.1f} GB; "
                "free some space, or choose another --output-dir"
            )
        workspace.begin(begun)
        rows: dict[str, list[ManifestRow]] = {name: [] for name in source.dataset["shards"]}
        for row in source.rows:
            rows[row.shard].append(row)
        done = self._journalled(rows)
        for written in done.values():
            self._gather_again(written)
        resumed = len(done)
        finished = sum(row.seconds for name in done for row in rows[name])
        total = sum(row.seconds for row in source.rows)

        def report(row: ManifestRow) -> None:
            nonlocal finished
            finished += row.seconds
            count(int(finished), int(total))

        workspace.journal.open()
        try:
            for name, own in rows.items():
                if name not in done:
                    path = workspace.folder / staged_name(workspace.free_index())
                    written = done[name] = self._write(path, own, report)
                    line = {"shard": name, "staged": path.name, "bytes": written.size, "sha256": written.sha256}
                    line["rows"] = [asdict(row) for row in written.rows]
                    workspace.journal.append(line, durable=True)
        finally:
            workspace.journal.close()
        self._finish({name: done[name] for name in rows})
        return resumed

    def _check_names(self) -> None:
        for entry in self.entries:
            for row in self.source.rows:
                if len(row.key) + 1 + len(entry.member) > _MAX_NAME_BYTES:
                    raise DataError(
                        f"{self.source.folder}: {row.key}.{entry.member}: expected a name of at most {_MAX_NAME_BYTES} "
                        "bytes (as in a tar header), found a longer one; preprocess this recording under a shorter name"
                    )

    def _journalled(self, rows: Mapping[str, Sequence[ManifestRow]]) -> dict[str, _Written]:
        """Return the shards that an earlier run of the same command finished, except those whose bytes changed."""
        found = {}
        for line in self.workspace.journal.load():
            path = self.workspace.folder / line["staged"]
            own = [row_from_json(row) for row in line["rows"]]
            if not self._are_encoded(own, rows.get(line["shard"], ())):
                continue
            if path.is_file() and file_sha256(path) == line["sha256"]:
                found[line["shard"]] = _Written(path, line["bytes"], line["sha256"], own)
        return found

    def _are_encoded(self, found: Sequence[ManifestRow], rows: Sequence[ManifestRow]) -> bool:
        """Return whether journal rows (`found`) describe the same samples as `rows`, and include the new latents."""
        same = [replace(row, members={}) for row in found] == [replace(row, members={}) for row in rows]
        return same and all(entry.member in row.members for row in found for entry in self.entries)

    def _gather_again(self, shard: _Written) -> None:
        """Read the latents in a shard that an earlier run finished, and add them to the statistics."""
        with open_regular(shard.path) as stream:
            for row in shard.rows:
                for entry in self.entries:
                    place = row.members[entry.member]
                    data = read_range(stream.fileno(), place.offset, place.size)
                    self._gather(entry, row, self.source.array_of(row, entry.member, data))

    def _gather(self, entry: CodecEntry, row: ManifestRow, latents: Any) -> None:
        """Add a sample's latents to the statistics, if it is in the train split and long enough to have latents."""
        if row.split == "train" and len(latents):
            spool = self.statistics.setdefault(entry.name, PartialSpool(folder=self.workspace.out))
            spool.append((partial_of(entry.vectors(latents)),))

    def _write(self, path: Path, rows: Sequence[ManifestRow], report: Callable[[ManifestRow], None]) -> _Written:
        """Write one shard with latents."""
        placed: list[ManifestRow] = []
        with PendingFile(path) as pending:
            unflushed = 0
            for row in rows:
                members = self._members(row)
                segment = build_segment(row.key, members)
                places = {
                    member: MemberPlace(
                        pending.size + segment.data_offsets[member], segment.data_sizes[member], sha256_hex(*pieces)
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
                report(row)
            pending.write(END_OF_ARCHIVE)
            size, digest = pending.size, pending.sha256
        return _Written(path, size, digest, placed)

    def _members(self, row: ManifestRow) -> dict[str, tuple[bytes | memoryview, ...]]:
        """Return all members of a sample in order: the existing members, read and checked, and the new latents."""
        new = {entry.member for entry in self.entries}
        found: dict[str, tuple[bytes | memoryview, ...]] = {
            member: (self.source.member(row, member),) for member in row.members if member not in new
        }
        for entry in self.entries:
            source = row.contract.words if entry.source == WORDS_MEMBER else entry.source
            latents = self._encoded(self.codecs[entry.name], row, source, b"".join(found[source]))
            expected = entry.shape_of(row)
            if latents.shape != expected or latents.dtype != np.float32:
                raise RuntimeError(f"{entry.name}: expected {expected} float32, found {latents.shape} {latents.dtype}")
            if not np.isfinite(latents).all():
                raise DataError(
                    f"{self.source.folder / row.shard}: {row.key}.{source}: expected finite latents of {entry.name}, "
                    "found NaN or infinite values; run omniges verify-shards --level deep, or use another codec"
                )
            self._gather(entry, row, latents)
            found[entry.member] = npy_parts(np.ascontiguousarray(latents))
        return {member: found[member] for member in sorted(found, key=member_order)}

    def _encoded(self, codec: Codec, row: ManifestRow, member: str, data: bytes) -> Any:
        """Return the latents of a sample, given the bytes (`data`) of the member that the codec reads."""
        try:
            if isinstance(codec.entry, WindowEntry):
                return codec.encode(self.source.words_in(row, data), row.ticks)
            return codec.encode(self.source.array_of(row, member, data))
        except RuntimeError as error:  # torch has an error class for GPU memory, but none for host memory
            if not isinstance(error, torch.OutOfMemoryError) and "alloc" not in str(error):
                raise
            raise EnvironmentFault(
                f"{row.key}: expected enough memory for {codec.entry.name} to encode {row.seconds:.0f} s in one "
                "piece, found too little; use a machine with more memory"
            ) from error

    def _finish(self, shards: Mapping[str, _Written]) -> None:
        """Write the other files of the shard set, with dataset.json last; then replace the old set by the new set."""
        source, folder = self.source, self.workspace.folder
        rows = [row for shard in shards.values() for row in shard.rows]
        codecs = dict(sorted((source.codecs | {entry.name: entry for entry in self.entries}).items()))
        latents = latents_document(self.entries, self.statistics)
        contents = {name: read_beside(source.folder, name, source.dataset) for name in source.dataset["files"]}
        there = contents.get(LATENTS_FILE)
        kept = {} if there is None else parse_document(there, str(source.folder / LATENTS_FILE))
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
        self.workspace.commit({name: shard.path for name, shard in shards.items()})
