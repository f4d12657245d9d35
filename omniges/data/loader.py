"""Batches for training: normalised windows in the order of `omniges.data.order`, for any number of ranks and workers.

Worker processes fill blocks of shared memory. The tensors of a batch are views of a block. The block is filled again
when no tensor refers to it. docs/explanation/batches.md describes the guarantees.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from omniges.conditions.base import ConditionStream
from omniges.conditions.registry import layout
from omniges.data.blocks import BlockStore, share_arrays
from omniges.data.collate import Collator, make_collator, make_setup
from omniges.data.order import RankShare
from omniges.data.sequence import DataSource, Resumed, Sequencing, make_order, make_state, resume, tracks_of
from omniges.data.tracks import Normaliser
from omniges.data.window_reader import Verify
from omniges.errors import DataError, EnvironmentFault, OmnigesError, UsageFault
from omniges.progress import printable
from omniges.shards.schema import VERIFY
from omniges.workers import Worker, WorkerDied, worker_command

WORKER_COMMAND: Final = worker_command("omniges.data.collate")
_EXIT_LIMIT_S: Final = 2.0  # time for a worker to exit before it is killed

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderSettings:
    """Settings that change the speed of the loader, but not the batches."""

    workers: int = 2  # worker processes; 0: the calling process reads
    prefetch: int = 2  # batches that each worker may read ahead
    verify: Verify = "first"  # first: check the sha256 of each member before its first use; never: do not check
    pin_memory: bool | None = None  # True: use page-locked memory; None: only if there is a GPU
    stall_s: float = 600.0  # seconds to wait for a batch; longer is an error

    def __post_init__(self) -> None:
        """Check the settings; raise UsageFault for a value that is out of range."""
        if self.workers < 0 or self.prefetch < 1 or not self.stall_s > 0:
            raise UsageFault(
                "workers, prefetch, stall_s: expected workers ≥ 0, prefetch ≥ 1 and stall_s > 0, found "
                f"{self.workers}, {self.prefetch} and {self.stall_s}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A batch of B windows of w ticks. The loader reuses its memory after all tensors of the batch are deleted."""

    gesture: torch.Tensor  # (B, w · 3, 415 or 424) float32, normalised
    audio: torch.Tensor  # (B, w · 10, 64) float32, normalised; or latents
    text: torch.Tensor  # (B, w) int32 text tokens; or latents (B, N, V) float32, normalised
    positions: torch.Tensor  # (B,) int64, in the sequence of all ranks
    start_ticks: torch.Tensor  # (B,) int64, of the window in its clip
    keys: tuple[str, ...]
    speakers: tuple[str | None, ...]
    sources: tuple[int, ...]  # index of the shard folder
    present: npt.NDArray[np.uint8]
    """(B,) bit masks of the parts that a window has, see `omniges.shards.present.STREAM_PARTS`. Absent parts are 0."""
    conditions: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    """Condition streams by name: values (B, …), and a mask (B,) of the windows that have a value."""

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device | str) -> Batch:
        """Copy the batch to a device. If its memory is page-locked, the call can return before the copy is complete."""
        names = ("gesture", "audio", "text", "positions", "start_ticks")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        conditions = {
            name: (values.to(device, non_blocking=True), known.to(device, non_blocking=True))
            for name, (values, known) in self.conditions.items()
        }
        return replace(self, **moved, conditions=conditions)


class BatchLoader:
    """An iterable of the batches of one rank: endless if shuffled, otherwise one pass. Not safe for several threads.

    Iteration can stop after any batch. A later iteration continues after this batch, or begins a new pass if the pass
    has ended. Workers stop at `close`, at the end of a ``with`` block, and when the loader is deleted or the program
    exits. If a batch is read after workers have stopped, new workers start.
    """

    def __init__(
        self,
        data: Sequence[DataSource],
        sequencing: Sequencing,
        share: RankShare,
        settings: LoaderSettings | None = None,
        normaliser: Normaliser | None = None,
        tokenizer: bytes | None = None,
        conditions: Mapping[str, ConditionStream] = MappingProxyType({}),
    ) -> None:
        """Prepare the loader; workers start with the first batch.

        Args:
            data: Shard sets to read, with their weights.
            sequencing: Order of the windows.
            share: Positions that this rank reads.
            settings: Settings that change only the speed.
            normaliser: Means and divisors of the streams; None: from the statistics of the first folder.
            tokenizer: Content of tokenizer.json; None: the tokenizer.json of the first folder.
            conditions: Condition streams by name.

        Raises:
            UsageFault: There is no shard set, all clips are shorter than a window, or no sample contributed to the
                statistics.
            DataError: The statistics are damaged.
        """
        if not data:
            raise UsageFault("data: expected at least one shard folder, found none; give a shard folder")
        self._data, self._sequencing, self._share = tuple(data), sequencing, share
        self._settings = settings or LoaderSettings()
        self._order = make_order(self._data, sequencing)
        first = data[0].catalog
        self._normaliser = normaliser or first.normaliser()
        self._tokenizer = first.tokenizer if tokenizer is None else tokenizer
        self._conditions = conditions
        self._position = 0  # position of the next batch to return
        self._submitted = 0  # position of the next batch to read
        self._jobs = 0
        self._pending: deque[tuple[int, int]] = deque()  # block, rows
        self._workers: list[Worker] = []
        self._collator: Collator | None = None
        self._store: BlockStore | None = None
        weakref.finalize(self, _end_workers, self._workers)
        for source, order in zip(self._data, self._order.orders, strict=True):
            _LOG.info(
                "%s, %s: %d windows of %d ticks an epoch from %d clips; %d clips (%g s) are shorter and left out",
                source.catalog.folder,
                source.catalog.filters.split,
                order.windows,
                order.window_ticks,
                len(source.catalog.table) - order.left_out_clips,
                order.left_out_clips,
                order.left_out_ticks / 10,
            )

    @property
    def windows_per_epoch(self) -> int:
        """Number of windows in one epoch, summed over all folders."""
        return self._order.windows

    @property
    def left_out_clips(self) -> int:
        """Number of clips shorter than a window."""
        return sum(order.left_out_clips for order in self._order.orders)

    @property
    def position(self) -> int:
        """Number of windows returned so far, summed over all ranks."""
        return self._position

    @property
    def batches(self) -> int | None:
        """Number of batches in one pass, equal on all ranks; None if shuffled, because a shuffled pass has no end."""
        if self._sequencing.shuffle:
            return None
        return -(-self._order.windows // self._share.global_batch) * self._share.accumulation

    @property
    def worker_pids(self) -> tuple[int, ...]:
        """Process ids of the running workers."""
        return tuple(worker.pid for worker in self._workers)

    def __iter__(self) -> Iterator[Batch]:
        if self._end is not None and self._position >= self._end:
            self._seek(0)
        while (batch := self.next_batch()) is not None:
            yield batch

    @property
    def _end(self) -> int | None:
        """Position at which a pass ends; None if shuffled.

        A pass has the same number of batches on all ranks. Therefore, in the last step, some batches may have fewer
        windows than others, or no windows.
        """
        return None if self.batches is None else self.batches * self._share.micro_batch

    def next_batch(self) -> Batch | None:
        """Return the next batch, or None at the end of a pass; an exception does not change the position.

        Returns:
            The batch, or None.

        Raises:
            DataError: A window cannot be read; the error names shard, key and byte offset. The window is not skipped.
            EnvironmentFault: A worker was killed, or a batch takes too long.
        """
        if self._end is not None and self._position >= self._end:
            return None
        with ExitStack() as on_error:
            on_error.callback(self.close)
            try:
                store = self._start()
                self._submit(store)
                block, rows = self._pending[0]
                self._await(store, block)
            except WorkerDied as death:
                raise self._fault_of(death) from death
            on_error.pop_all()
        self._pending.popleft()
        self._position += self._share.micro_batch
        return self._batch(store, block, rows)

    def _start(self) -> BlockStore:
        """Return the block store. The first call creates it, and starts the workers that fill its blocks.

        Without workers, the first call creates a collator that fills the blocks in this process.
        """
        if self._store is not None:
            return self._store
        settings, share = self._settings, self._share
        stride = share.micro_batch * max(1, settings.workers)
        document, arrays = make_setup(
            self._data, self._sequencing, settings.verify, stride, self._normaliser, self._tokenizer, self._conditions
        )
        pin = torch.cuda.is_available() if settings.pin_memory is None else settings.pin_memory
        fields, tracks = layout(self._conditions), tracks_of(self._data)
        ticks = self._sequencing.window_ticks
        store = BlockStore(share.batch_size, ticks, pin=pin, tracks=tracks, conditions=fields)
        if settings.workers:
            descriptor, places, size = share_arrays("omniges-clips", arrays)
            document |= {"rows": share.batch_size, "blocks_fd": store.descriptor}
            document |= {"places": places, "shared_fd": descriptor, "shared_bytes": size}
            try:
                for _ in range(settings.workers):
                    self._workers.append(Worker(WORKER_COMMAND, document, descriptors=(descriptor, store.descriptor)))
            finally:
                os.close(descriptor)  # the workers have a copy
        else:
            self._collator = make_collator(document, arrays, mapped=False)
        self._store, self._submitted, self._jobs = store, self._position, 0
        return store

    def _submit(self, store: BlockStore) -> None:
        """Submit batches to the workers, up to the number that may be read ahead."""
        ahead = max(1, self._settings.workers * self._settings.prefetch)
        while len(self._pending) < ahead and (self._end is None or self._submitted < self._end):
            positions = self._share.positions(self._submitted)
            if not self._sequencing.shuffle:
                positions = positions[positions < self._order.windows]
            block = store.take()
            view = store.view(block)
            view.positions[: len(positions)] = positions
            view.progress[:] = len(positions), 0
            self._pending.append((block, len(positions)))
            if self._workers:
                self._workers[self._jobs % len(self._workers)].submit(block)
            self._jobs += 1
            self._submitted += self._share.micro_batch

    def _await(self, store: BlockStore, block: int) -> None:
        """Wait until a worker has filled `block`, the oldest pending block. Without workers, fill it here."""
        if self._collator is not None:
            view = store.view(block)
            self._collator.fill(view, view.positions[: view.progress[0]].copy())
            return
        number = (self._jobs - len(self._pending)) % len(self._workers)
        try:
            self._workers[number].receive(self._settings.stall_s)
        except TimeoutError as error:
            raise EnvironmentFault(
                f"expected a batch within {self._settings.stall_s:g} s, found that loader worker {number} "
                f"(process {self._workers[number].pid}) is still reading {self._place(store, block)}; check the "
                "disk or network"
            ) from error

    def _place(self, store: BlockStore, block: int) -> str:
        """Return shard, key and byte offset of the window that is being read into a block."""
        view = store.view(block)
        indices = self._order.windows_at(view.positions[view.progress[1] : view.progress[1] + 1].copy())
        source, sample = self._data[int(indices.source[0])], int(indices.sample[0])
        table = source.catalog.table
        shard = source.shard_source().describe(table.shard_name(int(table.shard[sample])))
        return f"{shard}: {table.key(sample)} at byte {int(table.offsets[sample, 0])}"

    def _fault_of(self, death: WorkerDied) -> OmnigesError:
        """Return the error for a worker that exited: DataError if SIGBUS stopped a read, otherwise EnvironmentFault.

        SIGBUS means that a mapped file was truncated, or that the disk fails.
        """
        if death.task is None or self._store is None:
            return EnvironmentFault(
                f"expected a loader worker to start, found that it did not ({death}); run the command again with 0 "
                "workers"
            )
        place = self._place(self._store, death.task)
        if "SIGBUS" in str(death):
            return DataError(
                f"{place}: expected a readable shard, found that it was truncated while it was read, or that the disk "
                f"fails; {VERIFY}"
            )
        return EnvironmentFault(
            f"{place}: expected a batch, found that the loader worker exited ({death}); run the same command "
            "again, with fewer workers if memory was full (earlier batches are not lost)"
        )

    def _batch(self, store: BlockStore, block: int, rows: int) -> Batch:
        """Return a filled block as a batch. Its tensors are views of the block."""
        view = store.lend(block)
        sources, samples = view.sources[:rows], view.samples[:rows]
        keys: list[str] = [""] * rows
        speakers: list[str | None] = [None] * rows
        present = np.empty(rows, np.uint8)
        for number, source in enumerate(self._data):
            own = np.flatnonzero(sources == number)
            names = source.catalog.table.keys_of(samples[own]), source.catalog.speakers_of(samples[own])
            present[own] = source.catalog.table.present[samples[own]]
            for row, key, speaker in zip(own.tolist(), *names, strict=True):
                keys[row], speakers[row] = key, speaker
        return Batch(
            gesture=torch.from_numpy(view.gesture[:rows]),
            audio=torch.from_numpy(view.audio[:rows]),
            text=torch.from_numpy(view.text[:rows]),
            positions=torch.from_numpy(view.positions[:rows]),
            start_ticks=torch.from_numpy(view.start_ticks[:rows]),
            keys=tuple(keys),
            speakers=tuple(speakers),
            sources=tuple(sources.tolist()),
            present=present,
            conditions={
                name: (
                    torch.from_numpy(view.conditions[f"condition.{name}"][:rows]),
                    torch.from_numpy(view.conditions[f"known.{name}"][:rows]),
                )
                for name in self._conditions
            },
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's state as a JSON object. The position in it excludes batches that workers read ahead."""
        return make_state(self._data, self._sequencing, self._position, self._share.global_batch)

    def load_state_dict(self, state: Mapping[str, Any]) -> Resumed:
        """Resume from a saved state, with any number of ranks and workers.

        Args:
            state: Result of `state_dict`.

        Returns:
            The position, and a warning if the global batch size differs from the batch size in the saved state.

        Raises:
            UsageFault: The state was saved for another sequence of windows than that of this loader. The error lists
                all differences of settings and shards.
            DataError: The state is not valid.
        """
        resumed = resume(self.state_dict(), state)
        self._seek(resumed.position)
        if resumed.note:
            _LOG.warning("%s", printable(resumed.note))
        return resumed

    def _seek(self, position: int) -> None:
        self.close()
        self._position = position

    def close(self) -> None:
        """Stop the workers and release the memory; batches that were returned stay valid."""
        _end_workers(self._workers)
        self._pending.clear()
        self._collator = self._store = None

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _end_workers(workers: list[Worker]) -> None:
    """Ask all workers to exit, wait for each of them, and empty the list."""
    for worker in workers:
        worker.close_input()
    while workers:
        workers.pop().close(_EXIT_LIMIT_S)
