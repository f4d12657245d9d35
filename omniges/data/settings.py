"""Settings of `omniges trace-batches`. The module imports quickly, so that `omniges --help` is fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omniges.options import check, declared, option
from omniges.shards.schema import Split


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSettings:
    """Settings of `omniges trace-batches`: the steps to list, and the settings of their training run."""

    shards: Path = option(Path("shards"), "Folder of shards.", panel="Steps to list")
    split: Split = option("train", "Split whose windows are listed.")
    world_size: int = option(1, "Number of processes of the run.", minimum=1)
    rank: int = option(0, "Process whose windows are listed, from 0.", minimum=0)
    from_step: int = option(0, "First step to list, from 0.", minimum=0)
    steps: int = option(1, "Number of steps to list.", minimum=1)
    decode: bool = option(False, "Read the windows, and add the sha256 of each window's arrays.")
    batch_size: int = option(
        64,
        "Windows per process and micro-step. One step of this command is one micro-step of the run.",
        minimum=1,
        panel="Settings of the run",
    )
    window_ticks: int = option(64, "Length of a window in ticks of 0.1 s.", minimum=1)
    seed: int = option(0, "Random seed of the run.")
    streams: tuple[str, ...] = option(
        (),
        "Combinations of streams, separated by commas. For example, 'audio+gesture,text' reads clips with both audio "
        "and gesture, and clips with text. If clips lack parts, the training run prints the value to give here.",
        commas=True,
    )
    audio_codec: str | None = option(None, "Codec whose latents the run trains on in place of the mel.", shown="mel")
    gesture_codec: str | None = option(
        None, "Codec whose latents the run trains on in place of the gesture channels.", shown="channels"
    )
    text_codec: str | None = option(
        None, "Codec whose latents the run trains on in place of text tokens.", shown="text tokens"
    )
    tick_multiple: int = option(
        1,
        "Window starts are multiples of this number of ticks, and of the number that each codec needs; give 4 for a "
        "run from OmniFlow's weights with --audio-codec.",
        minimum=1,
    )

    def __post_init__(self) -> None:
        """Convert each option to its type; raise UsageFault for an invalid value."""
        check(self)

    @property
    def codecs(self) -> dict[str, str]:
        """Names of the chosen codecs by stream."""
        chosen = {"audio": self.audio_codec, "gesture": self.gesture_codec, "text": self.text_codec}
        return {stream: name for stream, name in chosen.items() if name is not None}
