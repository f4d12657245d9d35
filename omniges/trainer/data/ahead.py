"""Fetching shards into the cache before they are asked for, in background threads."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from omniges.trainer.data.cachefolder import CacheFull, Pin
from omniges.trainer.data.download import Wait

__all__ = ["FetchAhead"]

_LONGEST_HINT: Final = 1024


class _Closed(Exception):
    """`close` was called while a shard was being fetched."""


class FetchAhead:
    """Keeps the next few shards of a changing order pinned in the cache."""

    def __init__(self, acquire: Callable[[str, Wait], Pin], most: int, threads: int) -> None:
        """`acquire(shard, wait)` fetches and pins; `most` shards are held at a time. Threads start with a hint."""
        self._acquire, self._most, self._threads = acquire, most, threads
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._order: list[str] = []
        self._busy: set[str] = set()
        self._awaited: Counter[str] = Counter()
        self._pins: dict[str, Pin] = {}
        self._errors: dict[str, BaseException] = {}
        self._running: list[threading.Thread] = []

    def hint(self, shards: Iterable[str]) -> None:
        """The shards that are wanted next; those fetched for an earlier hint and not in this one are let go."""
        order = list(dict.fromkeys(itertools.islice(shards, _LONGEST_HINT)))
        with self._changed:
            self._order = order
            for name in self._pins.keys() - order:
                self._pins.pop(name).close()
            self._errors = {name: error for name, error in self._errors.items() if name in order}
            while order and len(self._running) < self._threads and not self._closed.is_set():
                self._running.append(threading.Thread(target=self._run, name="fetch-ahead", daemon=True))
                self._running[-1].start()
            self._changed.notify_all()

    def take(self, name: str) -> Pin | None:
        """The pin of a shard that was fetched or is being fetched; None where it is neither.

        Raises what fetching it ended with; the next call tries again.
        """
        with self._changed:
            self._order = [other for other in self._order if other != name]
            self._awaited[name] += 1
            while name in self._busy:
                self._changed.wait()
            self._awaited[name] -= 1
            if name in self._errors:
                raise self._errors.pop(name)
            self._changed.notify_all()  # there is room for the next
            return self._pins.pop(name, None)

    def drop(self) -> None:
        """Let go of all that was fetched, and fetch nothing more before the next hint."""
        with self._changed:
            self._order = []
            while self._pins:
                self._pins.popitem()[1].close()

    def close(self) -> None:
        """Stop the threads; one that waits for a silent server ends with its time-out."""
        self._closed.set()
        self.drop()
        with self._changed:
            self._changed.notify_all()
        for thread in self._running:
            thread.join(timeout=1.0)

    def _next(self) -> str | None:
        """Wait for a shard to fetch and mark it as busy; None after `close`."""
        with self._changed:
            while not self._closed.is_set():
                room = self._most > len(self._busy) + len(self._pins)
                for name in self._order if room else ():
                    if name not in self._busy and name not in self._pins and name not in self._errors:
                        self._busy.add(name)
                        return name
                self._changed.wait()
        return None

    def _run(self) -> None:
        while (name := self._next()) is not None:
            pin: Pin | None = None
            error: BaseException | None = None
            try:
                pin = self._acquire(name, self._wait)
            except BaseException as caught:  # noqa: BLE001 - handed to the thread that opens the shard
                error = caught
            with self._changed:
                self._file(name, pin, error)

    def _file(self, name: str, pin: Pin | None, error: BaseException | None) -> None:
        """Under the lock: put down what became of a shard."""
        self._busy.discard(name)
        wanted = name in self._order or self._awaited[name] > 0
        if isinstance(error, CacheFull):
            self._order = []  # nothing more before the next hint; the one who opens it makes space
        elif error is not None and wanted and not isinstance(error, _Closed):
            self._errors[name] = error
        elif pin is not None and wanted:
            self._pins[name] = pin
        elif pin is not None:
            pin.close()
        self._changed.notify_all()

    def _wait(self, seconds: float) -> None:
        if self._closed.wait(seconds):
            raise _Closed
