"""Text tokens as files: whatever a model puts into tokens is a TextGrid that reads back, and what is lost is said."""

from __future__ import annotations

import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniges.codecs.base import SpokenText
from omniges.features.text_tokens import MARKS, TextTokenCodec, pack_tokens
from omniges.formats.textgrid import decode_words, is_word
from omniges.generation.records import spoken_intervals
from omniges.generation.writers import TextSink, WindowTextSink
from omniges.shards.dataset import train_tokenizer

# Words, a word that readers read as silence, and all 256 bytes as subwords of their own.
CODEC = TextTokenCodec(train_tokenizer(dict.fromkeys(["tree", "sp", "you're"], 2)))
ANY_TOKENS = st.lists(st.integers(0, MARKS * CODEC.vocab_size), min_size=1, max_size=60)


def files_of(tokens: np.ndarray) -> tuple[TextSink, bytes, str]:
    sink = TextSink(CODEC)
    sink.append(tokens)
    grid, text = (b"".join(file.parts) for file in sink.files())
    return sink, grid, text.decode()


def tokens_of(*words: str) -> np.ndarray:
    """Two ticks of each subword of words, a blank between the words."""
    tokens: list[int] = []
    for word in words:
        for number, subword in enumerate(CODEC._tokenizer.encode(word, add_special_tokens=False).ids):
            tokens += [1 + MARKS * subword + 2 * first + (number == 0) for first in (1, 0)]
        tokens.append(0)
    return np.array(tokens, np.int32)


def counted(warnings: list[str], what: str) -> int:
    found = [re.match(rf"(\d+) {what}", warning) for warning in warnings]
    return sum(int(match[1]) for match in found if match)


@given(ANY_TOKENS)
def test_any_tokens_become_files_that_read_back_word_for_word(tokens: list[int]) -> None:
    sink, grid, text = files_of(np.array(tokens, np.int32))
    words, timed = spoken_intervals(grid)
    assert timed
    assert sink.spoken() == (words, True)  # which is what is scored and shown without the file
    said = CODEC.decode(np.array(tokens, np.int32))
    assert text.count("\n") == 1
    assert not any(unicodedata.category(letter) == "Cc" for letter in text.rstrip("\n"))
    silent = any("read as silence" in warning for warning in sink.warnings)
    written = text.split()
    read = " ".join(word.word for word in words).split()
    assert read == written or (silent and [word for word in written if is_word(word)] == read)
    # Nothing is lost silently: each word is in the files, or counted as one without a letter.
    times = {(word.start, word.end) for word in words}
    missing = [word for word in said if (word.start, word.end) not in times]
    spoken = [word for word in missing if not word.word.strip() or is_word(word.word.strip())]
    assert len(spoken) == counted(sink.warnings, "words without a letter left out")
    changed = [w for w in said if any(unicodedata.category(c) == "Cc" for c in " ".join(w.word.split()))]
    assert len(changed) == counted(sink.warnings, "words with control characters")


@pytest.mark.parametrize("byte", [*range(32), *range(127, 160)])
def test_each_control_character_alone_or_within_a_word(byte: int) -> None:
    letter = chr(byte)
    sink, grid, text = files_of(tokens_of("tree", letter, f"a{letter}b"))
    words = [word.word for word in decode_words(grid).words]
    if letter.isspace():
        assert words == ["tree", "a b"]
        assert "1 words without a letter left out" in sink.warnings
    else:
        assert words == ["tree", "\ufffd", "a\ufffdb"]
        assert "2 words with control characters, each written as \ufffd" in sink.warnings
    assert text == " ".join(words) + "\n"


def test_a_word_that_reads_as_silence_is_reported() -> None:
    sink, grid, text = files_of(tokens_of("tree", "sp"))
    assert [word.word for word in decode_words(grid).words] == ["tree"]
    assert text == "tree sp\n"
    assert "words that readers of TextGrids read as silence: sp" in sink.warnings


def test_words_that_were_said_as_they_are_have_no_warning() -> None:
    sink, grid, _ = files_of(tokens_of("tree", "you're", "他說", 'a"b'))
    assert [word.word for word in decode_words(grid).words] == ["tree", "you're", "他說", 'a"b']
    assert sink.warnings == []


def test_blanks_alone_are_no_word() -> None:
    blank = pack_tokens(np.full(4, -1, np.int32), np.zeros(4, bool), np.zeros(4, bool))
    sink, _, text = files_of(blank)
    assert text == "\n"
    assert sink.warnings == ["no word was generated"]


@given(st.lists(st.text(max_size=8), min_size=1, max_size=5))
def test_any_texts_of_windows_become_files_that_read_back(texts: list[str]) -> None:
    sink = WindowTextSink([(16 * number, 16) for number in range(len(texts))])
    sink.append([SpokenText(text, ended=True) for text in texts])
    grid, text = (b"".join(file.parts) for file in sink.files())
    windows, timed = spoken_intervals(grid)
    assert not timed
    assert sink.spoken() == (windows, False)
    read = " ".join(window.word for window in windows)
    silent = any("read as silence" in warning for warning in sink.warnings)
    assert read == text.decode().rstrip("\n") or silent
    controls = [t for t in texts if any(unicodedata.category(c) in {"Cc", "Cs"} for c in " ".join(t.split()))]
    assert len(controls) == counted(sink.warnings, "windows of text with control characters")
