"""Additions to OmniFlow's trunk that running it needs: position embeddings of patches, latents of outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from omniges.model.patches import axes_embedding
from omniges.pretrained.trunk import SourceTrunk


def unpatched(tokens: Tensor, rows: int, patch: int) -> Tensor:
    """Head outputs (B, N, P · P · K) to latents (B, K, R, W) with R = rows · P.

    Not the inverse of `patches`: a head's features are ordered (row, column, channel).
    """
    batch, count, features = tokens.shape
    split = tokens.reshape(batch, rows, count // rows, patch, patch, features // patch**2)
    return split.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def grid_embedding(rows: int, columns: int, *, side: int, base: int, width: int) -> Tensor:
    """Sine and cosine embeddings (rows · columns, width) float32 of the centred crop of a table of side × side.

    Index i of the table stands for the coordinate i · base / side. The first half of the features is for the column,
    the second for the row; each is the sines, then the cosines, of the coordinate times 10⁴^(−j / (width / 4)).
    """

    def axis(count: int) -> Tensor:
        first = (side - count) // 2
        return torch.arange(first, first + count, dtype=torch.float64) * (base / side)

    return axes_embedding(axis(rows), axis(columns), width)


def table(source: SourceTrunk, stream: str, rows: int, columns: int) -> Tensor:
    """Position embeddings (rows · columns, W) that the trunk of a source expects to be added to a stream's patches."""
    grid = source.grids[stream]
    width = int(source.config["width"])
    return grid_embedding(rows, columns, side=grid["table_side"], base=grid["table_base"], width=width)
