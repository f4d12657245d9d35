"""Compares the speed of `WindowDataset` with the trainer's loader, and with a plain Dataset of memory-mapped files.

    python benchmarks/window_dataset.py --seconds 5 --repeats 5

Clips are 64 s long, windows have 64 ticks, and batches have 64 windows of gesture, mel and text tokens. All datasets
run all the time, and are warmed up. They are read in turns, and each repeat reverses the order. So a slow period of the
machine affects all of them. The plain Dataset reads the same windows of the same clips. It opens a .npy file for each
array of each clip with ``mmap_mode="r"``, and copies the window. If our dataset normalizes, the plain Dataset
normalizes in numpy. The program does not pass or fail: compare the numbers with each other.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from corpora import say
from loader import _tree_cpu_s, make_shards
from machine import describe_machine
from torch.utils.data import DataLoader, Dataset

from omniges.data.catalog import Filters, read_catalog
from omniges.data.loader import BatchLoader, LoaderSettings
from omniges.data.order import RankShare
from omniges.data.samples import open_shards
from omniges.data.sequence import DataSource, Sequencing
from omniges.data.windows import WindowDataset
from omniges.features.text_tokens import TextTokenCodec
from omniges.shards.dataset import divisors

TICKS: Final = 64
STRIDE_TICKS: Final = 8
BATCH_SIZE: Final = 64
ARRAYS: Final = ("gesture", "mel", "text_tokens")
ROWS_PER_TICK: Final = {"gesture": 3, "mel": 10, "text_tokens": 1}


class PlainFiles(Dataset[dict[str, Any]]):
    """A plain dataset of one .npy file for each array of each clip."""

    def __init__(self, folder: Path, scales: dict[str, tuple[npt.NDArray[np.float32], ...]]) -> None:
        self.scales = scales
        keys = sorted({path.name.partition(".")[0] for path in folder.glob("*.npy")})
        self.clips = [{name: np.load(folder / f"{key}.{name}.npy", mmap_mode="r") for name in ARRAYS} for key in keys]
        self.windows = [
            (number, start)
            for number, clip in enumerate(self.clips)
            for start in range(0, len(clip["text_tokens"]) - TICKS + 1, STRIDE_TICKS)
        ]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, start = self.windows[index]
        item = {}
        for name in ARRAYS:
            rows = ROWS_PER_TICK[name]
            values = self.clips[number][name][start * rows : (start + TICKS) * rows]
            if name in self.scales:
                mean, divisor = self.scales[name]
                values = (values - mean) / divisor
            item[name] = torch.from_numpy(np.array(values))
        return item


def write_plain(shards: Path, folder: Path) -> None:
    """Write the arrays of the train split as .npy files."""
    folder.mkdir()
    opened = open_shards(shards, split="train")
    codec = TextTokenCodec(opened.tokenizer)
    for sample in opened:
        words = [{"word": word.word, "start": word.start_s, "end": word.end_s} for word in sample.words]
        tokens = codec.encode(words, sample.frames // 3).ids.astype(np.int64)
        for name, array in (("gesture", sample.gesture), ("mel", sample.mel), ("text_tokens", tokens)):
            np.save(folder / f"{sample.key}.{name}.npy", array)


Read = Callable[[float], tuple[float, float]]


def _reading(batches: Iterator[Any]) -> Read:
    """Return a function that reads batches for a number of seconds.

    The function returns windows per second, and CPU µs per window of this process and its workers.
    """

    def read(seconds: float) -> tuple[float, float]:
        cpu_s, windows, begun = _tree_cpu_s(os.getpid()), 0, time.perf_counter()
        while (passed := time.perf_counter() - begun) < seconds:
            next(batches)
            windows += BATCH_SIZE
        return windows / passed, 1e6 * (_tree_cpu_s(os.getpid()) - cpu_s) / windows

    return read


def _endless(data: Dataset[dict[str, Any]], workers: int) -> Iterator[Any]:
    collate = WindowDataset.collate if isinstance(data, WindowDataset) else None
    loader = DataLoader(
        data,
        BATCH_SIZE,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=collate,
    )
    while True:
        yield from loader


@dataclass(frozen=True)
class Pair:
    """Two functions that read batches: one from our dataset, the other from the dataset that it is compared with."""

    name: str
    ours: Read
    other: Read


def _pairs(shards: Path, plain: Path, workers: int) -> list[Pair]:
    def windows(*, normalized: bool = True) -> WindowDataset:
        return WindowDataset(
            shards, window_ticks=TICKS, stride_ticks=STRIDE_TICKS, arrays=ARRAYS, normalized=normalized
        )

    statistics = windows().shards.statistics
    scales: dict[str, tuple[npt.NDArray[np.float32], ...]] = {
        name: (np.asarray(statistics[name]["mean"], np.float32), divisors(statistics[name]["std"]))
        for name in ("gesture", "mel")
    }
    trainer = BatchLoader(
        [DataSource(read_catalog(shards, Filters()))],
        Sequencing(window_ticks=TICKS),
        RankShare(batch_size=BATCH_SIZE),
        LoaderSettings(workers=0),
    )
    pairs = [Pair("trainer's loader, 0 workers", _reading(_endless(windows(), 0)), _reading(iter(trainer)))]
    for count in sorted({0, workers}):
        for normalized in (True, False):
            files = PlainFiles(plain, scales if normalized else {})
            kind = "normalized" if normalized else "raw"
            ours = _reading(_endless(windows(normalized=normalized), count))
            pairs.append(Pair(f"plain .npy files, {kind}, {count} workers", ours, _reading(_endless(files, count))))
    return pairs


def measure(pairs: list[Pair], seconds: float, repeats: int) -> list[dict[str, Any]]:
    """Read both datasets of each pair in turns; return windows per second, CPU µs per window, and ratios of speed."""
    for pair in pairs:
        pair.ours(1.0)
        pair.other(1.0)
    found: list[dict[str, Any]] = [{"against": pair.name, "ours": [], "other": []} for pair in pairs]
    for repeat in range(repeats):
        for pair, figures in zip(pairs, found, strict=True):
            sides = [("ours", pair.ours), ("other", pair.other)]
            for name, read in sides if repeat % 2 == 0 else sides[::-1]:
                figures[name].append(read(seconds))
            say(f"{repeat + 1}/{repeats} {pair.name}: {figures['ours'][-1][0] / figures['other'][-1][0]:.2f}")
    for figures in found:
        figures["ratios"] = [
            ours / other for (ours, _), (other, _) in zip(figures["ours"], figures["other"], strict=True)
        ]
    return found


def main() -> None:
    """Measure, print, and write the JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--clips", type=int, default=16, help="synthetic clips of 64 s (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=2, help="worker processes of each DataLoader (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="length of each reading in seconds (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="readings of each dataset (default: %(default)s)")
    parser.add_argument("--shards", type=Path, help="measure the train split of this folder instead of synthetic clips")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args(sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="omniges-benchmark-") as temporary:
        work = Path(temporary)
        shards = given.shards or make_shards(work, given.clips)
        write_plain(shards, work / "plain")
        machine = describe_machine(work)
        found = measure(_pairs(shards, work / "plain", given.workers), given.seconds, given.repeats)
    print(f"{machine['cpu']}, {machine['cores']} cores, load average before {machine['load_average']}")
    print(f"{'against':40} {'windows/s':>15} {'ours is ×':>9} {'CPU µs/window':>15}   pairs")
    for figures in found:
        (rate, cpu), (other_rate, other_cpu) = (np.median(figures[side], axis=0) for side in ("ours", "other"))
        ratios = " ".join(f"{ratio:.2f}" for ratio in figures["ratios"])
        rates, costs = f"{rate:,.0f} / {other_rate:,.0f}", f"{cpu:.0f} / {other_cpu:.0f}"
        print(f"{figures['against']:40} {rates:>15} {median(figures['ratios']):9.2f} {costs:>15}   {ratios}")
    if given.json:
        given.json.write_text(json.dumps({"machine": machine, "pairs": found}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
