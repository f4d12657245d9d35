"""Read shard folders, on this machine or at a URL, in limited memory. Read errors become findings.

A folder object lists names and opens files. A source object reads bytes at any offset of one file. On this machine,
only regular files are opened, and links are not followed. A URL is read in ranges of bytes. At most one range of a
file, or one member (a file in a shard), is in memory.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from omniges.errors import raise_fault_of_machine
from omniges.storage.remote import MAX_TIME_OUTS, Location, MissingFile, ShortFile, Store, StoreFault, open_store

T = TypeVar("T")

_CHUNK_BYTES: Final = 256 << 10  # a multiple of 512; small enough to stay in a core's cache
_MAPPED_BYTES: Final = 32 << 20  # larger members are memory-mapped, so that the kernel can free their pages
_WINDOW_BYTES: Final = 8 << 20  # size of a range, large enough to hide latency; four ranges fit a worker's memory
_WAITS_S: Final = (0.5, 1.0, 2.0)  # wait before each retry


class FileFault(Exception):
    """Exception for a file that cannot be read. It contains the code and texts of the finding to report."""

    def __init__(self, code: str, found: str, expected: str = "a regular file") -> None:
        super().__init__(f"{code}: {found}")
        self.code, self.found, self.expected = code, found, expected


@contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise_fault_of_machine(error)
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            raise FileFault("file-missing", "nothing there") from error
        if error.errno in {errno.ELOOP, errno.ENXIO}:
            raise FileFault("file-not-regular", "a link or a device") from error
        raise FileFault("file-unreadable", error.strerror or str(error), "a readable file") from error


class LocalFolder:
    """A folder on this machine."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        """Return the names of all entries, sorted; raise FileFault if the folder cannot be read."""
        with _faults():
            return sorted(path.name for path in self._path.iterdir())

    @contextmanager
    def opened(self, name: str) -> Iterator[Source]:
        """Open a regular file. Raise FileFault if opening fails, or if reading in the `with` block fails."""
        with _faults():
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(self._path / name, flags)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or pipe"
                    raise FileFault("file-not-regular", kind)
                yield LocalSource(descriptor, status.st_size)
            finally:
                os.close(descriptor)


class LocalSource:
    """An open local file."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor, self.size = descriptor, size
        self._buffer = bytearray()

    def read(self, size: int, offset: int) -> bytes:
        """Return bytes at an offset.

        Args:
            size: Number of bytes.
            offset: First byte in the file.

        Returns:
            At most `size` bytes; fewer only at the end of the file.
        """
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
        """Fill a buffer with the bytes that start at an offset.

        Args:
            view: Buffer to fill.
            offset: First byte in the file.

        Returns:
            Number of bytes read; fewer than the buffer holds only at the end of the file.
        """
        filled = 0
        while filled < len(view):
            count = os.preadv(self._descriptor, [view[filled:]], offset + filled)
            if count == 0:
                break
            filled += count
        return filled

    def view(self, size: int, offset: int) -> memoryview:
        """Return a view of the bytes at an offset, valid until the next call.

        Small ranges share one buffer, which avoids new memory pages. Large ranges are memory-mapped, and must end
        within the file.

        Args:
            size: Number of bytes.
            offset: First byte in the file.

        Returns:
            At most `size` bytes; fewer only for a small range at the end of the file.
        """
        if size < _MAPPED_BYTES:
            if len(self._buffer) < size:
                self._buffer = bytearray(size)
            buffer_view = memoryview(self._buffer)[:size]
            return buffer_view[: self.read_into(buffer_view, offset)]
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        mapped = mmap.mmap(self._descriptor, offset + size - start, access=mmap.ACCESS_READ, offset=start)
        return memoryview(mapped)[offset - start :]


def _with_retries(function: Callable[[], T]) -> T:
    """Call a function, and repeat the call after a fault that may be temporary.

    Raise FileFault if the file is absent or has become shorter. Raise StoreFault for a permanent fault, or after too
    many repetitions or timeouts.
    """
    time_outs = 0
    for wait_s in (*_WAITS_S, None):
        try:
            return function()
        except MissingFile:
            raise FileFault("file-missing", "nothing there") from None
        except ShortFile as error:
            end = f"the end of the file after {error.end} bytes"
            raise FileFault("file-unreadable", end, "a file that does not become shorter") from None
        except StoreFault as fault:
            time_outs += fault.timed_out
            if not fault.transient or wait_s is None or time_outs == MAX_TIME_OUTS:
                raise
            time.sleep(wait_s)
    raise AssertionError("the last try returns or raises")


class RemoteFolder:
    """A folder on a server or in object storage, for use by one thread. It has no links or devices."""

    def __init__(self, store: Store, window_bytes: int) -> None:
        self._store, self._window_bytes = store, window_bytes

    def names(self) -> list[str] | None:
        """Return the names of the files in the folder; None for a web server, which cannot list them."""
        if self._store.location.protocol in {"http", "https"}:
            return None
        try:
            return sorted(_with_retries(self._store.listing))
        except FileFault as fault:
            if fault.code == "file-missing":
                return []
            raise

    @contextmanager
    def opened(self, name: str) -> Iterator[Source]:
        """Open a file; raise FileFault if it is absent."""
        size = _with_retries(lambda: self._store.size(name))
        if size is None:
            raise StoreFault(
                f"{self._store.location.shown_file(name)}: expected the size of the file from the server, found "
                "none; use another server, or copy the shards"
            )
        yield RemoteSource(self._store, name, size, self._window_bytes)


class RemoteSource:
    """A file on a server or in object storage."""

    def __init__(self, store: Store, name: str, size: int, window_bytes: int) -> None:
        self._store, self._name, self.size, self._window_bytes = store, name, size, window_bytes
        self._start, self._window = 0, b""

    def _fetch(self, size: int, offset: int) -> bytes:
        size = max(0, min(size, self.size - offset))
        return _with_retries(lambda: self._store.read_range(self._name, offset, size)) if size else b""

    def read(self, size: int, offset: int) -> bytes:
        """Return bytes at an offset.

        If `size` is less than `window_bytes`, a request reads `window_bytes` bytes. They stay in memory, so that the
        next reads may need no request.

        Args:
            size: Number of bytes.
            offset: First byte in the file.

        Returns:
            At most `size` bytes; fewer only at the end of the file.
        """
        size = max(0, min(size, self.size - offset))
        if size >= self._window_bytes:
            return self._fetch(size, offset)
        if not self._start <= offset <= offset + size <= self._start + len(self._window):
            self._window = b""  # free the memory before the next request
            self._start, self._window = offset, self._fetch(self._window_bytes, offset)
        return self._window[offset - self._start : offset - self._start + size]

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill a buffer with the bytes that start at an offset.

        Args:
            view: Buffer to fill.
            offset: First byte in the file.

        Returns:
            Number of bytes read; fewer than the buffer holds only at the end of the file.
        """
        data = self.read(len(view), offset)
        view[: len(data)] = data
        return len(data)

    def view(self, size: int, offset: int) -> memoryview:
        """Read bytes at an offset into memory, and return a view of them.

        Args:
            size: Number of bytes.
            offset: First byte in the file.

        Returns:
            At most `size` bytes; fewer only at the end of the file.
        """
        return memoryview(self.read(size, offset))


Folder = LocalFolder | RemoteFolder
Source = LocalSource | RemoteSource


class Folders:
    """Context manager with open handles of one folder: one handle for each thread that reads at the same time.

    Pass ``ahead=True`` if files are read from start to end. Each request to a server then reads a large range, so that
    the next reads need no request. The method `borrowed` yields a handle. It raises EnvironmentFault if the package for
    the URL is not installed. The use of a handle raises StoreFault if the server or the network fails.
    """

    def __init__(self, location: Location, *, ahead: bool) -> None:
        self._location, self._window_bytes = location, _WINDOW_BYTES if ahead else 0
        self._free: deque[Store] = deque()  # the methods of a deque are thread-safe

    @contextmanager
    def borrowed(self) -> Iterator[Folder]:
        """Yield a handle of the folder. During the `with` block, no other thread uses this handle."""
        if self._location.path is not None:
            yield LocalFolder(self._location.path)
            return
        try:
            store = self._free.pop()
        except IndexError:
            store = open_store(self._location)
        try:
            yield RemoteFolder(store, self._window_bytes)
        finally:
            self._free.append(store)

    def __enter__(self) -> Folders:
        return self

    def __exit__(self, *_: object) -> None:
        while self._free:
            self._free.pop().close()


def hash_chunks(source: Source, offset: int, size: int) -> Iterator[tuple[int, memoryview, bytearray]]:
    """Read a byte range in chunks, such as for hashing; yield (position, view, buffer) for each chunk.

    All chunks use the same buffer. The last chunk may be shorter. Chunks start at multiples of 512 from `offset`, so no
    tar header is divided between two chunks.

    Args:
        source: The open file.
        offset: First byte of the range.
        size: Number of bytes in the range.

    Yields:
        Position in the file, view of the chunk, and the buffer that contains the chunk.
    """
    buffer = bytearray(max(512, min(_CHUNK_BYTES, -(-size // 512) * 512)))
    buffer_view = memoryview(buffer)
    position, end = offset, offset + size
    while position < end:
        wanted = min(len(buffer), end - position)
        filled = source.read_into(buffer_view[:wanted], position)
        if filled:
            yield position, buffer_view[:filled], buffer
        if filled < wanted:
            return
        position += filled
