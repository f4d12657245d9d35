"""Motion whose pages can be distinguished by eye and by machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from omniges.exchange.tracks import Sound, Track
from omniges.features.gesture import JOINT_NAMES
from omniges.formats.motion import SmplxMotion
from omniges.formats.textgrid import WordInterval

HOSTILE = "<script>alert(1)</script>"
RATE_HZ = 16_000


def motion(seconds: float, *, raised_s: Sequence[float] = (), seed: int | None = None) -> SmplxMotion:
    """Arms that hang, raised for 0.5 s from each moment on; with a seed all joints turn at random as well."""
    frames = round(30 * seconds)
    poses = np.zeros((frames, 165))
    if seed is not None:
        poses = np.random.default_rng(seed).uniform(-0.6, 0.6, (frames, 165))
    for side, sign in (("left", -1), ("right", 1)):
        column = 3 * JOINT_NAMES.index(f"{side}_shoulder") + 2
        poses[:, column] += sign * 1.2
        for moment in raised_s:
            poses[round(30 * moment) : round(30 * moment) + 15, column] = -sign * 1.2
    trans = np.tile([0.0, 1.3, 0.0], (frames, 1))
    expressions = np.random.default_rng(seed or 0).standard_normal((frames, 100))
    return SmplxMotion(poses, trans, expressions, np.zeros(300))


def clicks(seconds: float, moments: Sequence[float]) -> Sound:
    """Silence with a click of one sample at each moment."""
    samples = np.zeros(round(RATE_HZ * seconds), np.float32)
    for moment in moments:
        samples[round(RATE_HZ * moment)] = 0.9
    return Sound(samples, RATE_HZ)


def track(name: str, seconds: float = 4.0, clip: str = "clip", **changes: Any) -> Track:
    """A track with motion and words, one of which wants to be a program."""
    words = (WordInterval("hello", 0.2, 0.6), WordInterval(HOSTILE, 0.8, 1.6), WordInterval("world", 1.8, 2.4))
    return Track(**({"clip": clip, "name": name, "motion": motion(seconds, seed=len(name)), "words": words} | changes))
