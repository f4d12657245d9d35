"""The command: exit codes, errors in one line, and checkpoints from which a model is built without the shards."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flow_builders import Draws, sample
from pipeline_helpers import COMMAND, omniges, run_preprocess
from training_helpers import checkpoint_of, learned, log_of, losses_of, run, settings_of

from omniges.data.catalog import Filters, read_catalog
from omniges.data.loader import LoaderSettings
from omniges.data.order import RankShare
from omniges.data.sequence import DataSource, Sequencing
from omniges.errors import EnvironmentFault, ExitCode, UsageFault
from omniges.features.channels import WITH_JAW_EYES
from omniges.model.checkpoint import find_checkpoint
from omniges.model.spec import load_model
from omniges.model.tasks import SamplingSettings
from omniges.pipeline.settings import Selection
from omniges.trainer.batches import Feed, speakers_of
from omniges.trainer.run import with_compile

RECIPE = """
window_ticks: 16
train_batch_size: 4
lr_warmup_steps: 3
num_workers: 1
logging_steps: 2
model: {width: 16, layers: 1, heads: 2, piece_width: 8, mark_width: 4}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


class TestCommand:
    @pytest.mark.long  # two whole commands: pytest -m long
    def test_a_run_stopped_by_sigterm_exits_75_and_the_same_words_finish_it(
        self, recipe: Path, shards: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "run"
        words = ["train", "--recipe", recipe, "--shards", shards, "--output-dir", folder, "--max-train-steps"]
        with subprocess.Popen([*COMMAND, *map(str, words), "1000000"], stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 90
            while not (folder / "log.jsonl").exists() or not log_of(folder):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
            assert process.returncode == ExitCode.STOPPED, errors
        assert "Traceback" not in errors
        end = log_of(folder, "end")[-1]
        assert end["ending"] == "stopped"
        done = omniges(*words, end["step"] + 3)
        assert done.returncode == 0, done.stderr
        assert f"resumes from {checkpoint_of(folder, end['step'])}" in done.stderr
        assert "all steps done" in done.stdout
        assert sorted(losses_of(folder)) == list(range(end["step"] + 3))

    def test_an_error_is_one_line(self, tmp_path: Path) -> None:
        done = omniges("train", "--output-dir", tmp_path / "run", "--shards", "nowhere")
        assert done.returncode == ExitCode.USAGE
        assert done.stderr.startswith("omniges: nowhere: expected a folder of shards")
        assert done.stderr.count("\n") == 1

    @pytest.mark.parametrize("package", ["torch", "yaml"])
    def test_a_missing_package_is_named_with_the_way_out(self, package: str) -> None:
        script = (
            f"import sys\nsys.modules[{package!r}] = None\n"
            "sys.argv = ['omniges', 'train']\nfrom omniges.cli import main\nmain()\n"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
        assert done.returncode == ExitCode.ENVIRONMENT
        assert f"expected the package {package}, found that it is not installed" in done.stderr
        assert "pip install 'omniges[train]'" in done.stderr


class TestRefusals:
    def test_an_empty_train_split_with_the_way_out(self, corpus: Path, tmp_path: Path) -> None:
        out = tmp_path / "shards"
        run_preprocess(corpus, out, selection=Selection(splits=("val", "test")))
        with pytest.raises(UsageFault, match=r"expected samples of split 'train', .*--split-csv"):
            run(out, tmp_path / "run")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_fp16_without_a_gpu(self, shards: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match="--mixed-precision fp16: expected a GPU"):
            run(shards, tmp_path / "run", mixed_precision="fp16")

    def test_windows_longer_than_every_clip(self, shards: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match="window"):
            run(shards, tmp_path / "run", window_ticks=1000)

    def test_a_tracker_that_is_missing_before_the_first_step(
        self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(EnvironmentFault, match="--report-to wandb"):
            run(shards, tmp_path / "run", report_to=("wandb",))

    @pytest.mark.slow
    def test_shards_of_another_manifest_are_refused(self, corpus: Path, shards: Path, tmp_path: Path) -> None:
        run(shards, tmp_path / "run", max_train_steps=1)
        from omniges.testing.settings import CorpusSettings
        from omniges.testing.synthetic_corpus import write_sample_corpus

        write_sample_corpus(tmp_path / "other", CorpusSettings(clips=6, seconds=4.0, words=6, speakers=2, seed=4))
        run_preprocess(tmp_path / "other", tmp_path / "other-shards")
        with pytest.raises(UsageFault, match=r"stats.json differs"):
            run(tmp_path / "other-shards", tmp_path / "run")


class TestModelOfACheckpoint:
    def test_it_is_built_and_sampled_from_without_the_shards(self, shards: Path, tmp_path: Path) -> None:
        run(shards, tmp_path, max_train_steps=3)
        saved = find_checkpoint(tmp_path)
        last, identity = load_model(saved, "last")
        averaged, _ = load_model(saved)
        assert identity.speakers == ("synthetica", "syntheticb")
        assert (identity.preset, identity.window_ticks) == ("tiny", 16)
        bits = learned(tmp_path, 3)
        for name, p in last.named_parameters():
            assert p.detach().numpy().tobytes() == bits[f"model.safetensors/{name}"]
        for name, p in averaged.named_parameters():
            assert p.detach().numpy().tobytes() == bits[f"ema.safetensors/{name}"]
        assert not averaged.training
        draws = Draws(8, 0, torch.arange(2), torch.tensor([1, 2]))
        generated = sample(
            averaged, {"text": torch.zeros(2, 8).long()}, ["gesture"], draws, SamplingSettings(num_inference_steps=2)
        )
        assert generated["gesture"].shape == (2, 24, WITH_JAW_EYES)


class TestFeed:
    def test_windows_are_as_the_shards_hold_them_and_normalised_once(self, shards: Path) -> None:
        from omniges.shards.reader import ShardFolder

        data = [DataSource(read_catalog(shards, Filters()))]
        share = RankShare(batch_size=8)
        with Feed(data, Sequencing(window_ticks=16), share, LoaderSettings(workers=0), torch.device("cpu")) as feed:
            windows, positions = feed.next()
            places = feed.places(positions)
        folder = ShardFolder(shards)
        assert speakers_of(data) == ("synthetica", "syntheticb")
        for row, place in enumerate(places):
            sample_ = folder.sample(folder.row(place.key))
            start = place.start_tick
            np.testing.assert_array_equal(
                windows.arrays["gesture"][row].numpy(), sample_.gesture.gesture[start * 3 : (start + 16) * 3]
            )
            np.testing.assert_array_equal(windows.arrays["audio"][row].numpy(), sample_.mel[start * 10 :][:160])
            assert int(windows.speakers[row]) == 1 + ("syntheticb" in place.key)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
    def test_batches_that_are_copied_beside_computation_are_those_of_the_cpu(self, shards: Path) -> None:
        data = [DataSource(read_catalog(shards, Filters()))]
        found: list[list[torch.Tensor]] = []
        for device in (torch.device("cpu"), torch.device("cuda")):
            matrix = torch.ones(2048, 2048, device=device)
            with Feed(data, Sequencing(window_ticks=16), RankShare(batch_size=8), LoaderSettings(), device) as feed:
                for _ in range(20):
                    if device.type == "cuda":
                        for _ in range(20):
                            matrix = matrix @ matrix / 2048  # the copy starts while these run
                    found.append([tensor.cpu() for tensor in feed.next()[0].tensors()])
        for expected, copied in zip(found[:20], found[20:], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(expected, copied, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"mixed_precision": "bf16"}, {"gradient_checkpointing": True}])
def test_other_ways_to_compute_learn_and_resume_to_the_last_bit(
    changes: dict[str, object], shards: Path, tmp_path: Path
) -> None:
    run(shards, tmp_path / "whole", **changes)
    for k in (3, 6):
        run(shards, tmp_path / "stopped", max_train_steps=k, **changes)
    assert learned(tmp_path / "whole", 6) == learned(tmp_path / "stopped", 6)
    assert losses_of(tmp_path / "whole") == losses_of(tmp_path / "stopped")


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own parts
def test_a_compiled_pass_gives_the_same_losses_and_resumes_exactly(shards: Path, tmp_path: Path) -> None:
    """Needs a C++ compiler."""
    run(shards, tmp_path / "plain", max_train_steps=3)
    run(shards, tmp_path / "compiled", max_train_steps=3, compile=True)
    plain, compiled = losses_of(tmp_path / "plain"), losses_of(tmp_path / "compiled")
    assert list(compiled.values()) == pytest.approx(list(plain.values()), rel=1e-4)
    for steps in (2, 3):
        run(shards, tmp_path / "stopped", max_train_steps=steps, compile=True)
    assert learned(tmp_path / "stopped", 3) == learned(tmp_path / "compiled", 3)
    assert losses_of(tmp_path / "stopped") == compiled


def test_a_refused_run_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageFault):
        run(tmp_path / "no-shards", tmp_path / "runs/first", max_train_steps=1)
    assert list(tmp_path.iterdir()) == []


class TestCompile:
    @pytest.mark.parametrize(
        ("device", "changes", "compiled", "said"),
        [
            ("cpu", {}, False, None),
            ("cpu", {"compile": True}, True, None),
            ("cuda", {}, True, None),
            ("cuda", {"compile": False}, False, None),
            ("cuda", {"sharding": "full"}, False, "--sharding full excludes it"),
        ],
    )
    def test_it_is_the_default_on_a_gpu_where_it_can_be(
        self, device: str, changes: dict[str, Any], compiled: bool, said: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("omniges.trainer.run.importlib.util.find_spec", lambda name: name)
        settings, warnings = with_compile(settings_of("shards", Path("run"), **changes), torch.device(device))
        assert settings.compile is compiled
        assert warnings == ([] if said is None else [f"the pass is not compiled: {said}"])

    def test_a_gpu_without_a_compiler_trains_without(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("omniges.trainer.run.importlib.util.find_spec", lambda name: None)
        settings, warnings = with_compile(settings_of("shards", Path("run")), torch.device("cuda"))
        assert (settings.compile, warnings) == (False, ["the pass is not compiled: Triton is not installed"])
