"""Estimate word timings for plain text from a speaking rate, which is learned from training words.

Checkpoints contain the speaking rate.

A word of n letters takes a + b·n seconds (least squares over the words of the train split). Pauses are medians of the
gaps between words in the train split:

* Pause within a phrase: median of gaps from 0 to 0.2 s.
* Pause after a comma or a similar mark: median of gaps from 0.2 to 0.6 s.
* Pause after a full stop or a similar mark: median of gaps from 0.6 to 2 s.

If there are no gaps in one of these ranges, the pause is the lower bound of the range. Times are estimates, and results
contain a warning about this.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from unicodedata import category

import numpy as np

from omniges.errors import UsageFault
from omniges.formats.textgrid import is_word
from omniges.model.speaking_rate import SpeakingRate, letter_count

_BOUNDS_S: Final = (0.0, 0.2, 0.6, 2.0)
MIN_WORDS: Final = 10
"""Smallest number of words from which a speaking rate is learned."""
_SENTENCE: Final = frozenset(".!?…。！？؟")
_PHRASE: Final = frozenset(",;:、，；：،؛-–—")
_WIDE: Final = "。！？…，；：、؟،؛"
# Letters of scripts without spaces between words: Han (with its supplements), Hiragana and Katakana.
_LETTER: Final = (
    r"[\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    r"\uf900-\ufaff\uff66-\uff9d\U0001b000-\U0001b16f\U00020000-\U000323af]"
)
_MARKS: Final = r"[\u3099\u309a\uff9e\uff9f\ufe00-\ufe0f\U000e0100-\U000e01ef]"
_PIECES: Final = re.compile(rf"{_LETTER}{_MARKS}*|[{_WIDE}]+|(?:(?!{_LETTER})[^{_WIDE}])+")
_SUBTITLE: Final = re.compile(
    r"(?:\d+:)?\d?\d:\d\d[.,]\d+\s*-->.*|\d+:\d\d:\d\d\.\d+,\d+:\d\d:\d\d\.\d+|\{\d+\}\{\d+\}.*"
)
_STARTS: Final = {
    "WEBVTT": "subtitles",
    "[Script Info]": "subtitles",
    '"Praat': "a TextGrid",
    "{\\rtf": "rich text",
    "%PDF-": "a PDF",
    "%!PS": "PostScript",
    "\\documentclass": "LaTeX",
    "#!/": "a program",
    "version https://git-lfs": "a Git LFS pointer, not the file itself",
    "@UTF8\n@": "a CHAT transcript",
    "@Begin": "a CHAT transcript",
}
"""First characters of texts that are not plain words, and the format of such texts."""
_LYRIC: Final = re.compile(r"\[\d+:\d\d(?:[.:]\d+)?\].*")
_JSON: Final = re.compile(r'\{\s*["}]|\[\s*[\[{"\]]')
_TAG: Final = re.compile(r"<(?:\?xml|!doctype|([a-z][\w:-]*))[^<>]*>", re.IGNORECASE)
_ROW: Final = re.compile(  # a line with two times: at the start, or after one or two names as in a CTM file
    r"(?:\d+(?:[.,]\d+)?[\t ,;]+\d+(?:[.,]\d+)?"
    r"|[^\s,;]+[\t ,;]+(?:[^\s,;]+[\t ,;]+)?\d+\.\d+[\t ,;]+\d+\.\d+)(?:[\t ,;].*)?"
)


def learn_rate(clips: Iterable[Sequence[Mapping[str, Any]]]) -> SpeakingRate:
    """Learn the speaking rate from the words of clips (``word``, ``start``, ``end`` in seconds).

    Args:
        clips: Words of each clip, in order of time.

    Returns:
        The speaking rate.

    Raises:
        UsageFault: There are fewer than 10 words.
    """
    letters: list[int] = []
    lengths: list[float] = []
    gaps: list[float] = []
    for words in clips:
        letters += [letter_count(word["word"]) for word in words]
        lengths += [word["end"] - word["start"] for word in words]
        gaps += [after["start"] - before["end"] for before, after in itertools.pairwise(words)]
    if len(lengths) < MIN_WORDS:
        raise UsageFault(
            f"plain text: expected at least {MIN_WORDS} words in the train split of --shards to learn a "
            f"speaking rate, found {len(lengths)}; give other shards, or a TextGrid"
        )
    design = np.stack([np.ones(len(letters)), np.array(letters, dtype=np.float64)], axis=1)
    (base, slope), *_ = np.linalg.lstsq(design, np.array(lengths), rcond=None)
    silent = np.array(gaps)
    pauses = []
    for low, high in itertools.pairwise(_BOUNDS_S):
        chosen = silent[(silent >= low) & (silent < high)]
        pauses.append(float(np.median(chosen)) if len(chosen) else low)
    gap, phrase, sentence = pauses
    return SpeakingRate(float(base), float(slope), gap, phrase, sentence, len(lengths))


def _without_edges(token: str) -> str:
    """Return a token without the punctuation at its start and end; an empty text if it consists of punctuation.

    Accents and vowel signs after the last letter are kept, because they belong to this letter.
    """
    inside = [k for k, letter in enumerate(token) if letter.isalnum() or letter in "_'"]
    if not inside:
        return ""
    last = inside[-1] + 1
    while last < len(token) and category(token[last]).startswith("M"):
        last += 1
    return token[inside[0] : last]


def _other_format(text: str) -> str | None:
    """Return what a text contains in place of plain words, such as "JSON" or a control character; None: plain words."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    start = "\n".join(lines[:3])
    tag = _TAG.match(start)
    if '"ooTextFile' in start:
        return "a TextGrid"
    if known := next((kind for first, kind in _STARTS.items() if start.startswith(first)), None):
        return known
    if any(map(_SUBTITLE.fullmatch, lines)):
        return "subtitles"
    if lines and all(map(_LYRIC.fullmatch, lines)):
        return "lyrics with times"
    if _JSON.match(start):
        return "JSON"
    if tag and (tag[1] is None or lines[-1].endswith(f"</{tag[1]}>")):
        return "XML or HTML"
    if len(lines) > 1 and all(map(_ROW.fullmatch, lines[1:])):  # the first line may be a heading
        return "a table of times"
    control = next((letter for letter in text if category(letter) == "Cc" and not letter.isspace()), None)
    return None if control is None else f"the control character U+{ord(control):04X}"


def _is_mark(token: str) -> bool:
    """Return whether a token is a transcript mark in brackets, such as ``[SIL]`` or ``<unk>``, and not a word."""
    plain = token.strip(".,;:!?")
    return plain[:1] in {"<", "[", "{"} and not is_word(plain)


def estimate_warnings(text: str, rate: SpeakingRate) -> list[str]:
    """Return warnings about a text that `timed_words` converts to words.

    Args:
        text: Plain text.
        rate: Speaking rate.

    Returns:
        A warning that the times are estimates. A second warning follows if the text contains transcript marks such as
        ``[SIL]``, which `timed_words` leaves out.
    """
    found = [f"times estimated by a speaking rate learned from {rate.words} words"]
    if marks := [token for token in text.split() if _is_mark(token)]:
        shown = ", ".join(sorted(set(marks))[:5])
        found.append(f"{len(marks)} marks of silence, noise or unknown words left out: {shown}")
    return found


def timed_words(text: str, rate: SpeakingRate) -> list[dict[str, Any]]:
    """Split a text into words with estimated times, which are rounded to milliseconds and start at 0.

    Args:
        text: Plain text. Punctuation at the edges of a word makes pauses and is not spoken. Each letter of Chinese and
            Japanese is a word.
        rate: Speaking rate.

    Returns:
        Words (``word``, ``start``, ``end`` in seconds).

    Raises:
        UsageFault: The text has no words, or has another format than plain text.
    """
    if kind := _other_format(text):
        raise UsageFault(f"text: expected plain words, found {kind}; give a TextGrid, or the words alone")
    words: list[dict[str, Any]] = []
    now = 0.0
    for token in (piece for part in text.split() if not _is_mark(part) for piece in _PIECES.findall(part)):
        spoken = _without_edges(token)
        if spoken:
            end = now + rate.word_s(spoken)
            words.append({"word": spoken, "start": round(now, 3), "end": round(end, 3)})
            now = end + rate.gap_s
        ending = set(token.rpartition(spoken)[2] if spoken else token)
        if words and ending & (_SENTENCE | _PHRASE):
            now = words[-1]["end"] + (rate.sentence_s if ending & _SENTENCE else rate.phrase_s)
    if not words:
        raise UsageFault("text: expected at least one word, found none; give words")
    if not any(is_word(word["word"]) for word in words):  # next to words, "sil" may be a word, as in Turkish
        found = ", ".join(sorted({word["word"] for word in words})[:5])
        raise UsageFault(
            f"text: expected at least one word, found only marks of silence or noise ({found}); give words"
        )
    return words
