"""Which codecs there are, and how one is loaded from its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import torch

from omniges.codecs.base import BOTH_ENDS, Codec, End
from omniges.errors import UsageFault
from omniges.shards.latents import CodecEntry


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a codec's files are, and where it computes."""

    folder: Path
    device: torch.device
    t5_tokenizer: Path | None  # folder, of a codec of text
    ends: frozenset[End]  # that are used


def _audio_vae(place: _Place) -> Codec:
    from omniges.codecs.audio_vae import load_audio_vae  # noqa: PLC0415 - diffusers' models, 2 s

    return load_audio_vae(place.folder, place.device)


def _gesture_rvqvae(place: _Place) -> Codec:
    from omniges.codecs.gesture_rvqvae.codec import load_whole_gesture_rvqvae  # noqa: PLC0415 - its module imports this one

    return load_whole_gesture_rvqvae(place.folder, place.device)


def _text_vae(place: _Place) -> Codec:
    from omniges.codecs.text_vae.codec import load_text_windows  # noqa: PLC0415 - as the others

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
