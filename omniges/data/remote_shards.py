"""Read remote shards through a local cache, which has a size limit and is shared by processes.

Each shard is checked after its download. It is downloaded again only if the cache has evicted it, or if its copy in the
cache is damaged. In this module, the small files of a set are dataset.json, the manifest, the statistics, the tokenizer
and, if it exists, latents.json.

The name of a set's folder in the cache is the beginning of the sha256 of its dataset.json. So the same set from another
address, or with other credentials, uses the same folder. The cache does not contain addresses. dataset.json itself is
downloaded each time a location is opened, so that changes are noticed.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from omniges.errors import DataError, EnvironmentFault, OmnigesError, UsageFault
from omniges.shards.dataset import sealed_correctly
from omniges.shards.document import read_dataset
from omniges.shards.reader import LocalShards
from omniges.shards.schema import DATASET_FILE, LATENTS_FILE, MANIFEST_FILE, SPLITS, STATS_FILE, TOKENIZER_FILE
from omniges.storage.atomic import PendingFile
from omniges.storage.cache import (
    CacheCounts,
    CachedFile,
    CacheFolder,
    CacheFull,
    FetchAhead,
    Pin,
    Retries,
    Wait,
    WrongContent,
    copy_checked,
    with_retries,
)
from omniges.storage.files import parse_json, read_file, sha256_hex
from omniges.storage.redact import one_line
from omniges.storage.remote import Location, MissingFile, Store, Timeouts, open_store, parse_location

_PIECE_BYTES: Final = 1 << 20
_MAX_DATASET_BYTES: Final = 256 << 20
SMALL_FILES: Final = (MANIFEST_FILE, STATS_FILE, TOKENIZER_FILE)  # and latents.json if it exists


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """Folder, size and time limits of the cache."""

    folder: Path
    capacity_bytes: int
    ahead: int = 4  # number of shards to download before they are needed
    threads: int = 2  # threads for downloads ahead
    recheck: bool = False  # check a cached shard's sha256 again when a process first opens it
    space_wait_s: float = 1.0  # seconds to wait for another process to release a file if the cache is full
    retries: Retries = field(default_factory=Retries)
    timeouts: Timeouts = field(default_factory=Timeouts)

    def __post_init__(self) -> None:
        """Raise UsageFault if a value is out of range."""
        if self.capacity_bytes < 1 or self.ahead < 0 or self.threads < 0 or self.space_wait_s < 0:
            raise UsageFault(
                f"cache settings: expected a cache of at least 1 byte and no negative numbers, found {self}"
            )

    def as_json(self) -> dict[str, Any]:
        """Return the settings as JSON."""
        return asdict(self) | {"folder": str(self.folder.absolute())}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> CacheSettings:
        """Return the settings from a result of `as_json`."""
        nested = {"retries": Retries(**document["retries"]), "timeouts": Timeouts(**document["timeouts"])}
        return cls(**dict(document) | nested | {"folder": Path(document["folder"])})


class RemoteShards:
    """A remote shard set: `folder` contains the small files, and `open` opens shards. Threads may share an instance.

    `open_location` creates an instance, and `open_specification` creates one in another process. A forked process
    must not use the instances of its parent process.
    """

    def __init__(
        self, location: Location, settings: CacheSettings, cache: CacheFolder, group: str, store: Store | None = None
    ) -> None:
        """Read dataset.json from the cache.

        Args:
            location: Location of the set.
            settings: Settings of the cache.
            cache: The cache, which contains dataset.json.
            group: Name of the set's folder in the cache.
            store: An open store of the location, for this thread; None: the first download opens a store.

        Raises:
            DataError: dataset.json in the cache is not the file that was downloaded (`WrongContent`), or it does not
                follow the contract.
        """
        self.location = location
        self.folder = cache.folder(group)
        self._settings = settings
        self._cache = cache
        document = read_dataset(self.folder)
        data = read_file(self.folder / DATASET_FILE, _MAX_DATASET_BYTES, self.folder)
        if sha256_hex(data)[: len(group)] != group:
            raise WrongContent(
                f"{self.folder / DATASET_FILE}: expected the document that was downloaded, found another document; "
                "remove this folder of the cache"
            )
        self._files = {DATASET_FILE: CachedFile(group, DATASET_FILE, len(data), sha256_hex(data))}
        for name, entry in [*document["files"].items(), *document["shards"].items()]:
            self._files[name] = CachedFile(group, name, entry["bytes"], entry["sha256"])
        for name in SMALL_FILES:
            if name not in self._files:
                raise DataError(
                    f"{self.folder / DATASET_FILE}: expected an entry for {name}, found none; make the shards again"
                )
        self._kept: list[Pin] = []
        self._stores = threading.local()
        if store is not None:
            self._stores.store = store
        self._rechecked: set[str] = set()
        self._ahead = FetchAhead(lambda name, wait: self._acquire(name, 0.0, wait), settings.ahead, settings.threads)

    @property
    def counts(self) -> CacheCounts:
        """Counts of cache hits, downloads and evictions by this instance."""
        return self._cache.counts

    def open(self, shard: str) -> int:
        """Open a complete shard; download it first if the cache does not contain it.

        The shard is not evicted while the descriptor, or a memory map made from it, is open in any process.

        Args:
            shard: Name of the shard.

        Returns:
            A file descriptor, which the caller closes.

        Raises:
            DataError: The shard is missing, or does not have the checksum that dataset.json states.
            EnvironmentFault: The shard cannot be downloaded, or shards in use fill the cache (`CacheFull`).
        """
        pin = self._ahead.take(shard)
        if pin is None:
            try:
                pin = self._acquire(shard, 0.0, time.sleep)
            except CacheFull:
                self._ahead.drop()  # the shard that is needed now has priority
                pin = self._acquire(shard, self._settings.space_wait_s, time.sleep)
        return pin.descriptor

    def prefetch(self, shards: Iterable[str]) -> None:
        """Download shards in the background, so that `open` need not wait for them.

        At most `CacheSettings.ahead` shards are downloaded before they are needed. A new call replaces the list of
        shards. If the cache is full, the background downloads stop, and the next call of `prefetch` starts them again.
        If the download of a shard fails, `open` raises the error when this shard is opened.

        Args:
            shards: Names of the shards, in the order of their use.
        """
        self._ahead.hint(shards)

    def describe(self, shard: str) -> str:
        """Return the shard's URL without credentials."""
        return self.location.shown_file(shard)

    def doubt(self, shard: str) -> None:
        """Mark the cached copy of a shard as unchecked, so that the next `open` compares its sha256 again."""
        self._cache.doubt(self._files[shard])

    def specification(self) -> dict[str, Any]:
        """Return the JSON document from which another process opens this set with `open_specification`.

        The document contains the address, including any credentials in the URL. Send it only through a pipe. Never
        write it to a file, a log, a command line or a saved state.

        Returns:
            The JSON document.
        """
        return {
            "kind": "remote",
            "address": self.location.address,
            "group": self.folder.name,
            "settings": self._settings.as_json(),
        }

    def close(self) -> None:
        """Stop downloads, and allow the cache to evict the small files."""
        self._ahead.close()
        while self._kept:
            self._kept.pop().close()

    def __enter__(self) -> RemoteShards:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"RemoteShards({self.location}, cache {self._settings.folder})"

    def keep_small_files(self) -> None:
        """Download the small files, and keep them in the cache until `close`; raise the same errors as `open`."""
        for name in self._small_files():
            self._kept.append(self._acquire(name, self._settings.space_wait_s, time.sleep))

    def _small_files(self) -> list[str]:
        return [DATASET_FILE, *SMALL_FILES, *(name for name in (LATENTS_FILE,) if name in self._files)]

    def min_bytes(self, splits: Collection[str]) -> tuple[int, str]:
        """Return the smallest cache size in bytes for reading the splits, and the name of the largest shard in them.

        This cache size is the total size of the small files plus the size of the largest shard.
        """
        shards = [(file.size, name) for name, file in self._files.items() if name.partition("-")[0] in splits]
        small = sum(self._files[name].size for name in self._small_files())
        size, name = max(shards, default=(0, ""))
        return small + size, name

    def _acquire(self, name: str, space_wait_s: float, wait: Wait) -> Pin:
        """Pin a file of the set, so that the cache does not evict it until the `Pin` is closed; download it if needed.

        `wait` is called with the seconds to wait between retries, and with 0 before each piece of a download. It may
        raise an exception to cancel the download.
        """
        file = self._files.get(name)
        if file is None:
            raise DataError(
                f"{self.location}: expected a file that dataset.json lists, found {one_line(name, 80)!r}; check the "
                "name"
            )

        def pause(seconds: float) -> None:
            self._cache.count(failed_tries=1)
            wait(seconds)

        def fill(path: Path) -> PendingFile:
            return with_retries(
                lambda: copy_checked(self._store(), file, path, lambda: wait(0.0)),
                self._settings.retries,
                salt=f"{name}:{os.getpid()}",
                wait=pause,
            )

        # Anyone who can write to the cache can change its records of checked files. So each process compares the
        # sha256 of the small files. They contain the sha256 of every member, which readers compare before first use.
        recheck = (self._settings.recheck or name in self._small_files()) and name not in self._rechecked
        pin = self._cache.acquire(file, fill, space_wait_s, recheck)
        self._rechecked.add(name)
        return pin

    def _store(self) -> Store:
        """Return the open store of this thread; open it at the first call."""
        if not hasattr(self._stores, "store"):
            self._stores.store = open_store(self.location, self._settings.timeouts)
        store: Store = self._stores.store
        return store


def open_location(
    location: Location, settings: CacheSettings | None, splits: Collection[str] = SPLITS
) -> LocalShards | RemoteShards:
    """Open the shards of a local folder, or of a remote folder through the cache.

    The small files of a remote folder are downloaded immediately. A shard is downloaded when it is needed.

    Args:
        location: Location of the folder, parsed from a path or URL.
        settings: Settings of the cache, required for a remote folder.
        splits: Splits whose shards will be opened. The cache must have space for the largest of these shards.

    Returns:
        An object that opens the shards by name.

    Raises:
        UsageFault: A URL is given without a cache, or the cache is too small for the largest shard.
        DataError: The set is damaged.
        EnvironmentFault: The set cannot be downloaded.
    """
    if location.path is not None:
        return LocalShards(location.path)
    if settings is None:
        raise UsageFault(
            f"{location}: expected a cache folder and its size for remote shards, found no settings of a cache; give "
            "a folder and a size"
        )
    store = open_store(location, settings.timeouts)
    data = with_retries(lambda: dataset_bytes(store), settings.retries, salt=f"{DATASET_FILE}:{os.getpid()}")
    digest = sha256_hex(data)
    dataset = CachedFile(digest[:32], DATASET_FILE, len(data), digest)
    if len(data) > settings.capacity_bytes:
        raise _too_small(settings, len(data), DATASET_FILE)
    cache = CacheFolder(settings.folder, settings.capacity_bytes)

    def fill(path: Path) -> PendingFile:
        with contextlib.ExitStack() as undo:
            pending = PendingFile(path)
            undo.callback(pending.abort)
            pending.write(data)
            undo.pop_all()
        return pending

    with contextlib.closing(cache.acquire(dataset, fill, settings.space_wait_s, recheck=True)):
        try:
            shards = RemoteShards(location, settings, cache, dataset.group, store)
        except DataError as error:
            raise DataError(f"{location}: {error}") from None
        try:
            minimum, largest = shards.min_bytes(splits)
            if minimum > settings.capacity_bytes:
                raise _too_small(settings, minimum, largest)
            shards.keep_small_files()
        except OmnigesError:
            shards.close()
            raise
    return shards


def open_specification(specification: Mapping[str, Any]) -> RemoteShards:
    """Open the shards that `RemoteShards.specification` describes; nothing is downloaded yet."""
    settings = CacheSettings.from_json(specification["settings"])
    cache = CacheFolder(settings.folder, settings.capacity_bytes)
    return RemoteShards(parse_location(specification["address"]), settings, cache, specification["group"])


def _too_small(settings: CacheSettings, minimum: int, name: str) -> UsageFault:
    return UsageFault(
        f"{settings.folder}: expected a cache of at least {minimum} bytes (size of {name} and of the files beside "
        f"the shards), found a limit of {settings.capacity_bytes}; raise the size of the cache, best to the size of "
        "all shards"
    )


def dataset_bytes(store: Store) -> bytes:
    """Download dataset.json, and compare its content with the checksum in it; no other field is checked.

    Args:
        store: Open store of the folder that contains the file.

    Returns:
        Bytes of the file.

    Raises:
        EnvironmentFault: The file is too large or cannot be downloaded.
        DataError: The file is missing, or is not JSON with a valid checksum.
    """
    place = store.location.shown_file(DATASET_FILE)
    data = bytearray()
    try:
        with store.open_stream(DATASET_FILE) as stream:
            while piece := stream.read(_PIECE_BYTES):
                data += piece
                if len(data) > _MAX_DATASET_BYTES:
                    raise EnvironmentFault(
                        f"{place}: expected at most {_MAX_DATASET_BYTES} bytes, found more; check the address"
                    )
        document = parse_json(bytes(data))
    except MissingFile as error:
        raise MissingFile(
            f"{error}, so the set of shards is not complete; check the address, or upload dataset.json"
        ) from None
    except ValueError as error:
        raise WrongContent(
            f"{place}: expected a JSON document, found {len(data)} bytes of something else ({error}); check the address"
        ) from None
    if not isinstance(document, dict) or not sealed_correctly(document):
        raise WrongContent(
            f"{place}: expected content that fits its checksum, found other content, so it was edited or damaged; "
            "copy the file again"
        )
    return bytes(data)
