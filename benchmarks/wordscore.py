"""Recognizes words of the synthetic corpus in motion or sound, by template matching and without a trained model.

The template of a word is the mean of its middle frames in the *recorded* train clips. Frames of a clip are recognized
as the word with the nearest template; each channel is divided by its spread within words. Generated clips are scored
with the same templates, so the score does not depend on the model.

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
Word = Mapping[str, Any]  # with word, and start and end in seconds

_MARGIN_S = 0.12  # the ramp at both ends of a word in the synthetic corpus


@dataclass(frozen=True, slots=True)
class Templates:
    """Templates of words: the mean (V, C) of the middle frames of each word, and the spread (C,) within words."""

    words: tuple[str, ...]
    means: F64
    spread: F64

    def nearest(self, vector: F64) -> str:
        """Return the word whose template is nearest to a vector (C,); channels are divided by their spread."""
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
    """Return the mean (C,) of frames (F, C) in the middle of a word, without its ramps.

    The result is None if the word is too short, or if it is not completely in the array.
    """
    first = int(np.ceil((float(word["start"]) + _MARGIN_S) * rate_hz))
    last = int(np.floor((float(word["end"]) - _MARGIN_S) * rate_hz))
    if last < first or last >= len(frames) or first < 0:
        return None
    return np.asarray(frames[first : last + 1].mean(axis=0, dtype=np.float64))


def learn_templates(clips: Iterable[tuple[F32, Sequence[Word]]], rate_hz: float) -> Templates:
    """Learn templates from recorded clips, each with frames (F, C) and words."""
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
    """Return the smallest number of insertions, deletions and replacements between two texts (Levenshtein 1966)."""
    row = list(range(len(expected) + 1))
    for i, have in enumerate(found, 1):
        above, row[0] = row[0], i
        for j, want in enumerate(expected, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (have != want))
    return row[-1]


def word_error_rate(pairs: Iterable[tuple[Sequence[str], Sequence[str]]]) -> float:
    """Return the number of edits divided by the number of expected words, over pairs (found, expected)."""
    edits = total = 0
    for found, expected in pairs:
        edits += edit_distance(found, expected)
        total += len(expected)
    return edits / total if total else float("nan")
