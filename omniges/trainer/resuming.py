"""Which checkpoint a run goes on from, and why not from the newer ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from omniges.errors import DataError, OmnigesError, UsageFault
from omniges.trainer.checkpoint import SavedCheckpoint, checkpoints, open_checkpoint, step_of

__all__ = ["CHECKPOINTS", "Choice", "choose", "find_checkpoint"]

CHECKPOINTS = "checkpoints"
"""Their folder in a run's folder."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a run goes on; nothing: it begins."""

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
    newer = [own for own in found if not _same(own, path) and (step_of(own) or 0) > (step_of(path) or 0)]
    if newer:
        raise UsageFault(
            f"--resume {path}: {newer[0].parent} has a newer one, {newer[0].name}, which would be taken for this "
            "branch's: choose another --output-dir"
        )
    checkpoint = open_checkpoint(path)
    fits(checkpoint)
    return Choice(checkpoint)


def _same(first: Path, second: Path) -> bool:
    return first.resolve() == second.resolve()


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
