"""Conversion of timed words to text tokens, one for each tick, and back.

A token is a number that says which subword is spoken during its tick. The number 0, a blank, means that no word is
spoken. Any other number combines the subword's id in the tokenizer with two flags, called marks: *first tick of the
subword* and *first subword of the word*. So the tokens of a word store its spelling, its first tick, and the first tick
of each subword. A word that occurs at least twice in the train split is a single subword; its id is repeated in all
ticks of the word.

A word occupies the complete ticks nearest to its interval. It needs at least as many ticks as it has subwords. If its
interval has too few, the word is extended or shifted into free ticks. Neighbouring words may be shifted too. The start
and the end of a word each move by at most `MAX_PUSH_TICKS`. Dynamic programming finds the assignment with the smallest
total shift. A word that does not fit is dropped.

This module also checks the content of tokenizer.json, independently of the version of the tokenizers package. It does
not import torch.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError
from omniges.features.timebase import TICKS_PER_SECOND

I32 = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

BLANK: Final = 0
MARKS: Final = 4
"""Number of combinations of the two marks; a token is 1 + MARKS · subword + 2 · first tick + first subword."""
MAX_PUSH_TICKS: Final = 2
_DROP_COST: Final = 10**12  # larger than the cost of all shifts in a clip

_BYTE_LEVEL: Final = {"type": "ByteLevel", "trim_offsets": True}
_PIPELINE: Final[dict[str, Any]] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": _BYTE_LEVEL | {"add_prefix_space": False, "use_regex": False},
    "post_processor": None,
    "decoder": _BYTE_LEVEL | {"add_prefix_space": True, "use_regex": True},
}
"""Required content of tokenizer.json except the model; other steps could change a word."""
_MODEL: Final[dict[str, Any]] = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
"""Required content of the model except vocabulary and merges; dropout would make a word's subwords random."""


def pack_tokens(subwords: I32, first_tick: Bools, first_subword: Bools) -> I32:
    """Combine subword ids and the two marks of each tick into tokens. The marks of a blank tick have no effect.

    All arrays have the same shape, with one value for each tick.

    Args:
        subwords: Subword ids, -1 for a blank.
        first_tick: True in the first tick of each subword.
        first_subword: True in all ticks of the first subword of each word.

    Returns:
        Tokens, int32.
    """
    ids = 1 + MARKS * subwords + 2 * first_tick.astype(np.int32) + first_subword.astype(np.int32)
    return np.where(subwords < 0, BLANK, ids).astype(np.int32)


def unpack_tokens(ids: I32) -> tuple[I32, Bools, Bools]:
    """Split tokens into subword ids (-1 for a blank), `first_tick` and `first_subword`; inverse of `pack_tokens`."""
    marks = (ids - 1) % MARKS
    blank = ids == BLANK
    subwords = np.where(blank, -1, (ids - 1) // MARKS).astype(np.int32)
    return subwords, (marks >= 2) & ~blank, (marks % 2 == 1) & ~blank


@dataclass(frozen=True, slots=True)
class EncodedWords:
    """Text tokens of one clip, and its dropped words."""

    ids: I32  # (ticks,)
    dropped: tuple[Mapping[str, Any], ...]  # the given words that have no tokens, because too few ticks were free


@dataclass(frozen=True, slots=True)
class DecodedWord:
    """A word that was read from tokens. Its times are multiples of 0.1 s, in seconds from the first token."""

    word: str
    start: float
    end: float
    cut: bool
    """The word begins before the first token: ``start`` is 0, and ``word`` is its visible part."""

    def as_json(self) -> dict[str, Any]:
        """Return ``word``, ``start`` and ``end`` as in words.json; the field `cut` is left out."""
        return {"word": self.word, "start": self.start, "end": self.end}


class TextTokenCodec:
    """Encoder and decoder between timed words and text tokens, with the tokenizer.json of a shard set.

    The constructor takes the content of tokenizer.json. It raises `DataError` if the content is not a tokenizer as
    `preprocess` writes it. Such a tokenizer has a subword for each of the 256 bytes, so it can spell every word.
    """

    def __init__(self, tokenizer_json: bytes) -> None:
        problem = tokenizer_problem(tokenizer_json)
        if problem is not None:
            raise DataError(
                f"tokenizer.json: expected the tokenizer that preprocess writes, found another one ({problem}); run "
                "omniges verify-shards"
            )
        from tokenizers import Tokenizer  # noqa: PLC0415 - the import of this native package takes 70 ms

        self._tokenizer = Tokenizer.from_str(tokenizer_json.decode())
        self.vocab_size: int = self._tokenizer.get_vocab_size()
        """Number V of subwords; subword ids are 0 to V − 1, and tokens 0 (the blank) to MARKS · V."""

    def encode(self, words: Sequence[Mapping[str, Any]], ticks: int) -> EncodedWords:
        """Convert words to tokens.

        Args:
            words: Words (``word``, ``start`` and ``end`` in seconds), in order of time.
            ticks: Length of the clip in ticks.

        Returns:
            Tokens (ticks,), and the dropped words.
        """
        spelled = self._tokenizer.encode_batch([w["word"] for w in words], add_special_tokens=False)
        subwords = [encoding.ids for encoding in spelled]
        demands = [
            _Demand(TICKS_PER_SECOND * word["start"], TICKS_PER_SECOND * word["end"], len(spelling))
            for word, spelling in zip(words, subwords, strict=True)
        ]
        ids = np.full(ticks, -1, np.int32)
        first_tick = np.zeros(ticks, np.bool_)
        first_subword = np.zeros(ticks, np.bool_)
        dropped = []
        places = _place(demands, ticks)
        for word, spelling, place in zip(words, subwords, places, strict=True):
            if place is None:
                dropped.append(word)
                continue
            start, end = place
            bounds = [start + k * (end - start) // len(spelling) for k in range(len(spelling) + 1)]
            ids[start:end] = np.repeat(np.asarray(spelling, np.int32), np.diff(bounds))
            first_tick[bounds[:-1]] = True
            first_subword[start : bounds[1]] = True
        return EncodedWords(pack_tokens(ids, first_tick, first_subword), tuple(dropped))

    def decode(self, ids: I32) -> list[DecodedWord]:
        """Convert tokens, such as those of a window, to words.

        A subword begins at a token with the mark *first tick of the subword*, or where the id changes. A word begins
        with a subword that has the mark *first subword of the word*. It ends at a blank or at the next word.

        The tokens may begin in the middle of a word, which began before the window. These tokens become a word with
        `cut` = True. After a blank, a model may also generate tokens without the mark *first subword of the word*.
        These tokens become a word with `cut` = False, so that they are not lost. Tokens do not show whether the end of
        the window cuts the last word.

        Args:
            ids: Tokens (ticks,).

        Returns:
            Words, with times in seconds from the first token.
        """
        subwords, first_tick, first_subword = unpack_tokens(np.asarray(ids, np.int32))
        words: list[DecodedWord] = []
        for start, end in _word_edges(subwords, first_tick, first_subword):
            begins = first_tick[start:end].copy()
            begins[0] = True
            begins[1:] |= subwords[start + 1 : end] != subwords[start : end - 1]
            # Bytes that are not UTF-8, such as those of a cut word, become U+FFFD.
            text = self._tokenizer.decode(subwords[start:end][begins].tolist(), skip_special_tokens=False)
            cut = start == 0 and not (first_tick[0] and first_subword[0])
            words.append(DecodedWord(text, start / TICKS_PER_SECOND, end / TICKS_PER_SECOND, cut))
        return words


def _word_edges(subwords: I32, first_tick: Bools, first_subword: Bools) -> list[tuple[int, int]]:
    """Return the half-open range of ticks of each word."""
    spoken = np.concatenate([[False], subwords >= 0, [False]])
    goes_on = first_subword[1:] & first_subword[:-1] & ~first_tick[1:] & (subwords[1:] == subwords[:-1])
    beginning = np.concatenate([first_subword[:1], first_subword[1:] & ~goes_on, [False]])
    starts = spoken[1:] & (beginning | ~spoken[:-1])
    stops = spoken[:-1] & (beginning | ~spoken[1:])
    return list(zip(np.flatnonzero(starts).tolist(), np.flatnonzero(stops).tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class _Demand:
    """Interval of a word in ticks of 0.1 s, not rounded, and the number of ticks that the word needs."""

    start: float
    end: float
    minimum: int


@dataclass(frozen=True, slots=True)
class _Placed:
    """An assignment of ticks to the first k words of a clip. All assigned ticks are before tick ``end``.

    The cost is the sum of squared shifts that `_place` minimizes, plus a constant for each dropped word. `_place` keeps
    an assignment only if it costs less than all assignments that end at the same tick or earlier.
    """

    end: int
    cost: float
    place: tuple[int, int] | None  # ticks of the last of these words; None: the word is dropped
    before: _Placed | None  # the assignment without the last word; None if there are no words


def _place(demands: Sequence[_Demand], ticks: int) -> list[tuple[int, int] | None]:
    """Return a half-open range of ticks for each word, in order and without overlap; None for a dropped word.

    The result is optimal: it has the fewest dropped words, and among such results the smallest sum of squared shifts.
    In this sum, the shift of a word's end is halved before it is squared.
    """
    front = [_Placed(0, 0.0, None, None)]  # ascending ends, descending costs (a Pareto front)
    for demand in demands:
        earliest = round(demand.start) - MAX_PUSH_TICKS
        # Several assignments may end before the word's earliest start. Only the cheapest of them can be optimal.
        front = front[max(0, bisect_right(front, earliest, key=lambda state: state.end) - 1) :]
        found = [_Placed(s.end, s.cost + _DROP_COST, None, s) for s in front]
        found += _choices(demand, front, ticks)
        found.sort(key=lambda state: (state.end, state.cost))
        front = []
        for state in found:
            if not front or state.cost < front[-1].cost:
                front.append(state)
    places = []
    last: _Placed | None = front[-1]
    while last is not None:
        places.append(last.place)
        last = last.before
    return places[-2::-1]


def _choices(demand: _Demand, front: Sequence[_Placed], ticks: int) -> list[_Placed]:
    """Extend assignments of the earlier words by each possible tick range of the next word.

    Args:
        demand: The next word.
        front: Assignments of the earlier words, by ascending ``end`` and descending ``cost``.
        ticks: Length of the clip in ticks.

    Returns:
        An assignment for each range (start, end) of the next word. It extends the cheapest assignment in `front` that
        ends at `start` or earlier.
    """
    near_start, near_end = round(demand.start), round(demand.end)
    ends = range(near_end - MAX_PUSH_TICKS, min(near_end + MAX_PUSH_TICKS, ticks) + 1)
    found = []
    for start in range(max(0, near_start - MAX_PUSH_TICKS), near_start + MAX_PUSH_TICKS + 1):
        index = bisect_right(front, start, key=lambda state: state.end) - 1
        if index >= 0:
            before = front[index]
            cost = before.cost + (start - demand.start) ** 2
            found += [
                _Placed(end, cost + ((end - demand.end) / 2) ** 2, (start, end), before)
                for end in ends
                if end - start >= demand.minimum
            ]
    return found


def tokenizer_problem(data: bytes) -> str | None:
    """Check whether bytes are a tokenizer.json as `train_tokenizer` writes it.

    All steps of the tokenizer must be the expected ones, and vocabulary and merges must agree. Then
    decode(encode(s)) = s holds for every Unicode string and any version of the tokenizers package. This package is
    native code that does not check its input. So only files without a problem may be passed to the package.

    Args:
        data: Bytes of the file.

    Returns:
        Description of the problem; None if the bytes are valid.
    """

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) != len(pairs):
            raise ValueError("a name occurs twice")
        return found

    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=without_duplicates)
    except RecursionError:
        return "nested too deeply"
    except ValueError as error:
        return f"no JSON document ({error})"
    if not isinstance(document, dict):
        return f"expected an object, found {type(document).__name__}"
    model = document.get("model")
    if not isinstance(model, dict):
        return "no model"
    found = {name: value for name, value in document.items() if name != "model"}
    settings = {name: value for name, value in model.items() if name not in {"vocab", "merges"}}
    return (
        _difference(found, _PIPELINE)
        or _difference(settings, _MODEL, "model.")
        or _model_problem(model.get("vocab"), model.get("merges"))
    )


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> str | None:
    """Describe the first field that differs from its wanted value; None if all are equal. True and 1 are different."""
    for name in sorted(found.keys() | wanted.keys()):
        one, other = (
            json.dumps(values[name], sort_keys=True) if name in values else "nothing" for values in (found, wanted)
        )
        if one != other:
            return f"{prefix}{ascii(name)[1:-1][:40]}: expected {other}, found {one[:80]}"
    return None


def _model_problem(vocabulary: Any, merges: Any) -> str | None:
    """Describe the first problem of a vocabulary and its merges; None if they are valid."""
    from tokenizers import pre_tokenizers  # noqa: PLC0415 - the import of this native package takes 70 ms

    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    if not isinstance(vocabulary, dict) or not isinstance(merges, list):
        return "model.vocab and model.merges: expected an object and a list"
    missing = len(alphabet - vocabulary.keys())
    if missing:
        return f"model.vocab: {missing} of the 256 bytes are not in it, so not every word can be spelled"
    numbers = vocabulary.values()
    if not all(type(number) is int for number in numbers) or sorted(numbers) != list(range(len(vocabulary))):
        return f"model.vocab: expected the numbers 0 to {len(vocabulary) - 1}, each once"
    made = set(alphabet)
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge  # before 0.20.1, a merge is one string
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            return f"model.merges: expected pairs of subwords, found {ascii(merge)[:80]}"
        if not set(pair) <= made or "".join(pair) not in vocabulary:
            return f"model.merges: {ascii(pair)[:80]} joins or makes what is no subword"
        made.add("".join(pair))
    return (
        None if made == vocabulary.keys() else f"model.vocab: {len(vocabulary.keys() - made)} subwords no merge makes"
    )
