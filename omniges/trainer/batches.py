"""Training batches for the flow model. Arrays have the units of the shards, and speakers are integer indices.

The model normalises its inputs with its own statistics. Therefore this module turns off the loader's normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from omniges.data.loader import Batch, BatchLoader, LoaderSettings
from omniges.data.order import RankShare
from omniges.data.sequence import DataSource, Sequencing, tracks_of
from omniges.data.tracks import STREAMS, Normaliser
from omniges.model.flow import Windows
from omniges.model.spec import ModelIdentity
from omniges.model.streams import StreamName, present_of, streams_present
from omniges.shards.present import Bools

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Place:
    """Location of a window: position in the training sequence, key of the clip, first tick, index of the shard set."""

    position: int
    key: str
    start_tick: int
    source: int


def copied(copies: Callable[[], Windows], device: torch.device, stream: torch.cuda.Stream | None) -> Windows:
    """Copy a batch to a device; on a GPU, a separate CUDA stream copies while the previous step still computes.

    Args:
        copies: Function that copies the arrays of the batch to the device, and returns the batch on the device.
        device: Target device of the copy.
        stream: CUDA stream of the copy; None for a device without streams.

    Returns:
        The batch. Later operations of the current stream wait for the copy.
    """
    if stream is None:
        return copies()
    with torch.cuda.stream(stream):
        windows = copies()
    compute = torch.cuda.current_stream(device)
    compute.wait_stream(stream)
    for tensor in windows.tensors():
        tensor.record_stream(compute)  # otherwise the next copy could reuse memory that the model still reads
    return windows


def speakers_of(data: Sequence[DataSource]) -> tuple[str, ...]:
    """Return the sorted names of all speakers in the data. Their indices in the model begin at 1; 0 is *unknown*."""
    numbers = [(source.catalog, number) for source in data for number in np.unique(source.catalog.speaker).tolist()]
    return tuple(sorted({catalog.speaker_names[number] for catalog, number in numbers if number >= 0}))


class Feed(BatchLoader):
    """Endless loader of the batches of one rank (process), which returns them as `Windows` for the model."""

    def __init__(
        self,
        data: Sequence[DataSource],
        sequencing: Sequencing,
        share: RankShare,
        settings: LoaderSettings,
        device: torch.device,
        identity: ModelIdentity | None = None,
    ) -> None:
        """Open the loader.

        The tokenizer and the speaker indices are those of `identity` or, without `identity`, of the data.

        Args:
            data: Shard sets to read.
            sequencing: Order of the windows.
            share: Positions in the training sequence that this rank reads.
            settings: Settings of the loader that change its speed, but not the batches.
            device: Device of the batches.
            identity: Identity of the model; None if no model exists yet.

        Raises:
            UsageFault: No window passes the filters, or the statistics contain no train sample.
        """
        data[0].catalog.normaliser()  # raises if there are no statistics
        tokenizer = None if identity is None else identity.tokenizer
        conditions = {} if identity is None else identity.conditions
        super().__init__(data, sequencing, share, settings, Normaliser.identity(tracks_of(data)), tokenizer, conditions)
        speakers = speakers_of(data) if identity is None else identity.speakers
        self._numbers: dict[str | None, int] = {name: k + 1 for k, name in enumerate(speakers)} | {None: 0}
        self._device, self.share = device, share
        on_gpu = device.type == "cuda"
        self._copy_stream = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._gesture_channels = data[0].catalog.gesture_channels
        self._latents: tuple[StreamName, ...] = tuple(name for name in STREAMS if name in data[0].catalog.codecs)

    def next(self) -> tuple[Windows, I64]:
        """Return the next batch, on the device, and the positions (B,) of its B windows in the training sequence.

        Raises the errors of `BatchLoader.next_batch`.
        """
        batch = self.next_batch()
        if batch is None:
            raise RuntimeError("a shuffled sequence has no end")
        positions = batch.positions.numpy().copy()
        return copied(lambda: self._on_device(batch), self._device, self._copy_stream), positions

    def _on_device(self, batch: Batch) -> Windows:
        speakers = torch.tensor([self._numbers[name] for name in batch.speakers], dtype=torch.int64)
        moved = batch.to(self._device)
        return Windows(
            arrays={"gesture": moved.gesture, "text": moved.text, "audio": moved.audio},
            positions=moved.positions,
            speakers=speakers.to(self._device, non_blocking=True),
            present=present_of(batch.present, self._device, self._latents, self._gesture_channels),
            conditions=moved.conditions,
        )

    @property
    def filtered(self) -> bool:
        """True if the training sequence contains only windows of clips that have certain streams."""
        return any(source.catalog.filters.streams for source in self._data)

    def streams_at(self, positions: I64) -> Bools | None:
        """Return flags (P, 3) for P windows: whether a window has any part of gesture, of text and of audio.

        Return None if all these windows have every part. `positions` (P,) are the positions of the windows; they may
        belong to any rank.
        """
        indices, bits = self._order.windows_at(positions), np.empty(len(positions), np.uint8)
        for number, source in enumerate(self._data):
            own = indices.source == number
            bits[own] = source.catalog.table.present[indices.sample[own]]
        return streams_present(bits)

    def places(self, positions: I64) -> list[Place]:
        """Return the `Place` of the window at each position; the P `positions` may belong to any rank."""
        indices = self._order.windows_at(positions)
        rows = zip(
            *(each.tolist() for each in (positions, indices.source, indices.sample, indices.start_tick)), strict=True
        )
        return [
            Place(position, self._data[source].catalog.table.key(sample), start_tick, source)
            for position, source, sample, start_tick in rows
        ]

    def state_at(self, position: int) -> dict[str, Any]:
        """Return the state of the loader at a position in the training sequence, as a JSON object for checkpoints."""
        return self.state_dict() | {"position": position}
