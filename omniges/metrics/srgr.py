"""Semantic-relevant gesture recall: joints near the recorded ones, counted where the gesture means something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError, UsageFault
from omniges.features.timebase import FRAME_RATE_HZ
from omniges.formats.arrays import checked
from omniges.formats.semantic import SemanticSpan
from omniges.metrics.clips import ClipValue, checked_pair
from omniges.metrics.profiles import SemanticSettings

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RecallScore(ClipValue):
    """A clip's recall; the published forms can exceed 1."""

    joints: int
    annotated: bool


def semantic_scores(spans: Sequence[SemanticSpan], frames: int, settings: SemanticSettings) -> F64:
    """Score (T,) of each frame at i/30 s: that of the first span in file order that holds it, 0 outside all."""
    scores = np.zeros(frames)
    seconds = np.arange(frames) / FRAME_RATE_HZ
    for span in reversed(spans):
        before_end = seconds <= span.end if settings.span_ends == "closed" else seconds < span.end
        scores[(span.start <= seconds) & before_end] = span.score
    return scores


def semantic_recall(
    generated: npt.NDArray[np.floating],
    recorded: npt.NDArray[np.floating],
    scores: npt.NDArray[np.floating] | None,
    settings: SemanticSettings,
) -> RecallScore:
    """Share of joints near the recorded ones, frames weighed by scores (T,): joints (T, J, 3) m.

    Raises UsageFault for unequal shapes and for missing scores where the profile needs them, DataError for no or
    non-finite frames, scores outside 0..1, and scores that are all zero where the profile divides by their sum.
    """
    found, expected = checked_pair(generated, recorded, "joints", (None, None, 3))
    frames, joints, _ = found.shape
    if joints == 0:
        raise UsageFault("joints: found none; expected (frames, joints, 3)")
    difference = found - expected
    lengths = {"sum": np.abs(difference).sum(axis=-1), "euclidean": np.sqrt(np.square(difference).sum(axis=-1))}
    hits = (lengths[settings.error] < settings.threshold_m).mean(axis=1)
    if scores is None:
        if settings.without_scores == "refused":
            raise UsageFault(
                "semantic recall: found no sem annotation; expected one in this profile: leave this clip out"
            )
        return RecallScore(float(hits.mean()), float(frames), joints, annotated=False)
    weights = checked(scores, "semantic scores", (frames,))
    if weights.min() < 0 or weights.max() > 1:
        raise DataError(f"semantic scores: found {weights.min()} to {weights.max()}; expected 0 to 1")
    if settings.weights == "by-scale":
        return RecallScore(float((hits * weights).mean() / settings.scale), float(frames), joints, annotated=True)
    total = float(weights.sum())
    if total == 0:
        raise DataError(
            "semantic recall: found only scores of zero; expected some gesture that counts: leave this clip out"
        )
    return RecallScore(float((hits * weights).sum() / total), total, joints, annotated=True)
