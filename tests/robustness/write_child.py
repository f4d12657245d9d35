"""Runs `write_shards` and kills itself at a chosen call; `test_write_kills` starts it.

    python write_child.py '{"watch": FOLDER, "kind": "rename out/dataset.json", "nth": 0, "when": "before",
        "victims": "alone"}' OUT

`crash_child` describes the fields. Without a kind it runs to its end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from crash_calls import tapped
from crash_child import Killer

from omniges.pipeline.recording import Recording
from omniges.pipeline.write import write_shards


def recordings() -> Iterator[Recording]:
    """Three recordings in two splits, out of order and with labels of different names, so that all is rewritten."""
    rng = np.random.default_rng(0)
    for key, split, labels in (("b", "val", {"mood": "calm"}), ("c", "train", {}), ("a", "train", {"scene": "talk"})):
        yield Recording(
            key=key,
            split=split,
            labels=labels,
            poses=rng.normal(0, 0.1, (9, 165)),
            frame_rate_hz=30,
            samples=rng.normal(0, 0.1, 4800),
            sample_rate_hz=16_000,
            words=[("hello", 0.0, 0.2)],
        )


def write(out: Path, *, force: bool = False) -> None:
    """Write a set of a shard a sample."""
    write_shards(recordings(), out, keep_audio=True, shard_bytes=1000, force=force)


if __name__ == "__main__":
    spec = json.loads(sys.argv[1])
    with tapped(Path(spec["watch"]), Killer(spec)):
        write(Path(sys.argv[2]))
