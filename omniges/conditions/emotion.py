"""Streams whose value is a label of the metadata, one of the values in the training set; emotion is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np

from omniges.conditions.base import Array, ConditionStream, Recording, TrainingFacts
from omniges.errors import UsageFault
from omniges.storage.documents import Document, Is

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class _Values:
    """What a stream has learned: the values of its label."""

    values: Annotated[tuple[str, ...], Is("different texts", lambda found: 0 < len(set(found)) == len(found))]


class LabelStream(ConditionStream):
    """A label of a recording as a learned embedding; subclasses name the label.

    A recording whose value is not in the training set counts as having no value.
    """

    dtype = "<i8"

    def __init__(self, values: tuple[str, ...]) -> None:
        self.values = values
        self._numbers = {value: number for number, value in enumerate(values)}

    @classmethod
    def learn(cls, facts: TrainingFacts) -> Self:
        """Return the stream of the values in the train clips; raise UsageFault if they have no values."""
        values = facts.labels[cls.labels[0]]
        if not values:
            raise UsageFault(
                f"--condition-streams {cls.name}: expected train clips with a label {cls.labels[0]}, found "
                f"none; remove {cls.name}"
            )
        return cls(values)

    def settings(self) -> dict[str, Any]:
        """Return the values as JSON."""
        return {"values": list(self.values)}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Return the stream with the saved values; raise DataError for values that no training set has."""
        document = Document(dict(settings), f"condition stream {cls.name}", "choose another checkpoint")
        return cls(document.read(_Values).values)

    def value(self, recording: Recording, first_tick: int, ticks: int) -> Array | None:
        """Return the index of the recording's label value.

        Args:
            recording: The sample's labels and files.
            first_tick: Unused; a label covers the whole recording.
            ticks: Unused.

        Returns:
            Index (), or None if the value is absent or unknown.
        """
        del first_tick, ticks
        number = self._numbers.get(recording.labels.get(self.labels[0], ""))
        return None if number is None else np.array(number, np.int64)

    def parse(self, value: Any) -> Array:
        """Return the index () of a value; raise UsageFault with the known values."""
        if not isinstance(value, str) or value not in self.values:
            raise UsageFault(f"{self.name} {value}: expected one of {', '.join(self.values)} or none")
        return np.array(self._numbers[value], np.int64)

    def shown(self, array: Array) -> str:
        """Return the label value that an index () stands for."""
        return self.values[int(array)]

    def encoder(self, width: int) -> nn.Module:
        """Return a learned embedding of the values.

        Its initial scale is large compared with that of the noise level embedding. The zero-initialized modulations of
        the trunk then learn to use it from the first steps. With the small scale of a speaker embedding, it had no
        effect after 200 steps.
        """
        from torch import nn  # noqa: PLC0415 - processes that load batches have no torch

        found = nn.Embedding(len(self.values), width)
        nn.init.normal_(found.weight, std=0.5)
        return found


class Emotion(LabelStream):
    """Emotion of a recording, such as happiness."""

    name = "emotion"
    labels = ("emotion",)
