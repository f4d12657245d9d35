"""Checkpoints: a folder of safetensors and JSON, written beside, read back, and published by one rename.

``checkpoint.json`` lists every file with its size and sha256 and is written last, so a folder without a sound one is
no checkpoint, whoever copied it. docs/how-to/training.md is the promise.

`choose` says which checkpoint a run goes on from, and why not from the newer ones.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from omniges.errors import DataError, OmnigesError, UsageFault
from omniges.shards.dataset import seal, sealed_correctly
from omniges.shards.schema import is_count
from omniges.storage import atomic
from omniges.storage.canonical_json import is_sha256
from omniges.storage.files import open_file, parse_json, read_file, read_json
from omniges.storage.redact import one_line
from omniges.storage.tensors import open_tensors, read_tensors, require_same, shapes_of, write_tensors

CHECKPOINTS: Final = "checkpoints"
"""Their folder in a run's folder."""
CHECKPOINT_FILE: Final = "checkpoint.json"
MODEL_FILE: Final = "model.safetensors"
EMA_FILE: Final = "ema.safetensors"
OPTIMIZER_FILE: Final = "optimizer.safetensors"
_FORMAT: Final = "omniges-checkpoint"
_VERSION: Final = 1
_NAME: Final = re.compile(r"step-(\d+)")
_OTHER: Final = "Choose another checkpoint"


@dataclass(frozen=True, slots=True)
class Contents:
    """Content of a checkpoint by file name."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    documents: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """A checkpoint whose every byte was found as it was written."""

    path: Path
    step: int
    files: Mapping[str, Mapping[str, Any]]

    def document(self, name: str) -> Any:
        """Return what a JSON file of it holds; raises DataError where it has none of that name, or no plain JSON."""
        try:
            return parse_json(self.content(name))
        except ValueError as error:
            raise DataError(
                f"{self.path / name}: a JSON document expected, found damage ({error}). {_OTHER}"
            ) from error

    def object(self, name: str) -> dict[str, Any]:
        """Return the object that a JSON file of it holds; raises DataError as `document`, and for anything else."""
        found = self.document(name)
        if not isinstance(found, dict):
            raise DataError(f"{self.path / name}: a JSON object expected, found {type(found).__name__}. {_OTHER}")
        return found

    def content(self, name: str) -> bytes:
        """Return the bytes of a file of it; raises DataError where it has none of that name."""
        return read_file(self._file(name), int(self.files[name]["bytes"]), self.path)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of a file of it, on the host."""
        return read_tensors(self._file(name))

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the tensors of a file of it, from its header alone."""
        return shapes_of(open_tensors(self._file(name)))

    def _file(self, name: str) -> Path:
        if name not in self.files:
            raise DataError(f"{self.path}: it has no {name}. {_OTHER}")
        return self.path / name


def step_of(path: Path) -> int | None:
    """The step in a checkpoint's name, or None for another name."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def checkpoints(folder: Path) -> list[Path]:
    """Folders that have a checkpoint's name, sound or not, newest first."""
    if not folder.is_dir():
        return []
    # A link to a folder is nobody's checkpoint to remove.
    folders = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    found = [(step, path) for path in folders if (step := step_of(path)) is not None]
    return [path for _, path in sorted(found, reverse=True)]


def save_checkpoint(folder: Path, contents: Contents) -> Path:
    """Write a checkpoint into a folder of them and return its path; at any moment of it, all earlier ones are whole.

    Raises EnvironmentFault where the disk is in the way, DataError where it does not give back what was written; then
    nothing is left of it.
    """
    final = folder / f"step-{contents.step:06d}"
    write_checkpoint(final, contents)
    return final


def write_checkpoint(final: Path, contents: Contents) -> None:
    """Write a checkpoint as a folder of any name; otherwise as `save_checkpoint`."""
    atomic.make_folder(final.parent)
    with atomic.pending_folder(final) as unfinished:
        files: dict[str, dict[str, Any]] = {}
        for name, document in contents.documents.items():
            files[name] = {"bytes": len(document), "sha256": atomic.publish_bytes(unfinished / name, document)}
        for name, tensors in contents.tensors.items():
            size, digest = write_tensors(unfinished / name, tensors)
            files[name] = {"bytes": size, "sha256": digest}
        _compare(unfinished, files)
        # One part a file now; a model that is spread over ranks has one file a rank, told apart by name and "part".
        index = {"format": _FORMAT, "version": _VERSION, "step": contents.step, "parts": 1, "files": files}
        atomic.publish_bytes(unfinished / CHECKPOINT_FILE, seal(index))


def open_checkpoint(path: Path, *, bytewise: bool = True) -> SavedCheckpoint:
    """Check every byte of a checkpoint, or only its index; raises DataError with what is wrong."""
    file = path / CHECKPOINT_FILE
    try:
        index = read_json(file, _OTHER, path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path}: no {CHECKPOINT_FILE}, so it is not complete. {_OTHER}") from error
    if not isinstance(index, dict) or index.get("format") != _FORMAT:
        raise DataError(f"{file}: format {_FORMAT!r} expected. This is no checkpoint of omniges")
    if not sealed_correctly(index):
        raise DataError(f"{file}: its checksum does not fit: it was edited or damaged. {_OTHER}")
    if index.get("version") != _VERSION:
        found = one_line(repr(index.get("version")), 40)
        raise DataError(f"{file}: version {_VERSION} expected, found {found}. Use the omniges it is of")
    listed = index.get("files")
    if not isinstance(listed, dict) or not all(map(_is_entry, listed.keys(), listed.values())):
        raise DataError(f"{file}: files: size and sha256 of files in this folder expected. {_OTHER}")
    if not is_count(index.get("step")):
        raise DataError(f"{file}: step: a number of steps expected. {_OTHER}")
    if bytewise:
        _compare(path, index["files"])
    return SavedCheckpoint(path, index["step"], index["files"])


def _is_entry(name: object, entry: object) -> bool:
    sound = isinstance(entry, dict) and is_count(entry.get("bytes")) and is_sha256(entry.get("sha256"))
    return sound and atomic.is_file_name(name)


def _compare(path: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Hold files against their sizes and digests, as the disk gives them back."""
    for name, entry in files.items():
        file = path / name
        try:
            with open(open_file(file, path), "rb") as stream, atomic.os_errors(file, "read"):
                size = os.fstat(stream.fileno()).st_size
                if size != entry["bytes"]:
                    raise DataError(f"{file}: {entry['bytes']} bytes expected, found {size}. {_OTHER}")
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise DataError(f"{file}: {error.strerror}. {_OTHER}") from error
        if digest != entry["sha256"]:
            raise DataError(f"{file}: sha256 {entry['sha256']} expected, found {digest}: it was damaged. {_OTHER}")


def prune(folder: Path, keep: int, spared: Collection[int] = ()) -> list[Path]:
    """Remove all but the newest `keep` checkpoints (0: none) and those of steps that are spared."""
    removed = [path for path in checkpoints(folder)[keep:] if step_of(path) not in spared] if keep else []
    for path in removed:
        atomic.remove_folder(path)
    return removed


def remove_unfinished(folder: Path) -> None:
    """Remove what killed runs left half-written or half-removed; only for who holds the run's lock."""
    if folder.is_dir():
        for path in folder.iterdir():
            if atomic.is_temporary_name(path.name):
                with atomic.os_errors(path, "remove"):
                    atomic.remove_tree(path)


def set_aside(path: Path) -> Path:
    """Rename a checkpoint that was passed over, so that its name is free; nothing of it is removed."""
    number = 1
    while (aside := path.with_name(f"passed-{path.name}-{number}")).exists():
        number += 1
    with atomic.os_errors(path, "rename"):
        path.rename(aside)
        atomic.sync_folder(path.parent)
    return aside


@dataclass(frozen=True, slots=True)
class Choice:
    """The checkpoint that a run resumes from; None: it starts from step 0."""

    checkpoint: SavedCheckpoint | None
    passed: tuple[tuple[Path, str], ...] = ()
    """Newer checkpoints that were passed over, with the reason."""


def choose(run: Path, resume: str, fits: Callable[[SavedCheckpoint], None]) -> Choice:
    """Follow ``--resume latest|never|PATH``; ``fits`` raises where a sound checkpoint is not of this run.

    Raises UsageFault or DataError, with each reason, where there are checkpoints and none can be taken.
    """
    folder = run / CHECKPOINTS
    found = checkpoints(folder)
    if resume == "never":
        if found:
            raise UsageFault(
                f"--resume never: {folder} has {len(found)} checkpoints, the newest {found[0].name}: choose another "
                "--output-dir, or --resume latest"
            )
        return Choice(None)
    if resume != "latest":
        return _named(Path(resume), found, fits)
    passed: list[tuple[Path, str]] = []
    damaged = True
    for path in found:
        try:
            checkpoint = open_checkpoint(path)
            damaged = False
            fits(checkpoint)
        except OmnigesError as error:
            passed.append((path, str(error)))
        else:
            return Choice(checkpoint, tuple(passed))
    if passed:
        reasons = "; ".join(reason for _, reason in passed)
        kind = DataError if damaged else UsageFault
        raise kind(f"{folder}: none of {len(passed)} checkpoints can be taken; choose another --output-dir: {reasons}")
    return Choice(None)


def _named(path: Path, found: list[Path], fits: Callable[[SavedCheckpoint], None]) -> Choice:
    """The checkpoint that the user named, and no other."""
    if not path.is_dir():
        raise UsageFault(f"--resume {path}: latest, never or the folder of a checkpoint expected, found nothing there")
    others = [own for own in found if own.resolve() != path.resolve()]
    newer = [own for own in others if (step_of(own) or 0) > (step_of(path) or 0)]
    if newer:
        raise UsageFault(
            f"--resume {path}: {newer[0].parent} has a newer one, {newer[0].name}, which would be taken for this "
            "branch's: choose another --output-dir"
        )
    checkpoint = open_checkpoint(path)
    fits(checkpoint)
    return Choice(checkpoint)


def find_checkpoint(path: Path) -> SavedCheckpoint:
    """The checkpoint at a path, or the newest sound one of the run at a path; raises as `open_checkpoint` does.

    RUN/best is a link; what is found is called by the name of the step it leads to.
    """
    if path.is_symlink():
        path = path.parent / path.readlink()
    if (path / CHECKPOINTS).is_dir():
        chosen = choose(path, "latest", lambda _: None).checkpoint
        if chosen is not None:
            return chosen
    if not path.is_dir() or (path / CHECKPOINTS).is_dir():
        raise UsageFault(f"{path}: a checkpoint or the folder of a run that has one expected, found none")
    return open_checkpoint(path)


@torch.no_grad()
def load_into(own: Mapping[str, Tensor], saved: Mapping[str, Tensor], where: str) -> None:
    """Copy saved tensors into those of the same names; raises DataError for other names or shapes."""
    require_same(shapes_of(own), shapes_of(saved), where, "it is of another model: choose another checkpoint")
    for name, tensor in own.items():
        tensor.copy_(saved[name])
