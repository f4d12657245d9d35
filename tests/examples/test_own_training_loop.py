"""The example runs as written, on the synthetic corpus, and its model learns."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_training_loop.py"


def test_a_model_of_ones_own_learns(
    shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run as a script: the loss it prints for the last of 30 steps is below that of the first."""
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(shards), "30"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    words = capsys.readouterr().out.split()
    assert float(words[4]) < float(words[1])
