"""Damaged files go aside, nothing else does, and the next preprocess makes just those again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from pipeline_helpers import digests, omniges

from omniges.errors import EnvironmentFault
from omniges.storage.atomic import locked
from omniges.verify.report import quarantine


@pytest.fixture
def set_of_shards(corpus: Path, tmp_path: Path) -> Path:
    """Several shards of the corpus."""
    done = omniges("preprocess", "--root", corpus, "--out", tmp_path / "s", "--shard-size", "1MiB")
    assert done.returncode == 0, done.stderr
    return tmp_path / "s"


def beside(folder: Path) -> Path:
    """Return the folder for a folder's damaged files."""
    return folder.with_name(f"{folder.name}.quarantine")


def damage(path: Path, offset: int = 70000) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


class TestCommand:
    @pytest.mark.slow
    def test_a_damaged_shard_is_moved_and_made_again_alone(self, set_of_shards: Path, corpus: Path) -> None:
        before = digests(set_of_shards)
        lost = json.loads((set_of_shards / "dataset.json").read_bytes())["shards"]["train-000000.tar"]["samples"]
        damage(set_of_shards / "train-000000.tar")
        bad = digests(set_of_shards)["train-000000.tar"]
        done = omniges("verify-shards", set_of_shards, "--quarantine")
        assert done.returncode == 1
        assert f"moved aside: train-000000.tar to {set_of_shards}.quarantine/train-000000.tar" in done.stderr
        assert digests(beside(set_of_shards)) == {"train-000000.tar": bad}
        assert digests(set_of_shards) == {n: d for n, d in before.items() if n != "train-000000.tar"}
        again = omniges("preprocess", "--root", corpus, "--out", set_of_shards, "--shard-size", "1MiB")
        assert again.returncode == 0, again.stderr
        assert digests(set_of_shards) == before
        last = json.loads((set_of_shards.parent / "s.run.jsonl").read_text().splitlines()[-1])
        assert last["computed"] == lost < sum(1 for _ in corpus.rglob("*.wav"))

    @pytest.mark.slow
    def test_damaged_files_beside_the_shards_are_made_again_without_computing_a_recording(
        self, set_of_shards: Path, corpus: Path
    ) -> None:
        before = digests(set_of_shards)
        damage(set_of_shards / "stats.json", 100)
        damage(set_of_shards / "tokenizer.json", 100)
        assert omniges("verify-shards", set_of_shards, "--quarantine").returncode == 1
        assert omniges("preprocess", "--root", corpus, "--out", set_of_shards, "--shard-size", "1MiB").returncode == 0
        assert digests(set_of_shards) == before
        assert json.loads((set_of_shards.parent / "s.run.jsonl").read_text().splitlines()[-1])["computed"] == 0

    @pytest.mark.slow
    def test_sound_shards_stay_and_nothing_is_made(self, set_of_shards: Path) -> None:
        before = digests(set_of_shards)
        done = omniges("verify-shards", set_of_shards, "--quarantine")
        assert (done.returncode, done.stderr) == (0, "")
        assert digests(set_of_shards) == before
        assert not beside(set_of_shards).exists()

    @pytest.mark.slow
    def test_findings_that_are_not_shown_count_all_the_same(self, set_of_shards: Path) -> None:
        for name in sorted(path.name for path in set_of_shards.glob("*.tar"))[:2]:
            damage(set_of_shards / name)
        done = omniges("verify-shards", set_of_shards, "--quarantine", "--max-findings", 1)
        assert done.stderr.count("moved aside") == 2


class TestQuarantine:
    def test_only_names_of_the_contract_are_moved(self, shards: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(shards, tmp_path / "s"))
        (folder / "mine.tar").write_text("x")
        (folder / ".note.tmp-12").write_text("x")
        names = ["dataset.json", "mine.tar", ".note.tmp-12", "../s/train-000000.tar", "val-000777.tar"]
        assert quarantine(folder, names) == {}
        assert digests(folder).keys() == digests(shards).keys() | {"mine.tar", ".note.tmp-12"}

    def test_nothing_in_quarantine_is_ever_replaced(self, shards: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(shards, tmp_path / "s"))
        for text in ("first", "second", "third"):
            (folder / "train-000000.tar").write_text(text)
            quarantine(folder, ["train-000000.tar"])
        aside = beside(folder)
        assert {path.name: path.read_text() for path in aside.iterdir()} == {
            "train-000000.tar": "first",
            "train-000000.tar.1": "second",
            "train-000000.tar.2": "third",
        }

    def test_a_link_is_moved_itself_not_what_it_points_to(self, shards: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(shards, tmp_path / "s"))
        (tmp_path / "elsewhere").write_text("x")
        (folder / "train-000000.tar").unlink()
        (folder / "train-000000.tar").symlink_to(tmp_path / "elsewhere")
        moved = quarantine(folder, ["train-000000.tar"])
        assert moved["train-000000.tar"].is_symlink()
        assert (tmp_path / "elsewhere").read_text() == "x"

    def test_a_folder_that_a_run_writes_to_is_left_alone(self, shards: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(shards, tmp_path / "s"))
        with locked(folder), pytest.raises(EnvironmentFault, match="another omniges run"):
            quarantine(folder, ["train-000000.tar"])
        assert (folder / "train-000000.tar").exists()

    def test_another_disk_is_named_and_the_file_stays(
        self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = Path(shutil.copytree(shards, tmp_path / "s"))

        def rename(*_: object) -> None:
            raise OSError(18, os.strerror(18))

        monkeypatch.setattr(Path, "rename", rename)
        with pytest.raises(EnvironmentFault, match="found it on another"):
            quarantine(folder, ["train-000000.tar"])
        monkeypatch.undo()
        assert (folder / "train-000000.tar").exists()
