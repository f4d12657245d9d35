"""Write motion as a binary glTF 2.0 file (GLB): a skinned figure with one animation.

Lengths are in metres. The y axis points up, and the figure faces +z. The file contains the figure of
`omniges.exchange.solid`, fitted to the skeleton. Pages and videos show the same figure. Joints move the jaw and the
eyes. Morph targets move the mouth and the brows. The weight of the target lipDrop is computed from the jaw; all
other weights are computed from the first 8 expressions. Source: the glTF 2.0 specification of the Khronos Group,
sections 3 (concepts) and 4 (GLB).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges import __version__
from omniges.exchange.solid import BROWS, COLOURS, MOVEMENTS, Faces, Surface, mouth, mouth_at, palette, solid_figure
from omniges.features.body import GENERIC, PARENTS, Skeleton
from omniges.features.gesture import JOINT_NAMES
from omniges.formats.motion import SmplxMotion

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

_COMPONENT: Final = {"float32": 5126, "uint16": 5123, "uint8": 5121}
_VERTICES, _INDICES = 34962, 34963  # targets of buffer views
_BLOCK_FRAMES: Final = 1024
_FIGURE_NODE, _FACE_NODE = len(PARENTS), len(PARENTS) + 1
_HEAD: Final = JOINT_NAMES.index("head")
_OF_VERTICES: Final = ("positions", "normals", "bones", "weights", "colours")
_NEAR_M: Final = 0.005  # points closer to a joint than this move almost exactly as the joint does
_TARGETS: Final = (
    ("mouthOpen", "open", 0.014),
    ("mouthWide", "wide", 0.008),
    ("mouthNarrow", "wide", -0.008),
    ("mouthCornersUp", "corners", 0.006),
    ("mouthCornersDown", "corners", -0.006),
    ("browUpLeft", "left", 0.009),
    ("browDownLeft", "left", -0.009),
    ("browUpRight", "right", 0.009),
    ("browDownRight", "right", -0.009),
    ("lipDrop", "drop", 0.07),
)
"""Morph targets of the face: name, field of `Faces`, and value of this field in metres at weight 1.

Weights are from 0 to 1.
"""


@dataclass(slots=True)
class _Buffer:
    """The binary buffer of a GLB file, with the buffer views and accessors that describe its sections."""

    content: bytearray = field(default_factory=bytearray)
    views: list[dict[str, Any]] = field(default_factory=list)
    accessors: list[dict[str, Any]] = field(default_factory=list)

    def add(self, array: Array, kind: str, target: int | None = None, *, bounds: bool = False) -> int:
        """Append an array of N numbers (N,) or N vectors (N, k), and return the index of its accessor.

        Args:
            array: The array, of dtype float32, uint16 or uint8.
            kind: glTF type of one element: ``SCALAR``, ``VEC3``, ``VEC4`` or ``MAT4``.
            target: Target of the buffer view: `_VERTICES` or `_INDICES`. None: the array contains neither
                vertices nor indices.
            bounds: Whether the accessor states minimum and maximum of the array.

        Returns:
            Index of the accessor.
        """
        view = {"buffer": 0, "byteOffset": len(self.content), "byteLength": array.nbytes}
        self.views.append(view if target is None else view | {"target": target})
        self.content += array.tobytes() + b"\0" * (-array.nbytes % 4)
        accessor = {"bufferView": len(self.views) - 1, "componentType": _COMPONENT[array.dtype.name], "type": kind}
        if bounds:
            rows = array.reshape(len(array), -1)
            accessor |= {"min": rows.min(axis=0).tolist(), "max": rows.max(axis=0).tolist()}
        self.accessors.append(accessor | {"count": len(array)})
        return len(self.accessors) - 1


def encode_glb(motion: SmplxMotion, skeleton: Skeleton, name: str) -> bytes:
    """Encode a motion as a GLB file.

    Args:
        motion: T frames; poses and positions are finite.
        skeleton: Bones of the figure.
        name: Name of the animation.

    Returns:
        Bytes of the file.
    """
    buffer = _Buffer()
    positions = skeleton.rest_positions
    inverse = np.tile(np.eye(4, dtype=np.float32), (len(PARENTS), 1, 1))
    inverse[:, 3, :3] = -positions  # column-major order
    skin = {
        "joints": list(range(len(PARENTS))),
        "skeleton": 0,
        "inverseBindMatrices": buffer.add(inverse.reshape(-1, 16), "MAT4"),
    }
    body, face = _body_and_face()
    meshes = [_mesh(buffer, "figure", body, skeleton), _mesh(buffer, "face", face, skeleton, _morphed(face))]
    animation = _animation(buffer, motion, skeleton, name)
    document = {
        "asset": {"version": "2.0", "generator": f"omniges {__version__}"},
        "scene": 0,
        "scenes": [{"nodes": [0, _FIGURE_NODE, _FACE_NODE]}],
        "nodes": [*_joints(skeleton), {"name": "figure", "mesh": 0, "skin": 0}, {"name": "face", "mesh": 1, "skin": 0}],
        "meshes": meshes,
        "materials": list(_materials()),
        "skins": [skin],
        "animations": [animation],
        "buffers": [{"byteLength": len(buffer.content)}],
        "bufferViews": buffer.views,
        "accessors": buffer.accessors,
    }
    return _container(document, bytes(buffer.content))


def _materials() -> Iterator[dict[str, Any]]:
    """Yield a glTF material for each colour of the figure."""
    for name, colour in zip(COLOURS, palette(0).astype(np.float64), strict=True):
        linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)  # sRGB
        yield {
            "name": name,
            "doubleSided": True,
            "pbrMetallicRoughness": {
                "baseColorFactor": [*(round(float(x), 4) for x in linear), 1.0],
                "metallicFactor": 0.0,
                "roughnessFactor": 0.8,
            },
        }


def _body_and_face() -> tuple[Surface, Surface]:
    """Return two surfaces: the figure without brows, and the mouth together with the brows."""
    whole, lips = solid_figure(), mouth()
    of_brows = np.isin(whole.bones[:, 0], list(BROWS.values()))
    brows = _part(whole, of_brows)
    joined = {name: np.concatenate([getattr(lips, name), getattr(brows, name)]) for name in _OF_VERTICES}
    triangles = np.concatenate([lips.triangles, brows.triangles + np.uint16(len(lips.positions))])
    face = replace(lips, **joined, triangles=triangles)
    return _part(whole, ~of_brows), face


def _part(surface: Surface, chosen: npt.NDArray[np.bool_]) -> Surface:
    """Cut a surface to the vertices that a mask selects; keep only triangles with three selected vertices.

    The mask (V,) has one value for each of the V vertices of the surface.
    """
    number = np.cumsum(chosen) - 1
    triangles = number[surface.triangles[chosen[surface.triangles].all(axis=1)]].astype(np.uint16)
    kept = {name: getattr(surface, name)[chosen] for name in _OF_VERTICES}
    return replace(surface, **kept, triangles=triangles)


def _morphed(face: Surface) -> list[F32]:
    """Return, for each morph target, the positions of the face's V vertices (V, 3) at weight 1 of this target."""
    found = []
    zero = {name: np.zeros(1) for name in MOVEMENTS}
    for _, name, value in _TARGETS:
        lips, _ = mouth_at(Faces(**zero | {name: np.array([value])}), 0)
        positions = np.concatenate([lips, face.positions[len(lips) :]])
        if name in BROWS:
            positions[face.bones[:, 0] == BROWS[name], 1] += value
        found.append(positions)
    return found


def _target_weights(motion: SmplxMotion) -> F32:
    """Return the morph target weights (T, targets) of T frames; 0 at the clip's median expression with closed jaw."""
    faces = Faces.of_motion(motion)
    weights = [np.clip(getattr(faces, name) / value, 0.0, 1.0) for _, name, value in _TARGETS]
    return np.stack(weights, axis=1).astype(np.float32)


def fitted(positions: F32, skeleton: Skeleton) -> F32:
    """Move points of the figure by inverse distance weighting, so that they fit another skeleton.

    Each joint moves from its place in the generic skeleton to its place in the other skeleton. A point at a joint moves
    with this joint. Any other point moves by a weighted mean of the movements of all joints; near joints have more
    weight.

    Args:
        positions: Points (V, 3) in metres, on the figure around the generic skeleton.
        skeleton: The other skeleton.

    Returns:
        Points (V, 3) in metres, on the figure around the other skeleton.
    """
    moved = skeleton.rest_positions - GENERIC.rest_positions
    if not moved.any():
        return positions
    squares = np.square(positions[:, None].astype(np.float64) - GENERIC.rest_positions).sum(axis=-1)
    near = (squares + _NEAR_M**2) ** -3
    shifts = near / near.sum(axis=1, keepdims=True) @ moved
    return np.asarray(positions + shifts, np.float32)


def _container(document: dict[str, Any], content: bytes) -> bytes:
    """Return the bytes of a GLB file: a header, the JSON chunk and the binary chunk, each padded to 4 bytes."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(content), b"BIN\0") + content
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _joints(skeleton: Skeleton) -> list[dict[str, Any]]:
    """Return the glTF nodes of the joints in the rest pose."""
    nodes = []
    for joint, name in enumerate(JOINT_NAMES):
        node: dict[str, Any] = {"name": name}
        if joint:
            node["translation"] = skeleton.offsets[joint].tolist()
        if children := [child for child, parent in enumerate(PARENTS) if parent == joint]:
            node["children"] = children
        nodes.append(node)
    return nodes


def _mesh(
    buffer: _Buffer, name: str, surface: Surface, skeleton: Skeleton, morphed: list[F32] | None = None
) -> dict[str, Any]:
    """Return a glTF mesh with one primitive for each colour.

    Args:
        buffer: The buffer to which the arrays are appended.
        name: Name of the mesh.
        surface: The surface around the generic skeleton.
        skeleton: Skeleton that the surface is fitted to.
        morphed: Positions (V, 3) at weight 1 for each item of `_TARGETS`; None: no morph targets.

    Returns:
        The mesh.
    """
    positions = fitted(surface.positions, skeleton)
    joints = np.zeros((len(positions), 4), np.uint8)
    weights = np.zeros((len(positions), 4), np.float32)
    bones = np.where(surface.bones < len(PARENTS), surface.bones, _HEAD)  # brows follow the head
    only = (surface.weights == 0) | (bones[:, 0] == bones[:, 1])
    second = (surface.weights == 1) & ~only
    joints[:, 0] = np.where(second, bones[:, 1], bones[:, 0])
    joints[:, 1] = np.where(only | second, 0, bones[:, 1])
    weights[:, 1] = np.where(only | second, 0, surface.weights)
    weights[:, 0] = 1 - weights[:, 1]
    attributes = {
        "POSITION": buffer.add(positions, "VEC3", _VERTICES, bounds=True),
        "NORMAL": buffer.add(surface.normals, "VEC3", _VERTICES),
        "JOINTS_0": buffer.add(joints, "VEC4", _VERTICES),
        "WEIGHTS_0": buffer.add(weights, "VEC4", _VERTICES),
    }
    more: dict[str, Any] = {}
    if morphed is not None:
        changes = [fitted(each, skeleton) - positions for each in morphed]
        more["targets"] = [{"POSITION": buffer.add(each, "VEC3", _VERTICES, bounds=True)} for each in changes]
    primitives = []
    for colour in np.unique(surface.colours).tolist():
        triangles = surface.triangles[surface.colours[surface.triangles[:, 0]] == colour]
        indices = buffer.add(triangles.reshape(-1), "SCALAR", _INDICES)
        primitives.append({"attributes": attributes, "indices": indices, "material": colour} | more)
    mesh: dict[str, Any] = {"name": name, "primitives": primitives}
    if morphed is not None:
        mesh |= {"weights": [0.0] * len(morphed), "extras": {"targetNames": [each for each, _, _ in _TARGETS]}}
    return mesh


def _animation(buffer: _Buffer, motion: SmplxMotion, skeleton: Skeleton, name: str) -> dict[str, Any]:
    """Return the glTF animation: rotations of all joints, positions of the pelvis, and morph target weights."""
    frames = len(motion.poses)
    times = buffer.add((np.arange(frames) / motion.frame_rate_hz).astype(np.float32), "SCALAR", bounds=True)
    turns = np.concatenate(
        [
            quaternions(skeleton.local_rotations(motion.poses[start : start + _BLOCK_FRAMES]))
            for start in range(0, frames, _BLOCK_FRAMES)
        ]
    )
    turns = shortest_way(turns).astype(np.float32)
    outputs = [
        ("rotation", joint, buffer.add(np.ascontiguousarray(turns[:, joint]), "VEC4")) for joint in range(len(PARENTS))
    ]
    places = skeleton.pelvis_positions(motion.trans).astype(np.float32)
    outputs.append(("translation", 0, buffer.add(places, "VEC3")))
    outputs.append(("weights", _FACE_NODE, buffer.add(_target_weights(motion).reshape(-1), "SCALAR")))
    return {
        "name": name,
        "samplers": [{"input": times, "output": output, "interpolation": "LINEAR"} for _, _, output in outputs],
        "channels": [
            {"sampler": number, "target": {"node": joint, "path": path}}
            for number, (path, joint, _) in enumerate(outputs)
        ],
    }


def quaternions(matrices: Array) -> Array:
    """Convert rotation matrices (..., 3, 3) to unit quaternions (..., 4) in the order x, y, z, w."""
    from scipy.spatial.transform import Rotation  # noqa: PLC0415 - takes 0.2 s, needed by exports only

    return np.asarray(Rotation.from_matrix(matrices.reshape(-1, 3, 3)).as_quat().reshape(*matrices.shape[:-2], 4))


def shortest_way(turns: Array) -> Array:
    """Flip signs of quaternions, so that successive frames interpolate along the shorter rotation.

    Shape of the argument and of the result: (T, J, 4) for T frames and J joints.
    """
    flips = np.sum(turns[1:] * turns[:-1], axis=-1) < 0
    signs = np.where(np.cumsum(flips, axis=0) % 2, -1.0, 1.0)
    return np.concatenate([turns[:1], turns[1:] * signs[..., None]])
