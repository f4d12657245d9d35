"""The saved position tables: what they are tables of, and that they are nothing else, so that they need not be kept."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from omniges.errors import DataError
from omniges.model.latents import line_embedding
from omniges.pretrained.omniflow.parameter_names import Anatomy, SourceStream, tables
from omniges.pretrained.omniflow.tensors import Tensors

__all__ = ["read_base", "read_tables"]

_LEAST_TOLERANCE: Final = 2e-5  # of a table that was computed in float32


def read_tables(anatomy: Anatomy, source: Tensors) -> tuple[dict[str, int], dict[str, str]]:
    """The base of each saved table, and why it can be left out.

    A table of side S and base B has the coordinate i · B / S at index i of both axes; S is its shape's, B is read from
    its values, all of which are then compared. Raises `DataError` for a table of anything else.
    """
    bases: dict[str, int] = {}
    reasons: dict[str, str] = {}
    for name in tables(anatomy):
        stream: SourceStream = "image" if name.startswith("pos_embed") else "audio"
        saved = _saved(name, anatomy, source)
        side = len(saved)
        bases[stream] = _base(saved, f"{source.where}: {name}")
        off = max(_difference(saved, row, bases[stream]) for row in range(side))
        if not off <= max(_LEAST_TOLERANCE, torch.finfo(saved.dtype).eps):
            raise DataError(
                f"{source.where}: {name} is not the table of sines of side {side} and base {bases[stream]}, from which "
                f"it differs by up to {off:.2g}; download it again"
            )
        reasons[name] = f"computed from side {side} and base {bases[stream]}; differs by at most {off:.1g}"
    return bases, reasons


def read_base(anatomy: Anatomy, source: Tensors, stream: SourceStream) -> int:
    """The base of one stream's saved table, of which no more is looked at than that takes."""
    name = f"{'pos_embed' if stream == 'image' else 'audio_embedder'}.pos_embed"
    return _base(_saved(name, anatomy, source), f"{source.where}: {name}")


def _saved(name: str, anatomy: Anatomy, source: Tensors) -> Tensor:
    """A saved table (side, side, W)."""
    side = (anatomy.image if name.startswith("pos_embed") else anatomy.audio).table_side
    return source.read(name).reshape(side, side, anatomy.width)


def _base(saved: Tensor, where: str) -> int:
    """From the angle of the second column's slowest-turning pair, and the neighbours of what it says."""
    side, _, width = saved.shape
    if side < 2 or width % 4:
        raise DataError(f"{where}: a table of at least 2 × 2 and a width of whole quarters expected")
    sine, cosine = float(saved[0, 1, 0]), float(saved[0, 1, width // 4])
    near = round(math.atan2(sine, cosine) * side) if math.isfinite(sine + cosine) else 0
    return min(range(max(1, near - 2), max(1, near) + 3), key=lambda base: _difference(saved, 0, base))


def _difference(saved: Tensor, row: int, base: int) -> float:
    """The largest difference of a row (side, W) of a table from what it should be; infinite where it is no number."""
    side, _, width = saved.shape
    coordinates = torch.arange(side, dtype=torch.float64) * (base / side)
    axis = line_embedding(coordinates, width // 2)
    expected = torch.cat([axis, axis[row].expand(side, -1)], dim=-1)
    found = float((saved[row].double() - expected).abs().max())
    return found if math.isfinite(found) else math.inf
