"""The comparison of values, the names that select it, and the target of RUN/best."""

from __future__ import annotations

from pathlib import Path

import pytest
from pipeline_helpers import scripted

from omniges.errors import UsageFault
from omniges.metrics.registry import metric_name
from omniges.model.checkpoint import open_checkpoint
from omniges.trainer.config import TrainSettings
from omniges.trainer.validation.best import Best, better, point_best, remove_best


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        ("Fréchet gesture distance", "frechet_gesture_distance"),
        ("word error rate", "word_error_rate"),
        ("log-mel L1", "log_mel_l1"),
        ("word start error, 90 %", "word_start_error_90"),
    ],
)
def test_names_are_letters_digits_and_underscores(metric: str, name: str) -> None:
    assert metric_name(metric) == name


def test_less_is_better_for_losses_and_errors_more_for_agreement_and_a_tie_changes_nothing() -> None:
    for name in ("loss", "g2t/loss", "g2t/word_error_rate", "t2g/frechet_gesture_distance"):
        assert better(name, 1.0, Best(1, name, 2.0))
        assert not better(name, 2.0, Best(1, name, 2.0))
    for name in ("a2g/beat_consistency", "t2a/onset_agreement"):
        assert better(name, 2.0, Best(1, name, 1.0))
        assert not better(name, 1.0, Best(1, name, 1.0))
    assert better("loss", 9.0, None)
    assert better("loss", 9.0, Best(1, "g2t/loss", 1.0))


@pytest.mark.parametrize("name", ["los", "t2g/word_error_rate", "t2g/jerk", "x2y/loss", "t2g"])
def test_a_name_that_chooses_nothing_is_refused_with_those_that_do(name: str) -> None:
    with pytest.raises(UsageFault, match=r"best_metric .*: expected one of .*loss.*"):
        TrainSettings(best_metric=name)


def test_the_link_moves_in_one_step_and_goes_with_what_was_left_of_its_making(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoint = tmp_path / f"checkpoints/step-{step:06d}"
        checkpoint.mkdir(parents=True)
        link = point_best(tmp_path, checkpoint)
        assert link.readlink() == Path(f"checkpoints/step-{step:06d}")  # relative: a run can be moved
        assert link.resolve() == checkpoint
    (tmp_path / ".best.tmp-1").symlink_to("checkpoints/step-000001")
    remove_best(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints"]
    remove_best(tmp_path)


KILLER = """
import json, os, shutil, signal, sys, warnings
from pathlib import Path
import torch
from omniges.model.checkpoint import Contents
from omniges.trainer.validation.best import Best, save_and_prune

warnings.simplefilter("ignore")
torch.set_num_threads(1)
root = Path(sys.argv[1])

def contents(step):
    return Contents(step, {"model.safetensors": {"a": torch.full((4,), float(step))}}, {"state.json": b"{}"})

def deadly(turns):
    def wrap(name):
        inner = getattr(os, name)
        def call(*args, **kwargs):
            turns[0] -= 1
            if turns[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return inner(*args, **kwargs)
        setattr(os, name, call)
    for name in ("mkdir", "rename", "fsync", "rmdir", "unlink", "symlink", "write"):
        wrap(name)

turn, killed = 0, True
while killed:
    turn += 1
    run = root / str(turn)
    run.mkdir()
    for step in (2, 4):
        save_and_prune(run, contents(step), 1, Best(2, "loss", 1.0))
    child = os.fork()
    if child == 0:
        deadly([turn])
        save_and_prune(run, contents(6), 1, Best(6, "loss", 0.5))
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
print(turn)
"""


@pytest.mark.slow
def test_killed_before_any_system_call_the_link_leads_to_a_whole_checkpoint(tmp_path: Path) -> None:
    """The second best checkpoint takes the place of the first, with one kept beside it."""
    done = scripted(KILLER, tmp_path)
    assert done.returncode == 0, done.stderr
    turns = int(done.stdout)
    assert turns > 20
    led = [open_checkpoint((tmp_path / str(turn) / "best").resolve()).step for turn in range(1, turns + 1)]
    assert led == sorted(led)
    assert set(led) == {2, 6}
    last = tmp_path / str(turns)
    assert sorted(path.name for path in (last / "checkpoints").iterdir()) == ["step-000006"]
