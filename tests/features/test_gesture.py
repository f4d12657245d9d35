"""Gesture channels: right against an independent rotation library, invertible, and as the layout table says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from omniges.features.gesture import (
    JAW_EYES_CHANNELS,
    JOINT_NAMES,
    LAYOUT,
    clip_of_channels,
    gesture_from_motion,
    invalid_rotations,
    matrix_from_six_d,
    motion_from_gesture,
    rotvec_from_matrix,
    six_d_from_rotvec,
    stream_channels,
)

rotvecs = arrays(np.float64, (7, 3), elements=st.floats(-12, 12, allow_nan=False))


def motion(frames: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (
        rng.uniform(-1.5, 1.5, (frames, 165)).astype(np.float32),
        rng.normal(size=(frames, 100)),
        np.cumsum(rng.normal(scale=0.01, size=(frames, 3)), axis=0) + [0.2, 1.3, -0.4],
    )


def angle_between(a: np.ndarray, b: np.ndarray) -> float:
    """Largest rotation angle between two sets of rotation vectors, by scipy."""
    return float((Rotation.from_rotvec(a) * Rotation.from_rotvec(b).inv()).magnitude().max())


class TestLayout:
    def test_blocks_tile_the_415_channels_without_gap_or_overlap(self) -> None:
        blocks = [LAYOUT.upper, LAYOUT.hands, LAYOUT.lower, LAYOUT.root, LAYOUT.face]
        assert [c for block in blocks for c in range(block.start, block.stop)] == list(range(LAYOUT.channels))
        widths = [6 * len(j) for j in (LAYOUT.upper_joints, LAYOUT.hand_joints, LAYOUT.lower_joints)]
        assert [b.stop - b.start for b in blocks[:3]] == widths

    def test_every_joint_but_jaw_and_eyes_is_there_once(self) -> None:
        assert sorted((*LAYOUT.joints, 22, 23, 24)) == list(range(55))

    @pytest.mark.parametrize(
        ("joint", "first"),
        [
            ("left_wrist", 66),
            ("right_wrist", 72),
            ("left_index1", 78),
            ("right_thumb3", 252),
            ("pelvis", 258),
            ("right_foot", 306),
        ],
    )
    def test_known_columns(self, joint: str, first: int) -> None:
        assert LAYOUT.channel_names()[first] == f"{joint}.r00"
        poses = np.zeros((2, 165))
        poses[:, 3 * JOINT_NAMES.index(joint) + 2] = 0.5  # a turn about z shows in r00 and r01 of this joint alone
        clip = gesture_from_motion(poses, np.zeros((2, 100)), np.zeros((2, 3)))
        identity = np.tile([1, 0, 0, 0, 1, 0], 52)
        assert set(np.flatnonzero(clip.gesture[0, :312] != identity)) == {first + k for k in (0, 1, 3, 4)}


class TestRotations:
    @given(rotvecs)
    def test_six_d_is_the_first_two_rows_of_scipys_matrix(self, rotvec: np.ndarray) -> None:
        expected = Rotation.from_rotvec(rotvec).as_matrix()[:, :2, :].reshape(-1, 6)
        assert np.abs(six_d_from_rotvec(rotvec) - expected).max() < 1e-14

    @given(rotvecs)
    def test_round_trip_is_the_same_rotation_of_at_most_pi(self, rotvec: np.ndarray) -> None:
        back = rotvec_from_matrix(matrix_from_six_d(six_d_from_rotvec(rotvec)))
        assert angle_between(back, rotvec) < 1e-14 * 4
        assert np.linalg.norm(back, axis=-1).max() <= np.pi + 1e-12

    @pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-9, 1e-7, 1e-5, 1e-3])
    def test_near_pi_the_round_trip_holds(self, gap: float) -> None:
        axes = np.random.default_rng(1).normal(size=(200, 3))
        rotvec = axes / np.linalg.norm(axes, axis=1, keepdims=True) * (np.pi - gap)
        assert angle_between(rotvec_from_matrix(matrix_from_six_d(six_d_from_rotvec(rotvec))), rotvec) < 2e-8

    def test_zero_is_the_identity_exactly(self) -> None:
        assert six_d_from_rotvec(np.zeros(3)).tolist() == [1, 0, 0, 0, 1, 0]

    @pytest.mark.parametrize("rows", [[0, 0, 0, 0, 1, 0], [1, 0, 0, 2, 0, 0], [np.nan, 0, 0, 0, 1, 0]])
    def test_rows_that_span_no_plane_are_refused(self, rows: list[float]) -> None:
        with pytest.raises(ValueError, match="6D rotation"):
            matrix_from_six_d(np.array(rows))

    def test_rows_that_are_not_orthonormal_are_made_so(self) -> None:
        matrix = matrix_from_six_d(np.random.default_rng(2).normal(size=(50, 6)))
        assert np.abs(matrix @ matrix.transpose(0, 2, 1) - np.eye(3)).max() < 1e-12
        assert np.abs(np.linalg.det(matrix) - 1).max() < 1e-12

    def test_invalid_rotations_are_counted_one_by_one(self) -> None:
        rows = six_d_from_rotvec(np.random.default_rng(0).normal(size=(10, 7, 3)))
        rows.setflags(write=False)
        assert invalid_rotations(rows) == 0
        spoilt = rows.copy()
        spoilt[0, 0] *= 1.2
        spoilt[1, 0, 3:] *= 0.85
        spoilt[2, 0] = 0
        spoilt[3, 0, 4] = np.nan
        spoilt[4, 0, 1] = np.inf
        spoilt[5, 0, 3:] = spoilt[5, 0, :3]
        spoilt[6, 0] *= 1.05  # near enough
        assert invalid_rotations(spoilt) == pytest.approx(6 / 70)
        with pytest.raises(ValueError, match="rotations"):
            invalid_rotations(rows[:, :0])


class TestMotion:
    @settings(max_examples=20)
    @given(st.integers(2, 300), st.integers(0, 100))
    def test_channels_equal_an_independent_float64_computation(self, frames: int, seed: int) -> None:
        poses, expressions, trans = motion(frames, seed)
        gesture = gesture_from_motion(poses, expressions, trans).gesture
        matrices = Rotation.from_rotvec(poses.astype(np.float64).reshape(-1, 3)).as_matrix()
        six = matrices.reshape(frames, 55, 9)[..., :6]
        expected = np.concatenate([six[:, j] for j in LAYOUT.joints], axis=1)
        assert np.abs(gesture[:, :312] - expected).max() < 1e-7
        steps = np.diff(trans, axis=0)
        steps = np.concatenate([steps[:1], steps])
        assert np.allclose(gesture[:, [312, 314]], steps[:, [0, 2]], rtol=1e-6, atol=1e-9)
        assert np.array_equal(gesture[:, 313], trans[:, 1].astype(np.float32))
        assert np.array_equal(gesture[:, 315:], expressions.astype(np.float32))

    @settings(max_examples=20)
    @given(st.integers(2, 300), st.integers(0, 100))
    def test_motion_comes_back(self, frames: int, seed: int) -> None:
        poses, expressions, trans = motion(frames, seed)
        back = motion_from_gesture(gesture_from_motion(poses, expressions, trans))
        assert angle_between(back.poses.reshape(-1, 3), poses.astype(np.float64).reshape(-1, 3)) < 1e-5
        assert np.abs(back.trans - trans).max() < 1e-5
        assert np.abs(back.expressions - expressions).max() < 1e-6

    def test_positions_do_not_drift_over_eleven_minutes(self) -> None:
        poses, expressions, trans = motion(19_800)
        back = motion_from_gesture(gesture_from_motion(poses * 0, expressions, trans))
        assert np.abs(back.trans - trans).max() < 1e-5

    @pytest.mark.parametrize(
        "shape", [((1, 165), (1, 100), (1, 3)), ((4, 156), (4, 100), (4, 3)), ((4, 165), (5, 100), (4, 3))]
    )
    def test_other_shapes_are_refused(self, shape: tuple[tuple[int, int], ...]) -> None:
        with pytest.raises(ValueError, match="165, 100 and 3 columns"):
            gesture_from_motion(*(np.zeros(s) for s in shape))

    def test_inputs_are_left_alone(self) -> None:
        arrays_in = motion(40)
        arrays_in[0][:, :3] *= 5  # angles beyond pi are wrapped, in a copy
        before = [a.copy() for a in arrays_in]
        gesture_from_motion(*arrays_in)
        assert all(np.array_equal(a, b) for a, b in zip(arrays_in, before, strict=True))


class TestStreamChannels:
    @settings(max_examples=20)
    @given(st.integers(2, 40), st.integers(0, 100))
    def test_jaw_and_eyes_come_back_to_the_bit_and_at_rest_without_channels(self, frames: int, seed: int) -> None:
        poses, expressions, trans = motion(frames, seed)
        clip = gesture_from_motion(poses, expressions, trans)
        for channels in (415, 424):
            stream = stream_channels(clip, channels)
            assert stream.shape == (frames, channels)
            back = clip_of_channels(stream, clip.start_xz)
            np.testing.assert_array_equal(back.gesture, clip.gesture)
            found = motion_from_gesture(back).poses[:, 66:75]
            np.testing.assert_array_equal(found, poses[:, 66:75] if channels == 424 else np.zeros((frames, 9)))

    @settings(max_examples=30)
    @given(arrays(np.float32, (5, 9), elements=st.floats(-100, 100, width=32)))
    def test_any_generated_channels_are_rotations(self, jaw_eyes: np.ndarray) -> None:
        stream = stream_channels(gesture_from_motion(*motion(5)), 424)
        stream[:, JAW_EYES_CHANNELS] = jaw_eyes
        found = motion_from_gesture(clip_of_channels(stream, np.zeros(2))).poses[:, 66:75]
        assert np.isfinite(Rotation.from_rotvec(found.reshape(-1, 3)).as_matrix()).all()
        np.testing.assert_array_equal(found, jaw_eyes)


class TestRealRecording:
    def test_jaw_and_eyes_are_far_from_where_axis_angles_jump(self, beat2_sample: Path, beat2_more: Path) -> None:
        """The reason for axis-angles as recorded."""
        for folder, stem in ((beat2_sample, "2_scott_0_1_1"), (beat2_more, "2_scott_0_2_2")):
            with np.load(next(folder.rglob(f"smplxflame_30/{stem}.npz")), allow_pickle=False) as source:
                angles = np.linalg.norm(source["poses"][:, 66:75].reshape(-1, 3), axis=1)
            assert 0.05 < angles.max() < 0.11

    def test_golden_values(self, beat2_sample: Path) -> None:
        source = np.load(beat2_sample / "beat_english_v2.0.0/smplxflame_30/2_scott_0_1_1.npz", allow_pickle=False)
        clip = gesture_from_motion(source["poses"], source["expressions"], source["trans"])
        golden = {
            (0, 0): 0.9973789748,
            (0, 78): 0.9482645343,
            (0, 258): 0.9956709252,
            (0, 312): -2.0237267e-4,
            (0, 313): 1.2881491985,
            (0, 314): 2.4116039e-4,
            (0, 315): 0.2038870035,
            (1905, 311): 0.1606479350,
            (1905, 414): 0.4846644161,
        }
        for place, value in golden.items():
            assert abs(float(clip.gesture[place]) - value) < 3e-7, place
