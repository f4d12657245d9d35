"""Beat consistency equals a slow transcription of its definition in all profiles and has the invariances it claims."""

import dataclasses
import math

import numpy as np
import pytest
from metrics_builders import clicks, turned, untouched, walk
from scipy.signal import argrelextrema

from omniges.errors import DataError, UsageFault
from omniges.metrics.clips import weighted_mean
from omniges.metrics.gesture import (
    BeatScore,
    audio_beats,
    beat_score,
    joint_speeds,
    mean_joint_speeds,
    min_frames,
    motion_beats,
)
from omniges.metrics.profiles import PROFILES
from omniges.storage.librosa_import import load_librosa

ALL = list(PROFILES)


def beat_consistency(joints, mean_speeds_m_s, samples, settings) -> BeatScore:
    beats = motion_beats(joints, mean_speeds_m_s, settings)
    return beat_score(audio_beats(samples, len(joints), settings), beats, len(joints), settings)


UPPER = (3, 6, 9, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21)


def slow_onsets(name, samples, frames):
    """The crop of each profile, written down from the definition."""
    if name == "emage-2024":
        audio = load_librosa().resample(samples, orig_sr=16000, target_sr=22050)
        audio = load_librosa().resample(audio, orig_sr=22050, target_sr=16000)
        cropped = audio[: int(16000 / 30 * frames)][32000 : len(audio) - 32000]
    else:
        cropped = samples[32000 : int((frames - 60) / 30 * 16000)]
        if name == "corrected":
            cropped = samples[32000 : round((frames - 60) * 16000 / 30)]
    return load_librosa().onset.onset_detect(y=cropped, sr=16000, hop_length=512, units="time")


def slow_motion_beats(name, joints, means):
    """Joint by joint and frame by frame; minima by scipy."""
    x = np.array(joints, dtype=np.float64)
    if name == "emage-2024":
        x = abs(x - x.mean(axis=0))
    frames = len(x)
    threshold = 0.3 if name == "emage-2024" else 0.1
    result = []
    for j in UPPER:
        speed = []
        for t in range(frames):
            before, after = max(t - 1, 0), min(t + 1, frames - 1)
            speed.append(math.dist(x[after, j], x[before, j]) * 30 / (after - before) / means[j])
        minima = argrelextrema(np.array(speed[60 : frames - 60]), np.less, order=7)[0]
        shift = 60 if name == "corrected" else 0
        result.append([int(m) for m in minima if speed[m + shift] > threshold])
    return result


def slow_score(onsets, beats):
    """Brute force over all pairs."""
    values = []
    for of_joint in beats:
        near = [
            math.exp(-(min((b - m / 30) ** 2 for m in of_joint)) / (2 * 0.3**2)) if of_joint else 0.0 for b in onsets
        ]
        values.append(sum(near) / len(near))
    return sum(values) / len(values)


@pytest.mark.parametrize("name", ALL)
class TestAgainstTheDefinition:
    @pytest.mark.slow
    def test_on_the_real_clip(self, name, real_clip):
        settings, joints = PROFILES[name].beats, real_clip.joints[name]
        onsets = slow_onsets(name, real_clip.samples, len(joints))
        np.testing.assert_allclose(audio_beats(real_clip.samples, len(joints), settings), onsets, atol=1e-12)
        beats = slow_motion_beats(name, joints, real_clip.mean_speeds)
        found = motion_beats(joints, real_clip.mean_speeds, settings)
        assert [list(of_joint) for of_joint in found] == beats
        score = beat_consistency(joints, real_clip.mean_speeds, real_clip.samples, settings)
        assert score.value == pytest.approx(slow_score(onsets, beats), abs=1e-6)
        assert (score.weight, score.audio_beats) == (len(joints) - 120, len(onsets))
        assert score.motion_beats == sum(map(len, beats)) > 100

    @pytest.mark.parametrize("seed", range(3))
    def test_on_made_up_motion(self, name, seed):
        joints = walk(400, 55, seed)
        means = joint_speeds(joints).mean(axis=0) * np.random.default_rng(seed).uniform(0.5, 6, 55)
        found = motion_beats(joints, means, PROFILES[name].beats)
        assert [list(of_joint) for of_joint in found] == slow_motion_beats(name, joints, means)
        times = np.arange(0.1, 9, 0.37)
        score = beat_score(times, found, 400, PROFILES[name].beats)
        assert score.value == pytest.approx(slow_score(times, slow_motion_beats(name, joints, means)), abs=1e-12)

    def test_inputs_stay_as_they_are(self, name):
        joints, audio = walk(300, 55, 1), clicks(10, np.arange(1, 9, 0.5))
        means = np.ones(55) * 0.1
        with untouched(joints, audio, means):
            beat_consistency(joints, means, audio, PROFILES[name].beats)

    def test_a_common_factor_and_a_shift_change_nothing(self, name):
        joints, settings = walk(300, 55, 2), PROFILES[name].beats
        means = joint_speeds(joints).mean(axis=0)
        expected = [list(beats) for beats in motion_beats(joints, means, settings)]
        millimetres = motion_beats(joints * 1024, means * 1024, settings)
        assert [list(beats) for beats in millimetres] == expected
        shifted = motion_beats(joints + [8.0, -4.0, 2.0], means, settings)
        assert [list(beats) for beats in shifted] == expected

    def test_silence_has_no_score(self, name):
        with pytest.raises(DataError, match="no onset"):
            audio_beats(np.zeros(160_000, dtype=np.float32), 300, PROFILES[name].beats)

    @pytest.mark.parametrize("samples", [1, 100, 33_000])
    def test_audio_too_short_for_the_crop(self, name, samples):
        with pytest.raises(DataError, match="after the crop"):
            audio_beats(np.ones(samples, dtype=np.float32), 300, PROFILES[name].beats)

    def test_the_shortest_clip_that_can_have_beats(self, name):
        """Longer ones may still be without an onset; shorter ones are always refused."""
        settings = PROFILES[name].beats

        def refusal(frames):
            audio = np.random.default_rng(0).normal(0, 0.1, frames * 16000 // 30)
            try:
                audio_beats(audio, frames, settings)
            except DataError as error:
                return str(error)
            return ""

        assert "after the crop" in refusal(min_frames(settings) - 1)
        assert "after the crop" not in refusal(min_frames(settings))

    def test_no_audio_at_all(self, name):
        with pytest.raises(DataError, match=r"audio: expected .*found 0"):
            audio_beats(np.zeros(0, dtype=np.float32), 300, PROFILES[name].beats)

    def test_audio_that_is_not_finite(self, name):
        audio = clicks(10, [3.0])
        audio[5] = np.nan
        with pytest.raises(DataError, match=r"audio: expected .*found nan"):
            audio_beats(audio, 300, PROFILES[name].beats)

    @pytest.mark.parametrize("frames", [1, 2, 120])
    def test_a_clip_that_the_crop_leaves_nothing_of(self, name, frames):
        with pytest.raises(DataError, match=f"expected 121 or more rows, found {frames}"):
            motion_beats(np.zeros((frames, 55, 3)), np.ones(55), PROFILES[name].beats)
        with pytest.raises(DataError, match="expected more than 120"):
            beat_score(np.array([1.0]), (), frames, PROFILES[name].beats)

    def test_frozen_motion_scores_zero(self, name):
        joints = np.ones((300, 55, 3))
        beats = motion_beats(joints, np.ones(55), PROFILES[name].beats)
        assert beat_score(np.array([1.0]), beats, 300, PROFILES[name].beats).value == 0


class TestWhatTellsTheProfilesApart:
    def test_the_threshold_is_tested_sixty_frames_early_in_the_published_ones(self):
        """A joint that rests in its first 150 frames and moves after: its minimum at 180 is kept or lost by frame."""
        joints = np.zeros((400, 55, 3))
        t = np.arange(400)
        joints[:, 20, 0] = np.where(t < 150, 0, np.cumsum(np.where(t < 150, 0, 1.5 + np.cos((t - 200.3) / 20 * np.pi))))
        means = np.ones(55)
        early = motion_beats(joints, means, PROFILES["emage-eval-2025"].beats)[11]
        right = motion_beats(joints, means, PROFILES["corrected"].beats)[11]
        assert set(early) < set(right)
        speeds = joint_speeds(joints)[:, 20]
        assert all(speeds[m + 60] > 0.1 for m in right)
        assert not all(speeds[m] > 0.1 for m in right)

    def test_only_the_oldest_takes_deviations(self, real_clip):
        joints = real_clip.joints["emage-2024"]
        folded = np.abs(joints - joints.mean(axis=0))
        settings = PROFILES["emage-2024"].beats
        clean = dataclasses.replace(settings, motion="positions")
        as_published = motion_beats(joints, real_clip.mean_speeds, settings)
        np.testing.assert_equal(motion_beats(folded, real_clip.mean_speeds, clean), as_published)
        assert sum(map(len, motion_beats(joints, real_clip.mean_speeds, clean))) != sum(map(len, as_published))

    @pytest.mark.parametrize("name", ALL)
    def test_turning_the_world_matters_only_to_deviations(self, name):
        joints = walk(400, 55, 3)
        means = joint_speeds(joints).mean(axis=0)
        straight = motion_beats(joints, means, PROFILES[name].beats)
        askew = motion_beats(turned(joints, 40, "z"), means, PROFILES[name].beats)
        same = [list(beats) for beats in straight] == [list(beats) for beats in askew]
        assert same == (name != "emage-2024")

    def test_as_published_trembling_beats_a_person_and_holding_still_scores_nothing(self, real_clip):
        """docs/reference/metrics.md warns of this: 5 mm of noise on every coordinate raises the score."""
        settings, joints = PROFILES["emage-eval-2025"].beats, real_clip.joints["emage-eval-2025"]
        onsets = audio_beats(real_clip.samples, len(joints), settings)

        def score(moved):
            return beat_score(onsets, motion_beats(moved, real_clip.mean_speeds, settings), len(moved), settings).value

        trembling = joints + np.random.default_rng(0).normal(0, 0.005, joints.shape)
        assert score(trembling) > score(joints) > 0.6
        assert abs(score(joints[::-1]) - score(joints)) < 0.05
        assert score(np.broadcast_to(joints[:1], joints.shape)) == 0

    def test_the_published_onset_count_of_the_real_clip(self, real_clip):
        assert len(audio_beats(real_clip.samples, 1906, PROFILES["emage-eval-2025"].beats)) == 378


class TestReading:
    SETTINGS = PROFILES["corrected"].beats

    def test_beats_on_the_sound_score_one_and_far_ones_nothing(self):
        beats = (np.array([15, 45, 75]),)
        assert beat_score(np.array([0.5, 1.5]), beats, 300, self.SETTINGS).value == pytest.approx(1)
        assert beat_score(np.array([30.0]), beats, 300, self.SETTINGS).value < 1e-12

    def test_one_sigma_away(self):
        value = beat_score(np.array([1.3]), (np.array([30]),), 300, self.SETTINGS).value
        assert value == pytest.approx(math.exp(-0.5))

    def test_more_motion_beats_never_lower_the_score(self):
        rng = np.random.default_rng(0)
        times, few = rng.uniform(0, 10, 40), rng.integers(0, 300, 6)
        many = np.concatenate([few, rng.integers(0, 300, 60)])
        lower, higher = (beat_score(times, (beats,), 420, self.SETTINGS) for beats in (few, many))
        assert lower.value < higher.value
        assert (lower.motion_beats, higher.motion_beats) == (6, 66)

    def test_no_audio_beats_are_refused(self):
        with pytest.raises(DataError, match=r"audio beats: expected .*found 0"):
            beat_score(np.array([]), (np.array([3]),), 300, self.SETTINGS)

    def test_clips_weigh_by_scored_frames(self):
        beats = (np.array([30]),)
        clips = [
            beat_score(np.array([1.0]), beats, 220, self.SETTINGS),
            beat_score(np.array([9.0]), beats, 420, self.SETTINGS),
        ]
        assert weighted_mean(clips) == pytest.approx((100 * 1 + 300 * 0) / 400)


class TestMeanSpeeds:
    def test_mean_over_all_frames_of_all_clips(self):
        clips = [walk(50, 4, 0), walk(20, 4, 1)]
        expected = np.concatenate([joint_speeds(clip) for clip in clips]).mean(axis=0)
        np.testing.assert_allclose(mean_joint_speeds(clips), expected, rtol=1e-12)

    def test_a_joint_that_moves_needs_one_and_one_that_rests_does_not(self):
        joints = walk(300, 55, 5)
        joints[:, 3] = 1.0
        means = np.ones(55)
        means[3] = 0
        assert len(motion_beats(joints, means, PROFILES["corrected"].beats)[0]) == 0
        means[20] = 0
        with pytest.raises(DataError, match="joint 20, which moves"):
            motion_beats(joints, means, PROFILES["corrected"].beats)

    def test_none_without_clips_or_with_mixed_ones(self):
        with pytest.raises(DataError, match="clip of the train split, found none"):
            mean_joint_speeds([])
        with pytest.raises(UsageFault, match="found 4 and 5"):
            mean_joint_speeds([walk(9, 4, 0), walk(9, 5, 0)])

    def test_speeds_are_those_of_numpys_gradient(self):
        joints = walk(40, 6, 2)
        expected = np.linalg.norm(np.gradient(joints, 1 / 30, axis=0), axis=-1)
        np.testing.assert_allclose(joint_speeds(joints), expected, rtol=1e-9)


def test_wrong_shapes_are_the_callers_fault():
    settings = PROFILES["corrected"].beats
    for joints, means in (((300, 165), 55), ((300, 20, 3), 20), ((300, 55, 3), 54)):
        with pytest.raises(UsageFault, match="expected"):
            motion_beats(np.zeros(joints), np.ones(means), settings)
