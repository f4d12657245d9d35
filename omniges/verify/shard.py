"""One shard at a level: a look at its ends, its hash and every header, or all that is in it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omniges.shards.latents import CodecEntry
from omniges.shards.manifest import ManifestRow
from omniges.shards.tar import BLOCK_BYTES, END_OF_ARCHIVE
from omniges.storage.remote import Location
from omniges.verify.content import Content, check_samples
from omniges.verify.dataset import Listed
from omniges.verify.files import FileFault, Source, hash_chunks
from omniges.verify.findings import Collector, VerifyFinding
from omniges.verify.remote import Folders
from omniges.verify.settings import Level
from omniges.verify.tar_walk import HeaderFault, ShardPlan, exact_blocks, parse_header, walk_shard


@dataclass(frozen=True, slots=True)
class ShardJob:
    """All that checking one shard needs."""

    location: Location
    listed: Listed
    level: Level
    rows: Sequence[ManifestRow] | None = None  # None where the manifest cannot be believed
    elsewhere: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    codecs: Sequence[CodecEntry] = ()


@dataclass(frozen=True, slots=True)
class ShardReport:
    """What came of a shard."""

    findings: list[VerifyFinding]
    samples: int = 0
    read_bytes: int = 0
    content: Content = field(default_factory=Content)


def inspect_shard(job: ShardJob, folders: Folders) -> ShardReport:
    """Check one shard."""
    out = Collector(job.listed.name)
    content = Content()
    size = 0
    try:
        with folders.borrowed() as folder, folder.opened(job.listed.name) as source:
            size = source.size
            if size != job.listed.size:
                out.add("file-size", f"{size} bytes", f"{job.listed.size}", offset=min(size, job.listed.size))
            if job.level == "quick":
                _look_at_ends(source, out)
            else:
                _check_bytes(job, source, out)
            if job.level == "deep" and job.rows and not out.failed:
                content = check_samples(source, job.rows, job.settings, job.codecs, out)
    except FileFault as fault:
        out.add(fault.code, fault.found, fault.expected)
    except MemoryError:
        out.add("worker-died", "no memory was left", "enough for the largest member of the shard")
    return ShardReport(out.finish(), job.listed.samples, size, content)


def _look_at_ends(source: Source, out: Collector) -> None:
    """A sound first header, and two zero blocks at the end."""
    size = source.size
    first = source.read(BLOCK_BYTES, 0)
    if len(first) < BLOCK_BYTES:
        out.add("shard-cut", f"the file ends after {size} bytes", "a tar header", offset=size)
        return
    parsed = parse_header(first)
    fault = parsed if isinstance(parsed, HeaderFault) else parsed.fault
    if fault is not None:
        out.add(fault.code, fault.found, fault.expected, offset=0)
    start = max(0, size - len(END_OF_ARCHIVE))
    ending = source.read(len(END_OF_ARCHIVE), start)
    if ending != END_OF_ARCHIVE or size % BLOCK_BYTES:
        dirty = next((k for k, byte in enumerate(ending) if byte), 0)
        out.add("shard-end", f"{size} bytes that do not end in zero blocks", "two zero blocks", offset=start + dirty)


def _check_bytes(job: ShardJob, source: Source, out: Collector) -> None:
    """Hash and headers in one pass; where either is wrong, a walk that says where."""
    plan = ShardPlan.of_rows(job.rows, job.elsewhere) if job.rows else None
    if source.size == job.listed.size:
        digest, exact = _hash(source, plan)
        if digest != job.listed.sha256:
            out.add("shard-checksum", f"sha256 {digest}", job.listed.sha256)
        elif plan is not None and exact:
            return
    walk_shard(source, plan, out)


def _hash(source: Source, plan: ShardPlan | None) -> tuple[str, bool]:
    """Sha256 of the whole shard, and whether every header and filling is what the plan makes it, in one pass."""
    digest = hashlib.sha256()
    blocks = iter(exact_blocks(plan)) if plan else iter(())
    awaited = next(blocks, None)
    exact = True
    for position, view, buffer in hash_chunks(source, 0, source.size):
        digest.update(view)
        end = position + len(view)
        while awaited is not None and awaited[0] < end:
            # A chunk that the file's end cut short leaves older bytes behind it in the buffer.
            within = awaited[0] + len(awaited[1]) <= end
            exact = exact and within and buffer.startswith(awaited[1], awaited[0] - position)
            awaited = next(blocks, None)
    return digest.hexdigest(), exact and awaited is None
