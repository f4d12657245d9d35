"""Metrics by name: those that omniges computes itself, and those of scripts and other packages.

The built-in ones share work, such as joints and onsets, so `omniges.evaluation` computes them together; here stand
their names, units and directions. A further metric is a `Metric`: a function of a generated and a recorded clip.
docs/extend.md says how to add one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from omniges.errors import EnvironmentFault, UsageFault
from omniges.formats.textgrid import WordInterval
from omniges.registry import Registry
from omniges.shards.schema import PARTS

F64 = npt.NDArray[np.float64]
Direction = Literal["lower", "higher"]


@dataclass(frozen=True, slots=True)
class MotionClip:
    """Motion of a clip at 30 Hz, as metrics of the stream "gesture" get it."""

    poses: F64  # (T, 165) axis-angle, radians
    expressions: F64  # (T, 100)
    trans: F64  # (T, 3) m, y up
    joints: F64  # (T, 55, 3) m, with translation, of the recording's body
    present: frozenset[str] = frozenset(PARTS)
    """Parts (`omniges.shards.schema.PARTS`) that the recording has, of a generated clip those of motion that were made.
    Motion is at rest in all others: zeros that nobody recorded. `Metric.needs` leaves out clips without a part."""


@dataclass(frozen=True, slots=True)
class SoundClip:
    """Sound of a clip, as metrics of the stream "audio" get it."""

    mel: npt.NDArray[np.float32]  # (F, 64) log-mel at 100 Hz


@dataclass(frozen=True, slots=True)
class TextClip:
    """Words of a clip, as metrics of the stream "text" get it."""

    words: Sequence[WordInterval]
    timed: bool  # False: the times are those of whole windows


def metric_name(label: str) -> str:
    """Return what a metric is called in flags, logs and registries: letters, digits, underscores."""
    plain = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "_", plain).strip("_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What a metric is called, what it scores and in which unit."""

    label: str
    """Its name in tables, such as "word error rate"."""
    stream: str
    """The generated stream that it scores."""
    unit: str = ""
    better: Direction | None = None
    """None: neither more nor less is better, so ``--best-metric`` does not take it."""

    @property
    def name(self) -> str:
        """Its name in flags, logs and registries, such as ``word_error_rate``."""
        return metric_name(self.label)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric(Measure):
    """A metric that a script or another package adds."""

    of: Callable[[Any, Any], float | None]
    """Value of a generated and a recorded clip of equal length; None, or a DataError that says why: it has none.

    Clips are `MotionClip`, `SoundClip` or `TextClip` by the stream; with `over_set`, equally long lists of clips."""
    over_set: bool = False
    """Whether it is of all results at once, such as a distance of distributions, not a mean over results."""
    needs: tuple[str, ...] = ()
    """Parts, such as "face", that both clips of a gesture metric must have; results without are left out and counted.

    Every recording that is scored has upper, hands, lower and root; face and jaw_eyes may be absent from it."""


BUILT_IN: Final = (
    Measure(label="Fréchet gesture distance", stream="gesture", better="lower"),
    Measure(label="beat consistency", stream="gesture", better="higher"),
    Measure(label="L1 diversity", stream="gesture", unit="m"),
    Measure(label="semantic recall", stream="gesture", better="higher"),
    Measure(label="face MSE", stream="gesture", unit="m²"),
    Measure(label="face LVD", stream="gesture", unit="m/frame"),
    Measure(label="jerk", stream="gesture", unit="m/s³"),
    Measure(label="foot skate", stream="gesture", unit="m/s"),
    Measure(label="root drift, end", stream="gesture", unit="m"),
    Measure(label="root drift, farthest", stream="gesture", unit="m"),
    Measure(label="invalid rotations", stream="gesture", unit="share", better="lower"),
    Measure(label="seams, velocity", stream="gesture", unit="share"),
    Measure(label="seams, acceleration", stream="gesture", unit="share"),
    Measure(label="word error rate", stream="text", unit="share", better="lower"),
    Measure(label="character error rate", stream="text", unit="share", better="lower"),
    Measure(label="word start error, median", stream="text", unit="s", better="lower"),
    Measure(label="word start error, 90 %", stream="text", unit="s"),
    Measure(label="word end error, median", stream="text", unit="s", better="lower"),
    Measure(label="word end error, 90 %", stream="text", unit="s"),
    Measure(label="log-mel L1", stream="audio", unit="nat", better="lower"),
    Measure(label="mel-cepstral distortion", stream="audio", unit="dB", better="lower"),
    Measure(label="onset agreement", stream="audio", unit="F", better="higher"),
)
"""In the order of reports. Face errors choose no checkpoint, for validation has no body model."""

METRICS: Final[Registry[Metric]] = Registry("metric", "omniges.metrics", Metric)
"""Metrics that are not built in."""


def units(stream: str) -> dict[str, str]:
    """Return units of a stream's built-in metrics by label, in the order of reports."""
    return {measure.label: measure.unit for measure in BUILT_IN if measure.stream == stream}


def register_metric(metric: Metric) -> None:
    """Let `evaluate` and validation compute a metric for the rest of this process.

    Args:
        metric: its name must be free.

    Raises:
        UsageFault: A metric of this name is there already, or `needs` names no part or is of another stream's metric.
    """
    if why := _wrong_needs(metric):
        raise UsageFault(f"metric {metric.name!r}: {why}")
    if metric.name in {measure.name for measure in BUILT_IN}:
        raise UsageFault(f"metric {metric.name!r}: omniges has one of this name: choose another label")
    METRICS.register(metric.name, metric)


def _wrong_needs(metric: Metric) -> str:
    """Return what is wrong with the parts that a metric needs, or nothing."""
    unknown = [part for part in metric.needs if part not in PARTS]
    if unknown:
        return f"needs: {', '.join(PARTS)} expected, found {unknown[0]!r}"
    if metric.needs and metric.stream != "gesture":
        return f"needs: none expected of stream {metric.stream!r}, for clips of gesture alone tell their parts"
    return ""


def registered_metrics(stream: str | None = None) -> list[Metric]:
    """Return the metrics that are not built in, of a stream or of all, by name.

    Args:
        stream: ``text``, ``audio`` or ``gesture``; None: all.

    Returns:
        The metrics, sorted by name.

    Raises:
        EnvironmentFault: An installed package's metric cannot be loaded, or has another name than it is announced by.
    """
    found = {name: registered_metric(name) for name in sorted(METRICS.names())}
    return [metric for metric in found.values() if stream in {None, metric.stream}]


def registered_metric(name: str) -> Metric:
    """Return a metric that is not built in; raises as `registered_metrics`, and UsageFault for an unknown name."""
    metric = METRICS.get(name)
    if metric.name != name or name in {measure.name for measure in BUILT_IN}:
        raise EnvironmentFault(
            f"metric {name!r}: its label {metric.label!r} makes the name {metric.name!r}; expected the name that it is "
            "announced by, and none of omniges: rename its entry point or its label"
        )
    if why := _wrong_needs(metric):
        raise EnvironmentFault(f"metric {name!r}: {why}: update or uninstall its package")
    return metric
