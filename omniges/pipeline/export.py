"""Export of shards to files of BEAT2: SMPL-X NPZ, TextGrid, and WAV if the shards contain the audio."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError, UsageFault
from omniges.features.gesture import POSE_PARTS, motion_from_gesture
from omniges.features.timebase import SAMPLE_RATE_HZ
from omniges.formats.audio import encode_pcm_wav, encode_wav
from omniges.formats.npz import write_motion
from omniges.formats.textgrid import WordInterval, encode_words
from omniges.pipeline.labels import encode_split_list
from omniges.shards.reader import SampleArrays, ShardFolder, file_betas
from omniges.shards.schema import MOTION_PARTS, VERIFY
from omniges.storage.atomic import make_folder, publish_bytes
from omniges.storage.files import visible_entries

_FOLDERS: Final = {"npz": "smplxflame_30", "textgrid": "textgrid", "wav": "wave16k"}
_ENDINGS: Final = {"npz": "npz", "textgrid": "TextGrid", "wav": "wav"}


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """Result of `export`: the folder, the numbers of samples and of written files, and the path of the split list."""

    folder: Path
    samples: int
    with_motion: int
    with_text: int
    with_audio: int
    split_list: Path


def export(
    shards: Path, out: Path, keys: Sequence[str] = (), progress: Callable[[int, int], None] | None = None
) -> ExportSummary:
    """Write samples as files in BEAT2's official folder layout, and write a split list of these samples.

    Rotations are restored within 1e-5 rad, and positions within 1e-5 m. An NPZ is written only for samples with motion,
    a TextGrid only for samples with text, and a WAV only for samples whose audio is stored in the shards.

    Args:
        shards: Folder of shards.
        out: New or empty output folder.
        keys: Keys or stems of samples; all samples if empty.
        progress: Function that is called with (done, total) samples.

    Returns:
        The numbers of samples and of written files, and the paths of the folder and the split list.

    Raises:
        UsageFault: `out` already contains files, or a key is unknown.
        DataError: A shard is damaged.
    """
    source = ShardFolder(shards)
    named = {row.key: row for row in map(source.row, keys)}  # a sample that is named twice is written once
    rows = list(named.values()) if keys else list(source.rows)
    if out.exists() and (not out.is_dir() or visible_entries(out)):
        raise UsageFault(f"-o {out}: expected a new or empty folder, found files in it; choose another folder")
    for name in _FOLDERS.values():
        make_folder(out / name)
    counts = dict.fromkeys(_FOLDERS, 0)
    for done, row in enumerate(rows, 1):
        sample = source.sample(row)
        moved = bool({*MOTION_PARTS} & {*row.present})
        files = {
            "npz": motion_file(sample) if moved else None,
            "textgrid": text_file(sample) if "text" in row.present else None,
            "wav": audio_file(sample),
        }
        for name, data in files.items():
            if data is not None:
                publish_bytes(out / _FOLDERS[name] / f"{row.stem}.{_ENDINGS[name]}", data)
                counts[name] += 1
        if progress:
            progress(done, len(rows))
    split_list = out / "train_test_split.csv"
    publish_bytes(split_list, encode_split_list((row.stem, row.split) for row in sorted(rows, key=lambda row: row.key)))
    return ExportSummary(out, len(rows), counts["npz"], counts["textgrid"], counts["wav"], split_list)


def motion_file(sample: SampleArrays) -> bytes:
    """Return a sample's motion as the bytes of a BEAT2 NPZ.

    An array is left out if all its parts are absent. In ``poses``, the columns of absent parts are NaN.
    """
    try:
        motion = motion_from_gesture(sample.gesture)
    except ValueError as error:
        raise DataError(f"{sample.row.shard}: {sample.row.key}.gesture.npy: {error}") from error
    present, facts = sample.row.present, sample.metadata["motion"]
    blocks = {"poses": [motion.poses], "expressions": [motion.expressions], "trans": [motion.trans]}
    shown = {"poses": POSE_PARTS, "expressions": ("face",), "trans": ("root",)}
    stream = io.BytesIO()
    write_motion(
        stream,
        sample.row.frames,
        {name: array for name, array in blocks.items() if {*shown[name]} & {*present}},
        file_betas(sample),
        gender=facts["gender"],
        model=facts["model"],
    )
    return stream.getvalue()


def text_file(sample: SampleArrays) -> bytes:
    """Return a sample's words as a TextGrid that ends with the clip; raise DataError if times are invalid."""
    words = [WordInterval(word["word"], word["start"], word["end"]) for word in sample.words]
    try:
        return encode_words(words, sample.row.seconds)
    except ValueError as error:
        raise DataError(
            f"{sample.row.shard}: {sample.row.key}.{sample.row.contract.words}: {error}; {VERIFY}"
        ) from error


def audio_file(sample: SampleArrays) -> bytes | None:
    """Return a sample's waveform as a 16 kHz WAV with exactly the stored values; None if no audio is stored.

    Raise DataError if a value is NaN, infinite, or outside the range of the source's encoding.
    """
    if sample.audio is None:
        return None
    source = sample.metadata["audio"]
    bits = {"pcm16": 16, "pcm24": 24}.get(source["encoding"])
    unchanged = (source["rate_hz"], source["channels"]) == (SAMPLE_RATE_HZ, 1)
    try:
        return _encoded(sample.audio, bits if unchanged else None)
    except ValueError as error:
        raise DataError(f"{sample.row.shard}: {sample.row.key}: audio: {error}; {VERIFY}") from error


def _encoded(audio: npt.NDArray[np.float32], bits: int | None) -> bytes:
    """Encode a waveform (n,) as a WAV of integers with `bits` bits, or of floats if `bits` has the value None.

    Raise ValueError if a value is NaN, infinite or out of range.
    """
    if bits is None:
        return encode_wav(audio, SAMPLE_RATE_HZ)
    full_scale = 1 << (bits - 1)
    steps = np.rint(audio * np.float32(full_scale))
    if not (np.abs(steps) <= full_scale).all():  # also true for NaN, for which the cast would give a warning
        raise ValueError(f"expected {bits}-bit samples, found values beyond them")
    return encode_pcm_wav(steps.astype(np.int32), SAMPLE_RATE_HZ, bits=bits)  # type: ignore[arg-type]
