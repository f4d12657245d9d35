"""An invented body model with the keys of an SMPL-X file, and a slow restatement of its meaning."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np

# The tree of SMPL-X written down once more, joint after joint.
TREE = [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 15, 15, 15]
TREE += [20, 25, 26, 20, 28, 29, 20, 31, 32, 20, 34, 35, 20, 37, 38]
TREE += [21, 40, 41, 21, 43, 44, 21, 46, 47, 21, 49, 50, 21, 52, 53]


def body_arrays(vertices: int = 200, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Arrays of a body model file; a change to None leaves the key out."""
    rng = np.random.default_rng(seed)
    near = rng.random((vertices, 55)) ** 8  # a few joints hold most of a vertex
    regressor = rng.random((55, vertices)) ** 6
    arrays: dict[str, Any] = {
        "v_template": rng.normal(0, 0.5, (vertices, 3)),
        "shapedirs": rng.normal(0, 0.005, (vertices, 3, 400)),
        "posedirs": rng.normal(0, 0.002, (vertices, 3, 486)),
        "J_regressor": regressor / regressor.sum(axis=1, keepdims=True),
        "weights": near / near.sum(axis=1, keepdims=True),
        "kintree_table": np.array([[parent % 2**32 for parent in TREE], range(55)], dtype=np.uint32),
        "hands_meanl": rng.normal(0, 0.2, 45),
        "hands_meanr": rng.normal(0, 0.2, 45),
        "f": rng.integers(0, vertices, (2 * vertices, 3), dtype=np.uint32),
        "joint2num": np.array({"Pelvis": 0}, dtype=object),  # real files hold such, which are never unpickled
        "hands_componentsl": rng.normal(0, 1, (45, 45)),
    }
    arrays |= changes
    return {key: array for key, array in arrays.items() if array is not None}


def body_file(vertices: int = 200, seed: int = 0, **changes: Any) -> bytes:
    """The bytes of a body model file."""
    buffer = io.BytesIO()
    np.savez(buffer, **body_arrays(vertices, seed, **changes))
    return buffer.getvalue()


def rotation(vector: Any) -> list[list[float]]:
    """Rodrigues' formula, entry by entry."""
    angle = math.sqrt(sum(float(x) ** 2 for x in vector))
    if angle == 0:
        return [[float(i == j) for j in range(3)] for i in range(3)]
    x, y, z = (float(v) / angle for v in vector)
    c, s = math.cos(angle), math.sin(angle)
    return [
        [c + x * x * (1 - c), x * y * (1 - c) - z * s, x * z * (1 - c) + y * s],
        [y * x * (1 - c) + z * s, c + y * y * (1 - c), y * z * (1 - c) - x * s],
        [z * x * (1 - c) - y * s, z * y * (1 - c) + x * s, c + z * z * (1 - c)],
    ]


def times(a: Any, b: Any) -> list[list[float]]:
    """A product of 4 x 4 matrices."""
    return [[sum(a[i][k] * b[k][j] for k in range(4)) for j in range(4)] for i in range(4)]


def slow_body(arrays: Any, betas: Any, expression: Any, pose: Any, transl: Any) -> tuple[Any, Any]:
    """One frame by loops: joints (55, 3) and vertices (V, 3) of a pose (165,), homogeneous matrices joint by joint."""
    vertices = len(arrays["v_template"])
    shape = np.concatenate([betas, expression]).astype(np.float64)
    shaped = [
        [float(arrays["v_template"][v, c]) + float(np.dot(arrays["shapedirs"][v, c], shape)) for c in range(3)]
        for v in range(vertices)
    ]
    rest = [
        [math.fsum(float(arrays["J_regressor"][j, v]) * shaped[v][c] for v in range(vertices)) for c in range(3)]
        for j in range(55)
    ]
    full = [*map(float, pose[:75])]
    full += [float(a) + float(m) for a, m in zip(pose[75:120], arrays["hands_meanl"], strict=True)]
    full += [float(a) + float(m) for a, m in zip(pose[120:165], arrays["hands_meanr"], strict=True)]
    turns = [rotation(full[3 * j : 3 * j + 3]) for j in range(55)]
    world: list[Any] = []
    for j, parent in enumerate(TREE):
        arm = [rest[j][c] - (rest[parent][c] if parent >= 0 else 0.0) for c in range(3)]
        local = [[*turns[j][i], arm[i]] for i in range(3)] + [[0.0, 0.0, 0.0, 1.0]]
        world.append(local if parent < 0 else times(world[parent], local))
    feature = [turns[j][i][k] - float(i == k) for j in range(1, 55) for i in range(3) for k in range(3)]
    away = [[[1.0, 0, 0, -r[0]], [0, 1.0, 0, -r[1]], [0, 0, 1.0, -r[2]], [0, 0, 0, 1.0]] for r in rest]
    moved = [times(world[j], away[j]) for j in range(55)]
    found = np.empty((vertices, 3))
    for v in range(vertices):
        at = [shaped[v][c] + float(np.dot(arrays["posedirs"][v, c], feature)) for c in range(3)]
        for i in range(3):
            found[v, i] = float(transl[i]) + math.fsum(
                float(arrays["weights"][v, j]) * (sum(moved[j][i][k] * at[k] for k in range(3)) + moved[j][i][3])
                for j in range(55)
            )
    joints = np.array([[matrix[i][3] + float(transl[i]) for i in range(3)] for matrix in world])
    return joints, found
