"""Codecs by name, and how one is loaded from its folder. docs/extend.md says how to add one.

Light, for `omniges --help` shows the names: what needs torch is imported when a codec is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from omniges.errors import UsageFault
from omniges.registry import Registry

if TYPE_CHECKING:
    import torch

    from omniges.codecs.base import Codec, CodecLoader, End
    from omniges.shards.latents import CodecEntry

CODECS: Final[Registry[CodecLoader]] = Registry(
    "codec",
    "omniges.codecs",
    Callable,
    {
        "audioldm2-vae": "omniges.codecs.audio_vae:load",
        "gesture-rvqvae": "omniges.codecs.gesture_rvqvae:load",
        "omniflow-text-vae": "omniges.codecs.text_vae.codec:load",
    },
)


def register_codec(name: str, loader: CodecLoader) -> None:
    """Make a codec known by a name for the rest of this process.

    Args:
        name: The name in ``--with NAME=FOLDER``, in recipes and in shards; the codec's entry must have it too.
        loader: Called with the codec's folder and a `Loading`, returns the codec.

    Raises:
        UsageFault: The name is taken or cannot be called.
    """
    CODECS.register(name, loader)


def load_codec(
    name: str,
    folder: str | Path,
    device: torch.device | None = None,
    *,
    t5_tokenizer: Path | None = None,
    ends: frozenset[End] | None = None,
) -> Codec:
    """Load a codec from its folder.

    Args:
        name: A name of `CODECS`.
        folder: Where the codec's files are.
        device: Where its weights go; None: the GPU where there is one.
        t5_tokenizer: Folder of a text codec's T5 tokenizer where that is not in the codec's own folder.
        ends: Whether it will encode or decode, None for both; one of text, whose nets are large, loads these alone.

    Returns:
        The codec, ready for what `ends` names.

    Raises:
        UsageFault: The name is unknown or not that of the codec's entry, or a folder is not there.
        DataError: The folder holds no such codec.
        EnvironmentFault: Another package's codec cannot be imported.
    """
    import torch  # noqa: PLC0415

    from omniges.codecs.base import BOTH_ENDS, Loading  # noqa: PLC0415 - torch

    folder = Path(folder)
    loader = CODECS.get(name)
    if not folder.is_dir():
        raise UsageFault(f"{name}={folder}: a folder with the codec's files expected, found none")
    if t5_tokenizer is not None and not t5_tokenizer.is_dir():
        raise UsageFault(f"--t5-tokenizer {t5_tokenizer}: a folder with T5's tokenizer.json expected, found none")
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    codec = loader(folder, Loading(device=device, ends=BOTH_ENDS if ends is None else ends, t5_tokenizer=t5_tokenizer))
    if codec.entry.name != name:  # shards would name a codec that nobody finds again
        raise UsageFault(f"codec {name!r}: its entry has the name {codec.entry.name!r}: register it by that name")
    return codec


def load_same_codec(
    entry: CodecEntry,
    folder: Path,
    flag: str,
    holder: str,
    device: torch.device | None = None,
    *,
    t5_tokenizer: Path | None = None,
    ends: frozenset[End] | None = None,
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
