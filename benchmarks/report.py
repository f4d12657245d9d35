"""Prints the measurements of `preprocess.py`: rich tables on a terminal, plain aligned lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

Rows = Sequence[tuple[str, ...]]
_NOTES = """\
How to read this: the two conversions ran in turns, and each repeat reversed the order. So a slow period of the machine
affects both. The range is min–max over the repeats. Input files were in the page cache, and the disk was synced before
each run. "Other CPU" is the share of all cores that other processes used during a run. If it is more than a few
percent, other work slowed the run down and the factors are too low. `omniges preprocess` is measured with start-up and
fsync, so its factor rises with the number of recordings. The straightforward conversion is a loop over a subset,
without start-up, hashes, checks and fsync. Memory is the largest peak of one process over all runs (VmHWM, in MB of
10^6 bytes, with shared libraries); ru_maxrss is the kernel's upper bound for all processes. The stages do not include
the pipe between worker and parent, and the wait for the disk, which overlaps with other work."""


def print_report(document: dict[str, Any]) -> None:
    """Print all measurements."""
    console = Console(highlight=False)
    _print_machine(console, document)
    _print_comparison(console, document)
    stages = document["stages_ms"]
    rows = [(name, f"{figures['min']:.2f}", f"{figures['median']:.2f}") for name, figures in stages.items()]
    title = f"ms per recording, {document['settings']['stage_recordings']} recordings one after the other"
    _show(console, title, ("stage", "min", "median"), rows)
    if document["memory"]:
        _print_memory(console, document["memory"])
    _say(console, "")
    _say(console, _NOTES)


def _print_machine(console: Console, document: dict[str, Any]) -> None:
    machine, corpus = document["machine"], document["corpus"]
    _say(console, f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}")
    packages = ", ".join(f"{name} {found}" for name, found in machine["packages"].items())
    _say(console, f"Python {machine['python']}, {packages}")
    _say(console, f"files on {machine['filesystem']}; load average before the first run {machine['load_average']}")
    _say(
        console,
        f"{corpus['kind']} corpus: {corpus['recordings']} recordings, {corpus['seconds'] / 60:.1f} min, "
        f"{corpus['bytes'] / 1e6:.0f} MB; workers: {document['settings']['workers']}, "
        f"repeats: {document['settings']['repeats']}; straightforward on {document['settings']['subset']} recordings",
    )


def _print_comparison(console: Console, document: dict[str, Any]) -> None:
    columns = (
        "",
        "× real time",
        "min–max",
        "wall s",
        "CPU s",
        "CPU ms/recording",
        "worker MB",
        "main MB",
        "other CPU %",
    )
    rows = [_run_row(name, document[name]["runs"]) for name in ("preprocess", "straightforward")]
    _show(console, "end to end, medians", columns, rows)
    ratio = document["ratio"]
    pairs = ", ".join(f"{value:.2f}" for value in ratio["pairs"])
    _say(console, f"preprocess / straightforward: {ratio['median']:.2f} (pairs: {pairs})")


def _run_row(name: str, runs: list[dict[str, float]]) -> tuple[str, ...]:
    def middle(field: str) -> float:
        return median(run[field] for run in runs)

    factors = [run["x_real_time"] for run in runs]
    return (
        name,
        f"{median(factors):,.0f}",
        f"{min(factors):,.0f}–{max(factors):,.0f}",
        f"{middle('wall_s'):.2f}",
        f"{middle('cpu_s'):.2f}",
        f"{1000 * median(run['cpu_s'] / run['recordings'] for run in runs):.1f}",
        f"{max(run['worker_mb'] for run in runs):.0f}" if runs[0]["worker_mb"] else "–",
        f"{max(run['main_mb'] for run in runs):.0f}",
        f"{100 * middle('other_cpu_share'):.0f}",
    )


def _print_memory(console: Console, runs: list[dict[str, Any]]) -> None:
    rows = [
        (
            run["corpus"],
            f"{run['worker_mb']:.0f}",
            f"{run['main_mb']:.0f}",
            f"{run['maxrss_mb']:.0f}",
            f"{run['x_real_time']:,.0f}",
        )
        for run in runs
    ]
    columns = ("omniges preprocess on", "worker MB", "main MB", "largest (ru_maxrss) MB", "× real time")
    _show(console, "peak memory", columns, rows)


def _show(console: Console, title: str, columns: tuple[str, ...], rows: Rows) -> None:
    """Print a table; the first column is text, all others are numbers."""
    if console.is_terminal:
        table = Table(title=title, title_justify="left")
        for place, column in enumerate(columns):
            table.add_column(column, justify="right" if place else "left")
        for row in rows:
            table.add_row(*row)
        console.print()
        console.print(table)
        return
    widths = [max(len(row[place]) for row in [columns, *rows]) for place in range(len(columns))]
    print(f"\n{title}")
    for row in [columns, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *cells]).rstrip())


def _say(console: Console, text: str) -> None:
    if console.is_terminal:
        console.print(text, markup=False)
    else:
        print(text)
