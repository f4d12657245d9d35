"""Parsing of JSON in shards of unknown origin, and checks of the structure that readers rely on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from omniges.errors import DataError
from omniges.shards.schema import VERIFY, is_count, is_real
from omniges.storage.files import parse_json
from omniges.storage.redact import one_line

_Checks = Mapping[str, Callable[[object], bool]]


def _is_text(value: object) -> bool:
    return isinstance(value, str)


_WORD: Final[_Checks] = {"word": _is_text, "start": is_real, "end": is_real}
_SPAN: Final[_Checks] = {"name": _is_text, "start": is_real, "end": is_real, "score": is_real, "keywords": _is_text}
_NOTE: Final[_Checks] = {"code": _is_text, "found": _is_text}
_AUDIO: Final[_Checks] = {
    "encoding": _is_text,
    **dict.fromkeys(("rate_hz", "channels", "samples", "samples_16k"), is_count),
}
_MOTION: Final[_Checks] = {"betas": is_count, "gender": _is_text, "model": _is_text}


def parse_document(data: bytes, place: str) -> dict[str, Any]:
    """Return the JSON object in a file beside the shards.

    Args:
        data: Bytes of the file.
        place: Path for errors.

    Returns:
        The object.

    Raises:
        DataError: The bytes are not a JSON object.
    """
    try:
        found = parse_json(data)
    except ValueError as error:
        raise DataError(f"{place}: a JSON object expected ({one_line(str(error), 200)}). {VERIFY}") from error
    if not isinstance(found, dict):
        raise DataError(f"{place}: a JSON object expected, found {type(found).__name__}. {VERIFY}")
    return found


def words_of(data: bytes) -> list[dict[str, Any]]:
    """Return the words of a member; raise ValueError unless it lists texts with start and end in seconds."""
    return _list_of(data, _WORD, "words")


def spans_of(data: bytes) -> list[dict[str, Any]]:
    """Return the semantic spans of a member; raise ValueError unless it is a list of them."""
    return _list_of(data, _SPAN, "spans")


def metadata_of(data: bytes) -> dict[str, Any]:
    """Return KEY.json; raise ValueError if its notes, audio or motion do not follow the contract."""
    found: dict[str, Any] = parse_json(data)
    if fault := _fault(found, {}):
        raise ValueError(f"a JSON object expected, found {fault}")
    notes = found.get("notes")
    if not isinstance(notes, str) and not (isinstance(notes, list) and all(not _fault(note, _NOTE) for note in notes)):
        raise ValueError(f"notes of code and found expected, found {notes!r:.100}")
    for name, checks in (("audio", _AUDIO), ("motion", _MOTION)):
        if fault := _fault(found.get(name), checks):
            raise ValueError(f"{name} of the contract expected, found {fault}")
    return found


def samples_of(metadata: object) -> int:
    """Return the number of audio samples at 16 kHz in KEY.json; raise ValueError if it is missing."""
    audio = metadata.get("audio") if isinstance(metadata, dict) else None
    if fault := _fault(audio, {"samples_16k": is_count}):
        raise ValueError(f"KEY.json: samples_16k of the audio expected, found {fault}")
    return int(audio["samples_16k"])  # type: ignore[index]


def _list_of(data: bytes, checks: _Checks, what: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = parse_json(data)
    if not isinstance(found, list):
        raise ValueError(f"a JSON list of {what} expected, found {type(found).__name__}")  # noqa: TRY004
    for number, one in enumerate(found):
        if fault := _fault(one, checks):
            raise ValueError(f"{what} with {', '.join(checks)} expected, found {fault} as number {number}")
    return found


def _fault(value: object, checks: _Checks) -> str:
    """Return what is wrong with an object whose fields must pass checks, or an empty text; other fields are free."""
    if not isinstance(value, dict):
        return type(value).__name__
    for name, valid in checks.items():
        if name not in value:
            return f"no {name}"
        if not valid(value[name]):
            return f"{name} {value[name]!r:.60}"
    return ""
