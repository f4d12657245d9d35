"""The held-out windows themselves: read from the shards once, cut, and presented as if they were short samples.

So what scores and writes whole samples (`omniges.evaluation`, `omniges.generation`) does it to windows.

Which windows of a split are validated on: evenly over speakers, recordings and time, and the same in every run.

As the loader's unshuffled order has them, a clip of n ticks holds floor(n/w) windows that begin at 0, w, 2w, …
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numpy as np
import numpy.typing as npt

from omniges.data.sequence import DataSource
from omniges.errors import UsageFault
from omniges.features.gesture import GestureClip, motion_from_gesture
from omniges.features.text_slots import SlotCodec
from omniges.features.timebase import FRAMES_PER_TICK, MEL_FRAMES_PER_TICK, SAMPLES_PER_TICK, TICKS_PER_SECOND
from omniges.shards.latents import CodecEntry, FrameEntry, WindowEntry, said_in_windows
from omniges.shards.manifest import ManifestRow
from omniges.shards.present import ALL_PRESENT, BODY_PARTS, STREAM_BITS, at_rest, present_bits
from omniges.shards.reader import SampleArrays, ShardFolder
from omniges.shards.schema import MANIFEST_FILE

T = TypeVar("T")


@dataclass(frozen=True, slots=True, order=True)
class Clip:
    """A recording that windows can be taken from."""

    source: int  # number of the folder
    key: str
    speaker: str  # "" where it is not known
    ticks: int


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Place of a window."""

    source: int
    key: str
    start_tick: int


def spread(count: int) -> list[int]:
    """0 … count − 1 in an order whose every beginning is about evenly spread, the middle first.

    By the binary digits of the numbers read backwards (van der Corput 1935).
    """
    bits = max(1, (count - 1).bit_length())
    mirrored = sorted(range(count), key=lambda number: int(f"{number:0{bits}b}"[::-1], 2))
    return [(number + count // 2) % count for number in mirrored]


def choose_places(clips: Iterable[Clip], window_ticks: int, limit: int) -> list[Place]:
    """Choose at most `limit` windows, in the order of folders, keys and time.

    Speakers take turns, and in each turn of a speaker so do that speaker's recordings; of a recording the window
    farthest from those taken comes next. Recordings shorter than a window have no part.
    """
    speakers: dict[str, list[list[Place]]] = {}
    for clip in sorted(clips):
        count = clip.ticks // window_ticks
        if count:
            own = [Place(clip.source, clip.key, window_ticks * k) for k in spread(count)]
            speakers.setdefault(clip.speaker, []).append(own)
    by_speaker = [_in_turns([own[k] for k in spread(len(own))]) for _, own in sorted(speakers.items())]
    return sorted(_in_turns([by_speaker[k] for k in spread(len(by_speaker))])[:limit])


def _in_turns(lists: Sequence[Sequence[T]]) -> list[T]:
    """First elements of all lists, then the second ones, and so on."""
    missing = object()
    turns = zip_longest(*lists, fillvalue=missing)
    return [item for turn in turns for item in turn if item is not missing]  # type: ignore[misc]


F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]

_LEAST_WORD_S: Final = 0.5 / TICKS_PER_SECOND
"""A word that has less than half a tick in a window is none of its words, for no tick tells it."""


@dataclass(frozen=True, slots=True)
class Window:
    """One held-out window, and where it comes from."""

    name: str  # of its files; tells it from all others
    source: int  # number of the folder
    row: ManifestRow  # of the recording
    shards: str  # path or URL of the folder
    shard: str  # that of the file
    manifest_sha256: str
    start_tick: int
    ticks: int

    def provenance(self) -> dict[str, Any]:
        """Return its origin, for the log and records."""
        return {
            "shards": self.shards,
            "manifest_sha256": self.manifest_sha256,
            "key": self.row.key,
            "recording": self.row.stem,
            "split": self.row.split,
            "speaker": self.row.speaker,
            "start_tick": self.start_tick,
            "ticks": self.ticks,
            "sources": {
                kind: {"path": path, "sha256": digest} for kind, (path, digest) in sorted(self.row.sources.items())
            },
        }

    @property
    def source_path(self) -> str:
        """The recording's motion file, relative to the data set's root, or another file of it."""
        return next((self.row.sources[kind][0] for kind in ("npz", "wav", "textgrid") if kind in self.row.sources), "")


class WindowFolder:
    """Windows as recordings that results are held against, called by the windows' names; all of it is in memory."""

    folder = Path("validation windows")

    def __init__(self, samples: Iterable[SampleArrays]) -> None:
        self._samples = {sample.row.key: sample for sample in samples}
        self.rows = [sample.row for sample in self._samples.values()]

    def row(self, name: str) -> ManifestRow:
        """The row of a window."""
        return self._samples[name].row

    def sample(self, row: ManifestRow) -> SampleArrays:
        """A window."""
        return self._samples[row.key]

    def waveform(self, row: ManifestRow) -> F32 | None:
        """Sound of the window."""
        return self._samples[row.key].audio

    def array(self, row: ManifestRow, member: str) -> npt.NDArray[Any]:
        """A window's mel or betas, which is all that scoring asks for by itself."""
        sample = self._samples[row.key]
        arrays: dict[str, npt.NDArray[Any]] = {"mel.npy": sample.mel, "betas.npy": sample.betas}
        return arrays[member]

    def gesture(self, row: ManifestRow) -> GestureClip:
        """The window's motion."""
        return self._samples[row.key].gesture

    def semantic(self, row: ManifestRow) -> list[dict[str, Any]] | None:
        """Semantic spans of the window, clipped to it."""
        return self._samples[row.key].semantic

    def words(self, row: ManifestRow) -> list[dict[str, Any]]:
        """Words of the window, clipped to it."""
        return self._samples[row.key].words


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The windows a run is validated on."""

    windows: tuple[Window, ...]
    available: int  # windows of the split
    folders: Mapping[int, ShardFolder]

    def read(self, codec: SlotCodec, latents: Collection[CodecEntry] = ()) -> tuple[WindowFolder, list[I32]]:
        """All windows as samples, with these latents, and their text slots (ticks,).

        Raises DataError for what cannot be read.
        """
        samples: list[SampleArrays] = []
        slots: list[I32] = []
        # Those of a recording stand side by side.
        for _, own in groupby(self.windows, key=lambda window: (window.source, window.row.key)):
            windows = list(own)
            folder, row = self.folders[windows[0].source], windows[0].row
            sample = folder.sample(row)
            # Of absent gesture only that it has no place: nobody scores it.
            trans, heard = motion_from_gesture(at_rest(sample.gesture, row.present)).trans, folder.waveform(row)
            ids = codec.encode(sample.words, row.ticks).ids
            samples += [_cut(sample, trans, heard, window, latents) for window in windows]
            slots += [ids[window.start_tick : window.start_tick + window.ticks] for window in windows]
        return WindowFolder(samples), slots


def open_held_out(
    data: Sequence[DataSource], window_ticks: int, limit: int, tick_multiple: int = 1, trained: int = ALL_PRESENT
) -> HeldOut:
    """Choose windows of the val split; `tick_multiple` is what lengths of windows are multiples of in this run.

    ``trained``: bits of `STREAM_PARTS` that the model is trained on; a recording without the streams of a task among
    them is left out.

    Raises UsageFault, with the way to a val split, where there are none.
    """
    folders = {number: ShardFolder(one.catalog.folder, one.shard_source()) for number, one in enumerate(data)}
    held_out = {(number, row.key): row for number, one in folders.items() for row in one.rows if row.split == "val"}
    rows = {place: row for place, row in held_out.items() if _allows_some(row, trained)}
    shown = ", ".join(folder.source.describe("").rstrip("/") for folder in folders.values())
    if held_out and not rows:
        raise UsageFault(
            f"{shown}: none of {len(held_out)} recordings of the val split has the streams of a task, so there is "
            "nothing to validate on: preprocess again with --split-csv FILE, or train with --validation-steps 0"
        )
    if not rows:
        raise UsageFault(
            f"{shown}: no recording is in the val split, so there is nothing to validate on: preprocess again with "
            "--split-csv FILE, whose lines 'STEM,val' name some, or train with --validation-steps 0"
        )
    clips = [Clip(*place, row.speaker or "", row.ticks) for place, row in rows.items()]
    places = choose_places(clips, window_ticks, limit)
    if not places:
        longest = max(clip.ticks for clip in clips)
        of_text = any(one.catalog.tracks.text is not None for one in data)
        way = "encode text again with --window-ticks" if of_text else "choose --window-ticks"
        raise UsageFault(
            f"{shown}: a window of {window_ticks} ticks fits into none of {len(clips)} recordings of the val split; "
            f"the longest has {longest}: {way} {longest - longest % tick_multiple} or less, or train with "
            "--validation-steps 0"
        )
    windows = tuple(
        Window(
            name=(f"{place.source}-" if len(folders) > 1 else "") + f"{place.key}-{place.start_tick:05d}",
            source=place.source,
            row=row,
            shards=folder.source.describe("").rstrip("/"),
            shard=folder.source.describe(row.shard),
            manifest_sha256=folder.dataset["files"][MANIFEST_FILE]["sha256"],
            start_tick=place.start_tick,
            ticks=window_ticks,
        )
        for place in places
        for folder, row in ((folders[place.source], rows[place.source, place.key]),)
    )
    return HeldOut(windows, sum(clip.ticks // window_ticks for clip in clips), folders)


def _allows_some(row: ManifestRow, trained: int) -> bool:
    """Return whether a recording has the two streams of any of the six tasks."""
    bits = present_bits(row.present) & trained
    return sum(bool(bits & own) for own in STREAM_BITS.values()) > 1


class SomeRecordings(ShardFolder):
    """Some recordings of the train split of several folders as those of one, each read when it is asked for."""

    def __init__(self, folders: Mapping[int, ShardFolder], ticks: int, limit: int) -> None:
        """Choose at most `limit` recordings with a whole body that last so many ticks or more, evenly over speakers."""
        self.folder = Path("train recordings")
        rows = {
            (source, row.key): row
            for source, one in folders.items()
            for row in one.rows
            if row.split == "train" and set(BODY_PARTS) <= set(row.present)
        }
        clips = [Clip(*place, row.speaker or "", 1) for place, row in rows.items() if row.ticks >= ticks]
        self._chosen = {
            f"{number}-{place.key}": (folders[place.source], rows[place.source, place.key])
            for number, place in enumerate(choose_places(clips, 1, limit))
        }

    @cached_property
    def rows(self) -> Sequence[ManifestRow]:
        """A row a recording, under names that tell them apart."""
        return [replace(row, key=name) for name, (_, row) in self._chosen.items()]

    def member(self, row: ManifestRow, member: str) -> bytes:
        """A member of a recording, of which all else here is made."""
        folder, own = self._chosen[row.key]
        return folder.member(own, member)


def _cut(
    sample: SampleArrays, trans: F64, heard: F32 | None, window: Window, latents: Collection[CodecEntry]
) -> SampleArrays:
    """The part of a recording that a window is: times from the window's start, the root where it then is.

    ``trans`` (T, 3) and ``heard`` (N,) are the recording's root in metres and its sound at 16 kHz. A window has the
    members of its recording, but sound is an array whatever it was kept as.
    """
    first, ticks = window.start_tick, window.ticks
    frames = slice(first * FRAMES_PER_TICK, (first + ticks) * FRAMES_PER_TICK)
    start_s, seconds = first / TICKS_PER_SECOND, ticks / TICKS_PER_SECOND
    return replace(
        sample,
        row=replace(
            window.row,
            key=window.name,
            frames=ticks * FRAMES_PER_TICK,
            mel_frames=ticks * MEL_FRAMES_PER_TICK,
            ticks=ticks,
            seconds=seconds,
        ),
        gesture=GestureClip(
            sample.gesture.gesture[frames], sample.gesture.jaw_eyes[frames], trans[frames.start, [0, 2]]
        ),
        mel=sample.mel[first * MEL_FRAMES_PER_TICK : (first + ticks) * MEL_FRAMES_PER_TICK],
        words=_words(sample, window, latents),
        semantic=None if sample.semantic is None else _within(sample.semantic, start_s, seconds, least_s=0.001),
        audio=None if heard is None else heard[first * SAMPLES_PER_TICK : (first + ticks) * SAMPLES_PER_TICK],
        latents={entry.name: _latents(sample.latents[entry.name], entry, window) for entry in latents},
    )


def _latents(whole: F32, entry: CodecEntry, window: Window) -> F32:
    """Return a window's part of a clip's latents, as training reads them.

    Of frames, rows (rows, channels): it begins with a whole one and ends with one. Of windows, which it is one of:
    vectors (latents, channels).
    """
    if isinstance(entry, WindowEntry):
        vectors: F32 = whole[entry.grid.index(window.start_tick)].reshape(entry.latents, entry.channels)
        return vectors
    first, rows = cast("FrameEntry", entry).span(window.start_tick, window.ticks)
    return whole[first : first + rows]


def _words(sample: SampleArrays, window: Window, latents: Collection[CodecEntry]) -> list[dict[str, Any]]:
    """The window's words, clipped to it: those it has half a tick of, or, of latents, those that these stand for."""
    start_s, seconds = window.start_tick / TICKS_PER_SECOND, window.ticks / TICKS_PER_SECOND
    if not any(isinstance(entry, WindowEntry) for entry in latents):
        return _within(sample.words, start_s, seconds, least_s=_LEAST_WORD_S)
    (said,) = said_in_windows(sample.words, sample.row.ticks, [(window.start_tick, window.ticks)])
    return _within(said, start_s, seconds, least_s=0.0)


def _within(
    spans: Sequence[Mapping[str, Any]], start_s: float, seconds: float, *, least_s: float
) -> list[dict[str, Any]]:
    """Spans that have at least so much in a window, clipped to it, milliseconds."""
    found = []
    for span in spans:
        start, end = round(max(0.0, span["start"] - start_s), 3), round(min(seconds, span["end"] - start_s), 3)
        if end - start > least_s - 1e-9:
            found.append({**span, "start": start, "end": end})
    return found
