"""Scores of generated text: word and character error rate, word timing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError
from omniges.evaluation.scores import UNCONDITIONAL, Recordings, Result, Scored, partners
from omniges.evaluation.statistics import Figure, Heading, Resampling, Row, Values, absent, figure_of_statistic
from omniges.formats.textgrid import WordInterval
from omniges.metrics.text import EditCounts, character_errors, word_errors, word_time_differences

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
_Words = Sequence[WordInterval]

_RATES: Final = {"word error rate": word_errors, "character error rate": character_errors}
_TIMES: Final = {
    "word start error, median": (0, 50),
    "word start error, 90 %": (0, 90),
    "word end error, median": (1, 50),
    "word end error, 90 %": (1, 90),
}
UNTIMED: Final = "the text is that of whole windows, whose words have no times"
"""Why there are no errors of word times."""
_SPACELESS: Final = {"chinese", "japanese"}  # as manifests have them


def score_text(results: Sequence[Result], shards: Recordings, how: Resampling, count: Callable[[], None]) -> Scored:
    """Figures of a task that makes text. Raises DataError for files that cannot be read."""
    seconds = {result.key: result.seconds for result in results}
    if results[0].unconditional:
        for result in results:
            result.spoken()  # a damaged file is one, scored or not
            count()
        names = [("share", name) for name in _RATES] + [("s", name) for name in _TIMES]
        return Scored([absent(Heading(name, unit), UNCONDITIONAL) for unit, name in names], seconds)
    recorded = {result.key: _recorded(shards, result) for result in results}
    other = partners(list(recorded), how.seed)
    rows: dict[Row, list[tuple[str, _Words, _Words]]] = {"generated": [], "shuffled": []}
    timed = True
    for result in results:
        intervals, with_times = result.spoken()
        timed = timed and with_times
        # Words without times have those of their window.
        made = intervals if with_times else [replace(one, word=word) for one in intervals for word in one.word.split()]
        last_ms = round(1000 * max((word.end for word in made), default=0.0))
        result.within(last_ms, round(1000 * result.row.seconds), 1000)  # refuses what is another recording's
        found = _before(made, seconds[result.key])
        rows["generated"].append((result.key, found, _before(recorded[result.key], seconds[result.key])))
        if other:
            common = min(seconds[result.key], seconds[other[result.key]])
            rows["shuffled"].append((result.key, _before(found, common), _before(recorded[other[result.key]], common)))
        count()
    figures = [_rate(name, row, pairs, how) for name in _RATES for row, pairs in rows.items() if pairs]
    if timed:
        times = {row: _time_differences(pairs) for row, pairs in rows.items() if pairs}
        figures += [_timing(name, row, *found, how) for name in _TIMES for row, found in times.items()]
    figures += [] if timed else [absent(Heading(name, "s"), UNTIMED) for name in _TIMES]
    spaceless = {result.row.language or "" for result in results} & _SPACELESS
    cut = "words are as the annotator cut them, so read the characters' rate"
    remarks = [f"{' and '.join(sorted(spaceless))} recordings: {cut}"]
    return Scored(figures, seconds, remarks if spaceless else [])


def _recorded(shards: Recordings, result: Result) -> list[WordInterval]:
    return [WordInterval(word["word"], word["start"], word["end"]) for word in shards.words(result.row)]


def _before(words: _Words, end_s: float) -> list[WordInterval]:
    """The words that begin before a time."""
    return [word for word in words if word.start < end_s]


def _text(words: _Words) -> str:
    return " ".join(word.word for word in words)


def _rate(name: str, row: Row, pairs: Sequence[tuple[str, _Words, _Words]], how: Resampling) -> Figure:
    values = Values()
    for key, found, expected in pairs:
        values.add(key, lambda a=found, b=expected: _counted(name, a, b))  # type: ignore[misc]
    edits = np.array([counts.edits for counts in values.found])
    units = np.array([counts.expected for counts in values.found])
    total = sum(values.found, EditCounts(0, 0, 0, 0))
    details = {
        "substitutions": total.substitutions,
        "deletions": total.deletions,
        "insertions": total.insertions,
        "expected": total.expected,
    }
    return figure_of_statistic(
        Heading(name, "share", row),
        values,
        lambda chosen: float(edits[chosen].sum() / units[chosen].sum()),
        how,
        details,
    )


def _counted(name: str, found: _Words, expected: _Words) -> EditCounts:
    counts = _RATES[name](_text(found), _text(expected))
    if counts.expected == 0:
        raise DataError("text: the recording has no word here")
    return counts


def _time_differences(pairs: Sequence[tuple[str, _Words, _Words]]) -> tuple[Values, int]:
    """Differences (starts, ends) of the equal words of each result, and how many words are expected of all."""
    values = Values()
    for key, found, expected in pairs:
        if not expected:
            values.leave_out("the recording has no word here")
        else:
            values.add(key, partial(word_time_differences, found, expected))
    return values, sum(len(expected) for _, _, expected in pairs)


def _timing(name: str, row: Row, values: Values, expected: int, how: Resampling) -> Figure:
    """A percentile over all words that are equal, of all results together."""
    side, percent = _TIMES[name]
    errors: list[F64] = [differences[side] for differences in values.found]
    details = {"words": sum(map(len, errors)), "expected": expected}

    def percentile(chosen: I64) -> float:
        return float(np.percentile(np.concatenate([errors[int(k)] for k in chosen]), percent))

    return figure_of_statistic(Heading(name, "s", row), values, percentile, how, details)
