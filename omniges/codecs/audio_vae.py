"""``audioldm2-vae``: log-mel to the latents of AudioLDM2's variational autoencoder and back.

The folder is the subfolder ``vae`` of `cvssp/audioldm2` as the Hugging Face hub has it, or that of another diffusers
AutoencoderKL of one channel: config.json with diffusion_pytorch_model.safetensors or .bin (H. Liu et al. 2023,
AudioLDM 2). Its mel is ours, see docs/features.md.

A row of latents is K · W numbers: channel k and column w at k · W + w, the mean of the posterior, less the
configuration's shift factor, times its scaling factor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL

from omniges.codecs.audio_vae_blocks import decoded, encoded
from omniges.codecs.base import exact, fingerprint_of
from omniges.errors import DataError
from omniges.features.audio import MEL_BANDS
from omniges.shards.latents import FrameEntry
from omniges.storage.tensors import read_tensors, require_finite, require_same, shapes_of

F32 = npt.NDArray[np.float32]

NAME: Final = "audioldm2-vae"

_CONFIG: Final = "config.json"
_WEIGHTS: Final = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_KEYS: Final = (
    *("in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels", "layers_per_block"),
    *("act_fn", "latent_channels", "norm_num_groups", "scaling_factor", "shift_factor", "latents_mean"),
    *("latents_std", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"),
)
"""What of the configuration decides numbers; the rest is names, versions and tiling."""

_NUMBERS: Final = {"in_channels", "out_channels", "layers_per_block", "latent_channels", "norm_num_groups"}
_OLD_NAMES: Final = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Parts of names of attention weights in files of diffusers before 0.18."""


class AudioVae:
    """An AutoencoderKL over the mel of a clip."""

    def __init__(self, vae: Any, entry: FrameEntry) -> None:
        self._vae, self.entry = vae, entry
        self._scaling: float = vae.config.scaling_factor
        self._shift: float = vae.config.shift_factor or 0.0

    def encode(self, array: F32) -> F32:
        """Latents (M // frames_per_row, channels) of log-mel (M, 64)."""
        if len(array) < self.entry.frames_per_row:
            return np.empty((0, self.entry.channels), np.float32)
        with exact(self._vae.device):
            mel = torch.from_numpy(np.array(array, np.float32)).to(self._vae.device)
            mean = encoded(self._vae, mel[None])[: self._vae.config.latent_channels]
            latents = ((mean - self._shift) * self._scaling).transpose(0, 1).flatten(1)
        return np.ascontiguousarray(latents.cpu().numpy())

    def decode(self, latents: F32) -> F32:
        """Log-mel (rows · frames_per_row, 64) of latents (rows, channels)."""
        channels = self._vae.config.latent_channels
        if not len(latents):
            return np.empty((0, MEL_BANDS), np.float32)
        with exact(self._vae.device):
            rows = torch.from_numpy(np.array(latents, np.float32)).to(self._vae.device)
            grid = rows.reshape(len(rows), channels, -1).transpose(0, 1) / self._scaling + self._shift
            mel = decoded(self._vae, grid)[0]
        return np.ascontiguousarray(mel.cpu().numpy())


def load_audio_vae(folder: Path, device: torch.device) -> AudioVae:
    """The codec of a folder.

    Raises DataError with the key of the configuration or the names of the weights that are not as they should be.
    """
    config = _read_config(folder / _CONFIG)
    frames_per_row = _frames_per_row(folder / _CONFIG, config)
    try:
        vae: Any = AutoencoderKL(**config)  # type: ignore[no-untyped-call]
    except (TypeError, ValueError, RuntimeError, KeyError, IndexError, ZeroDivisionError) as error:
        raise DataError(f"{folder / _CONFIG}: no AutoencoderKL can be made of it ({_line(error)})") from error
    _load_weights(vae, folder)
    vae = vae.to(device).eval().requires_grad_(False)
    found = {key: value for key in _KEYS if (value := vae.config.get(key)) is not None}
    columns = MEL_BANDS // frames_per_row  # both axes are halved as often
    entry = FrameEntry(
        name=NAME,
        fingerprint=fingerprint_of(json.loads(json.dumps(found)), vae.state_dict()),
        source="mel.npy",
        frames_per_row=frames_per_row,
        channels=vae.config.latent_channels * columns,
        settings={
            "latent_channels": vae.config.latent_channels,
            "columns": columns,
            "scaling_factor": vae.config.scaling_factor,
            "shift_factor": vae.config.shift_factor or 0.0,
            "posterior": "mean",
        },
    )
    return AudioVae(vae, entry)


def _read_config(path: Path) -> dict[str, Any]:
    """The keys of a config.json that decide numbers."""
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}: name the folder that holds the codec's config.json") from error
    except ValueError as error:
        raise DataError(f"{path}: not a JSON document ({error}): copy the codec again") from error
    if not isinstance(found, dict) or found.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        kind = found.get("_class_name") if isinstance(found, dict) else type(found).__name__
        raise DataError(f"{path}: an AutoencoderKL of diffusers expected, found {kind}: name its folder vae")
    return {key: found[key] for key in _KEYS if key in found}


def _frames_per_row(path: Path, config: Mapping[str, Any]) -> int:
    """Mel frames, and bands, of one latent; raises DataError for an autoencoder that is none of our mel."""
    widths = config.get("block_out_channels")
    plain = isinstance(widths, list) and 1 <= len(widths) <= 6 and all(_is_count(width) for width in widths)
    levels = len(widths) if isinstance(widths, list) and plain else 0
    wrong = [] if plain else [("block_out_channels", "a list of up to 6 whole numbers")]
    wrong += [(key, "a whole number from 1 on") for key in sorted(_NUMBERS) if not _is_count(config.get(key, 1))]
    expected = {
        "in_channels": 1,
        "out_channels": 1,
        "act_fn": "silu",
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    wrong += [(key, json.dumps(value)) for key, value in expected.items() if config.get(key) != value]
    wrong += [(key, "null") for key in ("latents_mean", "latents_std") if config.get(key) is not None]
    scaling, shift = config.get("scaling_factor"), config.get("shift_factor")
    if not _is_number(scaling) or scaling == 0:
        wrong.append(("scaling_factor", "a number other than 0"))
    if shift is not None and not _is_number(shift):
        wrong.append(("shift_factor", "a number or null"))
    if plain and MEL_BANDS % 2 ** (levels - 1):
        wrong.append(("block_out_channels", f"at most 7 levels, for a mel of {MEL_BANDS} bands"))
    if wrong:
        key, wanted = wrong[0]
        shown = json.dumps(config[key]) if key in config else "none"
        raise DataError(f"{path}: {key}: {wanted} expected, found {shown}: this is no autoencoder of our mel")
    return int(2 ** (levels - 1))


def _is_count(value: object) -> bool:
    return type(value) is int and 1 <= value <= 1 << 16


def _is_number(value: object) -> bool:
    return type(value) in {int, float} and abs(value) < float("inf")  # type: ignore[arg-type]


def _load_weights(vae: Any, folder: Path) -> None:
    """Every weight from the file, none left over: raises DataError with those that do not fit."""
    path = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise DataError(f"{folder}: {' or '.join(_WEIGHTS)} expected, found neither: copy the codec's weights there")
    found = {}
    for name, tensor in read_tensors(path).items():
        for old, new in _OLD_NAMES.items():
            name = name.replace(old, new)  # noqa: PLW2901 - the name that it has in diffusers today
        require_finite(name, tensor, str(path))
        found[name] = tensor
    remedy = f"{_CONFIG} and weights are of different codecs: give those that belong together"
    require_same(shapes_of(vae.state_dict()), shapes_of(found), str(path), remedy)
    vae.load_state_dict(found)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
