"""Statistics equal numpy's over the concatenated clips, whatever the order and split of the work.

A channel that a clip lacks is NaN there, and counts in nothing.
"""

from __future__ import annotations

import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniges.errors import EnvironmentFault
from omniges.shards import dataset
from omniges.shards.dataset import PartialSpool, combine, partial_of
from omniges.storage.files import canonical_json

CHANNELS = 5


def clips(count: int, seed: int, offset: float = 0.0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        (rng.normal(size=(rng.integers(1, 700), CHANNELS)) * [1, 10, 1e-3, 1, 0] + [0, offset, 1, -3, 0.7]).astype(
            np.float32
        )
        for _ in range(count)
    ]


@st.composite
def lacking_clips(draw: st.DrawFn) -> list[np.ndarray]:
    """Clips of which each lacks some channels, or all."""
    parts = clips(draw(st.integers(1, 6)), draw(st.integers(0, 50)), draw(st.sampled_from([0.0, 1e3])))
    for part in parts:
        part[:, sorted(draw(st.sets(st.integers(0, CHANNELS - 1))))] = np.nan
    return parts


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

    @settings(max_examples=40)
    @given(lacking_clips())
    def test_each_channel_is_that_of_the_clips_that_have_it(self, parts: list[np.ndarray]) -> None:
        got = combine([partial_of(part) for part in parts])
        assert got["frames"] == sum(len(part) for part in parts if not np.isnan(part[0]).all())
        for channel in range(CHANNELS):
            own = [part[:, channel].astype(np.float64) for part in parts if not np.isnan(part[0, channel])]
            found = {name: got[name][channel] for name in ("counts", "mean", "std", "min", "max", "difference_std")}
            if not own:
                assert set(found.values()) == {0}
                continue
            whole = np.concatenate(own)
            steps = np.concatenate([np.diff(values) for values in own])
            assert found["counts"] == len(whole)
            assert (found["min"], found["max"]) == (whole.min(), whole.max())
            assert np.isclose(found["mean"], whole.mean(), rtol=1e-12, atol=1e-12)
            assert np.isclose(found["std"], whole.std(), rtol=1e-9, atol=1e-12)
            wanted = steps.std() if len(steps) else 0.0
            assert np.isclose(found["difference_std"], wanted, rtol=1e-9, atol=1e-12)

    @given(lacking_clips(), st.integers(0, CHANNELS - 1))
    def test_what_other_channels_lack_changes_no_bit_of_a_channel(self, parts: list[np.ndarray], channel: int) -> None:
        got = combine([partial_of(part) for part in parts])
        filled = [np.nan_to_num(part, nan=7.0) for part in parts if not np.isnan(part[0, channel])]
        wanted = combine([partial_of(part) for part in filled])
        for name in ("counts", "mean", "std", "min", "max", "difference_std"):
            assert got[name][channel] == (wanted[name][channel] if filled else 0), name

    @given(lacking_clips(), st.randoms())
    def test_the_order_of_clips_that_lack_something_changes_no_bit(
        self, parts: list[np.ndarray], rng: random.Random
    ) -> None:
        partials = [partial_of(part) for part in parts]
        turned = partials.copy()
        rng.shuffle(turned)
        assert canonical_json(combine(partials)) == canonical_json(combine(turned))

    @given(st.integers(1, 6), st.integers(0, 50))
    def test_the_plain_form_is_that_of_version_1(self, count: int, seed: int) -> None:
        partials = [partial_of(clip) for clip in clips(count, seed)]
        plain, full = combine(partials, plain=True), combine(partials)
        assert set(plain) == {"frames", "mean", "std", "min", "max"}
        assert set(full) - set(plain) == {"counts", "difference_std"}
        assert all(canonical_json(plain[name]) == canonical_json(full[name]) for name in plain)

    def test_no_clips_have_no_statistics(self) -> None:
        assert combine([]) == {}


class TestSpool:
    @pytest.mark.parametrize(("count", "read_bytes"), [(0, 1), (3, 1), (64, 1 << 20), (150, 1), (150, 1 << 20)])
    def test_statistics_equal_those_in_memory_to_the_bit(
        self, count: int, read_bytes: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dataset, "_SPOOL_READ_BYTES", read_bytes)
        arrays = [(clip, clip[:, :2] * 3) for clip in clips(count, 5)]
        for clip, other in arrays[::3]:
            clip[:, 1] = other[:, 0] = np.nan
        partials = [tuple(map(partial_of, own)) for own in arrays]
        spool = PartialSpool(partials)
        assert len(spool) == count
        for plain in (False, True):
            wanted = [combine(own, plain=plain) for own in zip(*partials, strict=True)]
            assert spool.combined(plain=plain) == wanted

    def test_clips_take_no_memory(self) -> None:
        partial = partial_of(np.zeros((2, 400), np.float32))
        tracemalloc.start()
        try:
            spool = PartialSpool()
            for _ in range(2000):
                spool.append((partial,))
            held = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert held < 64 * partial.rows.nbytes < 2000 * partial.rows.nbytes

    def test_arrays_of_other_channels_are_refused(self) -> None:
        spool = PartialSpool([(partial_of(np.zeros((2, 4), np.float32)),)])
        with pytest.raises(ValueError, match=r"expected arrays of \(4,\) channels, found \(5,\)"):
            spool.append((partial_of(np.zeros((2, 5), np.float32)),))

    def test_a_full_disk_is_a_fault_of_the_machine(self, tmp_path: Path) -> None:
        partial = partial_of(np.zeros((2, 4), np.float32))
        with pytest.raises(EnvironmentFault, match="gone"):
            PartialSpool([(partial,)] * 64, folder=tmp_path / "gone")


class TestPartial:
    def test_every_bit_is_that_of_sums_in_order(self) -> None:
        """Additions one after the other in blocks of 256 frames, in plain floats: what stats.json's bytes rest on."""
        for clip in [*clips(4, 9, 1e4), np.float32([[3.0, -0.0]])]:
            got = partial_of(clip)
            for channel, values in enumerate(clip.astype(np.float64).T.tolist()):
                deviations = [value - values[0] for value in values]
                # The first difference is zero, so that blocks of differences are those of the frames.
                differences = [now - before for now, before in zip(deviations, [0.0, *deviations], strict=False)]
                mean, m2 = moments(deviations, len(values))
                wanted = [len(values), values[0] + mean, m2, min(values), max(values)]
                wanted += moments(differences, max(len(values) - 1, 1))
                assert got.rows[:, channel].tolist() == wanted

    def test_an_absent_channel_is_all_zeros_and_the_others_are_what_they_were(self) -> None:
        (clip,) = clips(1, 4)
        whole = partial_of(clip).rows
        clip[:, [1, 3]] = np.nan
        rows = partial_of(clip).rows
        assert not rows[:, [1, 3]].any()
        assert np.array_equal(rows[:, [0, 2, 4]], whole[:, [0, 2, 4]])


def moments(values: list[float], count: int) -> tuple[float, float]:
    """Mean and sum of squared deviations from values near zero, summed in blocks of 256."""
    total = squares = 0.0
    for start in range(0, len(values), 256):
        block, *rest = values[start : start + 256]
        block_squares = block * block
        for value in rest:
            block += value
            block_squares += value * value
        total += block
        squares += block_squares
    mean = total / count
    return mean, max(squares - total * mean, 0.0)
