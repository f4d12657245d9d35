"""Generation and evaluation with text as latents: texts of windows, as conditions and generated, without times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_helpers import omniges
from text_latents_builders import NAME, write_text_vae
from training_helpers import SMALLEST, run

from omniges.codecs.base import BOTH_ENDS, LostText, SpokenText
from omniges.codecs.text_vae.codec import TextCodec, TextWindows
from omniges.errors import DataError, RecordingFault, UsageFault
from omniges.evaluation.run import evaluate
from omniges.evaluation.settings import EvaluateSettings
from omniges.formats.textgrid import WordInterval, decode_words, encode_tiers
from omniges.generation.pipeline import OmnigesPipeline
from omniges.generation.records import read_record
from omniges.generation.run import generate
from omniges.generation.settings import GenerateSettings, Sources
from omniges.generation.writers import WindowTextSink
from omniges.model.tasks import TASKS, SamplingSettings
from omniges.shards.reader import ShardFolder

STEM = "1_synthetica_0_1_1"
SHARES = {"shares": dict.fromkeys(TASKS, 1)}


@pytest.fixture(scope="module")
def trained(encoded_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    run(encoded_text, folder, text_codec=NAME, max_train_steps=2, flow=SHARES)
    return folder


@pytest.fixture(scope="module")
def files(corpus: Path) -> dict[str, Any]:
    """The files of one recording, by what they are given as."""
    found = {ending: next(corpus.rglob(f"{STEM}.{ending}")) for ending in ("wav", "npz", "TextGrid")}
    return {"audio": (found["wav"],), "text": (str(found["TextGrid"]),), "gesture": (found["npz"],)}


def make(checkpoint: Path, out: Path, task: str, text_vae: Path | None, **changes: Any) -> Path:
    own = {name: changes.pop(name) for name in ("overlap_ticks", "num_samples", "png") if name in changes}
    codecs = () if text_vae is None else ((NAME, text_vae),)
    sampling, sources = SamplingSettings(num_inference_steps=2), Sources(**changes)
    settings = GenerateSettings(
        checkpoint=checkpoint, task=task, output_dir=out, codecs=codecs, sources=sources, sampling=sampling, **own
    )
    generate(settings)
    return out


class Asked:
    """The texts that the codec was asked for, and what it decodes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, said: str = "what it says", *, ended: bool = True) -> None:
        self.texts: list[list[str]] = []
        self.rows: list[Any] = []
        encode = TextWindows.encode_texts

        def watched(windows: TextWindows, texts: Any) -> Any:
            self.texts.append(list(texts))
            return encode(windows, texts)

        def decode(_: TextWindows, latents: Any) -> list[SpokenText]:
            self.rows.append(latents)
            return [SpokenText(f"{said} {k}", ended) for k in range(len(latents))]

        monkeypatch.setattr(TextWindows, "encode_texts", watched)
        monkeypatch.setattr(TextWindows, "decode", decode)


def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the list of directions for which text VAEs are loaded from now on."""
    found: list[Any] = []
    load = TextCodec.load.__func__  # type: ignore[attr-defined]

    def watched(cls: type[TextCodec], folder: Path, t5_tokenizer: Path | None = None, ends: Any = BOTH_ENDS) -> Any:
        found.append(set(ends))
        return load(cls, folder, t5_tokenizer, ends)

    monkeypatch.setattr(TextCodec, "load", classmethod(watched))
    return found


class TestTasks:
    @pytest.mark.slow
    @pytest.mark.parametrize("task", [name for name in TASKS if name != "joint"])
    def test_every_task_from_files_to_files(
        self, trained: Path, text_vae: Path, files: dict[str, Any], tmp_path: Path, task: str
    ) -> None:
        given = {name: files[name] for name in TASKS[task].conditions}
        for folder in ("out", "again"):
            make(trained, tmp_path / folder, task, text_vae, **given)
        record = read_record(tmp_path / "out" / f"{STEM}.json")
        assert record.ticks == 40
        for path in (tmp_path / "out").iterdir():
            assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
        endings = {path.suffix for path in (tmp_path / "out").iterdir()}
        assert {"gesture": ".npz", "audio": ".wav", "text": ".TextGrid"}[TASKS[task].targets[0]] in endings

    def test_generated_text_is_one_interval_a_window_and_no_tier_of_words(
        self, trained: Path, text_vae: Path, files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = Asked(monkeypatch)
        make(trained, tmp_path, "a2t", text_vae, audio=files["audio"])
        data = (tmp_path / f"{STEM}.TextGrid").read_bytes()
        windows = decode_words(data, "windows")
        # 40 ticks are a window of 16, and what is left in two of 12: none is shorter than half a window
        spans = [(0.0, 1.6), (1.6, 2.8), (2.8, 4.0)]
        assert windows.words == tuple(WordInterval(f"what it says {k}", a, b) for k, (a, b) in enumerate(spans))
        with pytest.raises(RecordingFault, match="textgrid-no-word-tier"):
            decode_words(data)
        assert (tmp_path / f"{STEM}.txt").read_text() == "what it says 0 what it says 1 what it says 2\n"
        record = read_record(tmp_path / f"{STEM}.json")
        assert record.seams_s == (1.6, 2.8)
        assert record.settings["overlap_ticks"] == 0
        assert any("the words have no times" in warning for warning in record.remarks)
        assert [rows.shape for rows in asked.rows] == [(3, 30)]

    def test_windows_of_text_are_distinguished_by_their_noise(
        self, trained: Path, text_vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = Asked(monkeypatch)
        make(trained, tmp_path, "unconditional", text_vae, seconds=6.4, num_samples=2)
        rows = np.concatenate(asked.rows)
        assert rows.shape == (8, 30)
        assert len(np.unique(rows.round(3), axis=0)) == 8

    def test_given_text_is_encoded_for_each_window_that_is_used(
        self, trained: Path, text_vae: Path, encoded_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = Asked(monkeypatch)
        folder = ShardFolder(encoded_text)
        row = folder.rows[0]
        make(trained, tmp_path / "a", "t2g", text_vae, shards=encoded_text, keys=(row.key,))
        make(trained, tmp_path / "b", "t2g", text_vae, shards=encoded_text, keys=(row.key,), overlap_ticks=7)
        for texts, starts in zip(asked.texts, ([0, 12, 24], [0, 9, 18, 24]), strict=True):
            words = folder.words(row)
            wanted = [[w["word"] for w in words if s <= (w["start"] + w["end"]) * 5 < s + 16] for s in starts]
            assert texts == [" ".join(said) for said in wanted]

    def test_a_window_of_shards_is_given_the_latents_that_training_saw(
        self, text_vae: Path, encoded_text: Path
    ) -> None:
        from omniges.codecs.registry import load_codec

        windows = load_codec(NAME, text_vae)
        folder = ShardFolder(encoded_text)
        for row in folder.rows[:3]:
            spans = [(start, 16) for start in range(0, row.ticks - 15, 4)]
            found = windows.encode_texts(windows.texts(folder.words(row), row.ticks, spans))  # type: ignore[union-attr]
            np.testing.assert_allclose(found, folder.array(row, f"{NAME}.npy"), atol=1e-5)

    def test_what_given_text_loses_is_said(
        self, trained: Path, text_vae: Path, files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(TextWindows, "lost", lambda _, texts: [LostText(cut=True, unknown=False) for _ in texts])
        make(trained, tmp_path, "t2a", text_vae, text=files["text"])
        warnings = read_record(tmp_path / f"{STEM}.json").remarks
        assert "3 of 3 windows of text were cut: they are longer than omniflow-text-vae can read" in warnings

    def test_an_input_shorter_than_a_window_is_one_window(
        self, trained: Path, text_vae: Path, files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Asked(monkeypatch)
        make(trained, tmp_path, "a2t", text_vae, audio=files["audio"], seconds=0.7)
        (window,) = decode_words((tmp_path / f"{STEM}.TextGrid").read_bytes(), "windows").words
        assert (window.start, window.end) == (0.0, 0.7)

    def test_pictures(self, trained: Path, text_vae: Path, encoded_text: Path, tmp_path: Path) -> None:
        key = ShardFolder(encoded_text).rows[0].key
        make(trained, tmp_path / "a", "a2t", text_vae, shards=encoded_text, keys=(key,), png=True)
        make(trained, tmp_path / "b", "t2a", text_vae, shards=encoded_text, keys=(key,), png=True)
        assert all((tmp_path / name / f"{key}.png").stat().st_size > 10_000 for name in "ab")


class TestCarriedAsNoise:
    """A model that was initialized from OmniFlow gets text as noise where text is neither a condition nor generated."""

    def test_tasks_with_and_without_text_of_overlapping_windows(
        self, encoded_text: Path, text_vae: Path, files: dict[str, Any], tmp_path: Path
    ) -> None:
        carried = SMALLEST | {"absent": "noise"}
        run(encoded_text, tmp_path / "run", text_codec=NAME, max_train_steps=2, flow=SHARES, model=carried)
        for task, folder in (("a2g", None), ("t2g", text_vae), ("a2t", text_vae)):
            given = {name: files[name] for name in TASKS[task].conditions}
            make(tmp_path / "run", tmp_path / task, task, folder, **given)
            assert read_record(tmp_path / task / f"{STEM}.json").ticks == 40


class TestRefusals:
    def test_overlaps_of_generated_text(
        self, trained: Path, text_vae: Path, files: dict[str, Any], tmp_path: Path
    ) -> None:
        with pytest.raises(UsageFault, match=r"--overlap-ticks 4: expected 0, because text latents"):
            make(trained, tmp_path / "out", "a2t", text_vae, audio=files["audio"], overlap_ticks=4)
        assert not (tmp_path / "out").exists()

    def test_without_its_codec_or_with_another(
        self, trained: Path, files: dict[str, Any], encoded_text: Path, tmp_path: Path
    ) -> None:
        other = write_text_vae(tmp_path / "other", seed=1)
        key = ShardFolder(encoded_text).rows[0].key
        for folder, said in ((None, "give --codec omniflow-text-vae=FOLDER"), (other, "as in the checkpoint")):
            for task, given in (("a2t", {"audio": files["audio"]}), ("t2g", {"shards": encoded_text, "keys": (key,)})):
                with pytest.raises(UsageFault, match=said):
                    make(trained, tmp_path / "out", task, folder, **given)
        make(trained, tmp_path / "a2g", "a2g", None, audio=files["audio"])  # which does not need it

    def test_a_tokenizer_for_a_model_without_a_codec_of_text(self, shards: Path, tmp_path: Path) -> None:
        run(shards, tmp_path / "plain", max_train_steps=1)
        with pytest.raises(UsageFault, match=r"^t5_tokenizer: expected a model with a text codec"):
            OmnigesPipeline.from_pretrained(tmp_path / "plain", t5_tokenizer=tmp_path)


class TestSink:
    def test_what_a_textgrid_cannot_hold_is_reported(self) -> None:
        sink = WindowTextSink([(0, 16), (16, 16)])
        sink.append([SpokenText(' a "b"\n c\0 ', ended=True), SpokenText("", ended=False)])
        grid, text = (b"".join(file.parts) for file in sink.files())
        assert text.decode() == 'a "b" c\ufffd\n'
        assert [w.word for w in decode_words(grid, "windows").words] == ['a "b" c\ufffd']
        assert any("the texts of 1 of 2 windows did not end" in warning for warning in sink.warnings)
        assert any("the first in the window from 1.6 s" in warning for warning in sink.warnings)

    def test_more_texts_than_windows_are_no_result(self) -> None:
        with pytest.raises(ValueError, match="zip"):
            WindowTextSink([(0, 16)]).append([SpokenText("a", ended=True), SpokenText("b", ended=True)])

    def test_nothing_said(self) -> None:
        sink = WindowTextSink([(0, 16)])
        sink.append([SpokenText("", ended=True)])
        _, text = (b"".join(file.parts) for file in sink.files())
        assert text == b"\n"
        assert "no word was generated" in sink.warnings


class TestPipeline:
    def test_the_codec_is_loaded_for_what_calls_need_and_then_kept(
        self, trained: Path, text_vae: Path, files: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded = loads(monkeypatch)
        pipeline = OmnigesPipeline.from_pretrained(trained, codecs={NAME: text_vae})
        words = [{"word": "hello", "start": 0.2, "end": 0.5}]
        for _ in range(2):
            pipeline("t2g", text=words, seconds=0.5, num_inference_steps=1)
        assert loaded == [{"encode"}]
        for _ in range(2):
            pipeline("a2t", audio=files["audio"][0], num_inference_steps=1)
            pipeline("t2g", text=words, seconds=0.5, num_inference_steps=1)
        assert loaded == [{"encode"}, {"encode", "decode"}]

    def test_gives_what_the_command_gives(
        self, trained: Path, text_vae: Path, files: dict[str, Any], tmp_path: Path
    ) -> None:
        pipeline = OmnigesPipeline.from_pretrained(trained, codecs={NAME: text_vae})
        output = pipeline("a2t", audio=files["audio"][0], num_inference_steps=2)
        sample = output[0]
        assert sample.words is None
        assert [(w["start"], w["end"]) for w in sample.windows or []] == [(0.0, 1.6), (1.6, 2.8), (2.8, 4.0)]
        make(trained, tmp_path, "a2t", text_vae, audio=files["audio"])
        warnings = json.loads((tmp_path / f"{STEM}.json").read_bytes())["remarks"]
        cut = sum(not w["ended"] for w in sample.windows or [])
        unended = [warning for warning in warnings if "did not end" in warning]
        assert [warning.split()[3] for warning in unended] == ([str(cut)] if cut else [])
        texts = [" ".join(w["text"].split()) for w in sample.windows or []]
        assert " ".join(text for text in texts if text) == (tmp_path / f"{STEM}.txt").read_text().strip("\n")
        words = [{"word": "hello", "start": 0.2, "end": 0.5}]
        assert pipeline("t2g", text=words, seconds=0.5, num_inference_steps=1)[0].gesture is not None


class TestEvaluate:
    def test_words_are_scored_and_their_times_left_out_with_the_reason(
        self, trained: Path, text_vae: Path, encoded_text: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = ShardFolder(encoded_text)
        (row,) = (row for row in folder.rows if row.split == "test")
        words = folder.words(row)

        def decode(_: TextWindows, latents: Any) -> list[SpokenText]:
            spans = [(0, 16), (16, 12), (28, 12)]
            assert len(latents) == len(spans)
            said = [[w["word"] for w in words if a <= (w["start"] + w["end"]) * 5 < a + n] for a, n in spans]
            return [SpokenText(" ".join(some), ended=True) for some in said]

        monkeypatch.setattr(TextWindows, "decode", decode)
        source = {
            "checkpoint": trained,
            "codecs": ((NAME, text_vae),),
            "tasks": ("a2t",),
            "split": "test",
            "num_inference_steps": 1,
        }
        report = evaluate(EvaluateSettings(shards=encoded_text, **source, resamples=10))
        figures = {(f.metric, f.row): f for f in report.tasks["a2t"].figures}
        assert figures["word error rate", "generated"].value == 0  # every word once, in order
        assert figures["character error rate", "generated"].value == 0
        timing = [f for f in report.tasks["a2t"].figures if f.metric.startswith(("word start", "word end"))]
        assert len(timing) == 4
        assert all(f.value is None and f.why_not == "text stored as latents has no word timings" for f in timing)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("tasks", "ends"),
        [(("a2t", "t2a", "t2g", "a2g"), {"encode", "decode"}), (("a2t", "g2t"), {"decode"}), (("t2a",), {"encode"})],
    )
    def test_the_codec_is_loaded_once_for_all_tasks_and_for_what_they_need(
        self,
        trained: Path,
        text_vae: Path,
        encoded_text: Path,
        monkeypatch: pytest.MonkeyPatch,
        tasks: Any,
        ends: set[str],
    ) -> None:
        loaded = loads(monkeypatch)
        source = {
            "checkpoint": trained,
            "codecs": ((NAME, text_vae),),
            "tasks": tasks,
            "split": "test",
            "num_inference_steps": 1,
        }
        report = evaluate(EvaluateSettings(shards=encoded_text, **source, resamples=10))
        assert set(report.tasks) == set(tasks)
        assert loaded == [ends]

    def test_a_word_left_out_is_one_deletion(self, encoded_text: Path, tmp_path: Path) -> None:
        folder = ShardFolder(encoded_text)
        row = next(row for row in folder.rows if row.split == "test")
        said = [word["word"] for word in folder.words(row)][1:]
        grid = encode_tiers([("windows", [WordInterval(" ".join(said), 0.0, 4.0)])], 4.0)
        (tmp_path / f"{row.key}.TextGrid").write_bytes(grid)
        report = evaluate(EvaluateSettings(shards=encoded_text, generated=(tmp_path,), task="a2t", resamples=10))
        (rate,) = (f for f in report.tasks["a2t"].figures if f.metric == "word error rate" and f.row == "generated")
        assert rate.value == pytest.approx(1 / (len(said) + 1))

    def test_a_textgrid_with_neither_tier_is_reported(self, encoded_text: Path, tmp_path: Path) -> None:
        row = next(row for row in ShardFolder(encoded_text).rows if row.split == "test")
        grid = encode_tiers([("phones", [WordInterval("a", 0.0, 4.0)])], 4.0)
        (tmp_path / f"{row.key}.TextGrid").write_bytes(grid)
        with pytest.raises(DataError, match="an interval tier called words or word"):
            evaluate(EvaluateSettings(shards=encoded_text, generated=(tmp_path,), task="a2t", resamples=10))


@pytest.mark.long
def test_the_commands_from_shards_to_a_report(shards: Path, text_vae: Path, tmp_path: Path) -> None:
    done = omniges(
        *("encode", "--shards", shards, "--with", f"{NAME}={text_vae}", "--out", tmp_path / "s"),
        *("--window-ticks", "16", "--stride-ticks", "4"),
    )
    assert done.returncode == 0, done.stderr
    done = omniges(
        *("train", "--shards", tmp_path / "s", "--text-codec", NAME, "--output-dir", tmp_path / "run"),
        *("--window-ticks", "16", "--max-train-steps", "2", "--train-batch-size", "4", "--num-workers", "0"),
    )
    assert done.returncode == 0, done.stderr
    assert f"text: latents of {NAME}" in done.stdout + done.stderr
    done = omniges(
        *("evaluate", "--checkpoint", tmp_path / "run", "--shards", tmp_path / "s", "--codec", f"{NAME}={text_vae}"),
        *("--tasks", "a2t,t2a", "--steps", "2", "--resamples", "10", "--work", tmp_path / "work"),
    )
    assert done.returncode == 0, done.stderr
    assert "word error rate" in done.stdout
    assert "no word timings" in done.stdout
