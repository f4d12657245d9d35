"""`write_shards`: write a complete shard folder from recordings that a user's program passes.

Each recording is checked and converted when it arrives, with the functions of `preprocess`. Its sample is stored in a
temporary spool file in the output folder. After the last recording, the samples are packed in the order of split and
key. So the bytes do not depend on the order of the recordings.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

from omniges import arguments
from omniges.errors import DataError, Finding, Problem, RecordingFault, UsageFault
from omniges.features.audio import Loudness
from omniges.pipeline.convert import assemble
from omniges.pipeline.recording import Recording, digests_of, refused, take_of
from omniges.pipeline.settings import ConvertSettings, Sample
from omniges.pipeline.summary import Tally, cut_totals
from omniges.shards.dataset import PartialSpool, dataset_document, seal, statistics_document, train_tokenizer
from omniges.shards.document import read_dataset
from omniges.shards.manifest import ManifestRow, MemberPlace, identities, serialize_manifest
from omniges.shards.schema import DATASET_FILE, MANIFEST_FILE, REPORT_FILE, SPLITS, STATS_FILE, TOKENIZER_FILE
from omniges.shards.tar import BLOCK_BYTES, Segment, build_segment
from omniges.shards.transaction import (
    COMMIT_FILE,
    PLACE_FILE,
    SPOOL_FILE,
    OutputPlace,
    UnfinishedRun,
    Workspace,
    staged_name,
)
from omniges.shards.writer import ShardWriter
from omniges.storage.atomic import locked, new_folder, os_errors, publish_bytes
from omniges.storage.files import canonical_json, json_document, sha256_hex

__all__ = ["Recording", "WriteSummary", "write_shards"]

_WRITTEN_BY: Final = "write_shards"

Count = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class WriteSummary:
    """Result of `write_shards`: numbers of samples, notes and shards, and the manifest hash."""

    out: Path
    samples: int
    seconds: float
    splits: dict[str, tuple[int, float]]
    """Number of samples and seconds by split."""
    notes: dict[str, int]
    """Number of notes in report.jsonl, by code."""
    shards: int
    shard_bytes: int
    manifest_hash: str
    elapsed_s: float


def write_shards(  # noqa: PLR0913 - keyword-only except two: user settings
    recordings: Iterable[Recording],
    out: str | Path,
    *,
    keep_audio: bool = False,
    loudness: Literal["none", "peak"] = "none",
    shard_bytes: int = 256 << 20,
    max_length_mismatch_s: float | None = None,
    force: bool = False,
    progress: Count | None = None,
) -> WriteSummary:
    """Write a complete shard folder from recordings that a program passes.

    dataset.json is written last, so the folder is complete when this file exists. The bytes of the folder depend only
    on the recordings and settings, not on the order of the recordings. After an interrupted call the folder is not
    complete; call the function again. The function needs memory for one recording, and about 30 kB of statistics for
    each sample. During the call, the disk needs space for two copies of the set.

    Args:
        recordings: Any iterable, which is read once; use a generator if the recordings do not fit in memory.
        out: Folder for the shards; it is created if it does not exist.
        keep_audio: Store the complete 16 kHz waveform in the shards.
        loudness: Scaling of audio before the mel transform; "peak" scales the largest absolute value to 0.5, "none"
            does not scale.
        shard_bytes: Target size of a shard in bytes.
        max_length_mismatch_s: Largest difference between the lengths of audio and motion in seconds; None: audio may be
            up to 30 s longer than motion, and motion up to 5 s longer than audio.
        force: Replace a complete set or an unfinished run of another command in the folder.
        progress: Function that is called with (done, total) recordings; total is 0 if `recordings` has no length.

    Returns:
        Numbers of samples, notes and shards, the duration of all samples in seconds, and the manifest hash.

    Raises:
        UsageFault: A setting is invalid, `recordings` is empty, or it contains an object that is not a `Recording`. Or
            `force` is False, and the folder contains a complete set or an unfinished run of another command.
        DataError: A recording cannot be used. The message states its key, the reason and the remedy. No set is written.
        EnvironmentFault: The disk cannot be written, or another run writes to the folder.
    """
    start, limit = time.monotonic(), max_length_mismatch_s
    limit = None if limit is None else arguments.number("max_length_mismatch_s", limit, 0.0)
    convert = ConvertSettings(
        loudness=cast("Loudness", arguments.choice("loudness", loudness, get_args(Loudness))),
        keep_audio=arguments.flag("keep_audio", keep_audio),
        max_length_mismatch_s=limit,
    )
    out, shard_bytes = arguments.path("out", out), arguments.integer("shard_bytes", shard_bytes, 1)
    force = arguments.flag("force", force)
    if progress is not None and not callable(progress):
        raise arguments.refuse("progress", "a function of the recordings converted and their number, or None", progress)
    document = {"written_by": _WRITTEN_BY, "convert": asdict(convert), "shard_bytes": shard_bytes}
    workspace = Workspace(out)
    with new_folder(out), locked(out):
        _prepare_workspace(workspace, force=force)
        try:
            workspace.begin(UnfinishedRun.of(document, anew=force))
            total = len(recordings) if isinstance(recordings, Sized) else 0
            with contextlib.closing(_Spool(workspace.folder / SPOOL_FILE)) as spool:
                tally = Tally(partials=PartialSpool(folder=out))
                inputs, samples = _convert_all(
                    recordings, convert, spool, tally, lambda n: progress and progress(n, total)
                )
                writer = _pack(samples, spool, workspace, shard_bytes, tally)
            plan = {
                "inputs_sha256": sha256_hex(canonical_json({"recordings": inputs})),
                "stems": len(samples),
                "rejected": 0,
                "rejected_inputs": {},
            }
            manifest = publish_set(workspace, tally, writer, document, plan)
        finally:
            if not _commit_interrupted(workspace):
                workspace.wipe()
    return _summary_of(out, tally, writer, manifest, time.monotonic() - start)


def _summary_of(out: Path, tally: Tally, writer: ShardWriter, manifest: str, elapsed_s: float) -> WriteSummary:
    splits = {split: [row.seconds for row in tally.rows if row.split == split] for split in SPLITS}
    return WriteSummary(
        out=out,
        samples=len(tally.rows),
        seconds=math.fsum(row.seconds for row in tally.rows),
        splits={split: (len(own), math.fsum(own)) for split, own in splits.items()},
        notes=dict(Counter(finding.problem.code for finding in tally.findings)),
        shards=len(writer.shards),
        shard_bytes=sum(shard.size for shard in writer.shards),
        manifest_hash=manifest,
        elapsed_s=elapsed_s,
    )


def _commit_interrupted(workspace: Workspace) -> bool:
    """Return whether a commit (the publication of a finished set) has begun in the workspace and is not finished."""
    return any((workspace.folder / name).exists() for name in (COMMIT_FILE, PLACE_FILE))


def _prepare_workspace(workspace: Workspace, *, force: bool) -> None:
    """Finish an interrupted commit and clear the workspace; raise UsageFault for work that only `force` may replace.

    Such work is a complete set in the folder, or an unfinished run of another command. There is one exception: if
    this function finishes a commit of `write_shards`, the published set may be replaced without `force`. This set was
    not complete before the call, and the same script writes the same bytes again.
    """
    out = workspace.out
    workspace.refuse_foreign()
    interrupted = _commit_interrupted(workspace)
    workspace.finish_commit()
    begun = workspace.begun()
    ours = begun is None or begun.settings.get("written_by") == _WRITTEN_BY
    if ours or force:
        workspace.wipe()  # later runs do not continue from a workspace of write_shards
    if force:
        return
    unfinished = interrupted and read_dataset(out)["settings"].get("written_by") == _WRITTEN_BY
    if (out / DATASET_FILE).exists() and not unfinished:
        raise UsageFault(
            f"{out}: expected a folder without {DATASET_FILE}, found this file; choose another folder, or replace "
            "the set with force=True"
        )
    if not ours:
        raise UsageFault(
            f"{workspace.folder}: expected no unfinished run of another command, found such a run; finish that run, "
            "choose another folder, or discard its work with force=True"
        )


@dataclass(frozen=True, slots=True)
class _Place:
    """Position of a sample's tar members in the spool file."""

    offset: int
    size: int


class _Spool:
    """Temporary file that contains the converted samples in the order of arrival."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = 0
        with os_errors(path):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o666)

    def add(self, segment: Segment) -> _Place:
        """Append a sample and return its position."""
        place = _Place(self._size, segment.size)
        with os_errors(self._path):
            for buffer in segment.buffers:
                view = memoryview(buffer).cast("B")
                while len(view):
                    view = view[os.write(self._descriptor, view) :]
        self._size += segment.size
        return place

    def read(self, place: _Place) -> bytearray:
        """Return the tar members of a sample as bytes."""
        data = bytearray(place.size)
        done = 0
        with os_errors(self._path, "read"):
            while done < place.size:
                count = os.preadv(self._descriptor, [memoryview(data)[done:]], place.offset + done)
                if not count:
                    raise DataError(
                        f"{self._path}: expected a file that does not change, found that it became shorter during "
                        "reading; write the shards again"
                    )
                done += count
        return data

    def close(self) -> None:
        """Close the temporary file."""
        os.close(self._descriptor)


def _checked_recordings(recordings: Iterable[Recording]) -> Iterator[Recording]:
    """Yield the recordings; refuse objects that are not a `Recording`, and keys that are not text."""
    if not isinstance(recordings, Iterable):
        raise UsageFault(
            f"recordings: expected an iterable of omniges.Recording, found {type(recordings).__name__}; give a "
            "list, or call the function that yields them"
        )
    for number, recording in enumerate(recordings):
        if not isinstance(recording, Recording):
            raise UsageFault(
                f"recordings: expected omniges.Recording, found {type(recording).__name__} at index {number}; give "
                "objects of this class"
            )
        if not isinstance(recording.key, str):
            raise DataError(f"recording {number}: expected a text as key, found {recording.key!r:.80}")
        yield recording


def _convert_all(
    recordings: Iterable[Recording],
    convert: ConvertSettings,
    spool: _Spool,
    tally: Tally,
    count: Callable[[int], object],
) -> tuple[dict[str, dict[str, str]], list[Sample[_Place]]]:
    """Convert each recording; add its sample to the spool, and its statistics and words to the tally.

    Return the digests of the inputs by key, and the samples in the order of arrival.
    """
    inputs: dict[str, dict[str, str]] = {}
    samples: list[Sample[_Place]] = []
    seen: dict[tuple[str, ...], ManifestRow] = {}
    for recording in _checked_recordings(recordings):
        if recording.key in inputs:
            raise DataError(
                f"recording {recording.key!r}: expected each key once, found this key twice; rename one of the two "
                "recordings"
            )
        take = take_of(recording)
        notes: list[Finding] = []

        def note(problem: Problem, _modality: object = None, stem: str = take.stem, to: list[Finding] = notes) -> None:
            to.append(Finding(problem, stem))

        for part in (take.motion, take.wav, take.tier):
            for problem in part.notes if part else ():
                note(problem)
        try:
            sample = assemble(take, convert, note, notes)
        except RecordingFault as fault:
            raise refused(recording.key, fault) from fault
        for identity in filter(None, identities(sample.row)):
            first = seen.setdefault(identity, sample.row)
            if first.split != sample.row.split:
                raise DataError(
                    f"recording {recording.key!r}: expected content that is in no split but {sample.row.split}, found "
                    f"the same content in {first.stem!r} ({first.split}); remove one of the two recordings"
                )
        inputs[take.stem] = digests_of(take)
        tally.take_statistics(sample)
        placed = replace(sample, segment=spool.add(sample.segment), partials=None, words=Counter())  # type: ignore[arg-type]
        samples.append(placed)  # type: ignore[arg-type]
        count(len(samples))
    if not samples:
        raise UsageFault("recordings: expected at least one recording, found none; give at least one")
    return inputs, samples


def _pack(
    samples: Sequence[Sample[_Place]], spool: _Spool, workspace: Workspace, shard_bytes: int, tally: Tally
) -> ShardWriter:
    """Pack the samples into shards, sorted by split and key.

    A sample gets the value "" for each label that only other samples have.
    """
    order: dict[str, int] = {split: place for place, split in enumerate(SPLITS)}
    labels = sorted({name for sample in samples for name in sample.row.labels})
    writer = ShardWriter(lambda n: workspace.folder / staged_name(n), shard_bytes)
    with writer:
        for sample in sorted(samples, key=lambda sample: (order[sample.row.split], sample.row.key)):
            tally.take_in(sample)
            tally.rows.append(writer.add(*_labelled(sample.row, spool.read(sample.segment), labels)))
    return writer


def _labelled(row: ManifestRow, segment: bytearray, names: Sequence[str]) -> tuple[ManifestRow, bytes | bytearray]:
    """Add each label in `names` that a sample lacks, with the value "".

    KEY.json must be the first member of the segment. Return the changed manifest row and the changed tar members.
    """
    if row.labels.keys() == set(names):
        return row, segment
    labels = {name: row.labels.get(name, "") for name in names}
    place, rest = row.members["json"], row.members["gesture.npy"].offset - BLOCK_BYTES
    metadata = json.loads(segment[place.offset : place.offset + place.size])
    content = canonical_json(metadata | {"labels": labels})
    head = build_segment(row.key, {"json": (content,)})
    members = {
        member: MemberPlace(place.offset - rest + head.size, place.size, place.sha256)
        for member, place in row.members.items()
    }
    members["json"] = MemberPlace(head.data_offsets["json"], len(content), sha256_hex(content))
    return replace(row, labels=labels, members=members), b"".join([*head.buffers, memoryview(segment)[rest:]])


def publish_set(
    place: OutputPlace, tally: Tally, writer: ShardWriter, settings: dict[str, Any], plan: Mapping[str, Any]
) -> str:
    """Write the files beside the shards (dataset.json last), and publish the set.

    Args:
        place: Output folder, in which the shards are already finished.
        tally: Collected samples and findings; this function sorts the findings.
        writer: Writer of the shards, already closed.
        settings: Settings that affect the output bytes; stored as `settings` in dataset.json.
        plan: Hash of the inputs, number of stems, and rejected recordings; stored as `plan` in dataset.json.

    Returns:
        The manifest hash of the set.
    """
    folder = place.folder
    if not tally.partials:
        tally.findings.append(Finding(Problem("no-train-samples", "0 samples in train", "at least 1")))
    tally.findings.sort(key=lambda finding: finding.sort_key)
    contents = {
        MANIFEST_FILE: serialize_manifest(tally.rows),
        STATS_FILE: json_document(statistics_document(tally.rows, tally.partials, tally.words)),
        TOKENIZER_FILE: train_tokenizer(tally.words),
        REPORT_FILE: b"".join(canonical_json(finding.as_json()) + b"\n" for finding in tally.findings),
    }
    files = {name: (len(data), publish_bytes(folder / name, data)) for name, data in contents.items()}
    plan_document = {"settings_sha256": sha256_hex(canonical_json(settings)), **plan}
    dataset = dataset_document(tally.rows, writer.shards, files, settings, plan_document, cut_totals(tally.cuts))
    publish_bytes(folder / DATASET_FILE, seal(dataset))
    place.commit(writer.paths)
    return str(dataset["manifest_hash"])
