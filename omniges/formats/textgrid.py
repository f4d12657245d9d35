"""Decoding of the words of a Praat TextGrid to intervals, and encoding of intervals.

This module decodes the text and its tokens (quoted strings, free-standing numbers); praatio parses the structure.
First, each token is replaced by its index ("masked" text), because praatio makes errors on the original text. praatio
reads ``item [`` or ``"IntervalTier"`` inside a label as structure, drops the sign of a start time and does not support
exponents. It takes quadratic time on malicious text. In the short text form, it stops without an error at the first
damaged row. So the number of parsed intervals is compared with the counts in the file.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Self

from praatio.utilities import errors as praatio_errors
from praatio.utilities import textgrid_io

from omniges.errors import Problem, RecordingFault, first_of

WORD_TIERS = frozenset({"words", "word"})
MAX_BYTES = 8 << 20  # an hour of words and phones takes 4 MB in the long form
OVERLAP_TOLERANCE_S = 0.01  # MFA writes words that overlap by one frame
_ROUNDING_S = 1e-4  # smaller overlaps come from rounded times and are removed without a note
_SLACK_S = 1e-9  # rounding error in the difference of two decimal times
_MAX_S = 86_400.0  # one day; every recording is shorter
NEGATIVE_TOLERANCE_S = 1e-9

# Labels that aligners write for silence (MFA, Kaldi, Julius, WebMAUS, P2FA, Festival, TIMIT), case folded.
_SILENCES = frozenset({"", "sil", "sp", "spn", "pau", "#", "##", "h#", "!sil"})
# Labels within <>, [] or {} for silence and for sounds that are not words.
_BRACKETED = re.compile(
    r"[<\[{]\s*(?:"
    r"sil|silence|sp|spn|pau|pause|p:?|eps|epsilon|/?s|sl|ns|nsn|noise|br|breath|breathing|inhale|exhale|lg|ls|cg|"
    r"laugh|laughs|laughing|laughter|cough|coughs|lipsmack|usb|nib|click|music|applause|nospeech|no_speech"
    r")\s*[>\]}]|&=\w+"  # &=... is the form of CHAT
)
_SPOKEN_MARKS = frozenset("&%@#")  # punctuation marks that stand for words
_UNKNOWN = re.compile(r"[<\[{]\s*(?:unk|unknown|oov|spoken_noise|inaudible|unintelligible|bracketed)\s*[>\]}]")

_CHRONOLOGICAL = "Praat chronological TextGrid text file"
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
_TOKEN_PIECES = 1 + _TOKEN.groups  # strings that `split` returns for each token: its groups and the next text
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?(?:[nN][aA][nN]|[iI][nN][fF])")
# The header of a tier in a masked text, one token in each line. The long form also has field names and an item line.
_TIER_HEAD = re.compile(
    r'^(?:item ?\[[^\n]*\n)?(?:class = )?"(?P<kind>IntervalTier|TextTier)"\n(?:name = )?"S(?P<name>[0-9]+)"\n'
    r"(?:xmin = )?(?P<start>[0-9]+)\n(?:xmax = )?[0-9]+\n(?:(?:intervals|points): size = )?[0-9]+\n",
    re.MULTILINE,
)
_LABEL = re.compile(r"S([0-9]{1,8})")
_COMMENT = re.compile(r'("(?:[^"]++|"")*+")|![^\n]*')
_FREE_TOKEN = re.compile(r'"(?P<string>(?:[^"]++|"")*+)"|(?P<open>")|(?<!\S)(?P<number>[-+.0-9][^\s"]*)')
_MFA_TIER = re.compile(r"(?P<speaker>\S(?:.*\S)?)\s+-\s+words?", re.IGNORECASE)
# Errors that praatio raises for text that is not a TextGrid. JSON would cause others, but fails the header check.
_PARSE_FAULTS = (praatio_errors.ParsingError, ValueError, IndexError)
_SHOWN = 40
_SHOWN_LABELS = 5
_MAX_START_S = 0.1  # a start at most one tick from 0 counts as 0
_FIT_S = 1.0  # largest difference between the end of a TextGrid and the end of its recording


@dataclass(frozen=True, slots=True)
class WordInterval:
    """A label and its times in seconds."""

    word: str
    start: float
    end: float

    @classmethod
    def of(cls, item: Any) -> Self:
        """Convert a tuple, mapping or object to a word.

        Args:
            item: A tuple (word, start, end), or a mapping or object with `word` and either `start` and `end` or
                `start_s` and `end_s`; times in seconds.

        Returns:
            The word with times in seconds.

        Raises:
            ValueError: The word or its times are invalid.
        """
        names = ("word", "start", "end")
        if isinstance(item, Mapping):
            found = tuple(item.get(name, item.get(f"{name}_s")) for name in names)
        elif isinstance(item, (tuple, list)):
            found = tuple(item)
        else:
            found = tuple(getattr(item, name, getattr(item, f"{name}_s", None)) for name in names)
            if found == (None, None, None):
                raise ValueError(f"expected a text and 0 <= start <= end in seconds, found {item!r:.80}")
        try:
            word, start, end = found
            start_s, end_s = float(start), float(end)
            numbers = not any(isinstance(time, str | bytes | bool) for time in (start, end))
            valid = numbers and 0 <= start_s <= end_s < _MAX_S
            word.encode()  # raises an error for a lone surrogate
        except (AttributeError, TypeError, ValueError, OverflowError):
            valid = False
        if not valid or not isinstance(word, str):
            raise ValueError(f"expected a text and 0 <= start <= end in seconds, found {found!r:.80}")
        return cls(word, start_s + 0.0, end_s + 0.0)


@dataclass(frozen=True, slots=True)
class WordTier:
    """The words of a recording in order of time, without silences.

    ``xmax_s`` is the end of the file. ``xmin_s`` is the start of the file or of the tier, whichever is farther from 0.
    """

    tier_name: str
    words: tuple[WordInterval, ...]
    xmax_s: float
    notes: tuple[Problem, ...] = ()
    xmin_s: float = 0.0

    def require_fit(self, recording_s: float) -> None:
        """Refuse a file whose times do not fit the recording.

        The times do not fit if both ends are wrong: the file does not start near 0 s, and it does not end near the end
        of the recording. Such a file probably belongs to a longer recording, of which this recording is a part.

        Args:
            recording_s: Length of the recording in seconds.

        Raises:
            RecordingFault: The times do not fit (``textgrid-shifted``).
        """
        end_s = max(self.xmax_s, self.words[-1].end) if self.words else self.xmax_s
        if abs(self.xmin_s) > _MAX_START_S and abs(end_s - recording_s) > _FIT_S:
            found = f"times from {self.xmin_s:g} to {end_s:g} s beside {recording_s:g} s of recording"
            raise RecordingFault("textgrid-shifted", found, "times that begin at 0 with the recording")


@dataclass(frozen=True, slots=True)
class _Masked:
    """A TextGrid in which an index replaces each string and number, and the lists of replaced strings and numbers."""

    text: str
    body: str
    strings: list[str]
    numbers: list[str]

    def number(self, index: int) -> float:
        """Return the value of the number with this index in `numbers`; refuse a token that is not a number."""
        token = self.numbers[index]
        if len(token) > 512 or not _NUMBER.fullmatch(token):
            raise RecordingFault("textgrid-syntax", f"line {self.line(index)}: {_short(token)}", "a number")
        return float(token)

    def count(self, index: int) -> int:
        """Return the number with this index in `numbers` as an int; refuse a number that is not a count ≥ 0."""
        value = self.number(index)
        if not (0 <= value < 1e9 and value == int(value)):
            found = f"line {self.line(index)}: {_short(self.numbers[index])}"
            raise RecordingFault("textgrid-syntax", found, "a count")
        return int(value)

    def line(self, index: int) -> int:
        """Return the line of the file, counted from 1, that contains the number with this index in `numbers`."""
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
    xmin_s: float


@dataclass(frozen=True, slots=True)
class _Grid:
    """Content of a TextGrid in any text form (long, short or chronological): tiers, and start and end in seconds."""

    tiers: list[_Tier]
    intervals: Callable[[_Tier], list[WordInterval]]
    """Function that returns all intervals of a tier in file order, including silences, after checking each one."""
    xmin_s: float
    xmax_s: float


def decode_words(data: bytes, tier: str | None = None, speakers: Collection[str] = ()) -> WordTier:
    """Read the word tier of a TextGrid in UTF-8 or UTF-16, in long, short or chronological text form.

    The word tier is an interval tier named ``words`` or ``word``; case and quotes around the name are ignored. If there
    are several of these tiers, the first one that contains words is used. If the file has none of these tiers, the tier
    ``SPEAKER - words`` of the Montreal Forced Aligner (MFA) is used.
    Letters of labels are unchanged. Surrounding white space is removed, a line break becomes one space, and silences
    are dropped. If a word begins up to 10 ms before the end of the previous word, its start is moved to that end.

    Args:
        data: Bytes of the file.
        tier: Name of the word tier; None: the rules above choose it.
        speakers: Names that the recording's speaker may have in the file. They select the tier if the file has one tier
            for each speaker.

    Returns:
        The words, with times in seconds.

    Raises:
        RecordingFault: The file cannot be used; the finding code begins with ``textgrid-``.
    """
    if len(data) > MAX_BYTES:
        raise RecordingFault("textgrid-too-large", f"{len(data)} bytes", f"at most {MAX_BYTES}")
    if not data.strip():
        raise RecordingFault("textgrid-empty", f"{len(data)} bytes, none of them text", "a TextGrid")
    text = _text(data)
    if "!" in text:  # a comment extends to the end of its line
        text = _COMMENT.sub(lambda match: match[1] or "", text)
    chronological = text.lstrip().startswith(f'"{_CHRONOLOGICAL}"')
    grid = _chronological(text) if chronological else _grid(_mask(text), tier)
    if not (math.isfinite(grid.xmin_s) and 0.0 <= grid.xmax_s < math.inf):
        found = f"times from {grid.xmin_s:g} to {grid.xmax_s:g}"
        raise RecordingFault("textgrid-syntax", found, "a length in seconds")
    chosen, several = _choose(grid, tier, speakers)
    intervals = grid.intervals(chosen)
    words, notes = words_in_order(intervals)
    notes += several
    if not words:
        found = f"tier {_short(chosen.name)} with {len(intervals)} intervals, none of them a word"
        raise RecordingFault("textgrid-no-words", found, "words")
    if not math.isfinite(chosen.xmin_s):
        raise RecordingFault(
            "textgrid-syntax", f"tier {_short(chosen.name)} from {chosen.xmin_s:g}", "a time in seconds"
        )
    xmin_s, place = max((grid.xmin_s, "times"), (chosen.xmin_s, "a tier"), key=lambda start: abs(start[0]))
    if abs(xmin_s) > NEGATIVE_TOLERANCE_S:
        notes += (Problem("textgrid-start", f"{place} from {xmin_s:g} to {grid.xmax_s:g} s", "times from 0"),)
    return WordTier(chosen.name, tuple(words), grid.xmax_s, notes, xmin_s)


def is_textgrid(data: bytes) -> bool:
    """Return whether bytes begin as a TextGrid does, in any text form and encoding."""
    try:
        text = _text(data[:4096])
    except RecordingFault:
        return False
    return _HEADER.match(text) is not None or text.lstrip().startswith(f'"{_CHRONOLOGICAL}"')


def is_silence(label: str) -> bool:
    """Return whether a label means that no word is spoken, such as ``sil``, ``<p:>``, ``[noise]`` or ``...``."""
    folded = label.casefold()
    return folded in _SILENCES or _BRACKETED.fullmatch(folded) is not None or not any(map(_is_spoken, label))


def _is_spoken(character: str) -> bool:
    """Return whether a label that consists only of this character is a word.

    This is False for most punctuation and for invisible characters.
    """
    return character in _SPOKEN_MARKS or unicodedata.category(character)[0] not in "PCZ"


def is_unknown(label: str) -> bool:
    """Return whether a label marks a word that the aligner did not know, such as ``<unk>``."""
    return _UNKNOWN.fullmatch(label.casefold()) is not None


def is_word(label: str) -> bool:
    """Return True for a word that the aligner knew; False for a silence and for the label of an unknown word."""
    return not is_silence(label) and not is_unknown(label)


def encode_words(words: Sequence[WordInterval], xmax_s: float, phones: Sequence[WordInterval] | None = None) -> bytes:
    """Encode a long-form TextGrid in UTF-8 with the tiers ``words`` and, if given, ``phones``.

    Gaps become intervals with empty text. `decode_words` returns exactly the same times.

    Args:
        words: Intervals of words, in order of time.
        xmax_s: End of the file in seconds.
        phones: Intervals of phones in order of time, or None.

    Returns:
        Bytes of the file.

    Raises:
        ValueError: Intervals are not in order within 0..xmax_s, or a label cannot be written (NUL, lone surrogate).
    """
    return encode_tiers([("words", words)] + ([("phones", phones)] if phones is not None else []), xmax_s)


def encode_tiers(tiers: Sequence[tuple[str, Sequence[WordInterval]]], xmax_s: float) -> bytes:
    """Encode interval tiers with any names as a long-form TextGrid in UTF-8.

    Gaps become intervals with empty text.

    Args:
        tiers: Name and intervals of each tier.
        xmax_s: End of the file in seconds.

    Returns:
        Bytes of the file.

    Raises:
        ValueError: Intervals are not in order within 0..xmax_s, or a label cannot be written.
    """
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
    """Return the shortest decimal text, without an exponent, that converts back to the same float."""
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
    """Decode UTF-8 or UTF-16 text; all line ends become LF."""
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
    # `split` takes half the time of `sub`, which would call a function for each of some thousand tokens.
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
    # Every token ends its line, and no line is blank or indented. praatio needs this for the short form, and it makes
    # praatio faster.
    body = re.sub(r"\n\s+", "\n", "".join(out)).lstrip()
    return _Masked(text, 'File type = "ooTextFile"\nObject class = "TextGrid"\n\n' + body + "\n", strings, numbers)


def _grid(masked: _Masked, wanted: str | None) -> _Grid:
    """Read a TextGrid in the long or the short form."""
    tiers = _tiers(masked, wanted)
    return _Grid(tiers, lambda tier: _intervals(masked, tier), masked.number(0), masked.number(1))


def _tiers(masked: _Masked, wanted: str | None) -> list[_Tier]:
    """Parse the tiers with praatio, then compare their numbers of entries with the counts that the file states."""
    body, spans = _without_other_entries(masked, wanted)
    try:
        parsed = textgrid_io.parseTextgridStr(body, includeEmptyIntervals=True)
        tiers = [
            _Tier(_string(masked, tier["name"]), tier["class"] == textgrid_io.INTERVAL_TIER, tier["entries"], math.nan)
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
    return [replace(tier, xmin_s=masked.number(start)) for tier, start in zip(tiers, starts, strict=True)]


def _without_other_entries(masked: _Masked, wanted: str | None) -> tuple[str, dict[int, int]]:
    """Keep only the entries of the wanted tiers, because a tier of phones takes four fifths of praatio's time.

    The caller compares the number of removed entries with the count in the file. So a truncated tier is still detected.

    Returns:
        The masked text without the removed entries, and a dictionary with the number of entries removed from each tier.
        This number is -1 if an entry is incomplete. The key of a tier is the index of its first number in `numbers`.
    """
    heads = [
        head
        for head in _TIER_HEAD.finditer(masked.body)
        # Invalid text between tokens can look like an index; praatio then parses the complete tier.
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
    """Return the original text of a masked label.

    A quotation mark inside the label is written twice in the file, and occurs once in the result.
    Raises `ValueError` if the label is not the index of a string.
    """
    match = _LABEL.fullmatch(label)
    if match is None:
        raise ValueError(f"no single string at {_short(label)}")
    return masked.strings[int(match[1])].replace('""', '"')


def _choose(grid: _Grid, wanted: str | None, speakers: Collection[str]) -> tuple[_Tier, tuple[Problem, ...]]:
    """Return the word tier, and a note if another matching tier has other words.

    If MFA wrote a tier for each speaker, the tier whose speaker is in `speakers` is returned. If `speakers` contains
    none of these speakers, the only tier with words is returned; a file with words of several speakers is refused.
    """
    found = [tier for tier in grid.tiers if tier.is_interval and _is_wanted(tier.name, wanted)]
    plain = [tier for tier in found if wanted is not None or _mfa_speaker(tier.name) is None]
    if plain:
        return _first_spoken(grid, plain)
    if len(found) > 1:
        names = {name.casefold() for name in speakers}
        own = [tier for tier in found if _mfa_speaker(tier.name) in names]
        spoken = [tier for tier in found if any(is_word(item.word) for item in grid.intervals(tier))]
        found = own or spoken or found[:1]
        if len({_mfa_speaker(tier.name) for tier in found}) > 1:
            listed = ", ".join(_short(tier.name) for tier in found[:20])
            raise RecordingFault("textgrid-several-speakers", f"the tiers {listed}", "one tier of words")
    if found:
        return _first_spoken(grid, found)
    listed = first_of([f"{_short(t.name)} ({'intervals' if t.is_interval else 'points'})" for t in grid.tiers], 20)
    name = "words or word" if wanted is None else _short(wanted)
    raise RecordingFault(
        "textgrid-no-word-tier",
        f"the tiers {listed}" if grid.tiers else "no tiers at all",
        f"an interval tier called {name}",
    )


def _first_spoken(grid: _Grid, tiers: Sequence[_Tier]) -> tuple[_Tier, tuple[Problem, ...]]:
    """Return the first tier that has words, and a note if another tier has other words.

    If all tiers are without words, return the first tier.
    """
    if len(tiers) == 1:
        return tiers[0], ()
    words = [[item for item in grid.intervals(tier) if is_word(item.word)] for tier in tiers]
    spoken = [number for number, found in enumerate(words) if found]
    if not spoken:
        return tiers[0], ()
    first = spoken[0]
    others = [f"{_short(tiers[number].name)} of {len(words[number])} words" for number in spoken]
    if all(words[number] == words[first] for number in spoken):
        return tiers[first], ()
    return tiers[first], (
        Problem("textgrid-several-tiers", f"the tiers {', '.join(others[:20])}", "one tier of words"),
    )


def _is_wanted(name: str, wanted: str | None) -> bool:
    plain, asked = _plain(name), _plain(wanted or "")
    if wanted is not None:
        return plain == asked
    return plain.casefold() in WORD_TIERS or _mfa_speaker(name) is not None


def _plain(name: str) -> str:
    """Return a tier's name without white space and quotation marks around it."""
    return name.strip().strip("\"'").strip()


def _mfa_speaker(name: str) -> str | None:
    """Return the case-folded speaker of a tier whose name has MFA's form ``SPEAKER - words``, otherwise None."""
    match = _MFA_TIER.fullmatch(_plain(name))
    return match["speaker"].casefold() if match else None


def _chronological(text: str) -> _Grid:
    """Read Praat's chronological form: headers of tiers, then the entries of all tiers in order of time.

    Each entry begins with the number of its tier. This form has no counts of entries, so an interval tier that ends
    before the time in its header is refused.
    """
    tokens = list(_FREE_TOKEN.finditer(text))[1:]
    position = 0

    def take(kind: str) -> str:
        nonlocal position
        match = tokens[position] if position < len(tokens) else None
        if match is None or match[kind] is None:
            place = len(text) if match is None else match.start()
            found = "the end of the file" if match is None else _short(match[0])
            line = text.count("\n", 0, place) + 1
            raise RecordingFault("textgrid-syntax", f"line {line}: {found}", f"a {kind}")
        position += 1
        return match[kind]

    def number() -> float:
        token = take("number")
        if len(token) > 512 or not _NUMBER.fullmatch(token):
            raise RecordingFault("textgrid-syntax", f"{_short(token)} in entry {position}", "a number")
        return float(token)

    xmin_s, xmax_s, count = number(), number(), number()
    if not 0 <= count <= len(tokens) or count != int(count):
        raise RecordingFault("textgrid-syntax", f"a tier count of {count:g}", "the number of tiers in the file")
    tiers: list[_Tier] = []
    ends = []
    for _ in range(int(count)):
        kind, name = take("string"), take("string").replace('""', '"')
        tiers.append(_Tier(name, kind == "IntervalTier", [], number()))
        ends.append(number())
    while position < len(tokens):
        place = number()
        if place not in range(1, len(tiers) + 1):
            raise RecordingFault("textgrid-syntax", f"an entry of tier {place:g}", f"tiers 1 to {len(tiers)}")
        tier = tiers[int(place) - 1]
        times = (number(), number()) if tier.is_interval else (number(),)
        tier.entries.append((one_line(take("string").replace('""', '"')), *times))
    for tier, end in zip(tiers, ends, strict=True):
        reached = tier.entries[-1][-1] if tier.entries else xmin_s
        if tier.is_interval and not reached >= end - _ROUNDING_S:
            found = f"tier {_short(tier.name)} up to {reached:g} of {end:g} s"
            raise RecordingFault("textgrid-syntax", found, "intervals up to the tier's end")

    def intervals(tier: _Tier) -> list[WordInterval]:
        place = f"tier {_short(tier.name)}"
        return [_checked_interval(word, start, end, place) for word, start, end in tier.entries]

    return _Grid(tiers, intervals, xmin_s, xmax_s)


def _intervals(masked: _Masked, tier: _Tier) -> list[WordInterval]:
    """Return all intervals of a tier in file order, including silences, after checking each one."""
    out: list[WordInterval] = []
    for entry in tier.entries:
        try:
            label = _string(masked, entry.label)
            first, last = int(entry.start), int(entry.end)
            start, end = masked.number(first), masked.number(last)
        except _PARSE_FAULTS as fault:
            found = f"interval {len(out) + 1} of tier {_short(tier.name)}: {_short(str(fault))}"
            raise RecordingFault("textgrid-syntax", found, "two times and a label") from None
        if not _is_span(start, end):  # the line number is computed only for an error
            _checked_interval(one_line(label), start, end, f"line {masked.line(first)}")
        out.append(_checked_interval(one_line(label), start, end, ""))
    return out


def _is_span(start: float, end: float) -> bool:
    return math.isfinite(start) and math.isfinite(end) and -NEGATIVE_TOLERANCE_S <= start <= end


def _checked_interval(word: str, start: float, end: float, place: str) -> WordInterval:
    """Return an interval after checking its times; -0.0 and tiny negative times become 0.

    Raises:
        RecordingFault: The times are invalid; the error names `place`.
    """
    if not _is_span(start, end):
        found = f"{_short(word)} from {start!r} to {end!r} s, {place}"
        raise RecordingFault("textgrid-bad-interval", found, "0 <= start <= end")
    return WordInterval(word, start if start > 0 else 0.0, end if end > 0 else 0.0)  # max would keep -0.0


def one_line(label: str) -> str:
    """Return a label without surrounding white space; a line break inside becomes one space."""
    return " ".join(part.strip() for part in label.splitlines() if part.strip())


def words_in_order(intervals: Sequence[WordInterval]) -> tuple[list[WordInterval], tuple[Problem, ...]]:
    """Return the intervals that are words, and notes on dropped and shortened words.

    Args:
        intervals: Intervals of one tier with finite times, in the order of the file.

    Returns:
        The words in order of time, and one note for each kind of change.

    Raises:
        RecordingFault: Intervals are out of order or overlap by more than 10 ms.
    """
    words: list[WordInterval] = []
    no_time = shortened = 0
    silences: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    last: WordInterval | None = None
    for item in intervals:
        start = item.start
        if item.end > item.start:
            if last is not None:
                _refuse_overlap(item, last)
            if last is None or item.end > last.end:
                last = item
            if words and start < words[-1].end:
                start = words[-1].end  # the overlap is below the tolerance
        if is_silence(item.word):
            silences[item.word] += 1
        elif is_unknown(item.word):
            unknown[item.word] += 1
        elif item.end > start:
            words.append(WordInterval(item.word, start, item.end))
            shortened += start - item.start > _ROUNDING_S
        else:
            no_time += 1
    del silences[""]
    counts = (
        ("words-zero-length", f"{no_time} words" if no_time else "", "duration"),
        ("words-silence", _counted(silences), "words"),
        ("words-unknown", _counted(unknown), "words"),
        ("words-overlap", f"{shortened} words" if shortened else "", "words one after the other"),
    )
    return words, tuple(Problem(*count) for count in counts if count[1])


def _refuse_overlap(item: WordInterval, last: WordInterval) -> None:
    """Refuse an interval that begins more than 10 ms before the end of the previous interval."""
    if last.end - item.start <= OVERLAP_TOLERANCE_S + _SLACK_S:
        return
    times = " and ".join(f"{_short(one.word)} {one.start!r} to {one.end!r} s" for one in (item, last))
    if item.end <= last.start:
        raise RecordingFault("textgrid-bad-interval", f"{times}, not in order", "intervals in order of time")
    raise RecordingFault("textgrid-overlap", times, f"overlaps up to {OVERLAP_TOLERANCE_S:g} s")


def _counted(labels: Counter[str]) -> str:
    """Describe counted labels as text: their total number, and the most frequent labels; "" if there are no labels."""
    if not labels:
        return ""
    shown = [_short(label) for label, _ in sorted(labels.items(), key=lambda item: (-item[1], item[0]))]
    more = ", ..." if len(shown) > _SHOWN_LABELS else ""
    return f"{labels.total()} labels: {', '.join(shown[:_SHOWN_LABELS])}{more}"


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
