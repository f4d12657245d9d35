"""The trunk: a joint transformer over the tokens of several streams, each with its noise level.

An MMDiT (Esser et al. 2024) of as many streams as one likes. By configuration it is exactly the trunk of OmniFlow
(Li et al. 2024): `omniges.pretrained.trunk` has that configuration. By default it differs in three ways: tokens
have rotary positions in seconds, which all streams share; the speaker is part of the condition; a stream that is
not given takes no part, instead of being carried as noise.

Shape letters: B batch, N tokens of one stream or of all, C channels of a stream's tokens, H heads, E features a head,
W = H · E width. Noise levels sigma are in [0, 1]: 0 clean, 1 pure noise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from omniges.errors import DataError
from omniges.storage.atomic import make_folder, os_errors, publish_bytes
from omniges.storage.canonical_json import json_document
from omniges.storage.tensors import read_tensors, write_tensors

Conditioning = Literal["summed", "split"]
QKNormKind = Literal["layer", "rms"]
NORM_EPS = 1e-6
LEVEL_FEATURES = 256
LEVEL_SCALE = 1000.0
LONGEST_PERIOD = 10_000.0

CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "diffusion_pytorch_model.safetensors"
"""Files of `JointFlowTransformer.save_pretrained`, named as diffusers names a model's."""


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

    def project(self, x: Tensor, condition: Tensor, heads: int) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Queries and keys (B, N, 2, H, E), values (B, N, H, E), and of the modulation what `finish` takes."""
        parts = self.modulation(condition).chunk(2 if self.context_only else 6, dim=-1)
        if self.context_only:  # here the scale comes first, as in OmniFlow
            scale, shift = parts
        else:
            shift, scale = parts[:2]
        qkv: Tensor = self.qkv(modulate(x, shift, scale)).unflatten(-1, (3, heads, -1))
        qk = qkv[:, :, :2]
        return (qk if self.qk_norm is None else self.qk_norm(qk)), qkv[:, :, 2], parts[2:]

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
        self.branches = nn.ModuleDict()
        for name in names:
            own = QKNorm("rms", features, qk_norm_eps) if qk_norm == "rms" else None
            self.branches[name] = _Branch(width, mlp_width, own, context_only=name in context_only)

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

        Returns:
            Tokens (B, N, W) of each stream in `hidden`.
        """
        projected = {name: self._branch(name).project(x, conditions[name], self.heads) for name, x in hidden.items()}
        qk = torch.cat([qk for qk, _, _ in projected.values()], dim=1)
        value = torch.cat([value for _, value, _ in projected.values()], dim=1)
        if self.qk_norm is not None:
            qk = self.qk_norm(qk)
        if rotary is not None:
            qk = rotate(qk, *rotary)
        query, key = qk.to(value.dtype).unbind(2)
        attended = functional.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask
        )
        joined = attended.transpose(1, 2).flatten(2)
        parts = torch.split(joined, [x.shape[1] for x in hidden.values()], dim=1)
        return {
            name: self._branch(name).finish(x, part, projected[name][2])
            for (name, x), part in zip(hidden.items(), parts, strict=True)
        }

    def _branch(self, name: str) -> _Branch:
        return cast("_Branch", self.branches[name])


def level_features(levels: Tensor) -> Tensor:
    """Noise levels (B,) as features (B, 256) float32: cos and sin of 1000 · level · 10⁴^(−j / 128), j = 0 … 127."""
    half = LEVEL_FEATURES // 2
    order = torch.arange(half, device=levels.device, dtype=torch.float32)
    frequencies = torch.exp(-math.log(LONGEST_PERIOD) * order / half)
    angles = LEVEL_SCALE * levels.to(torch.float32)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class _TwoLayers(nn.Module):
    """Linear, SiLU, Linear."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) to (B, W), in the weights' precision."""
        found: Tensor = self.linear_2(functional.silu(self.linear_1(x.to(self.linear_1.weight.dtype))))
        return found


class _Head(nn.Module):
    """Tokens to outputs: an optional wider layer, AdaLN with the scale first, a linear layer."""

    def __init__(self, width: int, outputs: int, inner: int | None) -> None:
        super().__init__()
        self.widen = nn.Linear(width, inner) if inner is not None else None
        self.modulation = nn.Linear(width, 2 * (inner or width))
        self.out = nn.Linear(inner or width, outputs)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, N, W) and the activated condition (B, W) to (B, N, outputs)."""
        if self.widen is not None:
            x = self.widen(x)
        scale, shift = self.modulation(condition).chunk(2, dim=-1)
        found: Tensor = self.out(modulate(x, shift, scale))
        return found


class JointFlowTransformer(nn.Module):
    """Joint transformer over streams; `save_pretrained` and `from_pretrained` keep it as safetensors and JSON.

    It is no `diffusers.ModelMixin`, whose import takes longer than torch's and loads accelerate and clients of the hub.

    Args:
        streams: for each stream, in the order in which attention joins them, ``inputs`` (channels of its tokens),
            ``outputs`` (channels of its head), and optionally ``head_width`` (a wider layer in front of the head).
        width: features of a token; a multiple of ``heads``, features of a head even where positions are rotary.
        layers: number of blocks.
        heads: attention heads.
        mlp_ratio: inner width of the MLPs over ``width``.
        qk_norm: norm of queries and keys, ``layer`` (shared by the streams), ``rms`` (one a stream) or None.
        qk_norm_eps: its epsilon.
        conditioning: ``summed``: one vector, the sum over the streams that take part, for all of them; ``split``:
            each stream has its own.
        pooled_width: features of a vector that describes the sample as a whole; None: there is none.
        speakers: number of speakers; 0: none is given. Speaker 0 of 0 … speakers means *unknown*.
        rotary_periods_s: shortest and longest period of the rotary positions in seconds; None: no rotary positions.
        context_only: streams that in the last block give keys and values only, as OmniFlow's text.
    """

    def __init__(  # noqa: PLR0913 - each argument is one key of config.json
        self,
        *,
        streams: Mapping[str, Mapping[str, int | None]],
        width: int = 128,
        layers: int = 4,
        heads: int = 4,
        mlp_ratio: int = 4,
        qk_norm: QKNormKind | None = "rms",
        qk_norm_eps: float = 1e-5,
        conditioning: Conditioning = "summed",
        pooled_width: int | None = None,
        speakers: int = 0,
        rotary_periods_s: Sequence[float] | None = (0.5, 120.0),
        context_only: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "streams": {name: dict(sizes) for name, sizes in streams.items()},
            "width": width,
            "layers": layers,
            "heads": heads,
            "mlp_ratio": mlp_ratio,
            "qk_norm": qk_norm,
            "qk_norm_eps": qk_norm_eps,
            "conditioning": conditioning,
            "pooled_width": pooled_width,
            "speakers": speakers,
            "rotary_periods_s": None if rotary_periods_s is None else list(rotary_periods_s),
            "context_only": list(context_only),
        }
        names = list(streams)
        self.gradient_checkpointing = False
        self.summed = conditioning == "summed"
        self.head_features = width // heads
        self.rotary_periods_s = rotary_periods_s
        self.embed = nn.ModuleDict({name: nn.Linear(_size(streams, name, "inputs"), width) for name in names})
        self.level = nn.ModuleDict({name: _TwoLayers(LEVEL_FEATURES, width) for name in names})
        pooled = None if pooled_width is None else {name: _TwoLayers(pooled_width, width) for name in names}
        self.pooled = None if pooled is None else nn.ModuleDict(pooled)
        self.speaker = nn.Embedding(speakers + 1, width) if speakers else None
        self.blocks = nn.ModuleList(
            JointBlock(
                names,
                heads=heads,
                width=width,
                mlp_width=mlp_ratio * width,
                qk_norm=qk_norm,
                qk_norm_eps=qk_norm_eps,
                context_only=context_only if k == layers - 1 else (),
            )
            for k in range(layers)
        )
        self.head = nn.ModuleDict(
            {name: _Head(width, _size(streams, name, "outputs"), streams[name].get("head_width")) for name in names}
        )
        self._initialise()

    def _initialise(self) -> None:
        """Start as the identity with zero outputs (AdaLN-zero, Peebles and Xie 2023); biases start at zero.

        With rotary positions, the biases of queries and keys of every second head start at one. A query and a key
        that are both a constant vector have the product Σ cos(2π Δt / period): such heads begin by looking at all
        streams around their own time, which otherwise takes a long part of the training to be found.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
                if name.startswith(("level.", "pooled.")):
                    nn.init.normal_(module.weight, std=0.02)
                if name.endswith(".modulation") or (name.startswith("head.") and name.endswith(".out")):
                    nn.init.zeros_(module.weight)
                if name.endswith(".qkv") and self.rotary_periods_s is not None:
                    nn.init.ones_(module.bias[: 2 * module.in_features].view(2, -1, self.head_features)[:, ::2])
        if self.speaker is not None:
            nn.init.normal_(self.speaker.weight, std=0.02)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write the configuration and the weights, as `from_pretrained` reads them.

        Args:
            folder: where the files go; created if absent.

        Raises:
            EnvironmentFault: the folder cannot be written.
        """
        path = Path(folder)
        make_folder(path)
        publish_bytes(path / CONFIG_FILE, json_document({"_class_name": type(self).__name__, **self.config}))
        write_tensors(path / WEIGHTS_FILE, self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> Self:
        """Load a model in evaluation mode from a local folder of `save_pretrained`; nothing is ever fetched.

        Args:
            folder: as `save_pretrained` wrote it.

        Returns:
            The model with the folder's weights.

        Raises:
            DataError: the folder holds no such model.
        """
        path = Path(folder)
        try:
            with os_errors(path / CONFIG_FILE, "read"):
                config = json.loads((path / CONFIG_FILE).read_bytes())
            model = cls(**{name: value for name, value in config.items() if not name.startswith("_")})
            model.load_state_dict(read_tensors(path / WEIGHTS_FILE))
        except (ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:  # of what does not fit
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{path}: a model of save_pretrained expected, found another ({reason})") from error
        return model.eval()

    def forward(  # noqa: PLR0913 - each argument is a quantity of its own
        self,
        tokens: Mapping[str, Tensor],
        levels: Mapping[str, Tensor],
        *,
        seconds: Mapping[str, Tensor] | None = None,
        added: Mapping[str, Tensor] | None = None,
        present: Mapping[str, Tensor] | None = None,
        pooled: Tensor | None = None,
        speakers: Tensor | None = None,
        described: Tensor | None = None,
        rows: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Outputs (B, N, outputs) of the streams that are asked for.

        Args:
            tokens: (B, N, C) of each stream that takes part; the others are left out of the computation.
            levels: noise level (B,) of each stream; a stream with tokens and without a level is context that
                brings no condition of its own and has no output.
            seconds: time (N,) or (B, N) of each stream's tokens, needed with rotary positions.
            added: position embeddings (N, W) to add to a stream's tokens.
            present: (B,) bool for each stream of which some samples are absent: as if left out, for those samples.
                Their outputs mean nothing.
            pooled: (B, pooled_width), with ``pooled_width``.
            speakers: (B,) int64 in 0 … speakers; without it every speaker is unknown.
            described: (B, W), added to the conditioning of every stream: what condition streams say of the samples, and
                what these lack.
            rows: streams whose output is wanted and the samples for which, (R,) int64: outputs are (R, N, outputs).
                None: all samples of all streams that have a level.

        Returns:
            By stream; (R, N, outputs) for streams in `rows`.
        """
        names = [name for name in self.embed if name in tokens]
        conditions = self._conditions(names, levels, present, pooled, speakers, described)
        hidden = {name: self.embed[name](tokens[name]) for name in names}
        for name, embedding in (added or {}).items():
            hidden[name] = hidden[name] + embedding.to(hidden[name].dtype)
        rotary = self._rotary(names, seconds)
        mask = _key_mask(hidden, present)
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                hidden = checkpoint(block, hidden, conditions, rotary, mask, use_reentrant=False)
            else:
                hidden = block(hidden, conditions, rotary, mask)
        if rows is None:
            return {name: self.head[name](hidden[name], conditions[name]) for name in names if name in levels}
        return {
            name: self.head[name](hidden[name].index_select(0, chosen), conditions[name].index_select(0, chosen))
            for name, chosen in rows.items()
        }

    def _conditions(
        self,
        names: Sequence[str],
        levels: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None,
        pooled: Tensor | None,
        speakers: Tensor | None,
        described: Tensor | None,
    ) -> dict[str, Tensor]:
        """The activated conditioning vector (B, W) of each stream."""
        own = {}
        for name in names:
            if name in levels:
                vector = self.level[name](level_features(levels[name]))
                if self.pooled is not None and pooled is not None:
                    vector = vector + self.pooled[name](pooled)
                if present is not None and name in present:
                    vector = vector * present[name][:, None]
                own[name] = vector
        first = next(iter(own.values()))
        if self.speaker is None:
            extra = torch.zeros_like(first)
        elif speakers is None:
            extra = self.speaker(torch.zeros(len(first), dtype=torch.int64, device=first.device))
        else:
            extra = self.speaker(speakers)
        if described is not None:
            extra = extra + described
        if self.summed:
            return dict.fromkeys(names, functional.silu(sum(own.values(), start=extra)))
        return {name: functional.silu(own.get(name, first) + extra) for name in names}

    def _rotary(self, names: Sequence[str], seconds: Mapping[str, Tensor] | None) -> tuple[Tensor, Tensor] | None:
        """Cosine and sine for all tokens in joined order, with axes for queries or keys and for heads."""
        if self.rotary_periods_s is None:
            return None
        if seconds is None:
            raise ValueError("rotary positions need the tokens' times: pass seconds")
        times = torch.cat([seconds[name] for name in names], dim=-1)
        angles = rotary_angles(times, self.head_features, self.rotary_periods_s)
        angles = (angles if times.ndim == 2 else angles[None])[:, :, None, None]
        return angles.cos(), angles.sin()


def _size(streams: Mapping[str, Mapping[str, Any]], name: str, key: str) -> int:
    return int(streams[name][key])


def _key_mask(hidden: Mapping[str, Tensor], present: Mapping[str, Tensor] | None) -> Tensor | None:
    """Return a mask of present keys (B, 1, 1, N of all) bool; None: all are present."""
    if not present:
        return None
    parts = []
    for name, x in hidden.items():
        batch, count = x.shape[:2]
        there = present[name] if name in present else torch.ones(batch, dtype=torch.bool, device=x.device)
        parts.append(there[:, None].expand(batch, count))
    return torch.cat(parts, dim=1)[:, None, None]
