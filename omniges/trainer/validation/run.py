"""One validation: losses, samples, scores, pictures, shared by all ranks; docs/validation.md is the promise.

Nothing here touches what is learned: the model is a second one whose weights are the averages, and no generator is
drawn from. Windows go through the model in groups that do not depend on the number of ranks, so neither do figures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from omniges.evaluation.motion import TrainSplit, learn_train_split
from omniges.evaluation.statistics import Figure, Heading, absent
from omniges.features.text_slots import SlotCodec
from omniges.model.flow import FlowModel
from omniges.model.sampling import SamplingSettings
from omniges.model.streams import StreamName
from omniges.model.tasks import TASKS
from omniges.trainer.distributed import Ranks, Turns
from omniges.trainer.validation.best import metric_name
from omniges.trainer.validation.decoders import Decoders
from omniges.trainer.validation.held_out import HeldOut, WindowFolder, some_recordings, spread
from omniges.trainer.validation.losses import SIX, grid_losses, loss_table, streams_of
from omniges.trainer.validation.pictures import window_picture
from omniges.trainer.validation.samples import (
    INSTRUMENTS,
    Files,
    Held,
    Made,
    MadeBy,
    make_result,
    pack,
    sample_windows,
    score_task,
    unpack,
    with_waveform,
)

__all__ = ["Found", "Validated", "Validation", "ValidationSettings"]

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Validated:
    """What is validated: a model, and what it takes to read for it and to make use of what it gives."""

    model: FlowModel  # whose weights are the averages
    codec: SlotCodec
    speakers: Sequence[str]  # the first has number 1
    decoders: Decoders


@dataclass(frozen=True, slots=True)
class Found:
    """What a validation found, the same on all ranks but for the kept results, which are on the first."""

    by: MadeBy
    losses: Mapping[str, Mapping[str, Any]]  # task: loss, levels
    figures: Mapping[str, Sequence[Figure]]  # of each task
    remarks: Mapping[str, Sequence[str]]  # what `evaluate` says of each task's results
    kept: Sequence[Made]
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

    def __init__(
        self,
        held_out: HeldOut,
        model: Validated,
        settings: ValidationSettings,
        ranks: Ranks,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.held_out, self.settings, self.decoders = held_out, settings, model.decoders
        self._model, self._codec, self._autocast, self._ranks = model.model, model.codec, autocast, ranks
        self._speakers = {name: number for number, name in enumerate(model.speakers, 1)}
        self._samples: WindowFolder | None = None
        self._held: list[Held] = []
        self._train: TrainSplit | None = None
        count = len(held_out.windows)
        self.kept = sorted(spread(count)[: settings.samples])
        """Numbers of the windows whose results are kept."""

    def run(self, by: MadeBy, turns: Turns) -> Found:
        """Validate the averages as they are; every rank calls it. Raises what `Turns.shared` does."""
        samples = turns.everyone(self._read)
        losses = loss_table(self._losses(turns), [window.name for window in self.held_out.windows])
        results = self._results(turns, samples)
        figures, remarks = self._scores(turns, samples, results, by)
        kept = self._kept(turns, [one for one in results if one.number in self.kept])
        pictures = self._pictures(turns, samples, kept, by.step)
        return Found(by, losses, figures, remarks, kept, pictures)

    def recorded_words(self, number: int) -> Sequence[Mapping[str, Any]]:
        """Words of a window, once it was read."""
        if self._samples is None:
            raise RuntimeError("the windows have not been read")
        return self._samples.sample(self._samples.row(self.held_out.windows[number].name)).words

    def _read(self) -> WindowFolder:
        """The windows, from the shards the first time."""
        if self._samples is None:
            entries = self.decoders.entries
            samples, slots = self.held_out.read(self._codec, entries.values())
            for number, (window, row) in enumerate(zip(self.held_out.windows, samples.rows, strict=True)):
                sample = samples.sample(row)
                arrays: dict[StreamName, Any] = {
                    "gesture": sample.gesture.gesture,
                    "audio": sample.mel,
                    "text": slots[number],
                }
                arrays |= {name: sample.latents[entry.name] for name, entry in entries.items()}
                speaker = self._speakers.get(window.row.speaker or "", 0)
                self._held.append(Held(number, window, arrays, speaker))
            self._samples = samples
        return self._samples

    def _groups(self, tasks: Sequence[str] = SIX) -> list[tuple[list[Held], str]]:
        """What goes through the model together."""
        starts = range(0, len(self._held), _GROUP)
        return [(self._held[start : start + _GROUP], task) for start in starts for task in tasks]

    def _losses(self, turns: Turns) -> F64:
        """Losses (W, 6, levels) of all windows."""
        device = next(self._model.parameters()).device

        def of(group: tuple[list[Held], str]) -> list[tuple[int, int, list[float]]]:
            held, task = group
            arrays: dict[StreamName, torch.Tensor] = {
                name: torch.from_numpy(np.stack([one.arrays[name] for one in held])).to(device)
                for name in streams_of(self._model, task)
            }
            numbers, speakers = [one.number for one in held], [one.speaker for one in held]
            with self._autocast():
                losses = grid_losses(self._model, arrays, numbers, speakers, task).tolist()
            return [(number, SIX.index(task), row) for number, row in zip(numbers, losses, strict=True)]

        own = [entry for entries in turns.shared(self._groups(), of) for entry in entries]
        entries = [entry for data in self._ranks.collected(json.dumps(own).encode()) for entry in json.loads(data)]
        ordered = [row for _, _, row in sorted(entries, key=lambda entry: entry[:2])]
        return np.array(ordered).reshape(len(self._held), len(SIX), -1)

    def _results(self, turns: Turns, samples: WindowFolder) -> list[Made]:
        """What the model makes of every window in every task, in the order of tasks and windows."""
        reasons = {task: self.decoders.why_not(task) for task in SIX}

        def of(group: tuple[list[Held], str]) -> list[Made]:
            held, task = group
            with self._autocast():
                sampled = sample_windows(self._model, task, held, self.settings.sampling)
            # Not in the precision of training: a codec decodes as it does for `omniges generate`.
            return [
                make_result(task, one, made, samples, self._codec, self.decoders)
                for one, made in zip(held, sampled, strict=True)
            ]

        groups = self._groups([task for task, why in reasons.items() if why is None])
        own = [made for group in turns.shared(groups, of) for made in group]
        results = [made for data in self._ranks.collected(pack(own)) for made in unpack(data)]
        nothing = [Made(task, one.number, Files(), why) for task, why in reasons.items() if why for one in self._held]
        return _in_order([*results, *nothing])

    def _scores(
        self, turns: Turns, samples: WindowFolder, results: Sequence[Made], by: MadeBy
    ) -> tuple[dict[str, list[Figure]], dict[str, list[str]]]:
        """Figures and remarks of every task."""

        def of(task: str) -> tuple[str, tuple[list[dict[str, Any]], list[str]]]:
            if (why := self.decoders.why_not(task)) is not None:
                (target,) = TASKS[task].targets
                return task, ([asdict(absent(Heading(f"{target} metrics", ""), why))], [])
            own = [one for one in results if one.task == task]
            scored = score_task(own, self.held_out.windows, samples, by, self._learned)
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

    def _kept(self, turns: Turns, results: Sequence[Made]) -> list[Made]:
        """The results that are kept, with waveforms."""
        own = turns.shared(results, with_waveform)
        return _in_order([made for data in self._ranks.collected(pack(own)) for made in unpack(data)])

    def _pictures(self, turns: Turns, samples: WindowFolder, kept: Sequence[Made], step: int) -> dict[int, bytes]:
        """A picture of each kept window: what was recorded, and what each task made of it."""

        def of(number: int) -> Made:
            window = self.held_out.windows[number]
            png = window_picture(window, samples, [one for one in kept if one.number == number], step)
            return Made.of_picture(number, png)

        own = turns.shared(self.kept, of)
        drawn = [made for data in self._ranks.collected(pack(own)) for made in unpack(data)]
        return {made.number: made.files.contents[".png"] for made in sorted(drawn, key=lambda made: made.number)}


def _in_order(results: Sequence[Made]) -> list[Made]:
    return sorted(results, key=lambda made: (SIX.index(made.task), made.number))
