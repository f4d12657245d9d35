"""Plans: shares and drop-outs by counting, levels by distribution, independence of the batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from flow_builders import draw_levels
from hypothesis import given, settings
from hypothesis import strategies as st

from omniges.errors import UsageFault
from omniges.model.draws import FlowSettings, Purpose, draw_plan
from omniges.model.streams import STREAMS
from omniges.model.tasks import TASKS

MANY = np.arange(20_000)
NAMES = list(TASKS)


def near(count: int, share: float, total: int = len(MANY)) -> bool:
    """Return whether a count is within five standard deviations of its binomial mean."""
    return abs(count - share * total) <= 5 * math.sqrt(share * (1 - share) * total) + 1e-9


def roles(name: str, stream: str) -> str:
    task = TASKS[name]
    return "condition" if stream in task.conditions else "target" if stream in task.targets else "absent"


class TestTasks:
    def test_names_say_conditions_and_targets(self):
        letters = {"t": "text", "a": "audio", "g": "gesture"}
        for name, task in TASKS.items():
            if name != "joint":
                given_letters, generated = name.split("2")
                assert {letters[c] for c in given_letters} == set(task.conditions)
                assert (letters[generated],) == task.targets
        assert set(TASKS["joint"].targets) == set(STREAMS)

    @pytest.mark.parametrize("shares", [None, {"t2g": 1.0, "joint": 3.0}, {"a2t": 0.2}])
    def test_each_task_has_its_share(self, shares):
        flow = FlowSettings() if shares is None else FlowSettings(shares=shares)
        plan = draw_plan(flow, 3, MANY)
        total = sum(flow.shares.values())
        for k, name in enumerate(NAMES):
            assert near(int((plan.task == k).sum()), flow.shares.get(name, 0) / total), name

    def test_tasks_vary_within_a_batch_of_eight(self):
        plan = draw_plan(FlowSettings(), 0, np.arange(8))
        assert len(set(plan.task.tolist())) > 2

    @given(st.integers(0, 2**32), st.lists(st.integers(0, 2**40), min_size=1, max_size=12, unique=True))
    @settings(deadline=None, max_examples=10)
    def test_a_samples_plan_does_not_depend_on_its_batch(self, seed, positions):
        flow = FlowSettings(condition_noise=0.3)
        whole = draw_plan(flow, seed, np.array(positions))
        for k, position in enumerate(positions):
            alone = draw_plan(flow, seed, np.array([position]))
            for field in ("task", "target", "present", "levels", "speaker_known"):
                assert np.array_equal(getattr(alone, field)[0], getattr(whole, field)[k]), field


class TestDropOut:
    @pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
    def test_conditions_are_dropped_at_the_rate_asked_for(self, rate):
        plan = draw_plan(FlowSettings(condition_dropout=rate), 1, MANY)
        for name in NAMES:
            chosen = plan.task == NAMES.index(name)
            columns = [k for k, stream in enumerate(STREAMS) if roles(name, stream) == "condition"]
            if columns:
                there = plan.present[np.ix_(chosen, columns)]
                assert (there.all(axis=1) | ~there.any(axis=1)).all()  # all of a sample's conditions or none
                assert near(int((~there[:, 0]).sum()), rate, int(chosen.sum())), name

    def test_targets_are_never_dropped(self):
        plan = draw_plan(FlowSettings(condition_dropout=1.0), 1, MANY)
        assert (plan.present == plan.target).all()

    @pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
    def test_speakers_become_unknown_at_the_rate_asked_for(self, rate):
        plan = draw_plan(FlowSettings(speaker_dropout=rate), 1, MANY)
        assert near(int((~plan.speaker_known).sum()), rate)

    def test_drop_outs_are_independent_of_tasks_levels_and_each_other(self):
        plan = draw_plan(FlowSettings(condition_dropout=0.5, speaker_dropout=0.5), 1, MANY)
        dropped = (plan.present == plan.target).all(axis=1)
        for other in (plan.speaker_known, plan.levels.max(axis=1, where=plan.target, initial=0) > 0.5):
            six = plan.task < 6
            assert abs(np.corrcoef(dropped[six], other[six])[0, 1]) < 5 / math.sqrt(six.sum())


class TestLevels:
    def test_roles_have_their_levels(self):
        plan = draw_plan(FlowSettings(condition_dropout=0.2), 5, MANY[:3000])
        for b, number in enumerate(plan.task):
            for k, stream in enumerate(STREAMS):
                role = roles(NAMES[number], stream)
                assert plan.target[b, k] == (role == "target")
                if role == "target":
                    assert 0 < plan.levels[b, k] < 1
                elif role == "condition" and plan.present[b, k]:
                    assert plan.levels[b, k] == 0
                else:
                    assert plan.levels[b, k] == 1
                    assert not plan.present[b, k]

    def test_logit_normal_levels_have_normal_logits(self):
        flow = FlowSettings(level_mean=0.3, level_std=1.5, shift=1.0)
        levels = draw_levels(flow, 1, MANY, Purpose.LEVEL_TEXT).astype(np.float64)
        assert scipy.stats.kstest(scipy.special.logit(levels), "norm", (0.3, 1.5)).pvalue > 1e-3

    def test_uniform_levels_are_uniform(self):
        levels = draw_levels(FlowSettings(levels="uniform", shift=1.0), 1, MANY, Purpose.LEVEL_TEXT)
        assert scipy.stats.kstest(levels.astype(np.float64), "uniform").pvalue > 1e-3

    @pytest.mark.parametrize("shift", [0.5, 3.0])
    def test_the_shift_moves_them_as_its_formula(self, shift):
        plain = draw_levels(FlowSettings(levels="uniform", shift=1.0), 1, MANY, Purpose.LEVEL_TEXT).astype(np.float64)
        moved = draw_levels(FlowSettings(levels="uniform", shift=shift), 1, MANY, Purpose.LEVEL_TEXT)
        np.testing.assert_allclose(moved, shift * plain / (1 + (shift - 1) * plain), rtol=1e-5)

    def test_streams_levels_are_independent_in_joint_samples(self):
        plan = draw_plan(FlowSettings(shares={"joint": 1}), 1, MANY)
        correlations = np.corrcoef(plan.levels.T) - np.eye(3)
        assert np.abs(correlations).max() < 5 / math.sqrt(len(MANY))

    def test_noisy_conditions_come_at_the_rate_asked_for(self):
        plan = draw_plan(FlowSettings(shares={"t2g": 1}, condition_noise=0.3, condition_dropout=0), 1, MANY)
        text = plan.levels[:, STREAMS.index("text")]
        assert near(int((text > 0).sum()), 0.3)
        assert plan.present[:, STREAMS.index("text")].all()


class TestSettings:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"shares": {"t2x": 1}}, "t2x"),
            ({"shares": {}}, "positive sum"),
            ({"shares": {"t2g": -1, "g2t": 2}}, "shares of at least 0"),
            ({"condition_dropout": 1.5}, "condition dropout: expected .*found 1.5"),
            ({"shift": 0}, "positive numbers"),
            ({"weights": {"text": 1.0}}, "for each stream"),
        ],
    )
    def test_what_cannot_be_drawn_is_refused_in_one_line(self, changes, message):
        with pytest.raises(UsageFault, match=message) as caught:
            FlowSettings(**changes)
        assert "\n" not in str(caught.value)
