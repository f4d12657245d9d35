"""The sequence of windows, and the saved state that describes the sequence and the position in it.

Training can resume from a state with any number of workers and ranks. Another global batch size causes only a warning.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from omniges.data.catalog import Catalog, ClipTable, Filters, read_catalog
from omniges.data.order import MAX_POSITION, ClipOrder, Mixture
from omniges.data.tracks import Tracks
from omniges.errors import DataError, UsageFault
from omniges.features.gesture import LAYOUT
from omniges.shards.document import read_dataset
from omniges.shards.reader import LocalShards, ShardSource
from omniges.storage.documents import Document, Range, Sha256, shown

STATE_VERSION: Final = 1

_CONTENT: Final = "content_hashes"
"""Key of `Catalog.content_hash` of each folder in a state. States of earlier versions lack this key."""

_MULTIPLE: Final = "tick_multiple"
"""Key of `Sequencing.tick_multiple` in a state. States of earlier versions lack this key; their multiple is 1."""

_FIXED: Final = ("manifest_hashes", "filters", "weights", "window_ticks", "seed", "shuffle", _MULTIPLE)


@dataclass(frozen=True, slots=True, eq=False)
class DataSource:
    """One shard folder of a run: a catalogue of its clips, its weight in the mixture, and access to its shards."""

    catalog: Catalog
    weight: float = 1.0
    shards: ShardSource | None = None  # None: the shards are in the catalogue's folder

    def shard_source(self) -> ShardSource:
        """Return `shards`; if it has the value None, return a source that opens files in the catalogue's folder."""
        return self.shards or LocalShards(self.catalog.folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequencing:
    """Settings that determine the sequence of windows for given folders."""

    window_ticks: int = 64
    seed: int = 0
    shuffle: bool = True  # False: one pass in key order, windows without gaps
    tick_multiple: int = 1  # windows start at multiples of this; above 1 if a model token has several rows

    def __post_init__(self) -> None:
        """Raise UsageFault if `tick_multiple` is below 1."""
        if self.tick_multiple < 1:
            raise UsageFault(f"--tick-multiple {self.tick_multiple}: expected a number of at least 1")


def tracks_of(data: Sequence[DataSource]) -> Tracks:
    """Return the tracks, which all folders share; raise UsageFault if the folders have latents of different codecs."""
    first = data[0].catalog
    for source in data[1:]:
        for stream, entry in first.codecs.items():
            other = source.catalog.codecs.get(stream)
            if other is None or not other.same_codec(entry):
                found, wanted = (
                    "none" if one is None else f"{one.name} {one.fingerprint[:16]}… ({one.described})"
                    for one in (other, entry)
                )
                raise UsageFault(
                    f"{source.catalog.folder}: expected latents of {wanted} as in {first.folder}, found "
                    f"{found}; encode both with one codec"
                )
    return first.tracks


def make_order(data: Sequence[DataSource], sequencing: Sequencing) -> Mixture:
    """Return the order of the folders' windows.

    Args:
        data: The folders, with their clips and weights.
        sequencing: Settings of the sequence.

    Returns:
        The order of the windows of all folders.

    Raises:
        UsageFault: There is no window, or the folders have latents of different codecs.
    """
    tables = [source.catalog.table for source in data]
    return order_of(tables, [source.weight for source in data], sequencing, tracks_of(data))


def order_of(tables: Sequence[ClipTable], weights: Sequence[float], sequencing: Sequencing, tracks: Tracks) -> Mixture:
    """Return the order of the windows of several folders, given their clips.

    Args:
        tables: Clips of each folder.
        weights: Weight of each folder.
        sequencing: Settings of the sequence.
        tracks: The array of each stream: features, or latents of a codec.

    Returns:
        The order of the windows of all folders.

    Raises:
        UsageFault: All clips of a folder are shorter than a window, a weight is invalid, or the tracks do not allow the
            window length (`Tracks.multiple_for_window`).
    """
    window, seed, shuffle = sequencing.window_ticks, sequencing.seed, sequencing.shuffle
    multiple = tracks.multiple_for_window(window, sequencing.tick_multiple)
    orders = [
        ClipOrder(table.ticks, table.key_hashes, window, seed, shuffle=shuffle, multiple=multiple) for table in tables
    ]
    return Mixture(orders, weights)


@dataclass(frozen=True, slots=True)
class Resumed:
    """Position at which a loader resumes, and a warning if its global batch size differs from the saved size."""

    position: int
    note: str | None


def make_state(data: Sequence[DataSource], sequencing: Sequencing, position: int, global_batch: int) -> dict[str, Any]:
    """Return the state of a loader as JSON.

    Args:
        data: The folders, with their clips and weights.
        sequencing: Settings of the sequence.
        position: Number of windows returned so far, summed over all ranks.
        global_batch: Number of windows in a step, summed over all ranks.

    Returns:
        The state as a JSON object.
    """
    return {
        "version": STATE_VERSION,
        "manifest_hashes": [source.catalog.manifest_hash for source in data],
        _CONTENT: [source.catalog.content_hash for source in data],
        "filters": [source.catalog.filters.as_json() for source in data],
        "weights": [source.weight for source in data],
        **asdict(sequencing),
        "position": position,
        "global_batch": global_batch,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderState:
    """The saved state of a loader: the sequence of windows, and the position in it."""

    version: int
    manifest_hashes: tuple[Sha256, ...]
    filters: tuple[Filters, ...]
    weights: tuple[Annotated[float, Range(above=0)], ...]
    window_ticks: Annotated[int, Range(1, 1 << 31)]
    seed: Annotated[int, Range(-(1 << 63), (1 << 64) - 1)]
    shuffle: bool
    position: Annotated[int, Range(0, MAX_POSITION - 1)]
    global_batch: Annotated[int, Range(1, 1 << 31)]
    content_hashes: tuple[Sha256, ...] | None = None  # states of earlier versions lack it
    tick_multiple: Annotated[int, Range(1, 1 << 31)] = 1  # states of earlier versions lack it

    @classmethod
    def read(cls, document: Document) -> LoaderState:
        """Parse and check a state that `make_state` made.

        Args:
            document: The state as a JSON object.

        Returns:
            The parsed state.

        Raises:
            DataError: A field is unknown, absent, of another type or out of range, or a list does not have exactly one
                entry for each folder.
        """
        if document.value("version") != STATE_VERSION:
            raise DataError(
                f"{document.where}: {document.prefix}version: expected {STATE_VERSION}, found "
                f"{shown(document.found['version'])}; use the omniges version that wrote it"
            )
        state = document.read(cls)
        folders = len(state.manifest_hashes)
        for name in ("manifest_hashes", _CONTENT, "filters", "weights"):
            found = getattr(state, name)
            if found is not None and len(found) != max(folders, 1):
                raise document.fault(name, str(len(found)), f"one for each of {max(folders, 1)} folders")
        return state


def resume(own: Mapping[str, Any], saved: Mapping[str, Any]) -> Resumed:
    """Check that a saved state describes the windows of this loader, and return the position at which to resume.

    The manifest of a folder may differ from the manifest at the time of saving, if the content that batches read is
    unchanged. For example, latents of another codec may have been added.

    Args:
        own: State of this loader.
        saved: State of the loader in the checkpoint.

    Returns:
        The position, and a warning if the global batch size of this loader differs from the saved size.

    Raises:
        UsageFault: The saved sequence differs from the sequence of this loader; the error lists every difference.
        DataError: The saved state is not valid.
    """
    state = LoaderState.read(
        Document(dict(saved), "loader state", "the checkpoint was edited; choose another checkpoint")
    )
    known = {_MULTIPLE: 1} | dict(saved)
    same = known.get(_CONTENT) == own[_CONTENT]
    fixed = [name for name in _FIXED if name != "manifest_hashes" or not same]
    differences = [line for name in fixed for line in _differences(name, known[name], own[name])]
    if not differences and _CONTENT in known:  # same shards, but other members, such as latents of another codec
        differences = _differences(_CONTENT, known[_CONTENT], own[_CONTENT])
    if differences:
        raise UsageFault(
            f"loader state: expected the windows of this run, found other windows ({'; '.join(differences)}); resume "
            "with the saved settings and shards, or start a new run"
        )
    note = None
    if state.global_batch != own["global_batch"]:
        note = (
            f"global batch {own['global_batch']}, was {state.global_batch}: the order of windows is the same, with "
            f"new batch boundaries from position {state.position}"
        )
    return Resumed(state.position, note)


def trained_on(
    saved: LoaderState,
    folder: Path,
    codecs: Mapping[str, str],
    labels: Sequence[str] = (),
    gesture_channels: int = LAYOUT.channels,
) -> list[int]:
    """Find the folders in a saved state that have the same clips as a local folder.

    Only content that training reads is compared. So latents of another codec, for example, may differ. However, a state
    of an earlier version contains only manifest hashes; then the complete content must be the same.

    Args:
        saved: State of a loader.
        folder: The local shard folder.
        codecs: Codecs of the model, by stream.
        labels: Labels that the model's condition streams read.
        gesture_channels: Channels of the model's gesture stream, 415 or 424.

    Returns:
        Indices of folders in the state.

    Raises:
        DataError: The folder is damaged.
    """
    manifests, contents = saved.manifest_hashes, saved.content_hashes or (None,) * len(saved.manifest_hashes)
    own = read_dataset(folder)["manifest_hash"]
    numbers = []
    for number, (manifest, content, chosen) in enumerate(zip(manifests, contents, saved.filters, strict=True)):
        same = manifest == own
        if not same and content is not None:
            # a UsageFault means that the folder has no such clips or latents
            with contextlib.suppress(UsageFault):
                own_clips = read_catalog(folder, chosen, codecs, labels, gesture_channels)
                same = content == own_clips.content_hash
        if same:
            numbers.append(number)
    return numbers


def _differences(name: str, saved: Any, own: Any) -> list[str]:
    """Describe each difference of two JSON values in a line for errors; return [] if they are equal."""
    if type(saved) is type(own) and saved == own:
        return []
    if isinstance(saved, dict) and isinstance(own, dict) and saved.keys() == own.keys():
        return [line for key in own for line in _differences(f"{name}.{key}", saved[key], own[key])]
    if isinstance(saved, list) and isinstance(own, list) and len(saved) == len(own) == 1:
        return _differences(name, saved[0], own[0])
    if isinstance(saved, (int, float)) and isinstance(own, (int, float)) and saved == own:
        return []
    return [f"{name}: {saved!r} in the saved state, {own!r} in this run"]
