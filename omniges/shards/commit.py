"""From the workspace to the output folder: a few renames that a crash at any point leaves able to be finished.

1. ``commit.json`` says what will be done. From here on the new set comes, whatever happens.
2. dataset.json goes: the folder is not complete now.
3. Shards of the earlier set that live on under another name go to the workspace; those that do not are removed.
4. ``commit.json`` becomes ``place.json``: what has a name of ours in the folder now is of the new set.
5. Everything goes to its final name, dataset.json last.

Steps 2 to 5 can be done again from wherever they stopped; within a step the order does not matter, and both folders
are synced between steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from omniges.errors import DataError
from omniges.shards.schema import DATASET_FILE, LATENTS_FILE, SIDE_FILES
from omniges.shards.workspace import COMMIT_FILE, PLACE_FILE, CommitSteps, Workspace, aside_name, is_own_name
from omniges.storage.atomic import final_name, os_errors, publish_bytes, sync_folder
from omniges.storage.canonical_json import canonical_json

__all__ = ["commit", "finish_commit"]


def commit(workspace: Workspace, shards: Mapping[str, Path]) -> None:
    """Make the new set the folder's: `shards` maps each name to the file that holds it now, in either folder.

    manifest, statistics, tokenizer, report, dataset.json and, where a codec has encoded the set, latents.json lie in
    the workspace under their own names.
    """
    out = workspace.out
    place = {name: name for name in (*SIDE_FILES, LATENTS_FILE, DATASET_FILE)}
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
    publish_bytes(workspace.folder / COMMIT_FILE, canonical_json(asdict(steps)))
    finish_commit(workspace)


def finish_commit(workspace: Workspace) -> bool:
    """Carry out what a commit in the workspace says, or the rest of it; False where none has begun.

    Raises UsageFault for steps that no run of ours writes.
    """
    out, folder = workspace.out, workspace.folder
    begun = workspace.steps(COMMIT_FILE)
    if begun is not None:
        _make_room(out, folder, begun)
    steps = workspace.steps(PLACE_FILE)
    if steps is None:
        return False
    last = {DATASET_FILE: DATASET_FILE}
    for places in (steps.place, last):
        for source, name in places.items():
            if places is last or name != DATASET_FILE:
                _rename(folder / source, out / name)
        _sync(out, folder)
    if not (out / DATASET_FILE).is_file():
        raise DataError(
            f"{folder}: {DATASET_FILE} has been taken out, so the shards cannot be completed. Choose another --out"
        )
    workspace.wipe()
    return True


def _make_room(out: Path, folder: Path, steps: CommitSteps) -> None:
    with os_errors(out):
        (out / DATASET_FILE).unlink(missing_ok=True)
        sync_folder(out)
        for name in steps.removed:
            (out / name).unlink(missing_ok=True)
    for name, aside in steps.moved.items():
        _rename(out / name, folder / aside)
    _sync(out, folder)
    _rename(folder / COMMIT_FILE, folder / PLACE_FILE)
    with os_errors(folder):
        sync_folder(folder)


def _rename(source: Path, target: Path) -> None:
    """Rename; a source that is not there was renamed before the crash."""
    with os_errors(target), contextlib.suppress(FileNotFoundError):
        source.rename(target)


def _sync(*folders: Path) -> None:
    for folder in folders:
        with os_errors(folder):
            sync_folder(folder)
