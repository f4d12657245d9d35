"""Shards close by size and content alone; an exception or a full disk leaves nothing half-written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniges.errors import EnvironmentFault
from omniges.shards.tar import END_OF_ARCHIVE
from omniges.shards.writer import ShardWriter, closes_shard


def boundaries(samples: list[tuple[str, int]], target: int) -> list[list[str]]:
    """How samples of given sizes fall into shards."""
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

    @settings(max_examples=30)
    @given(st.integers(0, 1999), st.integers(0, 10**6))
    def test_an_inserted_sample_changes_few_shards(self, place: int, name: int) -> None:
        samples = [(f"k{n:04d}", 10) for n in range(2000)]
        more = samples[:place] + [(f"new{name}", 10)] + samples[place:]
        before = {tuple(shard) for shard in boundaries(samples, 1000)}
        after = {tuple(shard) for shard in boundaries(more, 1000)}
        assert len(after - before) <= 12  # of about 28


class TestWriting:
    def test_shards_hold_what_was_added_and_their_digests_are_true(self, tmp_path: Path) -> None:
        with ShardWriter(tmp_path, 3000) as writer:
            places = [writer.add("train", f"k{n}", bytes([n]) * 1024) for n in range(7)]
            places.append(writer.add("val", "v", b"v" * 512))
        assert sorted(os.listdir(tmp_path)) == sorted(shard.name for shard in writer.shards)
        assert sum(shard.samples for shard in writer.shards) == 8
        for shard in writer.shards:
            data = (tmp_path / shard.name).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.size, shard.sha256)
            assert data.endswith(END_OF_ARCHIVE)
        for n, (name, offset) in enumerate(places[:7]):
            assert (tmp_path / name).read_bytes()[offset : offset + 1024] == bytes([n]) * 1024
        assert places[7] == ("val-000000.tar", 0)

    def test_an_exception_throws_the_open_shard_away_and_keeps_the_closed(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError, match="stop"), ShardWriter(tmp_path, 1000) as writer:
            writer.add("train", "a", bytes(1024))
            writer.add("train", "b", bytes(512))
            raise RuntimeError("stop")
        assert os.listdir(tmp_path) == ["train-000000.tar"]

    @pytest.mark.parametrize("call", ["write", "fsync", "fdatasync"])
    def test_a_full_disk_is_one_clear_line_and_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with pytest.raises(EnvironmentFault, match="disk is full"), ShardWriter(tmp_path, 1 << 30) as writer:
            writer.add("train", "a", bytes(40 << 20))
            monkeypatch.setattr(os, call, full)
            writer.add("train", "b", bytes(40 << 20))
        monkeypatch.undo()
        assert os.listdir(tmp_path) == []
