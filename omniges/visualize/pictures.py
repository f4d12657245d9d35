"""Pictures of a sample, of a result, or of several versions of one window: panels with a common time axis."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from omniges.features.body import Numbers
from omniges.features.gesture import LAYOUT
from omniges.features.timebase import FRAME_RATE_HZ
from omniges.visualize import panels as parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_WIDTH_IN: Final = 12.0
_ROW_S, _MAX_ROWS = 12.0, 10
MAX_S: Final = 600.0
"""Longest time that a picture shows, in seconds."""


def spans(start_s: float, length_s: float, seconds: float | None = None) -> list[tuple[float, float]]:
    """Divide the time of a picture into rows of equal length.

    Rows are at most 12 s long, except in a picture of more than two minutes, which has ten longer rows.

    Args:
        start_s: Start of the picture in seconds.
        length_s: Length of the clip in seconds.
        seconds: Length of the picture in seconds; None: to the end of the clip. The picture is at most `MAX_S` long.

    Returns:
        Start and end of each row in seconds, at least one row.
    """
    shown_s = min(length_s - start_s, MAX_S, math.inf if seconds is None else seconds)
    rows = min(_MAX_ROWS, max(1, math.ceil(shown_s / _ROW_S - 1e-6)))
    edges = [start_s + shown_s * row / rows for row in range(rows + 1)]
    return list(itertools.pairwise(edges))


def _write_title(
    figure: Figure, height_in: float, title: str, shown: Sequence[tuple[float, float]], length_s: float
) -> None:
    """Write the title and the range of the time shown at the top of a picture."""
    at = 1 - 0.23 / height_in
    parts.write(figure, (parts.LEFT, at), title, size=12, weight="bold", va="center")
    span = f"{shown[0][0]:.1f} to {shown[-1][1]:.1f} s of {length_s:.1f} s"
    figure.text(parts.RIGHT, at, span, ha="right", va="center", color=parts.GREY)


def _share_scales(figure: Figure) -> None:
    """Set one scale for all curves of a quantity, and one colour scale for all mels, so that rows are comparable."""
    parts.share_mel_colours(figure)
    by_quantity: dict[str, list[Axes]] = {}
    for axes in figure.axes:
        if axes.get_ylabel() and axes.lines:
            by_quantity.setdefault(axes.get_ylabel(), []).append(axes)
    for same in by_quantity.values():
        top = max(axes.get_ylim()[1] for axes in same)
        for axes in same:
            axes.set_ylim(0, top)


# --- a sample


_SAMPLE_IN, _SAMPLE_TITLE_IN, _SAMPLE_BOTTOM_IN, _SAMPLE_GAP_IN = 9.64, 0.46, 0.1, 0.35


def draw_sample(  # noqa: PLR0913 - keyword-only: the arrays of a sample, and the time shown
    *,
    title: str,
    gesture: parts.F32,
    jaw_eyes: parts.F32,
    start_xz: Numbers,
    mel: parts.F32,
    words: Sequence[parts.Word],
    start_s: float = 0.0,
    seconds: float | None = None,
    begins_s: float = 0.0,
    length_s: float | None = None,
) -> bytes:
    """Draw the arrays and words of a sample, divided into rows of equal length.

    Args:
        title: Title of the picture.
        gesture: Channels (T, 415) of T frames at 30 Hz.
        jaw_eyes: Axis-angles (T, 9) at 30 Hz, in radians.
        start_xz: Position (x, z) of the root in the first frame of `gesture`, in metres.
        mel: Log-mel (M, 64) of M mel frames at 100 Hz.
        words: Mappings with ``word``, ``start`` and ``end``; times are in seconds from the start of the sample.
        start_s: Start of the picture, in seconds from the start of the sample.
        seconds: Length of the picture in seconds; None: to the end of the sample, at most `MAX_S`.
        begins_s: Start of the arrays, in seconds from the start of the sample; a multiple of 0.1 s.
        length_s: Length of the sample in seconds; None: the arrays contain the complete sample.

    Returns:
        The picture as PNG.

    Raises:
        ValueError: A shape is wrong, or fewer than two frames are shown.
        EnvironmentFault: Matplotlib is not installed.
    """
    length_s = len(gesture) / FRAME_RATE_HZ if length_s is None else length_s
    shown = spans(start_s, length_s, seconds)
    arrays: dict[str, Any] = {"jaw_eyes": jaw_eyes, "mel": mel, "words": words, "begins_s": begins_s}
    views = [parts.cut(gesture, start_xz, start, stop - start, **arrays) for start, stop in shown]
    rows = len(shown)
    height = _SAMPLE_TITLE_IN + rows * _SAMPLE_IN + (rows - 1) * _SAMPLE_GAP_IN + _SAMPLE_BOTTOM_IN
    with parts.new_figure(_WIDTH_IN, height) as figure:
        edges: dict[str, Any] = {"left": parts.LEFT, "right": parts.RIGHT}
        edges |= {"top": 1 - _SAMPLE_TITLE_IN / height, "bottom": _SAMPLE_BOTTOM_IN / height}
        outer = figure.add_gridspec(rows, 1, hspace=_SAMPLE_GAP_IN / _SAMPLE_IN, **edges)
        _write_title(figure, height, title, shown, length_s)
        for number, view in enumerate(views):
            _draw_row(figure, outer[number], view)
        _share_scales(figure)
        return parts.png_of(figure)


def _draw_row(figure: Figure, place: Any, view: parts.View) -> None:
    """Draw the panels of one row of a picture in a cell of the figure's grid."""
    outer = place.subgridspec(3, 1, height_ratios=(2.75, 2.6, 3.3), hspace=0.13)
    speech = outer[0].subgridspec(2, 1, height_ratios=(0.9, 1.6), hspace=0.03)
    motion = outer[1].subgridspec(2, 1, height_ratios=(1.4, 1.0), hspace=0.24)
    panels = (parts.draw_words, parts.draw_mel, parts.draw_motion, parts.draw_face, parts.draw_figures)
    places = (speech[0], speech[1], motion[0], motion[1], outer[2])
    for axes, draw in zip([figure.add_subplot(each) for each in places], panels, strict=True):
        draw(axes, view)


# --- a generated result


Role = Literal["condition", "generated", "recorded"]
Stream = Literal["text", "audio", "gesture"]
Box = tuple[float, float, float, float]  # left, bottom, width, height, as shares of the figure

_ROLE_COLOURS: Final[Mapping[Role, str]] = {"condition": "#0072B2", "generated": "#D55E00", "recorded": "#555555"}
_HEIGHTS_IN: Final[Mapping[Stream, float]] = {"text": 0.8, "audio": 1.5, "gesture": 3.9}
_HEADS_IN: Final[Mapping[Stream, float]] = {"text": 0.4, "audio": 0.5, "gesture": 0.62}
"""Space above each row in inches, for its role and the legend of its curves."""
_TITLE_IN, _BOTTOM_IN = 0.5, 0.45


@dataclass(frozen=True, slots=True)
class Row:
    """One stream of a result, with its role (condition, generated or recorded) and its data."""

    role: Role
    stream: Stream
    data: Any
    """Words (``word``, ``start``, ``end`` in seconds), a log-mel (F, 64), or gesture channels (T, 415 or 424)."""
    begins_s: float = 0.0
    """Start of an array, in seconds from the start of the result; a multiple of 0.1 s."""
    start_xz: tuple[float, float] = (0.0, 0.0)
    """Position (x, z) of the root in the first frame of gesture channels, in metres."""


def draw_result(
    *, title: str, rows: Sequence[Row], length_s: float, start_s: float = 0.0, seconds: float | None = None
) -> bytes:
    """Draw the streams of a result below each other.

    More than 12 s are divided into time ranges of equal length, also drawn below each other (see `spans`).

    Args:
        title: Title of the picture.
        rows: Streams to draw.
        length_s: Length of the result in seconds.
        start_s: Start of the picture in seconds.
        seconds: Length of the picture in seconds; None: to the end of the result, at most `MAX_S`.

    Returns:
        The picture as PNG.

    Raises:
        ValueError: A time range is shorter than two frames, or ends before the second frame of a gesture row; or
            gesture channels have a wrong shape.
        EnvironmentFault: Matplotlib is not installed.
    """
    shown = spans(start_s, length_s, seconds)
    heights = [_HEIGHTS_IN[row.stream] + _HEADS_IN[row.stream] for row in rows]
    height = _TITLE_IN + len(shown) * (sum(heights) + _BOTTOM_IN)
    with parts.new_figure(_WIDTH_IN, height) as figure:
        _write_title(figure, height, title, shown, length_s)
        top = height - _TITLE_IN
        for span in shown:
            for number, (row, room) in enumerate(zip(rows, heights, strict=True)):
                style: dict[str, Any] = {
                    "color": _ROLE_COLOURS[row.role],
                    "weight": "bold",
                    "size": 9.5,
                    "va": "bottom",
                }
                figure.text(parts.LEFT, (top - 0.36) / height, f"{row.stream} {row.role}", **style)
                box = (parts.LEFT, (top - room) / height, parts.RIGHT - parts.LEFT, _HEIGHTS_IN[row.stream] / height)
                _draw(row.stream, figure, box, _view(row, rows, span), last=number == len(rows) - 1)
                top -= room
            top -= _BOTTOM_IN
        _share_scales(figure)
        return parts.png_of(figure)


def _view(row: Row, rows: Sequence[Row], span: tuple[float, float]) -> parts.View:
    """Return the content of a row within a time span (start, end) in seconds.

    For a gesture row, the result also contains the words of the text row with the same role. If no text row has this
    role, the result contains the words of the text row that is a condition.
    """
    start_s, stop_s = span
    words = next(
        (r.data for role in (row.role, "condition") for r in rows if r.stream == "text" and r.role == role), ()
    )
    if row.stream == "text":
        return parts.without_motion(None, row.data, start_s, stop_s)
    if row.stream == "audio":
        return parts.without_motion(row.data, (), start_s, stop_s, row.begins_s)
    if len(row.data) < round((start_s - row.begins_s) * FRAME_RATE_HZ) + 2:  # a recording may end before the result
        return parts.without_motion(None, words, start_s, stop_s)
    body = row.data[:, : LAYOUT.channels]  # jaw and eyes are too small to see in a figure
    start_xz = np.array(row.start_xz)
    return parts.cut(body, start_xz, start_s, stop_s - start_s, words=words, begins_s=row.begins_s)


def _draw(stream: Stream, figure: Figure, box: Box, view: parts.View, *, last: bool) -> None:
    """Draw a row. A time axis with labels is drawn for the last row, and for each row that shows motion."""
    if stream == "gesture" and len(view.times):  # the time axis is drawn between curves and figures
        left, bottom, width, height = box
        curves = figure.add_axes((left, bottom + 0.72 * height, width, 0.28 * height))
        parts.draw_motion(curves, view)
        curves.set_xlim(view.start_s, view.stop_s)
        _seconds(curves)
        parts.draw_figures(figure.add_axes((left, bottom, width, 0.62 * height)), view)
        return
    axes = figure.add_axes(box)
    if stream == "text":
        parts.draw_words(axes, view, empty="no word")
    elif stream == "audio":
        parts.draw_mel(axes, view)
    else:
        parts.time_axis(axes, view)
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no motion", transform=axes.transAxes, ha="center", va="center", color=parts.GREY)
    if last:
        _seconds(axes)


def _seconds(axes: Axes) -> None:
    if not axes.axison:  # panels of words have only a time axis
        axes.set_axis_on()
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    axes.tick_params(labelbottom=True)
    axes.set_xlabel("time (s)", labelpad=1)


# --- versions of one window


_GAP_IN: Final = 0.38  # between panels, which have titles
_WORDS_IN, _MEL_IN, _SPEEDS_IN, _FIGURES_IN = 0.9, 1.1, 1.3, 2.0
_COLOURS: Final = (parts.GREY, parts.BLUE, parts.ORANGE, parts.GREEN)


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a window, recorded or generated, with its motion, audio and words."""

    name: str
    gesture: parts.F32 | None = None  # (T, 415)
    start_xz: Numbers | None = None  # position (x, z) of the root in the first frame, in metres; needed with gesture
    mel: parts.F32 | None = None  # (M, 64)
    words: Sequence[parts.Word] | None = None


def draw_comparison(title: str, note: str, versions: Sequence[Version], seconds: float) -> bytes:
    """Draw versions of the same window below each other: first all words, then all mels, then all motion.

    Args:
        title: Title of the picture.
        note: Second line of the title.
        versions: The versions; streams that are None are not drawn.
        seconds: Length of the window in seconds.

    Returns:
        The picture as PNG.

    Raises:
        ValueError: The window or a motion has fewer than two frames, or the shape of an array is wrong.
        EnvironmentFault: Matplotlib is not installed.
    """
    still = partial(parts.without_motion, start_s=0.0, stop_s=seconds)
    words = [(one.name, still(None, one.words)) for one in versions if one.words is not None]
    mels = [(one.name, still(one.mel, ())) for one in versions if one.mel is not None]
    motions = [
        (one.name, parts.cut(one.gesture, one.start_xz, 0.0, seconds))
        for one in versions
        if one.gesture is not None and one.start_xz is not None
    ]
    heights = [_WORDS_IN] * len(words) + [_MEL_IN] * len(mels)
    heights += [_SPEEDS_IN] * bool(motions) + [_FIGURES_IN] * len(motions)
    inches = 0.6 + sum(height + _GAP_IN for height in heights)
    with parts.new_figure(_WIDTH_IN, inches) as figure:
        edges: dict[str, Any] = {
            "left": parts.LEFT,
            "right": parts.RIGHT - 0.015,
            "top": 1 - 0.75 / inches,
            "bottom": 0.1 / inches,
        }
        gap = _GAP_IN * len(heights) / sum(heights)
        grid = figure.add_gridspec(len(heights), 1, height_ratios=heights, hspace=gap, **edges)
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


def _titled(axes: Axes, name: str) -> Axes:
    axes.set_title(name)
    return axes


def _draw_speeds(axes: Axes, motions: Sequence[tuple[str, parts.View]]) -> None:
    """Draw the speed of the upper body for all versions in one panel."""
    parts.time_axis(axes, motions[0][1])
    axes.tick_params(labelbottom=True)
    lines = []
    for (name, view), color in zip(motions, itertools.cycle(_COLOURS), strict=False):
        between = (view.times[1:] + view.times[:-1]) / 2
        lines += axes.plot(between, parts.angular_speed(view.gesture, LAYOUT.upper), color=color, label=name)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("upper body, mean angular\nspeed (rad/s)")
    parts.legend(axes, lines)
