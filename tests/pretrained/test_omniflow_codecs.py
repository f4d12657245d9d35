"""Runs on OmniFlow's weights over latents: audio as its own patches or as rows, gesture-rvqvae alone and beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from latent_builders import AUDIO, GESTURE, STEM, generated
from omniflow_checkpoints import Tiny, tensors_of, write_folder
from pipeline_helpers import omniges
from safetensors.torch import load_file
from training_helpers import checkpoint_of, learned, log_of, losses_of, run, run_with_signal

from omniges.data.catalog import Filters, read_catalog
from omniges.data.loader import LoaderSettings
from omniges.data.order import RankShare
from omniges.data.sequence import DataSource, Sequencing
from omniges.errors import UsageFault
from omniges.generation.records import read_record
from omniges.model.checkpoint import find_checkpoint
from omniges.model.spec import load_model
from omniges.model.tasks import TASKS
from omniges.shards.reader import ShardFolder
from omniges.trainer.batches import Feed
from omniges.trainer.loop import StopReason

TINY = Tiny(qk_norm="rms", dual=(0,), audio_channels=8)
CHOICES = {
    "audio": {"audio_codec": AUDIO},
    "gesture": {"gesture_codec": GESTURE},
    "both": {"audio_codec": AUDIO, "gesture_codec": GESTURE},
    "rows": {"audio_codec": AUDIO, "model": {"audio_tokens": "rows"}},
}
SIX = ("t2g", "g2t", "a2g", "g2a", "t2a", "a2t")
STEPS = 4

Folders = dict[str, Path]


@pytest.fixture(scope="module")
def omniflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny OmniFlow folder with audio latents of eight channels."""
    return write_folder(tmp_path_factory.mktemp("omniflow"), TINY)


def begin(
    shards: Path, folder: Path, pretrained: Path, choice: str, *, with_signal_before: int | None = None, **changes: Any
) -> Any:
    plain = {"pretrained_model_name_or_path": pretrained, "model": {}, "max_train_steps": STEPS}
    flow = {"batch_size": 16, "flow": {"shares": dict.fromkeys(SIX, 1)}}
    settings = plain | flow | CHOICES[choice] | changes
    if with_signal_before is not None:
        return run_with_signal(shards, folder, with_signal_before, **settings)
    return run(shards, folder, **settings)


@pytest.fixture(scope="module")
def runs(encoded_both: Path, omniflow: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of four steps of each choice, never stopped."""
    folder = tmp_path_factory.mktemp("runs")
    for choice in CHOICES:
        begin(encoded_both, folder / choice, omniflow, choice)
    return {choice: folder / choice for choice in CHOICES}


def statuses_of(run_folder: Path) -> dict[str, tuple[str, str | None]]:
    """Return the status of each of OmniFlow's tensors."""
    (event,) = log_of(run_folder, "pretrained")
    return {row["source"]: (row["kind"], row["target"]) for row in event["tensors"] if row["source"]}


class TestWeights:
    @pytest.mark.slow
    def test_audio_projections_are_kept_for_patches_alone(self, runs: dict[str, Path]) -> None:
        names = [f"{name}.{part}" for name in ("audio_embedder.proj", "proj_out_aud") for part in ("weight", "bias")]
        for choice in ("audio", "both"):
            statuses = statuses_of(runs[choice])
            assert [statuses[name] for name in names] == [
                ("converted", "trunk.embed.audio.weight"),
                ("loaded", "trunk.embed.audio.bias"),
                ("loaded", "trunk.head.audio.out.weight"),
                ("loaded", "trunk.head.audio.out.bias"),
            ]
        for choice in ("gesture", "rows"):
            assert [statuses_of(runs[choice])[name] for name in names] == [("left out", None)] * 4

    def test_the_run_begins_with_them(self, encoded_both: Path, omniflow: Path, tmp_path: Path) -> None:
        """They are OmniFlow's after a step with a learning rate near zero."""
        begin(encoded_both, tmp_path, omniflow, "both", max_train_steps=1, lr_warmup_steps=10**9)
        found = load_file(checkpoint_of(tmp_path, 1) / "model.safetensors")
        theirs = tensors_of(TINY)
        for own, wanted in (
            ("trunk.embed.audio.weight", theirs["audio_embedder.proj.weight"].flatten(1)),
            ("trunk.head.audio.out.weight", theirs["proj_out_aud.weight"]),
        ):
            torch.testing.assert_close(found[own], wanted, rtol=0, atol=1e-6)

    def test_the_table_is_shown(self, encoded_both: Path, omniflow: Path, tmp_path: Path) -> None:
        words = ("--pretrained-model-name-or-path", omniflow, "--audio-codec", AUDIO, "--window-ticks", 16)
        more = ("--max-train-steps", 1, "--train-batch-size", 4, "--num-workers", 0, "--validation-steps", 0)
        done = omniges("train", "--shards", encoded_both, "--output-dir", tmp_path / "run", *words, *more)
        assert done.returncode == 0, done.stderr
        lines = [line.split() for line in (done.stdout + done.stderr).splitlines()]
        (row,) = [line for line in lines if line[:1] == ["converted"] and line[3:5] == ["embed,", "audio"]]
        assert row[1] == "1"
        assert any(line[:1] == ["loaded"] and line[3:5] == ["head,", "audio"] for line in lines)
        assert not any("audio has other tokens" in " ".join(line) for line in lines)


class TestTraining:
    @pytest.mark.slow
    @pytest.mark.parametrize("choice", CHOICES)
    def test_all_six_tasks_learn(self, choice: str, runs: dict[str, Path]) -> None:
        tasks = {task for line in log_of(runs[choice]) for task in line["tasks"]}
        assert tasks == set(SIX)
        assert all(np.isfinite(loss) for loss in losses_of(runs[choice]).values())

    @pytest.mark.parametrize("choice", CHOICES)
    def test_the_checkpoint_says_which_tokens(self, choice: str, runs: dict[str, Path]) -> None:
        config = json.loads((checkpoint_of(runs[choice], STEPS) / "config.json").read_bytes())
        model, identity = load_model(find_checkpoint(runs[choice]))
        patches = choice in {"audio", "both"}
        assert config["model"]["audio_tokens"] == ("patches" if patches else "rows")
        assert identity.config.audio_tokens == config["model"]["audio_tokens"]
        assert identity.tick_multiple == (2 if choice == "rows" else 4)
        expected = {"audio": 160, "both": 160, "rows": 40, "gesture": 16}
        assert model.stream("audio").count(16) == expected[choice]
        assert model.stream("gesture").count(16) == (12 if "gesture_codec" in CHOICES[choice] else 16)

    @pytest.mark.parametrize("choice", ["gesture", "both"])
    def test_stopped_and_resumed_is_never_stopped_to_the_bit(
        self, choice: str, runs: dict[str, Path], encoded_both: Path, omniflow: Path, tmp_path: Path
    ) -> None:
        stopped = begin(encoded_both, tmp_path / "run", omniflow, choice, with_signal_before=3)
        assert stopped.outcome.stop_reason is StopReason.STOPPED
        assert 0 < stopped.step < STEPS
        begin(encoded_both, tmp_path / "run", omniflow, choice)
        assert learned(tmp_path / "run", STEPS) == learned(runs[choice], STEPS)
        assert losses_of(tmp_path / "run") == losses_of(runs[choice])

    def test_a_run_of_rows_does_not_go_on_with_patches(
        self, encoded_both: Path, omniflow: Path, tmp_path: Path
    ) -> None:
        begin(encoded_both, tmp_path / "run", omniflow, "rows", max_train_steps=1)
        with pytest.raises(UsageFault, match="audio_tokens: rows in the checkpoint, patches in this run"):
            begin(encoded_both, tmp_path / "run", omniflow, "audio")

    def test_an_earlier_run_of_patches_can_be_begun_with(
        self, runs: dict[str, Path], encoded_both: Path, tmp_path: Path
    ) -> None:
        begin(encoded_both, tmp_path / "run", runs["audio"], "audio", max_train_steps=1)
        assert load_model(find_checkpoint(tmp_path / "run"))[1].config.audio_tokens == "patches"

    def test_a_preset_has_no_patches(self, encoded_both: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match=r"audio_tokens patches: expected OmniFlow's weights"):
            run(encoded_both, tmp_path / "run", audio_codec=AUDIO, model={"audio_tokens": "patches"})
        with pytest.raises(UsageFault, match="unknown key audio_grid"):
            run(encoded_both, tmp_path / "run", audio_codec=AUDIO, model={"audio_grid": None})


class TestWindows:
    def test_hold_whole_pairs_of_rows(self, encoded_both: Path, omniflow: Path, tmp_path: Path) -> None:
        with pytest.raises(
            UsageFault, match=r"--window-ticks 18: expected a multiple of 4, .*whole tokens of audioldm2"
        ):
            begin(encoded_both, tmp_path / "run", omniflow, "audio", window_ticks=18)
        begin(encoded_both, tmp_path / "rows", omniflow, "rows", window_ticks=18, max_train_steps=1)

    def test_begin_with_one_and_are_what_trace_batches_tells(self, encoded_both: Path) -> None:
        folder = ShardFolder(encoded_both)
        latents = {row.key: folder.sample(row).latents[AUDIO] for row in folder.rows}
        data = [DataSource(read_catalog(encoded_both, Filters(), {"audio": AUDIO}))]
        sequencing, share = Sequencing(window_ticks=8, tick_multiple=4), RankShare(batch_size=4)
        found = []
        for workers in (0, 1):
            with Feed(data, sequencing, share, LoaderSettings(workers=workers), torch.device("cpu")) as feed:
                for _ in range(3):
                    windows, positions = feed.next()
                    for row, place in enumerate(feed.places(positions)):
                        found.append((place.key, place.start_tick))
                        wanted = latents[place.key][place.start_tick * 5 // 2 :][:20]
                        np.testing.assert_array_equal(windows.arrays["audio"][row].numpy(), wanted)
        assert found[:12] == found[12:]
        assert all(start % 4 == 0 for _, start in found)
        assert len({start for _, start in found}) > 3
        words = ("--window-ticks", 8, "--batch-size", 4, "--steps", 3, "--audio-codec", AUDIO, "--tick-multiple", 4)
        listed = omniges("trace-batches", "--shards", encoded_both, *words)
        assert [(r["key"], r["start_tick"]) for r in map(json.loads, listed.stdout.splitlines())] == found[:12]

    def test_the_command_that_lists_a_refused_batch_tells_the_multiple(
        self, encoded_both: Path, omniflow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from omniges.errors import DataError
        from omniges.model.patches import PatchTokens

        monkeypatch.setattr(PatchTokens, "losses", lambda _s, output, *_: output.mean((1, 2)) * float("nan"))
        with pytest.raises(DataError, match=r"--audio-codec=audioldm2-vae .*--tick-multiple=4"):
            begin(encoded_both, tmp_path / "run", omniflow, "audio")


class TestGenerate:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("choice", "task"),
        [("both", task) for task in SIX] + [("audio", "t2a"), ("audio", "a2g"), ("gesture", "a2g"), ("gesture", "g2t")],
    )
    def test_from_files_to_files(
        self, choice: str, task: str, runs: dict[str, Path], folders: Folders, recording: dict[str, Any], tmp_path: Path
    ) -> None:
        own = {name: folders[name] for name in CHOICES[choice].values() if isinstance(name, str)}
        given = {name: recording[name] for name in TASKS[task].conditions}
        found = generated(runs[choice], tmp_path / "out", task, own, **given)
        assert read_record(tmp_path / "out" / f"{STEM}.json").ticks == 40
        if "audio" in TASKS[task].targets:
            mel = np.load(tmp_path / "out" / f"{STEM}.mel.npy", allow_pickle=False)
            assert mel.shape == (400, 64)
            assert np.isfinite(mel).all()
        if "gesture" in TASKS[task].targets:
            motion = np.load(tmp_path / "out" / f"{STEM}.npz", allow_pickle=False)
            assert motion["poses"].shape == (120, 165)
        if task in {"t2a", "g2t"}:
            assert generated(runs[choice], tmp_path / "again", task, own, **given) == found

    def test_lengths_are_whole_pairs_of_rows(
        self, runs: dict[str, Path], folders: Folders, recording: dict[str, Any], tmp_path: Path
    ) -> None:
        own = {AUDIO: folders[AUDIO]}
        generated(runs["audio"], tmp_path / "out", "t2a", own, text=recording["text"], seconds=2.7)
        assert read_record(tmp_path / "out" / f"{STEM}.json").ticks == 24
