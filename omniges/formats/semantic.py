"""Decoding of BEAT2's semantic annotation, ``sem/*.txt``: time spans with a gesture class and a score."""

from __future__ import annotations

import math
from dataclasses import dataclass

from omniges.errors import RecordingFault

MAX_BYTES = 4 << 20
_COLUMNS = "name, start, end, duration, score and perhaps keywords, separated by tabs"


@dataclass(frozen=True, slots=True)
class SemanticSpan:
    """A time span with a gesture class ``name`` and a ``score`` from 0 to 1; times in seconds.

    ``keywords`` is "" if the annotation has none.
    """

    name: str
    start: float
    end: float
    duration: float
    score: float
    keywords: str = ""


def decode_semantic(data: bytes) -> tuple[SemanticSpan, ...]:
    """Return the spans in the order of the file. Blank lines are skipped; an empty file has no spans.

    Args:
        data: Bytes of the file.

    Returns:
        The spans; their times are in seconds.

    Raises:
        RecordingFault: The file is not UTF-8, is larger than 4 MiB, or has an invalid line (``sem-invalid``).
    """
    if len(data) > MAX_BYTES:
        raise RecordingFault("sem-invalid", f"{len(data)} bytes", f"at most {MAX_BYTES}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise RecordingFault("sem-invalid", f"byte offset {fault.start} is not UTF-8", "UTF-8 text") from None
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return tuple(_span(line, number) for number, line in enumerate(lines, 1) if line.strip())


def _span(line: str, number: int) -> SemanticSpan:
    fields = [field.strip() for field in line.split("\t")]
    if not 5 <= len(fields) <= 6 or not fields[0] or "\0" in line:
        raise RecordingFault("sem-invalid", f"line {number} has {len(fields)} columns", _COLUMNS)
    try:
        start, end, duration, score = (float(field) for field in fields[1:5])
    except ValueError:
        found = f"line {number}: {', '.join(fields[1:5])[:80]}"
        raise RecordingFault("sem-invalid", found, "four numbers: start, end, duration, score") from None
    span = SemanticSpan(fields[0], start, end, duration, score, fields[5] if len(fields) == 6 else "")
    check_span(span, f"line {number}")
    return span


def check_span(span: SemanticSpan, place: str) -> None:
    """Refuse a span with impossible times or an impossible score.

    Args:
        span: Span to check.
        place: Position of the span in its source, for the error.

    Raises:
        RecordingFault: The times or the score are invalid (``sem-invalid``); the text contains `place`.
    """
    times = (span.start, span.end, span.duration)
    if not (all(map(math.isfinite, times)) and 0.0 <= span.start <= span.end and 0.0 <= span.score <= 1.0):
        found = f"{place}: start {span.start}, end {span.end}, duration {span.duration}, score {span.score}"
        raise RecordingFault("sem-invalid", found, "0 <= start <= end and a score in 0..1")
