"""Text tokens: packing, placement against brute force, words back in order and near their times, cuts, any language."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniges.errors import DataError
from omniges.features.text_tokens import (
    BLANK,
    MARKS,
    MAX_PUSH_TICKS,
    DecodedWord,
    TextTokenCodec,
    pack_tokens,
    unpack_tokens,
)
from omniges.formats.textgrid import decode_words
from omniges.shards.dataset import train_tokenizer

SHARED = Path(os.environ.get("OMNIGES_SHARED", Path(__file__).resolve().parents[3] / "shared"))
BYTES_ALONE = train_tokenizer({})


def word(text: str, start: float, end: float) -> dict[str, Any]:
    return {"word": text, "start": start, "end": end}


def subwords_of(codec: TextTokenCodec, text: str) -> list[int]:
    """The subwords of one word."""
    return codec._tokenizer.encode(text, add_special_tokens=False).ids


def codec_for(*words: str) -> TextTokenCodec:
    """A codec in which each of these words is one subword."""
    return TextTokenCodec(train_tokenizer(dict.fromkeys(words, 2)))


class TestPacking:
    @given(st.lists(st.tuples(st.integers(-1, 2**28), st.booleans(), st.booleans()), max_size=30))
    def test_unpack_undoes_pack_and_blank_is_zero(self, tokens):
        subwords = np.array([p for p, _, _ in tokens], np.int32)
        first_tick = np.array([p >= 0 and t for p, t, _ in tokens], bool)
        first_subword = np.array([p >= 0 and w for p, _, w in tokens], bool)
        packed = pack_tokens(subwords, first_tick, first_subword)
        assert packed.dtype == np.int32
        assert ((packed == BLANK) == (subwords < 0)).all()
        for got, expected in zip(unpack_tokens(packed), (subwords, first_tick, first_subword), strict=True):
            np.testing.assert_array_equal(got, expected)

    def test_every_number_is_a_token_of_its_own(self):
        every = np.arange(1 + MARKS * 5, dtype=np.int32)
        np.testing.assert_array_equal(pack_tokens(*unpack_tokens(every)), every)


class TestPlacement:
    def test_a_word_fills_the_ticks_of_its_interval_and_each_tick_tells_it(self):
        codec = codec_for("tree", "leaf")
        tokens = codec.encode([word("tree", 0.2, 0.5), word("leaf", 0.5, 0.7)], 10).ids
        subwords, first_tick, first_subword = unpack_tokens(tokens)
        (tree,), (leaf,) = subwords_of(codec, "tree"), subwords_of(codec, "leaf")
        assert subwords.tolist() == [-1, -1, tree, tree, tree, leaf, leaf, -1, -1, -1]
        assert np.flatnonzero(first_tick).tolist() == [2, 5]
        assert np.flatnonzero(first_subword).tolist() == [2, 3, 4, 5, 6]

    def test_pieces_spread_evenly_and_only_the_first_is_marked_as_such(self):
        codec = TextTokenCodec(BYTES_ALONE)
        subwords, first_tick, first_subword = unpack_tokens(codec.encode([word("abc", 0, 0.8)], 8).ids)
        a, b, c = subwords_of(codec, "abc")
        assert subwords.tolist() == [a, a, b, b, b, c, c, c]
        assert np.flatnonzero(first_tick).tolist() == [0, 2, 5]
        assert np.flatnonzero(first_subword).tolist() == [0, 1]

    def test_a_word_shorter_than_a_tick_has_one(self):
        decoded = codec_for("a").encode([word("a", 0.52, 0.53)], 10)
        assert np.count_nonzero(decoded.ids) == 1
        assert decoded.ids[5] != BLANK

    def test_a_word_grows_into_silence_by_two_ticks_at_each_end_and_no_further(self):
        codec = TextTokenCodec(BYTES_ALONE)
        fits = codec.encode([word("abcdef", 0.5, 0.7)], 20)
        assert np.flatnonzero(fits.ids).tolist() == [3, 4, 5, 6, 7, 8]
        too_long = [word("abcdefg", 0.5, 0.7)]
        assert codec.encode(too_long, 20).dropped == tuple(too_long)
        assert not codec.encode(too_long, 20).ids.any()

    def test_words_behind_the_last_whole_tick_are_dropped_and_listed(self):
        codec = codec_for("a")
        words = [word("a", 0.0, 0.5), word("a", 9.5, 9.9)]
        assert codec.encode(words, 20).dropped == (words[1],)
        assert codec.encode(words, 0).dropped == tuple(words)

    @given(
        st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4), st.sampled_from(["a", "ab", "abc"])), max_size=4),
        st.integers(0, 12),
    )
    @settings(deadline=None, max_examples=100)
    def test_it_is_the_best_of_all_placements(self, gaps, ticks):
        """Brute force over every start and end: fewest dropped words, then the smallest cost."""
        words, time = [], 0.0
        for gap, length, text in gaps:
            words.append(word(text, time + 0.04 * gap, time + 0.04 * (gap + length)))
            time = words[-1]["end"]
        codec = TextTokenCodec(BYTES_ALONE)
        tokens = codec.encode(words, ticks)
        edges = [(round(10 * w.start), round(10 * w.end)) for w in codec.decode(tokens.ids)]
        kept = [w for w in words if not any(w is lost for lost in tokens.dropped)]
        assert len(edges) == len(kept)
        cost = sum(_cost(w, edge) for w, edge in zip(kept, edges, strict=True))
        assert (len(tokens.dropped), round(cost, 6)) == _brute_force(words, ticks)


def _cost(w: dict[str, Any], edge: tuple[int, int]) -> float:
    return (edge[0] - 10 * w["start"]) ** 2 + (edge[1] - 10 * w["end"]) ** 2 / 4


def _brute_force(words: list[dict[str, Any]], ticks: int) -> tuple[int, float]:
    choices: list[list[tuple[int, int] | None]] = []
    for w in words:
        shifts = itertools.product(range(-MAX_PUSH_TICKS, MAX_PUSH_TICKS + 1), repeat=2)
        edges = [(round(10 * w["start"]) + a, round(10 * w["end"]) + b) for a, b in shifts]
        choices.append([None, *(e for e in edges if e[0] >= 0 and e[1] <= ticks and e[1] - e[0] >= len(w["word"]))])
    best = {(0): (0, 0.0)}  # end of the last placed word -> best so far; every end is kept, nothing is pruned
    for w, options in zip(words, choices, strict=True):
        found: dict[int, tuple[int, float]] = {}
        for end, (lost, cost) in best.items():
            for edge in options:
                if edge is None:
                    result = (end, (lost + 1, cost))
                elif edge[0] >= end:
                    result = (edge[1], (lost, cost + _cost(w, edge)))
                else:
                    continue
                found[result[0]] = min(found.get(result[0], result[1]), result[1])
        best = found
    lost, cost = min(best.values())
    return lost, round(cost, 6)


class TestDecoding:
    def test_touching_repetitions_of_a_word_stay_two_words(self):
        codec = codec_for("no")
        words = [word("no", 0.1, 0.3), word("no", 0.3, 0.6), word("no", 0.8, 1.0)]
        got = codec.decode(codec.encode(words, 12).ids)
        assert [w.as_json() for w in got] == words
        assert not any(w.cut for w in got)

    def test_a_word_cut_at_the_left_edge_is_marked_and_starts_at_zero(self):
        codec = codec_for("tree", "leaf")
        ids = codec.encode([word("tree", 0.2, 0.6), word("leaf", 0.6, 0.9)], 10).ids
        assert codec.decode(ids[4:8]) == [DecodedWord("tree", 0.0, 0.2, True), DecodedWord("leaf", 0.2, 0.4, False)]

    def test_what_is_left_of_a_word_of_pieces_is_its_last_pieces(self):
        codec = TextTokenCodec(BYTES_ALONE)
        ids = codec.encode([word("abc", 0.0, 0.6)], 6).ids
        assert [(w.word, w.cut) for w in codec.decode(ids[3:])] == [("bc", True)]
        assert [(w.word, w.cut) for w in codec.decode(ids[:4])] == [("ab", False)]

    def test_another_first_piece_is_another_word_even_without_its_mark(self):
        codec = codec_for("tree", "leaf")
        (tree,), (leaf,) = subwords_of(codec, "tree"), subwords_of(codec, "leaf")
        marks = np.array([True, False, False, False]), np.array([True, True, True, True])
        ids = pack_tokens(np.array([tree, tree, leaf, leaf], np.int32), *marks)
        assert [w.word for w in codec.decode(ids)] == ["tree", "leaf"]

    @given(st.lists(st.integers(0, 256 * MARKS), max_size=40))
    @settings(deadline=None)
    def test_any_tokens_decode_and_no_spoken_tick_is_lost(self, ids):
        """Generated tokens follow no rules; every tick that is not blank belongs to exactly one word."""
        words = TextTokenCodec(BYTES_ALONE).decode(np.array(ids, np.int32))
        covered = [t for w in words for t in range(round(10 * w.start), round(10 * w.end))]
        assert covered == [t for t, token in enumerate(ids) if token != BLANK]

    def test_bytes_that_are_no_text_show_as_replacement_characters(self):
        codec = TextTokenCodec(BYTES_ALONE)
        half = np.array(subwords_of(codec, "é")[:1], np.int32)
        tokens = pack_tokens(half, np.array([True]), np.array([True]))
        assert [word.word for word in codec.decode(tokens)] == ["\N{REPLACEMENT CHARACTER}"]


class TestAnyWords:
    @given(
        st.lists(
            st.tuples(
                st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
                st.floats(0, 0.3),
                st.floats(0.05, 2),
            ),
            max_size=8,
        ),
        st.booleans(),
    )
    @settings(deadline=None)
    def test_words_come_back_in_order_near_their_times(self, drawn, known):
        """Every word comes back as it was or is listed as dropped; no end is moved by more than 0.25 s."""
        words, time = [], 0.0
        for text, gap, length in drawn:
            words.append(word(text, time + gap, time + gap + length))
            time = words[-1]["end"]
        codec = codec_for(*(w["word"] for w in words)) if known else TextTokenCodec(BYTES_ALONE)
        tokens = codec.encode(words, round(10 * time) + 1)
        kept = [w for w in words if not any(w is lost for lost in tokens.dropped)]
        got = codec.decode(tokens.ids)
        assert [w.word for w in got] == [w["word"] for w in kept]
        limit = 0.1 * MAX_PUSH_TICKS + 0.05 + 1e-6
        for a, b in zip(got, kept, strict=True):
            assert abs(a.start - b["start"]) <= limit
            assert abs(a.end - b["end"]) <= limit
        assert tokens.ids.max(initial=0) < 1 + MARKS * codec.vocab_size

    @pytest.mark.parametrize("text", ["你好", "ありがとう", "한글", "مرحبا", "שָׁלוֹם", "👩‍🚀", "e\u0301", "L’été", "a b"])
    def test_every_script_survives_whether_the_tokenizer_knows_it_or_not(self, text):
        for codec in (codec_for(text), TextTokenCodec(BYTES_ALONE)):
            tokens = codec.encode([word(text, 0.5, 3.5)], 40)
            assert [w.as_json() for w in codec.decode(tokens.ids)] == [word(text, 0.5, 3.5)]

    def test_a_known_word_is_one_piece_in_every_tick(self):
        codec = codec_for("river", "riverbank")
        for text in ("river", "riverbank"):
            assert len(subwords_of(codec, text)) == 1


class TestTokenizer:
    def test_bytes_that_are_no_tokenizer_are_refused(self):
        for data in (b"", b"{}", b"\xff"):
            with pytest.raises(DataError, match=r"tokenizer\.json"):
                TextTokenCodec(data)

    def test_a_tokenizer_that_cannot_spell_everything_is_refused(self):
        document = json.loads(BYTES_ALONE)
        document["model"]["vocab"] = {"a": 0, "b": 1}
        with pytest.raises(DataError, match="254 of the 256 bytes"):
            TextTokenCodec(json.dumps(document).encode())


class TestRealTextGrids:
    @pytest.fixture
    def grids(self) -> list[tuple[list[dict[str, Any]], int]]:
        files = [*SHARED.glob("beat2_sample/*/textgrid/*.TextGrid"), *SHARED.glob("textgrid_corpus/*.TextGrid")]
        files = [f for f in files if f.name.startswith(("2_scott", "mary", "bobby_words", "damon"))]
        if not files:
            pytest.skip(f"no real TextGrids at {SHARED} (set OMNIGES_SHARED to where they are)")
        tiers = [decode_words(file.read_bytes()) for file in sorted(files)]
        return [([word(w.word, w.start, w.end) for w in t.words], int(10 * t.xmax_s)) for t in tiers]

    def test_995_of_1000_words_come_back_in_order_within_150_ms(self, grids):
        codec = TextTokenCodec(train_tokenizer(Counter(w["word"] for words, _ in grids for w in words)))
        good = total = 0
        for words, ticks in grids:
            tokens = codec.encode(words, ticks)
            kept = [w for w in words if not any(w is lost for lost in tokens.dropped)]
            got = codec.decode(tokens.ids)
            assert [w.word for w in got] == [w["word"] for w in kept]
            good += sum(abs(a.start - b["start"]) <= 0.15 for a, b in zip(got, kept, strict=True))
            total += len(words)
        assert total > 900
        assert good >= 0.995 * total
