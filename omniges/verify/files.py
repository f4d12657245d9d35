"""Opening what lies in a shard folder: regular files only, no link followed, faults as findings.

A `Folder` gives names and open files, a `Source` bytes at any place of one; `remote` has those of URLs.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final, Protocol

_CHUNK_BYTES: Final = 256 << 10  # a multiple of 512, small enough to stay in a core's cache between copy and hash
_MAPPED_BYTES: Final = 32 << 20  # members from this size on are mapped, so that their pages can be given back


class FileFault(Exception):
    """A file cannot be read; carries the finding's code and texts."""

    def __init__(self, code: str, found: str, expected: str = "a regular file") -> None:
        super().__init__(f"{code}: {found}")
        self.code, self.found, self.expected = code, found, expected


class Source(Protocol):
    """An open file."""

    @property
    def size(self) -> int:
        """Size in bytes when it was opened."""

    def read(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes at an offset; fewer only where the file ends."""

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill a view from an offset on; returns how many bytes there were, fewer only where the file ends."""

    def view(self, size: int, offset: int) -> memoryview:
        """The bytes at an offset, good until the next call."""


class Folder(Protocol):
    """A folder of shards; not for use by several threads at once."""

    def names(self) -> list[str] | None:
        """What lies in it, sorted, or None where that cannot be told; raises FileFault."""

    def opened(self, name: str) -> AbstractContextManager[Source]:
        """A regular file; raises FileFault, also for read errors inside the block."""


@contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            raise FileFault("file-missing", "nothing there") from error
        if error.errno in {errno.ELOOP, errno.ENXIO}:
            raise FileFault("file-not-regular", "a link or a device") from error
        raise FileFault("file-unreadable", error.strerror or str(error), "a readable file") from error


class LocalFolder:
    """A folder of this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        """Everything that lies in it."""
        with _faults():
            return sorted(path.name for path in self._path.iterdir())

    @contextmanager
    def opened(self, name: str) -> Iterator[Source]:
        """A regular file."""
        with _faults():
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(self._path / name, flags)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or pipe"
                    raise FileFault("file-not-regular", kind)
                yield _LocalSource(descriptor, status.st_size)
            finally:
                os.close(descriptor)


class _LocalSource:
    """An open local file."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor, self.size = descriptor, size
        self._buffer = bytearray()

    def read(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes."""
        pieces = []
        while size > 0:
            piece = os.pread(self._descriptor, size, offset)
            if not piece:
                break
            pieces.append(piece)
            size -= len(piece)
            offset += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill a view."""
        filled = 0
        while filled < len(view):
            count = os.preadv(self._descriptor, [view[filled:]], offset + filled)
            if count == 0:
                break
            filled += count
        return filled

    def view(self, size: int, offset: int) -> memoryview:
        """One buffer for all that is small, so that no page is new; a mapping for the rest."""
        if size < _MAPPED_BYTES:
            if len(self._buffer) < size:
                self._buffer = bytearray(size)
            whole = memoryview(self._buffer)[:size]
            return whole[: self.read_into(whole, offset)]
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        mapped = mmap.mmap(self._descriptor, offset + size - start, access=mmap.ACCESS_READ, offset=start)
        return memoryview(mapped)[offset - start :]


def hash_chunks(source: Source, offset: int, size: int) -> Iterator[tuple[int, memoryview, bytearray]]:
    """Chunks of a range as (position, view, buffer): one buffer is reused, the last chunk is short at the file's end.

    Chunks lie at multiples of 512 from `offset`, so a tar header never spans two.
    """
    buffer = bytearray(max(512, min(_CHUNK_BYTES, -(-size // 512) * 512)))
    whole = memoryview(buffer)
    position, end = offset, offset + size
    while position < end:
        wanted = min(len(buffer), end - position)
        filled = source.read_into(whole[:wanted], position)
        if filled:
            yield position, whole[:filled], buffer
        if filled < wanted:
            return
        position += filled
