"""A loader's state: what decides the sequence, and how far into it training is. Nothing per worker, rank or epoch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from omniges.data.catalog import Filters, read_catalog
from omniges.data.worker_setup import DataSource, Sequencing
from omniges.errors import DataError, UsageFault
from omniges.shards.dataset import read_dataset

STATE_VERSION: Final = 1

_CONTENT: Final = "content_hashes"
"""What batches are made of. States of earlier versions do not have it."""

_MULTIPLE: Final = "tick_multiple"
"""Ticks that windows begin at multiples of. States of earlier versions do not have it: it was 1."""

_FIXED: Final = ("manifest_hashes", "filters", "weights", "window_ticks", "seed", "shuffle", _MULTIPLE)


@dataclass(frozen=True, slots=True)
class Resumed:
    """Where a loader goes on, and a remark where that is not quite what was saved."""

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
        "window_ticks": sequencing.window_ticks,
        "seed": sequencing.seed,
        "shuffle": sequencing.shuffle,
        _MULTIPLE: sequencing.tick_multiple,
        "position": position,
        "global_batch": global_batch,
    }


def resume(own: Mapping[str, Any], saved: Mapping[str, Any]) -> Resumed:
    """Where to go on from a saved state; `own` is this loader's.

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


def trained_on(saved: Mapping[str, Any], folder: Path, codecs: Mapping[str, str]) -> list[int]:
    """Numbers of those folders of a saved state whose clips a local folder has, all that batches read of them.

    The manifests' hashes may differ by what batches do not read, such as latents of another codec; states of earlier
    versions have no other ones. ``codecs``: of the model, names by stream. Raises DataError for a damaged folder.
    """
    manifests, filters = saved.get("manifest_hashes") or [], saved.get("filters") or []
    contents = saved.get(_CONTENT) or [None] * len(manifests)
    own = read_dataset(folder)["manifest_hash"]
    numbers = []
    for number, (manifest, content, chosen) in enumerate(zip(manifests, contents, filters, strict=False)):
        same = manifest == own
        if not same and content is not None:
            # a UsageFault: it has no such clips or latents, so none that are the same
            with contextlib.suppress(UsageFault):
                same = content == read_catalog(folder, Filters.from_json(chosen), codecs).content_hash
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
