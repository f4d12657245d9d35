"""The command in a process that kills itself at a chosen call, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from crash_scenarios import Scenario

from omniges.errors import ExitCode

_CHILD: Final = str(Path(__file__).with_name("crash_child.py"))
_LIMIT_S: Final = 120.0


def run_child(
    scenario: Scenario,
    out: Path,
    *,
    first: bool,
    spec: dict[str, object],
    after_s: float | None = None,
    groups: list[int] | None = None,
) -> int:
    """The command through the child script; 0, or how it was ended (here, after a time, or by itself).

    Raises RuntimeError, with what it said, for any other end. The number of its process group goes into `groups`.
    """
    ends = {"SIGTERM": ExitCode.STOPPED, "SIGINT": ExitCode.INTERRUPTED}
    expected = (0, ends.get(str(spec.get("victims")), -signal.SIGKILL))
    command = [sys.executable, _CHILD, json.dumps(spec | {"watch": str(out.parent)})]
    with tempfile.TemporaryFile() as stream:
        process = subprocess.Popen(
            [*command, *scenario.words(out, first=first)], stdout=stream, stderr=stream, start_new_session=True
        )
        if groups is not None:
            groups.append(process.pid)
        try:
            code = process.wait(_LIMIT_S if after_s is None else after_s)
        except subprocess.TimeoutExpired:
            if after_s is None:
                raise
            os.kill(-process.pid if spec["victims"] == "group" else process.pid, signal.SIGKILL)
            code = process.wait()
        if code not in expected:
            stream.seek(0)
            raise RuntimeError(f"exit code {code}: {stream.read().decode(errors='replace')[-2000:]}")
        return code


def left_behind(groups: list[int]) -> list[str]:
    """The process groups that do not come to their end, though nobody waits for them any more."""
    end = time.monotonic() + _LIMIT_S
    faults = []
    for group in groups:
        while time.monotonic() < end:
            try:
                os.killpg(group, 0)
            except ProcessLookupError:
                break
            time.sleep(0.05)
        else:
            faults.append(f"left behind: a worker in process group {group}")
    return faults
