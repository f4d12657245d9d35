"""OmniFlow's text VAE as a codec. It encodes the words in each window of a clip as one row of latents.

See docs/explanation/codecs-text.md. Every latent of a text depends on the complete text. Therefore, these
latents cannot be cut to a window, unlike frames or text tokens. Each window is encoded separately.

The files are inside a checkpoint of OmniFlow, or in the text VAE's own folder:

* Configuration: ``text_vae/config.json`` in a checkpoint; ``config.json`` in the text VAE's own folder.
* Weights: tensors under ``text_decoder.`` in a checkpoint's ``transformer/diffusion_pytorch_model.safetensors`` or
  ``.bin``; ``model.safetensors`` in the text VAE's own folder.
* LLaMA's tokenizer: ``vae_tokenizer/tokenizer.json`` in either folder.
* T5's tokenizer: ``t5_tokenizer/tokenizer.json`` in either folder.

OmniFlow's checkpoints have no T5 tokenizer. Use the tokenizer of flan-T5-large: copy it to this path, or give its
folder as `t5_tokenizer`.

Shape letters: B texts, N latents of a text, V width of a latent.
"""

from __future__ import annotations

import copy
import os
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
from omniges.storage.files import canonical_json, read_settings, sha256_hex
from omniges.storage.tensors import open_tensors, shapes_of

F32 = npt.NDArray[np.float32]

NAME: Final = "omniflow-text-vae"
DEFAULT_GRID: Final = WindowGrid(64, 16)
"""Windows of 6.4 s, every 1.6 s."""
_BATCH: Final = 32
"""Number of texts that are encoded or decoded together."""
_PREFIX: Final = "text_decoder."
_TRANSFORMER: Final = "transformer/diffusion_pytorch_model"


@dataclass(frozen=True, slots=True)
class TextVaeFiles:
    """Paths of the files and folders of a text VAE."""

    config: Path
    weights: Path
    prefix: str
    """Prefix of the names of the text VAE's tensors; the file of weights may also contain other tensors."""
    llama_tokenizer: Path  # folder
    t5_tokenizer: Path  # folder


def find_text_vae(folder: Path, t5_tokenizer: Path | None = None) -> TextVaeFiles:
    """Find the files of a text VAE.

    Args:
        folder: A checkpoint of OmniFlow, or a text VAE's own folder.
        t5_tokenizer: Folder of T5's tokenizer, if `folder` does not contain it.

    Returns:
        The paths.

    Raises:
        DataError: The folder is neither a checkpoint of OmniFlow nor the folder of a text VAE.
    """
    tokenizers = (folder / "vae_tokenizer", t5_tokenizer or folder / "t5_tokenizer")
    nested, own = folder / "text_vae" / "config.json", folder / "config.json"
    if os.path.lexists(nested):
        candidates = [folder / f"{_TRANSFORMER}{ending}" for ending in (".safetensors", ".bin")]
        weights = next((path for path in candidates if os.path.lexists(path)), None)
        if weights is None:
            raise DataError(
                f"{folder}: expected {_TRANSFORMER}.safetensors or .bin with the text VAE's weights, found "
                "neither; download the complete checkpoint"
            )
        return TextVaeFiles(nested, weights, _PREFIX, *tokenizers)
    if os.path.lexists(own):
        return TextVaeFiles(own, folder / "model.safetensors", "", *tokenizers)
    raise DataError(
        f"{folder}: expected a checkpoint of OmniFlow or the folder of its text VAE, found neither "
        "text_vae/config.json nor config.json; check the path"
    )


def load_text_vae(files: TextVaeFiles, ends: frozenset[End] = BOTH_ENDS) -> TextVae:
    """Load a frozen text VAE to the CPU as float32, one tensor at a time.

    Args:
        files: Paths of the configuration, weights and tokenizers.
        ends: Directions that are needed, encoding or decoding. Only the networks for these directions are kept.

    Returns:
        The text VAE.

    Raises:
        DataError: A file is damaged, or a tensor is missing, unexpected or of another shape.
        EnvironmentFault: Transformers is not installed.
    """
    where, weights = str(files.config), str(files.weights)
    document = read_settings(files.config, "give the text VAE's complete folder", files.config.parent)
    config = text_vae_config(document, where)
    stored = open_tensors(files.weights)
    shapes = shapes_of(stored)
    names = {name.removeprefix(files.prefix): name for name in stored if name.startswith(files.prefix)}
    if not names:
        raise DataError(
            f"{weights}: expected tensors with the prefix {files.prefix}, found none, because this checkpoint was "
            "saved without its text VAE; use a checkpoint that contains the text VAE"
        )
    require_agreement(config, {own: shapes[name] for own, name in names.items()}, where, weights)
    return TextVae.of_tensors(config, stored, weights, ends, prefix=files.prefix)


@dataclass(frozen=True, slots=True)
class EncodedTexts:
    """Latents of texts, with flags for lost text."""

    latents: Tensor
    """(B, N, V) float32."""
    cut: tuple[bool, ...]
    """For each text, True if it has more than 77 tokens; its end is not in the latents."""
    unknown: tuple[bool, ...]
    """For each text, True if the vocabulary cannot spell all of it."""


class TextCodec:
    """Codec of texts: a text VAE with its tokenizers.

    The codec is not a torch module. Therefore, if a model contains the codec, the codec's weights are not trained, and
    the model's checkpoints and EMA weights do not contain them.
    """

    def __init__(self, vae: TextVae, t5_tokens: T5Tokens, llama_tokens: LlamaTokens) -> None:
        if vae.fingerprint is None:
            raise ValueError("expected a text VAE with weights from a file, found one with random weights")
        self.vae = vae
        self._t5_tokens = t5_tokens
        self._llama_tokens = llama_tokens
        parts = [vae.fingerprint, t5_tokens.sha256, llama_tokens.sha256]
        self.fingerprint = sha256_hex(canonical_json(parts))
        """sha256 of configuration, weights and tokenizers."""

    @classmethod
    def load(cls, folder: Path, t5_tokenizer: Path | None = None, ends: frozenset[End] = BOTH_ENDS) -> Self:
        """Load the codec from a checkpoint of OmniFlow or a text VAE's own folder.

        All weights and tokenizers are checked and are part of the fingerprint, even those for a direction that is not
        needed.

        Args:
            folder: Folder of the checkpoint or of the text VAE.
            t5_tokenizer: Folder of T5's tokenizer, if `folder` does not contain it.
            ends: Directions that are needed, encoding or decoding.

        Returns:
            The codec, on the CPU.

        Raises:
            DataError: A file is missing or damaged, or the files do not fit together.
            EnvironmentFault: Transformers is not installed.
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
        """(N, V): the number of latents of a text, and the width of a latent."""
        return self.vae.config.vae.n_tokens, self.vae.config.vae.vae_dim

    @property
    def device(self) -> torch.device:
        """Device of the text VAE."""
        return next(self.vae.parameters()).device

    def lost(self, texts: Sequence[str]) -> list[LostText]:
        """Return for each text what it would lose if it were encoded; `texts` must contain at least one text."""
        tokens = self._t5_tokens.encode(texts)
        return [LostText(*flags) for flags in zip(tokens.cut.tolist(), tokens.unknown.tolist(), strict=True)]

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        """Encode texts on the text VAE's device; `texts` must contain at least one text."""
        tokens = self._t5_tokens.encode(texts)
        latents = self.vae.latents(tokens.ids.to(self.device), tokens.empty.to(self.device))
        return EncodedTexts(latents, tuple(tokens.cut.tolist()), tuple(tokens.unknown.tolist()))

    def logits(self, latents: Tensor, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the decoder's logits and labels for known texts, given their latents.

        `omniges.codecs.text_vae.network.token_losses` computes the loss from both.

        Args:
            latents: Latents (B, N, V).
            texts: The B texts.

        Returns:
            Logits (B, L, W) and labels (B, L), for the L tokens of the longest text and the W tokens of LLaMA's
            vocabulary. A label is a token of the text, or −100 for padding.

        Raises:
            DataError: A text has more than 77 tokens.
        """
        tokens = self._llama_tokens.encode(texts)
        if tokens.cut.any():
            text = texts[int(tokens.cut.long().argmax())]
            raise DataError(f"text {text[:40]!r}…: expected at most 77 tokens, found more; use shorter windows")
        ids, labels = tokens.ids.to(latents.device), tokens.labels.to(latents.device)
        return self.vae.logits(latents, ids), labels

    def decode(self, latents: Tensor, max_length: int = MAX_LENGTH) -> list[SpokenText]:
        """Decode latents as texts by greedy search.

        Args:
            latents: Latents (B, N, V).
            max_length: Maximum number of tokens of a text, including N + 1 begin tokens: one for each latent and one
                for the text. The begin tokens are not part of the decoded text.

        Returns:
            One text for each row of latents.
        """
        ids = self.vae.generated(latents, max_length)
        end = self.vae.config.llama.eos_token_id
        return [
            SpokenText(self._llama_tokens.decode(row), bool(row) and row[-1] == end)
            for row in ids[:, latents.shape[1] + 1 :].tolist()
        ]


class TextWindows:
    """Codec for the texts of windows. It is not thread-safe."""

    def __init__(self, codec: TextCodec, grid: WindowGrid = DEFAULT_GRID) -> None:
        self._codec, self.grid = codec, grid

    def on(self, grid: WindowGrid) -> TextWindows:
        """Return a shallow copy of the codec with another grid of windows."""
        found = copy.copy(self)
        found.grid = grid
        return found

    @property
    def entry(self) -> WindowEntry:
        """Codec description that shards and checkpoints store: name, fingerprint, windows and latents."""
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
        """Return the text of each window of a clip.

        Args:
            words: Words of the clip, with times in seconds.
            ticks: Length of the clip in ticks of 0.1 s.
            windows: First tick and number of ticks of each window; None: all windows of the codec's grid.

        Returns:
            One text for each window.
        """
        if windows is None:
            windows = [(start, self.grid.window_ticks) for start in self.grid.starts(ticks)]
        return [" ".join(word["word"] for word in said) for said in said_in_windows(words, ticks, windows)]

    def lost(self, texts: Sequence[str]) -> list[LostText]:
        """Return for each text what it would lose if it were encoded; the networks do not run."""
        return self._codec.lost(texts) if texts else []

    def encode(self, words: Sequence[Mapping[str, Any]], ticks: int) -> F32:
        """Encode the text of each window of the grid in a clip.

        Args:
            words: Words of the clip, with times in seconds.
            ticks: Length of the clip in ticks of 0.1 s.

        Returns:
            Latents (windows, N · V).
        """
        return self.encode_texts(self.texts(words, ticks))

    def encode_texts(self, texts: Sequence[str]) -> F32:
        """Encode texts as latents (texts, N · V).

        A text that occurs several times in a call is encoded only once. The latents of the empty text are kept for
        later calls.
        """
        different = list(dict.fromkeys(text for text in texts if text))
        found = {"": self._of_nothing} if "" in texts else {}
        for start in range(0, len(different), _BATCH):
            some = different[start : start + _BATCH]
            found |= dict(zip(some, self._rows(some), strict=True))
        latents, width = self._codec.latent_shape
        return np.stack([found[text] for text in texts]) if texts else np.empty((0, latents * width), np.float32)

    @cached_property
    def _of_nothing(self) -> F32:
        """Latents of the empty text, which occurs in most clips."""
        (row,) = self._rows([""])
        return row

    def _rows(self, texts: Sequence[str]) -> list[F32]:
        latents = self._codec.encode(texts).latents.float().cpu().numpy()
        return [row.reshape(-1) for row in latents]

    def decode(self, latents: F32) -> list[SpokenText]:
        """Decode each row of latents (windows, N · V) as a text."""
        rows = torch.from_numpy(np.ascontiguousarray(latents, np.float32)).to(self._codec.device)
        rows = rows.reshape(len(latents), *self._codec.latent_shape)
        return [
            text for start in range(0, len(rows), _BATCH) for text in self._codec.decode(rows[start : start + _BATCH])
        ]


def load(folder: Path, loading: Loading) -> TextWindows:
    """Load the codec from a checkpoint of OmniFlow or a text VAE's own folder.

    Args:
        folder: Folder of the checkpoint or of the text VAE.
        loading: Device, directions and T5 tokenizer.

    Returns:
        The codec, with windows of 6.4 s.

    Raises:
        DataError: A file is missing or damaged, or the files do not fit together.
        EnvironmentFault: Transformers is not installed.
    """
    codec = TextCodec.load(folder, loading.t5_tokenizer, loading.ends)
    codec.vae.to(loading.device)
    return TextWindows(codec)
