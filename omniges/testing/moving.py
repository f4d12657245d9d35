"""Motion of a synthetic speaker: idle motion, and the motion of spoken words.

The bytes are equal on any CPU: random numbers are uniform, curves are polynomials (IEEE additions and
multiplications), and the sine table is rounded. T is a number of frames of 1/30 s; angles are in radians, lengths in
metres.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from omniges.features.gesture import BETAS, EXPRESSIONS, JOINT_NAMES, POSE_COLUMNS
from omniges.features.timebase import FRAME_RATE_HZ, SAMPLE_RATE_HZ
from omniges.testing.signatures import SPEAKER, WordSignature, columns, generator

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_MOTION_RAMP_S: Final = 0.12  # less than half of the shortest word of chords, so that the pose is complete at mid-word
_BEAT_S: Final = 0.13
_BEAT_RAD: Final = 0.2
_LIFT_RAD: Final = 0.12
_EXPRESSION_NOISE: Final = 0.17
"""Largest magnitude of expression noise.

With this noise, differences of successive frames have 0.4 times the standard deviation of the expressions, as in BEAT2.
"""


@dataclass(frozen=True, slots=True)
class Phone:
    """A phone of a word, with its times in seconds."""

    label: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """A spoken word of a clip: index in the vocabulary, times in seconds, phones, gain, pitch, and beat times."""

    index: int
    start_s: float
    end_s: float
    phones: tuple[Phone, ...]
    gain: float = 1.0
    """Factor on the size of the word's pose and on its loudness."""
    pitch: float = 0.0
    """From −1 (low) to 1 (high)."""
    stresses_s: tuple[float, ...] = ()
    """Times of beat gestures in seconds."""


@dataclass(frozen=True, slots=True)
class Speaker:
    """Traits of a speaker. They do not change the meaning of a word."""

    identity: int  # 1, 2, …
    pitch: float  # factor on every tone
    idle_scale: float  # factor on idle motion
    posture: F64  # (165,) rad
    face: F64  # (100,) expression coefficients of the resting face
    height: float  # y of trans in metres
    betas: F32  # (300,) shape coefficients

    @property
    def folder(self) -> str:
        """Name of the speaker's folder, and prefix of the stems."""
        return f"{self.identity}_synthetic{chr(ord('a') + self.identity - 1)}"


@dataclass(frozen=True, slots=True)
class Mood:
    """An emotion of BEAT2: its first recording index in file names, and an offset that is added to the idle pose."""

    start: int  # first recording index of this emotion in file names
    pose: F64  # (165,) rad, added to the speaker's posture


# One period of a sine in SAMPLE_RATE_HZ steps, from which tones of a whole number of hertz are looked up. Values are
# rounded, because the C library's sine differs in its last bit between CPUs.
SINE: Final = np.round(np.sin(2 * np.pi * np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ), 9)

_IDLE_BY_PART: Final = {
    "pelvis": 0.04,
    "hip": 0.05,
    "knee": 0.05,
    "ankle": 0.05,
    "foot": 0.03,
    "spine": 0.06,
    "neck": 0.12,
    "head": 0.12,
    "collar": 0.05,
    "shoulder": 0.16,
    "elbow": 0.16,
    "wrist": 0.14,
    "jaw": 0.03,
    "eye": 0.08,
}
_PARTS: Final = [name.removeprefix("left_").removeprefix("right_").rstrip("123") for name in JOINT_NAMES]
_IDLE_AMPLITUDES: Final = np.repeat([_IDLE_BY_PART.get(part, 0.07) for part in _PARTS], 3)  # 0.07: fingers
"""Amplitude of idle motion in radians for each of the 165 pose columns."""


def speaker_traits(seed: int, number: int) -> Speaker:
    """Return the traits of a speaker of a corpus.

    Args:
        seed: Seed of the corpus.
        number: Index of the speaker, from 0.

    Returns:
        Pitch, posture, resting face, shape and the other traits of this speaker.
    """
    rng = generator(seed, SPEAKER, number)
    posture = _resting_pose()
    moved = np.flatnonzero(posture)
    posture[moved] += rng.uniform(-0.05, 0.05, len(moved))
    return Speaker(
        identity=number + 1,
        pitch=rng.uniform(0.97, 1.03),
        idle_scale=rng.uniform(0.75, 1.25),
        posture=posture,
        face=rng.uniform(-0.3, 0.3, EXPRESSIONS),
        height=rng.uniform(1.28, 1.33),
        betas=(rng.choice((-1.0, 1.0), BETAS) * rng.uniform(0.01, 1.6, BETAS)).astype(np.float32),
    )


_STARTS: Final = (1, 65, 73, 81, 87, 95, 103, 111)
"""First recording index of BEAT2's emotions: neutral, happiness, anger, sadness, contempt, surprise, fear, disgust."""
_MOOD_RAD: Final = 0.6


def moods_of(emotions: int) -> list[Mood]:
    """Return the first `emotions` emotions of BEAT2.

    In the idle pose, each of the three bits of an emotion's number bends one region of the body: the left arm, the
    right arm, or the trunk and head.
    """
    moods = []
    for number, start in enumerate(_STARTS[:emotions]):
        pose = np.zeros(POSE_COLUMNS)
        left, right, head = (columns(name)[0] for name in ("left_shoulder", "right_shoulder", "head"))
        trunk = columns("spine1", "spine2", "spine3")
        for bit, bent, radians in ((1, [left + 2], _MOOD_RAD), (2, [right + 2], -_MOOD_RAD), (4, trunk, 0.2)):
            pose[bent] = radians * bool(number & bit)
        pose[head] = -_MOOD_RAD / 2 * bool(number & 4)
        moods.append(Mood(start, pose))
    return moods


def _resting_pose() -> F64:
    """Return a standing pose (165,) in radians, with lowered arms and bent elbows."""
    pose = np.zeros(POSE_COLUMNS)
    for side, sign in (("left", 1.0), ("right", -1.0)):
        for name, vector in (
            ("hip", (-0.05, 0.0, 0.05 * sign)),
            ("knee", (0.10, 0.0, 0.0)),
            ("ankle", (-0.05, 0.0, 0.0)),
            ("shoulder", (0.15, -0.30 * sign, -1.0 * sign)),
            ("elbow", (0.0, -0.95 * sign, 0.0)),
            ("thumb1", (0.0, 0.15 * sign, 0.0)),
        ):
            (column,) = columns(f"{side}_{name}")
            pose[column : column + 3] = vector
        for finger in ("index", "middle", "pinky", "ring"):
            for column in columns(*(f"{side}_{finger}{k}" for k in (1, 2, 3))):
                pose[column + 2] = -0.36 * sign
    return pose


def _drift(rng: np.random.Generator, frames: int, channels: int, spacing: int) -> F64:
    """Return smooth noise (frames, channels) in (−1, 1): cubic B-splines with random knots every `spacing` frames."""
    segments = -(-frames // spacing)
    knots = rng.uniform(-1.0, 1.0, (segments + 3, 1, channels))
    t = (np.arange(spacing) / spacing)[:, None]
    weights = (
        (1 - t) * (1 - t) * (1 - t) / 6,
        (t * t * (3 * t - 6) + 4) / 6,
        (((3 - 3 * t) * t + 3) * t + 1) / 6,
        t * t * t / 6,
    )
    curve = weights[0] * knots[:segments]
    for k, weight in enumerate(weights[1:], 1):
        curve += weight * knots[k : k + segments]
    return curve.reshape(-1, channels)[:frames]


def _smooth_step(x: F64) -> F64:
    """Return 0 for x < 0, 1 for x > 1, and between them a quintic polynomial with two continuous derivatives."""
    x = np.clip(x, 0.0, 1.0)
    return np.asarray(x * x * x * (x * (6 * x - 15) + 10))


def motion_of(
    rng: np.random.Generator,
    frames: int,
    words: Sequence[SpokenWord],
    speaker: Speaker,
    vocabulary: Sequence[WordSignature],
    mood: Mood,
) -> tuple[F64, F64, F64]:
    """Return idle motion plus the motion of the words.

    Args:
        rng: Random number generator of the clip.
        frames: Number of frames T.
        words: The spoken words in order of time.
        speaker: Traits of the speaker.
        vocabulary: Signatures of the words, by word index.
        mood: Emotion of the clip, which changes the idle pose.

    Returns:
        Poses (T, 165) in radians, expression coefficients (T, 100), and translations (T, 3) in metres.
    """
    poses = 1.2 * _drift(rng, frames, POSE_COLUMNS, 27) + 0.8 * _drift(rng, frames, POSE_COLUMNS, 10)
    poses *= speaker.idle_scale * _IDLE_AMPLITUDES
    poses += speaker.posture + mood.pose
    expressions = 0.5 * _drift(rng, frames, EXPRESSIONS, 18) + speaker.face
    slow = _drift(rng, frames, 3, 75)
    poses[:, 1] += 0.4 * slow[:, 1]  # turning on the spot
    trans = np.stack([0.2 * slow[:, 0], np.full(frames, speaker.height), 0.2 * slow[:, 2]], axis=1)
    trans[:, [0, 2]] += rng.uniform(-0.3, 0.3, 2)
    breath = SINE[(rng.integers(SAMPLE_RATE_HZ) + 133 * np.arange(frames)) % SAMPLE_RATE_HZ]  # every four seconds
    trans[:, 1] += 0.004 * breath
    poses[:, columns("spine3")[0]] += 0.02 * breath
    jaw, head = columns("jaw", "head")
    elbows = [column + 1 for column in columns("left_elbow", "right_elbow")]
    for word in words:
        span, rise, fall = _span(word.start_s, word.end_s, min(_MOTION_RAMP_S, (word.end_s - word.start_s) / 2))
        envelope = word.gain * (_smooth_step(rise) * _smooth_step(fall))[:, None]
        poses[span] += envelope * vocabulary[word.index].rotations
        poses[span, jaw] += 0.05 * envelope[:, 0]
        expressions[span] += envelope * vocabulary[word.index].expression
        if word.pitch:
            poses[span, head] -= _LIFT_RAD * word.pitch * envelope[:, 0]
        for moment in word.stresses_s:
            span, rise, fall = _span(moment - _BEAT_S, moment + _BEAT_S, _BEAT_S)
            beat = _BEAT_RAD * word.gain * _smooth_step(rise) * _smooth_step(fall)
            poses[span, elbows] += np.outer(beat, (1.0, -1.0))
    return poses, expressions, trans


def _span(start_s: float, end_s: float, ramp_s: float) -> tuple[slice, F64, F64]:
    """Return the slice of the frames in an interval, and two times for each of these frames.

    The first is the time since the start of the interval, the second the time until its end. Both are divided by
    `ramp_s`, so they have no unit.
    """
    span = slice(math.ceil(start_s * FRAME_RATE_HZ), math.floor(end_s * FRAME_RATE_HZ) + 1)
    times = np.arange(span.start, span.stop) / FRAME_RATE_HZ
    return span, (times - start_s) / ramp_s, (end_s - times) / ramp_s


def expression_noise(rng: np.random.Generator, frames: int) -> F64:
    """Return uniform random noise for expressions, drawn independently for each frame. Recorded faces have such noise.

    Args:
        rng: Generator of the noise.
        frames: Number of frames T.

    Returns:
        Uniform random numbers (T, 100), to add to expression coefficients.
    """
    return rng.uniform(-_EXPRESSION_NOISE, _EXPRESSION_NOISE, (frames, EXPRESSIONS))
