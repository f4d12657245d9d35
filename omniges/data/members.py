"""Array members of shards, read by range and checked at their first use. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.data.shard_maps import Ranges, ShardMaps
from omniges.errors import DataError
from omniges.shards.manifest import ManifestRow
from omniges.shards.reader import ShardFolder, check_member, place_of_member
from omniges.shards.schema import VERIFY
from omniges.shards.tar import npy_header

F32 = npt.NDArray[np.float32]

_HEADER_BYTES: Final = 128  # the longest npy header of a member is shorter


class MemberReader:
    """Reads float32 members of samples by byte range. An instance must not be used by several threads at once.

    Args:
        folder: The shard set.
        rows: The samples, by number.
        widths: For each member to read, the number of columns; 0 for an array of one dimension.
        marks: Zeros (samples, members) uint8; set to 1 when a member's sha256 was compared. Processes may share the
            array, so that each member is compared once.
        verify: Whether to compare the sha256.
    """

    def __init__(
        self,
        folder: ShardFolder,
        rows: Sequence[ManifestRow],
        widths: Mapping[str, int],
        marks: npt.NDArray[np.uint8],
        *,
        verify: bool,
    ) -> None:
        self._folder, self._rows, self._widths, self._marks, self._verify = folder, rows, dict(widths), marks, verify
        self._columns = {member: column for column, member in enumerate(self._widths)}
        self._maps = ShardMaps(folder.source, mapped=False)
        self._places: dict[tuple[int, str], tuple[int, int]] = {}  # first float in the shard, and how many

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_places": {}}

    def floats(self, number: int, member: str, first: int, count: int) -> F32:
        """Return values of a sample's member, row after row.

        Args:
            number: Index of the sample.
            member: Name of the member, such as ``gesture.npy``.
            first: First value.
            count: Number of values.

        Returns:
            Values (count,), fewer where the member ends before; valid until the next call.

        Raises:
            DataError: The shard or member differs from the manifest, or does not follow the contract.
            EnvironmentFault: The shard cannot be opened.
        """
        row = self._rows[number]
        mapped = self._maps.get(row.shard, self._folder.dataset["shards"][row.shard]["bytes"])
        name = number, member
        place = self._places.get(name)
        if place is None:
            place = self._places[name] = self._check(mapped.content, number, member)
        start, available = place
        floats: F32 = mapped.floats[start + first : start + min(first + count, available)]
        return floats

    def _check(self, content: Ranges, number: int, member: str) -> tuple[int, int]:
        """Return the offset and number of a member's values after checking its digest and header."""
        row, width = self._rows[number], self._widths[member]
        place = row.members[member]
        shown = place_of_member(self._folder.source, row.shard, row.key, member, place.offset)
        if place.offset + place.size > len(content):
            raise DataError(
                f"{shown}: expected {place.size} bytes from byte {place.offset} on, found a shard of "
                f"{len(content)} bytes. {VERIFY}"
            )
        if self._verify and not self._marks[number, self._columns[member]]:
            member_bytes = content[place.offset : place.offset + place.size]
            check_member(self._folder.source, row.shard, member_bytes, bytes.fromhex(place.sha256), shown)
            self._marks[number, self._columns[member]] = 1
        head = content[place.offset : place.offset + min(place.size, _HEADER_BYTES)]
        head_bytes = 10 + int.from_bytes(head[8:10], "little")
        count = max(0, place.size - head_bytes) // 4
        rows = {"gesture.npy": row.frames, "jaw_eyes.npy": row.frames, "mel.npy": row.mel_frames}.get(member, count)
        shape = (rows, width) if width else (count,)
        expected = npy_header("<f4", shape)
        valid = head[: len(expected)] == expected and place.size == len(expected) + 4 * int(np.prod(shape))
        if not valid or (place.offset + head_bytes) % 4:
            raise DataError(f"{shown}: expected an npy array {shape} of float32, found another. {VERIFY}")
        return (place.offset + head_bytes) // 4, count
