"""OmniFlow's text VAE as a codec of shards and models: a row of latents for each window of a clip's words.

docs/codecs-text.md is the promise. Latents of a text depend on the whole text, so they cannot be cut as frames or slots
can: they are made for windows, each of which has a text of its own.

The files are within a checkpoint of OmniFlow, or in a folder of their own:

=========================  ==============================================  ==================
part                       in a checkpoint                                 in its own folder
=========================  ==============================================  ==================
configuration              text_vae/config.json                            config.json
weights                    transformer/diffusion_pytorch_model             model.safetensors
                           .safetensors or .bin, under ``text_decoder.``
LLaMA's tokenizer          vae_tokenizer/tokenizer.json                    the same
T5's tokenizer             t5_tokenizer/tokenizer.json                     the same
=========================  ==============================================  ==================

OmniFlow's checkpoints have no T5 tokenizer: it is that of flan-T5-large, which is put there or named.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from omniges.codecs.base import BOTH_ENDS, End, Loading, LostText, SpokenText
from omniges.codecs.text_vae.config import require_agreement, text_vae_config
from omniges.codecs.text_vae.network import MAX_LENGTH, TextVae
from omniges.codecs.text_vae.tokenizers import LlamaTokens, T5Tokens
from omniges.errors import DataError
from omniges.shards.latents import WORDS_MEMBER, WindowEntry, said_in_windows
from omniges.shards.schema import WindowGrid
from omniges.storage.canonical_json import canonical_json, sha256_hex
from omniges.storage.tensors import open_tensors, shapes_of

F32 = npt.NDArray[np.float32]

NAME: Final = "omniflow-text-vae"
DEFAULT_GRID: Final = WindowGrid(64, 16)
"""Windows of 6.4 s, every 1.6 s."""
_BATCH: Final = 32
"""Texts that are encoded or decoded together."""
_PREFIX: Final = "text_decoder."
_TRANSFORMER: Final = "transformer/diffusion_pytorch_model"


@dataclass(frozen=True, slots=True)
class TextVaeFiles:
    """Where the parts of a text VAE are."""

    config: Path
    weights: Path
    prefix: str
    """What its tensors' names begin with in the file of weights, which may hold others too."""
    llama_tokenizer: Path  # folder
    t5_tokenizer: Path  # folder


def find_text_vae(folder: Path, t5_tokenizer: Path | None = None) -> TextVaeFiles:
    """The files under a checkpoint of OmniFlow or a text VAE's own folder.

    ``t5_tokenizer`` is the folder of T5's tokenizer where it is not in there. Raises `DataError` where the folder is
    neither.
    """
    tokenizers = (folder / "vae_tokenizer", t5_tokenizer or folder / "t5_tokenizer")
    nested, own = folder / "text_vae" / "config.json", folder / "config.json"
    if nested.is_file():
        candidates = [folder / f"{_TRANSFORMER}{ending}" for ending in (".safetensors", ".bin")]
        weights = next((path for path in candidates if path.is_file()), None)
        if weights is None:
            raise DataError(
                f"{folder}: found neither {_TRANSFORMER}.safetensors nor .bin, which holds the text VAE's weights; "
                "download the whole checkpoint"
            )
        return TextVaeFiles(nested, weights, _PREFIX, *tokenizers)
    if own.is_file():
        return TextVaeFiles(own, folder / "model.safetensors", "", *tokenizers)
    raise DataError(
        f"{folder}: found neither text_vae/config.json nor config.json; expected a checkpoint of OmniFlow or the "
        "folder of its text VAE; check the path"
    )


def load_text_vae(files: TextVaeFiles, ends: frozenset[End] = BOTH_ENDS) -> TextVae:
    """The frozen text VAE of files, or an end of it, float32 on the host; one tensor after the other is read.

    Raises `DataError` for a damaged file and for a tensor that is missing, misshapen or not the text VAE's;
    `EnvironmentFault` where transformers is not installed.
    """
    where, weights = str(files.config), str(files.weights)
    try:
        document = json.loads(files.config.read_bytes())
    except OSError as error:
        raise DataError(f"{where}: {error.strerror}; expected the text VAE's configuration; check the path") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}); download it again") from error
    config = text_vae_config(document, where)
    stored = open_tensors(files.weights)
    shapes = shapes_of(stored)
    names = {name.removeprefix(files.prefix): name for name in stored if name.startswith(files.prefix)}
    if not names:
        raise DataError(
            f"{weights}: no tensor is called {files.prefix}…; this checkpoint was saved without its text VAE; "
            "give one with it"
        )
    require_agreement(config, {own: shapes[name] for own, name in names.items()}, where, weights)
    return TextVae.of_tensors(config, stored, weights, ends, prefix=files.prefix)


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    """Texts as latents, and what is not in them."""

    latents: Tensor
    """(B, N, V) float32."""
    cut: tuple[bool, ...]
    """The text has more than 77 tokens; its end is not in the latents."""
    unknown: tuple[bool, ...]
    """The vocabulary cannot spell all of the text."""


class TextCodec:
    """Texts to latents and back: a text VAE with its tokenizers.

    It is no module, so whatever holds it does not train, average or save it.
    """

    def __init__(self, vae: TextVae, t5_tokens: T5Tokens, llama_tokens: LlamaTokens) -> None:
        if vae.fingerprint is None:
            raise ValueError("a text VAE with weights of a file expected, found one with random weights")
        self.vae = vae
        self._t5_tokens = t5_tokens
        self._llama_tokens = llama_tokens
        parts = [vae.fingerprint, t5_tokens.sha256, llama_tokens.sha256]
        self.fingerprint = sha256_hex(canonical_json(parts))
        """sha256 over configuration, weights and tokenizers: latents of another one are other latents."""

    @classmethod
    def load(cls, folder: Path, t5_tokenizer: Path | None = None, ends: frozenset[End] = BOTH_ENDS) -> Self:
        """From a checkpoint of OmniFlow or a text VAE's own folder; see `find_text_vae` and `load_text_vae`.

        ``ends``: what it is loaded for. Weights and tokenizers are all checked, and in the fingerprint, in any case.
        """
        files = find_text_vae(folder, t5_tokenizer)
        vae = load_text_vae(files, ends)
        llama = vae.config.llama
        return cls(
            vae,
            T5Tokens(files.t5_tokenizer, vocabulary=vae.config.t5.vocab_size),
            LlamaTokens(
                files.llama_tokenizer, vocabulary=llama.vocab_size, begin=llama.bos_token_id, end=llama.eos_token_id
            ),
        )

    @property
    def latent_shape(self) -> tuple[int, int]:
        """(N, V): latents of a text, and the width of each."""
        return self.vae.config.vae.n_tokens, self.vae.config.vae.vae_dim

    @property
    def device(self) -> torch.device:
        """Where the text VAE computes."""
        return next(self.vae.parameters()).device

    def lost(self, texts: Sequence[str]) -> list[LostText]:
        """What each of some texts, at least one, would lose; the text VAE is not run."""
        tokens = self._t5_tokens.encode(texts)
        return [LostText(*flags) for flags in zip(tokens.cut.tolist(), tokens.unknown.tolist(), strict=True)]

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        """Latents of texts, at least one, where the text VAE is."""
        tokens = self._t5_tokens.encode(texts)
        latents = self.vae.latents(tokens.ids.to(self.device), tokens.empty.to(self.device))
        return EncodedTexts(latents, tuple(tokens.cut.tolist()), tuple(tokens.unknown.tolist()))

    def logits(self, latents: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Logits (B, L, words) of texts read after latents (B, N, V), and their labels (B, L).

        `omniges.codecs.text_vae.network.token_losses` makes losses of the two. Raises `DataError` for a text of more
        than 77 tokens.
        """
        tokens = self._llama_tokens.encode(texts)
        if tokens.cut.any():
            text = texts[int(tokens.cut.long().argmax())]
            raise DataError(f"text {text[:40]!r}…: more than 77 tokens; expected a text that fits; use shorter windows")
        ids, labels = tokens.ids.to(latents.device), tokens.labels.to(latents.device)
        return self.vae.logits(latents, ids), labels

    def decode(self, latents: Tensor, max_length: int = MAX_LENGTH) -> list[SpokenText]:
        """The likeliest texts of latents (B, N, V); ``max_length`` counts tokens, N + 1 that lead them included."""
        ids = self.vae.generated(latents, max_length)
        end = self.vae.config.llama.eos_token_id
        return [
            SpokenText(self._llama_tokens.decode(row), bool(row) and row[-1] == end)
            for row in ids[:, latents.shape[1] + 1 :].tolist()
        ]


class TextWindows:
    """Words of windows to latents, and latents to texts. Not for several threads at once."""

    def __init__(self, codec: TextCodec, grid: WindowGrid = DEFAULT_GRID) -> None:
        self._codec, self.grid = codec, grid

    def on(self, grid: WindowGrid) -> TextWindows:
        """The same text VAE over another grid."""
        found = copy.copy(self)
        found.grid = grid
        return found

    @property
    def entry(self) -> WindowEntry:
        """What shards and checkpoints keep of it."""
        latents, width = self._codec.latent_shape
        return WindowEntry(
            name=NAME,
            fingerprint=self._codec.fingerprint,
            source=WORDS_MEMBER,
            channels=width,
            window_ticks=self.grid.window_ticks,
            stride_ticks=self.grid.stride_ticks,
            latents=latents,
        )

    def texts(
        self, words: Sequence[Mapping[str, Any]], ticks: int, windows: Sequence[tuple[int, int]] | None = None
    ) -> list[str]:
        """The text of each window, (first tick, ticks), of a clip; of the grid's where none are given."""
        if windows is None:
            windows = [(start, self.grid.window_ticks) for start in self.grid.starts(ticks)]
        return [" ".join(word["word"] for word in said) for said in said_in_windows(words, ticks, windows)]

    def lost(self, texts: Sequence[str]) -> list[LostText]:
        """What of each text would not be in its latents; the nets are not run."""
        return self._codec.lost(texts) if texts else []

    def encode(self, words: Sequence[Mapping[str, Any]], ticks: int) -> F32:
        """Latents (windows, N · V) of the grid's windows of a clip with these words."""
        return self.encode_texts(self.texts(words, ticks))

    def encode_texts(self, texts: Sequence[str]) -> F32:
        """Latents (texts, N · V), each different text encoded once, and the empty one once for all calls."""
        different = list(dict.fromkeys(text for text in texts if text))
        found = {"": self._of_nothing} if "" in texts else {}
        for start in range(0, len(different), _BATCH):
            some = different[start : start + _BATCH]
            found |= dict(zip(some, self._rows(some), strict=True))
        latents, width = self._codec.latent_shape
        return np.stack([found[text] for text in texts]) if texts else np.empty((0, latents * width), np.float32)

    @cached_property
    def _of_nothing(self) -> F32:
        """The latents of the empty text, which most clips have."""
        (row,) = self._rows([""])
        return row

    def _rows(self, texts: Sequence[str]) -> list[F32]:
        latents = self._codec.encode(texts).latents.float().cpu().numpy()
        return [row.reshape(-1) for row in latents]

    def decode(self, latents: F32) -> list[SpokenText]:
        """The text of each row (windows, N · V)."""
        rows = torch.from_numpy(np.ascontiguousarray(latents, np.float32)).to(self._codec.device)
        rows = rows.reshape(len(latents), *self._codec.latent_shape)
        return [
            text for start in range(0, len(rows), _BATCH) for text in self._codec.decode(rows[start : start + _BATCH])
        ]


def load(folder: Path, loading: Loading) -> TextWindows:
    """Load the codec as the registry does."""
    return load_text_windows(folder, loading.device, loading.t5_tokenizer, loading.ends)


def load_text_windows(
    folder: Path, device: torch.device, t5_tokenizer: Path | None = None, ends: frozenset[End] = BOTH_ENDS
) -> TextWindows:
    """The codec of a checkpoint of OmniFlow or of its text VAE's own folder; raises as `TextCodec.load` does.

    ``t5_tokenizer``: the folder of T5's tokenizer where it is not in there. ``ends``: what it is loaded for.
    """
    codec = TextCodec.load(folder, t5_tokenizer, ends)
    codec.vae.to(device)
    return TextWindows(codec)
