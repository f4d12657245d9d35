"""What commands share: signals, lists as people write them, the console, packages that may be missing."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from omniges.errors import EnvironmentFault, ExitCode

if TYPE_CHECKING:
    from rich.console import Console


class Signalled(BaseException):
    """A signal arrived that ends the command; no library on the way catches this."""

    def __init__(self, code: ExitCode) -> None:
        super().__init__(code)
        self.code = code


def raise_on(number: signal.Signals, code: ExitCode) -> None:
    """Let a signal end the command with a code."""

    def leave(_number: int, _frame: object) -> None:
        raise Signalled(code)

    signal.signal(number, leave)


@contextmanager
def resumable() -> Iterator[None]:
    """Let SIGTERM and SIGUSR1 end a command that the same words take up again (exit 75)."""
    with _raising({signal.SIGTERM: ExitCode.STOPPED, signal.SIGUSR1: ExitCode.STOPPED}):
        yield


@contextmanager
def tidy() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, so that no temporary folder stays (exit 143, what shells call it)."""
    with _raising({signal.SIGTERM: ExitCode.TERMINATED}):
        yield


@contextmanager
def _raising(codes: Mapping[signal.Signals, ExitCode]) -> Iterator[None]:
    previous = {number: signal.getsignal(number) for number in codes}
    for number, code in codes.items():
        raise_on(number, code)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Imports that need packages which a plain installation has not."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "omniges").split(".")[0] == "omniges":
            raise
        raise EnvironmentFault(
            f"the package {error.name} is not installed, which this command needs: pip install 'omniges[{extra}]'"
        ) from error


def listed(values: Iterable[str]) -> tuple[str, ...]:
    """Values given as repeated flags, as comma-separated lists, or both."""
    return tuple(name.strip() for value in values for name in value.split(",") if name.strip())


def make_console() -> Console:
    """Standard output for tables."""
    from rich.console import Console

    # A file or pipe gets whole lines: cut or folded rows are of no use to grep.
    return Console() if sys.stdout.isatty() else Console(width=240)
