"""Gesture tokens predicted as splines: the basis, its scales, and the losses of differences and feet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline

from omniges.features.body import GENERIC
from omniges.features.gesture import JOINT_NAMES, LAYOUT, GestureClip, gesture_from_motion, motion_from_gesture
from omniges.model.gesture import KNOTS_TICKS, SplineTokens, spline_basis, toe_velocities
from omniges.model.streams import FrameTokens

TOES = [JOINT_NAMES.index("left_foot"), JOINT_NAMES.index("right_foot")]
TICKS = 24


def stream(difference: float = 0.12, **changes: Any) -> SplineTokens:
    settings = {"difference_weight": 0.0, "feet_weight": 0.0} | changes
    channels = LAYOUT.channels
    return SplineTokens(
        frames=3, mean=[0.0] * channels, std=[1.0] * channels, difference_std=[difference] * channels, **settings
    )


def clip(seed: int, frames: int = 3 * TICKS) -> GestureClip:
    draw = np.random.default_rng(seed)
    poses = np.cumsum(draw.normal(0, 0.03, (frames, 165)), axis=0)
    return gesture_from_motion(poses, draw.normal(size=(frames, 100)), np.cumsum(draw.normal(0, 0.01, (frames, 3)), 0))


class TestBasis:
    def test_each_level_sums_to_one_at_each_frame(self) -> None:
        for count in (1, 2, 7, 64):
            assert torch.allclose(spline_basis(count, 3, torch.device("cpu")).sum(dim=1), torch.ones(3 * count, 3))

    @pytest.mark.parametrize("level", range(len(KNOTS_TICKS)))
    def test_away_from_the_ends_it_is_the_cubic_spline_of_scipy(self, level: int) -> None:
        width, count, token = KNOTS_TICKS[level], 40, 20
        reference = BSpline.basis_element(width * np.arange(-2.0, 3.0), extrapolate=False)
        away = (np.arange(3 * count) + 0.5) / 3 - (token + 0.5)
        values = np.nan_to_num(reference(away)) / width
        found = spline_basis(count, 3, torch.device("cpu"))[:, token, level]
        assert np.allclose(found.numpy(), values, atol=1e-6)


class TestPredictions:
    def test_the_scales_fall_with_the_width_and_with_the_speed_of_the_channel(self) -> None:
        slow, fast = stream(0.06).level_scales[:, 0], stream(0.3).level_scales[:, 0]
        assert slow.tolist() == sorted(slow.tolist(), reverse=True)
        assert slow[0] == fast[0] == 1
        assert (slow[1:] < fast[1:]).all()

    def test_white_outputs_have_less_jerk_than_white_outputs_of_overlapping_frames(self) -> None:
        torch.manual_seed(0)
        smooth, plain = stream(), FrameTokens(frames=3, mean=[0.0] * 415, std=[1.0] * 415)

        def jerk(one: FrameTokens) -> float:
            frames = one.predicted(torch.randn(4, TICKS, one.outputs)).reshape(4, 3 * TICKS, -1)
            return float(frames.diff(n=3, dim=1).std() / frames.std())

        assert jerk(smooth) < jerk(plain) / 10

    @pytest.mark.parametrize("count", [1, 5, 16, 17, 33, 64])
    def test_blocks_of_tokens_give_the_sum_of_all_splines(self, count: int) -> None:
        own = stream()
        output = torch.randn(2, count, own.outputs)
        levels = output.reshape(2, count, -1, 415) * own.level_scales
        splines, free = levels[:, :, : len(KNOTS_TICKS)], levels[:, :, len(KNOTS_TICKS) :]
        expected = torch.einsum("tnl,bnlv->btv", spline_basis(count, 3, torch.device("cpu")), splines)
        expected = expected + free.reshape(2, 3 * count, 415)
        assert torch.allclose(own.predicted(output).reshape(2, 3 * count, 415), expected, atol=1e-5)

    def test_any_frames_can_be_predicted(self) -> None:
        own = stream()
        wanted = torch.randn(2, TICKS, own.channels)
        output = torch.zeros(2, TICKS, len(own.level_scales), 415)
        output[:, :, len(KNOTS_TICKS) :] = wanted.unflatten(-1, (3, 415)) / own.level_scales[len(KNOTS_TICKS) :]
        assert torch.allclose(own.predicted(output.flatten(2)), wanted, atol=1e-5)


class TestLosses:
    def test_differences_count_by_the_deviation_of_recorded_ones(self) -> None:
        own = stream(0.18, difference_weight=30.0)
        torch.manual_seed(1)
        output, clean = torch.randn(2, TICKS, own.outputs), torch.randn(2, TICKS, own.channels)
        error = (own.predicted(output) - clean).reshape(2, -1, 415)
        expected = error.square().mean(dim=(1, 2)) + 30 * error.diff(dim=1).square().mean(dim=(1, 2))
        assert torch.allclose(own.losses(output, clean, clean, clean), expected, rtol=1e-5)
        halved = stream(0.09, difference_weight=30.0)
        assert torch.allclose(
            halved.loss_of(error, clean, None) - error.square().mean(dim=(1, 2)),
            4 * (expected - error.square().mean(dim=(1, 2))),
            rtol=1e-4,
        )

    def test_toes_move_as_by_the_forward_kinematics_of_numpy(self) -> None:
        own = clip(3)
        motion = motion_from_gesture(own)
        expected = np.diff(GENERIC.joints(motion.poses, motion.trans)[:, TOES], axis=0) * 30
        found = toe_velocities(torch.from_numpy(own.gesture)[None].double())[0]
        assert np.allclose(found.numpy(), expected, atol=1e-4)

    def test_the_loss_of_the_feet_is_the_error_of_velocities_for_the_speed(self) -> None:
        own = stream(feet_weight=7.0)
        true, other = (torch.from_numpy(clip(seed).gesture)[None] for seed in (4, 5))
        error = other - true
        speeds = toe_velocities(true).square().sum(-1)
        wrong = (toe_velocities(other) - toe_velocities(true)).square().sum(-1) / (speeds + 0.05**2)
        added = own.loss_of(error, own.tokens(true), None) - error.square().mean(dim=(1, 2))
        assert torch.allclose(added, 7 * wrong.mean(dim=(1, 2)), rtol=1e-3)

    @pytest.mark.parametrize("absent", [LAYOUT.lower, LAYOUT.root, LAYOUT.upper])
    def test_absent_channels_change_neither_loss_nor_gradient(self, absent: slice) -> None:
        own = stream(feet_weight=7.0, difference_weight=30.0)
        there = torch.ones(2, 415, dtype=torch.bool)
        there[:, absent] = False
        clean = own.tokens(torch.stack([torch.from_numpy(clip(seed).gesture) for seed in (6, 7)]))
        found = []
        for filled in (0.0, float("nan")):
            error = torch.randn(2, 3 * TICKS, 415, generator=torch.Generator().manual_seed(2))
            error = torch.where(there[:, None], error, filled).requires_grad_()
            loss = own.loss_of(error, clean, there)
            (gradient,) = torch.autograd.grad(loss.sum(), error)
            found.append((loss, gradient))
        assert torch.equal(found[0][0], found[1][0])
        assert torch.equal(found[0][1], found[1][1])
        feetless = stream(feet_weight=0.0, difference_weight=30.0)
        error = torch.where(there[:, None], error, 0.0)
        same = torch.equal(own.loss_of(error, clean, there), feetless.loss_of(error, clean, there))
        assert same == (absent != LAYOUT.upper)
