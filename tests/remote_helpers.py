"""Servers on loopback for the tests of remote shards: a real S3 protocol server, and a web server that misbehaves."""

from __future__ import annotations

import contextlib
import functools
import http.server
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ACCESS_KEY = "AKIA" + "TESTONLYOMNIGES1"
SECRET_KEY = "tEsTonlySecret/0123456789+OmnigesLoopbac"  # noqa: S105 - of the server that these tests start


@dataclass
class S3:
    """A bucket of a server that speaks the S3 protocol."""

    endpoint: str
    bucket: str

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/shards"


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """The endpoint of a moto server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def s3_environment(endpoint: str) -> dict[str, str]:
    """Return the environment in which a process reaches the server."""
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/dev/null",
        "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }


def upload(endpoint: str, bucket: str, folder: Path) -> S3:
    """Copy the files of a folder into a new bucket, below ``shards/``."""
    import s3fs

    filesystem = s3fs.S3FileSystem(
        key=ACCESS_KEY, secret=SECRET_KEY, client_kwargs={"endpoint_url": endpoint}, skip_instance_cache=True
    )
    filesystem.mkdir(bucket)
    for path in filter(Path.is_file, folder.iterdir()):
        filesystem.pipe_file(f"{bucket}/shards/{path.name}", path.read_bytes())
    return S3(endpoint, bucket)


Behaviour = Callable[["Handler", bytes], None]


def serve(handler: Handler, data: bytes) -> None:
    """Answer as a server should, without byte ranges."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def fail(status: int) -> Behaviour:
    """Answer with a status."""

    def behaviour(handler: Handler, data: bytes) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return behaviour


def cut(at: int) -> Behaviour:
    """Promise the whole file and break the connection after some bytes."""

    def behaviour(handler: Handler, data: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[:at])
        handler.close_connection = True

    return behaviour


def short(handler: Handler, data: bytes) -> None:
    """Serve a file that is too short, as if it were whole."""
    serve(handler, data[:-1])


def long(handler: Handler, data: bytes) -> None:
    """Serve a file that is too long."""
    serve(handler, data + b"x")


def flip(handler: Handler, data: bytes) -> None:
    """Serve a file with one bit changed."""
    middle = len(data) // 2
    serve(handler, data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])


def other_range(handler: Handler, data: bytes) -> None:
    """Answer a range with as many bytes from the beginning of the file."""
    first, _, last = handler.headers["Range"].removeprefix("bytes=").partition("-")
    part = data[: int(last) - int(first) + 1]
    handler.send_response(206)
    handler.send_header("Content-Length", str(len(part)))
    handler.send_header("Content-Range", f"bytes 0-{len(part) - 1}/{len(data)}")
    handler.end_headers()
    handler.wfile.write(part)


@functools.cache
def packed_zeros() -> bytes:
    """A gzip file of 256 MiB."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()


def unpacking(handler: Handler, data: bytes) -> None:
    """Answer anything with a megabyte that unpacks to 256 MiB."""
    packed = packed_zeros()
    handler.send_response(206)
    handler.send_header("Content-Length", str(len(packed)))
    handler.send_header("Content-Encoding", "gzip")
    handler.end_headers()
    handler.wfile.write(packed)


def silent(handler: Handler, data: bytes) -> None:
    """Take the request, send half of the file and nothing more."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.web.released.wait(20)
    handler.close_connection = True


def trickling(head: int) -> Behaviour:
    """Send so many bytes, then one every 0.05 s for as long as anybody listens."""

    def behaviour(handler: Handler, data: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[:head])
        for place in range(head, len(data)):
            try:
                handler.wfile.write(data[place : place + 1])
            except OSError:
                break
            if handler.web.released.wait(0.05):
                break
        handler.close_connection = True

    return behaviour


def slow(seconds: float) -> Behaviour:
    """Serve in ten pieces, spread over some seconds."""

    def behaviour(handler: Handler, data: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        step = -(-len(data) // 10)
        for start in range(0, len(data), step):
            handler.wfile.write(data[start : start + step])
            time.sleep(seconds / 10)

    return behaviour


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves a folder, with the behaviour that the test has set for a name."""

    protocol_version = "HTTP/1.1"
    web: Web

    def do_GET(self) -> None:
        name = unquote(urlsplit(self.path).path).rpartition("/")[2]
        self.web.requests[name] += 1
        self.web.targets.append(self.path)
        path = self.web.folder / name
        if not path.is_file():
            fail(404)(self, b"")
            return
        planned = self.web.plan.get(name, [])
        behaviour = planned.pop(0) if len(planned) > 1 else planned[0] if planned else serve
        with contextlib.suppress(ConnectionError):
            behaviour(self, path.read_bytes())

    def do_HEAD(self) -> None:
        path = self.web.folder / unquote(urlsplit(self.path).path).rpartition("/")[2]
        self.send_response(200 if path.is_file() else 404)
        self.send_header("Content-Length", str(path.stat().st_size) if path.is_file() else "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class has this name
        """Say nothing."""


@dataclass
class Web:
    """A web server: `plan` holds behaviours by name, used up one a request, the last one again and again."""

    folder: Path
    url: str = ""
    plan: dict[str, list[Behaviour]] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    targets: list[str] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def web_server(folder: Path) -> Iterator[Web]:
    """A web server for a folder."""
    web = Web(folder)
    kind = type("Bound", (Handler,), {"web": web})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.daemon_threads = True
    web.url = f"http://127.0.0.1:{server.server_address[1]}/shards"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        web.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def use_s3(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Point this process's S3 clients at the server."""
    for name, value in s3_environment(endpoint).items():
        monkeypatch.setenv(name, value)
