"""The work between steps: it does not wait for the device, saves no diverged weights, and writes the log."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_helpers import omniges
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from training_helpers import Collected, SignalAt, checkpoint_of, log_of, losses_of, run

from omniges.errors import DataError, EnvironmentFault, ExitCode
from omniges.model.checkpoint import CHECKPOINTS
from omniges.model.flow import FlowLoss, FlowModel
from omniges.trainer import loop as loop_module
from omniges.trainer import train as train_module
from omniges.trainer import train_step as learner_module
from omniges.trainer.batches import Feed
from omniges.trainer.config import LEARNING_RATES
from omniges.trainer.logging import Logbook


class NoReads(TorchDispatchMode):
    """A tensor that is converted to a Python number is an error: ``item``, ``tolist``, ``if``, ``float(tensor)``."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError("a tensor was read")
        return func(*args, **(kwargs or {}))


class NoCopies(TorchFunctionMode):
    """``tensor.cpu()`` and ``tensor.tolist()`` are errors: on a GPU both wait for it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in {torch.Tensor.cpu, torch.Tensor.tolist, torch.Tensor.item}:
            raise AssertionError("a tensor was copied to the host")
        return func(*args, **(kwargs or {}))


class TestNoHostSync:
    def test_the_traps_catch_what_they_are_for(self) -> None:
        for read in (torch.Tensor.item, float, bool, torch.Tensor.tolist):
            with pytest.raises(AssertionError), NoReads(), NoCopies():
                read(torch.ones(1))
        with pytest.raises(AssertionError), NoCopies():
            torch.ones(1).cpu()

    @pytest.mark.slow
    @pytest.mark.parametrize("clip", [0.0, 1.0])
    def test_a_step_reads_nothing_from_the_device(
        self, clip: float, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Everything from the first micro-step to the average, with the draws of tasks and the gradients."""
        compute, finish = loop_module.Loop._compute, learner_module.Learner.finish_step
        watched = []

        def watch(inner: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                watched.append(inner.__name__)
                with NoCopies(), NoReads():
                    return inner(*args, **kwargs)

            return call

        monkeypatch.setattr(loop_module.Loop, "_compute", watch(compute))
        monkeypatch.setattr(learner_module.Learner, "finish_step", watch(finish))
        run(shards, tmp_path, gradient_accumulation_steps=2, max_grad_norm=clip, max_train_steps=5)
        assert watched == ["_compute", "_compute", "finish_step"] * 5

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
    def test_cuda_itself_sees_no_synchronisation(
        self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        inner = loop_module.Loop._step

        def strict(self: Any) -> Any:
            torch.cuda.set_sync_debug_mode("error" if self._state.step else "default")
            try:
                return inner(self)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        monkeypatch.setattr(loop_module.Loop, "_step", strict)
        run(shards, tmp_path)

    def test_losses_are_read_at_logging_steps_and_checkpoints_alone(
        self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run(shards, tmp_path, max_train_steps=11, logging_steps=4, checkpointing_steps=6)
        assert [line["step"] for line in log_of(tmp_path)] == [4, 6, 8, 11]
        assert sorted(losses_of(tmp_path)) == list(range(11))


def spoil(monkeypatch: pytest.MonkeyPatch, position: int, value: float) -> None:
    """Give the sample at a position another loss."""
    inner = FlowModel.forward

    def forward(self: FlowModel, windows: Any, *args: Any, **kwargs: Any) -> FlowLoss:
        loss = inner(self, windows, *args, **kwargs)
        factor = torch.where(windows.positions == position, value, 1.0)
        return FlowLoss(loss.total * factor.mean(), loss.each * factor[:, None])

    monkeypatch.setattr(FlowModel, "forward", forward)


class TestNonsense:
    @pytest.mark.slow
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_loss_that_is_no_number_names_sample_and_batch_and_saves_nothing(
        self, value: float, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spoil(monkeypatch, position=13, value=value)
        with pytest.raises(DataError, match=r"step 3: the loss of 1 of 4 samples is NaN or infinite: ") as caught:
            run(shards, tmp_path, checkpointing_steps=2)
        (refused,) = log_of(tmp_path, "refused")
        (sample,) = refused["samples"]
        assert sample["position"] == 13
        assert sample["key"] in str(caught.value)
        assert refused["command"] in str(caught.value)
        assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["step-000002"]
        traced = self._carry_out(refused["command"])
        (row,) = [row for row in traced if row["position"] == 13]
        assert (row["key"], row["start_tick"]) == (sample["key"], sample["start_tick"])
        assert {row["position"] for row in traced} == {12, 13, 14, 15}

    @staticmethod
    def _carry_out(command: str) -> list[dict[str, Any]]:
        program, *words = shlex.split(command)
        assert program == "omniges"
        done = omniges(*words)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def test_with_accumulation_the_micro_batch_is_traced(
        self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spoil(monkeypatch, position=13, value=float("nan"))
        with pytest.raises(DataError, match=r"step 1: .*--from-step=3"):
            run(shards, tmp_path, gradient_accumulation_steps=2)

    def test_a_gradient_that_is_no_number_names_the_whole_batch(
        self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        inner = learner_module.Learner.finish_step

        def finish(self: Any, step: int) -> Any:
            if step == 2:
                self._parameters[0].grad.fill_(float("nan"))
            return inner(self, step)

        monkeypatch.setattr(learner_module.Learner, "finish_step", finish)
        with pytest.raises(DataError, match=r"step 2: the gradient is NaN or infinite, .* and 1 more"):
            run(shards, tmp_path)
        assert [sample["position"] for sample in log_of(tmp_path, "refused")[0]["samples"]] == [8, 9, 10, 11]

    def test_a_loss_that_grows_without_end_stops_the_run(
        self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spoil(monkeypatch, position=13, value=1e6)
        with pytest.raises(DataError, match=r"step 3: the smoothed loss is .* over 100 times its minimum"):
            run(shards, tmp_path)
        assert not (tmp_path / CHECKPOINTS).exists()


class TestTelling:
    def test_the_log_has_config_provenance_and_each_quantity(self, shards: Path, tmp_path: Path) -> None:
        run(shards, tmp_path, max_train_steps=4)
        (start,) = log_of(tmp_path, "start")
        (data,) = start["provenance"]["data"]
        assert data["manifest_hash"] == json.loads((shards / "dataset.json").read_bytes())["manifest_hash"]
        assert start["provenance"]["packages"]["torch"] == torch.__version__
        assert start["settings"]["window_ticks"] == 16
        assert start["provenance"]["git"] is None or len(start["provenance"]["git"]["commit"]) == 40
        (line,) = log_of(tmp_path)
        assert line["step"] == 4
        assert len(line["losses"]) == len(line["gradient_norms"]) == 4
        assert line["loss"] == pytest.approx(sum(line["losses"]) / 4)
        assert line["learning_rate"] == LEARNING_RATES["tiny"]
        assert line["epoch"] == pytest.approx(16 / 8)
        assert 0 <= line["waiting_for_data"] <= 1
        assert sum(task["samples"] for task in line["tasks"].values()) == 16
        (saved,) = log_of(tmp_path, "checkpoint")
        assert saved["path"] == str(checkpoint_of(tmp_path, 4))
        assert log_of(tmp_path, "end")[0]["ending"] == "done"

    def test_progress_says_what_a_person_wants_to_know(
        self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reporter = Collected()
        monkeypatch.setattr(train_module, "make_reporter", lambda _mode: reporter)
        summary = run(shards, tmp_path, logging_steps=3)
        assert [progress.step for progress in reporter.progress] == [3, 6]
        assert reporter.progress[-1].left_s == 0
        assert any("4 clips" in warning and "8 windows of 16 ticks" in warning for warning in reporter.messages)
        assert summary.lines[0].startswith("all steps done at step 6 (epoch 3.0): 6 steps in ")
        again = run(shards, tmp_path, logging_steps=3)
        assert len(again.lines) == 1
        assert again.lines[0].startswith(
            f"nothing to do: {tmp_path} is at step 6, where these settings end; raise --max"
        )

    @pytest.mark.parametrize(("steps", "word"), [(0, "start"), (2, "resume")])
    def test_a_signal_before_the_first_step_is_reported_as_a_stop(
        self, steps: int, word: str, shards: Path, tmp_path: Path
    ) -> None:
        if steps:
            run(shards, tmp_path, max_train_steps=steps)
        stop = SignalAt(signal.SIGTERM, 1)
        with pytest.MonkeyPatch.context() as patch:
            inner = Feed.next
            patch.setattr(Feed, "next", lambda feed: (stop(), inner(feed))[1])
            summary = run(shards, tmp_path)
        assert summary.outcome.exit_code == ExitCode.STOPPED
        (line,) = summary.lines
        assert line.startswith(f"stopped by a signal at step {steps}, ")
        assert line.endswith(f"to {word}")
        assert log_of(tmp_path, "end")[-1]["ending"] == "stopped"

    def test_a_line(self) -> None:
        progress = loop_module.StepProgress(
            step=10,
            last_step=20,
            epoch=1.25,
            loss=0.5,
            learning_rate=1e-3,
            samples_per_s=12.34,
            waiting=0.0123,
            left_s=3700.0,
        )
        assert progress.line == (
            "step 10/20 (epoch 1.2): loss 0.5000, lr 0.001, 12.3 samples/s, 1.2% waiting for data, 1:01:40 left"
        )


def test_the_clock_ends_a_run_and_decides_no_weight(shards: Path, tmp_path: Path) -> None:
    """Whatever number of steps a minute had, they are the first ones of the longer run."""
    timed = run(shards, tmp_path / "timed", max_train_steps=None, max_minutes=0.02, logging_steps=1)
    assert timed.outcome.stop_reason is loop_module.StopReason.TIME_UP
    assert timed.step > 0
    run(shards, tmp_path / "counted", max_train_steps=timed.step)
    assert losses_of(tmp_path / "timed") == losses_of(tmp_path / "counted")
    again = run(shards, tmp_path / "timed", max_train_steps=None, max_minutes=0.02)
    assert again.outcome.steps == 0


class Unforeseen(Exception):
    """An error that no code of ours catches."""


class TestUnforeseenErrors:
    @pytest.mark.parametrize(
        ("place", "turn", "saved", "error"),
        [
            ((Feed, "next"), 4, 3, Unforeseen("x")),
            ((learner_module.Learner, "micro_step"), 4, 3, Unforeseen("x")),
            # weights of half a step are no state
            ((learner_module.Learner, "finish_step"), 4, 2, EnvironmentFault("full")),
            # start, steps and checkpoint at 2, steps at 4
            ((Logbook, "write"), 4, 4, EnvironmentFault("full")),
            ((loop_module.Loop, "_plan_at"), 2, 4, Unforeseen("x")),
        ],
    )
    def test_what_was_learned_is_saved_first(
        self,
        place: tuple[type, str],
        turn: int,
        saved: int,
        error: Exception,
        shards: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        inner, calls = getattr(*place), []

        def fail(*args: Any, **kwargs: Any) -> Any:
            calls.append(None)
            if len(calls) == turn:
                raise error
            return inner(*args, **kwargs)

        monkeypatch.setattr(*place, fail)
        with pytest.raises(type(error)):
            run(shards, tmp_path, max_train_steps=9, checkpointing_steps=2, logging_steps=2)
        found = sorted(path.name for path in (tmp_path / CHECKPOINTS).iterdir())
        assert found[-1] == f"step-{saved:06d}"
        assert log_of(tmp_path, "end")[-1]["ending"] == "failed"
        monkeypatch.undo()
        assert run(shards, tmp_path, max_train_steps=9).step == 9

    def test_a_checkpoint_that_cannot_be_saved_is_not_tried_again(
        self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = []

        def full(*_: Any, **__: Any) -> None:
            calls.append(None)
            raise EnvironmentFault("the disk is full")

        monkeypatch.setattr(train_module, "save_and_prune", full)
        with pytest.raises(EnvironmentFault, match="the disk is full"):
            run(shards, tmp_path)
        assert len(calls) == 1
        assert log_of(tmp_path, "end")[-1]["error"] == "EnvironmentFault: the disk is full"
