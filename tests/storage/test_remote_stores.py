"""A location is a path or a URL; every store reads the same; errors are ours, one line, without credentials."""

from __future__ import annotations

import gc
import io
import string
import subprocess
import sys
import threading
import time
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import remote_helpers as remote
from hypothesis import given, settings
from hypothesis import strategies as st

from omniges.errors import DataError, EnvironmentFault, OmnigesError, UsageFault
from omniges.storage import remote as module
from omniges.storage.remote import (
    LocalStore,
    MissingFile,
    Store,
    StoreFault,
    Timeouts,
    UrlStore,
    check_name,
    open_store,
    parse_location,
)

FILES = {"a.tar": bytes(range(256)) * 40, "dataset.json": b"{}", "empty.tar": b""}
PATIENT, IMPATIENT = Timeouts(connect_s=20, read_s=20), Timeouts(connect_s=20, read_s=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("location")
    for name, data in FILES.items():
        (path / name).write_bytes(data)
    (path / "inner").mkdir()
    return path


@pytest.fixture(scope="module")
def web(folder: Path) -> Iterator[remote.Web]:
    with remote.web_server(folder) as server:
        yield server


@pytest.fixture(scope="module")
def bucket(folder: Path) -> Iterator[remote.S3]:
    with remote.s3_server() as endpoint, pytest.MonkeyPatch.context() as patch:
        remote.use_s3(patch, endpoint)
        yield remote.upload(endpoint, "locations", folder)


@pytest.fixture(autouse=True)
def plain(web: remote.Web) -> Iterator[None]:
    yield
    web.plan.clear()


@pytest.fixture(params=["path", "file", "memory", "http"])
def store(request: pytest.FixtureRequest, folder: Path, web: remote.Web) -> Iterator[Store]:
    address = {"path": str(folder), "file": f"file://{folder}", "memory": f"memory://{uuid.uuid4()}", "http": web.url}
    chosen = open_store(parse_location(address[request.param]))
    if request.param == "memory":
        import fsspec

        memory = fsspec.filesystem("memory")
        for name, data in FILES.items():
            memory.pipe_file(f"{address['memory']}/{name}", data)
    yield chosen
    chosen.close()


class TestParse:
    @pytest.mark.parametrize("text", ["shards", "/data/shards", "./s3:/x", "a@b", "c:/x", "~/x y", "über"])
    def test_what_has_no_protocol_is_a_path(self, text: str) -> None:
        assert parse_location(text).path == Path(text)

    @pytest.mark.parametrize("text", ["file:///data/shards", "local:///data/shards", "FILE:///data/shards"])
    def test_file_urls_are_local_folders(self, text: str) -> None:
        assert parse_location(text).path == Path("/data/shards")

    @pytest.mark.parametrize(
        "text", ["s3://b/x", "gs://b", "hf://datasets/o/n@main/x", "https://h/x", "memory://x", "http://[::1]:80/x"]
    )
    def test_other_urls_are_not(self, text: str) -> None:
        location = parse_location(text)
        assert location.path is None
        assert (location.protocol, location.shown) == (text.partition(":")[0], text)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "a\nb",
            "file://host/x",
            "file://x",
            "s3://",
            "https:///x",
            "simplecache::s3://b/x",
            "zip://a.tar::s3://b/x.zip",
            "pipe:cat x.tar",
            "https://host/a b",
            "https://user:pass word@host/x",
            "s3://KEYKEYKEY:SECRETSECRET@bucket/x",
            "hf://token@datasets/x",
        ],
    )
    def test_what_cannot_be_meant_is_refused_without_its_credentials(self, text: str) -> None:
        with pytest.raises(UsageFault) as caught:
            parse_location(text)
        assert not {"KEYKEYKEY", "SECRETSECRET", "pass"} & set(str(caught.value).replace(":", " ").split())

    @pytest.mark.parametrize(("text", "shown"), [("/n\udcff", r"'/n\udcff'"), ("s3://b/\x1b[2J", r"'s3://b/\x1b[2J'")])
    def test_letters_that_cannot_be_shown_are_escaped(self, text: str, shown: str) -> None:
        with pytest.raises(UsageFault) as caught:
            parse_location(text)
        assert str(caught.value).startswith(f"{shown}: expected a folder or a URL")
        assert "\n" not in str(caught.value)

    @settings(deadline=None)
    @given(st.text(string.ascii_letters + string.digits + "-._~!$&'()*+,;=%:", min_size=1, max_size=20))
    def test_nothing_that_is_shown_has_a_password_or_a_signature(self, tail: str) -> None:
        secret = f"Zq7Zq7{tail}"
        for text in (f"https://user:{secret}@host/x", f"https://host/x?sig={secret}", f"https://{secret}@host/x?a=b"):
            location = parse_location(text)
            assert "Zq7Zq7" not in f"{location} {location!r} {location.shown_file('a.tar')}"
            assert secret in location.address

    def test_a_file_of_a_signed_folder_is_shown_before_the_query(self) -> None:
        assert parse_location("https://h/x/?sig=abc").shown_file("a.tar") == "https://h/x/a.tar?sig=***"


class TestNames:
    @settings(deadline=None)
    @given(st.text(string.ascii_letters + string.digits + "-_", min_size=1), st.sampled_from([".tar", ".json", ""]))
    def test_plain_names_pass(self, stem: str, suffix: str) -> None:
        assert check_name(stem[:200] + suffix) == stem[:200] + suffix

    @settings(deadline=None)
    @given(st.text(max_size=8), st.sampled_from(list("/\\?#%*: \0\n[")), st.text(max_size=8))
    def test_names_with_separators_or_meaning_in_a_url_are_refused(self, before: str, odd: str, after: str) -> None:
        with pytest.raises(DataError):
            check_name(before + odd + after)

    @pytest.mark.parametrize("name", ["", ".", "..", "../x", "a..b", "x" * 256, "é", "a\n"])
    def test_and_so_are_these(self, name: str, store: Store) -> None:
        with pytest.raises(DataError):
            store.size(name)


class TestStores:
    """The same for a path, a file URL, memory and http."""

    def test_size(self, store: Store) -> None:
        assert store.size("a.tar") == 10240

    @settings(deadline=None)
    @given(offset=st.integers(0, 10240), size=st.integers(0, 300))
    def test_ranges_of_a_file(self, folder: Path, offset: int, size: int) -> None:
        size = min(size, 10240 - offset)
        wanted = FILES["a.tar"][offset : offset + size]
        assert open_store(parse_location(str(folder))).read_range("a.tar", offset, size) == wanted
        assert len(wanted) == size

    def test_a_range_beyond_the_end_is_an_error(self, store: Store) -> None:
        if store.location.protocol == "http":
            with pytest.raises(StoreFault, match="does not serve byte ranges"):
                store.read_range("a.tar", 10230, 10)
            return
        assert store.read_range("a.tar", 10230, 10) == FILES["a.tar"][10230:]
        with pytest.raises(DataError, match=r"expected 10 bytes at byte 10235, found 5, because .* ends at byte 10240"):
            store.read_range("a.tar", 10235, 10)

    @pytest.mark.parametrize("name", ["a.tar", "dataset.json", "empty.tar"])
    def test_streams(self, store: Store, name: str) -> None:
        pieces = []
        with store.open_stream(name) as stream:
            while piece := stream.read(1000):
                pieces.append(piece)
        assert b"".join(pieces) == FILES[name]

    def test_a_missing_file(self, store: Store) -> None:
        with pytest.raises(MissingFile, match=r"b\.tar: expected a file, found that the file does not exist"):
            store.size("b.tar")
        with (
            pytest.raises(MissingFile, match=r"b\.tar: expected a file, found that the file does not exist"),
            store.open_stream("b.tar"),
        ):
            pass

    def test_listing_or_saying_that_there_is_none(self, store: Store) -> None:
        if store.location.protocol == "http":
            with pytest.raises(StoreFault, match="http has no listing"):
                store.listing()
        else:
            assert store.listing() == {name: len(data) for name, data in sorted(FILES.items())}


@pytest.mark.parametrize(
    "entry",
    [
        {"type": "file", "name": "/b/a.tar", "size": "x"},
        {"type": "file", "name": "/b/a.tar", "size": None},
        {"type": "file", "name": "/b/a.tar", "size": -1},
        {"type": "file", "name": 3, "size": 1},
        {"type": "file", "name": "/b/a.tar"},
        {"name": "/b/a.tar", "size": 1},
        "a.tar",
    ],
)
def test_a_listing_of_other_values_is_one_line(entry: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's statements about its files are untrusted data, as the files are."""
    fsspec = pytest.importorskip("fsspec")

    class Foreign:
        def __init__(self, **_options: object) -> None:
            pass

        def ls(self, _address: str, detail: bool) -> list[object]:
            assert detail
            return [{"type": "directory", "name": "/b/c", "size": 0}, entry]

        def info(self, _address: str) -> object:
            return entry

    monkeypatch.setattr(fsspec, "get_filesystem_class", lambda _protocol: Foreign)
    store = open_store(parse_location("gs://b"))
    with pytest.raises(StoreFault, match="expected a listing of files with name and size, found") as caught:
        store.listing()
    assert "\n" not in str(caught.value)
    if isinstance(entry, dict) and entry.get("size") in {"x", -1}:
        with pytest.raises(StoreFault, match="expected the size of the file in bytes, found"):
            store.size("a.tar")


class TestOtherProtocols:
    """Stores that only a library's file system reads have the same limits of size and time as s3 and http."""

    @pytest.fixture(params=["gs", "az", "hf"])
    def opened(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Store]:
        fsspec = pytest.importorskip("fsspec")

        def store(read: Callable[[int], bytes], timeouts: Timeouts = PATIENT) -> Store:
            class Sent(io.RawIOBase):
                def seek(self, offset: int, _whence: int = 0) -> int:
                    return offset

                def tell(self) -> int:
                    return 10

                def read(self, size: int = -1) -> bytes:
                    return read(size)

            class Foreign(fsspec.AbstractFileSystem):  # type: ignore[misc]
                def info(self, path: str, **_options: object) -> dict[str, object]:
                    return {"name": path, "size": len(read(1)) << 60, "type": "file"}

                def _open(self, _path: str, **_options: object) -> Sent:
                    return Sent()

            monkeypatch.setattr(fsspec, "get_filesystem_class", lambda _protocol: Foreign)
            return open_store(parse_location(f"{request.param}://bucket/shards"), timeouts)

        return store

    def test_a_body_without_an_end_is_read_in_pieces(self, opened: Callable[..., Store]) -> None:
        store = opened(bytes)
        tracemalloc.start()
        try:
            assert store.read_range("a.tar", 10, 1000) == bytes(1000)
            with store.open_stream("a.tar") as stream:
                assert [len(stream.read(1 << 20)) for _ in range(8)] == [1 << 20] * 8
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
        finally:
            tracemalloc.stop()

    def test_more_than_was_requested_is_refused(self, opened: Callable[..., Store]) -> None:
        store = opened(lambda size: bytes(size + 1))
        with pytest.raises(StoreFault, match="does not serve byte ranges"):
            store.read_range("a.tar", 10, 1000)
        with (
            pytest.raises(StoreFault, match="expected at most 1000 bytes at once, found 1001"),
            store.open_stream("a.tar") as stream,
        ):
            stream.read(1000)

    def test_a_byte_every_two_seconds_is_no_answer(self, opened: Callable[..., Store]) -> None:
        def trickle(_size: int) -> bytes:
            time.sleep(2)
            return b"x"

        store = opened(trickle, Timeouts(connect_s=0.1, read_s=0.2, min_bytes_s=1e6))
        began = time.monotonic()
        with pytest.raises(StoreFault, match="bytes per second") as caught, store.open_stream("a.tar") as stream:
            stream.read(1 << 20)
        assert caught.value.timed_out
        for call in (lambda: store.read_range("a.tar", 10, 1000), lambda: store.size("a.tar")):
            with pytest.raises(StoreFault, match="bytes per second"):
                call()
        assert time.monotonic() - began < 20


class TestLocalFaults:
    def test_a_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(EnvironmentFault, match=r"cannot list .*nowhere"):
            open_store(parse_location(str(tmp_path / "nowhere"))).listing()

    def test_a_folder_in_place_of_a_file(self, folder: Path) -> None:
        store = open_store(parse_location(str(folder)))
        with pytest.raises(EnvironmentFault, match="inner"), store.open_stream("inner") as stream:
            stream.read(1)

    def test_a_url_is_no_local_store(self) -> None:
        with pytest.raises(ValueError, match="local"):
            LocalStore(parse_location("s3://b/x"))


class TestWebFaults:
    def store(self, web: remote.Web, timeouts: Timeouts = PATIENT) -> UrlStore:
        address = web.url.replace("://", "://someone:hunter2hunter2@") + "?X-Amz-Signature=abcdef0123456789%2F%2B+/"
        return UrlStore(parse_location(address), timeouts)

    def fault(self, web: remote.Web, behaviour: remote.Behaviour) -> OmnigesError:
        web.plan["a.tar"] = [behaviour]
        store = self.store(web, IMPATIENT if behaviour is remote.silent else PATIENT)
        with pytest.raises(OmnigesError) as caught, store.open_stream("a.tar") as stream:
            while stream.read(1 << 16):
                pass
        self.is_clean(caught.value)
        return caught.value

    def is_clean(self, error: OmnigesError) -> None:
        """One line, without credentials, and with no other exception behind it that might have them."""
        assert not any(secret in str(error) for secret in ("hunter2", "abcdef0123"))
        assert "\n" not in str(error)
        assert "/shards/a.tar?X-Amz-Signature=***: " in str(error)
        assert error.__cause__ is None
        assert error.__context__ is None

    @pytest.mark.parametrize("status", [500, 502, 503, 504, 429, 408])
    def test_a_server_in_trouble_may_be_asked_again(self, web: remote.Web, status: int) -> None:
        error = self.fault(web, remote.fail(status))
        assert isinstance(error, StoreFault)
        assert error.transient
        assert str(status) in str(error)

    @pytest.mark.parametrize("status", [400, 401, 403, 451])
    def test_a_refusal_is_final(self, web: remote.Web, status: int) -> None:
        error = self.fault(web, remote.fail(status))
        assert isinstance(error, StoreFault)
        assert not error.transient
        assert str(status) in str(error)
        assert ("credentials" in str(error)) == (status in {401, 403})

    @pytest.mark.parametrize("status", [404, 410])
    def test_missing(self, web: remote.Web, status: int) -> None:
        assert isinstance(self.fault(web, remote.fail(status)), MissingFile)

    def test_a_cut_connection(self, web: remote.Web) -> None:
        error = self.fault(web, remote.cut(5000))
        assert isinstance(error, StoreFault)
        assert error.transient

    def test_silence(self, web: remote.Web) -> None:
        error = self.fault(web, remote.silent)
        assert isinstance(error, StoreFault)
        assert error.transient
        assert error.timed_out
        assert "expected an answer in time" in str(error)

    @pytest.mark.parametrize("head", [0, 3_000])
    def test_a_byte_now_and_then_is_no_answer(self, web: remote.Web, head: int) -> None:
        """No time-out of the library ends this: no silence is long."""
        web.plan["a.tar"] = [remote.trickling(head)]
        store = self.store(web, Timeouts(connect_s=0.2, read_s=0.3, min_bytes_s=1e6))
        began = time.monotonic()
        with pytest.raises(StoreFault, match="bytes per second") as caught, store.open_stream("a.tar") as stream:
            while stream.read(1 << 20):
                pass
        self.is_clean(caught.value)
        assert caught.value.timed_out
        assert time.monotonic() - began < 20

    def test_a_call_that_never_ends_is_left_to_itself(self, web: remote.Web) -> None:
        store = self.store(web, Timeouts(connect_s=0.1, read_s=0.1))
        released = threading.Event()
        with pytest.raises(StoreFault, match="bytes per second"):
            store._call("read", "a.tar", lambda: released.wait(20))
        released.set()

    def test_nobody_there(self) -> None:
        store = UrlStore(parse_location("http://127.0.0.1:9/shards"), PATIENT)
        with pytest.raises(StoreFault, match=r"127\.0\.0\.1:9/shards/a\.tar: cannot find") as caught:
            store.size("a.tar")  # fsspec alone would say that the file is not there
        assert caught.value.transient

    def test_a_server_without_ranges_is_not_believed(self, web: remote.Web) -> None:
        with pytest.raises(StoreFault, match="does not serve byte ranges"):
            self.store(web).read_range("a.tar", 10, 10)

    def test_another_range_than_was_asked_for_is_not_believed(self, web: remote.Web) -> None:
        web.plan["a.tar"] = [remote.other_range]
        with pytest.raises(
            StoreFault, match=r"a\.tar.*: expected bytes from 10 on, found that the server sends bytes 0-9/10240"
        ):
            self.store(web).read_range("a.tar", 10, 10)

    def test_what_a_server_sends_too_much_is_not_kept(self, web: remote.Web) -> None:
        web.plan["a.tar"] = [remote.unpacking]
        store = self.store(web)
        remote.packed_zeros()
        tracemalloc.start()
        try:
            with pytest.raises(StoreFault, match="does not serve byte ranges"):
                store.read_range("a.tar", 10, 10)
            assert tracemalloc.get_traced_memory()[1] < 64 << 20
        finally:
            tracemalloc.stop()

    def test_the_query_goes_with_every_file(self, web: remote.Web) -> None:
        web.targets.clear()
        with self.store(web).open_stream("a.tar") as stream:
            stream.read(1)
        assert web.targets == ["/shards/a.tar?X-Amz-Signature=abcdef0123456789%2F%2B+/"]


class TestS3:
    """Stores over a server that speaks the protocol."""

    @pytest.fixture
    def store(self, bucket: remote.S3) -> Iterator[Store]:
        chosen = open_store(parse_location(bucket.url), PATIENT)
        yield chosen
        chosen.close()

    def test_reads_like_any_other(self, store: Store) -> None:
        assert store.listing() == {name: len(data) for name, data in sorted(FILES.items())}
        assert store.size("a.tar") == 10240
        assert store.read_range("a.tar", 300, 20) == FILES["a.tar"][300:320]
        with pytest.raises(DataError, match="the file ends at byte 10240"):
            store.read_range("a.tar", 10235, 10)
        with store.open_stream("a.tar") as stream:
            assert stream.read(1 << 20) == FILES["a.tar"]
            assert stream.read(1) == b""

    def test_streams_come_in_ranges(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_STREAM_BLOCK_BYTES", 4000)
        for name, data in FILES.items():
            with store.open_stream(name) as stream:
                assert b"".join(iter(lambda stream=stream: stream.read(3000), b"")) == data

    @pytest.mark.parametrize("behaviour", [remote.serve, remote.unpacking, remote.other_range])
    def test_what_a_server_sends_too_much_is_not_kept(
        self, behaviour: remote.Behaviour, web: remote.Web, bucket: remote.S3, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        del bucket  # it sets the credentials
        monkeypatch.setenv("AWS_ENDPOINT_URL", web.url.removesuffix("/shards"))
        web.plan["a.tar"] = [behaviour]
        store = open_store(parse_location("s3://bucket/shards"), PATIENT)
        remote.packed_zeros()
        tracemalloc.start()
        try:
            with pytest.raises(StoreFault, match=r"does not serve byte ranges|the server sends bytes 0-9"):
                store.read_range("a.tar", 10, 10)
            assert tracemalloc.get_traced_memory()[1] < 64 << 20
        finally:
            tracemalloc.stop()

    def test_missing_files_folders_and_buckets(self, store: Store, bucket: remote.S3) -> None:
        with pytest.raises(
            MissingFile, match=r"s3://locations/shards/b\.tar: expected a file, found that the file does not exist"
        ):
            store.size("b.tar")
        for url in ("s3://locations/elsewhere", "s3://nowhere/shards"):
            other = open_store(parse_location(url))
            with pytest.raises(MissingFile), other.open_stream("a.tar"):
                pass

    def test_without_credentials(self, bucket: remote.S3, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        with pytest.raises(StoreFault, match=r"access, found that it was refused .*AWS_SECRET_ACCESS_KEY") as caught:
            open_store(parse_location(bucket.url)).size("a.tar")
        assert not caught.value.transient
        assert remote.SECRET_KEY not in str(caught.value)


class TestPackages:
    def test_an_unknown_protocol(self) -> None:
        with pytest.raises(UsageFault, match=r"expected a protocol such as .*, found nosuch"):
            open_store(parse_location("nosuch://x/y"))

    @pytest.mark.parametrize(
        ("absent", "address", "remedy"),
        [
            ("fsspec", "memory://x", "omniges[remote]"),
            ("s3fs", "s3://b/x", "omniges[remote]"),
            ("gcsfs", "gs://b/x", "pip install gcsfs"),
            ("aiohttp", "http://h/x", "pip install aiohttp"),
            ("huggingface_hub", "hf://datasets/a/b", "pip install huggingface_hub"),
        ],
    )
    def test_an_absent_package_is_named_with_the_way_to_install_it(
        self, absent: str, address: str, remedy: str
    ) -> None:
        script = (
            "import sys\n"
            f"sys.modules[{absent!r}] = None\n"
            "from omniges.errors import EnvironmentFault\n"
            "from omniges.storage.remote import open_store, parse_location\n"
            "try:\n"
            f"    open_store(parse_location({address!r}))\n"
            "except EnvironmentFault as error:\n"
            "    print(error)\n"
        )
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        assert run.stdout.startswith(address), run.stderr
        assert remedy in run.stdout

    def test_a_server_that_does_not_answer_prints_nothing_of_its_own(
        self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[object] = []
        monkeypatch.setattr(sys, "unraisablehook", seen.append)
        with pytest.raises(EnvironmentFault, match=r"^ftp://127\.0\.0\.1:1/set"):
            open_store(parse_location("ftp://127.0.0.1:1/set"), PATIENT)
        gc.collect()
        assert not seen
        assert capfd.readouterr().err == ""

    def test_a_path_loads_no_fsspec(self, folder: Path) -> None:
        script = (
            "import sys\n"
            "from omniges.storage.remote import open_store, parse_location\n"
            f"open_store(parse_location({str(folder)!r})).listing()\n"
            "assert not {'fsspec', 'torch', 'webdataset', 'numpy'} & set(sys.modules)\n"
        )
        subprocess.run([sys.executable, "-c", script], check=True)
