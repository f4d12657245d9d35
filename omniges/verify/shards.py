"""Check shards in parallel, at one of three levels.

The level "quick" checks only the start and the end of each shard. The level "full" checks the hash and all headers. The
level "deep" also decodes and checks all samples. Shards are checked in threads of this process, except in two cases of
level "deep": if audio must be decoded by a library that can crash, or if the shards together are large. In these two
cases, worker processes check the shards.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, islice
from typing import Any, Final

import numpy as np

from omniges.shards.dataset import STATISTICS_ROWS, Partial
from omniges.shards.latents import CodecEntry
from omniges.shards.manifest import ManifestRow, row_from_json
from omniges.shards.tar import BLOCK_BYTES, END_OF_ARCHIVE
from omniges.storage.remote import Location
from omniges.verify.content import Content, check_samples
from omniges.verify.dataset import Listed
from omniges.verify.findings import Collector, VerifyFinding
from omniges.verify.folders import FileFault, Folders, Source, hash_chunks
from omniges.verify.settings import Level
from omniges.verify.tar_walk import Header, ShardPlan, exact_blocks, parse_header, walk_shard
from omniges.workers import Answer, Lost, Pool, Worker, worker_command

WORKER_COMMAND: Final = worker_command("omniges.verify.shards")
_THREADS_BYTES: Final = 4 << 30


@dataclass(frozen=True, slots=True)
class ShardJob:
    """Input for the check of one shard."""

    location: Location
    listed: Listed
    level: Level
    rows: Sequence[ManifestRow] | None  # None if the manifest is not trusted
    elsewhere: dict[str, str]  # shard of each sample, by key
    settings: dict[str, Any]
    codecs: Sequence[CodecEntry]


@dataclass(frozen=True, slots=True)
class ShardReport:
    """Result of the check of one shard."""

    findings: list[VerifyFinding]
    samples: int = 0
    read_bytes: int = 0
    content: Content = field(default_factory=Content)


Reports = Generator[tuple[ShardJob, ShardReport], None, None]


def reports(jobs: Sequence[ShardJob], folders: Folders, *, workers: int, isolate: bool) -> Reports:
    """Check shards in parallel, and yield the report of every job in the order of the jobs.

    Args:
        jobs: Jobs of one verification; they differ only in shard and rows.
        folders: Handles of the shard folder.
        workers: Largest number of threads or processes at once.
        isolate: Decode FLAC in separate processes even with one worker.

    Yields:
        The job and its report.
    """
    workers = min(workers, len(jobs))
    processes = _needs_processes(jobs, workers, isolate=isolate)
    if not processes and workers < 2:
        for job in jobs:
            yield job, _inspect(job, folders)
        return
    # The largest shards come first, so that no worker finishes long after the others.
    largest = sorted(jobs, key=lambda job: -job.listed.size)
    finished: dict[str, ShardReport] = {}
    waiting = deque(jobs)
    with contextlib.closing((_in_processes if processes else partial(_in_threads, folders))(largest, workers)) as work:
        for done, report in work:
            finished[done.listed.name] = report
            while waiting and (name := waiting[0].listed.name) in finished:
                yield waiting.popleft(), finished.pop(name)


def _needs_processes(jobs: Sequence[ShardJob], workers: int, *, isolate: bool) -> bool:
    """Return True if processes must be used in place of threads.

    Processes are used only at level deep, for one of two reasons. If there is FLAC, its decoder may crash. If the
    shards are larger than 4 GiB together, processes are faster, because Python code in one thread blocks the other
    threads. For smaller shards, starting processes would take more time than it saves. A folder in the memory of this
    process (protocol ``memory``) always needs threads, because other processes cannot read it.
    With one worker, processes are used only for FLAC, and only if `isolate` is set.
    """
    if not jobs or jobs[0].level != "deep" or jobs[0].location.protocol == "memory":
        return False
    decodes = any("flac" in row.members for job in jobs for row in job.rows or ())
    large = sum(job.listed.size for job in jobs) > _THREADS_BYTES
    return (decodes and (isolate or workers > 1)) or (large and workers > 1)


def _in_threads(folders: Folders, jobs: Sequence[ShardJob], workers: int) -> Reports:
    with ThreadPoolExecutor(workers) as pool:
        futures = [(job, pool.submit(_inspect, job, folders)) for job in jobs]
        try:
            for job, future in futures:
                yield job, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _in_processes(jobs: Sequence[ShardJob], workers: int) -> Reports:
    setup = {
        "location": asdict(jobs[0].location),
        "level": jobs[0].level,
        "elsewhere": jobs[0].elsewhere,
        "settings": jobs[0].settings,
        "codecs": {entry.name: entry.as_json() for entry in jobs[0].codecs},
    }

    def task(job: ShardJob) -> dict[str, Any]:
        return {"listed": asdict(job.listed), "rows": job.rows and [asdict(row) for row in job.rows]}

    pool = Pool(partial(Worker, WORKER_COMMAND, setup), task, _decoded, workers=workers)
    with contextlib.closing(pool.run(jobs)) as outcomes:
        for job, outcome in outcomes:
            if not isinstance(outcome, Lost):
                yield job, outcome
                continue
            out = Collector(job.listed.name)
            out.add("worker-died", f"its process crashed twice ({outcome.reason})", "a process that exits normally")
            yield job, ShardReport(out.finish())


def prepare(setup: dict[str, Any]) -> Callable[[Any], Answer]:
    """Return the function with which a worker process (`omniges.workers`) checks one shard.

    `setup` contains the settings that are the same for all shards. The argument of the function contains the shard's
    entry in dataset.json and its manifest rows.
    """
    location = Location(**setup.pop("location"))
    codecs = [CodecEntry.from_json(name, entry) for name, entry in setup.pop("codecs").items()]

    def check(task: dict[str, Any]) -> Answer:
        rows = None if task["rows"] is None else [row_from_json(row) for row in task["rows"]]
        job = ShardJob(location=location, listed=Listed(**task["listed"]), rows=rows, codecs=codecs, **setup)
        with Folders(location, ahead=True) as folders:
            return _encoded(_inspect(job, folders))

    return check


def _encoded(report: ShardReport) -> Answer:
    content = report.content
    partials = [*chain.from_iterable(content.partials), *chain.from_iterable(content.latents.values())]
    head = {
        "findings": [finding.as_json() for finding in report.findings],
        "samples": report.samples,
        "read_bytes": report.read_bytes,
        "words": content.words,
        "cuts": content.cuts,
        "arrays": len(content.partials[0]) if content.partials else 0,
        "latents": {codec: len(own) for codec, own in content.latents.items()},
    }
    return head, [[partial.rows.tobytes()] for partial in partials]


def _decoded(head: dict[str, Any], buffers: list[memoryview]) -> ShardReport:
    partials = (Partial(np.frombuffer(data, np.float64).reshape(STATISTICS_ROWS, -1)) for data in buffers)
    latents, arrays = head["latents"], head["arrays"]
    clips = (len(buffers) - sum(latents.values())) // arrays if arrays else 0
    content = Content(
        partials=[tuple(islice(partials, arrays)) for _ in range(clips)],
        latents={codec: list(islice(partials, count)) for codec, count in latents.items()},
        words=Counter(head["words"]),
        cuts=head["cuts"],
    )
    findings = [VerifyFinding.from_json(row) for row in head["findings"]]
    return ShardReport(findings, head["samples"], head["read_bytes"], content)


# --- one shard


def _inspect(job: ShardJob, folders: Folders) -> ShardReport:
    out = Collector(job.listed.name)
    content = Content()
    size = 0
    try:
        with folders.borrowed() as folder, folder.opened(job.listed.name) as source:
            size = source.size
            if size != job.listed.size:
                out.add("file-size", f"{size} bytes", f"{job.listed.size}", offset=min(size, job.listed.size))
            if job.level == "quick":
                _check_ends(source, out)
            else:
                _check_bytes(job, source, out)
            if job.level == "deep" and job.rows and not out.failed:
                content = check_samples(source, job.rows, job.settings, job.codecs, out)
    except FileFault as fault:
        out.add(fault.code, fault.found, fault.expected)
    except MemoryError:
        out.add("worker-died", "out of memory", "enough for the largest member of the shard")
    return ShardReport(out.finish(), job.listed.samples, size, content)


def _check_ends(source: Source, out: Collector) -> None:
    """Check that a shard begins with a valid header and ends with two zero blocks."""
    size = source.size
    first = source.read(BLOCK_BYTES, 0)
    if len(first) < BLOCK_BYTES:
        out.add("shard-cut", f"the file ends after {size} bytes", "a tar header", offset=size)
        return
    parsed = parse_header(first)
    fault = parsed.fault if isinstance(parsed, Header) else parsed
    if fault is not None:
        out.add(*fault, offset=0)
    start = max(0, size - len(END_OF_ARCHIVE))
    ending = source.read(len(END_OF_ARCHIVE), start)
    if ending != END_OF_ARCHIVE or size % BLOCK_BYTES:
        dirty = next((k for k, byte in enumerate(ending) if byte), 0)
        out.add("shard-end", f"{size} bytes that do not end in zero blocks", "two zero blocks", offset=start + dirty)


def _check_bytes(job: ShardJob, source: Source, out: Collector) -> None:
    """Check hash, headers and padding in one pass. If a check fails, read the shard again, header by header."""
    plan = ShardPlan.of_rows(job.rows, job.elsewhere) if job.rows else None
    if source.size == job.listed.size:
        digest, exact = hashlib.sha256(), plan is not None
        blocks = exact_blocks(plan) if plan else iter(())
        awaited = next(blocks, None)
        for position, view, buffer in hash_chunks(source, 0, source.size):
            digest.update(view)
            end = position + len(view)
            while awaited is not None and awaited[0] < end:
                # After a short last chunk, the rest of the buffer contains bytes of an earlier chunk.
                within = awaited[0] + len(awaited[1]) <= end
                exact = exact and within and buffer.startswith(awaited[1], awaited[0] - position)
                awaited = next(blocks, None)
        if digest.hexdigest() != job.listed.sha256:
            out.add("shard-checksum", f"sha256 {digest.hexdigest()}", job.listed.sha256)
        elif exact and awaited is None:
            return
    walk_shard(source, plan, out)
