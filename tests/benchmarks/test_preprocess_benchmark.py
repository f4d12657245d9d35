"""The benchmark runs and says what it promises, and what it is held beside computes the same. No speed is asserted."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omniges.features.audio import log_mel
from omniges.features.gesture import gesture_from_motion
from omniges.features.timebase import mel_frames_for
from omniges.formats.audio import decode_wav
from omniges.formats.npz import decode_motion
from omniges.formats.textgrid import decode_words

pytestmark = pytest.mark.long  # what measures is not what users run: pytest -m long

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
FLAGS = ("--recordings", "3", "--seconds", "3", "--repeats", "1")
RUN_FIELDS = {
    *("recordings", "seconds", "x_real_time", "wall_s", "cpu_s", "other_cpu_share"),
    *("main_mb", "worker_mb", "maxrss_mb"),
}
STAGES = (
    "read",
    "sha256 of inputs and members",
    "decode_motion",
    "decode_wav",
    "decode_words",
    "gesture_from_motion",
    "log_mel",
)


def run_benchmark(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "preprocess.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, Any]]:
    """Work folder, printed report and JSON of one quick run."""
    work = tmp_path_factory.mktemp("benchmark")
    done = run_benchmark(*FLAGS, "--work", str(work), "--json", str(work / "figures.json"))
    assert done.returncode == 0, done.stderr
    return work, done.stdout, json.loads((work / "figures.json").read_text())


class TestFigures:
    def test_has_the_promised_parts(self, quick: tuple[Path, str, dict[str, Any]]) -> None:
        *_, document = quick
        assert document.keys() == {
            *("machine", "settings", "corpus", "preprocess", "straightforward", "ratio", "stages_ms", "memory")
        }
        assert document["corpus"]["recordings"] == 3
        assert document["memory"] == []
        assert {"numpy", "librosa", "praatio"} <= document["machine"]["packages"].keys()

    @pytest.mark.parametrize("name", ["preprocess", "straightforward"])
    def test_both_conversions_cover_the_corpus(self, quick: tuple[Path, str, dict[str, Any]], name: str) -> None:
        (run,) = quick[2][name]["runs"]
        assert run.keys() == RUN_FIELDS
        assert run["recordings"] == 3
        assert run["seconds"] == pytest.approx(9.0)
        assert all(run[field] > 0 for field in ("x_real_time", "wall_s", "cpu_s", "main_mb", "maxrss_mb"))
        assert (run["worker_mb"] > 0) == (name == "preprocess")

    def test_ratio_is_that_of_the_pair(self, quick: tuple[Path, str, dict[str, Any]]) -> None:
        document = quick[2]
        ours, theirs = (document[name]["x_real_time"]["median"] for name in ("preprocess", "straightforward"))
        assert document["ratio"]["pairs"] == [pytest.approx(ours / theirs)]

    def test_every_stage_takes_time_and_they_add_up(self, quick: tuple[Path, str, dict[str, Any]]) -> None:
        stages = {name: figures["median"] for name, figures in quick[2]["stages_ms"].items()}
        assert all(stages[name] > 0 for name in (*STAGES, "partial statistics"))
        parts = sum(value for name, value in stages.items() if name not in {"worker in all", next(reversed(stages))})
        assert parts == pytest.approx(stages["worker in all"])  # one train recording: its median is the recording

    def test_report_is_plain_lines_in_a_pipe(self, quick: tuple[Path, str, dict[str, Any]]) -> None:
        report = quick[1]
        assert "\x1b" not in report
        assert "preprocess / straightforward:" in report
        assert "log_mel" in report

    def test_only_the_corpus_stays(self, quick: tuple[Path, str, dict[str, Any]]) -> None:
        assert {path.name for path in quick[0].iterdir()} == {"corpus", "figures.json"}


class TestStraightforward:
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # audioread, which librosa imports, uses aifc
    def test_computes_what_the_shards_hold(
        self, quick: tuple[Path, str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The straightforward conversion computes the same arrays, so the comparison is fair."""
        base = quick[0] / "corpus" / "beat_synthetic_v2.0.0"
        stem = "1_synthetica_0_1_1"
        files = [base / "wave16k" / f"{stem}.wav", base / "smplxflame_30" / f"{stem}.npz"]
        files.append(base / "textgrid" / f"{stem}.TextGrid")
        monkeypatch.syspath_prepend(BENCHMARKS)
        straightforward = importlib.import_module("straightforward")
        straightforward.convert(*map(str, files), str(tmp_path / "found.npz"))
        found = np.load(tmp_path / "found.npz")
        wav, npz, grid = (path.read_bytes() for path in files)
        motion = decode_motion(npz)
        gesture = gesture_from_motion(motion.poses, motion.expressions, motion.trans).gesture
        np.testing.assert_allclose(found["gesture"], gesture, atol=3e-7)
        mel = log_mel(decode_wav(wav).samples, mel_frames_for(len(gesture)))
        np.testing.assert_allclose(found["mel"], mel, atol=1e-3)
        words = decode_words(grid).words
        assert [word.word for word in words] == found["words"].tolist()
        np.testing.assert_allclose([word.start for word in words], found["starts"], atol=1e-3)


def test_linked_corpus_has_new_speakers_and_the_same_files(
    quick: tuple[Path, str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    corpora = importlib.import_module("corpora")
    recordings = corpora.find_recordings(quick[0] / "corpus")
    linked = corpora.find_recordings(corpora.link_corpus(recordings, tmp_path, 7))
    assert len(linked) == 7
    assert {recording.fields.speaker_id for recording in linked} == {1, 2, 3, 101, 102, 103, 201}
    assert {recording.size for recording in linked} == {recording.size for recording in recordings}
    assert not any(recording.notes for recording in linked)


def test_zero_repeats_are_refused_by_name() -> None:
    done = run_benchmark("--repeats", "0")
    assert done.returncode == 2
    assert "--repeats 0: expected at least 1" in done.stderr
