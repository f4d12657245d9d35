"""GLB files hold the joints of the motion, and are what the glTF 2.0 specification asks for."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange_builders import plain_positions, random_motion

from omniges.exchange.gltf import encode_glb, fitted, shortest_way
from omniges.exchange.solid import Faces, mouth, mouth_at, solid_figure
from omniges.features.body import GENERIC, PARENTS, REST_OFFSETS, Skeleton
from omniges.features.gesture import JOINT_NAMES

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
    for mesh in document["meshes"]:
        for primitive in mesh["primitives"]:
            joints, weights = (arrays[primitive["attributes"][name]] for name in ("JOINTS_0", "WEIGHTS_0"))
            np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
            assert ((joints == 0) | (weights > 0)).all()  # the validator warns of others
            assert joints.max() < len(JOINT_NAMES)


def test_the_figure_is_that_of_pages_in_all_colours() -> None:
    document, arrays = open_glb(encode_glb(random_motion(3), GENERIC, "clip"))
    places, triangles = [], 0
    for mesh in document["meshes"]:
        places.append(arrays[mesh["primitives"][0]["attributes"]["POSITION"]])
        triangles += sum(len(arrays[primitive["indices"]]) // 3 for primitive in mesh["primitives"])
    expected = np.concatenate([solid_figure().positions, mouth().positions])
    found = np.concatenate(places)
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, expected.tolist()))
    assert triangles == len(solid_figure().triangles) + len(mouth().triangles)
    drawn = {primitive["material"] for mesh in document["meshes"] for primitive in mesh["primitives"]}
    assert drawn == set(range(len(document["materials"])))


def test_a_face_is_its_morph_targets() -> None:
    """A mouth that opens, widens and rises with the jaw, and brows, by weights of 0 to 1."""
    motion = random_motion(60)
    document, arrays = open_glb(encode_glb(motion, GENERIC, "clip"))
    (animation,) = document["animations"]
    (channel,) = (one for one in animation["channels"] if one["target"]["path"] == "weights")
    mesh = document["meshes"][document["nodes"][channel["target"]["node"]]["mesh"]]
    weights = arrays[animation["samplers"][channel["sampler"]]["output"]].reshape(60, -1)
    assert weights.shape[1] == len(mesh["extras"]["targetNames"]) == len(mesh["weights"])
    assert weights.min() == 0
    assert 0.1 < weights.max() <= 1
    primitive = mesh["primitives"][0]
    rest, lips = arrays[primitive["attributes"]["POSITION"]], len(mouth().positions)
    changes = np.stack([arrays[target["POSITION"]] for target in primitive["targets"]])
    faces = Faces.of_motion(motion)
    for t in range(60):
        face = rest + np.einsum("k,kvc->vc", weights[t], changes)
        expected, _ = mouth_at(faces, t)
        np.testing.assert_allclose(face[:lips], expected, atol=1e-5)
        rise = face[lips:, 1] - rest[lips:, 1]
        np.testing.assert_allclose(
            sorted({*rise.round(6)}), sorted({*np.round([faces.left[t], faces.right[t]], 6)}), atol=1e-5
        )


def test_a_figure_fits_other_bones() -> None:
    figure = solid_figure()
    np.testing.assert_array_equal(fitted(figure.positions, GENERIC), figure.positions)
    scale = np.random.default_rng(0).uniform(0.9, 1.15, (len(JOINT_NAMES), 1))
    other = Skeleton(GENERIC.offsets * scale, GENERIC.pelvis, GENERIC.mean_hands)
    joints, moved = GENERIC.rest_positions.astype(np.float32), other.rest_positions - GENERIC.rest_positions
    np.testing.assert_allclose(fitted(joints, other) - joints, moved, atol=2e-3)
    shifts = fitted(figure.positions, other) - figure.positions
    assert np.abs(shifts).max() <= np.abs(moved).max() + 1e-6


@pytest.mark.slow
def test_the_validator_of_khronos_finds_nothing(tmp_path: Path) -> None:
    program = """
        const data = new Uint8Array(require("fs").readFileSync(process.argv[1]));
        require("gltf-validator").validateBytes(data).then(({ issues }) => console.log(JSON.stringify(issues)));
    """
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node: apt-get install nodejs")
    other = Skeleton(GENERIC.offsets * 1.1, GENERIC.pelvis, GENERIC.mean_hands)
    for number, skeleton in enumerate((GENERIC, other)):
        path = tmp_path / f"{number}.glb"
        path.write_bytes(encode_glb(random_motion(30), skeleton, "clip"))
        run = subprocess.run([node, "-e", program, str(path)], capture_output=True, text=True, check=False)
        if "Cannot find module 'gltf-validator'" in run.stderr:
            pytest.skip("no gltf-validator: npm install gltf-validator, and NODE_PATH names its node_modules")
        issues = json.loads(run.stdout)
        assert issues["messages"] == []


def test_interpolation_takes_the_shortest_way() -> None:
    turns = np.random.default_rng(0).normal(size=(50, 3, 4))
    found = shortest_way(turns)
    assert (np.sum(found[1:] * found[:-1], axis=-1) >= 0).all()
    np.testing.assert_array_equal(np.abs(found), np.abs(turns))
