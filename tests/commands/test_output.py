"""A command's work and exit code do not depend on whether, and by what, its output can be read."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pipeline_helpers import COMMAND, digests

from omniges.commands.common import SafeOutput, safe_output
from omniges.errors import ExitCode


def shell(script: str, *words: object, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run a script in which "$@" is a command of omniges."""
    return subprocess.run(
        ["/bin/bash", "-c", script, "bash", *COMMAND, *map(str, words)],
        capture_output=True,
        env=os.environ | variables,
        timeout=100,
    )


class TestProcesses:
    @pytest.mark.parametrize(
        "redirection",
        [
            "0<&- 1>&- 2>&-",
            "> >(exec <&-) 2>&1",
            pytest.param("2>&-", marks=pytest.mark.slow),
            pytest.param("2>/dev/full", marks=pytest.mark.slow),
        ],
    )
    def test_sound_shards_are_sound_whoever_reads(self, shards: Path, redirection: str) -> None:
        run = shell(f'"$@" {redirection}', "verify-shards", shards)
        assert run.returncode == 0
        assert run.stderr == b""

    @pytest.mark.parametrize("redirection", ["2>/dev/full", pytest.param("0<&- 1>&- 2>&-", marks=pytest.mark.slow)])
    def test_preprocess_publishes_the_same_bytes(
        self, corpus: Path, shards: Path, tmp_path: Path, redirection: str
    ) -> None:
        words = (
            "preprocess",
            "--root",
            corpus,
            "--out",
            tmp_path / "o",
            "--keep-audio",
            "--json",
            "--num-workers",
            "1",
        )
        assert shell(f'"$@" {redirection}', *words).returncode == 0
        assert digests(tmp_path / "o") == digests(shards)

    def test_the_first_line_is_enough(self, shards: Path) -> None:
        run = shell('"$@" | head -n 1; exit "${PIPESTATUS[0]}"', "inspect", shards)
        assert (run.returncode, run.stderr, run.stdout.count(b"\n")) == (0, b"", 1)

    def test_an_error_keeps_its_code_where_nobody_reads_it(self, tmp_path: Path) -> None:
        assert shell('"$@" 2>&-', "inspect", tmp_path / "nowhere").returncode == ExitCode.USAGE
        (tmp_path / "x.wav").write_bytes(b"no audio")
        assert shell('"$@" >/dev/full 2>/dev/full', "inspect", tmp_path / "x.wav").returncode == ExitCode.FINDINGS

    def test_what_a_full_disk_loses_of_a_result_is_no_success(self, shards: Path) -> None:
        run = shell('"$@" >/dev/full', "inspect", shards)
        assert run.returncode == ExitCode.ENVIRONMENT
        assert run.stderr == b"omniges: cannot write to standard output: No space left on device\n"

    def test_a_hangup_does_not_end_the_work(self, shards: Path) -> None:
        script = "import os, signal, sys\nfrom omniges import cli\nfrom omniges.commands import shards\n"
        script += (
            "old = cli.app\ncli.app = lambda **how: (os.kill(os.getpid(), signal.SIGHUP), old(**how))[1]\ncli.main()"
        )
        run = subprocess.run([sys.executable, "-c", script, "inspect", str(shards)], capture_output=True, timeout=60)
        assert run.returncode == 0, run.stderr

    @pytest.mark.parametrize("encoding", ["ascii", pytest.param("latin-1", marks=pytest.mark.slow)])
    def test_every_encoding_shows_a_sample(self, shards: Path, encoding: str) -> None:
        run = shell('"$@"', "inspect", shards, "1_synthetica_0_1_1", LC_ALL="C", PYTHONIOENCODING=encoding)
        assert (run.returncode, run.stderr) == (0, b"")
        assert "\\u2013" in run.stdout.decode(encoding)


class TestStreams:
    @given(st.text(st.characters(), max_size=20))
    def test_any_text_can_be_printed_as_json_on_ascii(self, text: str) -> None:
        with safe_output():
            data = json.dumps(text, ensure_ascii=False).encode("ascii", "omniges-escapes")
        assert json.loads(data) == text

    def test_what_cannot_be_written_is_dropped_and_remembered(self) -> None:
        reader, writer = os.pipe()
        output = SafeOutput(writer)
        assert output.write(b"one") == 3
        assert os.read(reader, 10) == b"one"
        os.close(reader)
        assert output.write(b"two") == output.write(b"two") == 3
        assert isinstance(output.error, BrokenPipeError)
        assert output.lost is None
        os.close(writer)
        full = os.open("/dev/full", os.O_WRONLY)
        output = SafeOutput(full)
        assert output.write(b"three") == 5
        assert output.lost is not None
        os.close(full)

    def test_a_pipe_that_does_not_block_gets_every_byte(self) -> None:
        read = "import sys, time; time.sleep(0.2); print(len(sys.stdin.buffer.read()))"
        with subprocess.Popen(
            [sys.executable, "-c", read], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as reader:
            assert reader.stdin is not None
            os.set_blocking(reader.stdin.fileno(), False)
            assert SafeOutput(reader.stdin.fileno()).write(b"x" * 1_000_000) == 1_000_000
            assert reader.communicate()[0] == "1000000\n"

    def test_a_terminal_that_was_closed_has_lost_nothing(self) -> None:
        ours, theirs = os.openpty()
        output = SafeOutput(theirs)
        assert output.isatty()
        os.close(ours)
        output.write(b"one")
        assert output.error is not None
        assert output.lost is None
        os.close(theirs)

    def test_streams_of_another_program_are_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        own = io.StringIO()
        monkeypatch.setattr("sys.stdout", own)
        with safe_output() as lost:
            assert sys.stdout is own
        assert lost == []
