"""Sampling settings of a task: what a person sets stays, and what a model states holds for its target alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniges.model.tasks import TASKS, SamplingSettings

STATED = {"audio": 2.0}
OF_AUDIO = ("g2a", "t2a", "tg2a")


@pytest.mark.parametrize("name", OF_AUDIO)
def test_a_stated_scale_halves_the_steps_so_that_the_model_runs_as_often(name: str) -> None:
    plain, guided = SamplingSettings(), SamplingSettings().for_task(TASKS[name], STATED)
    assert (plain.guidance, guided.guidance) == (1.0, 2.0)
    assert 2 * guided.steps == plain.steps
    assert guided.document() == SamplingSettings(num_inference_steps=10, guidance_scale=2.0).document()


@pytest.mark.parametrize("name", sorted(set(TASKS) - set(OF_AUDIO)))
def test_other_tasks_are_sampled_as_before(name: str) -> None:
    assert SamplingSettings().for_task(TASKS[name], STATED) == SamplingSettings()


@given(name=st.sampled_from(sorted(TASKS)), scale=st.floats(0, 9), steps=st.none() | st.integers(1, 99))
def test_a_scale_that_is_set_stays(name: str, scale: float, steps: int | None) -> None:
    chosen = SamplingSettings(guidance_scale=scale, num_inference_steps=steps)
    assert chosen.for_task(TASKS[name], STATED) == chosen


@given(steps=st.integers(1, 99))
def test_steps_that_are_set_stay(steps: int) -> None:
    guided = SamplingSettings(num_inference_steps=steps).for_task(TASKS["t2a"], STATED)
    assert (guided.steps, guided.guidance) == (steps, 2.0)


def test_an_earlier_model_states_nothing() -> None:
    assert all(SamplingSettings().for_task(task, {}) == SamplingSettings() for task in TASKS.values())
