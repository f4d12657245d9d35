"""Motion, audio and read-only copies for the tests of metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np


def walk(frames: int, joints: int, seed: int, step_m: float = 0.01) -> Any:
    """Joints (T, J, 3) in metres that wander smoothly: sums of waves of 0.2 to 3 Hz."""
    rng = np.random.default_rng(seed)
    seconds = np.arange(frames)[:, None, None] / 30
    total = np.zeros((frames, joints, 3))
    for hz in (0.2, 0.5, 1.1, 2.0, 3.0):
        phase = rng.uniform(0, 2 * np.pi, (1, joints, 3))
        size = rng.uniform(0.5, 1.5, (1, joints, 3)) * step_m / hz
        total += size * np.sin(2 * np.pi * hz * seconds + phase)
    return total + rng.normal(0, 0.5, (1, joints, 3))


def clicks(seconds: float, times_s: Any, seed: int = 0) -> Any:
    """16 kHz audio (L,) float32 of short bursts of noise at given times, over faint noise."""
    rng = np.random.default_rng(seed)
    audio = rng.normal(0, 1e-4, round(seconds * 16000))
    for at in times_s:
        first = round(at * 16000)
        burst = rng.normal(0, 0.3, 800) * np.exp(-np.arange(800) / 200)
        audio[first : first + 800] += burst[: len(audio) - first]
    return audio.astype(np.float32)


@contextlib.contextmanager
def untouched(*arrays: Any) -> Iterator[None]:
    """Fail if what happens inside changes one of the arrays, which must be read-only there."""
    copies = [np.array(array) for array in arrays]
    for array in arrays:
        array.setflags(write=False)
    yield
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def turned(points: Any, degrees: float, axis: str = "y") -> Any:
    """Points (..., 3) turned about an axis of the world."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    about = {"y": [[c, 0, s], [0, 1, 0], [-s, 0, c]], "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]]}[axis]
    return points @ np.array(about).T
