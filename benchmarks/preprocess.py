"""Measures `omniges preprocess`: speed compared with a straightforward conversion, time of each stage, and memory.

``python benchmarks/preprocess.py`` writes a synthetic corpus. It converts the corpus in turns with the installed
command and with librosa, scipy and praatio in one process (`straightforward.py`), and prints the times of both. The
program does not pass or fail: compare the times, which are from the same machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

from corpora import COMMAND, MAX_COPIES, find_recordings, fit_for_links, link_corpus, make_corpus, say, spread
from machine import describe_machine
from measure import Usage, run_measured
from report import print_report

from omniges.errors import OmnigesError
from omniges.pipeline.discover import Recording
from omniges.pipeline.worker import WORKER_ENVIRONMENT, encode_recording

HERE: Final = Path(__file__).resolve().parent
LONG_RECORDING_S: Final = 660.0
DEFAULT_COUNTS: Final = (100, 1000)


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the measurement; the flags of the command line."""

    recordings: int
    seconds: float
    workers: int
    repeats: int
    subset: int  # number of recordings of the straightforward conversion
    stage_recordings: int
    memory: tuple[int, ...]  # numbers of recordings of the corpora on which memory is measured
    root: Path | None
    work: Path | None
    json: Path | None


@dataclass(frozen=True, slots=True)
class Run:
    """One timed conversion."""

    recordings: int
    seconds: float  # total length of the converted recordings
    x_real_time: float
    wall_s: float
    cpu_s: float  # user and system time of all processes
    other_cpu_share: float  # share of the machine's CPU time that other processes used
    main_mb: float  # peak memory of the main process
    worker_mb: float  # peak memory of its largest worker; 0 without workers
    maxrss_mb: float  # ru_maxrss: upper bound for the largest process


def _parse(arguments: list[str]) -> Settings:
    parser = argparse.ArgumentParser(description="Compare omniges preprocess with a straightforward conversion.")
    parser.add_argument(
        "--recordings", type=int, default=300, help="recordings of the synthetic corpus (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="length of each recording in seconds (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each conversion (default: %(default)s)")
    parser.add_argument(
        "--subset", type=int, default=40, help="recordings of the straightforward conversion (default: %(default)s)"
    )
    parser.add_argument(
        "--stage-recordings", type=int, default=20, help="recordings whose stages are timed (default: %(default)s)"
    )
    parser.add_argument("--root", type=Path, help="data set to convert instead of a synthetic corpus")
    parser.add_argument(
        "--work", type=Path, help="folder for corpus and shards; it keeps the corpus (default: temporary)"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    counts = "also measure peak memory on corpora of N recordings (without N: 100 and 1000), and on one of 11 minutes"
    parser.add_argument("--memory", type=int, nargs="*", metavar="N", help=counts)
    given = vars(parser.parse_args(arguments))
    for name in ("recordings", "workers", "repeats", "subset", "stage_recordings"):
        if given[name] < 1:
            parser.error(f"--{name.replace('_', '-')} {given[name]}: expected at least 1")
    memory = given.pop("memory")
    return Settings(memory=() if memory is None else tuple(memory) or DEFAULT_COUNTS, **given)


def _run(usage: Usage, recordings: int, seconds: float) -> Run:
    return Run(
        recordings=recordings,
        seconds=seconds,
        x_real_time=seconds / usage.wall_s,
        wall_s=usage.wall_s,
        cpu_s=usage.cpu_s,
        other_cpu_share=usage.other_cpu_share,
        main_mb=usage.main_mb,
        worker_mb=usage.child_mb,
        maxrss_mb=usage.maxrss_mb,
    )


def run_preprocess(root: Path, work: Path, workers: int) -> Run:
    """Run `omniges preprocess` on a folder, delete its shards, and return the measurements."""
    out = work / "shards"
    os.sync()
    command = [str(COMMAND), "preprocess", "--root", str(root), "--output-dir", str(out), "--workers", str(workers)]
    usage = run_measured([*command, "--max-rejected", "1", "--json"], work / "preprocess")
    summary = json.loads(usage.output.splitlines()[-1])
    if not summary["converted"]:
        raise SystemExit(f"{root}: no recording could be converted: {summary['examples']}")
    shutil.rmtree(out)
    return _run(usage, summary["converted"], summary["converted_s"])


def run_straightforward(recordings: list[Recording], work: Path) -> Run:
    """Run the straightforward conversion in a separate process; only its loop is timed."""
    out = work / "straightforward"
    out.mkdir()
    paths = [[recording.files[kind].path for kind in ("wav", "npz", "textgrid")] for recording in recordings]
    sources = work / "straightforward.json"
    sources.write_text(json.dumps(paths), encoding="utf-8")
    os.sync()
    usage = run_measured([sys.executable, str(HERE / "straightforward.py"), str(sources), str(out)], sources)
    shutil.rmtree(out)
    loop = json.loads(usage.output)
    usage = replace(usage, wall_s=loop["wall_s"], cpu_s=loop["cpu_s"])
    usage = replace(usage, child_mb=0.0)  # an import starts a small process that is no worker
    return _run(usage, loop["recordings"], loop["seconds"])


def compare(root: Path, recordings: list[Recording], work: Path, settings: Settings) -> dict[str, Any]:
    """Run both conversions in turns; each repeat reverses the order."""
    subset = spread(recordings, settings.subset)
    runs: dict[str, list[Run]] = {"preprocess": [], "straightforward": []}
    for repeat in range(settings.repeats):
        names = list(runs) if repeat % 2 == 0 else list(runs)[::-1]
        for name in names:
            if name == "preprocess":
                run = run_preprocess(root, work, settings.workers)
            else:
                run = run_straightforward(subset, work)
            say(f"{repeat + 1}/{settings.repeats} {name}: {run.x_real_time:,.0f} × real time, {run.wall_s:.2f} s")
            runs[name].append(run)
    pairs = [ours.x_real_time / theirs.x_real_time for ours, theirs in zip(*runs.values(), strict=True)]
    figures: dict[str, Any] = {name: _spread_of(found) for name, found in runs.items()}
    return figures | {"ratio": {"pairs": pairs, "median": median(pairs)}}


def _spread_of(runs: list[Run]) -> dict[str, Any]:
    factors = [run.x_real_time for run in runs]
    spread_of = {"median": median(factors), "min": min(factors), "max": max(factors)}
    return {"x_real_time": spread_of, "runs": [asdict(run) for run in runs]}


def time_stages(recordings: list[Recording], work: Path) -> dict[str, dict[str, float]]:
    """Return the minimum and the median time of each stage in ms per recording, in the environment of a worker."""
    out = work / "stages"
    out.mkdir()
    sources = work / "stages.json"
    sources.write_text(json.dumps([encode_recording(recording) for recording in recordings]), encoding="utf-8")
    command = [sys.executable, str(HERE / "stages.py"), str(sources), str(out)]
    usage = run_measured(command, sources, os.environ | WORKER_ENVIRONMENT)
    shutil.rmtree(out)
    times: dict[str, list[float]] = json.loads(usage.output)
    return {stage: {"min": min(values), "median": median(values)} for stage, values in times.items()}


def measure_memory(recordings: list[Recording], work: Path, settings: Settings) -> list[dict[str, Any]]:
    """Measure the peak memory on corpora of several sizes (links to the same files), and on one long recording."""
    rows = []
    for count in settings.memory:
        root = link_corpus(recordings, work / "linked", count)
        rows.append({"corpus": f"{count} recordings"} | asdict(run_preprocess(root, work, settings.workers)))
        shutil.rmtree(root)
    root = make_corpus(work / "long", 1, LONG_RECORDING_S)
    name = f"one recording of {LONG_RECORDING_S / 60:.0f} min"
    rows.append({"corpus": name} | asdict(run_preprocess(root, work, settings.workers)))
    shutil.rmtree(root)
    return rows


def measure(settings: Settings, work: Path) -> dict[str, Any]:
    """Return all measurements, as the JSON file stores them; `work` is a folder for temporary files."""
    machine = describe_machine(work)
    root = settings.root or make_corpus((settings.work or work) / "corpus", settings.recordings, settings.seconds)
    recordings = find_recordings(root)
    for count in settings.memory:
        if not fit_for_links(recordings, count):
            needed = -(-count // MAX_COPIES)
            raise SystemExit(
                f"--memory {count}: expected stems as in BEAT2 and at least {needed} recordings; use a larger corpus"
            )
    document = {"machine": machine} | compare(root, recordings, work, settings)
    # Only the conversion of train recordings has the stage of statistics.
    train = [recording for recording in recordings if recording.split == "train"] or recordings
    staged = spread(train, settings.stage_recordings)
    say("timing the stages")
    document["stages_ms"] = time_stages(staged, work)
    document["memory"] = measure_memory(recordings, work, settings) if settings.memory else []
    document["settings"] = {
        "workers": settings.workers,
        "repeats": settings.repeats,
        "subset": min(settings.subset, len(recordings)),
        "stage_recordings": len(staged),
    }
    document["corpus"] = {
        "kind": "given" if settings.root else "synthetic",
        "recordings": len(recordings),
        "seconds": document["preprocess"]["runs"][0]["seconds"],
        "bytes": sum(recording.size for recording in recordings),
    }
    return document


def main() -> None:
    """Measure, print, and write the JSON file."""
    settings = _parse(sys.argv[1:])
    if not COMMAND.exists():
        raise SystemExit(
            f"{COMMAND}: the file does not exist; install the project into this Python with pip install -e ."
        )
    if settings.work:
        settings.work.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # clean up, as after Ctrl-C
    try:
        with tempfile.TemporaryDirectory(prefix="omniges-benchmark-", dir=settings.work) as work:
            document = measure(settings, Path(work))
    except OmnigesError as error:
        raise SystemExit(f"preprocess.py: {error}") from error
    except KeyboardInterrupt:
        sys.exit(130)
    print_report(document)
    if settings.json:
        settings.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
