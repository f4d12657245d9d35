"""Scores of generated audio, on log-mels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError
from omniges.evaluation.results import MEL_RATE_HZ
from omniges.evaluation.scores import UNCONDITIONAL, Recordings, Result, Scored, partners
from omniges.evaluation.statistics import (
    Figure,
    Heading,
    Resampling,
    Row,
    Values,
    absent,
    figure_of_mean,
    figure_of_statistic,
)
from omniges.features.audio import LOG_FLOOR
from omniges.metrics.speech import (
    CEPSTRA,
    OnsetCounts,
    log_mel_l1,
    mel_cepstral_distortion,
    mel_onsets,
    onset_agreement,
)

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

_L1: Final = "log-mel L1"
_DISTORTION: Final = "mel-cepstral distortion"
_ONSETS: Final = "onset agreement"
_SILENCE: Final = math.log(LOG_FLOOR) + 1e-3
_UNITS: Final = {_L1: "nat", _DISTORTION: "dB", _ONSETS: "F"}


def score_speech(results: Sequence[Result], shards: Recordings, how: Resampling, count: Callable[[], None]) -> Scored:
    """Figures of a task that makes audio; the shuffled row has another recording's mel to be near to.

    Raises DataError for files that cannot be read.
    """
    rows = {result.key: result.row for result in results}
    other = partners(list(rows), how.seed)
    values: dict[tuple[Row, str], Values] = {}
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
            _add(values, "generated", result.key, found, recorded)
            if other:
                _add(values, "shuffled", result.key, found, shards.array(rows[other[result.key]], "mel.npy"))
        count()
    remarks = [f"{len(silent)} of {len(results)} results are silent: {', '.join(silent[:3])}"] if silent else []
    if results[0].unconditional:
        return Scored([absent(Heading(name, unit), UNCONDITIONAL) for name, unit in _UNITS.items()], seconds)
    details: dict[str, Any] = {"of": " and ".join(sorted(kinds))}
    figures = []
    for (row, name), own in sorted(values.items(), key=lambda item: list(_UNITS).index(item[0][1])):
        figures.append(_figure(name, row, own, how, details | ({"cepstra": CEPSTRA} if name == _DISTORTION else {})))
    return Scored(figures, seconds, remarks)


def _add(values: dict[tuple[Row, str], Values], row: Row, key: str, found: F32, recorded: F32) -> None:
    """All metrics of a mel and another, both cut to the frames they share."""
    frames = min(len(found), len(recorded))
    a, b = found[:frames], recorded[:frames]
    values.setdefault((row, _L1), Values()).add(key, lambda: log_mel_l1(a, b))
    values.setdefault((row, _DISTORTION), Values()).add(key, lambda: mel_cepstral_distortion(a, b))
    values.setdefault((row, _ONSETS), Values()).add(key, lambda: _onsets(a, b))


def _onsets(found: F32, expected: F32) -> OnsetCounts:
    counts = onset_agreement(mel_onsets(found), mel_onsets(expected))
    if counts.found + counts.expected == 0:
        raise DataError("onset agreement: no onsets on either side")
    return counts


def _figure(name: str, row: Row, values: Values, how: Resampling, details: dict[str, Any]) -> Figure:
    heading = Heading(name, _UNITS[name], row)
    if name != _ONSETS:
        return figure_of_mean(heading, values, how, details)
    numbers = np.array([(one.matched, one.found + one.expected) for one in values.found]).reshape(-1, 2)

    def f_score(chosen: I64) -> float:
        return float(2 * numbers[chosen, 0].sum() / numbers[chosen, 1].sum())

    return figure_of_statistic(heading, values, f_score, how, details)
