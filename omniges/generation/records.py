"""Content of the record NAME.json, which describes a generated result.

The module also reads the words of a result from its TextGrid. It does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from omniges.errors import RecordingFault
from omniges.features.channels import WITH_JAW_EYES
from omniges.features.timebase import LONGEST_S, TICKS_PER_SECOND
from omniges.formats.textgrid import WordInterval, decode_words
from omniges.model.tasks import TASKS
from omniges.shards.schema import MOTION_PARTS, is_count, is_key
from omniges.storage.documents import LONGEST_TEXT, Count, Document, Is, Range, shown
from omniges.storage.files import json_document, read_settings

WINDOWS_TIER: Final = "windows"
"""Name of the TextGrid tier that contains the text of each window as one interval.

A TextGrid with this tier has no tier of words.
"""

FORMAT: Final = "omniges-generated"
FILE_ENDINGS: Final[Mapping[str, tuple[str, ...]]] = {
    "gesture": (".npz",),
    "audio": (".wav", ".mel.npy"),
    "text": (".TextGrid", ".txt"),
}
"""Endings of the files of a result, by the stream that was generated."""

_VERSION: Final = 1
_LONGEST_TICKS: Final = int(LONGEST_S * TICKS_PER_SECOND)
_LONGEST_NAME_BYTES: Final = 255  # limit of Linux file names
_SOURCE: Final[Mapping[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(
        ("shards", "manifest_sha256", "manifest_hash"),
        lambda value: isinstance(value, str) and len(value) <= LONGEST_TEXT,
    ),
    "key": is_key,
    "start_tick": lambda value: is_count(value) and value <= _LONGEST_TICKS,
}
"""Fields of `source` that readers use, with their checks."""


def _is_name(value: str) -> bool:
    """Return whether a text can be the name of a file on Linux.

    A name has 1 to 255 bytes, without ``/`` and NUL, and is not ``.`` or ``..``. All other characters are valid,
    because results take the names of the user's files.
    """
    fits = len(value.encode(errors="replace")) <= _LONGEST_NAME_BYTES
    return fits and value not in {"", ".", ".."} and not set(value) & set("/\0")


_Source = Annotated[
    Mapping[str, Any],
    Is(
        "texts under the keys shards, manifest_sha256, manifest_hash and key",
        lambda source: all(fits(source[name]) for name, fits in _SOURCE.items() if name in source),
    ),
]
_File = Annotated[
    Mapping[str, str],
    Is(
        "a path (the name of a file beside the record) and a sha256",
        lambda file: "sha256" in file and _is_name(file.get("path", "")),
    ),
]
_Measures = Annotated[
    Mapping[str, float],
    Is("invalid_rotations from 0 to 1", lambda measures: 0 <= measures.get("invalid_rotations", 0) <= 1),
]
_Parts = Annotated[tuple[str, ...], Is("parts of the motion", lambda parts: set(parts) <= set(MOTION_PARTS))]


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedRecord:
    """The content of NAME.json, the record of the result NAME."""

    omniges: str  # version of omniges that wrote the record
    task: Annotated[str, Is(f"one of {', '.join(TASKS)}", TASKS.__contains__)]
    name: Annotated[str, Is("a file name", _is_name)]
    source: _Source | None
    """For a sample of shards: ``shards``, ``manifest_sha256``, ``manifest_hash`` and ``key``; None for user files."""
    sample: Count
    """Index of the result among the results of the same input."""
    ticks: Annotated[int, Range(1, _LONGEST_TICKS)]
    seconds: Annotated[float, Range(above=0.0, maximum=LONGEST_S)]
    files: Mapping[str, _File]
    """Path and sha256 of each file, by ``gesture``, ``audio``, ``mel``, ``text`` or ``transcript``."""
    inputs: tuple[Mapping[str, Any], ...]
    """Stream, path, sha256 and remarks of each input."""
    model: Mapping[str, Any]  # checkpoint, step, weights, sha256 of its files
    settings: Mapping[str, Any]
    seams_s: tuple[float, ...]
    """Window boundaries in seconds, without the start and end of the result."""
    measures: _Measures
    """``invalid_rotations``: share (0 to 1) of invalid rotations in the model's output, before their correction."""
    remarks: tuple[str, ...]
    """Warnings about the result and its inputs."""
    absent: _Parts = ()
    """Parts that do not move, because no training sample had them. NAME.json does not contain an empty list."""

    @property
    def at_rest(self) -> tuple[str, ...]:
        """Parts of the motion that do not move, including jaw and eyes if the model has no channels for them."""
        return self.absent if self.model.get("gesture_channels") == WITH_JAW_EYES else (*self.absent, "jaw_eyes")

    def document(self) -> bytes:
        """Return the record as JSON, which is the content of NAME.json."""
        found = asdict(self)
        if not self.absent:
            del found["absent"]
        return json_document({"format": FORMAT, "version": _VERSION} | found)


def read_record(path: Path) -> GeneratedRecord:
    """Read and check a record; raise DataError that names the first invalid field."""
    found = read_settings(path, "Generate it again", path.parent)
    for key, expected, remedy in (
        ("format", FORMAT, "this is not a record of omniges generate"),
        ("version", _VERSION, "use the omniges version that wrote it"),
    ):
        if (value := found.pop(key, None)) != expected:
            raise Document(found, str(path), remedy).fault(key, shown(value), shown(expected))
    document = Document(found, str(path), "generate it again")
    record = document.read(GeneratedRecord)
    seams_s, length_s = list(record.seams_s), record.seconds
    if sorted(seams_s) != seams_s or not all(0 < seam_s < length_s for seam_s in seams_s):
        raise document.fault("seams_s", shown(seams_s), f"ascending times within {length_s:g} s")
    return record


def spoken_intervals(data: bytes) -> tuple[list[WordInterval], bool]:
    """Read the words of a generated TextGrid or, if it has no words, the texts of its windows.

    Args:
        data: Bytes of the TextGrid.

    Returns:
        The intervals with text, and True if they are words, or False if they are texts of windows.

    Raises:
        RecordingFault: The TextGrid has neither a tier of words nor a tier `windows`, or is damaged.
    """
    try:
        return _words_of(data, None), True
    except RecordingFault as fault:
        if fault.problem.code != "textgrid-no-word-tier":
            raise
        without_words = fault
    try:
        return _words_of(data, WINDOWS_TIER), False
    except RecordingFault as fault:
        if fault.problem.code == "textgrid-no-word-tier":
            raise without_words from fault
        raise


def _words_of(data: bytes, tier: str | None) -> list[WordInterval]:
    """Return the intervals with text from the tier named `tier`; for None, from the tier of words.

    The list is empty if no interval has text. Then evaluation counts every word of the recording as deleted.
    """
    try:
        return list(decode_words(data, tier).words)
    except RecordingFault as fault:
        if fault.problem.code == "textgrid-no-words":
            return []
        raise
