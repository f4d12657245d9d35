"""Where a run keeps its work until it is done: a hidden folder in the output folder, with a journal.

Nothing appears under its final name before everything is there, so an earlier set stays whole and readable while the
next one is made. The journal says what each finished shard holds; a run that was stopped goes on from there.
"""

from __future__ import annotations

import json
import os
import re
import threading
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Final

from omniges.errors import UsageFault
from omniges.publish import final_name, make_folder, os_errors, publish_bytes, sync_folder
from omniges.shards.dataset import tool_versions
from omniges.shards.schema import (
    DATASET_FILE,
    LATENTS_FILE,
    SIDE_FILES,
    SPLITS,
    UNFINISHED_FILE,
    canonical_json,
    sha256_hex,
)

__all__ = ["OWN_NAMES", "Begun", "Journal", "Workspace", "refuse_foreign", "staged_name"]

SHARD_PATTERN: Final = rf"(?:{'|'.join(SPLITS)})-\d{{6}}\.tar"
# The files of a finished set, and of no one else in a folder that has our dataset.json or our workspace.
OWN_NAMES: Final = re.compile(rf"{SHARD_PATTERN}|" + "|".join(map(re.escape, (*SIDE_FILES, LATENTS_FILE))))
_WORK_NAMES: Final = re.compile(
    rf"begun\.json|journal\.jsonl|commit\.json|place\.json|staged-\d{{6}}\.tar|moved-{SHARD_PATTERN}|"
    + "|".join(map(re.escape, (*SIDE_FILES, LATENTS_FILE, DATASET_FILE)))
)
_CHECK_CHARACTERS: Final = 16  # of the digest before each line: enough to tell a torn line from a whole one


def staged_name(index: int) -> str:
    """The name of a finished shard inside the workspace."""
    return f"staged-{index:06d}.tar"


@dataclass(frozen=True, slots=True)
class Begun:
    """What an unfinished run was told: the settings and package versions that decide its output."""

    settings: dict[str, Any]
    tool: dict[str, str]
    anew: bool  # --force: an earlier set in the folder is no source

    @classmethod
    def of(cls, document: dict[str, Any], *, anew: bool) -> Begun:
        """The present run's, in the form that JSON gives back."""
        return cls(json.loads(canonical_json(document)), tool_versions(), anew)


class Workspace:
    """The hidden folder of a run that has begun and not ended."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = out / UNFINISHED_FILE
        self.journal = Journal(self.folder / "journal.jsonl")

    def refuse_foreign(self) -> None:
        """Raise UsageFault for anything in the way that no run of ours left."""
        if not self.folder.exists() and not self.folder.is_symlink():
            return
        if not self.folder.is_dir() or self.folder.is_symlink():
            raise UsageFault(f"{self.folder}: a folder of an unfinished run expected, found something else. Move it")
        for name in self._names():
            if not _WORK_NAMES.fullmatch(final_name(name) or name):
                raise UsageFault(f"{self.folder / name}: not from an omniges run. Move it, then run this again")

    def _names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def begin(self, begun: Begun) -> None:
        """Make the folder, or go on in it; what another run left half-written there goes."""
        make_folder(self.folder)
        with os_errors(self.folder):
            for name in self._names():
                if final_name(name):
                    (self.folder / name).unlink()
        publish_bytes(self.folder / "begun.json", canonical_json(asdict(begun)))
        with os_errors(self.out):
            sync_folder(self.out)

    def begun(self) -> Begun | None:
        """What the unfinished run was told; None where none has begun, or not got as far as to say."""
        try:
            data = (self.folder / "begun.json").read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Begun(**json.loads(data))

    def free_index(self) -> int:
        """The first number that no staged shard has."""
        taken = [int(name[7:13]) for name in self._names() if name.startswith("staged-")]
        return max(taken, default=-1) + 1

    def wipe(self) -> None:
        """Take the folder away with all that is in it."""
        if not self.folder.is_dir():
            return
        with os_errors(self.folder):
            for name in self._names():
                (self.folder / name).unlink()
            self.folder.rmdir()
            sync_folder(self.out)


def refuse_foreign(out: Path, workspace: Workspace) -> None:
    """Raise UsageFault for files that bear our names but are not ours, for those are never touched."""
    workspace.refuse_foreign()
    if (out / DATASET_FILE).exists() or workspace.folder.is_dir() or not out.is_dir():
        return
    ours = sorted(path.name for path in out.iterdir() if OWN_NAMES.fullmatch(path.name))
    if ours:
        raise UsageFault(f"{out}: {ours[0]} is there, but not from an omniges run. Choose another --out")


class Journal:
    """Lines of JSON, each after a digest of itself, so that a line torn by a crash is known for one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: FileIO | None = None
        self._lock = threading.Lock()  # finished shards and rejections come from two threads

    def load(self) -> list[dict[str, Any]]:
        """The whole lines up to the first torn one."""
        try:
            data = self._path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return []
        return self._whole_lines(data)[0]

    @staticmethod
    def _whole_lines(data: bytes) -> tuple[list[dict[str, Any]], int]:
        rows, end = [], 0
        for line in data.split(b"\n")[:-1]:
            check, _, text = line.partition(b" ")
            if check.decode("ascii", "replace") != sha256_hex(text)[:_CHECK_CHARACTERS]:
                break
            rows.append(json.loads(text))
            end += len(line) + 1
        return rows, end

    def open(self) -> None:
        """Open for appending, after cutting a torn line off."""
        with os_errors(self._path):
            self._stream = self._path.open("ab", buffering=0)
            self._stream.truncate(self._whole_lines(self._path.read_bytes())[1])

    def append(self, row: dict[str, Any], *, durable: bool) -> None:
        """Add a line; a durable one, and all before it, survives a power loss from here on."""
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
        """Close the file; nothing to do where it is not open."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
