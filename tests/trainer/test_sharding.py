"""A sharded run learns what one process learns, holds its part of it, and leaves the same checkpoints."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from torchrun_helpers import VALIDATION, finish, rank_1_of, started, torchrun, until_logged
from training_helpers import TENSOR_FILES, checkpoint_of, learned, log_of, losses_of, run, settings_of

from omniges.errors import UsageFault

CHILD = str(Path(__file__).with_name("sharded_child.py"))
FULL = {"sharding": "full"}


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "said"),
        [({"compile": True}, "remove compile"), ({"mixed_precision": "fp16"}, "found fp16; use bf16")],
    )
    def test_what_a_sharded_model_cannot_do(self, changes: dict[str, object], said: str, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match=said):
            settings_of("shards", tmp_path, **FULL, **changes)

    def test_one_process(self, shards: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match="sharding full: expected several processes, found one"):
            run(shards, tmp_path, **FULL)


@pytest.fixture(scope="module")
def one(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty steps of one process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    run(shards, folder, gradient_accumulation_steps=2, max_train_steps=20)
    return folder


@pytest.fixture(scope="module")
def two(recipe: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty steps of two processes with a sharded model."""
    folder = tmp_path_factory.mktemp("two") / "run"
    finish(torchrun(recipe, shards, folder, max_train_steps=20, **FULL))
    return folder


def assert_same_run(folder: Path, other: Path) -> None:
    """Losses and weights are equal but for the rounding of sums over ranks."""
    assert losses_of(folder).keys() == losses_of(other).keys() == set(range(20))
    assert list(losses_of(folder).values()) == pytest.approx(list(losses_of(other).values()), rel=1e-5)
    for name in TENSOR_FILES[:2]:
        ours, theirs = (load_file(checkpoint_of(each, 20) / name) for each in (folder, other))
        assert ours.keys() == theirs.keys()
        for key, tensor in ours.items():
            np.testing.assert_allclose(tensor.numpy(), theirs[key].numpy(), rtol=1e-3, atol=2e-5, err_msg=key)


@pytest.mark.long
@pytest.mark.timeout(600)
class TestLearning:
    def test_two_processes_learn_what_one_learns(self, one: Path, two: Path) -> None:
        assert_same_run(two, one)

    def test_so_do_four(self, one: Path, recipe: Path, shards: Path, tmp_path: Path) -> None:
        finish(torchrun(recipe, shards, tmp_path, processes=4, batch_size=1, max_train_steps=20, **FULL))
        assert_same_run(tmp_path, one)

    def test_so_do_two_that_compute_activations_again(
        self, one: Path, recipe: Path, shards: Path, tmp_path: Path
    ) -> None:
        finish(torchrun(recipe, shards, tmp_path, max_train_steps=20, gradient_checkpointing=True, **FULL))
        assert_same_run(tmp_path, one)

    def test_bf16_differs_by_its_rounding(self, one: Path, recipe: Path, shards: Path, tmp_path: Path) -> None:
        finish(torchrun(recipe, shards, tmp_path / "full", max_train_steps=20, mixed_precision="bf16", **FULL))
        halved = {"gradient_accumulation_steps": 2, "max_train_steps": 20, "mixed_precision": "bf16"}
        run(shards, tmp_path / "none", **halved)
        exact, none, full = (np.array(list(losses_of(f).values())) for f in (one, tmp_path / "none", tmp_path / "full"))
        assert not np.array_equal(none, exact)
        assert np.abs(full / none - 1).max() < 0.02


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("processes", [2, 4])
def test_a_rank_holds_its_part_of_everything(processes: int, shards: Path, tmp_path: Path) -> None:
    finish(started(processes, [CHILD, "held", str(shards), str(tmp_path)]))
    for rank in range(processes):
        found = json.loads((tmp_path / f"held-{rank}.json").read_text())
        part = found["complete"] / processes
        for kind, copies in (("gradients", 1), (TENSOR_FILES[0], 1), (TENSOR_FILES[1], 1), (TENSOR_FILES[2], 2)):
            assert found[kind] <= 1.2 * copies * part, (rank, kind)
        assert found["everything"] <= 1.2 * 4 * part, rank  # nothing else holds a copy


@pytest.mark.long
@pytest.mark.timeout(600)
class TestCheckpoints:
    @pytest.mark.parametrize("k", [1, 13])
    def test_stopped_and_resumed_to_the_last_bit(
        self, k: int, two: Path, recipe: Path, shards: Path, tmp_path: Path
    ) -> None:
        finish(torchrun(recipe, shards, tmp_path, max_train_steps=k, **FULL))
        finish(torchrun(recipe, shards, tmp_path, max_train_steps=20, **FULL))
        assert learned(tmp_path, 20) == learned(two, 20)
        assert losses_of(tmp_path) == losses_of(two)

    def test_a_run_goes_on_in_other_numbers_of_processes_and_with_another_sharding(
        self, one: Path, recipe: Path, shards: Path, tmp_path: Path
    ) -> None:
        finish(torchrun(recipe, shards, tmp_path, max_train_steps=4, **FULL))
        finish(torchrun(recipe, shards, tmp_path, processes=4, batch_size=1, max_train_steps=8, **FULL))
        run(shards, tmp_path, gradient_accumulation_steps=2, max_train_steps=12)
        finish(torchrun(recipe, shards, tmp_path, max_train_steps=16))
        finish(torchrun(recipe, shards, tmp_path, max_train_steps=20, **FULL))
        assert [event["step"] for event in log_of(tmp_path, "start")] == [0, 4, 8, 12, 16]
        assert_same_run(tmp_path, one)

    def test_pretrained_weights_start_a_run(self, one: Path, recipe: Path, shards: Path, tmp_path: Path) -> None:
        flags = {"max_train_steps": 2, "pretrained_model_name_or_path": one}
        finish(torchrun(recipe, shards, tmp_path / "full", **flags, **FULL))
        run(shards, tmp_path / "none", gradient_accumulation_steps=2, **flags)
        full, none = (list(losses_of(tmp_path / name).values()) for name in ("full", "none"))
        assert full == pytest.approx(none, rel=1e-5)
        assert full != pytest.approx(list(losses_of(one).values())[:2], rel=1e-2)

    def test_every_kill_while_saving_leaves_one_that_loads(self, shards: Path, tmp_path: Path) -> None:
        finish(started(2, [CHILD, "saved", str(shards), str(tmp_path)]))
        left = json.loads((tmp_path / "left.json").read_text())
        assert len(left) > 40
        assert {step for _, step, _ in left} == {2, 4}
        assert not any(passed for _, _, passed in left)

    def test_one_machine_generates_from_it(self, two: Path, shards: Path, tmp_path: Path) -> None:
        from omniges.model.checkpoint import find_checkpoint
        from omniges.model.spec import load_model

        for weights, name in (("ema", TENSOR_FILES[1]), ("last", TENSOR_FILES[0])):
            model, _ = load_model(find_checkpoint(two), weights)  # type: ignore[arg-type]
            saved = load_file(checkpoint_of(two, 20) / name)
            for key, parameter in model.named_parameters():
                assert parameter.detach().numpy().tobytes() == saved[key].numpy().tobytes(), key

    def test_validation_finds_what_it_finds_without_sharding(self, recipe: Path, many: Path, tmp_path: Path) -> None:
        """Both have the same weights before the first update, because the learning rate is next to zero."""
        for name, sharding in (("full", FULL), ("none", {})):
            flags = {"max_train_steps": 3, "learning_rate": 1e-30, **VALIDATION, **sharding}
            finish(torchrun(recipe, many, tmp_path / name, **flags))
        full, none = (log_of(tmp_path / name, "validation")[0] for name in ("full", "none"))
        for name in ("loss", "losses", "metrics", "best"):
            assert full[name] == none[name], name


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("sharding", ["full", "none"])
def test_a_rank_that_is_killed_ends_the_others_with_a_complete_checkpoint(
    sharding: str, recipe: Path, shards: Path, tmp_path: Path
) -> None:
    process = torchrun(recipe, shards, tmp_path, max_train_steps=1_000_000, checkpointing_steps=3, sharding=sharding)
    until_logged(tmp_path, "checkpoint")
    killed = time.monotonic()
    os.kill(rank_1_of(process.pid), signal.SIGKILL)
    _, errors = process.communicate(timeout=100)
    assert time.monotonic() - killed < 60
    # torchrun stops the others at once, which may reach one before it finds its connection closed
    assert re.search(r"exitcode +: (3|75) ", errors), errors
    step = losses_of(tmp_path)
    finish(torchrun(recipe, shards, tmp_path, max_train_steps=max(step) + 3, sharding=sharding))
    assert log_of(tmp_path, "start")[-1]["step"] >= 3
