"""Collected results of a preprocess run, its progress, and its summary as tables and as JSON."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from omniges.errors import CODES, DataError, ExitCode, Finding
from omniges.pipeline.discover import Discovery, Recording
from omniges.pipeline.incremental import Digests, Recalled, journal_rejection, read_report
from omniges.pipeline.settings import Cut, PreprocessSettings, Rejected, Sample, Summary
from omniges.pipeline.worker import Outcome
from omniges.progress import Progress, counted, duration, printable
from omniges.shards.dataset import PartialSpool
from omniges.shards.manifest import ManifestRow
from omniges.shards.reader import ShardFolder
from omniges.shards.schema import REPORT_FILE, SPLITS
from omniges.shards.transaction import OutputPlace, RunJournal
from omniges.shards.writer import ShardFile, ShardWriter, StoredSegment
from omniges.workers import Lost, Pool

_SHOWN_LOST: Final = 10


def duration_text(seconds: float) -> str:
    """Return a number of seconds as text, such as ``1 h 02 min``, ``3 min 20 s`` or ``4.2 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def size_text(count: float) -> str:
    """Return a number of bytes as text, such as ``4.9 MB`` (in powers of 1000)."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def print_table(
    console: Console, columns: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[int] = ()
) -> None:
    """Print a table without borders.

    Args:
        console: Console to print on.
        columns: Column titles.
        rows: Cells of each row.
        right: Indices of columns to align right.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    console.print(table)


def print_line(console: Console, text: str) -> None:
    """Print one line of text; markup and emoji names are printed unchanged, control characters are escaped.

    Args:
        console: Console to print on.
        text: Any text; line breaks in it are escaped.
    """
    console.print(printable(text), markup=False, emoji=False)


def print_summary(summary: Summary, console: Console) -> None:
    """Print the numbers of converted, rejected and lost recordings, with reasons and remedies.

    Args:
        summary: Result of the run.
        console: Console to print on.
    """
    splits = [(split, samples, duration_text(seconds)) for split, (samples, seconds) in summary.splits.items()]
    print_table(console, ("split", "samples", "length"), splits, (1, 2))
    counts = summary.finding_counts
    for severity in ("rejected", "note"):
        codes = sorted(counts, key=lambda code: (-counts[code], code))
        rows = [(c, counts[c], summary.examples[c], CODES[c].remedy) for c in codes if CODES[c].severity == severity]
        if rows:
            console.print()
            print_table(console, (severity, "count", "example", "what to do"), rows, (1,))
    for text in summary.interruptions[:_SHOWN_LOST]:
        print_line(console, text)
    if len(summary.interruptions) > _SHOWN_LOST:
        print_line(console, f"{len(summary.interruptions) - _SHOWN_LOST} more like these, all in {summary.run_log}")
    for stem, reason in list(summary.lost.items())[:_SHOWN_LOST]:
        console.print()
        print_line(console, f"lost: {stem}: tried twice ({reason})")
    speed = f", {summary.computed_s / summary.elapsed_s:,.0f} × real time"
    if summary.reused:
        speed = f" ({summary.reused} reused unchanged)"  # a speed would be misleading if results were reused
    done = (
        f"nothing to do: inputs and settings are those of the {summary.converted} recordings in {summary.out}"
        if summary.unchanged
        else f"{summary.converted} of {summary.stems} recordings converted ({duration_text(summary.converted_s)}) in "
        f"{duration_text(summary.elapsed_s)}{speed}: "
        f"{counted(summary.shards, 'shard')}, {size_text(summary.shard_bytes)} in {summary.out}"
    )
    console.print()
    print_line(console, done)
    print_line(
        console,
        f"cut to common lengths: {summary.cut_audio_s:.1f} s of audio, {summary.cut_motion_s:.1f} s of motion, "
        f"{summary.words_dropped} words",
    )
    if summary.report:
        print_line(console, f"every finding: {summary.report}; times and retries: {summary.run_log}")
    print_line(console, _verdict(summary))


def _verdict(summary: Summary) -> str:
    if summary.lost:
        return (
            f"not complete: {counted(len(summary.lost), 'recording')} lost to workers that crashed or reached "
            f"the --deadline (all in {summary.run_log}); run the same command to retry"
        )
    share = f"{summary.rejected} of {summary.stems} recordings rejected ({summary.rejected_share:.1%})"
    if summary.exit_code is not ExitCode.OK:
        return f"shards complete, but {share}, more than --max-rejected {summary.max_rejected:g}: exit code 1"
    return f"complete: {share}"


def summary_json(summary: Summary) -> str:
    """Return the summary as one line of JSON, ``{"event": "summary", …}``."""
    row: dict[str, Any] = asdict(summary)
    row |= {"event": "summary", "exit_code": int(summary.exit_code), "rejected_share": summary.rejected_share}
    row["splits"] = {name: {"samples": n, "seconds": s} for name, (n, s) in summary.splits.items()}
    return json.dumps(row, default=str, sort_keys=True)


@dataclass(slots=True)
class Tally:
    """Collected results of a run; `rejected`, `computed` and `reused` are numbers of recordings."""

    rows: list[ManifestRow] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    partials: PartialSpool = field(default_factory=PartialSpool)  # partial statistics of train samples
    words: Counter[str] = field(default_factory=Counter)
    inputs: dict[str, Digests] = field(default_factory=dict)
    rejected_inputs: dict[str, Digests] = field(default_factory=dict)  # by stem; only for recordings that were read
    notes: dict[str, tuple[Finding, ...]] = field(default_factory=dict)  # notes about samples, by stem
    cuts: list[Cut] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)  # stem -> reason
    interruptions: list[str] = field(default_factory=list)  # a text for each lost worker or machine
    rejected: int = 0
    computed: int = 0
    reused: int = 0
    computed_s: float = 0.0  # seconds of the recordings converted in this run

    @property
    def noted(self) -> int:
        """Number of samples with at least one note."""
        return sum(map(bool, self.notes.values()))

    def add(
        self,
        recording: Recording,
        outcome: Outcome | Recalled,
        writer: ShardWriter,
        journal: RunJournal,
        inputs: Digests | None = None,
    ) -> None:
        """Add the result of one recording, and pass its sample to the shard writer.

        Args:
            recording: Recording to which the result belongs.
            outcome: Result of a worker or of an earlier run: a sample, a rejection, or, for a lost recording, how its
                workers ended.
            writer: Writer of the shards.
            journal: Journal of the run. If this run rejected the recording, the rejection is added to the journal.
            inputs: For a result of an earlier run, the sha256 of each input file by path. None for a result of this
                run, because `outcome` then contains these digests.

        Raises:
            DataError: The label names of the sample differ from those of earlier samples.
        """
        if isinstance(outcome, Lost):
            self.lost[recording.stem] = outcome.reason
            return
        earlier = inputs is not None
        self.reused += earlier
        self.computed += not earlier
        if inputs is None:
            read = outcome.sources if isinstance(outcome, Rejected) else outcome.row.sources
            inputs = {file.relative: read.get(modality, ("", None))[1] for modality, file in recording.files.items()}
        self.inputs[recording.stem] = inputs
        if isinstance(outcome, Rejected):
            self.rejected_inputs[recording.stem] = inputs
            self.rejected += 1
            self.findings += outcome.findings
            if not earlier:
                journal.append(journal_rejection(recording.stem, outcome.findings, inputs), durable=False)
            return
        if self.rows and outcome.row.labels.keys() != self.rows[0].labels.keys():
            found, first = (", ".join(sorted(row.labels)) or "none" for row in (outcome.row, self.rows[0]))
            raise DataError(
                f"{recording.stem}: expected labels {first} as for {self.rows[0].stem}, found {found}; a corpus "
                'gives all its recordings the same label names, with "" for unknown ones'
            )
        self.take_in(outcome)  # before the write, which may add the notes to the journal line of a shard
        if isinstance(outcome.segment, StoredSegment):
            self.rows.append(writer.add_stored(outcome.row, outcome.segment))
        else:
            self.rows.append(writer.add(outcome.row, outcome.segment))
            self.computed_s += outcome.row.seconds

    def take_in(self, sample: Sample[Any]) -> None:
        """Add the notes, cuts, statistics and words of a sample, but not its manifest row.

        A cut is what the sample lost when its streams were cut to one length. The caller must add the manifest row.
        """
        self.notes[sample.row.stem] = sample.notes
        self.findings += sample.notes
        self.cuts.append(sample.cut)
        self.take_statistics(sample)

    def take_statistics(self, sample: Sample[Any]) -> None:
        """Add the channel statistics and words of a sample of the train split; add nothing for another split."""
        self.words.update(sample.words)
        if sample.partials:
            self.partials.append(sample.partials)


def summary_of_complete(
    settings: PreprocessSettings, place: OutputPlace, discovery: Discovery, complete: dict[str, Any], elapsed_s: float
) -> Summary:
    """Return the summary of a run that changed nothing, because the set in the folder was already up to date.

    Args:
        settings: Settings of the run.
        place: Output folder.
        discovery: Recordings and findings of this run.
        complete: Content of dataset.json in the folder.
        elapsed_s: Seconds since the run started.

    Returns:
        Numbers, findings and cuts of the complete set, with ``unchanged`` True.
    """
    source = ShardFolder(place.out)
    findings = read_report(place.out, complete)
    notes: dict[str | None, list[Finding]] = defaultdict(list)
    for finding in findings:
        notes[finding.stem].append(finding)
    cut = complete["totals"]["cut"]
    tally = Tally(
        rows=list(source.rows),
        findings=findings,
        rejected=complete["plan"]["rejected"],
        notes={row.stem: tuple(notes[row.stem]) for row in source.rows},
        cuts=[Cut(cut["audio_s"], cut["motion_s"], cut["words_dropped"], cut["words_clipped"])],
    )
    shards = [ShardFile(n, f["split"], f["samples"], f["bytes"], f["sha256"]) for n, f in complete["shards"].items()]
    made = summarize(settings, discovery, tally, shards, elapsed_s, complete["manifest_hash"])
    return replace(made, unchanged=True)


@dataclass(frozen=True, slots=True)
class ConvertProgress(Progress):
    """Progress of a preprocess run: numbers of processed recordings, speed, and estimated time left."""

    done: int  # number of processed recordings, including rejected recordings
    total: int
    converted: int
    rejected: int
    noted: int  # number of converted recordings with at least one note
    lost: int
    reused: int  # number of results that are reused from earlier runs
    computed_s: float  # seconds of the recordings converted in this run
    elapsed_s: float
    eta_s: float | None
    slowest: str | None
    slowest_s: float

    @classmethod
    def of(
        cls, discovery: Discovery, tally: Tally, pool: Pool[Recording, Any], elapsed_s: float, share: float
    ) -> ConvertProgress:
        """Return the progress of a run.

        Args:
            discovery: Recordings that the run found.
            tally: Results collected until now.
            pool: Pool of workers; states which unfinished recording has been in conversion longest.
            elapsed_s: Seconds since conversion started.
            share: Completed fraction of the work, 0 to 1, measured in input bytes; used to estimate the time left.

        Returns:
            The progress at this moment.
        """
        slowest = pool.slowest()
        return cls(
            done=len(tally.rows) + tally.rejected + len(tally.lost),
            total=discovery.stems,
            converted=len(tally.rows),
            rejected=tally.rejected,
            noted=tally.noted,
            lost=len(tally.lost),
            reused=tally.reused,
            computed_s=tally.computed_s,
            elapsed_s=elapsed_s,
            eta_s=elapsed_s * (1 - share) / share if share else None,
            slowest=slowest[0].stem if slowest else None,
            slowest_s=slowest[1] if slowest else 0.0,
        )

    @property
    def line(self) -> str:
        """Progress as one line of text."""
        slow = f", slowest now {self.slowest} ({self.slowest_s:.1f} s)" if self.slowest and self.slowest_s > 1 else ""
        lost = f", {self.lost} lost" if self.lost else ""
        reused = f" ({self.reused} reused)" if self.reused else ""
        return (
            f"{self.done}/{self.total} recordings: {self.converted} converted{reused}, {self.rejected} rejected, "
            f"{self.noted} with notes{lost}; "
            f"{self.real_time_factor:,.0f} × real time, {duration(self.eta_s)} left{slow}"
        )

    @property
    def share(self) -> float:
        """Fraction of the recordings that are processed, 0 to 1."""
        return self.done / max(self.total, 1)

    @property
    def final(self) -> bool:
        """True if all recordings are processed."""
        return self.done >= self.total

    @property
    def real_time_factor(self) -> float:
        """Seconds of recordings converted in this run, divided by the elapsed seconds; 0 if no time has passed."""
        return self.computed_s / self.elapsed_s if self.elapsed_s > 0 else 0.0

    def as_json(self) -> dict[str, Any]:
        """Return all fields and the real-time factor as a JSON object."""
        return asdict(self) | {"real_time_factor": self.real_time_factor}


def cut_totals(cuts: list[Cut]) -> dict[str, float | int]:
    """Return the totals of what was cut from samples: seconds of audio and motion, and numbers of words.

    The keys are those of ``totals.cut`` in dataset.json.
    """
    return {
        "audio_s": round(math.fsum(cut.audio_s for cut in cuts), 6),
        "motion_s": round(math.fsum(cut.motion_s for cut in cuts), 6),
        "words_dropped": sum(cut.words_dropped for cut in cuts),
        "words_clipped": sum(cut.words_clipped for cut in cuts),
    }


def _report_of(settings: PreprocessSettings) -> str | Path:
    location = settings.location
    return location.shown_file(REPORT_FILE) if location.path is None else location.path / REPORT_FILE


def summarize(
    settings: PreprocessSettings,
    discovery: Discovery,
    tally: Tally,
    shards: list[ShardFile],
    elapsed_s: float,
    manifest: str | None,
) -> Summary:
    """Return the summary of a run: counts and durations of recordings, shards, findings and cuts.

    Args:
        settings: Settings of the run.
        discovery: Recordings that the run found.
        tally: Collected results of all recordings.
        shards: Finished shards.
        elapsed_s: Seconds since the run started.
        manifest: Manifest hash; None if the set is not complete.

    Returns:
        The summary, with the paths of the report and of the log.
    """
    examples: dict[str, str] = {}
    for finding in tally.findings:
        place = finding.stem or finding.file or "data set"
        examples.setdefault(finding.problem.code, f"{place}: {finding.problem.found}")
    splits: dict[str, tuple[int, float]] = {}
    for split in SPLITS:
        own = [row.seconds for row in tally.rows if row.split == split]
        splits[split] = (len(own), sum(own))
    cut = cut_totals(tally.cuts)
    return Summary(
        out=settings.output_dir,
        stems=discovery.stems,
        converted=len(tally.rows),
        rejected=tally.rejected,
        noted=tally.noted,
        lost=tally.lost,
        finding_counts=dict(Counter(finding.problem.code for finding in tally.findings)),
        examples=examples,
        splits=splits,
        cut_audio_s=cut["audio_s"],
        cut_motion_s=cut["motion_s"],
        words_dropped=int(cut["words_dropped"]),
        shards=len(shards),
        shard_bytes=sum(shard.size for shard in shards),
        elapsed_s=elapsed_s,
        converted_s=math.fsum(row.seconds for row in tally.rows),
        computed_s=tally.computed_s,
        reused=tally.reused,
        max_rejected=settings.max_rejected,
        report=_report_of(settings) if manifest else None,
        run_log=settings.log_path,
        manifest_hash=manifest,
        interruptions=tuple(tally.interruptions),
    )
