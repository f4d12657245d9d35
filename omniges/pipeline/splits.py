"""Which split a recording belongs to: from a split list (CSV), else from BEAT2's own rule."""

from __future__ import annotations

import csv
import io
import zlib
from dataclasses import dataclass, field
from typing import Final

from omniges.errors import DataError, Finding, Problem
from omniges.pipeline.stems import StemFields
from omniges.shards.schema import SPLITS, Split, as_split

_EMOTION_TEST: Final = frozenset({65, 73, 81, 87, 95, 103, 111})
_FULL_SPEAKERS: Final = frozenset({1, 2, 3, 4, 5, 7, 10, 11})
_FULL_TEST: Final = frozenset(range(1, 9)) | _EMOTION_TEST
_FULL_VAL: Final = frozenset(range(9, 17))
_EMOTION_ONLY_SPEAKERS: Final = frozenset({6, 9, 21})
_SHORT_SPEAKERS: Final = frozenset({12, 13, 15, 16, 17, 18, 20, 22, 24, 27, 28, 30})
_SHORT_TEST: Final = frozenset({1, 2}) | _EMOTION_TEST
_VAL_SHARE: Final = 8 / 103  # speaker 2, the one that was counted: 8 val clips among 103 that are not test


@dataclass(frozen=True, slots=True)
class SplitList:
    """A parsed split list: split per id, ids that cannot be trusted, and findings about the list itself."""

    splits: dict[str, Split] = field(default_factory=dict)
    faulty: dict[str, Problem] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


def parse_split_list(data: bytes, name: str) -> SplitList:
    """Read ``id,type`` rows (UTF-8, BOM and CRLF allowed, blank lines skipped); `name` is for messages.

    An id with two different splits or an unknown split is remembered as faulty, so that its recording is rejected.
    An id that is no plain file stem is a note. Raises DataError if the text is no CSV with these columns.
    """
    try:
        text = data.decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{name}: a CSV file in UTF-8 expected, found: {error}. Save it as UTF-8 CSV") from error
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if "id" not in header or "type" not in header:
        raise DataError(f"{name}: a header with the columns id and type expected, found {header or 'an empty file'}")
    id_column, type_column = header.index("id"), header.index("type")
    splits: dict[str, Split] = {}
    faulty: dict[str, Problem] = {}
    findings = []
    for row in rows[1:]:
        cells = [cell.strip() for cell in row] + [""] * len(header)
        stem, text = cells[id_column], cells[type_column]
        split = as_split(text)
        if not stem or any(c in stem for c in "/\\\0") or stem in {".", ".."}:
            findings.append(Finding(Problem("split-id-invalid", f"id {stem!r}", "a file stem"), None, name))
        elif split is None:
            faulty[stem] = Problem("split-unknown", f"{text!r} in {name}", "one of " + ", ".join(SPLITS))
        elif splits.setdefault(stem, split) != split:
            faulty[stem] = Problem("split-conflict", f"{splits[stem]} and {split} in {name}", "one split")
    return SplitList(splits, faulty, tuple(findings))


def official_test_starts(speaker_id: int) -> frozenset[int] | None:
    """Start indices of a speaker's English test clips in BEAT2 v2.0.0, or None for a speaker it does not have."""
    if speaker_id in _FULL_SPEAKERS:
        return _FULL_TEST
    if speaker_id in _EMOTION_ONLY_SPEAKERS:
        return _EMOTION_TEST
    if speaker_id in _SHORT_SPEAKERS:
        return _SHORT_TEST
    return {23: _SHORT_TEST - {73}, 25: _SHORT_TEST - {1}}.get(speaker_id)


def split_by_rule(stem: str, fields: StemFields) -> tuple[Split, bool]:
    """The split without a list, and whether a hash of the stem had to choose (between train and val).

    Conversations are `additional`. For English speech the test clips are BEAT2's; val is 9–16 for the speakers with
    fifteen test clips, where it is known.
    """
    if fields.scenario == "conversation":
        return "additional", False
    if fields.language == "english" and fields.speaker_id is not None:
        if fields.start in (official_test_starts(fields.speaker_id) or ()):
            return "test", False
        if fields.speaker_id in _FULL_SPEAKERS:
            return ("val" if fields.start in _FULL_VAL else "train"), False
    # A checksum, not hash(): the same on every machine and in every process.
    share = zlib.crc32(stem.encode()) / 2**32
    return ("val" if share < _VAL_SHARE else "train"), True
