"""Batches of clips that lack parts contain zeros and blank tokens, whatever the files contain."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from partial_builders import write_partial

from omniges.data.catalog import Catalog, Filters, read_catalog
from omniges.data.loader import Batch, BatchLoader, LoaderSettings
from omniges.data.order import RankShare
from omniges.data.sequence import DataSource, Sequencing
from omniges.errors import UsageFault
from omniges.shards.present import ALL_PRESENT, STREAM_PARTS, absent_parts, unused_bits
from omniges.shards.reader import ShardFolder
from omniges.storage.documents import Document
from omniges.storage.files import canonical_json
from omniges.testing.settings import CorpusSettings
from omniges.testing.synthetic_corpus import write_sample_corpus

BODY = ("upper", "hands", "lower", "root", "face")
LACKING: dict[int, Collection[str]] = {2: ("text",), 3: ("face", "audio"), 4: BODY, 5: ("hands",), 6: ("jaw_eyes",)}
COLUMNS = {"upper": (0, 78), "hands": (78, 258), "lower": (258, 312), "root": (312, 315), "face": (315, 415)}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("partial") / "corpus"
    write_sample_corpus(folder, CorpusSettings(clips=10, seconds=2.5, words=6, speakers=1, seed=5))
    return folder


@pytest.fixture(scope="module")
def whole(clips: Path) -> Path:
    return write_partial(clips, clips.parent / "whole", {})


@pytest.fixture(scope="module")
def mixed(clips: Path) -> Path:
    return write_partial(clips, clips.parent / "mixed", LACKING)


@pytest.fixture(scope="module")
def filled(clips: Path) -> Path:
    """The mixed set, with numbers and words where parts are absent."""
    return write_partial(clips, clips.parent / "filled", LACKING, fill=1)


def batch_of(folder: Path, workers: int = 0, channels: int = 415) -> Batch:
    """One window of each train clip."""
    data = [DataSource(read_catalog(folder, Filters(), gesture_channels=channels))]
    share = RankShare(rank=0, world_size=1, batch_size=len(data[0].catalog.table))
    settings = LoaderSettings(workers=workers)
    with BatchLoader(data, Sequencing(window_ticks=20, seed=1), share, settings) as loader:
        found = loader.next_batch()
    assert found is not None
    return found


@pytest.mark.parametrize("channels", [415, 424])
def test_a_catalog_tells_what_each_clip_has(mixed, channels):
    catalog = read_catalog(mixed, Filters(), gesture_channels=channels)
    unused = {"jaw_eyes"} if channels == 415 else set()
    rows = {row.key: row for row in ShardFolder(mixed).rows}
    for key, bits in zip(catalog.table.keys_of(np.arange(len(catalog.table))), catalog.table.present, strict=True):
        assert set(absent_parts(int(bits))) == set(STREAM_PARTS) - unused - set(rows[key].present)


@pytest.mark.parametrize(("workers", "channels"), [(0, 415), (1, 415), (0, 424), (1, 424)])
def test_absent_channels_are_exactly_zero_and_absent_text_is_blank(mixed, workers, channels):
    batch = batch_of(mixed, workers, channels)
    assert batch.gesture.shape[2] == channels
    assert [absent_parts(bits) == ("jaw_eyes",) for bits in batch.present.tolist()].count(True) == (channels == 424)
    assert len(set(batch.present.tolist())) > 3
    for row, bits in enumerate(batch.present.tolist()):
        lacking = absent_parts(bits)
        for part, (first, end) in (COLUMNS | ({"jaw_eyes": (415, 424)} if channels == 424 else {})).items():
            assert bool(batch.gesture[row, :, first:end].any()) == (part not in lacking)
        assert bool(batch.audio[row].any()) == ("audio" not in lacking)
        assert bool(batch.text[row].any()) == ("text" not in lacking)
    assert batch.gesture.isfinite().all()
    assert batch.audio.isfinite().all()


@pytest.mark.parametrize("channels", [415, 424])
def test_what_lies_on_the_disk_in_absent_parts_reaches_no_batch(mixed, filled, channels):
    one, other = batch_of(mixed, 0, channels), batch_of(filled, 0, channels)
    assert one.keys == other.keys
    for name in ("gesture", "audio", "text", "present"):
        assert np.asarray(getattr(one, name)).tobytes() == np.asarray(getattr(other, name)).tobytes()


def test_nan_in_a_channel_that_is_present_stays_visible(clips):
    """Masks come from `present` alone."""
    folder = write_partial(clips, clips.parent / "nan", {3: ("face",)})
    catalog = read_catalog(folder, Filters())
    catalog.table.present[:] = ALL_PRESENT
    share = RankShare(rank=0, world_size=1, batch_size=len(catalog.table))
    with BatchLoader(
        [DataSource(catalog)], Sequencing(window_ticks=20, seed=1), share, LoaderSettings(workers=0)
    ) as one:
        batch = one.next_batch()
    assert batch is not None
    assert batch.gesture[:, :, 315:].isnan().any()


def test_hash_and_state_of_a_whole_set_do_not_know_of_parts(whole):
    """They are what they were before there were parts."""
    catalog = read_catalog(whole, Filters())
    table, names = catalog.table, list(catalog.speaker_names)
    digest = hashlib.sha256(canonical_json([str(table.keys.dtype), names, list(table.digests.shape)]))
    for array in (table.keys, catalog.speaker, table.frames, table.mel_frames, table.digests):
        digest.update(np.ascontiguousarray(array).tobytes())
    assert catalog.content_hash == digest.hexdigest()
    assert "streams" not in catalog.filters.as_json()


def test_the_hash_of_other_sets_counts_what_is_absent(mixed):
    catalog = read_catalog(mixed, Filters())
    first = hash_of(catalog)
    catalog.table.present[:] = ALL_PRESENT
    assert hash_of(catalog) != first


def test_jaw_and_eyes_count_only_where_they_are_read(clips, whole):
    """The hash of a stream of 415 channels is what it was before there were 424."""
    folder = write_partial(clips, clips.parent / "jawless", {7: ("jaw_eyes",)})
    plain, without = (read_catalog(one, Filters()).content_hash for one in (whole, folder))
    assert plain == without
    read = [read_catalog(one, Filters(), gesture_channels=424).content_hash for one in (whole, folder)]
    assert len({plain, *read}) == 3


def hash_of(catalog: Catalog) -> str:
    from omniges.data.catalog import _content_hash

    return _content_hash(
        catalog.table, catalog.speaker_names, catalog.speaker, {}, unused_bits(catalog.gesture_channels)
    )


def test_a_filter_takes_clips_that_have_the_streams(mixed):
    rows = [row for row in ShardFolder(mixed).rows if row.split == "train"]
    expected = sorted(
        row.key
        for row in rows
        if {"audio", "text"} <= set(row.present) or ("text" in row.present and set(BODY) & set(row.present))
    )
    filters = Filters(streams=("audio+text", "gesture+text"))
    table = read_catalog(mixed, filters).table
    assert table.keys_of(np.arange(len(table))) == expected
    assert Document(json.loads(json.dumps(filters.as_json())), "filters of clips", "").read(Filters) == filters
    with pytest.raises(
        UsageFault, match=r"streams: expected names of text, audio, gesture, joined by \+, found 'face'"
    ):
        Filters(streams=("face+text",))


def test_a_filter_that_leaves_nothing_is_refused_with_a_count(clips):
    folder = write_partial(clips, clips.parent / "mute", dict.fromkeys(range(10), ("text",)))
    with pytest.raises(UsageFault, match=r"samples that have gesture\+text.*, found none among \d+ of split 'train'"):
        read_catalog(folder, Filters(streams=("gesture+text",)))


def test_statistics_are_of_the_samples_that_have_a_channel(clips, mixed, filled):
    """Held against numpy; the filled set's were computed before it was filled, so they are the same bytes."""
    folder = ShardFolder(mixed)
    statistics: dict[str, Any] = json.loads((mixed / "stats.json").read_text())
    for part, (first, end) in COLUMNS.items():
        rows = [row for row in folder.rows if row.split == "train" and part in row.present]
        frames = np.concatenate([folder.array(row, "gesture.npy")[:, first:end] for row in rows]).astype(np.float64)
        assert statistics["gesture"]["counts"][first] == len(frames)
        np.testing.assert_allclose(statistics["gesture"]["mean"][first:end], frames.mean(axis=0), atol=1e-9)
        np.testing.assert_allclose(statistics["gesture"]["std"][first:end], frames.std(axis=0), atol=1e-9)
    assert (filled / "stats.json").read_bytes() == (mixed / "stats.json").read_bytes()
