"""What a run says while it trains: a line that is kept up to date on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from types import TracebackType
from typing import IO, TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from rich.live import Live

__all__ = ["LineReporter", "LiveReporter", "Progress", "Reporter", "SilentReporter", "duration", "make_reporter"]

_LINE_EVERY_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run has come, over the steps since the last time."""

    step: int
    last_step: int | None  # None: only the clock ends the run
    epoch: float
    loss: float
    learning_rate: float
    samples_per_s: float
    waiting: float  # share of the time spent waiting for data
    left_s: float | None

    @property
    def line(self) -> str:
        """In words, for a person."""
        of = f"/{self.last_step}" if self.last_step is not None else ""
        left = "" if self.left_s is None else f", {duration(self.left_s)} left"
        return (
            f"step {self.step}{of} (epoch {self.epoch:.1f}): loss {self.loss:.4f}, lr {self.learning_rate:.2g}, "
            f"{self.samples_per_s:.1f} samples/s, {self.waiting:.1%} waiting for data{left}"
        )


def duration(seconds: float) -> str:
    """Minutes and seconds, with hours where there are some."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Reporter(Protocol):
    """Receives progress and remarks; a context manager around the run."""

    def __enter__(self) -> Reporter: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def update(self, progress: Progress) -> None:
        """Show progress, as often as a person can read."""

    def say(self, remark: str) -> None:
        """Show one line that stays."""


class SilentReporter:
    """Says nothing: what ranks beside the first have."""

    def update(self, progress: Progress) -> None:
        """Nothing."""

    def say(self, remark: str) -> None:
        """Nothing."""

    def __enter__(self) -> SilentReporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class LineReporter(SilentReporter):
    """A plain line at most every five seconds, for logs."""

    def __init__(self, stream: IO[str], every_s: float = _LINE_EVERY_S) -> None:
        self._stream = stream
        self._every_s = every_s
        self._last_s = -float("inf")

    def update(self, progress: Progress) -> None:
        """Write a line if the last is old enough."""
        now = time.monotonic()
        if now - self._last_s >= self._every_s:
            self._last_s = now
            self.say(progress.line)

    def say(self, remark: str) -> None:
        """Write a line."""
        self._stream.write(remark + "\n")
        self._stream.flush()


class LiveReporter(SilentReporter):
    """One line at the bottom of a terminal."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - only on a terminal
        from rich.live import Live  # noqa: PLC0415

        self._live: Live = Live(console=Console(stderr=True), refresh_per_second=4, transient=True)

    def update(self, progress: Progress) -> None:
        """Replace the line."""
        from rich.text import Text  # noqa: PLC0415

        self._live.update(Text(progress.line))

    def say(self, remark: str) -> None:
        """Print above the line."""
        self._live.console.print(remark, markup=False, highlight=False)

    def __enter__(self) -> LiveReporter:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)


def make_reporter(*, speaks: bool) -> Reporter:
    """For standard error as it is: a terminal, or a file or pipe; silent where this rank does not speak."""
    if not speaks:
        return SilentReporter()
    return LiveReporter() if sys.stderr.isatty() else LineReporter(sys.stderr)
