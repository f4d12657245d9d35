"""The loader's worker processes: started with shared memory, fed by pipe, and never waited for in vain."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import IO, Any, Final, cast

from omniges.data.worker_setup import JOB
from omniges.errors import DataError, EnvironmentFault, OmnigesError, UsageFault

__all__ = ["WORKER_COMMAND", "ReadingWorker", "WorkerDied"]

WORKER_COMMAND: Final = (sys.executable, "-P", "-m", "omniges.data.worker")

_KINDS: Final[dict[str, type[OmnigesError]]] = {
    error.__name__: error for error in (DataError, EnvironmentFault, UsageFault)
}
_END_S: Final = 2.0
_ENVIRONMENT: Final = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} | {
    "TOKENIZERS_PARALLELISM": "false"
}


class WorkerDied(Exception):
    """The process ended without an answer; the text says how. `block` is the one it was at, None before the first."""

    def __init__(self, how: str, block: int | None) -> None:
        super().__init__(how)
        self.block = block


class ReadingWorker:
    """One worker process. Answers come in the order of jobs."""

    def __init__(self, setup: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        with contextlib.ExitStack() as on_failure:
            self._stderr: IO[bytes] = on_failure.enter_context(tempfile.TemporaryFile())
            try:
                self._process = subprocess.Popen(
                    WORKER_COMMAND,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._stderr,
                    bufsize=0,
                    pass_fds=tuple(descriptors),
                    env=os.environ | _ENVIRONMENT,
                )
            except OSError as error:
                raise EnvironmentFault(f"cannot start a loader worker: {error.strerror}") from error
            on_failure.pop_all()  # from here on close() sees to it
        self._input = cast("IO[bytes]", self._process.stdin)
        self._output = cast("IO[bytes]", self._process.stdout)
        self._poll = select.poll()
        self._poll.register(self._output, select.POLLIN)
        self._unread = b""
        self._jobs: deque[int] = deque()
        try:
            self._say(json.dumps(setup).encode() + b"\n")
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def submit(self, block: int) -> None:
        """Have a block filled; its positions and their number stand in it. Raises WorkerDied."""
        self._jobs.append(block)
        self._say(JOB.pack(block))

    def _say(self, message: bytes) -> None:
        try:
            view = memoryview(message)
            while view:
                view = view[self._input.write(view) :]
        except BrokenPipeError as error:
            raise self._death() from error

    def wait(self, limit_s: float) -> None:
        """Wait for the oldest job's answer.

        Raises the DataError, UsageFault or EnvironmentFault that the worker met, WorkerDied if it ended, and
        TimeoutError after the limit.
        """
        end = time.monotonic() + limit_s
        while b"\n" not in self._unread:
            if not self._poll.poll(max(0.0, end - time.monotonic()) * 1000):
                raise TimeoutError
            more = os.read(self._output.fileno(), 1 << 16)
            if not more:
                raise self._death()
            self._unread += more
        line, _, self._unread = self._unread.partition(b"\n")
        answer = json.loads(line)
        self._jobs.popleft()
        if answer:
            raise _KINDS[answer["kind"]](answer["message"])

    def _death(self) -> WorkerDied:
        """How the process ended, with the last line it wrote."""
        code = self._process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - 2000))
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return WorkerDied(f"{how}: {lines[-1]}" if lines else how, self._jobs[0] if self._jobs else None)

    def hang_up(self) -> None:
        """End its input, so that it leaves after the job it is at."""
        self._input.close()

    def close(self) -> None:
        """End the process, by force where it does not leave by itself, and free what belongs to it."""
        self.hang_up()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            self._output.close()
            self._stderr.close()
