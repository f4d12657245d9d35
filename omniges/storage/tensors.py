"""Files of named tensors: reading and writing of safetensors files, and reading of ``torch.save`` files.

A safetensors file is written one tensor at a time, under a temporary name. It gets its final name when it is complete.

torch's ``weights_only`` unpickles only tensors and plain containers, so a ``torch.save`` file cannot run a program.
This module adds checks that torch does not make. The checksums of the archive must be correct (files in the format
before torch 1.6 have none). Every tensor must have a name, be dense and lie within the file. A damaged file raises
DataError with a message of one line.
"""

from __future__ import annotations

import errno
import json
import os
import re
import struct
import warnings
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError  # only the class of an error; the module loads nothing
from typing import TYPE_CHECKING, Any, Final, TypeVar

from omniges.errors import DataError, EnvironmentFault, UsageFault, first_of
from omniges.storage.atomic import PendingFile, os_errors
from omniges.storage.files import DOWNLOADED_INSTEAD, open_file

if TYPE_CHECKING:  # importing torch takes seconds, and making shards does not need it
    import torch
    from torch import Tensor

    Kind = tuple[torch.dtype, tuple[int, ...]]


_TYPES: Final = {
    "float32": "F32",
    "float64": "F64",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "uint8": "U8",
    "bool": "BOOL",
    "int16": "I16",
    "int8": "I8",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
_SHOWN: Final = 4
T = TypeVar("T")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> tuple[int, str]:
    """Write tensors to a safetensors file; only one tensor at a time is copied to the CPU.

    Args:
        path: The file.
        tensors: Tensors by name, on any device.

    Returns:
        Size in bytes and sha256 of the file.
    """
    return write_each(path, kinds_of(tensors), lambda name: tensors[name])


def write_each(path: Path, kinds: Mapping[str, Kind], tensor_of: Callable[[str], Tensor]) -> tuple[int, str]:
    """Write a safetensors file; a function computes the tensors one after the other.

    The file consists of the header's length (8 bytes, little endian), a JSON header, and the data.

    Args:
        path: The file.
        kinds: Data type and shape of each tensor, by name.
        tensor_of: Function that returns a tensor by name.

    Returns:
        Size in bytes and sha256 of the file.
    """
    import torch  # noqa: PLC0415 - see above

    header: dict[str, object] = {}
    end = 0
    for name, (dtype, shape) in kinds.items():
        start, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        stored = _TYPES[str(dtype).removeprefix("torch.")]
        header[name] = {"dtype": stored, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with PendingFile(path) as pending:
        pending.write(len(text).to_bytes(8, "little") + text)
        for name, kind in kinds.items():
            tensor = tensor_of(name)
            if (tensor.dtype, tuple(tensor.shape)) != kind:
                raise ValueError(f"{name}: expected {kind}, found {tensor.dtype} {tuple(tensor.shape)}")
            flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            pending.write(flat.cpu().numpy().data)
        return pending.size, pending.sha256


class LazyTensors(Mapping[str, "Tensor"], ABC):
    """A mapping of names to tensors; the data of a tensor is computed or read when it is accessed."""

    @abstractmethod
    def kind(self, name: str) -> Kind:
        """Return a tensor's data type and shape without reading the data."""


class TensorFile(LazyTensors):
    """The tensors of a safetensors file by name; each is read to the CPU when it is accessed."""

    def __init__(self, path: Path) -> None:
        """Read the header; raise DataError if the file is not a valid safetensors file."""
        from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - comes with torch

        opened: Any = safe_open
        self._path = path
        _require_regular(path)
        try:
            self._file = opened(path, framework="pt")
            self._names: dict[str, None] = dict.fromkeys(self._file.keys())
        except (SafetensorError, OSError) as error:
            raise DataError(
                f"{path}: expected a safetensors file, found damage or another file ({error}); download it again, or "
                "choose another file"
            ) from error

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._read(name, lambda: self._file.get_tensor(name))
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _read(self, name: str, read: Callable[[], T]) -> T:
        """Call a function of the library; raise DataError if it cannot read the tensor."""
        from safetensors import SafetensorError  # noqa: PLC0415 - see above

        try:
            return read()
        except (SafetensorError, *_FAULTS, OSError) as error:
            raise DataError(
                f"{self._path}: expected a tensor, found {name!a:.120}, which cannot be read ({_line(error)}); "
                f"{_AGAIN}, or choose another file"
            ) from error

    def kind(self, name: str) -> Kind:
        """Return a tensor's data type and shape from the file's header."""
        import torch  # noqa: PLC0415 - see above

        part = self._read(name, lambda: self._file.get_slice(name))
        stored = part.get_dtype()
        own = next((own for own, other in _TYPES.items() if other == stored), None)
        if own is None:
            raise DataError(
                f"{self._path}: expected one of {', '.join(_TYPES.values())}, found tensor {name!a:.120} of type "
                f"{stored}; choose another file"
            )
        return getattr(torch, own), tuple(part.get_shape())


def _require_regular(path: Path) -> None:
    """Refuse a missing file, a pipe, a device, or a link out of the file's folder, before a library opens the path."""
    try:
        os.close(open_file(path, path.parent))
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: expected weights, found that the file does not exist; {_AGAIN}, or choose another file"
        ) from error


def open_tensors(path: Path) -> Mapping[str, Tensor]:
    """Open the tensors of a ``.safetensors`` or ``torch.save`` file; data is read when it is accessed.

    Args:
        path: The file.

    Returns:
        Tensors by name.

    Raises:
        DataError: The file is damaged or has another format. Or a file with the ending ``.safetensors`` does not exist.
        UsageFault: A file without the ending ``.safetensors`` does not exist.
    """
    return TensorFile(path) if path.suffix == ".safetensors" else read_weights(path, mapped=True)


def read_tensors(path: Path, entry: str | None = None) -> dict[str, Tensor]:
    """Read all tensors of a ``.safetensors`` or ``torch.save`` file into memory.

    Args:
        path: The file.
        entry: Key of the tensors in a ``torch.save`` file, see `read_weights`.

    Returns:
        Tensors by name.
    """
    return dict(TensorFile(path)) if path.suffix == ".safetensors" else read_weights(path, entry)


def kinds_of(tensors: Mapping[str, Tensor]) -> dict[str, Kind]:
    """Return the data type and shape of each tensor by name, without reading the data of `LazyTensors`."""
    if isinstance(tensors, LazyTensors):
        return {name: tensors.kind(name) for name in tensors}
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor by name, without reading the data of `LazyTensors`."""
    return {name: shape for name, (_, shape) in kinds_of(tensors).items()}


def require_same(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str, remedy: str
) -> None:
    """Refuse tensors whose names or shapes are not the expected ones.

    Args:
        expected: Expected shapes by name.
        found: Shapes in the file.
        where: Path of the file, for the error.
        remedy: Last part of the error: what the user can do.

    Raises:
        DataError: A tensor is missing, is unexpected, or has another shape.
    """
    wrong = {
        "missing": [name for name in expected if name not in found],
        "unknown": [repr(name) for name in found if name not in expected],  # names may come from an unknown file
        "of another shape": [
            f"{name} {found[name]} in place of {shape}"
            for name, shape in expected.items()
            if found.get(name, shape) != shape
        ],
    }
    faults = []
    for kind, names in wrong.items():
        if names:
            faults.append(f"{len(names)} {kind} ({first_of(names, _SHOWN)})")
    if faults:
        raise DataError(f"{where}: expected {len(expected)} tensors, found {', '.join(faults)}; {remedy}")


def require_finite(name: str, tensor: Tensor, where: str) -> None:
    """Refuse a weight that is not floating point, or contains NaN or infinite values.

    Args:
        name: Name of the weight.
        tensor: The weight.
        where: Path of the file, for the error.

    Raises:
        DataError: The weight has another data type, or contains NaN or infinite values.
    """
    if not tensor.is_floating_point():
        raise DataError(f"{where}: expected floating point, found {tensor.dtype} in tensor {name}; choose another file")
    if not tensor.isfinite().all():
        raise DataError(f"{where}: expected finite numbers, found NaN or infinite ones in {name}; {_AGAIN}")


_SAFE_SINCE: Final = "2.10"  # in earlier versions a file could corrupt memory despite ``weights_only`` (CVE-2026-24747)
# Errors that torch raises on damaged files; UnicodeDecodeError is a ValueError.
_FAULTS: Final = (
    *(UnpicklingError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError),
    *(EOFError, OverflowError, struct.error),
)
_ZIP_FAULTS: Final = (zipfile.BadZipFile, zlib.error, struct.error, ValueError, LookupError, OverflowError, EOFError)
_ZIP_START: Final = b"PK\x03\x04"
_START_BYTES: Final = 32
_FOLDER: Final = 0x10  # bit in a zip member's attributes that marks a folder
_FORBIDDEN: Final = re.compile(r"GLOBAL (\S+)|<class '([^']+)'>")
_REFUSED: Final = re.compile(r"WeightsUnpickler error:\s+(.+)")
_AGAIN: Final = "download it again"
_SAFE: Final = "save only the state_dict (tensors by name) with torch.save, or save safetensors"


def read_weights(path: Path, entry: str | None = None, *, mapped: bool = False) -> dict[str, Tensor]:
    """Read all tensors of a ``torch.save`` file, to the CPU and without gradients.

    Args:
        path: File that contains a dictionary of tensors by name.
        entry: Key of the dictionary of tensors, if the file contains an outer dictionary; otherwise None.
        mapped: Memory-map the data of a zip archive (the format since torch 1.6) instead of reading it.

    Returns:
        Tensors by name.

    Raises:
        UsageFault: The file does not exist.
        DataError: The file is damaged, or contains something other than dense tensors by name, such as pickled objects.
        EnvironmentFault: This torch is too old to read such files safely.
    """
    return _content(path, entry, dict, mapped=mapped)


def read_weight_list(path: Path, entry: str, *, mapped: bool = False) -> list[Tensor]:
    """Read a list of tensors without names, with the checks of `read_weights`.

    Args:
        path: The file.
        entry: Key of the list in the dictionary that the file contains.
        mapped: Memory-map the data of a zip archive (the format since torch 1.6) instead of reading it.

    Returns:
        Tensors in the order of the list.
    """
    return list(_content(path, entry, list, mapped=mapped).values())


def _content(path: Path, entry: str | None, kind: type, *, mapped: bool) -> dict[str, Tensor]:
    """Load a ``torch.save`` file, check its tensors, and return them by name.

    Without `entry`, the file contains only the tensors. With `entry`, it contains a dictionary, and the tensors are the
    value of its key `entry`. `kind` is the type of object that contains the tensors: dict or list. A tensor in a list
    gets its index as its name: "0", "1", ….
    """
    import torch  # noqa: PLC0415 - see above

    if not os.path.lexists(path):
        raise UsageFault(
            f"{path}: expected weights that torch.save wrote, found that the file does not exist; check the path"
        )
    found, where = _loaded(path, mapped=mapped), str(path)
    if entry is not None:
        if not isinstance(found, dict) or entry not in found:
            raise DataError(
                f"{path}: expected a dictionary with weights under {entry!r}, found {_summary(found)}; choose "
                "another file"
            )
        found, where = found[entry], f"{path}: entry {entry!r}"
    fits = isinstance(found, kind)
    if not fits or not found:
        wanted = "tensors by name" if kind is dict else "a list of tensors"
        raise DataError(f"{where}: expected {wanted}, found {_summary(found)}; {_SAFE}")
    tensors = found if isinstance(found, dict) else {str(number): value for number, value in enumerate(found)}
    for name, value in tensors.items():
        if not isinstance(name, str) or not name.isprintable():
            raise DataError(f"{where}: expected tensors by name, found the key {repr(name)[:80]}; {_SAFE}")
        if not isinstance(value, torch.Tensor):
            raise DataError(f"{where}: expected a tensor, found {name[:80]} {_summary(value)}; {_SAFE}")
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            kept = "quantised" if value.is_quantized else f"{value.layout} on {value.device.type}"
            raise DataError(f"{where}: expected a plain, dense tensor, found {name[:80]} {kept}; {_SAFE}")
    size = path.stat().st_size  # strides and storages may claim more bytes than the file has
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors.values()}
    if sum(storages.values()) > size:
        raise DataError(
            f"{where}: expected at most {size} bytes of tensors, the size of the file, found "
            f"{sum(storages.values())}; {_AGAIN}"
        )
    for name, tensor in tensors.items():
        if tensor.nbytes > size:
            raise DataError(
                f"{where}: expected at most {size} bytes, the size of the file, found {tensor.nbytes} of {name}; "
                f"{_AGAIN}"
            )
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _require_complete_archive(path: Path) -> None:
    """Check a zip archive's directory and checksums, because torch does not check them."""
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED:
                    name = info.filename[:80]
                    raise DataError(
                        f"{path}: expected a file of torch.save, not TorchScript, found {name!r} compressed; {_SAFE}"
                    )
                if info.external_attr & _FOLDER:  # torch would read nothing and return uninitialized memory
                    raise DataError(
                        f"{path}: expected files in the archive, found {info.filename[:80]!r} marked as a folder; "
                        f"{_AGAIN}"
                    )
            damaged = archive.testzip()
    except (*_ZIP_FAULTS, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path}: expected a complete archive, found damage ({_line(error)}); {_AGAIN}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: an offset before the start of the file
            raise
        raise DataError(f"{path}: expected offsets inside the archive, found damage; {_AGAIN}") from error
    if damaged is not None:
        raise DataError(f"{path}: expected the checksum of {damaged[:80]!r} to fit, found damage; {_AGAIN}")


def _loaded(path: Path, *, mapped: bool) -> Any:
    """Load a file with torch; check the directory and checksums of a zip archive first."""
    import torch  # noqa: PLC0415 - see above

    if torch.__version__ < _SAFE_SINCE:
        raise EnvironmentFault(
            f"{path}: expected torch {_SAFE_SINCE} or newer to read such files safely, found {torch.__version__}; "
            "update torch, or save the weights as safetensors"
        )
    with os_errors(path, "read"), warnings.catch_warnings():
        with open(open_file(path, path.parent), "rb") as file:
            start = file.read(_START_BYTES)
        for sign, found in DOWNLOADED_INSTEAD:
            if start.startswith(sign):
                raise DataError(f"{path}: expected a file of torch.save, found {found}; {_AGAIN}")
        archive = start.startswith(_ZIP_START)
        if archive:
            _require_complete_archive(path)
        warnings.simplefilter("ignore", UserWarning)  # unusual pickle protocols and TorchScript; loading then fails
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and archive)
        except _FAULTS as error:
            forbidden = _FORBIDDEN.search(str(error))
            if isinstance(error, UnpicklingError) and forbidden:
                name = forbidden[1] or forbidden[2]
                raise DataError(
                    f"{path}: expected tensors only, found a pickled Python object ({name}), which is never loaded; "
                    f"{_SAFE}"
                ) from error
            refused = _REFUSED.search(str(error))  # the message begins with advice to unpickle the file
            reason = _line(error) if refused is None else refused[1][:160]
            raise DataError(
                f"{path}: expected a file of torch.save, found damage or another file ({reason}); {_AGAIN}, or {_SAFE}"
            ) from error


def _summary(value: object) -> str:
    """Describe a value in a few words."""
    if isinstance(value, dict):
        names = ", ".join(repr(name)[:60] for name in list(value)[:4])
        return f"a dictionary of {names or 'nothing'}" + (", …" if len(value) > 4 else "")
    kind = type(value).__name__
    return "a tensor" if kind == "Tensor" else f"an object of type {kind}"


def _line(error: Exception) -> str:
    """Return the first line of an exception's message."""
    return next(iter(str(error).splitlines()), "")[:160] or type(error).__name__
