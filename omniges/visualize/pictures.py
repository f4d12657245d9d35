"""Pictures of samples, of results, and of versions of one moment: panels below each other on one time axis."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

from omniges.features.body import Numbers
from omniges.features.gesture import LAYOUT
from omniges.features.timebase import FRAME_RATE_HZ
from omniges.visualize import panels as parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


_WIDTH_IN: Final = 12.0


# --- a sample


def draw_sample(  # noqa: PLR0913 - keyword-only: what a shard holds of a sample, and the time shown
    *,
    title: str,
    gesture: parts.F32,
    jaw_eyes: parts.F32,
    start_xz: Numbers,
    mel: parts.F32,
    words: Sequence[parts.Word],
    start_s: float = 0.0,
    seconds: float = 12.0,
) -> bytes:
    """Draw a part of a sample as a shard stores it.

    Args:
        title: Title of the picture.
        gesture: Channels (T, 415) at 30 Hz.
        jaw_eyes: Axis-angle (T, 9) at 30 Hz.
        start_xz: Start position (2,) in metres.
        mel: Log-mel (M, 64) at 100 Hz.
        words: ``word``, ``start`` and ``end`` in seconds.
        start_s: Start of the part in seconds.
        seconds: Length of the part, at most to the end of the sample.

    Returns:
        The picture as PNG.

    Raises:
        ValueError: A shape is wrong, or fewer than two frames are shown.
        EnvironmentFault: Matplotlib is not installed.
    """
    length_s = len(gesture) / FRAME_RATE_HZ
    view = parts.cut(gesture, start_xz, start_s, seconds, jaw_eyes=jaw_eyes, mel=mel, words=words)
    with parts.new_figure(_WIDTH_IN, 10.2) as figure:
        edges: dict[str, Any] = {"left": parts.LEFT, "right": parts.RIGHT, "top": 0.955, "bottom": 0.01}
        outer = figure.add_gridspec(3, 1, height_ratios=(2.75, 2.6, 3.3), hspace=0.13, **edges)
        speech = outer[0].subgridspec(2, 1, height_ratios=(0.9, 1.6), hspace=0.03)
        motion = outer[1].subgridspec(2, 1, height_ratios=(1.4, 1.0), hspace=0.24)
        parts.write(figure, (parts.LEFT, 0.978), title, size=12, weight="bold", va="center")
        span = f"{view.start_s:.1f} to {view.stop_s:.1f} s of {length_s:.1f} s"
        figure.text(parts.RIGHT, 0.978, span, ha="right", va="center", color=parts.GREY)
        panels = (parts.draw_words, parts.draw_mel, parts.draw_motion, parts.draw_face, parts.draw_figures)
        places = (speech[0], speech[1], motion[0], motion[1], outer[2])
        for axes, draw in zip([figure.add_subplot(place) for place in places], panels, strict=True):
            draw(axes, view)
        return parts.png_of(figure)


# --- a generated result


Role = Literal["condition", "generated", "recorded"]
Stream = Literal["text", "audio", "gesture"]
Box = tuple[float, float, float, float]  # left, bottom, width, height, as shares of the figure

_ROLE_COLOURS: Final[Mapping[Role, str]] = {"condition": "#0072B2", "generated": "#D55E00", "recorded": "#555555"}
_HEIGHTS_IN: Final[Mapping[Stream, float]] = {"text": 0.8, "audio": 1.5, "gesture": 3.9}
_HEADS_IN: Final[Mapping[Stream, float]] = {"text": 0.4, "audio": 0.5, "gesture": 0.62}
"""Space above each row, for its role and the legend of its curves."""
_TITLE_IN, _BOTTOM_IN = 0.5, 0.45


@dataclass(frozen=True, slots=True)
class Row:
    """One stream and its role in the result."""

    role: Role
    stream: Stream
    data: Any
    """Words (``word``, ``start``, ``end`` in seconds), a log-mel (F, 64), or gesture channels (T, 415)."""


def draw_result(*, title: str, rows: Sequence[Row], start_xz: Numbers, length_s: float, seconds: float = 12.0) -> bytes:
    """Draw the beginning of a result.

    Args:
        title: Title of the picture.
        rows: Streams to draw.
        start_xz: Start position (2,) in metres.
        length_s: Length of the result in seconds.
        seconds: Length to draw in seconds.

    Returns:
        The picture as PNG.

    Raises:
        ValueError: There are no rows, or fewer than two frames.
        EnvironmentFault: Matplotlib is not installed.
    """
    stop_s = min(seconds, length_s)
    heights = [_HEIGHTS_IN[row.stream] + _HEADS_IN[row.stream] for row in rows]
    height = _TITLE_IN + sum(heights) + _BOTTOM_IN
    with parts.new_figure(_WIDTH_IN, height) as figure:
        parts.write(figure, (parts.LEFT, 1 - 0.25 / height), title, size=12, weight="bold", va="center")
        span = f"{0.0:.1f} to {stop_s:.1f} s of {length_s:.1f} s"
        figure.text(parts.RIGHT, 1 - 0.25 / height, span, ha="right", va="center", color=parts.GREY)
        top = height - _TITLE_IN
        curves: list[Axes] = []  # curves of motion, which share one scale
        for number, (row, room) in enumerate(zip(rows, heights, strict=True)):
            style: dict[str, Any] = {"color": _ROLE_COLOURS[row.role], "weight": "bold", "size": 9.5, "va": "bottom"}
            figure.text(parts.LEFT, (top - 0.36) / height, f"{row.stream} {row.role}", **style)
            box = (parts.LEFT, (top - room) / height, parts.RIGHT - parts.LEFT, _HEIGHTS_IN[row.stream] / height)
            view = _view(row, rows, start_xz, stop_s)
            curves += _draw(row.stream, figure, box, view, last=number == len(rows) - 1)
            top -= room
        parts.share_mel_colours(figure)
        for axes in curves:
            axes.set_ylim(0, max(other.get_ylim()[1] for other in curves))
        return parts.png_of(figure)


def _view(row: Row, rows: Sequence[Row], start_xz: Numbers, stop_s: float) -> parts.View:
    """Return the part of a row that is shown; motion is shown with words of the same role, or of the condition."""
    words = next(
        (r.data for role in (row.role, "condition") for r in rows if r.stream == "text" and r.role == role), ()
    )
    if row.stream == "text":
        return parts.without_motion(None, row.data, 0.0, stop_s)
    if row.stream == "audio":
        return parts.without_motion(row.data, (), 0.0, stop_s)
    return parts.cut(row.data, start_xz, 0.0, stop_s, words=words)


def _draw(stream: Stream, figure: Figure, box: Box, view: parts.View, *, last: bool) -> list[Axes]:
    """Draw a row, with a labelled time axis if it is the last; return the axes of motion's curves."""
    if stream == "gesture":  # its time axis is between curves and figures
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
    if not axes.axison:  # panels of words have only a time axis
        axes.set_axis_on()
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    axes.tick_params(labelbottom=True)
    axes.set_xlabel("time (s)", labelpad=1)


# --- versions of one moment


_GAP_IN: Final = 0.38  # between panels, which have titles
_WORDS_IN, _MEL_IN, _SPEEDS_IN, _FIGURES_IN = 0.9, 1.1, 1.3, 2.0
_COLOURS: Final = (parts.GREY, parts.BLUE, parts.ORANGE, parts.GREEN)


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a moment, recorded or generated, with its motion, audio and words."""

    name: str
    gesture: parts.F32 | None = None  # (T, 415)
    start_xz: Numbers | None = None  # (2,) metres, with gesture
    mel: parts.F32 | None = None  # (M, 64)
    words: Sequence[parts.Word] | None = None


def draw_comparison(title: str, note: str, versions: Sequence[Version], seconds: float) -> bytes:
    """Draw versions of the same moment below each other, grouped into words, mels and motion.

    Args:
        title: Title of the picture.
        note: Second line of the title.
        versions: The versions; streams that are None are not drawn.
        seconds: Length of the moment.

    Returns:
        The picture as PNG.

    Raises:
        ValueError: Motion has fewer than two frames.
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
    """Draw the upper body's speed of all versions in one panel."""
    parts.time_axis(axes, motions[0][1])
    axes.tick_params(labelbottom=True)
    lines = []
    for (name, view), color in zip(motions, itertools.cycle(_COLOURS), strict=False):
        between = (view.times[1:] + view.times[:-1]) / 2
        lines += axes.plot(between, parts.angular_speed(view.gesture, LAYOUT.upper), color=color, label=name)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("upper body, mean angular\nspeed (rad/s)")
    parts.legend(axes, lines)
