"""`preprocess`: find recordings, reuse unchanged results, convert the rest, pack shards, publish all at once."""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, cast

from omniges.errors import DataError
from omniges.pipeline import incremental
from omniges.pipeline.corpora.registry import CORPORA, find_recordings
from omniges.pipeline.discover import Discovery, Recording
from omniges.pipeline.engines import INTERRUPTIONS
from omniges.pipeline.engines.engine import open_engine
from omniges.pipeline.settings import PreprocessSettings, Rejected, Summary
from omniges.pipeline.summary import ConvertProgress, Tally, summarize, summary_of_complete
from omniges.pipeline.write import publish_set
from omniges.progress import Reporter
from omniges.shards.dataset import PartialSpool
from omniges.shards.manifest import ManifestRow
from omniges.shards.schema import SPLITS
from omniges.shards.transaction import OutputPlace, UnfinishedRun, Workspace
from omniges.shards.writer import ShardFile, ShardWriter
from omniges.storage.atomic import append_line, home_expanded, open_log, os_errors
from omniges.storage.files import sha256_hex

# Output bytes per byte of motion input. For each frame, BEAT2 has 165 float32 and 103 float64 values. The output has
# about 415 (gesture) + 213 (mel) float32 values.
_GROWTH: Final = 1.75


class _RunLog:
    """Log of JSON lines about times, retries and worker crashes.

    These facts differ between runs, so the log is not part of the shard set.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def __enter__(self) -> _RunLog:
        self._descriptor = open_log(self._path)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def write(self, event: str, **facts: Any) -> None:
        """Append one event with the time, process and host.

        Args:
            event: Name of the event.
            **facts: Further fields.
        """
        stamp = {"event": event, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "pid": os.getpid()}
        with self._lock, os_errors(self._path):
            append_line(self._descriptor, json.dumps(stamp | {"host": platform.node()} | facts).encode() + b"\n")


@dataclass(frozen=True, slots=True)
class _Work:
    """The work of a run, and the results of earlier runs that are reused."""

    settings: PreprocessSettings
    discovery: Discovery
    place: OutputPlace
    recalled: Mapping[str, incremental.Recalled | Rejected]  # earlier results that are still valid, by stem
    digests: Mapping[str, incremental.Digests]
    earlier_stems: set[str]  # stems of the samples in the complete set in the folder
    tally: Tally  # already contains the statistics of the reused samples


def preprocess(
    settings: PreprocessSettings, reporter: Reporter, count: incremental.Count = lambda _done, _total: None
) -> Summary:
    """Convert a data set to shards.

    An earlier set in the folder is unchanged until the new set is complete. If a run stops before its end, the next run
    reuses the finished shards and the rejections of the unfinished run.

    Args:
        settings: Settings of the run.
        reporter: Object that prints the progress.
        count: Function that is called with (done, total) in megabytes while earlier results are checked.

    Returns:
        Counts, lengths and paths of the run, also for a run that changes nothing.

    Raises:
        UsageFault: The settings do not fit the folder or the data set.
        DataError: A split list of the data set, or a file of the earlier set, is damaged.
        EnvironmentFault: The disk cannot be written, or another run writes to the folder.
    """
    start = time.monotonic()
    threading.Thread(target=_warm_imports, name="warm-imports", daemon=True).start()
    settings, discovery = find_recordings(settings)
    CORPORA.require_installed(cast("str", settings.corpus), "workers of preprocess are separate processes")
    place = _place_of(settings, reporter)
    with place.locked(), _RunLog(settings.log_path) as log:
        place.recover()
        complete = incremental.read_complete(settings, place)
        incremental.check_begun(settings, place)
        try:
            earlier = incremental.known_outcomes(place, complete)
        except DataError as error:  # the complete set is damaged
            log.write("set-damaged", reason=str(error))
            earlier = incremental.known_outcomes(place, None)
        known = [recording for recording in discovery.recordings if recording.stem in earlier.stems]
        digests = incremental.digest_inputs(known, settings.local_workers, count)
        if complete and incremental.is_unchanged(place, discovery, complete, digests):
            place.wipe()
            log.write("unchanged", stems=discovery.stems)
            return summary_of_complete(settings, place, discovery, complete, time.monotonic() - start)
        if complete is not None:
            incremental.check_update(settings, place, complete)
        incremental.check_removal(settings, earlier.complete, {recording.stem for recording in discovery.recordings})
        tally = _new_tally(discovery, place)
        recalled = incremental.recall(
            earlier, known, digests, place.opened, settings.local_workers, count, tally.take_statistics
        )
        work = _Work(settings, discovery, place, recalled, digests, earlier.complete, tally)
        return _run(work, reporter, log, start)


def _place_of(settings: PreprocessSettings, reporter: Reporter) -> OutputPlace:
    """Return the output folder of the settings: on this machine, or in an object store."""
    location = settings.location
    if location.path is not None:
        return Workspace(location.path)
    from omniges.shards.store import StorePlace  # noqa: PLC0415 - needed for URLs only

    folder = home_expanded("--work-dir", settings.work_dir) / "preprocess" / sha256_hex(location.address.encode())[:16]
    return StorePlace(location, folder, settings.shard_bytes, say=reporter.say)


def _new_tally(discovery: Discovery, place: OutputPlace) -> Tally:
    findings = [*discovery.findings, *chain.from_iterable(discovery.rejected.values())]
    partials = PartialSpool(folder=place.folder.parent)  # `folder` may not exist yet
    return Tally(findings=findings, partials=partials, rejected=len(discovery.rejected))


def _run(work: _Work, reporter: Reporter, log: _RunLog, start: float) -> Summary:
    settings, discovery = work.settings, work.discovery
    todo = [recording for recording in _ordered(discovery) if recording.stem not in work.recalled]
    work.place.require_space(_estimated_bytes(settings, todo))
    log.write(
        "start",
        stems=discovery.stems,
        engine=settings.engine,
        workers=settings.local_workers if settings.engine == "local" else settings.num_workers,
        out=str(settings.output_dir),
        to_compute=len(todo),
    )
    work.place.begin(UnfinishedRun.of(settings.document(), anew=settings.force))
    try:
        tally, writer = _convert_all(work, todo, reporter, log, start)
    finally:
        work.place.journal.close()
    manifest = None
    if not tally.lost:
        incremental.check_removal(settings, work.earlier_stems, {row.stem for row in tally.rows})
        manifest = _finish(work, tally, writer)
    summary = summarize(settings, discovery, tally, writer.shards, time.monotonic() - start, manifest)
    came = {"converted": summary.converted, "computed": tally.computed, "reused": tally.reused, "lost": summary.lost}
    log.write("end", elapsed_s=summary.elapsed_s, **came)
    return summary


def _warm_imports() -> None:
    """Import slow packages that only the end of a run needs.

    A thread calls this function at the start of the run, which saves half a second.
    """
    import pyarrow.parquet  # noqa: F401, PLC0415
    import tokenizers  # noqa: F401, PLC0415


def _estimated_bytes(settings: PreprocessSettings, recordings: Sequence[Recording]) -> int:
    """Estimate the total size of the samples of recordings in bytes, from the sizes of the input files."""
    motion, audio = (
        sum(recording.files[role].size for recording in recordings if role in recording.files)
        for role in ("npz", "wav")
    )
    return int(motion * _GROWTH + (audio if settings.convert.keep_audio else 0))


def _ordered(discovery: Discovery) -> list[Recording]:
    """Return the recordings in the order in which shards store their samples: by split, then by key."""
    order = {split: place for place, split in enumerate(SPLITS)}
    return sorted(discovery.recordings, key=lambda recording: (order[recording.split], recording.key))


def _convert_all(
    work: _Work, todo: Sequence[Recording], reporter: Reporter, log: _RunLog, start: float
) -> tuple[Tally, ShardWriter]:
    settings, place, discovery, tally = work.settings, work.place, work.discovery, work.tally
    place.journal.open()

    def keep(shard: ShardFile, path: Path, rows: tuple[ManifestRow, ...]) -> None:
        notes = {row.stem: [note.as_json() for note in tally.notes[row.stem]] for row in rows}
        place.keep(path, shard.size, shard.sha256)
        place.journal.append(incremental.journal_shard(path, shard.size, shard.sha256, rows, notes), durable=True)

    def note(event: str, facts: dict[str, Any]) -> None:
        log.write(event, **facts)
        if event in INTERRUPTIONS:
            tally.interruptions.append(f"{event}: " + ", ".join(f"{name} {value}" for name, value in facts.items()))

    total_bytes, done_bytes = sum(recording.size for recording in todo), 0
    with (
        open_engine(settings, todo, place, note) as engine,
        reporter,
        ShardWriter(
            place.staged_path, settings.shard_bytes, keep, engine.open_shard, max_waiting=place.max_waiting
        ) as writer,
    ):
        outcomes = engine.pool.run(todo)
        try:
            for recording in _ordered(discovery):
                known = work.recalled.get(recording.stem)
                if known is not None:
                    tally.add(recording, known, writer, place.journal, work.digests[recording.stem])
                else:
                    tally.add(recording, next(outcomes)[1], writer, place.journal)
                    done_bytes += recording.size
                share = done_bytes / total_bytes if total_bytes else 1.0
                reporter.update(ConvertProgress.of(discovery, tally, engine.pool, time.monotonic() - start, share))
        finally:
            outcomes.close()
    return tally, writer


def _finish(work: _Work, tally: Tally, writer: ShardWriter) -> str:
    """Write the remaining files, publish the set, and return the manifest hash."""
    plan = {
        "inputs_sha256": incremental.inputs_hash(tally.inputs, work.discovery),
        "stems": work.discovery.stems,
        "rejected": tally.rejected,
        "rejected_inputs": tally.rejected_inputs,
    }
    return publish_set(work.place, tally, writer, work.settings.document(), plan)
