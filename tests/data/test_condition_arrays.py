"""Values of condition streams in batches are those of the recordings, whoever reads them, and cost others nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from partial_builders import write_partial

from omniges.conditions.base import ConditionStream, Recording, TrainingFacts, window_value
from omniges.conditions.emotion import Emotion
from omniges.data.blocks import batch_layout
from omniges.data.catalog import Filters, read_catalog
from omniges.data.collate import require_readable, training_facts
from omniges.data.loader import Batch, BatchLoader, LoaderSettings
from omniges.data.order import RankShare
from omniges.data.sequence import DataSource, Sequencing
from omniges.errors import UsageFault
from omniges.generation.inputs import recording_of_sample
from omniges.shards.reader import ShardFolder

TICKS = 16


class Means(ConditionStream):
    """Mean mel, mean gesture and words of a window."""

    name = "means"
    labels = ("speaker",)
    reads = ("mel", "gesture", "words")
    shape = (3,)

    @classmethod
    def learn(cls, facts: TrainingFacts) -> Self:
        return cls()

    def settings(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        return cls()

    def value(self, recording: Recording, first_tick: int, ticks: int) -> Any:
        if recording.labels["speaker"] == "syntheticb":
            return None
        mel, gesture = recording.mel(first_tick, ticks), recording.gesture(first_tick, ticks)
        assert mel.shape == (10 * ticks, 64)
        assert gesture.shape == (3 * ticks, 415)
        return [mel.mean(), gesture.mean(), len(recording.words(first_tick, ticks))]

    def parse(self, value: Any) -> Any:
        return value

    def shown(self, array: Any) -> Any:
        return array.tolist()

    def encoder(self, width: int) -> Any:
        raise NotImplementedError


def batches(shards: Path, workers: int, conditions: Mapping[str, ConditionStream]) -> list[Batch]:
    catalog = read_catalog(shards, Filters(), None, ("emotion", "speaker"))
    settings = LoaderSettings(workers=workers)
    with BatchLoader(
        [DataSource(catalog)], Sequencing(window_ticks=TICKS), RankShare(batch_size=3), settings, conditions=conditions
    ) as loader:
        found = [loader.next_batch() for _ in range(4)]
    return [batch for batch in found if batch is not None]


def test_values_are_those_of_the_recordings(shards: Path) -> None:
    folder = ShardFolder(shards)
    streams = {"means": Means(), "emotion": Emotion(("anger", "neutral"))}
    known = 0
    for batch in batches(shards, 0, streams):
        values, there = batch.conditions["means"]
        assert values.shape == (3, 3)
        assert there.dtype == torch.bool
        for row, (key, start) in enumerate(zip(batch.keys, batch.start_ticks.tolist(), strict=True)):
            sample = folder.sample(folder.row(key))
            assert there[row] == (sample.row.speaker != "syntheticb")
            mel = sample.mel[10 * start : 10 * (start + TICKS)].mean()
            gesture = sample.gesture.gesture[3 * start : 3 * (start + TICKS)].mean()
            spoken = [
                w for w in sample.words if min(w["end"], (start + TICKS) / 10) - max(w["start"], start / 10) > 0.049
            ]
            expected = [mel, gesture, len(spoken)] if there[row] else [0, 0, 0]
            np.testing.assert_allclose(values[row], expected, rtol=1e-5, atol=1e-6)
            known += int(there[row])
        emotions, which = batch.conditions["emotion"]
        assert emotions.tolist() == [1] * 3
        assert which.all()
    assert 0 < known < 12


def test_worker_processes_compute_the_same(shards: Path) -> None:
    streams = {"emotion": Emotion(("anger", "neutral"))}
    for here, there in zip(batches(shards, 0, streams), batches(shards, 1, streams), strict=True):
        assert here.keys == there.keys
        for own, other in zip(here.conditions["emotion"], there.conditions["emotion"], strict=True):
            assert torch.equal(own, other)


def test_batches_without_streams_are_laid_out_as_ever(shards: Path) -> None:
    assert not any(batch.conditions for batch in batches(shards, 0, {}))
    names = [name for name, *_ in batch_layout(4, 8)[0]]
    own = ["gesture", "audio", "text", "positions", "sources", "epochs", "samples", "start_ticks", "progress"]
    assert names == own


def test_labels_count_in_what_was_read_only_where_they_are_read(shards: Path) -> None:
    plain, own = read_catalog(shards, Filters()), read_catalog(shards, Filters(), None, ("emotion",))
    assert plain.content_hash != own.content_hash
    assert plain.labels == {}
    facts = training_facts([own], {})
    assert facts.labels == {"emotion": ("neutral",)}
    lost = read_catalog(shards, Filters(), None, ("nothing_of_the_kind",))
    assert training_facts([lost], {}).labels == {"nothing_of_the_kind": ()}


def test_a_stream_of_an_array_that_is_latents_is_refused() -> None:
    with pytest.raises(
        UsageFault, match="--condition-streams means: expected mel, which it reads, found audio as latents of a codec"
    ):
        require_readable({"means": Means()}, {"audio": object()})
    require_readable({"means": Means()}, {})


class MeanMel(Means):
    """Mean mel of a window, whoever speaks."""

    name = "mean_mel"
    reads = ("mel",)

    def value(self, recording: Recording, first_tick: int, ticks: int) -> Any:
        return [recording.mel(first_tick, ticks).mean(), 0.0, 0.0]


def test_what_a_sample_lacks_has_no_value_in_training_as_in_generation(corpus: Path, tmp_path: Path) -> None:
    """A stream that reads the mel has a value of every window but those of samples without audio."""
    folder = write_partial(corpus, tmp_path / "mixed", dict.fromkeys(range(1, 30, 2), ("audio",)))
    streams = {"mean_mel": MeanMel()}
    source = ShardFolder(folder)
    heard = {row.key for row in source.rows if "audio" in row.present}
    found = {}
    for batch in batches(folder, 0, streams):
        found |= dict(zip(batch.keys, batch.conditions["mean_mel"][1].tolist(), strict=True))
    assert len(set(found.values())) == 2
    assert found == {key: key in heard for key in found}
    for row in source.rows:
        value = window_value(streams["mean_mel"], recording_of_sample(source.sample(row)), 0, TICKS)
        assert (value is not None) == (row.key in heard)
