"""Plain streaming: samples one after the other from shards that cannot be sought in, such as a pipe.

webdataset's `gopen` opens pipes and standard input. The tar is walked here, header by header, and not by its
`tar_file_iterator`: that ends without an error where a header is damaged or the file is cut between members, and its
grouping makes two halves of a sample whose members are interleaved with another's. Here the order of members is the
contract's, so anything else is an error, with the byte where it was seen.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError, EnvironmentFault
from omniges.features.audio import MEL_BANDS
from omniges.features.gesture import BETAS, LAYOUT
from omniges.features.timebase import mel_frames_for
from omniges.shards.manifest import ManifestRow
from omniges.shards.schema import LATENT_MEMBER, MAX_KEY_BYTES, MEMBERS, OPTIONAL_MEMBERS, member_order
from omniges.shards.tar import BLOCK_BYTES, END_OF_ARCHIVE, member_header
from omniges.storage.canonical_json import sha256_hex
from omniges.storage.redact import one_line, redact, secrets_in_url
from omniges.storage.remote import ByteStream, open_store, parse_location

_MEMBERS: Final = (*(re.escape(name) for name in (*MEMBERS, *OPTIONAL_MEMBERS)), LATENT_MEMBER.pattern)
_HEADER: Final = re.compile(  # where name and size stand; `member_header` says what the other bytes have to be
    rb"(?=(?P<key>[A-Za-z0-9_-]{1,%d})\.(?P<member>%b)\0)(?s:.{124})(?P<size>[0-7]{11})\0"
    % (MAX_KEY_BYTES, "|".join(_MEMBERS).encode())
)
_ZERO_BLOCK: Final = bytes(BLOCK_BYTES)
_READ_BYTES: Final = 1 << 20
_MOST_MEMBER_BYTES: Final = 1 << 30  # eleven minutes of float32 audio are 43 MB
_MAX_NPY_HEADER_BYTES: Final = 4096
_VERIFY: Final = "Run omniges verify-shards on the original"
_WIDTHS: Final = {"gesture.npy": LAYOUT.channels, "mel.npy": MEL_BANDS, "jaw_eyes.npy": 9}
_VECTORS: Final = {"betas.npy": BETAS, "start_xz.npy": 2}


@dataclass(frozen=True, slots=True)
class StreamedSample:
    """One sample's content; arrays are read-only views of what was read."""

    key: str
    shard: str  # where it came from, as texts show it
    metadata: dict[str, Any]
    words: list[dict[str, Any]]
    arrays: dict[str, npt.NDArray[Any]]  # by member: gesture.npy (T, 415), mel.npy (M, 64), jaw_eyes.npy (T, 9) …
    others: dict[str, bytes]  # by member: flac, sem.json, where they are there


@dataclass(frozen=True, slots=True)
class _Member:
    name: str  # without the key
    offset: int  # of the data
    data: bytes


def stream_samples(addresses: Iterable[str], rows: Sequence[ManifestRow] | None = None) -> Iterator[StreamedSample]:
    """Samples of shards in their order, each shard read once from its first byte to its last.

    An address is a path, a URL, ``pipe:COMMAND`` (run by a shell, so only ever a person's own words) or ``-`` for
    standard input. With the manifest's `rows`, every member is held against its offset, size and sha256, and no
    sample of a shard may be missing; without, against the contract's form alone.

    Raises DataError with shard, key, member and byte for whatever is not as it should be, EnvironmentFault where a
    shard cannot be opened or its command fails. Nothing is skipped.
    """
    by_shard: dict[str, list[ManifestRow]] = {}
    for row in sorted(rows or (), key=lambda row: row.members["json"].offset):
        by_shard.setdefault(row.shard, []).append(row)
    plans = None if rows is None else {own[0].key: own for own in by_shard.values()}  # shards by their first sample
    seen: dict[str, str] = {}
    for address in addresses:
        shown = one_line(redact(address, secrets_in_url(address)))
        with _opened(address, shown) as stream:
            for key, members in _grouped(_Walk(stream, shown), plans):
                if key in seen:
                    raise DataError(f"{shown}: the key {key} was in {seen[key]} already. {_VERIFY}")
                seen[key] = shown
                yield _decoded(key, shown, members)


@contextlib.contextmanager
def _opened(address: str, shown: str) -> Iterator[ByteStream]:
    """The bytes behind an address; a command that failed is the error, not the cut shard that it left."""
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
    """The output of a command that webdataset's `gopen` runs; an exit status other than 0 is an error."""

    def __init__(self, address: str, shown: str) -> None:
        try:
            import webdataset  # noqa: PLC0415 - it imports torch, which files and URLs do without
        except ImportError:
            raise EnvironmentFault(f"{shown}: a pipe needs webdataset: pip install 'omniges[train]'") from None
        self._shown = shown
        self._pipe = webdataset.gopen(address, "rb")

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        data: bytes = self._checked(lambda: self._pipe.read(size))
        return data

    def __enter__(self) -> _Command:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None or issubclass(kind, DataError):
            # Where the shard is cut because its command failed, that is what went wrong.
            self._checked(self._pipe.close)
            return
        self._pipe.proc.terminate()  # nobody wants the rest, and its status says nothing
        with contextlib.suppress(OSError):
            self._pipe.close()

    def _checked(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except OSError:
            status = self._pipe.status
        raise EnvironmentFault(f"{self._shown}: the command ended with exit status {status}. Run it alone to see why")


class _Walk:
    """Members of one shard in their order."""

    def __init__(self, stream: ByteStream, shown: str) -> None:
        self._stream = stream
        self.shown = shown
        self.position = 0

    def members(self) -> Iterator[tuple[str, _Member]]:
        """Key and member, until the two zero blocks that end the shard."""
        while True:
            start = self.position
            block = self._exactly(BLOCK_BYTES, "a header")
            if block == _ZERO_BLOCK:
                break
            match = _HEADER.match(block)
            parts = match.group("key", "member", "size") if match else (b"", b"", b"0")
            key, name, size = parts[0].decode(), parts[1].decode(), int(parts[2], 8)
            if match is None or block != member_header(f"{key}.{name}", size):
                raise self.fault(start, f"the header of a member expected, found {block[:32]!r}…")
            if size > _MOST_MEMBER_BYTES:
                raise self.fault(start, f"{key}.{name}: at most {_MOST_MEMBER_BYTES} bytes expected, found {size}")
            offset = self.position
            data = self._exactly(size, f"{key}.{name}")
            if self._exactly(-size % BLOCK_BYTES, f"the padding of {key}.{name}").strip(b"\0"):
                raise self.fault(offset + size, f"zeros expected after {key}.{name}, found other bytes")
            yield key, _Member(name, offset, data)
        rest = self._exactly(len(END_OF_ARCHIVE) - BLOCK_BYTES, "the second zero block")
        if rest.strip(b"\0") or self._stream.read(1):
            raise self.fault(start, "two zero blocks and the end expected, found more")

    def fault(self, position: int, what: str) -> DataError:
        """An error at a byte of the shard."""
        return DataError(f"{self.shown}: byte {position}: {what}. {_VERIFY}")

    def _exactly(self, size: int, what: str) -> bytes:
        pieces: list[bytes] = []
        left = size
        while left:
            piece = self._stream.read(min(left, _READ_BYTES))
            if not piece:
                raise self.fault(
                    self.position, f"{left} more bytes expected for {what}, found the end: it is cut short"
                )
            pieces.append(piece)
            left -= len(piece)
            self.position += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _grouped(
    walk: _Walk, plans: Mapping[str, Sequence[ManifestRow]] | None
) -> Iterator[tuple[str, dict[str, _Member]]]:
    """Whole samples of a shard, held against its part of the manifest where there is one."""
    plan: Iterator[ManifestRow] | None = None
    for key, members in _whole_samples(walk):
        if plans is not None:
            if plan is None:
                if key not in plans:
                    raise walk.fault(0, f"the first sample of a shard of the manifest expected, found {key}")
                plan = iter(plans[key])
            _hold_against(walk, key, members, next(plan, None))
        yield key, members
    if plans is not None and plan is None:
        raise walk.fault(0, "the first sample of a shard of the manifest expected, found an empty shard")
    left = next(plan, None) if plan else None
    if left is not None:
        raise walk.fault(walk.position, f"{left.key} expected as in the manifest, found the end of the shard")


def _whole_samples(walk: _Walk) -> Iterator[tuple[str, dict[str, _Member]]]:
    """Members by sample, each sample with all it needs, in the contract's order."""
    for key, run in groupby(walk.members(), key=itemgetter(0)):
        members: dict[str, _Member] = {}
        before = ""
        for _, member in run:
            if before and member_order(member.name) <= member_order(before):
                at = member.offset - BLOCK_BYTES
                raise walk.fault(at, f"{key}.{member.name} stands after {key}.{before}, or twice")
            members[member.name] = member
            before = member.name
        if missing := [name for name in MEMBERS if name not in members]:
            last = members[before].offset
            raise walk.fault(last, f"{key}.{missing[0]} expected in one piece with the sample, found none")
        yield key, members


def _hold_against(walk: _Walk, key: str, members: Mapping[str, _Member], row: ManifestRow | None) -> None:
    first = members["json"].offset - BLOCK_BYTES
    if row is None or row.key != key:
        wanted = "the end of the shard" if row is None else row.key
        raise walk.fault(first, f"{wanted} expected as in the manifest, found {key}")
    if extra := sorted(row.members.keys() ^ members.keys()):
        raise walk.fault(first, f"{key}: members {', '.join(extra)} are in one of manifest and shard alone")
    for name, place in row.members.items():
        member = members[name]
        if (member.offset, len(member.data)) != (place.offset, place.size):
            found = f"{len(member.data)} bytes at byte {member.offset}"
            raise walk.fault(first, f"{key}.{name}: {place.size} bytes at byte {place.offset} expected, found {found}")
        digest = sha256_hex(member.data)
        if digest != place.sha256:
            raise walk.fault(member.offset, f"{key}.{name}: sha256 {place.sha256} expected, found {digest}")


def _decoded(key: str, shown: str, members: Mapping[str, _Member]) -> StreamedSample:
    def fault(name: str, what: str) -> DataError:
        return DataError(f"{shown}: byte {members[name].offset}: {key}.{name}: {what}. {_VERIFY}")

    documents: dict[str, Any] = {}
    for name, kind in (("json", dict), ("words.json", list)):
        try:
            documents[name] = json.loads(members[name].data)
        except ValueError as error:
            raise fault(name, f"a JSON document expected ({error})") from None
        if not isinstance(documents[name], kind):
            raise fault(name, f"a JSON {kind.__name__} expected, found {type(documents[name]).__name__}")
    arrays = {}
    for name, member in members.items():
        if name.endswith(".npy"):
            try:
                arrays[name] = _array(member.data)
            except ValueError as error:
                raise fault(name, str(error)) from None
    frames = len(arrays["gesture.npy"]) if arrays["gesture.npy"].ndim else 0
    lengths = {"gesture.npy": frames, "jaw_eyes.npy": frames, "mel.npy": mel_frames_for(frames)}
    for name, width in _WIDTHS.items():
        expected, found = (lengths[name], width), arrays[name]
        if found.shape != expected or found.dtype != np.dtype("<f4"):
            raise fault(name, f"{expected} <f4 expected, found {found.shape} {found.dtype.str}")
    for name, length in _VECTORS.items():
        if arrays[name].shape != (length,) or arrays[name].dtype.kind != "f":
            raise fault(name, f"{(length,)} floats expected, found {arrays[name].shape} {arrays[name].dtype.str}")
    others = {name: member.data for name, member in members.items() if name in {"flac", "sem.json"}}
    return StreamedSample(key, shown, documents["json"], documents["words.json"], arrays, others)


def _array(data: bytes) -> npt.NDArray[Any]:
    """A view of an npy member; its header is held against its size before anything is made of it."""
    stream = io.BytesIO(data[:_MAX_NPY_HEADER_BYTES])
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"npy version 1.0 expected, found {version[0]}.{version[1]}")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream, max_header_size=_MAX_NPY_HEADER_BYTES)
    count = int(np.prod(shape, dtype=object)) if shape else 1
    if fortran or dtype.hasobject or min(shape, default=0) < 0 or stream.tell() + count * dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes are no array {shape} of {dtype.str}")
    return np.frombuffer(data, dtype, count, stream.tell()).reshape(shape)
