"""Diversity, face, recall, motion and seams equal slow transcriptions of their definitions, invariances included."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics_builders import turned, untouched, walk
from scipy.spatial.transform import Rotation

from omniges.errors import DataError, UsageFault
from omniges.evaluation.settings import EvaluateSettings
from omniges.formats.arrays import checked
from omniges.formats.semantic import SemanticSpan
from omniges.metrics.clips import ClipValue, checked_pair, weighted_mean
from omniges.metrics.gesture import (
    FaceScore,
    FaceSums,
    expression_speeds,
    foot_skate,
    jaw_rotation_error,
    jaw_speeds,
    jerk,
    l1_diversity,
    root_drift,
    scored_poses,
    seam_score,
    semantic_recall,
    semantic_scores,
    speed_correlation,
)
from omniges.metrics.profiles import PROFILES, FaceSettings

ALL = list(PROFILES)
RNG = np.random.default_rng(0)


class TestDiversity:
    @pytest.mark.parametrize("name", ALL)
    def test_by_hand_on_the_real_clip(self, name, real_clip):
        joints = real_clip.joints[name].reshape(1906, 165)
        expected = sum(math.fsum(abs(column - math.fsum(column) / 1906)) for column in joints.T) / 1906
        found = l1_diversity(real_clip.joints[name])
        assert found.value == pytest.approx(expected, abs=1e-6)
        assert found.weight == 1906
        assert 12 < found.value < 16  # what a body does; a mean over coordinates would be below 0.1

    def test_invariances(self):
        joints = walk(50, 55, 0)
        with untouched(joints):
            value = l1_diversity(joints).value
        assert l1_diversity(joints + [5, 6, 7]).value == pytest.approx(value, rel=1e-9)
        assert l1_diversity(joints[RNG.permutation(50)]).value == pytest.approx(value, rel=1e-9)
        assert l1_diversity(joints * 1000).value == pytest.approx(1000 * value, rel=1e-9)
        assert l1_diversity(turned(joints, 45)).value != pytest.approx(value, rel=1e-3)

    def test_a_corpus_is_the_sum_over_the_frames(self):
        clips = [walk(20, 5, 1), walk(70, 5, 2)]
        total = sum(np.abs(clip - clip.mean(axis=0)).sum() for clip in clips) / 90
        assert weighted_mean([l1_diversity(clip) for clip in clips]) == pytest.approx(total, rel=1e-12)

    def test_one_frame_and_none(self):
        assert l1_diversity(np.ones((1, 55, 3))) == ClipValue(0.0, 1.0)
        with pytest.raises(DataError, match="found 0"):
            l1_diversity(np.ones((0, 55, 3)))


def face_sums(generated: np.ndarray, recorded: np.ndarray) -> FaceSums:
    sums = FaceSums()
    sums.add(generated, recorded)
    return sums


def face_mse(generated: np.ndarray, recorded: np.ndarray) -> FaceScore:
    return face_sums(generated, recorded).mse()


def face_velocity(generated: np.ndarray, recorded: np.ndarray, settings: FaceSettings) -> FaceScore:
    return face_sums(generated, recorded).velocity(settings)


class TestFace:
    P, G = RNG.normal(0, 0.01, (2, 40, 30, 3)) + 1

    def test_mse_by_hand(self):
        total = math.fsum((float(p) - float(g)) ** 2 for p, g in zip(self.P.flat, self.G.flat, strict=True))
        with untouched(self.P, self.G):
            found = face_mse(self.P, self.G)
        assert found.value == pytest.approx(total / (40 * 90), rel=1e-12)
        assert (found.weight, found.vertices) == (40, 30)

    @pytest.mark.parametrize("name", ALL)
    def test_lvd_by_hand(self, name):
        p, g, total = self.P.reshape(40, 90), self.G.reshape(40, 90), 0.0
        for t in range(39):
            for c in range(90):
                if name == "emage-2024":
                    total += abs((p[t + 1, c] - g[t, c]) - (g[t + 1, c] - g[t, c]))
                else:
                    total += abs((p[t + 1, c] - p[t, c]) - (g[t + 1, c] - g[t, c]))
        expected = total / ((40 if name == "emage-eval-2025" else 39) * 90)
        with untouched(self.P, self.G):
            found = face_velocity(self.P, self.G, PROFILES[name].face)
        assert found.value == pytest.approx(expected, rel=1e-9)
        assert found.weight == (39 if name == "corrected" else 40)

    @pytest.mark.parametrize("name", ALL)
    @pytest.mark.parametrize("cuts", [[1], [1, 2, 3], [13, 14, 39], [20]])
    def test_blocks_are_the_whole(self, name, cuts):
        sums, settings = FaceSums(), PROFILES[name].face
        for p, g in zip(np.split(self.P, cuts), np.split(self.G, cuts), strict=True):
            with untouched(p, g):
                sums.add(p, g)
        whole = face_mse(self.P, self.G), face_velocity(self.P, self.G, settings)
        for found, expected in zip((sums.mse(), sums.velocity(settings)), whole, strict=True):
            assert found.value == pytest.approx(expected.value, rel=1e-12)
            assert (found.weight, found.vertices) == (expected.weight, expected.vertices)
        with pytest.raises(UsageFault, match="expected 30 vertices as in earlier clips, found 29"):
            sums.add(self.P[:, :29], self.G[:, :29])

    @pytest.mark.parametrize("name", ALL)
    def test_on_the_real_clip_against_its_delayed_self(self, name, real_clip):
        g = real_clip.joints[name]
        p = np.roll(g, 3, axis=0)
        if name == "emage-2024":
            expected = np.mean(np.abs(p[1:] - g[1:]))
        else:
            expected = np.sum(np.abs(np.diff(p, axis=0) - np.diff(g, axis=0))) / (165 * (1906 - (name == "corrected")))
        assert face_velocity(p, g, PROFILES[name].face).value == pytest.approx(expected, abs=1e-9)
        assert face_mse(p, g).value == pytest.approx(((p - g).ravel() @ (p - g).ravel()) / p.size, abs=1e-9)

    @pytest.mark.parametrize("name", ALL)
    def test_a_constant_offset_is_no_velocity(self, name):
        value = face_velocity(self.G + 0.5, self.G, PROFILES[name].face).value
        assert value == pytest.approx(0.5 if name == "emage-2024" else 0.0, abs=1e-12)

    @pytest.mark.parametrize("name", ALL)
    def test_symmetry_units_and_order_of_vertices(self, name):
        settings, order = PROFILES[name].face, RNG.permutation(30)
        value, mse = face_velocity(self.P, self.G, settings).value, face_mse(self.P, self.G).value
        assert face_velocity(self.G, self.P, settings).value == pytest.approx(value, rel=1e-12)
        assert face_velocity(self.P[:, order], self.G[:, order], settings).value == pytest.approx(value, rel=1e-12)
        assert face_velocity(self.P * 1e3, self.G * 1e3, settings).value == pytest.approx(value * 1e3, rel=1e-12)
        assert face_mse(self.P * 1e3, self.G * 1e3).value == pytest.approx(mse * 1e6, rel=1e-12)
        assert face_velocity(self.P, self.P, settings).value == face_mse(self.P, self.P).value == 0

    def test_on_noise_the_two_published_differ_by_the_root_of_two(self):
        g = np.zeros((4000, 10, 3))
        p = np.random.default_rng(1).normal(size=g.shape)
        new = face_velocity(p, g, PROFILES["emage-eval-2025"].face).value
        old = face_velocity(p, g, PROFILES["emage-2024"].face).value
        assert new / old == pytest.approx(math.sqrt(2), rel=0.02)

    def test_refusals(self):
        settings = PROFILES["corrected"].face
        with pytest.raises(DataError, match="expected at least 2 frames, found 1"):
            face_velocity(self.P[:1], self.G[:1], settings)
        with pytest.raises(UsageFault, match="expected equal shapes"):
            face_mse(self.P[:5], self.G[:6])
        with pytest.raises(DataError, match="expected finite"):
            face_mse(self.P * np.nan, self.G)


class TestRecall:
    P, G = RNG.normal(0, 0.06, (2, 60, 12, 3))
    SCORES = RNG.choice([0.0, 0.1, 0.7, 1.0], 60)

    @staticmethod
    def slow(name, p, g, scores):
        total, weights = 0.0, 0.0
        for t in range(len(p)):
            for j in range(p.shape[1]):
                d = [abs(float(a) - float(b)) for a, b in zip(p[t, j], g[t, j], strict=True)]
                error = sum(d) if name == "emage-2024" else math.sqrt(sum(x * x for x in d))
                total += (error < 0.1) * scores[t]
            weights += scores[t] if name == "corrected" else 0.165
        return total / p.shape[1] / weights

    @pytest.mark.parametrize("name", ALL)
    def test_by_hand(self, name):
        with untouched(self.P, self.G, self.SCORES):
            found = semantic_recall(self.P, self.G, self.SCORES, PROFILES[name].semantic)
        assert found.value == pytest.approx(self.slow(name, self.P, self.G, self.SCORES), rel=1e-9)
        assert found.value > 0
        assert (found.joints, found.annotated) == (12, True)
        assert found.weight == pytest.approx(self.SCORES.sum() if name == "corrected" else 60)

    @pytest.mark.parametrize("name", ALL)
    def test_on_the_real_clip_with_its_annotation(self, name, real_clip):
        settings, g = PROFILES[name].semantic, real_clip.joints[name]
        scores = semantic_scores(real_clip.spans, 1906, settings)
        p = np.roll(g, 10, axis=0)
        found = semantic_recall(p[::20], g[::20], scores[::20], settings)
        assert found.value == pytest.approx(self.slow(name, p[::20], g[::20], scores[::20]), abs=1e-9)

    @pytest.mark.parametrize("name", ALL)
    def test_order_of_frames_and_joints_does_not_matter(self, name):
        frames, joints = RNG.permutation(60), RNG.permutation(12)
        value = semantic_recall(self.P, self.G, self.SCORES, PROFILES[name].semantic).value
        p, g = self.P[frames][:, joints], self.G[frames][:, joints]
        assert semantic_recall(p, g, self.SCORES[frames], PROFILES[name].semantic).value == pytest.approx(value)

    def test_all_right_is_one_only_where_corrected(self):
        published = semantic_recall(self.G, self.G, self.SCORES, PROFILES["emage-2024"].semantic).value
        assert published == pytest.approx(self.SCORES.mean() / 0.165)
        assert published > 1
        assert semantic_recall(self.G, self.G, self.SCORES, PROFILES["corrected"].semantic).value == pytest.approx(1)

    def test_clips_pool_as_one_clip_would(self):
        settings = PROFILES["corrected"].semantic
        halves = [semantic_recall(self.P[s], self.G[s], self.SCORES[s], settings) for s in (slice(25), slice(25, 60))]
        assert weighted_mean(halves) == pytest.approx(semantic_recall(self.P, self.G, self.SCORES, settings).value)

    def test_without_annotation(self):
        found = semantic_recall(self.P, self.G, None, PROFILES["emage-eval-2025"].semantic)
        ones = np.ones(60)
        assert found.value == pytest.approx(self.slow("emage-eval-2025", self.P, self.G, ones) * 0.165)
        assert not found.annotated
        for name in ("emage-2024", "corrected"):
            with pytest.raises(UsageFault, match="semantic annotation"):
                semantic_recall(self.P, self.G, None, PROFILES[name].semantic)

    def test_scores_that_cannot_be(self):
        settings = PROFILES["corrected"].semantic
        with pytest.raises(DataError, match="score above 0"):
            semantic_recall(self.P, self.G, np.zeros(60), settings)
        with pytest.raises(DataError, match="expected scores from 0 to 1"):
            semantic_recall(self.P, self.G, np.full(60, 1.5), settings)
        with pytest.raises(UsageFault, match=r"expected numbers \(60\)"):
            semantic_recall(self.P, self.G, np.ones(59), settings)

    @pytest.mark.parametrize("name", ALL)
    def test_frame_scores_by_hand(self, name, real_clip):
        spans = [*real_clip.spans, SemanticSpan("x", 1.0, 2.0, 1.0, 0.9), SemanticSpan("y", 70.0, 71.0, 1.0, 0.4)]
        found = semantic_scores(spans, 2200, PROFILES[name].semantic)
        for i in range(2200):
            t, expected = i / 30, 0.0
            for span in spans:
                if span.start <= t and (t < span.end or (t == span.end and name != "corrected")):
                    expected = span.score
                    break
            assert found[i] == expected

    def test_a_frame_on_a_boundary(self):
        spans = [SemanticSpan("a", 0.0, 1.0, 1.0, 0.2), SemanticSpan("b", 1.0, 2.0, 1.0, 0.8)]
        assert [semantic_scores(spans, 31, PROFILES[name].semantic)[30] for name in ALL] == [0.2, 0.2, 0.8]


class TestProfiles:
    @pytest.mark.parametrize("name", ALL)
    def test_what_is_zeroed(self, name):
        poses = RNG.normal(size=(5, 165)).astype(np.float32)
        with untouched(poses):
            found = scored_poses(poses, PROFILES[name].positions)
        expected = poses.astype(np.float64)
        if name != "emage-2024":
            expected[:, [0, 1, 2, *range(66, 75)]] = 0
        np.testing.assert_array_equal(found, expected)
        assert not np.shares_memory(found, poses)

    def test_constants_of_the_sources(self):
        """The numbers of the table in docs/reference/metrics.md."""
        assert [p.beats.threshold for p in PROFILES.values()] == [0.30, 0.10, 0.10]
        assert [p.beats.threshold_at for p in PROFILES.values()] == ["shifted", "shifted", "minimum"]
        assert [p.frechet.offset for p in PROFILES.values()] == [0, 1e-6, 0]
        assert [p.published for p in PROFILES.values()] == [True, True, False]
        for p in PROFILES.values():
            beats = p.beats
            assert (beats.sigma_s, beats.order_frames, beats.crop_frames, beats.hop_samples) == (0.3, 7, 60, 512)
            assert beats.joints == (3, 6, 9, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21)
            assert (p.semantic.threshold_m, p.semantic.scale) == (0.1, 0.165)

    def test_they_cannot_be_changed_and_others_do_not_exist(self):
        with pytest.raises(AttributeError):
            PROFILES["corrected"].beats.threshold = 0.2  # type: ignore[misc]
        with pytest.raises(TypeError):
            PROFILES["mine"] = PROFILES["corrected"]  # type: ignore[index]
        with pytest.raises(UsageFault, match="profile emage: expected one of corrected, emage-2024, emage-eval-2025"):
            EvaluateSettings(generated=(Path("results"),), profile="emage")  # type: ignore[arg-type]


class TestMotion:
    def test_drift_of_a_circle_and_of_a_line(self):
        angle = np.linspace(0, 2 * np.pi, 101)
        circle = np.stack([np.cos(angle), angle, np.sin(angle)], axis=1)
        assert root_drift(circle).end_m == pytest.approx(0, abs=1e-12)
        assert root_drift(circle).farthest_m == pytest.approx(2, abs=1e-3)
        line = np.outer(np.arange(11), [0.3, 9.0, 0.4])
        assert root_drift(line).end_m == pytest.approx(5)
        assert root_drift(line[:1]).farthest_m == 0

    def test_drift_on_the_real_clip_whichever_way_the_world_lies(self, real_clip):
        root = real_clip.world[:, 0]
        score = root_drift(root)
        assert score.end_m == pytest.approx(math.hypot(*(root[-1] - root[0])[[0, 2]]), abs=1e-12)
        assert score.farthest_m == pytest.approx(max(math.hypot(*(p - root[0])[[0, 2]]) for p in root), abs=1e-12)
        moved = root_drift(turned(root, 77) + [3, 9, -4])
        assert (moved.end_m, moved.farthest_m) == pytest.approx((score.end_m, score.farthest_m), abs=1e-9)

    def test_skate_by_hand_on_the_real_clip(self, real_clip):
        joints, total, count = real_clip.world, 0.0, 0
        for toe in (10, 11):
            floor = np.percentile(joints[:, toe, 1], 5)
            for t in range(len(joints) - 1):
                h = max(joints[t, toe, 1] - floor, 0)
                if h < 0.025:
                    v = math.hypot(*(joints[t + 1, toe] - joints[t, toe])[[0, 2]]) * 30
                    total, count = total + v * (2 - 2 ** (h / 0.025)), count + 1
        joints = joints.copy()
        with untouched(joints):
            score = foot_skate(joints)
        assert score.value == pytest.approx(total / count, abs=1e-9)
        assert (score.weight, score.toe_frames) == (count, 2 * 1905)
        assert foot_skate(turned(joints, 30) + [1, 0, 2]).value == pytest.approx(score.value, abs=1e-9)

    def test_sliding_feet_have_their_speed_and_standing_or_lifted_ones_none(self):
        joints = np.zeros((31, 55, 3))
        assert foot_skate(joints).value == 0
        joints[:, :, 0] = np.linspace(0, 2, 31)[:, None]  # 2 m in 1 s
        assert foot_skate(joints).value == pytest.approx(2)
        joints[:28, :, 1] = 0.0125  # the last three frames stand on the floor, two of them with a step
        assert foot_skate(joints).value == pytest.approx((28 * 2 * (2 - math.sqrt(2)) + 2 * 2) / 30)
        joints[:28, :, 1] = 1.0
        assert foot_skate(joints).weight == 4
        lifted = foot_skate(np.array([np.ones((55, 3)), np.zeros((55, 3))]))
        assert (lifted.value, lifted.weight) == (0, 0)

    def test_jerk_of_a_cubic_and_under_constant_velocity(self):
        t = np.arange(40)[:, None, None] / 30
        cubic = t**3 * np.array([[[1.0, 2.0, 2.0]]]) / 6
        assert jerk(cubic).value == pytest.approx(3, rel=1e-6)
        joints = walk(60, 55, 1)
        value = jerk(joints).value
        assert jerk(joints + t[:1] + np.arange(60)[:, None, None] * [0.1, 0.2, -0.3]).value == pytest.approx(value)
        assert jerk(turned(joints, 50, "z") * 100).value == pytest.approx(100 * value)

    def test_jerk_by_hand_on_the_real_clip(self, real_clip):
        x = real_clip.world[:200]
        norms = [
            math.dist(x[t + 3, j] - 3 * x[t + 2, j], x[t, j] - 3 * x[t + 1, j]) * 27000
            for t in range(197)
            for j in range(55)
        ]
        assert jerk(x).value == pytest.approx(math.fsum(norms) / len(norms), rel=1e-9)

    @pytest.mark.parametrize(("metric", "minimum"), [(foot_skate, 2), (jerk, 4)])
    def test_too_few_frames(self, metric, minimum):
        metric(np.zeros((minimum, 55, 3)))
        with pytest.raises(DataError, match=f"expected {minimum} or more"):
            metric(np.zeros((minimum - 1, 55, 3)))


class TestSeams:
    def test_by_hand(self):
        joints, seams = walk(120, 6, 4), [30, 64, 65]
        velocity = {
            t: math.sqrt(sum(math.dist(joints[t, j], joints[t - 1, j]) ** 2 for j in range(6)) / 6) * 30
            for t in range(1, 120)
        }
        acceleration = {
            t: math.sqrt(((joints[t + 1] - 2 * joints[t] + joints[t - 1]) ** 2).sum() / 6) * 900 for t in range(1, 119)
        }
        with untouched(joints):
            score = seam_score(joints, seams)
        for found, values, at in (
            (score.velocity, velocity, (30, 64, 65)),
            (score.acceleration, acceleration, (29, 30, 63, 64, 65)),
        ):
            limit = np.percentile([v for t, v in values.items() if t not in at], 99)
            here = [values[t] for t in at]
            assert found.elsewhere == pytest.approx(limit, rel=1e-9)
            np.testing.assert_allclose(found.at_seams, here, rtol=1e-9)
            assert found.above == pytest.approx(np.mean(np.array(here) > limit))
            assert found.worst_ratio == pytest.approx(max(here) / limit)

    def test_a_jump_in_the_real_clip_is_found_and_true_motion_is_not(self, real_clip):
        joints, seams = real_clip.world.copy(), list(range(64, 1900, 64))
        score = seam_score(joints, seams)
        assert score.velocity.above < 0.1
        assert score.acceleration.above < 0.1
        for s in seams:
            joints[s:] += [0.15 * (-1) ** (s // 64), 0, 0]
        broken = seam_score(joints, seams)
        assert broken.velocity.above > 0.9
        assert broken.acceleration.worst_ratio > 5

    def test_a_kink_shows_in_acceleration_alone(self):
        t = np.arange(100)
        x = np.where(t < 50, t, 100 - t) * 0.01 + 0.0005 * np.sin(t)
        score = seam_score(np.stack([x, x, x], axis=1)[:, None], [51])
        assert score.acceleration.worst_ratio > 5
        assert score.velocity.worst_ratio < 1.05

    def test_units_cancel_in_the_ratio(self):
        joints = walk(100, 5, 2)
        one, other = seam_score(joints, [40]), seam_score(turned(joints, 33) * 1000 + 5, [40])
        assert other.velocity.worst_ratio == pytest.approx(one.velocity.worst_ratio)
        assert other.acceleration.elsewhere == pytest.approx(1000 * one.acceleration.elsewhere)

    @pytest.mark.parametrize("seams", [[], [1], [99], [-5], [2, 500]])
    def test_places_that_are_no_seams(self, seams):
        with pytest.raises(UsageFault, match=r"expected frames from 2 to 98"):
            seam_score(walk(100, 5, 2), seams)

    def test_nothing_to_compare_with(self):
        with pytest.raises(DataError, match="motion away from window boundaries"):
            seam_score(np.ones((20, 5, 3)), [10])
        with pytest.raises(UsageFault, match="frames away from window boundaries"):
            seam_score(walk(4, 5, 0), [2])


class TestChecks:
    def test_weights(self):
        assert weighted_mean([ClipValue(1.0, 1.0), ClipValue(4.0, 3.0)]) == pytest.approx(13 / 4)
        with pytest.raises(DataError, match="total weight above 0"):
            weighted_mean([])

    def test_numbers_of_any_kind_but_numbers(self):
        assert checked(np.ones((2, 3), dtype=np.int32), "x", (None, 3)).dtype == np.float64
        for bad in (np.array(["a"]), np.array([1j]), np.array([True])):
            with pytest.raises(UsageFault, match="expected numbers"):
                checked(bad, "x", (None,))

    def test_which_side_is_at_fault(self):
        with pytest.raises(DataError, match=r"recorded vertices: expected .*found nan at"):
            checked_pair(np.ones((2, 3)), np.full((2, 3), np.nan), "vertices", (None, 3))


def poses_of(jaw):
    poses = RNG.normal(size=(len(jaw), 165))
    poses[:, 66:69] = jaw
    return poses


class TestJawAndExpressions:
    @settings(max_examples=20, deadline=None)
    @given(st.integers(2, 40), st.floats(1e-6, 3.1), st.integers(0, 1000))
    def test_angles_equal_those_of_scipy_whatever_the_rest_of_the_body_does(self, frames, most, seed):
        rng = np.random.default_rng(seed)
        found, true = rng.uniform(-1, 1, (2, frames, 3)) * most / math.sqrt(3)
        one, other = Rotation.from_rotvec(found), Rotation.from_rotvec(true)
        error = jaw_rotation_error(poses_of(found), poses_of(true))
        assert error.value == pytest.approx((one.inv() * other).magnitude().mean(), abs=1e-9)
        assert error.weight == frames
        expected = (one[:-1].inv() * one[1:]).magnitude()
        np.testing.assert_allclose(jaw_speeds(poses_of(found)), expected, atol=1e-9)

    def test_equal_jaws_have_no_error(self):
        jaw = RNG.normal(size=(9, 3)) * 0.1
        assert jaw_rotation_error(poses_of(jaw), poses_of(jaw)).value == pytest.approx(0, abs=1e-7)

    def test_expressions_move_by_the_length_of_their_steps(self):
        expressions = RNG.normal(size=(6, 100))
        expected = [math.dist(first, second) for first, second in itertools.pairwise(expressions)]
        np.testing.assert_allclose(expression_speeds(expressions), expected, rtol=1e-12)

    @settings(max_examples=30, deadline=None)
    @given(st.integers(3, 60), st.integers(0, 1000), st.floats(0.01, 100), st.floats(0, 10))
    def test_the_correlation_is_pearsons_and_blind_to_scale_and_level(self, count, seed, scale, level):
        found, true = np.random.default_rng(seed).uniform(0, 1, (2, count))
        value = speed_correlation(found, true)
        assert value.value == pytest.approx(np.corrcoef(found, true)[0, 1], abs=1e-9)
        assert value.weight == count
        assert speed_correlation(found * scale + level, true).value == pytest.approx(value.value, abs=1e-6)
        assert speed_correlation(true, true).value == pytest.approx(1)

    def test_a_jaw_that_does_not_move_has_no_correlation(self):
        speeds = RNG.uniform(size=5)
        with pytest.raises(DataError, match="generated speeds: expected motion, found 0 in all frames"):
            speed_correlation(jaw_speeds(np.zeros((6, 165))), speeds)
        with pytest.raises(DataError, match="recorded speeds"):
            speed_correlation(speeds, np.full(5, 0.5))
        with pytest.raises(UsageFault, match="expected equal shapes"):
            speed_correlation(speeds, speeds[1:])
