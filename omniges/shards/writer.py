"""Packs samples into shards: key order within a split, boundaries from the content alone, publishing in the background.

A shard is closed when it reaches the target size, or earlier when it is over half of it and the checksum of the
sample's key says so. Boundaries therefore fall into step again after an insertion, and an added recording changes the
shards around it, not all that follow.
"""

from __future__ import annotations

import queue
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from omniges.publish import PendingFile
from omniges.shards.schema import Split, shard_name
from omniges.shards.tar import END_OF_ARCHIVE

__all__ = ["ShardFile", "ShardWriter", "closes_shard"]

_EARLY_CLOSE: Final = 16  # one key in so many may close a shard that is over half full
_FLUSH_BYTES: Final = 32 << 20


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A published shard as dataset.json lists it."""

    name: str
    split: Split
    samples: int
    size: int
    sha256: str


def closes_shard(key: str, size: int, target_bytes: int) -> bool:
    """Whether a shard that has grown to `size` bytes with the sample `key` ends there."""
    if size >= target_bytes:
        return True
    return size >= target_bytes // 2 and zlib.crc32(key.encode()) % _EARLY_CLOSE == 0


class _Publisher:
    """One thread that flushes and publishes, so that waiting for the disk overlaps with computing."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], None]) -> None:
        """Queue a job; raises what an earlier one failed with."""
        self.check()
        self._jobs.put(job)

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def finish(self) -> None:
        """Wait for all jobs."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._error is not None:
                continue  # nothing is published after a failure
            try:
                job()
            except BaseException as error:  # noqa: BLE001 - handed to the writing thread, which raises it
                self._error = error


class ShardWriter:
    """Writes shards of one run; a context manager that publishes the open shard on success and aborts it otherwise.

    Samples must come split by split, in key order within each.
    """

    def __init__(self, folder: Path, target_bytes: int) -> None:
        self._folder = folder
        self._target_bytes = target_bytes
        self._publisher = _Publisher()
        self._pending: PendingFile | None = None
        self._unpublished: list[PendingFile] = []
        self._split: Split | None = None
        self._index = 0
        self._samples = 0
        self._unflushed = 0
        self.shards: list[ShardFile] = []

    def add(self, split: Split, key: str, segment: bytes | bytearray | memoryview) -> tuple[str, int]:
        """Append a sample's segment; returns the shard's name and the segment's offset in it."""
        if split != self._split:
            self._close()
            self._split, self._index = split, 0
        if self._pending is None:
            self._pending = PendingFile(self._folder / shard_name(split, self._index))
            self._unpublished.append(self._pending)
        pending = self._pending
        name, offset = pending.path.name, pending.size
        pending.write(segment)
        self._samples += 1
        self._unflushed += len(segment)
        if closes_shard(key, pending.size, self._target_bytes):
            self._close()
        elif self._unflushed >= _FLUSH_BYTES:
            self._unflushed = 0
            self._publisher.submit(pending.flush_to_disk)
        return name, offset

    def _close(self) -> None:
        pending, self._pending = self._pending, None
        if pending is None or self._split is None:
            return
        pending.write(END_OF_ARCHIVE)
        self.shards.append(ShardFile(pending.path.name, self._split, self._samples, pending.size, pending.sha256))
        self._publisher.submit(pending.publish)
        self._index += 1
        self._samples = self._unflushed = 0

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._close()
        finally:
            self._publisher.finish()
            for pending in self._unpublished:
                pending.abort()  # does nothing to what has its final name
        self._publisher.check()
