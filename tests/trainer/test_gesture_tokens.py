"""Runs with gesture tokens of splines, and runs from before them, which continue and give what they gave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training_helpers import SMALLEST, TOKEN_WIDTHS, checkpoint_of, learned, run, settings_of

from omniges.errors import DataError, UsageFault
from omniges.generation.sampler import load
from omniges.model.checkpoint import CHECKPOINT_FILE
from omniges.model.gesture import SplineTokens
from omniges.shards.dataset import seal
from omniges.storage.files import canonical_json, sha256_hex
from omniges.trainer.config import differences

MODEL = SMALLEST | TOKEN_WIDTHS


def rewrite(checkpoint: Path, name: str, document: object) -> None:
    """Put another document into a checkpoint, with its index."""
    data = canonical_json(document)
    (checkpoint / name).write_bytes(data)
    index = json.loads((checkpoint / CHECKPOINT_FILE).read_bytes())
    index["files"][name] = {"bytes": len(data), "sha256": sha256_hex(data)}
    del index["checksum"]
    (checkpoint / CHECKPOINT_FILE).write_bytes(seal(index))


def make_older(checkpoint: Path) -> None:
    """Take away what checkpoints from before splines do not have."""
    config = json.loads((checkpoint / "config.json").read_bytes())
    assert config["model"].pop("gesture_tokens") == "frames"
    config["model"].pop("gesture_feet_weight")
    rewrite(checkpoint, "config.json", config)


def test_new_runs_have_splines(shards: Path, tmp_path: Path) -> None:
    run(shards, tmp_path / "run", max_train_steps=1)
    loaded = load(tmp_path / "run")
    assert loaded.identity.config.gesture_tokens == "splines"
    assert isinstance(loaded.model.stream("gesture"), SplineTokens)


def test_resuming_with_the_same_settings_reports_no_other_settings(shards: Path, tmp_path: Path) -> None:
    """The message named gesture_tokens at each resume, though nobody had changed it."""
    for steps in (2, 4):
        run(shards, tmp_path, max_train_steps=steps)
    first, second = (json.loads((checkpoint_of(tmp_path, k) / "settings.json").read_bytes()) for k in (2, 4))
    assert differences(first, second) == ["--max-train-steps was 2, is 4"]


def test_latents_of_gesture_have_no_splines(tmp_path: Path) -> None:
    settings = settings_of("shards", tmp_path, gesture_codec="gesture-rvqvae")
    assert settings.model_config().gesture_tokens == "frames"
    for key in ("gesture_tokens", "gesture_feet_weight"):
        with pytest.raises(UsageFault, match=f"model.{key}: expected gesture as frames"):
            settings_of("shards", tmp_path, gesture_codec="gesture-rvqvae", model={key: 1})


def test_a_run_from_before_splines_continues_as_it_was(shards: Path, tmp_path: Path) -> None:
    older = {"model": MODEL | {"gesture_tokens": "frames"}}
    run(shards, tmp_path / "whole", max_train_steps=4, **older)
    run(shards, tmp_path / "two", max_train_steps=2, **older)
    make_older(checkpoint_of(tmp_path / "two", 2))
    assert load(tmp_path / "two").identity.config == load(tmp_path / "whole").identity.config
    with pytest.raises(UsageFault, match="gesture_tokens: frames in the checkpoint, splines in this run"):
        run(shards, tmp_path / "two", max_train_steps=4, model=MODEL | {"gesture_tokens": "splines"})
    run(shards, tmp_path / "two", max_train_steps=4)
    assert learned(tmp_path / "two", 4) == learned(tmp_path / "whole", 4)


def test_a_damaged_newest_checkpoint_does_not_decide_the_tokens(shards: Path, tmp_path: Path) -> None:
    older = {"model": MODEL | {"gesture_tokens": "frames"}, "checkpointing_steps": 2}
    run(shards, tmp_path / "whole", max_train_steps=4, **older)
    run(shards, tmp_path / "cut", max_train_steps=4, **older)
    rewrite(checkpoint_of(tmp_path / "cut", 4), "config.json", {"model": []})
    run(shards, tmp_path / "cut", max_train_steps=4, checkpointing_steps=2)
    assert learned(tmp_path / "cut", 4) == learned(tmp_path / "whole", 4)


def test_splines_without_statistics_of_differences_are_refused(shards: Path, tmp_path: Path) -> None:
    run(shards, tmp_path / "run", max_train_steps=1)
    place = checkpoint_of(tmp_path / "run", 1)
    statistics = json.loads((place / "stats.json").read_bytes())
    statistics["jaw_eyes"]["difference_std"][0] = "fast"
    rewrite(place, "stats.json", statistics)
    with pytest.raises(DataError, match=r"jaw_eyes\.difference_std: expected 9 numbers of at least 0"):
        load(tmp_path / "run")
