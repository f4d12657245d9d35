"""Small nets with random weights in the published names, what they compute in plain NumPy, and codec folders of them.

Names and formulas stand here a second time on purpose, as they are published, and not taken from the package.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

TINY = {"channels": 5, "width": 6, "size": 4, "codes": 9, "quantizers": 3, "stages": 2, "depth": 3, "projected": True}
WIDTHS = {"upper": 78, "hands": 180, "lower": 57, "face": 100}


def shapes(*, channels, width, size, codes, quantizers, stages, depth, projected):
    """Names and shapes of all tensors."""
    found = {}

    def conv(name, out, into, kernel):
        found[f"{name}.weight"] = (out, into, kernel)
        found[f"{name}.bias"] = (out,)

    def blocks(name):
        for k in range(depth):
            conv(f"{name}.model.{k}.conv1", width, width, 3)
            conv(f"{name}.model.{k}.conv2", width, width, 1)

    conv("encoder.model.0", width, channels, 3)
    conv("decoder.model.0", width, size, 3)
    for stage in range(2, 2 + stages):
        conv(f"encoder.model.{stage}.0", width, width, 4)
        blocks(f"encoder.model.{stage}.1")
        blocks(f"decoder.model.{stage}.0")
        conv(f"decoder.model.{stage}.2", width, width, 3)
    conv(f"encoder.model.{2 + stages}", size, width, 3)
    conv(f"decoder.model.{2 + stages}", width, width, 3)
    conv(f"decoder.model.{4 + stages}", channels, width, 3)
    for q in range(quantizers):
        found[f"quantizer.layers.{q}.codebook"] = (codes, size)
        if projected:
            found[f"quantizer.layers.{q}.embedding_proj.weight"] = (size, size)
            found[f"quantizer.layers.{q}.embedding_proj.bias"] = (size,)
    return found


def random_tensors(seed=0, **changes):
    """A state dict whose activations neither vanish nor grow."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes(**(TINY | changes)).items():
        spread = 1 / np.sqrt(np.prod(shape[1:])) if name.endswith("weight") else 0.3
        tensors[name] = torch.from_numpy(rng.normal(0, spread, shape).astype(np.float32))
    return tensors


class PlainNet:
    """The net in float64, one time step and one residual block after the other; arrays are (T, C)."""

    def __init__(self, tensors, stages, depth):
        self.tensors = {name: tensor.numpy().astype(np.float64) for name, tensor in tensors.items()}
        self.stages, self.depth = stages, depth

    def conv(self, name, x, *, stride=1, padding=0, dilation=1):
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        reach = dilation * (weight.shape[2] - 1) + 1
        padded = np.pad(x, ((padding, padding), (0, 0)))
        rows = []
        for start in range(0, len(padded) - reach + 1, stride):
            taps = padded[start : start + reach : dilation]
            rows.append(bias + sum(weight[:, :, k] @ tap for k, tap in enumerate(taps)))
        return np.array(rows)

    def blocks(self, name, x):
        for k in range(self.depth):
            dilation = 3 ** (self.depth - 1 - k)
            inner = self.conv(f"{name}.model.{k}.conv1", np.maximum(x, 0), padding=dilation, dilation=dilation)
            x = x + self.conv(f"{name}.model.{k}.conv2", np.maximum(inner, 0))
        return x

    def encode(self, motion):
        x = np.maximum(self.conv("encoder.model.0", motion, padding=1), 0)
        for stage in range(2, 2 + self.stages):
            x = self.conv(f"encoder.model.{stage}.0", x, stride=2, padding=1)
            x = self.blocks(f"encoder.model.{stage}.1", x)
        return self.conv(f"encoder.model.{2 + self.stages}", x, padding=1)

    def decode(self, latents):
        x = np.maximum(self.conv("decoder.model.0", latents, padding=1), 0)
        for stage in range(2, 2 + self.stages):
            x = self.blocks(f"decoder.model.{stage}.0", x)
            x = self.conv(f"decoder.model.{stage}.2", np.repeat(x, 2, axis=0), padding=1)
        x = np.maximum(self.conv(f"decoder.model.{2 + self.stages}", x, padding=1), 0)
        return self.conv(f"decoder.model.{4 + self.stages}", x, padding=1)

    def tables(self):
        """Each quantiser's codes (K, D) after its projection."""
        q = 0
        while f"quantizer.layers.{q}.codebook" in self.tensors:
            table = self.tensors[f"quantizer.layers.{q}.codebook"]
            if f"quantizer.layers.{q}.embedding_proj.weight" in self.tensors:
                weight, bias = (self.tensors[f"quantizer.layers.{q}.embedding_proj.{w}"] for w in ("weight", "bias"))
                table = np.array([weight @ code + bias for code in table])
            yield table
            q += 1

    def quantise(self, latents):
        """Indices (N, Q), sums of codes (N, D), smallest gap between the nearest code and the second nearest."""
        indices, gap = [], np.inf
        left = latents.copy()
        for table in self.tables():
            distances = np.array([[np.sum((row - code) ** 2) for code in table] for row in left])
            ranked = np.sort(distances, axis=1)
            gap = min(gap, (ranked[:, 1] - ranked[:, 0]).min())
            chosen = distances.argmin(axis=1)
            indices.append(chosen)
            left = left - table[chosen]
        return np.stack(indices, axis=1), latents - left, gap


def write_statistics(folder: Path, seed=0):
    """The four files of a codec's folder; returns their arrays by what they hold."""
    rng = np.random.default_rng(seed)
    arrays = {
        "beatx_2_330_mean": rng.normal(0, 0.5, 330).astype(np.float32),
        "beatx_2_330_std": rng.uniform(0.01, 0.5, 330).astype(np.float32),
        "beatx_2_trans_mean": np.array([-1e-5, 1.3, 3e-5]),
        "beatx_2_trans_std": np.array([0.004, 0.017, 0.006]),
    }
    (folder / "mean_std").mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / "mean_std" / f"{name}.npy", array)
    return arrays


def write_codec(folder: Path, *, seed=0, **channels):
    """A codec's folder: nets of the parts named (all four by default) with so many channels, and statistics."""
    write_statistics(folder)
    tensors = {}
    for number, (part, width) in enumerate((channels or WIDTHS).items()):
        tensors[part] = random_tensors(seed + number, channels=width, size=4 + number)
        torch.save({"net": tensors[part]}, folder / f"net_300000_{part}.pth")
    return tensors


def gesture(frames, seed=0):
    """Gesture channels (T, 415) that no person moves like, of a person's size."""
    rng = np.random.default_rng(seed)
    found = rng.normal(0, 0.5, (frames, 415)).astype(np.float32)
    found[:, 312:315] = rng.normal([0, 1.3, 0], [0.004, 0.02, 0.006], (frames, 3))
    return found
