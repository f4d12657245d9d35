"""A metric of another package stands in evaluate's report and in validation."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from pipeline_helpers import omniges
from plugin_builders import install
from training_helpers import last_validation, run

from omniges.formats.npz import decode_motion, encode_motion
from omniges.pipeline.export import motion_file
from omniges.shards.reader import ShardFolder

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
POINT = {"omniges.metrics": {"hand_speed_ratio": "toy_metric:HAND_SPEED_RATIO"}}


def test_the_command_shows_it(shards: Path, tmp_path: Path) -> None:
    """The motion of one recording as it is and that of another standing still: ratios 1 and 0, their mean 0.5."""
    (tmp_path / "own").mkdir()
    folder = ShardFolder(shards)
    for row, still in zip(folder.rows[:2], (False, True), strict=True):
        found = decode_motion(motion_file(folder.sample(row)))
        poses, trans = (
            np.repeat(array[:1], len(array), axis=0) if still else array for array in (found.poses, found.trans)
        )
        data = encode_motion(poses, found.expressions, trans, found.betas, gender=found.gender, model=found.model)
        (tmp_path / "own" / f"{row.key}.npz").write_bytes(data)
    site = install(tmp_path / "site", POINT)
    path = os.pathsep.join([str(site), str(EXAMPLES), os.environ.get("PYTHONPATH", "")])
    words = ("evaluate", tmp_path / "own", "--shards", shards, "--task", "a2g", "--resamples", 20, "--format", "json")
    done = omniges(*words, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["tasks"]["a2g"]["figures"]
    found = {one["row"]: one for one in figures if one["metric"] == "hand speed ratio"}
    assert sorted(found["generated"]["by_recording"].values()) == pytest.approx([0.0, 1.0], abs=1e-3)
    assert found["generated"]["value"] == pytest.approx(0.5, abs=1e-3)
    assert found["recorded"]["value"] == 1.0
    assert found["shuffled"]["results"] == 2


def test_validation_logs_it(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.syspath_prepend(install(tmp_path / "site", POINT))
    few = {"validation_windows": 1, "validation_samples": 0, "validation_sampling_steps": 1}
    run(shards, tmp_path / "run", max_train_steps=1, validation_steps=1, **few)
    event = last_validation(tmp_path / "run")
    for task in ("t2g", "a2g"):
        names = event["metrics"][task] | event["not_computed"][task]
        assert "hand_speed_ratio" in names or "gesture_metrics" in names  # early on, it contains no valid rotation
    assert "hand_speed_ratio" not in event["metrics"]["g2t"]
