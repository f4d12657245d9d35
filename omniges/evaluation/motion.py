"""Read the motion of clips for motion metrics, and compute the Fréchet distance between results and recordings.

Joints and vertices come from the user's SMPL-X model file, or from the generic skeleton.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError, UsageFault
from omniges.evaluation import scores
from omniges.features.body import GENERIC, BodyModel, Person, Skeleton
from omniges.features.gesture import JAW_EYES_COLUMNS, JOINT_NAMES, motion_from_gesture
from omniges.features.timebase import FRAME_RATE_HZ
from omniges.formats.arrays import read_array
from omniges.formats.body_model import read_body_model
from omniges.formats.npz import absent_parts_of
from omniges.metrics.frechet import DESCRIPTOR_NAME, Encoder, Features, FrechetScore, describe, frechet_distance
from omniges.metrics.gesture import mean_joint_speeds, scored_poses
from omniges.metrics.profiles import PROFILES, Profile
from omniges.shards.manifest import ManifestRow
from omniges.shards.present import BODY_PARTS, at_rest
from omniges.shards.schema import MOTION_PARTS

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.floating]

_JAW: Final = slice(JAW_EYES_COLUMNS.start, JAW_EYES_COLUMNS.start + 3)
_MAX_BYTES: Final = 1 << 30
_DISTANCE: Final = scores.Heading("Fréchet gesture distance", "")
_OF_TRAIN: Final = replace(_DISTANCE, row="recorded")
Body = Person | Skeleton
"""The body of one person. It computes positions of joints; a `Person` also computes vertices."""
_RESAMPLES: Final = 200  # fewer than for other metrics, because each resample needs a matrix decomposition


@dataclass(frozen=True, slots=True)
class Bodies:
    """Source of persons' bodies: an SMPL-X model, or the generic skeleton for everybody."""

    name: str
    """Name of the model or skeleton in reports."""
    model: BodyModel | None

    def of(self, betas: Numbers) -> Body:
        """Return the body with shape coefficients `betas`; without an SMPL-X model, return the generic skeleton."""
        return GENERIC if self.model is None else self.model.person(betas)


def load_bodies(path: Path | None) -> Bodies:
    """Load an SMPL-X model file as source of bodies.

    Args:
        path: The model's .npz file; None: use the generic skeleton.

    Returns:
        The source of bodies.

    Raises:
        UsageFault: The file does not exist.
        DataError: The file is not an SMPL-X model.
    """
    if path is None:
        return Bodies("generic", None)
    model, sha256 = read_body_model(path)
    return Bodies(f"SMPL-X:{path.name}:{sha256[:12]}", model)


def read_mean_speeds(path: Path) -> F64:
    """Read mean speeds of joints from an .npy file.

    Args:
        path: The file.

    Returns:
        Speeds (55,) in m/s.

    Raises:
        UsageFault: The file does not exist.
        DataError: The file is damaged, the array has another shape, or a speed is negative, NaN or infinite.
    """
    wanted = f"expected an .npy file of ({len(JOINT_NAMES)},) floats for --mean-speeds"
    found = read_array(path, wanted)
    if found.shape != (len(JOINT_NAMES),) or found.dtype.kind != "f":
        raise DataError(f"{path}: {wanted}, found {found.shape} of {found.dtype}; check the file")
    fits = np.isfinite(found) & (found >= 0)
    if not fits.all():  # checked before the cast, because casting some NaN values causes a warning
        joint = int(np.argmin(fits))
        raise DataError(
            f"{path}: expected speeds of at least 0 m/s, found {found[joint]} for joint {joint}; check the file"
        )
    return np.asarray(found, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class ClipMotion:
    """The motion of one clip of T frames."""

    poses: F64  # (T, 165) axis-angle in radians
    expressions: F64  # (T, 100)
    trans: F64  # (T, 3) in metres
    present: frozenset[str]  # recorded or generated parts; all other parts are at rest

    @property
    def frames(self) -> int:
        """Number of frames T."""
        return len(self.poses)

    def cut(self, frames: int) -> ClipMotion:
        """Return the first `frames` frames of the motion."""
        return ClipMotion(self.poses[:frames], self.expressions[:frames], self.trans[:frames], self.present)

    def face_poses(self) -> F64:
        """Return poses (T, 165) in which only the jaw moves."""
        poses = np.zeros_like(self.poses)
        poses[:, _JAW] = self.poses[:, _JAW]
        return poses


def recorded_motion(shards: scores.Recordings, row: ManifestRow) -> ClipMotion:
    """Return the motion of a recording, with absent parts at rest.

    Args:
        shards: The recordings.
        row: Manifest row of the recording.

    Returns:
        The motion.
    """
    motion = motion_from_gesture(at_rest(shards.gesture(row), row.present))
    return ClipMotion(motion.poses, motion.expressions, motion.trans, frozenset(row.present))


def generated_motion(result: scores.Result, recorded_frames: int) -> ClipMotion:
    """Return the motion of a result, cut to at most the length of its recording.

    Args:
        result: The result.
        recorded_frames: Length of the recording in frames at 30 Hz.

    Returns:
        The motion.

    Raises:
        DataError: A file cannot be read, or the result is too long for this recording.
    """
    read = result.motion()
    frames = result.within(len(read.poses), recorded_frames, FRAME_RATE_HZ)
    arrays = (read.poses, read.expressions, read.trans)
    absent = absent_parts_of(*arrays)  # a file of another tool may lack parts
    poses, expressions, trans = (
        np.nan_to_num(np.asarray(one, np.float64)) if absent else np.asarray(one, np.float64) for one in arrays
    )
    return ClipMotion(poses, expressions, trans, frozenset(MOTION_PARTS) - absent - frozenset(result.absent)).cut(
        frames
    )


@dataclass(frozen=True, slots=True)
class MetricTools:
    """Body model, encoder and settings for the metrics of motion."""

    profile: Profile
    bodies: Bodies
    encoder: Encoder | None  # None: the built-in descriptor
    mean_speeds_m_s: F64 | None  # (55,) in m/s; None: use the mean speeds of the train split
    precomputed: tuple[Features, Features] | None = (
        None  # generated and recorded features, if they were computed elsewhere
    )

    @property
    def encoder_name(self) -> str:
        """Name of the encoder in reports, or the names of the files from which features were read."""
        if self.precomputed is not None:
            return " and ".join(features.name for features in self.precomputed)
        return DESCRIPTOR_NAME if self.encoder is None else self.encoder.name

    def scored_joints(self, motion: ClipMotion, body: Body) -> F64:
        """Return the joint positions that the profile scores.

        The translation of the root is 0. Rotations that the profile does not score are set to 0.

        Args:
            motion: The motion.
            body: Body of the person.

        Returns:
            Joint positions (T, 55, 3) in metres.
        """
        return body.joints(scored_poses(motion.poses, self.profile.positions), np.zeros_like(motion.trans))

    def features(self, motion: ClipMotion, joints: F64) -> F64:
        """Compute the features of a motion for the Fréchet distance.

        Args:
            motion: The motion. If there is an encoder, the encoder reads it.
            joints: Joint positions (T, 55, 3) in metres. If there is no encoder, the built-in descriptor reads them.

        Returns:
            Features (N, D): D values for each of N time windows of the motion.

        Raises:
            DataError: The motion is too short.
        """
        return describe(joints) if self.encoder is None else self.encoder.encode(motion.poses)


@dataclass(frozen=True, slots=True)
class TrainSplit:
    """Mean joint speeds and features of the recordings in the train split."""

    mean_speeds_m_s: F64  # (55,)
    features: dict[str, F64]  # features (N, D) of each recording, by key
    left_out: Mapping[str, int]  # number of recordings without features, by reason


def train_rows(shards: scores.Recordings, tools: MetricTools) -> list[ManifestRow]:
    """Return the recordings of the train split with a complete body: the parts upper, hands, lower and root.

    Args:
        shards: The recordings.
        tools: Body model, encoder and settings for the metrics of motion.

    Returns:
        The manifest rows of the recordings. The list may be empty if `tools` contains mean speeds.

    Raises:
        UsageFault: No recording has a complete body, and `tools` contains no mean speeds.
    """
    rows = [row for row in shards.rows if row.split == "train" and set(BODY_PARTS) <= set(row.present)]
    if not rows and tools.mean_speeds_m_s is None:
        raise UsageFault(
            f"{shards.folder}: expected motion in a train split, whose mean speeds beats need, found none; give "
            "--mean-speeds FILE"
        )
    return rows


def learn_train_split(
    shards: scores.Recordings, tools: MetricTools, count: Callable[[float, float], None]
) -> TrainSplit | None:
    """Compute mean joint speeds and features of the train split.

    Args:
        shards: The recordings.
        tools: Body model, encoder and settings for the metrics of motion.
        count: Function that is called with (done, total) recordings.

    Returns:
        Mean speeds and features. None if no recording of the split has a complete body (upper, hands, lower and root),
        but `tools` contains mean speeds.

    Raises:
        UsageFault: No recording of the split has a complete body, and `tools` contains no mean speeds.
    """
    rows = train_rows(shards, tools)
    if not rows:
        return None
    features = scores.Values()

    def clips() -> Iterator[F64]:
        for done, row in enumerate(rows, 1):
            motion = recorded_motion(shards, row)
            joints = tools.scored_joints(motion, tools.bodies.of(shards.array(row, "betas.npy")))
            if tools.precomputed is None:
                features.add(row.key, partial(tools.features, motion, joints))
            count(done, len(rows))
            yield joints

    speeds = mean_joint_speeds(clips())
    return TrainSplit(speeds, dict(zip(features.keys, features.found, strict=True)), dict(features.left_out))


class FeatureRows:
    """Accumulator of the features of all results and of their recordings, for the Fréchet distance.

    The features of each recording are stored once.
    """

    def __init__(self, tools: MetricTools, train: TrainSplit | None) -> None:
        self._with, self._train = tools, train
        self._generated = scores.Values()
        self._recorded: dict[str, F64] = {}
        self._first: set[int] = set()  # index of the first result of each recording

    def add(self, key: str, generated: tuple[ClipMotion, F64], recorded: tuple[ClipMotion, F64]) -> None:
        """Add a result.

        Args:
            key: Key of the result's recording.
            generated: Motion of the result, and its joint positions (T, 55, 3) in metres.
            recorded: Motion of the recording, and its joint positions (T, 55, 3) in metres.
        """
        if self._with.precomputed is not None:
            self._generated.keep(key, None)
            return
        try:
            features = self._with.features(*generated)
            if key not in self._recorded:
                self._recorded[key] = self._with.features(*recorded)
        except DataError as error:
            self._generated.leave_out(error)
        else:
            self._generated.keep(key, features)

    def add_poses(self, key: str, generated: ClipMotion, recorded: ClipMotion) -> None:
        """Add a result without joint positions, for an encoder that reads only poses.

        Args:
            key: Key of the result's recording.
            generated: Motion of the result.
            recorded: Motion of the recording.
        """
        none = np.empty((0, 0, 3))
        self.add(key, (generated, none), (recorded, none))

    def figures(self, how: scores.Resampling) -> list[scores.Figure]:
        """Return Fréchet distances as figures: values with or without intervals, or reasons why there is no value.

        The first figure is the distance between the results and their recordings. The second figure is a reference for
        the first: the distance between these recordings and the recordings of the train split that have no results. If
        the results or their recordings have fewer than two rows of features, only the first figure is returned, with
        the reason in place of a value.
        """
        values = self._generated
        if self._with.precomputed is not None:  # no interval, because rows are not assigned to recordings
            generated, recorded = ([features.rows] for features in self._with.precomputed)
            score = self._score(generated, recorded)
            details = self._details(score, generated, recorded)
            counts: dict[str, Any] = {"recordings": len(set(values.keys)), "results": len(values.keys)}
            figure = scores.Figure(**asdict(_DISTANCE), value=score.value, **counts, details=details)
            return [figure, scores.absent(_OF_TRAIN, "--features has none of the train split")]
        if min(sum(map(len, values.found)), sum(map(len, self._recorded.values()))) < 2:
            why = _reasons(values.left_out) or "fewer than two rows of features"
            return [scores.absent(_DISTANCE, why, values.left_out)]
        self._first = {int(group[0]) for group in values.groups.values()}
        chosen = self._chosen(np.arange(len(values.found)))
        details = self._details(self._score(*chosen), *chosen)
        fewer = replace(how, resamples=min(how.resamples, _RESAMPLES))
        figure = scores.figure_of_statistic(
            _DISTANCE, values, lambda numbers: self._score(*self._chosen(numbers)).value, fewer, details, centred=True
        )
        if figure.low is not None and not self._with.profile.frechet.offset:
            figure = replace(figure, low=max(figure.low, 0.0))  # centring may shift the interval below 0
        return [figure, self._baseline()]

    def _chosen(self, numbers: I64) -> tuple[list[F64], list[F64]]:
        """Return the features of the results at the indices `numbers`, and the features of their recordings.

        A recording may have several results. Only the first of them adds the features of the recording, so that these
        features are not added once for each result.
        """
        values = self._generated
        # If all results of a recording are drawn, the recording counts once.
        recorded = [self._recorded[values.keys[int(k)]] for k in numbers if int(k) in self._first]
        return [values.found[int(k)] for k in numbers], recorded

    def _score(
        self, generated: Sequence[Numbers], recorded: Sequence[Numbers], profile: Profile | None = None
    ) -> FrechetScore:
        settings = (profile or self._with.profile).frechet
        first, second = np.concatenate(generated), np.concatenate(recorded)
        return frechet_distance(first, second, settings, encoder=self._with.encoder_name)

    def _details(
        self, score: FrechetScore, generated: Sequence[Numbers], recorded: Sequence[Numbers]
    ) -> dict[str, Any]:
        """Return details of a Fréchet distance, for the report.

        `generated` and `recorded` are the features from which the distance `score` was computed. For profile
        ``emage-2024``, the details include the distance multiplied by 10, as papers print it, and the distance that the
        formula of profile ``emage-eval-2025`` gives for the same features.
        """
        if self._with.profile.name != "emage-2024":
            return _details(score)
        later = self._score(generated, recorded, PROFILES["emage-eval-2025"]).value
        return _details(score) | {"times_10": 10 * score.value, "formula_2025": later}

    def _baseline(self) -> scores.Figure:
        train = self._train or TrainSplit(np.empty(0), {}, {})
        others = [own for key, own in train.features.items() if key not in self._recorded]
        if sum(map(len, others)) < 2:
            why = _reasons(train.left_out) or "no other recordings in the train split"
            return scores.absent(_OF_TRAIN, why, train.left_out)
        score = self._score(others, list(self._recorded.values()))
        counts: dict[str, Any] = {"recordings": len(others), "results": len(others), "left_out": train.left_out}
        details = _details(score) | {"of": "the train split's other recordings against these"}
        return scores.Figure(**asdict(_OF_TRAIN), value=score.value, **counts, details=details)


def _reasons(left_out: Mapping[str, int]) -> str:
    return "; ".join(f"{count} × {reason}" for reason, count in left_out.items())


def _details(score: FrechetScore) -> dict[str, Any]:
    return {
        "encoder": score.encoder,
        "offset": score.offset,
        "mean_term": score.mean_term,
        "dimensions": score.dimensions,
        "rows": [score.rows_generated, score.rows_recorded],
        "ranks": [score.rank_generated, score.rank_recorded],
        "full_rank": score.full_rank,
    }
