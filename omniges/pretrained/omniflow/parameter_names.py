"""What OmniFlow's transformer consists of: names, shapes and order of its parameters, from its sizes.

Names and shapes are those of the published checkpoints of OmniFlow (Li et al. 2024). The order is that in which the
reference's modules were made: a list of averaged weights has no names, so the order is all that tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from omniges.model.attention import QKNormKind

Shape = tuple[int, ...]
SourceStream = Literal["image", "text", "audio"]

LEVEL_FEATURES: Final = 256
"""Features of a noise level, as `omniges.model.trunk.level_features` has them."""

NESTED: Final = {"text_decoder.": "the text VAE, a model of its own", "audio_pooler.": "an audio encoder, never used"}
"""Prefixes of other models that are saved inside a transformer's file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamNames:
    """What a stream's parts are called in OmniFlow."""

    level: str  # the time embedder; those of image and text have each other's names
    embed: str
    modulation: str
    projections: tuple[str, str, str]  # queries, keys, values
    out: str
    mlp: str
    qk_norms: tuple[str, str]  # of checkpoints with RMS norms
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
    """Sizes of a stream of two-dimensional latents."""

    channels: int
    outputs: int  # channels that the head gives
    patch: int
    table_side: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """Sizes and kinds of a transformer."""

    width: int
    layers: int
    head_features: int
    mlp_width: int
    joint_width: int
    """Width of the text input, and inside the text head."""
    pooled_width: int
    text_outputs: int
    qk_norm: QKNormKind | None
    dual_layers: frozenset[int]
    """Blocks whose image modulation has three parts more, for a second attention that does not exist beside audio."""
    image: Grid
    audio: Grid

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.width // self.head_features


def tables(anatomy: Anatomy) -> dict[str, Shape]:
    """Names and shapes of the saved position tables, which are no parameters."""
    width = anatomy.width
    return {
        "pos_embed.pos_embed": (1, anatomy.image.table_side**2, width),
        "audio_embedder.pos_embed": (1, anatomy.audio.table_side**2, width),
    }


def parameters(anatomy: Anatomy) -> dict[str, Shape]:
    """Names and shapes of all parameters of the transformer itself, in the reference's order."""
    found: dict[str, Shape] = {}
    width, joint = anatomy.width, anatomy.joint_width
    found |= _patches("pos_embed.proj", anatomy.image, width)
    found |= _levels("time_text_embed", anatomy)
    found |= _levels("time_image_embed", anatomy)
    found |= _patches("audio_embedder.proj", anatomy.audio, width)
    found |= _levels("time_aud_embed", anatomy)
    found |= _linear("norm_out_aud.linear", width, 2 * width)
    found |= _linear("proj_out_aud", width, anatomy.audio.patch**2 * anatomy.audio.outputs)
    found |= _linear("context_embedder", joint, width)
    found |= _linear("context_decoder.projection", width, joint)
    found |= _linear("text_output", joint, anatomy.text_outputs)
    for k in range(anatomy.layers):
        found |= {f"transformer_blocks.{k}.{name}": shape for name, shape in _block(anatomy, k)}
    found |= _linear("norm_out.linear", width, 2 * width)
    found |= _linear("norm_out_text.linear", width, 2 * joint)
    found |= _linear("proj_out", width, anatomy.image.patch**2 * anatomy.image.outputs)
    return found


def _linear(name: str, inputs: int, outputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _patches(name: str, grid: Grid, width: int) -> dict[str, Shape]:
    return {f"{name}.weight": (width, grid.channels, grid.patch, grid.patch), f"{name}.bias": (width,)}


def _levels(name: str, anatomy: Anatomy) -> dict[str, Shape]:
    width = anatomy.width
    found: dict[str, Shape] = {}
    for part, inputs in (("timestep_embedder", LEVEL_FEATURES), ("text_embedder", anatomy.pooled_width)):
        found |= _linear(f"{name}.{part}.linear_1", inputs, width) | _linear(f"{name}.{part}.linear_2", width, width)
    return found


def _block(anatomy: Anatomy, k: int) -> Iterator[tuple[str, Shape]]:
    width, last = anatomy.width, k == anatomy.layers - 1
    yield from _linear("norm1.linear", width, (9 if k in anatomy.dual_layers else 6) * width).items()
    yield from _linear("norm1_context.linear", width, (2 if last else 6) * width).items()
    yield from _qk_norms(anatomy)
    inputs = (
        "to_q",
        "to_k",
        "to_v",
        "add_k_proj",
        "add_v_proj",
        "add_q_proj",
        "aud_k_proj",
        "aud_v_proj",
        "aud_q_proj",
    )
    outputs = ("to_aud_out", "to_out.0") if last else ("to_aud_out", "to_out.0", "to_add_out")
    for name in inputs + outputs:
        yield from _linear(f"attn.{name}", width, width).items()
    for name in ("ff", "ff_context", "ff_audio"):
        yield from _linear(f"{name}.net.0.proj", width, anatomy.mlp_width).items()
        yield from _linear(f"{name}.net.2", anatomy.mlp_width, width).items()
    yield from _linear("norm1_audio.linear", width, 6 * width).items()


def _qk_norms(anatomy: Anatomy) -> Iterator[tuple[str, Shape]]:
    """Shared by the streams with LayerNorm, one pair a stream with RMS."""
    if anatomy.qk_norm == "layer":
        for name in ("norm_q", "norm_k"):
            yield f"attn.{name}.weight", (anatomy.head_features,)
            yield f"attn.{name}.bias", (anatomy.head_features,)
    elif anatomy.qk_norm == "rms":
        for names in STREAM_NAMES.values():
            for name in names.qk_norms:
                yield f"attn.{name}.weight", (anatomy.head_features,)
