"""Held-out windows hold what the loader gives, know where they come from, and are never of another split."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pipeline_helpers import run_preprocess

from omniges.data.catalog import Filters, read_catalog
from omniges.data.loader import BatchLoader, LoaderSettings
from omniges.data.order import RankShare
from omniges.data.sequence import DataSource, Sequencing, tracks_of
from omniges.data.tracks import Normaliser
from omniges.errors import DataError, UsageFault
from omniges.features.gesture import motion_from_gesture
from omniges.features.text_tokens import TextTokenCodec
from omniges.pipeline.settings import Selection
from omniges.shards.reader import ShardFolder
from omniges.trainer.validation.held_out import SomeRecordings, open_held_out

TICKS = 16


@pytest.fixture(scope="module")
def data(shards: Path) -> list[DataSource]:
    return [DataSource(read_catalog(shards, Filters(split="train")))]


def test_all_windows_are_those_of_the_loaders_unshuffled_pass(shards: Path, data: list[DataSource]) -> None:
    held_out = open_held_out(data, TICKS, 1000)
    folder, tokens = held_out.read(TextTokenCodec(data[0].catalog.tokenizer))
    val = [DataSource(read_catalog(shards, Filters(split="val")))]
    pass_ = BatchLoader(
        val,
        Sequencing(window_ticks=TICKS, shuffle=False),
        RankShare(batch_size=64),
        LoaderSettings(workers=0),
        normaliser=Normaliser.identity(tracks_of(val)),
    )
    with pass_:
        (batch,) = list(pass_)
    assert len(batch) == len(held_out.windows) == held_out.available > 1
    for number, (window, row) in enumerate(zip(held_out.windows, folder.rows, strict=True)):
        sample = folder.sample(row)
        assert (window.row.key, window.start_tick) == (batch.keys[number], int(batch.start_ticks[number]))
        np.testing.assert_array_equal(sample.gesture.gesture, batch.gesture[number].numpy())
        np.testing.assert_array_equal(sample.mel, batch.audio[number].numpy())
        np.testing.assert_array_equal(tokens[number], batch.text[number].numpy())


def test_a_window_says_where_it_comes_from_and_its_root_and_sound_are_those_of_the_moment(
    shards: Path, data: list[DataSource]
) -> None:
    held_out = open_held_out(data, TICKS, 1000)
    folder, _ = held_out.read(TextTokenCodec(data[0].catalog.tokenizer))
    source = ShardFolder(shards)
    for window, row in zip(held_out.windows, folder.rows, strict=True):
        facts = json.loads(json.dumps(window.provenance()))
        whole, part = source.sample(source.row(facts["key"])), folder.sample(row)
        assert facts["split"] == "val"
        assert facts["recording"] == whole.metadata["stem"] == window.row.stem
        assert facts["speaker"] == whole.metadata["speaker"]
        assert {kind: entry["path"] for kind, entry in facts["sources"].items()} == {
            kind: path for kind, (path, _) in whole.row.sources.items()
        }
        assert (facts["start_tick"], facts["ticks"]) == (window.start_tick, TICKS)
        assert facts["manifest_sha256"] == source.dataset["files"]["manifest.parquet"]["sha256"]
        frames = slice(3 * window.start_tick, 3 * (window.start_tick + TICKS))
        here, there = motion_from_gesture(part.gesture), motion_from_gesture(whole.gesture)
        np.testing.assert_allclose(here.trans, there.trans[frames], atol=1e-6)
        np.testing.assert_array_equal(here.poses, there.poses[frames])
        assert whole.audio is not None
        samples = slice(1600 * window.start_tick, 1600 * (window.start_tick + TICKS))
        np.testing.assert_array_equal(part.audio, whole.audio[samples])
        np.testing.assert_array_equal(folder.waveform(row), part.audio)  # which is how scores ask for it
        start_s = window.start_tick / 10
        heard = [
            w["word"] for w in whole.words if min(w["end"], start_s + 1.6) - max(w["start"], start_s) > 0.05 - 1e-6
        ]
        assert [w["word"] for w in part.words] == heard
        assert all(0 <= w["start"] < w["end"] <= 1.6 for w in part.words)


def test_measures_come_from_the_train_split_alone(shards: Path, data: list[DataSource]) -> None:
    held_out = open_held_out(data, TICKS, 4)
    some = SomeRecordings(held_out.folders, TICKS, 3)
    assert len(some.rows) == 3
    assert {row.split for row in some.rows} == {"train"}
    source = ShardFolder(shards)
    for row in some.rows:
        own = source.row(row.stem)
        np.testing.assert_array_equal(some.gesture(row).gesture, source.gesture(own).gesture)
        np.testing.assert_array_equal(some.array(row, "betas.npy"), source.array(own, "betas.npy"))
    assert not SomeRecordings(held_out.folders, 41, 3).rows  # all have 40 ticks


def test_a_mixture_tells_folders_apart(shards: Path, data: list[DataSource]) -> None:
    held_out = open_held_out([*data, *data], TICKS, 1000)
    names = [window.name for window in held_out.windows]
    assert len(set(names)) == len(names) == 2 * open_held_out(data, TICKS, 1000).available
    assert {window.source for window in held_out.windows} == {0, 1}


@pytest.mark.slow
def test_an_empty_val_split_says_how_to_make_one(corpus: Path, tmp_path: Path) -> None:
    run_preprocess(corpus, tmp_path / "shards", selection=Selection(splits=("train", "test")))
    data = [DataSource(read_catalog(tmp_path / "shards", Filters()))]
    with pytest.raises(
        UsageFault, match=r"expected recordings in the val split.*--split-csv FILE.*--validation-steps 0"
    ):
        open_held_out(data, TICKS, 4)


def test_windows_longer_than_every_recording_say_which_are_possible(data: list[DataSource]) -> None:
    with pytest.raises(UsageFault, match=r"at least 100 ticks \(one window\), found none .* --window-ticks 40 or less"):
        open_held_out(data, 100, 4)


def test_a_flipped_bit_is_found(shards: Path, tmp_path: Path) -> None:
    import shutil

    own = tmp_path / "shards"
    shutil.copytree(shards, own)
    data = [DataSource(read_catalog(own, Filters()))]
    held_out = open_held_out(data, TICKS, 1)
    row = held_out.windows[0].row
    path = own / row.shard
    content = bytearray(path.read_bytes())
    content[row.members["mel.npy"].offset + 300] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"mel.npy at byte \d+: expected sha256 \w+, found \w+"):
        held_out.read(TextTokenCodec(data[0].catalog.tokenizer))
