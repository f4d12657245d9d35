"""A window's condition values and words, and refusals of faulty code of a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import pytest

from omniges.conditions.base import (
    ConditionStream,
    Recording,
    TrainingFacts,
    labels_of,
    parsed_value,
    stacked,
    window_value,
)
from omniges.conditions.emotion import Emotion
from omniges.errors import EnvironmentFault, UsageFault


class Level(ConditionStream):
    """A stream that returns the configured value."""

    name = "level"
    reads = ("mel",)
    shape = (2,)

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer

    @classmethod
    def learn(cls, facts: TrainingFacts) -> Self:
        return cls()

    def settings(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        return cls()

    def value(self, recording: Recording, first_tick: int, ticks: int) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def parse(self, value: Any) -> Any:
        return self.answer

    def shown(self, array: Any) -> Any:
        return list(array)

    def encoder(self, width: int) -> Any:
        raise NotImplementedError


MEL = Recording({}, {"mel": lambda first, ticks: np.zeros((10 * ticks, 64), np.float32)})


class TestValue:
    def test_is_none_where_the_recording_lacks_what_the_stream_reads(self) -> None:
        assert window_value(Level(np.zeros(2)), Recording(), 0, 4) is None
        assert window_value(Level(np.zeros(2)), MEL, 0, 4) is not None

    @pytest.mark.parametrize("answer", [None, np.array([0.0, np.nan]), np.array([np.inf, 0.0])])
    def test_is_none_where_the_stream_gives_none_or_no_finite_numbers(self, answer: Any) -> None:
        """Absent channels are NaN, and so is what is computed of them."""
        assert window_value(Level(answer), MEL, 0, 4) is None

    def test_comes_in_the_declared_type(self) -> None:
        value = window_value(Level([1.5, 2.0]), MEL, 0, 4)
        assert value is not None
        assert value.dtype == np.float32

    @pytest.mark.parametrize("answer", [np.zeros(3), np.zeros((2, 1)), np.array(["a", "b"]), ZeroDivisionError("by 0")])
    def test_other_answers_are_one_line_that_names_the_class(self, answer: Any) -> None:
        with pytest.raises(EnvironmentFault, match=r"condition stream level \(test_condition_base:Level\)") as caught:
            window_value(Level(answer), MEL, 0, 4)
        assert "\n" not in str(caught.value)

    def test_of_a_person_is_checked_equally_and_none_leaves_it_out(self) -> None:
        assert parsed_value(Level(), "none") is None
        assert parsed_value(Level(), None) is None
        with pytest.raises(EnvironmentFault, match=r"expected arrays .*, found"):
            parsed_value(Level(np.zeros(3)), "x")

    def test_of_a_person_may_be_an_array_of_finite_numbers(self) -> None:
        given = np.ones(2, np.float32)
        np.testing.assert_array_equal(parsed_value(Level(given), given), given)
        with pytest.raises(UsageFault, match=r"level .* expected finite numbers"):
            parsed_value(Level(np.array([np.nan, 1.0])), "x")
        with pytest.raises(UsageFault, match="expected one of a, b or none"):
            parsed_value(Emotion(("a", "b")), given)


def test_stacked_values_say_which_are_there() -> None:
    pair = stacked([None, np.array([1.0, 2.0], np.float32), None])
    assert pair is not None
    assert pair[0].tolist() == [[0, 0], [1, 2], [0, 0]]
    assert pair[1].tolist() == [False, True, False]
    assert stacked([None, None]) is None


def test_words_of_a_window_begin_at_its_start_and_are_clipped_to_it() -> None:
    spoken = [
        {"word": "before", "start": 0.0, "end": 1.02},
        {"word": "across", "start": 0.5, "end": 1.2},
        {"word": "inside", "start": 1.3, "end": 1.6},
        {"word": "out", "start": 1.9, "end": 2.5},
    ]
    recording = Recording({}, {"words": lambda _first, _ticks: spoken})
    assert recording.words(10, 10) == [
        {"word": "across", "start": 0.0, "end": 0.2},
        {"word": "inside", "start": 0.3, "end": 0.6},
        {"word": "out", "start": 0.9, "end": 1.0},
    ]


def test_labels_that_are_empty_are_none() -> None:
    assert labels_of({"emotion": "", "scenario": "speech"}, "scott", None) == {"scenario": "speech", "speaker": "scott"}


class TestEmotion:
    def test_knows_the_values_of_the_training_set(self) -> None:
        stream = Emotion.learn(TrainingFacts({"emotion": ("anger", "fear")}, {}))
        again = Emotion.from_settings(stream.settings())
        for one in (stream, again):
            found = one.value(Recording({"emotion": "fear"}), 0, 8)
            assert found is not None
            assert one.shown(found) == "fear"
            assert one.shown(one.parse("anger")) == "anger"

    def test_a_value_of_no_train_clip_is_absent_in_recordings_and_refused_from_a_person(self) -> None:
        stream = Emotion(("anger", "fear"))
        assert stream.value(Recording({"emotion": "joy"}), 0, 8) is None
        assert stream.value(Recording(), 0, 8) is None
        with pytest.raises(UsageFault, match="emotion joy: expected one of anger, fear or none"):
            stream.parse("joy")

    def test_a_training_set_without_emotions_is_refused(self) -> None:
        with pytest.raises(UsageFault, match="--condition-streams emotion: expected train clips with a label emotion"):
            Emotion.learn(TrainingFacts({"emotion": ()}, {}))
