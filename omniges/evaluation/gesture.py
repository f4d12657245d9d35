"""Scores of generated motion: Fréchet distance, beats, diversity, recall, face, and what needs no recording."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.evaluation.beat_alignment import BeatRows
from omniges.evaluation.body_models import Body
from omniges.evaluation.features import FeatureRows
from omniges.evaluation.motion import ClipMotion, Instruments, TrainSplit, generated_motion, recorded_motion
from omniges.evaluation.results import waveform
from omniges.evaluation.scores import UNCONDITIONAL, Recordings, Result, Scored, partners
from omniges.evaluation.statistics import (
    ROWS,
    Figure,
    Heading,
    Resampling,
    Row,
    Values,
    absent,
    figure_of_mean,
    figure_of_statistic,
)
from omniges.features.body import Person
from omniges.features.timebase import FRAME_RATE_HZ
from omniges.formats.semantic import SemanticSpan
from omniges.metrics.clips import ClipValue
from omniges.metrics.positions import (
    FaceScore,
    FaceSums,
    RecallScore,
    SkateScore,
    foot_skate,
    jerk,
    l1_diversity,
    root_drift,
    seam_score,
    semantic_recall,
    semantic_scores,
)
from omniges.shards.manifest import ManifestRow

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_UNITS: Final = {
    "L1 diversity": "m",
    "semantic recall": "",
    "face MSE": "m²",
    "face LVD": "m/frame",
    "jerk": "m/s³",
    "foot skate": "m/s",
    "root drift, end": "m",
    "root drift, farthest": "m",
    "invalid rotations": "share",
}
_AGAINST_A_RECORDING: Final = ("semantic recall", "face MSE", "face LVD")
_SEAMS: Final = {"velocity": "seams, velocity", "acceleration": "seams, acceleration"}
_NO_BODY: Final = "no vertices without a body model, give --body-model"


def score_gesture(
    results: Sequence[Result],
    shards: Recordings,
    instruments: Instruments,
    train: TrainSplit | None,
    how: Resampling,
    count: Callable[[], None],
) -> Scored:
    """Figures of a task that makes gesture, result by result. Raises DataError for files that cannot be read."""
    scorer = _Scorer(results, shards, instruments, train, how)
    for result in results:
        scorer.add(result)
        count()
    return Scored(scorer.figures(), scorer.seconds)


@dataclass(frozen=True, slots=True)
class _Recording:
    """What is needed of the recording that results are held against."""

    row: ManifestRow
    motion: ClipMotion
    betas: npt.NDArray[np.floating]
    body: Body
    person: Person | None
    samples: npt.NDArray[np.float32] | None
    semantic: tuple[SemanticSpan, ...] | None


class _Scorer:
    """Everything that is kept of results: numbers, not motion."""

    def __init__(
        self,
        results: Sequence[Result],
        shards: Recordings,
        instruments: Instruments,
        train: TrainSplit | None,
        how: Resampling,
    ) -> None:
        self._shards, self._with, self._how = shards, instruments, how
        speeds = instruments.mean_speeds_m_s
        if speeds is None and train is not None:
            speeds = train.mean_speeds_m_s
        self._beats = BeatRows(instruments.profile.beats, np.empty(0) if speeds is None else speeds)
        self._features = FeatureRows(instruments, train)
        self._scores: dict[tuple[str, Row], Values] = {}
        self._seams: dict[tuple[str, Row], Values] = {}
        self._unconditional = results[0].unconditional
        self._rows = {result.key: result.row for result in results}
        self._partners = partners(list(self._rows), how.seed)
        self._recording: _Recording | None = None
        self.seconds: dict[str, float] = {}

    def _values(self, metric: str, row: Row) -> Values:
        return self._scores.setdefault((metric, row), Values())

    def _recording_of(self, row: ManifestRow) -> _Recording:
        """A recording, read once for all results of it, which stand beside each other."""
        if self._recording is None or self._recording.row.key != row.key:
            betas = self._shards.array(row, "betas.npy")
            spans = self._shards.semantic(row)
            self._recording = _Recording(
                row=row,
                motion=recorded_motion(self._shards, row),
                betas=betas,
                body=self._with.bodies.of(betas),
                person=None if self._unconditional else self._with.bodies.person(betas),
                samples=None if self._unconditional else waveform(self._shards, row),
                semantic=None
                if spans is None
                else tuple(SemanticSpan(**span, duration=span["end"] - span["start"]) for span in spans),
            )
        return self._recording

    def add(self, result: Result) -> None:
        """One more result."""
        recording = self._recording_of(result.row)
        generated = generated_motion(result, recording.motion.frames)
        recorded = recording.motion.cut(generated.frames)
        own, true = (self._with.scored_joints(motion, recording.body) for motion in (generated, recorded))
        self.seconds[result.key] = generated.frames / FRAME_RATE_HZ
        self._features.add(result.key, (generated, own), (recorded, true))
        first = result.key not in self._values("L1 diversity", "recorded").keys
        self._add_alone(result, "generated", generated, own, recording.body)
        if first:
            self._add_alone(result, "recorded", recorded, true, recording.body)
        if result.invalid_rotations is not None:
            share = ClipValue(result.invalid_rotations, float(generated.frames))
            self._values("invalid rotations", "generated").keep(result.key, share)
        if self._unconditional:
            return
        self._beats.add(result.key, own, true, recording.samples)
        other = self._other(result)
        self._add_recall(result.key, recording, own, true, other)
        if recording.person is not None:
            self._add_face(result.key, recording.person, generated, recorded, other)

    def _other(self, result: Result) -> ClipMotion | None:
        """The motion of another recording, for the shuffled row."""
        partner = self._partners.get(result.key)
        return None if partner is None else recorded_motion(self._shards, self._rows[partner])

    def _add_alone(self, result: Result, row: Row, motion: ClipMotion, joints: F64, body: Body) -> None:
        """What motion says by itself."""
        placed = body.joints(motion.poses, motion.trans)
        key = result.key
        self._values("L1 diversity", row).add(key, lambda: l1_diversity(joints))
        self._values("jerk", row).add(key, lambda: jerk(placed))
        self._values("foot skate", row).add(key, lambda: foot_skate(placed))
        drift = root_drift(motion.trans)
        self._values("root drift, end", row).keep(key, ClipValue(drift.end_m, 1.0))
        self._values("root drift, farthest", row).keep(key, ClipValue(drift.farthest_m, 1.0))
        seams = [s for s in result.seams if 2 <= s <= motion.frames - 2]
        if seams:
            for name in _SEAMS:
                values = self._seams.setdefault((name, row), Values())
                values.add(key, lambda n=name: getattr(seam_score(placed, seams), n))  # type: ignore[misc]

    def _add_recall(self, key: str, recording: _Recording, own: F64, true: F64, other: ClipMotion | None) -> None:
        settings = self._with.profile.semantic
        spans = recording.semantic
        if spans is None and settings.without_scores == "refused":
            self._values("semantic recall", "generated").leave_out("no sem annotation")
            return
        scores = None if spans is None else semantic_scores(spans, len(own), settings)

        def recall(joints: F64) -> Any:
            frames = min(len(joints), len(own))
            return semantic_recall(own[:frames], joints[:frames], None if scores is None else scores[:frames], settings)

        self._values("semantic recall", "generated").add(key, lambda: recall(true))
        if other is not None:
            others = self._with.scored_joints(other, recording.body)
            self._values("semantic recall", "shuffled").add(key, lambda: recall(others))
        recorded = self._values("semantic recall", "recorded")
        if key not in recorded.keys:
            recorded.add(key, lambda: semantic_recall(true, true, scores, settings))

    def _add_face(
        self, key: str, person: Person, generated: ClipMotion, recorded: ClipMotion, other: ClipMotion | None
    ) -> None:
        """Face vertices block by block; another recording's face is that of this person."""
        motions = [generated, recorded, *([] if other is None else [other.cut(generated.frames)])]
        blocks = [person.vertex_blocks(motion.face_poses(), motion.expressions) for motion in motions]
        sums, shuffled = FaceSums(), FaceSums()
        for own, true, *rest in itertools.zip_longest(*blocks):
            sums.add(own, true)
            if rest and rest[0] is not None:
                shuffled.add(own[: len(rest[0])], rest[0])
        for row, found in (("generated", sums), ("shuffled", shuffled)):
            if row == "shuffled" and other is None:
                continue
            place: Any = row
            self._values("face MSE", place).add(key, found.mse)
            self._values("face LVD", place).add(key, lambda f=found: f.velocity(self._with.profile.face))  # type: ignore[misc]

    def figures(self) -> list[Figure]:
        """All of them, in the order of the report."""
        figures = self._features.figures(self._how)
        if self._unconditional:
            figures += [absent(Heading("beat consistency", ""), UNCONDITIONAL)]
        else:
            figures += self._beats.figures(self._how)
        for metric, unit in _UNITS.items():
            figures += self._figures_of(metric, unit)
        return figures + self._seam_figures()

    def _figures_of(self, metric: str, unit: str) -> list[Figure]:
        """The rows of a metric that there are."""
        if metric in _AGAINST_A_RECORDING and self._unconditional:
            return [absent(Heading(metric, unit), UNCONDITIONAL)]
        rows = [(row, self._scores[metric, row]) for row in ROWS if (metric, row) in self._scores]
        if not rows:
            why = _NO_BODY if metric.startswith("face") else "no record says how the model's own rotations were"
            return [absent(Heading(metric, unit), why)]
        return [figure_of_mean(Heading(metric, unit, row), values, self._how, _details(values)) for row, values in rows]

    def _seam_figures(self) -> list[Figure]:
        """Those of `_seam_figure`, of what was generated and of the recordings at the same moments."""
        figures = []
        for name, metric in _SEAMS.items():
            rows = [(row, self._seams[name, row]) for row in ROWS if (name, row) in self._seams]
            if not rows:
                figures.append(absent(Heading(metric, "share"), "no result was put together from windows"))
            figures += [self._seam_figure(Heading(metric, "share", row), values) for row, values in rows]
        return figures

    def _seam_figure(self, heading: Heading, values: Values) -> Figure:
        """Share of values at seams above the 99th percentile of elsewhere in their clip; 0.01 is expected."""
        counts = np.array([(int((one.at_seams > one.elsewhere).sum()), len(one.at_seams)) for one in values.found])
        details = {}
        if len(counts):
            details = {"values": int(counts[:, 1].sum()), "worst_ratio": max(one.worst_ratio for one in values.found)}

        def share(chosen: I64) -> float:
            return float(counts[chosen, 0].sum() / counts[chosen, 1].sum())

        return figure_of_statistic(heading, values, share, self._how, details)


def _details(values: Values) -> dict[str, Any]:
    """What some metrics say beside their values."""
    found = values.found[0] if values.found else None
    if isinstance(found, FaceScore):
        return {"vertices": found.vertices}
    if isinstance(found, RecallScore):
        return {"joints": found.joints, "annotated": sum(one.annotated for one in values.found)}
    if isinstance(found, SkateScore):  # one that never touches the floor cannot skate on it
        contact = sum(one.weight for one in values.found)
        return {"contact_share": contact / sum(one.toe_frames for one in values.found)}
    return {}
