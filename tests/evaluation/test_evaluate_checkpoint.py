"""`evaluate --checkpoint` as design's table has it: generates, scores, and says where model and shards do not fit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from evaluate_builders import shards_of
from pipeline_helpers import run_preprocess, scripted
from training_helpers import run

from omniges import cli
from omniges.errors import UsageFault
from omniges.evaluation.report import Report
from omniges.evaluation.run import evaluate, require_fit
from omniges.evaluation.settings import EvaluateSettings
from omniges.model.checkpoint import find_checkpoint
from omniges.pipeline.settings import Selection
from omniges.shards.reader import ShardFolder


@pytest.fixture(scope="module")
def checkpoint(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps of the smallest model: it has learned nothing, which is not what is tried here."""
    folder = tmp_path_factory.mktemp("evaluate-run") / "run"
    run(shards, folder, max_train_steps=2)
    return folder


def scored(checkpoint: Path, shards: Path, **changes: Any) -> Report:
    return evaluate(
        EvaluateSettings(checkpoint=checkpoint, num_inference_steps=2, shards=shards, resamples=20, **changes)
    )


BARE_ENVIRONMENT = """
import os, sys, tempfile
os.environ.clear()
os.environ.update(TMPDIR=sys.argv.pop(1), PATH="/usr/bin:/bin")
tempfile.tempdir = None  # what was found before TMPDIR was another
from omniges.cli import main
main()
"""


@pytest.mark.slow
def test_the_command_of_the_design(checkpoint: Path, shards: Path, tmp_path: Path) -> None:
    """No folder is needed and none is left behind."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    words = ["evaluate", "--checkpoint", checkpoint, "--shards", shards, "--steps", "2", "-o", tmp_path / "table.txt"]
    done = scripted(BARE_ENVIRONMENT, temporary, *words)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    table = (tmp_path / "table.txt").read_text("utf-8")
    for task in ("t2g", "a2g", "t2a", "g2a", "g2t", "a2t"):
        assert f"{task}: 1 of 1 test recordings, 4.0 of 4.0 s" in table
    assert not list(temporary.glob("omniges-*"))


def test_work_is_kept_and_can_be_scored_again(checkpoint: Path, shards: Path, tmp_path: Path) -> None:
    first = scored(checkpoint, shards, tasks=("a2t", "at2g"), work_dir=tmp_path / "work", num_samples=2)
    assert list(first.tasks) == ["a2t", "ta2g"]
    assert {task.results for task in first.tasks.values()} == {2}
    again = evaluate(EvaluateSettings(generated=(tmp_path / "work",), shards=shards, resamples=20))
    assert {name: task.figures for name, task in again.tasks.items()} == {
        name: task.figures for name, task in first.tasks.items()
    }
    assert first.tasks["a2t"].made_by["model"]["step"] == 2  # type: ignore[index]
    with pytest.raises(UsageFault, match=r"expected no results, found some in .*; score them with omniges evaluate"):
        scored(checkpoint, shards, tasks=("a2t",), work_dir=tmp_path / "work")


@pytest.mark.slow
def test_shards_without_a_train_split_are_refused_before_anything_is_generated(
    checkpoint: Path, corpus: Path, tmp_path: Path
) -> None:
    run_preprocess(corpus, tmp_path / "shards", selection=Selection(splits=("test",)))
    with pytest.raises(UsageFault, match=r"a train split, whose mean speeds .* give --mean-speeds FILE"):
        scored(checkpoint, tmp_path / "shards", tasks=("a2g",), work_dir=tmp_path / "work")
    assert not (tmp_path / "work").exists()


def test_everything_is_checked_before_anything_is_generated(checkpoint: Path, shards: Path, tmp_path: Path) -> None:
    source = {"checkpoint": checkpoint, "work_dir": tmp_path / "work"}
    for changes, words in (
        ({"profile": "emage-2024"}, "expected --body-model"),
        ({"mean_speeds": tmp_path / "none.npy"}, "--mean-speeds"),
        ({"body_model": tmp_path / "none.npz"}, "--body-model"),
        ({"gesture_encoder": tmp_path / "none.safetensors"}, "the file does not exist"),
    ):
        with pytest.raises(UsageFault, match=words):
            evaluate(EvaluateSettings(**source, shards=shards, **changes))
    for changes, words in (
        ({"split": "additional"}, "expected samples of it in .*, found none; choose among test, train, val"),
        ({"split": "tests"}, "one of"),
        ({"tasks": ("a2b",)}, "expected one of"),
    ):
        with pytest.raises(UsageFault, match=words):
            scored(checkpoint, shards, work_dir=tmp_path / "work", **changes)
    assert not (tmp_path / "work").exists()


def test_folders_or_a_checkpoint_and_not_both(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match="found neither"):
        EvaluateSettings(shards=shards)
    with pytest.raises(UsageFault, match="found both"):
        EvaluateSettings(shards=shards, generated=(tmp_path,), checkpoint=tmp_path)


class TestFit:
    def test_a_split_it_was_not_trained_on_have_no_warning(self, checkpoint: Path, shards: Path) -> None:
        saved = find_checkpoint(checkpoint)
        assert require_fit(saved, ShardFolder(shards), "test", ()) == (("t2g", "a2g", "t2a", "g2a", "g2t", "a2t"), [])

    def test_clips_it_was_trained_on(self, checkpoint: Path, shards: Path) -> None:
        _, warnings = require_fit(find_checkpoint(checkpoint), ShardFolder(shards), "train", ())
        assert warnings == ["the model was trained on these clips, the train split"]

    @pytest.mark.slow
    def test_other_shards(self, checkpoint: Path, tmp_path: Path) -> None:
        others = ShardFolder(shards_of(tmp_path, keep_audio=False))
        _, warnings = require_fit(find_checkpoint(checkpoint), others, "test", ())
        assert "was trained on other shards than" in warnings[0]

    def test_shards_to_which_latents_were_added_are_the_same(
        self, checkpoint: Path, shards: Path, vae: Path, tmp_path: Path
    ) -> None:
        from latent_builders import AUDIO, encoded_shards

        encoded = ShardFolder(encoded_shards(shards, tmp_path / "encoded", {AUDIO: vae}))
        assert encoded.dataset["manifest_hash"] != ShardFolder(shards).dataset["manifest_hash"]
        saved = find_checkpoint(checkpoint)
        assert require_fit(saved, encoded, "test", ())[1] == []
        _, warnings = require_fit(saved, encoded, "train", ())
        assert warnings == ["the model was trained on these clips, the train split"]

    def test_shards_without_the_latents_it_was_trained_on_are_others(
        self, encoded: Path, shards: Path, tmp_path: Path
    ) -> None:
        from latent_builders import AUDIO

        run(encoded, tmp_path / "run", audio_codec=AUDIO, max_train_steps=1)
        saved = find_checkpoint(tmp_path / "run")
        assert require_fit(saved, ShardFolder(encoded), "test", ())[1] == []
        assert "was trained on other shards than" in require_fit(saved, ShardFolder(shards), "test", ())[1][0]

    def test_tasks_it_was_not_trained_on(self, shards: Path, tmp_path: Path) -> None:
        run(shards, tmp_path / "run", max_train_steps=1, flow={"shares": {"a2g": 1.0, "t2g": 1.0}})
        saved, folder = find_checkpoint(tmp_path / "run"), ShardFolder(shards)
        tasks, warnings = require_fit(saved, folder, "test", ())
        assert tasks == ("t2g", "a2g")
        assert warnings == ["not generated, because the model was not trained on them: t2a, g2a, g2t, a2t"]
        with pytest.raises(UsageFault, match=r"--tasks a2t: .* was trained \(a2g, t2g\), found another task"):
            require_fit(saved, folder, "test", ("a2t",))

    def test_a_speaker_it_does_not_know(self, checkpoint: Path, shards: Path, tmp_path: Path) -> None:
        saved = find_checkpoint(checkpoint)
        known = json.loads((saved.path / "config.json").read_text("utf-8"))["speakers"]
        folder = ShardFolder(shards)
        stranger = {row.speaker for row in folder.rows if row.split == "test"} - set(known)
        _, warnings = require_fit(saved, folder, "test", ())
        assert any("generated as unknown" in warning for warning in warnings) == bool(stranger)


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["nowhere"], 2, "expected a folder of generated results, found none there"),
        ([], 2, "expected folders of generated results, or --checkpoint to generate some, found neither"),
        (["--checkpoint", "nowhere"], 2, "nowhere: expected a checkpoint or the folder of a run"),
        (
            ["--checkpoint", "run", "--task", "a2g"],
            2,
            "--task a2g: expected files without records, found --checkpoint; give --tasks a2g",
        ),
        (["nowhere", "--num-samples", "2"], 2, "--num-samples: expected only with --checkpoint"),
        (["nowhere", "--split", "val"], 2, "--split: expected only with --checkpoint"),
        (["nowhere", "-o", "absent/report.json"], 2, "expected the folder absent, found none"),
    ],
)
def test_the_command_says_one_line(
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    line: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "raise_on", lambda *_: None)  # this process keeps its own handling of Ctrl-C
    monkeypatch.setattr(sys, "argv", ["omniges", "evaluate", *words, "--shards", str(shards)])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == code
    said = capsys.readouterr().err.strip()
    assert line in said
    assert len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
