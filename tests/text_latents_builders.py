"""Shards with latents of a small text VAE, for windows of 1.6 s every 0.4 s."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import textvae_builders as builders

from omniges.codecs.encode import EncodeSummary, encode
from omniges.codecs.settings import EncodeSettings

NAME = "omniflow-text-vae"
WINDOW, STRIDE = 16, 4


def write_text_vae(folder: Path, seed: int = 0) -> Path:
    config = builders.configuration()
    return builders.own_folder(folder, config, builders.random_tensors(config, seed))


def encoded_shards(shards: Path, codec: Path, out: Path | None = None, **changes: Any) -> EncodeSummary:
    plain: dict[str, Any] = {"codecs": ((NAME, codec),), "window_ticks": WINDOW, "stride_ticks": STRIDE}
    return encode(EncodeSettings(shards=shards, output_dir=out, **(plain | changes)))
