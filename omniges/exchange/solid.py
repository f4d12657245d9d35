"""The solid figure of pages and videos: one mesh around the generic skeleton. Each vertex moves with one or two bones.

The figure is not the body of a person: its sizes are round numbers, the same for all speakers. Bones are the 55 joints
and the two brows. The jaw, the eyes and the first 8 expressions move the face. SMPL-X's expressions are principal
components without names. So this module defines which movement each component causes. For example, components 0, 5 and
6 open and close the mouth: in BEAT2's recordings, they correlate with loudness and the jaw.

Positions are in metres in the rest pose: pelvis at the origin, y up, facing +z. Letters: V vertices, F triangles.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from omniges.features.body import GENERIC, PARENTS
from omniges.features.gesture import JOINT_NAMES
from omniges.formats.motion import SmplxMotion

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
Point = tuple[float, float, float]
Colour = Literal["tint", "clay", "white", "iris", "dark", "lip", "shoe"]

COLOURS: Final[tuple[Colour, ...]] = ("tint", "clay", "white", "iris", "dark", "lip", "shoe")
"""Colours of the figure's parts. Each track has its own `tint`; the shoes have half the brightness of the tint."""
BROWS: Final = {"left": len(PARENTS), "right": len(PARENTS) + 1}
"""Indices of the brow bones. Brows follow the head, and expressions move them up and down."""
BONES: Final = len(PARENTS) + 2
LEADING: Final = 8
"""Number of expressions, counted from the first, that move the face."""
_NEUTRAL_FRAMES: Final = 2000

_REST: Final = GENERIC.rest_positions
_JOINT: Final = {name: index for index, name in enumerate(JOINT_NAMES)}
_HEAD, _JAW = _JOINT["head"], _JOINT["jaw"]
_SIDES: Final = {"left": 1.0, "right": -1.0}
_CAP: Final = 1e-3  # size of the ring that closes a tube, relative to the last ring


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """A mesh: vertices in the rest pose, and the triangles between them."""

    positions: F32
    """(V, 3) in metres."""
    normals: F32
    """(V, 3) unit vectors that point outwards."""
    bones: npt.NDArray[np.uint8]
    """(V, 2) indices of the two bones of each vertex."""
    weights: F32
    """(V,) weight of the second bone; the weight of the first bone is 1 minus this weight."""
    colours: npt.NDArray[np.uint8]
    """(V,) index into `COLOURS`."""
    triangles: npt.NDArray[np.uint16]
    """(F, 3) indices of vertices."""


@dataclass(frozen=True, slots=True, eq=False)
class _Rings:
    """R ellipses that form a tube, each moved by one or two bones.

    The centres and the half axes u and v are (R, 3) in metres. ``bones`` (R, 2) has the indices of both bones of each
    ring, ``weights`` (R,) the weight of the second bone.
    """

    centres: F64
    u: F64
    v: F64
    bones: npt.NDArray[np.int64]
    weights: F64

    @classmethod
    def on(cls, bone: int, centres: F64, u: F64, v: F64) -> _Rings:
        """Build rings that all move with one bone.

        Args:
            bone: Index of the bone, below `BONES`.
            centres: Centres (R, 3) in metres.
            u: First half axes (R, 3) in metres.
            v: Second half axes (R, 3) in metres.

        Returns:
            R rings.
        """
        return cls(centres, u, v, np.full((len(centres), 2), bone), np.zeros(len(centres)))


@dataclass(slots=True)
class _Builder:
    """Builder that collects parts (tubes, capsules) and joins them into one surface."""

    parts: list[tuple[F64, F64, npt.NDArray[np.int64], F64, Colour, npt.NDArray[np.int64]]] = field(
        default_factory=list
    )

    def add(
        self,
        positions: F64,
        bones: npt.NDArray[np.int64],
        weights: F64,
        triangles: npt.NDArray[np.int64],
        colour: Colour,
    ) -> None:
        """Add vertices of one colour.

        Args:
            positions: Positions (V, 3) in metres.
            bones: Indices (V, 2) of the two bones of each vertex.
            weights: Weight (V,) of the second bone of each vertex, in [0, 1].
            triangles: Indices (F, 3) of the vertices of each triangle. All triangles are clockwise or all are
                counterclockwise.
            colour: Colour of all vertices.
        """
        triangles = _outwards(positions, triangles)
        self.parts.append((positions, vertex_normals(positions, triangles), bones, weights, colour, triangles))

    def tube(self, rings: _Rings, colour: Colour, sides: int = 20) -> None:
        """Add a tube: the surface that connects each ring to the next ring.

        Args:
            rings: The R rings, in order.
            colour: Colour of the surface.
            sides: Number of vertices on each ring.
        """
        positions = _ellipses(rings, sides)
        bones, weights = np.repeat(rings.bones, sides, axis=0), np.repeat(rings.weights, sides)
        self.add(positions, bones, weights, _quads(len(rings.centres), sides), colour)

    def capsule(
        self, a: Iterable[float], b: Iterable[float], radii: Sequence[float], bone: int, colour: Colour, sides: int = 12
    ) -> None:
        """Add a capsule on one bone: a truncated cone with a hemisphere at each end.

        Args:
            a: Centre (3,) of the first hemisphere, in metres.
            b: Centre (3,) of the second hemisphere, in metres; equal to `a` for a sphere.
            radii: Radii of the two hemispheres, in metres.
            bone: Index of the bone, below `BONES`.
            colour: Colour of the surface.
            sides: Number of vertices on each ring.
        """
        start, end = np.array([*a]), np.array([*b])
        along = _unit(end - start) if np.any(end != start) else np.array([0.0, 0.0, 1.0])  # any direction, for a sphere
        side = _unit(np.cross(along, (0.0, 1.0, 0.0) if abs(along[1]) < 0.9 else (1.0, 0.0, 0.0)))
        angles = np.radians([*np.linspace(-90, 0, 5), *np.linspace(0, 90, 5)])
        sizes = np.repeat(radii, 5)
        widths = np.maximum(sizes * np.cos(angles), 1e-5)[:, None]
        centres = np.repeat([start, end], 5, axis=0) + (sizes * np.sin(angles))[:, None] * along
        self.tube(_Rings.on(bone, centres, widths * side, widths * np.cross(side, along) * -1), colour, sides)

    def loft(self, axis: int, rows: Sequence[_Row], colour: Colour, sides: int = 24) -> None:
        """Add a closed tube along a coordinate axis.

        Args:
            axis: Axis of the tube: 0, 1 or 2 for x, y or z.
            rows: Rings from one end to the other.
            colour: Colour of the surface.
            sides: Number of vertices on each ring.
        """
        others = [k for k in range(3) if k != axis]
        rows = [rows[0], *rows, rows[-1]]
        centres, u, v = np.zeros((3, len(rows), 3))
        for k, row in enumerate(rows):
            closed = _CAP if k in {0, len(rows) - 1} else 1.0
            centres[k, axis], centres[k, others] = row.at, row.centre
            u[k, others[0]], v[k, others[1]] = closed * row.half[0], closed * row.half[1]
        bones = np.array([[row.bone, row.bone if row.other is None else row.other] for row in rows])
        self.tube(_Rings(centres, u, v, bones, np.array([row.weight for row in rows])), colour, sides)

    def surface(self) -> Surface:
        """Join all parts into one surface."""
        positions, normals, bones, weights, colours, triangles = zip(*self.parts, strict=True)
        sizes = [len(each) for each in positions]
        firsts = np.cumsum([0, *sizes[:-1]])
        return Surface(
            np.concatenate(positions).astype(np.float32),
            np.concatenate(normals).astype(np.float32),
            np.concatenate(bones).astype(np.uint8),
            np.concatenate(weights).astype(np.float32),
            np.repeat([COLOURS.index(colour) for colour in colours], sizes).astype(np.uint8),
            np.concatenate([each + first for each, first in zip(triangles, firsts, strict=True)]).astype(np.uint16),
        )


@dataclass(frozen=True, slots=True)
class _Row:
    """A ring of a tube along a coordinate axis: an ellipse perpendicular to the axis.

    `at` is the position on the axis. `half` (half axes) and `centre` have one value for each of the other two axes. All
    are in metres.
    """

    at: float
    half: tuple[float, float]
    centre: tuple[float, float]
    bone: int
    other: int | None = None
    weight: float = 0.0


def _ellipses(rings: _Rings, sides: int) -> F64:
    angles = 2 * np.pi * np.arange(sides) / sides
    points = (
        rings.centres[:, None] + np.cos(angles)[:, None] * rings.u[:, None] + np.sin(angles)[:, None] * rings.v[:, None]
    )
    return np.asarray(points.reshape(-1, 3))


def _quads(rings: int, sides: int) -> npt.NDArray[np.int64]:
    """Return the triangles (F, 3) that join each of `rings` rings to the next ring; each ring has `sides` vertices."""
    here = np.arange(sides)
    return np.concatenate([_joined(here + ring * sides, here + (ring + 1) * sides) for ring in range(rings - 1)])


def _joined(ring: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the triangles (F, 3) that join two rings, which are given as indices of their vertices."""
    ahead, other_ahead = np.roll(ring, -1), np.roll(other, -1)
    return np.stack([ring, ahead, other, ahead, other_ahead, other], axis=1).reshape(-1, 3)


def _crossed(positions: F64, triangles: npt.NDArray[np.integer]) -> F64:
    a, b, c = (positions[triangles[:, k]] for k in range(3))
    return np.asarray(np.cross(b - a, c - a))


def _outwards(positions: F64, triangles: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Orient the triangles of a convex part counterclockwise, seen from outside."""
    away = positions[triangles].mean(axis=1) - positions.mean(axis=0)
    return triangles if np.sum(_crossed(positions, triangles) * away) > 0 else triangles[:, ::-1]


def vertex_normals(positions: F64, triangles: npt.NDArray[np.integer]) -> F64:
    """Return the unit normals of vertices: the area-weighted means of the normals of their triangles.

    Args:
        positions: Positions (V, 3) of the vertices.
        triangles: Indices (F, 3) of the triangles' vertices.

    Returns:
        Unit normals (V, 3).
    """
    total, crossed = np.zeros_like(positions), _crossed(positions, triangles)
    for corner in range(3):
        np.add.at(total, triangles[:, corner], crossed)
    return np.asarray(total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-30))


def _unit(vector: npt.ArrayLike) -> F64:
    found = np.asarray(vector, np.float64)
    return np.asarray(found / (float(np.linalg.norm(found)) or 1.0))


def _smooth(low: float, high: float, x: npt.ArrayLike) -> F64:
    t = np.clip((np.asarray(x, np.float64) - low) / (high - low), 0.0, 1.0)
    return np.asarray(t * t * (3 - 2 * t))


@functools.cache
def solid_figure() -> Surface:
    """Return the figure without its mouth. `mouth_at` computes the mouth, because its shape changes."""
    builder = _Builder()
    _torso(builder)
    _head(builder)
    for side in _SIDES:
        _arm(builder, side)
        _hand(builder, side)
        _leg(builder, side)
    return builder.surface()


# --- trunk and limbs


def _torso(builder: _Builder) -> None:
    pelvis, spine1, spine2, spine3, neck, head = (
        _JOINT[name] for name in ("pelvis", "spine1", "spine2", "spine3", "neck", "head")
    )
    trunk = [
        *((-0.150, 0.050, 0.055, 0.000, pelvis, pelvis, 0.0), (-0.140, 0.100, 0.085, 0.000, pelvis, pelvis, 0.0)),
        *((-0.110, 0.146, 0.104, 0.000, pelvis, pelvis, 0.0), (-0.060, 0.163, 0.114, 0.000, pelvis, pelvis, 0.0)),
        *((0.000, 0.160, 0.112, 0.000, pelvis, pelvis, 0.0), (0.060, 0.142, 0.102, -0.002, pelvis, spine1, 0.3)),
        *((0.120, 0.128, 0.095, -0.004, pelvis, spine1, 0.8), (0.180, 0.128, 0.095, -0.004, spine1, spine2, 0.3)),
        *((0.240, 0.138, 0.100, -0.004, spine1, spine2, 0.8), (0.300, 0.152, 0.106, 0.000, spine2, spine3, 0.6)),
        *((0.360, 0.164, 0.110, 0.002, spine3, spine3, 0.0), (0.410, 0.166, 0.104, -0.002, spine3, spine3, 0.0)),
        *((0.450, 0.148, 0.090, -0.010, spine3, spine3, 0.0), (0.480, 0.108, 0.070, -0.016, spine3, spine3, 0.0)),
        (0.500, 0.074, 0.060, -0.018, spine3, neck, 0.3),
    ]
    throat = [
        *((0.455, 0.062, 0.060, -0.022, spine3, neck, 0.2), (0.490, 0.056, 0.057, -0.020, spine3, neck, 0.6)),
        *((0.520, 0.051, 0.053, -0.016, neck, neck, 0.0), (0.560, 0.049, 0.052, -0.010, neck, head, 0.3)),
        *((0.610, 0.050, 0.056, -0.006, neck, head, 0.7), (0.650, 0.050, 0.056, 0.000, head, head, 0.0)),
    ]
    for rows, colour, sides in ((trunk, "tint", 32), (throat, "clay", 24)):
        builder.loft(1, [_Row(y, (p, q), (0.0, z), a, b, w) for y, p, q, z, a, b, w in rows], colour, sides)  # type: ignore[arg-type]


def _limb(builder: _Builder, joints: Sequence[int], rows: Sequence[Sequence[float]], axis: int, colour: Colour) -> None:
    """Add a limb with three joints.

    A row is (t, first half axis, second half axis, shift along z). By default the second half axis equals the first,
    and the shift is 0. t is the position along the limb: 0 at the first joint, 1 at the middle joint, 2 at the last.
    """
    points = _REST[list(joints)]
    others = [k for k in range(3) if k != axis]
    bound = []
    for t, p, *rest in rows:
        q, forth = (*rest, *(p, 0.0)[len(rest) :])
        at = points[int(t > 1)] + (t - (t > 1)) * (points[1 + (t > 1)] - points[int(t > 1)])
        at[2] += forth
        bend, begin, end = (0, 0.85, 1.15) if t < 1.5 else (1, 1.85, 2.05)
        weight = float(_smooth(begin, end, t))
        centre = (float(at[others[0]]), float(at[others[1]]))
        bound.append(_Row(float(at[axis]), (p, q), centre, joints[bend], joints[bend + 1], weight))
    builder.loft(axis, bound, colour)


def _arm(builder: _Builder, side: str) -> None:
    collar, shoulder, elbow, wrist = (_JOINT[f"{side}_{name}"] for name in ("collar", "shoulder", "elbow", "wrist"))
    builder.capsule((0.055 * _SIDES[side], 0.468, -0.016), _REST[shoulder], (0.048, 0.056), collar, "tint", 16)
    sleeve = [
        *((-0.20, 0.020), (-0.17, 0.040), (-0.08, 0.053), (0.05, 0.056), (0.25, 0.052), (0.5, 0.047), (0.75, 0.042)),
        *((0.9, 0.040), (1.0, 0.040), (1.1, 0.040), (1.25, 0.041), (1.45, 0.038), (1.7, 0.031), (1.8, 0.029)),
        (1.82, 0.025),
    ]
    _limb(builder, (shoulder, elbow, wrist), sleeve, 0, "tint")
    bare = [(1.7, 0.02), (1.78, 0.025), (1.9, 0.0235, 0.0265), (2.0, 0.022, 0.029)]
    _limb(builder, (shoulder, elbow, wrist), bare, 0, "clay")


def _hand(builder: _Builder, side: str) -> None:
    sign, wrist = _SIDES[side], _JOINT[f"{side}_wrist"]
    x0, y0, z0 = map(float, _REST[wrist])
    palm = [
        *((-0.010, 0.019, 0.022), (0.000, 0.020, 0.027), (0.020, 0.0195, 0.034), (0.045, 0.0185, 0.041)),
        *((0.070, 0.0165, 0.044), (0.088, 0.0135, 0.043), (0.098, 0.0095, 0.038), (0.102, 0.004, 0.030)),
    ]
    narrowing = [0.006 * float(_smooth(0, 0.08, x)) for x, _, _ in palm]
    rows = [
        _Row(x0 + sign * x, (p, q), (y0 - 0.002, z0 - shift), wrist)
        for (x, p, q), shift in zip(palm, narrowing, strict=True)
    ]
    builder.loft(0, rows, "clay", 20)
    for finger, radius in {"index": 0.0098, "middle": 0.0102, "ring": 0.0096, "pinky": 0.0084, "thumb": 0.0125}.items():
        joints = [_JOINT[f"{side}_{finger}{k}"] for k in (1, 2, 3)]
        places = [*_REST[joints]]
        places.append(places[2] + (0.022 if finger == "thumb" else 0.020) * _unit(places[2] - places[1]))
        if finger == "thumb":
            ball = (x0 + sign * 0.012, y0 - 0.006, z0 + 0.014)
            builder.capsule(ball, places[0], (0.017, 0.0150), wrist, "clay")
        for k, joint in enumerate(joints):
            sizes = (radius * (1 - 0.09 * k), radius * (0.91 - 0.09 * k))
            builder.capsule(places[k], places[k + 1], sizes, joint, "clay")


def _leg(builder: _Builder, side: str) -> None:
    hip, knee, ankle, foot = (_JOINT[f"{side}_{name}"] for name in ("hip", "knee", "ankle", "foot"))
    trousers = [
        *((-0.18, 0.045), (-0.12, 0.068), (0.0, 0.083, 0.092), (0.2, 0.084, 0.092), (0.5, 0.072, 0.078)),
        *((0.8, 0.058, 0.062), (0.95, 0.053, 0.057), (1.05, 0.052, 0.055, -0.002), (1.2, 0.054, 0.057, -0.010)),
        *((1.4, 0.051, 0.054, -0.012), (1.7, 0.039, 0.041, -0.006), (1.9, 0.033, 0.036), (1.98, 0.034, 0.037)),
        (2.0, 0.02),
    ]
    _limb(builder, (hip, knee, ankle), trousers, 1, "tint")
    x, y, _ = map(float, _REST[ankle])
    shoe = [
        *((-0.085, 0.014, 0.016), (-0.080, 0.028, 0.030), (-0.060, 0.036, 0.042), (-0.020, 0.038, 0.050)),
        *((0.030, 0.040, 0.044), (0.080, 0.044, 0.034), (0.120, 0.045, 0.028), (0.160, 0.040, 0.023)),
        *((0.185, 0.030, 0.019), (0.197, 0.014, 0.011)),
    ]
    rows = [
        _Row(
            z,
            (p, q),
            (x + _SIDES[side] * 0.012 * float(_smooth(-0.05, 0.12, z)), y - 0.095 + q),
            ankle,
            foot,
            float(_smooth(0.085, 0.125, z)),
        )
        for z, p, q in shoe
    ]
    builder.loft(2, rows, "shoe", 20)


# --- head


_SKULL_CENTRE: Final = (0.0, 0.684, 0.018)
_SKULL_RADII: Final = (0.075, 0.114, 0.092)
_SKULL_BACK: Final = 0.104


def _on_head(directions: F64) -> F64:
    """Return the points (N, 3) of the head's surface in N directions from the centre of the head.

    `directions` (N, 3) are unit vectors. The head is an egg with cheeks, jaw and chin.
    """
    x, y, z = directions.T
    (cx, cy, cz), (rx, ry, rz) = _SKULL_CENTRE, _SKULL_RADII
    jaw, low = np.exp(-((y + 0.62) ** 2) / 0.10), _smooth(-0.55, -1.0, y)
    chin = np.exp(-(x * x / 0.08 + (y + 0.84) ** 2 / 0.04 + (z - 0.50) ** 2 / 0.20))
    front = rz * z * (1 - 0.06 * z * z * (1 - jaw) + 0.10 * jaw)
    depth = np.where(z > 0, front, _SKULL_BACK * z * (1 - 0.25 * low))
    return np.stack([cx + rx * x * (1 + 0.10 * jaw - 0.10 * low), cy + ry * y, cz + depth + 0.020 * chin], axis=1)


def face_depth(x: npt.ArrayLike, y: npt.ArrayLike) -> F64:
    """Return the z coordinate of the face at x and y, computed by 30 steps of a fixed-point iteration.

    Args:
        x: Coordinate of N points in metres, (N,), or a scalar.
        y: Coordinate of N points in metres, (N,), or a scalar.

    Returns:
        z (N,) in metres; (1,) for scalars.
    """
    wanted = np.stack([np.atleast_1d(x), np.atleast_1d(y)], axis=1).astype(np.float64)
    directions = np.tile([0.0, 0.0, 1.0], (len(wanted), 1))
    for _ in range(30):
        directions[:, :2] += 8 * (wanted - _on_head(directions)[:, :2])
        directions[:, 2] = np.maximum(0.05, directions[:, 2])
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return np.asarray(_on_head(directions)[:, 2])


def _head(builder: _Builder) -> None:
    skull = _JOINT["head"]
    rings, sides = 29, 40
    polar = np.pi * np.clip(np.arange(rings) / (rings - 1), 1e-3, 1 - 1e-3)
    up, flat = np.cos(polar), np.sin(polar)
    none = np.zeros(rings)
    shape = _Rings.on(
        skull, np.stack([none, up, none], 1), np.stack([flat, none, none], 1), np.stack([none, none, flat], 1)
    )
    directions = _ellipses(shape, sides)
    weights = _smooth(-0.56, -0.84, directions[:, 1]) * _smooth(-0.15, 0.35, directions[:, 2])
    bones = np.tile([skull, _JOINT["jaw"]], (len(directions), 1))
    builder.add(_on_head(directions), bones, weights, _quads(rings, sides), "clay")
    eye_y = float(_REST[_JOINT["left_eye"], 1])
    builder.capsule(
        _on_face(0, eye_y + 0.006, -0.003), _on_face(0, eye_y - 0.034, 0.012), (0.0060, 0.0100), skull, "clay", 16
    )
    for side, sign in _SIDES.items():
        nostril = (_on_face(sign * 0.009, eye_y - 0.036, 0.003), _on_face(sign * 0.010, eye_y - 0.037, 0.001))
        builder.capsule(*nostril, (0.0068, 0.0060), skull, "clay")
        builder.capsule((sign * 0.0740, 0.660, 0.012), (sign * 0.0775, 0.692, 0.002), (0.009, 0.013), skull, "clay")
        _eye(builder, side)


def _on_face(x: float, y: float, out: float) -> Point:
    """Return the point (3,) of the face at x and y, moved forward by `out` metres."""
    return x, y, float(face_depth(x, y)[0]) + out


def _eye(builder: _Builder, side: str) -> None:
    skull, eye, sign = _JOINT["head"], _JOINT[f"{side}_eye"], _SIDES[side]
    x, y, z = map(float, _REST[eye])
    builder.capsule((x, y, z), (x, y, z), (0.0165, 0.0165), eye, "white", 24)
    builder.tube(_disc((x, y, z + 0.0150), 0.0074, 0.0019, eye), "iris", 20)
    builder.tube(_disc((x, y, z + 0.0164), 0.0035, 0.0009, eye), "dark", 16)
    builder.tube(_lid((x, y, z), 0.0182, (0, 0.93, -0.37), 88, skull), "clay", 28)
    builder.tube(_lid((x, y, z), 0.0176, (0, -0.96, -0.28), 62, skull), "clay", 28)
    inner, middle, outer = (
        _on_face(sign * across, y + up, out)
        for across, up, out in ((0.016, 0.0265, 0.0005), (0.033, 0.0290, 0.001), (0.050, 0.0225, 0.0))
    )
    builder.capsule(inner, middle, (0.0034, 0.0036), BROWS[side], "dark")
    builder.capsule(middle, outer, (0.0036, 0.0022), BROWS[side], "dark")


def _lid(centre: Point, radius: float, direction: Point, degrees: float, bone: int) -> _Rings:
    """Return the rings of an eyelid: a spherical cap around the axis `direction`, with a half-angle of `degrees`."""
    towards = _unit(direction)
    u = _unit(np.cross(towards, (1.0, 0.0, 0.0)))
    angles = np.radians(degrees) * np.array([0, 0.15, 0.4, 0.6, 0.8, 1])
    widths = np.maximum(radius * np.sin(angles), 1e-5)[:, None]
    centres = np.array(centre) + (radius * np.cos(angles))[:, None] * towards
    return _Rings.on(bone, centres, widths * u, widths * np.cross(towards, u))


def _disc(centre: Point, radius: float, height: float, bone: int) -> _Rings:
    """Return the rings of a shallow dome that faces +z."""
    angles = np.array([0, 0.35, 0.7, 1]) * np.pi / 2
    widths = np.maximum(radius * np.cos(angles), 1e-5)[:, None]
    centres = np.array(centre) + (height * np.sin(angles))[:, None] * np.array([0.0, 0.0, 1.0])
    return _Rings.on(bone, centres, widths * np.array([1.0, 0.0, 0.0]), widths * np.array([0.0, 1.0, 0.0]))


# --- the face that expressions move


@dataclass(frozen=True, slots=True, eq=False)
class Faces:
    """Movements of the face in T frames, each (T,) in metres."""

    open: F64
    """Height by which expressions open the mouth, in addition to the opening by the jaw."""
    wide: F64
    """Change of half the mouth's width."""
    corners: F64
    """Rise of the corners of the mouth."""
    left: F64
    """Rise of the left brow."""
    right: F64
    """Rise of the right brow."""
    drop: F64
    """Distance by which the jaw lowers the lower lip."""

    @classmethod
    def of(cls, expressions: npt.NDArray[np.floating], jaw: npt.NDArray[np.floating]) -> Faces:
        """Compute the movements of the face for each frame.

        Args:
            expressions: Coefficients (T, 8 or more), relative to the figure's neutral face.
            jaw: Rotation vectors (T, 3) of the jaw in radians.

        Returns:
            The six movements, such as the opening of the mouth, each (T,) in metres.
        """
        e = np.asarray(expressions, np.float64).T
        half = np.linalg.norm(jaw, axis=1) / 2
        pitch = 2 * np.arctan2(jaw[:, 0] / 2 * np.sinc(half / np.pi), np.cos(half))
        return cls(
            open=np.maximum(0, _soft(0.006 * (e[5] + e[6] - e[0]), 0.014)),
            wide=_soft(0.006 * e[1], 0.008),
            corners=_soft(0.006 * e[2], 0.006),
            left=_soft(0.008 * (e[3] + 0.5 * e[7]), 0.009),
            right=_soft(0.008 * (e[3] - 0.5 * e[7]), 0.009),
            drop=np.maximum(0, 0.07 * np.sin(pitch)),
        )

    @classmethod
    def of_motion(cls, motion: SmplxMotion) -> Faces:
        """Compute the movements of a motion's face.

        The neutral face is the median expression of at most 2000 frames of the motion.
        """
        leading = motion.expressions[:, :LEADING].astype(np.float64)
        step = max(1, -(-len(leading) // _NEUTRAL_FRAMES))
        return cls.of(leading - np.median(leading[::step], axis=0), motion.poses[:, 3 * _JAW : 3 * _JAW + 3])

    @property
    def table(self) -> F64:
        """All movements in one array (T, 6), in metres and in the order of `MOVEMENTS`."""
        return np.stack([getattr(self, name) for name in MOVEMENTS], axis=1)


MOVEMENTS: Final = tuple(each.name for each in fields(Faces))
"""Names of the movements of a face."""


def _soft(x: F64, limit: float) -> F64:
    return np.asarray(limit * np.tanh(x / limit))


MOUTH_SIDES: Final = 28
"""Number of vertices around the opening of the mouth."""
_MOUTH_AROUND: Final = 8  # number of vertices around the lip at each of the `MOUTH_SIDES` vertices
_MOUTH_RINGS: Final = (0.35, 0.7, 1.0)  # sizes of rings of vertices in the opening, as shares of the opening
_MOUTH_Y, _MOUTH_HALF_M = 0.619, 0.023
_MOUTH_MOVED_M: Final = {"open": 0.010, "wide": 0.006, "corners": 0.004, "drop": 0.012}
"""Movements in metres for which the mouth's vertices are exact. Other movements are interpolated linearly."""


@functools.cache
def mouth() -> Surface:
    """Return the mouth of a face at rest; `mouth_at` computes the vertices for a moving face."""
    sides, inside = MOUTH_SIDES, 1 + len(_MOUTH_RINGS) * MOUTH_SIDES
    here = np.arange(sides)
    fan = np.stack([0 * here, 1 + here, 1 + (here + 1) % sides], axis=1)
    opening = 1 + _quads(len(_MOUTH_RINGS), sides)
    lips = inside + _quads(sides, _MOUTH_AROUND)
    closing = inside + _joined(_MOUTH_AROUND * (sides - 1) + np.arange(_MOUTH_AROUND), np.arange(_MOUTH_AROUND))
    triangles = np.concatenate([fan, *(each[:, ::-1] for each in (opening, lips, closing))])
    positions, normals = _mouth_shape().transpose(1, 0, 2).astype(np.float32)
    colours = np.repeat([COLOURS.index("dark"), COLOURS.index("lip")], [inside, sides * _MOUTH_AROUND]).astype(np.uint8)
    bones = np.full((len(positions), 2), _HEAD, np.uint8)
    return Surface(
        positions, normals, bones, np.zeros(len(positions), np.float32), colours, triangles.astype(np.uint16)
    )


@functools.cache
def mouth_changes() -> F32:
    """Return for each movement of the face how the mouth's vertices and normals change, per metre of the movement.

    Returns:
        Changes (6, V, 2, 3). The axes are: the movement (in the order of `MOVEMENTS`), the vertex, position (0) or
        normal (1), and the coordinate. Movements of the brows do not change the mouth: their entries are 0.
    """
    rest = _mouth_shape()
    changes = [
        (_mouth_shape(**{name: moved}) - rest) / moved if (moved := _MOUTH_MOVED_M.get(name)) else 0 * rest
        for name in MOVEMENTS
    ]
    return np.stack(changes).astype(np.float32)


def mouth_at(faces: Faces, frame: int) -> tuple[F32, F32]:
    """Return positions and normals of the mouth's vertices in one frame, with the head in the rest pose.

    Args:
        faces: Movements of the face.
        frame: Index of the frame.

    Returns:
        Positions (V, 3) in metres, and normals (V, 3). The lengths of the normals may differ from 1.
    """
    rest = mouth()
    moved = np.array([getattr(faces, name)[frame] for name in MOVEMENTS], np.float32)
    changes = np.tensordot(moved, mouth_changes(), axes=1)
    return rest.positions + changes[:, 0], rest.normals + changes[:, 1]


def _mouth_shape(*, open: float = 0.0, wide: float = 0.0, corners: float = 0.0, drop: float = 0.0) -> F64:  # noqa: A002 - a name of `Faces`
    """Return positions and normals (V, 2, 3) of the mouth for given movements in metres."""
    angles = 2 * np.pi * np.arange(MOUTH_SIDES) / MOUTH_SIDES
    c, s = np.cos(angles), np.sin(angles)
    heights = np.where(s < 0, 0.0012 + open + drop, 0.0010 + 0.35 * open)
    x, y = (_MOUTH_HALF_M + wide) * c, _MOUTH_Y + heights * s + corners * c * c
    ring = np.stack([x, y, face_depth(x, y) + 0.0008], axis=1)
    low = _MOUTH_Y - 0.5 * (open + drop)
    dark = [(np.zeros(1), np.full(1, low)), *((share * x, low + share * (y - low)) for share in _MOUTH_RINGS)]
    opening = [np.stack([a, b, face_depth(a, b) + 0.0008], axis=1) for a, b in dark]
    along = np.roll(ring, -1, axis=0) - np.roll(ring, 1, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    u = np.cross(along, (0.0, 0.0, 1.0))
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    turns = 2 * np.pi * np.arange(_MOUTH_AROUND) / _MOUTH_AROUND
    outwards = np.cos(turns)[:, None] * u[:, None] + np.sin(turns)[:, None] * np.cross(u, along)[:, None]
    lips = ring[:, None] + (0.0016 + 0.0026 * np.abs(s))[:, None, None] * outwards
    forward = np.tile([0.0, 0.0, 1.0], (1 + len(_MOUTH_RINGS) * MOUTH_SIDES, 1))
    positions = np.concatenate([*opening, lips.reshape(-1, 3)])
    return np.stack([positions, np.concatenate([forward, outwards.reshape(-1, 3)])], axis=1)


# --- colours


TINTS: Final = ("#4c82e0", "#e07b39", "#3f9f74", "#a765c9", "#c9a227", "#c8507a", "#3aa3b5", "#7d8794")
"""Colours that distinguish the figures of different tracks."""
PARTS: Final[dict[Colour, str]] = {
    "clay": "#dccfc2",
    "white": "#f4f4f2",
    "iris": "#5b7688",
    "dark": "#4a3f3b",
    "lip": "#bf8a80",
}
"""Colours that all figures share."""


def palette(track: int) -> F32:
    """Return the RGB colours (7, 3) of the figure of one track, in the order of `COLOURS`. Values are from 0 to 1.

    `track` is the index of the track, from 0. It selects the tint (main colour of the clothes), which distinguishes the
    figures of different tracks.
    """
    tint = _rgb(TINTS[track % len(TINTS)])
    own = {"tint": tint, "shoe": tint * 0.5} | {name: _rgb(colour) for name, colour in PARTS.items()}
    return np.stack([own[name] for name in COLOURS]).astype(np.float32)


def _rgb(colour: str) -> F64:
    return np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
