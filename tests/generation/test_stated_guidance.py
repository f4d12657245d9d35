"""The guidance scale that a checkpoint states for audio: who gets it, and what an earlier checkpoint gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from training_helpers import checkpoint_of, run

from omniges.generation.pipeline import OmnigesPipeline
from omniges.generation.records import GeneratedRecord, read_record
from omniges.generation.run import generate
from omniges.generation.settings import GenerateSettings, Sources
from omniges.model.checkpoint import CHECKPOINT_FILE, open_checkpoint
from omniges.model.spec import load_identity
from omniges.model.tasks import SamplingSettings
from omniges.shards.dataset import seal
from omniges.storage.files import sha256_hex

STEM = "1_synthetica_0_1_1"


def generated(checkpoint: Path, out: Path, shards: Path, task: str = "t2a", **chosen: float) -> GeneratedRecord:
    sources, sampling = Sources(shards=shards, keys=(STEM,)), SamplingSettings(**chosen)  # type: ignore[arg-type]
    settings = GenerateSettings(checkpoint=checkpoint, task=task, output_dir=out, sources=sources, sampling=sampling)
    return read_record(generate(settings).records[0])


@pytest.fixture(scope="module")
def earlier(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as an earlier version wrote it: its checkpoint states no guidance."""
    copy = Path(shutil.copytree(checkpoint, tmp_path_factory.mktemp("earlier") / "run"))
    folder = checkpoint_of(copy, 2)
    config = json.loads((folder / "config.json").read_bytes())
    assert config.pop("guidance") == {"audio": 2.0}
    data = json.dumps(config).encode()
    (folder / "config.json").write_bytes(data)
    index = json.loads((folder / CHECKPOINT_FILE).read_bytes())
    index["files"]["config.json"] = {"bytes": len(data), "sha256": sha256_hex(data)}
    del index["checksum"]
    (folder / CHECKPOINT_FILE).write_bytes(seal(index))
    return copy


def test_audio_is_generated_with_the_scale_that_the_checkpoint_states(
    checkpoint: Path, shards: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    stated = generated(checkpoint, tmp_path / "stated", shards)
    assert (stated.settings["steps"], stated.settings["guidance"]) == (10, 2.0)
    set_so = generated(checkpoint, tmp_path / "set", shards, num_inference_steps=10, guidance_scale=2.0)
    assert stated.files == set_so.files
    assert stated.settings == set_so.settings
    pipeline, text = OmnigesPipeline.from_pretrained(checkpoint), files["TextGrid"]
    mels = [
        pipeline("t2a", text=text, **chosen)[0].mel
        for chosen in ({}, {"num_inference_steps": 10, "guidance_scale": 2.0})
    ]
    np.testing.assert_array_equal(mels[0], mels[1])
    motion = generated(checkpoint, tmp_path / "motion", shards, "a2g")
    assert (motion.settings["steps"], motion.settings["guidance"]) == (20, 1.0)


def test_an_earlier_checkpoint_gives_what_it_gave_and_can_be_continued(
    checkpoint: Path, earlier: Path, shards: Path, tmp_path: Path
) -> None:
    found = generated(earlier, tmp_path / "earlier", shards)
    assert (found.settings["steps"], found.settings["guidance"]) == (20, 1.0)
    plain = generated(checkpoint, tmp_path / "plain", shards, num_inference_steps=20, guidance_scale=1.0)
    assert found.files == plain.files
    continued = Path(shutil.copytree(earlier, tmp_path / "run"))
    run(shards, continued, max_train_steps=3)
    assert load_identity(open_checkpoint(checkpoint_of(continued, 3))).guidance == {"audio": 2.0}


def test_a_model_that_never_trained_without_conditions_states_no_guidance(shards: Path, tmp_path: Path) -> None:
    run(shards, tmp_path / "run", max_train_steps=1, flow={"condition_dropout": 0.0})
    assert load_identity(open_checkpoint(checkpoint_of(tmp_path / "run", 1))).guidance == {}
