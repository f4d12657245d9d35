"""Blocks of shared memory that batches lie in: lent out as tensors' memory, filled again once nobody refers to them."""

from __future__ import annotations

import os
import weakref
from collections import deque
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from omniges.data.collate import BatchBlock, batch_layout
from omniges.data.shared_memory import map_memory, new_memory
from omniges.data.tracks import PLAIN_TRACKS, Tracks
from omniges.errors import EnvironmentFault


class _Root(np.ndarray[Any, Any]):
    """All of a block; a class of its own, so that numpy keeps it, not the memory below it, as the base of views."""


class _Lease(np.ndarray[Any, Any]):
    """A block while it is lent: every array and tensor made of it refers to this one object."""


class BlockStore:
    """Blocks for `rows` windows, as many as are lent or being filled; page-locked if `pin`."""

    def __init__(self, rows: int, window_ticks: int, *, pin: bool, tracks: Tracks = PLAIN_TRACKS) -> None:
        self._places, self.block_bytes = batch_layout(rows, window_ticks, tracks)
        self.descriptor = new_memory("omniges-batches", 0)
        self._close = weakref.finalize(self, os.close, self.descriptor)
        self._pin = pin
        self._roots: list[_Root] = []
        self._views: list[BatchBlock] = []
        self._free: deque[int] = deque()
        self._returned: deque[int] = deque()  # appended to wherever a lease happens to end
        self._copying: deque[tuple[int, torch.cuda.Event]] = deque()

    @property
    def blocks(self) -> int:
        """Blocks made so far."""
        return len(self._roots)

    def take(self) -> int:
        """The number of a block that nobody uses; a new one if there is none."""
        self._settle()
        if not self._free:
            self._grow()
        return self._free.popleft()

    def view(self, number: int) -> BatchBlock:
        """A block as whoever fills it sees it."""
        return self._views[number]

    def lend(self, number: int) -> BatchBlock:
        """A block as a batch sees it: once the last of these arrays and what was made of them is gone, it is free."""
        lease = self._roots[number].view(_Lease)
        weakref.finalize(lease, self._returned.append, number).atexit = False
        return BatchBlock.of(lease, self._places)

    def give_back(self, number: int) -> None:
        """Return a block that was taken and not lent."""
        self._free.append(number)

    def _settle(self) -> None:
        """Free what was returned. A copy to a GPU may still read page-locked memory: wait for the stream it is on."""
        while self._returned:
            number = self._returned.popleft()
            if self._pin:
                event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                event.record()
                self._copying.append((number, event))
            else:
                self._free.append(number)
        while self._copying and self._copying[0][1].query():  # type: ignore[no-untyped-call]
            self._free.append(self._copying.popleft()[0])

    def _grow(self) -> None:
        number = len(self._roots)
        try:
            # Not ftruncate alone: memory that cannot be had must be an error here, not a signal at the first write.
            os.posix_fallocate(self.descriptor, number * self.block_bytes, self.block_bytes)
        except OSError as error:
            raise EnvironmentFault(
                f"no memory for batch {number + 1} of {self.block_bytes / 1e6:.1f} MB: {error.strerror}: take smaller "
                "batches, fewer workers, or let go of batches"
            ) from error
        mapped = map_memory(self.descriptor, self.block_bytes, number * self.block_bytes)
        root = np.frombuffer(mapped, np.uint8).view(_Root)
        if self._pin:
            _page_lock(root)
        self._roots.append(root)
        self._views.append(BatchBlock.of(root, self._places))
        self._free.append(number)


def _page_lock(root: npt.NDArray[np.uint8]) -> None:
    """Register memory with the CUDA driver, so that copies from it need no staging; undone before it is unmapped."""
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address = root.ctypes.data
    failure = int(runtime.cudaHostRegister(address, root.nbytes, 0))
    if failure:
        raise EnvironmentFault(
            f"cannot page-lock {root.nbytes / 1e6:.1f} MB for the GPU (CUDA error {failure}): raise ulimit -l, or turn "
            "pin_memory off"
        )
    weakref.finalize(root, runtime.cudaHostUnregister, address).atexit = False
