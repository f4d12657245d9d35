"""Blocks of memory that batches lie in and that processes share: their layout, and who may use which now.

The memory is an anonymous file without a name, so that nothing can be left behind: the kernel frees it with the last
process that has it open, however that process ends. It does not count against the size of /dev/shm, which is small in
containers. A block is laid out once for a number of rows and ticks; it is lent out as tensors' memory, and filled again
once nobody refers to it. Workers use this file too, so torch is imported for page-locked memory alone.
"""

from __future__ import annotations

import math
import mmap
import os
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from omniges.data.tracks import PLAIN_TRACKS, Tracks
from omniges.errors import EnvironmentFault

if TYPE_CHECKING:
    import torch

I64 = npt.NDArray[np.int64]

ArrayPlace = tuple[str, str, tuple[int, ...], int]
"""Name, dtype, shape and byte offset of an array in a block of memory."""

_ALIGNMENT: Final = 64


def layout_of(arrays: Sequence[tuple[str, str, tuple[int, ...]]]) -> tuple[list[ArrayPlace], int]:
    """Places for arrays one after the other, and the bytes of all, a whole number of pages."""
    places: list[ArrayPlace] = []
    offset = 0
    for name, dtype, shape in arrays:
        places.append((name, dtype, tuple(shape), offset))
        size = np.dtype(dtype).itemsize * math.prod(shape)
        offset += size + -size % _ALIGNMENT
    return places, offset + -offset % mmap.PAGESIZE


def new_memory(name: str, size: int) -> int:
    """A descriptor of new memory; `name` shows in /proc only."""
    try:
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
        os.ftruncate(descriptor, size)
    except OSError as error:
        raise EnvironmentFault(f"no {size} bytes of memory for {name}: {error.strerror}") from error
    return descriptor


def map_memory(descriptor: int, size: int, offset: int = 0) -> mmap.mmap:
    """Map a part of shared memory for reading and writing; unmapped with its last array."""
    try:
        return mmap.mmap(descriptor, size, offset=offset)
    except OSError as error:
        raise EnvironmentFault(f"cannot map {size} bytes of memory: {error.strerror}") from error


def place_arrays(block: npt.NDArray[np.uint8], places: Sequence[ArrayPlace]) -> dict[str, npt.NDArray[Any]]:
    """Views of a block (bytes,) as arrays; they keep the block alive."""
    views = {}
    for name, dtype, shape, offset in places:
        size = np.dtype(dtype).itemsize * math.prod(shape)
        views[name] = block[offset : offset + size].view(dtype).view(np.ndarray).reshape(shape)
    return views


def share_arrays(name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[int, list[ArrayPlace], int]:
    """Copy arrays into new shared memory; returns its descriptor, their places in it and its bytes."""
    places, size = layout_of([(key, array.dtype.str, array.shape) for key, array in arrays.items()])
    descriptor = new_memory(name, size)
    views = place_arrays(np.frombuffer(map_memory(descriptor, size), np.uint8), places)
    for key, array in arrays.items():
        np.copyto(views[key], array)
    return descriptor, places, size


Fields = Sequence[tuple[str, str, tuple[int, ...]]]
"""Name, dtype and shape of arrays that a window has beside its tracks, such as those of condition streams."""


def batch_layout(
    rows: int, window_ticks: int, tracks: Tracks = PLAIN_TRACKS, conditions: Fields = ()
) -> tuple[list[ArrayPlace], int]:
    """Places of a batch's arrays in its block, and the block's bytes."""
    gesture, audio, text = tracks.gesture, tracks.audio, tracks.text
    slots_or_latents = ("<i4", (rows, window_ticks)) if text is None else ("<f4", (rows, text.latents, text.channels))
    return layout_of(
        [
            ("gesture", "<f4", (rows, gesture.rows(window_ticks), gesture.channels)),
            ("audio", "<f4", (rows, audio.rows(window_ticks), audio.channels)),
            ("text", *slots_or_latents),
            *((name, dtype, (rows, *shape)) for name, dtype, shape in conditions),
            *((name, "<i8", (rows,)) for name in ("positions", "sources", "epochs", "samples", "start_ticks")),
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
    conditions: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)  # (R, …) by name of the field

    @classmethod
    def of(cls, block: npt.NDArray[np.uint8], places: Sequence[ArrayPlace]) -> BatchBlock:
        """The views of a block."""
        views = place_arrays(block, places)
        conditions = {name: views.pop(name) for name in list(views) if "." in name}
        return cls(**views, conditions=conditions)


class _Root(np.ndarray[Any, Any]):
    """All of a block; a class of its own, so that numpy keeps it, not the memory below it, as the base of views."""


class _Lease(np.ndarray[Any, Any]):
    """A block while it is lent: every array and tensor made of it refers to this one object."""


class BlockStore:
    """Blocks for `rows` windows, as many as are lent or being filled; page-locked if `pin`."""

    def __init__(
        self, rows: int, window_ticks: int, *, pin: bool, tracks: Tracks = PLAIN_TRACKS, conditions: Fields = ()
    ) -> None:
        self._places, self.block_bytes = batch_layout(rows, window_ticks, tracks, conditions)
        self.descriptor = new_memory("omniges-batches", 0)
        self._close = weakref.finalize(self, os.close, self.descriptor)
        self._pin = pin
        self._roots: list[_Root] = []
        self._views: list[BatchBlock] = []
        self._free: deque[int] = deque()
        self._returned: deque[int] = deque()  # appended to wherever a lease happens to end
        self._copying: deque[tuple[int, torch.cuda.Event]] = deque()

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

    def _settle(self) -> None:
        """Free what was returned. A copy to a GPU may still read page-locked memory: wait for the stream it is on."""
        while self._returned:
            number = self._returned.popleft()
            if self._pin:
                import torch  # noqa: PLC0415 - see above

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
    import torch  # noqa: PLC0415 - see above

    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address = root.ctypes.data
    failure = int(runtime.cudaHostRegister(address, root.nbytes, 0))
    if failure:
        raise EnvironmentFault(
            f"cannot page-lock {root.nbytes / 1e6:.1f} MB for the GPU (CUDA error {failure}): raise ulimit -l, or turn "
            "pin_memory off"
        )
    weakref.finalize(root, runtime.cudaHostUnregister, address).atexit = False
