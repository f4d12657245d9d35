"""Atomic publishing of files: write a temporary file in the same folder, fsync it, rename it, and fsync the folder.

A reader never sees an incomplete file under its final name, even if the writer is killed or the power fails. An
exception inside the `with` block removes the temporary file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from omniges.errors import DataError, EnvironmentFault, UsageFault

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY
_MAX_LINE_BYTES: Final = 64 << 20  # limit of one line of a log; the longest real line is far shorter
_CACHED_BYTES: Final = 1 << 20  # a file up to this size stays in the page cache
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,255}", re.ASCII)
_TEMPORARY: Final = re.compile(r"\.(?P<final>.+)\.tmp-(?P<pid>\d+)")
_SPECIAL: Final = "a pipe, device or socket has this name"
_REASONS: Final = {
    errno.ENOSPC: "the disk is full; free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EACCES: "permission denied; choose another folder or change its permissions",
    errno.EPERM: "permission denied; choose another folder or change its permissions",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOENT: "the folder does not exist or was removed; create it, then run the same command again",
    errno.ENOTDIR: "part of the path is a file, not a folder; choose another folder",
    errno.EEXIST: "a file of that name exists; choose another path",
    errno.ELOOP: "the path contains a link, through which nothing is written; remove the link, or choose another path",
    errno.EISDIR: "a folder of that name exists; choose another path",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n)",
}


@contextlib.contextmanager
def os_errors(path: Path, action: str = "write") -> Iterator[None]:
    """Convert any OSError in the `with` block into an EnvironmentFault, which names the path in a message of one line.

    Args:
        path: Path that the error names.
        action: Verb of the error text: ``write`` gives "cannot write PATH".

    Yields:
        Nothing.

    Raises:
        EnvironmentFault: An OSError occurred.
    """
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, f"{error.strerror or error}; check the disk")
        raise EnvironmentFault(f"cannot {action} {path}: {reason}") from error


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents so that they survive a power loss."""
    with os_errors(path, "create the folder"):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        # A power loss removes a new folder and its synced files if its entry in the parent folder is not on disk yet.
        for folder in missing:
            sync_folder(folder.parent)


def home_expanded(flag: str, path: Path) -> Path:
    """Return a path with ``~`` replaced by the home folder.

    Args:
        flag: Name of the command-line flag, for the error.
        path: The path, absolute or relative.

    Returns:
        The expanded path; a path without ``~`` is returned unchanged.

    Raises:
        EnvironmentFault: There is no home folder, as in some containers.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise EnvironmentFault(
            f"{flag} {path}: expected a home folder, found none; set HOME, or give a whole path"
        ) from error


def is_special(path: Path) -> bool:
    """Return whether a path is special: a pipe, a device, a socket, or any path below /dev or /proc.

    Nothing may be written to a special path. With root's rights, the rename of a temporary file would replace the
    device itself. A link such as /dev/stdout is special even if its target is a regular file. Paths below /dev/shm are
    not special.
    """
    folder = os.path.realpath(path.parent) + "/"
    of_system = folder.startswith(("/dev/", "/proc/")) and not folder.startswith("/dev/shm/")  # noqa: S108 - a disk in memory
    return of_system or (os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)))


def require_output_file(flag: str, path: Path | None) -> None:
    """Refuse the path of an output file that cannot be written, before a long computation starts.

    Args:
        flag: Name of the command-line flag, for the error.
        path: The file; None if the flag is not given.

    Raises:
        UsageFault: The path is a folder or a special file, or its folder does not exist.
    """
    if path is None:
        return
    if is_special(path):
        raise UsageFault(f"{flag} {path}: expected a file, found that {_SPECIAL}; choose another path")
    if os.path.isdir(path):
        raise UsageFault(f"{flag} {path}: expected a file, found a folder; name a file in it")
    if not os.path.isdir(path.parent):
        raise UsageFault(f"{flag} {path}: expected the folder {path.parent}, found none; create it first")


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[None]:
    """Create a folder and its missing parents; after the `with` block, remove the created folders that are empty."""
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    make_folder(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a folder that is not empty stays, and so do its parents
            for folder in new:
                folder.rmdir()


def refuse_links(folder: Path, names: Sequence[str]) -> None:
    """Raise UsageFault if any of the named files and folders of a run is a symbolic link.

    A folder of unknown origin may contain links. Without this check, the run could change files outside of the folder.

    Args:
        folder: Folder of the run.
        names: Names of the files and folders to check.

    Raises:
        UsageFault: One of these files or folders is a link.
    """
    for name in names:
        if (folder / name).is_symlink():
            raise UsageFault(
                f"{folder / name}: expected a file or folder of this run, found a link, through which files "
                f"outside of {folder} would be changed; replace the link by its target, or choose another "
                "folder"
            )


def open_log(path: Path) -> int:
    """Open a log of JSON lines for appending, and create it if it does not exist.

    An incomplete last line, left by a killed process or a full disk, is removed.

    Args:
        path: The log. Only one process may have it open.

    Returns:
        File descriptor for `append_line`.

    Raises:
        UsageFault: The path is a symbolic link, a file with other hard links, or not a regular file.
        DataError: The last line has 64 MiB or more; valid lines are shorter.
        EnvironmentFault: The operating system refuses access.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
    with os_errors(path):
        if not path.is_symlink():
            descriptor = os.open(path, flags | os.O_NOFOLLOW, 0o666)
            found = os.fstat(descriptor)
            if found.st_nlink <= 1 and stat.S_ISREG(found.st_mode):
                try:
                    _end_last_line(path, descriptor, found.st_size)
                except DataError:
                    os.close(descriptor)
                    raise
                return descriptor
            os.close(descriptor)
    raise UsageFault(
        f"{path}: expected a regular file without links, found a link or a special file, through which another file "
        "could be changed; remove the link or special file, or choose another folder"
    )


def _end_last_line(path: Path, descriptor: int, size: int) -> None:
    """Append a line break to a last line that lacks one; if the line is not JSON, remove the line instead."""
    start, line = size, b""
    while start and b"\n" not in line and len(line) < _MAX_LINE_BYTES:
        end, start = start, max(0, start - _CACHED_BYTES)
        line = os.pread(descriptor, end - start, start) + line
    if len(line) >= _MAX_LINE_BYTES:
        raise DataError(
            f"{path}: expected lines of at most {_MAX_LINE_BYTES} bytes, found a longer line at its end; move the "
            "file to another place"
        )
    rest = line[line.rfind(b"\n") + 1 :]
    if not rest:
        return
    try:
        json.loads(rest)
    except (ValueError, RecursionError):
        os.ftruncate(descriptor, size - len(rest))
    else:
        append_line(descriptor, b"\n")


def append_line(descriptor: int, line: bytes) -> None:
    """Append a complete line to an open log.

    Args:
        descriptor: File that is open for appending.
        line: The line with its line break.

    Raises:
        OSError: The line cannot be written. Bytes of the line that were already written are removed.
    """
    size, view = os.fstat(descriptor).st_size, memoryview(line)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def is_file_name(text: object) -> bool:
    """Return whether a text is a safe file name: 1 to 255 ASCII letters, digits, dots, hyphens and underscores.

    A safe name cannot leave its folder or change the meaning of a URL. The name ``.`` and names that contain ``..`` are
    not safe.

    Args:
        text: Value to check; only a string can be a safe name.

    Returns:
        True if the name is safe.
    """
    return isinstance(text, str) and _FILE_NAME.fullmatch(text) is not None and ".." not in text and text != "."


def is_temporary_name(name: str) -> bool:
    """Return whether a file name has the form of the temporary files of `PendingFile`, ``.NAME.tmp-PID``."""
    return final_name(name) is not None


def final_name(name: str) -> str | None:
    """Return the final name of a temporary file of `PendingFile`, or None for other names."""
    match = _TEMPORARY.fullmatch(name)
    return match["final"] if match else None


def sync_folder(folder: Path) -> None:
    """Fsync a folder, so that new and renamed entries in it survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Lock a folder during the `with` block; raise EnvironmentFault if another process has locked it.

    The kernel releases the lock of a killed process.
    """
    with os_errors(out, "open"):
        descriptor = os.open(out, _FOLDER)
    if not _take_lock(descriptor, out):
        raise EnvironmentFault(
            f"{out}: expected no other writer, found that another omniges run is writing here; wait for that run, or "
            "stop it"
        )
    try:
        yield
    finally:
        os.close(descriptor)


def _take_lock(descriptor: int, folder: Path) -> bool:
    """Lock an open folder; return False and close the descriptor if another process holds the lock."""
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
    """A file under a temporary name, until `publish` gives it its final name or `abort` removes it.

    As a context manager it calls `publish` at the end of the `with` block, or `abort` after an exception.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        self.size = 0
        self._published = False
        self._hash = hashlib.sha256()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        if is_special(path):
            raise EnvironmentFault(f"{path}: expected a file, found that {_SPECIAL}; choose another path")
        with os_errors(path):
            try:
                self._descriptor = os.open(self.temporary, flags, 0o666)  # the umask applies, as for open()
            except FileExistsError:  # it may be a link to a file elsewhere, so it is removed without being opened
                self.temporary.unlink()
                self._descriptor = os.open(self.temporary, flags, 0o666)

    @property
    def sha256(self) -> str:
        """Sha256 of the bytes written so far, in hexadecimal."""
        return self._hash.hexdigest()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes to the temporary file."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        self.size += len(view)
        with os_errors(self.path):
            while len(view):
                view = view[os.write(self._descriptor, view) :]

    def flush_to_disk(self) -> None:
        """Write pending bytes to disk, so that `publish` takes less time.

        The written bytes are then removed from the page cache. Without this, the bytes of a set of shards would
        displace all other files from the page cache.
        """
        with os_errors(self.path):
            os.fdatasync(self._descriptor)
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def publish(self) -> None:
        """Write all bytes to disk, close the file, and give it its final name."""
        with os_errors(self.path):
            os.fsync(self._descriptor)
            if self.size > _CACHED_BYTES:
                os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            self._close()
            self.temporary.rename(self.path)
            self._published = True
            sync_folder(self.path.parent)

    def abort(self) -> None:
        """Remove the temporary file; a published file stays."""
        if self._published:
            return
        self._close()
        self.temporary.unlink(missing_ok=True)

    def withdraw(self) -> None:
        """Remove the temporary file or, if it was published, the file with the final name."""
        if self._published or not self.temporary.exists():  # a signal may have stopped `publish` right after the rename
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
    """Several files that are published together at the end of a `with` block: all of them in order, or none.

    If an exception or a signal interrupts the publishing, the files that were already published are removed. Only a
    killed process or a power failure can leave an incomplete group.
    """

    def __init__(self) -> None:
        self._files: list[PendingFile] = []

    def open(self, path: Path) -> PendingFile:
        """Add a pending file to the group; it is published after the files that were added before."""
        self._files.append(PendingFile(path))
        return self._files[-1]

    def __enter__(self) -> PendingGroup:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        complete = False
        try:
            if kind is None:
                for file in self._files:
                    file.publish()
                complete = True
        finally:
            for file in reversed(self._files):
                if not complete:
                    file.withdraw()


@contextlib.contextmanager
def pending_folder(final: Path) -> Iterator[Path]:
    """Create a temporary folder that gets its final name at the end of the `with` block, or is removed after an error.

    The caller must write each file with this module, which syncs it. So all files are on disk before the folder is
    renamed. Before the folder is created, temporary folders of killed processes are removed. Temporary folders of
    running processes are locked, so they are not removed.

    Args:
        final: Final path of the folder.

    Yields:
        The temporary folder.
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
    while descriptor is None:  # another run may remove it before it is locked: try again
        with os_errors(unfinished):
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
        descriptor = _claim(unfinished)
    try:  # the lock is held until the rename, so that no other run removes the folder as abandoned
        yield unfinished
        with os_errors(final):
            sync_folder(unfinished)
            unfinished.rename(final)
            sync_folder(final.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        os.close(descriptor)


def _claim(unfinished: Path) -> int | None:
    """Lock a temporary folder and return its descriptor; return None if it is missing or another process locks it."""
    with os_errors(unfinished, "open"):
        try:
            descriptor = os.open(unfinished, _FOLDER | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
    if not _take_lock(descriptor, unfinished):
        return None
    try:  # it may have been renamed or removed before it was locked
        same = os.path.samestat(os.stat(unfinished, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        same = False
    if not same:
        os.close(descriptor)
        return None
    return descriptor


def remove_folder(path: Path) -> None:
    """Rename a folder, then remove it, so that no reader finds an incomplete folder under its original name."""
    trash = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with os_errors(path, "remove"):
        path.rename(trash)
        sync_folder(path.parent)
        remove_tree(trash)


def remove_tree(path: Path) -> None:
    """Remove a folder with its content, a file, or a symbolic link; the target of the link is not removed."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)


def publish_bytes(path: Path, parts: bytes | Sequence[bytes]) -> str:
    """Write bytes to a file atomically.

    Args:
        path: Final path of the file; an existing file is replaced.
        parts: Content of the file: bytes, or several byte strings that are written one after the other.

    Returns:
        The sha256 of the content, in hexadecimal.
    """
    with PendingFile(path) as pending:
        for part in (parts,) if isinstance(parts, bytes) else parts:
            pending.write(part)
        return pending.sha256
