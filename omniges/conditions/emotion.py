"""Condition streams whose value is a label in the metadata, such as the emotion."""

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
    """Learned settings of a label stream: the values of the label in the training set."""

    values: Annotated[tuple[str, ...], Is("different texts", lambda found: 0 < len(set(found)) == len(found))]


class LabelStream(ConditionStream):
    """Base class of streams that embed a label of a recording; a subclass names the label.

    A label value that does not occur in the training set counts as absent.
    """

    dtype = "<i8"

    def __init__(self, values: tuple[str, ...]) -> None:
        self.values = values
        self._numbers = {value: number for number, value in enumerate(values)}

    @classmethod
    def learn(cls, facts: TrainingFacts) -> Self:
        """Create the stream from the label values of the train clips; raise UsageFault if no clip has the label."""
        values = facts.labels[cls.labels[0]]
        if not values:
            raise UsageFault(
                f"--condition-streams {cls.name}: expected train clips with a label {cls.labels[0]}, found "
                f"none; remove {cls.name}"
            )
        return cls(values)

    def settings(self) -> dict[str, Any]:
        """Return the label values as a JSON object."""
        return {"values": list(self.values)}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Create the stream with saved label values; raise DataError for invalid values."""
        document = Document(dict(settings), f"condition stream {cls.name}", "choose another checkpoint")
        return cls(document.read(_Values).values)

    def value(self, recording: Recording, first_tick: int, ticks: int) -> Array | None:
        """Return the index of the recording's label value.

        Args:
            recording: Labels and contents of the sample.
            first_tick: Unused; a label covers the whole recording.
            ticks: Unused.

        Returns:
            Scalar int64 array with the index; None if the value is absent or does not occur in the training set.
        """
        del first_tick, ticks
        number = self._numbers.get(recording.labels.get(self.labels[0], ""))
        return None if number is None else np.array(number, np.int64)

    def parse(self, value: Any) -> Array:
        """Return the index of a label value as a scalar array; raise UsageFault if the value is unknown."""
        if not isinstance(value, str) or value not in self.values:
            raise UsageFault(f"{self.name} {value}: expected one of {', '.join(self.values)} or none")
        return np.array(self._numbers[value], np.int64)

    def shown(self, array: Array) -> str:
        """Return the label value for a scalar index, the inverse of `parse`."""
        return self.values[int(array)]

    def encoder(self, width: int) -> nn.Module:
        """Create a learned embedding of the label values.

        The initial values of the embedding have a standard deviation of 0.5. The weights of the layers that use it are
        initially zero. In the first steps, these weights learn only if the embedding has large values. With a standard
        deviation of 0.02, as for the speaker embedding, an emotion embedding still had no effect after 200 steps.
        """
        from torch import nn  # noqa: PLC0415 - processes that load batches have no torch

        found = nn.Embedding(len(self.values), width)
        nn.init.normal_(found.weight, std=0.5)
        return found


class Emotion(LabelStream):
    """Condition stream for the emotion of a recording, such as happiness."""

    name = "emotion"
    labels = ("emotion",)
