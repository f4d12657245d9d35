"""Joints and vertices of a body equal a slow restatement with homogeneous matrices, frame by frame.

The generic skeleton: a proper tree, rigid bones, and angles that mean what SMPL-X means by them.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from body_builders import body_arrays, body_file, slow_body
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from omniges.features.body import GENERIC, PARENTS, PELVIS_BELOW_TRANS_M, REST_OFFSETS
from omniges.features.gesture import JOINT_NAMES
from omniges.formats.body_model import decode_body_model

ARRAYS = body_arrays(vertices=40)
RNG = np.random.default_rng(1)
BETAS = RNG.normal(0, 1, 300)
POSES = RNG.normal(0, 0.4, (5, 165))
FACES = RNG.normal(0, 1, (5, 100))
TRANS = RNG.normal(0, 1, (5, 3))


MODEL = decode_body_model(body_file(40, 0))
PERSON = MODEL.person(BETAS)


def vertices_of(poses: np.ndarray, expressions: np.ndarray, block_frames: int = 32) -> np.ndarray:
    return np.concatenate(list(PERSON.vertex_blocks(poses, expressions, block_frames)))


def test_joints_are_those_of_the_slow_body() -> None:
    found = PERSON.joints(POSES, TRANS)
    for frame in range(5):
        expected, _ = slow_body(ARRAYS, BETAS, np.zeros(100), POSES[frame], TRANS[frame])
        np.testing.assert_allclose(found[frame], expected, atol=1e-12)


def test_vertices_are_those_of_the_slow_body_with_expressions_and_a_whole_pose() -> None:
    found = vertices_of(POSES, FACES)
    for frame in range(5):
        _, expected = slow_body(ARRAYS, BETAS, FACES[frame], POSES[frame], np.zeros(3))
        np.testing.assert_allclose(found[frame], expected, atol=1e-12)


def test_vertices_of_a_face_alone_are_those_of_the_slow_body() -> None:
    poses = np.zeros((3, 165))
    poses[:, 66:69] = POSES[:3, 66:69]
    found = vertices_of(poses, FACES[:3])
    for frame in range(3):
        _, expected = slow_body(ARRAYS, BETAS, FACES[frame], poses[frame], np.zeros(3))
        np.testing.assert_allclose(found[frame], expected, atol=1e-12)
    still = vertices_of(np.zeros((2, 165)), np.zeros((2, 100)))
    np.testing.assert_allclose(still[0], slow_body(ARRAYS, BETAS, np.zeros(100), np.zeros(165), np.zeros(3))[1])


@pytest.mark.parametrize("block_frames", [1, 2, 3, 5, 99])
def test_blocks_do_not_matter(block_frames: int) -> None:
    blocks = list(PERSON.vertex_blocks(POSES, FACES, block_frames))
    assert [len(block) for block in blocks[:-1]] == [block_frames] * (len(blocks) - 1)
    np.testing.assert_allclose(np.concatenate(blocks), vertices_of(POSES, FACES), atol=1e-12)


def test_turning_the_root_turns_joints_about_the_pelvis() -> None:
    poses = POSES.copy()
    poses[:, :3] = 0
    turned = poses.copy()
    turned[:, 1] = np.pi / 2
    zero = np.zeros((5, 3))
    straight, quarter = PERSON.joints(poses, zero), PERSON.joints(turned, zero)
    about = straight - straight[:, :1]
    np.testing.assert_allclose(quarter - quarter[:, :1], about[..., [2, 1, 0]] * [1, 1, -1], atol=1e-12)
    np.testing.assert_allclose(PERSON.joints(poses, zero + 3.0), straight + 3.0, atol=1e-12)


def test_bones_keep_their_lengths_and_betas_change_them() -> None:
    def lengths(joints: np.ndarray) -> np.ndarray:
        return np.linalg.norm(joints[:, 1:] - joints[:, list(PARENTS[1:])], axis=-1)

    own = lengths(PERSON.joints(POSES, TRANS))
    np.testing.assert_allclose(own, np.broadcast_to(own[:1], own.shape), rtol=1e-10)
    other = lengths(MODEL.person(np.zeros(300)).joints(POSES, TRANS))
    assert np.abs(other - own).max() > 1e-3


def test_inputs_are_not_modified() -> None:
    given = [array.copy() for array in (POSES, FACES, TRANS, BETAS)]
    for array in given:
        array.setflags(write=False)
    person = MODEL.person(given[3])
    person.joints(given[0], given[2])
    list(person.vertex_blocks(given[0], given[1]))
    for array, kept in zip(given, (POSES, FACES, TRANS, BETAS), strict=True):
        np.testing.assert_array_equal(array, kept)


def test_other_shapes_and_another_tree_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected at most 300 betas, found \(301,\)"):
        MODEL.person(np.zeros(301))
    with pytest.raises(ValueError, match="poses"):
        PERSON.joints(POSES[:, :72], TRANS)
    with pytest.raises(ValueError, match="expressions"):
        list(PERSON.vertex_blocks(POSES, FACES[:, :50]))
    with pytest.raises(ValueError, match="a tree of joints that differs"):
        dataclasses.replace(MODEL, parents=(-1, *range(len(JOINT_NAMES) - 1)))


def _joint(name):
    return JOINT_NAMES.index(name)


def _rest_positions():
    positions = np.zeros((55, 3))
    for joint in range(1, 55):
        chain, node = np.zeros(3), joint
        while node > 0:
            chain += REST_OFFSETS[node]
            node = PARENTS[node]
        positions[joint] = chain
    return positions


def test_the_tree_is_that_of_smplx():
    body = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 15, 15, 15)
    hands = [
        p for wrist, first in ((20, 25), (21, 40)) for k in range(5) for p in (wrist, first + 3 * k, first + 3 * k + 1)
    ]
    assert (*body, *hands) == PARENTS


def test_parents_precede_children():
    assert all(parent < joint for joint, parent in enumerate(PARENTS))


def test_offsets_are_read_only_and_mirrored():
    assert not REST_OFFSETS.flags.writeable
    for name in JOINT_NAMES:
        if name.startswith("left_"):
            left, right = REST_OFFSETS[_joint(name)], REST_OFFSETS[_joint(name.replace("left_", "right_"))]
            np.testing.assert_array_equal(left, right * [-1, 1, 1])
            assert left[0] > 0 or name == "left_ankle"


def test_rest_pose_is_the_sum_of_offsets_below_trans():
    trans = np.array([[0.2, 1.3, -0.4], [0.0, 0.0, 0.0]])
    positions = GENERIC.joints(np.zeros((2, 165), dtype=np.float32), trans)
    assert positions.dtype == np.float64
    expected = _rest_positions() + trans[:, None] - [0, PELVIS_BELOW_TRANS_M, 0]
    np.testing.assert_allclose(positions, expected, atol=1e-12)


def test_rest_pose_is_an_upright_adult_in_a_t():
    at = _rest_positions()
    height_above_sole = at[_joint("left_eye"), 1] - at[_joint("left_foot"), 1] + 0.02
    assert 1.5 < height_above_sole < 1.65  # the eyes of an adult of about 1.7 m
    assert at[_joint("left_wrist"), 1] == pytest.approx(at[_joint("left_shoulder"), 1])
    assert at[_joint("left_wrist"), 0] > 0.5 > -0.5 > at[_joint("right_wrist"), 0]
    assert at[_joint("left_foot"), 2] > at[_joint("left_ankle"), 2]  # toes forward: it faces +z


@settings(max_examples=40, deadline=None)
@given(arrays(np.float64, (3, 165), elements=st.floats(-7, 7)), arrays(np.float64, (3, 3), elements=st.floats(-5, 5)))
def test_bones_keep_their_lengths(poses, trans):
    positions = GENERIC.joints(poses, trans)
    bones = positions[:, 1:] - positions[:, list(PARENTS[1:])]
    expected = np.broadcast_to(np.linalg.norm(REST_OFFSETS[1:], axis=1), (3, 54))
    np.testing.assert_allclose(np.linalg.norm(bones, axis=2), expected, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(arrays(np.float64, (1, 165), elements=st.floats(-3, 3)), st.floats(-3, 3))
def test_turning_the_root_turns_everything(poses, yaw):
    poses[:, :3] = 0
    turned = poses.copy()
    turned[:, 1] = yaw
    pelvis = np.array([0, -PELVIS_BELOW_TRANS_M, 0])
    rotation = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    before = GENERIC.joints(poses, np.zeros((1, 3)))[0] - pelvis
    after = GENERIC.joints(turned, np.zeros((1, 3)))[0] - pelvis
    np.testing.assert_allclose(after, before @ rotation.T, atol=1e-9)


def test_a_bent_left_elbow_points_the_forearm_forward():
    poses = np.zeros((1, 165))
    poses[0, 3 * _joint("left_elbow") + 1] = -np.pi / 2  # about the vertical, towards +z
    positions = GENERIC.joints(poses, np.zeros((1, 3)))[0]
    elbow, wrist, knuckle = (positions[_joint(f"left_{part}")] for part in ("elbow", "wrist", "middle1"))
    np.testing.assert_allclose(wrist - elbow, [0, 0, 0.25], atol=1e-12)
    np.testing.assert_allclose(knuckle - wrist, [0, 0, 0.098], atol=1e-12)
    rest = GENERIC.joints(np.zeros((1, 165)), np.zeros((1, 3)))[0]
    others = [j for j in range(55) if not 25 <= j < 40 and j != _joint("left_wrist")]
    np.testing.assert_allclose(positions[others], rest[others], atol=1e-12)


def test_lowered_arm_hangs_beside_the_body():
    poses = np.zeros((1, 165))
    poses[0, 3 * _joint("left_shoulder") + 2] = -np.pi / 2
    positions = GENERIC.joints(poses, np.zeros((1, 3)))[0]
    hanging = positions[_joint("left_wrist")] - positions[_joint("left_shoulder")]
    np.testing.assert_allclose(hanging, [0, -0.51, 0], atol=1e-12)


@pytest.mark.parametrize(("poses", "trans"), [((2, 164), (2, 3)), ((2, 165), (3, 3)), ((2, 165), (2, 2))])
def test_other_shapes_are_refused(poses, trans):
    with pytest.raises(ValueError, match="expected"):
        GENERIC.joints(np.zeros(poses), np.zeros(trans))
