"""Bits of parts, and bodies at rest where parts are absent."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from omniges.features.gesture import GestureClip, motion_from_gesture
from omniges.shards.present import (
    ALL_PRESENT,
    STREAM_BITS,
    STREAM_PARTS,
    absent_parts,
    at_rest,
    bits_of,
    channel_flags,
    part_flags,
    present_bits,
    rest_channels,
    trained_bits,
    unused_bits,
)

COLUMNS = {"upper": (0, 78), "hands": (78, 258), "lower": (258, 312), "root": (312, 315), "face": (315, 415)}


@given(st.sets(st.sampled_from([*STREAM_PARTS, "sem", "labels"])))
def test_bits_tell_the_parts_of_streams(parts):
    bits = present_bits(parts)
    assert set(absent_parts(bits)) == set(STREAM_PARTS) - parts
    flags = part_flags(np.array([bits, ALL_PRESENT], np.uint8))
    assert flags.tolist() == [[part in parts for part in STREAM_PARTS], [True] * len(STREAM_PARTS)]
    for count, columns in ((415, COLUMNS), (424, COLUMNS | {"jaw_eyes": (415, 424)})):
        channels = channel_flags(np.array([bits], np.uint8), count)[0]
        assert channels.shape == (count,)
        for part, (first, end) in columns.items():
            assert channels[first:end].tolist() == [part in parts] * (end - first)


def test_a_body_at_rest_has_no_rotation_no_step_and_no_expression():
    clip = GestureClip(np.tile(rest_channels(), (4, 1)), np.zeros((4, 9), np.float32), np.zeros(2))
    motion = motion_from_gesture(clip)
    assert not motion.poses.any()
    assert not motion.expressions.any()
    assert not motion.trans.any()


@given(st.sets(st.sampled_from(STREAM_PARTS)))
def test_absent_parts_come_to_rest_and_the_others_stay(parts):
    random = np.random.default_rng(0)
    gesture = random.standard_normal((3, 415)).astype(np.float32)
    jaw_eyes = np.full((3, 9), 0.25 if "jaw_eyes" in parts else np.nan, np.float32)
    clip = GestureClip(gesture.copy(), jaw_eyes, np.full(2, np.nan))
    for part, (first, end) in COLUMNS.items():
        if part not in parts:
            clip.gesture[:, first:end] = np.nan
    found = at_rest(clip, parts)
    for part, (first, end) in COLUMNS.items():
        expected = gesture[:, first:end] if part in parts else np.tile(rest_channels()[first:end], (3, 1))
        np.testing.assert_array_equal(found.gesture[:, first:end], expected)
    assert (found.jaw_eyes == (0.25 if "jaw_eyes" in parts else 0.0)).all()
    assert np.isnan(found.start_xz).all() == ("root" in parts)


def test_a_whole_clip_is_handed_back_as_it_is():
    clip = GestureClip(np.ones((3, 415), np.float32), np.ones((3, 9), np.float32), np.ones(2))
    assert at_rest(clip, STREAM_PARTS) is clip


def test_statistics_tell_which_parts_were_there_in_training():
    counts = np.zeros(415, int)
    counts[:315] = 90
    statistics = {"gesture": {"counts": counts.tolist()}, "mel": {"counts": [0] * 64}, "words": {"total": 3}}
    assert absent_parts(trained_bits(statistics)) == ("audio", "face", "jaw_eyes")
    statistics["jaw_eyes"] = {"counts": [90] * 9}
    assert absent_parts(trained_bits(statistics)) == ("audio", "face")
    del statistics["gesture"]["counts"]
    assert trained_bits(statistics) == ALL_PRESENT  # version 1 had all parts


def test_only_a_stream_with_channels_of_jaw_and_eyes_needs_them():
    assert unused_bits(415) == present_bits({"jaw_eyes"})
    assert unused_bits(424) == 0
    assert not STREAM_BITS["gesture"] & present_bits({"jaw_eyes"})  # alone they are no gesture
    assert bits_of(("gesture",)) == STREAM_BITS["gesture"] | present_bits({"jaw_eyes"})
    assert bits_of(("text", "audio")) == STREAM_BITS["text"] | STREAM_BITS["audio"]
