"""The one way a final file comes to be: temporary sibling, write, fsync, rename, fsync of the folder.

A reader never sees half a file under its final name, whatever kills the writer. An exception inside the `with`
block throws the temporary file away.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from omniges.errors import EnvironmentFault, UsageFault

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY
_CACHED_BYTES: Final = 1 << 20  # a smaller file may stay in the page cache
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,255}", re.ASCII)
_TEMPORARY: Final = re.compile(r"\.(?P<final>.+)\.tmp-(?P<pid>\d+)")
_REASONS: Final = {
    errno.ENOSPC: "the disk is full: free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up: free some space and run the same command again",
    errno.EACCES: "permission denied: choose another folder or change its permissions",
    errno.EPERM: "permission denied: choose another folder or change its permissions",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOENT: "the folder is not there (any more): create it and run the same command again",
    errno.ENOTDIR: "part of the path is a file, not a folder: choose another folder",
    errno.EEXIST: "a file of that name is in the way: choose another path",
    errno.ELOOP: "a link is in the way, and nothing is written through it: remove it, or choose another path",
    errno.EISDIR: "a folder of that name is in the way: choose another path",
    errno.EMFILE: "too many open files: raise the limit (ulimit -n)",
}


@contextlib.contextmanager
def os_errors(path: Path, action: str = "write") -> Iterator[None]:
    """Turn an OSError at `path` into one clear line (`EnvironmentFault`, exit 3)."""
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, f"{error.strerror or error}: check the disk")
        raise EnvironmentFault(f"cannot {action} {path}: {reason}") from error


def make_folder(path: Path) -> None:
    """Create a folder and its parents so that they survive a power loss, with an error a person can act on."""
    with os_errors(path, "create the folder"):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        # What is synced inside a new folder is lost with the folder as long as its own name is not on the disk.
        for folder in missing:
            sync_folder(folder.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[None]:
    """Create a folder as `make_folder` does; on leaving, remove it and parents created for it if they are empty."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    make_folder(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # one is not empty, so neither are its parents
            for folder in new:
                folder.rmdir()


def refuse_links(folder: Path, names: Sequence[str]) -> None:
    """Raise UsageFault if one of these files and folders of ours inside a folder is a link.

    A folder that came from elsewhere may hold links, and files behind them would be replaced or removed.
    """
    for name in names:
        if (folder / name).is_symlink():
            raise UsageFault(
                f"{folder / name}: a file or folder of this run expected, found a link, behind which files outside of "
                f"{folder} would be changed. Put what it leads to in its place, or choose another folder"
            )


def open_for_appending(path: Path) -> int:
    """Open a log of ours for appending, made where there is none; returns a descriptor.

    Raises UsageFault for a link of either kind, whose other name may be a file elsewhere, and EnvironmentFault.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
    with os_errors(path):
        if not path.is_symlink():
            descriptor = os.open(path, flags | os.O_NOFOLLOW, 0o666)
            if os.fstat(descriptor).st_nlink <= 1:
                return descriptor
            os.close(descriptor)
    raise UsageFault(
        f"{path}: a file of its own expected, found a link, behind which a file elsewhere would be changed. Remove the "
        "link, or choose another folder"
    )


def is_file_name(text: object) -> bool:
    """Return whether a text names a file in a folder of ours: ASCII letters, digits, dots, hyphens and underscores.

    Names without those characters change the meaning of no URL; names with two dots in a row are refused too.
    """
    return isinstance(text, str) and _FILE_NAME.fullmatch(text) is not None and ".." not in text and text != "."


def is_temporary_name(name: str) -> bool:
    """Return whether a file name is one that `PendingFile` gives before publishing."""
    return final_name(name) is not None


def final_name(name: str) -> str | None:
    """The name that a temporary file was to get, or None for a name that `PendingFile` does not give."""
    match = _TEMPORARY.fullmatch(name)
    return match["final"] if match else None


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep a second run out of the folder; the kernel lets go when the owner dies, so no lock is ever stale."""
    with os_errors(out, "open"):
        descriptor = os.open(out, _FOLDER)
    if not _take_lock(descriptor, out):
        raise EnvironmentFault(f"{out}: another omniges run is writing here. Wait for it, or stop it")
    try:
        yield
    finally:
        os.close(descriptor)


def _take_lock(descriptor: int, folder: Path) -> bool:
    """Lock an open folder; False where somebody else holds its lock, and the descriptor is then closed."""
    taken = False
    try:
        with os_errors(folder, "lock"), contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = True
    finally:
        if not taken:
            os.close(descriptor)
    return taken


class PendingFile:
    """A file being written: `write`, then `publish` or `abort`; as a context manager one of the two."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        self.size = 0
        self._published = False
        self._hash = hashlib.sha256()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os_errors(path):
            try:
                self._descriptor = os.open(self.temporary, flags, 0o666)  # less the umask, as open() gives
            except FileExistsError:  # it may be a link of either kind to a file elsewhere: it loses this name, unread
                self.temporary.unlink()
                self._descriptor = os.open(self.temporary, flags, 0o666)

    @property
    def sha256(self) -> str:
        """Digest of what was written so far."""
        return self._hash.hexdigest()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        self.size += len(view)
        with os_errors(self.path):
            while len(view):
                view = view[os.write(self._descriptor, view) :]

    def flush_to_disk(self) -> None:
        """Start and await the transfer of what was written, so that `publish` has less left to wait for.

        What is on the disk then leaves the page cache: a data set of shards would push out everything else there,
        and its memory serves the next shard (fresh pages cost a virtual machine more than the copy into them).
        """
        with os_errors(self.path):
            os.fdatasync(self._descriptor)
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def publish(self) -> None:
        """Make the file durable and give it its final name."""
        with os_errors(self.path):
            os.fsync(self._descriptor)
            if self.size > _CACHED_BYTES:
                os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            self._close()
            self.temporary.rename(self.path)
            self._published = True
            sync_folder(self.path.parent)

    def abort(self) -> None:
        """Throw the temporary file away; a published file stays."""
        if self._published:
            return
        self._close()
        self.temporary.unlink(missing_ok=True)

    def withdraw(self) -> None:
        """Throw the file away, published or not."""
        if self._published or not self.temporary.exists():  # a signal may come between the rename and its note
            self.path.unlink(missing_ok=True)
            sync_folder(self.path.parent)
        self.abort()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> PendingFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.publish()
        finally:
            self.abort()  # does nothing to a published file


class PendingGroup:
    """Files that belong together: as a context manager all of them get their names, in order, or none keeps one.

    Where an exception or a signal comes between the names, those that were given are taken away again. Only a killed
    process or a lost machine can leave the first without the last.
    """

    def __init__(self) -> None:
        self._files: list[PendingFile] = []

    def open(self, path: Path) -> PendingFile:
        """One more file; it is published after those opened before it."""
        self._files.append(PendingFile(path))
        return self._files[-1]

    def __enter__(self) -> PendingGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        whole = False
        try:
            if kind is None:
                for file in self._files:
                    file.publish()
                whole = True
        finally:
            for file in reversed(self._files):
                if not whole:
                    file.withdraw()


@contextlib.contextmanager
def pending_folder(final: Path) -> Iterator[Path]:
    """A folder that gets its final name in one step, or goes.

    Files in it are published one by one, so they are on the disk before the name is. What killed processes left of
    the same folder goes first; a folder that is still being written is locked, and stays.
    """
    with os_errors(final):
        beside = [path for path in final.parent.iterdir() if final_name(path.name) == final.name]
    for path in beside:
        if path.is_dir() and not path.is_symlink() and (abandoned := _claim(path)) is not None:
            try:
                with os_errors(path, "remove"):
                    shutil.rmtree(path)
            finally:
                os.close(abandoned)
    unfinished = final.with_name(f".{final.name}.tmp-{os.getpid()}")
    descriptor = None
    while descriptor is None:  # another run may find it before it is locked, and remove it as abandoned: once more
        with os_errors(unfinished):
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
        descriptor = _claim(unfinished)
    try:  # the lock is held until the folder has its final name: without it, another run would take it for abandoned
        yield unfinished
        with os_errors(final):
            sync_folder(unfinished)
            unfinished.rename(final)
            sync_folder(final.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        os.close(descriptor)


def _claim(unfinished: Path) -> int | None:
    """A descriptor that holds an unfinished folder's lock; None where somebody else does, or where it lost its name."""
    with os_errors(unfinished, "open"):
        try:
            descriptor = os.open(unfinished, _FOLDER | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
    if not _take_lock(descriptor, unfinished):
        return None
    try:  # before it was locked it may have got its final name, or have gone
        same = os.path.samestat(os.stat(unfinished, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        same = False
    if not same:
        os.close(descriptor)
        return None
    return descriptor


def remove_folder(path: Path) -> None:
    """Remove a folder, which loses its name before its first file."""
    doomed = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with os_errors(path, "remove"):
        path.rename(doomed)
        sync_folder(path.parent)
        remove_tree(doomed)


def remove_tree(path: Path) -> None:
    """Remove a folder with all that is in it; of a link, or of anything else that is no folder, only the name."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)


def publish_bytes(path: Path, parts: bytes | Sequence[bytes]) -> str:
    """Publish a whole file at once; returns the sha256 of its content."""
    with PendingFile(path) as pending:
        for part in (parts,) if isinstance(parts, bytes) else parts:
            pending.write(part)
        return pending.sha256
