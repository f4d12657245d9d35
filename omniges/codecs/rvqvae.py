"""The residual-quantised VAE of GestureLSM for one part of the body, as a frozen codec.

Convolutions along time halve the frame rate a few times; a latent stands for four frames in the published nets. The
tensors have the names of the published ones. Nothing here learns: there is no dropout, no average of code vectors and
no start from data, so a mode of training could change nothing, and `Rvqvae.train` leaves the net as it is.

Of GestureLSM's files every size is read from the tensors, and every tensor has its place or is an error.

Shape letters: B batch, T frames, C channels of the part, N latents, D features of a latent, W width, Q quantisers,
K codes of a quantiser.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, cast

import torch
from torch import Tensor, nn

from omniges.codecs.base import exact
from omniges.errors import DataError, UsageFault
from omniges.storage.tensors import read_tensors, require_finite, require_same, shapes_of

BLOCK_LATENTS: Final = 1024
"""Latents that go through the net at once, beside their context."""

_DILATION_GROWTH: Final = 3
_STRIDE: Final = 2
_TINY: Final = 1e-7  # in the logarithm of the perplexity

_ENTRY: Final = "net"  # what a published file keeps its tensors under
_FIRST: Final = "encoder.model.0.weight"
_DOWN: Final = "encoder.model.2.0.weight"
_CODEBOOK: Final = "quantizer.layers.0.codebook"
_OTHER: Final = "choose a file of GestureLSM's RVQ-VAE, or download it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class RvqvaeSpec:
    """The sizes of a net."""

    channels: int
    """C."""
    width: int
    """W."""
    code_size: int
    """D."""
    codes: int
    """K."""
    quantizers: int
    """Q."""
    stages: int
    """Times that the encoder halves the frame rate."""
    depth: int
    """Residual blocks of a stage."""
    projected: bool
    """Whether each table of codes goes through a linear layer of its own."""

    @property
    def frames_per_latent(self) -> int:
        """Frames of a latent."""
        return int(_STRIDE**self.stages)

    @property
    def dilations(self) -> tuple[int, ...]:
        """Dilation of each residual block of a stage, widest first, in encoder and decoder alike."""
        return tuple(_DILATION_GROWTH ** (self.depth - 1 - k) for k in range(self.depth))

    @property
    def encoder_reach(self) -> tuple[int, int]:
        """Latent i sees the frames from f·i − reach[0] to f·i + reach[1], both included, f frames a latent."""
        before = after = 1  # the last convolution, in latents
        for _ in range(self.stages):
            before, after = (2 * (side + sum(self.dilations)) + extra for side, extra in ((before, 1), (after, 2)))
        return before + 1, after + 1  # the first convolution

    @property
    def decoder_reach(self) -> int:
        """The frames of latent i depend on the latents from i − reach to i + reach."""
        reach = 2  # the last two convolutions, in frames
        for _ in range(self.stages):
            reach = (reach + 2) // 2 + sum(self.dilations)  # the convolution behind the doubling, the doubling
        return reach + 1

    @property
    def encoder_context(self) -> int:
        """Latents' worth of frames on each side of a block with which its latents are those of one pass."""
        before, after = self.encoder_reach
        return max(-(-before // self.frames_per_latent), after // self.frames_per_latent)


@dataclass(frozen=True, slots=True)
class Quantised:
    """Latents as sums of codes."""

    vectors: Tensor
    """(B, N, D), the sum of the chosen codes."""
    indices: Tensor
    """(B, N, Q) int64, the chosen code of each quantiser."""
    code_vectors: Tensor
    """(Q, B, N, D), what each quantiser adds."""
    residual: Tensor
    """(B, N, D), what no quantiser gave: latents − vectors."""
    losses: Tensor
    """(Q,), twice the mean square of what each quantiser left over, the value of its two-sided commitment loss."""
    perplexities: Tensor
    """(Q,), exp of the entropy of the codes' frequencies over the batch, from 1 to K."""


class _Residual(nn.Module):
    """x + conv(ReLU(conv(ReLU(x)))), the first of them dilated."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation)
        self.conv2 = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, W, T) to the same."""
        branch: Tensor = self.conv2(torch.relu(self.conv1(torch.relu(x))))
        return x + branch


class _Stack(nn.Module):
    """A module that is a row of others under the name ``model``."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Through all of them."""
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
    """One quantiser: a table of codes, and the layer that they go through."""

    codebook: Tensor

    def __init__(self, codes: int, size: int, *, projected: bool) -> None:
        super().__init__()
        self.register_buffer("codebook", torch.zeros(codes, size))
        self.embedding_proj = nn.Linear(size, size) if projected else nn.Identity()

    def codes(self) -> Tensor:
        """The codes (K, D) that latents are compared with: the projection is of the table, not of the latents."""
        found: Tensor = self.embedding_proj(self.codebook)
        return found

    def nearest(self, vectors: Tensor) -> Tensor:
        """The index (B, N) of the code nearest to each vector (B, N, D), the first of equally near ones."""
        codes = self.codes()
        squared = vectors.square().sum(-1, keepdim=True) - 2 * vectors @ codes.mT + codes.square().sum(-1)
        return squared.argmin(-1)


class _Quantizer(nn.Module):
    """Quantisers one after the other, each of what the ones before have left over."""

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
            residual = residual - vectors  # not in place, for the latents are the caller's
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
    """A frozen net with random weights; `load_rvqvae` reads one from a file.

    `encode`, `quantise` and `decode` compute in float32, whatever autocast says, and without gradients. They change
    none of their arguments.
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
        """Nothing: the net stays in evaluation mode, also as part of a model that is trained."""
        del mode
        return self

    @torch.no_grad()
    def encode(self, motion: Tensor, *, block_latents: int = BLOCK_LATENTS) -> Tensor:
        """Motion (B, T, C) as latents (B, N, D) that are not quantised, N = ⌊T / frames_per_latent⌋.

        Frames beyond the last whole latent are cut off first: the net would read them, and latents up to
        `RvqvaeSpec.encoder_context` back from the end would depend on frames that no decoder gives back. What lies
        outside the motion is zero to the net. Long motion goes through it in blocks with context, so memory does not
        grow with T but for the result, which is that of one pass up to rounding.

        Raises DataError where not one latent is left.
        """
        per = self.spec.frames_per_latent
        count = motion.shape[1] // per
        if count < 1:
            raise DataError(f"motion: found {motion.shape[1]} frames; expected at least {per}: leave this clip out")

        def latents(start: int, stop: int) -> Tensor:
            found: Tensor = self.encoder(motion[:, start * per : stop * per].float().mT)
            return found.mT

        with exact(motion.device):
            return _in_blocks(latents, count, block_latents, self.spec.encoder_context)

    @torch.no_grad()
    def quantise(self, latents: Tensor) -> Quantised:
        """Latents (B, N, D) as sums of codes (van den Oord et al. 2017; residual: Lee et al. 2022)."""
        with exact(latents.device):
            found: Quantised = self.quantizer(latents.float())
            return found

    @torch.no_grad()
    def decode(self, latents: Tensor, *, quantised: bool, block_latents: int = BLOCK_LATENTS) -> Tensor:
        """Motion (B, N · frames_per_latent, C) of latents (B, N, D), snapped to codes before or taken as they are.

        In blocks like `encode`.
        """
        count = latents.shape[1]

        def codes(start: int, stop: int) -> Tensor:
            return self.quantise(latents[:, start:stop]).vectors

        # Once for each latent: rounding could choose another of two nearly equal codes in the next block's context.
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
    """`part` (B, latents · rows, …) of all latents, from calls of it with at most block + 2 · context of them."""
    found = []
    for start in range(0, count, block):
        stop = min(start + block, count)
        first, last = max(0, start - context), min(count, stop + context)
        found.append(part(first, last)[:, (start - first) * rows : (stop - first) * rows])
    return torch.cat(found, dim=1)


def load_rvqvae(path: Path) -> Rvqvae:
    """A frozen net on the host, from a ``.safetensors`` file or from ``{"net": tensors}`` as torch.save wrote it.

    Raises UsageFault where there is no such file, DataError where it is damaged or not exactly such a net.
    """
    if not path.is_file():
        raise UsageFault(f"{path}: no such file; expected the tensors of an RVQ-VAE")
    return rvqvae_of(read_tensors(path, _ENTRY), str(path))


def rvqvae_of(tensors: Mapping[str, Tensor], where: str) -> Rvqvae:
    """The net that tensors are, in float32; raises DataError where one is missing, too much or not as it should be."""
    with torch.device("meta"):
        net = Rvqvae(spec_of(tensors, where))
    expected = net.state_dict()
    require_same(shapes_of(expected), shapes_of(tensors), where, f"expected the tensors of one RVQ-VAE: {_OTHER}")
    for name, tensor in tensors.items():
        require_finite(name, tensor, where)
    net.load_state_dict({name: tensors[name].float().contiguous() for name in expected}, assign=True)
    return net


def spec_of(tensors: Mapping[str, Tensor], where: str) -> RvqvaeSpec:
    """The sizes that tensors tell; raises DataError where they do not tell them."""
    width, channels, _ = _shape(tensors, _FIRST, 3, where)
    _, _, kernel = _shape(tensors, _DOWN, 3, where)
    if kernel != 4:
        raise DataError(
            f"{where}: {_DOWN} has a kernel of {kernel}; expected 4: only nets of stride 2 can be decoded, {_OTHER}"
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
        raise DataError(f"{where}: no tensor {name}, found {found}, …: {_OTHER}")
    shape = tensors[name].shape
    if len(shape) != axes or 0 in shape:
        raise DataError(f"{where}: {name} has shape {tuple(shape)}; expected {axes} axes, none of them empty: {_OTHER}")
    return shape


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers tensors have at a place of their names; numbers, not the largest, bound the net."""
    return len({found[1] for found in map(re.compile(pattern).match, tensors) if found})
