"""A fault of a recording becomes a finding; a fault of the machine ends the worker, and the recording is lost."""

from __future__ import annotations

import errno
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pipeline_helpers import run_preprocess

from omniges.errors import EnvironmentFault, RecordingFault
from omniges.pipeline import convert as convert_module
from omniges.pipeline import incremental
from omniges.pipeline.discover import Recording, SourceFile, inspect, walk
from omniges.pipeline.labels import parse_stem
from omniges.pipeline.worker import ConvertPool, encode_recording, prepare
from omniges.verify.folders import LocalFolder

RECORDING = Recording("a", "a", "train", parse_stem("a"), {})


def converting(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the worker's answer if the conversion raises."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(convert_module, "convert", fail)
    head, buffers = prepare({})(encode_recording(RECORDING))
    assert not buffers
    return head


class TestBoundary:
    def test_a_bug_that_one_recording_meets_is_a_finding(self, monkeypatch: pytest.MonkeyPatch) -> None:
        (finding,) = converting(ValueError("two\nlines"), monkeypatch)["findings"]
        assert (finding["code"], finding["found"]) == ("internal-error", "ValueError: two lines")

    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            ImportError("cannot map a shared object"),  # what a late import gives where memory has run out
            SystemError("error return without exception set"),
            OSError(errno.ENOMEM, "Cannot allocate memory"),
            OSError(errno.ENOSPC, "No space left on device"),
            OSError(errno.EMFILE, "Too many open files"),
            OSError("cannot load library 'libsndfile.so'"),
            ModuleNotFoundError("No module named 'soxr'"),
            EnvironmentFault("numba finds no folder"),
        ],
        ids=lambda error: f"{type(error).__name__} {error}",
    )
    def test_a_fault_of_the_machine_is_not(self, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(type(error)):
            converting(error, monkeypatch)

    @pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
    def test_a_file_that_the_machine_cannot_open_is_none_of_the_recording(
        self, number: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "open", fail)
        with pytest.raises(EnvironmentFault):
            convert_module._read(Path("a.wav"))


class TestLostInARun:
    def test_a_lost_recording_leaves_the_set_incomplete_and_the_next_run_completes_it(
        self, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = run_preprocess(corpus, tmp_path / "whole")
        # A worker that dies of one recording: the real one, told by the environment which.
        killer = tmp_path / "killer.py"
        killer.write_text(
            "import os, signal\nfrom omniges.pipeline import convert as module, worker\n"
            "from omniges.workers import serve\nreal = module.convert\n"
            "def convert(recording, settings, decode):\n"
            "    if recording.stem == '1_synthetica_0_2_2': os.kill(os.getpid(), signal.SIGKILL)\n"
            "    return real(recording, settings, decode)\n"
            "module.convert = convert\nserve(worker.prepare)\n"
        )
        with monkeypatch.context() as patch:
            patch.setattr(ConvertPool.__init__, "__defaults__", ((sys.executable, str(killer)),))
            summary = run_preprocess(corpus, tmp_path / "o")
        assert summary.lost == {"1_synthetica_0_2_2": "killed by SIGKILL"}
        assert summary.exit_code == 1
        assert summary.converted == whole.converted - 1
        assert "dataset.json" not in os.listdir(tmp_path / "o")
        log = (tmp_path / "o.run.jsonl").read_text()
        assert log.count("worker-death") == 2
        assert "1_synthetica_0_2_2" in log
        assert run_preprocess(corpus, tmp_path / "o").manifest_hash == whole.manifest_hash


class TestFilesThatAreReplaced:
    """A file that was replaced after it was found is no recording: nothing waits for it, or follows a link."""

    @pytest.fixture(params=["pipe", "link to a pipe", "link out of the root", "folder", "device"])
    def swapped(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        path, other = tmp_path / "root" / "a.wav", tmp_path / "other"
        path.parent.mkdir()
        if request.param == "pipe":
            os.mkfifo(path)
        elif request.param == "folder":
            path.mkdir()
        elif request.param == "device":
            path.symlink_to("/dev/zero")
        else:
            os.mkfifo(other) if "pipe" in request.param else other.write_bytes(b"secret")
            path.symlink_to(other)
        return path

    def test_the_conversion_rejects_it(self, swapped: Path) -> None:
        with pytest.raises(RecordingFault) as caught:
            convert_module._read(swapped)
        assert caught.value.problem.code == "file-unreadable"

    def test_its_digest_is_absent_as_in_the_set(self, swapped: Path) -> None:
        recording = replace(RECORDING, files={"wav": SourceFile(str(swapped), "a.wav", 1)})
        found = incremental.digest_inputs([recording], 1, lambda _done, _total: None)
        assert found == {RECORDING.stem: {"a.wav": None}}


class TestOtherReaders:
    """A file that the machine cannot open is no finding about it, whoever reads it."""

    @pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
    def test_discovery_digests_and_verification_blame_the_machine(
        self, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number))

        (tmp_path / "a.wav").write_bytes(b"a")
        source = SourceFile(str(tmp_path / "a.wav"), "a.wav", 1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", fail)
            with pytest.raises(EnvironmentFault), LocalFolder(tmp_path).opened("a.wav"):
                pass
        with monkeypatch.context() as patch:
            patch.setattr(incremental, "file_sha256", fail)
            with pytest.raises(EnvironmentFault):
                incremental.digest_inputs([replace(RECORDING, files={"wav": source})], 1, lambda _done, _total: None)
        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", fail)
            with pytest.raises(EnvironmentFault):
                list(walk(tmp_path, "", (str(tmp_path),), []))
        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", fail)
            with pytest.raises(EnvironmentFault):
                inspect(str(tmp_path / "a.wav"), "a.wav", (str(tmp_path),))
