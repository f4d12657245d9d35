"""The published formulas of 2024 and 2025 once more, as plain as can be: numpy, scipy, and loops over frames."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import scipy.linalg
from scipy.signal import argrelextrema

UPPER = (3, 6, 9, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21)
THRESHOLDS = {2024: 0.3, 2025: 0.1}


def frechet(generated: Any, recorded: Any, year: int) -> float:
    """The distance by scipy's matrix root, with the answer of 2024 where that root fails."""
    m1, m2 = generated.mean(axis=0), recorded.mean(axis=0)
    s1, s2 = np.cov(generated, rowvar=False), np.cov(recorded, rowvar=False)
    offset = 1e-6 * np.eye(len(m1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.linalg.LinAlgWarning)  # of singular products
        root = scipy.linalg.sqrtm(s1 @ s2)
        if year == 2025 or not np.isfinite(root).all():
            root = scipy.linalg.sqrtm((s1 + offset) @ (s2 + offset))
    if year == 2024 and np.iscomplexobj(root) and not np.allclose(np.diagonal(root).imag, 0, atol=1e-3):
        return 1e10
    return float(((m1 - m2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * np.trace(root.real))


def beats_of_motion(joints: Any, means: Any, year: int) -> list[list[int]]:
    """Beats of each upper joint in frames from frame 60; 2024 sees absolute deviations from the clip's mean."""
    x = np.array(joints, np.float64)
    if year == 2024:
        x = abs(x - x.mean(axis=0))
    found = []
    for j in UPPER:
        speed = np.linalg.norm(np.gradient(x[:, j], axis=0), axis=1) * 30 / means[j]
        minima = argrelextrema(speed[60 : len(x) - 60], np.less, order=7)[0]
        found.append([int(m) for m in minima if speed[m] > THRESHOLDS[year]])  # 60 frames early
    return found


def beat_consistency(onsets_s: Any, beats: list[list[int]]) -> float:
    """Every onset to the nearest beat of each joint."""
    values = []
    for own in beats:
        near = [max((math.exp(-((b - m / 30) ** 2) / (2 * 0.3**2)) for m in own), default=0.0) for b in onsets_s]
        values.append(sum(near) / len(near))
    return sum(values) / len(values)


def corpus_beats(clips: list[tuple[Any, Any, Any]], year: int) -> float:
    """Beat consistency of clips, each joints, mean speeds and onsets, by weights n - 120."""
    total = sum(beat_consistency(o, beats_of_motion(x, v, year)) * (len(x) - 120) for x, v, o in clips)
    return total / (sum(len(x) for x, _, _ in clips) - 120 * len(clips))


def corpus_diversity(clips: list[Any]) -> float:
    """Sum over frames and coordinates of distances to the clip's mean, by all frames."""
    return sum(float(abs(x - x.mean(axis=0)).sum()) for x in clips) / sum(len(x) for x in clips)


def corpus_faces(pairs: list[tuple[Any, Any]], year: int) -> tuple[float, float]:
    """MSE and LVD of pairs of vertices (T, 3 V), clips weighted by their frames."""
    squares = steps = 0.0
    for p, g in pairs:
        squares += ((p - g) ** 2).mean() * len(p)
        position, velocity = abs(p[1:] - g[1:]).mean(), abs(np.diff(p, axis=0) - np.diff(g, axis=0)).sum() / p.size
        steps += (position if year == 2024 else velocity) * len(p)
    frames = sum(len(p) for p, _ in pairs)
    return squares / frames, steps / frames


def scored_frames(generated: int, recorded: int, window: int, seed: int) -> int:
    """The longest clip a trainer keeps: whole seconds, a multiple of 8, and whole windows that share seed frames."""
    limit = recorded // 30 * 30
    limit -= limit % 8
    return max((n for n in range(seed, min(generated, limit) + 1, window - seed)), default=-1)
