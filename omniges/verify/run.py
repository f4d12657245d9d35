"""`verify`: dataset.json, the folder, the manifest, every shard in parallel, and what lies beside them."""

from __future__ import annotations

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from omniges.errors import ExitCode, UsageFault
from omniges.shards.manifest import ManifestRow
from omniges.shards.schema import (
    DATASET_FILE,
    LATENTS_FILE,
    MANIFEST_FILE,
    REPORT_FILE,
    STATS_FILE,
    TOKENIZER_FILE,
    UNFINISHED_FILE,
)
from omniges.shards.statistics import Partial
from omniges.shards.transaction import FOREIGN, Workspace
from omniges.storage.remote import Location
from omniges.verify.dataset import Inventory, Listed, check_names, read_inventory
from omniges.verify.files import FileFault, Folder, hash_chunks
from omniges.verify.findings import Collector, VerifyFinding
from omniges.verify.remote import Folders
from omniges.verify.settings import Level, VerifySettings
from omniges.verify.shard import ShardJob, ShardReport
from omniges.verify.workers import reports

_MAX_SIDE_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """What a verification came to."""

    folder: Location
    level: Level
    findings: tuple[VerifyFinding, ...]
    errors: int  # of all findings, those left out too
    notes: int
    left_out: int  # findings beyond --max-findings
    damaged: tuple[str, ...]  # files with an error, whether it is shown or left out
    files: tuple[str, ...]  # every file that was looked at, dataset.json first
    samples: int
    read_bytes: int
    not_checked: tuple[str, ...]  # what this level would have checked and could not, or was told not to
    elapsed_s: float

    @property
    def sound(self) -> bool:
        """Whether there is no error."""
        return self.errors == 0

    @property
    def exit_code(self) -> ExitCode:
        """0 for sound shards, 1 for others."""
        return ExitCode.OK if self.sound else ExitCode.FINDINGS


class _Enough(Exception):
    """An error was found and --fail-fast given."""


@dataclass(slots=True)
class _Tally:
    """What a verification gathers."""

    fail_fast: bool
    findings: list[VerifyFinding] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    samples: int = 0
    read_bytes: int = 0
    damaged: bool = False  # some shard has an error
    partials: list[tuple[Partial, Partial]] = field(default_factory=list)
    words: Counter[str] = field(default_factory=Counter)
    latents: dict[str, list[Partial]] = field(default_factory=lambda: defaultdict(list))
    cuts: list[dict[str, float | int]] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=dict)  # files beside the shards, by name

    def add(self, findings: Sequence[VerifyFinding]) -> None:
        """Take in findings; raises _Enough at the first error where that ends the run."""
        self.findings += findings
        if self.fail_fast and any(finding.severity == "error" for finding in findings):
            raise _Enough

    def take(self, name: str, report: ShardReport) -> None:
        """Take in a shard's report."""
        self.files.append(name)
        self.samples += report.samples
        self.read_bytes += report.read_bytes
        self.partials += report.content.partials
        self.words += report.content.words
        for codec, partials in report.content.latents.items():
            self.latents[codec] += partials
        self.cuts += report.content.cuts
        self.damaged |= any(finding.severity == "error" for finding in report.findings)
        self.add(report.findings)


def verify(settings: VerifySettings, count: Callable[[int, int], None] = lambda _done, _total: None) -> VerifyResult:
    """Check a shard folder; `count` is told how many MB of how many are done.

    Raises UsageFault where there is no such folder or shard, EnvironmentFault where a package for a URL is missing or
    its server refuses or is silent. All else that is wrong is a finding.
    """
    start = time.monotonic()
    path = settings.location.path
    if path is not None and not path.is_dir():
        raise UsageFault(f"{settings.location}: a folder of shards expected, found none there")
    tally = _Tally(settings.fail_fast)
    try:
        with Folders(settings.location, ahead=settings.level != "quick") as folders:
            _verify(settings, folders, tally, count)
    except _Enough:
        tally.not_checked.append("all that comes after the first error (--fail-fast)")
    ordered = sorted(tally.findings, key=lambda finding: finding.sort_key)
    shown = ordered
    if len(ordered) > settings.max_findings:  # errors before notes where some must go
        kept = sorted(ordered, key=lambda finding: finding.severity)[: settings.max_findings]
        shown = sorted(kept, key=lambda finding: finding.sort_key)
    errors = sum(finding.severity == "error" for finding in ordered)
    return VerifyResult(
        folder=settings.location,
        level=settings.level,
        findings=tuple(shown),
        errors=errors,
        notes=len(ordered) - errors,
        left_out=len(ordered) - len(shown),
        damaged=tuple(sorted({finding.file for finding in ordered if finding.severity == "error"})),
        files=tuple(tally.files),
        samples=tally.samples,
        read_bytes=tally.read_bytes,
        not_checked=tuple(tally.not_checked),
        elapsed_s=time.monotonic() - start,
    )


def _unlisted(
    settings: VerifySettings, folder: Folder, inventory: Inventory | None, tally: _Tally
) -> list[VerifyFinding]:
    """What lies in the folder and is not listed; without a list only what an unfinished run left."""
    try:
        names = folder.names()
    except FileFault as fault:
        return [VerifyFinding(fault.code, ".", fault.found, "a readable folder")]
    if names is None:
        tally.not_checked.append(f"files that {DATASET_FILE} does not list: {settings.location} has no listing")
        return []
    if not names and settings.location.path is None:
        raise UsageFault(f"{settings.location}: a folder of shards expected, found nothing there")
    found = check_names(names, set() if inventory is None else {*inventory.shards, *inventory.files})
    if inventory is None:
        found = [finding for finding in found if finding.code in {"temporary-file", "unfinished-run"}]
    return found + _foreign_work(settings.location.path, names)


def _foreign_work(path: Path | None, names: Sequence[str]) -> list[VerifyFinding]:
    """What the folder of an unfinished run holds that no run writes: preprocess and encode would refuse it."""
    if path is None or UNFINISHED_FILE not in names:
        return []
    try:
        problem = Workspace(path).problem()
    except OSError as error:
        return [VerifyFinding("file-unreadable", UNFINISHED_FILE, error.strerror or str(error), "a readable folder")]
    if problem is None:
        return []
    found = problem.removeprefix(f"{path / UNFINISHED_FILE}").lstrip("/: ").partition(f": {FOREIGN}")[0]
    return [VerifyFinding("unfinished-foreign", UNFINISHED_FILE, found, "what omniges preprocess or encode leaves")]


def _verify(settings: VerifySettings, folders: Folders, tally: _Tally, count: Callable[[int, int], None]) -> None:
    tally.files.append(DATASET_FILE)
    with folders.borrowed() as folder:
        inventory, findings = read_inventory(folder)
        unlisted = _unlisted(settings, folder, inventory, tally)
        if inventory is None:
            tally.not_checked.append("the shards: there is no dataset.json to hold them against")
            tally.add([*findings, *unlisted])
            return
        tally.add(findings)
        tally.add(unlisted)
        chosen = _chosen(settings, inventory)
        for name in sorted(inventory.files):
            tally.files.append(name)
            tally.add(_check_side_file(settings, folder, inventory.files[name], tally))
    tokenizer = tally.contents.get(TOKENIZER_FILE)
    if tokenizer is not None:
        from omniges.verify import side_files  # noqa: PLC0415 - tokenizers, not at level quick

        tally.add(side_files.check_tokenizer_form(tokenizer))
    rows, planned = _manifest(settings, inventory, tally)
    elsewhere = {row.key: row.shard for row in rows or ()}
    jobs = [
        ShardJob(
            settings.location,
            shard,
            settings.level,
            planned.get(shard.name),
            {} if settings.level == "quick" else elsewhere,
            inventory.settings,
            tuple(inventory.codecs.values()),
        )
        for shard in chosen
    ]
    total, done = sum(shard.size for shard in chosen), 0
    for job, report in reports(jobs, folders, workers=settings.workers, isolate=settings.isolate):
        done += job.listed.size
        count(done // 1_000_000, total // 1_000_000)
        tally.take(job.listed.name, report)
    if settings.level == "deep":
        _check_beside(inventory, chosen, rows, tally)


def _chosen(settings: VerifySettings, inventory: Inventory) -> list[Listed]:
    """The shards that were asked for, by name."""
    names = {name if name.endswith(".tar") else f"{name}.tar" for name in settings.shards}
    unknown = sorted(names - inventory.shards.keys())
    if unknown:
        raise UsageFault(f"--shard {unknown[0]}: not in {settings.location.shown_file(DATASET_FILE)}")
    return [
        shard
        for name, shard in sorted(inventory.shards.items())
        if (not names or name in names) and (not settings.splits or shard.split in settings.splits)
    ]


def _check_side_file(settings: VerifySettings, folder: Folder, listed: Listed, tally: _Tally) -> list[VerifyFinding]:
    """Size, and above level quick the checksum; content that later checks need is kept if it is what it should be."""
    out = Collector(listed.name)
    deep = {STATS_FILE, REPORT_FILE, LATENTS_FILE} if settings.level == "deep" else set()
    wanted = {MANIFEST_FILE, TOKENIZER_FILE, *deep}
    try:
        with folder.opened(listed.name) as source:
            size = source.size
            if size != listed.size:
                out.add("file-size", f"{size} bytes", f"{listed.size}")
            elif settings.level != "quick":
                tally.read_bytes += size
                digest, kept = hashlib.sha256(), []
                for _, view, _ in hash_chunks(source, 0, size):
                    digest.update(view)
                    if listed.name in wanted and size <= _MAX_SIDE_BYTES:
                        kept.append(bytes(view))
                if digest.hexdigest() != listed.sha256:
                    out.add("file-checksum", f"sha256 {digest.hexdigest()}", listed.sha256)
                elif listed.name in wanted and size <= _MAX_SIDE_BYTES:
                    tally.contents[listed.name] = b"".join(kept)
    except FileFault as fault:
        out.add(fault.code, fault.found, fault.expected)
    return out.finish()


def _manifest(
    settings: VerifySettings, inventory: Inventory, tally: _Tally
) -> tuple[list[ManifestRow] | None, dict[str, list[ManifestRow]]]:
    """The manifest's rows and those of each shard whose layout they can prove; nothing at level quick."""
    data = tally.contents.pop(MANIFEST_FILE, None)
    if settings.level == "quick":
        return None, {}
    if data is None:
        tally.not_checked.append("what the manifest says: it is not what dataset.json lists")
        return None, {}
    from omniges.verify import manifest as checks  # noqa: PLC0415 - pyarrow, 0.3 s that level quick does not pay

    out = Collector(MANIFEST_FILE)
    rows = checks.read_rows(data, sum(shard.samples for shard in inventory.shards.values()), out)
    tally.add(out.finish())
    if rows is None:
        tally.not_checked.append("what the manifest says: it could not be read")
        return None, {}
    planned, findings = checks.check_rows(rows, inventory)
    tally.add(findings)
    if settings.level == "deep":
        tally.add(checks.check_recordings(rows))
    return rows, planned


def _check_beside(
    inventory: Inventory, chosen: Sequence[Listed], rows: list[ManifestRow] | None, tally: _Tally
) -> None:
    """Statistics, tokenizer and report against the samples."""
    from omniges.verify import side_files  # noqa: PLC0415 - tokenizers, only here

    report = tally.contents.get(REPORT_FILE)
    if report is not None:
        tally.add(side_files.check_report(report, rows or ()))
    if rows is not None and not tally.damaged and len(chosen) == len(inventory.shards):
        tally.add(side_files.check_cut_totals(inventory.document, tally.cuts))
    train = {name for name, shard in inventory.shards.items() if shard.split == "train"}
    if rows is None or tally.damaged or not train <= {shard.name for shard in chosen}:
        reason = "shards have errors" if tally.damaged or rows is None else "train shards were left out"
        tally.not_checked.append(f"statistics and tokenizer: {reason}")
        return
    latents = tally.contents.get(LATENTS_FILE)
    if latents is not None:
        tally.add(side_files.check_latents(latents, inventory.codecs, tally.latents))
    stats, tokenizer = tally.contents.get(STATS_FILE), tally.contents.get(TOKENIZER_FILE)
    if stats is not None:
        tally.add(side_files.check_statistics(stats, rows, tally.partials, tally.words))
    if tokenizer is not None:
        tally.add(side_files.check_tokenizer(tokenizer, tally.words, inventory.tool))
