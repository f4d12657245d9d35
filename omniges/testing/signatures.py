"""Signatures of the words of a synthetic corpus: tones, pose and face of each word.

The arrays depend only on the seed and the index of a word, and are equal on any CPU. V is the number of words in the
vocabulary; angles are in radians.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from omniges.features.gesture import EXPRESSIONS, JOINT_NAMES, POSE_COLUMNS
from omniges.testing.settings import MAX_WORDS

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_REAL_WORDS: Final = (
    *("river", "stone", "light", "garden", "winter", "music", "open", "seven", "bread", "cloud", "tiger", "paper"),
    *("green", "ocean", "north", "silver", "window", "honey", "bridge", "field", "copper", "early", "thunder", "quiet"),
)
_SYLLABLES: Final = tuple(consonant + vowel for consonant in "bdlmnrsvz" for vowel in "aeio")

# Three registers of seven tones in hertz, 1.6 Slaney mels apart, which is over two of the 64 mel bands.
_TONES_HZ: Final = (
    (167, 273, 380, 487, 593, 700, 807),
    (913, 1021, 1139, 1272, 1419, 1584, 1768),
    (1973, 2202, 2458, 2743, 3061, 3416, 3813),
)
_LEVELS: Final = 7

# The first part of a generator's key identifies the use of the random numbers, so that no two uses share any.
CLIP, SPEAKER, _TONE_ORDER, _CODE = range(4)


def generator(seed: int, *key: int) -> np.random.Generator:
    """Return the random number generator for a seed and a key. The key identifies one use of the random numbers."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def columns(*names: str) -> list[int]:
    """Return the first pose column of each named joint; the three columns of a joint are consecutive."""
    return [3 * JOINT_NAMES.index(name) for name in names]


def _freedoms() -> tuple[F64, int]:
    """Return 28 pose offsets (28, 165) in radians, and the number of offsets that do not move fingers.

    Each row is one direction in which a word can move the body. The rows that do not move fingers come first. A right
    joint mirrors the left joint: the rotations of the right joint about y and z have the opposite sign.
    """
    rows: list[dict[int, float]] = [
        {c + 1: 0.11 for c in columns("spine1", "spine2", "spine3")},  # turn
        {c + 2: 0.11 for c in columns("spine1", "spine2", "spine3")},  # lean
        {c + 1: 0.35 for c in columns("neck")},
        dict.fromkeys(columns("head"), 0.30),
    ]
    sides = (("left", 1.0), ("right", -1.0))
    for side, sign in sides:
        (shoulder,), (elbow,), (wrist,) = (columns(f"{side}_{j}") for j in ("shoulder", "elbow", "wrist"))
        rows += [{shoulder: 0.35}, {shoulder + 1: 0.45 * sign}, {shoulder + 2: 0.50 * sign}]
        rows += [{elbow: 0.35}, {elbow + 1: 0.65 * sign}]
        rows += [{wrist + 1: 0.35 * sign}, {wrist + 2: 0.45 * sign}]
    body = len(rows)
    for side, sign in sides:
        for finger in ("index", "middle", "pinky", "ring", "thumb"):
            axis = 1 if finger == "thumb" else 2
            rows.append({c + axis: 0.30 * sign for c in columns(*(f"{side}_{finger}{k}" for k in (1, 2, 3)))})
    table = np.zeros((len(rows), POSE_COLUMNS))
    for row, entries in zip(table, rows, strict=True):
        row[list(entries)] = list(entries.values())
    return table, body


_FREEDOMS, _BODY_FREEDOMS = _freedoms()
_EXPRESSIONS_PER_WORD: Final = 24


@dataclass(frozen=True, slots=True)
class WordSignature:
    """Spelling, tones, pose offset and facial expression of a word. The arrays are read-only."""

    word: str
    tones_hz: I64  # (3,), they sound together; the speaker's pitch is a factor on them
    rotations: F64  # (165,) rad, added to the pose; zero for pelvis, legs, collars, jaw and eyes
    expression: F64  # (100,), added to the expression coefficients; 24 of them are not zero


def word_signature(index: int, seed: int) -> WordSignature:
    """Return the signature of a word, which is the same in every corpus of this seed.

    Args:
        index: Index of the word, 0 to `MAX_WORDS` − 1. The spelling depends only on this index.
        seed: Seed of the corpus.

    Returns:
        The spelling, tones, rotations and expression of the word.

    Raises:
        ValueError: The index is out of range.
    """
    if not 0 <= index < MAX_WORDS:
        raise ValueError(f"expected word index 0 to {MAX_WORDS - 1}, found {index}")
    # Sizes are powers of two, so that calls for one word after another compute few vocabularies.
    return vocabulary(seed, min(MAX_WORDS, 1 << max(4, index.bit_length())))[index]


@functools.lru_cache(maxsize=16)
def vocabulary(seed: int, size: int) -> tuple[WordSignature, ...]:
    """Return the signatures of the first `size` words for a seed.

    Args:
        seed: Seed of the corpus.
        size: Number of words, at most `MAX_WORDS`.

    Returns:
        The signatures of words 0 to size − 1.
    """
    codes = _motion_codes(seed, size)
    order = [generator(seed, _TONE_ORDER, register).permutation(_LEVELS) for register in range(3)]
    return tuple(_signature(index, seed, codes[index], order) for index in range(size))


def _signature(index: int, seed: int, code: I64, order: list[I64]) -> WordSignature:
    rng = generator(seed, _CODE, index, 1)
    rotations = np.zeros(POSE_COLUMNS)
    for sign, freedom in zip(code, _FREEDOMS, strict=True):
        rotations += sign * rng.uniform(0.85, 1.15) * freedom
    expression = np.zeros(EXPRESSIONS)
    chosen = rng.permutation(EXPRESSIONS)[:_EXPRESSIONS_PER_WORD]
    expression[chosen] = rng.uniform(1.0, 2.0, len(chosen)) * rng.choice((-1.0, 1.0), len(chosen))
    # Of the first 49 words, any two share at most one tone, and words 7k to 7k + 6 share none, because 1, 2 and
    # 2 − 1 are invertible modulo 7 (an orthogonal array of strength two). Any two words differ in at least one tone.
    a, b, c = index % _LEVELS, index // _LEVELS % _LEVELS, index // _LEVELS**2
    levels = (a, (a + b) % _LEVELS, (a + 2 * b + c) % _LEVELS)
    tones = np.array([_TONES_HZ[r][order[r][level]] for r, level in enumerate(levels)])
    for array in (tones, rotations, expression):
        array.setflags(write=False)
    # Real words come first, then words of two made-up syllables. There are 36 syllables, and 5 and 7 are coprime to 36.
    # So words that agree in one syllable differ in the other, and all are distinct.
    count = len(_SYLLABLES)
    invented = _SYLLABLES[5 * index % count] + _SYLLABLES[(7 * index + index // count) % count]
    word = _REAL_WORDS[index] if index < len(_REAL_WORDS) else invented
    return WordSignature(word, tones, rotations, expression)


def _motion_codes(seed: int, size: int) -> I64:
    """Return the motion codes (V, 28) of all words: a motion code consists of 28 signs.

    Entry k of a motion code is 1 or −1: the sign of the word's motion in direction k of `_freedoms`. Each word has 64
    random candidates. It gets the candidate that differs most from the most similar motion code of an earlier word;
    directions that do not move fingers have more weight. The choice does not depend on later words, so a word has the
    same motion code in vocabularies of any size.
    """
    codes = np.zeros((size, len(_FREEDOMS)), dtype=np.int64)
    for index in range(size):
        candidates = 2 * generator(seed, _CODE, index, 0).integers(0, 2, (64, len(_FREEDOMS))) - 1
        differs = candidates[:, None] != codes[None, :index]
        body = differs[..., :_BODY_FREEDOMS].sum(axis=2).min(axis=1, initial=_BODY_FREEDOMS)
        every = differs.sum(axis=2).min(axis=1, initial=len(_FREEDOMS))
        codes[index] = candidates[np.argmax(100 * body + every)]  # the body counts more than fingers
    return codes
