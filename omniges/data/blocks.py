"""Allocate, lay out and reuse blocks of memory that processes share; each block contains one batch.

The memory is an anonymous file (`os.memfd_create`). The kernel frees it when the last process that has it open exits or
crashes. It does not count against the size of /dev/shm, which is small in containers. All blocks of a run have the same
layout: a row for each window of a batch. The tensors of a batch are views of a block. A block is filled again when no
tensor uses it. Torch is imported only for page-locked memory, so that worker processes start quickly.
"""

from __future__ import annotations

import math
import mmap
import os
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
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
    """Compute byte offsets that place arrays one after the other, aligned to 64 bytes.

    Args:
        arrays: Name, dtype and shape of each array.

    Returns:
        Layout of the arrays, and the total size in bytes, rounded up to whole pages.
    """
    places: list[ArrayPlace] = []
    offset = 0
    for name, dtype, shape in arrays:
        places.append((name, dtype, tuple(shape), offset))
        size = np.dtype(dtype).itemsize * math.prod(shape)
        offset += size + -size % _ALIGNMENT
    return places, offset + -offset % mmap.PAGESIZE


def new_memory(name: str, size: int) -> int:
    """Allocate shared memory.

    Args:
        name: Name of the memory in /proc.
        size: Size in bytes.

    Returns:
        File descriptor of the memory.

    Raises:
        EnvironmentFault: There is not enough memory.
    """
    with ExitStack() as on_error:
        try:
            descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
            on_error.callback(os.close, descriptor)
            os.ftruncate(descriptor, size)
        except OSError as error:
            raise EnvironmentFault(
                f"{name}: expected {size} bytes of memory, found less ({error.strerror}); use smaller batches or "
                "fewer workers"
            ) from error
        on_error.pop_all()
    return descriptor


def map_memory(descriptor: int, size: int, offset: int = 0) -> mmap.mmap:
    """Map a byte range of shared memory for reading and writing. It stays mapped until no array uses it.

    Args:
        descriptor: File descriptor of the memory.
        size: Length of the range in bytes.
        offset: Start of the range in the memory, in bytes.

    Returns:
        The mapped memory.

    Raises:
        EnvironmentFault: The memory cannot be mapped.
    """
    try:
        return mmap.mmap(descriptor, size, offset=offset)
    except OSError as error:
        raise EnvironmentFault(
            f"memory of batches: expected {size} bytes to map, found less ({error.strerror}); use smaller batches or "
            "fewer workers"
        ) from error


def place_arrays(block: npt.NDArray[np.uint8], places: Sequence[ArrayPlace]) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a block by name, as views that keep a reference to the block.

    Args:
        block: All bytes of the block (bytes,).
        places: Layout of the arrays, from `layout_of`.

    Returns:
        Views by name, with the dtypes and shapes of the layout.
    """
    views = {}
    for name, dtype, shape, offset in places:
        size = np.dtype(dtype).itemsize * math.prod(shape)
        views[name] = block[offset : offset + size].view(dtype).view(np.ndarray).reshape(shape)
    return views


def share_arrays(name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[int, list[ArrayPlace], int]:
    """Copy arrays into new shared memory.

    Args:
        name: Name of the memory in /proc.
        arrays: Arrays to copy, by name.

    Returns:
        The file descriptor, the layout of the arrays, and the size in bytes.
    """
    places, size = layout_of([(key, array.dtype.str, array.shape) for key, array in arrays.items()])
    descriptor = new_memory(name, size)
    with ExitStack() as on_error:
        on_error.callback(os.close, descriptor)
        views = place_arrays(np.frombuffer(map_memory(descriptor, size), np.uint8), places)
        for key, array in arrays.items():
            np.copyto(views[key], array)
        on_error.pop_all()
    return descriptor, places, size


Fields = Sequence[tuple[str, str, tuple[int, ...]]]
"""Name, dtype and shape for one window of each further array, such as those of condition streams."""


def batch_layout(
    rows: int, window_ticks: int, tracks: Tracks = PLAIN_TRACKS, conditions: Fields = ()
) -> tuple[list[ArrayPlace], int]:
    """Return the layout of a block, which contains the arrays of one batch.

    Args:
        rows: Number of windows in a block.
        window_ticks: Length of a window in ticks.
        tracks: The array of each stream: features, or latents of a codec.
        conditions: Arrays of condition streams, with their shapes for one window.

    Returns:
        Layout of the arrays, and the size of the block in bytes.
    """
    gesture, audio, text = tracks.gesture, tracks.audio, tracks.text
    tokens_or_latents = ("<i4", (rows, window_ticks)) if text is None else ("<f4", (rows, text.latents, text.channels))
    return layout_of(
        [
            ("gesture", "<f4", (rows, gesture.rows(window_ticks), tracks.gesture_channels)),
            ("audio", "<f4", (rows, audio.rows(window_ticks), audio.channels)),
            ("text", *tokens_or_latents),
            *((name, dtype, (rows, *shape)) for name, dtype, shape in conditions),
            *((name, "<i8", (rows,)) for name in ("positions", "sources", "epochs", "samples", "start_ticks")),
            ("progress", "<i8", (2,)),  # rows in the batch, and the row being filled
        ]
    )


@dataclass(frozen=True, slots=True, eq=False)
class BatchBlock:
    """The arrays of R windows in one block of shared memory; a window has w ticks."""

    gesture: npt.NDArray[np.float32]  # (R, w · 3, 415 or 424), or latents (R, rows, channels)
    audio: npt.NDArray[np.float32]  # (R, w · 10, 64), or latents (R, rows, channels)
    text: npt.NDArray[Any]  # (R, w) int32 tokens, or latents (R, vectors, channels) float32
    positions: I64  # (R,) positions in the sequence of all ranks
    sources: I64  # (R,) indices of the shard folders
    epochs: I64  # (R,) epochs in the folders
    samples: I64  # (R,) indices of the clips in the folders' catalogues
    start_ticks: I64  # (R,) first ticks of the windows in their clips
    progress: I64  # (2,) number of windows in the batch, and index of the row that is being filled
    conditions: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)  # (R, …) arrays of condition streams

    @classmethod
    def of(cls, block: npt.NDArray[np.uint8], places: Sequence[ArrayPlace]) -> BatchBlock:
        """Return the arrays of a block, given its memory and its layout.

        Args:
            block: Memory of the block (bytes,), uint8.
            places: Layout from `batch_layout`.

        Returns:
            The arrays, as views of `block`.
        """
        views = place_arrays(block, places)
        conditions = {name: views.pop(name) for name in list(views) if "." in name}
        return cls(**views, conditions=conditions)


class _Root(np.ndarray[Any, Any]):
    """An array of all bytes of one block; every view of the block keeps a reference to it."""


class _Lease(np.ndarray[Any, Any]):
    """A block that a batch uses; every array and tensor of the batch keeps a reference to this object."""


class BlockStore:
    """A growing pool of blocks. Each block has space for `rows` windows; the memory is page-locked if `pin` is True."""

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
        self._returned: deque[int] = deque()  # blocks that no array uses any more; any thread appends
        self._copying: deque[tuple[int, torch.cuda.Event]] = deque()

    def take(self) -> int:
        """Return the index of a free block; allocate a block if all are in use."""
        self._free_returned()
        if not self._free:
            self._grow()
        return self._free.popleft()

    def view(self, number: int) -> BatchBlock:
        """Return the block with index `number`, so that the caller can write a batch into it."""
        return self._views[number]

    def lend(self, number: int) -> BatchBlock:
        """Return the filled block with index `number`. It becomes free when all arrays that use it are deleted."""
        lease = self._roots[number].view(_Lease)
        weakref.finalize(lease, self._returned.append, number).atexit = False
        return BatchBlock.of(lease, self._places)

    def _free_returned(self) -> None:
        """Add the blocks that no array uses any more to the free blocks.

        A page-locked block is added only after pending copies to the GPU have finished.
        """
        while self._returned:
            number = self._returned.popleft()
            if self._pin:
                import torch  # noqa: PLC0415 - only for page-locked memory

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
            # ftruncate alone would not reserve memory, and the first write could end the process by a signal.
            os.posix_fallocate(self.descriptor, number * self.block_bytes, self.block_bytes)
        except OSError as error:
            raise EnvironmentFault(
                f"batch {number + 1}: expected {self.block_bytes / 1e6:.1f} MB of memory, found less "
                f"({error.strerror}); choose smaller batches or fewer workers, or release batches"
            ) from error
        mapped = map_memory(self.descriptor, self.block_bytes, number * self.block_bytes)
        root = np.frombuffer(mapped, np.uint8).view(_Root)
        if self._pin:
            _page_lock(root)
        self._roots.append(root)
        self._views.append(BatchBlock.of(root, self._places))
        self._free.append(number)


def _page_lock(root: npt.NDArray[np.uint8]) -> None:
    """Page-lock a block for direct copies to the GPU (`cudaHostRegister`), and unlock it before it is unmapped.

    Raises `EnvironmentFault` if CUDA refuses.
    """
    import torch  # noqa: PLC0415 - only for page-locked memory

    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address = root.ctypes.data
    failure = int(runtime.cudaHostRegister(address, root.nbytes, 0))
    if failure:
        raise EnvironmentFault(
            f"memory of batches: expected {root.nbytes / 1e6:.1f} MB of page-locked memory for the GPU, found CUDA "
            f"error {failure}; raise ulimit -l, or set pin_memory to False"
        )
    weakref.finalize(root, runtime.cudaHostUnregister, address).atexit = False
