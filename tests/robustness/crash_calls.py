"""A tap on the calls by which this process changes a folder: what was called, in which order, with which bytes.

`tapped(root, around)` replaces functions of `os`, and the unbuffered files of `io.open`, for as long as it is open.
Every call that changes something below `root` goes through `around(call, perform)`, one at a time, so that the order
is that of the disk; `around` may record it, raise an OSError in its place, carry out a part of a write, or end the
process. A way of writing that the tap does not know is refused, and `model.replay` shows that nothing went
past it.
"""

from __future__ import annotations

import io
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from omniges.shards.schema import UNFINISHED_FILE
from omniges.storage.atomic import final_name

Kind = Literal["create", "truncate", "write", "sync", "sync-folder", "rename", "unlink", "mkdir", "rmdir"]
KINDS: Final[tuple[Kind, ...]] = (
    *("create", "truncate", "write", "sync", "sync-folder"),
    *("rename", "unlink", "mkdir", "rmdir"),
)
_UNKNOWN: Final = ("pwrite", "writev", "ftruncate", "truncate", "link", "symlink")


@dataclass(frozen=True, slots=True)
class Call:
    """One call; paths are relative to the watched folder, and files have numbers that outlive their names."""

    kind: Kind
    path: str
    target: str = ""  # of a rename
    file: int = -1  # of create, truncate, write, sync and rename
    offset: int = 0  # of a write; the new length for truncate
    data: bytes | memoryview = b""  # of a write


Perform = Callable[[int | None], Any]  # carries the call out; a number stops a write after so many bytes
Around = Callable[[Call, Perform], Any]


def kind_of(call: Call) -> str:
    """A kind of moment: the call, and what it is done to."""
    path = Path(call.target or call.path)
    place = "work" if UNFINISHED_FILE in path.parts[:-1] else "out"
    name = path.name
    final = final_name(name)
    name = f"{final} (temporary)" if final else name
    for start in ("staged", "moved", "train", "val", "test"):
        if name.startswith(f"{start}-"):
            name = (start if place == "work" else "shard") + name[name.index(".tar") + 4 :]
    return f"{call.kind} {place}/{name}"


@dataclass(slots=True)
class Recorder:
    """An `around` that carries everything out and keeps it."""

    calls: list[Call] = field(default_factory=list)

    def __call__(self, call: Call, perform: Perform) -> Any:
        """Carry out, then note: a call that failed changed nothing."""
        data = bytes(call.data)
        result = perform(None)
        self.calls.append(replace(call, data=data[:result] if call.kind == "write" else data))
        return result


@dataclass(slots=True)
class _Open:
    number: int
    path: str  # when it was opened
    position: int


class _Tap:
    """The replacement of the calls. File numbers follow renames."""

    def __init__(self, root: Path, around: Around) -> None:
        self.root = os.path.abspath(root)
        self.around = around
        self.lock = threading.RLock()
        self._files: dict[int, _Open] = {}  # by descriptor
        self._folders: dict[int, str] = {}
        self._count = itertools.count()
        present = sorted(path for path in Path(self.root).rglob("*") if path.is_file())
        self.numbers = {self.relative(path) or "": next(self._count) for path in present}
        self._real: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in self.replacements()}

    def replacements(self) -> dict[str, Callable[..., Any]]:
        """Return the replacements by name in `os`."""
        known: dict[str, Callable[..., Any]] = {
            "open": self._open,
            "close": self._close,
            "write": self._write,
            "fsync": self._fsync,
            "fdatasync": self._fdatasync,
            "rename": self._rename,
            "replace": self._rename,
            "unlink": self._unlink,
            "remove": self._unlink,
            "mkdir": self._mkdir,
            "rmdir": self._rmdir,
        }
        return known | {name: self._unknown(name) for name in _UNKNOWN}

    def relative(self, path: Any) -> str | None:
        """The path below the root, "." for the root itself, None for one outside."""
        if isinstance(path, int):
            return None
        absolute = os.path.abspath(os.fsdecode(path))
        if absolute == self.root:
            return "."
        return absolute[len(self.root) + 1 :] if absolute.startswith(self.root + os.sep) else None

    def _unknown(self, name: str) -> Callable[..., Any]:
        def refuse(*args: Any, **options: Any) -> Any:
            for place in args[:2]:
                if place in self._files or (isinstance(place, str | os.PathLike) and self.relative(place) is not None):
                    raise AssertionError(f"os.{name} changes {place!r}, and the tap has no model of it")
            return self._real[name](*args, **options)

        return refuse

    # --- files

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        relative = None if dir_fd is not None else self.relative(path)

        def perform(_part: int | None) -> int:
            return int(self._real["open"](path, flags, mode, dir_fd=dir_fd))

        if relative is None:
            return perform(None)
        with self.lock:
            if flags & (os.O_WRONLY | os.O_RDWR):
                return int(self.opened(relative, flags, perform, int))
            descriptor = perform(None)
            if os.path.isdir(path):
                self._folders[descriptor] = relative
            return descriptor

    def opened(self, relative: str, flags: int, perform: Perform, number_of: Callable[[Any], int]) -> Any:
        """Open a file for writing by `perform`; `number_of` gives the descriptor of what came of it."""
        place = Path(self.root, relative)
        size = place.stat().st_size if os.path.lexists(place) else None
        if size is None:
            number = next(self._count)
            created = self.around(Call("create", relative, file=number), perform)
            self.numbers[relative] = number
        elif flags & os.O_TRUNC:
            created = self.around(Call("truncate", relative, file=self.numbers[relative]), perform)
            size = 0
        elif flags & os.O_APPEND:
            created = perform(None)
        else:
            raise AssertionError(f"{relative} is opened to be changed in its middle: the tap has no model of it")
        self._files[number_of(created)] = _Open(self.numbers[relative], relative, size or 0)
        return created

    def _close(self, descriptor: int) -> None:
        with self.lock:
            self.forget(descriptor)
            self._real["close"](descriptor)

    def forget(self, descriptor: int) -> None:
        """The descriptor may be another file's from here on."""
        self._files.pop(descriptor, None)
        self._folders.pop(descriptor, None)

    def _write(self, descriptor: int, data: Any) -> int:
        with self.lock:
            if descriptor not in self._files:
                return int(self._real["write"](descriptor, data))
            return self.written(descriptor, data, lambda piece: int(self._real["write"](descriptor, piece)))

    def written(self, descriptor: int, data: Any, write: Callable[[memoryview], int]) -> int:
        """A write at the end of a file; raises KeyError for a file that is not watched."""
        file, view = self._files[descriptor], memoryview(data).cast("B")
        call = Call("write", file.path, file=file.number, offset=file.position, data=view)
        count = int(self.around(call, lambda part: write(view if part is None else view[:part])))
        file.position += count
        return count

    def cut(self, descriptor: int, size: int, truncate: Callable[[], int]) -> int:
        """A change of a file's length."""
        file = self._files[descriptor]
        result = int(self.around(Call("truncate", file.path, file=file.number, offset=size), lambda _part: truncate()))
        file.position = size
        return result

    def _fsync(self, descriptor: int) -> None:
        self._sync("fsync", descriptor)

    def _fdatasync(self, descriptor: int) -> None:
        self._sync("fdatasync", descriptor)

    def _sync(self, name: str, descriptor: int) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        with self.lock:
            if number in self._folders:
                call = Call("sync-folder", self._folders[number])
            elif number in self._files:
                call = Call("sync", self._files[number].path, file=self._files[number].number)
            else:
                self._real[name](number)
                return
            self.around(call, lambda _part: self._real[name](number))

    # --- names

    def _rename(self, source: Any, target: Any, **options: Any) -> None:
        one, other = self.relative(source), self.relative(target)
        if one is None and other is None:
            self._real["rename"](source, target, **options)
            return
        if one is not None and other is not None and os.path.isdir(source):
            self._rename_folder(source, target, one, other)
            return
        if one is None or other is None or one not in self.numbers:
            if one is not None and not os.path.lexists(source):
                self._real["rename"](source, target, **options)  # raises FileNotFoundError
            raise AssertionError(f"{source} is renamed to {target}: the tap has no model of it")
        with self.lock:
            call = Call("rename", one, target=other, file=self.numbers[one])
            self.around(call, lambda _part: self._real["rename"](source, target))
            self.numbers[other] = self.numbers.pop(one)

    def _rename_folder(self, source: Any, target: Any, one: str, other: str) -> None:
        with self.lock:
            self.around(Call("rename", one, target=other), lambda _part: self._real["rename"](source, target))
            inside = [name for name in self.numbers if name.startswith(f"{one}/")]
            self.numbers |= {other + name[len(one) :]: self.numbers.pop(name) for name in inside}

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._change("unlink", "unlink", path, dir_fd=dir_fd)

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        self._change("mkdir", "mkdir", path, mode, dir_fd=dir_fd)

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._change("rmdir", "rmdir", path, dir_fd=dir_fd)

    def _change(self, kind: Kind, name: str, path: Any, *args: Any, dir_fd: int | None) -> None:
        relative = None if dir_fd is not None else self.relative(path)
        if relative is None:
            self._real[name](path, *args, dir_fd=dir_fd)
            return
        with self.lock:
            if os.path.lexists(path) == (kind == "mkdir"):
                self._real[name](path, *args)  # raises, and changes nothing
                return
            self.around(Call(kind, relative), lambda _part: self._real[name](path, *args))
            if kind == "unlink":
                self.numbers.pop(relative, None)


def _watched_file(tap: _Tap) -> type[io.FileIO]:
    """An unbuffered file whose calls go through the tap."""

    class WatchedFile(io.FileIO):
        def write(self, data: Any, /) -> int:
            with tap.lock:
                return tap.written(self.fileno(), data, lambda piece: io.FileIO.write(self, piece) or 0)

        def truncate(self, size: int | None = None, /) -> int:
            with tap.lock:
                length = self.tell() if size is None else size
                return tap.cut(self.fileno(), length, lambda: io.FileIO.truncate(self, length))

        def close(self) -> None:
            with tap.lock:
                if not self.closed:
                    tap.forget(self.fileno())
                io.FileIO.close(self)

    return WatchedFile


@contextmanager
def tapped(root: Path, around: Around) -> Iterator[None]:
    """Send every call of this process that changes something below `root` through `around`."""
    tap = _Tap(root, around)
    real_open, watched = io.open, _watched_file(tap)
    modes = {"ab": os.O_APPEND, "wb": os.O_TRUNC}

    def open_file(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **options: Any) -> Any:
        relative = tap.relative(file)
        if relative is None or not set(mode) & set("wax+"):
            return real_open(file, mode, buffering, *args, **options)
        if buffering != 0 or mode not in modes:
            raise AssertionError(f"{relative} is opened with mode {mode!r}: the tap has no model of it")
        with tap.lock:
            return tap.opened(
                relative, modes[mode], lambda _part: watched(file, mode), lambda created: created.fileno()
            )

    replaced = tap.replacements()
    real = {name: getattr(os, name) for name in replaced}
    try:
        io.open = open_file
        for name, function in replaced.items():
            setattr(os, name, function)
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)
        io.open = real_open
