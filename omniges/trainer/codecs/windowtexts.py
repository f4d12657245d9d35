"""Which words a window says, for windows on a fixed grid of a clip.

Latents of a text depend on the whole text, so they cannot be cut as frames or slots can: they are made for windows that
are known beforehand. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import Any

from omniges.errors import UsageFault
from omniges.features.timebase import TICKS_PER_SECOND

__all__ = ["WindowGrid", "window_words"]


@dataclass(frozen=True, slots=True)
class WindowGrid:
    """Windows of ``window_ticks`` that start at every multiple of ``stride_ticks`` and lie within their clip.

    The stride divides the window, so windows that touch are both on the grid.
    """

    window_ticks: int
    stride_ticks: int

    def __post_init__(self) -> None:
        """Refuse a stride that does not divide the window."""
        if self.window_ticks < 1 or self.stride_ticks < 1 or self.window_ticks % self.stride_ticks:
            raise UsageFault(
                f"window grid: found windows of {self.window_ticks} ticks every {self.stride_ticks}; expected a stride "
                "that divides the window"
            )

    def count(self, ticks: int) -> int:
        """Windows of a clip of so many ticks."""
        return max(0, 1 + (ticks - self.window_ticks) // self.stride_ticks)

    def starts(self, ticks: int) -> range:
        """First ticks of a clip's windows."""
        return range(0, self.count(ticks) * self.stride_ticks, self.stride_ticks)

    def index(self, start_tick: int) -> int:
        """The number of the window that starts at a tick; raises `UsageFault` for a tick that is not on the grid."""
        if start_tick < 0 or start_tick % self.stride_ticks:
            raise UsageFault(
                f"window grid: found a window at tick {start_tick}; expected a multiple of {self.stride_ticks}"
            )
        return start_tick // self.stride_ticks


def window_words(words: Sequence[Mapping[str, Any]], ticks: int, grid: WindowGrid) -> list[list[str]]:
    """The words of each grid window of a clip, in the order they were given.

    A word (``word``, ``start`` and ``end`` in seconds) is a window's where its middle lies in it, so of windows that
    touch, each word is in exactly one. A middle at the very end of the clip is in its last tick.
    """
    count = grid.count(ticks)
    found: list[list[str]] = [[] for _ in range(count)]
    for word in words:
        middle = min(floor((word["start"] + word["end"]) * TICKS_PER_SECOND / 2), ticks - 1)
        first = max(0, -(-(middle - grid.window_ticks + 1) // grid.stride_ticks))
        for window in found[first : min(count, middle // grid.stride_ticks + 1)]:
            window.append(word["word"])
    return found
