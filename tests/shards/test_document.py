"""Every field of dataset.json has the type and the range of the contract, for readers and for the verifier alike."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from verify_builders import run

from omniges.errors import DataError
from omniges.shards.dataset import seal
from omniges.shards.document import check_document, field_faults, read_dataset
from omniges.shards.manifest import ManifestRow, places_problem, row_problem
from omniges.shards.reader import ShardFolder
from omniges.shards.schema import DATASET_FILE
from omniges.storage.files import canonical_json, sha256_hex

HOSTILE: tuple[Any, ...] = (None, True, -1, 0.5, -1e30, 1e30, 2**63, "", "x" * 10**4, [], [[]], {}, {"../x": 5})
OTHER_READERS = ("checksum", "format", "version")  # told in their own words
MAY_BE_NULL = ("max_length_mismatch_s", "motion_rate_hz", "word_tier", "wav_dir", "gesture_dir", "text_dir")
LISTS = ("allow_roots", "include", "languages", "speakers", "splits")


@pytest.fixture
def folder(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "shards"))


def places(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every field of a document, objects included."""
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield (*path, name)
        yield from places(inner, (*path, name))


def with_value(document: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy with another value in a field, and digests that fit it."""
    changed: dict[str, Any] = copy.deepcopy(document)
    del changed["checksum"]
    parent = changed
    for name in path[:-1]:
        parent = parent[name]
    parent[path[-1]] = value
    if path[0] == "settings":
        changed["plan"]["settings_sha256"] = sha256_hex(canonical_json(changed["settings"]))
    sealed: dict[str, Any] = json.loads(seal(changed))
    return sealed


def is_valid(path: tuple[str, ...], value: Any) -> bool:
    """Return whether a hostile value is one that a run could have written."""
    name = path[-1]
    if path[0] == "settings" and (
        (value is None and name in MAY_BE_NULL)
        or (value == [] and name in LISTS and len(path) > 1)
        or (name in {"max_length_mismatch_s", "motion_rate_hz"} and value == 0.5)
        or (name == "keep_audio" and value is True)
        or (name == "selection" and isinstance(value, dict))  # settings of later versions are allowed
        or (name == "shard_bytes" and value == 2**59)
    ):
        return True
    return (name == "rejected_inputs" and value == {}) or (
        name in {"seconds", "audio_s", "motion_s"} and type(value) is float and value == 0.5
    )


def test_every_field_is_typed_and_ranged(folder: Path) -> None:
    document = read_dataset(folder)
    passed = []
    for path in places(document):
        if path[0] == "features" and len(path) > 1:
            continue
        for value in HOSTILE:
            changed = with_value(document, path, value)
            valid = is_valid(path, value)
            try:
                check_document(changed, "d")
            except DataError as error:
                assert "\n" not in str(error)
                assert len(str(error)) < 500
                if not valid:
                    continue
            faults = [*field_faults(changed)]
            if not valid and path[0] not in OTHER_READERS and not faults:
                passed.append((path, value))
            elif valid:
                assert not faults, (path, value)
    assert passed == [(("files",), {})]  # each reader asks for the files that it needs


def test_the_verifier_reports_each_of_them(folder: Path) -> None:
    document = read_dataset(folder)
    wanted = {
        "tool": [],
        "plan.inputs_sha256": 5,
        "plan.rejected_inputs": {"../x": 5},
        "settings.convert.keep_audio": 1,
        "totals.cut.words_dropped": -1,
    }
    changed = document
    for name, value in wanted.items():
        changed = with_value(changed, tuple(name.split(".")), value)
    (folder / DATASET_FILE).write_bytes(seal({k: v for k, v in changed.items() if k != "checksum"}))
    found = run(folder, "quick").findings
    named = {finding.found.partition(": ")[0] for finding in found if finding.code == "dataset-malformed"}
    assert named == set(wanted)


@pytest.mark.parametrize("name", ["plan", "settings.convert", "settings.shard_bytes", "totals.cut", "tool.omniges"])
def test_provenance_may_be_absent_for_readers_alone(folder: Path, name: str) -> None:
    document = {key: value for key, value in read_dataset(folder).items() if key != "checksum"}
    parent: Any = document
    for part in name.split(".")[:-1]:
        parent = parent[part]
    parent[name.rsplit(".", maxsplit=1)[-1]] = {}
    if name != "plan":
        del parent[name.rsplit(".", maxsplit=1)[-1]]
    check_document(json.loads(seal(document)), "d")
    assert [*field_faults(document)]


@pytest.mark.parametrize("size", [512 * 10**12, 1 << 40])
def test_a_shard_ends_where_its_members_end(folder: Path, size: int) -> None:
    shards, rows = copy.deepcopy(read_dataset(folder)["shards"]), ShardFolder(folder).rows
    assert places_problem(rows, shards) == ""
    next(iter(shards.values()))["bytes"] = size
    assert f"found {size} in dataset.json" in places_problem(rows, shards)


def test_a_row_cannot_claim_more_than_a_day(folder: Path) -> None:
    row: ManifestRow = ShardFolder(folder).rows[0]
    assert row_problem(row) == ""
    assert row_problem(replace(row, frames=86_400 * 30)) == ""
    assert "frames" in row_problem(replace(row, frames=86_400 * 30 + 1))
    place = replace(row.members["json"], size=(64 << 20) + 1)
    assert "size" in row_problem(replace(row, members=dict(row.members) | {"json": place}))
