"""Standard streams whose errors do not end a command: a closed pipe or terminal, a full disk, another encoding.

The output of a command only reports its work, so the work continues if nobody can read it.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, TextIO

from omniges.errors import ExitCode

_ESCAPES: Final = "omniges-escapes"


class Outlet(io.RawIOBase):
    """Output to a descriptor that never fails: after the first error, all further output is dropped."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._terminal = os.isatty(descriptor)
        self.error: OSError | None = None

    def writable(self) -> bool:
        """Return true."""
        return True

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return whether the descriptor was a terminal when this object was made."""
        return self._terminal

    def write(self, data: Any, /) -> int:
        """Write all bytes, or drop them; return their number."""
        view = memoryview(data).cast("B")
        count = len(view)
        while len(view) and self.error is None:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:  # another program made the pipe non-blocking: wait until it has space
                select.select([], [self._descriptor], [])
            except OSError as error:
                self.error = error
        return count

    @property
    def lost(self) -> OSError | None:
        """The error that prevented output to a file; None if a pipe or terminal was closed."""
        gone = self.error is not None and (self._terminal or self.error.errno == errno.EPIPE)
        return None if gone else self.error


@contextmanager
def unfailing_streams() -> Iterator[list[ExitCode]]:
    r"""Put streams that never fail in place of standard output and standard error.

    Characters that an encoding does not have become ``\uXXXX``. A closed stream becomes /dev/null, so that no file
    opened later gets its descriptor number. Streams that replace the process's own are not changed.

    Yields:
        A list that, after the context, contains an exit code if output to a file was lost.
    """
    codecs.register_error(_ESCAPES, _escaped)
    codes: list[ExitCode] = []
    outlets: dict[str, Outlet] = {}
    with ExitStack() as restore:
        for name in ("stdin", "stdout", "stderr"):
            stream: TextIO | None = getattr(sys, name)
            if stream is None:
                descriptor = os.open(os.devnull, os.O_RDWR)
                os.set_inheritable(descriptor, True)
                stream = open(descriptor, "r" if name == "stdin" else "w", encoding="utf-8")  # noqa: SIM115
                setattr(sys, name, stream)
            if name != "stdin" and type(stream) is io.TextIOWrapper:
                restore.callback(setattr, sys, name, stream)
                outlets[name] = Outlet(stream.fileno())
                setattr(sys, name, _over(outlets[name], stream))
        try:
            yield codes
        finally:
            sys.stdout.flush()
            lost = outlets["stdout"].lost if "stdout" in outlets else None
            if lost is not None:
                sys.stderr.write(f"omniges: cannot write to standard output: {lost.strerror}\n")
                codes.append(ExitCode.ENVIRONMENT)
            sys.stderr.flush()


def _over(outlet: Outlet, stream: io.TextIOWrapper) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(outlet),
        encoding=stream.encoding,
        errors=_ESCAPES,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Return JSON escapes of characters that cannot be encoded; the error handler of `unfailing_streams`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[k : k + 2].hex()}" for k in range(0, len(units), 2)), error.end
