"""Interface of condition streams. A stream computes an array for a window of a recording, and a vector from the array.

Processes that load batches compute the arrays without torch. The vectors are computed by the module that `encoder`
creates; only this method imports torch. docs/explanation/model.md, "Condition streams", explains how the model uses the
vector.

A window is a range of a recording, a whole number of ticks of 0.1 s. Shape letters: B batch, W width of the tokens in
the model's transformer, ``*shape`` all sizes in `ConditionStream.shape`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt

from omniges.errors import EnvironmentFault, UsageFault
from omniges.features.timebase import TICKS_PER_SECOND
from omniges.registry import foreign

if TYPE_CHECKING:
    from torch import nn

F32 = npt.NDArray[np.float32]
Array = npt.NDArray[Any]
T = TypeVar("T")
Content = Literal["gesture", "mel", "words"]
"""Contents of a recording that a stream may read, in addition to labels."""
STREAM_OF: Final[Mapping[Content, str]] = {"gesture": "gesture", "mel": "audio", "words": "text"}
"""Generated stream (gesture, audio or text) of each content."""
ABSENT: Final = "none"
"""Text on the command line that means no value."""
MIN_WORD_S: Final = 0.5 / TICKS_PER_SECOND
"""Shortest part of a word inside a window, in seconds (half a tick). A word with less does not belong to the window."""


def within(spans: Iterable[Mapping[str, Any]], first_tick: int, ticks: int, min_s: float) -> list[dict[str, Any]]:
    """Return the time spans that overlap a window by at least `min_s`, clipped to the window.

    Args:
        spans: Words or semantic spans with ``start`` and ``end`` in seconds of the recording.
        first_tick: Start of the window, in ticks of 0.1 s.
        ticks: Length of the window in ticks.
        min_s: Shortest overlap to keep, in seconds.

    Returns:
        The spans, with ``start`` and ``end`` in seconds from the window's start, rounded to milliseconds.
    """
    start_s, seconds = first_tick / TICKS_PER_SECOND, ticks / TICKS_PER_SECOND
    found = []
    for span in spans:
        start, end = round(max(0.0, span["start"] - start_s), 3), round(min(seconds, span["end"] - start_s), 3)
        if end - start > min_s - 1e-9:
            found.append({**span, "start": start, "end": end})
    return found


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """Properties of the training set. A condition stream can learn from them before the first training step."""

    labels: Mapping[str, tuple[str, ...]]
    """For each label in `ConditionStream.labels`, the sorted values that occur in the train clips."""
    statistics: Mapping[str, Any]
    """stats.json: mean, std, min and max of ``gesture`` (415,) and ``mel`` (64,), and more."""


@dataclass(frozen=True, slots=True)
class Recording:
    """Labels of one recording, and functions that read its gesture, mel and words.

    The dictionaries `labels` and `contents` have no entry for a label or content that the recording lacks.
    """

    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels by name, such as emotion, scenario, ``speaker`` and ``language``."""
    contents: Mapping[Content, Callable[[int, int], Any]] = field(default_factory=dict)
    """Functions of (first tick, number of ticks) that read a content of a window, by content."""

    def gesture(self, first_tick: int, ticks: int) -> F32:
        """Return the gesture channels of a window, as stored in the shards.

        Args:
            first_tick: Start of the window, in ticks of 0.1 s.
            ticks: Length of the window in ticks.

        Returns:
            Channels (3 · ticks, 415); absent channels are NaN.
        """
        return np.asarray(self.contents["gesture"](first_tick, ticks))

    def mel(self, first_tick: int, ticks: int) -> F32:
        """Return the log-mel frames of a window.

        Args:
            first_tick: Start of the window, in ticks of 0.1 s.
            ticks: Length of the window in ticks.

        Returns:
            Frames (10 · ticks, 64).
        """
        return np.asarray(self.contents["mel"](first_tick, ticks))

    def words(self, first_tick: int, ticks: int) -> list[dict[str, Any]]:
        """Return the words of a window.

        Args:
            first_tick: Start of the window, in ticks of 0.1 s.
            ticks: Length of the window in ticks.

        Returns:
            A dictionary for each word: ``word``, and ``start`` and ``end`` in seconds from the window's start. Words
            are clipped to the window.
        """
        return within(self.contents["words"](first_tick, ticks), first_tick, ticks, MIN_WORD_S)


def labels_of(labels: Mapping[str, str], speaker: str | None, language: str | None) -> dict[str, str]:
    """Return the labels of a recording, including its speaker and language.

    Args:
        labels: Labels in the metadata of the recording, by name.
        speaker: Name of the recording's speaker, or None.
        language: Language of the recording, or None.

    Returns:
        Labels by name. Labels without a value are left out.
    """
    every = {**labels, "speaker": speaker, "language": language}
    return {name: value for name, value in every.items() if value}


class ConditionStream(ABC):
    """Base class of condition streams. An instance contains values that it learned from the training set."""

    name: ClassVar[str]
    """Lower-case letters, digits and ``_``; the name that commands and checkpoints use."""
    labels: ClassVar[tuple[str, ...]] = ()
    """Labels that the stream reads; ``speaker`` and ``language`` count as labels."""
    reads: ClassVar[tuple[Content, ...]] = ()
    """Other contents of a recording that the stream reads."""
    shape: tuple[int, ...] = ()
    """Shape of a window's array; it does not depend on the window's length."""
    dtype: str = "<f4"

    @classmethod
    @abstractmethod
    def learn(cls, facts: TrainingFacts) -> Self:
        """Create the stream from properties of the training set.

        Args:
            facts: Labels and statistics of the training set.

        Returns:
            The stream.

        Raises:
            UsageFault: The training set has no data from which the stream can learn.
        """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Return the learned values as JSON for a checkpoint."""

    @classmethod
    @abstractmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """Create the stream from the values that `settings` returned."""

    @abstractmethod
    def value(self, recording: Recording, first_tick: int, ticks: int) -> Array | None:
        """Compute the array of a window from a recording.

        Args:
            recording: Labels and contents of the sample.
            first_tick: Start of the window, in ticks of 0.1 s.
            ticks: Length of the window in ticks.

        Returns:
            Array (*shape). None, NaN or infinity mean that the recording has no value.
        """

    @abstractmethod
    def parse(self, value: Any) -> Array:
        """Convert a user's value to an array (*shape).

        Args:
            value: Text of ``--condition``, or a Python value.

        Returns:
            Array (*shape) in the form that the encoder expects.

        Raises:
            UsageFault: The value is unknown; the message lists the known values.
        """

    @abstractmethod
    def shown(self, array: Array) -> Any:
        """Convert an array (*shape) to a value that JSON can represent; the inverse of `parse`."""

    @abstractmethod
    def encoder(self, width: int) -> nn.Module:
        """Create a new module that maps arrays (B, *shape) to vectors (B, W)."""


def full_name(stream: ConditionStream) -> str:
    """Return a text for errors that names a stream and its class."""
    return f"condition stream {stream.name} ({type(stream).__module__}:{type(stream).__qualname__})"


def window_value(stream: ConditionStream, recording: Recording, first_tick: int, ticks: int) -> Array | None:
    """Compute a stream's array of a window, and check the array.

    Args:
        stream: A stream of the model.
        recording: Labels and contents of the sample.
        first_tick: Start of the window, in ticks of 0.1 s.
        ticks: Length of the window in ticks.

    Returns:
        Array (*shape) of the declared type, or None if the recording has no value.

    Raises:
        EnvironmentFault: A method of the stream raises an exception that is not an OmnigesError, or returns an array
            of another shape or type.
    """
    if not recording.contents.keys() >= set(stream.reads):
        return None
    with foreign(full_name(stream), "computing the value of a window"):
        value = stream.value(recording, first_tick, ticks)
        return None if value is None else _checked(stream, value)


def parsed_value(stream: ConditionStream, value: Any) -> Array | None:
    """Convert a user's value to an array of a stream, and check the array.

    Args:
        stream: A stream of the model.
        value: Text of ``--condition``, or a Python value; None and ``none`` mean no value.

    Returns:
        Array (*shape) of the declared type, or None for no value.

    Raises:
        UsageFault: The value is unknown, or contains NaN or infinity.
        EnvironmentFault: A method of the stream raises an exception that is not an OmnigesError, or returns an array
            of another shape or type.
    """
    if value is None or (isinstance(value, str) and value == ABSENT):
        return None
    with foreign(full_name(stream), f"reading the value {value!r:.80}"):
        found = _checked(stream, stream.parse(value))
    if found is None:
        raise UsageFault(
            f"{stream.name} {value!r:.80}: expected finite numbers, found NaN or infinity; correct the value, or "
            "leave the condition out"
        )
    return found


def _checked(stream: ConditionStream, value: Array) -> Array | None:
    array = np.asarray(value)
    if array.shape != stream.shape or not np.can_cast(array.dtype, stream.dtype, "same_kind"):
        expected, found = f"{stream.shape} {stream.dtype}", f"{array.shape} {array.dtype.str}"
        raise EnvironmentFault(
            f"{full_name(stream)}: expected arrays {expected}, found {found}; report the error to its authors"
        )
    array = array.astype(stream.dtype)
    return array if np.isfinite(array).all() else None


ValueOf = Callable[[int, int], Array | None]
"""Function of (first tick, number of ticks) that returns the array of a window; None means no value."""


def constant(value: T) -> Callable[[int, int], T]:
    """Return a function of (first tick, ticks) that returns the same value for every window."""
    return lambda _first_tick, _ticks: value


def stacked(values: Sequence[Array | None]) -> tuple[Array, npt.NDArray[np.bool_]] | None:
    """Stack the arrays of B windows; return the stack (B, *shape) and a mask (B,) that is True for present values.

    Absent values become zeros. If all values are absent, return None.
    """
    first = next((value for value in values if value is not None), None)
    if first is None:
        return None
    nothing = np.zeros_like(first)
    return np.stack([nothing if value is None else value for value in values]), np.array(
        [value is not None for value in values]
    )
