"""Shard sets of contract version 1, converted from sets of version 2: older omniges wrote such sets."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
from shard_sets import Sample, ShardSet

from omniges.features.timebase import SAMPLE_RATE_HZ
from omniges.storage.files import canonical_json


def write_version_1(source: Path, target: Path) -> Path:
    """Write the samples of a set of version 2 to a new folder as version 1 had them."""
    return version_1(ShardSet.read(source)).write(target)


def version_1(shards: ShardSet) -> ShardSet:
    """The same samples in version 1, their statistics to be computed again."""
    document = shards.document | {"version": 1}
    return replace(shards, samples=[*map(_sample, shards.samples)], document=document, keep_files=False)


def _sample(sample: Sample) -> Sample:
    row = sample.row
    members = {name.replace("words.txt", "words.json"): place for name, place in row.members.items()}
    arrays = sample.arrays | {"betas.npy": sample.arrays["betas.npy"].astype("<f4")}  # as in BEAT2's sources
    row = replace(row, members=members)
    return replace(sample, row=row, metadata=_metadata(sample), arrays=arrays, others=_others(sample))


def _metadata(sample: Sample) -> dict[str, Any]:
    """KEY.json with null for what the stem does not tell, the sources that there are, and notes as a list."""
    facts = {name: value for name, value in sample.metadata.items() if name not in {"labels", "present"}}
    notes = [line.partition(": ") for line in facts["notes"].splitlines()]
    return facts | {
        "speaker_id": sample.row.speaker_id,
        "speaker": sample.row.speaker,
        "language": sample.row.language,
        **{name: sample.metadata["labels"][name] or None for name in ("scenario", "emotion")},
        "sources": {name: source for name, source in facts["sources"].items() if source["path"]},
        "notes": [{"code": code, "found": found} for code, _, found in notes],
    }


def _others(sample: Sample) -> dict[str, bytes]:
    """Semantic spans only where there are some, and audio of 16 and 24 bit sources as FLAC."""
    others = dict(sample.others)
    spans = others.pop("sem.txt")
    if "sem" in sample.row.present:
        others["sem.json"] = spans
    audio = sample.metadata["audio"]
    bits = {"pcm16": 16, "pcm24": 24}.get(audio["encoding"])
    if "audio.npy" in others and bits and (audio["rate_hz"], audio["channels"]) == (SAMPLE_RATE_HZ, 1):
        waveform = np.load(io.BytesIO(others.pop("audio.npy")), allow_pickle=False).astype(np.float64)
        others["flac"] = _flac(waveform * 2 ** (bits - 1), bits)
    return others


def _flac(values: npt.NDArray[np.float64], bits: int) -> bytes:
    """Whole numbers of so many bits as FLAC of level 0, whose predictors are fixed integers on every CPU."""
    buffer = io.BytesIO()
    pcm = values.astype(np.int16) if bits == 16 else values.astype(np.int32) << 8
    soundfile.write(buffer, pcm, SAMPLE_RATE_HZ, format="FLAC", subtype=f"PCM_{bits}", compression_level=0.0)
    return buffer.getvalue()


def without_spans(shards: ShardSet, every: int = 2) -> ShardSet:
    """A set of version 2 in which every second sample, or so, has no semantic annotation."""
    for sample in shards.samples[::every]:
        parts = tuple(part for part in sample.row.present if part != "sem")
        sources = {name: source for name, source in sample.row.sources.items() if name != "sem"}
        sample.row = replace(sample.row, present=parts, sources=sources)
        sample.metadata["present"]["sem"] = False
        sample.metadata["sources"]["sem"] = {"path": "", "sha256": ""}
        sample.others["sem.txt"] = canonical_json([])
    return shards
