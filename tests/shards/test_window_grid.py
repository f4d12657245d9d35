"""Windows that are known beforehand: where they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniges.errors import UsageFault
from omniges.shards.window_grid import WindowGrid

GRIDS = st.builds(lambda stride, times: WindowGrid(stride * times, stride), st.integers(1, 20), st.integers(1, 8))


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
