"""Write motion as BVH with the joint names of SMPL-X.

Lengths are in centimetres, angles in degrees. The y axis points up, and the rest pose faces +z.

Rotations are intrinsic in the order Z, X, Y: R = Rz · Rx · Ry. Each rotation also turns the axes of the next rotations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from omniges.features.body import PARENTS, Skeleton
from omniges.features.gesture import JOINT_NAMES
from omniges.formats.motion import SmplxMotion

F64 = npt.NDArray[np.float64]

_CM: Final = 100.0
_ORDER: Final = "ZXY"
_END_M: Final = 0.02  # length of the bone after the last joint of a chain
_CHILDREN: Final = tuple(
    tuple(child for child, parent in enumerate(PARENTS) if parent == joint) for joint in range(len(PARENTS))
)
_BLOCK_FRAMES: Final = 1024


def encode_bvh(motion: SmplxMotion, skeleton: Skeleton) -> bytes:
    """Encode a motion as a BVH file.

    Args:
        motion: T frames; poses and positions are finite.
        skeleton: Bones of the figure.

    Returns:
        Content of the file in ASCII: the hierarchy, and a line of 168 numbers for each frame.
    """
    rotations = " ".join(f"{axis}rotation" for axis in _ORDER)
    order = list(_depth_first(0))
    lines = ["HIERARCHY", *_hierarchy(skeleton.offsets, rotations), "MOTION"]
    lines += [f"Frames: {len(motion.poses)}", f"Frame Time: {1 / motion.frame_rate_hz:.8f}"]
    turns = np.unwrap(_euler_degrees(motion, skeleton)[:, order], axis=0, period=360.0)
    places = skeleton.pelvis_positions(motion.trans) * _CM
    row = " ".join(["%.4f"] * 3 + ["%.5f"] * (3 * len(order)))
    lines += [
        row % (*place, *turn)
        for place, turn in zip(places.tolist(), turns.reshape(len(turns), -1).tolist(), strict=True)
    ]
    return ("\n".join(lines) + "\n").encode("ascii")


def _depth_first(joint: int) -> Iterator[int]:
    yield joint
    for child in _CHILDREN[joint]:
        yield from _depth_first(child)


def _hierarchy(offsets: F64, rotations: str, joint: int = 0, depth: int = 0) -> Iterator[str]:
    """Yield the hierarchy lines of a joint and of all its descendants."""
    indent, inner = "\t" * depth, "\t" * (depth + 1)
    x, y, z = np.zeros(3) if joint == 0 else offsets[joint] * _CM
    yield f"{indent}{'JOINT' if depth else 'ROOT'} {JOINT_NAMES[joint]}"
    yield f"{indent}{{"
    yield f"{inner}OFFSET {x:.6f} {y:.6f} {z:.6f}"
    yield f"{inner}CHANNELS 3 {rotations}" if depth else f"{inner}CHANNELS 6 Xposition Yposition Zposition {rotations}"
    for child in _CHILDREN[joint]:
        yield from _hierarchy(offsets, rotations, child, depth + 1)
    if not _CHILDREN[joint]:
        along = offsets[joint] / max(float(np.linalg.norm(offsets[joint])), 1e-9) * _END_M * _CM
        yield from (f"{inner}End Site", f"{inner}{{", f"{inner}\tOFFSET {along[0]:.6f} {along[1]:.6f} {along[2]:.6f}")
        yield f"{inner}}}"
    yield f"{indent}}}"


def _euler_degrees(motion: SmplxMotion, skeleton: Skeleton) -> F64:
    """Return the angles (T, 55, 3) in degrees of each joint relative to its parent, in channel order (Z, X, Y)."""
    from scipy.spatial.transform import Rotation  # noqa: PLC0415 - takes 0.2 s, needed by exports only

    found = np.empty((len(motion.poses), len(PARENTS), 3))
    for start in range(0, len(found), _BLOCK_FRAMES):
        local = skeleton.local_rotations(motion.poses[start : start + _BLOCK_FRAMES])
        angles = Rotation.from_matrix(local.reshape(-1, 3, 3)).as_euler(_ORDER, degrees=True)
        found[start : start + len(local)] = angles.reshape(-1, len(PARENTS), 3)
    return found
