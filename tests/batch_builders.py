"""Shard folders of any shape for tests of batches, and how to read a window without any of the code under test."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omniges.shards.dataset import dataset_document, partial_of, seal, statistics_document, train_tokenizer
from omniges.shards.manifest import ManifestRow, MemberPlace, serialize_manifest
from omniges.shards.schema import DATASET_FILE, MANIFEST_FILE, PARTS, STATS_FILE, TOKENIZER_FILE
from omniges.shards.tar import END_OF_ARCHIVE, build_segment, npy_parts
from omniges.shards.writer import ShardFile
from omniges.storage.files import canonical_json, json_document, sha256_hex

WORDS = ("paper", "tiger", "music", "garden")

FACTS = {
    "notes": "",
    "audio": {"encoding": "", "rate_hz": 0, "channels": 0, "samples": 0, "samples_16k": 0},
    "motion": {"betas": 300, "gender": "neutral", "model": "smplx2020"},
}
"""What readers hold KEY.json against, beside its key."""


def write_shards(
    folder: Path,
    ticks: Sequence[int],
    per_shard: int,
    *,
    split: str = "train",
    seed: int = 0,
    fault: Any = None,
    alike: bool = False,
) -> Path:
    """A folder with one clip of noise for each length in ticks, `per_shard` clips a shard.

    Keys are out of order on purpose; speakers take turns. `fault(key, members)` may change a clip's members before all
    checksums are taken. `alike` clips of one length have the same arrays, which is faster.
    """
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    keys = sorted(f"{1 + number % 3}_speaker{number % 3}_0_{number}_{number}" for number in range(len(ticks)))
    rows, shards, partials, words = [], [], [], Counter[str]()
    contents: dict[int, Any] = {}
    for first in range(0, len(ticks), per_shard):
        name = f"{split}-{len(shards):06d}.tar"
        tar = bytearray()
        own = range(first, min(first + per_shard, len(ticks)))
        for number in own:
            frames = ticks[number] * 3 + number % 3
            if not alike or frames not in contents:
                gesture = random.standard_normal((frames, 415), dtype=np.float32)
                mel = random.standard_normal((frames * 10 // 3, 64), dtype=np.float32)
                jaw_eyes = np.zeros((frames, 9), np.float32)
                contents[frames] = gesture, mel, jaw_eyes, tuple(map(partial_of, (gesture, mel, jaw_eyes)))
            gesture, mel, jaw_eyes, partial = contents[frames]
            spoken = [
                {"word": WORDS[(number + k) % len(WORDS)], "start": 0.4 * k + 0.1, "end": 0.4 * k + 0.4}
                for k in range(int(ticks[number] / 10 / 0.4) - 1)
            ]
            words.update(word["word"] for word in spoken)
            partials.append(partial if split == "train" else None)
            members: dict[str, tuple[bytes | memoryview, ...]] = {
                "json": (canonical_json({"key": keys[number]} | FACTS),),
                "gesture.npy": npy_parts(gesture),
                "mel.npy": npy_parts(mel),
                "words.txt": (canonical_json(spoken),),
                "jaw_eyes.npy": npy_parts(jaw_eyes),
                "betas.npy": npy_parts(np.zeros(300)),
                "start_xz.npy": npy_parts(np.zeros(2)),
                "sem.txt": (canonical_json([]),),
            }
            if fault is not None:
                fault(keys[number], members)
            segment = build_segment(keys[number], members)
            places = {
                member: MemberPlace(
                    len(tar) + segment.data_offsets[member],
                    segment.data_sizes[member],
                    sha256_hex(b"".join(map(bytes, pieces))),
                )
                for member, pieces in members.items()
            }
            rows.append(_row(keys[number], split, name, frames, len(spoken), places))
            tar += b"".join(map(bytes, segment.buffers))
        tar += END_OF_ARCHIVE
        (folder / name).write_bytes(tar)
        shards.append(ShardFile(name, split, len(own), len(tar), sha256_hex(bytes(tar))))  # type: ignore[arg-type]
    stats = statistics_document(rows, [p for p in partials if p], words)
    write_beside(folder, rows, shards, json_document(stats), train_tokenizer(words))
    return folder


def _row(key: str, split: str, shard: str, frames: int, words: int, members: dict[str, MemberPlace]) -> ManifestRow:
    speaker_id, speaker = key.split("_")[:2]
    emotion = "neutral" if speaker_id == "1" else ""
    lacking = {"sem"} if emotion else {"sem", "labels"}
    return ManifestRow(
        key=key,
        stem=key,
        split=split,
        shard=shard,
        frames=frames,
        mel_frames=frames * 10 // 3,
        ticks=frames // 3,
        words=words,
        seconds=frames / 30,
        speaker_id=int(speaker_id),
        speaker=speaker,
        language="english" if speaker_id != "3" else "chinese",
        labels={"emotion": emotion, "scenario": ""},
        present=tuple(part for part in PARTS if part not in lacking),
        sources={},
        notes=(),
        members=members,
    )


def write_beside(
    folder: Path, rows: Sequence[ManifestRow], shards: Sequence[ShardFile], stats: bytes, tokenizer: bytes
) -> None:
    """Manifest, statistics, tokenizer and dataset.json."""
    files = {MANIFEST_FILE: serialize_manifest(rows), STATS_FILE: stats, TOKENIZER_FILE: tokenizer}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    listed = {name: (len(data), sha256_hex(data)) for name, data in files.items()}
    document = dataset_document(rows, shards, listed, {}, {}, {})
    (folder / DATASET_FILE).write_bytes(seal(document))


class PlainReader:
    """Arrays and statistics read with tarfile, np.load and json alone."""

    def __init__(self, folder: Path) -> None:
        self.members: dict[str, bytes] = {}
        for path in sorted(folder.glob("*.tar")):
            with tarfile.open(path) as tar:
                for member in tar:
                    stream = tar.extractfile(member)
                    assert stream is not None
                    self.members[member.name] = stream.read()
        self.stats = json.loads((folder / "stats.json").read_text())

    def array(self, key: str, stream: str) -> np.ndarray[Any, Any]:
        loaded: np.ndarray[Any, Any] = np.load(io.BytesIO(self.members[f"{key}.{stream}.npy"]), allow_pickle=False)
        return loaded

    def words(self, key: str) -> list[dict[str, Any]]:
        words: list[dict[str, Any]] = json.loads(self.members[f"{key}.words.txt"])
        return words

    def window(self, key: str, stream: str, start_tick: int, ticks: int) -> np.ndarray[Any, Any]:
        """A normalised window: (x − mean)/std in float32."""
        frames = {"gesture": 3, "mel": 10}[stream]
        mean, std = (np.array(self.stats[stream][name]) for name in ("mean", "std"))
        scale = np.where(std < 1e-6, 1, std).astype(np.float32)
        rows = self.array(key, stream)[start_tick * frames : (start_tick + ticks) * frames]
        return (rows - mean.astype(np.float32)) / scale
