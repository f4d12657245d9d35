"""Opening what lies in a folder of shards, on this machine or behind a URL: faults are findings, memory is bounded.

A folder gives names and open files, a source bytes at any place of one. Locally only regular files are opened and no
link is followed. A URL is read by ranges: never more than a window of a file or one member is held.
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

from omniges.errors import DataError
from omniges.storage.remote import Location, MissingFile, Store, StoreFault, open_store

T = TypeVar("T")

_CHUNK_BYTES: Final = 256 << 10  # a multiple of 512, small enough to stay in a core's cache between copy and hash
_MAPPED_BYTES: Final = 32 << 20  # members from this size on are mapped, so that their pages can be given back
_WINDOW_BYTES: Final = 8 << 20  # a request of this size costs its latency once; four of them fit a worker's memory
_WAITS_S: Final = (0.5, 1.0, 2.0)  # before each further try of what may succeed later


class FileFault(Exception):
    """A file cannot be read; carries the finding's code and texts."""

    def __init__(self, code: str, found: str, expected: str = "a regular file") -> None:
        super().__init__(f"{code}: {found}")
        self.code, self.found, self.expected = code, found, expected


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
        """Everything that lies in it, sorted; raises FileFault."""
        with _faults():
            return sorted(path.name for path in self._path.iterdir())

    @contextmanager
    def opened(self, name: str) -> Iterator[Source]:
        """A regular file; raises FileFault, also for read errors inside the block."""
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
        """Up to `size` bytes at an offset; fewer only where the file ends."""
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
        """Fill a view from an offset on; returns how many bytes there were, fewer only where the file ends."""
        filled = 0
        while filled < len(view):
            count = os.preadv(self._descriptor, [view[filled:]], offset + filled)
            if count == 0:
                break
            filled += count
        return filled

    def view(self, size: int, offset: int) -> memoryview:
        """The bytes at an offset, good until the next call.

        One buffer for all that is small, so that no page is new; a mapping for the rest.
        """
        if size < _MAPPED_BYTES:
            if len(self._buffer) < size:
                self._buffer = bytearray(size)
            whole = memoryview(self._buffer)[:size]
            return whole[: self.read_into(whole, offset)]
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        mapped = mmap.mmap(self._descriptor, offset + size - start, access=mmap.ACCESS_READ, offset=start)
        return memoryview(mapped)[offset - start :]


def _patiently(function: Callable[[], T]) -> T:
    """Call until it works or cannot: what may pass by itself is tried again; absence and short files are findings."""
    for wait_s in (*_WAITS_S, None):
        try:
            return function()
        except MissingFile:
            raise FileFault("file-missing", "nothing there") from None
        except DataError as error:
            raise FileFault("file-unreadable", str(error), "a file that stays as it is") from None
        except StoreFault as fault:
            if not fault.transient or wait_s is None:
                raise
            time.sleep(wait_s)
    raise AssertionError("the last try returns or raises")


class RemoteFolder:
    """A folder in a store, for one thread. Links and devices do not exist there."""

    def __init__(self, store: Store, window_bytes: int) -> None:
        self._store, self._window_bytes = store, window_bytes

    def names(self) -> list[str] | None:
        """Files that lie in it; web servers have no listing."""
        if self._store.location.protocol in {"http", "https"}:
            return None
        try:
            return sorted(_patiently(self._store.listing))
        except FileFault as fault:
            if fault.code == "file-missing":
                return []
            raise

    @contextmanager
    def opened(self, name: str) -> Iterator[Source]:
        """A file."""
        size = _patiently(lambda: self._store.size(name))
        if size is None:
            raise StoreFault(
                f"{self._store.location.shown_file(name)}: the server does not tell sizes, which is needed"
            )
        yield RemoteSource(self._store, name, size, self._window_bytes)


class RemoteSource:
    """A file in a store."""

    def __init__(self, store: Store, name: str, size: int, window_bytes: int) -> None:
        self._store, self._name, self.size, self._window_bytes = store, name, size, window_bytes
        self._start, self._window = 0, b""

    def _fetch(self, size: int, offset: int) -> bytes:
        size = max(0, min(size, self.size - offset))
        return _patiently(lambda: self._store.read_range(self._name, offset, size)) if size else b""

    def read(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes, from the window where they lie in it."""
        size = max(0, min(size, self.size - offset))
        if size >= self._window_bytes:
            return self._fetch(size, offset)
        if not self._start <= offset <= offset + size <= self._start + len(self._window):
            self._window = b""  # before the next one comes
            self._start, self._window = offset, self._fetch(self._window_bytes, offset)
        return self._window[offset - self._start : offset - self._start + size]

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill a view."""
        data = self.read(len(view), offset)
        view[: len(data)] = data
        return len(data)

    def view(self, size: int, offset: int) -> memoryview:
        """The bytes of a member, held whole."""
        return memoryview(self.read(size, offset))


Folder = LocalFolder | RemoteFolder
Source = LocalSource | RemoteSource


class Folders:
    """The folder at a location, opened once for each thread that reads in it at the same time; a context manager.

    `ahead`: files will be read from end to end, so a window of them at a time. Raises EnvironmentFault where a package
    is missing, and StoreFault where server or network refuse, when it is borrowed and whenever something is read.
    """

    def __init__(self, location: Location, *, ahead: bool) -> None:
        self._location, self._window_bytes = location, _WINDOW_BYTES if ahead else 0
        self._free: deque[Store] = deque()  # its methods are safe between threads

    @contextmanager
    def borrowed(self) -> Iterator[Folder]:
        """A folder that no other thread has."""
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
