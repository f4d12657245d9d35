"""Normalisation by the statistics of the train split: (x − mean)/std per channel, scale 1 where std < 1e-6."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.data.catalog import Catalog
from omniges.data.tracks import PLAIN_TRACKS, Tracks
from omniges.errors import DataError, UsageFault
from omniges.shards.schema import LATENTS_FILE, STATS_FILE
from omniges.shards.statistics import divisors

F32 = npt.NDArray[np.float32]

_IN_STATS: Final = {"gesture": "gesture", "audio": "mel"}


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """Mean (C,) and divisor (C,) of one stream, float32."""

    mean: F32
    divisor: F32

    def normalised(self, frames: F32) -> F32:
        """(x − mean)/divisor in float32, of frames (…, C)."""
        result: F32 = (frames - self.mean) / self.divisor
        return result

    def restored(self, frames: F32) -> F32:
        """The inverse of `normalised`, but for rounding."""
        result: F32 = frames * self.divisor + self.mean
        return result

    def tiled(self, frames: int) -> Scale:
        """The same for so many frames in one row."""
        return Scale(np.tile(self.mean, frames), np.tile(self.divisor, frames))

    def normalise_into(self, values: F32, out: F32) -> None:
        """The same numbers as `normalised`: whole frames in one row (n,) straight into `out` (n,).

        One long row at a time, by a tiled scale: numpy takes half as long again for rows of one frame.
        """
        length = len(self.mean)
        if len(values) == length:
            np.subtract(values, self.mean, out=out)
            np.divide(out, self.divisor, out=out)
            return
        for start in range(0, len(values), length):
            piece = out[start : start + length]
            np.subtract(values[start : start + length], self.mean[: len(piece)], out=piece)
            np.divide(piece, self.divisor[: len(piece)], out=piece)


@dataclass(frozen=True, slots=True, eq=False)
class Normaliser:
    """The scales of the streams that are numbers."""

    gesture: Scale
    audio: Scale
    text: Scale | None = None  # of latents

    @classmethod
    def identity(cls, tracks: Tracks) -> Normaliser:
        """Return scales that change nothing."""
        counts = [track.channels for track in tracks.arrays]  # in the order of the fields
        return cls(*(Scale(np.zeros(count, np.float32), np.ones(count, np.float32)) for count in counts))

    @classmethod
    def from_statistics(cls, statistics: dict[str, Any], source: str = STATS_FILE) -> Normaliser:
        """From stats.json; raises UsageFault if made of no sample, DataError if it is not as the contract says."""
        plain = {stream: statistics.get(name) for stream, name in _IN_STATS.items()}
        return cls.of_streams(plain, PLAIN_TRACKS, statistics.get("samples"), source)

    @classmethod
    def of_catalog(cls, catalog: Catalog) -> Normaliser:
        """Of the arrays that batches of a folder hold; raises as `from_statistics` does."""
        source = str(catalog.folder / (LATENTS_FILE if catalog.codecs else STATS_FILE))
        return cls.of_streams(catalog.stream_statistics, catalog.tracks, catalog.statistics.get("samples"), source)

    @classmethod
    def of_streams(cls, statistics: Mapping[str, Any], tracks: Tracks, samples: Any, source: str) -> Normaliser:
        """From the statistics of each stream's array."""
        if not samples:
            raise UsageFault(
                f"{source}: made of 0 train samples, so there is nothing to normalise by: put recordings into the "
                "train split with omniges preprocess --split-csv"
            )
        channels = {"gesture": tracks.gesture.channels, "audio": tracks.audio.channels}
        if tracks.text is not None:
            channels["text"] = tracks.text.channels
        return cls(*(_scale(statistics, stream, count, source) for stream, count in channels.items()))


def _scale(statistics: Mapping[str, Any], stream: str, channels: int, source: str) -> Scale:
    if statistics.get(stream) == {"samples": 0}:
        raise UsageFault(f"{source}: no train sample is long enough for latents of {stream}, so nothing can be learned")
    try:
        mean, std = (np.asarray(statistics[stream][name], dtype=np.float64) for name in ("mean", "std"))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{source}: mean and std of {stream} expected. Run omniges verify-shards") from error
    if mean.shape != (channels,) or std.shape != (channels,) or not np.isfinite(mean + std).all() or (std < 0).any():
        raise DataError(
            f"{source}: {channels} finite means and non-negative deviations of {stream} expected, found {mean.shape} "
            f"and {std.shape}. Run omniges verify-shards"
        )
    return Scale(mean.astype(np.float32), divisors(std))
