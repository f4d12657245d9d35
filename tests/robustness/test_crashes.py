"""The crash benchmark counts what it does, and fails where something is wrong."""

from __future__ import annotations

import subprocess
import sys

import crash_power as crashes_power
import crashes
import pytest
from crash_scenarios import NAMES

pytestmark = pytest.mark.long  # what measures is not what users run: pytest -m long


def crash(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(crashes.__file__), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_kills_are_counted_by_scenario_and_moment() -> None:
    done = crash("--kills", "1", "--scenario", "fresh", "--seed", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    heading, *rows, last = done.stdout.splitlines()
    assert heading.split() == ["moment", "fresh", "all"]
    kills = int(last.partition(" kills")[0])
    assert kills == sum(int(row.split()[-1]) for row in rows) >= 1
    assert "1 byte-equal, sound and without leftovers" in last


def test_a_failure_is_named_with_the_way_to_repeat_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["crashes.py", "--power-loss", "2", "--seed", "4"])
    monkeypatch.setattr(crashes_power, "end_faults", lambda scenario, _: ["broken"] * (scenario.name == NAMES[1]))
    assert crashes.main() == 1
    text = capsys.readouterr().out
    assert f"FAILED {NAMES[1]}: " in text
    assert "python tests/robustness/crashes.py --power-loss 1 --seed 4 --only 1" in text
    assert "in 2 cases" in text
    assert "1 failed" in text
