"""Read a shard header by header, without `tarfile`, to report where and how the shard is damaged.

Every step advances by at least one block, and only plain octal sizes are accepted. At most one range of the shard is in
memory. So no shard can cause an endless loop or fill the memory.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from omniges.shards.manifest import ManifestRow
from omniges.shards.schema import KNOWN_MEMBERS, LATENT_MEMBER, MAX_KEY_BYTES, member_order
from omniges.shards.tar import BLOCK_BYTES, END_OF_ARCHIVE, member_header
from omniges.verify.findings import Collector
from omniges.verify.folders import Source, hash_chunks

_WINDOW_BYTES: Final = 64 << 10
_RESYNC_TRIES: Final = 8
_MAX_NAMES: Final = 1 << 18  # largest number of unplanned names to store, so that they cannot fill the memory
_ZERO_BLOCK: Final = bytes(BLOCK_BYTES)
_MEMBERS: Final = (*map(re.escape, KNOWN_MEMBERS), LATENT_MEMBER.pattern)
_NAME: Final = re.compile(rf"(?P<key>[A-Za-z0-9_-]{{1,{MAX_KEY_BYTES}}})\.(?P<member>{'|'.join(_MEMBERS)})", re.ASCII)
Fault = tuple[str, str, str]  # finding code, found, expected
_OCTAL: Final = re.compile(rb"[0-7]{11}\0")
_LINKS: Final = {b"1": "a hard link", b"2": "a symbolic link"}
_DEVICES: Final = {b"3": "a character device", b"4": "a block device", b"5": "a folder", b"6": "a pipe"}


@dataclass(frozen=True, slots=True)
class Planned:
    """Position, size and digest of a member according to the manifest."""

    key: str
    member: str
    offset: int  # byte offset of the data
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """Name of the member in the tar file."""
        return f"{self.key}.{self.member}"

    @property
    def end(self) -> int:
        """Byte offset after the member's last block."""
        return self.offset + self.size + -self.size % BLOCK_BYTES


@dataclass(frozen=True)
class ShardPlan:
    """Planned members of a shard in order, according to the manifest. `gap` finds a gap between them."""

    members: Sequence[Planned]
    elsewhere: dict[str, str] = field(default_factory=dict)  # shard of each sample, by key

    @classmethod
    def of_rows(cls, rows: Sequence[ManifestRow], elsewhere: dict[str, str] | None = None) -> ShardPlan:
        """Return the plan of a shard from its manifest rows.

        Args:
            rows: Rows of the shard, in order of their position.
            elsewhere: For each sample key of the set, the name of the shard that contains it; used for findings.

        Returns:
            The plan.
        """
        members = [
            Planned(row.key, member, place.offset, place.size, place.sha256)
            for row in rows
            for member, place in sorted(row.members.items(), key=lambda item: member_order(item[0]))
        ]
        return cls(members, elsewhere or {})

    @cached_property
    def index(self) -> dict[str, int]:
        """Index of each member in the plan, by name."""
        return {planned.name: place for place, planned in enumerate(self.members)}

    @cached_property
    def headers(self) -> list[int]:
        """Byte offset of each member's header."""
        return [planned.offset - BLOCK_BYTES for planned in self.members]

    @property
    def end(self) -> int:
        """Byte offset of the two zero blocks at the end."""
        return self.members[-1].end if self.members else 0

    def gap(self) -> tuple[Planned, int] | None:
        """Return the first member that does not start directly after the previous one, and its expected data offset.

        A member with a negative size also counts as a gap. Return None if there is no gap.
        """
        position = 0
        for planned in self.members:
            if planned.offset != position + BLOCK_BYTES or planned.size < 0:
                return planned, position + BLOCK_BYTES
            position = planned.end
        return None


def exact_blocks(plan: ShardPlan) -> Iterator[tuple[int, bytes]]:
    """Yield (position, bytes) of headers, padding and end of a shard: the bytes that the contract determines.

    The bytes of each item lie within one tar block of 512 bytes.
    """
    for planned in plan.members:
        yield planned.offset - BLOCK_BYTES, member_header(planned.name, planned.size)
        if planned.size % BLOCK_BYTES:
            yield planned.offset + planned.size, bytes(-planned.size % BLOCK_BYTES)
    yield plan.end, _ZERO_BLOCK
    yield plan.end + BLOCK_BYTES, _ZERO_BLOCK


@dataclass(frozen=True, slots=True)
class Header:
    """A tar header with a valid size field. `fault` says which other field is invalid; None: all fields are valid."""

    name: str
    size: int
    fault: Fault | None


def parse_header(block: bytes) -> Header | Fault:
    """Parse a tar header of 512 bytes; return a fault if the checksum or the size is invalid.

    After such a fault, the position of the next header is unknown. Any other fault is stored in `Header.fault`.
    """
    stored = block[148:156]
    computed = sum(block[:148]) + 8 * 32 + sum(block[156:])
    if stored != b"%06o\0 " % computed:
        return "header-checksum", f"checksum field {stored!r}", repr(b"%06o\0 " % computed)
    raw, flag, prefix = block[:100].split(b"\0", 1)[0], block[156:157], block[345:500].split(b"\0", 1)[0]
    name = (prefix + b"/" + raw if prefix else raw).decode("ascii", "backslashreplace")
    size_field = block[124:136]
    if not _OCTAL.fullmatch(size_field):
        return "member-size", f"size field {size_field!r} of {name!r}", "eleven octal digits"
    size = int(size_field[:11], 8)
    if flag in _LINKS or flag in _DEVICES:
        code, kind = ("member-link", _LINKS[flag]) if flag in _LINKS else ("member-device", _DEVICES[flag])
        return Header(name, 0, (code, f"{kind} named {name!r}", "a regular file"))
    if flag not in {b"0", b"\0"}:
        return Header(name, size, ("member-extension", f"type {flag!r} named {name!r}", "a regular file"))
    if not _NAME.fullmatch(name):
        return Header(name, size, ("member-name", repr(name), "KEY.MEMBER of the contract"))
    wanted = member_header(name, size)
    if block != wanted:
        place = next(k for k in range(BLOCK_BYTES) if block[k] != wanted[k] and not 148 <= k < 156)
        return Header(name, size, ("header-not-canonical", f"byte {place} is {block[place]}", f"{wanted[place]}"))
    return Header(name, size, None)


class _Walk:
    """One pass over a shard; `run` records the findings."""

    def __init__(self, source: Source, plan: ShardPlan | None, out: Collector) -> None:
        self._source = source
        self._size = source.size
        self._plan = plan or ShardPlan(())
        self._planned = plan is not None
        self._out = out
        self._window = (0, b"")
        self._seen: set[str] = set()
        self._furthest = -1  # highest plan index of the members found so far
        self._last: tuple[str, tuple[int, str]] | None = None  # key and sort key of the last member, without a plan
        self._cut = False

    def run(self) -> None:
        """Read to the end of the archive or the last recognizable header, then report missing members."""
        position = 0
        while True:
            block = self._bytes(position, BLOCK_BYTES)
            if len(block) < BLOCK_BYTES:
                self._cut_at(position)
                break
            if block == _ZERO_BLOCK:
                following = self._zero_block(position)
            elif isinstance(parsed := parse_header(block), Header):
                following = self._member(position, parsed)
            else:
                following = self._bad(position, parsed)
            if following is None:
                break
            position = following
        for planned in () if self._cut else self._plan.members:
            if planned.name not in self._seen:
                missing = f"{planned.name} is not in the shard"
                self._out.add("member-missing", missing, key=planned.key, member=planned.member)

    def _bytes(self, position: int, count: int) -> bytes:
        start, data = self._window
        if not start <= position <= position + count <= start + len(data):
            data = self._source.read(max(_WINDOW_BYTES, count), position)
            start = position
            self._window = (start, data)
        return data[position - start : position - start + count]

    def _next(self) -> Planned | None:
        """Return the planned member after the furthest member found so far; None at the end of the plan."""
        place = self._furthest + 1
        return self._plan.members[place] if place < len(self._plan.members) else None

    def _cut_at(self, position: int) -> None:
        """Report that the file ends at a position where a header or a zero block should be."""
        self._cut = True
        awaited = self._next()
        if awaited is not None:
            self._lost_from(awaited)
            return
        expected = f"{self._plan.end + len(END_OF_ARCHIVE)} bytes" if self._planned else "two zero blocks"
        self._out.add("shard-end", f"the file ends after {self._size} bytes", expected, offset=position)

    def _lost_from(self, first: Planned) -> None:
        self._cut = True
        lost = len(self._plan.members) - self._plan.index[first.name]
        found = f"the file ends after {self._size} bytes; {first.name} and {lost - 1} members after it are incomplete"
        expected = f"{self._plan.end + len(END_OF_ARCHIVE)} bytes"
        self._out.add("shard-cut", found, expected, first.key, first.member, self._size)

    def _zero_block(self, position: int) -> int | None:
        """Add a finding if a zero block is not the correct end of the archive: two zero blocks at the end of the file.

        Return the position from which to continue; None: stop.
        """
        ending = self._bytes(position, len(END_OF_ARCHIVE))
        rest = self._size - position
        awaited = self._next()
        if awaited is not None and not (rest == len(END_OF_ARCHIVE) and ending == END_OF_ARCHIVE):
            following = self._resync(position)
            expected = f"the header of {awaited.name}"
            self._out.add("shard-early-end", "a zero block", expected, awaited.key, awaited.member, position)
            self._mark_found(position)
            self._cut = following is None
            return following
        if ending != END_OF_ARCHIVE:
            dirty = next((k for k, byte in enumerate(ending) if byte), len(ending))
            self._out.add("shard-end", f"{dirty} zero bytes", "two zero blocks", offset=position + dirty)
        elif rest > len(END_OF_ARCHIVE):
            more = f"{rest - len(END_OF_ARCHIVE)} more bytes"
            self._out.add("shard-trailing", more, "0", offset=position + len(END_OF_ARCHIVE))
        return None

    def _mark_found(self, position: int) -> None:
        """Mark the member whose header must begin at this byte as found, so that it is not also reported as missing."""
        place = bisect_right(self._plan.headers, position) - 1
        if place >= 0 and self._plan.headers[place] == position:
            self._seen.add(self._plan.members[place].name)
            self._furthest = max(self._furthest, place)

    def _bad(self, position: int, fault: Fault) -> int | None:
        """Report a header that `parse_header` refused. Return the position from which to continue; None: stop."""
        if self._planned and self._plan.end <= position < self._plan.end + len(END_OF_ARCHIVE):
            dirty = next(k for k, byte in enumerate(self._bytes(position, BLOCK_BYTES)) if byte)
            self._out.add("shard-end", "a byte that is not zero", "two zero blocks", offset=position + dirty)
            return None
        following = self._resync(position)
        code, found, expected = fault
        if following is None:
            found += "; nothing after it could be recognized"
        awaited = self._next()
        key, member = (awaited.key, awaited.member) if awaited else (None, None)
        self._out.add(code, found, expected, key, member, position)
        self._mark_found(position)
        self._cut = following is None and self._next() is not None
        return following

    def _resync(self, position: int) -> int | None:
        """Return the next position at which plan and shard both have a header; None if no header is near."""
        first = bisect_right(self._plan.headers, position)
        for start in self._plan.headers[first : first + _RESYNC_TRIES]:
            block = self._bytes(start, BLOCK_BYTES)
            if len(block) == BLOCK_BYTES and block != _ZERO_BLOCK and isinstance(parse_header(block), Header):
                return start
        return None

    def _member(self, position: int, header: Header) -> int | None:
        """Check one member. Return the position of the next header, or None if the file ends within the member."""
        data, padding = position + BLOCK_BYTES, -header.size % BLOCK_BYTES
        match = _NAME.fullmatch(header.name)
        key, member = (match["key"], match["member"]) if match else (None, None)
        place = self._plan.index.get(header.name)
        planned = None if place is None else self._plan.members[place]
        if header.fault is not None:
            self._out.add(*header.fault, key, member, position)
        if data + header.size + padding > self._size:
            self._past_the_end(position, header, planned)
            return None
        if match and (header.fault is None or header.fault[0] == "header-not-canonical"):
            self._order(position, header.name, match["key"], match["member"])
        if planned is not None and header.name not in self._seen:
            self._content(planned, header, position)
        if header.name in self._plan.index or len(self._seen) < _MAX_NAMES:
            self._seen.add(header.name)
        filling = self._bytes(data + header.size, padding) if padding else b""
        if any(filling):
            dirty = next(k for k, byte in enumerate(filling) if byte)
            self._out.add("member-padding", f"byte {filling[dirty]}", "0", key, member, data + header.size + dirty)
        return data + header.size + padding

    def _past_the_end(self, position: int, header: Header, planned: Planned | None) -> None:
        if planned is not None and header.size == planned.size and header.name not in self._seen:
            self._lost_from(self._next() or planned)
            return
        self._cut = True
        found = f"{header.name}: {header.size} bytes, {self._size - position - BLOCK_BYTES} left in the file"
        expected = f"{planned.size} bytes" if planned else "a size that fits into the file"
        key, member = (planned.key, planned.member) if planned else (None, None)
        self._out.add("member-size", found, expected, key, member, position)

    def _order(self, position: int, name: str, key: str, member: str) -> None:
        """Check that a member with this name is allowed at this position."""
        at = (key, member, position)
        if name in self._seen:
            self._out.add("member-twice", name, "each name once", *at)
        elif self._planned and name not in self._plan.index:
            owner = self._plan.elsewhere.get(key)
            found = f"{name}, which belongs to {owner}" if owner else name
            awaited = self._next()
            self._out.add("member-foreign", found, awaited.name if awaited else "the end of the archive", *at)
        elif self._planned:
            place = self._plan.index[name]
            if place < self._furthest:
                after = self._plan.members[self._furthest].name
                self._out.add("member-order", f"{name} after {after}", "before it", *at)
            self._furthest = max(self._furthest, place)
        else:  # no trusted manifest: a sample's members must be contiguous, in the contract's order
            here = (key, member_order(member))
            follows = self._last is not None and self._last[0] == key and here > self._last
            if member != "json" and not follows:
                before = self._last[0] if self._last else "the beginning"
                self._out.add("member-order", f"{name} after a member of {before}", "samples in one piece", *at)
            self._last = here

    def _content(self, planned: Planned, header: Header, position: int) -> None:
        """Compare the size and digest of a member with the manifest."""
        key, member = planned.key, planned.member
        if header.size != planned.size:
            self._out.add("member-size", f"{header.size} bytes", f"{planned.size}", key, member, position)
            return
        digest = hashlib.sha256()
        for _, view, _ in hash_chunks(self._source, position + BLOCK_BYTES, header.size):
            digest.update(view)
        if digest.hexdigest() != planned.sha256:
            found = f"sha256 {digest.hexdigest()}"
            self._out.add("member-digest", found, planned.sha256, key, member, position + BLOCK_BYTES)


def walk_shard(source: Source, plan: ShardPlan | None, collector: Collector) -> None:
    """Read an open shard header by header and record its faults.

    Args:
        source: The open shard.
        plan: Positions according to the manifest; None if the manifest is not trusted.
        collector: Collector of the shard's findings.
    """
    _Walk(source, plan, collector).run()
