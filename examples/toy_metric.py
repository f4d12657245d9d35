"""A metric in one file: the wrists' speed in generated motion, divided by their speed in the recording.

Register it in a script with `register_metric(HAND_SPEED_RATIO)`, or in the pyproject.toml of your own package:

    [project.entry-points."omniges.metrics"]
    hand_speed_ratio = "toy_metric:HAND_SPEED_RATIO"

Then every report of `omniges evaluate` has a row for it, and validation logs it. A metric whose `better` is "higher" or
"lower" can also select the best checkpoint: `--best-metric a2g/hand_speed_ratio`.
"""

from __future__ import annotations

import numpy as np

from omniges.features.gesture import JOINT_NAMES
from omniges.metrics.registry import Metric, MotionClip

WRISTS = [JOINT_NAMES.index(name) for name in ("left_wrist", "right_wrist")]


def mean_speed(clip: MotionClip) -> float:
    """Return the mean speed of both wrists in metres per frame."""
    return float(np.linalg.norm(np.diff(clip.joints[:, WRISTS], axis=0), axis=-1).mean())


def ratio(generated: MotionClip, recorded: MotionClip) -> float | None:
    """Return the ratio of the mean speeds; None if the wrists of the recording do not move."""
    if len(recorded.joints) < 2 or mean_speed(recorded) == 0:
        return None
    return mean_speed(generated) / mean_speed(recorded)


HAND_SPEED_RATIO = Metric(label="hand speed ratio", stream="gesture", of=ratio)  # 1 is best
