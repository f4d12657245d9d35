"""GestureLSM's RVQ-VAE files: every size is read from the tensors, and every tensor has its place or is an error."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from omniges.codecs.gesture_rvqvae.network import Rvqvae, RvqvaeSpec
from omniges.errors import DataError, UsageFault
from omniges.storage.tensors import read_tensors, require_finite, require_same, shapes_of

ENTRY: Final = "net"
"""What a published file keeps its tensors under."""

_FIRST: Final = "encoder.model.0.weight"
_DOWN: Final = "encoder.model.2.0.weight"
_CODEBOOK: Final = "quantizer.layers.0.codebook"
_OTHER: Final = "choose a file of GestureLSM's RVQ-VAE, or download it again"


def load_rvqvae(path: Path) -> Rvqvae:
    """A frozen net on the host, from a ``.safetensors`` file or from ``{"net": tensors}`` as torch.save wrote it.

    Raises UsageFault where there is no such file, DataError where it is damaged or not exactly such a net.
    """
    if not path.is_file():
        raise UsageFault(f"{path}: no such file; expected the tensors of an RVQ-VAE")
    return rvqvae_of(read_tensors(path, ENTRY), str(path))


def rvqvae_of(tensors: Mapping[str, Tensor], where: str) -> Rvqvae:
    """The net that tensors are, in float32; raises DataError where one is missing, too much or not as it should be."""
    with torch.device("meta"):
        net = Rvqvae(spec_of(tensors, where))
    expected = net.state_dict()
    require_same(shapes_of(expected), shapes_of(tensors), where, f"expected the tensors of one RVQ-VAE: {_OTHER}")
    for name, tensor in tensors.items():
        require_finite(name, tensor, where)
    net.load_state_dict({name: tensors[name].float().contiguous() for name in expected}, assign=True)
    return net


def spec_of(tensors: Mapping[str, Tensor], where: str) -> RvqvaeSpec:
    """The sizes that tensors tell; raises DataError where they do not tell them."""
    width, channels, _ = _shape(tensors, _FIRST, 3, where)
    _, _, kernel = _shape(tensors, _DOWN, 3, where)
    if kernel != 4:
        raise DataError(
            f"{where}: {_DOWN} has a kernel of {kernel}; expected 4: only nets of stride 2 can be decoded, {_OTHER}"
        )
    codes, code_size = _shape(tensors, _CODEBOOK, 2, where)
    return RvqvaeSpec(
        channels=channels,
        width=width,
        code_size=code_size,
        codes=codes,
        quantizers=_count(tensors, r"quantizer\.layers\.(\d+)\."),
        stages=_count(tensors, r"encoder\.model\.(\d+)\.\d+\."),
        depth=_count(tensors, r"encoder\.model\.2\.1\.model\.(\d+)\."),
        projected=any(".embedding_proj." in name for name in tensors),
    )


def _shape(tensors: Mapping[str, Tensor], name: str, axes: int, where: str) -> torch.Size:
    if name not in tensors:
        found = ", ".join(sorted(tensors)[:3])
        raise DataError(f"{where}: no tensor {name}, found {found}, …: {_OTHER}")
    shape = tensors[name].shape
    if len(shape) != axes or 0 in shape:
        raise DataError(f"{where}: {name} has shape {tuple(shape)}; expected {axes} axes, none of them empty: {_OTHER}")
    return shape


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers tensors have at a place of their names; numbers, not the largest, bound the net."""
    return len({found[1] for found in map(re.compile(pattern).match, tensors) if found})
