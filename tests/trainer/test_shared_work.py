"""Ranks share items without doing one twice, and leave together."""

from __future__ import annotations

import pytest

from omniges.errors import DataError, EnvironmentFault, ExitCode
from omniges.trainer.distributed import Interrupted, SharedWork, Stopper


class Pretended:
    """One of several ranks, which agree on what the test says."""

    def __init__(self, rank: int, world_size: int, others: int = 0) -> None:
        self.rank, self.world_size = rank, world_size
        self._others = others
        self.agreed = 0

    def largest(self, number: int) -> int:
        self.agreed += 1
        return max(number, self._others)


class Wishing(Stopper):
    """A stopper with a request to stop from the start."""

    def __init__(self) -> None:
        super().__init__()
        self.exit_code = ExitCode.STOPPED


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 6, 7])
def test_each_item_is_done_once_and_all_ranks_take_the_same_number_of_turns(world_size: int, count: int) -> None:
    found, turns = [], set()
    for rank in range(world_size):
        ranks = Pretended(rank, world_size)
        found += SharedWork(ranks, Stopper()).shared(range(count), lambda item: item * 10)  # type: ignore[arg-type]
        turns.add(ranks.agreed)
    assert sorted(found) == [10 * item for item in range(count)]
    assert turns == {-(-count // world_size)}


def test_a_wish_of_this_rank_or_of_another_ends_the_work() -> None:
    with pytest.raises(Interrupted):
        SharedWork(Pretended(0, 2), Wishing()).shared([1, 2], str)  # type: ignore[arg-type]
    with pytest.raises(Interrupted):
        SharedWork(Pretended(0, 2, others=1), Stopper()).shared([1, 2], str)  # type: ignore[arg-type]


def test_an_error_is_raised_by_its_rank_and_named_by_the_others() -> None:
    def fail() -> None:
        raise DataError("damaged")

    with pytest.raises(DataError, match="damaged"):
        SharedWork(Pretended(0, 2), Stopper()).on_all_ranks(fail)  # type: ignore[arg-type]
    with pytest.raises(EnvironmentFault, match="expected every process to validate"):
        SharedWork(Pretended(0, 2, others=2), Stopper()).on_all_ranks(lambda: 1)  # type: ignore[arg-type]
