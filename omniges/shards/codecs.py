"""What dataset.json says of a codec's latents: whose they are, what they were made of, how many there are.

A codec turns one member of a sample, an array of frames, into rows of latents: row k is made of the frames around
``frames_per_row · k``. All arithmetic of lengths and times follows from that one whole number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final

import numpy as np

from omniges.features.timebase import FRAMES_PER_TICK, MEL_FRAMES_PER_TICK
from omniges.shards.manifest import ManifestRow
from omniges.shards.schema import LATENT_MEMBER
from omniges.shards.statistics import SMALLEST_STD, Partial, combine

__all__ = ["SOURCE_FRAMES_PER_TICK", "CodecEntry", "latents_document", "read_entries"]

SOURCE_FRAMES_PER_TICK: Final[Mapping[str, int]] = {"mel.npy": MEL_FRAMES_PER_TICK, "gesture.npy": FRAMES_PER_TICK}
"""Members that a codec may read, and their frames a tick."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MOST: Final = 1 << 20  # frames a row, channels
_FIELDS: Final = {"fingerprint", "source", "frames_per_row", "channels", "settings"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecEntry:
    """One codec of ``codecs`` in dataset.json."""

    name: str  # such as audioldm2-vae
    fingerprint: str  # sha256 of the codec's configuration and weights
    source: str  # the member it reads
    frames_per_row: int  # frames of the source that one row of latents stands for
    channels: int  # numbers of a row
    settings: Mapping[str, Any] = field(default_factory=dict)  # what else decided the latents, for people and replays

    def __post_init__(self) -> None:
        """Raise ValueError for what no codec is."""
        if not LATENT_MEMBER.fullmatch(self.member):
            raise ValueError(f"name {self.name!r}")
        if not isinstance(self.fingerprint, str) or not _SHA256.fullmatch(self.fingerprint):
            raise ValueError(f"fingerprint {self.fingerprint!r}")
        if self.source not in SOURCE_FRAMES_PER_TICK:
            raise ValueError(f"source {self.source!r}")
        for name in ("frames_per_row", "channels"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= _MOST:
                raise ValueError(f"{name} {value!r}")
        if not isinstance(self.settings, dict):
            raise ValueError(f"settings {self.settings!r}")  # noqa: TRY004 - one kind of error for a damaged file

    @property
    def member(self) -> str:
        """The member that holds its latents."""
        return f"{self.name}.npy"

    @property
    def rows_per_tick(self) -> Fraction:
        """Rows of a tick of 0.1 s: 5/2 for 25 rows a second."""
        return Fraction(SOURCE_FRAMES_PER_TICK[self.source], self.frames_per_row)

    @property
    def tick_multiple(self) -> int:
        """Ticks that windows and their beginnings have to be multiples of, so that they hold whole rows."""
        return self.rows_per_tick.denominator

    def rows_of(self, row: ManifestRow) -> int:
        """Rows of a sample: as many as its frames fill."""
        frames = row.mel_frames if self.source == "mel.npy" else row.frames
        return frames // self.frames_per_row

    def as_json(self) -> dict[str, Any]:
        """The entry as dataset.json has it, under the codec's name."""
        return {
            "fingerprint": self.fingerprint,
            "source": self.source,
            "frames_per_row": self.frames_per_row,
            "channels": self.channels,
            "settings": dict(self.settings),
        }

    @classmethod
    def from_json(cls, name: str, found: Any) -> CodecEntry:
        """The inverse of `as_json`; raises ValueError where it is no entry."""
        if not isinstance(found, dict) or found.keys() != _FIELDS:
            raise ValueError(f"{name!r}: {', '.join(sorted(_FIELDS))} expected, found {found!r:.200}")
        return cls(name=name, **found)


def read_entries(document: Mapping[str, Any]) -> dict[str, CodecEntry]:
    """The codecs of a dataset.json by name, in order; none where it names none. Raises ValueError for others."""
    found = document.get("codecs", {})
    if not isinstance(found, dict) or ("codecs" in document and not found):
        raise ValueError(f"codecs: at least one entry by name expected, found {found!r:.200}")
    return {name: CodecEntry.from_json(name, found[name]) for name in sorted(found)}


def latents_document(entries: Iterable[CodecEntry], partials: Mapping[str, Sequence[Partial]]) -> dict[str, Any]:
    """latents.json: each codec's statistics over the train samples' partials, given by codec."""
    found = {}
    for entry in entries:
        own = partials.get(entry.name, ())
        with np.errstate(over="ignore", invalid="ignore"):
            statistics = combine(own)
        found[entry.name] = (
            {"samples": 0}
            if statistics is None
            else {"samples": len(own), "smallest_std": SMALLEST_STD} | _in_rows(statistics.as_json())
        )
    return found


def _in_rows(statistics: Mapping[str, Any]) -> dict[str, Any]:
    """Channel statistics count frames; of latents they are rows."""
    return {"rows" if name == "frames" else name: value for name, value in statistics.items()}
