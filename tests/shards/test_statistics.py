"""Statistics equal numpy's over the concatenated clips, whatever the order and split of the work."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from omniges.shards.dataset import combine, partial_of


def clips(count: int, seed: int, offset: float = 0.0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        (rng.normal(size=(rng.integers(1, 700), 5)) * [1, 10, 1e-3, 1, 0] + [0, offset, 1, -3, 0.7]).astype(np.float32)
        for _ in range(count)
    ]


class TestCombine:
    @settings(max_examples=30)
    @given(st.integers(1, 8), st.integers(0, 50), st.sampled_from([0.0, 1e3, 1e6]))
    def test_equals_the_statistics_of_all_frames_together(self, count: int, seed: int, offset: float) -> None:
        parts = clips(count, seed, offset)
        whole = np.concatenate(parts).astype(np.float64)
        got = combine([partial_of(part) for part in parts])
        assert got["frames"] == len(whole)
        assert np.allclose(got["mean"], whole.mean(axis=0), rtol=1e-12, atol=1e-12)
        assert np.allclose(got["std"], whole.std(axis=0), rtol=1e-9, atol=1e-12)
        assert np.array_equal(got["min"], whole.min(axis=0))
        assert np.array_equal(got["max"], whole.max(axis=0))

    @given(st.integers(2, 12), st.randoms())
    def test_the_order_of_clips_changes_no_bit(self, count: int, rng: random.Random) -> None:
        partials = [partial_of(clip) for clip in clips(count, 3)]
        turned = partials.copy()
        rng.shuffle(turned)
        assert combine(partials) == combine(turned)

    def test_a_channel_that_never_changes_has_no_spread_at_all(self) -> None:
        got = combine([partial_of(clip) for clip in clips(6, 1)])
        assert got["std"][4] == 0.0

    def test_no_clips_have_no_statistics(self) -> None:
        assert combine([]) == {}


class TestPartial:
    def test_every_bit_is_that_of_sums_in_order(self) -> None:
        """Additions one after the other in blocks of 256 frames, in plain floats: what stats.json's bytes rest on."""
        for clip in [*clips(4, 9, 1e4), np.float32([[3.0, -0.0]])]:
            got = partial_of(clip)
            for channel, values in enumerate(clip.astype(np.float64).T.tolist()):
                first = values[0]
                total = squares = 0.0
                for start in range(0, len(values), 256):
                    deviations = [value - first for value in values[start : start + 256]]
                    block = block_squares = None
                    for deviation in deviations:
                        block = deviation if block is None else block + deviation
                        square = deviation * deviation
                        block_squares = square if block_squares is None else block_squares + square
                    total += block or 0.0
                    squares += block_squares or 0.0
                count = len(values)
                wanted = [first + total / count, max(squares - total * (total / count), 0.0), min(values), max(values)]
                assert got.rows[:, channel].tolist() == wanted
