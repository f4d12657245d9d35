"""The log of a run: a line of JSON for each event in ``log.jsonl``, always, and trackers where they are asked for."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Protocol

from omniges.errors import EnvironmentFault
from omniges.storage.atomic import make_folder, open_for_appending, os_errors

LOG_FILE: Final = "log.jsonl"
TRACKER_FOLDERS: Final = ("tensorboard", "wandb")
"""Where trackers write in a run's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A sample as trackers show it: what it is of, what was made, and its picture."""

    task: str
    recording: str
    speaker: str
    source_path: str
    start_tick: int
    ticks: int
    files: str  # the folder they lie in
    made: str  # words, where the task makes text; else what kind of files, or why there are none
    recorded: str  # words of the recording
    picture: Path


COLUMNS: Final = tuple(field.name for field in fields(Shown))
"""Of the tables in which trackers show samples."""


class Tracker(Protocol):
    """Receives numbers by name at a step, and samples."""

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take numbers in."""

    def show(self, step: int, samples: Sequence[Shown]) -> None:
        """Take samples in."""

    def close(self) -> None:
        """Write out what is left."""


class Logbook:
    """Appends events to RUN/log.jsonl; on the first rank only, on others it does nothing."""

    def __init__(self, run: Path, trackers: Sequence[Tracker] = (), *, active: bool = True) -> None:
        self.path = run / LOG_FILE
        self._trackers = tuple(trackers)
        self._descriptor = -1
        if active:
            make_folder(run)
            self._descriptor = open_for_appending(self.path)

    def write(self, event: str, **facts: Any) -> None:
        """Append one line; raises EnvironmentFault where the disk is full."""
        if self._descriptor < 0:
            return
        line = json.dumps({"event": event} | facts, ensure_ascii=False, allow_nan=False) + "\n"
        view = memoryview(line.encode())
        with os_errors(self.path):
            while view:
                view = view[os.write(self._descriptor, view) :]

    def track(self, step: int, facts: Mapping[str, Any]) -> None:
        """Hand the numbers of an event to the trackers."""
        numbers = dict(flat_numbers(facts))
        for tracker in self._trackers:
            tracker.log(step, numbers)

    def show(self, step: int, samples: Sequence[Shown]) -> None:
        """Hand samples, where there are some, to the trackers."""
        for tracker in self._trackers if samples else ():
            tracker.show(step, samples)

    def sync(self) -> None:
        """Make what was written survive a power loss."""
        if self._descriptor >= 0:
            with os_errors(self.path):
                os.fsync(self._descriptor)

    def __enter__(self) -> Logbook:
        return self

    def __exit__(self, *_: object) -> None:
        for tracker in self._trackers:
            tracker.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def flat_numbers(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Numbers of a nested mapping with names joined by ``/``; what is no number is left out."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from flat_numbers(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)


def open_trackers(names: Sequence[str], run: Path, config: Mapping[str, Any]) -> list[Tracker]:
    """Trackers by name, all of which must be installed; raises EnvironmentFault for one that is not."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise EnvironmentFault(f"--report-to {name}: the package is not installed: pip install 'omniges[{name}]'")
    return [_OPENERS[name](run, config) for name in names]


class _TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        writers = importlib.import_module("torch.utils.tensorboard")
        self._writer = writers.SummaryWriter(str(run / "tensorboard"))
        self._writer.add_text("config", json.dumps(config, indent=2, ensure_ascii=False))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """One scalar each."""
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)

    def show(self, step: int, samples: Sequence[Shown]) -> None:
        """A table of text, and each picture once."""
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
        """Write out what is left."""
        self._writer.close()


class _WeightsAndBiases:
    """A run of wandb in RUN/wandb, whose mode (online, offline) wandb takes from WANDB_MODE."""

    def __init__(self, run: Path, config: Mapping[str, Any]) -> None:
        self._wandb = importlib.import_module("wandb")
        self._run = self._wandb.init(project="omniges", name=run.name, dir=str(run), config=dict(config))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """All under one step."""
        self._run.log(dict(numbers), step=step)

    def show(self, step: int, samples: Sequence[Shown]) -> None:
        """A table with a row a sample, and each picture once."""
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
        """Write out what is left."""
        self._run.finish()


_OPENERS: Final[dict[str, Callable[[Path, Mapping[str, Any]], Tracker]]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
}
