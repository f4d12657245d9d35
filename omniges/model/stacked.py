"""The trunk, computed for all streams at once, so that a compiled step launches few kernels.

Corresponding layers of all streams have equal shapes and are computed as one batched product with stacked weights.
Stacking copies of the weights in each step would cost a kernel for each parameter. Therefore the parameters of all
streams are views of one tensor. They keep their names, gradients and optimizer moments. The modulations of all blocks
are computed by one product, because they depend only on the conditioning. The outputs equal those of
`omniges.model.trunk` up to rounding.

Shape letters: S streams, B batch, R rows of a stream, N tokens of a stream, H heads, E features of a head, W = H · E
width, C channels of a stream's tokens, T targets of all streams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from omniges.model.packing import StackedRows, attention
from omniges.model.streams import StreamName
from omniges.model.trunk import (
    NORM_EPS,
    Branch,
    Head,
    JointBlock,
    JointFlowTransformer,
    QKNorm,
    TwoLayers,
    level_features,
    rotary_angles,
    rotary_tables,
    rotate,
)


class _Parts(torch.autograd.Function):
    """Autograd function that returns a tensor (S, O, …), and splits its gradient among the parameters that form it.

    O is the total length (first axis) of all parameters of one stream. It is equal for all S streams.
    """

    @staticmethod
    def forward(ctx: Any, joined: Tensor, sizes: list[int], *parts: Tensor) -> Tensor:
        """Return the joined tensor.

        Args:
            ctx: Context of the backward pass.
            joined: Tensor (S, O, …) that holds all parameters.
            sizes: Length (first axis) of each parameter of a stream; they add up to O.
            *parts: Parameters (size, …), stream by stream; each is a view of a range of `joined`.

        Returns:
            The tensor, without a copy.
        """
        del parts
        ctx.sizes = sizes
        return joined.view_as(joined)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Split the gradient of the joined tensor into the gradients of the parameters."""
        (gradient,) = gradients
        return None, None, *(part for own in gradient.unbind(0) for part in torch.split(own, ctx.sizes))


class JoinedParameters:
    """Parameters of S streams, each of which is a view of one tensor (S, O, …)."""

    def __init__(self, streams: Sequence[Sequence[Tensor]]) -> None:
        """Move the parameters into one tensor.

        Args:
            streams: For each stream, parameters (size, …) in the order in which they are joined.
        """
        self.sizes = [len(parameter) for parameter in streams[0]]
        self.parameters = [parameter for own in streams for parameter in own]
        self.tensor = torch.stack([torch.cat([parameter.detach() for parameter in own]) for own in streams])
        parts = [part for own in self.tensor.unbind(0) for part in torch.split(own, self.sizes)]
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.data = part

    def __call__(self) -> Tensor:
        """Return the tensor (S, O, …) of all parameters; its gradient reaches each parameter."""
        found: Tensor = _Parts.apply(self.tensor, self.sizes, *self.parameters)  # type: ignore[no-untyped-call]
        return found


@dataclass(frozen=True, slots=True)
class JoinedLinear:
    """Linear layers of S streams, computed as one batched product.

    A stream may have several layers with the same input; their outputs are concatenated.
    """

    weight: JoinedParameters
    bias: JoinedParameters

    @classmethod
    def of(cls, streams: Sequence[Sequence[nn.Linear]]) -> Self:
        """Join the layers of all streams. All layers of a stream must have the same input."""
        return cls(
            JoinedParameters([[layer.weight for layer in own] for own in streams]),
            JoinedParameters([[layer.bias for layer in own] for own in streams]),
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Map inputs (S, …, I) to outputs (S, …, O), the concatenated outputs of each stream's layers."""
        product = torch.baddbmm(self.bias()[:, None], x.flatten(1, -2), self.weight().mT)
        return product.reshape(*x.shape[:-1], -1)


class _Modulate(torch.autograd.Function):
    """`omniges.model.trunk.modulate` with a backward pass that reads the tokens few times.

    Mean and variance of a token are computed from the differences between its features and its first feature: from the
    sum of these differences, and from the sum of their squares. One pass gives both sums, which stay accurate even if
    the mean is large (Chan, Golub and LeVeque 1983, *Algorithms for computing the sample variance*). The forward pass
    saves x, the scale and both sums for the backward pass.

    A compiler may save other values than the sums: values that `backward` computes from the sums alone, such as the
    variance of each token. It does so if they need no more memory than the sums. Each such value costs one more kernel.
    To prevent this, `backward` first expands the sums to the shape of the gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """Apply LayerNorm without parameters, then · (1 + scale) + shift.

        Args:
            ctx: Context of the backward pass.
            x: Tokens (…, N, W).
            shift: Shift (…, 1, W).
            scale: Scale of the same shape.

        Returns:
            Modulated tokens (…, N, W) in the precision of x.
        """
        differences = x.float() - x[..., :1]
        total, square = differences.sum(-1, keepdim=True), differences.square().sum(-1, keepdim=True)
        ctx.save_for_backward(x, total, square, scale)
        mean = total / x.shape[-1]
        normed = (differences - mean) * torch.rsqrt(square / x.shape[-1] - mean.square() + NORM_EPS)
        return (shift + normed + normed * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of x, shift and scale."""
        x, total, square, scale = ctx.saved_tensors
        share = 1 / x.shape[-1]
        gradient = gradients[0].float()
        variance = square.expand_as(gradient) * share - (total.expand_as(gradient) * share).square() + NORM_EPS
        scaled = gradient * variance.rsqrt()
        of_shift = gradient.sum(-2, keepdim=True)
        of_scale = (scaled * x - scaled * x[..., :1] - scaled * share * total).sum(-2, keepdim=True)
        inner = scaled + scaled * scale
        sums, along = inner.sum(-1, keepdim=True), (inner * x - inner * x[..., :1]).sum(-1, keepdim=True)
        along = (along - sums * share * total) * share / variance
        of_x = inner - sums * share - along * x + along * x[..., :1] + along * share * total
        return of_x.to(x.dtype), of_shift.to(scale.dtype), of_scale.to(scale.dtype)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Compute `omniges.model.trunk.modulate` with a backward pass that reads the tokens few times.

    Args:
        x: Tokens (…, N, W).
        shift: Shift (…, 1, W).
        scale: Scale of the same shape.

    Returns:
        Modulated tokens (…, N, W).
    """
    found: Tensor = _Modulate.apply(x, shift, scale)  # type: ignore[no-untyped-call]
    return found


class _RmsNorm(torch.autograd.Function):
    """RMSNorm of queries and keys with weights of several streams.

    `forward` saves the sum of squares for `backward`. `backward` first expands this sum to the shape of the gradient,
    for the reason that `_Modulate` explains.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Normalise the last axis.

        Args:
            ctx: Context of the backward pass.
            x: Queries and keys (S, R, N, 2, H, E).
            weight: Weights (S, 1, 1, 2, 1, E).
            eps: Added to the mean of squares.

        Returns:
            Normalised values (S, R, N, 2, H, E) float32.
        """
        square = x.float().square().sum(-1, keepdim=True)
        ctx.eps = eps
        ctx.save_for_backward(x, square, weight)
        return x.float() * (torch.rsqrt(square / x.shape[-1] + eps) * weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Return the gradients of x and the weights."""
        x, square, weight = ctx.saved_tensors
        share = 1 / x.shape[-1]
        scaled = gradients[0] * (square.expand_as(gradients[0]) * share + ctx.eps).rsqrt()
        inner = scaled * weight
        along = (inner * x).sum(-1, keepdim=True) * share / (square.expand_as(scaled) * share + ctx.eps)
        return (inner - along * x).to(x.dtype), (scaled * x).sum((1, 2, 4), keepdim=True), None


@dataclass(frozen=True, slots=True)
class _Block:
    """The layers of a `JointBlock`, with the weights of corresponding layers of all streams in one tensor.

    The modulations of the block are not included: `StackedTrunk.modulations` contains those of all blocks.
    """

    heads: int
    qkv: JoinedLinear
    out: JoinedLinear
    mlp_in: JoinedLinear
    mlp_out: JoinedLinear
    norm: QKNorm | None
    """Norm of queries and keys. If ``norm_weight`` is None, all streams use the weights of this norm. None: no norm."""
    norm_weight: JoinedParameters | None

    @classmethod
    def of(cls, block: JointBlock, names: Sequence[str]) -> Self:
        """Join the layers of a block.

        Args:
            block: The block.
            names: Names of the block's streams.

        Returns:
            The joined layers.
        """
        branches = [cast("Branch", block.branches[name]) for name in names]
        norms = [branch.qk_norm for branch in branches if branch.qk_norm is not None]
        return cls(
            heads=block.heads,
            qkv=JoinedLinear.of([[branch.qkv] for branch in branches]),
            out=JoinedLinear.of([[branch.out] for branch in branches]),
            mlp_in=JoinedLinear.of([[branch.mlp_in] for branch in branches]),
            mlp_out=JoinedLinear.of([[branch.mlp_out] for branch in branches]),
            norm=norms[0] if norms else block.qk_norm,
            norm_weight=JoinedParameters([[norm.weight] for norm in norms]) if norms else None,
        )

    def __call__(
        self, x: Tensor, parts: Sequence[Tensor], rotary: tuple[Tensor, Tensor] | None, rows: StackedRows
    ) -> Tensor:
        """Apply the block.

        Args:
            x: Tokens (S, R, N, W).
            parts: Shift, scale and gate for attention, then shift, scale and gate for the MLP, each (S, R, 1, W).
            rotary: Cosines and sines from `rotary_tables`, each (S, 1, N, 1, 1, E); None: no rotary positions.
            rows: Which sample each row belongs to.

        Returns:
            Tokens (S, R, N, W).
        """
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        qkv = torch.unflatten(self.qkv(modulated(x, shift, scale)), -1, (3, self.heads, -1))
        qk, value = torch.split(qkv, [2, 1], dim=-3)
        if self.norm is not None and self.norm_weight is None:
            qk = self.norm(qk)
        elif self.norm is not None and self.norm_weight is not None:
            qk = _RmsNorm.apply(qk, self.norm_weight()[:, None, None], self.norm.eps)  # type: ignore[no-untyped-call]
        qk = qk if rotary is None else rotate(qk, *rotary)
        attended = _attend(qk, value.squeeze(-3), rows)
        x = x + gate * self.out(attended)
        inner = functional.gelu(self.mlp_in(modulated(x, mlp_shift, mlp_scale)), approximate="tanh")
        return x + mlp_gate * self.mlp_out(inner)


def _attend(query_key: Tensor, value: Tensor, rows: StackedRows) -> Tensor:
    """Let the tokens of each sample attend to all tokens of the same sample.

    Args:
        query_key: Queries and keys (S, R, N, 2, H, E).
        value: Values (S, R, N, H, E).
        rows: Which sample each row belongs to.

    Returns:
        Attended values (S, R, N, W).
    """
    streams, _, tokens = value.shape[:3]
    both = _by_sample(rows.of_samples(query_key))
    query, key = both[:, :, 0], both[:, :, 1]  # not `unbind`, whose gradient a compiler computes with copies
    mask = rows.there.mT[:, :, None].expand(-1, -1, tokens).flatten(1)[:, None, None]
    attended = attention(query, key, _by_sample(rows.of_samples(value)), mask)
    return rows.of_rows(torch.unflatten(attended, 1, (streams, tokens)).transpose(0, 1))


def _by_sample(x: Tensor) -> Tensor:
    """Rearrange values (S, B, N, …) to (B, S · N, …)."""
    return x.transpose(0, 1).flatten(1, 2)


class StackedTrunk:
    """A trunk that computes the corresponding layers of all streams at once, with the weights of an existing trunk.

    The existing trunk stays usable, because both use the same memory for the weights. As long as an instance is used,
    the existing trunk's parameters must not be moved to other memory, for example by `nn.Module.to` or
    ``load_state_dict(assign=True)``.
    """

    def __init__(self, trunk: JointFlowTransformer) -> None:
        self.trunk = trunk
        self.names = tuple(cast("StreamName", name) for name in trunk.embed)
        blocks = [cast("JointBlock", block) for block in trunk.blocks]
        self.blocks = [_Block.of(block, self.names) for block in blocks]
        layers = [cast("nn.Linear", trunk.embed[name]) for name in self.names]
        self.embed_bias = JoinedParameters([[layer.bias] for layer in layers])
        levels = [cast("TwoLayers", trunk.level[name]) for name in self.names]
        self.level_1 = JoinedLinear.of([[level.linear_1] for level in levels])
        self.level_2 = JoinedLinear.of([[level.linear_2] for level in levels])
        modulations = [
            [
                cast("nn.Linear", each.modulation)
                for each in (*(block.branches[name] for block in blocks), trunk.head[name])
            ]
            for name in self.names
        ]
        self.modulations = JoinedLinear.of(modulations)

    @staticmethod
    def fits(trunk: JointFlowTransformer) -> bool:
        """Return whether a `StackedTrunk` can join the corresponding layers of all streams of a trunk.

        This requires these arguments of `JointFlowTransformer`: ``conditioning`` is ``summed``, ``pooled_width`` is
        None, ``context_only`` is empty, and no stream has a ``head_width``.
        """
        wider = any(head.widen is not None for head in trunk.head.values())
        return trunk.summed and trunk.pooled is None and not trunk.config["context_only"] and not wider

    def __call__(
        self,
        tokens: Mapping[StreamName, Tensor],
        levels: Tensor,
        rows: StackedRows,
        *,
        seconds: Mapping[StreamName, Tensor] | None = None,
        added: Mapping[StreamName, Tensor] | None = None,
        speakers: Tensor | None = None,
        described: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute the outputs of the targets.

        Args:
            tokens: Tokens (R, N, C) of every stream, with R and N equal for all streams.
            levels: Noise levels σ (S, B), one for each stream and sample.
            rows: Which sample each row belongs to, and which rows are targets.
            seconds: Times (N,) of the streams' tokens, required with rotary positions.
            added: Position embeddings (N, W) to add to a stream's tokens.
            speakers: Number (B,) int64 of each sample's speaker, 0 for unknown; None: all speakers are unknown.
            described: Vectors (B, W) that encode condition streams and which parts are absent; added to the
                conditioning of every stream.

        Returns:
            Outputs (K, N, outputs) of each stream that has targets; K is the number of its targets.
        """
        x = self._embedded(tokens, added or {})
        blocks, (scale, shift) = self._modulations(levels, rows, speakers, described)
        rotary = self._rotary(seconds)
        for block, parts in zip(self.blocks, blocks, strict=True):
            if self.trunk.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, parts, rotary, rows, use_reentrant=False)
            else:
                x = block(x, parts, rotary, rows)
        joined = modulated(rows.of_targets(x), rows.of_targets(shift), rows.of_targets(scale))
        last = torch.split(joined, list(rows.targets.values()))
        heads = {name: cast("Head", self.trunk.head[name]) for name in rows.targets}
        return {name: heads[name].out(own) for name, own in zip(rows.targets, last, strict=True)}

    def _embedded(self, tokens: Mapping[StreamName, Tensor], added: Mapping[StreamName, Tensor]) -> Tensor:
        """Embed the tokens of all streams.

        Args:
            tokens: Tokens of each of the S streams (R, N, C): R rows with N tokens of C channels.
            added: Position embeddings (N, W) by stream, which are added to the stream's embeddings.

        Returns:
            Embeddings (S, R, N, W), with the width W of the trunk.
        """
        layers = {name: cast("nn.Linear", self.trunk.embed[name]) for name in self.names}
        found = {name: functional.linear(tokens[name], layer.weight) for name, layer in layers.items()}
        found = {name: x + added[name].to(x.dtype) if name in added else x for name, x in found.items()}
        x = torch.stack(list(found.values()))
        return x + self.embed_bias().to(x.dtype)[:, None, None]

    def _modulations(
        self, levels: Tensor, rows: StackedRows, speakers: Tensor | None, described: Tensor | None
    ) -> tuple[list[tuple[Tensor, ...]], tuple[Tensor, Tensor]]:
        """Compute the modulations of all blocks and heads from the conditioning.

        Return a list with the six tensors of each block (shift, scale and gate for attention, then for the MLP), and
        the pair (scale, shift) of the heads. All tensors have the shape (S, R, 1, W).
        """
        features = level_features(levels).to(self.level_1.weight.tensor.dtype)
        own = self.level_2(functional.silu(self.level_1(features))) * rows.there[..., None]
        total = own.sum(0)
        if self.trunk.speaker is not None:
            unknown = torch.zeros_like(levels[0], dtype=torch.int64)
            total = total + self.trunk.speaker(unknown if speakers is None else speakers)
        if described is not None:
            total = total + described
        parts = rows.of_rows(self.modulations(functional.silu(total).expand(len(self.names), -1, -1)))[:, :, None]
        width = self.trunk.config["width"]
        *inner, scale, shift = torch.split(parts, width, dim=-1)
        return [tuple(inner[k : k + 6]) for k in range(0, len(inner), 6)], (scale, shift)

    def _rotary(self, seconds: Mapping[StreamName, Tensor] | None) -> tuple[Tensor, Tensor] | None:
        """Return cosines and sines of `rotary_tables`, each (S, 1, N, 1, 1, E); None without rotary positions."""
        periods = self.trunk.rotary_periods_s
        if periods is None:
            return None
        if seconds is None:
            raise ValueError("rotary positions require the times of the tokens: pass seconds")
        times = torch.stack([seconds[name] for name in self.names])[:, None]
        angles = rotary_angles(times, self.trunk.head_features, periods)
        return rotary_tables(angles[..., None, None, :])
