"""Selection of held-out windows (windows of the val split), and their content in the form of short recordings.

`omniges.evaluation` and `omniges.generation` score and write these windows like recordings. The windows are spread
evenly over speakers, recordings and time, and are the same in every run. A clip of n ticks has floor(n/w) windows of w
ticks. They start at ticks 0, w, 2w, …, as in the unshuffled order of the loader.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from omniges.conditions.base import MIN_WORD_S, within
from omniges.data.sequence import DataSource
from omniges.errors import UsageFault
from omniges.features.gesture import GestureClip, motion_from_gesture
from omniges.features.text_tokens import TextTokenCodec
from omniges.features.timebase import FRAMES_PER_TICK, MEL_FRAMES_PER_TICK, SAMPLES_PER_TICK, TICKS_PER_SECOND
from omniges.model.tasks import SIX, TASKS
from omniges.shards.latents import CodecEntry, FrameEntry, WindowEntry, said_in_windows
from omniges.shards.manifest import ManifestRow
from omniges.shards.present import ALL_PRESENT, BODY_PARTS, STREAM_BITS, at_rest, present_bits
from omniges.shards.reader import SampleArrays, ShardFolder
from omniges.shards.schema import MANIFEST_FILE

T = TypeVar("T")


@dataclass(frozen=True, slots=True, order=True)
class Clip:
    """A recording from which windows are chosen."""

    source: int  # index of the shard set
    key: str
    speaker: str  # "": unknown
    ticks: int


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Location of a window: index of the shard set, key of the recording, and first tick."""

    source: int
    key: str
    start_tick: int


def spread(count: int) -> list[int]:
    """Permute the numbers 0 … count − 1. For every k, the first k results cover the range about evenly.

    The numbers are sorted by their reversed bits (van der Corput 1935), and then shifted by count // 2.

    Args:
        count: How many numbers to permute.

    Returns:
        The permuted numbers.
    """
    bits = max(1, (count - 1).bit_length())
    mirrored = sorted(range(count), key=lambda number: int(f"{number:0{bits}b}"[::-1], 2))
    return [(number + count // 2) % count for number in mirrored]


def choose_places(clips: Iterable[Clip], window_ticks: int, limit: int) -> list[Place]:
    """Choose windows evenly over speakers, then over their recordings, then over time.

    Windows are chosen in rounds. In each round, every speaker contributes one window, until all windows of this speaker
    are chosen. The recordings of a speaker take turns. Recordings shorter than a window are skipped.

    Args:
        clips: The recordings.
        window_ticks: Length of a window in ticks.
        limit: Largest number of windows.

    Returns:
        The windows, sorted by shard set, key and start.
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
    """Interleave lists: return the first element of each list, then the second element of each list, and so on."""
    missing = object()
    turns = zip_longest(*lists, fillvalue=missing)
    return [item for turn in turns for item in turn if item is not missing]  # type: ignore[misc]


F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Window:
    """A held-out window: its name, length and origin. The content is read later."""

    name: str  # unique name of the window's files
    source: int  # index of the shard set
    row: ManifestRow  # manifest row of the recording
    shards: str  # path or URL of the folder
    shard: str  # path or URL of the shard
    manifest_sha256: str
    start_tick: int
    ticks: int

    def provenance(self) -> dict[str, Any]:
        """Return the origin of the window as a JSON object, for the log and for records."""
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
        """Path of the recording's first source file, in the order motion, audio, words; "" without sources."""
        return next((self.row.sources[kind][0] for kind in ("npz", "wav", "textgrid") if kind in self.row.sources), "")


class WindowFolder:
    """Held-out windows in memory, which scoring reads like a shard folder. The keys are the names of the windows."""

    folder = Path("validation windows")

    def __init__(self, samples: Iterable[SampleArrays]) -> None:
        self._samples = {sample.row.key: sample for sample in samples}
        self.rows = [sample.row for sample in self._samples.values()]

    def row(self, name: str) -> ManifestRow:
        """Return the manifest row of the window with this name."""
        return self._samples[name].row

    def sample(self, row: ManifestRow) -> SampleArrays:
        """Return the arrays of a window."""
        return self._samples[row.key]

    def waveform(self, row: ManifestRow) -> F32 | None:
        """Return the waveform of a window, a vector at 16 kHz; None if the recording has no audio."""
        return self._samples[row.key].audio

    def array(self, row: ManifestRow, member: str) -> npt.NDArray[Any]:
        """Return the mel or the betas (body shape) of a window. Scoring reads no other array by name.

        Args:
            row: Row of the window.
            member: ``mel.npy`` or ``betas.npy``.

        Returns:
            Log-mel (mel frames, 64), or betas (300,).
        """
        sample = self._samples[row.key]
        arrays: dict[str, npt.NDArray[Any]] = {"mel.npy": sample.mel, "betas.npy": sample.betas}
        return arrays[member]

    def gesture(self, row: ManifestRow) -> GestureClip:
        """Return the motion of a window."""
        return self._samples[row.key].gesture

    def semantic(self, row: ManifestRow) -> list[dict[str, Any]] | None:
        """Return the semantic spans of a window, clipped to it; None if the recording has no annotation."""
        return self._samples[row.key].semantic

    def words(self, row: ManifestRow) -> list[dict[str, Any]]:
        """Return the words of a window, clipped to it."""
        return self._samples[row.key].words


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The windows on which a run is validated."""

    windows: tuple[Window, ...]
    available: int  # number of windows in the usable recordings of the val split
    folders: Mapping[int, ShardFolder]

    def read(self, codec: TextTokenCodec, latents: Collection[CodecEntry] = ()) -> tuple[WindowFolder, list[I32]]:
        """Read all windows.

        Args:
            codec: Tokenizer of the text tokens.
            latents: Entries of the codecs whose latents are also read.

        Returns:
            The windows in memory, and the text tokens (ticks,) of each window.

        Raises:
            DataError: A shard cannot be read.
        """
        samples: list[SampleArrays] = []
        tokens: list[I32] = []
        # Windows of one recording are adjacent, so each recording is read once.
        for _, own in groupby(self.windows, key=lambda window: (window.source, window.row.key)):
            windows = list(own)
            folder, row = self.folders[windows[0].source], windows[0].row
            sample = folder.sample(row)
            # Absent body parts get the rest pose here. They are never scored.
            trans, sound = motion_from_gesture(at_rest(sample.gesture, row.present)).trans, folder.waveform(row)
            ids = codec.encode(sample.words, row.ticks).ids
            samples += [_cut(sample, trans, sound, window, latents) for window in windows]
            tokens += [ids[window.start_tick : window.start_tick + window.ticks] for window in windows]
        return WindowFolder(samples), tokens


def open_held_out(
    data: Sequence[DataSource],
    window_ticks: int,
    limit: int,
    tick_multiple: int = 1,
    trained: int = ALL_PRESENT,
    tasks: Collection[str] = SIX,
) -> HeldOut:
    """Choose windows from the val split.

    Args:
        data: Shard sets of the run.
        window_ticks: Length of a window in ticks.
        limit: Largest number of windows.
        tick_multiple: Number of ticks that must divide the window length.
        trained: Bit mask of the `STREAM_PARTS` that at least one training sample has.
        tasks: Tasks to validate; a recording is used if it has all streams of at least one of these tasks.

    Returns:
        The windows.

    Raises:
        UsageFault: There are no tasks, or the val split has no usable window; the error contains a remedy.
    """
    folders = {number: ShardFolder(one.catalog.folder, one.shard_source()) for number, one in enumerate(data)}
    held_out = {(number, row.key): row for number, one in folders.items() for row in one.rows if row.split == "val"}
    rows = {place: row for place, row in held_out.items() if _allows_some(row, trained, tasks)}
    shown = ", ".join(folder.source.describe("").rstrip("/") for folder in folders.values())
    if not tasks:
        raise UsageFault(
            f"recipe key flow.shares: expected a share above 0 for at least one validated task ({', '.join(SIX)}), "
            "found none; train with --validation-steps 0"
        )
    if held_out and not rows:
        raise UsageFault(
            f"{shown}: expected recordings of the val split with the streams of {' or '.join(tasks)}, found none "
            f"among {len(held_out)}; preprocess again with --split-csv FILE, or train with --validation-steps 0"
        )
    if not rows:
        raise UsageFault(
            f"{shown}: expected recordings in the val split to validate on, found none; preprocess again with "
            "--split-csv FILE that has lines 'STEM,val', or train with --validation-steps 0"
        )
    clips = [Clip(*place, row.speaker or "", row.ticks) for place, row in rows.items()]
    places = choose_places(clips, window_ticks, limit)
    if not places:
        longest = max(clip.ticks for clip in clips)
        of_text = any(one.catalog.tracks.text is not None for one in data)
        remedy = "encode text again with --window-ticks" if of_text else "choose --window-ticks"
        raise UsageFault(
            f"{shown}: expected a recording of the val split with at least {window_ticks} ticks (one window), "
            f"found none among {len(clips)} (the longest has {longest}); {remedy} "
            f"{longest - longest % tick_multiple} or less, or train with --validation-steps 0"
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


def _allows_some(row: ManifestRow, trained: int, tasks: Collection[str]) -> bool:
    """Return True if a recording has all streams of at least one task. Only parts in the mask `trained` count."""
    bits = present_bits(row.present) & trained
    streams = {name for name, own in STREAM_BITS.items() if bits & own}
    return any(streams.issuperset((*TASKS[task].conditions, *TASKS[task].targets)) for task in tasks)


class SomeRecordings(ShardFolder):
    """Selected train recordings of several shard sets, as one folder. A recording is read when it is accessed."""

    def __init__(self, folders: Mapping[int, ShardFolder], ticks: int, limit: int) -> None:
        """Choose recordings that have all `BODY_PARTS`, evenly over speakers.

        Args:
            folders: Shard sets by index.
            ticks: Shortest length of a recording in ticks.
            limit: Largest number of recordings.
        """
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
        """Manifest rows of the selected recordings, with unique keys."""
        return [replace(row, key=name) for name, (_, row) in self._chosen.items()]

    def member(self, row: ManifestRow, member: str) -> bytes:
        """Return the bytes of a member (file) of a recording.

        Args:
            row: Row of the recording.
            member: Name of the member.

        Returns:
            Bytes of the member.
        """
        folder, own = self._chosen[row.key]
        return folder.member(own, member)

    def array_of(self, row: ManifestRow, member: str, data: bytes) -> npt.NDArray[Any]:
        """Decode the bytes of a member to an array, with the checks of the folder that contains the recording.

        Args:
            row: Row of the recording.
            member: Name of the member, for errors.
            data: Bytes of the member.

        Returns:
            The array.
        """
        folder, own = self._chosen[row.key]
        return folder.array_of(own, member, data)


def _cut(
    sample: SampleArrays, trans: F64, sound: F32 | None, window: Window, latents: Collection[CodecEntry]
) -> SampleArrays:
    """Cut a window out of a recording, as if the window were a short recording.

    In the result, times count from the start of the window, and ``start_xz`` is the root position (x, z) in the first
    frame of the window. The arguments cover the complete recording. `trans` (frames, 3) is the root position in metres.
    `sound` is the waveform, a vector at 16 kHz, or None if the recording has no audio.
    """
    first, ticks = window.start_tick, window.ticks
    frames = slice(first * FRAMES_PER_TICK, (first + ticks) * FRAMES_PER_TICK)
    return replace(
        sample,
        row=replace(
            window.row,
            key=window.name,
            frames=ticks * FRAMES_PER_TICK,
            mel_frames=ticks * MEL_FRAMES_PER_TICK,
            ticks=ticks,
            seconds=ticks / TICKS_PER_SECOND,
        ),
        gesture=GestureClip(
            sample.gesture.gesture[frames], sample.gesture.jaw_eyes[frames], trans[frames.start, [0, 2]]
        ),
        mel=sample.mel[first * MEL_FRAMES_PER_TICK : (first + ticks) * MEL_FRAMES_PER_TICK],
        words=_words(sample, window, latents),
        semantic=None if sample.semantic is None else within(sample.semantic, first, ticks, min_s=0.001),
        audio=None if sound is None else sound[first * SAMPLES_PER_TICK : (first + ticks) * SAMPLES_PER_TICK],
        latents={entry.name: _latents(sample.latents[entry.name], entry, window) for entry in latents},
    )


def _latents(complete: F32, entry: CodecEntry, window: Window) -> F32:
    """Cut the latents of a window out of the latents of a clip, as training does.

    The result has shape (rows, channels) for a frame codec, and (vectors, channels) for a window codec. A window codec
    encodes a window as several vectors.
    """
    if isinstance(entry, WindowEntry):
        vectors: F32 = complete[entry.grid.index(window.start_tick)].reshape(entry.latents, entry.channels)
        return vectors
    first, rows = cast("FrameEntry", entry).span(window.start_tick, window.ticks)
    return complete[first : first + rows]


def _words(sample: SampleArrays, window: Window, latents: Collection[CodecEntry]) -> list[dict[str, Any]]:
    """Return the words of a window, clipped to the window.

    A word belongs to the window if at least half a tick of it lies inside. If text is stored as latents, this rule
    does not apply: the result contains the words that the latents of this window encode.
    """
    place = window.start_tick, window.ticks
    if not any(isinstance(entry, WindowEntry) for entry in latents):
        return within(sample.words, *place, MIN_WORD_S)
    (spoken,) = said_in_windows(sample.words, sample.row.ticks, [place])
    return within(spoken, *place, min_s=0.0)
