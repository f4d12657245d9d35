"""Words of a Praat TextGrid: bytes to intervals and back.

The bytes are decoded and the tokens (quoted strings, free-standing numbers) are read here; praatio parses the
structure. It sees each token's index in place of the token, because on the text itself it takes ``item [`` or
``"IntervalTier"`` inside a label for structure, drops the sign of a start time, knows no exponents, takes
quadratic time on hostile text, and stops silently at the first damaged row of a short file. What it found is
held against the counts that the file gives.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Self

from praatio.utilities import errors as praatio_errors
from praatio.utilities import textgrid_io

from omniges.errors import Problem, RecordingFault

SILENCE_LABELS = frozenset({"", "sil", "sp", "<sil>", "<sp>", "<eps>"})
"""Labels, case folded, that mean nobody speaks; such intervals are dropped."""

WORD_TIERS = frozenset({"words", "word"})
MAX_BYTES = 8 << 20  # an hour of words and phones takes 4 MB in the long form
OVERLAP_TOLERANCE_S = 1e-4
_MOST_S = 86_400.0  # a day: no recording lasts as long
NEGATIVE_TOLERANCE_S = 1e-9

_HEADER = re.compile(r'\s*File type\s*=\s*"ooTextFile(?: short)?"\s*(?:Object class\s*=\s*)?"TextGrid"')
_TOKEN = re.compile(
    r"""
    (?P<token> ["\d.+\-nNiI]                            # the engine skips to one of these
    (?:
        (?<=")
        (?: (?P<cls> (?:IntervalTier|TextTier)" )       # a tier's class is followed by a string and a number
            (?= \s*+ (?:name\s*+=\s*+)? "(?:[^"]++|"")*+" \s*+ (?:xmin\s*+=\s*+)? [-+.\dnNiI] )
        |   (?P<str> (?:[^"]++|"")*+ ) "
        |   (?P<open>)
        )
    |   (?<!")(?<![^\s=].)                              # a free-standing number, not the 1 of [1]
        (?P<num>
            (?: (?<=\d) | (?<=\.)\d | (?<=[-+])\.?\d ) [^\s"]*+
        |   (?: (?<=[nN])[aA][nN] | (?<=[iI])[nN][fF] | (?<=[-+])(?:[nN][aA][nN]|[iI][nN][fF]) ) (?![^\s"])
        )
    ))
    """,
    re.VERBOSE,
)
_TOKEN_PIECES = 1 + _TOKEN.groups  # what split gives for each token: its groups and the text behind it
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?(?:[nN][aA][nN]|[iI][nN][fF])")
# The heading of a tier in a masked text, one token a line, in the long form with its names and its item line.
_TIER_HEAD = re.compile(
    r'^(?:item ?\[[^\n]*\n)?(?:class = )?"(?P<kind>IntervalTier|TextTier)"\n(?:name = )?"S(?P<name>[0-9]+)"\n'
    r"(?:xmin = )?(?P<start>[0-9]+)\n(?:xmax = )?[0-9]+\n(?:(?:intervals|points): size = )?[0-9]+\n",
    re.MULTILINE,
)
_LABEL = re.compile(r"S([0-9]{1,8})")
# All that praatio raises on text that is no TextGrid. On JSON it raises more, but the header keeps JSON away.
_PARSE_FAULTS = (praatio_errors.ParsingError, ValueError, IndexError)
_SHOWN = 40


@dataclass(frozen=True, slots=True)
class WordInterval:
    """A label and its times in seconds."""

    word: str
    start: float
    end: float

    @classmethod
    def of(cls, item: Any) -> Self:
        """Read a word given as (word, start, end), or as a mapping or an object with these or `start_s` and `end_s`.

        Args:
            item: the word, in one of these forms.

        Returns:
            The word with times in seconds.

        Raises:
            ValueError: it is none, or its times are none.
        """
        names = ("word", "start", "end")
        if isinstance(item, Mapping):
            found = tuple(item.get(name, item.get(f"{name}_s")) for name in names)
        elif isinstance(item, (tuple, list)):
            found = tuple(item)
        else:
            found = tuple(getattr(item, name, getattr(item, f"{name}_s", None)) for name in names)
            if found == (None, None, None):
                raise ValueError(f"{item!r:.80}; a text and 0 <= start <= end in seconds expected")
        try:
            word, start, end = found
            start_s, end_s = float(start), float(end)
            numbers = not any(isinstance(time, str | bytes | bool) for time in (start, end))
            sound = numbers and 0 <= start_s <= end_s < _MOST_S
            word.encode()  # no lone surrogate
        except (AttributeError, TypeError, ValueError, OverflowError):
            sound = False
        if not sound or not isinstance(word, str):
            raise ValueError(f"{found!r:.80}; a text and 0 <= start <= end in seconds expected")
        return cls(word, start_s + 0.0, end_s + 0.0)


@dataclass(frozen=True, slots=True)
class WordTier:
    """The words of a recording in order of time, without silences; ``xmax_s``: end of the file."""

    tier_name: str
    words: tuple[WordInterval, ...]
    xmax_s: float
    notes: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class _Masked:
    """A TextGrid whose strings and numbers are replaced by their index, and those strings and numbers."""

    text: str
    body: str
    strings: list[str]
    numbers: list[str]

    def number(self, index: int) -> float:
        """Read the value of one number token."""
        token = self.numbers[index]
        if len(token) > 512 or not _NUMBER.fullmatch(token):
            raise RecordingFault("textgrid-syntax", f"line {self.line(index)}: {_short(token)}", "a number")
        return float(token)

    def count(self, index: int) -> int:
        """Read a number token that counts something."""
        value = self.number(index)
        if not (0 <= value < 1e9 and value == int(value)):
            found = f"line {self.line(index)}: {_short(self.numbers[index])}"
            raise RecordingFault("textgrid-syntax", found, "a count")
        return int(value)

    def line(self, index: int) -> int:
        """1-based line of a number token; only errors ask."""
        seen = -1
        for match in _TOKEN.finditer(self.text, _header_end(self.text)):
            seen += match["num"] is not None
            if seen == index:
                return self.text.count("\n", 0, match.start()) + 1
        return 0


@dataclass(frozen=True, slots=True)
class _Tier:
    name: str
    is_interval: bool
    entries: list[Any]


def decode_words(data: bytes, tier: str | None = None) -> WordTier:
    """Read the word tier of a TextGrid in long or short text form, UTF-8 or UTF-16.

    The tier is the first interval tier called ``words`` or ``word`` (any case, stray quotes ignored), or
    ``tier``. Labels keep their letters; surrounding white space goes, a line break becomes one space,
    silences are dropped. Times are in seconds; a word that overlaps the one before by at most 0.1 ms is made
    to start at its end.

    Raises RecordingFault with one of the ``textgrid-`` codes; notes ``words-zero-length``.
    """
    if len(data) > MAX_BYTES:
        raise RecordingFault("textgrid-too-large", f"{len(data)} bytes", f"at most {MAX_BYTES}")
    if not data.strip():
        raise RecordingFault("textgrid-empty", f"{len(data)} bytes, none of them text", "a TextGrid")
    masked = _mask(_text(data))
    chosen = _choose(_tiers(masked, tier), tier)
    intervals = _intervals(masked, chosen)
    words, dropped = words_in_order(intervals)
    if not words:
        found = f"tier {_short(chosen.name)} with {len(intervals)} intervals, none of them a word"
        raise RecordingFault("textgrid-no-words", found, "words")
    notes = (Problem("words-zero-length", f"{dropped} words", "duration"),) if dropped else ()
    return WordTier(chosen.name, tuple(words), masked.number(1), notes)


def encode_words(words: Sequence[WordInterval], xmax_s: float, phones: Sequence[WordInterval] | None = None) -> bytes:
    """Write a long-form TextGrid in UTF-8 with the tiers ``words`` and, if given, ``phones``.

    Gaps become intervals with empty text; `decode_words` gives back equal floats. Raises ValueError where
    intervals are not in order within 0..xmax_s or a label cannot be written (NUL, lone surrogate).
    """
    return encode_tiers([("words", words)] + ([("phones", phones)] if phones is not None else []), xmax_s)


def encode_tiers(tiers: Sequence[tuple[str, Sequence[WordInterval]]], xmax_s: float) -> bytes:
    """Write a long-form TextGrid in UTF-8 with interval tiers of any names; gaps and errors as in `encode_words`."""
    head = (
        f'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0 \nxmax = {_time(xmax_s)} \n'
        f"tiers? <exists> \nsize = {len(tiers)} \nitem []: \n"
    )
    out = [head]
    for number, (name, intervals) in enumerate(tiers, 1):
        filled = _filled(intervals, xmax_s)
        out.append(
            f'    item [{number}]:\n        class = "IntervalTier" \n        name = "{name}" \n'
            f"        xmin = 0 \n        xmax = {_time(xmax_s)} \n        intervals: size = {len(filled)} \n"
        )
        for index, item in enumerate(filled, 1):
            label = item.word.replace('"', '""')
            out.append(
                f"        intervals [{index}]:\n            xmin = {_time(item.start)} \n"
                f'            xmax = {_time(item.end)} \n            text = "{label}" \n'
            )
    text = "".join(out)
    if "\0" in text:
        raise ValueError("a label holds NUL")
    return text.encode("utf-8")


def _time(seconds: float) -> str:
    """Shortest decimal text that reads back as the same float, never with an exponent."""
    text = repr(float(seconds))
    return format(Decimal(text), "f") if "e" in text else text


def _filled(intervals: Sequence[WordInterval], xmax_s: float) -> list[WordInterval]:
    out: list[WordInterval] = []
    now = 0.0
    for item in intervals:
        if not now <= item.start < item.end <= xmax_s < math.inf:
            raise ValueError(f"{item} does not follow {now} within 0..{xmax_s}")
        if item.start > now:
            out.append(WordInterval("", now, item.start))
        out.append(item)
        now = item.end
    if now < xmax_s:
        out.append(WordInterval("", now, xmax_s))
    return out


def _text(data: bytes) -> str:
    """Decode UTF-8 or UTF-16; line ends become LF."""
    codec, body = "utf-8", 3 if data.startswith(b"\xef\xbb\xbf") else 0
    for wide, mark in (("utf-16-le", b"\xff\xfe"), ("utf-16-be", b"\xfe\xff")):
        if data.startswith((mark, "File type".encode(wide))):
            codec, body = wide, 2 if data.startswith(mark) else 0
    try:
        text = data[body:].decode(codec)
    except UnicodeDecodeError as fault:
        place = body + fault.start
        found = f"byte {data[place]:#04x} at offset {place} is not {codec.upper()}"
        raise RecordingFault("textgrid-encoding", found, "UTF-8 or UTF-16") from None
    if "\0" in text:
        place = body + len(text[: text.index("\0")].encode(codec))
        raise RecordingFault("textgrid-encoding", f"NUL at byte offset {place}, read as {codec.upper()}", "text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _header_end(text: str) -> int:
    match = _HEADER.match(text)
    if match is None:
        found = f"line 1 begins with {_short(text.lstrip())}"
        raise RecordingFault("textgrid-syntax", found, 'File type = "ooTextFile" and class "TextGrid"')
    return match.end()


def _mask(text: str) -> _Masked:
    offset = _header_end(text)
    # split and not sub: a call for each of three thousand tokens took half of a file's time.
    pieces = _TOKEN.split(text[offset:])
    strings: list[str] = []
    numbers: list[str] = []
    out = [pieces[0]]
    groups = [pieces[k::_TOKEN_PIECES] for k in range(1, _TOKEN_PIECES)] + [pieces[_TOKEN_PIECES::_TOKEN_PIECES]]
    for token, _, string, never_closed, number, between in zip(*groups, strict=True):
        if number is not None:
            out.append(f"{len(numbers)}\n")
            numbers.append(token)
        elif string is not None:
            out.append(f'"S{len(strings)}"\n')
            strings.append(string)
        elif never_closed is not None:
            quote = next(match for match in _TOKEN.finditer(text, offset) if match["open"] is not None)
            line = text.count("\n", 0, quote.start()) + 1
            raise RecordingFault("textgrid-syntax", f"the quote in line {line} is never closed", "a closing quote")
        else:
            out.append(f"{token}\n")
        out.append(between)
    # Every token ends its line and no line is blank or indented: praatio's short form needs that, and its
    # patterns for the end of a line then have nothing to search through.
    body = re.sub(r"\n\s+", "\n", "".join(out)).lstrip()
    return _Masked(text, 'File type = "ooTextFile"\nObject class = "TextGrid"\n\n' + body + "\n", strings, numbers)


def _tiers(masked: _Masked, wanted: str | None) -> list[_Tier]:
    """Let praatio parse, then hold its tiers against the counts in the file."""
    body, spans = _without_other_entries(masked, wanted)
    try:
        parsed = textgrid_io.parseTextgridStr(body, includeEmptyIntervals=True)
        tiers = [
            _Tier(_string(masked, tier["name"]), tier["class"] == textgrid_io.INTERVAL_TIER, tier["entries"])
            for tier in parsed["tiers"]
        ]
        starts = [int(tier["xmin"]) for tier in parsed["tiers"]]
    except _PARSE_FAULTS as fault:
        detail = "heading or tiers are missing" if isinstance(fault, IndexError) else str(fault)[:80]
        raise RecordingFault("textgrid-syntax", f"praatio cannot parse it: {detail}", "a TextGrid") from None
    if len(masked.numbers) < 3 or not all(0 <= start < len(masked.numbers) - 2 for start in starts):
        raise RecordingFault("textgrid-syntax", "the file ends inside a tier's heading", "a complete file")
    promised = masked.count(2)
    if promised != len(tiers):
        found = f"{len(tiers)} of {promised} tiers"
        raise RecordingFault("textgrid-syntax", found, "as many tiers as the file announces")
    for tier, start in zip(tiers, starts, strict=True):
        promised = masked.count(start + 2)  # tier start, tier end, number of entries
        present = spans.get(start, len(tier.entries))
        if promised != present:
            readable = "not all" if present < 0 else present
            found = f"{readable} readable of {promised} entries in tier {_short(tier.name)}"
            raise RecordingFault("textgrid-syntax", found, "as many as the tier announces")
    if not 0.0 <= masked.number(1) < math.inf:
        found = f"line {masked.line(1)}: xmax {masked.numbers[1]}"
        raise RecordingFault("textgrid-syntax", found, "a length in seconds")
    return tiers


def _without_other_entries(masked: _Masked, wanted: str | None) -> tuple[str, dict[int, int]]:
    """Cut out the entries of tiers nobody asked for: phones are four fifths of a file and of praatio's time.

    Gives the shorter text, and for each cut tier (by the index of its first number) the entries that its numbers
    make up, so that a tier cut off in the middle is still found.
    """
    heads = [
        head
        for head in _TIER_HEAD.finditer(masked.body)
        # Rubbish between tokens can look like an index; such a tier is left to praatio.
        if int(head["name"]) < len(masked.strings) and int(head["start"]) < len(masked.numbers)
    ]
    pieces: list[str] = []
    entries: dict[int, int] = {}
    done = 0
    for place, head in enumerate(heads):
        is_interval = head["kind"] == "IntervalTier"
        if is_interval and _is_wanted(masked.strings[int(head["name"])].replace('""', '"'), wanted):
            continue
        last = place + 1 == len(heads)
        end_number = len(masked.numbers) if last else int(heads[place + 1]["start"])
        end_string = len(masked.strings) if last else int(heads[place + 1]["name"])
        numbers, labels = end_number - int(head["start"]) - 3, end_string - int(head["name"]) - 1
        complete = numbers == labels * (2 if is_interval else 1)
        entries[int(head["start"])] = labels if complete else -1
        pieces.append(masked.body[done : head.end()])
        done = len(masked.body) if last else heads[place + 1].start()
    return "".join(pieces) + masked.body[done:], entries


def _string(masked: _Masked, label: str) -> str:
    """Give the string behind a masked label, doubled quotes undone; ValueError where there is none."""
    match = _LABEL.fullmatch(label)
    if match is None:
        raise ValueError(f"no single string at {_short(label)}")
    return masked.strings[int(match[1])].replace('""', '"')


def _choose(tiers: list[_Tier], wanted: str | None) -> _Tier:
    for tier in tiers:
        if tier.is_interval and _is_wanted(tier.name, wanted):
            return tier
    listed = [f"{_short(t.name)} ({'intervals' if t.is_interval else 'points'})" for t in tiers[:20]]
    more = f" and {len(tiers) - 20} more" if len(tiers) > 20 else ""
    found = f"the tiers {', '.join(listed)}{more}" if tiers else "no tiers at all"
    name = "words or word" if wanted is None else _short(wanted)
    raise RecordingFault("textgrid-no-word-tier", found, f"an interval tier called {name}")


def _is_wanted(name: str, wanted: str | None) -> bool:
    plain, asked = (text.strip().strip("\"'").strip() for text in (name, wanted or ""))
    return plain.casefold() in WORD_TIERS if wanted is None else plain == asked


def _intervals(masked: _Masked, tier: _Tier) -> list[WordInterval]:
    """Read the tier's intervals in file order, silences too, each checked on its own."""
    out: list[WordInterval] = []
    for entry in tier.entries:
        try:
            label = _string(masked, entry.label)
            first, last = int(entry.start), int(entry.end)
            start, end = masked.number(first), masked.number(last)
        except _PARSE_FAULTS as fault:
            found = f"interval {len(out) + 1} of tier {_short(tier.name)}: {_short(str(fault))}"
            raise RecordingFault("textgrid-syntax", found, "two times and a label") from None
        word = one_line(label)
        if not (math.isfinite(start) and math.isfinite(end) and -NEGATIVE_TOLERANCE_S <= start <= end):
            found = f"{_short(word)} from {start!r} to {end!r} s, line {masked.line(first)}"
            raise RecordingFault("textgrid-bad-interval", found, "0 <= start <= end")
        # max would keep -0.0
        out.append(WordInterval(word, start if start > 0 else 0.0, end if end > 0 else 0.0))
    return out


def one_line(label: str) -> str:
    """Return a label without white space around it; a line break becomes one space."""
    return " ".join(part.strip() for part in label.splitlines() if part.strip())


def words_in_order(intervals: Sequence[WordInterval]) -> tuple[list[WordInterval], int]:
    """Return the words of finite intervals without silences, and how many were dropped as they had no duration.

    Args:
        intervals: of one tier, in the order of the file.

    Returns:
        The words, and the number of those that were dropped.

    Raises:
        RecordingFault: intervals are out of order or overlap by more than 0.1 ms.
    """
    words: list[WordInterval] = []
    dropped = 0
    last: WordInterval | None = None
    for item in intervals:
        is_word = item.word.casefold() not in SILENCE_LABELS
        start = item.start
        if item.end > item.start:
            if last is not None and last.end - item.start > OVERLAP_TOLERANCE_S:
                times = " and ".join(f"{_short(one.word)} {one.start!r} to {one.end!r} s" for one in (item, last))
                if item.end <= last.start:
                    raise RecordingFault("textgrid-bad-interval", f"{times} before it", "intervals in order of time")
                raise RecordingFault("textgrid-overlap", times, f"overlaps up to {OVERLAP_TOLERANCE_S:g} s")
            if last is None or item.end > last.end:
                last = item
            if words and start < words[-1].end:
                start = words[-1].end  # by less than the tolerance
        if is_word and item.end > start:
            words.append(WordInterval(item.word, start, item.end))
        else:
            dropped += is_word
    return words, dropped


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
