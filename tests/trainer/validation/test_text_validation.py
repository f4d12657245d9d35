"""Runs on latents of text are validated too: losses always, with the codec texts of windows and their error rates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pipeline_helpers import omniges
from text_latents_builders import NAME, STRIDE, WINDOW, write_text_vae
from training_helpers import (
    Collected,
    Trained,
    last_validation,
    log_of,
    require_same_learning,
    require_same_losses_by_level,
    run,
    settings_of,
)

from omniges.codecs import registry
from omniges.codecs.base import SpokenText
from omniges.codecs.text_vae.codec import TextWindows
from omniges.data.catalog import Filters, read_catalog
from omniges.data.loader import BatchLoader, LoaderSettings
from omniges.data.order import RankShare
from omniges.data.sequence import DataSource, Sequencing, tracks_of
from omniges.data.tracks import Normaliser
from omniges.errors import UsageFault
from omniges.features.text_tokens import TextTokenCodec
from omniges.formats.textgrid import decode_words
from omniges.generation.records import read_record
from omniges.generation.run import generate
from omniges.generation.settings import GenerateSettings, Sources
from omniges.model.tasks import SIX, SamplingSettings
from omniges.shards.reader import ShardFolder
from omniges.trainer import train as train_module
from omniges.trainer.recipe import load_settings
from omniges.trainer.validation import run as run_module
from omniges.trainer.validation.held_out import open_held_out
from omniges.trainer.validation.samples import VALIDATION_SEED

TEXT = {"text": NAME}
OF_TEXT = ("g2t", "a2t")
UNTIMED = "text stored as latents has no word timings"
VALIDATED: dict[str, Any] = {
    "text_codec": NAME,
    "validation_steps": 3,
    "validation_windows": 3,
    "validation_samples": 2,
    "validation_sampling_steps": 2,
}
BARE = {**VALIDATED, "validation_windows": 1, "validation_samples": 0, "max_train_steps": 3}


@pytest.fixture(scope="module")
def plain(encoded_text: Path, trained: Trained) -> Path:
    """Six steps without validation."""
    return trained(encoded_text, text_codec=NAME)


@pytest.fixture(scope="module")
def decoded(encoded_text: Path, text_vae: Path, trained: Trained) -> Path:
    """The same with two validations that decode."""
    return trained(encoded_text, **VALIDATED, validation_codec=(f"{NAME}={text_vae}",))


@pytest.fixture(scope="module")
def undecoded(encoded_text: Path, trained: Trained) -> Path:
    """The same with two validations that have no codec."""
    return trained(encoded_text, **{**VALIDATED, "validation_samples": 1})


@pytest.mark.slow
@pytest.mark.parametrize("which", ["decoded", "undecoded"])
def test_what_is_learned_is_equal_to_the_last_bit(which: str, plain: Path, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(which)
    require_same_learning(folder, plain)


class TestWindows:
    def test_have_the_latents_that_the_loader_gives_and_the_words_that_these_stand_for(
        self, encoded_text: Path
    ) -> None:
        held_out = open_held_out([DataSource(read_catalog(encoded_text, Filters(), TEXT))], WINDOW, 1000)
        val = [DataSource(read_catalog(encoded_text, Filters(split="val"), TEXT))]
        entries = val[0].catalog.codecs
        folder, _ = held_out.read(TextTokenCodec(val[0].catalog.tokenizer), entries.values())
        scales = Normaliser.identity(tracks_of(val))
        sequencing, share = Sequencing(window_ticks=WINDOW, shuffle=False), RankShare(batch_size=64)
        with BatchLoader(val, sequencing, share, LoaderSettings(workers=0), normaliser=scales) as loader:
            (batch,) = list(loader)
        assert len(batch) == len(held_out.windows) > 1
        shards = ShardFolder(encoded_text)
        for number, (window, row) in enumerate(zip(held_out.windows, folder.rows, strict=True)):
            assert window.start_tick % STRIDE == 0
            latents = folder.sample(row).latents[NAME]
            assert latents.shape == (3, 10)
            np.testing.assert_array_equal(latents, batch.text[number].numpy())
            stored = shards.array(shards.row(window.row.key), f"{NAME}.npy")[window.start_tick // STRIDE]
            np.testing.assert_array_equal(latents.reshape(-1), stored)
            first, end = window.start_tick, window.start_tick + WINDOW
            said = [
                word["word"] for word in shards.words(window.row) if first <= 5 * (word["start"] + word["end"]) < end
            ]
            words = folder.words(row)
            assert [word["word"] for word in words] == said
            assert all(0 <= word["start"] < word["end"] <= WINDOW / 10 for word in words)

    def test_every_word_of_a_clip_is_in_one_of_the_windows_that_touch(self, encoded_text: Path) -> None:
        data = [DataSource(read_catalog(encoded_text, Filters(), TEXT))]
        held_out = open_held_out(data, WINDOW, 1000)
        folder, _ = held_out.read(TextTokenCodec(data[0].catalog.tokenizer), data[0].catalog.codecs.values())
        shards = ShardFolder(encoded_text)
        for key in {window.row.key for window in held_out.windows}:
            own = [window for window in held_out.windows if window.row.key == key]
            end_s = len(own) * WINDOW / 10
            found = [word["word"] for window in own for word in folder.words(folder.row(window.name))]
            said = [w["word"] for w in shards.words(shards.row(key)) if (w["start"] + w["end"]) / 2 < end_s]
            assert found == said

    def test_that_fit_into_no_recording_say_to_encode_again(self, encoded_text: Path) -> None:
        data = [DataSource(read_catalog(encoded_text, Filters(), TEXT))]
        with pytest.raises(UsageFault, match=r"encode text again with --window-ticks 40 or less"):
            open_held_out(data, 48, 4)


class TestWithoutTheCodec:
    def test_losses_of_all_tasks_by_level_are_those_that_a_run_with_it_has(
        self, undecoded: Path, decoded: Path
    ) -> None:
        require_same_losses_by_level(undecoded, decoded)

    def test_what_is_no_text_is_scored_and_text_says_what_to_give(self, undecoded: Path, decoded: Path) -> None:
        event, why = (
            last_validation(undecoded),
            f"text is stored as latents of {NAME}; give --validation-codec {NAME}=FOLDER",
        )
        for task in SIX:
            if task not in OF_TEXT:
                assert event["metrics"][task] == last_validation(decoded)["metrics"][task] != {}
                continue
            assert event["metrics"][task] == {}
            assert event["not_computed"][task] == {"text_metrics": why}
            assert [s["why_not"] for s in event["samples"] if s["task"] == task] == [why]
        warning = f"metrics and samples of g2t and a2t not computed: {why}"
        assert warning in log_of(undecoded, "start")[0]["remarks"]
        assert not (undecoded / "validation/step-000006/g2t").exists()

    def test_by_default_it_validates_where_there_is_a_val_split(self, encoded_text: Path, tmp_path: Path) -> None:
        run(encoded_text, tmp_path, **{**BARE, "validation_steps": None, "max_train_steps": 1})
        assert set(last_validation(tmp_path)["losses"]) == set(SIX)


class TestWithTheCodec:
    def test_rates_are_computed_and_times_of_words_are_not_with_the_reason(self, decoded: Path) -> None:
        event = last_validation(decoded)
        for task in OF_TEXT:
            assert event["metrics"][task].keys() == {"word_error_rate", "character_error_rate"}
            assert set(event["not_computed"][task].values()) == {UNTIMED}
            assert len(event["not_computed"][task]) == 4
        assert [sample["why_not"] for sample in event["samples"]] == [None] * 12
        assert f"validation decodes text with {NAME}" in log_of(decoded, "start")[0]["remarks"]

    def test_a_codec_that_says_what_was_said_makes_no_error(
        self, encoded_text: Path, text_vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The texts that the latents of the windows stand for are those that results are held against."""
        data = [DataSource(read_catalog(encoded_text, Filters(), TEXT))]
        held_out = open_held_out(data, WINDOW, 3)
        shards = ShardFolder(encoded_text)
        texts = []
        for window in held_out.windows:
            first, end = window.start_tick, window.start_tick + WINDOW
            said = [w["word"] for w in shards.words(window.row) if first <= 5 * (w["start"] + w["end"]) < end]
            texts.append(" ".join(said))
        asked: list[tuple[int, ...]] = []

        def decode(_: TextWindows, latents: Any) -> list[SpokenText]:
            asked.append(latents.shape)  # task after task, windows in their order
            return [SpokenText(texts[(len(asked) - 1) % len(texts)], ended=True)]

        monkeypatch.setattr(TextWindows, "decode", decode)
        run(encoded_text, tmp_path, **{**BARE, "validation_windows": 3}, validation_codec=(f"{NAME}={text_vae}",))
        assert asked == [(1, 30)] * 2 * len(texts)
        metrics = last_validation(tmp_path)["metrics"]
        assert all(metrics[task]["word_error_rate"] == metrics[task]["character_error_rate"] == 0 for task in OF_TEXT)

    @pytest.mark.parametrize("task", OF_TEXT)
    def test_samples_are_those_that_generate_makes_with_the_averages(
        self, task: str, decoded: Path, encoded_text: Path, text_vae: Path, tmp_path: Path
    ) -> None:
        folder = decoded / "validation/step-000006" / task
        paths = [path for path in folder.glob("*.json") if (read_record(path).source or {})["start_tick"] == 0]
        record = read_record(paths[0])
        key = (record.source or {})["key"]
        settings = GenerateSettings(
            checkpoint=decoded,
            task=task,
            output_dir=tmp_path / "generated",
            codecs=((NAME, text_vae),),
            sources=Sources(shards=encoded_text, keys=(key,), seconds=WINDOW / 10),
            sampling=SamplingSettings(num_inference_steps=2),
            seed=VALIDATION_SEED,
        )
        generate(settings)
        theirs = read_record(settings.output_dir / f"{key}.json")
        assert record.model["codecs"] == theirs.model["codecs"]
        assert any("the words have no times" in warning for warning in record.remarks)
        for ending in (".TextGrid", ".txt"):
            assert paths[0].with_suffix(ending).read_bytes() == (settings.output_dir / f"{key}{ending}").read_bytes()
        with pytest.raises(Exception, match="textgrid-no-word-tier"):
            decode_words(paths[0].with_suffix(".TextGrid").read_bytes())

    def test_records_of_tasks_that_text_is_given_to_name_its_latents(self, decoded: Path, encoded_text: Path) -> None:
        shards = ShardFolder(encoded_text)
        (entry,) = read_record(next((decoded / "validation/step-000006/t2g").glob("*.json"))).inputs
        key = entry["path"].partition("#")[2].partition(".")[0]
        assert entry["path"].endswith(f"#{key}.{NAME}.npy")
        assert entry["sha256"] == shards.row(key).members[f"{NAME}.npy"].sha256

    @pytest.mark.slow
    def test_it_is_loaded_once_and_generators_are_left(
        self, encoded_text: Path, text_vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded: list[Any] = []
        inner = registry.load_codec

        def counted(*arguments: Any, **named: Any) -> Any:
            loaded.append(inner(*arguments, **named))
            return loaded[-1]

        monkeypatch.setattr(registry, "load_codec", counted)
        generators = torch.get_rng_state()
        settings = {**BARE, "validation_steps": 1, "max_train_steps": 2}
        run(encoded_text, tmp_path, **settings, validation_codec=(f"{NAME}={text_vae}",))
        assert torch.equal(torch.get_rng_state(), generators)
        (windows,) = loaded
        assert not any(parameter.requires_grad for parameter in windows._codec.vae.parameters())
        assert windows._codec.vae.ends == {"decode"}  # no T5 in memory

    def test_the_best_step_can_go_by_the_word_error_rate(
        self, encoded_text: Path, text_vae: Path, tmp_path: Path
    ) -> None:
        settings = {**BARE, "best_metric": "a2t/word_error_rate"}
        summary = run(encoded_text, tmp_path, **settings, validation_codec=(f"{NAME}={text_vae}",))
        assert summary.best is not None
        assert summary.best.value == last_validation(tmp_path)["metrics"]["a2t"]["word_error_rate"]


class TestTokenizer:
    @pytest.fixture
    def apart(self, tmp_path: Path) -> tuple[Path, Path]:
        """The codec's folder without T5's tokenizer, and that."""
        folder = write_text_vae(tmp_path / "vae")
        (folder / "t5_tokenizer").rename(tmp_path / "flan")
        return folder, tmp_path / "flan"

    @pytest.mark.slow
    def test_may_lie_elsewhere(self, encoded_text: Path, apart: tuple[Path, Path], tmp_path: Path) -> None:
        folder, tokenizer = apart
        given = {**BARE, "validation_codec": (f"{NAME}={folder}",)}
        with pytest.raises(
            Exception, match=r"t5_tokenizer/tokenizer\.json: expected .* found that the file does not exist"
        ):
            run(encoded_text, tmp_path / "run", **given)
        run(encoded_text, tmp_path / "run", **given, t5_tokenizer=tokenizer)
        assert last_validation(tmp_path / "run")["metrics"]["a2t"]["word_error_rate"] >= 0

    def test_stands_in_a_recipe(self, tmp_path: Path) -> None:
        recipe = tmp_path / "r.yaml"
        recipe.write_text(f"text-codec: {NAME}\nvalidation-codec: {NAME}=vae\nt5-tokenizer: flan\n")
        assert load_settings(recipe, {}).t5_tokenizer == Path("flan")
        assert load_settings(recipe, {"t5_tokenizer": Path("other")}).t5_tokenizer == Path("other")
        assert json.loads(json.dumps(load_settings(recipe, {}).as_json()))["t5_tokenizer"] == "flan"

    @pytest.mark.parametrize("own", [{}, {"text_codec": NAME}])
    def test_is_refused_where_nothing_reads_it(self, own: dict[str, Any], tmp_path: Path) -> None:
        with pytest.raises(
            UsageFault, match=r"t5_tokenizer: expected a validation_codec for the text codec .* add text_codec NAME and"
        ):
            settings_of(tmp_path, tmp_path, **own, t5_tokenizer=tmp_path)


class TestRefusals:
    def test_another_codec_than_that_of_the_shards(self, encoded_text: Path, tmp_path: Path) -> None:
        other = write_text_vae(tmp_path / "other", seed=1)
        with pytest.raises(UsageFault, match=r"--validation-codec omniflow-text-vae=.*: expected fingerprint \w+… as"):
            run(encoded_text, tmp_path / "run", **BARE, validation_codec=(f"{NAME}={other}",))

    def test_a_best_metric_of_times_that_words_do_not_have(
        self, encoded_text: Path, text_vae: Path, tmp_path: Path
    ) -> None:
        settings = {**BARE, "best_metric": "g2t/word_start_error_median"}
        with pytest.raises(
            UsageFault, match=rf"found one that it cannot compute because {UNTIMED}; otherwise choose loss or g2t/loss"
        ):
            run(encoded_text, tmp_path / "run", **settings, validation_codec=(f"{NAME}={text_vae}",))
        with pytest.raises(
            UsageFault, match=r"text is stored as latents of omniflow-text-vae; give --validation-codec"
        ):
            run(encoded_text, tmp_path / "run", **settings)


def test_only_tasks_that_can_be_scored_are_sampled(
    encoded_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled: list[str] = []
    inner = run_module.sample_windows

    def watched(model: Any, task: str, *rest: Any) -> Any:
        sampled.append(task)
        return inner(model, task, *rest)

    monkeypatch.setattr(run_module, "sample_windows", watched)
    monkeypatch.setattr(train_module, "make_reporter", lambda _mode: Collected())
    run(encoded_text, tmp_path, **BARE)
    assert sorted(sampled) == ["a2g", "g2a", "t2a", "t2g"]


@pytest.mark.slow
def test_a_model_that_carries_text_as_noise_is_validated_too(
    encoded_text: Path, text_vae: Path, tmp_path: Path
) -> None:
    from training_helpers import SMALLEST

    run(encoded_text, tmp_path, **BARE, model=SMALLEST | {"absent": "noise"}, validation_codec=(f"{NAME}={text_vae}",))
    assert last_validation(tmp_path)["metrics"]["g2t"]["word_error_rate"] >= 0


@pytest.mark.long
def test_the_command(encoded_text: Path, text_vae: Path, tmp_path: Path) -> None:
    done = omniges(
        *("train", "--shards", encoded_text, "--text-codec", NAME, "--output-dir", tmp_path / "run"),
        *("--window-ticks", "16", "--max-train-steps", "1", "--train-batch-size", "4", "--num-workers", "0"),
        *("--validation-windows", "1", "--validation-codec", f"{NAME}={text_vae}"),
        *("--t5-tokenizer", text_vae / "t5_tokenizer", "--best-metric", "a2t/character_error_rate"),
    )
    assert done.returncode == 0, done.stderr
    assert "validation at step 1: a2t/character_error_rate" in done.stdout + done.stderr
