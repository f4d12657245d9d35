"""Step measurements: operations are those that shapes give, figures hang together, what cannot be is said in a line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_helpers import settings_of

from omniges.benchmark import train_step
from omniges.benchmark.settings import StepSpeedSettings
from omniges.benchmark.train_step import CallCounter, ProductPeak, measure, measure_one, operation_counter, report
from omniges.errors import UsageFault

SIZES = st.integers(1, 9)


@settings(max_examples=20, deadline=None)
@given(rows=SIZES, inputs=SIZES, outputs=SIZES)
def test_a_layer_costs_three_products_of_its_shape(rows: int, inputs: int, outputs: int) -> None:
    x = torch.randn(rows, inputs, requires_grad=True)
    layer = torch.nn.Linear(inputs, outputs)
    with operation_counter() as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * rows * inputs * outputs


@settings(max_examples=20, deadline=None)
@given(batch=SIZES, heads=SIZES, queries=SIZES, keys=SIZES, features=SIZES)
def test_attention_costs_two_products_forward_and_four_backward(
    batch: int, heads: int, queries: int, keys: int, features: int
) -> None:
    query = torch.randn(batch, heads, queries, features, requires_grad=True)
    key = torch.randn(batch, heads, keys, features, requires_grad=True)
    with operation_counter() as counter:
        torch.nn.functional.scaled_dot_product_attention(query, key, key).sum().backward()
    product = 2 * batch * heads * queries * keys * features
    assert counter.get_total_flops() == 6 * product


def test_calls_are_operations_but_no_views() -> None:
    x = torch.randn(2, 3)
    with CallCounter() as counter:
        (x.mT.reshape(6) + 1).unsqueeze(0).sin()
    assert counter.calls == 3  # the transposed matrix is copied


def test_plain_products_are_timed_with_the_operations_of_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product of side n does 2 n³ operations in a millisecond, on a clock that advances a millisecond a read."""
    now = iter(0.001 * k for k in range(10**6))
    monkeypatch.setattr("omniges.benchmark.train_step.time.perf_counter", lambda: next(now))
    monkeypatch.setattr(train_step, "_PEAK_SIDES", (16, 32))  # of 2048 it takes seconds a hundred times
    peak = ProductPeak(torch.device("cpu"), torch.float32)
    assert peak.measure() == pytest.approx(2 * 32**3 / 0.001)


@pytest.mark.slow
def test_figures_of_a_configuration_hang_together(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_step, "_PEAK_SIDES", (512,))  # where one core is about as fast as with larger ones
    row = measure_one(settings_of(shards, tmp_path), seconds=0.2)
    assert row["steps"] >= 3
    assert row["samples_per_s"] * row["step_s"] == pytest.approx(4, rel=0.9)
    # A window is 16 ticks, and one to three streams of it go through the trunk.
    assert 16 * row["samples_per_s"] <= row["tokens_per_s"] <= 48 * row["samples_per_s"]
    assert 0 < row["share_of_peak"]["min"] <= row["share_of_peak"]["median"] <= row["share_of_peak"]["max"] < 1
    assert 0 <= row["data_wait"] < 1
    assert row["memory_bytes"] > 50e6
    assert 500 < row["calls"] <= 3000  # of four blocks; more would mean that some work is done task by task
    assert row["kernels"] is None
    assert "tiny" in report([row])


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own parts
def test_the_compiled_step_has_few_kernels(shards: Path, tmp_path: Path) -> None:
    """Four blocks had about 850 kernels when each task was a graph of its own. Needs a C++ compiler."""
    settings = replace(settings_of(shards, tmp_path), compile=True)
    assert 0 < measure_one(settings, seconds=0.2)["kernels"] <= 428


def test_what_train_refuses_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(UsageFault, match="preset"):
        measure(StepSpeedSettings(presets=("vast",)))
    with pytest.raises(UsageFault, match="at least one preset"):
        StepSpeedSettings(batch_sizes=())


@pytest.mark.slow
def test_what_a_measuring_process_meets_is_raised_here(tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match=str(tmp_path)):
        measure(StepSpeedSettings(shards=str(tmp_path / "none")))


@pytest.mark.long
def test_each_configuration_has_a_process_and_memory_of_its_own(shards: Path) -> None:
    """`python -m pytest -m long tests/benchmark/test_train_step.py`: about a minute."""
    given = StepSpeedSettings(
        shards=str(shards), presets=("tiny",), batch_sizes=(2, 48), window_ticks=16, num_workers=0, seconds=0.5
    )
    small, large = measure(given)
    assert (small["batch_size"], large["batch_size"]) == (2, 48)
    assert small["memory_bytes"] < large["memory_bytes"]
