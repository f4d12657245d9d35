"""Text of videos: names of tracks, and their words line by line, as images to lay over frames."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError
from omniges.exchange.solid import TINTS
from omniges.formats.textgrid import WordInterval
from omniges.progress import printable

if TYPE_CHECKING:
    from PIL import Image, ImageDraw
    from PIL.ImageFont import FreeTypeFont

U8 = npt.NDArray[np.uint8]

_TEXT, _FAINT, _BACK = "#1c2430", "#5c6878", (255, 255, 255, 200)
_PAUSE_S: Final = 0.8  # a silence that begins a new line
_STAY_S: Final = 0.5  # a line stays after its last word
_WIDEST: Final = 0.92  # of the panel


@dataclass(frozen=True, slots=True)
class Line:
    """Words that are shown together."""

    words: tuple[WordInterval, ...]
    until_s: float
    """When the line goes away."""


def lines_of(words: Sequence[WordInterval], fits: Callable[[str], bool]) -> list[Line]:
    """Join words to lines, which end at a silence or where no more words fit.

    Args:
        words: In order of time.
        fits: Returns whether a text fits in one line.

    Returns:
        The lines; a word that does not fit is alone on its line.
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
    """A font at the sizes of one panel."""

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
            raise DataError(f"--font {self._path}: expected a font file, found {error}; give a .ttf or .otf") from error

    def fits(self, text: str) -> bool:
        """Return whether a text fits in one line of words."""
        return self._word.getlength(printable(text)) <= _WIDEST * self._width - self._word.size

    def lacking(self, texts: Iterable[str]) -> int:
        """Return the number of texts with letters that the font lacks; they are shown as boxes."""
        from fontTools.ttLib import TTFont  # noqa: PLC0415 - optional

        with TTFont(self._path, fontNumber=0, lazy=True) as font:
            known = font.getBestCmap() or {}
        return sum(any(ord(letter) not in known for letter in printable(text)) for text in texts)

    def label(self, name: str, note: str, track: int) -> U8:
        """Draw the name of a track beside its colour, above a second line, as RGBA.

        Args:
            name: Name of the track.
            note: Second line; may be empty.
            track: Number of the track, from 0, which determines its colour.

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
        """Return words on a light ground as RGBA.

        Args:
            line: The words.
            said: Index of the word that is being said, which is darker than the others.

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
        """Return a text that fits in the panel, with "…" for what does not."""
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
    """The words of a track at each moment."""

    def __init__(self, words: Sequence[WordInterval], lettering: Lettering) -> None:
        self._lines = lines_of(words, lettering.fits)
        self._begins = [line.words[0].start for line in self._lines]
        self._image = functools.lru_cache(maxsize=8)(lambda line, said: lettering.line(self._lines[line], said))

    def at(self, time_s: float) -> U8 | None:
        """Return the line of words to show at a time as RGBA; None in a silence."""
        number = bisect.bisect_right(self._begins, time_s) - 1
        if number < 0 or time_s >= self._lines[number].until_s:
            return None
        words = self._lines[number].words
        said = bisect.bisect_right([word.start for word in words], time_s) - 1
        return self._image(number, said if time_s < words[said].end else None)
