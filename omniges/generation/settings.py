"""Settings and summary of `omniges generate`; quick to import for `omniges --help`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from omniges.codecs.settings import codec_option, t5_tokenizer_option
from omniges.errors import UsageFault
from omniges.features.timebase import LONGEST_S, TICKS_PER_SECOND
from omniges.model.tasks import TASKS, SamplingSettings, Task
from omniges.options import ShownPart, about, check, declared, did_you_mean, motion_rate_option, option, shown
from omniges.shards.schema import Split

if TYPE_CHECKING:
    from omniges.model.streams import StreamName


_MAX_WARNINGS: Final = 5
Weights = Literal["ema", "last"]
TASK_NAMES: Final = ("a2g", "t2g", "t2a", "g2a", "a2t", "g2t", "at2g", "gt2a", "ga2t", "unconditional")
"""Names of tasks in help texts."""


def task_named(name: str) -> str:
    """Return the key in `TASKS` of a task that the user names, such as a2g, at2g or unconditional.

    The letters before the 2 may have any order.

    Args:
        name: Name that the user gives.

    Returns:
        Key in `TASKS`, such as ``ta2g`` for at2g.

    Raises:
        UsageFault: The name is unknown.
    """
    if name in {"unconditional", "joint"}:
        return "joint"
    sides = [sorted(side) for side in name.split("2", 1)]
    for known, task in TASKS.items():
        letters = [sorted(stream[0] for stream in side) for side in (task.conditions, task.targets)]
        if letters == sides and task.conditions:
            return known
    raise UsageFault(
        f"--task {name}: expected one of {', '.join(TASK_NAMES[:-1])} or {TASK_NAMES[-1]} "
        f"(a audio, t text, g gesture){did_you_mean(name, TASK_NAMES)}"
    )


def require_guidable(task: Task, sampling: SamplingSettings, conditions: Collection[Any] = ()) -> None:
    """Refuse a guidance scale other than 1 for generation without any condition.

    Args:
        task: The task.
        sampling: Settings of the sampler.
        conditions: Values of condition streams, which also count as conditions.

    Raises:
        UsageFault: The guidance scale is not 1, the task has no conditions, and `conditions` is empty.
    """
    if sampling.guidance != 1 and not task.conditions and not conditions:
        raise UsageFault(
            f"--guidance-scale {sampling.guidance:g}: expected 1, because this task has no inputs to weight, "
            "found another number; remove --guidance-scale"
        )


def _named_value(flag: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UsageFault(f"{flag} {text}: expected NAME=VALUE such as emotion=happiness")
    return name, value


def _start(flag: str, text: str) -> tuple[float, float]:
    try:
        x, z = map(float, text.split(","))
    except ValueError:
        raise UsageFault(f"{flag} {text}: expected two numbers in metres such as 0.5,-1") from None
    return x, z


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Options that give the inputs: files, samples of shards, or a length."""

    audio: tuple[Path, ...] = option((), "Audio file as a condition, such as WAV; may be repeated.", panel="Conditions")
    text: tuple[str, ...] = option(
        (), "TextGrid or plain text file as a condition; - is standard input; may be repeated.", metavar="PATH"
    )
    gesture: tuple[Path, ...] = option((), "SMPL-X NPZ file as a condition; may be repeated.")
    motion_rate_hz: float | None = motion_rate_option()
    shards: Path | None = option(
        None, "Folder of shards for --key and --split. Its speaking rate is used to time plain text."
    )
    keys: tuple[str, ...] = option((), "Samples of the shards to take as conditions, by key.", "--key", commas=True)
    split: Split | None = option(None, "Take all samples of this split of the shards as conditions.")
    seconds: float | None = option(
        None,
        "Maximum length of a result in seconds; without conditions, the exact length.",
        minimum=1 / TICKS_PER_SECOND,
        maximum=LONGEST_S,
        shown="the length of the conditions",
    )

    def __post_init__(self) -> None:
        """Refuse values out of range, and --key or --split without a folder of shards."""
        check(self)
        if (self.keys or self.split) and self.shards is None:
            raise UsageFault("--key and --split: expected the shards of the samples, found none; add --shards DIR")

    def files(self, stream: StreamName) -> tuple[str, ...]:
        """Return the paths of the files that the user gave for a stream."""
        return tuple(map(str, getattr(self, stream)))

    @property
    def from_shards(self) -> bool:
        """True if inputs are samples of the shard folder. If False, the folder only provides the speaking rate."""
        return bool(self.keys or self.split)


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateSettings:
    """Settings of `omniges generate`."""

    checkpoint: Path = field(
        metadata=about(
            "Folder of a checkpoint, such as RUN/best, or folder of a run, which means its newest valid checkpoint.",
            panel="Input and output",
        )
    )
    task: str = field(
        metadata=about(
            "Task: a2g, t2g, t2a, g2a, a2t, g2t, at2g, gt2a, ga2t or unconditional (a audio, t text, g gesture). "
            "Letters before the 2 may have any order; joint means unconditional.",
            values=lambda: TASK_NAMES,
        )
    )
    output_dir: Path = field(metadata=about("Folder for the results.", "--output-dir", "-o", was=("out",)))
    png: bool = option(False, "Draw a picture beside each result.", was=("pictures",))
    overwrite: bool = option(False, "Replace results of the same names.")
    part: ShownPart = field(default_factory=ShownPart)
    sources: Sources
    speaker: str | None = option(None, "Speaker style to generate in.", shown="the sample's, else unknown")
    conditions: tuple[tuple[str, str], ...] = option(
        (),
        "Value of a condition stream, such as emotion=happiness; NAME=none leaves stream NAME out; may be repeated.",
        "--condition",
        metavar="NAME=VALUE",
        parse=_named_value,
        shown="the sample's own",
    )
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    seed: int = option(0, "Random seed; the same seed gives the same bytes.", minimum=0, maximum=2**32 - 1)
    num_samples: int = option(1, "Results for each input.", minimum=1)
    overlap_ticks: int | None = option(
        None,
        "Ticks that neighbouring windows share; not for text that is generated as latents.",
        shown="a quarter of a window",
    )
    weights: Weights = option("ema", "Weights to use: EMA or those of the last step.", panel="Model and codecs")
    codecs: tuple[tuple[str, Path], ...] = codec_option(
        "Codec of a model that was trained on latents, and its folder; may be repeated."
    )
    t5_tokenizer: Path | None = t5_tokenizer_option()
    continuous: bool = option(False, "Decode latents of a quantizing codec without rounding them to codes first.")
    vocoder: Path | None = option(
        None, "Folder of a HiFi-GAN that turns mels into waveforms; needs omniges[vocoder].", shown="Griffin-Lim"
    )
    body: Path | None = option(
        None, "NPZ file that gives betas, gender and start position.", shown="the input's", panel="Body"
    )
    start_xz: tuple[float, float] | None = option(
        None, "Start position x, z in metres.", metavar="X,Z", shown="the input's", parse=_start, was=("start",)
    )

    def __post_init__(self) -> None:
        """Refuse values out of range, and options that the task does not use."""
        check(self)
        task = TASKS[task_named(self.task)]
        of_motion = {"--body": self.body is not None, "--start-xz": self.start_xz is not None}
        unread = [flag for flag, given in of_motion.items() if given and "gesture" not in task.targets]
        if unread:
            raise UsageFault(
                f"{unread[0]}: expected a task that produces gesture, found {self.task}; remove {unread[0]}"
            )
        if self.sources.motion_rate_hz is not None and not (self.sources.gesture or self.body):
            raise UsageFault(
                "--motion-rate: expected a motion file without a frame rate, found no motion file; remove --motion-rate"
            )
        if self.vocoder is not None and "audio" not in task.targets:
            raise UsageFault(f"--vocoder: expected a task that produces audio, found {self.task}; remove --vocoder")
        require_guidable(task, self.sampling, self.conditions)
        self._refuse_names_of_bytes()

    def _refuse_names_of_bytes(self) -> None:
        """Refuse file names that are not UTF-8, because a record cannot contain them.

        The names are checked here so that the error is raised before generation starts.
        """
        files = [(f"--{name}", file) for name in ("audio", "text", "gesture") for file in self.sources.files(name)]
        others = {"--shards": self.sources.shards, "--checkpoint": self.checkpoint, "--vocoder": self.vocoder}
        others["--body"] = self.body
        for flag, file in (*files, *others.items(), *(("--codec", folder) for _, folder in self.codecs)):
            try:
                str(file).encode()
            except UnicodeEncodeError as error:
                raise UsageFault(
                    f"{flag} {shown(file)}: expected a name in UTF-8, found other bytes; rename the file"
                ) from error


@dataclass(frozen=True, slots=True)
class GenerateSummary:
    """Summary of a run of `generate`."""

    folder: Path  # folder of the results
    records: tuple[Path, ...]  # record of each result
    generated_s: float  # total length of the results
    elapsed_s: float  # duration of the run
    warnings: tuple[str, ...]
    """Warnings of all results without duplicates, in order."""

    @property
    def lines(self) -> list[str]:
        """Summary as lines of text for the terminal."""
        speed = self.generated_s / self.elapsed_s if self.elapsed_s else 0.0
        pace = f"{self.elapsed_s:.1f} s, {speed:.1f} times real time"
        results = "result" if len(self.records) == 1 else "results"
        found = [f"{len(self.records)} {results}, {self.generated_s:.1f} s, in {self.folder}: {pace}"]
        found += [f"warning: {warning}" for warning in self.warnings[:_MAX_WARNINGS]]
        if len(self.warnings) > _MAX_WARNINGS:
            found.append(f"and {len(self.warnings) - _MAX_WARNINGS} more warnings: see the JSON beside each result")
        return found
