"""`inspect` tells what a path holds, whatever it is, and draws what can be drawn."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pipeline_helpers import omniges
from training_helpers import checkpoint_of, log_of, run

from omniges.errors import DataError, UsageFault
from omniges.exchange import inspect_files, inspect_models
from omniges.exchange.inspect import ACCEPTED, inspect
from omniges.exchange.inspect_models import read_log, summary_of
from omniges.formats.audio import wav_parts
from omniges.storage.tensors import open_tensors
from omniges.testing.settings import CorpusSettings
from omniges.testing.synthetic_corpus import write_sample_corpus
from omniges.visualize.pictures import MAX_S, spans

STEPS = (
    b'{"event": "steps", "step": %d, "tasks": {}, "gradient_norm": null, "loss": 1, "smoothed_loss": 1, '
    b'"learning_rate": 1, "samples_per_s": 1, "elapsed_s": 1, "epoch": 1}'
)
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps, resumed after two."""
    folder = tmp_path_factory.mktemp("inspect") / "run"
    for steps in (2, 4):
        run(shards, folder, max_train_steps=steps, logging_steps=1)
    return folder


@pytest.fixture(scope="module")
def results(trained: Path, shards: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two results: of a sample of shards, and of a file."""
    out = tmp_path_factory.mktemp("results")
    common = ("--checkpoint", trained, "--num-inference-steps", "1", "--seconds", "2")
    sample = ("--task", "a2g", "--shards", shards, "--key", "1_synthetica_0_1_1", "-o", out / "a2g", "--seed", "7")
    file = ("--task", "t2g", "--text", min(corpus.rglob("*.TextGrid")), "-o", out / "t2g", "--png")
    for words in (sample, file):
        generated = omniges("generate", *common, *words)
        assert generated.returncode == 0, generated.stderr
    return out


def motion_file(corpus: Path) -> Path:
    return min(corpus.rglob("*.npz"))


def facts_of(*words: object) -> dict[str, Any]:
    shown = omniges("inspect", *words, "--format", "json")
    assert shown.returncode == 0, shown.stderr
    found: dict[str, Any] = json.loads(shown.stdout)
    return found


class TestShards:
    def test_a_folder_and_a_sample(self, shards: Path) -> None:
        assert inspect(shards).facts["kind"] == "shards"
        sample = inspect(shards, "1_synthetica_0_1_1")
        assert sample.facts["kind"] == "sample"
        assert sample.facts["arrays"]["gesture.npy"]["shape"][1] == 415
        assert omniges("inspect", shards, "--json").stdout == omniges("inspect", shards, "--format", "json").stdout

    def test_a_key_elsewhere_is_refused(self, corpus: Path) -> None:
        with pytest.raises(UsageFault, match="KEY x: expected only with a folder of shards"):
            inspect(motion_file(corpus), "x")


class TestMotion:
    def test_what_the_file_states(self, corpus: Path) -> None:
        path = motion_file(corpus)
        facts = facts_of(path)
        with np.load(path) as archive:
            assert {key: list(archive[key].shape) for key in archive} == {
                key: of["shape"] for key, of in facts["keys"].items()
            }
            assert facts["frames"] == len(archive["poses"])
            assert facts["frame_rate_hz"] == archive["mocap_frame_rate"]
            assert facts["arrays"]["trans"]["max"] == pytest.approx(archive["trans"].max())
            assert facts["betas"] == len(archive["betas"])
        assert facts["absent"] == []
        assert facts["seconds"] == facts["frames"] / 30

    def test_notes_of_conversion(self, tmp_path: Path) -> None:
        arrays = {
            "root_orient": np.zeros((120, 3)),
            "pose_body": np.zeros((120, 63)),
            "trans": np.zeros((120, 3)),
            "mocap_frame_rate": np.array(60),
            "betas": np.zeros(10),
        }
        np.savez(tmp_path / "amass.npz", **arrays)
        facts = facts_of(tmp_path / "amass.npz")
        assert {note["code"] for note in facts["notes"]} == {
            "motion-parts-absent",
            "motion-decimated",
            "betas-extended",
        }
        assert (facts["frames"], facts["source_frames"]) == (60, 120)
        assert set(facts["absent"]) == {"hands", "face", "jaw_eyes"}
        assert facts["arrays"]["expressions"] == {"min": None, "mean": None, "max": None}
        shown = omniges("inspect", tmp_path / "amass.npz").stdout
        assert "absent" in shown
        assert "motion-decimated" in shown

    def test_a_rejected_file_shows_its_keys_and_the_reason(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", poses=np.zeros((9, 7)), objects=np.array({"a": 1}, dtype=object))
        shown = omniges("inspect", tmp_path / "x.npz", "--png", tmp_path / "x.png")
        assert shown.returncode == 1
        assert "9 × 7" in shown.stdout
        assert "not read" in shown.stdout
        (line,) = shown.stderr.splitlines()
        assert "x.npz" in line
        assert not (tmp_path / "x.png").exists()

    def test_a_rate_that_the_file_lacks(self, corpus: Path, tmp_path: Path) -> None:
        with np.load(motion_file(corpus)) as archive:
            np.savez(tmp_path / "x.npz", **{key: archive[key] for key in archive if key != "mocap_frame_rate"})
        assert omniges("inspect", tmp_path / "x.npz").returncode == 1
        for path in (tmp_path / "x.npz", tmp_path):
            picture = () if path.is_dir() else ("--png", tmp_path / "x.png", "--seconds", "1")
            shown = omniges("inspect", path, "--motion-rate", "60", *picture)
            assert shown.returncode == 0, shown.stderr
            assert "60" in shown.stdout

    def test_a_folder_of_files(self, corpus: Path, tmp_path: Path) -> None:
        (tmp_path / "good.npz").write_bytes(motion_file(corpus).read_bytes())
        (tmp_path / "bad.npz").write_bytes(b"no archive")
        facts = facts_of(tmp_path)
        good, bad = facts["files"][1], facts["files"][0]
        assert good["frames"] == 120
        assert bad["rejected"]["code"] == "npz-not-zip"
        assert "rejected: npz-not-zip" in omniges("inspect", tmp_path).stdout
        for number in range(20):  # as many as the table has rows
            (tmp_path / f"a{number:02}.npz").write_bytes((tmp_path / "good.npz").read_bytes())
        shown = omniges("inspect", tmp_path).stdout
        assert "npz-not-zip" not in shown
        assert "1 file rejected: bad.npz" in shown


class TestSoundAndWords:
    def test_audio(self, corpus: Path) -> None:
        facts = facts_of(min(corpus.rglob("*.wav")))
        assert facts["kind"] == "audio"
        assert facts["samples"] / facts["sample_rate_hz"] == facts["seconds"]
        assert 0 < facts["rms"] < facts["peak"] <= 1

    def test_words(self, corpus: Path, shards: Path) -> None:
        path = corpus / inspect(shards, "1_synthetica_0_1_1").facts["metadata"]["sources"]["textgrid"]["path"]
        words = facts_of(path)["words"]
        assert [word["word"] for word in words[:3]] == [
            word["word"] for word in inspect(shards, "1_synthetica_0_1_1").facts["words"][:3]
        ]


class TestResults:
    def test_a_record(self, results: Path, trained: Path) -> None:
        facts = facts_of(results / "a2g" / "1_synthetica_0_1_1.json")
        assert (facts["kind"], facts["task"], facts["settings"]["seed"]) == ("result", "a2g", 7)
        assert facts["model"]["checkpoint"] == str(checkpoint_of(trained, 4))
        assert facts["inputs"][0]["stream"] == "audio"

    def test_a_version_that_is_invalid_is_one_line(self, results: Path, tmp_path: Path) -> None:
        record = json.loads(min((results / "a2g").glob("*.json")).read_text("utf-8"))
        (tmp_path / "x.json").write_text(json.dumps(record | {"version": "a\nb\x1b[2J"}))
        with pytest.raises(DataError, match=r'version: expected 1, found "a\\nb') as caught:
            inspect(tmp_path / "x.json")
        assert str(caught.value).isprintable()

    def test_a_folder_of_folders(self, results: Path) -> None:
        found = facts_of(results)["results"]
        assert {(one["task"], one["seed"]) for one in found} == {("a2g", 7), ("t2g", 0)}
        shown = omniges("inspect", results)
        assert "a2g/1_synthetica_0_1_1.json" in shown.stdout

    def test_a_damaged_record_is_a_finding_and_other_files_are_said(self, results: Path, tmp_path: Path) -> None:
        shutil.copytree(results / "a2g", tmp_path, dirs_exist_ok=True)
        record = tmp_path / "1_synthetica_0_1_1.json"
        content = record.read_bytes()
        shutil.copy(record.with_suffix(".npz"), tmp_path / "more.npz")
        shown = omniges("inspect", tmp_path)
        assert "1 motion file without a record: more.npz" in shown.stdout
        record.write_bytes(content[: len(content) // 2])
        page, out = tmp_path / "page.html", tmp_path / "bvh"
        for words in (
            ("inspect", tmp_path),
            ("inspect", record),
            ("view", tmp_path, "-o", page),
            ("export", tmp_path, "--format", "bvh", "-o", out),
        ):
            refused = omniges(*words)
            assert refused.returncode == 1, words
            assert refused.stderr.startswith(f"omniges: {record}: expected the record of a result, found damage")
            assert len(refused.stderr.splitlines()) == 1
        assert not page.exists()
        assert not out.exists()

    def test_a_picture_has_condition_result_and_recording(self, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn: list[Any] = []
        monkeypatch.setattr("omniges.exchange.inspect_files.draw_result", lambda **how: drawn.append(how) or PNG)
        of_shards, of_file = results / "a2g" / "1_synthetica_0_1_1.json", min((results / "t2g").glob("*.json"))
        for path in (of_shards, of_file):
            assert inspect(path).picture_of(0.5, 1.0) == PNG
        assert [(row.role, row.stream) for row in drawn[0]["rows"]] == [
            ("condition", "audio"),
            ("generated", "gesture"),
            ("recorded", "gesture"),
        ]
        assert [(row.role, row.stream) for row in drawn[1]["rows"]] == [("condition", "text"), ("generated", "gesture")]
        assert (drawn[0]["start_s"], drawn[0]["seconds"], drawn[0]["length_s"]) == (0.5, 1.0, 2.0)


class TestCheckpoint:
    def test_what_it_was_trained_on(self, trained: Path, shards: Path) -> None:
        facts = facts_of(checkpoint_of(trained, 4))
        assert (facts["kind"], facts["step"], facts["preset"]) == ("checkpoint", 4, "tiny")
        (data,) = facts["data"]
        assert data["manifest_hash"] == inspect(shards).facts["manifest_hash"]
        assert {"t2g", "a2g", "joint"} <= set(facts["tasks"])
        assert facts["speakers"] == ["synthetica", "syntheticb"]
        assert facts["ema"]
        assert facts["resumable"]
        assert "manifest hash" in omniges("inspect", checkpoint_of(trained, 4)).stdout

    def test_sizes_add_up(self, trained: Path) -> None:
        path = checkpoint_of(trained, 4)
        facts = inspect(path).facts
        tensors = open_tensors(path / "model.safetensors")
        assert facts["parameters"] == sum(tensor.numel() for tensor in tensors.values())
        for parts in ("parameters_by_part", "parameters_by_stream"):
            assert sum(facts[parts].values()) == facts["parameters"]
        assert facts["files"]["ema.safetensors"] == (path / "ema.safetensors").stat().st_size

    def test_a_link_to_the_best(self, trained: Path, tmp_path: Path) -> None:
        (tmp_path / "best").symlink_to(checkpoint_of(trained, 4))
        assert inspect(tmp_path / "best").facts["step"] == 4

    def test_there_is_nothing_to_draw_or_play(self, trained: Path, tmp_path: Path) -> None:
        for flag in ("--png", "--html"):
            shown = omniges("inspect", checkpoint_of(trained, 4), flag, tmp_path / "x")
            assert (shown.returncode, shown.stdout) == (2, "")
            assert shown.stderr.startswith(f"omniges: {flag}: expected")


class TestRun:
    def test_facts(self, trained: Path) -> None:
        facts = facts_of(trained)
        assert (facts["kind"], facts["step"], facts["starts"]) == ("run", 4, 2)
        assert facts["stop_reason"] == "all steps done"
        assert facts["checkpoints"][0] == "step-000004"
        assert facts["checkpoint"]["step"] == 4
        assert facts["hours"] == log_of(trained)[-1]["elapsed_s"] / 3600

    def test_curves_are_those_of_the_log(self, trained: Path) -> None:
        events = log_of(trained)
        curves = inspect(trained).facts["curves"]
        for name, of in (("steps", "step"), ("loss", "loss"), ("learning_rate", "learning_rate")):
            assert curves[name] == [event[of] for event in events]
        for name, values in curves["tasks"].items():
            assert values == [event["tasks"].get(name, {}).get("loss") for event in events]

    def test_a_picture_and_tables(self, trained: Path, tmp_path: Path) -> None:
        shown = omniges("inspect", trained, "--png", tmp_path / "run.png")
        assert shown.returncode == 0, shown.stderr
        assert (tmp_path / "run.png").read_bytes().startswith(PNG)
        assert "stop reason" in shown.stdout
        refused = omniges("inspect", trained, "--png", tmp_path / "x.png", "--start", "1")
        assert refused.returncode == 2

    def test_a_restart_replaces_what_came_after_its_checkpoint(self, trained: Path) -> None:
        steps = log_of(trained)
        again = [*steps, {"event": "start", "step": 2}, {**steps[2], "loss": 99.0}]
        curves = summary_of(again, "log").curves
        assert curves.steps == [1, 2, 3]
        assert curves.loss[-1] == 99.0
        assert all(len(of) == 3 for of in curves.tasks.values())

    def test_a_run_that_is_killed_has_no_stop_reason(self, trained: Path, tmp_path: Path) -> None:
        lines = (trained / "log.jsonl").read_bytes().splitlines(keepends=True)
        (tmp_path / "log.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:40])
        facts = inspect(tmp_path).facts
        assert (facts["stop_reason"], facts["step"], facts["checkpoint"]) == (None, 1, None)
        assert "it runs, or was killed" in omniges("inspect", tmp_path).stdout

    @pytest.mark.parametrize(
        "line",
        [
            b"{",
            b"[]",
            b'{"event": 3}',
            b'{"event": "steps"}',
            b'{"event": "steps", "step": "x"}',
            b"\xff",
            STEPS % 10**30,
            STEPS % -1,
            (STEPS % 1).replace(b'"loss": 1', b'"loss": "1"'),
            (STEPS % 1).replace(b'"epoch": 1', b'"epoch": true'),
            b'{"event": "start", "step": null}',
            b'{"event": "validation", "step": 1, "loss": 1, "best": {"step": 1}}',
            b'{"event": "end", "step": 1, "ending": []}',
        ],
    )
    def test_a_damaged_log_is_one_line(self, tmp_path: Path, line: bytes) -> None:
        (tmp_path / "log.jsonl").write_bytes(line + b"\n")
        with pytest.raises(DataError, match=r"log\.jsonl") as caught:
            inspect(tmp_path)
        assert "expected" in str(caught.value)
        assert not any(words in str(caught.value) for words in ("argument", "object is", "KeyError"))

    def test_no_log_is_no_event(self, tmp_path: Path) -> None:
        assert list(read_log(tmp_path / "log.jsonl")) == []

    @pytest.mark.parametrize(
        "text",
        [
            b'{"event": "x", "y": "' + b"a" * (1 << 20) + b'"}\n',
            STEPS % 1 + b"\n",
            b"".join((STEPS % 1).replace(b"{}", b'{"t%d": {"loss": 1, "samples": 1}}' % k) + b"\n" for k in range(70)),
            b'{"event": "start", "step": 1}\n' * 5,
            b"\n".join(b'{"event": "validation", "step": 1, "loss": 1}' for _ in range(5)) + b"\n",
        ],
        ids=["a long line", "many steps", "many tasks", "many starts", "many validations"],
    )
    def test_a_log_takes_bounded_memory(self, tmp_path: Path, text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(inspect_models, "MAX_SETTINGS_BYTES", 1 << 16)
        monkeypatch.setattr(inspect_models, "_MOST_ROWS", 1000)
        path = tmp_path / "log.jsonl"
        path.write_bytes(text * 2000 if len(text) < 1000 else text)
        tracemalloc.start()
        try:
            if b"start" in text:
                assert summary_of(read_log(path), "log").starts == 10_000
            else:
                with pytest.raises(DataError, match="expected at most"):
                    summary_of(read_log(path), "log")
            assert tracemalloc.get_traced_memory()[1] < 4e6
        finally:
            tracemalloc.stop()


class TestAnythingElse:
    def test_it_lists_what_it_takes(self, tmp_path: Path) -> None:
        (tmp_path / "x.txt").write_text("x")
        (tmp_path / "x.json").write_text("{}")
        for path in (tmp_path / "nowhere", tmp_path / "x.txt", tmp_path / "x.json", tmp_path):
            with pytest.raises(UsageFault) as caught:
                inspect(path)
            assert str(caught.value).startswith(f"{path}: expected {ACCEPTED}, found ")

    def test_a_part_needs_a_picture_or_page(self, shards: Path) -> None:
        shown = omniges("inspect", shards, "--seconds", "3")
        assert shown.returncode == 2
        assert "--png or --html" in shown.stderr

    def test_bytes_of_a_pipe_are_never_waited_for(self, tmp_path: Path) -> None:
        import os

        os.mkfifo(tmp_path / "x.npz")
        with pytest.raises(DataError, match="a pipe"):
            inspect(tmp_path / "x.npz")


class TestPictures:
    @given(st.floats(0.2, 90_000), st.floats(0, 1, exclude_max=True), st.none() | st.floats(0.1, 90_000))
    def test_rows_cover_the_time_shown(self, length_s: float, share: float, seconds: float | None) -> None:
        start_s = share * (length_s - 0.1)
        rows = spans(start_s, length_s, seconds)
        assert 1 <= len(rows) <= 10
        assert rows[0][0] == start_s
        assert all(a[1] == b[0] for a, b in itertools.pairwise(rows))
        wanted = min(length_s - start_s, MAX_S, seconds or MAX_S)
        assert rows[-1][1] - start_s == pytest.approx(wanted)
        lengths = [stop - start for start, stop in rows]
        assert max(lengths) - min(lengths) < 1e-6 * max(1.0, length_s)
        assert max(lengths) <= 12 + 1e-3 or len(rows) == 10

    @pytest.mark.parametrize("ending", ["npz", "wav", "TextGrid"])
    def test_files_are_drawn(self, corpus: Path, tmp_path: Path, ending: str) -> None:
        path = min(corpus.rglob(f"*.{ending}"))
        shown = omniges("inspect", path, "--png", tmp_path / "x.png", "--start", "1", "--seconds", "2")
        assert shown.returncode == 0, shown.stderr
        assert (tmp_path / "x.png").read_bytes().startswith(PNG)

    @pytest.mark.parametrize("ending", ["npz", "wav"])
    def test_a_part_of_a_file_is_computed_alone_and_looks_the_same(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
    ) -> None:
        """Half a second around the part is enough for the windows of the mel."""
        corpus = tmp_path / "corpus"
        write_sample_corpus(corpus, CorpusSettings(clips=2, seconds=12, seed=3))
        path = min(corpus.rglob(f"*.{ending}"))
        arrays: list[np.ndarray[Any, Any]] = []
        of_file = {name: getattr(inspect_files, name) for name in ("gesture_from_motion", "log_mel")}
        for name, of in of_file.items():
            spy = lambda first, *rest, of=of: arrays.append(first) or of(first, *rest)  # noqa: E731
            monkeypatch.setattr(inspect_files, name, spy)
        part = inspect(path).picture_of(5.0, 2.0)
        monkeypatch.setattr(inspect_files, "_AROUND_S", 99.0)
        whole = inspect(path).picture_of(5.0, 2.0)
        seconds = [len(array) / (16000 if array.ndim == 1 else 30) for array in arrays]
        assert max(seconds[: len(seconds) // 2]) <= 3.1
        assert min(seconds[len(seconds) // 2 :]) > 11
        different = np.asarray(Image.open(io.BytesIO(part))) != np.asarray(Image.open(io.BytesIO(whole)))
        assert different.any(axis=-1).mean() < 1e-3

    def test_a_start_after_the_motion_is_refused_although_its_sound_goes_on(self, corpus: Path, tmp_path: Path) -> None:
        (tmp_path / "x.npz").write_bytes(motion_file(corpus).read_bytes())
        sound = wav_parts([np.tile(np.float32([0.1, -0.1]), 8_000 * 9)], 16_000 * 9, 16_000)
        (tmp_path / "x.wav").write_bytes(b"".join(sound))
        with pytest.raises(UsageFault, match=r"--start 8: expected at most 3\.9 s, because x\.npz is 4\.0 s long"):
            inspect(tmp_path / "x.npz").picture_of(8.0, None)

    def test_a_start_beyond_the_end_is_refused(self, corpus: Path, tmp_path: Path) -> None:
        shown = omniges("inspect", motion_file(corpus), "--png", tmp_path / "x.png", "--start", "99")
        assert shown.returncode == 2
        assert "--start 99: expected at most" in shown.stderr
        assert not list(tmp_path.iterdir())

    @pytest.mark.slow
    def test_a_whole_take_in_rows(self, beat2_sample: Path) -> None:
        take = next(beat2_sample.rglob("2_scott_0_1_1.npz"))
        png = inspect(take).picture_of(0.0, None)
        width, height = Image.open(io.BytesIO(png)).size
        assert width == 1320
        assert height > 5 * 1060

    def test_a_page_of_a_file(self, corpus: Path, tmp_path: Path) -> None:
        shown = omniges("inspect", motion_file(corpus), "--html", tmp_path / "x.html", "--seconds", "1")
        assert shown.returncode == 0, shown.stderr
        assert "1 track of 1.0 s" in shown.stdout
