"""Training and generation on latents: read from the shards, aligned to the row, the codec never run and never kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import remote_helpers as remote
import torch
from hypothesis import given as examples
from hypothesis import strategies as st
from latent_builders import AUDIO, STEM, generated, traced
from pipeline_helpers import run_preprocess
from rvqvae_builders import write_codec
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training_helpers import TENSOR_FILES, checkpoint_of, learned, log_of, losses_of, run, run_with_signal, settings_of
from vae_builders import write_vae

from omniges.codecs import audio_vae
from omniges.codecs import encode as encode_module
from omniges.codecs.encode import encode
from omniges.codecs.registry import load_codec
from omniges.codecs.settings import EncodeSettings
from omniges.data.catalog import Filters, read_catalog
from omniges.data.loader import BatchLoader, LoaderSettings
from omniges.data.order import ClipOrder, RankShare, text_hashes
from omniges.data.sequence import DataSource, Sequencing
from omniges.errors import DataError, UsageFault
from omniges.generation.records import read_record
from omniges.generation.run import generate
from omniges.generation.settings import GenerateSettings, Sources
from omniges.model.checkpoint import find_checkpoint
from omniges.model.spec import CodecLatents, ModelConfig, build_model, load_model
from omniges.model.tasks import TASKS
from omniges.shards.latents import FrameEntry
from omniges.shards.reader import ShardFolder
from omniges.testing.settings import CorpusSettings
from omniges.testing.synthetic_corpus import write_sample_corpus
from omniges.trainer.batches import Feed
from omniges.trainer.config import TrainSettings
from omniges.trainer.loop import StopReason
from omniges.trainer.recipe import load_settings
from omniges.trainer.train import train

CPU = torch.device("cpu")
CHOSEN = {"audio": AUDIO}


@pytest.fixture(scope="module")
def whole(encoded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(encoded, folder, audio_codec=AUDIO, checkpointing_steps=3)
    return folder


class TestWindows:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_hold_the_rows_of_their_ticks_and_begin_with_one(self, encoded: Path, workers: int) -> None:
        folder = ShardFolder(encoded)
        samples = {row.key: folder.sample(row) for row in folder.rows}
        data = [DataSource(read_catalog(encoded, Filters(), CHOSEN))]
        settings = LoaderSettings(workers=workers)
        starts = set()
        with Feed(data, Sequencing(window_ticks=6), RankShare(batch_size=5), settings, CPU) as feed:
            for _ in range(12):
                windows, positions = feed.next()
                assert windows.arrays["audio"].shape == (5, 15, 128)
                for row, place in enumerate(feed.places(positions)):
                    sample, start = samples[place.key], place.start_tick
                    starts.add(start)
                    latents = sample.latents[AUDIO][start * 5 // 2 :][:15]
                    np.testing.assert_array_equal(windows.arrays["audio"][row].numpy(), latents)
                    gesture = sample.gesture.gesture[start * 3 :][:18]
                    np.testing.assert_array_equal(windows.arrays["gesture"][row].numpy(), gesture)
        assert len(starts) > 5
        assert all(start % 2 == 0 for start in starts)

    def test_the_loader_normalises_by_the_train_splits_latents(self, encoded: Path) -> None:
        data = [DataSource(read_catalog(encoded, Filters(), CHOSEN))]
        statistics = json.loads((encoded / "latents.json").read_bytes())[AUDIO]
        share = RankShare(batch_size=1)
        with BatchLoader(data, Sequencing(window_ticks=40, shuffle=False), share, LoaderSettings(workers=0)) as loader:
            rows = np.concatenate([batch.audio.numpy()[0] for batch in loader])
        latents = np.concatenate([s.latents[AUDIO] for s in map(ShardFolder(encoded).sample, train_rows(encoded))])
        wanted = (latents - np.array(statistics["mean"])) / np.array(statistics["std"])
        np.testing.assert_allclose(rows, wanted, atol=1e-4)

    @examples(
        lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6),
        units=st.integers(1, 8),
        multiple=st.sampled_from([1, 2, 4]),
        seed=st.integers(0, 5),
    )
    def test_each_of_an_epoch_appears_once_inside_its_clip_and_apart(
        self, lengths: list[int], units: int, multiple: int, seed: int
    ) -> None:
        window = units * multiple
        ticks = np.array(lengths)
        expected = ticks // multiple * multiple // window
        if not expected.any():
            return
        hashes = text_hashes(np.array([str(k).encode() for k in range(len(lengths))]))
        order = ClipOrder(ticks, hashes, window, seed, shuffle=True, multiple=multiple)
        _, samples, starts = order.windows_at(np.arange(order.windows))
        assert (starts % multiple == 0).all()
        np.testing.assert_array_equal(np.bincount(samples, minlength=len(lengths)), expected)
        for clip, length in enumerate(lengths):
            own = np.sort(starts[samples == clip])
            assert (np.diff(own) >= window).all()
            assert not len(own) or (own[0] >= 0 and own[-1] + window <= length)

    def test_windows_of_whole_rows_are_asked_for(self, encoded: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match=r"--window-ticks 15: expected a multiple of 2, .* audioldm2-vae.npy"):
            run(encoded, tmp_path / "run", audio_codec=AUDIO, window_ticks=15)

    def test_trace_batches_tells_the_same_windows(self, encoded: Path, shards: Path) -> None:
        found = traced(encoded, 6, CHOSEN)
        assert all(record["start_tick"] % 2 == 0 for record in found)
        data = [DataSource(read_catalog(encoded, Filters(), CHOSEN))]
        with Feed(data, Sequencing(window_ticks=6), RankShare(batch_size=4), LoaderSettings(workers=0), CPU) as feed:
            places = [place for _ in range(3) for place in feed.places(feed.next()[1])]
        assert [(r["key"], r["start_tick"]) for r in found] == [(p.key, p.start_tick) for p in places]
        # Without a codec, encoded shards are read as they were before.
        assert traced(encoded, 6) == traced(shards, 6)


def train_rows(folder: Path) -> list[Any]:
    return sorted((row for row in ShardFolder(folder).rows if row.split == "train"), key=lambda row: row.key)


class TestTraining:
    def test_all_six_tasks_have_losses_and_none_asks_the_codec(
        self, encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def never(*_: object) -> None:
            raise AssertionError("the codec ran")

        monkeypatch.setattr(audio_vae, "load", never)
        run(encoded, tmp_path / "run", audio_codec=AUDIO, max_train_steps=12, logging_steps=12)
        (line,) = log_of(tmp_path / "run")
        assert {"t2g", "g2t", "a2g", "g2a", "t2a", "a2t"} <= line["tasks"].keys()
        assert line["streams"].keys() == {"gesture", "text", "audio"}
        assert all(np.isfinite(loss) for loss in losses_of(tmp_path / "run").values())

    def test_nothing_of_the_codec_is_in_weights_average_or_optimizer(
        self, whole: Path, vae: Path, shards: Path, tmp_path: Path
    ) -> None:
        run(shards, tmp_path / "plain", max_train_steps=1)
        codec = set(load_file(vae / "diffusion_pytorch_model.safetensors"))
        for file in TENSOR_FILES:
            with safe_open(checkpoint_of(whole, 6) / file, framework="pt") as latent:
                names = set(latent.keys())
            with safe_open(checkpoint_of(tmp_path / "plain", 1) / file, framework="pt") as plain:
                assert names == set(plain.keys())
            assert not any(name.endswith(part) for name in names for part in codec)

    def test_the_checkpoint_says_whose_latents_and_holds_their_statistics(self, whole: Path, encoded: Path) -> None:
        folder = checkpoint_of(whole, 6)
        config = json.loads((folder / "config.json").read_bytes())["codecs"]["audio"]
        entry = ShardFolder(encoded).codecs[AUDIO]
        assert (config["name"], config["fingerprint"]) == (AUDIO, entry.fingerprint)
        assert (folder / "latents.json").read_bytes() == (encoded / "latents.json").read_bytes()
        provenance = json.loads((folder / "provenance.json").read_bytes())["data"][0]
        assert provenance["codecs"]["audio"]["settings"]["loudness"] == "none"
        model, identity = load_model(find_checkpoint(whole))
        assert identity.codecs["audio"].rows_per_tick * 10 == 25
        assert model.stream("audio").count(16) == 40
        np.testing.assert_allclose(model.stream("audio").seconds(3).numpy(), [0.02, 0.06, 0.1], rtol=1e-6)
        saved = json.loads((encoded / "latents.json").read_bytes())[AUDIO]
        np.testing.assert_allclose(model.stream("audio").state_dict()["mean"].numpy(), saved["mean"], rtol=1e-6)

    @pytest.mark.slow
    @pytest.mark.parametrize("workers", [0, 2])
    def test_stopped_and_resumed_is_never_stopped_to_the_bit(
        self, whole: Path, encoded: Path, tmp_path: Path, workers: int
    ) -> None:
        stopped = run_with_signal(encoded, tmp_path / "run", 4, audio_codec=AUDIO, num_workers=workers)
        assert stopped.outcome.stop_reason is StopReason.STOPPED
        assert 0 < stopped.step < 6
        run(encoded, tmp_path / "run", audio_codec=AUDIO, num_workers=workers)
        assert learned(tmp_path / "run", 6) == learned(whole, 6)
        assert losses_of(tmp_path / "run") == losses_of(whole)

    def test_from_a_url_it_is_the_same(self, whole: Path, encoded: Path, tmp_path: Path) -> None:
        with remote.web_server(encoded) as web:
            run(web.url, tmp_path / "run", audio_codec=AUDIO, cache_dir=tmp_path / "cache", checkpointing_steps=3)
            assert web.requests["latents.json"] == 1
        assert learned(tmp_path / "run", 6) == learned(whole, 6)

    @pytest.mark.parametrize("prediction", ["clean", "velocity"])
    def test_losses_are_mean_squares_of_what_the_head_gives(self, encoded: Path, prediction: Any) -> None:
        catalog = read_catalog(encoded, Filters(), CHOSEN)
        config = ModelConfig(width=16, layers=1, heads=2, audio_prediction=prediction)
        latents = {"audio": CodecLatents(catalog.codecs["audio"], catalog.latents[AUDIO])}
        model = build_model(config, statistics=catalog.statistics, vocab_size=300, speakers=1, codecs=latents)
        stream = model.stream("audio")
        rows = torch.from_numpy(ShardFolder(encoded).sample(train_rows(encoded)[0]).latents[AUDIO][:10].copy())[None]
        clean, noise, output = stream.tokens(rows), torch.randn(1, 10, 128), torch.randn(1, 10, 128)
        target = clean if prediction == "clean" else noise - clean
        wanted = (output - target).square().mean((1, 2))
        torch.testing.assert_close(stream.losses(output, rows, clean, noise), wanted)
        torch.testing.assert_close(stream.arrays(clean), rows, atol=1e-5, rtol=1e-5)


class TestRefusals:
    def test_shards_without_latents_and_codecs_of_other_streams(self, shards: Path, tmp_path: Path) -> None:
        with pytest.raises(
            UsageFault, match=r"expected latents of the codec audioldm2-vae, found no latents; run omniges encode"
        ):
            run(shards, tmp_path / "run", audio_codec=AUDIO)

    @pytest.fixture
    def others(self, shards: Path, tmp_path: Path) -> Path:
        """The same recordings, encoded by another codec of the same name."""
        write_vae(tmp_path / "other", seed=1)
        encode(EncodeSettings(shards=shards, codecs=((AUDIO, tmp_path / "other"),), output_dir=tmp_path / "others"))
        return tmp_path / "others"

    def test_a_run_does_not_go_on_with_latents_of_another_codec(
        self, whole: Path, others: Path, shards: Path, tmp_path: Path
    ) -> None:
        for folder, codec, words in ((others, AUDIO, "audio codec: audioldm2-vae"), (shards, None, "None in this run")):
            copy = Path(shutil.copytree(whole, tmp_path / f"run-{codec}"))
            with pytest.raises(UsageFault, match=words):
                run(folder, copy, audio_codec=codec, max_train_steps=8)

    @pytest.mark.slow
    @pytest.mark.parametrize("codec", [AUDIO, None])
    def test_latents_of_a_codec_that_a_run_does_not_use_may_come_and_be_replaced(
        self, codec: str | None, shards: Path, vae: Path, tmp_path: Path
    ) -> None:
        folder = Path(shutil.copytree(shards, tmp_path / "s"))
        if codec is not None:
            encode(EncodeSettings(shards=folder, codecs=((AUDIO, vae),)))
        run(folder, tmp_path / "never", audio_codec=codec, max_train_steps=4)
        run(folder, tmp_path / "run", audio_codec=codec, max_train_steps=2)
        write_codec(tmp_path / "rvqvae")
        encode(EncodeSettings(shards=folder, codecs=(("gesture-rvqvae", tmp_path / "rvqvae"),)))
        run(folder, tmp_path / "run", audio_codec=codec, max_train_steps=3)
        write_codec(tmp_path / "another", seed=5)
        encode(EncodeSettings(shards=folder, codecs=(("gesture-rvqvae", tmp_path / "another"),), overwrite=True))
        run(folder, tmp_path / "run", audio_codec=codec, max_train_steps=4)
        assert learned(tmp_path / "run", 4) == learned(tmp_path / "never", 4)
        write_vae(tmp_path / "other", seed=1)
        encode(EncodeSettings(shards=folder, codecs=((AUDIO, tmp_path / "other"),), overwrite=True))
        if codec is None:
            run(folder, tmp_path / "run", max_train_steps=5)
        else:
            with pytest.raises(UsageFault, match="audio codec: audioldm2-vae"):
                run(folder, tmp_path / "run", audio_codec=codec, max_train_steps=5)

    def test_folders_of_a_mixture_have_one_codec(self, encoded: Path, others: Path, tmp_path: Path) -> None:
        both = (str(encoded), str(others))
        with pytest.raises(
            UsageFault, match=r"expected latents of audioldm2-vae \w+… \(25 rows/s of 128\) as in .*, found"
        ):
            train(TrainSettings(shards=both, output_dir=tmp_path / "run", audio_codec=AUDIO, window_ticks=16))

    def test_damaged_latents_are_reported_with_their_place(self, encoded: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(encoded, tmp_path / "s"))
        row = train_rows(folder)[0]
        data = bytearray((folder / row.shard).read_bytes())
        data[row.members[f"{AUDIO}.npy"].offset + 500] ^= 1
        (folder / row.shard).write_bytes(data)
        with pytest.raises(DataError, match=rf"{row.key}.{AUDIO}.npy at byte \d+: expected sha256"):
            run(folder, tmp_path / "run", audio_codec=AUDIO)

    def test_the_setting_stands_in_a_recipe_too(self, encoded: Path, tmp_path: Path) -> None:
        recipe = tmp_path / "r.yaml"
        recipe.write_text(f"audio-codec: {AUDIO}\n")
        assert load_settings(recipe, {}).codecs == CHOSEN
        assert settings_of(encoded, tmp_path).codecs == {}


def make(checkpoint: Path, out: Path, task: str, vae: Path | None = None, **sources: Any) -> dict[str, bytes]:
    return generated(checkpoint, out, task, {} if vae is None else {AUDIO: vae}, **sources)


class TestGenerate:
    @pytest.mark.slow
    @pytest.mark.parametrize("task", [name for name in TASKS if name != "joint"])
    def test_every_task_from_files_to_files(
        self, whole: Path, vae: Path, recording: dict[str, Any], tmp_path: Path, task: str
    ) -> None:
        given = {name: recording[name] for name in TASKS[task].conditions}
        found = make(whole, tmp_path / "out", task, vae, **given)
        record = read_record(tmp_path / "out" / f"{STEM}.json")
        assert record.ticks == 40
        assert record.model["codecs"]["audio"]["name"] == AUDIO
        if f"{STEM}.mel.npy" in found:
            mel = np.load(tmp_path / "out" / f"{STEM}.mel.npy", allow_pickle=False)
            assert mel.shape == (400, 64)
            assert mel.std() > 0
        assert make(whole, tmp_path / "again", task, vae, **given) == found

    def test_results_are_the_codecs_mel_of_the_models_latents(
        self, whole: Path, vae: Path, recording: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []
        decode = audio_vae.AudioVae.decode

        def watched(self: audio_vae.AudioVae, latents: Any) -> Any:
            seen.append(latents)
            return decode(self, latents)

        monkeypatch.setattr(audio_vae.AudioVae, "decode", watched)
        make(whole, tmp_path / "out", "t2a", vae, text=recording["text"])
        (latents,) = seen  # the whole at once: no seams of the codec's
        assert latents.shape == (100, 128)
        mel = np.load(tmp_path / "out" / f"{STEM}.mel.npy", allow_pickle=False)
        np.testing.assert_array_equal(mel, load_codec(AUDIO, vae, CPU).decode(latents))

    def test_of_encoded_shards_conditions_need_no_codec(
        self, whole: Path, vae: Path, encoded: Path, shards: Path, tmp_path: Path
    ) -> None:
        key = ShardFolder(encoded).rows[0].key
        without = make(whole, tmp_path / "a", "a2g", shards=encoded, keys=(key,))
        with_codec = make(whole, tmp_path / "b", "a2g", vae, shards=shards, keys=(key,))
        assert without[f"{key}.npz"] == with_codec[f"{key}.npz"]  # four seconds are whole ticks: the same latents
        with pytest.raises(
            UsageFault, match=r"expected a folder for audioldm2-vae, because .*; give --codec audioldm2-vae=FOLDER"
        ):
            make(whole, tmp_path / "c", "a2g", shards=shards, keys=(key,))

    @pytest.mark.slow
    def test_audio_files_are_as_loud_as_what_the_model_learned_from(
        self, corpus: Path, vae: Path, recording: dict[str, Any], tmp_path: Path
    ) -> None:
        run_preprocess(corpus, tmp_path / "peak", loudness="peak")
        summary = encode(EncodeSettings(shards=tmp_path / "peak", codecs=((AUDIO, vae),)))
        assert not summary.warnings
        run(tmp_path / "peak", tmp_path / "run", audio_codec=AUDIO, max_train_steps=1)
        make(tmp_path / "run", tmp_path / "a", "a2g", vae, audio=recording["audio"])
        make(tmp_path / "run", tmp_path / "b", "a2g", shards=tmp_path / "peak", keys=(STEM,))
        a, b = (np.load(tmp_path / name / f"{STEM}.npz", allow_pickle=False)["poses"] for name in "ab")
        np.testing.assert_allclose(a, b, atol=1e-4)
        (given,) = read_record(tmp_path / "a" / f"{STEM}.json").inputs
        assert any("to loudness peak" in warning for warning in given["remarks"])

    def test_unconditional_of_odd_length_is_cut_to_whole_rows(self, whole: Path, vae: Path, tmp_path: Path) -> None:
        make(whole, tmp_path / "out", "unconditional", vae, seconds=2.7)
        assert read_record(tmp_path / "out" / "unconditional.json").ticks == 26
        with pytest.raises(DataError, match=r"expected at least 0.2 s"):
            make(whole, tmp_path / "none", "unconditional", vae, seconds=0.1)

    def test_refusals_before_anything_is_generated(
        self, whole: Path, vae: Path, recording: dict[str, Any], shards: Path, tmp_path: Path
    ) -> None:
        other = tmp_path / "other"
        shutil.copytree(vae, other)
        weights = load_file(other / "diffusion_pytorch_model.safetensors")
        weights["quant_conv.bias"] += 1
        save_file(weights, other / "diffusion_pytorch_model.safetensors")
        for folder, words in ((None, "give --codec"), (other, "as in the checkpoint, found")):
            with pytest.raises(UsageFault, match=words):
                make(whole, tmp_path / "out", "t2a", folder, text=recording["text"])
            with pytest.raises(UsageFault, match=words):
                make(whole, tmp_path / "out", "a2t", folder, audio=recording["audio"])
        run(shards, tmp_path / "plain", max_train_steps=1)
        with pytest.raises(
            UsageFault, match=r"expected codecs of the model \(none\), found another codec; remove this codec"
        ):
            make(tmp_path / "plain", tmp_path / "out", "t2g", vae, text=recording["text"])
        with pytest.raises(UsageFault, match=r"--overlap-ticks 3: expected a multiple of 2"):
            generate(
                GenerateSettings(
                    checkpoint=whole,
                    task="t2g",
                    output_dir=tmp_path / "out",
                    sources=Sources(text=recording["text"]),
                    overlap_ticks=3,
                )
            )
        assert not (tmp_path / "out").exists()


class ThreeQuarters:
    """A codec of gesture at 7.5 rows a second, as an RVQ-VAE has them: the mean of four frames."""

    entry = FrameEntry(name="test-quarters", fingerprint="0" * 64, source="gesture.npy", frames_per_row=4, channels=415)

    def encode(self, array: Any) -> Any:
        rows = len(array) // 4
        return np.ascontiguousarray(array[: 4 * rows].reshape(rows, 4, 415).mean(axis=1, dtype=np.float32))


def test_rows_of_four_gesture_frames_fit_windows_of_four_ticks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The seam for gesture codecs: catalogue, order, reading and batches ask nothing of audio."""
    from pipeline_helpers import run_preprocess

    write_sample_corpus(tmp_path / "c", CorpusSettings(clips=5, seconds=3.3, words=3, speakers=1))
    run_preprocess(tmp_path / "c", tmp_path / "s")
    monkeypatch.setattr(encode_module, "load_codec", lambda *_, **__: ThreeQuarters())
    encode(EncodeSettings(shards=tmp_path / "s", codecs=(("test-quarters", tmp_path),)))
    catalog = read_catalog(tmp_path / "s", Filters(), {"gesture": "test-quarters"})
    folder = ShardFolder(tmp_path / "s")
    latents = {row.key: folder.sample(row).latents["test-quarters"] for row in folder.rows}
    share, settings = RankShare(batch_size=2), LoaderSettings(workers=0)
    with Feed([DataSource(catalog)], Sequencing(window_ticks=8), share, settings, CPU) as feed:
        for _ in range(6):
            windows, positions = feed.next()
            for row, place in enumerate(feed.places(positions)):
                assert place.start_tick % 4 == 0
                wanted = latents[place.key][place.start_tick * 3 // 4 :][:6]
                np.testing.assert_array_equal(windows.arrays["gesture"][row].numpy(), wanted)
    with pytest.raises(UsageFault, match="expected a multiple of 4"):
        Feed([DataSource(catalog)], Sequencing(window_ticks=6), RankShare(), LoaderSettings(workers=0), CPU)
    with pytest.raises(UsageFault, match="expected latents of audio, found latents of gesture"):
        read_catalog(tmp_path / "s", Filters(), {"audio": "test-quarters"})
