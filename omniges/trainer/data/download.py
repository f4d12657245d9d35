"""Fetching a file from a store: whole, checked, a bounded number of tries.

Waiting between tries follows from the attempt and a salt alone, no random generator and no clock, and nothing of it
can reach a result: what arrives either has the expected bytes or is thrown away.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from omniges.errors import DataError, EnvironmentFault, UsageFault
from omniges.publish import PendingFile
from omniges.shards.locations import MissingFile, Store, StoreFault

__all__ = ["Expected", "Retries", "Wait", "WrongContent", "backoff_s", "copy_checked", "fetch_small", "with_retries"]

T = TypeVar("T")

Wait = Callable[[float], object]
"""Waits for some seconds; may raise to give up."""

_AGAIN: Final = "Run omniges verify-shards on the original and copy the shards there again"
_CHUNK_BYTES: Final = 1 << 20
_MOST_SMALL_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class Retries:
    """How often to try, and how long to wait between."""

    attempts: int = 5
    first_wait_s: float = 0.5
    longest_wait_s: float = 30.0

    def __post_init__(self) -> None:
        """Refuse what would never try, or wait a negative time."""
        if self.attempts < 1 or self.first_wait_s < 0 or self.longest_wait_s < 0:
            raise UsageFault(f"at least one attempt and waits of at least 0 s expected, found {self}")


@dataclass(frozen=True, slots=True)
class Expected:
    """What a file has to be."""

    size: int
    sha256: str


class WrongContent(DataError):
    """A file is not what dataset.json says."""


def backoff_s(retries: Retries, attempt: int, salt: str) -> float:
    """Seconds to wait before try `attempt` (1 is the second try): doubled each time, and spread over a half to a whole.

    The salt keeps processes apart that failed together.
    """
    longest = min(retries.longest_wait_s, retries.first_wait_s * 2.0 ** min(attempt - 1, 60))
    drawn = int.from_bytes(hashlib.sha256(f"{salt}:{attempt}".encode()).digest()[:4], "big") / 2**32
    return longest * (0.5 + 0.5 * drawn)


def with_retries(action: Callable[[], T], retries: Retries, salt: str, wait: Wait = time.sleep) -> T:
    """Carry out an action until it succeeds.

    Tried again are transient faults of the store and wrong content. Raises the last of them with the number of tries,
    and anything else at once.
    """
    attempt = 0
    while True:
        try:
            return action()
        except (StoreFault, WrongContent) as fault:
            if isinstance(fault, StoreFault) and not fault.transient:
                raise
            last = fault
        attempt += 1
        if attempt == retries.attempts:
            raise type(last)(f"{last} (given up after {attempt} tries)")
        wait(backoff_s(retries, attempt, salt))


def copy_checked(store: Store, name: str, expected: Expected, path: Path, check: Callable[[], object]) -> PendingFile:
    """Copy a file of a store into a new pending file and hold it against its size and sha256.

    `check` is called before each piece and may raise to give up. Raises WrongContent naming the file, what was
    expected and what was found; MissingFile and StoreFault as the store. Nothing is left of a file that fails.
    """
    with contextlib.ExitStack() as undo:
        pending = PendingFile(path)
        undo.callback(pending.abort)
        _copy(store, name, expected, pending, check)
        undo.pop_all()
    return pending


def _copy(store: Store, name: str, expected: Expected, pending: PendingFile, check: Callable[[], object]) -> None:
    place = store.location.shown_file(name)
    try:
        with store.open_stream(name) as stream:
            while pending.size <= expected.size:
                check()
                piece = stream.read(_CHUNK_BYTES)
                if not piece:
                    break
                pending.write(piece)
    except MissingFile as error:
        raise MissingFile(f"{error}, though dataset.json lists it. Copy the shards there again") from None
    if pending.size != expected.size:
        found = f"{pending.size} bytes" if pending.size < expected.size else "more"
        raise WrongContent(f"{place}: {expected.size} bytes expected as in dataset.json, found {found}. {_AGAIN}")
    if pending.sha256 != expected.sha256:
        raise WrongContent(
            f"{place}: sha256 {expected.sha256} expected as in dataset.json, found {pending.sha256}. {_AGAIN}"
        )


def fetch_small(store: Store, name: str) -> bytes:
    """A small file whole, of unknown size; raises EnvironmentFault beyond 256 MiB."""
    data = bytearray()
    with store.open_stream(name) as stream:
        while piece := stream.read(_CHUNK_BYTES):
            data += piece
            if len(data) > _MOST_SMALL_BYTES:
                raise EnvironmentFault(
                    f"{store.location.shown_file(name)}: at most {_MOST_SMALL_BYTES} bytes expected, found more. "
                    "Check the address"
                )
    return bytes(data)
