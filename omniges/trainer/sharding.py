"""Fully sharded training: each rank stores some rows of every parameter, gradient, optimizer moment and EMA weight.

FSDP2 gathers the parameters of a block only while that block is computed. Between steps a rank has only its rows of
each tensor, as DTensors. Elementwise operations (clipping, EMA) use the local rows. The first rank writes checkpoints:
it gathers one complete tensor at a time, so that the files do not depend on the sharding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from omniges.errors import EnvironmentFault
from omniges.model.flow import FlowModel
from omniges.storage.tensors import LazyTensors, kinds_of
from omniges.trainer.distributed import Ranks

_END: Final = -1
"""Number that the first rank announces after the last tensor."""


def shard_model(model: FlowModel, device: torch.device, *, bf16: bool) -> None:
    """Shard a model's parameters over all ranks: each block is one FSDP unit, and all other parameters form another.

    If `bf16` is True, the parameters of a block are gathered in bf16, because autocast computes linear layers in bf16.
    Other parameters are gathered in float32. Gradients are summed in float32.

    Args:
        model: Model with complete parameters, equal on all ranks; they become DTensors on the device.
        device: Device of this rank.
        bf16: True if forward and backward passes use autocast to bf16.

    Raises:
        EnvironmentFault: The installed torch cannot reduce gradients that only some ranks have.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    plain = MixedPrecisionPolicy(cast_forward_inputs=False)
    halved = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False) if bf16 else plain
    for block in model.trunk.blocks:
        fully_shard(block, mesh=mesh, mp_policy=halved)
    root: Any = fully_shard(model, mesh=mesh, mp_policy=plain)
    if not hasattr(root, "set_reduce_scatter_unused_params"):
        raise EnvironmentFault(
            f"--sharding full: expected torch 2.13 or newer, found {torch.__version__}; install a newer torch"
        )
    # Ranks draw different tasks, so a parameter may have a gradient on some of them only.
    root.set_reduce_scatter_unused_params(True)
    model.connects_all = False


def skeleton_of(model: FlowModel, *, empty: bool) -> FlowModel:
    """Return a copy of a model's modules and buffers, without a copy of the parameters.

    Args:
        model: The model.
        empty: If True, parameters of the copy have shapes but no data. If False, the copy shares the parameters of the
            model.

    Returns:
        The copy.
    """
    kept: dict[int, Any] = {id(p): p for p in model.parameters()}
    if empty:
        kept = {key: nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for key, p in kept.items()}
    return copy.deepcopy(model, kept)


def local(tensor: Tensor) -> Tensor:
    """Return the tensor itself, or, if it is sharded over ranks, a view of the rows that this rank stores."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return a complete tensor, gathered from all ranks if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def norm_of_all(norm: Tensor) -> Tensor:
    """Compute the norm of a vector whose values are divided over all ranks.

    `norm` is a scalar: the norm of the values on this rank. The result is the square root of the sum of the squared
    norms of all ranks. All ranks must call this function together, and all get the same scalar.
    """
    squared = norm.square()
    dist.all_reduce(squared)
    return squared.sqrt()


def copy_rows(own: Iterable[Tensor], whole: Iterable[Tensor]) -> None:
    """Copy complete tensors into sharded or complete tensors; every rank passes all tensors and copies its own rows.

    Args:
        own: Tensors to overwrite.
        whole: Complete tensors of the same shapes.
    """
    for tensor, values in zip(own, whole, strict=True):
        _put(tensor, values, source=None)


@torch.no_grad()
def _put(own: Tensor, values: Tensor, *, source: int | None) -> None:
    """Copy complete values into a tensor. Rank `source` sends the values; None: each rank uses its own values."""
    values = values.to(own.device, own.dtype)
    if isinstance(own, DTensor):
        own.copy_(distribute_tensor(values, own.device_mesh, own.placements, src_data_rank=source))
        return
    if source is not None:
        dist.broadcast(values, source)
    own.copy_(values)


def receive(slots: Sequence[Tensor], values: Iterable[Tensor], ranks: Ranks) -> None:
    """Copy tensors of the first rank into the tensors of all ranks, one at a time.

    Args:
        slots: Tensors to overwrite, in the same order on all ranks; sharded or complete.
        values: Complete tensors of the same shapes; only the first rank iterates over them.
        ranks: Ranks of the run; all of them call this.
    """
    if ranks.world_size == 1:
        copy_rows(slots, values)
        return
    if not ranks.first:
        for number in _announced(ranks):
            _put(slots[number], torch.empty(slots[number].shape, device=slots[number].device), source=0)
        return
    try:
        for number, (slot, tensor) in enumerate(zip(slots, values, strict=True)):
            ranks.largest(number)  # announced only after reading, which may fail
            _put(slot, tensor, source=0)
    finally:
        ranks.largest(_END)


def _announced(ranks: Ranks) -> Iterator[int]:
    """Yield the indices of tensors that the first rank announces, one at a time, until it announces the end.

    After each index, all ranks take part in copying or gathering the tensor with this index.
    """
    while (number := ranks.largest(_END)) != _END:
        yield number


class _Gathered(LazyTensors):
    """Complete tensors of a file, by name, on the first rank. Access to a tensor gathers its rows from all ranks."""

    def __init__(self, tensors: Mapping[str, Tensor], first: int, ranks: Ranks) -> None:
        self._tensors, self._ranks = tensors, ranks
        self._numbers = {name: first + k for k, name in enumerate(tensors)}

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        if not isinstance(tensor, DTensor):
            return tensor
        self._ranks.largest(self._numbers[name])
        return tensor.full_tensor()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def kind(self, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Return a tensor's type and complete shape, without gathering it."""
        return kinds_of({name: self._tensors[name]})[name]


@contextmanager
def gathered(files: Mapping[str, Mapping[str, Tensor]], ranks: Ranks) -> Iterator[Mapping[str, Mapping[str, Tensor]]]:
    """Let the first rank read complete tensors; each tensor is gathered from all ranks when it is accessed.

    The other ranks send their rows until the first rank leaves its ``with`` block, either normally or with an error.
    Only then, the other ranks enter their ``with`` blocks.

    Args:
        files: Sharded tensors by file and name.
        ranks: Ranks of the run; all of them call this.

    Yields:
        On the first rank, complete tensors by file and name; on the other ranks, `files` unchanged.
    """
    if not ranks.first:
        tensors = [tensor for own in files.values() for tensor in own.values()]
        for number in _announced(ranks):
            tensors[number].full_tensor()  # type: ignore[attr-defined]
        yield files
        return
    found, first = {}, 0
    for name, own in files.items():
        found[name] = _Gathered(own, first, ranks)
        first += len(own)
    try:
        yield found
    finally:
        ranks.largest(_END)
