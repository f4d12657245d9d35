"""A file appears under its final name only whole, and every failure is one line that names the way out."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import resource
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniges.errors import EnvironmentFault, UsageFault
from omniges.storage.atomic import (
    PendingFile,
    PendingGroup,
    append_line,
    is_temporary_name,
    locked,
    open_log,
    pending_folder,
    publish_bytes,
    require_output_file,
)


class TestPublish:
    def test_content_and_digest(self, tmp_path: Path) -> None:
        digest = publish_bytes(tmp_path / "x", [b"ab", b"c"])
        assert (tmp_path / "x").read_bytes() == b"abc"
        assert digest == hashlib.sha256(b"abc").hexdigest()

    def test_the_order_is_write_fsync_rename_fsync_of_the_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[str] = []
        real_write, real_fsync, real_rename = os.write, os.fsync, Path.rename

        def fsync(descriptor: int) -> None:
            calls.append("fsync folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "fsync file")
            real_fsync(descriptor)

        def rename(self: Path, target: Path) -> Path:
            calls.append("rename")
            return real_rename(self, target)

        def write(descriptor: int, data: bytes) -> int:
            calls.append("write")
            return real_write(descriptor, data)

        monkeypatch.setattr(os, "write", write)
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Path, "rename", rename)
        publish_bytes(tmp_path / "x", b"abc")
        assert calls == ["write", "fsync file", "rename", "fsync folder"]

    def test_until_published_there_is_only_a_temporary_name(self, tmp_path: Path) -> None:
        with PendingFile(tmp_path / "x") as pending:
            pending.write(b"half")
            (name,) = os.listdir(tmp_path)
            assert is_temporary_name(name)
            assert not is_temporary_name("x")

    def test_an_exception_keeps_the_old_file(self, tmp_path: Path) -> None:
        publish_bytes(tmp_path / "x", b"old")
        with pytest.raises(KeyboardInterrupt), PendingFile(tmp_path / "x") as pending:
            pending.write(b"new")
            raise KeyboardInterrupt
        assert os.listdir(tmp_path) == ["x"]
        assert (tmp_path / "x").read_bytes() == b"old"

    @pytest.mark.parametrize("link", [os.symlink, os.link])
    def test_a_link_at_the_temporary_name_is_not_written_through(self, link: Any, tmp_path: Path) -> None:
        victim = tmp_path / "victim"
        victim.write_bytes(b"precious")
        link(victim, tmp_path / f".x.tmp-{os.getpid()}")
        publish_bytes(tmp_path / "x", b"new")
        assert victim.read_bytes() == b"precious"
        assert (tmp_path / "x").read_bytes() == b"new"
        assert (tmp_path / "x").stat().st_nlink == 1

    @pytest.mark.parametrize(
        ("code", "advice"),
        [
            (errno.ENOSPC, "disk is full"),
            (errno.EACCES, "permission denied"),
            (errno.EROFS, "read-only"),
            (errno.EIO, "check the disk"),
        ],
    )
    def test_failures_name_the_file_and_the_way_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, advice: str
    ) -> None:
        def fail(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "write", fail)
        with pytest.raises(EnvironmentFault, match=advice) as caught:
            publish_bytes(tmp_path / "name.json", b"x")
        assert "name.json" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert os.listdir(tmp_path) == []

    def test_a_vanished_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(EnvironmentFault, match="the folder does not exist"):
            publish_bytes(tmp_path / "gone" / "x", b"")


class TestGroup:
    def test_all_files_get_their_names_in_order(self, tmp_path: Path) -> None:
        with PendingGroup() as group:
            for name in ("a", "b"):
                group.open(tmp_path / name).write(name.encode())
            assert {path.name[0] for path in tmp_path.iterdir()} == {"."}
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"a", "b": b"b"}

    @pytest.mark.parametrize("after", [0, 1, 2])
    def test_whatever_comes_between_leaves_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
    ) -> None:
        rename, done = Path.rename, 0

        def failing(path: Path, target: Path) -> Path:
            nonlocal done
            if done == after:
                raise KeyboardInterrupt
            done += 1
            found = rename(path, target)
            if done == 3:
                raise KeyboardInterrupt
            return found

        monkeypatch.setattr(Path, "rename", failing)
        with pytest.raises(KeyboardInterrupt), PendingGroup() as group:
            for name in "abc":
                group.open(tmp_path / name).write(b"x")
        assert not list(tmp_path.iterdir())

    def test_a_signal_right_behind_a_rename_leaves_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rename = Path.rename

        def interrupted(path: Path, target: Path) -> Path:
            rename(path, target)
            raise KeyboardInterrupt

        monkeypatch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt), PendingGroup() as group:
            group.open(tmp_path / "a").write(b"x")
        assert not list(tmp_path.iterdir())


class TestPendingFolder:
    def test_what_dead_processes_left_of_it_goes_and_nothing_else(self, tmp_path: Path) -> None:
        final = tmp_path / "out"
        for name in (".out.tmp-1", ".out.tmp-999999999", ".other.tmp-1", ".out.tmp-x", "out.tmp-1"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "half").write_bytes(b"x")
        (tmp_path / ".out.tmp-2").write_bytes(b"a file")
        (tmp_path / ".out.tmp-3").symlink_to(tmp_path / ".other.tmp-1")
        with pending_folder(final) as folder:
            publish_bytes(folder / "whole", b"x")
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            *(".other.tmp-1", ".out.tmp-2", ".out.tmp-3", ".out.tmp-x", "out", "out.tmp-1")
        ]
        assert (tmp_path / ".other.tmp-1" / "half").exists()

    def test_one_that_is_still_being_written_stays(self, tmp_path: Path) -> None:
        living = tmp_path / ".out.tmp-1"
        living.mkdir()
        with locked(living), pending_folder(tmp_path / "out"):
            assert living.is_dir()
        with pending_folder(tmp_path / "out" / "x") as folder:
            refused = pytest.raises(EnvironmentFault, match="another omniges run is writing here")
            with refused, locked(folder):
                raise AssertionError

    def test_it_is_locked_until_it_has_its_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The lock keeps another run from emptying it during the rename."""
        rename = Path.rename
        held: list[Path] = []

        def watched(path: Path, target: Path) -> Path:
            with pytest.raises(EnvironmentFault, match="another omniges run"), locked(path):
                raise AssertionError
            held.append(path)
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", watched)
        with pending_folder(tmp_path / "out") as folder:
            (folder / "whole").write_bytes(b"x")
        assert held == [folder]
        assert (tmp_path / "out" / "whole").read_bytes() == b"x"

    def test_a_folder_that_got_its_name_before_it_could_be_locked_is_left_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other, final = tmp_path / ".out.tmp-1", tmp_path / "out"
        other.mkdir()
        (other / "whole").write_bytes(b"x")
        flock = fcntl.flock

        def late(descriptor: int, operation: int) -> None:
            if other.is_dir():
                other.rename(final)
            flock(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", late)
        with pytest.raises(EnvironmentFault, match="out"), pending_folder(final):
            pass  # two runs of one name: the first has it
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert (final / "whole").read_bytes() == b"x"

    def test_a_folder_that_is_taken_for_abandoned_before_it_is_locked_is_made_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        flock = fcntl.flock
        losses: list[Path] = []

        def late(descriptor: int, operation: int) -> None:
            if not losses:
                (lost,) = tmp_path.iterdir()
                lost.rmdir()
                losses.append(lost)
            flock(descriptor, operation)

        monkeypatch.setattr(fcntl, "flock", late)
        with pending_folder(tmp_path / "out") as folder:
            (folder / "whole").write_bytes(b"x")
        assert losses
        assert (tmp_path / "out" / "whole").read_bytes() == b"x"

    def test_a_file_system_without_locks_is_one_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refused(*_: object) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", refused)
        with pytest.raises(EnvironmentFault, match="cannot lock"), locked(tmp_path):
            raise AssertionError


class TestLog:
    """Each line of a log is whole, whatever ended the process that wrote the one before."""

    @given(st.lists(st.text()), st.integers(0, 60))
    def test_a_torn_last_line_is_never_glued_to_the_next(self, texts: list[str], torn: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "log.jsonl")
            before = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)
            path.write_bytes(before[: len(before) - torn] if torn < len(before) else b"")
            whole = path.read_bytes().count(b"\n")
            descriptor = open_log(path)
            append_line(descriptor, b"7\n")
            os.close(descriptor)
            found = [json.loads(line) for line in path.read_bytes().splitlines()]
            assert found[-1] == 7
            assert found[:-1] == [{"text": text} for text in texts[: len(found) - 1]]
            assert len(found) - 1 >= whole

    def test_a_line_of_megabytes_is_cut_off_as_a_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "log.jsonl"
        path.write_bytes(b'{"a": 1}\n{"b": "' + b"x" * 3_000_000)
        os.close(open_log(path))
        assert path.read_bytes() == b'{"a": 1}\n'

    def test_a_full_disk_leaves_whole_lines(self, tmp_path: Path) -> None:
        """A file-size limit stands for the disk."""
        ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        descriptor = open_log(tmp_path / "log.jsonl")
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
            append_line(descriptor, b"1" * 70 + b"\n")
            with pytest.raises(OSError, match="File too large"):
                append_line(descriptor, b"2" * 70 + b"\n")
            append_line(descriptor, b"3\n")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, ignored)
            os.close(descriptor)
        assert (tmp_path / "log.jsonl").read_bytes() == b"1" * 70 + b"\n3\n"

    @pytest.mark.parametrize("kind", ["symlink", "link", "pipe"])
    def test_nothing_is_written_through_another_name(self, kind: str, tmp_path: Path) -> None:
        other, path = tmp_path / "other", tmp_path / "log.jsonl"
        other.write_text("torn")
        if kind == "pipe":
            os.mkfifo(path)
        else:
            getattr(os, kind)(other, path)
        with pytest.raises(UsageFault, match="expected a regular file without links"):
            open_log(path)
        assert other.read_text() == "torn"


@pytest.mark.parametrize("through_link", [False, True])
def test_no_output_file_replaces_a_special_file(tmp_path: Path, through_link: bool) -> None:
    special = tmp_path / "pipe"
    os.mkfifo(special)
    path = special
    if through_link:  # as /dev/stdout is
        path = tmp_path / "link"
        path.symlink_to(special)
    before = sorted(os.listdir(tmp_path))

    with pytest.raises(EnvironmentFault, match="a pipe, device or socket has this name"):
        publish_bytes(path, b"report")

    with pytest.raises(UsageFault, match=r"--png .*a pipe, device or socket has this name"):
        require_output_file("--png", path)
    assert special.is_fifo()
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/dev/null", "/dev/new"])
def test_no_output_file_is_a_name_of_the_system(path: str, tmp_path: Path) -> None:
    """Whatever it leads to: standard output may be a regular file."""
    with pytest.raises(UsageFault, match=r"--html .*choose another path"):
        require_output_file("--html", Path(path))
    if path != "/dev/new":
        with pytest.raises(EnvironmentFault, match="has this name"):
            publish_bytes(Path(path), b"x")


def test_an_output_file_is_in_a_folder_that_is_there(tmp_path: Path) -> None:
    require_output_file("--html", None)
    require_output_file("--html", tmp_path / "new.html")
    (tmp_path / "old.html").touch()
    require_output_file("--html", tmp_path / "old.html")
    with pytest.raises(UsageFault, match="found a folder"):
        require_output_file("--html", tmp_path)
    with pytest.raises(UsageFault, match="create it first"):
        require_output_file("--html", tmp_path / "none" / "new.html")
