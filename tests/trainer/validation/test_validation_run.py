"""Validation changes no bit of training, works on held-out recordings alone, and keeps the best checkpoint."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omniflow_checkpoints import Tiny, write_folder
from pipeline_helpers import run_preprocess
from training_helpers import Collected, SignalAt, Trained, checkpoint_of, learned, log_of, require_same_learning, run

from omniges.errors import DataError, EnvironmentFault, ExitCode, UsageFault
from omniges.formats.arrays import decode_npy
from omniges.formats.audio import decode_wav
from omniges.formats.npz import decode_motion
from omniges.formats.textgrid import decode_words
from omniges.generation.records import read_record
from omniges.generation.run import generate
from omniges.generation.settings import GenerateSettings, Sources
from omniges.generation.vocoder import GriffinLim, waveform_from_mel
from omniges.model.checkpoint import CHECKPOINTS, find_checkpoint
from omniges.model.tasks import SIX, TASKS, SamplingSettings
from omniges.pipeline.settings import Selection
from omniges.shards.reader import ShardFolder
from omniges.trainer import train as train_module
from omniges.trainer.validation import run as run_module
from omniges.trainer.validation import validator as validator_module
from omniges.trainer.validation.run import LEVELS, ValidationResult
from omniges.trainer.validation.samples import VALIDATION_SEED

VALIDATED = {"validation_steps": 2, "validation_windows": 3, "validation_samples": 1, "validation_sampling_steps": 2}
BARE = {**VALIDATED, "validation_windows": 1, "validation_samples": 0, "validation_sampling_steps": 1}


@pytest.fixture(scope="module")
def plain(shards: Path, trained: Trained) -> Path:
    """Six steps without validation."""
    return trained(shards)


@pytest.fixture(scope="module")
def validated(shards: Path, trained: Trained) -> Path:
    """The same with three validations."""
    return trained(shards, **VALIDATED)


@pytest.fixture(scope="module")
def bare(shards: Path, trained: Trained) -> Path:
    """The same with three validations of one window, of which nothing is kept."""
    return trained(shards, **BARE)


def figures_of(run_folder: Path) -> dict[int, dict[str, Any]]:
    """Return the figures of validations by step, without seconds."""
    names = ("loss", "losses", "metrics", "recorded", "shuffled", "not_computed", "best")
    return {event["step"]: {name: event[name] for name in names} for event in log_of(run_folder, "validation")}


class TestTrainingIsUntouched:
    @pytest.mark.slow
    def test_weights_average_optimizer_and_losses_are_equal_to_the_last_bit(self, plain: Path, validated: Path) -> None:
        require_same_learning(validated, plain)

    def test_nor_do_validations_differ_by_what_they_score_and_keep(self, bare: Path, plain: Path) -> None:
        require_same_learning(bare, plain)

    @pytest.mark.slow
    def test_with_bf16_too(self, shards: Path, tmp_path: Path) -> None:
        for name, changes in (("plain", {}), ("validated", BARE)):
            run(shards, tmp_path / name, mixed_precision="bf16", max_train_steps=4, **changes)
        assert learned(tmp_path / "validated", 4) == learned(tmp_path / "plain", 4)

    @pytest.mark.slow
    @pytest.mark.parametrize("k", [2, 3])
    def test_stopped_and_resumed_with_the_same_figures(self, k: int, shards: Path, tmp_path: Path, bare: Path) -> None:
        run(shards, tmp_path, **BARE, max_train_steps=k)
        run(shards, tmp_path, **BARE)
        require_same_learning(tmp_path, bare)
        found = figures_of(tmp_path)
        found.pop(3, None)  # the first start's last step
        assert found == figures_of(bare)


class TestTrainedTasks:
    """Tasks without a share are not validated, and do not decide which checkpoint is best."""

    def test_others_are_neither_computed_nor_counted(self, shards: Path, tmp_path: Path) -> None:
        run(shards, tmp_path, **BARE | {"flow": {"shares": {"a2g": 1, "t2a": 2, "joint": 1}}, "max_train_steps": 2})
        event = log_of(tmp_path, "validation")[-1]
        assert list(event["losses"]) == ["a2g", "t2a"]
        assert event["loss"] == pytest.approx(np.mean([table["loss"] for table in event["losses"].values()]))
        for part in ("metrics", "recorded", "shuffled", "not_computed"):
            assert set(event[part]) == {"a2g", "t2a"}

    def test_a_best_of_other_tasks_is_no_longer_the_best(self, shards: Path, tmp_path: Path) -> None:
        run(shards, tmp_path, **BARE | {"flow": {"shares": {"a2g": 1}}, "max_train_steps": 2})
        assert (tmp_path / "best").is_symlink()
        run(shards, tmp_path, **BARE | {"flow": {"shares": {"t2g": 1}}, "max_train_steps": 4})
        assert any("mean of other tasks" in warning for warning in log_of(tmp_path, "start")[-1]["remarks"])
        assert log_of(tmp_path, "validation")[-1]["best"]["step"] == 4

    @pytest.mark.parametrize("name", ["t2g/loss", "t2g/frechet_gesture_distance"])
    def test_a_metric_of_an_untrained_task_is_refused(self, name: str, shards: Path, tmp_path: Path) -> None:
        with pytest.raises(
            UsageFault, match=f"--best-metric {name}: expected loss, or a metric of a trained task .a2g."
        ):
            run(shards, tmp_path, **BARE | {"flow": {"shares": {"a2g": 1}}, "best_metric": name})

    def test_without_any_of_the_six_there_is_no_validation(self, shards: Path, tmp_path: Path) -> None:
        joint = {"flow": {"shares": {"joint": 1}}, "max_train_steps": 2}
        with pytest.raises(UsageFault, match=r"flow\.shares: .*--validation-steps 0"):
            run(shards, tmp_path, **BARE | joint)
        run(shards, tmp_path, **BARE | joint | {"validation_steps": None})
        assert log_of(tmp_path, "validation") == []


class TestWhatIsFound:
    def test_every_so_many_steps_all_tasks_and_levels(self, validated: Path) -> None:
        events = log_of(validated, "validation")
        assert [event["step"] for event in events] == [2, 4, 6]
        for event in events:
            assert list(event["losses"]) == list(SIX)
            for table in event["losses"].values():
                assert [float(level) for level in table["levels"]] == list(LEVELS)
            assert event["loss"] == pytest.approx(np.mean([table["loss"] for table in event["losses"].values()]))
            assert event["best_metric"] == {"name": "loss", "value": event["loss"]}
            assert event["seconds"] > 0
            assert 0 < event["share_of_time"] < 1
            for task, wanted in (
                ("t2g", "frechet_gesture_distance"),
                ("g2a", "log_mel_l1"),
                ("a2t", "word_error_rate"),
            ):
                assert event["metrics"][task][wanted] >= 0
            named = {name for part in ("metrics", "not_computed") for name in event[part]["a2g"]}
            assert not any(name.startswith(("face", "seam")) for name in named)

    def test_windows_are_of_the_val_split_alone(self, validated: Path, shards: Path) -> None:
        (start,) = log_of(validated, "start")
        val = {row.key for row in ShardFolder(shards).rows if row.split == "val"}
        assert {window["key"] for window in start["validation_windows"]} <= val
        document = json.loads((validated / "validation/step-000006/validation.json").read_bytes())
        named = zip(document["windows"], start["validation_windows"], strict=True)
        assert document["windows"] == [{"name": one["name"]} | window for one, window in named]

    def test_each_sample_says_where_it_comes_from_in_log_and_record(self, validated: Path, shards: Path) -> None:
        folder, rows = ShardFolder(shards), {row.key: row for row in ShardFolder(shards).rows}
        (event,) = [event for event in log_of(validated, "validation") if event["step"] == 4]
        assert [sample["task"] for sample in event["samples"]] == list(SIX)
        for sample in event["samples"]:
            row = rows[sample["key"]]
            assert (sample["recording"], sample["speaker"], sample["split"]) == (row.stem, row.speaker, "val")
            assert {k: (v["path"], v["sha256"]) for k, v in sample["sources"].items()} == row.sources
            assert sample["start_tick"] + sample["ticks"] <= row.ticks
            assert sample["shards"] == str(shards)
            for name in (*sample["files"], sample["picture"]):
                assert (Path(event["folder"]) / name).stat().st_size > 0
            record = read_record(Path(event["folder"]) / sample["task"] / f"{sample['name']}.json")
            assert record.source == {k: sample[k] for k in record.source or {}}
            assert record.model["step"] == 4
            assert [one["stream"] for one in record.inputs] == list(TASKS[record.task].conditions)
        assert folder.rows

    @pytest.mark.slow
    @pytest.mark.parametrize("absent", ["left-out", "noise"])
    def test_results_are_those_that_generate_draws_with_the_averages(
        self, absent: str, shards: Path, tmp_path: Path
    ) -> None:
        """The window at a recording's start, generated by `omniges generate` from the checkpoint of that step."""
        changes: dict[str, Any] = {"validation_samples": 2, "max_train_steps": 2}
        if absent == "noise":  # as OmniFlow's models are, which carry streams that are absent as noise
            omniflow = write_folder(tmp_path / "omniflow", Tiny(qk_norm="rms", dual=(0,), nested=True))
            changes |= {"pretrained_model_name_or_path": omniflow, "model": {}, "learning_rate": 0.05}
        run(shards, tmp_path / "run", **{**VALIDATED, **changes})
        for task, ending in (("a2g", ".npz"), ("t2a", ".mel.npy"), ("g2t", ".TextGrid")):
            folder = tmp_path / "run/validation/step-000002" / task
            (path,) = [path for path in folder.glob("*.json") if (read_record(path).source or {})["start_tick"] == 0]
            record = read_record(path)
            key = (record.source or {})["key"]
            settings = GenerateSettings(
                checkpoint=tmp_path / "run",
                task=task,
                output_dir=tmp_path / "generated" / ending,
                sources=Sources(shards=shards, keys=(key,), seconds=1.6),
                sampling=SamplingSettings(num_inference_steps=2, guidance_scale=1.0),
                overlap_ticks=0,
                seed=VALIDATION_SEED,
            )
            generate(settings)
            theirs = read_record(settings.output_dir / f"{key}.json")
            assert record.settings.items() <= theirs.settings.items()
            generated = settings.output_dir / f"{key}{ending}"
            self._compare(path.with_suffix(ending).read_bytes(), generated.read_bytes(), ending)

    def _compare(self, ours: bytes, theirs: bytes, ending: str) -> None:
        """Equal but for the last bits of sums, which hang on what is beside a window."""
        if ending == ".npz":
            one, other = decode_motion(ours), decode_motion(theirs)
            np.testing.assert_allclose(one.poses, other.poses, atol=1e-5)
            np.testing.assert_allclose(one.trans, other.trans, atol=1e-5)
            np.testing.assert_array_equal(one.betas, other.betas)
        elif ending == ".mel.npy":
            np.testing.assert_allclose(decode_npy(ours), decode_npy(theirs), atol=1e-4)
        else:
            assert decode_words(ours) == decode_words(theirs)

    def test_waveforms_are_those_of_the_mels_beside_them(self, validated: Path) -> None:
        """Held against the mel that is there: Griffin and Lim's phases turn last bits of a mel into other sound."""
        paths = sorted((validated / "validation/step-000006/t2a").glob("*.json"))
        assert paths
        for path in paths:
            mel, wav = path.with_suffix(".mel.npy").read_bytes(), decode_wav(path.with_suffix(".wav").read_bytes())
            expected = waveform_from_mel(decode_npy(mel), GriffinLim(VALIDATION_SEED + read_record(path).sample))
            assert wav.rate_hz == 16000
            np.testing.assert_allclose(np.ravel(wav.samples), expected, atol=2 / 32768)

    def test_evaluate_does_not_take_a_window_for_a_recording(self, validated: Path, shards: Path) -> None:
        from omniges.evaluation.run import evaluate
        from omniges.evaluation.settings import EvaluateSettings

        path = next((validated / "validation/step-000006/a2t").glob("*.json"))
        assert (read_record(path).source or {})["start_tick"] > 0
        with pytest.raises(UsageFault, match=r"a sample of validation from tick \d+"):
            evaluate(EvaluateSettings(generated=(path.parent,), shards=shards))

    def test_another_seed_of_the_run_is_validated_with_the_same_windows_and_noise(
        self, shards: Path, tmp_path: Path, validated: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Both runs get the weights of the first one, because runs differ in their weights only."""
        from omniges.model import spec

        inner = spec.ModelIdentity.build
        monkeypatch.setattr(spec.ModelIdentity, "build", lambda self, seed: inner(self, 0))
        found = {}
        for seed in (0, 7):
            run(shards, tmp_path / str(seed), seed=seed, learning_rate=1e-30, **{**BARE, "max_train_steps": 2})
            found[seed] = figures_of(tmp_path / str(seed))[2]["losses"]
        assert found[0] == found[7]


class TestDefaults:
    def test_by_default_it_is_on_where_there_is_a_val_split(
        self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reporter = Collected()
        monkeypatch.setattr(train_module, "make_reporter", lambda _mode: reporter)
        run(shards, tmp_path, **{**BARE, "validation_steps": None}, max_train_steps=1)
        assert any("validates on 1 of" in warning for warning in reporter.messages)
        assert [event["step"] for event in log_of(tmp_path, "validation")] == [1]  # the last step

    def test_without_one_it_is_off_and_says_so_and_an_explicit_wish_is_refused(
        self, corpus: Path, tmp_path: Path
    ) -> None:
        run_preprocess(corpus, tmp_path / "shards", selection=Selection(splits=("train", "test")))
        run(tmp_path / "shards", tmp_path / "run", validation_steps=None, max_train_steps=1)
        assert not log_of(tmp_path / "run", "validation")
        warnings = log_of(tmp_path / "run", "start")[0]["remarks"]
        assert any("no validation: " in warning and "--split-csv" in warning for warning in warnings)
        with pytest.raises(UsageFault, match=r"expected recordings in the val split"):
            run(tmp_path / "shards", tmp_path / "other", validation_steps=5)

    def test_pictures_without_matplotlib_are_refused_before_the_first_step(
        self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(EnvironmentFault, match=r"matplotlib.*--validation-samples 0"):
            run(shards, tmp_path, validation_steps=2)


def losses_that_are(monkeypatch: pytest.MonkeyPatch, values: dict[int, float]) -> None:
    """Give validations of some steps another mean loss."""
    monkeypatch.setattr(ValidationResult, "loss", property(lambda self: values[self.step]))


class TestBest:
    @pytest.mark.slow
    def test_it_survives_pruning_and_run_best_leads_to_it(
        self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        losses_that_are(monkeypatch, {2: 3.0, 4: 2.0, 6: 2.0, 8: 5.0, 10: 4.0})
        settings = {**BARE, "max_train_steps": 10, "checkpointing_steps": 2, "checkpoints_total_limit": 1}
        summary = run(shards, tmp_path, **settings)
        names = sorted(path.name for path in (tmp_path / CHECKPOINTS).iterdir())
        assert names == ["step-000004", "step-000010"]
        assert sorted(path.name for path in (tmp_path / "validation").iterdir()) == names
        assert find_checkpoint(tmp_path / "best").path == checkpoint_of(tmp_path, 4)
        assert find_checkpoint(tmp_path / "best").step == 4
        assert find_checkpoint(tmp_path).step == 10
        assert f"best: {tmp_path}/best (step 4, loss 2)" in summary.lines
        assert [event["best"]["step"] for event in log_of(tmp_path, "validation")] == [2, 4, 4, 4, 4]

    @pytest.mark.slow
    def test_a_better_step_is_saved_though_no_checkpoint_is_due(
        self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        losses_that_are(monkeypatch, {2: 3.0, 4: 2.0, 6: 9.0})
        run(shards, tmp_path, **BARE, checkpointing_steps=1000)
        assert sorted(path.name for path in (tmp_path / CHECKPOINTS).iterdir()) == [
            f"step-{step:06d}" for step in (2, 4, 6)
        ]
        assert (tmp_path / "best").resolve() == checkpoint_of(tmp_path, 4).resolve()

    @pytest.mark.slow
    def test_it_is_remembered_over_a_restart_and_by_its_metric(
        self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        losses_that_are(monkeypatch, {2: 1.0, 3: 2.0, 4: 2.0, 6: 3.0})
        run(shards, tmp_path, **BARE, max_train_steps=3)
        (tmp_path / "best").unlink()
        summary = run(shards, tmp_path, **BARE, max_train_steps=4)
        assert summary.best is not None
        assert summary.best.step == 2
        assert (tmp_path / "best").resolve() == checkpoint_of(tmp_path, 2).resolve()
        summary = run(shards, tmp_path, **BARE, best_metric="g2t/loss")
        assert summary.best is not None
        assert (summary.best.step, summary.best.metric) == (6, "g2t/loss")
        assert any("it was chosen by loss" in warning for warning in log_of(tmp_path, "start")[-1]["remarks"])

    def test_one_whose_checkpoint_was_removed_is_none(
        self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import shutil

        losses_that_are(monkeypatch, {2: 1.0, 3: 4.0, 4: 2.0})
        run(shards, tmp_path, **BARE, max_train_steps=3)
        shutil.rmtree(checkpoint_of(tmp_path, 2))
        summary = run(shards, tmp_path, **BARE, max_train_steps=4)
        assert any("its checkpoint is gone" in warning for warning in log_of(tmp_path, "start")[-1]["remarks"])
        assert summary.best is not None
        assert summary.best.step == 4


def hooked(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, act: Callable[[], None]) -> None:
    inner = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        act()
        return inner(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


STAGES = {
    "reading": (run_module.HeldOut, "read"),
    "losses": (run_module, "grid_losses"),
    "sampling": (run_module, "sample_windows"),
    "making": (run_module, "make_result"),
    "scoring": (run_module, "score_task"),
    "waveforms": (run_module.WindowResults, "of"),
    "pictures": (run_module.WindowResults, "picture"),
    "writing": (validator_module, "pending_folder"),
}


class TestSignals:
    @pytest.mark.parametrize(
        ("stage", "number"),
        [
            ("reading", signal.SIGTERM),
            ("losses", signal.SIGINT),
            ("sampling", signal.SIGUSR1),
            ("making", signal.SIGTERM),
            ("scoring", signal.SIGTERM),
            ("writing", signal.SIGTERM),
            pytest.param("waveforms", signal.SIGTERM, marks=pytest.mark.long),  # pictures take seconds
            pytest.param("pictures", signal.SIGTERM, marks=pytest.mark.long),
        ],
    )
    def test_anywhere_in_a_validation_saves_leaves_with_the_code_and_is_made_up_for(
        self, stage: str, number: signal.Signals, shards: Path, tmp_path: Path, bare: Path
    ) -> None:
        # no figure hangs on what is kept
        settings = {**BARE, "validation_samples": int(stage in {"waveforms", "pictures"})}
        with pytest.MonkeyPatch.context() as patch:
            hooked(patch, *STAGES[stage], SignalAt(number, 1))
            summary = run(shards, tmp_path, **settings)
        code = ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.STOPPED
        assert summary.outcome.exit_code is code
        assert checkpoint_of(tmp_path, summary.step).is_dir()
        assert not [path for path in tmp_path.rglob("*") if ".tmp-" in path.name]
        if stage != "writing":  # which is finished first, as saving is
            assert summary.step == 2
            assert not log_of(tmp_path, "validation")
        assert run(shards, tmp_path, **settings).outcome.exit_code is ExitCode.OK
        assert figures_of(tmp_path) == figures_of(bare)
        require_same_learning(tmp_path, bare)
        assert (tmp_path / "best").readlink() == (bare / "best").readlink()


class TestFaults:
    def test_a_recording_that_cannot_be_read_saves_and_is_reported(self, shards: Path, tmp_path: Path) -> None:
        import shutil

        own = tmp_path / "shards"
        shutil.copytree(shards, own)
        row = next(row for row in ShardFolder(own).rows if row.split == "val")
        with (own / row.shard).open("r+b") as stream:
            stream.seek(row.members["gesture.npy"].offset + 500)
            stream.write(b"\x00\x01\x02\x03")
        with pytest.raises(DataError, match=r"gesture.npy at byte \d+: expected sha256 \w+, found \w+"):
            run(own, tmp_path / "run", **BARE)
        assert log_of(tmp_path / "run", "end")[-1]["ending"] == "failed"
        assert checkpoint_of(tmp_path / "run", 2).is_dir()

    def test_motion_that_is_invalid_is_counted_not_hidden(
        self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from omniges.generation import writers

        inner = writers.valid_motion
        turns = iter(range(1000))

        def refuse_first(gesture: Any, start_xz: Any) -> Any:
            return inner(gesture * 0.0 if next(turns) == 0 else gesture, start_xz)

        monkeypatch.setattr(writers, "valid_motion", refuse_first)
        run(shards, tmp_path, **{**VALIDATED, "validation_samples": 0, "max_train_steps": 2})
        document = json.loads((tmp_path / "validation/step-000002/validation.json").read_bytes())
        first, second = (
            next(f for f in document["figures"][task] if f["metric"] == "jerk" and f["row"] == "generated")
            for task in ("t2g", "a2g")
        )
        ((why, count),) = first["left_out"].items()
        assert why.startswith("generated motion: ")
        assert "checkpoint" not in why
        assert (first["recordings"], count) == (1, 1)
        assert (second["recordings"], second["left_out"]) == (2, {})

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("ticks", "why"), [(8, "expected 32 or more rows, found 24"), (12, "fewer than two rows of features")]
    )
    def test_windows_too_short_for_a_metric_say_so(self, ticks: int, why: str, shards: Path, tmp_path: Path) -> None:
        run(shards, tmp_path, **BARE, max_train_steps=2, window_ticks=ticks)
        (event,) = log_of(tmp_path, "validation")
        assert why in event["not_computed"]["a2g"]["frechet_gesture_distance"]
        assert event["metrics"]["t2a"]["log_mel_l1"] > 0

    def test_a_costly_validation_says_what_to_lower(
        self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reporter = Collected()
        monkeypatch.setattr(train_module, "make_reporter", lambda _mode: reporter)
        run(shards, tmp_path, **BARE)
        warnings = [warning for warning in reporter.messages if "--validation-windows" in warning]
        assert len(warnings) == 1
        assert "of the time; raise --validation-steps" in warnings[0]
        assert sum("validation at step" in warning for warning in reporter.messages) == 3

    def test_half_written_files_of_a_killed_run_go(self, shards: Path, tmp_path: Path) -> None:
        torn = tmp_path / "validation/.step-000002.tmp-1"
        torn.mkdir(parents=True)
        (torn / "x").write_text("half")
        run(shards, tmp_path, **BARE, max_train_steps=2)
        assert [path.name for path in torn.parent.iterdir()] == ["step-000002"]
        assert os.listdir(torn.parent / "step-000002") == ["validation.json"]
