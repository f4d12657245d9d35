"""Frames of videos: figures side by side on a floor, with names and words."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.exchange import raster
from omniges.exchange.captions import Captions
from omniges.exchange.poses import Figure
from omniges.exchange.settings import Camera, Framing

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

_YAW: Final[dict[Camera, float]] = {"front": 0, "three-quarter": 35, "left": 90, "right": -90, "back": 180}
"""Degrees that the camera goes around the figure, towards its left."""
_FRAME_M: Final[dict[Framing, tuple[float, float]]] = {"body": (1.2, 2.26), "upper": (1.15, 1.22), "face": (0.32, 0.40)}
"""Width and height that fit in a panel at the figure's distance."""
_TARGET_M: Final[dict[Framing, float]] = {"body": 0.82, "upper": 1.26, "face": 0.06}
"""Height of the middle of the picture over the floor; for the face, over the head's joint."""
_ZOOM: Final = 1 / math.tan(math.radians(14))  # half of the angle of view
_PITCH: Final = 0.06  # radians that the camera looks down
_SHADOW: Final = np.array([-0.25, -0.30])  # metres in x and z that a metre of height throws
_SKY, _GRID, _EDGE = (np.array(colour, np.float32) for colour in ((246, 248, 251), (180, 190, 201), (204, 212, 222)))
_LIGHT_IN_SHADOW: Final = 0.78


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A camera at one moment."""

    rows: F32
    """(3, 4), as `raster.project` takes it."""
    eye: F32
    """(3,)."""


def view_of(target: Sequence[float], camera: Camera, framing: Framing, aspect: float) -> View:
    """Return the camera that looks at a place.

    Args:
        target: Place (3,) in the middle of the picture.
        camera: Side from which it is seen.
        framing: Part of the figure that fills the picture.
        aspect: Width of the picture divided by its height.

    Returns:
        The camera.
    """
    yaw = math.radians(_YAW[camera])
    width, height = _FRAME_M[framing]
    distance = max(height, width / aspect) / 2 * _ZOOM
    back = np.array([math.sin(yaw) * math.cos(_PITCH), math.sin(_PITCH), math.cos(yaw) * math.cos(_PITCH)], np.float64)
    right = np.array([math.cos(yaw), 0.0, -math.sin(yaw)])
    eye = np.asarray(target) + distance * back
    axes = np.stack([_ZOOM * right, _ZOOM * np.cross(back, right), back])
    return View(np.concatenate([axes, -(axes @ eye)[:, None]], axis=1).astype(np.float32), eye.astype(np.float32))


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """One track's part of a frame."""

    figure: Figure
    label: U8
    captions: Captions


class Canvas:
    """Panels of one size; several threads draw them, each in its own memory."""

    def __init__(
        self, panels: Sequence[Panel], size: tuple[int, int], columns: int, look: tuple[Camera, Framing]
    ) -> None:
        self._panels = panels
        self._size = size
        self._columns = columns
        self._camera, self._framing = look
        rows = -(-len(panels) // columns)
        self._panel_size = size[0] // columns, size[1] // rows
        self._own = threading.local()

    def poses(self, frames: npt.NDArray[np.int64]) -> Iterator[tuple[Any, ...]]:
        """Yield the poses of all panels for each of `frames` (N,); after its end, a motion keeps its last pose."""
        lengths = [panel.figure.frames for panel in self._panels]
        each = [
            panel.figure.poses(np.minimum(frames, length - 1))
            for panel, length in zip(self._panels, lengths, strict=True)
        ]
        return zip(*each, strict=True)

    def draw(self, poses: Sequence[Any], frame: int, time_s: float) -> U8:
        """Return a frame (height, width, 3).

        Args:
            poses: Poses of the panels, as `poses` yields them.
            frame: Frame of the motion.
            time_s: Time of the frame in seconds, which selects the words.

        Returns:
            The image.
        """
        width, height = self._size
        wide, high = self._panel_size
        if len(self._panels) * wide * high == width * height:
            image = np.empty((height, width, 3), np.uint8)
        else:
            image = np.full((height, width, 3), _SKY, np.uint8)
        for number, (panel, pose) in enumerate(zip(self._panels, poses, strict=True)):
            row, column = divmod(number, self._columns)
            place = image[row * high : (row + 1) * high, column * wide : (column + 1) * wide]
            drawn = self._figure(panel.figure, pose, min(frame, panel.figure.frames - 1))
            margin = high // 36
            raster.lay_over(drawn, panel.label, margin, margin)
            if (words := panel.captions.at(time_s)) is not None:
                raster.lay_over(drawn, words, (wide - words.shape[1]) // 2, high - margin - words.shape[0])
            place[:] = drawn
            if column:
                place[:, :1] = _EDGE.astype(np.uint8)
            if row:
                place[:1] = _EDGE.astype(np.uint8)
        return image

    def _figure(self, figure: Figure, pose: Any, frame: int) -> U8:
        """Return the picture of a figure, which the next one of this thread overwrites."""
        wide, high = self._panel_size
        depth, colour, shadow, sky, image = self._memory(wide, high)
        vertices = len(figure.base)
        placed, turned, rgb, screen = np.empty((4, vertices, 3), np.float32)
        figure.place(pose, placed, turned)
        x, z = figure.centre(frame)
        head = figure.head(frame) if self._framing == "face" else (x, figure.floor, z)
        target = (head[0], head[1] + _TARGET_M[self._framing], head[2])
        view = view_of(target, self._camera, self._framing, wide / high)
        samples = (raster.SAMPLES * wide, raster.SAMPLES * high)
        raster.shade(placed, turned, figure.base, view.eye, rgb)
        raster.project(placed, view.rows, *samples, screen)
        depth.fill(0)
        raster.fill(screen, rgb, figure.triangles, depth, colour)
        above = placed[:, 1:2] - figure.floor
        placed[:, ::2] += above * _SHADOW.astype(np.float32)
        placed[:, 1] = figure.floor
        raster.project(placed, view.rows, *samples, screen)
        shadow.fill(0)
        raster.cover(screen, figure.triangles, shadow)
        image[:] = sky
        raster.floor(view.rows, view.eye, np.array([x, figure.floor, z], np.float32), _SKY, _GRID, image)
        raster.compose(depth, colour, shadow, _LIGHT_IN_SHADOW, image)
        return image

    def _memory(self, wide: int, high: int) -> tuple[F32, U8, U8, U8, U8]:
        if not hasattr(self._own, "arrays"):
            rows, columns = raster.SAMPLES * high, raster.SAMPLES * wide
            self._own.arrays = (
                np.empty((rows, columns), np.float32),
                np.empty((rows, columns, 3), np.uint8),
                np.empty((rows, columns), np.uint8),
                np.full((high, wide, 3), _SKY, np.uint8),
                np.empty((high, wide, 3), np.uint8),
            )
        arrays: tuple[F32, U8, U8, U8, U8] = self._own.arrays
        return arrays
