"""What a transformer is, read from its tensors, with its config held against them.

The tensors decide. The config is asked for the one thing that they may not tell, the features of a head, and where
it states a size that the tensors have not, file and config are not of one model, which is refused. Kinds that the
config may state wrongly without that (norms, dual layers, tables) are taken from the tensors with a remark.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

from omniges.errors import DataError
from omniges.model.attention import QKNormKind
from omniges.pretrained.omniflow.parameter_names import NESTED, Anatomy, Grid, parameters, tables
from omniges.storage.tensors import require_same

_BLOCK: Final = re.compile(r"transformer_blocks\.(\d+)\.")
_QK_NORMS: Final[dict[QKNormKind | None, str | None]] = {None: None, "layer": "layer_norm", "rms": "rms_norm"}


def nested_names(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of the tensors of other models inside the file."""
    return [name for name in shapes if name.startswith(tuple(NESTED))]


def read_anatomy(
    shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], where: str
) -> tuple[Anatomy, list[str]]:
    """The sizes that shapes tell, and remarks on where the config says otherwise.

    Raises `DataError` for a tensor too few, too many or of another shape, and for a config of another model, with the
    names.
    """
    look = _Look(shapes, where)
    width, joint = look.size("context_embedder.weight", 2)
    layers = 1 + max((int(match[1]) for name in shapes if (match := _BLOCK.match(name))), default=-1)
    if not 0 < layers <= len(shapes):
        raise DataError(f"{where}: {layers} blocks in {len(shapes)} tensors; a whole OmniFlow transformer expected")
    qk_norm = _qk_norm(shapes)
    anatomy = Anatomy(
        width=width,
        layers=layers,
        head_features=_head_features(look, config, width, qk_norm),
        mlp_width=look.size("transformer_blocks.0.ff.net.0.proj.weight", 2)[0],
        joint_width=joint,
        pooled_width=look.size("time_text_embed.text_embedder.linear_1.weight", 2)[1],
        text_outputs=look.size("text_output.weight", 2)[0],
        qk_norm=qk_norm,
        dual_layers=frozenset(
            k for k in range(layers) if shapes.get(f"transformer_blocks.{k}.norm1.linear.bias") == (9 * width,)
        ),
        image=_grid(look, "pos_embed", "proj_out"),
        audio=_grid(look, "audio_embedder", "proj_out_aud"),
    )
    require_whole(shapes, anatomy, where)
    return anatomy, _compare(anatomy, config, where)


class _Look:
    """Shapes that must be there."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
        self._shapes, self.where = shapes, where

    def size(self, name: str, axes: int) -> tuple[int, ...]:
        shape = self._shapes.get(name)
        if shape is None:
            raise DataError(f"{self.where}: no tensor {name}; a whole OmniFlow transformer expected; download it again")
        if len(shape) != axes or min(shape) < 1:
            raise DataError(f"{self.where}: {name}: {axes} axes expected, found shape {shape}; download it again")
        return shape


def _qk_norm(shapes: Mapping[str, tuple[int, ...]]) -> QKNormKind | None:
    prefix = "transformer_blocks.0.attn.norm_q"
    if f"{prefix}.bias" in shapes:
        return "layer"
    return "rms" if f"{prefix}.weight" in shapes else None


def _head_features(look: _Look, config: Mapping[str, Any], width: int, qk_norm: QKNormKind | None) -> int:
    """From the norms of queries and keys; without them from the config."""
    source = "attention_head_dim of its config.json"
    features = config.get("attention_head_dim")
    if qk_norm is not None:
        source = "transformer_blocks.0.attn.norm_q.weight"
        (features,) = look.size(source, 1)
    if type(features) is not int or features < 1 or width % features:
        raise DataError(
            f"{look.where}: {source} is {features}; a divisor of the width {width} expected: take the config.json that "
            "belongs to these weights"
        )
    return features


def _grid(look: _Look, embedder: str, head: str) -> Grid:
    _, channels, patch, _ = look.size(f"{embedder}.proj.weight", 4)
    (features,) = look.size(f"{head}.bias", 1)
    side = math.isqrt(look.size(f"{embedder}.pos_embed", 3)[1])
    return Grid(channels=channels, outputs=features // patch**2, patch=patch, table_side=side)


def require_whole(shapes: Mapping[str, tuple[int, ...]], anatomy: Anatomy, where: str) -> None:
    """Refuse a set of tensors that is not exactly a transformer of these sizes, other models' tensors aside."""
    nested = set(nested_names(shapes))
    own = {name: shape for name, shape in shapes.items() if name not in nested}
    remedy = "a whole OmniFlow transformer expected; download it again"
    require_same(parameters(anatomy) | tables(anatomy), own, where, remedy)


def _compare(anatomy: Anatomy, config: Mapping[str, Any], where: str) -> list[str]:
    """Hold the config against the tensors: its sizes must be theirs, of its kinds they are told."""
    sizes = {
        "num_layers": anatomy.layers,
        "attention_head_dim": anatomy.head_features,
        "num_attention_heads": anatomy.heads,
        "joint_attention_dim": anatomy.joint_width,
        "caption_projection_dim": anatomy.width,
        "pooled_projection_dim": anatomy.pooled_width,
        "in_channels": anatomy.image.channels,
        "audio_input_dim": anatomy.audio.channels,
        "add_audio": True,
        "add_clip": False,
        "use_audio_mae": False,
        "drop_text": False,
        "drop_image": False,
        "drop_audio": False,
    }
    differing = [f"{key} {config[key]!r} ({own!r} there)" for key, own in sizes.items() if config.get(key, own) != own]
    if differing:
        raise DataError(
            f"{where}: config.json is not of the model whose tensors these are: {', '.join(differing)}; take the one "
            "that belongs to these weights"
        )
    kinds = {
        "qk_norm": _QK_NORMS[anatomy.qk_norm],
        "dual_attention_layers": sorted(anatomy.dual_layers),
        "patch_size": anatomy.image.patch,
        "out_channels": anatomy.image.outputs if config.get("out_channels") is not None else None,
        "pos_embed_max_size": anatomy.image.table_side,
        "text_out_dim": anatomy.text_outputs,
    }
    return [
        f"config.json says {key} {config[key]!r}, the tensors say {own!r}, which was taken"
        for key, own in kinds.items()
        if key in config and config[key] != own
    ]
