"""The sampler: parts in the order of time, which joined are the whole; computing in it is the model's alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from omniges.errors import UsageFault
from omniges.generation.long_form import Timeline
from omniges.generation.sampler import Codecs, Sampler, joined, load
from omniges.model.tasks import SamplingSettings
from omniges.shards.latents import FrameEntry

STEPS = SamplingSettings(num_inference_steps=2)


@pytest.fixture(scope="module")
def sampler(checkpoint: Path) -> Sampler:
    loaded = load(checkpoint)
    return Sampler(loaded.model, loaded.identity, Codecs(loaded.identity.codecs, ()))


def test_parts_joined_are_the_whole_of_each_timeline(sampler: Sampler) -> None:
    timelines = [Timeline(200, {}, 0, 0), Timeline(40, {}, 1, 1)]
    windows = sampler.windows(None, "joint")
    parts = list(sampler.sample(timelines, ("gesture", "text"), 0, windows, STEPS))
    whole = joined(sampler.sample(timelines, ("gesture", "text"), 0, windows, STEPS))
    for number, timeline in enumerate(timelines):
        own = [part for part in parts if part.number == number]
        assert [part.last for part in own] == [*([False] * (len(own) - 1)), True]
        for name, rows in (("gesture", 3 * timeline.ticks), ("text", timeline.ticks)):
            put_together = np.concatenate([part.arrays()[name] for part in own])
            assert len(put_together) == rows
            np.testing.assert_array_equal(put_together, whole[number][name])
    assert len(parts) > len(timelines)  # the long one comes in parts


def test_the_precision_of_the_model_is_not_that_of_whoever_takes_the_parts(sampler: Sampler) -> None:
    inside: list[bool] = [False]

    @contextmanager
    def autocast() -> Iterator[None]:
        inside[0] = True
        yield
        inside[0] = False

    own = Sampler(sampler.model, sampler.identity, sampler.codecs, autocast)
    windows = own.windows(None, "joint")
    seen = [inside[0] for _ in own.sample([Timeline(200, {}, 0, 0)], ("gesture",), 0, windows, STEPS)]
    assert seen
    assert not any(seen)


def test_a_codec_with_two_folders_is_refused(tmp_path: Path) -> None:
    entry = FrameEntry(name="toy-codec", fingerprint="0" * 64, source="mel.npy", channels=4, frames_per_row=1)
    with pytest.raises(UsageFault, match="--codec toy-codec: expected each codec once"):
        Codecs({"audio": entry}, [("toy-codec", tmp_path), ("toy-codec", tmp_path / "other")])
