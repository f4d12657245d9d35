"""Losses of single samples to those of steps, tasks and streams, against loops over samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniges.data.order import RankShare
from omniges.model.draws import FlowSettings, draw_plan
from omniges.model.streams import STREAMS
from omniges.model.tasks import TASKS
from omniges.trainer.logging import Smoothed, in_order, per_step, per_stream, per_task

WEIGHTS = {"gesture": 1.0, "text": 0.25, "audio": 2.0}


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
def test_ranks_and_micro_steps_come_in_the_order_of_positions(ranks, micro_steps, batch, steps):
    """Each sample's loss is its position here, and the ranks' positions are the loader's."""
    gathered = np.empty((ranks, steps * micro_steps, batch, len(STREAMS)))
    for rank in range(ranks):
        share = RankShare(rank=rank, world_size=ranks, batch_size=batch, accumulation=micro_steps)
        for k in range(steps * micro_steps):
            gathered[rank, k] = share.positions(k * share.micro_batch)[:, None]
    found = in_order(gathered, steps)
    assert found.shape == (steps, ranks * batch * micro_steps, len(STREAMS))
    assert found[..., 0].reshape(-1).tolist() == list(range(steps * ranks * batch * micro_steps))


def test_means_are_those_of_loops_over_samples():
    positions = np.arange(400)
    plan = draw_plan(FlowSettings(), 3, positions)
    losses = np.where(plan.target, np.random.default_rng(0).random((400, 3)), 0.0)
    weighted = [sum(WEIGHTS[name] * losses[n, k] for k, name in enumerate(STREAMS)) for n in range(400)]
    assert per_step(losses.reshape(4, 100, 3), WEIGHTS) == pytest.approx(np.reshape(weighted, (4, 100)).mean(1))
    tasks = per_task(losses, plan, WEIGHTS)
    assert tasks.keys() == set(TASKS)
    assert sum(task["samples"] for task in tasks.values()) == 400
    for number, name in enumerate(TASKS):
        own = [weighted[n] for n in range(400) if plan.task[n] == number]
        assert tasks[name] == {"loss": pytest.approx(np.mean(own)), "samples": len(own)}
    streams = per_stream(losses, plan)
    for k, name in enumerate(STREAMS):
        assert streams[name] == pytest.approx(np.mean([losses[n, k] for n in range(400) if plan.target[n, k]]))


def test_a_task_or_stream_that_was_not_drawn_is_not_there():
    plan = draw_plan(FlowSettings(shares={"t2g": 1.0}), 0, np.arange(5))
    assert per_task(np.ones((5, 3)), plan, WEIGHTS).keys() == {"t2g"}
    assert per_stream(np.ones((5, 3)), plan) == {"gesture": 1.0}


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=60), st.integers(0, 60))
def test_the_smoothed_loss_is_a_function_of_the_losses_whatever_is_saved_in_between(losses, k):
    smoothed, value, lowest = Smoothed(), losses[0], math.inf
    for step, loss in enumerate(losses):
        if step == k:
            smoothed = Smoothed.of(**smoothed.as_json())
        ratio = smoothed.add(loss)
        value = loss if step == 0 else 0.98 * value + 0.02 * loss
        lowest = min(lowest, value)
        assert (smoothed.value, smoothed.lowest, ratio) == pytest.approx((value, lowest, value / lowest))
