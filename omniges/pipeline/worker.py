"""A worker process that converts recordings (`omniges.workers`)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from omniges.errors import Finding, Problem
from omniges.pipeline.convert import convert
from omniges.pipeline.discover import Recording
from omniges.pipeline.protocol import decode_recording, encode_outcome
from omniges.pipeline.settings import Converted, ConvertSettings, Rejected
from omniges.workers import Answer


def prepare(setup: dict[str, Any]) -> Callable[[Any], Answer]:
    """Return the function that converts the recording of a task."""
    settings = ConvertSettings(**setup)
    return lambda task: encode_outcome(_convert_guarded(decode_recording(task), settings))


def _convert_guarded(recording: Recording, settings: ConvertSettings) -> Converted | Rejected:
    """The one place where any exception becomes a finding: a bug met by one recording must not take the others."""
    try:
        return convert(recording, settings)
    except (MemoryError, ImportError, SystemError):
        raise  # not the recording's fault: the process dies and the pool tries once more alone
    except Exception as error:  # the named boundary
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise
        found = f"{type(error).__name__}: {error}".replace("\n", " ")
        return Rejected((Finding(Problem("internal-error", found), recording.stem),), {})
