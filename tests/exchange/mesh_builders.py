"""An invented body model that looks like a body: rings along the bones of the generic skeleton."""

from __future__ import annotations

from typing import Any

import numpy as np
from body_builders import body_arrays

from omniges.features.body import GENERIC, PARENTS
from omniges.features.gesture import JOINT_NAMES

SIDES = 8
RINGS = 4
ABOVE_M = 0.35  # the pelvis is so far below the origin


def figure_arrays(seed: int = 0) -> dict[str, Any]:
    """Arrays of a model file: 4 rings of 8 vertices for each bone; joints are the means of their first rings."""
    rng = np.random.default_rng(seed)
    rest = GENERIC.rest_positions - (0, ABOVE_M, 0)
    bones = [(parent, child) for child, parent in enumerate(PARENTS) if parent >= 0]
    bones += [(joint, None) for joint in range(55) if joint not in {parent for parent, _ in bones}]
    places, weights, faces = [], [], []
    regressor = np.zeros((55, 0))
    for parent, child in bones:
        name = JOINT_NAMES[parent]
        fine = any(part in name for part in ("index", "middle", "ring", "pinky", "thumb", "eye", "jaw"))
        radius = 0.009 if fine else 0.05
        end = rest[parent] + (0, 0, 0.02) if child is None else rest[child]
        along = (end - rest[parent]) / np.linalg.norm(end - rest[parent])
        side = np.cross(along, np.eye(3)[np.argmin(np.abs(along))])
        side /= np.linalg.norm(side)
        other = np.cross(along, side)
        angles = 2 * np.pi * np.arange(SIDES) / SIDES
        first = sum(map(len, places))
        for ring in range(RINGS):
            t = ring / (RINGS - 1)
            centre = rest[parent] + t * (end - rest[parent])
            size = radius * (0.6 if ring in {0, RINGS - 1} else 1.0)
            places.append(centre + size * (np.cos(angles)[:, None] * side + np.sin(angles)[:, None] * other))
            bound = np.zeros((SIDES, 55))
            bound[:, parent] = 1 - 0.5 * t * (child is not None)
            if child is not None:
                bound[:, child] = 0.5 * t
            weights.append(bound)
        here = np.arange(SIDES)
        for ring in range(RINGS - 1):
            a, b = first + ring * SIDES + here, first + ring * SIDES + (here + 1) % SIDES
            faces += [np.stack([a, b, a + SIDES], axis=1), np.stack([b, b + SIDES, a + SIDES], axis=1)]
        regressor = np.concatenate([regressor, np.zeros((55, RINGS * SIDES))], axis=1)
        if not regressor[parent].any():
            regressor[parent, first : first + SIDES] = 1 / SIDES
    template = np.concatenate(places)
    shapes = np.zeros((len(template), 3, 400))
    shapes[:, 1, 0] = 0.06 * template[:, 1]  # the first shape coefficient: taller
    head = np.concatenate(weights)[:, JOINT_NAMES.index("head")] > 0.4
    shapes[head, :, 300:] = rng.normal(0, 0.01, (head.sum(), 3, 100))
    return body_arrays(
        len(template),
        v_template=template,
        shapedirs=shapes,
        posedirs=np.zeros((len(template), 3, 486)),
        J_regressor=regressor,
        weights=np.concatenate(weights),
        hands_meanl=np.full(45, 0.1),
        hands_meanr=np.full(45, -0.1),
        f=np.concatenate(faces).astype(np.uint32),
    )
