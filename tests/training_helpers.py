"""Training runs small enough for a test, and what they leave behind."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from omniges.model.checkpoint import CHECKPOINTS
from omniges.model.tasks import SIX
from omniges.trainer.config import TrainSettings
from omniges.trainer.loop import StepProgress
from omniges.trainer.train import Summary, train
from omniges.trainer.train_step import Learner
from omniges.trainer.validation.run import LEVELS

SMALLEST = {"width": 16, "layers": 1, "heads": 2}
TOKEN_WIDTHS = {"piece_width": 8, "mark_width": 4}
Trained = Callable[..., Path]
"""Trains on shards with some settings and returns the run's folder."""
TENSOR_FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")


def settings_of(shards: Path | str, run: Path, **changes: Any) -> TrainSettings:
    """A model of one layer, windows of 1.6 s, batches of four."""
    plain: dict[str, Any] = {
        "shards": (shards,),
        "output_dir": run,
        "window_ticks": 16,
        "batch_size": 4,
        "max_train_steps": 6,
        "lr_warmup_steps": 3,
        "num_workers": 0,
        "logging_steps": 4,
        "validation_steps": 0,
        "model": SMALLEST if "text_codec" in changes else SMALLEST | TOKEN_WIDTHS,
    }
    return TrainSettings(**(plain | changes))


def run(shards: Path | str, folder: Path, **changes: Any) -> Summary:
    """Train in this process."""
    return train(settings_of(shards, folder, **changes))


def log_of(run_folder: Path, event: str = "steps") -> list[dict[str, Any]]:
    """Events of a kind, in order."""
    lines = [json.loads(line) for line in (run_folder / "log.jsonl").read_text("utf-8").splitlines()]
    return [line for line in lines if line["event"] == event]


def losses_of(run_folder: Path) -> dict[int, float]:
    """Loss of each step by its number from 0; what was logged last counts."""
    return {
        line["step"] - len(line["losses"]) + k: loss
        for line in log_of(run_folder)
        for k, loss in enumerate(line["losses"])
    }


def checkpoint_of(run_folder: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return run_folder / CHECKPOINTS / f"step-{step:06d}"


def learned(run_folder: Path, step: int) -> dict[str, bytes]:
    """The bits of all tensors of a checkpoint, read by safetensors."""
    found = {}
    for file in TENSOR_FILES:
        for name, tensor in load_file(checkpoint_of(run_folder, step) / file).items():
            found[f"{file}/{name}"] = tensor.numpy().tobytes()
    return found


def require_same_learning(run_folder: Path, other: Path, step: int = 6) -> None:
    """Two runs have learned the same to the last bit, and by the same losses."""
    assert learned(run_folder, step) == learned(other, step)
    assert losses_of(run_folder) == losses_of(other)


def last_validation(run_folder: Path) -> dict[str, Any]:
    """The event of the last validation."""
    return log_of(run_folder, "validation")[-1]


def require_same_losses_by_level(run_folder: Path, other: Path) -> None:
    """The last validations of two runs have equal, finite losses of all six tasks at all levels."""
    losses = last_validation(run_folder)["losses"]
    assert list(losses) == list(SIX)
    for table in losses.values():
        assert [float(level) for level in table["levels"]] == list(LEVELS)
        assert all(math.isfinite(loss) for loss in table["levels"].values())
    assert losses == last_validation(other)["losses"]


class SignalAt:
    """Sends this process a signal when something is called for the n-th time."""

    def __init__(self, number: signal.Signals, turn: int) -> None:
        self._number, self._left = number, turn

    def __call__(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), self._number)


def run_with_signal(shards: Path | str, folder: Path, turn: int, **changes: Any) -> Summary:
    """Train in this process, which gets SIGTERM before the turn-th update of the weights."""
    stop, finish = SignalAt(signal.SIGTERM, turn), Learner.finish_step

    def counted(self: Learner, step: int) -> Any:
        stop()
        return finish(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "finish_step", counted)
        return run(shards, folder, **changes)


class Collected:
    """A reporter that keeps its messages."""

    def __init__(self) -> None:
        self.progress: list[StepProgress] = []
        self.messages: list[str] = []

    def update(self, progress: StepProgress) -> None:
        self.progress.append(progress)

    def say(self, message: str) -> None:
        self.messages.append(message)

    def __enter__(self) -> Collected:
        return self

    def __exit__(self, *_: object) -> None:
        return None
