"""The codecs of a model that was trained on latents: from inputs to latents, from latents to what a person can use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from omniges.errors import UsageFault
from omniges.shards.codecs import CodecEntry
from omniges.shards.reader import ShardFolder
from omniges.trainer.codecs.codec import Codec, QuantisingCodec, load_same_codec
from omniges.trainer.data.tracks import Track
from omniges.trainer.generate.inputs import Given
from omniges.trainer.generate.sources import Sources, latents_of
from omniges.trainer.generate.windows import TicksOf
from omniges.trainer.model.streams import StreamName
from omniges.trainer.model.tasks import Task

__all__ = ["CodecFolders"]


class CodecFolders:
    """The codecs that a checkpoint names, each loaded from the folder that a person gives when it is needed."""

    def __init__(
        self, entries: Mapping[StreamName, CodecEntry], folders: Sequence[tuple[str, Path]], *, quantised: bool = True
    ) -> None:
        """`quantised`: codecs with codes snap what the model made to them before decoding.

        Raises UsageFault for a folder of a codec that the model does not have.
        """
        self._entries, self._folders, self._quantised = dict(entries), dict(folders), quantised
        self._loaded: dict[StreamName, Codec] = {}
        names = [entry.name for entry in self._entries.values()]
        for name in self._folders:
            if name not in names:
                raise UsageFault(f"--codec {name}: the model has {', '.join(names) or 'no codec'}: leave it away")

    def require(self, task: Task, sources: Sources) -> None:
        """Load what a task needs, before anything is made; what shards hold as latents needs no codec.

        Raises UsageFault where its folder is not given or holds another codec, DataError where it holds none.
        """
        for stream, entry in self._entries.items():
            of_files = stream in task.conditions
            if of_files and sources.from_shards and sources.shards is not None:
                of_files = latents_of(ShardFolder(sources.shards), entry) is None
            if of_files or stream in task.targets:
                self._codec(stream)

    def through_codes(self, targets: Sequence[StreamName]) -> bool | None:
        """Whether what is made of these streams is decoded through codes; None: no codec with codes decodes it."""
        codecs = [self._codec(stream) for stream in targets if stream in self._entries]
        return self._quantised if any(isinstance(codec, QuantisingCodec) for codec in codecs) else None

    def ticks_of(self, given: Given, ticks: int) -> TicksOf:
        """What the model takes of an input of some ticks: latents where its stream is one of them."""
        entry = self._entries.get(given.stream)
        if entry is None:
            return given.array
        rows = Track.of_codec(entry).rows
        if given.latents is None:
            latents = self._codec(given.stream).encode(np.asarray(given.array(0, ticks), np.float32))
        else:
            latents = given.latents
        return lambda first, count: latents[rows(first) : rows(first) + rows(count)]

    def has(self, stream: StreamName) -> bool:
        """Whether the model makes latents of a stream."""
        return stream in self._entries

    def decoded(self, stream: StreamName, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What a person can use of what the model made: the mel of latents."""
        if stream not in self._entries:
            return array
        return self._codec(stream).decode(np.asarray(array, np.float32))

    def _codec(self, stream: StreamName) -> Codec:
        if stream not in self._loaded:
            entry = self._entries[stream]
            if entry.name not in self._folders:
                raise UsageFault(
                    f"--codec: the model's {stream} is latents of {entry.name}: give --codec {entry.name}=FOLDER"
                )
            folder = self._folders[entry.name]
            codec = load_same_codec(entry, folder, "--codec", "the checkpoint")
            if isinstance(codec, QuantisingCodec):
                codec = codec.decoding(quantised=self._quantised)
            self._loaded[stream] = codec
        return self._loaded[stream]
