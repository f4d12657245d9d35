"""Published files that the metrics of papers need: their names, checksums and origins; none of them is shipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFile:
    """A file that people download themselves."""

    name: str
    sha256: tuple[str, ...]
    """Checksums of the known versions; empty if none is known."""
    origin: str
    """Where people get it."""

    def described(self) -> str:
        """Return name, origin and checksums in one line."""
        known = f", sha256 {' or '.join(self.sha256)}" if self.sha256 else ", sha256 not known to omniges"
        return f"{self.name} from {self.origin}{known}"


ENCODER: Final = PublishedFile(
    name="AESKConv_240_100.bin",
    sha256=("5cd9566b24264f34d44003b3de62cdfd50aa85b7cdde2d369214599023c40f55",),
    origin="Hugging Face, H-Liu1997/BEAT2 (beat_english_v2.0.0/weights) or camenduru/EMAGE-hf",
)
MEAN_SPEEDS: Final = PublishedFile(
    name="mean_vel_smplxflame_30.npy",
    sha256=(
        "53b5e48f2a7bf78c41a6de6395d6bb4f29018465ca5d0ee2820a2be3eebb7137",
        "d338491ce7d0da939cbb0ea326486d0b9c8654b3d33c7f6d32ca01e9a49ebf79",
    ),
    origin="Hugging Face, H-Liu1997/BEAT2 (beat_english_v2.0.0/weights), or repositories of GestureLSM and SynTalker",
)
BODY_MODEL: Final = PublishedFile(
    name="SMPLX_NEUTRAL_2020.npz", sha256=(), origin="smpl-x.is.tue.mpg.de after registration"
)
