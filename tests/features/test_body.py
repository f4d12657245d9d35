"""Joints and vertices of a body equal a slow restatement with homogeneous matrices, frame by frame."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from body_builders import body_arrays, body_file, slow_body

from omniges.features.body import PARENTS
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
    with pytest.raises(ValueError, match=r"betas \(300,\) expected, found \(10,\)"):
        MODEL.person(np.zeros(10))
    with pytest.raises(ValueError, match="poses"):
        PERSON.joints(POSES[:, :72], TRANS)
    with pytest.raises(ValueError, match="expressions"):
        list(PERSON.vertex_blocks(POSES, FACES[:, :50]))
    with pytest.raises(ValueError, match="another tree"):
        dataclasses.replace(MODEL, parents=(-1, *range(len(JOINT_NAMES) - 1)))
