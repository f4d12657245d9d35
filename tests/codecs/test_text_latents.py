"""Latents of text in shards: a row for each window of the grid, losses counted, all levels of verification."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_helpers import digests, omniges, run_preprocess
from text_latents_builders import NAME, STRIDE, WINDOW, encoded_shards
from vae_builders import write_vae
from verify_builders import ShardSet, codes, edited_dataset, rebuilt
from verify_builders import run as verified

from omniges.codecs.encode import encode
from omniges.codecs.settings import EncodeSettings
from omniges.codecs.text_vae.codec import TextCodec, TextWindows
from omniges.errors import DataError, UsageFault
from omniges.shards.reader import ShardFolder
from omniges.shards.schema import DATASET_FILE
from omniges.testing.settings import CorpusSettings
from omniges.testing.synthetic_corpus import write_sample_corpus

MEMBER = f"{NAME}.npy"


def text_of(words: list[dict[str, Any]], start: int, window: int) -> str:
    """The rule of docs/explanation/codecs-text.md: the words whose middle is in the window."""
    return " ".join(w["word"] for w in words if start <= (w["start"] + w["end"]) * 5 < start + window)


class TestOutput:
    def test_is_a_sound_folder_at_every_level(self, encoded_text: Path) -> None:
        for level in ("quick", "full", "deep"):
            assert verified(encoded_text, level).findings == ()

    def test_a_row_is_the_latents_of_its_windows_text(self, encoded_text: Path, text_vae: Path) -> None:
        text_codec = TextCodec.load(text_vae)
        folder = ShardFolder(encoded_text)
        seen = set()
        for row in folder.rows:
            latents = folder.array(row, MEMBER)
            starts = range(0, row.ticks - WINDOW + 1, STRIDE)
            assert latents.shape == (len(starts), 3 * 10)
            assert latents.dtype == np.float32
            for start, found in zip(starts, latents, strict=True):
                text = text_of(folder.words(row), start, WINDOW)
                alone = text_codec.encode([text]).latents[0].reshape(-1).numpy()
                np.testing.assert_allclose(found, alone, atol=1e-5)
                seen.add(text)
        assert len(seen) > 10

    def test_encoding_keeps_no_llama_in_memory(
        self, shards: Path, text_vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kept: list[Any] = []
        encode_texts = TextWindows.encode_texts

        def watched(windows: TextWindows, texts: Any) -> Any:
            kept.append(windows._codec.vae)
            return encode_texts(windows, texts)

        monkeypatch.setattr(TextWindows, "encode_texts", watched)
        encoded_shards(shards, text_vae, tmp_path / "s")
        whole = TextCodec.load(text_vae)
        assert {vae.fingerprint for vae in kept} == {whole.vae.fingerprint}
        names = {name for vae in kept for name, _ in vae.named_parameters()}
        llama = {name for name, _ in whole.vae.named_parameters() if name.startswith(("model.", "lm_head.", "input_"))}
        assert names == {name for name, _ in whole.vae.named_parameters()} - llama

    def test_statistics_are_of_each_number_over_all_latents_of_the_train_split(self, encoded_text: Path) -> None:
        folder = ShardFolder(encoded_text)
        train = [folder.array(row, MEMBER) for row in folder.rows if row.split == "train"]
        rows = np.concatenate(train).astype(np.float64).reshape(-1, 10)
        found = json.loads((encoded_text / "latents.json").read_bytes())[NAME]
        assert (found["samples"], found["rows"]) == (len(train), len(rows))
        np.testing.assert_allclose(found["mean"], rows.mean(0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found["std"], rows.std(0), rtol=1e-9)

    def test_the_entry_says_windows_rule_and_losses(self, encoded_text: Path, text_vae: Path) -> None:
        found = json.loads((encoded_text / DATASET_FILE).read_bytes())["codecs"][NAME]
        assert found["fingerprint"] == TextCodec.load(text_vae).fingerprint
        counts = {
            name: found[name] for name in ("source", "window_ticks", "stride_ticks", "latents", "channels", "words")
        }
        assert counts == {
            "source": "words.json",
            "window_ticks": WINDOW,
            "stride_ticks": STRIDE,
            "latents": 3,
            "channels": 10,
            "words": "middle",
        }
        folder = ShardFolder(encoded_text)
        windows = sum(len(folder.array(row, MEMBER)) for row in folder.rows)
        assert found["lost"] == {"windows": windows, "cut": 0, "unknown": 0}
        assert found["settings"]["tool"].keys() == {"torch", "transformers", "tokenizers", "device"}

    def test_inspect_says_them(self, encoded_text: Path) -> None:
        shown = omniges("inspect", encoded_text).stdout
        assert f"{NAME}, 3 × 10 for each 1.6 s, every 0.4 s" in shown

    def test_with_other_codecs_in_one_go_and_one_after_the_other(
        self, shards: Path, text_vae: Path, encoded_text: Path, tmp_path: Path
    ) -> None:
        write_vae(tmp_path / "vae")
        audio = ("audioldm2-vae", tmp_path / "vae")
        encoded_shards(shards, text_vae, tmp_path / "one", codecs=(audio, (NAME, text_vae)))
        encode(EncodeSettings(shards=encoded_text, codecs=(audio,), output_dir=tmp_path / "two"))
        assert digests(tmp_path / "one") == digests(tmp_path / "two")
        assert verified(tmp_path / "two", "deep").findings == ()

    def test_again_it_does_nothing_and_another_grid_is_distinguished(
        self, encoded_text: Path, text_vae: Path, tmp_path: Path
    ) -> None:
        folder = Path(shutil.copytree(encoded_text, tmp_path / "s"))
        before = digests(folder)
        assert encoded_shards(folder, text_vae).there == (NAME,)
        with pytest.raises(
            UsageFault, match=r"3 × 10 for each 1.6 s, every 0.8 s, found 3 × 10 for each 1.6 s, every 0.4 s"
        ):
            encoded_shards(folder, text_vae, stride_ticks=8)
        assert digests(folder) == before
        encoded_shards(folder, text_vae, stride_ticks=8, overwrite=True)
        assert verified(folder, "deep").findings == ()
        assert ShardFolder(folder).codecs[NAME].described.endswith("every 0.8 s")

    def test_clips_without_a_window_have_no_rows(self, text_vae: Path, tmp_path: Path) -> None:
        write_sample_corpus(tmp_path / "c", CorpusSettings(clips=5, seconds=2.0, words=2, speakers=1))
        run_preprocess(tmp_path / "c", tmp_path / "s")
        with pytest.raises(DataError, match=r"expected a clip of at least 24 ticks \(one window\), found at most 20"):
            encoded_shards(tmp_path / "s", text_vae, window_ticks=24)
        summary = encoded_shards(tmp_path / "s", text_vae)
        assert "of 10 windows, 0 have more text" in "\n".join(summary.lines)


@pytest.mark.slow
def test_stopped_it_goes_on_to_the_same_bytes(
    corpus: Path, text_vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_preprocess(corpus, tmp_path / "s", shard_bytes=1)
    encoded_shards(tmp_path / "s", text_vae, tmp_path / "whole")
    encode_clip, calls = TextWindows.encode, iter(range(10))

    def stops(windows: TextWindows, words: Any, ticks: int) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return encode_clip(windows, words, ticks)

    with monkeypatch.context() as patch:
        patch.setattr(TextWindows, "encode", stops)
        with pytest.raises(KeyboardInterrupt):
            encoded_shards(tmp_path / "s", text_vae, tmp_path / "out")
    assert encoded_shards(tmp_path / "s", text_vae, tmp_path / "out").resumed == 3
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


class TestEncoding:
    def test_each_different_text_of_a_clip_once_and_nothing_once_in_all(
        self, text_vae: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text_codec = TextCodec.load(text_vae)
        asked: list[str] = []
        encode_texts = text_codec.encode

        def watched(texts: Any) -> Any:
            asked.extend(texts)
            return encode_texts(texts)

        monkeypatch.setattr(text_codec, "encode", watched)
        windows = TextWindows(text_codec)
        found = windows.encode_texts(["hello", "", "the end", "hello", ""])
        windows.encode_texts(["", "the end"])
        assert sorted(asked) == ["", "hello", "the end", "the end"]
        assert found.shape == (5, 30)
        np.testing.assert_array_equal(found[0], found[3])
        np.testing.assert_array_equal(found[1], found[4])
        assert windows.encode_texts([]).shape == (0, 30)

    def test_many_texts_are_what_each_is_alone(self, text_vae: Path) -> None:
        windows = TextWindows(TextCodec.load(text_vae))
        texts = [" ".join(["hello"] * k) for k in range(40)]
        alone = np.concatenate([windows.encode_texts([text]) for text in texts])
        np.testing.assert_allclose(windows.encode_texts(texts), alone, atol=1e-5)

    @pytest.mark.slow
    def test_decoded_rows_are_the_codecs_texts(self, text_vae: Path) -> None:
        text_codec = TextCodec.load(text_vae)
        windows = TextWindows(text_codec)
        rows = windows.encode_texts(["hello world", "the"])
        wanted = text_codec.decode(torch.from_numpy(rows).reshape(2, 3, 10))
        assert windows.decode(rows) == wanted


def spoken(folder: Path, words: list[str]) -> Path:
    """A corpus of one speaker whose words are these, over and over."""
    write_sample_corpus(folder, CorpusSettings(clips=5, seconds=4.0, words=2, speakers=1))
    for grid in folder.rglob("*.TextGrid"):
        lines = grid.read_text("utf-8").splitlines(keepends=True)
        turn = 0
        for number, line in enumerate(lines):
            if line.strip().startswith("text = ") and line.strip() != 'text = ""':
                lines[number] = f'            text = "{words[turn % len(words)]}" \n'
                turn += 1
        grid.write_text("".join(lines), "utf-8")
    run_preprocess(folder, folder / "shards")
    return folder / "shards"


class TestLosses:
    def test_windows_that_lose_words_are_counted_stored_and_said(self, text_vae: Path, tmp_path: Path) -> None:
        shards = spoken(tmp_path, ["hello", "there"] * 20 + ["世界"])
        summary = encoded_shards(shards, text_vae, max_lost=1.0)
        folder = ShardFolder(shards)
        windows = [
            text_of(folder.words(row), start, WINDOW)
            for row in folder.rows
            for start in range(0, row.ticks - WINDOW + 1, STRIDE)
        ]
        lost = {"windows": len(windows), "cut": 0, "unknown": sum("世界" in text for text in windows)}
        assert folder.dataset["codecs"][NAME]["lost"] == lost
        assert any(f"{lost['unknown']} have letters that it cannot spell" in line for line in summary.lines)
        assert verified(shards, "deep").findings == ()

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("words", "said"),
        [(["世界"], r"letters that it cannot spell"), (["h" * 90], r"\d+ have more text than the codec reads")],
    )
    def test_too_many_are_refused_before_anything_is_encoded(
        self, text_vae: Path, tmp_path: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def never(*_: object) -> None:
            raise AssertionError("a text was encoded")

        monkeypatch.setattr(TextCodec, "encode", never)
        shards = spoken(tmp_path, words)
        before = digests(shards)
        with pytest.raises(DataError, match=rf"at most 0.01 of the windows \(--max-lost\), .*{said}"):
            encoded_shards(shards, text_vae)
        assert digests(shards) == before
        with pytest.raises(DataError, match=r"at most 0.01 of the windows \(--max-lost\)"):
            encoded_shards(shards, text_vae, tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestVerify:
    @pytest.mark.parametrize(
        ("change", "code"),
        [
            (lambda x: x[:-1], "array-shape"),
            (lambda x: x.reshape(-1, 10), "array-shape"),
            (lambda x: x + np.float32(1), "latents-differ"),
            (lambda x: np.where(np.arange(30) == 5, np.nan, x).astype(np.float32), "array-not-finite"),
        ],
    )
    def test_deep_finds_what_latents_cannot_be(
        self, encoded_text: Path, tmp_path: Path, change: Callable[[Any], Any], code: str
    ) -> None:
        def fault(shards: ShardSet) -> None:
            sample = next(s for s in shards.samples if s.row.split == "train")
            stream = io.BytesIO()
            found = np.load(io.BytesIO(sample.others[MEMBER]), allow_pickle=False)
            np.lib.format.write_array(stream, change(found), (1, 0), allow_pickle=False)
            sample.raw[MEMBER] = stream.getvalue()

        assert codes(verified(rebuilt(encoded_text, tmp_path / "s", fault), "deep")) == {code}

    @pytest.mark.parametrize(
        "edit",
        [
            lambda e: e.update(stride_ticks=5),
            lambda e: e.update(window_ticks=0),
            lambda e: e.update(latents=True),
            lambda e: e.update(words="start"),
            lambda e: e.update(source="mel.npy"),
            lambda e: e["lost"].update(cut=10_000),
            lambda e: e["lost"].pop("unknown"),
            lambda e: e.pop("words"),
            lambda e: e.update(frames_per_row=4),
        ],
    )
    def test_entries_in_another_form_are_found(
        self, encoded_text: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], Any]
    ) -> None:
        folder = Path(shutil.copytree(encoded_text, tmp_path / "s"))
        (folder / DATASET_FILE).write_bytes(edited_dataset(folder, lambda d: edit(d["codecs"][NAME])))
        assert "dataset-malformed" in codes(verified(folder))


class TestCommand:
    def test_flags_and_the_tokenizer_in_a_folder_of_its_own(self, shards: Path, text_vae: Path, tmp_path: Path) -> None:
        apart = Path(shutil.copytree(text_vae, tmp_path / "vae"))
        (apart / "t5_tokenizer").rename(tmp_path / "t5")
        words = ["encode", "--shards", shards, "--with", f"{NAME}={apart}", "--out", tmp_path / "out"]
        words += ["--window-ticks", "16", "--stride-ticks", "4"]
        lost = omniges(*words)
        assert (lost.returncode, lost.stderr.count("\n")) == (1, 1)
        assert "t5_tokenizer" in lost.stderr
        done = omniges(*words, "--t5-tokenizer", tmp_path / "t5")
        assert done.returncode == 0, done.stderr
        assert f"{NAME}: of 42 windows, 0 have more text than the codec reads" in done.stdout

    def test_flags_of_text_without_a_codec_of_text(self, shards: Path, tmp_path: Path) -> None:
        write_vae(tmp_path / "vae")
        settings = EncodeSettings(shards=shards, codecs=(("audioldm2-vae", tmp_path / "vae"),), stride_ticks=4)
        with pytest.raises(UsageFault, match="--stride-ticks: expected a text codec"):
            encode(settings)

    @pytest.mark.parametrize("flag", ["window_ticks", "stride_ticks"])
    def test_no_ticks_are_refused_by_the_flag(self, shards: Path, text_vae: Path, flag: str) -> None:
        with pytest.raises(UsageFault, match=f"^{flag} 0: expected a whole number of at least 1"):
            encoded_shards(shards, text_vae, **{flag: 0})

    def test_a_tokenizers_folder_that_is_not_there_is_refused_by_the_flag(
        self, shards: Path, text_vae: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(UsageFault, match=r"--t5-tokenizer .*nowhere: expected a folder with T5's tokenizer.json"):
            encoded_shards(shards, text_vae, t5_tokenizer=tmp_path / "nowhere")

    def test_a_stride_that_does_not_divide_and_the_one_that_is_taken(self, shards: Path, text_vae: Path) -> None:
        with pytest.raises(UsageFault, match="a stride that divides the window"):
            encoded_shards(shards, text_vae, stride_ticks=5)
        settings = EncodeSettings(shards=shards, codecs=((NAME, text_vae),), window_ticks=14)
        grid = TextWindows(TextCodec.load(text_vae)).grid
        assert (grid.window_ticks, grid.stride_ticks) == (64, 16)
        assert settings.grid(grid).stride_ticks == 2
