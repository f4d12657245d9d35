"""A figure of a report: a corpus value with its interval, what it rests on, or why there is none.

The unit of every interval is the recording: several results of one recording are drawn together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError
from omniges.metrics.clips import ClipValue, bootstrap, bootstrap_mean, weighted_mean

I64 = npt.NDArray[np.int64]
Row = Literal["generated", "shuffled", "recorded"]

ROWS: Final[tuple[Row, ...]] = ("generated", "shuffled", "recorded")
"""What a value is of: generated files; the same against another recording; the recordings themselves."""

_ADVICE: Final = ": leave this clip out"  # what metrics say to a caller, and what has been done here


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampling:
    """Bootstrap over recordings."""

    seed: int
    resamples: int


@dataclass(frozen=True, slots=True)
class Heading:
    """What a figure is of."""

    metric: str
    unit: str
    row: Row = "generated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One value of a metric, or the reason why it was not computed."""

    metric: str
    unit: str
    row: Row
    value: float | None
    low: float | None = None  # of the 95 % interval over recordings; None with fewer than two
    high: float | None = None
    resamples: int = 0  # draws that the interval is of
    recordings: int = 0
    results: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)  # results without a value, by reason
    why_not: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    by_recording: Mapping[str, float] = field(default_factory=dict)  # the value of each alone, where it has one


class Values:
    """Values of a metric, each of a result for a recording, and the results that have none."""

    def __init__(self) -> None:
        self.found: list[Any] = []
        self.keys: list[str] = []
        self.left_out: Counter[str] = Counter()

    def add(self, key: str, score: Callable[[], Any]) -> None:
        """A result's value, or the reason that the metric gives for having none."""
        try:
            self.keep(key, score())
        except DataError as error:
            self.leave_out(error)

    def keep(self, key: str, value: Any) -> None:
        """A result's value."""
        self.found.append(value)
        self.keys.append(key)

    def leave_out(self, reason: DataError | str) -> None:
        """A result that has no value."""
        text = str(reason)
        if isinstance(reason, DataError):  # metrics name the array first
            text = (text.partition(": ")[2] or text).removesuffix(_ADVICE)
        self.left_out[text] += 1

    @property
    def recordings(self) -> list[str]:
        """Keys of the recordings in order of their first value."""
        return list(dict.fromkeys(self.keys))

    @property
    def groups(self) -> list[I64]:
        """Numbers of each recording's values."""
        members: dict[str, list[int]] = {}
        for number, key in enumerate(self.keys):
            members.setdefault(key, []).append(number)
        return [np.array(numbers) for numbers in members.values()]


def absent(heading: Heading, why: str) -> Figure:
    """A figure that was not computed."""
    return Figure(metric=heading.metric, unit=heading.unit, row=heading.row, value=None, why_not=why)


def figure_of_mean(
    heading: Heading, values: Values, how: Resampling, details: Mapping[str, Any] | None = None
) -> Figure:
    """The mean of results' values by weight; a recording whose results have no weight has no value."""
    weighted = Values()
    weighted.left_out.update(values.left_out)
    means: list[ClipValue] = []
    for key, group in zip(values.recordings, values.groups, strict=True):
        own: Sequence[ClipValue] = [values.found[number] for number in group if values.found[number].weight > 0]
        if len(own) < len(group):
            weighted.left_out["nothing in it to weigh"] += len(group) - len(own)
        if own:
            means.append(ClipValue(weighted_mean(own), sum(one.weight for one in own)))
            for one in own:
                weighted.keep(key, one)
    if not means:
        return _nothing(heading, weighted)
    by_recording = {key: one.value for key, one in zip(weighted.recordings, means, strict=True)}
    if len(means) < 2:
        return _figure(heading, weighted, (means[0].value, None, None, 0), details, by_recording)
    found = bootstrap_mean(means, seed=how.seed, resamples=how.resamples)
    interval = (found.value, found.low, found.high, found.resamples)
    return _figure(heading, weighted, interval, details, by_recording)


def figure_of_statistic(
    heading: Heading,
    values: Values,
    statistic: Callable[[I64], float],
    how: Resampling,
    details: Mapping[str, Any] | None = None,
    *,
    centred: bool = False,
    alone: bool = True,
) -> Figure:
    """A statistic of numbers of values, such as a ratio of sums or a Fréchet distance.

    ``centred``: see `bootstrap`. ``alone``: whether it means something of one recording.
    """
    groups = values.groups
    if not groups:
        return _nothing(heading, values)
    by_recording = (
        {key: statistic(group) for key, group in zip(values.recordings, groups, strict=True)} if alone else {}
    )
    if len(groups) < 2:
        return _figure(heading, values, (statistic(groups[0]), None, None, 0), details, by_recording)
    found = bootstrap(
        len(groups),
        lambda drawn: statistic(np.concatenate([groups[int(k)] for k in drawn])),
        seed=how.seed,
        resamples=how.resamples,
        centred=centred,
    )
    interval = (found.value, found.low, found.high, found.resamples)
    return _figure(heading, values, interval, details, by_recording)


def _nothing(heading: Heading, values: Values) -> Figure:
    reasons = "; ".join(f"{count} × {reason}" for reason, count in values.left_out.most_common())
    why = reasons or "no results"
    return replace(absent(heading, why), left_out=dict(values.left_out))


def _figure(
    heading: Heading,
    values: Values,
    found: tuple[float, float | None, float | None, int],
    details: Mapping[str, Any] | None,
    by_recording: Mapping[str, float],
) -> Figure:
    value, low, high, resamples = found
    return Figure(
        metric=heading.metric,
        unit=heading.unit,
        row=heading.row,
        value=value,
        low=low,
        high=high,
        resamples=resamples,
        recordings=len(values.recordings),
        results=len(values.found),
        left_out=dict(values.left_out),
        details=dict(details or {}),
        by_recording=by_recording,
    )
