"""The log is whole lines of JSON that are never rewritten; trackers get its numbers; a missing one is named."""

from __future__ import annotations

import importlib.machinery
import json
import resource
import signal
import sys
import types
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from omniges.errors import EnvironmentFault
from omniges.trainer.logging import COLUMNS, Logbook, Shown, flat_numbers, open_trackers


class Kept:
    """A tracker that keeps what is logged."""

    name = "kept"

    def __init__(self) -> None:
        self.logged: list[tuple[int, Mapping[str, float]]] = []
        self.closed = False

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        self.logged.append((step, numbers))

    def show(self, step: int, samples: Sequence[Shown]) -> None:
        self.logged.append((step, {one.task: one.ticks for one in samples}))

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
    assert tracker.logged == [(7, {"loss": 1.0, "tasks/t2g/loss": 2.5, "tasks/t2g/samples": 3.0})]
    assert tracker.closed
    assert dict(flat_numbers({})) == {}


@pytest.mark.parametrize("place", ["log", "show", "close"])
def test_a_tracker_that_fails_is_reported_and_left_out(place: str, tmp_path: Path) -> None:
    class Failing(Kept):
        def fail(self, *_: object) -> None:
            raise ConnectionError("no network")

    tracker, other, logged = Failing(), Kept(), list[str]()
    setattr(tracker, place, tracker.fail)
    with Logbook(tmp_path, [tracker, other], log_message=logged.append) as book:
        for step in (1, 2):
            book.track(step, {"loss": 1})
            book.show(step, [SimpleNamespace(task="t2g", ticks=1)])  # type: ignore[list-item]
    assert len(other.logged) == 4
    assert other.closed
    (line,) = logged
    assert "ConnectionError: no network" in line
    assert '"event": "tracker"' in (tmp_path / "log.jsonl").read_text()


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


@pytest.fixture
def samples(tmp_path: Path) -> list[Shown]:
    """Two results of a window whose picture is one red pixel."""
    image = pytest.importorskip("matplotlib.image", reason="matplotlib is not installed")
    picture = tmp_path / "2_scott_0_1_1-00064.png"
    image.imsave(picture, [[[1.0, 0.0, 0.0]]])
    facts = {"recording": "2_scott_0_1_1", "speaker": "scott", "source_path": "npz/2_scott_0_1_1.npz"}
    facts |= {"recorded": "a | b", "files": "run/validation/step-000500", "generated": "a\nb"}
    return [Shown(task=task, start_tick=64, ticks=64, picture=picture, **facts) for task in ("a2t", "t2g")]


def test_tensorboard_shows_samples_with_their_origin_and_each_picture_once(
    tmp_path: Path, samples: list[Shown]
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    with Logbook(tmp_path, open_trackers(["tensorboard"], tmp_path, {})) as book:
        book.show(5, samples)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == ["validation/2_scott_0_1_1-00064"]
    (image,) = events.Images("validation/2_scott_0_1_1-00064")
    assert (image.step, image.width, image.height) == (5, 1, 1)
    (table,) = events.Tensors("validation/samples/text_summary")
    lines = table.tensor_proto.string_val[0].decode().splitlines()
    assert lines[0].split("|")[1].strip() == "task"
    assert "2_scott_0_1_1 | scott | npz/2_scott_0_1_1.npz | 64 | 64" in lines[2]
    assert "a b | a \\| b" in lines[3]


def test_wandb_offline_keeps_a_table_with_pictures(
    tmp_path: Path, samples: list[Shown], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package itself is used, without a network."""
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package's own parts
        with Logbook(tmp_path, open_trackers(["wandb"], tmp_path, {"seed": 1})) as book:
            book.track(5, {"loss": 0.5})
            book.show(5, samples)
    (table,) = (path for path in tmp_path.rglob("*.table.json") if "media" in path.parts)
    document = json.loads(table.read_text())
    assert document["columns"] == list(COLUMNS)
    assert [row[:6] for row in document["data"]] == [
        [task, "2_scott_0_1_1", "scott", "npz/2_scott_0_1_1.npz", 64, 64] for task in ("a2t", "t2g")
    ]
    assert [row[-1] for row in document["data"]] == ["Image", "Image"]  # the artifact has them
    (picture,) = tmp_path.rglob("media/images/validation/*.png")
    assert picture.read_bytes() == samples[0].picture.read_bytes()


def test_wandb_gets_the_settings_and_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in of the package records its calls, which are all that is tested."""
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
        book.show(3, [])
    start = {"project": "omniges", "name": tmp_path.name, "dir": str(tmp_path), "config": {"seed": 1}}
    assert calls == [start, (3, {"loss": 0.5}), "end"]
