"""Compares `preprocess --engine ray` with `--engine local` on the same cores, and measures the memory of the driver.

``python benchmarks/ray_engine.py`` writes a synthetic corpus, starts a Ray cluster on this machine, and converts the
corpus with both engines in turns. The measurement includes the connection to the cluster and the start of workers, but
not the start of the cluster. CPU time is the total of all processes of a run, including those of Ray; it is read from
/proc every 100 ms. If the machine does other work at the same time, compare only CPU times. The program does not pass
or fail.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from corpora import COMMAND, find_recordings, link_corpus, make_corpus, say
from machine import describe_machine

_MARK: Final = "OMNIGES_BENCHMARK"  # environment variable that marks the processes of a run
_SAMPLE_EVERY_S: Final = 0.1
_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_WRITTEN: Final = 30  # number of recordings that are synthesized; the others are links to them


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the measurement: the flags of the command line."""

    recordings: int
    seconds: float
    workers: int
    repeats: int
    root: Path | None
    work: Path | None
    json: Path | None


@dataclass(frozen=True, slots=True)
class Run:
    """One conversion."""

    recordings: int
    seconds: float  # total length of the converted recordings
    wall_s: float
    cpu_s: float  # user and system time of all processes
    driver_mb: float  # peak memory of the command's own process
    manifest_hash: str


class _CpuWatch:
    """Context that measures the CPU time of all processes with a mark in their environment."""

    def __init__(self, mark: str) -> None:
        self._mark = f"{_MARK}={mark}".encode()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cpu-watch", daemon=True)
        self._others: set[tuple[int, str]] = set()
        self._first: dict[tuple[int, str], float] = {}
        self._last: dict[tuple[int, str], float] = {}

    def __enter__(self) -> _CpuWatch:
        self._look()
        self._first = dict(self._last)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(_SAMPLE_EVERY_S):
            self._look()
        self._look()

    def _look(self) -> None:
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                process = (int(folder.name), fields[19])  # an id may be reused, with another start time
                if process in self._others:
                    continue
                if process not in self._last and self._mark not in (folder / "environ").read_bytes().split(b"\0"):
                    self._others.add(process)
                    continue
                self._last[process] = (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND

    def cpu_s(self) -> float:
        """Return the CPU seconds in the context; a process that has exited counts up to its last sample."""
        return sum(self._last.values()) - sum(self._first.values())


@contextlib.contextmanager
def ray_cluster(cpus: int, environment: dict[str, str]) -> Iterator[str]:
    """Start a cluster of one node in a separate process; yield the address of the cluster."""
    script = (
        "import sys, ray\n"
        f"made = ray.init(address='local', num_cpus={cpus}, include_dashboard=False, logging_level=40)\n"
        "print(made.address_info['gcs_address'], flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        address = process.stdout.readline().strip() if process.stdout else ""
        if not address:
            raise SystemExit("the Ray cluster did not start")
        yield address
    finally:
        if process.stdin:
            process.stdin.close()
        process.wait(60)


def run_engine(root: Path, work: Path, settings: Settings, address: str | None, environment: dict[str, str]) -> Run:
    """Run `omniges preprocess` on a folder, delete its shards, and return the measurements."""
    out = work / "shards"
    os.sync()
    command = [str(COMMAND), "preprocess", "--root", str(root), "--output-dir", str(out), "--json"]
    command += ["--num-workers", str(settings.workers)]
    command += ["--engine", "ray", "--ray-address", address] if address else []
    with _CpuWatch(environment[_MARK]) as watch:
        start_s = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        peak_kib = 0
        lines = []
        for line in process.stdout or ():
            lines.append(line)
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
                peak_kib = max([peak_kib, *(int(row.split()[1]) for row in status.split("\n") if "VmHWM" in row)])
        if process.wait() != 0:
            raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
        wall_s = time.perf_counter() - start_s
    summary = json.loads(lines[-1])
    shutil.rmtree(out)
    return Run(
        recordings=summary["converted"],
        seconds=summary["converted_s"],
        wall_s=wall_s,
        cpu_s=watch.cpu_s(),
        driver_mb=peak_kib * 1024 / 1e6,
        manifest_hash=summary["manifest_hash"],
    )


def measure(root: Path, work: Path, settings: Settings) -> dict[str, Any]:
    """Run both engines in turns; each repeat reverses the order."""
    environment = os.environ | {_MARK: secrets.token_hex(8), "RAY_USAGE_STATS_ENABLED": "0"}
    environment["RAY_AUTH_MODE"] = "disabled"  # otherwise Ray writes a token to the home folder
    runs: dict[str, list[Run]] = {"local": [], "ray": []}
    with ray_cluster(settings.workers, environment) as address:
        for repeat in range(settings.repeats):
            for name in list(runs) if repeat % 2 == 0 else list(runs)[::-1]:
                say(f"{name} {repeat + 1} of {settings.repeats}")
                run = run_engine(root, work, settings, address if name == "ray" else None, environment)
                runs[name].append(run)
    if len({run.manifest_hash for both in runs.values() for run in both}) != 1:
        raise SystemExit("the engines wrote different sets")
    ratios = {
        field: [getattr(ray, field) / getattr(local, field) for local, ray in zip(*runs.values(), strict=True)]
        for field in ("wall_s", "cpu_s")
    }
    return {"runs": {name: [asdict(run) for run in own] for name, own in runs.items()}, "ratios": ratios}


def _print(document: dict[str, Any]) -> None:
    print(f"{'':6} {'recordings':>10} {'hours':>6} {'wall s':>8} {'CPU s':>8} {'CPU ms each':>12} {'driver MB':>10}")
    for name, runs in document["runs"].items():
        cpu_s = median(run["cpu_s"] for run in runs)
        count, hours = runs[0]["recordings"], runs[0]["seconds"] / 3600
        print(
            f"{name:6} {count:10} {hours:6.2f} {median(run['wall_s'] for run in runs):8.1f} {cpu_s:8.1f} "
            f"{1000 * cpu_s / count:12.1f} {max(run['driver_mb'] for run in runs):10.0f}"
        )
    for field, ratios in document["ratios"].items():
        print(f"ray / local, {field}: {median(ratios):.2f}   {' '.join(f'{ratio:.2f}' for ratio in ratios)}")


def _parse(arguments: list[str]) -> Settings:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--recordings", type=int, default=600, help="recordings of the synthetic corpus (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="length of each recording in seconds (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="worker processes, and CPUs of the cluster (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each engine (default: %(default)s)")
    parser.add_argument("--root", type=Path, help="data set to convert instead of a synthetic corpus")
    parser.add_argument("--work", type=Path, help="folder for corpus and shards (default: temporary)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = vars(parser.parse_args(arguments))
    for name in ("recordings", "workers", "repeats"):
        if given[name] < 1:
            parser.error(f"--{name} {given[name]}: expected at least 1")
    return Settings(**given)


def main() -> None:
    """Measure, print, and write the JSON file."""
    settings = _parse(sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="omniges-benchmark-", dir=settings.work) as temporary:
        work = Path(temporary)
        root = settings.root
        if root is None:
            made = make_corpus(work / "made", min(settings.recordings, _WRITTEN), settings.seconds)
            root = link_corpus(find_recordings(made), work / "corpus", settings.recordings)
        document = {"machine": describe_machine(work)} | measure(root, work, settings)
    _print(document)
    if settings.json:
        settings.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
