"""A member's bytes are those of the manifest, wherever its shard is, or an error that says where and what."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omniges.data.catalog import Filters, read_catalog
from omniges.data.tracks import PLAIN_TRACKS, Normaliser
from omniges.data.window_reader import ClipReader, ReadMarks
from omniges.errors import DataError, EnvironmentFault
from omniges.shards.reader import LocalShards, ShardFolder, read_beside
from omniges.shards.schema import DATASET_FILE, STATS_FILE


@pytest.fixture
def folder(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "shards"))


def elsewhere(folder: Path) -> tuple[ShardFolder, Path]:
    """The same set with its shards in another folder than its small files."""
    moved = folder.parent / "moved"
    moved.mkdir()
    for path in sorted(folder.glob("*.tar")):
        shutil.move(path, moved / path.name)
    return ShardFolder(folder, LocalShards(moved)), moved


def test_every_member_is_the_same_wherever_the_shards_are(folder: Path) -> None:
    local = ShardFolder(folder)
    content = {(row.key, name): local.member(row, name) for row in local.rows for name in row.members}
    other, _ = elsewhere(folder)
    assert {(row.key, name): other.member(row, name) for row in other.rows for name in row.members} == content


@pytest.mark.parametrize("member", ["gesture.npy", "mel.npy", "words.txt"])
def test_any_flipped_byte_is_found_and_told_in_the_words_of_the_loader(folder: Path, member: str) -> None:
    shards, moved = elsewhere(folder)
    row = next(row for row in shards.rows if row.split == "train")
    place = row.members[member]
    sound = (moved / row.shard).read_bytes()
    tables = read_catalog(folder, Filters()).table
    plain = Normaliser.identity(PLAIN_TRACKS)
    out = np.empty(3 * 415, np.float32), np.empty(10 * 64, np.float32)
    for at in sorted({0, place.size - 1, *np.random.default_rng(0).integers(0, place.size, 5).tolist()}):
        data = bytearray(sound)
        data[place.offset + at] ^= 1
        (moved / row.shard).write_bytes(data)
        with pytest.raises(DataError) as told:
            shards.member(row, member)
        assert f"{moved / row.shard}: {row.key}.{member} at byte {place.offset}: sha256 {place.sha256} expected" in str(
            told.value
        )
        loader = ClipReader(tables, shards.source, ReadMarks.blank(len(tables)))
        sample = [tables.key(number) for number in range(len(tables))].index(row.key)
        with pytest.raises(DataError) as same:
            loader.words(sample) if member == "words.txt" else loader.read_window(sample, 0, 1, plain, out)
        # The loader's table holds places alone, so it calls the words by one name in every version.
        assert str(same.value) == str(told.value).replace("words.txt", "words")


def test_a_shard_that_ends_early_is_not_there_or_is_a_folder(folder: Path) -> None:
    shards = ShardFolder(folder)
    row = shards.rows[0]
    path = folder / row.shard
    path.write_bytes(path.read_bytes()[: row.members["mel.npy"].offset + 10])
    with pytest.raises(DataError, match=r"mel.npy at byte \d+: sha256 \w+ expected, found \w+"):
        shards.member(row, "mel.npy")
    path.unlink()
    with pytest.raises(DataError, match="the shard is not there"):
        shards.member(row, "mel.npy")
    path.mkdir()
    with pytest.raises(EnvironmentFault, match="cannot read"):
        shards.member(row, "mel.npy")


def test_a_file_beside_the_shards_is_that_of_dataset_json(folder: Path) -> None:
    dataset = json.loads((folder / DATASET_FILE).read_bytes())
    data = (folder / STATS_FILE).read_bytes()
    assert read_beside(folder, STATS_FILE, dataset) == data
    (folder / STATS_FILE).write_bytes(data + b" ")
    with pytest.raises(DataError, match=r"stats.json: sha256 \w+ expected as in dataset.json, found \w+"):
        read_beside(folder, STATS_FILE, dataset)
    (folder / STATS_FILE).unlink()
    with pytest.raises(DataError, match=r"stats.json: No such file"):
        read_beside(folder, STATS_FILE, dataset)
    with pytest.raises(DataError, match=r"shards"):
        read_beside(folder, "unlisted.json", dataset)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_a_damaged_header_of_an_array_is_one_line_or_another_array(shards: Path, data: st.DataObject) -> None:
    folder = ShardFolder(shards)
    row = folder.rows[0]
    sound = folder.member(row, "start_xz.npy")
    damaged = bytearray(sound[: data.draw(st.integers(0, len(sound)))])
    for at in data.draw(st.lists(st.integers(0, 127), max_size=3)):
        damaged[at : at + 1] = data.draw(st.binary(max_size=2))
    try:
        found = folder.array_of(row, "start_xz.npy", bytes(damaged))
    except DataError as error:
        assert f"{row.shard}: {row.key}.start_xz.npy at byte " in str(error)
        assert "\n" not in str(error)
    else:
        assert found.nbytes <= len(damaged)
