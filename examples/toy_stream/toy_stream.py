"""A condition stream in a separate package: the loudness of a window, as one number.

pip install ./examples/toy_stream
omniges train --shards shards --condition-streams loudness
omniges generate --checkpoint run --task t2g --text words.TextGrid --condition loudness=1.5 -o out
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from torch import nn

from omniges.conditions.base import ConditionStream, Recording, TrainingFacts
from omniges.errors import UsageFault


class Loudness(ConditionStream):
    """Mean log-mel of a window, in standard deviations from the training set's mean."""

    name = "loudness"
    reads = ("mel",)
    shape = (1,)

    def __init__(self, mean: float, std: float) -> None:
        self.mean, self.std = mean, std

    @classmethod
    def learn(cls, facts: TrainingFacts) -> Self:
        """Create the stream with the mean and the standard deviation of the train split."""
        mel = facts.statistics["mel"]
        return cls(float(np.mean(mel["mean"])), float(np.mean(mel["std"])))

    def settings(self) -> dict[str, Any]:
        """Return the settings that a checkpoint stores: mean and standard deviation of the log-mel."""
        return {"mean": self.mean, "std": self.std}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Create the stream with settings that a checkpoint stores."""
        return cls(**settings)

    def value(self, recording: Recording, first_tick: int, ticks: int) -> npt.NDArray[Any]:
        """Return the loudness (1,) of a window, in standard deviations from the mean."""
        level = recording.mel(first_tick, ticks).mean(dtype=np.float64)
        return np.array([(level - self.mean) / self.std])

    def parse(self, value: Any) -> npt.NDArray[Any]:
        """Convert a number, or the text of a number, to a loudness (1,)."""
        try:
            return np.array([float(value)])
        except ValueError:
            raise UsageFault(f"loudness {value}: expected a number of standard deviations") from None

    def shown(self, array: npt.NDArray[Any]) -> float:
        """Return the loudness as a number, for records and messages."""
        return round(float(array[0]), 6)

    def encoder(self, width: int) -> nn.Module:
        """Return a linear layer from the loudness (B, 1) to vectors (B, width)."""
        return nn.Linear(1, width)
