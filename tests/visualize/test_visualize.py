"""Pictures of samples: they come out for any words and any length, and what they show is computed right."""

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniges.errors import EnvironmentFault, ExitCode
from omniges.features.gesture import LAYOUT, gesture_from_motion
from omniges.visualize import panels
from omniges.visualize.pictures import Row, Version, draw_comparison, draw_result, draw_sample


def _sample(frames, words=()):
    rng = np.random.default_rng(3)
    poses = np.cumsum(rng.normal(0, 0.01, (frames, 165)), axis=0)
    trans = np.stack([np.linspace(0, 0.2, frames), np.full(frames, 1.3), np.zeros(frames)], axis=1)
    clip = gesture_from_motion(poses, rng.normal(0, 1, (frames, 100)), trans)
    return {
        "title": "1_synthetica_0_1_1",
        "gesture": clip.gesture,
        "jaw_eyes": clip.jaw_eyes,
        "start_xz": clip.start_xz,
        "mel": rng.normal(-4, 2, (frames * 10 // 3, 64)).astype(np.float32),
        "words": [{"word": w, "start": a, "end": b} for w, a, b in words],
    }


def _pixels(png):
    """Width, height and whether the image has more than one colour; the chunks' checksums are tried."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, data, size = 8, b"", None
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        body = png[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + body) == struct.unpack_from(">I", png, at + 8 + length)[0]
        if kind == b"IHDR":
            size = struct.unpack_from(">II", body)
        if kind == b"IDAT":
            data += body
        at += 12 + length
    return size, len(set(zlib.decompress(data))) > 50


@pytest.mark.slow
def test_a_picture_comes_out_and_is_the_same_twice():
    sample = _sample(150, [("river", 0.3, 0.8), ("stone", 0.8, 0.85), ("light", 0.85, 0.9), ("bread", 3.0, 3.6)])
    png = draw_sample(**sample)
    (width, height), drawn = _pixels(png)
    assert (width, height) == (1320, 1122)
    assert drawn
    assert draw_sample(**sample) == png
    assert draw_sample(**sample, start_s=1.0) != png


STRANGE = (
    "$x^2$",
    "中文",
    "こんにちは",
    "한국어",
    "مرحبا",
    "שלום",
    "😀",
    "a\nb",
    "\ud800",
    "\x00",
    "ﷺ",
    "x" * 300,
    "",
    " ",
)


def test_strange_words_and_titles_neither_crash_nor_warn():
    words = [(word, 0.2 * k, 0.2 * k + 0.15) for k, word in enumerate(STRANGE)]
    sample = _sample(100, words)
    sample["title"] = "$_1 中 " + "long " * 100
    assert _pixels(draw_sample(**sample))[1]


def test_what_no_font_has_becomes_an_escape():
    assert panels._drawable("naïve Straße привет", 40) == "naïve Straße привет"
    assert panels._drawable("a\nb\x00", 20) == "a\\nb\\x00"
    assert panels._drawable("\ud800", 20) == "\\ud800"
    assert panels._drawable("\U000f0000", 20) == "\\U000f0000"  # private use
    assert panels._drawable("abcdefghij", 5) == "abcd…"


@pytest.mark.parametrize("frames", [2, 9])
def test_short_samples_without_words(frames):
    assert _pixels(draw_sample(**_sample(frames)))[1]


def test_mel_may_be_missing_and_constant():
    sample = _sample(60)
    sample["mel"] = np.zeros((0, 64), dtype=np.float32)
    assert _pixels(draw_sample(**sample))[1]
    sample["mel"] = np.full((200, 64), -11.5, dtype=np.float32)
    assert _pixels(draw_sample(**sample))[1]


def test_many_words_in_a_long_view():
    words = [(f"word{k}", 0.25 * k, 0.25 * k + 0.2) for k in range(239)]
    assert _pixels(draw_sample(**_sample(1800, words), seconds=60.0))[1]


def test_the_view_is_cut_to_the_time_shown():
    sample = _sample(300, [("a", 0.5, 2.5), ("b", 3.0, 3.5), ("c", 3.9, 4.5), ("d", 8.0, 9.0)])
    del sample["title"]
    view = panels.cut(**sample, start_s=2.0, seconds=2.0)
    assert (view.start_s, view.stop_s) == (2.0, 4.0)
    assert view.words == (("a", 2.0, 2.5), ("b", 3.0, 3.5), ("c", 3.9, 4.0))
    np.testing.assert_array_equal(view.gesture, sample["gesture"][60:120])
    np.testing.assert_array_equal(view.mel, sample["mel"][200:400])
    np.testing.assert_allclose(view.root_xz[:, 0], np.linspace(0, 0.2, 300)[60:120], atol=1e-6)
    assert [view.word_at(t) for t in (2.1, 2.7, 3.2)] == ["a", "", "b"]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 70), st.floats(0, 2), st.floats(0.1, 3))
def test_arrays_that_begin_later_give_the_same_view(tick, after_s, seconds):
    sample = _sample(300, [("a", 0.5, 2.5), ("b", 3.0, 3.5), ("c", 3.9, 4.5), ("d", 8.0, 9.0)])
    del sample["title"]
    start_s = tick / 10 + after_s
    whole = panels.cut(**sample, start_s=start_s, seconds=seconds)
    steps = sample["gesture"][1 : 3 * tick + 1, [LAYOUT.root.start, LAYOUT.root.start + 2]]
    sample |= {"start_xz": sample["start_xz"] + steps.sum(axis=0, dtype=np.float64)}
    sample |= {name: sample[name][3 * tick :] for name in ("gesture", "jaw_eyes")} | {"mel": sample["mel"][10 * tick :]}
    part = panels.cut(**sample, start_s=start_s, seconds=seconds, begins_s=tick / 10)
    assert (part.start_s, part.stop_s, part.mel_start_s, part.words) == (
        *(whole.start_s, whole.stop_s, whole.mel_start_s, whole.words),
    )
    for name in ("times", "gesture", "jaw_eyes", "root_xz", "mel"):
        np.testing.assert_allclose(getattr(part, name), getattr(whole, name), atol=1e-9)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gesture", np.zeros((60, 414), np.float32)),
        ("jaw_eyes", np.zeros((59, 9), np.float32)),
        ("start_xz", np.zeros(3)),
        ("mel", np.zeros((200, 80), np.float32)),
        ("start_s", 2.0),
        ("seconds", 0.01),
    ],
)
def test_wrong_shapes_and_empty_views_are_refused(key, value):
    with pytest.raises(ValueError, match=r"expected|fewer than two"):
        draw_sample(**{**_sample(60), key: value})


def test_angular_speed_of_one_turning_joint():
    poses = np.zeros((31, 165))
    poses[:, 3 * 16 + 1] = np.arange(31) / 30 * 1.3  # the left shoulder turns at 1.3 rad/s
    gesture = gesture_from_motion(poses, np.zeros((31, 100)), np.zeros((31, 3))).gesture
    speed = panels.angular_speed(gesture, LAYOUT.upper)
    np.testing.assert_allclose(speed, 1.3 / 13, rtol=1e-5)
    assert np.abs(panels.angular_speed(gesture, LAYOUT.hands)).max() == 0
    assert np.abs(panels.angular_speed(gesture, LAYOUT.lower)).max() == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 12), min_size=1, max_size=60).map(sorted))
def test_labels_keep_their_distance(centres):
    places = panels._spread(np.array(centres), 0.15, 0.0, 12.0)
    assert (np.diff(places) >= 0.15 - 1e-9).all()
    assert places[0] >= -1e-9
    assert places[-1] <= 12 + 1e-9
    if len(centres) == 1 or np.diff(centres).min() >= 0.15:
        np.testing.assert_allclose(places, centres, atol=1e-9)


def test_people_stand_upright_and_their_left_is_at_plus_x():
    poses = np.zeros((2, 165))
    clip = gesture_from_motion(poses, np.zeros((2, 100)), np.tile([0.4, 1.3, 0.9], (2, 1)))
    person = panels._people(clip.gesture, clip.jaw_eyes)[1]
    np.testing.assert_allclose(person[0], [0, 0.95, 0], atol=1e-6)
    assert person[15, 1] > 1.5
    assert person[20, 0] > 0.4 > -0.4 > person[21, 0]
    assert [panels._side_color(j) for j in (20, 21, 12)] == [panels.BLUE, panels.ORANGE, "#333333"]


def test_without_matplotlib_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(EnvironmentFault, match=r"pip install 'omniges\[pictures\]'") as caught:
        draw_sample(**_sample(10))
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


def test_no_global_state_and_no_early_import():
    """Importing costs no matplotlib; drawing needs no pyplot and leaves the settings as they were."""
    code = """
import sys
import numpy as np
from omniges.visualize.pictures import Version, draw_comparison, draw_sample
from omniges.features.gesture import gesture_from_motion
assert "matplotlib" not in sys.modules
clip = gesture_from_motion(np.zeros((5, 165)), np.zeros((5, 100)), np.ones((5, 3)))
import matplotlib
def settings():  # looking at "backend" would itself import pyplot
    return {key: matplotlib.rcParams[key] for key in matplotlib.rcParams if key != "backend"}
before = settings()
draw_sample(title="t", gesture=clip.gesture, jaw_eyes=clip.jaw_eyes, start_xz=clip.start_xz,
            mel=np.zeros((16, 64), np.float32), words=[])
assert settings() == before
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class TestComparison:
    def _versions(self):
        sample = _sample(150, [("river", 0.3, 0.8), ("stone", 0.8, 0.85)])
        recorded = Version("recorded", sample["gesture"], sample["start_xz"], sample["mel"], sample["words"])
        return [
            recorded,
            Version("t2g", sample["gesture"][::-1].copy(), sample["start_xz"]),
            Version("g2a", mel=sample["mel"] + 1),
            Version("a2t", words=[]),
        ]

    @pytest.mark.slow
    def test_it_comes_out_is_the_same_twice_and_grows_with_what_there_is(self):
        versions = self._versions()
        png = draw_comparison("a window", "where it is from", versions, 5.0)
        (width, height), drawn = _pixels(png)
        assert width == 1320
        assert drawn
        assert draw_comparison("a window", "where it is from", versions, 5.0) == png
        (_, less), _ = _pixels(draw_comparison("a window", "where it is from", versions[:1], 5.0))
        assert less < height
        (_, minimum), _ = _pixels(draw_comparison("words alone", "", versions[3:], 5.0))
        assert minimum < less

    @pytest.mark.slow
    def test_every_version_is_seen(self):
        versions = self._versions()
        whole = draw_comparison("a window", "", versions, 5.0)
        for k in range(len(versions)):
            assert draw_comparison("a window", "", versions[:k] + versions[k + 1 :], 5.0) != whole


ROWS = {
    "text": [{"word": "river", "start": 0.3, "end": 0.8}, {"word": "stone", "start": 1.0, "end": 2.9}],
    "audio": _sample(90)["mel"],
    "gesture": _sample(90)["gesture"],
}


@pytest.mark.slow
@pytest.mark.parametrize(("condition", "generated"), [("text", "gesture"), ("audio", "text"), ("gesture", "audio")])
def test_a_result_has_a_row_for_condition_generated_and_recorded(condition, generated):
    rows = [Row("condition", condition, ROWS[condition]), Row("generated", generated, ROWS[generated])]
    common = {"title": "x", "length_s": 3.0}
    png, more = (draw_result(rows=r, **common) for r in (rows, [*rows, Row("recorded", generated, ROWS[generated])]))
    (width, height), drawn = _pixels(png)
    assert drawn
    assert width == 1320
    assert _pixels(more)[0][1] > height
    assert draw_result(rows=rows, **common) == png


def test_a_result_without_a_word_says_so():
    rows = [Row("condition", "audio", ROWS["audio"]), Row("generated", "text", [])]
    assert _pixels(draw_result(title="x", rows=rows, length_s=3.0))[1]


@pytest.mark.slow
def test_mels_of_one_picture_have_one_scale_of_colours():
    """One scale keeps a result that is too soft from looking like the recording."""
    pytest.importorskip("matplotlib")
    mel = ROWS["audio"]
    with panels.new_figure(6.0, 4.0) as figure:
        places = [figure.add_axes((0.1, bottom, 0.7, 0.3)) for bottom in (0.1, 0.5)]
        for axes, data in zip(places, (mel, mel - 3.0), strict=True):
            panels.draw_mel(axes, panels.without_motion(data, (), 0.0, 3.0))
        alone = [axes.images[0].get_clim() for axes in places]
        panels.share_mel_colours(figure)
        assert {axes.images[0].get_clim() for axes in places} == {(alone[1][0], alone[0][1])}
