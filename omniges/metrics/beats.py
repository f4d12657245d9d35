"""Beat consistency: how near the nearest beat of motion is to each beat of the sound.

Letters: T frames, J joints. Positions are metres, speeds are in units of a joint's mean speed.
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
from omniges.features.timebase import FRAME_RATE_HZ, SAMPLE_RATE_HZ
from omniges.formats.arrays import F64, checked
from omniges.metrics.clips import ClipValue
from omniges.metrics.profiles import BeatSettings
from omniges.storage.librosa_import import load_librosa

I64 = npt.NDArray[np.int64]

_DETOUR_HZ: Final = 22_050  # librosa's default rate, which the tools of 2024 forget to override
_LEAST_SAMPLES: Final = 2048  # librosa's window


@dataclass(frozen=True, slots=True)
class BeatScore(ClipValue):
    """A clip's beat consistency, weight T − 2 crop, and how many beats there were to be near to."""

    audio_beats: int
    motion_beats: int
    """Of all scored joints together. Many of them raise the value whether or not they belong to the sound."""


def joint_speeds(joints: Numbers) -> F64:
    """Speeds (T, J) m/s of joints (T, J, 3) m: central differences, one-sided at both ends.

    Raises UsageFault for another shape, DataError for fewer than 2 or non-finite frames.
    """
    positions = checked(joints, "joints", (None, None, 3), at_least=2)
    velocity = np.empty_like(positions)
    velocity[1:-1] = (positions[2:] - positions[:-2]) * (FRAME_RATE_HZ / 2)
    velocity[0] = (positions[1] - positions[0]) * FRAME_RATE_HZ
    velocity[-1] = (positions[-1] - positions[-2]) * FRAME_RATE_HZ
    return np.asarray(np.sqrt(np.square(velocity).sum(axis=-1)))


def mean_joint_speeds(clips: Iterable[Numbers]) -> F64:
    """Mean over all frames of `joint_speeds`: clips of joints (T, J, 3) m to (J,) m/s.

    Of the same kind of positions as are scored, and of train clips. Raises DataError where there is no clip.
    """
    total, frames = None, 0
    for joints in clips:
        speeds = joint_speeds(joints)
        summed = speeds.sum(axis=0)
        if total is not None and total.shape != summed.shape:
            raise UsageFault(
                f"mean speeds: found clips of {len(total)} and of {len(summed)} joints; expected one number"
            )
        total = summed if total is None else total + summed
        frames += len(speeds)
    if total is None:
        raise DataError("mean speeds: found no clips; expected at least one of the train split")
    return np.asarray(total / frames)


def motion_beats(joints: Numbers, mean_speeds_m_s: Numbers, settings: BeatSettings) -> tuple[I64, ...]:
    """Beats of each scored joint, in frames from the start of the cropped clip: joints (T, J, 3) m, means (J,) m/s.

    Raises DataError for a clip that the crop leaves nothing of, non-finite values, and a mean speed of zero for a
    joint that moves.
    """
    positions = checked(joints, "joints", (None, None, 3), at_least=max(2 * settings.crop_frames + 1, 2))
    if max(settings.joints) >= positions.shape[1]:
        raise UsageFault(f"joints: found {positions.shape[1]}; expected more than {max(settings.joints)}")
    means = checked(mean_speeds_m_s, "mean speeds", (positions.shape[1],))
    if settings.motion == "deviations":
        positions = np.abs(positions - positions.mean(axis=0))
    scored = list(settings.joints)
    speeds, means = joint_speeds(positions[:, scored]), means[scored]
    moving = speeds.max(axis=0) > 0
    if (means < 0).any() or (moving & (means == 0)).any():
        joint = scored[int(np.flatnonzero((means < 0) | (moving & (means == 0)))[0])]
        raise DataError(
            f"mean speeds: found no positive one for joint {joint}, which moves; expected that of train clips"
        )
    relative = np.divide(speeds, means, out=np.zeros_like(speeds), where=means > 0)
    return tuple(_beats_of(relative[:, k], settings) for k in range(len(scored)))


def _beats_of(speed: F64, settings: BeatSettings) -> I64:
    """Strict minima (M,) of one joint's speed (T,) inside the crop that are fast enough."""
    crop = settings.crop_frames
    inside = speed[crop : len(speed) - crop]
    lowest = np.ones(len(inside), dtype=bool)
    # Beyond the ends the outermost value repeats; a strict comparison with itself fails, so ends are no minima.
    padded = np.pad(inside, settings.order_frames, mode="edge")
    for shift in range(1, settings.order_frames + 1):
        for offset in (settings.order_frames - shift, settings.order_frames + shift):
            lowest &= inside < padded[offset : offset + len(inside)]
    minima = np.flatnonzero(lowest)
    tested = minima if settings.threshold_at == "shifted" else minima + crop
    return minima[speed[tested] > settings.threshold]


def audio_beats(samples: Numbers, frames: int, settings: BeatSettings) -> F64:
    """Onset times (B,) in seconds from the start of the crop, of 16 kHz mono audio (L,) that goes with T frames.

    Raises DataError for audio that is too short, not finite or without any onset, such as silence.
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
    if len(cropped) < _LEAST_SAMPLES:
        raise DataError(
            f"audio: found {len(cropped)} samples after the crop; expected {_LEAST_SAMPLES}: leave this clip out"
        )
    detect = load_librosa().onset.onset_detect
    times = detect(y=cropped, sr=SAMPLE_RATE_HZ, hop_length=settings.hop_samples, units="time")
    if len(times) == 0:
        raise DataError(f"audio: found no onset in {len(cropped)} samples; expected speech: leave this clip out")
    return np.asarray(times, dtype=np.float64)


def least_frames(settings: BeatSettings) -> int:
    """Motion frames of the shortest clip that can have beats of audio and motion."""
    return 2 * settings.crop_frames + math.ceil(_LEAST_SAMPLES * FRAME_RATE_HZ / SAMPLE_RATE_HZ)


def beat_score(audio_times_s: Numbers, motion_frames: Sequence[I64], frames: int, settings: BeatSettings) -> BeatScore:
    """Return the beat consistency, 0 to 1, of audio beats (B,) in seconds and motion beats of each joint in frames.

    Both count from the crop. Li et al. (2021), Liu et al. (2022).
    Raises DataError for no audio beats, or a clip that the crop leaves nothing of.
    """
    times = checked(audio_times_s, "audio beats", (None,))
    weight = frames - 2 * settings.crop_frames
    if weight < 1:
        raise DataError(f"clip: found {frames} frames; expected more than {2 * settings.crop_frames}: leave it out")
    values = np.zeros(len(motion_frames))
    for k, beats in enumerate(motion_frames):
        if len(beats):
            others = np.sort(np.asarray(beats)) / FRAME_RATE_HZ
            after = np.searchsorted(others, times).clip(1, max(len(others) - 1, 1))
            before, behind = others[after - 1], others[np.minimum(after, len(others) - 1)]
            distance = np.minimum(np.abs(times - before), np.abs(times - behind))  # from the nearest beat of motion
            values[k] = np.exp(-(distance**2) / (2 * settings.sigma_s**2)).mean()
    return BeatScore(float(values.mean()), float(weight), len(times), sum(len(beats) for beats in motion_frames))
