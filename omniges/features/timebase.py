"""The time base: a tick is 0.1 s = 3 gesture frames = 10 mel frames = 1600 audio samples.

Every count is computed from the complete length by integer arithmetic, never by a running sum, so that rounding errors
do not accumulate.
Gesture frame i is at i/30 s; mel frame j is centred on sample 160·j.
"""

from __future__ import annotations

FRAME_RATE_HZ = 30
SAMPLE_RATE_HZ = 16_000
TICKS_PER_SECOND = 10
FRAMES_PER_TICK = FRAME_RATE_HZ // TICKS_PER_SECOND
SAMPLES_PER_TICK = SAMPLE_RATE_HZ // TICKS_PER_SECOND
HOP_SAMPLES = 160
MEL_FRAMES_PER_TICK = SAMPLES_PER_TICK // HOP_SAMPLES
MEL_RATE_HZ = SAMPLE_RATE_HZ // HOP_SAMPLES

LONGEST_S = 86_400.0
"""Maximum length of an input or a result in seconds: one day. It limits the memory that a wrong header can request."""
MAX_AUDIO_LONGER_S = 30.0
"""Seconds that audio may be longer than motion; the excess is cut. Microphones are often left on."""
MAX_MOTION_LONGER_S = 5.0
"""Seconds that motion may be longer than audio. With a larger excess, the frame rate or the pair of files is wrong."""


def lengths_fit(audio_s: float, motion_s: float, max_s: float | None = None) -> bool:
    """Return whether the lengths of audio and motion are close enough for one recording.

    Args:
        audio_s: Seconds of audio.
        motion_s: Seconds of motion.
        max_s: Largest difference in seconds. None: audio may be up to 30 s longer than motion, and motion up to 5 s
            longer than audio.

    Returns:
        True if the difference is allowed.
    """
    longer_s = audio_s - motion_s
    if max_s is not None:
        return abs(longer_s) <= max_s
    return -MAX_MOTION_LONGER_S <= longer_s <= MAX_AUDIO_LONGER_S


def common_frames(motion_frames: int, audio_samples: int, rate_hz: int) -> int:
    """Return the number of gesture frames that have both motion and audio: min(frames, floor(30 · samples / rate)).

    Args:
        motion_frames: Number of motion frames at 30 Hz.
        audio_samples: Number of audio samples at `rate_hz`.
        rate_hz: Sample rate of the audio in Hz.

    Returns:
        Number of frames T.
    """
    return min(motion_frames, FRAME_RATE_HZ * audio_samples // rate_hz)


def mel_frames_for(frames: int) -> int:
    """Return the number of mel frames that correspond to T gesture frames: floor(10 · T / 3)."""
    return frames * MEL_FRAMES_PER_TICK // FRAMES_PER_TICK


def ticks_of_frames(frames: int) -> int:
    """Return the number of complete ticks in T gesture frames."""
    return frames // FRAMES_PER_TICK


def seconds_of_frames(frames: int) -> float:
    """Return the duration of T gesture frames in seconds."""
    return frames / FRAME_RATE_HZ
