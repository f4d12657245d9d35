"""The workspace of a run, its journal, and the commit that publishes a shard set.

The workspace is a hidden folder in the output folder, in which a run writes the files of the new set. No file gets its
final name before all files are written. So an earlier set stays complete and readable during the run. The journal
records the content of each finished shard. If a run stops early, the next run continues from the journal.

A commit moves the workspace to the output folder by a few renames. A crash at any point leaves a state that the next
run can finish:

1. Write ``commit.json`` with all steps. From now on the new set will be published, even after a crash.
2. Remove dataset.json. From now on the set in the folder is not complete.
3. Remove files of the earlier set that the new set does not reuse. If a reused shard gets a new name, move it to the
   workspace.
4. Rename ``commit.json`` to ``place.json``. From now on, files with omniges's names belong to the new set.
5. Rename all files to their final names, dataset.json last.

Steps 2 to 5 can be repeated after a stop at any point. Within a step the order does not matter, except in step 5. Both
folders are synced between the steps.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Final, Protocol

from omniges.errors import CODES, DataError, EnvironmentFault, UsageFault
from omniges.shards import schema
from omniges.shards.dataset import tool_versions
from omniges.shards.manifest import row_from_journal
from omniges.shards.writer import StoredShard, open_local
from omniges.storage.atomic import final_name, locked, make_folder, os_errors, publish_bytes, sync_folder
from omniges.storage.files import canonical_json, is_sha256, open_regular, parse_json, sha256_hex

BEGUN_FILE: Final = "begun.json"
JOURNAL_FILE: Final = "journal.jsonl"
COMMIT_FILE: Final = "commit.json"
PLACE_FILE: Final = "place.json"
SPOOL_FILE: Final = "spool"  # file with samples that are not in a shard yet
_WORK_FILES: Final = frozenset({BEGUN_FILE, JOURNAL_FILE, COMMIT_FILE, PLACE_FILE, SPOOL_FILE})
_STAGED: Final = re.compile(r"staged-(?:[0-9]{6,12}-)?[0-9]{6}\.tar", re.ASCII)  # in an object store with a lock number
_ASIDE: Final = "moved-"
FOREIGN: Final = "expected a file of an omniges run, found another file; move it away, then run the same command again"
_CHECK_CHARACTERS: Final = 16  # length of the digest before each line; enough to detect an incomplete line


def staged_name(index: int) -> str:
    """Return the file name of finished shard number `index` in the workspace, such as ``staged-000003.tar``."""
    return f"staged-{index:06d}.tar"


def aside_name(shard: str) -> str:
    """Return the name that a shard of the earlier set gets when it is moved to the workspace."""
    return f"{_ASIDE}{shard}"


def is_own_name(name: str) -> bool:
    """Return whether a text is the name of a shard or of a file beside the shards, but not of dataset.json."""
    return schema.is_contract_name(name) and name != schema.DATASET_FILE


def _is_source(name: str) -> bool:
    """Return whether a file of this name in the workspace will belong to the new set."""
    aside = name.startswith(_ASIDE) and schema.is_shard_name(name.removeprefix(_ASIDE))
    return name in schema.CONTRACT_FILES or bool(_STAGED.fullmatch(name)) or aside


def _content(path: Path) -> bytes | None:
    """Return the content of a file of the workspace; None if it is absent.

    UsageFault is raised if the path is a folder, pipe, device or link, because an omniges run creates only files here.
    """
    try:
        with open_regular(path, follow=False) as stream:
            return stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno in {errno.EINVAL, errno.ELOOP, errno.EISDIR}:
            raise UsageFault(f"{path}: {FOREIGN}") from error
        with os_errors(path, "read"):
            raise


def _read_fields(path: Path, fields: Mapping[str, type]) -> dict[str, Any] | None:
    """Read a small JSON object from the workspace; return None if the file is absent.

    UsageFault is raised if the file does not come from an omniges run: its fields or their types differ from `fields`.
    """
    content = _content(path)
    if content is None:
        return None
    try:
        found = parse_json(content)
    except ValueError:
        found = None
    complete = isinstance(found, dict) and found.keys() == fields.keys()
    if not complete or not all(isinstance(found[name], kind) for name, kind in fields.items()):
        raise UsageFault(f"{path}: {FOREIGN}")
    document: dict[str, Any] = found
    return document


@dataclass(frozen=True, slots=True)
class CommitSteps:
    """Names of the files that a commit moves, removes or renames."""

    moved: dict[str, str]  # reused shard of the earlier set in the output folder -> its name in the workspace
    removed: list[str]  # other files of the earlier set, which are removed from the output folder
    place: dict[str, str]  # name in the workspace -> final name in the output folder

    def is_valid(self) -> bool:
        """Return whether all fields and file names are as an omniges run writes them; other names could be unsafe."""
        texts = [*self.moved.values(), *self.removed, *self.place.values()]
        if not all(isinstance(text, str) for text in texts):
            return False
        return (
            all(schema.is_shard_name(shard) and aside == aside_name(shard) for shard, aside in self.moved.items())
            and all(is_own_name(final_name(name) or name) for name in self.removed)
            and {*schema.SIDE_FILES, schema.DATASET_FILE} <= self.place.keys()
            and all(
                name == source if source in schema.CONTRACT_FILES else _is_source(source) and schema.is_shard_name(name)
                for source, name in self.place.items()
            )
            and len(set(self.place.values())) == len(self.place)
        )


@dataclass(frozen=True, slots=True)
class UnfinishedRun:
    """Settings and package versions of an unfinished run; they determine its output."""

    settings: dict[str, Any]
    tool: dict[str, str]
    anew: bool  # --force: do not reuse an earlier set in the folder

    @classmethod
    def of(cls, document: dict[str, Any], *, anew: bool) -> UnfinishedRun:
        """Return the settings and package versions of this run.

        The settings get the form that JSON gives them, for example lists instead of tuples. So they can be compared
        with the stored settings of an unfinished run.

        Args:
            document: Settings that affect the output bytes.
            anew: True if the user chose to replace an earlier set (--force); the run then does not reuse this set.

        Returns:
            The settings and versions.
        """
        return cls(json.loads(canonical_json(document)), tool_versions(), anew)


class RunJournal(Protocol):
    """Interface of a journal: a line of JSON for each finished shard or rejected recording of an unfinished run."""

    def load(self) -> list[dict[str, Any]]:
        """Return the lines of the unfinished run, oldest first; raise UsageFault if no omniges run wrote them."""
        ...

    def open(self) -> None:
        """Prepare for `append`."""
        ...

    def append(self, row: dict[str, Any], *, durable: bool) -> None:
        """Add a line. If `durable` is True, this line and all lines before it survive a crash."""
        ...

    def close(self) -> None:
        """Stop appending."""
        ...


class OutputPlace(Protocol):
    """Interface of the output folder of a run: a folder on this machine, or a folder in an object store.

    Both kinds use two folders on this machine. `out` contains the small files of the complete set. `folder` contains
    new files until `commit` publishes them. With an object store, a shard stays in `folder` only until it is uploaded.
    """

    out: Path
    folder: Path
    unfinished: str
    """Location of the unfinished work, for errors."""
    max_waiting: int | None
    """Maximum number of finished shards for which `keep` is not done yet; None: no limit."""

    @property
    def journal(self) -> RunJournal:
        """Journal of the unfinished run."""
        ...

    def locked(self) -> AbstractContextManager[None]:
        """Lock the output folder; raise EnvironmentFault if another run writes there."""
        ...

    def recover(self) -> None:
        """Finish a commit that an earlier run left unfinished; raise UsageFault for files that no omniges run wrote."""
        ...

    def require_space(self, needed_bytes: int) -> None:
        """Raise EnvironmentFault if there is clearly too little disk space for new shards of `needed_bytes`."""
        ...

    def sizes(self) -> Mapping[str, int]:
        """Return the size in bytes of each file of the set, by name."""
        ...

    def begun(self) -> UnfinishedRun | None:
        """Return the settings and versions of the unfinished run; None if no run is unfinished."""
        ...

    def begin(self, begun: UnfinishedRun) -> None:
        """Start a run, or continue the unfinished run."""
        ...

    def wipe(self) -> None:
        """Remove all unfinished work."""
        ...

    def staged_path(self, index: int) -> Path:
        """Return the path in `folder` to which this run writes its shard `index`, counted from 0."""
        ...

    def keep(self, path: Path, size: int, sha256: str) -> None:
        """Make a finished shard survive a crash.

        Args:
            path: File of the shard, from `staged_path`.
            size: Size of the shard in bytes.
            sha256: sha256 of the shard in hexadecimal.
        """
        ...

    def opened(self, shard: StoredShard) -> AbstractContextManager[int]:
        """Open a shard of the complete set or of the unfinished run; raise OSError or DataError if it is missing."""
        ...

    def commit(self, shards: Mapping[str, Path]) -> None:
        """Publish the new set.

        `folder` must already contain the other files under their final names: manifest, statistics, tokenizer, report,
        dataset.json and, if a codec has encoded the set, latents.json.

        Args:
            shards: Current path of each shard, in `out` or `folder`, by the shard's final name.
        """
        ...


class Workspace:
    """An output folder on this machine; the files of an unfinished run are in a hidden folder in it."""

    max_waiting: int | None = None

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out / schema.UNFINISHED_FILE
        self.unfinished = str(self.folder)
        self.journal = Journal(self.folder / JOURNAL_FILE)
        self._first_index: int | None = None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Create the output folder, and lock it against other runs until the end of the `with` block."""
        make_folder(self.out)
        with locked(self.out):
            yield

    def recover(self) -> None:
        """Finish a commit that an earlier run left unfinished; raise UsageFault for files that no omniges run wrote."""
        self.refuse_foreign()  # needs the lock, because another run might be renaming files
        self.finish_commit()

    def require_space(self, needed_bytes: int) -> None:
        """Raise EnvironmentFault if the disk is clearly too small for the new shards."""
        free = shutil.disk_usage(self.out).free
        if free < 0.8 * needed_bytes:  # the estimate is too high if inputs are compressed
            raise EnvironmentFault(
                f"{self.out}: expected {needed_bytes / 1e9:.1f} GB of free space, found {free / 1e9:.1f} GB; free "
                "some space or choose another --output-dir (existing shards are kept until the new ones are "
                "complete)"
            )

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of each file in the folder, by name."""
        with os_errors(self.out, "list"):
            return {path.name: path.stat().st_size for path in self.out.iterdir() if path.is_file()}

    def staged_path(self, index: int) -> Path:
        """Return the path to which this run writes its shard `index`, counted from 0.

        The number in the file name is `index` plus the number of the first free shard name (`free_index`). So shards of
        an earlier unfinished run are not overwritten.
        """
        if self._first_index is None:
            self._first_index = self.free_index()
        return self.folder / staged_name(self._first_index + index)

    def keep(self, path: Path, size: int, sha256: str) -> None:
        """Do nothing; the file is already on disk."""

    def opened(self, shard: StoredShard) -> AbstractContextManager[int]:
        """Open the file of a shard; raise OSError if that fails."""
        return open_local(shard)

    def problem(self) -> str | None:
        """Describe the first file in the workspace that no omniges run wrote; return None if all files are known.

        The workspace determines which files are renamed and removed, but its origin is unknown. So every entry of the
        workspace must be a regular file with a name that a run uses. This method changes nothing.
        """
        try:
            if not stat.S_ISDIR(os.lstat(self.folder).st_mode):
                return (
                    f"{self.folder}: expected a folder of an unfinished run, found something else; move it away, "
                    "then run the same command again"
                )
        except FileNotFoundError:
            return None
        for name in self._names():
            path = self.folder / name
            plain, status = final_name(name) or name, os.lstat(path)
            # Only the journal is changed in place. If it had a second hard link, another file would change too.
            linked = name == JOURNAL_FILE and status.st_nlink > 1
            if not (plain in _WORK_FILES or _is_source(plain)) or not stat.S_ISREG(status.st_mode) or linked:
                return f"{self.folder / ascii(name)[1:-1]}: {FOREIGN}"
        try:
            begun = self.begun()
            if begun is None or begun.tool == tool_versions():  # other versions do not reuse the journal
                self.journal.load()
            self.steps(COMMIT_FILE)
            self.steps(PLACE_FILE)
        except UsageFault as fault:
            return str(fault)
        return None

    def refuse_foreign(self) -> None:
        """Raise UsageFault for files that no omniges run wrote, but that a run would replace or remove; change nothing.

        Each invalid file in the workspace is refused. If the output folder has no workspace and no dataset.json, a file
        in it that has a name of the shard contract, such as ``train-000000.tar``, is refused too.
        """
        with os_errors(self.folder, "read"):
            problem = self.problem()
        if problem:
            raise UsageFault(problem)
        if (self.out / schema.DATASET_FILE).exists() or self.folder.is_dir() or not self.out.is_dir():
            return
        ours = sorted(path.name for path in self.out.iterdir() if is_own_name(path.name))
        if ours:
            raise UsageFault(
                f"{self.out}: expected no file called {ours[0]}, found a file that is not from an omniges run; "
                "choose another --output-dir"
            )

    def steps(self, name: str) -> CommitSteps | None:
        """Return the steps in commit.json or place.json; None if the file is absent.

        UsageFault is raised if the file is not from an omniges run: its fields or the names in it are invalid.
        """
        path = self.folder / name
        document = _read_fields(path, {"moved": dict, "removed": list, "place": dict})
        steps = None if document is None else CommitSteps(**document)
        if steps is not None and not steps.is_valid():
            raise UsageFault(f"{path}: {FOREIGN}")
        return steps

    def _names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def begin(self, begun: UnfinishedRun) -> None:
        """Create the workspace or continue in it; remove incomplete files of an earlier run."""
        make_folder(self.folder)
        with os_errors(self.folder):
            for name in self._names():
                if final_name(name):
                    (self.folder / name).unlink()
        publish_bytes(self.folder / BEGUN_FILE, canonical_json(asdict(begun)))
        with os_errors(self.out):
            sync_folder(self.out)

    def begun(self) -> UnfinishedRun | None:
        """Return the settings and versions of the unfinished run; None if no run is unfinished."""
        document = _read_fields(self.folder / BEGUN_FILE, {"settings": dict, "tool": dict, "anew": bool})
        return None if document is None else UnfinishedRun(**document)

    def free_index(self) -> int:
        """Return the highest number of a finished shard in the workspace, plus 1; 0 if the workspace has no shards."""
        taken = [int(name[7:13]) for name in self._names() if name.startswith("staged-")]
        return max(taken, default=-1) + 1

    def wipe(self) -> None:
        """Remove the workspace with all its files."""
        if not self.folder.is_dir():
            return
        with os_errors(self.folder):
            for name in self._names():
                (self.folder / name).unlink()
            self.folder.rmdir()
            sync_folder(self.out)

    def commit(self, shards: Mapping[str, Path]) -> None:
        """Publish the new set in the output folder; see `OutputPlace.commit`."""
        out = self.out
        place = {name: name for name in (*schema.SIDE_FILES, schema.LATENTS_FILE, schema.DATASET_FILE)}
        moved: dict[str, str] = {}
        stay = set()
        for name, path in shards.items():
            if path == out / name:
                stay.add(name)
            elif path.parent == out:
                moved[path.name] = aside_name(path.name)
                place[moved[path.name]] = name
            else:
                place[path.name] = name
        with os_errors(out):
            ours = {path.name for path in out.iterdir() if is_own_name(final_name(path.name) or path.name)}
        steps = CommitSteps(moved, sorted(ours - moved.keys() - stay), place)
        publish_bytes(self.folder / COMMIT_FILE, canonical_json(asdict(steps)))
        self.finish_commit()

    def finish_commit(self) -> None:
        """Carry out the remaining steps of a commit that has begun; do nothing if no commit has begun.

        UsageFault is raised if commit.json or place.json is not from an omniges run.
        """
        out, folder = self.out, self.folder
        begun = self.steps(COMMIT_FILE)
        if begun is not None:
            _require_dataset(folder, folder)  # checked before the earlier set is changed
            with os_errors(out):
                (out / schema.DATASET_FILE).unlink(missing_ok=True)
                sync_folder(out)
                for name in begun.removed:
                    (out / name).unlink(missing_ok=True)
            for name, aside in begun.moved.items():
                _rename(out / name, folder / aside)
            _sync(out, folder)
            _rename(folder / COMMIT_FILE, folder / PLACE_FILE)
            _sync(folder)
        steps = self.steps(PLACE_FILE)
        if steps is None:
            return
        last = {schema.DATASET_FILE: schema.DATASET_FILE}
        for places in (steps.place, last):
            for source, name in places.items():
                if places is last or name != schema.DATASET_FILE:
                    _rename(folder / source, out / name)
            _sync(out, folder)
        _require_dataset(out, folder)
        self.wipe()


class Journal:
    """The journal of a `Workspace`: a file of JSON lines. A digest before each line shows whether it is complete."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: FileIO | None = None
        self._lock = threading.Lock()  # two threads append: one finished shards, the other rejections

    def load(self) -> list[dict[str, Any]]:
        """Return the lines before the first incomplete line, oldest first.

        UsageFault is raised if a complete line has invalid content, because no omniges run writes such a line.
        """
        data = _content(self._path)
        rows: list[dict[str, Any]] = []
        for number, text in enumerate(_complete_lines(data or b"")[0], 1):
            try:
                rows.append(parse_json(text))
                problem = journal_problem(rows[-1])
            except ValueError as error:
                problem = str(error)
            if problem:
                reason = ascii(problem)[1:-1][:160]
                raise UsageFault(f"{self._path}: {FOREIGN} (line {number}: {reason})")
        return rows

    def open(self) -> None:
        """Open the file for appending; remove an incomplete line at its end."""
        with os_errors(self._path):
            self._stream = self._path.open("ab", buffering=0)
            self._stream.truncate(_complete_lines(self._path.read_bytes())[1])

    def append(self, row: dict[str, Any], *, durable: bool) -> None:
        """Add a line.

        Args:
            row: The line as a JSON object.
            durable: Sync the file to disk, so that this line and all lines before it survive a power loss.
        """
        if self._stream is None:
            raise RuntimeError("the journal is not open")
        text = canonical_json(row)
        with self._lock, os_errors(self._path):
            line = memoryview(sha256_hex(text)[:_CHECK_CHARACTERS].encode() + b" " + text + b"\n")
            while line:
                line = line[self._stream.write(line) :]
            if durable:
                os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _complete_lines(data: bytes) -> tuple[list[bytes], int]:
    """Return the journal's lines before the first incomplete line, and the byte offset at which they end."""
    texts, end = [], 0
    for line in data.split(b"\n")[:-1]:
        check, _, text = line.partition(b" ")
        if check.decode("ascii", "replace") != sha256_hex(text)[:_CHECK_CHARACTERS]:
            break
        texts.append(text)
        end += len(line) + 1
    return texts, end


def journal_problem(row: Any) -> str:
    """Describe why a journal line is invalid; return "" for a valid line.

    A valid line describes a finished shard or a rejected recording. If the line describes a shard with an invalid
    manifest row, ValueError is raised instead.
    """
    if not isinstance(row, dict):
        return "no JSON object"
    if row.keys() >= {"rejected", "findings", "inputs"}:
        inputs = row["inputs"]
        valid = isinstance(inputs, dict) and all(value is None or is_sha256(value) for value in inputs.values())
        valid = valid and isinstance(row["rejected"], str) and are_findings(row["findings"])
        return "" if valid else "findings or inputs of a rejected recording are invalid"
    if not row.keys() >= {"staged", "bytes", "sha256", "rows"} or not isinstance(row["rows"], list):
        return "neither a shard nor a rejected recording"
    staged, shard = row["staged"], row.get("shard", "train-000000.tar")
    if not isinstance(staged, str) or not _STAGED.fullmatch(staged):
        return f"staged {staged!r}"
    if not schema.is_shard_name(shard):
        return f"shard {shard!r}"
    if not schema.is_count(row["bytes"]) or not is_sha256(row["sha256"]):
        return f"bytes {row['bytes']!r}, sha256 {row['sha256']!r}"
    for fields in row["rows"]:
        row_from_journal(fields)
    notes = row.get("notes", {})
    if not isinstance(notes, dict) or not all(map(are_findings, notes.values())):
        return "notes that are not findings"
    return ""


def are_findings(rows: Any) -> bool:
    """Return whether a value from JSON is a list of findings with known codes."""
    if not isinstance(rows, list):
        return False
    fields = {"severity", "code", "stem", "file", "found", "expected", "meaning", "remedy"}
    return all(
        isinstance(row, dict)
        and row.keys() == fields
        and all(isinstance(value, str) or (value is None and name in {"stem", "file"}) for name, value in row.items())
        and row["code"] in CODES
        for row in rows
    )


def _require_dataset(place: Path, folder: Path) -> None:
    if not (place / schema.DATASET_FILE).is_file():
        raise DataError(
            f"{folder}: expected {schema.DATASET_FILE}, found that it was removed, so the shards cannot be "
            "completed; choose another --output-dir"
        )


def _rename(source: Path, target: Path) -> None:
    """Rename a file; do nothing if the source is absent, because an earlier attempt has renamed it."""
    with os_errors(target), contextlib.suppress(FileNotFoundError):
        source.rename(target)


def _sync(*folders: Path) -> None:
    for folder in folders:
        with os_errors(folder):
            sync_folder(folder)
