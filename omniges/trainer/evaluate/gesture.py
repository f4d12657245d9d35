"""Scores of generated motion: Fréchet distance, beats, diversity, recall, and what can be seen without a recording."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError, UsageFault
from omniges.features.gesture import motion_from_gesture
from omniges.features.skeleton import joint_positions
from omniges.recordings.semantic import SemanticSpan
from omniges.shards.reader import SampleArrays, ShardFolder
from omniges.trainer.evaluate.figures import (
    ROWS,
    Clips,
    Figure,
    Resampling,
    Row,
    absent,
    figure_of_mean,
    figure_of_statistic,
)
from omniges.trainer.evaluate.pairs import Pair, waveform
from omniges.trainer.metrics.beats import audio_beats, beat_score, mean_joint_speeds, motion_beats
from omniges.trainer.metrics.clips import ClipValue
from omniges.trainer.metrics.descriptor import DESCRIPTOR_NAME, describe
from omniges.trainer.metrics.diversity import l1_diversity
from omniges.trainer.metrics.encoders import Encoder
from omniges.trainer.metrics.frechet import FrechetScore, frechet_distance
from omniges.trainer.metrics.intervals import shuffled_pairing
from omniges.trainer.metrics.motion import foot_skate, jerk, root_drift
from omniges.trainer.metrics.profiles import BeatSettings, Profile, scored_poses
from omniges.trainer.metrics.seams import seam_score
from omniges.trainer.metrics.srgr import semantic_recall, semantic_scores

__all__ = ["GestureMeasures", "measures_of", "score_gesture"]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_FRECHET_RESAMPLES: Final = 200  # each of them is a decomposition
_BEATS: Final = "beat consistency"
_FRECHET: Final = "Fréchet gesture distance"
_UNITS: Final = {
    "L1 diversity": "m",
    "semantic recall": "",
    "jerk": "m/s³",
    "foot skate": "m/s",
    "root drift, end": "m",
    "root drift, farthest": "m",
    "invalid rotations": "share",
}
_NO_AUDIO: Final = "no audio in these shards, run preprocess --keep-audio"
_NO_BODY: Final = "needs the vertices of a body model, which the generic skeleton has not"


@dataclass(frozen=True, slots=True)
class GestureMeasures:
    """What motion is measured with."""

    profile: Profile
    encoder: Encoder | None  # None: the built-in descriptor
    mean_speeds_m_s: F64  # (55,)
    train_features: F64  # (N, D) of the train split's recordings


@dataclass(frozen=True, slots=True)
class _Motion:
    """One clip's motion, generated or recorded."""

    poses: F64  # (T, 165)
    trans: F64  # (T, 3)

    def scored(self, profile: Profile) -> F64:
        """Joints (T, 55, 3) m of the poses that the profile scores, without translation."""
        poses = scored_poses(self.poses, profile.positions)
        return joint_positions(poses, np.zeros((len(poses), 3)))

    def placed(self) -> F64:
        """Joints (T, 55, 3) m as they stand in the room."""
        return joint_positions(self.poses, self.trans)


@dataclass(slots=True)
class _Gathered:
    """Everything that is kept of clips: numbers, not motion."""

    features: dict[Row, list[F64]] = field(default_factory=lambda: {"generated": [], "recorded": []})
    beats: list[tuple[int, tuple[I64, ...], F64]] = field(default_factory=list)  # frames, of motion, of audio
    scores: dict[tuple[str, Row], Clips] = field(default_factory=dict)
    seams: dict[str, list[F64]] = field(default_factory=lambda: {"velocity": [], "acceleration": []})
    seam_clips: int = 0

    def clips(self, metric: str, row: Row) -> Clips:
        """The values of a metric so far."""
        return self.scores.setdefault((metric, row), Clips())


def recorded_motion(sample: SampleArrays, frames: int | None = None) -> _Motion:
    """A sample's motion, its first frames."""
    motion = motion_from_gesture(sample.gesture)
    return _Motion(motion.poses[:frames], motion.trans[:frames])


def measures_of(
    shards: ShardFolder, profile: Profile, encoder: Encoder | None, mean_speeds_m_s: F64 | None
) -> GestureMeasures:
    """Mean speeds, where none are given, and features of the train split's clips, in one pass over them.

    Raises UsageFault where there is no train split.
    """
    features: list[F64] = []

    def clips() -> Iterator[F64]:
        for row in shards.rows:
            if row.split == "train":
                motion = recorded_motion(shards.sample(row))
                joints = motion.scored(profile)
                features.append(_features(motion, joints, encoder))
                yield joints

    if not any(row.split == "train" for row in shards.rows):
        raise UsageFault(
            f"{shards.folder}: a train split expected, whose mean speeds beats are measured in, found none"
        )
    speeds = mean_joint_speeds(clips())
    return GestureMeasures(
        profile, encoder, speeds if mean_speeds_m_s is None else mean_speeds_m_s, np.concatenate(features)
    )


def _features(motion: _Motion, joints: F64, encoder: Encoder | None) -> F64:
    return describe(joints) if encoder is None else encoder.encode(motion.poses)


def score_gesture(pairs: Sequence[Pair], shards: ShardFolder, with_: GestureMeasures, how: Resampling) -> list[Figure]:
    """Figures of a task that makes gesture, clip by clip."""
    gathered = _Gathered()
    has_audio = False
    for pair in pairs:
        sample = shards.sample(pair.row)
        read = pair.motion()
        generated = _Motion(np.asarray(read.poses, np.float64), np.asarray(read.trans, np.float64))
        if len(generated.poses) > len(sample.gesture.gesture):
            raise DataError(
                f"{pair.folder / pair.name}: at most {len(sample.gesture.gesture)} frames expected, as the recording "
                f"has, found {len(generated.poses)}"
            )
        recorded = recorded_motion(sample, len(generated.poses))
        _add_pair(gathered, pair, sample, generated, recorded, with_)
        samples = waveform(sample)
        if samples is not None:
            has_audio = True
            _add_beats(gathered, generated, recorded, samples, with_)
    figures = _frechet(gathered, with_.train_features, with_, how)
    if has_audio:
        figures += _beat_figures(gathered, with_.profile.beats, how)
    else:
        figures.append(absent(_BEATS, "", "generated", _NO_AUDIO))
    figures += _means(gathered, how)
    figures += [absent("face MSE", "m²", "generated", _NO_BODY), absent("face LVD", "m/frame", "generated", _NO_BODY)]
    return figures + _seam_figures(gathered)


def _add_pair(
    gathered: _Gathered, pair: Pair, sample: SampleArrays, generated: _Motion, recorded: _Motion, with_: GestureMeasures
) -> None:
    profile = with_.profile
    own, true = generated.scored(profile), recorded.scored(profile)
    for row, motion, joints in (("generated", generated, own), ("recorded", recorded, true)):
        place: Any = row
        gathered.features[place].append(_features(motion, joints, with_.encoder))
        placed = motion.placed()
        gathered.clips("L1 diversity", place).add(lambda j=joints: l1_diversity(j))  # type: ignore[misc]
        gathered.clips("jerk", place).add(lambda j=placed: jerk(j))  # type: ignore[misc]
        gathered.clips("foot skate", place).add(lambda j=placed: foot_skate(j))  # type: ignore[misc]
        drift = root_drift(motion.trans)
        gathered.clips("root drift, end", place).values.append(ClipValue(drift.end_m, 1.0))
        gathered.clips("root drift, farthest", place).values.append(ClipValue(drift.farthest_m, 1.0))
        if row == "generated":
            _add_seams(gathered, pair, placed)
    if pair.record is not None and "invalid_rotations" in pair.record.measures:
        share = ClipValue(pair.record.measures["invalid_rotations"], float(len(own)))
        gathered.clips("invalid rotations", "generated").values.append(share)
    recall = gathered.clips("semantic recall", "generated")
    if sample.semantic is None:
        recall.left_out["no sem annotation"] += 1
    else:
        spans = [SemanticSpan(**span, duration=span["end"] - span["start"]) for span in sample.semantic]
        scores = semantic_scores(spans, len(own), profile.semantic)
        recall.add(lambda: semantic_recall(own, true, scores, profile.semantic))


def _add_seams(gathered: _Gathered, pair: Pair, placed: F64) -> None:
    seams = [s for s in pair.seams if 2 <= s <= len(placed) - 2]
    if not seams:
        return
    gathered.seam_clips += 1
    score = seam_score(placed, seams)
    for name in gathered.seams:
        compared = getattr(score, name)
        gathered.seams[name].append(compared.at_seams / compared.elsewhere)


def _add_beats(
    gathered: _Gathered, generated: _Motion, recorded: _Motion, samples: npt.NDArray[np.float32], with_: GestureMeasures
) -> None:
    """A clip's beats on all sides; a clip that has none, or is too short, is left out of all three rows."""
    settings = with_.profile.beats
    frames = len(generated.poses)
    try:
        times = audio_beats(samples, frames, settings)
        own, true = (
            motion_beats(motion.scored(with_.profile), with_.mean_speeds_m_s, settings)
            for motion in (generated, recorded)
        )
        scores = {"generated": beat_score(times, own, frames, settings)}
        scores["recorded"] = beat_score(times, true, frames, settings)
    except DataError as error:
        for row in ROWS:
            gathered.clips(_BEATS, row).left_out[str(error).partition(":")[2].strip()] += 1
        return
    for row in ("generated", "recorded"):
        gathered.clips(_BEATS, row).values.append(scores[row])
    gathered.beats.append((frames, own, times))


def _beat_figures(gathered: _Gathered, settings: BeatSettings, how: Resampling) -> list[Figure]:
    """Beat consistency of generated motion, of it with another clip's audio, and of the recordings."""
    shuffled = gathered.clips(_BEATS, "shuffled")
    if len(gathered.beats) > 1:
        others = shuffled_pairing(len(gathered.beats), how.seed)[0].tolist()
        for (frames, motion, _), other in zip(gathered.beats, others, strict=True):
            shuffled.values.append(beat_score(gathered.beats[other][2], motion, frames, settings))
    figures = []
    for row in ROWS:
        clips = gathered.clips(_BEATS, row)
        details = {
            "audio_beats": sum(one.audio_beats for one in clips.values),
            "motion_beats": sum(one.motion_beats for one in clips.values),
        }
        figures.append(figure_of_mean(_BEATS, "", row, clips, how, details))
    return figures


def _frechet(gathered: _Gathered, train: F64, with_: GestureMeasures, how: Resampling) -> list[Figure]:
    """Distance of generated features from the recordings'; beside it that of the train split's recordings."""
    name = DESCRIPTOR_NAME if with_.encoder is None else with_.encoder.name
    recorded = gathered.features["recorded"]
    settings = with_.profile.frechet
    fewer = Resampling(seed=how.seed, resamples=min(how.resamples, _FRECHET_RESAMPLES))

    def distance(own: Sequence[F64], rows: I64) -> FrechetScore:
        true = np.concatenate([recorded[int(k)] for k in rows])
        return frechet_distance(np.concatenate([own[int(k)] for k in rows]), true, settings, encoder=name)

    def details(score: FrechetScore) -> dict[str, Any]:
        found: dict[str, Any] = {"encoder": score.encoder, "dimensions": score.dimensions}
        found |= {"rows": [score.rows_generated, score.rows_recorded]}
        found |= {"ranks": [score.rank_generated, score.rank_recorded]}
        return found if score.full_rank else found | {"warning": "rank below dimensions: biased upwards"}

    generated = gathered.features["generated"]
    everything = np.arange(len(generated))
    whole = distance(generated, everything)
    baseline = frechet_distance(train, np.concatenate(recorded), settings, encoder=name)
    clips = Clips(list(generated))
    return [
        figure_of_statistic(
            _FRECHET, "", "generated", clips, lambda rows: distance(generated, rows).value, fewer, details(whole)
        ),
        Figure(
            metric=_FRECHET,
            unit="",
            row="recorded",
            value=baseline.value,
            clips=len(recorded),
            details=details(baseline) | {"of": "the train split's recordings against these"},
        ),
    ]


def _means(gathered: _Gathered, how: Resampling) -> list[Figure]:
    return [
        figure_of_mean(metric, unit, row, gathered.clips(metric, row), how)
        for metric, unit in _UNITS.items()
        for row in ROWS
        if (metric, row) in gathered.scores
    ]


def _seam_figures(gathered: _Gathered) -> list[Figure]:
    """Share of values at seams above the 99th percentile of elsewhere in their clip; 0.01 is expected."""
    figures = []
    for name, parts in gathered.seams.items():
        metric = f"seams, {name} above the 99th percentile"
        if not parts:
            figures.append(absent(metric, "share", "generated", "no result was put together from windows"))
            continue
        ratios = np.concatenate(parts)
        figures.append(
            Figure(
                metric=metric,
                unit="share",
                row="generated",
                value=float((ratios > 1).mean()),
                clips=gathered.seam_clips,
                details={"values": len(ratios), "worst_ratio": float(ratios.max())},
            )
        )
    return figures
