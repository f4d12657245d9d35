"""Curves of a training run (losses, learning rate and speed by step), and a picture of the curves."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from omniges.visualize import panels as parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MAX_STEP: Final = 1 << 53
_SIZE_IN: Final = (12.0, 9.0)
_COLOURS: Final = (
    *(parts.BLUE, parts.ORANGE, parts.GREEN, "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8C564B"),
    *("#7F7F7F", "#B2B200"),
)
_LOG_RATIO: Final = 20.0  # an axis is logarithmic if its largest value exceeds this multiple of its smallest value


@dataclass(slots=True)
class Curves:
    """Logged values of a training run.

    Entry k of a list was logged at ``steps[k]``; in the lists of validation, at ``validation_steps[k]``.
    """

    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    """Mean loss of the steps since the previous entry."""
    smoothed: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    gradient_norm: list[float | None] = field(default_factory=list)
    samples_per_s: list[float] = field(default_factory=list)
    elapsed_s: list[float] = field(default_factory=list)
    epochs: list[float] = field(default_factory=list)
    tasks: dict[str, list[float | None]] = field(default_factory=dict)
    """Loss of each task; None where no sample had this task."""
    validation_steps: list[int] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)

    def add_steps(self, event: Mapping[str, Any]) -> None:
        """Append the values of a log event ``steps``; raise LookupError, TypeError or ValueError if one is invalid."""
        norm = event["gradient_norm"]
        losses = {str(name): _number(of["loss"]) for name, of in event["tasks"].items()}
        names = ("loss", "smoothed_loss", "learning_rate", "samples_per_s", "elapsed_s", "epoch")
        values = [_number(event[name]) for name in names]
        self.steps.append(_step(event))
        self.gradient_norm.append(None if norm is None else _number(norm))
        curves = (self.loss, self.smoothed, self.learning_rate, self.samples_per_s, self.elapsed_s, self.epochs)
        for curve, value in zip(curves, values, strict=True):
            curve.append(value)
        for name in dict.fromkeys([*self.tasks, *losses]):
            curve_of = self.tasks.setdefault(name, [None] * (len(self.steps) - 1))
            curve_of.append(losses.get(name))

    def add_validation(self, event: Mapping[str, Any]) -> None:
        """Append the values of a log event ``validation``; raise the same errors as `add_steps`."""
        step, loss = _step(event), _number(event["loss"])
        self.validation_steps.append(step)
        self.validation_loss.append(loss)

    def cut_after(self, step: int) -> None:
        """Remove the values after a step.

        Call this if the run resumed from this step, because the run then logs the later steps again.
        """
        rows, validations = bisect_right(self.steps, step), bisect_right(self.validation_steps, step)
        validation = ("validation_steps", "validation_loss")
        for each in fields(self):
            if each.name != "tasks":
                del getattr(self, each.name)[validations if each.name in validation else rows :]
        for curve in self.tasks.values():
            del curve[rows:]

    def as_json(self) -> dict[str, Any]:
        """Return the values as JSON; the keys are the names in the log."""
        return {
            "steps": self.steps,
            "loss": self.loss,
            "smoothed_loss": self.smoothed,
            "learning_rate": self.learning_rate,
            "gradient_norm": self.gradient_norm,
            "samples_per_s": self.samples_per_s,
            "elapsed_s": self.elapsed_s,
            "epoch": self.epochs,
            "tasks": self.tasks,
            "validation": {"steps": self.validation_steps, "loss": self.validation_loss},
        }


def _number(value: object) -> float:
    if (type(value) is not int and type(value) is not float) or not abs(value) <= sys.float_info.max:
        raise TypeError("no number")
    return float(value)


def _step(event: Mapping[str, Any]) -> int:
    step = event["step"]
    if type(step) is not int or not 0 <= step <= _MAX_STEP:
        raise ValueError("a step out of range")
    return step


def draw_curves(title: str, curves: Curves) -> bytes:
    """Draw four panels over the steps of a run: loss, loss by task, learning rate with gradient norm, and speed.

    Args:
        title: Title of the picture.
        curves: The logged values of the run.

    Returns:
        The picture as PNG.

    Raises:
        EnvironmentFault: Matplotlib is not installed.
    """
    with parts.new_figure(*_SIZE_IN) as figure:
        grid = figure.add_gridspec(2, 2, left=0.07, right=0.93, top=0.91, bottom=0.07, wspace=0.28, hspace=0.3)
        parts.write(figure, (0.07, 0.965), title, size=12, weight="bold", va="center")
        panels = [figure.add_subplot(grid[row, column]) for row in range(2) for column in range(2)]
        for axes, draw in zip(panels, (_draw_loss, _draw_tasks, _draw_rate, _draw_speed), strict=True):
            draw(axes, curves)
            axes.set_xlabel("step", labelpad=1)
            axes.set_xlim(0, max(1, *curves.steps, *curves.validation_steps))
        return parts.png_of(figure)


def _draw_loss(axes: Axes, curves: Curves) -> None:
    lines = axes.plot(curves.steps, curves.loss, color=parts.GREY, linewidth=0.7, alpha=0.7, label="training")
    lines += axes.plot(curves.steps, curves.smoothed, color=parts.BLUE, label="smoothed")
    if curves.validation_steps:
        shown = axes.plot(
            curves.validation_steps, curves.validation_loss, "o-", color=parts.ORANGE, markersize=3, label="validation"
        )
        best = int(np.argmin(curves.validation_loss))
        shown += axes.plot(
            *([curves.validation_steps[best]], [curves.validation_loss[best]]),
            *("*",),
            color=parts.ORANGE,
            markersize=11,
            label="lowest",
        )
        lines += shown
    _scale(axes, [*curves.loss, *curves.validation_loss])
    axes.set_ylabel("loss")
    parts.legend(axes, lines)


def _draw_tasks(axes: Axes, curves: Curves) -> None:
    lines = []
    for (name, losses), color in zip(sorted(curves.tasks.items()), _COLOURS, strict=False):
        drawn = [(step, loss) for step, loss in zip(curves.steps, losses, strict=True) if loss is not None]
        lines += axes.plot(*zip(*drawn, strict=True), color=color, linewidth=0.9, label=name)
    _scale(axes, [loss for losses in curves.tasks.values() for loss in losses if loss is not None])
    axes.set_ylabel("loss by task")
    if lines:
        parts.legend(axes, lines)


def _draw_rate(axes: Axes, curves: Curves) -> None:
    lines = axes.plot(curves.steps, curves.learning_rate, color=parts.BLUE, label="learning rate")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("learning rate")
    norms = np.array([np.nan if norm is None else norm for norm in curves.gradient_norm])
    lines += parts.second_axis(axes, np.array(curves.steps), norms, "gradient norm (right)", "gradient norm")
    parts.legend(axes, lines)


def _draw_speed(axes: Axes, curves: Curves) -> None:
    axes.plot(curves.steps, curves.samples_per_s, color=parts.GREEN)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("samples/s")


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """Make the vertical axis logarithmic if the values span a wide range."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    if low > 0 and high / low > _LOG_RATIO:
        axes.set_yscale("log")
