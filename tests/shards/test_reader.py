"""A member's bytes are those of the manifest, wherever its shard is, or an error that says where and what."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from verify_builders import edited_manifest

from omniges.data.catalog import Filters, read_catalog
from omniges.data.samples import open_shards
from omniges.data.tracks import PLAIN_TRACKS, Normaliser
from omniges.data.window_reader import ClipReader, ReadMarks
from omniges.errors import DataError
from omniges.pipeline.export import audio_file, export
from omniges.shards.dataset import seal
from omniges.shards.manifest import ManifestRow
from omniges.shards.reader import LocalShards, ShardFolder, read_beside
from omniges.shards.schema import DATASET_FILE, MANIFEST_FILE, STATS_FILE


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
def test_any_flipped_byte_is_found_and_reported_in_the_words_of_the_loader(folder: Path, member: str) -> None:
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
        with pytest.raises(DataError) as caught:
            shards.member(row, member)
        assert f"{moved / row.shard}: {row.key}.{member} at byte {place.offset}: expected sha256 {place.sha256}" in str(
            caught.value
        )
        loader = ClipReader(tables, shards.source, ReadMarks.blank(len(tables)))
        sample = [tables.key(number) for number in range(len(tables))].index(row.key)
        with pytest.raises(DataError) as same:
            loader.words(sample) if member == "words.txt" else loader.read_window(sample, 0, 1, plain, out)
        # The loader's table holds places alone, so it calls the words by one name in every version.
        assert str(same.value) == str(caught.value).replace("words.txt", "words")


def test_a_shard_that_ends_early_is_not_there_or_is_a_folder(folder: Path) -> None:
    shards = ShardFolder(folder)
    row = shards.rows[0]
    path = folder / row.shard
    path.write_bytes(path.read_bytes()[: row.members["mel.npy"].offset + 10])
    with pytest.raises(DataError, match=r"mel.npy at byte \d+: expected sha256 \w+, found \w+"):
        shards.member(row, "mel.npy")
    path.unlink()
    with pytest.raises(DataError, match="expected this shard, found that the file does not exist"):
        shards.member(row, "mel.npy")
    path.mkdir()
    with pytest.raises(DataError, match="expected a regular file, found a folder"):
        shards.member(row, "mel.npy")


def test_a_file_beside_the_shards_is_that_of_dataset_json(folder: Path) -> None:
    dataset = json.loads((folder / DATASET_FILE).read_bytes())
    data = (folder / STATS_FILE).read_bytes()
    assert read_beside(folder, STATS_FILE, dataset) == data
    (folder / STATS_FILE).write_bytes(data + b" ")
    with pytest.raises(DataError, match=rf"stats.json: expected {len(data)} bytes as in dataset.json, found"):
        read_beside(folder, STATS_FILE, dataset)
    (folder / STATS_FILE).write_bytes(data[:-1] + b" ")
    with pytest.raises(DataError, match=r"stats.json: expected sha256 \w+ as in dataset.json, found \w+"):
        read_beside(folder, STATS_FILE, dataset)
    (folder / STATS_FILE).unlink()
    with pytest.raises(DataError, match=r"stats.json: expected this file, found that the file does not exist"):
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


def moved(row: ManifestRow, folder: Path) -> ManifestRow:
    """The row with a member that ends a byte behind its shard."""
    place = row.members["mel.npy"]
    past = (folder / row.shard).stat().st_size - place.size + 1
    return replace(row, members=row.members | {"mel.npy": replace(place, offset=past)})


def other_split(rows: list[ManifestRow]) -> list[ManifestRow]:
    train = next(number for number, row in enumerate(rows) if row.split == "train")
    return [replace(row, split="test") if number == train else row for number, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda _rows: [], r"\d rows of \S+\.tar .*as in dataset\.json, found 0"),
        (lambda rows: rows[1:], r"\d rows of \S+\.tar .*as in dataset\.json, found \d"),
        (other_split, r"(the split of its shard train-\d+\.tar, found test|in split train as in dataset\.json, found)"),
    ],
    ids=["none", "fewer", "split"],
)
def test_every_reader_compares_the_rows_with_the_totals(folder: Path, edit: Any, message: str) -> None:
    for name, data in edited_manifest(folder, edit).items():
        (folder / name).write_bytes(data)
    for read in (
        lambda: ShardFolder(folder).rows,
        lambda: read_catalog(folder, Filters()),
        lambda: open_shards(folder),
    ):
        with pytest.raises(DataError, match=rf"manifest\.parquet: .*{message}"):
            read()


@pytest.mark.parametrize("change", [{"words": 10**6}, {"seconds": 1e6}])
def test_rows_whose_sums_are_not_the_totals(folder: Path, change: dict[str, Any]) -> None:
    def edit(rows: list[ManifestRow]) -> list[ManifestRow]:
        return [replace(rows[0], **change), *rows[1:]]

    for name, data in edited_manifest(folder, edit).items():
        (folder / name).write_bytes(data)
    with pytest.raises(DataError, match=r"of split \w+ as in dataset\.json, found"):
        _ = ShardFolder(folder).rows


SPOTS = ("tool", "settings", "plan", "manifest_hash", "features", "totals", "splits", "shards", "files")


@pytest.mark.parametrize("name", SPOTS)
@pytest.mark.parametrize("value", [None, 5, [], {}, "x"])
def test_a_sealed_dataset_json_of_another_form(folder: Path, name: str, value: Any) -> None:
    document = json.loads((folder / DATASET_FILE).read_bytes())
    del document["checksum"]
    if value is None:
        del document[name]
    else:
        document[name] = value
    (folder / DATASET_FILE).write_bytes(seal(document))
    if isinstance(value, dict) and name in {"tool", "settings", "plan"}:  # their content is checked where it is used
        assert ShardFolder(folder).rows
        return
    with pytest.raises(DataError, match=rf"dataset\.json.*{name}|{name}: .*expected|quet: expected an entry in"):
        _ = ShardFolder(folder).rows


@pytest.mark.parametrize(("part", "name", "value"), [("gesture", "frame_rate_hz", 60), ("mel", "hop_samples", 256)])
def test_shards_of_other_features_are_refused(folder: Path, part: str, name: str, value: int) -> None:
    document = json.loads((folder / DATASET_FILE).read_bytes())
    del document["checksum"]
    document["features"][part][name] = value
    (folder / DATASET_FILE).write_bytes(seal(document))
    with pytest.raises(DataError, match=f"features: expected those of this version of omniges, found other {part}"):
        _ = ShardFolder(folder).rows


def test_a_sealed_dataset_json_with_other_counts(folder: Path) -> None:
    document = json.loads((folder / DATASET_FILE).read_bytes())
    del document["checksum"]
    for part in (document["totals"], document["splits"]["train"], document["shards"]["train-000000.tar"]):
        part["samples"] += 1
        (folder / DATASET_FILE).write_bytes(seal(document))
        with pytest.raises(DataError, match=r"samples as in (the|its) shards, found|rows of train-000000"):
            _ = ShardFolder(folder).rows
        part["samples"] -= 1


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda rows, _: [*rows, rows[0]], "expected each key once"),
        (lambda rows, _: [replace(rows[0], shard="train-000099.tar"), *rows[1:]], "found train-000099.tar"),
        (lambda rows, _: [replace(rows[0], frames=rows[0].frames + 3), *rows[1:]], "consistent lengths"),
        (lambda rows, _: [replace(rows[0], mel_frames=rows[0].mel_frames + 1), *rows[1:]], "consistent lengths"),
        (lambda rows, _: [replace(rows[0], ticks=rows[0].ticks + 1), *rows[1:]], "consistent lengths"),
        (lambda rows, folder: [moved(rows[0], folder), *rows[1:]], "expected .* in the .* bytes of"),
    ],
    ids=["key", "shard", "frames", "mel_frames", "ticks", "place"],
)
def test_rows_that_contradict_themselves_or_dataset_json(folder: Path, edit: Any, message: str, tmp_path: Path) -> None:
    for name, data in edited_manifest(folder, lambda rows: edit(rows, folder)).items():
        (folder / name).write_bytes(data)
    readers: tuple[Callable[[], object], ...] = (
        lambda: ShardFolder(folder).rows,
        lambda: open_shards(folder),
        lambda: export(folder, tmp_path / "out"),
    )
    for read in readers:
        with pytest.raises(DataError, match=rf"manifest\.parquet: .*{message}") as caught:
            read()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [DATASET_FILE, MANIFEST_FILE, STATS_FILE, "train-000000.tar"])
@pytest.mark.parametrize("kind", ["pipe", "device", "link out"])
def test_nothing_but_regular_files_of_the_folder_is_opened(folder: Path, name: str, kind: str) -> None:
    path = folder / name
    if kind == "link out":
        path.rename(folder.parent / name)
        path.symlink_to(f"../{name}")
    else:
        path.unlink()
        os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"expected a regular file|a link to a file elsewhere"):
        shards = ShardFolder(folder)
        read_beside(folder, STATS_FILE, shards.dataset)
        for row in shards.rows:
            shards.member(row, "json")


@pytest.mark.parametrize("member", ["gesture.npy", "mel.npy", "jaw_eyes.npy", "betas.npy", "start_xz.npy", "audio.npy"])
def test_an_array_of_another_shape_or_type_than_its_row_says_is_refused(member: str, shards: Path) -> None:
    """Every checksum may be right: a gesture.npy without rows must not become eight seconds of text."""
    source = ShardFolder(shards)
    row = source.rows[0]
    array = source.array(row, member)
    others = [array[None], array.astype("<f2")] + ([] if member == "audio.npy" else [array[:0], array[:-1]])
    for other in others:
        data = io.BytesIO()
        np.save(data, other)
        with pytest.raises(DataError, match=rf"{member} .*: expected an array .*, found"):
            source.array_of(row, member, data.getvalue())


@pytest.mark.parametrize("encoding", ["pcm16", "float32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_audio_that_no_wav_file_holds_is_one_line(shards: Path, encoding: str, value: float) -> None:
    reader = ShardFolder(shards)
    sample = reader.sample(reader.rows[0])
    facts = sample.metadata["audio"] | {"encoding": encoding, "rate_hz": 16_000, "channels": 1}
    audio = np.full(4, value, np.float32)
    sample = replace(sample, audio=audio, metadata=sample.metadata | {"audio": facts})
    if encoding == "float32" and np.isfinite(value):
        assert audio_file(sample)
        return
    with pytest.raises(DataError, match=rf"^{sample.row.shard}: {sample.row.key}: audio: .*verify-shards"):
        audio_file(sample)
