"""Batches of the loader as the flow takes them: on the device, in the units of the shards, speakers as numbers.

The model normalises by the statistics it keeps, so the loader is given scales that change nothing: this is the one
place where that is decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from omniges.data.loader import BatchLoader, LoaderSettings
from omniges.data.order import RankShare
from omniges.data.sequence import DataSource, Sequencing, make_order, tracks_of
from omniges.data.tracks import Normaliser
from omniges.model.flow import Windows
from omniges.model.spec import ModelIdentity

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a window of the sequence lies."""

    position: int
    key: str
    start_tick: int
    source: int


def speakers_of(data: Sequence[DataSource]) -> tuple[str, ...]:
    """Names of the speakers of all clips, sorted; the first has number 1, for 0 is *unknown*."""
    numbers = [(source.catalog, number) for source in data for number in np.unique(source.catalog.speaker).tolist()]
    return tuple(sorted({catalog.speaker_names[number] for catalog, number in numbers if number >= 0}))


class Feed:
    """Batches of one rank, without end."""

    def __init__(
        self,
        data: Sequence[DataSource],
        sequencing: Sequencing,
        share: RankShare,
        settings: LoaderSettings,
        device: torch.device,
        identity: ModelIdentity | None = None,
    ) -> None:
        """Tokenizer and numbers of speakers are those of a model, or those that the data gives.

        Raises UsageFault where no window is left or no train sample made the statistics.
        """
        data[0].catalog.normaliser()  # is there one to learn by?
        tokenizer = data[0].catalog.tokenizer if identity is None else identity.tokenizer
        self._loader = BatchLoader(
            data, sequencing, share, settings, normaliser=Normaliser.identity(tracks_of(data)), tokenizer=tokenizer
        )
        speakers = speakers_of(data) if identity is None else identity.speakers
        self._order = make_order(data, sequencing)
        self._data = tuple(data)
        self._device = device
        self._numbers: dict[str | None, int] = {name: k + 1 for k, name in enumerate(speakers)} | {None: 0}
        self.share = share

    @property
    def windows_per_epoch(self) -> int:
        """Windows of all folders, each once."""
        return self._loader.windows_per_epoch

    @property
    def left_out_clips(self) -> int:
        """Clips shorter than a window."""
        return self._loader.left_out_clips

    @property
    def position(self) -> int:
        """Windows that all ranks have been handed."""
        return self._loader.position

    def next(self) -> tuple[Windows, I64]:
        """The next batch and its positions (B,) on the host; raises what `BatchLoader.next_batch` does."""
        batch = self._loader.next_batch()
        if batch is None:
            raise RuntimeError("a shuffled sequence has no end")
        speakers = torch.tensor([self._numbers[name] for name in batch.speakers], dtype=torch.int64)
        positions = batch.positions.numpy().copy()
        moved = batch.to(self._device)
        windows = Windows(
            arrays={"gesture": moved.gesture, "text": moved.text, "audio": moved.audio},
            positions=moved.positions,
            speakers=speakers.to(self._device, non_blocking=True),
        )
        return windows, positions

    def places(self, positions: I64) -> list[Place]:
        """What stands at positions (P,) of the sequence, of any rank."""
        picks = self._order.picks(positions)
        return [
            Place(
                position=int(positions[row]),
                key=self._data[int(picks.source[row])].catalog.table.key(int(picks.sample[row])),
                start_tick=int(picks.start_tick[row]),
                source=int(picks.source[row]),
            )
            for row in range(len(positions))
        ]

    def state_at(self, position: int) -> dict[str, Any]:
        """The loader's state as it was at a position, as JSON."""
        return self._loader.state_dict() | {"position": position}

    def load(self, state: dict[str, Any]) -> str | None:
        """Go on from a saved state; returns a remark where the global batch is another one."""
        return self._loader.load_state_dict(state).note

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loader.close()
