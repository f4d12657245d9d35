"""Samples that lack parts: what is absent adds nothing, to the bit; tasks are drawn among those they allow."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from flow_builders import CONFIG, TICKS, VOCAB_SIZE, gradients, model_of, run, statistics, windows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from omniges.errors import UsageFault
from omniges.model.draws import FlowSettings, allowed_tasks, draw_plan
from omniges.model.flow import Windows
from omniges.model.spec import build_model
from omniges.model.streams import STREAMS, FrameTokens, Present, present_of
from omniges.model.tasks import TASKS
from omniges.shards.present import ALL_PRESENT, STREAM_BITS, STREAM_PARTS, channel_flags, present_bits

CPU = torch.device("cpu")
AWARE = replace(CONFIG, tell_absent=True)
CARRIED = replace(AWARE, absent="noise")
JAW = replace(AWARE, gesture_channels=424)
JAW_CARRIED = replace(JAW, absent="noise")
NO_JAW = ALL_PRESENT & ~present_bits({"jaw_eyes"})
NO_FACE = ALL_PRESENT & ~present_bits({"face"})
NO_TEXT = ALL_PRESENT & ~present_bits({"text"})
USABLE = [b for b in range(ALL_PRESENT + 1) if sum(bool(b & own) for own in STREAM_BITS.values()) > 1]
MANY = np.arange(20_000)


def partial(bits: list[int], channels: int = 415) -> Windows:
    """Windows at 0, 1, … with these bits."""
    present = present_of(np.array(bits, np.uint8), CPU, (), channels)
    return replace(windows_of(list(range(len(bits))), channels), present=present)


def disturbed(windows: Windows, bits: list[int], value: float | None) -> Windows:
    """The same windows with other contents wherever something is absent: a value, or noise."""
    arrays = {name: array.clone() for name, array in windows.arrays.items()}
    random = torch.Generator().manual_seed(99)

    def other(shape: torch.Size) -> torch.Tensor:
        return 50 * torch.randn(shape, generator=random) if value is None else torch.full(shape, value)

    gaps = ~torch.from_numpy(channel_flags(np.array(bits, np.uint8), windows.arrays["gesture"].shape[-1]))
    arrays["gesture"] = torch.where(gaps[:, None], other(arrays["gesture"].shape), arrays["gesture"])
    for row, own in enumerate(bits):
        if not own & STREAM_BITS["audio"]:
            arrays["audio"][row] = other(arrays["audio"][row].shape)
        if not own & STREAM_BITS["text"]:
            arrays["text"][row] = torch.randint(0, 1 + 4 * VOCAB_SIZE, (TICKS,), generator=random, dtype=torch.int32)
    return replace(windows, arrays=arrays)


def bits_of(tensors: list[torch.Tensor]) -> list[bytes]:
    # A zero's sign says nothing: 0 · x has that of x.
    return [(tensor + 0.0).detach().numpy().tobytes() for tensor in tensors]


class TestAbsentChannels:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "config", [CONFIG, AWARE, CARRIED, JAW, JAW_CARRIED], ids=["unaware", "aware", "carried", "424", "424 carried"]
    )
    @pytest.mark.parametrize("rounded", [False, True])
    @pytest.mark.parametrize("value", [None, float("nan")], ids=["noise", "nan"])
    def test_what_stands_in_absent_channels_changes_no_bit_of_losses_and_gradients(self, config, rounded, value):
        bits = [ALL_PRESENT, NO_FACE, NO_TEXT, 0b0000111, 0b1111101, 0b1111110, NO_FACE & NO_TEXT, NO_JAW]
        windows, flow, model = (
            partial(bits, config.gesture_channels),
            FlowSettings(condition_noise=0.3),
            model_of(config),
        )
        plan = draw_plan(flow, 7, np.arange(len(bits)), windows.present.streams)
        found = []
        for one in (windows, disturbed(windows, bits, value)):
            loss = model(one, plan, flow, 7, rounded=rounded)
            assert loss.each.isfinite().all()
            found.append([*bits_of([loss.total, loss.each]), *bits_of(gradients(model, loss.total))])
        assert found[0] == found[1]

    @settings(max_examples=8)
    @given(bits=st.lists(st.sampled_from(USABLE), min_size=2, max_size=5), seed=st.integers(0, 1000))
    def test_so_it_is_for_any_absent_parts(self, bits, seed):
        windows, flow, model = partial(bits), FlowSettings(), model_of(AWARE)
        streams = None if windows.present is None else windows.present.streams
        plan = draw_plan(flow, seed, np.arange(len(bits)), streams)
        first, second = (model(one, plan, flow, seed) for one in (windows, disturbed(windows, bits, None)))
        assert bits_of([first.each]) == bits_of([second.each])

    def test_masks_of_ones_give_the_bits_of_no_masks(self):
        model, flow, positions = model_of(), FlowSettings(condition_noise=0.3), list(range(8))
        without, plan = run(model, positions, flow)
        every = np.full(8, ALL_PRESENT, np.uint8)
        ones = {name: torch.ones(8, 1, dtype=torch.bool) for name in STREAMS}
        ones["gesture"] = torch.from_numpy(channel_flags(every))
        present = Present(np.ones((8, 3), np.bool_), torch.zeros(8, len(STREAM_PARTS)), ones)
        found = model(replace(windows_of(positions), present=present), plan, flow, 7)
        assert bits_of([found.total, found.each]) == bits_of([without.total, without.each])
        assert bits_of(gradients(model, found.total)) == bits_of(gradients(model, without.total))

    def test_the_loss_is_the_mean_over_present_channels(self):
        """Held against numpy over these channels alone, laps and differences included."""
        stream = FrameTokens(frames=3, mean=[0.0] * 5, std=[1.0] * 5, prediction="clean", difference_weight=3.0)
        random = torch.Generator().manual_seed(0)
        output = torch.randn(2, 4, stream.outputs, generator=random)
        clean = torch.randn(2, 4, 15, generator=random)
        present = torch.tensor([[True, False, True, True, False], [False, True, False, False, False]])
        found = stream.losses(output, torch.empty(0), clean, clean, present)
        said = stream.clean(output, clean, torch.zeros(2)).double().numpy().reshape(2, 12, 5)
        for row in range(2):
            error = (said[row] - clean[row].double().numpy().reshape(12, 5))[:, present[row].numpy()]
            expected = (error**2).mean() + 3.0 * (np.diff(error, axis=0) ** 2).mean()
            np.testing.assert_allclose(float(found[row]), expected, rtol=1e-5)

    def test_a_stream_without_channels_of_jaw_and_eyes_does_not_tell_that_they_are_absent(self):
        model, flow = model_of(AWARE), FlowSettings()
        assert model.known_parts(np.array([NO_JAW], np.uint8)) is None
        bits = np.array([NO_FACE, NO_FACE & NO_JAW], np.uint8)
        windows = [replace(windows_of([3, 4]), present=model.known_parts(bits[[k, 0]])) for k in (0, 1)]
        plan = draw_plan(flow, 7, np.array([3, 4]), windows[0].present.streams)
        first, second = (model(one, plan, flow, 7) for one in windows)
        assert bits_of([first.each]) == bits_of([second.each])

    def test_jaw_and_eyes_alone_are_no_gesture(self):
        present = present_of(np.array([present_bits({"text", "jaw_eyes"})], np.uint8), CPU, (), 424)
        assert present.streams.tolist() == [[False, True, False]]
        assert not present.masks["gesture"].any()

    def test_a_part_that_no_sample_has_leaves_its_outputs_without_gradient(self):
        model, flow = model_of(AWARE), FlowSettings(shares={"a2g": 1})
        windows = partial([NO_FACE] * 4)
        plan = draw_plan(flow, 0, np.arange(4), windows.present.streams)
        model(windows, plan, flow, 0).total.backward()
        of_channels = model.trunk.head["gesture"].out.weight.grad.reshape(5, 415, -1)
        assert not of_channels[:, 315:].any()
        assert of_channels[:, :315].any()


class TestTelling:
    def test_the_embedding_begins_at_zero_and_changes_no_other_weight(self):
        torch.manual_seed(3)
        plain = dict(build_model(CONFIG, statistics=statistics(), vocab_size=VOCAB_SIZE, speakers=2).named_parameters())
        torch.manual_seed(3)
        parameters = dict(
            build_model(AWARE, statistics=statistics(), vocab_size=VOCAB_SIZE, speakers=2).named_parameters()
        )
        lacking = parameters.pop("lacking")
        assert lacking.shape == (7, CONFIG.width)  # a row for each part of the streams, none for jaw and eyes
        assert model_of(JAW).lacking.shape == (8, CONFIG.width)
        assert not lacking.any()
        assert parameters.keys() == plain.keys()
        assert all(torch.equal(parameters[name], plain[name]) for name in plain)

    def test_it_says_something_of_samples_that_lack_a_part_alone(self):
        bits, flow, model = [ALL_PRESENT, NO_FACE, ALL_PRESENT], FlowSettings(shares={"t2a": 1}), model_of(AWARE)
        windows = partial(bits)
        plan = draw_plan(flow, 0, np.arange(3), windows.present.streams)
        before = model(windows, plan, flow, 0).each.sum(1)
        model.lacking.data += 1.0
        after = model(windows, plan, flow, 0).each.sum(1)
        assert (before != after).tolist() == [False, True, False]

    @pytest.mark.parametrize("bits", [[ALL_PRESENT], [NO_FACE]], ids=["whole", "partial"])
    def test_every_parameter_has_a_gradient(self, bits):
        """Ranks whose batches lack different parts must have the same gradients to average."""
        model, windows, flow = model_of(AWARE), partial(bits), FlowSettings(shares={"t2a": 1})
        model(windows, draw_plan(flow, 0, np.arange(1)), flow, 0).total.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


class TestTasks:
    streams = np.array([[bool(b & STREAM_BITS[name]) for name in STREAMS] for b in USABLE])

    def test_no_task_needs_an_absent_stream(self):
        streams = self.streams[MANY % len(USABLE)]
        plan = draw_plan(FlowSettings(), 3, MANY, streams)
        for number, task in enumerate(TASKS.values()):
            for name in (*task.conditions, *task.targets):
                assert streams[plan.task == number][:, STREAMS.index(name)].all()
        assert not (plan.present & ~streams).any()

    def test_samples_with_all_streams_draw_as_in_sets_without_absent_parts(self):
        streams = self.streams[MANY % len(USABLE)]
        mixed, plain = draw_plan(FlowSettings(), 3, MANY, streams), draw_plan(FlowSettings(), 3, MANY)
        whole = streams.all(axis=1)
        assert whole.any()
        for name in ("task", "target", "present", "levels", "speaker_known"):
            np.testing.assert_array_equal(getattr(mixed, name)[whole], getattr(plain, name)[whole])
        np.testing.assert_array_equal(mixed.speaker_known, plain.speaker_known)

    def test_the_others_have_the_shares_of_the_tasks_that_are_left(self):
        """Samples without text draw a2g and g2a, 2 of 4 shares each."""
        streams = np.tile([True, False, True], (len(MANY), 1))
        drawn = Counter(draw_plan(FlowSettings(), 5, MANY, streams).task.tolist())
        names = {list(TASKS)[number]: count / len(MANY) for number, count in drawn.items()}
        assert names.keys() == {"a2g", "g2a"}
        assert abs(names["a2g"] - 0.5) < 0.015

    @settings(max_examples=20)
    @given(st.lists(st.integers(0, 2**40), min_size=1, max_size=6), st.sampled_from(USABLE))
    def test_a_draw_does_not_depend_on_its_batch(self, positions, bits):
        own = np.array([[bool(bits & STREAM_BITS[name]) for name in STREAMS]])
        others = np.concatenate([np.repeat(own, len(positions), axis=0), np.ones((1, 3), np.bool_)])
        batch = draw_plan(FlowSettings(), 1, np.array([*positions, 7]), others)
        for k, position in enumerate(positions):
            assert draw_plan(FlowSettings(), 1, np.array([position]), own).task[0] == batch.task[k]

    def test_a_sample_that_allows_no_task_is_refused(self):
        with pytest.raises(
            UsageFault, match="expected a task for a sample that has gesture, audio, found none; leave the sample out"
        ):
            draw_plan(FlowSettings(shares={"t2g": 1}), 0, np.arange(1), np.array([[True, False, True]]))

    def test_streams_of_shares(self):
        assert allowed_tasks({"t2g": 1, "g2t": 2, "a2g": 0, "ta2g": 1}) == ("audio+gesture+text", "gesture+text")
