"""Conversion of SMPL-X motion to the 415 gesture channels and back.

Shape letters: T frames, J joints, D = 415 channels. Angles are in radians, lengths in metres; a frame is 1/30 s.

All values are computed in float64 and rounded once to float32. Sine and cosine are computed as polynomials, with IEEE
additions and multiplications only, because shards must be identical on all CPUs. The C library's sine and cosine
differ in their last bit between CPUs with and without fused multiply-add.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from omniges.features.channels import WITH_JAW_EYES

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_FINGERS = ("index", "middle", "pinky", "ring", "thumb")
JOINT_NAMES: Final[tuple[str, ...]] = (
    *("pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2", "left_ankle"),
    *("right_ankle", "spine3", "left_foot", "right_foot", "neck", "left_collar", "right_collar", "head"),
    *("left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist"),
    *("jaw", "left_eye", "right_eye"),
    *(f"left_{finger}{k}" for finger in _FINGERS for k in (1, 2, 3)),
    *(f"right_{finger}{k}" for finger in _FINGERS for k in (1, 2, 3)),
)
POSE_COLUMNS: Final = 3 * len(JOINT_NAMES)
EXPRESSIONS: Final = 100
BETAS: Final = 300
JAW_EYES: Final = 9
JAW_EYES_COLUMNS: Final = slice(66, 75)  # of the 165 pose columns: jaw, left eye, right eye
_ROTATION_TOLERANCE: Final = 0.1


class GestureLayout:
    """Layout of the 415 channels: the columns of each feature, and the SMPL-X joints of the rotations."""

    upper_joints: ClassVar[tuple[int, ...]] = (3, 6, 9, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21)
    hand_joints: ClassVar[tuple[int, ...]] = tuple(range(25, 55))
    lower_joints: ClassVar[tuple[int, ...]] = (0, 1, 2, 4, 5, 7, 8, 10, 11)
    upper: ClassVar[slice] = slice(0, 78)
    hands: ClassVar[slice] = slice(78, 258)
    lower: ClassVar[slice] = slice(258, 312)
    rotations: ClassVar[slice] = slice(0, 312)
    root: ClassVar[slice] = slice(312, 315)
    face: ClassVar[slice] = slice(315, 415)
    channels: ClassVar[int] = 415

    @property
    def joints(self) -> tuple[int, ...]:
        """SMPL-X indices of the 52 joints in channel order. Joint k of the tuple (from 0) has channels 6k to 6k+5."""
        return self.upper_joints + self.hand_joints + self.lower_joints

    def channel_names(self) -> list[str]:
        """Return a readable name for each of the 415 channels, such as ``left_wrist.r01`` or ``expression42``."""
        six = [f"r{row}{col}" for row in (0, 1) for col in (0, 1, 2)]
        names = [f"{JOINT_NAMES[j]}.{entry}" for j in self.joints for entry in six]
        return [*names, "root.dx", "root.y", "root.dz", *(f"expression{k}" for k in range(EXPRESSIONS))]


LAYOUT: Final = GestureLayout()
JAW_EYES_CHANNELS: Final = slice(LAYOUT.channels, WITH_JAW_EYES)
"""Channels of jaw, left eye and right eye in a gesture stream of 424 channels: axis-angles in radians.

Axis-angles are kept as recorded. BEAT2's angles of jaw and eyes are below 0.1 rad, far from π, where axis-angles jump.
In this range axis-angles are unique, smooth and almost linear, and any generated values are a valid rotation. 6D
rotations would add nine channels with nearly constant values, and would lose the exact values."""
POSE_PARTS: Final[Mapping[str, tuple[int, ...]]] = {
    "upper": LAYOUT.upper_joints,
    "hands": LAYOUT.hand_joints,
    "lower": LAYOUT.lower_joints,
    "jaw_eyes": (22, 23, 24),
}
"""Joints of each body part; joint j has columns 3j to 3j + 2 of a pose (T, 165)."""
_BLOCK_FRAMES = 128  # frames in a block; its float64 temporaries fit in a cache of 512 KiB


@dataclass(frozen=True, slots=True)
class GestureClip:
    """Gesture arrays of one clip as shards store them: float32, but `start_xz` is float64."""

    gesture: F32  # (T, 415), not normalised
    jaw_eyes: F32  # (T, 9), axis-angle of jaw, left eye, right eye
    start_xz: F64  # (2,), x and z of the first frame in metres


@dataclass(frozen=True, slots=True)
class MotionArrays:
    """SMPL-X motion of one clip in the format of BEAT2."""

    poses: F64  # (T, 165), axis-angle, every angle at most pi
    expressions: F64  # (T, 100)
    trans: F64  # (T, 3)


def _series(first_factorial: int, terms: int) -> tuple[float, ...]:
    """Return `terms` coefficients (−1)^k / (2k + first_factorial)! of an even power series, highest power first."""
    return tuple((-1) ** k / math.factorial(2 * k + first_factorial) for k in reversed(range(terms)))


# Series of sin h / h (eleven terms) and cos h (twelve) in v = h². Their error is below 1e-17 for h = angle/2 <= pi/2.
_SINC = _series(1, 11)
_COS = _series(0, 12)


def _horner(coefficients: tuple[float, ...], v: F64) -> F64:
    result = v * coefficients[0]
    result += coefficients[1]
    for c in coefficients[2:]:
        result *= v
        result += c
    return result


def _wrap_angles(x: F64, y: F64, z: F64, squared: F64) -> F64:
    """Replace rotation vectors longer than pi, in place, by vectors of at most pi for the same rotations.

    `squared` has the squared lengths of the vectors. Return the squared lengths after the replacement.
    """
    far = squared > np.pi**2
    if not far.any():
        return squared
    angle = np.sqrt(squared[far])
    scale = (angle - 2 * np.pi * np.rint(angle / (2 * np.pi))) / angle
    for component in (x, y, z):
        component[far] *= scale
    return np.asarray(x * x + y * y + z * z)


def _six_d_planes(x: F64, y: F64, z: F64) -> tuple[F64, ...]:
    """Return the six entries of rows 0 and 1 of R = I + a K + b K² (Rodrigues), each of the shape of x.

    K is the cross-product matrix of the rotation vector and t its length; a = sin t / t and b = (1 − cos t)/t².
    Both are computed from h = t/2: a = s c and b = s²/2 with s = sin h / h and c = cos h. Because s is a power series,
    no division is needed, and the angle 0 needs no special case.
    """
    squared = _wrap_angles(x, y, z, np.asarray(x * x + y * y + z * z))
    v = squared * 0.25
    s = _horner(_SINC, v)
    a = s * _horner(_COS, v)
    b = s * s
    b *= 0.5
    ax, ay, az = a * x, a * y, a * z
    bx, by, bz = b * x, b * y, b * z
    xy, xz, yz = bx * y, bx * z, by * z
    return (1 - (by * y + bz * z), xy - az, xz + ay, xy + az, 1 - (bx * x + bz * z), yz - ax)


def six_d_from_rotvec(rotvec: npt.NDArray[np.floating]) -> F64:
    """Return rows 0 and 1 of the rotation matrices of rotation vectors, in row-major order.

    The layout is that of pytorch3d (Zhou et al. 2019 use two columns instead). A vector longer than pi is first
    replaced by a vector of at most pi for the same rotation.

    Args:
        rotvec: Axis-angles (..., 3) in radians.

    Returns:
        6D rotations (..., 6).
    """
    vectors = np.asarray(rotvec, dtype=np.float64)
    x, y, z = (np.array(vectors[..., k], order="C") for k in range(3))
    return np.stack(_six_d_planes(x, y, z), axis=-1)


def matrix_from_six_d(six_d: npt.NDArray[np.floating]) -> F64:
    """Return rotation matrices from 6D rotations by Gram–Schmidt on the two rows.

    Args:
        six_d: 6D rotations (..., 6).

    Returns:
        Rotation matrices (..., 3, 3) float64.

    Raises:
        ValueError: A row is zero or not finite, or both rows are parallel.
    """
    rows = np.asarray(six_d, dtype=np.float64)
    first, second = rows[..., :3], rows[..., 3:]
    length = np.linalg.norm(first, axis=-1, keepdims=True)
    if not (length > 1e-8).all():
        raise ValueError("a 6D rotation has a first row of length zero, or is not finite")
    e0 = first / length
    rest = second - (e0 * second).sum(axis=-1, keepdims=True) * e0
    length = np.linalg.norm(rest, axis=-1, keepdims=True)
    if not (length > 1e-8).all():
        raise ValueError("a 6D rotation has parallel rows")
    e1 = rest / length
    return np.stack([e0, e1, np.cross(e0, e1)], axis=-2)


def invalid_rotations(six_d: npt.NDArray[np.floating]) -> float:
    """Return the share of generated 6D rotations that are not close to a rotation.

    A rotation is invalid if one of these holds: a value is not finite, the length of a row differs from 1 by more than
    0.1, or the dot product of both rows is above 0.1 or below −0.1.

    Args:
        six_d: 6D rotations (T, J, 6).

    Returns:
        The share in [0, 1].

    Raises:
        ValueError: The shape or type is wrong, or there are no rotations.
    """
    rows = np.asarray(six_d)
    if rows.ndim != 3 or rows.shape[-1] != 6 or rows.size == 0 or rows.dtype.kind != "f":
        raise ValueError(f"rotations: expected floats (frames, joints, 6), found an array {rows.shape} of {rows.dtype}")
    finite: npt.NDArray[np.bool_] = np.asarray(np.isfinite(rows).all(axis=-1))
    # Rotations that are not finite are replaced by zeros, which count as invalid too.
    values = np.where(finite[..., None], rows, 0.0).astype(np.float64)
    first, second = values[..., :3], values[..., 3:]
    lengths = np.stack([np.linalg.norm(first, axis=-1), np.linalg.norm(second, axis=-1)])
    upright = np.abs((first * second).sum(axis=-1)) <= _ROTATION_TOLERANCE
    good = (np.abs(lengths - 1) <= _ROTATION_TOLERANCE).all(axis=0) & upright
    return float(1 - good.mean())


def rotvec_from_matrix(matrix: F64) -> F64:
    """Return axis-angles of rotation matrices, with angles of at most pi.

    The quaternion's largest component is computed first (Shepperd 1978). This method is accurate near pi too.

    Args:
        matrix: Rotation matrices (..., 3, 3).

    Returns:
        Axis-angles (..., 3) in radians.
    """
    m = np.asarray(matrix, dtype=np.float64)
    trace = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    # Four times the outer product q qᵀ in the order (w, x, y, z). The row with the largest diagonal entry is accurate.
    outer = np.empty((*m.shape[:-2], 4, 4))
    outer[..., 0, 0] = 1 + trace
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        outer[..., i + 1, i + 1] = 1 + 2 * m[..., i, i] - trace
        outer[..., 0, i + 1] = outer[..., i + 1, 0] = m[..., k, j] - m[..., j, k]
        outer[..., i + 1, j + 1] = outer[..., j + 1, i + 1] = m[..., j, i] + m[..., i, j]
    best = np.diagonal(outer, axis1=-2, axis2=-1).argmax(axis=-1)
    quaternion = np.take_along_axis(outer, best[..., None, None], axis=-2)[..., 0, :]
    quaternion /= np.linalg.norm(quaternion, axis=-1, keepdims=True)
    quaternion *= np.where(quaternion[..., :1] < 0, -1.0, 1.0)  # q and −q are one rotation; w ≥ 0 gives at most pi
    sine = np.linalg.norm(quaternion[..., 1:], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sine, quaternion[..., :1])
    # Near zero, angle / sine tends to 2.
    ratio = np.divide(angle, sine, out=np.full_like(sine, 2.0), where=sine > 1e-12)
    return np.asarray(quaternion[..., 1:] * ratio)


def gesture_from_motion(
    poses: npt.NDArray[np.floating], expressions: npt.NDArray[np.floating], trans: npt.NDArray[np.floating]
) -> GestureClip:
    """Convert SMPL-X motion to gesture channels.

    Args:
        poses: Axis-angles (T, 165) in radians, T ≥ 2.
        expressions: Coefficients (T, 100).
        trans: Positions (T, 3) in metres.

    Returns:
        The clip of T frames. Its root channels store the height, and the horizontal step from the previous frame.
        Frame 0 has no previous frame, so its step is copied from frame 1.

    Raises:
        ValueError: A shape is wrong, or there are fewer than two frames.
    """
    frames = len(poses)
    shapes = (poses.shape, expressions.shape, trans.shape)
    if frames < 2 or shapes != ((frames, POSE_COLUMNS), (frames, EXPRESSIONS), (frames, 3)):
        raise ValueError(f"expected motion of T >= 2 frames with 165, 100 and 3 columns, found shapes {shapes}")
    gesture = np.empty((frames, LAYOUT.channels), dtype=np.float32)
    joints = np.array(LAYOUT.joints)
    for start in range(0, frames, _BLOCK_FRAMES):
        stop = min(start + _BLOCK_FRAMES, frames)
        columns = np.ascontiguousarray(poses[start:stop].T, dtype=np.float64)
        planes = _six_d_planes(columns[3 * joints], columns[3 * joints + 1], columns[3 * joints + 2])
        for entry, plane in enumerate(planes):
            gesture[start:stop, entry : LAYOUT.rotations.stop : 6] = plane.T
    positions = np.asarray(trans, dtype=np.float64)
    steps = positions[1:] - positions[:-1]
    root = np.concatenate([steps[:1], steps])  # steps in x and z per frame; the first one is repeated
    root[:, 1] = positions[:, 1]
    gesture[:, LAYOUT.root] = root
    gesture[:, LAYOUT.face] = expressions
    return GestureClip(
        gesture=gesture,
        jaw_eyes=np.ascontiguousarray(poses[:, JAW_EYES_COLUMNS], dtype=np.float32),
        start_xz=positions[0, [0, 2]],
    )


def motion_from_gesture(clip: GestureClip) -> MotionArrays:
    """Convert gesture channels to SMPL-X motion. All angles are at most pi.

    A joint whose rotation is NaN in all frames is absent. Its angles are NaN in the result.

    Args:
        clip: The gesture channels of T frames.

    Returns:
        Poses, expressions and translations of the T frames.
    """
    frames = len(clip.gesture)
    poses = np.full((frames, POSE_COLUMNS), np.nan)
    six_d = clip.gesture[:, LAYOUT.rotations].reshape(frames, -1, 6)
    there = ~np.isnan(six_d).all(axis=(0, 2))
    if not there.all():
        six_d = six_d[:, there]
    joints = np.array(LAYOUT.joints)[there]
    for start in range(0, frames, _BLOCK_FRAMES):
        rotvec = rotvec_from_matrix(matrix_from_six_d(six_d[start : start + _BLOCK_FRAMES]))
        for k in range(3):
            poses[start : start + _BLOCK_FRAMES, 3 * joints + k] = rotvec[..., k]
    poses[:, JAW_EYES_COLUMNS] = clip.jaw_eyes
    root = clip.gesture[:, LAYOUT.root].astype(np.float64)
    trans = root.copy()
    for column, start_m in ((0, clip.start_xz[0]), (2, clip.start_xz[1])):
        steps = root[:, column]
        steps[0] = start_m  # the first step is only a copy of the second
        trans[:, column] = np.cumsum(steps)
    return MotionArrays(poses, clip.gesture[:, LAYOUT.face].astype(np.float64), trans)


def stream_channels(clip: GestureClip, channels: int) -> F32:
    """Return the channels of a clip that a model's gesture stream uses.

    Args:
        clip: The clip of T frames.
        channels: Number of channels: 415, or 424 with the 9 channels of jaw and eyes.

    Returns:
        Channels (T, channels).
    """
    return clip.gesture if channels == LAYOUT.channels else np.concatenate([clip.gesture, clip.jaw_eyes], axis=1)


def clip_of_channels(stream: F32, start_xz: F64) -> GestureClip:
    """Convert the channels of a gesture stream to a clip. For 415 channels, the angles of jaw and eyes are 0.

    Args:
        stream: Channels (T, 415) or (T, 424).
        start_xz: x and z (2,) of the root in the first frame, in metres.

    Returns:
        The gesture arrays of a clip of T frames.
    """
    jaw_eyes = stream[:, JAW_EYES_CHANNELS]
    if not jaw_eyes.shape[1]:
        jaw_eyes = np.zeros((len(stream), JAW_EYES), np.float32)
    return GestureClip(stream[:, : LAYOUT.channels], jaw_eyes, start_xz)
