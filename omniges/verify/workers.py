"""Shards checked at once: in threads, or in processes where a decoder could take the whole program along."""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import chain, islice
from typing import Any, Final

import numpy as np

from omniges.shards.latents import CodecEntry
from omniges.shards.manifest import row_from_json
from omniges.shards.statistics import Partial
from omniges.storage.remote import Location
from omniges.verify.content import Content
from omniges.verify.dataset import Listed
from omniges.verify.findings import Collector, VerifyFinding
from omniges.verify.remote import Folders
from omniges.verify.shard import ShardJob, ShardReport, inspect_shard
from omniges.workers import Answer, Lost, Pool, Worker, worker_command

WORKER_COMMAND: Final = worker_command("omniges.verify.workers")
_THREADS_BYTES: Final = 4 << 30


def reports(
    jobs: Sequence[ShardJob], folders: Folders, *, workers: int, isolate: bool
) -> Iterator[tuple[ShardJob, ShardReport]]:
    """Yield every job's report, in the order of the jobs; `isolate`: decode apart even where one worker would do.

    The jobs are parts of one verification: they differ in shard and rows alone.
    """
    workers = min(workers, len(jobs))
    processes = _in_need_of_processes(jobs, workers, isolate=isolate)
    if not processes and workers < 2:
        for job in jobs:
            yield job, inspect_shard(job, folders)
        return
    # The largest first, so that none is left over for one worker at the end.
    largest = sorted(jobs, key=lambda job: -job.listed.size)
    finished: dict[str, ShardReport] = {}
    waiting = deque(jobs)
    with contextlib.closing((_in_processes if processes else partial(_in_threads, folders))(largest, workers)) as work:
        for done, report in work:
            finished[done.listed.name] = report
            while waiting and (name := waiting[0].listed.name) in finished:
                yield waiting.popleft(), finished.pop(name)


def _in_need_of_processes(jobs: Sequence[ShardJob], workers: int, *, isolate: bool) -> bool:
    """Whether level deep starts processes: for a decoder in C that may crash, or where threads would wait for turns.

    Hashing and arithmetic leave the interpreter free for other threads, so that below some gigabytes starting
    processes costs more. Other processes see nothing of a store in memory.
    """
    if not jobs or jobs[0].level != "deep" or jobs[0].location.protocol == "memory":
        return False
    decodes = any("flac" in row.members for job in jobs for row in job.rows or ())
    large = sum(job.listed.size for job in jobs) > _THREADS_BYTES
    return (decodes and (isolate or workers > 1)) or (large and workers > 1)


def _in_threads(
    folders: Folders, jobs: Sequence[ShardJob], workers: int
) -> Generator[tuple[ShardJob, ShardReport], None, None]:
    with ThreadPoolExecutor(workers) as pool:
        futures = [(job, pool.submit(inspect_shard, job, folders)) for job in jobs]
        try:
            for job, future in futures:
                yield job, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _in_processes(jobs: Sequence[ShardJob], workers: int) -> Generator[tuple[ShardJob, ShardReport], None, None]:
    setup = {
        "location": asdict(jobs[0].location),
        "level": jobs[0].level,
        "elsewhere": jobs[0].elsewhere,
        "settings": jobs[0].settings,
        "codecs": {entry.name: entry.as_json() for entry in jobs[0].codecs},
    }
    pool = Pool(partial(Worker, WORKER_COMMAND, setup), _encode_job, _decode_report, workers=workers)
    with contextlib.closing(pool.run(jobs)) as outcomes:
        for job, outcome in outcomes:
            if not isinstance(outcome, Lost):
                yield job, outcome
                continue
            out = Collector(job.listed.name)
            out.add("worker-died", f"its process died twice ({outcome.reason})", "a process that lives to the end")
            yield job, ShardReport(out.finish())


def prepare(setup: dict[str, Any]) -> Callable[[Any], Answer]:
    """Return the function with which a worker process checks the shard of a task (`omniges.workers`)."""
    location = Location(**setup["location"])
    codecs = [CodecEntry.from_json(name, entry) for name, entry in setup["codecs"].items()]

    def check(task: dict[str, Any]) -> Answer:
        rows = None if task["rows"] is None else [row_from_json(row) for row in task["rows"]]
        listed = Listed(**task["listed"])
        job = ShardJob(location, listed, setup["level"], rows, setup["elsewhere"], setup["settings"], codecs)
        with Folders(location, ahead=True) as folders:
            return _encode_report(inspect_shard(job, folders))

    return check


def _encode_job(job: ShardJob) -> dict[str, Any]:
    return {"listed": asdict(job.listed), "rows": job.rows and [asdict(row) for row in job.rows]}


def _encode_report(report: ShardReport) -> Answer:
    content = report.content
    partials = [*chain.from_iterable(content.partials), *chain.from_iterable(content.latents.values())]
    head = {
        "findings": [finding.as_json() for finding in report.findings],
        "samples": report.samples,
        "read_bytes": report.read_bytes,
        "words": content.words,
        "cuts": content.cuts,
        "counts": [partial.count for partial in partials],
        "latents": {codec: len(own) for codec, own in content.latents.items()},
    }
    return head, [[partial.rows.tobytes()] for partial in partials]


def _decode_report(head: dict[str, Any], buffers: list[memoryview]) -> ShardReport:
    partials = (
        Partial(count, np.frombuffer(data, np.float64).reshape(4, -1))
        for count, data in zip(head["counts"], buffers, strict=True)
    )
    latents = head["latents"]
    pairs = (len(buffers) - sum(latents.values())) // 2
    content = Content(
        partials=[(next(partials), next(partials)) for _ in range(pairs)],
        latents={codec: list(islice(partials, count)) for codec, count in latents.items()},
        words=Counter(head["words"]),
        cuts=head["cuts"],
    )
    findings = [VerifyFinding.from_json(row) for row in head["findings"]]
    return ShardReport(findings, head["samples"], head["read_bytes"], content)
