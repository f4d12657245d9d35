"""Checks of arrays of numbers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError, UsageFault

F64 = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.floating]


def checked(array: Numbers, what: str, shape: tuple[int | None, ...], *, at_least: int = 1) -> F64:
    """The array as float64, if it has the shape (None: any length) and is finite and long enough.

    Raises UsageFault for another shape, DataError for fewer than `at_least` rows and for values that are not finite.
    """
    array = np.asarray(array)
    fits = array.ndim == len(shape) and all(n is None or n == m for n, m in zip(shape, array.shape, strict=True))
    if not fits or array.dtype.kind not in "fiu":
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise UsageFault(f"{what}: found an array {array.shape} of {array.dtype}; expected numbers ({wanted})")
    if len(array) < at_least:
        raise DataError(f"{what}: found {len(array)}; expected at least {at_least}: leave this clip out")
    numbers = np.asarray(array, dtype=np.float64)
    if not np.isfinite(numbers).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(numbers))[0])
        raise DataError(f"{what}: found {numbers[where]} at {where}; expected finite numbers")
    return numbers
