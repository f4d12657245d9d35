"""Training on latents of text: windows of the grid, no times of tokens, the codec never run, exact resume."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flow_builders import Draws, sample
from omniflow_checkpoints import Tiny, tensors_of, write_folder
from pipeline_helpers import run_preprocess
from safetensors import safe_open
from safetensors.torch import load_file
from text_latents_builders import NAME, STRIDE, WINDOW, encoded_shards
from training_helpers import TENSOR_FILES, SignalAt, checkpoint_of, learned, log_of, losses_of, run, settings_of
from vae_builders import write_vae

from omniges.codecs.text_vae.codec import TextWindows
from omniges.data.catalog import Filters, read_catalog
from omniges.data.loader import BatchLoader, LoaderSettings
from omniges.data.order import RankShare
from omniges.data.sequence import DataSource, Sequencing
from omniges.data.settings import TraceSettings
from omniges.data.trace import trace
from omniges.errors import DataError, UsageFault
from omniges.model.checkpoint import find_checkpoint
from omniges.model.flow import FlowModel
from omniges.model.spec import CodecLatents, ModelConfig, build_model, load_model
from omniges.model.streams import WindowTokens
from omniges.model.tasks import SamplingSettings
from omniges.shards.reader import ShardFolder
from omniges.testing.settings import CorpusSettings
from omniges.testing.synthetic_corpus import write_sample_corpus
from omniges.trainer.batches import Feed
from omniges.trainer.config import TrainSettings
from omniges.trainer.loop import StopReason
from omniges.trainer.recipe import load_settings
from omniges.trainer.train import train

CPU = torch.device("cpu")
TEXT = {"text": NAME}
MEMBER = f"{NAME}.npy"
SIX = {"t2g", "g2t", "a2g", "g2a", "t2a", "a2t"}


@pytest.fixture(scope="module")
def whole(encoded_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(encoded_text, folder, text_codec=NAME, checkpointing_steps=3)
    return folder


def source(folder: Path, codecs: dict[str, str] = TEXT) -> list[DataSource]:
    return [DataSource(read_catalog(folder, Filters(), codecs))]


class TestWindows:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_hold_the_latents_of_their_own_window(self, encoded_text: Path, workers: int) -> None:
        folder = ShardFolder(encoded_text)
        rows = {row.key: row for row in folder.rows}
        starts = set()
        settings = LoaderSettings(workers=workers)
        with Feed(
            source(encoded_text), Sequencing(window_ticks=WINDOW), RankShare(batch_size=5), settings, CPU
        ) as feed:
            for _ in range(12):
                windows, positions = feed.next()
                assert windows.arrays["text"].shape == (5, 3, 10)
                for number, place in enumerate(feed.places(positions)):
                    latents = folder.array(rows[place.key], MEMBER)[place.start_tick // STRIDE]
                    np.testing.assert_array_equal(windows.arrays["text"][number].numpy(), latents.reshape(3, 10))
                    gesture = folder.array(rows[place.key], "gesture.npy")[3 * place.start_tick :][: 3 * WINDOW]
                    np.testing.assert_array_equal(windows.arrays["gesture"][number].numpy(), gesture)
                    starts.add(place.start_tick)
        assert all(start % STRIDE == 0 for start in starts)
        assert len(starts) > 4

    def test_the_loader_normalises_each_number_of_a_latent(self, encoded_text: Path) -> None:
        statistics = json.loads((encoded_text / "latents.json").read_bytes())[NAME]
        sequencing = Sequencing(window_ticks=WINDOW, shuffle=False)
        with BatchLoader(source(encoded_text), sequencing, RankShare(), LoaderSettings(workers=0)) as loader:
            found = [(batch.keys[0], int(batch.start_ticks[0]), batch.text.numpy()[0].copy()) for batch in loader]
        folder = ShardFolder(encoded_text)
        for key, start, text in found:
            latents = folder.array(folder.row(key), MEMBER)[start // STRIDE].reshape(3, 10)
            wanted = (latents - np.array(statistics["mean"])) / np.array(statistics["std"])
            np.testing.assert_allclose(text, wanted, atol=1e-4)

    def test_the_window_is_the_codecs(self, encoded_text: Path, tmp_path: Path) -> None:
        with pytest.raises(
            UsageFault, match=r"--window-ticks 8: expected 16, the window length of the latents omniflow-text-vae.npy"
        ):
            run(encoded_text, tmp_path / "run", text_codec=NAME, window_ticks=8)

    def test_begin_where_all_codecs_have_a_row(self, encoded_text: Path, tmp_path: Path) -> None:
        write_vae(tmp_path / "vae")
        audio = ("audioldm2-vae", tmp_path / "vae")
        encoded_shards(encoded_text, tmp_path, tmp_path / "both", codecs=(audio,), window_ticks=None, stride_ticks=None)
        both = source(tmp_path / "both", TEXT | {"audio": "audioldm2-vae"})
        settings = LoaderSettings(workers=0)
        with Feed(both, Sequencing(window_ticks=WINDOW), RankShare(batch_size=4), settings, CPU) as feed:
            windows, positions = feed.next()
            assert all(place.start_tick % 4 == 0 for place in feed.places(positions))
        assert {name: tuple(x.shape[1:]) for name, x in windows.arrays.items()} == {
            "gesture": (48, 415),
            "audio": (40, 128),
            "text": (3, 10),
        }

    def test_trace_batches_tells_the_same_windows(self, encoded_text: Path, shards: Path) -> None:
        def traced(folder: Path, codecs: dict[str, str]) -> list[dict[str, Any]]:
            chosen: dict[str, Any] = {f"{stream}_codec": name for stream, name in codecs.items()}
            settings = TraceSettings(shards=folder, window_ticks=WINDOW, batch_size=4, steps=3, decode=True, **chosen)
            return list(trace(settings))

        found = traced(encoded_text, TEXT)
        settings = LoaderSettings(workers=0)
        with Feed(
            source(encoded_text), Sequencing(window_ticks=WINDOW), RankShare(batch_size=4), settings, CPU
        ) as feed:
            places = [place for _ in range(3) for place in feed.places(feed.next()[1])]
        assert [(r["key"], r["start_tick"]) for r in found] == [(p.key, p.start_tick) for p in places]
        assert traced(encoded_text, {}) == traced(shards, {})  # without it, encoded shards are read as they were before


class TestTraining:
    def test_all_six_tasks_have_losses(self, encoded_text: Path, tmp_path: Path) -> None:
        run(encoded_text, tmp_path / "run", text_codec=NAME, max_train_steps=12, logging_steps=12)
        (line,) = log_of(tmp_path / "run")
        assert line["tasks"].keys() >= SIX
        assert line["streams"].keys() == {"gesture", "text", "audio"}
        assert all(np.isfinite(loss) for loss in losses_of(tmp_path / "run").values())

    @pytest.mark.slow
    def test_of_any_latents_never_imports_a_codec_or_transformers(
        self, encoded_text: Path, encoded: Path, tmp_path: Path
    ) -> None:
        """Latents of text and those of audio, these validated too, in one new interpreter: it imports for seconds."""
        code = (
            "import sys; sys.path.insert(0, sys.argv[4])\n"
            "from training_helpers import run\n"
            f"run(sys.argv[1], sys.argv[3] + '/text', text_codec='{NAME}', max_train_steps=1)\n"
            "run(sys.argv[2], sys.argv[3] + '/audio', audio_codec='audioldm2-vae', max_train_steps=1,"
            " validation_steps=1, validation_windows=1, validation_samples=0, validation_sampling_steps=1)\n"
            "light = {'omniges.codecs' + name for name in ('', '.base', '.registry', '.settings')}\n"
            "heavy = ('omniges.codecs', 'transformers.models.t5')\n"
            "print([n for n in sys.modules if n.startswith(heavy) and n not in light])"
        )
        tests = Path(__file__).resolve().parents[1]
        words = [sys.executable, "-c", code, str(encoded_text), str(encoded), str(tmp_path), str(tests)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=100, check=True)
        assert done.stdout.splitlines()[-1] == "[]"

    def test_nothing_of_the_codec_is_learned_averaged_or_saved(self, whole: Path, text_vae: Path) -> None:
        own = set(load_file(text_vae / "model.safetensors"))
        for file in TENSOR_FILES:
            with safe_open(checkpoint_of(whole, 6) / file, framework="pt") as tensors:
                names = set(tensors.keys())
            assert names
            assert not any(name.endswith(part) for name in names for part in own)
            # Of text the embedding of a latent's number alone; of tokens there is nothing.
            assert {name for name in names if name.startswith("streams.text")} <= {
                *("streams.text.place", *(f"streams.text.place.{part}" for part in ("step", "exp_avg", "exp_avg_sq")))
            }
        learned_place = load_file(checkpoint_of(whole, 6) / "model.safetensors")["streams.text.place"]
        assert len(learned_place.abs().sum(1).unique()) == 3

    def test_the_checkpoint_says_whose_latents_and_which_windows(self, whole: Path, encoded_text: Path) -> None:
        folder = checkpoint_of(whole, 6)
        config = json.loads((folder / "config.json").read_bytes())["codecs"]["text"]
        entry = ShardFolder(encoded_text).codecs[NAME]
        assert (config["name"], config["fingerprint"]) == (NAME, entry.fingerprint)
        assert (config["window_ticks"], config["stride_ticks"]) == (WINDOW, STRIDE)
        assert (folder / "latents.json").read_bytes() == (encoded_text / "latents.json").read_bytes()
        model, identity = load_model(find_checkpoint(whole))
        assert identity.tick_multiple == 1  # of inputs: their text is encoded again, wherever windows begin
        stream = model.stream("text")
        assert stream.count(WINDOW) == stream.count(5) == 3
        np.testing.assert_allclose(stream.seconds(3).numpy(), [0.8] * 3, rtol=1e-6)
        assert stream.positions(3, 16) is None
        assert stream.places is not None
        assert stream.places.shape == (3, 16)
        saved = json.loads((encoded_text / "latents.json").read_bytes())[NAME]
        np.testing.assert_allclose(stream.state_dict()["mean"].numpy(), saved["mean"], rtol=1e-6)

    @pytest.mark.slow
    @pytest.mark.parametrize("workers", [0, 2])
    def test_stopped_and_resumed_is_never_stopped_to_the_bit(
        self, whole: Path, encoded_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
    ) -> None:
        from omniges.trainer import train_step

        stop = SignalAt(signal.SIGTERM, 4)
        finish = train_step.Learner.finish_step

        def counted(self: train_step.Learner, step: int) -> Any:
            stop()
            return finish(self, step)

        with monkeypatch.context() as patch:
            patch.setattr(train_step.Learner, "finish_step", counted)
            stopped = run(encoded_text, tmp_path / "run", text_codec=NAME, num_workers=workers)
        assert stopped.outcome.stop_reason is StopReason.STOPPED
        assert 0 < stopped.step < 6
        run(encoded_text, tmp_path / "run", text_codec=NAME, num_workers=workers)
        assert learned(tmp_path / "run", 6) == learned(whole, 6)
        assert losses_of(tmp_path / "run") == losses_of(whole)

    @pytest.mark.parametrize("prediction", ["clean", "velocity"])
    @pytest.mark.parametrize("normalise", [True, False])
    def test_losses_are_mean_squares_of_what_the_head_gives(
        self, encoded_text: Path, prediction: Any, normalise: bool
    ) -> None:
        catalog = read_catalog(encoded_text, Filters(), TEXT)
        config = ModelConfig(width=16, layers=1, heads=2, text_prediction=prediction, normalise_text=normalise)
        entry, statistics = catalog.codecs["text"], catalog.latents[NAME]
        latents: Any = {"text": CodecLatents(entry, statistics)}
        model = build_model(config, statistics=catalog.statistics, vocab_size=300, speakers=1, codecs=latents)
        stream = model.stream("text")
        folder = ShardFolder(encoded_text)
        rows = torch.from_numpy(folder.array(folder.rows[0], MEMBER)[:2].reshape(2, 3, 10).copy())
        clean, noise, output = stream.tokens(rows), torch.randn(2, 3, 10), torch.randn(2, 3, 10)
        mean, std = (torch.tensor(statistics[name]).float() for name in ("mean", "std"))
        torch.testing.assert_close(clean, (rows - mean) / std if normalise else rows, atol=1e-5, rtol=1e-5)
        target = clean if prediction == "clean" else noise - clean
        torch.testing.assert_close(stream.losses(output, rows, clean, noise), (output - target).square().mean((1, 2)))
        torch.testing.assert_close(stream.arrays(clean), rows, atol=1e-5, rtol=1e-5)


def model_of_text(folder: Path, **config: Any) -> FlowModel:
    """A small model of the folder's latents of text, all of whose weights are random."""
    catalog = read_catalog(folder, Filters(), TEXT)
    latents: Any = {"text": CodecLatents(catalog.codecs["text"], catalog.latents[NAME])}
    sizes = ModelConfig(width=16, layers=2, heads=2, **config)
    model = build_model(sizes, statistics=catalog.statistics, vocab_size=300, speakers=1, codecs=latents)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in model.parameters():
            parameter.data = 0.3 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize("config", [{}, {"rotary_periods_s": None, "absent": "noise"}])
def test_latents_are_distinguished_by_their_number_alone(encoded_text: Path, config: dict[str, Any]) -> None:
    """Equal positions make the expected outputs a permutation of the tokens, so that their order would be lost."""
    model = model_of_text(encoded_text, **config)
    stream = model.stream("text")
    assert isinstance(stream, WindowTokens)
    gesture, audio, text = torch.randn(2, 16, 1245), torch.randn(2, 16, 640), torch.randn(2, 3, 10)
    levels = {"gesture": torch.zeros(2), "audio": torch.ones(2), "text": torch.full((2,), 0.7)}
    order = [2, 0, 1]

    def expected(tokens: torch.Tensor) -> torch.Tensor:
        given = {"gesture": gesture, "audio": audio, "text": tokens}
        return model.predict(given, levels, ("text",), torch.zeros(2, dtype=torch.int64))["text"]

    with torch.no_grad():
        assert (expected(text[:, order]) - expected(text)[:, order]).abs().max() > 1e-2
        stream.place.zero_()
        torch.testing.assert_close(expected(text[:, order]), expected(text)[:, order], atol=1e-5, rtol=1e-5)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("places", [True, False])
def test_a_model_learns_which_latent_is_which_by_their_places_alone(
    tmp_path: Path, text_vae: Path, monkeypatch: pytest.MonkeyPatch, places: bool
) -> None:
    """The figure of docs/explanation/codecs-text.md, on latents whose mean hangs on their number."""
    means = np.random.default_rng(0).normal(size=(3, 10))

    def latents_of(text: str) -> np.ndarray:
        drawn = np.random.default_rng(zlib.crc32(text.encode())).normal(size=(3, 10))
        return (means + drawn / 2).astype(np.float32).reshape(-1)

    monkeypatch.setattr(TextWindows, "encode_texts", lambda _, texts: np.stack([latents_of(text) for text in texts]))
    write_sample_corpus(tmp_path / "c", CorpusSettings(clips=12, seconds=8.0, words=6, speakers=1))
    run_preprocess(tmp_path / "c", tmp_path / "s")
    encoded_shards(tmp_path / "s", text_vae)
    if not places:
        monkeypatch.setattr(WindowTokens, "places", None)
    run(
        *(tmp_path / "s", tmp_path / "run"),
        text_codec=NAME,
        max_train_steps=400,
        batch_size=32,
        lr_warmup_steps=20,
        learning_rate=0.002,
        ema_decay=0.98,
        flow={"shares": {"a2t": 1}},
        model={"width": 64, "layers": 2, "heads": 4},
    )
    model, _ = load_model(find_checkpoint(tmp_path / "run"))
    draws = Draws(WINDOW, 0, torch.arange(64), torch.zeros(64, dtype=torch.int64))
    generated = sample(model, {}, ["text"], draws, SamplingSettings())["text"]
    stream = model.stream("text")
    found = stream.tokens(generated).mean(0)
    wanted = stream.tokens(torch.from_numpy(means[None]).float())[0]
    error, spread = (x.square().mean().sqrt() for x in (found - wanted, wanted - wanted.mean(0)))
    assert error < spread / 2 if places else error > 0.8 * spread


class TestPretrained:
    """OmniFlow's weights know these very tokens: as they are, without places, with their projections."""

    TINY = Tiny(qk_norm="rms", text_outputs=10, nested=True)

    def test_text_keeps_omniflows_projections(self, encoded_text: Path, tmp_path: Path) -> None:
        omniflow = write_folder(tmp_path / "omniflow", self.TINY)
        flow = {"shares": dict.fromkeys(sorted(SIX), 1)}
        began = {"pretrained_model_name_or_path": omniflow, "model": {}, "text_codec": NAME, "flow": flow}
        run(encoded_text, tmp_path / "run", **began, max_train_steps=2, learning_rate=1e-9, batch_size=12)
        theirs = tensors_of(self.TINY)
        ours = load_file(checkpoint_of(tmp_path / "run", 2) / "model.safetensors")
        for own, name in (
            ("trunk.embed.text.weight", "context_embedder.weight"),
            ("trunk.embed.text.bias", "context_embedder.bias"),
            ("trunk.head.text.out.weight", "text_output.weight"),
            ("trunk.head.text.out.bias", "text_output.bias"),
        ):
            wanted = theirs[name][:, :10] if own == "trunk.embed.text.weight" else theirs[name]
            torch.testing.assert_close(ours[own], wanted, atol=1e-6, rtol=0)
        model, identity = load_model(find_checkpoint(tmp_path / "run"))
        assert model.stream("text").omniflow_tokens
        assert not identity.config.normalise_text
        (line,) = log_of(tmp_path / "run")
        assert line["tasks"].keys() >= SIX
        (event,) = log_of(tmp_path / "run", "pretrained")
        (place,) = [status for status in event["tensors"] if status["target"] == "streams.text.place"]
        assert (place["kind"], place["reason"]) == (
            "new",
            "positions of text latents, which OmniFlow lacks; initialized to zero",
        )

    def test_latents_of_another_width_than_the_checkpoints_are_refused(
        self, encoded_text: Path, tmp_path: Path
    ) -> None:
        omniflow = write_folder(tmp_path / "omniflow", Tiny(qk_norm="rms", text_outputs=20, nested=True))
        began = {"pretrained_model_name_or_path": omniflow, "model": {}, "text_codec": NAME}
        with pytest.raises(DataError, match=r"head.text.out.weight"):
            run(encoded_text, tmp_path / "run", **began)


class TestRefusals:
    def test_shards_without_latents_and_codecs_of_other_streams(
        self, shards: Path, encoded_text: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(UsageFault, match=r"expected latents of the codec omniflow-text-vae, found no latents"):
            run(shards, tmp_path / "run", text_codec=NAME)
        with pytest.raises(UsageFault, match=r"omniflow-text-vae: expected latents of audio, found latents of text"):
            run(encoded_text, tmp_path / "run", audio_codec=NAME)

    def test_a_run_does_not_go_on_with_text_of_another_kind(
        self, whole: Path, encoded_text: Path, tmp_path: Path
    ) -> None:
        copy = Path(shutil.copytree(whole, tmp_path / "run"))
        with pytest.raises(UsageFault, match="text codec: omniflow-text-vae"):
            run(encoded_text, copy, max_train_steps=8)

    def test_folders_of_a_mixture_have_one_grid(
        self, shards: Path, encoded_text: Path, text_vae: Path, tmp_path: Path
    ) -> None:
        encoded_shards(shards, text_vae, tmp_path / "others", stride_ticks=8)
        both = (str(encoded_text), str(tmp_path / "others"))
        with pytest.raises(UsageFault, match=r"expected latents .*every 0.4 s\) as in .*, found .*every 0.8 s"):
            train(TrainSettings(shards=both, output_dir=tmp_path / "run", text_codec=NAME, window_ticks=WINDOW))

    def test_damaged_latents_are_reported_with_their_place(self, encoded_text: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(encoded_text, tmp_path / "s"))
        row = next(row for row in ShardFolder(folder).rows if row.split == "train")
        data = bytearray((folder / row.shard).read_bytes())
        data[row.members[MEMBER].offset + 200] ^= 1
        (folder / row.shard).write_bytes(data)
        with pytest.raises(DataError, match=rf"{row.key}.{NAME}.npy at byte \d+: expected sha256"):
            run(folder, tmp_path / "run", text_codec=NAME)

    def test_a_recipe_takes_it_and_settings_of_latents_need_it(self, encoded_text: Path, tmp_path: Path) -> None:
        recipe = tmp_path / "r.yaml"
        recipe.write_text(f"text-codec: {NAME}\nmodel:\n  text_prediction: velocity\n")
        assert load_settings(recipe, {}).codecs == TEXT
        assert load_settings(recipe, {}).model_config().text_prediction == "velocity"
        with pytest.raises(UsageFault, match="text_prediction: expected text as latents"):
            settings_of(encoded_text, tmp_path, model={"text_prediction": "velocity"})
        with pytest.raises(UsageFault, match=r'text_prediction: expected .*found "best"'):
            settings_of(encoded_text, tmp_path, text_codec=NAME, model={"text_prediction": "best"})
