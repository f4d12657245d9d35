"""Two-dimensional latents as tokens and back, and their position embeddings, as SD3 and OmniFlow have them.

Shape letters: B batch, K channels, H rows, W columns of a latent, P patch side, N = (H / P) · (W / P) tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["grid_embedding", "line_embedding", "patches", "unpatched"]


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
        coordinates = torch.arange(first, first + count, dtype=torch.float64) * (base / side)
        return line_embedding(coordinates, width // 2)

    by_column = axis(columns)[None].expand(rows, -1, -1)
    by_row = axis(rows)[:, None].expand(-1, columns, -1)
    return torch.cat([by_column, by_row], dim=-1).flatten(0, 1).to(torch.float32)


def line_embedding(coordinates: Tensor, width: int) -> Tensor:
    """Embeddings (N, width) of coordinates (N,): sines, then cosines, of coordinate · 10⁴^(−j / (width / 2))."""
    half = width // 2
    frequencies = 10_000.0 ** (-torch.arange(half, dtype=torch.float64, device=coordinates.device) / half)
    angles = coordinates.to(torch.float64)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
