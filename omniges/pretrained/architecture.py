"""Sizes of OmniFlow's transformer, and the names and shapes of its parameters.

Names and shapes agree with the published checkpoints of OmniFlow (Li et al. 2024). The parameters are in the order in
which the reference implementation creates its modules. A list of EMA weights has no names, so only this order
identifies its tensors.

The sizes are read from the shapes of a checkpoint's tensors. Only the width of an attention head may need the config:
the shapes contain this width only if the model normalizes queries and keys.

If a size in the config differs from the tensors, the config belongs to another model and is refused. Other differences
give a warning, and the tensors are used. For example, a config may state another type of normalization for queries and
keys.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

from omniges.errors import DataError
from omniges.model.trunk import LEVEL_FEATURES, QKNormKind
from omniges.storage.redact import one_line
from omniges.storage.tensors import require_same

Shape = tuple[int, ...]
SourceStream = Literal["image", "text", "audio"]

_BLOCK: Final = re.compile(r"transformer_blocks\.(\d+)\.")
_QK_NORMS: Final[dict[QKNormKind | None, str | None]] = {None: None, "layer": "layer_norm", "rms": "rms_norm"}
NESTED: Final = {"text_decoder.": "the text VAE, a model of its own", "audio_pooler.": "an audio encoder, never used"}
"""Prefixes of tensors in a transformer's file that belong to other models, with a description of the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamNames:
    """Names of a stream's modules in OmniFlow."""

    level: str  # embedder of the noise level; OmniFlow swaps the names of image and text
    embed: str
    modulation: str
    projections: tuple[str, str, str]  # queries, keys, values
    out: str
    mlp: str
    qk_norms: tuple[str, str]  # in checkpoints with RMS norms
    head_widen: str | None
    head_modulation: str
    head_out: str


STREAM_NAMES: Final[dict[SourceStream, StreamNames]] = {
    "image": StreamNames(
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
    "text": StreamNames(
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
    "audio": StreamNames(
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Sizes of a stream with two-dimensional latents (image or audio)."""

    channels: int
    outputs: int  # channels of the output head
    patch: int
    table_side: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Sizes and types of layers of an OmniFlow transformer."""

    width: int
    layers: int
    head_features: int
    mlp_width: int
    joint_width: int
    """Width of the text input and of the hidden layer in the text head."""
    pooled_width: int
    text_outputs: int
    qk_norm: QKNormKind | None
    dual_layers: frozenset[int]
    """Indices of blocks whose image modulation has three extra parts, for a second attention. Models with audio do not
    use this attention.
    """
    image: Grid
    audio: Grid

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return self.width // self.head_features


def tables(architecture: Architecture) -> dict[str, Shape]:
    """Return the shapes of the position tables by name; they are saved with the weights, but are not parameters."""
    width = architecture.width
    return {
        "pos_embed.pos_embed": (1, architecture.image.table_side**2, width),
        "audio_embedder.pos_embed": (1, architecture.audio.table_side**2, width),
    }


def parameters(architecture: Architecture) -> dict[str, Shape]:
    """Return the shapes of the transformer's parameters by name, in the order of the reference implementation.

    Parameters of other models in the same file (`nested_names`) are not included.
    """
    found: dict[str, Shape] = {}
    width, joint = architecture.width, architecture.joint_width
    found |= _patches("pos_embed.proj", architecture.image, width)
    found |= _levels("time_text_embed", architecture)
    found |= _levels("time_image_embed", architecture)
    found |= _patches("audio_embedder.proj", architecture.audio, width)
    found |= _levels("time_aud_embed", architecture)
    found |= _linear("norm_out_aud.linear", width, 2 * width)
    found |= _linear("proj_out_aud", width, architecture.audio.patch**2 * architecture.audio.outputs)
    found |= _linear("context_embedder", joint, width)
    found |= _linear("context_decoder.projection", width, joint)
    found |= _linear("text_output", joint, architecture.text_outputs)
    for k in range(architecture.layers):
        found |= {f"transformer_blocks.{k}.{name}": shape for name, shape in _block(architecture, k)}
    found |= _linear("norm_out.linear", width, 2 * width)
    found |= _linear("norm_out_text.linear", width, 2 * joint)
    found |= _linear("proj_out", width, architecture.image.patch**2 * architecture.image.outputs)
    return found


def _linear(name: str, inputs: int, outputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _patches(name: str, grid: Grid, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width, grid.channels, grid.patch, grid.patch), f"{name}.bias": (width,)}


def _levels(name: str, architecture: Architecture) -> dict[str, Shape]:
    width = architecture.width
    found: dict[str, Shape] = {}
    for part, inputs in (("timestep_embedder", LEVEL_FEATURES), ("text_embedder", architecture.pooled_width)):
        found |= _linear(f"{name}.{part}.linear_1", inputs, width) | _linear(f"{name}.{part}.linear_2", width, width)
    return found


def _block(architecture: Architecture, k: int) -> Iterator[tuple[str, Shape]]:
    width, last, features = architecture.width, k == architecture.layers - 1, (architecture.head_features,)
    yield from _linear("norm1.linear", width, (9 if k in architecture.dual_layers else 6) * width).items()
    yield from _linear("norm1_context.linear", width, (2 if last else 6) * width).items()
    if architecture.qk_norm == "layer":  # one pair of norms for all streams; with RMS, one for each
        for name in ("norm_q", "norm_k"):
            yield from ((f"attn.{name}.weight", features), (f"attn.{name}.bias", features))
    elif architecture.qk_norm == "rms":
        yield from ((f"attn.{name}.weight", features) for names in STREAM_NAMES.values() for name in names.qk_norms)
    added = tuple(f"{name}_proj" for name in ("add_k", "add_v", "add_q", "aud_k", "aud_v", "aud_q"))
    outputs = ("to_aud_out", "to_out.0") if last else ("to_aud_out", "to_out.0", "to_add_out")
    for name in ("to_q", "to_k", "to_v", *added, *outputs):
        yield from _linear(f"attn.{name}", width, width).items()
    for name in ("ff", "ff_context", "ff_audio"):
        yield from _linear(f"{name}.net.0.proj", width, architecture.mlp_width).items()
        yield from _linear(f"{name}.net.2", architecture.mlp_width, width).items()
    yield from _linear("norm1_audio.linear", width, 6 * width).items()


def nested_names(shapes: Mapping[str, Shape]) -> list[str]:
    """Return the names of tensors that belong to other models in the same file: the text VAE or an audio encoder."""
    return [name for name in shapes if name.startswith(tuple(NESTED))]


def read_architecture(
    shapes: Mapping[str, Shape], config: Mapping[str, Any], where: str
) -> tuple[Architecture, list[str]]:
    """Read the sizes of a transformer from the shapes of its tensors, and compare them with its config.

    Args:
        shapes: Shape of each tensor by name.
        config: Content of config.json.
        where: Name of the file, shown in error messages.

    Returns:
        The sizes, and a warning for each difference between config and tensors that is not an error.

    Raises:
        DataError: Tensors are missing, unexpected or of another shape, or the config belongs to another model.
    """
    size = partial(_size, shapes, where)
    width, joint = size("context_embedder.weight", 2)
    layers = 1 + max((int(match[1]) for name in shapes if (match := _BLOCK.match(name))), default=-1)
    if not 0 < layers <= len(shapes):
        raise DataError(
            f"{where}: expected a complete OmniFlow transformer, found {layers} blocks in {len(shapes)} tensors; "
            "download it again"
        )
    norm = "transformer_blocks.0.attn.norm_q"
    qk_norm: QKNormKind | None = "layer" if f"{norm}.bias" in shapes else "rms" if f"{norm}.weight" in shapes else None
    if qk_norm is None:
        source, features = "attention_head_dim in its config.json", config.get("attention_head_dim")
        remedy = "use the config.json that belongs to these weights"
    else:
        source, (features,) = f"size of {norm}.weight", size(f"{norm}.weight", 1)
        remedy = "download the weights again"
    if type(features) is not int or features < 1 or width % features:
        raise DataError(
            f"{where}: expected a head size that divides the width {width}, found {one_line(str(features), 80)} "
            f"({source}); {remedy}"
        )

    def grid(embedder: str, head: str) -> Grid:
        _, channels, patch, _ = size(f"{embedder}.proj.weight", 4)
        (outputs,) = size(f"{head}.bias", 1)
        side = math.isqrt(size(f"{embedder}.pos_embed", 3)[1])
        return Grid(channels=channels, outputs=outputs // patch**2, patch=patch, table_side=side)

    architecture = Architecture(
        width=width,
        layers=layers,
        head_features=features,
        mlp_width=size("transformer_blocks.0.ff.net.0.proj.weight", 2)[0],
        joint_width=joint,
        pooled_width=size("time_text_embed.text_embedder.linear_1.weight", 2)[1],
        text_outputs=size("text_output.weight", 2)[0],
        qk_norm=qk_norm,
        dual_layers=frozenset(
            k for k in range(layers) if shapes.get(f"transformer_blocks.{k}.norm1.linear.bias") == (9 * width,)
        ),
        image=grid("pos_embed", "proj_out"),
        audio=grid("audio_embedder", "proj_out_aud"),
    )
    nested = set(nested_names(shapes))
    own = {name: shape for name, shape in shapes.items() if name not in nested}
    remedy = "download the complete OmniFlow transformer again"
    require_same(parameters(architecture) | tables(architecture), own, where, remedy)
    return architecture, _compare(architecture, config, where)


def _size(shapes: Mapping[str, Shape], where: str, name: str, axes: int) -> Shape:
    """Return the shape of a tensor; raise DataError if it is missing or does not have `axes` axes."""
    shape = shapes.get(name)
    if shape is None:
        raise DataError(f"{where}: expected a complete OmniFlow transformer, found no tensor {name}; download it again")
    if len(shape) != axes or min(shape) < 1:
        raise DataError(f"{where}: {name}: expected {axes} axes, found shape {shape}; download it again")
    return shape


def _compare(architecture: Architecture, config: Mapping[str, Any], where: str) -> list[str]:
    """Raise DataError if sizes in a config differ from the tensors; return warnings about other differences."""
    sizes = {
        "num_layers": architecture.layers,
        "attention_head_dim": architecture.head_features,
        "num_attention_heads": architecture.heads,
        "joint_attention_dim": architecture.joint_width,
        "caption_projection_dim": architecture.width,
        "pooled_projection_dim": architecture.pooled_width,
        "in_channels": architecture.image.channels,
        "audio_input_dim": architecture.audio.channels,
        "add_audio": True,
        "add_clip": False,
        "use_audio_mae": False,
        "drop_text": False,
        "drop_image": False,
        "drop_audio": False,
        "decoder_config": "",
    }
    differing = [
        f"{key} {one_line(repr(config[key]), 80)} ({own!r} there)"
        for key, own in sizes.items()
        if config.get(key, own) != own
    ]
    if differing:
        raise DataError(
            f"{where}: expected the config.json of these weights, found another config.json "
            f"({', '.join(differing)}); give the config.json that belongs to the weights"
        )
    kinds = {
        "qk_norm": _QK_NORMS[architecture.qk_norm],
        "dual_attention_layers": sorted(architecture.dual_layers),
        "patch_size": architecture.image.patch,
        "out_channels": architecture.image.outputs if config.get("out_channels") is not None else None,
        "pos_embed_max_size": architecture.image.table_side,
        "text_out_dim": architecture.text_outputs,
    }
    return [
        f"config.json says {key} {one_line(repr(config[key]), 80)}, the tensors say {own!r}, which is used"
        for key, own in kinds.items()
        if key in config and config[key] != own
    ]
