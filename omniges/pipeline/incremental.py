"""What earlier runs left that still holds: samples and rejections of recordings whose every input is the same.

They come from the complete set in the output folder and from the journal of an unfinished run. A recording is taken
over only if its files have the content they had (by sha256), and discovery says the same about it; all else is
computed again. A shard is read once from end to end: its digest proves the samples, and what the end of the run needs
of them (statistics, words, cuts) is computed from the arrays by the functions that computed it the first time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np

from omniges.errors import Finding
from omniges.pipeline.discover import Recording
from omniges.pipeline.settings import Cut, Rejected
from omniges.shards.manifest import ManifestRow, MemberPlace, row_from_json
from omniges.shards.reader import ShardFolder, read_beside
from omniges.shards.schema import REPORT_FILE
from omniges.shards.statistics import Partial, partial_of
from omniges.shards.tar import BLOCK_BYTES
from omniges.shards.transaction import Workspace
from omniges.shards.writer import StoredSegment, StoredShard

Digests = dict[str, str | None]  # path relative to the root -> sha256, None where the file cannot be read

# Notes that discovery gives, alone or among others. One of them on an earlier sample that discovery does not give now
# means that the sample would come out differently.
_DISCOVERY_NOTES: Final = {"split-inferred", "speaker-folder-mismatch", "stem-outside-grammar", "sem-invalid"}


@dataclass(frozen=True, slots=True)
class _Sample:
    """A sample of an earlier run: its row with offsets from its segment's start, its notes, and where it lies."""

    row: ManifestRow
    notes: tuple[Finding, ...]
    segment: StoredSegment


@dataclass(frozen=True, slots=True)
class _Rejection:
    """A rejection of an earlier run, and the digests of the inputs it came from."""

    findings: tuple[Finding, ...]
    inputs: Digests


@dataclass(frozen=True, slots=True)
class Recalled:
    """A sample taken over, with what a run gathers of each."""

    row: ManifestRow
    segment: StoredSegment
    notes: tuple[Finding, ...]
    partials: tuple[Partial, Partial] | None
    words: Counter[str]
    cut: Cut


@dataclass(slots=True)
class Earlier:
    """All that earlier runs know, by stem; the likeliest to be used comes first."""

    samples: dict[str, list[_Sample]] = field(default_factory=lambda: defaultdict(list))
    rejections: dict[str, list[_Rejection]] = field(default_factory=lambda: defaultdict(list))
    complete: set[str] = field(default_factory=set)  # stems of the complete set's samples

    @property
    def stems(self) -> set[str]:
        """Every stem with an outcome."""
        return self.samples.keys() | self.rejections.keys()


def known_outcomes(workspace: Workspace, complete: dict[str, Any] | None) -> Earlier:
    """What the unfinished run's journal and the complete set hold.

    Raises DataError where the complete set's manifest or report is damaged.
    """
    earlier = Earlier()
    # The latest shard of the journal first: an interrupted update goes on with its own files before older ones.
    for entry in reversed(workspace.journal.load()):
        if "staged" in entry:
            shard = StoredShard(workspace.folder / entry["staged"], entry["bytes"], entry["sha256"])
            notes = {stem: _findings(found) for stem, found in entry["notes"].items()}
            _add_samples(earlier, shard, [row_from_json(row) for row in entry["rows"]], notes)
        else:
            rejection = _Rejection(_findings(entry["findings"]), entry["inputs"])
            earlier.rejections[entry["rejected"]].append(rejection)
    if complete is not None:
        _add_complete(earlier, workspace.out, complete)
    return earlier


def _add_complete(earlier: Earlier, out: Path, complete: dict[str, Any]) -> None:
    findings: dict[str, list[Finding]] = defaultdict(list)
    for finding in read_report(out, complete):
        if finding.stem is not None:
            findings[finding.stem].append(finding)
    by_shard: dict[str, list[ManifestRow]] = defaultdict(list)
    for row in ShardFolder(out).rows:
        earlier.complete.add(row.stem)
        by_shard[row.shard].append(row)
    for name, facts in complete["shards"].items():
        shard = StoredShard(out / name, facts["bytes"], facts["sha256"])
        _add_samples(earlier, shard, by_shard[name], {row.stem: tuple(findings[row.stem]) for row in by_shard[name]})
    for stem, inputs in complete["plan"]["rejected_inputs"].items():
        earlier.rejections[stem].append(_Rejection(tuple(findings[stem]), inputs))


def read_report(out: Path, complete: dict[str, Any]) -> list[Finding]:
    """The findings of a complete set; raises DataError if the report is not the one it was made with."""
    data = read_beside(out, REPORT_FILE, complete)
    return [Finding.from_json(json.loads(line)) for line in data.split(b"\n") if line]


def _findings(rows: Iterable[dict[str, Any]]) -> tuple[Finding, ...]:
    return tuple(Finding.from_json(row) for row in rows)


def _add_samples(
    earlier: Earlier, shard: StoredShard, rows: Sequence[ManifestRow], notes: Mapping[str, tuple[Finding, ...]]
) -> None:
    """File a shard's samples: segments follow one another without a gap, each ends where its last member does."""
    start = 0
    for row in sorted(rows, key=lambda row: row.members["json"].offset):
        last = max(row.members.values(), key=lambda place: place.offset)
        end = last.offset + -(-last.size // BLOCK_BYTES) * BLOCK_BYTES
        members = {
            name: MemberPlace(place.offset - start, place.size, place.sha256) for name, place in row.members.items()
        }
        segment = StoredSegment(shard, start, end - start)
        sample = _Sample(replace(row, shard="", members=members), notes.get(row.stem, ()), segment)
        earlier.samples[row.stem].append(sample)
        start = end


def journal_shard(
    path: Path, size: int, sha256: str, rows: Sequence[ManifestRow], notes: dict[str, Any]
) -> dict[str, Any]:
    """The journal's line for a finished shard; `notes` are the findings of its samples by stem, as JSON."""
    return {"staged": path.name, "bytes": size, "sha256": sha256, "rows": [asdict(row) for row in rows], "notes": notes}


def journal_rejection(stem: str, findings: Sequence[Finding], inputs: Digests) -> dict[str, Any]:
    """The journal's line for a recording that was rejected."""
    return {"rejected": stem, "findings": [finding.as_json() for finding in findings], "inputs": dict(inputs)}


def recall(
    earlier: Earlier,
    recordings: Sequence[Recording],
    digests: Mapping[str, Digests],
    workers: int,
    count: Callable[[int, int], None],
) -> dict[str, Recalled | Rejected]:
    """The outcomes of recordings whose inputs are the same, by stem, their shards checked; `count` hears of MB read.

    Where a shard is damaged or gone, its samples are left out, to be computed again.
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
            for rejection in earlier.rejections.get(recording.stem, ()):
                if rejection.inputs == digests[recording.stem]:
                    outcomes[recording.stem] = Rejected(rejection.findings, {})
                    break
        _read_shards(chosen, workers, outcomes, damaged, count)
        # What a damaged shard did not give may lie in another one too.
        retry = {sample.row.stem for shard in chosen.keys() & damaged for sample in chosen[shard]}
        remaining = [recording for recording in remaining if recording.stem in retry]
    return outcomes


def _sample_of(
    earlier: Earlier, recording: Recording, digests: Mapping[str, Digests], damaged: set[StoredShard]
) -> _Sample | None:
    """The first earlier sample that a computation over today's inputs would give again."""
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


def _read_shards(
    chosen: Mapping[StoredShard, Sequence[_Sample]],
    workers: int,
    outcomes: dict[str, Recalled | Rejected],
    damaged: set[StoredShard],
    count: Callable[[int, int], None],
) -> None:
    total, done = sum(shard.size for shard in chosen), 0
    with ThreadPoolExecutor(workers) as pool:
        for shard, samples in zip(chosen, pool.map(_read_shard, chosen, chosen.values()), strict=True):
            done += shard.size
            count(done // 1_000_000, total // 1_000_000)
            if samples is None:
                damaged.add(shard)
            else:
                outcomes |= samples


def _read_shard(shard: StoredShard, samples: Sequence[_Sample]) -> dict[str, Recalled] | None:
    """The samples of a file, or None if it is not, byte for byte, what it was when it was written."""
    try:
        with shard.path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != shard.sha256:
                return None
            return {sample.row.stem: _gathered(sample, stream.fileno()) for sample in samples}
    except OSError:
        return None  # gone or unreadable: its samples are computed again


def _gathered(sample: _Sample, descriptor: int) -> Recalled:
    """What the end of a run needs of a sample, from its members."""

    def member(name: str) -> bytes:
        place = sample.row.members[name]
        return os.pread(descriptor, place.size, sample.segment.offset + place.offset)

    def statistics(name: str) -> Partial:
        return partial_of(np.load(BytesIO(member(name)), allow_pickle=False))

    train = sample.row.split == "train"
    words = Counter(word["word"] for word in json.loads(member("words.json"))) if train else Counter()
    return Recalled(
        row=sample.row,
        segment=sample.segment,
        notes=sample.notes,
        partials=(statistics("gesture.npy"), statistics("mel.npy")) if train else None,
        words=words,
        cut=Cut(**json.loads(member("json"))["cut"]),
    )
