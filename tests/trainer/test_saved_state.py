"""Every value of every document of a checkpoint, edited and sealed again, is refused in one line or changes nothing."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_helpers import checkpoint_of, learned, log_of, run, settings_of

from omniges.data.sequence import resume
from omniges.errors import DataError, OmnigesError
from omniges.exchange.inspect_models import checkpoint_facts
from omniges.generation.sampler import loader_state, trained_tasks
from omniges.model.checkpoint import CHECKPOINT_FILE, SavedCheckpoint, open_checkpoint
from omniges.model.spec import load_identity
from omniges.shards.dataset import seal
from omniges.storage.files import sha256_hex
from omniges.trainer.distributed import Ranks
from omniges.trainer.run import accelerated, open_run
from omniges.trainer.state import read_provenance, read_state, read_training_settings
from omniges.trainer.train import require_fit

HOSTILE: list[Any] = [None, True, -1, 1e30, "NaN", "", "x" * 10**6, [], {}, [[[{}]]], 2**63, 0]
PYTHON_WORDS = (
    "Error(",
    "argument",
    "object is",
    "NoneType",
    "subscript",
    "__init__",
    "not supported between",
    "'int'",
)
"""What an exception of Python says, which people cannot act on."""
READERS: Mapping[str, tuple[Callable[[SavedCheckpoint], object], ...]] = {
    "state.json": (read_state, loader_state),
    "settings.json": (read_training_settings, trained_tasks),
    "provenance.json": (read_provenance,),
    "config.json": (load_identity,),
    "speaking_rate.json": (load_identity,),
}
WITHOUT_EFFECT = {
    "elapsed_s",  # counts for the time limit alone
    "best.value",
    "smoothed_loss.lowest",  # at most the smoothed loss: when to abort
    "machine.cores",
    "machine.device",
    "machine.platform",
    "machine.processor",
    "machine.threads",
    "best",  # null: the run goes on without a best step
    "validated",  # below the step: it validates again
    "validated_tasks",
    "validated_tasks.0",
    "smoothed_loss.value",
    "best.step",
    "loader.content_hashes",  # left out, as by earlier versions: the manifests are compared
    "loader.tick_multiple",  # likewise: it was 1
    "loader.filters.0.min_seconds",  # 0 in place of 0.0
}
"""Fields of state.json that may have another value of their type without a change of what is learned."""


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps with a checkpoint after each, and an emotion to condition on."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    run(shards, folder, max_train_steps=2, checkpointing_steps=1, condition_streams=("emotion",))
    newest = checkpoint_of(folder, 2)
    document = json.loads((newest / "state.json").read_bytes())
    rewritten(newest, "state.json", document | {"best": {"step": 1, "metric": "loss", "value": 2.5}, "validated": 1})
    return folder


@pytest.fixture
def edited(trained: Path, tmp_path: Path) -> Path:
    """A copy of the newest checkpoint."""
    return Path(shutil.copytree(checkpoint_of(trained, 2), tmp_path / "step-000002"))


def rewritten(folder: Path, name: str, document: Any) -> None:
    """Replace a document and seal the index again, as who edits a checkpoint would."""
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    (folder / name).write_bytes(data)
    index = json.loads((folder / CHECKPOINT_FILE).read_bytes())
    index["files"][name] = {"bytes": len(data), "sha256": sha256_hex(data)}
    del index["checksum"]
    (folder / CHECKPOINT_FILE).write_bytes(seal(index))


def leaves(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Places of all values; of a list the first alone."""
    keys = list(document) if isinstance(document, dict) else [0] if isinstance(document, list) and document else []
    for key in keys:
        yield (*path, key)
        yield from leaves(document[key], (*path, key))


def edits(document: Any, each: int) -> Iterator[tuple[str, Any]]:
    """The document with each value left out or replaced by hostile ones, or with a key that no reader knows.

    Of the hostile values every value gets ``1 / each``, by turns.
    """
    for number, path in enumerate(leaves(document)):
        for value in (*HOSTILE[number % each :: each], KeyError):
            changed = copy.deepcopy(document)
            inner = changed
            for key in path[:-1]:
                inner = inner[key]
            if value is KeyError:
                del inner[path[-1]]
            elif type(inner[path[-1]]) is type(value) and inner[path[-1]] == value:
                continue
            else:
                inner[path[-1]] = value
            yield f"{'.'.join(map(str, path))} = {value!r:.30}", changed
    yield "one more key", document | {"more": 1}


def refusal(read: Callable[[], object]) -> str | None:
    """The one line with which a reader refuses; None if it reads. Any other exception is a fault of the reader."""
    try:
        read()
    except OmnigesError as error:
        line = str(error)
        assert "\n" not in line
        assert len(line) < 1000
        assert not [words for words in PYTHON_WORDS if words in line], line
        return line
    return None


def refusals(readers: Iterable[Callable[[SavedCheckpoint], object]], saved: SavedCheckpoint) -> list[str]:
    """The lines of the readers that refuse a checkpoint."""
    return [line for read in readers if (line := refusal(partial(read, saved))) is not None]


@pytest.mark.parametrize("each", [12, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", sorted(READERS))
def test_every_edited_value_is_refused_by_name_or_of_no_effect(name: str, each: int, edited: Path) -> None:
    document = json.loads((edited / name).read_bytes())
    readers = [*READERS[name]]
    if name == "state.json":
        readers.append(lambda saved: resume(document["loader"], saved.fields("state.json").part("loader").found))
    silent, told = set(), 0
    for what, changed in edits(document, each):
        rewritten(edited, name, changed)
        try:
            lines = refusals(readers, open_checkpoint(edited, bytewise=False))
        except Exception as error:
            raise AssertionError(f"{name}: {what}: {error!r}") from error
        told += bool(lines)
        assert all("expected" in line or "another sequence" in line for line in lines), lines
        if not lines:
            silent.add(what.partition(" = ")[0])
    assert told > 8
    if name == "state.json":
        assert silent <= WITHOUT_EFFECT


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("state.json", {"validated": 99}, "validated: expected at most the step, 2, found 99"),
        ("state.json", {"validated_tasks": ["zzz"]}, "validated_tasks: expected different tasks of t2g, g2t"),
        ("state.json", {"smoothed_loss": -1}, "smoothed_loss: expected an object, found -1"),
        ("state.json", {"smoothed_loss": {"value": 1.0, "lowest": 2.0}}, "smoothed_loss.lowest: expected at most"),
        ("state.json", {"loss_scale": {"scale": "x"}}, 'loss_scale.scale: expected a number above 0, found "x"'),
        ("state.json", {"random": None}, "random: expected an object, found null"),
        ("state.json", {"random": {"kind": "mt19937", "seed": 0}}, "random.kind: expected "),
        ("state.json", {"best": {"step": 9, "metric": "loss", "value": 1}}, "best.step: expected at most the step, 2"),
        ("state.json", {"best": {"step": 1}}, "best.metric: expected this key, found that it is missing"),
        ("state.json", {"best": {"step": 1, "metric": "jerk", "value": 1}}, 'best.metric: expected "loss" as in sett'),
        ("state.json", {"step": 1}, "step: expected 2 as in checkpoint.json, found 1"),
        ("settings.json", {"seed": 7}, "state.json: loader.seed: expected 7 as in settings.json, found 0"),
        ("settings.json", {"batch_size": 8}, "global_batch: expected 8 as in settings.json and machine, found 4"),
        ("settings.json", {"batch_size": "4"}, 'batch_size: expected a whole number, found "4"'),
        ("settings.json", {"ema_decay": 3.0}, "ema_decay: expected a number of at least 0 and below 1, found 3.0"),
        ("settings.json", {"flow": {"shares": {"t2g": -1}}}, "task shares: expected shares of at least 0"),
        ("settings.json", {"colour": 1}, "colour: expected no key of this name, found it with the value 1"),
        ("provenance.json", {"packages": ["torch"]}, "packages: expected an object"),
        ("provenance.json", {"pretrained": {"path": 3, "files": {}}}, "pretrained.path: expected a text"),
    ],
)
def test_values_that_contradict_others_are_named(edited: Path, name: str, change: dict[str, Any], said: str) -> None:
    rewritten(edited, name, json.loads((edited / name).read_bytes()) | change)
    line = refusal(lambda: checkpoint_facts(open_checkpoint(edited, bytewise=False)))
    assert line is not None
    assert said in line
    assert line.startswith(str(edited))
    assert "choose another checkpoint" in line


@pytest.mark.parametrize("part", ["position", "global_batch", "weights", "manifest_hashes", "window_ticks", "filters"])
def test_a_position_is_held_against_the_step_and_the_settings(edited: Path, part: str) -> None:
    document = json.loads((edited / "state.json").read_bytes())
    value = {"position": 1, "weights": [1.0, 1.0], "manifest_hashes": ["x"], "filters": [{"split": "all"}]}.get(part, 5)
    document["loader"][part] = value
    rewritten(edited, "state.json", document)
    line = refusal(lambda: read_state(open_checkpoint(edited)))
    assert line is not None
    assert f"state.json: loader.{part}" in line


# --- the tensors


def _of_float16(found: dict[str, torch.Tensor]) -> None:
    name = next(iter(found))
    found[name] = found[name].half()


def _nan(found: dict[str, torch.Tensor]) -> None:
    next(iter(found.values())).view(-1)[0] = torch.nan


def _negative(found: dict[str, torch.Tensor]) -> None:
    next(tensor for name, tensor in found.items() if name.endswith(".exp_avg_sq")).view(-1)[0] = -1.0


def _later(found: dict[str, torch.Tensor]) -> None:
    for name, tensor in found.items():
        if name.endswith(".step"):
            tensor.fill_(3.0)


def _uneven(found: dict[str, torch.Tensor]) -> None:
    next(tensor for name, tensor in found.items() if name.endswith(".step")).fill_(1.0)


def _left_out(found: dict[str, torch.Tensor]) -> None:
    del found[next(iter(found))]


TENSORS: list[tuple[str, Callable[[dict[str, torch.Tensor]], None], str]] = [
    ("model.safetensors", _nan, "expected finite numbers, found NaN"),
    ("model.safetensors", _of_float16, "expected float32, found float16"),
    ("ema.safetensors", _nan, "expected finite numbers, found NaN"),
    ("optimizer.safetensors", _nan, "expected finite numbers, found NaN"),
    ("optimizer.safetensors", _of_float16, "expected float32, found float16"),
    ("optimizer.safetensors", _negative, "expected means of squares of at least 0"),
    ("optimizer.safetensors", _later, "expected the same whole number of updates for every parameter, 0 to 2, found 3"),
    (
        "optimizer.safetensors",
        _uneven,
        "expected the same whole number of updates for every parameter, 0 to 2, found 1, 2",
    ),
    ("optimizer.safetensors", _left_out, "found 1 missing "),
]


def with_tensors(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of a file of a checkpoint, and seal it."""
    found = load_file(folder / name)
    change(found)
    save_file({key: tensor.clone() for key, tensor in found.items()}, folder / name)
    rewritten(folder, name, (folder / name).read_bytes())


def test_tensors_that_no_run_writes_are_refused(edited: Path, shards: Path, tmp_path: Path) -> None:
    settings = settings_of(shards, tmp_path / "run", condition_streams=("emotion",))
    with ExitStack() as stack:
        opened = open_run(settings, stack.enter_context(accelerated(settings)), Ranks(), stack)
        require_fit(opened, open_checkpoint(edited))
        for name, change, said in TENSORS:
            before = (edited / name).read_bytes()
            with_tensors(edited, name, change)
            with pytest.raises(DataError, match=f"{name}.*{said}"):
                require_fit(opened, open_checkpoint(edited))
            rewritten(edited, name, before)
        require_fit(opened, open_checkpoint(edited))


# --- a run that resumes


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("state.json", {"validated": 99}),
        pytest.param("state.json", {"loader": None}, marks=pytest.mark.slow),
        pytest.param("config.json", {"window_ticks": "x"}, marks=pytest.mark.slow),
        pytest.param("optimizer.safetensors", _nan, marks=pytest.mark.slow),
        pytest.param("provenance.json", {"git": []}, marks=pytest.mark.slow),
    ],
)
def test_resuming_skips_an_edited_one_and_learns_the_same(
    trained: Path, shards: Path, tmp_path: Path, name: str, value: Any
) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "run", symlinks=True))
    newest = checkpoint_of(folder, 2)
    if callable(value):
        with_tensors(newest, name, value)
    else:
        rewritten(newest, name, json.loads((newest / name).read_bytes()) | value)
    run(shards, folder, max_train_steps=2, condition_streams=("emotion",))
    start = log_of(folder, "start")[-1]
    assert start["step"] == 1
    assert [Path(skipped["path"]).name for skipped in start["passed"]] == ["step-000002"]
    assert learned(folder, 2) == learned(trained, 2)


def test_with_edited_ones_alone_the_run_is_refused_as_bad_data(trained: Path, shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "run", symlinks=True))
    for step in (1, 2):
        document = json.loads((checkpoint_of(folder, step) / "state.json").read_bytes())
        rewritten(checkpoint_of(folder, step), "state.json", document | {"elapsed_s": -1})
    with pytest.raises(DataError, match=r"found none among 2.* elapsed_s: expected a number from 0"):
        run(shards, folder, max_train_steps=2, condition_streams=("emotion",))


def test_a_checkpoint_under_the_name_of_another_step_is_skipped(trained: Path, shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "run", symlinks=True))
    shutil.copytree(checkpoint_of(folder, 2), checkpoint_of(folder, 3))
    run(shards, folder, max_train_steps=3, condition_streams=("emotion",))
    (skipped,) = log_of(folder, "start")[-1]["passed"]
    assert "expected the checkpoint of step 3, found that of step 2" in skipped["reason"]
    assert checkpoint_of(folder, 3).is_dir()
