"""A run that was stopped anywhere and continued ends with the bits of one that was not stopped."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_helpers import SignalAt, checkpoint_of, learned, log_of, losses_of, run

from omniges.errors import DataError, ExitCode, UsageFault
from omniges.model.checkpoint import CHECKPOINTS
from omniges.trainer import batches as feed_module
from omniges.trainer import loop as loop_module
from omniges.trainer import train as train_module
from omniges.trainer import train_step as learner_module
from omniges.trainer.config import LEARNING_RATES

STEPS = 6


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of six steps, two micro-steps each."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(shards, folder, gradient_accumulation_steps=2)
    return folder


def assert_same(stopped: Path, whole: Path, step: int = STEPS) -> None:
    """Weights, average, optimizer state and every loss, to the last bit."""
    assert learned(stopped, step) == learned(whole, step)
    assert losses_of(stopped) == losses_of(whole)


class TestToTheLastBit:
    @pytest.mark.slow
    @pytest.mark.parametrize("k", [1, 2, 5])
    def test_stopped_at_step_k_and_resumed(self, k: int, shards: Path, tmp_path: Path, whole: Path) -> None:
        run(shards, tmp_path, gradient_accumulation_steps=2, max_train_steps=k)
        summary = run(shards, tmp_path, gradient_accumulation_steps=2)
        assert summary.outcome.steps == STEPS - k
        assert_same(tmp_path, whole)

    @pytest.mark.slow
    def test_three_times_with_other_numbers_of_readers(self, shards: Path, tmp_path: Path, whole: Path) -> None:
        for k, workers in ((1, 1), (3, 0), (4, 2), (STEPS, 0)):
            run(shards, tmp_path, gradient_accumulation_steps=2, max_train_steps=k, num_workers=workers)
        assert_same(tmp_path, whole)

    def test_whatever_torch_numpy_and_python_draw_meanwhile(
        self, shards: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No generator's state takes part, so there is none to save."""
        inner = learner_module.Learner.micro_step

        def disturbed(self: Any, *args: Any, **kwargs: Any) -> Any:
            torch.manual_seed(random.randrange(1 << 30))
            np.random.seed(random.randrange(1 << 30))  # noqa: NPY002 - the generator that others might use
            return inner(self, *args, **kwargs)

        monkeypatch.setattr(learner_module.Learner, "micro_step", disturbed)
        torch.manual_seed(random.randrange(1 << 30))
        run(shards, tmp_path, gradient_accumulation_steps=2)
        assert_same(tmp_path, whole)

    def test_no_generator_is_moved(self, shards: Path, tmp_path: Path) -> None:
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
        run(shards, tmp_path, max_train_steps=1)
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1] == random.getstate()
        assert before[2] == np.random.get_state()[1].tolist()  # noqa: NPY002

    def test_another_seed_gives_other_bits(self, shards: Path, tmp_path: Path, whole: Path) -> None:
        run(shards, tmp_path, gradient_accumulation_steps=2, seed=1)
        assert learned(tmp_path, STEPS) != learned(whole, STEPS)
        assert losses_of(tmp_path) != losses_of(whole)


def _hook(monkeypatch: pytest.MonkeyPatch, where: str, act: Callable[[], None]) -> None:
    """Call something in the middle of waiting, computing, updating or saving."""
    owner, name = {
        "wait": (feed_module.Feed, "next"),
        "compute": (learner_module.FlowModel, "forward"),
        "update": (learner_module.Ema, "update"),
        "save": (train_module, "save_and_prune"),
        "log": (loop_module.Logbook, "write"),
    }[where]
    inner = getattr(owner, name)

    def hooked(*args: Any, **kwargs: Any) -> Any:
        act()
        return inner(*args, **kwargs)

    monkeypatch.setattr(owner, name, hooked)


class TestSignals:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("where", "turn", "number"),
        [
            ("wait", 6, signal.SIGTERM),  # between the micro-steps of a step
            ("wait", 5, signal.SIGUSR1),
            ("compute", 8, signal.SIGTERM),
            ("update", 3, signal.SIGTERM),
            ("save", 1, signal.SIGTERM),
            ("log", 2, signal.SIGUSR1),
            ("compute", 3, signal.SIGINT),
            ("save", 2, signal.SIGINT),
        ],
    )
    def test_anywhere_saves_and_the_same_command_goes_on(
        self, where: str, turn: int, number: signal.Signals, shards: Path, tmp_path: Path, whole: Path
    ) -> None:
        settings = {"gradient_accumulation_steps": 2, "checkpointing_steps": 2}
        with pytest.MonkeyPatch.context() as patch:
            _hook(patch, where, SignalAt(number, turn))
            summary = run(shards, tmp_path, **settings)
        code = ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.STOPPED
        assert summary.outcome.exit_code is code
        assert 0 < summary.step < STEPS
        assert checkpoint_of(tmp_path, summary.step).is_dir()
        assert run(shards, tmp_path, **settings).outcome.exit_code is ExitCode.OK
        assert_same(tmp_path, whole)

    def test_before_the_first_step_leaves_nothing_to_go_on_from(self, shards: Path, tmp_path: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            _hook(patch, "compute", SignalAt(signal.SIGTERM, 1))
            assert run(shards, tmp_path).outcome.exit_code is ExitCode.STOPPED
        assert not (tmp_path / CHECKPOINTS).exists()
        assert run(shards, tmp_path).outcome.exit_code is ExitCode.OK

    @pytest.mark.slow
    def test_a_wait_without_end_is_left_at_once(
        self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The signal arrives while the loader waits for a reading process that has been stopped."""
        inner = feed_module.Feed.next
        calls = []

        def stalled(self: Any) -> Any:
            calls.append(time.monotonic())
            if len(calls) == 3:
                for pid in self.worker_pids:
                    os.kill(pid, signal.SIGSTOP)
                threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
            return inner(self)

        monkeypatch.setattr(feed_module.Feed, "next", stalled)
        summary = run(shards, tmp_path, num_workers=1, max_train_steps=1_000_000)
        assert summary.outcome.exit_code is ExitCode.STOPPED
        assert time.monotonic() - calls[-1] < 30
        assert 2 <= summary.step < 10
        assert checkpoint_of(tmp_path, summary.step).is_dir()


KILLER = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from training_helpers import settings_of
from omniges.trainer.train import train

turns = int(sys.argv[4])
def deadly(module, name):
    inner = getattr(module, name)
    def call(*args, **kwargs):
        global turns
        turns -= armed
        if armed and turns == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(*args, **kwargs)
    setattr(module, name, call)

armed = 0
from omniges.trainer import train as module
save = module.save_and_prune
def armed_save(folder, contents, *rest):
    global armed
    armed = int(contents.step == 4)
    return save(folder, contents, *rest)
module.save_and_prune = armed_save
for name in ("mkdir", "rename", "fsync", "rmdir", "unlink", "write"):
    deadly(os, name)
train(settings_of(Path(sys.argv[1]), Path(sys.argv[2]), checkpointing_steps=2, checkpoints_total_limit=1))
print(turns)
"""


def train_to_death(shards: Path, folder: Path, turn: int) -> subprocess.CompletedProcess[str]:
    """A run that is killed before the n-th system call of making its second checkpoint and pruning the first."""
    helpers = str(Path(__file__).resolve().parents[1])
    words = [sys.executable, "-c", KILLER, str(shards), str(folder), helpers, str(turn)]
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(words, capture_output=True, text=True, timeout=100, env=variables)


@pytest.fixture(scope="module")
def calls(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """Return the number of such calls."""
    done = train_to_death(shards, tmp_path_factory.mktemp("calls"), 1_000_000)
    assert done.returncode == 0, done.stderr
    return 1_000_000 - int(done.stdout)


@pytest.fixture(scope="module")
def plain(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run without accumulation."""
    folder = tmp_path_factory.mktemp("plain") / "run"
    run(shards, folder)
    return folder


class TestKilledWhileSaving:
    """SIGKILL anywhere in saving and pruning, with one kept checkpoint."""

    @pytest.mark.long  # whole commands, killed: pytest -m long
    @pytest.mark.parametrize("part", [0.6])
    def test_one_loadable_checkpoint_is_left(
        self, part: float, calls: int, shards: Path, tmp_path: Path, plain: Path
    ) -> None:
        self._killed_and_resumed(1 + int(part * (calls - 1)), shards, tmp_path, plain)

    @pytest.mark.long
    @pytest.mark.timeout(3600)
    def test_at_every_call(self, calls: int, shards: Path, tmp_path: Path, plain: Path) -> None:
        for turn in range(1, calls + 1):
            self._killed_and_resumed(turn, shards, tmp_path / str(turn), plain)

    @staticmethod
    def _killed_and_resumed(turn: int, shards: Path, folder: Path, plain: Path) -> None:
        done = train_to_death(shards, folder, turn)
        assert done.returncode == -signal.SIGKILL, done.stderr
        summary = run(shards, folder, checkpoints_total_limit=1)
        start = log_of(folder, "start")[-1]
        assert start["step"] in {2, 4}
        assert not start["passed"]
        assert summary.step == STEPS
        assert learned(folder, STEPS) == learned(plain, STEPS)
        assert [path.name for path in (folder / CHECKPOINTS).iterdir()] == [f"step-{STEPS:06d}"]


class TestChoice:
    @pytest.fixture
    def two(self, shards: Path, tmp_path: Path) -> Path:
        """A run with checkpoints at steps 2 and 4."""
        run(shards, tmp_path / "run", max_train_steps=4, checkpointing_steps=2)
        return tmp_path / "run"

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            ("flip", "model.safetensors: expected sha256 "),
            ("cut", "ema.safetensors: "),
            ("missing", "optimizer.safetensors: expected this file, found that the file does not exist"),
            ("no index", "expected checkpoint.json, found none"),
            ("edited index", "fits its checksum, found other content"),
            ("empty index", "expected a JSON document"),
        ],
    )
    def test_a_damaged_one_is_named_and_the_older_taken(
        self, damage: str, said: str, two: Path, shards: Path, tmp_path: Path
    ) -> None:
        newest = checkpoint_of(two, 4)
        _damage(newest, damage)
        run(shards, two)
        run(shards, tmp_path / "other")
        start = log_of(two, "start")[-1]
        assert start["step"] == 2
        (passed,) = start["passed"]
        assert passed["path"] == str(newest)
        assert said in passed["reason"]
        assert learned(two, STEPS) == learned(tmp_path / "other", STEPS)
        assert newest.with_name("passed-step-000004-1").is_dir()

    def test_with_none_left_the_run_is_refused(self, two: Path, shards: Path) -> None:
        for step in (2, 4):
            _damage(checkpoint_of(two, step), "flip")
        with pytest.raises(DataError, match="found none among 2"):
            run(shards, two)

    def test_another_model_window_or_seed_is_refused_by_name(self, two: Path, shards: Path) -> None:
        with pytest.raises(UsageFault, match="width: 16 in the checkpoint, 32 in this run"):
            run(shards, two, model={"width": 32, "layers": 1, "heads": 2})
        with pytest.raises(UsageFault, match="window_ticks: 16 in the checkpoint, 8 in this run"):
            run(shards, two, window_ticks=8)
        with pytest.raises(UsageFault, match="seed: 0 in the saved state, 1 in this run"):
            run(shards, two, seed=1)

    def test_never_wants_an_empty_folder(self, two: Path, shards: Path) -> None:
        with pytest.raises(UsageFault, match=r"--resume-from-checkpoint never: .*found 2, the newest"):
            run(shards, two, resume_from_checkpoint="never")

    def test_a_named_one_starts_a_branch_in_another_folder(self, two: Path, shards: Path, tmp_path: Path) -> None:
        older = checkpoint_of(two, 2)
        with pytest.raises(UsageFault, match="choose another --output-dir"):
            run(shards, two, resume_from_checkpoint=str(older))
        run(shards, tmp_path / "branch", resume_from_checkpoint=str(older))
        run(shards, two)
        assert learned(tmp_path / "branch", STEPS) == learned(two, STEPS)
        with pytest.raises(UsageFault, match="found nothing there"):
            run(shards, tmp_path / "third", resume_from_checkpoint=str(two / "nowhere"))

    def test_other_settings_are_used_and_logged(self, two: Path, shards: Path) -> None:
        run(shards, two, learning_rate=1e-4, batch_size=2)
        warnings = " ".join(log_of(two, "start")[-1]["remarks"])
        assert f"--learning-rate was {LEARNING_RATES['tiny']}, is 0.0001" in warnings
        assert "--batch-size was 4, is 2" in warnings
        assert "global batch 2, was 4" in warnings

    def test_a_second_run_in_the_folder_is_refused(self, two: Path, shards: Path) -> None:
        from omniges.errors import EnvironmentFault
        from omniges.storage.atomic import locked

        with locked(two), pytest.raises(EnvironmentFault, match="another omniges run"):
            run(shards, two)

    def test_what_a_killed_run_left_half_written_goes(self, two: Path, shards: Path) -> None:
        torn = two / CHECKPOINTS / ".step-000006.tmp-1"
        shutil.copytree(checkpoint_of(two, 4), torn)
        run(shards, two)
        assert not torn.exists()


def _damage(checkpoint: Path, how: str) -> None:
    if how == "flip":
        data = bytearray((checkpoint / "model.safetensors").read_bytes())
        data[len(data) // 2] ^= 1
        (checkpoint / "model.safetensors").write_bytes(data)
    elif how == "cut":
        os.truncate(checkpoint / "ema.safetensors", 1000)
    elif how == "missing":
        (checkpoint / "optimizer.safetensors").unlink()
    elif how == "no index":
        (checkpoint / "checkpoint.json").unlink()
    elif how == "empty index":
        (checkpoint / "checkpoint.json").write_bytes(b"")
    else:
        index = json.loads((checkpoint / "checkpoint.json").read_bytes())
        index["step"] = 5
        (checkpoint / "checkpoint.json").write_text(json.dumps(index))
