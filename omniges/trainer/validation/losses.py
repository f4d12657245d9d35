"""Losses of the six tasks at a fixed grid of noise levels, with noise that depends on window and level alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from omniges.errors import DataError
from omniges.model.flow import FlowModel, Windows
from omniges.model.streams import STREAMS, StreamName
from omniges.model.tasks import SIX, TASKS, FlowSettings, Plan

F64 = npt.NDArray[np.float64]

LEVELS: Final = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
VALIDATION_SEED: Final = 0x56414C
"""Of noise and samples; not the run's, so that runs of other seeds can be compared."""


def streams_of(model: FlowModel, task: str) -> list[StreamName]:
    """The streams whose arrays a task's loss needs: its own, and those that the model carries as noise."""
    targets = TASKS[task].targets
    needed = {*TASKS[task].conditions, *targets, *model.carried(targets)}
    return [name for name in STREAMS if name in needed]


def grid_losses(
    model: FlowModel,
    arrays: Mapping[StreamName, torch.Tensor],
    numbers: Sequence[int],
    speakers: Sequence[int],
    task: str,
) -> F64:
    """Losses (K, levels), without weights, of one task on K windows.

    Args:
        model: in evaluation mode; the arrays are on its device.
        arrays: of the windows (K, …), as shards hold them; those that `streams_of` names.
        numbers: of the windows among all that are validated on; noise hangs on them.
        speakers: of the windows, 0: unknown.
        task: one of `SIX`.
    """
    count, levels = len(numbers), len(LEVELS)
    device = next(iter(arrays.values())).device
    positions = torch.tensor([number * levels + k for number in numbers for k in range(levels)], device=device)
    windows = Windows(
        arrays={name: array.repeat_interleave(levels, dim=0) for name, array in arrays.items()},
        positions=positions,
        speakers=torch.tensor(speakers, device=device).repeat_interleave(levels),
    )
    plan = _plan(task, count)
    # Each loss is that of a sample by itself: settings weigh streams in the total alone, which is not used.
    with torch.no_grad():
        each = model(windows, plan, FlowSettings(), VALIDATION_SEED).each
    (target,) = TASKS[task].targets
    found: F64 = each[:, STREAMS.index(target)].double().cpu().numpy().reshape(count, levels)
    return found


def _plan(task: str, count: int) -> Plan:
    """Every window at every level of the grid, conditions clean, the speaker known."""
    rows = count * len(LEVELS)
    conditions, targets = (
        np.array([name in side for name in STREAMS]) for side in (TASKS[task].conditions, TASKS[task].targets)
    )
    level = np.tile(np.array(LEVELS, np.float32), count)[:, None]
    return Plan(
        task=np.full(rows, list(TASKS).index(task)),
        target=np.tile(targets, (rows, 1)),
        present=np.tile(targets | conditions, (rows, 1)),
        levels=np.where(targets, level, np.where(conditions, 0.0, 1.0)).astype(np.float32),
        speaker_known=np.ones(rows, np.bool_),
    )


def loss_table(losses: F64, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Means over windows of losses (W, 6, levels), by task and level.

    Raises DataError with the window's name for a loss that is no number.
    """
    bad = np.argwhere(~np.isfinite(losses))
    if len(bad):
        window, task, level = (int(number) for number in bad[0])
        raise DataError(
            f"validation: the loss of {SIX[task]} at level {LEVELS[level]:g} is no number on {names[window]}: the "
            "averaged weights have gone wrong: go on from an earlier checkpoint with a lower --learning-rate"
        )
    table: dict[str, dict[str, Any]] = {}
    for k, task_name in enumerate(SIX):
        by_level = [math.fsum(losses[:, k, level]) / len(losses) for level in range(len(LEVELS))]
        levels = {f"{level:g}": value for level, value in zip(LEVELS, by_level, strict=True)}
        table[task_name] = {"loss": math.fsum(by_level) / len(by_level), "levels": levels}
    return table
