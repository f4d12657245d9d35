"""An output folder in an object store. Its folder ``.omniges-journal`` contains journal, lock and unfinished shards.

The journal consists of numbered records, ``record-000000000000.json`` and so on. A record is created only if no object
of its name exists. So the records have one order, and two runs cannot both write the next record.

A run takes the lock by writing a ``lock`` record with the next lock number. If a run finds a lock that was not
released, it decides whether the owner is dead. If the owner ran on the same machine, the run checks whether the process
of the owner still exists. Otherwise it waits `Lease.expires_s` seconds for a change of the owner's heartbeat object. If
this object does not change, the owner counts as dead.

If the owner is dead, the run writes the next ``lock`` record. If the earlier owner was only slow, it cannot write
records any more: each attempt raises `LockLost`.

A shard is uploaded as ``staged-LOCK-NUMBER.tar`` and then recorded. A commit is a record too, so an owner that has lost
the lock cannot begin a commit. After the commit is recorded, the current owner of the lock carries out these steps:

1. Replace an earlier dataset.json by a mark: a document of format `UNFINISHED_FORMAT` that contains the replaced text.
   The write is conditional on the ETag of the replaced object.
2. Copy the staged objects to their final names inside the store, and compare each copy with its sha256.
3. Remove objects of the earlier set that are not in the new set.
4. Write dataset.json, on the condition that it does not exist or is the mark of this commit.
5. Write a ``clean`` record, which makes earlier records invalid. Remove these records and the staged objects.

The ``clean`` record and later records stay, so that no record number is used twice. Otherwise an owner that lost the
lock long ago could write again.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from omniges.errors import DataError, EnvironmentFault, OmnigesError, UsageFault
from omniges.shards import schema
from omniges.shards.dataset import seal
from omniges.shards.document import check_document
from omniges.shards.transaction import FOREIGN, UnfinishedRun, is_own_name, journal_problem
from omniges.shards.writer import StoredShard
from omniges.storage.atomic import locked, make_folder, os_errors
from omniges.storage.bucket import Bucket, ConditionFailed, child
from omniges.storage.cache import CachedFile, Retries, WrongContent, copy_checked, with_retries
from omniges.storage.files import canonical_json, is_sha256, parse_json, sha256_hex
from omniges.storage.redact import one_line
from omniges.storage.remote import Location, MissingFile, Timeouts

JOURNAL_FOLDER: Final = ".omniges-journal"
_KINDS: Final = frozenset({"lock", "begin", "shard", "rejected", "commit", "clean", "release"})
_RECORDS: Final = "record-"
_RECORD: Final = re.compile(rf"{_RECORDS}([0-9]{{12}})\.json", re.ASCII)
_BEAT: Final = re.compile(r"beat-[0-9]{6,12}\.json", re.ASCII)
_STAGED: Final = re.compile(r"staged-[0-9]{6,12}-(?P<rest>.+)", re.ASCII)
_SHARD_INDEX: Final = re.compile(r"[0-9]{6}\.tar", re.ASCII)
_ASIDE: Final = "moved-"
_KEPT_SHARDS: Final = 2  # number of downloaded shards of earlier runs in the work folder
_LOCAL_SHARDS: Final = 5  # maximum number of shards in the work folder: open, waiting, uploading and downloaded
_REMOVERS: Final = 8
_COMMIT_ATTEMPTS: Final = 3  # an attempt fails if an earlier owner of the lock writes at the same time
_LAST_BEAT_S: Final = 1.0  # longest wait, at the end, for the thread that writes heartbeats
_DEAD_STATES: Final = "ZX"  # states, in /proc, of a process that has ended


class LockLost(EnvironmentFault):
    """Another run now owns the lock of the output folder."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Time settings of the lock."""

    beat_s: float = 10.0
    """Seconds between heartbeats."""
    expires_s: float = 60.0
    """Seconds without a heartbeat after which an owner on another machine counts as dead."""
    poll_s: float = 2.0
    """Seconds between two reads of another owner's heartbeat."""


@dataclass(frozen=True, slots=True)
class _Record:
    number: int
    document: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.document["record"])

    @property
    def lock(self) -> int:
        return int(self.document["lock"])


@dataclass(frozen=True, slots=True)
class _Steps:
    """Steps of a commit, as stored in its record."""

    place: dict[str, dict[str, Any]]  # final name -> name of the staged object, bytes and sha256
    removed: dict[str, str]  # file of the earlier set -> ETag
    replaces: str | None  # ETag of the earlier dataset.json; None if the folder had no dataset.json
    mark: str  # unique text in the mark of this commit

    def is_valid(self) -> bool:
        """Return whether all fields and file names are as an omniges run writes them; other names could be unsafe."""
        places = isinstance(self.place, dict) and isinstance(self.removed, dict) and isinstance(self.mark, str)
        if not places or not isinstance(self.replaces, (str, type(None))):
            return False
        return (
            {*schema.SIDE_FILES, schema.DATASET_FILE} <= self.place.keys()
            and all(schema.is_contract_name(name) and _is_placed(entry) for name, entry in self.place.items())
            and all(is_own_name(name) and isinstance(etag, str) for name, etag in self.removed.items())
            and not self.removed.keys() & self.place.keys()
        )

    def mark_of(self, replaced: str) -> bytes:
        """Return the mark that replaces dataset.json during the commit; `replaced` is the text of the earlier file."""
        return seal({"format": schema.UNFINISHED_FORMAT, "commit": self.mark, "replaced": replaced})


def _is_placed(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and entry.keys() == {"staged", "bytes", "sha256"}
        and _is_staged(entry["staged"])
        and schema.is_count(entry["bytes"])
        and is_sha256(entry["sha256"])
    )


def _is_staged(name: object) -> bool:
    match = _STAGED.fullmatch(name) if isinstance(name, str) else None
    if match is None:
        return False
    rest = match["rest"]
    return (
        _SHARD_INDEX.fullmatch(rest) is not None
        or rest in schema.CONTRACT_FILES
        or (rest.startswith(_ASIDE) and schema.is_shard_name(rest.removeprefix(_ASIDE)))
    )


@dataclass(slots=True)
class _State:
    """Unfinished work, according to the records since the last ``clean`` record."""

    first: int = 0  # number of the last ``clean`` record
    next: int = 0  # number of the next record
    lock: int = -1  # number of the last lock
    holder: dict[str, Any] | None = None  # ``lock`` record of the current owner; None: released
    begun: dict[str, Any] | None = None  # ``begin`` record
    lines: list[dict[str, Any]] = field(default_factory=list)  # lines of the journal
    commit: dict[str, Any] | None = None  # ``commit`` record

    def add(self, record: _Record) -> None:
        """Update the state with the next record of the journal."""
        document = record.document
        self.next, self.lock = record.number + 1, record.lock
        match record.kind:
            case "lock":
                self.holder = document
            case "release":
                self.holder = None
            case "begin":
                self.begun = document
            case "shard":
                self.lines.append(document["line"])
            case "rejected":
                self.lines += document["lines"]
            case "commit":
                self.commit = document
            case "clean":
                self.first, self.holder = record.number, document  # replaces the removed ``lock`` record
                self.begun, self.commit, self.lines = None, None, []

    @property
    def staged(self) -> set[str]:
        """Names of the staged objects that the unfinished work needs."""
        steps = self.commit["steps"]["place"].values() if self.commit else ()
        return {str(line.get("staged")) for line in self.lines} | {str(step["staged"]) for step in steps}


class StorePlace:
    """An output folder in an S3 bucket; implements `omniges.shards.transaction.OutputPlace`."""

    max_waiting: int | None = 1

    def __init__(
        self,
        location: Location,
        work: Path,
        shard_bytes: int,
        lease: Lease | None = None,
        timeouts: Timeouts | None = None,
        retries: Retries | None = None,
        say: Callable[[str], object] = lambda _line: None,
    ) -> None:
        """Prepare the place and load s3fs; no connection is made yet.

        Args:
            location: Location of the set; check it with `require_writable` first.
            work: Folder on this machine for a few shards. `locked` empties it when the lock is taken and released.
            shard_bytes: Target size of a shard in bytes.
            lease: Time settings of the lock; None: the defaults.
            timeouts: Limits for the server; None: the defaults.
            retries: Settings of repeated requests; None: the defaults.
            say: Function that shows a line of text to the user; called before a long wait.
        """
        self.location, self._say = location, say
        self.out, self.folder, self._kept = work / "set", work / "new", work / "kept"
        self.unfinished = f"{location}/{JOURNAL_FOLDER}"
        self.journal = StoreJournal(self)
        self._work, self._shard_bytes = work, shard_bytes
        self._lease, self._retries = lease or Lease(), retries or Retries()
        self._set = Bucket(location, timeouts, retries)
        self._bucket = Bucket(child(location, JOURNAL_FOLDER), timeouts, retries)
        self._state = _State()
        self._identity = uuid.uuid4().hex
        self._appending, self._fetching = threading.Lock(), threading.Lock()
        self._fetched: dict[StoredShard, Path] = {}

    # --- Lock

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder and release it at the end; raise EnvironmentFault if another run has the lock."""
        make_folder(self._work)
        with locked(self._work), contextlib.ExitStack() as undo:
            undo.callback(self._empty_work)
            self._empty_work()
            for folder in (self.out, self.folder, self._kept):
                make_folder(folder)
            undo.callback(self._bucket.close)
            undo.callback(self._set.close)
            self._take()
            undo.callback(self._release)
            last = _record_name(self._state.next - 1)
            self._bucket.require_conditions(last, self._bucket.read(last))
            self._bucket.put(self._beat_name, canonical_json({"beat": 0}))
            stop = threading.Event()
            beat = threading.Thread(target=self._beat, args=(stop,), name="heartbeat", daemon=True)
            beat.start()
            undo.callback(beat.join, _LAST_BEAT_S)
            undo.callback(stop.set)
            self._clear()
            yield

    def _empty_work(self) -> None:
        for folder in (self.out, self.folder, self._kept):
            shutil.rmtree(folder, ignore_errors=True)

    def _take(self) -> None:
        taken = False
        while not taken:
            state = self._state = self._read_state()
            holder = state.holder
            if holder is not None and not self._is_dead(holder):
                raise EnvironmentFault(
                    f"{self.location}: expected no other writer, found that another omniges run is writing here "
                    f"({_shown_holder(holder)}); wait for that run, or stop it"
                )
            state.lock += 1
            with contextlib.suppress(LockLost):  # another run has taken the lock first
                self._append("lock", **_process_facts())
                taken = True

    def _is_dead(self, holder: Mapping[str, Any]) -> bool:
        """Return whether the process that owns the lock has ended.

        If it runs on another machine or in another container, wait up to `Lease.expires_s` seconds for its next
        heartbeat or for a new record. If neither appears, the process counts as ended.
        """
        ended = _has_ended(holder)
        if ended is not None:
            return ended
        self._say(
            f"{self.location}: locked by {_shown_holder(holder)}; waiting {self._lease.expires_s:g} s for its "
            "heartbeat before this run takes over its work"
        )
        first, began = self._bucket.entry(self._beat_name), time.monotonic()
        while time.monotonic() - began < self._lease.expires_s:
            time.sleep(self._lease.poll_s)
            if self._bucket.entry(self._beat_name) != first or self._newer():
                return False
        return True

    @property
    def _beat_name(self) -> str:
        return f"beat-{self._state.lock:06d}.json"

    def _beat(self, stop: threading.Event) -> None:
        count = 0
        while not stop.wait(self._lease.beat_s):
            count += 1
            # A failed heartbeat is ignored: if the lock is lost because of it, writing the next record fails.
            with contextlib.suppress(OmnigesError):
                self._bucket.put(self._beat_name, canonical_json({"beat": count}))

    def _release(self) -> None:
        """Release the lock; if this fails, the next run detects that the owner has ended."""
        with contextlib.suppress(OmnigesError):
            self._append("release")
            self._bucket.remove(self._beat_name)

    # --- Records

    def _read_state(self) -> _State:
        while True:
            names = [name for name in self._bucket.entries(start=_RECORDS) if _RECORD.fullmatch(name)]
            with contextlib.suppress(MissingFile):  # the owner has removed this record; newer records exist
                return self._state_of(names)

    def _state_of(self, names: list[str]) -> _State:
        numbers = [int(name.removeprefix(_RECORDS).removesuffix(".json")) for name in names]
        first = len(numbers)
        while first and (first == len(numbers) or numbers[first - 1] == numbers[first] - 1):
            first -= 1
        state = _State()
        records = [
            self._parsed(number, data)
            for number, data in zip(numbers[first:], self._bucket.read_all(names[first:]), strict=True)
        ]
        if records and records[0].number and not any(record.kind == "clean" for record in records):
            raise UsageFault(
                f"{self.unfinished}: expected all records since the last clean record, found "
                f"{_record_name(records[0].number)} as the first; move this folder away, then run the same command "
                "again"
            )
        for record in records:
            state.add(record)
        return state

    def _parsed(self, number: int, data: bytes) -> _Record:
        try:
            document = parse_json(data)
        except ValueError:
            document = None
        if not isinstance(document, dict) or not _is_record(document):
            raise UsageFault(f"{self.unfinished}/{_record_name(number)}: {FOREIGN}")
        return _Record(number, document)

    def _append(self, kind: str, **fields: Any) -> None:
        """Write the next record; raise LockLost if another run has written one."""
        with self._appending:
            document = {"record": kind, "lock": self._state.lock, "owner": self._identity} | fields
            record = _Record(self._state.next, json.loads(canonical_json(document)))
            try:
                self._bucket.create(_record_name(record.number), canonical_json(document))
            except ConditionFailed:
                raise self._lost() from None
            self._state.add(record)
            # If another run has the lock and has removed a record of this number, `create` has succeeded by mistake.
            if self._newer():
                self._bucket.remove(_record_name(record.number))
                raise self._lost()

    def _newer(self) -> bool:
        """Return whether another run has written a record after the last one that this run knows."""
        last = _record_name(self._state.next - 1) if self._state.next else ""
        return any(_RECORD.fullmatch(name) for name in self._bucket.entries(start=_RECORDS, after=last))

    def _require_lock(self) -> None:
        if self._newer():
            raise self._lost()

    def _lost(self) -> LockLost:
        return LockLost(
            f"{self.location}: expected to be the only run that writes here, found that another run took over, "
            f"because this run sent no heartbeat for {self._lease.expires_s:g} s, or both began at once; let the "
            "other run finish"
        )

    # --- Unfinished work

    def recover(self) -> None:
        """Finish a commit that an earlier run left unfinished; then download the small files of the complete set."""
        entries = self._set.entries()
        if self._state.lock == 0 and self._state.first == 0 and schema.DATASET_FILE not in entries:
            ours = [name for name in entries if is_own_name(name)]
            if ours:
                raise UsageFault(
                    f"{self.location}: expected no file called {ours[0]}, found a file that is not from an omniges "
                    "run; choose another --output-dir"
                )
        self._finish_commit()
        self._restore_dataset()
        self._fetch_set()

    def _restore_dataset(self) -> None:
        """Restore the earlier dataset.json if a commit replaced it by a mark and did not continue.

        This happens if a run loses the lock during its commit and then ends. The mark contains the earlier text.
        """
        entry = self._set.entry(schema.DATASET_FILE)
        mark = None if entry is None else _mark_in(self._set.read(schema.DATASET_FILE))
        if entry is not None and mark is not None:
            self._set.replace(schema.DATASET_FILE, mark["replaced"].encode(), entry.etag)

    def _fetch_set(self) -> None:
        """Download dataset.json unchecked, and those other small files that exist and match its sizes and digests."""
        try:
            data = self._set.read(schema.DATASET_FILE)
        except MissingFile:
            return
        path = self.out / schema.DATASET_FILE
        try:
            document = check_document(parse_json(data), str(path))
        except (ValueError, DataError):
            document = {"files": {}}  # the later reader of the copy reports the fault
        with os_errors(path):
            path.write_bytes(data)
        for name, facts in document["files"].items():
            with contextlib.suppress(WrongContent, MissingFile):
                self._download(self._set, CachedFile("", name, facts["bytes"], facts["sha256"]), self.out / name)

    def _download(self, bucket: Bucket, file: CachedFile, path: Path) -> None:
        with_retries(
            lambda: copy_checked(bucket, file, path, lambda: None).publish(),
            self._retries,
            salt=f"{file.name}:{os.getpid()}",
        )

    def require_space(self, needed_bytes: int) -> None:
        """Raise EnvironmentFault if the work folder lacks space for the shards that it stores until their upload."""
        needed = min(needed_bytes, _LOCAL_SHARDS * self._shard_bytes)
        free = shutil.disk_usage(self._work).free
        if free < needed:
            raise EnvironmentFault(
                f"{self._work}: expected {needed / 1e9:.1f} GB of free space for shards before their upload, "
                f"found {free / 1e9:.1f} GB; free some space or choose another --work-dir"
            )

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of each object of the set, by name."""
        return {name: entry.size for name, entry in self._set.entries().items()}

    def begun(self) -> UnfinishedRun | None:
        """Return the settings and versions of the unfinished run; None if no run is unfinished."""
        found = self._state.begun
        return None if found is None else UnfinishedRun(found["settings"], found["tool"], found["anew"])

    def begin(self, begun: UnfinishedRun) -> None:
        """Write a ``begin`` record, unless the run continues an unfinished run with equal settings and versions."""
        if self.begun() != begun:
            self._append("begin", **asdict(begun))

    def wipe(self) -> None:
        """Remove all unfinished work."""
        self._append("clean", **_process_facts())
        self._clear()

    def _clear(self) -> None:
        """Remove records before the last ``clean`` record, and heartbeats and staged objects that are not needed."""
        needed = self._state.staged | {self._beat_name}

        def is_left(name: str) -> bool:
            match = _RECORD.fullmatch(name)
            if match:
                return int(match[1]) < self._state.first
            return name not in needed and bool(_BEAT.fullmatch(name) or _is_staged(name))

        with ThreadPoolExecutor(_REMOVERS) as pool:
            list(pool.map(self._bucket.remove, filter(is_left, self._bucket.entries())))

    # --- Shards

    def staged_path(self, index: int) -> Path:
        """Return the path of shard `index` of this run, counted from 0; the uploaded object has the same file name."""
        return self.folder / f"staged-{self._state.lock:06d}-{index:06d}.tar"

    def keep(self, path: Path, size: int, sha256: str) -> None:
        """Upload a finished shard, and remove the local file."""
        self._bucket.upload(path.name, path, size, sha256)
        with os_errors(path, "remove"):
            path.unlink()

    @contextlib.contextmanager
    def opened(self, shard: StoredShard) -> Iterator[int]:
        """Open a local copy of a shard. Without a copy, first download the shard and check its sha256.

        Args:
            shard: The shard. Its path is in `out` for a shard of the complete set, and in `folder` for a shard of the
                unfinished run. A file at this path is not needed: the path only identifies the object in the store.

        Yields:
            A file descriptor.

        Raises:
            DataError: The object does not exist, or its content differs.
        """
        with self._fetching:
            descriptor = os.open(self._copy_of(shard), os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _copy_of(self, shard: StoredShard) -> Path:
        path = self._fetched.pop(shard, None)
        if path is None:
            path = self._kept / f"{uuid.uuid4().hex}.tar"
            bucket = self._set if shard.path.parent == self.out else self._bucket
            self._download(bucket, CachedFile("", shard.path.name, shard.size, shard.sha256), path)
            while len(self._fetched) >= _KEPT_SHARDS:
                self._fetched.pop(
                    next(iter(self._fetched))
                ).unlink()  # a reader that has the file open can still read it
        self._fetched[shard] = path
        return path

    # --- Commit

    def commit(self, shards: Mapping[str, Path]) -> None:
        """Publish the new set; see `OutputPlace.commit`."""
        data = (self.folder / schema.DATASET_FILE).read_bytes()
        dataset = json.loads(data)
        facts = {schema.DATASET_FILE: {"bytes": len(data), "sha256": sha256_hex(data)}} | dataset["files"]
        place: dict[str, dict[str, Any]] = {}
        for name, own in facts.items():
            staged = self._staged_name(name)
            self._bucket.upload(staged, self.folder / name, own["bytes"], own["sha256"])
            place[name] = {"staged": staged, "bytes": own["bytes"], "sha256": own["sha256"]}
        for name, path in shards.items():
            own = dataset["shards"][name]
            staged = path.name
            if path == self.out / name:
                continue
            if path.parent == self.out:  # a shard of the earlier set whose name changes
                staged = self._staged_name(f"{_ASIDE}{path.name}")
                self._set.copy(path.name, self._bucket, staged, own["bytes"], own["sha256"])
            place[name] = {"staged": staged, "bytes": own["bytes"], "sha256": own["sha256"]}
        entries = self._set.entries()
        removed = {
            name: entry.etag
            for name, entry in entries.items()
            if is_own_name(name) and name not in place and name not in shards
        }
        earlier = entries.get(schema.DATASET_FILE)
        steps = _Steps(place, removed, earlier.etag if earlier else None, uuid.uuid4().hex)
        self._append("commit", steps=asdict(steps))
        self._finish_commit()

    def _staged_name(self, rest: str) -> str:
        return f"staged-{self._state.lock:06d}-{rest}"

    def _finish_commit(self) -> None:
        """Carry out the remaining steps of the recorded commit; do nothing if no commit is recorded."""
        found = self._state.commit
        if found is None:
            return
        steps = _Steps(**found["steps"])
        for attempt in range(_COMMIT_ATTEMPTS):
            try:
                self._carry_out(steps)
                break
            except ConditionFailed:
                self._require_lock()  # a later owner may have published the set
                if attempt == _COMMIT_ATTEMPTS - 1:
                    raise
        self.wipe()

    def _carry_out(self, steps: _Steps) -> None:
        last = steps.place[schema.DATASET_FILE]
        present = self._set.entry(schema.DATASET_FILE)
        if present is None:
            self._publish(steps, self._read_staged(last), None)
            return
        content = self._set.read(schema.DATASET_FILE)
        if present.etag != steps.replaces and sha256_hex(content) == last["sha256"]:
            return  # dataset.json is written last, so the set is complete
        mark = _mark_in(content)
        if mark is None and present.etag != steps.replaces:
            raise DataError(
                f"{self._set.location.shown_file(schema.DATASET_FILE)}: expected the file that this run replaces, "
                "found one that another program wrote; remove that file and run the same command again"
            )
        data = self._read_staged(last)  # read before the earlier set is changed
        etag = present.etag
        if mark is None or mark["commit"] != steps.mark:
            self._require_lock()
            replaced = content.decode() if mark is None else mark["replaced"]
            etag = self._set.replace(schema.DATASET_FILE, steps.mark_of(replaced), present.etag)
            if self._newer():  # another run may have finished this commit and written a later, equal set
                self._set.replace(schema.DATASET_FILE, replaced.encode(), etag)
                raise self._lost()
        self._publish(steps, data, etag)

    def _publish(self, steps: _Steps, data: bytes, mark: str | None) -> None:
        for name, step in sorted(steps.place.items()):
            if name != schema.DATASET_FILE:
                self._require_lock()
                try:
                    self._bucket.copy(step["staged"], self._set, name, step["bytes"], step["sha256"])
                except MissingFile as error:
                    raise self._incomplete(str(error)) from None
        for name, etag in steps.removed.items():
            self._require_lock()
            self._set.remove(name, etag)
        self._require_lock()
        if mark is None:
            self._set.create(schema.DATASET_FILE, data)
        else:
            self._set.replace(schema.DATASET_FILE, data, mark)

    def _read_staged(self, step: dict[str, Any]) -> bytes:
        try:
            data = self._bucket.read(step["staged"])
        except MissingFile as error:
            raise self._incomplete(str(error)) from None
        if sha256_hex(data) != step["sha256"]:
            raise self._incomplete(
                f"{self._bucket.location.shown_file(step['staged'])}: expected the bytes that this run wrote, found "
                "other bytes"
            )
        return data

    def _incomplete(self, found: str) -> DataError:
        self._require_lock()  # if a later owner has published, it has removed the staged objects
        return DataError(f"{found}, so the set cannot be completed; choose another --output-dir")


def _mark_in(content: bytes) -> dict[str, str] | None:
    """Parse a dataset.json that is the mark of an unfinished commit; return None for any other content.

    The result contains ``commit``, the unique text of the commit, and ``replaced``, the earlier dataset.json as text.
    """
    try:
        document = parse_json(content)
    except ValueError:
        return None
    if not isinstance(document, dict) or document.get("format") != schema.UNFINISHED_FORMAT:
        return None
    valid = isinstance(document.get("commit"), str) and isinstance(document.get("replaced"), str)
    return document if valid else None


class StoreJournal:
    """The journal of an unfinished run. Its lines are stored in the records of a `StorePlace`."""

    def __init__(self, place: StorePlace) -> None:
        self._place = place
        self._waiting: list[dict[str, Any]] = []
        self._lock = threading.Lock()  # two threads append: one finished shards, the other rejections

    def load(self) -> list[dict[str, Any]]:
        """Return the lines of the unfinished run, oldest first; raise UsageFault if no omniges run wrote them."""
        lines = self._place._state.lines
        for line in lines:
            try:
                problem = journal_problem(line)
            except ValueError as error:
                problem = str(error)
            if problem:
                raise UsageFault(f"{self._place.unfinished}: {ascii(problem)[1:-1][:160]}: {FOREIGN}")
        return list(lines)

    def open(self) -> None:
        """Prepare for `append`; discard lines that are not yet written."""
        self._waiting = []

    def append(self, row: dict[str, Any], *, durable: bool) -> None:
        """Add a line. A line that is not `durable` is written together with the next durable line."""
        with self._lock:
            if not durable:
                self._waiting.append(row)
                return
            waiting, self._waiting = self._waiting, []
            if waiting:
                self._place._append("rejected", lines=waiting)
            self._place._append("shard", line=row)

    def close(self) -> None:
        """Discard lines that are not yet written: rejected recordings, which the next run reads and rejects again."""
        self._waiting = []


def _record_name(number: int) -> str:
    return f"{_RECORDS}{number:012d}.json"


def _is_record(document: dict[str, Any]) -> bool:
    kind, own = document.get("record"), document.get
    if kind not in _KINDS or not schema.is_count(own("lock")) or not isinstance(own("owner"), str):
        return False
    match kind:
        case "begin":
            fields = {"settings": dict, "tool": dict, "anew": bool}
            return all(isinstance(own(name), type_) for name, type_ in fields.items())
        case "shard":
            return isinstance(own("line"), dict)
        case "rejected":
            lines = own("lines")
            return isinstance(lines, list) and all(isinstance(line, dict) for line in lines)
        case "commit":
            steps = own("steps")
            return (
                isinstance(steps, dict)
                and steps.keys() == _Steps.__dataclass_fields__.keys()
                and _Steps(**steps).is_valid()
            )
    return True


def _shown_holder(holder: Mapping[str, Any]) -> str:
    return f"process {one_line(str(holder.get('pid')), 20)} on {one_line(str(holder.get('host')), 80)}"


def _process_facts() -> dict[str, Any]:
    """Return what identifies this process: host, boot id, process namespace, process id and start time.

    Boot id and namespace are None if the system does not provide them.
    """
    boot = space = None
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        space = str(Path("/proc/self/ns/pid").readlink())
    return {"host": platform.node(), "boot": boot, "space": space, "pid": os.getpid(), "started": _start_time("self")}


def _start_time(pid: int | str) -> str | None:
    """Return the start time of a process in clock ticks since boot; None if the process has ended or never existed."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:  # no such process
        return None
    state, *fields = text.rpartition(")")[2].split()
    return None if state in _DEAD_STATES else fields[18]


def _has_ended(holder: Mapping[str, Any]) -> bool | None:
    """Return whether the process in a lock record has ended.

    Return None if the process was on another machine or in another container, or if this cannot be determined.
    """
    own = _process_facts()
    known = all(own[name] is not None and holder.get(name) == own[name] for name in ("boot", "space"))
    if not known or type(holder.get("pid")) is not int:
        return None
    started = _start_time(holder["pid"])
    return started is None or started != holder.get("started")
