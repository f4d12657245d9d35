"""Packing of a batch: which samples each stream is computed for, and attention within each sample.

A training batch mixes tasks, so a sample may have only some of the streams. For each stream, one matrix product
processes the tokens of all samples that have the stream. Each of these samples is one row of the stream. Only attention
needs all streams of a sample together. There are two ways to arrange the rows:

* `ByLayout`: samples with the same streams (a layout) are neighbours, and attention runs once for each layout. Nothing
  is padded and no mask is needed, but shapes differ from batch to batch. This is used without a compiler.
* `Rounded`: the number of rows is rounded up, and attention runs over all samples and all streams, with a mask. Shapes
  seldom change, which compiled code needs. Masked keys cost little, because attention is a few percent of a step.

Shape letters: B samples of the batch, R rows of a stream, N tokens of one stream or of all, H heads, E features a head,
W = H · E width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from omniges.model.draws import Plan
from omniges.model.streams import STREAMS

I64 = npt.NDArray[np.int64]
Key = TypeVar("Key")


# --- attention within each sample


class Packed(ABC):
    """Interface: which sample each row of a stream belongs to, and attention among the tokens of each sample."""

    rows: Mapping[str, Tensor]
    """For each stream, the index (R,) int64 of each row's sample. In a stream without an entry, row i is sample i."""
    there: Mapping[str, Tensor]
    """For each stream that some samples lack, a mask (B,) bool of the samples that have the stream."""

    def of_rows(self, name: str, values: Tensor) -> Tensor:
        """Return, for each row of a stream, the value of the sample that the row belongs to.

        Args:
            name: Name of the stream.
            values: Values of the samples (B, …).

        Returns:
            Values of the rows (R, …).
        """
        return values.index_select(0, self.rows[name]) if name in self.rows else values

    @abstractmethod
    def attend(self, query_key: Mapping[str, Tensor], value: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Let the tokens of each sample attend to all tokens of the same sample.

        Args:
            query_key: Queries and keys (R, N, 2, H, E) of each stream.
            value: Values (R, N, H, E) of each stream.

        Returns:
            Attended values (R, N, W) of each stream.
        """


@dataclass(frozen=True, slots=True)
class ByLayout(Packed):
    """Rows that are sorted by layout; attention runs once for each layout."""

    layouts: Sequence[Sequence[str]]
    """Names of the streams of each layout."""
    samples: Sequence[int]
    """Number of samples of each layout."""
    rows: Mapping[str, Tensor]
    there: Mapping[str, Tensor] = field(default_factory=dict)

    def attend(self, query_key: Mapping[str, Tensor], value: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the attention of the samples of each layout separately.

        Args:
            query_key: Queries and keys (R, N, 2, H, E) of each stream.
            value: Values (R, N, H, E) of each stream.

        Returns:
            Attended values (R, N, W) of each stream.
        """
        parts = {name: iter(self._split(name, x)) for name, x in query_key.items()}
        values = {name: iter(self._split(name, x)) for name, x in value.items()}
        found: dict[str, list[Tensor]] = {name: [] for name in query_key}
        for names in self.layouts:
            query, key = _joined([next(parts[name]) for name in names]).unbind(2)
            attended = attention(query, key, _joined([next(values[name]) for name in names]), None)
            counts = [query_key[name].shape[1] for name in names]
            for name, part in zip(names, torch.split(attended, counts, dim=1), strict=True):
                found[name].append(part)
        return {name: own[0] if len(own) == 1 else torch.cat(own) for name, own in found.items()}

    def _split(self, name: str, x: Tensor) -> Sequence[Tensor]:
        """Split a stream's rows (R, …) by layout: one tensor for each layout that has the stream."""
        return torch.split(x, [n for names, n in zip(self.layouts, self.samples, strict=True) if name in names])


@dataclass(frozen=True, slots=True)
class Rounded(Packed):
    """Rows in any order, padded with spare rows; attention runs over all streams of all samples with a mask."""

    there: Mapping[str, Tensor] = field(default_factory=dict)
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    slots: Mapping[str, Tensor] = field(default_factory=dict)
    """For each stream in `rows`, the index (B,) int64 of each sample's row. Without the stream, the index is arbitrary.
    """
    real: Mapping[str, Tensor] = field(default_factory=dict)
    """For each stream in `rows`, a mask (R,) bool of the rows that belong to a sample; False: spare rows."""

    def attend(self, query_key: Mapping[str, Tensor], value: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the attention of all samples at once, with a mask of the streams that each sample has.

        Args:
            query_key: Queries and keys (R, N, 2, H, E) of each stream.
            value: Values (R, N, H, E) of each stream.

        Returns:
            Attended values (R, N, W) of each stream.
        """
        query, key = _joined([self._of_samples(name, x) for name, x in query_key.items()]).unbind(2)
        joined = _joined([self._of_samples(name, x) for name, x in value.items()])
        counts = [x.shape[1] for x in value.values()]
        attended = attention(query, key, joined, self._mask(list(value), counts, len(joined)))
        split = zip(query_key, torch.split(attended, counts, dim=1), strict=True)
        return {name: self._of_streams(name, part) for name, part in split}

    def _of_samples(self, name: str, x: Tensor) -> Tensor:
        if name not in self.rows:
            return x
        return reorder(x, self.slots[name], self.rows[name], self.real[name])

    def _of_streams(self, name: str, x: Tensor) -> Tensor:
        if name not in self.rows:
            return x
        there = self.there.get(name)
        every = torch.ones_like(self.slots[name], dtype=torch.bool) if there is None else there
        return reorder(x, self.rows[name], self.slots[name], every)

    def _mask(self, names: Sequence[str], counts: Sequence[int], batch: int) -> Tensor | None:
        """Return a mask (B, 1, 1, N) bool of the keys that are present, over all streams; None if all are present."""
        if not self.there:
            return None
        first = next(iter(self.there.values()))
        every = torch.ones(batch, dtype=torch.bool, device=first.device)
        parts = [self.there.get(name, every)[:, None].expand(-1, n) for name, n in zip(names, counts, strict=True)]
        return torch.cat(parts, dim=1)[:, None, None]


class _Reorder(torch.autograd.Function):
    """Autograd function: select rows in the forward pass, and select rows of the gradient in the backward pass.

    The backward pass of torch's `index_select` adds the gradients of all results that come from the same row. An
    accelerator adds them in an order that varies. Here, at most one result of each row has a gradient. So the backward
    pass selects this gradient and adds nothing.
    """

    @staticmethod
    def forward(x: Tensor, index: Tensor, inverse: Tensor, used: Tensor) -> Tensor:
        """Select rows of x.

        Args:
            x: M rows (M, …).
            index: Index in x (K,) of each of the K selected rows.
            inverse: For each row of x (M,), the index of the selected row that has its gradient; arbitrary for rows
                without a gradient.
            used: Whether each row of x gets a gradient (M,) bool.

        Returns:
            Selected rows (K, …).
        """
        del inverse, used
        return x.index_select(0, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Save `inverse` and `used` for the backward pass.

        Args:
            ctx: Context of the backward pass.
            inputs: Arguments of `forward`.
            output: Not used.
        """
        del output
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of each row of x: selected by `inverse`, or 0 where `used` is False."""
        inverse, used = ctx.saved_tensors
        (gradient,) = gradients
        selected = gradient.index_select(0, inverse)
        mask = used.reshape(-1, *[1] * (selected.ndim - 1))
        return torch.where(mask, selected, 0.0), None, None, None


def reorder(x: Tensor, index: Tensor, inverse: Tensor, used: Tensor) -> Tensor:
    """Select rows of x; the backward pass also selects rows, and never adds gradients.

    A row of x may be selected several times, but at most one of these results may have a gradient.

    Args:
        x: M rows (M, …).
        index: Index in x (K,) of each of the K selected rows.
        inverse: For each row of x (M,), the index of the selected row that has its gradient; arbitrary for rows without
            a gradient.
        used: Whether each row of x gets a gradient (M,) bool.

    Returns:
        Selected rows (K, …).
    """
    found: Tensor = _Reorder.apply(x, index, inverse, used)  # type: ignore[no-untyped-call]
    return found


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Compute scaled dot-product attention of several heads, in the precision of the values.

    Args:
        query: Queries (B, N, H, E).
        key: Keys of the same shape.
        value: Values of the same shape.
        mask: Whether each key is present, (B, 1, 1, N) bool; None: all keys are present.

    Returns:
        Attended values (B, N, W).
    """
    query, key, value = (x.to(value.dtype).transpose(1, 2) for x in (query, key, value))
    attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return attended.transpose(1, 2).flatten(2)


@dataclass(frozen=True, slots=True)
class StackedRows:
    """Index arrays that map samples to rows and back, for S streams with R rows each.

    Among the rows of all streams, row r of stream s has the index s · R + r. Among the samples of all streams, sample b
    of stream s has the index s · B + b.
    """

    there: Tensor
    """Whether each sample has each stream (S, B) bool."""
    targets: Mapping[str, int]
    """Number of targets of each stream that has targets, in the order of `target_rows`."""
    target_rows: Tensor
    """Indices (T,) of the rows that are targets."""
    target_of: Tensor
    """Index in `target_rows` of each row (S · R,); arbitrary for rows that are not targets."""
    is_target: Tensor
    """Whether each row is a target (S · R,) bool."""
    sample_of: Tensor | None = None
    """Index of each row's sample (S · R,); None: R = B, and row r is sample r."""
    row_of: Tensor | None = None
    """Index of each sample's row (S · B,); arbitrary for samples without the stream."""
    real: Tensor | None = None
    """Whether each row belongs to a sample (S · R,) bool; False: spare rows."""

    def of_rows(self, x: Tensor) -> Tensor:
        """Rearrange values of samples (S, B, …) to values of rows (S, R, …)."""
        if self.sample_of is None or self.row_of is None:
            return x
        found = reorder(x.flatten(0, 1), self.sample_of, self.row_of, self.there.flatten())
        return found.view(len(x), -1, *x.shape[2:])

    def of_samples(self, x: Tensor) -> Tensor:
        """Rearrange values of rows (S, R, …) to values of samples (S, B, …)."""
        if self.sample_of is None or self.row_of is None or self.real is None:
            return x
        found = reorder(x.flatten(0, 1), self.row_of, self.sample_of, self.real)
        return found.view(len(x), -1, *x.shape[2:])

    def of_targets(self, x: Tensor) -> Tensor:
        """Select the values (T, …) of the T rows in `target_rows` from the values (S, R, …) of all rows."""
        return reorder(x.flatten(0, 1), self.target_rows, self.target_of, self.is_target)


# --- rows of a plan


@dataclass(frozen=True, slots=True)
class BatchRows:
    """Rows of each stream of a batch, with index arrays for noised rows and targets, on the device."""

    packed: Packed
    streams: frozenset[str]  # streams with rows
    noised: Mapping[str, Tensor]  # indices of the rows whose tokens get noise; stream without an entry: all rows
    targets: Mapping[str, Tensor]  # indices (K,) of the rows that are targets, for streams with targets
    target_noise: Mapping[str, Tensor]  # index (K,) of each target row among the noised rows
    counted: Mapping[str, Tensor]  # (K,) bool: the loss of the target row counts; False for rows that repeat a row
    target_samples: Mapping[str, Tensor]  # index (K,) of the sample of each target row
    target_of: Mapping[str, Tensor]  # index (B,) in `targets` for each sample; arbitrary for samples without a target
    is_target: Mapping[str, Tensor]  # (B,) bool: the sample has the stream as a target
    stacked: StackedRows | None = None  # the same rows on one axis, if every stream has rows

    def losses_of_samples(self, name: str, losses: Tensor) -> Tensor:
        """Return the loss of one stream for each sample; 0 for samples in which the stream is not a target.

        Args:
            name: Name of the stream; at least one sample must have it as a target.
            losses: Loss (K,) of each of the stream's K targets.

        Returns:
            Losses (B,).
        """
        found = reorder(losses, self.target_of[name], self.target_samples[name], self.counted[name])
        return torch.where(self.is_target[name], found, 0.0)


def batch_rows(plan: Plan, device: torch.device, *, rounded: bool) -> BatchRows:
    """Assign the samples of a batch to rows of each stream.

    Args:
        plan: Plan of the batch, which contains the streams of each sample.
        device: Device of the rows.
        rounded: True: round the numbers of rows up (`Rounded`). False: sort samples by their streams (`ByLayout`).

    Returns:
        Rows of each stream, and their index arrays on the device.
    """
    return _rounded_rows(plan, device) if rounded else _sorted_rows(plan, device)


def _sorted_rows(plan: Plan, device: torch.device) -> BatchRows:
    """Return the rows of a batch without spare rows. Samples with the same streams are neighbours."""
    layouts, kind, samples = np.unique(plan.present, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(kind.reshape(-1), kind="stable")
    arrays: dict[tuple[str, str], npt.NDArray[Any]] = {}
    for k, name in enumerate(STREAMS):
        rows = order[plan.present[order, k]]
        if not len(rows):
            continue
        noised, targets = np.flatnonzero(plan.levels[rows, k] > 0), np.flatnonzero(plan.target[rows, k])
        arrays["noised", name] = noised
        if len(layouts) > 1:
            arrays["rows", name] = rows
        if len(rows) < len(order):
            arrays["there", name] = plan.present[:, k]
        if len(targets):
            arrays |= {("targets", name): targets, ("target_noise", name): np.searchsorted(noised, targets)}
            arrays |= _target_arrays(name, rows[targets], len(targets), len(order))
    streams = tuple(tuple(name for name, has in zip(STREAMS, one, strict=True) if has) for one in layouts)
    of = _by_kind(arrays, device)
    packed = ByLayout(streams, tuple(samples.tolist()), of("rows"), of("there"))
    return BatchRows(
        packed,
        frozenset(of("noised")),
        of("noised"),
        of("targets"),
        of("target_noise"),
        *(of("counted"), of("target_samples"), of("target_of"), of("is_target")),
    )


def _target_arrays(name: str, samples: I64, count: int, batch: int) -> dict[tuple[str, str], npt.NDArray[Any]]:
    """Return the arrays that `BatchRows.losses_of_samples` needs for one stream.

    Args:
        name: The stream.
        samples: Index of each target's sample (K,).
        count: Number of targets that are not copies. The targets after these repeat the first target; losses of copies
            are not used.
        batch: Batch size B.

    Returns:
        Arrays by (field of `BatchRows`, stream).
    """
    target_of, is_target = np.zeros(batch, np.int64), np.zeros(batch, np.bool_)
    target_of[samples[:count]], is_target[samples[:count]] = np.arange(count), True
    return {
        ("counted", name): np.arange(len(samples)) < count,
        ("target_samples", name): samples,
        ("target_of", name): target_of,
        ("is_target", name): is_target,
    }


def _rounded_rows(plan: Plan, device: torch.device) -> BatchRows:
    """Return the rows of a batch. All streams have the same number of rows.

    All streams that have targets have the same number of targets. Spare rows repeat the first row of the stream, and
    spare targets repeat its first target. If R = B, row r is sample r, even if the sample lacks the stream.
    """
    batch = len(plan.task)
    streams = [k for k in range(len(STREAMS)) if plan.present[:, k].any()]
    rows_of = {STREAMS[k]: np.flatnonzero(plan.present[:, k]) for k in streams}
    # To compile few shapes, rows are 2/4, 3/4 or 4/4 of the batch, and targets 1/2 or 2/2.
    count = rounded_up(max(batch // 2, *map(len, rows_of.values())), batch, 4)
    target_count = rounded_up(int(plan.target.sum(axis=0).max()), batch, 2)
    arrays: dict[tuple[str, str], npt.NDArray[Any]] = {}
    for k in streams:
        name, rows = STREAMS[k], rows_of[STREAMS[k]]
        arrays["there", name] = plan.present[:, k]
        if count == batch:
            rows = np.arange(batch)
        else:
            slots = np.zeros(batch, np.int64)
            slots[rows] = np.arange(len(rows))
            arrays |= {("slots", name): slots, ("real", name): np.arange(count) < len(rows)}
            arrays["rows", name] = _filled(rows, count)
        targets = np.flatnonzero(plan.target[rows, k])
        if len(targets):
            arrays["targets", name] = _filled(targets, target_count)
            arrays |= _target_arrays(name, rows[arrays["targets", name]], len(targets), batch)
    if len(streams) == len(STREAMS):
        arrays |= {(_STACKED, kind): array for kind, array in _stacked_rows(arrays, batch, count).items()}
    of = _by_kind(arrays, device)
    packed = Rounded(of("there"), of("rows"), of("slots"), of("real"))
    targets_of, joined = of("targets"), of(_STACKED)
    stacked = StackedRows(targets={name: len(x) for name, x in targets_of.items()}, **joined) if joined else None
    of_targets = of("counted"), of("target_samples"), of("target_of"), of("is_target")
    return BatchRows(packed, frozenset(rows_of), {}, targets_of, targets_of, *of_targets, stacked)


_STACKED: Final = "stacked"


def _stacked_rows(
    arrays: Mapping[tuple[str, str], npt.NDArray[Any]], batch: int, count: int
) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of `StackedRows` for rows of every stream.

    Args:
        arrays: Arrays of `Rounded` and `BatchRows` by (field, stream).
        batch: Batch size B.
        count: Number of rows R of each stream.

    Returns:
        Arrays by field of `StackedRows`.
    """
    targets = {s: arrays["targets", name] for s, name in enumerate(STREAMS) if ("targets", name) in arrays}
    target_rows = np.concatenate([s * count + rows for s, rows in targets.items()])
    numbers, first = np.unique(target_rows, return_index=True)  # spare targets, which repeat a row, have no gradient
    target_of, is_target = np.zeros(len(STREAMS) * count, np.int64), np.zeros(len(STREAMS) * count, np.bool_)
    target_of[numbers], is_target[numbers] = first, True
    found = {
        "there": np.stack([arrays["there", name] for name in STREAMS]),
        "target_rows": target_rows,
        "target_of": target_of,
        "is_target": is_target,
    }
    if count < batch:
        found["sample_of"] = np.concatenate([s * batch + arrays["rows", name] for s, name in enumerate(STREAMS)])
        found["row_of"] = np.concatenate([s * count + arrays["slots", name] for s, name in enumerate(STREAMS)])
        found["real"] = np.concatenate([arrays["real", name] for name in STREAMS])
    return found


def rounded_up(count: int, batch: int, parts: int) -> int:
    """Round a number of rows up to a multiple of a fraction of the batch, so that few different shapes occur.

    Args:
        count: Number of rows that are needed, 0 … batch.
        batch: Batch size B.
        parts: Denominator of the fraction, at least 1. For example, 4 gives multiples of a quarter of the batch.

    Returns:
        The smallest multiple of ceil(batch / parts) that is at least `count`, limited to `batch`.
    """
    step = -(-batch // parts)
    return min(batch, -(-count // step) * step)


def _filled(rows: I64, count: int) -> I64:
    """Pad indices (R,) of rows to the shape (count,) by repeating the first index."""
    return np.concatenate([rows, np.full(count - len(rows), rows[0])])


def _by_kind(
    arrays: Mapping[tuple[str, str], npt.NDArray[Any]], device: torch.device
) -> Callable[[str], dict[str, Tensor]]:
    """Move arrays to a device, and make all arrays of one field accessible by stream.

    Args:
        arrays: Arrays by (field, stream), such as ("targets", "audio").
        device: The device.

    Returns:
        Function that takes the name of a field, and returns the field's tensors by stream.
    """
    moved = on_device(arrays, device)
    return lambda kind: {name: tensor for (its, name), tensor in moved.items() if its == kind}


def on_device(arrays: Mapping[Key, npt.NDArray[Any]], device: torch.device) -> dict[Key, Tensor]:
    """Move arrays to a device with one transfer for each data type, without waiting for the device.

    Args:
        arrays: Arrays of any shape, by name.
        device: The device.

    Returns:
        The tensors by name.
    """
    found: dict[Key, Tensor] = {}
    for dtype in dict.fromkeys(array.dtype for array in arrays.values()):
        own = {name: array for name, array in arrays.items() if array.dtype == dtype}
        flat = torch.from_numpy(np.concatenate([array.reshape(-1) for array in own.values()]))
        if device.type == "cuda":
            flat = flat.pin_memory()
        parts = torch.split(flat.to(device, non_blocking=True), [array.size for array in own.values()])
        found |= {name: part.view(array.shape) for (name, array), part in zip(own.items(), parts, strict=True)}
    return found
