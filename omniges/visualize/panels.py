"""Panels of pictures: mel, words, speed of motion, changes of the expression, and stick figures, on one time axis.

Stick figures show the generic skeleton of `omniges.features.body`, not a body model, from the front. The person's left
is therefore on the right of the picture.

Each character is drawn in an installed font that contains it. If no font contains it, its code point is drawn in
hexadecimal.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import needs
from omniges.features.audio import MEL_BANDS, N_FFT, mel_filterbank
from omniges.features.body import GENERIC, PARENTS, Numbers
from omniges.features.gesture import JOINT_NAMES, LAYOUT, GestureClip, matrix_from_six_d, motion_from_gesture
from omniges.features.timebase import FRAME_RATE_HZ, MEL_RATE_HZ, SAMPLE_RATE_HZ
from omniges.formats.arrays import F64

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ft2font import FT2Font


F32 = npt.NDArray[np.float32]
Word = Mapping[str, Any]

_FIGURES: Final = 8
_LABEL_GAP: Final = 0.0135  # smallest distance between two word labels, as a share of the time axis
_LONGEST_LABEL: Final = 13  # number of characters
LEFT, RIGHT = 0.065, 0.935  # ends of the time axis, as shares of the figure
_LEGEND_COLUMNS: Final = 5
_DPI: Final = 110
_FONT: Final = "DejaVu Sans"  # comes with matplotlib
_OTHER_FONTS: Final = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Source Han Sans SC", "WenQuanYi Zen Hei"),
    *("IPAGothic", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans", "Arial Unicode MS", "Unifont"),
)
_STYLE: Final[dict[str, Any]] = {
    "font.family": [_FONT],
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.1,
    "text.usetex": False,
}
# Colours of Okabe and Ito, which colour-blind people can distinguish.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"


@dataclass(frozen=True, slots=True)
class View:
    """Arrays and words of a sample, cut to the time shown. Times are in seconds from the start of the clip."""

    start_s: float
    stop_s: float
    times: F64  # (T,), times of the frames shown
    gesture: F32  # (T, 415), T = 0 without motion
    jaw_eyes: F32  # (T, 9)
    root_xz: F64  # (T, 2) metres
    mel: F32  # (M, 64), M = 0 without audio
    mel_start_s: float
    words: tuple[tuple[str, float, float], ...]  # (word, start, end)

    def word_at(self, time_s: float) -> str:
        """Return the word spoken at a time, or "" in a pause."""
        return next((word for word, start, end in self.words if start <= time_s < end), "")


def png_of(figure: Figure) -> bytes:
    """Return a matplotlib figure as the bytes of a PNG file, without metadata about the program."""
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


@contextlib.contextmanager
def new_figure(width_in: float, height_in: float) -> Iterator[Figure]:
    """Create an empty matplotlib figure in the style of all pictures.

    Args:
        width_in: Width in inches.
        height_in: Height in inches.

    Yields:
        The figure.

    Raises:
        EnvironmentFault: Matplotlib is not installed.
    """
    style: Any = _STYLE  # newer versions of matplotlib require literal keys
    with needs("pictures", "pictures"):
        import matplotlib as mpl  # noqa: PLC0415 - optional, and slow to import
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
        from matplotlib.figure import Figure  # noqa: PLC0415
    with mpl.rc_context(style):
        figure = Figure(figsize=(width_in, height_in), dpi=_DPI)
        FigureCanvasAgg(figure)
        yield figure


_NO_MEL: Final[F32] = np.zeros((0, MEL_BANDS), np.float32)


# --- the data that is drawn ---------------------------------------------------------------------------------


def cut(  # noqa: PLR0913 - the arrays of a sample; all except the motion are keyword-only
    gesture: F32,
    start_xz: Numbers,
    start_s: float,
    seconds: float,
    *,
    jaw_eyes: F32 | None = None,
    mel: F32 = _NO_MEL,
    words: Sequence[Word] = (),
    begins_s: float = 0.0,
) -> View:
    """Cut a sample to the time that is shown, and compute the path of the root: the sum of its displacements per frame.

    Args:
        gesture: Channels (T, 415) of T frames at 30 Hz.
        start_xz: Position (x, z) of the root in the first frame of `gesture`, in metres.
        start_s: Start of the time shown, in seconds from the start of the clip.
        seconds: Length of the time shown, in seconds.
        jaw_eyes: Axis-angles (T, 9) in radians; None: jaw and eyes at rest.
        mel: Log-mel (M, 64) of M mel frames at 100 Hz.
        words: Words with times in seconds from the start of the clip.
        begins_s: Start of the arrays, in seconds from the start of the clip; a multiple of 0.1 s.

    Returns:
        The arrays and words within the time shown.

    Raises:
        ValueError: A shape is wrong, or fewer than two frames are shown.
    """
    frames = len(gesture)
    face = np.zeros((frames, 9), np.float32) if jaw_eyes is None else jaw_eyes
    shapes = (gesture.shape, face.shape, start_xz.shape, mel.shape[1:])
    if shapes != ((frames, LAYOUT.channels), (frames, 9), (2,), (MEL_BANDS,)):
        raise ValueError(f"expected gesture (T, 415), jaw_eyes (T, 9), start_xz (2,), mel (M, 64), found {shapes}")
    before = round(begins_s * FRAME_RATE_HZ)
    first = max(0, round(start_s * FRAME_RATE_HZ) - before)
    stop = min(frames, round((start_s + seconds) * FRAME_RATE_HZ) - before)
    times = (before + np.arange(first, stop + 1)) / FRAME_RATE_HZ
    if stop - first < 2:
        raise ValueError(f"{start_s} s and {seconds} s show fewer than two of {frames} frames")
    steps = gesture[:, [LAYOUT.root.start, LAYOUT.root.start + 2]].astype(np.float64)
    steps[0] = start_xz  # the first step is a copy of the second
    return replace(
        without_motion(mel, words, float(times[0]), float(times[-1]), begins_s),
        times=times[:-1],
        gesture=gesture[first:stop],
        jaw_eyes=face[first:stop],
        root_xz=np.cumsum(steps, axis=0)[first:stop],
    )


def without_motion(
    mel: F32 | None, words: Sequence[Word], start_s: float, stop_s: float, begins_s: float = 0.0
) -> View:
    """Cut the mel and the words of a sample to the time shown; the result has no motion.

    Args:
        mel: Log-mel (M, 64) of M mel frames at 100 Hz; None: no audio.
        words: Words with times in seconds from the start of the clip.
        start_s: Start of the time shown, in seconds from the start of the clip.
        stop_s: End of the time shown, in seconds from the start of the clip.
        begins_s: Start of the mel, in seconds from the start of the clip; a multiple of 0.1 s.

    Returns:
        The arrays and words within the time shown.

    Raises:
        ValueError: The time shown is shorter than two frames.
    """
    if (stop_s - start_s) * FRAME_RATE_HZ < 2 - 1e-6:
        raise ValueError(f"{start_s} to {stop_s} s show fewer than two frames")
    audio = _NO_MEL if mel is None else mel
    before = round(begins_s * MEL_RATE_HZ)
    first = min(max(0, round(start_s * MEL_RATE_HZ) - before), len(audio))
    inside = ((str(w["word"]), max(float(w["start"]), start_s), min(float(w["end"]), stop_s)) for w in words)
    return View(
        start_s=start_s,
        stop_s=stop_s,
        times=np.zeros(0),
        gesture=np.zeros((0, LAYOUT.channels), np.float32),
        jaw_eyes=np.zeros((0, 9), np.float32),
        root_xz=np.zeros((0, 2)),
        mel=audio[first : max(0, round(stop_s * MEL_RATE_HZ) - before)],
        mel_start_s=(before + first) / MEL_RATE_HZ,
        words=tuple((word, start, end) for word, start, end in inside if start < end),
    )


def angular_speed(gesture: F32, channels: slice) -> F64:
    """Return the angular speed between consecutive frames, as a mean over the joints of a body part.

    Args:
        gesture: Channels (T, 415) of T frames at 30 Hz.
        channels: 6D rotation channels of the body part.

    Returns:
        Speed (T − 1,) in rad/s; NaN if the body part is absent.
    """
    if np.isnan(gesture[:, channels]).all():
        return np.full(max(len(gesture) - 1, 0), np.nan)
    matrices = matrix_from_six_d(gesture[:, channels].reshape(len(gesture), -1, 6))
    chord = np.linalg.norm(np.diff(matrices, axis=0), axis=(-2, -1))
    # |R₁ − R₀| = 2√2 sin(angle/2). Near zero this is accurate; the arc cosine of the trace is not.
    angle = 2 * np.arcsin(np.minimum(chord / np.sqrt(8), 1.0))
    return np.asarray(angle.mean(axis=1) * FRAME_RATE_HZ)


def _spread(centres: F64, gap: float, low: float, high: float) -> F64:
    """Move the centres of labels until they are at least `gap` apart, and return the new centres.

    `centres` must be ascending. Isotonic regression minimizes the sum of the squared movements: neighbours that would
    overlap move together. Then the centres are clipped to the range from `low` to `high`.
    """
    offsets = gap * np.arange(len(centres))
    pools: list[tuple[float, int]] = []  # mean, size
    for value in centres - offsets:
        mean, size = float(value), 1
        while pools and pools[-1][0] > mean:
            other, count = pools.pop()
            mean, size = (mean * size + other * count) / (size + count), size + count
        pools.append((mean, size))
    places = np.repeat([mean for mean, _ in pools], [size for _, size in pools])
    return np.asarray(np.clip(places, low, high - offsets[-1]) + offsets)


# --- text ---------------------------------------------------------------------------------------------------


@functools.cache
def _fonts() -> tuple[tuple[str, FT2Font], ...]:
    """Return the installed fonts (family, font), in the order in which they are searched for a character."""
    from matplotlib import font_manager  # noqa: PLC0415

    installed = set(font_manager.get_font_names())
    families = [_FONT, *(family for family in _OTHER_FONTS if family in installed)]
    return tuple((f, font_manager.get_font(font_manager.findfont(f))) for f in families)


def _drawable(text: str, longest: int) -> str:
    """Return at most `longest` characters of a text; Python escapes replace the characters that no font contains."""
    shown = "".join(
        c
        if c.isprintable() and any(font.get_char_index(ord(c)) for _, font in _fonts())
        else c.encode("unicode_escape").decode("ascii")
        for c in text[: longest + 1]
    )
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def write(target: Axes | Figure, place: tuple[float, float], text: str, longest: int = 80, **style: Any) -> None:
    """Draw a text; dollar signs are drawn as characters, so that they do not start a formula.

    Args:
        target: Axes or figure.
        place: Position (x, y), in data coordinates of the axes, or as fractions of the width and height of the figure.
        text: The text.
        longest: Largest number of characters; a longer text is cut and ends with "…".
        **style: Further arguments of matplotlib's method ``text``.
    """
    families = [family for family, _ in _fonts()]
    target.text(*place, _drawable(text, longest), family=families, parse_math=False, **style)


# --- panels -------------------------------------------------------------------------------------------------


def time_axis(axes: Axes, view: View, *, labelled: bool = False) -> None:
    """Set the time axis of a panel.

    Args:
        axes: The panel.
        view: Data to draw, and the time shown.
        labelled: Draw the label and the numbers of the axis.
    """
    axes.set_xlim(view.start_s, view.stop_s)
    axes.tick_params(labelbottom=labelled)
    if labelled:
        axes.set_xlabel("time (s)", labelpad=1)


def _mark_words(axes: Axes, view: View) -> None:
    for _, start, end in view.words:
        axes.axvspan(start, end, color="#000000", alpha=0.05, linewidth=0, zorder=0)


def legend(axes: Axes, handles: Sequence[Any]) -> None:
    """Draw a legend above the panel, in one line or in lines of five entries.

    Args:
        axes: The panel.
        handles: Curves of the panel.
    """
    above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderaxespad": 0.0, "borderpad": 0.15}
    axes.legend(handles=handles, ncols=min(len(handles), _LEGEND_COLUMNS), handlelength=1.6, **above)


def draw_words(axes: Axes, view: View, *, empty: str = "") -> None:
    """Draw a bar for the interval of each word. Write the words above the bars without overlap.

    If there are too many words, only every n-th word is written.

    Args:
        axes: The panel.
        view: Data to draw, and the time shown.
        empty: Text to show if no word is spoken during the time shown.
    """
    axes.set_axis_off()
    time_axis(axes, view)
    axes.set_ylim(0, 1)
    axes.broken_barh([(a, b - a) for _, a, b in view.words], (0.0, 0.09), color=GREY, edgecolor="white")
    span = view.stop_s - view.start_s
    every = max(1, int(np.ceil(len(view.words) * _LABEL_GAP)))  # with many words, only every n-th word is labelled
    labelled = view.words[::every]
    if not labelled:
        axes.text(0.5, 0.4, empty, transform=axes.transAxes, ha="center", color=GREY)
        return
    centres = np.array([(a + b) / 2 for _, a, b in labelled])
    places = _spread(centres, _LABEL_GAP * span, view.start_s, view.stop_s - 0.01 * span)
    for (word, _, _), centre, place in zip(labelled, centres, places, strict=True):
        axes.plot([centre, centre, place], [0.1, 0.13, 0.22], color=GREY, linewidth=0.5, clip_on=False)
        turned = {"rotation": 60, "rotation_mode": "anchor", "ha": "left", "va": "center"}
        write(axes, (place, 0.25), word, _LONGEST_LABEL, size=8, **turned)


def draw_mel(axes: Axes, view: View) -> None:
    """Draw the log-mel with a frequency axis in hertz and a colour bar.

    Args:
        axes: The panel.
        view: Data to draw, and the time shown.
    """
    time_axis(axes, view)
    axes.set_ylabel("mel (Hz)")
    peaks = mel_filterbank().argmax(axis=1) * (SAMPLE_RATE_HZ / N_FFT)
    hertz = (250, 500, 1000, 2000, 4000, 8000)
    axes.set_yticks(np.interp(hertz, peaks, np.arange(MEL_BANDS)), [str(f) for f in hertz])
    axes.set_ylim(-0.5, MEL_BANDS - 0.5)
    if not len(view.mel):
        axes.text(0.5, 0.5, "no audio", transform=axes.transAxes, ha="center", va="center", color=GREY)
        return
    low, high = np.percentile(view.mel, (2, 99.8))
    half = 0.5 / MEL_RATE_HZ  # a mel frame is centred on its time
    stop = view.mel_start_s + len(view.mel) / MEL_RATE_HZ
    extent = (view.mel_start_s - half, stop - half, -0.5, MEL_BANDS - 0.5)
    style: dict[str, Any] = {"origin": "lower", "aspect": "auto", "interpolation": "nearest", "cmap": "magma"}
    image = axes.imshow(view.mel.T, vmin=low, vmax=max(high, low + 1e-3), extent=extent, **style)
    time_axis(axes, view)  # imshow has changed its limits
    bar = axes.inset_axes((1.012, 0.0, 0.012, 1.0))
    axes.figure.colorbar(image, cax=bar)
    bar.set_ylabel("log magnitude", labelpad=0)  # its tick labels may reach the edge of the figure


def share_mel_colours(figure: Figure) -> None:
    """Give all mel panels of a matplotlib figure the same colour scale, so that they can be compared."""
    images = [image for axes in figure.axes for image in axes.images]
    if images:
        lows, highs = zip(*(image.get_clim() for image in images), strict=True)
        for image in images:
            image.set_clim(min(lows), max(highs))


def draw_motion(axes: Axes, view: View) -> None:
    """Draw the angular speed of the body parts and the speed of the root.

    Args:
        axes: The panel.
        view: Data to draw, and the time shown.
    """
    time_axis(axes, view)
    _mark_words(axes, view)
    between = (view.times[1:] + view.times[:-1]) / 2
    lines = []
    parts = (("upper body", LAYOUT.upper, BLUE), ("hands", LAYOUT.hands, ORANGE), ("lower body", LAYOUT.lower, GREEN))
    for name, channels, color in parts:
        lines += axes.plot(between, angular_speed(view.gesture, channels), color=color, label=name)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("mean angular\nspeed (rad/s)")
    root = np.linalg.norm(np.diff(view.root_xz, axis=0), axis=1) * FRAME_RATE_HZ
    lines += second_axis(axes, between, root, "root (right)", "root speed (m/s)")
    legend(axes, lines)


def draw_face(axes: Axes, view: View) -> None:
    """Draw the speed of the expression and the angle of the jaw.

    Args:
        axes: The panel.
        view: Data to draw, and the time shown.
    """
    time_axis(axes, view, labelled=True)
    _mark_words(axes, view)
    face = view.gesture[:, LAYOUT.face].astype(np.float64)
    change = np.abs(np.diff(face, axis=0)).mean(axis=1) * FRAME_RATE_HZ
    between = (view.times[1:] + view.times[:-1]) / 2
    lines = axes.plot(between, change, color=ORANGE, label="expression, mean change of 100 coefficients")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("expression\n(1/s)")
    jaw = np.linalg.norm(view.jaw_eyes[:, :3], axis=1)
    lines += second_axis(axes, view.times, jaw, "jaw (right)", "jaw (rad)")
    legend(axes, lines)


def second_axis(axes: Axes, places: Numbers, values: Numbers, name: str, label: str) -> list[Any]:
    """Draw a curve in another unit, with a second vertical axis on the right of the panel.

    Args:
        axes: The panel.
        places: Positions on the horizontal axis (N,).
        values: Values (N,); NaN is not drawn.
        name: Name in the legend.
        label: Label of the axis.

    Returns:
        A list with the curve, for the legend.
    """
    right = axes.twinx()
    right.spines["right"].set_visible(True)
    right.set_ylabel(label, color=GREY)
    right.tick_params(colors=GREY)
    lines = right.plot(places, values, color=GREY, linewidth=0.8, linestyle=(0, (4, 1.5)), label=name)
    right.set_ylim(0, max(1.05 * float(values.max(where=~np.isnan(values), initial=0.0)), 1e-3))
    return list(lines)


# --- stick figures ------------------------------------------------------------------------------------------

_EYES: Final = (23, 24)
_HEAD: Final = 15
_NOT_BONES: Final = frozenset({0, 22, *_EYES})
_FIRST_FINGER: Final = 25
_HEAD_RADIUS_M: Final = 0.1
_TEXT_IN: Final = (0.15, 0.33, 0.45)  # inches from the ground down to the time, the word, and the edge of the panel
_ABOVE_GROUND_M: Final = 2.12  # height of a person with raised arms


def draw_figures(axes: Axes, view: View) -> None:
    """Draw stick figures at evenly spaced times, with the time and the spoken word below each figure.

    All figures have the same scale, and each is centred on its pelvis. If the upper or the lower body is absent, a note
    replaces the figures.

    Args:
        axes: The panel.
        view: Data to draw, and the time shown.
    """
    axes.set_axis_off()
    if any(np.isnan(view.gesture[0, part]).any() for part in (LAYOUT.upper, LAYOUT.lower)):
        axes.text(
            0.5, 0.5, "no figures: a part of the body is absent", transform=axes.transAxes, ha="center", color=GREY
        )
        return
    count = min(_FIGURES, len(view.times))
    shown = ((np.arange(count) + 0.5) / count * len(view.times)).astype(int)
    people = _people(view.gesture[shown], view.jaw_eyes[shown])
    ground = float(np.nanmin(people[..., 1]))  # the fingers of absent hands are NaN
    box = axes.get_window_extent()
    box_height = box.height - _TEXT_IN[2] * _DPI
    right, left = np.nanmax(people[..., 0], axis=1), -np.nanmin(people[..., 0], axis=1)
    needed = max(2 * left[0], 2 * right[-1], *(right[:-1] + left[1:])) + 0.1  # keeps hands of neighbours apart
    spacing = max(float(needed), _ABOVE_GROUND_M * box.width / box_height / count)
    metre_per_inch = spacing * count / box.width * _DPI
    time_y, word_y, bottom = (ground - inches * metre_per_inch for inches in _TEXT_IN)
    axes.set_xlim(0, spacing * count)
    axes.set_ylim(bottom, bottom + box.height / _DPI * metre_per_inch)
    axes.axhline(ground, color="#BBBBBB", linewidth=0.6, zorder=0)
    for k, (person, time_s) in enumerate(zip(people, view.times[shown], strict=True)):
        centre = spacing * (k + 0.5)
        _draw_person(axes, person + np.array([centre, 0.0, 0.0]))
        label: dict[str, Any] = {"ha": "center", "va": "center"}
        axes.text(centre, time_y, f"{time_s:.2f} s", size=8, color=GREY, **label)
        word = view.word_at(float(time_s))
        pause = "(pause)" if view.words else ""  # without words, pauses are not known
        write(axes, (centre, word_y), word or pause, 16, color="black" if word else "#999999", **label)
    (x0, z0), (x1, z1) = np.round(view.root_xz[[0, -1]], 2) + 0.0  # no -0.00
    path = f"the root goes from (x, z) = ({x0:.2f}, {z0:.2f}) to ({x1:.2f}, {z1:.2f}) m"
    path = "the root is absent" if np.isnan(view.root_xz).any() else path
    note = f"front view, generic skeleton (no body model), centred on the pelvis; {path}"
    axes.text(0.0, 0.96, note, transform=axes.transAxes, va="top", color=GREY)
    for place, color, side in ((0.93, BLUE, "left side"), (1.0, ORANGE, "right side")):
        axes.text(place, 0.96, side, transform=axes.transAxes, va="top", ha="right", color=color)


def _people(gesture: F32, jaw_eyes: F32) -> F64:
    """Return the positions of the joints in K frames, with the pelvis at x = z = 0.

    The result has the shape (K, 55, 3), in metres. A position is NaN if the rotation of any ancestor of the joint is
    absent.
    """
    motion = motion_from_gesture(GestureClip(gesture, jaw_eyes, np.zeros(2)))
    root = np.nan_to_num(motion.trans) * np.array([0.0, 1.0, 0.0])
    positions = GENERIC.joints(np.nan_to_num(motion.poses), root)
    absent = np.isnan(motion.poses[0].reshape(-1, 3)).any(axis=1)
    hidden = np.zeros(len(PARENTS), dtype=bool)
    for joint, parent in enumerate(PARENTS):
        hidden[joint] = parent >= 0 and (hidden[parent] or absent[parent])
    positions[:, hidden] = np.nan
    return positions


def _draw_person(axes: Axes, joints: F64) -> None:
    """Draw one stick figure from joints (55, 3) in metres; bones nearer to the viewer cover the bones behind them."""
    from matplotlib.collections import LineCollection  # noqa: PLC0415
    from matplotlib.patches import Circle  # noqa: PLC0415

    bones = sorted(
        (joint for joint in range(len(PARENTS)) if joint not in _NOT_BONES),
        key=lambda joint: float(joints[joint, 2] + joints[PARENTS[joint], 2]),
    )
    lines = [joints[[PARENTS[joint], joint], :2] for joint in bones]
    colours = [_side_color(joint) for joint in bones]
    widths = [0.8 if joint >= _FIRST_FINGER else 2.2 for joint in bones]
    drawn = LineCollection(lines, colors=colours, linewidths=widths, capstyle="round", zorder=3)
    axes.add_collection(drawn, autolim=False)
    eyes = joints[list(_EYES)]
    middle = 0.4 * joints[_HEAD] + 0.6 * eyes.mean(axis=0)
    axes.add_patch(Circle(middle[:2], _HEAD_RADIUS_M, facecolor="white", edgecolor="#333333", linewidth=1.2, zorder=2))
    if eyes[:, 2].mean() > joints[_HEAD, 2]:  # the face is towards the viewer
        axes.scatter(eyes[:, 0], eyes[:, 1], s=3, c=[_side_color(e) for e in _EYES], zorder=2.5)


def _side_color(joint: int) -> str:
    name = JOINT_NAMES[joint]
    if name.startswith("left_"):
        return BLUE
    return ORANGE if name.startswith("right_") else "#333333"
