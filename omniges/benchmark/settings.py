"""Settings of the benchmarks. This module imports quickly, so that `omniges --help` is fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from omniges.errors import UsageFault
from omniges.options import check, declared, option
from omniges.shards.schema import Split
from omniges.trainer.config import Precision, Preset, TrainSettings

REPORTED: Final = ("window_ticks", "mixed_precision", "compile", "gradient_checkpointing")
"""Training settings that the report lists next to the speed of steps."""


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedSettings:
    """Settings of `omniges benchmark loader`."""

    shards: Path = option(Path("shards"), "Folder of shards.")
    split: Split = option("train", "Split to read.")
    window_ticks: int = option(64, "Length of a window in ticks of 0.1 s.")
    batch_size: int = option(64, "Windows per batch.")
    num_workers: tuple[int, ...] = option(
        (0, 1, 2), "Numbers of worker processes to try.", minimum=0, commas=True, was=("workers",)
    )
    seconds: float = option(5.0, "Length of each measurement in seconds.", above=0)
    repeats: int = option(3, "Measurements for each number of workers.", minimum=1)
    warm: bool = option(False, "Measure only reads from the page cache, and do not clear it.")

    def __post_init__(self) -> None:
        """Check the settings; raise UsageFault for a value that is invalid."""
        check(self)
        if not self.num_workers:
            raise UsageFault(
                "--num-workers: expected numbers separated by commas, found none; give numbers, such as 0,2,4"
            )


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class StepSpeedSettings:
    """Settings of `omniges benchmark train`."""

    shards: str = option("shards", "Folder of shards.")
    presets: tuple[Preset, ...] = option(("tiny",), "Model sizes to try.", "--preset", commas=True)
    batch_sizes: tuple[int, ...] = option(
        (32,),
        "Windows per step; several numbers are tried in turn.",
        "--batch-size",
        commas=True,
        was=("train_batch_size",),
    )
    window_ticks: int = option(64, "Length of a window in ticks of 0.1 s.")
    mixed_precision: Precision = option("no", "Precision of matrix products.")
    compile: bool = option(False, "Compile the pass through the model as one graph.")
    gradient_checkpointing: bool = option(False, "Save memory: compute activations again in the backward pass.")
    num_workers: int = option(2, "Processes that read batches.", was=("dataloader_num_workers", "workers"))
    seconds: float = option(20.0, "Minimum length of a measurement in seconds, after five steps of warm-up.", above=0)

    def __post_init__(self) -> None:
        """Check the settings; raise UsageFault for a value that is invalid."""
        check(self)
        if not self.presets or not self.batch_sizes:
            raise UsageFault(
                "benchmark train: expected at least one preset and one batch size, found none; give both, such as "
                "--preset tiny --batch-size 8"
            )

    def of(self, preset: Preset, batch_size: int) -> TrainSettings:
        """Return the training settings for one configuration of the benchmark.

        Args:
            preset: Size of the model.
            batch_size: Windows per step.

        Returns:
            Settings of a training run that computes no validation loss.

        Raises:
            UsageFault: A value is invalid for `train`.
        """
        shared = {name: getattr(self, name) for name in (*REPORTED, "num_workers")}
        return TrainSettings(shards=(self.shards,), preset=preset, batch_size=batch_size, validation_steps=0, **shared)


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Format the rows of a table as lines of text with right-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(str.rjust, line, widths)) for line in lines]
