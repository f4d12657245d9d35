"""The text VAE once more, in NumPy and float64, from its published description: nothing here is the package's."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import erf

Tensors = dict[str, Any]
HEADS = 12  # of the Q-Former


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rms(x, weight, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def layer_norm(x, eps, weight=1.0, bias=0.0):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias


def heads(x, count):
    """(B, L, count · d) as (B, count, L, d)."""
    return x.reshape(*x.shape[:2], count, -1).swapaxes(1, 2)


def joined(x):
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


class Reference:
    """Arrays of a text VAE by their published names, and its configuration as the file has it."""

    def __init__(self, config: dict[str, Any], tensors: Tensors) -> None:
        self.config = config
        self.vae = config["vae_config"]
        self.t = {name: np.asarray(array, np.float64) for name, array in tensors.items()}

    def linear(self, x, name):
        return x @ self.t[f"{name}.weight"].T + self.t.get(f"{name}.bias", 0.0)

    # T5: no scale in attention, no mask, one table of relative positions

    def bucket(self, d):
        sign = 16 if d > 0 else 0
        d = abs(d)
        return sign + (d if d < 8 else min(15, 8 + int(np.floor(np.log(d / 8) / np.log(16) * 8))))

    def t5_features(self, ids):
        x = self.t["encoder.shared.weight"][ids]
        table = self.t["encoder.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        length = ids.shape[1]
        buckets = np.array([[self.bucket(key - query) for key in range(length)] for query in range(length)])
        bias = table[buckets].transpose(2, 0, 1)
        for k in range(self.config["t5"]["num_layers"]):
            block = f"encoder.encoder.block.{k}.layer"
            h = rms(x, self.t[f"{block}.0.layer_norm.weight"], 1e-6)
            q, key, v = (heads(self.linear(h, f"{block}.0.SelfAttention.{p}"), table.shape[1]) for p in "qkv")
            attention = softmax(q @ key.swapaxes(2, 3) + bias) @ v
            x = x + self.linear(joined(attention), f"{block}.0.SelfAttention.o")
            h = rms(x, self.t[f"{block}.1.layer_norm.weight"], 1e-6)
            inner = self.linear(h, f"{block}.1.DenseReluDense.wi_0")
            inner = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
            gated = inner * self.linear(h, f"{block}.1.DenseReluDense.wi_1")
            x = x + self.linear(gated, f"{block}.1.DenseReluDense.wo")
        return rms(x, self.t["encoder.encoder.final_layer_norm.weight"], 1e-6)

    # Q-Former: layers 0, 2, 4 look at the features

    def behind(self, x, given, name):
        norm = f"{name}.LayerNorm"
        total = self.linear(x, f"{name}.dense") + given
        return layer_norm(total, 1e-12, self.t[f"{norm}.weight"], self.t[f"{norm}.bias"])

    def looked(self, x, at, name):
        q, k, v = (
            heads(self.linear(y, f"{name}.attention.{p}"), HEADS) for y, p in ((x, "query"), (at, "key"), (at, "value"))
        )
        attention = softmax(q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1])) @ v
        return self.behind(joined(attention), x, f"{name}.output")

    def gathered(self, ids, empty):
        features = self.t5_features(ids)
        features = (features - features.mean(-1, keepdims=True)) / (features.std(-1, ddof=1, keepdims=True) + 1e-9)
        if self.vae["vae_dim"] != 1536:
            features = features * np.where(empty, 0.0, 1.0)[:, None, None]
        x = np.repeat(self.t["query"], len(ids), axis=0)
        x = layer_norm(x, 1e-12, self.t["qformer.layernorm.weight"], self.t["qformer.layernorm.bias"])
        for k in range(6):
            layer = f"qformer.encoder.layer.{k}"
            x = self.looked(x, x, f"{layer}.attention")
            if k % 2 == 0:
                x = self.looked(x, features, f"{layer}.crossattention")
            inner = self.linear(x, f"{layer}.intermediate_query.dense")
            x = self.behind(0.5 * inner * (1 + erf(inner / np.sqrt(2))), x, f"{layer}.output_query")
        return x

    def norm(self, x):
        return rms(x, self.t["q_norm.weight"], 1e-6) if self.vae["norm_type"] == "rms_norm" else layer_norm(x, 1e-5)

    def latents(self, ids, empty, uniform=0.0):
        width = self.vae["vae_dim"]
        x = self.gathered(ids, empty)
        if self.vae["pre_norm"]:
            mean = self.linear(self.norm(x), "vae_proj")[..., :width]
        else:
            mean = self.norm(self.linear(x, "vae_proj")[..., :width])
        return (mean + 0.001 * uniform) * self.vae["vae_scale"]

    # LLaMA: rotary positions count from the start of the latents

    def rotated(self, x):
        half = x.shape[-1] // 2
        angles = np.arange(x.shape[-2])[:, None] * self.config["rope_theta"] ** (-np.arange(half) / half)
        first, second = x[..., :half], x[..., half:]
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)

    def logits(self, latents, ids):
        prefix = latents / self.vae["vae_scale"]
        if "input_proj.weight" in self.t:
            prefix = self.linear(prefix, "input_proj")
        x = np.concatenate([prefix, self.t["model.embed_tokens.weight"][ids]], axis=1)
        count, fewer = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        eps = self.config["rms_norm_eps"]
        hidden = np.where(np.tri(x.shape[1], dtype=bool), 0.0, -np.inf)
        for k in range(self.config["num_hidden_layers"]):
            layer = f"model.layers.{k}"
            h = rms(x, self.t[f"{layer}.input_layernorm.weight"], eps)
            q = self.rotated(heads(self.linear(h, f"{layer}.self_attn.q_proj"), count))
            key = self.rotated(heads(self.linear(h, f"{layer}.self_attn.k_proj"), fewer))
            v = heads(self.linear(h, f"{layer}.self_attn.v_proj"), fewer)
            key, v = (np.repeat(y, count // fewer, axis=1) for y in (key, v))
            attention = softmax(q @ key.swapaxes(2, 3) / np.sqrt(q.shape[-1]) + hidden) @ v
            x = x + self.linear(joined(attention), f"{layer}.self_attn.o_proj")
            h = rms(x, self.t[f"{layer}.post_attention_layernorm.weight"], eps)
            gate = self.linear(h, f"{layer}.mlp.gate_proj")
            inner = gate / (1 + np.exp(-gate)) * self.linear(h, f"{layer}.mlp.up_proj")
            x = x + self.linear(inner, f"{layer}.mlp.down_proj")
        return self.linear(rms(x, self.t["model.norm.weight"], eps)[:, prefix.shape[1] :], "lm_head")

    def generated(self, latents, max_length):
        """Ids of each row, and the smallest gap between the best and the second best token on the way."""
        begin, end = self.config["bos_token_id"], self.config["eos_token_id"]
        lead = latents.shape[1]
        ids = np.full((len(latents), 1), begin)
        ended = np.zeros(len(latents), bool)
        gap = np.inf
        while lead + ids.shape[1] < max_length and not ended.all():
            last = self.logits(latents, ids)[:, -1]
            two = np.sort(last, -1)[~ended, -2:]
            gap = min(gap, (two[:, 1] - two[:, 0]).min())
            token = np.where(ended, end, last.argmax(-1))
            ended |= token == end
            ids = np.concatenate([ids, token[:, None]], axis=1)
        return np.concatenate([np.full((len(latents), lead), begin), ids], axis=1), gap


def token_losses(logits, labels):
    shifted, targets = logits[:, :-1], labels[:, 1:]
    chances = np.log(softmax(shifted))
    taken = np.take_along_axis(chances, np.maximum(targets, 0)[..., None], -1)[..., 0]
    return np.where(targets == -100, 0.0, -taken)
