"""Estimated times: the rate that made the words is found again, and estimates keep order and pauses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniges.errors import UsageFault
from omniges.generation.word_timing import SpeakingRate, learn_rate, timed_words

RATE = SpeakingRate(base_s=0.1, letter_s=0.05, gap_s=0.02, phrase_s=0.3, sentence_s=0.8, words=100)


def spoken(words: list[str], gaps: list[float]) -> list[dict[str, Any]]:
    """Words of exactly 0.1 s and 0.05 s a letter, with gaps between them."""
    found, now = [], 0.0
    for word, gap in zip(words, [*gaps, 0.0], strict=True):
        found.append({"word": word, "start": now, "end": now + 0.1 + 0.05 * len(word)})
        now = found[-1]["end"] + gap
    return found


def test_a_linear_rate_and_three_kinds_of_pauses_are_found_again() -> None:
    words = ["a", "to", "the", "word", "piece", "longer"] * 5
    gaps = ([0.02] * 5 + [0.3] * 3 + [0.8] * 2) * 3
    rate = learn_rate([spoken(words, gaps[: len(words) - 1])])
    assert (rate.base_s, rate.letter_s) == pytest.approx((0.1, 0.05))
    assert (rate.gap_s, rate.phrase_s, rate.sentence_s) == pytest.approx((0.02, 0.3, 0.8))
    assert rate.words == 30


def test_pauses_that_never_occur_are_their_lower_bound() -> None:
    rate = learn_rate([spoken(["to", "the"] * 10, [0.01] * 19)])
    assert (rate.gap_s, rate.phrase_s, rate.sentence_s) == pytest.approx((0.01, 0.2, 0.6))


def test_too_few_words_are_refused() -> None:
    with pytest.raises(UsageFault, match="at least 10 words"):
        learn_rate([spoken(["few"], [])])


def test_punctuation_makes_pauses_and_is_not_spoken() -> None:
    words = timed_words('"Well," she said. Don\'t go!', RATE)
    assert [word["word"] for word in words] == ["Well", "she", "said", "Don't", "go"]
    gaps = [after["start"] - before["end"] for before, after in itertools.pairwise(words)]
    assert gaps == pytest.approx([0.3, 0.02, 0.8, 0.02])
    assert words[0]["end"] == pytest.approx(0.1 + 4 * 0.05)


@given(st.text(max_size=80))
def test_words_are_in_order_and_have_length_in_any_text(text: str) -> None:
    try:
        words = timed_words(text, RATE)
    except UsageFault:
        return
    now = 0.0
    for word in words:
        assert word["word"].strip() == word["word"] != ""
        assert now <= word["start"] < word["end"]
        now = word["end"]


@pytest.mark.parametrize("text", ["", "  \n", "... !"])
def test_a_text_without_words_is_refused(text: str) -> None:
    with pytest.raises(UsageFault, match="at least one word"):
        timed_words(text, RATE)
