"""A worker for tests of the pool: it does to itself what its task says."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from omniges.errors import DataError
from omniges.workers import Answer, serve

OUTPUT = os.dup(1)


def prepare(setup: Any) -> Callable[[Any], Answer]:
    def answer(task: str) -> Answer:
        verb, _, place = task.partition(":")
        verb = verb.rstrip("0123456789")
        first_time = not (place and os.path.exists(place))
        if place:
            with open(place, "a") as stream:
                stream.write(f"{task} {time.monotonic()}\n")
        if verb == "die" or (verb == "die-once" and first_time):
            os.kill(os.getpid(), signal.SIGKILL)
        if verb == "exit":
            sys.stderr.write("the last words\n")
            sys.exit(3)
        if verb == "hang":
            time.sleep(1000)
        if verb == "slow":
            time.sleep(0.3)
        if verb == "babble":
            os.write(OUTPUT, b"\xff" * 8)
            time.sleep(1000)
        if verb == "refuse":
            raise DataError("the data is not what the contract says")
        if verb == "print":
            sys.stdout.write("a library that prints\n")
            sys.stdout.flush()
        return {"pid": os.getpid(), "setup": setup}, [[task.encode(), b"!"], [], [bytes(1 << 20)]]

    return answer


serve(prepare)
