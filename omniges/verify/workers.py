"""Shards checked at once: in threads, or in processes where a decoder could take the whole program along."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Final

from omniges.verify.findings import Collector
from omniges.verify.remote import Folders
from omniges.verify.shard import ShardJob, ShardReport, inspect_alone, inspect_shard

__all__ = ["reports"]

_THREADS_BYTES: Final = 4 << 30


def reports(
    jobs: Sequence[ShardJob], folders: Folders, *, workers: int, isolate: bool
) -> Iterator[tuple[ShardJob, ShardReport]]:
    """Every job's report, in the order of the jobs; `isolate`: decode apart even where one worker would do."""
    workers = min(workers, len(jobs))
    if _in_need_of_processes(jobs, workers, isolate=isolate):
        yield from _in_processes(jobs, workers)
    elif workers > 1:
        with ThreadPoolExecutor(workers) as pool:
            yield from _ordered(pool, jobs, partial(inspect_shard, folders=folders))
    else:
        for job in jobs:
            yield job, inspect_shard(job, folders)


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


def _ordered(
    pool: Executor, jobs: Sequence[ShardJob], inspect: Callable[[ShardJob], ShardReport]
) -> Iterator[tuple[ShardJob, ShardReport]]:
    # The largest first, so that none is left over for one worker at the end; reports come in the order of the jobs.
    largest = sorted(range(len(jobs)), key=lambda place: -jobs[place].listed.size)
    futures: dict[int, Future[ShardReport]] = {place: pool.submit(inspect, jobs[place]) for place in largest}
    try:
        for place, job in enumerate(jobs):
            yield job, futures[place].result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _processes(workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_on_interrupt)


def _leave_on_interrupt() -> None:
    """Ctrl-C reaches every process of the terminal; the parent alone has something to say about it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _in_processes(jobs: Sequence[ShardJob], workers: int) -> Iterator[tuple[ShardJob, ShardReport]]:
    """Reports from worker processes; after a death the rest run one a process, so that the shard is named."""
    done = 0
    try:
        with _processes(workers) as pool:
            for job, report in _ordered(pool, jobs, inspect_alone):
                yield job, report
                done += 1
    except BrokenProcessPool:
        for job in jobs[done:]:
            yield job, _alone(job)


def _alone(job: ShardJob) -> ShardReport:
    try:
        with _processes(1) as pool:
            return pool.submit(inspect_alone, job).result()
    except BrokenProcessPool:
        out = Collector(job.listed.name)
        out.add("worker-died", "its process died twice", "a process that lives to the end")
        return ShardReport(out.finish())
