"""Takes of a corpus of one's own: a part is there in every frame or in none, and names are those of the contract."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sample_set_builders import take

from omniges.errors import RecordingFault
from omniges.pipeline.convert import Take, assemble
from omniges.pipeline.settings import ConvertSettings
from omniges.shards.schema import PARTS

KEY = "1_a_0_1_1"


def present_of(one: Take) -> tuple[str, ...]:
    return assemble(one, ConvertSettings(), lambda *_: None, []).row.present


def moved(**changes: Any) -> Take:
    """A take with other numbers from some frame on, in some columns, by array."""
    one = take(KEY, 2.0)
    assert one.motion is not None
    arrays = {}
    for name, (rows, columns, value) in changes.items():
        array = np.array(getattr(one.motion, name))
        array[rows, columns] = value
        arrays[name] = array
    return replace(one, motion=replace(one.motion, **arrays))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expressions": (slice(7, None), 3, np.nan)}, "face: nan at frame 7, in 53 of 60 frames"),
        ({"expressions": (0, slice(None), np.nan)}, "face: nan at frame 0, in 1 of 60 frames"),
        ({"expressions": (59, 99, np.inf)}, "face: inf at frame 59, in 1 of 60 frames"),
        ({"trans": (5, 1, np.nan)}, "root: nan at frame 5, in 1 of 60 frames"),
        ({"trans": (5, 0, np.nan)}, "root: nan at frame 5, in 2 of 60 frames"),
        ({"poses": (slice(8, 10), slice(75, 165), np.nan)}, "hands: nan at frame 8, in 2 of 60 frames"),
        ({"poses": (slice(None), slice(75, 78), np.nan)}, "hands: nan at frame 0, in 60 of 60 frames"),
        ({"poses": (12, 70, np.nan)}, "jaw_eyes: nan at frame 12, in 1 of 60 frames"),
    ],
)
def test_a_part_that_is_not_there_throughout_is_a_fault(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordingFault) as caught:
        present_of(moved(**changes))
    problem = caught.value.problem
    assert (problem.code, problem.found) == ("npz-not-finite", message)
    assert problem.expected == "finite numbers, or NaN in all frames of an absent part"


def test_parts_that_are_nan_throughout_are_absent() -> None:
    everywhere = slice(None)
    one = moved(expressions=(everywhere, everywhere, np.nan), trans=(everywhere, everywhere, np.nan))
    assert present_of(one) == tuple(part for part in PARTS if part not in {"face", "root"})
    assert present_of(take(KEY, 2.0)) == PARTS


def test_samples_that_are_no_numbers_are_a_fault() -> None:
    one = take(KEY, 2.0)
    assert one.wav is not None
    samples = one.wav.samples.copy()
    samples[16_000] = np.nan
    with pytest.raises(RecordingFault) as caught:
        present_of(replace(one, wav=replace(one.wav, samples=samples)))
    assert caught.value.problem.code == "wav-not-finite"


def test_names_that_the_contract_does_not_give_are_an_error_of_the_corpus() -> None:
    with pytest.raises(ValueError, match="key 'another' of stem '1_a_0_1_1': expected '1_a_0_1_1'"):
        present_of(replace(take(KEY, 2.0), key="another"))
    with pytest.raises(ValueError, match="label 'Big Mood': expected a lower-case letter"):
        present_of(replace(take(KEY, 2.0), labels={"Big Mood": "x"}))
