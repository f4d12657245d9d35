"""Kills `omniges preprocess` at any instant and proves that the same command finishes as if nothing had happened.

    python tests/robustness/crashes.py --kills 300 --seed 0 --workers 2
    python tests/robustness/crashes.py --power-loss 300 --seed 0

A case begins with a folder in some state (`crash_scenarios`), starts the command and kills it by
SIGKILL, up to three times in a row: at a random moment, or before, after or in the middle of a chosen change of the
folder, all kinds of changes in turn. Between the runs dataset.json, where it is there, has to stand for a whole set,
the old one or the new. Then the command runs undisturbed: it must exit 0 and leave the very bytes of a run into a new
folder, nothing else, `verify-shards --level deep` must find nothing, and no worker may go on for a run that is no more.

With `--signals` a chosen moment brings SIGTERM or SIGINT instead, and the command has to end with 75 or 130.

With `--power-loss` nothing is killed: the calls of a run in this process are recorded, and what a power loss could
leave after any of them (`crash_model`) is laid out and run over, again up to three times.

A case follows from seed and index; `--only 123` repeats one and keeps its folder. Exit code 1 if any case failed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from crash_kills import left_behind, run_child
from crash_power import Result, power_loss_case
from crash_scenarios import NAMES, Scenario, end_faults, make_scenarios, state_faults

_MAX_IN_A_ROW: Final = 3
_RANDOM_SHARE: Final = 0.35


# --- the process


def count_calls(scenario: Scenario, work: Path) -> tuple[dict[str, int], float]:
    """The number of calls of each kind in an undisturbed run, and its seconds; raises unless the run is right."""
    out, calls = scenario.begin(work / f"count-{scenario.name}"), work / f"calls-{scenario.name}.json"
    start = time.monotonic()
    run_child(scenario, out, first=False, spec={"calls": str(calls)})
    elapsed_s = time.monotonic() - start
    faults = end_faults(scenario, out)
    if faults:
        raise RuntimeError(f"{scenario.name}, not disturbed: {faults}")
    return json.loads(calls.read_text(encoding="utf-8")), elapsed_s


def kill_case(
    scenario: Scenario, kinds: dict[str, int], duration_s: float, work: Path, seed: int, index: int, *, signals: bool
) -> Result:
    """Kill up to three times (or, with `signals`, stop by SIGTERM or SIGINT), then finish."""
    rng = random.Random(f"{seed} {index}")
    result, out = Result(index, scenario.name), scenario.begin(work / f"case-{index}")
    in_a_row = rng.choice((1, 1, 2, _MAX_IN_A_ROW))
    groups: list[int] = []
    # Each kind of moment has its turn, whatever the seed.
    names = sorted(kinds)
    try:
        for turn in range(in_a_row):
            spec: dict[str, object] = {"victims": rng.choice(("group", "alone"))}
            after_s = None
            if rng.random() < _RANDOM_SHARE:
                after_s = rng.uniform(0.3, 1.0) * duration_s
                moment = "random moment"
            else:
                kind = names[(index // len(NAMES) * _MAX_IN_A_ROW + turn) % len(names)]
                whens = ("before", "after", "half") if kind.startswith("write") else ("before", "after")
                spec |= {"kind": kind, "nth": rng.randrange(kinds[kind]), "when": rng.choice(whens)}
                if signals:
                    spec |= {"when": "before", "victims": rng.choice(("SIGTERM", "SIGINT"))}
                moment = f"{spec['when']} {kind}"
            code = run_child(scenario, out, first=turn == 0, spec=spec, after_s=after_s, groups=groups)
            if code == 0:
                break  # it was done before its moment came
            result.moments.append(f"{moment} ({spec['victims']})")
            result.faults += state_faults(scenario, out) if out.is_dir() else []
        run_child(scenario, out, first=False, spec={})
        result.faults += end_faults(scenario, out) + left_behind(groups)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        result.faults.append(f"failed: {error}")
    return result


# --- many


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=0, help="go on until so many runs were killed")
    parser.add_argument("--power-loss", type=int, default=0, help="cases of lost power")
    parser.add_argument("--signals", action="store_true", help="chosen moments bring SIGTERM or SIGINT instead")
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="cases of --kills at a time")
    parser.add_argument("--scenario", choices=NAMES, help="only this one")
    parser.add_argument("--only", type=int, help="only the case of this index; its folder is kept")
    parser.add_argument("--work", type=Path, help="folder for the files; a temporary one if not given")
    return parser.parse_args()


def _cases(arguments: argparse.Namespace, scenarios: dict[str, Scenario], work: Path) -> Iterator[Result]:
    """Results, until there are enough or the time is over."""
    names = [arguments.scenario] if arguments.scenario else list(NAMES)
    end = time.monotonic() + 60 * arguments.minutes
    first = arguments.only or 0
    if arguments.power_loss:
        total = 1 if arguments.only is not None else arguments.power_loss
        for index in range(first, first + total):
            if time.monotonic() < end:
                yield power_loss_case(scenarios[names[index % len(names)]], work, arguments.seed, index)
        return
    counted = {name: count_calls(scenarios[name], work) for name in names}
    killed = 0
    with ThreadPoolExecutor(arguments.workers) as pool:
        for start in itertools.count(first, arguments.workers):
            indices = [arguments.only] if arguments.only is not None else range(start, start + arguments.workers)

            def case(index: int) -> Result:
                name = names[index % len(names)]
                return kill_case(
                    scenarios[name], *counted[name], work, arguments.seed, index, signals=arguments.signals
                )

            for result in pool.map(case, indices):
                killed += len(result.moments)
                yield result
            if arguments.only is not None or killed >= arguments.kills or time.monotonic() > end:
                return


def main() -> int:
    """Run cases, print a table by scenario and kind of moment; 1 if any failed."""
    arguments = _arguments()
    start = time.monotonic()
    table: Counter[tuple[str, str]] = Counter()
    failed: list[Result] = []
    cases = 0
    with tempfile.TemporaryDirectory(prefix="crashes-") as temporary:
        work = (arguments.work or Path(temporary)).absolute()
        scenarios = make_scenarios(work / "scenarios")
        for result in _cases(arguments, scenarios, work):
            cases += 1
            table.update((result.scenario, _heading(moment)) for moment in result.moments)
            if result.faults:
                failed.append(result)
                flag = "--power-loss 1" if arguments.power_loss else "--kills 1" + " --signals" * arguments.signals
                print(f"FAILED {result.scenario}: {'; then '.join(result.moments)}: {'; '.join(result.faults)}")
                print(
                    f"  python tests/robustness/crashes.py {flag} --seed {arguments.seed} --only {result.index}",
                    flush=True,
                )
            elif arguments.only is None:
                for folder in work.glob(f"case-{result.index}*"):
                    shutil.rmtree(folder)
    _print_table(table)
    kinds = Counter(fault.partition(":")[0] for result in failed for fault in result.faults)
    what = "power losses" if arguments.power_loss else "kills"
    sound = f"{cases - len(failed)} byte-equal, sound and without leftovers"
    print(f"{table.total()} {what} in {cases} cases, {time.monotonic() - start:.0f} s: {sound}")
    if failed:
        print(f"{len(failed)} failed: {dict(kinds)}")
    return 1 if failed else 0


def _heading(moment: str) -> str:
    """The row of a moment: without the file's name and the victims."""
    return moment.partition(" work/")[0].partition(" out/")[0].partition(" (")[0]


def _print_table(table: Counter[tuple[str, str]]) -> None:
    names = [name for name in NAMES if any(scenario == name for scenario, _ in table)]
    rows = sorted({moment for _, moment in table})
    print("".join([f"{'moment':24}", *(f"{name:>15}" for name in names), f"{'all':>8}"]))
    for moment in rows:
        counts = [table[name, moment] for name in names]
        print("".join([f"{moment:24}", *(f"{count:15}" for count in counts), f"{sum(counts):8}"]))


if __name__ == "__main__":
    sys.exit(main())
