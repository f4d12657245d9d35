"""Work that ranks share turn by turn: after each turn they agree whether one is to stop or could not do its part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from omniges.errors import EnvironmentFault, OmnigesError
from omniges.trainer.ranks import Ranks
from omniges.trainer.stopping import StopNow, Stopper

__all__ = ["Interrupted", "Turns"]

Item = TypeVar("Item")
Found = TypeVar("Found")

_STOPS: Final = 1
_FAILED: Final = 2


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
            if mine < len(items):
                found += self._turn(lambda number=mine: [work(items[number])])  # type: ignore[misc]
            else:
                self._turn(list)
        return found

    def everyone(self, work: Callable[[], Found]) -> Found:
        """All ranks do the same."""
        return self._turn(work)

    def _turn(self, work: Callable[[], Found]) -> Found:
        done: list[Found] = []
        fault: OmnigesError | None = None
        try:
            with self._stopper.interruptible(self._ranks.world_size == 1):
                done.append(work())
        except StopNow:
            pass
        except OmnigesError as error:
            fault = error
        own = _FAILED if fault is not None else _STOPS if self._stopper.wish is not None else 0
        agreed = self._ranks.largest(own)
        if fault is not None:
            raise fault
        if agreed == _FAILED:
            raise EnvironmentFault("another rank could not validate: its message says why")
        if agreed == _STOPS:
            raise Interrupted
        return done[0]
