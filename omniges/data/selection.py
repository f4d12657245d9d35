"""Filters of samples over columns of the manifest; a filter that leaves nothing is refused by name."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from omniges.errors import UsageFault

Bools = npt.NDArray[np.bool_]
LabelColumn = tuple[list[str], npt.NDArray[np.int32]]
"""Distinct texts, and the number (N,) of each row's text, -1 for null."""


def column(values: Sequence[str | None]) -> LabelColumn:
    """Return texts (N,) as a column."""
    numbers = {text: number for number, text in enumerate(sorted({text for text in values if text is not None}))}
    return list(numbers), np.array([-1 if text is None else numbers[text] for text in values], np.int32)


def among(values: LabelColumn, wanted: Collection[str]) -> Bools:
    """Return which rows of a column have one of the wanted texts.

    Args:
        values: The column.
        wanted: The texts.

    Returns:
        Rows (N,).
    """
    names, codes = values
    return np.isin(codes, [number for number, name in enumerate(names) if name in wanted])


def keep_labelled(
    folder: Path, left: Bools, name: str, values: LabelColumn, wanted: Collection[str], also: Bools | None = None
) -> Bools:
    """Return the rows that are left and hold one of the wanted texts.

    Args:
        folder: Folder of the shards, for the error.
        left: (N,) rows that earlier filters leave.
        name: Name of the column, for the error.
        values: The column.
        wanted: Texts of which one must be in the row; empty: all rows pass.
        also: (N,) rows that pass whatever their text.

    Returns:
        Rows (N,).

    Raises:
        UsageFault: No row is left.
    """
    if not wanted:
        return left
    passed = among(values, wanted)
    found = left & (passed if also is None else passed | also)
    if not found.any():
        names, codes = values
        there = ", ".join(sorted(names[code] for code in np.unique(codes[left]).tolist() if code >= 0 and names[code]))
        texts = " or ".join(wanted)
        raise UsageFault(
            f"{folder}: no sample is left with {name} {texts}: choose from {there or 'none, all are null'}"
        )
    return found


def keep_lengths(
    folder: Path, left: Bools, seconds: npt.NDArray[np.floating], min_seconds: float, max_seconds: float | None
) -> Bools:
    """Return the rows that are left and whose length lies within limits.

    Args:
        folder: Folder of the shards, for the error.
        left: (N,) rows that earlier filters leave.
        seconds: (N,) lengths.
        min_seconds: Least length.
        max_seconds: Greatest length; None for no limit.

    Returns:
        Rows (N,).

    Raises:
        UsageFault: No row is left.
    """
    longest = float("inf") if max_seconds is None else max_seconds
    found: Bools = left & (seconds >= min_seconds) & (seconds <= longest)
    if left.any() and not found.any():
        others = seconds[left]
        raise UsageFault(
            f"{folder}: no sample that is left lasts {min_seconds:g} to {longest:g} s; they last {others.min():g} to "
            f"{others.max():g} s: choose other limits"
        )
    return found
