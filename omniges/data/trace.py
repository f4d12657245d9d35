"""What did step k see? The windows of a rank's steps, found without reading a shard unless their digests are wanted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from omniges.data.blocks import BatchBlock, batch_layout
from omniges.data.catalog import Filters, read_catalog
from omniges.data.collate import make_collator, make_setup
from omniges.data.order import RankShare
from omniges.data.sequence import DataSource, Sequencing, make_order
from omniges.data.settings import TraceSettings

I64 = npt.NDArray[np.int64]


def trace(settings: TraceSettings) -> Iterator[dict[str, Any]]:
    """One record a window: step, rank, position, key, start_tick, split, with `decode` also sha256.

    The digest is of the batch's normalised gesture, mel and text slots of the window (or of latents in their place):
    float32, slots int32, little-endian, in this order. Raises what `read_catalog` and the reading of shards raise.
    """
    share = RankShare(rank=settings.rank, world_size=settings.world_size, batch_size=settings.batch_size)
    sequencing = Sequencing(
        window_ticks=settings.window_ticks, seed=settings.seed, tick_multiple=settings.tick_multiple
    )
    catalog = read_catalog(settings.shards, Filters(split=settings.split, streams=settings.streams), settings.codecs)
    data = [DataSource(catalog)]
    digests_at = _digester(data, sequencing, share) if settings.decode else None
    order = make_order(data, sequencing)
    for step in range(settings.from_step, settings.from_step + settings.steps):
        positions = share.positions(step * share.global_batch)
        picks = order.picks(positions)
        digests = digests_at(positions) if digests_at else [None] * len(positions)
        for row, digest in enumerate(digests):
            record = {
                "step": step,
                "rank": share.rank,
                "position": int(positions[row]),
                "key": catalog.table.key(int(picks.sample[row])),
                "start_tick": int(picks.start_tick[row]),
                "split": settings.split,
            }
            yield record | ({"sha256": digest} if digest else {})


def _digester(data: list[DataSource], sequencing: Sequencing, share: RankShare) -> Callable[[I64], list[str]]:
    """Return what reads windows as a loader does, in this process: sha256 of the window at each position (rows,)."""
    catalog = data[0].catalog
    normaliser, tokenizer = catalog.normaliser(), catalog.tokenizer
    collator = make_collator(*make_setup(data, sequencing, "first", share.micro_batch, normaliser, tokenizer))
    places, size = batch_layout(share.batch_size, sequencing.window_ticks, catalog.tracks)
    block = BatchBlock.of(np.zeros(size, np.uint8), places)

    def digests(positions: I64) -> list[str]:
        collator.fill(block, positions)
        found = []
        for row in range(len(positions)):
            digest = hashlib.sha256()
            for array in (block.gesture[row], block.audio[row], block.text[row]):
                digest.update(np.ascontiguousarray(array).data)
            found.append(digest.hexdigest())
        return found

    return digests
