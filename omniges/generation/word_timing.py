"""Times of words that have none: a speaking rate learned from training words, kept in checkpoints.

A word of n letters takes a + b·n seconds (least squares over the words of the train split). Between words of a
sentence there is the median of the gaps that are shorter than 0.2 s, after a comma and the like the median of those
from 0.2 to 0.6 s, after a full stop and the like that of the longer ones up to 2 s; where the shards lack such a gap,
its lower bound (0 for the shortest). Times are estimates, and results say so.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

import numpy as np

from omniges.errors import UsageFault
from omniges.shards.schema import is_real
from omniges.storage.canonical_json import json_document
from omniges.storage.files import parse_json

_BOUNDS_S: Final = (0.0, 0.2, 0.6, 2.0)
_LEAST_S: Final = 0.05
LEAST_WORDS: Final = 10
"""How many a speaking rate is learned from."""
_MOST: Final = 1e9  # seconds or words
_SENTENCE: Final = frozenset(".!?…。！？؟")
_PHRASE: Final = frozenset(",;:、，；：،؛-–—")
_EDGES: Final = re.compile(r"^[^\w']+|[^\w']+$")


@dataclass(frozen=True, slots=True)
class SpeakingRate:
    """Seconds of words and of pauses between them."""

    base_s: float
    letter_s: float
    gap_s: float
    phrase_s: float
    sentence_s: float
    words: int  # that it was learned from

    def as_json(self) -> bytes:
        """Return the file of a checkpoint that says it."""
        return json_document(asdict(self))

    @classmethod
    def from_json(cls, content: bytes) -> SpeakingRate:
        """Read what `as_json` wrote; raises ValueError for anything else."""
        found = parse_json(content)
        if not isinstance(found, dict) or found.keys() != {f.name for f in fields(cls)}:
            raise ValueError("a speaking rate expected")
        if not all(is_real(value) and abs(value) < _MOST for value in found.values()):
            raise ValueError("a speaking rate in seconds expected")
        return cls(**found)

    def word_s(self, word: str) -> float:
        """Seconds of a word."""
        return max(_LEAST_S, self.base_s + self.letter_s * _letters(word))


def _letters(word: str) -> int:
    return sum(character.isalnum() for character in word)


def learn_rate(clips: Iterable[Sequence[Mapping[str, Any]]]) -> SpeakingRate:
    """The rate of clips' words (``word``, ``start`` and ``end`` in seconds).

    Raises UsageFault where there are fewer than 10.
    """
    letters: list[int] = []
    lengths: list[float] = []
    gaps: list[float] = []
    for words in clips:
        letters += [_letters(word["word"]) for word in words]
        lengths += [word["end"] - word["start"] for word in words]
        gaps += [after["start"] - before["end"] for before, after in itertools.pairwise(words)]
    if len(lengths) < LEAST_WORDS:
        raise UsageFault(
            f"plain text: at least {LEAST_WORDS} words expected in the train split of --shards to learn how fast "
            f"words are spoken, found {len(lengths)}; give other shards, or a TextGrid"
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


def timed_words(text: str, rate: SpeakingRate) -> list[dict[str, Any]]:
    """Words of a text with estimated times, milliseconds; the first begins at 0.

    Punctuation at a word's edges makes pauses and is not spoken. Raises UsageFault for a text without words.
    """
    words: list[dict[str, Any]] = []
    now = 0.0
    for token in text.split():
        spoken = _EDGES.sub("", token)
        if spoken:
            end = now + rate.word_s(spoken)
            words.append({"word": spoken, "start": round(now, 3), "end": round(end, 3)})
            now = end + rate.gap_s
        ending = set(token.rpartition(spoken)[2] if spoken else token)
        if words and ending & (_SENTENCE | _PHRASE):
            now = words[-1]["end"] + (rate.sentence_s if ending & _SENTENCE else rate.phrase_s)
    if not words:
        raise UsageFault("text: at least one word expected, found none")
    return words
