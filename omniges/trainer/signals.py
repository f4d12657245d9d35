"""Stopping a run from anywhere: signals become a wish, and a wish ends a wait at once but never half a step.

SIGTERM and SIGUSR1 ask for a checkpoint and exit code 75, Ctrl-C for a checkpoint and 130; a second Ctrl-C leaves at
once. While something is waited for or computed that can be thrown away, the wish arrives as `StopNow`; everywhere
else it is a flag that is looked at soon.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Final

from omniges.errors import ExitCode

SECOND_CTRL_C_AFTER_S: Final = 0.5
"""An interrupt sooner after the first is the same one: a terminal and a launcher both pass it on."""

_CODES: Final = {
    signal.SIGTERM: ExitCode.STOPPED,
    signal.SIGUSR1: ExitCode.STOPPED,
    signal.SIGINT: ExitCode.INTERRUPTED,
}


class StopNow(BaseException):
    """The run is to stop, and what goes on can be thrown away; no library on the way catches this."""


class Stopper:
    """Takes over the three signals while it is entered; the main thread's, for Python gives signals to no other."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wish: ExitCode | None = None
        self._interrupted_at: float | None = None
        self._may_raise = False
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def wish(self) -> ExitCode | None:
        """The exit code that a signal asked for, if one did; Ctrl-C outdoes the others."""
        return self._wish

    @contextmanager
    def interruptible(self, enabled: bool = True) -> Iterator[None]:
        """A stretch that may end in `StopNow` anywhere; raises it at its beginning if the wish is there."""
        self._may_raise = enabled
        try:
            if enabled and self._wish is not None:
                raise StopNow
            yield
        finally:
            self._may_raise = False

    def __enter__(self) -> Stopper:
        for number in _CODES:
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        code = _CODES[signal.Signals(number)]
        if code is ExitCode.INTERRUPTED:
            now = self._clock()
            if self._interrupted_at is None:
                self._interrupted_at = now
            elif now - self._interrupted_at >= SECOND_CTRL_C_AFTER_S:
                self._leave(number, frame)
        self._wish = max(self._wish or code, code)
        if self._may_raise:
            self._may_raise = False
            raise StopNow

    def _leave(self, number: int, frame: FrameType | None) -> None:
        """As if this had never been entered: the handler that was there ends the program."""
        previous = self._previous[signal.Signals(number)]
        signal.signal(number, previous)
        if callable(previous):
            previous(number, frame)
        raise KeyboardInterrupt
