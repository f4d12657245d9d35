"""`write_shards` is killed, or loses its power, at any call; the script is run again and the same set is there."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from crash_calls import Call, Recorder, kind_of, tapped
from crash_model import RandomPowerLoss, Tree, read_tree, replay, write_tree
from write_child import write

from omniges.errors import UsageFault
from omniges.shards.schema import DATASET_FILE
from omniges.verify.run import verify
from omniges.verify.settings import VerifySettings

CHILD = str(Path(__file__).with_name("write_child.py"))


def recorded(watched: Path, *, force: bool) -> list[Call]:
    recorder = Recorder()
    with tapped(watched, recorder):
        write(watched / "out", force=force)
    return recorder.calls


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tree, list[Call], Tree]:
    """Tree before, calls and tree after of an undisturbed run into a new folder."""
    watched = tmp_path_factory.mktemp("fresh")
    calls = recorded(watched, force=False)
    after = read_tree(watched)
    assert replay({}, calls).tree() == after  # nothing went past the tap
    assert not verify(VerifySettings(folder=watched / "out", level="deep", num_workers=1)).findings
    return {}, calls, after


@pytest.fixture(scope="module")
def replaced(fresh: tuple[Tree, list[Call], Tree], tmp_path_factory: pytest.TempPathFactory) -> tuple[Tree, list[Call]]:
    """Tree before and calls of a run that replaces a set by force: the same one, but for a shard more."""
    watched = tmp_path_factory.mktemp("replaced") / "x"
    write_tree(fresh[2] | {"out/test-000000.tar": b"of the earlier set"}, watched)
    before = read_tree(watched)
    return before, recorded(watched, force=True)


def faults(tree: Tree, folder: Path, expected: Tree, *, force: bool) -> list[str]:
    """Return the faults after the script has run again over the remains."""
    write_tree(tree, folder)
    complete = f"out/{DATASET_FILE}" in tree
    unsound = complete and not force and any(tree.get(name) != data for name, data in expected.items())
    problems = ["dataset.json is there before the set is complete"] if unsound else []
    try:
        write(folder / "out", force=force)
    except UsageFault as fault:
        problems += [] if complete and "force=True" in str(fault) else [str(fault)]
    found = read_tree(folder)
    problems += [f"leftover {name}" for name in found.keys() - expected.keys()]
    return problems + [f"differs {name}" for name in expected if found.get(name) != expected[name]]


def of_each_kind(calls: list[Call]) -> list[int]:
    """The number of the last call of each kind."""
    return sorted({kind_of(call): number for number, call in enumerate(calls)}.values())


class TestEveryCall:
    @pytest.mark.slow
    def test_after_a_kill_before_a_call_of_each_kind(
        self, fresh: tuple[Tree, list[Call], Tree], tmp_path: Path
    ) -> None:
        before, calls, expected = fresh
        assert {"create work/spool", "rename out/dataset.json", "unlink work/spool"} <= set(map(kind_of, calls))
        for number in of_each_kind(calls):
            tree = replay(before, calls[:number]).tree()
            assert faults(tree, tmp_path / f"{number}", expected, force=False) == [], calls[number]

    @pytest.mark.long
    @pytest.mark.timeout(600)
    def test_after_a_kill_before_any_call(self, fresh: tuple[Tree, list[Call], Tree], tmp_path: Path) -> None:
        before, calls, expected = fresh
        for number in range(len(calls) + 1):
            tree = replay(before, calls[:number]).tree()
            assert faults(tree, tmp_path / f"{number}", expected, force=False) == [], calls[number - 1 : number + 1]

    @pytest.mark.long
    @pytest.mark.timeout(600)
    def test_the_same_of_a_set_that_is_replaced(
        self, replaced: tuple[Tree, list[Call]], fresh: tuple[Tree, list[Call], Tree], tmp_path: Path
    ) -> None:
        before, calls = replaced
        for number in of_each_kind(calls):
            tree = replay(before, calls[:number]).tree()
            assert faults(tree, tmp_path / f"{number}", fresh[2], force=True) == [], calls[number]

    def test_after_a_power_loss(self, fresh: tuple[Tree, list[Call], Tree], tmp_path: Path) -> None:
        before, calls, expected = fresh
        rng = random.Random(0)
        for draw in range(15):
            number = rng.randrange(len(calls) + 1)
            tree = replay(before, calls[:number]).survivors(RandomPowerLoss(rng))
            assert faults(tree, tmp_path / f"{draw}", expected, force=False) == [], calls[number - 1 : number + 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "when"),
    [
        ("write work/spool", "half"),
        ("write work/staged (temporary)", "half"),
        ("rename work/manifest.parquet", "after"),
        ("rename work/commit.json", "after"),
        ("rename out/shard", "after"),
        ("rename out/dataset.json", "after"),
    ],
)
def test_sigkill(fresh: tuple[Tree, list[Call], Tree], tmp_path: Path, kind: str, when: str) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    spec = {"watch": str(watched), "kind": kind, "nth": 0, "when": when, "victims": "alone"}
    command = [sys.executable, CHILD, json.dumps(spec), str(watched / "out")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert run.returncode == -signal.SIGKILL, run.stderr
    tree = read_tree(watched)
    assert tree != fresh[2]
    assert faults(tree, tmp_path / "again", fresh[2], force=False) == []
