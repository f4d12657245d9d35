"""Arrays of condition streams for the windows of a batch, computed by the process that reads the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from omniges.conditions.base import STREAM_OF, ConditionStream, Content, Recording, TrainingFacts, window_value
from omniges.conditions.registry import labels_read
from omniges.data.catalog import Catalog, LabelColumn
from omniges.data.tracks import TILE_TICKS, Normaliser, Tracks
from omniges.data.window_reader import ClipReader
from omniges.errors import UsageFault
from omniges.features.gesture import LAYOUT
from omniges.shards.present import STREAM_BITS, absent_channels


def training_facts(catalogs: Sequence[Catalog], statistics: Mapping[str, Any]) -> TrainingFacts:
    """Return the facts about the training set that condition streams may learn from.

    Args:
        catalogs: Catalogues with the labels.
        statistics: Content of stats.json.

    Returns:
        Values of each label, and the statistics.
    """
    found: dict[str, set[str]] = {name: set() for name in catalogs[0].labels}
    for catalog in catalogs:
        for name, (values, codes) in catalog.labels.items():
            found[name] |= {values[code] for code in np.unique(codes).tolist() if code >= 0}
    return TrainingFacts({name: tuple(sorted(values)) for name, values in found.items()}, statistics)


def require_readable(streams: Mapping[str, ConditionStream], codecs: Mapping[str, Any]) -> None:
    """Refuse streams that read an array that batches contain only as latents.

    Args:
        streams: Condition streams by name.
        codecs: Codecs of the run, by the stream that their latents replace.

    Raises:
        UsageFault: A stream reads such an array.
    """
    for name, stream in streams.items():
        lost = [content for content in stream.reads if STREAM_OF[content] in codecs]
        if lost:
            raise UsageFault(
                f"--condition-streams {name}: expected {lost[0]}, which it reads, found {STREAM_OF[lost[0]]} as "
                "latents of a codec; leave out the condition stream or the codec"
            )


class ConditionReader:
    """Reader of condition values for windows; not safe for several threads at once."""

    def __init__(
        self,
        streams: Mapping[str, ConditionStream],
        readers: Sequence[ClipReader],
        labels: Sequence[Mapping[str, LabelColumn]],
        tracks: Tracks,
    ) -> None:
        """Prepare for reading.

        Args:
            streams: Condition streams by name.
            readers: Reader of each folder.
            labels: Labels of each folder.
            tracks: Tracks of the arrays.
        """
        self._streams, self._readers, self._labels = streams, readers, labels
        self._names = labels_read(streams.values())
        self._contents = {content for stream in streams.values() for content in stream.reads}
        self._tracks = tracks
        plain = Normaliser.identity(tracks)
        self._plain = Normaliser(
            plain.gesture.tiled(tracks.gesture.rows(TILE_TICKS)), plain.audio.tiled(tracks.audio.rows(TILE_TICKS))
        )

    def fill(
        self, arrays: Mapping[str, npt.NDArray[Any]], row: int, source: int, sample: int, start: int, ticks: int
    ) -> None:
        """Write the values of a window into a row of a block.

        Args:
            arrays: Arrays of condition streams by name.
            row: Row of the block.
            source: Index of the folder.
            sample: Index of the clip.
            start: First tick of the window.
            ticks: Length of the window.

        Raises:
            DataError: A member cannot be read.
        """
        recording = self._recording(source, sample)
        for name, stream in self._streams.items():
            value = window_value(stream, recording, start, ticks)
            arrays[f"known.{name}"][row] = value is not None
            arrays[f"condition.{name}"][row] = 0 if value is None else value

    def _recording(self, source: int, sample: int) -> Recording:
        labels = {}
        for name in self._names:
            values, codes = self._labels[source][name]
            if codes[sample] >= 0:
                labels[name] = values[codes[sample]]
        bits = int(self._readers[source].table.present[sample])
        there = [content for content in self._contents if bits & STREAM_BITS[STREAM_OF[content]]]
        return Recording(labels, {content: partial(self._read, content, source, sample) for content in there})

    def _read(self, content: Content, source: int, sample: int, first: int, ticks: int) -> Any:
        reader = self._readers[source]
        if content == "words":
            return reader.words(sample)
        pair = zip((self._tracks.gesture, self._tracks.audio), self._tracks.widths, strict=False)
        gesture, mel = (np.empty((track.rows(ticks), width), np.float32) for track, width in pair)
        reader.read_window(sample, first, ticks, self._plain, (gesture.reshape(-1), mel.reshape(-1)))
        for columns in absent_channels(int(reader.table.present[sample])):
            gesture[:, columns] = np.nan
        return gesture[:, : LAYOUT.channels] if content == "gesture" else mel
