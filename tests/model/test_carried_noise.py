"""Models that know no absent stream: it is there as noise at level 1, in training, sampling and guidance."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from flow_builders import TICKS, Draws, Recorder, gradients, model_of, run, sample, windows_of
from torch import Tensor

from omniges.generation.long_form import Timeline, WindowSettings, sample_timelines
from omniges.model.draws import FlowSettings, draw_plan
from omniges.model.flow import FlowModel, draw_noise, step_levels
from omniges.model.spec import ModelConfig
from omniges.model.streams import STREAMS
from omniges.model.tasks import TASKS, SamplingSettings

CONFIG = ModelConfig(
    width=16,
    layers=2,
    heads=2,
    piece_width=12,
    mark_width=4,
    rotary_periods_s=None,
    pooled_width=6,
    text_head_width=20,
    context_only=("text",),
    absent="noise",
)
SEED = 7


def recorded() -> tuple[FlowModel, Recorder]:
    model = model_of(CONFIG).eval()
    recorder = Recorder(model.trunk)
    model.trunk = recorder
    return model, recorder


class TestTraining:
    def test_every_call_has_all_streams_and_what_is_absent_is_its_noise_at_level_one(self) -> None:
        model, recorder = recorded()
        positions = list(range(24))
        flow = FlowSettings(condition_dropout=0.3)
        plan = draw_plan(flow, SEED, np.array(positions))
        model(windows_of(positions), plan, flow, SEED)
        (call,) = recorder.calls
        assert set(call["tokens"]) == set(call["levels"]) == set(STREAMS)
        assert call["packed"].there == call["packed"].rows == {}
        for k, name in enumerate(STREAMS):
            absent = np.flatnonzero(~plan.present[:, k])
            assert len(absent) > 3
            assert call["levels"][name][absent].eq(1).all()
            noise = draw_noise(SEED, torch.tensor(positions)[absent], name, call["tokens"][name].shape[1:])
            torch.testing.assert_close(call["tokens"][name][absent], noise)

    def test_positions_are_sines_of_the_time_in_ticks_and_the_pooled_vector_is_none(self) -> None:
        model, recorder = recorded()
        run(model, [0, 1], FlowSettings())
        (call,) = recorder.calls
        assert set(call["added"]) == set(STREAMS)
        assert "seconds" not in call
        assert not call["pooled"].any()
        for tick in range(TICKS):
            for j in range(8):
                angle = (tick + 0.5) / 10_000 ** (j / 8)
                row = call["added"]["gesture"][tick]
                assert float(row[j]) == pytest.approx(math.sin(angle), abs=1e-5)
                assert float(row[8 + j]) == pytest.approx(math.cos(angle), abs=1e-5)

    @pytest.mark.parametrize("task", TASKS)
    def test_any_task_alone_gives_every_parameter_a_gradient(self, task: str) -> None:
        model = model_of(CONFIG)
        loss, _ = run(model, [3], FlowSettings(shares={task: 1}))
        assert loss.total.isfinite()
        assert len(gradients(model, loss.total)) == len(list(model.parameters()))

    def test_a_batch_costs_the_mean_of_its_parts(self) -> None:
        model, flow = model_of(CONFIG), FlowSettings()
        whole, _ = run(model, list(range(12)), flow)
        parts = [run(model, part, flow)[0].total for part in (list(range(6)), list(range(6, 12)))]
        torch.testing.assert_close(whole.total, (parts[0] + parts[1]) / 2)

    def test_bfloat16_stays_near(self) -> None:
        model = model_of(CONFIG)
        exact, _ = run(model, list(range(8)), FlowSettings())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough, _ = run(model, list(range(8)), FlowSettings())
        torch.testing.assert_close(rough.each, exact.each, rtol=0.1, atol=0.1)


def draws(count: int = 3) -> Draws:
    return Draws(TICKS, SEED, torch.arange(count), torch.tensor([1, 2, 0][:count]))


def restated(model: FlowModel, given: Mapping[str, Tensor], targets: list[str], guidance: float, steps: int) -> Any:
    """Euler over (x − x̂)/σ, with one fixed draw for what is not given; guidance against conditions that are noise."""
    own = draws()
    shift = SamplingSettings().shift
    even = [1 - k / steps for k in range(steps + 1)]
    levels = [shift * u / (1 + (shift - 1) * u) for u in even]
    noise = {n: draw_noise(SEED, own.positions, n, (TICKS, model.stream(n).channels)) for n in STREAMS}
    clean = {n: model.stream(n).tokens(array) for n, array in given.items()}
    x = {n: noise[n] for n in targets}

    def expected(at: float, *, conditional: bool) -> dict[str, Tensor]:
        tokens, times = {}, {}
        for n in STREAMS:
            if n in targets:
                tokens[n], times[n] = x[n], at
            elif n in clean and conditional:
                tokens[n], times[n] = clean[n], 0.0
            else:
                tokens[n], times[n] = noise[n], 1.0
        out = model.trunk(
            tokens,
            {n: torch.full((3,), t) for n, t in times.items()},
            added={n: model.stream(n).positions(TICKS, 16) for n in STREAMS},
            pooled=torch.zeros(3, 6),
            speakers=own.speakers,
        )
        return {n: model.stream(n).clean(out[n], tokens[n], torch.full((3,), times[n])) for n in targets}

    for at, following in itertools.pairwise(levels):
        with_conditions, without = expected(at, conditional=True), expected(at, conditional=False)
        guided = {n: without[n] + guidance * (with_conditions[n] - without[n]) for n in targets}
        x = {n: x[n] + (following - at) * (x[n] - guided[n]) / at for n in targets}
    return {n: model.stream(n).arrays(tokens) for n, tokens in x.items()}


class TestSampling:
    @pytest.mark.parametrize("guidance", [1.0, 2.5])
    @pytest.mark.parametrize(
        ("conditions", "targets"),
        [
            (("text",), ["gesture"]),
            (("audio",), ["gesture"]),
            (("gesture",), ["audio"]),
            (("audio", "text"), ["gesture"]),
            ((), ["gesture", "audio"]),
        ],
    )
    @torch.no_grad()
    def test_it_is_the_plain_loop_of_the_reference(
        self, conditions: tuple[str, ...], targets: list[str], guidance: float
    ) -> None:
        model = model_of(CONFIG).eval()
        given: dict[Any, Tensor] = {name: windows_of([0, 1, 2]).arrays[name] for name in conditions}
        found = sample(model, given, targets, draws(), SamplingSettings(num_inference_steps=3, guidance_scale=guidance))
        expected = restated(model, given, targets, guidance, 3)
        for name in targets:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-3)

    def test_what_is_absent_stays_the_same_noise_at_all_steps(self) -> None:
        model, recorder = recorded()
        text = windows_of([0, 1, 2]).arrays["text"]
        sample(model, {"text": text}, ["gesture"], draws(), SamplingSettings(num_inference_steps=3))
        assert len(recorder.calls) == len(step_levels(SamplingSettings(num_inference_steps=3))) - 1
        for call in recorder.calls:
            assert call["levels"]["audio"].eq(1).all()
            assert call["levels"]["text"].eq(0).all()
            assert torch.equal(call["tokens"]["audio"], recorder.calls[0]["tokens"]["audio"])

    def test_without_the_noise_a_prediction_is_refused(self) -> None:
        model = model_of(CONFIG)
        with pytest.raises(ValueError, match="pass tokens of text, audio"):
            model.predict({"gesture": torch.zeros(1, TICKS, 1245)}, {}, ["gesture"], torch.zeros(1, dtype=torch.int64))

    def test_any_length_in_windows_carries_the_same_noise_where_windows_overlap(self) -> None:
        model, recorder = recorded()
        timeline = Timeline(11, {"text": lambda _first, count: np.zeros(count, np.int32)}, 0, 0)
        windows = WindowSettings(window_ticks=TICKS, overlap_ticks=2)
        generated = list(
            sample_timelines(model, [timeline], ["gesture"], SEED, windows, SamplingSettings(num_inference_steps=2))
        )
        assert sum(ticks for _, _, ticks in generated) == 11
        first = recorder.calls[0]["tokens"]["audio"]  # windows begin at ticks 0, 4 and 5
        assert torch.equal(first[0, 4:], first[1, :2])
        for call in recorder.calls:
            assert set(call["tokens"]) == set(STREAMS)
            assert call["levels"]["audio"].eq(1).all()
            assert torch.equal(call["tokens"]["audio"], first)
