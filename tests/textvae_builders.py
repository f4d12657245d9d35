"""Small random text VAEs, their folders, and small tokenizers, built without the package's own code."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

PARITY = Path(os.environ.get("OMNIGES_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "textvae_parity"
needs_parity = pytest.mark.skipif(
    not PARITY.is_dir(), reason=f"no golden data at {PARITY} (set OMNIGES_SHARED to where they are)"
)

LLAMA = {
    "model_type": "llama",
    "architectures": ["LLamaForLatentConnector"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 24,
    "intermediate_size": 20,
    "max_position_embeddings": 128,
    "num_attention_heads": 6,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 0.01,  # large, so that it shows
    "rope_theta": 50.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "vocab_size": 300,
}
VAE = {
    "prompt_size": 16,
    "vae_dim": 10,
    "vae_hidden_size": 24,
    "n_tokens": 3,
    "pre_norm": True,
    "norm_type": "rms_norm",
    "vae_scale": 1.0,
}
T5 = {
    "vocab_size": 300,
    "d_model": 16,
    "d_kv": 4,
    "num_heads": 2,
    "d_ff": 12,
    "num_layers": 2,
    "relative_attention_num_buckets": 32,
}


def configuration(*, vae: dict[str, Any] | None = None, **llama: Any) -> dict[str, Any]:
    return LLAMA | llama | {"vae_config": VAE | (vae or {}), "t5": dict(T5)}


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a text VAE by its published name."""
    vae, t5 = config["vae_config"], config["t5"]
    h, v, e, wide = vae["vae_hidden_size"], vae["vae_dim"], vae["prompt_size"], config["hidden_size"]
    keys = wide // config["num_attention_heads"] * config["num_key_value_heads"]
    inner, words = config["intermediate_size"], config["vocab_size"]
    found = {"query": (1, vae["n_tokens"], h), "model.embed_tokens.weight": (words, wide)}
    for k in range(config["num_hidden_layers"]):
        layer = f"model.layers.{k}"
        for part, rows in (("q", wide), ("k", keys), ("v", keys), ("o", wide)):
            found[f"{layer}.self_attn.{part}_proj.weight"] = (rows, wide)
        found |= {f"{layer}.mlp.{part}_proj.weight": (inner, wide) for part in ("gate", "up")}
        found[f"{layer}.mlp.down_proj.weight"] = (wide, inner)
        found |= {f"{layer}.{part}_layernorm.weight": (wide,) for part in ("input", "post_attention")}
    found |= {"model.norm.weight": (wide,), "lm_head.weight": (words, wide)}
    if vae["norm_type"] == "rms_norm":
        found["q_norm.weight"] = (h if vae["pre_norm"] else v,)
    found |= _pair("qformer.layernorm", h)
    for k in range(6):
        layer = f"qformer.encoder.layer.{k}"
        for name, width in [("attention", h)] + [("crossattention", e)] * (k % 2 == 0):
            found |= _pair(f"{layer}.{name}.attention.query", h, h)
            found |= _pair(f"{layer}.{name}.attention.key", h, width) | _pair(
                f"{layer}.{name}.attention.value", h, width
            )
            found |= _pair(f"{layer}.{name}.output.dense", h, h) | _pair(f"{layer}.{name}.output.LayerNorm", h)
        found |= _pair(f"{layer}.intermediate_query.dense", 3072, h) | _pair(f"{layer}.output_query.dense", h, 3072)
        found |= _pair(f"{layer}.output_query.LayerNorm", h)
    found |= _pair("vae_proj", 2 * v, h)
    if v != wide:
        found |= _pair("input_proj", wide, v)
    found |= {f"encoder.{name}.weight": (t5["vocab_size"], e) for name in ("shared", "encoder.embed_tokens")}
    width = t5["num_heads"] * t5["d_kv"]
    for k in range(t5["num_layers"]):
        block = f"encoder.encoder.block.{k}.layer"
        found |= {f"{block}.0.SelfAttention.{part}.weight": (width, e) for part in "qkv"}
        found[f"{block}.0.SelfAttention.o.weight"] = (e, width)
        if k == 0:
            found[f"{block}.0.SelfAttention.relative_attention_bias.weight"] = (32, t5["num_heads"])
        found[f"{block}.0.layer_norm.weight"] = (e,)
        found |= {f"{block}.1.DenseReluDense.{part}.weight": (t5["d_ff"], e) for part in ("wi_0", "wi_1")}
        found[f"{block}.1.DenseReluDense.wo.weight"] = (e, t5["d_ff"])
        found[f"{block}.1.layer_norm.weight"] = (e,)
    return found | {"encoder.encoder.final_layer_norm.weight": (e,)}


def _pair(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def random_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Float32, every one random; matrices keep the size of what they multiply, T5's table stands twice."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in shapes(config).items():
        scale = 1.5 / np.sqrt(shape[-1]) if len(shape) == 2 and "embed" not in name else 0.5
        array = rng.normal(0, scale, shape) + ("norm" in name.lower() and name.endswith("weight"))
        found[name] = torch.from_numpy(array.astype(np.float32))
    found["encoder.encoder.embed_tokens.weight"] = found["encoder.shared.weight"]
    return found


def safe(tensors: dict[str, torch.Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)


def own_folder(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    """A text VAE in a folder of its own, with tokenizers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    safe(tensors, folder / "model.safetensors")
    write_tokenizers(folder)
    return folder


def checkpoint_folder(
    folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], *, pickled: bool = True
) -> Path:
    """A text VAE within a checkpoint, beside a tensor of the transformer."""
    inside = {"proj_out.weight": torch.ones(2, 2)} | {f"text_decoder.{n}": tensor for n, tensor in tensors.items()}
    (folder / "text_vae").mkdir(parents=True)
    (folder / "transformer").mkdir()
    (folder / "text_vae" / "config.json").write_text(json.dumps(config))
    weights = folder / "transformer" / "diffusion_pytorch_model"
    if pickled:
        torch.save(inside, weights.with_suffix(".bin"))
    else:
        safe(inside, weights.with_suffix(".safetensors"))
    write_tokenizers(folder)
    return folder


def write_tokenizers(folder: Path) -> None:
    for name, tokenizer in (("vae_tokenizer", llama_tokenizer()), ("t5_tokenizer", t5_tokenizer())):
        (folder / name).mkdir(exist_ok=True)
        tokenizer.save(str(folder / name / "tokenizer.json"))


def llama_tokenizer() -> Tokenizer:
    """Return a tokenizer like TinyLlama's: BPE over sentencepiece's letters, bytes for others, a begin token first."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁helowrd", "he", "ll", "▁w"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = [("h", "e"), ("l", "l"), ("▁", "w")]
    bpe = models.BPE(vocabulary, merges, unk_token=tokens[0], fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in tokens[:3]])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def t5_tokenizer() -> Tokenizer:
    """Return a tokenizer like flan-T5's: a unigram model with an end token, whose file asks to cut and to pad."""
    letters = [(letter, -4.0) for letter in "▁abcdefghijklmnopqrstuvwxyz</>"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), *letters, ("▁the", -1.0), ("▁hello", -1.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace("▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace("▁", prepend_scheme="always")
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<pad>", "</s>", "<unk>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=9)
    return tokenizer
