"""Shards of a synthetic corpus whose samples lack parts, for tests of all that reads shards."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from omniges.errors import Problem
from omniges.features.gesture import LAYOUT, POSE_PARTS
from omniges.formats.audio import decode_wav
from omniges.formats.npz import Motion, decode_motion
from omniges.formats.textgrid import decode_words
from omniges.pipeline.convert import Take, assemble
from omniges.pipeline.corpora.beat2 import discover
from omniges.pipeline.discover import Recording
from omniges.pipeline.settings import ConvertSettings, PreprocessSettings, Sample
from omniges.pipeline.summary import cut_totals
from omniges.shards.dataset import dataset_document, seal, statistics_document, train_tokenizer
from omniges.shards.manifest import MemberPlace, serialize_manifest
from omniges.shards.schema import (
    DATASET_FILE,
    GESTURE_PARTS,
    MANIFEST_FILE,
    REPORT_FILE,
    SPLITS,
    STATS_FILE,
    TOKENIZER_FILE,
)
from omniges.shards.tar import Segment, build_segment, npy_parts
from omniges.shards.writer import ShardWriter
from omniges.storage.files import canonical_json, json_document, sha256_hex

_NOISE: Final = 1000.0


def without(motion: Motion, parts: Collection[str]) -> Motion:
    """Motion with NaN in some parts."""
    poses, expressions, trans = (np.array(array) for array in (motion.poses, motion.expressions, motion.trans))
    for part in parts:
        if part in POSE_PARTS:
            poses.reshape(len(poses), -1, 3)[:, list(POSE_PARTS[part])] = np.nan
    if "face" in parts:
        expressions[:] = np.nan
    if "root" in parts:
        trans[:] = np.nan
    return replace(motion, poses=poses, expressions=expressions, trans=trans)


def _take(recording: Recording, lacking: Collection[str]) -> Take:
    data = {name: Path(file.path).read_bytes() for name, file in recording.files.items()}
    fields = recording.fields
    motion = None if set(GESTURE_PARTS) <= set(lacking) else without(decode_motion(data["npz"]), lacking)
    return Take(
        key=recording.key,
        stem=recording.stem,
        split=recording.split,
        speaker_id=fields.speaker_id,
        speaker=fields.speaker,
        language=fields.language,
        labels={"emotion": fields.emotion or "", "scenario": fields.scenario or ""},
        motion=motion,
        wav=None if "audio" in lacking else decode_wav(data["wav"]),
        tier=None if "text" in lacking else decode_words(data["textgrid"]),
        semantic=None,
        sources={},
    )


def _filled(sample: Sample[Segment], lacking: Collection[str], seed: int) -> Sample[Segment]:
    """The sample with numbers and words where it lacks parts, its digests right."""
    raw, random = b"".join(bytes(piece) for piece in sample.segment.buffers), np.random.default_rng(seed)
    contents: dict[str, tuple[bytes | memoryview, ...]] = {}
    for member, place in sample.row.members.items():
        contents[member] = (raw[place.offset : place.offset + place.size],)
    parts_of = {"gesture.npy": GESTURE_PARTS, "mel.npy": ("audio",), "jaw_eyes.npy": ("jaw_eyes",)}
    for member, names in parts_of.items():
        array = np.load(io.BytesIO(bytes(contents[member][0])))
        for part in set(names) & set(lacking):
            columns = slice(None) if len(names) == 1 else getattr(LAYOUT, part)
            array[:, columns] = _NOISE * random.standard_normal(array[:, columns].shape)
        contents[member] = npy_parts(array)
    if "text" in lacking:
        contents["words.txt"] = (canonical_json([{"word": "never", "start": 0.2, "end": 1.5}]),)
    segment = build_segment(sample.row.key, contents)
    members = {
        member: MemberPlace(segment.data_offsets[member], segment.data_sizes[member], sha256_hex(*pieces))
        for member, pieces in contents.items()
    }
    return replace(sample, row=replace(sample.row, members=members), segment=segment)


def write_partial(
    corpus: Path, out: Path, lacking: Mapping[int, Collection[str]], *, fill: int | None = None, keep_audio: bool = True
) -> Path:
    """Shards of a corpus, whose n-th recording by key lacks some parts; a complete set.

    ``fill``: seed of numbers that stand where parts are absent, which no reader may look at.
    """
    convert = ConvertSettings(keep_audio=keep_audio)
    settings = PreprocessSettings(root=corpus, output_dir=out, convert=convert)
    recordings = sorted(discover(settings.root, settings.selection).recordings, key=lambda one: one.key)
    samples = []
    for number, recording in enumerate(recordings):
        own = lacking.get(number, ())
        sample = assemble(_take(recording, own), convert, _nobody, [])
        samples.append(sample if fill is None or not own else _filled(sample, own, fill + number))
    samples.sort(key=lambda one: (SPLITS.index(one.row.split), one.row.key))  # type: ignore[arg-type]
    out.mkdir(parents=True)
    with ShardWriter(lambda n: out / f"written-{n}", 1 << 20) as writer:
        rows = [writer.add(one.row, b"".join(map(bytes, one.segment.buffers))) for one in samples]
    for name, path in writer.paths.items():
        path.rename(out / name)
    partials = [sample.partials for sample in samples if sample.partials is not None]
    words: Counter[str] = sum((sample.words for sample in samples), Counter())
    contents = {
        MANIFEST_FILE: serialize_manifest(rows),
        STATS_FILE: json_document(statistics_document(rows, partials, words)),
        TOKENIZER_FILE: train_tokenizer(words),
        REPORT_FILE: b"",
    }
    for name, data in contents.items():
        (out / name).write_bytes(data)
    files = {name: (len(data), sha256_hex(data)) for name, data in contents.items()}
    digest = sha256_hex(canonical_json(settings.document()))
    plan: dict[str, Any] = {"settings_sha256": digest, "inputs_sha256": "0" * 64, "stems": len(rows)}
    plan |= {"rejected": 0, "rejected_inputs": {}}
    document = dataset_document(rows, writer.shards, files, settings.document(), plan, cut_totals(_cuts(samples)))
    (out / DATASET_FILE).write_bytes(seal(document))
    return out


def _cuts(samples: Sequence[Sample[Segment]]) -> Any:
    return [sample.cut for sample in samples]


def _nobody(problem: Problem, modality: Any) -> None:
    del problem, modality
