"""Interfaces of codecs. docs/how-to/extend.md says how to add one.

A codec encodes one member of a sample (its source) as latents and decodes them. It encodes groups of frames into rows,
or the words of each window into one row. A codec is frozen: training does not change it, and checkpoints do not contain
it. The same source always gives the same latents.
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
    """Reasons why latents do not contain all of a text."""

    cut: bool
    """True: the text is longer than the codec can read, so its end is lost."""
    unknown: bool
    """True: the codec's vocabulary cannot spell all of the text."""


@dataclass(frozen=True, slots=True)
class SpokenText:
    """Text decoded from latents."""

    text: str
    ended: bool
    """True: the text ended within the maximum length."""


F32 = npt.NDArray[np.float32]

End = Literal["encode", "decode"]
"""Direction of a codec, encoding or decoding; a codec can be loaded for one direction."""
BOTH_ENDS: Final[frozenset[End]] = frozenset({"encode", "decode"})


class FrameCodec(Protocol):
    """A loaded, frozen codec of arrays of frames; not safe for several threads at once."""

    @property
    def entry(self) -> FrameEntry:
        """Description of the codec that shards and checkpoints store: name, fingerprint, source, rows and channels."""

    def encode(self, array: F32, /) -> F32:
        """Return latents (frames // frames_per_row, channels) of a complete clip's source (frames, columns)."""

    def decode(self, latents: F32, /) -> F32:
        """Return the source (rows · frames_per_row, columns) decoded from latents (rows, channels)."""


@runtime_checkable
class QuantisingCodec(Protocol):
    """A codec with a table of codes. Before decoding, `decode` can replace each latent by the nearest code."""

    def decoding(self, *, quantised: bool) -> Self:
        """Return a codec whose `decode` replaces latents by codes if `quantised`, or uses them unchanged otherwise."""


@runtime_checkable
class LoudnessCodec(Protocol):
    """An audio codec trained on audio of one loudness; ``omniges encode`` warns if the shards have another loudness."""

    @property
    def loudness(self) -> Loudness:
        """Expected value of ``omniges preprocess --loudness``."""


class WindowCodec(Protocol):
    """A loaded, frozen codec for the words of windows; not safe for several threads at once."""

    @property
    def entry(self) -> WindowEntry:
        """Description of the codec that shards and checkpoints store: name, fingerprint, windows and latents."""

    def on(self, grid: WindowGrid, /) -> WindowCodec:
        """Return the same codec for the windows of another grid."""

    def texts(
        self, words: Sequence[Mapping[str, Any]], ticks: int, windows: Sequence[tuple[int, int]] | None = None
    ) -> list[str]:
        """Return the text of each window of a clip.

        Args:
            words: Words of the clip, with times in seconds.
            ticks: Length of the clip in ticks of 0.1 s.
            windows: First tick and number of ticks of each window; None for the grid's windows.

        Returns:
            One text for each window.
        """

    def lost(self, texts: Sequence[str], /) -> list[LostText]:
        """Return what the latents of each text would lose, without computing the latents."""

    def encode(self, words: Sequence[Mapping[str, Any]], ticks: int, /) -> F32:
        """Encode each window of a clip; the codec's window grid gives their start and length.

        Args:
            words: Words of the clip, with times in seconds.
            ticks: Length of the clip in ticks of 0.1 s.

        Returns:
            Latents (windows, latents · channels).
        """

    def encode_texts(self, texts: Sequence[str], /) -> F32:
        """Return latents (texts, latents · channels) of texts."""

    def decode(self, latents: F32, /) -> list[SpokenText]:
        """Return the text of each row (windows, latents · channels)."""


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
"""Function that loads a codec from an existing folder. It raises DataError for a folder without that codec.
"""


def decode_latents(codec: Codec, latents: npt.NDArray[Any]) -> Any:
    """Decode latents with a codec of frames or of text windows.

    Args:
        codec: The loaded codec.
        latents: Rows (rows, channels) of frames, or latents (windows · latents, channels) of windows.

    Returns:
        Frames (frames, columns), or one `SpokenText` for each window.
    """
    rows = np.asarray(latents, np.float32)
    entry = codec.entry
    return codec.decode(rows.reshape(-1, entry.latents * entry.channels) if isinstance(entry, WindowEntry) else rows)


def fingerprint_of(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """Return the sha256 of a codec's configuration and weights, independent of their files.

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
        digest: The running sha256.
        name: Name of the weight.
        weight: The tensor, on any device.
    """
    tensor = weight.detach().cpu().contiguous()
    digest.update(canonical_json([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]))
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Compute float32 products in full float32: no autocast and no TensorFloat-32, which has a 10-bit mantissa."""
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
