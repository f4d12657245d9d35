"""Values of condition streams for what is generated: those that a person asks for, else the recording's own."""

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
"""Values that a person asks for by the stream's name; None: the stream is left out."""


def recording_of_sample(sample: SampleArrays) -> Recording:
    """Return what condition streams can read of a sample of a shard folder."""
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
    """Return the values that a person asks for.

    Args:
        streams: of the model.
        given: names and values, as text or as Python values.
        origin: the flag or argument, for errors.

    Returns:
        Arrays (*shape) by name; None for a value that is asked to be none.

    Raises:
        UsageFault: the model has no such stream, a stream is named twice, or the value is unknown.
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
    """Return each stream's value of a window by first tick and ticks: what is asked for, else the recording's own."""

    def own(stream: ConditionStream) -> ValueOf:
        return lambda first, ticks: window_value(stream, recording, first, ticks)

    def constant(value: Array | None) -> ValueOf:
        return lambda _first, _ticks: value

    return {name: constant(asked[name]) if name in asked else own(stream) for name, stream in streams.items()}


def shown_values(
    streams: Mapping[str, ConditionStream], values: Mapping[str, ValueOf], spans: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """Return the values that windows are generated with, as a record's settings name them.

    A value that is the same in all windows stands once, others as a list; None: the stream is left out.
    """
    found: dict[str, Any] = {}
    for name, stream in streams.items():
        arrays = [values[name](first, ticks) for first, ticks in spans]
        with foreign(full_name(stream), "showing a value"):
            every = [None if array is None else stream.shown(array) for array in arrays]
        found[name] = every[0] if all(one == every[0] for one in every) else every
    return {"conditions": found} if streams else {}
