"""Keys are reversible, dot-free and unique; JSON has one byte form; the window grid is the multiples of its stride."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from omniges.errors import UsageFault
from omniges.shards.schema import WindowGrid, key_from_stem, stem_from_key
from omniges.storage.files import canonical_json, json_document

stems = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


class TestKeys:
    @given(stems)
    @example("2_scott_0_1_1")
    @example("a.b")
    @example("_x41_")
    @example("_x_x41__")
    @example("x41_")
    @example("_")
    def test_the_stem_comes_back_from_a_plain_key(self, stem: str) -> None:
        key = key_from_stem(stem)
        assert re.fullmatch(r"[A-Za-z0-9_-]+", key)
        assert stem_from_key(key) == stem

    @given(st.from_regex(r"\A[A-Za-wyz0-9_-]+\Z"))
    def test_plain_stems_are_their_own_key(self, stem: str) -> None:
        assert key_from_stem(stem) == stem

    @pytest.mark.parametrize("key", ["_xd800_", "a_xdfff_b", "_x110000_", "_x" + "f" * 80 + "_"])
    def test_an_escape_of_no_character_stays(self, key: str) -> None:
        assert stem_from_key(key) == key

    @given(stems, stems)
    def test_no_two_stems_share_a_key(self, one: str, other: str) -> None:
        assert (one == other) == (key_from_stem(one) == key_from_stem(other))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | stems,
    lambda inner: st.lists(inner) | st.dictionaries(stems, inner),
)


class TestJson:
    @pytest.mark.slow
    @settings(max_examples=40)
    @given(st.dictionaries(stems, values))
    def test_bytes_do_not_depend_on_the_order_of_keys(self, value: dict[str, object]) -> None:
        turned = dict(reversed(value.items()))
        assert canonical_json(value) == canonical_json(turned)
        assert json_document(value) == json_document(turned)

    @settings(max_examples=40)
    @given(values)
    def test_both_forms_read_back(self, value: object) -> None:
        assert json.loads(canonical_json(value)) == value == json.loads(json_document(value))


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
        with pytest.raises(UsageFault, match=f"expected a multiple of 16, found a window at tick {tick}"):
            WindowGrid(64, 16).index(tick)
