"""A model of power loss: a file system that keeps only synced data, and the order in which writers must work.

`Disk` takes in calls (`calls.Call`) and tells what may be there after a power loss:

* bytes written to a file and not followed by a sync of that file may be there, be gone, be there in part, or be
  zeros, each write on its own; the same goes for changes of a file's length;
* a name created, renamed or removed and not followed by a sync of its folder may be as it was or as it became, each
  change on its own and in no order;
* a rename is atomic, as every journaling file system of Linux has it: never both names gone. It is durable when both
  folders were synced (ext4, xfs and btrfs are content with either; who syncs both is right on all of them).

`order_faults` states the order as a rule over a recording: write, sync, rename, sync of the folder.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from crash_calls import Call

from omniges.shards.schema import DATASET_FILE
from omniges.storage.atomic import is_temporary_name

Tree = dict[str, bytes | None]  # path relative to the watched folder -> content, None for a folder

JOURNAL: Final = "journal.jsonl"
_COMMIT: Final = "commit.json"


class PowerLoss(Protocol):
    """Decides what survives of the changes that were not synced."""

    def name_survives(self, place: int, total: int) -> bool:
        """Return whether a change of a name survives, the `place`-th of `total` that are open."""

    def bytes_of(self, data: bytes) -> bytes | None:
        """Return the bytes of a write that are on the disk; None for nothing."""

    def length_survives(self) -> bool:
        """Return whether a change of a file's length survives."""


class RandomPowerLoss:
    """Draws at random; of each state, some draws keep all names, none, or those before a moment (as a journal does)."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._share = rng.choice((0.0, 0.2, 0.5, 0.8, 1.0))
        self._bytes = rng.choice((0.0, 0.5, 1.0))
        self._in_order = rng.random() < 0.3

    def name_survives(self, place: int, total: int) -> bool:
        """Return whether it survives, by the share of this draw or up to it."""
        return place < self._share * total if self._in_order else self._rng.random() < self._share

    def bytes_of(self, data: bytes) -> bytes | None:
        """All, nothing, a part, or zeros."""
        if self._rng.random() < self._bytes:
            return data
        way = self._rng.randrange(3)
        return None if way == 0 else bytes(len(data)) if way == 1 else data[: self._rng.randrange(len(data) + 1)]

    def length_survives(self) -> bool:
        """Return whether it survives, by the same rule as bytes."""
        return self._rng.random() < self._bytes


class _Everything:
    """Nothing is lost: what a killed process leaves."""

    def name_survives(self, place: int, total: int) -> bool:
        del place, total
        return True

    def bytes_of(self, data: bytes) -> bytes | None:
        return data

    def length_survives(self) -> bool:
        return True


@dataclass(slots=True)
class _Change:
    """A write (at an offset) or, without data, a new length."""

    offset: int
    data: bytes | None
    durable: bool = False


@dataclass(slots=True)
class _Naming:
    """Names that come to mean something else at once; `waits` are the folders that have to be synced."""

    names: tuple[tuple[int, str, int | None], ...]  # folder, name, what it means now
    waits: set[int]


@dataclass(slots=True)
class Disk:
    """Files and folders by number; the number of the watched folder is 0."""

    contents: dict[int, list[_Change]] = field(default_factory=dict)  # files
    live: dict[int, dict[str, int]] = field(default_factory=lambda: {0: {}})  # folders, as the process sees them
    first: dict[int, dict[str, int]] = field(default_factory=lambda: {0: {}})  # folders, as they were in the beginning
    namings: list[_Naming] = field(default_factory=list)
    numbers: dict[int, int] = field(default_factory=dict)  # of the calls' files

    @classmethod
    def holding(cls, tree: Tree) -> Disk:
        """A disk with a tree that has been there for long."""
        disk = cls()
        for path in sorted(tree):
            data = tree[path]
            folder, name = disk._place(path)
            number = disk._new_folder() if data is None else disk._new_file(data)
            disk.live[folder][name] = number
        disk.first = {folder: dict(names) for folder, names in disk.live.items()}
        return disk

    def _next(self) -> int:
        return 1 + max([*self.contents, *self.live])

    def _new_folder(self) -> int:
        number = self._next()
        self.live[number] = {}
        return number

    def _new_file(self, data: bytes | None) -> int:
        number = self._next()
        self.contents[number] = [] if data is None else [_Change(0, data, durable=True)]
        return number

    def _folder(self, path: str) -> int:
        number = 0
        for part in Path(path).parts:
            number = self.live[number][part]
        return number

    def _place(self, path: str) -> tuple[int, str]:
        return self._folder(str(Path(path).parent)), Path(path).name

    def apply(self, call: Call) -> None:
        """Take in a call."""
        if call.kind in ("create", "truncate", "write", "sync"):
            self._apply_to_file(call)
        elif call.kind == "sync-folder":
            number = self._folder(call.path)
            for naming in self.namings:
                naming.waits.discard(number)
        elif call.kind == "rename":
            old, new = self._place(call.path), self._place(call.target)
            self._name([(*old, None), (*new, self.live[old[0]][old[1]])])
        elif call.kind == "mkdir":
            self._name([(*self._place(call.path), self._new_folder())])
        else:
            self._name([(*self._place(call.path), None)])

    def _name(self, names: Sequence[tuple[int, str, int | None]]) -> None:
        for folder, name, number in names:
            if number is None:
                del self.live[folder][name]
            else:
                self.live[folder][name] = number
        self.namings.append(_Naming(tuple(names), {folder for folder, _, _ in names}))

    def _apply_to_file(self, call: Call) -> None:
        if call.kind == "create":
            self.numbers[call.file] = self._new_file(None)
            self._name([(*self._place(call.path), self.numbers[call.file])])
            return
        if call.file not in self.numbers:
            folder, name = self._place(call.path)
            self.numbers[call.file] = self.live[folder][name]
        changes = self.contents[self.numbers[call.file]]
        if call.kind == "sync":
            for change in changes:
                change.durable = True
        else:
            changes.append(_Change(call.offset, bytes(call.data) if call.kind == "write" else None))

    def survivors(self, loss: PowerLoss) -> Tree:
        """The tree after a power loss at this moment."""
        folders = {number: dict(self.first.get(number, {})) for number in self.live}
        pending = [naming for naming in self.namings if naming.waits]
        places = {id(naming): place for place, naming in enumerate(pending)}
        for naming in self.namings:
            if naming.waits and not loss.name_survives(places[id(naming)], len(pending)):
                continue
            for folder, name, number in naming.names:
                if number is None:
                    folders[folder].pop(name, None)
                else:
                    folders[folder][name] = number
        contents = {number: _surviving(changes, loss) for number, changes in self.contents.items()}
        tree: Tree = {}
        waiting = [("", 0)]
        while waiting:
            path, folder = waiting.pop()
            for name, number in folders[folder].items():
                tree[path + name] = contents.get(number)
                if number in folders:
                    waiting.append((f"{path}{name}/", number))
        return tree

    def tree(self) -> Tree:
        """The tree as the process sees it."""
        return self.survivors(_Everything())


def _surviving(changes: Iterable[_Change], loss: PowerLoss) -> bytes:
    data = bytearray()
    for change in changes:
        if change.data is None:
            if change.durable or loss.length_survives():
                del data[change.offset :]
                data.extend(bytes(change.offset - len(data)))
            continue
        piece = change.data if change.durable else loss.bytes_of(change.data)
        if piece is not None:
            data.extend(bytes(max(0, change.offset - len(data))))
            data[change.offset : change.offset + len(piece)] = piece
    return bytes(data)


def replay(tree: Tree, calls: Iterable[Call]) -> Disk:
    """The disk after a recording that began with `tree`."""
    disk = Disk.holding(tree)
    for call in calls:
        disk.apply(call)
    return disk


def read_tree(folder: Path) -> Tree:
    """All files and folders below a folder."""
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in paths}


def write_tree(tree: Tree, folder: Path) -> None:
    """Make a folder that holds the tree."""
    folder.mkdir(parents=True)
    for path in sorted(tree):
        data = tree[path]
        if data is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(data)


# --- the order that a writer owes


@dataclass(slots=True)
class _Debt:
    """A rename or removal whose folders have not been synced yet."""

    call: Call
    waits: set[str]


def order_faults(calls: Sequence[Call]) -> list[str]:
    """Return the places where a recording breaks the order: write → sync → rename → sync of the folder.

    A renamed file has been synced since its last write and is not written again. Each rename of a finished file is
    followed by a sync of its folder before the next file is published, the journal names it, dataset.json comes or
    goes, the commit takes its next step or anything but a temporary file is removed; and all before the end.
    """
    faults: list[str] = []
    dirty: set[int] = set()
    published: set[int] = set()
    debts: list[_Debt] = []
    for number, call in enumerate(calls):
        what = f"call {number}: {call.kind} {call.path}" + (f" to {call.target}" if call.target else "")
        if call.kind in ("create", "write", "truncate"):
            dirty.add(call.file)
            if call.file in published:
                faults.append(f"{what}: the file has had its final name already")
        elif call.kind == "sync":
            dirty.discard(call.file)
        elif call.kind == "sync-folder":
            for debt in debts:
                debt.waits.discard(call.path)
            debts = [debt for debt in debts if debt.waits]
        elif call.kind == "rename" and call.file in dirty:
            faults.append(f"{what}: its bytes are not synced")
        faults += [f"{what}: {debt.call.path} has changed and {wait} is not synced"
                   for debt in debts if _builds_on(call, debt) for wait in sorted(debt.waits)]  # fmt: skip
        if call.kind == "rmdir":
            # What happened inside a folder that is itself gone needs no sync of its own.
            for debt in debts:
                debt.waits.discard(call.path)
            debts = [debt for debt in debts if debt.waits and debt.call.path != call.path]
        if call.kind == "rename":
            published.add(call.file)
            debts.append(_Debt(call, {_folder_of(call.path), _folder_of(call.target)}))
        elif call.kind in ("mkdir", "rmdir") or (call.kind == "unlink" and not _is_temporary(call.path)):
            debts.append(_Debt(call, {_folder_of(call.path)}))
    faults += [
        f"at the end: {debt.call.kind} {debt.call.path}: {wait} was never synced"
        for debt in debts
        for wait in sorted(debt.waits)
    ]
    return faults


def _folder_of(path: str) -> str:
    return os.path.dirname(path) or "."


def _is_temporary(path: str) -> bool:
    return is_temporary_name(os.path.basename(path))


def _builds_on(call: Call, debt: _Debt) -> bool:
    """Return whether a call is wrong while an earlier change may still be lost."""
    if debt.call.kind == "mkdir":
        return False  # lost with all that is in it, which is as good as never begun
    publishes = call.kind == "rename" and _is_temporary(call.path)
    steps = call.kind == "rename" and os.path.basename(call.path) == _COMMIT
    # A line of the journal that names the file; one about a rejection may come at any time, from another thread.
    journals = call.kind == "write" and os.path.basename(call.path) == JOURNAL
    journals = journals and os.path.basename(debt.call.target or debt.call.path).encode() in bytes(call.data)
    completes = os.path.basename(call.target or call.path) == DATASET_FILE and call.kind in ("rename", "unlink")
    if publishes or steps or journals or completes:
        return True
    after_dataset = os.path.basename(debt.call.path) == DATASET_FILE and call.kind in ("rename", "unlink")
    removes = call.kind in ("unlink", "rmdir") and not _is_temporary(call.path)
    return after_dataset or (removes and debt.call.kind == "rename")
