"""Which generated files there are, and which samples of the shards they are held against."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError, RecordingFault, UsageFault
from omniges.features.audio import MEL_BANDS, log_mel, mix_down, resample
from omniges.features.timebase import FRAME_RATE_HZ, HOP_SAMPLES
from omniges.publish import os_errors
from omniges.recordings.npz import Motion, decode_motion
from omniges.recordings.textgrid import WordInterval, decode_words
from omniges.recordings.wav import decode_wav
from omniges.shards.manifest import ManifestRow
from omniges.shards.reader import SampleArrays, ShardFolder
from omniges.shards.schema import sha256_hex
from omniges.trainer.generated import GeneratedRecord, read_record
from omniges.trainer.streams import StreamName
from omniges.trainer.tasks import TASKS

__all__ = ["Pair", "find_pairs", "waveform"]

_ENDINGS: Final[Mapping[StreamName, str]] = {"gesture": ".npz", "audio": ".wav", "text": ".TextGrid"}


@dataclass(frozen=True, slots=True)
class Pair:
    """A generated result and the sample of the same key."""

    task: str
    row: ManifestRow
    folder: Path
    name: str
    record: GeneratedRecord | None  # None: files of another system

    @property
    def targets(self) -> tuple[StreamName, ...]:
        """What was generated."""
        return TASKS[self.task].targets

    def _content(self, kind: str, ending: str) -> tuple[Path, bytes]:
        """A file of the result; its digest is checked where there is a record."""
        entry = None if self.record is None else self.record.files.get(kind)
        path = self.folder / (f"{self.name}{ending}" if entry is None else Path(entry["path"]).name)
        with os_errors(path, "read"):
            if not path.is_file():
                raise DataError(f"{path}: a generated file expected, found none: generate it again")
            data = path.read_bytes()
        if entry is not None and sha256_hex(data) != entry["sha256"]:
            raise DataError(f"{path}: it is not what {self.name}.json says: generate it again")
        return path, data

    def motion(self) -> Motion:
        """Generated motion. Raises DataError for what cannot be read."""
        path, data = self._content("gesture", ".npz")
        try:
            return decode_motion(data)
        except RecordingFault as fault:
            raise DataError(f"{path}: {fault}") from fault

    def words(self) -> list[WordInterval]:
        """Generated words."""
        path, data = self._content("text", ".TextGrid")
        try:
            return list(decode_words(data).words)
        except RecordingFault as fault:
            if fault.problem.code == "textgrid-no-words":
                return []  # a model may say nothing: every word is then a deletion
            raise DataError(f"{path}: {fault}") from fault

    def mel(self) -> tuple[npt.NDArray[np.float32], str]:
        """The generated log-mel (F, 64), and whether it is the model's own or that of the waveform."""
        if self.record is not None and "mel" in self.record.files:
            path, data = self._content("mel", ".mel.npy")
            try:
                mel = np.load(io.BytesIO(data), allow_pickle=False)
            except ValueError as error:
                raise DataError(f"{path}: no .npy file of numbers: generate it again") from error
            if mel.ndim != 2 or mel.shape[1] != MEL_BANDS or mel.dtype != np.float32:
                raise DataError(f"{path}: (F, {MEL_BANDS}) float32 expected, found {mel.shape} {mel.dtype}")
            return mel, "the model's mel"
        path, data = self._content("audio", ".wav")
        try:
            wav = decode_wav(data)
            samples = resample(mix_down(wav.samples), wav.rate_hz)
            return log_mel(samples, len(samples) // HOP_SAMPLES), "mel of the waveform"
        except (RecordingFault, ValueError) as error:
            raise DataError(f"{path}: {error}") from error

    @property
    def seams(self) -> tuple[int, ...]:
        """Frames before which windows begin."""
        return () if self.record is None else tuple(round(s * FRAME_RATE_HZ) for s in self.record.seams_s)


def find_pairs(folders: Sequence[Path], shards: ShardFolder, task: str | None) -> list[Pair]:
    """Results in folders, or in their sub-folders, with the samples they are held against.

    Files without records need the name of their task. Raises UsageFault where there is none or a name is no sample's,
    DataError for damaged records.
    """
    rows = {name: row for row in shards.rows for name in (row.key, row.stem)}
    found = [pair for folder in folders for place in _places(folder) for pair in _pairs(place, rows, task, shards)]
    if not found:
        raise UsageFault(f"{folders[0]}: generated results expected, found none")
    return found


def _places(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise UsageFault(f"{folder}: a folder of generated results expected, found none there")
    below = sorted(path for path in folder.iterdir() if path.is_dir())
    yield from [folder, *below]


def _pairs(folder: Path, rows: Mapping[str, ManifestRow], task: str | None, shards: ShardFolder) -> Iterator[Pair]:
    records = sorted(folder.glob("*.json"))
    if records:
        for path in records:
            record = read_record(path)
            if record.task not in TASKS:
                raise DataError(f"{path}: task {record.task!r} is none: generate it again")
            if record.source is not None and record.source.get("start_tick"):
                raise UsageFault(
                    f"{path}: it is of a window from tick {record.source['start_tick']} on, which validation has "
                    "scored: take results of omniges generate"
                )
            key = record.name if record.source is None else str(record.source.get("key"))
            yield Pair(record.task, _row(rows, key, path, shards), folder, record.name, record)
        return
    kinds = {} if task is None else {name: _ENDINGS[name] for name in TASKS[task].targets}
    for path in sorted(folder.iterdir()):
        if path.suffix in _ENDINGS.values() and task is None:
            raise UsageFault(f"{path}: it has no record that tells its task: add --task, such as a2g")
        if path.suffix in kinds.values():
            yield Pair(str(task), _row(rows, path.stem, path, shards), folder, path.stem, None)


def _row(rows: Mapping[str, ManifestRow], key: str, path: Path, shards: ShardFolder) -> ManifestRow:
    if key not in rows:
        raise UsageFault(f"{path}: no sample of {shards.folder} is called {key}: give the shards it was made for")
    return rows[key]


def waveform(sample: SampleArrays) -> npt.NDArray[np.float32] | None:
    """A sample's kept audio at 16 kHz (N,), or None where the shards have none."""
    if sample.flac is not None:
        from omniges.recordings.flac import decode_flac  # noqa: PLC0415 - libsndfile, only where it was kept

        pcm, bits = decode_flac(sample.flac)
        return np.asarray(pcm / 2.0 ** (bits - 1), dtype=np.float32)
    return None if sample.audio is None else np.asarray(sample.audio)
