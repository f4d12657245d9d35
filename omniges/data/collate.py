"""Fills batches: what stands at some positions, read and normalised straight into a block of memory.

A block is laid out once for a number of rows and ticks. It also holds what the rows are, so the process that fills it
needs nothing but positions, and the one that hands it on copies nothing.
"""

from __future__ import annotations

import resource
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.data.catalog import ClipTable
from omniges.data.normalize import Normaliser, Scale
from omniges.data.order import ClipOrder, Mixture, Picks
from omniges.data.shared_memory import ArrayPlace, layout_of, place_arrays
from omniges.data.tracks import PLAIN_TRACKS, Tracks
from omniges.data.window_reader import ClipReader
from omniges.features.text_slots import SlotCodec
from omniges.shards.reader import LocalShards, ShardSource

I64 = npt.NDArray[np.int64]

_PLANNED_WINDOWS: Final = 4096
_SLOT_CACHE_BYTES: Final = 64 << 20
_TILE_TICKS: Final = 64  # means and divisors of so many ticks are 1 MB: a cache should hold them


def batch_layout(rows: int, window_ticks: int, tracks: Tracks = PLAIN_TRACKS) -> tuple[list[ArrayPlace], int]:
    """Places of a batch's arrays in its block, and the block's bytes."""
    gesture, audio, text = tracks.gesture, tracks.audio, tracks.text
    return layout_of(
        [
            ("gesture", "<f4", (rows, gesture.rows(window_ticks), gesture.channels)),
            ("audio", "<f4", (rows, audio.rows(window_ticks), audio.channels)),
            ("text", "<i4", (rows, window_ticks)) if text is None else ("text", "<f4", (rows, *text.shape)),
            ("positions", "<i8", (rows,)),
            ("sources", "<i8", (rows,)),
            ("epochs", "<i8", (rows,)),
            ("samples", "<i8", (rows,)),
            ("start_ticks", "<i8", (rows,)),
            ("progress", "<i8", (2,)),  # rows in the batch, and the row being filled
        ]
    )


@dataclass(frozen=True, slots=True, eq=False)
class BatchBlock:
    """Views of one block; R rows, w ticks."""

    gesture: npt.NDArray[np.float32]  # (R, w · 3, 415)
    audio: npt.NDArray[np.float32]  # (R, w · 10, 64), or latents
    text: npt.NDArray[Any]  # (R, w) int32 slots, or (R, latents, channels) float32
    positions: I64  # (R,)
    sources: I64
    epochs: I64
    samples: I64
    start_ticks: I64
    progress: I64  # (2,)

    @classmethod
    def of(cls, block: npt.NDArray[np.uint8], places: Sequence[ArrayPlace]) -> BatchBlock:
        """The views of a block."""
        return cls(**place_arrays(block, places))


def mixture_of(
    tables: Sequence[ClipTable],
    weights: Sequence[float],
    window_ticks: int,
    seed: int,
    *,
    shuffle: bool,
    tracks: Tracks = PLAIN_TRACKS,
    tick_multiple: int = 1,
) -> Mixture:
    """The order of the windows of several folders' clips; windows begin at multiples of `tick_multiple` at least."""
    multiple = tracks.multiple_for_window(window_ticks, tick_multiple)
    orders = [
        ClipOrder(table.ticks, table.key_hashes, window_ticks, seed, shuffle=shuffle, multiple=multiple)
        for table in tables
    ]
    return Mixture(orders, weights)


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
    ) -> None:
        """`stride` is the distance between the positions of successive blocks, by which the order is planned ahead."""
        self._order, self._readers, self._stride = order, tuple(readers), stride
        self._ticks = order.orders[0].window_ticks
        tile = min(self._ticks, _TILE_TICKS)
        self._scales = Normaliser(
            normaliser.gesture.tiled(tracks.gesture.rows(tile) or 1),
            normaliser.audio.tiled(tracks.audio.rows(tile) or 1),
        )
        self._text_scale: Scale | None = None
        self._slots: _SlotCache | None = None
        if tracks.text is not None and normaliser.text is not None:
            self._text_scale = normaliser.text.tiled(tracks.text.latents)
        else:
            self._slots = _SlotCache(SlotCodec(tokenizer))
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
            elif self._text_scale is not None:
                reader.read_text(sample, start, ticks, self._text_scale, text[row])
        # What the disk had to give shows in this count, read ahead or not: only then is asking ahead worth its calls.
        self._cold = resource.getrusage(resource.RUSAGE_SELF).ru_inblock > disk_before

    def _picks(self, positions: I64) -> Picks:
        """What stands at these positions, planned for many blocks at once: small arrays cost as much as large ones."""
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
