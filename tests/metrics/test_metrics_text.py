"""Error rates equal a brute force over all edits; normalisation does what the page says, in any script."""

import functools
import itertools
import tracemalloc
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniges.errors import DataError
from omniges.formats.textgrid import WordInterval
from omniges.metrics.speech import (
    EditCounts,
    align,
    character_errors,
    count_edits,
    normalised_text,
    normalised_word,
    word_errors,
    word_time_differences,
)


def distance(a, b):
    """Levenshtein's recursion, memoised."""

    @functools.cache
    def of(i, j):
        if i == 0 or j == 0:
            return i + j
        return min(of(i - 1, j) + 1, of(i, j - 1) + 1, of(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return of(len(a), len(b))


def text_has_spaces(text):
    """Return whether a text is of scripts with spaces between words."""
    return all(ord(c) < 0x0E00 or 0x1100 <= ord(c) < 0x1200 for c in unicodedata.normalize("NFKC", text))


def counted(found, expected):
    """The edits that an alignment's pairs leave."""
    pairs = align(found, expected)
    substitutions = sum(found[i] != expected[j] for i, j in pairs)
    return EditCounts(substitutions, len(expected) - len(pairs), len(found) - len(pairs), len(expected))


few = st.lists(st.sampled_from("abcd"), max_size=9).map(tuple)


class TestAlignment:
    @given(few, few)
    @settings(deadline=None)
    def test_as_few_edits_as_brute_force(self, found, expected):
        counts = counted(found, expected)
        assert counts.edits == distance(found, expected)
        assert counts.expected == len(expected)

    @given(few, few)
    @settings(deadline=None)
    def test_the_pairs_are_in_order(self, found, expected):
        assert all(a < c and b < d for (a, b), (c, d) in itertools.pairwise(align(found, expected)))

    @given(few, few)
    @settings(deadline=None)
    def test_the_other_way_round_deletions_are_insertions(self, found, expected):
        there, back = counted(found, expected), counted(expected, found)
        assert there.edits == back.edits
        assert there.deletions - there.insertions == back.insertions - back.deletions

    @given(few, few, few)
    @settings(max_examples=50, deadline=None)
    def test_triangle(self, a, b, c):
        def edits(x, y):
            return counted(x, y).edits

        assert edits(a, c) <= edits(a, b) + edits(b, c)
        assert edits(a, a) == 0

    def test_ties_prefer_pairs_then_deletions_from_the_end(self):
        assert align("a", "aa") == ((0, 1),)
        assert align("ab", "ba") == ((0, 0), (1, 1))
        assert align("xab", "ab") == ((1, 0), (2, 1))

    @given(few, few)
    @settings(deadline=None)
    def test_counts_alone_are_those_of_the_alignment(self, found, expected):
        assert count_edits(found, expected) == counted(found, expected)

    def test_counts_of_five_minutes_of_characters_take_memory_for_rows_alone(self):
        rng = np.random.default_rng(0)
        expected = "".join(rng.choice(list("abcdefgh "), 4000))
        found = "".join(c for c in expected if rng.random() > 0.2)
        tracemalloc.start()
        counts = count_edits(found, expected)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert counts.expected == 4000
        assert counts.edits <= 4000 - len(found)
        assert peak < 1 << 20

    def test_a_long_text_is_quick(self):
        rng = np.random.default_rng(0)
        expected = rng.integers(0, 300, 2000).tolist()
        found = [w for w in expected if rng.random() > 0.1]
        assert counted(found, expected) == EditCounts(0, 2000 - len(found), 0, 2000)


class TestRates:
    def test_known_texts(self):
        assert word_errors("the cat sat", "the cat sat down").rate == pytest.approx(1 / 4)
        assert word_errors("a b c", "d").rate == 3
        assert character_errors("abd", "abc").rate == pytest.approx(1 / 3)
        assert character_errors("ab c", "abc").rate == pytest.approx(1 / 3)
        assert word_errors("", "one two") == EditCounts(0, 2, 0, 2)

    @given(st.text(max_size=30), st.text(max_size=30))
    @settings(deadline=None)
    def test_any_text_at_all(self, found, expected):
        words, characters = word_errors(found, expected), character_errors(found, expected)
        assert words.edits == distance(tuple(normalised_text(found).split()), tuple(normalised_text(expected).split()))
        if text_has_spaces(found + expected):
            assert characters.edits == distance(normalised_text(found), normalised_text(expected))
        assert word_errors(expected, expected).edits == 0
        if words.expected:
            assert words.rate >= 0

    def test_spaces_count_only_in_scripts_that_have_them(self):
        assert character_errors("今日 は いい天気", "今日はいい 天気").edits == 0
        assert character_errors("今日", "今月").rate == 1 / 2
        assert character_errors("สวัส ดี", "สวัสดี").edits == 0
        assert character_errors("안녕 하세요", "안녕하세요").edits == 1
        assert character_errors("an apple", "anapple").edits == 1
        assert character_errors("今日 ok", "今日ok").edits == 1  # beside Latin letters a space is one

    def test_counts_of_clips_add_up_before_they_are_divided(self):
        pooled = word_errors("a", "a b c") + word_errors("x y", "") + word_errors("d", "d")
        assert (pooled.edits, pooled.expected, pooled.rate) == (4, 4, 1.0)

    def test_nothing_expected_has_no_rate(self):
        for found in ("", "something", "!?"):
            with pytest.raises(DataError, match="expected a reference text"):
                _ = word_errors(found, "… !").rate


class TestNormalisation:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("Hello,  WORLD!\n", "hello world"),
            ("I\u2019m rock\u02bcn'roll 'quoted' dogs'", "i'm rock'n'roll quoted dogs"),
            ("well-known e.g. 3.5%", "well known e g 3 5"),
            ("Straße ﬁne Ⅷ", "strasse fine viii"),
            ("Cafe\u0301", "café"),
            ("今日は、いい天気。", "今日は いい天気"),
            ("İ", "i\u0307"),
            ("नमस्ते", "नमस्ते"),
            ("", ""),
            ("<unk> [noise]", "unk noise"),
        ],
    )
    def test_cases(self, text, expected):
        assert normalised_text(text) == expected

    @given(st.text(max_size=40))
    @settings(max_examples=200, deadline=None)
    def test_properties(self, text):
        once = normalised_text(text)
        assert normalised_text(once) == once
        assert all(unicodedata.category(c)[0] in "LMN" or c in "' " for c in once)
        assert once == " ".join(once.split())
        assert set(normalised_word(text)) <= set(once)

    @given(st.text("abcXYZ éÉßñ", max_size=20))
    @settings(deadline=None)
    def test_case_and_punctuation_do_not_matter(self, text):
        dressed = f"¡{text.upper()}!".replace(" ", " — ")
        assert word_errors(dressed, text).edits == 0
        assert character_errors(dressed, text).edits == 0


def said(*words):
    return [WordInterval(word, start, end) for word, start, end in words]


class TestTimes:
    def test_by_hand(self):
        expected = said(("the", 0, 0.2), ("cat", 0.2, 0.5), ("sat", 0.6, 1.0), ("down", 1.0, 1.5))
        found = said(("The", 0.1, 0.2), ("hat", 0.2, 0.5), ("sat,", 0.4, 1.0), ("Down", 1.0, 1.9), ("now", 2, 3))
        starts, ends = word_time_differences(found, expected)
        assert starts == pytest.approx([0.1, 0.2, 0])
        assert ends == pytest.approx([0, 0, 0.4])

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(-0.5, 0.5))
    @settings(deadline=None)
    def test_a_constant_shift_is_the_error_of_every_word(self, gaps, shift):
        starts = np.cumsum(gaps)
        expected = [WordInterval(f"w{k}", s, s + 0.1) for k, s in enumerate(starts)]
        found = [WordInterval(f"w{k}", s + shift, s + 0.1 + shift) for k, s in enumerate(starts)]
        for errors in word_time_differences(found, expected):
            assert errors == pytest.approx([abs(shift)] * len(gaps), abs=1e-9)

    def test_punctuation_is_no_word(self):
        expected = said(("-", 0, 1), ("don't", 1, 2))
        starts, _ = word_time_differences(said(("Don’t", 1, 2), ("-", 5, 6)), expected)
        assert starts.tolist() == [0]

    @pytest.mark.parametrize("found", [[], said(("cat", 0, 1)), said(("!", 0, 1))])
    def test_no_equal_words(self, found):
        with pytest.raises(DataError, match="expected equal words"):
            word_time_differences(found, said(("dog", 0, 1), ("!", 0, 1)))

    def test_a_time_that_is_invalid(self):
        with pytest.raises(DataError, match="NaN or infinite"):
            word_time_differences(said(("a", float("nan"), 1)), said(("a", 0, 1)))

    def test_the_real_transcript_against_itself_delayed(self, beat2_sample):
        from omniges.formats.textgrid import decode_words

        path = beat2_sample / "beat_english_v2.0.0" / "textgrid" / "2_scott_0_1_1.TextGrid"
        words = decode_words(path.read_bytes()).words
        late = [WordInterval(w.word.upper(), w.start + 0.25, w.end + 0.25) for w in words]
        starts, _ = word_time_differences(late, words)
        assert starts == pytest.approx([0.25] * len(words))
        assert word_errors(" ".join(w.word for w in late), " ".join(w.word for w in words)).rate == 0
