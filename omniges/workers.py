"""Subprocess workers that may die, hang or run out of memory without taking the run along.

A worker is ``python -P -m omniges.workers MODULE``. It gets one line of JSON a message on standard input: the setup,
then the tasks. It answers each task on standard output with the length of a JSON head, the head, and raw buffers.
Nothing is pickled. It exits when its input ends, so it never outlives the process it works for.
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
from itertools import chain
from typing import IO, Any, Final, Generic, TypeVar, cast

from omniges.errors import DataError, EnvironmentFault, OmnigesError, UsageFault, fault_of_machine, is_memory_error

ENVIRONMENT: Final = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""One thread a worker: there is a worker for each core."""

Pieces = Sequence[bytes | memoryview]
Answer = tuple[Any, Sequence[Pieces]]
"""What a worker answers to a task: JSON, and buffers, each of them in pieces."""

_ERRORS: Final = {error.exit_code: error for error in (DataError, UsageFault, EnvironmentFault)}
_LENGTH_BYTES: Final = 8
_MAX_HEAD_BYTES: Final = 64 << 20
_WINDOW_TASKS: Final = 8  # per worker: how far the others may run ahead of a slow task
_WINDOW_BYTES: Final = 512 << 20

Task = TypeVar("Task")
Result = TypeVar("Result")


def worker_command(module: str) -> tuple[str, ...]:
    """Return the command of workers that serve with a module's ``prepare`` (see `serve`)."""
    return (sys.executable, "-P", "-m", "omniges.workers", module)


def serve(prepare: Callable[[Any], Callable[[Any], Answer]]) -> None:
    """Answer tasks until the input ends; this is a worker's main function.

    Args:
        prepare: Turns the setup into the function that answers a task. An OmnigesError of either, and a fault of
            the machine, is raised again in the process that asked. Any other exception ends the worker, and so does
            memory that is used up: the pool then tries the task again alone.
    """
    # Answers leave through a descriptor of their own: whatever a library prints must not mix with them.
    output = os.dup(1)
    os.dup2(2, 1)
    lines = iter(sys.stdin.buffer.readline, b"")
    answer = _prepared(prepare, json.loads(next(lines)))
    with contextlib.suppress(BrokenPipeError):  # nobody waits for the answer any more
        for line in lines:
            buffers: Sequence[Pieces] = ()
            try:
                value, buffers = answer(json.loads(line))
                head = {"answer": value, "sizes": [sum(map(len, pieces)) for pieces in buffers]}
            except (OmnigesError, ImportError, OSError) as error:
                fault = _told(error)
                head = {"error": [fault.exit_code, str(fault)]}
            text = json.dumps(head).encode()
            for piece in chain((len(text).to_bytes(_LENGTH_BYTES, "little"), text), *buffers):
                view = memoryview(piece).cast("B")
                while len(view):
                    view = view[os.write(output, view) :]


def _prepared(prepare: Callable[[Any], Callable[[Any], Answer]], setup: Any) -> Callable[[Any], Answer]:
    """Return the function that answers tasks; what keeps it from being made is the answer to the first."""
    try:
        return prepare(setup)
    except (OmnigesError, ImportError, OSError) as error:
        fault = _told(error)

        def refuse(_task: Any) -> Answer:
            raise fault

        return refuse


def _told(error: Exception) -> OmnigesError:
    """Return what the process that asked is told of an exception; raises it again where that is the worker's end."""
    fault = error if isinstance(error, OmnigesError) else fault_of_machine(error)
    if fault is None or is_memory_error(error):
        raise error
    return fault


class WorkerDied(Exception):
    """A worker exited without an answer; the text says how. `task` is the one it was at, None before the first."""

    def __init__(self, how: str, task: Any) -> None:
        super().__init__(how)
        self.task = task


class Worker:
    """One worker process. Answers come in the order of tasks."""

    def __init__(
        self,
        command: Sequence[str],
        setup: Any,
        *,
        descriptors: Sequence[int] = (),
        environment: Mapping[str, str] = ENVIRONMENT,
        pipe_bytes: int = 0,
    ) -> None:
        """Start a process.

        Args:
            command: Such as `worker_command` gives.
            setup: JSON for its ``prepare``.
            descriptors: Files that it inherits.
            environment: Variables to set beside those of this process.
            pipe_bytes: Size of the pipe that answers come through; 0 for the system's.

        Raises:
            EnvironmentFault: The process cannot be started.
            WorkerDied: It exited before it read the setup.
        """
        self._tasks: deque[Any] = deque()
        with contextlib.ExitStack() as on_failure:
            try:
                # In memory: it is a few lines, and a machine may have no folder for temporary files.
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
                raise EnvironmentFault(f"cannot start a worker process: {error}. Try fewer workers") from error
            self._input = cast("IO[bytes]", self._process.stdin)
            self._output = cast("IO[bytes]", self._process.stdout)
            on_failure.callback(self.close)
            if pipe_bytes:
                with contextlib.suppress(PermissionError):  # the user's share of pipe memory is used up
                    fcntl.fcntl(self._output, fcntl.F_SETPIPE_SZ, pipe_bytes)
            self._poll = select.poll()
            self._poll.register(self._output, select.POLLIN)
            self._write(setup)
            on_failure.pop_all()  # from here on its owner closes it

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def submit(self, task: Any) -> None:
        """Send a task as JSON; raises WorkerDied."""
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
            limit_s: how long to wait, in seconds; None: for ever.

        Returns:
            The worker's answer, and buffers that came with it.

        Raises:
            WorkerDied: The process exited, or its answer is none.
            TimeoutError: There is no answer within `limit_s` seconds.
            OmnigesError: The DataError, UsageFault or EnvironmentFault that the worker met.
        """
        # Imported when the first answer comes: a worker itself starts by loading this file.
        from numpy import empty, uint8  # noqa: PLC0415

        end = None if limit_s is None else time.monotonic() + limit_s

        def read(size: int) -> memoryview:
            whole = view = memoryview(empty(size, uint8).data)  # bytearray would clear the pages first
            while view:
                if not self._poll.poll(None if end is None else max(0.0, end - time.monotonic()) * 1000):
                    raise TimeoutError(f"no result within the deadline of {limit_s:g} s")
                count = os.readv(self._output.fileno(), [view])
                if not count:
                    raise self._death()
                view = view[count:]
            return whole

        length = int.from_bytes(read(_LENGTH_BYTES), "little")
        if length > _MAX_HEAD_BYTES:
            raise WorkerDied(f"a worker announced a head of {length} bytes", self._tasks[0])
        head: dict[str, Any] = json.loads(bytes(read(length)))
        if "error" in head:
            self._tasks.popleft()
            code, text = head["error"]
            raise _ERRORS[code](text)
        buffers = [read(size) for size in head["sizes"]]
        self._tasks.popleft()
        return head["answer"], buffers

    def _death(self) -> WorkerDied:
        """Return how the process ended, with the last line it wrote."""
        code = self._process.wait()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - 2000))
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return WorkerDied(f"{how}: {lines[-1]}" if lines else how, self._tasks[0] if self._tasks else None)

    def hang_up(self) -> None:
        """End its input, so that it exits after the task it is at."""
        self._input.close()

    def kill(self) -> None:
        """End the process, whatever it is doing; whoever reads from it sees the end."""
        self._process.kill()

    def close(self, patience_s: float = 0.0) -> None:
        """Stop the process, by force if it does not exit in time, and close its pipes."""
        self.hang_up()
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        finally:
            self._output.close()
            self._stderr.close()


@dataclass(frozen=True, slots=True)
class Lost:
    """A task whose worker died or exceeded the deadline twice; the reason names how."""

    reason: str


class Pool(Generic[Task, Result]):
    """Workers that share a sequence of tasks; results come in the order of the tasks.

    One task at a time per worker, so a dead worker names its task. That task is tried once more with nothing else
    running (it may have been killed for memory that others used); if the worker dies again the task is lost, and the
    others go on.
    """

    def __init__(
        self,
        start: Callable[[], Worker],
        encode: Callable[[Task], Any],
        decode: Callable[[Any, list[memoryview]], Result],
        *,
        workers: int,
        deadline_s: float | None = None,
        size: Callable[[Task], int] = lambda _task: 0,
        on_death: Callable[[Task, str, int], None] = lambda _task, _reason, _attempt: None,
    ) -> None:
        """Describe the workers; `run` starts them.

        Args:
            start: Starts one.
            encode: Turns a task into JSON.
            decode: Turns an answer into a result.
            workers: Number of processes.
            deadline_s: Seconds that a task may take.
            size: Bytes that a task's result may hold in memory until it is asked for.
            on_death: Is told of a task, how its worker died, and the number of the attempt.
        """
        self._start, self._encode, self._decode = start, encode, decode
        self._workers, self._deadline_s, self._size, self._on_death = workers, deadline_s, size, on_death
        self._turn = threading.Lock()  # to take places
        self._places = threading.Semaphore(workers)  # of tasks that are worked on
        self._condition = threading.Condition()
        self._outcomes: dict[int, Result | Lost] = {}
        self._running: dict[int, tuple[Task, float]] = {}
        self._next = 0  # the next task to start
        self._wanted = 0  # the next outcome to hand out
        self._held_bytes = 0
        self._live: set[Worker] = set()
        self._stop = False
        self._failure: BaseException | None = None

    def slowest(self) -> tuple[Task, float] | None:
        """Return the task that has been worked on longest, and for how many seconds."""
        with self._condition:
            running = min(self._running.values(), key=lambda item: item[1], default=None)
        return (running[0], time.monotonic() - running[1]) if running else None

    def run(self, tasks: Sequence[Task]) -> Generator[tuple[Task, Result | Lost], None, None]:
        """Yield tasks and outcomes in the order of the tasks. Closing the iterator ends the workers.

        Args:
            tasks: all of them, in order.

        Yields:
            A task, and its result or why it is lost.

        Raises:
            OmnigesError: A worker cannot be started, or met this error.
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
                    worker.kill()  # nobody waits for what it is doing
            for thread in threads:
                thread.join()
            for worker in self._live:
                worker.close()

    def _await(self, index: int, task: Task) -> Result | Lost:
        with self._condition:
            # The timeout lets Ctrl-C through while waiting.
            while index not in self._outcomes and self._failure is None:
                self._condition.wait(0.5)
            if self._failure is not None:
                raise self._failure
            self._wanted = index + 1
            self._held_bytes -= self._size(task)
            self._condition.notify_all()
            return self._outcomes.pop(index)

    def _take(self, tasks: Sequence[Task]) -> int | None:
        """The next task to work on, once it is not too far ahead of the one awaited."""
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
        """One worker's thread: work on tasks, and after a death once more alone."""
        worker: Worker | None = None
        try:
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
                del outcome  # a large result is not kept while the next task is worked on
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that awaits outcomes
            with self._condition:
                self._failure = error
                self._condition.notify_all()

    @contextlib.contextmanager
    def _places_for(self, places: int) -> Iterator[None]:
        """Hold one of the places that tasks are worked on in, or all of them, to be alone."""
        with self._turn:  # who waits for all holds new ones back while those inside finish
            for _ in range(places):
                self._places.acquire()
        try:
            yield
        finally:
            self._places.release(places)

    def _attempt(
        self, worker: Worker | None, task: Task, index: int, attempt: int
    ) -> tuple[Result | Lost, Worker | None]:
        """One try on the given worker or a new one; the worker comes back unless it died."""
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

    def _begin(self) -> Worker:
        worker = self._start()
        with self._condition:
            self._live.add(worker)
            if self._stop:
                worker.kill()
        return worker


if __name__ == "__main__":
    # Before the module's imports, which are slow: a signal to the whole group is for the process that asks.
    for caught in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(caught, signal.SIG_IGN)
    serve(lambda setup: importlib.import_module(sys.argv[1]).prepare(setup))
