"""Descriptions of files for `omniges inspect`: motion, audio, words, and results of `omniges generate`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from omniges.errors import DataError, Problem, RecordingFault, UsageFault, first_of
from omniges.exchange.facts import Inspected, print_fields, range_cells, range_of, require_start
from omniges.exchange.tracks import F32, Track, decoded, find_tracks, motion_files, records, unlisted_files
from omniges.features.audio import MEL_BANDS, N_FFT, log_mel, resample
from omniges.features.gesture import LAYOUT, gesture_from_motion
from omniges.features.timebase import FRAME_RATE_HZ, HOP_SAMPLES, MEL_RATE_HZ, SAMPLE_RATE_HZ, TICKS_PER_SECOND
from omniges.formats.arrays import F64, Archive
from omniges.formats.audio import decode_wav
from omniges.formats.npz import Motion, decode_motion
from omniges.formats.textgrid import decode_words
from omniges.generation.records import GeneratedRecord, read_record
from omniges.model.tasks import TASKS
from omniges.pipeline.summary import print_line, print_table
from omniges.progress import counted
from omniges.shards.present import CHANNELS_OF
from omniges.shards.reader import ShardFolder
from omniges.shards.schema import DATASET_FILE, MANIFEST_FILE, MOTION_PARTS, is_count
from omniges.storage.files import read_file
from omniges.visualize.pictures import MAX_S, Role, Row, Stream, draw_result, draw_sample

if TYPE_CHECKING:
    from rich.console import Console

_MAX_BYTES: Final = 1 << 30
_SHOWN: Final = 20
_SHOWN_WORDS: Final = 12
_ARRAYS: Final = ("poses", "trans", "expressions", "betas")
_STREAM_OF: Final[dict[str, Stream]] = {"gesture": "gesture", "audio": "audio", "mel": "audio", "text": "text"}
"""Stream to which each type of result file belongs."""
_AROUND_S: Final = 0.5


def _notes(notes: Iterable[Problem]) -> list[dict[str, str]]:
    return [{"code": note.code, "found": note.found, "expected": note.expected} for note in notes]


def _note_fields(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (name, text) table rows with the notes that `preprocess` would report for the file."""
    for note in facts.get("notes", ()):
        yield "note", f"{note['code']}: expected {note['expected']}, found {note['found']}"


# --- motion


def inspect_motion(path: Path, motion_rate_hz: float | None = None) -> Inspected:
    """Describe a motion file.

    Args:
        path: NPZ file with SMPL-X motion.
        motion_rate_hz: Frames per second, used only if the file does not state its frame rate.

    Returns:
        Keys, length, rate, present parts, value ranges, body, and the notes that `preprocess` would report. For a file
        that `preprocess` would reject: only the keys and the reason.

    Raises:
        DataError: The file is not an NPZ archive.
    """
    data = read_file(path, _MAX_BYTES)
    keys = decoded(path, data, lambda content: _keys(Archive(content)))
    facts: dict[str, Any] = {"kind": "motion", "file": str(path), "bytes": len(data), "keys": keys}
    try:
        motion = decode_motion(data, rate_hz=motion_rate_hz)
    except RecordingFault as fault:
        facts["rejected"] = _notes([fault.problem])[0]
        return Inspected(facts, partial(_print_motion, facts), fault=fault.refusal(path))
    facts |= _motion_facts(motion)
    draw = partial(_draw_track, path, motion_rate_hz)
    return Inspected(facts, partial(_print_motion, facts), draw, playable=True)


def _keys(archive: Archive) -> dict[str, dict[str, Any]]:
    """Return shape and type of each array, by key. Both are None for arrays that are not read (pickled objects)."""
    found: dict[str, dict[str, Any]] = {}
    for key in archive.keys:
        try:
            member = archive.header(key) if key in archive else None
        except RecordingFault:
            member = None
        found[key] = {"shape": member and list(member.shape), "dtype": member and member.dtype}
    return found


def _motion_facts(motion: Motion) -> dict[str, Any]:
    arrays = {name: getattr(motion, name) for name in _ARRAYS}
    arrays["betas"] = arrays["betas"][: motion.betas_columns]
    return {
        "key_style": motion.key_style,
        "source_frames": motion.source_frames,
        "frame_rate_hz": motion.frame_rate_hz,
        "frames": len(motion.poses),
        "seconds": len(motion.poses) / FRAME_RATE_HZ,
        "present": [part for part in MOTION_PARTS if part not in motion.absent],
        "absent": [part for part in MOTION_PARTS if part in motion.absent],
        "gender": motion.gender,
        "model": motion.model,
        "betas": motion.betas_columns,
        "arrays": {name: range_of(array) for name, array in arrays.items()},
        "notes": _notes(motion.notes),
    }


def _print_motion(facts: dict[str, Any], console: Console) -> None:
    keys = [
        (
            key,
            "not read" if of["dtype"] is None else " × ".join(map(str, of["shape"])) or "one value",
            of["dtype"] or "–",
        )
        for key, of in facts["keys"].items()
    ]
    print_table(console, ("key", "shape", "type"), keys)
    if "rejected" in facts:
        return
    fields = [
        ("length", f"{facts['seconds']:.3f} s, {counted(facts['frames'], 'frame')} at {FRAME_RATE_HZ} per second"),
        ("in the file", f"{counted(facts['source_frames'], 'frame')} at {facts['frame_rate_hz']} per second"),
        ("present", ", ".join(facts["present"])),
        ("absent", ", ".join(facts["absent"])),
        ("betas", facts["betas"]),
        ("gender", facts["gender"]),
        ("model", facts["model"]),
    ]
    print_fields(console, chain(fields, _note_fields(facts)))
    rows = [(name, *range_cells(of)) for name, of in facts["arrays"].items()]
    print_table(console, ("array", "min", "mean", "max"), rows, (1, 2, 3))


def inspect_motion_folder(folder: Path, motion_rate_hz: float | None = None) -> Inspected:
    """Describe the motion files in a folder.

    Args:
        folder: Folder of NPZ files. If it is a BEAT2 folder, its motion folders are searched too.
        motion_rate_hz: Frames per second, used only for files that do not state their frame rate.

    Returns:
        Length, rate, absent parts and notes of each file, or the reason why `preprocess` would reject the file.
    """
    files = []
    for path in motion_files(folder):
        found: dict[str, Any] = {"file": str(path.relative_to(folder))}
        try:
            facts = _motion_facts(decode_motion(read_file(path, _MAX_BYTES, folder), rate_hz=motion_rate_hz))
            names = ("frames", "seconds", "frame_rate_hz", "absent", "notes")
            found |= {name: facts[name] for name in names}
        except RecordingFault as fault:
            found["rejected"] = _notes([fault.problem])[0]
        except DataError as error:  # a link to a file outside of the folder, or a file of over 1 GiB
            found["rejected"] = {"code": "not-read", "found": str(error), "expected": "a file in the folder"}
        files.append(found)
    facts = {"kind": "motion files", "folder": str(folder), "files": files}
    return Inspected(facts, partial(_print_motion_folder, facts), playable=True)


def _print_motion_folder(facts: dict[str, Any], console: Console) -> None:
    rows = []
    for of in facts["files"][:_SHOWN]:
        if "rejected" in of:
            rows.append((of["file"], "–", "–", "–", "–", f"rejected: {of['rejected']['code']}"))
        else:
            notes = ", ".join(note["code"] for note in of["notes"]) or "–"
            absent = ", ".join(of["absent"]) or "–"
            rows.append((of["file"], of["frames"], f"{of['seconds']:.1f}", of["frame_rate_hz"], absent, notes))
    print_table(console, ("file", "frames", "seconds", "rate", "absent", "notes"), rows, (1, 2, 3))
    if len(facts["files"]) > _SHOWN:
        print_line(console, f"… and {len(facts['files']) - _SHOWN} more (--format json lists all)")
    if rejected := [of["file"] for of in facts["files"] if "rejected" in of]:
        print_line(console, f"{counted(len(rejected), 'file')} rejected: {first_of(rejected, 3)}")


# --- audio and words


def inspect_audio(path: Path) -> Inspected:
    """Describe a WAV file; raise DataError if `preprocess` would reject the file."""
    data = read_file(path, _MAX_BYTES)
    wav = decoded(path, data, decode_wav)
    facts = {
        "kind": "audio",
        "file": str(path),
        "bytes": len(data),
        "seconds": len(wav.samples) / wav.rate_hz,
        "samples": len(wav.samples),
        "sample_rate_hz": wav.rate_hz,
        "channels": wav.channels,
        "encoding": wav.encoding,
        "peak": float(np.abs(wav.samples).max()),
        "rms": float(np.sqrt(np.mean(np.square(wav.samples, dtype=np.float64)))),
        "notes": _notes([*wav.notes, *_changes(wav.rate_hz, wav.channels)]),
    }
    return Inspected(facts, partial(_print_audio, facts), partial(_draw_track, path, None), playable=True)


def _changes(rate_hz: int, channels: int) -> Iterator[Problem]:
    """Yield the notes on changes that `preprocess` would make to audio: resampling and mixing to mono."""
    if rate_hz != SAMPLE_RATE_HZ:
        yield Problem("audio-resampled", f"{rate_hz} Hz", f"{SAMPLE_RATE_HZ} Hz")
    if channels != 1:
        yield Problem("audio-mixed-down", f"{channels} channels", "1")


def _print_audio(facts: dict[str, Any], console: Console) -> None:
    fields = [
        ("length", f"{facts['seconds']:.3f} s, {facts['samples']} samples"),
        ("sample rate", f"{facts['sample_rate_hz']} Hz"),
        ("channels", facts["channels"]),
        ("encoding", facts["encoding"]),
        ("peak, RMS", f"{facts['peak']:.4g}, {facts['rms']:.4g}"),
    ]
    print_fields(console, chain(fields, _note_fields(facts)))


def inspect_words(path: Path) -> Inspected:
    """Describe the word tier of a TextGrid; raise DataError if `preprocess` would reject the file."""
    tier = decoded(path, read_file(path, _MAX_BYTES), decode_words)
    facts = {
        "kind": "words",
        "file": str(path),
        "seconds": tier.xmax_s,
        "tier": tier.tier_name,
        "words": [asdict(word) for word in tier.words],
        "notes": _notes(tier.notes),
    }
    return Inspected(facts, partial(_print_words, facts), partial(_draw_track, path, None), playable=True)


def _print_words(facts: dict[str, Any], console: Console) -> None:
    words = facts["words"]
    shown = "  ".join(f"{word['start']:.2f} {word['word']}" for word in words[:_SHOWN_WORDS])
    fields = [
        ("length", f"{facts['seconds']:.3f} s"),
        ("tier", facts["tier"]),
        ("words", len(words)),
        ("first words", shown + (" …" if len(words) > _SHOWN_WORDS else "")),
    ]
    print_fields(console, chain(fields, _note_fields(facts)))


# --- results


def inspect_result(path: Path, motion_rate_hz: float | None = None) -> Inspected:
    """Describe a generated result.

    Args:
        path: Record of the result.
        motion_rate_hz: Frames per second of a motion file that is a condition. This value is used only for the picture
            of the result, and only if the motion file does not state its frame rate.

    Returns:
        The fields of the record, and a function that draws the result.

    Raises:
        DataError: The record is damaged.
    """
    record = read_record(path)
    facts = {"kind": "result", "file": str(path)} | asdict(record)
    draw = partial(_draw_result, path, record, motion_rate_hz)
    return Inspected(facts, partial(_print_result, record), draw, playable=True)


def _print_result(record: GeneratedRecord, console: Console) -> None:
    model, settings = record.model, record.settings
    fields: list[tuple[str, Any]] = [
        ("name", record.name),
        ("task", record.task),
        ("length", f"{record.seconds:.1f} s"),
        ("checkpoint", model.get("checkpoint")),
        ("step, weights", f"{model.get('step')}, {model.get('weights')}"),
        ("seed", settings.get("seed")),
        ("sample", record.sample + 1),
        ("speaker", settings.get("speaker")),
        ("recording", (record.source or {}).get("key")),
    ]
    fields += [("condition", f"{given.get('stream')} {given.get('path')}") for given in record.inputs]
    known = {"seed", "speaker"}
    fields += [(f"setting {name}", value) for name, value in settings.items() if name not in known]
    fields += [(kind, entry["path"]) for kind, entry in record.files.items()]
    fields += [(f"measure {name}", f"{value:.4g}") for name, value in record.measures.items()]
    fields += [("at rest", ", ".join(record.absent)), *(("warning", one) for one in record.remarks)]
    fields.append(("omniges", record.omniges))
    print_fields(console, fields)


def inspect_results(folder: Path) -> Inspected:
    """Describe each result in a folder: task, length, checkpoint, seed, files and warnings.

    Motion files without a record are listed too. Raise DataError if a record is damaged.
    """
    found = {path: read_record(path) for path in records(folder)}
    results = [
        {
            "file": str(path.relative_to(folder)),
            "task": record.task,
            "seconds": record.seconds,
            "checkpoint": record.model.get("checkpoint"),
            "step": record.model.get("step"),
            "seed": record.settings.get("seed"),
            "files": {kind: entry["path"] for kind, entry in record.files.items()},
            "warnings": list(record.remarks),
        }
        for path, record in found.items()
    ]
    unlisted = [str(path.relative_to(folder)) for path in unlisted_files(folder, found)]
    facts = {"kind": "results", "folder": str(folder), "results": results, "without_record": unlisted}
    return Inspected(facts, partial(_print_results, facts), playable=True)


def _print_results(facts: dict[str, Any], console: Console) -> None:
    rows = [
        (
            *(of["file"], of["task"], f"{of['seconds']:.1f}", of["checkpoint"], of["step"], of["seed"]),
            *(", ".join(of["files"]), len(of["warnings"])),
        )
        for of in facts["results"][:_SHOWN]
    ]
    columns = ("result", "task", "seconds", "checkpoint", "step", "seed", "files", "warnings")
    print_table(console, columns, rows, (2, 4, 5, 7))
    if len(facts["results"]) > _SHOWN:
        print_line(console, f"… and {len(facts['results']) - _SHOWN} more (--format json lists all)")
    if lost := facts["without_record"]:
        print_line(console, f"{counted(len(lost), 'motion file')} without a record: {first_of(lost, 3)}")


# --- pictures


def _draw_track(path: Path, motion_rate_hz: float | None, start_s: float, seconds: float | None) -> bytes:
    """Draw a motion file with the sound and words that belong to it, or draw one WAV or TextGrid file alone."""
    (load,) = find_tracks([path], motion_rate_hz=motion_rate_hz)
    track = load()
    time: dict[str, Any] = {"start_s": start_s, "seconds": seconds}
    if track.motion is None:
        require_start(start_s, track.seconds, path.name)
        shown = _needed(track, start_s, seconds)
        rows = list(_rows(shown, "recorded"))
        return draw_result(title=path.name, rows=rows, length_s=track.seconds, **time)
    length_s = len(track.motion.poses) / FRAME_RATE_HZ
    require_start(start_s, length_s, path.name)
    shown = _needed(track, start_s, seconds)
    gesture, jaw_eyes, start_xz = _channels(shown.track)
    return draw_sample(
        title=track.name,
        gesture=gesture,
        jaw_eyes=jaw_eyes,
        start_xz=start_xz,
        mel=_mel(shown.track),
        words=shown.words or (),
        begins_s=shown.begins_s,
        length_s=length_s,
        **time,
    )


def _draw_result(
    path: Path, record: GeneratedRecord, motion_rate_hz: float | None, start_s: float, seconds: float | None
) -> bytes:
    """Draw the conditions, then the result, then the recording, one below the other in one picture.

    A condition or the recording is left out if its files are missing, or have changed since the generation.
    """
    (load,) = find_tracks([path], motion_rate_hz=motion_rate_hz)
    require_start(start_s, record.seconds, record.name)
    recorded = _recording_of(record)
    of_result = _needed(load(), start_s, seconds)
    conditions = TASKS[record.task].conditions
    targets = {stream for kind in record.files if (stream := _STREAM_OF.get(kind))}
    rows = [row for row in _rows(of_result, "condition") if row.stream not in targets]
    known = {row.stream for row in rows}
    of_recording = [] if recorded is None else list(_rows(_needed(recorded, start_s, seconds), "condition"))
    rows += [row for row in of_recording if row.stream in conditions and row.stream not in known]
    rows += [row for row in _rows(of_result, "generated") if row.stream in targets]
    rows += [replace(row, role="recorded") for row in of_recording if row.stream in targets and conditions]
    title = f"{record.name} ({record.task})"
    return draw_result(title=title, rows=rows, length_s=record.seconds, start_s=start_s, seconds=seconds)


@dataclass(frozen=True, slots=True, eq=False)
class _Needed:
    """The part of a track that a picture needs, so that nothing is computed for the rest of a long clip."""

    track: Track
    begins_s: float
    """Start of `track` within the complete track, in seconds."""
    words: list[dict[str, Any]] | None
    """All words of the complete track, with times in seconds from its start."""


def _needed(track: Track, start_s: float, seconds: float | None) -> _Needed:
    """Return the part of a track that a picture shows, and 0.5 s before and after it for the FFT windows of the mel."""
    begins_s = max(0, math.floor((start_s - _AROUND_S) * TICKS_PER_SECOND)) / TICKS_PER_SECOND
    longest_s = min(MAX_S, math.inf if seconds is None else seconds)
    words = None if track.words is None else [asdict(word) for word in track.words]
    return _Needed(track.cut(begins_s, start_s - begins_s + longest_s + _AROUND_S), begins_s, words)


def _recording_of(record: GeneratedRecord) -> Track | None:
    """Return the recording of a result, cut to the part that the result covers.

    Return None if the result has no recording, or if the shards are missing or have changed.
    """
    source = record.source or {}
    folder, key = source.get("shards"), source.get("key")
    if not (isinstance(folder, str) and isinstance(key, str) and (Path(folder) / DATASET_FILE).is_file()):
        return None
    shards = ShardFolder(Path(folder))
    if shards.dataset["files"][MANIFEST_FILE]["sha256"] != source.get("manifest_sha256"):
        return None
    (load,) = find_tracks([folder], [key])
    start_tick: Any = source.get("start_tick")
    first_s = start_tick / TICKS_PER_SECOND if is_count(start_tick) else 0.0
    return load().cut(first_s, record.seconds)


def _rows(needed: _Needed, role: Role) -> Iterator[Row]:
    """Yield one picture row for each stream of a track; `role` labels it condition, generated or recorded."""
    track, begins_s = needed.track, needed.begins_s
    if needed.words is not None:
        yield Row(role, "text", needed.words)
    if track.mel is not None or track.audio is not None:
        yield Row(role, "audio", _mel(track), begins_s)
    if track.motion is not None and len(track.motion.poses) < 2:  # the motion ends before the part
        yield Row(role, "gesture", np.zeros((0, LAYOUT.channels), np.float32), begins_s)
    elif track.motion is not None:
        gesture, _, (x, z) = _channels(track)
        yield Row(role, "gesture", gesture, begins_s, (float(x), float(z)))


def _channels(track: Track) -> tuple[F32, F32, F64]:
    """Return gesture (T, 415), jaw and eyes (T, 9), and x and z (2,) of the root in the first of the T frames.

    Values of absent parts are NaN. Raise UsageFault if the track has fewer than two frames of motion.
    """
    motion = track.motion
    if motion is None or len(motion.poses) < 2:
        raise UsageFault(
            f"{track.clip}: expected motion of at least two frames for a picture, found less; remove --png"
        )
    clip = gesture_from_motion(motion.poses, motion.expressions, motion.trans)
    gesture, jaw_eyes, start_xz = clip.gesture, clip.jaw_eyes.copy(), clip.start_xz.copy()
    for part, columns in CHANNELS_OF.items():
        if part in track.absent:
            gesture[:, columns] = np.nan
    if "jaw_eyes" in track.absent:
        jaw_eyes[:] = np.nan
    if "root" in track.absent:
        start_xz[:] = np.nan
    return gesture, jaw_eyes, start_xz


def _mel(track: Track) -> F32:
    """Return the log-mel (M, 64) of a track, with M mel frames at 100 Hz.

    M is 0 if the track has no sound, or if its sound is not longer than an FFT window.
    """
    if track.mel is not None:
        return track.mel
    samples = np.zeros(0, np.float32) if track.audio is None else resample(track.audio.samples, track.audio.rate_hz)
    frames = min(1 + len(samples) // HOP_SAMPLES, round(track.seconds * MEL_RATE_HZ))
    return log_mel(samples, frames) if len(samples) > N_FFT else np.zeros((0, MEL_BANDS), np.float32)
