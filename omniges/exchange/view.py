"""Implementation of `omniges view` (one page of tracks) and of `evaluate --html` (a page of scores with clips)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from omniges.errors import UsageFault, grouped_notes
from omniges.exchange.pages import Clip, EmbeddedModel, ScoreTable, page
from omniges.exchange.settings import RenderSettings, ViewSettings
from omniges.exchange.tracks import Track, find_tracks
from omniges.formats.body_model import read_body_model
from omniges.metrics.registry import BUILT_IN, registered_metrics
from omniges.options import ShownPart
from omniges.progress import counted
from omniges.shards.schema import stem_from_key
from omniges.storage.atomic import publish_bytes

if TYPE_CHECKING:
    from omniges.evaluation.report import Report

MAX_SECONDS: Final = 2 * 3600
"""Longest total length of the tracks on a page. Browsers need tens of seconds to open longer pages."""


@dataclass(frozen=True, slots=True)
class ViewSummary:
    """Summary of a written page."""

    output_file: Path
    clips: tuple[Clip, ...]
    bytes: int
    licensed: bool = False
    """True if the page contains a licensed body model. Such a page must not be published."""

    @property
    def lines(self) -> tuple[str, ...]:
        """Lines that the command prints: one with the properties of the page, and one for each warning."""
        tracks = [track for clip in self.clips for track in clip.tracks]
        seconds = sum(track.seconds for track in tracks)
        silent = sum(all(track.audio is None for track in clip.tracks) for clip in self.clips)
        held = f"{counted(len(self.clips), 'clip')} with {counted(len(tracks), 'track')} of {seconds:.1f} s in all"
        lines = [f"{held}, {self.bytes / 1e6:.1f} MB: {self.output_file}"]
        if silent:
            lines.append(
                f"{counted(silent, 'clip')} without sound: a WAV beside the NPZ, or shards with kept audio, have it"
            )
        if self.licensed:
            lines.append("do not publish this page: it holds the licensed body model")
        lines += notes_on(tracks)
        return tuple(lines)


def view(
    settings: ViewSettings,
    count: Callable[[float, float], None] | None = None,
    only: Collection[str] | None = None,
    scores: Sequence[ScoreTable] = (),
) -> ViewSummary:
    """Write a page that shows tracks and plays their sound; the browser needs no network.

    Args:
        settings: Tracks to show, and the file to write.
        count: Function that is called with (done, total) tracks.
        only: Names of the clips to show; None: all clips.
        scores: Tables to show above the clips.

    Returns:
        A summary of the page.

    Raises:
        UsageFault: A path contains nothing to show, or more than a page can show.
        DataError: A file is damaged.
        EnvironmentFault: The page cannot be written.
    """
    embedded = None
    if settings.body_model is not None:
        embedded = EmbeddedModel(read_body_model(settings.body_model)[0], str(settings.body_model))
    clips = clips_of(parts_of(settings, "on a page", count, only), together=settings.together)
    parts = page(clips, scores, embedded)
    publish_bytes(settings.output_file, parts)
    return ViewSummary(settings.output_file, tuple(clips), sum(map(len, parts)), embedded is not None)


def clips_of(tracks: Iterable[Track], *, together: bool = False) -> list[Clip]:
    """Group tracks into clips: all tracks of one recording form one clip.

    Args:
        tracks: Tracks of any clips, in any order.
        together: Put all tracks into one clip instead.

    Returns:
        The clips, in the order of their first tracks.
    """
    clips: dict[str, list[Track]] = {}
    for track in tracks:
        clips.setdefault("" if together else track.clip, []).append(track)
    return [Clip(name or " / ".join(dict.fromkeys(t.clip for t in own)), tuple(own)) for name, own in clips.items()]


def notes_on(tracks: Iterable[Track]) -> list[str]:
    """Return warning lines with the notes of tracks. Equal notes of several clips share one line."""
    return [
        f"warning: {line}" for line in grouped_notes((track.clip, note) for track in tracks for note in track.notes)
    ]


def parts_of(
    settings: ViewSettings | RenderSettings,
    where: str,
    count: Callable[[float, float], None] | None = None,
    only: Collection[str] | None = None,
) -> Iterator[Track]:
    """Load tracks, and cut each track to the part that the settings choose.

    Args:
        settings: Paths, samples and part to show.
        where: Words that name the output in error messages, such as "on a page".
        count: Function that is called with (done, total) tracks.
        only: Names of the clips whose tracks are loaded; None: all clips.

    Yields:
        The tracks, cut to the part to show.

    Raises:
        UsageFault: A track ends before the part begins, or all tracks together are longer than `MAX_SECONDS`.
    """
    found = find_tracks(settings.paths, settings.keys, only, settings.motion_rate_hz)
    seconds = 0.0
    for done, load in enumerate(found, 1):
        track = load()
        if not settings.start_s < track.seconds:
            raise UsageFault(
                f"--start {settings.start_s:g}: expected a time before the end of {track.clip}, {track.seconds:.1f} "
                "s; choose an earlier time"
            )
        if settings.start_s or settings.seconds is not None:
            track = track.cut(settings.start_s, settings.seconds or track.seconds)
        seconds += track.seconds
        if seconds > MAX_SECONDS:
            raise UsageFault(
                f"{track.clip}: expected at most {MAX_SECONDS / 3600:g} h of tracks {where}, found more; show fewer "
                "clips, or a part with --start and --seconds"
            )
        if count is not None:
            count(done, len(found))
        yield track


_LABELS: Final = {"lower": ("best", "worst"), "higher": ("worst", "best"), None: ("lowest", "highest")}
"""Labels of a metric's lowest and highest value. The key says which values are better; None: neither."""


def score_tables(report: Report) -> list[ScoreTable]:
    """Return the tables of a report, with clips to watch for each metric (worst, median and best).

    Args:
        report: Report of an evaluation.

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
        Stems of the recordings by label: `lowest`, "median" and `highest`. A single recording has the label "only". The
        mapping is empty if there are no values.
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
    """Write a page that shows the scores of results, and plays scored clips next to their recordings.

    Some metrics, such as the Fréchet distance, have no scores for single clips. If the report has only such metrics,
    the page shows the first clip of each task.

    Args:
        report: Report of an evaluation, with the scores of `results`.
        results: Folders of the results.
        shards: Folder of the recordings.
        output_file: HTML file to write.
        part: Which part of each clip to show: start and length.
        motion_rate_hz: Frames per second, used only for motion files that do not state their frame rate.

    Returns:
        A summary of the page.
    """
    tables = score_tables(report)
    clips = {stem for table in tables for row in table.clips for stem in row.values()}
    clips = clips or {stem_from_key(task.recordings[0]) for task in report.tasks.values()}
    paths = tuple(map(str, (*results, shards)))
    settings = ViewSettings(paths=paths, output_file=output_file, motion_rate_hz=motion_rate_hz, **part.of_part)
    with part.flags_in_errors():
        return view(settings, only=clips, scores=tables)
