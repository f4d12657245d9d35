"""What a run gathers while outcomes come in, and the progress and the summary made of it."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

from omniges.errors import Finding
from omniges.pipeline.discover import Discovery, Recording
from omniges.pipeline.earlier import Digests, Recalled, journal_rejection, read_report
from omniges.pipeline.outcome import Cut, Rejected
from omniges.pipeline.protocol import Sample
from omniges.pipeline.settings import PreprocessSettings, Summary
from omniges.pipeline.supervisor import Lost, Outcome, Supervisor
from omniges.progress import Progress
from omniges.shards.manifest import ManifestRow
from omniges.shards.reader import ShardFolder
from omniges.shards.schema import REPORT_FILE, SPLITS
from omniges.shards.statistics import Partial
from omniges.shards.transaction import Journal
from omniges.shards.writer import ShardFile, ShardWriter

__all__ = ["Tally", "cut_totals", "progress_of", "summarize", "summary_of_complete"]


@dataclass(slots=True)
class Tally:
    """What a run gathers while outcomes come in."""

    rows: list[ManifestRow] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    partials: list[tuple[Partial, Partial]] = field(default_factory=list)
    words: Counter[str] = field(default_factory=Counter)
    inputs: dict[str, Digests] = field(default_factory=dict)
    rejected_inputs: dict[str, Digests] = field(default_factory=dict)  # of those rejected after reading them
    notes: dict[str, tuple[Finding, ...]] = field(default_factory=dict)  # of samples, by stem
    cuts: list[Cut] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)
    rejected: int = 0
    computed: int = 0
    reused: int = 0
    computed_s: float = 0.0  # seconds of the recordings converted in this run

    @property
    def noted(self) -> int:
        """Samples with at least one note."""
        return sum(map(bool, self.notes.values()))

    def add(self, recording: Recording, outcome: Outcome, writer: ShardWriter, journal: Journal) -> None:
        """Take in what a worker made of a recording; a sample goes to its shard."""
        if isinstance(outcome, Lost):
            self.lost[recording.stem] = outcome.reason
            return
        self.computed += 1
        sources = outcome.sources if isinstance(outcome, Rejected) else outcome.row.sources
        inputs = {source.relative: sources.get(modality, ("", None))[1] for modality, source in recording.files.items()}
        if isinstance(outcome, Rejected):
            self._reject(recording, outcome, inputs)
            journal.append(journal_rejection(recording.stem, outcome.findings, inputs), durable=False)
            return
        self.notes[recording.stem] = outcome.notes  # before the writer, whose journal line may hold them
        self._take(writer.add(outcome.row, outcome.segment), outcome, inputs)
        self.computed_s += outcome.row.seconds

    def add_earlier(
        self, recording: Recording, outcome: Recalled | Rejected, inputs: Digests, writer: ShardWriter
    ) -> None:
        """Take in an outcome of an earlier run."""
        self.reused += 1
        if isinstance(outcome, Rejected):
            self._reject(recording, outcome, inputs)
            return
        self.notes[recording.stem] = outcome.notes
        self._take(writer.add_stored(outcome.row, outcome.segment), outcome, inputs)

    def _reject(self, recording: Recording, outcome: Rejected, inputs: Digests) -> None:
        self.inputs[recording.stem] = self.rejected_inputs[recording.stem] = inputs
        self.rejected += 1
        self.findings += outcome.findings

    def _take(self, row: ManifestRow, outcome: Sample | Recalled, inputs: Digests) -> None:
        self.rows.append(row)
        self.inputs[row.stem] = inputs
        self.findings += outcome.notes
        self.words += outcome.words
        self.cuts.append(outcome.cut)
        if outcome.partials:
            self.partials.append(outcome.partials)


def summary_of_complete(
    settings: PreprocessSettings, discovery: Discovery, complete: dict[str, Any], elapsed_s: float
) -> Summary:
    """The summary of a folder that needs nothing done, from what lies in it."""
    source = ShardFolder(settings.out)
    findings = read_report(settings.out, complete)
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


def progress_of(discovery: Discovery, tally: Tally, supervisor: Supervisor, elapsed_s: float, share: float) -> Progress:
    """How far a run has come; `share` is that of the work, not of the recordings."""
    slowest = supervisor.slowest()
    return Progress(
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
        slowest=slowest[0] if slowest else None,
        slowest_s=slowest[1] if slowest else 0.0,
    )


def cut_totals(cuts: list[Cut]) -> dict[str, float | int]:
    """Sums over all samples, as dataset.json has them."""
    return {
        "audio_s": round(math.fsum(cut.audio_s for cut in cuts), 6),
        "motion_s": round(math.fsum(cut.motion_s for cut in cuts), 6),
        "words_dropped": sum(cut.words_dropped for cut in cuts),
        "words_clipped": sum(cut.words_clipped for cut in cuts),
    }


def summarize(
    settings: PreprocessSettings,
    discovery: Discovery,
    tally: Tally,
    shards: list[ShardFile],
    elapsed_s: float,
    manifest: str | None,
) -> Summary:
    """What a run came to; without a manifest hash it is not complete."""
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
        out=settings.out,
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
        report=settings.out / REPORT_FILE if manifest else None,
        run_log=settings.log_path,
        manifest_hash=manifest,
    )
