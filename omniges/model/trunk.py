"""The trunk: a joint transformer over the tokens of several streams, each with its noise level.

It is an MMDiT (Esser et al. 2024) for any number of streams. `omniges.pretrained.trunk` has the configuration that
equals the trunk of OmniFlow (Li et al. 2024). The default differs from OmniFlow in three ways. All streams share rotary
positions in seconds. The speaker is a condition. Streams that a sample lacks are left out, not passed as noise.

Shape letters: B batch; R rows of a stream (the samples that have it, see `omniges.model.packing`); N tokens of one
stream or of all; C channels of a stream's tokens; O outputs of a stream's head; H heads; E features of a head;
W = H · E width. Noise levels σ are in [0, 1]: 0 clean, 1 pure noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from omniges.errors import DataError
from omniges.model.packing import Packed, Rounded
from omniges.storage.atomic import make_folder, publish_bytes
from omniges.storage.files import json_document, read_settings
from omniges.storage.tensors import read_tensors, write_tensors

Conditioning = Literal["summed", "split"]
QKNormKind = Literal["layer", "rms"]
NORM_EPS = 1e-6
LEVEL_FEATURES = 256
LEVEL_SCALE = 1000.0
LONGEST_PERIOD = 10_000.0

CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "diffusion_pytorch_model.safetensors"
"""Name of the weights file that `JointFlowTransformer.save_pretrained` writes; diffusers uses the same name."""


def rotary_angles(seconds: Tensor, features: int, periods_s: Sequence[float]) -> Tensor:
    """Return the angles of rotary positions (Su et al. 2021), with periods in seconds instead of tokens.

    The E features of a head form P = E / 2 pairs. Pair k = 0 … P − 1 has the period
    periods_s[0] · (periods_s[1] / periods_s[0])^(k / (P − 1)) seconds. Its angle is 2π · time / period.

    Args:
        seconds: Times of the tokens (…, N) in seconds.
        features: Features E of a head, an even number.
        periods_s: Shortest and longest period in seconds.

    Returns:
        Angles (…, N, E / 2) in radians.
    """
    pairs = features // 2
    ratio = math.log(periods_s[1] / periods_s[0]) / max(1, pairs - 1)
    order = torch.arange(pairs, device=seconds.device, dtype=torch.float32)
    frequencies = (2 * math.pi / periods_s[0]) * torch.exp(-ratio * order)
    return seconds.to(torch.float32)[..., None] * frequencies


def rotary_tables(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines that `rotate` needs.

    Args:
        angles: Angles (…, E / 2) in radians.

    Returns:
        Cosines (…, E) and sines (…, E). The sines are negated in the first half of the features.
    """
    sine, cosine = angles.sin(), angles.cos()
    return torch.cat([cosine, cosine], dim=-1), torch.cat([-sine, sine], dim=-1)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate the pairs (x_k, x_{k + E/2}) of each token by the angles of the token.

    Args:
        x: Queries or keys (…, E).
        cosine: First result of `rotary_tables`, which broadcasts to x.
        sine: Second result of `rotary_tables`.

    Returns:
        The rotated x (…, E).
    """
    return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, dims=-1), sine)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Apply LayerNorm without parameters, then · (1 + scale) + shift.

    Args:
        x: Tokens (R, N, W).
        shift: Shift: one vector for each row (R, 1, W), or one for each token (R, N, W).
        scale: Scale of the same shape.

    Returns:
        Modulated tokens (R, N, W).
    """
    normed = functional.layer_norm(x, x.shape[-1:], eps=NORM_EPS)
    return torch.addcmul(shift, normed, 1 + scale)


class QKNorm(nn.Module):
    """LayerNorm or RMSNorm over each head's features, with separate weights for queries and keys.

    ``weight`` has the shape (2, 1, E): index 0 for queries, index 1 for keys. The LayerNorm also has a ``bias`` of this
    shape.
    """

    def __init__(self, kind: QKNormKind, features: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(2, 1, features))
        self.bias = nn.Parameter(torch.zeros(2, 1, features)) if kind == "layer" else None

    def forward(self, qk: Tensor, weight: Tensor | None = None) -> Tensor:
        """Normalise queries and keys.

        Args:
            qk: Queries and keys (…, 2, H, E).
            weight: Weights that broadcast to qk; None: the weights of this module.

        Returns:
            The normalised qk (…, 2, H, E).
        """
        weight = self.weight if weight is None else weight
        if self.bias is not None:
            normed = functional.layer_norm(qk, qk.shape[-1:], eps=self.eps)
            return torch.addcmul(self.bias, normed, weight)
        return functional.rms_norm(qk, qk.shape[-1:], eps=self.eps) * weight


class Branch(nn.Module):
    """The layers of one stream in a block. With ``context_only``, the stream only provides keys and values."""

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
        """Compute queries, keys and values.

        Args:
            x: Tokens (R, N, W).
            condition: Conditioning vectors after the SiLU, (R, 1, W) or (R, N, W).
            heads: Number of heads H.

        Returns:
            Queries and keys (R, N, 2, H, E), values (R, N, H, E), and the vectors of the modulation that
            `finish` needs.
        """
        parts = self.modulation(condition).chunk(2 if self.context_only else 6, dim=-1)
        if self.context_only:  # the scale comes first here, as in OmniFlow
            scale, shift = parts
        else:
            shift, scale = parts[:2]
        qkv = torch.unflatten(self.qkv(modulate(x, shift, scale)), -1, (3, heads, -1))
        # Split instead of indexing, because each index would create an array of zeros in the backward pass.
        qk, value = torch.split(qkv, [2, 1], dim=-3)
        return qk if self.qk_norm is None else self.qk_norm(qk), value.squeeze(-3), parts[2:]

    def finish(self, x: Tensor, attended: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
        """Apply the rest of the block after attention: the output projection and the MLP.

        Args:
            x: Tokens (R, N, W) before the block.
            attended: Output of attention (R, N, W).
            parts: Third result of `project`.

        Returns:
            Tokens (R, N, W).
        """
        if self.context_only:
            return x
        gate, mlp_shift, mlp_scale, mlp_gate = parts
        x = torch.addcmul(x, gate, self.out(attended))
        inner = functional.gelu(self.mlp_in(modulate(x, mlp_shift, mlp_scale)), approximate="tanh")
        return torch.addcmul(x, mlp_gate, self.mlp_out(inner))


class JointBlock(nn.Module):
    """A transformer block: one attention over the tokens of all streams; each stream has separate projections and MLP.

    Queries and keys are normalised by ``qk_norm``: ``layer`` (shared by all streams), ``rms`` (one for each stream) or
    None (no norm).
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
            self.branches[name] = Branch(width, mlp_width, own, context_only=name in context_only)

    def forward(
        self,
        hidden: Mapping[str, Tensor],
        conditions: Mapping[str, Tensor],
        rotary: Mapping[str, tuple[Tensor, Tensor]] | None,
        packed: Packed,
    ) -> dict[str, Tensor]:
        """Apply the block.

        Args:
            hidden: Tokens (R, N, W) by stream. Attention joins the streams in the order of this mapping.
            conditions: Conditioning vectors of the same streams after the SiLU, (R, 1, W) or (R, N, W).
            rotary: Cosines and sines from `rotary_tables` for these streams, each (1 or R, N, 1, 1, E); axis 2 is query
                or key, axis 3 the head. None: no rotary positions.
            packed: Which sample each row belongs to.

        Returns:
            Tokens of the streams in `hidden`.
        """
        branches = {name: cast("Branch", self.branches[name]) for name in hidden}
        query_key: dict[str, Tensor] = {}
        value: dict[str, Tensor] = {}
        modulation = {}
        for name, x in hidden.items():
            qk, value[name], modulation[name] = branches[name].project(x, conditions[name], self.heads)
            qk = qk if self.qk_norm is None else self.qk_norm(qk)
            query_key[name] = qk if rotary is None else rotate(qk, *rotary[name])
        attended = packed.attend(query_key, value)
        return {name: branches[name].finish(x, attended[name], modulation[name]) for name, x in hidden.items()}


def level_features(levels: Tensor) -> Tensor:
    """Return features (…, 256) float32 of noise levels (…): cos and sin of 1000 · σ · 10⁴^(−j / 128), j = 0 … 127."""
    half = LEVEL_FEATURES // 2
    order = torch.arange(half, device=levels.device, dtype=torch.float32)
    frequencies = torch.exp(-math.log(LONGEST_PERIOD) * order / half)
    angles = LEVEL_SCALE * levels.to(torch.float32)[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TwoLayers(nn.Module):
    """An MLP: linear, SiLU, linear."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, inputs) to (…, W), in the precision of the weights."""
        found: Tensor = self.linear_2(functional.silu(self.linear_1(x.to(self.linear_1.weight.dtype))))
        return found


class Head(nn.Module):
    """The output layers of a stream: an optional wider layer, an adaptive LayerNorm (AdaLN) and a linear layer.

    The AdaLN modulation is ordered (scale, shift), as in OmniFlow.
    """

    def __init__(self, width: int, outputs: int, inner: int | None) -> None:
        super().__init__()
        self.widen = nn.Linear(width, inner) if inner is not None else None
        self.modulation = nn.Linear(width, 2 * (inner or width))
        self.out = nn.Linear(inner or width, outputs)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Map tokens to outputs.

        Args:
            x: Tokens (R, N, W).
            condition: Conditioning vectors after the SiLU, (R, 1, W) or (R, N, W).

        Returns:
            Outputs (R, N, O).
        """
        if self.widen is not None:
            x = self.widen(x)
        scale, shift = self.modulation(condition).chunk(2, dim=-1)
        found: Tensor = self.out(modulate(x, shift, scale))
        return found


class JointFlowTransformer(nn.Module):
    """Joint transformer over streams; `save_pretrained` writes it as safetensors and JSON.

    It does not derive from `diffusers.ModelMixin`, because the import of diffusers is slow and also imports accelerate
    and hub clients.

    Args:
        streams: For each stream, in the order in which attention joins them: ``inputs`` (channels of its tokens),
            ``outputs`` (outputs of its head), and optionally ``head_width`` (an extra, wider layer before the head).
        width: Features of a token; a multiple of `heads`. With rotary positions, width / heads is even.
        layers: Number of blocks.
        heads: Number of attention heads.
        mlp_ratio: Hidden width of the MLPs divided by `width`.
        qk_norm: Norm of queries and keys: ``layer`` (shared by the streams), ``rms`` (one for each stream) or None.
        qk_norm_eps: Epsilon of the norm of queries and keys.
        conditioning: How the vectors that encode the streams' noise levels are used. ``summed``: every stream gets the
            sum of the vectors of all streams. ``split``: every stream gets only its own vector.
        pooled_width: Features of a vector for the complete sample; None: no vector.
        speakers: Number of speakers; 0: the speaker is not a condition. Speakers are numbered from 1 to `speakers`, and
            number 0 means *unknown*.
        rotary_periods_s: Shortest and longest period of the rotary positions in seconds; None: no rotary positions.
        context_only: Streams that provide only keys and values in the last block, such as text in OmniFlow.
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
        self.level = nn.ModuleDict({name: TwoLayers(LEVEL_FEATURES, width) for name in names})
        pooled = None if pooled_width is None else {name: TwoLayers(pooled_width, width) for name in names}
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
            {name: Head(width, _size(streams, name, "outputs"), streams[name].get("head_width")) for name in names}
        )
        self._initialise()

    def _initialise(self) -> None:
        """Initialise all blocks as the identity, and the heads with zero outputs (AdaLN-zero, Peebles and Xie 2023).

        Biases are zero, with one exception: with rotary positions, the query and key biases of every second attention
        head are one. After rotation, the product of a constant query and a constant key is Σ cos(2π Δt / period). So in
        these heads a token initially attends to the tokens of all streams near its own time. Without these biases,
        attention learns this alignment only after long training.
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
        """Write the configuration and the weights for `from_pretrained`.

        Args:
            folder: Folder of the files; created if absent.

        Raises:
            EnvironmentFault: The folder cannot be written.
        """
        path = Path(folder)
        make_folder(path)
        publish_bytes(path / CONFIG_FILE, json_document({"_class_name": type(self).__name__, **self.config}))
        write_tensors(path / WEIGHTS_FILE, self.state_dict())

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> Self:
        """Load a model in evaluation mode from a folder that `save_pretrained` wrote; nothing is downloaded.

        Args:
            folder: The local folder.

        Returns:
            The model with the folder's weights.

        Raises:
            DataError: The folder does not contain a valid model.
        """
        path = Path(folder)
        try:
            config = read_settings(path / CONFIG_FILE, "give the folder of a model")
            model = cls(**{name: value for name, value in config.items() if not name.startswith("_")})
            model.load_state_dict(read_tensors(path / WEIGHTS_FILE))
        except (ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"{path}: expected a model that save_pretrained wrote, found another file ({reason}); give another "
                "folder"
            ) from error
        return model.eval()

    def forward(  # noqa: PLR0913 - each argument is a separate quantity
        self,
        tokens: Mapping[str, Tensor],
        levels: Mapping[str, Tensor],
        *,
        seconds: Mapping[str, Tensor] | None = None,
        added: Mapping[str, Tensor] | None = None,
        packed: Packed | None = None,
        pooled: Tensor | None = None,
        speakers: Tensor | None = None,
        described: Tensor | None = None,
        rows: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Compute outputs of the streams.

        Args:
            tokens: Tokens (R, N, C) of each stream that takes part; other streams are not computed.
            levels: Noise levels by stream: (B,), or (B, N) with one level for each token. A stream with tokens but
                without a level is context: it adds nothing to the conditioning and has no output. With the
                configuration ``conditioning="summed"``, the conditioning of a token contains the sum of these vectors:
                the vector of the token's level, and one vector for every other stream with levels, which is the mean
                of the vectors of that stream's levels.
            seconds: Times (N,) or (B, N) of each stream's tokens, required with rotary positions.
            added: Position embeddings (N, W) to add to a stream's tokens.
            packed: Which sample each row of `tokens` belongs to, and which streams are absent; None: row i is sample i,
                and no stream is absent. An absent stream does not affect the sample.
            pooled: Vectors (B, pooled_width) for the complete samples; not used without `pooled_width`.
            speakers: Number (B,) int64 of each sample's speaker, 0 for unknown; None: all speakers are unknown.
            described: Vectors (B, W) that encode condition streams and which parts are absent; added to the
                conditioning of every stream.
            rows: Indices (K,) int64 of the rows to return, by stream; None: all rows of all streams that have a level.

        Returns:
            Outputs by stream: (K, N, outputs) with `rows`, (R, N, outputs) without `rows`.
        """
        packed = Rounded() if packed is None else packed
        names = [name for name in self.embed if name in tokens]
        by_sample = self._conditions(names, levels, packed.there, pooled, speakers, described)
        conditions = {name: packed.of_rows(name, vectors) for name, vectors in by_sample.items()}
        embedded = {name: self.embed[name](tokens[name]) for name in names}
        for name, embedding in (added or {}).items():
            embedded[name] = embedded[name] + embedding.to(embedded[name].dtype)
        rotary = self._rotary(names, seconds, packed)
        last = embedded
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                last = checkpoint(block, last, conditions, rotary, packed, use_reentrant=False)
            else:
                last = block(last, conditions, rotary, packed)
        if rows is None:
            return {name: self.head[name](last[name], conditions[name]) for name in names if name in levels}
        return {
            name: self.head[name](last[name].index_select(0, chosen), conditions[name].index_select(0, chosen))
            for name, chosen in rows.items()
        }

    def _conditions(
        self,
        names: Sequence[str],
        levels: Mapping[str, Tensor],
        there: Mapping[str, Tensor],
        pooled: Tensor | None,
        speakers: Tensor | None,
        described: Tensor | None,
    ) -> dict[str, Tensor]:
        """Return the conditioning vectors of each stream, after the SiLU.

        The shape is (B, N, W) if each token of the stream has a level, otherwise (B, 1, W). For each stream that some
        samples lack, `there` contains a mask (B,) of the samples that have the stream. With the configuration
        ``conditioning="split"``, a stream without a level uses the vector of the first stream with a level.
        """
        own = {}
        for name in names:
            if name in levels:
                level = levels[name] if levels[name].ndim == 2 else levels[name][:, None]
                vector = self.level[name](level_features(level))
                if self.pooled is not None and pooled is not None:
                    vector = vector + self.pooled[name](pooled)[:, None]
                if name in there:
                    vector = vector * there[name][:, None, None]
                own[name] = vector
        first = next(iter(own.values()))
        if self.speaker is None:
            extra = torch.zeros_like(first[:, :1])
        elif speakers is None:
            extra = self.speaker(torch.zeros((len(first), 1), dtype=torch.int64, device=first.device))
        else:
            extra = self.speaker(speakers[:, None])
        if described is not None:
            extra = extra + described[:, None]
        if not self.summed:
            return {name: functional.silu(own.get(name, first) + extra) for name in names}
        means = {name: vector if vector.shape[1] == 1 else vector.mean(1, keepdim=True) for name, vector in own.items()}
        total = sum(means.values(), start=extra)
        shared = functional.silu(total)
        varies = {name for name, vector in own.items() if vector.shape[1] > 1}
        return {name: functional.silu(total - means[name] + own[name]) if name in varies else shared for name in names}

    def _rotary(
        self, names: Sequence[str], seconds: Mapping[str, Tensor] | None, packed: Packed
    ) -> dict[str, tuple[Tensor, Tensor]] | None:
        """Return cosines and sines of `rotary_tables` by stream; None without rotary positions.

        Their shape is (1 or R, N, 1, 1, E). Axis 2 is query or key, and axis 3 is the head.
        """
        if self.rotary_periods_s is None:
            return None
        if seconds is None:
            raise ValueError("rotary positions require the times of the tokens; pass seconds")
        found = {}
        for name in names:
            own = seconds[name]
            times = packed.of_rows(name, own) if own.ndim == 2 else own[None]
            angles = rotary_angles(times, self.head_features, self.rotary_periods_s)
            found[name] = rotary_tables(angles[..., None, None, :])
        return found


def _size(streams: Mapping[str, Mapping[str, Any]], name: str, key: str) -> int:
    return int(streams[name][key])
