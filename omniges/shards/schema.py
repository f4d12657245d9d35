"""The names of the shard contract (members, parts, keys, stems, splits, files), checks of its JSON, and window grids.

New sets have version 2. Every sample of such a set has the same members; `present` states which parts the sample has.
So a reader that infers a schema from the first samples can read all samples. Version 1 can still be read and verified.

A shard folder is untrusted data. Its keys, stems, shard names and file names must not lead out of the folder. All
commands check a name with this module before they join it to a path. They also parse JSON with this module, and so
check the structure that readers rely on.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from omniges.errors import DataError, UsageFault
from omniges.storage.files import parse_json
from omniges.storage.redact import one_line

FORMAT: Final = "omniges-shards"
FORMAT_VERSION: Final = 2
"""The contract version of new sets."""

DATASET_FILE: Final = "dataset.json"
MANIFEST_FILE: Final = "manifest.parquet"
STATS_FILE: Final = "stats.json"
TOKENIZER_FILE: Final = "tokenizer.json"
REPORT_FILE: Final = "report.jsonl"
LATENTS_FILE: Final = "latents.json"  # statistics of latents, if a codec has encoded the shards
SIDE_FILES: Final = (
    MANIFEST_FILE,
    STATS_FILE,
    TOKENIZER_FILE,
    REPORT_FILE,
)  # files beside the shards, without dataset.json
UNFINISHED_FILE: Final = ".omniges-unfinished"  # folder of a run that has not finished
UNFINISHED_FORMAT: Final = "omniges-unfinished"
"""Value of ``format`` in dataset.json while a run replaces the set in an object store."""
VERIFY: Final = "run omniges verify-shards, then make the shards again"
"""Remedy shown in error messages about damaged shards."""

Split = Literal["train", "val", "test", "additional"]
SPLITS: Final[tuple[Split, ...]] = get_args(Split)


@dataclass(frozen=True, slots=True)
class Contract:
    """Names of the members of a sample in one contract version, without ``KEY.``, in the order of a shard."""

    version: int
    members: tuple[str, ...]  # members of every sample
    optional: tuple[str, ...]
    words: str  # JSON member with the words
    semantic: str  # JSON member with the semantic spans


# In version 2, lists are JSON in .txt members: some readers infer types from the first samples, and lists may be empty.
CONTRACTS: Final = {
    1: Contract(
        1,
        ("json", "gesture.npy", "mel.npy", "words.json", "jaw_eyes.npy", "betas.npy", "start_xz.npy"),
        ("sem.json", "flac", "audio.npy"),
        "words.json",
        "sem.json",
    ),
    2: Contract(
        2,
        ("json", "gesture.npy", "mel.npy", "words.txt", "jaw_eyes.npy", "betas.npy", "start_xz.npy", "sem.txt"),
        ("audio.npy",),  # in every sample of a set that keeps audio
        "words.txt",
        "sem.txt",
    ),
}
"""Readable contracts, by version."""
CONTRACT: Final = CONTRACTS[FORMAT_VERSION]

KNOWN_MEMBERS: Final = (
    *("json", "gesture.npy", "mel.npy", "words.json", "words.txt", "jaw_eyes.npy", "betas.npy", "start_xz.npy"),
    *("sem.json", "sem.txt", "flac", "audio.npy"),
)
"""The members of all versions except latents, in their order in a shard."""

Part = Literal["text", "audio", "upper", "hands", "lower", "root", "face", "jaw_eyes", "sem", "labels"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)
"""Optional parts of a sample; `present` lists the parts that the sample has."""
GESTURE_PARTS: Final[tuple[Part, ...]] = ("upper", "hands", "lower", "root", "face")
"""The parts that are channels of the gesture array."""
MOTION_PARTS: Final[tuple[Part, ...]] = (*GESTURE_PARTS, "jaw_eyes")
"""The parts of motion; a sample without any of these parts has no motion."""

# Latents come after all other members. They have the name of their codec, which contains a hyphen; no other name does.
LATENT_MEMBER: Final = re.compile(r"(?P<codec>[a-z0-9]+(?:-[a-z0-9]+)+)\.npy", re.ASCII)

# A ustar name has at most 100 bytes; the longest suffix, ".jaw_eyes.npy", takes 13.
MAX_KEY_BYTES: Final = 86

_MAX_COUNT: Final = 1 << 60
_MAX_BETAS: Final = 300  # equals `features.gesture.BETAS`; its module is not imported, because --help needs no numpy
_ESCAPE: Final = "_x"
_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPED: Final = re.compile(rf"{_ESCAPE}([0-9a-f]+)_")
_SURROGATES: Final = (0xD800, 0xDFFF)  # halves of a character; valid text never contains one alone


SHARD_NAME: Final = re.compile(rf"(?P<split>{'|'.join(SPLITS)})-(?P<index>[0-9]{{6}})\.tar", re.ASCII)
CONTRACT_FILES: Final = frozenset({*SIDE_FILES, LATENTS_FILE, DATASET_FILE})
"""The files that a complete set may have beside its shards."""

_KEY: Final = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_KEY_BYTES}}}", re.ASCII)
_MAX_STEM_BYTES: Final = 255  # limit of Linux file names
_LABEL: Final = re.compile(r"[a-z][a-z0-9_]{0,31}", re.ASCII)


def member_order(member: str) -> tuple[int, str]:
    """Return a sort key that gives members their order in a shard; raise ValueError for an unknown member."""
    if member in KNOWN_MEMBERS:
        return KNOWN_MEMBERS.index(member), ""
    if LATENT_MEMBER.fullmatch(member):
        return len(KNOWN_MEMBERS), member
    raise ValueError(f"no member {member!r}")


def shard_name(split: Split, index: int) -> str:
    """Return the file name of a shard, such as ``train-000003.tar``.

    Args:
        split: Split of the shard's samples.
        index: Number of the shard within the split, from 0.

    Returns:
        The file name.
    """
    return f"{split}-{index:06d}.tar"


def key_from_stem(stem: str) -> str:
    """Return the sample key of a stem: the stem, with every character outside ``[A-Za-z0-9_-]`` escaped.

    Such a character becomes ``_x<hex code point>_``. An underscore that looks like the start of an escape is escaped
    too. So `stem_from_key` restores every stem, and two stems never have the same key.
    """
    if _PLAIN.fullmatch(stem) and not _ESCAPED.search(stem):
        return stem
    pieces = []
    for position, character in enumerate(stem):
        starts_escape = character == "_" and _ESCAPED.match(stem, position)
        if _PLAIN.fullmatch(character) and not starts_escape:
            pieces.append(character)
        else:
            pieces.append(f"{_ESCAPE}{ord(character):x}_")
    return "".join(pieces)


def stem_from_key(key: str) -> str:
    """Return the stem of a key, the inverse of `key_from_stem`.

    A key that omniges did not write may contain an escape that encodes no character. Such an escape is kept.
    """
    return _ESCAPED.sub(_escaped_character, key)


def _escaped_character(match: re.Match[str]) -> str:
    code = int(match[1], 16)
    return chr(code) if code <= sys.maxunicode and not _SURROGATES[0] <= code <= _SURROGATES[1] else match[0]


def is_count(value: object, minimum: int = 0) -> bool:
    """Return whether a value is a whole number from `minimum` to 2^60; all real counts and sizes are smaller.

    Args:
        value: Value to check.
        minimum: Smallest allowed number.

    Returns:
        True for a valid number.
    """
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= _MAX_COUNT


def is_real(value: object) -> bool:
    """Return whether a value is a finite float, or a whole number below 2^53 in magnitude."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 53


def as_split(text: str) -> Split | None:
    """Return the split with this name, or None for any other name."""
    return text if text in SPLITS else None


def is_key(text: object) -> bool:
    """Return whether a text can be a sample key: 1 to 86 ASCII letters, digits, underscores and hyphens."""
    return isinstance(text, str) and _KEY.fullmatch(text) is not None


def is_stem(text: object) -> bool:
    """Return whether a text can be the stem of a recording: a file name without extension, not a path."""
    if not isinstance(text, str) or not text or text in {".", ".."} or "/" in text or "\0" in text:
        return False
    try:
        return len(text.encode()) <= _MAX_STEM_BYTES and is_key(key_from_stem(text))
    except UnicodeEncodeError:  # a lone surrogate
        return False


def is_label(text: object) -> bool:
    """Return whether a text can be a label's name: a letter a-z, then up to 31 characters of a-z, 0-9 and _."""
    return isinstance(text, str) and _LABEL.fullmatch(text) is not None


def is_relative_path(text: object) -> bool:
    """Return whether a text is a relative path inside a folder, without the components ``.`` and ``..``."""
    return isinstance(text, str) and "\0" not in text and not {"", ".", ".."} & set(text.split("/"))


def is_contract_name(text: object) -> bool:
    """Return whether a text is the name of a shard, of dataset.json or of another file beside the shards."""
    return isinstance(text, str) and (text in CONTRACT_FILES or is_shard_name(text))


def is_shard_name(text: object) -> bool:
    """Return whether a text is the name of a shard."""
    return isinstance(text, str) and SHARD_NAME.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class WindowGrid:
    """Windows of ``window_ticks`` that start at multiples of ``stride_ticks`` and lie completely in their clip.

    The window length is a multiple of the stride. So the end of a window is the start of another window of the grid, if
    the clip is long enough.
    """

    window_ticks: int
    stride_ticks: int

    def __post_init__(self) -> None:
        """Raise UsageFault if the stride does not divide the window length."""
        if self.window_ticks < 1 or self.stride_ticks < 1 or self.window_ticks % self.stride_ticks:
            raise UsageFault(
                f"window grid: expected a stride that divides the window, found windows of {self.window_ticks} "
                f"ticks every {self.stride_ticks}; choose another stride"
            )

    def count(self, ticks: int) -> int:
        """Return the number of windows in a clip of the given length."""
        return max(0, 1 + (ticks - self.window_ticks) // self.stride_ticks)

    def starts(self, ticks: int) -> range:
        """Return the start tick of each window in a clip of the given length."""
        return range(0, self.count(ticks) * self.stride_ticks, self.stride_ticks)

    def index(self, start_tick: int) -> int:
        """Return the index of the window that starts at a tick; raise UsageFault if no window starts there."""
        if start_tick < 0 or start_tick % self.stride_ticks:
            raise UsageFault(
                f"window grid: expected a multiple of {self.stride_ticks}, found a window at tick {start_tick}"
            )
        return start_tick // self.stride_ticks


# --- JSON in members and files of unknown origin

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
_MOTION: Final[_Checks] = {
    "betas": lambda value: is_count(value) and value <= _MAX_BETAS,  # type: ignore[operator]
    "gender": _is_text,
    "model": _is_text,
}


def parse_document(data: bytes, place: str) -> dict[str, Any]:
    """Parse a JSON object from a file beside the shards.

    Args:
        data: Bytes of the file.
        place: Path of the file, for errors.

    Returns:
        The JSON object as a dictionary.

    Raises:
        DataError: The bytes are not a JSON object.
    """
    try:
        found = parse_json(data)
    except ValueError as error:
        raise DataError(
            f"{place}: expected a JSON object, found something else ({one_line(str(error), 200)}); {VERIFY}"
        ) from error
    if not isinstance(found, dict):
        raise DataError(f"{place}: expected a JSON object, found {type(found).__name__}; {VERIFY}")
    return found


def json_member(data: bytes) -> Any:
    """Parse a member as JSON; if it is not JSON, raise a ValueError that states what was expected and found."""
    try:
        return parse_json(data)
    except ValueError as error:
        raise ValueError(f"expected JSON, found another text or bytes ({error})") from None


def words_of(data: bytes) -> list[dict[str, Any]]:
    """Parse a member with words; raise ValueError if it is not a list of texts with start and end in seconds."""
    return _list_of(data, _WORD, "words")


def spans_of(data: bytes) -> list[dict[str, Any]]:
    """Parse a member with semantic spans; raise ValueError if it is not a list of valid spans."""
    return _list_of(data, _SPAN, "spans")


def metadata_of(data: bytes) -> dict[str, Any]:
    """Parse KEY.json, a sample's metadata; raise ValueError if notes, audio or motion do not follow the contract."""
    found: dict[str, Any] = json_member(data)
    if fault := _fault(found, {}):
        raise ValueError(f"expected a JSON object, found {fault}")
    notes = found.get("notes")
    if not isinstance(notes, str) and not (isinstance(notes, list) and all(not _fault(note, _NOTE) for note in notes)):
        raise ValueError(f"expected notes of code and found, found {notes!r:.100}")
    for name, checks in (("audio", _AUDIO), ("motion", _MOTION)):
        if fault := _fault(found.get(name), checks):
            raise ValueError(f"expected {name} of the contract, found {fault}")
    return found


def samples_of(metadata: object) -> int:
    """Return the number of audio samples at 16 kHz that KEY.json states; raise ValueError if it is missing."""
    audio = metadata.get("audio") if isinstance(metadata, dict) else None
    if fault := _fault(audio, {"samples_16k": is_count}):
        raise ValueError(f"KEY.json: expected samples_16k of the audio, found {fault}")
    return int(audio["samples_16k"])  # type: ignore[index]


def _list_of(data: bytes, checks: _Checks, what: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json_member(data)
    if not isinstance(found, list):
        raise ValueError(f"expected a JSON list of {what}, found {type(found).__name__}")  # noqa: TRY004
    for number, one in enumerate(found):
        if fault := _fault(one, checks):
            raise ValueError(f"expected {what} with {', '.join(checks)}, found {fault} as number {number}")
    return found


def _fault(value: object, checks: _Checks) -> str:
    """Describe the first missing or invalid field; return "" if all fields in `checks` are valid.

    If `value` is not a dictionary (a JSON object), return the name of its type, such as "list".
    """
    if not isinstance(value, dict):
        return type(value).__name__
    for name, valid in checks.items():
        if name not in value:
            return f"no {name}"
        if not valid(value[name]):
            return f"{name} {value[name]!r:.60}"
    return ""
