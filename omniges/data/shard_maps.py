"""Memory maps of shards, each of the size that dataset.json states. Imports no torch."""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError
from omniges.shards.reader import ShardSource
from omniges.shards.schema import VERIFY
from omniges.storage.cache import CacheFull

MAX_MAPS: Final = 64
"""Shards that a process keeps mapped; the least recently used is unmapped first."""


@dataclass(frozen=True, slots=True)
class MappedShard:
    """A shard in memory, as bytes and as float32."""

    content: mmap.mmap
    floats: npt.NDArray[np.float32]


class ShardMaps(Collection[str]):
    """Mapped shards of a source, by name. Not safe for several threads at once; a copy in another process is empty."""

    def __init__(self, source: ShardSource) -> None:
        """Map nothing yet."""
        self._source = source
        self._maps: OrderedDict[str, MappedShard] = OrderedDict()

    def get(self, shard: str, size_bytes: int) -> MappedShard:
        """Return a shard, mapped now if it is not yet.

        Args:
            shard: Name of the shard.
            size_bytes: Size of the shard by dataset.json.

        Returns:
            The mapped shard.

        Raises:
            DataError: The shard does not exist or has another size.
            EnvironmentFault: The shard cannot be opened.
        """
        mapped = self._maps.get(shard)
        if mapped is not None:
            self._maps.move_to_end(shard)
            return mapped
        descriptor = self._open(shard)
        try:
            found_bytes = os.fstat(descriptor).st_size
            if found_bytes != size_bytes:
                shown = self._source.describe(shard)
                raise DataError(f"{shown}: {size_bytes} bytes expected, found {found_bytes}. {VERIFY}")
            content = mmap.mmap(descriptor, size_bytes, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)
        while len(self._maps) >= MAX_MAPS:
            self._maps.popitem(last=False)
        self._maps[shard] = mapped = MappedShard(content, np.frombuffer(content, np.float32, size_bytes // 4))
        return mapped

    def _open(self, shard: str) -> int:
        try:
            return self._source.open(shard)
        except CacheFull:
            if not self._maps:
                raise
            self._maps.clear()  # a cache cannot evict mapped shards: unmap all and try once more
            return self._source.open(shard)

    def __contains__(self, shard: object) -> bool:
        return shard in self._maps

    def __iter__(self) -> Iterator[str]:
        return iter(self._maps)

    def __len__(self) -> int:
        return len(self._maps)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": OrderedDict()}
