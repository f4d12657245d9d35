"""Tensors of foreign files by name: safetensors or torch's own format, whole or in parts, read one at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from omniges.errors import DataError, UsageFault
from omniges.storage.atomic import os_errors
from omniges.storage.tensors import read_weights

__all__ = [
    "OmniFlowFolder",
    "Tensors",
    "file_entry",
    "find_omniflow",
    "is_omniflow",
    "open_tensors",
    "read_json",
    "tensors_in",
]

_STEM: Final = "diffusion_pytorch_model"
_AVERAGE: Final = "ema_transformer.pt"
_TYPES: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Tensors:
    """Tensors by name, in the order of their files."""

    where: str
    files: tuple[Path, ...]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    read: Callable[[str], Tensor]
    """One of them, on the host."""


@dataclass(frozen=True, slots=True)
class OmniFlowFolder:
    """Where the parts of an OmniFlow checkpoint that concern the transformer lie."""

    path: Path
    config: Mapping[str, Any]
    config_file: Path
    weights: tuple[Path, ...]
    average: Path | None


def is_omniflow(folder: Path) -> bool:
    """Whether a folder looks like OmniFlow's, or like its transformer's own."""
    return any(_weight_files(place) for place in (folder / "transformer", folder))


def find_omniflow(folder: Path) -> OmniFlowFolder:
    """The transformer's files in an OmniFlow folder, or in the folder ``transformer`` of one.

    Raises `UsageFault` where there are none, `DataError` where they cannot be what they should be.
    """
    for place in (folder / "transformer", folder):
        weights = _weight_files(place)
        if weights:
            file = place / "config.json"
            average = next((path for path in (place / _AVERAGE, folder / _AVERAGE) if path.is_file()), None)
            return OmniFlowFolder(folder, read_json(file), file, weights, average)
    raise UsageFault(
        f"{folder}: an OmniFlow folder with transformer/config.json and transformer/{_STEM}.bin or .safetensors "
        "expected, found none"
    )


def _weight_files(place: Path) -> tuple[Path, ...]:
    """The files of weights in a folder, safetensors before pickles; none: there are none."""
    for kind in ("safetensors", "bin"):
        whole, index = place / f"{_STEM}.{kind}", place / f"{_STEM}.{kind}.index.json"
        if whole.is_file():
            return (whole,)
        if index.is_file():
            return _parts(index)
    return ()


def _parts(index: Path) -> tuple[Path, ...]:
    """The parts that an index names, all of them beside it."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise DataError(f"{index}: a weight_map of tensors and files expected; download it again")
    parts = sorted(set(names.values()))
    for name in parts:
        if Path(name).name != name:
            raise DataError(f"{index}: it names {name!r}; names of files beside it expected; download it again")
        if not (index.parent / name).is_file():
            raise DataError(f"{index.parent / name}: the index names it and it is not there; download it again")
    return tuple(index.parent / name for name in parts)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises `DataError` for anything else."""
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; a whole folder expected; download it again") from error
    except ValueError as error:
        raise DataError(f"{path}: no JSON document ({error}); download it again") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: a JSON object expected, found {type(found).__name__}; download it again")
    return found


def file_entry(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file, as lists of files have them."""
    with os_errors(path, "read"), path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"bytes": stream.tell(), "sha256": digest}


def open_tensors(paths: tuple[Path, ...]) -> Tensors:
    """Tensors of one file or of all its parts; raises `DataError` where one is not whole or a name comes twice."""
    opened = [_open_pickle(path) if path.suffix == ".bin" else _open_safetensors(path) for path in paths]
    owner: dict[str, Tensors] = {}
    for part in opened:
        for name in part.shapes:
            if name in owner:
                raise DataError(f"{part.where}: {name} is in {owner[name].where} too; download both again")
            owner[name] = part
    return Tensors(
        where=str(paths[0] if len(paths) == 1 else paths[0].parent),
        files=paths,
        shapes={name: part.shapes[name] for name, part in owner.items()},
        dtypes={name: part.dtypes[name] for name, part in owner.items()},
        read=lambda name: owner[name].read(name),
    )


def tensors_in(found: Mapping[str, Tensor], where: str) -> Tensors:
    """Tensors that are in memory already."""
    return Tensors(
        where,
        (),
        {name: tuple(tensor.shape) for name, tensor in found.items()},
        {name: tensor.dtype for name, tensor in found.items()},
        lambda name: found[name],
    )


def _open_pickle(path: Path) -> Tensors:
    found = read_weights(path, mapped=True)
    for name, value in found.items():
        if value.dtype not in _TYPES.values():
            raise DataError(f"{path}: {name}: float32, float16 or bfloat16 expected, found {value.dtype}")
    own = tensors_in(found, str(path))
    return Tensors(own.where, (path,), own.shapes, own.dtypes, own.read)


def _open_safetensors(path: Path) -> Tensors:
    shapes, dtypes = {}, {}
    try:
        file: Any = safe_open(path, framework="pt")
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            part = file.get_slice(name)
            if part.get_dtype() not in _TYPES:
                raise DataError(f"{path}: {name}: float32, float16 or bfloat16 expected, found {part.get_dtype()}")
            shapes[name], dtypes[name] = tuple(part.get_shape()), _TYPES[part.get_dtype()]
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not a whole safetensors file ({error}); download it again") from error

    def read(name: str) -> Tensor:
        tensor: Tensor = file.get_tensor(name)
        return tensor

    return Tensors(str(path), (path,), shapes, dtypes, read)
