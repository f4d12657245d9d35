"""The subword tokenizer that lies beside the shards, learned from the words of the train split.

Byte-level byte-pair encoding: all 256 bytes are in the vocabulary by force, so every Unicode string survives
(decode(encode(s)) = s), whatever the words were that it was learned from. Every word that occurs at least twice is
one whole piece, because merging goes on until no pair of pieces occurs twice.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

MIN_FREQUENCY: Final = 2


def train_tokenizer(words: Mapping[str, int]) -> bytes:
    """Learn the tokenizer from words and how often each occurs; returns the bytes of tokenizer.json.

    The bytes follow from the counts alone, not from their order. Without words the vocabulary is the 256 bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415 - native, 70 ms

    # One thread: the trainer's result must not depend on how its counting was split.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        # Each merge joins two pieces inside some word, so there can be no more pieces than this.
        vocab_size=256 + sum(len(word.encode()) for word in words),
        min_frequency=MIN_FREQUENCY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator(([word] * count for word, count in sorted(words.items())), trainer)
    document: str = tokenizer.to_str(pretty=True)
    return document.encode() + b"\n"
