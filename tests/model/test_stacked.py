"""The stacked trunk: losses and gradients of the separate streams, parameters that keep names and values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from flow_builders import CONFIG, gradients, model_of, windows_of
from torch import Tensor
from torch.nn import functional

from omniges.model.draws import FlowSettings, draw_plan
from omniges.model.flow import FlowModel
from omniges.model.spec import ModelConfig
from omniges.model.stacked import JoinedLinear, JoinedParameters, StackedTrunk, _RmsNorm, modulated
from omniges.model.trunk import modulate

CONFIGS = [
    CONFIG,
    replace(CONFIG, qk_norm="layer"),
    replace(CONFIG, qk_norm=None),
    replace(CONFIG, gesture_tokens="splines"),
]


def stacked(config: ModelConfig = CONFIG) -> FlowModel:
    model = model_of(config)
    model.stack_streams()
    return model


def values(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


class TestLosses:
    @pytest.mark.parametrize("config", CONFIGS)
    @pytest.mark.parametrize("batch", [2, 5, 16])
    def test_losses_and_gradients_are_those_of_separate_streams(self, config: ModelConfig, batch: int) -> None:
        positions, flow = list(range(batch)), FlowSettings(condition_noise=0.3)
        windows, plan = windows_of(positions), draw_plan(flow, 7, np.array(positions))
        apart, at_once = model_of(config), stacked(config)
        expected = apart(windows, plan, flow, 7)
        found = at_once(windows, plan, flow, 7, rounded=True)
        torch.testing.assert_close(found.each, expected.each, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.total, expected.total, rtol=1e-5, atol=0)
        for a, b in zip(gradients(at_once, found.total), gradients(apart, expected.total), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)

    def test_all_streams_are_computed_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, positions, flow = stacked(), list(range(16)), FlowSettings()
        monkeypatch.setattr(model.trunk, "forward", None)
        found = model(windows_of(positions), draw_plan(flow, 7, np.array(positions)), flow, 7, rounded=True)
        assert found.total.isfinite()

    def test_gradient_checkpointing_changes_nothing(self) -> None:
        positions, flow = list(range(8)), FlowSettings()
        plan, found = draw_plan(flow, 7, np.array(positions)), []
        for again in (False, True):
            model = stacked()
            model.trunk.gradient_checkpointing = again
            found.append(gradients(model, model(windows_of(positions), plan, flow, 7, rounded=True).total))
        for a, b in zip(*found, strict=True):
            assert torch.equal(a, b)

    def test_bfloat16_stays_near(self) -> None:
        positions, flow = list(range(16)), FlowSettings()
        windows, plan = windows_of(positions), draw_plan(flow, 7, np.array(positions))
        with torch.autocast("cpu", torch.bfloat16):
            expected = model_of()(windows, plan, flow, 7).total
            found = stacked()(windows, plan, flow, 7, rounded=True).total
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=0)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own parts
def test_the_compiled_pass_has_the_losses_and_gradients_of_separate_streams() -> None:
    """Needs a C++ compiler. Noise was NaN in it when its counters were written in parts."""
    config = replace(CONFIG, layers=1, gesture_tokens="splines")
    positions, flow = list(range(8)), FlowSettings()
    windows, plan = windows_of(positions), draw_plan(flow, 7, np.array(positions))
    apart, compiled = model_of(config), stacked(config)
    compiled.losses_of = torch.compile(compiled.losses_of, fullgraph=True, dynamic=False)
    expected = apart(windows, plan, flow, 7)
    found = compiled(windows, plan, flow, 7, rounded=True)
    torch.testing.assert_close(found.each, expected.each, rtol=1e-5, atol=1e-6)
    for a, b in zip(gradients(compiled, found.total), gradients(apart, expected.total), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


class TestParameters:
    def test_names_and_values_stay(self) -> None:
        before, after = model_of().state_dict(), stacked().state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_values_that_are_written_later_are_used(self) -> None:
        """As by an optimizer, or when a checkpoint is loaded."""
        positions, flow = list(range(8)), FlowSettings()
        plan, other = draw_plan(flow, 7, np.array(positions)), model_of()
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(0.9)
        model = stacked()
        model.load_state_dict(other.state_dict())
        found = model(windows_of(positions), plan, flow, 7, rounded=True).total
        torch.testing.assert_close(found, other(windows_of(positions), plan, flow, 7).total, rtol=1e-5, atol=0)

    def test_joined_layers_are_parts_of_one_tensor(self) -> None:
        layers = [[torch.nn.Linear(4, size) for size in (2, 3)] for _ in range(2)]
        x = values(2, 6, 4, seed=0)
        expected = torch.stack(
            [torch.cat([layer(own) for layer in of], dim=-1) for own, of in zip(x, layers, strict=True)]
        )
        joined = JoinedLinear.of(layers)
        torch.testing.assert_close(joined(x), expected)
        memory = joined.weight.tensor.untyped_storage().data_ptr()
        assert all(layer.weight.untyped_storage().data_ptr() == memory for of in layers for layer in of)

    def test_gradients_reach_the_part_they_belong_to(self) -> None:
        parts = [[torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(1))] for _ in range(2)]
        (JoinedParameters(parts)() * torch.arange(6.0).view(2, 3)).sum().backward()
        assert [[part.grad.tolist() for part in own] for own in parts] == [[[0, 1], [2]], [[3, 4], [5]]]

    @pytest.mark.parametrize("changes", [{"context_only": ("text",)}, {"conditioning": "split"}])
    def test_streams_with_other_layers_stay_apart(self, changes: dict[str, object]) -> None:
        assert not StackedTrunk.fits(model_of(replace(CONFIG, **changes)).trunk)


class TestNorms:
    def test_modulation_has_the_values_and_gradients_of_the_trunk(self) -> None:
        given = [values(3, 5, 7, 16, seed=1), values(3, 5, 1, 16, seed=2), values(3, 5, 1, 16, seed=3)]
        weight = values(3, 5, 7, 16, seed=4).detach()
        results = [function(*given) for function in (modulated, modulate)]
        torch.testing.assert_close(*results)
        for a, b in zip(*(torch.autograd.grad((x * weight).sum(), given) for x in results), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

    def test_a_large_mean_costs_no_accuracy(self) -> None:
        x = values(4, 16, seed=1).detach() + 100
        zeros = torch.zeros(4, 16)
        torch.testing.assert_close(modulated(x, zeros, zeros), modulate(x, zeros, zeros), rtol=1e-4, atol=1e-5)

    def test_norm_of_queries_and_keys_has_the_values_and_gradients_of_torch(self) -> None:
        given = [values(3, 5, 7, 2, 4, 8, seed=1), values(3, 1, 1, 2, 1, 8, seed=2)]
        weight = values(3, 5, 7, 2, 4, 8, seed=4).detach()
        results = [_RmsNorm.apply(*given, 1e-5), functional.rms_norm(given[0], (8,), eps=1e-5) * given[1]]
        torch.testing.assert_close(*results)
        for a, b in zip(*(torch.autograd.grad((x * weight).sum(), given) for x in results), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
