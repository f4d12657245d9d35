"""The real clip as joints of the generic skeleton, once a session."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omniges.features.body import GENERIC
from omniges.formats.audio import decode_wav
from omniges.formats.npz import decode_motion
from omniges.formats.semantic import SemanticSpan, decode_semantic
from omniges.metrics.gesture import mean_joint_speeds, scored_poses
from omniges.metrics.profiles import PROFILES


@dataclass(frozen=True)
class RealClip:
    poses: Any  # (1906, 165)
    samples: Any  # 16 kHz
    joints: dict[str, Any]  # (1906, 55, 3) as each profile scores them
    world: Any  # (1906, 55, 3) with translation
    mean_speeds: Any  # (55,) of the world joints, as in the published file
    spans: tuple[SemanticSpan, ...]


@pytest.fixture(scope="session")
def real_clip(beat2_sample: Path) -> RealClip:
    root = beat2_sample / "beat_english_v2.0.0"
    motion = decode_motion((root / "smplxflame_30" / "2_scott_0_1_1.npz").read_bytes())
    wav = decode_wav((root / "wave16k" / "2_scott_0_1_1.wav").read_bytes())
    still = np.zeros((len(motion.poses), 3))
    joints = {p.name: GENERIC.joints(scored_poses(motion.poses, p.positions), still) for p in PROFILES.values()}
    world = GENERIC.joints(motion.poses, motion.trans)
    spans = decode_semantic((beat2_sample / "reference" / "2_scott_0_1_1.sem.txt").read_bytes())
    return RealClip(motion.poses, wav.samples, joints, world, mean_joint_speeds([world]), spans)
