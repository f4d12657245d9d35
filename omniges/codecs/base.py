"""Interfaces of codecs. docs/how-to/extend.md says how to add a codec.

A codec encodes one member (file) of a sample as latents, and decodes latents. This member is the codec's source. A
frame codec encodes each group of frames as a row of latents. A window codec encodes the words of each window as a row.
A codec is frozen: training does not change it, and checkpoints do not contain it. The same source always gives the same
latents.
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
from omniges.storage.files import canonical_json


@dataclass(frozen=True, slots=True)
class LostText:
    """Flags that show what a text loses when it is encoded as latents; both are False if nothing is lost."""

    cut: bool
    """True: the text is longer than the codec can read, so its end is lost."""
    unknown: bool
    """True: the codec's vocabulary cannot spell all of the text."""


@dataclass(frozen=True, slots=True)
class SpokenText:
    """Text decoded from latents."""

    text: str
    ended: bool
    """True: an end token followed the text within the maximum length."""


F32 = npt.NDArray[np.float32]

End = Literal["encode", "decode"]
"""Direction of a codec, encoding or decoding; a codec can be loaded for one direction."""
BOTH_ENDS: Final[frozenset[End]] = frozenset({"encode", "decode"})


class FrameCodec(Protocol):
    """A loaded, frozen codec for arrays of frames, such as mel or gesture. It is not thread-safe."""

    @property
    def entry(self) -> FrameEntry:
        """Codec description that shards and checkpoints store: name, fingerprint, source, rows and channels."""

    def encode(self, array: F32, /) -> F32:
        """Encode the source (frames, columns) of a complete clip as latents (frames // frames_per_row, channels)."""

    def decode(self, latents: F32, /) -> F32:
        """Decode latents (rows, channels) as the source (rows · frames_per_row, columns)."""


@runtime_checkable
class QuantisingCodec(Protocol):
    """A codec with tables of codes (learned vectors). Its `decode` can first replace each latent by codes."""

    def decoding(self, *, quantised: bool) -> Self:
        """Return a codec with the same networks; `decode` first replaces latents by codes if `quantised` is True."""


@runtime_checkable
class LoudnessCodec(Protocol):
    """An audio codec trained on audio of one loudness; ``omniges encode`` warns if the shards have another loudness."""

    @property
    def loudness(self) -> Loudness:
        """Loudness of the codec's training audio: one of the values of ``omniges preprocess --loudness``."""


class WindowCodec(Protocol):
    """A loaded, frozen codec for the words of windows. It is not thread-safe."""

    @property
    def entry(self) -> WindowEntry:
        """Codec description that shards and checkpoints store: name, fingerprint, windows and latents."""

    def on(self, grid: WindowGrid, /) -> WindowCodec:
        """Return a codec with the same networks for windows of another length and stride."""

    def texts(
        self, words: Sequence[Mapping[str, Any]], ticks: int, windows: Sequence[tuple[int, int]] | None = None
    ) -> list[str]:
        """Return the text of each window of a clip.

        Args:
            words: Words of the clip, with times in seconds.
            ticks: Length of the clip in ticks of 0.1 s.
            windows: First tick and number of ticks of each window; None: all windows of the codec's grid.

        Returns:
            One text for each window.
        """

    def lost(self, texts: Sequence[str], /) -> list[LostText]:
        """Return for each text what it would lose if it were encoded; the networks do not run."""

    def encode(self, words: Sequence[Mapping[str, Any]], ticks: int, /) -> F32:
        """Encode each window of a clip; the codec's window grid gives their start and length.

        Args:
            words: Words of the clip, with times in seconds.
            ticks: Length of the clip in ticks of 0.1 s.

        Returns:
            Latents (windows, latents · channels).
        """

    def encode_texts(self, texts: Sequence[str], /) -> F32:
        """Encode each text as a row of latents (texts, latents · channels)."""

    def decode(self, latents: F32, /) -> list[SpokenText]:
        """Decode each row of latents (windows, latents · channels) as a text."""


Codec = FrameCodec | WindowCodec


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """Options for loading a codec."""

    device: torch.device
    ends: frozenset[End] = BOTH_ENDS
    """Directions that are needed; a codec may skip the weights of the other direction."""
    t5_tokenizer: Path | None = None
    """Folder of T5's tokenizer, if a text codec's own folder does not contain it."""


CodecLoader = Callable[[Path, Loading], Codec]
"""Function that loads a codec from an existing folder. It raises DataError if the folder does not contain the codec."""


def decode_latents(codec: Codec, latents: npt.NDArray[Any]) -> Any:
    """Decode latents with a codec of frames or of text windows.

    Args:
        codec: The loaded codec.
        latents: Array (latents, channels), one latent in each row. For a window codec, the latents of a window are
            ``entry.latents`` consecutive rows.

    Returns:
        For a frame codec, frames (frames, columns). For a window codec, a list with one `SpokenText` for each window.
    """
    rows = np.asarray(latents, np.float32)
    entry = codec.entry
    return codec.decode(rows.reshape(-1, entry.latents * entry.channels) if isinstance(entry, WindowEntry) else rows)


def fingerprint_of(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """Return the sha256 of a codec's configuration and weights, independent of names and formats of files.

    The digest covers the canonical JSON of the configuration, then the tensors, sorted by name. For each tensor, it
    covers the name, type and shape as canonical JSON, followed by the little-endian bytes.

    Args:
        config: The settings that affect the results of the codec.
        weights: Tensors by name.

    Returns:
        The digest in hexadecimal.
    """
    digest = hashlib.sha256(canonical_json(dict(config)))
    for name in sorted(weights):
        add_to_fingerprint(digest, name, weights[name])
    return digest.hexdigest()


def add_to_fingerprint(digest: Any, name: str, weight: Tensor) -> None:
    """Add one weight to the digest of `fingerprint_of`; call this for all weights, sorted by name.

    Args:
        digest: The sha256 object that is updated.
        name: Name of the weight.
        weight: The tensor, on any device.
    """
    tensor = weight.detach().cpu().contiguous()
    digest.update(canonical_json([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]))
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Compute in full float32 inside the `with` block, without autocast and TensorFloat-32 (10-bit mantissa).

    Inside the block, cuDNN uses only deterministic algorithms.
    """
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
