"""Windows from tar shards, read by byte range from memory maps directly into a batch's memory.

The size of a shard is checked before the shard is mapped. The npy header of a member (one file in a shard) is checked
before the first window is read from the member. By default the sha256 of the member is checked too. A fault raises a
DataError with shard, key, member and byte offset.

If a file is truncated while it is mapped, the kernel kills a process that reads the missing part (SIGBUS). A process
that must not be killed reads shards range by range instead (`ShardFile`). This module does not import torch.
"""

from __future__ import annotations

import mmap
import os
import re
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from omniges.data.catalog import ClipTable
from omniges.data.tracks import PLAIN_TRACKS, Normaliser, Scale, Tracks
from omniges.errors import DataError
from omniges.shards.present import ALL_PRESENT, STREAM_BITS, absent_channels
from omniges.shards.reader import ShardSource, check_member, place_of_member
from omniges.shards.schema import VERIFY, words_of
from omniges.storage.atomic import os_errors
from omniges.storage.cache import CacheFull
from omniges.storage.redact import one_line

F32 = npt.NDArray[np.float32]

Verify = Literal["first", "never"]

_MAX_CHECKED: Final = 1 << 16
"""Number of clips whose offsets a process caches (15 MB). A full cache is cleared; checks are stored in `ReadMarks`."""

_MAX_HEADER_BYTES: Final = 4096
# Header as numpy.save writes it. numpy's own parser accepts more, and may raise any error of Python's tokenizer.
_NPY_HEADER: Final = re.compile(
    rb"\{'descr': '(?P<dtype>[^']*)', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>[\d, ]*)\), *\} *\n"
)
_GESTURE, _AUDIO, _TEXT, _JAW_EYES = range(4)

MAX_MAPS: Final = 64
"""Number of shards that a process keeps mapped; the least recently used shard is unmapped first."""


class ShardFile:
    """An open shard with the interface of a memory map; each access reads the requested byte range from the file."""

    def __init__(self, descriptor: int, size_bytes: int, shown: str) -> None:
        """Use an open file for all reads. The file is closed when this object is deleted.

        Args:
            descriptor: File descriptor.
            size_bytes: Size of the file.
            shown: Name of the file, shown in error messages.
        """
        self._descriptor, self._size, self._shown = descriptor, size_bytes, shown

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, place: slice, /) -> bytes:
        start, stop, _ = place.indices(self._size)
        with os_errors(Path(self._shown), "read"):
            found = os.pread(self._descriptor, max(0, stop - start), start)
        self._require(stop - start, start, len(found))
        return found

    def read_into(self, values: npt.NDArray[np.float32], start: int) -> None:
        """Fill an array with bytes of the shard.

        Args:
            values: The array to fill; its size in bytes is the number of bytes to read.
            start: Offset in the shard of the first byte to read.

        Raises:
            DataError: The shard ends before the array is full.
            EnvironmentFault: The shard cannot be read.
        """
        with os_errors(Path(self._shown), "read"):
            found = os.preadv(self._descriptor, [values.data], start)
        self._require(values.nbytes, start, found)

    def _require(self, expected: int, start: int, found: int) -> None:
        if found < expected:
            raise DataError(
                f"{self._shown}: expected {expected} bytes at byte {start}, found {found}; the shard was "
                f"truncated while it was read, or the disk fails; {VERIFY}"
            )

    def madvise(self, _option: int, start: int, length: int, /) -> None:
        """Ask the kernel to read a range from the disk ahead of its use.

        Args:
            _option: Not used.
            start: First byte of the range.
            length: Size of the range in bytes.
        """
        os.posix_fadvise(self._descriptor, start, length, os.POSIX_FADV_WILLNEED)

    def __del__(self) -> None:
        os.close(self._descriptor)


class _Floats:
    """A shard as float32 values. All ranges are read into the same memory, so a range is valid until the next read."""

    def __init__(self, file: ShardFile) -> None:
        self._file = file
        self._memory = np.empty(0, np.float32)  # a new allocation for each range would take longer than the copy

    def __getitem__(self, place: slice) -> npt.NDArray[np.float32]:
        count = max(0, place.stop - place.start)
        if count > len(self._memory):
            self._memory = np.empty(count, np.float32)
        values = self._memory[:count]
        self._file.read_into(values, 4 * place.start)
        return values


class Ranges(Protocol):
    """Interface of a shard whose bytes are read by range."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: slice, /) -> bytes: ...

    def madvise(self, option: int, start: int, length: int, /) -> None:
        """Tell the kernel how a range will be used.

        Args:
            option: One of ``mmap.MADV_*``.
            start: First byte of the range.
            length: Size of the range in bytes.
        """
        ...


@dataclass(frozen=True, slots=True)
class MappedShard:
    """An open shard in two forms: as bytes, and as float32 values of the same content."""

    content: Ranges
    floats: Any  # an array or `_Floats`; use each range before the next range is taken


class ShardMaps(Collection[str]):
    """The mapped or open shards of a source, by name. Not safe for several threads at once; a pickled copy is empty."""

    def __init__(self, source: ShardSource, *, mapped: bool = True) -> None:
        """Create the object; a shard is opened at its first use.

        Args:
            source: Source of the shards.
            mapped: True: map shards into memory. False: keep them open, and read them range by range.
        """
        self._source, self._mapped = source, mapped
        self._maps: OrderedDict[str, MappedShard] = OrderedDict()

    def get(self, shard: str, size_bytes: int) -> MappedShard:
        """Return a shard; open or map it at its first use.

        Args:
            shard: Name of the shard.
            size_bytes: Size of the shard according to dataset.json.

        Returns:
            The open shard.

        Raises:
            DataError: The shard does not exist or has another size.
            EnvironmentFault: The shard cannot be opened or mapped.
        """
        mapped = self._maps.get(shard)
        if mapped is not None:
            self._maps.move_to_end(shard)
            return mapped
        descriptor = self._open(shard)
        try:
            found_bytes = os.fstat(descriptor).st_size
            if found_bytes != size_bytes:
                shown = self._source.describe(shard)
                raise DataError(f"{shown}: expected {size_bytes} bytes, found {found_bytes}; {VERIFY}")
            if self._mapped:
                with os_errors(Path(self._source.describe(shard)), "map"):
                    content = mmap.mmap(descriptor, size_bytes, prot=mmap.PROT_READ)
                mapped = MappedShard(content, np.frombuffer(content, np.float32, size_bytes // 4))
            else:
                file = ShardFile(os.dup(descriptor), size_bytes, self._source.describe(shard))
                mapped = MappedShard(file, _Floats(file))
        finally:
            os.close(descriptor)
        while len(self._maps) >= MAX_MAPS:
            self._maps.popitem(last=False)
        self._maps[shard] = mapped
        return mapped

    def _open(self, shard: str) -> int:
        try:
            return self._source.open(shard)
        except CacheFull:
            if not self._maps:
                raise
            self._maps.clear()  # a cache cannot evict mapped shards: unmap all and try again
            return self._source.open(shard)

    def __contains__(self, shard: object) -> bool:
        return shard in self._maps

    def __iter__(self) -> Iterator[str]:
        return iter(self._maps)

    def __len__(self) -> int:
        return len(self._maps)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": OrderedDict()}


@dataclass(frozen=True, slots=True, eq=False)
class ReadMarks:
    """Marks that show which members were checked. Worker processes share them, and skip checks of marked members.

    If two processes check the same member at the same time, both write the same mark.
    """

    data_starts: npt.NDArray[np.uint16]  # (N, M) size of each member's npy header in bytes; 0: not yet checked
    verified: npt.NDArray[np.uint8]  # (N, M) 1 if the member's sha256 was compared, otherwise 0

    @classmethod
    def blank(cls, clips: int, tracks: Tracks = PLAIN_TRACKS) -> ReadMarks:
        """Return marks which say that no member has been checked yet.

        Args:
            clips: Number of clips N.
            tracks: The array of each stream: features or latents. Each clip stores these arrays in M members.

        Returns:
            Marks (N, M), all 0.
        """
        shape = (clips, len(tracks.members))
        return cls(np.zeros(shape, np.uint16), np.zeros(shape, np.uint8))


class ClipReader:
    """Reader of windows and words from one shard folder; not safe for several threads at once."""

    def __init__(
        self,
        table: ClipTable,
        source: ShardSource,
        marks: ReadMarks,
        verify: Verify = "first",
        tracks: Tracks = PLAIN_TRACKS,
        *,
        mapped: bool = True,
    ) -> None:
        self.table = table
        self._tracks = tracks
        self._source, self._marks, self._verify = source, marks, verify == "first"
        self.maps = ShardMaps(source, mapped=mapped)
        self._shards = list(
            zip(map(table.shard_name, range(len(table.shard_bytes))), table.shard_bytes.tolist(), strict=True)
        )
        # Results of `_check` by clip.
        self._checked: dict[int, tuple[int, int, int, int, int]] = {}
        self._by_member = tracks.by_member

    def read_window(self, sample: int, start_tick: int, ticks: int, scales: Normaliser, out: tuple[F32, F32]) -> None:
        """Read normalised gesture and audio of a window; absent values are 0.

        Args:
            sample: Index of the clip.
            start_tick: First tick, a multiple of the tracks' `tick_multiple`.
            ticks: Length in ticks, a multiple of the tracks' `tick_multiple`.
            scales: Means and divisors of the channels. Reading is faster if `Scale.tiled` has repeated them for several
                successive rows. A row is a frame or, with a codec, the latents of one time step.
            out: Flattened arrays (rows · channels,) of gesture and audio to fill. Without codecs, their lengths are
                ticks · 3 · C and ticks · 10 · 64. C is 415, or 424 with jaw and eyes.

        Raises:
            DataError: The shard differs from the manifest.
        """
        # Cached as Python integers. Reading them from numpy columns would take a tenth of the time that the copy takes.
        shard, gesture_first, audio_first, jaw_first, present = self._checked.get(sample) or self._check(sample)
        floats = self.maps.get(*self._shards[shard]).floats
        gesture, audio = out
        if self._tracks.jaw_eyes is None:
            first = gesture_first + start_tick * len(gesture) // ticks
            scales.gesture.normalise_into(floats[first : first + len(gesture)], gesture)
        else:
            rows = gesture.reshape(-1, self._tracks.gesture_channels)
            parts = np.split(rows, [self._tracks.gesture.channels], axis=1)
            for part, start in zip(parts, (gesture_first, jaw_first), strict=True):
                first = start + start_tick * part.size // ticks
                part[:] = floats[first : first + part.size].reshape(part.shape)
            scales.gesture.normalise_into(gesture, gesture)
        first = audio_first + start_tick * len(audio) // ticks
        scales.audio.normalise_into(floats[first : first + len(audio)], audio)
        if present != ALL_PRESENT:
            self._blank(present, gesture, audio)

    def _blank(self, present: int, gesture: F32, audio: F32) -> None:
        """Write 0 to the channels of the parts that a clip lacks.

        In latents, no channel belongs to a single part. So latents are set to 0 only if the complete stream is absent.

        Args:
            present: Bit mask of the parts that the clip has.
            gesture: Flattened gesture (rows · channels,) of a window.
            audio: Flattened audio (rows · channels,) of the window.
        """
        rows = gesture.reshape(-1, self._tracks.gesture_channels)
        if not present & STREAM_BITS["gesture"]:
            rows[:] = 0.0
        elif self._tracks.gesture == PLAIN_TRACKS.gesture:
            for columns in absent_channels(present):
                rows[:, columns] = 0.0
        if not present & STREAM_BITS["audio"]:
            audio[:] = 0.0

    def read_text(self, sample: int, start_tick: int, ticks: int, scale: Scale, out: F32) -> None:
        """Read normalised latents of a window's text; absent text is 0.

        Args:
            sample: Index of the clip.
            start_tick: First tick of the window. It must be the first tick of a window that the text codec encoded.
            ticks: Length of the window in ticks.
            scale: Mean and divisor of the channels. Reading is faster if `Scale.tiled` has repeated them for several
                vectors.
            out: Flattened array (vectors · channels,) to fill. A vector is one of the latents of a window's text.

        Raises:
            DataError: The shard differs from the manifest.
        """
        mapped = self._map(sample)
        row, _ = self._tracks.arrays[_TEXT].span(start_tick, ticks)
        first = self._data_start(mapped.content, sample, _TEXT) // 4 + row * len(out)
        scale.normalise_into(mapped.floats[first : first + len(out)], out)
        if not self.table.present[sample] & STREAM_BITS["text"]:
            out[:] = 0.0

    def prefetch(self, samples: npt.NDArray[np.int64]) -> None:
        """Ask the source to prefetch the shards of clips in the order of the clip indices (k,); skip open shards."""
        shards = dict.fromkeys(self.table.shard[samples].tolist())
        wanted = [name for name, _ in map(self._shards.__getitem__, shards) if name not in self.maps]
        if wanted:
            self._source.prefetch(wanted)

    def advise(self, sample: int, start_tick: int, ticks: int) -> None:
        """Ask the kernel to read a window from disk in advance.

        Args:
            sample: Index of the clip.
            start_tick: First tick of the window.
            ticks: Length of the window in ticks.
        """
        mapped = self._map(sample).content
        for member, track in self._by_member.items():
            row_bytes = track.width * 4
            start_row, rows = track.span(start_tick, ticks)
            if self._verify and not self._marks.verified[sample, member]:
                first, size = int(self.table.offsets[sample, member]), int(self.table.sizes[sample, member])
            else:
                first = int(self.table.offsets[sample, member]) + start_row * row_bytes
                size = rows * row_bytes
            start = first - first % mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, start, min(first + size, len(mapped)) - start)

    def words(self, sample: int) -> list[dict[str, Any]]:
        """Return the words of a clip, or [] without text; raise DataError if the stored words are not a valid list."""
        if not self.table.present[sample] & STREAM_BITS["text"]:
            return []
        mapped = self._map(sample).content
        self._check_digest(mapped, sample, _TEXT)
        first, size = int(self.table.offsets[sample, _TEXT]), int(self.table.sizes[sample, _TEXT])
        try:
            return words_of(mapped[first : first + size])
        except ValueError as error:
            raise self._fault(sample, _TEXT, one_line(str(error), 200)) from error

    def _map(self, sample: int) -> MappedShard:
        """Return the shard of a clip."""
        return self.maps.get(*self._shards[self.table.shard[sample]])

    def _check(self, sample: int) -> tuple[int, int, int, int, int]:
        """Check the arrays of a clip and cache the result.

        Returns:
            Index of the clip's shard; indices of the first float of gesture, audio and jaw_eyes in the shard (0 for
            jaw_eyes if batches do not read it); bit mask of the clip's parts.
        """
        shard = int(self.table.shard[sample])
        content = self._map(sample).content
        gesture, audio = (self._data_start(content, sample, member) // 4 for member in (_GESTURE, _AUDIO))
        jaw_eyes = 0 if self._tracks.jaw_eyes is None else self._data_start(content, sample, _JAW_EYES) // 4
        if len(self._checked) >= _MAX_CHECKED:
            self._checked.clear()
        self._checked[sample] = found = shard, gesture, audio, jaw_eyes, int(self.table.present[sample])
        return found

    def _data_start(self, mapped: Ranges, sample: int, member: int) -> int:
        """Return the byte offset of a member's array data in the shard; check header and digest at the first use."""
        offset = int(self.table.offsets[sample, member])
        known = int(self._marks.data_starts[sample, member])
        if known:
            return offset + known
        self._check_digest(mapped, sample, member)
        header = self._check_header(mapped, sample, member)
        self._marks.data_starts[sample, member] = header
        return offset + header

    def _check_digest(self, mapped: Ranges, sample: int, member: int) -> None:
        if not self._verify or self._marks.verified[sample, member]:
            return
        first, size = int(self.table.offsets[sample, member]), int(self.table.sizes[sample, member])
        content = mapped[first : first + size]
        shard, _ = self._shards[self.table.shard[sample]]
        digest = self.table.digests[sample, member].tobytes()
        check_member(self._source, shard, content, digest, self._place(sample, member))
        self._marks.verified[sample, member] = 1

    def _check_header(self, mapped: Ranges, sample: int, member: int) -> int:
        """Return the size of a member's npy header; refuse an unexpected dtype, array order, shape or size."""
        first, size = int(self.table.offsets[sample, member]), int(self.table.sizes[sample, member])
        track, table = self._by_member[member], self.table
        rows = track.rows_of_clip(int(table.frames[sample]), int(table.mel_frames[sample]), int(table.ticks[sample]))
        expected = (rows, track.width)
        head = mapped[first : first + min(size, _MAX_HEADER_BYTES)]
        length = 10 + int.from_bytes(head[8:10], "little")
        match = _NPY_HEADER.fullmatch(head[10:length])
        if head[:6] != b"\x93NUMPY" or length > len(head):
            raise self._fault(sample, member, f"expected an npy header, found {head[:16]!r}")
        if head[6:8] != b"\x01\x00" or match is None:
            raise self._fault(sample, member, f"expected a plain header of npy version 1.0, found {head[6:80]!r}")
        dtype, fortran, shape = match["dtype"].decode(), match["fortran"] == b"True", match["shape"].decode()
        if dtype != "<f4" or fortran or shape.rstrip(",") != ", ".join(map(str, expected)):
            order = ", Fortran order" if fortran else ""
            raise self._fault(sample, member, f"expected {expected} <f4, found ({shape}) {dtype}{order}")
        if length + rows * expected[1] * 4 != size:
            raise self._fault(sample, member, f"expected a header and {expected} float32, found {size} bytes")
        if (first + length) % 4:
            raise self._fault(
                sample, member, f"expected values that begin at a multiple of 4 bytes, found byte {first + length}"
            )
        return length

    def _place(self, sample: int, member: int) -> str:
        table = self.table
        shard, offset = table.shard_name(int(table.shard[sample])), int(table.offsets[sample, member])
        return place_of_member(self._source, shard, table.key(sample), self._tracks.members[member], offset)

    def _fault(self, sample: int, member: int, what: str) -> DataError:
        return DataError(f"{self._place(sample, member)}: {what}; {VERIFY}")
