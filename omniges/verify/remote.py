"""A folder of shards behind a URL, read by ranges: never more than a window of a file or one member is held."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from omniges.errors import DataError
from omniges.storage.remote import Location, MissingFile, Store, StoreFault, open_store
from omniges.verify.files import FileFault, Folder, LocalFolder, Source

T = TypeVar("T")

_WINDOW_BYTES: Final = 8 << 20  # a request of this size costs its latency once; four of them fit a worker's memory
_WAITS_S: Final = (0.5, 1.0, 2.0)  # before each further try of what may succeed later


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
    """A folder in a store. Links and devices do not exist there."""

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
        yield _RemoteSource(self._store, name, size, self._window_bytes)


class _RemoteSource:
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
