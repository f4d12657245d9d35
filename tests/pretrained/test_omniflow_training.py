"""Runs that begin with pretrained weights: what is carried over, all six tasks, exact resume, nothing frozen."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flow_builders import Draws, sample, statistics
from omniflow_checkpoints import Tiny, tensors_of, write_folder
from pipeline_helpers import omniges, run_preprocess
from safetensors.torch import load_file
from torch import Tensor
from training_helpers import checkpoint_of, learned, log_of, losses_of, run, settings_of
from typer.testing import CliRunner

from omniges.cli import app
from omniges.errors import DataError, ExitCode, UsageFault
from omniges.model.checkpoint import SavedCheckpoint, find_checkpoint
from omniges.model.spec import ModelIdentity, build_model, load_identity, load_model
from omniges.model.tasks import SamplingSettings
from omniges.pretrained.convert import convert
from omniges.pretrained.initialize import OmniFlowStart, open_start
from omniges.testing.settings import CorpusSettings
from omniges.testing.synthetic_corpus import write_sample_corpus
from omniges.trainer.config import TrainSettings

TINY = Tiny(qk_norm="rms", dual=(0,), nested=True)
SIX = ("t2g", "g2t", "a2g", "g2a", "t2a", "a2t")
STEPS = 4


@pytest.fixture(scope="module")
def omniflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny OmniFlow folder."""
    return write_folder(tmp_path_factory.mktemp("omniflow"), TINY, average=True)


def begin(shards: Path, folder: Path, pretrained: Path, **changes: Any) -> Any:
    return run(shards, folder, **({"pretrained_model_name_or_path": pretrained, "model": {}} | changes))


@pytest.fixture(scope="module")
def whole(shards: Path, omniflow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps from it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    flow = {"shares": dict.fromkeys(SIX, 1)}
    begin(shards, folder, omniflow, max_train_steps=STEPS, batch_size=16, flow=flow)
    return folder


def filled(pretrained: Path, weights: Any = None) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
    """Weights of a model before and after it was filled, and the messages."""
    start = open_start(pretrained, weights, {})
    model = build_model(start.config, statistics=statistics(), vocab_size=300, speakers=2)
    before = {name: x.detach().clone() for name, x in model.named_parameters()}
    identity = ModelIdentity("pretrained", start.config, 16, ("a", "b"), b"", b"")
    begun = start.fill(model, identity)
    return before, dict(model.named_parameters()), begun


class TestWhatIsCarriedOver:
    def test_gesture_begins_as_image_text_and_audio_as_they_are(self, omniflow: Path) -> None:
        before, after, _ = filled(omniflow)
        theirs = tensors_of(TINY)
        for k in range(TINY.layers):
            block = f"transformer_blocks.{k}"
            for stream, names, mlp in (
                ("gesture", ("to_q", "to_k", "to_v"), "ff"),
                ("text", ("add_q_proj", "add_k_proj", "add_v_proj"), "ff_context"),
                ("audio", ("aud_q_proj", "aud_k_proj", "aud_v_proj"), "ff_audio"),
            ):
                own = f"trunk.blocks.{k}.branches.{stream}"
                joined = torch.cat([theirs[f"{block}.attn.{name}.weight"] for name in names])
                assert torch.equal(after[f"{own}.qkv.weight"], joined)
                if not (stream == "text" and k == TINY.layers - 1):
                    assert torch.equal(after[f"{own}.mlp_out.weight"], theirs[f"{block}.{mlp}.net.2.weight"])
        for own, name in (
            ("trunk.level.gesture", "time_text_embed.timestep_embedder"),
            ("trunk.level.text", "time_image_embed.timestep_embedder"),
            ("trunk.level.audio", "time_aud_embed.timestep_embedder"),
            ("trunk.pooled.gesture", "time_text_embed.text_embedder"),
        ):
            assert torch.equal(after[f"{own}.linear_2.weight"], theirs[f"{name}.linear_2.weight"])
        assert torch.equal(after["trunk.head.gesture.modulation.weight"], theirs["norm_out.linear.weight"])
        assert torch.equal(after["trunk.head.text.widen.bias"], theirs["context_decoder.projection.bias"])
        modulation = theirs["transformer_blocks.0.norm1.linear.weight"][: 6 * TINY.width]
        assert torch.equal(after["trunk.blocks.0.branches.gesture.modulation.weight"], modulation)
        for stream in ("gesture", "text", "audio"):
            assert torch.equal(after[f"trunk.embed.{stream}.weight"], before[f"trunk.embed.{stream}.weight"])
            assert not after[f"trunk.head.{stream}.out.weight"].any()
        assert not after["trunk.speaker.weight"].any()

    def test_every_tensor_of_theirs_and_every_weight_of_ours_is_reported_with_a_reason(self, omniflow: Path) -> None:
        _, after, begun = filled(omniflow)
        assert sorted(status.source for status in begun.statuses if status.kind != "new") == sorted(tensors_of(TINY))
        assert {status.target for status in begun.statuses if status.target} == set(after)
        assert all(status.reason for status in begun.statuses)
        new = {status.target for status in begun.statuses if status.kind == "new"}
        assert new == {
            *(f"trunk.embed.{stream}.{part}" for stream in ("gesture", "text", "audio") for part in ("weight", "bias")),
            *(f"trunk.head.{s}.out.{part}" for s in ("gesture", "text", "audio") for part in ("weight", "bias")),
            *("trunk.speaker.weight", "streams.text.piece", "streams.text.mark"),
        }
        left = {status.source for status in begun.statuses if status.kind == "left out"}
        assert {"proj_out.weight", "context_embedder.weight", "audio_embedder.proj.bias", "text_decoder.query"} <= left

    def test_the_same_from_the_folder_and_from_its_converted_form(self, omniflow: Path, tmp_path: Path) -> None:
        convert(omniflow, tmp_path / "converted")
        _, one, _ = filled(omniflow)
        _, other, begun = filled(tmp_path / "converted")
        carried = {str(status.target) for status in begun.statuses if status.kind == "loaded"}
        assert len(carried) > 80
        assert all(torch.equal(one[name], other[name]) for name in carried)

    def test_averaged_weights_where_asked_for(self, omniflow: Path) -> None:
        _, last, _ = filled(omniflow)
        _, averaged, _ = filled(omniflow, "ema")
        name = "trunk.level.audio.linear_1.weight"
        assert not torch.equal(last[name], averaged[name])
        assert (last[name] - averaged[name]).abs().max() < 0.1

    def test_streams_of_omniflows_own_tokens_keep_their_projections(
        self, omniflow: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Text latents are tokens of OmniFlow, without the zeros behind them."""
        from omniges.model import spec
        from omniges.model.streams import SubwordTokens

        class Latents(SubwordTokens):
            omniflow_tokens = True

            def __init__(self, **_: Any) -> None:
                super().__init__(vocab_size=1, piece_width=1, mark_width=1, blank_weight=1.0)
                self.channels, self.outputs = 5, TINY.text_outputs

        monkeypatch.setattr(spec, "SubwordTokens", Latents)
        _, after, begun = filled(omniflow)
        theirs = tensors_of(TINY)
        assert torch.equal(after["trunk.embed.text.weight"], theirs["context_embedder.weight"][:, :5])
        assert torch.equal(after["trunk.head.text.out.weight"], theirs["text_output.weight"])
        cut = [status for status in begun.statuses if status.source == "context_embedder.weight"]
        assert [(status.kind, status.numbers) for status in cut] == [("converted", 5 * TINY.width)]

    def test_a_weight_without_counterpart_is_an_error(self, omniflow: Path) -> None:
        start = open_start(omniflow, None, {})
        config = replace(start.config, layers=3)
        model = build_model(config, statistics=statistics(), vocab_size=30, speakers=1)
        with pytest.raises(DataError, match=r"trunk\.blocks\.[12]"):
            start.fill(model, ModelIdentity("pretrained", config, 16, ("a",), b"", b""))


class TestTraining:
    def test_all_six_tasks_learn_and_the_table_is_logged(self, whole: Path, omniflow: Path) -> None:
        tasks = {task for line in log_of(whole) for task in line["tasks"]}
        assert tasks == set(SIX)
        (event,) = log_of(whole, "pretrained")
        assert event["path"] == str(omniflow / "transformer" / "diffusion_pytorch_model.bin")
        assert {row["kind"] for row in event["tensors"]} == {"loaded", "converted", "new", "left out"}
        config = json.loads((checkpoint_of(whole, STEPS) / "config.json").read_bytes())
        assert config["preset"] == "pretrained"
        assert (config["model"]["absent"], config["model"]["rotary_periods_s"]) == ("noise", None)

    @pytest.mark.slow
    @pytest.mark.parametrize("k", [1, 3])
    def test_stopped_and_resumed_it_ends_with_the_same_bits(
        self, k: int, shards: Path, omniflow: Path, whole: Path, tmp_path: Path
    ) -> None:
        changes = {"batch_size": 16, "flow": {"shares": dict.fromkeys(SIX, 1)}}
        begin(shards, tmp_path, omniflow, max_train_steps=k, **changes)
        begin(shards, tmp_path, omniflow, max_train_steps=STEPS, **changes)
        assert learned(tmp_path, STEPS) == learned(whole, STEPS)
        assert losses_of(tmp_path) == losses_of(whole)
        (event,) = log_of(tmp_path, "pretrained")
        weights = omniflow / "transformer" / "diffusion_pytorch_model.bin"
        assert event["files"][str(weights)]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
        kept = json.loads((checkpoint_of(tmp_path, STEPS) / "provenance.json").read_bytes())["pretrained"]
        assert kept == {"path": event["path"], "files": event["files"]}

    @pytest.mark.slow
    def test_going_on_the_weights_are_those_of_the_run(self, shards: Path, omniflow: Path, tmp_path: Path) -> None:
        """The run's first weights may change or be removed, except for their sizes, because the checkpoint counts."""
        begin(shards, tmp_path / "a", omniflow, max_train_steps=2)
        other = write_folder(tmp_path / "other", Tiny(qk_norm="rms", dual=(0,), seed=9))
        begin(shards, tmp_path / "b", omniflow, max_train_steps=1)
        begin(shards, tmp_path / "b", other, max_train_steps=2)
        assert learned(tmp_path / "a", 2) == learned(tmp_path / "b", 2)
        warnings = " ".join(log_of(tmp_path / "b", "start")[-1]["remarks"])
        assert "--pretrained-model-name-or-path was" in warnings
        with pytest.raises(UsageFault, match=r"expected the model of this run, found another model ..*layers"):
            begin(shards, tmp_path / "b", write_folder(tmp_path / "third", Tiny(qk_norm="rms", layers=3)))

    def test_average_and_optimizer_begin_with_the_pretrained_weights(
        self, shards: Path, omniflow: Path, tmp_path: Path
    ) -> None:
        """One step leaves a tenth of the earlier EMA weights, and takes nine tenths of the new ones."""
        begin(shards, tmp_path, omniflow, max_train_steps=1, lr_warmup_steps=0)
        last, average = (load_file(checkpoint_of(tmp_path, 1) / f"{name}.safetensors") for name in ("model", "ema"))
        name = "trunk.blocks.0.branches.audio.mlp_in.weight"
        before = (average[name] - 0.9 * last[name]) / 0.1
        theirs = tensors_of(TINY)["transformer_blocks.0.ff_audio.net.0.proj.weight"]
        torch.testing.assert_close(before, theirs, rtol=0, atol=1e-5)
        assert not torch.equal(last[name], theirs)

    def test_nothing_frozen_is_in_optimizer_average_or_checkpoint(self, whole: Path) -> None:
        """All three hold exactly the model's parameters: no text VAE, no tables, no dead layers."""
        model, _ = load_model(find_checkpoint(whole))
        names = {name for name, _ in model.named_parameters()}
        files = {
            part: set(load_file(checkpoint_of(whole, STEPS) / f"{part}.safetensors"))
            for part in ("model", "ema", "optimizer")
        }
        assert files["model"] == files["ema"] == names
        assert {name.rsplit(".", 1)[0] for name in files["optimizer"]} == names
        assert not [name for name in names if "decoder" in name or "pos_embed" in name]
        assert not [module for module in model.modules() if module.training]

    def test_the_checkpoint_samples_without_the_pretrained_folder(self, whole: Path) -> None:
        model, identity = load_model(find_checkpoint(whole))
        assert identity.preset == "pretrained"
        draws = Draws(16, 0, torch.arange(2), torch.zeros(2, dtype=torch.int64))
        found = sample(model, {"text": torch.zeros(2, 16, dtype=torch.int32)}, ["gesture"], draws, SamplingSettings())
        assert found["gesture"].shape == (2, 48, 415)
        assert found["gesture"].isfinite().all()

    @pytest.mark.slow
    @pytest.mark.parametrize("tiny", [Tiny(), Tiny(qk_norm=None), Tiny(qk_norm="rms", layers=1, text_outputs=40)])
    def test_every_kind_of_checkpoint_can_begin_a_run(self, tiny: Tiny, shards: Path, tmp_path: Path) -> None:
        folder = write_folder(tmp_path / "omniflow", tiny)
        summary = begin(shards, tmp_path / "run", folder, max_train_steps=1)
        assert summary.step == 1

    def test_streams_may_be_left_out_where_asked_for(self, shards: Path, omniflow: Path, tmp_path: Path) -> None:
        begin(shards, tmp_path, omniflow, max_train_steps=1, model={"absent": "left-out", "blank_weight": 0.5})
        model, identity = load_model(find_checkpoint(tmp_path))
        assert (model.absent, identity.config.blank_weight) == ("left-out", 0.5)


class TestFineTuning:
    @pytest.fixture(scope="class")
    @classmethod
    def others(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Shards of three speakers and other words."""
        folder = tmp_path_factory.mktemp("others")
        write_sample_corpus(folder / "corpus", CorpusSettings(clips=6, seconds=4.0, words=9, speakers=3, seed=8))
        assert run_preprocess(folder / "corpus", folder / "shards").exit_code == 0
        return folder / "shards"

    @pytest.fixture(scope="class")
    @classmethod
    def trained(cls, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("trained") / "run"
        run(shards, folder, max_train_steps=2)
        return folder

    @pytest.mark.slow
    @pytest.mark.parametrize("weights", [None, "ema", "last"])
    def test_all_weights_with_their_statistics_tokenizer_and_speakers(
        self, weights: str | None, trained: Path, others: Path, tmp_path: Path
    ) -> None:
        begin(others, tmp_path, trained, pretrained_weights=weights, max_train_steps=1, lr_warmup_steps=10**9)
        was, now = find_checkpoint(trained), find_checkpoint(tmp_path)
        for name in ("stats.json", "tokenizer.json"):
            assert was.content(name) == now.content(name)
        before, after = was.document("config.json"), now.document("config.json")
        assert after["speakers"][: len(before["speakers"])] == before["speakers"]
        assert len(after["speakers"]) > len(before["speakers"])
        source = was.tensors("model.safetensors" if weights == "last" else "ema.safetensors")
        got = now.tensors("model.safetensors")  # after one step of a learning rate of next to nothing
        known = len(before["speakers"]) + 1
        for name, x in got.items():
            kept = x[:known] if name == "trunk.speaker.weight" else x
            torch.testing.assert_close(kept, source[name], rtol=0, atol=1e-6)
        added = got["trunk.speaker.weight"][known:]
        unknown = source["trunk.speaker.weight"][:1].expand_as(added)
        torch.testing.assert_close(added, unknown, rtol=0, atol=1e-6)

    def test_a_checkpoint_that_is_not_its_own_configurations_is_refused_by_name(
        self, trained: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = SavedCheckpoint.tensors
        damages: list[Any] = [
            lambda found: found.pop("trunk.embed.text.bias"),
            lambda found: found.update(extra=torch.zeros(2)),
            lambda found: found.update({"trunk.embed.text.bias": torch.zeros(3)}),
        ]
        for damage, name in zip(damages, ("trunk.embed.text.bias", "extra", "trunk.embed.text.bias"), strict=True):

            def damaged(self: SavedCheckpoint, file: str, damage: Any = damage) -> dict[str, Tensor]:
                found = real(self, file)
                damage(found)
                return found

            monkeypatch.setattr(SavedCheckpoint, "tensors", damaged)
            with pytest.raises(DataError, match=rf"ema\.safetensors: .*{re.escape(name)}.*another model"):
                begin(shards, tmp_path / name, trained, max_train_steps=1)
            assert not list((tmp_path / name).glob("checkpoints/*"))

    def test_shards_with_another_codec_are_refused(self, trained: Path) -> None:
        start = open_start(trained, None, {})
        other: Any = {"audio": SimpleNamespace(fingerprint="another")}
        with pytest.raises(UsageFault, match=r"expected the codecs of these weights \(none\), found audio"):
            start.adopt(replace(load_identity(find_checkpoint(trained)), codecs=other))

    def test_sizes_come_from_the_checkpoint(self, trained: Path, shards: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match=r"that pretrained weights leave open \(.*\), found width; remove it"):
            begin(shards, tmp_path, trained, model={"width": 64})


class TestEarlierCheckpoints:
    def test_settings_that_came_later_do_not_make_another_model(self, trained_by_name: SavedCheckpoint) -> None:
        """A configuration without them means their defaults."""
        load_identity(trained_by_name).require_same(trained_by_name)

    @pytest.fixture
    def trained_by_name(self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SavedCheckpoint:
        run(shards, tmp_path, max_train_steps=1)
        saved = find_checkpoint(tmp_path)
        real = SavedCheckpoint.document

        def earlier(self: SavedCheckpoint, name: str) -> Any:
            found = real(self, name)
            if name == "config.json":
                for key in ("absent", "pooled_width", "text_head_width", "context_only"):
                    del found["model"][key]
            return found

        monkeypatch.setattr(SavedCheckpoint, "document", earlier)
        return saved


class TestWords:
    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"absent": "somewhere"}, 'absent: expected one of left-out, noise, found "somewhere"'),
            ({"context_only": ["image"]}, r"context_only\[0\]: expected one of gesture, text, audio, found"),
            ({"pooled_width": 0}, "pooled_width: expected a whole number from 1 to 1048576, found 0"),
        ],
    )
    def test_fields_of_the_model_that_nothing_is_called_are_refused(self, changes: Any, said: str) -> None:
        with pytest.raises(UsageFault, match=said):
            TrainSettings(model=changes)

    def test_what_does_not_go_together_is_refused(self, omniflow: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match="preset tiny: expected no preset with pretrained_model_name_or_path"):
            TrainSettings(preset="tiny", pretrained_model_name_or_path=omniflow)
        with pytest.raises(UsageFault, match="pretrained_weights: expected with"):
            TrainSettings(pretrained_weights="ema")
        with pytest.raises(UsageFault, match=r"expected a folder, found none; .* hf download"):
            open_start(tmp_path / "Org" / "name", None, {})
        with pytest.raises(UsageFault, match=r"expected an OmniFlow folder .*, found none of them"):
            open_start(tmp_path, None, {})
        with pytest.raises(UsageFault, match=r"leave open \(.*\), found layers, width; remove them"):
            open_start(omniflow, None, {"width": 3, "layers": 9, "absent": "left-out"})
        convert(omniflow, tmp_path / "converted")
        with pytest.raises(UsageFault, match="found a converted folder, which has only one of them"):
            open_start(tmp_path / "converted", "ema", {})

    def test_settings_survive_being_saved(self, omniflow: Path, tmp_path: Path) -> None:
        own = settings_of("shards", tmp_path, pretrained_model_name_or_path=omniflow, model={})
        assert TrainSettings(**json.loads(json.dumps(own.as_json()))) == own

    def test_a_recipe_may_name_it(self, omniflow: Path, tmp_path: Path) -> None:
        from omniges.trainer.recipe import load_settings

        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(f"pretrained-model-name-or-path: {omniflow}\npretrained-weights: ema\n")
        found = load_settings(recipe, {})
        assert (found.pretrained_model_name_or_path, found.pretrained_weights) == (omniflow, "ema")
        assert (found.preset, found.learning_rate) == (None, 1e-4)

    def test_the_start_of_a_kind_is_reported_from_the_folder(self, omniflow: Path) -> None:
        start = open_start(omniflow, None, {})
        assert isinstance(start, OmniFlowStart)
        assert (start.config.width, start.config.layers, start.config.heads) == (16, 2, 2)
        assert (start.config.qk_norm, start.config.absent, start.config.context_only) == ("rms", "noise", ("text",))


class TestCommand:
    def test_it_converts_and_prints_the_table(self, omniflow: Path, tmp_path: Path) -> None:
        done = CliRunner().invoke(app, ["convert-omniflow", str(omniflow), "-o", str(tmp_path / "out")])
        assert done.exit_code == ExitCode.OK
        assert "three projections in one" in done.stdout
        assert f"{len(tensors_of(TINY))} tensors: " in done.stdout
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
            "config.json",
            "conversion.json",
            "model.safetensors",
        ]

    def test_an_error_is_one_line(self, tmp_path: Path) -> None:
        done = omniges("convert-omniflow", tmp_path, "-o", tmp_path / "out")
        assert done.returncode == ExitCode.USAGE
        assert done.stderr.startswith(f"omniges: {tmp_path}: expected an OmniFlow folder")
        assert done.stderr.count("\n") == 1
