"""Settings of `omniges trace-batches`; quick to import for `omniges --help`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omniges.options import check, option
from omniges.shards.schema import Split


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSettings:
    """Steps and run whose batches are traced."""

    shards: Path = option(Path("shards"), "Folder of shards.")
    world_size: int = option(1, "Ranks of the run.", least=1)
    rank: int = option(0, "The rank whose windows are listed, from 0.", least=0)
    batch_size: int = option(
        64, "Windows per rank and step; with accumulation, a step here is a micro-step there.", least=1
    )
    window_ticks: int = option(64, "Length of a window in ticks of 0.1 s.", least=1)
    seed: int = option(0, "Seed of the run.")
    from_step: int = option(0, "First step, from 0.", least=0)
    steps: int = option(1, "Steps to list.", least=1)
    split: Split = option("train", "Split.")
    streams: tuple[str, ...] = option(
        (),
        "Keep clips that have all streams of one of these, such as audio+gesture; a run with absent parts prints them.",
    )
    audio_codec: str | None = option(None, "Codec whose latents take the place of the mel in the run.", shown="mel")
    gesture_codec: str | None = option(
        None, "Codec whose latents take the place of the gesture channels in the run.", shown="channels"
    )
    text_codec: str | None = option(
        None, "Codec whose latents take the place of the text slots in the run.", shown="slots"
    )
    tick_multiple: int = option(
        1,
        "Ticks that windows begin at multiples of, joined with what the codecs ask: 4 for a run on OmniFlow's weights "
        "with --audio-codec.",
        least=1,
    )
    decode: bool = option(False, "Read the windows and add the sha256 of what a batch holds of each.")

    def __post_init__(self) -> None:
        """Refuse steps and ranks that do not exist."""
        check(self)

    @property
    def codecs(self) -> dict[str, str]:
        """Names of the chosen codecs by stream."""
        chosen = {"audio": self.audio_codec, "gesture": self.gesture_codec, "text": self.text_codec}
        return {stream: name for stream, name in chosen.items() if name is not None}
