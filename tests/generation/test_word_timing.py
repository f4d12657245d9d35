"""Estimated times: the rate that generated the words is found again, and estimates keep order and pauses."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniges.errors import DataError, UsageFault
from omniges.generation.word_timing import estimate_warnings, learn_rate, timed_words
from omniges.model.speaking_rate import SpeakingRate

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


@pytest.mark.parametrize("name", ["gap_s", "phrase_s", "sentence_s"])
def test_a_saved_rate_has_no_pause_below_zero(name: str) -> None:
    assert SpeakingRate.from_json(RATE.as_json()) == RATE
    with pytest.raises(DataError, match=f"{name}: expected a number from 0 to 3600, found -0.1"):
        SpeakingRate.from_json(replace(RATE, **{name: -0.1}).as_json())


def test_too_few_words_are_refused() -> None:
    with pytest.raises(UsageFault, match="at least 10 words"):
        learn_rate([spoken(["few"], [])])


def test_punctuation_makes_pauses_and_is_not_spoken() -> None:
    words = timed_words('"Well," she said. Don\'t go!', RATE)
    assert [word["word"] for word in words] == ["Well", "she", "said", "Don't", "go"]
    gaps = [after["start"] - before["end"] for before, after in itertools.pairwise(words)]
    assert gaps == pytest.approx([0.3, 0.02, 0.8, 0.02])
    assert words[0]["end"] == pytest.approx(0.1 + 4 * 0.05)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("你好，世界。", ["你", "好", "世", "界"]),
        ("今天 我们用Python写code!", ["今", "天", "我", "们", "用", "Python", "写", "code"]),
        ("カタカナとひらがな", list("カタカナとひらがな")),
        ("ラーメン、人々", list("ラーメン人々")),
        ("か\u3099く", ["か\u3099", "く"]),
        ("葛\U000e0100城", ["葛\U000e0100", "城"]),
        ("𠮷野家", ["𠮷", "野", "家"]),
        ("안녕하세요 여러분", ["안녕하세요", "여러분"]),
        ("「はい」 (对)", ["は", "い", "对"]),
    ],
)
def test_a_letter_of_chinese_and_japanese_is_a_word(text: str, expected: list[str]) -> None:
    assert [word["word"] for word in timed_words(text, RATE)] == expected


@pytest.mark.parametrize("word", ["cafe\u0301", "हिन्दी", "ไทยนี้", "don't", "שָׁלוֹם", "x_"])
def test_marks_stay_with_their_letters(word: str) -> None:
    assert [found["word"] for found in timed_words(f"«{word}», ({word})!", RATE)] == [word, word]


@pytest.mark.parametrize("mark", ["[SIL]", "<p:>", "{SL}", "<unk>", "[noise],"])
def test_marks_of_transcripts_are_left_out_and_counted(mark: str) -> None:
    text = f"{mark} so [then] {mark} sil"
    assert [word["word"] for word in timed_words(text, RATE)] == ["so", "then", "sil"]
    assert any(warning.startswith("2 marks") and mark in warning for warning in estimate_warnings(text, RATE))
    assert len(estimate_warnings("so then", RATE)) == 1


@pytest.mark.parametrize("text", ["sil", "sil sp spn", "Sil. SP, pau!", "<sil> sp [noise]"])
def test_marks_of_silence_alone_are_refused(text: str) -> None:
    with pytest.raises(UsageFault, match="found only marks of silence or noise"):
        timed_words(text, RATE)


def test_wide_punctuation_makes_pauses() -> None:
    words = timed_words("好，你。我", RATE)
    assert [b["start"] - a["end"] for a, b in itertools.pairwise(words)] == pytest.approx([0.3, 0.8])


OTHER_FILES = {
    "TextGrid": 'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0\n',
    "short TextGrid": '"ooTextFile"\n"TextGrid"\n0\n',
    "chronological": '"Praat chronological TextGrid text file"\n0 1\n',
    "SRT": "1\n00:00:01,000 --> 00:00:02,500\nhello there\n",
    "WebVTT": "WEBVTT\n\n00:01.000 --> 00:02.000\nhello\n",
    "ASS": "[Script Info]\nTitle: x\n",
    "LRC": "[00:01.00]hello\n[00:02.00] there\n",
    "JSON": '{"segments": [{"start": 0.0, "text": "hi"}]}',
    "JSON list": '[\n  {"word": "hi", "start": 0.1}]',
    "JSON lines": '{"word": "hi"}\n{"word": "you"}\n',
    "XML": '<?xml version="1.0"?>\n<ANNOTATION_DOCUMENT/>',
    "HTML": "<!DOCTYPE html>\n<html>hi</html>",
    "XML without a head": "<doc>\nhi\n</doc>\n",
    "SBV": "0:00:00.599,0:00:04.160\nhello\n",
    "MicroDVD": "{0}{25}hello\n",
    "PDF": "%PDF-1.4\n1 0 obj << /Type /Catalog >>\nendobj\n%%EOF\n",
    "PostScript": "%!PS-Adobe-3.0\nshowpage\n",
    "LaTeX": "\\documentclass{article}\n\\begin{document}hi\\end{document}\n",
    "a program": "#!/bin/sh\necho hello\n",
    "an LFS pointer": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
    "CHAT": "@UTF8\n@Begin\n*CHI:\thello .\n@End\n",
    "RTF": "{\\rtf1\\ansi hi}",
    "CTM": "a 1 0.10 0.25 hello\na 1 0.40 0.20 there\n",
    "CSV": "word,start,end\nhello,0.1,0.4\nthere,0.4,0.6\n",
    "labels": "0.100000\t0.400000\thello\n0.4\t0.6\tthere\n",
    "UTF-16 without a mark": "h\0i\0",
    "escape": "hi \x1b[31m",
}


@pytest.mark.parametrize("kind", OTHER_FILES)
@pytest.mark.parametrize("lead", ["", "\n \n"])
def test_a_file_of_another_kind_is_never_read_aloud(kind: str, lead: str) -> None:
    with pytest.raises(UsageFault, match="expected plain words, found"):
        timed_words(lead + OTHER_FILES[kind], RATE)


@pytest.mark.parametrize(
    "text",
    [
        "We start at 10:30 and end at 12:45.",
        "[laughs] hello {well} <3 you",
        "He said: start 1 2 3\nand then 4 5 6",
        "start, begin, onset\nThat was all.",
        '"Quoted" words --> an arrow',
        "1984\nby George Orwell",
        "from 1.5 to 2.5 metres",
        "Tab\tand page\fbreak",
    ],
)
def test_words_that_look_a_little_like_one_are_read(text: str) -> None:
    assert timed_words(text, RATE)


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
