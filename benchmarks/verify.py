"""Compares the speed of `omniges verify-shards` with hashlib.sha256 on the same files, with as many threads.

    python benchmarks/verify.py --size-mb 500 --threads 2

Each run of a level follows plain hashing of all files, so that a slow period of the machine affects both. The ratio
of each pair and the median ratio are printed. Files are in the page cache. The deep level starts processes if audio is
stored as FLAC, or if the shards are larger than 4 GB; its time includes their start. `--shards` measures an existing
folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, Final

from corpora import COMMAND, find_recordings, link_corpus, make_corpus, say

from omniges.verify.run import verify
from omniges.verify.settings import Level, VerifySettings

_LEVELS: Final[tuple[Level, ...]] = ("quick", "full", "deep")
_BASE_RECORDINGS: Final = 10
_SECONDS: Final = 60.0
_MB_A_RECORDING: Final = 4.6


def _make_shards(folder: Path, size_mb: float) -> Path:
    """Write shards of about this size, from a few synthetic recordings and many links to them."""
    recordings = find_recordings(make_corpus(folder / "base", _BASE_RECORDINGS, _SECONDS))
    count = max(_BASE_RECORDINGS, round(size_mb / _MB_A_RECORDING))
    corpus = link_corpus(recordings, folder / "corpus", count)
    say(f"converting {count} recordings")
    command = [
        str(COMMAND),
        "preprocess",
        "--root",
        str(corpus),
        "--out",
        str(folder / "shards"),
        "--shard-size",
        "128MB",
    ]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr.strip())
    return folder / "shards"


def _hash_file(path: Path) -> None:
    with path.open("rb") as stream:
        hashlib.file_digest(stream, "sha256")


def _plain(paths: list[Path], threads: int) -> float:
    """Hash all files in threads, the largest first; return the seconds that it takes."""
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(_hash_file, paths))
    return time.perf_counter() - start


def _verified(folder: Path, level: Level, threads: int) -> float:
    settings = VerifySettings(folder=folder, level=level, num_workers=threads, isolate=True)
    start = time.perf_counter()
    result = verify(settings)
    seconds = time.perf_counter() - start
    if not result.valid:
        raise SystemExit(f"{folder}: {result.findings[0]}")
    return seconds


def measure(folder: Path, threads: int, repeats: int) -> dict[str, Any]:
    """Measure times and ratios of every level."""
    paths = sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: -path.stat().st_size)
    size = sum(path.stat().st_size for path in paths)
    _plain(paths, threads)  # reads the files into the page cache
    document: dict[str, Any] = {"bytes": size, "files": len(paths), "threads": threads, "levels": {}}
    for level in _LEVELS:
        _verified(folder, level, threads)  # imports modules
        pairs = [(_plain(paths, threads), _verified(folder, level, threads)) for _ in range(repeats)]
        document["levels"][level] = {
            "plain_s": [plain for plain, _ in pairs],
            "verify_s": [own for _, own in pairs],
            "ratio": median(own / plain for plain, own in pairs),
        }
    return document


def _print(document: dict[str, Any]) -> None:
    size = document["bytes"]
    print(f"{size / 1e6:,.0f} MB in {document['files']} files, {document['threads']} threads or processes")
    print(f"{'level':7} {'s':>9} {'ms/GB':>9} {'MB/s':>8} {'hashlib MB/s':>13} {'ratio':>7}   pairs")
    for level, figures in document["levels"].items():
        own, plain = median(figures["verify_s"]), median(figures["plain_s"])
        pairs = zip(figures["plain_s"], figures["verify_s"], strict=True)
        ratios = " ".join(f"{mine / theirs:.2f}" for theirs, mine in pairs)
        speed = f"{size / own / 1e6:8,.0f}" if level != "quick" else " " * 8
        per_gb = 1000 * own / (size / 1e9)
        print(
            f"{level:7} {own:9.4f} {per_gb:9.1f} {speed} {size / plain / 1e6:13,.0f} {figures['ratio']:7.3f}   {ratios}"
        )


def main() -> None:
    """Measure all levels, print the table and write the JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--size-mb", type=float, default=500.0, help="size of the synthetic shards in MB (default: %(default)s)"
    )
    parser.add_argument("--shards", type=Path, help="measure this folder instead of synthetic shards")
    parser.add_argument(
        "--threads",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="threads of both (default: all cores, here %(default)s)",
    )
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs for each level (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="folder that keeps the synthetic shards (default: temporary)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    chosen = parser.parse_args()
    if chosen.threads < 1 or chosen.repeats < 1:
        parser.error("--threads and --repeats: expected at least 1")
    with tempfile.TemporaryDirectory() as temporary:
        shards = chosen.shards or _make_shards(chosen.work or Path(temporary), chosen.size_mb)
        document = measure(shards, chosen.threads, chosen.repeats)
    _print(document)
    if chosen.json:
        chosen.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
