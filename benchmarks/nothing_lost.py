"""Checks that the working tree gives the same results as an earlier commit, byte for byte.

    python benchmarks/nothing_lost.py --before COMMIT

Use it after modules were moved or rewritten. It checks COMMIT out into a second folder, runs the same commands with
both trees, and compares their outputs. It uses only the command line and files, so modules may have other names. There
are five checks:

* **shards**: synthetic corpora, every member of every shard, and every other file of a shard set. If `--real` is a
  folder of real recordings, they are converted too. If the trees write different versions of the shard contract, the
  content is compared, not the bytes (see below);
* **losses**: every loss and gradient norm, all tensors of the last checkpoint, log and validation. One run is not
  interrupted; another run is stopped half-way and resumed;
* **generated**: every file and record of `generate`, every metric of `evaluate`, every window of `trace-batches`;
* **codes**: exit codes and finding codes of damaged shards, damaged recordings and invalid commands, and all flags;
* **earlier**: both trees verify, show, export, update, resume and generate from the output of COMMIT.

If COMMIT writes version 1 of the shard contract, the changes of version 2 are not compared. These are: the names and
bytes of the members with words, spans and waveform; the number type of betas; the positions of members and shard ends;
the manifest hash; empty texts and -1 in place of null in KEY.json; and the new fields `present`, `jaw_eyes`, `counts`
and `difference_std`. Everything else is compared: arrays as bytes; betas and waveforms as numbers; words, spans and
metadata as JSON; rows of the manifest and statistics to the last bit. The update of such a set is not tried, because
omniges does not update sets of version 1.

New commands, flags and settings are not compared (`_SINCE` lists the settings). Renamed settings and flags are compared
under their new names. Three things in records, reports and logs are not compared: the version of omniges, times, and
the git commit. Lists of sentences for people are compared only by their lengths. Differences on standard error are
printed as notes. The exit code is 1 if anything else differs.
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
_NEEDS: Final = {"losses": {"generated", "earlier"}, "shards": set(CHECKS)}
"""For each check, the checks that read its outputs."""
_NOTES_SHOWN: Final = 10


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the comparison; the flags of the command line."""

    before: str
    real: Path
    keep: Path | None
    only: frozenset[str]


def _parse(arguments: Sequence[str]) -> Settings:
    parser = argparse.ArgumentParser(
        description="Check that the working tree gives the same results as an earlier commit, byte for byte."
    )
    parser.add_argument("--before", required=True, metavar="COMMIT", help="the earlier commit")
    parser.add_argument("--real", type=Path, default=_REAL, help=f"folder of real recordings (default: {_REAL})")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="new folder that keeps the outputs of both trees")
    parser.add_argument("--only", default=",".join(CHECKS), metavar="LIST", help=f"some of {','.join(CHECKS)}")
    given = parser.parse_args(arguments)
    only = frozenset(given.only.split(","))
    if unknown := only - set(CHECKS):
        parser.error(f"--only {','.join(sorted(unknown))}: expected some of {', '.join(CHECKS)}")
    if given.keep is not None and given.keep.exists():
        parser.error(f"--keep {given.keep}: expected a new folder")
    if given.real != _REAL and not given.real.is_dir():
        parser.error(f"--real {given.real}: expected a folder, found none")
    return Settings(given.before, given.real, given.keep, only)


def _run_step(step: Step, sides: Sequence[Side]) -> list[Found]:
    """Run a step with all trees at the same time; after an error or Ctrl-C, stop the commands of all trees."""
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
    """Copy outputs of the earlier commit to the folders from which both sides read."""
    outputs = sides[0].folder / "made"
    for name in step.gives:
        for side in sides:
            shutil.copytree(outputs / name, side.folder / "given" / name, symlinks=True)


def _wanted(step: Step, only: frozenset[str]) -> bool:
    return step.check in only or bool(only & _NEEDS.get(step.check, set()))


def compare_trees(sides: Sequence[Side], only: frozenset[str]) -> list[Row]:
    """Run all steps, and return the rows of the table; the first side is the earlier commit."""
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
    """Print differences in the first line on standard error; they are not failures."""
    before, now = (side.words for side in sides)
    other = [label for label in now if before.get(label) != now[label]]
    for label in other[:_NOTES_SHOWN]:
        print(f"note: {label} prints another text: before {before.get(label)!r} · now {now[label]!r}")
    if len(other) > _NOTES_SHOWN:
        print(f"note: {len(other) - _NOTES_SHOWN} more commands print another text")


def _prove(settings: Settings, work: Path) -> bool:
    """Run both trees in a folder, compare them and print the table; return whether everything is equal."""
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
    """Compare the trees, print the table, and return the exit code."""
    settings = _parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # clean up, as after Ctrl-C
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
