"""Tokens: round trips, times on one grid, losses against plain formulas, what carries gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from omniges.features.text_tokens import BLANK, MARKS, unpack_tokens
from omniges.model.streams import (
    FrameTokens,
    SubwordTokens,
    clean_from_velocity,
    noised,
    tick_seconds,
    velocity_from_clean,
)

GESTURE = {"mean": [1.0, -2.0, 0.5], "std": [2.0, 0.1, 1e-7]}


def frame_tokens(**changes: object) -> FrameTokens:
    return FrameTokens(**GESTURE, frames=4, **changes)


def subword_tokens(vocab_size: int = 11) -> SubwordTokens:
    torch.manual_seed(0)
    return SubwordTokens(vocab_size=vocab_size, piece_width=24, mark_width=8, blank_weight=0.25)


class TestFrameTokens:
    def test_arrays_come_back_from_tokens(self):
        stream, arrays = frame_tokens(), torch.randn(2, 20, 3)
        tokens = stream.tokens(arrays)
        assert tokens.shape == (2, 5, stream.channels)
        torch.testing.assert_close(stream.arrays(tokens), arrays)

    def test_a_token_holds_one_ticks_frames_in_order_normalised(self):
        stream, arrays = frame_tokens(), torch.randn(1, 20, 3)
        expected = (arrays[0, 8:12].double().numpy() - GESTURE["mean"]) / [2.0, 0.1, 1.0]
        np.testing.assert_allclose(stream.tokens(arrays)[0, 2].numpy(), expected.ravel(), rtol=1e-5)

    def test_a_channel_that_does_not_vary_has_scale_one(self):
        assert frame_tokens().scale.tolist() == pytest.approx([2.0, 0.1, 1.0])

    @pytest.mark.parametrize("frames", [1, 2, 3, 4, 10])
    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_a_frame_is_the_weighted_mean_of_what_the_tokens_near_it_say(self, frames, count):
        stream = FrameTokens(frames=frames, mean=[0.0, 0.0], std=[1.0, 1.0])
        laps = frames // 2
        assert stream.outputs == 2 * (frames + 2 * laps)
        output = torch.randn(3, count, stream.outputs)
        said = output.reshape(3, count, frames + 2 * laps, 2).double().numpy()
        expected = np.empty((3, count * frames, 2))
        for frame in range(count * frames):
            predicted, weights = [], []
            for token in range(count):
                at = frame - token * frames
                if -laps <= at < frames + laps:
                    predicted.append(said[:, token, at + laps])
                    weights.append(1 - abs(at - (frames - 1) / 2) / frames)
            expected[:, frame] = np.average(predicted, axis=0, weights=weights)
        found = stream.clean(output, output, torch.ones(3)).reshape(3, -1, 2)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)

    def test_tokens_that_say_one_value_each_are_joined_by_straight_lines(self):
        stream = FrameTokens(frames=3, mean=[0.0], std=[1.0])
        output = torch.tensor([0.0, 3.0, -3.0])[None, :, None].expand(1, 3, 5)
        found = stream.clean(output, output, torch.ones(1)).flatten()
        torch.testing.assert_close(found, torch.tensor([0.0, 0.0, 1.0, 2.0, 3.0, 1.0, -1.0, -3.0, -3.0]))

    def test_clean_losses_are_mean_squares_to_the_clean_tokens(self):
        stream = frame_tokens()
        output = torch.randn(2, 5, stream.outputs)
        clean, noise = torch.randn(2, 2, 5, 12)
        said = stream.clean(output, noise, torch.rand(2))
        losses = stream.losses(output, torch.empty(0), clean, noise)
        np.testing.assert_allclose(losses.numpy(), ((said - clean) ** 2).mean((1, 2)).numpy(), rtol=1e-5)

    def test_velocity_losses_are_mean_squares_to_noise_minus_clean(self):
        stream = frame_tokens(prediction="velocity")
        output, clean, noise = torch.randn(3, 2, 5, 12)
        losses = stream.losses(output, torch.empty(0), clean, noise)
        np.testing.assert_allclose(losses.numpy(), ((output - (noise - clean)) ** 2).mean((1, 2)).numpy(), rtol=1e-5)
        levels = torch.tensor([0.3, 0.9])
        at = noised(clean, noise, levels)
        torch.testing.assert_close(stream.clean(noise - clean, at, levels), clean, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("prediction", ["clean", "velocity"])
    def test_differences_of_successive_frames_have_their_weight_over_borders_of_tokens_too(self, prediction):
        stream = frame_tokens(prediction=prediction, difference_weight=2.5)
        output = torch.randn(2, 5, stream.outputs)
        clean, noise = torch.randn(2, 2, 5, 12)
        said = stream.clean(output, noise, torch.ones(2)) if prediction == "clean" else output
        target = clean if prediction == "clean" else noise - clean
        frames = (said - target).reshape(2, 20, 3).double().numpy()
        expected = [
            np.mean([one[f, c] ** 2 for f in range(20) for c in range(3)])
            + 2.5 * np.mean([(one[f + 1, c] - one[f, c]) ** 2 for f in range(19) for c in range(3)])
            for one in frames
        ]
        losses = stream.losses(output, torch.empty(0), clean, noise)
        np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-5)

    @pytest.mark.parametrize("difference_weight", [0.0, 1.0, 30.0])
    def test_the_best_answer_is_the_mean_of_what_may_come_whatever_the_weight(self, difference_weight):
        stream = frame_tokens(difference_weight=difference_weight)
        outcomes = torch.randn(7, 5, 12)
        mean = stream.arrays(outcomes.mean(0, keepdim=True))
        lapped = torch.nn.functional.pad((mean - stream.mean) / stream.scale, (0, 0, stream.overlap, stream.overlap))
        answer = lapped.unfold(1, 4 + 2 * stream.overlap, 4).mT.flatten(2).expand(7, -1, -1).clone().requires_grad_()
        torch.testing.assert_close(stream.clean(answer, answer, torch.ones(7))[0], outcomes.mean(0))
        stream.losses(answer, torch.empty(0), outcomes, outcomes).sum().backward()
        torch.testing.assert_close(answer.grad.sum(0), torch.zeros(5, stream.outputs), atol=1e-4, rtol=0)

    def test_statistics_travel_with_the_weights(self):
        assert frame_tokens().state_dict().keys() >= {"mean", "scale"}


class TestTimes:
    def test_all_streams_share_one_grid_of_tick_centres(self):
        expected = [0.05, 0.15, 0.25, 0.35]
        for stream in (frame_tokens(), subword_tokens()):
            assert stream.seconds(4).tolist() == pytest.approx(expected)
        assert tick_seconds(1000)[-1].item() == pytest.approx(99.95)


class TestSubwordTokens:
    def test_every_token_comes_back_from_its_embedding(self):
        stream = subword_tokens()
        every = torch.arange(1 + MARKS * stream.vocab_size)[None]
        assert torch.equal(stream.arrays(stream.tokens(every)), every)
        assert torch.equal(stream.arrays(stream.tokens(every.int())), every)

    def test_tokens_come_back_from_noisy_embeddings_too(self):
        stream = subword_tokens()
        every = torch.arange(1 + MARKS * stream.vocab_size)[None]
        tokens = stream.tokens(every)
        assert torch.equal(stream.arrays(tokens + 0.3 * torch.randn(tokens.shape)), every)

    def test_tokens_have_the_norm_of_unit_noise(self):
        tokens = subword_tokens().tokens(torch.arange(20)[None])
        torch.testing.assert_close(tokens.norm(dim=-1), torch.full((1, 20), math.sqrt(32)))

    def test_tokens_differ_where_subword_or_marks_differ(self):
        tokens = subword_tokens().tokens(torch.arange(1 + 4 * 11)[None])[0]
        distances = torch.cdist(tokens, tokens) + 100 * torch.eye(len(tokens))
        assert distances.min() > 1

    def test_sure_logits_give_the_embedding_and_even_ones_the_mean(self):
        stream = subword_tokens()
        ids = torch.tensor([[BLANK, 1, 6, 44]])
        subwords, first_tick, first_subword = unpack_tokens(ids.numpy().astype(np.int32))
        marks = np.where(subwords < 0, 0, 1 + 2 * first_tick + first_subword)
        hot = torch.cat(
            [
                functional.one_hot(torch.from_numpy(subwords).long() + 1, 12),
                functional.one_hot(torch.from_numpy(marks), 5),
            ],
            dim=-1,
        )
        torch.testing.assert_close(stream.clean(100.0 * hot, hot, hot), stream.tokens(ids), rtol=1e-4, atol=1e-4)
        even = stream.clean(torch.zeros(1, 1, stream.outputs), hot, hot)[0, 0]
        tables = [functional.normalize(t, dim=-1) * math.sqrt(t.shape[1]) for t in (stream.piece, stream.mark)]
        torch.testing.assert_close(even, torch.cat([t.mean(0) for t in tables]))

    def test_losses_are_weighted_cross_entropies_in_nats(self):
        stream = subword_tokens()
        ids = torch.tensor([[BLANK, 5, 5, BLANK], [1, 2, 3, 44]])
        output = torch.randn(2, 4, stream.outputs)
        expected = []
        for b in range(2):
            nats, weights = [], []
            for t in range(4):
                token = int(ids[b, t])
                subword, mark = (0, 0) if token == BLANK else ((token - 1) // MARKS + 1, (token - 1) % MARKS + 1)
                logits = output[b, t].double()
                surprise = -torch.log_softmax(logits[:12], 0)[subword] - torch.log_softmax(logits[12:], 0)[mark]
                nats.append(float(surprise))
                weights.append(0.25 if token == BLANK else 1.0)
            expected.append(np.average(nats, weights=weights))
        losses = stream.losses(output, ids, output, output)
        np.testing.assert_allclose(losses.detach().numpy(), expected, rtol=1e-5)

    def test_even_logits_cost_the_logarithms_of_the_classes(self):
        stream = subword_tokens()
        losses = stream.losses(
            torch.zeros(1, 3, stream.outputs), torch.tensor([[0, 1, 2]]), torch.empty(0), torch.empty(0)
        )
        assert losses.item() == pytest.approx(math.log(12) + math.log(5), rel=1e-6)

    def test_embeddings_learn_from_what_is_read(self):
        stream = subword_tokens()
        (stream.tokens(torch.tensor([[3, 4]])) * torch.randn(1, 2, 32)).sum().backward()
        touched = stream.piece.grad.abs().sum(1) > 0
        assert touched.nonzero().flatten().tolist() == [1]


class TestPath:
    @given(st.floats(0.01, 1), st.floats(-5, 5), st.floats(-5, 5))
    def test_clean_and_velocity_are_two_views_of_one_path(self, level, clean, noise):
        x, e, s = (torch.tensor([[value]], dtype=torch.float64) for value in (clean, noise, level))
        at = noised(x, e, s[0])
        assert at.item() == pytest.approx((1 - level) * clean + level * noise, abs=1e-9)
        assert velocity_from_clean(x, at, s[0]).item() == pytest.approx(noise - clean, abs=1e-6)
        assert clean_from_velocity(e - x, at, s[0]).item() == pytest.approx(clean, abs=1e-9)

    def test_the_ends_are_exact(self):
        clean, noise = torch.randn(2, 4, 3)
        assert torch.equal(noised(clean, noise, torch.zeros(4)), clean)
        assert torch.equal(noised(clean, noise, torch.ones(4)), noise)
