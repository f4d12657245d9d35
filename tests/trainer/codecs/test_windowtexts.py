"""Grid windows: where they are, and that windows which touch share the words out."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniges.errors import UsageFault
from omniges.trainer.codecs.windowtexts import WindowGrid, window_words

GRIDS = st.builds(lambda stride, times: WindowGrid(stride * times, stride), st.integers(1, 20), st.integers(1, 8))


@st.composite
def clips(draw):
    """Ticks of a clip and words in it, in order, whose times need not be whole ticks; some are empty."""
    ticks = draw(st.integers(1, 300))
    times = st.integers(0, ticks * 100).map(lambda thousandth: thousandth / 1000)
    edges = sorted(draw(st.lists(times, max_size=30)))
    words = [{"word": f"w{k}", "start": a, "end": b} for k, (a, b) in enumerate(pairwise(edges))]
    return ticks, words


class TestGrid:
    @given(GRIDS, st.integers(0, 500))
    def test_windows_are_all_multiples_of_the_stride_that_fit(self, grid, ticks):
        expected = [s for s in range(ticks + 1) if s % grid.stride_ticks == 0 and s + grid.window_ticks <= ticks]
        assert list(grid.starts(ticks)) == expected
        assert [grid.index(start) for start in expected] == list(range(grid.count(ticks)))

    @pytest.mark.parametrize(("window", "stride"), [(64, 24), (64, 0), (0, 1), (16, 32), (64, -1)])
    def test_a_stride_that_does_not_divide_the_window_is_refused(self, window, stride):
        with pytest.raises(UsageFault, match="a stride that divides the window"):
            WindowGrid(window, stride)

    @pytest.mark.parametrize("tick", [-16, 1, 17])
    def test_a_window_off_the_grid_is_refused(self, tick):
        with pytest.raises(UsageFault, match=f"a window at tick {tick}; expected a multiple of 16"):
            WindowGrid(64, 16).index(tick)


class TestWords:
    @given(clips(), GRIDS)
    def test_a_word_is_in_the_windows_that_hold_its_middle(self, clip, grid):
        ticks, words = clip
        found = window_words(words, ticks, grid)
        assert len(found) == grid.count(ticks)
        for start, texts in zip(grid.starts(ticks), found, strict=True):
            middles = [min((word["start"] + word["end"]) * 5, ticks - 0.5) for word in words]
            inside = [start <= middle < start + grid.window_ticks for middle in middles]
            assert texts == [word["word"] for word, holds in zip(words, inside, strict=True) if holds]

    @given(clips(), GRIDS, st.data())
    def test_windows_that_touch_say_each_word_once_and_in_order(self, clip, grid, data):
        ticks, words = clip
        found = window_words(words, ticks, grid)
        step = grid.window_ticks // grid.stride_ticks
        offset = data.draw(st.integers(0, step - 1))
        said = [word for texts in found[offset::step] for word in texts]
        numbers = [int(word[1:]) for word in said]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True

    def test_the_last_word_of_a_clip_is_not_lost_at_its_very_end(self):
        words = [{"word": "end", "start": 3.2, "end": 3.2}]
        assert window_words(words, 32, WindowGrid(16, 16)) == [[], ["end"]]

    def test_a_clip_shorter_than_a_window_has_none(self):
        assert window_words([{"word": "a", "start": 0.0, "end": 1.0}], 63, WindowGrid(64, 16)) == []
