"""Tar members with plain ustar headers. The bytes do not depend on the time or the machine.

`tarfile` is not used, because it adds fields that the contract forbids: times, owners and pax headers.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

BLOCK_BYTES: Final = 512
END_OF_ARCHIVE: Final = bytes(2 * BLOCK_BYTES)
NPY_MAGIC: Final = b"\x93NUMPY\x01\x00"
_MAX_MEMBER_BYTES: Final = 8**11 - 1
_NPY_HEADER: Final = re.compile(  # header of numpy.save for plain numbers in C order
    rb"\{'descr': '(?P<dtype><[fiu][248]|\|[iub]1)', 'fortran_order': False, 'shape': "
    rb"\((?P<shape>[0-9]{1,18}(?:,|(?:, [0-9]{1,18})+))\), \} *\n"
)


def member_header(name: str, size: int) -> bytes:
    """Return the 512-byte ustar header (POSIX.1-1988) of a regular file with mode 0644, owner 0 and time 0.

    Args:
        name: Name of the member, at most 100 bytes.
        size: Size of the member's data in bytes, below 8 GiB.

    Returns:
        The header.

    Raises:
        ValueError: The name is too long or the size too large for a plain ustar header.
    """
    encoded = name.encode("ascii")
    if not 0 < len(encoded) <= 100 or not 0 <= size <= _MAX_MEMBER_BYTES:
        raise ValueError(f"member {name!r} of {size} bytes does not fit a ustar header")
    head = encoded.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" + b"0000000\0"
    head += b"%011o\0" % size + b"%011o\0" % 0
    tail = b"0" + bytes(100) + b"ustar\x0000" + bytes(32) + bytes(32) + b"0000000\0" + b"0000000\0"
    tail = tail.ljust(BLOCK_BYTES - len(head) - 8, b"\0")
    checksum = sum(head) + sum(tail) + 8 * ord(" ")
    return head + b"%06o\0 " % checksum + tail


def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """Return the npy 1.0 header of an array, padded to a multiple of 64 bytes; the contract allows no other header.

    Args:
        dtype: NumPy type string, such as ``<f4``.
        shape: Shape of the array.

    Returns:
        All bytes of the npy file before the array's data.
    """
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    size = -(-(10 + len(text) + 1) // 64) * 64
    return NPY_MAGIC + (size - 10).to_bytes(2, "little") + text.ljust(size - 11).encode("ascii") + b"\n"


def npy_parts(array: npt.NDArray[np.generic]) -> tuple[bytes, memoryview]:
    """Return an array in `.npy` format 1.0 as two pieces: the padded header, and a view of the array's data.

    ValueError is raised if the array is not C-contiguous, is big-endian or contains Python objects.
    """
    if not array.flags.c_contiguous or array.dtype.hasobject or array.dtype.byteorder == ">":
        raise ValueError(f"expected a C-contiguous little-endian array, found {array.dtype} {array.flags}")
    data = memoryview(array.reshape(-1).view(np.uint8).data) if array.size else memoryview(b"")
    return npy_header(array.dtype.str, array.shape), data


def read_npy(data: bytes | memoryview) -> npt.NDArray[Any]:
    """Return the array in `.npy` bytes of unknown origin, as a view of the bytes; no memory is allocated.

    numpy's own parser is not used. It accepts other headers too, and raises errors of Python's tokenizer for invalid
    headers.

    Args:
        data: All bytes of the member: a version 1.0 header as numpy.save writes it, then the numbers.

    Returns:
        The array, which shares memory with the bytes.

    Raises:
        ValueError: The header has another form, or the size does not fit the header.
    """
    head = bytes(data[: len(NPY_MAGIC) + 2])
    start = 10 + int.from_bytes(head[8:], "little")
    match = _NPY_HEADER.fullmatch(bytes(data[10:start]))
    if not head.startswith(NPY_MAGIC) or match is None or start > len(data):
        raise ValueError(f"expected a plain header of npy version 1.0, found {bytes(data[:80])!r}")
    dtype = np.dtype(match["dtype"].decode())
    shape = tuple(int(side) for side in match["shape"].split(b",") if side)
    count = math.prod(shape)
    if start + count * dtype.itemsize != len(data):
        raise ValueError(
            f"expected {start + count * dtype.itemsize} bytes for an array {shape} of {dtype.str}, found {len(data)}"
        )
    found: npt.NDArray[Any] = np.frombuffer(data, dtype, count, start)
    return found.reshape(shape)


@dataclass(frozen=True, slots=True)
class Segment:
    """The consecutive tar members of a sample: the buffers to write, and the start of each member's data."""

    buffers: tuple[bytes | memoryview, ...]
    size: int  # bytes of all buffers
    data_offsets: dict[str, int]  # member -> offset of its data from the start of the segment, in bytes
    data_sizes: dict[str, int]  # member -> size of its data in bytes


def build_segment(key: str, members: dict[str, tuple[bytes | memoryview, ...]]) -> Segment:
    """Return a sample's members as consecutive tar members, each with header and padding.

    Args:
        key: Sample key.
        members: Content of each member, as one or several buffers. The result has the members in the same order.

    Returns:
        The buffers of all members in order, and the start of each member's data.
    """
    buffers: list[bytes | memoryview] = []
    offsets: dict[str, int] = {}
    sizes: dict[str, int] = {}
    position = 0
    for member, pieces in members.items():
        size = sum(len(piece) for piece in pieces)
        padding = -size % BLOCK_BYTES
        offsets[member], sizes[member] = position + BLOCK_BYTES, size
        buffers += [member_header(f"{key}.{member}", size), *pieces, bytes(padding)]
        position += BLOCK_BYTES + size + padding
    return Segment(tuple(b for b in buffers if len(b)), position, offsets, sizes)
