"""The verifier's benchmark measures every level and refuses shards that are not sound. No speed is asserted."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import pytest

benchmark: Any = importlib.import_module("verify")


pytestmark = pytest.mark.long  # what measures is not what users run: pytest -m long


def test_every_level_is_measured(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = benchmark.measure(shards, threads=1, repeats=1)
    assert document["bytes"] == sum(path.stat().st_size for path in shards.iterdir())
    assert document["levels"].keys() == {"quick", "full", "deep"}
    assert all(level["ratio"] > 0 for level in document["levels"].values())
    benchmark._print(document)
    assert capsys.readouterr().out.count("\n") == 5


def test_damaged_shards_are_no_yardstick(shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shards, tmp_path / "s")
    (folder / "stats.json").write_bytes(b"{}")
    with pytest.raises(SystemExit, match="file-size"):
        benchmark.measure(folder, threads=1, repeats=1)
