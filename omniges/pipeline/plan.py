"""`preprocess --plan`: the work of a run, with its output size and time estimated from a few conversions."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Final

from rich.console import Console

from omniges.errors import CODES
from omniges.pipeline.convert import convert
from omniges.pipeline.corpora.registry import CORPORA, find_recordings
from omniges.pipeline.settings import DEFAULT_CORPUS, PreprocessSettings, Sample
from omniges.pipeline.summary import duration_text, print_line, print_table, size_text
from omniges.shards.schema import SPLITS

_SAMPLED: Final = 3  # recordings that are converted to measure the speed; the first one twice, as a warm-up


@dataclass(frozen=True, slots=True)
class Plan:
    """The work of a run: counts, and estimates from trial conversions (None if all trial conversions failed)."""

    data_folders: tuple[str, ...]
    stems: int
    rejected_already: dict[str, int]  # code -> number of recordings
    splits: dict[str, int]
    speakers: dict[str, int]
    split_source: str
    input_bytes: int
    sampled: int
    seconds: float | None  # estimated length of all recordings
    output_bytes: float | None  # estimated size of the shards
    wall_s: float | None  # estimated duration of the run


def make_plan(settings: PreprocessSettings) -> Plan:
    """Return the plan of a run; for the estimates, convert a few recordings of medium size in this process.

    The total length, output size and time of these conversions are multiplied by a factor: the input bytes of all
    recordings divided by the input bytes of the converted recordings. The time is then divided by the number of workers
    that the run can use, at most one for each recording. One second is added to the time.
    """
    settings, discovery = find_recordings(settings)
    decode = CORPORA.get(settings.corpus or DEFAULT_CORPUS).take
    recordings = discovery.recordings
    input_bytes = sum(recording.size for recording in recordings)
    by_size = sorted(recordings, key=lambda recording: recording.size)
    chosen = by_size[max(0, len(by_size) // 2 - _SAMPLED // 2) :][:_SAMPLED]
    seconds = output = wall = read = 0.0
    for place, recording in enumerate(chosen):
        if place == 0:
            convert(recording, settings.convert, decode)  # warm-up: imports and first calls
        start = time.perf_counter()
        outcome = convert(recording, settings.convert, decode)
        if isinstance(outcome, Sample):
            wall += time.perf_counter() - start
            seconds += outcome.row.seconds
            output += outcome.segment.size
            read += recording.size
    scale = input_bytes / read if read else None
    codes = Counter(code for found in discovery.rejected.values() for code in {f.problem.code for f in found})
    return Plan(
        data_folders=discovery.data_folders,
        stems=discovery.stems,
        rejected_already=dict(sorted(codes.items())),
        splits={split: sum(r.split == split for r in recordings) for split in SPLITS},
        speakers=dict(sorted(Counter(r.fields.speaker or "unknown" for r in recordings).items())),
        split_source=discovery.split_source,
        input_bytes=input_bytes,
        sampled=len(chosen),
        seconds=seconds * scale if scale else None,
        output_bytes=output * scale if scale else None,
        wall_s=1.0 + wall * scale / min(settings.local_workers, max(len(recordings), 1)) if scale else None,
    )


def print_plan(plan: Plan, workers: int, console: Console) -> None:
    """Print the work of a run with the estimates.

    Args:
        plan: Work of the run.
        workers: Number of worker processes that the run will use.
        console: Console that prints the text.
    """
    print_line(console, f"data set folders: {', '.join(name or '.' for name in plan.data_folders)}")
    print_table(console, ("split", "recordings"), plan.splits.items(), (1,))
    speakers = ", ".join(f"{name} {count}" for name, count in plan.speakers.items())
    print_line(console, f"speakers: {speakers or 'none'}; splits from: {plan.split_source}")
    if plan.rejected_already:
        rejected = [(code, count, CODES[code].remedy) for code, count in plan.rejected_already.items()]
        print_table(console, ("rejected before conversion", "count", "what to do"), rejected, (1,))
    if plan.seconds is None or plan.output_bytes is None or plan.wall_s is None:
        print_line(console, "no estimate: none of the recordings tried could be converted")
        return
    print_line(
        console,
        f"about {duration_text(plan.seconds)} of recordings, {size_text(plan.input_bytes)} to read, "
        f"{size_text(plan.output_bytes)} to write, {duration_text(plan.wall_s)} with {workers} workers "
        f"(scaled up from {plan.sampled} recordings)",
    )


def plan_json(plan: Plan) -> str:
    """Return the plan as one line of JSON, ``{"event": "plan", …}``."""
    return json.dumps({"event": "plan"} | asdict(plan), sort_keys=True)
