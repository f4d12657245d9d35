"""Faces that were never recorded, or that a model never learned, are not scored, and the report counts them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from body_builders import body_file
from evaluate_builders import put, scored
from sample_set_builders import take, write_takes

from omniges.formats.npz import encode_motion
from omniges.metrics.registry import METRICS, Metric, MotionClip, register_metric
from omniges.registry import Registry

KEYS = ("1_a_0_1_1", "1_a_0_2_2", "2_b_0_3_3")
LEARNED = "no face in the result"


@pytest.fixture(autouse=True)
def seen(monkeypatch: pytest.MonkeyPatch) -> list[MotionClip]:
    """The recorded clips that a metric which needs a face gets."""
    monkeypatch.setattr("omniges.metrics.registry.METRICS", Registry("metric", METRICS.group, Metric))
    clips: list[MotionClip] = []

    def off(generated: MotionClip, recorded: MotionClip) -> float:
        clips.append(recorded)
        return float(np.abs(generated.expressions - recorded.expressions).mean())

    register_metric(Metric(label="face off", stream="gesture", of=off, needs=("face",)))
    register_metric(Metric(label="jaw off", stream="gesture", of=off, needs=("jaw_eyes",)))
    return clips


def test_the_face_of_no_recording_or_no_training_is_left_out_with_the_reason(
    tmp_path: Path, seen: list[MotionClip]
) -> None:
    takes = [take(key, 4.0, lacking=("face",) if key == KEYS[1] else ()) for key in KEYS]
    shards = write_takes(tmp_path / "s", takes)
    for one in takes:
        moved = one.motion
        assert moved is not None
        data = encode_motion(moved.poses, np.ones((120, 100)), moved.trans, moved.betas, gender="", model="")
        absent = {KEYS[2]: ("face",)}.get(one.key, ())
        put(tmp_path / "own", shards, one.key, "a2g", {".npz": data}, absent=absent)
    (tmp_path / "SMPLX_MADE_UP.npz").write_bytes(body_file(6))
    found = scored(tmp_path / "own", shards, body_model=tmp_path / "SMPLX_MADE_UP.npz")
    for metric in ("face MSE", "face LVD"):
        figure = found[metric, "generated"]
        assert figure.by_recording.keys() == {KEYS[0]}
        assert figure.left_out == {"no face in the recording": 1, LEARNED: 1}
    assert found["face off", "generated"].by_recording.keys() == {KEYS[0]}
    assert found["face off", "generated"].left_out == {"no face in the recording": 1, "no face in the result": 1}
    assert found["face off", "recorded"].by_recording.keys() == {KEYS[0], KEYS[2]}
    assert found["jaw off", "generated"].value is None
    assert found["jaw off", "generated"].left_out == {"no jaw_eyes in the result": 3}
    assert all(np.isfinite(clip.expressions).all() for clip in seen)
    assert found["jerk", "generated"].results == 3


MADE = {"model": {"gesture_channels": 424}}


def test_the_jaw_is_scored_where_recording_and_model_have_one(tmp_path: Path) -> None:
    """A record without the number of channels is of a model with 415."""
    takes = [take(key, 4.0, lacking=("jaw_eyes",) if key == KEYS[1] else ()) for key in KEYS]
    shards = write_takes(tmp_path / "s", takes)
    for one in takes:
        moved = one.motion
        assert moved is not None
        poses = np.nan_to_num(moved.poses)
        poses[:, 66:69] *= 0.5
        data = encode_motion(poses, moved.expressions, moved.trans, moved.betas, gender="", model="")
        put(tmp_path / "own", shards, one.key, "a2g", {".npz": data}, **({} if one.key == KEYS[2] else MADE))
    found = scored(tmp_path / "own", shards)
    for metric in ("jaw rotation error", "jaw correlation"):
        figure = found[metric, "generated"]
        assert figure.by_recording.keys() == {KEYS[0]}
        assert figure.left_out == {"no jaw in the recording": 1, "no jaw in the result": 1}
    jaw = takes[0].motion.poses[:, 66:69]  # type: ignore[union-attr]
    expected = np.linalg.norm(jaw, axis=1).mean() / 2
    assert found["jaw rotation error", "generated"].value == pytest.approx(expected, rel=1e-4)
    assert found["jaw correlation", "generated"].value > 0.99
    expressions = found["expression correlation", "generated"]
    assert expressions.by_recording == pytest.approx(dict.fromkeys(KEYS, 1.0))
