"""Scores lead to the clips behind them: the best, the median and the worst."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniges.exchange.view import extremes, score_tables


@given(st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), st.floats(-9, 9), min_size=2))
def test_at_most_half_of_the_values_lie_on_either_side_of_the_median(values: dict[str, float]) -> None:
    found = extremes(values, "best", "worst")
    assert list(found) == ["best", "median", "worst"]
    assert values[found["best"]] == min(values.values())
    assert values[found["worst"]] == max(values.values())
    below = sum(value < values[found["median"]] for value in values.values())
    above = sum(value > values[found["median"]] for value in values.values())
    assert max(below, above) <= len(values) / 2


@pytest.mark.parametrize(("values", "found"), [({}, {}), ({"a_x2e_b": 1.0}, {"only": "a.b"})])
def test_few_values(values: dict[str, float], found: dict[str, str]) -> None:
    assert extremes(values, "best", "worst") == found


@pytest.mark.parametrize(
    ("metric", "labels"),
    [
        ("beat consistency", {"worst": "a", "best": "c"}),
        ("word error rate", {"best": "a", "worst": "c"}),
        ("jerk", {"lowest": "a", "highest": "c"}),
    ],
)
def test_labels_follow_the_direction_of_the_metric(metric: str, labels: dict[str, str]) -> None:
    figure = SimpleNamespace(metric=metric, row="generated", by_recording={"a": 0.1, "b": 0.2, "c": 0.3})
    task = SimpleNamespace(figures=[figure], table=lambda: ([["", "generated"], [metric, "0.2"]], [metric]))
    report: Any = SimpleNamespace(tasks={"a2g": task})
    (table,) = score_tables(report)
    assert (table.task, table.head, table.rows) == ("a2g", ("", "generated"), ((metric, "0.2"),))
    assert table.clips[0] == labels | {"median": "b"}
