"""Fill batches: read the windows at given positions and normalise them directly into a block of memory.

A block has a row for each window of a batch. It also contains the positions and other metadata of its windows. Worker
and loader share the block, so no data is copied between them. `make_setup` describes a collator by a JSON document
and arrays. `make_collator` creates the collator from them, in the same process or in a worker process. The process that
fills a block also computes the arrays of condition streams. It imports numpy, but not torch.
"""

from __future__ import annotations

import resource
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.conditions.base import STREAM_OF, ConditionStream, Content, Recording, TrainingFacts, window_value
from omniges.conditions.registry import labels_read, layout, load_streams, specification
from omniges.data.blocks import BatchBlock, batch_layout, map_memory, place_arrays
from omniges.data.catalog import Catalog, ClipTable, LabelColumn
from omniges.data.order import Mixture, WindowIndices
from omniges.data.sequence import DataSource, Sequencing, order_of
from omniges.data.tracks import PLAIN_TRACKS, STREAMS, TILE_TICKS, Normaliser, Scale, Tracks
from omniges.data.window_reader import ClipReader, ReadMarks, Verify
from omniges.errors import UsageFault
from omniges.features.gesture import LAYOUT
from omniges.features.text_tokens import TextTokenCodec
from omniges.shards.latents import CodecEntry
from omniges.shards.present import STREAM_BITS, absent_channels
from omniges.shards.reader import LocalShards, ShardSource
from omniges.workers import Answer

I64 = npt.NDArray[np.int64]

_PLANNED_WINDOWS: Final = 4096
_TOKEN_CACHE_BYTES: Final = 64 << 20


def training_facts(catalogs: Sequence[Catalog], statistics: Mapping[str, Any]) -> TrainingFacts:
    """Return the label values and statistics of the training set, from which condition streams are created.

    Args:
        catalogs: Catalogues of the training set, with the labels of their clips.
        statistics: Content of stats.json.

    Returns:
        Values of each label, and the statistics.
    """
    found: dict[str, set[str]] = {name: set() for name in catalogs[0].labels}
    for catalog in catalogs:
        for name, (values, codes) in catalog.labels.items():
            found[name] |= {values[code] for code in np.unique(codes).tolist() if code >= 0}
    return TrainingFacts({name: tuple(sorted(values)) for name, values in found.items()}, statistics)


def require_readable(streams: Mapping[str, ConditionStream], codecs: Mapping[str, Any]) -> None:
    """Refuse a condition stream if latents of a codec replace an array that it reads.

    Args:
        streams: Condition streams by name.
        codecs: Codecs of the run, by the stream that their latents replace.

    Raises:
        UsageFault: Latents replace an array that a condition stream reads.
    """
    for name, stream in streams.items():
        lost = [content for content in stream.reads if STREAM_OF[content] in codecs]
        if lost:
            raise UsageFault(
                f"--condition-streams {name}: expected {lost[0]}, which it reads, found {STREAM_OF[lost[0]]} as "
                "latents of a codec; remove the condition stream or the codec"
            )


class ConditionReader:
    """Reader of condition values for windows; not safe for several threads at once."""

    def __init__(
        self,
        streams: Mapping[str, ConditionStream],
        readers: Sequence[ClipReader],
        labels: Sequence[Mapping[str, LabelColumn]],
        tracks: Tracks,
    ) -> None:
        """Create a reader for all shard folders of a run.

        Args:
            streams: Condition streams by name.
            readers: Reader of each folder.
            labels: Label columns of each folder, by label name.
            tracks: The array of each stream: features, or latents of a codec.
        """
        self._streams, self._readers, self._labels = streams, readers, labels
        self._names = labels_read(streams.values())
        self._contents = {content for stream in streams.values() for content in stream.reads}
        self._tracks = tracks
        plain = Normaliser.identity(tracks)
        self._plain = Normaliser(
            plain.gesture.tiled(tracks.gesture.rows(TILE_TICKS)), plain.audio.tiled(tracks.audio.rows(TILE_TICKS))
        )

    def fill(
        self, arrays: Mapping[str, npt.NDArray[Any]], row: int, source: int, sample: int, start: int, ticks: int
    ) -> None:
        """Write the values of all condition streams for a window into a row of a block.

        Args:
            arrays: Arrays of the block by name: ``condition.NAME`` and ``known.NAME`` for each condition stream.
            row: Index of the row in the block.
            source: Index of the shard folder that contains the clip.
            sample: Index of the clip in the folder's catalogue.
            start: First tick of the window.
            ticks: Length of the window in ticks.

        Raises:
            DataError: A member cannot be read.
        """
        recording = self._recording(source, sample)
        for name, stream in self._streams.items():
            value = window_value(stream, recording, start, ticks)
            arrays[f"known.{name}"][row] = value is not None
            arrays[f"condition.{name}"][row] = 0 if value is None else value

    def _recording(self, source: int, sample: int) -> Recording:
        labels = {}
        for name in self._names:
            values, codes = self._labels[source][name]
            if codes[sample] >= 0:
                labels[name] = values[codes[sample]]
        bits = int(self._readers[source].table.present[sample])
        there = [content for content in self._contents if bits & STREAM_BITS[STREAM_OF[content]]]
        return Recording(labels, {content: partial(self._read, content, source, sample) for content in there})

    def _read(self, content: Content, source: int, sample: int, first: int, ticks: int) -> Any:
        reader = self._readers[source]
        if content == "words":
            return reader.words(sample)
        pair = zip((self._tracks.gesture, self._tracks.audio), self._tracks.widths, strict=False)
        gesture, mel = (np.empty((track.rows(ticks), width), np.float32) for track, width in pair)
        reader.read_window(sample, first, ticks, self._plain, (gesture.reshape(-1), mel.reshape(-1)))
        for columns in absent_channels(int(reader.table.present[sample])):
            gesture[:, columns] = np.nan
        return gesture[:, : LAYOUT.channels] if content == "gesture" else mel


def open_source(specification: Mapping[str, Any]) -> ShardSource:
    """Open the shard source that `ShardSource.specification` describes."""
    if specification["kind"] == "local":
        return LocalShards(Path(specification["folder"]))
    from omniges.data.remote_shards import open_specification  # noqa: PLC0415 - only for remote shards

    return open_specification(specification)


class _TokenCache:
    """A cache of text tokens, for complete clips. If it is full, it drops the least recently used clip."""

    def __init__(self, codec: TextTokenCodec) -> None:
        self._codec = codec
        self._kept: OrderedDict[tuple[int, int], npt.NDArray[np.int32]] = OrderedDict()
        self._bytes = 0

    def tokens(self, number: int, reader: ClipReader, sample: int) -> npt.NDArray[np.int32]:
        """Return the text tokens of a clip, one for each tick.

        Args:
            number: Index of the shard folder that contains the clip.
            reader: Reader of this folder.
            sample: Index of the clip in the folder's catalogue.

        Returns:
            Token ids (clip ticks,).
        """
        name = (number, sample)
        found = self._kept.get(name)
        if found is not None:
            self._kept.move_to_end(name)
            return found
        found = self._codec.encode(reader.words(sample), int(reader.table.ticks[sample])).ids
        self._kept[name] = found
        self._bytes += found.nbytes
        while self._bytes > _TOKEN_CACHE_BYTES and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return found


class Collator:
    """A reader that fills blocks with windows; not safe for several threads at once."""

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
        """Create a collator, without reading any window yet.

        Args:
            order: Order of the windows.
            readers: Reader of each folder.
            normaliser: Means and divisors of the arrays.
            tokenizer: Content of tokenizer.json.
            stride: Distance between the first positions of successive blocks. The collator uses it to compute the
                windows of later blocks in advance.
            tracks: The array of each stream: features, or latents of a codec.
            conditions: Reader of condition streams; None: the run has no condition streams.
        """
        self._order, self._readers, self._stride = order, tuple(readers), stride
        self._conditions = conditions
        self._ticks = order.orders[0].window_ticks
        tile = min(self._ticks, TILE_TICKS)
        self._scales = Normaliser(
            normaliser.gesture.tiled(tracks.gesture.rows(tile) or 1),
            normaliser.audio.tiled(tracks.audio.rows(tile) or 1),
            normaliser.text.tiled(tracks.text.latents) if tracks.text and normaliser.text else None,
        )
        self._tokens = None if self._scales.text else _TokenCache(TextTokenCodec(tokenizer))
        self._planned: dict[tuple[int, int], WindowIndices] = {}
        self._cold = True

    def fill(self, block: BatchBlock, positions: I64) -> None:
        """Read the windows at the given positions into a block.

        Args:
            block: Block of R rows.
            positions: Positions (n,) of the windows, n ≤ R.

        Raises:
            DataError: A window cannot be read.
        """
        rows, ticks = len(positions), self._ticks
        indices = self._indices(positions)
        block.progress[:] = rows, 0
        block.positions[:rows] = positions
        block.sources[:rows], block.epochs[:rows] = indices.source, indices.epoch
        block.samples[:rows], block.start_ticks[:rows] = indices.sample, indices.start_tick
        wanted = list(zip(indices.source.tolist(), indices.sample.tolist(), indices.start_tick.tolist(), strict=True))
        ahead = [(int(first) + self._stride * k, rows) for first in positions[:1] for k in (1, 2)]
        # This block and the next two, so that downloads start early.
        coming = [indices, *(self._planned[name] for name in ahead if name in self._planned)]
        for number, reader in enumerate(self._readers):
            reader.prefetch(np.concatenate([one.sample[one.source == number] for one in coming]))
        disk_before = resource.getrusage(resource.RUSAGE_SELF).ru_inblock
        if self._cold:
            for row, (source, sample, start) in enumerate(wanted):
                block.progress[1] = row
                self._readers[source].advise(sample, start, ticks)
        gesture, audio, text = (array.reshape(len(array), -1) for array in (block.gesture, block.audio, block.text))
        for row, (source, sample, start) in enumerate(wanted):
            block.progress[1] = row  # the loader reports this row if the process dies
            reader = self._readers[source]
            reader.read_window(sample, start, ticks, self._scales, (gesture[row], audio[row]))
            if self._tokens is not None:
                block.text[row] = self._tokens.tokens(source, reader, sample)[start : start + ticks]
            elif self._scales.text is not None:
                reader.read_text(sample, start, ticks, self._scales.text, text[row])
            if self._conditions is not None:
                self._conditions.fill(block.conditions, row, source, sample, start, ticks)
        # `ru_inblock` counts reads from disk. Advice is useful only while the count increases.
        self._cold = resource.getrusage(resource.RUSAGE_SELF).ru_inblock > disk_before

    def _indices(self, positions: I64) -> WindowIndices:
        """Return the windows at these positions.

        The windows of many later blocks are computed in the same call, because one call is faster than many.
        """
        if not self._order.shuffle or not len(positions):
            return self._order.windows_at(positions)
        name = (int(positions[0]), len(positions))
        if name not in self._planned:
            blocks = max(1, _PLANNED_WINDOWS // len(positions))
            steps = self._stride * np.arange(blocks)
            indices = self._order.windows_at((positions[None, :] + steps[:, None]).reshape(-1))
            columns = np.stack([indices.source, indices.epoch, indices.sample, indices.start_tick]).reshape(
                4, blocks, -1
            )
            self._planned = {
                (name[0] + int(step), name[1]): WindowIndices(*columns[:, number]) for number, step in enumerate(steps)
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
    """Describe a collator by a JSON document and arrays, from which `make_collator` creates it in any process.

    Args:
        data: Shard sets to read, with their weights.
        sequencing: Order of the windows.
        verify: ``first``: check the sha256 of each member before its first use; ``never``: do not check it.
        stride: Distance between the first positions of successive blocks of one process.
        normaliser: Means and divisors of the arrays.
        tokenizer: Content of tokenizer.json.
        conditions: Condition streams by name.

    Returns:
        The JSON document, and the arrays by name: the first two arguments of `make_collator`.
    """
    document = {
        "sources": [source.shard_source().specification() for source in data],
        "weights": [source.weight for source in data],
        "sequencing": asdict(sequencing),
        "verify": verify,
        "stride": stride,
        "gesture_channels": data[0].catalog.gesture_channels,
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
        marks = ReadMarks.blank(len(source.catalog.table), source.catalog.tracks)
        own = source.catalog.table.arrays() | {"data_starts": marks.data_starts, "verified": marks.verified}
        arrays |= {f"{number}.{name}": array for name, array in own.items()}
        arrays |= {f"label.{number}.{name}": codes for name, (_, codes) in source.catalog.labels.items()}
    return document, arrays


def _tracks_of(document: Mapping[str, Any]) -> Tracks:
    codecs = {stream: CodecEntry.from_json(*entry) for stream, entry in document["codecs"].items()}
    return Tracks.of(document["gesture_channels"], codecs)


def make_collator(
    document: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]], *, mapped: bool = True
) -> Collator:
    """Make a collator from a result of `make_setup`, in the same or another process.

    Args:
        document: Document of `make_setup`.
        arrays: Arrays of `make_setup`. The collator marks checked members in them.
        mapped: True: read shards through memory maps, as worker processes do. If a mapped shard is truncated, the
            kernel kills the process. False: read each range from the file.

    Returns:
        The collator.
    """
    tables, readers = [], []
    tracks = _tracks_of(document)
    for number, place in enumerate(document["sources"]):
        prefix = f"{number}."
        own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        marks = ReadMarks(own.pop("data_starts"), own.pop("verified"))
        tables.append(ClipTable(**own))
        readers.append(ClipReader(tables[-1], open_source(place), marks, document["verify"], tracks, mapped=mapped))
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
    """Return the task function of a loader worker (`omniges.workers`). Its argument is the index of a block to fill."""
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
