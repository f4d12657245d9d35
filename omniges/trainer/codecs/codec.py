"""What a codec is to omniges, and which ones there are. docs/codecs.md says how to add one.

A codec turns one member of a sample (its source) into rows of latents and back. It is frozen: nothing of it is
trained, averaged or kept in a checkpoint, and `encode` gives the same latents for the same array.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from omniges.errors import UsageFault
from omniges.shards.codecs import CodecEntry
from omniges.shards.schema import canonical_json

__all__ = [
    "CODECS",
    "Codec",
    "QuantisingCodec",
    "fingerprint_of",
    "load_codec",
    "load_same_codec",
    "named_folder",
]

F32 = npt.NDArray[np.float32]


class Codec(Protocol):
    """A frozen codec, loaded. Not for several threads at once."""

    @property
    def entry(self) -> CodecEntry:
        """Name, fingerprint, source, rows and channels: what shards and checkpoints keep of it."""
        ...

    def encode(self, array: F32, /) -> F32:
        """Latents (frames // frames_per_row, channels) of a whole clip's source (frames, columns)."""
        ...

    def decode(self, latents: F32, /) -> F32:
        """The source (rows · frames_per_row, columns) that latents (rows, channels) stand for."""
        ...


@runtime_checkable
class QuantisingCodec(Protocol):
    """A codec with codes, to which `decode` snaps latents first, or does not."""

    def decoding(self, *, quantised: bool) -> Self:
        """The same codec, told whether to."""
        ...


def _audio_vae(folder: Path, device: torch.device) -> Codec:
    from omniges.trainer.codecs.audiovae import load_audio_vae  # noqa: PLC0415 - diffusers' models, 2 s

    return load_audio_vae(folder, device)


def _gesture_rvqvae(folder: Path, device: torch.device) -> Codec:
    from omniges.trainer.codecs.gesture import load_whole_gesture_rvqvae  # noqa: PLC0415 - its module imports this one

    return load_whole_gesture_rvqvae(folder, device)


CODECS: Final[Mapping[str, Callable[[Path, torch.device], Codec]]] = MappingProxyType(
    {"audioldm2-vae": _audio_vae, "gesture-rvqvae": _gesture_rvqvae}
)
"""Loaders by name; each takes the codec's folder and the device to compute on."""


def load_codec(name: str, folder: Path, device: torch.device | None = None) -> Codec:
    """A codec from its folder, on the GPU where there is one and none is named.

    Raises UsageFault for an unknown name or a folder that is not there, DataError for what is no such codec.
    """
    if name not in CODECS:
        raise UsageFault(f"codec {name!r}: one of {', '.join(CODECS)} expected")
    if not folder.is_dir():
        raise UsageFault(f"{name}={folder}: a folder with the codec's files expected, found none")
    return CODECS[name](folder, device or torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def load_same_codec(
    entry: CodecEntry, folder: Path, flag: str, holder: str, device: torch.device | None = None
) -> Codec:
    """The codec of an entry, whose folder a flag names; `holder` has the entry, for errors.

    Raises UsageFault where the folder holds another codec of that name, and what `load_codec` raises.
    """
    codec = load_codec(entry.name, folder, device)
    if codec.entry.fingerprint != entry.fingerprint:
        raise UsageFault(
            f"{flag} {entry.name}={folder}: fingerprint {entry.fingerprint[:16]}… expected as in {holder}, found "
            f"{codec.entry.fingerprint[:16]}…: name the folder that latents were encoded with"
        )
    return codec


def named_folder(flag: str, text: str) -> tuple[str, Path]:
    """The codec's name and folder of NAME=FOLDER, as people give them to a flag; raises UsageFault for others."""
    name, equals, folder = text.partition("=")
    if not equals or not folder or name not in CODECS:
        raise UsageFault(f"{flag} {text}: NAME=FOLDER with one of {', '.join(CODECS)} expected")
    return name, Path(folder)


def fingerprint_of(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """Sha256 of what decides a codec's numbers: its configuration and its weights, whatever files they came from.

    Over the canonical JSON of the configuration, then of each tensor, by name, its name, type and shape as canonical
    JSON and its bytes, little-endian.
    """
    digest = hashlib.sha256(canonical_json(dict(config)))
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(canonical_json([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]))
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
