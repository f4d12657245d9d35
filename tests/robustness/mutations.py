"""Mutations of files: bytes, values of JSON, numbers in headers, and what lies in a file's place.

Each mutation is drawn from a generator and can be undone, so that one valid folder serves for thousands of them.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from omniges.errors import OmnigesError
from omniges.model.checkpoint import CHECKPOINT_FILE
from omniges.shards.dataset import seal
from omniges.storage.files import sha256_hex

MAX_S = 5.0
MAX_BYTES = 500 << 20
JUNK: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        -8,
        65536,
        10**7,
        2**31,
        2**63,
        10**30,
        0.5,
        1e300,
        -1e-300,
        float("nan"),
        float("inf"),
    ),
    *("", "x", "../x", "/etc/hostname", "\x1b[2Jsound", "a\nb", "[/red]", "\0", "x" * 5000, "\ud800", "日本"),
    *([], {}, [[]], {"a": 1}, [1e9] * 3, ["x"] * 1000),
)
_INSERTED = (
    b"*a",
    b"&a ",
    b"!!python/object/apply:os.system [ls]",
    b".nan",
    b"1e999",
    b"[" * 2000,
    b"\x00",
    b"\xff\xfe",
    b"{",
)
Change = Callable[[bytes, random.Random], bytes]


def flip(data: bytes, rng: random.Random) -> bytes:
    """Change one to eight bytes."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if found:
            found[_place(data, rng)] = rng.randrange(256)
    return bytes(found)


def cut(data: bytes, rng: random.Random) -> bytes:
    """Leave the end out."""
    return data[: _place(data, rng)]


def take_out(data: bytes, rng: random.Random) -> bytes:
    """Leave some bytes out."""
    start = _place(data, rng)
    return data[:start] + data[start + rng.choice((1, 4, 64, 5000)) :]


def put_in(data: bytes, rng: random.Random) -> bytes:
    """Insert what means something to a parser."""
    start = _place(data, rng)
    return data[:start] + rng.choice(_INSERTED) + data[start:]


def repeat(data: bytes, rng: random.Random) -> bytes:
    """Write some bytes twice."""
    start = _place(data, rng)
    return data[: start + rng.choice((8, 40, 400))] + data[start:]


def number(data: bytes, rng: random.Random) -> bytes:
    """Replace a number in the first 4 KiB or the last."""
    places = [m.span() for m in re.finditer(rb"\d+", data[:4096])] + [
        (a + max(0, len(data) - 4096), b + max(0, len(data) - 4096))
        for a, b in (m.span() for m in re.finditer(rb"\d+", data[-4096:]))
    ]
    if not places:
        return flip(data, rng)
    start, stop = rng.choice(places)
    return (
        data[:start] + rng.choice((b"0", b"-1", b"65536", b"10000000", b"99999999999999", b"1e12", b"")) + data[stop:]
    )


def word(data: bytes, rng: random.Random) -> bytes:
    """Replace four bytes by a large or negative number."""
    start = _place(data, rng)
    return data[:start] + rng.choice((b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80")) + data[start + 4 :]


def value(data: bytes, rng: random.Random) -> bytes:
    """Replace a value of a JSON document, leave it out or say it twice; other files change by a number."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return number(data, rng)
    spots = [*_spots(document)]
    if not spots:
        return json.dumps(rng.choice(JUNK)).encode()
    changed = copy.deepcopy(document)
    path = rng.choice(spots)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    how = rng.random()
    if how < 0.15:
        del inner[path[-1]]
    elif how < 0.3 and isinstance(inner[path[-1]], int | float):
        inner[path[-1]] = inner[path[-1]] * rng.choice((-1, 0, 2, 1000, 10**9))
    else:
        inner[path[-1]] = rng.choice(JUNK)
    text = json.dumps(changed)
    if how > 0.97 and text.startswith("{"):
        text = text[:-1] + "," + text[1:]
    return text.encode()


def _spots(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Places of values; of long lists the first and the last."""
    keys = [*document] if isinstance(document, dict) else [*range(len(document))] if isinstance(document, list) else []
    for key in keys if isinstance(document, dict) or len(keys) < 6 else [keys[0], keys[-1]]:
        yield (*path, key)
        yield from _spots(document[key], (*path, key))


def _place(data: bytes, rng: random.Random) -> int:
    """Beginnings and ends have the headers."""
    if not data:
        return 0
    return min(
        rng.choice(
            (
                rng.randrange(len(data)),
                rng.randrange(min(len(data), 300)),
                len(data) - 1 - rng.randrange(min(len(data), 100)),
            )
        ),
        len(data) - 1,
    )


CHANGES: tuple[Change, ...] = (flip, cut, take_out, put_in, repeat, number, word, value, value, value)


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _outside(path: Path) -> None:
    path.symlink_to("/etc/hostname")


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):
        server.bind(path.name[:90])


NODES: tuple[Callable[[Path], object], ...] = (_pipe, _device, _outside, _loop, _socket, Path.mkdir, lambda _path: None)


@contextlib.contextmanager
def mutated(folder: Path, rng: random.Random, reseal: Callable[[Path, Path], None] | None) -> Iterator[str]:
    """Change one file of a folder while the context lasts.

    Args:
        folder: A valid folder.
        rng: Decides file and change.
        reseal: Makes the checksums that name a file fit its new content; called for half of the changes of bytes.

    Yields:
        What was changed, in words.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    path = rng.choice(files)
    before = {each: each.read_bytes() for each in files if each == path or each.suffix == ".json"}
    name = str(path.relative_to(folder))
    if rng.random() < 0.1:
        node = rng.choice(NODES)
        path.unlink()
        node(path)
        what = f"{name}: {node.__name__}"
    else:
        change = rng.choice(CHANGES)
        data = change(before[path], rng)
        for _ in range(rng.choice((0, 0, 0, 1))):
            data = rng.choice(CHANGES)(data, rng)
        path.write_bytes(data)
        what = f"{name}: {change.__name__}"
        if reseal is not None and rng.random() < 0.7:
            reseal(folder, path)
            what += ", sealed"
    try:
        yield what
    finally:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        for each, data in before.items():
            each.write_bytes(data)


def seal_checkpoint(folder: Path, path: Path) -> None:
    """Make checkpoint.json fit a file of a checkpoint."""
    _reseal(folder / CHECKPOINT_FILE, path)


def seal_shards(folder: Path, path: Path) -> None:
    """Make dataset.json fit a file of a shard folder."""
    _reseal(folder / "dataset.json", path)


def seal_conversion(folder: Path, path: Path) -> None:
    """Make conversion.json fit a file of a converted folder."""
    _reseal(folder / "conversion.json", path)


def seal_result(folder: Path, path: Path) -> None:
    """Make the records of results fit a file of theirs."""
    for record in folder.glob("*.json"):
        with contextlib.suppress(ValueError, AttributeError, TypeError, KeyError):
            found = json.loads(record.read_bytes())
            for entry in found["files"].values():
                if entry["path"] == path.name:
                    entry["sha256"] = sha256_hex(path.read_bytes())
                    record.write_bytes(json.dumps(found).encode())


def _reseal(index: Path, path: Path) -> None:
    with contextlib.suppress(
        ValueError, AttributeError, TypeError, KeyError
    ):  # what is left of an index that was changed
        found = json.loads(index.read_bytes())
        data = path.read_bytes()
        for part in ("files", "shards"):
            if path.name in found.get(part, {}):
                found[part][path.name] |= {"bytes": len(data), "sha256": sha256_hex(data)}
        del found["checksum"]
        index.write_bytes(seal(found))


def outcome(read: Callable[[], object]) -> str | None:
    """Read, and return the one line of its refusal; None where it is read.

    Raises AssertionError for an error of more lines, for more time or for more memory than a reader may take.
    """
    peak = Peak()
    began = time.monotonic()
    line = None
    try:
        read()
    except OmnigesError as error:
        line = str(error)
        assert "\n" not in line, line
        assert len(line) < 3000, f"{len(line)} characters: {line[:200]}"
    took = time.monotonic() - began
    assert took < MAX_S, f"{took:.1f} s"
    assert peak.grown() < MAX_BYTES, f"{peak.grown() >> 20} MiB"
    return line


class Peak:
    """The most memory that this process has since now, beyond what it has now."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _memory("VmRSS")

    def grown(self) -> int:
        """Bytes."""
        return _memory("VmHWM") - self._before


def _memory(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) << 10
