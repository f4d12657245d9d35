"""Beat consistency of results, of them with another recording's audio, and of the recordings."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError
from omniges.evaluation.statistics import ROWS, Figure, Heading, Resampling, Row, Values, absent, figure_of_mean
from omniges.features.timebase import FRAME_RATE_HZ
from omniges.metrics.beats import BeatScore, audio_beats, beat_score, motion_beats
from omniges.metrics.clips import shuffled_pairing
from omniges.metrics.profiles import BeatSettings

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_BEATS: Final = "beat consistency"
_NO_AUDIO: Final = "no audio in these shards, run preprocess --keep-audio"
_ALONE: Final = "one recording has no other to take the audio of"


@dataclass(slots=True)
class BeatRows:
    """Beats of all clips so far; a result that has none on one side is left out of all rows."""

    settings: BeatSettings
    mean_speeds_m_s: F64  # (55,)
    _rows: dict[Row, Values] = field(default_factory=lambda: {row: Values() for row in ROWS})
    _moved: list[tuple[str, int, tuple[I64, ...]]] = field(default_factory=list)  # key, frames, beats of a result
    _heard: dict[str, tuple[int, F64]] = field(default_factory=dict)  # frames and onsets of a recording
    _without: int = 0

    def add(self, key: str, generated: F64, recorded: F64, samples: npt.NDArray[np.float32] | None) -> None:
        """A result's and its recording's joints (T, 55, 3), and the recording's audio."""
        if samples is None:
            self._without += 1
            return
        frames = len(generated)
        try:
            times = self._onsets(key, samples, frames)
            own, true = (motion_beats(joints, self.mean_speeds_m_s, self.settings) for joints in (generated, recorded))
            score, recorded_score = (beat_score(times, beats, frames, self.settings) for beats in (own, true))
        except DataError as error:
            for row in ROWS:
                self._rows[row].leave_out(error)
            return
        self._rows["generated"].keep(key, score)
        self._moved.append((key, frames, own))
        if key not in self._heard:
            self._rows["recorded"].keep(key, recorded_score)
            self._heard[key] = frames, times

    def _onsets(self, key: str, samples: npt.NDArray[np.float32], frames: int) -> F64:
        """Onsets of a recording, found once for all results of it that are of one length."""
        heard_frames, times = self._heard.get(key, (0, np.empty(0)))
        return times if heard_frames == frames else audio_beats(samples, frames, self.settings)

    def figures(self, how: Resampling) -> list[Figure]:
        """The three rows."""
        generated = self._rows["generated"]
        if not generated.found and not generated.left_out:
            return [absent(Heading(_BEATS, ""), _NO_AUDIO)]
        self._shuffle(how.seed)
        if self._without:
            for values in self._rows.values():
                values.left_out[_NO_AUDIO] += self._without
        figures = []
        for row, values in self._rows.items():
            if row == "shuffled" and len(self._heard) == 1:
                figures.append(absent(Heading(_BEATS, "", row), _ALONE))
                continue
            details = {
                "audio_beats": sum(one.audio_beats for one in values.found),
                "motion_beats": sum(one.motion_beats for one in values.found),
                "threshold": self.settings.threshold,
            }
            figures.append(figure_of_mean(Heading(_BEATS, "", row), values, how, details))
        return figures

    def _shuffle(self, seed: int) -> None:
        """Every result with the audio of the next recording in one random cycle."""
        keys = list(self._heard)
        if len(keys) < 2:
            return
        partner = dict(zip(keys, (keys[k] for k in shuffled_pairing(len(keys), seed)), strict=True))
        for key, frames, beats in self._moved:
            other_frames, times = self._heard[partner[key]]
            common = min(frames, other_frames)
            self._rows["shuffled"].add(key, partial(_common, common, times, beats, self.settings))


def _common(frames: int, times: F64, beats: tuple[I64, ...], settings: BeatSettings) -> BeatScore:
    """The score over the time that both have: what the longer has beyond its end is left out of both sides."""
    scored = frames - 2 * settings.crop_frames
    inside = times[times < scored / FRAME_RATE_HZ]
    if not len(inside):
        raise DataError("audio: found no onset in the time that both clips have")
    return beat_score(inside, [own[own < scored] for own in beats], frames, settings)
