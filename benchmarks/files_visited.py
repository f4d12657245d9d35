"""Counts the files of the package whose functions one command calls, and the calls from one file to another.

    python benchmarks/files_visited.py --before COMMIT

A reader who wants to follow a command has to open these files. The commands `generate` (a2g), `train` (three steps) and
`evaluate` (files) run on the synthetic corpus under a profile hook, in the working tree and in COMMIT. A file counts if
one of its functions is called in the process of the command. Calls during the import of a module do not count. The row
`train step` counts only calls between the second and the third fetch of a batch. This is one step of the training loop,
without the start and the end of the run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from nothing_lost_trees import earlier_tree, resolve_commit

_STEP: Final = "Feed.next"
"""Name of the function that fetches the next batch; training calls it once per step."""
_STEPS: Final = 3

_DRIVER: Final = """
import json, os, sys, threading
from omniges import cli
root = os.path.dirname(cli.__file__) + os.sep
step = os.environ["FILES_VISITED_STEP"]
visits = {"command": [set(), 0, None], "step": [set(), 0, None]}  # files, crossings, the file before
importing = threading.local()
fetches = 0
FUNCTION = 1  # CO_OPTIMIZED, which bodies of modules and classes do not have
def hook(frame, event, argument):
    global fetches
    code = frame.f_code
    if not code.co_filename.startswith(root) or event not in {"call", "return"}:
        return
    name = code.co_filename[len(root):]
    if code.co_name == "<module>":
        importing.depth = getattr(importing, "depth", 0) + (1 if event == "call" else -1)
    elif event == "call" and code.co_flags & FUNCTION and not getattr(importing, "depth", 0):
        fetches += code.co_qualname == step
        for each in ("command", "step") if fetches == 2 else ("command",):
            files, crossings, last = visits[each]
            files.add(name)
            visits[each][1:] = crossings + (name != last), name
threading.setprofile(hook)
sys.setprofile(hook)
try:
    cli.main()
except SystemExit as end:
    code = end.code
finally:
    sys.setprofile(None)
    threading.setprofile(None)
found = {each: {"files": sorted(files), "crossings": crossings} for each, (files, crossings, _) in visits.items()}
with open(os.environ["FILES_VISITED"], "w") as out:
    json.dump({"code": code, "fetches": fetches} | found, out)
"""

_Visits = tuple[list[str], int]
"""Files whose functions were called, and the number of calls from one file to another."""


def _omniges(tree: Path, *arguments: str | Path) -> None:
    command = [sys.executable, "-m", "omniges.cli", *map(str, arguments)]
    done = subprocess.run(command, env=_environment(tree), cwd=tree, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{arguments[0]} failed: {done.stderr}")


def _environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree)}


def _visited(tree: Path, work: Path, *arguments: str | Path) -> dict[str, _Visits]:
    """Run a command; return the visits of the complete command and, if it fetched three batches, of one step."""
    facts = work / "visited.json"
    command = [sys.executable, "-c", _DRIVER, *map(str, arguments)]
    environment = _environment(tree) | {"FILES_VISITED": str(facts), "FILES_VISITED_STEP": _STEP}
    done = subprocess.run(command, env=environment, cwd=tree, capture_output=True, text=True, check=False)
    found: dict[str, Any] = json.loads(facts.read_text()) if facts.exists() else {"code": done.stderr}
    if found["code"] not in {0, None}:
        raise SystemExit(f"{arguments[0]} failed: {found['code']}\n{done.stderr}")
    name = str(arguments[0])
    rows = {name: found["command"]} | ({f"{name} step": found["step"]} if found["fetches"] >= _STEPS else {})
    return {row: (list(visits["files"]), int(visits["crossings"])) for row, visits in rows.items()}


def _measure(tree: Path, work: Path) -> dict[str, _Visits]:
    work.mkdir()
    corpus, shards, run = work / "corpus", work / "shards", work / "run"
    _omniges(tree, "sample-corpus", corpus, "--clips", "20", "--seconds", "8")
    _omniges(tree, "preprocess", "--root", corpus, "--out", shards, "--keep-audio", "--workers", "1")
    train = ("train", "--shards", shards, "--preset", "tiny", "--max-train-steps", str(_STEPS), "--output-dir")
    _omniges(tree, *train, run)
    wav = next(corpus.rglob("1_synthetica_0_1_1.wav"))
    found = _visited(tree, work, *train, work / "again")
    if "train step" not in found:
        raise SystemExit(
            f"{tree}: expected {_STEPS} calls of {_STEP}, found fewer; name in _STEP the function that fetches a batch"
        )
    generate = ("generate", "--checkpoint", run, "--task", "a2g", "--steps", "1")
    found |= _visited(tree, work, *generate, "--audio", wav, "-o", work / "made")
    _omniges(tree, *generate, "--shards", shards, "--split", "test", "-o", work / "many")
    return found | _visited(tree, work, "evaluate", work / "many", "--shards", shards, "--resamples", "20")


def main() -> None:
    """Measure both trees and print a table."""
    parser = argparse.ArgumentParser(description="Count the files of the package whose functions one command calls.")
    parser.add_argument(
        "--before", required=True, metavar="COMMIT", help="earlier commit, which is measured like the working tree"
    )
    parser.add_argument("--names", action="store_true", help="also print the names of the working tree's files")
    options = parser.parse_args()
    now = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        with earlier_tree(now, resolve_commit(now, options.before), work / "tree") as earlier:
            before = _measure(earlier, work / "before")
        after = _measure(now, work / "after")
    print(f"{'command':10} {'files before':>12} {'now':>4} {'ratio':>6} {'crossings before':>17} {'now':>7}")
    for name, (files, crossings) in before.items():
        names, crossed = after[name]
        print(f"{name:10} {len(files):12} {len(names):4} {len(names) / len(files):6.2f} {crossings:17} {crossed:7}")
        if options.names:
            print("   ", *names)


if __name__ == "__main__":
    main()
