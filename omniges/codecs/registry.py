"""Registry of codecs by name, and functions that load a codec from a folder.

docs/how-to/extend.md says how to add a codec. `omniges --help` shows the names. To be fast, this module imports torch
only when it loads a codec.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from omniges import arguments
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
    """Register a codec under a name for the rest of this process.

    Args:
        name: The name in ``--codec NAME=FOLDER``, in recipes and in shards; the codec's entry must have the same name.
        loader: Function that takes the codec's folder and a `Loading`, and returns the codec.

    Raises:
        UsageFault: The name is taken, or the loader is not callable.
    """
    CODECS.register(name, loader)


def load_codec(
    name: str,
    folder: str | Path,
    device: torch.device | None = None,
    *,
    t5_tokenizer: str | Path | None = None,
    ends: frozenset[End] | None = None,
) -> Codec:
    """Load a codec from its folder.

    Args:
        name: A name of `CODECS`.
        folder: Folder with the codec's files.
        device: Device of the weights; None: the GPU if there is one, otherwise the CPU.
        t5_tokenizer: Folder of a text codec's T5 tokenizer, if the codec's own folder does not contain it.
        ends: Directions that are needed, encoding or decoding; None for both. A text codec has large networks, so it
            loads only the networks of these directions.

    Returns:
        The loaded codec.

    Raises:
        UsageFault: The name is unknown or differs from the codec's entry, or a folder does not exist.
        DataError: The folder does not contain this codec.
        EnvironmentFault: The codec belongs to another package, which cannot be imported.
    """
    import torch  # noqa: PLC0415

    from omniges.codecs.base import BOTH_ENDS, Loading  # noqa: PLC0415 - torch

    folder = arguments.path("folder", folder)
    loader = CODECS.get(arguments.text("name", name))
    if not folder.is_dir():
        raise UsageFault(f"{name}={folder}: expected a folder with the codec's files, found none; check the path")
    t5_tokenizer = None if t5_tokenizer is None else arguments.path("t5_tokenizer", t5_tokenizer)
    if t5_tokenizer is not None and not t5_tokenizer.is_dir():
        raise UsageFault(
            f"--t5-tokenizer {t5_tokenizer}: expected a folder with T5's tokenizer.json, found none; check the path"
        )
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    codec = loader(folder, Loading(device=device, ends=BOTH_ENDS if ends is None else ends, t5_tokenizer=t5_tokenizer))
    if codec.entry.name != name:  # otherwise shards would store a name that cannot be loaded
        raise UsageFault(
            f"codec {name!r}: expected an entry of this name, found {codec.entry.name!r}; register it under that name"
        )
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
    """Load the codec that an entry describes; refuse a codec with another fingerprint.

    Args:
        entry: Name and fingerprint of the expected codec.
        folder: Folder with the codec's files.
        flag: Option that named the folder, for errors.
        holder: File that contains the entry, for errors.
        device: Device of the weights; None: the GPU if there is one, otherwise the CPU.
        t5_tokenizer: Folder of a text codec's T5 tokenizer, if the codec's own folder does not contain it.
        ends: Directions that are needed, encoding or decoding; None for both.

    Returns:
        The loaded codec.

    Raises:
        UsageFault: The codec in the folder has another fingerprint, or `load_codec` refuses the name or the folder.
        DataError: The folder does not contain this codec.
        EnvironmentFault: The codec belongs to another package, which cannot be imported.
    """
    codec = load_codec(entry.name, folder, device, t5_tokenizer=t5_tokenizer, ends=ends)
    if codec.entry.fingerprint != entry.fingerprint:
        raise UsageFault(
            f"{flag} {entry.name}={folder}: expected fingerprint {entry.fingerprint[:16]}… as in {holder}, found "
            f"{codec.entry.fingerprint[:16]}…; give the folder of the codec that encoded the latents"
        )
    return codec
