"""Versions of one moment, recorded and made by several tasks, one below the other on one time line."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from omniges.features.gesture import LAYOUT
from omniges.visualize import sample as parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes


F32 = npt.NDArray[np.float32]

_WIDTH_IN: Final = 12.0
_GAP_IN: Final = 0.38  # between panels, which have titles
_WORDS_IN, _MEL_IN, _SPEEDS_IN, _FIGURES_IN = 0.9, 1.1, 1.3, 2.0
_COLOURS: Final = (parts.GREY, parts.BLUE, parts.ORANGE, parts.GREEN)


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a moment, recorded or made: what it has of motion, audio and words."""

    name: str
    gesture: F32 | None = None  # (T, 415)
    start_xz: npt.NDArray[np.floating] | None = None  # (2,) metres, with gesture
    mel: F32 | None = None  # (M, 64)
    words: Sequence[parts.Word] | None = None


def draw_comparison(title: str, note: str, versions: Sequence[Version], seconds: float) -> bytes:
    """Draw versions of the same `seconds` one below the other, words, mels and motion apart; gives the PNG's bytes.

    A version is drawn in each part that it has something of. Raises ValueError where motion has fewer than two frames,
    EnvironmentFault without matplotlib.
    """
    still = partial(parts.without_motion, start_s=0.0, stop_s=seconds)
    words = [(one.name, still(None, one.words)) for one in versions if one.words is not None]
    mels = [(one.name, still(one.mel, ())) for one in versions if one.mel is not None]
    motions = [(one.name, view) for one in versions if (view := _of_motion(one, seconds)) is not None]
    heights = [_WORDS_IN] * len(words) + [_MEL_IN] * len(mels)
    heights += [_SPEEDS_IN] * bool(motions) + [_FIGURES_IN] * len(motions)
    inches = 0.6 + sum(height + _GAP_IN for height in heights)
    with parts.new_figure(_WIDTH_IN, inches) as figure:
        grid = figure.add_gridspec(
            *(len(heights), 1),
            height_ratios=heights,
            hspace=_GAP_IN * len(heights) / sum(heights),
            left=parts.LEFT,
            right=parts.RIGHT - 0.015,
            top=1 - 0.75 / inches,
            bottom=0.1 / inches,
        )
        panels = iter([figure.add_subplot(grid[k]) for k in range(len(heights))])
        parts.write(figure, (parts.LEFT, 1 - 0.2 / inches), title, size=12, weight="bold", va="center")
        parts.write(figure, (parts.LEFT, 1 - 0.42 / inches), note, longest=160, color=parts.GREY, va="center")
        for name, view in words:
            parts.draw_words(_titled(next(panels), name), view, empty="no word")
        for name, view in mels:
            parts.draw_mel(_titled(next(panels), name), view)
        parts.share_mel_colours(figure)
        if motions:
            _draw_speeds(next(panels), motions)
        for name, view in motions:
            parts.draw_figures(_titled(next(panels), name), view)
        return parts.png_of(figure)


def _of_motion(version: Version, seconds: float) -> parts.View | None:
    gesture, start_xz = version.gesture, version.start_xz
    if gesture is None or start_xz is None:
        return None
    return parts.cut(gesture, np.zeros((len(gesture), 9), np.float32), start_xz, parts.NO_MEL, (), 0.0, seconds)


def _titled(axes: Axes, name: str) -> Axes:
    axes.set_title(name)
    return axes


def _draw_speeds(axes: Axes, motions: Sequence[tuple[str, parts.View]]) -> None:
    """Upper body speed of all versions in one panel."""
    parts.time_axis(axes, motions[0][1])
    axes.tick_params(labelbottom=True)
    lines = []
    for (name, view), color in zip(motions, itertools.cycle(_COLOURS), strict=False):
        between = (view.times[1:] + view.times[:-1]) / 2
        lines += axes.plot(between, parts.angular_speed(view.gesture, LAYOUT.upper), color=color, label=name)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("upper body, mean angular\nspeed (rad/s)")
    parts.legend(axes, lines)
