"""The body of exported figures: a capsule along each bone, made here and bound only to the bone's joint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from omniges.features.body import PARENTS
from omniges.features.gesture import JOINT_NAMES
from omniges.features.skeleton import Skeleton

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]

_SIDES: Final = 10
_CAP_RINGS: Final = 3
_RADII_M: Final = {
    "pelvis": 0.085,
    "spine": 0.11,
    "neck": 0.05,
    "head": 0.085,
    "collar": 0.06,
    "shoulder": 0.045,
    "elbow": 0.037,
    "wrist": 0.018,
    "hip": 0.075,
    "knee": 0.05,
    "ankle": 0.035,
    "foot": 0.03,
    "jaw": 0.03,
    "eye": 0.012,
}
_FINGER_M: Final = 0.009
_TIPS_M: Final = {
    "head": (0.0, 0.1, 0.01),
    "jaw": (0.0, -0.04, 0.06),
    "eye": (0.0, 0.0, 0.005),
    "foot": (0.0, 0.0, 0.05),
}
_FINGER_TIP_M: Final = 0.02


@dataclass(frozen=True, slots=True, eq=False)
class Mesh:
    """V vertices in the rest pose, the pelvis at the origin, and F triangles."""

    positions: F32  # (V, 3) metres
    normals: F32  # (V, 3)
    joints: npt.NDArray[np.uint8]  # (V,) the joint that moves each vertex
    triangles: npt.NDArray[np.uint16]  # (F, 3)


def figure_of(skeleton: Skeleton) -> Mesh:
    """Return the mesh of a skeleton."""
    rest = skeleton.rest_positions
    bones = [
        (parent, rest[parent], rest[child])
        for child, parent in enumerate(PARENTS)
        if parent >= 0 and not _is_face(child)
    ]
    leaves = sorted(set(range(len(PARENTS))) - {parent for child, parent in enumerate(PARENTS) if not _is_face(child)})
    bones += [(joint, rest[joint], rest[joint] + _tip(skeleton, joint)) for joint in leaves]
    parts = [_capsule(start, end, _radius(joint)) for joint, start, end in bones]
    firsts = np.cumsum([0, *(len(positions) for positions, _, _ in parts)])
    return Mesh(
        np.concatenate([positions for positions, _, _ in parts]).astype(np.float32),
        np.concatenate([normals for _, normals, _ in parts]).astype(np.float32),
        np.repeat([joint for joint, _, _ in bones], np.diff(firsts)).astype(np.uint8),
        np.concatenate([faces + first for (_, _, faces), first in zip(parts, firsts[:-1], strict=True)]).astype(
            np.uint16
        ),
    )


def _is_face(joint: int) -> bool:
    return JOINT_NAMES[joint] in {"jaw", "left_eye", "right_eye"}


def _part(joint: int) -> str:
    """Return the name of a joint without side and number."""
    return JOINT_NAMES[joint].rpartition("_")[2].rstrip("0123456789")


def _radius(joint: int) -> float:
    return _RADII_M.get(_part(joint), _FINGER_M)


def _tip(skeleton: Skeleton, joint: int) -> F64:
    """Return where the last bone of a chain ends, relative to its joint."""
    part = _part(joint)
    if part in _TIPS_M:
        return np.array(_TIPS_M[part])
    along = skeleton.offsets[joint]
    return np.asarray(along * (_FINGER_TIP_M / np.linalg.norm(along)))


def _capsule(start: F64, end: F64, radius: float) -> tuple[F64, F64, npt.NDArray[np.int64]]:
    """Return vertices, normals and triangles of a cylinder between two points with half a ball at each end."""
    along = end - start
    along /= np.linalg.norm(along)
    side = np.cross(along, np.eye(3)[np.argmin(np.abs(along))])
    side /= np.linalg.norm(side)
    frame = np.stack([side, np.cross(along, side), along])
    angles = 2 * np.pi * np.arange(_SIDES) / _SIDES
    tilts = np.linspace(-np.pi / 2, 0, _CAP_RINGS + 1)  # from the pole to the equator
    rings = [(tilt, start) for tilt in tilts] + [(-tilt, end) for tilt in tilts[::-1]]
    normals = np.concatenate(
        [
            np.stack(
                [np.cos(tilt) * np.cos(angles), np.cos(tilt) * np.sin(angles), np.full(_SIDES, np.sin(tilt))], axis=1
            )
            for tilt, _ in rings
        ]
    )
    normals = normals @ frame
    positions = np.repeat(np.stack([centre for _, centre in rings]), _SIDES, axis=0) + radius * normals
    here = np.arange(_SIDES)
    ahead = (here + 1) % _SIDES
    quads = [
        np.stack([a + here, a + ahead, b + ahead, a + here, b + ahead, b + here], axis=1).reshape(-1, 3)
        for a, b in ((ring * _SIDES, (ring + 1) * _SIDES) for ring in range(len(rings) - 1))
    ]
    return positions, normals, np.concatenate(quads)
