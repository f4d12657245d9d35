"""The pool of worker processes that convert recordings, and the encoding of its tasks and answers."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from omniges.errors import EnvironmentFault, Finding, Problem, fault_of_machine
from omniges.pipeline.corpora.registry import CORPORA
from omniges.pipeline.discover import Recording, SourceFile
from omniges.pipeline.labels import StemFields
from omniges.pipeline.settings import ConvertSettings, Cut, Rejected, Sample
from omniges.shards.dataset import STATISTICS_ROWS, Partial
from omniges.shards.manifest import row_from_json
from omniges.workers import ENVIRONMENT, Answer, Lost, Pool, Worker, worker_command

if TYPE_CHECKING:
    from omniges.shards.tar import Segment


WORKER_COMMAND: Final = worker_command("omniges.pipeline.worker")
# A worker often allocates arrays of a few megabytes. With these variables, malloc keeps freed memory for later arrays,
# because returning it to the kernel each time would be slower.
WORKER_ENVIRONMENT: Final = ENVIRONMENT | {
    "MALLOC_MMAP_THRESHOLD_": str(16 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "MALLOC_ARENA_MAX": "1",
}
_PIPE_BYTES: Final = 1 << 20

Outcome = Sample[memoryview] | Rejected | Lost


def start_worker(setup: dict[str, Any], command: Sequence[str] = WORKER_COMMAND) -> Worker:
    """Start a process that converts recordings.

    Args:
        setup: The fields of `ConvertSettings`, as a dictionary.
        command: Command line of the process.

    Returns:
        The started worker process.
    """
    return Worker(command, setup, environment=WORKER_ENVIRONMENT, pipe_bytes=_PIPE_BYTES)


class ConvertPool(Pool[Recording, Sample[memoryview] | Rejected]):
    """Pool of workers that convert recordings."""

    def __init__(
        self,
        settings: ConvertSettings,
        workers: int,
        deadline_s: float,
        on_death: Callable[[Recording, str, int], None],
        command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        super().__init__(
            partial(start_worker, asdict(settings), command),
            encode_recording,
            decode_outcome,
            workers=workers,
            deadline_s=deadline_s,
            size=lambda recording: recording.size,
            on_death=on_death,
        )


def prepare(setup: dict[str, Any]) -> Callable[[Any], Answer]:
    """Return the function that converts the recording of a task and returns the answer.

    The returned function raises only exceptions that the machine causes. If memory is exhausted, the worker exits and
    the pool repeats the task. Another fault of the machine, such as a missing package, ends the run. Exceptions that
    the machine does not cause become a finding about the recording in the answer.
    """
    from omniges.pipeline.convert import convert  # noqa: PLC0415 - decoders, which the pool itself does not need

    settings = ConvertSettings(**setup)
    corpus_of = functools.cache(CORPORA.get)

    def answer(task: dict[str, Any]) -> Answer:
        recording = decode_recording(task)
        try:
            outcome = convert(recording, settings, corpus_of(recording.corpus).take)
        except (EnvironmentFault, MemoryError, ImportError, SystemError):
            raise  # not caused by the recording; imports and C code raise these if memory is short
        except Exception as error:  # an unexpected error in one recording must not affect other recordings
            if fault_of_machine(error) is not None:
                raise
            found = f"{type(error).__name__}: {error}".replace("\n", " ")
            outcome = Rejected((Finding(Problem("internal-error", found), recording.stem),), {})
        return _encode_outcome(outcome)

    return answer


def encode_recording(recording: Recording) -> dict[str, Any]:
    """Convert a recording to a dictionary of JSON values, the form in which a worker receives it."""
    return asdict(recording) | {"notes": [note.as_json() for note in recording.notes]}


def decode_recording(row: dict[str, Any]) -> Recording:
    """Return the recording that `encode_recording` converted to a dictionary."""
    row["fields"] = StemFields(**row["fields"])
    row["files"] = {modality: SourceFile(**source) for modality, source in row["files"].items()}
    row["notes"] = tuple(map(Finding.from_json, row["notes"]))
    return Recording(**row)


def _encode_outcome(outcome: Sample[Segment] | Rejected) -> Answer:
    """Return a worker's answer: JSON, then the statistics and the sample's tar members as raw bytes."""
    if isinstance(outcome, Rejected):
        return {"findings": [finding.as_json() for finding in outcome.findings], "sources": outcome.sources}, ()
    partials = outcome.partials or ()
    head = {
        "row": asdict(outcome.row),
        "notes": [finding.as_json() for finding in outcome.notes],
        "words": outcome.words,
        "cut": asdict(outcome.cut),
    }
    return head, [*((partial.rows.tobytes(),) for partial in partials), outcome.segment.buffers]


def decode_outcome(head: dict[str, Any], buffers: list[Any]) -> Sample[Any] | Rejected:
    """Return the sample or the rejected recording that a worker's answer describes.

    Args:
        head: JSON of the answer.
        buffers: Statistics as bytes, then the tar members of the sample, which are not decoded. Empty for a rejected
            recording.

    Returns:
        The sample or the rejected recording.
    """
    if "findings" in head:
        sources = {name: (path, digest) for name, (path, digest) in head["sources"].items()}
        return Rejected(tuple(map(Finding.from_json, head["findings"])), sources)
    *statistics, segment = buffers
    partials = tuple(Partial(np.frombuffer(data, np.float64).reshape(STATISTICS_ROWS, -1)) for data in statistics)
    return Sample(
        row=row_from_json(head["row"]),
        segment=segment,
        notes=tuple(map(Finding.from_json, head["notes"])),
        partials=partials or None,
        words=Counter(head["words"]),
        cut=Cut(**head["cut"]),
    )
