"""A Q-Former: learned queries that gather what a sequence of features says.

The encoder of BLIP-2 (J. Li et al. 2023) without its text side. Names of parameters are those of its published
implementation, so a state dict loads as it is. There are no masks and, as it is frozen here, no dropout.

Shape letters: B batch, N queries, L features, H width of the queries, E width of the features.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["HEADS", "QFormer"]

HEADS: Final = 12
_LAYERS: Final = 6
_CROSSED_EVERY: Final = 2
"""Of so many layers, the first looks at the features."""
_INNER: Final = 3072
"""Width inside the feed-forward layers, whatever H is."""
_NORM_EPSILON: Final = 1e-12


class QFormer(nn.Module):
    """Queries (B, N, H) and features (B, L, E) to outputs (B, N, H)."""

    def __init__(self, *, width: int, features: int) -> None:
        super().__init__()
        self.layernorm = _norm(width)
        self.encoder = _Encoder(width, features)

    def forward(self, queries: Tensor, features: Tensor) -> Tensor:
        """Outputs (B, N, H)."""
        hidden: Tensor = self.layernorm(queries)
        for layer in self.encoder.layer:
            hidden = layer(hidden, features)
        return hidden


class _Encoder(nn.Module):
    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        crossed = [k % _CROSSED_EVERY == 0 for k in range(_LAYERS)]
        self.layer = nn.ModuleList(_Layer(width, features if crosses else None) for crosses in crossed)


class _Layer(nn.Module):
    def __init__(self, width: int, features: int | None) -> None:
        super().__init__()
        self.attention = _Attention(width, width)
        self.crossattention = None if features is None else _Attention(width, features)
        self.intermediate_query = _Inner(width)
        self.output_query = _Output(_INNER, width)

    def forward(self, hidden: Tensor, features: Tensor) -> Tensor:
        hidden = self.attention(hidden, hidden)
        if self.crossattention is not None:
            hidden = self.crossattention(hidden, features)
        result: Tensor = self.output_query(self.intermediate_query(hidden), hidden)
        return result


class _Attention(nn.Module):
    def __init__(self, width: int, looked_at: int) -> None:
        super().__init__()
        self.attention = _Heads(width, looked_at)
        self.output = _Output(width, width)

    def forward(self, hidden: Tensor, looked_at: Tensor) -> Tensor:
        result: Tensor = self.output(self.attention(hidden, looked_at), hidden)
        return result


class _Heads(nn.Module):
    def __init__(self, width: int, looked_at: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(looked_at, width)
        self.value = nn.Linear(looked_at, width)

    def forward(self, hidden: Tensor, looked_at: Tensor) -> Tensor:
        query, key, value = (
            x.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for x in (self.query(hidden), self.key(looked_at), self.value(looked_at))
        )
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class _Inner(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, _INNER)

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.gelu(self.dense(hidden))


class _Output(nn.Module):
    """LayerNorm(dense(x) + what the sub-layer was given)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, width)
        self.LayerNorm = _norm(width)

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        result: Tensor = self.LayerNorm(torch.add(self.dense(x), given))
        return result


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=_NORM_EPSILON)
