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
from omniges.features.body import GENERIC, PARENTS, REST_OFFSETS
from omniges.features.gesture import JOINT_NAMES
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
    assert worst_mm(motion, GENERIC.joints(motion.poses, motion.trans)) < 0.01


def test_angles_have_no_jumps_where_they_wrap() -> None:
    lines = encode_bvh(random_motion(200), GENERIC).decode().partition("Frame Time:")[2].splitlines()[1:]
    values = np.array([line.split() for line in lines], dtype=np.float64)
    assert np.abs(np.diff(values[:, 3:], axis=0)).max() <= 180


def test_wrists_move_as_in_the_bvh_that_the_corpus_was_first_published_with(beat2_sample: Path) -> None:
    """BEAT version 1 has the same take on a skeleton of its own, every eighth of 120 frames a second."""
    path = beat2_sample.parent / "other_corpora" / "beat1" / "2_scott_0_1_1.bvh"
    if not path.is_file():
        pytest.skip(f"no BVH of BEAT version 1 at {path}")
    head, _, tail = path.read_text().partition("MOTION")
    rows = tail.strip().splitlines()[2:]  # its header states eight times as many
    first, _ = read_bvh(f"{head}MOTION\nFrames: {len(rows)}\nFrame Time: {1 / 15}\n" + "\n".join(rows))
    motion = read_motion(next(beat2_sample.rglob("2_scott_0_1_1.npz")))
    ours, _ = read_bvh(encode_bvh(motion, GENERIC).decode("ascii"))

    def speed(wrist: np.ndarray, pelvis: np.ndarray) -> np.ndarray:
        return np.linalg.norm(np.diff(wrist - pelvis, axis=0), axis=1)

    for side in ("Left", "Right"):
        theirs = speed(first[f"{side}Hand"], first["Hips"])
        own = speed(ours[f"{side.lower()}_wrist"], ours["pelvis"])
        own, own_s = (own[1:] + own[:-1]) / 2, np.arange(1, len(own)) / 30  # over two frames, as theirs
        theirs_s = (np.arange(len(theirs)) + 0.5) / 15
        found = [
            np.corrcoef(own[10:-10], np.interp(own_s[10:-10] + lag / 30, theirs_s, theirs))[0, 1]
            for lag in np.linspace(-2, 2, 9)
        ]
        assert max(found) > 0.95
