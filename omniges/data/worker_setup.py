"""What a reading process needs to fill blocks: a JSON document and arrays, made in one process, used in another.

It imports numpy, not torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.data.catalog import Catalog, ClipTable
from omniges.data.collate import BatchBlock, Collator, batch_layout, mixture_of, open_source
from omniges.data.normalize import Normaliser, Scale
from omniges.data.order import Mixture
from omniges.data.shared_memory import map_memory, place_arrays
from omniges.data.tracks import Tracks
from omniges.data.window_reader import ClipReader, ReadMarks, Verify
from omniges.errors import UsageFault
from omniges.shards.reader import LocalShards, ShardSource
from omniges.workers import Answer

_STREAMS: Final = ("gesture", "audio", "text")


@dataclass(frozen=True, slots=True, eq=False)
class DataSource:
    """One folder of a mixture: its clips, its share, and where the shards are if not in the catalogue's folder."""

    catalog: Catalog
    weight: float = 1.0
    shards: ShardSource | None = None

    def shard_source(self) -> ShardSource:
        """Where the shards are."""
        return self.shards or LocalShards(self.catalog.folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequencing:
    """What, with the folders, decides the sequence of windows."""

    window_ticks: int = 64
    seed: int = 0
    shuffle: bool = True  # else one pass in key order, windows without gaps
    tick_multiple: int = 1  # windows begin at multiples of it, where a model's tokens hold several rows

    def __post_init__(self) -> None:
        """Refuse a multiple that no number is one of."""
        if self.tick_multiple < 1:
            raise UsageFault(f"--tick-multiple {self.tick_multiple}: at least 1 expected")


def tracks_of(data: Sequence[DataSource]) -> Tracks:
    """What batches of these folders are made of; raises UsageFault where they hold latents of different codecs."""
    first = data[0].catalog
    for source in data[1:]:
        for stream, entry in first.codecs.items():
            other = source.catalog.codecs.get(stream)
            if other is None or not other.same_codec(entry):
                found, wanted = (
                    "none" if one is None else f"{one.name} {one.fingerprint[:16]}… ({one.described})"
                    for one in (other, entry)
                )
                raise UsageFault(
                    f"{source.catalog.folder}: latents of {wanted} expected as in {first.folder}, found {found}: "
                    "encode both with one codec"
                )
    return first.tracks


def make_order(data: Sequence[DataSource], sequencing: Sequencing) -> Mixture:
    """The order of the folders' windows."""
    tables = [source.catalog.table for source in data]
    weights = [source.weight for source in data]
    return mixture_of(
        tables,
        weights,
        sequencing.window_ticks,
        sequencing.seed,
        shuffle=sequencing.shuffle,
        tracks=tracks_of(data),
        tick_multiple=sequencing.tick_multiple,
    )


def make_document(data: Sequence[DataSource], sequencing: Sequencing, verify: Verify, stride: int) -> dict[str, Any]:
    """The JSON part."""
    return {
        "sources": [source.shard_source().specification() for source in data],
        "weights": [source.weight for source in data],
        "window_ticks": sequencing.window_ticks,
        "seed": sequencing.seed,
        "shuffle": sequencing.shuffle,
        "tick_multiple": sequencing.tick_multiple,
        "verify": verify,
        "stride": stride,
        "tracks": tracks_of(data).as_json(),
    }


def make_arrays(data: Sequence[DataSource], normaliser: Normaliser, tokenizer: bytes) -> dict[str, npt.NDArray[Any]]:
    """The arrays, by names that `make_collator` knows."""
    arrays: dict[str, npt.NDArray[Any]] = {"tokenizer": np.frombuffer(tokenizer, np.uint8)}
    for stream in _STREAMS:
        scale: Scale | None = getattr(normaliser, stream)
        if scale is not None:
            arrays |= {f"{stream}_mean": scale.mean, f"{stream}_divisor": scale.divisor}
    for number, source in enumerate(data):
        marks = ReadMarks.blank(len(source.catalog.table))
        own = source.catalog.table.arrays() | {"data_starts": marks.data_starts, "verified": marks.verified}
        arrays |= {f"{number}.{name}": array for name, array in own.items()}
    return arrays


def make_collator(document: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Collator:
    """A collator that reads by the document and marks what it has checked in the arrays."""
    tables, readers = [], []
    tracks = Tracks.from_json(document["tracks"])
    for number, specification in enumerate(document["sources"]):
        prefix = f"{number}."
        own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        marks = ReadMarks(own.pop("data_starts"), own.pop("verified"))
        tables.append(ClipTable(**own))
        readers.append(ClipReader(tables[-1], open_source(specification), marks, document["verify"], tracks))
    order = mixture_of(
        tables,
        document["weights"],
        document["window_ticks"],
        document["seed"],
        shuffle=document["shuffle"],
        tracks=tracks,
        tick_multiple=document["tick_multiple"],
    )
    scales = [
        Scale(arrays[f"{stream}_mean"], arrays[f"{stream}_divisor"])
        for stream in _STREAMS
        if f"{stream}_mean" in arrays
    ]
    tokenizer = arrays["tokenizer"].tobytes()
    return Collator(order, readers, Normaliser(*scales), tokenizer, document["stride"], tracks)


def prepare(setup: Mapping[str, Any]) -> Callable[[int], Answer]:
    """Return the function with which a worker process fills the block of a number (`omniges.workers`)."""
    shared = map_memory(setup["shared_fd"], setup["shared_bytes"])
    collator = make_collator(setup, place_arrays(np.frombuffer(shared, np.uint8), setup["places"]))
    places, size = batch_layout(setup["rows"], setup["window_ticks"], Tracks.from_json(setup["tracks"]))
    blocks: dict[int, BatchBlock] = {}

    def fill(number: int) -> Answer:
        if number not in blocks:
            mapped = map_memory(setup["blocks_fd"], size, number * size)
            blocks[number] = BatchBlock.of(np.frombuffer(mapped, np.uint8), places)
        block = blocks[number]
        collator.fill(block, block.positions[: block.progress[0]].copy())
        return None, ()

    return fill
