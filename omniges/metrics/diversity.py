"""L1 diversity: how far joints stray from their mean."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from omniges.features.arrays import checked
from omniges.metrics.clips import ClipValue

__all__ = ["l1_diversity"]


def l1_diversity(joints: npt.NDArray[np.floating]) -> ClipValue:
    """Sum over coordinates of the mean absolute deviation from the mean: joints (T, J, 3) m to metres, weight T.

    The same in all profiles. One frame gives 0. Raises UsageFault for another shape, DataError for no or non-finite
    frames.
    """
    positions = checked(joints, "joints", (None, None, 3))
    deviation = np.abs(positions - positions.mean(axis=0)).sum() / len(positions)
    return ClipValue(float(deviation), float(len(positions)))
