"""The record of a generated result: what was made, from what, by which model; the contract that `evaluate` reads by.

A result is one or several files NAME.* and NAME.json, which is written last: where there is a record, there is a
whole result. docs/generate.md describes the fields.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from omniges.errors import DataError
from omniges.storage.canonical_json import json_document

WINDOWS_TIER: Final = "windows"
"""The tier of a TextGrid whose text is that of whole windows: one interval a window, no tier of words."""

_FORMAT: Final = "omniges-generated"
_VERSION: Final = 1


_Fits = Callable[[Any], bool]


def _of(kind: type | tuple[type, ...]) -> _Fits:
    """JSON's true and false are no numbers, though Python's are."""
    return lambda value: isinstance(value, kind) and not isinstance(value, bool)


def _map_of(fits: _Fits) -> _Fits:
    return lambda value: isinstance(value, dict) and all(map(fits, value.values()))


def _list_of(fits: _Fits) -> _Fits:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _number(value: Any) -> bool:
    """Python's reader of JSON takes NaN and Infinity too."""
    return _of((int, float))(value) and abs(value) < _MOST


def _file(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("path", "sha256"))


def _beside(name: str) -> bool:
    """Whether a text names a file in the record's own folder; people's own files may have any characters."""
    return bool(name) and name not in {".", ".."} and "/" not in name and "\0" not in name


_MOST: Final = 1e12
_FIELDS: Final[Mapping[str, tuple[str, _Fits]]] = {
    "omniges": ("str", _of(str)),
    "task": ("str", _of(str)),
    "name": ("str", _of(str)),
    "source": ("dict or null", lambda value: value is None or isinstance(value, dict)),
    "sample": ("int", _of(int)),
    "ticks": ("int", _of(int)),
    "seconds": ("number", _number),
    "files": ("dict of files, each with path and sha256,", _map_of(_file)),
    "inputs": ("list of dicts", _list_of(_of(dict))),
    "model": ("dict", _of(dict)),
    "settings": ("dict", _of(dict)),
    "seams_s": ("list of numbers", _list_of(_number)),
    "measures": ("dict of numbers", _map_of(_number)),
    "remarks": ("list of str", _list_of(_of(str))),
}
"""What each field of a record holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedRecord:
    """NAME.json."""

    omniges: str  # version that wrote it
    task: str
    name: str
    source: Mapping[str, Any] | None  # shards, manifest_sha256, key; None for a person's own files
    sample: int  # from 0
    ticks: int
    seconds: float
    files: Mapping[str, Mapping[str, str]]  # gesture, audio, mel, text, transcript: path and sha256
    inputs: tuple[Mapping[str, Any], ...]  # stream, path, sha256, remarks
    model: Mapping[str, Any]  # checkpoint, step, weights, sha256 of its files
    settings: Mapping[str, Any]
    seams_s: tuple[float, ...]  # where windows begin and end, but for the first beginning and the last end
    measures: Mapping[str, float]  # of what the model gave, before it was made valid
    remarks: tuple[str, ...]

    def document(self) -> bytes:
        """The file's bytes."""
        return json_document({"format": _FORMAT, "version": _VERSION} | asdict(self))


def read_record(path: Path) -> GeneratedRecord:
    """A record from its file; raises DataError with the field that is wrong."""
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: no JSON document, so it was damaged: generate it again") from error
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise DataError(f"{path}: format {_FORMAT!r} expected: this is no record of omniges generate")
    if found.get("version") != _VERSION:
        raise DataError(f"{path}: version {_VERSION} expected, found {found.get('version')}: use the omniges it is of")
    names = {field.name for field in fields(GeneratedRecord)}
    wrong = sorted(names ^ (found.keys() - {"format", "version"}))
    if wrong:
        raise DataError(f"{path}: fields unknown or absent: {', '.join(wrong)}: generate it again")
    for name, (expected, fits) in _FIELDS.items():
        if not fits(found[name]):
            what = reprlib.repr(found[name])
            raise DataError(f"{path}: {name}: {expected} expected, found {what}: generate it again")
    for kind, entry in found["files"].items():
        if not _beside(entry["path"]):
            raise DataError(
                f"{path}: files: {ascii(kind)[:40]}: the name of a file beside the record expected, found "
                f"{ascii(entry['path'])[:80]}: generate it again"
            )
    own: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in found.items() if name in names
    }
    return GeneratedRecord(**own)
