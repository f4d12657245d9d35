"""Write, check, open and remove checkpoints. A checkpoint is a folder of safetensors and JSON files.

A checkpoint is written under a temporary name, read back and compared, and then renamed. Therefore a folder with the
final name is always complete. ``checkpoint.json`` lists every file with its size and sha256, and is written last.
A folder without a valid ``checkpoint.json`` is not a checkpoint. docs/how-to/training.md states the guarantees.
`choose` selects the checkpoint that a run resumes from.
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

from omniges.errors import DataError, EnvironmentFault, OmnigesError, UsageFault
from omniges.shards.dataset import seal, sealed_correctly
from omniges.shards.schema import is_count
from omniges.storage import atomic
from omniges.storage.documents import Document
from omniges.storage.files import (
    MAX_JSON_BYTES,
    MAX_SETTINGS_BYTES,
    is_sha256,
    open_file,
    parse_json,
    read_file,
    read_json,
)
from omniges.storage.redact import one_line
from omniges.storage.tensors import open_tensors, read_tensors, require_finite, require_same, shapes_of, write_tensors

CHECKPOINTS: Final = "checkpoints"
"""Name of the folder, in a run's folder, that contains the run's checkpoints."""
CHECKPOINT_FILE: Final = "checkpoint.json"
MODEL_FILE: Final = "model.safetensors"
EMA_FILE: Final = "ema.safetensors"
OPTIMIZER_FILE: Final = "optimizer.safetensors"
_FORMAT: Final = "omniges-checkpoint"
_VERSION: Final = 1
_NAME: Final = re.compile(r"step-(\d+)")
_OTHER: Final = "choose another checkpoint"
EDITED: Final = "the file was edited; choose another checkpoint"
"""Advice at the end of errors about a value that omniges never writes."""


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything that is written to a new checkpoint: step, tensors and JSON files."""

    step: int
    """Number of training steps."""
    tensors: Mapping[str, Mapping[str, Tensor]]
    """For each safetensors file: tensors by name."""
    documents: Mapping[str, bytes]
    """Bytes of each JSON file, by file name."""


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """A checkpoint on disk, as `open_checkpoint` returns it."""

    path: Path
    step: int
    files: Mapping[str, Mapping[str, Any]]
    """Size (``bytes``) and ``sha256`` of each file, by file name, from ``checkpoint.json``."""

    def document(self, name: str) -> Any:
        """Read a JSON file of the checkpoint and parse it.

        Args:
            name: Name of the file.

        Returns:
            The parsed JSON.

        Raises:
            DataError: The checkpoint has no file of this name, or the file is too large or not valid JSON.
        """
        try:
            return parse_json(self.content(name, MAX_SETTINGS_BYTES))
        except ValueError as error:
            raise DataError(
                f"{self.path / name}: expected a JSON document, found damage ({error}); {_OTHER}"
            ) from error

    def fields(self, name: str, remedy: str = EDITED) -> Document:
        """Read a JSON file of the checkpoint as a `Document`, which checks each field that is read from it.

        Args:
            name: Name of the file.
            remedy: Advice at the end of the error about an invalid field.

        Returns:
            A `Document` of the file's content.

        Raises:
            DataError: The checkpoint has no file of this name, or the file is too large, is not valid JSON, or does not
                contain a JSON object.
        """
        return Document(self.document(name), str(self.path / name), remedy)

    def content(self, name: str, max_bytes: int = MAX_JSON_BYTES) -> bytes:
        """Read the bytes of a JSON file of the checkpoint.

        Args:
            name: Name of the file.
            max_bytes: Largest accepted size of the file in bytes.

        Returns:
            All bytes.

        Raises:
            DataError: The checkpoint has no file of this name, or the file is larger than `max_bytes`.
        """
        return read_file(self._file(name), max_bytes, self.path)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Read the tensors of one file to the CPU, by name. Raise DataError if a tensor is not finite float32."""
        found = read_tensors(self._file(name))
        for each, tensor in found.items():
            require_learned(each, tensor, str(self.path / name))
        return found

    def opened(self, name: str) -> Mapping[str, Tensor]:
        """Open the tensors of one file, by name, without checks. A tensor is read when it is accessed."""
        return open_tensors(self._file(name))

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor in one file, by name. Only the header of the file is read."""
        return shapes_of(self.opened(name))

    def _file(self, name: str) -> Path:
        if name not in self.files:
            raise DataError(
                f"{self.path}: expected {name} in this folder, found that the file does not exist; {_OTHER}"
            )
        return self.path / name


def require_learned(name: str, tensor: Tensor, where: str) -> None:
    """Refuse a tensor that training cannot have written.

    Args:
        name: Name of the tensor.
        tensor: A weight, or a moment of the optimizer.
        where: Path of the file, for the error.

    Raises:
        DataError: The tensor is not float32, or contains NaN or infinite values.
    """
    if tensor.dtype != torch.float32:
        found = str(tensor.dtype).removeprefix("torch.")
        raise DataError(f"{where}: {name!a:.120}: expected float32, found {found}; {EDITED}")
    require_finite(name, tensor, where)


def step_of(path: Path) -> int | None:
    """Return the training step in a folder name such as ``step-000100``; None if the name has another form."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def checkpoints(folder: Path) -> list[Path]:
    """Return all paths in a folder that have a checkpoint's name, newest first; some may be links or files."""
    if not folder.is_dir():
        return []
    found = [(step, path) for path in folder.iterdir() if (step := step_of(path)) is not None]
    return [path for _, path in sorted(found, reverse=True)]


def save_checkpoint(folder: Path, contents: Contents) -> Path:
    """Write a checkpoint into a run's folder of checkpoints, under a name such as ``step-000100``.

    Args:
        folder: Folder of the run's checkpoints.
        contents: Step, tensors and JSON files to write.

    Returns:
        The folder of the new checkpoint.

    Raises:
        EnvironmentFault: The disk is full or not writable; the incomplete checkpoint is removed.
        DataError: The files read back differ from those written; the checkpoint is removed.
    """
    final = folder / f"step-{contents.step:06d}"
    write_checkpoint(final, contents)
    return final


def write_checkpoint(final: Path, contents: Contents) -> None:
    """Write a checkpoint into a new folder of any name; the errors are those of `save_checkpoint`.

    Args:
        final: Folder to create for the checkpoint.
        contents: Step, tensors and JSON files to write.
    """
    atomic.make_folder(final.parent)
    with atomic.pending_folder(final) as unfinished:
        files: dict[str, dict[str, Any]] = {}
        for name, document in contents.documents.items():
            files[name] = {"bytes": len(document), "sha256": atomic.publish_bytes(unfinished / name, document)}
        for name, tensors in contents.tensors.items():
            size, digest = write_tensors(unfinished / name, tensors)
            files[name] = {"bytes": size, "sha256": digest}
        _compare(unfinished, files)
        # The first rank writes complete tensors, so there is one part even if a run shards its parameters.
        index = {"format": _FORMAT, "version": _VERSION, "step": contents.step, "parts": 1, "files": files}
        atomic.publish_bytes(unfinished / CHECKPOINT_FILE, seal(index))


def open_checkpoint(path: Path, *, bytewise: bool = True) -> SavedCheckpoint:
    """Open a checkpoint after checking its index and its files.

    Args:
        path: Folder of the checkpoint.
        bytewise: True: check the size and sha256 of every file. False: check only the index ``checkpoint.json``.

    Returns:
        The checkpoint.

    Raises:
        DataError: The index or a checked file is absent or damaged.
    """
    file = path / CHECKPOINT_FILE
    try:
        index = read_json(file, _OTHER, path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(
            f"{path}: expected {CHECKPOINT_FILE}, found none, so the checkpoint is not complete; {_OTHER}"
        ) from error
    if not isinstance(index, dict) or index.get("format") != _FORMAT:
        raise DataError(f"{file}: expected format {_FORMAT!r}, found another format; give a checkpoint of omniges")
    if not sealed_correctly(index):
        raise DataError(
            f"{file}: expected content that fits its checksum, found other content, so it was edited or damaged; "
            f"{_OTHER}"
        )
    if index.get("version") != _VERSION:
        found = one_line(repr(index.get("version")), 40)
        raise DataError(f"{file}: expected version {_VERSION}, found {found}; use the omniges version that wrote it")
    listed = index.get("files")
    if not isinstance(listed, dict) or not all(map(_is_entry, listed.keys(), listed.values())):
        raise DataError(
            f"{file}: files: expected size and sha256 of files in this folder, found something else; {_OTHER}"
        )
    if not is_count(index.get("step")):
        raise DataError(f"{file}: step: expected a number of steps, found something else; {_OTHER}")
    if type(index.get("parts")) is not int or index["parts"] != 1:
        parts = one_line(repr(index.get("parts")), 40)
        raise DataError(f"{file}: parts: expected 1, found {parts}; use the omniges version that wrote it")
    if bytewise:
        _compare(path, index["files"])
    return SavedCheckpoint(path, index["step"], index["files"])


def _is_entry(name: object, entry: object) -> bool:
    valid = isinstance(entry, dict) and is_count(entry.get("bytes")) and is_sha256(entry.get("sha256"))
    return valid and atomic.is_file_name(name)


def _compare(path: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise DataError if a file is absent, or if its size or sha256 differs from the index."""
    for name, entry in files.items():
        file = path / name
        try:
            with open(open_file(file, path), "rb") as stream, atomic.os_errors(file, "read"):
                size = os.fstat(stream.fileno()).st_size
                if size != entry["bytes"]:
                    raise DataError(f"{file}: expected {entry['bytes']} bytes, found {size}; {_OTHER}")
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise DataError(f"{file}: expected this file, found that the file does not exist; {_OTHER}") from error
        if digest != entry["sha256"]:
            raise DataError(
                f"{file}: expected sha256 {entry['sha256']}, found {digest}, so the file was damaged; {_OTHER}"
            )


def prune(folder: Path, keep: int, protected: Collection[int] = ()) -> list[Path]:
    """Remove the checkpoints of a run, except the newest `keep` and the protected checkpoints.

    Args:
        folder: Folder of the run's checkpoints.
        keep: Number of newest checkpoints to keep; 0: remove no checkpoint. Links are never removed and are not
            counted, because their targets do not belong to the run.
        protected: Training steps of further checkpoints to keep.

    Returns:
        The removed folders.
    """
    own = [path for path in checkpoints(folder) if path.is_dir() and not path.is_symlink()]
    removed = [path for path in own[keep:] if step_of(path) not in protected] if keep else []
    for path in removed:
        atomic.remove_folder(path)
    return removed


def remove_unfinished(folder: Path) -> None:
    """Remove temporary files and folders that a killed run left behind in a folder.

    Args:
        folder: A folder inside the run's folder, such as its folder of checkpoints. It may be missing. The caller must
            hold the run's lock.
    """
    if folder.is_dir():
        for path in folder.iterdir():
            if atomic.is_temporary_name(path.name):
                with atomic.os_errors(path, "remove"):
                    atomic.remove_tree(path)


def set_aside(path: Path) -> Path:
    """Rename a checkpoint that `choose` skipped, so that a new checkpoint can get its name. Return the new path."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"passed-{path.name}-{number}")):
        number += 1
    with atomic.os_errors(path, "rename"):
        path.rename(aside)
        atomic.sync_folder(path.parent)
    return aside


@dataclass(frozen=True, slots=True)
class Choice:
    """Result of `choose`: the checkpoint that a run resumes from, and the newer checkpoints that were skipped."""

    checkpoint: SavedCheckpoint | None
    """None: the run starts from step 0."""
    passed: tuple[tuple[Path, str], ...] = ()
    """For each newer checkpoint that was skipped: its path and the reason."""


def choose(run: Path, resume: str, fits: Callable[[SavedCheckpoint], None]) -> Choice:
    """Select the checkpoint that a run resumes from.

    Args:
        run: Folder of the run.
        resume: Value of ``--resume-from-checkpoint``: ``latest``, ``never`` or the folder of a checkpoint.
        fits: Function that checks a valid checkpoint. It raises an error if the run cannot resume from the checkpoint.

    Returns:
        The checkpoint, and the newer checkpoints that were skipped.

    Raises:
        UsageFault: One of these: `resume` is ``never`` although there are checkpoints; the folder that `resume` names
            is missing; a checkpoint is newer than the named one; no checkpoint can be used, and `fits` raised this
            error for at least one.
        DataError: All checkpoints are damaged, or the named checkpoint is damaged.
        EnvironmentFault: No checkpoint can be used, and at least one cannot be read.
    """
    folder = run / CHECKPOINTS
    found = checkpoints(folder)
    if resume == "never":
        if found:
            raise UsageFault(
                f"--resume-from-checkpoint never: expected no checkpoints in {folder}, found {len(found)}, the "
                f"newest {found[0].name}; choose another --output-dir, or --resume-from-checkpoint latest"
            )
        return Choice(None)
    if resume != "latest":
        return _named(Path(resume), found, fits)
    passed: list[tuple[Path, OmnigesError]] = []
    for path in found:
        try:
            checkpoint = open_checkpoint(path)
            _require_own_name(checkpoint)
            fits(checkpoint)
        except OmnigesError as error:
            passed.append((path, error))
        else:
            return Choice(checkpoint, tuple((skipped, str(reason)) for skipped, reason in passed))
    if passed:
        reasons = "; ".join(str(reason) for _, reason in passed)
        found_kinds = {type(reason) for _, reason in passed}
        kind = next((one for one in (EnvironmentFault, UsageFault) if one in found_kinds), DataError)
        raise kind(
            f"{folder}: expected a checkpoint that can be used, found none among {len(passed)}; choose another "
            f"folder ({reasons})"
        )
    return Choice(None)


def _require_own_name(saved: SavedCheckpoint) -> None:
    """Raise DataError if the folder name of a checkpoint names another step, such as ``step-000200`` for step 100.

    When the resumed run reaches the step in the name, it needs the name for a new checkpoint.
    """
    named = step_of(saved.path)
    if named is not None and named != saved.step:
        raise DataError(
            f"{saved.path}: expected the checkpoint of step {named}, found that of step {saved.step}; rename it to "
            f"step-{saved.step:06d}"
        )


def _named(path: Path, found: list[Path], fits: Callable[[SavedCheckpoint], None]) -> Choice:
    """Open the checkpoint that the user named; raise UsageFault if it is missing or not the newest."""
    if not path.is_dir():
        raise UsageFault(
            f"--resume-from-checkpoint {path}: expected latest, never or the folder of a checkpoint, found "
            f"{'a file' if path.exists() else 'nothing'} there; check the path"
        )
    others = [own for own in found if own.resolve() != path.resolve()]
    newer = [own for own in others if (step_of(own) or 0) > (step_of(path) or 0)]
    if newer:
        raise UsageFault(
            f"--resume-from-checkpoint {path}: expected the newest checkpoint of {newer[0].parent}, found "
            f"{newer[0].name} to be newer, which a later --resume-from-checkpoint latest would use instead; "
            "choose another --output-dir"
        )
    checkpoint = open_checkpoint(path)
    _require_own_name(checkpoint)
    fits(checkpoint)
    return Choice(checkpoint)


def find_checkpoint(path: Path) -> SavedCheckpoint:
    """Open a checkpoint, or the newest valid checkpoint of a run.

    Args:
        path: Folder of a checkpoint or of a run, or a link to a checkpoint such as RUN/best. A link is resolved, so
            that the checkpoint has the name of its step.

    Returns:
        The checkpoint.

    Raises:
        UsageFault: The path is not a folder, or is the folder of a run without checkpoints.
        DataError: The folder is not a valid checkpoint, or all checkpoints of the run are damaged.
    """
    if path.is_symlink():
        path = path.parent / path.readlink()
    if (path / CHECKPOINTS).is_dir():
        chosen = choose(path, "latest", lambda _: None).checkpoint
        if chosen is not None:
            return chosen
    if not path.is_dir() or (path / CHECKPOINTS).is_dir():
        raise UsageFault(
            f"{path}: expected a checkpoint or the folder of a run that has one, found none; give the "
            "--output-dir of omniges train"
        )
    return open_checkpoint(path)


@torch.no_grad()
def load_into(own: Mapping[str, Tensor], saved: Mapping[str, Tensor], where: str) -> None:
    """Copy saved tensors into existing tensors of the same names, in place.

    Args:
        own: Tensors to overwrite, by name.
        saved: Tensors to copy, by name, with the same shapes.
        where: Path of the saved tensors, for the error.

    Raises:
        DataError: The names or shapes of `own` and `saved` differ.
    """
    require_same(
        shapes_of(own), shapes_of(saved), where, "the weights belong to another model; choose another checkpoint"
    )
    for name, tensor in own.items():
        tensor.copy_(saved[name])
