"""A page holds its tracks to the precision that eyes need, small, and as data that never becomes markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from page_builders import HOSTILE, clicks, motion, track
from pipeline_helpers import omniges
from scipy.spatial.transform import Rotation

import omniges.exchange.view as of_view
from omniges.errors import EnvironmentFault, UsageFault
from omniges.exchange.pages import FACE_STEP_M, Clip, encode_motion, envelope, joint_speeds, page, quaternions
from omniges.exchange.settings import ViewSettings
from omniges.exchange.solid import Faces
from omniges.exchange.tracks import Track
from omniges.exchange.view import clips_of, view
from omniges.features.body import GENERIC, REST_OFFSETS, forward_kinematics
from omniges.formats.audio import decode_wav
from omniges.formats.motion import write_motion
from omniges.formats.textgrid import WordInterval


class Elements(HTMLParser):
    """Elements of a page and their text, as a browser finds them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self.open = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), ""))
        self.open = True

    def handle_endtag(self, _tag: str) -> None:
        self.open = False

    def handle_data(self, text: str) -> None:
        if self.open:
            tag, attributes, so_far = self.found[-1]
            self.found[-1] = (tag, attributes, so_far + text)

    def scripts(self) -> list[tuple[dict[str, str | None], str]]:
        return [(attributes, text) for tag, attributes, text in self.found if tag == "script"]


def read(*clips: Clip) -> tuple[dict[str, Any], list[bytes], Elements]:
    """The JSON of a page, its blobs, and its elements."""
    elements = Elements(b"".join(page(clips)).decode())
    (data,) = [text for attributes, text in elements.scripts() if attributes.get("id") == "data"]
    blobs = [
        base64.b64decode(text) for attributes, text in elements.scripts() if "blob" in (attributes.get("id") or "")
    ]
    return json.loads(data), blobs, elements


class TestMotion:
    def test_positions_from_the_page_are_those_of_forward_kinematics(self) -> None:
        moved = motion(2.0, seed=1)
        frames = len(moved.poses)
        data = encode_motion(moved)
        root = np.frombuffer(data, "<f4", 3 * frames).reshape(frames, 3).astype(np.float64)
        turns = np.frombuffer(data, "<i2", 220 * frames, 12 * frames).reshape(frames, 55, 4)
        local = Rotation.from_quat(turns.reshape(-1, 4).astype(np.float64)).as_matrix().reshape(frames, 55, 3, 3)
        _, positions = forward_kinematics(local, REST_OFFSETS, root)
        assert np.abs(positions - GENERIC.joints(moved.poses, moved.trans)).max() < 3e-4
        faces = np.frombuffer(data, "<i2", 6 * frames, 452 * frames).reshape(frames, 6) * FACE_STEP_M
        np.testing.assert_allclose(faces, Faces.of_motion(moved).table, atol=FACE_STEP_M)
        assert len(data) == 464 * frames
        with_mesh = encode_motion(moved, expressions=100)
        expressions = np.frombuffer(with_mesh, "<i2", 100 * frames, 464 * frames).reshape(frames, 100) * 1e-3
        np.testing.assert_allclose(expressions, moved.expressions, atol=6e-4)

    @given(st.lists(st.floats(-12, 12), min_size=3, max_size=3))
    def test_quaternions_are_scipys(self, vector: list[float]) -> None:
        ours, theirs = quaternions(np.array(vector)), Rotation.from_rotvec(vector).as_quat()
        assert abs(ours @ theirs) == pytest.approx(1, abs=1e-9)

    def test_a_minute_takes_three_megabytes_at_most(self) -> None:
        tracks = [track(str(k), 60.0, motion=motion(60.0, seed=k)) for k in range(2)]
        one, two = (sum(map(len, page([Clip("c", tuple(tracks[:count]))]))) for count in (1, 2))
        assert two - one < 3e6

    def test_speeds_are_metres_a_second(self) -> None:
        positions = np.zeros((4, 55, 3))
        positions[:, :, 0] = np.array([0, 0.1, 0.2, 0.2])[:, None]
        np.testing.assert_allclose(joint_speeds(positions), [3, 3, 3, 0])


class TestSound:
    def test_it_lasts_as_long_as_the_clip(self) -> None:
        document, blobs, _ = read(Clip("c", (track("a", 4.0, audio=clicks(1.5, [1.0])),)))
        wav = decode_wav(blobs[document["clips"][0]["tracks"][0]["sound"]])
        assert (len(wav.samples) / wav.rate_hz, np.argmax(wav.samples) / wav.rate_hz) == (4.0, 1.0)

    def test_equal_sounds_are_kept_once(self) -> None:
        document, _, _ = read(Clip("c", tuple(track(name, audio=clicks(4.0, [1.0])) for name in ("a", "bb"))))
        one, two = document["clips"][0]["tracks"]
        assert one["sound"] == two["sound"]
        assert one["motion"] != two["motion"]

    def test_the_envelope_has_each_peak_in_its_place(self) -> None:
        found = envelope(clicks(4.0, [0.005, 1.0, 3.995]))
        assert (len(found), np.flatnonzero(found).tolist(), found.max()) == (400, [0, 100, 399], 255)


class TestText:
    @given(st.text(), st.text(), st.text())
    def test_text_of_any_kind_is_data(self, clip: str, name: str, word: str) -> None:
        one = Track(clip, name, None, words=(WordInterval(word, 0.0, 1.0),))
        document, _, elements = read(Clip(clip, (one,)))
        (found,) = document["clips"]
        assert (found["name"], found["tracks"][0]["name"], found["tracks"][0]["words"][0][0]) == (clip, name, word)
        assert len(elements.scripts()) == 5  # the data, the figure's three parts, the program

    @pytest.mark.parametrize(
        "text", [HOSTILE, "</script><img src=x onerror=alert(1)>", "<!--", "{{script}}", "]]>", "{{style}}"]
    )
    def test_markup_stays_text(self, text: str) -> None:
        plain, _, expected = read(Clip("c", (Track("c", "t", None, words=(WordInterval("w", 0.0, 1.0),)),)))
        document, _, elements = read(Clip(text, (Track(text, text, None, words=(WordInterval(text, 0.0, 1.0),)),)))
        assert document["clips"][0]["tracks"][0]["words"] == [[text, 0.0, 1.0]]
        assert plain["joints"] == document["joints"]
        tags = [[tag for tag, _, _ in one.found] for one in (elements, expected)]
        assert tags[0] == tags[1]
        assert elements.scripts()[-1] == expected.scripts()[-1]

    def test_the_page_may_load_nothing_and_run_its_own_program_alone(self) -> None:
        text = b"".join(page([Clip("c", (track("a"),))])).decode()
        policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
        assert policy
        program = Elements(text).scripts()[-1][1]
        digest = base64.b64encode(hashlib.sha256(program.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in policy[1]
        assert policy[1].startswith("default-src 'none'")
        assert not re.search(r"https?://", text)


class TestClips:
    def test_tracks_of_one_recording_are_side_by_side(self) -> None:
        tracks = [track("a", clip="x"), track("b", clip="y"), track("c", clip="x")]
        assert [(clip.name, [t.name for t in clip.tracks]) for clip in clips_of(tracks)] == [
            ("x", ["a", "c"]),
            ("y", ["b"]),
        ]
        (all_,) = clips_of(tracks, together=True)
        assert (all_.name, len(all_.tracks)) == ("x / y", 3)


class TestView:
    def test_a_page_of_a_corpus(self, corpus: Path, tmp_path: Path) -> None:
        (source,) = corpus.rglob("1_synthetica_0_1_1.npz")
        summary = view(
            ViewSettings(paths=(str(source.parent),), output_file=tmp_path / "page.html", start_s=1.0, seconds=1.5)
        )
        assert len(summary.clips) == 6
        assert all(clip.seconds == pytest.approx(1.5, abs=0.02) for clip in summary.clips)
        assert (tmp_path / "page.html").stat().st_size == summary.bytes

    def test_the_command(self, corpus: Path, shards: Path, tmp_path: Path) -> None:
        (source,) = corpus.rglob("1_synthetica_0_1_1.npz")
        run = omniges("view", f"file={source}", shards, "-o", tmp_path / "page.html")
        assert run.returncode == 0, run.stderr
        assert "1 clip with 2 tracks" in run.stdout
        assert "torch" not in omniges("view", source, "-o", tmp_path / "p.html", PYTHONPROFILEIMPORTTIME="1").stderr

    def test_inspect_writes_one(self, shards: Path, tmp_path: Path) -> None:
        run = omniges("inspect", shards, "1_synthetica_0_1_1", "--html", tmp_path / "page.html", "--json")
        assert run.returncode == 0, run.stderr
        json.loads(run.stdout)
        assert "1 clip with 1 track" in run.stderr
        assert (tmp_path / "page.html").stat().st_size > 1e5

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"paths": ()}, "paths: expected"),
            ({"output_file": "absent/page.html"}, "expected the folder absent, found none"),
            ({"output_file": "."}, "expected a file such as page.html, found a folder"),
            ({"paths": ("absent.npz",)}, "found that the file does not exist"),
            ({"start_s": 99.0}, "99: expected a time before the end of x"),
        ],
    )
    def test_what_cannot_be_is_one_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], words: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        still = np.zeros((30, 100))
        write_motion(tmp_path / "x.npz", np.zeros((30, 165)), np.zeros((30, 3)), still, np.zeros(300))
        with pytest.raises(UsageFault, match=words) as raised:
            view(ViewSettings(**({"paths": ("x.npz",), "output_file": "page.html"} | settings)))
        assert "\n" not in str(raised.value)
        assert not (tmp_path / "page.html").exists()

    def test_hours_are_refused_before_a_page_is_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(of_view, "MAX_SECONDS", 1.5)
        write_motion(tmp_path / "x.npz", np.zeros((60, 165)), np.zeros((60, 3)), np.zeros((60, 100)), np.zeros(300))
        with pytest.raises(UsageFault, match="or a part with"):
            view(ViewSettings(paths=(str(tmp_path),), output_file=tmp_path / "page.html"))
        assert view(ViewSettings(paths=(str(tmp_path),), output_file=tmp_path / "page.html", seconds=1.0)).bytes

    def test_a_disk_in_the_way_leaves_nothing(
        self, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any) -> int:
            raise OSError(28, "No space left on device")

        (source,) = corpus.rglob("1_synthetica_0_1_1.npz")
        monkeypatch.setattr("omniges.storage.atomic.os.write", full)
        with pytest.raises(EnvironmentFault, match="the disk is full"):
            view(ViewSettings(paths=(str(source),), output_file=tmp_path / "page.html"))
        assert not list(tmp_path.iterdir())
