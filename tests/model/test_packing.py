"""Packing: rows are those that a plan needs; one pass equals the earlier groups; attention stays within samples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flow_builders import CONFIG, gradients, model_of, windows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from omniges.model.draws import FlowSettings, Plan, draw_plan
from omniges.model.flow import FlowModel, Windows, draw_noise
from omniges.model.packing import ByLayout, Rounded, batch_rows, on_device, rounded_up
from omniges.model.spec import GestureTokens, ModelConfig
from omniges.model.streams import STREAMS, noised
from omniges.model.tasks import TASKS

CPU = torch.device("cpu")
PLANS = st.builds(
    lambda seed, batch, dropout, noise: draw_plan(
        FlowSettings(condition_dropout=dropout, condition_noise=noise), seed, np.arange(batch)
    ),
    st.integers(0, 1000),
    st.integers(1, 40),
    st.floats(0, 1),
    st.floats(0, 1),
)


def earlier_groups(model: FlowModel, windows: Windows, plan: Plan, flow: FlowSettings, seed: int) -> Tensor:
    """Losses (B, 3) by groups: the samples of tasks between the same streams go through the trunk together.

    This is how losses were computed before the packed pass. Conditions that were dropped are masked.
    """
    named = np.array([[n in (*task.conditions, *task.targets) for n in STREAMS] for task in TASKS.values()])[plan.task]
    each = torch.zeros(len(plan.task), 3)
    for pattern in np.unique(named, axis=0):
        rows = np.flatnonzero((named == pattern).all(axis=1))
        columns = {n: k for k, n in enumerate(STREAMS) if pattern[k]}
        arrays = {n: windows.arrays[n][rows] for n in columns}
        clean = {n: model.stream(n).tokens(x) for n, x in arrays.items()}
        levels = {n: torch.from_numpy(plan.levels[rows, k]) for n, k in columns.items()}
        noise = {n: draw_noise(seed, windows.positions[rows], n, x.shape[1:]) for n, x in clean.items()}
        tokens = {
            n: torch.where((levels[n] > 0)[:, None, None], noised(x.detach(), noise[n], levels[n]), x)
            for n, x in clean.items()
        }
        present = {n: torch.from_numpy(plan.present[rows, k]) for n, k in columns.items()}
        speakers = windows.speakers[rows] * torch.from_numpy(plan.speaker_known[rows])
        outputs = model.trunk(
            tokens, levels, **model._places(tokens), packed=Rounded(present), pooled=None, speakers=speakers
        )
        for n, k in columns.items():
            targets = torch.from_numpy(np.flatnonzero(plan.target[rows, k]))
            if len(targets):
                losses = model.stream(n).losses(
                    outputs[n][targets], arrays[n][targets], clean[n].detach()[targets], noise[n][targets]
                )
                each = each.index_put((torch.from_numpy(rows)[targets], torch.tensor(k)), losses)
    return each


class TestLosses:
    @pytest.mark.parametrize("rounded", [False, True])
    @pytest.mark.parametrize(
        "config", [CONFIG, replace(CONFIG, qk_norm="layer"), replace(CONFIG, gesture_tokens="splines")]
    )
    @pytest.mark.parametrize("flow", [FlowSettings(), FlowSettings(condition_dropout=0.5, condition_noise=0.5)])
    def test_one_pass_has_the_losses_and_gradients_of_the_earlier_groups(
        self, flow: FlowSettings, config: ModelConfig, rounded: bool
    ) -> None:
        model, positions = model_of(config), list(range(16))
        windows, plan = windows_of(positions), draw_plan(flow, 7, np.array(positions))
        found = model(windows, plan, flow, 7, rounded=rounded)
        each = earlier_groups(model, windows, plan, flow, 7)
        torch.testing.assert_close(found.each, each.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.total, each.sum() / len(positions), rtol=1e-5, atol=0)
        model.zero_grad()
        expected = torch.autograd.grad(each.sum() / len(positions), list(model.parameters()), allow_unused=True)
        for a, b in zip(gradients(model, found.total), expected, strict=True):
            torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize("batch", [1, 2, 3, 5, 8])
    def test_rounding_changes_no_loss_of_small_batches(self, batch: int) -> None:
        model, flow = model_of(), FlowSettings()
        for first in range(0, 40, 8):
            positions = list(range(first, first + batch))
            plan = draw_plan(flow, 7, np.array(positions))
            exact, rounded = (model(windows_of(positions), plan, flow, 7, rounded=r) for r in (False, True))
            torch.testing.assert_close(rounded.each, exact.each, rtol=1e-5, atol=1e-6)

    @pytest.mark.slow
    @pytest.mark.timeout(400)
    @pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own parts
    @pytest.mark.parametrize("tokens", ["frames", "splines"])
    def test_the_rounded_pass_is_one_graph_without_breaks(self, tokens: GestureTokens) -> None:
        """Traced by torch.compile's front end, which raises at anything that depends on a value."""
        config = replace(CONFIG, layers=1, gesture_tokens=tokens)
        model, flow, positions = model_of(config), FlowSettings(), list(range(8))
        windows, plan = windows_of(positions), draw_plan(flow, 7, np.array(positions))
        plain = model(windows, plan, flow, 7, rounded=True)
        model.losses_of = torch.compile(model.losses_of, backend="eager", fullgraph=True, dynamic=False)
        traced = model(windows, plan, flow, 7, rounded=True)
        assert torch.equal(traced.each, plain.each)
        for a, b in zip(gradients(model, traced.total), gradients(model, plain.total), strict=True):
            assert torch.equal(a, b)


class TestRows:
    @given(PLANS)
    @settings(deadline=None, max_examples=50)
    def test_sorted_rows_are_those_of_the_plan_and_nothing_else(self, plan: Plan) -> None:
        found = batch_rows(plan, CPU, rounded=False)
        assert isinstance(found.packed, ByLayout)
        assert sum(found.packed.samples) == len(plan.task)
        every = torch.arange(len(plan.task))
        for k, name in enumerate(STREAMS):
            assert (name in found.streams) == plan.present[:, k].any()
            if name in found.streams:
                samples = found.packed.rows.get(name, every)
                assert sorted(samples.tolist()) == np.flatnonzero(plan.present[:, k]).tolist()
                assert set(samples[found.noised[name]].tolist()) == set(
                    np.flatnonzero(plan.present[:, k] & (plan.levels[:, k] > 0)).tolist()
                )
            if name in found.targets:
                chosen = found.noised[name][found.target_noise[name]]
                assert torch.equal(chosen, found.targets[name])
                assert sorted(samples[chosen].tolist()) == np.flatnonzero(plan.target[:, k]).tolist()
            else:
                assert not plan.target[:, k].any()

    @given(PLANS)
    @settings(deadline=None, max_examples=50)
    def test_rounded_rows_have_one_number_and_count_each_target_once(self, plan: Plan) -> None:
        found, batch = batch_rows(plan, CPU, rounded=True), len(plan.task)
        assert isinstance(found.packed, Rounded)
        counts = {len(x) for x in found.packed.rows.values()} or {batch}
        assert len(counts) == len({len(x) for x in found.targets.values()}) == 1
        every = torch.arange(batch)
        for k, name in enumerate(STREAMS):
            has = torch.from_numpy(plan.present[:, k])
            if name in found.packed.rows:
                rows, slots = found.packed.rows[name], found.packed.slots[name]
                assert torch.equal(rows[slots][has], every[has])
                assert found.packed.real[name].sum() == has.sum()
                assert set(rows.tolist()) == set(every[has].tolist())
            if name in found.targets:
                rows = found.packed.rows.get(name, every)
                counted = rows[found.targets[name]][found.counted[name]]
                assert sorted(counted.tolist()) == np.flatnonzero(plan.target[:, k]).tolist()

    @given(st.integers(1, 300), st.data())
    def test_few_numbers_of_rows_exist_and_none_is_too_small(self, batch: int, data: Any) -> None:
        count = data.draw(st.integers(1, batch))
        for parts in (1, 2, 4):
            assert count <= rounded_up(count, batch, parts) <= batch
            assert len({rounded_up(n, batch, parts) for n in range(1, batch + 1)}) <= parts

    def test_arrays_of_several_types_arrive_by_name(self) -> None:
        arrays = {"a": np.arange(6).reshape(2, 3), "b": np.array([True, False]), "c": np.array([], np.int64)}
        found = on_device(arrays, CPU)
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert np.array_equal(found[name].numpy(), array)
            assert found[name].numpy().dtype == array.dtype


class TestAttention:
    def test_a_sample_attends_to_its_own_tokens_alone(self) -> None:
        """Gradients of one sample's result by all inputs are zero outside of the sample."""
        generator = torch.Generator().manual_seed(0)
        layouts, samples = (("audio",), ("gesture", "audio")), (2, 3)
        rows = {"gesture": torch.tensor([0, 2, 4]), "audio": torch.tensor([1, 3, 0, 2, 4])}
        packed = ByLayout(layouts, samples, rows)
        counts = {"gesture": 2, "audio": 3}
        qk = {n: torch.randn(len(r), counts[n], 2, 2, 4, generator=generator) for n, r in rows.items()}
        value = {
            n: torch.randn(len(r), counts[n], 2, 4, generator=generator, requires_grad=True) for n, r in rows.items()
        }
        attended = packed.attend(qk, value)
        attended["gesture"][1].sum().backward()  # of sample 2
        for name, samples_of in rows.items():
            touched = value[name].grad.abs().amax(dim=(1, 2, 3)) > 0
            assert touched.tolist() == (samples_of == 2).tolist()
