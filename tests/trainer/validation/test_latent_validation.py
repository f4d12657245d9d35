"""Runs on latents are validated like others: losses always, and with the codecs' folders metrics and samples too."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from latent_builders import AUDIO, BOTH, CODECS, GESTURE
from pipeline_helpers import run_preprocess
from training_helpers import (
    Collected,
    SignalAt,
    Trained,
    checkpoint_of,
    last_validation,
    learned,
    log_of,
    require_same_learning,
    require_same_losses_by_level,
    run,
    settings_of,
)
from vae_builders import write_vae

from omniges.codecs import registry
from omniges.codecs.registry import load_codec
from omniges.data.catalog import Filters, read_catalog
from omniges.data.loader import BatchLoader, LoaderSettings
from omniges.data.order import RankShare
from omniges.data.sequence import DataSource, Sequencing, tracks_of
from omniges.data.tracks import Normaliser
from omniges.errors import ExitCode, UsageFault
from omniges.features.text_tokens import TextTokenCodec
from omniges.formats.arrays import decode_npy
from omniges.formats.npz import decode_motion
from omniges.generation.records import read_record
from omniges.generation.run import generate
from omniges.generation.sampler import Codecs
from omniges.generation.settings import GenerateSettings, Sources
from omniges.model.flow import FlowModel
from omniges.model.tasks import SamplingSettings
from omniges.shards.reader import ShardFolder
from omniges.trainer import train as train_module
from omniges.trainer.recipe import load_settings
from omniges.trainer.validation import run as run_module
from omniges.trainer.validation.held_out import open_held_out
from omniges.trainer.validation.samples import VALIDATION_SEED

TICKS = 16
VALIDATED: dict[str, Any] = {
    **BOTH,
    "validation_steps": 3,
    "validation_windows": 3,
    "validation_samples": 2,
    "validation_sampling_steps": 2,
}
BARE = {**VALIDATED, "validation_windows": 1, "validation_samples": 0, "max_train_steps": 3}
MADE = {"gesture": ("t2g", "a2g"), "audio": ("g2a", "t2a"), "text": ("g2t", "a2t")}
METRIC = {"gesture": "frechet_gesture_distance", "audio": "log_mel_l1", "text": "word_error_rate"}

Folders = dict[str, Path]


def given(folders: Folders) -> tuple[str, ...]:
    return tuple(f"{name}={folder}" for name, folder in folders.items())


@pytest.fixture(scope="module")
def plain(encoded_both: Path, trained: Trained) -> Path:
    """Six steps without validation."""
    return trained(encoded_both, **BOTH)


@pytest.fixture(scope="module")
def decoded(encoded_both: Path, folders: Folders, trained: Trained) -> Path:
    """The same with two validations that decode."""
    return trained(encoded_both, **VALIDATED, validation_codec=given(folders))


@pytest.fixture(scope="module")
def undecoded(encoded_both: Path, trained: Trained) -> Path:
    """The same with two validations that have no codec."""
    return trained(encoded_both, **{**VALIDATED, "validation_samples": 1})


def figures_of(folder: Path) -> dict[str, Any]:
    names = ("losses", "metrics", "recorded", "shuffled", "not_computed")
    return {name: last_validation(folder)[name] for name in names}


class TestTrainingIsUntouched:
    @pytest.mark.slow
    @pytest.mark.parametrize("which", ["decoded", "undecoded"])
    def test_weights_average_optimizer_and_losses_are_equal_to_the_last_bit(
        self, which: str, plain: Path, request: pytest.FixtureRequest
    ) -> None:
        """So nothing of a codec is in any of them either."""
        folder = request.getfixturevalue(which)
        require_same_learning(folder, plain)

    @pytest.mark.slow
    def test_each_codec_is_loaded_once_frozen_and_left_as_it_was(
        self, encoded_both: Path, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loaded: list[Any] = []
        inner = registry.load_codec

        def counted(*arguments: Any, **named: Any) -> Any:
            loaded.append(inner(*arguments, **named))
            return loaded[-1]

        monkeypatch.setattr(registry, "load_codec", counted)
        settings = {**BARE, "validation_steps": 1, "max_train_steps": 2}
        generators = torch.get_rng_state()
        run(encoded_both, tmp_path, **settings, validation_codec=given(folders))
        assert torch.equal(torch.get_rng_state(), generators)
        assert sorted(codec.entry.name for codec in loaded) == [AUDIO, GESTURE]
        for codec in loaded:
            nets = codec.nets.values() if codec.entry.name == GESTURE else [codec._vae]
            fresh = load_codec(codec.entry.name, folders[codec.entry.name], torch.device("cpu"))
            others = fresh.nets.values() if codec.entry.name == GESTURE else [fresh._vae]  # type: ignore[attr-defined]
            for net, other in zip(nets, others, strict=True):
                assert not any(parameter.requires_grad for parameter in net.parameters())
                for name, tensor in net.state_dict().items():
                    assert torch.equal(tensor, other.state_dict()[name])

    def test_none_is_loaded_by_a_run_that_does_not_validate(
        self, encoded_both: Path, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(registry, "load_codec", None)
        run(encoded_both, tmp_path, **BOTH, max_train_steps=1, validation_codec=given(folders))


def test_windows_have_the_latents_that_the_loader_gives(encoded_both: Path) -> None:
    held_out = open_held_out([DataSource(read_catalog(encoded_both, Filters(), CODECS))], TICKS, 1000, 4)
    val = [DataSource(read_catalog(encoded_both, Filters(split="val"), CODECS))]
    entries = val[0].catalog.codecs
    folder, _ = held_out.read(TextTokenCodec(val[0].catalog.tokenizer), entries.values())
    sequencing, share = Sequencing(window_ticks=TICKS, shuffle=False), RankShare(batch_size=64)
    scales = Normaliser.identity(tracks_of(val))
    with BatchLoader(val, sequencing, share, LoaderSettings(workers=0), normaliser=scales) as loader:
        (batch,) = list(loader)
    assert len(batch) == len(held_out.windows) > 1
    assert any(window.start_tick > 0 for window in held_out.windows)
    for number, row in enumerate(folder.rows):
        latents = folder.sample(row).latents
        assert latents[AUDIO].shape == (40, 128)
        np.testing.assert_array_equal(latents[GESTURE], batch.gesture[number].numpy())
        np.testing.assert_array_equal(latents[AUDIO], batch.audio[number].numpy())


class TestWithoutTheCodecs:
    def test_losses_of_all_tasks_by_level_are_those_that_a_run_with_codecs_has(
        self, undecoded: Path, decoded: Path
    ) -> None:
        require_same_losses_by_level(undecoded, decoded)

    def test_text_is_scored_and_what_is_not_says_what_to_give(self, undecoded: Path, decoded: Path) -> None:
        event = last_validation(undecoded)
        for stream, tasks in MADE.items():
            for task in tasks:
                if stream == "text":
                    assert event["metrics"][task] == last_validation(decoded)["metrics"][task]
                    continue
                codec = CODECS[stream]
                why = f"{stream} is stored as latents of {codec}; give --validation-codec {codec}=FOLDER"
                assert event["metrics"][task] == {}
                assert event["not_computed"][task] == {f"{stream}_metrics": why}
                assert [s["why_not"] for s in event["samples"] if s["task"] == task] == [why]
                assert (
                    f"metrics and samples of {' and '.join(tasks)} not computed: {why}"
                    in (log_of(undecoded, "start")[0]["remarks"])
                )
                document = json.loads((undecoded / "validation/step-000006/validation.json").read_bytes())
                assert [(f["value"], f["why_not"]) for f in document["figures"][task]] == [(None, why)]
        folder = undecoded / "validation/step-000006"
        assert sorted(path.name for path in folder.iterdir()) == ["a2t", "g2t", "pictures", "validation.json"]
        assert len(list((folder / "pictures").iterdir())) == 1

    def test_only_tasks_that_can_be_scored_are_sampled(
        self, encoded_both: Path, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sampled: list[str] = []
        inner = run_module.sample_windows

        def watched(model: Any, task: str, *rest: Any) -> Any:
            sampled.append(task)
            return inner(model, task, *rest)

        monkeypatch.setattr(run_module, "sample_windows", watched)
        reporter = Collected()
        monkeypatch.setattr(train_module, "make_reporter", lambda _mode: reporter)
        run(encoded_both, tmp_path, **BARE, validation_codec=(f"{AUDIO}={folders[AUDIO]}",))
        assert sorted(sampled) == ["a2t", "g2a", "g2t", "t2a"]
        assert "validation decodes audio with audioldm2-vae" in reporter.messages
        (lost,) = [warning for warning in reporter.messages if "not computed" in warning]
        assert "of t2g and a2g not computed: gesture is stored as latents of gesture-rvqvae" in lost
        event = last_validation(tmp_path)
        assert event["metrics"]["g2a"]["log_mel_l1"] > 0
        assert event["metrics"]["a2g"] == {}


class TestWithTheCodecs:
    def test_every_task_has_its_metrics_and_samples(self, decoded: Path) -> None:
        event = last_validation(decoded)
        for stream, tasks in MADE.items():
            for task in tasks:
                assert event["metrics"][task][METRIC[stream]] >= 0
        assert [sample["why_not"] for sample in event["samples"]] == [None] * 12
        assert event["seconds"] > 0

    @pytest.mark.parametrize(("task", "ending"), [("a2g", ".npz"), ("t2a", ".mel.npy"), ("g2t", ".TextGrid")])
    def test_results_are_those_that_generate_makes_with_the_averages(
        self, task: str, ending: str, decoded: Path, encoded_both: Path, folders: Folders, tmp_path: Path
    ) -> None:
        folder = decoded / "validation/step-000006" / task
        (path,) = [path for path in folder.glob("*.json") if (read_record(path).source or {})["start_tick"] == 0]
        record = read_record(path)
        key = (record.source or {})["key"]
        settings = GenerateSettings(
            checkpoint=decoded,
            task=task,
            output_dir=tmp_path / "generated",
            codecs=tuple(folders.items()),
            sources=Sources(shards=encoded_both, keys=(key,), seconds=1.6),
            sampling=SamplingSettings(num_inference_steps=2),
            overlap_ticks=0,
            seed=VALIDATION_SEED,
        )
        generate(settings)
        theirs = read_record(settings.output_dir / f"{key}.json")
        assert record.model["codecs"] == theirs.model["codecs"]
        assert record.settings["quantised"] == theirs.settings["quantised"]
        ours, other = path.with_suffix(ending).read_bytes(), (settings.output_dir / f"{key}{ending}").read_bytes()
        if ending == ".npz":
            one, two = decode_motion(ours), decode_motion(other)
            np.testing.assert_allclose(one.poses, two.poses, atol=1e-4)
            np.testing.assert_allclose(one.trans, two.trans, atol=1e-4)
        elif ending == ".mel.npy":
            np.testing.assert_allclose(decode_npy(ours), decode_npy(other), atol=1e-3)
        else:
            assert ours == other

    def test_decoding_is_not_in_the_precision_of_training(
        self, encoded_both: Path, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reduced: dict[str, list[bool]] = {"sampling": [], "decoding": []}

        def watched(stage: str, inner: Any) -> Any:
            def call(*arguments: Any) -> Any:
                reduced[stage].append(torch.is_autocast_enabled("cpu"))
                return inner(*arguments)

            return call

        monkeypatch.setattr(FlowModel, "predict", watched("sampling", FlowModel.predict))
        monkeypatch.setattr(Codecs, "decoded", watched("decoding", Codecs.decoded))
        settings = {**BARE, "mixed_precision": "bf16"}
        run(encoded_both, tmp_path, **settings, validation_codec=given(folders))
        assert reduced == {"sampling": [True] * 6 * 2, "decoding": [False] * 6}  # of two steps each

    def test_records_name_the_latents_that_were_given(self, decoded: Path, encoded_both: Path) -> None:
        shards = ShardFolder(encoded_both)
        for task, stream in (("a2g", "audio"), ("g2a", "gesture")):
            path = next((decoded / "validation/step-000006" / task).glob("*.json"))
            (entry,) = read_record(path).inputs
            shard, _, member = entry["path"].partition("#")
            key = member.partition(".")[0]
            assert member == f"{key}.{CODECS[stream]}.npy"
            assert Path(shard).is_file()
            assert entry["sha256"] == shards.row(key).members[f"{CODECS[stream]}.npy"].sha256

    def test_the_best_step_can_go_by_what_was_decoded(
        self, encoded_both: Path, folders: Folders, tmp_path: Path
    ) -> None:
        settings = {**BARE, "best_metric": "t2a/log_mel_l1"}
        summary = run(encoded_both, tmp_path, **settings, validation_codec=given(folders))
        assert summary.best is not None
        assert summary.best.value == last_validation(tmp_path)["metrics"]["t2a"]["log_mel_l1"]
        assert (tmp_path / "best").resolve() == checkpoint_of(tmp_path, 3).resolve()

    @pytest.mark.slow
    def test_a_signal_while_decoding_saves_and_is_made_up_for(
        self, encoded_both: Path, folders: Folders, tmp_path: Path, decoded: Path
    ) -> None:
        settings = {**VALIDATED, "validation_samples": 0, "validation_codec": given(folders)}
        stop, inner = SignalAt(signal.SIGTERM, 2), Codecs.decoded
        with pytest.MonkeyPatch.context() as patch:

            def stopping(self: Codecs, name: Any, array: Any) -> Any:
                stop()
                return inner(self, name, array)

            patch.setattr(Codecs, "decoded", stopping)
            summary = run(encoded_both, tmp_path, **settings)
        assert summary.outcome.exit_code is ExitCode.STOPPED
        assert summary.step == 3
        assert not log_of(tmp_path, "validation")
        run(encoded_both, tmp_path, **settings)
        assert figures_of(tmp_path) == figures_of(decoded)
        assert learned(tmp_path, 6) == learned(decoded, 6)


class TestRefusals:
    def test_another_codec_than_that_of_the_shards(self, encoded_both: Path, tmp_path: Path) -> None:
        write_vae(tmp_path / "other", seed=1)
        with pytest.raises(
            UsageFault, match=r"--validation-codec audioldm2-vae=.*: expected fingerprint \w+… as in the shards, found"
        ):
            run(encoded_both, tmp_path / "run", **BARE, validation_codec=(f"{AUDIO}={tmp_path / 'other'}",))
        with pytest.raises(UsageFault, match=r"expected a folder with the codec's files, found none"):
            run(encoded_both, tmp_path / "run", **BARE, validation_codec=(f"{AUDIO}={tmp_path / 'none'}",))

    @pytest.mark.parametrize(
        ("codecs", "own", "words"),
        [
            (("audioldm2-vae",), BOTH, "validation_codec audioldm2-vae: expected NAME=FOLDER"),
            (("audioldm2-vae=",), BOTH, "expected NAME=FOLDER"),
            (
                ("audioldm2-vae=a",),
                {},
                r"expected a codec of the run \(none\), found another codec; remove audioldm2-vae",
            ),
            (
                ("gesture-rvqvae=a",),
                {"audio_codec": AUDIO},
                r"expected a codec of the run \(audioldm2-vae\), found another codec; remove",
            ),
            (("audioldm2-vae=a", "audioldm2-vae=b"), BOTH, "expected each codec once, found it twice; give one folder"),
        ],
    )
    def test_what_names_no_codec_of_the_run(self, codecs: Any, own: Any, words: str, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match=words) as refused:
            settings_of(tmp_path, tmp_path, **own, validation_codec=codecs)
        assert "\n" not in str(refused.value)

    def test_a_best_metric_that_needs_a_codec_which_is_not_given(
        self, encoded_both: Path, folders: Folders, tmp_path: Path
    ) -> None:
        words = (
            r"--best-metric a2g/frechet_gesture_distance: expected a metric that this run computes, found one that it "
            r"cannot compute because gesture is stored as latents of gesture-rvqvae; give "
            r"--validation-codec gesture-rvqvae=FOLDER; otherwise choose loss or a2g/loss"
        )
        for steps in (3, None):  # by default it validates too
            settings = {**BARE, "validation_steps": steps, "best_metric": "a2g/frechet_gesture_distance"}
            with pytest.raises(UsageFault, match=words):
                run(encoded_both, tmp_path / "run", **settings, validation_codec=(f"{AUDIO}={folders[AUDIO]}",))
        assert not (tmp_path / "run/log.jsonl").exists()

    def test_windows_that_fit_into_no_recording_say_which_whole_rows_do(self, shards: Path) -> None:
        data = [DataSource(read_catalog(shards, Filters()))]
        with pytest.raises(
            UsageFault, match=r"at least 48 ticks \(one window\), found none .* --window-ticks 32 or less"
        ):
            open_held_out(data, 48, 4, 16)


@pytest.mark.parametrize(
    ("metric", "ticks", "words"),
    [
        ("a2g/beat_consistency", 40, "there is no audio in the shards; preprocess with --keep-audio"),
        ("t2g/semantic_recall", 16, "no validation recording has a semantic annotation"),
    ],
)
def test_a_best_metric_that_no_recording_can_have_a_value_of_is_refused(
    metric: str, ticks: int, words: str, bare: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageFault, match=words):
        run(bare, tmp_path, window_ticks=ticks, validation_steps=3, best_metric=metric)


@pytest.fixture(scope="module")
def bare(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards without sound and annotation."""
    folder = tmp_path_factory.mktemp("bare")
    shutil.copytree(corpus, folder / "corpus", ignore=shutil.ignore_patterns("sem"))
    run_preprocess(folder / "corpus", folder / "shards")
    return folder / "shards"


def test_so_are_beats_in_windows_that_are_too_short_for_them(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match=r"windows are shorter than 4.2 s; train with --window-ticks 42 or more"):
        run(shards, tmp_path, validation_steps=3, best_metric="a2g/beat_consistency")


def test_the_setting_stands_in_a_recipe_as_one_or_a_list(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    codecs = f"gesture-codec: {GESTURE}\naudio-codec: {AUDIO}\n"
    recipe.write_text(f"{codecs}validation-codec: {AUDIO}=vae\n")
    assert load_settings(recipe, {}).validation_codecs == {AUDIO: Path("vae")}
    recipe.write_text(f"{codecs}validation-codec: [{AUDIO}=vae, {GESTURE}=nets]\n")
    assert load_settings(recipe, {}).validation_codecs == {AUDIO: Path("vae"), GESTURE: Path("nets")}
    flags = {"validation_codec": [f"{GESTURE}=others"]}
    assert load_settings(recipe, flags).validation_codecs == {GESTURE: Path("others")}
