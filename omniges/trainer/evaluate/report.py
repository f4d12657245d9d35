"""A report as JSON, CSV, a Markdown table for a paper, or lines for a person."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from omniges.trainer.evaluate.figures import ROWS, Figure

__all__ = ["Form", "Report", "render"]

Form = Literal["table", "json", "csv", "markdown"]
_NO_VALUE: Final = "–"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Figures of every task, and what they rest on."""

    tasks: Mapping[str, Sequence[Figure]]
    clips: Mapping[str, Sequence[str]]  # keys by task
    facts: Mapping[str, Any]  # shards, profile, skeleton, encoder, resampling, versions

    def document(self) -> dict[str, Any]:
        """As JSON."""
        figures = {task: [asdict(figure) for figure in found] for task, found in self.tasks.items()}
        clips = {task: list(keys) for task, keys in self.clips.items()}
        return {"format": "omniges-evaluation", "version": 1, **self.facts, "clips": clips, "figures": figures}


def render(report: Report, form: Form) -> str:
    """The report in a form, with a newline at its end."""
    if form == "json":
        return json.dumps(report.document(), ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    return {"csv": _csv, "markdown": _markdown, "table": _table}[form](report)


def _csv(report: Report) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["task", "metric", "unit", "row", "value", "low", "high", "clips", "left_out", "why_not"])
    for task, figures in report.tasks.items():
        for f in figures:
            numbers = ["" if value is None else repr(value) for value in (f.value, f.low, f.high)]
            writer.writerow(
                [task, f.metric, f.unit, f.row, *numbers, f.clips, sum(f.left_out.values()), f.why_not or ""]
            )
    return out.getvalue()


def _number(value: float | None) -> str:
    return _NO_VALUE if value is None else f"{value:.4g}"


def _cell(figure: Figure | None) -> str:
    if figure is None or figure.value is None:
        return _NO_VALUE
    if figure.low is None:
        return _number(figure.value)
    return f"{_number(figure.value)} [{_number(figure.low)}, {_number(figure.high)}]"


def _lines(figures: Sequence[Figure]) -> list[tuple[str, list[Figure | None]]]:
    """Metrics in their order, each with its figure in every row."""
    by_metric: dict[str, dict[str, Figure]] = {}
    for figure in figures:
        by_metric.setdefault(figure.metric, {})[figure.row] = figure
    return [(metric, [found.get(row) for row in ROWS]) for metric, found in by_metric.items()]


def _remark(found: Sequence[Figure | None]) -> str:
    """What a person should know of a metric's figures."""
    first = next(figure for figure in found if figure is not None)
    parts = []
    if first.why_not:
        parts.append(f"not computed: {first.why_not}")
    elif first.left_out:
        reasons = "; ".join(f"{count} × {reason}" for reason, count in first.left_out.items())
        parts.append(f"{first.clips} of {first.clips + sum(first.left_out.values())} clips: {reasons}")
    else:
        parts.append(f"{first.clips} clips")
    if "warning" in first.details:
        parts.append(str(first.details["warning"]))
    return ", ".join(parts)


def _table(report: Report) -> str:
    out = []
    for task, figures in report.tasks.items():
        lines = [["metric", "unit", "generated", "shuffled", "recorded", ""]]
        for metric, found in _lines(figures):
            unit = next(figure.unit for figure in found if figure is not None)
            lines.append([metric, unit, *map(_cell, found), _remark(found)])
        widths = [max(len(line[k]) for line in lines) for k in range(5)]
        out.append(f"{task}: {len(report.clips[task])} clips")
        out += [
            "  ".join([*(cell.ljust(w) for cell, w in zip(line, widths, strict=False)), line[5]]).rstrip()
            for line in lines
        ]
        out.append("")
    facts = ", ".join(f"{name} {value}" for name, value in report.facts.items() if isinstance(value, (str, int)))
    return "\n".join([*out, f"95 % intervals over clips; {facts}", ""])


def _markdown(report: Report) -> str:
    """One table a task whose single row can go into a paper's table."""
    out = []
    for task, figures in report.tasks.items():
        known = [
            (metric, found[0])
            for metric, found in _lines(figures)
            if found[0] is not None and found[0].value is not None
        ]
        heads = [f"{metric} ({figure.unit})" if figure and figure.unit else metric for metric, figure in known]
        out.append("| task | clips | " + " | ".join(heads) + " |")
        out.append("| --- | --- |" + " --- |" * len(heads))
        out.append(f"| {task} | {len(report.clips[task])} | " + " | ".join(_cell(figure) for _, figure in known) + " |")
        out.append("")
    facts = ", ".join(f"{name} {value}" for name, value in report.facts.items() if isinstance(value, (str, int)))
    return "\n".join([*out, facts, ""])
