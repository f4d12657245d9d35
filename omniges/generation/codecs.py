"""The codecs of a model that was trained on latents: from inputs to latents, from latents to what a person can use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from omniges.codecs.base import BOTH_ENDS, Codec, End, FrameCodec, QuantisingCodec, WindowCodec, decode_latents
from omniges.codecs.registry import load_same_codec
from omniges.data.tracks import Track
from omniges.errors import UsageFault
from omniges.generation.conditions import Given
from omniges.generation.inputs import Input, Sources, latents_of
from omniges.generation.long_form import TicksOf, WindowSettings, window_spans
from omniges.model.streams import StreamName
from omniges.model.tasks import Task
from omniges.shards.latents import CodecEntry, FrameEntry, WindowEntry
from omniges.shards.reader import ShardFolder

__all__ = ["CodecFolders", "Conditions"]


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a model takes of an input, by stream, and what there is to say of it."""

    of: Mapping[StreamName, TicksOf]
    remarks: tuple[str, ...]


class CodecFolders:
    """The codecs that a checkpoint names, each loaded from the folder that a person gives when it is needed."""

    def __init__(
        self,
        entries: Mapping[StreamName, CodecEntry],
        folders: Sequence[tuple[str, Path]],
        t5_tokenizer: Path | None = None,
        *,
        quantised: bool = True,
    ) -> None:
        """`quantised`: codecs with codes snap what the model made to them before decoding.

        Raises UsageFault for a folder of a codec that the model does not have.
        """
        self._entries, self._folders, self._t5_tokenizer = dict(entries), dict(folders), t5_tokenizer
        self._quantised = quantised
        self._loaded: dict[StreamName, Codec] = {}
        self._ends: dict[StreamName, frozenset[End]] = {}  # that each is loaded for
        names = [entry.name for entry in self._entries.values()]
        for name in self._folders:
            if name not in names:
                raise UsageFault(f"--codec {name}: the model has {', '.join(names) or 'no codec'}: leave it away")
        if t5_tokenizer is not None and "text" not in self._entries:
            raise UsageFault("--t5-tokenizer: the model has no codec of text: leave it away")

    def require(self, tasks: Iterable[Task], sources: Sources) -> None:
        """Load what tasks need, before anything is made; what shards hold as latents needs no codec.

        A codec that is loaded for these ends already is not loaded again.

        Raises UsageFault where its folder is not given or holds another codec, DataError where it holds none.
        """
        wanted = list(tasks)
        conditions = {stream for task in wanted for stream in task.conditions}
        targets = {stream for task in wanted for stream in task.targets}
        for stream, entry in self._entries.items():
            of_files = stream in conditions
            if of_files and sources.from_shards and sources.shards is not None:
                of_files = latents_of(ShardFolder(sources.shards), entry) is None
            ends: set[End] = {"encode"} if of_files else set()
            ends |= {"decode"} if stream in targets else set()
            if ends:
                self._codec(stream, *ends)

    def conditions(self, item: Input, windows: WindowSettings) -> Conditions:
        """What the model takes of an input in these windows: latents where a stream is one of them."""
        found: dict[StreamName, TicksOf] = {}
        remarks: list[str] = []
        for given in item.given:
            if isinstance(self._entries.get(given.stream), WindowEntry):
                spans = window_spans(item.ticks, windows)
                found[given.stream], said = self._texts_of(given, item.ticks, spans)
                remarks += said
            else:
                found[given.stream] = self.ticks_of(given, item.ticks)
        return Conditions(found, tuple(remarks))

    def through_codes(self, targets: Sequence[StreamName]) -> bool | None:
        """Whether what is made of these streams is decoded through codes; None: no codec with codes decodes it."""
        codecs = [self._codec(stream, "decode") for stream in targets if stream in self._entries]
        return self._quantised if any(isinstance(codec, QuantisingCodec) for codec in codecs) else None

    def ticks_of(self, given: Given, ticks: int) -> TicksOf:
        """Ticks of an array, or of the rows of latents in its place."""
        entry = self._entries.get(given.stream)
        if not isinstance(entry, FrameEntry):
            return given.array
        rows = Track.of_codec(entry).rows
        if given.latents is None:
            codec = cast("FrameCodec", self._codec(given.stream, "encode"))
            latents = codec.encode(np.asarray(given.array(0, ticks), np.float32))
        else:
            latents = given.latents
        return lambda first, count: latents[rows(first) : rows(first) + rows(count)]

    def _texts_of(self, given: Given, ticks: int, spans: Sequence[tuple[int, int]]) -> tuple[TicksOf, list[str]]:
        """Latents (N, V) of the text of each window, and remarks on what they lose of it."""
        codec = cast("WindowCodec", self._codec(given.stream, "encode"))
        texts = codec.texts(given.words, ticks, spans)
        shape = codec.entry.latents, codec.entry.channels
        latents = dict(zip(spans, codec.encode_texts(texts).reshape(-1, *shape), strict=True))
        lost = codec.lost(texts)
        cut, unknown = sum(one.cut for one in lost), sum(one.unknown for one in lost)
        of = f"of {len(texts)} windows of text"
        remarks = [f"{cut} {of} lost their end: T5 reads 76 tokens"] if cut else []
        remarks += [f"{unknown} {of} have letters that T5 cannot spell, which are lost"] if unknown else []
        return lambda first, count: latents[first, count], remarks

    def has(self, stream: StreamName) -> bool:
        """Whether the model makes latents of a stream."""
        return stream in self._entries

    def windows_of_text(self, item: Input, windows: WindowSettings) -> list[tuple[int, int]] | None:
        """First tick and ticks of the windows that texts are made for; None where text is slots."""
        return window_spans(item.ticks, windows) if isinstance(self._entries.get("text"), WindowEntry) else None

    def decoded(self, stream: StreamName, array: npt.NDArray[Any]) -> Any:
        """What a person can use of what the model made: the mel of latents, or the text of each window."""
        return decode_latents(self._codec(stream, "decode"), array) if stream in self._entries else array

    def _codec(self, stream: StreamName, *ends: End) -> Codec:
        """A stream's codec, loaded for some ends at least."""
        there = self._ends.get(stream, frozenset())
        if not there.issuperset(ends):
            entry = self._entries[stream]
            if entry.name not in self._folders:
                raise UsageFault(
                    f"--codec: the model's {stream} is latents of {entry.name}: give --codec {entry.name}=FOLDER"
                )
            self._loaded.pop(stream, None)  # two at once would be large
            self._ends.pop(stream, None)
            of_text = isinstance(entry, WindowEntry)  # whose nets are large; others are whole in any case
            wanted = there | frozenset(ends) if of_text else BOTH_ENDS
            codec = load_same_codec(
                entry,
                self._folders[entry.name],
                "--codec",
                "the checkpoint",
                t5_tokenizer=self._t5_tokenizer,
                ends=wanted,
            )
            if isinstance(codec, QuantisingCodec):
                codec = codec.decoding(quantised=self._quantised)
            self._loaded[stream], self._ends[stream] = codec, wanted
        return self._loaded[stream]
