"""Fills batches: what stands at some positions, read and normalised straight into a block of memory.

A block also holds what its rows are, so the process that fills it needs nothing but positions, and the one that hands
it on copies nothing. What a collator needs is a JSON document and arrays, made in one process and used in another; the
latter imports numpy, not torch.
"""

from __future__ import annotations

import resource
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.conditions.base import ConditionStream
from omniges.conditions.registry import layout, load_streams, specification
from omniges.data.blocks import BatchBlock, batch_layout, map_memory, place_arrays
from omniges.data.catalog import ClipTable
from omniges.data.conditions import ConditionReader
from omniges.data.order import Mixture, Picks
from omniges.data.sequence import DataSource, Sequencing, order_of
from omniges.data.tracks import PLAIN_TRACKS, STREAMS, Normaliser, Scale, Tracks
from omniges.data.window_reader import ClipReader, ReadMarks, Verify
from omniges.features.text_slots import SlotCodec
from omniges.shards.latents import CodecEntry
from omniges.shards.reader import LocalShards, ShardSource
from omniges.workers import Answer

I64 = npt.NDArray[np.int64]

_PLANNED_WINDOWS: Final = 4096
_SLOT_CACHE_BYTES: Final = 64 << 20
_TILE_TICKS: Final = 64  # means and divisors of so many ticks are 1 MB: a cache should hold them


def open_source(specification: Mapping[str, Any]) -> ShardSource:
    """The shard source that `ShardSource.specification` describes."""
    if specification["kind"] == "local":
        return LocalShards(Path(specification["folder"]))
    from omniges.data.remote_shards import open_specification  # noqa: PLC0415 - only remote shards pay for it

    return open_specification(specification)


class _SlotCache:
    """Text slots of whole clips, the ones used longest ago dropped first."""

    def __init__(self, codec: SlotCodec) -> None:
        self._codec = codec
        self._kept: OrderedDict[tuple[int, int], npt.NDArray[np.int32]] = OrderedDict()
        self._bytes = 0

    def slots(self, number: int, reader: ClipReader, sample: int) -> npt.NDArray[np.int32]:
        """Slots (clip ticks,) of a clip of a folder."""
        name = (number, sample)
        found = self._kept.get(name)
        if found is not None:
            self._kept.move_to_end(name)
            return found
        found = self._codec.encode(reader.words(sample), int(reader.table.ticks[sample])).ids
        self._kept[name] = found
        self._bytes += found.nbytes
        while self._bytes > _SLOT_CACHE_BYTES and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return found


class Collator:
    """Fills blocks with the windows at given positions. Not for several threads at once."""

    def __init__(
        self,
        order: Mixture,
        readers: Sequence[ClipReader],
        normaliser: Normaliser,
        tokenizer: bytes,
        stride: int,
        tracks: Tracks = PLAIN_TRACKS,
        conditions: ConditionReader | None = None,
    ) -> None:
        """`stride` is the distance between the positions of successive blocks, by which the order is planned ahead."""
        self._order, self._readers, self._stride = order, tuple(readers), stride
        self._conditions = conditions
        self._ticks = order.orders[0].window_ticks
        tile = min(self._ticks, _TILE_TICKS)
        self._scales = Normaliser(
            normaliser.gesture.tiled(tracks.gesture.rows(tile) or 1),
            normaliser.audio.tiled(tracks.audio.rows(tile) or 1),
            normaliser.text.tiled(tracks.text.latents) if tracks.text and normaliser.text else None,
        )
        self._slots = None if self._scales.text else _SlotCache(SlotCodec(tokenizer))
        self._planned: dict[tuple[int, int], Picks] = {}
        self._cold = True

    def fill(self, block: BatchBlock, positions: I64) -> None:
        """Put the windows at positions (rows ≤ R,) into the block; raises DataError for what cannot be read."""
        rows, ticks = len(positions), self._ticks
        picks = self._picks(positions)
        block.progress[:] = rows, 0
        block.positions[:rows] = positions
        block.sources[:rows], block.epochs[:rows] = picks.source, picks.epoch
        block.samples[:rows], block.start_ticks[:rows] = picks.sample, picks.start_tick
        wanted = list(zip(picks.source.tolist(), picks.sample.tolist(), picks.start_tick.tolist(), strict=True))
        ahead = [(int(first) + self._stride * k, rows) for first in positions[:1] for k in (1, 2)]
        coming = [picks, *(self._planned[name] for name in ahead if name in self._planned)]  # shards take time to come
        for number, reader in enumerate(self._readers):
            reader.prefetch(np.concatenate([one.sample[one.source == number] for one in coming]))
        disk_before = resource.getrusage(resource.RUSAGE_SELF).ru_inblock
        if self._cold:
            for row, (source, sample, start) in enumerate(wanted):
                block.progress[1] = row
                self._readers[source].advise(sample, start, ticks)
        gesture, audio, text = (array.reshape(len(array), -1) for array in (block.gesture, block.audio, block.text))
        for row, (source, sample, start) in enumerate(wanted):
            block.progress[1] = row  # if this process is killed here, the other one knows where
            reader = self._readers[source]
            reader.read_window(sample, start, ticks, self._scales, (gesture[row], audio[row]))
            if self._slots is not None:
                block.text[row] = self._slots.slots(source, reader, sample)[start : start + ticks]
            elif self._scales.text is not None:
                reader.read_text(sample, start, ticks, self._scales.text, text[row])
            if self._conditions is not None:
                self._conditions.fill(block.conditions, row, source, sample, start, ticks)
        # What the disk had to give shows in this count, read ahead or not: only then is asking ahead worth its calls.
        self._cold = resource.getrusage(resource.RUSAGE_SELF).ru_inblock > disk_before

    def _picks(self, positions: I64) -> Picks:
        """Return the windows at these positions, planned for many blocks at once, which costs as much as one."""
        if not self._order.shuffle or not len(positions):
            return self._order.picks(positions)
        name = (int(positions[0]), len(positions))
        if name not in self._planned:
            blocks = max(1, _PLANNED_WINDOWS // len(positions))
            steps = self._stride * np.arange(blocks)
            picks = self._order.picks((positions[None, :] + steps[:, None]).reshape(-1))
            columns = np.stack([picks.source, picks.epoch, picks.sample, picks.start_tick]).reshape(4, blocks, -1)
            self._planned = {
                (name[0] + int(step), name[1]): Picks(*columns[:, number]) for number, step in enumerate(steps)
            }
        return self._planned[name]


def make_setup(
    data: Sequence[DataSource],
    sequencing: Sequencing,
    verify: Verify,
    stride: int,
    normaliser: Normaliser,
    tokenizer: bytes,
    conditions: Mapping[str, ConditionStream] = MappingProxyType({}),
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Return what `make_collator` takes: a JSON document, and arrays by name."""
    document = {
        "sources": [source.shard_source().specification() for source in data],
        "weights": [source.weight for source in data],
        "sequencing": asdict(sequencing),
        "verify": verify,
        "stride": stride,
        "codecs": {stream: (entry.name, entry.as_json()) for stream, entry in data[0].catalog.codecs.items()},
        "conditions": {name: specification(stream) for name, stream in conditions.items()},
        "fields": layout(conditions),
        "labels": [{name: values for name, (values, _) in source.catalog.labels.items()} for source in data],
    }
    arrays: dict[str, npt.NDArray[Any]] = {"tokenizer": np.frombuffer(tokenizer, np.uint8)}
    for stream in STREAMS:
        scale: Scale | None = getattr(normaliser, stream)
        if scale is not None:
            arrays |= {f"{stream}_mean": scale.mean, f"{stream}_divisor": scale.divisor}
    for number, source in enumerate(data):
        marks = ReadMarks.blank(len(source.catalog.table))
        own = source.catalog.table.arrays() | {"data_starts": marks.data_starts, "verified": marks.verified}
        arrays |= {f"{number}.{name}": array for name, array in own.items()}
        arrays |= {f"label.{number}.{name}": codes for name, (_, codes) in source.catalog.labels.items()}
    return document, arrays


def _tracks_of(document: Mapping[str, Any]) -> Tracks:
    return Tracks.with_codecs({stream: CodecEntry.from_json(*entry) for stream, entry in document["codecs"].items()})


def make_collator(document: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Collator:
    """A collator that reads by the document and marks what it has checked in the arrays."""
    tables, readers = [], []
    tracks = _tracks_of(document)
    for number, place in enumerate(document["sources"]):
        prefix = f"{number}."
        own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        marks = ReadMarks(own.pop("data_starts"), own.pop("verified"))
        tables.append(ClipTable(**own))
        readers.append(ClipReader(tables[-1], open_source(place), marks, document["verify"], tracks))
    order = order_of(tables, document["weights"], Sequencing(**document["sequencing"]), tracks)
    streams = STREAMS[: len(tracks.arrays)]
    normaliser = Normaliser(*(Scale(arrays[f"{stream}_mean"], arrays[f"{stream}_divisor"]) for stream in streams))
    conditions = None
    if document["conditions"]:
        labels = [
            {name: (values, arrays[f"label.{number}.{name}"]) for name, values in own.items()}
            for number, own in enumerate(document["labels"])
        ]
        conditions = ConditionReader(load_streams(document["conditions"]), readers, labels, tracks)
    return Collator(order, readers, normaliser, arrays["tokenizer"].tobytes(), document["stride"], tracks, conditions)


def prepare(setup: Mapping[str, Any]) -> Callable[[int], Answer]:
    """Return the function with which a worker process fills the block of a number (`omniges.workers`)."""
    shared = map_memory(setup["shared_fd"], setup["shared_bytes"])
    collator = make_collator(setup, place_arrays(np.frombuffer(shared, np.uint8), setup["places"]))
    ticks, fields = setup["sequencing"]["window_ticks"], setup["fields"]
    places, size = batch_layout(setup["rows"], ticks, _tracks_of(setup), fields)
    blocks: dict[int, BatchBlock] = {}

    def fill(number: int) -> Answer:
        if number not in blocks:
            mapped = map_memory(setup["blocks_fd"], size, number * size)
            blocks[number] = BatchBlock.of(np.frombuffer(mapped, np.uint8), places)
        block = blocks[number]
        collator.fill(block, block.positions[: block.progress[0]].copy())
        return None, ()

    return fill
