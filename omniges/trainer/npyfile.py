"""Arrays of ``.npy`` files, never unpickled; a header is believed only as far as the file is long."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError, UsageFault
from omniges.publish import os_errors

__all__ = ["read_array"]

_MAGIC: Final = b"\x93NUMPY"


def read_array(path: Path, wanted: str) -> npt.NDArray[Any]:
    """The array of a file, as a map of it; `wanted` says what it should hold, for errors.

    Raises UsageFault where there is no such file, DataError for one that is of another kind, damaged or pickled.
    """
    if not path.is_file():
        raise UsageFault(f"{path}: no such file; {wanted}")
    with os_errors(path, "read"):
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:  # numpy would go on and try archives and pickles
                raise DataError(f"{path}: no .npy file; {wanted}")
        try:
            with np.errstate(over="ignore"):  # a claim beyond 64 bits is refused behind its product
                array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)  # no longer than its file
        except (ValueError, EOFError, OverflowError) as error:
            text = next(iter(str(error).splitlines()), type(error).__name__)[:200]
            raise DataError(f"{path}: {text}; {wanted}") from error
    return array
