"""What a codec is to omniges, and which ones there are. docs/codecs.md says how to add one.

A codec turns one member of a sample (its source) into latents and back: frames into rows, or the words of windows
into a row each. It is frozen: nothing of it is trained, averaged or kept in a checkpoint, and the same source has the
same latents.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from omniges.errors import UsageFault
from omniges.shards.latents import CodecEntry, FrameEntry, WindowEntry
from omniges.shards.manifest import ManifestRow
from omniges.shards.window_grid import WindowGrid
from omniges.storage.canonical_json import canonical_json

if TYPE_CHECKING:
    from omniges.trainer.codecs.textvae_files import LostText, SpokenText

__all__ = [
    "BOTH_ENDS",
    "CODECS",
    "Codec",
    "End",
    "FrameCodec",
    "QuantisingCodec",
    "WindowCodec",
    "decode_latents",
    "fingerprint_of",
    "latents_of_sample",
    "load_codec",
    "load_same_codec",
    "named_folder",
]

F32 = npt.NDArray[np.float32]

End = Literal["encode", "decode"]
"""What a codec may be loaded for."""
BOTH_ENDS: Final[frozenset[End]] = frozenset({"encode", "decode"})


class FrameCodec(Protocol):
    """A frozen codec of arrays of frames, loaded. Not for several threads at once."""

    @property
    def entry(self) -> FrameEntry:
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


class WindowCodec(Protocol):
    """A frozen codec of windows' words, loaded. Not for several threads at once."""

    @property
    def entry(self) -> WindowEntry:
        """Name, fingerprint, windows and latents: what shards and checkpoints keep of it."""
        ...

    def on(self, grid: WindowGrid, /) -> WindowCodec:
        """The same over the windows of another grid."""
        ...

    def texts(
        self, words: Sequence[Mapping[str, Any]], ticks: int, windows: Sequence[tuple[int, int]] | None = None
    ) -> list[str]:
        """The text of each window, (first tick, ticks), of a clip; of the grid's where none are given."""
        ...

    def lost(self, texts: Sequence[str], /) -> list[LostText]:
        """What of each text would not be in its latents, known without computing these."""
        ...

    def encode(self, words: Sequence[Mapping[str, Any]], ticks: int, /) -> F32:
        """Latents (windows, latents · channels) of the grid's windows of a clip with these words."""
        ...

    def encode_texts(self, texts: Sequence[str], /) -> F32:
        """Latents (texts, latents · channels)."""
        ...

    def decode(self, latents: F32, /) -> list[SpokenText]:
        """The text of each row (windows, latents · channels)."""
        ...


Codec = FrameCodec | WindowCodec


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a codec's files are, and where it computes."""

    folder: Path
    device: torch.device
    t5_tokenizer: Path | None  # folder, of a codec of text
    ends: frozenset[End]  # that are used


def _audio_vae(place: _Place) -> Codec:
    from omniges.trainer.codecs.audiovae import load_audio_vae  # noqa: PLC0415 - diffusers' models, 2 s

    return load_audio_vae(place.folder, place.device)


def _gesture_rvqvae(place: _Place) -> Codec:
    from omniges.trainer.codecs.gesture import load_whole_gesture_rvqvae  # noqa: PLC0415 - its module imports this one

    return load_whole_gesture_rvqvae(place.folder, place.device)


def _text_vae(place: _Place) -> Codec:
    from omniges.trainer.codecs.textwindows import load_text_windows  # noqa: PLC0415 - as the others

    return load_text_windows(place.folder, place.device, place.t5_tokenizer, place.ends)


CODECS: Final[Mapping[str, Callable[[_Place], Codec]]] = MappingProxyType(
    {"audioldm2-vae": _audio_vae, "gesture-rvqvae": _gesture_rvqvae, "omniflow-text-vae": _text_vae}
)
"""Loaders by name."""


def load_codec(
    name: str,
    folder: Path,
    device: torch.device | None = None,
    *,
    t5_tokenizer: Path | None = None,
    ends: frozenset[End] = BOTH_ENDS,
) -> Codec:
    """A codec from its folder, on the GPU where there is one and none is named.

    ``t5_tokenizer``: the folder of a text codec's T5 tokenizer where that is not in its own. ``ends``: whether it will
    encode, decode or both; one of text, whose nets are large, keeps those of these alone.

    Raises UsageFault for an unknown name or a folder that is not there, DataError for what is no such codec.
    """
    if name not in CODECS:
        raise UsageFault(f"codec {name!r}: one of {', '.join(CODECS)} expected")
    if not folder.is_dir():
        raise UsageFault(f"{name}={folder}: a folder with the codec's files expected, found none")
    if t5_tokenizer is not None and not t5_tokenizer.is_dir():
        raise UsageFault(f"--t5-tokenizer {t5_tokenizer}: a folder with T5's tokenizer.json expected, found none")
    chosen = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return CODECS[name](_Place(folder, chosen, t5_tokenizer, ends))


def decode_latents(codec: Codec, latents: npt.NDArray[Any]) -> Any:
    """What latents stand for: frames of rows (rows, channels), or texts of windows (windows · latents, channels)."""
    rows = np.asarray(latents, np.float32)
    entry = codec.entry
    return codec.decode(rows.reshape(-1, entry.latents * entry.channels) if isinstance(entry, WindowEntry) else rows)


def latents_of_sample(codec: Codec, source: bytes, row: ManifestRow) -> F32:
    """A sample's latents, of the bytes of the member that the codec reads."""
    if isinstance(codec.entry, WindowEntry):
        return codec.encode(json.loads(source), row.ticks)
    return codec.encode(np.load(BytesIO(source), allow_pickle=False))


def load_same_codec(
    entry: CodecEntry,
    folder: Path,
    flag: str,
    holder: str,
    device: torch.device | None = None,
    *,
    t5_tokenizer: Path | None = None,
    ends: frozenset[End] = BOTH_ENDS,
) -> Codec:
    """The codec of an entry, whose folder a flag names; `holder` has the entry, for errors.

    Raises UsageFault where the folder holds another codec of that name, and what `load_codec` raises.
    """
    codec = load_codec(entry.name, folder, device, t5_tokenizer=t5_tokenizer, ends=ends)
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
