"""A strict S3 bucket in memory for tests of shard sets in object stores, and runs that convert without workers.

The bucket honours conditions of writes and removals and compares checksums, as S3 documents them. It notes after each
change whether a dataset.json that readers would accept lacks a file or has another.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import fsspec.asyn
import pytest

from omniges.pipeline.convert import convert
from omniges.pipeline.corpora.registry import CORPORA
from omniges.pipeline.discover import Recording
from omniges.pipeline.engines import engine as engine_module
from omniges.pipeline.run import preprocess
from omniges.pipeline.settings import ConvertSettings, PreprocessSettings, Sample, Summary
from omniges.progress import LineReporter
from omniges.shards import store as store_module
from omniges.shards.dataset import sealed_correctly
from omniges.shards.schema import DATASET_FILE, FORMAT
from omniges.shards.store import JOURNAL_FOLDER
from omniges.storage.bucket import Bucket

URL = "s3://bucket/sets/speech"
PREFIX = "sets/speech/"


class Refused(Exception):
    """An error of the store, in the form of botocore."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": code}}


class Crash(BaseException):
    """The end of a process."""


@dataclass
class _Body:
    """Content of an answer."""

    data: io.BytesIO

    async def read(self, size: int) -> bytes:
        return self.data.read(size)

    def close(self) -> None:
        self.data.close()


@dataclass
class MemoryBucket:
    """The file system object of `Bucket`, with the objects of one bucket."""

    objects: dict[str, bytes] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    """Conditions that the store ignores, as some stores do."""
    keeps_checksums: bool = True
    retries: int = 5
    half_sets: list[str] = field(default_factory=list)
    """Files that were not of the set whose dataset.json a reader would have accepted."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def call_s3(self, method: str, Bucket: str, **arguments: Any) -> dict[str, Any]:  # noqa: N803 - botocore's name
        assert Bucket == "bucket"
        with self.lock:
            found: dict[str, Any] = getattr(self, method)(**arguments)
            return found

    def put_object(self, Key: str, Body: Any, **rest: str) -> dict[str, Any]:  # noqa: N803
        data = bytes(Body if isinstance(Body, bytes) else Body.read())
        given = rest.get("ChecksumSHA256")
        if given is not None and given != _checksum(data):
            raise Refused(400, "BadDigest")
        self._require(Key, rest)
        self._change(Key, data)
        return {"ETag": _etag(data)}

    def copy_object(self, Key: str, CopySource: dict[str, str], **_: str) -> dict[str, Any]:  # noqa: N803
        self._change(Key, self._found(CopySource["Key"]))
        return {}

    def delete_object(self, Key: str, **rest: str) -> dict[str, Any]:  # noqa: N803
        self._require(Key, rest)
        self._change(Key, None)
        return {}

    def head_object(self, Key: str, **rest: str) -> dict[str, Any]:  # noqa: N803
        data = self._found(Key)
        sums = {"ChecksumSHA256": _checksum(data)} if self.keeps_checksums and "ChecksumMode" in rest else {}
        return {"ContentLength": len(data), "ETag": _etag(data), **sums}

    def list_objects_v2(self, Prefix: str, Delimiter: str, **rest: str) -> dict[str, Any]:  # noqa: N803
        """Pages of two objects."""
        assert Delimiter == "/"
        after = rest.get("ContinuationToken", rest.get("StartAfter", ""))
        own = (key for key in sorted(self.objects) if key.startswith(Prefix) and "/" not in key[len(Prefix) :])
        keys = [key for key in own if key > after]
        rows = [{"Key": key, "Size": len(self.objects[key]), "ETag": _etag(self.objects[key])} for key in keys[:2]]
        return {"Contents": rows, "IsTruncated": len(keys) > 2, "NextContinuationToken": keys[1:2] and keys[1]}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        return self._found(path.removeprefix("s3://bucket/"))[start:end]

    def open(self, path: str, *_: str, **__: Any) -> io.BytesIO:
        return io.BytesIO(self.cat_file(path))

    @property
    def loop(self) -> Any:
        return fsspec.asyn.get_loop()

    def split_path(self, path: str) -> tuple[str, str, None]:
        return "bucket", path.removeprefix("s3://bucket/"), None

    def info(self, path: str) -> dict[str, int]:
        return {"size": len(self.cat_file(path))}

    async def _call_s3(self, method: str, Bucket: str, Key: str, Range: str) -> dict[str, Any]:  # noqa: N803
        assert (method, Bucket) == ("get_object", "bucket")
        first, _, last = Range.removeprefix("bytes=").partition("-")
        return {"Body": _Body(io.BytesIO(self.cat_file(Key, int(first), int(last) + 1)))}

    def _found(self, key: str) -> bytes:
        with self.lock:
            if key not in self.objects:
                raise Refused(404, "NoSuchKey")
            return self.objects[key]

    def _require(self, key: str, conditions: dict[str, str]) -> None:
        if "IfNoneMatch" in conditions and "IfNoneMatch" not in self.ignored and key in self.objects:
            raise Refused(412, "PreconditionFailed")
        if (
            "IfMatch" in conditions
            and "IfMatch" not in self.ignored
            and _etag(self._found(key)) != conditions["IfMatch"]
        ):
            raise Refused(412, "PreconditionFailed")

    def _change(self, key: str, data: bytes | None) -> None:
        self.objects.pop(key, None)
        if data is not None:
            self.objects[key] = data
        self.half_sets += wrong_files(self.objects)

    @property
    def digests(self) -> dict[str, str]:
        """Sha256 of the set's objects by name, without the journal."""
        names = (key for key in self.objects if key.startswith(PREFIX) and "/" not in key[len(PREFIX) :])
        return {key[len(PREFIX) :]: _digest(self.objects[key]) for key in names}

    @property
    def journal(self) -> list[str]:
        """Names of the journal's objects."""
        prefix = f"{PREFIX}{JOURNAL_FOLDER}/"
        return sorted(key.removeprefix(prefix) for key in self.objects if key.startswith(prefix))


@cache
def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _checksum(data: bytes) -> str:
    return base64.b64encode(bytes.fromhex(_digest(data))).decode()


@cache
def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'  # noqa: S324 - what S3 uses


def wrong_files(objects: dict[str, bytes]) -> list[str]:
    """Names of files that differ from a dataset.json that a reader would accept."""
    found = objects.get(PREFIX + DATASET_FILE)
    document = {} if found is None else json.loads(found)
    if document.get("format") != FORMAT or not sealed_correctly(document):
        return []
    listed = (document["files"] | document["shards"]).items()
    return [name for name, facts in listed if _digest(objects.get(PREFIX + name, b"absent")) != facts["sha256"]]


class World:
    """Runs over one bucket in memory; each is a process of its own to the lock."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path) -> None:
        self.bucket = MemoryBucket()
        self.gate: Callable[[str], None] = lambda _action: None
        """Called before each request, on the thread that makes it."""
        self.ended: set[int] = set()
        self._folder = folder
        self._local = threading.local()
        self.runs = 0
        call = Bucket._call

        def gated(store: Bucket, action: str, name: str, function: Callable[[], Any], size: int = 0) -> Any:
            if action != "open":
                self.gate(action)
            return call(store, action, name, function, size)

        patch.setattr(Bucket, "_connect", lambda _store: self.bucket)
        patch.setattr(Bucket, "_call", gated)
        patch.setattr(store_module, "_process_facts", lambda: {"host": "here", "pid": self._local.number})
        patch.setattr(store_module, "_has_ended", lambda holder: holder["pid"] in self.ended)
        patch.setattr(engine_module, "ConvertPool", InProcess)

    def run(self, root: Path, **settings: Any) -> Summary:
        """Preprocess into the bucket; the process of the run has ended afterwards."""
        self.runs += 1
        number = self._local.number = self.runs
        try:
            with Path("/dev/null").open("w") as stream:
                chosen = PreprocessSettings(
                    root=root,
                    output_dir=URL,
                    num_workers=1,
                    run_log=self._folder / "log.jsonl",
                    work_dir=self._folder / f"work-{number}",
                    **({"shard_bytes": 1 << 20, "allow_removal": True} | settings),
                )
                return preprocess(chosen, LineReporter(stream))
        finally:
            self.ended.add(number)


class InProcess:
    """A pool of workers that converts in the process itself, each recording once."""

    def __init__(self, settings: ConvertSettings, *_: Any) -> None:
        self._settings = settings

    def run(self, recordings: Sequence[Recording]) -> Iterator[tuple[Recording, Any]]:
        for recording in recordings:
            yield recording, _converted(recording.files["wav"].path, self._settings, lambda found=recording: found)

    def slowest(self) -> None:
        return None


_CONVERTED: dict[tuple[str, int, ConvertSettings], Any] = {}


def _converted(path: str, settings: ConvertSettings, recording: Callable[[], Recording]) -> Any:
    key = (path, Path(path).stat().st_mtime_ns, settings)
    if key not in _CONVERTED:
        outcome = convert(recording(), settings, CORPORA.get("beat2").take)
        if isinstance(outcome, Sample):
            data = b"".join(bytes(memoryview(part).cast("B")) for part in outcome.segment.buffers)
            outcome = Sample(outcome.row, data, outcome.notes, outcome.partials, outcome.words, outcome.cut)
        _CONVERTED[key] = outcome
    return _CONVERTED[key]
