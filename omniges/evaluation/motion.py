"""One clip's motion, generated or recorded, and what motion is measured with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from omniges.errors import UsageFault
from omniges.evaluation.body_models import Bodies, Body
from omniges.evaluation.scores import Recordings, Result
from omniges.evaluation.statistics import Values
from omniges.features.gesture import JAW_EYES_COLUMNS, motion_from_gesture
from omniges.features.timebase import FRAME_RATE_HZ
from omniges.metrics.beats import mean_joint_speeds
from omniges.metrics.frechet import DESCRIPTOR_NAME, Encoder, Features, describe
from omniges.metrics.profiles import Profile, scored_poses
from omniges.shards.manifest import ManifestRow

F64 = npt.NDArray[np.float64]

_JAW: slice = slice(JAW_EYES_COLUMNS.start, JAW_EYES_COLUMNS.start + 3)


@dataclass(frozen=True, slots=True)
class ClipMotion:
    """Motion of one clip."""

    poses: F64  # (T, 165)
    expressions: F64  # (T, 100)
    trans: F64  # (T, 3)

    @property
    def frames(self) -> int:
        """T."""
        return len(self.poses)

    def cut(self, frames: int) -> ClipMotion:
        """Its first frames."""
        return ClipMotion(self.poses[:frames], self.expressions[:frames], self.trans[:frames])

    def face_poses(self) -> F64:
        """Poses (T, 165) of the jaw alone."""
        poses = np.zeros_like(self.poses)
        poses[:, _JAW] = self.poses[:, _JAW]
        return poses


def recorded_motion(shards: Recordings, row: ManifestRow) -> ClipMotion:
    """A recording's motion."""
    motion = motion_from_gesture(shards.gesture(row))
    return ClipMotion(motion.poses, motion.expressions, motion.trans)


def generated_motion(result: Result, recorded_frames: int) -> ClipMotion:
    """A result's motion, at most as long as its recording. Raises DataError for what cannot be read."""
    read = result.motion()
    frames = result.within(len(read.poses), recorded_frames, FRAME_RATE_HZ)
    arrays = (np.asarray(array, np.float64) for array in (read.poses, read.expressions, read.trans))
    return ClipMotion(*arrays).cut(frames)


@dataclass(frozen=True, slots=True)
class Instruments:
    """What motion is measured with, as the command was told."""

    profile: Profile
    bodies: Bodies
    encoder: Encoder | None  # None: the built-in descriptor
    mean_speeds_m_s: F64 | None  # (55,); None: those of the train split
    given: tuple[Features, Features] | None = None  # generated and recorded, made elsewhere: nothing is encoded

    @property
    def encoder_name(self) -> str:
        """What features are called in reports."""
        if self.given is not None:
            return " and ".join(features.name for features in self.given)
        return DESCRIPTOR_NAME if self.encoder is None else self.encoder.name

    def scored_joints(self, motion: ClipMotion, body: Body) -> F64:
        """Joints (T, 55, 3) m of the poses that the profile scores, without translation."""
        return body.joints(scored_poses(motion.poses, self.profile.positions), np.zeros_like(motion.trans))

    def features(self, motion: ClipMotion, joints: F64) -> F64:
        """Features (N, D). Raises DataError for motion that is too short for them."""
        return describe(joints) if self.encoder is None else self.encoder.encode(motion.poses)


@dataclass(frozen=True, slots=True)
class TrainSplit:
    """What the train split's recordings tell."""

    mean_speeds_m_s: F64  # (55,)
    features: dict[str, F64]  # by key, of those that have some
    left_out: Mapping[str, int]  # those that have none, by reason


def train_rows(shards: Recordings, instruments: Instruments) -> list[ManifestRow]:
    """The train split's recordings; raises UsageFault where mean speeds are needed of it and it has none."""
    rows = [row for row in shards.rows if row.split == "train"]
    if not rows and instruments.mean_speeds_m_s is None:
        raise UsageFault(
            f"{shards.folder}: a train split expected, whose mean speeds beats are measured in, found none: give "
            "--mean-speeds FILE"
        )
    return rows


def learn_train_split(
    shards: Recordings, instruments: Instruments, count: Callable[[float, float], None]
) -> TrainSplit | None:
    """Mean speeds and features of the train split in one pass; None where it has no clips and none is needed.

    Raises UsageFault where mean speeds are needed and there is no train split.
    """
    rows = train_rows(shards, instruments)
    if not rows:
        return None
    features = Values()

    def clips() -> Iterator[F64]:
        for done, row in enumerate(rows, 1):
            motion = recorded_motion(shards, row)
            joints = instruments.scored_joints(motion, instruments.bodies.of(shards.array(row, "betas.npy")))
            if instruments.given is None:
                features.add(row.key, partial(instruments.features, motion, joints))
            count(done, len(rows))
            yield joints

    speeds = mean_joint_speeds(clips())
    return TrainSplit(speeds, dict(zip(features.keys, features.found, strict=True)), dict(features.left_out))
