"""The mesh of a body model as a page gets it: skinned by the joints, with a face that the expressions move.

Left out are the corrections of the mesh that depend on the pose, which would take 40 MB in base64, and the movement of
the rest joints by expressions.

Letters: V vertices, F triangles, W = 8 joints of a vertex, K vertices that expressions move.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError
from omniges.exchange.solid import vertex_normals
from omniges.features.body import BodyModel, Skeleton
from omniges.features.gesture import EXPRESSIONS

JOINTS_OF_VERTEX: Final = 8
_STILL_M: Final = 1e-6  # a vertex that expressions move less, in metres per unit, is still


@dataclass(frozen=True, slots=True, eq=False)
class PackedMesh:
    """Data that the bodies of all persons share, as bytes, with the sizes that a reader needs."""

    content: bytes
    """Triangles (F, 3) uint32, numbers of moved vertices (K,) uint32, directions (100, K, 3) int16, weights (V, W)
    uint16 in units of 1/65535, joints (V, W) uint8."""
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class PackedBody:
    """A person's body in the rest pose, as bytes, and its skeleton."""

    content: bytes
    """Positions (V, 3) int16 relative to the pelvis, normals (V, 3) int8 in units of 1/127."""
    step_m: float
    skeleton: Skeleton


def pack_mesh(model: BodyModel, name: str) -> PackedMesh:
    """Return the mesh of a body model.

    Args:
        model: The model.
        name: Name of its file, for the error.

    Returns:
        The mesh.

    Raises:
        DataError: The file has no triangles.
    """
    if model.triangles is None:
        raise DataError(f"{name}: expected the triangles f of the mesh, found none: give SMPL-X's own .npz")
    joints = np.argsort(-model.weights, axis=1, kind="stable")[:, :JOINTS_OF_VERTEX]
    weights = np.take_along_axis(model.weights, joints, axis=1)
    weights = np.maximum(weights, 0) / np.maximum(weights, 0).sum(axis=1, keepdims=True)
    directions = model.expression_directions
    moved = np.flatnonzero(np.abs(directions).max(axis=(1, 2)) > _STILL_M)
    step = max(float(np.abs(directions[moved]).max(initial=0.0)), _STILL_M) / 32767
    parts = [
        model.triangles.astype("<u4"),
        moved.astype("<u4"),
        np.rint(directions[moved].transpose(2, 0, 1) / step).astype("<i2"),
        np.rint(weights * 65535).astype("<u2"),
        joints.astype(np.uint8),
    ]
    facts: dict[str, Any] = {"vertices": model.vertices, "triangles": len(model.triangles), "moved": len(moved)}
    facts |= {"directions": EXPRESSIONS, "directionStep": step, "joints": JOINTS_OF_VERTEX}
    return PackedMesh(b"".join(part.tobytes() for part in parts), facts)


def pack_body(model: BodyModel, betas: npt.NDArray[np.floating]) -> PackedBody:
    """Return the body of a person in the rest pose.

    Args:
        model: The body model.
        betas: Shape coefficients (n,), n at most 300; the others are 0.

    Returns:
        The body.
    """
    person = model.person(betas)
    positions = person.rest_vertices - person.rest_joints[0]
    step = float(np.abs(positions).max()) / 32767
    triangles = np.zeros((0, 3), np.int32) if model.triangles is None else model.triangles
    normals = np.rint(vertex_normals(positions, triangles) * 127).astype(np.int8)
    content = np.rint(positions / step).astype("<i2").tobytes() + normals.tobytes()
    return PackedBody(content, step, person.skeleton)
