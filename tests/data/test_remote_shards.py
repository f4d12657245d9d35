"""Remote shards, over a real S3 server and a web server that misbehaves: what arrives is what was published."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import remote_helpers as remote
import training_helpers as training

from omniges.data.catalog import Filters, read_catalog
from omniges.data.collate import open_source
from omniges.data.loader import BatchLoader, LoaderSettings
from omniges.data.order import RankShare
from omniges.data.remote_shards import CacheSettings, RemoteShards, open_location, open_specification
from omniges.data.sequence import DataSource, Sequencing
from omniges.data.window_reader import ClipReader, ReadMarks
from omniges.errors import DataError, EnvironmentFault, OmnigesError, UsageFault
from omniges.shards.dataset import FEATURES, seal, totals_of
from omniges.shards.document import read_dataset
from omniges.shards.reader import LocalShards, ShardFolder, ShardSource
from omniges.shards.schema import SPLITS
from omniges.storage.cache import CacheFull, Retries
from omniges.storage.files import canonical_json
from omniges.storage.remote import Timeouts, parse_location

SHARD = "train-000000.tar"
NOTHING = {  # a sound dataset.json but for the files that it does not list
    "format": "omniges-shards",
    "version": 1,
    "files": {},
    "shards": {},
    "tool": {},
    "features": FEATURES,
    "settings": {},
    "plan": {},
    "manifest_hash": "0" * 64,
    "totals": totals_of([]),
    "splits": dict.fromkeys(SPLITS, totals_of([])),
}
QUICK = Retries(attempts=3, first_wait_s=0.01, longest_wait_s=0.02)
PATIENT, IMPATIENT = Timeouts(connect_s=20, read_s=20), Timeouts(connect_s=20, read_s=0.4)
ROOM = 1 << 30


def settings(
    cache: Path, capacity_bytes: int = ROOM, *, recheck: bool = False, timeouts: Timeouts = PATIENT
) -> CacheSettings:
    return CacheSettings(
        folder=cache, capacity_bytes=capacity_bytes, recheck=recheck, space_wait_s=0.2, retries=QUICK, timeouts=timeouts
    )


def opened(url: str, chosen: CacheSettings) -> RemoteShards:
    source = open_location(parse_location(url), chosen)
    assert isinstance(source, RemoteShards)
    return source


def shard_bytes(source: RemoteShards, name: str = SHARD) -> bytes:
    with os.fdopen(source.open(name), "rb") as stream:
        return stream.read()


def shard_names(folder: Path) -> list[str]:
    return list(read_dataset(folder)["shards"])


def secretive(url: str) -> str:
    """The URL with a password and a signature."""
    return url.replace("://", "://reader:hunter2hunter2@") + "?sig=abcdef0123456789"


def forge(path: Path) -> None:
    """Write other content of the same size, and the record that says it was checked."""
    record = path.with_name(f".{path.name}.checked")
    said = json.loads(record.read_bytes())
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    found = path.stat()
    said |= {"inode": found.st_ino, "mtime_ns": found.st_mtime_ns, "ctime_ns": found.st_ctime_ns}
    record.write_bytes(canonical_json(said))


def damage(path: Path) -> None:
    """Write over some bytes of a file, at a time that differs from that of its last change."""
    time.sleep(0.02)  # the kernel's time stamps are some milliseconds coarse
    with path.open("r+b") as stream:
        stream.seek(700)
        stream.write(b"damage")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with remote.s3_server() as address, pytest.MonkeyPatch.context() as patch:
        remote.use_s3(patch, address)
        yield address


@pytest.fixture(scope="module")
def bucket(endpoint: str, shards: Path) -> remote.S3:
    return remote.upload(endpoint, "published", shards)


@pytest.fixture
def web(shards: Path) -> Iterator[remote.Web]:
    with remote.web_server(shards) as server:
        yield server


class TestS3:
    def test_cold_then_warm(self, bucket: remote.S3, shards: Path, tmp_path: Path) -> None:
        with opened(bucket.url, settings(tmp_path)) as source:
            for name in shard_names(shards):
                assert shard_bytes(source, name) == (shards / name).read_bytes()
            assert source.counts.fills == len(shard_names(shards)) + 4  # and the small files
        with opened(bucket.url, settings(tmp_path)) as source:
            for name in shard_names(shards):
                assert shard_bytes(source, name) == (shards / name).read_bytes()
            assert (source.counts.fills, source.counts.fetched_bytes) == (0, 0)

    def test_killed_in_mid_download_and_again(self, bucket: remote.S3, shards: Path, tmp_path: Path) -> None:
        """A process is killed with half of a shard written; the next one fetches it whole and clears the half."""
        script = (
            "import sys, time\n"
            "from pathlib import Path\n"
            "from omniges.storage.atomic import PendingFile\n"
            "from omniges.storage.remote import parse_location\n"
            "from omniges.data.remote_shards import CacheSettings, open_location\n"
            "source = open_location(parse_location(sys.argv[1]),"
            " CacheSettings(folder=Path(sys.argv[2]), capacity_bytes=1 << 30))\n"
            "write = PendingFile.write\n"
            "def stop_after_half(self, data):\n"
            "    write(self, data[: len(data) // 2])\n"
            "    print('half', flush=True)\n"
            "    time.sleep(60)\n"
            "PendingFile.write = stop_after_half\n"
            f"source.open({SHARD!r})\n"
        )
        process = subprocess.Popen([sys.executable, "-c", script, bucket.url, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout
        assert process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        (half,) = tmp_path.rglob("*.tmp-*")
        assert 0 < half.stat().st_size < (shards / SHARD).stat().st_size
        with opened(bucket.url, settings(tmp_path)) as source:
            assert shard_bytes(source) == (shards / SHARD).read_bytes()
        assert not list(tmp_path.rglob("*.tmp-*"))

    def test_credentials_are_nowhere(
        self, bucket: remote.S3, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with opened(bucket.url, settings(tmp_path)) as source:
            shard_bytes(source)
            shown = f"{source!r} {source.location!r} {source.describe(SHARD)} {json.dumps(source.specification())}"
            with pytest.raises(DataError) as caught:
                source.open("train-000099.tar")
        written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        texts = f"{shown} {caught.value} {''.join(capfd.readouterr())} {list(tmp_path.rglob('*'))}"
        for secret in (remote.SECRET_KEY, remote.ACCESS_KEY):
            assert secret not in texts
            assert secret.encode() not in written

    def test_wrong_credentials_are_refused_in_one_line_without_them(
        self, bucket: remote.S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(
            EnvironmentFault, match=r"^s3://published/shards/dataset\.json: expected access, found that it was refused"
        ) as caught:
            open_location(parse_location(bucket.url), settings(tmp_path))
        assert remote.ACCESS_KEY not in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_corrupted_cache_file_is_fetched_again(self, bucket: remote.S3, shards: Path, tmp_path: Path) -> None:
        with opened(bucket.url, settings(tmp_path)) as source:
            shard_bytes(source)
            damage(source.folder / SHARD)
            assert shard_bytes(source) == (shards / SHARD).read_bytes()
            assert (source.counts.damaged, source.counts.fills) == (1, 6)  # four small files, the shard twice

    def test_an_object_of_the_wrong_length(self, endpoint: str, shards: Path, tmp_path: Path) -> None:
        wrong = Path(shutil.copytree(shards, tmp_path / "wrong"))
        size = (shards / SHARD).stat().st_size
        os.truncate(wrong / SHARD, size - 512)
        url = remote.upload(endpoint, "wrong", wrong).url
        said = f"^{url}/{SHARD}: expected {size} bytes .* found {size - 512} bytes.* .stopped after 3 attempts.$"
        with opened(url, settings(tmp_path / "cache")) as source, pytest.raises(DataError, match=said):
            source.open(SHARD)


class TestTwoProcesses:
    SCRIPT = (
        "import hashlib, json, os, sys\n"
        "from pathlib import Path\n"
        "from omniges.storage.remote import parse_location\n"
        "from omniges.data.remote_shards import CacheSettings, open_location\n"
        "source = open_location(parse_location(sys.argv[1]),"
        " CacheSettings(folder=Path(sys.argv[2]), capacity_bytes=int(sys.argv[3]), space_wait_s=30))\n"
        "for name in sys.argv[4:]:\n"
        "    with os.fdopen(source.open(name), 'rb') as stream:\n"
        "        print(name, hashlib.sha256(stream.read()).hexdigest())\n"
        "print('fills', source.counts.fills)\n"
        "source.close()\n"
    )

    def both(self, url: str, cache: Path, shards: Path, endpoint: str) -> int:
        """Read all shards in two processes, from both ends; returns how many files they fetched together."""
        names = shard_names(shards)
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", self.SCRIPT, url, str(cache), str(ROOM), *order],
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | remote.s3_environment(endpoint),
            )
            for order in (names, names[::-1])
        ]
        outputs = [dict(line.split() for line in p.communicate(timeout=60)[0].splitlines()) for p in processes]
        fills = sum(int(output.pop("fills")) for output in outputs)
        expected = {name: read_dataset(shards)["shards"][name]["sha256"] for name in names}
        assert outputs == [expected, expected]
        return fills

    def test_share_one_cache_over_http_and_fetch_each_file_once(
        self, web: remote.Web, shards: Path, tmp_path: Path
    ) -> None:
        names = shard_names(shards)
        web.plan = {name: [remote.slow(0.3)] for name in names}
        assert self.both(web.url, tmp_path, shards, "") == len(names) + 4
        assert all(web.requests[name] == 1 for name in [*names, "manifest.parquet", "stats.json", "tokenizer.json"])

    @pytest.mark.slow
    def test_share_one_cache_over_s3_and_fetch_each_file_once(
        self, bucket: remote.S3, shards: Path, tmp_path: Path
    ) -> None:
        assert self.both(bucket.url, tmp_path, shards, bucket.endpoint) == len(shard_names(shards)) + 4


class TestTraining:
    @pytest.mark.slow
    def test_a_run_over_a_url_is_that_over_the_folder_and_keeps_no_credentials(
        self, web: remote.Web, shards: Path, tmp_path: Path
    ) -> None:
        url = secretive(web.url)
        validation = {"validation_steps": 4, "validation_windows": 1, "validation_sampling_steps": 1}
        validation |= {"validation_samples": 1, "max_train_steps": 4, "num_workers": 1}
        training.run(shards, tmp_path / "here", **validation)
        training.run(url, tmp_path / "there", cache_dir=tmp_path / "cache", **validation)
        assert training.losses_of(tmp_path / "there") == training.losses_of(tmp_path / "here")
        (here,), (there,) = (training.log_of(tmp_path / name, "validation") for name in ("here", "there"))
        assert there["samples"][0]["shards"].startswith("http://***@")
        assert (there["losses"], there["metrics"]) == (here["losses"], here["metrics"])
        for path in (tmp_path / "there").rglob("*"):
            if path.is_file():
                assert not any(secret in path.read_bytes() for secret in (b"hunter2", b"abcdef0123"))


class TestReading:
    """The loader's reader sees no difference between a folder and a remote one."""

    def test_catalog_and_clips(self, web: remote.Web, shards: Path, tmp_path: Path) -> None:
        with opened(web.url, settings(tmp_path)) as remote_shards:
            here, there = (read_catalog(folder, Filters()) for folder in (shards, remote_shards.folder))
            assert there.manifest_hash == here.manifest_hash
            sources: list[ShardSource] = [LocalShards(shards), open_source(remote_shards.specification())]
            readers = [
                ClipReader(catalog.table, source, ReadMarks.blank(len(catalog.table)))
                for catalog, source in zip((here, there), sources, strict=True)
            ]
            assert len(here.table) > 1
            for sample in range(len(here.table)):
                assert readers[1].words(sample) == readers[0].words(sample)

    @pytest.mark.slow
    @pytest.mark.parametrize("workers", [0, 1])
    def test_batches_are_those_of_the_original_and_the_state_has_no_credentials(
        self, web: remote.Web, shards: Path, tmp_path: Path, workers: int
    ) -> None:
        url = secretive(web.url)

        def batches(source: LocalShards | RemoteShards) -> tuple[list[bytes], str]:
            data = DataSource(read_catalog(source.folder, Filters()), shards=source)
            read = []
            with BatchLoader(
                [data], Sequencing(window_ticks=8, seed=1), RankShare(batch_size=2), LoaderSettings(workers=workers)
            ) as loader:
                for _, batch in zip(range(4), loader, strict=False):
                    read.append(
                        b"".join(getattr(batch, name).numpy().tobytes() for name in ("gesture", "audio", "text"))
                    )
                return read, json.dumps(loader.state_dict())

        with opened(url, settings(tmp_path)) as source:
            there = batches(source)
        assert there == batches(LocalShards(shards))
        assert not any(secret in there[1] for secret in ("hunter2", "abcdef0123", web.url))

    def test_damage_at_the_original_is_an_error_with_its_url(self, web: remote.Web, tmp_path: Path) -> None:
        web.plan[SHARD] = [remote.flip]
        with opened(web.url, settings(tmp_path)) as source:
            table = read_catalog(source.folder, Filters()).table
            reader = ClipReader(table, source, ReadMarks.blank(len(table)))
            with pytest.raises(DataError, match=rf"^{web.url}/{SHARD}: expected sha256 .*; run omniges verify-shards"):
                reader.words(0)

    def test_a_cache_of_one_shard_has_room_for_the_next_when_the_first_is_closed(
        self, web: remote.Web, shards: Path, tmp_path: Path
    ) -> None:
        first, second = shard_names(shards)[:2]
        with opened(web.url, settings(tmp_path)) as source:
            minimum, _ = source.min_bytes(SPLITS)
        with opened(web.url, settings(tmp_path / "small", minimum)) as source:
            descriptor = source.open(first)
            with pytest.raises(CacheFull, match="running processes use"):
                source.open(second)
            os.close(descriptor)
            os.close(source.open(second))


class TestMisbehaviour:
    def test_some_failures_are_survived(self, web: remote.Web, shards: Path, tmp_path: Path) -> None:
        web.plan["dataset.json"] = [remote.fail(503), remote.cut(100), remote.serve]
        web.plan["stats.json"] = [remote.flip, remote.serve]
        web.plan[SHARD] = [remote.cut(5000), remote.fail(500), remote.serve]
        with opened(web.url, settings(tmp_path)) as source:
            assert shard_bytes(source) == (shards / SHARD).read_bytes()
            assert source.counts.failed_tries == 3
        assert (web.requests["dataset.json"], web.requests["stats.json"], web.requests[SHARD]) == (3, 2, 3)

    @pytest.mark.parametrize(
        ("behaviour", "kind", "text"),
        [
            (remote.fail(500), EnvironmentFault, "500"),
            (remote.fail(429), EnvironmentFault, "429"),
            (remote.cut(5000), EnvironmentFault, "5000"),
            (remote.silent, EnvironmentFault, "expected an answer in time"),
            (remote.short, DataError, "expected {size} bytes as in dataset.json, found {less} bytes"),
            (remote.long, DataError, "expected {size} bytes as in dataset.json, found more"),
            (remote.flip, DataError, "expected sha256 {sha256} as in dataset.json"),
        ],
        ids=["500", "429", "cut", "silent", "short", "long", "flip"],
    )
    def test_lasting_failures_end_after_so_many_tries_with_a_named_error(
        self,
        web: remote.Web,
        shards: Path,
        tmp_path: Path,
        behaviour: remote.Behaviour,
        kind: type[OmnigesError],
        text: str,
    ) -> None:
        web.plan[SHARD] = [behaviour]
        entry = read_dataset(shards)["shards"][SHARD]
        timeouts = IMPATIENT if behaviour is remote.silent else PATIENT
        with opened(web.url, settings(tmp_path, timeouts=timeouts)) as source:
            with pytest.raises(kind) as caught:
                source.open(SHARD)
            said = str(caught.value)
            assert text.format(size=entry["bytes"], less=entry["bytes"] - 1, sha256=entry["sha256"]) in said
            assert said.startswith(f"{web.url}/{SHARD}: ")
            tries = 2 if behaviour is remote.silent else 3
            assert said.endswith(f"(stopped after {tries} attempts)")
            assert "\n" not in said
            assert web.requests[SHARD] == tries
            assert not [path for path in source.folder.iterdir() if path.name.endswith(".tar") or ".tmp-" in path.name]
        web.plan.clear()  # the server recovers
        with opened(web.url, settings(tmp_path)) as source:
            assert shard_bytes(source) == (shards / SHARD).read_bytes()

    @pytest.mark.parametrize(("status", "kind"), [(404, DataError), (403, EnvironmentFault), (400, EnvironmentFault)])
    def test_what_will_not_get_better_is_asked_once(
        self, web: remote.Web, tmp_path: Path, status: int, kind: type[OmnigesError]
    ) -> None:
        web.plan[SHARD] = [remote.fail(status)]
        with opened(web.url, settings(tmp_path)) as source, pytest.raises(kind, match=SHARD):
            source.open(SHARD)
        assert web.requests[SHARD] == 1

    def test_signatures_and_passwords_are_nowhere(self, web: remote.Web, tmp_path: Path) -> None:
        url = secretive(web.url)
        web.plan[SHARD] = [remote.fail(503), remote.flip, remote.cut(10)]
        with opened(url, settings(tmp_path)) as source:
            with pytest.raises(EnvironmentFault) as caught:
                source.open(SHARD)
            texts = f"{caught.value} {source!r} {source.location!r} {source.describe(SHARD)}"
        assert all("sig=abcdef0123456789" in target for target in web.targets)
        written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        for secret in ("hunter2", "abcdef0123"):
            assert secret not in texts
            assert secret.encode() not in written
            assert secret not in str(list(tmp_path.rglob("*")))
        assert caught.value.__cause__ is None

    def test_a_set_that_changes_is_noticed(self, web: remote.Web, shards: Path, tmp_path: Path) -> None:
        """Another dataset.json is another folder; shards replaced under a running process are refused."""
        with opened(web.url, settings(tmp_path / "cache")) as source:
            changed = Path(shutil.copytree(shards, tmp_path / "changed"))
            document = {k: v for k, v in read_dataset(shards).items() if k != "checksum"} | {"note": "new"}
            (changed / "dataset.json").write_bytes(seal(document))
            (changed / SHARD).write_bytes((shards / SHARD).read_bytes() + bytes(512))
            web.folder = changed
            with pytest.raises(DataError, match="found more"):
                source.open(SHARD)
            with opened(web.url, settings(tmp_path / "cache")) as other:
                assert other.folder != source.folder

    @pytest.mark.parametrize(
        ("data", "text"),
        [
            (b"<html>not found</html>", "expected a JSON document, found 22 bytes of something else"),
            (b'{"format": "omniges-shards", "checksum": "0"}', "expected content that fits its checksum"),
            (seal({"format": "other"}), "expected format 'omniges-shards'"),
            (seal({"format": "omniges-shards", "version": 99}), "expected shard contract version 1 or 2, found 99"),
            (
                seal({"format": "omniges-shards", "version": 1, "files": {}, "shards": {"../x.tar": {}}}),
                r"'\.\./x\.tar': .*found a name that is not in the contract",
            ),
            (
                seal(
                    {
                        "format": "omniges-shards",
                        "version": 1,
                        "files": {},
                        "shards": {"train-000000.tar": {"bytes": -1}},
                    }
                ),
                r"'train-000000\.tar': .*found fields 'bytes'",
            ),
            (seal({"format": "omniges-shards", "version": 1, "files": {}, "shards": {}}), "tool: expected an object"),
            (seal(NOTHING), "dataset.json: expected an entry for manifest.parquet, found none"),
        ],
    )
    def test_a_dataset_json_that_cannot_be_used(self, tmp_path: Path, data: bytes, text: str) -> None:
        (tmp_path / "remote").mkdir()
        (tmp_path / "remote" / "dataset.json").write_bytes(data)
        with remote.web_server(tmp_path / "remote") as server, pytest.raises(DataError, match=text) as caught:
            open_location(parse_location(server.url), settings(tmp_path / "cache"))
        assert str(caught.value).startswith(server.url)

    def test_a_folder_without_dataset_json_is_not_complete(self, tmp_path: Path) -> None:
        with (
            remote.web_server(tmp_path) as server,
            pytest.raises(DataError, match=r"dataset\.json: .* does not exist .* set of shards is not complete"),
        ):
            open_location(parse_location(server.url), settings(tmp_path / "cache"))


class TestCache:
    def test_the_folder_reads_like_the_original(self, web: remote.Web, shards: Path, tmp_path: Path) -> None:
        with opened(web.url, settings(tmp_path)) as source:
            assert ShardFolder(source.folder).rows == ShardFolder(shards).rows
            for name in ("stats.json", "tokenizer.json"):
                assert (source.folder / name).read_bytes() == (shards / name).read_bytes()

    def test_a_worker_process_opens_the_same_from_json(self, web: remote.Web, shards: Path, tmp_path: Path) -> None:
        with (
            opened(web.url, settings(tmp_path)) as source,
            open_specification(json.loads(json.dumps(source.specification()))) as other,
        ):
            assert shard_bytes(other) == (shards / SHARD).read_bytes()
            assert other.folder == source.folder

    def test_a_damaged_file_is_fetched_again(self, web: remote.Web, shards: Path, tmp_path: Path) -> None:
        with opened(web.url, settings(tmp_path)) as source:
            shard_bytes(source)
            damage(source.folder / SHARD)
            assert shard_bytes(source) == (shards / SHARD).read_bytes()
            assert (web.requests[SHARD], source.counts.damaged) == (2, 1)

    @pytest.mark.parametrize("name", ["dataset.json", "manifest.parquet", "stats.json", "tokenizer.json"])
    def test_a_forged_record_of_a_small_file_is_not_believed(
        self, name: str, web: remote.Web, shards: Path, tmp_path: Path
    ) -> None:
        with opened(web.url, settings(tmp_path)) as source:
            folder = source.folder
        forge(folder / name)
        with opened(web.url, settings(tmp_path)) as source:
            assert (source.folder / name).read_bytes() == (shards / name).read_bytes()

    def test_a_forged_record_of_a_shard_changes_no_sample(self, web: remote.Web, shards: Path, tmp_path: Path) -> None:
        with opened(web.url, settings(tmp_path)) as source:
            shard_bytes(source)
            folder = source.folder
        forge(folder / SHARD)
        original = ShardFolder(shards)
        with opened(web.url, settings(tmp_path)) as source:
            reader = ShardFolder(source.folder, source)
            members = [(row, member) for row in reader.rows if row.shard == SHARD for member in row.members]
            with pytest.raises(DataError, match="sha256"):
                reader.member(*members[0])
            for row, member in members:  # the shard is doubted after its first fault, and fetched again
                assert reader.member(row, member) == original.member(row, member)
            assert source.counts.damaged == 1

    def test_a_shard_with_a_forged_record_ends_one_start_alone(
        self, web: remote.Web, shards: Path, tmp_path: Path
    ) -> None:
        with opened(web.url, settings(tmp_path)) as source:
            shard_bytes(source)
            folder = source.folder
        forge(folder / SHARD)
        with opened(web.url, settings(tmp_path)) as source:
            table = read_catalog(source.folder, Filters()).table
            with pytest.raises(DataError, match="sha256"):
                ClipReader(table, source, ReadMarks.blank(len(table))).words(0)
        with opened(web.url, settings(tmp_path)) as source:
            assert shard_bytes(source) == (shards / SHARD).read_bytes()

    @pytest.mark.parametrize("recheck", [True, False])
    def test_a_recheck_reads_a_shard_once_a_process(
        self, web: remote.Web, tmp_path: Path, recheck: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with opened(web.url, settings(tmp_path)) as source:
            shard_bytes(source)
        taken: list[str] = []
        from omniges.storage import cache as cachefolder

        digest = cachefolder.file_sha256
        monkeypatch.setattr(cachefolder, "file_sha256", lambda path: taken.append(path.name) or digest(path))
        with opened(web.url, settings(tmp_path, recheck=recheck)) as source:
            shard_bytes(source)
            shard_bytes(source)
        assert taken.count(SHARD) == int(recheck)

    def test_smaller_than_the_largest_shard_is_refused_at_once(
        self, web: remote.Web, shards: Path, tmp_path: Path
    ) -> None:
        document = read_dataset(shards)
        small = sum(document["files"][name]["bytes"] for name in ("manifest.parquet", "stats.json", "tokenizer.json"))
        small += (shards / "dataset.json").stat().st_size
        largest = max(entry["bytes"] for entry in document["shards"].values())
        with pytest.raises(
            UsageFault,
            match=rf"expected a cache of at least {small + largest} bytes \(.*\), found a limit of {largest}",
        ):
            opened(web.url, settings(tmp_path, largest))
        opened(web.url, settings(tmp_path, small + largest)).close()
        assert not [name for name in web.requests if name.endswith(".tar")]

    def test_the_smallest_possible_one_works_shard_by_shard(
        self, web: remote.Web, shards: Path, tmp_path: Path
    ) -> None:
        with opened(web.url, settings(tmp_path)) as source:
            minimum, _ = source.min_bytes(SPLITS)
        with opened(web.url, settings(tmp_path / "small", minimum)) as source:
            for _ in range(2):
                for name in shard_names(shards):
                    assert shard_bytes(source, name) == (shards / name).read_bytes()
            assert source.counts.evicted > 0

    def test_shards_are_fetched_ahead_and_give_way_to_what_is_needed(
        self, web: remote.Web, shards: Path, tmp_path: Path
    ) -> None:
        names = shard_names(shards)
        with opened(web.url, settings(tmp_path)) as source:
            minimum, _ = source.min_bytes(SPLITS)
            source.prefetch(names[:2])
            limit = time.monotonic() + 20
            while not all((source.folder / name).is_file() for name in names[:2]):
                assert time.monotonic() < limit
                time.sleep(0.005)
            assert shard_bytes(source, names[0]) == (shards / names[0]).read_bytes()
            assert web.requests[names[0]] == 1
        with opened(web.url, settings(tmp_path / "small", minimum)) as source:
            source.prefetch([names[0]])
            while not (source.folder / names[0]).is_file():
                time.sleep(0.005)
            assert shard_bytes(source, names[1]) == (shards / names[1]).read_bytes()

    def test_the_same_set_from_elsewhere_is_not_fetched_again(
        self, bucket: remote.S3, web: remote.Web, shards: Path, tmp_path: Path
    ) -> None:
        with opened(bucket.url, settings(tmp_path)) as source:
            shard_bytes(source)
        with opened(web.url, settings(tmp_path)) as source:
            assert shard_bytes(source) == (shards / SHARD).read_bytes()
        assert dict(web.requests) == {"dataset.json": 1}

    def test_many_opens_leave_no_descriptors_and_no_threads(self, web: remote.Web, tmp_path: Path) -> None:
        def held() -> tuple[int, int]:
            return len(os.listdir("/proc/self/fd")), threading.active_count()

        with opened(web.url, settings(tmp_path)) as source:
            shard_bytes(source)
            before = held()
            for _ in range(50):
                source.prefetch([])
                os.close(source.open(SHARD))
            assert held() == before

    def test_a_path_needs_no_cache_and_a_url_does(self, shards: Path) -> None:
        source = open_location(parse_location(str(shards)), None)
        assert isinstance(source, LocalShards)
        assert source.folder == shards
        with pytest.raises(UsageFault, match="expected a cache folder and its size"):
            open_location(parse_location("s3://b/x"), None)

    def test_settings_survive_json(self, tmp_path: Path) -> None:
        chosen = settings(tmp_path, 12345, recheck=True)
        assert CacheSettings.from_json(json.loads(json.dumps(chosen.as_json()))) == chosen

    @pytest.mark.parametrize("values", [{"capacity_bytes": 0}, {"ahead": -1}, {"threads": -1}, {"space_wait_s": -1}])
    def test_settings_that_cannot_be_meant(self, tmp_path: Path, values: dict[str, int]) -> None:
        with pytest.raises(UsageFault):
            CacheSettings(**{"folder": tmp_path, "capacity_bytes": 1} | values)  # type: ignore[arg-type]
