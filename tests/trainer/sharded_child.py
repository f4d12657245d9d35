"""Contents and files of ranks of a sharded run, seen from inside: ``sharded_child.py held|saved SHARDS FOLDER``."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import torch
from crash_calls import Recorder, tapped
from crash_model import read_tree, replay, write_tree
from training_helpers import settings_of

from omniges.model.checkpoint import choose
from omniges.model.draws import draw_plan
from omniges.trainer import train as train_module
from omniges.trainer.distributed import Ranks
from omniges.trainer.run import accelerated, open_run
from omniges.trainer.sharding import local


def held(shards: Path, folder: Path) -> None:
    """Write what this rank holds after a step: bytes by kind, of all tensors, and of a complete model."""
    settings = settings_of(shards, folder / "run", sharding="full", model={})
    with ExitStack() as stack:
        accelerator = stack.enter_context(accelerated(settings))
        ranks = Ranks()
        run = open_run(settings, accelerator, ranks, stack)
        windows, positions = run.feed.next()
        run.learner.micro_step(windows, draw_plan(settings.flow_settings(), 0, positions), last=True)
        parameters = list(run.learner.model.parameters())
        found = {"gradients": _bytes(p.grad for p in parameters if p.grad is not None)}
        run.learner.finish_step(0)
        found |= {file: _bytes(own.values()) for file, own in run.learner.tensors().items()}
        del windows
        found["complete"] = sum(p.numel() for p in parameters) * 4
        found["everything"] = _bytes(_all_tensors())
        (folder / f"held-{ranks.rank}.json").write_text(json.dumps(found))


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of this rank's rows, each storage once."""
    storages = [local(tensor).untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _all_tensors() -> list[torch.Tensor]:
    """Return all tensors that Python knows."""
    gc.collect()
    return [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor) and x.device.type == "cpu"]


def saved(shards: Path, folder: Path) -> None:
    """Record the calls of saving step 4 and pruning step 2, and list the step that each kill would leave."""
    run = folder / "run"
    inner: Callable[..., object] = train_module.save_and_prune

    def recorded(*args: object) -> object:
        if args[1].step != 4:  # type: ignore[attr-defined]
            return inner(*args)
        before, recorder = read_tree(run / "checkpoints"), Recorder()
        with tapped(run / "checkpoints", recorder), mock.patch("shutil._use_fd_functions", False):
            result = inner(*args)
        calls = recorder.calls
        assert replay(before, calls).tree() == read_tree(run / "checkpoints")  # nothing went past the tap
        left = []
        for number in range(len(calls) + 1):
            place = folder / f"kill-{number}"
            write_tree(replay(before, calls[:number]).tree(), place / "checkpoints")
            choice = choose(place, "latest", lambda _: None)
            left.append([number, None if choice.checkpoint is None else choice.checkpoint.step, len(choice.passed)])
        (folder / "left.json").write_text(json.dumps(left))
        return result

    train_module.save_and_prune = recorded  # type: ignore[assignment]
    limits = {"max_train_steps": 4, "checkpointing_steps": 2, "checkpoints_total_limit": 1}
    train_module.train(settings_of(shards, run, sharding="full", **limits))


if __name__ == "__main__":
    {"held": held, "saved": saved}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
