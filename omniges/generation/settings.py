"""What `generate` can be told, and what it says at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from omniges.errors import UsageFault
from omniges.generation.inputs import Sources
from omniges.model.sampling import SamplingSettings
from omniges.model.streams import StreamName
from omniges.model.tasks import TASKS, Task

__all__ = ["GenerateSettings", "GenerateSummary", "Weights", "require_guidable", "task_named"]

_MOST_REMARKS: Final = 5
_LETTERS: Final[Mapping[str, StreamName]] = {"t": "text", "a": "audio", "g": "gesture"}
Weights = Literal["ema", "last"]


def task_named(name: str) -> str:
    """The task of a name such as a2g, at2g (letters in any order) or unconditional; raises UsageFault for no task."""
    if name in {"unconditional", "joint"}:
        return "joint"
    given, _, made = name.partition("2")
    for known, task in TASKS.items():
        letters = [sorted(key for key, stream in _LETTERS.items() if stream in side) for side in _sides(task)]
        if letters == [sorted(given), sorted(made)] and task.conditions:
            return known
    raise UsageFault(
        f"--task {name}: expected one of {', '.join(known for known in TASKS if known != 'joint')} or unconditional "
        "(t text, a audio, g gesture)"
    )


def require_guidable(task: Task, sampling: SamplingSettings) -> None:
    """Raise UsageFault for a weight of inputs where the task has none."""
    if sampling.guidance != 1 and not task.conditions:
        raise UsageFault(f"guidance {sampling.guidance:g}: this task has no inputs to weigh: leave it away")


def _sides(task: Any) -> tuple[tuple[StreamName, ...], tuple[StreamName, ...]]:
    return task.conditions, task.targets


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateSettings:
    """All that `omniges generate` can be told."""

    checkpoint: Path
    task: str
    out: Path
    sources: Sources
    codecs: tuple[tuple[str, Path], ...] = ()  # name and folder
    t5_tokenizer: Path | None = None  # of a codec of text; None: in its folder
    continuous: bool = False  # a codec with codes decodes latents as they are
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    overlap_ticks: int | None = None  # None: a quarter of the model's window
    seed: int = 0
    num_samples: int = 1
    speaker: str | None = None  # None: that of a sample, else unknown
    body: Path | None = None  # an NPZ whose betas, gender and start are taken
    start_xz: tuple[float, float] | None = None
    weights: Weights = "ema"
    vocoder: Path | None = None  # folder of a HiFi-GAN; None: Griffin-Lim
    pictures: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be, by the name of the flag."""
        if self.num_samples < 1:
            raise UsageFault(f"--num-samples {self.num_samples}: at least 1 expected")
        if not 0 <= self.seed < 2**32:
            raise UsageFault(f"--seed {self.seed}: from 0 to {2**32 - 1} expected")
        if self.start_xz is not None and not all(map(math.isfinite, self.start_xz)):
            raise UsageFault("--start {:g},{:g}: finite numbers in metres expected".format(*self.start_xz))
        self._refuse_unread()

    def _refuse_unread(self) -> None:
        """Refuse what would change nothing of what the task makes."""
        task = TASKS[task_named(self.task)]
        of_motion = {"--body": self.body is not None, "--start": self.start_xz is not None}
        unread = [flag for flag, given in of_motion.items() if given and "gesture" not in task.targets]
        if unread:
            raise UsageFault(f"{unread[0]}: this task makes no gesture: leave it away")
        require_guidable(task, self.sampling)


@dataclass(frozen=True, slots=True)
class GenerateSummary:
    """What was made."""

    folder: Path
    records: tuple[Path, ...]
    generated_s: float
    elapsed_s: float
    remarks: tuple[str, ...]
    """Of all results, each once, in the order in which they came up."""

    @property
    def lines(self) -> list[str]:
        """For a person."""
        speed = self.generated_s / self.elapsed_s if self.elapsed_s else 0.0
        pace = f"{self.elapsed_s:.1f} s, {speed:.1f} times real time"
        results = "result" if len(self.records) == 1 else "results"
        found = [f"{len(self.records)} {results}, {self.generated_s:.1f} s, in {self.folder}: {pace}"]
        found += [f"remark: {remark}" for remark in self.remarks[:_MOST_REMARKS]]
        if len(self.remarks) > _MOST_REMARKS:
            found.append(f"and {len(self.remarks) - _MOST_REMARKS} more remarks: see the JSON beside each result")
        return found
