"""Published profiles equal what the published code computes, and a second, plain statement of its formulas."""

import json

import numpy as np
import published_reference as plain
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from metrics_builders import walk

from omniges.metrics.clips import weighted_mean
from omniges.metrics.frechet import frechet_distance
from omniges.metrics.gesture import FaceSums, audio_beats, beat_score, l1_diversity, motion_beats
from omniges.metrics.profiles import GRIDS, PROFILES

YEARS = {"emage-2024": 2024, "emage-eval-2025": 2025}
seeds = st.integers(0, 2**32 - 1)


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
    own = PROFILES[name].beats
    joints = golden["positions"][:frames] * 1e-4
    onsets = audio_beats(real_clip.samples, frames, own)
    np.testing.assert_allclose(onsets, golden[f"onsets_{year}"], atol=1e-9)
    motion = motion_beats(joints, golden["mean_speeds"].astype(np.float64), own)
    offsets = golden[f"beat_offsets_{beats}"]
    for k, found in enumerate(motion):
        np.testing.assert_array_equal(found, golden[f"beats_{beats}"][offsets[k] : offsets[k + 1]])
    score = beat_score(onsets, motion, frames, own)
    assert score.value == pytest.approx(values["metrics"][f"bc_{beats}"], rel=1e-6)
    assert l1_diversity(joints).value == pytest.approx(values["metrics"][f"l1div_{year}"], rel=1e-6)
    means = golden["mean_speeds"].astype(np.float64)
    by_loops = plain.beat_consistency(onsets, plain.beats_of_motion(joints, means, year))
    assert by_loops == pytest.approx(values["metrics"][f"bc_{beats}"], rel=1e-9)
    assert plain.corpus_diversity([joints]) == pytest.approx(values["metrics"][f"l1div_{year}"], rel=1e-6)


def test_beats_of_a_joint_that_stands_still(values, golden, real_clip):
    own, joints = PROFILES["emage-eval-2025"].beats, golden["positions"] * 1e-4
    joints[:, 3] = joints[0, 3]
    beats = motion_beats(joints, golden["mean_speeds"].astype(np.float64), own)
    score = beat_score(audio_beats(real_clip.samples, 1906, own), beats, 1906, own)
    assert score.value == pytest.approx(values["metrics"]["bc_2025_joint_3_still"], rel=1e-6)


@pytest.mark.parametrize(("name", "year"), YEARS.items())
def test_faces(values, golden, name, year):
    pairs = [(golden[f"face_generated_{k}"], golden[f"face_recorded_{k}"]) for k in range(2)]
    mse, lvd = faces_of(pairs, name)
    assert mse == pytest.approx(values["metrics"][f"face_mse_{year}"], rel=1e-6)
    assert lvd == pytest.approx(values["metrics"][f"face_lvd_{year}"], rel=1e-6)


def faces_of(pairs, name):
    sums = [FaceSums() for _ in pairs]
    for one, (p, g) in zip(sums, pairs, strict=True):
        one.add(p.reshape(len(p), -1, 3), g.reshape(len(g), -1, 3))
    return weighted_mean([one.mse() for one in sums]), weighted_mean(
        [one.velocity(PROFILES[name].face) for one in sums]
    )


@pytest.mark.parametrize("case", ["well", "few_rows"])
def test_distances_of_features(fgd_parity, values, case):
    with np.load(fgd_parity / "frechet" / "features.npz") as features:
        sides = [features[f"{case}_{side}"] for side in "ab"]
    for name, year in (("emage-2024", 2024), ("emage-eval-2025", 2025)):
        found = frechet_distance(*sides, PROFILES[name].frechet, encoder="").value
        assert found == pytest.approx(values[f"frechet_{case}"][f"original_{year}"], rel=1e-6)
        assert plain.frechet(*sides, year) == pytest.approx(values[f"frechet_{case}"][f"original_{year}"], rel=1e-6)


def test_distances_of_special_sets(fgd_parity, values):
    """A column that is constant, and a set against itself."""
    with np.load(fgd_parity / "frechet" / "features.npz") as features:
        sides = [features[f"well_{side}"].copy() for side in "ab"]
    for name, year in YEARS.items():
        same = frechet_distance(sides[0], sides[0], PROFILES[name].frechet, encoder="").value
        assert same == pytest.approx(values["frechet_equal_sets"][f"original_{year}"], abs=1e-9)
    for side in sides:
        side[:, 7] = 1
    for name, year in YEARS.items():
        found = frechet_distance(*sides, PROFILES[name].frechet, encoder="").value
        expected = values["frechet_well_with_column_7_set_to_1"][f"original_{year}"]
        assert found == pytest.approx(expected, rel=1e-6)


@given(seed=seeds, counts=st.tuples(st.integers(2, 40), st.integers(2, 40)), width=st.integers(2, 12))
def test_distances_of_random_sets(seed, counts, width):
    """Sets may have fewer rows than columns, where scipy's root is less exact."""
    rng = np.random.default_rng(seed)
    first, second = (np.tanh(rng.normal(size=(n, width)) @ rng.normal(size=(width, width))) for n in counts)
    for name, year in YEARS.items():
        expected = plain.frechet(first, second, year)
        assume(expected < 1e9)  # the root failed
        found = frechet_distance(first, second, PROFILES[name].frechet, encoder="").value
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-5)


@settings(max_examples=20)
@given(seed=seeds, lengths=st.lists(st.integers(140, 260), min_size=1, max_size=3))
def test_beats_and_diversity_of_random_clips(seed, lengths):
    rng = np.random.default_rng(seed)
    clips = []
    for k, frames in enumerate(lengths):
        onsets = np.sort(rng.uniform(0, (frames - 120) / 30, rng.integers(1, 6)))
        clips.append((walk(frames, 55, seed + k), rng.uniform(0.02, 0.3, 55), onsets))
    for name, year in YEARS.items():
        own = PROFILES[name].beats
        scores = [beat_score(o, motion_beats(x, v, own), len(x), own) for x, v, o in clips]
        assert weighted_mean(scores) == pytest.approx(plain.corpus_beats(clips, year), rel=1e-9, abs=1e-12)
    joints = [x for x, _, _ in clips]
    diversity = weighted_mean([l1_diversity(clip) for clip in joints])
    assert diversity == pytest.approx(plain.corpus_diversity(joints), rel=1e-9)


@given(seed=seeds, lengths=st.lists(st.integers(2, 70), min_size=1, max_size=4), vertices=st.integers(1, 9))
def test_faces_of_random_clips(seed, lengths, vertices):
    rng = np.random.default_rng(seed)
    pairs = [tuple(rng.normal(size=(2, frames, 3 * vertices))) for frames in lengths]
    for name, year in YEARS.items():
        assert faces_of(pairs, name) == pytest.approx(plain.corpus_faces(pairs, year), rel=1e-9)


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
    expected = plain.scored_frames(generated, recorded, grid.window_frames, grid.seed_frames)
    assert max(frames, -1) == expected
