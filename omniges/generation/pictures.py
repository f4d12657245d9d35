"""A picture of a result: what was given, what was made and, for a sample of shards, what was recorded."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from omniges.features.text_slots import SlotCodec
from omniges.features.timebase import TICKS_PER_SECOND
from omniges.generation.conditions import Body
from omniges.generation.inputs import Input
from omniges.generation.writers import Results
from omniges.model.streams import StreamName
from omniges.model.tasks import TASKS

__all__ = ["result_picture"]

_SHOWN_TICKS: Final = 120


def result_picture(name: str, task: str, item: Input, results: Results, codec: SlotCodec, body: Body) -> bytes:
    """The first 12 s as PNG; the streams of an input and of a result each have a row that says what they are."""
    from omniges.visualize import Row, draw_result  # noqa: PLC0415 - matplotlib, where a picture is asked for

    ticks = min(_SHOWN_TICKS, item.ticks)
    recorded = item.recorded if item.given else ()  # what follows from nothing has no recording to be held against
    rows = [Row("given", g.stream, g.words if g.stream == "text" else g.array(0, ticks)) for g in item.given]
    rows += [Row("made", stream, _shown(stream, rows_, codec)) for stream, rows_ in results.shown(ticks).items()]
    rows += [Row("recorded", g.stream, g.words if g.stream == "text" else g.array(0, ticks)) for g in recorded]
    conditions = " and ".join(TASKS[task].conditions) or "nothing"
    title = f"{name}: {' and '.join(results.sinks)} from {conditions} ({task})"
    return draw_result(title=title, rows=rows, start_xz=body.start_xz, length_s=item.ticks / TICKS_PER_SECOND)


def _shown(stream: StreamName, rows: Any, codec: SlotCodec) -> Any:
    if stream != "text" or isinstance(rows, list):  # texts of windows, each drawn as one word
        return rows
    return [word.as_json() for word in codec.decode(np.asarray(rows, np.int32))]
