"""Sampling: Euler against the exact flow of Gaussian data, guidance, what is left out, independence of the batch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from flow_builders import CONFIG, TICKS, VOCAB_SIZE, Draws, draw_levels, model_of, sample, statistics, windows_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from omniges.errors import UsageFault
from omniges.features.gesture import LAYOUT
from omniges.model.draws import FlowSettings, Purpose
from omniges.model.flow import integrate, step_levels
from omniges.model.spec import build_model
from omniges.model.tasks import SamplingSettings

MEAN, STD = 0.7, 0.5
EVEN = {"shift": 1.0, "sigma_min": 0.0}


def optimal(tokens: Mapping[str, Tensor], levels: Tensor) -> dict[str, Tensor]:
    """E[x | x_σ] for data N(MEAN, STD²)."""
    (level,) = set(levels.tolist())
    spread = (1 - level) ** 2 * STD**2 + level**2
    return {n: MEAN + (1 - level) * STD**2 / spread * (x - (1 - level) * MEAN) for n, x in tokens.items()}


def draws(count: int = 4, first: int = 0) -> Draws:
    positions = torch.arange(first, first + count)
    return Draws(TICKS, 5, positions, torch.zeros(count, dtype=torch.int64))


class TestEuler:
    def test_it_converges_to_the_exact_flow_at_first_order(self):
        """The flow of Gaussian data carries noise ε at σ = 1 to MEAN + STD · ε at σ = 0."""
        noise = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
        errors = []
        for steps in (20, 40, 80, 160):
            found = integrate(
                {"gesture": noise}, step_levels(SamplingSettings(num_inference_steps=steps, **EVEN)), optimal
            )["gesture"]
            errors.append(float((found - (MEAN + STD * noise)).abs().max()))
        assert errors[0] < 0.1
        for coarse, fine in itertools.pairwise(errors):
            assert 1.6 < coarse / fine < 2.4

    def test_half_way_it_is_at_the_marginal_of_its_level(self):
        """Standard deviation √((1−σ)² s² + σ²) and mean (1−σ) m at each level."""
        noise = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
        levels = [level for level in step_levels(SamplingSettings(num_inference_steps=400, **EVEN)) if level >= 0.5]
        found = integrate({"gesture": noise}, levels, optimal)["gesture"]
        expected = 0.5 * MEAN + math.sqrt(0.25 * STD**2 + 0.25) * noise
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)

    @pytest.mark.parametrize("steps", [1, 3, 20])
    def test_a_known_point_is_reached_exactly_in_any_number_of_steps(self, steps):
        point = torch.randn(3, 2)
        found = integrate(
            {"text": torch.randn(3, 2)},
            step_levels(SamplingSettings(num_inference_steps=steps)),
            lambda *_: {"text": point},
        )
        torch.testing.assert_close(found["text"], point)

    @pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
    @pytest.mark.parametrize("sigma_min", [0.0, 0.05])
    def test_levels_go_down_from_one_to_zero_by_the_shift(self, shift, sigma_min):
        levels = step_levels(SamplingSettings(num_inference_steps=10, shift=shift, sigma_min=sigma_min))
        for k, level in enumerate(levels):
            even = 1 - k / 10
            assert level == pytest.approx(shift * even / (1 + (shift - 1) * even), abs=1e-12)

    @given(st.integers(1, 200), st.floats(0.2, 10), st.floats(0, 0.99))
    def test_no_step_begins_below_the_sigma_min(self, steps, shift, sigma_min):
        levels = step_levels(SamplingSettings(num_inference_steps=steps, shift=shift, sigma_min=sigma_min))
        assert (levels[0], levels[-1], len(levels)) == (1.0, 0.0, steps + 1)
        assert all(a > b for a, b in itertools.pairwise(levels))
        assert levels[-2] >= sigma_min - 1e-12
        unshifted = [level / (shift - (shift - 1) * level) for level in levels[:-1]]
        np.testing.assert_allclose(np.diff(unshifted), (unshifted[-1] - 1) / max(steps - 1, 1), atol=1e-9)
        plain = shift / steps / (1 + (shift - 1) / steps)
        assert levels[-2] == pytest.approx(max(plain, sigma_min))

    def test_the_default_steps_begin_at_levels_that_models_are_trained_at(self):
        last = step_levels(SamplingSettings())[-2]
        trained = draw_levels(FlowSettings(), 0, np.arange(100_000), Purpose.LEVEL_GESTURE)
        assert (trained < last).mean() > 0.01


class TestSample:
    @pytest.mark.parametrize(
        ("conditions", "targets"),
        [
            ((), ("gesture", "text", "audio")),
            (("text",), ("gesture",)),
            (("text", "audio"), ("gesture",)),
            (("audio",), ("gesture", "text")),
        ],
    )
    def test_any_streams_from_any_others_as_arrays_of_the_shards(self, conditions, targets):
        model, windows = model_of().eval(), windows_of([0, 1, 2, 3])
        given = {name: windows.arrays[name] for name in conditions}
        found = sample(model, given, targets, draws(), SamplingSettings(num_inference_steps=3, guidance_scale=2.0))
        shapes = {"gesture": (4, 3 * TICKS, 415), "audio": (4, 10 * TICKS, 64), "text": (4, TICKS)}
        assert {name: tuple(array.shape) for name, array in found.items()} == {name: shapes[name] for name in targets}
        if "text" in found:
            assert 0 <= found["text"].min() <= found["text"].max() <= 4 * VOCAB_SIZE

    def test_a_sample_is_the_same_alone_and_in_a_batch(self):
        model, windows = model_of().eval(), windows_of([0, 1, 2, 3])
        whole = sample(
            model, {"text": windows.arrays["text"]}, ["gesture"], draws(), SamplingSettings(num_inference_steps=4)
        )
        alone = sample(
            model,
            {"text": windows.arrays["text"][2:3]},
            ["gesture"],
            draws(1, first=2),
            SamplingSettings(num_inference_steps=4),
        )
        torch.testing.assert_close(whole["gesture"][2:3], alone["gesture"], rtol=1e-4, atol=1e-4)

    def test_an_untrained_model_gives_the_mean_of_the_data(self):
        """Its clean prediction is zero, which is the mean of normalised data."""
        model = build_model(CONFIG, statistics=statistics(), vocab_size=VOCAB_SIZE, speakers=2).eval()
        found = sample(model, {}, ["gesture"], draws(), SamplingSettings(num_inference_steps=5))["gesture"]
        torch.testing.assert_close(found, torch.full((4, 3 * TICKS, LAYOUT.channels), 0.5), rtol=0, atol=1e-5)

    @pytest.mark.parametrize(
        "changes",
        [
            {"num_inference_steps": 0},
            {"shift": 0.0},
            {"guidance_scale": -1.0},
            {"guidance_scale": math.nan},
            {"shift": math.inf},
            {"sigma_min": 1.0},
        ],
    )
    def test_settings_that_cannot_be_are_refused(self, changes):
        with pytest.raises(UsageFault, match=rf"^{next(iter(changes))} .*: expected"):
            SamplingSettings(**changes)


class TestGuidance:
    """A stand-in predicts 3 with conditions and 1 without, and notes what it saw."""

    @pytest.mark.parametrize(("guidance", "expected", "calls"), [(0.0, 1, 1), (1.0, 3, 1), (2.0, 5, 2), (0.5, 2, 2)])
    def test_it_goes_on_along_the_difference_and_leaves_conditions_out(self, monkeypatch, guidance, expected, calls):
        model, seen = model_of(), []

        def predict(tokens: Any, levels: Any, targets: Any, speakers: Any, present: Any, described: Any) -> Any:
            seen.append(set(tokens))
            assert set(levels) == set(tokens)
            value = 3.0 if "text" in tokens else 1.0
            return {name: torch.full_like(tokens[name], value) for name in targets}

        monkeypatch.setattr(model, "predict", predict)
        text = windows_of([0, 1, 2, 3]).arrays["text"]
        settings = SamplingSettings(num_inference_steps=2, guidance_scale=guidance)
        found = sample(model, {"text": text}, ["gesture"], draws(), settings)["gesture"]
        torch.testing.assert_close(found, torch.full_like(found, 0.5 + 2.0 * expected))
        assert len(seen) == 2 * calls
        assert ({"gesture"} in seen) == (guidance != 1)
        assert ({"gesture", "text"} in seen) == (guidance != 0)


class TestHeun:
    def test_it_converges_to_the_exact_flow_at_second_order(self):
        noise = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
        errors = []
        for steps in (20, 40, 80, 160):
            # To level 0.1: the last step, at whose end there is no velocity, is of first order.
            levels = [1 - 0.9 * k / steps for k in range(steps + 1)]
            found = integrate({"gesture": noise}, levels, optimal, "heun")["gesture"]
            expected = 0.9 * MEAN + math.sqrt(0.81 * STD**2 + 0.01) * noise
            errors.append(float((found - expected).abs().max()))
        for coarse, fine in itertools.pairwise(errors):
            assert 3.3 < coarse / fine < 4.7
        assert errors[0] < 1e-2


class TestDpmSolver:
    @pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers with numpy 2
    def test_its_steps_are_those_of_the_scheduler_of_diffusers(self):
        """`DPMSolverMultistepScheduler` on the same levels, from 0.98, for λ has no beginning at 1."""
        levels = [0.98, 0.9, 0.7, 0.45, 0.2, 0.0]
        start = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]

        def clean(x: Any, at: Any) -> Any:
            return {"gesture": torch.tanh(2 * x["gesture"]) + at[:, None]}

        scheduler = DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction", algorithm_type="dpmsolver++", solver_order=2
        )
        scheduler.set_timesteps(len(levels) - 1)
        scheduler.sigmas = torch.tensor(levels, dtype=torch.float64)
        expected = start
        for level, step in zip(levels, scheduler.timesteps, strict=False):
            expected_clean = clean({"gesture": expected}, torch.full((9,), level))["gesture"]
            velocity = (expected - expected_clean) / level
            expected = scheduler.step(velocity, step, expected).prev_sample
        found = integrate({"gesture": start}, levels, clean, "dpm++")["gesture"]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)

    def test_it_takes_one_evaluation_a_step_and_comes_nearer_than_euler(self):
        noise = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
        errors: dict[str, float] = {}
        for solver in ("euler", "dpm++"):
            calls = 0

            def counted(tokens: Any, at: Any) -> Any:
                nonlocal calls
                calls += 1
                return optimal(tokens, at)

            levels = step_levels(SamplingSettings(num_inference_steps=16, **EVEN))
            found = integrate({"gesture": noise}, levels, counted, solver)["gesture"]
            assert calls == 16
            errors[solver] = float((found - (MEAN + STD * noise)).abs().max())
        assert errors["dpm++"] < errors["euler"] / 2

    def test_the_callback_runs_after_each_step(self):
        calls = []
        point = {"text": torch.zeros(2, 3)}
        for solver in ("euler", "heun", "dpm++"):
            integrate(point, [1.0, 0.5, 0.0], lambda x, _: x, solver, lambda: calls.append(1))
        assert len(calls) == 6
