"""Packing of samples into shards, and publishing of finished shards in the background.

Samples are added in key order within a split. A shard ends after the sample with which it reaches the target size. A
shard that has reached half of the target size may end earlier: it ends after a sample if the CRC-32 of the sample's key
is a multiple of 16. So the shard boundaries depend only on the content. An added recording changes only the shards near
it, not all later shards.

A sample that exists in a shard file of an earlier run is copied from that file. If a new shard would have the same
bytes as a shard file of an earlier run, no new file is written and the earlier file is used.
"""

from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Callable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol

from omniges.errors import DataError
from omniges.shards.manifest import ManifestRow, MemberPlace
from omniges.shards.schema import Split, as_split, shard_name
from omniges.shards.tar import END_OF_ARCHIVE
from omniges.storage.atomic import PendingFile, os_errors

_EARLY_CLOSE: Final = 16  # one key in 16 ends a shard that is at least half full
_FLUSH_BYTES: Final = 32 << 20
_COPY_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A shard's entry in dataset.json: name, split, number of samples, size in bytes, and sha256."""

    name: str
    split: Split
    samples: int
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class StoredShard:
    """A shard file of an earlier run."""

    path: Path
    size: int  # bytes
    sha256: str


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """Position of a sample's tar members in a shard file of an earlier run."""

    shard: StoredShard
    offset: int  # first byte in the file
    size: int  # bytes


@contextmanager
def open_local(shard: StoredShard) -> Iterator[int]:
    """Open the file of a stored shard for reading, and yield its descriptor; raise OSError if that fails."""
    descriptor = os.open(shard.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_stored(
    segment: StoredSegment, open_stored: Callable[[StoredShard], AbstractContextManager[int]] = open_local
) -> Iterator[bytes]:
    """Yield the bytes of a sample's tar members in a stored shard, in pieces.

    Args:
        segment: Position of the members.
        open_stored: Function that opens the shard and yields its descriptor.

    Yields:
        Pieces of up to 1 MiB.

    Raises:
        DataError: The shard file ends before the last byte of the segment.
    """
    path = segment.shard.path
    with os_errors(path, "read"), open_stored(segment.shard) as descriptor:
        position, end = segment.offset, segment.offset + segment.size
        while position < end:
            piece = os.pread(descriptor, min(_COPY_BYTES, end - position), position)
            if not piece:
                raise DataError(
                    f"{path}: expected {end} bytes, found that the file ends at byte {position}; run the same "
                    "command again"
                )
            yield piece
            position += len(piece)


class OpenShard(Protocol):
    """Interface of a shard that is being written: append samples, then complete and publish it, or abort."""

    path: Path
    size: int

    @property
    def sha256(self) -> str:
        """sha256 of the shard in hexadecimal, known after `publish`."""

    def write(self, data: Any) -> None:
        """Append a sample (the `segment` argument of `ShardWriter.add`), or the bytes that end the tar archive."""

    def copy(self, segment: StoredSegment) -> None:
        """Append a sample's tar members from a stored shard."""

    def flush_to_disk(self) -> None:
        """Write pending bytes to disk, so that `publish` takes less time."""

    def complete(self) -> None:
        """Declare that all samples were added. If another machine writes the shard, it can start after this call."""

    def publish(self) -> None:
        """Make sure that the whole shard is on disk, and give it its final name."""

    def abort(self) -> None:
        """Discard the shard; a published shard stays."""


class PendingShard(PendingFile):
    """A shard that this process writes; `open_stored` opens a shard of an earlier run to copy samples from it."""

    def __init__(
        self, path: Path, open_stored: Callable[[StoredShard], AbstractContextManager[int]] = open_local
    ) -> None:
        super().__init__(path)
        self._open_stored = open_stored

    def copy(self, segment: StoredSegment) -> None:
        """Append a sample's tar members from a stored shard.

        Args:
            segment: Position of the members.

        Raises:
            DataError: The stored shard's file ends before the last byte of the segment.
        """
        for piece in read_stored(segment, self._open_stored):
            self.write(piece)

    def complete(self) -> None:
        """Do nothing, because `write` and `copy` have already written every sample."""


def closes_shard(key: str, size: int, target_bytes: int) -> bool:
    """Return whether a shard ends after the last added sample, by the rule in the module's docstring.

    Args:
        key: Key of the last added sample.
        size: Size of the shard in bytes, including this sample.
        target_bytes: Target size of a shard.

    Returns:
        True if the next sample begins a new shard.
    """
    if size >= target_bytes:
        return True
    return size >= target_bytes // 2 and zlib.crc32(key.encode()) % _EARLY_CLOSE == 0


class ShardWriter:
    """A writer of the shards of one run, used as a context manager.

    At the end of the `with` block, the last shard is published. After an exception, unpublished shards are discarded.
    Samples must be added split by split, in key order within a split.

    Args:
        path_of: Function that returns the path of the n-th written shard, n from 0.
        target_bytes: Target size of a shard in bytes.
        on_published: Function that a background thread calls for each written shard when the shard is on disk. Its
            arguments are the `ShardFile` entry, the path, and the manifest rows of the shard's samples.
        open_shard: Function that starts a new shard at a path. With several machines, it may return a shard that
            another machine writes.
        max_waiting: Maximum number of finished shards that wait for the background thread; None: no limit.
    """

    def __init__(
        self,
        path_of: Callable[[int], Path],
        target_bytes: int,
        on_published: Callable[[ShardFile, Path, tuple[ManifestRow, ...]], None] = lambda _shard, _path, _rows: None,
        open_shard: Callable[[Path], OpenShard] = PendingShard,
        max_waiting: int | None = None,
    ) -> None:
        self._path_of = path_of
        self._target_bytes = target_bytes
        self._on_published = on_published
        self._open_shard = open_shard
        self._max_waiting = max_waiting
        self._publishing: list[Future[None]] = []  # one job for each written shard
        self._publisher = ThreadPoolExecutor(1, "publisher")  # disk writes overlap with computation
        self._last_job: Future[None] | None = None
        self._pending: OpenShard | None = None
        self._unpublished: list[OpenShard] = []
        self._held: list[StoredSegment] = []  # samples of the open shard; so far it equals the start of an earlier file
        self._rows: list[ManifestRow] = []  # rows of the open shard
        self._split: Split | None = None
        self._index = 0  # index of the open shard within its split, from 0
        self._written = itertools.count()
        self._size = 0
        self._unflushed = 0
        self.shards: list[ShardFile] = []  # shards that are on disk
        self.paths: dict[str, Path] = {}  # name of each shard -> path of the file that contains it

    def add(self, row: ManifestRow, segment: Sized) -> ManifestRow:
        """Append a sample.

        Args:
            row: Manifest row of the sample. The offsets in it count from the start of the segment.
            segment: Tar members of the sample: bytes, or an object that the open shard accepts. ``len(segment)`` must
                be the size of the members in bytes.

        Returns:
            The row with the shard's name, and with offsets that count from the start of the shard.
        """
        self._enter_split(row)
        self._write_held()
        self._append(segment)
        return self._placed(row, len(segment))

    def add_stored(self, row: ManifestRow, segment: StoredSegment) -> ManifestRow:
        """Append a sample from a shard file of an earlier run. The caller must have checked the sample's bytes.

        Args:
            row: Manifest row of the sample. The offsets in it count from the start of the segment.
            segment: Position of the sample's tar members.

        Returns:
            The row with the shard's name, and with offsets that count from the start of the shard.
        """
        self._enter_split(row)
        follows = segment.offset == self._size and all(held.shard == segment.shard for held in self._held[-1:])
        if self._pending is None and follows:
            self._held.append(segment)
        else:
            self._write_held()
            self._copy(segment)
        return self._placed(row, segment.size)

    def _enter_split(self, row: ManifestRow) -> None:
        split = as_split(row.split)
        if split is None:
            raise ValueError(f"{row.key}: no split {row.split!r}")
        if split != self._split:
            self._close()
            self._split, self._index = split, 0

    def _placed(self, row: ManifestRow, size: int) -> ManifestRow:
        """Return a manifest row with the sample's shard and offsets; close the shard if it ends after this sample.

        The sample of `size` bytes was just appended. The offsets in `row` count from the start of the sample.
        """
        if self._split is None:
            raise RuntimeError("no split has begun")
        members = {
            member: MemberPlace(place.offset + self._size, place.size, place.sha256)
            for member, place in row.members.items()
        }
        placed = replace(row, shard=shard_name(self._split, self._index), members=members)
        self._rows.append(placed)
        self._size += size
        if closes_shard(row.key, self._size, self._target_bytes):
            self._close()
        elif self._pending is not None and self._unflushed >= _FLUSH_BYTES:
            self._unflushed = 0
            self._in_background(self._pending.flush_to_disk)
        return placed

    def _open(self) -> OpenShard:
        """Return the shard that is being written; create one if no shard is open."""
        if self._pending is None:
            if self._max_waiting is not None and len(self._publishing) > self._max_waiting:
                self._publishing[-1 - self._max_waiting].result()
            self._pending = self._open_shard(self._path_of(next(self._written)))
            self._unpublished.append(self._pending)
        return self._pending

    def _append(self, data: Sized) -> None:
        self._open().write(data)
        self._unflushed += len(data)

    def _write_held(self) -> None:
        held, self._held = self._held, []
        for segment in held:
            self._copy(segment)

    def _copy(self, segment: StoredSegment) -> None:
        self._open().copy(segment)
        self._unflushed += segment.size

    def _close(self) -> None:
        if not self._rows or self._split is None:
            return
        size = self._size + len(END_OF_ARCHIVE)
        if self._held and self._held[0].shard.size != size:
            self._write_held()
        split, rows, name = self._split, tuple(self._rows), shard_name(self._split, self._index)
        if self._held:
            stored = self._held[0].shard
            self.paths[name] = stored.path
            kept = ShardFile(name, split, len(rows), size, stored.sha256)
            self._in_background(lambda: self.shards.append(kept))
        else:
            self._append(END_OF_ARCHIVE)
            pending, self._pending = self._open(), None
            self.paths[name] = pending.path
            pending.complete()

            def publish() -> None:
                pending.publish()
                shard = ShardFile(name, split, len(rows), size, pending.sha256)
                self.shards.append(shard)
                self._on_published(shard, pending.path, rows)

            self._publishing.append(self._in_background(publish))
        self._index += 1
        self._held, self._rows = [], []
        self._size = self._unflushed = 0

    def _in_background(self, job: Callable[[], None]) -> Future[None]:
        """Run a job in the background after all earlier jobs, and return its future.

        If an earlier job failed, this job is not run. The earlier job's error is raised by this method or by the
        future.
        """
        before = self._last_job
        if before is not None and before.done():
            before.result()

        def after_the_last() -> None:
            if before is not None:
                before.result()
            job()

        self._last_job = self._publisher.submit(after_the_last)
        return self._last_job

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._close()
        finally:
            self._publisher.shutdown()
            for pending in self._unpublished:
                pending.abort()  # has no effect on published files
        if self._last_job is not None:
            self._last_job.result()
