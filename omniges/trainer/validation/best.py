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
from omniges.storage.documents import Count

BEST: Final = "best"
"""Name of the link in a run's folder."""

_LOSSES: Final[dict[str, Direction]] = dict.fromkeys(("loss", *(f"{task}/loss" for task in SIX)), "lower")
_KNOWN: Final = _LOSSES | {
    f"{task}/{measure.name}": measure.better
    for task in SIX
    for measure in BUILT_IN
    if measure.better is not None and measure.stream in TASKS[task].targets
}
"""Metrics of this package that can select a checkpoint, such as ``a2g/loss``, with their better direction."""


@dataclass(frozen=True, slots=True)
class Best:
    """The best step so far, with its metric and value."""

    step: Count
    metric: str
    value: float


def check_metric(name: str) -> None:
    """Raise UsageFault if a metric name cannot be used to select the best checkpoint."""
    if _direction(name) is None:
        task = name.partition("/")[0]
        near = [known for known in _KNOWN if known.startswith(f"{task}/")] or ["loss", *(f"{t}/loss" for t in SIX)]
        raise UsageFault(f"--best-metric {name!r}: expected one of {', '.join(near)}")


def better(name: str, value: float, than: Best | None) -> bool:
    """Return True if a value is better than the best so far; if both are equal, the earlier step remains the best.

    Args:
        name: Name of the metric.
        value: The new value.
        than: The best step so far. The result is True if `than` has the value None or another metric.

    Returns:
        True if the new value is better.
    """
    if than is None or than.metric != name:
        return True
    return value > than.value if _direction(name) == "higher" else value < than.value


def _direction(name: str) -> Direction | None:
    """Return whether higher or lower values of a metric are better; None if the metric cannot select a checkpoint."""
    task, _, metric = name.partition("/")
    if name in _KNOWN or task not in SIX or metric not in METRICS.names():
        return _KNOWN.get(name)
    found = registered_metric(metric)
    return found.better if found.stream in TASKS[task].targets else None


def point_best(run: Path, checkpoint: Path) -> Path:
    """Point the link RUN/best to a checkpoint. An existing link is replaced atomically.

    Args:
        run: Folder of the run.
        checkpoint: Folder of the checkpoint.

    Returns:
        The link.
    """
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
    """Save a checkpoint, then remove the oldest checkpoints beyond the limit, but never the best one.

    RUN/best always points to a complete checkpoint. If the new checkpoint is the best, it is complete before the link
    changes. The previous best checkpoint is removed only afterwards.

    Args:
        run: Folder of the run.
        contents: Content of the checkpoint.
        limit: Number of newest checkpoints to keep; 0 keeps all.
        best: The best step so far, or None.

    Returns:
        Folder of the new checkpoint, and folders of the removed checkpoints.
    """
    folder = run / CHECKPOINTS
    path = save_checkpoint(folder, contents)
    if best is not None and best.step == contents.step:
        point_best(run, path)
    return path, prune(folder, limit, () if best is None else (best.step,))


def remove_best(run: Path) -> None:
    """Remove RUN/best and temporary links that killed processes left; the caller must hold the run's lock."""
    with os_errors(run / BEST, "remove"):
        for path in run.iterdir():
            if path.is_symlink() and (path.name == BEST or is_temporary_name(path.name)):
                path.unlink()
