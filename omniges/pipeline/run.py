"""`preprocess`: discover, convert on workers, pack shards in order, write what lies beside them, dataset.json last."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import platform
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from omniges.errors import DataError, EnvironmentFault, ExitCode, Finding, Problem, UsageFault
from omniges.pipeline.discover import Discovery, Recording, Selection, discover
from omniges.pipeline.outcome import MAX_FILE_BYTES, ConvertSettings, Cut, Rejected
from omniges.pipeline.progress import Progress, Reporter
from omniges.pipeline.protocol import Sample
from omniges.pipeline.supervisor import Lost, Outcome, Supervisor, WorkerEvent
from omniges.publish import is_temporary_name, make_folder, os_errors, publish_bytes, sync_folder
from omniges.shards.dataset import dataset_document, read_dataset, seal, statistics_document
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

__all__ = ["PreprocessSettings", "Summary", "preprocess"]

_OWN_NAMES: Final = re.compile(
    rf"(?:{'|'.join(SPLITS)})-\d{{6}}\.tar|"
    + "|".join(map(re.escape, (MANIFEST_FILE, STATS_FILE, TOKENIZER_FILE, REPORT_FILE)))
)
# Output bytes a byte of motion input: 415 + 213 float32 a frame against BEAT2's 165 float32 and 103 float64.
_GROWTH: Final = 1.75


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessSettings:
    """All that `omniges preprocess` can be told; what decides output bytes is hashed into dataset.json."""

    root: Path
    out: Path
    selection: Selection = field(default_factory=Selection)
    convert: ConvertSettings = field(default_factory=ConvertSettings)
    shard_bytes: int = 256 << 20
    split_csv: Path | None = None
    allow_roots: tuple[Path, ...] = ()
    workers: int = 1
    deadline_s: float = 120.0
    max_rejected: float = 0.05
    force: bool = False
    run_log: Path | None = None

    def __post_init__(self) -> None:
        """Refuse values that cannot work, by the name of the flag."""
        if self.workers < 1:
            raise UsageFault(f"--workers {self.workers}: at least 1 expected")
        if self.shard_bytes < 1:
            raise UsageFault(f"--shard-size {self.shard_bytes}: at least 1 byte expected")
        if not 0 <= self.max_rejected <= 1:
            raise UsageFault(f"--max-rejected {self.max_rejected}: a share between 0 and 1 expected")
        if not 0 < self.deadline_s < math.inf:
            raise UsageFault(f"--deadline {self.deadline_s}: more than 0 seconds expected")
        if not 0 <= self.convert.max_length_mismatch_s < math.inf:
            raise UsageFault(f"--max-length-mismatch {self.convert.max_length_mismatch_s}: at least 0 seconds expected")
        if not self.out.absolute().name:
            raise UsageFault(f"--out {self.out}: a folder with a name expected")

    @property
    def log_path(self) -> Path:
        """The run log, beside the output folder unless named."""
        out = self.out if self.out.name else self.out.absolute()
        return self.run_log or out.with_name(out.name + ".run.jsonl")

    def document(self) -> dict[str, Any]:
        """The settings that decide output bytes."""
        return {
            "selection": asdict(self.selection),
            "convert": asdict(self.convert),
            "shard_bytes": self.shard_bytes,
            "split_source": "--split-csv" if self.split_csv else "data set",
            "allow_roots": [str(folder) for folder in self.allow_roots],
        }


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run came to."""

    out: Path
    stems: int
    converted: int
    rejected: int
    noted: int
    lost: dict[str, str]  # stem -> reason
    finding_counts: dict[str, int]  # code -> recordings or data-set findings
    examples: dict[str, str]  # code -> one finding in words
    splits: dict[str, tuple[int, float]]  # split -> samples, seconds
    cut_audio_s: float
    cut_motion_s: float
    words_dropped: int
    shards: int
    shard_bytes: int
    elapsed_s: float
    converted_s: float
    max_rejected: float
    report: Path | None
    run_log: Path
    manifest_hash: str | None
    unchanged: bool = False  # nothing was done: the folder was complete and the inputs are the same

    @property
    def rejected_share(self) -> float:
        """Rejected stems as a share of all discovered ones."""
        return self.rejected / self.stems if self.stems else 0.0

    @property
    def exit_code(self) -> ExitCode:
        """1 when a recording was lost or too many were rejected, else 0."""
        failed = bool(self.lost) or self.rejected_share > self.max_rejected
        return ExitCode.FINDINGS if failed else ExitCode.OK


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
    complete = _check_output(settings)
    make_folder(settings.out)
    with _locked(settings.out), _RunLog(settings.log_path) as log:
        if complete and not settings.force and _is_unchanged(settings, discovery, complete):
            _unmark(settings.out)
            log.write("unchanged", stems=discovery.stems)
            return _summary_of_complete(settings, discovery, complete, time.monotonic() - start)
        _check_space(settings, discovery)
        log.write("start", stems=discovery.stems, workers=settings.workers, out=str(settings.out))
        publish_bytes(settings.out / UNFINISHED_FILE, b"")
        _clear(settings.out)
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


def _check_output(settings: PreprocessSettings) -> dict[str, Any] | None:
    """The dataset.json of a complete folder with these settings, or None where the run begins anew.

    Raises UsageFault for a folder made with other settings, naming what differs, and for files that bear our names
    but are not ours, for those are never touched.
    """
    out = settings.out
    if not (out / DATASET_FILE).exists():
        names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
        ours = [name for name in names if _OWN_NAMES.fullmatch(name)]
        if ours and UNFINISHED_FILE not in names:
            raise UsageFault(f"{out}: {ours[0]} is there, but not from an omniges run. Choose another --out")
        return None
    try:
        found = read_dataset(out)
    except DataError as error:
        if settings.force:
            return None
        raise UsageFault(f"{error} (--force starts anew)") from error
    differences = _differences(found["settings"], json.loads(canonical_json(settings.document())))
    if differences and not settings.force:
        raise UsageFault(
            f"{out} was made with other settings: {'; '.join(differences)}. "
            "Choose another --out, or start anew with --force"
        )
    return None if differences else found


def _is_unchanged(settings: PreprocessSettings, discovery: Discovery, complete: dict[str, Any]) -> bool:
    """Whether all files are there at their size and every input has the content it had, by hash, not by date."""
    for name, facts in (complete["files"] | complete["shards"]).items():
        path = settings.out / name
        if not path.is_file() or path.stat().st_size != facts["bytes"]:
            return False
    with ThreadPoolExecutor(settings.workers) as pool:
        digests = pool.map(_input_digests, discovery.recordings)
        inputs = {recording.stem: found for recording, found in zip(discovery.recordings, digests, strict=True)}
    return bool(complete["plan"]["inputs_sha256"] == _inputs_hash(inputs, discovery))


def _input_digests(recording: Recording) -> dict[str, str | None]:
    """Sha256 of each file of a recording, None where it cannot be read: what a run over it would note."""
    found: dict[str, str | None] = {}
    for source in recording.files.values():
        try:
            with Path(source.path).open("rb") as stream:
                found[source.relative] = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError:
            found[source.relative] = None
        if source.size > MAX_FILE_BYTES:
            found[source.relative] = None
    return found


def _inputs_hash(inputs: dict[str, dict[str, str | None]], discovery: Discovery) -> str:
    everything = {
        "recordings": inputs | {stem: {} for stem in discovery.rejected},
        "split_lists": dict(discovery.split_lists),
    }
    return sha256_hex(canonical_json(everything))


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


def _unmark(out: Path) -> None:
    """Take the marker of an unfinished run away."""
    with os_errors(out):
        (out / UNFINISHED_FILE).unlink(missing_ok=True)
        sync_folder(out)


def _differences(found: Any, wanted: Any, name: str = "") -> list[str]:
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted(found.keys() | wanted.keys())
        return [
            line
            for key in keys
            for line in _differences(found.get(key), wanted.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if found == wanted else [f"{name} was {json.dumps(found)}, is now {json.dumps(wanted)}"]


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep a second run out of the folder; the kernel lets go when the owner dies, so no lock is ever stale."""
    with os_errors(out, "open"):
        descriptor = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EnvironmentFault(f"{out}: another omniges run is writing here. Wait for it, or stop it") from error
        yield
    finally:
        os.close(descriptor)


class _RunLog:
    """JSON lines about a run that must not be part of its output: times, retries, worker deaths."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def __enter__(self) -> _RunLog:
        with os_errors(self._path):
            self._stream = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def write(self, event: str, **facts: Any) -> None:
        stamp = {"event": event, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "pid": os.getpid()}
        with self._lock:
            self._stream.write(json.dumps(stamp | {"host": platform.node()} | facts) + "\n")
            self._stream.flush()

    def death(self, event: WorkerEvent) -> None:
        self.write("worker-death", **asdict(event))


def _check_space(settings: PreprocessSettings, discovery: Discovery) -> None:
    """Refuse before any work where the disk is plainly too small."""
    motion = sum(recording.files["npz"].size for recording in discovery.recordings)
    audio = sum(recording.files["wav"].size for recording in discovery.recordings)
    needed = int(motion * _GROWTH + (audio if settings.convert.keep_audio else 0))
    present = sum(path.stat().st_size for path in settings.out.iterdir() if _OWN_NAMES.fullmatch(path.name))
    free = shutil.disk_usage(settings.out).free + present
    if free < 0.8 * needed:  # compressed inputs make the estimate too high
        raise EnvironmentFault(
            f"{settings.out}: about {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free. "
            "Free some space or choose another --out"
        )


def _clear(out: Path) -> None:
    """Take away what an earlier run left: dataset.json first, then shards and temporary files; nothing foreign."""
    with os_errors(out):
        (out / DATASET_FILE).unlink(missing_ok=True)
        sync_folder(out)
        for path in sorted(out.iterdir()):
            if _OWN_NAMES.fullmatch(path.name) or is_temporary_name(path.name):
                path.unlink()


def _convert_all(
    settings: PreprocessSettings, discovery: Discovery, reporter: Reporter, log: _RunLog, start: float
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
        "inputs_sha256": _inputs_hash(tally.inputs, discovery),
        "stems": discovery.stems,
        "rejected": tally.rejected,
    }
    dataset = dataset_document(tally.rows, shards, files, document, plan)
    dataset["totals"]["cut"] = _cut_totals(tally.cuts)
    publish_bytes(settings.out / DATASET_FILE, seal(dataset))
    _unmark(settings.out)
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
