"""The example of own data is short, runs as a user runs it, and makes sound shards."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from omniges.shards.reader import ShardFolder
from omniges.verify.run import verify
from omniges.verify.settings import VerifySettings

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "own_corpus_to_shards.py"


def test_forty_lines_of_python_make_sound_shards(tmp_path: Path) -> None:
    assert len(SCRIPT.read_text().splitlines()) <= 40
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(SCRIPT), str(tmp_path / "shards")]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert not verify(VerifySettings(folder=tmp_path / "shards", level="deep", num_workers=1)).findings
    rows = ShardFolder(tmp_path / "shards").rows
    assert len(rows) == 6
    assert not any({"hands", "face", "jaw_eyes"} & set(row.present) for row in rows)
    assert [row.key for row in rows if "text" not in row.present] == ["take_0"]


@pytest.mark.parametrize("name", ["own_corpus_to_shards.py", "own_training_loop.py"])
def test_without_a_folder_an_example_says_how_to_run_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(sys, "argv", [name])
    with pytest.raises(SystemExit, match=rf"python .*{name} "):
        runpy.run_path(str(SCRIPT.with_name(name)), run_name="__main__")
