"""Sequence of windows, and the state that describes it and the position in it.

A state holds nothing per worker, rank or epoch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from omniges.data.catalog import Catalog, ClipTable, Filters, read_catalog
from omniges.data.order import ClipOrder, Mixture
from omniges.data.tracks import Tracks
from omniges.errors import DataError, UsageFault
from omniges.shards.dataset import read_dataset
from omniges.shards.reader import LocalShards, ShardSource

STATE_VERSION: Final = 1

_CONTENT: Final = "content_hashes"
"""What batches are made of. States of earlier versions do not have it."""

_MULTIPLE: Final = "tick_multiple"
"""Ticks that windows begin at multiples of. States of earlier versions do not have it: it was 1."""

_FIXED: Final = ("manifest_hashes", "filters", "weights", "window_ticks", "seed", "shuffle", _MULTIPLE)


@dataclass(frozen=True, slots=True, eq=False)
class DataSource:
    """One folder of a mixture: its clips, its share, and where the shards are if not in the catalogue's folder."""

    catalog: Catalog
    weight: float = 1.0
    shards: ShardSource | None = None

    def shard_source(self) -> ShardSource:
        """Source of the shards."""
        return self.shards or LocalShards(self.catalog.folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequencing:
    """Settings that, with the folders, decide the sequence of windows."""

    window_ticks: int = 64
    seed: int = 0
    shuffle: bool = True  # else one pass in key order, windows without gaps
    tick_multiple: int = 1  # windows begin at multiples of it, where a model's tokens hold several rows

    def __post_init__(self) -> None:
        """Refuse a multiple that no number is one of."""
        if self.tick_multiple < 1:
            raise UsageFault(f"--tick-multiple {self.tick_multiple}: at least 1 expected")


def tracks_of(data: Sequence[DataSource]) -> Tracks:
    """Return the tracks of batches of these folders; raises UsageFault where they hold latents of different codecs."""
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
                    f"{source.catalog.folder}: latents of {wanted} expected as in {first.folder}, found {found}: "
                    "encode both with one codec"
                )
    return first.tracks


def make_order(data: Sequence[DataSource], sequencing: Sequencing) -> Mixture:
    """The order of the folders' windows; raises UsageFault where there is none, or `tracks_of` does."""
    tables = [source.catalog.table for source in data]
    return order_of(tables, [source.weight for source in data], sequencing, tracks_of(data))


def order_of(tables: Sequence[ClipTable], weights: Sequence[float], sequencing: Sequencing, tracks: Tracks) -> Mixture:
    """The order of the windows of several folders' clips."""
    window, seed, shuffle = sequencing.window_ticks, sequencing.seed, sequencing.shuffle
    multiple = tracks.multiple_for_window(window, sequencing.tick_multiple)
    orders = [
        ClipOrder(table.ticks, table.key_hashes, window, seed, shuffle=shuffle, multiple=multiple) for table in tables
    ]
    return Mixture(orders, weights)


@dataclass(frozen=True, slots=True)
class Resumed:
    """Position at which a loader resumes, and a warning where the global batch differs."""

    position: int
    note: str | None


def make_state(data: Sequence[DataSource], sequencing: Sequencing, position: int, global_batch: int) -> dict[str, Any]:
    """The state as JSON."""
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


def resume(own: Mapping[str, Any], saved: Mapping[str, Any]) -> Resumed:
    """Return the position to resume from; `own` is this loader's state.

    Another manifest is no hindrance where all that batches read is the same, as after latents of another codec were
    added. Raises UsageFault, with every difference, where the saved sequence is another one, DataError where it is no
    state.
    """
    if saved.get("version") != STATE_VERSION:
        raise DataError(
            f"loader state version {STATE_VERSION} expected, found {saved.get('version')!r}. Use the omniges that "
            "wrote it"
        )
    missing = [name for name in own if name not in saved and name not in {_CONTENT, _MULTIPLE}]
    position, global_batch = saved.get("position"), saved.get("global_batch")
    if missing or type(position) is not int or type(global_batch) is not int or position < 0 or global_batch < 1:
        raise DataError(
            f"loader state: position {position!r}, global batch {global_batch!r}"
            + (f", without {', '.join(missing)}" if missing else "")
            + ". It was edited or damaged: use another checkpoint"
        )
    known = {_MULTIPLE: 1} | dict(saved)
    same = known.get(_CONTENT) == own[_CONTENT]
    fixed = [name for name in _FIXED if name != "manifest_hashes" or not same]
    differences = [line for name in fixed for line in _differences(name, known[name], own[name])]
    if not differences and _CONTENT in known:  # of the same shards other members, as of another codec
        differences = _differences(_CONTENT, known[_CONTENT], own[_CONTENT])
    if differences:
        raise UsageFault(
            f"the saved position belongs to another sequence of windows: {'; '.join(differences)}. Go on with the "
            "saved settings and shards, or start a new run"
        )
    note = None
    if global_batch != own["global_batch"]:
        note = (
            f"global batch {own['global_batch']}, was {global_batch}: the windows come in the same order, grouped "
            f"anew from position {position} on"
        )
    return Resumed(position, note)


def trained_on(
    saved: Mapping[str, Any], folder: Path, codecs: Mapping[str, str], labels: Sequence[str] = ()
) -> list[int]:
    """Numbers of those folders of a saved state whose clips a local folder has, all that batches read of them.

    The manifests' hashes may differ by what batches do not read, such as latents of another codec; states of earlier
    versions have no other ones. ``codecs``: of the model, names by stream; ``labels``: those that its condition streams
    read. Raises DataError for a damaged folder.
    """
    manifests, filters = saved.get("manifest_hashes") or [], saved.get("filters") or []
    contents: Any = saved.get(_CONTENT) or [None] * len(manifests if isinstance(manifests, list) else [])
    if not all(isinstance(one, list) for one in (manifests, filters, contents)):
        raise DataError(
            "loader state: lists of manifests, contents and filters expected. It was edited or damaged: use another "
            "checkpoint"
        )
    own = read_dataset(folder)["manifest_hash"]
    numbers = []
    for number, (manifest, content, chosen) in enumerate(zip(manifests, contents, filters, strict=False)):
        same = manifest == own
        if not same and content is not None:
            # a UsageFault: it has no such clips or latents, so none that are the same
            with contextlib.suppress(UsageFault):
                same = content == read_catalog(folder, Filters.from_json(chosen), codecs, labels).content_hash
        if same:
            numbers.append(number)
    return numbers


def _differences(name: str, saved: Any, own: Any) -> list[str]:
    """Readable differences of two JSON values, one a line, down to single fields."""
    if type(saved) is type(own) and saved == own:
        return []
    if isinstance(saved, dict) and isinstance(own, dict) and saved.keys() == own.keys():
        return [line for key in own for line in _differences(f"{name}.{key}", saved[key], own[key])]
    if isinstance(saved, list) and isinstance(own, list) and len(saved) == len(own) == 1:
        return _differences(name, saved[0], own[0])
    if isinstance(saved, (int, float)) and isinstance(own, (int, float)) and saved == own:
        return []
    return [f"{name} was {saved!r}, is {own!r}"]
