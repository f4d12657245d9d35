"""Writing to a folder of an S3 bucket: conditional writes, verified uploads, and copies inside the store.

A conditional write succeeds only if the object does not exist (``If-None-Match: *``) or has a known ETag
(``If-Match``). So two writers never overwrite each other's objects. If the server's answer to a write is lost, the
object is read, and its content shows whether the write succeeded.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

from omniges.errors import DataError, UsageFault
from omniges.storage.atomic import os_errors
from omniges.storage.cache import Retries, with_retries
from omniges.storage.files import MAX_JSON_BYTES
from omniges.storage.remote import Location, MissingFile, StoreFault, Timeouts, UrlStore, check_name, http_status

T = TypeVar("T")

MAX_OBJECT_BYTES: Final = 5_000_000_000
"""Size in bytes of the largest object that one request can write or copy."""
_PROTOCOLS: Final = ("s3", "s3a")
_BUCKET_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_CONFLICT: Final = 409  # HTTP status: another conditional write of the object is in progress
_CONDITION_FAILED: Final = 412
_NO_ETAG: Final = '"00000000000000000000000000000000"'
_READERS: Final = 8
_HASHED_BYTES: Final = 8 << 20


class ConditionFailed(DataError):
    """A conditional write failed: the object already exists, or its content is not the expected one."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Size in bytes and ETag (version) of an object."""

    size: int
    etag: str  # without quotes


def require_writable(location: Location, flag: str) -> None:
    """Refuse a URL that is not a folder of an S3 bucket; only such folders can be written.

    Args:
        location: Location to check.
        flag: Name of the command-line flag, for the error.

    Raises:
        UsageFault: The URL is not a folder of an S3 bucket.
    """
    if location.protocol not in _PROTOCOLS:
        raise UsageFault(
            f"{flag} {location}: expected a folder or s3://BUCKET/FOLDER, found {location.protocol}://; write to a "
            "folder and copy it there, dataset.json last"
        )
    bucket, _, folder = location.address.partition("://")[2].partition("/")
    parts = folder.rstrip("/").split("/")
    named = _BUCKET_NAME.fullmatch(bucket) and all(parts) and not {".", ".."} & set(parts)
    if not named or re.search(r"[?#*\[\]\\]", folder):
        raise UsageFault(
            f"{flag} {location}: expected s3://BUCKET/FOLDER, without empty names and without ? # * [ ] \\; choose "
            "another folder"
        )


def child(location: Location, name: str) -> Location:
    """Return the location of a subfolder."""
    tail = f"/{check_name(name)}"
    return replace(location, address=location.address.rstrip("/") + tail, shown=location.shown.rstrip("/") + tail)


class Bucket(UrlStore):
    """A folder of an S3 bucket that can be read and written. After the first request, several threads may use it."""

    def __init__(self, location: Location, timeouts: Timeouts | None = None, retries: Retries | None = None) -> None:
        """Load s3fs; no connection is made.

        Args:
            location: Location of the folder.
            timeouts: Limits for the server; None: the defaults.
            retries: Number of attempts and waits between them; None: the defaults.
        """
        super().__init__(location, timeouts or Timeouts())
        self._filesystem.retries = 1  # `_retried` repeats failed requests, each time with a new body
        self._retries = retries or Retries()
        self._bucket, _, folder = location.address.partition("://")[2].partition("/")
        self._prefix = f"{folder.strip('/')}/"

    def entries(self, start: str = "", after: str = "") -> dict[str, Entry]:
        """Return the objects of the folder, sorted by name, without the objects in subfolders.

        Args:
            start: Return only names that start with this text.
            after: Return only names that sort after this name.

        Returns:
            Size and ETag by name.

        Raises:
            StoreFault: The bucket does not exist or cannot be listed.
        """
        found: dict[str, Entry] = {}
        request = {"Prefix": self._prefix + start, "Delimiter": "/"}
        more = {"StartAfter": self._prefix + after} if after else {}
        while True:
            try:
                page = self._request("list", "", partial(self._s3, "list_objects_v2", **request, **more))
            except MissingFile as error:
                raise StoreFault(f"{error}; create the bucket {self._bucket}, or check the address") from None
            for each in page.get("Contents", ()):
                name = str(each["Key"]).removeprefix(self._prefix)
                if name:  # web consoles create an object with an empty name for the folder itself
                    found[name] = Entry(int(each["Size"]), _plain(each["ETag"]))
            if not page.get("IsTruncated"):
                return dict(sorted(found.items()))
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def read(self, name: str) -> bytes:
        """Return the content of an object of at most 256 MiB; raise MissingFile if the object does not exist."""

        def get() -> bytes:
            answer = self._s3("head_object", Key=self._key(name))
            if int(answer["ContentLength"]) > MAX_JSON_BYTES:
                raise DataError(
                    f"{self.location.shown_file(name)}: expected at most {MAX_JSON_BYTES} bytes, found more; "
                    "check the address"
                )
            return bytes(self._filesystem.cat_file(self._address(name)))

        return self._request("read", name, get, MAX_JSON_BYTES)

    def read_all(self, names: Iterable[str]) -> list[bytes]:
        """Return the contents of objects of at most 256 MiB each, in the order of `names`."""
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(self.read, names))

    def create(self, name: str, data: bytes) -> str:
        """Create an object that does not exist yet. An existing object with the same content is accepted.

        Args:
            name: Name of the object.
            data: Its content.

        Returns:
            ETag of the object.

        Raises:
            ConditionFailed: An object with other content already exists.
        """
        return self._written(name, data, partial(self._put, name, data, IfNoneMatch="*"))

    def replace(self, name: str, data: bytes, etag: str) -> str:
        """Replace an object, but only if it still has a known ETag, so that no other writer's change is lost.

        An object that already has the new content is accepted with any ETag.

        Args:
            name: Name of the object.
            data: New content.
            etag: ETag that the object must have before the write.

        Returns:
            The new ETag.

        Raises:
            ConditionFailed: The object does not exist. Or its ETag is not `etag`, and its content is not `data`.
        """
        return self._written(name, data, partial(self._put, name, data, IfMatch=f'"{etag}"'))

    def put(self, name: str, data: bytes) -> None:
        """Create or replace an object without a condition. Use it only for objects that no other writer writes."""
        self._request("write", name, lambda: self._s3("put_object", Key=self._key(name), Body=data), len(data))

    def require_conditions(self, name: str, data: bytes) -> None:
        """Refuse a store that ignores the conditions of conditional writes.

        This method tries two writes whose conditions are not met, so a correct store rejects both. If the store
        ignores a condition, it writes `data`, which the object already contains. So no data is lost.

        Args:
            name: Name of an object that exists.
            data: Present content of this object.

        Raises:
            UsageFault: The store ignores a condition.
        """
        for condition in ({"IfNoneMatch": "*"}, {"IfMatch": _NO_ETAG}):
            try:
                self._retried(partial(self._put, name, data, **condition), name)
            except ConditionFailed:
                continue
            raise UsageFault(
                f"{self.location}: expected a store that honours create-only and conditional writes (If-None-Match, "
                f"If-Match), found a store that ignores {next(iter(condition))}; write to a folder and copy it "
                "there, dataset.json last"
            )

    def _put(self, name: str, data: bytes, **condition: str) -> str:
        put = partial(self._s3, "put_object", Key=self._key(name), Body=data, **condition)
        return _plain(self._call("write", name, put, len(data))["ETag"])

    def upload(self, name: str, path: Path, size: int, sha256: str) -> None:
        """Create an object from a file, then compare the object's size and sha256 with those of the file.

        An object that already exists with the same content is accepted.

        Args:
            name: Name of the object.
            path: File on this machine.
            size: Size of the file in bytes, at most 5 GB.
            sha256: sha256 of the file in hexadecimal.

        Raises:
            ConditionFailed: An object with other content already exists.
            DataError: After the write, the object's size or sha256 differs from `size` or `sha256`.
        """

        def send(stream: BinaryIO) -> Any:
            condition = {"IfNoneMatch": "*", "ChecksumAlgorithm": "SHA256", "ChecksumSHA256": _base64(sha256)}
            return self._s3("put_object", Key=self._key(name), Body=stream, **condition)

        def attempt() -> None:
            with os_errors(path, "read"), path.open("rb") as stream:
                self._call("write", name, lambda: send(stream), size)

        try:
            self._retried(attempt, name)
        except ConditionFailed:
            if self.facts(name) != (size, sha256):
                raise
        else:
            self.require(name, size, sha256)

    def copy(self, name: str, target: Bucket, target_name: str, size: int, sha256: str) -> None:
        """Copy an object inside the store, then check the copy's size and sha256; an existing object is replaced.

        Args:
            name: Name of the object.
            target: Folder for the copy, in the same bucket.
            target_name: Name of the copy.
            size: Size of the object in bytes, at most 5 GB.
            sha256: sha256 of the object in hexadecimal.

        Raises:
            MissingFile: The object does not exist.
            DataError: The copy has another size or sha256.
        """
        source = {"Bucket": self._bucket, "Key": self._key(name)}
        more = {"CopySource": source, "ChecksumAlgorithm": "SHA256"}
        self._request("copy", name, lambda: self._s3("copy_object", Key=target._key(target_name), **more), size)
        target.require(target_name, size, sha256)

    def remove(self, name: str, etag: str | None = None) -> None:
        """Remove an object; do nothing if it does not exist or has another ETag.

        Args:
            name: Name of the object.
            etag: ETag that the object must have; None: any ETag.
        """
        condition = {} if etag is None else {"IfMatch": f'"{etag}"'}
        try:
            self._request("remove", name, lambda: self._s3("delete_object", Key=self._key(name), **condition))
        except (ConditionFailed, MissingFile):
            return

    def require(self, name: str, size: int, sha256: str) -> None:
        """Raise DataError if the object's size in bytes is not `size` or its sha256 is not `sha256`."""
        found = self.facts(name)
        if found != (size, sha256):
            raise DataError(
                f"{self.location.shown_file(name)}: expected {size} bytes with sha256 {sha256}, found {found[0]} "
                f"bytes with {found[1]} after writing; run the same command again, and check the store if the error "
                "comes back"
            )

    def facts(self, name: str) -> tuple[int, str]:
        """Return the size in bytes and the sha256 in hexadecimal of an object.

        If the store recorded the sha256 of the whole object during the write, this value is returned. Otherwise, this
        method reads the object and computes the sha256.
        """
        head = self._request("find", name, lambda: self._s3("head_object", Key=self._key(name), ChecksumMode="ENABLED"))
        size = int(head["ContentLength"])
        if head.get("ChecksumSHA256") and head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT":
            return size, base64.b64decode(head["ChecksumSHA256"]).hex()
        return self._retried(lambda: self._read_facts(name), name)

    def _read_facts(self, name: str) -> tuple[int, str]:
        size, digest = 0, hashlib.sha256()
        with self.open_stream(name) as stream:
            while piece := stream.read(_HASHED_BYTES):
                size += len(piece)
                digest.update(piece)
        return size, digest.hexdigest()

    def _written(self, name: str, data: bytes, write: Callable[[], str]) -> str:
        try:
            return self._retried(write, name)
        except ConditionFailed:
            # An earlier attempt may have written the object although its answer was lost.
            entry = self.entry(name)
            if entry is None or entry.size != len(data) or self.read(name) != data:
                raise
            return entry.etag

    def entry(self, name: str) -> Entry | None:
        """Return the size and ETag of an object, or None if it does not exist."""
        try:
            head = self._request("find", name, lambda: self._s3("head_object", Key=self._key(name)))
        except MissingFile:
            return None
        return Entry(int(head["ContentLength"]), _plain(head["ETag"]))

    def _key(self, name: str) -> str:
        return self._prefix + check_name(name)

    def _s3(self, method: str, **arguments: Any) -> Any:
        return self._filesystem.call_s3(method, Bucket=self._bucket, **arguments)

    def _request(self, action: str, name: str, function: Callable[[], T], size: int = 0) -> T:
        return self._retried(lambda: self._call(action, name, function, size), name)

    def _retried(self, action: Callable[[], T], name: str) -> T:
        return with_retries(action, self._retries, salt=f"{name}:{os.getpid()}")

    def _fault(self, action: str, name: str, error: Exception) -> DataError | StoreFault:
        status = http_status(error)
        if status == _CONDITION_FAILED:
            return ConditionFailed(
                f"{self.location.shown_file(name)}: expected to {action} it, found that the object exists already, "
                "or that another program changed it; run the same command again"
            )
        if status == _CONFLICT:
            return StoreFault(
                f"{self.location.shown_file(name)}: expected to {action} it, found that another program writes it "
                "now; try again later",
                transient=True,
            )
        return super()._fault(action, name, error)


def _plain(etag: object) -> str:
    return str(etag).strip('"')


def _base64(sha256: str) -> str:
    return base64.b64encode(bytes.fromhex(sha256)).decode()
