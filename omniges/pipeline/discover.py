"""Results of the search for recordings under a root folder, and a directory walk that stays inside the root.

Each module of `omniges.pipeline.corpora` defines the folders and stems of one data set. Files outside the root are read
only if the user allows their folder.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omniges.errors import Finding, Problem, raise_fault_of_machine
from omniges.pipeline import labels
from omniges.pipeline.settings import DEFAULT_CORPUS
from omniges.shards.schema import Split

Modality = Literal["wav", "npz", "textgrid", "sem"]
"""Kind of content of a file, named after BEAT2's formats: audio, motion, words or semantic annotation."""
Bounds = tuple[str, ...]
"""The folders that may be read: the root and the folders that the user allows, with links resolved."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One input file: its path, its path relative to the root (for reports and the manifest), and its size in bytes."""

    path: str
    relative: str
    size: int


@dataclass(frozen=True, slots=True)
class Recording:
    """The files with one stem, which are converted to one sample."""

    stem: str
    key: str
    split: Split
    fields: labels.StemFields
    files: dict[Modality, SourceFile]
    notes: tuple[Finding, ...] = ()
    corpus: str = DEFAULT_CORPUS
    """Registered name of the corpus that decodes the files."""

    @property
    def size(self) -> int:
        """Size of all input files in bytes."""
        return sum(source.size for source in self.files.values())


@dataclass(frozen=True, slots=True)
class Discovery:
    """Result of the search in a root folder: recordings, rejected stems, and findings about the data set."""

    recordings: tuple[Recording, ...]
    rejected: Mapping[str, tuple[Finding, ...]]  # stem -> reasons
    findings: tuple[Finding, ...]
    split_source: str  # "split list" or "rule"
    split_lists: Mapping[str, str]  # relative path -> sha256
    data_folders: tuple[str, ...]  # data-set folders, relative to the root

    @property
    def stems(self) -> int:
        """Number of stems that the filters select, including rejected stems, such as those that lack a file."""
        return len(self.recordings) + len(self.rejected)


def inside(resolved: str, bounds: Bounds) -> bool:
    """Return whether a resolved path may be read.

    Args:
        resolved: Absolute path without links.
        bounds: Folders that may be read.

    Returns:
        True if the path is in one of these folders.
    """
    return any(resolved == base or resolved.startswith(base.rstrip("/") + "/") for base in bounds)


def walk(root: Path, base: str, bounds: Bounds, findings: list[Finding]) -> Iterator[tuple[str, str]]:
    """Yield all files below a folder, except those in hidden folders.

    A link to a folder is followed only if its target is inside the bounds.

    Args:
        root: Folder to which the yielded paths are relative.
        base: Folder to walk, relative to `root`.
        bounds: Folders that may be read.
        findings: List to which findings about unreadable folders and links out of the bounds are added.

    Yields:
        Path relative to the root, and full path.
    """
    pending, visited = [base], set()
    while pending:
        relative = pending.pop()
        folder = os.path.join(root, relative)
        resolved = os.path.realpath(folder)
        if not inside(resolved, bounds):
            problem = Problem("folder-outside-root", "a link to another folder", "a folder under the root")
            findings.append(Finding(problem, None, relative))
            continue
        if resolved in visited:
            continue  # a link to a parent folder, already visited
        visited.add(resolved)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise_fault_of_machine(error)
            findings.append(Finding(Problem("folder-unreadable", str(error.strerror), "a folder"), None, relative))
            continue
        for entry in entries:
            path = join(relative, entry.name)
            if entry.is_dir():
                if not entry.name.startswith("."):
                    pending.append(path)
            else:
                yield path, entry.path


def inspect(path: str, relative: str, bounds: Bounds) -> tuple[SourceFile | None, Problem | None]:
    """Return a file's path and size, or the reason why the file cannot be used.

    Args:
        path: Path of the file.
        relative: The same path, relative to the root.
        bounds: Folders that may be read.

    Returns:
        (file, None) or (None, problem).
    """
    resolved = os.path.realpath(path)
    if not inside(resolved, bounds):
        return None, Problem("path-outside-root", "a link to a file elsewhere", "a file under the root")
    try:
        status = os.stat(resolved)
    except OSError as error:
        raise_fault_of_machine(error)
        return None, Problem("file-unreadable", str(error.strerror), "a regular file")
    if not stat.S_ISREG(status.st_mode):
        return None, Problem("file-unreadable", "a device, pipe or socket", "a regular file")
    return SourceFile(resolved, relative, status.st_size), None


def join(*names: str) -> str:
    """Join the names that are not empty to a relative path."""
    return "/".join(name for name in names if name)
