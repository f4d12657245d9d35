"""Training and generation on latents of gesture, alone and beside those of audio, with codecs that never run."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from latent_builders import AUDIO, BOTH, CODECS, GESTURE, GESTURE_CHANNELS, STEM, generated, traced
from pipeline_helpers import omniges
from rvqvae_builders import WIDTHS, random_tensors, write_codec
from training_helpers import checkpoint_of, learned, log_of, losses_of, run, run_with_signal
from typer.testing import CliRunner
from verify_builders import run as verify

from omniges.cli import app
from omniges.codecs import audio_vae
from omniges.codecs import gesture_rvqvae as gesture_codec
from omniges.codecs.encode import encode
from omniges.codecs.registry import load_codec
from omniges.codecs.rvqvae import Rvqvae
from omniges.codecs.settings import EncodeSettings
from omniges.data.catalog import Filters, read_catalog
from omniges.data.loader import LoaderSettings
from omniges.data.order import RankShare
from omniges.data.sequence import DataSource, Sequencing
from omniges.errors import DataError, UsageFault
from omniges.evaluation.run import evaluate
from omniges.evaluation.settings import EvaluateSettings
from omniges.features.gesture import GestureClip, motion_from_gesture
from omniges.generation.inputs import Input, read_gesture
from omniges.generation.long_form import WindowSettings
from omniges.generation.pipeline import OmnigesPipeline
from omniges.generation.records import read_record
from omniges.generation.sampler import Codecs
from omniges.model.checkpoint import find_checkpoint
from omniges.model.spec import load_model
from omniges.model.tasks import TASKS
from omniges.shards.reader import ShardFolder
from omniges.trainer.batches import Feed
from omniges.trainer.loop import StopReason
from omniges.trainer.recipe import load_settings

CPU = torch.device("cpu")

Folders = dict[str, Path]


@pytest.fixture(scope="module")
def whole(encoded_both: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps on both, which was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(encoded_both, folder, **BOTH, checkpointing_steps=3)
    return folder


class TestShards:
    def test_are_sound_and_hold_the_codecs_latents_of_whole_clips(self, encoded_both: Path, folders: Folders) -> None:
        assert verify(encoded_both, "deep").findings == ()
        codec = load_codec(GESTURE, folders[GESTURE], CPU)
        folder = ShardFolder(encoded_both)
        for row in folder.rows:
            sample = folder.sample(row)
            assert sample.latents[GESTURE].shape == (row.frames // 4, GESTURE_CHANNELS)
            np.testing.assert_array_equal(sample.latents[GESTURE], codec.encode(sample.gesture.gesture))

    def test_say_which_codec_and_with_which_options(self, encoded_both: Path, folders: Folders) -> None:
        entry = ShardFolder(encoded_both).codecs[GESTURE]
        assert entry.fingerprint == load_codec(GESTURE, folders[GESTURE], CPU).entry.fingerprint
        assert entry.settings.keys() == {"latent_scale", "parts", "tool"}

    def test_folders_that_cannot_give_every_channel_back_are_refused(self, shards: Path, tmp_path: Path) -> None:
        write_codec(tmp_path / "rootless", **WIDTHS | {"lower": 54})
        write_codec(tmp_path / "faceless", **{part: width for part, width in WIDTHS.items() if part != "face"})
        refusals = {
            "rootless": "expected a lower-body network with 57 channels, including the root, found 54,",
            "faceless": "no network of face",
        }
        for name, words in refusals.items():
            codecs = ((GESTURE, tmp_path / name),)
            with pytest.raises(UsageFault, match=words) as refused:
                encode(EncodeSettings(shards=shards, codecs=codecs, output_dir=tmp_path / "out"))
            assert "\n" not in str(refused.value)
            assert not (tmp_path / "out").exists()

    @pytest.mark.long
    def test_the_command_adds_latents_of_both(
        self, shards: Path, folders: Folders, encoded_both: Path, tmp_path: Path
    ) -> None:
        codecs = [word for name, folder in folders.items() for word in ("--with", f"{name}={folder}")]
        done = omniges("encode", "--shards", shards, *codecs, "--out", tmp_path / "out")
        assert done.returncode == 0, done.stderr
        assert f"{GESTURE}, {AUDIO}: latents of 6 samples (24 s)" in done.stdout
        found, wanted = ShardFolder(tmp_path / "out"), ShardFolder(encoded_both)
        for row, other in zip(found.rows, wanted.rows, strict=True):
            latents = [folder.array(own, f"{GESTURE}.npy") for folder, own in ((found, row), (wanted, other))]
            np.testing.assert_allclose(*latents, atol=1e-5)


class TestWindows:
    def test_hold_whole_rows_of_both_codecs(self, encoded_both: Path) -> None:
        folder = ShardFolder(encoded_both)
        latents = {row.key: folder.sample(row).latents for row in folder.rows}
        catalog = read_catalog(encoded_both, Filters(), CODECS)
        settings = LoaderSettings(workers=0)
        share, starts = RankShare(batch_size=5), set()
        with Feed([DataSource(catalog)], Sequencing(window_ticks=12), share, settings, CPU) as feed:
            for _ in range(12):
                windows, positions = feed.next()
                for row, place in enumerate(feed.places(positions)):
                    start, own = place.start_tick, latents[place.key]
                    starts.add(start)
                    rows = {"gesture": own[GESTURE][start * 3 // 4 :][:9], "audio": own[AUDIO][start * 5 // 2 :][:30]}
                    for stream, wanted in rows.items():
                        np.testing.assert_array_equal(windows.arrays[stream][row].numpy(), wanted)
        assert len(starts) > 2
        assert all(start % 4 == 0 for start in starts)

    def test_of_other_lengths_are_refused(self, encoded_both: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match=r"--window-ticks 14: expected a multiple of 4, .* gesture-rvqvae.npy"):
            run(encoded_both, tmp_path / "run", gesture_codec=GESTURE, window_ticks=14)

    def test_are_what_trace_batches_tells(self, encoded_both: Path, shards: Path) -> None:
        words = ("--window-ticks", 12, "--batch-size", 4, "--steps", 3, "--decode")
        listed = omniges("trace-batches", "--shards", encoded_both, *words, "--gesture-codec", GESTURE)
        found = [json.loads(line) for line in listed.stdout.splitlines()]
        assert found == traced(encoded_both, 12, {"gesture": GESTURE})
        assert all(record["start_tick"] % 4 == 0 for record in found)
        assert traced(encoded_both, 12) == traced(shards, 12)  # without a codec, encoded_both shards are what they were


class TestTraining:
    @pytest.mark.parametrize("chosen", [{"gesture_codec": GESTURE}, BOTH])
    def test_all_six_tasks_have_losses_and_none_asks_a_codec(
        self, encoded_both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: dict[str, str]
    ) -> None:
        def never(*_: object, **__: object) -> None:
            raise AssertionError("a codec ran")

        monkeypatch.setattr(gesture_codec, "load_gesture_rvqvae", never)
        monkeypatch.setattr(audio_vae, "load", never)
        run(encoded_both, tmp_path / "run", **chosen, max_train_steps=12, logging_steps=12)
        (line,) = log_of(tmp_path / "run")
        assert {"t2g", "g2t", "a2g", "g2a", "t2a", "a2t"} <= line["tasks"].keys()
        assert all(np.isfinite(loss) for loss in losses_of(tmp_path / "run").values())

    def test_the_checkpoint_says_whose_latents_and_holds_their_statistics(
        self, whole: Path, encoded_both: Path
    ) -> None:
        folder = checkpoint_of(whole, 6)
        codecs = json.loads((folder / "config.json").read_bytes())["codecs"]
        there = ShardFolder(encoded_both).codecs
        assert {stream: (c["name"], c["fingerprint"]) for stream, c in codecs.items()} == {
            stream: (name, there[name].fingerprint) for stream, name in CODECS.items()
        }
        model, identity = load_model(find_checkpoint(whole))
        assert identity.tick_multiple == 4
        stream = model.stream("gesture")
        assert (stream.count(16), stream.channels) == (12, GESTURE_CHANNELS)
        np.testing.assert_allclose(stream.seconds(3).numpy(), np.array([0.5, 1.5, 2.5]) / 7.5, rtol=1e-6)
        train = [s.latents[GESTURE] for s in samples_of(encoded_both) if s.row.split == "train"]
        rows = np.concatenate(train).astype(np.float64)
        np.testing.assert_allclose(stream.state_dict()["mean"].numpy(), rows.mean(0), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(stream.state_dict()["scale"].numpy(), rows.std(0), rtol=1e-5)

    @pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
    def test_stopped_and_resumed_is_never_stopped_to_the_bit(
        self, whole: Path, encoded_both: Path, tmp_path: Path, workers: int
    ) -> None:
        stopped = run_with_signal(encoded_both, tmp_path / "run", 4, **BOTH, num_workers=workers)
        assert stopped.outcome.stop_reason is StopReason.STOPPED
        assert 0 < stopped.step < 6
        run(encoded_both, tmp_path / "run", **BOTH, num_workers=workers)
        assert learned(tmp_path / "run", 6) == learned(whole, 6)
        assert losses_of(tmp_path / "run") == losses_of(whole)

    def test_a_run_does_not_go_on_without_its_codec_or_with_another(
        self, whole: Path, encoded_both: Path, shards: Path, folders: Folders, tmp_path: Path
    ) -> None:
        write_codec(tmp_path / "other", seed=50)
        others = (GESTURE, tmp_path / "other"), (AUDIO, folders[AUDIO])
        encode(EncodeSettings(shards=shards, codecs=others, output_dir=tmp_path / "others"))
        without = {"audio_codec": AUDIO}
        for folder, chosen, words in (
            (encoded_both, without, "gesture codec: gesture-rvqvae .* in the checkpoint, None"),
            (tmp_path / "others", BOTH, "gesture codec: gesture-rvqvae .* in the checkpoint, gesture-rvqvae"),
        ):
            copy = Path(shutil.copytree(whole, tmp_path / f"run-{len(chosen)}"))
            with pytest.raises(UsageFault, match=words):
                run(folder, copy, **chosen, max_train_steps=8)

    def test_codecs_of_other_streams_and_shards_without_latents_are_refused(
        self, encoded_both: Path, shards: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(
            UsageFault, match="codec audioldm2-vae: expected latents of gesture, found latents of audio"
        ):
            run(encoded_both, tmp_path / "run", gesture_codec=AUDIO)
        with pytest.raises(
            UsageFault, match="expected latents of the codec gesture-rvqvae, found no latents; run omniges encode"
        ):
            run(shards, tmp_path / "run", gesture_codec=GESTURE)

    def test_the_setting_stands_in_a_recipe_too(self, tmp_path: Path) -> None:
        recipe = tmp_path / "r.yaml"
        recipe.write_text(f"gesture-codec: {GESTURE}\naudio-codec: {AUDIO}\n")
        assert load_settings(recipe, {}).codecs == CODECS


def samples_of(folder: Path) -> list[Any]:
    shards = ShardFolder(folder)
    return [shards.sample(row) for row in shards.rows]


class TestGenerate:
    @pytest.mark.parametrize("task", ["t2g", "g2t", "a2g", "ta2g", pytest.param("g2a", marks=pytest.mark.long)])
    def test_tasks_of_gesture_from_files_to_files(
        self, whole: Path, folders: Folders, recording: dict[str, Any], tmp_path: Path, task: str
    ) -> None:
        given = {name: recording[name] for name in TASKS[task].conditions}
        found = generated(whole, tmp_path / "out", task, folders, **given)
        record = read_record(tmp_path / "out" / f"{STEM}.json")
        assert record.ticks == 40
        assert {stream: codec["name"] for stream, codec in record.model["codecs"].items()} == CODECS
        if "gesture" in TASKS[task].targets:
            motion = np.load(io.BytesIO(found[f"{STEM}.npz"]), allow_pickle=False)
            assert motion["poses"].shape == (120, 165)
            assert all(np.isfinite(motion[name]).all() for name in ("poses", "expressions", "trans"))

    def test_results_are_the_codecs_motion_of_the_models_latents(
        self, whole: Path, folders: Folders, recording: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []
        decode = gesture_codec.GestureRvqvae.decode

        def watched(self: gesture_codec.GestureRvqvae, latents: Any) -> Any:
            seen.append(latents)
            return decode(self, latents)

        monkeypatch.setattr(gesture_codec.GestureRvqvae, "decode", watched)
        own = {GESTURE: folders[GESTURE]}  # no audio is generated or a condition, so its codec is not asked for
        created = generated(whole, tmp_path / "out", "t2g", own, text=recording["text"])
        (latents,) = seen  # the whole at once: no seams of the codec's
        assert latents.shape == (30, GESTURE_CHANNELS)
        channels = decode(load_codec(GESTURE, folders[GESTURE], CPU), latents)  # type: ignore[arg-type]
        wanted = motion_from_gesture(GestureClip(channels, np.zeros((120, 9), np.float32), np.zeros(2)))
        motion = np.load(io.BytesIO(created[f"{STEM}.npz"]), allow_pickle=False)
        for name in ("poses", "expressions", "trans"):
            np.testing.assert_array_equal(motion[name], getattr(wanted, name).astype(motion[name].dtype))
        assert generated(whole, tmp_path / "again", "t2g", own, text=recording["text"]) == created

    def test_latents_are_snapped_to_codes_unless_set_otherwise_and_the_record_says_so(
        self, whole: Path, folders: Folders, recording: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []
        decode = Rvqvae.decode

        def watched(self: Rvqvae, latents: Any, *, quantised: bool, **more: Any) -> Any:
            seen.append(quantised)
            return decode(self, latents, quantised=quantised, **more)

        monkeypatch.setattr(Rvqvae, "decode", watched)
        own, text = {GESTURE: folders[GESTURE]}, {"text": recording["text"]}
        words = ("--checkpoint", whole, "--task", "t2g", "--text", recording["text"][0], "--steps", 2)
        codec = ("--codec", f"{GESTURE}={folders[GESTURE]}")
        generated(whole, tmp_path / "codes", "t2g", own, **text)
        done = CliRunner().invoke(app, [*map(str, ("generate", *words, *codec, "-o", tmp_path / "as")), "--continuous"])
        assert done.exit_code == 0, done.output
        assert seen == [True] * 4 + [False] * 4
        records = [read_record(tmp_path / name / f"{STEM}.json") for name in ("codes", "as")]
        assert [record.settings["quantised"] for record in records] == [True, False]
        poses = [np.load(tmp_path / name / f"{STEM}.npz", allow_pickle=False)["poses"] for name in ("codes", "as")]
        assert np.abs(poses[0] - poses[1]).max() > 0.01
        generated(whole, tmp_path / "text", "g2t", own, gesture=recording["gesture"])
        assert read_record(tmp_path / "text" / f"{STEM}.json").settings["quantised"] is None

    def test_without_motion_of_a_codec_there_is_nothing_to_snap(
        self, whole: Path, folders: Folders, recording: dict[str, Any], tmp_path: Path
    ) -> None:
        for task, given in (("g2t", {"gesture": recording["gesture"]}), ("t2a", {"text": recording["text"]})):
            with pytest.raises(UsageFault, match="--continuous: expected a target with a quantizing codec"):
                generated(whole, tmp_path / "out", task, folders, continuous=True, **given)
        assert not (tmp_path / "out").exists()

    def test_motion_as_a_file_is_the_condition_that_encoded_shards_hold(
        self, whole: Path, folders: Folders, recording: dict[str, Any], encoded_both: Path
    ) -> None:
        entries = load_model(find_checkpoint(whole))[1].codecs
        given = read_gesture(recording["gesture"][0])
        windows = WindowSettings(window_ticks=40, overlap_ticks=0)
        conditions, _ = Codecs(entries, tuple(folders.items())).conditions(Input("input", 40, (given,)), windows)
        ticks_of = conditions["gesture"]
        folder = ShardFolder(encoded_both)
        latents = folder.sample(folder.row(STEM)).latents[GESTURE]  # four seconds are whole ticks: all frames are there
        np.testing.assert_allclose(ticks_of(0, 40), latents, atol=1e-5)
        np.testing.assert_allclose(ticks_of(8, 16), latents[6:18], atol=1e-5)

    def test_latents_of_shards_need_no_codec(
        self, whole: Path, encoded_both: Path, shards: Path, tmp_path: Path
    ) -> None:
        generated(whole, tmp_path / "a", "g2t", {}, shards=encoded_both, keys=(STEM,))
        with pytest.raises(UsageFault, match="give --codec gesture-rvqvae=FOLDER"):
            generated(whole, tmp_path / "b", "g2t", {}, shards=shards, keys=(STEM,))

    def test_the_pipeline_in_python_gives_channels(
        self, whole: Path, folders: Folders, recording: dict[str, Any]
    ) -> None:
        found = []
        for quantised in (True, False):
            pipeline = OmnigesPipeline.from_pretrained(whole, codecs=folders, quantised=quantised)
            (sample,) = pipeline("a2g", audio=recording["audio"][0], num_inference_steps=2).samples
            assert sample.gesture is not None
            assert sample.gesture.shape == (120, 415)
            found.append(sample.gesture)
        assert np.abs(found[0] - found[1]).max() > 0.01

    @pytest.mark.slow
    def test_lengths_are_whole_rows_of_both_codecs(self, whole: Path, folders: Folders, tmp_path: Path) -> None:
        generated(whole, tmp_path / "out", "unconditional", folders, seconds=2.7)
        assert read_record(tmp_path / "out" / "unconditional.json").ticks == 24
        with pytest.raises(DataError, match=r"expected at least 0.4 s"):
            generated(whole, tmp_path / "none", "unconditional", folders, seconds=0.3)

    def test_the_right_codecs_are_asked_for_before_anything_is_generated(
        self, whole: Path, folders: Folders, recording: dict[str, Any], tmp_path: Path
    ) -> None:
        other = Path(shutil.copytree(folders[GESTURE], tmp_path / "other"))
        torch.save({"net": random_tensors(77, channels=100, size=7)}, other / "net_300000_face.pth")
        asked = {"t2g": {"text": recording["text"]}, "g2t": {"gesture": recording["gesture"]}}
        for task, given in asked.items():
            with pytest.raises(
                UsageFault, match=r"expected a folder for gesture-rvqvae, because .*; give --codec gesture-rvqvae="
            ):
                generated(whole, tmp_path / "out", task, {AUDIO: folders[AUDIO]}, **given)
            with pytest.raises(UsageFault, match="as in the checkpoint, found"):
                generated(whole, tmp_path / "out", task, {GESTURE: other}, **given)
        assert not (tmp_path / "out").exists()


def test_evaluate_asks_for_every_codec_that_its_tasks_need_before_it_makes_anything(
    whole: Path, folders: Folders, encoded_both: Path, tmp_path: Path
) -> None:
    """The codec of audio is required, although only the second task generates audio."""
    own = ((GESTURE, folders[GESTURE]),)
    source = {
        "checkpoint": whole,
        "codecs": own,
        "tasks": ("a2g", "t2a"),
        "num_inference_steps": 2,
        "work_dir": tmp_path / "work",
    }
    with pytest.raises(
        UsageFault, match=r"expected a folder for audioldm2-vae, because .*; give --codec audioldm2-vae=FOLDER"
    ):
        evaluate(EvaluateSettings(shards=encoded_both, **source))
    assert not (tmp_path / "work").exists()


@pytest.mark.long
def test_evaluate_makes_and_scores_motion_of_latents(whole: Path, folders: Folders, encoded_both: Path) -> None:
    source = {"checkpoint": whole, "codecs": tuple(folders.items()), "tasks": ("a2g",), "num_inference_steps": 2}
    report = evaluate(EvaluateSettings(shards=encoded_both, **source, resamples=20))
    assert report.tasks.keys() == {"a2g"}
    found = report.tasks["a2g"]
    assert any(figure.value is not None and np.isfinite(figure.value) for figure in found.figures)
    assert found.made_by is not None
    assert {codec["name"] for codec in found.made_by["model"]["codecs"].values()} == {GESTURE, AUDIO}
