"""Generated files as results: which there are, which recordings they are held against, and their arrays."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError, RecordingFault, UsageFault
from omniges.evaluation.scores import NEVER_MADE, Result
from omniges.features.audio import MEL_BANDS, log_mel, mix_down, resample
from omniges.features.gesture import MotionArrays
from omniges.features.timebase import FRAME_RATE_HZ, HOP_SAMPLES, SAMPLE_RATE_HZ, SAMPLES_PER_TICK
from omniges.formats.arrays import decode_npy
from omniges.formats.audio import decode_wav
from omniges.formats.npz import decode_motion
from omniges.formats.textgrid import WordInterval, decode_words
from omniges.generation.writers import WINDOWS_TIER, GeneratedRecord, read_record
from omniges.model.streams import StreamName
from omniges.model.tasks import TASKS
from omniges.shards.manifest import ManifestRow
from omniges.shards.reader import ShardFolder
from omniges.shards.schema import MANIFEST_FILE
from omniges.storage.atomic import os_errors
from omniges.storage.canonical_json import sha256_hex
from omniges.storage.files import MAX_SETTINGS_BYTES, parse_json, read_file

T = TypeVar("T")

_ENDINGS: Final[Mapping[StreamName, str]] = {"gesture": ".npz", "audio": ".wav", "text": ".TextGrid"}
_MOST_BYTES: Final = 4 << 30
_REPORT: Final = "omniges-evaluation"
_SAME: Final = (
    *("seed", "steps", "solver", "guidance", "shift", "last_level"),
    *("window_ticks", "overlap_ticks", "quantised"),
)
"""Settings that all results of a task should have in common."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileResult(Result):
    """A result whose arrays are read from its files when they are asked for."""

    folder: Path
    record: GeneratedRecord | None  # None: files of another system
    files: Mapping[StreamName, Path]  # of a result without a record

    @classmethod
    def of(
        cls,
        task: str,
        row: ManifestRow,
        path: Path,
        record: GeneratedRecord | None = None,
        files: Mapping[StreamName, Path] = MappingProxyType({}),
    ) -> FileResult:
        """A result of some name in some folder, with what its record tells."""
        return cls(
            task=task,
            row=row,
            name=path.name,
            seconds=row.seconds if record is None else min(record.seconds, row.seconds),
            seams=() if record is None else tuple(round(s * FRAME_RATE_HZ) for s in record.seams_s),
            invalid_rotations=None if record is None else record.measures.get("invalid_rotations"),
            absent=() if record is None else (*record.absent, *NEVER_MADE),
            folder=path.parent,
            record=record,
            files=files,
        )

    @property
    def place(self) -> str:
        """The result's files without their endings."""
        return str(self.folder / self.name)

    def _read(self, kind: str, stream: StreamName, ending: str, decode: Callable[[bytes], T]) -> tuple[Path, T]:
        """A file of the result and what it holds; its digest is checked where there is a record."""
        entry = None if self.record is None else self.record.files.get(kind)
        if entry is None:
            path = self.files.get(stream, self.folder / f"{self.name}{ending}")
        else:
            path = self.folder / Path(str(entry.get("path"))).name
        with os_errors(path, "read"):
            try:
                data = read_file(path, _MOST_BYTES, self.folder)
            except FileNotFoundError as error:
                raise DataError(f"{path}: a generated file expected, found none: generate it again") from error
        if entry is not None and sha256_hex(data) != entry.get("sha256"):
            raise DataError(f"{path}: it is not what {self.name}.json says: generate it again")
        try:
            return path, decode(data)
        except RecordingFault as fault:
            raise fault.refusal(path) from fault

    def motion(self) -> MotionArrays:
        """Generated motion. Raises DataError for what cannot be read."""
        decode = partial(decode_motion, standing=self.record is None)
        _, motion = self._read("gesture", "gesture", ".npz", decode)
        return MotionArrays(motion.poses, motion.expressions, motion.trans)

    def spoken(self) -> tuple[list[WordInterval], bool]:
        """Generated words: those of the word tier, or the texts of a tier `windows`, whose words have no times."""
        return self._read("text", "text", ".TextGrid", spoken_intervals)[1]

    def mel(self) -> tuple[npt.NDArray[np.float32], str]:
        """The generated log-mel (F, 64), and whether it is the model's own or that of the waveform."""
        if self.record is not None and "mel" in self.record.files:
            path, mel = self._read("mel", "audio", ".mel.npy", decode_npy)
            if mel.ndim != 2 or mel.shape[1] != MEL_BANDS or mel.dtype != np.float32:
                raise DataError(f"{path}: (F, {MEL_BANDS}) float32 expected, found {mel.shape} {mel.dtype}")
            if not np.isfinite(mel).all():
                raise DataError(f"{path}: finite levels expected, found others: generate it again")
            return mel, "the model's mel"
        path, wav = self._read("audio", "audio", ".wav", decode_wav)
        samples = resample(mix_down(wav.samples), wav.rate_hz)
        if len(samples) < SAMPLES_PER_TICK:
            raise DataError(f"{path}: at least 0.1 s of audio expected, found {len(samples) / SAMPLE_RATE_HZ:.4f} s")
        return log_mel(samples, len(samples) // HOP_SAMPLES), "the mel of the waveform"


def spoken_intervals(data: bytes) -> tuple[list[WordInterval], bool]:
    """Return the words of a generated TextGrid and True; or the texts of its tier `windows` and False.

    Raises RecordingFault where it has neither tier or is damaged.
    """
    try:
        return _words_of(data, None), True
    except RecordingFault as fault:
        if fault.problem.code != "textgrid-no-word-tier":
            raise
        without_words = fault
    try:
        return _words_of(data, WINDOWS_TIER), False
    except RecordingFault as fault:
        if fault.problem.code == "textgrid-no-word-tier":
            raise without_words from fault
        raise


def _words_of(data: bytes, tier: str | None) -> list[WordInterval]:
    """A tier's intervals with a text; a model may say nothing: every word is then a deletion."""
    try:
        return list(decode_words(data, tier).words)
    except RecordingFault as fault:
        if fault.problem.code == "textgrid-no-words":
            return []
        raise


def find_results(folders: Sequence[Path], shards: ShardFolder, task: str | None) -> dict[str, list[FileResult]]:
    """Results in folders, or in their sub-folders, by task; those of one recording are neighbours.

    Files without records need the name of their task. Raises UsageFault where there is none, a name is no recording's
    or results of several systems are mixed, DataError for damaged records and for what no record says is whole.
    """
    rows = {name: row for row in shards.rows for name in (row.key, row.stem)}
    found: dict[str, list[FileResult]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UsageFault(f"{folder}: a folder of generated results expected, found none there")
        for place in [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]:
            for result in _results(place, rows, task, shards):
                found.setdefault(result.task, []).append(result)
    if not found:
        kinds = "" if task is None else " for " + " and ".join(_ENDINGS[name] for name in TASKS[task].targets)
        raise UsageFault(f"{folders[0]}: generated results expected{kinds}, found none")
    for results in found.values():
        results.sort(key=lambda result: (result.key, result.name))
        _refuse_mixtures(results)
    return found


def _results(
    folder: Path, rows: Mapping[str, ManifestRow], task: str | None, shards: ShardFolder
) -> Iterator[FileResult]:
    records = [path for path in sorted(folder.glob("*.json")) if not _is_report(path)]
    if records:
        yield from _recorded_results(folder, records, rows, shards, task)
        return
    wanted = () if task is None else TASKS[task].targets
    by_name: dict[str, dict[StreamName, Path]] = {}
    for path in sorted(folder.iterdir()):
        stream = _stream_of(path)
        if stream is not None and task is None:
            raise UsageFault(f"{path}: it has no record that tells its task: add --task, such as a2g")
        if stream in wanted and stream is not None:
            by_name.setdefault(path.stem, {})[stream] = path
    for name, files in by_name.items():
        lost = [stream for stream in wanted if stream not in files]
        if lost:
            first = next(iter(files.values()))
            raise DataError(f"{first}: a {_ENDINGS[lost[0]]} file beside it expected for task {task}, found none")
        yield FileResult.of(str(task), _row(rows, name, next(iter(files.values())), shards), folder / name, None, files)


def _recorded_results(
    folder: Path, records: Sequence[Path], rows: Mapping[str, ManifestRow], shards: ShardFolder, task: str | None
) -> Iterator[FileResult]:
    """Results with records; a file that no record names was not finished."""
    named = set()
    for path in records:
        record = read_record(path)
        if record.task not in TASKS:
            raise DataError(f"{path}: task {record.task!r} is unknown: generate it again")
        if task is not None and record.task != task:
            raise UsageFault(f"{path}: it says that it is of task {record.task}, --task says {task}: leave --task away")
        if record.source is not None and record.source.get("start_tick"):
            raise UsageFault(
                f"{path}: it is of a window from tick {record.source['start_tick']} on, which validation has scored: "
                "take results of omniges generate"
            )
        own = record.name if record.name in rows else record.name.removesuffix(f"-{record.sample + 1}")
        row = _row(rows, own if record.source is None else str(record.source.get("key")), path, shards)
        _require_same_source(path, record, row, shards)
        named |= {str(entry.get("path")) for entry in record.files.values()}
        yield FileResult.of(record.task, row, folder / record.name, record)
    for path in sorted(folder.iterdir()):
        if _stream_of(path) is not None and path.name not in named:
            raise DataError(f"{path}: no record names it, so it was not finished: generate it again, or move it away")


def _stream_of(path: Path) -> StreamName | None:
    """Return the stream that a file's ending means, in either case."""
    return next((stream for stream, ending in _ENDINGS.items() if path.suffix.lower() == ending.lower()), None)


def _is_report(path: Path) -> bool:
    """Return whether a JSON file is a report of `evaluate`, which may lie beside what it reports on."""
    try:
        found = parse_json(read_file(path, MAX_SETTINGS_BYTES, path.parent))
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("format") == _REPORT


def _row(rows: Mapping[str, ManifestRow], key: str, path: Path, shards: ShardFolder) -> ManifestRow:
    if key not in rows:
        raise UsageFault(f"{path}: no sample of {shards.folder} is called {key}: give the shards it was made for")
    return rows[key]


def _require_same_source(path: Path, record: GeneratedRecord, row: ManifestRow, shards: ShardFolder) -> None:
    """Refuse a result that was made from another recording of the same name."""
    of_shards = shards.dataset["files"][MANIFEST_FILE]["sha256"]
    if record.source is None or record.source.get("manifest_sha256") == of_shards:
        return
    for given in record.inputs:
        member = str(given.get("path")).partition(f"#{row.key}.")[2]
        if member in row.members and row.members[member].sha256 != given.get("sha256"):
            raise DataError(
                f"{path}: it was made from another {member} than {row.key} has in {shards.folder}: give the shards it "
                f"was made for, {record.source.get('shards')}"
            )


def _refuse_mixtures(results: Sequence[FileResult]) -> None:
    """Refuse to score results of two systems as one."""
    seen: dict[tuple[str, str], FileResult] = {}
    homes: dict[str, Path] = {}
    for result in results:
        twice = seen.setdefault((result.key, result.name), result)
        home = homes.setdefault(result.key, result.folder)
        if twice is not result or home != result.folder:
            first = twice.folder if twice is not result else home
            raise UsageFault(
                f"{result.task}: {result.key} is in {first} and in {result.folder}: score one system at a time"
            )
        if result.record is None and result.name != next(one for one in results if one.key == result.key).name:
            raise UsageFault(f"{result.task}: two files in {result.folder} are of {result.key}: remove one of them")
    kinds = {_made_by(result.record) for result in results}
    if len(kinds) > 1:
        one, another, *_ = sorted(kinds)
        raise UsageFault(
            f"{results[0].task}: results of one model and one way of sampling expected, found {one} and {another}: "
            "keep them in folders of their own and score one at a time"
        )


def _made_by(record: GeneratedRecord | None) -> str:
    if record is None:
        return "files without records"
    model = sha256_hex(json.dumps(record.model.get("sha256"), sort_keys=True).encode())[:8]
    ways = ", ".join(f"{name} {record.settings.get(name)}" for name in _SAME)
    return f"step {record.model.get('step')} ({record.model.get('weights')}, {model}) with {ways}"
