"""What scoring takes and gives: results as arrays, recordings as arrays, figures.

Results come from files (`omniges.evaluation.results`) or straight from a model, as in validation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError
from omniges.evaluation.statistics import Figure
from omniges.features.gesture import GestureClip, MotionArrays
from omniges.formats.textgrid import WordInterval
from omniges.metrics.clips import shuffled_pairing
from omniges.model.tasks import TASKS
from omniges.shards.manifest import ManifestRow

_LONGER_S: Final = 5.0
"""A result that is longer than its recording by no more is cut; audio files are often longer than the motion."""

UNCONDITIONAL: Final = "made from no input, so no recording says what it should be"


class Recordings(Protocol):
    """Recordings that results are held against: a shard folder, or windows in memory."""

    folder: Path  # as errors name them

    @property
    def rows(self) -> Sequence[ManifestRow]:
        """A row for each recording."""

    def member(self, row: ManifestRow, member: str) -> bytes:
        """The bytes of a member that is no array."""

    def array(self, row: ManifestRow, member: str) -> npt.NDArray[Any]:
        """An array: ``mel.npy``, ``betas.npy``, and ``audio.npy`` where it is a member."""

    def gesture(self, row: ManifestRow) -> GestureClip:
        """Motion."""

    def words(self, row: ManifestRow) -> list[dict[str, Any]]:
        """Words with times."""

    def semantic(self, row: ManifestRow) -> list[dict[str, Any]] | None:
        """Semantic spans; None where there is no annotation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result(ABC):
    """What was generated for one recording, once: facts that are known at once, and arrays when they are asked for."""

    task: str
    row: ManifestRow  # of the recording
    name: str
    seconds: float  # of the recording that were generated, as far as they are known without arrays
    seams: tuple[int, ...] = ()  # frames before which windows begin
    invalid_rotations: float | None = None  # share among those that the model gave

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
        """Whether it was made from nothing, so that no recording says what it should be."""
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
