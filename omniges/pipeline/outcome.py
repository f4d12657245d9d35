"""What converting a recording is told and gives; apart from `pipeline.convert`, whose decoders cost start-up time."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from omniges.errors import Finding
from omniges.features.audio import Loudness
from omniges.shards.manifest import ManifestRow
from omniges.shards.statistics import Partial
from omniges.shards.tar import Segment

__all__ = ["MAX_FILE_BYTES", "ConvertSettings", "Converted", "Cut", "Rejected"]

MAX_FILE_BYTES: Final = 1 << 30  # of one input file


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertSettings:
    """What decides the content of a sample; part of the settings hash."""

    loudness: Loudness = "none"
    keep_audio: bool = False
    max_length_mismatch_s: float = 5.0
    word_tier: str | None = None


@dataclass(frozen=True, slots=True)
class Cut:
    """Seconds cut from the end of each modality to reach the common length, and words lost or shortened by it."""

    audio_s: float
    motion_s: float
    words_dropped: int
    words_clipped: int


@dataclass(frozen=True, slots=True)
class Converted:
    """A sample ready for a shard: its row has no shard yet, its offsets count from the segment's start."""

    row: ManifestRow
    segment: Segment
    notes: tuple[Finding, ...]
    partials: tuple[Partial, Partial] | None  # gesture and mel, of train samples
    words: Counter[str]
    cut: Cut


@dataclass(frozen=True, slots=True)
class Rejected:
    """A recording that cannot be used, and every reason found; with the digests of the files that were read."""

    findings: tuple[Finding, ...]
    sources: dict[str, tuple[str, str]]
