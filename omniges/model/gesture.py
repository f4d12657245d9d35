"""Gesture tokens with smooth predictions: B-splines of several widths, scaled by the statistics of recorded motion.

The jerk of a motion is a third difference of frames, which amplifies the highest frequencies most. So white noise in
predicted frames, however small, dominates the jerk. A sum of cubic B-splines with knots at ticks has little energy at
these frequencies, whatever its coefficients are, and a sum of wider splines has still less.

The power spectrum of recorded motion falls about as 1 / frequency⁴, for body, hands and face. Let d be the standard
deviation of the differences between successive frames of a normalised channel. If splines with a knot spacing of h
ticks approximate this channel, the remainder (channel minus splines) has the standard deviation r d² h^1.5, with a
constant r. In BEAT2, r is 1.3 to 1.9. This module uses r = 1.4, and replaces values of d below 0.03 by 0.03.

A prediction is the sum of L levels of splines and of *free frames*. A level consists of all splines of one knot
spacing: 4, 2 or 1 ticks. The free frames are values that the head predicts for each frame and channel directly, without
a spline. The remainder for a knot spacing of h ticks has about the size R(h) = min(1, r d² h^1.5). Each term of the sum
is multiplied by the size of the remainder that the terms before it leave. So the factor is 1 for the level of 4 ticks,
R(4) for 2 ticks, R(2) for 1 tick, and R(1) for the free frames. Then outputs of equal size give motion that resembles
recorded motion.

Shape letters: B batch, N tokens, F frames of a token, T = N F frames, V channels of a frame, C = F V channels of a
token, L = 3 levels of splines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from omniges.features.body import REST_OFFSETS
from omniges.features.gesture import LAYOUT
from omniges.features.timebase import FRAME_RATE_HZ
from omniges.model.streams import FrameTokens
from omniges.shards.dataset import divisors

KNOTS_TICKS: Final = (4, 2, 1)
"""Distance between the knots in ticks, for each level of splines."""
_REACH: Final = 2 * max(KNOTS_TICKS)
"""Number of tokens on each side of a token over which its widest spline extends."""
_BLOCK: Final = 16
_AT_ONCE: Final = 128
"""Maximum number of tokens whose splines compiled code adds in one matrix product. The product includes the zeros of
the basis, because multiplying zeros takes less time than further calls."""
_LEFT_OVER: Final = 1.4
"""Factor r of the remainder. Measured on BEAT2: 1.3 for upper body and expressions, 1.9 for hands, 1.7 for lower body.
"""
_USUAL_DIFFERENCE: Final = 0.18
"""Value of d for which the loss of differences has exactly the weight `difference_weight`: the median d of hands."""
_SMALLEST_DIFFERENCE: Final = 0.03
_STANDING_M_S: Final = 0.05
"""Speed s in the feet loss, in m/s. For a toe that is slower, the weight of an error hardly depends on the velocity."""
_LEGS: Final = (slice(0, 1), slice(1, 3), slice(4, 6), slice(7, 9))
"""Indices of the joints above the toes, for left and right: pelvis, hips, knees, ankles."""
_TOES: Final = slice(10, 12)
_FEET: Final = slice(LAYOUT.lower.start, LAYOUT.root.stop)
"""Channels of lower body and root, which are adjacent."""
_OFFSETS: Final = REST_OFFSETS.tolist()  # numbers, because a compiler cannot trace arrays of numpy


class SplineTokens(FrameTokens):
    """A stream of gesture frames (B, T, V) as tokens (B, N, F · V), predicted as sums of splines and free frames.

    For each token and channel, the head outputs the coefficients of L splines with different knot spacings, and F free
    frames (see the module).

    For each channel, let d = difference_std / std, but at least 0.03. The loss multiplies the errors of a channel's
    differences between frames by 0.18 / d. So channels that change unpredictably, such as expressions, do not dominate
    the loss. 0.18 is the median d of the hands.

    A further loss, the feet loss, keeps standing feet where they are. It is the mean of e² / (v² + s²) over frames and
    toes. Here v is the recorded velocity of a toe, e is the error of its predicted velocity, and s is 0.05 m/s.
    Velocities are computed by forward kinematics over the generic skeleton. This is the foot contact loss of Tevet et
    al. (2023), but each frame has the weight 1 / (v² + s²) instead of a contact label.

    Args:
        frames: Frames in a token.
        mean: Mean of each channel over the training data.
        std: Standard deviation of each channel.
        difference_std: Standard deviation of each channel's differences between successive frames.
        difference_weight: Loss weight of the errors of differences between frames, after multiplication by 0.18 / d.
        feet_weight: Loss weight of the errors of the toes' velocities.
    """

    level_scales: Tensor
    difference_scale: Tensor

    def __init__(
        self,
        *,
        frames: int,
        mean: Sequence[float],
        std: Sequence[float],
        difference_std: Sequence[float],
        difference_weight: float,
        feet_weight: float,
    ) -> None:
        super().__init__(frames=frames, mean=mean, std=std, difference_weight=difference_weight)
        self.feet_weight = feet_weight
        self.outputs = (len(KNOTS_TICKS) + frames) * len(mean)
        spread = np.maximum(np.asarray(difference_std) / divisors(std), _SMALLEST_DIFFERENCE)
        left = [np.minimum(_LEFT_OVER * spread**2 * width**1.5, 1.0) for width in KNOTS_TICKS]
        scales = np.stack([np.ones_like(spread), *left[:-1], *[left[-1]] * frames])
        self.register_buffer("level_scales", torch.from_numpy(scales).float())
        self.register_buffer("difference_scale", torch.from_numpy(_USUAL_DIFFERENCE / spread).float())

    def predicted(self, output: Tensor) -> Tensor:
        """Convert outputs (B, N, (L + F) · V) of the head to tokens (B, N, C): the sum of splines and free frames."""
        rows, count, _ = output.shape
        with torch.autocast(output.device.type, enabled=False):
            levels, depth = output.float().reshape(rows, count, *self.level_scales.shape), len(KNOTS_TICKS)
            splines = levels[:, :, :depth] * self.level_scales[:depth]
            basis = spline_basis(count, self.frames, output.device)
            blocks = []  # blocks of tokens, so that most zeros of the basis are left out
            block = count if torch.compiler.is_compiling() and count <= _AT_ONCE else _BLOCK
            for start in range(0, count, block):
                near = slice(max(0, start - _REACH), start + block + _REACH)
                own = basis[self.frames * start : self.frames * (start + block), near]
                blocks.append(own.flatten(1) @ splines[:, near].flatten(1, 2))
            smooth = (blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)).reshape(rows, count, self.frames, -1)
            return torch.addcmul(smooth, levels[:, :, depth:], self.level_scales[depth:]).flatten(2)

    def differences(self, error: Tensor) -> Tensor:
        """Return the differences (B, T - 1, V) between successive frames of errors (B, T, V), for the loss.

        The differences of each channel are multiplied by 0.18 / d, where d = difference_std / std, at least 0.03.
        """
        return super().differences(error) * self.difference_scale

    def loss_of(self, error: Tensor, clean: Tensor, weights: Tensor | None) -> Tensor:
        """Return the losses (B,) of `FrameTokens`, plus the feet loss for samples that have lower body and root.

        Args:
            error: Errors of normalised frames (B, T, V).
            clean: Clean tokens (B, N, C).
            weights: Weight of each channel (B, V), or of all channels together (B, 1); 0: absent. None: all are 1.

        Returns:
            Losses (B,).
        """
        found = super().loss_of(error, clean, weights)
        if not self.feet_weight:
            return found
        if weights is not None:
            error = torch.where(weights[:, None] > 0, error, 0.0)
        true = self.arrays(clean)
        feet = torch.stack([true[..., _FEET], (true + error * self.scale)[..., _FEET]])
        recorded, predicted = _toe_velocities(feet.flatten(0, 1)).chunk(2)
        recorded = recorded.detach()
        wrong = (predicted - recorded).square().sum(dim=-1)
        slid = (wrong / (recorded.square().sum(dim=-1) + _STANDING_M_S**2)).mean(dim=(1, 2))
        if weights is not None:
            of_feet = weights.expand(-1, len(self.mean))[:, _FEET]
            slid = torch.where((of_feet > 0).all(dim=1), slid, 0.0)
        return found + self.feet_weight * slid


def spline_basis(count: int, frames: int, device: torch.device) -> Tensor:
    """Return the value of each token's splines at each frame.

    Args:
        count: Number of tokens N.
        frames: Number of frames F in a token.
        device: Device of the result.

    Returns:
        Values (T, N, L) of cubic B-splines. Each token has L splines around its middle, one for each knot spacing. For
        each frame and knot spacing, the values of all N tokens are scaled so that their sum is 1.
    """
    at = (torch.arange(count * frames, device=device) + 0.5) / frames
    away = (at[:, None] - (torch.arange(count, device=device) + 0.5)).abs()
    far = away[..., None] / torch.tensor(KNOTS_TICKS, dtype=torch.float32, device=device)
    values = torch.where(far < 1, 2 / 3 - far**2 + far**3 / 2, (2 - far).clamp(min=0) ** 3 / 6)
    return values / values.sum(dim=1, keepdim=True)


def toe_velocities(gesture: Tensor) -> Tensor:
    """Return the velocities of both toes by forward kinematics over the generic skeleton.

    Args:
        gesture: Channels (B, T, 415 or 424) in the format of shards.

    Returns:
        Velocities (B, T - 1, 2, 3) in m/s.
    """
    return _toe_velocities(gesture[..., _FEET])


def _toe_velocities(channels: Tensor) -> Tensor:
    """Return the toes' velocities (B, T - 1, 2, 3) in m/s from the channels (B, T, 57) of lower body and root."""
    joints_end = LAYOUT.lower.stop - LAYOUT.lower.start
    six_d = channels[..., :joints_end].reshape(*channels.shape[:2], len(LAYOUT.lower_joints), 2, 3)
    root = channels[..., joints_end:]
    offsets = torch.tensor(_OFFSETS, dtype=channels.dtype, device=channels.device)
    first = functional.normalize(six_d[..., 0, :], dim=-1)
    second = six_d[..., 1, :] - (first * six_d[..., 1, :]).sum(dim=-1, keepdim=True) * first
    second = functional.normalize(second, dim=-1)
    rotations = torch.stack([first, second, torch.linalg.cross(first, second)], dim=-2)
    place = offsets[_TOES]
    for joints in reversed(_LEGS):  # from the toes up, so that only vectors are rotated
        first_joint = LAYOUT.lower_joints.index(joints.start)
        turns = rotations[:, :, first_joint : first_joint + joints.stop - joints.start]
        place = (turns * place[..., None, :]).sum(dim=-1) + offsets[joints]
    height = torch.arange(3, device=channels.device) == 1  # the height is a position; x and z are steps between frames
    steps = torch.where(height, root.diff(dim=1), root[:, 1:])
    return (place.diff(dim=1) + steps[:, :, None]) * FRAME_RATE_HZ
