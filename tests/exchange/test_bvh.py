"""BVH files hold the joints of the motion, as a reader of the format finds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bvh_reader import read_bvh
from exchange_builders import plain_positions, random_motion
from hypothesis import given
from hypothesis import strategies as st

from omniges.exchange.bvh import encode_bvh
from omniges.features.body import PARENTS, REST_OFFSETS
from omniges.features.gesture import JOINT_NAMES
from omniges.features.skeleton import GENERIC
from omniges.formats.motion import SmplxMotion, read_motion


def worst_mm(motion: SmplxMotion, expected_m: np.ndarray) -> float:
    found, frame_time_s = read_bvh(encode_bvh(motion, GENERIC).decode("ascii"))
    assert frame_time_s == pytest.approx(1 / 30, abs=1e-8)
    assert set(found) == set(JOINT_NAMES)
    read_m = np.stack([found[name] for name in JOINT_NAMES], axis=1) / 100  # centimetres
    return float(np.linalg.norm(read_m - expected_m, axis=-1).max() * 1000)


@given(st.integers(0, 10_000), st.floats(0, 3))
def test_joints_are_those_of_forward_kinematics(seed: int, spread: float) -> None:
    motion = random_motion(6, seed, spread)
    expected = plain_positions(motion, REST_OFFSETS, PARENTS, motion.trans - (0, 0.35, 0))
    assert worst_mm(motion, expected) < 0.01


def test_all_joints_of_a_real_recording(beat2_sample: Path) -> None:
    motion = read_motion(next(beat2_sample.rglob("2_scott_0_1_1.npz")))
    assert worst_mm(motion, GENERIC.joint_positions(motion.poses, motion.trans)) < 0.01


def test_angles_have_no_jumps_where_they_wrap() -> None:
    lines = encode_bvh(random_motion(200), GENERIC).decode().partition("Frame Time:")[2].splitlines()[1:]
    values = np.array([line.split() for line in lines], dtype=np.float64)
    assert np.abs(np.diff(values[:, 3:], axis=0)).max() <= 180
