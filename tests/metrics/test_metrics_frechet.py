"""The Fréchet distance equals closed forms and scipy's matrix root, and stays real where that root fails."""

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics_builders import untouched

from omniges.errors import DataError, UsageFault
from omniges.metrics.frechet import DESCRIPTOR_NAME, describe, frechet_distance
from omniges.metrics.profiles import PROFILES, FrechetSettings

EXACT = FrechetSettings(offset=0.0)
OFFSET = PROFILES["emage-eval-2025"].frechet


def distance(first, second, settings=EXACT):
    return frechet_distance(first, second, settings, encoder="test")


def by_scipy(first, second, eps):
    """The textbook way, which is right where both covariances are well conditioned."""
    s1, s2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    add = eps * np.eye(len(s1))
    root = scipy.linalg.sqrtm((s1 + add) @ (s2 + add))
    m = first.mean(axis=0) - second.mean(axis=0)
    return m @ m + np.trace(s1) + np.trace(s2) - 2 * np.trace(root).real


def with_moments(rng, rows, mean, std):
    """Rows whose sample mean and (diagonal) sample covariance are exactly what is asked."""
    raw = rng.normal(size=(rows, len(mean)))
    raw -= raw.mean(axis=0)
    q, _ = np.linalg.qr(raw)
    return q * np.sqrt(rows - 1) * std + mean


numbers = st.floats(-3, 3)
stds = st.floats(0, 4)
gaussians = st.lists(st.tuples(numbers, numbers, stds, stds), min_size=1, max_size=6)


@given(gaussians, st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_closed_form_of_diagonal_gaussians(columns, seed):
    """Σ (m1 − m2)² + (s1 − s2)² for independent columns; standard deviations of zero included."""
    m1, m2, s1, s2 = (np.array(values) for values in zip(*columns, strict=True))
    rng = np.random.default_rng(seed)
    first, second = with_moments(rng, 20, m1, s1), with_moments(rng, 31, m2, s2)
    score = distance(first, second)
    assert score.value == pytest.approx(((m1 - m2) ** 2 + (s1 - s2) ** 2).sum(), abs=1e-6)
    assert score.mean_term == pytest.approx(((m1 - m2) ** 2).sum(), abs=1e-9)
    eps = 1e-6
    root = np.sqrt(s1**2 + eps) * np.sqrt(s2**2 + eps)
    expected = ((m1 - m2) ** 2 + s1**2 + s2**2 - 2 * root).sum()
    assert distance(first, second, OFFSET).value == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("seed", range(3))
def test_scipys_matrix_root_on_correlated_features(name, seed):
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(200, 8)) @ rng.normal(size=(8, 8)) + rng.normal(size=8)
    second = rng.normal(size=(150, 8)) @ rng.normal(size=(8, 8))
    settings = PROFILES[name].frechet
    with untouched(first, second):
        score = distance(first, second, settings)
    assert score.value == pytest.approx(by_scipy(first, second, settings.offset), rel=1e-9)
    assert (score.rows_generated, score.rows_recorded, score.dimensions) == (200, 150, 8)
    assert score.full_rank


@pytest.mark.parametrize("name", PROFILES)
def test_the_real_clips_halves_by_scipy(name, real_clip):
    features = describe(real_clip.joints[name])
    first, second, settings = features[:59, :24], features[59:, :24], PROFILES[name].frechet
    score = distance(first, second, settings)
    assert score.value == pytest.approx(by_scipy(first, second, settings.offset), abs=1e-6)


class TestInvariances:
    RNG = np.random.default_rng(7)
    FIRST = RNG.normal(size=(60, 5)) @ RNG.normal(size=(5, 5))
    SECOND = RNG.normal(size=(40, 5)) + 0.3

    def test_order_of_rows_and_of_sets(self):
        value = distance(self.FIRST, self.SECOND).value
        assert distance(self.FIRST[::-1], np.roll(self.SECOND, 7, axis=0)).value == pytest.approx(value, rel=1e-12)
        assert distance(self.SECOND, self.FIRST).value == pytest.approx(value, rel=1e-12)

    def test_a_common_rotation_and_shift(self):
        turn = np.linalg.qr(self.RNG.normal(size=(5, 5)))[0]
        moved = distance(self.FIRST @ turn + 5, self.SECOND @ turn + 5)
        assert moved.value == pytest.approx(distance(self.FIRST, self.SECOND).value, rel=1e-9)

    def test_a_factor_counts_squared(self):
        scaled = distance(self.FIRST * 10, self.SECOND * 10)
        assert scaled.value == pytest.approx(100 * distance(self.FIRST, self.SECOND).value, rel=1e-12)

    def test_half_precision_of_numbers_is_no_loss_in_the_arithmetic(self):
        first, second = self.FIRST.astype(np.float32), self.SECOND.astype(np.float32)
        exact = distance(first.astype(np.float64), second.astype(np.float64))
        assert distance(first, second).value == exact.value


class TestDegenerate:
    RNG = np.random.default_rng(3)

    def test_equal_sets(self):
        features = self.RNG.normal(size=(50, 12))
        assert distance(features, features).value == pytest.approx(0, abs=1e-10)
        assert distance(features, features, OFFSET).value == pytest.approx(-2e-6 * 12, abs=1e-10)

    def test_fewer_rows_than_dimensions_is_said_and_still_exact(self):
        """Equal sets of rank 9 in 40 dimensions, and against the same set with every row twice."""
        features = self.RNG.normal(size=(10, 40))
        score = distance(features, features)
        assert score.value == pytest.approx(0, abs=1e-9)
        assert (score.rank_generated, score.rank_recorded, score.full_rank) == (9, 9, False)
        doubled = distance(np.repeat(features, 2, axis=0), features)
        stds = np.linalg.svd(features - features.mean(axis=0), compute_uv=False)
        expected = ((stds * np.sqrt(2 / 19) - stds / 3) ** 2).sum()  # one eigenbasis, divisors 19 and 9
        assert doubled.value == pytest.approx(expected, abs=1e-9)

    def test_orthogonal_supports_have_no_common_root(self):
        first, second = np.zeros((30, 4)), np.zeros((30, 4))
        first[:, :2], second[:, 2:] = self.RNG.normal(size=(2, 30, 2))
        covariances = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
        m = first.mean(axis=0) - second.mean(axis=0)
        expected = m @ m + sum(np.trace(s) for s in covariances)
        score = distance(first, second)
        assert score.value == pytest.approx(expected, rel=1e-12)
        assert score.rank_generated == score.rank_recorded == 2

    def test_constant_features_have_rank_zero(self):
        first, second = np.full((9, 3), 0.1), np.full((7, 3), 0.3)
        score = distance(first, second)
        assert score.value == pytest.approx(3 * 0.2**2)
        assert score.rank_generated == score.rank_recorded == 0

    def test_rank_of_float32_copies_of_few_rows(self):
        few = self.RNG.normal(size=(4, 12)).astype(np.float32) + 100
        rows = few[self.RNG.integers(0, 4, 500)]
        assert distance(rows, rows).rank_generated == 3

    @pytest.mark.parametrize("rows", [0, 1])
    def test_too_few_rows(self, rows):
        with pytest.raises(DataError, match=f"generated features: expected 2 or more rows, found {rows}"):
            distance(np.ones((rows, 3)), np.ones((5, 3)))

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_values_that_are_not_finite(self, bad):
        features = np.ones((5, 3))
        features[2, 1] = bad
        with pytest.raises(DataError, match=r"recorded features: expected .*found (nan|inf) at index \(2, 1\)"):
            distance(np.ones((5, 3)), features)

    def test_widths_and_shapes(self):
        with pytest.raises(UsageFault, match="found 3 columns generated and 4 recorded"):
            distance(np.ones((5, 3)), np.ones((5, 4)))
        for shape in ((5,), (5, 2, 2), (5, 0)):
            with pytest.raises(UsageFault):
                distance(np.ones(shape), np.ones(shape))


class TestDescriptor:
    def test_against_its_definition_on_the_real_clip(self, real_clip):
        joints = real_clip.joints["corrected"]
        rows = describe(joints)
        assert rows.shape == (1 + (len(joints) - 32) // 16, 56)
        for n in (0, 17, len(rows) - 1):
            window = joints[16 * n : 16 * n + 32]
            expected = []
            for j in (15, 18, 19, 20, 21, 27, 42):
                x = window[:, j] - window[:, 0]
                v = (x[1:] - x[:-1]) * 30
                a = (v[1:] - v[:-1]) * 30
                expected += [*x.mean(axis=0), *x.std(axis=0), 0.1 * np.mean(np.sqrt((v**2).sum(axis=1)))]
                expected.append(0.01 * np.sqrt((a**2).sum(axis=1).mean()))
            np.testing.assert_allclose(rows[n], expected, atol=1e-9)

    def test_where_the_person_stands_does_not_matter(self, real_clip):
        joints = real_clip.joints["corrected"][:100]
        np.testing.assert_allclose(describe(joints + [3.0, 1.0, -2.0]), describe(joints), atol=1e-9)

    def test_more_rows_than_dimensions_in_the_real_clip(self, real_clip):
        rows = describe(real_clip.joints["corrected"])
        assert distance(rows, rows).full_rank

    def test_a_clip_too_short(self):
        assert describe(np.zeros((32, 55, 3))).shape == (1, 56)
        with pytest.raises(DataError, match="expected 32 or more rows, found 31"):
            describe(np.zeros((31, 55, 3)))

    def test_its_name_is_no_published_one(self):
        assert DESCRIPTOR_NAME.startswith("omniges-")
