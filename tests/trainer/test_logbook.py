"""The log is whole lines of JSON that are never rewritten; trackers get its numbers; a missing one is named."""

from __future__ import annotations

import importlib.machinery
import json
import resource
import signal
import sys
import types
from collections.abc import Mapping
from pathlib import Path

import pytest

from omniges.errors import EnvironmentFault
from omniges.trainer.logbook import Logbook, flat_numbers, open_trackers


class Kept:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, Mapping[str, float]]] = []
        self.closed = False

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.told.append((step, numbers))

    def close(self) -> None:
        self.closed = True


def test_lines_are_appended_by_one_run_after_the_other(tmp_path: Path) -> None:
    for step in (1, 2):
        with Logbook(tmp_path / "run") as book:
            book.write("steps", step=step, text="Grüße\n")
    lines = (tmp_path / "run/log.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"event": "steps", "step": 1, "text": "Grüße\n"},
        {"event": "steps", "step": 2, "text": "Grüße\n"},
    ]


def test_it_is_strict_json(tmp_path: Path) -> None:
    with Logbook(tmp_path) as book, pytest.raises(ValueError, match="not JSON compliant"):
        book.write("steps", loss=float("nan"))


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with Logbook(tmp_path / "run", active=False) as book:
        book.write("steps", step=1)
        book.sync()
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    """A file-size limit stands for the disk."""
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with Logbook(tmp_path) as book:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
            with pytest.raises(EnvironmentFault, match=r"cannot write .*log\.jsonl"):
                for step in range(10):
                    book.write("steps", step=step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)


def test_trackers_get_the_numbers_under_joined_names(tmp_path: Path) -> None:
    tracker = Kept()
    with Logbook(tmp_path, [tracker]) as book:
        book.track(7, {"loss": 1, "tasks": {"t2g": {"loss": 2.5, "samples": 3}}, "note": "x", "flag": True, "no": None})
    assert tracker.told == [(7, {"loss": 1.0, "tasks/t2g/loss": 2.5, "tasks/t2g/samples": 3.0})]
    assert tracker.closed
    assert dict(flat_numbers({})) == {}


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_named_with_the_way_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda wanted: None if wanted == name else inner(wanted))
    with pytest.raises(EnvironmentFault, match=rf"--report-to {name}: .*pip install 'omniges\[{name}\]'"):
        open_trackers([name], tmp_path, {})


def test_tensorboard_event_files_are_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    with Logbook(tmp_path, open_trackers(["tensorboard"], tmp_path, {"seed": 1})) as book:
        book.track(3, {"loss": 0.5})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 0.5)]


def test_wandb_gets_the_settings_and_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in of the package, for its calls are all there is to test here."""
    calls: list[object] = []
    own = types.SimpleNamespace(
        log=lambda numbers, step: calls.append((step, numbers)), finish=lambda: calls.append("end")
    )
    package = types.ModuleType("wandb")
    package.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    package.init = lambda **words: calls.append(words) or own  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", package)
    with Logbook(tmp_path, open_trackers(["wandb"], tmp_path, {"seed": 1})) as book:
        book.track(3, {"loss": 0.5})
    start = {"project": "omniges", "name": tmp_path.name, "dir": str(tmp_path), "config": {"seed": 1}}
    assert calls == [start, (3, {"loss": 0.5}), "end"]
