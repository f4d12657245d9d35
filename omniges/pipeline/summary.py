"""Tables a person reads after a run, and the same as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from omniges.errors import CODES, ExitCode
from omniges.pipeline.settings import Summary

if TYPE_CHECKING:
    from omniges.pipeline.plan import Plan  # loads the decoders

__all__ = [
    "duration_text",
    "plan_json",
    "print_plan",
    "print_summary",
    "simple_table",
    "size_text",
    "summary_json",
]


_SHOWN_LOST = 10


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration_text(seconds: float) -> str:
    """Seconds as ``1 h 02 min``, ``3 min 20 s`` or ``4.2 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def size_text(count: float) -> str:
    """Bytes as ``4.9 MB`` (powers of 1000)."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def simple_table(*columns: str, right: tuple[int, ...] = ()) -> Table:
    """A table without lines; `right` names the columns to align right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place in right else "left", overflow="fold")
    return table


def _findings_table(summary: Summary, severity: str) -> Table | None:
    codes = [code for code in sorted(summary.finding_counts) if CODES[code].severity == severity]
    if not codes:
        return None
    table = simple_table("rejected" if severity == "rejected" else "note", "count", "example", "what to do", right=(1,))
    for code in sorted(codes, key=lambda code: -summary.finding_counts[code]):
        table.add_row(code, str(summary.finding_counts[code]), summary.examples[code], CODES[code].remedy)
    return table


def print_summary(summary: Summary, console: Console) -> None:
    """What was done, what was not and why, and what to do about it."""
    splits = simple_table("split", "samples", "length", right=(1, 2))
    for split, (samples, seconds) in summary.splits.items():
        splits.add_row(split, str(samples), duration_text(seconds))
    console.print(splits)
    for severity in ("rejected", "note"):
        table = _findings_table(summary, severity)
        if table:
            console.print()
            console.print(table)
    for stem, reason in list(summary.lost.items())[:_SHOWN_LOST]:
        console.print(f"\nlost: {stem}: tried twice ({reason})", markup=False)
    speed = f", {summary.computed_s / summary.elapsed_s:,.0f} × real time"
    if summary.reused:
        speed = f" ({summary.reused} taken over unchanged)"  # a speed over what was not computed would say nothing
    done = (
        f"\nnothing to do: inputs and settings are those of the {summary.converted} recordings in {summary.out}"
        if summary.unchanged
        else f"\n{summary.converted} of {summary.stems} recordings converted ({duration_text(summary.converted_s)}) in "
        f"{duration_text(summary.elapsed_s)}{speed}: "
        f"{_count(summary.shards, 'shard')}, {size_text(summary.shard_bytes)} in {summary.out}"
    )
    console.print(done, markup=False)
    console.print(
        f"cut to common lengths: {summary.cut_audio_s:.1f} s of audio, {summary.cut_motion_s:.1f} s of motion, "
        f"{summary.words_dropped} words",
        markup=False,
    )
    if summary.report:
        console.print(f"every finding: {summary.report}; times and retries: {summary.run_log}", markup=False)
    console.print(_verdict(summary), markup=False)


def _verdict(summary: Summary) -> str:
    if summary.lost:
        return (
            f"not complete: {_count(len(summary.lost), 'recording')} lost to workers that died or met the --deadline "
            f"(all in {summary.run_log}); the same command tries again"
        )
    share = f"{summary.rejected} of {summary.stems} recordings rejected ({summary.rejected_share:.1%})"
    if summary.exit_code is not ExitCode.OK:
        return f"shards complete, but {share}, more than --max-rejected {summary.max_rejected:g}: exit code 1"
    return f"complete: {share}"


def summary_json(summary: Summary) -> str:
    """One line of JSON, ``{"event": "summary", …}``."""
    row: dict[str, Any] = asdict(summary)
    row |= {"event": "summary", "exit_code": int(summary.exit_code), "rejected_share": summary.rejected_share}
    row["splits"] = {name: {"samples": n, "seconds": s} for name, (n, s) in summary.splits.items()}
    return json.dumps(row, default=str, sort_keys=True)


def print_plan(plan: Plan, workers: int, console: Console) -> None:
    """What a run would do."""
    console.print(f"data set folders: {', '.join(part or '.' for part in plan.parts)}", markup=False)
    table = simple_table("split", "recordings", right=(1,))
    for split, count in plan.splits.items():
        table.add_row(split, str(count))
    console.print(table)
    speakers = ", ".join(f"{name} {count}" for name, count in plan.speakers.items())
    console.print(f"speakers: {speakers or 'none'}; splits from: {plan.split_source}", markup=False)
    if plan.rejected_already:
        rejected = simple_table("rejected before conversion", "count", "what to do", right=(1,))
        for code, count in plan.rejected_already.items():
            rejected.add_row(code, str(count), CODES[code].remedy)
        console.print(rejected)
    if plan.seconds is None or plan.output_bytes is None or plan.wall_s is None:
        console.print("no estimate: none of the recordings tried could be converted")
        return
    console.print(
        f"about {duration_text(plan.seconds)} of recordings, {size_text(plan.input_bytes)} to read, "
        f"{size_text(plan.output_bytes)} to write, {duration_text(plan.wall_s)} with {workers} workers "
        f"(scaled up from {plan.sampled} recordings)",
        markup=False,
    )


def plan_json(plan: Plan) -> str:
    """One line of JSON, ``{"event": "plan", …}``."""
    return json.dumps({"event": "plan"} | asdict(plan), sort_keys=True)
