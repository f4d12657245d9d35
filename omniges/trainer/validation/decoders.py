"""The codecs that a validation decodes with: what a model makes as latents is scored as what they stand for.

Losses need none of them. Where a stream's codec is not given, the tasks that make the stream are not sampled, and all
who would be told their metrics are told why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch

from omniges.model.streams import StreamName
from omniges.model.tasks import TASKS
from omniges.shards.latents import CodecEntry, WindowEntry
from omniges.trainer.validation.losses import SIX

if TYPE_CHECKING:
    from omniges.codecs.base import Codec, End

__all__ = ["Decoders", "open_decoders"]


@dataclass(frozen=True, slots=True)
class Decoders:
    """Which streams of a run are latents, and the codecs of those that can be decoded."""

    entries: Mapping[StreamName, CodecEntry] = field(default_factory=dict)
    loaded: Mapping[StreamName, Codec] = field(default_factory=dict)

    def why_not(self, task: str) -> str | None:
        """Why a task's results cannot be made, with the way out; None where they can."""
        for name in TASKS[task].targets:
            if name in self.entries and name not in self.loaded:
                codec = self.entries[name].name
                return f"{name} is latents of {codec}: give --validation-codec {codec}=FOLDER"
        return None

    @property
    def quantising(self) -> frozenset[StreamName]:
        """Streams whose codec snaps latents to codes before it decodes them."""
        if not self.loaded:
            return frozenset()
        from omniges.codecs.base import QuantisingCodec  # noqa: PLC0415 - loaded, where a codec is

        return frozenset(name for name, codec in self.loaded.items() if isinstance(codec, QuantisingCodec))

    @property
    def untimed_text(self) -> bool:
        """Whether text is latents of whole windows, whose words have no times."""
        return isinstance(self.entries.get("text"), WindowEntry)

    def decoded(self, name: StreamName, array: npt.NDArray[Any]) -> Any:
        """What a model made of a stream in one window: of latents, the frames or the text that they stand for."""
        if name not in self.loaded:
            return array
        from omniges.codecs.base import decode_latents  # noqa: PLC0415 - loaded, where a codec is

        return decode_latents(self.loaded[name], array)

    def remarks(self) -> list[str]:
        """What a person should know before the first step."""
        told = [f"validation decodes {name} with {codec.entry.name}" for name, codec in self.loaded.items()]
        reasons: dict[str, list[str]] = {}
        for task in SIX:
            if (why := self.why_not(task)) is not None:
                reasons.setdefault(why, []).append(task)
        told += [f"metrics and samples of {' and '.join(own)} not computed: {why}" for why, own in reasons.items()]
        return told


def open_decoders(
    entries: Mapping[StreamName, CodecEntry],
    folders: Mapping[str, Path],
    device: torch.device,
    t5_tokenizer: Path | None = None,
) -> Decoders:
    """The codecs of a run's latents, loaded from the folders that are given by codec name.

    ``t5_tokenizer``: the folder of a text codec's T5 tokenizer where that is not in its own.

    Nothing else changes: a codec's first weights are drawn from torch's generators, which are put back. Raises
    UsageFault where a folder holds another codec than the one that made the shards' latents, DataError where it holds
    none.
    """
    given = {name: folders[entry.name] for name, entry in entries.items() if entry.name in folders}
    if not given:
        return Decoders(entries)
    from omniges.codecs.registry import load_same_codec  # noqa: PLC0415 - runs that decode nothing load no codec

    decode: frozenset[End] = frozenset({"decode"})
    with torch.random.fork_rng(devices=[]):
        loaded = {
            name: load_same_codec(
                entries[name],
                folder,
                "--validation-codec",
                "the shards",
                device,
                t5_tokenizer=t5_tokenizer,
                ends=decode,
            )
            for name, folder in given.items()
        }
    return Decoders(entries, loaded)
