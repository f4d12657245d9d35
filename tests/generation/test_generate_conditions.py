"""Values of condition streams in `generate`, `OmnigesPipeline`, `evaluate` and resuming: a person's, else one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pipeline_helpers import run_preprocess
from safetensors.torch import load_file
from training_helpers import checkpoint_of, last_validation, require_same_learning, run

from omniges.errors import UsageFault
from omniges.evaluation.run import evaluate
from omniges.evaluation.settings import EvaluateSettings
from omniges.formats.npz import decode_motion
from omniges.generation.pipeline import OmnigesPipeline
from omniges.generation.records import read_record
from omniges.generation.run import generate
from omniges.generation.sampler import asked_values, shown_values
from omniges.generation.settings import GenerateSettings, Sources
from omniges.model.checkpoint import find_checkpoint
from omniges.model.spec import load_model
from omniges.model.tasks import SamplingSettings
from omniges.shards.reader import ShardFolder
from omniges.testing.settings import CorpusSettings
from omniges.testing.synthetic_corpus import write_sample_corpus

QUICK: dict[str, Any] = {"condition_streams": ("emotion",), "learning_rate": 0.05, "lr_warmup_steps": 1}


@pytest.fixture(scope="module")
def moody(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of clips in three emotions."""
    root = tmp_path_factory.mktemp("moody")
    settings = CorpusSettings(clips=8, seconds=4.0, words=6, speakers=1, seed=3, emotions=3)
    write_sample_corpus(root / "corpus", settings)
    assert run_preprocess(root / "corpus", root / "shards").exit_code == 0
    return root / "shards"


@pytest.fixture(scope="module")
def checkpoint(moody: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps, validated once."""
    folder = tmp_path_factory.mktemp("conditions") / "run"
    how = {"validation_steps": 6, "validation_windows": 2, "validation_sampling_steps": 1}
    run(moody, folder, **QUICK, **how)
    return folder


def made(checkpoint: Path, shards: Path, out: Path, *conditions: tuple[str, str]) -> tuple[np.ndarray[Any, Any], Any]:
    """Poses of the test clip and what its record says of conditions."""
    key = next(row.key for row in ShardFolder(shards).rows if row.split == "test")
    settings = GenerateSettings(
        checkpoint=checkpoint,
        task="a2g",
        output_dir=out,
        sources=Sources(shards=shards, keys=(key,)),
        sampling=SamplingSettings(num_inference_steps=2),
        conditions=conditions,
        weights="last",
    )
    (record,) = generate(settings).records
    return decode_motion(record.with_suffix(".npz").read_bytes()).poses, read_record(record).settings["conditions"]


@pytest.mark.slow
def test_the_checkpoint_keeps_what_was_learned(checkpoint: Path) -> None:
    config = json.loads((checkpoint_of(checkpoint, 6) / "config.json").read_text())
    settings = {"values": ["anger", "happiness", "neutral"]}
    assert config["conditions"] == {"emotion": {"class": "omniges.conditions.emotion:Emotion", "settings": settings}}
    model, identity = load_model(find_checkpoint(checkpoint))
    assert model.conditions["emotion"].weight.shape == (3, 16)
    assert identity.label_names == ("emotion",)


def test_a_sample_has_its_own_value_unless_a_person_says_another(checkpoint: Path, moody: Path, tmp_path: Path) -> None:
    """The test clip is neutral: asking for that changes nothing, asking for anything else or nothing does."""
    own, said = made(checkpoint, moody, tmp_path / "own")
    assert said == {"emotion": "neutral"}
    neutral, _ = made(checkpoint, moody, tmp_path / "neutral", ("emotion", "neutral"))
    anger, of_anger = made(checkpoint, moody, tmp_path / "anger", ("emotion", "anger"))
    none, of_none = made(checkpoint, moody, tmp_path / "none", ("emotion", "none"))
    assert np.array_equal(own, neutral)
    assert (of_anger, of_none) == ({"emotion": "anger"}, {"emotion": None})
    assert not np.allclose(own, anger)
    assert not np.allclose(own, none)


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ((("emotion", "joy"),), "--condition emotion joy: expected one of anger, happiness, neutral or none"),
        ((("mood", "joy"),), "--condition mood: expected a condition stream of the model, .*; choose among emotion"),
        ((("emotion", "anger"), ("emotion", "anger")), "--condition emotion: expected each condition once"),
    ],
)
def test_what_the_model_does_not_know_is_refused(
    conditions: tuple[tuple[str, str], ...], said: str, checkpoint: Path, moody: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageFault, match=said):
        made(checkpoint, moody, tmp_path / "out", *conditions)
    assert not (tmp_path / "out").exists()


def test_models_without_streams_say_so_and_records_are_as_ever() -> None:
    with pytest.raises(UsageFault, match=r"--condition emotion: .* the model has no condition streams"):
        asked_values({}, [("emotion", "anger")], "--condition")
    assert shown_values({}, {}, [(0, 4)]) == {}


def test_the_pipeline_takes_the_same(checkpoint: Path, moody: Path) -> None:
    pipeline = OmnigesPipeline.from_pretrained(checkpoint, weights="last")
    assert pipeline.condition_streams == ("emotion",)
    row = next(row for row in ShardFolder(moody).rows if row.split == "test")
    given = ShardFolder(moody).gesture(row).gesture[:48]

    def sound(**changes: Any) -> Any:
        return pipeline("g2a", gesture=given, num_inference_steps=2, **changes)[0].mel

    anger, plain = sound(conditions={"emotion": "anger"}), sound()
    assert not np.allclose(anger, plain)
    assert np.array_equal(plain, sound(conditions={"emotion": None}))
    alone = pipeline(
        "unconditional", seconds=1.6, num_inference_steps=1, guidance_scale=2, conditions={"emotion": "anger"}
    )
    assert alone[0].gesture is not None
    with pytest.raises(UsageFault, match="conditions emotion joy: expected one of anger"):
        sound(conditions={"emotion": "joy"})


def test_evaluate_generates_with_each_recordings_own_value(checkpoint: Path, moody: Path, tmp_path: Path) -> None:
    settings = EvaluateSettings(
        checkpoint=checkpoint,
        shards=moody,
        tasks=("a2g",),
        num_inference_steps=1,
        resamples=5,
        work_dir=tmp_path / "w",
        split="val",
    )
    evaluate(settings)
    (record,) = (tmp_path / "w" / "a2g").glob("*.json")
    row = next(row for row in ShardFolder(moody).rows if row.split == "val")
    assert read_record(record).settings["conditions"] == {"emotion": row.labels["emotion"]} == {"emotion": "happiness"}


def test_validation_gives_windows_their_own_values(checkpoint: Path, moody: Path, tmp_path: Path) -> None:
    """Its records say so, and its losses are others where the embedding of that value is another."""
    folder = Path(last_validation(checkpoint)["folder"])
    records = [read_record(path) for path in folder.glob("a2g/*.json")]
    assert [record.settings["conditions"] for record in records] == [{"emotion": "happiness"}] * len(records)
    assert records


@pytest.mark.slow
def test_a_run_goes_on_to_the_last_bit_and_with_its_own_streams_alone(
    checkpoint: Path, moody: Path, tmp_path: Path
) -> None:
    how = QUICK | {"validation_steps": 0}
    run(moody, tmp_path / "whole", **how)
    run(moody, tmp_path / "parts", **how, max_train_steps=3)
    run(moody, tmp_path / "parts", **how)
    require_same_learning(tmp_path / "whole", tmp_path / "parts")
    with pytest.raises(UsageFault, match=r"condition stream emotion: .*'values': .* in the checkpoint, None in"):
        run(moody, tmp_path / "parts", **how | {"condition_streams": (), "max_train_steps": 9})


def test_a_run_that_begins_with_a_checkpoint_keeps_its_embeddings(
    moody: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """New streams are newly initialized, and a message names the streams that are left out."""
    plain = {"pretrained_model_name_or_path": checkpoint, "model": {}, "max_train_steps": 1, "learning_rate": 1e-12}
    run(moody, tmp_path / "same", **plain, condition_streams=("emotion",), weight_decay=0)
    was, now = (
        load_file(path / name)["conditions.emotion.weight"]
        for path, name in (
            (checkpoint_of(checkpoint, 6), "ema.safetensors"),
            (checkpoint_of(tmp_path / "same", 1), "model.safetensors"),
        )
    )
    assert np.allclose(was, now, atol=1e-6)
    run(moody, tmp_path / "without", **plain)
    assert "conditions.emotion.weight" not in load_file(checkpoint_of(tmp_path / "without", 1) / "model.safetensors")
    back = plain | {"pretrained_model_name_or_path": tmp_path / "without"}
    run(moody, tmp_path / "with", **back, condition_streams=("emotion",))
    assert "conditions.emotion.weight" in load_file(checkpoint_of(tmp_path / "with", 1) / "model.safetensors")


def test_a_value_is_asked_for_by_name_and_text() -> None:
    for text in ("emotion", "=anger", "emotion="):
        with pytest.raises(UsageFault, match=f"--condition {text}: expected NAME=VALUE such as emotion=happiness"):
            _parsed(text)
    assert _parsed("emotion=a=b") == ("emotion", "a=b")


def _parsed(text: str) -> Any:
    from omniges.options import Setting, settings_of

    setting = settings_of(GenerateSettings)["conditions"]
    assert isinstance(setting, Setting)
    assert setting.option.parse is not None
    return setting.option.parse("--condition", text)
