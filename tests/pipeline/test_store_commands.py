"""Commands with an object store over a server of S3: shards are written, verified and read, and no secret is shown."""

from __future__ import annotations

import contextlib
import http.server
import logging
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import remote_helpers as remote
from pipeline_helpers import COMMAND, digests, omniges, run_preprocess

from omniges.data.remote_shards import CacheSettings, open_location
from omniges.errors import EnvironmentFault, OmnigesError, UsageFault
from omniges.pipeline.settings import PreprocessSettings
from omniges.shards.dataset import seal
from omniges.shards.schema import UNFINISHED_FORMAT
from omniges.storage.bucket import Bucket
from omniges.storage.cache import Retries
from omniges.storage.files import sha256_hex
from omniges.storage.remote import StoreFault, parse_location
from omniges.testing.settings import CorpusSettings
from omniges.testing.synthetic_corpus import write_sample_corpus
from omniges.verify.run import verify
from omniges.verify.settings import VerifySettings

KILLS = 25
SIZE = ("--shard-size", "1MiB", "--num-workers", "1")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stored") / "corpus"
    write_sample_corpus(folder, CorpusSettings(clips=8, seconds=3.0, words=6, speakers=2, seed=7))
    return folder


@pytest.fixture(scope="module")
def on_disk(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("disk") / "set"
    run_preprocess(root, folder, shard_bytes=1 << 20)
    return digests(folder)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with remote.s3_server() as address, pytest.MonkeyPatch.context() as patch:
        remote.use_s3(patch, address)
        filesystem().mkdir("made")
        yield address


def filesystem() -> Any:
    import s3fs

    return s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)


def stored(url: str) -> dict[str, bytes]:
    """The objects of a set with its journal, by name."""
    files = filesystem()
    folder = url.removeprefix("s3://")
    return {path.removeprefix(f"{folder}/"): files.cat_file(path) for path in files.find(folder)}


def set_of(objects: dict[str, bytes]) -> dict[str, str]:
    return {name: sha256_hex(data) for name, data in objects.items() if "/" not in name}


def test_the_set_is_that_of_a_disk_all_read_it_and_no_secret_is_told(
    endpoint: str, root: Path, on_disk: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    url, work, log = "s3://made/by/run", tmp_path / "work", tmp_path / "log.jsonl"
    summary = run_preprocess(root, url, shard_bytes=1 << 20, work_dir=work, run_log=log)
    assert (summary.out, summary.report, summary.exit_code) == (url, f"{url}/report.jsonl", 0)
    objects = stored(url)
    assert set_of(objects) == on_disk
    assert not [path for path in work.rglob("*") if path.is_file()]
    texts = f"{summary!r}{log.read_text()}{''.join(capfd.readouterr())}".encode() + b"".join(objects.values())
    assert remote.ACCESS_KEY.encode() not in texts
    assert remote.SECRET_KEY.encode() not in texts
    found = verify(VerifySettings(folder=url, level="deep", num_workers=1))
    assert found.valid
    assert not found.findings
    cache = CacheSettings(folder=tmp_path / "cache", capacity_bytes=1 << 30)
    with open_location(parse_location(url), cache) as shards:
        for name in (name for name in on_disk if name.endswith(".tar")):
            with open(shards.open(name), "rb") as stream:
                assert sha256_hex(stream.read()) == on_disk[name]


@pytest.mark.slow
def test_the_command(endpoint: str, root: Path, on_disk: dict[str, str], tmp_path: Path) -> None:
    words = ("preprocess", "--root", root, *SIZE, "--work-dir", tmp_path, "--run-log", tmp_path / "log", "-o")
    made = omniges(*words, "s3://made/by/command", **remote.s3_environment(endpoint))
    assert made.returncode == 0, made.stderr
    assert "in s3://made/by/command\n" in made.stdout
    assert set_of(stored("s3://made/by/command")) == on_disk
    nowhere = omniges(*words, "s3://bucket/x", **remote.s3_environment("http://127.0.0.1:9"))
    assert (nowhere.returncode, nowhere.stderr.count("\n")) == (3, 1), nowhere.stderr
    secret = omniges(*words, f"s3://{remote.ACCESS_KEY}:{remote.SECRET_KEY}@bucket/x")
    assert (secret.returncode, secret.stderr.count("\n")) == (2, 1), secret.stderr
    assert remote.ACCESS_KEY not in secret.stderr
    assert remote.SECRET_KEY[:10] not in secret.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_model_learns_from_the_set_and_generates(endpoint: str, root: Path, tmp_path: Path) -> None:
    url, run = "s3://made/to/learn", tmp_path / "run"
    run_preprocess(root, url, shard_bytes=1 << 20, work_dir=tmp_path / "work", run_log=tmp_path / "log")

    def command(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *map(str, words)],
            env=os.environ | remote.s3_environment(endpoint),
            capture_output=True,
            text=True,
            check=False,
        )

    sizes = ("--preset", "tiny", "--window-ticks", 8, "--batch-size", 2, "--num-workers", 1, "--max-train-steps", 2)
    learned = command("train", "--shards", url, "--cache-dir", tmp_path / "cache", "-o", run, *sizes)
    assert learned.returncode == 0, learned.stderr
    shown = command("inspect", run)
    assert shown.returncode == 0, shown.stderr
    assert url in shown.stdout.replace("\n", "")
    generate = ("generate", "--checkpoint", run, "--task", "a2g", "-o", tmp_path / "results")
    generated = command(*generate, "--audio", next(root.rglob("*.wav")), "--num-inference-steps", 1)
    assert generated.returncode == 0, generated.stderr
    assert list((tmp_path / "results").rglob("*.npz"))
    for words in (("inspect", url), (*generate, "--shards", url)):
        refused = command(*words)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
        assert "expected a local path, found a URL of s3://" in refused.stderr


def test_a_set_that_is_being_replaced_is_complete_for_no_reader(endpoint: str, tmp_path: Path) -> None:
    url = "s3://made/replaced"
    filesystem().pipe_file(
        "made/replaced/dataset.json", seal({"format": UNFINISHED_FORMAT, "commit": "a", "replaced": ""})
    )
    cache = CacheSettings(
        folder=tmp_path, capacity_bytes=1 << 30, retries=Retries(attempts=1, first_wait_s=0, longest_wait_s=0)
    )
    with pytest.raises(OmnigesError, match="found one that omniges preprocess is replacing"):
        open_location(parse_location(url), cache)
    assert not verify(VerifySettings(folder=url, level="quick", num_workers=1)).valid


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_killed_at_random_moments_the_same_command_completes_the_set(
    endpoint: str, root: Path, on_disk: dict[str, str], tmp_path: Path
) -> None:
    """Runs are killed 25 times after they took the lock; one that ends before has written the set of a disk."""
    draw = random.Random(22)
    environment = os.environ | remote.s3_environment(endpoint)

    def start(url: str) -> subprocess.Popen[bytes]:
        words = [*COMMAND, "preprocess", "--root", str(root), "-o", url, *SIZE, "--run-log", str(tmp_path / "log")]
        words += ["--work-dir", str(tmp_path / "work")]
        return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def wait_for_lock(process: subprocess.Popen[bytes], url: str) -> None:
        """Wait until the run has written its first record; importing is most of its time."""
        files = filesystem()
        before = set(files.find(url))
        while process.poll() is None and set(files.find(url)) <= before:
            time.sleep(0.1)

    url, killed, active_s = "s3://made/killed-0", 0, 5.0
    while killed < KILLS:
        process = start(url)
        wait_for_lock(process, url)
        began = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(draw.uniform(0, active_s))
            active_s = time.monotonic() - began  # it had ended before
        process.kill()
        errors = process.communicate()[1]
        assert process.returncode in {0, -signal.SIGKILL}, errors
        objects = stored(url)
        assert "dataset.json" not in objects or set_of(objects) == on_disk
        killed += process.returncode < 0
        if process.returncode == 0:
            assert set_of(objects) == on_disk
            url = f"s3://made/killed-{killed}"
    process = start(url)
    errors = process.communicate()[1]
    assert process.returncode == 0, errors
    assert set_of(stored(url)) == on_disk


@pytest.mark.parametrize("url", ["http://h/x", "hf://datasets/o/n", "gs://b/x", "memory://x", "az://b/x"])
def test_other_stores_are_refused_by_name(tmp_path: Path, url: str) -> None:
    protocol = url.partition(":")[0]
    with pytest.raises(UsageFault, match=rf"^output_dir {url}: expected a folder or s3://.*found {protocol}://"):
        PreprocessSettings(root=tmp_path, output_dir=url)


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/", "s3://b//x", "s3://b/../x", "s3://b/x?a=b", "s3://b/*"])
def test_urls_that_are_no_folder_of_a_bucket_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageFault, match=r"^output_dir s3://.*expected s3://BUCKET/FOLDER"):
        PreprocessSettings(root=tmp_path, output_dir=url)


def test_shards_that_are_too_large_for_one_copy_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match=r"^shard_bytes .*: expected at most 3926258176 bytes if output_dir is a URL"):
        PreprocessSettings(root=tmp_path, output_dir="s3://b/x", shard_bytes=4 << 30)


def test_credentials_in_the_url_are_refused_and_not_shown(tmp_path: Path) -> None:
    with pytest.raises(UsageFault, match=r"^output_dir s3://\*\*\*@bucket/x: expected s3://BUCKET") as caught:
        PreprocessSettings(root=tmp_path, output_dir=f"s3://{remote.ACCESS_KEY}:{remote.SECRET_KEY}@bucket/x")
    assert remote.ACCESS_KEY not in str(caught.value)
    assert remote.SECRET_KEY[:10] not in str(caught.value)


def test_an_absent_bucket_is_one_line(endpoint: str, root: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"^s3://absent/x/.*; create the bucket absent, or check the address$"):
        run_preprocess(root, "s3://absent/x", work_dir=tmp_path, run_log=tmp_path / "log")


class TestServers:
    """A server that answers as S3 does under load, and one that is not there."""

    def test_throttled_requests_are_repeated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with slow_down_server(2) as (address, requests):
            remote.use_s3(monkeypatch, address)
            retries = Retries(attempts=3, first_wait_s=0, longest_wait_s=0)
            bucket = Bucket(parse_location("s3://bucket/x"), retries=retries)
            assert bucket.create("a.json", b"{}") == "etag"
            assert [method for method in requests if method == "PUT"] == ["PUT"] * 3

    def test_tries_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with slow_down_server(100) as (address, requests):
            remote.use_s3(monkeypatch, address)
            retries = Retries(attempts=3, first_wait_s=0, longest_wait_s=0)
            bucket = Bucket(parse_location("s3://bucket/x"), retries=retries)
            with pytest.raises(StoreFault, match=r"stopped after 3 attempts") as caught:
                bucket.create("a.json", b"{}")
            assert "503" in str(caught.value) or "SlowDown" in str(caught.value) or "reduce" in str(caught.value)
            assert len(requests) == 3


@contextlib.contextmanager
def slow_down_server(busy: int) -> Iterator[tuple[str, list[str]]]:
    """A server that refuses so many requests with 503 SlowDown, and accepts the others; its address and requests."""
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            requests.append("PUT")
            refused = len(requests) <= busy
            body = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            self.send_response(503 if refused else 200)
            self.send_header("ETag", '"etag"')
            self.send_header("Content-Length", str(len(body) if refused else 0))
            self.end_headers()
            if refused:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
