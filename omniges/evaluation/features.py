"""The Fréchet distance of results from the recordings, with rows and ranks, and beside it that of the train split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError
from omniges.evaluation.motion import ClipMotion, Instruments, TrainSplit
from omniges.evaluation.statistics import Figure, Heading, Resampling, Values, absent, figure_of_statistic
from omniges.metrics.frechet import Features, FrechetScore, frechet_distance

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.floating]

_HEADING: Final = Heading("Fréchet gesture distance", "")
_RESAMPLES: Final = 200  # each of them is a decomposition
_TRAIN: Final = "the train split's other recordings against these"


class FeatureRows:
    """Features of all results and of their recordings, each recording once."""

    def __init__(self, instruments: Instruments, train: TrainSplit | None) -> None:
        self._with, self._train = instruments, train
        self._generated = Values()
        self._recorded: dict[str, F64] = {}
        self._first: set[int] = set()  # number of the first result of each recording

    def add(self, key: str, generated: tuple[ClipMotion, F64], recorded: tuple[ClipMotion, F64]) -> None:
        """A result's and its recording's motion and joints."""
        if self._with.given is not None:
            self._generated.keep(key, None)
            return
        try:
            features = self._with.features(*generated)
            if key not in self._recorded:
                self._recorded[key] = self._with.features(*recorded)
        except DataError as error:
            self._generated.leave_out(error)
        else:
            self._generated.keep(key, features)

    def figures(self, how: Resampling) -> list[Figure]:
        """The distance of the results, and that of the train split."""
        if self._with.given is not None:
            return self._of_files(*self._with.given)
        values = self._generated
        if min(sum(map(len, values.found)), sum(map(len, self._recorded.values()))) < 2:
            why = _reasons(values.left_out) or "fewer than two rows of features"
            return [replace(absent(_HEADING, why), left_out=dict(values.left_out))]
        self._first = {int(group[0]) for group in values.groups}
        whole = self._distance(np.arange(len(values.found)))
        fewer = replace(how, resamples=min(how.resamples, _RESAMPLES))
        figure = figure_of_statistic(
            _HEADING,
            values,
            lambda numbers: self._distance(numbers).value,
            fewer,
            _details(whole),
            centred=True,
            alone=False,
        )
        if figure.low is not None and not self._with.profile.frechet.offset:
            figure = replace(figure, low=max(figure.low, 0.0))  # no distance is less, wherever the draws were shifted
        return [figure, self._baseline()]

    def _of_files(self, generated: Features, recorded: Features) -> list[Figure]:
        """The distance of features made elsewhere, whose rows tell of no recording: so there is no interval."""
        score = self._score([generated.rows], [recorded.rows])
        return [
            Figure(
                metric=_HEADING.metric,
                unit=_HEADING.unit,
                row="generated",
                value=score.value,
                recordings=len(set(self._generated.keys)),
                results=len(self._generated.keys),
                details=_details(score),
            ),
            absent(replace(_HEADING, row="recorded"), "--features has none of the train split"),
        ]

    def _distance(self, numbers: I64) -> FrechetScore:
        """Of the results of some numbers, which may repeat, from their recordings."""
        values = self._generated
        # A recording counts once however many results it has, and as often as it was drawn.
        recorded = [self._recorded[values.keys[int(k)]] for k in numbers if int(k) in self._first]
        return self._score([values.found[int(k)] for k in numbers], recorded)

    def _score(self, generated: Sequence[Numbers], recorded: Sequence[Numbers]) -> FrechetScore:
        return frechet_distance(
            np.concatenate(generated),
            np.concatenate(recorded),
            self._with.profile.frechet,
            encoder=self._with.encoder_name,
        )

    def _baseline(self) -> Figure:
        train = self._train
        others = [] if train is None else [own for key, own in train.features.items() if key not in self._recorded]
        left_out = {} if train is None else train.left_out
        if sum(map(len, others)) < 2:
            why = _reasons(left_out) or "no other recordings in the train split"
            return replace(absent(replace(_HEADING, row="recorded"), why), left_out=left_out)
        score = self._score(others, list(self._recorded.values()))
        return Figure(
            metric=_HEADING.metric,
            unit=_HEADING.unit,
            row="recorded",
            value=score.value,
            recordings=len(others),
            results=len(others),
            left_out=left_out,
            details=_details(score) | {"of": _TRAIN},
        )


def _reasons(left_out: Mapping[str, int]) -> str:
    return "; ".join(f"{count} × {reason}" for reason, count in left_out.items())


def _details(score: FrechetScore) -> dict[str, Any]:
    return {
        "encoder": score.encoder,
        "offset": score.offset,
        "mean_term": score.mean_term,
        "dimensions": score.dimensions,
        "rows": [score.rows_generated, score.rows_recorded],
        "ranks": [score.rank_generated, score.rank_recorded],
        "full_rank": score.full_rank,
    }
