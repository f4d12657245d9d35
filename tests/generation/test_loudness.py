"""Audio files are scaled like the training audio of a model, and a model has one rule of loudness only."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pipeline_helpers import run_preprocess
from training_helpers import run, settings_of
from verify_builders import edited_dataset

from omniges.errors import DataError, UsageFault
from omniges.generation.records import read_record
from omniges.generation.run import generate
from omniges.generation.settings import GenerateSettings, Sources
from omniges.model.tasks import SamplingSettings
from omniges.shards.schema import DATASET_FILE
from omniges.testing.settings import CorpusSettings
from omniges.testing.synthetic_corpus import write_sample_corpus
from omniges.trainer.train import train

STEM = "1_synthetica_0_1_1"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus") / "root"
    write_sample_corpus(root, CorpusSettings(clips=8, seconds=4.0))
    return root


@pytest.fixture(scope="module")
def loud(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "peak"
    run_preprocess(corpus, folder, loudness="peak")
    return folder


def poses(checkpoint: Path, out: Path, sources: Sources) -> np.ndarray:
    steps = SamplingSettings(num_inference_steps=2)
    settings = GenerateSettings(
        checkpoint=checkpoint, task="a2g", output_dir=out, sources=sources, sampling=steps, speaker="synthetica"
    )
    generate(settings)
    return np.load(out / f"{STEM}.npz", allow_pickle=False)["poses"]


@pytest.mark.slow
def test_an_audio_file_gives_what_its_sample_in_the_shards_gives(corpus: Path, loud: Path, tmp_path: Path) -> None:
    run(loud, tmp_path / "run", max_train_steps=2, learning_rate=0.05, lr_warmup_steps=0)
    of_file = poses(tmp_path / "run", tmp_path / "a", Sources(audio=(next(corpus.rglob(f"{STEM}.wav")),)))
    of_sample = poses(tmp_path / "run", tmp_path / "b", Sources(shards=loud, keys=(STEM,)))
    np.testing.assert_allclose(of_file, of_sample, atol=1e-4)
    (given,) = read_record(tmp_path / "a" / f"{STEM}.json").inputs
    assert any("to loudness peak" in warning for warning in given["remarks"])


def test_shards_of_two_rules_are_not_mixed(corpus: Path, loud: Path, tmp_path: Path) -> None:
    run_preprocess(corpus, tmp_path / "plain")
    with pytest.raises(
        UsageFault, match=r"expected the same loudness in all folders, found peak in .*, none in .*plain"
    ):
        train(replace(settings_of(loud, tmp_path / "run"), shards=(loud, tmp_path / "plain")))


def test_weights_of_another_rule_are_no_beginning(corpus: Path, loud: Path, tmp_path: Path) -> None:
    run_preprocess(corpus, tmp_path / "plain")
    run(tmp_path / "plain", tmp_path / "first", max_train_steps=1)
    with pytest.raises(UsageFault, match=r"expected audio of loudness none \(as in its training\), found peak"):
        run(loud, tmp_path / "second", pretrained_model_name_or_path=tmp_path / "first", preset=None, model={})


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({}, "settings.convert.loudness"),
        ({"convert": []}, "settings.convert"),
        ({"convert": {}}, "settings.convert.loudness"),
        ({"convert": {"loudness": ["peak"]}}, "settings.convert.loudness"),
    ],
)
def test_a_sealed_dataset_json_that_states_no_rule_is_refused(
    loud: Path, tmp_path: Path, settings: object, field: str
) -> None:
    folder = Path(shutil.copytree(loud, tmp_path / "edited"))
    (folder / DATASET_FILE).write_bytes(edited_dataset(folder, lambda document: document.update(settings=settings)))
    with pytest.raises(DataError, match=rf"dataset\.json: {re.escape(field)}: expected .*, found .*"):
        train(settings_of(folder, tmp_path / "run"))
