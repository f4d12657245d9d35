"""Memory that worker processes share: anonymous files without a name, so that nothing can be left behind.

The kernel frees such memory with the last process that has it open, however that process ends. It does not count
against the size of /dev/shm, which is small in containers.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import EnvironmentFault

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
