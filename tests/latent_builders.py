"""Small codecs with random weights, shards with their latents, and what tests of training on them share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from rvqvae_builders import write_codec
from vae_builders import write_vae

from omniges.codecs.encode import encode
from omniges.codecs.settings import EncodeSettings
from omniges.data.settings import TraceSettings
from omniges.data.trace import trace
from omniges.generation.run import generate
from omniges.generation.settings import GenerateSettings, Sources
from omniges.model.tasks import SamplingSettings

GESTURE: Final = "gesture-rvqvae"
AUDIO: Final = "audioldm2-vae"
CODECS: Final = {"gesture": GESTURE, "audio": AUDIO}
BOTH: Final = {"gesture_codec": GESTURE, "audio_codec": AUDIO}
GESTURE_CHANNELS: Final = 22  # 4 + 5 + 6 + 7 of the small nets
STEM: Final = "1_synthetica_0_1_1"


def write_codecs(folder: Path) -> dict[str, Path]:
    """A folder of each codec, by name."""
    write_codec(folder / "rvqvae")
    _stand_up(folder / "rvqvae")
    write_vae(folder / "vae")
    return {GESTURE: folder / "rvqvae", AUDIO: folder / "vae"}


def _stand_up(folder: Path) -> None:
    """Let what random nets make stand upright, as recordings must: pelvis about the identity, in 6D (1 0 0, 0 1 0)."""
    for kind, values in (("mean", [1, 0, 0, 0, 1, 0]), ("std", [0.01] * 6)):
        path = folder / "mean_std" / f"beatx_2_330_{kind}.npy"
        array = np.load(path, allow_pickle=False)
        array[:6] = values
        np.save(path, array)


def encoded_shards(shards: Path, out: Path, codecs: Mapping[str, Path]) -> Path:
    """A copy of shards with latents; returns it."""
    encode(EncodeSettings(shards=shards, codecs=tuple(codecs.items()), output_dir=out))
    return out


def traced(shards: Path, window_ticks: int, codecs: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """The windows of three steps, with digests of their arrays."""
    chosen: dict[str, Any] = {f"{stream}_codec": name for stream, name in (codecs or {}).items()}
    settings = TraceSettings(shards=shards, window_ticks=window_ticks, batch_size=4, steps=3, decode=True, **chosen)
    return list(trace(settings))


def recording_files(corpus: Path) -> dict[str, Any]:
    """The files of one recording, by what they are given as."""
    found = {ending: next(corpus.rglob(f"{STEM}.{ending}")) for ending in ("wav", "npz", "TextGrid")}
    return {"audio": (found["wav"],), "text": (str(found["TextGrid"]),), "gesture": (found["npz"],)}


def generated(
    checkpoint: Path, out: Path, task: str, codecs: Mapping[str, Path], *, continuous: bool = False, **sources: Any
) -> dict[str, bytes]:
    """Generate in two steps; returns the files that were written."""
    generate(
        GenerateSettings(
            checkpoint=checkpoint,
            task=task,
            output_dir=out,
            codecs=tuple(codecs.items()),
            continuous=continuous,
            sources=Sources(**sources),
            sampling=SamplingSettings(num_inference_steps=2),
        )
    )
    return {path.name: path.read_bytes() for path in out.iterdir()}
