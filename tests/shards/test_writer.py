"""Shards close by size and content alone; an exception or a full disk leaves nothing half-written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniges.errors import DataError, EnvironmentFault
from omniges.shards.manifest import ManifestRow, MemberPlace
from omniges.shards.tar import END_OF_ARCHIVE
from omniges.shards.writer import ShardFile, ShardWriter, StoredSegment, StoredShard, closes_shard


def boundaries(samples: list[tuple[str, int]], target: int) -> list[list[str]]:
    """Return the shards into which samples of given sizes fall."""
    shards: list[list[str]] = [[]]
    size = 0
    for key, length in samples:
        shards[-1].append(key)
        size += length
        if closes_shard(key, size, target):
            shards.append([])
            size = 0
    return [shard for shard in shards if shard]


class TestBoundaries:
    @given(st.lists(st.integers(1, 400), min_size=1, max_size=300))
    def test_no_shard_but_the_last_is_under_half_and_none_far_over(self, sizes: list[int]) -> None:
        samples = [(f"k{n}", size) for n, size in enumerate(sizes)]
        shards = boundaries(samples, 1000)
        lengths = [sum(dict(samples)[key] for key in shard) for shard in shards]
        assert all(500 <= length < 1400 for length in lengths[:-1])

    def test_an_inserted_sample_changes_few_shards(self) -> None:
        samples = [(f"k{n:04d}", 10) for n in range(2000)]
        before = {tuple(shard) for shard in boundaries(samples, 1000)}
        changed = []
        for place in range(0, 2000, 20):  # chance decides how soon boundaries meet again, so the mean is held
            more = [*samples[:place], (f"new{place}", 10), *samples[place:]]
            changed.append(len({tuple(shard) for shard in boundaries(more, 1000)} - before))
        assert sum(changed) / len(changed) <= 0.2 * len(before)
        assert max(changed) <= 0.75 * len(before)


def row(key: str, split: str = "train") -> ManifestRow:
    """A row with one member at the start of its segment."""
    return ManifestRow(
        key, key, split, "", 3, 10, 1, 1, 0.1, None, None, None, None, None, {}, (), {"json": MemberPlace(512, 1, "")}
    )


def writer_in(folder: Path, target_bytes: int) -> ShardWriter:
    return ShardWriter(lambda n: folder / f"{n}.tar", target_bytes)


class TestWriting:
    def test_shards_hold_what_was_added_and_their_digests_are_true(self, tmp_path: Path) -> None:
        with writer_in(tmp_path, 3000) as writer:
            placed = [writer.add(row(f"k{n}"), bytes([n]) * 1024) for n in range(7)]
            placed.append(writer.add(row("v", "val"), b"v" * 512))
        assert sorted(os.listdir(tmp_path)) == sorted(path.name for path in writer.paths.values())
        assert sum(shard.samples for shard in writer.shards) == 8
        for shard in writer.shards:
            data = writer.paths[shard.name].read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.size, shard.sha256)
            assert data.endswith(END_OF_ARCHIVE)
        for n, where in enumerate(placed[:7]):
            start = where.members["json"].offset - 512
            assert writer.paths[where.shard].read_bytes()[start : start + 1024] == bytes([n]) * 1024
        assert (placed[7].shard, placed[7].members["json"].offset) == ("val-000000.tar", 512)

    def test_each_shard_is_announced_with_its_rows_once_it_is_on_the_disk(self, tmp_path: Path) -> None:
        heard = []

        def hear(shard: ShardFile, path: Path, rows: tuple[ManifestRow, ...]) -> None:
            heard.append((shard.name, path.stat().st_size == shard.size, [row.key for row in rows]))

        with ShardWriter(lambda n: tmp_path / f"{n}.tar", 2000, hear) as writer:
            for n in range(3):
                writer.add(row(f"k{n}"), bytes(1024))
        assert heard == [("train-000000.tar", True, ["k0", "k1"]), ("train-000001.tar", True, ["k2"])]

    def test_an_exception_throws_the_open_shard_away_and_keeps_the_closed(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError, match="stop"), writer_in(tmp_path, 1000) as writer:
            writer.add(row("a"), bytes(1024))
            writer.add(row("b"), bytes(512))
            raise RuntimeError("stop")
        assert os.listdir(tmp_path) == ["0.tar"]

    @pytest.mark.parametrize("call", ["write", "fsync", "fdatasync"])
    def test_a_full_disk_is_one_clear_line_and_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with pytest.raises(EnvironmentFault, match="disk is full"), writer_in(tmp_path, 1 << 30) as writer:
            writer.add(row("a"), bytes(40 << 20))
            monkeypatch.setattr(os, call, full)
            writer.add(row("b"), bytes(40 << 20))
        monkeypatch.undo()
        assert os.listdir(tmp_path) == []


class TestStoredSamples:
    """Whatever lies in earlier files and in whatever order, the shards are those of writing every sample again."""

    @pytest.mark.slow
    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_the_shards_are_the_same_wherever_the_samples_come_from(
        self, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        folder = tmp_path_factory.mktemp("stored")
        sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=24))
        content = {f"k{n:02d}": bytes([n + 1]) * (512 * size) for n, size in enumerate(sizes)}
        earlier = self.write(folder / "earlier", {k: v for k, v in content.items() if data.draw(st.booleans())})
        (folder / "new").mkdir()
        with writer_in(folder / "new", 4096) as writer:
            for key, segment in content.items():
                if key in earlier and data.draw(st.booleans()):
                    writer.add_stored(row(key), earlier[key])
                else:
                    writer.add(row(key), segment)
        (folder / "fresh").mkdir()
        with writer_in(folder / "fresh", 4096) as expected:
            for key, segment in content.items():
                expected.add(row(key), segment)
        assert writer.shards == expected.shards
        for name, path in writer.paths.items():
            assert path.read_bytes() == expected.paths[name].read_bytes()

    @staticmethod
    def write(folder: Path, content: dict[str, bytes]) -> dict[str, StoredSegment]:
        """Shards of an earlier run, and where each sample lies in them."""
        folder.mkdir()
        with writer_in(folder, 4096) as writer:
            placed = [writer.add(row(key), segment) for key, segment in content.items()]
        shards = {s.name: StoredShard(writer.paths[s.name], s.size, s.sha256) for s in writer.shards}
        return {
            p.key: StoredSegment(shards[p.shard], p.members["json"].offset - 512, len(content[p.key])) for p in placed
        }

    def test_an_earlier_file_that_a_shard_would_equal_is_taken_as_it_is(self, tmp_path: Path) -> None:
        content = {f"k{n}": bytes([n]) * 2048 for n in range(4)}
        earlier = self.write(tmp_path / "earlier", content)
        (tmp_path / "new").mkdir()
        with writer_in(tmp_path / "new", 4096) as writer:
            for key, segment in earlier.items():
                writer.add_stored(row(key), segment)
        assert os.listdir(tmp_path / "new") == []
        assert {path.parent.name for path in writer.paths.values()} == {"earlier"}

    def test_an_earlier_file_that_shrank_meanwhile_is_named(self, tmp_path: Path) -> None:
        earlier = self.write(tmp_path / "earlier", {"k0": bytes(2048), "k1": bytes(2048)})
        os.truncate(earlier["k0"].shard.path, 100)
        (tmp_path / "new").mkdir()
        with pytest.raises(DataError, match=r"0\.tar: expected \d+ bytes"), writer_in(tmp_path / "new", 4096) as writer:
            writer.add(row("a"), bytes(512))
            writer.add_stored(row("k0"), earlier["k0"])
        assert os.listdir(tmp_path / "new") == []
