"""Inputs and outputs of scoring.

The inputs are results and recordings as arrays. Results are read from files (`omniges.evaluation.results`) or, in
validation, come directly from a model. The outputs are figures. A figure is one value of a metric with its confidence
interval. Intervals are computed by the bootstrap over recordings: a resample contains all results of a recording or
none of them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError
from omniges.features.gesture import GestureClip, MotionArrays
from omniges.features.timebase import MAX_AUDIO_LONGER_S
from omniges.formats.textgrid import WordInterval
from omniges.metrics.clips import ClipValue, Interval, bootstrap, bootstrap_mean, shuffled_pairing, weighted_mean
from omniges.metrics.registry import Metric, registered_metrics
from omniges.model.streams import StreamName
from omniges.model.tasks import TASKS
from omniges.registry import foreign
from omniges.shards.manifest import ManifestRow
from omniges.shards.present import BODY_PARTS
from omniges.shards.schema import MOTION_PARTS, Part

I64 = npt.NDArray[np.int64]
Row = Literal["generated", "shuffled", "recorded"]

ROWS: Final[tuple[Row, ...]] = ("generated", "shuffled", "recorded")
"""Rows of a report: results against their recordings, results against other recordings, and recordings only."""

UNCONDITIONAL: Final = "generated without a condition, so there is no ground truth"

_ADVICE: Final = "; leave this clip out"  # end of errors of metrics; removed, because the clip is already left out


class Recordings(Protocol):
    """Interface of the recordings that results are compared with: a shard folder, or windows in memory."""

    folder: Path  # shown in error messages as the name of the recordings

    @property
    def rows(self) -> Sequence[ManifestRow]:
        """Manifest rows, one for each recording."""

    def waveform(self, row: ManifestRow) -> npt.NDArray[np.float32] | None:
        """Return the N audio samples (N,) of a recording at 16 kHz; None if the shards contain no audio of it."""

    def array(self, row: ManifestRow, member: str) -> npt.NDArray[Any]:
        """Return ``mel.npy`` or ``betas.npy`` of a recording.

        Args:
            row: Manifest row of the recording.
            member: Name of the member, ``mel.npy`` or ``betas.npy``.

        Returns:
            Content of the member as an array.
        """

    def gesture(self, row: ManifestRow) -> GestureClip:
        """Return the motion of a recording."""

    def words(self, row: ManifestRow) -> list[dict[str, Any]]:
        """Return the words of a recording, with their times in seconds."""

    def semantic(self, row: ManifestRow) -> list[dict[str, Any]] | None:
        """Return the semantic spans of a recording; None if there is no annotation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(ABC):
    """One generated result for one recording. Its arrays are read when they are needed."""

    task: str
    row: ManifestRow  # manifest row of the recording
    name: str
    seconds: float  # duration of the result, at most that of the recording; if unknown, that of the recording
    seams: tuple[int, ...] = ()  # first frames of windows
    invalid_rotations: float | None = None  # share of invalid rotations in the model's output; None: unknown
    absent: tuple[str, ...] = ()  # body parts that were not generated; they are at rest

    @property
    def key(self) -> str:
        """Key of the recording."""
        return self.row.key

    @property
    def place(self) -> str:
        """Name of the result, shown in error messages."""
        return self.name

    @property
    def unconditional(self) -> bool:
        """True if the result was generated without a condition. Such a result has no ground truth."""
        return not TASKS[self.task].conditions

    @abstractmethod
    def motion(self) -> MotionArrays:
        """Return the generated motion; raise DataError if a file cannot be read."""

    @abstractmethod
    def mel(self) -> tuple[npt.NDArray[np.float32], str]:
        """Return the generated log-mel (F, 64) of F frames, and its origin, such as "the mel of the waveform"."""

    @abstractmethod
    def spoken(self) -> tuple[list[WordInterval], bool]:
        """Return the generated words, and whether they have times. Without times, each item is the text of a window."""

    def within(self, found: int, recorded: int, rate_hz: int) -> int:
        """Return the length to score: the shorter of the result and its recording.

        Args:
            found: Length of the result in frames.
            recorded: Length of the recording in frames.
            rate_hz: Frames per second.

        Returns:
            The length in frames.

        Raises:
            DataError: The result is too long to belong to this recording.
        """
        if found > recorded + MAX_AUDIO_LONGER_S * rate_hz:
            raise DataError(
                f"{self.place}: expected about {recorded / rate_hz:.1f} s, the length of the recording, found "
                f"{found / rate_hz:.1f} s, so it was not generated for this recording; give the shards it was "
                "generated for"
            )
        return min(found, recorded)


AnyResult = TypeVar("AnyResult", bound=Result)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampling:
    """Seed and number of resamples of the bootstrap over recordings."""

    seed: int
    resamples: int


@dataclass(frozen=True, slots=True)
class Heading:
    """Heading of a figure: name of the metric, unit, and row of the report."""

    metric: str
    unit: str
    row: Row = "generated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure(Heading):
    """One value of a metric with its confidence interval, or the reason why the value was not computed."""

    value: float | None
    low: float | None = None  # lower end of the 95 % interval over recordings; None: no interval
    high: float | None = None
    resamples: int = 0  # number of bootstrap resamples for the interval
    recordings: int = 0
    results: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)  # number of results without a value, by reason
    why_not: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    by_recording: Mapping[str, float] = field(default_factory=dict)  # value for each recording alone, by key


class Values:
    """Values of one metric, each with its recording's key, and counts of the results without a value, by reason."""

    def __init__(self) -> None:
        self.found: list[Any] = []
        self.keys: list[str] = []
        self.left_out: Counter[str] = Counter()

    def add(self, key: str, score: Callable[[], Any]) -> None:
        """Compute and add the value of a result. If `score` raises DataError, count the result as left out.

        Args:
            key: Key of the recording.
            score: Function that returns the value or raises DataError.
        """
        try:
            self.keep(key, score())
        except DataError as error:
            self.leave_out(error)

    def keep(self, key: str, value: Any) -> None:
        """Add a result's value.

        Args:
            key: Key of the recording.
            value: Data from which the figure is computed, such as a `ClipValue`.
        """
        self.found.append(value)
        self.keys.append(key)

    def leave_out(self, reason: DataError | str) -> None:
        """Count a result without a value: add 1 to the number of results left out for this reason."""
        text = str(reason)
        if isinstance(reason, DataError):  # errors of metrics begin with the name of an array
            text = (text.partition(": ")[2] or text).removesuffix(_ADVICE)
        self.left_out[text] += 1

    @property
    def groups(self) -> dict[str, I64]:
        """Indices of the values of each recording, by key. Keys are in the order in which they were first added."""
        members: dict[str, list[int]] = {}
        for number, key in enumerate(self.keys):
            members.setdefault(key, []).append(number)
        return {key: np.array(numbers) for key, numbers in members.items()}


def absent(heading: Heading, why: str, left_out: Mapping[str, int] | None = None) -> Figure:
    """Return a figure with a reason in place of a value.

    Args:
        heading: Metric, unit and row.
        why: The reason.
        left_out: Number of results without a value, by reason.

    Returns:
        The figure.
    """
    return Figure(**asdict(heading), value=None, why_not=why, left_out=dict(left_out or {}))


def figure_of_mean(
    heading: Heading, values: Values, how: Resampling, details: Mapping[str, Any] | None = None
) -> Figure:
    """Compute the weighted mean of the values over all results, and for each recording alone.

    Results whose value has weight 0 count as left out.

    Args:
        heading: Metric, unit and row.
        values: The values; each is a `ClipValue`.
        how: Seed and number of resamples of the bootstrap over recordings.
        details: Details to store in the figure.

    Returns:
        The figure.
    """
    weighted = Values()
    weighted.left_out.update(values.left_out)
    means: dict[str, ClipValue] = {}
    for key, group in values.groups.items():
        own: Sequence[ClipValue] = [values.found[number] for number in group if values.found[number].weight > 0]
        if len(own) < len(group):
            weighted.left_out["its weight is 0"] += len(group) - len(own)
        if own:
            means[key] = ClipValue(weighted_mean(own), sum(one.weight for one in own))
        for one in own:
            weighted.keep(key, one)
    if not means:
        return _nothing(heading, weighted)
    clips = list(means.values())
    found = clips[0].value if len(clips) < 2 else bootstrap_mean(clips, seed=how.seed, resamples=how.resamples)
    return _figure(heading, weighted, found, details, {key: clip.value for key, clip in means.items()})


def figure_of_statistic(
    heading: Heading,
    values: Values,
    statistic: Callable[[I64], float],
    how: Resampling,
    details: Mapping[str, Any] | None = None,
    *,
    centred: bool = False,
) -> Figure:
    """Compute a statistic of the values, such as a ratio of sums, over all results and for each recording alone.

    Args:
        heading: Metric, unit and row.
        values: The values.
        statistic: Function that takes indices of values, which may repeat, and returns the statistic.
        how: Seed and number of resamples of the bootstrap over recordings.
        details: Details to store in the figure.
        centred: Centre the interval (see `bootstrap`), and do not compute the statistic for single recordings. Use it
            for statistics such as a Fréchet distance.

    Returns:
        The figure.
    """
    groups = values.groups
    if not groups:
        return _nothing(heading, values)
    alone = {} if centred else {key: statistic(group) for key, group in groups.items()}
    members = list(groups.values())
    found: Interval | float
    if len(members) < 2:
        found = statistic(members[0])
    else:
        found = bootstrap(
            len(members),
            lambda drawn: statistic(np.concatenate([members[int(k)] for k in drawn])),
            seed=how.seed,
            resamples=how.resamples,
            centred=centred,
        )
    return _figure(heading, values, found, details, alone)


def _nothing(heading: Heading, values: Values) -> Figure:
    reasons = "; ".join(f"{count} × {reason}" for reason, count in values.left_out.most_common())
    return absent(heading, reasons or "no results", values.left_out)


def _figure(
    heading: Heading,
    values: Values,
    found: Interval | float,
    details: Mapping[str, Any] | None,
    by_recording: Mapping[str, float],
) -> Figure:
    of = ("value", "low", "high", "resamples")
    measured = {name: getattr(found, name) for name in of} if isinstance(found, Interval) else {"value": found}
    return Figure(
        **asdict(heading),
        **measured,
        recordings=len(set(values.keys)),
        results=len(values.found),
        left_out=dict(values.left_out),
        details=dict(details or {}),
        by_recording=by_recording,
    )


def with_recorded(results: Sequence[AnyResult], target: StreamName) -> tuple[list[AnyResult], list[str]]:
    """Return the results whose recordings have the target stream, and a warning if other results are left out.

    For gesture, a recording must have upper, hands, lower and root. The face is not checked, because only
    the face metrics need it.

    Args:
        results: The results.
        target: The target stream.

    Returns:
        The results to score, and warnings.
    """
    needed: tuple[Part, ...] = BODY_PARTS if target == "gesture" else (target,)
    found = [result for result in results if set(needed) <= set(result.row.present)]
    if len(found) == len(results):
        return found, []
    lost = {part for result in results for part in needed if part not in result.row.present}
    named = " or ".join(part for part in needed if part in lost)
    return found, [f"{len(results) - len(found)} of {len(results)} results left out: no {named} in their recordings"]


@dataclass(frozen=True, slots=True)
class Scored:
    """Result of scoring one task: figures, scored seconds of each recording (by key), and warnings."""

    figures: Sequence[Figure]
    seconds: Mapping[str, float]
    warnings: Sequence[str] = ()


def partners(keys: Sequence[str], seed: int) -> dict[str, str]:
    """Assign another recording to each recording: the next recording in a random cycle through all recordings.

    Args:
        keys: Keys of the recordings.
        seed: Seed of the cycle.

    Returns:
        For each key, the key of the assigned recording; empty if there are fewer than two recordings.
    """
    if len(keys) < 2:
        return {}
    order = shuffled_pairing(len(keys), seed)
    return {key: keys[int(other)] for key, other in zip(keys, order, strict=True)}


# --- metrics that scripts and other packages add


class RegisteredScores:
    """Accumulator of the metrics that scripts and other packages add, for one stream.

    A metric has either one value for each clip, or one value for all clips together. The accumulator stores the clips
    only if a metric has one value for all clips together.
    """

    def __init__(self, stream: str, *, unconditional: bool) -> None:
        self._metrics = registered_metrics(stream)
        self._unconditional = unconditional
        self._values = {(metric.name, row): Values() for metric in self._metrics for row in ROWS}

    @property
    def wanted(self) -> bool:
        """True if `add` needs clips: a metric was registered, and the results were generated from a condition."""
        return bool(self._metrics) and not self._unconditional

    def add(self, row: Row, key: str, generated: Any, recorded: Any) -> None:
        """Score a pair of clips.

        If `row` is ``generated``, the recorded clip is also compared with itself, once for each recording. This score
        is added to row ``recorded``. Metrics that have one value for all clips together have no row ``recorded``.

        Args:
            row: Row of the report to which the score is added.
            key: Key of the result's recording.
            generated: Clip of the result.
            recorded: Clip to compare with. For row ``shuffled``, it is a clip of another recording.
        """
        for metric in self._metrics:
            self._add(metric, row, key, generated, recorded)
            if row == "generated" and not metric.over_set and key not in self._values[metric.name, "recorded"].keys:
                self._add(metric, "recorded", key, recorded, recorded)

    def _add(self, metric: Metric, row: Row, key: str, generated: Any, recorded: Any) -> None:
        values = self._values[metric.name, row]
        if why := _lacking(metric, generated, recorded):
            values.leave_out(why)
        elif metric.over_set:
            values.keep(key, (generated, recorded))
        else:
            values.add(key, lambda: ClipValue(_scored(metric, generated, recorded), 1.0))

    def figures(self, how: Resampling) -> list[Figure]:
        """Return the figures of all metrics: the mean over results, or the one value for all clips together."""
        found = []
        for metric in self._metrics:
            if self._unconditional:
                found.append(absent(Heading(metric.label, metric.unit), UNCONDITIONAL))
            for row in ROWS:
                values = self._values[metric.name, row]
                if values.found or values.left_out:
                    heading = Heading(metric.label, metric.unit, row)
                    found.append(
                        _figure_of_set(metric, heading, values, how)
                        if metric.over_set
                        else figure_of_mean(heading, values, how)
                    )
        return found


def _lacking(metric: Metric, generated: Any, recorded: Any) -> str:
    """Return a text that names a part that the metric needs and one of the clips lacks; "" if no part is missing."""
    for part in metric.needs:
        if part not in recorded.present:
            return f"no {part} in the recording"
        if part in MOTION_PARTS and part not in generated.present:
            return f"no {part} in the result"
    return ""


def _figure_of_set(metric: Metric, heading: Heading, values: Values, how: Resampling) -> Figure:
    def of_set(chosen: I64) -> float:
        generated, recorded = ([values.found[int(k)][side] for k in chosen] for side in (0, 1))
        return _scored(metric, generated, recorded)

    try:
        return figure_of_statistic(heading, values, of_set, how, centred=True)
    except DataError as error:
        return absent(heading, str(error))


def _scored(metric: Metric, generated: Any, recorded: Any) -> float:
    """Compute the value of a metric.

    Raise DataError for the values None, NaN and infinity. Raise EnvironmentFault if the metric's function fails.
    """
    with foreign(f"metric {metric.label!r}", "scoring"):
        value = metric.of(generated, recorded)
        finite = value is None or math.isfinite(value)
    if value is None:
        raise DataError(f"{metric.label}: expected a value, found none")
    if not finite:
        raise DataError(f"{metric.label}: expected a finite number, found {value}")
    return float(value)
