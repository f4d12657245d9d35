"""Format a report of an evaluation as JSON, CSV, Markdown for a paper, or lines for the terminal."""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from omniges.evaluation.scores import ROWS, Figure
from omniges.progress import printable

Form = Literal["table", "json", "csv", "markdown"]
_NO_VALUE: Final = "–"
_WIDTH: Final = 100
_PLAIN_BELOW: Final = 1e6
_FEW: Final = 10
_ZERO: Final = 1e-12
_PLAIN: Final = ("", "share", "F")  # units that the table does not print
_PAIR: Final = 2
_ROW_DIGITS: Final = 5
_NO_SHUFFLED: Final = "shuffled scores: expected at least two recordings, found one"
_NOT_FOR_READING: Final = frozenset({"manifest_sha256", "profile_settings", "files"})
_SCALES: Final = {"face MSE": (1e8, "1e-8 m²"), "face LVD": (1e5, "1e-5 m/frame")}
"""Scale and unit of metrics with very small values in tables, as papers print them. JSON and CSV are not scaled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReport:
    """Figures (values of metrics) of one task, with the keys of the scored recordings and the number of results."""

    figures: Sequence[Figure]
    recordings: Sequence[str]  # keys of the scored recordings
    results: int
    splits: Mapping[str, tuple[int, int]]  # by split: numbers of scored and of all recordings
    seconds: float  # scored duration, each recording once
    recorded_seconds: float
    made_by: Mapping[str, Any] | None = None  # model and settings, if records contain them
    warnings: Sequence[str] = ()

    def table(self) -> tuple[list[list[str]], list[str]]:
        """Return the figures as a table (rows of cells), and the names of the metrics in the table.

        The first row of the table is the header. Each further row belongs to one metric. The names have the same order
        as these rows.
        """
        metrics = _by_metric(self.figures)
        lines = [["", *ROWS]]
        for metric, found in metrics.items():
            first = next(iter(found.values()))
            cells = [_cell(found.get(row), 3) for row in ROWS]
            none = all(figure.value is None for figure in found.values())
            label = f"{metric} ({_unit(first)})" if _unit(first) not in _PLAIN else metric
            lines.append([label, printable(f"not computed: {first.why_not}")] if none else [label, *cells])
        return lines, list(metrics)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Report of an evaluation: the figures (values of metrics) of every task, and how they were computed."""

    tasks: Mapping[str, TaskReport]
    facts: Mapping[str, Any]  # shards, profile, skeleton, encoder, resampling, versions
    warnings: Sequence[str] = ()

    def document(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        tasks = {name: asdict(task) for name, task in self.tasks.items()}
        for task in tasks.values():
            task["remarks"] = task.pop("warnings")  # the name of this key in version 1 of the format
        head = {"format": "omniges-evaluation", "version": 1}
        return head | {**self.facts, "remarks": list(self.warnings), "tasks": tasks}


def render(report: Report, form: Form) -> str:
    """Format a report as text, with a newline at its end.

    For a report of a protocol, ``table`` and ``markdown`` both give a row of a Markdown table, followed by notes.

    Args:
        report: The report.
        form: ``table``, ``json``, ``csv`` or ``markdown``.

    Returns:
        The text.
    """
    if form == "json":
        return json.dumps(report.document(), ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    if form == "csv":
        return _csv(report)
    if "protocol" in report.facts:
        return _row(report)
    return _markdown(report) if form == "markdown" else _table(report)


def _csv(report: Report) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["task", "metric", "unit", "row", "value", "low", "high", "resamples", "recordings", "results", "left_out"]
    writer.writerow([*head, "why_not", "details", "profile", "skeleton", "encoder"])
    facts = [report.facts.get(name, "") for name in ("profile", "skeleton", "encoder")]
    for name, task in report.tasks.items():
        for f in task.figures:
            numbers = ["" if value is None else repr(value) for value in (f.value, f.low, f.high)]
            counts = [f.resamples, f.recordings, f.results, sum(f.left_out.values())]
            details = json.dumps(f.details, ensure_ascii=False, sort_keys=True) if f.details else ""
            writer.writerow([name, f.metric, f.unit, f.row, *numbers, *counts, f.why_not or "", details, *facts])
    return out.getvalue()


def _number(value: float, digits: int) -> str:
    """Format a value with `digits` significant digits.

    If the integer part has more digits, a value below 10⁶ is shown as an integer, and a larger value with an exponent.
    Magnitudes below 1e-12 are shown as 0.
    """
    if abs(value) < _ZERO:
        return "0"
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e+" in text and abs(value) < _PLAIN_BELOW else text


def _cell(figure: Figure | None, digits: int) -> str:
    if figure is None or figure.value is None:
        return _NO_VALUE
    scale = _SCALES.get(figure.metric, (1.0, ""))[0]
    value = _number(figure.value * scale, digits)
    if figure.low is None or figure.high is None:
        return value
    return f"{value} [{_number(figure.low * scale, digits)}, {_number(figure.high * scale, digits)}]"


def _unit(figure: Figure) -> str:
    return _SCALES.get(figure.metric, (1.0, figure.unit))[1]


def _by_metric(figures: Sequence[Figure]) -> dict[str, dict[str, Figure]]:
    """Group figures in nested dictionaries, by metric and then by row."""
    found: dict[str, dict[str, Figure]] = {}
    for figure in figures:
        found.setdefault(figure.metric, {})[figure.row] = figure
    return found


def _extent(task: TaskReport) -> str:
    """Describe in one line how much of the data was scored: recordings, results and seconds."""
    of = ", ".join(f"{scored} of {held} {split} recordings" for split, (scored, held) in task.splits.items())
    results = f", {task.results} results" if task.results != len(task.recordings) else ""
    return f"{of}{results}, {task.seconds:.1f} of {task.recorded_seconds:.1f} s"


def _notes(task: TaskReport, metrics: Mapping[str, Mapping[str, Figure]]) -> Iterator[str]:
    """Yield lines with the warnings of a task, and with notes about missing or uncertain values."""
    yield from task.warnings
    if len(task.recordings) == 1 and not any("shuffled" in found for found in metrics.values()):
        yield _NO_SHUFFLED
    for metric, found in metrics.items():
        generated = found.get("generated")
        if generated is not None and generated.value is not None:
            if generated.left_out:
                yield f"{metric}: without {_reasons(generated)}"
            for row, figure in found.items():
                if figure.value is not None and figure.left_out and figure.left_out != generated.left_out:
                    yield f"{metric}, {row}: without {_reasons(figure)}"
            yield from _basis(metric, found)
        for row, figure in found.items():
            if row != "generated" and figure.why_not is not None and generated is not None and not generated.why_not:
                yield f"{metric}, {row}: not computed: {figure.why_not}"
    few = {figure.recordings for found in metrics.values() for figure in found.values() if figure.low is not None}
    if few and min(few) < _FEW:
        yield f"intervals over {min(few)} recordings are too narrow: score at least {_FEW}"


def _reasons(figure: Figure) -> str:
    reasons = [f"{count} × {reason}" for reason, count in figure.left_out.items()]
    more = [f"{len(reasons) - 2} more reasons"] if len(reasons) > 2 else []
    return "; ".join(reasons[:2] + more)


def _basis(metric: str, found: Mapping[str, Figure]) -> Iterator[str]:
    """Yield notes that say how much data a metric's figures come from: counts of words, beats or rows of features."""
    for row, figure in found.items():
        d = figure.details
        if "times_10" in d:
            later = _number(d["formula_2025"], _ROW_DIGITS)
            yield f"{metric}, {row}: × 10, as papers print it: {_number(d['times_10'], _ROW_DIGITS)}; 2025: {later}"
        if "rows" in d:
            of = f", {d['of']}" if "of" in d else ""
            low = "" if d["full_rank"] else ": below its width, so it is biased upwards"
            sets = f"rows {d['rows'][0]} and {d['rows'][1]}, ranks {d['ranks'][0]} and {d['ranks'][1]}"
            yield f"{metric}, {row}{of}: {sets} of {d['dimensions']}{low}"
    d = found["generated"].details
    if "words" in d:
        yield f"word times: over {d['words']} of {d['expected']} words, which were recognized"
    if metric == "word error rate":
        counts = ", ".join(f"{d[kind]} {kind}" for kind in ("substitutions", "deletions", "insertions"))
        yield f"{metric}: {counts}; {d['expected']} words in the reference"
    if "motion_beats" in d:
        motion = ", ".join(f"{figure.details['motion_beats']} {row}" for row, figure in found.items() if figure.details)
        yield f"{metric}: {d['audio_beats']} beats of audio; beats of motion over all joints: {motion}"
    if metric == "seams, velocity":
        yield (
            f"seams: {d['values']} values at window boundaries; 0.01 is expected if boundaries do not show; the "
            "recorded row is measured at the same times, because boundaries may coincide with the start of a word"
        )
    if metric == "log-mel L1" and "of" in d:
        yield f"audio: computed from {d['of']}"


def _wrapped(text: str) -> str:
    line = printable(text)
    return textwrap.fill(
        line, _WIDTH, initial_indent="  ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


def _table(report: Report) -> str:
    out: list[str] = []
    for name, task in report.tasks.items():
        metrics = _by_metric(task.figures)
        lines, _ = task.table()
        widths = [max(len(line[k]) for line in lines if len(line) > _PAIR or k == 0) for k in range(4)]
        out.append(f"{name}: {_extent(task)}")
        out += ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=False)).rstrip() for line in lines]
        out += [_wrapped(note) for note in dict.fromkeys(_notes(task, metrics))]
        out.append("")
    out += [_wrapped(f"warning: {warning}") for warning in report.warnings]
    return "\n".join([*out, _wrapped(_footer(report)), ""])


def _footer(report: Report) -> str:
    facts = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in report.facts.items() if name not in _NOT_FOR_READING
    )
    return f"in brackets: 95 % intervals over recordings; {facts}"


def _markdown(report: Report) -> str:
    """Format each task as a Markdown table with one row, which can be copied to a paper's table."""
    out = []
    for name, task in report.tasks.items():
        metrics = _by_metric(task.figures)
        known = [
            (metric, found["generated"])
            for metric, found in metrics.items()
            if "generated" in found and found["generated"].value is not None
        ]
        heads = [f"{metric} ({_unit(figure)})" if _unit(figure) else metric for metric, figure in known]
        out.append("| task | recordings | " + " | ".join(heads) + " |")
        out.append("| --- | --- |" + " --- |" * len(heads))
        out.append(f"| {name} | {len(task.recordings)} | " + " | ".join(_cell(figure, 4) for _, figure in known) + " |")
        out += ["", f"{name}: {_extent(task)}.", ""]
        out += [f"* {printable(note)}" for note in dict.fromkeys([*_notes(task, metrics), *_absences(metrics)])]
        out.append("")
    warnings = [f"* {printable(warning)}" for warning in report.warnings] + [""] * bool(report.warnings)
    return "\n".join([*out, *warnings, printable(_footer(report)), ""])


def _absences(metrics: Mapping[str, Mapping[str, Figure]]) -> Iterator[str]:
    """Yield one line for each reason why metrics have no value. The line names these metrics."""
    reasons: dict[str | None, list[str]] = {}
    for metric, found in metrics.items():
        if all(figure.value is None for figure in found.values()):
            reasons.setdefault(next(iter(found.values())).why_not, []).append(metric)
    for reason, absent in reasons.items():
        yield f"{', '.join(absent)}: not computed: {reason}"


def _row(report: Report) -> str:
    """Format the scores of a protocol as a row of a Markdown table, followed by notes and provenance."""
    facts = report.facts
    out: list[str] = []
    for name, task in report.tasks.items():
        figures = {figure.metric: figure for figure in task.figures}
        frechet = figures["Fréchet gesture distance"]
        beats, diversity = figures["beat consistency"], figures["L1 diversity"]
        rows = frechet.details.get("rows", [None])[0]
        later = frechet.details.get("formula_2025")
        clips, of = facts["clips"]
        cells = {
            "task": name,
            "clips": f"{clips} of {of}",
            "seconds": f"{task.seconds:.1f}",
            "grid": facts["grid"],
            "rows": _NO_VALUE if rows is None else str(rows),
            "FGD": _cell(frechet, _ROW_DIGITS),
            "FGD × 10": _cell(_times_10(frechet), _ROW_DIGITS),
            "FGD, formula of 2025": _NO_VALUE if later is None else _number(later, _ROW_DIGITS),
            "BC": _cell(beats, _ROW_DIGITS),
            "BC × 10": _cell(_times_10(beats), _ROW_DIGITS),
            "L1 diversity (m)": _cell(diversity, _ROW_DIGITS),
        } | {f"{face} ({unit})": _cell(figures[face], _ROW_DIGITS) for face, (_, unit) in _SCALES.items()}
        out += [f"| {' | '.join(line)} |" for line in (cells.keys(), ["---"] * len(cells), cells.values())]
        out.append("")
        metrics = _by_metric(task.figures)
        notes = [*report.warnings, *_notes(task, metrics), *_absences(metrics)]
        out += [f"* {printable(note)}" for note in dict.fromkeys(notes) if not _in_row(note)]
    out += [f"* {printable(line)}" for line in _provenance(facts)]
    return "\n".join([*out, ""])


def _times_10(figure: Figure) -> Figure:
    value, low, high = (None if number is None else 10 * number for number in (figure.value, figure.low, figure.high))
    return replace(figure, value=value, low=low, high=high)


def _in_row(note: str) -> bool:
    """Return True if a note must be left out of the notes below a protocol's row.

    The note is left out if it repeats a value of the row, or if it is about shuffled scores, which the row lacks.
    """
    return "× 10, as papers" in note or note == _NO_SHUFFLED


def _provenance(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines that say how a protocol's row was computed: package versions, files with checksums, and command."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    yield f"protocol {facts['protocol']}, profile {facts['profile']}, {versions}"
    for name, file in facts["files"].items():
        if file is not None:
            known = {True: " (published)", False: " (unknown)", None: ""}[file["published"]]
            yield f"{name.replace('_', ' ')}: {file['file']}, sha256 {file['sha256']}{known}"
    yield f"shards: manifest sha256 {facts['manifest_sha256']}"
    yield f"in brackets: 95 % intervals over clips, seed {facts['seed']}"
    yield f"command: `{facts['command']}`"
