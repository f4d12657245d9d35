"""Which words a window says.

Latents of a text depend on the whole text, so they cannot be cut as frames or slots can: they are made for windows,
each of which has a text of its own. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import floor
from typing import Any

from omniges.features.timebase import TICKS_PER_SECOND

__all__ = ["said_in_windows", "window_words"]


def window_words(words: Sequence[Mapping[str, Any]], ticks: int, windows: Iterable[tuple[int, int]]) -> list[list[str]]:
    """`said_in_windows` without times."""
    return [[word["word"] for word in said] for said in said_in_windows(words, ticks, windows)]


def said_in_windows(
    words: Sequence[Mapping[str, Any]], ticks: int, windows: Iterable[tuple[int, int]]
) -> list[list[Mapping[str, Any]]]:
    """The words of each window, (first tick, ticks), of a clip of some ticks, in the order they were given.

    A word (``word``, ``start`` and ``end`` in seconds) is a window's where its middle lies in it, so of windows that
    touch, each word is in exactly one. A middle at the very end of the clip is in its last tick.
    """
    middles = [min(floor((word["start"] + word["end"]) * TICKS_PER_SECOND / 2), ticks - 1) for word in words]
    return [
        [word for word, middle in zip(words, middles, strict=True) if first <= middle < first + count]
        for first, count in windows
    ]
