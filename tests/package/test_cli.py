"""The command line: exit codes are a contract, errors are one line, machines get JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pipeline_helpers import COMMAND, digests, omniges

from omniges import __version__

SIGNALLED_ONCE = """
import os
import omniges.cli, omniges.pipeline.run as run
run.ConvertProgress.of = lambda *_state: os.kill(os.getpid(), {number})
omniges.cli.main()
"""


def only_line(run: subprocess.CompletedProcess[str]) -> str:
    (line,) = run.stderr.strip().splitlines()
    return line


class TestUsage:
    @pytest.mark.parametrize(
        "words",
        [
            ["preprocess"],
            ["preprocess", "--root", "."],
            ["preprocess", "--root", "nowhere"],
            ["preprocess", "--root", ".", "--workers", "x"],
            ["preprocess", "--root", ".", "--workers", "-1"],
            ["preprocess", "--root", ".", "--shard-size", "3 apples"],
            ["preprocess", "--root", ".", "--splits", "dev"],
            ["preprocess", "--root", ".", "--max-rejected", "2"],
            ["preprocess", "--root", ".", "--max-length-mismatch", "nan"],
            ["preprocess", "--root", ".", "--deadline", "nan"],
            ["preprocess", "--root", ".", "--out", "/"],
            ["preprocess", "--root", ".", "--loudness", "loud"],
            ["sample-corpus", "x", "--clips", "0"],
            ["sample-corpus", "s3://bucket/x"],
            ["inspect", "s3://bucket/x"],
            ["inspect", "nowhere"],
            ["export", "--shards", "nowhere", "-o", "x"],
            ["encode"],
            ["nonsense"],
        ],
    )
    def test_wrong_words_exit_2_without_a_traceback(
        self, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        run = omniges(*words)
        assert run.returncode == 2
        assert "Traceback" not in run.stderr
        assert run.stderr
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        "words",
        [
            ["train"],
            *(pytest.param(w, marks=pytest.mark.slow) for w in (["preprocess", "--root", "x"], ["evaluate", "x"])),
        ],
    )
    def test_a_removed_current_folder_exits_3_in_one_line(
        self, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gone = tmp_path / "gone"
        gone.mkdir()
        monkeypatch.chdir(gone)
        gone.rmdir()
        code = "import sys; sys.argv[0] = 'omniges'; from omniges.cli import main; main()"
        run = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
        assert run.returncode == 3
        assert (
            only_line(run) == "omniges: current folder: expected an existing folder, found that it was removed; "
            "change to another folder"
        )

    def test_version_and_help(self) -> None:
        assert omniges("--version").stdout.strip() == f"omniges {__version__}"
        run = omniges("--help")
        assert run.returncode == 0
        assert all(command in run.stdout for command in ("preprocess", "export", "inspect", "sample-corpus"))


class TestPreprocess:
    def test_json_lines_for_machines(self, corpus: Path, tmp_path: Path) -> None:
        run = omniges("preprocess", "--root", corpus, "--out", tmp_path / "o", "--json")
        assert run.returncode == 0, run.stderr
        events = [json.loads(line) for line in run.stdout.splitlines()]
        assert [event["event"] for event in events[-2:]] == ["progress", "summary"]
        assert events[-1]["converted"] == events[-2]["converted"] == 6
        assert events[-1]["exit_code"] == 0

    @pytest.mark.slow
    def test_plain_lines_where_there_is_no_terminal(self, corpus: Path, tmp_path: Path) -> None:
        run = omniges("preprocess", "--root", corpus, "--out", tmp_path / "o")
        assert "6/6 recordings: 6 converted, 0 rejected" in run.stderr.splitlines()[-1]
        assert "\x1b" not in run.stdout + run.stderr
        assert run.stdout.splitlines()[-1] == "complete: 0 of 6 recordings rejected (0.0%)"

    def test_the_plan_writes_nothing(self, corpus: Path, tmp_path: Path) -> None:
        run = omniges("preprocess", "--root", corpus, "--out", tmp_path / "o", "--plan")
        assert run.returncode == 0, run.stderr
        assert "scaled up from 3 recordings" in run.stdout
        assert not list(tmp_path.iterdir())
        plan = json.loads(omniges("preprocess", "--root", corpus, "--plan", "--json").stdout)
        assert plan["stems"] == 6
        assert 20 < plan["seconds"] < 28
        assert plan["wall_s"] > 0

    def test_filters_take_lists_and_repeated_flags(self, corpus: Path, tmp_path: Path) -> None:
        words = ["--speakers", "1,2", "--include", "*_1_1", "--include", "*_2_2", "--splits", "train,val,test"]
        run = omniges("preprocess", "--root", corpus, "--out", tmp_path / "o", "--json", *words)
        assert json.loads(run.stdout.splitlines()[-1])["converted"] == 4

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_no_permission_exits_3(self, corpus: Path, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        run = omniges("preprocess", "--root", corpus, "--out", tmp_path / "o")
        assert run.returncode == 3
        assert "permission denied" in only_line(run)

    def test_an_output_path_that_is_a_file_exits_3_in_one_line(self, corpus: Path, tmp_path: Path) -> None:
        (tmp_path / "o").touch()
        run = omniges("preprocess", "--root", corpus, "--out", tmp_path / "o")
        assert run.returncode == 3
        assert "cannot create the folder" in only_line(run)

    @pytest.mark.slow
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)])
    def test_signals_leave_at_once_with_their_code_and_the_next_run_completes(
        self, corpus: Path, shards: Path, tmp_path: Path, number: int, code: int
    ) -> None:
        out = tmp_path / "o"
        words = ["preprocess", "--root", str(corpus), "--out", str(out), "--keep-audio"]
        # The command signals itself after the first recording: a signal from here may arrive after its end.
        stopped = subprocess.run(
            [sys.executable, "-c", SIGNALLED_ONCE.format(number=int(number)), *words],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert stopped.returncode == code, stopped.stderr
        assert "Traceback" not in stopped.stderr
        assert "dataset.json" not in {path.name for path in out.iterdir()}
        assert not any(".tmp-" in path.name for path in out.iterdir())
        assert omniges(*words).returncode == 0
        assert digests(out) == digests(shards)


class TestInspect:
    def test_tables(self, shards: Path) -> None:
        run = omniges("inspect", shards)
        assert run.returncode == 0, run.stderr
        assert "synthetica" in run.stdout
        run = omniges("inspect", shards, "1_synthetica_0_1_1")
        assert "gesture.npy" in run.stdout
        assert "wave16k/1_synthetica_0_1_1.wav" in run.stdout

    def test_json(self, shards: Path) -> None:
        facts = json.loads(omniges("inspect", shards, "--json").stdout)
        assert len(facts["keys"]) == 6
        sample = json.loads(omniges("inspect", shards, facts["keys"][0], "--json").stdout)
        assert sample["arrays"]["gesture.npy"]["shape"][1] == 415

    def test_a_picture(self, shards: Path, tmp_path: Path) -> None:
        run = omniges("inspect", shards, "1_synthetica_0_1_1", "--png", tmp_path / "x.png")
        assert run.returncode == 0, run.stderr
        assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize("start", ["-1", "4", "nan"])
    def test_a_picture_beyond_the_end_exits_2_in_one_line(self, shards: Path, tmp_path: Path, start: str) -> None:
        words = ["inspect", shards, "1_synthetica_0_1_1", "--png", tmp_path / "x.png", "--start", start]
        run = omniges(*words)
        assert run.returncode == 2
        assert "--start" in only_line(run)
        assert not list(tmp_path.iterdir())

    def test_an_output_that_cannot_be_written_exits_3_in_one_line(self, shards: Path) -> None:
        with Path("/dev/full").open("w") as full:
            run = subprocess.run(
                [*COMMAND, "inspect", str(shards)], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
            )
        assert run.returncode == 3
        assert "No space left" in only_line(run)

    @pytest.mark.long  # fifteen commands: pytest -m long
    def test_short_commands_over_a_manifest_end_with_their_own_code(self, shards: Path) -> None:
        # pyarrow's reader threads used to abort one in twenty-five of these.
        codes = {omniges("inspect", shards, "nokey").returncode for _ in range(15)}
        assert codes == {2}

    def test_an_unknown_key_suggests_a_near_one(self, shards: Path) -> None:
        run = omniges("inspect", shards, "1_synthetica_0_1_2")
        assert run.returncode == 2
        line = only_line(run)
        assert "did you mean" in line
        assert "1_synthetica_0_1_1" in line

    @pytest.mark.parametrize("name", ["dataset.json", "manifest.parquet", "train-000000.tar"])
    def test_damage_exits_1_and_names_the_file(self, shards: Path, tmp_path: Path, name: str) -> None:
        import shutil

        shutil.copytree(shards, tmp_path / "s")
        data = bytearray((tmp_path / "s" / name).read_bytes())
        data[len(data) // 2] ^= 4
        (tmp_path / "s" / name).write_bytes(data)
        runs = [omniges("export", "--shards", tmp_path / "s", "-o", tmp_path / "x")]
        assert runs[0].returncode == 1
        assert name in only_line(runs[0])

    def test_an_incomplete_folder_exits_1(self, shards: Path, tmp_path: Path) -> None:
        (tmp_path / "train-000000.tar").write_bytes((shards / "train-000000.tar").read_bytes())
        run = omniges("inspect", tmp_path)
        assert run.returncode == 1
        assert "expected dataset.json, found none" in only_line(run)
