"""List the windows that one rank reads in each training step. Shards are read only if digests are requested."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from omniges.data.blocks import BatchBlock, batch_layout
from omniges.data.catalog import Filters, read_catalog
from omniges.data.collate import make_collator, make_setup
from omniges.data.order import MAX_POSITION, RankShare
from omniges.data.sequence import DataSource, Sequencing, make_order
from omniges.data.settings import TraceSettings
from omniges.errors import UsageFault

I64 = npt.NDArray[np.int64]


def trace(settings: TraceSettings) -> Iterator[dict[str, Any]]:
    """Yield a record for each window that the rank reads in the chosen steps.

    Args:
        settings: Settings of the command.

    Yields:
        A dictionary with step, rank, position, key, start_tick, split and, if `decode` is set, sha256. The sha256 is
        computed from the window's bytes in a batch: normalised gesture, normalised mel and text tokens, in this order.
        If a codec is chosen for a stream, its latents replace the array of this stream. Tokens are int32, all other
        values are float32; both are little-endian.

    Raises:
        UsageFault: The folder does not exist or lacks the requested clips or latents, or the first step is too large;
            then the error states the limit.
        DataError: The shards are damaged.
    """
    share = RankShare(rank=settings.rank, world_size=settings.world_size, batch_size=settings.batch_size)
    if (settings.from_step + settings.steps) * share.global_batch > MAX_POSITION:
        raise UsageFault(
            f"--from-step {settings.from_step}: expected steps below {MAX_POSITION // share.global_batch}; "
            "choose an earlier step"
        )
    sequencing = Sequencing(
        window_ticks=settings.window_ticks, seed=settings.seed, tick_multiple=settings.tick_multiple
    )
    catalog = read_catalog(settings.shards, Filters(split=settings.split, streams=settings.streams), settings.codecs)
    data = [DataSource(catalog)]
    digests_at = _digester(data, sequencing, share) if settings.decode else None
    order = make_order(data, sequencing)
    for step in range(settings.from_step, settings.from_step + settings.steps):
        positions = share.positions(step * share.global_batch)
        indices = order.windows_at(positions)
        digests = digests_at(positions) if digests_at else [None] * len(positions)
        for row, digest in enumerate(digests):
            record = {
                "step": step,
                "rank": share.rank,
                "position": int(positions[row]),
                "key": catalog.table.key(int(indices.sample[row])),
                "start_tick": int(indices.start_tick[row]),
                "split": settings.split,
            }
            yield record | ({"sha256": digest} if digest else {})


def _digester(data: list[DataSource], sequencing: Sequencing, share: RankShare) -> Callable[[I64], list[str]]:
    """Return a function that takes positions (rows,) and returns the sha256 of the window at each position.

    The function reads the windows in the same way as a loader.
    """
    catalog = data[0].catalog
    normaliser, tokenizer = catalog.normaliser(), catalog.tokenizer
    setup = make_setup(data, sequencing, "first", share.micro_batch, normaliser, tokenizer)
    collator = make_collator(*setup, mapped=False)
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
