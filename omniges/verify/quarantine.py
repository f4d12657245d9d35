"""Moves damaged files of a shard folder aside, so that the next preprocess makes just those again."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path

from omniges.errors import EnvironmentFault
from omniges.shards.schema import LATENTS_FILE, SHARD_NAME, SIDE_FILES
from omniges.storage.atomic import locked, make_folder, os_errors, refuse_links, sync_folder


def quarantine_folder(folder: Path) -> Path:
    """Where damaged files of a shard folder go: a folder beside it, ``shards.quarantine`` for ``shards``."""
    whole = folder.absolute()
    return whole.with_name(whole.name + ".quarantine")


def quarantine(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Move files of the contract aside; returns where each went.

    Names that no run of ours gives stay, and so does dataset.json, without which nothing could be taken over. A file
    that is not there any more is passed over, and none is ever replaced: a second of its name gets a number.
    Raises EnvironmentFault where another process writes to the folder or the quarantine is on another disk.
    """
    aside = quarantine_folder(folder)
    refuse_links(aside.parent, (aside.name,))
    moved: dict[str, Path] = {}
    with locked(folder):
        for name in sorted(set(names)):
            source = folder / name
            ours = SHARD_NAME.fullmatch(name) or name in {*SIDE_FILES, LATENTS_FILE}
            if not ours or not (source.is_symlink() or source.is_file()):
                continue
            make_folder(aside)
            candidates = (aside / (f"{name}.{number}" if number else name) for number in range(1 << 20))
            target = next(path for path in candidates if not path.exists() and not path.is_symlink())
            with os_errors(target):
                _rename(source, target)
            moved[name] = target
        if moved:
            with os_errors(folder):
                sync_folder(aside)
                sync_folder(folder)
    return moved


def _rename(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        raise EnvironmentFault(
            f"cannot move {source} to {target.parent}: it is on another disk. Move the file by hand, anywhere else"
        ) from error
