"""A generic human skeleton with the joints of SMPL-X, for pictures and for rough positions.

**This is not SMPL-X.** No body model is shipped or needed: the bone lengths below are round numbers of an
adult of about 1.7 m, the same for everybody, and neither betas nor expressions change them. Only the order of
the joints, the tree and the meaning of the angles are those of SMPL-X, so that a pose looks as it should.
Positions are good for stick figures and for telling raised hands from lowered ones, not for metrics that
others compute on the body model.

Rest pose: standing in a T along +y, facing +z, the person's left at +x. Shape letters: T frames, J = 55
joints. Angles are radians, lengths metres.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from omniges.features.gesture import JOINT_NAMES, POSE_COLUMNS, matrix_from_six_d, six_d_from_rotvec

F64 = npt.NDArray[np.float64]
_Offset = tuple[float, float, float]

_BLOCK_FRAMES: Final = 1024  # of rotation matrices, which take eight times the memory of positions
PELVIS_BELOW_TRANS_M: Final = 0.35  # SMPL-X's `transl` is where the model's origin goes, not the pelvis joint

# The trunk, the legs and the person's left side; the right side is its mirror image.
_MIDDLE: Final[dict[str, tuple[str | None, _Offset]]] = {
    "pelvis": (None, (0.0, 0.0, 0.0)),
    "spine1": ("pelvis", (0.0, 0.12, -0.02)),
    "spine2": ("spine1", (0.0, 0.13, 0.0)),
    "spine3": ("spine2", (0.0, 0.06, 0.02)),
    "neck": ("spine3", (0.0, 0.21, -0.02)),
    "head": ("neck", (0.0, 0.10, 0.03)),
    "jaw": ("head", (0.0, 0.0, 0.02)),
}
_LEFT: Final[dict[str, tuple[str, _Offset]]] = {
    "hip": ("pelvis", (0.08, -0.09, 0.0)),
    "knee": ("hip", (0.02, -0.38, 0.0)),
    "ankle": ("knee", (0.0, -0.40, -0.02)),
    "foot": ("ankle", (0.02, -0.06, 0.13)),
    "collar": ("spine3", (0.06, 0.11, -0.02)),
    "shoulder": ("collar", (0.11, 0.04, 0.0)),
    "elbow": ("shoulder", (0.26, 0.0, 0.0)),
    "wrist": ("elbow", (0.25, 0.0, 0.0)),
    "eye": ("head", (0.032, 0.06, 0.08)),
    "index1": ("wrist", (0.095, 0.0, 0.025)),
    "index2": ("index1", (0.038, 0.0, 0.0)),
    "index3": ("index2", (0.024, 0.0, 0.0)),
    "middle1": ("wrist", (0.098, 0.0, 0.0)),
    "middle2": ("middle1", (0.042, 0.0, 0.0)),
    "middle3": ("middle2", (0.027, 0.0, 0.0)),
    "pinky1": ("wrist", (0.082, -0.006, -0.042)),
    "pinky2": ("pinky1", (0.030, 0.0, -0.004)),
    "pinky3": ("pinky2", (0.019, 0.0, -0.002)),
    "ring1": ("wrist", (0.092, -0.002, -0.022)),
    "ring2": ("ring1", (0.039, 0.0, -0.002)),
    "ring3": ("ring2", (0.025, 0.0, -0.001)),
    "thumb1": ("wrist", (0.030, -0.012, 0.028)),
    "thumb2": ("thumb1", (0.030, -0.006, 0.026)),
    "thumb3": ("thumb2", (0.026, 0.0, 0.016)),
}


def _joint(name: str) -> tuple[int, _Offset]:
    """Parent index (−1 for the root) and rest offset of one joint."""
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
"""(55, 3) metres: where each joint lies relative to its parent in the rest pose; read-only."""


def joint_positions(poses: npt.NDArray[np.floating], trans: npt.NDArray[np.floating]) -> F64:
    """World positions of the joints by forward kinematics: (T, 165) rad, (T, 3) m to (T, 55, 3) m, float64.

    `poses` are SMPL-X axis-angles relative to the parent, `trans` is SMPL-X's `transl`; the pelvis lies
    0.35 m below it. Raises ValueError on other shapes.
    """
    frames = len(poses)
    if poses.shape != (frames, POSE_COLUMNS) or trans.shape != (frames, 3):
        raise ValueError(f"poses (T, {POSE_COLUMNS}) and trans (T, 3) expected, found {poses.shape}, {trans.shape}")
    root = np.array(trans, dtype=np.float64)
    root[:, 1] -= PELVIS_BELOW_TRANS_M
    return place(poses, REST_OFFSETS, root)


def place(poses: npt.NDArray[np.floating], offsets: F64, root: F64) -> F64:
    """Positions (T, 55, 3) of poses (T, 165) with the pelvis at `root` (T, 3), a block of frames after the other.

    `offsets` (55, 3): where each joint lies relative to its parent in the rest pose.
    """
    positions = np.empty((len(poses), len(PARENTS), 3))
    for start in range(0, len(poses), _BLOCK_FRAMES):
        given = slice(start, start + _BLOCK_FRAMES)
        positions[given] = forward_kinematics(rotations_of(poses[given]), offsets, root[given])[1]
    return positions


def rotations_of(poses: npt.NDArray[np.floating]) -> F64:
    """Rotation matrices (T, 55, 3, 3) of poses (T, 165) rad, each relative to the parent."""
    return matrix_from_six_d(six_d_from_rotvec(poses.reshape(len(poses), len(PARENTS), 3)))


def forward_kinematics(local: F64, offsets: F64, root: F64) -> tuple[F64, F64]:
    """Rotations (T, 55, 3, 3) and positions (T, 55, 3) of the joints in the world.

    `local` (T, 55, 3, 3) are rotations relative to the parent, `offsets` (55, 3) or (T, 55, 3) where each joint lies
    relative to its parent in the rest pose, `root` (T, 3) where the pelvis is.
    """
    world = np.empty_like(local)
    positions = np.empty(local.shape[:-1])
    for joint, parent in enumerate(PARENTS):
        if parent < 0:
            world[:, joint] = local[:, joint]
            positions[:, joint] = root
        else:
            world[:, joint] = world[:, parent] @ local[:, joint]
            turned = world[:, parent] @ offsets[..., joint, :, None]
            positions[:, joint] = positions[:, parent] + turned[..., 0]
    return world, positions
