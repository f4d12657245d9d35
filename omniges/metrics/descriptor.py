"""The built-in descriptor: features of motion when no encoder is given. Its distance is not a published FGD.

Letters: T frames, 55 joints, N windows.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from omniges.features.arrays import checked
from omniges.features.gesture import JOINT_NAMES
from omniges.features.timebase import FRAME_RATE_HZ

__all__ = ["DESCRIPTOR_NAME", "describe"]

F64 = npt.NDArray[np.float64]

DESCRIPTOR_NAME: Final = "omniges-kinematics-1"
_JOINTS: Final = tuple(
    JOINT_NAMES.index(name)
    for name in (
        *("head", "left_elbow", "right_elbow", "left_wrist", "right_wrist"),
        *("left_index3", "right_index3"),
    )
)
_WINDOW_FRAMES: Final = 32
_STRIDE_FRAMES: Final = 16
_SPEED_S: Final = 0.1  # these two bring speeds and accelerations to the order of size of positions
_ACCELERATION_S2: Final = 0.01


def describe(joints: npt.NDArray[np.floating]) -> F64:
    """Features (N, 56) of joints (T, 55, 3) in metres, N = 1 + (T − 32) // 16; docs/metrics.md lists them.

    Raises UsageFault for another shape, DataError for fewer than 32 frames or non-finite values.
    """
    positions = checked(joints, "joints", (None, len(JOINT_NAMES), 3), at_least=_WINDOW_FRAMES)
    relative = positions[:, _JOINTS] - positions[:, :1]
    windows = np.lib.stride_tricks.sliding_window_view(relative, _WINDOW_FRAMES, axis=0)[
        ::_STRIDE_FRAMES
    ]  # (N, 7, 3, W)
    velocity = np.diff(windows, axis=-1) * FRAME_RATE_HZ
    acceleration = np.diff(velocity, axis=-1) * FRAME_RATE_HZ
    speed = np.linalg.norm(velocity, axis=2).mean(axis=-1, keepdims=True)
    effort = np.sqrt((acceleration**2).sum(axis=2).mean(axis=-1, keepdims=True))
    parts = [windows.mean(axis=-1), windows.std(axis=-1), _SPEED_S * speed, _ACCELERATION_S2 * effort]
    return np.concatenate(parts, axis=-1).reshape(len(windows), -1)
