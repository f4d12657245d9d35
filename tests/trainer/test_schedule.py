"""Learning rate and EMA decay are closed forms of the step."""

from __future__ import annotations

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniges.errors import UsageFault
from omniges.trainer.config import Schedule
from omniges.trainer.train_step import LearningRate, ema_decay

SCHEDULES = get_args(Schedule)
STEPS = st.integers(0, 10**7)


def reference(schedule: str, peak: float, warmup: int, total: int, step: int) -> float:
    if step < warmup:
        return peak * (step + 1) / warmup
    gone = (step - warmup) / (total - warmup)
    return {
        "constant": peak,
        "linear": peak * max(0.0, 1 - gone),
        "cosine": peak * math.cos(min(1.0, gone) * math.pi / 2) ** 2,  # (1 + cos 2x) / 2 = cos² x
    }[schedule]


@given(st.sampled_from(SCHEDULES), st.floats(1e-6, 1.0), st.integers(0, 1000), st.integers(1, 10**6), STEPS)
def test_the_rate_is_the_closed_form(schedule, peak, warmup, after, step):
    rate = LearningRate(peak=peak, schedule=schedule, warmup_steps=warmup, total_steps=warmup + after)
    assert rate.at(step) == pytest.approx(reference(schedule, peak, warmup, warmup + after, step), abs=1e-12)


def test_values_one_can_check_by_hand():
    cosine = LearningRate(peak=1.0, schedule="cosine", warmup_steps=4, total_steps=8)
    assert [cosine.at(k) for k in (0, 1, 3, 4, 6, 8, 100)] == pytest.approx([0.25, 0.5, 1, 1, 0.5, 0, 0])
    linear = LearningRate(peak=1.0, schedule="linear", warmup_steps=0, total_steps=4)
    assert [linear.at(k) for k in range(5)] == [1, 0.75, 0.5, 0.25, 0]
    constant = LearningRate(peak=2.0, warmup_steps=2)
    assert [constant.at(k) for k in (0, 1, 2, 10**9)] == [1, 2, 2, 2]


@given(st.floats(0, 0.99999), STEPS)
def test_the_decay_is_the_closed_form(decay, step):
    assert ema_decay(decay, step) == pytest.approx(min(decay, 1 - 9 / (step + 10)))


def test_an_end_within_the_warm_up_is_refused():
    with pytest.raises(UsageFault, match="--lr-warmup-steps 8: fewer than the 8 steps"):
        LearningRate(peak=1.0, schedule="linear", warmup_steps=8, total_steps=8)
