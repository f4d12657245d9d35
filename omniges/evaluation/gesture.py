"""Score generated motion.

Some metrics compare the features, beats, semantic gestures and face of generated motion with those of recordings. Other
metrics describe the motion of one clip, without a comparison.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError
from omniges.evaluation import scores
from omniges.evaluation.motion import (
    Body,
    ClipMotion,
    FeatureRows,
    MetricTools,
    TrainSplit,
    generated_motion,
    recorded_motion,
)
from omniges.features.body import Person
from omniges.features.timebase import FRAME_RATE_HZ
from omniges.formats.semantic import SemanticSpan
from omniges.metrics import gesture
from omniges.metrics.clips import ClipValue
from omniges.metrics.profiles import BeatSettings
from omniges.metrics.registry import MotionClip, units
from omniges.shards.manifest import ManifestRow
from omniges.shards.schema import Part

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_BEATS: Final = scores.Heading("beat consistency", "")
_NO_AUDIO: Final = "no audio in these shards; run preprocess with --keep-audio"
_NO_SPEEDS: Final = "no train recording has a complete body, so the mean speeds of joints are unknown"
_ALONE: Final = "there is no other recording whose audio can be used"
_NO_BODY: Final = "no vertices without a body model; give --body-model"
_NO_FACE: Final = "no face in the recording"
_NO_FACE_MADE: Final = "no face in the result"
_NO_JAW: Final = "no jaw in the recording"
_NO_JAW_MADE: Final = "no jaw in the result"
_LACKING: Final = {"face": (_NO_FACE, _NO_FACE_MADE), "jaw_eyes": (_NO_JAW, _NO_JAW_MADE)}
"""By body part, two reasons for a missing value: the recording lacks the part, or the result lacks it."""
_NO_SEAMS: Final = "no result has several windows"
_TOGETHER: Final = frozenset({"Fréchet gesture distance", _BEATS.metric})  # computed by `FeatureRows` and `BeatRows`
_UNITS: Final = {label: unit for label, unit in units("gesture").items() if label not in _TOGETHER}


def _correlated(speeds: Callable[[Any], F64], generated: F64, recorded: F64) -> ClipValue:
    return gesture.speed_correlation(speeds(generated), speeds(recorded))


_JAW_AND_EXPRESSIONS: Final[Mapping[str, tuple[Part, Callable[[ClipMotion, ClipMotion], ClipValue]]]] = {
    "jaw rotation error": ("jaw_eyes", lambda own, true: gesture.jaw_rotation_error(own.poses, true.poses)),
    "jaw correlation": ("jaw_eyes", lambda own, true: _correlated(gesture.jaw_speeds, own.poses, true.poses)),
    "expression correlation": (
        "face",
        lambda own, true: _correlated(gesture.expression_speeds, own.expressions, true.expressions),
    ),
}
"""By metric: the body part that the metric needs, and a function of two motions (generated, recorded) of equal length.

The function returns the value of the metric.
"""
_AGAINST_A_RECORDING: Final = ("semantic recall", "face MSE", "face LVD", *_JAW_AND_EXPRESSIONS)
_NO_VALUES: Final = {
    "face MSE": _NO_BODY,
    "face LVD": _NO_BODY,
    "invalid rotations": "no record contains their share",
    "seams, velocity": _NO_SEAMS,
    "seams, acceleration": _NO_SEAMS,
}
"""By metric, the reason that the report gives if the metric has no values."""


def score_gesture(
    results: Sequence[scores.Result],
    shards: scores.Recordings,
    tools: MetricTools,
    train: TrainSplit | None,
    how: scores.Resampling,
    count: Callable[[], None],
) -> scores.Scored:
    """Score a task whose target is gesture.

    Args:
        results: Generated results, sorted by recording.
        shards: The recordings.
        tools: Body model, encoder and settings for the metrics of motion.
        train: Statistics of the train split; None: no recording of the split has a complete body. Without mean speeds
            in `tools`, beat consistency is then left out.
        how: Seed and number of resamples of the bootstrap over recordings.
        count: Function that is called after each result.

    Returns:
        Figures (values of metrics), scored seconds of each recording, and warnings.

    Raises:
        DataError: A file cannot be read.
    """
    scorer = _Scorer(results, shards, tools, train, how)
    for result in results:
        scorer.add(result)
        count()
    return scores.Scored(scorer.figures(), scorer.seconds)


@dataclass(frozen=True, slots=True)
class _Recording:
    """Data of a recording that scoring needs: motion, body, audio at 16 kHz, and semantic spans."""

    row: ManifestRow
    motion: ClipMotion
    body: Body
    samples: npt.NDArray[np.float32] | None
    semantic: tuple[SemanticSpan, ...] | None


class _Scorer:
    """Accumulator of the metric values of all results. It does not store the motion of results."""

    def __init__(
        self,
        results: Sequence[scores.Result],
        shards: scores.Recordings,
        tools: MetricTools,
        train: TrainSplit | None,
        how: scores.Resampling,
    ) -> None:
        self._shards, self._with, self._how = shards, tools, how
        speeds = tools.mean_speeds_m_s
        if speeds is None:
            speeds = None if train is None else train.mean_speeds_m_s
        self._beats = BeatRows(tools.profile.beats, speeds)
        self._features = FeatureRows(tools, train)
        self._scores: dict[tuple[str, scores.Row], scores.Values] = {}
        self._unconditional = results[0].unconditional
        self._rows = {result.key: result.row for result in results}
        self._partners = scores.partners(list(self._rows), how.seed)
        self._registered = scores.RegisteredScores("gesture", unconditional=self._unconditional)
        self._recording: _Recording | None = None
        self.seconds: dict[str, float] = {}

    def _values(self, metric: str, row: scores.Row) -> scores.Values:
        return self._scores.setdefault((metric, row), scores.Values())

    def _recording_of(self, row: ManifestRow) -> _Recording:
        """Return the data of a recording. They are read only once, because results are sorted by recording."""
        if self._recording is None or self._recording.row.key != row.key:
            spans = self._shards.semantic(row)
            if spans is not None:
                spans = [span | {"duration": span["end"] - span["start"]} for span in spans]
            self._recording = _Recording(
                row,
                recorded_motion(self._shards, row),
                self._with.bodies.of(self._shards.array(row, "betas.npy")),
                None if self._unconditional else self._shards.waveform(row),
                None if spans is None else tuple(SemanticSpan(**span) for span in spans),
            )
        return self._recording

    def add(self, result: scores.Result) -> None:
        """Score one result."""
        key, recording = result.key, self._recording_of(result.row)
        generated = generated_motion(result, recording.motion.frames)
        recorded = recording.motion.cut(generated.frames)
        own, true = (self._with.scored_joints(motion, recording.body) for motion in (generated, recorded))
        self.seconds[key] = generated.frames / FRAME_RATE_HZ
        self._features.add(key, (generated, own), (recorded, true))
        first = key not in self._values("L1 diversity", "recorded").keys
        self._add_alone(result, "generated", generated, own, recording.body)
        if first:
            self._add_alone(result, "recorded", recorded, true, recording.body)
        if result.invalid_rotations is not None:
            share = ClipValue(result.invalid_rotations, float(generated.frames))
            self._values("invalid rotations", "generated").keep(key, share)
        if self._unconditional:
            return
        self._beats.add(key, own, true, recording.samples)
        partner = self._partners.get(key)
        other = None if partner is None else recorded_motion(self._shards, self._rows[partner])
        self._add_recall(key, recording, own, true, other)
        self._add_jaw_and_expressions(key, generated, recorded, other)
        if self._registered.wanted:
            self._add_registered(key, recording.body, generated, recorded, other)
        if not isinstance(recording.body, Person):
            return
        if lacking := lacking_face(generated, recorded):
            for metric in ("face MSE", "face LVD"):
                self._values(metric, "generated").leave_out(lacking)
        else:
            other = None if partner is None or "face" not in self._rows[partner].present else other
            self._add_face(key, recording.body, generated, recorded, other)

    def _add_alone(self, result: scores.Result, row: scores.Row, motion: ClipMotion, joints: F64, body: Body) -> None:
        """Add the metrics that read one motion only; `row` says whether this motion is generated or recorded."""
        placed = body.joints(motion.poses, motion.trans)
        key = result.key
        self._values("L1 diversity", row).add(key, lambda: gesture.l1_diversity(joints))
        self._values("jerk", row).add(key, lambda: gesture.jerk(placed))
        self._values("foot skate", row).add(key, lambda: gesture.foot_skate(placed))
        drift = gesture.root_drift(motion.trans)
        self._values("root drift, end", row).keep(key, ClipValue(drift.end_m, 1.0))
        self._values("root drift, farthest", row).keep(key, ClipValue(drift.farthest_m, 1.0))
        if seams := [seam for seam in result.seams if 2 <= seam <= motion.frames - 2]:
            self._values("seams, velocity", row).add(key, lambda: gesture.seam_score(placed, seams).velocity)
            self._values("seams, acceleration", row).add(key, lambda: gesture.seam_score(placed, seams).acceleration)

    def _add_recall(self, key: str, recording: _Recording, own: F64, true: F64, other: ClipMotion | None) -> None:
        settings = self._with.profile.semantic
        spans = recording.semantic
        if spans is None and settings.without_scores == "refused":
            self._values("semantic recall", "generated").leave_out("no sem annotation")
            return
        spoken = None if spans is None else gesture.semantic_scores(spans, len(own), settings)

        def recall(joints: F64) -> Any:
            frames = min(len(joints), len(own))
            return gesture.semantic_recall(
                own[:frames], joints[:frames], None if spoken is None else spoken[:frames], settings
            )

        self._values("semantic recall", "generated").add(key, lambda: recall(true))
        if other is not None:
            others = self._with.scored_joints(other, recording.body)
            self._values("semantic recall", "shuffled").add(key, lambda: recall(others))
        recorded = self._values("semantic recall", "recorded")
        if key not in recorded.keys:
            recorded.add(key, lambda: gesture.semantic_recall(true, true, spoken, settings))

    def _add_jaw_and_expressions(
        self, key: str, generated: ClipMotion, recorded: ClipMotion, other: ClipMotion | None
    ) -> None:
        for metric, (part, score) in _JAW_AND_EXPRESSIONS.items():
            if part not in generated.present or part not in recorded.present:
                self._values(metric, "generated").leave_out(_LACKING[part][part in recorded.present])
                continue
            self._values(metric, "generated").add(key, partial(score, generated, recorded))
            if other is not None and part in other.present:
                frames = min(generated.frames, other.frames)
                self._values(metric, "shuffled").add(key, partial(score, generated.cut(frames), other.cut(frames)))

    def _add_face(
        self, key: str, person: Person, generated: ClipMotion, recorded: ClipMotion, other: ClipMotion | None
    ) -> None:
        """Add the face metrics of a result, computed on the body of `person`.

        For row ``generated`` of the report, the result is compared with `recorded`. For row ``shuffled``, the result is
        compared with `other`, the motion of another recording. If `other` has the value None, the result adds no value
        to row ``shuffled``. The reason is that only one recording exists, or that the other recording has no face.
        """
        others = [recorded] if other is None else [recorded, other.cut(generated.frames)]
        rows: tuple[scores.Row, ...] = ("generated", "shuffled")
        for row, found in zip(rows, face_sums(person, generated, others), strict=False):
            self._values("face MSE", row).add(key, found.mse)
            self._values("face LVD", row).add(key, partial(found.velocity, self._with.profile.face))

    def _add_registered(
        self, key: str, body: Body, generated: ClipMotion, recorded: ClipMotion, other: ClipMotion | None
    ) -> None:
        """Add the values of registered metrics for a result; `body` determines the joint positions of all motions.

        Registered metrics are defined in scripts or in other packages. For row ``generated`` of the report, the
        result is compared with `recorded`. For row ``shuffled``, the result is compared with `other`, the motion of
        another recording. If `other` has the value None, the result adds no value to row ``shuffled``.
        """

        def clip(motion: ClipMotion) -> MotionClip:
            joints = body.joints(motion.poses, motion.trans)
            return MotionClip(motion.poses, motion.expressions, motion.trans, joints, motion.present)

        self._registered.add("generated", key, clip(generated), clip(recorded))
        if other is not None:
            frames = min(generated.frames, other.frames)
            self._registered.add("shuffled", key, clip(generated.cut(frames)), clip(other.cut(frames)))

    def figures(self) -> list[scores.Figure]:
        """Return all figures (values of metrics with intervals) in the order of the report."""
        beats = [scores.absent(_BEATS, scores.UNCONDITIONAL)] if self._unconditional else self._beats.figures(self._how)
        figures = [*self._features.figures(self._how), *beats]
        for metric, unit in _UNITS.items():
            rows = [(scores.Heading(metric, unit, row), self._scores.get((metric, row))) for row in scores.ROWS]
            there = [(heading, values) for heading, values in rows if values is not None]
            figure_of = self._seam_figure if metric.startswith("seams") else self._mean_figure
            if metric in _AGAINST_A_RECORDING and self._unconditional:
                figures.append(scores.absent(scores.Heading(metric, unit), scores.UNCONDITIONAL))
            elif not there:
                figures.append(scores.absent(scores.Heading(metric, unit), _NO_VALUES[metric]))
            else:
                figures += [figure_of(heading, values) for heading, values in there]
        return figures + self._registered.figures(self._how)

    def _mean_figure(self, heading: scores.Heading, values: scores.Values) -> scores.Figure:
        """Return the figure (value with interval) of a metric whose values are averaged with weights.

        The details of the figure are the number of vertices (face), the share of contact with the floor (foot skate),
        or the numbers of joints and of annotated results (recall). Other metrics have no details.
        """
        details: dict[str, Any] = {}
        match values.found:
            case [gesture.FaceScore() as first, *_]:
                details = {"vertices": first.vertices}
            case [gesture.RecallScore() as first, *_]:
                details = {"joints": first.joints, "annotated": sum(one.annotated for one in values.found)}
            case [gesture.SkateScore(), *_]:  # a motion that never touches the floor has no skate
                contact = sum(one.weight for one in values.found)
                details = {"contact_share": contact / sum(one.toe_frames for one in values.found)}
        return scores.figure_of_mean(heading, values, self._how, details)

    def _seam_figure(self, heading: scores.Heading, values: scores.Values) -> scores.Figure:
        """Return the figure (value with interval) for velocity or acceleration at window boundaries.

        Velocities or accelerations at boundaries are compared with those in all other frames of the clip. The value of
        the figure is the share of values at boundaries that exceed the 99th percentile of the values in other frames.
        The share is about 0.01 if boundaries are as smooth as all other frames.
        """
        counts = np.array([(int((one.at_seams > one.elsewhere).sum()), len(one.at_seams)) for one in values.found])
        details = {}
        if len(counts):
            details = {"values": int(counts[:, 1].sum()), "worst_ratio": max(one.worst_ratio for one in values.found)}

        def share(chosen: I64) -> float:
            return float(counts[chosen, 0].sum() / counts[chosen, 1].sum())

        return scores.figure_of_statistic(heading, values, share, self._how, details)


def lacking_face(generated: ClipMotion, recorded: ClipMotion) -> str | None:
    """Return the reason why a result has no face metrics, or None if it has face metrics.

    Args:
        generated: Motion of the result.
        recorded: Motion of the result's recording.

    Returns:
        The reason, for the report; None if both motions have a face.
    """
    if "face" not in recorded.present:
        return _NO_FACE
    return None if "face" in generated.present else _NO_FACE_MADE


def face_sums(person: Person, generated: ClipMotion, others: Sequence[ClipMotion]) -> list[gesture.FaceSums]:
    """Compare the face of generated motion with the faces of other motions, on one body.

    Args:
        person: Body with vertices, on which all faces are computed.
        generated: Generated motion.
        others: Motions to compare with, at most as long as `generated`. A shorter motion is compared with the first
            frames of `generated`.

    Returns:
        For each of the other motions, the sums from which the face metrics are computed.
    """
    own, *rest = (person.vertex_blocks(each.face_poses(), each.expressions) for each in (generated, *others))
    sums = [gesture.FaceSums() for _ in others]
    for block, *blocks in itertools.zip_longest(own, *rest):
        for one, other in zip(sums, blocks, strict=True):
            if other is not None:
                one.add(block[: len(other)], other)
    return sums


@dataclass(slots=True)
class BeatRows:
    """Accumulator of the beats of results and recordings, for beat consistency.

    If beats cannot be computed, for example because the audio is silent, all rows of the report leave the result out.
    """

    settings: BeatSettings
    mean_speeds_m_s: F64 | None  # (55,); None: unknown, so that no beats of motion are computed
    _rows: dict[scores.Row, scores.Values] = field(
        default_factory=lambda: {row: scores.Values() for row in scores.ROWS}
    )
    _motion: list[tuple[str, int, tuple[I64, ...]]] = field(default_factory=list)  # key, frames, beats of a result
    _audio: dict[str, tuple[int, F64]] = field(default_factory=dict)  # frames and onsets of a recording
    _without: int = 0

    def add(self, key: str, generated: F64, recorded: F64, samples: npt.NDArray[np.float32] | None) -> None:
        """Add a result.

        Args:
            key: Key of the result's recording.
            generated: Generated joint positions (T, 55, 3) in metres, for T frames.
            recorded: Recorded joint positions (T, 55, 3) in metres.
            samples: Mono audio of the recording at 16 kHz; None: the shards contain no audio of it.
        """
        if samples is None:
            self._without += 1
            return
        if self.mean_speeds_m_s is None:
            for row in scores.ROWS:
                self._rows[row].leave_out(_NO_SPEEDS)
            return
        speeds, frames = self.mean_speeds_m_s, len(generated)
        try:
            audio_frames, times = self._audio.get(key, (0, np.empty(0)))
            if audio_frames != frames:  # results of one recording usually have equal lengths, so beats are reused
                times = gesture.audio_beats(samples, frames, self.settings)
            own, true = (gesture.motion_beats(joints, speeds, self.settings) for joints in (generated, recorded))
            score, recorded_score = (gesture.beat_score(times, beats, frames, self.settings) for beats in (own, true))
        except DataError as error:
            for row in scores.ROWS:
                self._rows[row].leave_out(error)
            return
        self._rows["generated"].keep(key, score)
        self._motion.append((key, frames, own))
        if key not in self._audio:
            self._rows["recorded"].keep(key, recorded_score)
            self._audio[key] = frames, times

    def figures(self, how: scores.Resampling) -> list[scores.Figure]:
        """Return the beat consistency: one figure (value with interval) for each row of the report."""
        generated = self._rows["generated"]
        if not generated.found and not generated.left_out:
            return [scores.absent(_BEATS, _NO_AUDIO)]
        self._shuffle(how.seed)
        figures = []
        for row, values in self._rows.items():
            if self._without:
                values.left_out[_NO_AUDIO] += self._without
            if row == "shuffled" and len(self._audio) == 1:
                figures.append(scores.absent(replace(_BEATS, row=row), _ALONE))
                continue
            details = {
                "audio_beats": sum(one.audio_beats for one in values.found),
                "motion_beats": sum(one.motion_beats for one in values.found),
                "threshold": self.settings.threshold,
            }
            figures.append(scores.figure_of_mean(replace(_BEATS, row=row), values, how, details))
        return figures

    def _shuffle(self, seed: int) -> None:
        """Score every result with the audio of another recording, chosen by a random cycle through all recordings."""
        partner = scores.partners(list(self._audio), seed)
        for key, frames, beats in self._motion if partner else ():
            other_frames, times = self._audio[partner[key]]
            common = min(frames, other_frames)
            self._rows["shuffled"].add(key, partial(_common, common, times, beats, self.settings))


def _common(frames: int, times: F64, beats: tuple[I64, ...], settings: BeatSettings) -> gesture.BeatScore:
    """Return the beat score of the motion of one clip with the audio of another clip, for row ``shuffled``.

    `times` and `beats` count from the start of the cropped clip, which is `settings.crop_frames` after the start of the
    clip.

    Args:
        frames: Number of frames of the shorter clip, before the crop. Beats after the end of this clip, cropped at both
            ends, are left out.
        times: Times (B,) in seconds of the B onsets in the audio.
        beats: For each joint, frame indices (M,) of its M motion beats.
        settings: Settings of beat consistency.

    Returns:
        The beat score.

    Raises:
        DataError: The scored audio has no onset.
    """
    scored = frames - 2 * settings.crop_frames
    inside = times[times < scored / FRAME_RATE_HZ]
    if not len(inside):
        raise DataError("audio: expected an onset in the scored part of the shorter clip, found none")
    return gesture.beat_score(inside, [own[own < scored] for own in beats], frames, settings)
