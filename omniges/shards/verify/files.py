"""Opening what lies in a shard folder: regular files only, no link followed, faults as findings."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = ["FileFault", "hash_chunks", "opened", "read_exactly"]

_CHUNK_BYTES: Final = 256 << 10  # a multiple of 512, small enough to stay in a core's cache between copy and hash


class FileFault(Exception):
    """A file cannot be read; carries the finding's code and texts."""

    def __init__(self, code: str, found: str, expected: str = "a regular file") -> None:
        super().__init__(f"{code}: {found}")
        self.code, self.found, self.expected = code, found, expected


@contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            raise FileFault("file-missing", "nothing there") from error
        if error.errno in {errno.ELOOP, errno.ENXIO}:
            raise FileFault("file-not-regular", "a link or a device") from error
        raise FileFault("file-unreadable", error.strerror or str(error), "a readable file") from error


@contextmanager
def opened(folder: Path, name: str) -> Iterator[tuple[int, int]]:
    """Descriptor and size of a regular file; raises FileFault, also for read errors inside the block."""
    with _faults():
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(folder / name, flags)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise FileFault("file-not-regular", "a folder" if stat.S_ISDIR(status.st_mode) else "a device or pipe")
            yield descriptor, status.st_size
        finally:
            os.close(descriptor)


def read_exactly(descriptor: int, size: int, offset: int) -> bytes:
    """Up to `size` bytes at an offset; fewer only where the file ends."""
    pieces = []
    while size > 0:
        piece = os.pread(descriptor, size, offset)
        if not piece:
            break
        pieces.append(piece)
        size -= len(piece)
        offset += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def hash_chunks(descriptor: int, offset: int, size: int) -> Iterator[tuple[int, memoryview, bytearray]]:
    """Chunks of a range as (position, view, buffer): one buffer is reused, the last chunk is short at the file's end.

    Chunks lie at multiples of 512 from `offset`, so a tar header never spans two.
    """
    buffer = bytearray(max(512, min(_CHUNK_BYTES, -(-size // 512) * 512)))
    whole = memoryview(buffer)
    position, end = offset, offset + size
    while position < end:
        wanted = min(len(buffer), end - position)
        filled = 0
        while filled < wanted:
            count = os.preadv(descriptor, [whole[filled:wanted]], position + filled)
            if count == 0:
                break
            filled += count
        if filled:
            yield position, whole[:filled], buffer
        if filled < wanted:
            return
        position += filled
