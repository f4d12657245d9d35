"""Compares the speed of the loader with webdataset, litData, mosaic streaming and `np.copyto`.

    python benchmarks/loader.py --seconds 15 --repeats 3
    python benchmarks/loader.py --peers-python other/bin/python      # an environment that has the peers

By default, clips are 64 s long, windows have 43 ticks (129 gesture and 430 mel frames), batches have 64 windows, and
there are 2 workers. All loaders run all the time, and are warmed up. They are read in turns, and each repeat reverses
the order. So a slow period of the machine affects all loaders. The copy limit is the speed of `np.copyto` with the same
number of bytes and of processes. A peer that is not installed is reported as absent. The program does not pass or fail:
compare the numbers with each other, on a machine that does no other work.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, Protocol, cast

from corpora import COMMAND, make_corpus, say
from machine import describe_machine
from measure import _children
from peer_readers import PEERS

from omniges.benchmark.loader import loader_speed, window_bytes
from omniges.data.catalog import Catalog, Filters, read_catalog
from omniges.data.loader import BatchLoader, LoaderSettings
from omniges.data.order import RankShare
from omniges.data.sequence import DataSource, Sequencing
from omniges.errors import OmnigesError

HERE: Final = Path(__file__).resolve().parent
CLIP_S: Final = 64.0
TARGETS: Final = {"webdataset": 8.0, "litdata": 5.0, "streaming": 5.0}
"""Target speed of the loader, as a multiple of the speed of each peer."""
COPY_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the measurement; the flags of the command line."""

    clips: int
    ticks: int
    batch_size: int
    workers: int
    seconds: float
    repeats: int
    peers_python: str
    shards: Path | None
    work: Path | None
    json: Path | None


class Contender(Protocol):
    """A loader to measure."""

    def read(self, seconds: float) -> tuple[float, float]:
        """Return windows per second, and CPU microseconds per window of all processes."""
        ...


def _tree_cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process and its descendants."""
    total, pending = 0.0, [pid]
    while pending:
        process = pending.pop()
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            pending += _children(process)
    return total


class Ours:
    """The loader of omniges, in this process and its workers."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self.loader = BatchLoader(
            [DataSource(catalog)],
            Sequencing(window_ticks=settings.ticks),
            RankShare(batch_size=settings.batch_size),
            LoaderSettings(workers=settings.workers),
        )
        while self.loader.position < self.loader.windows_per_epoch + 20 * settings.batch_size:
            self.loader.next_batch()

    def read(self, seconds: float) -> tuple[float, float]:
        """Measure for some seconds; return windows per second and CPU microseconds per window."""
        reading = loader_speed(self.loader, seconds)
        return reading.windows_per_s, reading.cpu_us_per_window


class Processes:
    """Processes that read or copy windows.

    Each process prints ``ready``. Then it reads a number of seconds from a line, works for this time, and prints the
    number of windows and the elapsed seconds.
    """

    def __init__(self, commands: list[list[str]], log: Path) -> None:
        self._stack = contextlib.ExitStack()
        errors = self._stack.enter_context(log.open("w+", encoding="utf-8"))
        self._running: list[subprocess.Popen[str]] = []
        for command in commands:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=log.parent
            )
            self._stack.callback(_end, process)
            self._running.append(process)
        for process in self._running:
            while (line := cast("Any", process.stdout).readline()) != "ready\n":
                if not line:
                    self.close()
                    raise SystemExit(f"{' '.join(commands[0])}:\n{log.read_text(encoding='utf-8')[-3000:]}")

    def read(self, seconds: float) -> tuple[float, float]:
        """Return windows per second and CPU microseconds per window, of all processes together."""
        before = sum(_tree_cpu_s(process.pid) for process in self._running)
        for process in self._running:
            cast("Any", process.stdin).write(f"{seconds}\n")
            cast("Any", process.stdin).flush()
        rate, windows = 0.0, 0
        for process in self._running:
            count, passed = cast("Any", process.stdout).readline().split()
            rate, windows = rate + int(count) / float(passed), windows + int(count)
        cpu_s = sum(_tree_cpu_s(process.pid) for process in self._running) - before
        return rate, 1e6 * cpu_s / max(1, windows)

    def close(self) -> None:
        """End the processes."""
        self._stack.close()


def _end(process: subprocess.Popen[str]) -> None:
    """Kill a process and its children; the children would otherwise wait for it forever."""
    below = _children(process.pid)
    process.kill()
    process.wait()
    for pid in below:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
    for stream in (process.stdin, process.stdout):
        if stream:
            stream.close()


def make_shards(folder: Path, clips: int) -> Path:
    """Write shards of synthetic clips of 64 s, all of them in the train split."""
    corpus = make_corpus(folder / "corpus", clips, CLIP_S)
    stems = sorted(path.stem for path in corpus.rglob("*.npz"))
    split_list = folder / "all_train.csv"
    split_list.write_text("id,type\n" + "".join(f"{stem},train\n" for stem in stems), encoding="utf-8")
    say(f"converting {clips} clips")
    command = [str(COMMAND), "preprocess", "--root", str(corpus), "--output-dir", str(folder / "shards")]
    command += ["--shard-size", "32MB", "--split-csv", str(split_list)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr.strip())
    return folder / "shards"


@contextlib.contextmanager
def _contenders(
    catalog: Catalog, settings: Settings, work: Path
) -> Iterator[tuple[dict[str, Contender], dict[str, str]]]:
    """Yield the loaders by name, running and warmed up, and for each absent peer the reason."""
    paths = [str(catalog.folder / catalog.table.shard_name(n)) for n in range(len(catalog.table.shard_names))]
    flags = ["--ticks", str(settings.ticks), "--batch-size", str(settings.batch_size), "--shards", *paths]
    contenders: dict[str, Contender] = {}
    absent: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for peer in PEERS:
            command = [settings.peers_python, str(HERE / "peer_readers.py")]
            check = subprocess.run([*command, "check", peer], capture_output=True, text=True, check=False)
            if check.returncode != 0:
                absent[peer] = check.stderr.strip().splitlines()[-1]
                continue
            folder = work / peer
            own = ["--folder", str(folder), "--workers", str(settings.workers), *flags]
            say(f"preparing {peer}")
            done = subprocess.run(
                [*command, "prepare", peer, *own], capture_output=True, text=True, check=False, cwd=work
            )
            if done.returncode != 0:
                raise SystemExit(f"{peer}: {done.stderr.strip()[-2000:]}")
            processes = Processes([[*command, "read", peer, *own]], work / f"{peer}.log")
            stack.callback(processes.close)
            contenders[peer] = processes
        sizes = [str(settings.batch_size), str(settings.ticks)]
        copy = [sys.executable, "-P", "-m", "omniges.benchmark.memcpy", *sizes]
        copiers = Processes([copy] * max(1, settings.workers), work / "copying.log")
        stack.callback(copiers.close)
        ours = Ours(catalog, settings)
        stack.callback(ours.loader.close)
        first: dict[str, Contender] = {"omniges": ours, "np.copyto": copiers}
        yield first | contenders, absent


def measure(catalog: Catalog, settings: Settings, work: Path) -> dict[str, Any]:
    """Read all loaders in turns; return the readings, the ratios of speed (omniges / other) and the absent peers."""
    with _contenders(catalog, settings, work) as (contenders, absent):
        figures: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
        for repeat in range(settings.repeats):
            names = list(contenders) if repeat % 2 == 0 else list(contenders)[::-1]
            for name in names:
                rate, cpu_us = contenders[name].read(settings.seconds)
                say(f"{repeat + 1}/{settings.repeats} {name}: {rate:,.0f} windows/s")
                figures[name].append({"windows_per_s": rate, "cpu_us_per_window": cpu_us})
    ours = [run["windows_per_s"] for run in figures["omniges"]]
    ratios = {
        name: [own / run["windows_per_s"] for own, run in zip(ours, runs, strict=True)]
        for name, runs in figures.items()
        if name != "omniges"
    }
    return {"figures": figures, "ratios": ratios, "absent": absent}


def _print(document: dict[str, Any]) -> None:
    machine, settings = document["machine"], document["settings"]
    print(
        f"{machine['cpu']}, {machine['cores']} cores, load average before the first reading {machine['load_average']}"
    )
    print(
        f"{document['clips']} clips, {document['windows']} windows of {settings['ticks']} ticks, batches of "
        f"{settings['batch_size']}, {settings['workers']} workers, {settings['repeats']} readings of "
        f"{settings['seconds']:g} s each"
    )
    print(f"{'':12} {'windows/s':>10} {'min–max':>17} {'MB/s':>8} {'CPU µs/window':>14} {'omniges is ×':>13}   pairs")
    size = window_bytes(settings["ticks"])
    for name, runs in document["figures"].items():
        rates = [run["windows_per_s"] for run in runs]
        cpu = median(run["cpu_us_per_window"] for run in runs)
        ratios = document["ratios"].get(name, [])
        ratio = f"{median(ratios):13.2f}   {' '.join(f'{value:.2f}' for value in ratios)}" if ratios else ""
        spread = f"{min(rates):,.0f}–{max(rates):,.0f}"
        print(f"{name:12} {median(rates):10,.0f} {spread:>17} {median(rates) * size / 1e6:8,.0f} {cpu:14.0f} {ratio}")
    for peer, reason in document["absent"].items():
        print(f"{peer}: absent ({reason}); install it into this Python with pip, or use --peers-python")
    aims = ", ".join(f"{name} × {factor:g}" for name, factor in TARGETS.items())
    print(f"target ratios: {aims}, np.copyto × {COPY_SHARE:g}")


def _parse(arguments: list[str]) -> Settings:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clips", type=int, default=48, help="synthetic clips of 64 s (default: %(default)s)")
    parser.add_argument(
        "--ticks", type=int, default=43, help="length of a window in ticks of 0.1 s (default: %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="windows per batch (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of each loader (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=15.0, help="length of each reading in seconds (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="readings of each loader (default: %(default)s)")
    parser.add_argument(
        "--peers-python", default=sys.executable, help="Python with the peers installed (default: this Python)"
    )
    parser.add_argument("--shards", type=Path, help="measure the train split of this folder instead of synthetic clips")
    parser.add_argument("--work", type=Path, help="folder that keeps shards and the peers' copies (default: temporary)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = vars(parser.parse_args(arguments))
    for name in ("clips", "ticks", "batch_size", "workers", "repeats"):
        if given[name] < 1:
            parser.error(f"--{name.replace('_', '-')} {given[name]}: expected at least 1")
    if not given["seconds"] > 0:
        parser.error("--seconds: expected more than 0")
    return Settings(**given)


def main() -> None:
    """Measure, print, and write the JSON file."""
    settings = _parse(sys.argv[1:])
    if settings.work:
        settings.work.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="omniges-benchmark-", dir=settings.work) as temporary:
            work = Path(temporary)
            shards = settings.shards or make_shards(settings.work or work, settings.clips)
            catalog = read_catalog(shards.absolute(), Filters())
            facts = {name: getattr(settings, name) for name in ("ticks", "batch_size", "workers", "seconds", "repeats")}
            windows = int((catalog.table.ticks // settings.ticks).sum())
            document = {"machine": describe_machine(work), "settings": facts, "windows": windows}
            document |= {"clips": len(catalog.table)} | measure(catalog, settings, work)
    except OmnigesError as error:
        raise SystemExit(f"loader.py: {error}") from error
    _print(document)
    if settings.json:
        settings.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
