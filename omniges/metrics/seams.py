"""Can a seam between windows be seen? Velocity and acceleration there against everywhere else.

Letters: T frames, J joints, S seams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError, UsageFault
from omniges.features.timebase import FRAME_RATE_HZ
from omniges.formats.arrays import checked

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SeamComparison:
    """One quantity at seams and elsewhere."""

    elsewhere: float
    """Its percentile away from seams."""
    at_seams: F64
    above: float
    """Share of values at seams above it; 1 − percentile/100 is expected where nothing can be seen."""
    worst_ratio: float
    """Largest value at a seam over it."""


@dataclass(frozen=True, slots=True)
class SeamScore:
    """Velocity in m/s (S values at seams) and acceleration in m/s² (2 S values)."""

    velocity: SeamComparison
    acceleration: SeamComparison
    percentile: float


def seam_score(joints: npt.NDArray[np.floating], seams: Sequence[int], *, percentile: float = 99.0) -> SeamScore:
    """Compare seams with the rest of a clip: joints (T, J, 3) m; seam s lies between frames s − 1 and s.

    Lengths are root mean squares over joints. Raises UsageFault for no seams, seams outside 2..T − 2 and a clip that
    has nothing but seams; DataError for non-finite values and for motion that stands still elsewhere.
    """
    positions = checked(joints, "joints", (None, None, 3))
    frames, joint_count, _ = positions.shape
    places = np.unique(np.asarray(seams, dtype=np.int64))
    if joint_count == 0 or not 0 < percentile < 100:
        raise UsageFault(f"seams: found {joint_count} joints, percentile {percentile}; expected joints, and 0 to 100")
    if len(places) == 0 or places[0] < 2 or places[-1] > frames - 2:
        raise UsageFault(f"seams: found {places.tolist()[:5]} in {frames} frames; expected some in 2..{frames - 2}")
    velocity = _lengths(np.diff(positions, axis=0)) * FRAME_RATE_HZ  # [t − 1] is frame t's
    acceleration = _lengths(np.diff(positions, n=2, axis=0)) * FRAME_RATE_HZ**2  # [t − 1] is frame t's
    return SeamScore(
        _compare(velocity, places - 1, percentile, "velocity"),
        _compare(acceleration, np.unique(np.concatenate([places - 2, places - 1])), percentile, "acceleration"),
        percentile,
    )


def _lengths(vectors: F64) -> F64:
    """Root mean square over joints of lengths: (T, J, 3) to (T,)."""
    return np.asarray(np.sqrt(np.square(vectors).sum(axis=-1).mean(axis=-1)))


def _compare(values: F64, at: npt.NDArray[np.int64], percentile: float, what: str) -> SeamComparison:
    elsewhere = np.delete(values, at)
    if len(elsewhere) == 0:
        raise UsageFault(f"seams: nothing of the {what} is elsewhere; expected frames away from seams")
    limit = float(np.percentile(elsewhere, percentile))
    if limit == 0:
        raise DataError(f"seams: the {what} elsewhere is zero; expected motion: there is nothing to compare with")
    found = values[at]
    return SeamComparison(limit, found, float((found > limit).mean()), float(found.max() / limit))
