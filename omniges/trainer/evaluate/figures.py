"""A figure of a report: a corpus value with its interval, what it rests on, or why there is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError
from omniges.trainer.metrics.clips import Weighted
from omniges.trainer.metrics.intervals import bootstrap, bootstrap_mean

__all__ = ["ROWS", "Clips", "Figure", "Resampling", "absent", "figure_of_mean", "figure_of_statistic"]

I64 = npt.NDArray[np.int64]
Row = Literal["generated", "shuffled", "recorded"]

ROWS: Final[tuple[Row, ...]] = ("generated", "shuffled", "recorded")
"""What a value is of: generated files; the same against another clip; the recordings themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampling:
    """Bootstrap over clips."""

    seed: int
    resamples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One value of a metric, or the reason why it was not computed."""

    metric: str
    unit: str
    row: Row
    value: float | None
    low: float | None = None  # of the 95 % interval over clips; None with fewer than two
    high: float | None = None
    clips: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)  # clips without a value, by reason
    why_not: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Clips:
    """Values of a metric clip by clip, and the clips that have none."""

    values: list[Any] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def add(self, score: Callable[[], Any]) -> None:
        """A clip's value, or the reason that the metric gives for having none."""
        try:
            self.values.append(score())
        except DataError as error:
            self.left_out[str(error).partition(":")[2].strip() or str(error)] += 1


def absent(metric: str, unit: str, row: Row, why: str) -> Figure:
    """A figure that was not computed."""
    return Figure(metric=metric, unit=unit, row=row, value=None, why_not=why)


def figure_of_mean(
    metric: str, unit: str, row: Row, clips: Clips, how: Resampling, details: Mapping[str, Any] | None = None
) -> Figure:
    """The mean of clips' values by weight."""
    values: Sequence[Weighted] = clips.values

    def mean(rows: I64) -> float:
        weights = np.array([values[int(k)].weight for k in rows])
        return float((weights * np.array([values[int(k)].value for k in rows])).sum() / weights.sum())

    if not values or not sum(one.weight for one in values) > 0:
        return _nothing(metric, unit, row, clips)
    if len(values) < 2 or not all(one.weight > 0 for one in values):
        return _figure(metric, unit, row, clips, (mean(np.arange(len(values))), None, None), details)
    interval = bootstrap_mean(values, seed=how.seed, resamples=how.resamples)
    return _figure(metric, unit, row, clips, (interval.value, interval.low, interval.high), details)


def figure_of_statistic(
    metric: str,
    unit: str,
    row: Row,
    clips: Clips,
    statistic: Callable[[I64], float],
    how: Resampling,
    details: Mapping[str, Any] | None = None,
) -> Figure:
    """A statistic of clip numbers, such as a ratio of sums or a Fréchet distance."""
    if not clips.values:
        return _nothing(metric, unit, row, clips)
    everything = np.arange(len(clips.values))
    if len(clips.values) < 2:
        return _figure(metric, unit, row, clips, (statistic(everything), None, None), details)
    interval = bootstrap(len(clips.values), statistic, seed=how.seed, resamples=how.resamples)
    return _figure(metric, unit, row, clips, (interval.value, interval.low, interval.high), details)


def _nothing(metric: str, unit: str, row: Row, clips: Clips) -> Figure:
    reasons = "; ".join(f"{count} clips: {reason}" for reason, count in clips.left_out.most_common())
    return Figure(
        metric=metric, unit=unit, row=row, value=None, left_out=dict(clips.left_out), why_not=reasons or "no clips"
    )


def _figure(
    metric: str,
    unit: str,
    row: Row,
    clips: Clips,
    found: tuple[float, float | None, float | None],
    details: Mapping[str, Any] | None,
) -> Figure:
    value, low, high = found
    return Figure(
        metric=metric,
        unit=unit,
        row=row,
        value=value,
        low=low,
        high=high,
        clips=len(clips.values),
        left_out=dict(clips.left_out),
        details=dict(details or {}),
    )
