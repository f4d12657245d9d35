"""Names and sums that come from a file or a network: checked here before they name a path."""

from __future__ import annotations

import re
from typing import Final

SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,255}", re.ASCII)


def is_file_name(text: object) -> bool:
    """Return whether a text names a file in a folder of ours: ASCII letters, digits, dots, hyphens and underscores.

    Names without those characters change the meaning of no URL; names with two dots in a row are refused too.
    """
    return isinstance(text, str) and _FILE_NAME.fullmatch(text) is not None and ".." not in text and text != "."


def is_relative_path(text: object) -> bool:
    """Return whether a path names something below the folder that it is relative to, in plain steps."""
    return isinstance(text, str) and "\0" not in text and not {"", ".", ".."} & set(text.split("/"))


def is_sha256(text: object) -> bool:
    """Return whether a text is a sha256 in lower-case hexadecimal digits."""
    return isinstance(text, str) and SHA256.fullmatch(text) is not None
