"""Forward kinematics with the joints of SMPL-X, for a generic skeleton and for the body of a person.

**The generic skeleton is not SMPL-X.** It needs no body model file. Its bone lengths are round numbers for an adult of
about 1.7 m. They are equal for all people; betas and expressions do not change them. Only the order of the joints, the
joint tree and the meaning of the angles are those of SMPL-X. The joint positions are suitable for stick figures, and
distinguish raised from lowered hands. They are not suitable for metrics that are defined on the body model. In the rest
pose the person stands upright along +y with the arms stretched out (T-pose), faces +z, and has the left side at +x.

The SMPL-X body (Loper et al. 2015, Pavlakos et al. 2019) is computed from the user's model file. The joint regressor
of the file gives the rest joints, and linear blend skinning moves the vertices. In recordings, angles of hands are
relative to the model's mean hand. This module adds the mean hand, as published tools for BEAT2 do.

The last bits of BLAS matrix products differ between CPUs. This is allowed here, because shards do not depend on this
module.

Shape letters: T frames, V vertices, 55 joints. Angles are in radians, lengths in metres, all in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from omniges.features.gesture import BETAS, EXPRESSIONS, JOINT_NAMES, POSE_COLUMNS, matrix_from_six_d, six_d_from_rotvec

F64 = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.floating]
_Offset = tuple[float, float, float]

BLOCK_FRAMES: Final = 32
"""Number of frames in a block of vertices; a frame of SMPL-X's 10475 vertices needs 1 MB of temporaries."""

BODY_COLUMNS: Final = 75  # number of pose columns before those of the hands: body, jaw and eyes
_PLACED_FRAMES: Final = 1024  # frames in a block; rotation matrices take much memory, so long motion is split
PELVIS_BELOW_TRANS_M: Final = 0.35  # the pelvis is below SMPL-X's `transl`, which is the position of the model's origin


# Parent, and offset from the parent in metres, of the joints in the middle and on the left. The right side is the
# mirror image of the left side.
_MIDDLE: Final[dict[str, tuple[str | None, _Offset]]] = {
    "pelvis": (None, (0.0, 0.0, 0.0)),
    "spine1": ("pelvis", (0.0, 0.12, -0.02)),
    "spine2": ("spine1", (0.0, 0.13, 0.0)),
    "spine3": ("spine2", (0.0, 0.06, 0.02)),
    "neck": ("spine3", (0.0, 0.21, -0.02)),
    "head": ("neck", (0.0, 0.10, 0.03)),
    "jaw": ("head", (0.0, 0.0, 0.02)),
}
_LEFT: dict[str, tuple[str, _Offset]] = {
    "hip": ("pelvis", (0.08, -0.09, 0.0)),
    "knee": ("hip", (0.02, -0.38, 0.0)),
    "ankle": ("knee", (0.0, -0.40, -0.02)),
    "foot": ("ankle", (0.02, -0.06, 0.13)),
    "collar": ("spine3", (0.06, 0.11, -0.02)),
    "shoulder": ("collar", (0.11, 0.04, 0.0)),
    "elbow": ("shoulder", (0.26, 0.0, 0.0)),
    "wrist": ("elbow", (0.25, 0.0, 0.0)),
    "eye": ("head", (0.032, 0.06, 0.08)),
}
_LEFT_FINGERS: Final[dict[str, tuple[_Offset, _Offset, _Offset]]] = {  # three joints each, the first next to the wrist
    "index": ((0.095, 0.0, 0.025), (0.038, 0.0, 0.0), (0.024, 0.0, 0.0)),
    "middle": ((0.098, 0.0, 0.0), (0.042, 0.0, 0.0), (0.027, 0.0, 0.0)),
    "pinky": ((0.082, -0.006, -0.042), (0.030, 0.0, -0.004), (0.019, 0.0, -0.002)),
    "ring": ((0.092, -0.002, -0.022), (0.039, 0.0, -0.002), (0.025, 0.0, -0.001)),
    "thumb": ((0.030, -0.012, 0.028), (0.030, -0.006, 0.026), (0.026, 0.0, 0.016)),
}
_LEFT |= {
    f"{finger}{k}": (f"{finger}{k - 1}" if k > 1 else "wrist", offset)
    for finger, offsets in _LEFT_FINGERS.items()
    for k, offset in enumerate(offsets, 1)
}


def _joint(name: str) -> tuple[int, _Offset]:
    """Return the parent index (−1 for the root) and the rest offset of a joint."""
    if name in _MIDDLE:
        parent, offset = _MIDDLE[name]
        return (-1 if parent is None else JOINT_NAMES.index(parent)), offset
    side, _, part = name.partition("_")
    parent, (x, y, z) = _LEFT[part]
    owner = parent if parent in _MIDDLE else f"{side}_{parent}"
    return JOINT_NAMES.index(owner), ((x if side == "left" else -x), y, z)


PARENTS: Final[tuple[int, ...]] = tuple(_joint(name)[0] for name in JOINT_NAMES)
"""Parent of each of the 55 joints, −1 for the pelvis; a parent always comes before its children."""

REST_OFFSETS: Final[F64] = np.array([_joint(name)[1] for name in JOINT_NAMES])
REST_OFFSETS.setflags(write=False)
"""(55, 3) metres: offset of each joint from its parent in the rest pose; read-only."""


def rotations_of(poses: Numbers) -> F64:
    """Convert poses (T, 165) in radians to rotation matrices (T, 55, 3, 3), each relative to the joint's parent."""
    return matrix_from_six_d(six_d_from_rotvec(poses.reshape(len(poses), len(PARENTS), 3)))


def forward_kinematics(local: F64, offsets: F64, root: F64) -> tuple[F64, F64]:
    """Return the rotations and positions of the joints in world coordinates.

    Args:
        local: Rotations (T, 55, 3, 3) relative to the parent.
        offsets: Offset (55, 3) or (T, 55, 3) of each joint from its parent in the rest pose.
        root: Position (T, 3) of the pelvis.

    Returns:
        Rotations (T, 55, 3, 3) and positions (T, 55, 3), both in world coordinates.
    """
    world = np.empty_like(local)
    positions = np.empty(local.shape[:-1])
    for joint, parent in enumerate(PARENTS):
        if parent < 0:
            world[:, joint] = local[:, joint]
            positions[:, joint] = root
        else:
            world[:, joint] = world[:, parent] @ local[:, joint]
            rotated = world[:, parent] @ offsets[..., joint, :, None]
            positions[:, joint] = positions[:, parent] + rotated[..., 0]
    return world, positions


def parent_offsets(joints: F64) -> F64:
    """Convert joint positions (..., 55, 3) to offsets from the parent. The pelvis has the offset 0."""
    return joints - joints[..., [max(parent, 0) for parent in PARENTS], :]


@dataclass(frozen=True, slots=True, eq=False)
class Skeleton:
    """Bones of a figure in the joint order of `JOINT_NAMES`; lengths in metres, +y upwards, facing +z."""

    offsets: F64
    """(55, 3) position of each joint relative to its parent in the rest pose; zeros for the pelvis."""
    pelvis: F64
    """(3,) position of the pelvis relative to SMPL-X's ``transl``."""
    mean_hands: F64
    """(90,) angles in radians, left then right, that are added to the angles of the hands."""

    @property
    def rest_positions(self) -> F64:
        """Positions (55, 3) of the joints in metres, in the rest pose with the pelvis at the origin."""
        turned = np.broadcast_to(np.eye(3), (1, len(PARENTS), 3, 3))
        return np.asarray(forward_kinematics(turned, self.offsets, np.zeros((1, 3)))[1][0])

    def local_rotations(self, poses: Numbers) -> F64:
        """Convert poses (T, 165) in radians to rotation matrices (T, 55, 3, 3), after adding the mean hands."""
        if poses.ndim != 2 or poses.shape[1] != POSE_COLUMNS:
            raise ValueError(f"expected poses (T, {POSE_COLUMNS}), found {poses.shape}")
        full = np.array(poses, dtype=np.float64)
        full[:, BODY_COLUMNS:] += self.mean_hands
        return rotations_of(full)

    def pelvis_positions(self, trans: Numbers) -> F64:
        """Convert SMPL-X's ``transl`` (T, 3) to positions (T, 3) of the pelvis, both in metres."""
        return np.asarray(trans + self.pelvis, np.float64)

    def joints(self, poses: Numbers, trans: Numbers) -> F64:
        """Return world positions of the joints by forward kinematics, with a neutral face.

        Args:
            poses: Axis-angles (T, 165) in radians, relative to the parent.
            trans: SMPL-X's ``transl`` (T, 3) in metres.

        Returns:
            Positions (T, 55, 3) in metres.

        Raises:
            ValueError: A shape is wrong.
        """
        if trans.shape != (len(poses), 3):
            raise ValueError(f"expected trans ({len(poses)}, 3), found {trans.shape}")
        positions = np.empty((len(poses), len(PARENTS), 3))
        for start in range(0, len(poses), _PLACED_FRAMES):
            given = slice(start, start + _PLACED_FRAMES)
            root = self.pelvis_positions(trans[given])
            positions[given] = forward_kinematics(self.local_rotations(poses[given]), self.offsets, root)[1]
        return positions


GENERIC: Final = Skeleton(
    REST_OFFSETS, np.array([0.0, -PELVIS_BELOW_TRANS_M, 0.0]), np.zeros(POSE_COLUMNS - BODY_COLUMNS)
)
"""The generic skeleton: bones of an adult of about 1.7 m, the same for all people."""


@dataclass(frozen=True, slots=True)
class BodyModel:
    """The arrays of a body model in metres, in the joint order of `JOINT_NAMES`."""

    template: F64  # (V, 3) vertices of the mean person in the rest pose
    shape_directions: F64  # (V, 3, 300) movement of the vertices per shape coefficient
    expression_directions: F64  # (V, 3, 100) movement of the vertices per expression coefficient
    pose_directions: F64  # (V, 3, 486) movement per entry of (R − I), for rotations R of joints 1 to 54, row-major
    joint_regressor: F64  # (55, V) weights of the vertices whose sum is a rest joint
    weights: F64  # (V, 55) skinning weights; each row sums to 1
    parents: tuple[int, ...]  # parents of the 55 joints, −1 for the pelvis
    mean_hands: F64  # (90,) angles in radians, left then right, that are added to the angles of the hands
    triangles: npt.NDArray[np.int32] | None = None  # (n, 3) vertices, counterclockwise from outside; None: unknown

    def __post_init__(self) -> None:
        """Raise ValueError if the joint tree differs from that of SMPL-X."""
        if self.parents != PARENTS:
            raise ValueError("a tree of joints that differs from SMPL-X's")

    @property
    def vertices(self) -> int:
        """Number of vertices V."""
        return len(self.template)

    def person(self, betas: Numbers) -> Person:
        """Return the body of a person with shape coefficients (n,), n at most 300; missing coefficients are 0."""
        if betas.ndim != 1 or len(betas) > BETAS:
            raise ValueError(f"expected at most {BETAS} betas, found {betas.shape}")
        rest = self.template + self.shape_directions @ np.pad(betas.astype(np.float64), (0, BETAS - len(betas)))
        return Person(self, rest, self.joint_regressor @ rest)


@dataclass(frozen=True, slots=True)
class Person:
    """A body with one person's shape, in the rest pose with a neutral face."""

    model: BodyModel
    rest_vertices: F64  # (V, 3)
    rest_joints: F64  # (55, 3)

    @property
    def skeleton(self) -> Skeleton:
        """The bones of the person."""
        return Skeleton(parent_offsets(self.rest_joints), self.rest_joints[0], self.model.mean_hands)

    def joints(self, poses: Numbers, trans: Numbers) -> F64:
        """Return world positions of the joints; see `Skeleton.joints`.

        Args:
            poses: Axis-angles (T, 165) in radians.
            trans: SMPL-X's ``transl`` (T, 3) in metres.

        Returns:
            Positions (T, 55, 3) in metres.
        """
        return self.skeleton.joints(poses, trans)

    def vertex_blocks(self, poses: Numbers, expressions: Numbers, block_frames: int = BLOCK_FRAMES) -> Iterator[F64]:
        """Yield the vertices of a motion in blocks of frames, computed with ``transl`` = 0.

        As in SMPL-X, expressions also move the joints of the rest pose.

        Args:
            poses: Axis-angles (T, 165) in radians.
            expressions: Coefficients (T, 100).
            block_frames: Frames in a block.

        Yields:
            Vertices (up to `block_frames`, V, 3) in metres.

        Raises:
            ValueError: A shape is wrong.
        """
        frames = len(poses)
        if poses.shape != (frames, POSE_COLUMNS) or expressions.shape != (frames, EXPRESSIONS):
            found = f"{poses.shape}, {expressions.shape}"
            raise ValueError(f"expected poses (T, {POSE_COLUMNS}), expressions (T, {EXPRESSIONS}), found {found}")
        model, skeleton = self.model, self.skeleton
        joint_directions = np.einsum("jv,vce->jce", model.joint_regressor, model.expression_directions, optimize=True)
        faces = model.expression_directions.reshape(-1, EXPRESSIONS).T
        for start in range(0, frames, block_frames):
            given = slice(start, start + block_frames)
            weights = np.asarray(expressions[given], dtype=np.float64)
            shaped = self.rest_vertices + (weights @ faces).reshape(len(weights), -1, 3)
            joints = self.rest_joints + np.einsum("jce,te->tjc", joint_directions, weights, optimize=True)
            yield self._skinned(skeleton.local_rotations(poses[given]), shaped, joints)

    def _skinned(self, local: F64, shaped: F64, joints: F64) -> F64:
        """Move vertices from the rest pose to a given pose: add pose corrections, then apply linear blend skinning.

        Args:
            local: Rotations (T, 55, 3, 3) relative to the parent.
            shaped: Vertices (T, V, 3) in the rest pose, with the shape and the expressions.
            joints: Joints (T, 55, 3) in the rest pose.

        Returns:
            Vertices (T, V, 3) in metres.
        """
        frames = len(local)
        features = (local[:, 1:] - np.eye(3)).reshape(frames, -1)
        directions = self.model.pose_directions.reshape(-1, features.shape[1])
        # If only the face moves, nearly all features are constant in the block; their sum is computed only once.
        moving = (features != features[0]).any(axis=0)
        posed = shaped + (directions @ features[0]).reshape(-1, 3)
        if moving.any():
            change = (features - features[0])[:, moving] @ directions[:, moving].T
            posed += change.reshape(posed.shape)
        world, positions = forward_kinematics(local, parent_offsets(joints), joints[:, 0])
        shift = positions - (world @ joints[..., None])[..., 0]
        transforms = np.concatenate([world, shift[..., None]], axis=-1).reshape(frames, len(PARENTS), 12)
        blended = (self.model.weights @ transforms).reshape(frames, -1, 3, 4)
        return np.asarray(np.einsum("tvij,tvj->tvi", blended[..., :3], posed) + blended[..., 3])
