"""The manifest: parsed without trust, held against dataset.json, and turned into a plan for each shard."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from omniges.features import timebase
from omniges.shards.manifest import (
    SOURCES,
    ManifestRow,
    column_of,
    latent_members,
    manifest_hash,
    parse_manifest,
    row_problem,
)
from omniges.shards.schema import LATENT_MEMBER, MANIFEST_FILE, OPTIONAL_MEMBERS, SPLITS, key_from_stem
from omniges.shards.tar import END_OF_ARCHIVE
from omniges.verify.dataset import Inventory
from omniges.verify.findings import Collector, VerifyFinding
from omniges.verify.tar_walk import ShardPlan

_ROW_BYTES: Final = 16 << 10  # what a row may unpack to on average


def read_rows(data: bytes, samples: int, out: Collector) -> list[ManifestRow] | None:
    """The rows, or None after a finding; `samples` is how many dataset.json promises."""
    import pyarrow as pa  # noqa: PLC0415 - 0.3 s that level quick does not pay
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        facts = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False).metadata
        unpacked = sum(facts.row_group(k).total_byte_size for k in range(facts.num_row_groups))
        if facts.num_rows != samples:
            out.add("manifest-shards", f"{facts.num_rows} rows", f"{samples} samples")
            return None
        if not 0 <= unpacked <= _ROW_BYTES * samples + (1 << 20):
            out.add("manifest-unreadable", f"rows that unpack to {unpacked} bytes", f"{samples} rows of some kB")
            return None
        rows = parse_manifest(data)
        torn = _torn_places(data)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        out.add("manifest-unreadable", f"{type(error).__name__}: {error}", "a manifest of the contract")
        return None
    if torn:
        out.add("manifest-malformed", f"{torn}: values of a part that is not there", "all of a part's columns or none")
    wrong = [(row, problem) for row in rows for problem in [row_problem(row)] if problem]
    for row, problem in wrong:
        out.add("manifest-malformed", problem, key=row.key)
    return None if wrong or torn else rows


def _torn_places(data: bytes) -> str:
    """The first column that holds a value where a column beside it says that the part is absent, or nothing."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    groups = [[f"{source}_path", f"{source}_sha256"] for source in SOURCES]
    file = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False)
    for member in (*OPTIONAL_MEMBERS, *latent_members(file.schema_arrow.names)):
        column = column_of(member)
        groups.append([f"{column}_offset", f"{column}_size", f"{column}_sha256"])
    table = file.read(columns=[name for group in groups for name in group], use_threads=False)
    for first, *others in groups:
        absent = table.column(first).is_null()
        torn = [name for name in others if not table.column(name).is_null().equals(absent)]
        if torn:
            return torn[0]
    return ""


def check_rows(
    rows: Sequence[ManifestRow], inventory: Inventory
) -> tuple[dict[str, list[ManifestRow]], list[VerifyFinding]]:
    """Hold the rows against themselves and dataset.json; the rows of each shard whose layout is possible."""
    out = Collector(MANIFEST_FILE)
    _check_unique(rows, out)
    _check_each(rows, out)
    _check_latents(rows, inventory, out)
    _check_packing(rows, out)
    shards: dict[str, list[ManifestRow]] = defaultdict(list)
    for row in rows:
        shards[row.shard].append(row)
    _check_shards(shards, inventory, out)
    if not out.failed:
        _check_document(rows, inventory, out)
    planned = {}
    for name, listed in inventory.shards.items():
        own = sorted(shards.get(name, []), key=lambda row: row.members["json"].offset)
        plan = ShardPlan.of_rows(own)
        gap = plan.gap()
        if gap is not None:
            first, position = gap
            found = f"{name}: offset {first.offset}"
            out.add("manifest-layout", found, f"{position}", key=first.key, member=first.member)
        elif own and plan.end + len(END_OF_ARCHIVE) != listed.size:
            end = plan.end + len(END_OF_ARCHIVE)
            out.add("manifest-layout", f"{name}: the members end at {end}", f"{listed.size} bytes")
        elif own:
            planned[name] = own
    return planned, out.finish()


def _check_latents(rows: Sequence[ManifestRow], inventory: Inventory, out: Collector) -> None:
    """Every sample has the latents of every codec that dataset.json names, and no others."""
    wanted = {entry.member for entry in inventory.codecs.values()}
    for row in rows:
        found = {member for member in row.members if LATENT_MEMBER.fullmatch(member)}
        if found != wanted:
            texts = (", ".join(sorted(members)) or "no latents" for members in (found, wanted))
            out.add("manifest-latents", *texts, key=row.key)


def _check_unique(rows: Sequence[ManifestRow], out: Collector) -> None:
    for name in ("key", "stem"):
        seen: set[str] = set()
        for row in rows:
            value = getattr(row, name)
            if value in seen:
                out.add("manifest-key-twice", f"{name} {value!r} again in {row.shard}", "once", key=row.key)
            seen.add(value)


def _check_each(rows: Sequence[ManifestRow], out: Collector) -> None:
    for row in rows:
        if key_from_stem(row.stem) != row.key:
            out.add("key-not-of-stem", f"stem {row.stem!r}", key_from_stem(row.stem), key=row.key)
        found = (row.mel_frames, row.ticks, row.seconds)
        frames = row.frames
        wanted = (timebase.mel_frames_for(frames), timebase.ticks_of_frames(frames), timebase.seconds_of_frames(frames))
        if found != wanted:
            texts = (f"mel frames, ticks, seconds {values} of {frames} frames" for values in (found, wanted))
            out.add("row-arithmetic", *texts, key=row.key)
        if {"flac", "audio.npy"} <= row.members.keys():
            out.add("waveform-invalid", "flac and audio.npy", "one of them", key=row.key)


def _check_packing(rows: Sequence[ManifestRow], out: Collector) -> None:
    places = [(row.shard, row.members["json"].offset) for row in rows]
    for before, after, row in zip(places, places[1:], rows[1:], strict=False):
        if after <= before:
            out.add("manifest-order", f"a row of {after} after one of {before}", "ascending", key=row.key)
            return
    last: dict[str, str] = {}
    for row in rows:
        if row.key <= last.get(row.split, ""):
            out.add("manifest-order", f"{row.key} after {last[row.split]}", "keys ascending in a split", key=row.key)
            return
        last[row.split] = row.key


def _check_shards(shards: dict[str, list[ManifestRow]], inventory: Inventory, out: Collector) -> None:
    for name in sorted(shards.keys() | inventory.shards.keys()):
        own, listed = shards.get(name, []), inventory.shards.get(name)
        if listed is None:
            out.add("manifest-shards", f"{len(own)} rows in {name}", "a shard of dataset.json", key=own[0].key)
        elif len(own) != listed.samples:
            out.add("manifest-shards", f"{len(own)} rows in {name}", f"{listed.samples} samples")
        elif any(row.split != listed.split for row in own):
            wrong = next(row for row in own if row.split != listed.split)
            out.add("manifest-shards", f"split {wrong.split} in {name}", listed.split, key=wrong.key)


def _check_document(rows: Sequence[ManifestRow], inventory: Inventory, out: Collector) -> None:
    """Totals and manifest hash, recomputed."""
    document = inventory.document
    splits = {split: _totals([row for row in rows if row.split == split]) for split in SPLITS}
    for name, wanted in (("totals", _totals(rows)), ("splits", splits)):
        given = document.get(name)
        if isinstance(given, dict):
            given = {field: value for field, value in given.items() if field != "cut"}
        if given != wanted:
            out.add("manifest-totals", f"{name}: {given!r}", f"{wanted!r}")
    digest = manifest_hash(rows)
    if document.get("manifest_hash") != digest:
        out.add("manifest-hash", f"{document.get('manifest_hash')}", digest)


def _totals(rows: Sequence[ManifestRow]) -> dict[str, float | int]:
    counts = ("frames", "mel_frames", "ticks", "words")
    sums = {name: sum(getattr(row, name) for row in rows) for name in counts}
    return {"samples": len(rows), "seconds": math.fsum(row.seconds for row in rows)} | sums


def check_recordings(rows: Sequence[ManifestRow]) -> list[VerifyFinding]:
    """No recording in two splits, by content and by source; twice in one split is a note."""
    out = Collector(MANIFEST_FILE)
    identities: tuple[Callable[[ManifestRow], Any], ...] = (
        lambda row: (row.members["gesture.npy"].sha256, row.members["mel.npy"].sha256),
        lambda row: (row.sources["npz"][1], row.sources["wav"][1]),
    )
    told: set[str] = set()
    for identity in identities:
        for first, again in _repeated(rows, identity):
            if again.key not in told:
                code = "recording-in-two-splits" if first.split != again.split else "recording-twice"
                found = f"{again.key} in {again.split} is {first.key} in {first.split}"
                out.add(code, found, "each recording once", key=again.key)
                told.add(again.key)
    return out.finish()


def _repeated(
    rows: Sequence[ManifestRow], identity: Callable[[ManifestRow], Any]
) -> Iterator[tuple[ManifestRow, ManifestRow]]:
    """Rows that share an identity with an earlier one; one of another split first, where there is one."""
    first: dict[Any, list[ManifestRow]] = defaultdict(list)
    for row in rows:
        earlier = first[identity(row)]
        if earlier:
            yield next((other for other in earlier if other.split != row.split), earlier[0]), row
        if all(other.split != row.split for other in earlier):
            earlier.append(row)
