"""One picture of a generated result: what was given, made and recorded, row by row on one time line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from omniges.visualize import sample as parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Role = Literal["given", "made", "recorded"]
Stream = Literal["text", "audio", "gesture"]
Box = tuple[float, float, float, float]  # left, bottom, width, height, as shares of the figure

_COLOURS: Final[Mapping[Role, str]] = {"given": "#0072B2", "made": "#D55E00", "recorded": "#555555"}
_HEIGHTS_IN: Final[Mapping[Stream, float]] = {"text": 0.8, "audio": 1.5, "gesture": 3.9}
_HEADS_IN: Final[Mapping[Stream, float]] = {"text": 0.4, "audio": 0.5, "gesture": 0.62}
"""Above each row, where its role and the keys of its curves stand."""
_TITLE_IN, _BOTTOM_IN, _WIDTH_IN = 0.5, 0.45, 12.0


@dataclass(frozen=True, slots=True)
class Row:
    """One stream and what it is to the result."""

    role: Role
    stream: Stream
    data: Any
    """Words (``word``, ``start``, ``end`` in seconds), a log-mel (F, 64), or gesture channels (T, 415)."""


def draw_result(
    *, title: str, rows: Sequence[Row], start_xz: npt.NDArray[np.floating], length_s: float, seconds: float = 12.0
) -> bytes:
    """Draw the first `seconds` of a result of `length_s` and give the PNG file's bytes.

    `start_xz` (2,) metres is where motion begins. Raises ValueError for no rows or fewer than two frames,
    EnvironmentFault without matplotlib.
    """
    stop_s = min(seconds, length_s)
    heights = [_HEIGHTS_IN[row.stream] + _HEADS_IN[row.stream] for row in rows]
    height = _TITLE_IN + sum(heights) + _BOTTOM_IN
    with parts.new_figure(_WIDTH_IN, height) as figure:
        parts.write(figure, (parts.LEFT, 1 - 0.25 / height), title, size=12, weight="bold", va="center")
        span = f"{0.0:.1f} to {stop_s:.1f} s of {length_s:.1f} s"
        figure.text(parts.RIGHT, 1 - 0.25 / height, span, ha="right", va="center", color=parts.GREY)
        top = height - _TITLE_IN
        curves: list[Axes] = []  # of motion, on one scale
        for number, (row, room) in enumerate(zip(rows, heights, strict=True)):
            figure.text(
                parts.LEFT,
                (top - 0.36) / height,
                f"{row.stream} {row.role}",
                color=_COLOURS[row.role],
                weight="bold",
                size=9.5,
                va="bottom",
            )
            box = (parts.LEFT, (top - room) / height, parts.RIGHT - parts.LEFT, _HEIGHTS_IN[row.stream] / height)
            view = _view(row, rows, start_xz, stop_s)
            curves += _draw(row.stream, figure, box, view, last=number == len(rows) - 1)
            top -= room
        parts.share_mel_colours(figure)
        for axes in curves:
            axes.set_ylim(0, max(other.get_ylim()[1] for other in curves))
        return parts.png_of(figure)


def _view(row: Row, rows: Sequence[Row], start_xz: npt.NDArray[np.floating], stop_s: float) -> parts.View:
    """A row's part that is shown; motion has the words beside it that are of its kind, else those that were given."""
    words = next((r.data for role in (row.role, "given") for r in rows if r.stream == "text" and r.role == role), ())
    if row.stream == "text":
        return parts.without_motion(None, row.data, 0.0, stop_s)
    if row.stream == "audio":
        return parts.without_motion(row.data, (), 0.0, stop_s)
    jaw_eyes = np.zeros((len(row.data), 9), np.float32)
    return parts.cut(row.data, jaw_eyes, start_xz, parts.NO_MEL, words, 0.0, stop_s)


def _draw(stream: Stream, figure: Figure, box: Box, view: parts.View, *, last: bool) -> list[Axes]:
    """Draw a row, with the time line below it if it is the last; returns the axes of motion's curves."""
    if stream == "gesture":  # its time line stands between curves and figures
        left, bottom, width, height = box
        curves = figure.add_axes((left, bottom + 0.72 * height, width, 0.28 * height))
        parts.draw_motion(curves, view)
        _seconds(curves)
        parts.draw_figures(figure.add_axes((left, bottom, width, 0.62 * height)), view)
        return [curves]
    axes = figure.add_axes(box)
    if stream == "text":
        parts.draw_words(axes, view, empty="no word")
    else:
        parts.draw_mel(axes, view)
    if last:
        _seconds(axes)
    return []


def _seconds(axes: Axes) -> None:
    if not axes.axison:  # words stand on no axis but time's
        axes.set_axis_on()
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    axes.tick_params(labelbottom=True)
    axes.set_xlabel("time (s)", labelpad=1)
