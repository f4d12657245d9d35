"""Shards give the content that the manifest states, or an error with the place; the number of open files is bounded."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batch_builders import PlainReader, write_shards

from omniges.data import window_reader
from omniges.data.catalog import Catalog, Filters, read_catalog
from omniges.data.tracks import PLAIN_TRACKS, Normaliser
from omniges.data.window_reader import ClipReader, ReadMarks, Verify
from omniges.errors import DataError, EnvironmentFault
from omniges.shards.reader import LocalShards
from omniges.shards.tar import npy_parts
from omniges.storage.cache import CacheFull
from omniges.storage.files import canonical_json

LENGTHS = (20, 11, 33)
PLAIN_SCALES = Normaliser.identity(PLAIN_TRACKS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards", LENGTHS, per_shard=2)


def reader_of(folder: Path, verify: Verify = "first", catalog: Catalog | None = None) -> ClipReader:
    table = (catalog or read_catalog(folder, Filters())).table
    return ClipReader(table, LocalShards(folder), ReadMarks.blank(len(table)), verify)


def read(reader: ClipReader, sample: int, start: int = 2, ticks: int = 5) -> tuple[Any, Any]:
    out = np.empty(ticks * 3 * 415, np.float32), np.empty(ticks * 10 * 64, np.float32)
    reader.read_window(sample, start, ticks, PLAIN_SCALES, out)
    return out[0].reshape(-1, 415), out[1].reshape(-1, 64)


class TestContent:
    @pytest.mark.parametrize("verify", ["first", "never"])
    def test_windows_and_words_are_those_of_tarfile_and_numpy(self, folder: Path, verify: Verify) -> None:
        reader, plain = reader_of(folder, verify), PlainReader(folder)
        for sample in range(len(LENGTHS)):
            key = reader.table.key(sample)
            last = int(reader.table.ticks[sample]) - 5
            for start in (0, 1, last):
                gesture, mel = read(reader, sample, start)
                np.testing.assert_array_equal(gesture, plain.array(key, "gesture")[3 * start : 3 * (start + 5)])
                np.testing.assert_array_equal(mel, plain.array(key, "mel")[10 * start : 10 * (start + 5)])
            assert reader.words(sample) == plain.words(key)

    @pytest.mark.parametrize("scaled", [False, True])
    def test_jaw_and_eyes_follow_the_other_channels(self, folder: Path, scaled: bool) -> None:
        catalog, plain = read_catalog(folder, Filters(), gesture_channels=424), PlainReader(folder)
        assert catalog.table.digests.shape[1] == 4
        marks = ReadMarks.blank(len(catalog.table), catalog.tracks)
        reader = ClipReader(catalog.table, LocalShards(folder), marks, tracks=catalog.tracks)
        scales = catalog.normaliser() if scaled else Normaliser.identity(catalog.tracks)
        assert scales.gesture.mean.shape == (424,)
        for sample in range(len(LENGTHS)):
            for start in (0, int(catalog.table.ticks[sample]) - 5):
                reader.advise(sample, start, 5)
                out = np.empty(5 * 3 * 424, np.float32), np.empty(5 * 10 * 64, np.float32)
                reader.read_window(sample, start, 5, scales, out)
                key, frames = catalog.table.key(sample), slice(3 * start, 3 * (start + 5))
                parts = [plain.array(key, name)[frames] for name in ("gesture", "jaw_eyes")]
                expected = (np.concatenate(parts, axis=1) - scales.gesture.mean) / scales.gesture.divisor
                np.testing.assert_array_equal(out[0].reshape(-1, 424), expected)
        assert (marks.verified[:, [0, 1, 3]] == 1).all()

    def test_damage_of_jaw_and_eyes_is_found_where_they_are_read(self, folder: Path) -> None:
        catalog = read_catalog(folder, Filters(), gesture_channels=424)
        shard = folder / catalog.table.shard_name(int(catalog.table.shard[0]))
        data = bytearray(shard.read_bytes())
        data[int(catalog.table.offsets[0, 3]) + int(catalog.table.sizes[0, 3]) - 1] ^= 1
        shard.write_bytes(data)
        read(reader_of(folder), 0)  # a stream of 415 channels does not need them
        marks = ReadMarks.blank(len(catalog.table), catalog.tracks)
        reader = ClipReader(catalog.table, LocalShards(folder), marks, tracks=catalog.tracks)
        out = np.empty(5 * 3 * 424, np.float32), np.empty(5 * 10 * 64, np.float32)
        with pytest.raises(DataError, match=rf"{catalog.table.key(0)}\.jaw_eyes\.npy at byte \d+: "):
            reader.read_window(0, 0, 5, Normaliser.identity(catalog.tracks), out)

    def test_advice_changes_nothing(self, folder: Path) -> None:
        reader = reader_of(folder)
        reader.advise(0, 2, 5)
        first = read(reader, 0)
        reader.advise(0, 2, 5)
        np.testing.assert_array_equal(read(reader, 0)[0], first[0])


class TestDamage:
    @pytest.mark.parametrize("member", range(len(PLAIN_TRACKS.members)))
    def test_any_flipped_byte_of_a_member_is_found_on_first_use(self, folder: Path, member: int) -> None:
        catalog = read_catalog(folder, Filters())
        table = catalog.table
        shard = folder / table.shard_name(int(table.shard[1]))
        sound = shard.read_bytes()
        first, size = int(table.offsets[1, member]), int(table.sizes[1, member])
        for place in sorted({0, 1, size // 2, size - 1, *np.random.default_rng(1).integers(0, size, 5).tolist()}):
            data = bytearray(sound)
            data[first + place] ^= 0x10
            shard.write_bytes(data)
            reader = reader_of(folder, catalog=catalog)
            with pytest.raises(DataError) as caught:
                reader.words(1) if member == 2 else read(reader, 1)
            named = f"{shard}: {table.key(1)}.{PLAIN_TRACKS.members[member]} at byte {first}: "
            assert str(caught.value).startswith(named)
            assert str(caught.value).endswith("run omniges verify-shards, then make the shards again")
        shard.write_bytes(sound)
        read(reader_of(folder, catalog=catalog), 1)

    def test_a_digest_is_compared_once_and_by_whoever_shares_the_marks(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        table = read_catalog(folder, Filters()).table
        marks = ReadMarks.blank(len(table))
        readers = [ClipReader(table, LocalShards(folder), marks) for _ in range(2)]
        hashed: list[int] = []
        real = hashlib.sha256
        monkeypatch.setattr(hashlib, "sha256", lambda data: hashed.append(len(data)) or real(data))
        for _ in range(3):
            for reader in readers:
                for sample in range(len(table)):
                    read(reader, sample)
                    reader.words(sample)
        assert sorted(hashed) == sorted(table.sizes.reshape(-1).tolist())

    def test_never_means_never_but_the_header_is_read(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        catalog = read_catalog(folder, Filters())
        monkeypatch.setattr(hashlib, "sha256", None)
        read(reader_of(folder, "never", catalog), 0)
        shard = folder / catalog.table.shard_name(int(catalog.table.shard[0]))
        data = bytearray(shard.read_bytes())
        data[int(catalog.table.offsets[0, 0])] ^= 1
        shard.write_bytes(data)
        with pytest.raises(DataError, match=r"gesture\.npy at byte \d+: expected an npy header"):
            read(reader_of(folder, "never", catalog), 0)

    @pytest.mark.parametrize("left", [0, 1, 511, 512, 5000, -513, -1])
    def test_a_shard_of_another_size_is_never_mapped(self, folder: Path, left: int) -> None:
        reader = reader_of(folder)
        shard = folder / reader.table.shard_name(int(reader.table.shard[0]))
        size = shard.stat().st_size
        os.truncate(shard, left if left >= 0 else size + left)
        with pytest.raises(DataError, match=rf"expected {size} bytes, found \d+;"):
            read(reader, 0)
        os.truncate(shard, size + 512)
        with pytest.raises(DataError, match=f"found {size + 512}"):
            read(reader, 0)
        assert len(reader.maps) == 0

    def test_a_missing_shard(self, folder: Path) -> None:
        reader = reader_of(folder)
        (folder / "train-000000.tar").unlink()
        with pytest.raises(
            DataError,
            match=r"train-000000\.tar: expected this shard, found that the file does not exist.*verify-shards",
        ):
            for sample in range(len(LENGTHS)):
                read(reader, sample)

    def test_one_that_may_not_be_read(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        reader = reader_of(folder)

        def refuse(*_: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(EnvironmentFault, match="permission denied"):
            read(reader, 0)

    def test_one_that_cannot_be_mapped(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(12, "Cannot allocate memory")

        monkeypatch.setattr("omniges.data.window_reader.mmap.mmap", refuse)
        with pytest.raises(EnvironmentFault, match=r"train-000000\.tar"):
            read(reader_of(folder), 0)


def header(array: np.ndarray[Any, Any]) -> tuple[bytes | memoryview, ...]:
    return npy_parts(array)


def saved(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


FRAMES = LENGTHS[0] * 3
WRONG_GESTURES: dict[str, tuple[Callable[[], tuple[bytes | memoryview, ...]], str]] = {
    "other dtype": (lambda: header(np.zeros((FRAMES, 415))), "found .* <f8"),
    "integers": (lambda: header(np.zeros((FRAMES, 415), np.int32)), "found .* <i4"),
    "other channels": (lambda: header(np.zeros((FRAMES, 414), np.float32)), rf"found \({FRAMES}, 414\)"),
    "other frames": (lambda: header(np.zeros((FRAMES + 3, 415), np.float32)), rf"found \({FRAMES + 3}, 415\)"),
    "flat": (lambda: header(np.zeros(FRAMES * 415, np.float32)), "found"),
    "shorter than it says": (
        lambda: (header(np.zeros((FRAMES, 415), np.float32))[0], b"x" * 99),
        "expected a header and .* float32, found",
    ),
    "longer than it says": (
        lambda: (*header(np.zeros((FRAMES, 415), np.float32)), b"xxxx"),
        "expected a header and .* float32, found",
    ),
    "Fortran order": (lambda: (saved(np.asfortranarray(np.ones((FRAMES, 415), np.float32))),), "Fortran order"),
    "version 2": (lambda: (b"\x93NUMPY\x02\x00\x04\x00\x00\x00{}  ",), "npy version 1.0"),
    "an expression": (
        lambda: (bytes(header(np.zeros((1, 1), np.float32))[0]).replace(b"(1, 1)", b"(10**9,"),),
        "expected a plain header of npy version 1.0",
    ),
    "a header longer than the member": (lambda: (b"\x93NUMPY\x01\x00\xff\xff{",), "expected an npy header"),
    "no array": (lambda: (b"hello",), "expected an npy header"),
    "empty": (lambda: (b"",), "expected an npy header"),
    "a claim of 10^12 floats": (
        lambda: (
            bytes(header(np.zeros((1, 1), np.float32))[0]).replace(b"(1, 1), }" + b" " * 10, b"(1000000000000,), }"),
        ),
        r"found \(1000000000000,\)",
    ),
}


@pytest.mark.parametrize("verify", ["first", "never"])
@pytest.mark.parametrize("name", WRONG_GESTURES)
def test_an_array_that_is_not_what_the_manifest_says(tmp_path: Path, name: str, verify: Verify) -> None:
    """Every checksum fits: only the header tells."""
    make, words = WRONG_GESTURES[name]

    def fault(key: str, members: dict[str, Any]) -> None:
        if key.endswith("_0_0"):
            members["gesture.npy"] = make()

    folder = write_shards(tmp_path / "s", LENGTHS, per_shard=3, fault=fault)
    reader = reader_of(folder, verify)
    with pytest.raises(DataError, match=words) as caught:
        read(reader, 0)
    assert "gesture.npy at byte" in str(caught.value)
    assert "\n" not in str(caught.value)
    read(reader, 1)


@pytest.mark.parametrize(
    "words",
    [
        b"{",
        b"\xff",
        canonical_json({"word": "a"}),
        canonical_json([1]),
        canonical_json([{"word": "a", "start": 0}]),
        canonical_json([{"word": 1, "start": 0, "end": 1}]),
        canonical_json([{"word": "a", "start": True, "end": 1}]),
    ],
)
def test_words_that_are_no_words(tmp_path: Path, words: bytes) -> None:
    folder = write_shards(
        tmp_path / "s", LENGTHS, per_shard=3, fault=lambda _, members: members.update({"words.txt": (words,)})
    )
    with pytest.raises(DataError, match=r"words at byte"):
        reader_of(folder).words(0)


class TestBounds:
    def test_so_many_shards_are_mapped_and_no_more(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(window_reader, "MAX_MAPS", 4)
        folder = write_shards(tmp_path / "s", [6] * 15, per_shard=1, alike=True)
        reader = reader_of(folder)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            for sample in range(15):
                read(reader, sample, 0)
                assert len(reader.maps) <= 4
                assert len(os.listdir("/proc/self/fd")) <= before + 4
        del reader
        assert len(os.listdir("/proc/self/fd")) == before

    def test_maps_are_let_go_where_a_source_has_no_room(self, folder: Path) -> None:
        """A cache that is full of shards that are mapped: the second try finds them unmapped."""
        table = read_catalog(folder, Filters()).table
        local = LocalShards(folder)

        class Full(LocalShards):
            def open(self, shard: str) -> int:
                if len(reader.maps):
                    raise CacheFull("the cache is full")
                return local.open(shard)

        reader = ClipReader(table, Full(folder), ReadMarks.blank(len(table)))
        for sample in (0, 1, 2, 0):
            read(reader, sample)
