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
from typing import Any, Final, cast

import torch

from omniges.codecs.base import Codec, End, WindowCodec
from omniges.codecs.encode_job import Count, EncodeJob
from omniges.codecs.registry import load_codec
from omniges.codecs.settings import DEFAULT_MAX_LOST, EncodeSettings
from omniges.errors import DataError, UsageFault
from omniges.shards.latents import CodecEntry, WindowEntry
from omniges.shards.manifest import ManifestRow, manifest_hash
from omniges.shards.reader import ShardFolder
from omniges.shards.schema import DATASET_FILE
from omniges.shards.transaction import Workspace, finish_commit
from omniges.storage.atomic import locked, make_folder

_PACKAGES: Final = {"words.json": ("torch", "transformers", "tokenizers")}
"""Whose versions may decide the last bits of latents, by what they are made of."""
_ENCODE: Final[frozenset[End]] = frozenset({"encode"})


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
        workspace.refuse_foreign()
        finish_commit(workspace)
        source = ShardFolder(settings.shards)
        if not settings.in_place and (target / DATASET_FILE).exists():
            entries = {name: _entry(codec, source) for name, codec in codecs.items()}
            return _complete(target, source, entries, time.monotonic() - began)
        wanted, there = _wanted(settings, source, codecs)
        if not wanted:
            if workspace.begun() is None:  # what a kill left of a finished run; another's unfinished work stays
                workspace.wipe()
            return _summary(source, (), there, time.monotonic() - began)
        job = EncodeJob(source, workspace, {entry.name: codecs[entry.name] for entry in wanted}, wanted)
        resumed = job.run(count)
        summary = _summary(ShardFolder(target), wanted, there, time.monotonic() - began)
        return replace(summary, resumed=resumed, remarks=_remarks(wanted))


def _loaded(settings: EncodeSettings) -> dict[str, Codec]:
    """The codecs, that of text over the windows that were asked for.

    Whatever of shards and codecs can be refused is, before a folder is made for the result.
    """
    target = settings.target
    new = not settings.in_place and not (target / DATASET_FILE).exists()
    source = None if settings.in_place and target.is_dir() else ShardFolder(settings.shards)
    codecs = {
        name: _on_windows(load_codec(name, folder, t5_tokenizer=settings.t5_tokenizer, ends=_ENCODE), settings)
        for name, folder in settings.codecs
    }
    if settings.of_text and not any(isinstance(codec.entry, WindowEntry) for codec in codecs.values()):
        raise UsageFault(f"{settings.of_text[0]}: it goes with a codec of text, --with omniflow-text-vae=FOLDER")
    if new and source is not None:
        _wanted(settings, source, codecs)
    return codecs


def _wanted(
    settings: EncodeSettings, source: ShardFolder, codecs: Mapping[str, Codec]
) -> tuple[tuple[CodecEntry, ...], tuple[str, ...]]:
    """Entries of what is to be computed, with what their texts lose, and the codecs whose latents are there."""
    entries = {name: _entry(codec, source) for name, codec in codecs.items()}
    there = _there(settings, source, entries)
    left = [entry for name, entry in entries.items() if name not in there]
    return tuple(_counted(entry, codecs[entry.name], source, settings) for entry in left), there


def _on_windows(codec: Codec, settings: EncodeSettings) -> Codec:
    """The codec, over the windows that were asked for where it is one of text."""
    return codec.on(settings.grid(codec.entry.grid)) if isinstance(codec.entry, WindowEntry) else codec


def _counted(entry: CodecEntry, codec: Codec, source: ShardFolder, settings: EncodeSettings) -> CodecEntry:
    """The entry with what its texts lose; raises DataError before any work where that is too much."""
    if not isinstance(entry, WindowEntry):
        return entry
    texts = cast("WindowCodec", codec)
    lost = [one for row in source.rows for one in texts.lost(texts.texts(source.words(row), row.ticks))]
    if not lost:
        longest = max((row.ticks for row in source.rows), default=0)
        raise DataError(
            f"{source.folder}: no clip has a window of {entry.window_ticks} ticks, the longest has {longest}: choose "
            "a shorter --window-ticks"
        )
    counts = {"windows": len(lost), "cut": sum(x.cut for x in lost), "unknown": sum(x.unknown for x in lost)}
    share = sum(x.cut or x.unknown for x in lost) / len(lost)
    limit = DEFAULT_MAX_LOST if settings.max_lost is None else settings.max_lost
    if share > limit:
        raise DataError(
            f"{source.folder}: {entry.name} would lose words of {100 * share:.3g} % of the windows, more than "
            f"--max-lost {limit:g}: {_losses(counts)}: take a shorter --window-ticks, or shards of languages that T5 "
            "can spell"
        )
    return replace(entry, lost=counts)


def _losses(counts: Mapping[str, int]) -> str:
    return (
        f"of {counts['windows']} windows, {counts['cut']} have more text than T5's 76 tokens, {counts['unknown']} "
        "letters that it cannot spell"
    )


def _entry(codec: Codec, source: ShardFolder) -> CodecEntry:
    """The codec's entry, with what else decided the latents."""
    convert = source.dataset["settings"].get("convert", {})
    packages = _PACKAGES.get(codec.entry.source, ("torch", "diffusers"))
    tool = {name: metadata.version(name) for name in packages}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    more: dict[str, Any] = {"tool": tool | {"device": device}}
    if codec.entry.source == "mel.npy":
        more["loudness"] = convert.get("loudness")
    return replace(codec.entry, settings=dict(codec.entry.settings) | more)


def _remarks(entries: Sequence[CodecEntry]) -> tuple[str, ...]:
    loud = tuple(
        f"{entry.name}: these shards have the loudness of their recordings; its authors trained on a peak of 0.5 "
        "(omniges preprocess --loudness peak)"
        for entry in entries
        if entry.source == "mel.npy" and entry.settings.get("loudness") == "none"
    )
    return loud + tuple(f"{x.name}: {_losses(x.lost)}" for x in entries if isinstance(x, WindowEntry))


def _there(settings: EncodeSettings, source: ShardFolder, entries: Mapping[str, CodecEntry]) -> tuple[str, ...]:
    """The codecs whose latents are there and stay.

    Raises UsageFault where they are another codec's, or where nothing is left to do for a folder of its own.
    """
    if settings.overwrite:
        return ()
    for name, entry in entries.items():
        found = source.codecs.get(name)
        if found is not None and found.fingerprint != entry.fingerprint:
            raise UsageFault(
                f"{source.folder}: it holds latents of another {name}, fingerprint {found.fingerprint[:16]}… and not "
                f"{entry.fingerprint[:16]}…: name that codec's folder, or replace them with --overwrite"
            )
        if found is not None and not found.same_codec(entry):
            raise UsageFault(
                f"{source.folder}: it holds latents of {name}, {found.described} and not {entry.described}: ask for "
                "what is there, or replace them with --overwrite"
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
    same = found.codecs.keys() == wanted.keys() and all(found.codecs[name].same_codec(wanted[name]) for name in wanted)
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
