"""Worker processes: if a worker crashes, hangs or runs out of memory, the run continues.

A worker is ``python -P -m omniges.workers MODULE``. It reads one line of JSON for each message on standard input: the
setup, then the tasks. It answers each task on standard output: the length of a JSON head, the head, and raw buffers.
Nothing is pickled. A worker exits when its input ends, so it never outlives the process that started it.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import IO, Any, Final, Generic, Protocol, TypeVar, cast

from omniges.errors import (
    DataError,
    EnvironmentFault,
    ExitCode,
    OmnigesError,
    UsageFault,
    fault_of_machine,
    is_memory_error,
    settled,
)

ENVIRONMENT: Final = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment variables of a worker. Libraries use one thread, because each core has a worker."""

Pieces = Sequence[bytes | memoryview]
Answer = tuple[Any, Sequence[Pieces]]
"""Answer of a worker to a task: a JSON value, and buffers; each buffer is a list of parts."""

_ERRORS: Final = {error.exit_code: error for error in (DataError, UsageFault, EnvironmentFault)}
_LENGTH_BYTES: Final = 8
_MAX_HEAD_BYTES: Final = 64 << 20
_WINDOW_TASKS: Final = 8  # tasks per worker that may finish before a slow earlier task
_WINDOW_BYTES: Final = 512 << 20

Task = TypeVar("Task")
Result = TypeVar("Result")


def worker_command(module: str) -> tuple[str, ...]:
    """Return the command line of a worker process, which calls `serve` with the function ``prepare`` of a module."""
    return (sys.executable, "-P", "-m", "omniges.workers", module)


def serve(prepare: Callable[[Any], Callable[[Any], Answer]]) -> None:
    """Run the main loop of a worker process: read tasks and answer them until the input ends.

    A task may raise an OmnigesError, or an exception that `fault_of_machine` converts to an OmnigesError. Then this
    error is the answer, and the process that sent the task raises it. If memory is exhausted, or after any other
    exception, the worker exits. The pool then waits until no other task runs, and runs the task again.

    Args:
        prepare: Function that takes the setup and returns the function that answers a task.
    """
    # Answers have a separate descriptor, because libraries may print to standard output.
    output = os.dup(1)
    os.dup2(2, 1)
    lines = iter(sys.stdin.buffer.readline, b"")
    answer = _prepared(prepare, json.loads(next(lines)))
    with contextlib.suppress(BrokenPipeError):  # the main process has closed the pipe
        for line in lines:
            buffers: Sequence[Pieces] = ()
            try:
                value, buffers = answer(json.loads(line))
                head = {"answer": value, "sizes": [sum(map(len, pieces)) for pieces in buffers]}
            except (OmnigesError, ImportError, OSError) as error:
                fault = _reported_fault(error)
                head = {"error": [fault.exit_code, str(fault)]}
            text = json.dumps(head).encode()
            for piece in chain((len(text).to_bytes(_LENGTH_BYTES, "little"), text), *buffers):
                view = memoryview(piece).cast("B")
                while len(view):
                    view = view[os.write(output, view) :]


def _prepared(prepare: Callable[[Any], Callable[[Any], Answer]], setup: Any) -> Callable[[Any], Answer]:
    """Return the function that answers tasks; if `prepare` fails, return a function that always raises the error."""
    try:
        return prepare(setup)
    except (OmnigesError, ImportError, OSError) as error:
        fault = _reported_fault(error)

        def refuse(_task: Any) -> Answer:
            raise fault

        return refuse


def _reported_fault(error: Exception) -> OmnigesError:
    """Return the error to report to the main process.

    If memory is exhausted or the cause is unknown, raise the exception again, so that the worker exits.
    """
    fault = error if isinstance(error, OmnigesError) else fault_of_machine(error)
    if fault is None or is_memory_error(error):
        raise error
    return fault


def as_error(exit_code: int, text: str) -> OmnigesError:
    """Create the error that a worker reported.

    Args:
        exit_code: Exit code of the error's class.
        text: Text of the error.

    Returns:
        A DataError, UsageFault or EnvironmentFault.
    """
    return _ERRORS[ExitCode(exit_code)](text)


class WorkerDied(Exception):
    """Exception for a worker that exits without an answer, or sends an invalid answer.

    The text gives the cause. `task` is the oldest task without an answer, or None.
    """

    def __init__(self, how: str, task: Any) -> None:
        super().__init__(how)
        self.task = task


class Worker:
    """One worker process, which answers tasks in order."""

    def __init__(
        self,
        command: Sequence[str],
        setup: Any,
        *,
        descriptors: Sequence[int] = (),
        environment: Mapping[str, str] = ENVIRONMENT,
        pipe_bytes: int = 0,
    ) -> None:
        """Start the process.

        Args:
            command: Command line, for example from `worker_command`.
            setup: The setup as JSON, for the worker's ``prepare``.
            descriptors: File descriptors that the process inherits.
            environment: Environment variables in addition to those of this process.
            pipe_bytes: Size of the pipe for answers; 0 for the system's default.

        Raises:
            EnvironmentFault: The process cannot be started.
            WorkerDied: The process exited before it read the setup.
        """
        self._tasks: deque[Any] = deque()
        with contextlib.ExitStack() as on_failure:
            try:
                # Standard error goes to memory. It is short, and a machine may have no folder for temporary files.
                lines = os.memfd_create("stderr of a worker")
                self._stderr: IO[bytes] = on_failure.enter_context(os.fdopen(lines, "w+b"))
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._stderr,
                    bufsize=0,
                    pass_fds=tuple(descriptors),
                    env=os.environ | environment,
                )
            except OSError as error:
                raise EnvironmentFault(
                    f"expected to start a worker process, found an error ({error}); try fewer workers"
                ) from error
            self._input = cast("IO[bytes]", self._process.stdin)
            self._output = cast("IO[bytes]", self._process.stdout)
            on_failure.callback(self.close)
            if pipe_bytes:
                with contextlib.suppress(PermissionError):  # the user's share of pipe memory is used up
                    fcntl.fcntl(self._output, fcntl.F_SETPIPE_SZ, pipe_bytes)
            self._poll = select.poll()
            self._poll.register(self._output, select.POLLIN)
            self._write(setup)
            on_failure.pop_all()  # from here on, the caller closes the worker

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    def submit(self, task: Any) -> None:
        """Send a task as JSON; raise WorkerDied if the process has exited."""
        self._tasks.append(task)
        self._write(task)

    def _write(self, message: Any) -> None:
        view = memoryview(json.dumps(message).encode() + b"\n")
        try:
            while view:
                view = view[self._input.write(view) :]
        except BrokenPipeError as error:
            raise self._death() from error

    def receive(self, limit_s: float | None = None) -> tuple[Any, list[memoryview]]:
        """Wait for the answer to the oldest task.

        Args:
            limit_s: Longest time to wait, in seconds; None for no limit.

        Returns:
            The worker's answer, and the buffers that belong to it.

        Raises:
            WorkerDied: The process exited, or its answer is invalid.
            TimeoutError: The answer did not arrive within `limit_s` seconds.
            OmnigesError: The DataError, UsageFault or EnvironmentFault that the worker raised.
        """
        # Imported here because each worker loads this file at its start, and does not need numpy.
        from numpy import empty, uint8  # noqa: PLC0415

        end = None if limit_s is None else time.monotonic() + limit_s

        def read(size: int) -> memoryview:
            buffer_view = view = memoryview(empty(size, uint8).data)  # a bytearray would first be filled with zeros
            while view:
                if not self._poll.poll(None if end is None else max(0.0, end - time.monotonic()) * 1000):
                    raise TimeoutError(f"no result within the deadline of {limit_s:g} s")
                count = os.readv(self._output.fileno(), [view])
                if not count:
                    raise self._death()
                view = view[count:]
            return buffer_view

        length = int.from_bytes(read(_LENGTH_BYTES), "little")
        if length > _MAX_HEAD_BYTES:
            raise WorkerDied(
                f"a worker's answer has an invalid header: its length is {length} bytes, over {_MAX_HEAD_BYTES}",
                self._tasks[0],
            )
        head: dict[str, Any] = json.loads(bytes(read(length)))
        if "error" in head:
            self._tasks.popleft()
            raise as_error(*head["error"])
        buffers = [read(size) for size in head["sizes"]]
        self._tasks.popleft()
        return head["answer"], buffers

    def _death(self) -> WorkerDied:
        """Wait until the process exits; return an error with the exit code or signal, and the last line of stderr."""
        code = self._process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - 2000))
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return WorkerDied(f"{how}: {lines[-1]}" if lines else how, self._tasks[0] if self._tasks else None)

    def close_input(self) -> None:
        """Close the process's input, so that it exits after the current task."""
        self._input.close()

    def kill(self) -> None:
        """Kill the process at once; a thread that reads its output then gets the end of the stream."""
        self._process.kill()

    def close(self, patience_s: float = 0.0) -> None:
        """Close the input of the process, and wait until it exits; then close its other pipes.

        If the process still runs after `patience_s` seconds, kill it.
        """
        self.close_input()
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        finally:
            self._output.close()
            self._stderr.close()


class Answering(Protocol):
    """Interface of a worker in a pool: a `Worker`, or an object that represents a process on another machine."""

    def submit(self, task: Any) -> None:
        """Send a task as JSON; raise WorkerDied if the worker has exited."""

    def receive(self, limit_s: float | None = None) -> tuple[Any, list[Any]]:
        """Wait for the answer to the oldest task, and return it with its buffers; see `Worker.receive`."""

    def kill(self) -> None:
        """Stop the worker at once; a `receive` that waits in another thread then raises an error."""

    def close(self) -> None:
        """Free the resources of the worker."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A task without a result, with the reason: in both attempts, the worker crashed or exceeded the deadline."""

    reason: str


class Pool(Generic[Task, Result]):
    """Pool of workers that share the tasks of a sequence. Results have the order of the tasks.

    Each worker has one task at a time, so that a crash identifies the task. An attempt fails if the worker crashes or
    exceeds the deadline. The cause may be other tasks that use too much memory. Therefore, the pool waits until no
    other task runs, and runs the task again. If the second attempt also fails, the task is lost; other tasks continue.
    """

    def __init__(
        self,
        start: Callable[[], Answering],
        encode: Callable[[Task], Any],
        decode: Callable[[Any, list[Any]], Result],
        *,
        workers: int,
        deadline_s: float | None = None,
        size: Callable[[Task], int] = lambda _task: 0,
        on_death: Callable[[Task, str, int], None] = lambda _task, _reason, _attempt: None,
    ) -> None:
        """Configure the pool; `run` starts the workers.

        Args:
            start: Function that starts a worker.
            encode: Function that converts a task to JSON.
            decode: Function that converts an answer to a result.
            workers: Number of processes.
            deadline_s: Longest time for a task, in seconds; None for no limit.
            size: Function that returns the number of bytes of memory that the result of a task may need.
            on_death: Function that is called with (task, reason, number of the attempt) after a failed attempt.
        """
        self._start, self._encode, self._decode = start, encode, decode
        self._workers, self._deadline_s, self._size, self._on_death = workers, deadline_s, size, on_death
        self._turn = threading.Lock()  # held while a thread acquires permits
        self._places = threading.Semaphore(workers)  # permits; a running task has one, a repeated task has all
        self._condition = threading.Condition()
        self._outcomes: dict[int, Result | Lost] = {}
        self._running: dict[int, tuple[Task, float]] = {}
        self._next = 0  # index of the next task to start
        self._wanted = 0  # index of the next outcome to yield
        self._held_bytes = 0
        self._live: set[Answering] = set()
        self._stop = False
        self._failure: BaseException | None = None

    def slowest(self) -> tuple[Task, float] | None:
        """Return the task that has run longest so far, and its time in seconds; None if no task runs."""
        with self._condition:
            running = min(self._running.values(), key=lambda item: item[1], default=None)
        return (running[0], time.monotonic() - running[1]) if running else None

    def run(self, tasks: Sequence[Task]) -> Generator[tuple[Task, Result | Lost], None, None]:
        """Yield tasks and outcomes in the order of the tasks. Closing the iterator stops the workers.

        Args:
            tasks: All tasks, in order.

        Yields:
            A task, and its result or the reason why there is no result.

        Raises:
            OmnigesError: A worker cannot be started, or a worker raised this error.
        """
        threads = [
            threading.Thread(target=self._serve, args=(tasks,), name=f"worker-{k}", daemon=True)
            for k in range(min(self._workers, len(tasks)))
        ]
        for thread in threads:
            thread.start()
        try:
            for index, task in enumerate(tasks):
                yield task, self._await(index, task)
        finally:
            with self._condition:
                self._stop = True
                self._condition.notify_all()
                for worker in self._live:
                    worker.kill()  # its result is not needed any more
            for thread in threads:
                thread.join()
            for worker in self._live:
                worker.close()

    def _await(self, index: int, task: Task) -> Result | Lost:
        with self._condition:
            # With a timeout, Python handles Ctrl-C during the wait.
            while index not in self._outcomes and self._failure is None:
                self._condition.wait(0.5)
            if self._failure is not None:
                raise self._failure
            self._wanted = index + 1
            self._held_bytes -= self._size(task)
            self._condition.notify_all()
            return self._outcomes.pop(index)

    def _take(self, tasks: Sequence[Task]) -> int | None:
        """Wait until the next task may start, and return its index; None if no task is left or the pool stops."""
        with self._condition:

            def free() -> bool:
                ahead = self._next - self._wanted
                room = ahead < _WINDOW_TASKS * self._workers and self._held_bytes < _WINDOW_BYTES
                return self._stop or self._next >= len(tasks) or ahead == 0 or room

            self._condition.wait_for(free)
            if self._stop or self._next >= len(tasks):
                return None
            index = self._next
            self._next += 1
            self._held_bytes += self._size(tasks[index])
            return index

    def _serve(self, tasks: Sequence[Task]) -> None:
        """Run the thread of one worker; store an exception, which the thread that waits for outcomes then raises."""
        if (error := settled(partial(self._work, tasks)).exception()) is not None:
            with self._condition:
                self._failure = error
                self._condition.notify_all()

    def _work(self, tasks: Sequence[Task]) -> None:
        """Process tasks one by one. After a failed attempt, wait until no other task runs, then try once more."""
        worker: Answering | None = None
        while (index := self._take(tasks)) is not None:
            with self._places_for(1):
                outcome, worker = self._attempt(worker, tasks[index], index, 1)
            if isinstance(outcome, Lost) and not self._stop:
                with self._places_for(self._workers):
                    outcome, worker = self._attempt(worker, tasks[index], index, 2)
            with self._condition:
                self._outcomes[index] = outcome
                self._running.pop(index, None)
                self._condition.notify_all()
            del outcome  # frees a large result before the next task runs

    @contextlib.contextmanager
    def _places_for(self, places: int) -> Iterator[None]:
        """Acquire `places` permits to run tasks, and release them at the end of the `with` block.

        The pool has one permit for each worker. A task needs one permit. A task that must run alone needs all permits.
        """
        with self._turn:  # a thread that waits for all permits blocks new tasks until the running ones finish
            for _ in range(places):
                self._places.acquire()
        try:
            yield
        finally:
            self._places.release(places)

    def _attempt(
        self, worker: Answering | None, task: Task, index: int, attempt: int
    ) -> tuple[Result | Lost, Answering | None]:
        """Run a task on `worker`, or on a new worker if `worker` was not given.

        Return the outcome, and the worker for the next task (None if this worker crashed or exceeded the deadline).
        """
        with self._condition:
            self._running[index] = (task, time.monotonic())
        try:
            worker = worker or self._begin()
            worker.submit(self._encode(task))
            return self._decode(*worker.receive(self._deadline_s)), worker
        except (WorkerDied, TimeoutError) as death:
            if worker is not None:
                with self._condition:
                    self._live.discard(worker)
                worker.close()
            if not self._stop:
                self._on_death(task, str(death), attempt)
            return Lost(str(death)), None

    def _begin(self) -> Answering:
        worker = self._start()
        with self._condition:
            self._live.add(worker)
            if self._stop:
                worker.kill()
        return worker


if __name__ == "__main__":
    # The main process handles signals to the process group. A worker ignores them, even during the slow imports below.
    for caught in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(caught, signal.SIG_IGN)
    serve(lambda setup: importlib.import_module(sys.argv[1]).prepare(setup))
