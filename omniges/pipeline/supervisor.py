"""Runs recordings through worker processes that may die, hang or run out of memory without taking the run along.

One recording at a time per worker, so a dead worker names its recording. That recording is tried once more with
nothing else running (it may have been killed for memory that others used); if the worker dies again it is lost, and
the run goes on without it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Final, cast

from omniges.errors import EnvironmentFault
from omniges.pipeline.discover import Recording
from omniges.pipeline.protocol import Sample, encode_recording, encode_settings, receive
from omniges.pipeline.settings import ConvertSettings, Rejected

__all__ = ["WORKER_COMMAND", "Lost", "Outcome", "Supervisor", "WorkerEvent"]

WORKER_COMMAND: Final = (sys.executable, "-P", "-m", "omniges.pipeline.worker")
_PIPE_BYTES: Final = 1 << 20
_WINDOW_RECORDINGS: Final = 8  # per worker: how far the others may run ahead of a slow recording
_WINDOW_BYTES: Final = 512 << 20
# Features are computed block by block on one thread each; arrays of a few megabytes come and go, and handing their
# pages back to the kernel each time costs more than keeping them.
_WORKER_ENVIRONMENT: Final = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(16 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "MALLOC_ARENA_MAX": "1",
}


@dataclass(frozen=True, slots=True)
class Lost:
    """A recording whose worker died or exceeded the deadline twice; the reason names how."""

    reason: str


Outcome = Sample | Rejected | Lost


@dataclass(frozen=True, slots=True)
class WorkerEvent:
    """A worker's death, for the run log."""

    stem: str
    reason: str
    attempt: int


class _WorkerDied(Exception):
    pass


class _Worker:
    """One worker process and its pipes."""

    def __init__(self, command: Sequence[str], settings: ConvertSettings) -> None:
        with contextlib.ExitStack() as on_failure:
            self._stderr: IO[bytes] = on_failure.enter_context(tempfile.TemporaryFile())
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                bufsize=0,
                env=os.environ | _WORKER_ENVIRONMENT,
            )
            on_failure.pop_all()  # from here on close() sees to it
        self._input = cast("IO[bytes]", self._process.stdin)
        self._output = cast("IO[bytes]", self._process.stdout)
        with contextlib.suppress(PermissionError):  # the user's share of pipe memory is used up: a small pipe does too
            fcntl.fcntl(self._output, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._poll = select.poll()
        self._poll.register(self._output, select.POLLIN)
        try:
            self._say(encode_settings(settings))
        except _WorkerDied:
            self.close()
            raise

    def _say(self, line: bytes) -> None:
        try:
            self._input.write(line)
        except BrokenPipeError as error:
            raise _WorkerDied(self._epitaph()) from error

    def convert(self, recording: Recording, deadline_s: float) -> Sample | Rejected:
        """Convert one recording; raises _WorkerDied if the process ends or takes longer than the deadline."""
        end = time.monotonic() + deadline_s
        self._say(encode_recording(recording))

        def read(view: memoryview) -> None:
            while len(view):
                if not self._poll.poll(max(0.0, end - time.monotonic()) * 1000):
                    raise _WorkerDied(f"no result within the deadline of {deadline_s:g} s")
                count = os.readv(self._output.fileno(), [view])
                if not count:
                    raise _WorkerDied(self._epitaph())
                view = view[count:]

        return receive(read)

    def _epitaph(self) -> str:
        """How the process ended, with the last line it wrote."""
        code = self._process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._stderr.seek(max(0, self._stderr.tell() - 2000))
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return f"{how}: {lines[-1]}" if lines else how

    def kill(self) -> None:
        """End the process, whatever it is doing; whoever reads from it sees the end."""
        self._process.kill()

    def close(self) -> None:
        """End the process and give back its pipes."""
        self.kill()
        self._process.wait()
        self._input.close()
        self._output.close()
        self._stderr.close()


class _Gate:
    """Many may pass together, or one alone."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0
        self._alone = False

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: not self._alone)
            self._inside += 1
        try:
            yield
        finally:
            with self._condition:
                self._inside -= 1
                self._condition.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: not self._alone)
            self._alone = True  # holds new ones back while those inside finish
            self._condition.wait_for(lambda: self._inside == 0)
        try:
            yield
        finally:
            with self._condition:
                self._alone = False
                self._condition.notify_all()


class Supervisor:
    """Converts recordings on several workers and hands the outcomes out in the order of the recordings."""

    def __init__(
        self,
        settings: ConvertSettings,
        workers: int,
        deadline_s: float,
        on_death: Callable[[WorkerEvent], None],
        command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        self._settings = settings
        self._workers = workers
        self._deadline_s = deadline_s
        self._on_death = on_death
        self._command = command
        self._gate = _Gate()
        self._condition = threading.Condition()
        self._outcomes: dict[int, Outcome] = {}
        self._running: dict[int, tuple[Recording, float]] = {}
        self._next = 0  # the next recording to start
        self._wanted = 0  # the next outcome to hand out
        self._held_bytes = 0
        self._live: set[_Worker] = set()
        self._stop = False
        self._failure: BaseException | None = None

    def slowest(self) -> tuple[str, float] | None:
        """The recording that has been worked on longest, and for how many seconds."""
        with self._condition:
            running = min(self._running.values(), key=lambda item: item[1], default=None)
        return (running[0].stem, time.monotonic() - running[1]) if running else None

    def run(self, recordings: Sequence[Recording]) -> Generator[tuple[Recording, Outcome], None, None]:
        """Outcomes in the order of the recordings. Closing the iterator ends the workers."""
        threads = [
            threading.Thread(target=self._serve, args=(recordings,), name=f"worker-{k}", daemon=True)
            for k in range(min(self._workers, len(recordings)))
        ]
        for thread in threads:
            thread.start()
        try:
            for index, recording in enumerate(recordings):
                yield recording, self._await(index, recording)
        finally:
            with self._condition:
                self._stop = True
                self._condition.notify_all()
                for worker in self._live:
                    worker.kill()  # nobody waits for what it is doing
            for thread in threads:
                thread.join()

    def _await(self, index: int, recording: Recording) -> Outcome:
        with self._condition:
            # The timeout lets Ctrl-C through while waiting.
            while index not in self._outcomes and self._failure is None:
                self._condition.wait(0.5)
            if self._failure is not None:
                raise self._failure
            self._wanted = index + 1
            self._held_bytes -= recording.size
            self._condition.notify_all()
            return self._outcomes.pop(index)

    def _take(self, recordings: Sequence[Recording]) -> int | None:
        """The next recording to work on, once it is not too far ahead of the one awaited."""
        with self._condition:

            def free() -> bool:
                ahead = self._next - self._wanted
                room = ahead < _WINDOW_RECORDINGS * self._workers and self._held_bytes < _WINDOW_BYTES
                return self._stop or self._next >= len(recordings) or ahead == 0 or room

            self._condition.wait_for(free)
            if self._stop or self._next >= len(recordings):
                return None
            index = self._next
            self._next += 1
            self._held_bytes += recordings[index].size
            return index

    def _serve(self, recordings: Sequence[Recording]) -> None:
        """One worker's thread."""
        worker: _Worker | None = None
        try:
            while (index := self._take(recordings)) is not None:
                outcome, worker = self._convert(worker, recordings[index], index)
                with self._condition:
                    self._outcomes[index] = outcome
                    self._running.pop(index, None)
                    self._condition.notify_all()
                del outcome  # a segment is not kept while the next recording is converted
        except OSError as error:
            self._fail(EnvironmentFault(f"cannot run a worker process: {error}. Try fewer --workers"))
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that awaits outcomes
            self._fail(error)
        finally:
            if worker is not None:
                self._bury(worker)

    def _fail(self, error: BaseException) -> None:
        with self._condition:
            self._failure = error
            self._condition.notify_all()

    def _convert(self, worker: _Worker | None, recording: Recording, index: int) -> tuple[Outcome, _Worker | None]:
        """Convert, and after a death once more alone."""
        with self._gate.shared():
            outcome, worker = self._attempt(worker, recording, index, 1)
        if not isinstance(outcome, Lost) or self._stop:
            return outcome, worker
        with self._gate.alone():
            return self._attempt(worker, recording, index, 2)

    def _attempt(
        self, worker: _Worker | None, recording: Recording, index: int, attempt: int
    ) -> tuple[Outcome, _Worker | None]:
        """One try on the given worker or a new one; the worker comes back unless it died."""
        with self._condition:
            self._running[index] = (recording, time.monotonic())
        try:
            worker = worker or self._hire()
            return worker.convert(recording, self._deadline_s), worker
        except (_WorkerDied, EOFError) as death:
            if worker is not None:
                self._bury(worker)
            if not self._stop:
                self._on_death(WorkerEvent(recording.stem, str(death), attempt))
            return Lost(str(death)), None

    def _hire(self) -> _Worker:
        worker = _Worker(self._command, self._settings)
        with self._condition:
            self._live.add(worker)
            if self._stop:
                worker.kill()
        return worker

    def _bury(self, worker: _Worker) -> None:
        with self._condition:
            self._live.discard(worker)
        worker.close()
