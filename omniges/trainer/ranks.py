"""What the processes of a run agree on: small numbers, over a connection of their own that no device waits for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
import torch.distributed as dist

from omniges.errors import EnvironmentFault, OmnigesError

__all__ = ["Ranks"]

_FAILED: Final = 1


class Ranks:
    """The ranks of a run; with one, everything is agreed at once."""

    def __init__(self) -> None:
        """Uses torch's process group where one was started."""
        joined = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if joined else 0
        self.world_size = dist.get_world_size() if joined else 1
        self._group = None
        if self.world_size > 1:
            self._group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")

    @property
    def first(self) -> bool:
        """Whether this rank writes files and speaks."""
        return self.rank == 0

    def largest(self, number: int) -> int:
        """The largest of all ranks' numbers, the same for all of them."""
        if self._group is None:
            return number
        shared = torch.tensor([number], dtype=torch.int64)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=self._group)
        return int(shared[0])

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """A part that all ranks leave alike: if one fails, the others raise EnvironmentFault instead of waiting."""
        try:
            yield
        except OmnigesError:
            self.largest(_FAILED)
            raise
        if self.largest(0) == _FAILED:
            raise EnvironmentFault(f"another rank could not {what}: its message says why")

    def collected(self, data: bytes) -> list[bytes]:
        """The bytes (one at least) of all ranks, in their order, over the connection of their own."""
        if self._group is None:
            return [data]
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([len(data)]), group=self._group)
        longest = max(int(size[0]) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(parts, padded, group=self._group)
        return [part[: int(size[0])].numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]

    def gathered(self, tensor: torch.Tensor) -> torch.Tensor:
        """Tensors (…) of all ranks as (ranks, …), on their device."""
        if self.world_size == 1:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)
