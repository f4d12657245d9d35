"""Locations of shard folders: a local path, or a URL of any protocol that fsspec knows.

A `Store` lists names and sizes, reads byte ranges, and reads complete files as streams. fsspec is imported only when a
URL is opened, never for a path. An error of a storage library becomes one line without credentials: `MissingFile` if
the file does not exist, `StoreFault` for faults of the network, the server or permissions.
"""

from __future__ import annotations

import importlib
import os
import queue
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeGuard, TypeVar
from urllib.parse import urlsplit

from omniges.errors import DataError, EnvironmentFault, OmnigesError, UsageFault, settled
from omniges.storage.atomic import is_file_name, os_errors
from omniges.storage.redact import one_line, redact, secrets_in_environment, secrets_in_url

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")

_URL: Final = re.compile(r"(?P<protocol>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_CHAIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*::|.*::[A-Za-z][A-Za-z0-9+.-]*://", re.DOTALL)
_LOCAL: Final = ("file", "local")
_WEB: Final = ("http", "https")
_S3: Final = ("s3", "s3a")
_NO_USERINFO: Final = ("s3", "s3a", "gs", "gcs", "hf")  # user:password would be read as a bucket
_LONGEST_TEXT: Final = 8192  # number of characters that are read of a library's message
_STREAM_BLOCK_BYTES: Final = 8 << 20
_PIECE_BYTES: Final = 64 << 10
_PARTIAL: Final = 206  # HTTP status of an answer that contains a range
_INSTALL: Final = (
    dict.fromkeys(_S3, "pip install 'omniges[remote]'")
    | dict.fromkeys(_WEB, "pip install aiohttp")
    | dict.fromkeys(("gs", "gcs"), "pip install gcsfs")
    | dict.fromkeys(("abfs", "az"), "pip install adlfs")
    | {"hf": "pip install huggingface_hub"}
)
_REFUSED: Final = frozenset({401, 403, 407})
_GONE: Final = frozenset({404, 410})
_BUSY: Final = frozenset({408, 425, 429})


MAX_TIME_OUTS: Final = 2
"""Number of time-outs after which no further attempt is made. A silent or slow server causes a time-out."""


class MissingFile(DataError):
    """A file does not exist at the location."""


class ShortFile(DataError):
    """A file ends before the end of a requested range; the attribute `end` is the length of the file in bytes."""

    def __init__(self, message: str, end: int) -> None:
        super().__init__(message)
        self.end = end


class StoreFault(EnvironmentFault):
    """A location cannot be read. If the attribute `transient` is True, another attempt may succeed.

    If `timed_out` is True, the server sent no data or was too slow. Such a fault is transient too, but after
    `MAX_TIME_OUTS` of these faults no further attempt is made.
    """

    def __init__(self, message: str, *, transient: bool = False, timed_out: bool = False) -> None:
        super().__init__(message)
        self.transient, self.timed_out = transient or timed_out, timed_out


@dataclass(frozen=True, slots=True)
class Location:
    """The location of a shard folder. `address` may contain credentials; `shown` and ``str()`` never do."""

    address: str = field(repr=False)
    protocol: str  # "file" for a local path
    shown: str

    @property
    def path(self) -> Path | None:
        """Folder of a local location, None for a URL."""
        return Path(self.address) if self.protocol == "file" else None

    def shown_file(self, name: str) -> str:
        """Return the address of a file in the folder, without credentials, for messages; "" means the folder itself."""
        folder, question, query = self.shown.partition("?")
        return f"{folder.rstrip('/')}/{name}{question}{query}" if name else self.shown

    def __str__(self) -> str:
        return self.shown


def parse_location(text: str) -> Location:
    """Parse a URL (``PROTOCOL://…``) or a path; ``file://`` and ``local://`` URLs are local folders.

    Args:
        text: URL or path.

    Returns:
        The location.

    Raises:
        UsageFault: The text is empty, not printable, a pipe (``pipe:COMMAND``), a chain of protocols (``a::b://…``), or
            an invalid URL. A URL with credentials is refused if its protocol does not support them.
    """
    shown = one_line(redact(text, secrets_in_url(text)))
    if not text:
        raise UsageFault("'': expected a folder or a URL, found an empty text; give a folder or a URL")
    if not text.isprintable():
        escaped = ascii(redact(text, secrets_in_url(text)))[:200]
        raise UsageFault(
            f"{escaped}: expected a folder or a URL in printable letters; rename the folder, or link to it"
        )
    if text.startswith("pipe:"):
        raise UsageFault(
            f"{shown}: expected a folder of shards, found a pipe, which can only be read as a stream; give a folder "
            "or its URL"
        )
    if _CHAIN.match(text):
        raise UsageFault(
            f"{shown}: expected a single protocol, found a chain of protocols; remove the others, because omniges "
            "has its own cache"
        )
    match = _URL.fullmatch(text)
    if match is None:
        return Location(text, "file", shown)
    protocol, rest = match["protocol"].lower(), match["rest"]
    if protocol in _LOCAL:
        if not rest.startswith("/"):
            raise UsageFault(
                f"{shown}: expected file:///ABSOLUTE/PATH, found another host or a relative path; write the absolute "
                "path"
            )
        return Location(rest, "file", shown)
    if re.search(r"\s", rest):
        raise UsageFault(f"{protocol}://…: expected a URL without spaces; write %20 for them")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    if not authority and protocol != "memory":
        raise UsageFault(f"{shown}: expected {protocol}://HOST-OR-BUCKET/FOLDER, found another form; correct the URL")
    if protocol in _NO_USERINFO and "@" in authority:
        raise UsageFault(
            f"{shown}: expected a {protocol}:// URL without credentials, found credentials; "
            f"{_where_credentials(protocol)}"
        )
    return Location(f"{protocol}://{rest}", protocol, shown)


def _where_credentials(protocol: str) -> str:
    known = {
        "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or ~/.aws",
        "gs": "GOOGLE_APPLICATION_CREDENTIALS or gcloud auth",
        "hf": "HF_TOKEN or hf auth login",
    }
    of = {"s3a": "s3", "gcs": "gs"}.get(protocol, protocol)
    return f"give them by {known[of]}" if of in known else "give them as the protocol's library documents"


def check_name(name: str) -> str:
    """Return the name of a file in a shard folder unchanged; refuse an unsafe name.

    A safe name consists of letters, digits, dots, hyphens and underscores, see `is_file_name`. It cannot leave the
    folder or change the meaning of a URL.

    Args:
        name: Name to check, such as one from dataset.json.

    Returns:
        The name.

    Raises:
        DataError: The name is not safe, see `is_file_name`.
    """
    if not is_file_name(name):
        raise DataError(
            f"{one_line(name, 80)!r}: expected a file name of letters, digits, . _ and -, found another name; check "
            "where the shards are from"
        )
    return name


class ByteStream(Protocol):
    """Interface of a file that is read from its beginning to its end, as bytes."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, at most `size`; return b"" at the end of the stream."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits for a server: times to connect and to wait for data, in seconds, and lowest speed, in bytes per second.

    The two times apply to s3, http and https; the libraries of other protocols have their own limits. The lowest speed
    applies to all protocols.
    """

    connect_s: float = 10.0
    read_s: float = 60.0
    min_bytes_s: float = 65536.0
    """Lowest speed: reading n bytes may take `connect_s` + `read_s` + n / `min_bytes_s` seconds."""

    def limit_s(self, size: int) -> float:
        """Return the longest time in seconds that reading a number of bytes may take."""
        return self.connect_s + self.read_s + size / self.min_bytes_s


def open_store(location: Location, timeouts: Timeouts | None = None) -> Store:
    """Open the store at a location.

    Args:
        location: Local folder or URL of the shards.
        timeouts: Limits for the server; None: the defaults. Unused for a local folder.

    Returns:
        A `LocalStore` for a local folder, a `UrlStore` for a URL.

    Raises:
        EnvironmentFault: The package for the protocol is not installed.
    """
    if location.path is not None:
        return LocalStore(location)
    return UrlStore(location, timeouts or Timeouts())


class LocalStore:
    """A store in a local folder."""

    def __init__(self, location: Location) -> None:
        if location.path is None:
            raise ValueError(f"{location}: expected a local location")
        self.location = location
        self._folder = location.path

    def listing(self) -> dict[str, int]:
        """Return the sizes in bytes of all regular files by name, sorted by name."""
        with os_errors(self._folder, "list"), os.scandir(self._folder) as entries:
            return dict(sorted((e.name, e.stat().st_size) for e in entries if e.is_file()))

    def size(self, name: str) -> int:
        """Return the size of a file in bytes; raise MissingFile if it does not exist."""
        with self._opened(name) as descriptor:
            return os.fstat(descriptor).st_size

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes of a file.

        Args:
            name: Name of the file.
            offset: First byte.
            size: Number of bytes.

        Returns:
            The `size` bytes that start at `offset`.

        Raises:
            ShortFile: The file ends before the range does.
        """
        with self._opened(name) as descriptor:
            data = os.pread(descriptor, size, offset)
        return _exactly(data, self.location.shown_file(name), offset, size)

    @contextmanager
    def open_stream(self, name: str) -> Iterator[ByteStream]:
        """Yield a file as a stream from its beginning."""
        with self._opened(name) as descriptor, os.fdopen(descriptor, "rb", closefd=False) as stream:
            yield stream

    def close(self) -> None:
        """Do nothing, because no resource is held."""

    @contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        path = self._folder / check_name(name)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            raise MissingFile(f"{path}: expected a file, found that the file does not exist") from None
        except OSError as error:
            raise StoreFault(
                f"{path}: expected a readable file, found an error ({error.strerror}); check permissions and the disk"
            ) from None
        try:
            with os_errors(path, "read"):
                yield descriptor
        finally:
            os.close(descriptor)


def _is_size(found: object) -> TypeGuard[int]:
    return isinstance(found, int) and not isinstance(found, bool) and 0 <= found < 1 << 63


def _exactly(data: bytes, place: str, offset: int, size: int) -> bytes:
    if len(data) > size:
        raise StoreFault(
            f"{place}: expected {size} bytes of a range, found more, because the server does not serve byte ranges; "
            "use another server, or copy the shards"
        )
    if len(data) < size:
        raise ShortFile(
            f"{place}: expected {size} bytes at byte {offset}, found {len(data)}, because the file ends at byte "
            f"{offset + len(data)}; copy the file again",
            offset + len(data),
        )
    return data


class UrlStore:
    """A store in a folder at a URL, read through fsspec."""

    def __init__(self, location: Location, timeouts: Timeouts) -> None:
        """Load the protocol's package; no connection is made."""
        self.location = location
        self._timeouts = timeouts
        self._filesystem = self._call("open", "", self._connect)

    def listing(self) -> dict[str, int]:
        """Return the sizes in bytes of all files by name, sorted; raise StoreFault for http, which has no listing."""
        if self.location.protocol in _WEB:
            raise StoreFault(
                f"{self.location}: expected a listing of files, found that {self.location.protocol} has no listing; "
                "use dataset.json, which names the files"
            )
        entries = self._call("list", "", lambda: self._filesystem.ls(self._address(None), detail=True))
        return dict(sorted(filter(None, map(self._listed, entries))))

    def _listed(self, entry: Any) -> tuple[str, int] | None:
        """Return the name and size of a file in a listing; None for an entry that is not a file, such as a folder."""
        kind, path, size = (entry.get(key) if isinstance(entry, dict) else None for key in ("type", "name", "size"))
        if isinstance(kind, str) and kind != "file":
            return None
        if kind is None or not isinstance(path, str) or not _is_size(size):
            raise StoreFault(
                f"{self.location}: expected a listing of files with name and size, found {one_line(repr(entry), 120)}; "
                "check the address"
            )
        name = path.rpartition("/")[2]
        return (name, size) if name else None

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes or None if it is unknown; raise MissingFile if the file does not exist."""
        address = self._address(name)
        found = self._call("find", name, lambda: self._filesystem.info(address)["size"])
        if found is not None and not _is_size(found):
            place, size = self.location.shown_file(name), one_line(repr(found), 40)
            raise StoreFault(f"{place}: expected the size of the file in bytes, found {size}; check the address")
        return found

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes of a file.

        Args:
            name: Name of the file.
            offset: First byte.
            size: Number of bytes.

        Returns:
            The `size` bytes that start at `offset`.

        Raises:
            ShortFile: The file ends before the range does.
        """
        if size == 0:
            return b""
        protocol, address = self.location.protocol, self._address(name)
        if protocol in _WEB or protocol in _S3:
            own = self._web_range if protocol in _WEB else self._s3_range
            data = self._call("read", name, lambda: own(name, address, offset, size), size)
        else:
            end = offset + size
            data = self._call("read", name, lambda: self._filesystem.cat_file(address, start=offset, end=end), size)
        return _exactly(data, self.location.shown_file(name), offset, size)

    def _web_range(self, name: str, address: str, offset: int, size: int) -> bytes:
        """Return a range of a file from a web server; receive at most 64 KiB more than requested.

        fsspec's `cat_file` is not used for three reasons. It keeps all received bytes in memory, without a limit. It
        decompresses them. It does not check that the server sends the requested range.
        """
        asyn = importlib.import_module("fsspec.asyn")
        filesystem = self._filesystem

        async def read() -> bytes:
            session = await filesystem.set_session()
            headers = {"Range": f"bytes={offset}-{offset + size - 1}", "Accept-Encoding": "identity"}
            async with session.get(filesystem.encode_url(address), headers=headers) as response:
                response.raise_for_status()
                if response.status == _PARTIAL:
                    self._require_range(name, response.headers.get("Content-Range"), offset)
                return await _at_most(response.content.read, size)

        found: bytes = asyn.sync(filesystem.loop, read)
        return found

    def _s3_range(self, name: str, address: str, offset: int, size: int) -> bytes:
        """Return a range of an S3 object; unlike fsspec's `cat_file`, receive at most 64 KiB more than requested."""
        asyn = importlib.import_module("fsspec.asyn")
        filesystem = self._filesystem
        bucket, key, _ = filesystem.split_path(address)

        async def read() -> bytes:
            wanted = f"bytes={offset}-{offset + size - 1}"
            answer = await filesystem._call_s3("get_object", Bucket=bucket, Key=key, Range=wanted)
            try:
                self._require_range(name, answer.get("ContentRange"), offset)
                return await _at_most(answer["Body"].read, size)
            finally:
                answer["Body"].close()

        found: bytes = asyn.sync(filesystem.loop, read)
        return found

    def _require_range(self, name: str, found: str | None, offset: int) -> None:
        """Refuse an answer whose Content-Range header `found` does not start at `offset`; accept a missing header."""
        if found and not found.startswith(f"bytes {offset}-"):
            raise StoreFault(
                f"{self.location.shown_file(name)}: expected bytes from {offset} on, found that the server sends "
                f"{one_line(found, 80)}; check the address"
            )

    @contextmanager
    def open_stream(self, name: str) -> Iterator[ByteStream]:
        """Yield a file as a stream: in one request for http, in ranges of 8 MiB for s3 and most other protocols."""
        if self.location.protocol in _S3:
            yield _Ranges(self, name)
            return
        address = self._address(name)
        options: dict[str, Any] = {"block_size": _STREAM_BLOCK_BYTES, "cache_type": "readahead"}
        if self.location.protocol in _WEB:
            options = {"block_size": 0, "size": 1}  # a size, which is not used, avoids a request to the server
        stream = self._call("open", name, lambda: self._filesystem.open(address, "rb", **options))
        try:
            yield _Guarded(self, name, stream, self._timeouts)
        finally:
            self._call("close", name, stream.close)

    def close(self) -> None:
        """Release connections; the store cannot be used afterwards."""
        filesystem, self._filesystem = self._filesystem, None
        del filesystem  # its finalizer closes the session

    def _connect(self) -> Any:
        try:
            import fsspec  # noqa: PLC0415 - optional, only for URLs
        except ImportError:
            raise EnvironmentFault(
                f"{self.location}: expected the package fsspec, which URLs need, found that it is not installed; "
                "run pip install 'omniges[remote]'"
            ) from None
        protocol = self.location.protocol
        try:
            kind = fsspec.get_filesystem_class(protocol)
        except ValueError:
            raise UsageFault(
                f"{self.location}: expected a protocol such as s3, gs, hf, http or https, found {protocol}; check "
                "the URL"
            ) from None
        except ImportError as error:
            remedy = _INSTALL.get(protocol, one_line(str(error)))
            raise EnvironmentFault(
                f"{self.location}: expected a package for {protocol}://, found none; {remedy}"
            ) from None
        if hasattr(kind, "__del__"):  # the finalizer of ftp fails if the constructor could not connect
            kind = type(kind.__name__, (kind,), {"__del__": _finalize})
        return kind(skip_instance_cache=True, **self._options())

    def _options(self) -> dict[str, Any]:
        """Return the options of the fsspec file system.

        For http and s3, they limit the times to connect and to wait for data. For s3, they also disable the retries of
        the library.
        """
        if self.location.protocol in _WEB:
            aiohttp = importlib.import_module("aiohttp")
            limits = aiohttp.ClientTimeout(
                total=None, sock_connect=self._timeouts.connect_s, sock_read=self._timeouts.read_s
            )
            # A URL is sent unchanged, because quoting it again may invalidate a signature.
            return {"client_kwargs": {"timeout": limits}, "encoded": self.location.address.isascii()}
        if self.location.protocol in _S3:
            config = {
                "connect_timeout": self._timeouts.connect_s,
                "read_timeout": self._timeouts.read_s,
                "retries": {"total_max_attempts": 1},
            }
            return {"config_kwargs": config, "use_listings_cache": False}
        return {"use_listings_cache": False}

    def _address(self, name: str | None) -> str:
        """Return the address of the file `name`, or of the folder if `name` has the value None.

        The query of a web URL stays at the end of the address.
        """
        tail = "" if name is None else check_name(name)
        if self.location.protocol in _WEB:
            parts = urlsplit(self.location.address)
            return parts._replace(path=f"{parts.path.rstrip('/')}/{tail}").geturl()
        return f"{self.location.address.rstrip('/')}/{tail}" if tail else self.location.address

    def _call(self, action: str, name: str, function: Callable[[], T], size: int = 0) -> T:
        """Call a function of a storage library, and convert any exception into an OmnigesError.

        The library's error may contain credentials, so it is not attached to the new error as its cause. If the call
        takes longer than `Timeouts.limit_s` allows for `size` bytes, the error of `too_slow` is raised.
        """
        outcomes: queue.SimpleQueue[Future[T]] = queue.SimpleQueue()
        # No storage library limits the time of a request whose bytes come one by one. So a thread makes the request.
        # A late thread ends when its connection or the process ends.
        run = threading.Thread(target=lambda: outcomes.put(settled(function)), name="store-call", daemon=True)
        run.start()
        try:
            outcome = outcomes.get(timeout=self._timeouts.limit_s(size))
        except queue.Empty:
            raise self.too_slow(name) from None
        error = outcome.exception()
        if isinstance(error, Exception) and not isinstance(error, OmnigesError):
            fault = self._fault(action, name, error)
            del outcome, error  # a traceback that shows local variables would show the text of the library's error
            raise fault
        return outcome.result()

    def too_slow(self, name: str) -> StoreFault:
        """Return the error for a server that sends data too slowly."""
        return StoreFault(
            f"{self.location.shown_file(name)}: expected at least {self._timeouts.min_bytes_s:g} bytes per "
            "second, found fewer; check the network, or try again later",
            timed_out=True,
        )

    def _fault(self, action: str, name: str, error: Exception) -> DataError | StoreFault:
        place = self.location.shown_file(name)
        secrets = [*secrets_in_url(self.location.address), *secrets_in_environment(os.environ)]
        chain = list(_causes(error))
        root = chain[-1]
        reason = one_line(redact(f"{type(root).__name__}: {root}".removesuffix(": ")[:_LONGEST_TEXT], secrets))
        status = http_status(error)
        # Without a status, a FileNotFoundError counts only as the root cause, because fsspec also raises it for others.
        if status in _GONE or (status is None and isinstance(root, FileNotFoundError)):
            return MissingFile(f"{place}: expected a file, found that the file does not exist ({reason})")
        denied = any(isinstance(e, PermissionError) or "Credential" in type(e).__name__ for e in chain)
        if status in _REFUSED or (status is None and denied):
            way = _where_credentials(self.location.protocol)
            return StoreFault(
                f"{place}: expected access, found that it was refused ({reason}); check the credentials and "
                f"permissions: {way}"
            )
        if status is None and any(isinstance(e, TimeoutError) or "Timeout" in type(e).__name__ for e in chain):
            waited = f"{self._timeouts.connect_s:g} s to connect, {self._timeouts.read_s:g} s to read"
            return StoreFault(
                f"{place}: expected an answer in time ({waited}), found none ({reason}); check the network",
                timed_out=True,
            )
        if status is not None and status < 500 and status not in _BUSY:
            return StoreFault(
                f"{place}: cannot {action}, because the server answers {status} ({reason}); check the address"
            )
        known = isinstance(root, (ValueError, TypeError, AttributeError, NotImplementedError, LookupError))
        hint = "check the address" if known else "check the network, or try again later"
        return StoreFault(f"{place}: cannot {action} ({reason}); {hint}", transient=not known or status is not None)


Store = LocalStore | UrlStore
"""A folder whose files can be read. Only one thread may use a store at a time."""


def _finalize(filesystem: Any) -> None:
    """Call the finalizer of a file system's class; ignore the AttributeError of an object whose constructor failed."""
    with suppress(AttributeError):
        super(type(filesystem), filesystem).__del__()


async def _at_most(read: Callable[[int], Awaitable[bytes]], size: int) -> bytes:
    """Return a server's answer, read in pieces of 64 KiB; stop reading when more than `size` bytes have been read."""
    data = bytearray()
    while len(data) <= size and (piece := await read(_PIECE_BYTES)):
        data += piece
    return bytes(data)


class _Ranges:
    """A stream that reads a file in ranges of 8 MiB, each bounded in size and time."""

    def __init__(self, store: UrlStore, name: str) -> None:
        """Request the file's size; raise MissingFile if the file does not exist."""
        self._store, self._name = store, name
        self._size, self._next, self._block = store.size(name) or 0, 0, memoryview(b"")

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, at most `size`; return b"" at the end of the file."""
        if not self._block and self._next < self._size:
            length = min(_STREAM_BLOCK_BYTES, self._size - self._next)
            self._block = memoryview(self._store.read_range(self._name, self._next, length))
            self._next += length
        piece, self._block = self._block[:size], self._block[size:]
        return bytes(piece)


class _Guarded:
    """Wrapper of a storage library's stream, which converts every error into an OmnigesError.

    A StoreFault is raised if the stream is slower than `Timeouts` allows.
    """

    def __init__(self, store: UrlStore, name: str, stream: Any, timeouts: Timeouts) -> None:
        self._store, self._name, self._stream, self._timeouts = store, name, stream, timeouts
        self._received, self._waited_s = 0, 0.0

    def read(self, size: int, /) -> bytes:
        """Return the next bytes, at most `size`; return b"" at the end of the file."""
        began = time.monotonic()
        block = max(size, _STREAM_BLOCK_BYTES)  # number of bytes that a library may fetch at once
        data = bytes(self._store._call("read", self._name, lambda: self._stream.read(size), block))
        if len(data) > size:
            raise StoreFault(
                f"{self._store.location.shown_file(self._name)}: expected at most {size} bytes at once, found "
                f"{len(data)}; update the package for {self._store.location.protocol}://"
            )
        self._waited_s += time.monotonic() - began
        self._received += len(data)
        if data and self._waited_s > self._timeouts.limit_s(self._received):
            raise self._store.too_slow(self._name)
        return data


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status of a storage library's error or of its causes; return None if no status is found."""
    return next((status for status in map(_status, _causes(error)) if status is not None), None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, then its causes from the outermost to the innermost."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of an error of aiohttp, botocore, requests, httpx or gcsfs; None for other errors."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        value = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif type(error).__name__ == "HttpError":
        value = getattr(error, "code", None)  # gcsfs; aiohttp's `code` is not a status
    else:
        value = getattr(error, "status", None) or getattr(response, "status_code", None)
    return int(value) if isinstance(value, (int, str)) and re.fullmatch(r"[1-5]\d\d", str(value)) else None
