"""Tensors by name in a safetensors file, written one tensor at a time and published whole.

Tensors by name from files that ``torch.save`` wrote: the one place where such a file is read.

Nothing is unpickled but tensors and plain containers (torch's ``weights_only``), so a file cannot run a program. What
else can be wrong with one is an error of one line here. The checksums of the archive are compared, which torch does not
do; files in the format before torch 1.6 are no archives and have none. Own files are safetensors, see
`omniges.storage.tensors`.
"""

from __future__ import annotations

import errno
import json
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError  # the name of an error; nothing is loaded with that module
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from omniges.errors import DataError, EnvironmentFault, UsageFault
from omniges.storage.atomic import PendingFile, os_errors

__all__ = [
    "TensorFile",
    "open_tensors",
    "read_tensors",
    "read_weight_list",
    "read_weights",
    "write_each",
    "write_tensors",
]

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


_SAFE_SINCE: Final = "2.10"  # before, a file could damage memory through the restricted reader (CVE-2026-24747)
# What torch raises on damaged files; UnicodeDecodeError is a ValueError.
_FAULTS: Final = (
    *(UnpicklingError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError),
    *(EOFError, OverflowError, struct.error),
)
_ZIP_FAULTS: Final = (zipfile.BadZipFile, zlib.error, struct.error, ValueError, LookupError, OverflowError, EOFError)
_ZIP_START: Final = b"PK\x03\x04"
_FOLDER: Final = 0x10  # of a member's attributes
_FORBIDDEN: Final = re.compile(r"GLOBAL (\S+)|<class '([^']+)'>")
_AGAIN: Final = "download it again"
_SAFE: Final = "save its state_dict alone, as tensors by name, or as safetensors"


def read_weights(path: Path, entry: str | None = None, *, mapped: bool = False) -> dict[str, Tensor]:
    """All tensors of a file of ``torch.save``, on the host and without gradients.

    Args:
        path: a file that holds a dictionary of tensors by name.
        entry: where given, the file holds a dictionary of several things and the tensors are in this one.
        mapped: whether an archive's data stays in the file, from where what is looked at is read.

    Raises UsageFault where there is no such file, DataError where it is damaged, holds pickled objects, or anything
    but dense tensors by name, EnvironmentFault where this torch is too old to read files of others safely.
    """
    loaded, where = _content(path, entry, mapped=mapped)
    if not isinstance(loaded, dict) or not loaded:
        raise DataError(f"{where}: found {_summary(loaded)}; expected tensors by name: {_SAFE}")
    return _checked(where, loaded, path.stat().st_size)


def read_weight_list(path: Path, entry: str, *, mapped: bool = False) -> list[Tensor]:
    """As `read_weights`, of a file whose entry is a list of tensors without names."""
    loaded, where = _content(path, entry, mapped=mapped)
    if not isinstance(loaded, list) or not loaded:
        raise DataError(f"{where}: found {_summary(loaded)}; expected a list of tensors: {_SAFE}")
    numbered = {str(number): value for number, value in enumerate(loaded)}
    return list(_checked(where, numbered, path.stat().st_size).values())


def _content(path: Path, entry: str | None, *, mapped: bool) -> tuple[Any, str]:
    """What a file holds, or an entry of it, and how to call it."""
    if torch.__version__ < _SAFE_SINCE:
        raise EnvironmentFault(
            f"{path}: torch {torch.__version__} does not read such files safely; expected {_SAFE_SINCE} or newer: "
            "update it, or save the weights as safetensors"
        )
    if not path.is_file():
        raise UsageFault(f"{path}: no such file; expected weights that torch.save wrote")
    with os_errors(path, "read"), path.open("rb") as file:
        start = file.read(len(_ZIP_START))
        if start == _ZIP_START:
            _require_whole(path)
    loaded = _loaded(path, mapped=mapped and start == _ZIP_START)
    if entry is None:
        return loaded, str(path)
    if not isinstance(loaded, dict) or entry not in loaded:
        raise DataError(f"{path}: found {_summary(loaded)}; expected a dictionary with weights under {entry!r}")
    return loaded[entry], f"{path}: entry {entry!r}"


def _checked(where: str, tensors: dict[str, Any], size: int) -> dict[str, Tensor]:
    """Tensors that are dense and held by a file of a size."""
    for name, value in tensors.items():
        _require_dense(where, name, value)
    _require_held(where, tensors, size)
    return {name: value.detach() for name, value in tensors.items()}


def _require_whole(path: Path) -> None:
    """Check the archive's directory and checksums, which torch does not."""
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED:
                    name = info.filename[:80]
                    raise DataError(f"{path}: {name!r} is compressed; expected torch.save's own file, no TorchScript")
                if info.external_attr & _FOLDER:  # torch would read nothing and give whatever was in memory
                    raise DataError(f"{path}: damaged, {info.filename[:80]!r} is marked as a folder: {_AGAIN}")
            damaged = archive.testzip()
    except (*_ZIP_FAULTS, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path}: cut off or damaged ({_line(error)}): {_AGAIN}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the file's beginning
            raise
        raise DataError(f"{path}: damaged, its directory points out of it: {_AGAIN}") from error
    if damaged is not None:
        raise DataError(f"{path}: damaged, the checksum of {damaged[:80]!r} is wrong: {_AGAIN}")


def _loaded(path: Path, *, mapped: bool) -> Any:
    with os_errors(path, "read"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # odd protocols and TorchScript, which then fail
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except _FAULTS as error:
            found = _FORBIDDEN.search(str(error))
            if isinstance(error, UnpicklingError) and found:
                raise DataError(
                    f"{path}: holds a pickled Python object ({found[1] or found[2]}), which is never loaded; {_SAFE}"
                ) from error
            raise DataError(
                f"{path}: no file of torch.save, or damaged ({_line(error)}): {_AGAIN}, or {_SAFE}"
            ) from error


def _require_dense(where: str, name: object, value: object) -> None:
    if not isinstance(name, str) or not name.isprintable():
        raise DataError(f"{where}: found the key {repr(name)[:80]}; expected tensors by name: {_SAFE}")
    if not isinstance(value, Tensor):
        raise DataError(f"{where}: {name[:80]} is {_summary(value)}; expected a tensor: {_SAFE}")
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        found = "quantised" if value.is_quantized else f"{value.layout} on {value.device.type}"
        raise DataError(f"{where}: {name[:80]} is {found}; expected a plain, dense tensor: {_SAFE}")


def _require_held(where: str, tensors: dict[str, Tensor], size: int) -> None:
    """Refuse tensors that claim more bytes than the file has, by strides or storages it does not hold."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors.values()}
    if sum(storages.values()) > size:
        raise DataError(f"{where}: {sum(storages.values())} bytes of tensors in a file of {size}: {_AGAIN}")
    for name, tensor in tensors.items():
        if tensor.nbytes > size:
            raise DataError(f"{where}: {name} claims {tensor.nbytes} bytes, the file has {size}: {_AGAIN}")


def _summary(value: object) -> str:
    """What a value is, in a few words."""
    if isinstance(value, dict):
        names = ", ".join(repr(name)[:60] for name in list(value)[:4])
        return f"a dictionary of {names or 'nothing'}" + (", …" if len(value) > 4 else "")
    return "a tensor" if isinstance(value, Tensor) else f"an object of type {type(value).__name__}"


def _line(error: Exception) -> str:
    """An exception's first line."""
    return next(iter(str(error).splitlines()), "")[:160] or type(error).__name__
