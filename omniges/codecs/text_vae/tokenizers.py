"""Tokenizers of the text VAE: T5's for the texts to encode, and LLaMA's for the texts to generate.

Both tokenizers are read from their ``tokenizer.json``. This module adds begin, end and padding tokens by their ids.
Therefore, a text cannot produce these tokens. For example, the text ``</s>`` is not encoded as the end token. LLaMA's
tokenizer splits it into ordinary subwords, and T5's tokenizer encodes it as an unknown word.

The native library runs any pipeline that a ``tokenizer.json`` describes. A pipeline may never finish, need unbounded
memory or crash the process. Causes are regular expressions, chains of replacements, and tables with indices out of
range. Therefore, a file may contain only components of published T5 and LLaMA tokenizers, with bounded arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from omniges.errors import DataError
from omniges.storage.files import parse_json, read_file, sha256_hex
from omniges.storage.redact import one_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer


import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

IGNORED: Final = -100
"""Label of a token without a loss."""


MAX_TOKENS: Final = 77
"""Maximum number of tokens of a text, including begin and end tokens; longer texts are cut and flagged."""
_TOKENIZER_FILE: Final = "tokenizer.json"
_PIECE_FILES: Final = ("spiece.model", "tokenizer.model")
_MAX_BYTES: Final = 64 << 20
_PAD: Final = "[PAD]"


@dataclass(frozen=True, slots=True)
class TextTokens:
    """Texts as T5 tokens."""

    ids: Tensor
    """(B, 77) int64."""
    empty: Tensor
    """(B,) bool: the text is empty."""
    cut: Tensor
    """(B,) bool: the text has more tokens than fit, so its end is lost."""
    unknown: Tensor
    """(B,) bool: the vocabulary cannot spell all of the text. Flan-T5's vocabulary has no Chinese or Japanese."""


@dataclass(frozen=True, slots=True)
class WrittenTokens:
    """Texts as LLaMA tokens: begin token, text, end token, padding."""

    ids: Tensor
    """(B, L) int64; L is the length of the longest text."""
    labels: Tensor
    """(B, L): the same tokens, with `IGNORED` for padding."""
    cut: Tensor
    """(B,) bool: the text has more tokens than fit, so its end and its end token are lost."""


class _TokenizerFile:
    """A ``tokenizer.json`` that only splits texts: it does not add tokens, truncate or pad."""

    def __init__(self, folder: Path, vocabulary: int, added: str | None = None) -> None:
        self._path = folder / _TOKENIZER_FILE
        try:
            content = read_file(self._path, _MAX_BYTES, folder)
        except FileNotFoundError as error:
            if any((folder / name).is_file() for name in _PIECE_FILES):
                raise DataError(
                    f"{folder}: expected {_TOKENIZER_FILE}, found only a sentencepiece model; convert it: run pip "
                    "install sentencepiece protobuf, then in Python "
                    f"transformers.AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
                ) from error
            raise DataError(
                f"{self._path}: expected the tokenizer of the text VAE, found that the file does not exist; check "
                "the path"
            ) from error
        self.sha256 = sha256_hex(content)
        self._tokenizer = _tokenizer(content, self._path)
        if added is not None:
            self._tokenizer.add_special_tokens([added])
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        if size > vocabulary:
            raise DataError(
                f"{self._path}: expected token numbers below {vocabulary} (rows of the model's table), found "
                f"{size - 1}; give the tokenizer that belongs to the model"
            )

    def _number(self, token: str, expected: int | None = None) -> int:
        found: int | None = self._tokenizer.token_to_id(token)
        if found is None or (expected is not None and found != expected):
            raise DataError(
                f"{self._path}: expected the token {token} with number {expected}, found {found}; give the tokenizer "
                "that belongs to the model"
            )
        return found

    def _subwords(self, texts: Sequence[str]) -> list[list[int]]:
        spelled = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in spelled]


class T5Tokens(_TokenizerFile):
    """T5's tokenizer, read from a folder. Raises `DataError` if it does not fit a model of ``vocabulary`` tokens."""

    def __init__(self, folder: Path, *, vocabulary: int) -> None:
        super().__init__(folder, vocabulary)
        self._pad = self._number("<pad>", expected=0)
        self._end = self._number("</s>", expected=1)
        self._unknown = self._number("<unk>", expected=2)

    def encode(self, texts: Sequence[str]) -> TextTokens:
        """Encode at least one text as T5 tokens; each text is cut or padded to 77 tokens."""
        added = {self._pad, self._end}  # a unigram model may also return them as subwords
        subwords = [[self._unknown if p in added else p for p in spelled] for spelled in self._subwords(texts)]
        rows = [[*spelled[: MAX_TOKENS - 1], self._end] for spelled in subwords]
        return TextTokens(
            ids=torch.tensor([row + [self._pad] * (MAX_TOKENS - len(row)) for row in rows]),
            empty=torch.tensor([text == "" for text in texts]),
            cut=torch.tensor([len(spelled) > MAX_TOKENS - 1 for spelled in subwords]),
            unknown=torch.tensor([self._unknown in spelled for spelled in subwords]),
        )


class LlamaTokens(_TokenizerFile):
    """LLaMA's tokenizer, read from a folder. If the file has no padding token, one is added.

    Raises `DataError` if it does not fit a model of ``vocabulary`` tokens, or if the ids of its begin and end tokens
    differ from the arguments ``begin`` and ``end``.
    """

    def __init__(self, folder: Path, *, vocabulary: int, begin: int, end: int) -> None:
        super().__init__(folder, vocabulary, added=_PAD)
        self._begin = self._number("<s>", expected=begin)
        self._end = self._number("</s>", expected=end)
        self._pad = self._number(_PAD)

    def encode(self, texts: Sequence[str]) -> WrittenTokens:
        """Encode at least one text as LLaMA tokens, padded to the length of the longest text.

        A text of more than 77 tokens, including the begin and end tokens, is cut. It then has no end token.
        """
        subwords = self._subwords(texts)
        rows = [[self._begin, *spelled, self._end][:MAX_TOKENS] for spelled in subwords]
        width = max(map(len, rows))
        padding = [width - len(row) for row in rows]
        return WrittenTokens(
            ids=torch.tensor([row + [self._pad] * n for row, n in zip(rows, padding, strict=True)]),
            labels=torch.tensor([row + [IGNORED] * n for row, n in zip(rows, padding, strict=True)]),
            cut=torch.tensor([len(spelled) > MAX_TOKENS - 2 for spelled in subwords]),
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Decode tokens as a text, without begin, end and padding tokens."""
        spoken = [number for number in ids if number not in {self._begin, self._end, self._pad}]
        result: str = self._tokenizer.decode(spoken, skip_special_tokens=True)
        return result


def _tokenizer(content: bytes, path: Path) -> Tokenizer:
    from tokenizers import Tokenizer  # noqa: PLC0415 - native, 70 ms

    try:
        require_plain_tokenizer(parse_json(content), str(path))
    except ValueError as error:
        raise DataError(
            f"{path}: expected a Hugging Face tokenizer, found damage ({error}); download it again"
        ) from error
    try:
        return Tokenizer.from_str(content.decode())
    except Exception as error:  # the native library raises `Exception` itself
        raise DataError(
            f"{path}: expected a Hugging Face tokenizer, found damage ({one_line(str(error), 160)}); download it again"
        ) from error


_MAX_PARTS: Final = 6
_MAX_LETTERS: Final = 8
"""Maximum number of characters that a replacement inserts, so that a chain of replacements has a bounded output."""
_MAX_TABLE_BYTES: Final = 1 << 21
_SPACES: Final = {"Regex": " {2,}"}
"""The only regular expression that is accepted; sentencepiece's own conversion writes it."""
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
    """Raise DataError for a tokenizer with components that published T5 and LLaMA tokenizers do not have.

    Args:
        document: Parsed content of tokenizer.json.
        where: Name of the file, for errors.

    Raises:
        DataError: A component has a type or arguments that published tokenizers do not have.
    """
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        raise _fault(where, "JSON without an object 'model'", "a Hugging Face tokenizer")
    for role, (inner, kinds) in _KINDS.items():
        parts = _parts(document.get(role), inner)
        if len(parts) > _MAX_PARTS:
            raise _fault(where, f"{len(parts)} components of {role}", f"at most {_MAX_PARTS} components of {role}")
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in kinds:
                raise _fault(where, f"{role} {str(kind)[:40]!r}", f"one of {', '.join(sorted(kinds))}")
            if not _is_bounded(part):
                raise _fault(where, f"unusual arguments of {kind} in {role}", "those of published tokenizers")
    _require_plain_model(document["model"], where)
    added = document.get("added_tokens", [])
    if not isinstance(added, list) or not all(isinstance(one, dict) and one.get("content") for one in added):
        raise _fault(where, "added_tokens without their texts", "a list of tokens, each with its content")


def _fault(where: str, found: str, expected: str) -> DataError:
    return DataError(f"{where}: expected {expected}, found {found}; give the tokenizer that belongs to the text VAE")


def _parts(component: Any, inner: str) -> list[Any]:
    """Return the components of a tokenizer's pipeline step as a list.

    If `component` has the type ``Sequence``, return its list of components, which is under the key `inner`. For None,
    return an empty list. Otherwise, return a list with `component` as the only item.
    """
    if component is None:
        return []
    found = component.get(inner) if isinstance(component, dict) and component.get("type") == "Sequence" else None
    return found if isinstance(found, list) else [component]


def _is_bounded(part: Mapping[str, Any]) -> bool:
    kind = part["type"]
    if kind == "Replace":
        pattern = part.get("pattern")
        plain = isinstance(pattern, dict) and pattern.keys() == {"String"} and _is_short(pattern["String"], minimum=1)
        return (plain or pattern == _SPACES) and _is_short(part.get("content"))
    if kind == "Prepend":
        return _is_short(part.get("prepend"))
    if kind == "Precompiled":
        return _is_valid_table(part.get("precompiled_charsmap"))
    if kind == "Strip" and "content" in part:
        return all(type(part.get(end)) is int and 0 <= part[end] <= _MAX_LETTERS for end in ("start", "stop"))
    return True


def _is_short(text: Any, minimum: int = 0) -> bool:
    return isinstance(text, str) and minimum <= len(text) <= _MAX_LETTERS


def _require_plain_model(model: Mapping[str, Any], where: str) -> None:
    """Raise DataError unless the model of a tokenizer is a plain BPE or Unigram model.

    A plain model has no random splits (dropout), no prefix or suffix of subwords, and finite scores.
    """
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


def _is_valid_table(text: Any) -> bool:
    """Return whether all indices in sentencepiece's table of normalised characters are within the table.

    The table consists of the size of a trie in bytes, the trie (a double array of 32-bit units), and texts that end
    with a zero byte. The library follows the trie without checks. Therefore, this function tries every reachable step.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        return False
    size = int.from_bytes(data[:4], "little")
    if not 4 <= len(data) <= _MAX_TABLE_BYTES or size % 4 or not 4 <= size <= len(data) - 4:
        return False
    units, texts = np.frombuffer(data, "<u4", size // 4, 4), data[4 + size :]
    try:
        texts.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return _stays_inside(units.astype(np.int64), texts)


def _stays_inside(units: npt.NDArray[np.int64], texts: bytes) -> bool:
    """Follow every path of a trie; return whether all indices are valid.

    A leaf must point to the start of a character in `texts`, or to the end of `texts`.
    """
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
