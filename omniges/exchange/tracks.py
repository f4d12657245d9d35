"""Tracks: the motion, sound and words of a sample, a result or a motion file, for pages, videos and exports.

A track is one version of a clip: its recording, or a result that a system generated for the clip. Tracks with the same
`clip` are shown side by side. Shape letters: T frames at 30 Hz, N audio samples, F mel frames at 100 Hz.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from omniges import arguments
from omniges.errors import DataError, RecordingFault, UsageFault
from omniges.features.audio import MEL_BANDS, mix_down_in_phase
from omniges.features.gesture import motion_from_gesture
from omniges.features.timebase import FRAME_RATE_HZ, MEL_RATE_HZ, SAMPLE_RATE_HZ, TICKS_PER_SECOND
from omniges.formats.arrays import decode_npy
from omniges.formats.audio import decode_wav
from omniges.formats.motion import SmplxMotion
from omniges.formats.npz import decode_motion
from omniges.formats.textgrid import WordInterval
from omniges.generation.records import FILE_ENDINGS, FORMAT, GeneratedRecord, read_record, spoken_intervals
from omniges.shards.manifest import ManifestRow
from omniges.shards.present import at_rest
from omniges.shards.reader import ShardFolder, file_betas
from omniges.shards.schema import DATASET_FILE, MOTION_PARTS, stem_from_key
from omniges.storage.files import parse_json, read_file, require_file, sha256_hex, visible_entries

F32 = npt.NDArray[np.float32]
T = TypeVar("T")
_Moving = tuple[SmplxMotion, tuple[str, ...], tuple[str, ...]]  # motion, absent parts, notes
_ReadMotion = Callable[[bytes], _Moving]

PREFIXES: Final = ("res_", "gt_")
"""Prefixes that the tools of EMAGE and MambaTalk add to the stem of a recording in file names."""

_MAX_BYTES: Final = 1 << 30
_BESIDE: Final[Mapping[str, tuple[str, ...]]] = {
    ".wav": (".", "../wave16k"),
    ".TextGrid": (".", "../textgrid", "../word"),
}
"""Folders of sound and words files, relative to the folder of the NPZ file: the same folder, or folders of BEAT2."""

_MOTION_FOLDERS: Final = ("smplxflame_30", "speakers_1234_smplx_neutral_npz")
"""Sub-folders of a BEAT2 folder that contain NPZ files."""


@dataclass(frozen=True, slots=True, eq=False)
class Sound:
    """Mono audio: samples (N,) and sampling rate in Hz."""

    samples: F32
    """(N,) amplitudes, nominally in [-1, 1]."""
    rate_hz: int


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """One version of a clip: motion, sound and words with a common time axis; each stream may be absent."""

    clip: str
    """Stem of the recording, or name of the input that the track was generated from."""
    name: str
    """Label that distinguishes the tracks of a clip."""
    motion: SmplxMotion | None
    """T frames at 30 Hz. Body parts without data are at rest; `absent` names these parts."""
    audio: Sound | None = None
    words: tuple[WordInterval, ...] | None = None
    """Words in order of time, without silences."""
    mel: F32 | None = None
    """Log-mel (F, 64), used if there is no waveform."""
    absent: tuple[str, ...] = ()
    """Parts of the body without data: upper, hands, lower, root, face, jaw_eyes."""
    notes: tuple[str, ...] = ()
    """Notes of the form ``code: what was found``.

    They report changes and guesses made when the motion file was read. They also report conditions that are not shown
    because their files have changed.
    """

    @property
    def seconds(self) -> float:
        """Length of the longest stream in seconds."""
        return max(
            0.0 if self.motion is None else len(self.motion.poses) / self.motion.frame_rate_hz,
            0.0 if self.audio is None else len(self.audio.samples) / self.audio.rate_hz,
            0.0 if self.mel is None else len(self.mel) / MEL_RATE_HZ,
            self.words[-1].end if self.words else 0.0,
        )

    def cut(self, start_s: float, seconds: float) -> Track:
        """Return a part of the track; times in the part start at 0.

        Args:
            start_s: Start in seconds, rounded to the nearest frame.
            seconds: Largest length in seconds; the part is shorter if the track ends earlier.

        Returns:
            The part, which may be empty.
        """
        first, stop = round(start_s * FRAME_RATE_HZ), round((start_s + seconds) * FRAME_RATE_HZ)
        start_s, stop_s = first / FRAME_RATE_HZ, stop / FRAME_RATE_HZ
        part: dict[str, Any] = {}
        if self.motion is not None:
            arrays = {name: getattr(self.motion, name)[first:stop] for name in ("poses", "trans", "expressions")}
            part["motion"] = replace(self.motion, **arrays)
        if self.audio is not None:
            ends = [round(moment * self.audio.rate_hz) for moment in (start_s, stop_s)]
            part["audio"] = replace(self.audio, samples=self.audio.samples[slice(*ends)])
        if self.mel is not None:
            part["mel"] = self.mel[round(start_s * MEL_RATE_HZ) : round(stop_s * MEL_RATE_HZ)]
        if self.words is not None:
            inside = [word for word in self.words if word.end > start_s and word.start < stop_s]
            part["words"] = tuple(
                WordInterval(word.word, max(word.start, start_s) - start_s, min(word.end, stop_s) - start_s)
                for word in inside
            )
        return replace(self, **part)


@dataclass(frozen=True, slots=True)
class _Found:
    """A track that was found but is not loaded yet."""

    clip: str
    name: str
    place: Path
    """Path that distinguishes the track from other tracks of the same name."""
    load: Callable[[str, str], Track]


def load_tracks(paths: Sequence[str | Path], keys: Sequence[str] = ()) -> Iterator[Track]:
    """Load the tracks at paths, one after the other.

    Args:
        paths: Folders and files that `find_tracks` accepts.
        keys: Keys or stems of samples to load from folders of shards; empty: see `find_tracks`.

    Yields:
        The tracks, in the order of the paths; each is loaded when it is yielded.
    """
    for load in find_tracks(paths, keys):
        yield load()


def find_tracks(
    paths: Sequence[str | Path],
    keys: Sequence[str] = (),
    only: Collection[str] | None = None,
    motion_rate_hz: float | None = None,
) -> list[Callable[[], Track]]:
    """Find the tracks at paths without loading them.

    `keys` selects samples from folders of shards. If `keys` is empty and all paths are folders of shards, all samples
    are used. If `keys` is empty and there are also other paths, a sample is used only if its clip is in one of these
    other paths.

    Args:
        paths: Folders of shards, folders of results of `omniges generate`, folders of NPZ files, NPZ files, WAV files,
            TextGrid files and records of results (NAME.json). ``LABEL=PATH`` gives tracks at PATH the name LABEL.
        keys: Keys or stems of samples to use from folders of shards; empty: see above.
        only: Names of the clips whose tracks are returned; None: all clips.
        motion_rate_hz: Frames per second, used only for motion files that do not state their frame rate.

    Returns:
        Functions in the order of the paths; each function loads one track. Tracks of one clip have different names.

    Raises:
        UsageFault: A path contains none of the listed files, or a key is unknown.
        DataError: A record, a manifest or dataset.json is damaged. The returned functions also raise DataError, if a
            file is damaged or missing.
    """
    read_motion = partial(_motion, rate_hz=motion_rate_hz)
    sources = [(label, path, _found(path, read_motion)) for label, path in map(_labelled, paths)]
    if keys and not any(isinstance(source, ShardFolder) for _, _, source in sources):
        raise UsageFault(f"--key {keys[0]}: expected a folder of shards among the paths, found none; remove --key")
    others = {found.clip for _, _, each in sources if not isinstance(each, ShardFolder) for found in each}
    chosen: list[_Found] = []
    for label, path, source in sources:
        here = _samples(path, source, keys, others) if isinstance(source, ShardFolder) else source
        chosen += [replace(found, name=label or found.name) for found in here]
    chosen = [found for found in chosen if only is None or found.clip in only]
    if not chosen:
        raise UsageFault(f"{paths[0]}: expected samples, results or motion files, found none; check the path")
    return [partial(found.load, found.clip, name) for found, name in zip(chosen, _distinct(chosen), strict=True)]


def _labelled(given: str | Path) -> tuple[str, Path]:
    """Return the label and path of ``LABEL=PATH``; a PATH without a label has the label ""."""
    label, equals, rest = str(given).partition("=")
    if not equals or "/" in label or Path(given).exists():
        label, rest = "", str(given)
    return label, arguments.path("PATH", rest)


def _distinct(found: Sequence[_Found]) -> list[str]:
    """Return track names that are unique within each clip.

    If tracks of a clip have equal names, each of these tracks gets the name of its folder as a suffix. If names are
    still equal, each gets a number as a suffix.
    """
    folders = [f"{one.name} ({one.place.parent.name or one.place.parent})" for one in found]
    clips = [one.clip for one in found]
    names = _unless_equal(clips, [one.name for one in found], folders)
    return _unless_equal(clips, names, [f"{name} {number}" for number, name in enumerate(names, 1)])


def _unless_equal(clips: Sequence[str], names: Sequence[str], longer: Sequence[str]) -> list[str]:
    count = Counter(zip(clips, names, strict=True))
    chosen = zip(clips, names, longer, strict=True)
    return [other if count[clip, name] > 1 else name for clip, name, other in chosen]


def _found(path: Path, read_motion: _ReadMotion) -> ShardFolder | list[_Found]:
    if path.is_dir():
        if (path / DATASET_FILE).exists():
            return ShardFolder(path)
        files = _results(path, read_motion)
        if not files:
            raise UsageFault(
                f"{path}: expected a folder of shards, of results or of NPZ files, found none of them; check the path"
            )
        return files
    require_file(path, "a folder of shards or results, or an NPZ, WAV or TextGrid")
    return [_file(path, read_motion)]


# --- files


def _file(path: Path, read_motion: _ReadMotion) -> _Found:
    kind = path.suffix.lower()
    if kind == ".json":
        return _result(path, read_record(path), read_motion)
    if kind not in {".npz", ".wav", ".textgrid"}:
        raise UsageFault(
            f"{path}: expected a name that ends in .npz, .wav, .TextGrid or, for a result, .json; rename the file, "
            "or give another"
        )
    clip = next((path.stem.removeprefix(prefix) for prefix in PREFIXES if path.stem.startswith(prefix)), path.stem)
    load = partial(_of_motion_file, path, read_motion) if kind == ".npz" else partial(_of_side_file, path)
    return _Found(clip, path.stem, path, load)


def _of_motion_file(path: Path, read_motion: _ReadMotion, clip: str, name: str) -> Track:
    sound, words = (_beside(path, clip, ending) for ending in _BESIDE)
    motion, absent, notes = decoded(path, read_file(path, _MAX_BYTES), read_motion)
    return Track(
        clip,
        name,
        motion,
        absent=absent,
        audio=None if sound is None else decoded(sound, read_file(sound, _MAX_BYTES), _sound),
        words=None if words is None else decoded(words, read_file(words, _MAX_BYTES), _words),
        notes=notes,
    )


def _of_side_file(path: Path, clip: str, name: str) -> Track:
    data = read_file(path, _MAX_BYTES)
    if path.suffix.lower() == ".wav":
        return Track(clip, name, None, audio=decoded(path, data, _sound))
    return Track(clip, name, None, words=decoded(path, data, _words))


def _beside(path: Path, clip: str, ending: str) -> Path | None:
    """Return the path of the sound file (``.wav``) or words file (``.TextGrid``) that belongs to a motion file.

    The stem of this file is the stem of the motion file, or `clip`. The folder of the motion file is searched first,
    then the folders that BEAT2 uses. Return None if the file does not exist.
    """
    places = [path.parent / folder / f"{stem}{ending}" for folder in _BESIDE[ending] for stem in (path.stem, clip)]
    return next((place for place in places if os.path.lexists(place)), None)  # reading refuses a folder


def decoded(path: Path, data: bytes, decode: Callable[[bytes], T]) -> T:
    """Decode the content of a file, and name the file in the error if the content is rejected.

    Args:
        path: Path of the file, for the error.
        data: Content of the file.
        decode: Function that decodes the content. It raises RecordingFault for content that `preprocess` rejects.

    Returns:
        The result of `decode`.

    Raises:
        DataError: `decode` has raised RecordingFault.
    """
    try:
        return decode(data)
    except RecordingFault as fault:
        raise fault.refusal(path) from fault


def _motion(data: bytes, *, standing: bool = True, rate_hz: float | None = None) -> _Moving:
    """Decode an NPZ file; return its motion with absent parts at rest, the names of the absent parts, and notes.

    If `standing` is True, a body that does not stand upright is refused.
    """
    found = decode_motion(data, standing=standing, rate_hz=rate_hz)
    motion, betas = found.at_rest(), found.betas[: found.betas_columns]
    absent = tuple(part for part in MOTION_PARTS if part in found.absent)
    notes = tuple(f"{note.code}: {note.found}" for note in found.notes)
    return SmplxMotion(motion.poses, motion.trans, motion.expressions, betas, gender=motion.gender), absent, notes


def _sound(data: bytes) -> Sound:
    wav = decode_wav(data)
    return Sound(mix_down_in_phase(wav.samples), wav.rate_hz)


def _words(data: bytes) -> tuple[WordInterval, ...]:
    return tuple(spoken_intervals(data)[0])


# --- results


def records(folder: Path) -> list[Path]:
    """Return the paths of records in a folder and its direct sub-folders; raise DataError for a damaged record."""
    places = [folder, *(each for each in visible_entries(folder) if each.is_dir())]
    found = [path for place in places for path in visible_entries(place) if path.suffix == ".json"]
    return [path for path in found if is_record(path)]


def motion_files(folder: Path) -> list[Path]:
    """Return the paths of the NPZ files in a folder and, for a BEAT2 folder, in its motion folders."""
    folders = [folder, *(folder / name for name in _MOTION_FOLDERS if (folder / name).is_dir())]
    return [path for each in folders for path in visible_entries(each) if path.suffix == ".npz"]


def unlisted_files(folder: Path, results: Mapping[Path, GeneratedRecord]) -> list[Path]:
    """Return the NPZ files that no record lists. Search a folder of results, and its sub-folders that contain records.

    Args:
        folder: Folder of results.
        results: All records in the folder and its sub-folders, by path.

    Returns:
        Paths of the NPZ files.
    """
    listed = {path.parent / entry["path"] for path, record in results.items() for entry in record.files.values()}
    folders = dict.fromkeys([folder, *(path.parent for path in results)])
    return [path for each in folders for path in motion_files(each) if path not in listed]


def _results(folder: Path, read_motion: _ReadMotion) -> list[_Found]:
    """Return the tracks of the results in a folder, and the tracks of the NPZ files that no record lists."""
    found = {path: read_record(path) for path in records(folder)}
    results = [_result(path, record, read_motion) for path, record in found.items()]
    return results + [_file(path, read_motion) for path in unlisted_files(folder, found)]


def _result(path: Path, record: GeneratedRecord, read_motion: _ReadMotion) -> _Found:
    source = record.source or {}
    clip = record.name.removesuffix(f"-{record.sample + 1}")
    if isinstance(source.get("key"), str):
        clip = stem_from_key(source["key"])
    if source.get("start_tick"):
        clip += f" from {source['start_tick'] / TICKS_PER_SECOND:g} s"
    number = f" {record.sample + 1}" if record.sample else ""
    return _Found(clip, f"generated {record.task}{number}", path, partial(_of_result, path, record, read_motion))


def is_record(path: Path, *, named: bool = False) -> bool:
    """Return whether a JSON file is the record of a result, and not another file, such as a report.

    A file that is not valid JSON may be a damaged record. It is treated as a damaged record in three cases: the user
    named the file, the file contains the name of the record format, or its folder contains a result file with the same
    stem.

    Args:
        path: The JSON file.
        named: Whether the user named this file.

    Returns:
        True for a record. False for other JSON, and for invalid JSON that is not treated as a damaged record.

    Raises:
        DataError: The file is a damaged record.
    """
    data = read_file(path, _MAX_BYTES, path.parent)
    try:
        found = parse_json(data)
    except ValueError as error:
        endings = (ending for each in FILE_ENDINGS.values() for ending in each)
        if named or FORMAT.encode() in data or any(os.path.lexists(path.with_suffix(ending)) for ending in endings):
            raise DataError(
                f"{path}: expected the record of a result, found damage ({error}); generate it again, or give the "
                "result's files without their record"
            ) from error
        return False
    return isinstance(found, dict) and found.get("format") == FORMAT


def _of_result(path: Path, record: GeneratedRecord, read_motion: _ReadMotion, clip: str, name: str) -> Track:
    """Load a result, and the condition files of streams that were not generated.

    A missing condition file is skipped. A changed condition file is skipped with a note.
    """
    files = {
        kind: _checked_file(path.parent / entry["path"], entry["sha256"], decode)
        for kind, decode in _DECODERS.items()
        if (entry := record.files.get(kind)) is not None
    }
    generated, changed = "gesture" in files, []
    for given in record.inputs:
        place = Path(str(given.get("path")))
        kind = _CONDITIONS.get(place.suffix.lower())
        if kind is not None and kind not in files and place.is_file():
            data = read_file(place, _MAX_BYTES)
            if sha256_hex(data) == given.get("sha256"):
                files[kind] = decoded(place, data, read_motion if kind == "gesture" else _DECODERS[kind])
            else:
                changed.append(f"condition-changed: {place} is not the file that the result was generated from")
    motion, absent, notes = files.get("gesture", (None, (), ()))
    if generated:
        absent = record.at_rest
    mel = None if "audio" in files else files.get("mel")
    return Track(clip, name, motion, files.get("audio"), files.get("text"), mel, absent, (*notes, *changed))


def _checked_file(path: Path, sha256: str, decode: Callable[[bytes], Any]) -> Any:
    try:
        data = read_file(path, _MAX_BYTES, path.parent)
    except FileNotFoundError as error:
        raise DataError(f"{path}: expected a file of a result, found none; generate it again") from error
    if sha256_hex(data) != sha256:
        raise DataError(f"{path}: expected the sha256 in its record, found another sha256; generate it again")
    return decoded(path, data, decode)


def _mel(data: bytes) -> F32:
    mel = decode_npy(data)
    if mel.ndim != 2 or mel.shape[1] != MEL_BANDS or mel.dtype != np.float32:
        raise RecordingFault("npz-wrong-shape", f"a mel {mel.shape} of {mel.dtype}", f"(F, {MEL_BANDS}) float32")
    if not np.isfinite(mel).all():
        raise RecordingFault("npz-not-finite", "a mel with values that are not finite", "finite numbers")
    return mel


_DECODERS: Final[Mapping[str, Callable[[bytes], Any]]] = {
    "gesture": partial(_motion, standing=False),
    "audio": _sound,
    "mel": _mel,
    "text": _words,
}
_CONDITIONS: Final = {".npz": "gesture", ".wav": "audio", ".textgrid": "text"}


# --- shards


def _samples(path: Path, folder: ShardFolder, keys: Sequence[str], others: set[str]) -> list[_Found]:
    rows = [folder.row(key) for key in keys] or list(folder.rows)
    if others and not keys:
        rows = [row for row in rows if row.stem in others]
    return [_Found(row.stem, "recorded", path / "shards", partial(_of_sample, folder, row)) for row in rows]


def _of_sample(folder: ShardFolder, row: ManifestRow, clip: str, name: str) -> Track:
    sample = folder.sample(row)
    motion = None
    if {*MOTION_PARTS} & {*row.present}:
        try:
            arrays = motion_from_gesture(at_rest(sample.gesture, row.present))
        except ValueError as error:
            raise DataError(f"{row.shard}: {row.key}.gesture.npy: {error}") from error
        gender = str(sample.metadata["motion"]["gender"])
        motion = SmplxMotion(arrays.poses, arrays.trans, arrays.expressions, file_betas(sample), gender=gender)
    has_audio = "audio" in row.present
    return Track(
        clip,
        name,
        motion,
        audio=None if sample.audio is None else Sound(sample.audio, SAMPLE_RATE_HZ),
        words=tuple(map(WordInterval.of, sample.words)) if "text" in row.present else None,
        mel=sample.mel if has_audio and sample.audio is None else None,
        absent=tuple(part for part in MOTION_PARTS if part not in row.present) if motion is not None else (),
    )
