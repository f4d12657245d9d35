"""Beats, diversity and distances of the published profiles equal what the published code computes."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniges.metrics.frechet import frechet_distance
from omniges.metrics.gesture import audio_beats, beat_score, l1_diversity, motion_beats
from omniges.metrics.profiles import GRIDS, PROFILES


@pytest.fixture(scope="module")
def values(fgd_parity):
    return json.loads((fgd_parity / "values.json").read_text())


@pytest.fixture(scope="module")
def golden(fgd_parity):
    with np.load(fgd_parity / "metrics" / "metrics.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize(
    ("name", "year", "beats", "frames"),
    [("emage-2024", 2024, "2024_in_place", 1864), ("emage-eval-2025", 2025, "2025", 1906)],
)
def test_beats_and_diversity(values, golden, real_clip, name, year, beats, frames):
    settings = PROFILES[name].beats
    joints = golden["positions"][:frames] * 1e-4
    onsets = audio_beats(real_clip.samples, frames, settings)
    np.testing.assert_allclose(onsets, golden[f"onsets_{year}"], atol=1e-9)
    motion = motion_beats(joints, golden["mean_speeds"].astype(np.float64), settings)
    offsets = golden[f"beat_offsets_{beats}"]
    for k, found in enumerate(motion):
        np.testing.assert_array_equal(found, golden[f"beats_{beats}"][offsets[k] : offsets[k + 1]])
    score = beat_score(onsets, motion, frames, settings)
    assert score.value == pytest.approx(values["metrics"][f"bc_{beats}"], rel=1e-6)
    assert l1_diversity(joints).value == pytest.approx(values["metrics"][f"l1div_{year}"], rel=1e-6)


@pytest.mark.parametrize("case", ["well", "few_rows"])
def test_distances_of_features(fgd_parity, values, case):
    with np.load(fgd_parity / "frechet" / "features.npz") as features:
        sides = [features[f"{case}_{side}"] for side in "ab"]
    for name, year in (("emage-2024", 2024), ("emage-eval-2025", 2025)):
        found = frechet_distance(*sides, PROFILES[name].frechet, encoder="").value
        assert found == pytest.approx(values[f"frechet_{case}"][f"original_{year}"], rel=1e-6)


@pytest.mark.parametrize(
    ("grid", "generated", "recorded", "frames"),
    [
        ("emage", 1906, 1906, 1864),  # what EMAGE's trainer leaves of 2_scott_0_1_1
        ("emage", 1854, 1854, 1804),  # MambaTalk's own file of 2_scott_0_2_2 has this length
        ("emage", 1804, 1854, 1804),
        ("emage", 1803, 1854, 1744),
        ("gesturelsm", 1906, 1906, 1808),
    ],
)
def test_lengths_to_which_models_cut_clips(grid, generated, recorded, frames):
    assert GRIDS[grid].frames(generated, recorded) == frames


@given(grid=st.sampled_from([*GRIDS.values()]), generated=st.integers(1, 30_000), recorded=st.integers(1, 30_000))
def test_a_cut_is_on_the_grid_and_within_both_sides(grid, generated, recorded):
    frames, step = grid.frames(generated, recorded), grid.window_frames - grid.seed_frames
    assert (frames - grid.seed_frames) % step == 0
    assert frames <= min(generated, recorded)
    assert min(generated, recorded - 37) - frames < step  # 29 of the second and 7 of the eight
    assert grid.frames(frames, recorded) == frames
