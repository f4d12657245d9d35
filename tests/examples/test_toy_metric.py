"""A metric of another package stands in every form of evaluate's report and in validation."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from evaluate_builders import write
from pipeline_helpers import omniges
from plugin_builders import install
from training_helpers import last_validation, run

from omniges.formats.npz import decode_motion, encode_motion
from omniges.pipeline.export import motion_file
from omniges.shards.reader import SampleArrays

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
POINT = {"omniges.metrics": {"hand_speed_ratio": "toy_metric:HAND_SPEED_RATIO"}}


def test_the_command_shows_it(shards: Path, tmp_path: Path) -> None:
    """The motion of one recording as it is and that of another standing still: ratios 1 and 0, their mean 0.5."""
    seen = 0

    def motion(sample: SampleArrays) -> bytes:
        nonlocal seen
        found = decode_motion(motion_file(sample))
        seen += 1
        poses, trans = (
            array if seen == 1 else np.repeat(array[:1], len(array), axis=0) for array in (found.poses, found.trans)
        )
        return encode_motion(poses, found.expressions, trans, found.betas, gender=found.gender, model=found.model)

    write(tmp_path / "own", shards, motion, ".npz")
    for path in sorted((tmp_path / "own").iterdir())[2:]:
        path.unlink()
    site = install(tmp_path / "site", POINT)
    path = os.pathsep.join([str(site), str(EXAMPLES), os.environ.get("PYTHONPATH", "")])
    words = ("evaluate", tmp_path / "own", "--shards", shards, "--task", "a2g", "--resamples", 20, "--format")
    done = omniges(*words, "json", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["tasks"]["a2g"]["figures"]
    found = {one["row"]: one for one in figures if one["metric"] == "hand speed ratio"}
    assert sorted(found["generated"]["by_recording"].values()) == pytest.approx([0.0, 1.0], abs=1e-3)
    assert found["generated"]["value"] == pytest.approx(0.5, abs=1e-3)
    assert found["recorded"]["value"] == 1.0
    assert found["shuffled"]["results"] == 2
    table = omniges(*words, "table", PYTHONPATH=path).stdout
    assert re.search(r"^hand speed ratio +0\.5 \[", table, re.MULTILINE), table


def test_validation_logs_it(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.syspath_prepend(install(tmp_path / "site", POINT))
    few = {"validation_windows": 1, "validation_samples": 0, "validation_sampling_steps": 1}
    run(shards, tmp_path / "run", max_train_steps=1, validation_steps=1, **few)
    event = last_validation(tmp_path / "run")
    for task in ("t2g", "a2g"):
        told = event["metrics"][task] | event["not_computed"][task]
        assert "hand_speed_ratio" in told or "gesture_metrics" in told  # early on, no rotation can be made of it
    assert "hand_speed_ratio" not in event["metrics"]["g2t"]
