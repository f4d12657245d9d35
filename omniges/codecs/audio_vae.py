"""Codec ``audioldm2-vae``: log-mel to the latents of AudioLDM2's variational autoencoder and back.

AudioLDM2 (H. Liu et al. 2023) and omniges use the same mel, see docs/reference/features.md. The codec's folder is the
subfolder ``vae`` of `cvssp/audioldm2` on the Hugging Face Hub. The folder of another diffusers AutoencoderKL with one
channel also works. Either folder must contain config.json and diffusion_pytorch_model.safetensors or .bin.

A row of latents has K channels and W columns. The value of channel k and column w has index k · W + w in the row. Each
value is (mean of the posterior − shift factor) · scaling factor, with both factors from the configuration.

Arrays of any length are processed in blocks of rows. The result equals the result of diffusers for the complete array.
Every latent depends on the complete clip: group normalisations use the mean and variance over all rows, and each row
attends to all rows. Therefore, a block cannot pass through the network alone. Each layer is applied to all blocks
before the next layer starts. A convolution of 3 rows needs one extra row on each side of a block. Means and variances
are computed over all blocks. The attention computes a block of queries against all keys. The block length affects only
the memory, which contains two activations of the complete clip and one block.

Shape letters: C channels, T rows (time), F columns (frequency) of an activation; K channels of latents. A letter with a
prime, such as T', is the size after the network or layer. There is no batch axis.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from omniges.codecs.base import Loading, exact, fingerprint_of
from omniges.errors import DataError
from omniges.features.audio import MEL_BANDS, Loudness
from omniges.shards.latents import FrameEntry
from omniges.storage.documents import Document, Is, Range, shown
from omniges.storage.files import read_settings
from omniges.storage.redact import one_line
from omniges.storage.tensors import read_tensors, require_finite, require_same, shapes_of

F32 = npt.NDArray[np.float32]

NAME: Final = "audioldm2-vae"

_CONFIG: Final = "config.json"
_CLASS: Final = "AutoencoderKL"
_OTHER: Final = f"{_CONFIG} and weights belong to different codecs; give a {_CONFIG} and weights of one codec"
_WEIGHTS: Final = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_Size = Annotated[int, Range(1, 1 << 16)]
_Scaling = Annotated[float, Is("a number other than 0", lambda found: abs(found) > 1e-12)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Config:
    """Settings in config.json that affect the output."""

    in_channels: Literal[1]
    out_channels: Literal[1]
    down_block_types: tuple[Literal["DownEncoderBlock2D"], ...]
    up_block_types: tuple[Literal["UpDecoderBlock2D"], ...]
    block_out_channels: Annotated[
        tuple[_Size, ...], Is("a list of 1 to 6 whole numbers", lambda found: 1 <= len(found) <= 6)
    ]
    layers_per_block: _Size = 1
    act_fn: Literal["silu"]
    latent_channels: _Size = 4
    norm_num_groups: _Size = 32
    scaling_factor: _Scaling
    shift_factor: float | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @property
    def frames_per_row(self) -> int:
        """Number of mel frames that a row of latents covers; a column covers the same number of mel bands."""
        return int(2 ** (len(self.block_out_channels) - 1))


_NOT_IMPLEMENTED: Final = {"latents_mean": None, "latents_std": None}
_UNREAD: Final = {"_class_name", "_diffusers_version", "_name_or_path", "sample_size", "force_upcast"}
"""Keys of config.json that do not affect the output: names, versions, tiling, and the precision of other pipelines."""
_REMEDY: Final = "give an autoencoder that fits the mel of omniges"
_OLD_NAMES: Final = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Current parts of the names of attention weights, by the parts that diffusers wrote before version 0.18."""

_BLOCK_ELEMENTS: Final = 1 << 24  # elements of an activation in a block: 64 MB of float32
_QUERIES: Final = 2048

_Affine = tuple[Tensor, Tensor]
"""Scale and shift (C, 1, 1) that apply a group normalisation: x · scale + shift."""


class AudioVae:
    """Codec for log-mels that uses an AutoencoderKL."""

    loudness: Loudness = "peak"
    """Loudness of AudioLDM2's training data."""

    def __init__(self, vae: Any, entry: FrameEntry) -> None:
        self._vae, self.entry = vae, entry
        self._scaling: float = vae.config.scaling_factor
        self._shift: float = vae.config.shift_factor or 0.0

    def encode(self, array: F32) -> F32:
        """Encode M mel frames (M, 64) as latents (M // entry.frames_per_row, K · W)."""
        if len(array) < self.entry.frames_per_row:
            return np.empty((0, self.entry.channels), np.float32)
        with exact(self._vae.device):
            mel = torch.from_numpy(np.array(array, np.float32)).to(self._vae.device)
            mean = encoded(self._vae, mel[None])[: self._vae.config.latent_channels]
            latents = ((mean - self._shift) * self._scaling).transpose(0, 1).flatten(1)
        return np.ascontiguousarray(latents.cpu().numpy())

    def decode(self, latents: F32) -> F32:
        """Decode latents (rows, K · W) as a log-mel (rows · entry.frames_per_row, 64)."""
        channels = self._vae.config.latent_channels
        if not len(latents):
            return np.empty((0, MEL_BANDS), np.float32)
        with exact(self._vae.device):
            rows = torch.from_numpy(np.array(latents, np.float32)).to(self._vae.device)
            grid = rows.reshape(len(rows), channels, -1).transpose(0, 1) / self._scaling + self._shift
            mel = decoded(self._vae, grid)[0]
        return np.ascontiguousarray(mel.cpu().numpy())


def load(folder: Path, loading: Loading) -> AudioVae:
    """Load the codec from a folder.

    Args:
        folder: Folder of config.json and weights.
        loading: Options; only the device is used.

    Returns:
        The loaded codec.

    Raises:
        DataError: A key of the configuration has an unsupported value, a file is missing or damaged, or the names or
            shapes of the weights do not fit the configuration.
    """
    config, arguments = _read_config(folder / _CONFIG)
    frames_per_row = config.frames_per_row
    weights = _weights(folder)
    layers = config.layers_per_block * len(config.block_out_channels)
    if layers > len(weights):
        raise DataError(
            f"{folder / _CONFIG}: expected fewer layers than the {len(weights)} tensors, found {layers}; {_OTHER}"
        )
    try:
        with torch.device("meta"):  # wrong sizes in a configuration must not allocate memory
            vae: Any = AutoencoderKL(**arguments)  # type: ignore[no-untyped-call]
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{folder / _CONFIG}: expected the configuration of an AutoencoderKL, found another configuration "
            f"({reason}); give the codec's own config.json"
        ) from error
    require_same(shapes_of(vae.state_dict()), shapes_of(weights), str(folder), _OTHER)
    vae.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    vae = vae.to(loading.device).eval().requires_grad_(False)
    found = {one.name: value for one in fields(_Config) if (value := vae.config.get(one.name)) is not None}
    columns = MEL_BANDS // frames_per_row  # both axes are halved equally often
    entry = FrameEntry(
        name=NAME,
        fingerprint=fingerprint_of(json.loads(json.dumps(found)), vae.state_dict()),
        source="mel.npy",
        frames_per_row=frames_per_row,
        channels=vae.config.latent_channels * columns,
        settings={
            "latent_channels": vae.config.latent_channels,
            "columns": columns,
            "scaling_factor": vae.config.scaling_factor,
            "shift_factor": vae.config.shift_factor or 0.0,
            "posterior": "mean",
        },
    )
    return AudioVae(vae, entry)


def _read_config(path: Path) -> tuple[_Config, dict[str, Any]]:
    """Read and check a config.json; return the configuration, and the arguments for diffusers' AutoencoderKL."""
    found = read_settings(
        path, "give the folder that contains the codec's config.json, or copy the codec again", path.parent
    )
    kind = found.get("_class_name", _CLASS)
    if kind != _CLASS:
        raise DataError(
            f"{path}: expected an {_CLASS} of diffusers, found {one_line(str(kind), 80)}; give the folder vae of a "
            "diffusers model"
        )
    document = Document(found, str(path), _REMEDY)
    document.require_only(_NOT_IMPLEMENTED)
    names = {one.name for one in fields(_Config)}
    document.require_known({*names, *_NOT_IMPLEMENTED, *_UNREAD})
    config = document.values(_Config)
    for key in ("down_block_types", "up_block_types"):
        if len(getattr(config, key)) != len(config.block_out_channels):
            expected = f"{len(config.block_out_channels)} as in block_out_channels"
            raise document.fault(key, shown(found[key]), expected)
    return config, {key: found[key] for key in found if key in names}


def _weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights in a folder, by their names in current diffusers.

    Raises `DataError` if the file is missing, or if a weight is not floating point or contains NaN or infinite values.
    """
    path = next((folder / name for name in _WEIGHTS if os.path.lexists(folder / name)), None)
    if path is None:
        raise DataError(f"{folder}: expected {' or '.join(_WEIGHTS)}, found neither; copy the codec's weights there")
    found = {}
    for name, tensor in read_tensors(path).items():
        for old, new in _OLD_NAMES.items():
            name = name.replace(old, new)  # noqa: PLW2901 - the name in today's diffusers
        require_finite(name, tensor, str(path))
        found[name] = tensor
    return found


@torch.no_grad()
def encoded(vae: Any, frames: Tensor, block_elements: int = _BLOCK_ELEMENTS) -> Tensor:
    """Compute the AutoencoderKL's ``_encode`` in blocks.

    Args:
        vae: The AutoencoderKL.
        frames: Input (C, T, F).
        block_elements: Number of elements of an activation to compute at once.

    Returns:
        Means and log variances (2 K, T', F') of the posterior.
    """
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
    """Compute the AutoencoderKL's ``_decode`` in blocks.

    Args:
        vae: The AutoencoderKL.
        latents: Latents (K, T', F').
        block_elements: Number of elements of an activation to compute at once.

    Returns:
        Frames (C, T, F).
    """
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
    """Executor of the autoencoder: each method applies one layer to a complete activation, block by block."""

    def __init__(self, block_elements: int) -> None:
        self._block_elements = block_elements

    def _blocks(self, x: Tensor) -> Iterator[tuple[int, int]]:
        """Yield the row range (start, stop) of each block of x; start is even, stop is exclusive."""
        channels, rows, columns = x.shape
        step = max(2, self._block_elements // (channels * columns) & ~1)
        for start in range(0, rows, step):
            yield start, min(start + step, rows)

    def affine(self, x: Tensor, norm: Any) -> _Affine:
        """Return the scale and shift that apply a group normalisation to x.

        The mean and variance of each group are computed over all rows of x, in float64.

        Args:
            x: Activation (C, T, F).
            norm: Group normalisation layer.

        Returns:
            Scale and shift (C, 1, 1).
        """
        groups = norm.num_groups
        count = x.numel() // groups
        total = sum(x[:, a:b].reshape(groups, -1).sum(1, dtype=torch.float64) for a, b in self._blocks(x))
        mean = torch.as_tensor(total) / count
        centre = mean.float()[:, None]
        squares = sum(
            (x[:, a:b].reshape(groups, -1) - centre).square().sum(1, dtype=torch.float64) for a, b in self._blocks(x)
        )
        # `squares` is about the mean rounded to float32, so subtract the square of the rounding error.
        variance = torch.as_tensor(squares) / count - (mean - centre[:, 0].double()).square()
        each = x.shape[0] // groups
        scale = norm.weight.double() / (variance + norm.eps).sqrt().repeat_interleave(each)
        shift = norm.bias.double() - mean.repeat_interleave(each) * scale
        return scale.float()[:, None, None], shift.float()[:, None, None]

    def convolved(self, x: Tensor, conv: Any, affine: _Affine | None, into: Tensor | None = None) -> Tensor:
        """Apply a 3 × 3 convolution.

        Args:
            x: Activation (C, T, F).
            conv: Convolution layer with a 3 × 3 kernel.
            affine: Scale and shift to apply before SiLU and the convolution; None: apply only the convolution.
            into: Activation (C', T, F) to which the result is added in place; None: return a new activation.

        Returns:
            The activation (C', T, F).
        """
        rows = x.shape[1]
        out = x.new_empty(conv.out_channels, rows, x.shape[2]) if into is None else into
        for a, b in self._blocks(x):
            piece = x[:, max(a - 1, 0) : b + 1]
            if affine is not None:
                piece = functional.silu(piece * affine[0] + affine[1])
            made = _convolution(piece, conv, above=a == 0, below=b == rows)
            if into is None:
                out[:, a:b] = made
            else:
                out[:, a:b] += made
        return out

    def pointwise(self, x: Tensor, conv: Any) -> Tensor:
        """Apply a 1 × 1 convolution.

        Args:
            x: Activation (C, T, F).
            conv: Convolution layer with a 1 × 1 kernel.

        Returns:
            The activation (C', T, F).
        """
        out = x.new_empty(conv.out_channels, *x.shape[1:])
        for a, b in self._blocks(x):
            out[:, a:b] = functional.conv2d(x[None, :, a:b], conv.weight, conv.bias)[0]
        return out

    def resnet(self, x: Tensor, block: Any) -> Tensor:
        """Apply a residual block, which overwrites x if the number of channels does not change.

        Args:
            x: Activation (C, T, F).
            block: Residual block of the AutoencoderKL.

        Returns:
            The activation (C', T, F).
        """
        hidden = self.convolved(x, block.conv1, self.affine(x, block.norm1))
        if block.conv_shortcut is not None:
            x = self.pointwise(x, block.conv_shortcut)
        return self.convolved(hidden, block.conv2, self.affine(hidden, block.norm2), into=x)

    def halved(self, x: Tensor, conv: Any) -> Tensor:
        """Apply a convolution of stride 2, padded with one row and one column of zeros at the end only.

        Args:
            x: Activation (C, T, F).
            conv: Convolution layer of stride 2.

        Returns:
            The activation (C', T // 2, F // 2).
        """
        rows, columns = x.shape[1] // 2, x.shape[2] // 2
        out = x.new_empty(conv.out_channels, rows, columns)
        for a, b in self._blocks(out):
            piece = x[:, 2 * a : 2 * b + 1]
            piece = functional.pad(piece, (0, 1, 0, 2 * b + 1 - 2 * a - piece.shape[1]))
            out[:, a:b] = functional.conv2d(piece[None], conv.weight, conv.bias, stride=2)[0]
        return out

    def doubled(self, x: Tensor, conv: Any) -> Tensor:
        """Repeat every row and column, then apply a 3 × 3 convolution.

        Args:
            x: Activation (C, T, F).
            conv: Convolution layer with a 3 × 3 kernel.

        Returns:
            The activation (C', 2 T, 2 F).
        """
        rows = 2 * x.shape[1]
        out = x.new_empty(conv.out_channels, rows, 2 * x.shape[2])
        for a, b in self._blocks(out):
            first, last = max(a // 2 - 1, 0), min(b // 2 + 1, x.shape[1])
            twice = functional.interpolate(x[None, :, first:last], scale_factor=2.0, mode="nearest")[0]
            piece = twice[:, max(a - 1, 0) - 2 * first : b + 1 - 2 * first]
            out[:, a:b] = _convolution(piece, conv, above=a == 0, below=b == rows)
        return out

    def middle(self, x: Tensor, block: Any) -> Tensor:
        """Apply the middle block of the encoder or decoder: residual blocks with attention layers between them.

        Args:
            x: Activation (C, T, F).
            block: Middle block of the AutoencoderKL.

        Returns:
            The activation (C, T, F).
        """
        x = self.resnet(x, block.resnets[0])
        for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
            if attention is not None:
                x = self.attended(x, attention)
            x = self.resnet(x, resnet)
        return x

    def attended(self, x: Tensor, attention: Any) -> Tensor:
        """Apply a self-attention layer to x and add x to the result; every position attends to all positions.

        Args:
            x: Activation (C, T, F).
            attention: Attention layer of the AutoencoderKL.

        Returns:
            The activation (C, T, F).
        """
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


def _convolution(piece: Tensor, conv: Any, *, above: bool, below: bool) -> Tensor:
    """Apply a 3 × 3 convolution to a block of rows.

    `piece` contains the block, and the rows directly before and after it. The first block of an array has no row before
    it: `above` is True, and a row of zeros is added. The last block has no row after it: `below` is True, and a row of
    zeros is added.
    """
    padded = functional.pad(piece, (0, 0, int(above), int(below)))
    return functional.conv2d(padded[None], conv.weight, conv.bias, padding=(0, 1))[0]
