"""Scores of generated audio, on log-mels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError
from omniges.shards.reader import ShardFolder
from omniges.trainer.evaluate.figures import Clips, Figure, Resampling, Row, figure_of_mean, figure_of_statistic
from omniges.trainer.evaluate.pairs import Pair
from omniges.trainer.metrics.intervals import shuffled_pairing
from omniges.trainer.metrics.speech import (
    OnsetCounts,
    log_mel_l1,
    mel_cepstral_distortion,
    mel_onsets,
    onset_agreement,
)

__all__ = ["score_speech"]

F32 = npt.NDArray[np.float32]


def score_speech(pairs: Sequence[Pair], shards: ShardFolder, how: Resampling) -> list[Figure]:
    """Figures of a task that makes audio; the shuffled row has another clip's mel to be near to."""
    orders: dict[Row, Sequence[int]] = {"generated": range(len(pairs))}
    if len(pairs) > 1:
        orders["shuffled"] = shuffled_pairing(len(pairs), how.seed)[0].tolist()
    figures = []
    for row, order in orders.items():
        l1, distortion, onsets = Clips(), Clips(), Clips()
        kinds = set()
        for pair, other in zip(pairs, order, strict=True):
            found, kind = pair.mel()
            kinds.add(kind)
            found, expected = _common(found, shards.array(pairs[other].row, "mel.npy"), pair, same=other == order[0])
            l1.add(lambda a=found, b=expected: log_mel_l1(a, b))  # type: ignore[misc]
            distortion.add(lambda a=found, b=expected: mel_cepstral_distortion(a, b))  # type: ignore[misc]
            onsets.add(lambda a=found, b=expected: _onsets(a, b))  # type: ignore[misc]
        details = {"of": " and ".join(sorted(kinds))}
        figures.append(figure_of_mean("log-mel L1", "nat", row, l1, how, details))
        figures.append(figure_of_mean("mel-cepstral distortion", "dB", row, distortion, how, details | {"cepstra": 13}))
        figures.append(_agreement(row, onsets, how, details))
    return figures


def _common(found: F32, recorded: F32, pair: Pair, *, same: bool) -> tuple[F32, F32]:
    """Both cut to the frames they share; a generated clip is never longer than its own recording."""
    if same and pair.record is None and len(found) > len(recorded) + 1:
        raise DataError(f"{pair.folder / pair.name}: {len(recorded)} mel frames at most expected, found {len(found)}")
    frames = min(len(found), len(recorded))
    return found[:frames], recorded[:frames]


def _onsets(found: F32, expected: F32) -> OnsetCounts:
    counts = onset_agreement(mel_onsets(found), mel_onsets(expected))
    if counts.found + counts.expected == 0:
        raise DataError("onset agreement: no onsets on either side")
    return counts


def _agreement(row: Row, clips: Clips, how: Resampling, details: dict[str, Any]) -> Figure:
    numbers = np.array([(one.matched, one.found + one.expected) for one in clips.values]).reshape(-1, 2)
    return figure_of_statistic(
        "onset agreement",
        "F",
        row,
        clips,
        lambda rows: float(2 * numbers[rows, 0].sum() / numbers[rows, 1].sum()),
        how,
        details,
    )
