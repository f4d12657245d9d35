"""GLB files hold the joints of the motion, and are what the glTF 2.0 specification asks for."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from exchange_builders import plain_positions, random_motion

from omniges.exchange.figure import figure_of
from omniges.exchange.gltf import encode_glb, shortest_way
from omniges.features.body import PARENTS, REST_OFFSETS
from omniges.features.gesture import JOINT_NAMES
from omniges.features.skeleton import GENERIC

TYPES = {"SCALAR": 1, "VEC3": 3, "VEC4": 4, "MAT4": 16}
KINDS = {5126: np.float32, 5123: np.uint16, 5121: np.uint8}


def open_glb(data: bytes) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Return the document and the arrays of its accessors."""
    assert struct.unpack_from("<4sII", data) == (b"glTF", 2, len(data))
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert (kind, size % 4) == (b"JSON", 0)
    document = json.loads(data[20 : 20 + size])
    length, kind = struct.unpack_from("<I4s", data, 20 + size)
    content = data[28 + size :]
    assert (kind, length % 4, length) == (b"BIN\0", 0, len(content))
    arrays = []
    for accessor in document["accessors"]:
        view, dtype = document["bufferViews"][accessor["bufferView"]], KINDS[accessor["componentType"]]
        assert view["byteOffset"] % 4 == 0
        array = np.frombuffer(content, dtype, view["byteLength"] // dtype().nbytes, view["byteOffset"])
        array = array.reshape(accessor["count"], TYPES[accessor["type"]])
        if "min" in accessor:
            np.testing.assert_array_equal(array.min(0), np.array(accessor["min"], np.float32))
            np.testing.assert_array_equal(array.max(0), np.array(accessor["max"], np.float32))
        arrays.append(array)
    return document, arrays


def matrix_of(x: float, y: float, z: float, w: float) -> np.ndarray:
    """Return the matrix of a unit quaternion, by the specification's order of its numbers."""
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def test_joints_are_those_of_forward_kinematics() -> None:
    motion = random_motion(12, spread=3)
    document, arrays = open_glb(encode_glb(motion, GENERIC, "clip"))
    (animation,) = document["animations"]
    tracks = {
        (channel["target"]["node"], channel["target"]["path"]): animation["samplers"][channel["sampler"]]
        for channel in animation["channels"]
    }
    times = arrays[tracks[0, "translation"]["input"]][:, 0]
    np.testing.assert_allclose(times, np.arange(12) / 30, atol=1e-6)
    nodes = document["nodes"]
    parents = {child: number for number, node in enumerate(nodes) for child in node.get("children", ())}
    places = np.empty((12, len(JOINT_NAMES), 3))
    for t in range(12):
        worlds: dict[int, np.ndarray] = {}
        for number, name in enumerate(JOINT_NAMES):
            assert nodes[number]["name"] == name
            local = np.eye(4)
            local[:3, :3] = matrix_of(*arrays[tracks[number, "rotation"]["output"]][t].tolist())
            moved = tracks.get((number, "translation"))
            local[:3, 3] = arrays[moved["output"]][t] if moved else nodes[number]["translation"]
            worlds[number] = worlds[parents[number]] @ local if number in parents else local
            places[t, number] = worlds[number][:3, 3]
    expected = plain_positions(motion, REST_OFFSETS, PARENTS, motion.trans - (0, 0.35, 0))
    assert np.linalg.norm(places - expected, axis=-1).max() < 1e-5


def test_the_skin_is_bound_in_the_rest_pose() -> None:
    document, arrays = open_glb(encode_glb(random_motion(3), GENERIC, "clip"))
    inverse = arrays[document["skins"][0]["inverseBindMatrices"]].reshape(-1, 4, 4).transpose(0, 2, 1)
    rest = GENERIC.rest_positions
    np.testing.assert_allclose((inverse @ np.c_[rest, np.ones(len(rest))][..., None])[:, :3, 0], 0, atol=1e-6)
    attributes = document["meshes"][0]["primitives"][0]["attributes"]
    assert {len(arrays[number]) for number in attributes.values()} == {len(figure_of(GENERIC).positions)}
    np.testing.assert_array_equal(arrays[attributes["WEIGHTS_0"]].sum(1), 1)


def test_the_figure_covers_the_joints_with_outward_normals() -> None:
    mesh, rest = figure_of(GENERIC), GENERIC.rest_positions
    assert set(mesh.joints.tolist()) == set(range(len(JOINT_NAMES)))
    assert int(mesh.triangles.max()) == len(mesh.positions) - 1
    for joint, place in enumerate(rest):  # each joint lies inside, close to vertices that it moves
        own = mesh.positions[mesh.joints == joint]
        assert np.linalg.norm(own - place, axis=1).min() < 0.15
    np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1, atol=1e-5)
    a, b, c = (mesh.positions[mesh.triangles[:, k]].astype(np.float64) for k in range(3))
    facing = np.einsum("ij,ij->i", np.cross(b - a, c - a), mesh.normals[mesh.triangles].sum(1))
    assert (facing > -1e-9).all()  # counter-clockwise from outside; those at the poles have no area


def test_interpolation_takes_the_shortest_way() -> None:
    turns = np.random.default_rng(0).normal(size=(50, 3, 4))
    found = shortest_way(turns)
    assert (np.sum(found[1:] * found[:-1], axis=-1) >= 0).all()
    np.testing.assert_array_equal(np.abs(found), np.abs(turns))
