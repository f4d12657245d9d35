"""Memory maps of shards, each of the size that dataset.json states. Imports no torch.

The kernel ends a process that reads a map of a file which was truncated (SIGBUS). A process that must not end reads
shards range by range instead.
"""

from __future__ import annotations

import mmap
import os
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError
from omniges.shards.reader import ShardSource
from omniges.shards.schema import VERIFY
from omniges.storage.atomic import os_errors
from omniges.storage.cache import CacheFull

MAX_MAPS: Final = 64
"""Shards that a process keeps mapped; the least recently used is unmapped first."""


class ShardFile:
    """An open shard that is used like a map, but reads each range when it is accessed."""

    def __init__(self, descriptor: int, size_bytes: int, shown: str) -> None:
        """Use an open file, and close it at the end.

        Args:
            descriptor: The file, closed when the object is deleted.
            size_bytes: Its size.
            shown: Its name for errors.
        """
        self._descriptor, self._size, self._shown = descriptor, size_bytes, shown

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, place: slice, /) -> bytes:
        start, stop, _ = place.indices(self._size)
        with os_errors(Path(self._shown), "read"):
            found = os.pread(self._descriptor, max(0, stop - start), start)
        self._require(stop - start, start, len(found))
        return found

    def read_into(self, values: npt.NDArray[np.float32], start: int) -> None:
        """Fill an array with bytes of the shard.

        Args:
            values: The array.
            start: First byte in the shard.

        Raises:
            DataError: The shard ends before the range does.
            EnvironmentFault: The shard cannot be read.
        """
        with os_errors(Path(self._shown), "read"):
            found = os.preadv(self._descriptor, [values.data], start)
        self._require(values.nbytes, start, found)

    def _require(self, expected: int, start: int, found: int) -> None:
        if found < expected:
            raise DataError(
                f"{self._shown}: expected {expected} bytes at byte {start}, found {found}; the shard was "
                f"truncated while it was read, or the disk fails. {VERIFY}"
            )

    def madvise(self, _option: int, start: int, length: int, /) -> None:
        """Ask the kernel to read a range from the disk ahead of its use.

        Args:
            _option: Not used.
            start: First byte of the range.
            length: Size of the range in bytes.
        """
        os.posix_fadvise(self._descriptor, start, length, os.POSIX_FADV_WILLNEED)

    def __del__(self) -> None:
        os.close(self._descriptor)


class _Floats:
    """A shard's ranges as float32, each read into the same memory: a range is valid until the next one is read."""

    def __init__(self, file: ShardFile) -> None:
        self._file = file
        self._memory = np.empty(0, np.float32)  # fresh memory for each range would cost more than the copy

    def __getitem__(self, place: slice) -> npt.NDArray[np.float32]:
        count = max(0, place.stop - place.start)
        if count > len(self._memory):
            self._memory = np.empty(count, np.float32)
        values = self._memory[:count]
        self._file.read_into(values, 4 * place.start)
        return values


class Ranges(Protocol):
    """Interface of a shard whose bytes are read by range."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: slice, /) -> bytes: ...

    def madvise(self, option: int, start: int, length: int, /) -> None:
        """Tell the kernel how a range will be used.

        Args:
            option: One of ``mmap.MADV_*``.
            start: First byte of the range.
            length: Size of the range in bytes.
        """
        ...


@dataclass(frozen=True, slots=True)
class MappedShard:
    """A shard in two forms: its bytes, and the same memory as float32 values."""

    content: Ranges
    floats: Any  # an array, or `_Floats`, of which ranges are taken; use each before the next


class ShardMaps(Collection[str]):
    """Mapped shards of a source, by name, for one thread at a time; a copy in another process is empty."""

    def __init__(self, source: ShardSource, *, mapped: bool = True) -> None:
        """Create the object; a shard is opened at its first use.

        Args:
            source: Source of the shards.
            mapped: Map shards; else keep them open and read them range by range.
        """
        self._source, self._mapped = source, mapped
        self._maps: OrderedDict[str, MappedShard] = OrderedDict()

    def get(self, shard: str, size_bytes: int) -> MappedShard:
        """Return a shard, and map it at its first use.

        Args:
            shard: Name of the shard.
            size_bytes: Size of the shard according to dataset.json.

        Returns:
            The mapped shard.

        Raises:
            DataError: The shard does not exist or has another size.
            EnvironmentFault: The shard cannot be opened or mapped.
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
                raise DataError(f"{shown}: expected {size_bytes} bytes, found {found_bytes}. {VERIFY}")
            if self._mapped:
                with os_errors(Path(self._source.describe(shard)), "map"):
                    content = mmap.mmap(descriptor, size_bytes, prot=mmap.PROT_READ)
                mapped = MappedShard(content, np.frombuffer(content, np.float32, size_bytes // 4))
            else:
                file = ShardFile(os.dup(descriptor), size_bytes, self._source.describe(shard))
                mapped = MappedShard(file, _Floats(file))
        finally:
            os.close(descriptor)
        while len(self._maps) >= MAX_MAPS:
            self._maps.popitem(last=False)
        self._maps[shard] = mapped
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
