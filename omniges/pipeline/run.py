"""`preprocess`: discover, convert on workers, pack shards in order, write what lies beside them, dataset.json last."""

from __future__ import annotations

import json
import math
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from omniges.errors import Finding, Problem
from omniges.pipeline.discover import Discovery, Recording, discover
from omniges.pipeline.outcome import Cut, Rejected
from omniges.pipeline.output import check_output, check_space, clear, inputs_hash, is_unchanged, locked, unmark
from omniges.pipeline.progress import Progress, Reporter
from omniges.pipeline.protocol import Sample
from omniges.pipeline.runlog import RunLog
from omniges.pipeline.settings import PreprocessSettings, Summary
from omniges.pipeline.supervisor import Lost, Outcome, Supervisor
from omniges.publish import make_folder, publish_bytes
from omniges.shards.dataset import dataset_document, seal, statistics_document
from omniges.shards.manifest import ManifestRow, MemberPlace, serialize_manifest
from omniges.shards.reader import ShardFolder
from omniges.shards.schema import (
    DATASET_FILE,
    MANIFEST_FILE,
    REPORT_FILE,
    SPLITS,
    STATS_FILE,
    TOKENIZER_FILE,
    UNFINISHED_FILE,
    canonical_json,
    json_document,
    sha256_hex,
)
from omniges.shards.statistics import Partial
from omniges.shards.tokenizer import train_tokenizer
from omniges.shards.writer import ShardFile, ShardWriter

__all__ = ["preprocess"]


@dataclass(slots=True)
class _Tally:
    """What a run gathers while outcomes come in."""

    rows: list[ManifestRow] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    partials: list[tuple[Partial, Partial]] = field(default_factory=list)
    words: Counter[str] = field(default_factory=Counter)
    inputs: dict[str, dict[str, str | None]] = field(default_factory=dict)  # path -> sha256, None if never read
    cuts: list[Cut] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)
    rejected: int = 0
    noted: int = 0
    converted_s: float = 0.0

    def add(self, recording: Recording, outcome: Outcome, writer: ShardWriter) -> None:
        """Take in one outcome; a sample goes to its shard."""
        if isinstance(outcome, Lost):
            self.lost[recording.stem] = outcome.reason
            return
        sources = outcome.sources if isinstance(outcome, Rejected) else outcome.row.sources
        self.inputs[recording.stem] = {
            source.relative: sources.get(modality, ("", None))[1] for modality, source in recording.files.items()
        }
        if isinstance(outcome, Rejected):
            self.rejected += 1
            self.findings += outcome.findings
            return
        shard, offset = writer.add(recording.split, recording.key, outcome.segment)
        self.rows.append(_placed(outcome, shard, offset))
        self.findings += outcome.notes
        self.noted += bool(outcome.notes)
        self.converted_s += outcome.row.seconds
        self.words += outcome.words
        self.cuts.append(outcome.cut)
        if outcome.partials:
            self.partials.append(outcome.partials)


def _placed(sample: Sample, shard: str, offset: int) -> ManifestRow:
    members = {
        member: MemberPlace(place.offset + offset, place.size, place.sha256)
        for member, place in sample.row.members.items()
    }
    return replace(sample.row, shard=shard, members=members)


def preprocess(settings: PreprocessSettings, reporter: Reporter) -> Summary:
    """Convert a data set to shards; returns what came of it.

    Raises UsageFault, DataError or EnvironmentFault where the run cannot begin or go on; what was published stays.
    """
    start = time.monotonic()
    _warm_imports()
    discovery = discover(
        settings.root, settings.selection, split_csv=settings.split_csv, allow_roots=settings.allow_roots
    )
    complete = check_output(settings)
    make_folder(settings.out)
    with locked(settings.out), RunLog(settings.log_path) as log:
        if complete and not settings.force and is_unchanged(settings, discovery, complete):
            unmark(settings.out)
            log.write("unchanged", stems=discovery.stems)
            return _summary_of_complete(settings, discovery, complete, time.monotonic() - start)
        check_space(settings, discovery)
        log.write("start", stems=discovery.stems, workers=settings.workers, out=str(settings.out))
        publish_bytes(settings.out / UNFINISHED_FILE, b"")
        clear(settings.out)
        tally, shards = _convert_all(settings, discovery, reporter, log, start)
        manifest = None if tally.lost else _finish(settings, discovery, tally, shards)
        summary = _summarize(settings, discovery, tally, shards, time.monotonic() - start, manifest)
        log.write("end", elapsed_s=summary.elapsed_s, converted=summary.converted, lost=summary.lost)
    return summary


def _warm_imports() -> None:
    """Load what the end of the run needs while the workers start; they are native and cost half a second."""

    def load() -> None:
        import pyarrow.parquet  # noqa: F401, PLC0415
        import tokenizers  # noqa: F401, PLC0415

    threading.Thread(target=load, name="warm-imports", daemon=True).start()


def _summary_of_complete(
    settings: PreprocessSettings, discovery: Discovery, complete: dict[str, Any], elapsed_s: float
) -> Summary:
    """The summary of a folder that needs nothing done, from what lies in it."""
    source = ShardFolder(settings.out)
    lines = (settings.out / REPORT_FILE).read_text("utf-8").split("\n")  # not splitlines: text may hold U+2028
    findings = [Finding.from_json(json.loads(line)) for line in lines if line]
    cut = complete["totals"]["cut"]
    tally = _Tally(
        rows=list(source.rows),
        findings=findings,
        rejected=complete["plan"]["rejected"],
        noted=sum(bool(row.notes) for row in source.rows),
        converted_s=complete["totals"]["seconds"],
        cuts=[Cut(cut["audio_s"], cut["motion_s"], cut["words_dropped"], cut["words_clipped"])],
    )
    shards = [ShardFile(n, f["split"], f["samples"], f["bytes"], f["sha256"]) for n, f in complete["shards"].items()]
    made = _summarize(settings, discovery, tally, shards, elapsed_s, complete["manifest_hash"])
    return replace(made, unchanged=True)


def _convert_all(
    settings: PreprocessSettings, discovery: Discovery, reporter: Reporter, log: RunLog, start: float
) -> tuple[_Tally, list[ShardFile]]:
    tally = _Tally(findings=list(discovery.findings))
    for findings in discovery.rejected.values():
        tally.findings += findings
    tally.rejected = len(discovery.rejected)
    order = {split: place for place, split in enumerate(SPLITS)}
    recordings = sorted(discovery.recordings, key=lambda recording: (order[recording.split], recording.key))
    supervisor = Supervisor(settings.convert, settings.workers, settings.deadline_s, log.death)
    total_bytes = sum(recording.size for recording in recordings)
    done_bytes = 0
    outcomes = supervisor.run(recordings)
    with reporter, ShardWriter(settings.out, settings.shard_bytes) as writer:
        try:
            for recording, outcome in outcomes:
                tally.add(recording, outcome, writer)
                done_bytes += recording.size
                share = done_bytes / total_bytes if total_bytes else 1.0
                reporter.update(_progress(discovery, tally, supervisor, time.monotonic() - start, share))
        finally:
            outcomes.close()
    return tally, writer.shards


def _progress(discovery: Discovery, tally: _Tally, supervisor: Supervisor, elapsed_s: float, share: float) -> Progress:
    slowest = supervisor.slowest()
    return Progress(
        done=len(tally.rows) + tally.rejected + len(tally.lost),
        total=discovery.stems,
        converted=len(tally.rows),
        rejected=tally.rejected,
        noted=tally.noted,
        lost=len(tally.lost),
        converted_s=tally.converted_s,
        elapsed_s=elapsed_s,
        eta_s=elapsed_s * (1 - share) / share if share else None,
        slowest=slowest[0] if slowest else None,
        slowest_s=slowest[1] if slowest else 0.0,
    )


def _finish(settings: PreprocessSettings, discovery: Discovery, tally: _Tally, shards: list[ShardFile]) -> str:
    """Write what lies beside the shards, dataset.json last; returns the manifest hash."""
    if not tally.partials:
        tally.findings.append(Finding(Problem("no-train-samples", "0 samples in train", "at least 1")))
    tally.findings.sort(key=lambda finding: finding.sort_key)
    contents = {
        MANIFEST_FILE: serialize_manifest(tally.rows),
        STATS_FILE: json_document(statistics_document(tally.rows, tally.partials, tally.words)),
        TOKENIZER_FILE: train_tokenizer(tally.words),
        REPORT_FILE: b"".join(canonical_json(finding.as_json()) + b"\n" for finding in tally.findings),
    }
    files = {name: (len(data), publish_bytes(settings.out / name, data)) for name, data in contents.items()}
    document = settings.document()
    plan = {
        "settings_sha256": sha256_hex(canonical_json(document)),
        "inputs_sha256": inputs_hash(tally.inputs, discovery),
        "stems": discovery.stems,
        "rejected": tally.rejected,
    }
    dataset = dataset_document(tally.rows, shards, files, document, plan, _cut_totals(tally.cuts))
    publish_bytes(settings.out / DATASET_FILE, seal(dataset))
    unmark(settings.out)
    return str(dataset["manifest_hash"])


def _cut_totals(cuts: list[Cut]) -> dict[str, float | int]:
    return {
        "audio_s": round(math.fsum(cut.audio_s for cut in cuts), 6),
        "motion_s": round(math.fsum(cut.motion_s for cut in cuts), 6),
        "words_dropped": sum(cut.words_dropped for cut in cuts),
        "words_clipped": sum(cut.words_clipped for cut in cuts),
    }


def _summarize(
    settings: PreprocessSettings,
    discovery: Discovery,
    tally: _Tally,
    shards: list[ShardFile],
    elapsed_s: float,
    manifest: str | None,
) -> Summary:
    examples: dict[str, str] = {}
    for finding in tally.findings:
        place = finding.stem or finding.file or "data set"
        examples.setdefault(finding.problem.code, f"{place}: {finding.problem.found}")
    splits: dict[str, tuple[int, float]] = {}
    for split in SPLITS:
        own = [row.seconds for row in tally.rows if row.split == split]
        splits[split] = (len(own), sum(own))
    cut = _cut_totals(tally.cuts)
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
        converted_s=tally.converted_s,
        max_rejected=settings.max_rejected,
        report=settings.out / REPORT_FILE if manifest else None,
        run_log=settings.log_path,
        manifest_hash=manifest,
    )
