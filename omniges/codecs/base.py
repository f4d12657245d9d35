"""What a codec is to omniges. docs/extend.md says how to add one.

A codec turns one member of a sample (its source) into latents and back: frames into rows, or the words of windows
into a row each. It is frozen: nothing of it is trained, averaged or kept in a checkpoint, and the same source has the
same latents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from omniges.features.audio import Loudness
from omniges.shards.latents import FrameEntry, WindowEntry
from omniges.shards.schema import WindowGrid
from omniges.storage.canonical_json import canonical_json


@dataclass(frozen=True, slots=True)
class LostText:
    """What of a text cannot be in its latents."""

    cut: bool
    """It is longer than the codec reads; its end is lost."""
    unknown: bool
    """The vocabulary cannot spell all of it."""


@dataclass(frozen=True, slots=True)
class SpokenText:
    """A text made from latents."""

    text: str
    ended: bool
    """It came to its end within the length that was allowed."""


F32 = npt.NDArray[np.float32]

End = Literal["encode", "decode"]
"""What a codec may be loaded for."""
BOTH_ENDS: Final[frozenset[End]] = frozenset({"encode", "decode"})


class FrameCodec(Protocol):
    """A frozen codec of arrays of frames, loaded. Not for several threads at once."""

    @property
    def entry(self) -> FrameEntry:
        """Name, fingerprint, source, rows and channels: what shards and checkpoints keep of it."""

    def encode(self, array: F32, /) -> F32:
        """Latents (frames // frames_per_row, channels) of a whole clip's source (frames, columns)."""

    def decode(self, latents: F32, /) -> F32:
        """The source (rows · frames_per_row, columns) that latents (rows, channels) stand for."""


@runtime_checkable
class QuantisingCodec(Protocol):
    """A codec with codes, to which `decode` snaps latents first, or does not."""

    def decoding(self, *, quantised: bool) -> Self:
        """The same codec, told whether to."""


@runtime_checkable
class LoudnessCodec(Protocol):
    """A codec of audio that was trained on one loudness; `encode` tells where shards have another."""

    @property
    def loudness(self) -> Loudness:
        """The value of ``omniges preprocess --loudness`` that it expects."""


class WindowCodec(Protocol):
    """A frozen codec of windows' words, loaded. Not for several threads at once."""

    @property
    def entry(self) -> WindowEntry:
        """Name, fingerprint, windows and latents: what shards and checkpoints keep of it."""

    def on(self, grid: WindowGrid, /) -> WindowCodec:
        """The same over the windows of another grid."""

    def texts(
        self, words: Sequence[Mapping[str, Any]], ticks: int, windows: Sequence[tuple[int, int]] | None = None
    ) -> list[str]:
        """The text of each window, (first tick, ticks), of a clip; of the grid's where none are given."""

    def lost(self, texts: Sequence[str], /) -> list[LostText]:
        """What of each text would not be in its latents, known without computing these."""

    def encode(self, words: Sequence[Mapping[str, Any]], ticks: int, /) -> F32:
        """Latents (windows, latents · channels) of the grid's windows of a clip with these words."""

    def encode_texts(self, texts: Sequence[str], /) -> F32:
        """Latents (texts, latents · channels)."""

    def decode(self, latents: F32, /) -> list[SpokenText]:
        """The text of each row (windows, latents · channels)."""


Codec = FrameCodec | WindowCodec


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """How a codec is to be loaded."""

    device: torch.device
    ends: frozenset[End] = BOTH_ENDS
    """What it will do; a codec may leave the other half of its weights unread."""
    t5_tokenizer: Path | None = None
    """Folder of T5's tokenizer, where a codec of text has none in its own."""


CodecLoader = Callable[[Path, Loading], Codec]
"""Loads a codec from its folder, which is there. Raises DataError for a folder that holds no such codec."""


def decode_latents(codec: Codec, latents: npt.NDArray[Any]) -> Any:
    """What latents stand for: frames of rows (rows, channels), or texts of windows (windows · latents, channels)."""
    rows = np.asarray(latents, np.float32)
    entry = codec.entry
    return codec.decode(rows.reshape(-1, entry.latents * entry.channels) if isinstance(entry, WindowEntry) else rows)


def fingerprint_of(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """Sha256 of what decides a codec's numbers: its configuration and its weights, whatever files they came from.

    Over the canonical JSON of the configuration, then of each tensor, by name, its name, type and shape as canonical
    JSON and its bytes, little-endian.
    """
    digest = hashlib.sha256(canonical_json(dict(config)))
    for name in sorted(weights):
        add_to_fingerprint(digest, name, weights[name])
    return digest.hexdigest()


def add_to_fingerprint(digest: Any, name: str, weight: Tensor) -> None:
    """Add one weight to the digest of `fingerprint_of`, which takes them sorted by name."""
    tensor = weight.detach().cpu().contiguous()
    digest.update(canonical_json([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]))
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Compute float32 products in float32: without autocast, and without TensorFloat-32, which keeps ten bits."""
    matmul = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with (
            torch.autocast(device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = matmul
