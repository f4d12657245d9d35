"""The flow: batches cost the mean of their parts; no host synchronisation; gradients; closed forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flow_builders import CONFIG, Recorder, gradients, model_of, run, windows_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from omniges.model.draws import FlowSettings, draw_plan
from omniges.model.flow import Windows, draw_noise
from omniges.model.spec import build_model
from omniges.model.streams import STREAMS, noised
from omniges.model.tasks import TASKS


class TestBatches:
    def test_a_batch_costs_the_mean_of_its_parts_wherever_they_run(self):
        """So two ranks with half the batch, or two micro-steps, have the single process's loss and gradients."""
        model, flow = model_of(), FlowSettings(condition_noise=0.2)
        whole, _ = run(model, list(range(12)), flow)
        parts = [run(model, part, flow)[0] for part in (list(range(5, 11)), [0, 1, 2, 3, 4, 11])]
        torch.testing.assert_close(whole.total, (parts[0].total + parts[1].total) / 2)
        expected = gradients(model, whole.total)
        found = gradients(model, (parts[0].total + parts[1].total) / 2)
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)

    def test_total_is_the_weighted_mean_of_the_losses_of_targets(self):
        flow = FlowSettings(weights={"gesture": 2.0, "text": 0.5, "audio": 0.0})
        loss, plan = run(model_of(), list(range(16)), flow)
        weights = torch.tensor([flow.weights[name] for name in STREAMS])
        torch.testing.assert_close(loss.total, (loss.each * weights).sum() / 16)
        assert ((loss.each > 0).numpy() == plan.target).all()
        assert not loss.each.requires_grad

    @pytest.mark.parametrize("task", TASKS)
    def test_any_task_alone_gives_every_parameter_a_gradient(self, task):
        """Ranks that drew different tasks must have the same gradients to average."""
        model = model_of()
        loss, _ = run(model, [3], FlowSettings(shares={task: 1}))
        loss.total.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())

    def test_gradients_of_a_mixed_batch_reach_every_parameter(self):
        model = model_of()
        loss, _ = run(model, list(range(40)), FlowSettings())
        loss.total.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad.abs().max() > 0, name

    def test_bfloat16_stays_near(self):
        model = model_of()
        exact, _ = run(model, list(range(8)), FlowSettings())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough, _ = run(model, list(range(8)), FlowSettings())
        assert rough.total.dtype == torch.float32
        torch.testing.assert_close(rough.each, exact.each, rtol=0.1, atol=0.1)


class TestWhatTheTrunkSees:
    def test_dropped_conditions_are_absent_from_attention_at_the_rate_asked_for(self):
        """Counted where it counts: in the rows that the trunk is given."""
        model = model_of()
        model.trunk = Recorder(model.trunk)
        rate, samples = 0.3, 600
        run(model, list(range(samples)), FlowSettings(shares={"t2g": 1, "a2g": 1}, condition_dropout=rate))
        (call,) = model.trunk.calls
        assert len(call["tokens"]["gesture"]) == samples
        dropped = samples - len(call["tokens"]["text"]) - len(call["tokens"]["audio"])
        assert abs(dropped - rate * samples) < 5 * (rate * (1 - rate) * samples) ** 0.5

    def test_targets_are_noised_by_the_path_and_conditions_are_clean(self):
        model, positions = model_of(), list(range(10))
        recorder = model.trunk = Recorder(model.trunk)
        flow = FlowSettings(shares={"a2g": 1}, condition_dropout=0)
        windows, plan = windows_of(positions), draw_plan(flow, 7, np.array(positions))
        model(windows, plan, flow, 7)
        (call,) = recorder.calls
        audio = model.stream("audio").tokens(windows.arrays["audio"])
        gesture = model.stream("gesture").tokens(windows.arrays["gesture"])
        levels = torch.from_numpy(plan.levels[:, STREAMS.index("gesture")])
        noise = draw_noise(7, windows.positions, "gesture", gesture.shape[1:])
        assert torch.equal(call["tokens"]["audio"], audio)
        torch.testing.assert_close(call["tokens"]["gesture"], noised(gesture, noise, levels))
        assert call["tokens"].keys() == {"audio", "gesture"}
        assert torch.equal(call["levels"]["gesture"], levels)
        assert not call["levels"]["audio"].any()
        assert call["packed"].there == {}

    def test_unknown_speakers_are_zero(self):
        model = model_of()
        recorder = model.trunk = Recorder(model.trunk)
        run(model, list(range(8)), FlowSettings(shares={"joint": 1}, speaker_dropout=1.0))
        run(model, list(range(8)), FlowSettings(shares={"joint": 1}, speaker_dropout=0.0))
        assert not recorder.calls[0]["speakers"].any()
        assert torch.equal(recorder.calls[1]["speakers"], windows_of(list(range(8))).speakers)

    @pytest.mark.parametrize(("task", "learns"), [("g2t", False), ("t2g", True)])
    def test_embeddings_learn_from_conditions_and_not_from_noised_targets(self, task, learns):
        model = model_of()
        loss, _ = run(model, list(range(6)), FlowSettings(shares={task: 1}, condition_dropout=0))
        loss.total.backward()
        assert bool(model.streams["text"].piece.grad.any()) == learns


class NoValues(TorchDispatchMode):
    """Refuses every operation that makes the host wait for a value of the device, or whose shape depends on one."""

    REFUSED = ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "equal", "is_nonzero")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.REFUSED or (name == "index" and any(x is not None and x.dtype == torch.bool for x in args[1])):
            raise AssertionError(f"{name} asks for a value")
        return func(*args, **(kwargs or {}))


class TestNoHostSynchronisation:
    def test_the_guard_sees_what_it_should(self):
        for ask in (lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: bool(x.any()), lambda x: float(x[0])):
            with pytest.raises(AssertionError, match="asks for a value"), NoValues():
                ask(torch.ones(3))

    @pytest.mark.parametrize("rounded", [False, True])
    def test_a_step_never_asks_the_device_for_a_value(self, rounded):
        """Noise, trunk, losses, backward; the plan is drawn on the host before."""
        model, positions = model_of(), list(range(10))
        flow, windows = FlowSettings(condition_noise=0.3), windows_of(positions)
        plan = draw_plan(flow, 7, np.array(positions))
        with NoValues():
            loss = model(windows, plan, flow, 7, rounded=rounded)
            loss.total.backward()
        assert loss.total.isfinite()


@pytest.fixture
def gaussian() -> tuple[Tensor, Tensor, float, float]:
    """Many scalars of N(0.7, 0.5²) and as much noise."""
    generator = torch.Generator().manual_seed(0)
    mean, std = 0.7, 0.5
    x = mean + std * torch.randn(1, 200_000, 1, generator=generator, dtype=torch.float64)
    return x, torch.randn(x.shape, generator=generator, dtype=torch.float64), mean, std


class TestClosedForms:
    """Gaussian data x ~ N(m, s²): with D = (1−σ)² s² + σ², E[x | x_σ] = m + (1−σ) s² / D · (x_σ − (1−σ) m)."""

    @pytest.mark.parametrize("level", [0.05, 0.3, 0.7, 0.99])
    def test_least_squares_finds_the_optimal_clean_prediction_and_velocity(self, gaussian, level):
        x, noise, mean, std = gaussian
        at = noised(x, noise, torch.tensor([level])).flatten().numpy()
        spread = (1 - level) ** 2 * std**2 + level**2
        slope = (1 - level) * std**2 / spread
        fitted = np.polynomial.polynomial.polyfit(at, x.flatten().numpy(), 1)
        np.testing.assert_allclose(fitted, [mean - slope * (1 - level) * mean, slope], atol=0.02)
        velocity = np.polynomial.polynomial.polyfit(at, (noise - x).flatten().numpy(), 1)
        steep = (level - (1 - level) * std**2) / spread
        np.testing.assert_allclose(velocity, [-mean - steep * (1 - level) * mean, steep], atol=0.03)

    @pytest.mark.parametrize("prediction", ["clean", "velocity"])
    @pytest.mark.parametrize("level", [0.2, 0.8])
    def test_the_loss_of_the_optimal_prediction_is_its_variance_and_none_is_better(self, gaussian, level, prediction):
        from omniges.model.streams import FrameTokens

        x, noise, mean, std = gaussian
        stream = FrameTokens(frames=1, mean=[0.0], std=[1.0], prediction=prediction)
        levels = torch.tensor([level])
        at = noised(x, noise, levels)
        spread = (1 - level) ** 2 * std**2 + level**2
        best = mean + (1 - level) * std**2 / spread * (at - (1 - level) * mean)
        if prediction == "velocity":
            best = (at - best) / level
        variance = std**2 / spread * (level**2 if prediction == "clean" else 1)

        def cost(output: Tensor) -> float:
            return float(stream.losses(output, x, x, noise))

        assert cost(best) == pytest.approx(variance, rel=0.02)
        for worse in (best + 0.1, 1.1 * best, 0.9 * best):
            assert cost(worse) > cost(best)


class TestOnShards:
    @pytest.mark.slow
    def test_all_tasks_run_on_real_shards_and_learning_lowers_the_loss(self, shards: Path):
        """Twenty steps on the small corpus; the long test learns for minutes."""
        from omniges.features.text_tokens import TextTokenCodec
        from omniges.shards.reader import ShardFolder

        folder = ShardFolder(shards)
        codec = TextTokenCodec((shards / "tokenizer.json").read_bytes())
        samples = [folder.sample(row) for row in folder.rows if row.split == "train"]
        ticks = 30
        arrays = {
            "gesture": torch.stack([torch.from_numpy(s.gesture.gesture[: 3 * ticks].copy()) for s in samples]),
            "audio": torch.stack([torch.from_numpy(s.mel[: 10 * ticks].copy()) for s in samples]),
            "text": torch.stack([torch.from_numpy(codec.encode(s.words, 1000).ids[:ticks]) for s in samples]),
        }
        torch.manual_seed(0)
        found = json.loads((shards / "stats.json").read_bytes())
        model = build_model(CONFIG, statistics=found, vocab_size=codec.vocab_size, speakers=2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        flow, history = FlowSettings(), []
        for step in range(20):
            positions = np.arange(16) + 16 * step
            rows = torch.from_numpy(positions % len(samples))
            windows = Windows({n: a[rows] for n, a in arrays.items()}, torch.from_numpy(positions), rows * 0)
            loss = model(windows, draw_plan(flow, 1, positions), flow, 1)
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
            history.append(loss.total.item())
        assert np.mean(history[-3:]) < 0.8 * np.mean(history[:3])
