"""Labels in the stem of a BEAT2 file name, ``<speaker>_<name>_<rec>_<start>_<end>``, and the split of a recording.

The split comes from a split list (CSV). Without a list, it follows from a rule of BEAT2.
"""

from __future__ import annotations

import csv
import io
import re
import reprlib
import unicodedata
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from omniges.errors import DataError, Finding, Problem
from omniges.shards.schema import SPLITS, Split, as_split
from omniges.storage.files import sha256_hex, text_codec
from omniges.storage.redact import one_line

_GRAMMAR: Final = re.compile(r"(\d{1,4})_([a-z]+)_([0-7])_(\d{1,4})_(\d{1,4})")
_LANGUAGES: Final = ("english", "chinese", "spanish", "japanese")  # rec digit // 2
_SCENARIOS: Final = ("speech", "conversation")  # rec digit % 2

# Emotion of a speech recording, by the first start index with this emotion; undefined above 118.
_EMOTIONS: Final = {
    0: "neutral",
    65: "happiness",
    73: "anger",
    81: "sadness",
    87: "contempt",
    95: "surprise",
    103: "fear",
    111: "disgust",
    119: None,
}
_EXTENSION: Final = re.compile(r"\.(?:wav|npz|textgrid|txt)\Z", re.IGNORECASE)
_FOLDER: Final = re.compile(r"(?:speaker)?_?(\d{1,4})(?:_([a-z]+))?", re.IGNORECASE)

_EMOTION_TEST: Final = frozenset(_EMOTIONS) - {0, 119}
_SHORT_TEST: Final = _EMOTION_TEST | {1, 2}
_FULL_SPEAKERS: Final = (1, 2, 3, 4, 5, 7, 10, 11)
_FULL_VAL: Final = range(9, 17)
TEST_STARTS: Final[dict[int | None, frozenset[int]]] = {
    **dict.fromkeys(_FULL_SPEAKERS, _EMOTION_TEST | set(range(1, 9))),
    **dict.fromkeys((6, 9, 21), _EMOTION_TEST),
    **dict.fromkeys((12, 13, 15, 16, 17, 18, 20, 22, 24, 27, 28, 30), _SHORT_TEST),
    23: _SHORT_TEST - {73},
    25: _SHORT_TEST - {1},
}
"""Start indices of each speaker's English test clips in BEAT2 v2.0.0."""
_VAL_SHARE: Final = 8 / 103  # as for speaker 2: 8 of the 103 clips that are not in test are in val


@dataclass(frozen=True, slots=True)
class StemFields:
    """The fields of a stem; all are None if the stem does not have BEAT2's form."""

    speaker_id: int | None = None
    speaker: str | None = None
    language: str | None = None
    scenario: str | None = None
    emotion: str | None = None
    start: int | None = None

    @property
    def known(self) -> bool:
        """True if the stem has BEAT2's form."""
        return self.speaker_id is not None


def parse_stem(stem: str) -> StemFields:
    """Return the fields of a stem.

    The emotion of a conversation is neutral. A speech with an index above 118 has no emotion (None).
    """
    match = _GRAMMAR.fullmatch(stem)
    if match is None:
        return StemFields()
    rec, start = int(match[3]), int(match[4])
    scenario = _SCENARIOS[rec % 2]
    return StemFields(
        speaker_id=int(match[1]),
        speaker=match[2],
        language=_LANGUAGES[rec // 2],
        scenario=scenario,
        emotion=_EMOTIONS[max(first for first in _EMOTIONS if first <= start)] if scenario == "speech" else "neutral",
        start=start,
    )


def speaker_of_folder(folder: str) -> tuple[int | None, str | None]:
    """Return the speaker's id and name in a folder name such as ``2``, ``speaker2``, ``2_scott`` or ``scott``.

    The result has None in place of a value that the name does not contain.
    """
    match = _FOLDER.fullmatch(folder)
    if match:
        return int(match[1]), match[2].lower() if match[2] else None
    return None, folder.lower() if re.fullmatch(r"[A-Za-z]+", folder) else None


def plain_stem(text: str) -> str:
    """Normalise a stem, or an id in a split list, so that both can be compared.

    File names from macOS are decomposed (NFD), and split lists often contain file names with extensions.

    Args:
        text: Stem or id.

    Returns:
        The text in composed form (NFC), without the extension of a BEAT2 file.
    """
    return _EXTENSION.sub("", unicodedata.normalize("NFC", text))


@dataclass(frozen=True, slots=True)
class SplitList:
    """A parsed split list: the split of each valid id, the problem of each faulty id, and findings.

    Ids have the form that `plain_stem` returns.
    """

    name: str
    sha256: str
    splits: dict[str, Split]
    faulty: dict[str, Problem]
    findings: tuple[Finding, ...]

    @property
    def ids(self) -> set[str]:
        """All ids of the list, valid and faulty."""
        return self.splits.keys() | self.faulty.keys()

    def find(self, stem: str) -> Split | Problem | None:
        """Return the split of a stem; the problem if its id is faulty; None if the list does not contain the stem."""
        plain = plain_stem(stem)
        return self.faulty.get(plain) or self.splits.get(plain)


def parse_split_list(data: bytes, name: str) -> SplitList:
    """Parse a split list: CSV with the columns ``id`` and ``type``, separated by commas, semicolons or tabs.

    The text is UTF-8 or UTF-16 with any line ends; blank lines are skipped. Ids are compared in the form of
    `plain_stem`. An id with two different splits or an unknown split is faulty; its recording will be rejected. An id
    that cannot be a file stem causes a note.

    Args:
        data: Bytes of the CSV file.
        name: Path of the list for messages.

    Returns:
        The splits of the valid ids, the problems of the faulty ids, and findings.

    Raises:
        DataError: The text is not CSV with these columns.
    """
    rows = _rows(data, name)
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if header.count("id") != 1 or header.count("type") != 1:
        found = reprlib.repr(header) if header else "an empty file"
        raise DataError(
            f"{name}: expected a header with one column id and one column type, found {found}; correct the header"
        )
    id_column, type_column = header.index("id"), header.index("type")
    splits: dict[str, Split] = {}
    faulty: dict[str, Problem] = {}
    findings = []
    for row in rows[1:]:
        cells = [cell.strip() for cell in row] + [""] * len(header)
        stem, text = plain_stem(cells[id_column]), cells[type_column]
        split = as_split(text.lower())
        if not stem or any(c in stem for c in "/\\\0") or stem in {".", ".."}:
            findings.append(Finding(Problem("split-id-invalid", f"id {stem!r}", "a file stem"), None, name))
        elif split is None:
            faulty[stem] = Problem("split-unknown", f"{text!r} in {name}", "one of " + ", ".join(SPLITS))
        elif splits.setdefault(stem, split) != split:
            faulty[stem] = Problem("split-conflict", f"{splits[stem]} and {split} in {name}", "one split")
    return SplitList(name, sha256_hex(data), splits, faulty, tuple(findings))


def encode_split_list(rows: Iterable[tuple[str, str]]) -> bytes:
    """Return a split list that `parse_split_list` can read; stems may contain any characters.

    Args:
        rows: Stem and split of each recording.

    Returns:
        UTF-8 CSV.
    """
    lines = [f"{_quoted(stem)},{split}\n" for stem, split in rows]
    return "".join(["id,type\n", *lines]).encode()


def _quoted(cell: str) -> str:
    """Return a CSV cell, quoted if needed; unlike Python's `csv.writer`, also quote a carriage return."""
    return '"{}"'.format(cell.replace('"', '""')) if set(cell) & set(',"\r\n') else cell


def _rows(data: bytes, name: str) -> list[list[str]]:
    """Return the rows of a CSV file without blank rows; the header determines the separator."""
    try:
        lines = data.decode(text_codec(data)).splitlines(keepends=True)
        if lines and lines[0].strip().lower() in {"sep=,", "sep=;", "sep=\t", "sep="}:  # Excel writes such a line
            del lines[0]
        header = next((line for line in lines if line.strip()), "")
        separator = max(",;\t", key=header.count)
        rows = csv.reader(io.StringIO("".join(lines), newline=""), delimiter=separator, strict=True)
        return [row for row in rows if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        why = one_line(str(error), 200)
        raise DataError(
            f"{name}: expected a CSV file in UTF-8 or UTF-16, found another file ({why}); save it as UTF-8 CSV"
        ) from error


def split_by_rule(stem: str, fields: StemFields) -> tuple[Split, bool]:
    """Return the split of a recording that is not in a split list.

    The first rule that applies determines the split:

    * A conversation is in `additional`.
    * English speech is in test if it is one of BEAT2's test clips.
    * Other English speech of a speaker with fifteen test clips is in val if the start index is 9 to 16, else in train.
    * For all other clips, a hash of the stem chooses train or val.

    Args:
        stem: Stem of the recording.
        fields: Fields of the stem.

    Returns:
        The split, and whether the hash chose it.
    """
    if fields.scenario == "conversation":
        return "additional", False
    if fields.language == "english":
        if fields.start in TEST_STARTS.get(fields.speaker_id, ()):
            return "test", False
        if fields.speaker_id in _FULL_SPEAKERS:
            return ("val" if fields.start in _FULL_VAL else "train"), False
    # A checksum, not hash(): the same on every machine and in every process.
    share = zlib.crc32(stem.encode()) / 2**32
    return ("val" if share < _VAL_SHARE else "train"), True
