"""Damage to the bytes of a shard, one fault each, drawn at random: cuts, flips, lost and copied blocks, tar members.

All functions are pure: they take a generator and the files of a sound folder and give back the files that change. What
level quick promises to find is worked out here from what docs/how-to/verify.md says, not by the verifier's own code.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

import numpy as np
from shard_sets import BLOCK, Member, members_of, named, relisted, tar_of, with_fields

from omniges.shards.schema import DATASET_FILE, KNOWN_MEMBERS
from omniges.shards.tar import END_OF_ARCHIVE, member_header

Folder = Mapping[str, bytes]
Content = bytes | None | Literal["link", "folder", "pipe"]  # None: the file is gone
T = TypeVar("T")


@dataclass(frozen=True)
class Damage:
    """One fault: the files it changes, and the codes of which at least one must be named (none: any will do)."""

    changes: Mapping[str, Content]
    text: str
    codes: frozenset[str] = frozenset()
    level: Literal["full", "deep"] = "full"  # the lowest level that promises to find it
    quick: bool | None = None  # whether quick promises it too; None: `quick_finds` says
    relisted: bool = False  # dataset.json was updated after the change


@dataclass(frozen=True)
class Kind:
    """A kind of damage and how one of it is drawn, given a sound folder and one of another run."""

    name: str
    draw: Callable[[np.random.Generator, Folder, Folder], Damage]


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One of the items."""
    return items[int(rng.integers(len(items)))]


def shard_names(folder: Folder) -> list[str]:
    """The shards of a folder."""
    return sorted(name for name in folder if name.endswith(".tar"))


# --- what quick promises


_CONTRACT_NAME: Final = re.compile(rf"[A-Za-z0-9_-]{{1,86}}\.({'|'.join(map(re.escape, KNOWN_MEMBERS))})")


def _header_sound(block: bytes) -> bool:
    """Return whether a block is a header of the contract, read by the standard library."""
    try:
        info = tarfile.TarInfo.frombuf(block, "ascii", "strict")
        return bool(_CONTRACT_NAME.fullmatch(info.name)) and block == member_header(info.name, info.size)
    except (tarfile.HeaderError, UnicodeError, ValueError):
        return False


def quick_finds(folder: Folder, damage: Damage) -> bool:
    """Return whether docs/how-to/verify.md promises that level quick finds this damage of a valid folder."""
    if damage.quick is not None:
        return damage.quick
    if DATASET_FILE in damage.changes and not damage.relisted:
        return True
    for name, content in damage.changes.items():
        if name not in folder:
            if name.lower().endswith(".tar") or ".tmp-" in name:
                return True
        elif not isinstance(content, bytes) or (len(content) != len(folder[name]) and not damage.relisted):
            return True
        elif name.endswith(".tar"):
            ends = content[-len(END_OF_ARCHIVE) :] == END_OF_ARCHIVE and len(content) % BLOCK == 0
            if not ends or not _header_sound(content[:BLOCK]):
                return True
    return False


# --- bytes


def block_cuts(folder: Folder) -> list[tuple[str, int]]:
    """Every place at which a shard can be cut between two blocks."""
    return [(name, length) for name in shard_names(folder) for length in range(0, len(folder[name]), BLOCK)]


def _changed(name: str, data: bytes, text: str, *codes: str) -> Damage:
    return Damage({name: data}, f"{name}: {text}", frozenset(codes))


def _cut_at_a_byte(rng: np.random.Generator, folder: Folder, _other: Folder) -> Damage:
    name = pick(rng, shard_names(folder))
    length = int(rng.integers(len(folder[name])))
    return _changed(name, folder[name][:length], f"cut to {length} bytes", "shard-cut", "shard-end")


def _longer(rng: np.random.Generator, folder: Folder, other: Folder) -> Damage:
    name = pick(rng, shard_names(folder))
    count = int(rng.integers(1, 5 * BLOCK))
    tails = (bytes(count), rng.bytes(count), other[shard_names(other)[0]], folder[name], bytes(BLOCK))
    tail = pick(rng, tails)
    return _changed(name, folder[name] + tail, f"{len(tail)} bytes more", "shard-trailing")


def _ranges(data: bytes) -> dict[str, list[range]]:
    """Byte ranges of a sound shard by what they are."""
    found: dict[str, list[range]] = {"header": [], "payload": [], "padding": []}
    position = 0
    for member in members_of(data):
        start, end = position + BLOCK, position + BLOCK + len(member.data)
        found["header"].append(range(position, start))
        found["payload"].append(range(start, end))
        position += len(member.raw)
        if end < position:
            found["padding"].append(range(end, position))
    return found | {"end": [range(position, len(data))]}


_FLIP_CODES: Final = {
    "header": ("header-checksum",),
    "payload": ("member-digest",),
    "padding": ("member-padding",),
    "end": ("shard-end",),
}


def _flip(where: str) -> Callable[[np.random.Generator, Folder, Folder], Damage]:
    def draw(rng: np.random.Generator, folder: Folder, _other: Folder) -> Damage:
        name = pick(rng, shard_names(folder))
        place = pick(rng, pick(rng, _ranges(folder[name])[where]))
        bit = int(rng.integers(8))
        data = bytearray(folder[name])
        data[place] ^= 1 << bit
        return _changed(name, bytes(data), f"bit {bit} of byte {place} flipped", *_FLIP_CODES[where])

    return draw


def _overwritten(rng: np.random.Generator, folder: Folder, other: Folder) -> Damage:
    """Sectors zeroed, filled with noise, or written from another place, as disks and file systems do."""
    name = pick(rng, shard_names(folder))
    data = folder[name]
    start = int(rng.integers(len(data) // BLOCK)) * BLOCK
    size = min(len(data) - start, BLOCK * int(rng.integers(1, 9)))
    source = pick(rng, (data, other[shard_names(other)[0]]))
    from_byte = int(rng.integers(max(1, len(source) - size)))
    fills = (bytes(size), b"\xff" * size, rng.bytes(size), source[from_byte : from_byte + size].ljust(size, b"\0"))
    return _changed(
        name, data[:start] + pick(rng, fills) + data[start + size :], f"{size} bytes at {start} overwritten"
    )


def _lost_or_inserted(rng: np.random.Generator, folder: Folder, _other: Folder) -> Damage:
    name = pick(rng, shard_names(folder))
    data = folder[name]
    unit = pick(rng, (1, BLOCK))
    start = int(rng.integers(len(data) // unit)) * unit
    size = int(rng.integers(1, 6)) * unit
    if rng.integers(2):
        return _changed(name, data[:start] + data[start + size :], f"{size} bytes lost at {start}")
    filling = pick(rng, (bytes(size), rng.bytes(size), data[:size]))
    return _changed(name, data[:start] + filling + data[start:], f"{size} bytes inserted at {start}")


def _one_byte_end(rng: np.random.Generator, folder: Folder, _other: Folder) -> Damage:
    """The end of the archive missing, halved or multiplied."""
    name = pick(rng, shard_names(folder))
    body = folder[name][: -len(END_OF_ARCHIVE)]
    blocks = pick(rng, (0, 1, 3, 4, 20))
    codes = ("shard-end",) if blocks < 2 else ("shard-trailing",)
    return _changed(name, body + bytes(BLOCK * blocks), f"{blocks} zero blocks at the end", *codes)


# --- members


Members = list[Member]
Rearrange = Callable[[np.random.Generator, Members], Members]


def _put(members: Members, place: int, member: Member) -> Members:
    return [*members[:place], member, *members[place:]]


def _set(members: Members, place: int, member: Member) -> Members:
    return [*members[:place], member, *members[place + 1 :]]


def _any(rng: np.random.Generator, members: Members) -> int:
    return int(rng.integers(len(members)))


def _samples(members: Members) -> list[Members]:
    keys = list(dict.fromkeys(member.name.partition(".")[0] for member in members))
    return [[member for member in members if member.name.partition(".")[0] == key] for key in keys]


def _fields(**choices: Sequence[bytes]) -> Rearrange:
    """A member whose header has other raw fields and a checksum that fits them."""

    def change(rng: np.random.Generator, members: Members) -> Members:
        place = _any(rng, members)
        chosen = {name: pick(rng, values) for name, values in choices.items()}
        return _set(members, place, with_fields(members[place], **chosen))

    return change


def _added(rng: np.random.Generator, members: Members) -> Members:
    key = members[0].name.partition(".")[0]
    names = ("x.gesture.npy", f"{key}.sem.json", f"{key}.flac", f"{key}z.json", f"{key}.txt", "README")
    data = pick(rng, (b"", b"hello", rng.bytes(700)))
    return _put(members, _any(rng, members), named(Member("", b"", data), pick(rng, names)))


def _doubled(rng: np.random.Generator, members: Members) -> Members:
    member = pick(rng, members)
    if rng.integers(2):
        member = named(Member("", b"", rng.bytes(len(member.data))), member.name)
    return _put(members, int(rng.integers(len(members) + 1)), member)


def _sample_doubled(rng: np.random.Generator, members: Members) -> Members:
    sample = pick(rng, _samples(members))
    place = int(rng.integers(len(members) + 1))
    return [*members[:place], *sample, *members[place:]]


def _renamed(rng: np.random.Generator, members: Members) -> Members:
    place = _any(rng, members)
    key, _, suffix = members[place].name.partition(".")
    names = (f"{key}z.{suffix}", f"k.{suffix}", pick(rng, members).name, f"{key}.bak.{suffix}", f"{key}.{suffix}x")
    return _set(members, place, named(members[place], pick(rng, names)))


def _removed(rng: np.random.Generator, members: Members) -> Members:
    place = _any(rng, members)
    return members[:place] + members[place + 1 :]


def _sample_removed(rng: np.random.Generator, members: Members) -> Members:
    gone = pick(rng, _samples(members))
    return [member for member in members if member not in gone]


def _reordered(rng: np.random.Generator, members: Members) -> Members:
    one, other = _any(rng, members), _any(rng, members)
    return _set(_set(members, one, members[other]), other, members[one])


def _shuffled(rng: np.random.Generator, members: Members) -> Members:
    return [members[int(k)] for k in rng.permutation(len(members))]


def _interleaved(rng: np.random.Generator, members: Members) -> Members:
    """Two samples' members in turns, as writers on one file leave them; with one sample its two halves."""
    samples = _samples(members)
    if len(samples) == 1:
        half = len(members) // 2
        return [member for pair in zip(members[half:], members, strict=False) for member in pair] + members[half:half]
    place = int(rng.integers(len(samples) - 1))
    one, other = samples[place], samples[place + 1]
    mixed: Members = []
    while one or other:
        source = one if one and (not other or rng.integers(2)) else other
        mixed.append(source[0])
        del source[0]
    whole = [*samples[:place], mixed, *samples[place + 2 :]]
    return [member for sample in whole for member in sample]


def _contents_swapped(rng: np.random.Generator, members: Members) -> Members:
    """Names and order as they should be, the data of two members exchanged."""
    one, other = _any(rng, members), _any(rng, members)
    first, second = members[one], members[other]
    swapped = _set(members, one, named(second, first.name))
    return _set(swapped, other, named(first, second.name)) if one != other else swapped


def _extension(rng: np.random.Generator, members: Members) -> Members:
    """A pax or GNU record before a member: other readers take its name, size or target instead."""
    key = pick(rng, (b"path=../evil.js", b"size=1", b"GNU.sparse.size=9", b"linkpath=/etc/passwd", b"comment=x"))
    line = b"%d " % (len(key) + 4) + key + b"\n"
    data, flag = pick(rng, ((line, b"x"), (line, b"g"), (b"../evil\0", b"L"), (b"/etc\0", b"K"), (line, b"X")))
    header = Member("p", member_header("././@LongLink", len(data)), data)
    return _put(members, _any(rng, members), with_fields(header, flag=flag))


def _tiny(rng: np.random.Generator, members: Members) -> Members:
    count = int(rng.integers(2, 2000))
    key = members[0].name.partition(".")[0]
    return members + [named(Member("", b"", b""), f"{key}{n}.json") for n in range(count)]


_LINKS: Final = {"flag": (b"1", b"2"), "link": (b"/etc/passwd", b"../x", b"a.json")}
_DEVICES: Final = {"flag": (b"3", b"4", b"5", b"6")}
_UNKNOWN_TYPES: Final = {"flag": (b"7", b"S", b"V", b"M", b"D", b"Z", b"\xff", b"N")}
_BAD_NAMES: Final = (
    b"/etc/passwd",
    b"../../x.gesture.npy",
    b"a/b.json",
    b"./a.json",
    b"\xff\xfe.json",
    b"",
    b"a.b.json",
)
_SIZES: Final = (
    *(b"\xff" * 12, b"-0000000512\0", b"-1", b"\x80" + bytes(10) + b"\x05", b"        100 ", b"00000000001\0"),
    *(b"00000003000\0", b"77777777777\0", b"99999999999\0", b"", b"0000000010 \0", b"00000000010"),
)
_OTHER_FIELDS: Final[tuple[Mapping[str, Sequence[bytes]], ...]] = (
    *({"mode": (b"0000755\0",)}, {"mtime": (b"14000000000\0", b"00000000001\0")}, {"uid": (b"0001750\0",)}),
    *({"gid": (b"0001750\0",)}, {"magic": (b"ustar  \0", b"", b"ustar\x0001")}, {"uname": (b"root",)}),
    *({"gname": (b"root",)}, {"major": (b"0000001\0",)}, {"minor": (b"\xff",)}, {"rest": (b"x",)}, {"flag": (b"\0",)}),
    *({"link": (b"x",)}, {"prefix": (b"..", b"/tmp", b"a")}),
)


def _other_fields(rng: np.random.Generator, members: Members) -> Members:
    return _fields(**pick(rng, _OTHER_FIELDS))(rng, members)


_ARRANGED: Final[tuple[tuple[str, Rearrange, tuple[str, ...]], ...]] = (
    ("member doubled", _doubled, ("member-twice", "member-digest")),
    ("sample doubled", _sample_doubled, ("member-twice",)),
    ("member renamed", _renamed, ("member-foreign", "member-twice", "member-name")),
    ("member removed", _removed, ("member-missing",)),
    ("sample removed", _sample_removed, ("member-missing",)),
    ("all members removed", lambda _rng, _members: [], ("member-missing", "shard-early-end")),
    ("members swapped", _reordered, ("member-order",)),
    ("members shuffled", _shuffled, ("member-order",)),
    ("members interleaved", _interleaved, ("member-order", "member-missing")),
    ("contents swapped", _contents_swapped, ("member-size", "member-digest")),
    ("member added", _added, ("member-foreign", "member-name", "member-twice")),
    ("link", _fields(**_LINKS), ("member-link",)),
    ("device, folder or pipe", _fields(**_DEVICES), ("member-device",)),
    ("member of another type", _fields(**_UNKNOWN_TYPES), ("member-extension",)),
    ("pax or GNU record", _extension, ("member-extension",)),
    ("absolute name or one that leads out", _fields(name=_BAD_NAMES), ("member-name",)),
    ("size negative, huge or not octal", _fields(size=_SIZES), ("member-size", "member-digest", "header-checksum")),
    ("other header fields", _other_fields, ("header-not-canonical", "member-name")),
    ("tiny members", _tiny, ("member-foreign",)),
)


def _arranged(change: Rearrange, codes: tuple[str, ...], *, agreed: bool) -> Callable[..., Damage]:
    def draw(rng: np.random.Generator, folder: Folder, _other: Folder) -> Damage:
        name = pick(rng, shard_names(folder))
        data = tar_of(change(rng, members_of(folder[name])))
        if not agreed:
            return _changed(name, data, "rearranged", *codes)
        changes = {name: data, DATASET_FILE: relisted(folder, {name: data})}
        # Where both members are of one size, only the manifest's digests of members can tell.
        level: Literal["full", "deep"] = "deep" if change is _contents_swapped else "full"
        return Damage(changes, f"{name}: rearranged, relisted", level=level, relisted=True)

    return draw


def _agreed_padding(rng: np.random.Generator, folder: Folder, other: Folder) -> Damage:
    """A flip outside the data, and a dataset.json that lists the damaged shard's checksum."""
    damage = _flip(pick(rng, ("header", "padding", "end")))(rng, folder, other)
    return _agree(folder, damage, "full")


def _agreed_payload(rng: np.random.Generator, folder: Folder, other: Folder) -> Damage:
    """A flip in the data that only the manifest's digest of the member can tell."""
    return _agree(folder, _flip("payload")(rng, folder, other), "deep")


def _agree(folder: Folder, damage: Damage, level: Literal["full", "deep"]) -> Damage:
    shards = {name: data for name, data in damage.changes.items() if isinstance(data, bytes)}
    changes = shards | {DATASET_FILE: relisted(folder, shards)}
    return Damage(changes, f"{damage.text}, relisted", damage.codes, level, relisted=True)


SHARD_KINDS: Final[tuple[Kind, ...]] = (
    Kind("cut at a byte", _cut_at_a_byte),
    Kind("bytes after the end", _longer),
    Kind("bit flipped in a header", _flip("header")),
    Kind("bit flipped in data", _flip("payload")),
    Kind("bit flipped in a filling", _flip("padding")),
    Kind("bit flipped in the end blocks", _flip("end")),
    Kind("sectors overwritten", _overwritten),
    Kind("bytes lost or inserted", _lost_or_inserted),
    Kind("end blocks missing or too many", _one_byte_end),
    *(Kind(name, _arranged(change, codes, agreed=False)) for name, change, codes in _ARRANGED),
    *(Kind(f"{name}, relisted", _arranged(change, codes, agreed=True)) for name, change, codes in _ARRANGED),
    Kind("bit flipped outside the data, relisted", _agreed_padding),
    Kind("bit flipped in data, relisted", _agreed_payload),
)
