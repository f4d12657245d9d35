"""A tokenizer.json cannot hang, end or exhaust the process: the native library gets plain components alone."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import numpy as np
import pytest
from textvae_builders import llama_tokenizer, t5_tokenizer
from tokenizers.normalizers import Precompiled

from omniges.codecs.text_vae.tokenizers import require_plain_tokenizer
from omniges.errors import DataError

PLAIN = {"String": "l"}
LONG = {"type": "Replace", "pattern": PLAIN, "content": "l" * 1000}
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}


def table(texts: bytes = b"b\0") -> bytes:
    """Sentencepiece's table that replaces a by b: unit 0 leads to 256, letter a to unit 353, its leaf is unit 352."""
    units = np.zeros(512, "<u4")
    units[0] = 256 << 10
    units[256 ^ ord("a")] = ord("a") | 1 << 8 | 1 << 10
    return (units.nbytes).to_bytes(4, "little") + units.tobytes() + texts


def precompiled(data: bytes) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


def check(name: str, **changes: Any) -> None:
    tokenizer = {"llama": llama_tokenizer, "t5": t5_tokenizer}[name]()
    found = json.loads(tokenizer.to_str())
    for key, value in changes.items():
        part, _, inner = key.partition("__")
        if inner:
            found[part][inner] = value
        else:
            found[part] = value
    require_plain_tokenizer(found, "tokenizer.json")


def test_the_builders_table_is_one_of_the_librarys() -> None:
    assert Precompiled(table()).normalize_str("banana") == "bbnbnb"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normalizer": None, "pre_tokenizer": None, "decoder": None},
        {"normalizer": precompiled(table())},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}},
        {"normalizer": {"type": "Strip", "strip_left": False, "strip_right": True}},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}},
    ],
)
def test_components_of_published_tokenizers_are_taken(changes: dict[str, Any]) -> None:
    check("llama", **changes)
    check("t5", **changes)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"normalizer": {"type": "Sequence", "normalizers": [LONG] * 3}}),  # 10^9 letters of three
        ("llama", {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 99}}),
        ("llama", {"normalizer": {"type": "Replace", "pattern": {"Regex": "(a+)+\\d"}, "content": ""}}),
        ("llama", {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}}),
        ("llama", {"normalizer": {"type": "Prepend", "prepend": "x" * 1000}}),
        ("llama", {"pre_tokenizer": {**SPLIT, "pattern": {"Regex": "(a|aa)+b"}}}),
        ("llama", {"pre_tokenizer": {"type": "FixedLength", "length": 0}}),
        ("llama", {"decoder": {"type": "Strip", "content": " ", "start": 1 << 40, "stop": 0}}),
        ("llama", {"decoder": {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True}}),
        ("llama", {"model__dropout": 0.5}),
        ("llama", {"model__continuing_subword_prefix": "zz"}),
        ("llama", {"model__type": "WordPiece"}),
        ("llama", {"model": None}),
        ("llama", {"added_tokens": [{"content": ""}]}),
        ("llama", {"added_tokens": {}}),
        ("t5", {"model__unk_id": None}),
        ("t5", {"model__vocab": [["a", 1e308]]}),
        ("t5", {"model__vocab": [["a"]]}),
        ("t5", {"normalizer": precompiled(b"")}),
        ("t5", {"normalizer": precompiled(b"\xff" * 8)}),
        ("t5", {"normalizer": {"type": "Precompiled", "precompiled_charsmap": 3}}),
        ("t5", {"normalizer": precompiled(table(b"\xff\0"))}),
        ("t5", {"normalizer": 3}),
        ("t5", {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": []}]}}),
    ],
)
def test_other_components_are_refused_in_one_line(name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"^tokenizer.json: expected .*") as caught:
        check(name, **changes)
    assert str(caught.value).isprintable()


def test_a_table_that_is_taken_never_leads_the_library_out_of_itself(capfd: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(0)
    text = "".join(map(chr, [*range(1, 256), *range(0x4E00, 0x4F00)]))
    taken = 0
    places = [*range(8), *range(4 + 352 * 4, 4 + 354 * 4)]
    for _ in range(500):
        data = bytearray(table("é\0b\0".encode()))
        for place in rng.sample(places, rng.choice([1, 2, 4])):
            data[place] = rng.randrange(256)
        try:
            check("t5", normalizer=precompiled(bytes(data)))
        except DataError:
            continue
        taken += 1
        Precompiled(bytes(data)).normalize_str(text)  # would panic
    assert 50 < taken < 450
    assert "panicked" not in capfd.readouterr().err
