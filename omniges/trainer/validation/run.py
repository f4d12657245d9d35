"""One validation: losses, samples, scores and pictures; all ranks share the work. See docs/how-to/validation.md.

Validation does not affect training: it uses a model with the EMA weights, and no random generator of training. The
model processes windows in fixed groups. Therefore, the results do not depend on the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from omniges.conditions.base import window_value
from omniges.errors import DataError
from omniges.evaluation.motion import TrainSplit, learn_train_split
from omniges.evaluation.scores import Figure, Heading, absent
from omniges.features.gesture import stream_channels
from omniges.generation.inputs import recording_of_sample
from omniges.generation.long_form import condition_tensors
from omniges.generation.sampler import Codecs, Sampler
from omniges.metrics.registry import metric_name, registered_metrics
from omniges.model.draws import FlowSettings, Plan
from omniges.model.flow import FlowModel, Windows
from omniges.model.streams import STREAMS, StreamName
from omniges.model.tasks import SIX, TASKS, SamplingSettings
from omniges.shards.manifest import ManifestRow
from omniges.shards.present import present_bits
from omniges.trainer.distributed import Ranks, SharedWork
from omniges.trainer.validation.held_out import HeldOut, SomeRecordings, WindowFolder, spread
from omniges.trainer.validation.samples import (
    METRIC_TOOLS,
    VALIDATION_SEED,
    GeneratedWindow,
    HeldOutWindow,
    ResultFiles,
    WindowResults,
    make_result,
    pack,
    sample_windows,
    score_task,
    unpack,
)

F64 = npt.NDArray[np.float64]

LACKING: Final = -math.inf
"""Value in an array of losses if the window lacks a stream of the task."""
LEVELS: Final = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
"""Noise levels σ at which losses are computed."""
_GROUP: Final = 4
"""Number of windows in one batch of the model; it does not depend on the number of ranks."""
_TRAIN_RECORDINGS: Final = 32
"""Number of train recordings for mean joint speeds, and for the Fréchet distance of the recorded windows."""


def why_not(codecs: Codecs, task: str) -> str | None:
    """Return the reason why a task cannot be sampled, with the remedy; None if the task can be sampled.

    Args:
        codecs: Codecs of the run.
        task: Name of the task.

    Returns:
        The reason, or None.
    """
    stream = codecs.missing(TASKS[task])
    if stream is None:
        return None
    codec = codecs.entries[stream].name
    return f"{stream} is stored as latents of {codec}; give --validation-codec {codec}=FOLDER"


def streams_of(model: FlowModel, task: str) -> list[StreamName]:
    """Return the streams whose arrays the loss of a task needs, including streams that the model gets as noise.

    Args:
        model: The model.
        task: Name of the task.

    Returns:
        The streams.
    """
    targets = TASKS[task].targets
    needed = {*TASKS[task].conditions, *targets, *model.carried(targets)}
    return [name for name in STREAMS if name in needed]


def grid_losses(
    model: FlowModel,
    arrays: Mapping[StreamName, torch.Tensor],
    numbers: Sequence[int],
    speakers: Sequence[int],
    task: str,
    present: Sequence[int] | None = None,
    conditions: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = MappingProxyType({}),
) -> F64:
    """Return unweighted losses of one task on K windows at all noise levels `LEVELS`.

    Args:
        model: Model in evaluation mode, on the device of the arrays.
        arrays: Arrays (K, …) in the units of shards, for each stream that `streams_of` returns.
        numbers: Indices of the windows among all held-out windows; they select the noise.
        speakers: Speaker index of each window; 0: unknown.
        task: One of `SIX`.
        present: Bit mask of `STREAM_PARTS` for each window; it must include the task's streams. None: all parts.
        conditions: Values (K, …) of each condition stream, and a mask (K,) of the windows that have a value.

    Returns:
        Losses (K, levels).
    """
    count, levels = len(numbers), len(LEVELS)
    device = next(iter(arrays.values())).device
    positions = torch.tensor([number * levels + k for number in numbers for k in range(levels)], device=device)
    windows = Windows(
        arrays={name: array.repeat_interleave(levels, dim=0) for name, array in arrays.items()},
        positions=positions,
        speakers=torch.tensor(speakers, device=device).repeat_interleave(levels),
        present=None if present is None else model.known_parts(np.repeat(np.array(present, np.uint8), levels)),
        conditions={
            name: (values.repeat_interleave(levels, dim=0), known.repeat_interleave(levels))
            for name, (values, known) in conditions.items()
        },
    )
    plan = _plan(task, count)
    # The loss weights in FlowSettings affect only `total`, which is not used.
    with torch.no_grad():
        each = model(windows, plan, FlowSettings(), VALIDATION_SEED).each
    (target,) = TASKS[task].targets
    found: F64 = each[:, STREAMS.index(target)].double().cpu().numpy().reshape(count, levels)
    return found


def _plan(task: str, count: int) -> Plan:
    """Return a plan that contains every window at every noise level, with clean conditions and known speakers."""
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


def loss_table(losses: F64, names: Sequence[str], tasks: Sequence[str] = SIX) -> dict[str, dict[str, Any]]:
    """Return losses averaged over windows, by task and noise level; tasks without windows are left out.

    Args:
        losses: Losses (W, tasks, levels); `LACKING` where a window lacks a stream of the task.
        names: Names of the W windows.
        tasks: Names of the tasks.

    Returns:
        For each task, ``loss``, the mean over noise levels, and ``levels``, the loss at each noise level.

    Raises:
        DataError: A loss is NaN or infinite; the error names the window.
    """
    allowed = losses[:, :, 0] != LACKING
    bad = np.argwhere(~np.isfinite(losses) & allowed[:, :, None])
    if len(bad):
        window, task, level = (int(number) for number in bad[0])
        raise DataError(
            f"validation: expected finite losses of the EMA weights, found NaN or infinity for {tasks[task]} at "
            f"noise level {LEVELS[level]:g} on {names[window]}; resume from an earlier checkpoint with a lower "
            "--learning-rate"
        )
    table: dict[str, dict[str, Any]] = {}
    for k, task_name in enumerate(tasks):
        own = losses[allowed[:, k], k]
        if not len(own):
            continue
        by_level = [math.fsum(own[:, level]) / len(own) for level in range(len(LEVELS))]
        levels = {f"{level:g}": value for level, value in zip(LEVELS, by_level, strict=True)}
        table[task_name] = {"loss": math.fsum(by_level) / len(by_level), "levels": levels}
    return table


@dataclass(frozen=True, slots=True)
class ValidationResult:
    """Results of a validation, equal on all ranks."""

    step: int
    losses: Mapping[str, Mapping[str, Any]]  # result of `loss_table`, by task
    figures: Mapping[str, Sequence[Figure]]  # metric values by task
    warnings: Mapping[str, Sequence[str]]  # warnings by task
    saved: Sequence[ResultFiles]
    pictures: Mapping[int, bytes]  # PNG by index of the window

    @property
    def loss(self) -> float:
        """Mean of the tasks' losses."""
        return float(np.mean([table["loss"] for table in self.losses.values()]))

    def metrics(self, row: str = "generated") -> dict[str, dict[str, float]]:
        """Return the metric values of a row (``generated``, ``recorded`` or ``shuffled``), by task and metric."""
        return {
            task: {metric_name(one.metric): one.value for one in figures if one.row == row and one.value is not None}
            for task, figures in self.figures.items()
        }

    def not_computed(self) -> dict[str, dict[str, str]]:
        """Return, by task and metric, the reason why a metric of the generated results was not computed."""
        return {
            task: {
                metric_name(one.metric): one.why_not or ""
                for one in figures
                if one.row == "generated" and one.value is None
            }
            for task, figures in self.figures.items()
        }

    def value(self, name: str) -> float | None:
        """Return the value of the metric `name`, such as ``a2g/loss``; None if it was not computed."""
        if name == "loss":
            return self.loss
        task, _, metric = name.partition("/")
        if metric == "loss":
            return float(self.losses[task]["loss"]) if task in self.losses else None
        return self.metrics()[task].get(metric)


class Validation:
    """Validation of a training run: held-out windows, sampler and settings; `run` validates the current EMA weights."""

    def __init__(
        self,
        held_out: HeldOut,
        sampler: Sampler,
        sampling: SamplingSettings,
        samples: int,
        ranks: Ranks,
        tasks: Sequence[str] = SIX,
    ) -> None:
        """Store the windows and settings of the validations.

        Args:
            held_out: The held-out windows.
            sampler: Sampler whose model has the EMA weights.
            sampling: Settings of the sampler.
            samples: Number of windows whose generated files and pictures are kept.
            ranks: Ranks of the run.
            tasks: Tasks to validate: the trained tasks among `SIX`, in the order of `SIX`.
        """
        registered_metrics()  # raises before the first step if a metric cannot be loaded
        self.held_out, self.sampler, self.sampling = held_out, sampler, sampling
        self._ranks, self.tasks = ranks, tuple(tasks)
        self._samples: WindowFolder | None = None
        self._held: list[HeldOutWindow] = []
        self._train: TrainSplit | None = None
        self.saved_windows = sorted(spread(len(held_out.windows))[:samples])
        """Indices of the windows whose generated files and pictures are kept."""
        self._reasons = {task: why_not(sampler.codecs, task) for task in tasks}

    def run(self, step: int, turns: SharedWork) -> ValidationResult:
        """Validate the current EMA weights; all ranks must call this method.

        This method raises the same errors as `SharedWork.shared`.

        Args:
            step: The current step.
            turns: Object that divides the work among the ranks.

        Returns:
            The results.
        """
        results = WindowResults(turns.on_all_ranks(self._read), self.held_out.windows, self.sampler)
        losses = loss_table(self._losses(turns), [window.name for window in self.held_out.windows], self.tasks)
        generated = self._generated(turns, results)

        def score(task: str) -> tuple[str, Sequence[Figure], Sequence[str]]:
            (target,) = TASKS[task].targets
            if (why := self._reasons[task]) is not None:
                return task, [absent(Heading(f"{target} metrics", ""), why)], []
            own, lacking = [one for one in generated if one.task == task], self._lacking(task)
            if not own:
                return task, [absent(Heading(f"{target} metrics", ""), "; ".join(lacking))], lacking
            scored = score_task(own, results, self._learned)
            return task, scored.figures, [*scored.warnings, *lacking]

        scores = sorted(self._collected(turns.shared(self.tasks, score)), key=lambda score: SIX.index(score[0]))
        chosen = [one for one in generated if one.number in self.saved_windows]
        saved = self._collected(turns.shared(chosen, results.files_of))

        def draw(number: int) -> tuple[int, bytes]:
            return number, results.picture(number, [one for one in chosen if one.number == number], step)

        pictures = dict(sorted(self._collected(turns.shared(self.saved_windows, draw))))
        figures = {task: figures for task, figures, _ in scores}
        warnings = {task: warnings for task, _, warnings in scores}
        return ValidationResult(step, losses, figures, warnings, sorted(saved, key=_place), pictures)

    def _collected(self, items: Sequence[Any]) -> list[Any]:
        """Gather the items of all ranks, in rank order."""
        return [item for data in self._ranks.collected(pack(items)) for item in unpack(data)]

    def recorded_words(self, number: int) -> Sequence[Mapping[str, Any]]:
        """Return the recorded words of a window, given its index; raise RuntimeError before the first validation."""
        if self._samples is None:
            raise RuntimeError("recorded_words: expected a validation that has run, found none; call run first")
        return self._samples.sample(self._samples.row(self.held_out.windows[number].name)).words

    def conditions_shown(self, number: int) -> dict[str, Any]:
        """Return the field ``conditions`` for the JSON record of a generated window.

        The field contains the window's value of each condition stream, by name. The result is {} if the model has no
        condition streams.
        """
        held, streams = self._held[number], self.sampler.identity.conditions
        values = {
            name: None if (own := held.conditions[name]) is None else one.shown(own) for name, one in streams.items()
        }
        return {"conditions": values} if streams else {}

    def _read(self) -> WindowFolder:
        """Return the windows; the first call reads them from the shards."""
        if self._samples is None:
            entries = self.sampler.codecs.entries
            samples, tokens = self.held_out.read(self.sampler.token_codec, entries.values())
            for number, (window, row) in enumerate(zip(self.held_out.windows, samples.rows, strict=True)):
                sample = samples.sample(row)
                arrays: dict[StreamName, Any] = {
                    "gesture": stream_channels(sample.gesture, self.sampler.model.gesture_channels),
                    "audio": sample.mel,
                    "text": tokens[number],
                }
                arrays |= {name: sample.latents[entry.name] for name, entry in entries.items()}
                speaker = self.sampler.speaker_number(window.row.speaker, named=False)
                own = recording_of_sample(sample)
                conditions = {
                    name: window_value(stream, own, 0, window.ticks)
                    for name, stream in self.sampler.identity.conditions.items()
                }
                parts = self._parts_of(window.row)
                self._held.append(HeldOutWindow(number, window, arrays, speaker, conditions, parts))
            self._samples = samples
        return self._samples

    def _parts_of(self, row: ManifestRow) -> int:
        """Return a bit mask of `STREAM_PARTS`: the parts that the recording has and that occurred in training."""
        return present_bits(row.present) & self.sampler.model.trained

    def _lacking(self, task: str) -> list[str]:
        """Return a list with one warning if windows lack a stream of a task; otherwise return an empty list."""
        lost = sum(not one.allows(task) for one in self._held)
        streams = " or ".join((*TASKS[task].conditions, *TASKS[task].targets))
        return [f"{lost} of {len(self._held)} windows lack {streams}, and are left out"] if lost else []

    def _groups(self, tasks: Sequence[str]) -> list[tuple[list[HeldOutWindow], str]]:
        """Return batches for the model: each has one task, and windows that have all streams of the task."""
        starts = range(0, len(self._held), _GROUP)
        groups = [(self._held[start : start + _GROUP], task) for start in starts for task in tasks]
        allowed = [([one for one in held if one.allows(task)], task) for held, task in groups]
        return [(held, task) for held, task in allowed if held]

    def _losses(self, turns: SharedWork) -> F64:
        """Return the losses (W, tasks, levels) of all W windows, computed on all ranks."""
        model = self.sampler.model
        device = next(model.parameters()).device

        def of(group: tuple[list[HeldOutWindow], str]) -> list[tuple[int, int, list[float]]]:
            held, task = group
            arrays: dict[StreamName, torch.Tensor] = {
                name: torch.from_numpy(np.stack([one.arrays[name] for one in held])).to(device)
                for name in streams_of(model, task)
            }
            numbers, speakers = [one.number for one in held], [one.speaker for one in held]
            present = [one.present for one in held]
            names = self.sampler.identity.conditions
            conditions = condition_tensors({name: [one.conditions[name] for one in held] for name in names}, device)
            with self.sampler.autocast():
                losses = grid_losses(model, arrays, numbers, speakers, task, present, conditions).tolist()
            return [(number, self.tasks.index(task), row) for number, row in zip(numbers, losses, strict=True)]

        own = [entry for entries in turns.shared(self._groups(self.tasks), of) for entry in entries]
        found = np.full((len(self._held), len(self.tasks), len(LEVELS)), LACKING)
        for number, task_number, row in self._collected(own):
            found[number, task_number] = row
        return found

    def _generated(self, turns: SharedWork, results: WindowResults) -> list[GeneratedWindow]:
        """Generate windows for all tasks, on all ranks; return the results, sorted by task and window.

        A task uses only the windows that have all streams of the task. If a task cannot be sampled, the results of
        this task contain the reason and no content.
        """

        def of(group: tuple[list[HeldOutWindow], str]) -> list[GeneratedWindow]:
            held, task = group
            parts = sample_windows(self.sampler, task, held, self.sampling)
            return [make_result(task, one, part, results) for one, part in zip(held, parts, strict=True)]

        groups = self._groups([task for task, why in self._reasons.items() if why is None])
        generated = self._collected([generated for group in turns.shared(groups, of) for generated in group])
        generated += [
            GeneratedWindow(task, one.number, why_not=why)
            for task, why in self._reasons.items()
            for one in self._held
            if why and one.allows(task)
        ]
        return sorted(generated, key=_place)

    def _learned(self) -> TrainSplit | None:
        """Return mean joint speeds and motion features of train recordings; the first call reads the recordings.

        Return None if no train recording has a complete body and at least the length of a window.
        """
        if self._train is None:
            ticks = self.held_out.windows[0].ticks
            recordings = SomeRecordings(self.held_out.folders, ticks, _TRAIN_RECORDINGS)
            if recordings.rows:
                self._train = learn_train_split(recordings, METRIC_TOOLS, lambda _done, _total: None)
        return self._train


def _place(one: GeneratedWindow | ResultFiles) -> tuple[int, int]:
    return SIX.index(one.task), one.number
