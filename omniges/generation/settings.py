"""Settings and summary of `omniges generate`; quick to import for `omniges --help`."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from omniges.codecs.settings import named_folder
from omniges.errors import UsageFault
from omniges.features.timebase import TICKS_PER_SECOND
from omniges.model.tasks import TASKS, SamplingSettings, Task
from omniges.options import about, check, option
from omniges.shards.schema import Split

if TYPE_CHECKING:
    from omniges.model.streams import StreamName


_MOST_REMARKS: Final = 5
Weights = Literal["ema", "last"]


def task_named(name: str) -> str:
    """Return the task of a name such as a2g, at2g (letters in any order) or unconditional.

    Args:
        name: The name.

    Returns:
        Name of the task in `TASKS`.

    Raises:
        UsageFault: There is no such task.
    """
    if name in {"unconditional", "joint"}:
        return "joint"
    sides = [sorted(side) for side in name.split("2", 1)]
    for known, task in TASKS.items():
        letters = [sorted(stream[0] for stream in side) for side in (task.conditions, task.targets)]
        if letters == sides and task.conditions:
            return known
    raise UsageFault(
        f"--task {name}: expected one of {', '.join(known for known in TASKS if known != 'joint')} or unconditional "
        "(t text, a audio, g gesture)"
    )


def require_guidable(task: Task, sampling: SamplingSettings, conditions: Collection[Any] = ()) -> None:
    """Raise UsageFault for a guidance weight if there is nothing to guide by.

    Args:
        task: The task.
        sampling: Settings of the sampler.
        conditions: Values of condition streams.

    Raises:
        UsageFault: The weight is not 1, and the task has no conditions.
    """
    if sampling.guidance != 1 and not task.conditions and not conditions:
        raise UsageFault(f"guidance {sampling.guidance:g}: this task has no inputs to weight: use 1")


def _named_value(flag: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UsageFault(f"{flag} {text}: NAME=VALUE such as emotion=happiness expected")
    return name, value


def _start(flag: str, text: str) -> tuple[float, float]:
    try:
        x, z = map(float, text.split(","))
    except ValueError:
        raise UsageFault(f"{flag} {text}: two numbers in metres such as 0.5,-1 expected") from None
    return x, z


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Sources of inputs."""

    audio: tuple[Path, ...] = option((), "Audio file as a condition; may be repeated.")
    text: tuple[str, ...] = option(
        (), "TextGrid or plain text as a condition; - is standard input; may be repeated.", metavar="PATH"
    )
    gesture: tuple[Path, ...] = option((), "SMPL-X NPZ as a condition; may be repeated.")
    shards: Path | None = option(None, "Folder of shards, for --key, --split and the speaking rate of plain text.")
    keys: tuple[str, ...] = option((), "Samples of the shards as inputs.", "--key", commas=True)
    split: Split | None = option(None, "All samples of a split as inputs.")
    seconds: float | None = option(
        None, "Longest length in seconds; the length where there is no input.", least=1 / TICKS_PER_SECOND, shown="all"
    )

    def __post_init__(self) -> None:
        """Refuse values out of range and contradictions."""
        check(self)
        if (self.keys or self.split) and self.shards is None:
            raise UsageFault("--key and --split: name samples of a shard folder: add --shards DIR")

    def files(self, stream: StreamName) -> tuple[str, ...]:
        """Return the files of a stream."""
        return tuple(map(str, getattr(self, stream)))

    @property
    def from_shards(self) -> bool:
        """True if inputs are samples of the shard folder; otherwise the folder only provides the speaking rate."""
        return bool(self.keys or self.split)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateSettings:
    """Settings of `omniges generate`."""

    checkpoint: Path = field(
        metadata=about(
            "Folder of a run, of which the newest valid checkpoint is taken, or of a checkpoint; RUN/best is the best "
            "validated one."
        )
    )
    task: str = field(metadata=about("a2g, t2g, t2a, g2a, a2t, g2t, at2g, gt2a, ga2t or unconditional."))
    out: Path = field(metadata=about("Folder for the results.", "--out", "-o"))
    sources: Sources
    codecs: tuple[tuple[str, Path], ...] = option(
        (),
        "Codec of a model that was trained on latents, and its folder; may be repeated.",
        "--codec",
        metavar="NAME=FOLDER",
        parse=named_folder,
    )
    t5_tokenizer: Path | None = option(
        None, "Folder of T5's tokenizer, of a codec of text.", shown="t5_tokenizer in the codec's folder"
    )
    continuous: bool = option(False, "Decode latents of a quantizing codec as they are, not snapped to codes first.")
    speaker: str | None = option(None, "Speaker style to generate in.", shown="the sample's, else unknown")
    conditions: tuple[tuple[str, str], ...] = option(
        (),
        "Value of a condition stream, such as emotion=happiness; none leaves the stream out; may be repeated.",
        "--condition",
        metavar="NAME=VALUE",
        parse=_named_value,
        shown="the sample's own",
    )
    body: Path | None = option(None, "NPZ whose betas, gender and start position are taken.", shown="the input's")
    start_xz: tuple[float, float] | None = option(
        None, "Start position in metres.", "--start", metavar="X,Z", shown="the input's", parse=_start
    )
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    overlap_ticks: int | None = option(
        None, "Ticks that windows share; none where text is generated as latents.", shown="a quarter of a window"
    )
    seed: int = option(0, "Seed; the same seed gives the same bytes.", least=0, most=2**32 - 1)
    num_samples: int = option(1, "Results for each input.", least=1)
    weights: Weights = option("ema", "EMA weights, or the last ones.")
    vocoder: Path | None = option(
        None, "Folder of a HiFi-GAN that turns mels into sound; needs omniges[vocoder].", shown="Griffin-Lim"
    )
    pictures: bool = option(False, "Draw a picture beside each result.", "--png")
    overwrite: bool = option(False, "Replace results of the same names.")

    def __post_init__(self) -> None:
        """Refuse values out of range, and options that the task does not use."""
        check(self)
        if self.start_xz is not None and not all(map(math.isfinite, self.start_xz)):
            raise UsageFault("--start {:g},{:g}: finite numbers in metres expected".format(*self.start_xz))
        task = TASKS[task_named(self.task)]
        of_motion = {"--body": self.body is not None, "--start": self.start_xz is not None}
        unread = [flag for flag, given in of_motion.items() if given and "gesture" not in task.targets]
        if unread:
            raise UsageFault(f"{unread[0]}: this task produces no gesture; remove it")
        if self.vocoder is not None and "audio" not in task.targets:
            raise UsageFault("--vocoder: this task produces no audio; remove it")
        require_guidable(task, self.sampling, self.conditions)


@dataclass(frozen=True, slots=True)
class GenerateSummary:
    """Summary of `generate`."""

    folder: Path
    records: tuple[Path, ...]
    generated_s: float
    elapsed_s: float
    remarks: tuple[str, ...]
    """Distinct warnings of all results, in order."""

    @property
    def lines(self) -> list[str]:
        """Lines for the terminal."""
        speed = self.generated_s / self.elapsed_s if self.elapsed_s else 0.0
        pace = f"{self.elapsed_s:.1f} s, {speed:.1f} times real time"
        results = "result" if len(self.records) == 1 else "results"
        found = [f"{len(self.records)} {results}, {self.generated_s:.1f} s, in {self.folder}: {pace}"]
        found += [f"warning: {remark}" for remark in self.remarks[:_MOST_REMARKS]]
        if len(self.remarks) > _MOST_REMARKS:
            found.append(f"and {len(self.remarks) - _MOST_REMARKS} more warnings: see the JSON beside each result")
        return found
