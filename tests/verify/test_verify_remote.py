"""Every level finds at a URL what it finds in the same folder on disk, with bounded memory and one line for faults."""

from __future__ import annotations

import re
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from pipeline_helpers import omniges
from remote_helpers import Handler, s3_environment, s3_server, serve, upload, use_s3, web_server
from shard_sets import ShardSet, members_of, tar_of
from verify_builders import Fault, rebuilt, run

from omniges.errors import EnvironmentFault, UsageFault
from omniges.shards.schema import DATASET_FILE, MANIFEST_FILE, STATS_FILE
from omniges.storage.remote import LocalStore, Location, MissingFile, StoreFault, parse_location
from omniges.verify import folders
from omniges.verify.folders import FileFault, RemoteFolder, hash_chunks
from omniges.verify.run import VerifyResult

SHARD = "train-000000.tar"
LEVELS = ("quick", "full", "deep")


def flipped(place: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def doubled(data: bytes) -> bytes:
    members = members_of(data)
    return tar_of([*members, members[3]])


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes] | None]] = {
    "a header": (SHARD, flipped(7)),
    "data": (SHARD, flipped(70_000)),
    "the end": (SHARD, flipped(-1)),
    "cut": (SHARD, lambda data: data[:100_000]),
    "cut to nothing": (SHARD, lambda _: b""),
    "longer": (SHARD, lambda data: data + bytes(513)),
    "a member doubled": (SHARD, doubled),
    "no shard": (SHARD, None),
    "no manifest": (MANIFEST_FILE, None),
    "another manifest": (MANIFEST_FILE, flipped(500)),
    "other statistics": (STATS_FILE, flipped(90)),
    "dataset.json cut": (DATASET_FILE, lambda data: data[:200]),
    "no dataset.json": (DATASET_FILE, None),
    "a tar more": ("train-000009.tar", lambda _: b"x"),
    "a temporary file": (".train-000000.tar.tmp-12", lambda _: b"x"),
    "a file more": ("notes.md", lambda _: b"x"),
}


def damaged(shards: Path, target: Path, case: str) -> Path:
    """A copy of the shards with a fault."""
    name, change = DAMAGE[case]
    target.mkdir()
    for path in shards.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    if change is None:
        (target / name).unlink()
    else:
        before = (target / name).read_bytes() if (target / name).exists() else b""
        (target / name).write_bytes(change(before))
    return target


def at(url: str, level: str, **settings: Any) -> VerifyResult:
    return run(url, level, **settings)


def verdict(result: VerifyResult) -> tuple[Any, ...]:
    """All of a result but where it was and how long it took."""
    return (result.findings, result.errors, result.files, result.samples, result.read_bytes, result.not_checked)


@pytest.fixture
def memory() -> Iterator[Callable[[Path], str]]:
    """Copies a folder into fsspec's file system in memory and gives its URL."""
    import fsspec

    filesystem = fsspec.filesystem("memory")

    def put(folder: Path) -> str:
        for path in folder.iterdir():
            filesystem.pipe_file(f"/verify/shards/{path.name}", path.read_bytes())
        return "memory://verify/shards"

    yield put
    filesystem.rm("/verify", recursive=True)


class TestTheSameAsOnDisk:
    @pytest.mark.parametrize("level", LEVELS)
    def test_sound_shards_in_memory(self, shards: Path, memory: Callable[[Path], str], level: str) -> None:
        url = memory(shards)
        assert verdict(at(url, level)) == verdict(run(shards, level))
        assert at(url, level, num_workers=3, isolate=True).findings == ()

    @pytest.mark.parametrize("case", DAMAGE)
    def test_damaged_shards_in_memory(
        self, shards: Path, memory: Callable[[Path], str], tmp_path: Path, case: str
    ) -> None:
        folder = damaged(shards, tmp_path / "s", case)
        url = memory(folder)
        for level in LEVELS:
            assert verdict(at(url, level)) == verdict(run(folder, level)), level

    def test_content_faults_in_memory(self, shards: Path, memory: Callable[[Path], str], tmp_path: Path) -> None:
        def fault(content: ShardSet) -> None:
            content.samples[0].arrays["gesture.npy"][11, 130] = 2.0

        broken: Fault = fault
        folder = rebuilt(shards, tmp_path / "s", broken)
        result = at(memory(folder), "deep")
        assert verdict(result) == verdict(run(folder, "deep"))
        assert not result.valid

    def test_a_file_url_is_the_folder(self, shards: Path, tmp_path: Path) -> None:
        assert verdict(at(f"file://{shards}", "deep")) == verdict(run(shards, "deep"))
        folder = damaged(shards, tmp_path / "s", "no shard")
        (folder / SHARD).symlink_to(shards / SHARD)
        assert {finding.code for finding in at(f"file://{folder}", "full").findings} == {"file-not-regular"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as found:
        yield found


class TestS3:
    @pytest.mark.slow
    @pytest.mark.parametrize("case", ["a header", "cut", "a member doubled", "no shard", "a tar more"])
    def test_finds_what_it_finds_on_disk(
        self, endpoint: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
    ) -> None:
        use_s3(monkeypatch, endpoint)
        folder = damaged(shards, tmp_path / "s", case)
        url = upload(endpoint, re.sub("[^a-z]", "-", case), folder).url
        for level in LEVELS:
            assert verdict(at(url, level)) == verdict(run(folder, level)), level

    @pytest.mark.slow
    def test_the_command(self, endpoint: str, shards: Path) -> None:
        environment = s3_environment(endpoint)
        url = upload(endpoint, "sound", shards).url
        sound = omniges("verify-shards", url, "--level", "deep", "--workers", "2", **environment)
        assert sound.returncode == 0, sound.stderr
        assert sound.stdout.startswith("valid at level deep: 0 errors, 0 notes in 8 files, 6 samples")
        assert sound.stdout.rstrip().endswith(url)
        nothing = omniges("verify-shards", f"{url}-not", **environment)
        assert (nothing.returncode, nothing.stderr.count("\n")) == (2, 1), nothing.stderr
        aside = omniges("verify-shards", url, "--quarantine", **environment)
        assert aside.returncode == 2
        assert "--quarantine" in aside.stderr

    @pytest.mark.slow
    def test_a_server_that_is_not_there_is_one_line_and_exit_3(self) -> None:
        done = omniges("verify-shards", "s3://bucket/shards", **s3_environment("http://127.0.0.1:9"))
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1), done.stderr
        assert "s3://bucket/shards" in done.stderr


def ranged(handler: Handler, data: bytes) -> None:
    """Answer as web servers do: the bytes that were asked for."""
    asked = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
    if asked is None:
        serve(handler, data)
        return
    start, stop = int(asked[1]), int(asked[2]) + 1
    handler.send_response(206)
    handler.send_header("Content-Length", str(len(data[start:stop])))
    handler.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
    handler.end_headers()
    handler.wfile.write(data[start:stop])


class TestWeb:
    @pytest.mark.parametrize("level", LEVELS)
    def test_all_but_what_is_not_listed(self, shards: Path, tmp_path: Path, level: str) -> None:
        pytest.importorskip("aiohttp")
        for folder in (shards, damaged(shards, tmp_path / "s", "data")):
            with web_server(folder) as web:
                web.plan = {path.name: [ranged] for path in folder.iterdir()}
                result = at(web.url, level)
            assert result.findings == run(folder, level).findings
            assert [text for text in result.not_checked if "has no listing" in text]


class FakeStore:
    """A store with one file that is invented as it is read; counts what is asked of it."""

    def __init__(self, size: int, *, faults: list[Exception] | None = None) -> None:
        self.location = Location("fake://x", "fake", "fake://x")
        self.faults, self.bytes, self.asked = faults or [], size, 0
        self.largest = 0

    def listing(self) -> dict[str, int]:
        return {"a.tar": self.bytes}

    def size(self, name: str) -> int | None:
        if self.faults:
            raise self.faults.pop(0)
        return self.bytes

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        assert offset + size <= self.bytes
        self.asked += size
        self.largest = max(self.largest, size)
        return bytes(size)

    def open_stream(self, name: str) -> AbstractContextManager[Any]:
        raise NotImplementedError

    def close(self) -> None:
        pass


class TestBounds:
    def test_a_file_of_any_size_is_read_once_by_windows(self) -> None:
        store = FakeStore(1 << 30)
        tracemalloc.start()
        with RemoteFolder(store, 8 << 20).opened("a.tar") as source:
            count = sum(len(view) for _, view, _ in hash_chunks(source, 0, source.size))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == store.asked == 1 << 30
        assert store.largest <= 8 << 20
        assert peak < 40e6

    def test_quick_asks_for_no_more_than_it_looks_at(self, shards: Path, memory: Callable[[Path], str]) -> None:
        store = FakeStore(1 << 40)
        with RemoteFolder(store, 0).opened("a.tar") as source:
            source.read(512, 0)
            source.read(1024, source.size - 1024)
        assert store.asked == 1536
        assert at(memory(shards), "quick").valid

    def test_what_may_pass_is_tried_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(folders, "_WAITS_S", (0.0, 0.0, 0.0))
        passing: list[Exception] = [StoreFault("busy", transient=True) for _ in range(3)]
        with RemoteFolder(FakeStore(5, faults=passing), 0).opened("a") as source:
            assert source.size == 5
        lasting: list[Exception] = [StoreFault("busy", transient=True) for _ in range(4)]
        for faults, kind in ((lasting, StoreFault), ([StoreFault("no")], StoreFault), ([MissingFile("x")], FileFault)):
            with pytest.raises(kind), RemoteFolder(FakeStore(5, faults=faults), 0).opened("a"):
                pass

    def test_nothing_is_written(self, shards: Path, memory: Callable[[Path], str], tmp_path: Path) -> None:
        url = memory(shards)
        import fsspec

        filesystem = fsspec.filesystem("memory")
        before = {name: filesystem.cat_file(name) for name in filesystem.find("/verify")}
        assert at(url, "deep").valid
        assert before == {name: filesystem.cat_file(name) for name in filesystem.find("/verify")}


class TestFaults:
    def test_nothing_there_is_a_usage_fault(self) -> None:
        with pytest.raises(UsageFault, match="memory://no/where: expected a folder of shards, found nothing there"):
            at("memory://no/where", "quick")

    def test_a_file_that_becomes_shorter_is_a_finding_of_what_was_found(self, tmp_path: Path) -> None:
        (tmp_path / "a.tar").write_bytes(bytes(1000))
        store = LocalStore(parse_location(str(tmp_path)))
        with pytest.raises(FileFault) as fault, RemoteFolder(store, 0).opened("a.tar") as source:
            (tmp_path / "a.tar").write_bytes(bytes(400))
            source.read(600, 100)
        assert (fault.value.code, fault.value.found) == ("file-unreadable", "the end of the file after 400 bytes")

    def test_without_fsspec_the_line_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "fsspec", None)
        with pytest.raises(EnvironmentFault, match=re.escape("pip install 'omniges[remote]'")):
            at("memory://a/b", "quick")
