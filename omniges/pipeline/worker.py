"""A worker process: recordings in on standard input, outcomes out on standard output (`pipeline.protocol`).

Run by the supervisor as ``python -P -m omniges.pipeline.worker``. It ends when its input ends, so it never outlives
the run it works for.
"""

from __future__ import annotations

import errno
import os
import signal
import sys

from omniges.errors import Finding, Problem
from omniges.pipeline.convert import convert
from omniges.pipeline.discover import Recording
from omniges.pipeline.protocol import decode_recording, decode_settings, send
from omniges.pipeline.settings import Converted, ConvertSettings, Rejected

__all__ = ["main"]


def _convert_guarded(recording: Recording, settings: ConvertSettings) -> Converted | Rejected:
    """The one place where any exception becomes a finding: a bug met by one recording must not take the others."""
    try:
        return convert(recording, settings)
    except (MemoryError, ImportError, SystemError):
        raise  # not the recording's fault: the process dies and the supervisor tries once more alone
    except Exception as error:  # the named boundary
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise
        found = f"{type(error).__name__}: {error}".replace("\n", " ")
        return Rejected((Finding(Problem("internal-error", found), recording.stem),), {})


def main() -> None:
    """Serve recordings until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor decides
    # Outcomes leave through a descriptor of their own: whatever a library prints must not mix with them.
    output = os.dup(1)
    os.dup2(2, 1)
    lines = iter(sys.stdin.buffer.readline, b"")
    settings = decode_settings(next(lines))
    for line in lines:
        outcome = _convert_guarded(decode_recording(line), settings)
        send(output, outcome)


if __name__ == "__main__":
    main()
