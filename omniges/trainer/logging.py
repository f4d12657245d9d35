"""Logs of a run: losses by task and stream, and one line of JSON for each event in ``log.jsonl``.

The log is always written. Trackers (TensorBoard, Weights & Biases) are optional, and receive the same numbers.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import EnvironmentFault
from omniges.model.draws import Plan
from omniges.model.streams import STREAMS, StreamName
from omniges.model.tasks import TASKS
from omniges.registry import foreign
from omniges.storage.atomic import append_line, make_folder, open_log, os_errors

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_KEEP: Final = 0.98
LOG_FILE: Final = "log.jsonl"
TRACKER_FOLDERS: Final = ("tensorboard", "wandb")
"""Names of the trackers' folders in a run's folder."""


def in_order(gathered: F64, steps: int) -> F64:
    """Arrange the losses of all ranks in the order of the training sequence.

    In a step, the windows of micro-step 0 come first. Within a micro-step, the B windows of rank 0 come first, then the
    B windows of rank 1, and so on.

    Args:
        gathered: Losses (W, steps · M, B, 3): W ranks, M micro-steps in each step, B windows in each micro-step.
        steps: Number of training steps in `gathered`.

    Returns:
        Losses (steps, G, 3) of the G = M · W · B windows of each step, for three streams.
    """
    ranks, micro_steps, batch, streams = gathered.shape
    by_micro_step = gathered.transpose(1, 0, 2, 3)
    return by_micro_step.reshape(steps, micro_steps // steps * ranks * batch, streams)


def per_step(losses: F64, weights: Mapping[StreamName, float]) -> F64:
    """Return the loss of each step: the mean over windows of the weighted sum over streams.

    Args:
        losses: Unweighted losses (steps, G, 3) of G windows in each step and three streams.
        weights: Weight of each stream.

    Returns:
        Loss of each step, (steps,).
    """
    found: F64 = _weighted(losses, weights).mean(axis=1)
    return found


def _weighted(losses: F64, weights: Mapping[StreamName, float]) -> F64:
    found: F64 = losses @ np.array([weights[name] for name in STREAMS])
    return found


def per_task(losses: F64, plan: Plan, weights: Mapping[StreamName, float]) -> dict[str, dict[str, float]]:
    """Return, for each task that occurs in a plan, the mean loss and the number of windows.

    Args:
        losses: Unweighted losses (N, 3) of the plan's N windows, for three streams.
        plan: Random draws of the N windows, which contain the task of each window.
        weights: Weight of each stream.

    Returns:
        A dictionary by task name. ``loss`` is the mean over windows of the weighted sum over streams. ``samples`` is
        the number of windows.
    """
    samples = _weighted(losses, weights)
    return {
        name: {"loss": float(samples[plan.task == number].mean()), "samples": int((plan.task == number).sum())}
        for number, name in enumerate(TASKS)
        if (plan.task == number).any()
    }


def per_stream(losses: F64, plan: Plan) -> dict[str, float]:
    """Return, for each stream, the mean loss over the windows in which the stream is a target.

    Args:
        losses: Unweighted losses (N, 3) of the plan's N windows, for three streams.
        plan: Random draws of the N windows, which contain the targets of each window.

    Returns:
        Losses by stream, without the streams that are never a target.
    """
    return {
        name: float(losses[plan.target[:, k], k].mean()) for k, name in enumerate(STREAMS) if plan.target[:, k].any()
    }


@dataclass(slots=True)
class Smoothed:
    """The loss, smoothed exponentially over about fifty steps, and the minimum of the smoothed loss so far."""

    value: float = math.nan
    lowest: float = math.inf

    def add(self, loss: float) -> float:
        """Add the loss of a step; return the ratio of the smoothed loss to its minimum."""
        self.value = loss if math.isnan(self.value) else _KEEP * self.value + (1 - _KEEP) * loss
        self.lowest = min(self.lowest, self.value)
        return self.value / self.lowest if self.lowest > 0 else 1.0

    def as_json(self) -> dict[str, Any]:
        """Return ``value`` and ``lowest`` for a checkpoint; both are None before the first loss."""
        if math.isnan(self.value):
            return {"value": None, "lowest": None}
        return {"value": self.value, "lowest": self.lowest}

    @classmethod
    def of(cls, value: float | None, lowest: float | None) -> Smoothed:
        """Create the smoothed loss from the values that `as_json` returned."""
        return cls() if value is None or lowest is None else cls(value, lowest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A row of the validation table in trackers: a window, its result, the recorded words, and a picture."""

    task: str
    recording: str
    speaker: str
    source_path: str
    start_tick: int
    ticks: int
    files: str  # folder of the generated files
    generated: str  # generated words, types of the generated files, or the reason why there is no result
    recorded: str  # words of the recording
    picture: Path


COLUMNS: Final = tuple(field.name for field in fields(Shown))
"""Columns of the validation table in trackers."""


class Logbook:
    """The log of a run: writes events to RUN/log.jsonl, and passes their numbers to trackers.

    Only the first rank writes. If a tracker fails, it is removed and the run continues, because the log contains the
    same numbers.
    """

    def __init__(
        self,
        run: Path,
        trackers: Sequence[Tracker] = (),
        *,
        active: bool = True,
        log_message: Callable[[str], None] = lambda _message: None,
    ) -> None:
        """Open the log.

        Args:
            run: Folder of the run.
            trackers: Trackers that receive the numbers of events.
            active: True on the first rank; False on the other ranks, which write nothing.
            log_message: Function that is called with a message if a tracker fails.
        """
        self.path = run / LOG_FILE
        self._trackers, self._log_message = tuple(trackers), log_message
        self._descriptor = -1
        if active:
            make_folder(run)
            self._descriptor = open_log(self.path)

    def write(self, event: str, **facts: Any) -> None:
        """Append an event to the log.

        Args:
            event: Name of the event.
            **facts: Values of the event, which JSON must be able to represent.

        Raises:
            EnvironmentFault: The disk is full or not writable.
        """
        if self._descriptor < 0:
            return
        line = json.dumps({"event": event} | facts, ensure_ascii=False, allow_nan=False) + "\n"
        with os_errors(self.path):
            append_line(self._descriptor, line.encode("utf-8", "backslashreplace"))  # file names may be invalid UTF-8

    def track(self, step: int, facts: Mapping[str, Any]) -> None:
        """Pass the numbers of an event to the trackers.

        Args:
            step: Training step of the event.
            facts: Values by name; a value may be a nested mapping. Only numbers are passed, see `flat_numbers`.
        """
        numbers = dict(flat_numbers(facts))
        self._with_trackers(lambda tracker: tracker.log(step, numbers))

    def show(self, step: int, samples: Sequence[Shown]) -> None:
        """Pass rows of the validation table to the trackers; without rows, do nothing.

        Args:
            step: Training step of the validation.
            samples: Rows of the table.
        """
        if samples:
            self._with_trackers(lambda tracker: tracker.show(step, samples))

    def _with_trackers(self, work: Callable[[Tracker], None]) -> None:
        for tracker in self._trackers:
            try:
                with foreign(f"tracker {tracker.name}", "reporting", "the run continues without it"):
                    work(tracker)
            except EnvironmentFault as fault:
                self._trackers = tuple(one for one in self._trackers if one is not tracker)
                self.write("tracker", name=tracker.name, failed=str(fault))
                self._log_message(str(fault))

    def sync(self) -> None:
        """Flush the log to disk, so that it survives a power loss."""
        if self._descriptor >= 0:
            with os_errors(self.path):
                os.fsync(self._descriptor)

    def __enter__(self) -> Logbook:
        return self

    def __exit__(self, *_: object) -> None:
        self._with_trackers(lambda tracker: tracker.close())
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def flat_numbers(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a nested mapping, and skip other values.

    Args:
        facts: Values by name; a value may be another mapping.
        prefix: Text before each name.

    Yields:
        Pairs of a name and a number. The name joins the keys of all levels by ``/``, such as ``tasks/a2g/loss``.
    """
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from flat_numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)


def open_trackers(names: Sequence[str], run: Path, config: Mapping[str, Any]) -> list[Tracker]:
    """Open trackers by name.

    Args:
        names: Names of trackers: ``tensorboard`` or ``wandb``.
        run: Folder of the run.
        config: Settings of the run, which trackers show.

    Returns:
        Open trackers in the order of `names`.

    Raises:
        EnvironmentFault: The package of a tracker is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise EnvironmentFault(
                f"--report-to {name}: expected this package, found that it is not installed; run pip install "
                f"'omniges[{name}]'"
            )
    return [_OPENERS[name](run, config) for name in names]


class _TensorBoard:
    """A tracker that writes event files to RUN/tensorboard."""

    name: Final = "tensorboard"

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        writers = importlib.import_module("torch.utils.tensorboard")
        self._writer = writers.SummaryWriter(str(run / "tensorboard"))
        self._writer.add_text("config", json.dumps(config, indent=2, ensure_ascii=False))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write one scalar for each number.

        Args:
            step: Training step to which the numbers belong.
            numbers: Values by name.
        """
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)

    def show(self, step: int, samples: Sequence[Shown]) -> None:
        """Write the validation table as text, and each picture once.

        Args:
            step: Training step of the validation.
            samples: Rows of the table; several rows may have the same picture.
        """
        lines = ["| " + " | ".join(COLUMNS) + " |", "| --- " * len(COLUMNS) + "|"]
        for one in samples:
            cells = (one.picture.name if name == "picture" else str(getattr(one, name)) for name in COLUMNS)
            lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
        self._writer.add_text("validation/samples", "\n".join(lines), step)
        image = importlib.import_module("matplotlib.image")
        for path in dict.fromkeys(one.picture for one in samples):
            self._writer.add_image(f"validation/{path.stem}", image.imread(path)[..., :3], step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Write pending events."""
        self._writer.close()


class _WeightsAndBiases:
    """A tracker that writes a wandb run to RUN/wandb. The environment variable WANDB_MODE selects online or offline."""

    name: Final = "wandb"

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        self._wandb = importlib.import_module("wandb")
        self._run = self._wandb.init(project="omniges", name=run.name, dir=str(run), config=dict(config))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log all numbers under one step.

        Args:
            step: Training step to which the numbers belong.
            numbers: Values by name.
        """
        self._run.log(dict(numbers), step=step)

    def show(self, step: int, samples: Sequence[Shown]) -> None:
        """Log the validation table, and each picture once.

        Args:
            step: Training step of the validation.
            samples: Rows of the table; several rows may have the same picture.
        """
        rows = [
            [self._wandb.Image(str(one.picture)) if name == "picture" else getattr(one, name) for name in COLUMNS]
            for one in samples
        ]
        captions = {
            one.picture: f"{one.recording}, {one.speaker}, ticks {one.start_tick} to {one.start_tick + one.ticks}"
            for one in samples
        }
        pictures = [self._wandb.Image(str(path), caption=caption) for path, caption in captions.items()]
        table = self._wandb.Table(columns=list(COLUMNS), data=rows)
        self._run.log({"validation/samples": table, "validation/pictures": pictures}, step=step)

    def close(self) -> None:
        """Finish the wandb run."""
        self._run.finish()


Tracker = _TensorBoard | _WeightsAndBiases
"""A tracker, which receives the numbers of events and the validation table."""
_OPENERS: Final[dict[str, Callable[[Path, Mapping[str, Any]], Tracker]]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
}
