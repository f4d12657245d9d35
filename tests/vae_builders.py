"""Small AutoencoderKLs with random weights in folders of the hub's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL

SMALL: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 2,
    "latent_channels": 8,
    "norm_num_groups": 4,
    "scaling_factor": 0.4110932946205139,
}


def random_vae(seed: int = 0, **changes: Any) -> AutoencoderKL:
    """An autoencoder whose weights, those of normalisations too, are all random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKL(**(SMALL | changes))
        for name, parameter in vae.named_parameters():
            if parameter.ndim == 1:
                parameter.data = torch.randn_like(parameter) * 0.3 + ("norm" in name and name.endswith("weight"))
    return vae.eval()


def write_vae(folder: Path, seed: int = 0, *, safe: bool = True, **changes: Any) -> AutoencoderKL:
    """Save one as diffusers does; returns it."""
    vae = random_vae(seed, **changes)
    vae.save_pretrained(folder, safe_serialization=safe)
    return vae


def mel_like(frames: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Arrays (frames, 64) of the range of a log-mel, loud and silent by turns, so that blocks differ from the whole."""
    random = np.random.default_rng(seed)
    level = 3.0 * np.sin(np.arange(frames) / 37.0)[:, None] - 6.0
    return (level + random.standard_normal((frames, 64))).astype(np.float32)
