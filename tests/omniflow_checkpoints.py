"""Tiny OmniFlow checkpoints under the reference's names, and a plain restatement of what the reference computes.

Both are written from the description of the published model, apart from the code they test. The restatement takes
float64 tensors by the reference's names; the golden outputs of the original hold it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

QKNorm = Literal["layer", "rms"] | None
BASES = {"image": (6, 3), "audio": (10, 8)}  # side and base of the tables


@dataclass(frozen=True)
class Tiny:
    """Sizes and kinds of a tiny checkpoint."""

    qk_norm: QKNorm = "layer"
    dual: tuple[int, ...] = ()
    text_outputs: int = 6
    layers: int = 2
    width: int = 16
    heads: int = 2
    joint: int = 12
    pooled: int = 10
    image_channels: int = 3
    audio_channels: int = 2
    nested: bool = False
    seed: int = 0

    @property
    def config(self) -> dict[str, Any]:
        names = {"layer": "layer_norm", "rms": "rms_norm", None: None}
        return {
            "_class_name": "SD3Transformer2DModel",
            "sample_size": 6,
            "patch_size": 2,
            "in_channels": self.image_channels,
            "out_channels": self.image_channels,
            "num_layers": self.layers,
            "attention_head_dim": self.width // self.heads,
            "num_attention_heads": self.heads,
            "joint_attention_dim": self.joint,
            "caption_projection_dim": self.width,
            "pooled_projection_dim": self.pooled,
            "audio_input_dim": self.audio_channels,
            "pos_embed_max_size": BASES["image"][0],
            "dual_attention_layers": list(self.dual),
            "add_audio": True,
            "qk_norm": names[self.qk_norm],
        }


def parameter_shapes(tiny: Tiny) -> dict[str, tuple[int, ...]]:
    """All learned tensors in the order in which the reference's modules hold them."""
    d, joint = tiny.width, tiny.joint
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        shapes[f"{name}.bias"] = (outputs,)

    def conv(name: str, channels: int) -> None:
        shapes[f"{name}.weight"] = (d, channels, 2, 2)
        shapes[f"{name}.bias"] = (d,)

    def embedder(name: str) -> None:
        linear(f"{name}.timestep_embedder.linear_1", 256, d)
        linear(f"{name}.timestep_embedder.linear_2", d, d)
        linear(f"{name}.text_embedder.linear_1", tiny.pooled, d)
        linear(f"{name}.text_embedder.linear_2", d, d)

    conv("pos_embed.proj", tiny.image_channels)
    embedder("time_text_embed")
    embedder("time_image_embed")
    conv("audio_embedder.proj", tiny.audio_channels)
    embedder("time_aud_embed")
    linear("norm_out_aud.linear", d, 2 * d)
    linear("proj_out_aud", d, 4 * tiny.audio_channels)
    linear("context_embedder", joint, d)
    linear("context_decoder.projection", d, joint)
    linear("text_output", joint, tiny.text_outputs)
    for k in range(tiny.layers):
        last = k == tiny.layers - 1
        block = f"transformer_blocks.{k}"
        linear(f"{block}.norm1.linear", d, (9 if k in tiny.dual else 6) * d)
        linear(f"{block}.norm1_context.linear", d, (2 if last else 6) * d)
        if tiny.qk_norm is not None:
            names = ["norm_q", "norm_k"]
            if tiny.qk_norm == "rms":
                names += ["norm_added_q", "norm_added_k", "norm_aud_q", "norm_aud_k"]
            for name in names:
                shapes[f"{block}.attn.{name}.weight"] = (d // tiny.heads,)
                if tiny.qk_norm == "layer":
                    shapes[f"{block}.attn.{name}.bias"] = (d // tiny.heads,)
        for name in (
            *("to_q", "to_k", "to_v", "add_k_proj", "add_v_proj", "add_q_proj"),
            *("aud_k_proj", "aud_v_proj", "aud_q_proj", "to_aud_out", "to_out.0"),
            *(() if last else ("to_add_out",)),
        ):
            linear(f"{block}.attn.{name}", d, d)
        for name in ("ff", "ff_context", "ff_audio"):
            linear(f"{block}.{name}.net.0.proj", d, 4 * d)
            linear(f"{block}.{name}.net.2", 4 * d, d)
        linear(f"{block}.norm1_audio.linear", d, 6 * d)
    linear("norm_out.linear", d, 2 * d)
    linear("norm_out_text.linear", d, 2 * joint)
    linear("proj_out", d, 4 * tiny.image_channels)
    if tiny.nested:
        shapes["text_decoder.query"] = (1, 4, 8)
        shapes["text_decoder.model.embed_tokens.weight"] = (11, 8)
        shapes["text_decoder.encoder.shared.weight"] = (9, 8)
        shapes["text_decoder.q_norm.weight"] = (8,)
    return shapes


def position_table(side: int, base: int, width: int) -> Tensor:
    """The saved table (1, side², W): columns in the first half, rows in the second, sines before cosines."""
    coordinates = np.arange(side) * base / side
    frequencies = 1.0 / 10_000.0 ** (np.arange(width // 4) / (width / 4))
    axis = np.concatenate([np.sin(np.outer(coordinates, frequencies)), np.cos(np.outer(coordinates, frequencies))], 1)
    rows = [np.concatenate([axis[column], axis[row]]) for row in range(side) for column in range(side)]
    return torch.from_numpy(np.stack(rows)).float()[None]


def tensors_of(tiny: Tiny) -> dict[str, Tensor]:
    """All tensors of a checkpoint, every one random, in the order of the reference's state dict."""
    generator = torch.Generator().manual_seed(tiny.seed)
    found: dict[str, Tensor] = {}
    for name, shape in parameter_shapes(tiny).items():
        for stream, embedder in (("image", "pos_embed"), ("audio", "audio_embedder")):
            if name == f"{embedder}.proj.weight":
                found[f"{embedder}.pos_embed"] = position_table(*BASES[stream], tiny.width)
        found[name] = torch.randn(shape, generator=generator) * 0.15
    if tiny.nested:
        found["text_decoder.encoder.encoder.embed_tokens.weight"] = found["text_decoder.encoder.shared.weight"]
    return found


def averages_of(tiny: Tiny, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the content that the reference's averaging saves: tensors in parameter order, each near its weight."""
    generator = torch.Generator().manual_seed(99)
    near = [
        tensors[name] + 0.01 * torch.randn(tensors[name].shape, generator=generator) for name in parameter_shapes(tiny)
    ]
    return {"decay": 0.999, "min_decay": 0.0, "optimization_step": 10, "use_ema_warmup": False, "shadow_params": near}


def write_folder(
    folder: Path,
    tiny: Tiny,
    *,
    kind: Literal["bin", "safetensors"] = "bin",
    tensors: Mapping[str, Tensor] | None = None,
    config: Mapping[str, Any] | None = None,
    average: bool = False,
) -> Path:
    """An OmniFlow folder, as far as the transformer is concerned."""
    place = folder / "transformer"
    place.mkdir(parents=True, exist_ok=True)
    found = dict(tensors_of(tiny) if tensors is None else tensors)
    (place / "config.json").write_text(json.dumps(tiny.config if config is None else config))
    if kind == "bin":
        torch.save(found, place / "diffusion_pytorch_model.bin")
    else:
        save_file({name: x.clone() for name, x in found.items()}, place / "diffusion_pytorch_model.safetensors")
    if average:
        torch.save(averages_of(tiny, found), place / "ema_transformer.pt")
    return folder


# --- what the reference computes


@dataclass(frozen=True)
class Given:
    """Inputs: latents (B, K, H, W), text (B, T, joint), pooled (B, P), levels t in 0 … 1000 of (B,)."""

    image: Tensor
    audio: Tensor
    text: Tensor
    pooled: Tensor
    times: Mapping[str, Tensor]


def norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()


class Reference:
    """The reference's forward pass with summed conditioning, from its tensors, in float64."""

    def __init__(self, tensors: Mapping[str, Tensor], heads: int) -> None:
        self.p = {name: x.double() for name, x in tensors.items() if not name.startswith("text_decoder.")}
        self.heads = heads
        self.layers = 1 + max(int(name.split(".")[1]) for name in self.p if name.startswith("transformer_blocks."))

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.p[f"{name}.weight"].T + self.p[f"{name}.bias"]

    def mlp(self, x: Tensor, name: str) -> Tensor:
        inner = self.linear(x, f"{name}.net.0.proj")
        inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        return self.linear(inner, f"{name}.net.2")

    def condition(self, times: Tensor, pooled: Tensor, name: str) -> Tensor:
        angles = times.double()[:, None] * torch.exp(-math.log(10_000) * torch.arange(128).double() / 128)
        level = torch.cat([angles.cos(), angles.sin()], -1)
        silu = torch.nn.functional.silu
        first = self.linear(
            silu(self.linear(level, f"{name}.timestep_embedder.linear_1")), f"{name}.timestep_embedder.linear_2"
        )
        return first + self.linear(
            silu(self.linear(pooled, f"{name}.text_embedder.linear_1")), f"{name}.text_embedder.linear_2"
        )

    def patches(self, latents: Tensor, name: str) -> Tensor:
        """Convolution of stride 2, flattened by rows, plus the centred crop of the saved table."""
        found = torch.nn.functional.conv2d(
            latents.double(), self.p[f"{name}.proj.weight"], self.p[f"{name}.proj.bias"], stride=2
        )
        rows, columns = found.shape[2:]
        side = math.isqrt(self.p[f"{name}.pos_embed"].shape[1])
        top, left = (side - rows) // 2, (side - columns) // 2
        table = self.p[f"{name}.pos_embed"].reshape(side, side, -1)[top : top + rows, left : left + columns]
        return found.flatten(2).transpose(1, 2) + table.reshape(rows * columns, -1)

    def qkv(self, x: Tensor, block: str, names: tuple[str, str, str], norms: tuple[str, str]) -> list[Tensor]:
        found = []
        for name, norm_name in zip(names, (*norms, None), strict=True):
            y = self.linear(x, f"{block}.attn.{name}").unflatten(-1, (self.heads, -1))
            if norm_name is not None and f"{block}.attn.norm_q.bias" in self.p:
                shared = "norm_q" if norm_name.endswith("q") else "norm_k"
                y = norm(y, 1e-5) * self.p[f"{block}.attn.{shared}.weight"] + self.p[f"{block}.attn.{shared}.bias"]
            elif norm_name is not None and f"{block}.attn.norm_q.weight" in self.p:
                y = y / (y.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * self.p[f"{block}.attn.{norm_name}.weight"]
            found.append(y)
        return found

    STREAMS = (
        ("image", "norm1", ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"), "to_out.0", "ff"),
        (
            *("text", "norm1_context", ("add_q_proj", "add_k_proj", "add_v_proj")),
            *(("norm_added_q", "norm_added_k"), "to_add_out", "ff_context"),
        ),
        (
            *("audio", "norm1_audio", ("aud_q_proj", "aud_k_proj", "aud_v_proj")),
            *(("norm_aud_q", "norm_aud_k"), "to_aud_out", "ff_audio"),
        ),
    )

    def block(self, hidden: dict[str, Tensor], c: Tensor, k: int) -> dict[str, Tensor]:
        block, last = f"transformer_blocks.{k}", k == self.layers - 1
        width = c.shape[-1]
        parts, projected = {}, {}
        for name, modulation, names, norms, _, _ in self.STREAMS:
            rows = self.linear(c, f"{block}.{modulation}.linear")
            own = [rows[:, None, width * j : width * (j + 1)] for j in range(6)]
            shift, scale = (own[1], own[0]) if last and name == "text" else (own[0], own[1])
            parts[name] = own
            projected[name] = self.qkv(norm(hidden[name]) * (1 + scale) + shift, block, names, norms)
        q, k_, v = (torch.cat([projected[n][j] for n in projected], 1).transpose(1, 2) for j in range(3))
        weights = torch.softmax(q @ k_.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1)
        attended = (weights @ v).transpose(1, 2).flatten(2).split([x.shape[1] for x in hidden.values()], 1)
        found = {}
        for (name, _, _, _, out, mlp), own in zip(self.STREAMS, attended, strict=True):
            x = hidden[name]
            if not (last and name == "text"):
                x = x + parts[name][2] * self.linear(own, f"{block}.attn.{out}")
                inner = norm(x) * (1 + parts[name][4]) + parts[name][3]
                x = x + parts[name][5] * self.mlp(inner, f"{block}.{mlp}")
            found[name] = x
        return found

    def head(self, x: Tensor, c: Tensor, modulation: str, out: str) -> Tensor:
        scale, shift = self.linear(c, f"{modulation}.linear")[:, None].chunk(2, -1)
        return self.linear(norm(x) * (1 + scale) + shift, out)

    def unpatched(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        channels = tokens.shape[-1] // 4
        found = torch.zeros(len(tokens), channels, 2 * rows, 2 * columns, dtype=tokens.dtype)
        for row in range(rows):
            for column in range(columns):
                for p in range(2):
                    for q in range(2):
                        at = (2 * p + q) * channels
                        found[:, :, 2 * row + p, 2 * column + q] = tokens[:, row * columns + column, at : at + channels]
        return found

    def __call__(self, given: Given) -> dict[str, Tensor]:
        embedders = {"image": "time_text_embed", "text": "time_image_embed", "audio": "time_aud_embed"}
        pooled = given.pooled.double()
        c = sum((self.condition(given.times[n], pooled, e) for n, e in embedders.items()), torch.zeros(()))
        c = torch.nn.functional.silu(c)
        hidden = {
            "image": self.patches(given.image, "pos_embed"),
            "text": self.linear(given.text.double(), "context_embedder"),
            "audio": self.patches(given.audio, "audio_embedder"),
        }
        for k in range(self.layers):
            hidden = self.block(hidden, c, k)
        wide = self.linear(hidden["text"], "context_decoder.projection")
        image = self.head(hidden["image"], c, "norm_out", "proj_out")
        audio = self.head(hidden["audio"], c, "norm_out_aud", "proj_out_aud")
        return {
            "image": self.unpatched(image, given.image.shape[2] // 2, given.image.shape[3] // 2),
            "text": self.head(wide, c, "norm_out_text", "text_output"),
            "audio": self.unpatched(audio, given.audio.shape[2] // 2, given.audio.shape[3] // 2),
        }
