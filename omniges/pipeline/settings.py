"""What a preprocess run is told, and what it came to.

What converting a recording is told and gives; apart from `pipeline.convert`, whose decoders cost start-up time.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from omniges.errors import ExitCode, Finding, UsageFault
from omniges.features.audio import Loudness
from omniges.pipeline.discover import Selection
from omniges.shards.manifest import ManifestRow
from omniges.shards.statistics import Partial
from omniges.shards.tar import Segment

__all__ = ["MAX_FILE_BYTES", "ConvertSettings", "Converted", "Cut", "PreprocessSettings", "Rejected", "Summary"]

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


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessSettings:
    """All that `omniges preprocess` can be told; what decides output bytes is hashed into dataset.json."""

    root: Path
    out: Path
    selection: Selection = field(default_factory=Selection)
    convert: ConvertSettings = field(default_factory=ConvertSettings)
    shard_bytes: int = 256 << 20
    split_csv: Path | None = None
    allow_roots: tuple[Path, ...] = ()
    workers: int = 1
    deadline_s: float = 120.0
    max_rejected: float = 0.05
    force: bool = False
    allow_removal: bool = False
    run_log: Path | None = None

    def __post_init__(self) -> None:
        """Refuse values that cannot work, by the name of the flag."""
        if self.workers < 1:
            raise UsageFault(f"--workers {self.workers}: at least 1 expected")
        if self.shard_bytes < 1:
            raise UsageFault(f"--shard-size {self.shard_bytes}: at least 1 byte expected")
        if not 0 <= self.max_rejected <= 1:
            raise UsageFault(f"--max-rejected {self.max_rejected}: a share between 0 and 1 expected")
        if not 0 < self.deadline_s < math.inf:
            raise UsageFault(f"--deadline {self.deadline_s}: more than 0 seconds expected")
        if not 0 <= self.convert.max_length_mismatch_s < math.inf:
            raise UsageFault(f"--max-length-mismatch {self.convert.max_length_mismatch_s}: at least 0 seconds expected")
        if not self.out.absolute().name:
            raise UsageFault(f"--out {self.out}: a folder with a name expected")

    @property
    def log_path(self) -> Path:
        """The run log, beside the output folder unless named."""
        out = self.out if self.out.name else self.out.absolute()
        return self.run_log or out.with_name(out.name + ".run.jsonl")

    def document(self) -> dict[str, Any]:
        """The settings that decide output bytes."""
        return {
            "selection": asdict(self.selection),
            "convert": asdict(self.convert),
            "shard_bytes": self.shard_bytes,
            "split_source": "--split-csv" if self.split_csv else "data set",
            "allow_roots": [str(folder) for folder in self.allow_roots],
        }


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run came to."""

    out: Path
    stems: int
    converted: int
    rejected: int
    noted: int
    lost: dict[str, str]  # stem -> reason
    finding_counts: dict[str, int]  # code -> recordings or data-set findings
    examples: dict[str, str]  # code -> one finding in words
    splits: dict[str, tuple[int, float]]  # split -> samples, seconds
    cut_audio_s: float
    cut_motion_s: float
    words_dropped: int
    shards: int
    shard_bytes: int
    elapsed_s: float
    converted_s: float  # of all samples
    computed_s: float  # of those converted in this run
    max_rejected: float
    report: Path | None
    run_log: Path
    manifest_hash: str | None
    reused: int = 0  # outcomes taken over from earlier runs because no input had changed
    unchanged: bool = False  # nothing was done: the folder was complete and the inputs are the same

    @property
    def rejected_share(self) -> float:
        """Rejected stems as a share of all discovered ones."""
        return self.rejected / self.stems if self.stems else 0.0

    @property
    def exit_code(self) -> ExitCode:
        """1 when a recording was lost or too many were rejected, else 0."""
        failed = bool(self.lost) or self.rejected_share > self.max_rejected
        return ExitCode.FINDINGS if failed else ExitCode.OK
