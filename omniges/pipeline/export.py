"""Shards back to BEAT2 files: SMPL-X NPZ, TextGrid, and WAV where the shards kept the audio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from omniges.errors import DataError, UsageFault
from omniges.features.gesture import motion_from_gesture
from omniges.features.timebase import SAMPLE_RATE_HZ
from omniges.formats.audio import encode_pcm_wav, encode_wav
from omniges.formats.npz import encode_motion
from omniges.formats.textgrid import WordInterval, encode_words
from omniges.shards.reader import SampleArrays, ShardFolder
from omniges.storage.atomic import make_folder, publish_bytes

_FOLDERS: Final = {"npz": "smplxflame_30", "textgrid": "textgrid", "wav": "wave16k"}


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """What was written."""

    folder: Path
    samples: int
    with_audio: int
    split_list: Path


def export(
    shards: Path, out: Path, keys: Sequence[str] = (), progress: Callable[[int, int], None] | None = None
) -> ExportSummary:
    """Write samples (all, or those named by key or stem) in BEAT2's official layout, with their split list.

    Rotations come back within 1e-5 rad as rotations, positions within 1e-5 m. Raises UsageFault where `out` holds
    files already, DataError where a shard is damaged.
    """
    source = ShardFolder(shards)
    rows = [source.row(key) for key in keys] if keys else list(source.rows)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageFault(f"-o {out}: a new or empty folder expected, found something there. Choose another")
    for name in _FOLDERS.values():
        make_folder(out / name)
    with_audio = 0
    for done, row in enumerate(rows, 1):
        sample = source.sample(row)
        publish_bytes(out / _FOLDERS["npz"] / f"{row.stem}.npz", motion_file(sample))
        publish_bytes(out / _FOLDERS["textgrid"] / f"{row.stem}.TextGrid", text_file(sample))
        if (wav := audio_file(sample)) is not None:
            publish_bytes(out / _FOLDERS["wav"] / f"{row.stem}.wav", wav)
            with_audio += 1
        if progress:
            progress(done, len(rows))
    split_list = out / "train_test_split.csv"
    lines = ["id,type", *(f"{row.stem},{row.split}" for row in sorted(rows, key=lambda row: row.key))]
    publish_bytes(split_list, ("\n".join(lines) + "\n").encode())
    return ExportSummary(out, len(rows), with_audio, split_list)


def motion_file(sample: SampleArrays) -> bytes:
    """The sample's motion as a BEAT2 NPZ; betas at the length they came in."""
    try:
        motion = motion_from_gesture(sample.gesture)
    except ValueError as error:
        raise DataError(f"{sample.row.shard}: {sample.row.key}.gesture.npy: {error}") from error
    facts = sample.metadata["motion"]
    return encode_motion(
        motion.poses,
        motion.expressions,
        motion.trans,
        np.asarray(sample.betas[: facts["betas"]]),
        gender=facts["gender"],
        model=facts["model"],
    )


def text_file(sample: SampleArrays) -> bytes:
    """The sample's words as a TextGrid of the clip's length."""
    words = [WordInterval(word["word"], word["start"], word["end"]) for word in sample.words]
    return encode_words(words, sample.row.seconds)


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
