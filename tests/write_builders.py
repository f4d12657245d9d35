"""Recordings of random motion and sound for `write_shards`."""

from __future__ import annotations

from typing import Any

import numpy as np

import omniges


def recording(number: int = 0, **changes: Any) -> omniges.Recording:
    """A whole recording of 1.2 s with words, semantic spans, labels and a source; what `changes` says is replaced."""
    rng = np.random.default_rng(number)
    fields: dict[str, Any] = {
        "key": f"take_{number}",
        "poses": rng.normal(0, 0.1, (36, 165)),
        "trans": rng.normal(0, 0.1, (36, 3)),
        "expressions": rng.normal(0, 1, (36, 100)),
        "betas": rng.normal(0, 1, 300),
        "gender": "neutral",
        "frame_rate_hz": 30,
        "samples": rng.normal(0, 0.1, 19_200).astype(np.float32),
        "sample_rate_hz": 16_000,
        "words": [("hello", 0.1, 0.4), ("you", 0.5, 0.8)],
        "semantic": [("beat_align", 0.0, 1.0, 0.1)],
        "speaker": "anna",
        "speaker_id": 3,
        "language": "english",
        "labels": {"emotion": "anger"},
        "source": f"session 1/{number}.bvh",
    }
    return omniges.Recording(**(fields | changes))


NO_MOTION: dict[str, Any] = {"poses": None, "trans": None, "expressions": None, "betas": None, "frame_rate_hz": None}
NO_AUDIO: dict[str, Any] = {"samples": None, "sample_rate_hz": None}
