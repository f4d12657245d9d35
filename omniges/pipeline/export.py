"""Shards back to BEAT2 files: SMPL-X NPZ, TextGrid, and WAV where the shards kept the audio."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from omniges.errors import DataError, UsageFault
from omniges.features.gesture import POSE_PARTS, motion_from_gesture
from omniges.features.timebase import SAMPLE_RATE_HZ
from omniges.formats.audio import encode_pcm_wav, encode_wav
from omniges.formats.npz import write_motion
from omniges.formats.textgrid import WordInterval, encode_words
from omniges.shards.reader import SampleArrays, ShardFolder, file_betas
from omniges.shards.schema import MOTION_PARTS, VERIFY
from omniges.storage.atomic import make_folder, publish_bytes

_FOLDERS: Final = {"npz": "smplxflame_30", "textgrid": "textgrid", "wav": "wave16k"}
_ENDINGS: Final = {"npz": "npz", "textgrid": "TextGrid", "wav": "wav"}


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What was written."""

    folder: Path
    samples: int
    with_motion: int
    with_text: int
    with_audio: int
    split_list: Path


def export(
    shards: Path, out: Path, keys: Sequence[str] = (), progress: Callable[[int, int], None] | None = None
) -> ExportSummary:
    """Write samples (all, or those named by key or stem) in BEAT2's official layout, with their split list.

    Rotations come back within 1e-5 rad as rotations, positions within 1e-5 m. A sample without motion, text or kept
    audio has no file of it. Raises UsageFault where `out` holds files already, DataError where a shard is damaged.
    """
    source = ShardFolder(shards)
    rows = [source.row(key) for key in keys] if keys else list(source.rows)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageFault(f"-o {out}: a new or empty folder expected, found something there. Choose another")
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
    lines = ["id,type", *(f"{row.stem},{row.split}" for row in sorted(rows, key=lambda row: row.key))]
    publish_bytes(split_list, ("\n".join(lines) + "\n").encode())
    return ExportSummary(out, len(rows), counts["npz"], counts["textgrid"], counts["wav"], split_list)


def motion_file(sample: SampleArrays) -> bytes:
    """Return the sample's motion as a BEAT2 NPZ, betas at the length they came in.

    An array of which the sample has nothing is left out; in ``poses``, columns of absent parts are NaN.
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
    """The sample's words as a TextGrid of the clip's length; raises DataError where they do not lie in it in order."""
    words = [WordInterval(word["word"], word["start"], word["end"]) for word in sample.words]
    try:
        return encode_words(words, sample.row.seconds)
    except ValueError as error:
        raise DataError(
            f"{sample.row.shard}: {sample.row.key}.{sample.row.contract.words}: {error}. {VERIFY}"
        ) from error


def audio_file(sample: SampleArrays) -> bytes | None:
    """The sample's waveform as 16 kHz WAV, bit for bit, or None where the shards have none."""
    if sample.audio is None:
        return None
    source = sample.metadata["audio"]
    bits = {"pcm16": 16, "pcm24": 24}.get(source["encoding"])
    if bits is None or (source["rate_hz"], source["channels"]) != (SAMPLE_RATE_HZ, 1):
        return encode_wav(sample.audio, SAMPLE_RATE_HZ)
    pcm = np.rint(sample.audio * np.float32(2.0 ** (bits - 1))).astype(np.int32)
    return encode_pcm_wav(pcm, SAMPLE_RATE_HZ, bits=bits)  # type: ignore[arg-type]
