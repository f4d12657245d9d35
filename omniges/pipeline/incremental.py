"""Reuse of earlier results in the output folder: checks that a run may continue, and recovery of valid samples.

Earlier results come from the complete set in the folder, and from the journal of an unfinished run. The journal lists
the shards that the run has finished and the recordings that it has rejected. A result is reused only if the recording's
files have the same sha256, and if discovery finds the same split and notes for the recording. All other recordings are
converted again. Each shard is read once, completely; its sha256 shows that the samples are unchanged. Statistics, words
and cuts are recomputed from the arrays with the same functions as in the first run.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from omniges.errors import DataError, Finding, UsageFault, first_of, raise_fault_of_machine
from omniges.options import every_setting
from omniges.pipeline.discover import Discovery, Recording
from omniges.pipeline.settings import MAX_FILE_BYTES, Cut, PreprocessSettings, Rejected, Sample
from omniges.shards.dataset import STATISTICS, Partial, partial_of
from omniges.shards.document import field_faults, read_dataset
from omniges.shards.latents import array_specs
from omniges.shards.manifest import ManifestRow, MemberPlace, row_from_json
from omniges.shards.reader import ShardFolder, read_beside
from omniges.shards.schema import (
    CONTRACT,
    DATASET_FILE,
    FORMAT_VERSION,
    REPORT_FILE,
    VERIFY,
    is_real,
    metadata_of,
    words_of,
)
from omniges.shards.tar import BLOCK_BYTES, read_npy
from omniges.shards.transaction import OutputPlace, UnfinishedRun, are_findings
from omniges.shards.writer import StoredSegment, StoredShard
from omniges.storage.files import canonical_json, file_sha256, parse_json, read_range, sha256_hex
from omniges.storage.redact import one_line

Count = Callable[[int, int], None]
Digests = dict[str, str | None]  # path relative to the root -> sha256, None if the file cannot be read

_MAX_REMOVED: Final = 0.1  # largest share of samples that an update may drop without --allow-removal

# Codes of notes that discovery adds. If an earlier sample has such a note and discovery does not add it now,
# a conversion would give a different sample.
_DISCOVERY_NOTES: Final = {"split-inferred", "speaker-folder-mismatch", "stem-outside-grammar", "sem-invalid"}

Recalled = Sample[StoredSegment]
"""A reused sample, with its statistics, words and cuts."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """A sample of an earlier run, with its notes and its position in a shard.

    Offsets of members in `row` count from the first byte of the sample, not of the shard.
    """

    row: ManifestRow
    notes: tuple[Finding, ...]
    segment: StoredSegment


@dataclass(slots=True)
class Earlier:
    """All results of earlier runs by stem; for each stem, the most recent result comes first."""

    samples: dict[str, list[_Sample]] = field(default_factory=lambda: defaultdict(list))
    rejections: dict[str, list[tuple[Rejected, Digests]]] = field(default_factory=lambda: defaultdict(list))
    complete: set[str] = field(default_factory=set)  # stems of the samples in the complete set

    @property
    def stems(self) -> set[str]:
        """All stems that have a result."""
        return self.samples.keys() | self.rejections.keys()

    def add_rejection(self, stem: str, findings: Iterable[Finding], inputs: Digests) -> None:
        """Add the rejection of a recording.

        Args:
            stem: Stem of the recording.
            findings: Reasons for the rejection.
            inputs: Digests of the recording's files.
        """
        self.rejections[stem].append((Rejected(tuple(findings), {}), inputs))

    def add_samples(
        self, shard: StoredShard, rows: Sequence[ManifestRow], notes: Mapping[str, Sequence[Finding]]
    ) -> None:
        """Add the samples of a shard.

        The position of a sample is computed from its members: it begins where the previous sample in the shard ends.

        Args:
            shard: Shard file.
            rows: Rows of all samples of the shard, in any order.
            notes: Notes about the samples, by stem.
        """
        start = 0
        for row in sorted(rows, key=lambda row: row.members["json"].offset):
            last = max(row.members.values(), key=lambda place: place.offset)
            end = last.offset + -(-last.size // BLOCK_BYTES) * BLOCK_BYTES
            members = {
                name: MemberPlace(place.offset - start, place.size, place.sha256) for name, place in row.members.items()
            }
            segment = StoredSegment(shard, start, end - start)
            sample = _Sample(replace(row, shard="", members=members), tuple(notes.get(row.stem, ())), segment)
            self.samples[row.stem].append(sample)
            start = end


def known_outcomes(place: OutputPlace, complete: dict[str, Any] | None) -> Earlier:
    """Return the results in the unfinished run's journal and in the complete set.

    Args:
        place: Output folder.
        complete: Content of the complete set's dataset.json; None: use only the journal.

    Returns:
        Results by stem.

    Raises:
        DataError: The complete set's manifest or report is damaged.
    """
    earlier = Earlier()
    # The latest shard of the journal comes first, so that an interrupted update uses its own files before older files.
    for entry in reversed(place.journal.load()):
        if "staged" in entry:
            shard = StoredShard(place.folder / entry["staged"], entry["bytes"], entry["sha256"])
            noted = {stem: [*map(Finding.from_json, found)] for stem, found in entry.get("notes", {}).items()}
            earlier.add_samples(shard, [row_from_json(row) for row in entry["rows"]], noted)
        else:
            earlier.add_rejection(entry["rejected"], map(Finding.from_json, entry["findings"]), entry["inputs"])
    if complete is None:
        return earlier
    findings: dict[str | None, list[Finding]] = defaultdict(list)
    for finding in read_report(place.out, complete):
        findings[finding.stem].append(finding)
    by_shard: dict[str, list[ManifestRow]] = defaultdict(list)
    for row in ShardFolder(place.out).rows:
        earlier.complete.add(row.stem)
        by_shard[row.shard].append(row)
    for name, facts in complete["shards"].items():
        shard = StoredShard(place.out / name, facts["bytes"], facts["sha256"])
        earlier.add_samples(shard, by_shard[name], {row.stem: findings[row.stem] for row in by_shard[name]})
    for stem, inputs in complete["plan"]["rejected_inputs"].items():
        earlier.add_rejection(stem, findings[stem], inputs)
    return earlier


def read_report(out: Path, complete: dict[str, Any]) -> list[Finding]:
    """Return the findings in the report of a complete set.

    Args:
        out: Folder of the set.
        complete: Content of the set's dataset.json.

    Returns:
        The findings, in the report's order.

    Raises:
        DataError: The file report.jsonl differs from the entry in dataset.json, or has lines that are not findings.
    """
    data = read_beside(out, REPORT_FILE, complete)
    try:
        rows = [parse_json(line) for line in data.split(b"\n") if line]
    except ValueError as error:
        reason = one_line(str(error), 200)
        raise DataError(f"{out / REPORT_FILE}: expected JSON lines, found another line ({reason}); {VERIFY}") from error
    if not are_findings(rows):
        raise DataError(f"{out / REPORT_FILE}: expected findings, found lines of another form; {VERIFY}")
    return [*map(Finding.from_json, rows)]


def read_complete(settings: PreprocessSettings, place: OutputPlace) -> dict[str, Any] | None:
    """Return the dataset.json of a complete set with these settings.

    Args:
        settings: Settings of this run.
        place: Output folder.

    Returns:
        The document; None if there is no complete set, or --force is set.

    Raises:
        UsageFault: dataset.json is damaged, or has other settings or another contract version; the message names the
            differences.
    """
    out = settings.output_dir
    if not (place.out / DATASET_FILE).exists() or settings.force:
        return None
    try:
        found = read_dataset(place.out)
    except DataError as error:
        raise UsageFault(f"{error}, or start over with --force") from error
    if found["version"] != FORMAT_VERSION:
        raise UsageFault(
            f"{out}: expected shard contract version {FORMAT_VERSION}, found version {found['version']}, which "
            "is read but never updated; write to another --output-dir, or replace this one with --force"
        )
    now = UnfinishedRun.of(settings.document(), anew=False)
    _refuse_differences(out, found["settings"], now.settings)
    if absent := [fault.field for fault in field_faults(found)]:
        raise UsageFault(
            f"{out}: {DATASET_FILE}: expected {absent[0]} of an earlier run, found none, so the file was edited; "
            "choose another --output-dir, or start over with --force"
        )
    return found


def check_begun(settings: PreprocessSettings, place: OutputPlace) -> None:
    """Check that this run can continue an unfinished run; if it cannot and --force is set, remove the unfinished work.

    Work without a record of its settings is always removed.

    Args:
        settings: Settings of this run.
        place: Output folder.

    Raises:
        UsageFault: The unfinished run used other settings or package versions, and --force is not set.
    """
    begun, wanted = place.begun(), UnfinishedRun.of(settings.document(), anew=settings.force)
    if begun is None or (settings.force and begun != wanted):
        place.wipe()
        return
    _refuse_differences(place.unfinished, begun.settings, wanted.settings)
    _refuse_differences(place.unfinished, begun.tool, wanted.tool, "package versions")


def check_update(settings: PreprocessSettings, place: OutputPlace, complete: dict[str, Any]) -> None:
    """Refuse to update a set that contains latents, or a set that other package versions wrote.

    An update drops latents, because it writes only the arrays of recordings.

    Args:
        settings: Settings of this run.
        place: Output folder.
        complete: Content of the set's dataset.json.

    Raises:
        UsageFault: The set contains latents, or was made with other package versions.
    """
    if names := list(ShardFolder(place.out).codecs):
        raise UsageFault(
            f"{settings.output_dir}: expected shards without latents, because an update drops them, found latents "
            f"of {', '.join(names)}; write to another --output-dir and run omniges encode on that, or start over "
            "with --force and encode again"
        )
    now = UnfinishedRun.of(settings.document(), anew=False)
    _refuse_differences(settings.output_dir, complete["tool"], now.tool, "package versions")


def _refuse_differences(where: object, found: Any, wanted: Any, noun: str = "settings") -> None:
    if differences := _differences(found, wanted):
        told = "; ".join(f"{name} was {json.dumps(was)}, is now {json.dumps(now)}" for name, was, now in differences)
        flags = _flags({name.rpartition(".")[2]: was for name, was, _ in differences}) if noun == "settings" else ""
        choices = f"run again with the earlier settings ({flags}), choose" if flags else "choose"
        raise UsageFault(
            f"{where}: expected the {noun} of this run, found other {noun} ({told}); {choices} another --output-dir, "
            "or start over with --force"
        )


def _differences(found: Any, wanted: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Compare two JSON values; return the differences as (dotted name, value in `found`, value in `wanted`)."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return [
            difference
            for key in sorted(found.keys() | wanted.keys())
            for difference in _differences(found.get(key), wanted.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if found == wanted else [(name, found, wanted)]


def _flags(values: Mapping[str, Any]) -> str:
    """Return the command-line flags that set the given values; "" if a value cannot be set by a flag."""
    known = {setting.name: setting for setting in every_setting(PreprocessSettings)}
    flags = []
    for name, value in values.items():
        setting = known.get(name)
        if setting is None or setting.many or not (is_real(value) or value in setting.choices):
            return ""
        flags.append(f"{setting.flag} {value:g}" if isinstance(value, float) else f"{setting.flag} {value}")
    return " ".join(flags)


def check_removal(settings: PreprocessSettings, earlier: Set[str], remaining: Set[str]) -> None:
    """Refuse an update that would drop too many of the existing samples.

    Args:
        settings: Settings of this run.
        earlier: Stems of the existing samples.
        remaining: Stems that this run found.

    Raises:
        UsageFault: More than 10 % of the samples would be dropped, and --allow-removal is not set.
    """
    gone = sorted(earlier - remaining)
    if len(gone) > _MAX_REMOVED * len(earlier) and not settings.allow_removal:
        raise UsageFault(
            f"{settings.output_dir}: expected at most {_MAX_REMOVED:.0%} of the samples to be removed, found "
            f"{len(gone)} of {len(earlier)} ({first_of(gone, 3)}); check --root and its files, or add "
            "--allow-removal if this is intended"
        )


def is_unchanged(
    place: OutputPlace, discovery: Discovery, complete: dict[str, Any], digests: dict[str, Digests]
) -> bool:
    """Return whether all output files exist with the sizes in dataset.json, and no input has changed.

    Inputs are compared by hash, not by date.

    Args:
        place: Output folder.
        discovery: Recordings and findings of this run.
        complete: Content of the set's dataset.json.
        digests: For each stem in the set, the digests of its input files.

    Returns:
        True if the run has nothing to do.
    """
    if any(recording.stem not in digests for recording in discovery.recordings):
        return False
    sizes = place.sizes()
    if any(sizes.get(name) != facts["bytes"] for name, facts in (complete["files"] | complete["shards"]).items()):
        return False
    return bool(complete["plan"]["inputs_sha256"] == inputs_hash(digests, discovery))


def digest_inputs(recordings: Sequence[Recording], workers: int, count: Count) -> dict[str, Digests]:
    """Return the sha256 of every file of the given recordings.

    Args:
        recordings: Recordings to read.
        workers: Number of threads.
        count: Function that is called with (done, total) in megabytes.

    Returns:
        For each stem, the digests by relative path; None for a file that cannot be read.
    """

    def digests(recording: Recording) -> Digests:
        """Return the sha256 of each file of a recording by relative path; None for a file that cannot be read."""
        found: Digests = {}
        for source in recording.files.values():
            path = Path(source.path)
            try:
                found[source.relative] = file_sha256(path, follow=False) if source.size <= MAX_FILE_BYTES else None
            except OSError as error:
                raise_fault_of_machine(error)
                found[source.relative] = None
        return found

    total, done, found = sum(recording.size for recording in recordings), 0, {}
    with ThreadPoolExecutor(workers) as pool:
        for recording, own in zip(recordings, pool.map(digests, recordings), strict=True):
            found[recording.stem] = own
            done += recording.size
            count(done // 1_000_000, total // 1_000_000)
    return found


def inputs_hash(inputs: dict[str, Digests], discovery: Discovery) -> str:
    """Return one sha256 of all inputs: the digests of all files by stem, and the split lists.

    Args:
        inputs: For each stem, the digests by relative path.
        discovery: Recordings and split lists.

    Returns:
        64 hexadecimal digits.
    """
    recordings = inputs | {stem: {} for stem in discovery.rejected}
    return sha256_hex(canonical_json({"recordings": recordings, "split_lists": dict(discovery.split_lists)}))


def journal_shard(
    path: Path, size: int, sha256: str, rows: Sequence[ManifestRow], notes: dict[str, Any]
) -> dict[str, Any]:
    """Return the journal's line for a finished shard.

    Args:
        path: Shard file.
        size: Size of the shard in bytes.
        sha256: sha256 of the shard in hexadecimal.
        rows: Rows of the shard's samples.
        notes: Notes about the samples by stem, as JSON.

    Returns:
        The line as a JSON object.
    """
    return {"staged": path.name, "bytes": size, "sha256": sha256, "rows": [asdict(row) for row in rows], "notes": notes}


def journal_rejection(stem: str, findings: Sequence[Finding], inputs: Digests) -> dict[str, Any]:
    """Return the journal's line for a rejected recording.

    Args:
        stem: Stem of the recording.
        findings: Reasons for the rejection.
        inputs: Digests of the recording's files.

    Returns:
        The line as a JSON object.
    """
    return {"rejected": stem, "findings": [finding.as_json() for finding in findings], "inputs": dict(inputs)}


def recall(
    earlier: Earlier,
    recordings: Sequence[Recording],
    digests: Mapping[str, Digests],
    opened: Callable[[StoredShard], AbstractContextManager[int]],
    workers: int,
    count: Count,
    take_statistics: Callable[[Recalled], object],
) -> dict[str, Recalled | Rejected]:
    """Check the shards of earlier runs, and return the earlier results of recordings whose inputs are unchanged.

    Samples of a damaged or absent shard are left out, so that they are converted again. The returned samples contain
    neither `partials` nor `words`, because these fields take far more memory than the others.

    Args:
        earlier: Results of earlier runs.
        recordings: Recordings of this run.
        digests: Digests of the recordings' files, by stem.
        opened: Function that opens a shard of an earlier run; its context manager returns the file descriptor.
        workers: Number of threads.
        count: Function that is called with (done, total) in megabytes.
        take_statistics: Function that is called with each sample before its `partials` and `words` are removed.

    Returns:
        Results by stem.
    """
    outcomes: dict[str, Recalled | Rejected] = {}
    damaged: set[StoredShard] = set()
    remaining = list(recordings)
    while remaining:
        chosen: dict[StoredShard, list[_Sample]] = defaultdict(list)
        for recording in remaining:
            sample = _sample_of(earlier, recording, digests, damaged)
            if sample is not None:
                chosen[sample.segment.shard].append(sample)
                continue
            for rejected, inputs in earlier.rejections.get(recording.stem, ()):
                if inputs == digests[recording.stem]:
                    outcomes[recording.stem] = rejected
                    break
        total, done = sum(shard.size for shard in chosen), 0
        with ThreadPoolExecutor(workers) as pool:
            for shard, samples in zip(
                chosen, pool.map(partial(_read_shard, opened), chosen, chosen.values()), strict=True
            ):
                done += shard.size
                count(done // 1_000_000, total // 1_000_000)
                if samples is None:
                    damaged.add(shard)
                    continue
                for stem, recalled in samples.items():
                    take_statistics(recalled)
                    outcomes[stem] = replace(recalled, partials=None, words=Counter())
        # A sample of a damaged shard may also be in another, valid shard.
        retry = {sample.row.stem for shard in chosen.keys() & damaged for sample in chosen[shard]}
        remaining = [recording for recording in remaining if recording.stem in retry]
    return outcomes


def _sample_of(
    earlier: Earlier, recording: Recording, digests: Mapping[str, Digests], damaged: set[StoredShard]
) -> _Sample | None:
    """Return the first earlier sample that a conversion of the current inputs would reproduce, or None."""
    now = {
        modality: (source.relative, digests[recording.stem].get(source.relative))
        for modality, source in recording.files.items()
    }
    for sample in earlier.samples.get(recording.stem, ()):
        rest = list(sample.notes)
        expected = all(note in rest for note in recording.notes)
        for note in recording.notes:
            if note in rest:
                rest.remove(note)
        others = {note.problem.code for note in rest} & _DISCOVERY_NOTES
        same = sample.row.split == recording.split and sample.row.sources == now
        if same and expected and not others and sample.segment.shard not in damaged:
            return sample
    return None


def _read_shard(
    opened: Callable[[StoredShard], AbstractContextManager[int]], shard: StoredShard, samples: Sequence[_Sample]
) -> dict[str, Recalled] | None:
    """Return the samples of a shard file, or None if the file is absent or its bytes have changed."""
    try:
        with opened(shard) as descriptor, open(descriptor, "rb", closefd=False) as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != shard.sha256:
                return None
            return {sample.row.stem: _recomputed(sample, descriptor) for sample in samples}
    except (DataError, OSError, ValueError, TypeError, LookupError, RecursionError):
        return None  # absent, unreadable or invalid: its samples are converted again


def _recomputed(sample: _Sample, descriptor: int) -> Recalled:
    """Read the members of a sample, and return the sample with its statistics, words and cuts."""

    def member(name: str) -> bytes:
        place = sample.row.members[name]
        return read_range(descriptor, sample.segment.offset + place.offset, place.size)

    specs = array_specs(sample.row, None, ())

    def statistics(name: str) -> Partial:
        array, (kinds, shape) = read_npy(member(name)), specs[name]
        if array.dtype.str not in kinds or array.shape != shape:
            raise ValueError(f"expected {shape}, found {array.shape} of {array.dtype}")
        return partial_of(array)

    train = sample.row.split == "train"
    partials = tuple(map(statistics, STATISTICS.values())) if train else None
    words = Counter(word["word"] for word in words_of(member(CONTRACT.words))) if train else Counter()
    cut = Cut(**metadata_of(member("json"))["cut"])
    if not all(map(is_real, asdict(cut).values())):
        raise ValueError(f"expected numbers, found {cut}")
    return Sample(sample.row, sample.segment, sample.notes, partials, words, cut)
