"""Reading of files of unknown origin, writing of JSON, and sha256 digests.

A folder of unknown origin may contain a pipe, a device or a link in place of a file. Every reader of such a folder
opens its files with this module, which accepts only regular files of limited size and plain JSON.
"""

from __future__ import annotations

import codecs
import errno
import hashlib
import json
import math
import os
import re
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

from omniges.errors import DataError, UsageFault
from omniges.storage.atomic import os_errors

MAX_JSON_BYTES: Final = 256 << 20
"""Size limit of JSON files in bytes; the dataset.json of a million shards is smaller."""
MAX_SETTINGS_BYTES: Final = 16 << 20
"""Size limit of JSON files of settings in bytes; an index of a hundred thousand tensors is smaller."""
_MAX_LEVELS: Final = 100
DOWNLOADED_INSTEAD: Final = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
    (b"<", "a web page or XML"),
)
"""First bytes of files that are often downloaded instead of the intended file, and a description of each."""
_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_ABSENT: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_KINDS: Final = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def visible_entries(folder: Path) -> list[Path]:
    """Return the sorted entries of a folder, without the ``._NAME`` and ``.DS_Store`` files of macOS.

    Args:
        folder: Folder to list.

    Returns:
        Paths of the entries, sorted.

    Raises:
        OSError: The folder cannot be read.
    """
    return sorted(path for path in folder.iterdir() if not path.name.startswith("._") and path.name != ".DS_Store")


def open_file(path: Path, root: Path | None = None) -> int:
    """Open a regular file for reading. A pipe is refused at once, without waiting for its writer.

    Args:
        path: The file.
        root: Folder in which the target of a link must lie, see `lies_inside`. None: a link may lead anywhere, because
            the user named this file.

    Returns:
        The descriptor, which the caller closes.

    Raises:
        DataError: The path is not a regular file, or a link leads out of `root`.
        FileNotFoundError: The file does not exist.
        EnvironmentFault: The operating system refuses access.
    """
    if root is not None and not lies_inside(path, root):
        raise DataError(
            f"{path}: expected a file inside {root}, found a link to a file elsewhere; copy the file to this place"
        )
    try:
        descriptor = os.open(path, _FLAGS)
    except FileNotFoundError as error:
        if path.is_symlink():
            raise DataError(f"{path}: expected a file, found a link to nothing; put the file itself there") from error
        raise
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, which cannot be opened at all
            raise DataError(_no_file(path, stat.S_IFSOCK)) from error
        if error.errno == errno.ELOOP:
            raise DataError(f"{path}: expected a file, found links in a circle; put the file itself there") from error
        with os_errors(path, "read"):
            raise
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise DataError(_no_file(path, kind))
    return descriptor


def require_file(
    path: Path,
    expected: str,
    flag: str = "",
    remedy: str = "write its content to a file first",
    missing: str = "check the path",
) -> None:
    """Refuse a path from the user that is not a regular file.

    Args:
        path: The path.
        expected: Description of the expected file, for the error.
        flag: Name of the flag, for the error.
        remedy: Last part of the error for a pipe, a socket or a device: what to do.
        missing: Last part of the error for a path that does not exist: what to do.

    Raises:
        UsageFault: The path does not exist, or is a folder, pipe, socket or device.
        EnvironmentFault: The operating system refuses access.
    """
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except OSError as error:
        if error.errno not in _ABSENT:
            with os_errors(path, "read"):
                raise
        kind = None
    if kind == stat.S_IFREG:
        return
    if kind is None:
        found, remedy = "a link to nothing" if path.is_symlink() else "that the file does not exist", missing
    else:
        found = f"{_KINDS.get(kind, 'a device')}, not a regular file"
        remedy = "give a file" if kind == stat.S_IFDIR else remedy
    raise UsageFault(f"{flag}{' ' if flag else ''}{path}: expected {expected}, found {found}; {remedy}")


def open_regular(path: Path, *, follow: bool = True) -> BufferedReader:
    """Open a regular file as a binary stream. A pipe is refused at once, without waiting for its writer.

    Unlike `open_file`, this function raises only OSErrors. The caller can convert them into findings of a recording.

    Args:
        path: The file.
        follow: Whether the file may be a link.

    Returns:
        The stream at its first byte. The caller closes it.

    Raises:
        OSError: The operating system refuses access, or the path is not a regular file (EINVAL).
    """
    flags = _FLAGS if follow else _FLAGS | os.O_NOFOLLOW
    stream = open(path, "rb", opener=lambda name, _: os.open(name, flags))  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError(errno.EINVAL, "a device, pipe or socket", str(path))
    return stream


def _no_file(path: Path, kind: int) -> str:
    return f"{path}: expected a regular file, found {_KINDS.get(kind, 'a device')}; put the file itself in this place"


def lies_inside(path: Path, root: Path) -> bool:
    """Return whether a path lies in a folder after links are resolved.

    There is one exception: files in the folder ``ENTRY/snapshots/REVISION`` of a Hugging Face cache are links to
    ``ENTRY/blobs/HASH``, and they count as inside.

    Args:
        path: Path to check.
        root: Folder in which the path should lie.

    Returns:
        True if the path lies inside the folder.
    """
    target, base = os.path.realpath(path), os.path.realpath(root)
    entry, snapshots, _ = base.rpartition("/snapshots/")
    bounds = [base.rstrip("/") + "/", *([f"{entry}/blobs/"] if snapshots else [])]
    return target.startswith(tuple(bounds))


def read_file(path: Path, max_bytes: int, root: Path | None = None) -> bytes:
    """Return the content of a regular file.

    Args:
        path: The file.
        max_bytes: Largest size that is accepted.
        root: See `open_file`.

    Returns:
        All bytes of the file.

    Raises:
        DataError: The path is refused by `open_file`, or the file is larger than `max_bytes`.
        FileNotFoundError: The file does not exist.
        EnvironmentFault: The operating system refuses access.
    """
    with open(open_file(path, root), "rb") as stream, os_errors(path, "read"):
        size = os.fstat(stream.fileno()).st_size
        if size > max_bytes:
            raise DataError(f"{path}: expected at most {max_bytes} bytes, found {size}; check where the file is from")
        return stream.read()


def read_range(descriptor: int, offset: int, size: int) -> bytes:
    """Return a range of bytes of an open file. Memory is allocated only for bytes that exist in the file.

    Args:
        descriptor: Descriptor of the file, open for reading.
        offset: First byte.
        size: Number of bytes.

    Returns:
        The bytes; fewer than `size` only at the end of the file.

    Raises:
        OSError: The file cannot be read.
    """
    pieces, left = [], min(size, os.fstat(descriptor).st_size - offset)
    while left > 0 and (piece := os.pread(descriptor, left, offset)):  # one call reads at most 2 GiB
        pieces.append(piece)
        offset, left = offset + len(piece), left - len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def parse_json(data: bytes) -> Any:
    """Parse JSON bytes of unknown origin.

    Args:
        data: UTF-8 text.

    Returns:
        Dictionaries, lists, texts, numbers, booleans and None.

    Raises:
        ValueError: The bytes are not UTF-8 JSON, or are JSON that this function refuses: NaN, a number that is too
            large for a float, a repeated name in an object, half of a surrogate pair, or too deep nesting.
    """
    try:
        text = data.decode("utf-8")
        found = json.loads(
            text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant, parse_float=_finite
        )
        if "\\u" in text:  # only such an escape can encode half of a surrogate pair
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair is no text") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if _is_deep(found):
        raise ValueError("nested too deeply")
    return found


def _is_deep(found: Any) -> bool:
    """Return whether a JSON value is nested 100 or more levels deep. Writing it could exceed the recursion limit."""
    level = [found]
    for _ in range(_MAX_LEVELS):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(name for name in names if names.count(name) > 1)[:80]!a} occurs twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:40]} is too large for a float")
    return number


def read_json(path: Path, remedy: str, root: Path | None = None, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Parse a JSON file of unknown origin.

    Args:
        path: The file.
        remedy: Last part of each error: what to do about a damaged file.
        root: See `open_file`.
        max_bytes: Largest size that is accepted.

    Returns:
        The value, as `parse_json` returns it.

    Raises:
        DataError: The path is not a regular file of plain JSON, see `parse_json`.
        FileNotFoundError: The file does not exist.
        EnvironmentFault: The operating system refuses access.
    """
    try:
        return parse_json(read_file(path, max_bytes, root))
    except ValueError as error:
        raise DataError(f"{path}: expected a JSON document, found damage ({error}); {remedy}") from error


def read_settings(path: Path, remedy: str, root: Path | None = None) -> dict[str, Any]:
    """Return the JSON object in a file that must exist, such as the config.json in a codec's folder.

    Args:
        path: The file.
        remedy: Last part of each error: what to do about a missing or damaged file.
        root: See `open_file`.

    Returns:
        The object; its values are those that `parse_json` returns.

    Raises:
        DataError: The file does not exist, or is not a JSON object of at most 16 MiB.
        EnvironmentFault: The operating system refuses access.
    """
    try:
        found = read_json(path, remedy, root, MAX_SETTINGS_BYTES)
    except FileNotFoundError as error:
        raise DataError(f"{path}: expected this file, found that the file does not exist; {remedy}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(found).__name__}; {remedy}")
    return found


# --- Writing JSON, and digests

_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


def canonical_json(value: Any) -> bytes:
    """Return the canonical bytes of a JSON value for hashing: sorted keys, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def json_document(value: Any) -> bytes:
    """Return the bytes of a JSON file for people: sorted keys, indented, UTF-8, with a final line break."""
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def sha256_hex(*pieces: bytes | memoryview) -> str:
    """Return the hexadecimal sha256 of bytes that are given in one or several pieces."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def file_sha256(path: Path, *, follow: bool = True) -> str:
    """Return the sha256 of a regular file; the file is read in blocks.

    Args:
        path: The file.
        follow: Whether the file may be a link.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: The file cannot be read, or `open_regular` refuses it.
    """
    with open_regular(path, follow=follow) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_sha256(text: object) -> bool:
    """Return whether a text is a sha256 in lower-case hexadecimal digits."""
    return isinstance(text, str) and _SHA256.fullmatch(text) is not None


def text_codec(data: bytes) -> str:
    """Detect whether a text is UTF-8 or UTF-16, and return the name of this encoding in Python.

    A byte order mark at the start is not required. UTF-16 without a byte order mark is recognized only if the first
    character of the text is a Latin-1 character.

    Args:
        data: Bytes of the text.

    Returns:
        ``utf-8-sig``, ``utf-16``, ``utf-16-le`` or ``utf-16-be``.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if 0 in data[:2]:  # in UTF-16, one of the two bytes of a Latin-1 character is zero
        return "utf-16-be" if data[0] == 0 else "utf-16-le"
    return "utf-8-sig"
