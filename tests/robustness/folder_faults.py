"""Damage to a folder, one fault each: files missing, swapped, cut or edited, the manifest, dataset.json.

Functions are pure, as in `shards`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from shard_faults import Damage, Folder, Kind, pick, shard_names
from shard_sets import edited_dataset, edited_rows, relisted

from omniges.shards.manifest import ManifestRow, MemberPlace
from omniges.shards.schema import CONTRACT, DATASET_FILE, MANIFEST_FILE, REPORT_FILE, STATS_FILE, TOKENIZER_FILE

_SIDE: Final = (MANIFEST_FILE, STATS_FILE, TOKENIZER_FILE, REPORT_FILE)


# --- whole files


def _swapped(rng: np.random.Generator, folder: Folder, _other: Folder) -> Damage:
    names = shard_names(folder)
    one = pick(rng, names)
    other = pick(rng, [name for name in names if name != one])
    codes = frozenset({"member-foreign", "member-missing"})
    return Damage({one: folder[other], other: folder[one]}, f"{one} and {other} swapped", codes)


def _of_another_run(rng: np.random.Generator, folder: Folder, other: Folder) -> Damage:
    names = [*shard_names(folder), *_SIDE, DATASET_FILE]
    name = pick(rng, [name for name in names if name in other])
    return Damage({name: other[name]}, f"{name} of another run")


def _copied_over(rng: np.random.Generator, folder: Folder, other: Folder) -> Damage:
    one = pick(rng, shard_names(folder))
    source = pick(rng, (folder[pick(rng, shard_names(folder))], other[pick(rng, shard_names(other))]))
    return Damage({one: source}, f"{one} is a copy of another shard")


def _missing(rng: np.random.Generator, folder: Folder, _other: Folder) -> Damage:
    name = pick(rng, sorted(folder))
    return Damage({name: None}, f"{name} missing", frozenset({"file-missing", "dataset-missing"}))


def _not_a_file(rng: np.random.Generator, folder: Folder, _other: Folder) -> Damage:
    name, kind = pick(rng, sorted(folder)), pick(rng, ("link", "folder", "pipe"))
    return Damage({name: kind}, f"{name} is a {kind}", frozenset({"file-not-regular"}))  # type: ignore[dict-item]


def _extra_shard(rng: np.random.Generator, folder: Folder, other: Folder) -> Damage:
    name = pick(rng, ("train-000099.tar", "val-000001.tar.TAR", "extra.tar", "train-000000 (1).tar"))
    data = pick(rng, (b"", folder[pick(rng, shard_names(folder))], other[shard_names(other)[0]]))
    return Damage({name: data}, f"{name} added", frozenset({"shard-unlisted"}))


def _temporary(rng: np.random.Generator, folder: Folder, _other: Folder) -> Damage:
    name = f".{pick(rng, sorted(folder))}.tmp-{int(rng.integers(10**6))}"
    return Damage({name: b"half"}, f"{name} left over", frozenset({"temporary-file"}))


def _renamed(rng: np.random.Generator, folder: Folder, _other: Folder) -> Damage:
    name = pick(rng, shard_names(folder))
    new = pick(rng, ("train-000077.tar", name.replace(".tar", ".tar.bak"), name.upper()))
    return Damage({name: None, new: folder[name]}, f"{name} renamed to {new}", frozenset({"file-missing"}))


def _damaged(data: bytes, rng: np.random.Generator) -> tuple[bytes, str]:
    """A file cut, flipped or with bytes more."""
    way = int(rng.integers(4))
    place = int(rng.integers(max(1, len(data))))
    if way == 0 or not data:
        return data[:place], f"cut to {place} bytes"
    if way == 1:
        return data + rng.bytes(int(rng.integers(1, 9))), "bytes added"
    if way == 2:
        count = int(rng.integers(1, 9))
        return data[:place] + data[place + count :], f"{count} bytes lost at {place}"
    changed = bytearray(data)
    changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed), f"a bit of byte {place} flipped"


def _side_file(name: str) -> Callable[[np.random.Generator, Folder, Folder], Damage]:
    def draw(rng: np.random.Generator, folder: Folder, _other: Folder) -> Damage:
        data, text = _damaged(folder[name], rng)
        return Damage({name: data}, f"{name}: {text}")

    return draw


# --- the manifest, its new checksum listed in dataset.json


def _rows(edit: Callable[[np.random.Generator, list[ManifestRow]], list[ManifestRow]]) -> Callable[..., Damage]:
    def draw(rng: np.random.Generator, folder: Folder, _other: Folder) -> Damage:
        return Damage(
            edited_rows(folder, lambda rows: edit(rng, rows)), "rows of the manifest, relisted", relisted=True
        )

    return draw


def _row_moved(rng: np.random.Generator, rows: list[ManifestRow]) -> list[ManifestRow]:
    place = int(rng.integers(len(rows)))
    edits: tuple[Callable[[], list[ManifestRow]], ...] = (
        lambda: rows[:place] + rows[place + 1 :],
        lambda: [*rows, rows[place]],
        lambda: [rows[place - 1] if k == place else row for k, row in enumerate(rows)],
    )
    return pick(rng, edits)()


def _row_field(rng: np.random.Generator, rows: list[ManifestRow]) -> list[ManifestRow]:
    place = int(rng.integers(len(rows)))
    row = rows[place]
    others = [name for name in {r.shard for r in rows} | {"val-000009.tar", "/etc/passwd"} if name != row.shard]
    fields: tuple[dict[str, Any], ...] = (
        *({"key": "../x"}, {"key": "other"}, {"key": ""}, {"stem": "other"}, {"stem": ""}, {"stem": row.stem + "."}),
        *({"split": "dev"}, {"split": "val" if row.split != "val" else "test"}, {"shard": pick(rng, sorted(others))}),
        *({"frames": row.frames + 1}, {"frames": -5}, {"frames": 2**60}, {"mel_frames": row.mel_frames + 1}),
        *({"ticks": row.ticks + 1}, {"words": row.words + 1}, {"words": -1}, {"seconds": row.seconds + 0.1}),
        *({"seconds": float("nan")}, {"seconds": -0.0}, {"sources": {}}),
    )
    return [*rows[:place], replace(row, **pick(rng, fields)), *rows[place + 1 :]]


def _row_place(rng: np.random.Generator, rows: list[ManifestRow]) -> list[ManifestRow]:
    place = int(rng.integers(len(rows)))
    row = rows[place]
    member = pick(rng, sorted(row.members))
    was = row.members[member]
    edits: tuple[MemberPlace | None, ...] = (
        *(replace(was, offset=was.offset + pick(rng, (-512, 512, 1, 2**62))), replace(was, offset=-1)),
        *(replace(was, size=was.size + pick(rng, (-1, 1, 512, 2**50))), replace(was, size=-1)),
        *(replace(was, sha256="0" * 64), replace(was, sha256="x"), replace(was, sha256=was.sha256.upper())),
        None,
    )
    now = pick(rng, edits)
    members = {name: found for name, found in row.members.items() if name != member}
    if now is None and member in CONTRACT.members:  # not nullable in the schema
        now = replace(was, offset=was.offset + 1024)
    changed = replace(row, members=members if now is None else members | {member: now})
    return [*rows[:place], changed, *rows[place + 1 :]]


def _columns(rng: np.random.Generator, folder: Folder, _other: Folder) -> Damage:
    """A parquet file of other columns: one gone, one more, one renamed, one of another type, all turned round."""
    table = pq.ParquetFile(io.BytesIO(folder[MANIFEST_FILE])).read(use_threads=False)
    place = int(rng.integers(table.num_columns))
    name = table.column_names[place]
    edits: tuple[Callable[[], Any], ...] = (
        lambda: table.drop_columns([name]),
        lambda: table.append_column("more", table.column("frames")),
        lambda: table.rename_columns([n + ("2" if n == name else "") for n in table.column_names]),
        lambda: table.set_column(place, name, table.column("key" if name != "key" else "frames")),
        lambda: table.select(table.column_names[::-1]),
        lambda: table.slice(0, 0),
    )
    buffer = io.BytesIO()
    pq.write_table(pick(rng, edits)(), buffer)
    data = buffer.getvalue()
    changes = {MANIFEST_FILE: data, DATASET_FILE: relisted(folder, {MANIFEST_FILE: data})}
    return Damage(changes, f"columns of the manifest, {name}, relisted", level="deep", relisted=True)


# --- dataset.json


_VALUES: Final[tuple[Any, ...]] = (None, True, -1, 10**400, 1e308, "", "x", "0" * 64, [], {}, [[]], {"a": 1}, 0, 1, 2)


def _newer(rng: np.random.Generator, folder: Folder, _other: Folder) -> Damage:
    version = pick(rng, (2, 3, 99, 0, -1, "1", "2", 1.0, True, None, [1]))
    data = edited_dataset(folder[DATASET_FILE], lambda document: document.update(version=version))
    return Damage({DATASET_FILE: data}, f"version {version!r}", frozenset({"dataset-newer", "dataset-version"}))


def _edited(rng: np.random.Generator, folder: Folder, _other: Folder) -> Damage:
    """One value edited by hand in the text."""
    document = json.loads(folder[DATASET_FILE])
    _scramble(document, rng)
    data = json.dumps(document, sort_keys=True, indent=pick(rng, (None, 2, 1)), ensure_ascii=False).encode()
    return Damage({DATASET_FILE: data}, "dataset.json edited")


def _edited_and_sealed(rng: np.random.Generator, folder: Folder, _other: Folder) -> Damage:
    """One value edited and the checksum updated; versions of tools and most of the plan may be what they like."""
    text: list[str] = []
    data = edited_dataset(folder[DATASET_FILE], lambda document: text.append(_scramble(document, rng)))
    return Damage({DATASET_FILE: data}, f"dataset.json edited and sealed: {text[0]}", level="deep", quick=False)


def _scramble(document: dict[str, Any], rng: np.random.Generator) -> str:
    """Set one field somewhere to what it was not; returns its name."""
    place, name = document, pick(rng, sorted(document.keys() - {"tool", "plan", "checksum"}))
    path = name
    while isinstance(place[name], dict) and place[name] and rng.random() < 0.8:
        place = place[name]
        name = pick(rng, sorted(place))
        path += f".{name}"
    before = place[name]
    place[name] = pick(rng, [value for value in _VALUES if value != before or type(value) is not type(before)])
    return f"{path} = {str(place[name])[:40]}"


def _counts(rng: np.random.Generator, folder: Folder, _other: Folder) -> Damage:
    """Counts that no longer agree with each other, sealed."""
    shard = pick(rng, shard_names(folder))
    field = pick(rng, ("samples", "frames", "mel_frames", "ticks", "words"))
    edits: dict[str, Callable[[dict[str, Any]], object]] = {
        f"totals.{field}": lambda d: d["totals"].update({field: d["totals"][field] + 1}),
        f"splits.train.{field}": lambda d: d["splits"]["train"].update({field: d["splits"]["train"][field] + 1}),
        f"samples of {shard}": lambda d: d["shards"][shard].update(samples=d["shards"][shard]["samples"] + 1),
        "stems": lambda d: d["plan"].update(stems=d["plan"]["stems"] + 1),
        "rejected": lambda d: d["plan"].update(rejected=d["plan"]["rejected"] + 1),
        "settings": lambda d: d["settings"].update(shard_bytes=d["settings"]["shard_bytes"] + 1),
        "totals.seconds": lambda d: d["totals"].update(seconds=d["totals"]["seconds"] + 1.0),
        "a shard left out": lambda d: d["shards"].pop(shard),
        "numbering": lambda d: d["shards"].update({f"{shard[:-10]}000077.tar": d["shards"].pop(shard)}),
    }
    name = pick(rng, sorted(edits))
    data = edited_dataset(folder[DATASET_FILE], edits[name])
    return Damage({DATASET_FILE: data}, f"{name} in dataset.json, sealed", quick=True)


def _listing(rng: np.random.Generator, folder: Folder, _other: Folder) -> Damage:
    """Another size or checksum of a file, sealed."""
    name = pick(rng, sorted(folder.keys() - {DATASET_FILE}))
    size = bool(rng.integers(2))

    def edit(document: dict[str, Any]) -> None:
        entry = document["shards" if name.endswith(".tar") else "files"][name]
        entry.update({"bytes": entry["bytes"] + pick(rng, (-512, 512, 1))} if size else {"sha256": "0" * 64})

    data = edited_dataset(folder[DATASET_FILE], edit)
    return Damage({DATASET_FILE: data}, f"{'size' if size else 'sha256'} of {name}, sealed", quick=size)


FOLDER_KINDS: Final[tuple[Kind, ...]] = (
    Kind("shards swapped with each other", _swapped),
    Kind("a file of another run", _of_another_run),
    Kind("a shard copied over another", _copied_over),
    Kind("a file missing", _missing),
    Kind("a link, folder or pipe for a file", _not_a_file),
    Kind("an extra shard", _extra_shard),
    Kind("a temporary file", _temporary),
    Kind("a shard renamed", _renamed),
    Kind("manifest cut or changed", _side_file(MANIFEST_FILE)),
    Kind("dataset.json cut or changed", _side_file(DATASET_FILE)),
    *(Kind(f"{name} cut or changed", _side_file(name)) for name in (STATS_FILE, TOKENIZER_FILE, REPORT_FILE)),
    Kind("manifest rows removed or doubled, relisted", _rows(_row_moved)),
    Kind("manifest fields, relisted", _rows(_row_field)),
    Kind("manifest places, relisted", _rows(_row_place)),
    Kind("manifest columns, relisted", _columns),
    Kind("dataset.json of another version, sealed", _newer),
    Kind("dataset.json edited", _edited),
    Kind("dataset.json edited, sealed", _edited_and_sealed),
    Kind("dataset.json counts, sealed", _counts),
    Kind("dataset.json listing, sealed", _listing),
)
