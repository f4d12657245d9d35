"""Windows are chosen evenly over speakers, recordings and time, by what is there alone."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniges.trainer.validation.held_out import Clip, choose_places, spread

CLIPS = st.lists(
    st.builds(
        Clip,
        source=st.integers(0, 1),
        key=st.text("ab01_", min_size=1, max_size=4),
        speaker=st.sampled_from(["", "scott", "wayne", "maria"]),
        ticks=st.integers(0, 60),
    ),
    max_size=12,
    unique_by=lambda clip: (clip.source, clip.key),
)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10, 64, 100])
def test_every_beginning_of_a_spread_is_even(count: int) -> None:
    """The largest gap (around a circle) of the first k numbers is less than four times what k even ones have."""
    order = spread(count)
    assert sorted(order) == list(range(count))
    assert order[0] == count // 2
    for k in range(1, count + 1):
        taken = sorted(order[:k])
        gaps = [b - a for a, b in zip(taken, [*taken[1:], taken[0] + count], strict=True)]
        assert max(gaps) <= 4 * count / k


@given(CLIPS, st.integers(1, 20), st.integers(1, 40))
def test_windows_are_those_of_the_unshuffled_order_and_never_more_than_asked_for(
    clips: list[Clip], window: int, limit: int
) -> None:
    every = {(c.source, c.key, window * k) for c in clips for k in range(c.ticks // window)}
    chosen = [(place.source, place.key, place.start_tick) for place in choose_places(clips, window, limit)]
    assert len(chosen) == len(set(chosen)) == min(limit, len(every))
    assert set(chosen) <= every
    assert chosen == sorted(chosen)


@given(CLIPS, st.integers(1, 20), st.integers(1, 40), st.randoms())
def test_the_order_of_the_clips_decides_nothing_and_more_windows_contain_fewer(
    clips: list[Clip], window: int, limit: int, shuffler: random.Random
) -> None:
    chosen = choose_places(clips, window, limit)
    shuffler.shuffle(clips)
    assert choose_places(clips, window, limit) == chosen
    assert set(chosen) <= set(choose_places(clips, window, limit + 1))


@given(CLIPS, st.integers(1, 20), st.integers(1, 40))
def test_no_speaker_has_two_more_than_one_who_still_has_some(clips: list[Clip], window: int, limit: int) -> None:
    speaker = {(clip.source, clip.key): clip.speaker for clip in clips}
    left: Counter[str] = Counter()
    for clip in clips:
        left[clip.speaker] += clip.ticks // window
    taken = Counter(speaker[place.source, place.key] for place in choose_places(clips, window, limit))
    waiting = [taken[name] for name in left if taken[name] < left[name]]
    assert all(count <= min(waiting) + 1 for count in taken.values()) if waiting else True


def test_a_speakers_recordings_take_turns() -> None:
    clips = [Clip(0, f"2_scott_0_{k}_{k}", "scott", 640) for k in range(5)]
    taken = Counter(place.key for place in choose_places(clips, 64, 12))
    assert sorted(taken.values()) == [2, 2, 2, 3, 3]
