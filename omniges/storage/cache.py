"""A folder of cached files with a size limit, shared by several processes; downloads are checked.

The cached file ``GROUP/NAME`` has two hidden files in the same folder:

``.NAME.lock``     locked (flock) by the process that downloads ``NAME``; contains the number of bytes that the process
has reserved for ``NAME``
``.NAME.checked``  record of the last check of the content: the file's size, sha256, inode and times at that moment. The
modification time of this record is the time at which the cached file was last used

A file in use is *pinned*: its reader holds a shared flock on the file. Eviction needs an exclusive flock, so a pinned
file is not evicted. The kernel releases the locks of a killed process. A process locks the folder while it sums sizes
and evicts files. No process waits for another lock while it holds the lock of the folder.

No library offers such a cache. filelock locks a separate file exclusively. It cannot pin the cached file or a memory
map of the file, and it cannot record reserved bytes. diskcache evicts files in use, exceeds its limit until the next
cleanup, does not check digests, and unpickles its content.

A file is downloaded completely and checked, with a limited number of attempts. The wait between attempts depends only
on the index of the attempt and a salt text, not on random numbers or time. `FetchAhead` downloads in background
threads before files are needed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import re
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from omniges.errors import DataError, EnvironmentFault, UsageFault, settled
from omniges.storage import atomic
from omniges.storage.files import canonical_json, file_sha256, parse_json, read_file
from omniges.storage.remote import MAX_TIME_OUTS, MissingFile, Store, StoreFault

T = TypeVar("T")

Wait = Callable[[float], object]
"""Function that waits for a number of seconds; it may raise an exception to end the attempts."""

_AGAIN: Final = "run omniges verify-shards on the original and copy the shards there again"
_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Retries:
    """Number of attempts, and the first and longest wait between them in seconds."""

    attempts: int = 5
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0

    def __post_init__(self) -> None:
        """Check the settings; raise UsageFault for fewer than one attempt or a negative time."""
        if self.attempts < 1 or self.first_wait_s < 0 or self.longest_wait_s < 0:
            raise UsageFault(f"expected at least one attempt and waits of at least 0 s, found {self}")


@dataclass(frozen=True, slots=True)
class CachedFile:
    """Identity of a file in the cache: its folder and name, and its expected size in bytes and sha256."""

    group: str  # folder in the cache: 32 hexadecimal digits
    name: str
    size: int
    sha256: str


class WrongContent(DataError):
    """The size or sha256 of a file differs from dataset.json."""


def backoff_s(retries: Retries, attempt: int, salt: str) -> float:
    """Return the wait before a retry: exponential backoff, multiplied by a jitter factor in [0.5, 1).

    Args:
        retries: Number of attempts, and first and longest wait between them.
        attempt: Index of the retry: 1 for the first retry, 2 for the second.
        salt: Text from which the jitter is computed; different texts give processes different waits.

    Returns:
        The wait in seconds.
    """
    longest = min(retries.longest_wait_s, retries.first_wait_s * 2.0 ** min(attempt - 1, 60))
    drawn = int.from_bytes(hashlib.sha256(f"{salt}:{attempt}".encode()).digest()[:4], "big") / 2**32
    return longest * (0.5 + 0.5 * drawn)


def with_retries(action: Callable[[], T], retries: Retries, salt: str, wait: Wait = time.sleep) -> T:
    """Call a function until it succeeds; repeat the call after a transient StoreFault or after WrongContent.

    The number of calls is limited by `retries`. After `MAX_TIME_OUTS` time-outs, the function is not called again.

    Args:
        action: Function to call, without arguments.
        retries: Number of attempts, and first and longest wait between them.
        salt: Text from which the jitter of the waits is computed, see `backoff_s`.
        wait: Function that waits for a number of seconds.

    Returns:
        The result of the function.

    Raises:
        StoreFault: The fault is not transient, or it occurred in the last attempt.
        WrongContent: The last attempt got wrong content.
    """
    attempt = time_outs = 0
    while True:
        try:
            return action()
        except (StoreFault, WrongContent) as fault:
            if isinstance(fault, StoreFault):
                if not fault.transient:
                    raise
                time_outs += fault.timed_out
            last = fault
        attempt += 1
        if attempt == retries.attempts or time_outs == MAX_TIME_OUTS:
            raise type(last)(f"{last} (stopped after {attempt} attempts)")
        wait(backoff_s(retries, attempt, salt))


def copy_checked(store: Store, file: CachedFile, path: Path, check: Callable[[], object]) -> atomic.PendingFile:
    """Copy a file from a store to this machine, then compare its size and sha256 with the expected ones.

    Args:
        store: Store from which the file is read.
        file: Name, expected size and expected sha256 of the file.
        path: Final path of the copy.
        check: Function that is called before each block of bytes; it may raise an exception to abort the copy.

    Returns:
        The complete copy as a pending file, which the caller publishes.

    Raises:
        WrongContent: The size or the sha256 differs; the copy is removed.
        MissingFile: The store does not have the file.
        StoreFault: The store cannot be read.
    """
    place = store.location.shown_file(file.name)
    with contextlib.ExitStack() as undo:
        pending = atomic.PendingFile(path)
        undo.callback(pending.abort)
        try:
            with store.open_stream(file.name) as stream:
                while pending.size <= file.size:
                    check()
                    piece = stream.read(_CHUNK_BYTES)
                    if not piece:
                        break
                    pending.write(piece)
        except MissingFile as error:
            raise MissingFile(f"{error}, although dataset.json lists it; copy the shards there again") from None
        if pending.size != file.size:
            found = f"{pending.size} bytes" if pending.size < file.size else "more"
            raise WrongContent(f"{place}: expected {file.size} bytes as in dataset.json, found {found}; {_AGAIN}")
        if pending.sha256 != file.sha256:
            raise WrongContent(
                f"{place}: expected sha256 {file.sha256} as in dataset.json, found {pending.sha256}; {_AGAIN}"
            )
        undo.pop_all()
    return pending


_GROUP: Final = re.compile(r"[0-9a-f]{32}")
_LOCK: Final = re.compile(r"\..+\.lock\Z")
_MAX_RECORD_BYTES: Final = 4096
_POLL_S: Final = 0.05


class CacheFull(EnvironmentFault):
    """The cache has too little space, because running processes use its files."""


@dataclass(slots=True)
class CacheCounts:
    """Numbers of cache hits, downloads, failed attempts, damaged files and evictions of one `CacheFolder` object."""

    hits: int = 0  # requested files that were valid in the cache
    fills: int = 0  # downloaded files
    fetched_bytes: int = 0
    failed_tries: int = 0  # failed downloads that were repeated
    damaged: int = 0  # invalid files in the cache
    evicted: int = 0  # files removed to free space


class Pin:
    """A cached file in use; it is not evicted until `close` or the end of the process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor

    def close(self) -> None:
        """Release the file; a second call has no effect."""
        if self.descriptor >= 0:
            os.close(self.descriptor)  # LOCK_UN would also release the lock of a forked process
            self.descriptor = -1


class CacheFolder:
    """The cache folder. Any number of threads and processes may use it at the same time."""

    def __init__(self, root: Path, capacity_bytes: int) -> None:
        """Create the folder of the cache, and set the largest total size of the cached files.

        Args:
            root: Folder of the cache.
            capacity_bytes: Largest total size of the cached files and of the reserved space, in bytes.

        Raises:
            EnvironmentFault: The folder cannot be created.
        """
        self.root = root
        self.capacity_bytes = capacity_bytes
        self._counts = CacheCounts()
        self._counting = threading.Lock()
        atomic.make_folder(root)

    @property
    def counts(self) -> CacheCounts:
        """The counts of this object so far, as a copy."""
        with self._counting:
            return replace(self._counts)

    def count(self, **more: int) -> None:
        """Add numbers to the counts; each keyword is a field of `CacheCounts`."""
        with self._counting:
            for name, value in more.items():
                setattr(self._counts, name, getattr(self._counts, name) + value)

    def folder(self, group: str) -> Path:
        """Return the folder that contains the cached files of a group: ROOT/GROUP."""
        return self.root / group

    def acquire(
        self, file: CachedFile, fill: Callable[[Path], atomic.PendingFile], wait_s: float = 0.0, recheck: bool = False
    ) -> Pin:
        """Pin a file; download it first if it is absent or damaged. Only one process at a time downloads it.

        Args:
            file: Identity of the file.
            fill: Function that downloads the file: it takes the final path and returns a checked pending file.
            wait_s: Longest time in seconds to wait for free space.
            recheck: Compare the sha256 again, even if the file is unchanged since its last check.

        Returns:
            The pinned file.

        Raises:
            CacheFull: No space became free within `wait_s`.
        """
        atomic.refuse_links(self.root, (file.group,))
        atomic.make_folder(self.folder(file.group))
        path = self.folder(file.group) / file.name
        pin = self._pin_checked(path, file, recheck)
        if pin is not None:
            self.count(hits=1)
            return pin
        with _locked(_beside(path, "lock")) as lock:
            pin = self._pin_checked(path, file, recheck=False) or self._adopt(path, file)
            if pin is not None:  # another process has downloaded it
                self.count(hits=1)
                return pin
            with atomic.os_errors(path.parent, "clear"):  # files of killed processes; no other process downloads
                for entry in list(os.scandir(path.parent)):
                    if atomic.is_temporary_name(entry.name) and _filled_file(entry.name) == path.name:
                        Path(entry.path).unlink(missing_ok=True)
            self._make_space(path, file.size, lock, wait_s)
            try:
                return self._fill(path, file, fill)
            finally:
                os.ftruncate(lock, 0)

    def doubt(self, file: CachedFile) -> None:
        """Mark a file as unchecked, so that the next `acquire` compares its sha256 again.

        Args:
            file: Identity of a file that may be damaged.
        """
        atomic.refuse_links(self.root, (file.group,))
        path = self.folder(file.group) / file.name
        with atomic.os_errors(path, "clear"):
            _beside(path, "checked").unlink(missing_ok=True)

    def _pin_checked(self, path: Path, file: CachedFile, recheck: bool) -> Pin | None:
        """Return a pin if the file exists and is unchanged since its last check, otherwise None.

        If `recheck` is True, the sha256 of the content must be correct too.
        """
        pin = _pin(path)
        if pin is None:
            return None
        with atomic.os_errors(path, "read"):
            if _recorded(path, file) and not (recheck and file_sha256(path) != file.sha256):
                _touch(path)
                return pin
            pin.close()
            if recheck:
                _beside(path, "checked").unlink(missing_ok=True)  # so that `_adopt` compares the sha256 again
        return None

    def _adopt(self, path: Path, file: CachedFile) -> Pin | None:
        """Check a cached file that has no valid ``.checked`` record, and return a pin if the content is correct.

        A file with another size or sha256 is removed. Return None if the file was removed or did not exist. The caller
        must hold the lock on the file's ``.lock`` file.
        """
        pin = _pin(path)
        if pin is None:
            return None
        with atomic.os_errors(path, "read"):
            if path.stat().st_size == file.size and file_sha256(path) == file.sha256:
                _record(path, file)
                return pin
            pin.close()
            self.count(damaged=1)
            path.unlink(missing_ok=True)
        return None

    def _fill(self, path: Path, file: CachedFile, fill: Callable[[Path], atomic.PendingFile]) -> Pin:
        with contextlib.ExitStack() as undo:
            pending = fill(path)
            undo.callback(pending.abort)
            pin = _pin(pending.temporary)  # pinned before `publish`, so that it cannot be evicted
            if pin is None:
                raise EnvironmentFault(
                    f"{pending.temporary}: expected this file, found that it was removed; change nothing in the "
                    "cache folder while a run uses it"
                )
            undo.callback(pin.close)
            pending.publish()
            _record(path, file)
            undo.pop_all()
        pin.path = path
        self.count(fills=1, fetched_bytes=file.size)
        return pin

    def _make_space(self, path: Path, size: int, lock: int, wait_s: float) -> None:
        """Evict the least recently used files until `size` bytes are free, and reserve these bytes for the file `path`.

        The reservation is the number `size` in the file's ``.lock`` file; `lock` is the descriptor of this lock file.
        Raises `CacheFull` if there is too little space after `wait_s` seconds.
        """
        deadline = time.monotonic() + wait_s
        while True:
            with _locked(self.root / ".lock"), atomic.os_errors(self.root, "clear"):
                used, candidates = _survey(self.root, path)
                missing = used + size - self.capacity_bytes
                for _, freed, candidate in sorted(candidates):
                    if missing <= 0:
                        break
                    with _try_lock(candidate) as unused:
                        if unused is not None:
                            candidate.unlink(missing_ok=True)
                            _beside(candidate, "checked").unlink(missing_ok=True)
                            missing -= freed
                            self.count(evicted=1)
                if missing <= 0:
                    os.ftruncate(lock, 0)
                    os.pwrite(lock, str(size).encode(), 0)
                    return
            if time.monotonic() >= deadline:
                raise CacheFull(
                    f"{self.root}: expected {size} free bytes in the cache for {path.name}, found "
                    f"{max(0, size - missing)}, because running processes use the other files of the cache, whose "
                    f"size is limited to {self.capacity_bytes} bytes; raise this limit"
                )
            time.sleep(_POLL_S)


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{kind}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Lock a lock file exclusively during the `with` block; wait while another process holds the lock.

    Yields the file descriptor of the lock file. The file is never removed, because that would cause a race condition.
    """
    with atomic.os_errors(path, "lock"):
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o666)
    try:
        found = os.fstat(descriptor)
        if found.st_nlink > 1 or not stat.S_ISREG(found.st_mode):  # a reservation would change the other file too
            raise UsageFault(f"{path}: expected a lock file with one name, found a link or a pipe; remove this path")
        with atomic.os_errors(path, "lock"):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _pin(path: Path) -> Pin | None:
    """Take a shared lock on a file and return the pin; return None if the file does not exist."""
    with atomic.os_errors(path, "read"):
        try:
            pin = Pin(path, os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))
        except FileNotFoundError:
            return None
        with contextlib.ExitStack() as undo:
            undo.callback(pin.close)
            if not stat.S_ISREG(os.fstat(pin.descriptor).st_mode):
                raise UsageFault(f"{path}: expected a cached file, found no regular file; remove this path")
            fcntl.flock(pin.descriptor, fcntl.LOCK_SH)
            with contextlib.suppress(FileNotFoundError):  # evicted between opening and locking
                if os.fstat(pin.descriptor).st_ino == path.stat().st_ino:
                    undo.pop_all()
                    return pin
    return None


def _identity(path: Path, file: CachedFile) -> dict[str, int | str]:
    """Return the content of a cached file's ``.checked`` record: size, sha256, inode and times of the file.

    Every change of a file changes its inode or its ctime. Programs cannot set the inode or the ctime to a chosen value.
    """
    found = path.stat()
    times = {"mtime_ns": found.st_mtime_ns, "ctime_ns": found.st_ctime_ns}
    return {"bytes": found.st_size, "sha256": file.sha256, "inode": found.st_ino, **times}


def _recorded(path: Path, file: CachedFile) -> bool:
    """Return whether a file has the expected size and its ``.checked`` record shows no change since the last check."""
    try:
        record = parse_json(read_file(_beside(path, "checked"), _MAX_RECORD_BYTES, path.parent))
        return bool(record == _identity(path, file) and record["bytes"] == file.size)
    except (FileNotFoundError, ValueError, DataError):  # the record is absent or invalid: the content is checked
        return False


def _record(path: Path, file: CachedFile) -> None:
    record = _beside(path, "checked")
    record.unlink(missing_ok=True)  # it may be a pipe or a link
    atomic.publish_bytes(record, canonical_json(_identity(path, file)))
    _touch(path)


def _touch(path: Path) -> None:
    """Record the current time in ns as the time of a file's last use; a time set by the kernel is less precise."""
    now_ns = time.time_ns()
    with contextlib.suppress(FileNotFoundError):  # another process may remove the record of a damaged file
        os.utime(_beside(path, "checked"), ns=(now_ns, now_ns))


def _filled_file(temporary: str) -> str:
    """Return the name of the cached file NAME, given the name of a temporary file of NAME or of ``.NAME.checked``."""
    name = atomic.final_name(temporary) or temporary
    return name[1:].removesuffix(".checked") if name.startswith(".") else name


def _survey(root: Path, own: Path) -> tuple[int, list[tuple[int, int, Path]]]:
    """Return the sum of used and reserved bytes, and a list of the cached files as (last use in ns, bytes, path).

    `own` is the path of the file that the caller has locked and will download. Bytes reserved for `own` are not in the
    sum. Temporary files of killed processes are removed, except those of `own`.
    """
    used = 0
    candidates = []
    groups = [e for e in os.scandir(root) if _GROUP.fullmatch(e.name) and e.is_dir(follow_symlinks=False)]
    for group in (Path(entry.path) for entry in groups):
        # Reservations are read first, so a file that is published in between is counted exactly once.
        reserved = _reservations(group, own)
        used += sum(reserved.values())
        sizes = _sizes(group)
        for name, size in sizes.items():
            path = group / name
            if atomic.is_temporary_name(name):
                filled = group / _filled_file(name)
                if filled != own:
                    with _try_lock(_beside(filled, "lock")) as lock:
                        if lock is not None:  # no process is downloading this file
                            path.unlink(missing_ok=True)
            elif f".{name}.lock" in sizes:  # a cached file; other files are ignored
                used += max(0, size - reserved.get(name, 0))
                try:
                    last_use_ns = _beside(path, "checked").stat().st_mtime_ns
                except FileNotFoundError:
                    last_use_ns = 0
                candidates.append((last_use_ns, size, path))
    return used, candidates


def _reservations(group: Path, own: Path) -> dict[str, int]:
    """Return the reserved bytes of each file in a group's folder that a running process is downloading, by file name.

    The result does not contain the file `own`, which the caller has locked. Reservations of killed processes are
    removed.
    """
    found = {}
    for name, size in _sizes(group).items():
        filled = name[1 : -len(".lock")]
        if size and _LOCK.match(name) and group / filled != own:
            with _try_lock(group / name) as lock:
                if lock is None:
                    said = read_file(group / name, _MAX_RECORD_BYTES, group)
                    found[filled] = int(said) if said.isdigit() else 0
                elif os.fstat(lock).st_nlink == 1:  # the process that reserved the bytes was killed
                    os.ftruncate(lock, 0)
    return found


def _sizes(folder: Path) -> dict[str, int]:
    sizes = {}
    for entry in list(os.scandir(folder)):
        with contextlib.suppress(FileNotFoundError):  # a temporary file that was just renamed
            sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
    return sizes


@contextlib.contextmanager
def _try_lock(path: Path) -> Iterator[int | None]:
    """Lock a file exclusively and yield its descriptor; yield None if it is missing or another process locks it."""
    with contextlib.ExitStack() as held:
        descriptor: int | None = None
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            opened = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            held.callback(os.close, opened)
            if not stat.S_ISREG(os.fstat(opened).st_mode):
                raise UsageFault(
                    f"{path}: expected a regular file in the cache, found something else; remove this path"
                )
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            descriptor = opened
        yield descriptor


_LONGEST_HINT: Final = 1024


class _Closed(Exception):
    """Exception that ends the attempts of a download after `FetchAhead.close` was called."""


class FetchAhead:
    """Background threads that download shards before they are needed, and keep these shards pinned in the cache."""

    def __init__(self, acquire: Callable[[str, Wait], Pin], maximum: int, threads: int) -> None:
        """Store the settings; the threads start with the first call of `hint`.

        Args:
            acquire: Function that downloads and pins a shard. Its arguments are the shard's name and a function that
                waits for a number of seconds.
            maximum: Largest number of shards that are pinned at the same time.
            threads: Number of threads that download at the same time.
        """
        self._acquire, self._maximum, self._threads = acquire, maximum, threads
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._order: list[str] = []
        self._busy: set[str] = set()
        self._awaited: Counter[str] = Counter()
        self._pins: dict[str, Pin] = {}
        self._errors: dict[str, BaseException] = {}
        self._running: list[threading.Thread] = []

    def hint(self, shards: Iterable[str]) -> None:
        """Set the shards to download, in the order in which they are needed; release the pins of all other shards."""
        order = list(dict.fromkeys(itertools.islice(shards, _LONGEST_HINT)))
        with self._changed:
            self._order = order
            for name in self._pins.keys() - order:
                self._pins.pop(name).close()
            self._errors = {name: error for name, error in self._errors.items() if name in order}
            while order and len(self._running) < self._threads and not self._closed.is_set():
                self._running.append(threading.Thread(target=self._run, name="fetch-ahead", daemon=True))
                self._running[-1].start()
            self._changed.notify_all()

    def take(self, name: str) -> Pin | None:
        """Return the pin of a downloaded shard; wait if a thread is still downloading the shard.

        The caller must close the pin. Return None if no thread has started to download the shard. If the download
        failed, raise the error of the download.
        """
        with self._changed:
            self._order = [other for other in self._order if other != name]
            self._awaited[name] += 1
            while name in self._busy:
                self._changed.wait()
            self._awaited[name] -= 1
            if name in self._errors:
                raise self._errors.pop(name)
            self._changed.notify_all()  # one more shard may be downloaded
            return self._pins.pop(name, None)

    def drop(self) -> None:
        """Release all downloaded shards; start no download before the next call of `hint`."""
        with self._changed:
            self._order = []
            while self._pins:
                self._pins.popitem()[1].close()

    def close(self) -> None:
        """Stop the threads and release all shards. A thread that waits for a server may continue until the time-out."""
        self._closed.set()
        self.drop()
        with self._changed:
            self._changed.notify_all()
        for thread in self._running:
            thread.join(timeout=1.0)

    def _next(self) -> str | None:
        """Wait until a shard may be downloaded, mark it as busy, and return its name; return None after `close`."""
        with self._changed:
            while not self._closed.is_set():
                room = self._maximum > len(self._busy) + len(self._pins)
                for name in self._order if room else ():
                    if name not in self._busy and name not in self._pins and name not in self._errors:
                        self._busy.add(name)
                        return name
                self._changed.wait()
        return None

    def _run(self) -> None:
        """Download shards one after the other until `close`, and store each pin or error."""
        while (name := self._next()) is not None:
            download = settled(partial(self._acquire, name, self._wait))
            error = download.exception()
            with self._changed:
                self._busy.discard(name)
                wanted = name in self._order or self._awaited[name] > 0
                if isinstance(error, CacheFull):
                    self._order = []  # the cache is full: download nothing before the next hint
                elif error is not None and wanted and not isinstance(error, _Closed):
                    self._errors[name] = error
                elif error is None and wanted:
                    self._pins[name] = download.result()
                elif error is None:
                    download.result().close()
                self._changed.notify_all()

    def _wait(self, seconds: float) -> None:
        if self._closed.wait(seconds):
            raise _Closed
