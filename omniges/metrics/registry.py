"""Registry of metrics: built-in metrics, and metrics that scripts and other packages add.

The built-in metrics share intermediate results, such as joints and onsets, so `omniges.evaluation` computes them
together. This module lists their names and units, and whether lower or higher values are better. An added metric is a
`Metric`: a function of a generated and a recorded clip. docs/how-to/extend.md explains how to add a metric.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from omniges import arguments
from omniges.errors import EnvironmentFault, UsageFault
from omniges.formats.textgrid import WordInterval
from omniges.registry import Registry
from omniges.shards.schema import PARTS

F64 = npt.NDArray[np.float64]
Direction = Literal["lower", "higher"]


@dataclass(frozen=True, slots=True)
class MotionClip:
    """Motion of a clip at 30 Hz, the input of metrics of the stream "gesture"."""

    poses: F64  # (T, 165) axis-angle in radians
    expressions: F64  # (T, 100)
    trans: F64  # (T, 3) in metres, y up
    joints: F64  # (T, 55, 3) in metres, with translation, computed with the body of the recorded person
    present: frozenset[str] = frozenset(PARTS)
    """Names of parts, from `omniges.shards.schema.PARTS`.

    For a recorded clip: the parts that the recording has. For a generated clip: the generated parts of the motion. All
    other parts of the motion are zeros. A metric skips clips that lack a part in `Metric.needs`.
    """


@dataclass(frozen=True, slots=True)
class SoundClip:
    """Sound of a clip, the input of metrics of the stream "audio"."""

    mel: npt.NDArray[np.float32]  # (F, 64) log-mel at 100 Hz


@dataclass(frozen=True, slots=True)
class TextClip:
    """Words of a clip, the input of metrics of the stream "text"."""

    words: Sequence[WordInterval]
    timed: bool  # False: each word has the times of its whole window


def metric_name(label: str) -> str:
    """Convert the label of a metric to a name for flags, logs and registries, such as ``word_error_rate``.

    The name contains only lower-case letters, digits and underscores.
    """
    plain = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "_", plain).strip("_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """Description of a metric: label, scored stream, unit, and whether lower or higher values are better."""

    label: str
    """Name in tables, such as "word error rate"."""
    stream: str
    """The generated stream that is scored: "text", "audio" or "gesture"."""
    unit: str = ""
    better: Direction | None = None
    """Direction of better values. None: neither direction is better, and ``--best-metric`` refuses the metric."""

    @property
    def name(self) -> str:
        """Name in flags, logs and registries, such as ``word_error_rate``."""
        return metric_name(self.label)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric(Measure):
    """A metric added by a script or another package."""

    of: Callable[[Any, Any], float | None]
    """Function of a generated and a recorded clip of equal length. It returns the value, or None if the value is
    undefined. It may also raise DataError with the reason.

    The stream determines the class of both clips: `MotionClip`, `SoundClip` or `TextClip`. With `over_set`, both
    arguments are lists of clips. The two clips at each index belong together and have equal length.
    """
    over_set: bool = False
    """True: one call of `of` scores all results, as for a Fréchet distance. False: each call scores one result, and
    reports show the mean."""
    needs: tuple[str, ...] = ()
    """Parts, such as "face", that both clips of a gesture metric must have. Results are skipped and counted if a clip
    lacks such a part.

    Every scored recording has the parts upper, hands, lower and root. The parts face and jaw_eyes may be absent."""


BUILT_IN: Final = (
    Measure(label="Fréchet gesture distance", stream="gesture", better="lower"),
    Measure(label="beat consistency", stream="gesture", better="higher"),
    Measure(label="L1 diversity", stream="gesture", unit="m"),
    Measure(label="semantic recall", stream="gesture", better="higher"),
    Measure(label="face MSE", stream="gesture", unit="m²"),
    Measure(label="face LVD", stream="gesture", unit="m/frame"),
    Measure(label="jaw rotation error", stream="gesture", unit="rad", better="lower"),
    Measure(label="jaw correlation", stream="gesture", better="higher"),
    Measure(label="expression correlation", stream="gesture", better="higher"),
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
"""Built-in metrics in the order of reports.

Face errors have no direction, because validation has no body model and cannot use them as ``--best-metric``.
"""

METRICS: Final[Registry[Metric]] = Registry("metric", "omniges.metrics", Metric)
"""Registry of the metrics that other packages and the running program add."""


def units(stream: str) -> dict[str, str]:
    """Return the units of the built-in metrics of a stream, by label, in the order of reports."""
    return {measure.label: measure.unit for measure in BUILT_IN if measure.stream == stream}


def register_metric(metric: Metric) -> None:
    """Add a metric to `evaluate` and validation for the rest of this process.

    Args:
        metric: The metric; its name must be new.

    Raises:
        UsageFault: A metric of this name exists, or a field is invalid. `needs` is invalid if it names an unknown part,
            or if it names any part for a stream other than gesture.
    """
    arguments.instance("metric", metric, Metric, "a Metric")
    arguments.text("label", metric.label)
    arguments.choice("stream", metric.stream, ("text", "audio", "gesture"))
    if metric.better is not None:
        arguments.choice("better", metric.better, get_args(Direction))
    if not callable(metric.of):
        raise arguments.refuse("of", "a function of a generated and a recorded clip", metric.of)
    if why := _wrong_needs(metric):
        raise UsageFault(f"metric {metric.name!r}: {why}")
    if metric.name in {measure.name for measure in BUILT_IN}:
        raise UsageFault(
            f"metric {metric.name!r}: expected another label than those of omniges, found one of them; choose another "
            "label"
        )
    METRICS.register(metric.name, metric)


def _wrong_needs(metric: Metric) -> str:
    """Return the reason why `needs` of a metric is invalid; return an empty text if `needs` is valid."""
    unknown = [part for part in metric.needs if part not in PARTS]
    if unknown:
        return f"needs: expected {', '.join(PARTS)}, found {unknown[0]!r}"
    if metric.needs and metric.stream != "gesture":
        return f"needs: expected none of stream {metric.stream!r}; only clips of gesture list their parts"
    return ""


def registered_metrics(stream: str | None = None) -> list[Metric]:
    """Return the metrics that scripts and other packages have added, sorted by name.

    Args:
        stream: Stream that the metrics score; None: all streams.

    Returns:
        The metrics.

    Raises:
        EnvironmentFault: A metric of an installed package has one of these faults: it cannot be loaded; its `needs` is
            invalid; its name differs from the name of its entry point; its name is that of a built-in metric.
    """
    found = {name: registered_metric(name) for name in sorted(METRICS.names())}
    return [metric for metric in found.values() if stream in {None, metric.stream}]


def registered_metric(name: str) -> Metric:
    """Return a metric that a script or another package has added.

    Args:
        name: Name of the metric.

    Returns:
        The metric.

    Raises:
        UsageFault: The name is unknown.
        EnvironmentFault: A metric of an installed package has one of these faults: it cannot be loaded; its `needs` is
            invalid; its name differs from the name of its entry point; its name is that of a built-in metric.
    """
    metric = METRICS.get(name)
    if metric.name != name or name in {measure.name for measure in BUILT_IN}:
        raise EnvironmentFault(
            f"metric {name!r}: expected a label that gives the name of the entry point and is not used by omniges, "
            f"found the label {metric.label!r}, which gives {metric.name!r}; rename the entry point or the label"
        )
    if why := _wrong_needs(metric):
        raise EnvironmentFault(f"metric {name!r}: {why}; update or uninstall its package")
    return metric
