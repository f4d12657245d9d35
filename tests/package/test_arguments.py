"""Every argument of every public function, given what it cannot be, is one line that names it, and leaves nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import omniges
from omniges import OmnigesError, OmnigesPipeline, Recording, UsageFault, arguments
from omniges.metrics.registry import Metric

_JUNK: list[Any] = [
    None,
    True,
    -1,
    0,
    2.5,
    float("nan"),
    "",
    "nope",
    "a\0b",
    "\ud800",
    "x" * 300,
    b"x",
    [],
    {},
    object(),
    1 << 70,
]


def recording(**changes: Any) -> Recording:
    """A valid recording of a second, changed."""
    poses, trans = np.zeros((30, 165), np.float32), np.zeros((30, 3))
    whole = {"key": "a", "poses": poses, "trans": trans, "expressions": np.zeros((30, 100)), "frame_rate_hz": 30}
    return Recording(**(whole | {"betas": np.zeros(300)} | changes))


def calls(shards: Path, checkpoint: Path, folder: Path) -> dict[str, tuple[Callable[..., Any], dict[str, Any]]]:
    """Public functions with arguments that they take; each argument is then replaced."""
    motion = {name: getattr(recording(), name) for name in ("poses", "trans", "expressions", "betas")}
    pipeline = OmnigesPipeline.from_pretrained(checkpoint)
    return {
        "open_shards": (omniges.open_shards, {"folder": shards}),
        "WindowDataset": (omniges.WindowDataset, {"shards": shards, "window_ticks": 8}),
        "webdataset": (omniges.webdataset, {"source": shards}),
        "load_model": (omniges.load_model, {"checkpoint": checkpoint}),
        "load_codec": (omniges.load_codec, {"name": "audioldm2-vae", "folder": folder}),
        "read_motion": (omniges.read_motion, {"path": folder / "none.npz"}),
        "write_motion": (omniges.write_motion, {"path": folder / "a.npz", **motion}),
        "write_shards": (omniges.write_shards, {"recordings": [recording()], "out": folder / "set", "force": True}),
        "verify_shards": (omniges.verify_shards, {"folder": shards}),
        "sample_corpus": (omniges.sample_corpus, {"folder": folder / "corpus", "clips": 1, "seconds": 2.0}),
        "register_metric": (omniges.register_metric, {"metric": Metric(label="x", stream="text", of=max)}),
        "register_codec": (omniges.register_codec, {"name": "x", "loader": max}),
        "from_pretrained": (OmnigesPipeline.from_pretrained, {"folder": checkpoint}),
        "pipeline": (pipeline, {"task": "t2g", "text": [("a", 0.0, 0.5)], "num_inference_steps": 1, "seconds": 1.0}),
        "speaking_rate": (pipeline.speaking_rate, {"shards": shards}),
    }


_NAMES = (
    *("open_shards", "WindowDataset", "webdataset", "load_model", "load_codec", "read_motion", "write_motion"),
    *("write_shards", "verify_shards", "sample_corpus", "register_metric", "register_codec", "from_pretrained"),
    *("pipeline", "speaking_rate"),
)


@pytest.fixture(scope="module")
def checkpoint(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from training_helpers import run

    folder = tmp_path_factory.mktemp("arguments") / "run"
    run(shards, folder, max_train_steps=1)
    return folder


@pytest.mark.parametrize("name", _NAMES)
def test_junk_is_taken_as_documented_or_refused_in_one_line(
    shards: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    function, given = calls(shards, checkpoint, tmp_path / "own")[name]
    (tmp_path / "own").mkdir()
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    for parameter in parameters:
        for junk in _JUNK:
            try:
                function(**(given | {parameter.name: junk}))
            except OmnigesError as error:
                assert "\n" not in str(error), (parameter.name, junk)
            except Exception as error:
                raise AssertionError(f"{name}({parameter.name}={junk!r}): {error!r}") from error
    allowed = {"own", "nope", "x" * 300}  # names that a path may have
    assert {path.name for path in tmp_path.iterdir()} <= allowed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": None}, "expected values by name.*found labels None"),
        ({"labels": "happy"}, "expected values by name.*found labels 'happy'"),
        ({"absent": None}, "expected names of parts.*found absent None"),
        ({"absent": 3}, "expected names of parts.*found absent 3"),
        ({"words": 5}, "expected a list of words.*found words 5"),
        ({"semantic": 5}, "expected a list of spans.*found semantic 5"),
        ({"poses": [[0.0] * 165, [0.0]]}, "poses: expected an array of numbers, found list"),
        ({"poses": np.ma.zeros((30, 165))}, "expected an array without a mask"),
        ({"poses": torch.zeros(30, 165, dtype=torch.bfloat16)}, "expected an array of numbers, found Tensor"),
        ({"samples": np.zeros((2, 16000), np.float32), "sample_rate_hz": 16000}, r"give samples\.T"),
        ({"samples": object(), "sample_rate_hz": 16000}, "samples"),
    ],
)
def test_what_a_recording_cannot_hold_is_one_line(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(OmnigesError, match=words) as caught:
        omniges.write_shards([recording(**changes)], tmp_path / "a/b/c")
    assert str(caught.value).startswith("recording 'a': ")
    assert list(tmp_path.iterdir()) == []


def test_tensors_that_learn_are_taken(tmp_path: Path) -> None:
    omniges.write_shards([recording(poses=torch.zeros(30, 165, requires_grad=True))], tmp_path / "set")
    assert omniges.verify_shards(tmp_path / "set", level="deep").valid
    assert omniges.verify_shards(tmp_path / "set", level="quick").sound  # the former name


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: omniges.write_shards([], "s3://bucket/set"), "out: expected a local path, not a URL"),
        (lambda: omniges.write_shards([], ""), "out: expected a path"),
        (lambda: omniges.write_shards([recording()], "set", keep_audio="no"), "keep_audio: expected True or False"),
        (lambda: omniges.write_shards([recording()], "set", progress=True), "progress: expected a function"),
        (lambda: omniges.write_shards([recording()], "set", shard_bytes="1"), "shard_bytes: expected a whole number"),
        (lambda: omniges.register_metric(max), "metric: expected a Metric"),
        (
            lambda: omniges.register_metric(Metric(label="x", stream="video", of=max)),
            "stream: expected one of text, audio, gesture",
        ),
        (lambda: omniges.load_codec(None, "x"), "name: expected a text"),
    ],
)
def test_messages_name_the_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageFault, match=words):
        call()
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_place_of_its_folder_is_named(shards: Path) -> None:
    with pytest.raises(UsageFault, match="found a file; give its folder"):
        omniges.open_shards(shards / "dataset.json")


def test_a_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert arguments.path("out", "~/set") == tmp_path / "set"


class TestPipeline:
    def test_results_are_not_saved_as_what_they_are_not(self, checkpoint: Path, tmp_path: Path) -> None:
        pipeline = OmnigesPipeline.from_pretrained(checkpoint)
        sample = pipeline("t2g", text=[("a", 0.0, 0.5)], seconds=1.0, num_inference_steps=1)[0]
        for name in ("a.mp4", "", None):
            with pytest.raises(UsageFault, match="path: "):
                sample.save(name if not name else tmp_path / name)
        assert [path.name for path in sample.save(tmp_path / "a.v2")] == ["a.v2.npz"]

    def test_its_representation_says_what_it_is(self, checkpoint: Path) -> None:
        shown = repr(OmnigesPipeline.from_pretrained(checkpoint))
        assert shown.startswith("OmnigesPipeline('")
        assert "step 1, ema weights, on cpu; tasks " in shown
