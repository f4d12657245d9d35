"""Measure the memory bandwidth in a separate process: copy arrays that are as large as batches with `np.copyto`.

Run it as ``python -P -m omniges.benchmark.memcpy ROWS TICKS``, with the windows per batch and the length of a window in
ticks of 0.1 s. The process prints ``ready``, then reads lines from standard input. Each line is a number of seconds.
For each line, the process copies for that time, and prints the number of copied windows and the elapsed seconds.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from omniges.data.blocks import BatchBlock, batch_layout

_BLOCKS = 8  # together larger than the CPU caches, as in a loader


def copy_for(blocks: list[BatchBlock], seconds: float) -> tuple[int, float]:
    """Copy the arrays of batches again and again for a given time.

    The gesture, mel spectrogram and text of each block in the first half of the list are copied to a block in the
    second half.

    Args:
        blocks: An even number of blocks of equal size. Each block has the memory of one batch.
        seconds: Length of the measurement in seconds.

    Returns:
        The number of copied windows, and the elapsed seconds.
    """
    half = len(blocks) // 2
    windows = turn = 0
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        source, target = blocks[turn % half], blocks[half + turn % half]
        for name in ("gesture", "audio", "text"):
            np.copyto(getattr(target, name), getattr(source, name))
        windows += len(source.text)
        turn += 1
    return windows, passed


def _main() -> None:
    rows, ticks = int(sys.argv[1]), int(sys.argv[2])
    places, size = batch_layout(rows, ticks)
    blocks = [BatchBlock.of(np.ones(size, np.uint8), places) for _ in range(_BLOCKS)]
    copy_for(blocks, 0.1)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        windows, seconds = copy_for(blocks, float(line))
        sys.stdout.write(f"{windows} {seconds}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
