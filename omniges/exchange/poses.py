"""Compute the vertices of a moving figure in each frame. The figure is the solid figure or the mesh of a body model.

Frames are computed in blocks, so that memory does not grow with the length of a track. Lengths are in metres, y is up.
Shape letters: T frames, V vertices, F triangles.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.exchange import raster, solid
from omniges.exchange.pages import floor_of
from omniges.features.body import GENERIC, PARENTS, BodyModel, Skeleton, forward_kinematics
from omniges.features.gesture import JOINT_NAMES
from omniges.formats.motion import SmplxMotion

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

_BLOCK_FRAMES: Final = 32
_FLOOR_FRAMES: Final = 2000  # largest number of frames from which the floor is computed
_MESH_FLOOR_FRAMES: Final = 100
_HEAD: Final = JOINT_NAMES.index("head")
_FOLLOW_FRAMES: Final = 15  # the camera follows the mean position from this many frames before to this many after


class Figure(ABC):
    """Base class of figures that a motion moves."""

    triangles: raster.Triangles
    """(F, 3) indices of vertices, counterclockwise from outside."""
    base: F32
    """(V, 3) unlit colours of the vertices, from 0 to 1."""
    floor: float
    """Height of the floor under the figure in metres."""

    def __init__(self, motion: SmplxMotion, skeleton: Skeleton) -> None:
        self._motion = motion
        self._skeleton = skeleton
        self._path = _smooth(skeleton.pelvis_positions(motion.trans)[:, ::2])

    @property
    def frames(self) -> int:
        """Number of frames T."""
        return len(self._path)

    @abstractmethod
    def poses(self, frames: Indices) -> Iterator[Any]:
        """Yield the pose of the figure in each of the given frames. `place` computes the vertices from a pose."""

    @abstractmethod
    def place(self, pose: Any, placed: F32, turned: F32) -> None:
        """Compute the vertices and normals of a pose, and write them to the given arrays.

        Several threads may call this method at the same time.

        Args:
            pose: Result of `poses` for the frame.
            placed: (V, 3) output array, filled with positions in metres.
            turned: (V, 3) output array, filled with normals, whose lengths may differ from 1.
        """

    def centre(self, frame: int) -> tuple[float, float]:
        """Return the mean x and z of the pelvis in metres, over half a second before and after a frame."""
        x, z = self._path[frame]
        return float(x), float(z)

    def head(self, frame: int) -> F64:
        """Return the position (3,) of the head joint in a frame, in metres."""
        motion = self._motion
        positions = self._skeleton.joints(motion.poses[frame : frame + 1], motion.trans[frame : frame + 1])
        return np.asarray(positions[0, _HEAD])


def _smooth(places: F64) -> F64:
    """Return the moving average (T, 2) of positions (T, 2) over half a second before and after each frame."""
    sums = np.concatenate([np.zeros((1, 2)), np.cumsum(places, axis=0)])
    frames = np.arange(len(places))
    first, stop = np.maximum(0, frames - _FOLLOW_FRAMES), np.minimum(len(places), frames + _FOLLOW_FRAMES + 1)
    return np.asarray((sums[stop] - sums[first]) / (stop - first)[:, None])


def _spread(frames: int, most: int) -> Indices:
    """Return at most `most` evenly spaced frame indices below `frames`. The first index is 0."""
    return np.arange(0, frames, max(1, -(-frames // most)))


@dataclass(frozen=True, slots=True, eq=False)
class _Pose:
    matrices: F32  # (BONES, 3, 4)
    mouth: F32  # (M, 3)
    mouth_normals: F32  # (M, 3)


class SolidFigure(Figure):
    """The solid figure (`omniges.exchange.solid`) on the generic skeleton."""

    def __init__(self, motion: SmplxMotion, tint: int) -> None:
        super().__init__(motion, GENERIC)
        body, mouth = solid.solid_figure(), solid.mouth()
        self._body, self._mouth = body, mouth
        self.triangles = np.concatenate([body.triangles, mouth.triangles.astype(np.int32) + len(body.positions)])
        self.triangles = self.triangles.astype(np.int32)
        self.base = solid.palette(tint)[np.concatenate([body.colours, mouth.colours])]
        seen = _spread(len(motion.poses), _FLOOR_FRAMES)
        self.floor = floor_of(GENERIC.joints(motion.poses[seen], motion.trans[seen]))
        self._faces = solid.Faces.of_motion(motion)

    def poses(self, frames: Indices) -> Iterator[_Pose]:
        """Yield the pose of each frame: the bone matrices, and the vertices and normals of the mouth."""
        motion, rest = self._motion, GENERIC.rest_positions
        for start in range(0, len(frames), _BLOCK_FRAMES):
            block = frames[start : start + _BLOCK_FRAMES]
            turned, places = forward_kinematics(
                GENERIC.local_rotations(motion.poses[block]),
                GENERIC.offsets,
                GENERIC.pelvis_positions(motion.trans[block]),
            )
            matrices = np.empty((len(block), solid.BONES, 3, 4))
            matrices[:, : len(PARENTS), :, :3] = turned
            matrices[:, : len(PARENTS), :, 3] = places - (turned @ rest[..., None])[..., 0]
            for side, bone in solid.BROWS.items():
                matrices[:, bone] = matrices[:, _HEAD]
                matrices[:, bone, :, 3] += matrices[:, _HEAD, :, 1] * getattr(self._faces, side)[block, None]
            for frame, pose in zip(block, matrices.astype(np.float32), strict=True):
                yield _Pose(pose, *solid.mouth_at(self._faces, frame))

    def place(self, pose: _Pose, placed: F32, turned: F32) -> None:
        """Compute the vertices and normals of a pose, and write them to the given arrays.

        Args:
            pose: Result of `poses` for the frame.
            placed: (V, 3) output array, filled with positions in metres.
            turned: (V, 3) output array, filled with normals.
        """
        body, mouth, count = self._body, self._mouth, len(self._body.positions)
        of_body = (body.positions, body.normals, body.bones, body.weights)
        raster.skin(*of_body, pose.matrices, placed[:count], turned[:count])
        of_mouth = (pose.mouth, pose.mouth_normals, mouth.bones, mouth.weights)
        raster.skin(*of_mouth, pose.matrices, placed[count:], turned[count:])


class MeshFigure(Figure):
    """The mesh of a body model with the person's body shape."""

    def __init__(self, motion: SmplxMotion, model: BodyModel, tint: int) -> None:
        if model.triangles is None:
            raise ValueError("expected a body model with faces f")
        self._person = model.person(motion.betas)
        super().__init__(motion, self._person.skeleton)
        self.triangles = np.ascontiguousarray(model.triangles)
        tint_colour, clay = solid.palette(tint)[[solid.COLOURS.index("tint"), solid.COLOURS.index("clay")]]
        self.base = np.tile((0.6 * tint_colour + 0.4 * clay).astype(np.float32), (model.vertices, 1))
        seen = _spread(len(motion.poses), _MESH_FLOOR_FRAMES)
        self.floor = float(np.percentile([float(pose[:, 1].min()) for pose in self.poses(seen)], 2))

    def poses(self, frames: Indices) -> Iterator[F32]:
        """Yield the vertices (V, 3) of each frame."""
        motion = self._motion
        whole = len(frames) == len(motion.poses)  # the arrays of the complete motion need no copy
        poses, expressions = (each if whole else each[frames] for each in (motion.poses, motion.expressions))
        blocks = self._person.vertex_blocks(poses, expressions)
        vertices = (one for block in blocks for one in block)
        for frame, placed in zip(frames, vertices, strict=True):
            yield (placed + motion.trans[frame]).astype(np.float32)

    def place(self, pose: F32, placed: F32, turned: F32) -> None:
        """Compute the vertices and normals of a pose, and write them to the given arrays.

        Args:
            pose: Result of `poses` for the frame.
            placed: (V, 3) output array, filled with positions in metres.
            turned: (V, 3) output array, filled with normals.
        """
        placed[:] = pose
        raster.vertex_normals(placed, self.triangles, turned)
