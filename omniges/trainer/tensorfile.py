"""Tensors by name in a safetensors file, written one tensor at a time and published whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from omniges.errors import DataError
from omniges.publish import PendingFile

__all__ = ["TensorFile", "open_tensors", "read_tensors", "write_each", "write_tensors"]

_TYPES: Final = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    """Write tensors on any device; returns the file's size in bytes and the sha256 of what was written.

    Only one tensor at a time is copied to the host.
    """
    kinds = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    return write_each(path, kinds, lambda name: tensors[name])


def write_each(
    path: Path, kinds: Mapping[str, tuple[torch.dtype, Sequence[int]]], tensor_of: Callable[[str], Tensor]
) -> tuple[int, str]:
    """Write tensors that are made one after the other, each of the kind (type, shape) said before.

    The layout is that of safetensors: the header's length (8 bytes, little endian), a JSON header, the data.
    """
    header: dict[str, object] = {}
    end = 0
    for name, (dtype, shape) in kinds.items():
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": _TYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with PendingFile(path) as pending:
        pending.write(len(text).to_bytes(8, "little") + text)
        for name, kind in kinds.items():
            tensor = tensor_of(name)
            if (tensor.dtype, tuple(tensor.shape)) != (kind[0], tuple(kind[1])):
                raise ValueError(f"{name}: {kind} was said, {tensor.dtype} {tuple(tensor.shape)} came")
            flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            pending.write(flat.cpu().numpy().data)
        size, digest = pending.size, pending.sha256
    return size, digest


class TensorFile(Mapping[str, Tensor]):
    """The tensors of an open file whose names begin so, on the host, each read when it is asked for."""

    def __init__(self, file: Any, prefix: str) -> None:
        self._file = file
        self._names = {name: None for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118 - no mapping

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, which the file's header tells."""
        return tuple(self._file.get_slice(name).get_shape())


@contextmanager
def open_tensors(path: Path, prefix: str = "") -> Iterator[TensorFile]:
    """The tensors of a file whose names begin so; raises DataError where it is not such a file."""
    try:
        with safe_open(path, framework="pt") as file:
            yield TensorFile(file, prefix)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not a safetensors file ({error}). Choose another checkpoint") from error


def read_tensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a file whose names begin so, on the host; raises DataError where it is not such a file."""
    with open_tensors(path, prefix) as tensors:
        return dict(tensors)
