"""Progress of a run: a live display on a terminal, lines of text elsewhere, JSON lines for programs.

An error of the output stream, such as a full disk, never stops the run. After it, a reporter shows nothing more.
"""

from __future__ import annotations

import abc
import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live


Mode = Literal["auto", "live", "lines", "json", "silent"]
_LINE_EVERY_S: Final = 5.0
_JSON_EVERY_S: Final = 0.5
_LIVE_EVERY_S: Final = 0.2


class Progress(ABC):
    """Progress of a run at one moment. Each command defines a subclass with fields for what it counts."""

    @property
    @abstractmethod
    def line(self) -> str:
        """The progress as a line of text."""

    @property
    def share(self) -> float | None:
        """Completed fraction of the work, from 0 to 1; None if it is unknown."""
        return None

    @property
    def final(self) -> bool:
        """True for the last progress of a run, which is always shown."""
        return False

    def as_json(self) -> dict[str, Any]:
        """Return the fields of the subclass as a JSON object."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]


def printable(text: str) -> str:
    """Return text as one line without control characters, so that a terminal executes no escape sequence in the text.

    File names, words, labels and messages of libraries can contain anything. Escape sequences could clear the screen or
    imitate a result, line breaks could add lines, and halves of surrogate pairs cannot be printed.

    Args:
        text: Any text.

    Returns:
        The text, with a JSON escape instead of each character that is not printable. If the text is a line of JSON, the
        result encodes the same value.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, such as ``1 file`` or ``2 files``.

    Args:
        count: Number of items.
        noun: Singular of a noun whose plural ends in -s.

    Returns:
        The number and the noun, which is in the plural unless the number is 1.
    """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def duration(seconds: float | None) -> str:
    """Return a duration as text, such as ``2:05``, or ``1:02:05`` with hours; None becomes a dash."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Reporter:
    """Display of the progress of a run, used as a context manager during the run. This base class shows nothing."""

    def update(self, progress: Progress) -> None:
        """Show progress, at a limited rate."""

    def say(self, message: str) -> None:
        """Show one line that remains visible."""

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class _Throttled(Reporter, abc.ABC):
    """Reporter that limits how often updates are shown; an update whose progress is `final` is always shown."""

    def __init__(self, every_s: float, first_after_s: float = 0.0) -> None:
        self._every_s = every_s
        self._broken = False
        self._last_s = time.monotonic() - every_s + first_after_s

    def update(self, progress: Progress) -> None:
        """Show progress if it is `final`, or if enough time has passed since progress was last shown."""
        now = time.monotonic()
        if progress.final or now - self._last_s >= self._every_s:
            self._last_s = now
            self._show(progress)

    @contextmanager
    def _safe(self) -> Iterator[None]:
        """Run code that writes to the stream; after an error, such as a full disk, write nothing more."""
        try:
            yield
        except (OSError, ValueError):
            self._broken = True

    @abc.abstractmethod
    def _show(self, progress: Progress) -> None: ...


class LineReporter(_Throttled):
    """Reporter for logs: writes progress as a line of text, at most one line every five seconds."""

    def __init__(self, stream: IO[str], every_s: float = _LINE_EVERY_S, first_after_s: float = 0.0) -> None:
        super().__init__(every_s, first_after_s)
        self._stream = stream

    def _show(self, progress: Progress) -> None:
        self.say(progress.line)

    def say(self, message: str) -> None:
        """Write a line."""
        if not self._broken:
            with self._safe():
                self._stream.write(printable(message) + "\n")
                self._stream.flush()


class JsonReporter(LineReporter):
    """Reporter for programs: writes progress as a line of JSON, ``{"event": "progress", …}``, at most two a second."""

    def __init__(self, stream: IO[str]) -> None:
        super().__init__(stream, _JSON_EVERY_S)

    def _show(self, progress: Progress) -> None:
        super().say(json.dumps({"event": "progress"} | progress.as_json()))

    def say(self, message: str) -> None:
        """Write a message as a line of JSON, ``{"event": "message", "message": …}``."""
        super().say(json.dumps({"event": "message", "message": message}))


class LiveReporter(_Throttled):
    """Reporter that updates one line on a terminal, with a bar if the completed fraction is known."""

    def __init__(self, stream: IO[str] | None = None) -> None:
        super().__init__(_LIVE_EVERY_S)
        self._stream = stream  # None: standard error
        self._live: Live | None = None

    def _console(self) -> Console:
        from rich.console import Console  # noqa: PLC0415 - the import takes 0.1 s, too long for --help

        class Plain(Console):
            """Console that raises BrokenPipeError; the console of rich would end the process instead."""

            def on_broken_pipe(self) -> None:
                raise BrokenPipeError

        return Plain(file=self._stream, force_terminal=True) if self._stream else Plain(stderr=True)

    def _show(self, progress: Progress) -> None:
        from rich.console import Group  # noqa: PLC0415
        from rich.live import Live  # noqa: PLC0415
        from rich.progress_bar import ProgressBar  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        parts: list[Any] = [Text(printable(progress.line))]
        if progress.share is not None:
            # The bar ends without a line break, so it comes last; the text wraps in a narrow window.
            parts.append(ProgressBar(total=1.0, completed=progress.share, width=60))
        if self._broken:
            return
        with self._safe():
            if self._live is None:
                self._live = Live(console=self._console(), auto_refresh=False, transient=True)
                self._live.start()
            self._live.update(Group(*parts), refresh=True)
            if progress.final:
                self.__exit__()  # removes the live line before other output

    def say(self, message: str) -> None:
        """Print a line above the live line."""
        if not self._broken:
            with self._safe():
                console = self._live.console if self._live else self._console()
                console.print(printable(message), markup=False, emoji=False, highlight=False)

    def __exit__(self, *_: object) -> None:
        live, self._live = self._live, None
        if live is not None:
            with self._safe():
                live.stop()


def make_reporter(mode: Mode = "auto") -> Reporter:
    """Return the reporter for a mode; ``auto`` means a live display on a terminal, and lines elsewhere."""
    stream = sys.stdout if mode == "json" else sys.stderr
    if mode == "silent" or stream is None:  # None in a program without standard streams
        return Reporter()
    if mode == "json":
        return JsonReporter(stream)
    if mode == "live" or (mode == "auto" and stream.isatty()):
        return LiveReporter()
    return LineReporter(stream)


@dataclass(frozen=True, slots=True)
class _Count(Progress):
    noun: str
    done: float
    total: float
    left_s: float | None
    final: bool

    @property
    def line(self) -> str:
        return f"{self.done:.0f}/{self.total:.0f} {self.noun}, {duration(self.left_s)} left"

    @property
    def share(self) -> float:
        return self.done / self.total if self.total else 1.0


@contextmanager
def counter(noun: str) -> Iterator[Callable[[float, float], None]]:
    """Yield a function of two numbers, done and total, that shows both numbers and the time left.

    ``noun`` names what is counted, such as ``videos``. Outside a terminal, the first line appears after five seconds,
    so that short work prints nothing.
    """
    began = time.monotonic()
    stream: IO[str] | None = sys.stderr  # None in a program without standard streams
    live = stream is not None and stream.isatty()
    quiet = LineReporter(stream, first_after_s=_LINE_EVERY_S) if stream is not None else Reporter()
    with LiveReporter() if live else quiet as reporter:

        def count(done: float, total: float) -> None:
            left_s = (time.monotonic() - began) / done * (total - done) if done else None
            reporter.update(_Count(noun, done, total, left_s, final=live and done >= total))

        yield count
