"""A webdataset pipeline over shards: samples in sequence, from folders, URLs, pipes and standard input.

webdataset lists the shards, splits them between nodes and workers, shuffles, runs pipes and applies further stages.
This module replaces its `tar_file_iterator`. That function stops without an error at a damaged header or a truncated
file, and it splits a sample if members of other samples are between its members. The replacement requires members in
the contract's order, and its errors name the byte offset. Only npy without pickled objects, json, txt and flac are
decoded.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from omniges import arguments
from omniges.data.remote_shards import dataset_bytes
from omniges.data.samples import ShardSet, open_shards
from omniges.errors import DataError, EnvironmentFault, RecordingFault, UsageFault, needs
from omniges.formats.audio import decode_flac
from omniges.shards.document import check_document
from omniges.shards.manifest import ManifestRow
from omniges.shards.reader import check_digest, checked_rows
from omniges.shards.schema import (
    CONTRACTS,
    DATASET_FILE,
    KNOWN_MEMBERS,
    LATENT_MEMBER,
    MANIFEST_FILE,
    MAX_KEY_BYTES,
    SPLITS,
    json_member,
    member_order,
    samples_of,
    spans_of,
    words_of,
)
from omniges.shards.tar import BLOCK_BYTES, END_OF_ARCHIVE, member_header, read_npy
from omniges.storage.files import parse_json, sha256_hex
from omniges.storage.redact import one_line, redact, secrets_in_url
from omniges.storage.remote import ByteStream, check_name, open_store, parse_location

if TYPE_CHECKING:
    import webdataset as wds

_HEADER: Final = re.compile(  # finds name and size; `member_header` defines the other bytes
    rb"(?=(?P<key>[A-Za-z0-9_-]{1,%d})\.(?P<member>%b)\0)(?s:.{124})(?P<size>[0-7]{11})\0"
    % (MAX_KEY_BYTES, "|".join([*map(re.escape, KNOWN_MEMBERS), LATENT_MEMBER.pattern]).encode())
)
_ZERO_BLOCK: Final = bytes(BLOCK_BYTES)
_READ_BYTES: Final = 1 << 20
_VERIFY: Final = "run omniges verify-shards on the original"
_SHARDS_SHUFFLED: Final = 1_000_000  # shuffle buffer, larger than any set


def webdataset(
    source: str | Path | Iterable[str | Path],
    *,
    split: str | None = None,
    shuffle: int = 0,
    seed: int | None = None,
    decode: bool = True,
    manifest: str | Path | ShardSet | None = None,
) -> wds.WebDataset:
    """Return a standard ``webdataset.WebDataset`` over shards; each shard is read once, from first to last byte.

    ::

        for sample in webdataset("shards", split="train", shuffle=100):
            sample["__key__"], sample["gesture.npy"].shape, sample["words.txt"], sample["json"]["labels"]

    A sample is a dictionary with ``__key__``, ``__url__`` and its members, such as ``gesture.npy``. Each shard is read
    by one worker of one node, so do not give the ``DataLoader`` a sampler. The number of shards must be at least the
    number of processes, because a process without a shard yields nothing. Call ``.map``, ``.to_tuple``, ``.batched``
    and other methods of webdataset on the result to add further stages.

    Args:
        source: A folder of shards, as a path or URL, or one or several tar files. A tar file is a path, a URL of any
            protocol of fsspec (s3, gs, hf, http), ``-`` for standard input, or ``pipe:COMMAND``. A shell runs the
            command, so never put untrusted text into it. Braces such as ``https://host/train-{000000..000007}.tar``
            name several files.
        split: Use only shards whose names begin with this split; None uses all.
        shuffle: Number of samples in the shuffle buffer. Above 0, the order of shards is shuffled too; 0 keeps the
            order.
        seed: Seed of both shuffles; None: a random seed. The order changes in each epoch. With worker processes, this
            requires ``persistent_workers=True`` in the ``DataLoader``.
        decode: Decode members: ``.npy`` to arrays, ``json`` and the JSON of ``words.txt`` and ``sem.txt`` to
            dictionaries and lists, ``flac`` to float32 at 16 kHz. Other members stay bytes. False: all stay bytes.
        manifest: The shard set to which the tar files belong, as a folder or open `ShardSet`. Offset, size and sha256
            of every member are compared with the manifest of this set, and no sample of a shard may be missing. None:
            the manifest of `source` if it is a folder; otherwise nothing is compared.

    Returns:
        The ``webdataset.WebDataset``, which is also a torch ``IterableDataset``.

    Raises:
        UsageFault: The folder or the split does not exist.
        EnvironmentFault: webdataset is not installed. While iterating: a shard cannot be opened or its command fails.
        DataError: While iterating: a shard is truncated, a header is damaged, or a member is missing, repeated, out of
            order or different from the manifest. The error names shard, key, member and byte. Nothing is skipped.
    """
    with needs("train", "webdataset"):
        import webdataset as wds  # noqa: PLC0415 - it imports torch
    shuffle, decode = arguments.integer("shuffle", shuffle, 0), arguments.flag("decode", decode)
    seed = None if seed is None else arguments.integer("seed", seed)
    addresses, found = _addresses(source, split, wds.shardlists.expand_urls)
    rows = found if manifest is None else _rows_of(manifest)
    number = random.randrange(1 << 31) if seed is None else seed  # noqa: S311 - an order, not a secret
    pipeline = wds.WebDataset(
        addresses,
        shardshuffle=_SHARDS_SHUFFLED if shuffle else False,
        detshuffle=True,  # by seed and epoch
        nodesplitter=wds.split_by_node,
        workersplitter=wds.split_by_worker,
        empty_check=False,  # a worker may have no shard
        seed=number,
    )
    # The last stages of webdataset open, read and group. One stage of this module replaces them.
    opener = next(n for n, stage in enumerate(pipeline.pipeline) if isinstance(stage, wds.cache.StreamingOpen))
    del pipeline.pipeline[opener:]
    pipeline.append(partial(_samples, plans=None if rows is None else _plans(rows)))
    if shuffle:
        pipeline.append(wds.filters.detshuffle(shuffle, shuffle, number))
    return pipeline.map(_decoded) if decode else pipeline


def _addresses(
    source: str | Path | Iterable[str | Path], split: str | None, expand: Callable[[str], list[str]]
) -> tuple[list[str], Sequence[ManifestRow] | None]:
    """Return the addresses of the shards and, if the source is a folder, the rows of its manifest; otherwise None."""
    if split is not None:
        arguments.choice("split", split, SPLITS)
    several = [source] if isinstance(source, (str, Path)) else source
    several = list(several) if isinstance(several, Iterable) else []
    if not several or not all(isinstance(one, (str, Path)) for one in several):
        raise arguments.refuse("source", "a path, a URL or several", source)
    rows: Sequence[ManifestRow] | None
    if isinstance(source, (str, Path)) and os.path.isdir(source):
        shards = open_shards(source)
        addresses, rows = [str(shards.folder / name) for name in shards.reader.dataset["shards"]], shards.rows
    elif isinstance(source, str) and "://" in source and ".tar" not in source and not source.startswith("pipe:"):
        addresses, rows = _remote_folder(source)
    else:
        addresses, rows = [], None
        for one in several:
            # Commands and file names may contain braces.
            plain = isinstance(one, Path) or one.startswith("pipe:")
            addresses += [str(one)] if plain else expand(str(one))
        local = (one for one in addresses if "://" not in one and not one.startswith(("-", "pipe:")))
        if absent := next((one for one in local if not os.path.exists(one)), None):
            raise UsageFault(
                f"{_shown(absent)}: expected a folder of shards, a tar shard or a URL, found that the path does not "
                "exist; check the path"
            )
        if folder := next(filter(os.path.isdir, addresses), None):
            raise UsageFault(f"{_shown(folder)}: expected a tar shard in a list, found a folder; give the folder alone")
    if split is not None:
        addresses = [one for one in addresses if re.search(rf"(?:^|[/\s]){split}-[0-9]{{6}}\.tar", one)]
    if not addresses:
        raise UsageFault(
            f"{_shown(str(source))}: expected shards{f' of split {split!r}' if split else ''}, found none; "
            "check the path and the split"
        )
    return addresses, rows


def _remote_folder(address: str) -> tuple[list[str], Sequence[ManifestRow]]:
    """Return the addresses of the shards of a folder at a URL, and the rows of its manifest."""
    location = parse_location(address)
    with contextlib.closing(open_store(location)) as store:
        dataset = check_document(parse_json(dataset_bytes(store)), location.shown_file(DATASET_FILE))
        place = location.shown_file(MANIFEST_FILE)
        listed = dataset["files"].get(MANIFEST_FILE)
        if listed is None:
            raise DataError(
                f"{location.shown_file(DATASET_FILE)}: expected an entry for {MANIFEST_FILE}, found none; {_VERIFY}"
            )
        with store.open_stream(MANIFEST_FILE) as stream:
            data = _at_most(stream, listed["bytes"], place)
    check_digest(data, bytes.fromhex(listed["sha256"]), place)
    rows = checked_rows(data, dataset, place)
    folder, question, query = location.address.partition("?")
    return [f"{folder.rstrip('/')}/{check_name(name)}{question}{query}" for name in dataset["shards"]], rows


def _at_most(stream: ByteStream, size: int, place: str) -> bytes:
    """Return all bytes of a stream; raise DataError if it has more than `size`."""
    data = bytearray()
    while piece := stream.read(_READ_BYTES):
        data += piece
        if len(data) > size:
            raise DataError(f"{place}: expected {size} bytes as in dataset.json, found more; {_VERIFY}")
    return bytes(data)


def _shown(address: str) -> str:
    """Return an address for error messages, without credentials and in one line."""
    return one_line(redact(address, secrets_in_url(address)))


def _rows_of(manifest: str | Path | ShardSet) -> Sequence[ManifestRow]:
    return (manifest if isinstance(manifest, ShardSet) else open_shards(manifest)).reader.rows  # without filters


def _plans(rows: Sequence[ManifestRow]) -> dict[str, list[ManifestRow]]:
    """Group manifest rows by shard.

    Return a dictionary that maps the key of the first sample in each shard to the rows of all samples in this shard.
    The rows are in the order in which the samples are stored.
    """
    by_shard: dict[str, list[ManifestRow]] = {}
    for row in sorted(rows, key=lambda row: row.members["json"].offset):
        by_shard.setdefault(row.shard, []).append(row)
    return {own[0].key: own for own in by_shard.values()}


def _samples(
    shards: Iterable[Mapping[str, str]], plans: Mapping[str, Sequence[ManifestRow]] | None
) -> Iterator[dict[str, Any]]:
    """Yield the samples of all shards as dictionaries, with each member as bytes; refuse a key that occurs twice."""
    seen: dict[str, str] = {}
    for shard in shards:
        address = shard["url"]
        shown = _shown(address)
        with _opened(address, shown) as stream:
            for key, members in _grouped(_Walk(stream, shown), plans):
                if key in seen:
                    raise DataError(f"{shown}: expected each key once, found {key} also in {seen[key]}; {_VERIFY}")
                seen[key] = shown
                yield {"__key__": key, "__url__": shown, **{name: member.data for name, member in members.items()}}


@dataclass(frozen=True, slots=True)
class _Member:
    name: str  # without the key
    offset: int  # of the data
    data: bytes


@contextlib.contextmanager
def _opened(address: str, shown: str) -> Iterator[ByteStream]:
    """Open an address and yield its byte stream.

    If the command of a pipe fails, the shard that it writes may be truncated. The error then reports the exit status of
    the command and not the truncation.
    """
    if address == "-":
        yield sys.stdin.buffer
        return
    if address.startswith("pipe:"):
        with _Command(address, shown) as command:
            yield command
        return
    folder, _, name = address.partition("?")[0].rpartition("/")
    query = address.partition("?")[2]
    location = parse_location((folder or ("/" if address.startswith("/") else ".")) + (f"?{query}" if query else ""))
    with contextlib.closing(open_store(location)) as store, store.open_stream(name) as plain:
        yield plain


class _Command:
    """The output of a command that webdataset's `gopen` runs; a non-zero exit status is an error."""

    def __init__(self, address: str, shown: str) -> None:
        with needs("train", shown):
            import webdataset  # noqa: PLC0415 - it imports torch, which files and URLs do not need
        self._shown = shown
        self._pipe = webdataset.gopen(address, "rb")

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; empty at the end."""
        data: bytes = self._checked(lambda: self._pipe.read(size))
        return data

    def __enter__(self) -> _Command:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None or issubclass(kind, DataError):
            # A shard may be truncated because its command failed, which is the error to report.
            self._checked(self._pipe.close)
            return
        self._pipe.proc.terminate()  # its further output is not needed, so its exit status is ignored
        with contextlib.suppress(OSError):
            self._pipe.close()

    def _checked(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except OSError:
            status = self._pipe.status
        raise EnvironmentFault(
            f"{self._shown}: expected the command to succeed, found exit status {status}; run it alone to see why"
        )


class _Walk:
    """A reader of the members of one shard in order."""

    def __init__(self, stream: ByteStream, shown: str) -> None:
        self._stream = stream
        self.shown = shown
        self.position = 0

    def members(self) -> Iterator[tuple[str, _Member]]:
        """Yield the sample key and the content of each member, up to the two zero blocks that end the shard."""
        while True:
            start = self.position
            block = self._exactly(BLOCK_BYTES, "a header")
            if block == _ZERO_BLOCK:
                break
            match = _HEADER.match(block)
            parts = match.group("key", "member", "size") if match else (b"", b"", b"0")
            key, name, size = parts[0].decode(), parts[1].decode(), int(parts[2], 8)
            if match is None or block != member_header(f"{key}.{name}", size):
                raise self.fault(start, f"expected the header of a member, found {block[:32]!r}…")
            offset = self.position
            data = self._exactly(size, f"{key}.{name}")
            if self._exactly(-size % BLOCK_BYTES, f"the padding of {key}.{name}").strip(b"\0"):
                raise self.fault(offset + size, f"expected zeros after {key}.{name}, found other bytes")
            yield key, _Member(name, offset, data)
        rest = self._exactly(len(END_OF_ARCHIVE) - BLOCK_BYTES, "the second zero block")
        if rest.strip(b"\0") or self._stream.read(1):
            raise self.fault(start, "expected two zero blocks and then the end of the shard, found more bytes")

    def fault(self, position: int, what: str) -> DataError:
        """Return an error that names a byte of the shard.

        Args:
            position: Offset of the byte.
            what: Text that says what was expected and what was found.

        Returns:
            The error.
        """
        return DataError(f"{self.shown}: byte {position}: {what}; {_VERIFY}")

    def _exactly(self, size: int, what: str) -> bytes:
        pieces: list[bytes] = []
        left = size
        while left:
            piece = self._stream.read(min(left, _READ_BYTES))
            if not piece:
                raise self.fault(
                    self.position, f"expected {left} more bytes for {what}, found the end, so the shard is truncated"
                )
            pieces.append(piece)
            left -= len(piece)
            self.position += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _grouped(
    walk: _Walk, plans: Mapping[str, Sequence[ManifestRow]] | None
) -> Iterator[tuple[str, dict[str, _Member]]]:
    """Yield the key and members of each complete sample of a shard; if `plans` is given, compare them with it.

    `plans` contains the manifest rows of each shard, as `_plans` returns them.
    """
    plan: Iterator[ManifestRow] | None = None
    for key, members in _complete_samples(walk):
        if plans is not None:
            if plan is None:
                if key not in plans:
                    raise walk.fault(0, f"expected the first sample of a shard of the manifest, found {key}")
                plan = iter(plans[key])
            _compare_with_manifest(walk, key, members, next(plan, None))
        yield key, members
    if plans is not None and plan is None:
        raise walk.fault(0, "expected the first sample of a shard of the manifest, found an empty shard")
    left = next(plan, None) if plan else None
    if left is not None:
        raise walk.fault(walk.position, f"expected {left.key} as in the manifest, found the end of the shard")


def _complete_samples(walk: _Walk) -> Iterator[tuple[str, dict[str, _Member]]]:
    """Yield the key and members of each sample; refuse missing members, and members not in the contract's order."""
    # Key and members of the first sample. In version 2, all samples of a set have the same members.
    first: tuple[str, tuple[str, ...]] | None = None
    for key, run in groupby(walk.members(), key=itemgetter(0)):
        members: dict[str, _Member] = {}
        before = ""
        for _, member in run:
            if before and member_order(member.name) <= member_order(before):
                at = member.offset - BLOCK_BYTES
                raise walk.fault(
                    at,
                    f"expected each member of a sample once and in order, found {key}.{member.name} after "
                    f"{key}.{before}",
                )
            members[member.name] = member
            before = member.name
        contract = CONTRACTS[1 if CONTRACTS[1].words in members else 2]
        last = members[before].offset
        if missing := [name for name in contract.members if name not in members]:
            raise walk.fault(
                last, f"expected {key}.{missing[0]} together with the other members of its sample, found none there"
            )
        if contract.version > 1:
            first = first or (key, tuple(members))
            if differing := sorted(set(first[1]) ^ members.keys()):
                raise walk.fault(
                    last,
                    f"{key}: expected the members of {first[0]}, found that only one of the two has {differing[0]}",
                )
        yield key, members


def _compare_with_manifest(walk: _Walk, key: str, members: Mapping[str, _Member], row: ManifestRow | None) -> None:
    first = members["json"].offset - BLOCK_BYTES
    if row is None or row.key != key:
        wanted = "the end of the shard" if row is None else row.key
        raise walk.fault(first, f"expected {wanted} as in the manifest, found {key}")
    if extra := sorted(row.members.keys() ^ members.keys()):
        raise walk.fault(
            first, f"{key}: expected the members of the manifest, found a difference in {', '.join(extra)}"
        )
    for name, place in row.members.items():
        member = members[name]
        if (member.offset, len(member.data)) != (place.offset, place.size):
            found = f"{len(member.data)} bytes at byte {member.offset}"
            raise walk.fault(first, f"{key}.{name}: expected {place.size} bytes at byte {place.offset}, found {found}")
        digest = sha256_hex(member.data)
        if digest != place.sha256:
            raise walk.fault(member.offset, f"{key}.{name}: expected sha256 {place.sha256}, found {digest}")


def _decoded(sample: Mapping[str, Any]) -> dict[str, Any]:
    """Decode the members of a sample; raise DataError if a member does not have the format that its ending names."""
    found = dict(sample)
    for name, data in sample.items():
        if not name.startswith("__"):
            try:
                found[name] = _value(name, data, found.get("json"))
            except (ValueError, RecordingFault) as error:
                place = f"{sample['__url__']}: {sample['__key__']}.{name}"
                raise DataError(f"{place}: {one_line(str(error), 200)}; {_VERIFY}") from None
    return found


def _value(name: str, data: bytes, metadata: object) -> Any:
    """Decode a member; raise ValueError or RecordingFault if it does not have the format that its ending names."""
    ending = name.rpartition(".")[2]
    if ending == "npy":
        return read_npy(data).copy()
    if name in {contract.words for contract in CONTRACTS.values()}:
        return words_of(data)
    if name in {contract.semantic for contract in CONTRACTS.values()}:
        return spans_of(data)
    if ending in {"json", "txt"}:
        return json_member(data)
    if ending == "flac":
        pcm, bits = decode_flac(data, samples_of(metadata))
        return pcm.astype(np.float32) * np.float32(2.0 ** (1 - bits))
    return data
