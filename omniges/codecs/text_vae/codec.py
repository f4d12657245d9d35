"""OmniFlow's text VAE as a codec of shards and models: a row of latents for each window of a clip's words.

docs/codecs-text.md is the promise.

Which words a window says.

Latents of a text depend on the whole text, so they cannot be cut as frames or slots can: they are made for windows,
each of which has a text of its own. Nothing here imports torch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from math import floor
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from omniges.codecs.base import BOTH_ENDS, End, LostText, SpokenText
from omniges.codecs.text_vae.weights import TextCodec
from omniges.features.timebase import TICKS_PER_SECOND
from omniges.shards.latents import WORDS_MEMBER, WindowEntry
from omniges.shards.schema import WindowGrid


def window_words(words: Sequence[Mapping[str, Any]], ticks: int, windows: Iterable[tuple[int, int]]) -> list[list[str]]:
    """`said_in_windows` without times."""
    return [[word["word"] for word in said] for said in said_in_windows(words, ticks, windows)]


def said_in_windows(
    words: Sequence[Mapping[str, Any]], ticks: int, windows: Iterable[tuple[int, int]]
) -> list[list[Mapping[str, Any]]]:
    """The words of each window, (first tick, ticks), of a clip of some ticks, in the order they were given.

    A word (``word``, ``start`` and ``end`` in seconds) is a window's where its middle lies in it, so of windows that
    touch, each word is in exactly one. A middle at the very end of the clip is in its last tick.
    """
    middles = [min(floor((word["start"] + word["end"]) * TICKS_PER_SECOND / 2), ticks - 1) for word in words]
    return [
        [word for word, middle in zip(words, middles, strict=True) if first <= middle < first + count]
        for first, count in windows
    ]


F32 = npt.NDArray[np.float32]

NAME: Final = "omniflow-text-vae"
DEFAULT_GRID: Final = WindowGrid(64, 16)
"""Windows of 6.4 s, every 1.6 s."""
_BATCH: Final = 32
"""Texts that are encoded or decoded together."""


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
        return [" ".join(spoken) for spoken in window_words(words, ticks, windows)]

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


def load_text_windows(
    folder: Path, device: torch.device, t5_tokenizer: Path | None = None, ends: frozenset[End] = BOTH_ENDS
) -> TextWindows:
    """The codec of a checkpoint of OmniFlow or of its text VAE's own folder; raises as `TextCodec.load` does.

    ``t5_tokenizer``: the folder of T5's tokenizer where it is not in there. ``ends``: what it is loaded for.
    """
    codec = TextCodec.load(folder, t5_tokenizer, ends)
    codec.vae.to(device)
    return TextWindows(codec)
