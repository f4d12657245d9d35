"""The parts of a joint attention block: rotary positions in seconds, norms of queries and keys, per-stream branches.

Shape letters: B batch, N tokens of one stream or of all, H heads, E features a head, W = H · E width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

QKNormKind = Literal["layer", "rms"]
NORM_EPS = 1e-6


def rotary_angles(seconds: Tensor, features: int, periods_s: Sequence[float]) -> Tensor:
    """Angles (…, N, features / 2) in radians of tokens at times (…, N) in seconds.

    Pair k turns once in periods_s[0] · (periods_s[1] / periods_s[0])^(k / (pairs − 1)) seconds (Su et al. 2021, with
    periods that are given rather than counted in tokens).
    """
    pairs = features // 2
    ratio = math.log(periods_s[1] / periods_s[0]) / max(1, pairs - 1)
    order = torch.arange(pairs, device=seconds.device, dtype=torch.float32)
    frequencies = (2 * math.pi / periods_s[0]) * torch.exp(-ratio * order)
    return seconds.to(torch.float32)[..., None] * frequencies


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn the pairs (x_k, x_{k + E/2}) of x (B, N, …, E) by angles whose cosine and sine broadcast to (…, E / 2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without parameters over the features of x (B, N, W), then · (1 + scale) + shift, both (B, W)."""
    normed = functional.layer_norm(x, x.shape[-1:], eps=NORM_EPS)
    return torch.addcmul(shift[:, None], normed, 1 + scale[:, None])


class QKNorm(nn.Module):
    """LayerNorm or RMSNorm over each head's features of queries and keys, with weights of their own.

    ``weight`` (and for ``layer`` ``bias``) are (2, 1, E): queries, keys.
    """

    def __init__(self, kind: QKNormKind, features: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(2, 1, features))
        self.bias = nn.Parameter(torch.zeros(2, 1, features)) if kind == "layer" else None

    def forward(self, qk: Tensor) -> Tensor:
        """Normalise qk (B, N, 2, H, E)."""
        if self.bias is not None:
            normed = functional.layer_norm(qk, qk.shape[-1:], eps=self.eps)
            return torch.addcmul(self.bias, normed, self.weight)
        return functional.rms_norm(qk, qk.shape[-1:], eps=self.eps) * self.weight


@dataclass(frozen=True, slots=True)
class _Projected:
    """One stream's part in a block's attention."""

    qk: Tensor  # (B, N, 2, H, E)
    value: Tensor  # (B, N, H, E)
    rest: tuple[Tensor, ...]  # of the modulation: gate, and the MLP's shift, scale and gate


class _Branch(nn.Module):
    """One stream's weights in a block; ``context_only``: it gives keys and values, and its own tokens stay."""

    def __init__(self, width: int, mlp_width: int, qk_norm: QKNorm | None, *, context_only: bool) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, (2 if context_only else 6) * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.qk_norm = qk_norm
        self.context_only = context_only
        if not context_only:
            self.out = nn.Linear(width, width)
            self.mlp_in = nn.Linear(width, mlp_width)
            self.mlp_out = nn.Linear(mlp_width, width)

    def project(self, x: Tensor, condition: Tensor, heads: int) -> _Projected:
        """Queries, keys and values, and what is left of the modulation."""
        parts = self.modulation(condition).chunk(2 if self.context_only else 6, dim=-1)
        if self.context_only:  # here the scale comes first, as in OmniFlow
            scale, shift = parts
        else:
            shift, scale = parts[:2]
        qkv: Tensor = self.qkv(modulate(x, shift, scale)).unflatten(-1, (3, heads, -1))
        qk = qkv[:, :, :2]
        return _Projected(qk if self.qk_norm is None else self.qk_norm(qk), qkv[:, :, 2], parts[2:])

    def finish(self, x: Tensor, attended: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
        """The stream's tokens (B, N, W) behind attention and MLP."""
        if self.context_only:
            return x
        gate, mlp_shift, mlp_scale, mlp_gate = parts
        x = torch.addcmul(x, gate[:, None], self.out(attended))
        inner = functional.gelu(self.mlp_in(modulate(x, mlp_shift, mlp_scale)), approximate="tanh")
        return torch.addcmul(x, mlp_gate[:, None], self.mlp_out(inner))


class JointBlock(nn.Module):
    """Per-stream AdaLN, projections and MLP around one attention over the tokens of all streams.

    ``qk_norm``: ``layer`` has one pair of norms for all streams, ``rms`` one for each, None has none.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        heads: int,
        width: int,
        mlp_width: int,
        qk_norm: QKNormKind | None,
        qk_norm_eps: float,
        context_only: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.heads = heads
        features = width // heads
        self.qk_norm = QKNorm("layer", features, qk_norm_eps) if qk_norm == "layer" else None
        self.branches = nn.ModuleDict(
            {
                name: _Branch(
                    width,
                    mlp_width,
                    QKNorm("rms", features, qk_norm_eps) if qk_norm == "rms" else None,
                    context_only=name in context_only,
                )
                for name in names
            }
        )

    def forward(
        self,
        hidden: Mapping[str, Tensor],
        conditions: Mapping[str, Tensor],
        rotary: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
    ) -> dict[str, Tensor]:
        """One step of the trunk.

        Args:
            hidden: tokens (B, N, W) of the streams that take part, in the order in which they are joined.
            conditions: for each of them its activated conditioning vector (B, W).
            rotary: cosine and sine (1 or B, N of all, 1, 1, E / 2), or None.
            mask: which keys are there, (B, 1, 1, N of all) bool, or None for all of them.
        """
        projected = {name: self._branch(name).project(x, conditions[name], self.heads) for name, x in hidden.items()}
        qk = torch.cat([part.qk for part in projected.values()], dim=1)
        value = torch.cat([part.value for part in projected.values()], dim=1)
        if self.qk_norm is not None:
            qk = self.qk_norm(qk)
        attended = _attend(qk, value, rotary, mask)
        parts = torch.split(attended, [x.shape[1] for x in hidden.values()], dim=1)
        return {
            name: self._branch(name).finish(x, part, projected[name].rest)
            for (name, x), part in zip(hidden.items(), parts, strict=True)
        }

    def _branch(self, name: str) -> _Branch:
        return cast("_Branch", self.branches[name])


def _attend(qk: Tensor, value: Tensor, rotary: tuple[Tensor, Tensor] | None, mask: Tensor | None) -> Tensor:
    """Attention (B, N, W) of queries and keys (B, N, 2, H, E), which alone are turned, and values (B, N, H, E)."""
    if rotary is not None:
        qk = rotate(qk, *rotary)
    query, key = qk.to(value.dtype).unbind(2)
    attended = functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask
    )
    return attended.transpose(1, 2).flatten(2)
