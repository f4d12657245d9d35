"""Check of a ``tokenizer.json`` before the native library reads it.

The library builds any pipeline that a file describes. Some of them never end, need unbounded memory or crash the
process: regular expressions, chains of replacements, tables with indices out of range. So a file may contain only the
components of published T5 and LLaMA tokenizers, with bounded arguments.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError

_MOST_PARTS: Final = 6
_MOST_LETTERS: Final = 8
"""Of what a replacement inserts, so that a chain of them lengthens a text by a bounded factor."""
_MOST_TABLE_BYTES: Final = 1 << 21
_SPACES: Final = {"Regex": " {2,}"}
"""The one regular expression, which sentencepiece's own conversion writes."""
_KINDS: Final[Mapping[str, tuple[str, frozenset[str]]]] = {
    "normalizer": (
        "normalizers",
        frozenset({"Prepend", "Replace", "Precompiled", "Strip", "NFC", "NFD", "NFKC", "NFKD"}),
    ),
    "pre_tokenizer": ("pretokenizers", frozenset({"WhitespaceSplit", "Metaspace"})),
    "decoder": ("decoders", frozenset({"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"})),
    "post_processor": ("processors", frozenset({"TemplateProcessing"})),
}


def require_plain_tokenizer(document: Any, where: str) -> None:
    """Refuse a tokenizer with other components than those of published T5 and LLaMA tokenizers.

    Args:
        document: Parsed content of tokenizer.json.
        where: Name of the file in errors.

    Raises:
        DataError: A component is of another kind, or has other arguments than in those tokenizers.
    """
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        raise _fault(where, "no object with a model", "a Hugging Face tokenizer")
    for role, (inner, kinds) in _KINDS.items():
        parts = _parts(document.get(role), inner)
        if len(parts) > _MOST_PARTS:
            raise _fault(where, f"{len(parts)} parts of {role}", f"at most {_MOST_PARTS}")
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in kinds:
                raise _fault(where, f"{role} {str(kind)[:40]!r}", f"one of {', '.join(sorted(kinds))}")
            if not _is_bounded(part):
                raise _fault(where, f"unusual arguments of {kind} in {role}", "those of published tokenizers")
    _require_plain_model(document["model"], where)
    added = document.get("added_tokens", [])
    if not isinstance(added, list) or not all(isinstance(one, dict) and one.get("content") for one in added):
        raise _fault(where, "added_tokens without a text", "tokens with their content")


def _fault(where: str, found: str, expected: str) -> DataError:
    return DataError(f"{where}: {expected} expected, found {found}; give the tokenizer that belongs to the text VAE")


def _parts(component: Any, inner: str) -> list[Any]:
    """Return the components of a sequence as a list; a single component becomes a list of one."""
    if component is None:
        return []
    found = component.get(inner) if isinstance(component, dict) and component.get("type") == "Sequence" else None
    return found if isinstance(found, list) else [component]


def _is_bounded(part: Mapping[str, Any]) -> bool:
    kind = part["type"]
    if kind == "Replace":
        pattern = part.get("pattern")
        plain = isinstance(pattern, dict) and pattern.keys() == {"String"} and _is_short(pattern["String"], least=1)
        return (plain or pattern == _SPACES) and _is_short(part.get("content"))
    if kind == "Prepend":
        return _is_short(part.get("prepend"))
    if kind == "Precompiled":
        return _is_sound_table(part.get("precompiled_charsmap"))
    if kind == "Strip" and "content" in part:
        return all(type(part.get(end)) is int and 0 <= part[end] <= _MOST_LETTERS for end in ("start", "stop"))
    return True


def _is_short(text: Any, least: int = 0) -> bool:
    return isinstance(text, str) and least <= len(text) <= _MOST_LETTERS


def _require_plain_model(model: Mapping[str, Any], where: str) -> None:
    """Refuse models with random splits or affixes, and with scores that are not finite numbers."""
    kind = model.get("type", "Unigram" if isinstance(model.get("vocab"), list) else "BPE")
    if kind == "BPE":
        plain = not any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
        plain = plain and isinstance(model.get("vocab"), dict) and isinstance(model.get("merges"), list)
    elif kind == "Unigram":
        vocabulary = model.get("vocab")
        plain = isinstance(vocabulary, list) and all(map(_is_subword, vocabulary)) and type(model.get("unk_id")) is int
    else:
        plain = False
    if not plain:
        raise _fault(where, f"another model ({str(kind)[:40]!r})", "a plain BPE or Unigram model")


def _is_subword(subword: Any) -> bool:
    fits = isinstance(subword, list) and len(subword) == 2 and isinstance(subword[0], str)
    return fits and type(subword[1]) in {int, float} and math.isfinite(subword[1]) and abs(subword[1]) < 1e6


def _is_sound_table(text: Any) -> bool:
    """Return whether all indices in sentencepiece's table of normalised characters are within the table.

    The table is the size of a trie in bytes, the trie as a double array of 32-bit units, and texts that end with a zero
    byte. The library follows the trie without a check, so every reachable step is tried here.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        return False
    size = int.from_bytes(data[:4], "little")
    if not 4 <= len(data) <= _MOST_TABLE_BYTES or size % 4 or not 4 <= size <= len(data) - 4:
        return False
    units, texts = np.frombuffer(data, "<u4", size // 4, 4), data[4 + size :]
    try:
        texts.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return _stays_inside(units.astype(np.int64), texts)


def _stays_inside(units: npt.NDArray[np.int64], texts: bytes) -> bool:
    """Follow every path of a double array; each leaf is to point to the beginning of a character or to the end."""
    offsets = (units >> 10) << ((units & 512) >> 6)
    first_bytes = np.frombuffer(texts, np.uint8)
    begins = np.append((first_bytes & 0xC0) != 0x80, True)
    letters = np.arange(1, 256)
    seen = np.zeros(len(units), bool)
    places = offsets[:1]
    while places.size:
        if places.max() >= len(units):
            return False
        seen[places] = True
        reached = places[:, None] ^ letters
        if reached.max() >= len(units):
            return False
        found = units[reached]
        matched = reached[(found & 0x800000FF) == letters]
        places = matched ^ offsets[matched]
        leaves = places[(units[matched] >> 8) & 1 == 1]
        if leaves.size:
            if leaves.max() >= len(units):
                return False
            values = units[leaves] & 0x7FFFFFFF
            if values.max() > len(texts) or not begins[values].all():
                return False
        places = np.unique(places)
        if places.size and places.max() < len(units):
            places = places[~seen[places]]
    return True
