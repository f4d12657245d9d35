"""Draw video frames: figures side by side on a floor, with track names and spoken words as text."""

from __future__ import annotations

import bisect
import functools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError
from omniges.exchange import raster
from omniges.exchange.poses import Figure
from omniges.exchange.settings import Camera, Framing
from omniges.exchange.solid import TINTS
from omniges.formats.textgrid import WordInterval
from omniges.progress import printable

if TYPE_CHECKING:
    from PIL import Image, ImageDraw
    from PIL.ImageFont import FreeTypeFont

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

_YAW: Final[dict[Camera, float]] = {"front": 0, "three-quarter": 35, "left": 90, "right": -90, "back": 180}
"""Angle of the camera around the figure in degrees, from the front towards the figure's left."""
_FRAME_M: Final[dict[Framing, tuple[float, float]]] = {"body": (1.2, 2.26), "upper": (1.15, 1.22), "face": (0.32, 0.40)}
"""Width and height in metres that a panel shows at the distance of the figure."""
_TARGET_M: Final[dict[Framing, float]] = {"body": 0.82, "upper": 1.26, "face": 0.06}
"""Height of the picture's centre in metres: above the floor for body and upper, above the head joint for face."""
_ZOOM: Final = 1 / math.tan(math.radians(14))  # 14° is half of the angle of view
_PITCH: Final = 0.06  # radians that the camera looks down
_SHADOW: Final = np.array([-0.25, -0.30])  # shadow offset in x and z, in metres per metre of height
_SKY, _GRID, _EDGE = (np.array(colour, np.float32) for colour in ((246, 248, 251), (180, 190, 201), (204, 212, 222)))
_LIGHT_IN_SHADOW: Final = 0.78

_TEXT, _FAINT, _BACK = "#1c2430", "#5c6878", (255, 255, 255, 200)
_PAUSE_S: Final = 0.8  # a silence of this length starts a new line
_STAY_S: Final = 0.5  # a line remains visible for this time after its last word
_WIDEST: Final = 0.92  # largest width of text, as a share of the panel's width


@dataclass(frozen=True, slots=True)
class Line:
    """Words that are shown together as one line of text."""

    words: tuple[WordInterval, ...]
    until_s: float
    """Time in seconds at which the line disappears."""


def lines_of(words: Sequence[WordInterval], fits: Callable[[str], bool]) -> list[Line]:
    """Join words into lines of text. A line ends at a silence of 0.8 s or more, or if the next word does not fit.

    Args:
        words: Words in order of time.
        fits: Function that returns whether a text fits on one line.

    Returns:
        The lines. A word that is too long for a line has its own line.
    """
    found: list[list[WordInterval]] = []
    for word in words:
        last = found[-1] if found else []
        text = " ".join(each.word for each in [*last, word])
        if last and word.start - last[-1].end < _PAUSE_S and fits(text):
            last.append(word)
        else:
            found.append([word])
    begins = [*(line[0].start for line in found[1:]), *([float("inf")] if found else [])]
    return [Line(tuple(line), min(line[-1].end + _STAY_S, begin)) for line, begin in zip(found, begins, strict=True)]


class Lettering:
    """Text renderer with one font. The text sizes fit a panel, which is the area of a frame that shows one track."""

    def __init__(self, font: Path | None, width: int, height: int) -> None:
        self._width = width
        self._path = font or _bundled()
        size = max(9, min(height // 26, width // 20))
        self._name, self._small, self._word = (self._sized(round(size * share)) for share in (1.0, 0.75, 1.15))

    def _sized(self, size: int) -> FreeTypeFont:
        from PIL import ImageFont  # noqa: PLC0415 - optional

        try:
            return ImageFont.truetype(str(self._path), size)
        except OSError as error:
            raise DataError(
                f"--font {self._path}: expected a font file, found an error ({error}); give a .ttf or .otf file"
            ) from error

    def fits(self, text: str) -> bool:
        """Return True if a text fits on one line of words in the panel."""
        return self._word.getlength(printable(text)) <= _WIDEST * self._width - self._word.size

    def lacking(self, texts: Iterable[str]) -> int:
        """Return the number of texts with letters that the font lacks; such letters are shown as boxes."""
        from fontTools.ttLib import TTFont  # noqa: PLC0415 - optional

        with TTFont(self._path, fontNumber=0, lazy=True) as font:
            known = font.getBestCmap() or {}
        return sum(any(ord(letter) not in known for letter in printable(text)) for text in texts)

    def label(self, name: str, note: str, track: int) -> U8:
        """Draw the label of a track as RGBA: colour and name in the first line, and a note in the second.

        Args:
            name: Name of the track.
            note: Second line; may be empty.
            track: Index of the track, which determines the colour.

        Returns:
            The image (height, width, 4).
        """
        size = round(self._name.size)
        name, note = (self._cut(text, font) for text, font in ((name, self._name), (note, self._small)))
        wide = max(size + self._name.getlength(name), self._small.getlength(note))
        image, draw = _canvas(round(wide) + size, round(2.8 * size))
        draw.ellipse((0, size * 0.25, size * 0.65, size * 0.9), fill=TINTS[track % len(TINTS)])
        draw.text((size, 0), name, font=self._name, fill=_TEXT)
        draw.text((size, 1.35 * size), note, font=self._small, fill=_FAINT)
        return np.asarray(image)

    def line(self, line: Line, said: int | None) -> U8:
        """Draw a line of words on a light background, as RGBA.

        Args:
            line: The words.
            said: Index of the word that is spoken now; it is drawn darker than the other words. None: no word.

        Returns:
            The image (height, width, 4).
        """
        font = self._word
        texts = [self._cut(printable(word.word), font) for word in line.words]
        size, space = font.size, font.getlength(" ")
        wide = sum(map(font.getlength, texts)) + space * (len(texts) - 1) + size
        image, draw = _canvas(round(wide), round(1.6 * size))
        draw.rounded_rectangle((0, 0, wide - 1, 1.6 * size - 1), radius=0.6 * size, fill=_BACK)
        x = size / 2
        for k, text in enumerate(texts):
            weight = 0.5 if k == said else 0
            draw.text((x, 0.15 * size), text, font=font, fill=_TEXT if k == said else _FAINT, stroke_width=weight)
            x += font.getlength(text) + space
        return np.asarray(image)

    def _cut(self, text: str, font: FreeTypeFont) -> str:
        """Shorten a text to the width of the panel; "…" replaces the removed end."""
        text, room = printable(text), _WIDEST * self._width - 2 * font.size
        if font.getlength(text) <= room:
            return text
        most = bisect.bisect_right(range(1, len(text)), room, key=lambda n: font.getlength(text[:n] + "…"))
        return text[:most] + "…"


@functools.cache
def _bundled() -> Path:
    import matplotlib as mpl  # noqa: PLC0415 - optional

    return Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


def _canvas(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    from PIL import Image, ImageDraw  # noqa: PLC0415 - optional

    image = Image.new("RGBA", (max(1, width), max(1, height)), (255, 255, 255, 0))
    return image, ImageDraw.Draw(image)


class Captions:
    """Captions of a track: pictures of the words that are spoken at each time."""

    def __init__(self, words: Sequence[WordInterval], lettering: Lettering) -> None:
        self._lines = lines_of(words, lettering.fits)
        self._begins = [line.words[0].start for line in self._lines]
        self._image = functools.lru_cache(maxsize=8)(lambda line, said: lettering.line(self._lines[line], said))

    def at(self, time_s: float) -> U8 | None:
        """Return the RGBA picture of the words that are shown at `time_s` seconds; None if no word is shown."""
        number = bisect.bisect_right(self._begins, time_s) - 1
        if number < 0 or time_s >= self._lines[number].until_s:
            return None
        words = self._lines[number].words
        said = bisect.bisect_right([word.start for word in words], time_s) - 1
        return self._image(number, said if time_s < words[said].end else None)


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """Position and projection of the camera for one frame."""

    rows: F32
    """(3, 4) matrix from world to camera coordinates, as `raster.project` expects."""
    eye: F32
    """(3,) position of the camera in metres."""


def view_of(target: Sequence[float], camera: Camera, framing: Framing, aspect: float) -> View:
    """Return the position and projection of a camera that looks at a point.

    Args:
        target: Point (3,) in metres, shown in the middle of the picture.
        camera: Side that the camera looks from.
        framing: Region of the body that fills the picture.
        aspect: Width of the picture divided by its height.

    Returns:
        Position and projection of the camera.
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
    """Figure, label and captions of one track, shown in one area of a frame."""

    figure: Figure
    label: U8
    captions: Captions


class Canvas:
    """Renderer of frames, which consist of panels of equal size.

    Several threads may draw at the same time, because each thread has its own memory.
    """

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
        """Yield the poses of all panels, as a tuple, for each frame index in `frames` (N,).

        After the end of its motion, a panel shows the last pose of the motion.
        """
        lengths = [panel.figure.frames for panel in self._panels]
        each = [
            panel.figure.poses(np.minimum(frames, length - 1))
            for panel, length in zip(self._panels, lengths, strict=True)
        ]
        return zip(*each, strict=True)

    def draw(self, poses: Sequence[Any], frame: int, time_s: float) -> U8:
        """Draw a frame (height, width, 3).

        Args:
            poses: Poses of the panels, as the method `poses` yields them.
            frame: Index of the frame in the motions, at 30 Hz.
            time_s: Time of the frame in seconds; it selects the words.

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
        """Draw the picture (height, width, 3) of a figure; the next call in the same thread overwrites the array."""
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
