"""Records of results: NAME.json beside the files of a result, and the words of a result's TextGrid. Needs no torch."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from omniges.errors import DataError, RecordingFault
from omniges.features.channels import WITH_JAW_EYES
from omniges.features.timebase import LONGEST_S, TICKS_PER_SECOND
from omniges.formats.textgrid import WordInterval, decode_words
from omniges.shards.schema import MOTION_PARTS, is_count, is_key
from omniges.storage.files import json_document, read_settings

WINDOWS_TIER: Final = "windows"
"""Tier of a TextGrid for text of complete windows, with one interval for each window and no tier of words."""

_FORMAT: Final = "omniges-generated"
_VERSION: Final = 1
_MOST: Final = 1e12
_LONGEST_TEXT: Final = 4096  # characters of a path
_LONGEST_TICKS: Final = int(LONGEST_S * TICKS_PER_SECOND)
_OF_FILES: Final = "dict of files, each with path and sha256"
_LONGEST_NAME_BYTES: Final = 255  # limit of Linux file names


def _of(kind: type | tuple[type, ...]) -> Callable[[Any], bool]:
    """Return a check of the type, in which JSON's true and false are no numbers."""
    return lambda value: isinstance(value, kind) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    """Return whether a value is a finite number; Python's JSON reader accepts NaN and Infinity."""
    return _of((int, float))(value) and abs(value) < _MOST


def _positive(value: Any) -> bool:
    return _of((int, float))(value) and value > 0


def _is_name(value: Any) -> bool:
    """Return whether a value names a file in a folder; people's own files may have any characters."""
    return isinstance(value, str) and value not in {"", ".", ".."} and not set(value) & set("/\0")


def _file(value: Any) -> bool:
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in ("path", "sha256")):
        return False
    name = Path(value["path"]).name
    return "\0" not in name and len(name.encode(errors="replace")) <= _LONGEST_NAME_BYTES


def _ticks(value: Any) -> bool:
    return is_count(value, 1) and value <= _LONGEST_TICKS


_SOURCE: Final[Mapping[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(
        ("shards", "manifest_sha256", "manifest_hash"),
        lambda value: isinstance(value, str) and len(value) <= _LONGEST_TEXT,
    ),
    "key": is_key,
    "start_tick": lambda value: is_count(value) and value <= _LONGEST_TICKS,
}
"""Checks of the fields of `source` that readers use."""


def _source(value: Any) -> bool:
    if not isinstance(value, dict):
        return value is None
    return all(fits(value[name]) for name, fits in _SOURCE.items() if name in value)


def _is_part(value: Any) -> bool:
    return value in MOTION_PARTS


def _measures(value: Any) -> bool:
    return _all(_number, dict)(value) and 0 <= value.get("invalid_rotations", 0) <= 1


def _all(fits: Callable[[Any], bool], kind: type[list[Any]] | type[dict[str, Any]]) -> Callable[[Any], bool]:
    """Return whether a value is a list or a dict whose values all fit."""

    def fit(value: Any) -> bool:
        return isinstance(value, kind) and all(map(fits, value.values() if isinstance(value, dict) else value))

    return fit


def _is(expected: str, fits: Callable[[Any], bool]) -> dict[str, Any]:
    """Return a record field's metadata: its expected content, in words and as a test."""
    return {"expected": expected, "fits": fits}


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedRecord:
    """The content of NAME.json."""

    omniges: str = field(metadata=_is("str", _of(str)))  # version that wrote it
    task: str = field(metadata=_is("str", _of(str)))
    name: str = field(metadata=_is("name of files", _is_name))
    source: Mapping[str, Any] | None = field(
        metadata=_is("dict or null, with texts of shards, manifest and key", _source)
    )
    """Shards, manifest_sha256, key; None for the user's own files."""
    sample: int = field(metadata=_is("int from 0 on", is_count))  # from 0
    ticks: int = field(
        metadata=_is("int from 1 on, up to a day", lambda value: is_count(value, 1) and value <= _LONGEST_TICKS)
    )
    seconds: float = field(metadata=_is("number above 0", _positive))
    files: Mapping[str, Mapping[str, str]] = field(metadata=_is(_OF_FILES, _all(_file, dict)))
    """Path and sha256 of gesture, audio, mel, text, transcript."""
    inputs: tuple[Mapping[str, Any], ...] = field(metadata=_is("list of dicts", _all(_of(dict), list)))
    """Stream, path, sha256, remarks."""
    model: Mapping[str, Any] = field(metadata=_is("dict", _of(dict)))  # checkpoint, step, weights, sha256 of its files
    settings: Mapping[str, Any] = field(metadata=_is("dict", _of(dict)))
    seams_s: tuple[float, ...] = field(metadata=_is("list of numbers", _all(_number, list)))
    """Window boundaries in seconds, without the ends of the result."""
    measures: Mapping[str, float] = field(metadata=_is("dict of numbers", _measures))
    """Measures of the model's output, before it was made valid."""
    remarks: tuple[str, ...] = field(metadata=_is("list of str", _all(_of(str), list)))
    absent: tuple[str, ...] = field(default=(), metadata=_is("list of str, parts of the motion", _all(_is_part, list)))
    """Parts at rest, because no training sample had them; the file omits an empty list."""

    @property
    def at_rest(self) -> tuple[str, ...]:
        """Parts of the motion that do not move; jaw and eyes too, unless the model had channels of them."""
        return self.absent if self.model.get("gesture_channels") == WITH_JAW_EYES else (*self.absent, "jaw_eyes")

    def document(self) -> bytes:
        """Return the content of the file."""
        found = asdict(self)
        if not self.absent:
            del found["absent"]
        return json_document({"format": _FORMAT, "version": _VERSION} | found)


def read_record(path: Path) -> GeneratedRecord:
    """Read a record; raise DataError with the field that is wrong."""
    found = read_settings(path, "Generate it again", path.parent)
    if found.get("format") != _FORMAT:
        raise DataError(f"{path}: expected format {_FORMAT!r}; this is not a record of omniges generate")
    if found.get("version") != _VERSION:
        version = reprlib.repr(found.get("version"))
        raise DataError(f"{path}: expected version {_VERSION}, found {version}; use the omniges version that wrote it")
    del found["format"], found["version"]
    found.setdefault("absent", [])
    expected = {one.name: one.metadata for one in fields(GeneratedRecord)}
    wrong = sorted(expected.keys() ^ found.keys())
    if wrong:
        raise DataError(f"{path}: fields unknown or absent: {', '.join(wrong)}; generate it again")
    for name, declared in expected.items():
        if not declared["fits"](found[name]):
            what = reprlib.repr(found[name])
            raise DataError(f"{path}: {name}: expected {declared['expected']}, found {what}; generate it again")
    if found["seconds"] > LONGEST_S:
        length = reprlib.repr(found["seconds"])
        raise DataError(f"{path}: seconds: expected up to {LONGEST_S:g}, a day, found {length}; generate it again")
    for kind, entry in found["files"].items():  # files lie in the folder of the record
        if not _is_name(entry["path"]):
            raise DataError(
                f"{path}: files: {ascii(kind)[:40]}: expected the name of a file beside the record, found "
                f"{ascii(entry['path'])[:80]}; generate it again"
            )
    if sorted(found["seams_s"]) != found["seams_s"] or not all(0 < s < found["seconds"] for s in found["seams_s"]):
        raise DataError(f"{path}: seams_s: expected rising moments within {found['seconds']:g} s; generate it again")
    own: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    return GeneratedRecord(**own)


def spoken_intervals(data: bytes) -> tuple[list[WordInterval], bool]:
    """Return the words of a generated TextGrid and True, or the texts of its tier `windows` and False.

    Args:
        data: Bytes of the TextGrid.

    Returns:
        The intervals, and whether words have times.

    Raises:
        RecordingFault: It has neither tier, or is damaged.
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
    """Return a tier's intervals with text. If there are none, every expected word counts as a deletion."""
    try:
        return list(decode_words(data, tier).words)
    except RecordingFault as fault:
        if fault.problem.code == "textgrid-no-words":
            return []
        raise
