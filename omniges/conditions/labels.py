"""Streams whose value is a label of the metadata: one of the values that the training set has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from omniges.conditions.base import Array, ConditionStream, Recording, TrainingFacts
from omniges.errors import UsageFault

if TYPE_CHECKING:
    from torch import nn


class LabelStream(ConditionStream):
    """A label of a recording as an embedding; subclasses name it.

    A recording whose value is not in the training set has none.
    """

    dtype = "<i8"

    def __init__(self, values: tuple[str, ...]) -> None:
        self.values = values
        self._numbers = {value: number for number, value in enumerate(values)}

    @classmethod
    def learn(cls, facts: TrainingFacts) -> Self:
        """Return the stream of the values that the train clips have; raises UsageFault where they have none."""
        values = facts.labels[cls.labels[0]]
        if not values:
            raise UsageFault(
                f"--condition-streams {cls.name}: train clips with a label {cls.labels[0]} expected, found none: leave "
                f"{cls.name} away"
            )
        return cls(values)

    def settings(self) -> dict[str, Any]:
        """Return the values."""
        return {"values": list(self.values)}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Return the stream of some values."""
        return cls(tuple(settings["values"]))

    def value(self, recording: Recording, first_tick: int, ticks: int) -> Array | None:
        """Return the number () of the recording's value."""
        del first_tick, ticks
        number = self._numbers.get(recording.labels.get(self.labels[0], ""))
        return None if number is None else np.array(number, np.int64)

    def parse(self, value: Any) -> Array:
        """Return the number () of a value; raises UsageFault with the known ones."""
        if value not in self.values:
            raise UsageFault(f"{self.name} {value}: one of {', '.join(self.values)} or none expected")
        return np.array(self._numbers[value], np.int64)

    def shown(self, array: Array) -> str:
        """Return the value of a number ()."""
        return self.values[int(array)]

    def encoder(self, width: int) -> nn.Module:
        """Return an embedding of the values.

        It begins large beside the levels, so that the zero modulations of the trunk learn to read it from the first
        steps; one as small as a speaker's had changed nothing after 200 steps.
        """
        from torch import nn  # noqa: PLC0415 - processes that load batches have no torch

        found = nn.Embedding(len(self.values), width)
        nn.init.normal_(found.weight, std=0.5)
        return found
