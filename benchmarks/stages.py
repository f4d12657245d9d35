"""Measures the time of each stage of a conversion, per recording.

Run it as ``python stages.py LIST OUT`` with the environment variables of a worker process (one thread per library,
freed memory is kept). LIST is a JSON file of recordings in the format of the worker protocol. OUT is a folder for
shards. The stage functions of `omniges.pipeline.convert` are wrapped by timers, which cost about a microsecond per
call. The program prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from omniges.pipeline import convert as module
from omniges.pipeline.discover import Recording
from omniges.pipeline.settings import ConvertSettings, Rejected
from omniges.pipeline.worker import decode_recording
from omniges.shards.writer import ShardWriter

# Functions that the conversion calls, by stage. None of these functions calls another one of them.
STAGES: Final = {
    "read": "_read",
    "sha256 of inputs and members": "sha256_hex",
    "decode_motion": "decode_motion",
    "decode_wav": "decode_wav",
    "decode_words": "decode_words",
    "decode_semantic": "decode_semantic",
    "gesture_from_motion": "gesture_from_motion",
    "log_mel": "log_mel",
    "partial statistics": "partial_of",
}
REST: Final = "all else in the worker"
TOTAL: Final = "worker in all"
PARENT: Final = "shard write and sha256 (parent)"
_WARM_UP: Final = 3
_SHARD_BYTES: Final = 256 << 20


def _timed(function: Callable[..., Any], stage: str, spent: dict[str, float]) -> Callable[..., Any]:
    """Wrap a function by a timer that adds the seconds of each call to a stage."""

    def wrapped(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            spent[stage] += time.perf_counter() - start

    return wrapped


def _one(recording: Recording, writer: ShardWriter, spent: dict[str, float]) -> dict[str, float]:
    """Return the milliseconds of each stage for one recording."""
    spent.clear()
    start = time.perf_counter()
    outcome = module.convert(recording, ConvertSettings())
    total = time.perf_counter() - start
    if isinstance(outcome, Rejected):
        raise SystemExit(f"{recording.stem} cannot be converted: {outcome.findings[0].problem.code}")
    row = {stage: spent[stage] for stage in STAGES}
    row |= {REST: total - sum(row.values()), TOTAL: total}
    segment = b"".join(outcome.segment.buffers)  # the bytes that the parent gets from the pipe
    start = time.perf_counter()
    writer.add(outcome.row, segment)
    row[PARENT] = time.perf_counter() - start
    return {stage: 1000 * seconds for stage, seconds in row.items()}


def main() -> None:
    """Convert the listed recordings, and print for each stage the list of its milliseconds."""
    lines = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    recordings = [decode_recording(line) for line in lines]
    spent: dict[str, float] = defaultdict(float)
    for stage, name in STAGES.items():
        setattr(module, name, _timed(getattr(module, name), stage, spent))
    for place in range(_WARM_UP):
        module.convert(recordings[place % len(recordings)], ConvertSettings())
    folder = Path(sys.argv[2])
    with ShardWriter(lambda n: folder / f"{n:06d}.tar", _SHARD_BYTES) as writer:
        rows = [_one(recording, writer, spent) for recording in recordings]
    print(json.dumps({stage: [row[stage] for row in rows] for stage in rows[0]}))


if __name__ == "__main__":
    main()
