"""The words of a window; windows that touch divide the words between them."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from omniges.shards.latents import said_in_windows
from omniges.shards.schema import WindowGrid

GRIDS = st.builds(lambda stride, times: WindowGrid(stride * times, stride), st.integers(1, 20), st.integers(1, 8))


@st.composite
def clips(draw):
    """Ticks of a clip and words in it, in order, whose times need not be whole ticks; some are empty."""
    ticks = draw(st.integers(1, 300))
    times = st.integers(0, ticks * 100).map(lambda thousandth: thousandth / 1000)
    edges = sorted(draw(st.lists(times, max_size=30)))
    words = [{"word": f"w{k}", "start": a, "end": b} for k, (a, b) in enumerate(pairwise(edges))]
    return ticks, words


def windows_of(grid, ticks):
    """All windows of a grid in a clip."""
    return [(start, grid.window_ticks) for start in grid.starts(ticks)]


def words_said(words, ticks, windows):
    return [[word["word"] for word in said] for said in said_in_windows(words, ticks, windows)]


class TestWords:
    @given(clips(), GRIDS)
    def test_a_word_is_in_the_windows_that_hold_its_middle(self, clip, grid):
        ticks, words = clip
        found = words_said(words, ticks, windows_of(grid, ticks))
        assert len(found) == grid.count(ticks)
        for start, texts in zip(grid.starts(ticks), found, strict=True):
            middles = [min((word["start"] + word["end"]) * 5, ticks - 0.5) for word in words]
            inside = [start <= middle < start + grid.window_ticks for middle in middles]
            assert texts == [word["word"] for word, holds in zip(words, inside, strict=True) if holds]

    @given(clips(), GRIDS, st.data())
    def test_windows_that_touch_say_each_word_once_and_in_order(self, clip, grid, data):
        ticks, words = clip
        found = words_said(words, ticks, windows_of(grid, ticks))
        step = grid.window_ticks // grid.stride_ticks
        offset = data.draw(st.integers(0, step - 1))
        said = [word for texts in found[offset::step] for word in texts]
        numbers = [int(word[1:]) for word in said]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True

    def test_the_last_word_of_a_clip_is_not_lost_at_its_very_end(self):
        words = [{"word": "end", "start": 3.2, "end": 3.2}]
        assert words_said(words, 32, windows_of(WindowGrid(16, 16), 32)) == [[], ["end"]]

    @given(clips(), st.integers(0, 200), st.integers(1, 90))
    def test_a_window_need_not_lie_on_a_grid(self, clip, first, count):
        ticks, words = clip
        middles = [min((word["start"] + word["end"]) * 5, ticks - 0.5) for word in words]
        wanted = [word["word"] for word, at in zip(words, middles, strict=True) if first <= at < first + count]
        assert words_said(words, ticks, [(first, count)]) == [wanted]
