"""A worker for tests of the supervisor: it does to itself what the stem of a recording says."""

from __future__ import annotations

import os
import signal
import sys
import time

from omniges.errors import Finding, Problem
from omniges.pipeline.protocol import decode_recording, decode_settings, send
from omniges.pipeline.settings import Rejected


def main() -> None:
    output = os.dup(1)
    lines = iter(sys.stdin.buffer.readline, b"")
    decode_settings(next(lines))
    for line in lines:
        recording = decode_recording(line)
        verb, _, place = recording.stem.partition(":")
        verb = verb.rstrip("0123456789")
        first_time = not (place and os.path.exists(place))
        if place:
            with open(place, "a") as stream:
                stream.write(f"{recording.stem} {time.monotonic()}\n")
        if verb == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if verb == "die-once" and first_time:
            os.kill(os.getpid(), signal.SIGKILL)
        if verb == "exit":
            sys.stderr.write("the last words\n")
            sys.exit(3)
        if verb == "hang":
            time.sleep(1000)
        if verb == "slow":
            time.sleep(0.3)
        if verb == "babble":
            os.write(output, b"\xff" * 8)
            time.sleep(1000)
        send(output, Rejected((Finding(Problem("wav-empty", str(os.getpid())), recording.stem),), {}))


main()
