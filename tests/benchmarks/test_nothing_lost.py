"""The proof that nothing was lost finds what was changed, names it, and does not pass on nothing."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from shard_sets import ShardSet
from version1_builders import version_1

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

facts: Any = importlib.import_module("nothing_lost_facts")
trees: Any = importlib.import_module("nothing_lost_trees")
damage: Any = importlib.import_module("nothing_lost_damage")

REPOSITORY = BENCHMARKS.parent


def test_equal_facts_are_equal_and_the_first_other_one_is_named() -> None:
    before = {"a": "1", "b": "2", "c": "3"}
    assert facts.compare("shards", "files", before, dict(before)).equal
    row = facts.compare("shards", "files", before, before | {"b": "9", "c": "8"})
    assert not row.equal
    assert row.difference == "b: before 2 · now 9 (first of 2)"


def test_what_one_side_lacks_differs_and_nothing_at_all_proves_nothing() -> None:
    assert "before absent · now 1" in facts.compare("shards", "files", {}, {"a": "1"}).difference
    assert "now absent" in facts.compare("shards", "files", {"a": "1"}, {}).difference
    assert not facts.compare("shards", "files", {}, {}).equal


def test_floats_are_compared_to_the_last_bit_and_volatile_keys_left_out() -> None:
    found = facts.json_facts({"loss": [0.1 + 0.2, 1.0], "elapsed_s": 5.0}, "log", facts.VOLATILE)
    assert found == {"log.loss[0]": "0.30000000000000004", "log.loss[1]": "1.0"}


def test_sets_of_both_contract_versions_say_the_same_until_something_is_lost(shards: Path, tmp_path: Path) -> None:
    taken = version_1(ShardSet.read(shards))
    before, now = facts.content_facts(taken.write(tmp_path / "old")), facts.content_facts(shards)
    assert facts.compare("shards", "content", before, now).difference == ""
    assert {fact.partition(" ")[2] for fact in now} >= {"gesture.npy", "betas.npy", "words", "spans", "waveform"}
    taken.samples[0].words[0]["end"] += 1e-6
    changed = facts.content_facts(taken.write(tmp_path / "changed"))
    assert "words" in facts.compare("shards", "content", before, changed).difference


def test_a_tree_that_python_does_not_import_from_is_refused(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "omniges").mkdir(parents=True)  # no __init__.py, so that another omniges takes its place
    with pytest.raises(SystemExit, match="not from"):
        trees.Side("now", tree, tmp_path / "work").prepare()


@pytest.fixture(scope="module")
def side(tmp_path_factory: pytest.TempPathFactory) -> Any:
    side = trees.Side("now", REPOSITORY, tmp_path_factory.mktemp("side") / "work")
    side.prepare()
    return side


def test_forked_commands_end_as_fresh_ones_do(side: Any) -> None:
    commands = {"none": ["inspect", "nowhere"], "misuse": ["--nonsense"], "version": ["--version"]}
    done = side.attempt(commands)
    assert [one.code for one in done.values()] == [2, 2, 0]
    assert done["version"].out.startswith("omniges ")
    assert side.words["none"].startswith("omniges: nowhere")
    assert side.run("version", "--version").out == done["version"].out


def test_every_damage_is_one_and_the_same_each_time(shards: Path, tmp_path: Path) -> None:
    sound = facts.file_facts(shards)
    for place, (name, fault) in enumerate(damage.SHARD_FAULTS.items()):
        folders = [shutil.copytree(shards, tmp_path / f"{place}-{k}") for k in range(2)]
        for folder in folders:
            shutil.copy(folder / "train-000000.tar", folder / "train-000001.tar")  # one to exchange it with
            with (folder / "train-000001.tar").open("ab") as stream:
                stream.write(bytes(512))
        whole = facts.file_facts(folders[0])
        for folder in folders:
            fault(folder)
        links = [path for path in folders[0].iterdir() if path.is_symlink()]
        first, second = (facts.file_facts(folder) for folder in folders)
        assert first == second, name
        assert bool(first != whole or links) == (name != "sound"), name
    assert sound == facts.file_facts(shards)


@pytest.mark.long
def test_a_commit_is_equal_to_itself(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "nothing_lost.py"), "--before", "HEAD", "--only", "shards"]
    done = subprocess.run(
        [*command, "--keep", str(tmp_path / "kept")], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 differ" in done.stdout
