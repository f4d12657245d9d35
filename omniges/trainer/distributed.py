"""Coordination of the processes (ranks) of a run: requests to stop, values that all ranks agree on, shared work.

SIGTERM and SIGUSR1 request a checkpoint and exit code 75. Ctrl-C requests a checkpoint and exit code 130. A second
Ctrl-C, at least 0.5 s after the first, exits at once. While the process waits, or computes a result that may be
discarded, a request raises `StopNow`. At other times, a request only sets a flag. The training loop checks this flag at
least once in each step.

Ranks communicate over a separate gloo group, so that they do not wait for a GPU. `SharedWork` divides work among the
ranks in turns. After each turn, every rank learns whether any rank has to stop or has failed.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist

from omniges.errors import EnvironmentFault, ExitCode, OmnigesError

SECOND_CTRL_C_AFTER_S: Final = 0.5
"""Seconds after the first Ctrl-C during which another SIGINT is ignored: terminal and launcher may both send it."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class RankLost(EnvironmentFault):
    """Error: another process of the run ended or does not answer, so the ranks cannot communicate."""


@contextmanager
def exchanging(world_size: int) -> Iterator[None]:
    """Run a ``with`` block that communicates with other ranks; raise `RankLost` if another process is lost.

    Args:
        world_size: Number of processes.

    Yields:
        Nothing.

    Raises:
        RankLost: Another process ended or does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if world_size == 1 or not (isinstance(error, dist.DistError) or any(words in text for words in _LOST)):
            raise
        raise RankLost(
            f"expected {world_size} processes, found that another process ended or does not answer "
            f"({text[:_SHOWN]}); see the message of that process, and run the same command again to resume from the "
            "last checkpoint"
        ) from error


_SHOWN: Final = 120
_LOST: Final = ("gloo", "Gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
_FAILED: Final = 1
_TURN_STOPS: Final = 1
_TURN_FAILED: Final = 2
_CODES: Final = {
    signal.SIGTERM: ExitCode.STOPPED,
    signal.SIGUSR1: ExitCode.STOPPED,
    signal.SIGINT: ExitCode.INTERRUPTED,
}


class StopNow(BaseException):
    """Exception: the run has to stop now, and the current work may be discarded.

    It is a BaseException, so that ``except Exception`` in a library does not catch it.
    """


class Stopper:
    """Context manager that handles SIGTERM, SIGUSR1 and SIGINT. Python allows this only in the main thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.exit_code: ExitCode | None = None
        """Exit code that a signal requested, or None. Ctrl-C has priority over the other signals."""
        self._interrupted_at: float | None = None
        self._may_raise = False
        self._previous: dict[signal.Signals, Any] = {}

    @contextmanager
    def interruptible(self, enabled: bool = True) -> Iterator[None]:
        """Let a signal raise `StopNow` at any point of the ``with`` block.

        If a stop was requested before the block, `StopNow` is raised at its start.

        Args:
            enabled: If False, a signal only sets `exit_code`, and `StopNow` is not raised.

        Yields:
            Nothing.
        """
        self._may_raise = enabled
        try:
            if enabled and self.exit_code is not None:
                raise StopNow
            yield
        finally:
            self._may_raise = False

    def __enter__(self) -> Stopper:
        for number in _CODES:
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
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
        self.exit_code = max(self.exit_code or code, code)
        if self._may_raise:
            self._may_raise = False
            raise StopNow

    def _leave(self, number: int, frame: FrameType | None) -> None:
        """Exit after a second Ctrl-C: restore the signal handler from before the run, and call it.

        If the restored handler returns or cannot be called, this method raises KeyboardInterrupt.
        """
        previous = self._previous[signal.Signals(number)]
        signal.signal(number, previous)
        if callable(previous):
            previous(number, frame)
        raise KeyboardInterrupt


class Ranks:
    """Communication between the ranks (processes) of a run."""

    def __init__(self, timeout: timedelta | None = None) -> None:
        """Read the rank and the number of ranks from torch's process group; without a process group, use one rank.

        Args:
            timeout: Longest wait for another rank, after which `RankLost` is raised; None: the default of torch.
        """
        joined = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if joined else 0
        self.world_size = dist.get_world_size() if joined else 1
        self._group = None
        if self.world_size > 1:
            own = dist.get_backend() != "gloo"
            self._group = dist.new_group(backend="gloo", timeout=timeout) if own else dist.group.WORLD

    @property
    def first(self) -> bool:
        """True on rank 0, which writes files and reports progress."""
        return self.rank == 0

    def largest(self, number: int) -> int:
        """Return the maximum of a number over all ranks. All ranks call this method and get the same result."""
        if self._group is None:
            return number
        shared = torch.tensor([number], dtype=torch.int64)
        with exchanging(self.world_size):
            dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=self._group)
        return int(shared[0])

    def from_first(self, data: bytes) -> bytes:
        """Send bytes (at least one) from the first rank to all ranks; return them on all ranks."""
        if self._group is None:
            return data
        shared = torch.zeros(self.largest(len(data) if self.first else 0), dtype=torch.uint8)
        if self.first:
            shared[:] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        with exchanging(self.world_size):
            dist.broadcast(shared, 0, group=self._group)
        return shared.numpy().tobytes()

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """Run a ``with`` block on all ranks; if one rank fails, raise EnvironmentFault on the other ranks.

        Args:
            what: Name of the action in the error, such as ``open the run``.

        Yields:
            Nothing.

        Raises:
            EnvironmentFault: Another rank failed. The failed rank raises its own error.
        """
        try:
            with exchanging(self.world_size):
                yield
        except RankLost:
            raise
        except OmnigesError:
            self.largest(_FAILED)
            raise
        if self.largest(0) == _FAILED:
            raise EnvironmentFault(
                f"expected every process to {what}, found that another process could not; see the message of that "
                "process"
            )

    def collected(self, data: bytes) -> list[bytes]:
        """Gather the bytes of all ranks (at least one byte each), in rank order, over the gloo group."""
        if self._group is None:
            return [data]
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        with exchanging(self.world_size):
            dist.all_gather(sizes, torch.tensor([len(data)]), group=self._group)
        longest = max(int(size[0]) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        with exchanging(self.world_size):
            dist.all_gather(parts, padded, group=self._group)
        return [part[: int(size[0])].numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]

    def gathered(self, tensor: torch.Tensor) -> torch.Tensor:
        """Gather tensors of equal shape from all ranks; return one tensor of shape (ranks, …) on the same device."""
        if self.world_size == 1:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        with exchanging(self.world_size):
            dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)


class Interrupted(Exception):
    """Exception that is raised on all ranks if any rank has to stop; results of the shared work are discarded."""


class SharedWork:
    """A scheduler that divides work among the ranks, in turns: in each turn, a rank processes at most one item.

    With one process, a request to stop interrupts the turn at once. With several processes, a rank that gets a request
    completes its item first, because the other ranks wait for this rank at the end of the turn.
    """

    def __init__(self, ranks: Ranks, stopper: Stopper) -> None:
        self._ranks, self._stopper = ranks, stopper

    def shared(self, items: Sequence[Item], work: Callable[[Item], Answer]) -> list[Answer]:
        """Divide items among the ranks: item i is processed on rank i mod (number of ranks).

        Args:
            items: All items, the same on every rank.
            work: Function that computes the result of one item.

        Returns:
            Results of the items of this rank, in the order of the items.

        Raises:
            Interrupted: A rank has to stop; raised on all ranks.
            EnvironmentFault: Another rank failed; the failed rank raises its own error.
        """
        found = []
        for first in range(0, len(items), self._ranks.world_size):
            place = first + self._ranks.rank
            own = items[place : place + 1]  # empty if the last turn has no item for this rank
            found += self.on_all_ranks(lambda own=own: [work(item) for item in own])  # type: ignore[misc]
        return found

    def on_all_ranks(self, work: Callable[[], Answer]) -> Answer:
        """Call a function on every rank, and return this rank's result; raise the errors that `shared` raises."""
        done: list[Answer] = []
        fault: OmnigesError | None = None
        try:
            with self._stopper.interruptible(self._ranks.world_size == 1):
                done.append(work())
        except StopNow:
            pass
        except OmnigesError as error:
            fault = error
        own = _TURN_FAILED if fault is not None else _TURN_STOPS if self._stopper.exit_code is not None else 0
        agreed = self._ranks.largest(own)
        if fault is not None:
            raise fault
        if agreed == _TURN_FAILED:
            raise EnvironmentFault(
                "expected every process to validate, found that another process could not; see the message of that "
                "process"
            )
        if agreed == _TURN_STOPS:
            raise Interrupted
        return done[0]
