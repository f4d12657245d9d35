"""Arrays of ``.npy`` files, never unpickled; a header is believed only as far as the file is long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt

from omniges.errors import DataError, RecordingFault, UsageFault
from omniges.recordings.arrays import decode_npy
from omniges.storage.atomic import os_errors

__all__ = ["read_array"]


def read_array(path: Path, wanted: str) -> npt.NDArray[Any]:
    """The array of numbers of a file; `wanted` says what it should hold, for errors.

    Raises UsageFault where there is no such file, DataError for one that is of another kind, damaged or pickled.
    """
    if not path.is_file():
        raise UsageFault(f"{path}: no such file; {wanted}")
    with os_errors(path, "read"):
        data = path.read_bytes()
    try:
        return decode_npy(data)
    except RecordingFault as fault:
        raise DataError(f"{path}: found {fault.problem.found}; {wanted}") from fault
