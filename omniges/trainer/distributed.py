"""Coordination of a run's processes: requests to stop, small numbers that all agree on, work shared by turns.

SIGTERM and SIGUSR1 ask for a checkpoint and exit code 75, Ctrl-C for a checkpoint and 130; a second Ctrl-C leaves at
once. While something is waited for or computed that can be thrown away, the wish arrives as `StopNow`; everywhere
else it is a flag that is looked at soon. Ranks agree over a connection of their own that no device waits for, after
each turn of shared work too: whether one is to stop, or could not do its part.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist

from omniges.errors import EnvironmentFault, ExitCode, OmnigesError

SECOND_CTRL_C_AFTER_S: Final = 0.5
"""An interrupt sooner after the first is the same one: a terminal and a launcher both pass it on."""

Item = TypeVar("Item")
Found = TypeVar("Found")

_FAILED: Final = 1
_TURN_STOPS: Final = 1
_TURN_FAILED: Final = 2
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
        self.wish: ExitCode | None = None
        """The exit code that a signal asked for, if one did; Ctrl-C outdoes the others."""
        self._interrupted_at: float | None = None
        self._may_raise = False
        self._previous: dict[signal.Signals, Any] = {}

    @contextmanager
    def interruptible(self, enabled: bool = True) -> Iterator[None]:
        """A stretch that may end in `StopNow` anywhere; raises it at its beginning if the wish is there."""
        self._may_raise = enabled
        try:
            if enabled and self.wish is not None:
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
        self.wish = max(self.wish or code, code)
        if self._may_raise:
            self._may_raise = False
            raise StopNow

    def _leave(self, number: int, frame: FrameType | None) -> None:
        """Restore the previous handler and raise the signal again, which ends the program."""
        previous = self._previous[signal.Signals(number)]
        signal.signal(number, previous)
        if callable(previous):
            previous(number, frame)
        raise KeyboardInterrupt


class Ranks:
    """The ranks of a run; with one, everything is agreed at once."""

    def __init__(self) -> None:
        """Uses torch's process group where one was started."""
        joined = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if joined else 0
        self.world_size = dist.get_world_size() if joined else 1
        self._group = None
        if self.world_size > 1:
            self._group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")

    @property
    def first(self) -> bool:
        """True if this rank writes files and reports."""
        return self.rank == 0

    def largest(self, number: int) -> int:
        """The largest of all ranks' numbers, the same for all of them."""
        if self._group is None:
            return number
        shared = torch.tensor([number], dtype=torch.int64)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=self._group)
        return int(shared[0])

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        """A part that all ranks leave alike: if one fails, the others raise EnvironmentFault instead of waiting."""
        try:
            yield
        except OmnigesError:
            self.largest(_FAILED)
            raise
        if self.largest(0) == _FAILED:
            raise EnvironmentFault(f"another rank could not {what}: its message says why")

    def collected(self, data: bytes) -> list[bytes]:
        """The bytes (one at least) of all ranks, in their order, over the connection of their own."""
        if self._group is None:
            return [data]
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        dist.all_gather(sizes, torch.tensor([len(data)]), group=self._group)
        longest = max(int(size[0]) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(parts, padded, group=self._group)
        return [part[: int(size[0])].numpy().tobytes() for part, size in zip(parts, sizes, strict=True)]

    def gathered(self, tensor: torch.Tensor) -> torch.Tensor:
        """Tensors (…) of all ranks as (ranks, …), on their device."""
        if self.world_size == 1:
            return tensor[None]
        parts = [torch.empty_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)


class Interrupted(Exception):
    """A rank is to stop, and all have left the work; what was done of it is thrown away."""


class Turns:
    """The turns of one piece of work.

    With one process a wish to stop ends a turn at once; with several it waits for the turn's end, since the others wait
    for it.
    """

    def __init__(self, ranks: Ranks, stopper: Stopper) -> None:
        self._ranks, self._stopper = ranks, stopper

    def shared(self, items: Sequence[Item], work: Callable[[Item], Found]) -> list[Found]:
        """Each item is worked on by one rank, item i by rank i mod ranks; returns what this rank found, in order.

        All ranks raise `Interrupted` where one is to stop. Where one fails, it raises its own error and the others
        EnvironmentFault.
        """
        found = []
        for first in range(0, len(items), self._ranks.world_size):
            mine = first + self._ranks.rank
            own = items[mine : mine + 1]  # none where they do not come out even
            found += self.everyone(lambda own=own: [work(item) for item in own])  # type: ignore[misc]
        return found

    def everyone(self, work: Callable[[], Found]) -> Found:
        """Let all ranks do the same; raises as `shared` does."""
        done: list[Found] = []
        fault: OmnigesError | None = None
        try:
            with self._stopper.interruptible(self._ranks.world_size == 1):
                done.append(work())
        except StopNow:
            pass
        except OmnigesError as error:
            fault = error
        own = _TURN_FAILED if fault is not None else _TURN_STOPS if self._stopper.wish is not None else 0
        agreed = self._ranks.largest(own)
        if fault is not None:
            raise fault
        if agreed == _TURN_FAILED:
            raise EnvironmentFault("another rank could not validate: its message says why")
        if agreed == _TURN_STOPS:
            raise Interrupted
        return done[0]
