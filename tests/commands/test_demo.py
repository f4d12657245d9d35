"""`omniges demo` goes from nothing to a page that plays generated clips."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from pipeline_helpers import COMMAND, omniges

from omniges.exchange.inspect import inspect


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_command_from_nothing_to_a_page(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    words = [*COMMAND, "demo", str(folder), "--minutes", "0.4"]
    shown = subprocess.run(words, capture_output=True, text=True, timeout=500, check=False)
    assert shown.returncode == 0, shown.stderr
    steps = [line.split()[2] for line in shown.stdout.splitlines() if line.startswith("+ omniges ")]
    assert steps == ["sample-corpus", "preprocess", "train", *["generate"] * 3, "view"]
    assert {one["task"] for one in inspect(folder / "generated").facts["results"]} == {"a2g", "t2g", "t2a"}
    page = (folder / "page.html").read_text("utf-8")
    assert "generated a2g" in page
    assert "recorded" in page
    assert shown.stdout.splitlines()[-1].startswith(f"open {folder / 'page.html'} in a browser")


def test_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    shown = omniges("demo", tmp_path)
    assert shown.returncode == 2
    assert "expected a new or empty folder" in shown.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
