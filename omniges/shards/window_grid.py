"""The windows of a clip that are known beforehand: those that start at every multiple of a stride."""

from __future__ import annotations

from dataclasses import dataclass

from omniges.errors import UsageFault


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
