"""Counts the files of the package that one command runs through, and how often a call crosses from file to file.

    python benchmarks/files_visited.py --before COMMIT

A reader who follows a command has to open these files. One `generate` (a2g), one `train` of two steps and one
`evaluate` of files run on the synthetic corpus under a profile hook, in the working tree and in COMMIT. A file counts
where one of its functions is called in the process of the command; importing a module or checking a default does not.
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

_DRIVER: Final = """
import json, os, sys, threading
from omniges import cli
root = os.path.dirname(cli.__file__) + os.sep
files, crossings, last = set(), 0, None
FUNCTION = 1  # CO_OPTIMIZED, which bodies of modules and classes do not have
def hook(frame, event, argument):
    global crossings, last
    name = frame.f_code.co_filename
    if event == "call" and name.startswith(root) and FUNCTION & frame.f_code.co_flags & frame.f_back.f_code.co_flags:
        files.add(name[len(root):])
        crossings += name != last
        last = name
threading.setprofile(hook)
sys.setprofile(hook)
try:
    cli.main()
except SystemExit as end:
    code = end.code
finally:
    sys.setprofile(None)
    threading.setprofile(None)
with open(os.environ["FILES_VISITED"], "w") as out:
    json.dump({"code": code, "files": sorted(files), "crossings": crossings}, out)
"""


def _omniges(tree: Path, *arguments: str | Path) -> None:
    command = [sys.executable, "-m", "omniges.cli", *map(str, arguments)]
    done = subprocess.run(command, env=_environment(tree), cwd=tree, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{arguments[0]} failed: {done.stderr}")


def _environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree)}


def _visited(tree: Path, work: Path, *arguments: str | Path) -> tuple[list[str], int]:
    facts = work / "visited.json"
    command = [sys.executable, "-c", _DRIVER, *map(str, arguments)]
    environment = _environment(tree) | {"FILES_VISITED": str(facts)}
    done = subprocess.run(command, env=environment, cwd=tree, capture_output=True, text=True, check=False)
    found: dict[str, Any] = json.loads(facts.read_text()) if facts.exists() else {"code": done.stderr}
    if found["code"] not in {0, None}:
        raise SystemExit(f"{arguments[0]} failed: {found['code']}\n{done.stderr}")
    return list(found["files"]), int(found["crossings"])


def _measure(tree: Path, work: Path) -> dict[str, tuple[list[str], int]]:
    work.mkdir()
    corpus, shards, run = work / "corpus", work / "shards", work / "run"
    _omniges(tree, "sample-corpus", corpus, "--clips", "20", "--seconds", "8")
    _omniges(tree, "preprocess", "--root", corpus, "--out", shards, "--keep-audio", "--workers", "1")
    train = ("train", "--shards", shards, "--preset", "tiny", "--max-train-steps", "2", "--output-dir")
    _omniges(tree, *train, run)
    wav = next(corpus.rglob("1_synthetica_0_1_1.wav"))
    found = {"train": _visited(tree, work, *train, work / "again")}
    generate = ("generate", "--checkpoint", run, "--task", "a2g", "--steps", "1")
    found["generate"] = _visited(tree, work, *generate, "--audio", wav, "-o", work / "made")
    _omniges(tree, *generate, "--shards", shards, "--split", "test", "-o", work / "many")
    found["evaluate"] = _visited(tree, work, "evaluate", work / "many", "--shards", shards, "--resamples", "20")
    return found


def main() -> None:
    """Print a table of both trees."""
    parser = argparse.ArgumentParser(description="Count the files that one command runs through.")
    parser.add_argument("--before", required=True, metavar="COMMIT")
    parser.add_argument("--names", action="store_true", help="print the files of the working tree too")
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
