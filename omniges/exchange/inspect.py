"""`omniges inspect`: recognize what a path is, and return its facts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from omniges.errors import UsageFault
from omniges.exchange import inspect_files as files
from omniges.exchange.facts import Inspected
from omniges.exchange.inspect_shards import inspect_sample, inspect_shards
from omniges.exchange.tracks import is_record, motion_files, records
from omniges.shards.schema import DATASET_FILE, MANIFEST_FILE

ACCEPTED: Final = (
    "a folder of shards, of a run, of a checkpoint, of results or of motion files, or a file .npz, .wav, .TextGrid, or "
    "the .json of a result"
)
_CHECKPOINT_FILE, _LOG_FILE, _CHECKPOINTS = "checkpoint.json", "log.jsonl", "checkpoints"  # their modules load torch


def inspect(path: Path, key: str | None = None, motion_rate_hz: float | None = None) -> Inspected:
    """Return the facts of a path.

    Args:
        path: A folder or file, see `ACCEPTED`.
        key: Sample of a folder of shards, by key or stem.
        motion_rate_hz: Frames per second of motion files that do not state them.

    Returns:
        Its facts.

    Raises:
        UsageFault: The path is of another kind, or a key is given for a path that is not a folder of shards.
        DataError: It is damaged.
    """
    if path.is_dir():
        if _has(path, DATASET_FILE, MANIFEST_FILE) or any(path.glob("*.tar")):
            return inspect_shards(path) if key is None else inspect_sample(path, key)
        inspector = _of_folder(path, motion_rate_hz)
    else:
        inspector = _of_file(path, motion_rate_hz)
    if key is not None:
        raise UsageFault(f"KEY {key}: expected only with a folder of shards, found {path}: remove it")
    return inspector(path)


def _has(folder: Path, *names: str) -> bool:
    return any((folder / name).exists() for name in names)


def _of_folder(path: Path, motion_rate_hz: float | None) -> Callable[[Path], Inspected]:
    if _has(path, _CHECKPOINT_FILE):
        from omniges.exchange.inspect_models import inspect_checkpoint  # noqa: PLC0415 - loads torch

        return inspect_checkpoint
    if _has(path, _LOG_FILE, _CHECKPOINTS):
        from omniges.exchange.inspect_models import inspect_run  # noqa: PLC0415 - loads torch

        return inspect_run
    if records(path):
        return files.inspect_results
    if motion_files(path):
        return partial(files.inspect_motion_folder, motion_rate_hz=motion_rate_hz)
    raise UsageFault(f"{path}: expected {ACCEPTED}; found a folder with none of them")


def _of_file(path: Path, motion_rate_hz: float | None) -> Callable[[Path], Inspected]:
    if not path.exists():
        raise UsageFault(f"{path}: expected {ACCEPTED}; found nothing there: check the path")
    kind = path.suffix.lower()
    known: dict[str, Callable[[Path], Inspected]] = {
        ".npz": partial(files.inspect_motion, motion_rate_hz=motion_rate_hz),
        ".wav": files.inspect_audio,
        ".textgrid": files.inspect_words,
    }
    if kind == ".json" and is_record(path):
        return partial(files.inspect_result, motion_rate_hz=motion_rate_hz)
    if kind in known:
        return known[kind]
    raise UsageFault(f"{path}: expected {ACCEPTED}; found another file")
