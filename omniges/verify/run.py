"""Verify a shard folder: check dataset.json, the names in the folder, the manifest, the shards, and other files."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from omniges.errors import ExitCode, UsageFault
from omniges.shards import schema
from omniges.shards.dataset import PartialSpool
from omniges.shards.manifest import ManifestRow
from omniges.shards.transaction import FOREIGN, Workspace
from omniges.storage.remote import Location
from omniges.verify import side_files
from omniges.verify.dataset import Inventory, Listed, check_names, read_inventory
from omniges.verify.findings import Collector, VerifyFinding
from omniges.verify.folders import FileFault, Folder, Folders, hash_chunks
from omniges.verify.settings import Level, VerifySettings
from omniges.verify.shards import ShardJob, ShardReport, reports

_MAX_SIDE_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """Result of a verification."""

    folder: Location
    level: Level
    findings: tuple[VerifyFinding, ...]
    errors: int  # number of all errors, also of those beyond --max-findings
    notes: int
    left_out: int  # number of findings beyond --max-findings
    damaged: tuple[str, ...]  # files with an error
    files: tuple[str, ...]  # every checked file, dataset.json first
    samples: int
    read_bytes: int
    not_checked: tuple[str, ...]  # checks that the level includes, but that were impossible or disabled
    elapsed_s: float

    @property
    def valid(self) -> bool:
        """True if there is no error."""
        return self.errors == 0

    @property
    def sound(self) -> bool:
        """Former name of `valid`, with the same value."""
        return self.valid

    @property
    def exit_code(self) -> ExitCode:
        """Exit code: 0 for valid shards, 1 for invalid shards."""
        return ExitCode.OK if self.valid else ExitCode.FINDINGS


class _FailFast(Exception):
    """Exception that stops the run at the first error if --fail-fast is set."""


def verify(settings: VerifySettings, count: Callable[[int, int], None] = lambda _done, _total: None) -> VerifyResult:
    """Check a shard folder. Every fault in its content becomes a finding.

    Args:
        settings: Folder, level and limits.
        count: Function that is called with (done, total) megabytes of shards.

    Returns:
        Findings, counts and timing.

    Raises:
        UsageFault: The folder or a named shard does not exist.
        EnvironmentFault: The package for a URL is missing, or the server refuses access or does not answer.
    """
    start = time.monotonic()
    path = settings.location.path
    if path is not None and not os.path.isdir(path):
        raise UsageFault(
            f"{settings.location}: expected a folder of shards, found no folder there; give the --output-dir of "
            "omniges preprocess"
        )
    found = _Verification(settings)
    try:
        with Folders(settings.location, ahead=settings.level != "quick") as folders:
            found.run(folders, count)
    except _FailFast:
        found.not_checked.append("everything after the first error (--fail-fast)")
    ordered = sorted(found.findings, key=lambda finding: finding.sort_key)
    shown = ordered
    if len(ordered) > settings.max_findings:  # notes are left out before errors
        kept = sorted(ordered, key=lambda finding: finding.severity)[: settings.max_findings]
        shown = sorted(kept, key=lambda finding: finding.sort_key)
    errors = [finding for finding in ordered if finding.severity == "error"]
    return VerifyResult(
        folder=settings.location,
        level=settings.level,
        findings=tuple(shown),
        errors=len(errors),
        notes=len(ordered) - len(errors),
        left_out=len(ordered) - len(shown),
        damaged=tuple(sorted({finding.file for finding in errors})),
        files=tuple(found.files),
        samples=found.samples,
        read_bytes=found.read_bytes,
        not_checked=tuple(found.not_checked),
        elapsed_s=time.monotonic() - start,
    )


@dataclass(slots=True)
class _Verification:
    """One verification and its intermediate results."""

    settings: VerifySettings
    findings: list[VerifyFinding] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    samples: int = 0
    read_bytes: int = 0
    damaged: bool = False  # whether any shard has an error
    partials: PartialSpool = field(default_factory=PartialSpool)
    words: Counter[str] = field(default_factory=Counter)
    latents: dict[str, PartialSpool] = field(default_factory=lambda: defaultdict(PartialSpool))
    cuts: list[dict[str, float | int]] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=dict)  # files beside the shards, by name

    def run(self, folders: Folders, count: Callable[[int, int], None]) -> None:
        """Run all checks in order; each check uses results of earlier checks.

        Args:
            folders: Handles of the shard folder.
            count: Function that is called with (done, total) megabytes of shards.
        """
        location, level = self.settings.location, self.settings.level
        self.files.append(schema.DATASET_FILE)
        with folders.borrowed() as folder:
            inventory, findings = read_inventory(folder)
            unlisted = self._unlisted(folder, inventory)
            if inventory is None:
                self.not_checked.append("the shards: there is no dataset.json to compare them with")
                self._add([*findings, *unlisted])
                return
            self._add(findings)
            self._add(unlisted)
            chosen = self._chosen(inventory)
            for name, listed in sorted(inventory.files.items()):
                self.files.append(name)
                self._add(self._check_side_file(folder, listed))
        tokenizer = self.contents.get(schema.TOKENIZER_FILE)
        if tokenizer is not None:
            self._add(side_files.check_tokenizer_form(tokenizer))
        rows, planned = self._manifest(inventory)
        elsewhere = {} if level == "quick" else {row.key: row.shard for row in rows or ()}
        codecs = tuple(inventory.codecs.values())
        jobs = [
            ShardJob(location, shard, level, planned.get(shard.name), elsewhere, inventory.settings, codecs)
            for shard in chosen
        ]
        total, done = sum(shard.size for shard in chosen), 0
        for job, report in reports(jobs, folders, workers=self.settings.num_workers, isolate=self.settings.isolate):
            done += job.listed.size
            count(done // 1_000_000, total // 1_000_000)
            self._take(job.listed.name, report)
        if level == "deep":
            self._check_beside(inventory, chosen, rows)

    def _add(self, findings: Sequence[VerifyFinding]) -> None:
        """Add findings; raise _FailFast at the first error if --fail-fast is set."""
        self.findings += findings
        if self.settings.fail_fast and any(finding.severity == "error" for finding in findings):
            raise _FailFast

    def _take(self, name: str, report: ShardReport) -> None:
        """Add the report of one shard."""
        self.files.append(name)
        self.samples += report.samples
        self.read_bytes += report.read_bytes
        self.partials.extend(report.content.partials)
        self.words.update(report.content.words)
        for codec, partials in report.content.latents.items():
            self.latents[codec].extend((partial,) for partial in partials)
        self.cuts += report.content.cuts
        self.damaged |= any(finding.severity == "error" for finding in report.findings)
        self._add(report.findings)

    def _unlisted(self, folder: Folder, inventory: Inventory | None) -> list[VerifyFinding]:
        """Return findings about files that dataset.json does not list.

        If dataset.json is unusable (`inventory` has the value None), report only temporary files, and the file that
        marks an unfinished run.
        """
        location = self.settings.location
        try:
            names = folder.names()
        except FileFault as fault:
            return [VerifyFinding(fault.code, ".", fault.found, "a readable folder")]
        if names is None:
            self.not_checked.append(f"files that {schema.DATASET_FILE} does not list: {location} has no listing")
            return []
        if not names and location.path is None:
            raise UsageFault(f"{location}: expected a folder of shards, found nothing there; check the address")
        found = check_names(names, set() if inventory is None else {*inventory.shards, *inventory.files})
        if inventory is None:
            found = [finding for finding in found if finding.code in {"temporary-file", "unfinished-run"}]
        if location.path is None or schema.UNFINISHED_FILE not in names:
            return found
        # preprocess and encode refuse the folder of an unfinished run if it contains names that no run writes.
        try:
            problem = Workspace(location.path).problem()
        except OSError as error:
            why = error.strerror or str(error)
            return [*found, VerifyFinding("file-unreadable", schema.UNFINISHED_FILE, why, "a readable folder")]
        if problem is not None:
            place = f"{location.path / schema.UNFINISHED_FILE}"
            problem = problem.removeprefix(place).lstrip("/: ").partition(f": {FOREIGN}")[0]
            expected = "what omniges preprocess or encode leaves"
            found.append(VerifyFinding("unfinished-foreign", schema.UNFINISHED_FILE, problem, expected))
        return found

    def _chosen(self, inventory: Inventory) -> list[Listed]:
        """Return the shards that --shard and --split select, sorted by name; refuse an unknown shard name."""
        splits = self.settings.splits
        names = {name if name.endswith(".tar") else f"{name}.tar" for name in self.settings.shard_names}
        unknown = sorted(names - inventory.shards.keys())
        if unknown:
            raise UsageFault(
                f"--shard {unknown[0]}: expected a shard in "
                f"{self.settings.location.shown_file(schema.DATASET_FILE)}, found no entry of this name; check the "
                "name"
            )
        return [
            shard
            for name, shard in sorted(inventory.shards.items())
            if (not names or name in names) and (not splits or shard.split in splits)
        ]

    def _check_side_file(self, folder: Folder, listed: Listed) -> list[VerifyFinding]:
        """Check the size of a file beside the shards; at the levels full and deep, also check its checksum.

        If the file is valid and later checks need its content, store the content.
        """
        out = Collector(listed.name)
        level = self.settings.level
        wanted = {schema.MANIFEST_FILE, schema.TOKENIZER_FILE}
        if level == "deep":
            wanted |= {schema.STATS_FILE, schema.REPORT_FILE, schema.LATENTS_FILE}
        try:
            with folder.opened(listed.name) as source:
                size = source.size
                if size != listed.size:
                    out.add("file-size", f"{size} bytes", f"{listed.size}")
                elif level != "quick":
                    self.read_bytes += size
                    keep = listed.name in wanted and size <= _MAX_SIDE_BYTES
                    digest, kept = hashlib.sha256(), []
                    for _, view, _ in hash_chunks(source, 0, size):
                        digest.update(view)
                        if keep:
                            kept.append(bytes(view))
                    if digest.hexdigest() != listed.sha256:
                        out.add("file-checksum", f"sha256 {digest.hexdigest()}", listed.sha256)
                    elif keep:
                        self.contents[listed.name] = b"".join(kept)
        except FileFault as fault:
            out.add(fault.code, fault.found, fault.expected)
        return out.finish()

    def _manifest(self, inventory: Inventory) -> tuple[list[ManifestRow] | None, dict[str, list[ManifestRow]]]:
        """Return all rows of the manifest, and a dictionary with the rows of each shard, by shard name.

        Shards with an inconsistent layout are not in the dictionary. If the level is quick or the manifest is unusable,
        return None and an empty dictionary.
        """
        data = self.contents.pop(schema.MANIFEST_FILE, None)
        if self.settings.level == "quick":
            return None, {}
        if data is None:
            self.not_checked.append("the manifest: it is not what dataset.json lists")
            return None, {}
        out = Collector(schema.MANIFEST_FILE)
        rows = side_files.read_rows(data, sum(shard.samples for shard in inventory.shards.values()), out)
        self._add(out.finish())
        if rows is None:
            self.not_checked.append("the manifest: it could not be read")
            return None, {}
        planned, findings = side_files.check_rows(rows, inventory)
        self._add(findings)
        if self.settings.level == "deep":
            self._add(side_files.check_recordings(rows))
        return rows, planned

    def _check_beside(self, inventory: Inventory, chosen: Sequence[Listed], rows: list[ManifestRow] | None) -> None:
        """Compare statistics, latents.json, tokenizer and report with the samples."""
        report, latents, stats, tokenizer = map(
            self.contents.get, (schema.REPORT_FILE, schema.LATENTS_FILE, schema.STATS_FILE, schema.TOKENIZER_FILE)
        )
        if report is not None:
            self._add(side_files.check_report(report, rows or ()))
        if rows is None or self.damaged:
            self.not_checked.append("statistics and tokenizer: shards have errors")
            return
        if len(chosen) == len(inventory.shards):
            self._add(side_files.check_cut_totals(inventory.document, self.cuts))
        if not {shard for shard in inventory.shards.values() if shard.split == "train"} <= {*chosen}:
            self.not_checked.append("statistics and tokenizer: train shards were left out")
            return
        if latents is not None:
            self._add(side_files.check_latents(latents, inventory.codecs, self.latents))
        if stats is not None:
            self._add(side_files.check_statistics(stats, rows, self.partials, self.words, inventory.version))
        if tokenizer is not None:
            self._add(side_files.check_tokenizer(tokenizer, self.words, inventory.tool))
