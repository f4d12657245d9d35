"""Find generated files, match them to recordings, and read their arrays."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError, RecordingFault, UsageFault
from omniges.evaluation.scores import Result
from omniges.features.audio import MEL_BANDS, log_mel, mix_down_in_phase, resample
from omniges.features.gesture import MotionArrays
from omniges.features.timebase import FRAME_RATE_HZ, HOP_SAMPLES, SAMPLE_RATE_HZ, SAMPLES_PER_TICK
from omniges.formats.arrays import decode_npy
from omniges.formats.audio import decode_wav
from omniges.formats.npz import decode_motion
from omniges.formats.textgrid import WordInterval
from omniges.generation.records import GeneratedRecord, read_record, spoken_intervals
from omniges.model.streams import StreamName
from omniges.model.tasks import TASKS
from omniges.shards.manifest import ManifestRow
from omniges.shards.reader import ShardFolder
from omniges.shards.schema import MANIFEST_FILE
from omniges.storage.atomic import os_errors
from omniges.storage.files import MAX_SETTINGS_BYTES, parse_json, read_file, sha256_hex, visible_entries

T = TypeVar("T")

_ENDINGS: Final[Mapping[StreamName, str]] = {"gesture": ".npz", "audio": ".wav", "text": ".TextGrid"}
_MAX_BYTES: Final = 4 << 30
_REPORT: Final = "omniges-evaluation"
_SAME: Final = (
    *("seed", "steps", "solver", "guidance", "shift", "last_level"),
    *("window_ticks", "overlap_ticks", "quantised"),
)
"""Settings that must be equal in all results of a task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileResult(Result):
    """A result in files. Its arrays are read when they are needed."""

    folder: Path
    record: GeneratedRecord | None  # None: another system wrote the files
    files: Mapping[StreamName, Path]  # files of a result without a record
    motion_rate_hz: float | None = None  # frame rate of a motion file that does not state one
    notes: list[str] = field(default_factory=list)
    """Changes and guesses that `motion` made when it read a motion file of another tool."""

    @classmethod
    def of(
        cls,
        task: str,
        row: ManifestRow,
        path: Path,
        record: GeneratedRecord | None = None,
        files: Mapping[StreamName, Path] = MappingProxyType({}),
    ) -> FileResult:
        """Build a result; if it has a record, read duration, window boundaries and absent parts from the record.

        Args:
            task: Name of the task.
            row: Manifest row of the recording.
            path: Path of the files, without their endings.
            record: Record of the result; None: another system wrote the files.
            files: Files of a result without a record, by stream.

        Returns:
            The result.
        """
        return cls(
            task=task,
            row=row,
            name=path.name,
            seconds=row.seconds if record is None else min(record.seconds, row.seconds),
            seams=() if record is None else tuple(round(s * FRAME_RATE_HZ) for s in record.seams_s),
            invalid_rotations=None if record is None else record.measures.get("invalid_rotations"),
            absent=() if record is None else record.at_rest,
            folder=path.parent,
            record=record,
            files=files,
        )

    @property
    def place(self) -> str:
        """Path of the result's files, without their endings."""
        return str(self.folder / self.name)

    def _read(self, kind: str, stream: StreamName, ending: str, decode: Callable[[bytes], T]) -> tuple[Path, T]:
        """Read and decode a file of the result; return its path and content.

        If the record has an entry `kind`, this entry contains the path of the file and the sha256 that the file must
        have. Otherwise, the path is `files[stream]`. If `files` has no entry for `stream`, the path consists of the
        result's name and `ending`.
        """
        entry = None if self.record is None else self.record.files.get(kind)
        if entry is None:
            path = self.files.get(stream, self.folder / f"{self.name}{ending}")
        else:
            path = self.folder / Path(str(entry.get("path"))).name
        with os_errors(path, "read"):
            try:
                data = read_file(path, _MAX_BYTES, self.folder)
            except FileNotFoundError as error:
                raise DataError(f"{path}: expected a generated file, found none; generate it again") from error
        if entry is not None and sha256_hex(data) != entry.get("sha256"):
            raise DataError(f"{path}: expected the sha256 in {self.name}.json, found another; generate it again")
        try:
            return path, decode(data)
        except RecordingFault as fault:
            raise fault.refusal(path) from fault

    def motion(self) -> MotionArrays:
        """Read generated motion; raise DataError if a file cannot be read."""
        decode = partial(decode_motion, standing=self.record is None, rate_hz=self.motion_rate_hz)
        _, motion = self._read("gesture", "gesture", ".npz", decode)
        if self.record is None:
            self.notes[:] = [f"{note.code}: {note.found}" for note in motion.notes]
        return MotionArrays(motion.poses, motion.expressions, motion.trans)

    def spoken(self) -> tuple[list[WordInterval], bool]:
        """Read the generated words; return them, and whether they have times.

        If the TextGrid has a tier of words, return these words with their times, and True. Otherwise, return False and
        the texts of the tier `windows`. Each text then has the start and end of its window.
        """
        return self._read("text", "text", ".TextGrid", spoken_intervals)[1]

    def mel(self) -> tuple[npt.NDArray[np.float32], str]:
        """Read the generated log-mel (F, 64) of F mel frames; without a log-mel file, compute it from the waveform.

        Return the log-mel, and its origin as text: "the model's mel" or "the mel of the waveform".
        """
        if self.record is not None and "mel" in self.record.files:
            path, mel = self._read("mel", "audio", ".mel.npy", decode_npy)
            if mel.ndim != 2 or mel.shape[1] != MEL_BANDS or mel.dtype != np.float32:
                raise DataError(
                    f"{path}: expected (F, {MEL_BANDS}) float32, found {mel.shape} {mel.dtype}; generate it again"
                )
            if not np.isfinite(mel).all():
                raise DataError(f"{path}: expected finite mel values, found NaN or infinite ones; generate it again")
            return mel, "the model's mel"
        path, wav = self._read("audio", "audio", ".wav", decode_wav)
        try:
            samples = resample(mix_down_in_phase(wav.samples), wav.rate_hz)
        except RecordingFault as fault:
            raise fault.refusal(path) from fault
        if len(samples) < SAMPLES_PER_TICK:
            raise DataError(
                f"{path}: expected at least 0.1 s of audio, found {len(samples) / SAMPLE_RATE_HZ:.4f} s; give a "
                "longer result"
            )
        return log_mel(samples, len(samples) // HOP_SAMPLES), "the mel of the waveform"


def find_results(
    folders: Sequence[Path],
    shards: ShardFolder,
    task: str | None,
    *,
    without_record: str | None = None,
    motion_rate_hz: float | None = None,
) -> dict[str, list[FileResult]]:
    """Find results in folders and their direct sub-folders.

    Args:
        folders: Folders of generated files.
        shards: The recordings.
        task: Task of all results, chosen by the user; None: records state the task.
        without_record: Task of files without records; ignored if `task` is given.
        motion_rate_hz: Frames per second, used only for motion files that do not state their frame rate.

    Returns:
        Results by task, sorted by recording.

    Raises:
        UsageFault: There are no results, a file name belongs to no recording, or several systems made the results.
        DataError: A record is damaged, or a folder with records contains a file that no record lists.
    """
    rows = {name: row for row in shards.rows for name in (row.key, row.stem, unicodedata.normalize("NFC", row.stem))}
    found: dict[str, list[FileResult]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UsageFault(
                f"{folder}: expected a folder of generated results, found none there; give the --output-dir of "
                "omniges generate"
            )
        for place in [folder, *(path for path in visible_entries(folder) if path.is_dir())]:
            for result in _results(place, rows, task, shards, without_record):
                found.setdefault(result.task, []).append(replace(result, motion_rate_hz=motion_rate_hz))
    if not found:
        kinds = "" if task is None else " for " + " and ".join(_ENDINGS[name] for name in TASKS[task].targets)
        raise UsageFault(
            f"{folders[0]}: expected generated results{kinds}, found none; give the --output-dir of omniges generate"
        )
    for results in found.values():
        results.sort(key=lambda result: (result.key, result.name))
        _refuse_mixtures(results)
    return found


def _results(
    folder: Path, rows: Mapping[str, ManifestRow], task: str | None, shards: ShardFolder, without_record: str | None
) -> Iterator[FileResult]:
    records = [path for path in visible_entries(folder) if path.suffix == ".json" and not _is_report(path)]
    if records:
        yield from _recorded_results(folder, records, rows, shards, task)
        return
    task = task or without_record
    wanted = () if task is None else TASKS[task].targets
    by_name: dict[str, dict[StreamName, Path]] = {}
    for path in visible_entries(folder):
        stream = _stream_of(path)
        if stream is not None and task is None:
            raise UsageFault(
                f"{path}: expected a record (.json) with its task, found none; add --task, such as --task a2g"
            )
        if stream in wanted and stream is not None:
            by_name.setdefault(path.stem, {})[stream] = path
    for name, files in _generated(by_name, rows).items():
        lost = [stream for stream in wanted if stream not in files]
        if lost:
            first = next(iter(files.values()))
            raise DataError(
                f"{first}: expected a {_ENDINGS[lost[0]]} file beside it for task {task}, found none; generate it again"
            )
        row = _row(rows, _stem_of(name, rows), next(iter(files.values())), shards)
        yield FileResult.of(str(task), row, folder / name, None, files)


def _stem_of(name: str, rows: Mapping[str, ManifestRow]) -> str:
    """Return the stem of the recording to which a file of another tool belongs, or `name` if no stem fits.

    Tools such as EMAGE's add ``res_`` or ``gt_`` before the stem, or ``_output`` after the stem. macOS stores letters
    with accents in decomposed form (NFD), so names are compared in composed form (NFC).
    """
    plain = unicodedata.normalize("NFC", name)
    stems = (plain, plain.removeprefix("res_"), plain.removeprefix("gt_"))
    found = [stem for stem in (name, *stems, *(one.removesuffix("_output") for one in stems)) if stem in rows]
    return found[0] if found else name


def _generated(
    by_name: Mapping[str, dict[StreamName, Path]], rows: Mapping[str, ManifestRow]
) -> Mapping[str, dict[StreamName, Path]]:
    """Return the files that are not ground truth (``gt_STEM``); if all files are ground truth, return all of them.

    A name that begins with ``gt_`` does not mean ground truth if the complete name is the stem of a recording.
    """
    made = {name: files for name, files in by_name.items() if name in rows or not name.startswith("gt_")}
    return made or by_name


def _recorded_results(
    folder: Path, records: Sequence[Path], rows: Mapping[str, ManifestRow], shards: ShardFolder, task: str | None
) -> Iterator[FileResult]:
    """Yield the results that have records. Refuse a file that no record lists, because its result may be incomplete."""
    named = set()
    for path in records:
        record = read_record(path)
        if task is not None and record.task != task:
            raise UsageFault(f"{path}: expected a result of --task {task}, found one of {record.task}; remove --task")
        if record.source is not None and record.source.get("start_tick"):
            raise UsageFault(
                f"{path}: expected a result that starts with its recording, found a sample of validation from tick "
                f"{record.source['start_tick']}; give results of omniges generate"
            )
        own = record.name if record.name in rows else record.name.removesuffix(f"-{record.sample + 1}")
        row = _row(rows, own if record.source is None else str(record.source.get("key")), path, shards)
        _require_same_source(path, record, row, shards)
        named |= {str(entry.get("path")) for entry in record.files.values()}
        yield FileResult.of(record.task, row, folder / record.name, record)
    for path in visible_entries(folder):
        if _stream_of(path) is not None and path.name not in named:
            raise DataError(
                f"{path}: expected a record (.json) that lists this file, found none, so the result is not complete; "
                "generate it again, or move the file away"
            )


def _stream_of(path: Path) -> StreamName | None:
    """Return the stream to which a file's suffix, in upper or lower case, belongs; None for other suffixes."""
    return next((stream for stream, ending in _ENDINGS.items() if path.suffix.lower() == ending.lower()), None)


def _is_report(path: Path) -> bool:
    """Return True if a JSON file is a report of `evaluate`. Folders of results may contain reports."""
    try:
        found = parse_json(read_file(path, MAX_SETTINGS_BYTES, path.parent))
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("format") == _REPORT


def _row(rows: Mapping[str, ManifestRow], key: str, path: Path, shards: ShardFolder) -> ManifestRow:
    if key not in rows:
        raise UsageFault(
            f"{path}: expected a sample {key} in {shards.folder}, found none; give the shards it was generated for"
        )
    return rows[key]


def _require_same_source(path: Path, record: GeneratedRecord, row: ManifestRow, shards: ShardFolder) -> None:
    """Refuse a result that was generated from another recording with the same name."""
    of_shards = shards.dataset["files"][MANIFEST_FILE]["sha256"]
    if record.source is None or record.source.get("manifest_sha256") == of_shards:
        return
    for given in record.inputs:
        member = str(given.get("path")).partition(f"#{row.key}.")[2]
        if member in row.members and row.members[member].sha256 != given.get("sha256"):
            raise DataError(
                f"{path}: expected a result whose input was the {member} of {row.key} in {shards.folder}, found "
                f"another input; give the shards it was generated for, {record.source.get('shards')}"
            )


def _refuse_mixtures(results: Sequence[FileResult]) -> None:
    """Refuse results that come from several systems, models or settings."""
    seen: dict[tuple[str, str], FileResult] = {}
    folders: dict[str, Path] = {}
    for result in results:
        same = seen.setdefault((result.key, result.name), result)
        folder = folders.setdefault(result.key, result.folder)
        if same is not result or folder != result.folder:
            first = same.folder if same is not result else folder
            raise UsageFault(
                f"{result.task}: expected results of one system, found {result.key} in {first} and in "
                f"{result.folder}; score one system at a time"
            )
        if result.record is None and result.name != next(one for one in results if one.key == result.key).name:
            raise UsageFault(
                f"{result.task}: expected one file of {result.key} in {result.folder}, found two; remove one of the "
                "files"
            )
    kinds = {_generator_of(result.record) for result in results}
    if len(kinds) > 1:
        one, another, *_ = sorted(kinds)
        raise UsageFault(
            f"{results[0].task}: expected results of one model with one set of settings, found {one} and "
            f"{another}; move them to separate folders and score one at a time"
        )


def _generator_of(record: GeneratedRecord | None) -> str:
    if record is None:
        return "files without records"
    model = sha256_hex(json.dumps(record.model.get("sha256"), sort_keys=True).encode())[:8]
    settings = ", ".join(f"{name} {record.settings.get(name)}" for name in _SAME)
    return f"step {record.model.get('step')} ({record.model.get('weights')}, {model}) with {settings}"
