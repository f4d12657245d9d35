"""Reading of arrays from npy and NPZ bytes, without unpickling; every header is checked before it is used.

``zipfile`` reads only the directory (list of members) of an archive. This module reads the data of the requested
members. It compares each npy header with the size in the directory, limits decompression, and checks the CRC. No array
is allocated before its header has been checked.
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
import zipfile
import zlib
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError, RecordingFault, UsageFault
from omniges.storage.files import read_file

Array = npt.NDArray[Any]
F64 = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.floating]

MAX_TOTAL_BYTES = 1 << 30

_MAX_HEADER = 4096
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_DESCR = re.compile(r"'descr'\s*:\s*'([^']{1,32})'")
_FORTRAN = re.compile(r"'fortran_order'\s*:\s*(True|False)")
_SHAPE = re.compile(r"'shape'\s*:\s*\(\s*+((?:[0-9]{1,15}+L?\s*+(?:,\s*+|(?=\)))){0,4}+)\)")
_SIMPLE = re.compile(r"([<>|=]?)([a-zA-Z?])([0-9]{0,9})")
# Errors that zipfile raises when it reads the directory of a malicious archive.
_ZIP_FAULTS = (zipfile.BadZipFile, struct.error, ValueError, OverflowError, NotImplementedError, IndexError)


@dataclass(frozen=True, slots=True)
class _Header:
    """Content of an npy header; ``dtype`` is NumPy's text for the data type, such as ``<f4``."""

    kind: str
    itemsize: int
    dtype: str
    shape: tuple[int, ...]
    fortran: bool
    header_bytes: int


@dataclass(frozen=True, slots=True)
class Member(_Header):
    """An array in an archive, not yet read: its checked npy header, its name, and its zip entry."""

    key: str
    info: zipfile.ZipInfo


def _header(start: bytes | memoryview, name: str, total_bytes: int) -> _Header:
    """Parse the npy header at the start of npy data, and check it against the total size of the data in bytes."""
    wide = start[6:7] in {b"\2", b"\3"}
    first = 12 if wide else 10
    end = first + int.from_bytes(start[8:first], "little")
    if start[:6] != b"\x93NUMPY" or start[6:7] not in {b"\1", b"\2", b"\3"} or end > len(start):
        raise RecordingFault(
            "npz-damaged", f"{name} with the first bytes {bytes(start[:8])!r}", "an npy header below 4 KiB"
        )
    text = bytes(start[first:end]).decode("latin-1")
    descr, fortran, shape = _DESCR.search(text), _FORTRAN.search(text), _SHAPE.search(text)
    simple = _SIMPLE.fullmatch(descr[1]) if descr else None
    if simple is None and "'descr'" in text:
        raise RecordingFault(
            "npz-wrong-dtype", f"{name} with the npy header {text[:80].strip()!a}", "float32 or float64"
        )
    if simple is None or fortran is None or shape is None:
        raise RecordingFault("npz-damaged", f"{name} with the npy header {text[:80].strip()!r}", "a numpy header")
    order, kind, size = simple.groups()
    if kind == "O":
        raise RecordingFault("npz-object-array", f"pickled objects in {name}", "plain numbers")
    itemsize = int(size or 1) * (4 if kind == "U" else 1)
    dims = tuple(int(digits) for digits in re.findall("[0-9]+", shape[1]))
    claim = math.prod(dims) * itemsize
    if claim != total_bytes - end:
        found = f"{total_bytes - end} bytes of data for {name} of shape {dims}"
        raise RecordingFault("npz-damaged", found, f"{claim} bytes")
    return _Header(kind, itemsize, f"{order}{kind}{size}", dims, fortran[1] == "True", end)


def _content(body: bytes | memoryview, header: _Header) -> Array:
    """Convert the bytes of an npy file (header and data) to a new C-ordered array in native byte order.

    `header` is the content of this header, which has been parsed and checked.
    """
    flat = np.frombuffer(body, header.dtype, offset=header.header_bytes)
    shaped = flat.reshape(header.shape, order="F" if header.fortran else "C")
    return np.array(shaped, dtype=flat.dtype.newbyteorder("="), order="C")


def decode_npy(data: bytes | memoryview) -> Array:
    """Return the numeric array in the bytes of an npy file; raise RecordingFault with a code ``npz-…``."""
    header = _header(bytes(data[:_MAX_HEADER]), "the array", len(data))
    if header.kind not in "fiu" or header.itemsize not in ({2, 4, 8} if header.kind == "f" else {1, 2, 4, 8}):
        raise RecordingFault("npz-wrong-dtype", f"an array of {header.dtype}", "numbers")
    return _content(data, header)


class Archive:
    """A ZIP archive of arrays in memory; every length in the archive is checked before it is used."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data).cast("B")
        if not len(self._data):
            raise RecordingFault("npz-not-zip", "a file of 0 bytes", "an NPZ archive")
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                infos = archive.infolist()
        except _ZIP_FAULTS as fault:
            found = f"{len(self._data)} bytes starting with {bytes(self._data[:4])!r}: {str(fault)[:80]}"
            raise RecordingFault("npz-not-zip", found, "a complete NPZ archive") from None
        names = Counter(info.filename for info in infos)
        twice = sorted(name for name, count in names.items() if count > 1)
        if twice:
            raise RecordingFault("npz-damaged", f"{twice[0][:80]!r} {names[twice[0]]} times", "each member once")
        self._infos = {info.filename: info for info in infos}

    def __contains__(self, key: str) -> bool:
        return f"{key}.npy" in self._infos

    @property
    def keys(self) -> list[str]:
        """Names of the arrays, sorted."""
        return sorted(name.removesuffix(".npy") for name in self._infos)

    def check_total(self, keys: list[str]) -> None:
        """Refuse arrays with more than 1 GiB in total. The sizes come from the archive's directory; no data is read."""
        total = sum(self._infos[f"{key}.npy"].file_size for key in keys)
        if total > MAX_TOTAL_BYTES:
            raise RecordingFault("npz-too-large", f"{total} bytes claimed", f"at most {MAX_TOTAL_BYTES}")

    def header(self, key: str) -> Member:
        """Return a member after checking its npy header against its zip entry; read at most 4 KiB of the member."""
        info = self._infos[f"{key}.npy"]
        start = self._inflate(info, min(_MAX_HEADER, info.file_size))
        header = _header(start, key, info.file_size)
        return Member(**asdict(header), key=key, info=info)

    def array(self, member: Member) -> Array:
        """Read a complete member and check its CRC; return a new C-ordered array in native byte order."""
        body = self._inflate(member.info, member.info.file_size + 1)
        if len(body) != member.info.file_size:
            found = (
                f"{member.key} with {'more' if len(body) > member.info.file_size else len(body)} bytes after unpacking"
            )
            raise RecordingFault("npz-damaged", found, f"{member.info.file_size}")
        if zlib.crc32(body) != member.info.CRC:
            raise RecordingFault("npz-damaged", f"another checksum of {member.key}", f"{member.info.CRC:#010x}")
        return _content(body, member)

    def text(self, key: str) -> str | None:
        """Return the text of a member that contains one string; "" if the member is absent.

        Return None for a text that is too long or not printable, for any other content, and for a damaged member. No
        error is raised in these cases, so that a recording stays usable without the text.
        """
        info = self._infos.get(f"{key}.npy")
        if info is None:
            return ""
        if info.file_size > _MAX_HEADER:
            return None
        try:
            member = self.header(key)
            if member.kind not in "US" or math.prod(member.shape) != 1:
                return None
            array = self.array(member)
            # The bytes are decoded here, because NumPy raises SystemError for a character beyond Unicode.
            wide = "utf-32-be" if array.dtype.byteorder == ">" else "utf-32-le"
            text = array.tobytes().decode(wide if member.kind == "U" else "utf-8").rstrip("\0")
        except (RecordingFault, ValueError):
            return None
        return text if not text or text.isprintable() else None

    def _inflate(self, info: zipfile.ZipInfo, limit: int) -> bytes | memoryview:
        """Decompress a member; return at most the first ``limit`` bytes of the decompressed data."""
        body = self._packed(info)
        if info.compress_type == zipfile.ZIP_STORED:
            if info.compress_size != info.file_size:
                found = f"{info.filename[:80]} stored in {info.compress_size} bytes"
                raise RecordingFault("npz-damaged", found, f"{info.file_size}")
            return bytes(body[:limit]) if limit <= _MAX_HEADER else body[:limit]
        try:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(body, limit) if limit else b""
        except zlib.error as fault:
            raise RecordingFault("npz-damaged", f"{info.filename[:80]}: {fault}", "deflated data") from None

    def _packed(self, info: zipfile.ZipInfo) -> memoryview:
        """Return the compressed bytes of a member."""
        name = info.filename[:80]
        if info.flag_bits & 0x1:
            raise RecordingFault("npz-damaged", f"{name}, which is encrypted", "members without encryption")
        if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise RecordingFault("npz-damaged", f"{name} with compression {info.compress_type}", "stored or deflated")
        start = info.header_offset
        head = self._data[start : start + _LOCAL_HEADER.size] if start >= 0 else b""
        if len(head) < _LOCAL_HEADER.size or bytes(head[:4]) != b"PK\x03\x04":
            raise RecordingFault("npz-damaged", f"no member header at byte {start} for {name}", "PK34")
        _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(head)
        start += _LOCAL_HEADER.size
        if bytes(self._data[start : start + name_bytes]) != info.filename.encode():
            found = f"{name!r} in the directory, and another name in the member itself"
            raise RecordingFault("npz-damaged", found, "one name")
        start += name_bytes + extra_bytes
        body = self._data[start : start + info.compress_size]
        if len(body) != info.compress_size:
            found = f"{len(body)} of {info.compress_size} bytes of {name}"
            raise RecordingFault("npz-damaged", found, "all of them")
        return body


def read_array(path: Path, wanted: str) -> npt.NDArray[Any]:
    """Read the numeric array in an npy file.

    Args:
        path: The .npy file.
        wanted: Description of the expected content, for errors.

    Returns:
        The array, C-ordered and in native byte order.

    Raises:
        UsageFault: The file does not exist.
        DataError: The file is not an npy file, is damaged, or contains pickled objects.
    """
    if not os.path.lexists(path):
        raise UsageFault(f"{path}: {wanted}, found that the file does not exist; check the path")
    try:
        return decode_npy(read_file(path, MAX_TOTAL_BYTES))
    except RecordingFault as fault:
        raise DataError(f"{path}: {wanted}, found {fault.problem.found}; check the file") from fault


def checked(array: Numbers, what: str, shape: tuple[int | None, ...], *, at_least: int = 1) -> F64:
    """Return an array as float64 after checking its shape and values.

    Args:
        array: Array to check.
        what: Name of the array, for errors.
        shape: Expected shape; an axis given as None may have any length.
        at_least: Minimum number of rows.

    Returns:
        The array as float64.

    Raises:
        UsageFault: The shape is wrong.
        DataError: There are too few rows, or values are NaN or infinite.
    """
    array = np.asarray(array)
    fits = array.ndim == len(shape) and all(n is None or n == m for n, m in zip(shape, array.shape, strict=True))
    if not fits or array.dtype.kind not in "fiu":
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise UsageFault(
            f"{what}: expected numbers ({wanted}), found an array {array.shape} of {array.dtype}; convert it"
        )
    if len(array) < at_least:
        raise DataError(f"{what}: expected {at_least} or more rows, found {len(array)}; leave this clip out")
    if not np.isfinite(array).all():  # before the cast, which gives a warning for some NaN values
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        raise DataError(f"{what}: expected finite numbers, found {array[where]} at index {where}; correct the values")
    return np.asarray(array, dtype=np.float64)
