"""Shard sets of samples that lack parts, written from arrays, and the same samples in version 1 of the contract."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from omniges.errors import Finding, Problem
from omniges.features.gesture import EXPRESSIONS, POSE_COLUMNS
from omniges.formats.audio import Wav
from omniges.formats.npz import Motion
from omniges.formats.semantic import SemanticSpan
from omniges.formats.textgrid import WordInterval, WordTier
from omniges.pipeline.convert import Take, assemble
from omniges.pipeline.settings import ConvertSettings
from omniges.shards.dataset import dataset_document, partial_of, seal, statistics_document, train_tokenizer
from omniges.shards.manifest import ManifestRow, MemberPlace, serialize_manifest
from omniges.shards.reader import ShardFolder
from omniges.shards.schema import DATASET_FILE, MANIFEST_FILE, REPORT_FILE, SPLITS, STATS_FILE, TOKENIZER_FILE
from omniges.shards.tar import build_segment
from omniges.shards.writer import ShardWriter
from omniges.storage.files import canonical_json, json_document, sha256_hex

WORDS = ("paper", "tiger", "music", "garden")


def take(key: str, seconds: float, *, split: Any = "train", lacking: Sequence[str] = (), seed: int = 0) -> Take:
    """A recording of noise without some of motion, audio, text, sem, hands, face, jaw_eyes."""
    random = np.random.default_rng([seed, *key.encode()])
    frames, samples = round(30 * seconds), round(16_000 * seconds)
    poses = random.uniform(-0.3, 0.3, (frames, POSE_COLUMNS)).astype(np.float32)
    expressions = random.standard_normal((frames, EXPRESSIONS))
    for part, columns in (("hands", slice(75, 165)), ("jaw_eyes", slice(66, 75))):
        if part in lacking:
            poses[:, columns] = np.nan
    if "face" in lacking:
        expressions[:] = np.nan
    trans = np.cumsum(random.uniform(-0.01, 0.01, (frames, 3)), axis=0) + np.array([0.0, 1.2, 0.0])
    motion = Motion(
        poses, expressions, trans, random.standard_normal(300), 300, 30, 1, frames, "neutral", "smplx2020", "beat2"
    )
    pcm = (random.uniform(-0.5, 0.5, samples) * 2**15).astype(np.int16)
    wav = Wav(pcm.astype(np.float32) / 2**15, 16_000, 1, "pcm16", pcm)
    spoken = [WordInterval(WORDS[k % len(WORDS)], 0.4 * k + 0.1, 0.4 * k + 0.4) for k in range(int(seconds / 0.4) - 1)]
    speaker_id, speaker = key.split("_")[:2]
    return Take(
        key=key,
        stem=key,
        split=split,
        speaker_id=int(speaker_id),
        speaker=speaker,
        language="english",
        labels={"emotion": "anger" if speaker_id == "1" else "", "scenario": "speech"},
        motion=None if "motion" in lacking else motion,
        wav=None if "audio" in lacking else wav,
        tier=None if "text" in lacking else WordTier("words", tuple(spoken), seconds),
        semantic=None if "sem" in lacking else (SemanticSpan("beat", 0.2, 0.9, 0.7, 0.8, "tiger"),),
        sources={},
    )


def write_takes(
    folder: Path,
    takes: Sequence[Take],
    *,
    keep_audio: bool = True,
    noted: Sequence[str] = (),
    shard_bytes: int = 1 << 30,
) -> Path:
    """A set of version 2 of these takes; those named by key have a note."""
    folder.mkdir(parents=True)
    settings = ConvertSettings(keep_audio=keep_audio)
    rows: list[ManifestRow] = []
    partials, words = [], Counter[str]()
    names = iter(range(len(takes)))
    with ShardWriter(lambda _: folder / f"part-{next(names)}", shard_bytes) as writer:
        for one in sorted(takes, key=lambda one: (SPLITS.index(one.split), one.key)):
            notes = [Finding(Problem("length-cut", "0.300 s of audio cut"), one.stem, None)] if one.key in noted else []
            sample = assemble(one, settings, lambda *_: None, notes)
            rows.append(writer.add(sample.row, b"".join(map(bytes, sample.segment.buffers))))
            partials += [sample.partials] if sample.partials else []
            words += sample.words
    for shard in writer.shards:
        writer.paths[shard.name].rename(folder / shard.name)
    _write_beside(folder, rows, writer, statistics_document(rows, partials, words), words, settings)
    return folder


def _write_beside(
    folder: Path,
    rows: list[ManifestRow],
    writer: ShardWriter,
    stats: Any,
    words: Counter[str],
    settings: ConvertSettings,
) -> None:
    contents = {
        MANIFEST_FILE: serialize_manifest(rows),
        STATS_FILE: json_document(stats),
        TOKENIZER_FILE: train_tokenizer(words),
        REPORT_FILE: b"",
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    listed = {name: (len(data), sha256_hex(data)) for name, data in contents.items()}
    document = dataset_document(rows, writer.shards, listed, {"convert": asdict(settings)}, {}, {})
    (folder / DATASET_FILE).write_bytes(seal(document))


def as_version_1(source: Path, folder: Path) -> Path:
    """The samples of a set of version 2, in which nothing but sem may be absent, as version 1 had them."""
    folder.mkdir(parents=True)
    shards = ShardFolder(source)
    rows: list[ManifestRow] = []
    partials, words = [], Counter[str]()
    names = iter(range(len(shards.rows)))
    with ShardWriter(lambda _: folder / f"part-{next(names)}", 1 << 30) as writer:
        for row in sorted(shards.rows, key=lambda row: (SPLITS.index(row.split), row.key)):
            metadata = json.loads(shards.member(row, "json"))
            del metadata["present"]
            metadata |= metadata.pop("labels") | {"notes": []}
            members: dict[str, tuple[bytes | memoryview, ...]] = {"json": (canonical_json(metadata),)}
            members |= {name: (shards.member(row, name),) for name in ("gesture.npy", "mel.npy")}
            members["words.json"] = (shards.member(row, "words.txt"),)
            members |= {name: (shards.member(row, name),) for name in ("jaw_eyes.npy", "betas.npy", "start_xz.npy")}
            if "sem" in row.present:
                members["sem.json"] = (shards.member(row, "sem.txt"),)
            if row.keeps_audio:
                waveform = shards.array(row, "audio.npy")
                buffer = io.BytesIO()
                soundfile.write(buffer, np.round(waveform * 2**15).astype(np.int16), 16_000, "PCM_16", format="FLAC")
                members["flac"] = (buffer.getvalue(),)
            segment = build_segment(row.key, members)
            places = {
                name: MemberPlace(segment.data_offsets[name], segment.data_sizes[name], sha256_hex(*pieces))
                for name, pieces in members.items()
            }
            digests = {name: ("a/b", sha256_hex(b"")) for name in ("wav", "npz", "textgrid")}
            old = replace(row, members=places, sources=digests, notes=())
            rows.append(writer.add(old, b"".join(map(bytes, segment.buffers))))
            if row.split == "train":
                partials.append(
                    (partial_of(shards.array(row, "gesture.npy")), partial_of(shards.array(row, "mel.npy")))
                )
                words.update(word["word"] for word in shards.words(row))
    for shard in writer.shards:
        writer.paths[shard.name].rename(folder / shard.name)
    _write_beside(folder, rows, writer, statistics_document(rows, partials, words, 1), words, ConvertSettings())
    document = json.loads((folder / DATASET_FILE).read_bytes())
    del document["checksum"]
    (folder / DATASET_FILE).write_bytes(seal(document | {"version": 1}))
    return folder
