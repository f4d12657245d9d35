"""Scores by metrics that scripts and other packages add."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError
from omniges.evaluation import scores
from omniges.metrics.clips import ClipValue
from omniges.metrics.registry import Metric, registered_metrics
from omniges.registry import foreign
from omniges.shards.schema import MOTION_PARTS

I64 = npt.NDArray[np.int64]


class RegisteredScores:
    """Values of the added metrics of one stream; metrics over sets keep all clips until the end."""

    def __init__(self, stream: str, *, unconditional: bool) -> None:
        self._metrics = registered_metrics(stream)
        self._unconditional = unconditional
        self._values = {(metric.name, row): scores.Values() for metric in self._metrics for row in scores.ROWS}

    @property
    def wanted(self) -> bool:
        """True if any clips are needed."""
        return bool(self._metrics) and not self._unconditional

    def add(self, row: scores.Row, key: str, generated: Any, recorded: Any) -> None:
        """Score a pair of clips; for a generated one, also score the recorded clip against itself.

        Args:
            row: Row of the figure.
            key: Key of the recording.
            generated: Generated clip.
            recorded: Recorded clip.
        """
        for metric in self._metrics:
            self._add(metric, row, key, generated, recorded)
            if row == "generated" and not metric.over_set and key not in self._values[metric.name, "recorded"].keys:
                self._add(metric, "recorded", key, recorded, recorded)

    def _add(self, metric: Metric, row: scores.Row, key: str, generated: Any, recorded: Any) -> None:
        values = self._values[metric.name, row]
        if why := _lacking(metric, generated, recorded):
            values.leave_out(why)
        elif metric.over_set:
            values.keep(key, (generated, recorded))
        else:
            values.add(key, lambda: ClipValue(_scored(metric, generated, recorded), 1.0))

    def figures(self, how: scores.Resampling) -> list[scores.Figure]:
        """Return the figures of every metric: the mean over results, or the value of the set."""
        found = []
        for metric in self._metrics:
            if self._unconditional:
                found.append(scores.absent(scores.Heading(metric.label, metric.unit), scores.UNCONDITIONAL))
            for row in scores.ROWS:
                values = self._values[metric.name, row]
                if values.found or values.left_out:
                    heading = scores.Heading(metric.label, metric.unit, row)
                    found.append(
                        _figure_of_set(metric, heading, values, how)
                        if metric.over_set
                        else scores.figure_of_mean(heading, values, how)
                    )
        return found


def _lacking(metric: Metric, generated: Any, recorded: Any) -> str:
    """Return which needed part a pair of clips lacks, or ""; only gesture metrics need parts."""
    for part in metric.needs:
        if part not in recorded.present:
            return f"no {part} in the recording"
        if part in MOTION_PARTS and part not in generated.present:
            return f"no {part} in the result"
    return ""


def _figure_of_set(
    metric: Metric, heading: scores.Heading, values: scores.Values, how: scores.Resampling
) -> scores.Figure:
    try:
        return scores.figure_of_statistic(heading, values, partial(_of_set, metric, values.found), how, centred=True)
    except DataError as error:
        return scores.absent(heading, str(error))


def _of_set(metric: Metric, pairs: Sequence[tuple[Any, Any]], chosen: I64) -> float:
    generated, recorded = ([pairs[int(k)][side] for k in chosen] for side in (0, 1))
    return _scored(metric, generated, recorded)


def _scored(metric: Metric, generated: Any, recorded: Any) -> float:
    """Return the value of a metric; raise DataError if it has none, EnvironmentFault if its code fails."""
    with foreign(f"metric {metric.label!r}", "scoring"):
        value = metric.of(generated, recorded)
        finite = value is None or math.isfinite(value)
    if value is None:
        raise DataError(f"{metric.label}: no value")
    if not finite:
        raise DataError(f"{metric.label}: a finite number or None expected, found {value}")
    return float(value)
