"""Recognizes words in parts of motion or sound by template matching on the synthetic corpus, without any model.

A word's template is the mean of its middles over the *recorded* train clips, per speaker or over all; a stretch is
given to the nearest template, channels weighed by how much they vary within a word. What a model generated is
scored with the same templates, so the score knows nothing of the model.

Letters: F frames, C channels, V words.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Word = Mapping[str, Any]  # word, start, end in seconds

_MARGIN_S = 0.12  # the ramp at both ends of a word in the synthetic corpus


@dataclass(frozen=True, slots=True)
class Templates:
    """Mean (V, C) of each word's middles and the spread (C,) within words."""

    words: tuple[str, ...]
    means: F64
    spread: F64

    def nearest(self, vector: F64) -> str:
        """Return the word with the nearest template to a vector (C,), with channels divided by their spread."""
        distances = (((self.means - vector) / self.spread) ** 2).sum(axis=1)
        return self.words[int(distances.argmin())]


@dataclass(frozen=True, slots=True)
class Score:
    """Number of recognized words, and of all words that were compared."""

    right: int
    seen: int

    @property
    def accuracy(self) -> float:
        """Share of recognized words."""
        return self.right / self.seen if self.seen else float("nan")

    def __add__(self, other: Score) -> Score:
        return Score(self.right + other.right, self.seen + other.seen)


def middle(frames: F32, word: Word, rate_hz: float) -> F64 | None:
    """Return the mean (C,) of frames (F, C) over a word without ramps; None if no frame is left or the array ends."""
    first = int(np.ceil((float(word["start"]) + _MARGIN_S) * rate_hz))
    last = int(np.floor((float(word["end"]) - _MARGIN_S) * rate_hz))
    if last < first or last >= len(frames) or first < 0:
        return None
    return np.asarray(frames[first : last + 1].mean(axis=0, dtype=np.float64))


def learn_templates(clips: Iterable[tuple[F32, Sequence[Word]]], rate_hz: float) -> Templates:
    """Return templates from recorded clips: frames (F, C) and words."""
    found: dict[str, list[F64]] = defaultdict(list)
    for frames, words in clips:
        for word in words:
            vector = middle(frames, word, rate_hz)
            if vector is not None:
                found[str(word["word"])].append(vector)
    names = tuple(sorted(found))
    means = np.stack([np.mean(found[name], axis=0) for name in names])
    within = np.concatenate([np.stack(found[name]) - mean for name, mean in zip(names, means, strict=True)])
    return Templates(names, means, within.std(axis=0) + 1e-3)


def score_words(templates: Templates, frames: F32, words: Sequence[Word], rate_hz: float) -> Score:
    """Count the words that frames (F, C) show at the words' times."""
    right = seen = 0
    for word in words:
        vector = middle(frames, word, rate_hz)
        if vector is not None:
            seen += 1
            right += templates.nearest(vector) == word["word"]
    return Score(right, seen)


def edit_distance(found: Sequence[str], expected: Sequence[str]) -> int:
    """Return the smallest number of insertions, deletions and replacements (Levenshtein 1966)."""
    row = list(range(len(expected) + 1))
    for i, have in enumerate(found, 1):
        above, row[0] = row[0], i
        for j, want in enumerate(expected, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (have != want))
    return row[-1]


def word_error_rate(pairs: Iterable[tuple[Sequence[str], Sequence[str]]]) -> float:
    """Return edits divided by expected words, of pairs (found, expected)."""
    edits = total = 0
    for found, expected in pairs:
        edits += edit_distance(found, expected)
        total += len(expected)
    return edits / total if total else float("nan")
