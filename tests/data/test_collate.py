"""Remote shards are asked for before they are needed: the hint names those of the blocks to come."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from batch_builders import write_shards

from omniges.data.blocks import BlockStore
from omniges.data.catalog import Filters, read_catalog
from omniges.data.collate import Collator
from omniges.data.sequence import DataSource, Sequencing, make_order
from omniges.data.window_reader import ClipReader, ReadMarks
from omniges.shards.reader import LocalShards


@dataclass
class Watched:
    """A folder that remembers what it was asked."""

    inner: LocalShards
    hints: list[list[str]] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)

    def open(self, shard: str) -> int:
        self.opened.append(shard)
        return self.inner.open(shard)

    def prefetch(self, shards: Iterable[str]) -> None:
        self.hints.append(list(shards))

    def describe(self, shard: str) -> str:
        return self.inner.describe(shard)

    def doubt(self, shard: str) -> None:
        self.inner.doubt(shard)

    def specification(self) -> dict[str, Any]:
        return self.inner.specification()


def test_a_shard_is_hinted_at_a_block_before_it_is_opened(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    write_shards(folder, [8] * 12, 1)  # a window a clip, a clip a shard
    catalog = read_catalog(folder, Filters())
    source = Watched(LocalShards(folder))
    reader = ClipReader(catalog.table, source, ReadMarks.blank(len(catalog.table)))
    order = make_order([DataSource(catalog)], Sequencing(window_ticks=8))
    collator = Collator(order, [reader], catalog.normaliser(), catalog.tokenizer, stride=2)
    store = BlockStore(2, 8, pin=False)
    for first in range(0, 12, 2):
        known = {shard for hint in source.hints for shard in hint}
        before = len(source.opened)
        collator.fill(store.view(store.take()), np.arange(first, first + 2))
        if first:
            assert set(source.opened[before:]) <= known
    assert len(source.opened) == 12
    assert source.hints[0][:2] == source.opened[:2]  # the most urgent come first
