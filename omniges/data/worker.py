"""A loader's worker process: numbers of blocks in on standard input, a line of JSON for each filled one out.

Run by the loader as ``python -P -m omniges.data.worker``. It ends when its input ends, so it never outlives the
process it works for. It imports numpy, not torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys

if __name__ == "__main__":
    # Before anything slow: a signal to the whole group is for the training process, which decides.
    for caught in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(caught, signal.SIG_IGN)

import numpy as np

from omniges.data.collate import BatchBlock, Collator, batch_layout
from omniges.data.shared_memory import map_memory, place_arrays
from omniges.data.tracks import Tracks
from omniges.data.worker_setup import JOB, make_collator
from omniges.errors import OmnigesError

__all__ = ["main"]


def main() -> None:
    """Fill blocks until the input ends."""
    # Answers leave through a descriptor of their own: whatever a library prints must not mix with them.
    output = os.dup(1)
    os.dup2(2, 1)
    setup = json.loads(sys.stdin.buffer.readline())
    shared = map_memory(setup["shared_fd"], setup["shared_bytes"])
    collator = make_collator(setup, place_arrays(np.frombuffer(shared, np.uint8), setup["places"]))
    places, size = batch_layout(setup["rows"], setup["window_ticks"], Tracks.from_json(setup["tracks"]))
    blocks: dict[int, BatchBlock] = {}
    with contextlib.suppress(BrokenPipeError):  # nobody waits for the answer any more
        while job := sys.stdin.buffer.read(JOB.size):
            (number,) = JOB.unpack(job)
            if number not in blocks:
                mapped = map_memory(setup["blocks_fd"], size, number * size)
                blocks[number] = BatchBlock.of(np.frombuffer(mapped, np.uint8), places)
            answer = _fill(collator, blocks[number])
            os.write(output, json.dumps(answer).encode() + b"\n")


def _fill(collator: Collator, block: BatchBlock) -> dict[str, str]:
    """Fill a block; what is wrong with the data or the machine is the answer, for the training process to raise."""
    try:
        collator.fill(block, block.positions[: block.progress[0]].copy())
    except OmnigesError as error:
        kind = next(name for name in ("DataError", "UsageFault", "EnvironmentFault") if name in _names(error))
        return {"kind": kind, "message": str(error)}
    return {}


def _names(error: OmnigesError) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


if __name__ == "__main__":
    main()
