"""Tokenizers of the text VAE: T5 tokens are encoded, LLaMA tokens are generated.

Both tokenizers are read from their ``tokenizer.json``. Begin, end and padding tokens are added here by number, so no
text can spell them: the text ``</s>`` is four characters, or to T5 an unknown word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from omniges.codecs.text_vae.tokenizer_file import require_plain_tokenizer
from omniges.errors import DataError
from omniges.storage.canonical_json import sha256_hex
from omniges.storage.files import parse_json, read_file
from omniges.storage.redact import one_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer


IGNORED: Final = -100
"""Label of a token without a loss."""


MAX_TOKENS: Final = 77
"""Maximum number of tokens of a text, added ones included; longer texts are cut and flagged."""
_TOKENIZER_FILE: Final = "tokenizer.json"
_PIECE_FILES: Final = ("spiece.model", "tokenizer.model")
_MOST_BYTES: Final = 64 << 20
_PAD: Final = "[PAD]"


@dataclass(frozen=True, slots=True)
class TextTokens:
    """Texts as T5 tokens."""

    ids: Tensor
    """(B, 77) int64."""
    empty: Tensor
    """(B,) bool: the empty text."""
    cut: Tensor
    """(B,) bool: more tokens than fit; the end of the text is lost."""
    unknown: Tensor
    """(B,) bool: the vocabulary cannot spell all of the text. That of flan-T5 has no Chinese or Japanese."""


@dataclass(frozen=True, slots=True)
class WrittenTokens:
    """Texts as LLaMA tokens: begin token, text, end token, padding."""

    ids: Tensor
    """(B, L) int64, L of the longest."""
    labels: Tensor
    """(B, L): the same, with `IGNORED` for padding."""
    cut: Tensor
    """(B,) bool: more tokens than fit; the end of the text and its end token are lost."""


class _TokenizerFile:
    """A ``tokenizer.json`` that only splits texts: it does not add tokens, truncate or pad."""

    def __init__(self, folder: Path, vocabulary: int, added: str | None = None) -> None:
        self._path = folder / _TOKENIZER_FILE
        try:
            content = read_file(self._path, _MOST_BYTES, folder)
        except FileNotFoundError as error:
            reason = error.strerror or str(error)
            if any((folder / name).is_file() for name in _PIECE_FILES):
                raise DataError(
                    f"{folder}: has a sentencepiece model but no {_TOKENIZER_FILE}; make one: pip install "
                    f"sentencepiece protobuf, then AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained("
                    f"{str(folder)!r}) of transformers"
                ) from error
            raise DataError(
                f"{self._path}: {reason}; expected the tokenizer of the text VAE; check the path"
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
                f"{self._path}: has tokens up to number {size - 1}, the model's table {vocabulary} rows; give the "
                "tokenizer that belongs to the model"
            )

    def _number(self, token: str, expected: int | None = None) -> int:
        found: int | None = self._tokenizer.token_to_id(token)
        if found is None or (expected is not None and found != expected):
            raise DataError(
                f"{self._path}: the token {token} has number {found}; expected {expected}; give the tokenizer that "
                "belongs to the model"
            )
        return found

    def _subwords(self, texts: Sequence[str]) -> list[list[int]]:
        spelled = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in spelled]


class T5Tokens(_TokenizerFile):
    """Tokenizer of a T5 folder; raises `DataError` where it does not fit ``vocabulary`` tokens."""

    def __init__(self, folder: Path, *, vocabulary: int) -> None:
        super().__init__(folder, vocabulary)
        self._pad = self._number("<pad>", expected=0)
        self._end = self._number("</s>", expected=1)
        self._unknown = self._number("<unk>", expected=2)

    def encode(self, texts: Sequence[str]) -> TextTokens:
        """Return the tokens of at least one text, padded to one length."""
        added = {self._pad, self._end}  # a unigram model also has them among its subwords
        subwords = [[self._unknown if p in added else p for p in spelled] for spelled in self._subwords(texts)]
        rows = [[*spelled[: MAX_TOKENS - 1], self._end] for spelled in subwords]
        return TextTokens(
            ids=torch.tensor([row + [self._pad] * (MAX_TOKENS - len(row)) for row in rows]),
            empty=torch.tensor([text == "" for text in texts]),
            cut=torch.tensor([len(spelled) > MAX_TOKENS - 1 for spelled in subwords]),
            unknown=torch.tensor([self._unknown in spelled for spelled in subwords]),
        )


class LlamaTokens(_TokenizerFile):
    """Tokenizer of a LLaMA folder, with a padding token that the file may lack.

    Raises `DataError` where it does not fit ``vocabulary`` tokens, or has another begin or end token.
    """

    def __init__(self, folder: Path, *, vocabulary: int, begin: int, end: int) -> None:
        super().__init__(folder, vocabulary, added=_PAD)
        self._begin = self._number("<s>", expected=begin)
        self._end = self._number("</s>", expected=end)
        self._pad = self._number(_PAD)

    def encode(self, texts: Sequence[str]) -> WrittenTokens:
        """Return the tokens of at least one text, padded to the longest."""
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
        """Return the text of tokens without begin, end and padding tokens."""
        spoken = [number for number in ids if number not in {self._begin, self._end, self._pad}]
        result: str = self._tokenizer.decode(spoken, skip_special_tokens=True)
        return result


def _tokenizer(content: bytes, path: Path) -> Tokenizer:
    from tokenizers import Tokenizer  # noqa: PLC0415 - native, 70 ms

    try:
        require_plain_tokenizer(parse_json(content), str(path))
    except ValueError as error:
        raise DataError(f"{path}: {error}; expected a Hugging Face tokenizer; download it again") from error
    try:
        return Tokenizer.from_str(content.decode())
    except Exception as error:  # the native library raises the base class itself
        raise DataError(
            f"{path}: {one_line(str(error), 160)}; expected a Hugging Face tokenizer; download it again"
        ) from error
