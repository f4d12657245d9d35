"""Benchmark of the data loader against the speed of memory copies: `omniges benchmark loader`."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from omniges.benchmark.settings import SpeedSettings, aligned
from omniges.data.catalog import Catalog, Filters, read_catalog
from omniges.data.loader import BatchLoader, LoaderSettings
from omniges.data.order import RankShare
from omniges.data.sequence import DataSource, Sequencing
from omniges.errors import EnvironmentFault
from omniges.features.audio import MEL_BANDS
from omniges.features.gesture import LAYOUT
from omniges.features.timebase import FRAMES_PER_TICK, MEL_FRAMES_PER_TICK


@dataclass(frozen=True, slots=True)
class Reading:
    """Result of one measurement of a loader: windows per second, and CPU time per window."""

    windows_per_s: float
    cpu_us_per_window: float  # CPU time of this process and its workers


def window_bytes(window_ticks: int) -> int:
    """Return the number of bytes of one window: its gesture, mel spectrogram and text tokens."""
    floats = FRAMES_PER_TICK * LAYOUT.channels + MEL_FRAMES_PER_TICK * MEL_BANDS
    return window_ticks * 4 * (floats + 1)


def drop_cached(folder: Path, shards: Sequence[str]) -> None:
    """Remove files from the page cache, so that the next read goes to the disk.

    Args:
        folder: Folder of the files.
        shards: Names of the files.
    """
    for shard in shards:
        descriptor = os.open(folder / shard, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _cpu_s(pids: Sequence[int]) -> float:
    """Return the CPU time in seconds of this process and of its running workers."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    total = own.ru_utime + own.ru_stime
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def loader_speed(loader: BatchLoader, seconds: float) -> Reading:
    """Measure the speed of a running loader by reading batches for a given time.

    Args:
        loader: A loader that is already running.
        seconds: Length of the measurement in seconds.

    Returns:
        Windows per second, and CPU time per window in µs. The CPU time is the sum over this process and the workers.
    """
    windows = 0
    cpu_before = _cpu_s(loader.worker_pids)
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        batch = loader.next_batch()
        windows += len(batch) if batch else 0
    return Reading(windows / passed, 1e6 * (_cpu_s(loader.worker_pids) - cpu_before) / windows)


def copy_limit(processes: int, rows: int, window_ticks: int, seconds: float) -> float:
    """Measure how fast several processes together copy windows in memory with `np.copyto`.

    Args:
        processes: Number of processes.
        rows: Windows per batch.
        window_ticks: Length of a window in ticks of 0.1 s.
        seconds: Length of the measurement in seconds.

    Returns:
        Copied windows per second, summed over all processes.

    Raises:
        EnvironmentFault: A process did not start.
    """
    command = [sys.executable, "-P", "-m", "omniges.benchmark.memcpy", str(rows), str(window_ticks)]
    with contextlib.ExitStack() as stack:
        running: list[Any] = []
        for _ in range(processes):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            running.append(stack.enter_context(process))
            stack.callback(process.kill)
        if any(process.stdout.readline() != "ready\n" for process in running):
            raise EnvironmentFault(
                "benchmark loader: expected a process that measures memory, found that it did not start; free "
                "some memory"
            )
        for process in running:
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()
        answers = [process.stdout.readline().split() for process in running]
        return sum(int(windows) / float(passed) for windows, passed in answers)


def _loader(catalog: Catalog, settings: SpeedSettings, workers: int) -> BatchLoader:
    return BatchLoader(
        [DataSource(catalog)],
        Sequencing(window_ticks=settings.window_ticks),
        RankShare(batch_size=settings.batch_size),
        LoaderSettings(workers=workers),
    )


def _cold_speed(catalog: Catalog, settings: SpeedSettings, workers: int) -> float:
    """Return windows per second of a first epoch, in which shards are read from the disk and checksums are verified.

    The measurement ends after `settings.seconds`, even if the epoch is not complete.
    """
    drop_cached(catalog.folder, [catalog.table.shard_name(number) for number in range(len(catalog.table.shard_names))])
    with _loader(catalog, settings, workers) as loader:
        windows, start = 0, time.perf_counter()
        while windows < loader.windows_per_epoch and time.perf_counter() - start < settings.seconds:
            batch = loader.next_batch()
            windows += len(batch) if batch else 0
        return windows / (time.perf_counter() - start)


def measure(settings: SpeedSettings) -> dict[str, Any]:
    """Measure the loader for each number of workers.

    Each of the `settings.repeats` rounds measures every number of workers once. Therefore, if the machine is slow for
    some time, this affects the results for all numbers of workers, not only for one.

    Args:
        settings: Settings of the benchmark.

    Returns:
        A JSON document for `report`: ``window_ticks``, ``batch_size``, ``window_bytes``, and ``rows`` with the
        measurements for each number of workers.
    """
    catalog = read_catalog(settings.shards, Filters(split=settings.split))
    size = window_bytes(settings.window_ticks)
    runs: dict[int, list[dict[str, float]]] = {workers: [] for workers in settings.num_workers}
    for _ in range(settings.repeats):
        for workers, found in runs.items():
            limit = copy_limit(max(1, workers), settings.batch_size, settings.window_ticks, settings.seconds / 2)
            run = {"copy_limit_per_s": limit}
            if not settings.warm:
                run["cold_windows_per_s"] = _cold_speed(catalog, settings, workers)
            with _loader(catalog, settings, workers) as loader:
                while loader.position < loader.windows_per_epoch + 4 * settings.batch_size:
                    loader.next_batch()  # after this loop, all shards are verified, mapped and in the page cache
                reading = loader_speed(loader, settings.seconds)
            run |= {"windows_per_s": reading.windows_per_s, "cpu_us_per_window": reading.cpu_us_per_window}
            found.append(run | {"copy_share": reading.windows_per_s / limit})
    rows = []
    for workers, found in runs.items():
        columns = {name: [run[name] for run in found] for name in found[0]}
        row: dict[str, Any] = {"workers": workers} | {name: _summary(values) for name, values in columns.items()}
        rows.append(row | {"mb_per_s": row["windows_per_s"]["median"] * size / 1e6})
    return {
        "window_ticks": settings.window_ticks,
        "batch_size": settings.batch_size,
        "window_bytes": size,
        "rows": rows,
    }


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def report(document: dict[str, Any]) -> str:
    """Format the document of `measure` as a text table."""
    size = document["window_bytes"]
    head = (
        f"windows of {document['window_ticks']} ticks ({size / 1e3:.0f} kB), batches of {document['batch_size']}; "
        "medians, spread in brackets"
    )
    lines = [["workers", "windows/s", "MB/s", "share of np.copyto", "cold windows/s", "CPU µs/window"]]
    for row in document["rows"]:
        cold = _spread(row["cold_windows_per_s"], ",.0f") if "cold_windows_per_s" in row else "–"
        lines.append(
            [
                str(row["workers"]),
                _spread(row["windows_per_s"], ",.0f"),
                f"{row['mb_per_s']:,.0f}",
                _spread(row["copy_share"], ".2f"),
                cold,
                f"{row['cpu_us_per_window']['median']:.0f}",
            ]
        )
    return "\n".join([head, *aligned(lines)])


def _spread(figure: dict[str, float], form: str) -> str:
    return f"{figure['median']:{form}} [{figure['min']:{form}}–{figure['max']:{form}}]"
