"""The time base: a tick is 0.1 s = 3 gesture frames = 10 mel frames = 1600 audio samples.

Every count is a whole-number formula of the length, never a running sum, so nothing drifts: gesture frame i is at
i/30 s, mel frame j is centred on sample 160·j.
"""

from __future__ import annotations

FRAME_RATE_HZ = 30
SAMPLE_RATE_HZ = 16_000
TICKS_PER_SECOND = 10
FRAMES_PER_TICK = FRAME_RATE_HZ // TICKS_PER_SECOND
SAMPLES_PER_TICK = SAMPLE_RATE_HZ // TICKS_PER_SECOND
HOP_SAMPLES = 160
MEL_FRAMES_PER_TICK = SAMPLES_PER_TICK // HOP_SAMPLES


def common_frames(motion_frames: int, audio_samples: int, rate_hz: int) -> int:
    """T = min(motion frames, floor(30 · samples / rate)), at the audio's own rate."""
    return min(motion_frames, FRAME_RATE_HZ * audio_samples // rate_hz)


def mel_frames_for(frames: int) -> int:
    """Mel frames that go with T gesture frames: floor(10 · T / 3)."""
    return frames * MEL_FRAMES_PER_TICK // FRAMES_PER_TICK


def ticks_of_frames(frames: int) -> int:
    """Whole ticks in T gesture frames."""
    return frames // FRAMES_PER_TICK


def seconds_of_frames(frames: int) -> float:
    """Duration of T gesture frames in seconds."""
    return frames / FRAME_RATE_HZ
