"""OmniFlow's tokens of audio latents: square patches of rows and columns, with two-dimensional position embeddings.

OmniFlow's pretrained projections fit only these tokens (docs/how-to/pretrained.md). The patches and the table of
position embeddings are those of SD3 (Esser et al. 2024).

Shape letters: B batch, K channels, R rows and W columns of latents, P patch side, N = (R / P) · (W / P) tokens, C = O =
K · P · P channels of a token and outputs of the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated

import torch
from torch import Tensor

from omniges.features.timebase import TICKS_PER_SECOND
from omniges.model.streams import Stream, clean_from_velocity, line_embedding
from omniges.storage.documents import Range

_Size = Annotated[int, Range(1, 1 << 20)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchGrid:
    """Sizes of the patches of two-dimensional latents and of the table of position embeddings for the patches."""

    channels: _Size
    """Channels K of the latents."""
    patch: _Size
    """Side P of a patch, in rows and columns."""
    table_side: _Size
    """Number of entries of the table along each axis."""
    table_base: _Size
    """Number of patches along each axis of the latents that OmniFlow was trained on. Entry i of the table has the
    coordinate i · table_base / table_side."""


def patches(latents: Tensor, patch: int) -> Tensor:
    """Split latents into patches, row by row.

    A patch's features are ordered (channel, row, column). So a convolution of stride P to D channels is the same as a
    linear layer on these tokens. The weights (D, K, P, P) of the convolution become (D, K · P · P).

    Args:
        latents: Latents (B, K, R, W).
        patch: Side P of a patch.

    Returns:
        Tokens (B, N, K · P · P).
    """
    batch, channels, height, width = latents.shape
    split = latents.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return split.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def axes_embedding(rows: Tensor, columns: Tensor, width: int) -> Tensor:
    """Return the position embeddings of all cells of a grid, row by row.

    The first half of an embedding is the `line_embedding` of the cell's column. The second half is the
    `line_embedding` of its row.

    Args:
        rows: Coordinates (I,) of the I rows of the grid.
        columns: Coordinates (J,) of the J columns of the grid.
        width: Features of an embedding, half of them for each axis.

    Returns:
        Embeddings (I · J, width) float32.
    """
    by_column = line_embedding(columns, width // 2)[None].expand(len(rows), -1, -1)
    by_row = line_embedding(rows, width // 2)[:, None].expand(-1, len(columns), -1)
    return torch.cat([by_column, by_row], dim=-1).flatten(0, 1).to(torch.float32)


class PatchTokens(Stream):
    """A stream of latents (B, R, K · W) as patches (B, N, K · P · P).

    In a row of latents, channel k and column w have the index k · W + w. Tokens are ordered row by row, and the W / P
    patches of the same rows have the same time. The features of a token are ordered (channel, row, column). The outputs
    of the head are ordered (row, column, channel). Latents are not normalised: codecs return them multiplied by the
    autoencoder's scaling factor, as the pretrained weights expect. The head predicts the velocity ε − x.

    Args:
        grid: Size of the patches, and of the table of position embeddings.
        columns: Columns W, a multiple of P.
        rows_per_tick: Rows of latents in one tick (0.1 s).
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
        """Rearrange latents (B, R, K · W) to patches (B, N, K · P · P), with unchanged values."""
        batch, rows, _ = arrays.shape
        latents = arrays.reshape(batch, rows, self.grid.channels, -1).transpose(1, 2)
        return patches(latents, self.grid.patch)

    def arrays(self, tokens: Tensor) -> Tensor:
        """Rearrange patches (B, N, K · P · P) to latents (B, R, K · W), with unchanged values."""
        patch = self.grid.patch
        split = tokens.reshape(len(tokens), -1, self.tokens_at_once, self.grid.channels, patch, patch)
        return split.permute(0, 1, 4, 3, 2, 5).flatten(3).flatten(1, 2)

    def seconds(self, count: int) -> Tensor:
        """Return the times (N,) of the patches' centres in seconds. Patches of the same rows have the same time."""
        times = torch.arange(count // self.tokens_at_once, device=self.columns.device) + 0.5
        per_second = self.tokens_per_tick / self.tokens_at_once * TICKS_PER_SECOND
        return (times / float(per_second)).repeat_interleave(self.tokens_at_once)

    def positions(self, count: int, width: int) -> Tensor:
        """Return the position embeddings of the tokens from OmniFlow's table.

        The patch columns use the middle columns of the table. The first patch row uses the table row
        ⌊(table_side − table_base) / 2⌋, where OmniFlow's training clips began. The first row does not depend on the
        length of the window.

        Args:
            count: Number of tokens N.
            width: Features of an embedding.

        Returns:
            Embeddings (N, width) float32.
        """
        grid = self.grid
        first = (grid.table_side - grid.table_base) // 2
        rows = first + torch.arange(count // self.tokens_at_once, device=self.columns.device)
        step = grid.table_base / grid.table_side
        return axes_embedding(rows.double() * step, self.columns.double() * step, width)

    def clean(self, output: Tensor, noised: Tensor, levels: Tensor) -> Tensor:
        """Convert the predicted velocity to clean tokens.

        Args:
            output: Outputs of the head (B, N, O).
            noised: Noised tokens (B, N, C).
            levels: Noise levels σ in [0, 1]: one for each sample (B,), or one for each token (B, N).

        Returns:
            Clean tokens (B, N, C).
        """
        return clean_from_velocity(self._in_token_order(output), noised, levels)

    def losses(
        self, output: Tensor, arrays: Tensor, clean: Tensor, noise: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Return the mean squared error of the velocity ε − x.

        Args:
            output: Outputs of the head (B, N, O).
            arrays: Not used.
            clean: Clean tokens x (B, N, C).
            noise: Noise ε (B, N, C).
            weights: Not used; latents have no parts that can be absent.

        Returns:
            Losses (B,).
        """
        del arrays
        return (self._in_token_order(output).float() - (noise - clean)).square().mean(dim=(1, 2))

    def _in_token_order(self, output: Tensor) -> Tensor:
        """Reorder features from (row, column, channel) to (channel, row, column)."""
        return output.reshape(*output.shape[:2], -1, self.grid.channels).mT.flatten(-2)
