"""`evaluate --html`: the table of scores, and each figure's best, median and worst clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from omniges.exchange.pages import ScoreTable
from omniges.exchange.settings import ViewSettings
from omniges.exchange.view import ViewSummary, view
from omniges.metrics.registry import BUILT_IN, registered_metrics
from omniges.shards.schema import stem_from_key
from omniges.visualize.settings import ShownPart

if TYPE_CHECKING:
    from omniges.evaluation.report import Report

_LABELS: Final = {"lower": ("best", "worst"), "higher": ("worst", "best"), None: ("lowest", "highest")}
"""Names of a metric's lowest and highest value, by the direction that is better."""


def score_tables(report: Report) -> list[ScoreTable]:
    """Return the tables of a report with the clips behind their figures.

    Args:
        report: The report.

    Returns:
        A table for each task.
    """
    measures = [*BUILT_IN, *registered_metrics()]
    better = {measure.label: measure.better for measure in measures}
    tables = []
    for name, task in report.tasks.items():
        (head, *rows), metrics = task.table()
        values = {figure.metric: figure.by_recording for figure in task.figures if figure.row == "generated"}
        clips = tuple(extremes(values.get(metric, {}), *_LABELS[better.get(metric)]) for metric in metrics)
        tables.append(ScoreTable(name, tuple(head), tuple(map(tuple, rows)), clips))
    return tables


def extremes(values: Mapping[str, float], lowest: str, highest: str) -> dict[str, str]:
    """Return the clips with the lowest, the median and the highest value.

    Args:
        values: Value of each recording, by key.
        lowest: Label of the lowest value.
        highest: Label of the highest value.

    Returns:
        Stems by label; a single recording has one label, and without values the mapping is empty.
    """
    keys = sorted(values, key=lambda key: (values[key], key))
    if not keys:
        return {}
    if len(keys) == 1:
        return {"only": stem_from_key(keys[0])}
    found = {lowest: keys[0], "median": keys[(len(keys) - 1) // 2], highest: keys[-1]}
    return {label: stem_from_key(key) for label, key in found.items()}


def view_scores(
    report: Report,
    results: Sequence[Path],
    shards: Path,
    output_file: Path,
    part: ShownPart,
    motion_rate_hz: float | None = None,
) -> ViewSummary:
    """Write a page with the scores of results; it shows scored clips beside their recordings.

    If no figure has values of single clips (only a Fréchet distance, for example), the page shows the first clip.

    Args:
        report: The scores.
        results: Folders of the results.
        shards: Folder of the recordings.
        output_file: HTML file to write.
        part: Part of each clip to show.
        motion_rate_hz: Frames per second of motion files that do not state them.

    Returns:
        What the page holds.
    """
    tables = score_tables(report)
    clips = {stem for table in tables for row in table.clips for stem in row.values()}
    clips = clips or {stem_from_key(task.recordings[0]) for task in report.tasks.values()}
    paths = tuple(map(str, (*results, shards)))
    settings = ViewSettings(paths=paths, output_file=output_file, motion_rate_hz=motion_rate_hz, **part.of_part)
    return view(settings, only=clips, scores=tables)
