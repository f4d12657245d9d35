"""One validation: losses, samples, scores, pictures, shared by all ranks; docs/validation.md is the promise.

Nothing here touches what is learned: the model is a second one whose weights are the averages, and no generator is
drawn from. Windows go through the model in groups that do not depend on the number of ranks, so neither do figures.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from omniges.evaluation.motion import TrainSplit, learn_train_split
from omniges.evaluation.scores import Figure, Heading, absent
from omniges.generation.sampler import Sampler
from omniges.model.settings import SamplingSettings
from omniges.model.streams import StreamName
from omniges.model.tasks import SIX, TASKS
from omniges.trainer.distributed import Ranks, Turns
from omniges.trainer.validation.best import metric_name
from omniges.trainer.validation.decoders import why_not
from omniges.trainer.validation.held_out import HeldOut, WindowFolder, some_recordings, spread
from omniges.trainer.validation.losses import grid_losses, loss_table, streams_of
from omniges.trainer.validation.pictures import window_picture
from omniges.trainer.validation.samples import (
    INSTRUMENTS,
    Held,
    Kept,
    Made,
    MadeBy,
    WindowResults,
    make_result,
    pack,
    sample_windows,
    score_task,
    unpack,
)

F64 = npt.NDArray[np.float64]

_GROUP: Final = 4
"""Windows that go through the model together, on any number of ranks."""
_TRAIN_RECORDINGS: Final = 32
"""Recordings of the train split that mean speeds and the recorded row of the Fréchet distance come from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationSettings:
    """What a validation does."""

    samples: int  # windows whose results are kept as files and pictures
    sampling: SamplingSettings
    best_metric: str


@dataclass(frozen=True, slots=True)
class Found:
    """What a validation found, the same on all ranks but for the kept results, which are on the first."""

    by: MadeBy
    losses: Mapping[str, Mapping[str, Any]]  # task: loss, levels
    figures: Mapping[str, Sequence[Figure]]  # of each task
    remarks: Mapping[str, Sequence[str]]  # what `evaluate` says of each task's results
    kept: Sequence[Kept]
    pictures: Mapping[int, bytes]  # PNG by number of the window

    @property
    def loss(self) -> float:
        """Mean of the tasks' losses."""
        return float(np.mean([table["loss"] for table in self.losses.values()]))

    def metrics(self, row: str = "generated") -> dict[str, dict[str, float]]:
        """Values by task and name of metric."""
        return {
            task: {metric_name(one.metric): one.value for one in figures if one.row == row and one.value is not None}
            for task, figures in self.figures.items()
        }

    def not_computed(self) -> dict[str, dict[str, str]]:
        """Reasons by task and name of metric."""
        return {
            task: {
                metric_name(one.metric): one.why_not or ""
                for one in figures
                if one.row == "generated" and one.value is None
            }
            for task, figures in self.figures.items()
        }

    def value(self, name: str) -> float | None:
        """The value of a name that ``--best-metric`` takes; None where it was not computed."""
        if name == "loss":
            return self.loss
        task, _, metric = name.partition("/")
        if metric == "loss":
            return float(self.losses[task]["loss"])
        return self.metrics()[task].get(metric)


class Validation:
    """The validations of a run."""

    def __init__(self, held_out: HeldOut, sampler: Sampler, settings: ValidationSettings, ranks: Ranks) -> None:
        """Name the parts; the sampler's model has the averages as its weights."""
        self.held_out, self.sampler, self.settings = held_out, sampler, settings
        self._ranks = ranks
        self._samples: WindowFolder | None = None
        self._held: list[Held] = []
        self._train: TrainSplit | None = None
        count = len(held_out.windows)
        self.kept = sorted(spread(count)[: settings.samples])
        """Numbers of the windows whose results are kept."""

    def run(self, by: MadeBy, turns: Turns) -> Found:
        """Validate the averages as they are; every rank calls it. Raises what `Turns.shared` does."""
        results = WindowResults(turns.everyone(self._read), self.held_out.windows, self.sampler)
        losses = loss_table(self._losses(turns), [window.name for window in self.held_out.windows])
        made = self._made(turns, results)
        figures, remarks = self._scores(turns, results, made)
        chosen = [one for one in made if one.number in self.kept]
        own = turns.shared(chosen, results.kept)
        kept = [Kept.unpacked(*item) for item in self._collected([one.packed() for one in own])]
        pictures = self._pictures(turns, results, chosen, by.step)
        return Found(by, losses, figures, remarks, _in_order(kept), pictures)

    def _collected(
        self, items: Sequence[tuple[Mapping[str, Any], Sequence[bytes]]]
    ) -> list[tuple[dict[str, Any], list[bytes]]]:
        """What all ranks have."""
        return [item for data in self._ranks.collected(pack(items)) for item in unpack(data)]

    def recorded_words(self, number: int) -> Sequence[Mapping[str, Any]]:
        """Words of a window, once it was read."""
        if self._samples is None:
            raise RuntimeError("the windows have not been read")
        return self._samples.sample(self._samples.row(self.held_out.windows[number].name)).words

    def _read(self) -> WindowFolder:
        """The windows, from the shards the first time."""
        if self._samples is None:
            entries = self.sampler.codecs.entries
            samples, slots = self.held_out.read(self.sampler.slots, entries.values())
            for number, (window, row) in enumerate(zip(self.held_out.windows, samples.rows, strict=True)):
                sample = samples.sample(row)
                arrays: dict[StreamName, Any] = {
                    "gesture": sample.gesture.gesture,
                    "audio": sample.mel,
                    "text": slots[number],
                }
                arrays |= {name: sample.latents[entry.name] for name, entry in entries.items()}
                speaker = self.sampler.speaker_number(window.row.speaker, named=False)
                self._held.append(Held(number, window, arrays, speaker))
            self._samples = samples
        return self._samples

    def _groups(self, tasks: Sequence[str] = SIX) -> list[tuple[list[Held], str]]:
        """What goes through the model together."""
        starts = range(0, len(self._held), _GROUP)
        return [(self._held[start : start + _GROUP], task) for start in starts for task in tasks]

    def _losses(self, turns: Turns) -> F64:
        """Losses (W, 6, levels) of all windows."""
        model = self.sampler.model
        device = next(model.parameters()).device

        def of(group: tuple[list[Held], str]) -> list[tuple[int, int, list[float]]]:
            held, task = group
            arrays: dict[StreamName, torch.Tensor] = {
                name: torch.from_numpy(np.stack([one.arrays[name] for one in held])).to(device)
                for name in streams_of(model, task)
            }
            numbers, speakers = [one.number for one in held], [one.speaker for one in held]
            with self.sampler.autocast():
                losses = grid_losses(model, arrays, numbers, speakers, task).tolist()
            return [(number, SIX.index(task), row) for number, row in zip(numbers, losses, strict=True)]

        own = [entry for entries in turns.shared(self._groups(), of) for entry in entries]
        entries = [entry for data in self._ranks.collected(json.dumps(own).encode()) for entry in json.loads(data)]
        ordered = [row for _, _, row in sorted(entries, key=lambda entry: entry[:2])]
        return np.array(ordered).reshape(len(self._held), len(SIX), -1)

    def _made(self, turns: Turns, results: WindowResults) -> list[Made]:
        """What the model makes of every window in every task, in the order of tasks and windows."""
        reasons = {task: why_not(self.sampler.codecs, task) for task in SIX}

        def of(group: tuple[list[Held], str]) -> list[Made]:
            held, task = group
            parts = sample_windows(self.sampler, task, held, self.settings.sampling)
            return [make_result(task, one, part, results) for one, part in zip(held, parts, strict=True)]

        groups = self._groups([task for task, why in reasons.items() if why is None])
        own = [made.packed() for group in turns.shared(groups, of) for made in group]
        made = [Made.unpacked(*item) for item in self._collected(own)]
        made += [Made(task, one.number, why_not=why) for task, why in reasons.items() if why for one in self._held]
        return _in_order(made)

    def _scores(
        self, turns: Turns, results: WindowResults, made: Sequence[Made]
    ) -> tuple[dict[str, list[Figure]], dict[str, list[str]]]:
        """Figures and remarks of every task."""

        def of(task: str) -> tuple[str, tuple[list[dict[str, Any]], list[str]]]:
            if (why := why_not(self.sampler.codecs, task)) is not None:
                (target,) = TASKS[task].targets
                return task, ([asdict(absent(Heading(f"{target} metrics", ""), why))], [])
            scored = score_task([one for one in made if one.task == task], results, self._learned)
            return task, ([asdict(figure) for figure in scored.figures], list(scored.remarks))

        own = turns.shared(SIX, of)
        found = dict(entry for data in self._ranks.collected(json.dumps(own).encode()) for entry in json.loads(data))
        figures = {task: [Figure(**figure) for figure in found[task][0]] for task in SIX}
        return figures, {task: found[task][1] for task in SIX}

    def _learned(self) -> TrainSplit | None:
        """What the train split tells, the first time from its recordings."""
        if self._train is None:
            ticks = self.held_out.windows[0].ticks
            recordings = some_recordings(self.held_out.folders, ticks, _TRAIN_RECORDINGS)
            self._train = learn_train_split(recordings, INSTRUMENTS, lambda _done, _total: None)
        return self._train

    def _pictures(self, turns: Turns, results: WindowResults, made: Sequence[Made], step: int) -> dict[int, bytes]:
        """A picture of each kept window: what was recorded, and what each task made of it."""

        def of(number: int) -> tuple[dict[str, Any], list[bytes]]:
            own = [one for one in made if one.number == number]
            return {"number": number}, [window_picture(number, results, own, step)]

        drawn = {head["number"]: png for head, (png,) in self._collected(turns.shared(self.kept, of))}
        return dict(sorted(drawn.items()))


_Item = TypeVar("_Item", Made, Kept)


def _in_order(items: Sequence[_Item]) -> list[_Item]:
    return sorted(items, key=lambda one: (SIX.index(one.task), one.number))
