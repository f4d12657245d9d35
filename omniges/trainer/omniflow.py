"""OmniFlow's transformer as a configuration and weights of our trunk.

Names and shapes are those of the published checkpoints of OmniFlow (Li et al. 2024). What a checkpoint has is read
from its tensors rather than from its config, which may say otherwise. Nothing is loaded by halves: a tensor that is
missing, not expected or of another shape is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from omniges.errors import DataError
from omniges.trainer.attention import QKNormKind

__all__ = ["trunk_of_omniflow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Names:
    """What a stream's parts are called in OmniFlow."""

    level: str  # the time embedder; those of image and text have each other's names
    embed: str
    modulation: str
    projections: tuple[str, str, str]
    out: str
    mlp: str
    qk_norms: tuple[str, str]  # of checkpoints with RMS norms
    head_widen: str | None
    head_modulation: str
    head_out: str


_STREAMS: Final = {
    "image": _Names(
        level="time_text_embed",
        embed="pos_embed.proj",
        modulation="norm1",
        projections=("to_q", "to_k", "to_v"),
        out="to_out.0",
        mlp="ff",
        qk_norms=("norm_q", "norm_k"),
        head_widen=None,
        head_modulation="norm_out",
        head_out="proj_out",
    ),
    "text": _Names(
        level="time_image_embed",
        embed="context_embedder",
        modulation="norm1_context",
        projections=("add_q_proj", "add_k_proj", "add_v_proj"),
        out="to_add_out",
        mlp="ff_context",
        qk_norms=("norm_added_q", "norm_added_k"),
        head_widen="context_decoder.projection",
        head_modulation="norm_out_text",
        head_out="text_output",
    ),
    "audio": _Names(
        level="time_aud_embed",
        embed="audio_embedder.proj",
        modulation="norm1_audio",
        projections=("aud_q_proj", "aud_k_proj", "aud_v_proj"),
        out="to_aud_out",
        mlp="ff_audio",
        qk_norms=("norm_aud_q", "norm_aud_k"),
        head_widen=None,
        head_modulation="norm_out_aud",
        head_out="proj_out_aud",
    ),
}
_UNUSED: Final = ("pos_embed.pos_embed", "audio_embedder.pos_embed")  # tables, which `grid_embedding` computes
_WHERE: Final = "OmniFlow transformer"


def trunk_of_omniflow(tensors: Mapping[str, Tensor], *, head_features: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Arguments for `JointFlowTransformer` and its state dict, from the tensors of OmniFlow's transformer.

    The streams are ``image``, ``text`` and ``audio``. ``head_features`` (``attention_head_dim`` of its config) is
    needed where a checkpoint has no norms of queries and keys, and checked where it has. Raises `DataError` for a
    tensor too few, too many or of another shape.
    """
    source = _Source(tensors)
    width = source.shape("context_embedder.bias")[0]
    layers = 1 + max((int(name.split(".")[1]) for name in tensors if name.startswith("transformer_blocks.")), default=0)
    qk_norm = _qk_norm(tensors)
    state = dict(_outside(source))
    for k in range(layers):
        state |= _block(source, k, last=k == layers - 1, width=width, qk_norm=qk_norm)
    source.finish()
    features = {state[name].shape[-1] for name in state if name.endswith("qk_norm.weight")}
    if features - {head_features}:
        raise DataError(f"{_WHERE}: norms of {features} features; expected {head_features}; check attention_head_dim")
    config = {
        "streams": {name: _stream_config(state, name) for name in _STREAMS},
        "width": width,
        "layers": layers,
        "heads": width // head_features,
        "mlp_ratio": state["blocks.0.branches.text.mlp_in.weight"].shape[0] // width,
        "qk_norm": qk_norm,
        "conditioning": "summed",
        "pooled_width": state["pooled.text.linear_1.weight"].shape[1],
        "rotary_periods_s": None,
        "context_only": ["text"],
    }
    return config, state


class _Source:
    """Tensors by name that counts which were taken."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._left = set(tensors) - set(_UNUSED)

    def take(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise DataError(f"{_WHERE}: no tensor {name}; expected a whole checkpoint; download it again")
        self._left.discard(name)
        return self._tensors[name]

    def shape(self, name: str) -> torch.Size:
        return self._tensors[name].shape if name in self._tensors else self.take(name).shape

    def linear(self, name: str, *, rows: int | None = None) -> dict[str, Tensor]:
        """Weight and bias of a layer, a convolution's as (rows, features); only its first rows where asked for."""
        weight, bias = self.take(f"{name}.weight").flatten(1), self.take(f"{name}.bias")
        return {"weight": weight[:rows], "bias": bias[:rows]}

    def drop(self, prefix: str) -> None:
        """Say that the tensors under a prefix are known to be without effect."""
        self._left = {name for name in self._left if not name.startswith(prefix)}

    def finish(self) -> None:
        if self._left:
            some = ", ".join(sorted(self._left)[:3])
            raise DataError(
                f"{_WHERE}: {len(self._left)} tensors that are not its own, such as {some}; expected the transformer "
                "alone; split off other parts first"
            )


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _qk_norm(tensors: Mapping[str, Tensor]) -> QKNormKind | None:
    prefix = "transformer_blocks.0.attn.norm_q"
    if f"{prefix}.bias" in tensors:
        return "layer"
    return "rms" if f"{prefix}.weight" in tensors else None


def _outside(source: _Source) -> Iterator[tuple[str, Tensor]]:
    """Everything but the blocks."""
    for stream, names in _STREAMS.items():
        found = _prefixed(f"embed.{stream}", source.linear(names.embed))
        for ours, theirs in (("level", "timestep_embedder"), ("pooled", "text_embedder")):
            for layer in ("linear_1", "linear_2"):
                found |= _prefixed(f"{ours}.{stream}.{layer}", source.linear(f"{names.level}.{theirs}.{layer}"))
        if names.head_widen is not None:
            found |= _prefixed(f"head.{stream}.widen", source.linear(names.head_widen))
        found |= _prefixed(f"head.{stream}.modulation", source.linear(f"{names.head_modulation}.linear"))
        found |= _prefixed(f"head.{stream}.out", source.linear(names.head_out))
        yield from found.items()


def _block(source: _Source, k: int, *, last: bool, width: int, qk_norm: QKNormKind | None) -> dict[str, Tensor]:
    theirs, ours = f"transformer_blocks.{k}", f"blocks.{k}"
    found: dict[str, Tensor] = {}
    if qk_norm == "layer":
        found |= _prefixed(f"{ours}.qk_norm", _norms(source, f"{theirs}.attn", ("norm_q", "norm_k"), bias=True))
    for stream, names in _STREAMS.items():
        branch = f"{ours}.branches.{stream}"
        context_only = last and stream == "text"
        # Dual layers have three more parts here, for a second attention that does not exist beside audio.
        modulation = source.linear(f"{theirs}.{names.modulation}.linear", rows=None if context_only else 6 * width)
        found |= _prefixed(f"{branch}.modulation", modulation)
        parts = [source.linear(f"{theirs}.attn.{name}") for name in names.projections]
        found |= _prefixed(f"{branch}.qkv", {key: torch.cat([p[key] for p in parts]) for key in ("weight", "bias")})
        if qk_norm == "rms":
            norms = _norms(source, f"{theirs}.attn", names.qk_norms, bias=False)
            found |= _prefixed(f"{branch}.qk_norm", norms)
        if context_only:
            source.drop(f"{theirs}.{names.mlp}.")  # the last block's text MLP is never used
            continue
        found |= _prefixed(f"{branch}.out", source.linear(f"{theirs}.attn.{names.out}"))
        found |= _prefixed(f"{branch}.mlp_in", source.linear(f"{theirs}.{names.mlp}.net.0.proj"))
        found |= _prefixed(f"{branch}.mlp_out", source.linear(f"{theirs}.{names.mlp}.net.2"))
    return found


def _norms(source: _Source, prefix: str, names: tuple[str, str], *, bias: bool) -> dict[str, Tensor]:
    """Norms of queries and keys as (2, 1, features)."""
    keys = ("weight", "bias") if bias else ("weight",)
    return {key: torch.stack([source.take(f"{prefix}.{name}.{key}") for name in names])[:, None] for key in keys}


def _stream_config(state: Mapping[str, Tensor], name: str) -> dict[str, int | None]:
    widen = state.get(f"head.{name}.widen.weight")
    return {
        "inputs": state[f"embed.{name}.weight"].shape[1],
        "outputs": state[f"head.{name}.out.weight"].shape[0],
        "head_width": None if widen is None else widen.shape[0],
    }
