"""A diffusers AutoencoderKL over arrays of any length, block by block, with the numbers it gives for the whole.

Cutting the input would not do: group normalisations take mean and variance over all rows, and the attention in the
middle joins each row with all others, so every latent depends on the whole clip and a context of any length shows at
the borders. Here the layers are cut instead. Between two normalisations there are only convolutions of 3 rows, which
are computed in blocks with one row beside each; means and variances are those of all blocks together, and queries of
the attention are taken in blocks against all keys. So a block's length decides memory alone: two activations of the
whole clip, and what one block takes.

Shape letters: C channels, T rows (time), F columns (frequency) of an activation; there is no batch axis.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

_BLOCK_ELEMENTS: Final = 1 << 24  # of an activation: 64 MB
_QUERIES: Final = 2048

_Affine = tuple[Tensor, Tensor]
"""Scale and shift (C, 1, 1) that a normalisation comes to once its statistics are known."""


@torch.no_grad()
def encoded(vae: Any, frames: Tensor, block_elements: int = _BLOCK_ELEMENTS) -> Tensor:
    """Moments (2 K, T', F') of frames (C, T, F): what ``_encode`` of the AutoencoderKL gives for them."""
    walk, encoder = _Walk(block_elements), vae.encoder
    x = walk.convolved(frames, encoder.conv_in, None)
    for level in encoder.down_blocks:
        for resnet in level.resnets:
            x = walk.resnet(x, resnet)
        for sampler in level.downsamplers or ():
            x = walk.halved(x, sampler.conv)
    x = walk.middle(x, encoder.mid_block)
    x = walk.convolved(x, encoder.conv_out, walk.affine(x, encoder.conv_norm_out))
    return x if vae.quant_conv is None else walk.pointwise(x, vae.quant_conv)


@torch.no_grad()
def decoded(vae: Any, latents: Tensor, block_elements: int = _BLOCK_ELEMENTS) -> Tensor:
    """Frames (C, T, F) of latents (K, T', F'): what ``_decode`` of the AutoencoderKL gives for them."""
    walk, decoder = _Walk(block_elements), vae.decoder
    x = latents if vae.post_quant_conv is None else walk.pointwise(latents, vae.post_quant_conv)
    x = walk.convolved(x, decoder.conv_in, None)
    x = walk.middle(x, decoder.mid_block)
    for level in decoder.up_blocks:
        for resnet in level.resnets:
            x = walk.resnet(x, resnet)
        for sampler in level.upsamplers or ():
            x = walk.doubled(x, sampler.conv)
    return walk.convolved(x, decoder.conv_out, walk.affine(x, decoder.conv_norm_out))


class _Walk:
    """The layers, each over the whole of an activation in blocks."""

    def __init__(self, block_elements: int) -> None:
        self._block_elements = block_elements

    def _blocks(self, shape: tuple[int, int, int]) -> Iterator[tuple[int, int]]:
        """First and last row of each block of an activation of a shape; beginnings are even."""
        channels, rows, columns = shape
        step = max(2, self._block_elements // (channels * columns) & ~1)
        for start in range(0, rows, step):
            yield start, min(start + step, rows)

    def affine(self, x: Tensor, norm: Any) -> _Affine:
        """A group normalisation of the whole of x: mean and variance of each group in float64."""
        groups = norm.num_groups
        count = x.numel() // groups
        total = sum(_grouped(x[:, a:b], groups).sum(1, dtype=torch.float64) for a, b in self._blocks(_shape(x)))
        mean = torch.as_tensor(total) / count
        centre = mean.float()[:, None]
        squares = sum(
            (_grouped(x[:, a:b], groups) - centre).square().sum(1, dtype=torch.float64)
            for a, b in self._blocks(_shape(x))
        )
        # The centre was rounded: what that adds to the squares is taken off again.
        variance = torch.as_tensor(squares) / count - (mean - centre[:, 0].double()).square()
        each = x.shape[0] // groups
        scale = norm.weight.double() / (variance + norm.eps).sqrt().repeat_interleave(each)
        shift = norm.bias.double() - mean.repeat_interleave(each) * scale
        return scale.float()[:, None, None], shift.float()[:, None, None]

    def convolved(self, x: Tensor, conv: Any, affine: _Affine | None, into: Tensor | None = None) -> Tensor:
        """A 3 × 3 convolution of x, normalised and through SiLU if `affine` is given; added to `into` where given."""
        rows = x.shape[1]
        out = x.new_empty(conv.out_channels, rows, x.shape[2]) if into is None else into
        for a, b in self._blocks(_shape(x)):
            piece = _activated(x[:, max(a - 1, 0) : b + 1], affine)
            made = _convolution(piece, conv, above=a == 0, below=b == rows)
            if into is None:
                out[:, a:b] = made
            else:
                out[:, a:b] += made
        return out

    def pointwise(self, x: Tensor, conv: Any) -> Tensor:
        """A 1 × 1 convolution."""
        out = x.new_empty(conv.out_channels, *x.shape[1:])
        for a, b in self._blocks(_shape(x)):
            out[:, a:b] = functional.conv2d(x[None, :, a:b], conv.weight, conv.bias)[0]
        return out

    def resnet(self, x: Tensor, block: Any) -> Tensor:
        """A residual block; x is overwritten where it has the channels that come out."""
        hidden = self.convolved(x, block.conv1, self.affine(x, block.norm1))
        if block.conv_shortcut is not None:
            x = self.pointwise(x, block.conv_shortcut)
        return self.convolved(hidden, block.conv2, self.affine(hidden, block.norm2), into=x)

    def halved(self, x: Tensor, conv: Any) -> Tensor:
        """A convolution of stride 2 with a row and a column of zeros at the end alone."""
        rows, columns = x.shape[1] // 2, x.shape[2] // 2
        out = x.new_empty(conv.out_channels, rows, columns)
        for a, b in self._blocks(_shape(out)):
            piece = x[:, 2 * a : 2 * b + 1]
            piece = functional.pad(piece, (0, 1, 0, 2 * b + 1 - 2 * a - piece.shape[1]))
            out[:, a:b] = functional.conv2d(piece[None], conv.weight, conv.bias, stride=2)[0]
        return out

    def doubled(self, x: Tensor, conv: Any) -> Tensor:
        """Every row and column twice, then a 3 × 3 convolution."""
        rows = 2 * x.shape[1]
        out = x.new_empty(conv.out_channels, rows, 2 * x.shape[2])
        for a, b in self._blocks(_shape(out)):
            first, last = max(a // 2 - 1, 0), min(b // 2 + 1, x.shape[1])
            twice = functional.interpolate(x[None, :, first:last], scale_factor=2.0, mode="nearest")[0]
            piece = twice[:, max(a - 1, 0) - 2 * first : b + 1 - 2 * first]
            out[:, a:b] = _convolution(piece, conv, above=a == 0, below=b == rows)
        return out

    def middle(self, x: Tensor, block: Any) -> Tensor:
        """The residual blocks and attentions between encoder's and decoder's levels."""
        x = self.resnet(x, block.resnets[0])
        for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
            if attention is not None:
                x = self.attended(x, attention)
            x = self.resnet(x, resnet)
        return x

    def attended(self, x: Tensor, attention: Any) -> Tensor:
        """Attention of all positions of x to all, added to x."""
        scale, shift = self.affine(x, attention.group_norm)
        positions = x.flatten(1).T  # (T · F, C), a view
        normal = positions * scale[:, 0, 0] + shift[:, 0, 0]
        heads = attention.heads

        def split(tokens: Tensor) -> Tensor:
            return tokens.reshape(len(tokens), heads, -1).transpose(0, 1)[None]  # (1, heads, N, C / heads)

        keys, values = split(attention.to_k(normal)), split(attention.to_v(normal))
        out = torch.empty_like(x)
        flat = out.flatten(1)
        for start in range(0, len(normal), _QUERIES):
            queries = split(attention.to_q(normal[start : start + _QUERIES]))
            joined = functional.scaled_dot_product_attention(queries, keys, values)[0].transpose(0, 1).flatten(1)
            projected = attention.to_out[0](joined) + positions[start : start + _QUERIES]
            flat[:, start : start + _QUERIES] = projected.T
        return out


def _shape(x: Tensor) -> tuple[int, int, int]:
    channels, rows, columns = x.shape
    return channels, rows, columns


def _grouped(x: Tensor, groups: int) -> Tensor:
    return x.reshape(groups, -1)


def _activated(x: Tensor, affine: _Affine | None) -> Tensor:
    return x if affine is None else functional.silu(x * affine[0] + affine[1])


def _convolution(piece: Tensor, conv: Any, *, above: bool, below: bool) -> Tensor:
    """A 3 × 3 convolution of rows with one beside them on each side, zeros where the array ends."""
    padded = functional.pad(piece, (0, 0, int(above), int(below)))
    return functional.conv2d(padded[None], conv.weight, conv.bias, padding=(0, 1))[0]
