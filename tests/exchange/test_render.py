"""Videos: frames and samples counted by independent readers, sound and motion on one clock, nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from body_builders import body_arrays, body_file
from page_builders import HOSTILE, clicks, motion, track
from pipeline_helpers import omniges

av = pytest.importorskip("av", reason="PyAV is not installed: omniges[video]")

from omniges.errors import DataError, EnvironmentFault, UsageFault  # noqa: E402 - after the skip
from omniges.exchange import video, view  # noqa: E402
from omniges.exchange.drawing import Captions, Lettering, lines_of  # noqa: E402
from omniges.exchange.pages import Clip  # noqa: E402
from omniges.exchange.settings import RenderSettings  # noqa: E402
from omniges.exchange.tracks import Track  # noqa: E402
from omniges.exchange.video import VideoSummary, render, render_clip  # noqa: E402
from omniges.features.gesture import JOINT_NAMES  # noqa: E402
from omniges.formats.body_model import decode_body_model  # noqa: E402
from omniges.formats.motion import SmplxMotion, encode_smplx  # noqa: E402
from omniges.formats.textgrid import WordInterval  # noqa: E402

SIZE = "96x96"


def moving(name: str = "a", seconds: float = 1.0, **changes: Any) -> Track:
    return replace(track(name, seconds, words=()), **({"motion": motion(seconds)} | changes))


def settings(folder: Path, **changes: Any) -> RenderSettings:
    return RenderSettings(**({"paths": ("x",), "output_file": folder / "clip.mp4", "size": SIZE} | changes))


def made(folder: Path, *tracks: Track, model: Any = None, **changes: Any) -> VideoSummary:
    return render_clip(Clip("clip", tracks), settings(folder, **changes), model)


def pictures(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(int)


def samples(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class TestFile:
    @pytest.mark.parametrize(
        ("seconds", "fps", "frames"), [(1.0, 30, 30), (1.0, 12, 12), (0.5, 60, 30), (1 / 30, 30, 1)]
    )
    def test_frames_are_those_of_the_length_and_the_rate(
        self, tmp_path: Path, seconds: float, fps: int, frames: int
    ) -> None:
        summary = made(tmp_path, moving(seconds=seconds), fps=fps)
        assert pictures(summary.output_file).shape == (frames, 96, 96, 3)
        assert (summary.frames, summary.seconds) == (frames, frames / fps)
        assert left(tmp_path) == {"clip.mp4"}

    @pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed: apt-get install ffmpeg")
    def test_another_reader_counts_frames_and_samples(self, tmp_path: Path) -> None:
        summary = made(tmp_path, moving(seconds=2.0, audio=clicks(1.5, [1.0])))
        command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "json", str(summary.output_file)]
        found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["streams"]
        picture, sound = sorted(found, key=lambda stream: stream["codec_type"], reverse=True)
        assert (picture["codec_name"], picture["pix_fmt"], picture["nb_read_frames"]) == ("h264", "yuv420p", "60")
        assert (picture["width"], picture["height"], picture["r_frame_rate"]) == (96, 96, "30/1")
        assert (picture["color_space"], picture["color_range"]) == ("bt709", "tv")
        assert (sound["codec_name"], sound["sample_rate"], sound["channels"]) == ("aac", "48000", 1)
        assert float(sound["duration"]) == pytest.approx(2.0, abs=0.001)
        assert float(sound["start_time"]) == float(picture["start_time"]) == 0.0

    def test_the_index_comes_first_so_that_players_start_at_once(self, tmp_path: Path) -> None:
        content = made(tmp_path, moving()).output_file.read_bytes()
        assert content.index(b"moov") < content.index(b"mdat")

    def test_without_sound_there_is_no_sound_stream(self, tmp_path: Path) -> None:
        summary = made(tmp_path, moving())
        with av.open(str(summary.output_file)) as container:
            assert [stream.type for stream in container.streams] == ["video"]
        assert "no sound" in summary.lines[0]

    @pytest.mark.parametrize("rate_hz", [16_000, 44_100, 48_000])
    def test_sound_of_any_rate_has_its_pitch(self, tmp_path: Path, rate_hz: int) -> None:
        tone = np.sin(2 * np.pi * 440 * np.arange(rate_hz) / rate_hz).astype(np.float32) / 2
        summary = made(tmp_path, moving(audio=replace(clicks(1.0, []), samples=tone, rate_hz=rate_hz)))
        heard = samples(summary.output_file)[2048:40_000]
        assert np.argmax(np.abs(np.fft.rfft(heard * np.hanning(len(heard))))) * 48_000 / len(heard) == pytest.approx(
            440, abs=2
        )

    def test_a_file_that_exists_is_replaced_at_the_end(self, tmp_path: Path) -> None:
        (tmp_path / "clip.mp4").write_bytes(b"old")
        assert made(tmp_path, moving()).bytes == (tmp_path / "clip.mp4").stat().st_size > 1000


def onsets(path: Path) -> tuple[float, float]:
    """Return the times in seconds of the largest change of the picture and of the click."""
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate)
        before, most, at = None, -1.0, 0
        for number, frame in enumerate(container.decode(video=0)):
            picture = frame.to_ndarray(format="gray").astype(np.int16)
            if before is not None and (change := float(np.abs(picture - before).mean())) > most:
                most, at = change, number
            before = picture
    return at / rate, float(np.argmax(np.abs(samples(path)))) / 48_000


class TestClock:
    @pytest.mark.parametrize("moment", [0.1, 1.0, 2.4])
    def test_sound_and_motion_agree(self, tmp_path: Path, moment: float) -> None:
        shown = motion(3.0)
        for side, sign in (("left", -1), ("right", 1)):
            shown.poses[round(30 * moment) :, 3 * JOINT_NAMES.index(f"{side}_shoulder") + 2] = -sign * 1.2
        summary = made(tmp_path, moving(motion=shown, audio=clicks(3.0, [moment])))
        seen, heard = onsets(summary.output_file)
        assert abs(seen - moment) < 1 / 30
        assert abs(heard - moment) < 0.002

    @pytest.mark.slow
    def test_sound_and_motion_agree_at_the_end_of_ten_minutes(self, tmp_path: Path) -> None:
        moment = 599.0
        shown = motion(600.0)
        shown.poses[round(30 * moment) :, 3 * JOINT_NAMES.index("left_shoulder") + 2] = 1.2
        sound = clicks(600.0, [moment])
        summary = made(tmp_path, moving(motion=shown, audio=sound), fps=10, size="64x64")
        seen, heard = onsets(summary.output_file)
        assert abs(seen - moment) < 1 / 30
        assert abs(heard - moment) < 1 / 30
        assert summary.frames == 6000
        assert len(samples(summary.output_file)) == pytest.approx(600 * 48_000, abs=2048)

    def test_a_rate_other_than_that_of_motion_keeps_the_clock(self, tmp_path: Path) -> None:
        shown = motion(2.0, raised_s=[1.0])
        (tmp_path / "25").mkdir()
        seen, _ = onsets(made(tmp_path / "25", moving(motion=shown, audio=clicks(2.0, [1.0])), fps=25).output_file)
        assert abs(seen - 1.0) < 1 / 25 or abs(seen - 1.5) < 1 / 25  # arms go up, and down


class TestPicture:
    def test_it_moves_where_the_motion_does_and_rests_where_it_does_not(self, tmp_path: Path) -> None:
        found = pictures(made(tmp_path, moving(motion=motion(1.0, raised_s=[0.4]))).output_file)
        assert np.abs(found[6] - found[5]).mean() < 0.5
        assert np.abs(found[15] - found[5]).mean() > 2

    def test_tracks_are_side_by_side_with_colours_of_their_own(self, tmp_path: Path) -> None:
        still = [moving(name) for name in "abc"]
        found = pictures(made(tmp_path, *still, size="288x96").output_file)[10]
        panels = [found[:, 96 * k : 96 * k + 96] for k in range(3)]
        assert np.abs(panels[0] - panels[1]).mean() > 2
        assert np.abs(panels[1] - panels[2]).mean() > 2
        blue, orange = (panel[30:60, 30:66].reshape(-1, 3).mean(axis=0) for panel in panels[:2])
        assert blue[2] > blue[0]
        assert orange[0] > orange[2]

    @pytest.mark.parametrize("number", [1, 4, 5, 8])
    def test_every_track_has_its_place(self, tmp_path: Path, number: int) -> None:
        summary = made(tmp_path, *(moving(str(k), 0.1) for k in range(number)), size=None)
        columns = number if number <= 4 else (number + 1) // 2
        assert (summary.width, summary.height) == (min(1920, 640 * columns), 720 * (1 + (number > 4)))

    def test_cameras_and_framings_differ(self, tmp_path: Path) -> None:
        looks = [{"camera": name} for name in ("front", "three-quarter", "left", "right", "back")]
        looks += [{"framing": name} for name in ("upper", "face")]
        seen = [pictures(made(tmp_path, moving(seconds=0.1), **look).output_file)[1] for look in looks]
        for one in range(len(seen)):
            for other in range(one):
                assert np.abs(seen[one] - seen[other]).mean() > 0.5, (one, other)

    def test_the_face_follows_the_jaw_and_expressions(self, tmp_path: Path) -> None:
        def face(jaw: float = 0.0, component: int | None = None) -> np.ndarray:
            shown = motion(0.2)
            shown.expressions[:] = 0
            shown.poses[3:, 3 * JOINT_NAMES.index("jaw")] = jaw
            if component is not None:
                shown.expressions[5:, component] = 2.0
            found = pictures(made(tmp_path, moving(motion=shown), framing="face", size="256x256").output_file)
            return found[5]

        rest = face()
        for changed in (face(jaw=0.3), face(component=3), face(component=1)):
            assert np.abs(changed - rest).max() > 40

    def test_a_track_that_ends_earlier_holds_its_last_frame(self, tmp_path: Path) -> None:
        short, long = moving("a", 0.5), moving("b", 1.0, motion=motion(1.0, raised_s=[0.8]))
        found = pictures(made(tmp_path, short, long, size="192x96").output_file)
        assert len(found) == 30
        assert np.abs(found[28, :, :90] - found[14, :, :90]).mean() < 1

    def test_a_body_model_gives_its_own_mesh(self, tmp_path: Path) -> None:
        model = decode_body_model(body_file(60))
        solid, mesh = (pictures(made(tmp_path, moving(), model=m).output_file)[5] for m in (None, model))
        assert np.abs(solid - mesh).mean() > 3

    def test_a_body_model_moves_with_the_motion_and_stands_on_the_floor(self) -> None:
        from omniges.exchange.poses import MeshFigure

        arrays = body_arrays(60)
        figure = MeshFigure(motion(1.0, raised_s=[0.5]), decode_body_model(body_file(60)), 0)
        poses = list(figure.poses(np.array([0, 20])))
        assert poses[0].shape == arrays["v_template"].shape
        assert np.abs(poses[0] - poses[1]).max() > 0.05
        lowest = [pose[:, 1].min() for pose in figure.poses(np.arange(30))]
        assert min(lowest) <= figure.floor < np.percentile(lowest, 10)


class TestWords:
    def test_lines_end_at_silences_and_where_no_word_fits(self) -> None:
        words = [WordInterval(text, k, k + 0.9) for k, text in enumerate(["one", "two", "three", "four"])]
        words.append(WordInterval("five", 10.0, 10.5))
        lines = lines_of(words, lambda text: len(text) < 10)
        assert [" ".join(w.word for w in line.words) for line in lines] == ["one two", "three", "four", "five"]
        assert [line.until_s for line in lines] == [2.0, 3.0, 4.4, 11.0]
        assert lines_of([], lambda _: True) == []

    def test_words_appear_when_they_are_said(self, tmp_path: Path) -> None:
        said = (WordInterval("hello", 0.5, 0.7),)
        found = pictures(made(tmp_path, moving(seconds=1.5, words=said), size="192x192").output_file)
        below = found[:, 160:, 40:150]
        assert np.abs(below[5] - below[14]).mean() < 1
        assert np.abs(below[17] - below[5]).mean() > 3
        assert np.abs(below[40] - below[5]).mean() < 1.5  # gone half a second after its end

    def test_the_word_that_is_said_is_darker(self) -> None:
        words = (WordInterval("one", 0.0, 0.4), WordInterval("two", 0.5, 0.9))
        captions = Captions(words, Lettering(None, 640, 720))
        first, pause, second = (captions.at(t) for t in (0.2, 0.45, 0.6))
        assert first is not None
        assert (first != second).any()
        assert (first != pause).any()
        assert captions.at(5.0) is None

    def test_text_of_any_kind_is_drawn_inside_the_panel(self, tmp_path: Path) -> None:
        for number, text in enumerate((HOSTILE, "a\nb\x1b[31m", "x" * 5000, "¿qué?", "\ud800")):
            made(tmp_path, moving(f"{number}" * 300, 0.5, words=(WordInterval(text, 0.0, 0.5),)))

    def test_letters_that_the_font_lacks_are_reported(self, tmp_path: Path) -> None:
        words = tuple(
            WordInterval(text, k / 10, k / 10 + 0.1) for k, text in enumerate(("qué", "Straße", "你好", "речь"))
        )
        summary = made(tmp_path, moving(words=words))
        assert summary.boxes == 1
        assert summary.lines[1] == "1 word with letters that the font lacks, shown as boxes; give --font FILE"

    def test_a_file_that_is_no_font_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "font.ttf").write_bytes(b"nothing")
        with pytest.raises(DataError, match="a font file"):
            made(tmp_path, moving(), font=tmp_path / "font.ttf")
        assert left(tmp_path) == {"font.ttf"}


class TestSound:
    def test_it_is_that_of_the_first_track_that_has_it_or_of_the_one_named(self, tmp_path: Path) -> None:
        tracks = moving("a"), moving("b", audio=clicks(1.0, [0.3])), moving("c", audio=clicks(1.0, [0.7]))
        heard = {}
        for name in (None, "b", "c"):
            summary = made(tmp_path, *tracks, sound=name)
            heard[name] = np.argmax(np.abs(samples(summary.output_file))) / 48_000
        assert heard[None] == heard["b"] == pytest.approx(0.3, abs=0.002)
        assert heard["c"] == pytest.approx(0.7, abs=0.002)
        assert made(tmp_path, *tracks, sound="off").sound is None

    def test_another_name_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match="sound recorded: expected off or a track with sound"):
            made(tmp_path, moving(audio=clicks(1.0, [])), sound="recorded")
        assert left(tmp_path) == set()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "clip.npz").write_bytes(encode_smplx(motion(1.0)))
    soundfile.write(folder / "clip.wav", clicks(1.0, [0.5]).samples, 16_000)
    return folder / "clip.npz"


class TestRefusals:
    def refused(self, kind: type[Exception], words: str, out: Path, *paths: Path, **changes: Any) -> None:
        with pytest.raises(kind) as caught:
            render(settings(out, paths=tuple(map(str, paths)), **changes))
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        assert left(out) == set()

    @pytest.fixture
    def out(self, tmp_path: Path) -> Path:
        (tmp_path / "out").mkdir()
        return tmp_path / "out"

    def test_what_holds_no_motion(self, tmp_path: Path, clip: Path, out: Path) -> None:
        self.refused(
            UsageFault, "or an NPZ, WAV or TextGrid, found that the file does not exist", out, tmp_path / "absent.npz"
        )
        self.refused(UsageFault, "expected 1 to 8 tracks with motion, found 0 of 1", out, clip.with_name("clip.wav"))
        clip.write_bytes(b"no zip")
        self.refused(DataError, str(clip), out, clip)

    def test_motion_that_is_not_finite(self, clip: Path, out: Path) -> None:
        found = motion(1.0)
        found.poses[3, 5] = np.nan
        clip.write_bytes(_unchecked(found))
        self.refused(DataError, "finite", out, clip)

    def test_several_recordings(self, shards: Path, out: Path) -> None:
        self.refused(UsageFault, "expected one recording, found", out, shards)

    def test_hours(self, clip: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(view, "MAX_SECONDS", 0.5)
        self.refused(UsageFault, "h of tracks in a video, found more", out, clip)

    def test_a_part_after_the_end(self, clip: Path, out: Path) -> None:
        self.refused(UsageFault, "--start 9", out, clip, start_s=9)

    def test_a_body_model_without_faces(self, tmp_path: Path, clip: Path, out: Path) -> None:
        (tmp_path / "body.npz").write_bytes(body_file(20, f=None))
        self.refused(UsageFault, "expected an SMPL-X model with faces f", out, clip, body_model=tmp_path / "body.npz")

    def test_more_tracks_than_can_be_distinguished(self, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match="expected 1 to 8 tracks with motion, found 9 of 9"):
            made(tmp_path, *(moving(str(k)) for k in range(9)))

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"size": "97x96"}, "--size 97x96: expected 1280x720 or other even numbers"),
            ({"size": "big"}, "--size big"),
            ({"size": "20x20"}, "--size 20x20"),
            ({"fps": 0}, "--fps 0"),
            ({"camera": "above"}, "--camera above"),
            ({"seconds": -1.0}, "--seconds -1.0"),
            ({"paths": ()}, "PATH: expected"),
            ({"output_file": Path("clip.avi")}, "ends in .mp4"),
            ({"output_file": Path("absent/clip.mp4")}, "create it first"),
            ({"font": Path("absent.ttf")}, "--font absent.ttf"),
        ],
    )
    def test_settings(self, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
        with pytest.raises(UsageFault) as caught:
            settings(tmp_path, **changes)
        assert words in str(caught.value.on_command_line or caught.value)

    def test_an_encoder_that_is_not_there(self, clip: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(av, "codecs_available", {"aac"})
        self.refused(EnvironmentFault, "expected the encoder libx264", out, clip)

    def test_a_package_that_is_not_there(self, clip: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "av", None)
        self.refused(EnvironmentFault, "pip install 'omniges[video]'", out, clip)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
    def test_a_folder_that_cannot_be_written(self, clip: Path, out: Path) -> None:
        out.chmod(0o500)
        self.refused(EnvironmentFault, "permission denied", out, clip)

    def test_a_disk_that_fills_up(self, clip: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> Iterator[object]:
            raise OSError(28, "No space left on device")
            yield

        monkeypatch.setattr(video, "_sound_blocks", full)
        self.refused(EnvironmentFault, "the disk is full", out, clip)


def _unchecked(found: SmplxMotion) -> bytes:
    import io

    buffer = io.BytesIO()
    np.savez(
        buffer,
        poses=found.poses,
        trans=found.trans,
        expressions=found.expressions,
        betas=found.betas,
        gender="neutral",
        mocap_frame_rate=30,
        model="smplx2020",
    )
    return buffer.getvalue()


class TestCommand:
    def test_it_writes_the_video_and_tells_what_it_holds(self, clip: Path, tmp_path: Path) -> None:
        done = omniges("render", clip, "-o", tmp_path / "clip.mp4", "--size", SIZE, "--camera", "three-quarter")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("1 track, 96x96, 1.0 s, sound of track clip, ")
        assert len(pictures(tmp_path / "clip.mp4")) == 30

    def test_a_sample_of_shards_beside_its_file(self, shards: Path, corpus: Path, tmp_path: Path) -> None:
        source = min(corpus.rglob("1_synthetica_0_1_1.npz"))
        done = omniges(*("render", source, shards, "-o", tmp_path / "both.mp4", "--size", "192x96", "--seconds", "0.5"))
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("2 tracks, 192x96, 0.5 s, sound of track ")

    def test_an_error_is_one_line(self, tmp_path: Path) -> None:
        done = omniges("render", tmp_path / "absent.npz", "-o", tmp_path / "clip.mp4")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)

    @pytest.mark.slow
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_signal_leaves_nothing(self, tmp_path: Path, number: signal.Signals, code: int) -> None:
        folder = tmp_path / "out"
        folder.mkdir()
        (tmp_path / "long.npz").write_bytes(encode_smplx(motion(600.0)))
        command = [sys.executable, "-m", "omniges", "render", str(tmp_path / "long.npz"), "-o", str(folder / "v.mp4")]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 90
        while not left(folder) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1.0)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == code
        assert "no partly written file" in errors
        assert left(folder) == set()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    script = (
        "import resource, sys; from pathlib import Path; from omniges.exchange.settings import RenderSettings;"
        "from omniges.exchange.video import render;"
        "render(RenderSettings(paths=(sys.argv[1],), output_file=Path(sys.argv[2]), size='128x128', fps=10));"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for seconds in (10.0, 300.0):
        path = tmp_path / f"{seconds:g}.npz"
        path.write_bytes(encode_smplx(motion(seconds)))
        command = [sys.executable, "-c", script, str(path), str(tmp_path / "v.mp4")]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    of_input_kb = 290 * 30 * (165 + 3 + 100) * 8 / 1024
    assert peaks[1] - peaks[0] < 4 * of_input_kb + 20_000  # 2700 frames of 128 x 128 pixels would be 130 MB more


def test_several_threads_draw_what_one_draws(tmp_path: Path) -> None:
    shown = moving(seconds=0.5, motion=motion(0.5, seed=3))
    canvas, _ = video._canvas(Clip("c", (shown,)), [shown], settings(tmp_path), None, (96, 96), 1)
    frames = np.arange(15)
    poses = list(canvas.poses(frames))
    alone = [canvas.draw(pose, frame, 0.0) for frame, pose in enumerate(poses)]
    together: dict[int, np.ndarray] = {}

    def work(numbers: list[int]) -> None:
        for number in numbers:
            together[number] = canvas.draw(poses[number], number, 0.0)

    threads = [threading.Thread(target=work, args=(list(range(first, 15, 3)),)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for frame, image in enumerate(alone):
        np.testing.assert_array_equal(image, together[frame])
