"""The grammar of every name that comes from a file or a network: checked here before it names a path.

A shard folder is data. Its keys, stems, shard names and file names lead nowhere but into the folder they belong to,
and readers of every command ask this module before they join one to a path.
"""

from __future__ import annotations

import re
from typing import Final

from omniges.shards.schema import (
    DATASET_FILE,
    LATENTS_FILE,
    MAX_KEY_BYTES,
    SIDE_FILES,
    SPLITS,
    key_from_stem,
)

__all__ = ["CONTRACT_FILES", "SHARD_NAME", "is_contract_name", "is_key", "is_stem"]

SHARD_NAME: Final = re.compile(rf"(?P<split>{'|'.join(SPLITS)})-(?P<index>[0-9]{{6}})\.tar", re.ASCII)
CONTRACT_FILES: Final = frozenset({*SIDE_FILES, LATENTS_FILE, DATASET_FILE})
"""The files that a complete set may have beside its shards."""

_KEY: Final = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_KEY_BYTES}}}", re.ASCII)
_MAX_STEM_BYTES: Final = 255  # what a Linux file name holds


def is_key(text: object) -> bool:
    """Return whether a text can be a sample key: 1 to 86 ASCII letters, digits, underscores and hyphens."""
    return isinstance(text, str) and _KEY.fullmatch(text) is not None


def is_stem(text: object) -> bool:
    """Return whether a text can be a recording's stem: a file name without its ending, and no path."""
    if not isinstance(text, str) or not text or text in {".", ".."} or "/" in text or "\0" in text:
        return False
    try:
        return len(text.encode()) <= _MAX_STEM_BYTES and is_key(key_from_stem(text))
    except UnicodeEncodeError:  # a lone surrogate
        return False


def is_contract_name(text: object) -> bool:
    """Return whether a text is the name of a shard or of a file beside the shards, dataset.json included."""
    return isinstance(text, str) and (text in CONTRACT_FILES or SHARD_NAME.fullmatch(text) is not None)
