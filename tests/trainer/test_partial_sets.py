"""Training, resuming, validating, generating and evaluating on a set whose samples lack parts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from partial_builders import write_partial
from pipeline_helpers import omniges
from training_helpers import SMALLEST, TOKEN_WIDTHS, last_validation, learned, log_of, losses_of, run, settings_of

from omniges.errors import UsageFault
from omniges.formats.npz import decode_motion
from omniges.generation.pipeline import OmnigesPipeline
from omniges.generation.run import generate
from omniges.generation.settings import GenerateSettings, Sources
from omniges.model.checkpoint import find_checkpoint
from omniges.model.spec import load_identity
from omniges.model.tasks import SamplingSettings
from omniges.testing.settings import CorpusSettings
from omniges.testing.synthetic_corpus import write_sample_corpus
from omniges.trainer.train import train
from omniges.verify.run import verify
from omniges.verify.settings import VerifySettings

BODY = ("upper", "hands", "lower", "root", "face")
LACKING = {0: ("text",), 1: ("face",), 2: ("audio",), 3: ("text", "face", "hands"), 4: BODY, 5: ("text", "audio")}
"""By number of the recording: 0 is in test, 1 in val, the others in train; 5 allows no task."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("partial") / "corpus"
    write_sample_corpus(folder, CorpusSettings(clips=12, seconds=2.5, words=6, speakers=2, seed=3))
    return folder


@pytest.fixture(scope="module")
def mixed(clips: Path) -> Path:
    return write_partial(clips, clips.parent / "mixed", LACKING)


@pytest.mark.slow
def test_absent_parts_change_no_bit_of_what_is_learned(clips, mixed, tmp_path):
    """The other set has numbers and words where parts are absent; the clip that allows no task is left out."""
    filled = write_partial(clips, clips.parent / "filled", LACKING, fill=1)
    for name, folder in (("mixed", mixed), ("filled", filled)):
        run(folder, tmp_path / name)
    assert losses_of(tmp_path / "mixed") == losses_of(tmp_path / "filled")
    assert learned(tmp_path / "mixed", 6) == learned(tmp_path / "filled", 6)
    warnings = log_of(tmp_path / "mixed", "start")[0]["remarks"]
    assert any("1 clips left out; a task needs " in warning for warning in warnings)
    assert any("absent: text from 1, audio from 1, upper from 1, hands from 2" in warning for warning in warnings)


@pytest.mark.slow
def test_the_command_trains_resumes_generates_and_evaluates(mixed, tmp_path):
    assert verify(VerifySettings(folder=mixed, level="deep", num_workers=1)).exit_code == 0
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"model": SMALLEST | TOKEN_WIDTHS, "window-ticks": 16, "train-batch-size": 4}))
    common = ["train", "--shards", mixed, "--output-dir", tmp_path / "run", "--recipe", recipe, "--num-workers", 0]
    common += ["--validation-windows", 2, "--validation-samples", 0, "--validation-sampling-steps", 1]
    for steps, validation in ((2, 0), (4, 4)):
        done = omniges(*common, "--max-train-steps", steps, "--validation-steps", validation)
        assert done.returncode == 0, done.stderr
    saved = find_checkpoint(tmp_path / "run")
    assert saved.step == 4
    assert load_identity(saved).config.tell_absent
    found = last_validation(tmp_path / "run")
    assert "NaN" not in json.dumps(found)
    shown = [tmp_path / "run", "--shards", mixed]
    evaluated = omniges("evaluate", "--checkpoint", *shown, "--split", "test", "--steps", 1, "--tasks", "t2g")
    assert evaluated.returncode == 0
    assert "t2g: 1 of 2 samples lack text or gesture, and are left out" in " ".join(evaluated.stdout.split())
    assert "nan" not in evaluated.stdout.lower()
    of_sample = [*shown, "--steps", 1, "--key", "1_synthetica_0_1_1", "-o", tmp_path / "out"]
    assert omniges("generate", "--task", "a2g", "--checkpoint", *of_sample).returncode == 0
    refused = omniges("generate", "--task", "t2g", "--checkpoint", *of_sample)
    assert refused.returncode == 2
    assert "--key 1_synthetica_0_1_1: expected a sample with text" in refused.stderr
    assert refused.stderr.count("\n") == 1


def test_a_part_that_no_sample_has_is_at_rest_and_named(clips, tmp_path):
    folder = write_partial(clips, clips.parent / "faceless", dict.fromkeys(range(12), ("face", "hands", "text")))
    validation = {"validation_steps": 2, "validation_windows": 1, "validation_samples": 1}
    run(folder, tmp_path / "run", max_train_steps=2, validation_sampling_steps=1, **validation)
    validated = next((tmp_path / "run" / "validation" / "step-000002" / "a2g").glob("*.json"))
    assert json.loads(validated.read_bytes())["absent"] == ["hands", "face"]
    key = "1_synthetica_0_1_1"
    settings = GenerateSettings(
        checkpoint=tmp_path / "run",
        task="a2g",
        output_dir=tmp_path / "out",
        sources=Sources(shards=folder, keys=(key,)),
        sampling=SamplingSettings(num_inference_steps=2),
    )
    generate(settings)
    record = json.loads((tmp_path / "out" / "1_synthetica_0_1_1.json").read_bytes())
    assert record["absent"] == ["hands", "face"]
    motion = decode_motion((tmp_path / "out" / "1_synthetica_0_1_1.npz").read_bytes())
    assert not motion.expressions.any()
    assert np.abs(motion.poses[:, 75:]).max() < 1e-6  # the hands
    assert np.isfinite(motion.poses).all()
    with pytest.raises(UsageFault, match="found t2g, for which no sample had text"):
        generate(replace(settings, task="t2g", output_dir=tmp_path / "other"))


def test_a_call_tells_the_model_what_a_file_lacks_as_the_command_does(clips, mixed, tmp_path):
    run(mixed, tmp_path / "run", max_train_steps=2)
    source = next(clips.rglob("1_synthetica_0_1_1.npz"))
    with np.load(source) as whole:
        arrays = dict(whole)
    poses, trans = arrays.pop("poses"), arrays.pop("trans")
    del arrays["expressions"]
    given = tmp_path / "body.npz"
    np.savez(given, **arrays, global_orient=poses[:, :3], body_pose=poses[:, 3:66], transl=trans)
    sources = Sources(gesture=(given,))
    sampling = SamplingSettings(num_inference_steps=2)
    out = tmp_path / "out"
    summary = generate(
        GenerateSettings(checkpoint=tmp_path / "run", task="g2a", output_dir=out, sources=sources, sampling=sampling)
    )
    called = OmnigesPipeline.from_pretrained(tmp_path / "run")("g2a", gesture=given, num_inference_steps=2)
    np.testing.assert_array_equal(called[0].mel, np.load(out / "body.mel.npy", allow_pickle=False))
    for warnings in (summary.warnings, called.warnings):
        assert sum("the input lacks hands, face" in warning for warning in warnings) == 1


def test_clips_with_what_the_statistics_lack_are_refused(clips, tmp_path):
    faceless = write_partial(clips, clips.parent / "no-face", dict.fromkeys(range(12), ("face",)))
    whole = write_partial(clips, clips.parent / "whole", {})
    settings = replace(settings_of(faceless, tmp_path / "run"), shards=(faceless, whole))
    with pytest.raises(UsageFault, match=r"expected statistics of face from train samples of .*no-face"):
        train(settings)


def test_a_set_without_absent_parts_has_no_embedding_of_them(clips, tmp_path):
    whole = write_partial(clips, clips.parent / "plain", {})
    run(whole, tmp_path / "run", max_train_steps=1)
    identity = load_identity(find_checkpoint(tmp_path / "run"))
    assert not identity.config.tell_absent
    assert identity.absent == ()
    assert "lacking" not in dict(identity.build(0).named_parameters())
    aware = replace(identity, config=replace(identity.config, tell_absent=True))
    assert "lacking" in dict(aware.build(0).named_parameters())


@pytest.mark.slow
def test_a_run_whose_train_clips_lack_a_body_validates_complete_ones(tmp_path):
    """The mean speeds of beats have no source then; the other metrics of gesture are still computed."""
    corpus = tmp_path / "corpus"
    write_sample_corpus(corpus, CorpusSettings(clips=6, seconds=7, words=6, speakers=1, seed=3))
    folder = write_partial(corpus, tmp_path / "shards", dict.fromkeys(range(2, 6), ("lower", "root")))
    brief = {"validation_steps": 1, "validation_samples": 0, "validation_sampling_steps": 1, "max_train_steps": 1}
    run(folder, tmp_path / "run", window_ticks=64, **brief)
    (found,) = log_of(tmp_path / "run", "validation")
    assert found["not_computed"]["a2g"]["beat_consistency"] == (
        "1 × no train recording has a complete body, so the mean speeds of joints are unknown"
    )
    assert "beat_consistency" not in found["metrics"]["a2g"]
    assert {"l1_diversity", "jerk", "frechet_gesture_distance"} <= found["metrics"]["a2g"].keys()
    with pytest.raises(
        UsageFault, match=r"--best-metric a2g/beat_consistency: .*no train recording has a complete body"
    ):
        run(folder, tmp_path / "best", window_ticks=64, best_metric="a2g/beat_consistency", **brief)
