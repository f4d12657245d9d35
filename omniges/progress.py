"""What a run says while it works: a live panel on a terminal, plain lines elsewhere, JSON lines for machines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import IO, TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from rich.live import Live

__all__ = ["JsonReporter", "LineReporter", "LiveReporter", "Progress", "Reporter", "counter", "make_reporter"]

Mode = Literal["auto", "live", "lines", "json"]
_LINE_EVERY_S = 5.0
_LIVE_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come."""

    done: int  # recordings looked at, rejected ones included
    total: int
    converted: int
    rejected: int
    noted: int  # converted with at least one note
    lost: int
    reused: int  # outcomes taken over from earlier runs
    computed_s: float  # seconds of the recordings converted in this run
    elapsed_s: float
    eta_s: float | None
    slowest: str | None
    slowest_s: float

    @property
    def real_time_factor(self) -> float:
        """Seconds of recordings converted a second."""
        return self.computed_s / self.elapsed_s if self.elapsed_s > 0 else 0.0


class Reporter(Protocol):
    """Receives progress; a context manager around the run."""

    def __enter__(self) -> Reporter: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def update(self, progress: Progress) -> None:
        """Show progress; called after every recording, shows it as often as a person can read."""


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _line(p: Progress) -> str:
    slow = f", slowest now {p.slowest} ({p.slowest_s:.1f} s)" if p.slowest and p.slowest_s > 1 else ""
    lost = f", {p.lost} lost" if p.lost else ""
    reused = f" ({p.reused} taken over)" if p.reused else ""
    return (
        f"{p.done}/{p.total} recordings: {p.converted} converted{reused}, {p.rejected} rejected, "
        f"{p.noted} with notes{lost}; "
        f"{p.real_time_factor:,.0f} × real time, {_duration(p.eta_s)} left{slow}"
    )


class _Throttled:
    """Passes on an update now and then, and always the last."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._last = -float("inf")

    def due(self, progress: Progress) -> bool:
        now = time.monotonic()
        if progress.done < progress.total and now - self._last < self._every_s:
            return False
        self._last = now
        return True


class LineReporter:
    """One plain line every five seconds, for logs."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._throttle = _Throttled(_LINE_EVERY_S)

    def update(self, progress: Progress) -> None:
        """Write a line if the last is old enough."""
        if self._throttle.due(progress):
            self._stream.write(_line(progress) + "\n")
            self._stream.flush()

    def __enter__(self) -> LineReporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.flush()


class JsonReporter(LineReporter):
    """One JSON object a line, ``{"event": "progress", …}``, at most every half second."""

    def __init__(self, stream: IO[str]) -> None:
        super().__init__(stream)
        self._throttle = _Throttled(0.5)

    def update(self, progress: Progress) -> None:
        """Write an object if the last is old enough."""
        if self._throttle.due(progress):
            row = {"event": "progress"} | asdict(progress) | {"real_time_factor": progress.real_time_factor}
            self._stream.write(json.dumps(row) + "\n")
            self._stream.flush()


class LiveReporter:
    """A bar and a line that rich keeps up to date on a terminal."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = stream  # standard error where none is given
        self._throttle = _Throttled(_LIVE_EVERY_S)
        self._live: Live | None = None

    def update(self, progress: Progress) -> None:
        """Redraw."""
        if self._live is None or not self._throttle.due(progress):
            return
        from rich.console import Group  # noqa: PLC0415 - rich's parts cost 0.1 s that --help must not pay
        from rich.progress_bar import ProgressBar  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        bar = ProgressBar(total=max(progress.total, 1), completed=progress.done, width=60)
        # The bar ends without a line break, so it comes last; the text wraps where the window is narrow.
        self._live.update(Group(Text(_line(progress)), bar), refresh=True)

    def __enter__(self) -> LiveReporter:
        from rich.console import Console  # noqa: PLC0415
        from rich.live import Live  # noqa: PLC0415

        console = Console(file=self._stream, force_terminal=True) if self._stream else Console(stderr=True)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()


def make_reporter(mode: Mode) -> Reporter:
    """The reporter for a mode; ``auto`` takes the live one on a terminal and lines elsewhere."""
    if mode == "json":
        return JsonReporter(sys.stdout)
    if mode == "live" or (mode == "auto" and sys.stderr.isatty()):
        return LiveReporter()
    return LineReporter(sys.stderr)


@contextmanager
def counter(noun: str) -> Iterator[Callable[[float, float], None]]:
    """A function (done, total) that shows a count and what time is left.

    On a terminal rich keeps a bar up to date; elsewhere there is now and then a plain line.
    """
    if sys.stderr.isatty():
        with _bar(noun) as count:
            yield count
        return
    stream = sys.stderr
    began = last = time.monotonic()

    def line(done: float, total: float) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _LINE_EVERY_S:
            return
        last = now
        left = (now - began) / done * (total - done) if done else None
        stream.write(f"{done:.0f}/{total:.0f} {noun}, {_duration(left)} left\n")
        stream.flush()

    yield line


@contextmanager
def _bar(noun: str) -> Iterator[Callable[[float, float], None]]:
    from rich.console import Console  # noqa: PLC0415 - rich's parts cost 0.1 s that --help must not pay
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415
    from rich.progress import Progress as Bars  # noqa: PLC0415

    what = TextColumn("{task.completed:.0f}/{task.total:.0f} {task.description}")
    with Bars(
        what, BarColumn(), TimeRemainingColumn(), TextColumn("left"), console=Console(stderr=True), transient=True
    ) as progress:
        task = progress.add_task(noun, total=None, visible=False)

        def count(done: float, total: float) -> None:
            progress.update(task, completed=done, total=total, visible=True)

        yield count
