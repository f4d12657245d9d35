"""`evaluate --html` writes the table and the clips behind it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from evaluate_builders import write
from pipeline_helpers import omniges

from omniges.pipeline.export import motion_file


@pytest.mark.slow
def test_the_page_has_scores_and_clips(shards: Path, tmp_path: Path) -> None:
    write(tmp_path / "results", shards, motion_file, ".npz")
    words = ["evaluate", tmp_path / "results", "--task", "a2g", "--shards", shards, "--resamples", 20]
    done = omniges(*words, "--html", tmp_path / "page.html", "--show-start", "0.5", "--show-seconds", "2")
    assert done.returncode == 0, done.stderr
    assert "page.html" in done.stderr
    text = re.search(r'id="data">(.*?)</script>', (tmp_path / "page.html").read_text())
    assert text
    data = json.loads(text[1])
    (table,) = data["scores"]
    assert table["head"] == ["", "generated", "shuffled", "recorded"]
    names = {clip["name"] for clip in data["clips"]}
    picked = {name for row in table["clips"] for name in row.values()}
    assert picked == names
    assert any({"best", "median", "worst"} == row.keys() for row in table["clips"])
    assert all(len(clip["tracks"]) == 2 for clip in data["clips"])
    assert {clip["seconds"] for clip in data["clips"]} == {2.0}
    late = omniges(*words, "--html", tmp_path / "page.html", "--show-start", 99)
    assert (late.returncode, "--show-start 99: expected a time before the end of" in late.stderr) == (2, True)
    refused = omniges(*words, "--show-start", 1)
    assert (refused.returncode, "expected with --html" in refused.stderr) == (2, True)


def test_results_that_are_not_kept_have_no_page(tmp_path: Path) -> None:
    done = omniges("evaluate", "--checkpoint", tmp_path, "--html", tmp_path / "page.html")
    assert done.returncode == 2
    assert "--html: expected a folder that keeps the results" in done.stderr
