"""Condition streams in a model: no effect without a stream or a value, otherwise the output of their encoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from flow_builders import CONFIG, TICKS, VOCAB_SIZE, statistics, windows_of

from omniges.conditions.emotion import Emotion
from omniges.model.draws import FlowSettings, Purpose, draw_plan, named_purpose
from omniges.model.flow import Conditioning, FlowModel, Windows, guided_clean
from omniges.model.spec import build_model

EMOTION = Emotion(("anger", "fear", "sadness"))
POSITIONS = list(range(12))
KEPT = FlowSettings(condition_dropout=0, condition_stream_dropout=0)
MANY = np.arange(20_000)


def built(conditions: Any = None) -> FlowModel:
    torch.manual_seed(5)
    model = build_model(CONFIG, statistics=statistics(), vocab_size=VOCAB_SIZE, speakers=2, conditions=conditions or {})
    for name, parameter in model.named_parameters():  # nothing is hidden by zeros
        generator = torch.Generator().manual_seed(len(name) + parameter.numel())
        parameter.data = parameter.data + torch.randn(parameter.shape, generator=generator) * 0.2
    return model


@pytest.fixture(scope="module")
def model() -> FlowModel:
    return built({"emotion": EMOTION})


def windows(values: list[int] | None = None, known: list[bool] | None = None) -> Windows:
    found = windows_of(POSITIONS)
    pair = torch.tensor(values or [0] * 12), torch.tensor([True] * 12 if known is None else known)
    return Windows(found.arrays, found.positions, found.speakers, conditions={"emotion": pair})


def losses(model: FlowModel, given: Windows, flow: FlowSettings = KEPT, *, rounded: bool = False) -> torch.Tensor:
    plan = draw_plan(flow, 7, np.array(POSITIONS), conditions=["emotion"] if given.conditions else [])
    return model(given, plan, flow, 7, rounded=rounded).each


class TestModel:
    def test_all_other_weights_begin_as_without(self, model: FlowModel) -> None:
        plain = built()
        own = dict(model.named_parameters())
        assert own.keys() - dict(plain.named_parameters()).keys() == {"conditions.emotion.weight"}
        for name, parameter in plain.named_parameters():
            assert torch.equal(parameter, own[name]), name

    def test_without_values_losses_are_those_of_a_model_without(self, model: FlowModel) -> None:
        plain = losses(built(), windows_of(POSITIONS))
        assert torch.equal(losses(model, windows(known=[False] * 12)), plain)
        assert torch.equal(
            losses(model, windows(), FlowSettings(condition_dropout=0, condition_stream_dropout=1)), plain
        )

    def test_a_value_changes_the_losses_of_its_own_sample_alone(self, model: FlowModel) -> None:
        first, second = losses(model, windows([0] * 12)), losses(model, windows([0] * 3 + [2] + [0] * 8))
        assert [row for row in range(12) if not torch.equal(first[row], second[row])] == [3]

    def test_rounded_rows_give_the_same_losses(self, model: FlowModel) -> None:
        given = windows([0, 1, 2] * 4, [True, True, False] * 4)
        torch.testing.assert_close(losses(model, given), losses(model, given, rounded=True), rtol=1e-4, atol=1e-5)

    def test_only_values_that_are_known_and_kept_get_a_gradient(self, model: FlowModel) -> None:
        model.zero_grad()
        plan = draw_plan(KEPT, 7, np.array(POSITIONS), conditions=["emotion"])
        given = windows([0] * 6 + [1] * 6, [True] * 6 + [False] * 6)
        model(given, plan, KEPT, 7).total.backward()
        gradient = model.conditions["emotion"].weight.grad
        assert gradient.abs().sum(dim=1).gt(0).tolist() == [True, False, False]

    def test_what_streams_say_is_added(self, model: FlowModel) -> None:
        weight = model.conditions["emotion"].weight
        found = model.describe({"emotion": (torch.tensor([2, 1, 0]), torch.tensor([True, False, True]))})
        assert found is not None
        assert torch.equal(found, torch.stack([weight[2], torch.zeros_like(weight[0]), weight[0]]))
        assert model.describe({}) is None


def test_guidance_leaves_condition_streams_out_with_the_inputs(model: FlowModel) -> None:
    """x = x_u + w (x_c − x_u), also where nothing else is given."""
    tokens = {"gesture": torch.randn(2, TICKS, 1245)}
    at, speakers = torch.full((2,), 0.7), torch.tensor([1, 2])
    described = model.describe({"emotion": (torch.tensor([0, 2]), torch.tensor([True, True]))})

    def clean(w: float, said: Any) -> torch.Tensor:
        with torch.no_grad():
            return guided_clean(model, Conditioning({}, speakers, described=said), ["gesture"], w)(tokens, at)[
                "gesture"
            ]

    with_them, without = clean(1.0, described), clean(1.0, None)
    assert not torch.allclose(with_them, without)
    torch.testing.assert_close(clean(3.0, described), without + 3 * (with_them - without))
    torch.testing.assert_close(clean(0.0, described), without)


class TestPlan:
    @pytest.mark.parametrize("rate", [0.1, 0.4])
    def test_share_that_is_dropped(self, rate: float) -> None:
        kept = draw_plan(
            FlowSettings(condition_dropout=0, condition_stream_dropout=rate), 1, MANY, conditions=["emotion"]
        ).kept
        assert kept["emotion"].mean() == pytest.approx(1 - rate, abs=0.01)

    def test_streams_are_dropped_apart_and_none_hangs_on_the_others(self) -> None:
        flow = FlowSettings(condition_dropout=0, condition_stream_dropout=0.5)
        both = draw_plan(flow, 1, MANY, conditions=["emotion", "loudness"])
        assert (both.kept["emotion"] & both.kept["loudness"]).mean() == pytest.approx(0.25, abs=0.02)
        assert np.array_equal(draw_plan(flow, 1, MANY, conditions=["loudness"]).kept["loudness"], both.kept["loudness"])
        plain = draw_plan(flow, 1, MANY)
        for name in ("task", "target", "present", "levels", "speaker_known"):
            assert np.array_equal(getattr(plain, name), getattr(both, name))

    def test_samples_that_lose_all_conditions_lose_the_streams_too(self) -> None:
        flow = FlowSettings(shares={"a2g": 1}, condition_dropout=0.3, condition_stream_dropout=0)
        plan = draw_plan(flow, 1, MANY, conditions=["emotion"])
        assert np.array_equal(plan.kept["emotion"], (plan.present & ~plan.target).any(axis=1))


def test_purposes_of_names_are_no_purposes_of_ours() -> None:
    purposes = {named_purpose(name) for name in ("emotion", "loudness", "scenario", "a")}
    assert len(purposes) == 4
    assert min(purposes) > max(Purpose)
    assert max(purposes) < 2**32
