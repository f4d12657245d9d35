"""Two-dimensional latents as tokens and back, and their position embeddings, as SD3 and OmniFlow have them.

Shape letters: B batch, K channels, H rows, W columns of a latent, P patch side, N = (H / P) · (W / P) tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchGrid:
    """Which patches a trunk takes of two-dimensional latents, and the table that tells it their places."""

    channels: int
    """K."""
    patch: int
    """P."""
    table_side: int
    """Entries of the table along each axis."""
    table_base: int
    """Patches that latents of the length and width of training have along an axis; entry i stands for the coordinate
    i · base / side."""


def patches(latents: Tensor, patch: int) -> Tensor:
    """Latents (B, K, H, W) to tokens (B, N, K · P · P), rows first.

    A patch's features are ordered (channel, row, column), so a convolution of stride P with weights (D, K, P, P) is
    a linear layer with weights (D, K · P · P) on these tokens.
    """
    batch, channels, height, width = latents.shape
    split = latents.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return split.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpatched(tokens: Tensor, rows: int, patch: int) -> Tensor:
    """Head outputs (B, N, P · P · K) to latents (B, K, H, W) with H = rows · P.

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


def axes_embedding(rows: Tensor, columns: Tensor, width: int) -> Tensor:
    """Embeddings (R · C, width) float32, rows first, of coordinates of rows (R,) and columns (C,).

    The first half of the features is `line_embedding` of the column, the second that of the row.
    """
    by_column = line_embedding(columns, width // 2)[None].expand(len(rows), -1, -1)
    by_row = line_embedding(rows, width // 2)[:, None].expand(-1, len(columns), -1)
    return torch.cat([by_column, by_row], dim=-1).flatten(0, 1).to(torch.float32)


def line_embedding(coordinates: Tensor, width: int) -> Tensor:
    """Embeddings (N, width) of coordinates (N,): sines, then cosines, of coordinate · 10⁴^(−j / (width / 2))."""
    half = width // 2
    frequencies = 10_000.0 ** (-torch.arange(half, dtype=torch.float64, device=coordinates.device) / half)
    angles = coordinates.to(torch.float64)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
