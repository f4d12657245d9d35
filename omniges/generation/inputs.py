"""Which inputs there are: files paired by name, samples of a shard folder, or nothing but a length."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

from omniges.errors import DataError, UsageFault
from omniges.features.audio import Loudness
from omniges.features.text_slots import SlotCodec
from omniges.features.timebase import TICKS_PER_SECOND
from omniges.generation.conditions import (
    MOST_APART_S,
    STANDARD_INPUT,
    Body,
    Given,
    given_sample,
    read_audio,
    read_gesture,
    read_text,
)
from omniges.generation.word_timing import SpeakingRate, learn_rate
from omniges.model.streams import STREAMS, StreamName
from omniges.shards.dataset import FEATURES
from omniges.shards.latents import CodecEntry, FrameEntry
from omniges.shards.manifest import ManifestRow
from omniges.shards.reader import ShardFolder
from omniges.shards.schema import MANIFEST_FILE, SPLITS

__all__ = ["Input", "PlannedInput", "Reading", "Sources", "cut_input", "latents_of", "planned_inputs"]

_UNCONDITIONAL: Final = "unconditional"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where inputs come from, as a person names it."""

    audio: tuple[Path, ...] = ()
    text: tuple[str, ...] = ()  # TextGrids and plain texts, ``-`` is standard input
    gesture: tuple[Path, ...] = ()
    shards: Path | None = None
    keys: tuple[str, ...] = ()
    split: str | None = None
    seconds: float | None = None  # at most so long; the length where nothing is given

    def __post_init__(self) -> None:
        """Refuse what contradicts itself, by the name of the flag."""
        if self.seconds is not None and not 1 / TICKS_PER_SECOND <= self.seconds < math.inf:
            raise UsageFault(f"--seconds {self.seconds}: a number of at least 0.1 expected")
        if self.split is not None and self.split not in SPLITS:
            raise UsageFault(f"--split {self.split}: one of {', '.join(SPLITS)} expected")
        if (self.keys or self.split) and self.shards is None:
            raise UsageFault("--key and --split: name samples of a shard folder: add --shards DIR")

    def files(self, stream: StreamName) -> tuple[str, ...]:
        """The files of a stream."""
        return tuple(map(str, getattr(self, stream)))

    @property
    def from_shards(self) -> bool:
        """Whether inputs are samples of the shard folder, which otherwise tells the speaking rate alone."""
        return bool(self.keys or self.split)


@dataclass(frozen=True, slots=True)
class Input:
    """One input, read."""

    name: str
    ticks: int
    given: tuple[Given, ...]
    speaker: str | None = None
    body: Body | None = None
    source: Mapping[str, Any] | None = None  # of a sample of a shard folder
    remarks: tuple[str, ...] = ()
    recorded: tuple[Given, ...] = ()  # what a sample of a shard folder has of what is to be made


@dataclass(frozen=True, slots=True)
class PlannedInput:
    """One input that will be read when its turn comes."""

    name: str
    load: Callable[[], Input]


@dataclass(frozen=True, slots=True)
class Reading:
    """How inputs are read for a model."""

    slots: SlotCodec | None  # None: the model's text is latents
    tick_multiple: int = 1  # lengths are cut to multiples of it
    loudness: Loudness = "none"  # of audio files
    codecs: Mapping[StreamName, CodecEntry] = field(default_factory=dict)  # taken from shards that have them
    folder: Path | None = None  # where long inputs wait, see `Spool`
    recorded: tuple[StreamName, ...] = ()  # streams of samples of shards that are shown beside what is made


def planned_inputs(conditions: Sequence[StreamName], sources: Sources, reading: Reading) -> list[PlannedInput]:
    """All inputs of a task with these conditions. Raises UsageFault where flags and task do not go together."""
    unused = [name for name in STREAMS if sources.files(name) and name not in conditions]
    if unused:
        raise UsageFault(f"--{unused[0]}: this task takes {', '.join(conditions) or 'no input'}: leave it away")
    if sources.from_shards:
        if any(sources.files(name) for name in STREAMS):
            raise UsageFault("--key and --split: samples of shards or files expected, found both")
        return _of_shards(conditions, sources, reading)
    if not conditions:
        if sources.seconds is None:
            raise UsageFault("--seconds: expected for results that follow from no input")
        _refuse_unread_shards(sources)
        ticks = _whole(_UNCONDITIONAL, int(sources.seconds * TICKS_PER_SECOND + 1e-6), reading)
        return [PlannedInput(_UNCONDITIONAL, partial(Input, _UNCONDITIONAL, ticks, ()))]
    missing = [name for name in conditions if not sources.files(name)]
    if missing:
        raise UsageFault(
            f"--{missing[0]}: this task takes {' and '.join(conditions)}: give a file, or --shards and --key"
        )
    _refuse_unread_shards(sources)
    rate = _rate(sources) if "text" in conditions else None
    return [
        PlannedInput(name, partial(_of_files, name, files, sources, reading, rate))
        for name, files in _paired(conditions, sources).items()
    ]


def _paired(conditions: Sequence[StreamName], sources: Sources) -> dict[str, dict[StreamName, str]]:
    """Files of each input by stream; one file a stream belongs together whatever the names are."""
    first = min(conditions, key=("audio", "gesture", "text").index)  # a recording has the better name
    if all(len(sources.files(name)) == 1 for name in conditions):
        return {_stem(sources.files(first)[0]): {name: sources.files(name)[0] for name in conditions}}
    found: dict[str, dict[StreamName, str]] = {}
    for name in conditions:
        for file in sources.files(name):
            own = found.setdefault(_stem(file), {})
            if name in own:
                raise UsageFault(f"--{name} {file}: {own[name]} has the same name, so their results would: rename one")
            own[name] = file
    for stem, own in found.items():
        lost = [name for name in conditions if name not in own]
        if lost:
            file = next(iter(own.values()))
            raise UsageFault(f"{file}: no --{lost[0]} file called {stem}: inputs belong together by name")
    return found


def _stem(file: str) -> str:
    return "text" if file == STANDARD_INPUT else Path(file).stem


def _refuse_unread_shards(sources: Sources) -> None:
    """Shards that neither inputs nor a speaking rate would be taken from are a mistake."""
    if sources.shards is not None and not _plain(sources):
        raise UsageFault(
            f"--shards {sources.shards}: nothing would be read of it, for only plain text needs a speaking rate: name "
            "samples by --key or --split, or leave it away"
        )


def _plain(sources: Sources) -> list[str]:
    """Texts without times."""
    return [file for file in sources.text if Path(file).suffix.lower() != ".textgrid"]


def _rate(sources: Sources) -> SpeakingRate | None:
    """The speaking rate of the shards' train split, where a plain text needs one and shards are given."""
    if sources.shards is None or not _plain(sources):
        return None
    folder = _open(sources.shards)
    return learn_rate(folder.words(row) for row in folder.rows if row.split == "train")


def _of_files(
    name: str, files: Mapping[StreamName, str], sources: Sources, reading: Reading, rate: SpeakingRate | None
) -> Input:
    given = []
    for stream, file in files.items():
        if stream == "audio":
            given.append(read_audio(Path(file), reading.folder, reading.loudness))
        elif stream == "gesture":
            given.append(read_gesture(Path(file), reading.folder))
    # A text's last words end before the recording does: where there is another stream, that one tells the length.
    length_s = min((one.ticks for one in given), default=0) / TICKS_PER_SECOND or None
    if "text" in files:
        given.append(read_text(files["text"], reading.slots, rate, length_s))
    body = next((one.body for one in given if one.body is not None), None)
    return cut_input(Input(name, 0, tuple(given), body=body), sources.seconds, reading)


def _whole(name: str, ticks: int, reading: Reading) -> int:
    """The largest length that the model has, of at most so many ticks."""
    found = ticks - ticks % reading.tick_multiple
    if not found:
        raise DataError(f"{name}: at least {reading.tick_multiple / TICKS_PER_SECOND:g} s expected, found less")
    return found


def cut_input(item: Input, seconds: float | None, reading: Reading) -> Input:
    """The length that all streams have, or the one asked for where that is less.

    Raises DataError where lengths differ by more than 5 s.
    """
    lengths = [given.ticks for given in item.given]
    if (max(lengths) - min(lengths)) / TICKS_PER_SECOND > MOST_APART_S:
        found = ", ".join(f"{given.path} {given.ticks / TICKS_PER_SECOND:.1f} s" for given in item.given)
        raise DataError(f"{item.name}: lengths at most {MOST_APART_S:g} s apart expected, found {found}")
    ticks = min(lengths) if seconds is None else min(*lengths, int(seconds * TICKS_PER_SECOND + 1e-6))
    ticks = _whole(item.name, ticks, reading)
    remarks = list(item.remarks)
    if max(lengths) > ticks:
        remarks.append(f"cut to {ticks / TICKS_PER_SECOND:.1f} s")
    given = tuple(one.cut(ticks) for one in item.given)
    return replace(item, ticks=ticks, given=given, remarks=tuple(remarks))


def _open(path: Path) -> ShardFolder:
    """A shard folder whose features are those that models here are trained on."""
    folder = ShardFolder(path)
    found = folder.dataset.get("features")
    if found != FEATURES:
        wrong = sorted(name for name in FEATURES if not isinstance(found, dict) or found.get(name) != FEATURES[name])
        raise DataError(
            f"{path}: its {', '.join(wrong) or 'features'} are not those of this model: preprocess it again with this "
            "omniges"
        )
    return folder


def _of_shards(conditions: Sequence[StreamName], sources: Sources, reading: Reading) -> list[PlannedInput]:
    folder = _open(cast("Path", sources.shards))
    rows = [folder.row(key) for key in sources.keys] or [row for row in folder.rows if row.split == sources.split]
    if not rows:
        raise UsageFault(f"--split {sources.split}: {folder.folder} has no sample of it")
    return [PlannedInput(row.key, partial(_of_sample, conditions, folder, row, sources, reading)) for row in rows]


def _of_sample(
    conditions: Sequence[StreamName], folder: ShardFolder, row: ManifestRow, sources: Sources, reading: Reading
) -> Input:
    sample = folder.sample(row)
    given = tuple(
        given_sample(sample, name, reading.slots, folder.folder, latents_of(folder, reading.codecs.get(name)))
        for name in conditions
    )
    recorded = tuple(given_sample(sample, name, reading.slots, folder.folder) for name in reading.recorded)
    digest = folder.dataset["files"][MANIFEST_FILE]["sha256"]
    manifest = folder.dataset["manifest_hash"]
    source = {"shards": str(folder.folder), "manifest_sha256": digest, "manifest_hash": manifest, "key": row.key}
    body = Body.of_sample(sample)
    if not given:
        limit = row.ticks if sources.seconds is None else min(row.ticks, int(sources.seconds * TICKS_PER_SECOND + 1e-6))
        ticks = _whole(row.key, limit, reading)
        return Input(row.key, ticks, (), row.speaker, body, source, recorded=_within(recorded, ticks))
    found = cut_input(Input(row.key, 0, given, row.speaker, body, source), sources.seconds, reading)
    return replace(found, recorded=_within(recorded, found.ticks))


def _within(recorded: Sequence[Given], ticks: int) -> tuple[Given, ...]:
    return tuple(one.cut(min(ticks, one.ticks)) for one in recorded)


def latents_of(folder: ShardFolder, entry: CodecEntry | None) -> str | None:
    """The codec's name where a folder holds latents of frames of that very codec.

    Those of windows are of a grid, which the windows of a result need not lie on.
    """
    found = folder.codecs.get(entry.name) if isinstance(entry, FrameEntry) else None
    same = entry is not None and found is not None and found.fingerprint == entry.fingerprint
    return entry.name if entry is not None and same else None
