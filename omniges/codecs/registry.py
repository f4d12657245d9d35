"""Which codecs there are, and how one is loaded from its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import torch

from omniges.codecs.base import BOTH_ENDS, Codec, End
from omniges.errors import UsageFault
from omniges.shards.latents import CodecEntry

CODECS: Final = ("audioldm2-vae", "gesture-rvqvae", "omniflow-text-vae")


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
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "audioldm2-vae":
        from omniges.codecs.audio_vae import load_audio_vae  # noqa: PLC0415 - diffusers' models, 2 s

        return load_audio_vae(folder, device)
    if name == "gesture-rvqvae":
        from omniges.codecs.gesture_rvqvae import load_whole_gesture_rvqvae  # noqa: PLC0415 - as the others

        return load_whole_gesture_rvqvae(folder, device)
    from omniges.codecs.text_vae.codec import load_text_windows  # noqa: PLC0415 - as the others

    return load_text_windows(folder, device, t5_tokenizer, ends)


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
