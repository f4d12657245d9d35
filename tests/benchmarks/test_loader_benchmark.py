"""The loader's benchmarks run and say what they promise, and the peers read the same windows. No speed is asserted."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pipeline_helpers import omniges, run_preprocess

from omniges.benchmark.loader import window_bytes
from omniges.testing.settings import CorpusSettings
from omniges.testing.synthetic_corpus import write_sample_corpus

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loader")
    write_sample_corpus(folder / "corpus", CorpusSettings(clips=4, seconds=8.0, words=6, speakers=2, seed=3))
    assert run_preprocess(folder / "corpus", folder / "shards").exit_code == 0
    return folder / "shards"


class TestCommand:
    @pytest.mark.long  # pytest -m long
    def test_every_figure_is_there_with_its_spread(self, clips: Path) -> None:
        flags = ("--window-ticks", 8, "--batch-size", 4, "--workers", "0,1", "--seconds", 0.2, "--repeats", 2)
        done = omniges("benchmark", "loader", "--shards", clips, *flags, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        document = json.loads(done.stdout)
        assert document["window_bytes"] == 8 * 4 * (3 * 415 + 10 * 64 + 1) == window_bytes(8)
        assert [row["workers"] for row in document["rows"]] == [0, 1]
        for row in document["rows"]:
            for name in ("windows_per_s", "copy_limit_per_s", "copy_share", "cold_windows_per_s", "cpu_us_per_window"):
                assert 0 < row[name]["min"] <= row[name]["median"] <= row[name]["max"]
            assert row["mb_per_s"] == pytest.approx(row["windows_per_s"]["median"] * window_bytes(8) / 1e6)

    @pytest.mark.slow
    def test_plain_lines_without_cold_readings(self, clips: Path) -> None:
        flags = ("--window-ticks", 8, "--batch-size", 4, "--workers", "0", "--seconds", 0.1, "--repeats", 1)
        done = omniges("benchmark", "loader", "--shards", clips, *flags, "--warm")
        assert done.returncode == 0, done.stderr
        head, columns, row = done.stdout.splitlines()
        assert "windows of 8 ticks" in head
        assert "share of np.copyto" in columns
        assert " – " in row

    @pytest.mark.long  # a process each: pytest -m long
    @pytest.mark.parametrize(
        "flags", [("--workers", "x"), ("--workers", ""), ("--repeats", 0), ("--seconds", 0), ("--split", "additional")]
    )
    def test_what_cannot_be_measured_is_refused(self, clips: Path, flags: tuple[object, ...]) -> None:
        done = omniges("benchmark", "loader", "--shards", clips, *flags)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


@pytest.mark.long  # pytest -m long
class TestSideBySide:
    def test_the_script_measures_and_names_the_absent(self, clips: Path, tmp_path: Path) -> None:
        command = [sys.executable, str(BENCHMARKS / "loader.py"), "--shards", str(clips), "--work", str(tmp_path / "w")]
        command += ["--ticks", "8", "--batch-size", "4", "--workers", "1", "--seconds", "0.3", "--repeats", "2"]
        done = subprocess.run(
            [*command, "--json", str(tmp_path / "f.json")], capture_output=True, text=True, timeout=110
        )
        assert done.returncode == 0, done.stderr
        document = json.loads((tmp_path / "f.json").read_text())
        assert {"omniges", "np.copyto", "webdataset"} <= document["figures"].keys()
        assert document["figures"].keys() | document["absent"].keys() == {
            *("omniges", "np.copyto", "webdataset", "litdata", "streaming")
        }
        for name, runs in document["figures"].items():
            assert len(runs) == 2
            assert all(run["windows_per_s"] > 0 for run in runs), name
        ours = [run["windows_per_s"] for run in document["figures"]["omniges"]]
        theirs = [run["windows_per_s"] for run in document["figures"]["webdataset"]]
        assert document["ratios"]["webdataset"] == [pytest.approx(a / b) for a, b in zip(ours, theirs, strict=True)]
        for peer in document["absent"]:
            assert f"{peer}: absent (" in done.stdout
        assert not list((tmp_path / "w").iterdir())

    def test_peers_get_the_same_windows(self, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The peers read as many windows, of the same shape and content, so the comparison is fair."""
        monkeypatch.syspath_prepend(BENCHMARKS)
        peers = importlib.import_module("peer_readers")
        from omniges.shards.reader import ShardFolder

        folder = ShardFolder(clips)
        rows = sorted((row for row in folder.rows if row.split == "train"), key=lambda row: row.key)
        windows = list(peers.windows_of_shards(sorted(clips.glob("train-*.tar")), 8))
        assert len(windows) == sum(row.ticks // 8 for row in rows)
        first = folder.sample(rows[0])
        np.testing.assert_array_equal(windows[1]["gesture"], first.gesture.gesture[24:48])
        np.testing.assert_array_equal(windows[1]["mel"], first.mel[80:160])
