"""Models whose gesture stream has jaw and eyes: learned, resumed, generated, given, scored; earlier ones as before."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from partial_builders import write_partial
from training_helpers import checkpoint_of, last_validation, learned, log_of, losses_of, run

from omniges.errors import UsageFault
from omniges.evaluation.run import evaluate
from omniges.evaluation.settings import EvaluateSettings
from omniges.exchange.tracks import load_tracks
from omniges.formats.npz import decode_motion
from omniges.generation.pipeline import OmnigesPipeline
from omniges.generation.records import GeneratedRecord, read_record
from omniges.generation.run import generate
from omniges.generation.sampler import load
from omniges.generation.settings import GenerateSettings, Sources
from omniges.generation.writers import JAW_EYES_AT_REST
from omniges.model.checkpoint import CHECKPOINT_FILE, open_checkpoint
from omniges.model.spec import ModelConfig, load_identity
from omniges.model.tasks import SamplingSettings
from omniges.shards.dataset import seal
from omniges.shards.reader import ShardFolder
from omniges.storage.files import canonical_json, sha256_hex

STEM = "1_synthetica_0_1_1"


@pytest.fixture(scope="module")
def checkpoint(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("jaw") / "run"
    run(shards, folder, max_train_steps=2, gesture_channels=424)
    return folder


@pytest.fixture(scope="module")
def motion(corpus: Path) -> Path:
    return next(corpus.rglob(f"{STEM}.npz"))


def make(checkpoint: Path, out: Path, task: str, steps: int = 2, **sources: Any) -> GeneratedRecord:
    settings = GenerateSettings(
        checkpoint=checkpoint,
        task=task,
        output_dir=out,
        sources=Sources(**sources),
        sampling=SamplingSettings(num_inference_steps=steps),
    )
    return read_record(generate(settings).records[0])


def jaw_of(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(decode_motion(path.read_bytes()).poses[:, 66:75])


class TestTraining:
    def test_the_checkpoint_says_what_it_has(self, checkpoint: Path) -> None:
        identity = load_identity(open_checkpoint(checkpoint_of(checkpoint, 2)))
        assert identity.config.gesture_channels == 424
        assert identity.absent == ()
        loaded = load(checkpoint)
        assert loaded.model.stream("gesture").channels == 3 * 424
        assert loaded.facts()["gesture_channels"] == 424
        own = json.loads(identity.statistics)["jaw_eyes"]
        mean = loaded.model.stream("gesture").mean[415:]
        np.testing.assert_array_equal(mean.numpy(), np.array(own["mean"], np.float32))

    @pytest.mark.slow
    def test_version_1_of_the_shards_gives_the_same_model(self, shards: Path, version_1: Path, tmp_path: Path) -> None:
        """Its statistics of jaw and eyes are computed when training begins, and kept in the checkpoint."""
        assert "jaw_eyes" not in json.loads((version_1 / "stats.json").read_text())
        for name, folder in (("one", version_1), ("two", shards)):
            run(folder, tmp_path / name, max_train_steps=2, gesture_channels=424)
        kept = [json.loads((checkpoint_of(tmp_path / name, 2) / "stats.json").read_text()) for name in ("one", "two")]
        for key in ("mean", "std"):
            np.testing.assert_allclose(kept[0]["jaw_eyes"][key], kept[1]["jaw_eyes"][key], rtol=1e-12)
        assert learned(tmp_path / "one", 2) == learned(tmp_path / "two", 2)
        run(version_1, tmp_path / "one", max_train_steps=3, gesture_channels=424)  # goes on
        assert checkpoint_of(tmp_path / "one", 3).is_dir()

    @pytest.mark.slow
    def test_absent_jaw_and_eyes_change_no_bit_of_what_is_learned(self, corpus: Path, tmp_path: Path) -> None:
        lacking = dict.fromkeys(range(0, 12, 2), ("jaw_eyes",))
        for name, fill in (("mixed", None), ("filled", 1)):
            folder = write_partial(corpus, tmp_path / f"{name}-shards", lacking, fill=fill)
            run(folder, tmp_path / name, gesture_channels=424)
        assert losses_of(tmp_path / "mixed") == losses_of(tmp_path / "filled")
        assert learned(tmp_path / "mixed", 6) == learned(tmp_path / "filled", 6)
        identity = load_identity(open_checkpoint(checkpoint_of(tmp_path / "mixed", 6)))
        assert identity.config.tell_absent
        assert any("absent: jaw_eyes from " in remark for remark in log_of(tmp_path / "mixed", "start")[0]["remarks"])

    @pytest.mark.slow
    def test_a_stream_of_415_channels_learns_the_same_whether_or_not_there_are_jaw_and_eyes(
        self, corpus: Path, tmp_path: Path
    ) -> None:
        for name, lacking in (("whole", {}), ("jawless", dict.fromkeys(range(12), ("jaw_eyes",)))):
            folder = write_partial(corpus, tmp_path / f"{name}-shards", lacking)
            run(folder, tmp_path / name, max_train_steps=2, gesture_channels=415)
        assert learned(tmp_path / "whole", 2) == learned(tmp_path / "jawless", 2)

    def test_another_number_of_channels_is_another_model(self, checkpoint: Path, shards: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match="gesture_channels: 424 in the checkpoint, 415 in this run"):
            run(shards, checkpoint, max_train_steps=3, gesture_channels=415)
        changes = {"preset": None, "pretrained_model_name_or_path": checkpoint, "max_train_steps": 1, "model": {}}
        with pytest.raises(
            UsageFault, match=r"--gesture-channels 415: expected 424, which the pretrained weights have"
        ):
            run(shards, tmp_path / "other", gesture_channels=415, **changes)
        run(shards, tmp_path / "same", **changes)
        assert load(tmp_path / "same").identity.config.gesture_channels == 424

    def test_latents_of_gesture_have_no_jaw_and_eyes(self, shards: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match="gesture_channels 424: expected 415 with gesture_codec gesture-rvqvae"):
            run(shards, tmp_path / "run", gesture_codec="gesture-rvqvae", gesture_channels=424)

    @pytest.mark.slow
    def test_validation_scores_the_jaw(self, shards: Path, tmp_path: Path) -> None:
        common = {"max_train_steps": 1, "validation_steps": 1, "validation_windows": 2, "validation_sampling_steps": 1}
        for channels, there in ((415, False), (424, True)):
            folder = tmp_path / str(channels)
            run(shards, folder, gesture_channels=channels, validation_samples=0, **common)
            found = last_validation(folder)["metrics"]["a2g"]
            assert ("jaw_rotation_error" in found) == there
            assert "expression_correlation" in found


class TestGenerating:
    def test_jaw_and_eyes_move_in_every_window(self, checkpoint: Path, corpus: Path, tmp_path: Path) -> None:
        """They move in several windows of long-form generation."""
        record = make(checkpoint, tmp_path, "a2g", audio=(next(corpus.rglob(f"{STEM}.wav")),))
        assert len(record.seams_s) > 1
        jaw = jaw_of(tmp_path / f"{STEM}.npz")
        assert (jaw.std(axis=0) > 0).all()
        assert np.abs(np.diff(jaw, axis=0)).max(axis=1).min() > 0
        assert JAW_EYES_AT_REST not in record.remarks
        assert record.at_rest == ()
        (track,) = load_tracks([tmp_path])  # of pages, videos and exports
        assert track.absent == ()
        np.testing.assert_array_equal(track.motion.poses[:, 66:75], jaw)
        assert record.model["gesture_channels"] == 424

    def test_given_motion_is_read_with_its_jaw_and_absent_jaws_change_nothing(
        self, checkpoint: Path, motion: Path, tmp_path: Path
    ) -> None:
        with np.load(motion) as source:
            arrays = dict(source)
        poses, trans = arrays.pop("poses"), arrays.pop("trans")
        body = {"global_orient": poses[:, :3], "body_pose": poses[:, 3:66], "transl": trans}
        hands = {"left_hand_pose": poses[:, 75:120], "right_hand_pose": poses[:, 120:]}
        faces = {"jaw_pose": poses[:, 66:69], "leye_pose": poses[:, 69:72], "reye_pose": poses[:, 72:75]}
        versions = {
            "whole": arrays | body | hands | faces,
            "open": arrays | body | hands | faces | {"jaw_pose": poses[:, 66:69] + 0.3},
            "without": arrays | body | hands,
        }
        found = {}
        for name, content in versions.items():
            np.savez(tmp_path / f"{name}.npz", **content)
            record = make(checkpoint, tmp_path / name, "g2a", gesture=(tmp_path / f"{name}.npz",))
            lacks = any("lacks jaw_eyes" in remark for remark in record.remarks)
            assert lacks == (name == "without")
            found[name] = np.load(tmp_path / name / f"{name}.mel.npy")
        assert not np.array_equal(found["whole"], found["open"])
        assert not np.array_equal(found["whole"], found["without"])
        of_array = OmnigesPipeline.from_pretrained(checkpoint)
        whole = of_array("g2a", gesture=tmp_path / "without.npz", num_inference_steps=2)[0].mel
        np.testing.assert_array_equal(whole, found["without"])

    def test_a_call_gives_jaw_and_eyes_and_takes_them(self, checkpoint: Path, shards: Path) -> None:
        pipeline = OmnigesPipeline.from_pretrained(checkpoint)
        sample = pipeline("unconditional", seconds=1.0, num_inference_steps=1)[0]
        assert sample.gesture is not None
        assert sample.jaw_eyes is not None
        assert (sample.gesture.shape, sample.jaw_eyes.shape) == ((30, 415), (30, 9))
        np.testing.assert_array_equal(sample.motion().poses[:, 66:75], sample.jaw_eyes)
        folder = ShardFolder(shards)
        clip = folder.gesture(folder.row(STEM))
        both = np.concatenate([clip.gesture, clip.jaw_eyes], axis=1)[:90]
        ours, none = (pipeline("g2a", gesture=one, num_inference_steps=1)[0].mel for one in (both, both[:, :415]))
        assert not np.array_equal(ours, none)
        with pytest.raises(UsageFault, match=r"3 frames or more, 415 or 424"):
            pipeline("g2a", gesture=both[:, :420])

    def test_a_part_that_no_sample_has_is_at_rest_and_named(self, corpus: Path, tmp_path: Path) -> None:
        folder = write_partial(corpus, tmp_path / "shards", dict.fromkeys(range(12), ("jaw_eyes",)))
        run(folder, tmp_path / "run", max_train_steps=1, gesture_channels=424)
        record = make(tmp_path / "run", tmp_path / "out", "a2g", 1, shards=folder, keys=(STEM,))
        assert record.absent == record.at_rest == ("jaw_eyes",)
        assert not jaw_of(tmp_path / "out" / f"{STEM}.npz").any()

    @pytest.mark.slow
    def test_the_jaw_of_results_is_scored(self, checkpoint: Path, shards: Path, tmp_path: Path) -> None:
        make(checkpoint, tmp_path / "out", "a2g", 1, shards=shards, keys=(STEM,))
        report = evaluate(EvaluateSettings(generated=(tmp_path / "out",), shards=shards, resamples=10))
        found = {one.metric: one for one in report.tasks["a2g"].figures if one.row == "generated"}
        for metric in ("jaw rotation error", "jaw correlation", "expression correlation"):
            assert found[metric].value is not None


class TestEarlierCheckpoints:
    def test_one_that_does_not_know_of_channels_gives_what_it_gave(self, shards: Path, tmp_path: Path) -> None:
        run(shards, tmp_path / "now", max_train_steps=1, gesture_channels=415)
        shutil.copytree(checkpoint_of(tmp_path / "now", 1), earlier := tmp_path / "earlier")
        config = json.loads((earlier / "config.json").read_bytes())
        assert config["model"].pop("gesture_channels") == 415
        data = canonical_json(config)
        (earlier / "config.json").write_bytes(data)
        index = json.loads((earlier / CHECKPOINT_FILE).read_bytes())
        index["files"]["config.json"] = {"bytes": len(data), "sha256": sha256_hex(data)}
        del index["checksum"]
        (earlier / CHECKPOINT_FILE).write_bytes(seal(index))
        assert load(earlier).identity.config == load(tmp_path / "now").identity.config
        results = []
        for number, folder in enumerate((tmp_path / "now", earlier)):
            record = make(folder, tmp_path / f"out-{number}", "a2g", 1, shards=shards, keys=(STEM,))
            assert JAW_EYES_AT_REST in record.remarks
            assert record.at_rest == ("jaw_eyes",)
            results.append((tmp_path / f"out-{number}" / f"{STEM}.npz").read_bytes())
        assert results[0] == results[1]

    def test_a_record_without_the_number_of_channels_has_no_jaw(
        self, checkpoint: Path, shards: Path, tmp_path: Path
    ) -> None:
        record = make(checkpoint, tmp_path, "a2g", 1, shards=shards, keys=(STEM,))
        was = replace(record, model={name: value for name, value in record.model.items() if name != "gesture_channels"})
        assert (record.at_rest, was.at_rest) == ((), ("jaw_eyes",))

    @pytest.mark.parametrize("found", [416, "424", True, None])
    def test_other_numbers_are_refused(self, found: Any) -> None:
        with pytest.raises(UsageFault, match=r"gesture_channels: expected 415 or 424, found .*"):
            ModelConfig(width=16, layers=1, heads=2, gesture_channels=found)
