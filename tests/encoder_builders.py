"""Files of EMAGE's motion encoder with random weights, and a second statement of the network and its constants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from omniges.metrics.motion_encoder import MotionEncoderLayout, encoder_shapes, halved_chains, tree_edges


def tree_constants(layout: MotionEncoderLayout) -> dict[str, Any]:
    """Masks and pooling matrices by name, from paths between edges in the tree."""
    edges, width = list(tree_edges(layout.joints)), 6
    found: dict[str, Any] = {}
    for k, channels in enumerate(layout.edge_channels):
        block = f"encoder.layers.{k}.0"
        mask = np.zeros((len(edges) * channels, len(edges) * width), np.float32)
        for i, one in enumerate(edges):
            for j, other in enumerate(edges):
                near = {*one} & {*other} or any({*one} & {*e} and {*other} & {*e} for e in edges)
                mask[i * channels : (i + 1) * channels, j * width : (j + 1) * width] = bool(near)
        found[f"{block}.residual.0.mask"] = np.repeat(mask[..., None], 4, axis=2)
        found[f"{block}.shortcut.mask"] = mask[..., None]
        groups = halved_chains(tuple(edges))
        if len(groups) < len(edges):
            pooling = np.zeros((len(groups) * channels, len(edges) * channels), np.float32)
            for row, group in enumerate(groups):
                for edge in group:
                    for c in range(channels):
                        pooling[row * channels + c, edge * channels + c] = 1 / len(group)
            found[f"{block}.common.0.weight"] = pooling
        edges = [(edges[group[0]][0], edges[group[-1]][1]) for group in groups]
        width = channels
    return found


def random_tensors(layout: MotionEncoderLayout, seed: int = 0) -> dict[str, Any]:
    """Tensors by name, random but for masks and pooling."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    found = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in encoder_shapes(layout).items()}
    return found | {name: torch.from_numpy(array) for name, array in tree_constants(layout).items()}


def saved(path: Path, tensors: dict[str, Any], prefix: str = "module.") -> Path:
    """Save tensors as EMAGE's trainer does."""
    import torch

    torch.save({"model_state": {prefix + name: tensor for name, tensor in tensors.items()}}, path)
    return path


def by_torch(tensors: dict[str, Any], layout: MotionEncoderLayout, six_d: Any) -> Any:
    """The network in torch's own layers, in float64."""
    import torch

    t = {name: tensor.double() for name, tensor in tensors.items()}
    f = torch.nn.functional
    h = torch.from_numpy(six_d.T.copy())[None].double()
    for k in range(len(layout.edge_channels)):
        b = f"encoder.layers.{k}.0"
        weight = t[f"{b}.residual.0.weight"] * t[f"{b}.residual.0.mask"]
        r = f.conv1d(h, weight, t[f"{b}.residual.0.bias"], stride=2, padding=1)
        r = f.group_norm(r, 10, t[f"{b}.residual.1.weight"], t[f"{b}.residual.1.bias"], eps=1e-5)
        s = f.conv1d(h, t[f"{b}.shortcut.weight"] * t[f"{b}.shortcut.mask"], t[f"{b}.shortcut.bias"], stride=2)
        h = r + s
        if f"{b}.common.0.weight" in t:
            h = torch.matmul(t[f"{b}.common.0.weight"], h)
        h = torch.tanh(h)
    return h[0].T.numpy()
