"""Two processes make the run that one makes. Slow: each start loads torch twice; run with: pytest -m long."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrun_helpers import RECIPE, VALIDATION, finish, rank_1_of, torchrun, until_logged
from training_helpers import TENSOR_FILES, checkpoint_of, learned, log_of, losses_of, run

from omniges.errors import ExitCode

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def whole(recipe: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six uninterrupted steps in two processes."""
    folder = tmp_path_factory.mktemp("two") / "run"
    finish(torchrun(recipe, shards, folder, max_train_steps=6))
    return folder


def test_the_losses_and_weights_are_those_of_one_process_with_batches_twice_as_large(
    whole: Path, shards: Path, tmp_path: Path
) -> None:
    import numpy as np
    from safetensors.torch import load_file

    run(shards, tmp_path, gradient_accumulation_steps=2)
    one, two = losses_of(tmp_path), losses_of(whole)
    assert one.keys() == two.keys() == set(range(6))
    assert list(two.values()) == pytest.approx(list(one.values()), rel=1e-5)
    for name in TENSOR_FILES[:2]:
        ours, theirs = (load_file(checkpoint_of(folder, 6) / name) for folder in (whole, tmp_path))
        for key, tensor in ours.items():
            np.testing.assert_allclose(tensor.numpy(), theirs[key].numpy(), rtol=1e-3, atol=2e-5, err_msg=key)


@pytest.mark.parametrize("k", [1, 4])
def test_stopped_and_resumed_to_the_last_bit(k: int, whole: Path, recipe: Path, shards: Path, tmp_path: Path) -> None:
    finish(torchrun(recipe, shards, tmp_path, max_train_steps=k))
    finish(torchrun(recipe, shards, tmp_path, max_train_steps=6))
    assert learned(tmp_path, 6) == learned(whole, 6)
    assert losses_of(tmp_path) == losses_of(whole)


def test_two_processes_go_on_from_one_and_one_from_two(recipe: Path, shards: Path, tmp_path: Path) -> None:
    run(shards, tmp_path, gradient_accumulation_steps=2, max_train_steps=2)
    finish(torchrun(recipe, shards, tmp_path, max_train_steps=4))
    run(shards, tmp_path, gradient_accumulation_steps=2)
    run(shards, tmp_path / "one", gradient_accumulation_steps=2)
    assert [event["step"] for event in log_of(tmp_path, "start")] == [0, 2, 4]
    assert list(losses_of(tmp_path).values()) == pytest.approx(list(losses_of(tmp_path / "one").values()), rel=1e-4)


@pytest.mark.parametrize("which", ["launcher", "rank 1"])
def test_a_signal_to_all_or_to_one_rank_stops_all_with_a_checkpoint(
    which: str, recipe: Path, shards: Path, tmp_path: Path
) -> None:
    process = torchrun(recipe, shards, tmp_path, max_train_steps=1_000_000)
    until_logged(tmp_path)
    os.kill(process.pid if which == "launcher" else rank_1_of(process.pid), signal.SIGTERM)
    process.communicate(timeout=100)
    end = log_of(tmp_path, "end")[-1]
    assert end["ending"] == "stopped"
    assert checkpoint_of(tmp_path, end["step"]).is_dir()


def test_a_rank_that_cannot_read_ends_all(recipe: Path, shards: Path, tmp_path: Path) -> None:
    import shutil

    own = tmp_path / "shards"
    shutil.copytree(shards, own)
    process = torchrun(recipe, own, tmp_path / "run", max_train_steps=1_000_000)
    until_logged(tmp_path / "run")
    os.kill(_reader_of(rank_1_of(process.pid)), signal.SIGKILL)
    _, errors = process.communicate(timeout=100)
    assert process.returncode != 0
    assert "the loader worker exited" in errors
    end = log_of(tmp_path / "run", "end")[-1]
    assert end["ending"] == "failed"
    assert checkpoint_of(tmp_path / "run", end["step"]).is_dir()
    assert int(ExitCode.ENVIRONMENT) == 3


def _reader_of(process: int) -> int:
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return next(int(c) for c in children if b"omniges.data.collate" in Path(f"/proc/{c}/cmdline").read_bytes())


class TestValidation:
    def test_both_ranks_share_it_and_find_what_one_finds_to_the_last_bit(
        self, recipe: Path, many: Path, tmp_path: Path
    ) -> None:
        """Two processes and one have the same weights before the first update, because the rate is next to zero."""
        self._share(recipe, many, tmp_path)

    def test_so_they_do_of_a_run_on_latents(self, many: Path, folders: dict[str, Path], tmp_path: Path) -> None:
        from latent_builders import BOTH, encoded_shards

        codecs = {**BOTH, "validation_codec": [f"{name}={folder}" for name, folder in folders.items()]}
        recipe = tmp_path / "latents.yaml"
        recipe.write_text(json.dumps(RECIPE | codecs))
        self._share(recipe, encoded_shards(many, tmp_path / "shards", folders), tmp_path, **codecs)

    def _share(self, recipe: Path, shards: Path, tmp_path: Path, **changes: Any) -> None:
        finish(torchrun(recipe, shards, tmp_path / "two", max_train_steps=3, learning_rate=1e-30, **VALIDATION))
        one = {"gradient_accumulation_steps": 2, "max_train_steps": 3, "learning_rate": 1e-30}
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a rank of `torchrun`: rounding depends on it
        try:
            run(shards, tmp_path / "one", **one, **VALIDATION, **changes)
        finally:
            torch.set_num_threads(threads)
        (alone,), (shared,) = (log_of(tmp_path / name, "validation") for name in ("one", "two"))
        assert alone["windows"] == 8
        for name in ("loss", "losses", "metrics", "recorded", "shuffled", "not_computed", "best"):
            assert shared[name] == alone[name], name
        files = {
            name: {
                str(path.relative_to(tmp_path / name)): path.read_bytes()
                for path in sorted((tmp_path / name / "validation").rglob("*"))
                if path.suffix in {".npz", ".npy", ".TextGrid", ".wav", ".png"}
            }
            for name in ("one", "two")
        }
        assert len(files["one"]) == 2 * (2 * 1 + 2 * 2 + 2 * 1 + 1)
        assert files["one"] == files["two"]
        assert (tmp_path / "two/best").readlink() == Path("checkpoints/step-000003")

    @pytest.mark.parametrize("which", ["launcher", "rank 1"])
    def test_a_signal_in_it_stops_all_and_it_is_made_up_for(
        self, which: str, recipe: Path, many: Path, tmp_path: Path
    ) -> None:
        """The many steps of sampling ensure that the signal does not come too late."""
        long = {**VALIDATION, "validation_sampling_steps": 1000, "max_train_steps": 5}
        process = torchrun(recipe, many, tmp_path, **long)
        assert process.stderr is not None
        for line in process.stderr:
            if "validating step 3" in line:
                break
        time.sleep(1.0)
        os.kill(process.pid if which == "launcher" else rank_1_of(process.pid), signal.SIGTERM)
        process.communicate(timeout=200)
        end = log_of(tmp_path, "end")[-1]
        assert (end["ending"], end["step"]) == ("stopped", 3)
        assert not log_of(tmp_path, "validation")
        finish(torchrun(recipe, many, tmp_path, **{**VALIDATION, "max_train_steps": 5}))
        assert [event["step"] for event in log_of(tmp_path, "validation")] == [3, 5]

    def test_a_rank_that_cannot_read_ends_all_with_a_checkpoint(self, recipe: Path, many: Path, tmp_path: Path) -> None:
        import shutil

        from omniges.shards.reader import ShardFolder

        own = tmp_path / "shards"
        shutil.copytree(many, own)
        row = next(row for row in ShardFolder(own).rows if row.split == "val")
        with (own / row.shard).open("r+b") as stream:
            stream.seek(row.members["mel.npy"].offset + 500)
            stream.write(b"\x00\x01\x02\x03")
        process = torchrun(recipe, own, tmp_path / "run", max_train_steps=6, **VALIDATION)
        _, errors = process.communicate(timeout=200)
        assert process.returncode != 0
        assert f"{row.key}.mel.npy at byte {row.members['mel.npy'].offset}: expected sha256 " in errors
        assert checkpoint_of(tmp_path / "run", 3).is_dir()
