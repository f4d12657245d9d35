"""What the supervisor and a worker process say to each other over the worker's standard input and output.

To the worker: one line of JSON a message, the settings first, then a recording each. Back: for each recording a
length, a JSON head, and for a sample its statistics and its segment as raw bytes. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from omniges.errors import Finding
from omniges.pipeline.discover import Recording, SourceFile
from omniges.pipeline.settings import Converted, ConvertSettings, Cut, Rejected
from omniges.pipeline.stems import StemFields
from omniges.shards.manifest import ManifestRow, row_from_json
from omniges.shards.statistics import Partial

__all__ = [
    "Sample",
    "decode_recording",
    "decode_settings",
    "encode_recording",
    "encode_settings",
    "receive",
    "send",
]

_LENGTH_BYTES: Final = 8
_MAX_HEAD_BYTES: Final = 64 << 20

Read = Callable[[memoryview], None]  # fills the whole view, or raises EOFError


@dataclass(frozen=True, slots=True)
class Sample:
    """A converted recording on the supervisor's side; `row` still lacks its shard and the segment's offset."""

    row: ManifestRow
    segment: memoryview
    notes: tuple[Finding, ...]
    partials: tuple[Partial, Partial] | None
    words: Counter[str]
    cut: Cut


def encode_settings(settings: ConvertSettings) -> bytes:
    """One line for the worker's standard input."""
    return json.dumps(asdict(settings)).encode() + b"\n"


def decode_settings(line: bytes) -> ConvertSettings:
    """The inverse of `encode_settings`."""
    return ConvertSettings(**json.loads(line))


def encode_recording(recording: Recording) -> bytes:
    """One line for the worker's standard input."""
    row = asdict(recording) | {"notes": [note.as_json() for note in recording.notes]}
    return json.dumps(row).encode() + b"\n"


def decode_recording(line: bytes) -> Recording:
    """The inverse of `encode_recording`."""
    row: dict[str, Any] = json.loads(line)
    row["fields"] = StemFields(**row["fields"])
    row["files"] = {modality: SourceFile(**source) for modality, source in row["files"].items()}
    row["notes"] = tuple(Finding.from_json(note) for note in row["notes"])
    return Recording(**row)


def send(descriptor: int, outcome: Converted | Rejected) -> None:
    """Write an outcome to a pipe."""
    buffers: list[bytes | memoryview] = []
    if isinstance(outcome, Rejected):
        head: dict[str, Any] = {"findings": _findings(outcome.findings), "sources": outcome.sources}
    else:
        partials = outcome.partials or ()
        head = {
            "row": asdict(outcome.row),
            "notes": _findings(outcome.notes),
            "words": outcome.words,
            "cut": asdict(outcome.cut),
            "partials": [(partial.count, partial.rows.shape) for partial in partials],
            "segment": outcome.segment.size,
        }
        buffers = [*(partial.rows.tobytes() for partial in partials), *outcome.segment.buffers]
    text = json.dumps(head).encode()
    _write_all(descriptor, [len(text).to_bytes(_LENGTH_BYTES, "little"), text, *buffers])


def _findings(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    return [finding.as_json() for finding in findings]


def _write_all(descriptor: int, buffers: Sequence[bytes | memoryview]) -> None:
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        while len(view):
            view = view[os.write(descriptor, view) :]


def receive(read: Read) -> Sample | Rejected:
    """Read an outcome; `read` fills a buffer or raises EOFError."""
    length = int.from_bytes(_fill(read, _LENGTH_BYTES), "little")
    if length > _MAX_HEAD_BYTES:
        raise EOFError(f"a worker announced a head of {length} bytes")
    head: dict[str, Any] = json.loads(bytes(_fill(read, length)))
    if "findings" in head:
        sources = {name: (path, digest) for name, (path, digest) in head["sources"].items()}
        return Rejected(tuple(Finding.from_json(row) for row in head["findings"]), sources)
    partials = [Partial(count, _array(read, shape)) for count, shape in head["partials"]]
    return Sample(
        row=row_from_json(head["row"]),
        segment=_fill(read, head["segment"]),
        notes=tuple(Finding.from_json(row) for row in head["notes"]),
        partials=(partials[0], partials[1]) if partials else None,
        words=Counter(head["words"]),
        cut=Cut(**head["cut"]),
    )


def _fill(read: Read, size: int) -> memoryview:
    # np.empty leaves the pages untouched until they are read into; bytearray would clear them first.
    view = memoryview(np.empty(size, dtype=np.uint8).data)
    read(view)
    return view


def _array(read: Read, shape: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.frombuffer(_fill(read, 8 * int(np.prod(shape))), dtype=np.float64).reshape(shape)
