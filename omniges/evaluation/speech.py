"""Score generated speech: audio by its log-mels, and text by its words, characters and times."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError
from omniges.evaluation import scores
from omniges.features.audio import LOG_FLOOR
from omniges.features.timebase import MEL_RATE_HZ
from omniges.formats.textgrid import WordInterval
from omniges.metrics import speech
from omniges.metrics.registry import SoundClip, TextClip, units
from omniges.metrics.speech import EditCounts, character_errors, word_errors, word_time_differences

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
_Words = Sequence[WordInterval]
_Pairs = Sequence[tuple[str, _Words, _Words]]  # key of the recording, words found, words expected

_SILENCE: Final = math.log(LOG_FLOOR) + 1e-3
_RATES: Final = {"word error rate": word_errors, "character error rate": character_errors}
_TIMES: Final = {
    "word start error, median": (0, 50),
    "word start error, 90 %": (0, 90),
    "word end error, median": (1, 50),
    "word end error, 90 %": (1, 90),
}
UNTIMED: Final = "text stored as latents has no word timings"
"""Reason that the report gives if differences of word times are not computed."""
_SPACELESS: Final = {"chinese", "japanese"}  # languages without spaces between words, as manifests name them


def _onsets(found: F32, expected: F32) -> speech.OnsetCounts:
    counts = speech.onset_agreement(speech.mel_onsets(found), speech.mel_onsets(expected))
    if counts.found + counts.expected == 0:
        raise DataError("onset agreement: expected onsets, found none on either side")
    return counts


_ONSETS: Final = "onset agreement"
_OF_MELS: Final[dict[str, Callable[[F32, F32], Any]]] = {
    "log-mel L1": speech.log_mel_l1,
    "mel-cepstral distortion": speech.mel_cepstral_distortion,
    _ONSETS: _onsets,
}
"""Metrics by name; each is a function of two log-mels (F, 64) of equal length."""
_UNITS: Final = units("audio")


def score_speech(
    results: Sequence[scores.Result], shards: scores.Recordings, how: scores.Resampling, count: Callable[[], None]
) -> scores.Scored:
    """Score a task whose target is audio. The shuffled row compares results with log-mels of other recordings.

    Args:
        results: Generated results of one task.
        shards: The recordings.
        how: Seed and number of resamples of the bootstrap over recordings.
        count: Function that is called after each result.

    Returns:
        Figures (values of metrics), scored seconds of each recording, and warnings.

    Raises:
        DataError: A file cannot be read.
    """
    rows = {result.key: result.row for result in results}
    other = scores.partners(list(rows), how.seed)
    values: dict[tuple[str, scores.Row], scores.Values] = {}
    registered = scores.RegisteredScores("audio", unconditional=results[0].unconditional)

    def add(row: scores.Row, key: str, found: F32, recorded: F32) -> None:
        frames = min(len(found), len(recorded))
        for name, metric in _OF_MELS.items():
            own = values.setdefault((name, row), scores.Values())
            own.add(key, partial(metric, found[:frames], recorded[:frames]))
        registered.add(row, key, SoundClip(found[:frames]), SoundClip(recorded[:frames]))

    kinds, silent, seconds = set(), [], {}
    for result in results:
        mel, kind = result.mel()
        kinds.add(kind)
        recorded = shards.array(result.row, "mel.npy")
        found = mel[: result.within(len(mel), len(recorded), MEL_RATE_HZ)]
        seconds[result.key] = len(found) / MEL_RATE_HZ
        if len(found) and float(found.max()) < _SILENCE:
            silent.append(result.name)
        if not result.unconditional:
            add("generated", result.key, found, recorded)
            if other:
                add("shuffled", result.key, found, shards.array(rows[other[result.key]], "mel.npy"))
        count()
    if results[0].unconditional:
        absent = [scores.absent(scores.Heading(name, _UNITS[name]), scores.UNCONDITIONAL) for name in _OF_MELS]
        return scores.Scored(absent + registered.figures(how), seconds)
    of = {"of": " and ".join(sorted(kinds))}
    in_order = sorted(values, key=lambda place: list(_OF_MELS).index(place[0]))
    figures = [_mel_figure(name, row, values[name, row], how, of) for name, row in in_order]
    figures += registered.figures(how)
    warnings = [f"{len(silent)} of {len(results)} results are silent: {', '.join(silent[:3])}"] if silent else []
    return scores.Scored(figures, seconds, warnings)


def _mel_figure(
    name: str, row: scores.Row, values: scores.Values, how: scores.Resampling, details: dict[str, Any]
) -> scores.Figure:
    heading = scores.Heading(name, _UNITS[name], row)
    if name != _ONSETS:
        more = {"cepstra": speech.CEPSTRA} if name == "mel-cepstral distortion" else {}
        return scores.figure_of_mean(heading, values, how, details | more)
    numbers = np.array([(one.matched, one.found + one.expected) for one in values.found]).reshape(-1, 2)

    def f_score(chosen: I64) -> float:
        return float(2 * numbers[chosen, 0].sum() / numbers[chosen, 1].sum())

    return scores.figure_of_statistic(heading, values, f_score, how, details)


def score_text(
    results: Sequence[scores.Result], shards: scores.Recordings, how: scores.Resampling, count: Callable[[], None]
) -> scores.Scored:
    """Score a task whose target is text.

    Args:
        results: Generated results of one task.
        shards: The recordings.
        how: Seed and number of resamples of the bootstrap over recordings.
        count: Function that is called after each result.

    Returns:
        Figures (values of metrics), scored seconds of each recording, and warnings.

    Raises:
        DataError: A file cannot be read.
    """
    seconds = {result.key: result.seconds for result in results}
    registered = scores.RegisteredScores("text", unconditional=results[0].unconditional)
    if results[0].unconditional:
        for result in results:
            result.spoken()  # raises an error for a damaged file
            count()
        headings = [scores.Heading(name, "share") for name in _RATES] + [scores.Heading(name, "s") for name in _TIMES]
        absent = [scores.absent(heading, scores.UNCONDITIONAL) for heading in headings]
        return scores.Scored(absent + registered.figures(how), seconds)
    recorded = {
        result.key: [WordInterval(word["word"], word["start"], word["end"]) for word in shards.words(result.row)]
        for result in results
    }
    other = scores.partners(list(recorded), how.seed)
    rows: dict[scores.Row, list[tuple[str, _Words, _Words]]] = {"generated": [], "shuffled": []}
    timed = True
    for result in results:
        intervals, with_times = result.spoken()
        timed = timed and with_times
        # A word without times gets the start and end of its window.
        made = intervals if with_times else [replace(one, word=word) for one in intervals for word in one.word.split()]
        last_ms = round(1000 * max((word.end for word in made), default=0.0))
        result.within(last_ms, round(1000 * result.row.seconds), 1000)  # refuses a result that is too long
        found = _before(made, seconds[result.key])
        rows["generated"].append((result.key, found, _before(recorded[result.key], seconds[result.key])))
        if other:
            common = min(seconds[result.key], seconds[other[result.key]])
            rows["shuffled"].append((result.key, _before(found, common), _before(recorded[other[result.key]], common)))
        count()
    figures = [_rate(name, row, pairs, how) for name in _RATES for row, pairs in rows.items() if pairs]
    if timed:
        figures += _timing(rows, how)
    else:
        figures += [scores.absent(scores.Heading(name, "s"), UNTIMED) for name in _TIMES]
    for row, pairs in rows.items():
        for key, words, expected in pairs:
            registered.add(row, key, TextClip(words, timed), TextClip(expected, timed=True))
    figures += registered.figures(how)
    spaceless = {result.row.language or "" for result in results} & _SPACELESS
    cut = "the annotator chose the boundaries of words, so prefer the character error rate"
    warnings = [f"{' and '.join(sorted(spaceless))} recordings: {cut}"]
    return scores.Scored(figures, seconds, warnings if spaceless else [])


def _before(words: _Words, end_s: float) -> list[WordInterval]:
    """Return the words that begin before `end_s` seconds."""
    return [word for word in words if word.start < end_s]


def _rate(name: str, row: scores.Row, pairs: _Pairs, how: scores.Resampling) -> scores.Figure:
    values = scores.Values()
    for key, found, expected in pairs:
        values.add(key, partial(_counted, name, found, expected))
    edits = np.array([counts.edits for counts in values.found])
    units = np.array([counts.expected for counts in values.found])
    return scores.figure_of_statistic(
        scores.Heading(name, "share", row),
        values,
        lambda chosen: float(edits[chosen].sum() / units[chosen].sum()),
        how,
        asdict(sum(values.found, EditCounts(0, 0, 0, 0))),
    )


def _counted(name: str, found: _Words, expected: _Words) -> EditCounts:
    counts = _RATES[name](*(" ".join(word.word for word in words) for words in (found, expected)))
    if counts.expected == 0:
        raise DataError("text: expected words of the recording, found none in this time")
    return counts


def _timing(rows: Mapping[scores.Row, _Pairs], how: scores.Resampling) -> Iterator[scores.Figure]:
    """Yield the figures of word times.

    The words of a result and its recording are aligned, and the times of equal words are compared. The figures are
    percentiles of the differences in start time and in end time, in seconds.
    """
    found: dict[scores.Row, scores.Values] = {row: scores.Values() for row, pairs in rows.items() if pairs}
    for row, values in found.items():
        for key, words, expected in rows[row]:
            if expected:
                values.add(key, partial(word_time_differences, words, expected))
            else:
                values.leave_out("the recording has no word here")
    for name, (side, percent) in _TIMES.items():
        for row, values in found.items():
            errors: list[F64] = [differences[side] for differences in values.found]
            details = {"words": sum(map(len, errors)), "expected": sum(len(words) for _, _, words in rows[row])}
            statistic = partial(_percentile, errors, percent)
            yield scores.figure_of_statistic(scores.Heading(name, "s", row), values, statistic, how, details)


def _percentile(errors: Sequence[F64], percent: int, chosen: I64) -> float:
    return float(np.percentile(np.concatenate([errors[int(k)] for k in chosen]), percent))
