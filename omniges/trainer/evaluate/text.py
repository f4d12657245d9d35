"""Scores of generated text: word and character error rate, word timing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError
from omniges.recordings.textgrid import WordInterval
from omniges.shards.reader import ShardFolder
from omniges.trainer.evaluate.figures import Clips, Figure, Resampling, Row, absent, figure_of_mean, figure_of_statistic
from omniges.trainer.evaluate.pairs import Pair
from omniges.trainer.metrics.clips import ClipValue
from omniges.trainer.metrics.intervals import shuffled_pairing
from omniges.trainer.metrics.text import EditCounts, character_errors, word_errors, word_timing_error

__all__ = ["score_text"]

I64 = npt.NDArray[np.int64]


def score_text(pairs: Sequence[Pair], shards: ShardFolder, how: Resampling) -> list[Figure]:
    """Figures of a task that makes text; the shuffled row has another clip's words to be right about."""
    found = [pair.words() for pair in pairs]
    expected = [_inside(shards, pair) for pair in pairs]
    orders: dict[Row, Sequence[int]] = {"generated": range(len(pairs))}
    if len(pairs) > 1:
        orders["shuffled"] = shuffled_pairing(len(pairs), how.seed)[0].tolist()
    figures = []
    for row, order in orders.items():
        wanted = [expected[k] for k in order]
        figures += [_rate("word error rate", word_errors, row, found, wanted, how)]
        figures += [_rate("character error rate", character_errors, row, found, wanted, how)]
    figures += _timing(found, expected, how)
    if len(pairs) < 2:
        figures.append(absent("word error rate", "share", "shuffled", "one clip has no other"))
    return figures


def _inside(shards: ShardFolder, pair: Pair) -> list[WordInterval]:
    """The recorded words of the time that was generated."""
    end = pair.row.seconds if pair.record is None else pair.record.seconds
    return [
        WordInterval(word["word"], word["start"], word["end"]) for word in shards.words(pair.row) if word["start"] < end
    ]


def _text(words: Sequence[WordInterval]) -> str:
    return " ".join(word.word for word in words)


def _rate(
    metric: str,
    errors: Callable[[str, str], EditCounts],
    row: Row,
    found: Sequence[Sequence[WordInterval]],
    expected: Sequence[Sequence[WordInterval]],
    how: Resampling,
) -> Figure:
    clips = Clips()
    for own, wanted in zip(found, expected, strict=True):
        clips.add(lambda own=own, wanted=wanted: _counted(errors, own, wanted))  # type: ignore[misc]
    edits = np.array([counts.edits for counts in clips.values])
    units = np.array([counts.expected for counts in clips.values])
    total = sum(clips.values, EditCounts(0, 0, 0, 0))
    details = {
        "substitutions": total.substitutions,
        "deletions": total.deletions,
        "insertions": total.insertions,
        "expected": total.expected,
    }
    return figure_of_statistic(
        metric, "share", row, clips, lambda rows: float(edits[rows].sum() / units[rows].sum()), how, details
    )


def _counted(
    errors: Callable[[str, str], EditCounts], own: Sequence[WordInterval], wanted: Sequence[WordInterval]
) -> EditCounts:
    counts = errors(_text(own), _text(wanted))
    if counts.expected == 0:
        raise DataError("text: the recording has no word here")
    return counts


def _timing(
    found: Sequence[Sequence[WordInterval]], expected: Sequence[Sequence[WordInterval]], how: Resampling
) -> list[Figure]:
    """Means over clips, by words, of each clip's median and 90th percentile."""
    clips = Clips()
    for own, wanted in zip(found, expected, strict=True):
        clips.add(lambda own=own, wanted=wanted: word_timing_error(own, wanted))  # type: ignore[misc]
    figures = []
    for name, field in (
        ("word start error, median", "start_median_s"),
        ("word start error, 90 %", "start_p90_s"),
        ("word end error, median", "end_median_s"),
        ("word end error, 90 %", "end_p90_s"),
    ):
        values = Clips([ClipValue(getattr(one, field), one.words) for one in clips.values], clips.left_out)
        figures.append(figure_of_mean(name, "s", "generated", values, how))
    return figures
