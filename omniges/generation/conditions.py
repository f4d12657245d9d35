"""Values of condition streams for generation: those that the user gives, otherwise the recording's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omniges.conditions.base import (
    STREAM_OF,
    Array,
    ConditionStream,
    Content,
    Recording,
    ValueOf,
    full_name,
    labels_of,
    parsed_value,
    window_value,
)
from omniges.errors import UsageFault
from omniges.features.timebase import FRAMES_PER_TICK, MEL_FRAMES_PER_TICK
from omniges.registry import foreign
from omniges.shards.present import STREAM_BITS, present_bits
from omniges.shards.reader import SampleArrays

Asked = Mapping[str, Array | None]
"""Values that the user gives, by the stream's name; None: the stream is left out."""


def recording_of_sample(sample: SampleArrays) -> Recording:
    """Return the contents of a sample of a shard folder that condition streams can read."""
    row = sample.row
    contents: dict[Content, Callable[[int, int], Any]] = {
        "gesture": lambda first, ticks: sample.gesture.gesture[_rows(first, ticks, FRAMES_PER_TICK)],
        "mel": lambda first, ticks: sample.mel[_rows(first, ticks, MEL_FRAMES_PER_TICK)],
        "words": lambda _first, _ticks: sample.words,
    }
    bits = present_bits(row.present)
    there = {content: read for content, read in contents.items() if bits & STREAM_BITS[STREAM_OF[content]]}
    return Recording(labels_of(row.labels, row.speaker, row.language), there)


def _rows(first_tick: int, ticks: int, rows_per_tick: int) -> slice:
    return slice(first_tick * rows_per_tick, (first_tick + ticks) * rows_per_tick)


def asked_values(streams: Mapping[str, ConditionStream], given: Sequence[tuple[str, Any]], origin: str) -> Asked:
    """Return the values that the user gives.

    Args:
        streams: Condition streams of the model.
        given: Names and values, as text or as Python values.
        origin: Flag or argument, which errors name.

    Returns:
        Arrays (*shape) by name; None for a stream that is left out.

    Raises:
        UsageFault: A stream is unknown to the model or given twice, or a value is unknown.
    """
    found: dict[str, Array | None] = {}
    for name, value in given:
        if name not in streams:
            held = f"the model has {', '.join(streams)}" if streams else "the model was trained with none"
            raise UsageFault(f"{origin} {name}: a condition stream of the model expected: {held}")
        if name in found:
            raise UsageFault(f"{origin} {name}: it is given twice: give one value")
        try:
            found[name] = parsed_value(streams[name], value)
        except UsageFault as fault:
            raise UsageFault(f"{origin} {fault}") from fault
    return found


def values_of(streams: Mapping[str, ConditionStream], asked: Asked, recording: Recording) -> dict[str, ValueOf]:
    """Return each stream's value as a function of a window.

    Args:
        streams: Condition streams of the model.
        asked: Values that the user gives, which take precedence.
        recording: Recording whose values are used otherwise.

    Returns:
        Functions of a window's first tick and length in ticks.
    """

    def own(stream: ConditionStream) -> ValueOf:
        return lambda first, ticks: window_value(stream, recording, first, ticks)

    def constant(value: Array | None) -> ValueOf:
        return lambda _first, _ticks: value

    return {name: constant(asked[name]) if name in asked else own(stream) for name, stream in streams.items()}


def shown_values(
    streams: Mapping[str, ConditionStream], values: Mapping[str, ValueOf], spans: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """Return the values of all windows, as the settings of a record name them.

    Args:
        streams: Condition streams of the model.
        values: Value of each stream as a function of a window.
        spans: First tick and length of each window, in ticks.

    Returns:
        ``conditions`` by name: one value if it is the same in all windows, otherwise a list; None: left out.
    """
    found: dict[str, Any] = {}
    for name, stream in streams.items():
        arrays = [values[name](first, ticks) for first, ticks in spans]
        with foreign(full_name(stream), "showing a value"):
            every = [None if array is None else stream.shown(array) for array in arrays]
        found[name] = every[0] if all(one == every[0] for one in every) else every
    return {"conditions": found} if streams else {}
