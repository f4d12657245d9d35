"""Residual-quantised VAE of GestureLSM for one part of the body, as a frozen network.

Convolutions along time halve the frame rate several times. A latent covers four frames in the published networks. The
tensors have the published names. The network cannot be trained here: there is no dropout, no EMA of code vectors and no
initialization from data. So `Rvqvae.train` leaves the network unchanged.

All sizes are read from the tensors of GestureLSM's files. A missing or unknown tensor is an error.

Shape letters: B batch, T frames, C channels of the part, N latents, D features of a latent, W width, Q quantisers,
K codes of a quantiser.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, cast

import torch
from torch import Tensor, nn

from omniges.codecs.base import exact
from omniges.errors import DataError, UsageFault
from omniges.storage.documents import Document, shown
from omniges.storage.files import read_settings
from omniges.storage.tensors import read_tensors, require_finite, require_same, shapes_of

BLOCK_LATENTS: Final = 1024
"""Number of latents that are computed at once, in addition to the context on both sides."""

LATENT_SCALE: Final = 5.0
"""Divisor of latents. After the division, they have about the magnitude of unit noise."""

_DILATION_GROWTH: Final = 3
_STRIDE: Final = 2
_TINY: Final = 1e-7  # avoids the logarithm of 0 in the perplexity

_ENTRY: Final = "net"  # key of the tensors in a published file
_FIRST: Final = "encoder.model.0.weight"
_DOWN: Final = "encoder.model.2.0.weight"
_CODEBOOK: Final = "quantizer.layers.0.codebook"
_CONFIG: Final = "config.json"
_ONLY: Final[Mapping[str, Any]] = {
    "stride_t": _STRIDE,
    "dilation_growth_rate": _DILATION_GROWTH,
    "vq_act": "relu",
    "activation": "relu",
    "vq_norm": None,
    "norm": None,
    "shared_codebook": False,
    "latent_scale": LATENT_SCALE,
}
"""Arguments of GestureLSM's constructor that must have these values, which the published networks have."""
_UNREAD: Final = frozenset(
    {"part", "mu", "quantize_dropout_prob", "seed", "torch", "parameters"}
    | {"latent_std", "smallest_code_margin", "fp32_vs_fp64_max_abs"}
)
"""Keys of config.json that do not affect the output: the part's name, training settings, and notes on the file."""
_OTHER: Final = "give a file of GestureLSM's RVQ-VAE, or download the file again"


@dataclass(frozen=True, slots=True, kw_only=True)
class RvqvaeSpec:
    """Sizes of a network."""

    channels: int
    """Channels C of the part."""
    width: int
    """Width W of the convolutions."""
    code_size: int
    """Features D of a latent."""
    codes: int
    """Codes K of a quantiser."""
    quantizers: int
    """Number of quantisers Q."""
    stages: int
    """Number of times that the encoder halves the frame rate."""
    depth: int
    """Number of residual blocks in a stage."""
    projected: bool
    """True: each table of codes has a linear projection."""

    @property
    def frames_per_latent(self) -> int:
        """Number of frames that a latent covers."""
        return int(_STRIDE**self.stages)

    @property
    def dilations(self) -> tuple[int, ...]:
        """Dilations of the residual blocks in every stage of encoder and decoder, largest first."""
        return tuple(_DILATION_GROWTH ** (self.depth - 1 - k) for k in range(self.depth))

    @property
    def encoder_reach(self) -> tuple[int, int]:
        """Frames on which a latent depends: the counts (before, after).

        Latent i depends on frames f·i − before to f·i + after, with f frames per latent.
        """
        before = after = 1  # the last convolution, in latents
        for _ in range(self.stages):
            before, after = (2 * (side + sum(self.dilations)) + extra for side, extra in ((before, 1), (after, 2)))
        return before + 1, after + 1  # the first convolution

    @property
    def decoder_reach(self) -> int:
        """Number of latents, on each side of a latent, that affect the decoded frames of this latent.

        The frames of latent i depend on latents i − reach to i + reach.
        """
        reach = 2  # the last two convolutions, in frames
        for _ in range(self.stages):
            reach = (reach + 2) // 2 + sum(self.dilations)  # upsampling and the convolution after it, then blocks
        return reach + 1

    @property
    def encoder_context(self) -> int:
        """Number of latents to add on each side of a block, so that the result equals one pass over all frames."""
        before, after = self.encoder_reach
        return max(-(-before // self.frames_per_latent), after // self.frames_per_latent)


@dataclass(frozen=True, slots=True)
class Quantised:
    """Latents that are approximated by sums of codes."""

    vectors: Tensor
    """(B, N, D), the sum of the chosen codes."""
    indices: Tensor
    """(B, N, Q) int64, the chosen code of each quantiser."""
    code_vectors: Tensor
    """(Q, B, N, D), the code that each quantiser adds."""
    residual: Tensor
    """(B, N, D), latents − vectors."""
    losses: Tensor
    """(Q,), the two-sided commitment loss of each quantiser: twice the mean square of its residual."""
    perplexities: Tensor
    """(Q,), perplexity of each quantiser's codes: the exponential of the entropy of their frequencies, from 1 to K."""


class _Residual(nn.Module):
    """Residual block x + conv(ReLU(conv(ReLU(x)))), whose first convolution is dilated."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.conv2 = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to x (B, W, T); the result has the same shape."""
        branch: Tensor = self.conv2(torch.relu(self.conv1(torch.relu(x))))
        return x + branch


class _Stack(nn.Module):
    """Modules in sequence. They are stored as ``model``, so that the tensors have the published names."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Apply all modules to x (B, channels, time) in order."""
        found: Tensor = self.model(x)
        return found


def _conv(channels: int, width: int) -> nn.Conv1d:
    return nn.Conv1d(channels, width, 3, padding=1)


def _residuals(spec: RvqvaeSpec) -> _Stack:
    return _Stack(*(_Residual(spec.width, dilation) for dilation in spec.dilations))


def _encoder(spec: RvqvaeSpec) -> _Stack:
    stages = [
        nn.Sequential(nn.Conv1d(spec.width, spec.width, 4, stride=_STRIDE, padding=1), _residuals(spec))
        for _ in range(spec.stages)
    ]
    return _Stack(_conv(spec.channels, spec.width), nn.ReLU(), *stages, _conv(spec.width, spec.code_size))


def _decoder(spec: RvqvaeSpec) -> _Stack:
    stages = [
        nn.Sequential(_residuals(spec), nn.Upsample(scale_factor=_STRIDE), _conv(spec.width, spec.width))
        for _ in range(spec.stages)
    ]
    last = (_conv(spec.width, spec.width), nn.ReLU(), _conv(spec.width, spec.channels))
    return _Stack(_conv(spec.code_size, spec.width), nn.ReLU(), *stages, *last)


class _Codebook(nn.Module):
    """One quantiser: a table of codes and their projection."""

    codebook: Tensor

    def __init__(self, codes: int, size: int, *, projected: bool) -> None:
        super().__init__()
        self.register_buffer("codebook", torch.zeros(codes, size))
        self.embedding_proj = nn.Linear(size, size) if projected else nn.Identity()

    def codes(self) -> Tensor:
        """Return the projected codes (K, D). `nearest` compares vectors with them, but does not project the vectors."""
        found: Tensor = self.embedding_proj(self.codebook)
        return found

    def nearest(self, vectors: Tensor) -> Tensor:
        """Return the index (B, N) of the code nearest to each vector (B, N, D); of equally near codes, the first."""
        codes = self.codes()
        squared = vectors.square().sum(-1, keepdim=True) - 2 * vectors @ codes.mT + codes.square().sum(-1)
        return squared.argmin(-1)


class _Quantizer(nn.Module):
    """Quantisers in sequence. Each quantiser approximates the residual that the previous quantisers leave."""

    def __init__(self, spec: RvqvaeSpec) -> None:
        super().__init__()
        tables = [_Codebook(spec.codes, spec.code_size, projected=spec.projected) for _ in range(spec.quantizers)]
        self.layers = nn.ModuleList(tables)

    def forward(self, latents: Tensor) -> Quantised:
        residual = latents
        indices, added, losses, perplexities = [], [], [], []
        for table in cast("Iterator[_Codebook]", self.layers.children()):
            index = table.nearest(residual)
            vectors = table.codes()[index]
            residual = residual - vectors  # not in place: the latents belong to the caller
            indices.append(index)
            added.append(vectors)
            losses.append(2 * residual.square().mean())
            shares = torch.bincount(index.flatten(), minlength=len(table.codebook)).float() / index.numel()
            perplexities.append(torch.exp(-(shares * torch.log(shares + _TINY)).sum()))
        codes = torch.stack(added)
        return Quantised(
            vectors=codes.sum(0),
            indices=torch.stack(indices, dim=-1),
            code_vectors=codes,
            residual=residual,
            losses=torch.stack(losses),
            perplexities=torch.stack(perplexities),
        )


class Rvqvae(nn.Module):
    """A frozen RVQ-VAE. The constructor sets random weights; `load_rvqvae` reads a network from a file.

    `encode`, `quantise` and `decode` compute in float32, also inside an autocast context, and without gradients. They
    do not change their arguments.
    """

    def __init__(self, spec: RvqvaeSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = _encoder(spec)
        self.decoder = _decoder(spec)
        self.quantizer = _Quantizer(spec)
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> Self:
        """Do nothing: the network stays in evaluation mode, also inside a model that is trained."""
        del mode
        return self

    @torch.no_grad()
    def encode(self, motion: Tensor, *, block_latents: int = BLOCK_LATENTS) -> Tensor:
        """Encode motion as N = ⌊T / frames_per_latent⌋ latents, without quantisation.

        Frames after the last complete latent are dropped first. Otherwise, up to `RvqvaeSpec.encoder_context` latents
        at the end would depend on frames that the decoder does not return. The motion is padded with zeros. Long motion
        is processed in blocks with context, so memory grows only with the size of the result. Up to rounding, the
        result equals that of one pass.

        Args:
            motion: Channels (B, T, C).
            block_latents: Number of latents in a block, without its context.

        Returns:
            Latents (B, N, D).

        Raises:
            DataError: The motion is shorter than one latent.
        """
        per = self.spec.frames_per_latent
        count = motion.shape[1] // per
        if count < 1:
            raise DataError(f"motion: expected at least {per} frames, found {motion.shape[1]}; leave this clip out")

        def latents(start: int, stop: int) -> Tensor:
            found: Tensor = self.encoder(motion[:, start * per : stop * per].float().mT)
            return found.mT

        with exact(motion.device):
            return _in_blocks(latents, count, block_latents, self.spec.encoder_context)

    @torch.no_grad()
    def quantise(self, latents: Tensor) -> Quantised:
        """Approximate latents (B, N, D) by sums of codes (van den Oord et al. 2017; residual: Lee et al. 2022)."""
        with exact(latents.device):
            found: Quantised = self.quantizer(latents.float())
            return found

    @torch.no_grad()
    def decode(self, latents: Tensor, *, quantised: bool, block_latents: int = BLOCK_LATENTS) -> Tensor:
        """Decode latents as motion, in blocks as in `encode`.

        Args:
            latents: Latents (B, N, D).
            quantised: If True, first replace latents by codes.
            block_latents: Number of latents in a block, without its context.

        Returns:
            Motion (B, N · frames_per_latent, C).
        """
        count = latents.shape[1]

        def codes(start: int, stop: int) -> Tensor:
            return self.quantise(latents[:, start:stop]).vectors

        # Quantise each latent only once: in the context of the next block, rounding might select another code.
        taken = _in_blocks(codes, count, block_latents) if quantised else latents.float()

        def frames(start: int, stop: int) -> Tensor:
            found: Tensor = self.decoder(taken[:, start:stop].mT)
            return found.mT

        with exact(latents.device):
            per = self.spec.frames_per_latent
            return _in_blocks(frames, count, block_latents, self.spec.decoder_reach, rows=per)


def _in_blocks(
    part: Callable[[int, int], Tensor], count: int, block: int, context: int = 0, *, rows: int = 1
) -> Tensor:
    """Apply a function to blocks of latents with context, and join the results without the context.

    Args:
        part: Function that gets the range (first, end) of a block with its context, as indices of latents; end is
            exclusive. It returns a tensor (B, (end − first) · rows, …).
        count: Number of latents.
        block: Number of latents in a block, without context.
        context: Number of latents to add on each side of a block.
        rows: Number of rows of the result for each latent.

    Returns:
        The joined results (B, count · rows, …).
    """
    found = []
    for start in range(0, count, block):
        stop = min(start + block, count)
        first, last = max(0, start - context), min(count, stop + context)
        found.append(part(first, last)[:, (start - first) * rows : (stop - first) * rows])
    return torch.cat(found, dim=1)


def load_rvqvae(path: Path) -> Rvqvae:
    """Load a frozen network to the CPU from a ``.safetensors`` file, or from a torch.save file ``{"net": tensors}``.

    A config.json in the same folder may contain the arguments of GestureLSM's constructor; they must fit the tensors.

    Args:
        path: File of one network.

    Returns:
        The network in float32.

    Raises:
        UsageFault: The file does not exist.
        DataError: The file is damaged or has missing or unknown tensors. Or config.json does not fit the tensors, or
            has settings that are not implemented.
    """
    if not os.path.lexists(path):
        raise UsageFault(
            f"{path}: expected the tensors of an RVQ-VAE, found that the file does not exist; check the path"
        )
    net = rvqvae_of(read_tensors(path, _ENTRY), str(path))
    config = path.parent / _CONFIG
    if os.path.lexists(config):  # also a pipe or a broken link, which is refused
        _require_config(config, net.spec)
    return net


def _require_config(path: Path, spec: RvqvaeSpec) -> None:
    """Raise DataError if a config.json has other sizes than the tensors, or settings that are not implemented.

    The tensors do not show the activation, the dilations, or the type of a norm without weights. Only config.json does.

    Args:
        path: The config.json, in the folder of the network's file.
        spec: Sizes of the tensors.

    Raises:
        DataError: A size differs from the tensors, a setting is not implemented, or a key is unknown.
    """
    document = Document(read_settings(path, _OTHER, path.parent), str(path), _OTHER)
    sizes = {
        "input_width": spec.channels,
        "nb_code": spec.codes,
        "code_dim": spec.code_size,
        "output_emb_width": spec.code_size,
        "width": spec.width,
        "depth": spec.depth,
        "down_t": spec.stages,
        "num_quantizers": spec.quantizers,
        "frames_per_latent": spec.frames_per_latent,
    }
    for key, value in sizes.items():
        found = document.found.get(key, value)
        if type(found) is not int or found != value:
            raise document.fault(key, shown(found), f"{value} as in the tensors")
    document.require_only(_ONLY)
    document.require_known({*sizes, *_ONLY, *_UNREAD})


def rvqvae_of(tensors: Mapping[str, Tensor], where: str) -> Rvqvae:
    """Build a network from tensors, in float32.

    Args:
        tensors: Tensors by name.
        where: Name of the file, for errors.

    Returns:
        The network, on the tensors' device.

    Raises:
        DataError: A tensor is missing, unknown, of another shape, or has NaN or infinite values.
    """
    with torch.device("meta"):
        net = Rvqvae(spec_of(tensors, where))
    expected = net.state_dict()
    require_same(shapes_of(expected), shapes_of(tensors), where, f"{_OTHER}")
    for name, tensor in tensors.items():
        require_finite(name, tensor, where)
    net.load_state_dict({name: tensors[name].float().contiguous() for name in expected}, assign=True)
    return net


def spec_of(tensors: Mapping[str, Tensor], where: str) -> RvqvaeSpec:
    """Read the sizes of a network from its tensors.

    Args:
        tensors: Tensors by name.
        where: Name of the file, for errors.

    Returns:
        The sizes.

    Raises:
        DataError: A tensor that gives a size is missing, empty or of another number of axes. Or the convolutions that
            halve the frame rate have a kernel other than 4, and therefore a stride other than 2.
    """
    width, channels, _ = _shape(tensors, _FIRST, 3, where)
    _, _, kernel = _shape(tensors, _DOWN, 3, where)
    if kernel != 4:
        raise DataError(
            f"{where}: expected a kernel of 4 in {_DOWN}, found {kernel}; omniges decodes only networks of stride 2: "
            f"{_OTHER}"
        )
    codes, code_size = _shape(tensors, _CODEBOOK, 2, where)
    return RvqvaeSpec(
        channels=channels,
        width=width,
        code_size=code_size,
        codes=codes,
        quantizers=_count(tensors, r"quantizer\.layers\.(\d+)\."),
        stages=_count(tensors, r"encoder\.model\.(\d+)\.\d+\."),
        depth=_count(tensors, r"encoder\.model\.2\.1\.model\.(\d+)\."),
        projected=any(".embedding_proj." in name for name in tensors),
    )


def _shape(tensors: Mapping[str, Tensor], name: str, axes: int, where: str) -> torch.Size:
    if name not in tensors:
        found = ", ".join(sorted(tensors)[:3])
        raise DataError(f"{where}: expected the tensor {name}, found {found}, …; {_OTHER}")
    shape = tensors[name].shape
    if len(shape) != axes or 0 in shape:
        raise DataError(
            f"{where}: expected {axes} axes, none of them empty, found {name} of shape {tuple(shape)}; {_OTHER}"
        )
    return shape


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """Return how many different numbers a pattern finds in the names of tensors.

    The numbers themselves are not used, because a damaged file could contain an arbitrarily large number.
    """
    return len({found[1] for found in map(re.compile(pattern).match, tensors) if found})
