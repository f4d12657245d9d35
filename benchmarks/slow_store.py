"""Measures how long training waits for data from a slow object store, by ranks, bandwidth, latency and cache.

``python benchmarks/slow_store.py`` writes a synthetic corpus and its shards. A process serves the shards by HTTP or S3;
it delays its answers, limits its bandwidth, and sometimes fails. Ranks read batches with the trainer's loader, and
share one cache, as on one machine. After each batch they sleep for the length of a step, because there is no model. A
step begins when the last rank has its batch, as in training, where gradients are averaged. So the wait of a step is the
longest wait of all ranks.

Ranks, workers and server share the cores of this machine. Choose long steps and small bandwidths. Then the rows of the
local folder, which does not use the store, show little wait. If shards and bandwidth are both ten times smaller, the
waits are equal.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import socket
import struct
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.context import ForkContext
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from corpora import COMMAND, make_corpus, say
from machine import describe_machine
from measure import run_measured

from omniges.data.catalog import Filters, read_catalog
from omniges.data.loader import LoaderSettings
from omniges.data.order import RankShare
from omniges.data.remote_shards import CacheSettings, RemoteShards, open_location
from omniges.data.sequence import DataSource, Sequencing
from omniges.storage.remote import parse_location
from omniges.trainer.batches import Feed

_PIECE_BYTES: Final = 128 << 10
_FORK: Final[ForkContext] = multiprocessing.get_context("fork")
_LONGEST_STEP_S: Final = 600.0
_SMALL_FILES_BYTES: Final = 8 << 20
_AIM: Final = 0.01  # share of the time that may be spent waiting
_CREDENTIALS: Final = {
    "AWS_ACCESS_KEY_ID": "benchmark",
    "AWS_SECRET_ACCESS_KEY": "benchmark",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
}


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Speed and failures of the store."""

    latency_s: float  # delay before each answer
    bytes_s: float  # bandwidth of all connections together
    connection_bytes_s: float  # bandwidth of each connection
    failures: float  # share of requests that fail: half get status 503, half are reset in the middle


@dataclass(frozen=True, slots=True)
class Pace:
    """Batches and steps of each rank."""

    batch_size: int
    ticks: int
    workers: int
    steps: int
    step_s: float


@dataclass(frozen=True, slots=True)
class Reading:
    """Measurements of one run of all ranks."""

    waits_s: tuple[float, ...]  # for each step, the longest wait of all ranks
    fetched_bytes: int
    requests: int
    failed: int
    cpu_share: float  # share of this machine's CPU time that ranks and workers used


class Limit:
    """A bandwidth limit that threads share: each piece waits until the pieces before it are sent."""

    def __init__(self, bytes_s: float) -> None:
        self._bytes_s, self._free_s, self._lock = bytes_s, 0.0, threading.Lock()

    def wait(self, size: int) -> None:
        """Wait until a piece of `size` bytes would be sent at this bandwidth."""
        with self._lock:
            self._free_s = max(self._free_s, time.monotonic()) + size / self._bytes_s
            until_s = self._free_s
        time.sleep(max(0.0, until_s - time.monotonic()))


class Handler(BaseHTTPRequestHandler):
    """Serves the files of one folder by HTTP, with the S3 requests for reading; the folder in a request is ignored."""

    protocol_version = "HTTP/1.1"
    folder: ClassVar[Path]
    settings: ClassVar[StoreSettings]
    shared: ClassVar[Limit]
    draws: ClassVar[random.Random]
    counts: ClassVar[Any]  # numbers of requests for content, of failed requests, and of bytes sent

    def do_HEAD(self) -> None:
        """Answer with the headers of a file."""
        self._answer(with_body=False)

    def do_GET(self) -> None:
        """Answer with a file or a range of it."""
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        """Log nothing."""

    def _answer(self, *, with_body: bool) -> None:
        time.sleep(self.settings.latency_s)
        fault = self._draw() if with_body else 1.0
        path = self.folder / self.path.partition("?")[0].rpartition("/")[2]
        if fault < self.settings.failures / 2 or not path.is_file():
            self.send_response(503 if path.is_file() else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        size = path.stat().st_size
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        begin, _, end = asked.partition("-")
        first, last = int(begin or 0), min(int(end or size - 1), size - 1)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("ETag", f'"{path.name}"')
        self.send_header("Last-Modified", self.date_time_string(path.stat().st_mtime))
        self.end_headers()
        if with_body:
            stop = (first + last) // 2 if fault < self.settings.failures else last + 1
            self._send(path, first, stop)
            if stop <= last:  # the connection is reset before the rest is sent
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True

    def _draw(self) -> float:
        with self.counts.get_lock():
            drawn = self.draws.random()
            self.counts[0] += 1
            self.counts[1] += drawn < self.settings.failures
        return drawn

    def _send(self, path: Path, first: int, stop: int) -> None:
        own = Limit(self.settings.connection_bytes_s)
        with open(path, "rb", buffering=0) as file:
            file.seek(first)
            while first < stop:
                piece = file.read(min(_PIECE_BYTES, stop - first))
                first += len(piece)
                self.shared.wait(len(piece))
                own.wait(len(piece))
                try:
                    self.wfile.write(piece)
                except ConnectionError:  # the client has closed the connection
                    self.close_connection = True
                    return
                with self.counts.get_lock():
                    self.counts[2] += len(piece)


def _serve(server: ThreadingHTTPServer, folder: Path, settings: StoreSettings, counts: Any) -> None:
    Handler.folder, Handler.settings, Handler.counts = folder, settings, counts
    Handler.shared, Handler.draws = Limit(settings.bytes_s), random.Random(0)  # noqa: S311 - no secret
    server.daemon_threads = True
    server.serve_forever()


class SlowStore:
    """A store in a separate process."""

    def __init__(self, folder: Path, settings: StoreSettings) -> None:
        self._counts = _FORK.Array("q", 3)
        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:  # the copy in the process stays open
            self.endpoint = f"http://127.0.0.1:{server.server_port}"
            self._process = _FORK.Process(target=_serve, args=(server, folder, settings, self._counts), daemon=True)
            self._process.start()

    def url(self, protocol: str) -> str:
        """Return the URL of the shards; S3 clients take the server from AWS_ENDPOINT_URL."""
        return f"{self.endpoint}/bucket/shards" if protocol == "http" else "s3://bucket/shards"

    def counts(self) -> tuple[int, int, int]:
        """Return the numbers of requests for content, of failed requests, and of bytes sent."""
        return self._counts[0], self._counts[1], self._counts[2]

    def __enter__(self) -> SlowStore:
        os.environ.update(_CREDENTIALS | {"AWS_ENDPOINT_URL": self.endpoint})
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()


def _rank(share: RankShare, url: str, cache: CacheSettings, pace: Pace, together: Barrier, answers: Any) -> None:
    """Run one rank: read batches and sleep, then put the rank and its wait of each step, in seconds, into `answers`."""
    torch.set_num_threads(1)
    shards = open_location(parse_location(url), cache, splits=("train",))
    source = DataSource(read_catalog(shards.folder, Filters(split="train")), shards=shards)
    loading, sequencing = LoaderSettings(workers=pace.workers), Sequencing(window_ticks=pace.ticks)
    waits = []
    feed = Feed([source], sequencing, share, loading, torch.device("cpu"))
    with feed:
        for _ in range(pace.steps):
            together.wait(_LONGEST_STEP_S)
            began = time.monotonic()
            feed.next()
            waits.append(time.monotonic() - began)
            together.wait(_LONGEST_STEP_S)
            time.sleep(pace.step_s)
    if isinstance(shards, RemoteShards):
        shards.close()
    answers.put((share.rank, waits))


def read(ranks: int, url: str, cache: CacheSettings, pace: Pace, store: SlowStore) -> Reading:
    """Run all ranks, and return the measurements of ranks and store."""
    together, answers = _FORK.Barrier(ranks), _FORK.SimpleQueue()
    before, cpu_before_s, began_s = store.counts(), _cpu_s(), time.monotonic()
    shares = [RankShare(rank=rank, world_size=ranks, batch_size=pace.batch_size) for rank in range(ranks)]
    running = [_FORK.Process(target=_rank, args=(share, url, cache, pace, together, answers)) for share in shares]
    for process in running:
        process.start()
    for process in running:
        process.join()
    if any(process.exitcode for process in running):
        raise SystemExit("slow_store.py: a rank has failed; its error is above")
    found = dict(answers.get() for _ in running)
    wall_s = time.monotonic() - began_s
    requests, failed, sent = (after - earlier for earlier, after in zip(before, store.counts(), strict=True))
    cpu_share = (_cpu_s() - cpu_before_s) / wall_s / len(os.sched_getaffinity(0))
    waits = tuple(max(step) for step in zip(*found.values(), strict=True))
    return Reading(waits, sent, requests, failed, cpu_share)


def _cpu_s() -> float:
    """Return the CPU seconds of this process and of the children that it waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


_COLUMNS: Final = (
    "shards",
    "ranks",
    "latency",
    "bandwidth",
    "cache",
    "first step",
    "waited in all",
    "below 1 % after",
    "from the store",
    "requests (failed)",
    "CPU",
)


def _row(names: tuple[str, ...], ranks: int, reading: Reading, *, cached: bool) -> list[str]:
    """Return the cells of a row. If the cache can contain the split (`cached`), waits end after it is filled."""
    kind, latency, bandwidth, cache = names
    waited_s = sum(reading.waits_s)
    return [
        kind,
        str(ranks),
        latency,
        bandwidth,
        cache,
        f"{reading.waits_s[0]:.1f} s",
        f"{waited_s:.1f} s",
        f"{waited_s * (1 / _AIM - 1) / 60:.0f} min" if cached else "–",
        f"{reading.fetched_bytes / 1e6:,.0f} MB",
        f"{reading.requests} ({reading.failed})",
        f"{reading.cpu_share:.0%}",
    ]


def _print_row(cells: list[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def _cache(folder: Path, split_bytes: int, share: float) -> CacheSettings:
    """Return settings of a cache for a share of the split, plus space for the small files."""
    return CacheSettings(folder=folder, capacity_bytes=int(split_bytes * share) + _SMALL_FILES_BYTES)


def measure(settings: argparse.Namespace, shards: Path, work: Path) -> None:
    """Measure all combinations and print a row for each."""
    pace = Pace(settings.batch_size, settings.ticks, settings.workers, settings.steps, settings.step_s)
    split_bytes = sum(path.stat().st_size for path in shards.glob("train-*.tar"))
    latencies: list[float] = settings.latency_ms
    print(
        f"{split_bytes / 1e6:,.0f} MB of shards; {pace.batch_size} windows of {pace.ticks} ticks a rank and step of "
        f"{pace.step_s:g} s, {pace.steps} steps; {settings.failures:.1%} of requests fail; {describe_machine(work)}\n"
    )
    _print_row(list(_COLUMNS))
    _print_row(["---"] * len(_COLUMNS))
    for ranks in settings.ranks:
        for latency_ms in latencies:
            for mb_s in settings.mb_s:
                behaviour = StoreSettings(
                    latency_ms / 1e3, mb_s * 1e6, settings.connection_mb_s * 1e6, settings.failures
                )
                with SlowStore(shards, behaviour) as store, tempfile.TemporaryDirectory(dir=work) as folder:
                    cache = _cache(Path(folder), split_bytes, settings.cache_share)
                    for state in ("empty", "filled"):
                        say(f"{ranks} ranks, {latency_ms:g} ms, {mb_s:g} MB/s, {state} cache")
                        reading = read(ranks, store.url(settings.protocol), cache, pace, store)
                        names = (settings.protocol, f"{latency_ms:g} ms", f"{mb_s:g} MB/s", state)
                        _print_row(_row(names, ranks, reading, cached=settings.cache_share >= 1))
        with SlowStore(shards, StoreSettings(0, 1e9, 1e9, 0)) as store:
            reading = read(ranks, str(shards), _cache(work / "unused", split_bytes, 1.0), pace, store)
        _print_row(_row(("folder", "–", "–", "–"), ranks, reading, cached=True))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--ranks", type=int, nargs="+", default=[1, 2, 4, 8], help="numbers of ranks of the machine (default: 1 2 4 8)"
    )
    parser.add_argument(
        "--mb-s",
        type=float,
        nargs="+",
        default=[25, 50, 100],
        help="bandwidths of the store in MB/s (default: 25 50 100)",
    )
    parser.add_argument(
        "--connection-mb-s",
        type=float,
        default=1000.0,
        help="bandwidth of each connection in MB/s (default: %(default)s)",
    )
    parser.add_argument(
        "--latency-ms",
        type=float,
        nargs="+",
        default=[50],
        help="delays before an answer in milliseconds (default: 50)",
    )
    parser.add_argument(
        "--failures", type=float, default=0.01, help="share of requests that fail (default: %(default)s)"
    )
    parser.add_argument(
        "--protocol", choices=("http", "s3"), default="s3", help="protocol of the store (default: %(default)s)"
    )
    parser.add_argument(
        "--cache-share",
        type=float,
        default=1.0,
        help="size of the cache, as a multiple of the split's size (default: %(default)s)",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="windows per rank and step (default: %(default)s)")
    parser.add_argument(
        "--ticks", type=int, default=64, help="length of a window in ticks of 0.1 s (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=2, help="loader processes of each rank (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="steps of each reading (default: %(default)s)")
    parser.add_argument(
        "--step-s", type=float, default=0.5, help="time of a step without waiting, in seconds (default: %(default)s)"
    )
    parser.add_argument(
        "--recordings", type=int, default=120, help="recordings of the synthetic corpus (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="length of each recording in seconds (default: %(default)s)"
    )
    parser.add_argument("--shard-size", default="16MiB", help="size of a shard (default: %(default)s)")
    parser.add_argument("--shards", type=Path, help="folder of shards to serve instead of a synthetic corpus")
    return parser.parse_args(arguments)


def main() -> None:
    """Make shards, measure, and print a table in Markdown."""
    settings = _parse(sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="omniges-benchmark-") as temporary:
        work = Path(temporary)
        shards = settings.shards
        if shards is None:
            root = make_corpus(work / "corpus", settings.recordings, settings.seconds)
            shards = work / "shards"
            command = [str(COMMAND), "preprocess", "--root", str(root), "-o", str(shards)]
            run_measured([*command, "--shard-size", settings.shard_size], work / "preprocess")
            shutil.rmtree(root)
        measure(settings, shards.absolute(), work)


if __name__ == "__main__":
    main()
