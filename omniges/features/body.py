"""The SMPL-X body: rest joints from its regressor, forward kinematics, and linear blend skinning of its vertices.

Loper et al. (2015), Pavlakos et al. (2019). The model itself is a file of the user's, of which nothing is shipped.
Angles of hands are relative to the model's mean hand, which is added here, as every published tool of BEAT2 calls the
model. Letters: T frames, V vertices, 55 joints. Angles are radians, lengths metres; all in float64. None of it reaches
shards, so matrix products may come from BLAS, whose last bits differ between CPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from omniges.features.gesture import BETAS, EXPRESSIONS, POSE_COLUMNS
from omniges.features.skeleton import PARENTS, forward_kinematics, place, rotations_of

F64 = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.floating]

BLOCK_FRAMES: Final = 32
"""Frames of vertices that are computed at once: 1 MB of temporaries a frame at SMPL-X's 10475 vertices."""

_JOINTS: Final = len(PARENTS)
_BODY_COLUMNS: Final = 75  # of a pose, before the hands'


@dataclass(frozen=True, slots=True)
class BodyModel:
    """The arrays of a body model in metres, in the joint order of `JOINT_NAMES`."""

    template: F64  # (V, 3)
    shape_directions: F64  # (V, 3, 300)
    expression_directions: F64  # (V, 3, 100)
    pose_directions: F64  # (V, 3, 486), of the matrices of joints 1 to 54 less the identity, row by row
    joint_regressor: F64  # (55, V)
    weights: F64  # (V, 55), each row sums to 1
    parents: tuple[int, ...]  # 55, −1 for the pelvis
    mean_hands: F64  # (90,) rad, left and right: what the model adds to the angles of hands

    def __post_init__(self) -> None:
        """Refuse another tree of joints; raises ValueError."""
        if self.parents != PARENTS:
            raise ValueError("joints in another tree than SMPL-X's")

    @property
    def vertices(self) -> int:
        """V."""
        return len(self.template)

    def person(self, betas: Numbers) -> Person:
        """The body of a person with shape coefficients (300,). Raises ValueError on another shape."""
        if betas.shape != (BETAS,):
            raise ValueError(f"betas ({BETAS},) expected, found {betas.shape}")
        rest = self.template + self.shape_directions @ betas.astype(np.float64)
        return Person(self, rest, self.joint_regressor @ rest)


@dataclass(frozen=True, slots=True)
class Person:
    """A body with one person's shape, in the rest pose with a neutral face."""

    model: BodyModel
    rest_vertices: F64  # (V, 3)
    rest_joints: F64  # (55, 3)

    def joints(self, poses: Numbers, trans: Numbers) -> F64:
        """Joints (T, 55, 3) of poses (T, 165) at `transl` (T, 3), face neutral. Raises ValueError on other shapes."""
        frames = len(poses)
        if poses.shape != (frames, POSE_COLUMNS) or trans.shape != (frames, 3):
            raise ValueError(f"poses (T, {POSE_COLUMNS}) and trans (T, 3) expected, found {poses.shape}, {trans.shape}")
        return place(self._with_mean_hands(poses), _offsets(self.rest_joints), self.rest_joints[0] + trans)

    def vertex_blocks(self, poses: Numbers, expressions: Numbers, block_frames: int = BLOCK_FRAMES) -> Iterator[F64]:
        """Vertices (up to `block_frames`, V, 3) of poses (T, 165) and expressions (T, 100), block after block.

        `transl` is zero. Expressions move rest joints too, as in SMPL-X. Raises ValueError on other shapes.
        """
        frames = len(poses)
        if poses.shape != (frames, POSE_COLUMNS) or expressions.shape != (frames, EXPRESSIONS):
            found = f"{poses.shape}, {expressions.shape}"
            raise ValueError(f"poses (T, {POSE_COLUMNS}), expressions (T, {EXPRESSIONS}) expected, found {found}")
        model = self.model
        joint_directions = np.einsum("jv,vce->jce", model.joint_regressor, model.expression_directions, optimize=True)
        faces = model.expression_directions.reshape(-1, EXPRESSIONS).T
        for start in range(0, frames, block_frames):
            given = slice(start, start + block_frames)
            weights = np.asarray(expressions[given], dtype=np.float64)
            shaped = self.rest_vertices + (weights @ faces).reshape(len(weights), -1, 3)
            joints = self.rest_joints + np.einsum("jce,te->tjc", joint_directions, weights, optimize=True)
            yield self._skinned(rotations_of(self._with_mean_hands(poses[given])), shaped, joints)

    def _with_mean_hands(self, poses: Numbers) -> F64:
        full = np.array(poses, dtype=np.float64)
        full[:, _BODY_COLUMNS:] += self.model.mean_hands
        return full

    def _skinned(self, local: F64, shaped: F64, joints: F64) -> F64:
        """Shaped vertices (T, V, 3) with rest joints (T, 55, 3) in a pose of rotations (T, 55, 3, 3)."""
        frames = len(local)
        features = (local[:, 1:] - np.eye(3)).reshape(frames, -1)
        directions = self.model.pose_directions.reshape(-1, features.shape[1])
        # Of a face alone nearly all features stay what they are in the first frame: those are one sum for the block.
        moving = (features != features[0]).any(axis=0)
        posed = shaped + (directions @ features[0]).reshape(-1, 3)
        if moving.any():
            change = (features - features[0])[:, moving] @ directions[:, moving].T
            posed += change.reshape(posed.shape)
        world, positions = forward_kinematics(local, _offsets(joints), joints[:, 0])
        shift = positions - (world @ joints[..., None])[..., 0]
        transforms = np.concatenate([world, shift[..., None]], axis=-1).reshape(frames, _JOINTS, 12)
        blended = (self.model.weights @ transforms).reshape(frames, -1, 3, 4)
        return np.asarray(np.einsum("tvij,tvj->tvi", blended[..., :3], posed) + blended[..., 3])


def _offsets(joints: F64) -> F64:
    """Where each joint (..., 55, 3) lies relative to its parent; the pelvis' is not used."""
    return joints - joints[..., [max(parent, 0) for parent in PARENTS], :]
