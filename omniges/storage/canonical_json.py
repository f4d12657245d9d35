"""The byte formats of JSON values, and sha256 digests."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Final

_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


def canonical_json(value: Any) -> bytes:
    """Return the canonical bytes of a JSON value, of which hashes are taken: sorted keys, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def json_document(value: Any) -> bytes:
    """Return a JSON file for reading: sorted keys, indented, UTF-8, with a final line break."""
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def sha256_hex(*pieces: bytes | memoryview) -> str:
    """Return the hexadecimal sha256 of bytes, which may come in pieces."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Return the hexadecimal sha256 of a file, which is read in pieces; raise OSError."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_sha256(text: object) -> bool:
    """Return whether a text is a sha256 in lower-case hexadecimal digits."""
    return isinstance(text, str) and _SHA256.fullmatch(text) is not None
