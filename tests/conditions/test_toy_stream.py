"""A stream of another package trains, generates and is evaluated by the commands, with no file of omniges changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from stream_builders import TOY, install_toy
from training_helpers import SMALLEST, TOKEN_WIDTHS

from omniges.shards.reader import ShardFolder


def test_the_toy_is_short() -> None:
    assert len((TOY / "toy_stream.py").read_text().splitlines()) <= 80


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_commands_take_it(shards: Path, tmp_path: Path) -> None:
    """Workers load it too; a person's value, a recording's own and none make three different results."""
    installed = install_toy(tmp_path / "installed")
    paths = [str(installed), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}

    def omniges(*words: object) -> str:
        command = [sys.executable, "-m", "omniges.cli", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    recipe = tmp_path / "recipe.yaml"
    sizes = SMALLEST | TOKEN_WIDTHS
    lines = "".join(f"  {name}: {value}\n" for name, value in sizes.items())
    recipe.write_text(f"condition_streams: [loudness, emotion]\nwindow_ticks: 16\nmodel:\n{lines}")
    run = tmp_path / "run"
    omniges(
        *("train", "--recipe", recipe, "--shards", shards, "--output-dir", run, "--num-workers", 1),
        *("--train-batch-size", 4, "--max-train-steps", 4, "--learning-rate", 0.05, "--lr-warmup-steps", 1),
        *("--validation-steps", 0),
    )
    config = json.loads((run / "checkpoints" / "step-000004" / "config.json").read_text())
    assert config["conditions"]["loudness"]["class"] == "toy_stream:Loudness"
    row = next(row for row in ShardFolder(shards).rows if row.split == "test")

    def made(name: str, *words: object) -> tuple[bytes, object]:
        out = tmp_path / name
        omniges(
            *("generate", "--checkpoint", run, "--task", "t2g", "--shards", shards, "--key", row.key, "-o", out),
            *("--steps", 2, "--weights", "last", *words),
        )
        record = json.loads((out / f"{row.key}.json").read_text())
        return (out / f"{row.key}.npz").read_bytes(), record["settings"]["conditions"]["loudness"]

    own, without, loud = (
        made("own"),
        made("none", "--condition", "loudness=none"),
        made("l", "--condition", "loudness=9"),
    )
    assert without[1] is None
    assert loud[1] == 9
    assert len({own[0], without[0], loud[0]}) == 3
    mel = ShardFolder(shards).sample(row).mel
    stats = json.loads((shards / "stats.json").read_text())["mel"]
    assert isinstance(own[1], list)
    expected = (mel[:160].mean(dtype=np.float64) - np.mean(stats["mean"])) / np.mean(stats["std"])
    assert own[1][0] == pytest.approx(expected, abs=1e-4)
    table = omniges(
        *("evaluate", "--checkpoint", run, "--shards", shards, "--tasks", "t2g", "--steps", 2, "--resamples", 10),
        *("--format", "json"),
    )
    assert json.loads(table)["tasks"]["t2g"]["results"] == 1
