"""The tokenizer is lossless for every string, gives whole words, and follows from the counts alone."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from omniges.shards.dataset import train_tokenizer

WORDS = {"hello": 5, "world": 2, "once": 1, "你好": 3, "안녕": 2, "مرحبا": 2, "שלום": 4, "😀": 2, "naïve": 2, "a": 9}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(train_tokenizer(WORDS).decode())


class TestTokenizer:
    @settings(max_examples=300)
    @given(text=st.text(st.characters(exclude_categories=["Cs"])))
    def test_decode_undoes_encode_for_every_unicode_string(self, tokenizer: Tokenizer, text: str) -> None:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text

    def test_words_seen_twice_are_one_piece(self, tokenizer: Tokenizer) -> None:
        pieces = {word: len(tokenizer.encode(word).ids) for word in WORDS}
        assert {word for word, count in pieces.items() if count == 1} == {w for w, n in WORDS.items() if n > 1}

    def test_without_words_the_vocabulary_is_the_256_bytes(self) -> None:
        empty = Tokenizer.from_str(train_tokenizer({}).decode())
        assert empty.get_vocab_size() == 256
        assert empty.decode(empty.encode("日本語 text").ids) == "日本語 text"

    def test_bytes_depend_on_neither_order_nor_process(self) -> None:
        expected = hashlib.sha256(train_tokenizer(WORDS)).hexdigest()
        assert hashlib.sha256(train_tokenizer(dict(reversed(WORDS.items())))).hexdigest() == expected
        script = (
            "import hashlib, json, sys\nfrom omniges.shards.dataset import train_tokenizer\n"
            "print(hashlib.sha256(train_tokenizer(json.load(sys.stdin))).hexdigest())"
        )
        for seed in ("0", "1"):
            run = subprocess.run(
                [sys.executable, "-c", script],
                input=json.dumps(WORDS), text=True, capture_output=True, check=True,
                env=os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": seed},
            )  # fmt: skip
            assert run.stdout.strip() == expected
