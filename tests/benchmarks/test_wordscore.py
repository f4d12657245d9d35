"""The score of the six tasks: recorded clips score full marks, other words at the same times score chance."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wordscore import edit_distance, learn_templates, middle, score_words, word_error_rate

from omniges.shards.reader import ShardFolder

STREAMS = [("gesture", 30.0), ("mel", 100.0)]


def clips(folder: Path, split: str, stream: str) -> list[tuple[np.ndarray, list[dict[str, object]]]]:
    source = ShardFolder(folder)
    samples = [source.sample(row) for row in source.rows if row.split == split]
    return [(s.gesture.gesture if stream == "gesture" else s.mel, s.words) for s in samples]


@pytest.mark.parametrize(("stream", "rate_hz"), STREAMS)
class TestOnRecordedClips:
    def test_every_held_out_word_is_recognised(self, shards: Path, stream: str, rate_hz: float) -> None:
        templates = learn_templates(clips(shards, "train", stream), rate_hz)
        for frames, words in clips(shards, "test", stream):
            score = score_words(templates, frames, words, rate_hz)
            assert score.seen >= 3
            assert score.accuracy == 1.0

    def test_other_words_at_the_same_times_are_not(self, shards: Path, stream: str, rate_hz: float) -> None:
        templates = learn_templates(clips(shards, "train", stream), rate_hz)
        follower = dict(zip(templates.words, (*templates.words[1:], templates.words[0]), strict=True))
        for frames, words in clips(shards, "test", stream):
            wrong = [word | {"word": follower[word["word"]]} for word in words]
            assert score_words(templates, frames, wrong, rate_hz).right == 0


class TestMiddle:
    def test_leaves_out_the_ramps_and_needs_a_frame(self) -> None:
        frames = np.arange(30, dtype=np.float32)[:, None]
        assert middle(frames, {"start": 0.1, "end": 0.5}, 30.0) == pytest.approx([np.mean([7, 8, 9, 10, 11])])
        assert middle(frames, {"start": 0.1, "end": 0.3}, 30.0) is None
        assert middle(frames, {"start": 0.8, "end": 1.2}, 30.0) is None


words = st.lists(st.sampled_from("abc"), max_size=6)


class TestEdits:
    @given(words, words)
    def test_equals_the_recursive_definition(self, found: list[str], expected: list[str]) -> None:
        @functools.cache
        def distance(i: int, j: int) -> int:
            if i == 0 or j == 0:
                return i + j
            swap = distance(i - 1, j - 1) + (found[i - 1] != expected[j - 1])
            return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, swap)

        assert edit_distance(found, expected) == distance(len(found), len(expected))

    def test_the_rate_is_over_all_expected_words(self) -> None:
        assert word_error_rate([(["a"], ["a", "b"]), ([], ["c", "d"])]) == 0.75
