"""Runs `omniges` with the words given, and kills itself at a chosen call; started by `kills.run_child`.

    python crash_child.py '{"watch": FOLDER,
        "kind": "rename out/dataset.json", "nth": 0, "when": "before",
        "victims": "group"}' preprocess …

`kind` and `nth` say at which call, as `calls.kind_of` names them, and `when`: before it, after it, or (of a write) when
half of it is done. `victims`: the process `alone`, so that its workers are left behind, or its `group`; `SIGTERM` or
`SIGINT`: the process gets the signal. Without a kind it runs to its end and writes the number of calls of each kind to
the file named by `calls`.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from crash_calls import Call, Perform, kind_of, tapped


class Killer:
    """An `around` that counts, and ends the process at a call."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._spec = spec
        self.seen: Counter[str] = Counter()

    def __call__(self, call: Call, perform: Perform) -> Any:
        """Carry out, unless this is the call to die at."""
        kind = kind_of(call)
        self.seen[kind] += 1
        if kind != self._spec.get("kind") or self.seen[kind] - 1 != self._spec["nth"]:
            return perform(None)
        victims = self._spec["victims"]
        if victims in ("SIGTERM", "SIGINT"):
            os.kill(os.getpid(), signal.Signals[victims])
            return perform(None)
        if self._spec["when"] == "after":
            perform(None)
        elif self._spec["when"] == "half":
            perform(len(call.data) // 2)
        if victims == "group":
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("still alive")


if __name__ == "__main__":
    spec = json.loads(sys.argv[1])
    sys.argv = ["omniges", *sys.argv[2:]]
    killer = Killer(spec)
    try:
        with tapped(Path(spec["watch"]), killer):
            runpy.run_module("omniges.cli", run_name="__main__")
    finally:
        if spec.get("calls"):
            Path(spec["calls"]).write_text(json.dumps(killer.seen), encoding="utf-8")
