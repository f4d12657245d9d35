"""Rows in order of time, in memory or on the disk: what keeps memory flat while inputs and results grow."""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from omniges.features.timebase import FRAMES_PER_TICK, MEL_FRAMES_PER_TICK
from omniges.model.streams import StreamName
from omniges.storage.atomic import os_errors

ROWS_PER_TICK: Final[dict[StreamName, int]] = {"gesture": FRAMES_PER_TICK, "audio": MEL_FRAMES_PER_TICK, "text": 1}
"""Rows of a stream's array in a tick."""

_BLOCK_BYTES: Final = 1 << 20


class Held:
    """A series in memory."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array = array

    def rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows from `start` up to `stop`, a view."""
        return self._array[start:stop]


class Spool:
    """A series on the disk: rows are appended to a file without a name, which is gone when the process is.

    Args:
        folder: where there is room; None: the system's folder for temporary files.
        row: the shape of a row.
        kind: numpy's text for the type of its numbers.
    """

    def __init__(self, folder: Path | None, row: tuple[int, ...], kind: str = "<f4") -> None:
        self._folder = Path(tempfile.gettempdir()) if folder is None else folder
        self._row, self._dtype = row, np.dtype(kind)
        self._row_bytes = math.prod(row) * self._dtype.itemsize
        self._count = 0
        self._file: IO[bytes] = io.BytesIO()  # until there is one
        with os_errors(self._folder, "write to"):
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - closed with the last reference

    def __len__(self) -> int:
        return self._count

    def append(self, rows: npt.NDArray[Any]) -> None:
        """More rows (n, …)."""
        if rows.shape[1:] != self._row:
            raise ValueError(f"rows of shape {self._row} expected, found {rows.shape}")
        left = np.ascontiguousarray(rows, self._dtype).reshape(-1).view(np.uint8).data
        with os_errors(self._folder, "write to"):
            self._file.seek(self._count * self._row_bytes)
            while len(left):
                left = left[self._file.write(left) :]
        self._count += len(rows)

    def rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows from `start` up to `stop`."""
        stop = min(stop, self._count)
        found = np.empty((max(0, stop - start), *self._row), self._dtype)
        into = found.reshape(-1).view(np.uint8).data
        with os_errors(self._folder, "read from"):
            self._file.seek(start * self._row_bytes)
            while len(into):
                part = self._file.read(len(into))
                if not part:
                    raise OSError(f"{len(into)} bytes of a temporary file are gone")
                into[: len(part)] = part
                into = into[len(part) :]
        return found

    def blocks(self) -> Iterator[npt.NDArray[Any]]:
        """All rows, about 1 MiB at a time."""
        step = max(1, _BLOCK_BYTES // self._row_bytes)
        for start in range(0, self._count, step):
            yield self.rows(start, start + step)

    def __del__(self) -> None:
        """Give the disk's room back with the last reference."""
        self._file.close()
