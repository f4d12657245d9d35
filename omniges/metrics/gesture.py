"""Metrics of gesture: beats, metrics without a reference, window boundaries, semantic gestures, and the face.

Letters: T frames, J joints, V vertices, S window boundaries, L audio samples, B audio beats, M motion beats of a joint,
E expression coefficients. World coordinates are in metres, with y up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError, UsageFault
from omniges.features.body import Numbers
from omniges.features.gesture import (
    JAW_EYES_COLUMNS,
    JOINT_NAMES,
    POSE_COLUMNS,
    matrix_from_six_d,
    rotvec_from_matrix,
    six_d_from_rotvec,
)
from omniges.features.timebase import FRAME_RATE_HZ, SAMPLE_RATE_HZ
from omniges.formats.arrays import F64, checked
from omniges.formats.semantic import SemanticSpan
from omniges.metrics.clips import ClipValue, checked_pair
from omniges.metrics.profiles import BeatSettings, FaceSettings, PositionSettings, SemanticSettings
from omniges.storage.librosa_import import load_librosa

I64 = npt.NDArray[np.int64]

TOES: Final = (JOINT_NAMES.index("left_foot"), JOINT_NAMES.index("right_foot"))
CONTACT_HEIGHT_M: Final = 0.025
FLOOR_PERCENTILE: Final = 5.0
_SEAM_PERCENTILE: Final = 99.0
_GROUND: Final = [0, 2]  # x and z
_MIN_FACE_FRAMES: Final = 2
_DETOUR_HZ: Final = 22_050  # librosa's default rate, which the tools of 2024 do not override
_MIN_SAMPLES: Final = 2048  # librosa's window


def scored_poses(poses: Numbers, settings: PositionSettings) -> F64:
    """Return a copy of poses in which the rotations that a profile does not score are zero.

    The positions of joints for the metrics are computed from this copy, with a translation of zero.

    Args:
        poses: Axis-angle poses (T, 165) in radians.
        settings: Whether the rotations of the root, and those of jaw and eyes, are set to zero.

    Returns:
        New poses (T, 165) in radians.

    Raises:
        UsageFault: The shape is wrong.
        DataError: There are no frames, or values that are NaN or infinite.
    """
    scored = np.array(checked(poses, "poses", (None, POSE_COLUMNS)))
    if settings.root_rotation == "zero":
        scored[:, :3] = 0.0
    if settings.jaw_eyes == "zero":
        scored[:, JAW_EYES_COLUMNS] = 0.0
    return scored


# --- beats: distance of each audio beat to the nearest motion beat


@dataclass(frozen=True, slots=True)
class BeatScore(ClipValue):
    """Beat consistency of a clip, with the counts of its audio beats and motion beats.

    The weight of the clip in the mean over clips is the number of motion frames that are left after the crop.
    """

    audio_beats: int
    motion_beats: int
    """Number of motion beats of all scored joints. Many beats raise the value, whether or not they match the sound."""


def joint_speeds(joints: Numbers) -> F64:
    """Compute the speeds of joints by central differences, or by one-sided differences in the first and last frame.

    Args:
        joints: Positions (T, J, 3) in metres with at least 2 frames.

    Returns:
        Speeds (T, J) in m/s.

    Raises:
        UsageFault: The shape is wrong.
        DataError: There are fewer than 2 frames, or values that are NaN or infinite.
    """
    positions = checked(joints, "joints", (None, None, 3), at_least=2)
    velocity = np.empty_like(positions)
    velocity[1:-1] = (positions[2:] - positions[:-2]) * (FRAME_RATE_HZ / 2)
    velocity[0] = (positions[1] - positions[0]) * FRAME_RATE_HZ
    velocity[-1] = (positions[-1] - positions[-2]) * FRAME_RATE_HZ
    return np.asarray(np.sqrt(np.square(velocity).sum(axis=-1)))


def mean_joint_speeds(clips: Iterable[Numbers]) -> F64:
    """Compute the mean speed of each joint over all frames of all clips (see `joint_speeds`).

    Args:
        clips: Joint positions (T, J, 3) in metres of each train clip, prepared in the same way as the scored clips.

    Returns:
        Mean speeds (J,) in m/s.

    Raises:
        UsageFault: A shape is wrong, or clips have different numbers of joints.
        DataError: There is no clip, a clip has fewer than 2 frames, or values are NaN or infinite.
    """
    total, frames = None, 0
    for joints in clips:
        speeds = joint_speeds(joints)
        summed = speeds.sum(axis=0)
        if total is not None and total.shape != summed.shape:
            raise UsageFault(
                f"mean speeds: expected the same number of joints in all clips, found {len(total)} and {len(summed)}"
            )
        total = summed if total is None else total + summed
        frames += len(speeds)
    if total is None:
        raise DataError(
            "mean speeds: expected at least one clip of the train split, found none; preprocess again with a "
            "--split-csv"
        )
    return np.asarray(total / frames)


def motion_beats(joints: Numbers, mean_speeds_m_s: Numbers, settings: BeatSettings) -> tuple[I64, ...]:
    """Find the beats of each scored joint: frames in which its speed has a minimum.

    Args:
        joints: Positions (T, J, 3) in metres.
        mean_speeds_m_s: Mean speeds (J,) in m/s of train clips.
        settings: Scored joints, crop and threshold.

    Returns:
        For each scored joint, the frame indices (M,) of its beats, counted from the start of the cropped clip.

    Raises:
        UsageFault: A shape is wrong, or scored joints are missing.
        DataError: No frame is left after the crop, values are NaN or infinite, or the mean speed of a scored joint is
            negative, or is zero although the joint moves in this clip.
    """
    positions = checked(joints, "joints", (None, None, 3), at_least=max(2 * settings.crop_frames + 1, 2))
    if max(settings.joints) >= positions.shape[1]:
        raise UsageFault(f"joints: expected more than {max(settings.joints)} joints, found {positions.shape[1]}")
    means = checked(mean_speeds_m_s, "mean speeds", (positions.shape[1],))
    if settings.motion == "deviations":
        positions = np.abs(positions - positions.mean(axis=0))
    scored = list(settings.joints)
    speeds, means = joint_speeds(positions[:, scored]), means[scored]
    moving = speeds.max(axis=0) > 0
    if (means < 0).any() or (moving & (means == 0)).any():
        joint = scored[int(np.flatnonzero((means < 0) | (moving & (means == 0)))[0])]
        raise DataError(
            f"mean speeds: expected a positive speed for joint {joint}, which moves, found none; use the speeds of "
            "these clips"
        )
    relative = np.divide(speeds, means, out=np.zeros_like(speeds), where=means > 0)
    return tuple(_beats_of(relative[:, k], settings) for k in range(len(scored)))


def _beats_of(speed: F64, settings: BeatSettings) -> I64:
    """Return the frame indices (M,) of one joint's beats, counted from the start of the cropped clip.

    A beat is a strict minimum of `speed` outside the crop, if the speed in a test frame is above the threshold.
    `settings.threshold_at` selects the test frame: the frame of the minimum or an earlier frame. `speed` (T,) is a
    multiple of the joint's mean speed, and includes the crop at both ends.
    """
    crop = settings.crop_frames
    inside = speed[crop : len(speed) - crop]
    lowest = np.ones(len(inside), dtype=bool)
    # Padding repeats the first and the last value. A value is not below itself, so the ends are never strict minima.
    padded = np.pad(inside, settings.order_frames, mode="edge")
    for shift in range(1, settings.order_frames + 1):
        for offset in (settings.order_frames - shift, settings.order_frames + shift):
            lowest &= inside < padded[offset : offset + len(inside)]
    minima = np.flatnonzero(lowest)
    tested = minima if settings.threshold_at == "shifted" else minima + crop
    return minima[speed[tested] > settings.threshold]


def audio_beats(samples: Numbers, frames: int, settings: BeatSettings) -> F64:
    """Find the audio beats of a clip: the onsets of its audio.

    Args:
        samples: Mono audio (L,) at 16 kHz.
        frames: Number of motion frames T of the clip.
        settings: Crop, resampling and hop.

    Returns:
        Onset times (B,) in seconds from the start of the cropped clip.

    Raises:
        DataError: The audio is too short, contains NaN or infinite values, or has no onset (silence).
    """
    audio = checked(samples, "audio", (None,)).astype(np.float32)
    if settings.audio == "resampled-twice" and len(audio):
        librosa = load_librosa()
        there = librosa.resample(audio, orig_sr=SAMPLE_RATE_HZ, target_sr=_DETOUR_HZ)
        audio = librosa.resample(there, orig_sr=_DETOUR_HZ, target_sr=SAMPLE_RATE_HZ)
    start = int(settings.crop_frames * SAMPLE_RATE_HZ / FRAME_RATE_HZ)
    if settings.audio_end == "uncut-length":
        cropped = audio[: int(SAMPLE_RATE_HZ / FRAME_RATE_HZ * frames)][start : max(len(audio) - start, 0)]
    else:
        end = (frames - settings.crop_frames) / FRAME_RATE_HZ * SAMPLE_RATE_HZ
        cropped = audio[start : max(round(end) if settings.audio_end == "rounded" else int(end), 0)]
    if len(cropped) < _MIN_SAMPLES:
        raise DataError(
            f"audio: expected at least {_MIN_SAMPLES} samples after the crop, found {len(cropped)}; leave this clip out"
        )
    detect = load_librosa().onset.onset_detect
    times = detect(y=cropped, sr=SAMPLE_RATE_HZ, hop_length=settings.hop_samples, units="time")
    if len(times) == 0:
        raise DataError(f"audio: expected speech, found no onset in {len(cropped)} samples; leave this clip out")
    return np.asarray(times, dtype=np.float64)


def min_frames(settings: BeatSettings) -> int:
    """Return the smallest number of motion frames for which audio and motion beats can be computed."""
    return 2 * settings.crop_frames + math.ceil(_MIN_SAMPLES * FRAME_RATE_HZ / SAMPLE_RATE_HZ)


def beat_score(audio_times_s: Numbers, motion_frames: Sequence[I64], frames: int, settings: BeatSettings) -> BeatScore:
    """Compute the beat consistency of audio and motion, 0 to 1 (Li et al. 2021, Liu et al. 2022).

    Args:
        audio_times_s: Times (B,) of audio beats in seconds from the start of the cropped clip.
        motion_frames: For each joint, frame indices (M,) of motion beats, counted from the start of the cropped clip.
        frames: Number of motion frames T before the crop.
        settings: Crop and width σ of the kernel.

    Returns:
        The mean of exp(−d² / 2σ²) over joints and audio beats. d is the time between an audio beat and the joint's
        nearest motion beat. A joint without beats counts as 0.

    Raises:
        DataError: There are no audio beats, or no frame is left after the crop.
    """
    times = checked(audio_times_s, "audio beats", (None,))
    weight = frames - 2 * settings.crop_frames
    if weight < 1:
        raise DataError(
            f"clip: expected more than {2 * settings.crop_frames} frames, found {frames}; leave this clip out"
        )
    values = np.zeros(len(motion_frames))
    for k, beats in enumerate(motion_frames):
        if len(beats):
            others = np.sort(np.asarray(beats)) / FRAME_RATE_HZ
            after = np.searchsorted(others, times).clip(1, max(len(others) - 1, 1))
            before, behind = others[after - 1], others[np.minimum(after, len(others) - 1)]
            distance = np.minimum(np.abs(times - before), np.abs(times - behind))  # to the nearest motion beat
            values[k] = np.exp(-(distance**2) / (2 * settings.sigma_s**2)).mean()
    return BeatScore(float(values.mean()), float(weight), len(times), sum(len(beats) for beats in motion_frames))


# --- motion without a reference


@dataclass(frozen=True, slots=True)
class DriftScore:
    """Final and largest horizontal distance of the root from its first position, in metres."""

    end_m: float
    farthest_m: float


@dataclass(frozen=True, slots=True)
class SkateScore(ClipValue):
    """Foot skate of a clip in m/s. The weight is the number of toe frames near the floor.

    A toe frame is one toe in one frame.
    """

    toe_frames: int
    """Number of all toe frames, near the floor or not: 2 (T − 1) for two toes in T − 1 frames."""


def root_drift(root: Numbers) -> DriftScore:
    """Compute the horizontal distance of the root from its position in the first frame.

    Args:
        root: Positions (T, 3) in metres.

    Returns:
        The distance in the last frame, and the largest distance.

    Raises:
        UsageFault: The shape is wrong.
        DataError: There are no frames, or values that are NaN or infinite.
    """
    positions = checked(root, "root", (None, 3))
    away = np.linalg.norm((positions - positions[0])[:, _GROUND], axis=1)
    return DriftScore(float(away[-1]), float(away.max()))


def foot_skate(joints: Numbers) -> SkateScore:
    """Compute the mean sliding speed of the toes near the floor (Zhang et al. 2018).

    The sliding speed is v (2 − 2^(h/H)). v is the horizontal speed of a toe, h is its height above the floor, and H is
    0.025 m. A toe frame is one toe in one frame. Only toe frames with h < H count. The floor of each toe is the 5th
    percentile of its vertical positions. If no toe frame counts, value and weight are 0.

    Args:
        joints: Positions (T, 55, 3) in metres, with translation.

    Returns:
        The mean speed in m/s, with the number of toe frames that count as its weight.

    Raises:
        UsageFault: The shape is wrong.
        DataError: There are fewer than 2 frames, or values that are NaN or infinite.
    """
    positions = checked(joints, "joints", (None, len(JOINT_NAMES), 3), at_least=2)[:, TOES]
    floor = np.percentile(positions[..., 1], FLOOR_PERCENTILE, axis=0)
    height = np.maximum(positions[:-1, :, 1] - floor, 0.0)
    speed = np.linalg.norm(np.diff(positions, axis=0)[..., _GROUND], axis=-1) * FRAME_RATE_HZ
    contact = height < CONTACT_HEIGHT_M
    count = int(contact.sum())
    sliding = speed * (2 - 2 ** (height / CONTACT_HEIGHT_M))
    value = float(sliding[contact].sum() / count) if count else 0.0
    return SkateScore(value, float(count), contact.size)


def jerk(joints: Numbers) -> ClipValue:
    """Compute the mean jerk of the joints: the length of the third difference of positions, times 30³.

    Args:
        joints: Positions (T, J, 3) in metres with at least 4 frames.

    Returns:
        The jerk in m/s³, with weight T − 3.

    Raises:
        UsageFault: The shape is wrong.
        DataError: There are fewer than 4 frames, or values that are NaN or infinite.
    """
    positions = checked(joints, "joints", (None, None, 3), at_least=4)
    if positions.shape[1] == 0:
        raise UsageFault("joints: expected (frames, joints, 3), found no joints")
    third = np.diff(positions, n=3, axis=0) * float(FRAME_RATE_HZ**3)
    return ClipValue(float(np.linalg.norm(third, axis=-1).mean()), float(len(third)))


def l1_diversity(joints: Numbers) -> ClipValue:
    """Compute the L1 diversity: absolute deviations of joint coordinates from their means over the clip.

    The deviations are summed over joints and coordinates, and averaged over frames. The definition is the same in all
    profiles.

    Args:
        joints: Positions (T, J, 3) in metres; one frame gives 0.

    Returns:
        The diversity in metres, with weight T.

    Raises:
        UsageFault: The shape is wrong.
        DataError: There are no frames, or values that are NaN or infinite.
    """
    positions = checked(joints, "joints", (None, None, 3))
    deviation = np.abs(positions - positions.mean(axis=0)).sum() / len(positions)
    return ClipValue(float(deviation), float(len(positions)))


# --- window boundaries, compared with the rest of a clip


@dataclass(frozen=True, slots=True)
class SeamComparison:
    """Comparison of one quantity, such as velocity, at window boundaries and in all other frames."""

    elsewhere: float
    """99th percentile of the values in all other frames."""
    at_seams: F64
    above: float
    """Share of the values at boundaries that are above `elsewhere`; about 0.01 if boundaries are not visible."""
    worst_ratio: float
    """Largest value at a boundary, divided by `elsewhere`."""


@dataclass(frozen=True, slots=True)
class SeamScore:
    """Comparisons of velocity in m/s and acceleration in m/s² at S window boundaries and in all other frames.

    A boundary has one value of velocity and two values of acceleration.
    """

    velocity: SeamComparison
    acceleration: SeamComparison


def seam_score(joints: Numbers, seams: Sequence[int]) -> SeamScore:
    """Compare the motion at window boundaries with the motion in all other frames of a clip.

    Velocity and acceleration are root mean squares over joints.

    Args:
        joints: Positions (T, J, 3) in metres.
        seams: Window boundaries, from 2 to T − 2. Boundary s lies between frames s − 1 and s.

    Returns:
        The comparisons of velocity and acceleration.

    Raises:
        UsageFault: There are no boundaries, some are out of range, or all frames are boundaries.
        DataError: Values are NaN or infinite, or there is no motion away from the boundaries.
    """
    positions = checked(joints, "joints", (None, None, 3))
    frames, joint_count, _ = positions.shape
    places = np.unique(np.asarray(seams, dtype=np.int64))
    if joint_count == 0:
        raise UsageFault("seams: expected (frames, joints, 3), found no joints")
    if len(places) == 0 or places[0] < 2 or places[-1] > frames - 2:
        raise UsageFault(
            f"seams: expected frames from 2 to {frames - 2}, found {places.tolist()[:5]} in {frames} frames"
        )
    velocity = _lengths(np.diff(positions, axis=0)) * FRAME_RATE_HZ  # entry t − 1 belongs to frame t
    acceleration = _lengths(np.diff(positions, n=2, axis=0)) * FRAME_RATE_HZ**2  # entry t − 1 belongs to frame t
    return SeamScore(
        _compare(velocity, places - 1, "velocity"),
        _compare(acceleration, np.unique(np.concatenate([places - 2, places - 1])), "acceleration"),
    )


def _lengths(vectors: F64) -> F64:
    """Return the root mean square (T,) over joints of the lengths of vectors (T, J, 3)."""
    return np.asarray(np.sqrt(np.square(vectors).sum(axis=-1).mean(axis=-1)))


def _compare(values: F64, at: npt.NDArray[np.int64], what: str) -> SeamComparison:
    elsewhere = np.delete(values, at)
    if len(elsewhere) == 0:
        raise UsageFault(f"seams: expected frames away from window boundaries for the {what}, found none")
    limit = float(np.percentile(elsewhere, _SEAM_PERCENTILE))
    if limit == 0:
        raise DataError(
            f"seams: expected motion away from window boundaries, found a {what} of zero; leave this clip out"
        )
    found = values[at]
    return SeamComparison(limit, found, float((found > limit).mean()), float(found.max() / limit))


# --- semantic-relevant gesture recall


@dataclass(frozen=True, slots=True)
class RecallScore(ClipValue):
    """Semantic recall of a clip. In the published profiles, it can exceed 1."""

    joints: int
    annotated: bool
    """Whether the recording has a semantic annotation. Without annotation, all frames have the same weight."""


def semantic_scores(spans: Sequence[SemanticSpan], frames: int, settings: SemanticSettings) -> F64:
    """Return the semantic score of each frame.

    Frame i is at i/30 s. Its score is the score of the first span in file order that contains this time. If no span
    contains the time, the score is 0.

    Args:
        spans: Annotated spans in file order, in seconds.
        frames: Number of frames T.
        settings: Whether a span contains its end.

    Returns:
        Scores (T,).
    """
    scores = np.zeros(frames)
    seconds = np.arange(frames) / FRAME_RATE_HZ
    for span in reversed(spans):
        before_end = seconds <= span.end if settings.span_ends == "closed" else seconds < span.end
        scores[(span.start <= seconds) & before_end] = span.score
    return scores


def semantic_recall(
    generated: Numbers, recorded: Numbers, scores: Numbers | None, settings: SemanticSettings
) -> RecallScore:
    """Compute the share of joints that are near their recorded positions. Frames are weighted by semantic scores.

    Args:
        generated: Positions (T, J, 3) in metres.
        recorded: Positions (T, J, 3) in metres.
        scores: Semantic scores (T,) from 0 to 1; None: the recording has no annotation.
        settings: Definition of the position error, its threshold, and how scores become weights of frames.

    Returns:
        The recall of the clip.

    Raises:
        UsageFault: Shapes differ, or the profile needs `scores`, but they were not passed.
        DataError: There are no frames, values are NaN or infinite, scores are below 0 or above 1, or the
            sum of the scores is 0 in a profile that divides by this sum.
    """
    found, expected = checked_pair(generated, recorded, "joints", (None, None, 3))
    frames, joints, _ = found.shape
    if joints == 0:
        raise UsageFault("joints: expected (frames, joints, 3), found no joints")
    difference = found - expected
    lengths = {"sum": np.abs(difference).sum(axis=-1), "euclidean": np.sqrt(np.square(difference).sum(axis=-1))}
    hits = (lengths[settings.error] < settings.threshold_m).mean(axis=1)
    if scores is None:
        if settings.without_scores == "refused":
            raise UsageFault(
                "semantic recall: expected a semantic annotation of the clip, which this profile requires, found none; "
                "leave this clip out"
            )
        return RecallScore(float(hits.mean()), float(frames), joints, annotated=False)
    weights = checked(scores, "semantic scores", (frames,))
    if weights.min() < 0 or weights.max() > 1:
        raise DataError(f"semantic scores: expected scores from 0 to 1, found {weights.min()} to {weights.max()}")
    if settings.weights == "by-scale":
        return RecallScore(float((hits * weights).mean() / settings.scale), float(frames), joints, annotated=True)
    total = float(weights.sum())
    if total == 0:
        raise DataError("semantic recall: expected a gesture with a score above 0, found none; leave this clip out")
    return RecallScore(float((hits * weights).sum() / total), total, joints, annotated=True)


# --- face


@dataclass(frozen=True, slots=True)
class FaceScore(ClipValue):
    """Value of a face metric for a clip. Values for different numbers of vertices are not comparable."""

    vertices: int


class FaceSums:
    """Accumulator for face MSE and landmark velocity difference of a clip.

    The clip is added in blocks of frames, so that memory use is constant.
    """

    def __init__(self) -> None:
        self._squares = self._positions = self._steps = 0.0
        self._frames = self._vertices = 0
        self._last: F64 | None = None  # error of the last frame

    def add(self, generated: Numbers, recorded: Numbers) -> None:
        """Add the next frames.

        Args:
            generated: Vertices (T, V, 3) in metres.
            recorded: Vertices (T, V, 3) in metres.

        Raises:
            UsageFault: The shapes are wrong or differ.
            DataError: There are no frames, or values that are NaN or infinite.
        """
        found, expected = checked_pair(generated, recorded, "vertices", (None, None, 3))
        if self._last is not None and found.shape[1] != self._vertices:
            raise UsageFault(
                f"vertices: expected {self._vertices} vertices as in earlier clips, found {found.shape[1]}"
            )
        self._vertices = found.shape[1]
        self._frames += len(found)
        error = found - expected
        self._squares += float(np.square(error).sum())
        if self._last is not None:
            self._positions += float(np.abs(error[0]).sum())
            self._steps += float(np.abs(error[0] - self._last).sum())
        self._positions += float(np.abs(error[1:]).sum())
        self._steps += float(np.abs(np.diff(error, axis=0)).sum())
        self._last = error[-1].copy()

    def mse(self) -> FaceScore:
        """Return the mean squared error in m² over frames, vertices and coordinates, with weight T.

        The definition is the same in all profiles.
        """
        return FaceScore(self._squares / (self._frames * self._vertices * 3), float(self._frames), self._vertices)

    def velocity(self, settings: FaceSettings) -> FaceScore:
        """Return the landmark velocity difference as a profile defines it, in metres per frame.

        Args:
            settings: Which definition to use. With the definition of the profile ``emage-2024``, the value is a
                position error in metres.

        Returns:
            The value of the clip.

        Raises:
            DataError: There are fewer than 2 frames.
        """
        frames = self._frames
        if frames < _MIN_FACE_FRAMES:
            raise DataError(
                f"vertices: expected at least {_MIN_FACE_FRAMES} frames, found {frames}; leave this clip out"
            )
        total = self._positions if settings.lvd == "position-error" else self._steps
        divisor = frames if settings.lvd == "velocity-by-frames" else frames - 1
        weight = frames - 1 if settings.lvd == "velocity-by-steps" else frames
        return FaceScore(total / (divisor * self._vertices * 3), float(weight), self._vertices)


def jaw_rotation_error(generated: Numbers, recorded: Numbers) -> ClipValue:
    """Compute the mean angle between generated and recorded rotations of the jaw.

    Args:
        generated: Axis-angle poses (T, 165) in radians.
        recorded: Axis-angle poses (T, 165) in radians.

    Returns:
        The mean angle in radians, with weight T.

    Raises:
        UsageFault: The shapes are wrong or differ.
        DataError: There are no frames, or values that are NaN or infinite.
    """
    found, expected = (_jaw(one) for one in checked_pair(generated, recorded, "poses", (None, POSE_COLUMNS)))
    return ClipValue(float(_angles_between(found, expected).mean()), float(len(found)))


def jaw_speeds(poses: Numbers) -> F64:
    """Compute the speed of the jaw: the angles between successive rotations.

    Args:
        poses: Axis-angle poses (T, 165) in radians, T ≥ 2.

    Returns:
        Speeds (T − 1,) in radians per frame.

    Raises:
        UsageFault: The shape is wrong.
        DataError: There are fewer than 2 frames, or values that are NaN or infinite.
    """
    jaw = _jaw(checked(poses, "poses", (None, POSE_COLUMNS), at_least=2))
    return _angles_between(jaw[1:], jaw[:-1])


def expression_speeds(expressions: Numbers) -> F64:
    """Compute the speed of the expressions: Euclidean lengths of the differences between successive frames.

    Args:
        expressions: Coefficients (T, E), T ≥ 2.

    Returns:
        Speeds (T − 1,) per frame.

    Raises:
        UsageFault: The shape is wrong.
        DataError: There are fewer than 2 frames, or values that are NaN or infinite.
    """
    steps = np.diff(checked(expressions, "expressions", (None, None), at_least=2), axis=0)
    return np.asarray(np.sqrt(np.square(steps).sum(axis=1)))


def speed_correlation(generated: Numbers, recorded: Numbers) -> ClipValue:
    """Compute Pearson's correlation between the generated and the recorded speeds of a clip.

    Args:
        generated: Speeds (T − 1,).
        recorded: Speeds (T − 1,).

    Returns:
        The correlation, from −1 to 1, with weight T − 1.

    Raises:
        UsageFault: The lengths differ.
        DataError: There are fewer than 2 speeds, or speeds that are NaN, infinite or constant.
    """
    pair = checked_pair(generated, recorded, "speeds", (None,), at_least=2)
    for speeds, what in zip(pair, ("generated", "recorded"), strict=True):
        if speeds.min() == speeds.max():
            raise DataError(f"{what} speeds: expected motion, found {speeds[0]:g} in all frames; leave this clip out")
    found, expected = (speeds - speeds.mean() for speeds in pair)
    lengths = math.sqrt(float(np.square(found).sum()) * float(np.square(expected).sum()))
    return ClipValue(float((found * expected).sum()) / lengths, float(len(found)))


def _jaw(poses: F64) -> F64:
    """Return rotation matrices (T, 3, 3) of the jaw."""
    return matrix_from_six_d(six_d_from_rotvec(poses[:, JAW_EYES_COLUMNS][:, :3]))


def _angles_between(first: F64, second: F64) -> F64:
    """Return the angles (T,) between two series of rotation matrices (T, 3, 3), in radians."""
    between = np.swapaxes(first, -1, -2) @ second
    return np.asarray(np.linalg.norm(rotvec_from_matrix(between), axis=-1))
