"""The best step so far by a named metric, and ``RUN/best``, the link to its checkpoint."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from omniges.errors import UsageFault
from omniges.metrics.registry import BUILT_IN, METRICS, Direction, registered_metric
from omniges.model.checkpoint import CHECKPOINTS, Contents, prune, save_checkpoint
from omniges.model.tasks import SIX, TASKS
from omniges.storage.atomic import is_temporary_name, os_errors, sync_folder

BEST: Final = "best"
"""The link's name in a run's folder."""

_LOSSES: Final[dict[str, Direction]] = dict.fromkeys(("loss", *(f"{task}/loss" for task in SIX)), "lower")
_KNOWN: Final = _LOSSES | {
    f"{task}/{measure.name}": measure.better
    for task in SIX
    for measure in BUILT_IN
    if measure.better is not None and measure.stream in TASKS[task].targets
}
"""What a checkpoint can be chosen by, but for metrics of other packages."""


@dataclass(frozen=True, slots=True)
class Best:
    """The best step so far."""

    step: int
    metric: str
    value: float


def check_metric(name: str) -> None:
    """Raise UsageFault for a name by which no checkpoint can be chosen."""
    if _direction(name) is None:
        task = name.partition("/")[0]
        near = [known for known in _KNOWN if known.startswith(f"{task}/")] or ["loss", *(f"{t}/loss" for t in SIX)]
        raise UsageFault(f"--best-metric {name!r}: one of {', '.join(near)} expected")


def better(name: str, value: float, than: Best | None) -> bool:
    """Return whether a value is better than the best so far; on a tie the earlier step stays."""
    if than is None or than.metric != name:
        return True
    return value > than.value if _direction(name) == "higher" else value < than.value


def _direction(name: str) -> Direction | None:
    """Return which values of a metric are better; None for a name by which no checkpoint can be chosen."""
    task, _, metric = name.partition("/")
    if name in _KNOWN or task not in SIX or metric not in METRICS.names():
        return _KNOWN.get(name)
    found = registered_metric(metric)
    return found.better if found.stream in TASKS[task].targets else None


def point_best(run: Path, checkpoint: Path) -> Path:
    """Let RUN/best lead to a checkpoint of the run; at every moment it leads to this one or to the one before."""
    link = run / BEST
    target = Path(os.path.relpath(checkpoint, run))
    if link.is_symlink() and link.readlink() == target:
        return link
    with os_errors(link):
        beside = link.with_name(f".{BEST}.tmp-{os.getpid()}")
        beside.unlink(missing_ok=True)
        beside.symlink_to(target)
        beside.rename(link)
        sync_folder(run)
    return link


def save_and_prune(run: Path, contents: Contents, limit: int, best: Best | None) -> tuple[Path, list[Path]]:
    """Save a checkpoint of a run and remove those beyond the limit, but for the best; returns it and them.

    Killed at any moment, RUN/best leads to a whole checkpoint: the new best is whole before the link moves to it, and
    the link has moved before the old one may go.
    """
    folder = run / CHECKPOINTS
    path = save_checkpoint(folder, contents)
    if best is not None and best.step == contents.step:
        point_best(run, path)
    return path, prune(folder, limit, () if best is None else (best.step,))


def remove_best(run: Path) -> None:
    """Take RUN/best away, and what killed runs left of its making; only for who holds the run's lock."""
    with os_errors(run / BEST, "remove"):
        for path in run.iterdir():
            if path.is_symlink() and (path.name == BEST or is_temporary_name(path.name)):
                path.unlink()
