"""Read tensors by name, one at a time, from files of other projects.

A file has the format of safetensors or of torch.save. The tensors of a model may be split over several files. An index
file then lists these files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from omniges.errors import DataError, UsageFault
from omniges.storage.atomic import os_errors
from omniges.storage.files import file_sha256, read_settings
from omniges.storage.tensors import kinds_of, open_tensors

_STEM: Final = "diffusion_pytorch_model"
_AVERAGE: Final = "ema_transformer.pt"
_TYPES: Final = {torch.float32, torch.float16, torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Tensors:
    """Tensors by name, which are read one at a time from one or more files."""

    where: str
    files: tuple[Path, ...]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    read: Callable[[str], Tensor]
    """Function that reads one tensor by name, to the CPU."""


@dataclass(frozen=True, slots=True)
class OmniFlowFolder:
    """Files of an OmniFlow checkpoint that belong to its transformer."""

    config: Mapping[str, Any]
    config_file: Path
    weights: tuple[Path, ...]
    average: Path | None
    """File of the EMA weights, if there is one."""


def is_omniflow(folder: Path) -> bool:
    """Return whether a folder contains weights of OmniFlow, as a complete checkpoint or as its transformer alone."""
    return any(_weight_files(place) for place in (folder / "transformer", folder))


def find_omniflow(folder: Path) -> OmniFlowFolder:
    """Find the transformer's files in an OmniFlow folder or in its subfolder ``transformer``.

    Args:
        folder: The OmniFlow folder or its subfolder.

    Returns:
        The config, and the files of weights and EMA weights.

    Raises:
        UsageFault: The folder has no weights.
        DataError: The config or an index is damaged, or a file that the index lists is missing.
    """
    for place in (folder / "transformer", folder):
        weights = _weight_files(place)
        if weights:
            file = place / "config.json"
            average = next((path for path in (place / _AVERAGE, folder / _AVERAGE) if path.is_file()), None)
            return OmniFlowFolder(read_json(file), file, weights, average)
    raise UsageFault(
        f"{folder}: expected an OmniFlow folder with transformer/config.json and transformer/{_STEM}.bin or "
        ".safetensors, found none; check the path"
    )


def _weight_files(place: Path) -> tuple[Path, ...]:
    """Return the files of the weights in a folder; an empty tuple if the folder has no weights.

    If the folder has files of both formats, safetensors and torch.save, only the safetensors files are returned.
    """
    for kind in ("safetensors", "bin"):
        complete, index = place / f"{_STEM}.{kind}", place / f"{_STEM}.{kind}.index.json"
        if os.path.lexists(complete):
            return (complete,)
        if os.path.lexists(index):
            return _parts(index)
    return ()


def _parts(index: Path) -> tuple[Path, ...]:
    """Return the weight files that an index lists; raise DataError if one of them is not in the folder of the index."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise DataError(f"{index}: expected a weight_map of tensors and files, found something else; download it again")
    parts = sorted(set(names.values()))
    for name in parts:
        if Path(name).name != name:
            raise DataError(f"{index}: expected names of files beside it, found {name!r}; download it again")
        if not (index.parent / name).is_file():
            raise DataError(
                f"{index.parent / name}: expected this file, which the index names, found none; download it again"
            )
    return tuple(index.parent / name for name in parts)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; raise `DataError` for any other content."""
    return read_settings(path, "download the complete folder again", path.parent)


def file_entry(path: Path) -> dict[str, Any]:
    """Return the size of a file and its digest as a dictionary of ``bytes`` and ``sha256``."""
    with os_errors(path, "read"):
        return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def open_parts(paths: tuple[Path, ...]) -> Tensors:
    """Open the tensors of a model.

    Args:
        paths: The file that contains the tensors, or all files over which they are split.

    Returns:
        The tensors by name, in the order of the files.

    Raises:
        DataError: A file is incomplete, a name occurs twice, or a tensor is not float32, float16 or bfloat16.
    """
    owner: dict[str, tuple[Path, Mapping[str, Tensor]]] = {}
    kinds: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for path in paths:
        part = open_tensors(path)
        for name, kind in kinds_of(part).items():
            if name in owner:
                raise DataError(
                    f"{path}: expected each tensor in one file, found {name} in {owner[name][0]} too; download both "
                    "files again"
                )
            if kind[0] not in _TYPES:
                raise DataError(
                    f"{path}: {name}: expected float32, float16 or bfloat16, found {kind[0]}; download it again"
                )
            owner[name], kinds[name] = (path, part), kind
    return Tensors(
        where=str(paths[0] if len(paths) == 1 else paths[0].parent),
        files=paths,
        shapes={name: shape for name, (_, shape) in kinds.items()},
        dtypes={name: dtype for name, (dtype, _) in kinds.items()},
        read=lambda name: owner[name][1][name],
    )
