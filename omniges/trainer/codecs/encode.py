"""`encode`: a codec's latents as further members of a shard folder, so that training never runs the codec.

Shards keep their names and boundaries; each is written anew with the latents behind every sample's other members.
The new set is made in the folder's workspace, shard by shard with a journal, and takes its place by the same renames
as that of `preprocess`: it is whole or not there, and after a kill the same command goes on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from omniges.errors import UsageFault
from omniges.publish import locked, make_folder
from omniges.shards.codecs import CodecEntry
from omniges.shards.commit import finish_commit
from omniges.shards.manifest import ManifestRow, manifest_hash
from omniges.shards.reader import ShardFolder
from omniges.shards.schema import DATASET_FILE
from omniges.shards.workspace import Workspace, refuse_foreign
from omniges.trainer.codecs.codec import Codec, load_codec
from omniges.trainer.codecs.encoding import Count, EncodeJob

__all__ = ["EncodeSettings", "EncodeSummary", "encode"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeSettings:
    """All that `omniges encode` can be told."""

    shards: Path
    codecs: tuple[tuple[str, Path], ...]  # name and folder
    out: Path | None = None  # None: the shards themselves
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be, by the name of the flag."""
        names = [name for name, _ in self.codecs]
        twice = [name for name in names if names.count(name) > 1]
        if not names or twice:
            raise UsageFault(f"--with: each codec once expected, found {', '.join(twice[:1]) or 'none'}")

    @property
    def target(self) -> Path:
        """Where the shards with latents will lie."""
        return self.shards if self.out is None else self.out

    @property
    def in_place(self) -> bool:
        """Whether the shards themselves are replaced."""
        return self.target.resolve() == self.shards.resolve()


@dataclass(frozen=True, slots=True)
class EncodeSummary:
    """What came of it."""

    folder: Path
    encoded: tuple[CodecEntry, ...]
    there: tuple[str, ...]  # codecs whose latents were there already
    samples: int
    seconds: float
    elapsed_s: float
    resumed: int  # shards that a stopped run had finished
    manifest_hash: str
    remarks: tuple[str, ...] = ()

    @property
    def lines(self) -> list[str]:
        """For a person."""
        found = [f"{name}: its latents are in {self.folder} already" for name in self.there]
        if self.encoded:
            names = ", ".join(entry.name for entry in self.encoded)
            pace = f"{self.seconds / self.elapsed_s:.1f} times real time" if self.elapsed_s else ""
            found.append(f"{names}: latents of {self.samples} samples ({self.seconds:.0f} s) in {self.folder}, {pace}")
            if self.resumed:
                found.append(f"{self.resumed} shards were there from a run that was stopped")
        found += self.remarks
        return [*found, f"manifest hash {self.manifest_hash[:16]}…"]


def encode(settings: EncodeSettings, count: Count = lambda _done, _total: None) -> EncodeSummary:
    """Add the latents; `count` hears of seconds of audio and motion that are done.

    Raises UsageFault, DataError or EnvironmentFault; what was there stays as it is until the new set is complete, and
    finished shards are kept for the next run of the same command.
    """
    began = time.monotonic()
    target = settings.target
    codecs = _loaded(settings)
    if not settings.in_place:
        make_folder(target)
    workspace = Workspace(target)
    with locked(target):
        refuse_foreign(target, workspace)
        finish_commit(workspace)
        source = ShardFolder(settings.shards)
        entries = {name: _entry(codec, source) for name, codec in codecs.items()}
        if not settings.in_place and (target / DATASET_FILE).exists():
            return _complete(target, source, entries, time.monotonic() - began)
        there = _there(settings, source, entries)
        if len(there) == len(entries):
            if workspace.begun() is None:  # what a kill left of a finished run; another's unfinished work stays
                workspace.wipe()
            return _summary(source, (), there, time.monotonic() - began)
        wanted = tuple(entry for name, entry in entries.items() if name not in there)
        job = EncodeJob(source, workspace, {entry.name: codecs[entry.name] for entry in wanted}, wanted)
        resumed = job.run(count)
        summary = _summary(ShardFolder(target), wanted, there, time.monotonic() - began)
        return replace(summary, resumed=resumed, remarks=_remarks(wanted))


def _loaded(settings: EncodeSettings) -> dict[str, Codec]:
    """The codecs; whatever of shards and codecs can be refused is, before a folder is made for the result."""
    target = settings.target
    new = not settings.in_place and not (target / DATASET_FILE).exists()
    source = None if settings.in_place and target.is_dir() else ShardFolder(settings.shards)
    codecs = {name: load_codec(name, folder) for name, folder in settings.codecs}
    if new and source is not None:
        _there(settings, source, {name: _entry(codec, source) for name, codec in codecs.items()})
    return codecs


def _entry(codec: Codec, source: ShardFolder) -> CodecEntry:
    """The codec's entry, with what else decided the latents."""
    convert = source.dataset["settings"].get("convert", {})
    tool = {name: metadata.version(name) for name in ("torch", "diffusers")}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    more: dict[str, Any] = {"tool": tool | {"device": device}}
    if codec.entry.source == "mel.npy":
        more["loudness"] = convert.get("loudness")
    return replace(codec.entry, settings=dict(codec.entry.settings) | more)


def _remarks(entries: Sequence[CodecEntry]) -> tuple[str, ...]:
    return tuple(
        f"{entry.name}: these shards have the loudness of their recordings; its authors trained on a peak of 0.5 "
        "(omniges preprocess --loudness peak)"
        for entry in entries
        if entry.source == "mel.npy" and entry.settings.get("loudness") == "none"
    )


def _same(one: CodecEntry, other: CodecEntry) -> bool:
    """Whether two entries are of one codec; versions and devices may differ."""
    return replace(one, settings={}) == replace(other, settings={})


def _there(settings: EncodeSettings, source: ShardFolder, entries: Mapping[str, CodecEntry]) -> tuple[str, ...]:
    """The codecs whose latents are there and stay.

    Raises UsageFault where they are another codec's, or where nothing is left to do for a folder of its own.
    """
    if settings.overwrite:
        return ()
    for name, entry in entries.items():
        found = source.codecs.get(name)
        if found is not None and not _same(found, entry):
            raise UsageFault(
                f"{source.folder}: it holds latents of another {name}, fingerprint {found.fingerprint[:16]}… and not "
                f"{entry.fingerprint[:16]}…: name that codec's folder, or replace them with --overwrite"
            )
    there = tuple(name for name in entries if name in source.codecs)
    if len(there) == len(entries) and not settings.in_place:
        raise UsageFault(f"{settings.shards}: {', '.join(there)}: its latents are there: leave --out away")
    return there


def _complete(target: Path, source: ShardFolder, entries: Mapping[str, CodecEntry], elapsed_s: float) -> EncodeSummary:
    """What a finished --out comes to; raises UsageFault where it is not of these shards and codecs."""
    found = ShardFolder(target)
    wanted = source.codecs | dict(entries)
    members = {entry.member for entry in entries.values()}
    same = found.codecs.keys() == wanted.keys() and all(_same(found.codecs[name], wanted[name]) for name in wanted)
    if not same or _hash_without(found.rows, members) != _hash_without(source.rows, members):
        raise UsageFault(f"{target}: shards of other recordings or codecs are there. Choose another --out")
    return _summary(found, (), tuple(entries), elapsed_s)


def _hash_without(rows: Sequence[ManifestRow], members: set[str]) -> str:
    """The manifest hash as it is without some members."""
    kept = [
        replace(row, members={name: place for name, place in row.members.items() if name not in members})
        for row in rows
    ]
    return manifest_hash(kept)


def _summary(
    folder: ShardFolder, encoded: tuple[CodecEntry, ...], there: tuple[str, ...], elapsed_s: float
) -> EncodeSummary:
    totals = folder.dataset["totals"]
    return EncodeSummary(
        folder=folder.folder,
        encoded=encoded,
        there=there,
        samples=totals["samples"],
        seconds=totals["seconds"],
        elapsed_s=elapsed_s,
        resumed=0,
        manifest_hash=folder.dataset["manifest_hash"],
    )
