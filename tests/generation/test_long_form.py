"""Windows of one timeline: they cover it, blend to one, hold what is known, and no cut of the work shows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from omniges.errors import DataError, UsageFault
from omniges.generation.long_form import (
    Timeline,
    WindowSettings,
    blend_weights,
    fade_in,
    sample_timelines,
    window_borders,
    window_spans,
    window_starts,
)
from omniges.model.flow import FlowModel
from omniges.model.tasks import SamplingSettings

WINDOWS = st.integers(1, 40).flatmap(lambda window: st.tuples(st.just(window), st.integers(0, window // 2)))


@settings(max_examples=200, deadline=None)
@given(WINDOWS, st.integers(1, 400))
def test_windows_cover_every_tick_and_share_at_least_the_overlap(window_overlap: tuple[int, int], ticks: int) -> None:
    window, overlap = window_overlap
    window, overlap = min(window, ticks), min(overlap, min(window, ticks) // 2)
    starts = window_starts(ticks, window, overlap)
    assert starts[0] == 0
    assert starts[-1] + window == ticks
    for before, after in itertools.pairwise(starts):
        assert before < after
        assert before + window - after >= overlap


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 20), st.integers(1, 150), st.sampled_from([1, 2, 4]))
def test_windows_that_are_apart_touch_and_none_is_shorter_than_half_of_one(
    units: int, length: int, multiple: int
) -> None:
    window, ticks = units * multiple, length * multiple
    disjoint = WindowSettings(window_ticks=window, overlap_ticks=0, tick_multiple=multiple, disjoint=True)
    spans = window_spans(ticks, disjoint)
    assert [start for start, _ in spans] == list(itertools.accumulate((n for _, n in spans[:-1]), initial=0))
    assert sum(count for _, count in spans) == ticks
    assert all(count % multiple == 0 and 0 < count <= window for _, count in spans)
    assert all(count == window for _, count in spans[:-2])
    if ticks > window:
        assert 2 * min(count for _, count in spans) >= window
        assert len(spans) == -(-ticks // window)
    else:
        assert spans == [(0, ticks)]


def test_windows_that_are_apart_do_not_overlap() -> None:
    with pytest.raises(UsageFault, match=r"--overlap-ticks 2: expected 0, because"):
        WindowSettings(window_ticks=8, overlap_ticks=2, disjoint=True)


def test_borders_are_all_beginnings_and_ends_within() -> None:
    assert window_borders([(0, 7), (4, 7), (6, 7)]) == [4, 6, 7, 11]
    assert window_borders([(0, 5), (5, 5)]) == [5]
    assert window_borders([(0, 5)]) == []


@settings(max_examples=100, deadline=None)
@given(WINDOWS, st.integers(1, 400))
def test_weights_of_each_tick_sum_to_one_and_none_is_negative(window_overlap: tuple[int, int], ticks: int) -> None:
    window, overlap = window_overlap
    window, overlap = min(window, ticks), min(overlap, min(window, ticks) // 2)
    starts = window_starts(ticks, window, overlap)
    weights = blend_weights(starts, window)
    total = np.zeros(ticks)
    for start, row in zip(starts, weights, strict=True):
        total[start : start + window] += row
    np.testing.assert_allclose(total, 1, rtol=0, atol=1e-12)
    assert (weights >= 0).all()


def test_one_window_fades_into_the_next_along_a_raised_cosine() -> None:
    weights = blend_weights([0, 4], 7)
    quarter = np.sqrt(0.5) / 2  # of 1 − cos(π t) over 2 at t = 1/4, 1/2, 3/4
    np.testing.assert_allclose(weights[0], [1, 1, 1, 1, 0.5 + quarter, 0.5, 0.5 - quarter])
    np.testing.assert_allclose(weights[1], [0.5 - quarter, 0.5, 0.5 + quarter, 1, 1, 1, 1])


@given(st.integers(0, 200))
def test_a_fade_rises_is_its_own_mirror_and_begins_flatter_than_a_straight_one(ticks: int) -> None:
    fade = fade_in(ticks)
    assert len(fade) == ticks
    assert (np.diff(fade) > 0).all()
    np.testing.assert_allclose(fade + fade[::-1], 1, rtol=0, atol=1e-12)
    if ticks > 1:
        assert 0 < fade[0] < 1 / (ticks + 1)


def test_an_overlap_of_more_than_half_a_window_is_refused() -> None:
    with pytest.raises(UsageFault, match="--overlap-ticks 6: expected 0 to 5, half of a window"):
        WindowSettings(window_ticks=10, overlap_ticks=6)


class Plain(torch.nn.Module):
    """A stream whose tokens are its arrays (n, 2), some for each tick."""

    channels = 2
    complete_windows = False

    def __init__(self, tokens_per_tick: Fraction = Fraction(1), tokens_at_once: int = 1) -> None:
        super().__init__()
        self.tokens_per_tick, self.tokens_at_once = tokens_per_tick, tokens_at_once

    def count(self, ticks: int) -> int:
        found = ticks * self.tokens_per_tick
        assert found.denominator == 1
        return int(found)

    def tokens(self, arrays: Tensor) -> Tensor:
        return arrays

    def arrays(self, tokens: Tensor) -> Tensor:
        return tokens


class PerTick(torch.nn.Module):
    """Expects of each tick three times what its condition says, so that the answer is known whatever the windows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.calls: list[int] = []

    def stream(self, _name: str) -> Plain:
        return Plain()

    def carried(self, _targets: Sequence[str]) -> list[str]:
        return []

    def known_parts(self, _bits: object) -> None:
        """Nothing is absent."""

    def predict(
        self, tokens: Mapping[str, Tensor], _levels: Any, targets: Sequence[str], *_about: object
    ) -> dict[str, Tensor]:
        self.calls.append(len(tokens["audio"]))
        return dict.fromkeys(targets, 3 * tokens["audio"])


RATES = {"audio": Fraction(5, 2), "gesture": Fraction(3, 4), "text": Fraction(1)}


class ThreeRates(PerTick):
    """Expects of each token of two streams the number of its tick, which the condition, of a third rate, tells."""

    def stream(self, name: str) -> Plain:
        return Plain(RATES[name])

    def predict(
        self, tokens: Mapping[str, Tensor], _levels: Any, targets: Sequence[str], *_about: object
    ) -> dict[str, Tensor]:
        found = {}
        for name in targets:
            rows = tokens["audio"][:, :, :1]
            ticks = rows[:, (torch.arange(rows.shape[1] * 2 // 5) * 2.5).ceil().long()]  # the window's, one a row
            places = (torch.arange(tokens[name].shape[1]) / float(RATES[name])).long()
            found[name] = ticks[:, places].expand(-1, -1, 2)
        return found


class ByWindow(PerTick):
    """Expects everywhere the first condition of the window: windows disagree."""

    def predict(
        self, tokens: Mapping[str, Tensor], _levels: Any, targets: Sequence[str], *_about: object
    ) -> dict[str, Tensor]:
        return {name: tokens["audio"][:, :1].expand_as(tokens["audio"]) for name in targets}


class Whole(Plain):
    """Three tokens for a window, whatever its length."""

    complete_windows = True

    def count(self, ticks: int) -> int:
        return 3


class WholeWindows(PerTick):
    """Expects of a window's three tokens of text where the window begins, and of each tick of gesture as `PerTick`."""

    def stream(self, name: str) -> Plain:
        return Whole() if name == "text" else Plain()

    def predict(
        self, tokens: Mapping[str, Tensor], _levels: Any, targets: Sequence[str], *_about: object
    ) -> dict[str, Tensor]:
        said = {"text": tokens["audio"][:, :1].expand(-1, 3, -1), "gesture": 3 * tokens["audio"]}
        return {name: said[name] for name in targets}


class ThreeAtOnce(PerTick):
    """Windows disagree, and each generated tick has three tokens."""

    def stream(self, name: str) -> Plain:
        return Plain(Fraction(3), 3) if name == "gesture" else Plain()

    def predict(
        self, tokens: Mapping[str, Tensor], _levels: Any, targets: Sequence[str], *_about: object
    ) -> dict[str, Tensor]:
        return {name: tokens["audio"][:, :1].expand_as(tokens[name]) for name in targets}


def timeline(ticks: int, sample: int = 0) -> Timeline:
    counted = torch.arange(ticks, dtype=torch.float32)[:, None].expand(-1, 2)
    return Timeline(ticks, {"audio": lambda first, count: counted[first : first + count].numpy()}, 0, sample)


def made(
    model: Any, timelines: Sequence[Timeline], windows: WindowSettings, **sampling: Any
) -> dict[int, torch.Tensor]:
    found: dict[int, list[torch.Tensor]] = {}
    for number, arrays, ticks in sample_timelines(
        cast("FlowModel", model), timelines, ("gesture",), 1, windows, SamplingSettings(**sampling)
    ):
        assert len(arrays["gesture"]) == ticks
        found.setdefault(number, []).append(arrays["gesture"])
    return {number: torch.cat(parts) for number, parts in found.items()}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=4),
    st.integers(0, 4),
    st.integers(1, 4),
    st.sampled_from(["euler", "heun"]),
)
def test_ticks_come_out_in_order_whatever_the_windows(
    lengths: list[int], overlap: int, windows: int, solver: str
) -> None:
    settings = WindowSettings(window_ticks=9, overlap_ticks=overlap, windows=windows)
    timelines = [timeline(ticks, k) for k, ticks in enumerate(lengths)]
    found = made(PerTick(), timelines, settings, num_inference_steps=3, solver=solver)
    for number, ticks in enumerate(lengths):
        torch.testing.assert_close(
            found[number], 3 * torch.from_numpy(timeline(ticks).conditions["audio"](0, ticks)), rtol=1e-5, atol=1e-4
        )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=3), st.sampled_from([0, 4]), st.integers(1, 3))
def test_streams_of_several_rates_come_out_in_order_whatever_the_windows(
    units: list[int], overlap: int, windows: int
) -> None:
    settings = WindowSettings(window_ticks=12, overlap_ticks=overlap, windows=windows, tick_multiple=4)
    timelines = []
    for sample, unit in enumerate(units):
        rows = (torch.arange(10 * unit, dtype=torch.float32) / 2.5).floor()  # the tick that each row begins in
        array = rows[:, None].expand(-1, 2).numpy()
        conditions = {"audio": lambda first, count, array=array: array[first * 5 // 2 : (first + count) * 5 // 2]}
        timelines.append(Timeline(4 * unit, conditions, 0, sample))
    found: dict[tuple[int, str], list[torch.Tensor]] = {}
    for number, arrays, _ in sample_timelines(
        cast("FlowModel", ThreeRates()),
        timelines,
        ("gesture", "text"),
        1,
        settings,
        SamplingSettings(num_inference_steps=3),
    ):
        for name, array in arrays.items():
            found.setdefault((number, name), []).append(array)
    for (number, name), parts in found.items():
        count = int(4 * units[number] * RATES[name])
        wanted = (torch.arange(count) / float(RATES[name])).floor()[:, None].expand(-1, 2)
        torch.testing.assert_close(torch.cat(parts), wanted, rtol=1e-5, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=3), st.integers(1, 4))
def test_tokens_of_whole_windows_are_each_windows_own(lengths: list[int], windows: int) -> None:
    disjoint = WindowSettings(window_ticks=9, overlap_ticks=0, windows=windows, disjoint=True)
    timelines = [timeline(ticks, k) for k, ticks in enumerate(lengths)]
    found: dict[tuple[int, str], list[torch.Tensor]] = {}
    for number, arrays, _ in sample_timelines(
        cast("FlowModel", WholeWindows()),
        timelines,
        ("gesture", "text"),
        1,
        disjoint,
        SamplingSettings(num_inference_steps=3),
    ):
        for name, array in arrays.items():
            found.setdefault((number, name), []).append(array)
    for number, ticks in enumerate(lengths):
        starts = torch.tensor([start for start, _ in window_spans(ticks, disjoint)], dtype=torch.float32)
        wanted = starts.repeat_interleave(3)[:, None].expand(-1, 2)
        torch.testing.assert_close(torch.cat(found[number, "text"]), wanted, rtol=1e-5, atol=1e-4)
        counted = torch.arange(ticks, dtype=torch.float32)[:, None].expand(-1, 2)
        torch.testing.assert_close(torch.cat(found[number, "gesture"]), 3 * counted, rtol=1e-5, atol=1e-4)


def test_tokens_of_whole_windows_need_windows_that_are_apart() -> None:
    overlapping = WindowSettings(window_ticks=9, overlap_ticks=2)
    with pytest.raises(ValueError, match="windows that do not overlap"):
        next(
            sample_timelines(
                cast("FlowModel", WholeWindows()),
                [timeline(20)],
                ("text",),
                1,
                overlapping,
                SamplingSettings(num_inference_steps=1),
            )
        )


class Nowhere(PerTick):
    """Expects nothing that is a number."""

    def predict(
        self, tokens: Mapping[str, Tensor], _levels: Any, targets: Sequence[str], *_about: object
    ) -> dict[str, Tensor]:
        return {name: torch.full_like(tokens["audio"], torch.nan) for name in targets}


def test_text_that_is_no_number_is_refused_instead_of_read() -> None:
    settings = WindowSettings(window_ticks=9, overlap_ticks=2)
    with pytest.raises(DataError, match="generated text: expected finite tokens"):
        list(sample_timelines(cast("FlowModel", Nowhere()), [timeline(20)], ("text",), 1, settings, SamplingSettings()))


def test_windows_and_overlaps_of_broken_tokens_are_refused() -> None:
    for window, overlap in ((10, 4), (12, 2)):
        with pytest.raises(UsageFault, match="a multiple of 4"):
            WindowSettings(window_ticks=window, overlap_ticks=overlap, tick_multiple=4)


DISAGREED = torch.tensor([0.0, 0, 0, 0, 2 - 2**0.5, 2, 2 + 2**0.5, 4, 4, 4, 4])
"""Answers 0 of one window and 4 of the next, which share three ticks: 4 sin² of 22.5°, 45° and 67.5°."""


def test_windows_that_disagree_are_blended_over_their_overlap() -> None:
    settings = WindowSettings(window_ticks=7, overlap_ticks=3)
    found = made(ByWindow(), [timeline(11)], settings, num_inference_steps=1)[0][:, 0]
    torch.testing.assert_close(found, DISAGREED)


def test_what_an_earlier_chunk_generated_fades_out_as_a_window_does() -> None:
    """Chunks of one window give the result of windows that are denoised together."""
    alone, together = (WindowSettings(window_ticks=7, overlap_ticks=3, windows=windows) for windows in (1, 16))
    found = made(ByWindow(), [timeline(11)], alone, num_inference_steps=4)[0][:, 0]
    torch.testing.assert_close(found, DISAGREED)
    torch.testing.assert_close(found, made(ByWindow(), [timeline(11)], together, num_inference_steps=4)[0][:, 0])


@pytest.mark.parametrize("windows", [1, 16])
def test_tokens_of_one_time_are_blended_equally(windows: int) -> None:
    settings = WindowSettings(window_ticks=7, overlap_ticks=3, windows=windows)
    model, sampling = cast("FlowModel", ThreeAtOnce()), SamplingSettings(num_inference_steps=4)
    parts = [x["gesture"] for _, x, _ in sample_timelines(model, [timeline(11)], ("gesture",), 1, settings, sampling)]
    wanted = DISAGREED.repeat_interleave(3)
    torch.testing.assert_close(torch.cat(parts)[:, 0], wanted)


def test_windows_of_equal_length_share_calls_and_no_call_grows_with_length() -> None:
    model = PerTick()
    settings = WindowSettings(window_ticks=8, overlap_ticks=2, windows=2, at_once=3)
    made(model, [timeline(8, k) for k in range(4)], settings, num_inference_steps=1)
    assert model.calls == [3, 1]
    model = PerTick()
    made(model, [timeline(800)], settings, num_inference_steps=1)
    assert max(model.calls) == 2
