"""Proves that a rebuilt package does what an earlier commit of it did, byte for byte.

    python benchmarks/nothing_lost.py --before COMMIT

Checks COMMIT out beside the working tree, runs the same commands with both and compares what they leave. Only the
command line and files are used, so modules may move as they like. Five checks:

* **shards**: corpora, every member of every shard and every file beside them, of recordings of people too where
  `--real` finds some. Trees that write two versions of the shard contract agree in content, not in bytes (below);
* **losses**: every loss and gradient norm, all tensors of the last checkpoint, log and validation, of a run without a
  stop and of one that was stopped half-way;
* **generated**: every file and record of `generate`, every figure of `evaluate`, every window of `trace-batches`;
* **codes**: exit codes and finding codes of damaged shards, damaged recordings and misuse, and the flags there are;
* **earlier**: what COMMIT made is verified, shown, exported, updated, resumed and generated from.

What version 2 of the shard contract changes is not compared with a COMMIT that writes version 1: which member holds
words, spans and waveform and in what bytes, the number type of betas, where shards end and members lie, the manifest
hash, empty texts and -1 for null in KEY.json, and `present`, `jaw_eyes`, `counts` and `difference_std`, which are new.
All else that a set says is: arrays as bytes, betas and waveforms as numbers, words, spans and metadata as JSON, rows of
the manifest and statistics to the last bit. Such a set of COMMIT is not updated, so that is not tried either.

New commands, flags and settings are no loss: what came later is not compared (`_SINCE` names the settings).
Settings and flags that have new names are compared under these. Of records, reports and logs three things are left
out: the version of omniges, times, and the git commit; sentences for people are counted. Wording on standard error is
compared too, but shown as a note. Exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nothing_lost_facts import Found, Row, compare
from nothing_lost_steps import BYTES_OF, CHECKS, STEPS, Step
from nothing_lost_trees import Side, earlier_tree, resolve_commit

_REPOSITORY: Final = Path(__file__).resolve().parents[1]
_SHARED: Final = Path(os.environ.get("OMNIGES_SHARED", _REPOSITORY.parent / "shared"))
_REAL: Final = _SHARED / "beat2_sample" / "beat_english_v2.0.0"
_NEEDS: Final = {"losses": {"generated", "earlier"}, "shards": set(CHECKS)}  # checks that read what another one makes
_NOTES_SHOWN: Final = 10


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the comparison; the flags of the command line."""

    before: str
    real: Path
    keep: Path | None
    only: frozenset[str]


def _parse(arguments: Sequence[str]) -> Settings:
    parser = argparse.ArgumentParser(description="Prove that the working tree does what an earlier commit did.")
    parser.add_argument("--before", required=True, metavar="COMMIT", help="the earlier commit")
    parser.add_argument("--real", type=Path, default=_REAL, help=f"a folder of recordings of people ({_REAL})")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="new folder that keeps what both made")
    parser.add_argument("--only", default=",".join(CHECKS), metavar="LIST", help=f"some of {','.join(CHECKS)}")
    given = parser.parse_args(arguments)
    only = frozenset(given.only.split(","))
    if unknown := only - set(CHECKS):
        parser.error(f"--only {','.join(sorted(unknown))}: some of {', '.join(CHECKS)} expected")
    if given.keep is not None and given.keep.exists():
        parser.error(f"--keep {given.keep}: a new folder expected")
    if given.real != _REAL and not given.real.is_dir():
        parser.error(f"--real {given.real}: a folder expected, none is there")
    return Settings(given.before, given.real, given.keep, only)


def _run_step(step: Step, sides: Sequence[Side]) -> list[Found]:
    """Run a step with each of the trees at once; whatever ends it ends their commands."""
    done = False
    with ThreadPoolExecutor(len(sides)) as pool:
        try:
            found = [future.result() for future in [pool.submit(step.run, side) for side in sides]]
            done = True
        finally:
            if not done:
                for side in sides:
                    side.stop()
    return found


def _hand_on(step: Step, sides: Sequence[Side]) -> None:
    """Copy the output of the earlier commit to the folder that both read."""
    outputs = sides[0].folder / "made"
    for name in step.gives:
        for side in sides:
            shutil.copytree(outputs / name, side.folder / "given" / name, symlinks=True)


def _wanted(step: Step, only: frozenset[str]) -> bool:
    return step.check in only or bool(only & _NEEDS.get(step.check, set()))


def compare_trees(sides: Sequence[Side], only: frozenset[str]) -> list[Row]:
    """Return all rows of the table; the first side is the earlier commit."""
    rows = []
    for step in STEPS:
        if not _wanted(step, only):
            continue
        start = time.monotonic()
        asked = sides if step.check in only else sides[:1]
        found = _run_step(step, asked)
        _hand_on(step, sides)
        if len(found) == len(sides):
            before, now = found
            names = list(dict.fromkeys([*before, *now]))
            if sides[0].contract != sides[1].contract:
                names = [name for name in names if BYTES_OF not in name]
            rows += [compare(step.check, name, before.get(name, {}), now.get(name, {})) for name in names]
        title = step.run.__name__.strip("_").replace("_", " ")
        print(f"{step.check}: {title}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    shared = sides[1].exits.keys()
    exits = [{label: code for label, code in side.exits.items() if label in shared} for side in sides]
    return [*rows, compare("all", "ends of sound commands", *exits)] if shared else rows


def _print_table(rows: Sequence[Row], skipped: bool) -> None:
    lines = [("check", "what", "before", "now", "equal?")]
    lines += [(row.check, row.what, row.before, row.now, "yes" if row.equal else "NO") for row in rows]
    if skipped:
        lines.append(("shards", "real", "not there", "skipped", "–"))
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for row in rows:
        if not row.equal:
            print(f"DIFFERS {row.check}, {row.what}: {row.difference}")


def _print_notes(sides: Sequence[Side]) -> None:
    """Print where the first line on standard error differs, which is not a failure."""
    before, now = (side.words for side in sides)
    other = [label for label in now if before.get(label) != now[label]]
    for label in other[:_NOTES_SHOWN]:
        print(f"note: {label} says otherwise: before {before.get(label)!r} · now {now[label]!r}")
    if len(other) > _NOTES_SHOWN:
        print(f"note: {len(other) - _NOTES_SHOWN} others say otherwise")


def _prove(settings: Settings, work: Path) -> bool:
    """Run and compare in a folder; return whether all is equal."""
    real = settings.real.resolve() if settings.real.is_dir() else None
    commit = resolve_commit(_REPOSITORY, settings.before)
    with (
        tempfile.TemporaryDirectory(prefix="omniges-earlier-") as place,
        earlier_tree(_REPOSITORY, commit, Path(place) / "tree") as tree,
    ):
        sides = [
            Side("before", tree, work / "before", real, earlier=True),
            Side("now", _REPOSITORY, work / "now", real),
        ]
        for side in sides:
            side.prepare()
        rows = compare_trees(sides, settings.only)
    _print_table(rows, skipped=real is None and "shards" in settings.only)
    _print_notes(sides)
    differing = sum(not row.equal for row in rows)
    print(f"{commit[:12]} and the working tree: {len(rows)} comparisons, {differing} differ")
    return bool(rows) and not differing


def main() -> int:
    """Compare, print the table, and give the exit code."""
    settings = _parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave through the clean-up, as Ctrl-C does
    try:
        if settings.keep is not None:
            settings.keep.mkdir(parents=True)
            return 0 if _prove(settings, settings.keep.resolve()) else 1
        with tempfile.TemporaryDirectory(prefix="omniges-nothing-lost-") as work:
            return 0 if _prove(settings, Path(work)) else 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
