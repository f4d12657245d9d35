"""A map-style torch dataset of windows of shards, for models outside of omniges.

`WindowDataset` returns chosen arrays of each window, raw or normalized. A window is a whole number of ticks (0.1 s).
Arrays are read by byte range, so that only the bytes of a window are read. The first use of a member (one file in a
shard) also compares its sha256, and reads the complete member for this.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset, default_collate, get_worker_info

from omniges import arguments
from omniges.data.samples import ShardSet, Texts, Word, open_shards
from omniges.data.tracks import TILE_TICKS, Scale
from omniges.data.window_reader import Ranges, ShardMaps, Verify
from omniges.errors import DataError, EnvironmentFault, UsageFault
from omniges.features.audio import MEL_BANDS
from omniges.features.gesture import JAW_EYES, LAYOUT
from omniges.features.text_tokens import MARKS, TextTokenCodec
from omniges.features.timebase import FRAMES_PER_TICK, MEL_FRAMES_PER_TICK, SAMPLE_RATE_HZ, TICKS_PER_SECOND
from omniges.shards.manifest import ManifestRow
from omniges.shards.present import CHANNELS_OF, channel_flags, present_bits
from omniges.shards.reader import ShardFolder, check_member, place_of_member, train_statistics
from omniges.shards.schema import PARTS, STATS_FILE, VERIFY, Part
from omniges.shards.tar import npy_header

F32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
T = TypeVar("T")

_SAMPLES_PER_TICK: Final = SAMPLE_RATE_HZ // TICKS_PER_SECOND
_CACHE_BYTES: Final = 64 << 20  # limit of each process's two caches: decoded FLAC, and text tokens with words
_TOUCH_S: Final = 1e-6  # a word that overlaps a window by less does not belong to the window
_WORD_BYTES: Final = 200  # approximate memory of a word

_HEADER_BYTES: Final = 128  # the longest npy header of a member is shorter


class MemberReader:
    """A reader of ranges of values from the float32 arrays in shards. Not safe for several threads at once.

    Args:
        folder: The shard set.
        rows: Manifest rows of the samples.
        widths: For each member to read, its name and the number of columns of its array; 0 if the array has one
            dimension.
        marks: Array (samples, members) uint8, all 0 at the start. The reader writes 1 after it has compared a member's
            sha256. Processes may share the array, so that each member is compared only once.
        verify: Whether to compare the sha256 of a member at its first use.
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
        # By sample and member: index of the member's first float in the shard, and its number of floats.
        self._places: dict[tuple[int, str], tuple[int, int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_places": {}}

    def floats(self, number: int, member: str, first: int, count: int) -> F32:
        """Read a range of values from a sample's member, whose array is flattened in row-major order.

        Args:
            number: Index of the sample.
            member: Name of the member, such as ``gesture.npy``.
            first: Index of the first value.
            count: Number of values.

        Returns:
            Values (count,), or fewer if the member ends earlier. They are valid until the next call.

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
        """Check digest and header of a member, and find its array.

        Return the index of the array's first float in the shard, and the number of floats in the array.
        """
        row, width = self._rows[number], self._widths[member]
        place = row.members[member]
        shown = place_of_member(self._folder.source, row.shard, row.key, member, place.offset)
        if place.offset + place.size > len(content):
            raise DataError(
                f"{shown}: expected {place.size} bytes from byte {place.offset} on, found a shard of "
                f"{len(content)} bytes; {VERIFY}"
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
            raise DataError(f"{shown}: expected an npy array {shape} of float32, found another array; {VERIFY}")
        return (place.offset + head_bytes) // 4, count


@dataclass(frozen=True, slots=True)
class _Track:
    """Member, rate and width of one kind of array from which windows are cut."""

    member: str
    rows_per_tick: int
    channels: int  # 0: an array of one dimension


_TRACKS: Final = {
    "gesture": _Track("gesture.npy", FRAMES_PER_TICK, LAYOUT.channels),
    "jaw_eyes": _Track("jaw_eyes.npy", FRAMES_PER_TICK, JAW_EYES),
    "mel": _Track("mel.npy", MEL_FRAMES_PER_TICK, MEL_BANDS),
    "waveform": _Track("audio.npy", _SAMPLES_PER_TICK, 0),
}
_NORMALIZED: Final = ("gesture", "jaw_eyes", "mel")
_PARTS_OF: Final[Mapping[str, Mapping[Part, slice]]] = {
    "gesture": CHANNELS_OF,
    "jaw_eyes": {"jaw_eyes": slice(None)},
    "mel": {"audio": slice(None)},
}
"""The channels of each part in a normalized array, by name of the array."""
ARRAYS: Final = (*_TRACKS, "text_tokens", "words", "timed_words", "speaker", "labels")
"""Names that `WindowDataset` accepts in `arrays`."""


class _Recent:
    """A cache of named values. Above its limit in bytes, the least recently used values are removed first."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit, self._bytes = limit_bytes, 0
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def get(self, name: Hashable, make: Callable[[], T], size: Callable[[T], int]) -> T:
        """Return the value with a name; if it is not in the cache, compute it and add it.

        A new value is added even if this value alone exceeds the limit of the cache.

        Args:
            name: Name of the value.
            make: Function that computes the value.
            size: Function that takes the value and returns its size in bytes.

        Returns:
            The value.
        """
        if name in self._kept:
            self._kept.move_to_end(name)
            found: T = self._kept[name][0]
            return found
        value = make()
        self._kept[name] = value, size(value)
        self._bytes += self._kept[name][1]
        while self._bytes > self._limit and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1][1]
        return value

    def __getstate__(self) -> dict[str, Any]:
        return {"_limit": self._limit, "_bytes": 0, "_kept": OrderedDict()}


class _Items(Sequence[dict[str, Any]]):
    """Windows of one batch that are not read yet; `WindowDataset.collate` reads them together."""

    def __init__(self, data: WindowDataset, indices: Sequence[int]) -> None:
        self.data, self.indices = data, indices

    @cached_property
    def _one_by_one(self) -> list[dict[str, Any]]:
        return [self.data[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: Any) -> Any:
        return self._one_by_one[number]


class _SharedRows:
    """The rows of one array for all windows of a batch, in memory that a worker process shares with its parent process.

    Rows are written with file writes, because the kernel then fills each new page once. Writes through a memory map
    would cause a page fault for each page, and the kernel would first fill the page with zeros.
    """

    def __init__(self, rows: int, shape: tuple[int, ...]) -> None:
        row_bytes = 4 * math.prod(shape)
        self._row_bytes = row_bytes
        storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(rows * row_bytes)  # type: ignore[no-untyped-call]
        self._descriptor: int = storage._share_fd_cpu_()[0]
        self.batch = torch.empty(0).set_(storage).view(rows, *shape)  # keeps the descriptor open

    def write(self, row: int, values: torch.Tensor) -> None:
        """Write a row of the batch.

        Args:
            row: Index of the row.
            values: Values of the row, contiguous float32 on the CPU.

        Raises:
            EnvironmentFault: Shared memory is full, or the write failed.
        """
        try:
            written = os.pwrite(self._descriptor, values.numpy().data, row * self._row_bytes)
        except OSError as error:
            raise EnvironmentFault(
                f"shared memory: expected room for a batch, found an error ({error.strerror}); enlarge /dev/shm, "
                "or use smaller batches or fewer workers"
            ) from error
        if written < self._row_bytes:
            raise EnvironmentFault(
                f"shared memory: expected {self._row_bytes} bytes for a batch, found room for {written}; make "
                "room in /dev/shm, or use smaller batches or fewer workers"
            )


class WindowDataset(Dataset[dict[str, Any]]):
    """A map-style dataset for ``torch.utils.data.DataLoader``; each item is a window of a clip as a dictionary.

    ::

        data = WindowDataset("shards", arrays=("gesture", "mel", "text_tokens"), window_ticks=64)
        for batch in DataLoader(data, batch_size=64, shuffle=True, num_workers=2, collate_fn=data.collate):
            batch["gesture"], batch["present"]["gesture"], batch["key"]

    The first window of a clip starts at tick 0 of the clip, and each further window starts `stride_ticks` later. Each
    window lies completely in its clip. The ``DataLoader`` chooses the order, for example with ``shuffle=True``, or with
    a ``DistributedSampler`` for several ranks. With ``collate_fn=WindowDataset.collate``, arrays are copied fewer times
    than with torch's default. Torch's default also works, but not with ``timed_words``. Every item has these fields:

    ==============  ==================================================================================
    ``key``         key of the sample
    ``start_tick``  first tick of the window in its clip
    ``present``     for each requested array, a bool mask of its recorded channels: (415,) for ``gesture``, (9,) for
                    ``jaw_eyes``, (64,) for ``mel``, a scalar for ``waveform`` and ``text_tokens``
    ==============  ==================================================================================

    An item also has the fields that `arrays` names; w is `window_ticks`:

    ===============  =================================================================================
    ``gesture``      (w · 3, 415) float32, 30 frames a second
    ``jaw_eyes``     (w · 3, 9) float32
    ``mel``          (w · 10, 64) float32, 100 frames a second
    ``waveform``     (w · 1600,) float32 at 16 kHz, never normalized; needs shards with ``--keep-audio``
    ``text_tokens``  (w,) int64, one subword token a tick, 0 for silence (`omniges.features.text_tokens`);
                     `vocabulary_size` is the number of distinct tokens
    ``words``        the words that overlap the window, joined by spaces
    ``timed_words``  the same words as a tuple of `Word`, with times in seconds from the start of the window, limited
                     to the window; needs ``collate_fn=WindowDataset.collate``
    ``speaker``      index of the speaker in `speaker_names`, which filters do not change; −1 if unknown
    ``labels``       value of each label by name, such as ``emotion``; "" if unknown
    ===============  =================================================================================

    A channel that was not recorded is 0 if `normalized` is True, otherwise NaN. The same is true for an absent
    waveform. Multiply a loss by ``present``, or name the parts that your model needs in `require`.

    Args:
        shards: A folder of shards, or an open `ShardSet`. The filters of the `ShardSet` apply too.
        window_ticks: Length of a window, in ticks of 0.1 s.
        stride_ticks: Distance between the starts of windows in ticks; None: `window_ticks`.
        split: ``train``, ``val``, ``test`` or ``additional``; None: all splits.
        arrays: Fields of an item to return, by their names in the second table.
        normalized: True: values are (x − mean) / std, with the statistics of the train split in stats.json. False:
            values are as stored in the shards. Shards of version 1 contain no statistics of jaw_eyes. For such shards,
            the statistics are computed from the train split when the dataset is created.
        speakers: Names or ids of speakers; empty: all.
        languages: Names of languages, such as ``english``; empty: all.
        labels: Accepted values by label: ``{"emotion": ("happiness", "anger")}``.
        min_seconds: Minimum length of a clip in seconds.
        max_seconds: Maximum length of a clip in seconds; None: no limit.
        require: Parts that a clip must have, such as ``("text", "audio", "face")``.
        verify: ``first``: compare the sha256 of each member at its first use. ``never``: compare no sha256. None: the
            setting of the open `ShardSet`, or ``first`` for a folder.

    Raises:
        UsageFault: An argument is invalid, no window is left, or a part of an array cannot be normalized, because no
            train sample has this part.
        DataError: The shards are damaged, or the bytes of an item differ from the manifest.
    """

    def __init__(  # noqa: PLR0913 - filters, all by keyword
        self,
        shards: str | Path | ShardSet,
        *,
        window_ticks: int = 64,
        stride_ticks: int | None = None,
        split: str | None = "train",
        arrays: Iterable[str] = ("gesture", "mel"),
        normalized: bool = True,
        speakers: Texts | int = (),
        languages: Texts = (),
        labels: Mapping[str, Texts] | None = None,
        min_seconds: float = 0.0,
        max_seconds: float | None = None,
        require: Texts = (),
        verify: Verify | None = None,
    ) -> None:
        if verify is not None:
            arguments.choice("verify", verify, get_args(Verify))
        base = shards if isinstance(shards, ShardSet) else open_shards(shards, verify=verify or "first")
        if verify not in {None, base.reader.verify}:
            raise arguments.refuse("verify", f"{base.reader.verify!r}, as of the open set, or nothing", verify)
        self.arrays = _chosen("arrays", arrays, ARRAYS)
        if not self.arrays:
            raise arguments.refuse("arrays", f"at least one of {', '.join(ARRAYS)}", arrays)
        self.window_ticks = window_ticks = arguments.integer("window_ticks", window_ticks, 1)
        self.stride_ticks = window_ticks if stride_ticks is None else arguments.integer("stride_ticks", stride_ticks, 1)
        self.normalized = normalized = arguments.flag("normalized", normalized)
        self.shards = base.select(
            split=split,
            speakers=speakers,
            languages=languages,
            labels=labels,
            min_seconds=min_seconds,
            max_seconds=max_seconds,
        )
        self.speaker_names = base.speaker_names
        self._rows, self.left_out = self._usable(set(_chosen("require", require, PARTS)))
        self._first_windows = list(accumulate(map(self._windows_of, self._rows), initial=0))
        if "waveform" in self.arrays and not all(row.keeps_audio for row in self._rows):
            raise UsageFault(
                f"{base.folder}: expected shards with waveforms, found some without; preprocess again with --keep-audio"
            )
        self._scales = {
            name: _scale(base, name, window_ticks, {part for row in self._rows for part in row.present})
            for name in self.arrays
            if normalized and name in _NORMALIZED
        }
        self._speakers = {name: number for number, name in enumerate(self.speaker_names)}
        self._tokenizer = base.tokenizer if "text_tokens" in self.arrays else b""
        self._verify = base.reader.verify == "first"
        # In shared memory, so that the workers of all epochs together compare each digest once.
        self._marks = torch.zeros((len(self._rows), len(_TRACKS)), dtype=torch.uint8)
        self._marks.share_memory_()  # type: ignore[no-untyped-call]
        self._shapes = {
            name: (window_ticks * track.rows_per_tick, *([track.channels] if track.channels else []))
            for name, track in _TRACKS.items()
            if name in self.arrays
        }
        self._masks: dict[tuple[Part, ...], dict[str, Mask]] = {}
        self._recent, self._decoded = _Recent(_CACHE_BYTES), _Recent(_CACHE_BYTES)
        self._members: MemberReader | None = None
        self._codec: TextTokenCodec | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_members": None, "_codec": None}  # memory maps and native objects cannot be copied

    @property
    def vocabulary_size(self) -> int:
        """Number of distinct text tokens, including silence; raises UsageFault if `arrays` lacks ``text_tokens``."""
        if "text_tokens" not in self.arrays:
            raise UsageFault("vocabulary_size: expected the array text_tokens, found none; add text_tokens to arrays")
        return 1 + MARKS * self._token_codec().vocab_size

    def __len__(self) -> int:
        return self._first_windows[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return a window; raise IndexError if it does not exist, DataError if its bytes differ from the manifest."""
        return self._item(index, {name: torch.empty(shape) for name, shape in self._shapes.items()})

    def __getitems__(self, indices: Sequence[int]) -> Sequence[dict[str, Any]]:
        """Return several windows for a ``DataLoader``, which are read later: by `collate`, or at the first access.

        The first access to one of the windows reads all of them.
        """
        return _Items(self, indices)

    def _item(self, index: int, arrays: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Read a window into `arrays`, and return an item that contains these arrays."""
        number, start_tick = self._place(index)
        row = self._rows[number]
        masks = self._masks_of(row)
        item: dict[str, Any] = {
            "key": row.key,
            "start_tick": start_tick,
            "present": {name: torch.from_numpy(mask).clone() for name, mask in masks.items()},
        }
        for name in self.arrays:
            if name in _TRACKS:
                self._read_window(name, number, start_tick, arrays[name].numpy())
                item[name] = arrays[name]
            elif name == "text_tokens":
                ids = self._tokens(number)[start_tick : start_tick + self.window_ticks]
                item[name] = torch.from_numpy(ids.astype(np.int64))
            elif name == "speaker":
                item[name] = self._speakers[row.speaker] if row.speaker is not None else -1
            elif name == "labels":
                item[name] = dict(row.labels)
            else:
                words = self._timed_words(number, start_tick)
                item[name] = words if name == "timed_words" else " ".join(word.word for word in words)
        return item

    @staticmethod
    def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Combine items into a batch like torch's ``default_collate``, but with fewer copies.

        ``timed_words`` becomes a list with a tuple for each item.

        Args:
            items: Items of a `WindowDataset`.

        Returns:
            For each field, a tensor (B, …) for the B items, a list, or a dictionary of these.
        """
        ready: dict[str, Any] = {}
        if isinstance(items, _Items) and get_worker_info() is not None:
            ready, items = items.data._shared_batch(items.indices)
        elif isinstance(items, _Items):
            data = items.data
            ready = {name: torch.empty((len(items), *shape)) for name, shape in data._shapes.items()}
            items = [
                data._item(index, {name: array[row] for name, array in ready.items()})
                for row, index in enumerate(items.indices)
            ]
        if "timed_words" in items[0]:
            ready["timed_words"] = [item["timed_words"] for item in items]
        others = default_collate([{name: item[name] for name in item if name not in ready} for item in items])
        return {name: ready[name] if name in ready else others[name] for name in items[0]}

    def _shared_batch(self, indices: Sequence[int]) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
        """Return the arrays (B, …) of a batch of B windows, in shared memory, and the items of the batch.

        The items contain arrays too, but do not use these arrays: all items share them, so they contain the values of
        the last item.
        """
        shared = {name: _SharedRows(len(indices), shape) for name, shape in self._shapes.items()}
        window = {name: torch.empty(shape) for name, shape in self._shapes.items()}
        items = []
        for row, index in enumerate(indices):
            items.append(self._item(index, window))
            for name, rows in shared.items():
                rows.write(row, window[name])
        return {name: rows.batch for name, rows in shared.items()}, items

    def __repr__(self) -> str:
        lacking = ", ".join(f"{count} {why}" for why, count in self.left_out.items() if count)
        return (
            f"WindowDataset({str(self.shards.folder)!r}: {len(self)} windows of {self.window_ticks} ticks, one every "
            f"{self.stride_ticks}, from {len(self._rows)} clips; {', '.join(self.arrays)}"
            f"{'' if self.normalized else ', raw'}{f'; clips left out: {lacking}' if lacking else ''})"
        )

    def _usable(self, required: set[str]) -> tuple[list[ManifestRow], dict[str, int]]:
        """Return the clips that can be used, and how many cannot, by reason: too short, or without a required part."""
        long_enough = [row for row in self.shards.rows if row.ticks >= self.window_ticks]
        usable = [row for row in long_enough if required <= set(row.present)]
        left_out = {
            "too short": len(self.shards) - len(long_enough),
            "without a required part": len(long_enough) - len(usable),
        }
        if not usable:
            longest = max(row.ticks for row in self.shards.rows)
            parts = f" with {', '.join(sorted(required))}" if required else ""
            raise UsageFault(
                f"{self.shards.folder}: expected a clip of at least {self.window_ticks} ticks{parts}, found none "
                f"among {len(self.shards)}; the longest has {longest} ticks; choose shorter windows, or require "
                "fewer parts"
            )
        return usable, left_out

    def _windows_of(self, row: ManifestRow) -> int:
        return 1 + (row.ticks - self.window_ticks) // self.stride_ticks

    def _place(self, index: int) -> tuple[int, int]:
        """Return the index of a window's clip, and the window's first tick."""
        window = index + len(self) if index < 0 else index
        if not 0 <= window < len(self):
            raise IndexError(f"window {index}: expected a number from {-len(self)} to {len(self) - 1}")
        number = bisect_right(self._first_windows, window) - 1
        return number, (window - self._first_windows[number]) * self.stride_ticks

    def _masks_of(self, row: ManifestRow) -> dict[str, Mask]:
        """Return a mask for each array of a clip; the mask is True for the channels that were recorded.

        Masks are cached by the set of parts that a clip has, because most clips have the same parts.
        """
        if row.present not in self._masks:
            audio, text = "audio" in row.present, "text" in row.present
            found = {
                "gesture": channel_flags(np.array([present_bits(row.present)], np.uint8))[0],
                "jaw_eyes": np.full(JAW_EYES, "jaw_eyes" in row.present),
                "mel": np.full(MEL_BANDS, audio),
                "waveform": np.array(audio),
                "text_tokens": np.array(text),
            }
            self._masks[row.present] = {name: found[name] for name in self.arrays if name in found}
        return self._masks[row.present]

    def _read_window(self, name: str, number: int, start_tick: int, out: F32) -> None:
        """Write the window of a clip's array `name` into `out`; normalize its values if `normalized` is True."""
        track, has = _TRACKS[name], self._masks_of(self._rows[number])[name]
        if not has.any():
            out.fill(0.0 if self.normalized else np.nan)
            return
        flat = out.reshape(-1)
        values = self._values(name, number, start_tick * track.rows_per_tick * max(1, track.channels), len(flat))
        if len(values) != len(flat):
            row = self._rows[number]
            shown = f"{self.shards.reader.source.describe(row.shard)}: {row.key}: {name}"
            raise DataError(f"{shown}: expected {row.ticks} ticks as in the manifest, found fewer; {VERIFY}")
        if name in self._scales:
            self._scales[name].normalise_into(values, flat)
        else:
            np.copyto(flat, values)
        if self.normalized and not has.all():
            out[:, ~has] = 0.0

    def _values(self, name: str, number: int, first: int, count: int) -> F32:
        """Return a range of an array's values, from the shard or from decoded FLAC; valid until the next call."""
        row, member = self._rows[number], _TRACKS[name].member
        if member in row.members:
            if self._members is None:
                widths = {track.member: track.channels for track in _TRACKS.values()}
                self._members = MemberReader(
                    self.shards.reader, self._rows, widths, self._marks.numpy(), verify=self._verify
                )
            return self._members.floats(number, member, first, count)

        def decode() -> F32:
            found = self.shards.reader.waveform(row)
            return np.empty(0, np.float32) if found is None else found

        return self._decoded.get(number, decode, lambda samples: samples.nbytes)[first : first + count]

    def _token_codec(self) -> TextTokenCodec:
        if self._codec is None:
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # forked workers would lack its threads
            self._codec = TextTokenCodec(self._tokenizer)
        return self._codec

    def _tokens(self, number: int) -> npt.NDArray[np.int32]:
        """Return the text tokens (ticks,) of a clip."""

        def make() -> npt.NDArray[np.int32]:
            row = self._rows[number]
            words = [{"word": w.word, "start": w.start_s, "end": w.end_s} for w in self.shards.reader.timed_words(row)]
            return self._token_codec().encode(words, row.ticks).ids

        return self._recent.get(("tokens", number), make, lambda tokens: tokens.nbytes)

    def _timed_words(self, number: int, start_tick: int) -> tuple[Word, ...]:
        """Return the words that overlap a window, with times in seconds from its start, limited to the window."""
        words = self._recent.get(
            ("words", number),
            lambda: self.shards.reader.timed_words(self._rows[number]),
            lambda found: _WORD_BYTES * len(found),
        )
        start_s, length_s = start_tick / TICKS_PER_SECOND, self.window_ticks / TICKS_PER_SECOND
        return tuple(
            Word(word.word, max(0.0, word.start_s - start_s), min(length_s, word.end_s - start_s))
            for word in words
            if word.start_s < start_s + length_s - _TOUCH_S and word.end_s > start_s + _TOUCH_S
        )


def _chosen(what: str, names: Texts, known: Sequence[str]) -> tuple[str, ...]:
    """Return the given names without duplicates; refuse an unknown name."""
    return tuple(dict.fromkeys(arguments.choice(what, name, known) for name in arguments.texts(what, names)))


def _scale(base: ShardSet, name: str, window_ticks: int, present: Collection[Part]) -> Scale:
    """Return the means and divisors that normalise an array, tiled for a window.

    Raise UsageFault if there are no train samples, or if clips have a part that no train sample has. Raise DataError
    for damaged statistics.
    """
    source = base.folder / STATS_FILE
    if not base.statistics.get("samples"):
        raise UsageFault(
            f"{source}: expected statistics of train samples, found those of 0 samples; use normalized=False, "
            "or put recordings into the train split with omniges preprocess --split-csv"
        )
    track = _TRACKS[name]
    found = base.statistics.get(name) or train_statistics(base.reader, track.member)  # version 1 lacks jaw_eyes
    scale = Scale.from_statistics(found, name, track.channels, str(source))
    # Version 1 has no counts, because its samples have all parts.
    counts = np.broadcast_to(found.get("counts", 1), scale.mean.shape)
    unknown = [part for part, own in _PARTS_OF[name].items() if part in present and not counts[own].any()]
    if unknown:
        raise UsageFault(
            f"{source}: expected statistics of {', '.join(unknown)} for {name}, found none, because no train "
            f"sample has it; use normalized=False, or leave these clips or {name} out"
        )
    return scale.tiled(min(window_ticks, TILE_TICKS) * track.rows_per_tick)
