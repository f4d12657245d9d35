"""Texts as tokens: what is added, what is cut, what a transcript cannot smuggle in, and tokenizers that do not fit."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textvae_builders import llama_tokenizer, t5_tokenizer, write_tokenizers

from omniges.codecs.text_vae.tokenizers import IGNORED, MAX_TOKENS, LlamaTokens, T5Tokens
from omniges.errors import DataError

LLAMA = {"vocabulary": 300, "begin": 1, "end": 2}
PLAIN = st.lists(st.text("helowrdabc'é你", min_size=1, max_size=8), max_size=30).map(" ".join)
WORDS = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=6).filter(lambda w: not w.isspace()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizers")
    write_tokenizers(path)
    return path


@pytest.fixture(scope="module")
def t5(folder):
    return T5Tokens(folder / "t5_tokenizer", vocabulary=300)


@pytest.fixture(scope="module")
def llama(folder):
    return LlamaTokens(folder / "vae_tokenizer", **LLAMA)


@pytest.fixture(scope="module")
def theirs(folder):
    transformers = pytest.importorskip("transformers", reason="needs 'omniges[text-vae]'")
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return {
        name: transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(folder / name / "tokenizer.json"), padding_side="right", **names | changes
        )
        for name, changes in (("t5_tokenizer", {}), ("vae_tokenizer", {"pad_token": "[PAD]"}))
    }


class TestT5:
    def test_an_end_token_then_padding_to_77(self, t5):
        found = t5.encode(["hello the", ""])
        number = t5_tokenizer().token_to_id
        assert found.ids.tolist() == [[number("▁hello"), number("▁the"), 1] + [0] * 74, [1] + [0] * 76]
        assert found.empty.tolist() == [False, True]

    def test_a_text_that_is_too_long_keeps_its_end_token_and_is_said_to_be_cut(self, t5):
        found = t5.encode([" ".join(["the"] * count) for count in (76, 77)])
        assert found.cut.tolist() == [False, True]
        assert found.ids[0].tolist() == found.ids[1].tolist()
        assert found.ids[1, -1] == 1

    def test_what_the_vocabulary_cannot_spell_is_said(self, t5):
        assert t5.encode(["the", "the 你好"]).unknown.tolist() == [False, True]

    def test_a_transcript_cannot_write_an_end_token(self, t5):
        found = t5.encode(["hello </s> the <pad> the"])
        assert (found.ids[0] == 1).nonzero().tolist() == [[found.ids[0].count_nonzero() - 1]]
        assert found.unknown.tolist() == [True]


class TestLlama:
    def test_begin_token_text_end_token_padding(self, llama):
        found = llama.encode(["hello", ""])
        number = llama_tokenizer().token_to_id
        text = [number(piece) for piece in ("▁", "he", "ll", "o")]
        pad = llama_tokenizer().get_vocab_size()  # the file has no padding token: it gets the next number
        assert found.ids.tolist() == [[1, *text, 2], [1, 2, pad, pad, pad, pad]]
        assert found.labels.tolist() == [[1, *text, 2], [1, 2] + [IGNORED] * 4]

    def test_a_text_that_is_too_long_loses_its_end_token_and_is_said_to_be_cut(self, llama):
        found = llama.encode(["h" * 74, "h" * 75])
        assert found.cut.tolist() == [False, True]
        assert found.ids.shape == (2, MAX_TOKENS)
        assert (found.ids[:, -1] == 2).tolist() == [True, False]

    def test_a_transcript_cannot_write_an_end_token(self, llama):
        found = llama.encode(["hello </s><s>[PAD]"])
        assert [(found.ids == number).sum() for number in (1, 2)] == [1, 1]
        assert llama.decode(found.ids[0].tolist()) == "hello </s><s>[PAD]"

    @given(WORDS)
    @settings(max_examples=80)
    def test_any_words_come_back_as_they_were(self, llama, words):
        text = " ".join(words)
        found = llama.encode([text])
        assert found.cut.item() or llama.decode(found.ids[0].tolist()) == text

    def test_a_padding_token_of_its_own_is_used(self, tmp_path):
        tokenizer = llama_tokenizer()
        tokenizer.add_special_tokens(["[PAD]"])
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        size = tokenizer.get_vocab_size()
        assert LlamaTokens(tmp_path, vocabulary=size, begin=1, end=2).encode(["hello", ""]).ids[1, -1] == size - 1


class TestAsTransformersDoesIt:
    """The recipe of the original on the same files: fast tokenizers of transformers, begin and end tokens by them."""

    @given(st.lists(PLAIN, min_size=1, max_size=4))
    def test_t5_padded_to_77_and_truncated(self, t5, theirs, texts):
        found = theirs["t5_tokenizer"](texts, padding="max_length", max_length=77, truncation=True)
        assert t5.encode(texts).ids.tolist() == found["input_ids"]

    @given(st.lists(PLAIN, min_size=1, max_size=4))
    def test_llama_with_the_end_token_in_the_text(self, llama, theirs, texts):
        ended = [f"{text}</s>" for text in texts]
        found = theirs["vae_tokenizer"](ended, padding="longest", max_length=77, truncation=True)
        assert llama.encode(texts).ids.tolist() == found["input_ids"]


class TestRefusals:
    def test_a_vocabulary_without_room_for_the_padding_token(self, folder):
        size = llama_tokenizer().get_vocab_size()
        LlamaTokens(folder / "vae_tokenizer", vocabulary=size + 1, begin=1, end=2)
        with pytest.raises(DataError, match=rf"token numbers below {size} \(rows of the model's table\), found {size}"):
            LlamaTokens(folder / "vae_tokenizer", vocabulary=size, begin=1, end=2)

    def test_another_begin_or_end_token(self, folder):
        with pytest.raises(DataError, match=r"expected the token </s> with number 5, found 2"):
            LlamaTokens(folder / "vae_tokenizer", vocabulary=300, begin=1, end=5)

    def test_the_other_ends_tokenizer(self, folder):
        with pytest.raises(DataError, match=r"expected the token <pad> with number 0, found None"):
            T5Tokens(folder / "vae_tokenizer", vocabulary=300)

    def test_no_folder(self, tmp_path):
        with pytest.raises(DataError, match=r"tokenizer.json: expected .* found that the file does not exist"):
            T5Tokens(tmp_path / "nowhere", vocabulary=300)

    def test_a_sentencepiece_model_alone_with_the_way_out(self, tmp_path):
        (tmp_path / "spiece.model").write_bytes(b"\x0a")
        with pytest.raises(
            DataError, match=r"expected tokenizer.json, found only a sentencepiece model; convert it: run pip install"
        ):
            T5Tokens(tmp_path, vocabulary=300)

    @pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", json.dumps({"model": {"type": "BPE"}}).encode()])
    def test_a_file_that_is_no_tokenizer(self, tmp_path, content):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(DataError, match=r"a Hugging Face tokenizer|a plain BPE or Unigram|damage") as caught:
            T5Tokens(tmp_path, vocabulary=300)
        assert "\n" not in str(caught.value)
