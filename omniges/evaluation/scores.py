"""Input and output of scoring: results and recordings as arrays, and figures, each a corpus value with its interval.

Results come from files (`omniges.evaluation.results`) or straight from a model, as in validation. The unit of every
interval is the recording: several results of one recording are drawn together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError
from omniges.features.gesture import GestureClip, MotionArrays
from omniges.formats.textgrid import WordInterval
from omniges.metrics.clips import ClipValue, Interval, bootstrap, bootstrap_mean, shuffled_pairing, weighted_mean
from omniges.model.streams import StreamName
from omniges.model.tasks import TASKS
from omniges.shards.manifest import ManifestRow
from omniges.shards.present import BODY_PARTS
from omniges.shards.schema import Part

I64 = npt.NDArray[np.int64]
Row = Literal["generated", "shuffled", "recorded"]

ROWS: Final[tuple[Row, ...]] = ("generated", "shuffled", "recorded")
"""What a value is of: generated files; the same against another recording; the recordings themselves."""

NEVER_MADE: Final[tuple[Part, ...]] = ("jaw_eyes",)
"""Parts that no model has channels of."""
UNCONDITIONAL: Final = "made from no input, so no recording says what it should be"

_ADVICE: Final = ": leave this clip out"  # what metrics say to a caller, and what has been done here
_LONGER_S: Final = 5.0
"""A result that is longer than its recording by no more is cut; audio files are often longer than the motion."""


class Recordings(Protocol):
    """Recordings that results are held against: a shard folder, or windows in memory."""

    folder: Path  # as errors name them

    @property
    def rows(self) -> Sequence[ManifestRow]:
        """A row for each recording."""

    def waveform(self, row: ManifestRow) -> npt.NDArray[np.float32] | None:
        """Kept audio at 16 kHz (N,); None where there is none."""

    def array(self, row: ManifestRow, member: str) -> npt.NDArray[Any]:
        """An array: ``mel.npy`` or ``betas.npy``."""

    def gesture(self, row: ManifestRow) -> GestureClip:
        """Motion."""

    def words(self, row: ManifestRow) -> list[dict[str, Any]]:
        """Words with times."""

    def semantic(self, row: ManifestRow) -> list[dict[str, Any]] | None:
        """Semantic spans; None where there is no annotation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(ABC):
    """One generated result for one recording: facts at once, arrays when they are asked for."""

    task: str
    row: ManifestRow  # of the recording
    name: str
    seconds: float  # of the recording that were generated, as far as they are known without arrays
    seams: tuple[int, ...] = ()  # frames before which windows begin
    invalid_rotations: float | None = None  # share among those that the model gave
    absent: tuple[str, ...] = ()  # parts of its motion that were not made, which are at rest

    @property
    def key(self) -> str:
        """The recording's key."""
        return self.row.key

    @property
    def place(self) -> str:
        """The result as errors name it."""
        return self.name

    @property
    def unconditional(self) -> bool:
        """True if it was generated without a condition, so that no recording is its ground truth."""
        return not TASKS[self.task].conditions

    @abstractmethod
    def motion(self) -> MotionArrays:
        """Generated motion. Raises DataError for what cannot be read."""

    @abstractmethod
    def mel(self) -> tuple[npt.NDArray[np.float32], str]:
        """The generated log-mel (F, 64), and whether it is the model's own or that of the waveform."""

    @abstractmethod
    def spoken(self) -> tuple[list[WordInterval], bool]:
        """Generated words, and whether they have times; without, each is the whole text of a window."""

    def within(self, found: int, recorded: int, rate_hz: int) -> int:
        """The length that is scored, in frames: at most the recording's.

        Raises DataError for a result so much longer that it cannot be of this recording.
        """
        if found > recorded + _LONGER_S * rate_hz:
            raise DataError(
                f"{self.place}: {found / rate_hz:.1f} s found where the recording has {recorded / rate_hz:.1f} s: this "
                "is not what was generated for it"
            )
        return min(found, recorded)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resampling:
    """Bootstrap over recordings."""

    seed: int
    resamples: int


@dataclass(frozen=True, slots=True)
class Heading:
    """Metric and task that a figure belongs to."""

    metric: str
    unit: str
    row: Row = "generated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure(Heading):
    """One value of a metric, or the reason why it was not computed."""

    value: float | None
    low: float | None = None  # of the 95 % interval over recordings; None with fewer than two
    high: float | None = None
    resamples: int = 0  # draws that the interval is of
    recordings: int = 0
    results: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)  # results without a value, by reason
    why_not: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    by_recording: Mapping[str, float] = field(default_factory=dict)  # the value of each alone, where it has one


class Values:
    """Values of a metric, each of a result for a recording, and the results that have none."""

    def __init__(self) -> None:
        self.found: list[Any] = []
        self.keys: list[str] = []
        self.left_out: Counter[str] = Counter()

    def add(self, key: str, score: Callable[[], Any]) -> None:
        """A result's value, or the reason that the metric gives for having none."""
        try:
            self.keep(key, score())
        except DataError as error:
            self.leave_out(error)

    def keep(self, key: str, value: Any) -> None:
        """A result's value."""
        self.found.append(value)
        self.keys.append(key)

    def leave_out(self, reason: DataError | str) -> None:
        """A result that has no value."""
        text = str(reason)
        if isinstance(reason, DataError):  # metrics name the array first
            text = (text.partition(": ")[2] or text).removesuffix(_ADVICE)
        self.left_out[text] += 1

    @property
    def groups(self) -> dict[str, I64]:
        """Numbers of each recording's values, by its key, in order of their first value."""
        members: dict[str, list[int]] = {}
        for number, key in enumerate(self.keys):
            members.setdefault(key, []).append(number)
        return {key: np.array(numbers) for key, numbers in members.items()}


def absent(heading: Heading, why: str, left_out: Mapping[str, int] | None = None) -> Figure:
    """A figure that was not computed."""
    return Figure(**asdict(heading), value=None, why_not=why, left_out=dict(left_out or {}))


def figure_of_mean(
    heading: Heading, values: Values, how: Resampling, details: Mapping[str, Any] | None = None
) -> Figure:
    """The mean of results' values by weight; a recording whose results have no weight has no value."""
    weighted = Values()
    weighted.left_out.update(values.left_out)
    means: dict[str, ClipValue] = {}
    for key, group in values.groups.items():
        own: Sequence[ClipValue] = [values.found[number] for number in group if values.found[number].weight > 0]
        if len(own) < len(group):
            weighted.left_out["nothing in it to weigh"] += len(group) - len(own)
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
    """A statistic of numbers of values, such as a ratio of sums, of all and of each recording alone.

    ``centred``: see `bootstrap`; such a statistic, like a Fréchet distance, means nothing of one recording.
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


def with_recorded(results: Sequence[Result], target: StreamName) -> tuple[list[Result], list[str]]:
    """Return the results whose recordings have what a target is held against, and a remark that counts the others.

    Of gesture that is the whole body; a face is scored apart.
    """
    needed: tuple[Part, ...] = BODY_PARTS if target == "gesture" else (target,)
    found = [result for result in results if set(needed) <= set(result.row.present)]
    if len(found) == len(results):
        return found, []
    lost = {part for result in results for part in needed if part not in result.row.present}
    named = " or ".join(part for part in needed if part in lost)
    return found, [f"{len(results) - len(found)} of {len(results)} results left out: no {named} in their recordings"]


def nothing_recorded(target: StreamName, remarks: Sequence[str]) -> Scored:
    """Return the scores of results of which no recording says what they should be."""
    return Scored([absent(Heading(f"{target} metrics", ""), "; ".join(remarks))], {}, remarks)


@dataclass(frozen=True, slots=True)
class Scored:
    """Figures of a task, and how many seconds of each recording they are of."""

    figures: Sequence[Figure]
    seconds: Mapping[str, float]
    remarks: Sequence[str] = ()


def partners(keys: Sequence[str], seed: int) -> dict[str, str]:
    """Another recording for each, in one random cycle; none where there is only one."""
    if len(keys) < 2:
        return {}
    order = shuffled_pairing(len(keys), seed)
    return {key: keys[int(other)] for key, other in zip(keys, order, strict=True)}
