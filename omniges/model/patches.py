"""OmniFlow's tokens of audio latents: patches of some rows and columns, with places in a two-dimensional table.

OmniFlow's weights know these tokens and no others, so its projections of them fit. docs/how-to/pretrained.md is the
promise. Patches and tables are those of SD3.

Shape letters: B batch, K channels, R rows and W columns of latents, P patch side, N = (R / P) · (W / P) tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from omniges.features.timebase import TICKS_PER_SECOND
from omniges.model.streams import Stream, clean_from_velocity, line_embedding


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchGrid:
    """Patches that a trunk takes of two-dimensional latents, and the table of their position embeddings."""

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
    """Latents (B, K, R, W) to tokens (B, N, K · P · P), rows first.

    A patch's features are ordered (channel, row, column), so a convolution of stride P with weights (D, K, P, P) is
    a linear layer with weights (D, K · P · P) on these tokens.
    """
    batch, channels, height, width = latents.shape
    split = latents.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return split.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def axes_embedding(rows: Tensor, columns: Tensor, width: int) -> Tensor:
    """Embeddings (R · C, width) float32, rows first, of coordinates of rows (R,) and columns (C,).

    The first half of the features is `line_embedding` of the column, the second that of the row.
    """
    by_column = line_embedding(columns, width // 2)[None].expand(len(rows), -1, -1)
    by_row = line_embedding(rows, width // 2)[:, None].expand(-1, len(columns), -1)
    return torch.cat([by_column, by_row], dim=-1).flatten(0, 1).to(torch.float32)


class PatchTokens(Stream):
    """Rows of latents (B, R, K · W), channel k and column w at k · W + w, as patches (B, N, K · P · P).

    Tokens lie rows first, and the W / P patches of the same rows have one time. A token's features are ordered
    (channel, row, column), those of the head (row, column, channel). Latents are not normalised: the weights have
    learned them times the autoencoder's scaling factor, as codecs give them. The head gives the velocity ε − x.

    Args:
        grid: patches and their table.
        columns: W, a multiple of P.
        rows_per_tick: rows of latents that 0.1 s has.
    """

    omniflow_tokens = True
    columns: Tensor

    def __init__(self, grid: PatchGrid, *, columns: int, rows_per_tick: Fraction) -> None:
        super().__init__()
        self.grid = grid
        self.channels = grid.channels * grid.patch**2
        self.outputs = self.channels
        self.tokens_at_once = columns // grid.patch
        self.tokens_per_tick = rows_per_tick / grid.patch * self.tokens_at_once
        first = (grid.table_side - self.tokens_at_once) // 2
        self.register_buffer("columns", torch.arange(first, first + self.tokens_at_once))

    def tokens(self, arrays: Tensor) -> Tensor:
        """The patches, number for number."""
        batch, rows, _ = arrays.shape
        latents = arrays.reshape(batch, rows, self.grid.channels, -1).transpose(1, 2)
        return patches(latents, self.grid.patch)

    def arrays(self, tokens: Tensor) -> Tensor:
        """Rows of latents."""
        patch = self.grid.patch
        split = tokens.reshape(len(tokens), -1, self.tokens_at_once, self.grid.channels, patch, patch)
        return split.permute(0, 1, 4, 3, 2, 5).flatten(3).flatten(1, 2)

    def seconds(self, count: int) -> Tensor:
        """Centres of the patches' rows."""
        times = torch.arange(count // self.tokens_at_once, device=self.columns.device) + 0.5
        per_second = self.tokens_per_tick / self.tokens_at_once * TICKS_PER_SECOND
        return (times / float(per_second)).repeat_interleave(self.tokens_at_once)

    def positions(self, count: int, width: int) -> Tensor:
        """OmniFlow's table, columns from its middle, rows from where latents of the length of its training begin.

        So a window's first row is at the place of a clip's first row there, whatever the window's length.
        """
        grid = self.grid
        first = (grid.table_side - grid.table_base) // 2
        rows = first + torch.arange(count // self.tokens_at_once, device=self.columns.device)
        step = grid.table_base / grid.table_side
        return axes_embedding(rows.double() * step, self.columns.double() * step, width)

    def clean(self, output: Tensor, noised: Tensor, levels: Tensor) -> Tensor:
        """Through the velocity."""
        return clean_from_velocity(self._in_token_order(output), noised, levels)

    def losses(
        self, output: Tensor, arrays: Tensor, clean: Tensor, noise: Tensor, present: Tensor | None = None
    ) -> Tensor:
        """Mean squared error of the velocity ε − x."""
        del arrays
        return (self._in_token_order(output).float() - (noise - clean)).square().mean(dim=(1, 2))

    def _in_token_order(self, output: Tensor) -> Tensor:
        """Features (row, column, channel) as (channel, row, column)."""
        return output.reshape(*output.shape[:2], -1, self.grid.channels).mT.flatten(-2)
