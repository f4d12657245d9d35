"""The record of a generated result: what was made, from what, by which model; the contract that `evaluate` reads by.

A result is one or several files NAME.* and NAME.json, which is written last: where there is a record, there is a
whole result. docs/generate.md describes the fields.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, Final

from omniges.errors import DataError
from omniges.storage.canonical_json import json_document

WINDOWS_TIER: Final = "windows"
"""The tier of a TextGrid whose text is that of whole windows: one interval a window, no tier of words."""

_FORMAT: Final = "omniges-generated"
_VERSION: Final = 1


_MOST: Final = 1e12
_OF_FILES: Final = "dict of files, each with path and sha256,"


def _of(kind: type | tuple[type, ...]) -> Callable[[Any], bool]:
    """JSON's true and false are no numbers, though Python's are."""
    return lambda value: isinstance(value, kind) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    """Python's reader of JSON takes NaN and Infinity too."""
    return _of((int, float))(value) and abs(value) < _MOST


def _file(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("path", "sha256"))


def _all(fits: Callable[[Any], bool], kind: type[list[Any]] | type[dict[str, Any]]) -> Callable[[Any], bool]:
    """Whether a value is a list or a dict whose values all fit."""

    def fit(value: Any) -> bool:
        return isinstance(value, kind) and all(map(fits, value.values() if isinstance(value, dict) else value))

    return fit


def _is(expected: str, fits: Callable[[Any], bool]) -> dict[str, Any]:
    """What the field of a record holds, in words and as a test."""
    return {"expected": expected, "fits": fits}


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedRecord:
    """NAME.json."""

    omniges: str = field(metadata=_is("str", _of(str)))  # version that wrote it
    task: str = field(metadata=_is("str", _of(str)))
    name: str = field(metadata=_is("str", _of(str)))
    source: Mapping[str, Any] | None = field(metadata=_is("dict or null", _of((dict, NoneType))))
    """Shards, manifest_sha256, key; None for a person's own files."""
    sample: int = field(metadata=_is("int", _of(int)))  # from 0
    ticks: int = field(metadata=_is("int", _of(int)))
    seconds: float = field(metadata=_is("number", _number))
    files: Mapping[str, Mapping[str, str]] = field(metadata=_is(_OF_FILES, _all(_file, dict)))
    """Path and sha256 of gesture, audio, mel, text, transcript."""
    inputs: tuple[Mapping[str, Any], ...] = field(metadata=_is("list of dicts", _all(_of(dict), list)))
    """Stream, path, sha256, remarks."""
    model: Mapping[str, Any] = field(metadata=_is("dict", _of(dict)))  # checkpoint, step, weights, sha256 of its files
    settings: Mapping[str, Any] = field(metadata=_is("dict", _of(dict)))
    seams_s: tuple[float, ...] = field(metadata=_is("list of numbers", _all(_number, list)))
    """Where windows begin and end, but for the first beginning and the last end."""
    measures: Mapping[str, float] = field(metadata=_is("dict of numbers", _all(_number, dict)))
    """Of what the model gave, before it was made valid."""
    remarks: tuple[str, ...] = field(metadata=_is("list of str", _all(_of(str), list)))
    absent: tuple[str, ...] = field(default=(), metadata=_is("list of str", _all(_of(str), list)))
    """Parts that no sample of the model's training had: they are at rest. The file names them where there are some."""

    def document(self) -> bytes:
        """The file's bytes."""
        found = asdict(self)
        if not self.absent:
            del found["absent"]
        return json_document({"format": _FORMAT, "version": _VERSION} | found)


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
    del found["format"], found["version"]
    found.setdefault("absent", [])
    expected = {one.name: one.metadata for one in fields(GeneratedRecord)}
    wrong = sorted(expected.keys() ^ found.keys())
    if wrong:
        raise DataError(f"{path}: fields unknown or absent: {', '.join(wrong)}: generate it again")
    for name, declared in expected.items():
        if not declared["fits"](found[name]):
            what = reprlib.repr(found[name])
            raise DataError(f"{path}: {name}: {declared['expected']} expected, found {what}: generate it again")
    for kind, entry in found["files"].items():  # in the record's own folder; people's own files may have any characters
        if entry["path"] in {"", ".", ".."} or set(entry["path"]) & set("/\0"):
            raise DataError(
                f"{path}: files: {ascii(kind)[:40]}: the name of a file beside the record expected, found "
                f"{ascii(entry['path'])[:80]}: generate it again"
            )
    own: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    return GeneratedRecord(**own)
