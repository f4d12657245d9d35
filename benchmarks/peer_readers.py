"""Reads the same windows with a peer of the loader: webdataset, litData or mosaic streaming.

`loader.py` runs this program with a Python that has the peer; this Python need not have omniges. ``prepare`` writes the
windows in the format of the peer. ``read`` prints ``ready`` after a warm-up. Then it reads a number of seconds from
each line of standard input, reads batches for this time, and prints the number of windows and the elapsed seconds.

Each peer is used as its documentation shows, with settings that make it fast. Webdataset decodes only two members, and
uses all windows of a decoded clip. LitData and mosaic streaming store windows. No peer normalizes the values.
"""

from __future__ import annotations

import argparse
import importlib
import io
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

Window = dict[str, Any]

_FRAMES: Final = {"gesture": 3, "mel": 10}  # frames per tick
_SHUFFLED: Final = 500


def _cut(arrays: dict[str, Any], ticks: int) -> Iterator[Window]:
    """Yield all windows of a clip, one after the other."""
    count = min(len(array) // (_FRAMES[name] * ticks) for name, array in arrays.items())
    for number in range(count):
        yield {
            name: array[number * ticks * _FRAMES[name] : (number + 1) * ticks * _FRAMES[name]]
            for name, array in arrays.items()
        }


def windows_of_shards(paths: Iterable[Path], ticks: int) -> Iterator[Window]:
    """Yield windows of all clips, read with tarfile and numpy."""
    for path in paths:
        with tarfile.open(path) as tar:
            clip: dict[str, Any] = {}
            for member in tar:
                stream = member.name.partition(".")[2].removesuffix(".npy")
                if stream in _FRAMES:
                    clip[stream] = np.load(io.BytesIO(tar.extractfile(member).read()), allow_pickle=False)  # type: ignore[union-attr]
                if len(clip) == len(_FRAMES):
                    yield from _cut(clip, ticks)
                    clip = {}


def _module(name: str) -> Any:
    """Import the package of a peer; this project does not depend on it."""
    return importlib.import_module(name)


class _Peer(Protocol):
    def prepare(self, shards: list[Path], folder: Path, ticks: int) -> None:
        """Write the windows in the peer's own format."""

    def loader(self, shards: list[Path], folder: Path, options: argparse.Namespace) -> Any:
        """Return an iterable of batches."""


class _Webdataset:
    """Webdataset on the unchanged tar shards: decode, cut into windows, shuffle, default collate."""

    def prepare(self, shards: list[Path], folder: Path, ticks: int) -> None:
        """Do nothing, because webdataset reads the shards."""

    def loader(self, shards: list[Path], folder: Path, options: argparse.Namespace) -> Any:
        torch, wds = _module("torch"), _module("webdataset")

        def cut(samples: Iterable[Any]) -> Iterator[Window]:
            for sample in samples:
                yield from _cut({name: sample[f"{name}.npy"] for name in _FRAMES}, options.ticks)

        urls = [str(path) for path in shards] * (1 if len(shards) >= options.workers else options.workers)
        data = (
            wds.WebDataset(
                urls,
                shardshuffle=len(urls),
                empty_check=False,
                select_files=lambda name: name.endswith(("gesture.npy", "mel.npy")),
            )
            .decode()
            .compose(cut)
            .shuffle(_SHUFFLED)
            .repeat()
        )
        return torch.utils.data.DataLoader(data, batch_size=options.batch_size, num_workers=options.workers)


class _LitData:
    """LitData on windows that `litdata.optimize` stores."""

    def prepare(self, shards: list[Path], folder: Path, ticks: int) -> None:
        litdata = _module("litdata")

        inputs = [(str(path), ticks) for path in shards]
        litdata.optimize(fn=_windows_of_one, inputs=inputs, output_dir=str(folder), chunk_bytes="64MB")

    def loader(self, shards: list[Path], folder: Path, options: argparse.Namespace) -> Any:
        litdata = _module("litdata")

        data = litdata.StreamingDataset(str(folder), shuffle=True, drop_last=True)
        return litdata.StreamingDataLoader(
            data, batch_size=options.batch_size, num_workers=options.workers, persistent_workers=options.workers > 0
        )


def _windows_of_one(given: tuple[str, int]) -> Iterator[Window]:
    yield from windows_of_shards([Path(given[0])], given[1])


class _Mosaic:
    """Mosaic streaming on windows that `streaming.MDSWriter` stores."""

    def prepare(self, shards: list[Path], folder: Path, ticks: int) -> None:
        streaming = _module("streaming")

        with streaming.MDSWriter(out=str(folder), columns=dict.fromkeys(_FRAMES, "ndarray:float32")) as writer:
            for window in windows_of_shards(shards, ticks):
                writer.write({name: np.ascontiguousarray(array) for name, array in window.items()})

    def loader(self, shards: list[Path], folder: Path, options: argparse.Namespace) -> Any:
        streaming, torch = _module("streaming"), _module("torch")

        data = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=options.batch_size)
        return torch.utils.data.DataLoader(
            data, batch_size=options.batch_size, num_workers=options.workers, persistent_workers=options.workers > 0
        )


PEERS: Final[dict[str, _Peer]] = {"webdataset": _Webdataset(), "litdata": _LitData(), "streaming": _Mosaic()}


def _endless(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def _serve(batches: Iterator[Any], warm_up: int) -> None:
    for _ in range(warm_up):
        next(batches)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        windows, start, limit = 0, time.perf_counter(), float(line)
        while (passed := time.perf_counter() - start) < limit:
            windows += len(next(batches)["gesture"])
        sys.stdout.write(f"{windows} {passed}\n")
        sys.stdout.flush()


def main() -> None:
    """Run the action that the arguments select."""
    parser = argparse.ArgumentParser(description="Read windows with a peer of the loader; loader.py runs this program.")
    parser.add_argument(
        "action",
        choices=("check", "prepare", "read"),
        help="check that the peer is installed, prepare its files, or read windows",
    )
    parser.add_argument("peer", choices=tuple(PEERS), help="the library to read with")
    parser.add_argument("--shards", type=Path, nargs="*", default=[], help="tar files of the shards")
    parser.add_argument("--folder", type=Path, help="folder for the files of the peer")
    parser.add_argument(
        "--ticks", type=int, default=43, help="length of a window in ticks of 0.1 s (default: %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="windows per batch (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default: %(default)s)")
    parser.add_argument(
        "--warm-up", type=int, default=20, help="batches that are read before the measurement (default: %(default)s)"
    )
    options = parser.parse_args()
    peer = PEERS[options.peer]
    if options.action == "check":
        _module(options.peer)
    elif options.action == "prepare":
        peer.prepare(options.shards, options.folder, options.ticks)
    else:
        _serve(iter(_endless(peer.loader(options.shards, options.folder, options))), options.warm_up)


if __name__ == "__main__":
    main()
