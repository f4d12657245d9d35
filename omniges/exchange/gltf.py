"""Write motion as a binary glTF 2.0 file (GLB): a skinned figure with one animation; metres, y up, facing +z.

The figure is made here of a capsule along each bone, each bound to one joint. Sources: the glTF 2.0 specification of
the Khronos Group, sections 3 (concepts) and 4 (GLB).
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges import __version__
from omniges.exchange.figure import Mesh, figure_of
from omniges.features.body import PARENTS
from omniges.features.gesture import JOINT_NAMES
from omniges.features.skeleton import Skeleton
from omniges.formats.motion import SmplxMotion

F32 = npt.NDArray[np.float32]
Array = npt.NDArray[Any]

_COMPONENT: Final = {"float32": 5126, "uint16": 5123, "uint8": 5121}
_VERTICES, _INDICES = 34962, 34963  # targets of buffer views
_BLOCK_FRAMES: Final = 1024


@dataclass(slots=True)
class _Buffer:
    """The one buffer of a file, and what describes its parts."""

    content: bytearray = field(default_factory=bytearray)
    views: list[dict[str, Any]] = field(default_factory=list)
    accessors: list[dict[str, Any]] = field(default_factory=list)

    def add(self, array: Array, kind: str, target: int | None = None, *, bounds: bool = False) -> int:
        """Append an array (N,) or (N, k) and return the number of its accessor.

        Args:
            array: float32, uint16 or uint8.
            kind: ``SCALAR``, ``VEC3``, ``VEC4`` or ``MAT4``.
            target: GPU buffer that the array is for, None for none.
            bounds: Whether to state minimum and maximum.

        Returns:
            Number of the accessor.
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
    """Return a GLB file of a motion.

    Args:
        motion: T frames; poses and positions are finite.
        skeleton: Bones of the figure.
        name: Name of the animation.

    Returns:
        Bytes of the file.
    """
    buffer = _Buffer()
    mesh = _mesh(buffer, figure_of(skeleton))
    positions = skeleton.rest_positions
    inverse = np.tile(np.eye(4, dtype=np.float32), (len(PARENTS), 1, 1))
    inverse[:, 3, :3] = -positions  # columns first
    skin = {
        "joints": list(range(len(PARENTS))),
        "skeleton": 0,
        "inverseBindMatrices": buffer.add(inverse.reshape(-1, 16), "MAT4"),
    }
    animation = _animation(buffer, motion, skeleton, name)
    document = {
        "asset": {"version": "2.0", "generator": f"omniges {__version__}"},
        "scene": 0,
        "scenes": [{"nodes": [0, len(PARENTS)]}],
        "nodes": [*_joints(skeleton), {"name": "figure", "mesh": 0, "skin": 0}],
        "meshes": [mesh],
        "materials": [
            {
                "name": "clay",
                "pbrMetallicRoughness": {
                    "baseColorFactor": [0.72, 0.74, 0.78, 1.0],
                    "metallicFactor": 0.0,
                    "roughnessFactor": 0.8,
                },
            }
        ],
        "skins": [skin],
        "animations": [animation],
        "buffers": [{"byteLength": len(buffer.content)}],
        "bufferViews": buffer.views,
        "accessors": buffer.accessors,
    }
    return _container(document, bytes(buffer.content))


def _container(document: dict[str, Any], content: bytes) -> bytes:
    """Return the chunks of a GLB file, each padded to 4 bytes."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(content), b"BIN\0") + content
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks


def _joints(skeleton: Skeleton) -> list[dict[str, Any]]:
    """Return the nodes of the joints in the rest pose."""
    nodes = []
    for joint, name in enumerate(JOINT_NAMES):
        node: dict[str, Any] = {"name": name}
        if joint:
            node["translation"] = skeleton.offsets[joint].tolist()
        if children := [child for child, parent in enumerate(PARENTS) if parent == joint]:
            node["children"] = children
        nodes.append(node)
    return nodes


def _mesh(buffer: _Buffer, figure: Mesh) -> dict[str, Any]:
    joints = np.zeros((len(figure.joints), 4), np.uint8)
    joints[:, 0] = figure.joints
    weights = np.zeros((len(joints), 4), np.float32)
    weights[:, 0] = 1.0
    attributes = {
        "POSITION": buffer.add(figure.positions, "VEC3", _VERTICES, bounds=True),
        "NORMAL": buffer.add(figure.normals, "VEC3", _VERTICES),
        "JOINTS_0": buffer.add(joints, "VEC4", _VERTICES),
        "WEIGHTS_0": buffer.add(weights, "VEC4", _VERTICES),
    }
    indices = buffer.add(figure.triangles.reshape(-1), "SCALAR", _INDICES)
    return {"name": "figure", "primitives": [{"attributes": attributes, "indices": indices, "material": 0}]}


def _animation(buffer: _Buffer, motion: SmplxMotion, skeleton: Skeleton, name: str) -> dict[str, Any]:
    """Return the animation: a rotation for each joint and frame, and positions of the pelvis."""
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
    return {
        "name": name,
        "samplers": [{"input": times, "output": output, "interpolation": "LINEAR"} for _, _, output in outputs],
        "channels": [
            {"sampler": number, "target": {"node": joint, "path": path}}
            for number, (path, joint, _) in enumerate(outputs)
        ],
    }


def quaternions(matrices: Array) -> Array:
    """Return unit quaternions (..., 4) as x, y, z, w of rotation matrices (..., 3, 3)."""
    from scipy.spatial.transform import Rotation  # noqa: PLC0415 - 0.2 s that only an export needs

    return np.asarray(Rotation.from_matrix(matrices.reshape(-1, 3, 3)).as_quat().reshape(*matrices.shape[:-2], 4))


def shortest_way(turns: Array) -> Array:
    """Return quaternions (T, J, 4) of which each lies on the same side as the one before, as interpolation expects."""
    flips = np.sum(turns[1:] * turns[:-1], axis=-1) < 0
    signs = np.where(np.cumsum(flips, axis=0) % 2, -1.0, 1.0)
    return np.concatenate([turns[:1], turns[1:] * signs[..., None]])
