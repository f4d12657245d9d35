"""A track holds what its files hold, tracks of one recording share a clip, and what cannot be read is one line."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_set_builders import take, write_takes

from omniges.errors import DataError, UsageFault
from omniges.exchange.export import export_motion
from omniges.exchange.settings import ExportSettings, ViewSettings
from omniges.exchange.tracks import Sound, Track, find_tracks, load_tracks
from omniges.exchange.view import view
from omniges.formats.audio import decode_wav
from omniges.formats.motion import SmplxMotion, read_motion, write_motion
from omniges.formats.textgrid import WordInterval, decode_words
from omniges.generation.records import GeneratedRecord
from omniges.shards.reader import ShardFolder

STEM = "1_synthetica_0_1_1"


def files(corpus: Path, ending: str) -> Path:
    (path,) = corpus.rglob(f"{STEM}{ending}")
    return path


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "x.npz").read_bytes()).hexdigest()


def motion_of(frames: int) -> SmplxMotion:
    poses = np.arange(165 * frames, dtype=np.float32).reshape(frames, 165)
    return SmplxMotion(poses, np.zeros((frames, 3)), np.zeros((frames, 100)), np.zeros(300))


def put_result(folder: Path, name: str, sources: dict[str, Path], **changes: Any) -> Path:
    """A result of `generate` whose files are copies of others."""
    folder.mkdir(exist_ok=True)
    entries = {}
    for kind, source in sources.items():
        shutil.copy(source, folder / f"{name}{source.suffix}")
        entries[kind] = {"path": f"{name}{source.suffix}", "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    facts: dict[str, Any] = {"omniges": "0", "task": "a2g", "name": name, "source": None, "sample": 0, "ticks": 40}
    facts |= {"seconds": 4.0, "files": entries, "inputs": (), "model": {}, "settings": {}, "seams_s": ()}
    record = GeneratedRecord(**(facts | {"measures": {}, "remarks": ()} | changes))
    (folder / f"{name}.json").write_bytes(record.document())
    return folder


class TestFiles:
    def test_a_beat2_file_brings_its_sound_and_words_from_the_folders_beside_it(self, corpus: Path) -> None:
        path = files(corpus, ".npz")
        (track,) = load_tracks([path])
        assert (track.clip, track.name) == (STEM, STEM)
        assert track.motion is not None
        assert track.audio is not None
        np.testing.assert_array_equal(track.motion.poses, read_motion(path).poses)
        wav = decode_wav(files(corpus, ".wav").read_bytes())
        np.testing.assert_array_equal(track.audio.samples, wav.samples)
        assert track.audio.rate_hz == wav.rate_hz
        assert track.words == decode_words(files(corpus, ".TextGrid").read_bytes()).words
        assert track.absent == ()

    @pytest.mark.parametrize("prefix", ["res_", "gt_", ""])
    def test_names_of_other_tools_are_of_the_same_clip(self, corpus: Path, tmp_path: Path, prefix: str) -> None:
        shutil.copy(files(corpus, ".npz"), tmp_path / f"{prefix}{STEM}.npz")
        (track,) = load_tracks([tmp_path])
        assert (track.clip, track.name) == (STEM, f"{prefix}{STEM}")
        assert (track.audio, track.words) == (None, None)

    def test_parts_that_a_file_lacks_are_at_rest_and_named(self, tmp_path: Path) -> None:
        poses = np.full((30, 165), 0.1)
        arrays = {"poses": poses, "trans": np.zeros((30, 3)), "betas": np.zeros(16), "mocap_frame_rate": np.array(30)}
        np.savez(tmp_path / "x.npz", **arrays)
        (track,) = load_tracks([tmp_path])
        assert track.absent == ("face",)
        assert track.motion is not None
        assert not track.motion.expressions.any()
        np.testing.assert_array_equal(track.motion.poses, poses)

    def test_motion_without_a_rate_has_the_rate_that_is_given(self, tmp_path: Path) -> None:
        arrays = {"poses": np.full((60, 165), 0.1), "trans": np.zeros((60, 3)), "betas": np.zeros(16)}
        np.savez(tmp_path / "x.npz", **arrays)
        (load,) = find_tracks([tmp_path])
        with pytest.raises(DataError, match="npz-no-rate"):
            load()
        for rate_hz in (30, 120):
            (load,) = find_tracks([tmp_path], motion_rate_hz=rate_hz)
            assert load().seconds == pytest.approx(60 / rate_hz)
        put_result(
            tmp_path / "out", "talk", {}, inputs=({"path": str(tmp_path / "x.npz"), "sha256": digest(tmp_path)},)
        )
        (load,) = find_tracks([tmp_path / "out"], motion_rate_hz=60)
        assert load().seconds == pytest.approx(1.0)

    def test_what_macos_puts_beside_files_is_passed_by(self, corpus: Path, tmp_path: Path) -> None:
        shutil.copy(files(corpus, ".npz"), tmp_path)
        folder = put_result(tmp_path / "out", "talk", {"gesture": files(corpus, ".npz")})
        for place in (tmp_path, folder):
            for ending in (".npz", ".json"):
                (place / f"._talk{ending}").write_bytes(b"\0\5\x16\7" + bytes(100))
        (folder / "._more").mkdir()
        assert len(list(load_tracks([folder]))) == 1
        shutil.rmtree(folder)
        assert len(list(load_tracks([tmp_path]))) == 1

    def test_a_track_may_be_sound_or_words_alone(self, corpus: Path) -> None:
        sound, words = load_tracks([files(corpus, ".wav"), files(corpus, ".TextGrid")])
        assert (sound.motion, sound.words, words.audio) == (None, None, None)
        assert sound.audio is not None
        assert words.words

    def test_labels_name_tracks_and_equal_names_get_their_folder(self, corpus: Path, tmp_path: Path) -> None:
        path = files(corpus, ".npz")
        shutil.copy(path, tmp_path)
        assert [track.name for track in load_tracks([f"ours={path}", path])] == ["ours", STEM]
        names = [track.name for track in load_tracks([path, tmp_path / path.name])]
        assert names == [f"{STEM} ({path.parent.name})", f"{STEM} ({tmp_path.name})"]
        assert len({track.name for track in load_tracks([f"a={path}", f"a={path}"])}) == 2

    def test_a_path_with_an_equals_sign_is_a_path(self, corpus: Path, tmp_path: Path) -> None:
        shutil.copy(files(corpus, ".npz"), tmp_path / "a=b.npz")
        (track,) = load_tracks([tmp_path / "a=b.npz"])
        assert track.clip == "a=b"

    @pytest.mark.parametrize(
        ("name", "content", "error", "words"),
        [
            (None, b"", UsageFault, "an NPZ, WAV or TextGrid, found that the file does not exist"),
            ("x.mp3", b"", UsageFault, "a name that ends in .npz, .wav, .TextGrid or"),
            ("x.npz", b"", DataError, "npz-not-zip"),
            ("x.wav", b"ID3", DataError, "wav-"),
        ],
    )
    def test_an_invalid_path_is_one_line(
        self, tmp_path: Path, name: str | None, content: bytes, error: type[Exception], words: str
    ) -> None:
        if name:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(error, match=words) as raised:
            list(load_tracks([tmp_path / (name or "x.npz")]))
        assert "\n" not in str(raised.value)

    def test_a_folder_of_beat2_is_that_of_its_motion(self, corpus: Path) -> None:
        root = files(corpus, ".npz").parents[1]
        tracks = list(load_tracks([root]))
        assert len(tracks) == len(list(root.rglob("*.npz")))
        assert all(track.audio is not None for track in tracks)

    def test_keys_are_of_shards(self, corpus: Path) -> None:
        with pytest.raises(UsageFault, match="--key k: expected a folder of shards among the paths"):
            list(load_tracks([files(corpus, ".npz")], ["k"]))

    def test_an_empty_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match="found none of them"):
            list(load_tracks([tmp_path]))

    def test_nan_is_refused_with_its_place(self, tmp_path: Path) -> None:
        path = tmp_path / "x.npz"
        write_motion(path, np.zeros((9, 165)), np.zeros((9, 3)), np.zeros((9, 100)), np.zeros(300))
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
        arrays["poses"][4, 7] = np.nan
        np.savez(path, **arrays)
        with pytest.raises(DataError, match=r"npz-not-finite: .*found poses: nan at frame 4, column 7"):
            list(load_tracks([path]))


class TestShards:
    def test_a_sample_is_its_recording(self, shards: Path, corpus: Path) -> None:
        (track,) = load_tracks([shards], [STEM])
        (file,) = load_tracks([files(corpus, ".npz")])
        assert (track.clip, track.name, track.absent, track.mel) == (STEM, "recorded", (), None)
        assert track.motion is not None
        assert file.motion is not None
        assert track.audio is not None
        frames = len(track.motion.poses)
        np.testing.assert_allclose(track.motion.poses, file.motion.poses[:frames], atol=1e-4)
        assert track.words == tuple(word for word in file.words or () if word.start < frames / 30)

    def test_all_samples_or_those_of_the_other_paths(self, shards: Path, corpus: Path) -> None:
        assert len(list(load_tracks([shards]))) == len(ShardFolder(shards).rows)
        both = list(load_tracks([files(corpus, ".npz"), shards]))
        assert [(track.clip, track.name) for track in both] == [(STEM, STEM), (STEM, "recorded")]

    def test_absent_parts_are_at_rest_and_named(self, tmp_path: Path) -> None:
        write_takes(tmp_path / "s", [take("1_a_0_1_1", 2.0, lacking=("hands", "jaw_eyes", "audio"))])
        (track,) = load_tracks([tmp_path / "s"])
        assert track.absent == ("hands", "jaw_eyes")
        assert (track.audio, track.mel) == (None, None)
        assert track.motion is not None
        assert not track.motion.poses[:, 66:].any()
        assert track.motion.poses[:, :66].any()

    def test_the_mel_stands_in_for_a_waveform_that_was_not_kept(self, tmp_path: Path) -> None:
        write_takes(tmp_path / "s", [take("1_a_0_1_1", 2.0)], keep_audio=False)
        (track,) = load_tracks([tmp_path / "s"])
        assert track.audio is None
        assert track.mel is not None
        assert track.mel.shape == (200, 64)


class TestResults:
    def test_a_result_is_of_the_recording_it_was_generated_for(self, corpus: Path, tmp_path: Path) -> None:
        source = {"key": STEM, "shards": "s"}
        folder = put_result(tmp_path / "out", STEM, {"gesture": files(corpus, ".npz")}, source=source)
        (folder / "report.json").write_text(json.dumps({"format": "another"}))
        (track,) = load_tracks([folder])
        assert (track.clip, track.name, track.absent) == (STEM, "generated a2g", ("jaw_eyes",))
        (other,) = load_tracks([tmp_path])  # a folder of folders, one a task
        assert other.clip == STEM

    def test_conditions_that_are_still_there_give_sound(self, corpus: Path, tmp_path: Path) -> None:
        wav = tmp_path / "speech.wav"
        shutil.copy(files(corpus, ".wav"), wav)
        digest = hashlib.sha256(wav.read_bytes()).hexdigest()
        inputs = ({"stream": "audio", "path": str(wav), "sha256": digest, "remarks": []},)
        folder = put_result(tmp_path / "out", "speech", {"gesture": files(corpus, ".npz")}, inputs=inputs)
        (track,) = load_tracks([folder])
        assert track.audio is not None
        wav.write_bytes(wav.read_bytes()[:-2])  # another recording now
        (track,) = load_tracks([folder])
        assert track.audio is None
        assert track.notes == (f"condition-changed: {wav} is not the file that the result was generated from",)

    def test_a_result_of_sound_is_shown_with_the_motion_that_it_was_generated_for(
        self, corpus: Path, tmp_path: Path
    ) -> None:
        path = files(corpus, ".npz")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        inputs = ({"stream": "gesture", "path": str(path), "sha256": digest, "remarks": []},)
        out = put_result(tmp_path / "out", "talk", {"audio": files(corpus, ".wav")}, inputs=inputs, task="g2a")
        (track,) = load_tracks([out / "talk.json"])
        assert track.motion is not None
        assert track.audio is not None
        np.testing.assert_array_equal(track.motion.poses, read_motion(path).poses)
        assert (track.name, track.absent) == ("generated g2a", ())

    def test_files_are_held_against_their_record(self, corpus: Path, tmp_path: Path) -> None:
        folder = put_result(tmp_path / "out", "speech", {"gesture": files(corpus, ".npz")})
        (folder / "speech.npz").write_bytes(b"another")
        with pytest.raises(DataError, match="expected the sha256 in its record"):
            list(load_tracks([folder]))
        (folder / "speech.npz").unlink()
        with pytest.raises(DataError, match="expected a file of a result, found none"):
            list(load_tracks([folder]))

    @pytest.mark.parametrize("content", [b"", b"{}"[:1], b'{"format": "omniges-generated"', b"\xff", b'{"a": NaN}'])
    def test_a_damaged_record_is_never_passed_over(self, corpus: Path, tmp_path: Path, content: bytes) -> None:
        folder = put_result(tmp_path / "out", "talk", {"gesture": files(corpus, ".npz")})
        put_result(folder, "other", {"gesture": files(corpus, ".npz")})
        (folder / "talk.json").write_bytes(content)
        for path in (folder, tmp_path):  # also as one of several tasks
            with pytest.raises(DataError, match=r"talk\.json: expected the record of a result, found damage \(.*; gen"):
                find_tracks([path])
        (folder / "talk.json").rename(tmp_path / "notes.json")
        (tmp_path / "notes.json").write_bytes(b"{")  # a damaged file of another tool, beside no result
        assert len(list(load_tracks([tmp_path]))) == 2

    def test_motion_that_no_record_lists_is_a_track_of_its_own(self, corpus: Path, tmp_path: Path) -> None:
        put_result(tmp_path / "out", "talk", {"gesture": files(corpus, ".npz")})
        shutil.copy(files(corpus, ".npz"), tmp_path / "out" / "more.npz")
        for path in (tmp_path / "out", tmp_path):
            assert [track.name for track in load_tracks([path])] == ["generated a2g", "more"]

    def test_a_pipe_is_said_to_be_one(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "a.npz")
        with pytest.raises(UsageFault, match=r"a\.npz: expected .*, found a pipe, not a regular file; write its"):
            find_tracks([tmp_path / "a.npz"])

    def test_an_unusable_file_beside_motion_is_an_error(self, corpus: Path, tmp_path: Path) -> None:
        shutil.copy(files(corpus, ".npz"), tmp_path / "a.npz")
        (tmp_path / "a.wav").symlink_to("gone")
        with pytest.raises(DataError, match=r"a\.wav: expected a file, found a link to nothing"):
            list(load_tracks([tmp_path / "a.npz"]))
        (tmp_path / "a.wav").unlink()
        os.mkfifo(tmp_path / "a.TextGrid")
        with pytest.raises(DataError, match=r"a\.TextGrid: expected a regular file, found a pipe"):
            list(load_tracks([tmp_path / "a.npz"]))


class TestCut:
    TRACK = Track(
        *("c", "t", motion_of(300)),
        audio=Sound(np.arange(160_000, dtype=np.float32), 16_000),
        words=(WordInterval("a", 0.5, 1.5), WordInterval("b", 9.0, 10.0)),
        mel=np.arange(64_000, dtype=np.float32).reshape(1000, 64),
    )

    @given(start=st.floats(0, 12), seconds=st.floats(0.1, 12))
    def test_streams_stay_on_one_clock(self, start: float, seconds: float) -> None:
        part = self.TRACK.cut(start, seconds)
        assert part.motion is not None
        assert part.audio is not None
        assert part.mel is not None
        assert part.words is not None
        frames = len(part.motion.poses)
        assert abs(frames / 30 - min(seconds, max(10 - start, 0))) <= 1 / 30 + 1e-9
        assert abs(len(part.audio.samples) / 16_000 - frames / 30) < 1e-4
        assert abs(len(part.mel) / 100 - frames / 30) <= 0.01
        if frames:
            assert part.audio.samples[0] / 16_000 == pytest.approx(part.motion.poses[0, 0] / 165 / 30, abs=1e-4)
        assert all(0 <= word.start < word.end <= seconds + 1 / 30 for word in part.words)


@pytest.mark.parametrize("command", ["view", "export"])
def test_what_was_guessed_of_a_motion_file_is_said(corpus: Path, tmp_path: Path, command: str) -> None:
    for name in ("a", "b"):
        arrays = dict(np.load(files(corpus, ".npz")))
        np.savez(tmp_path / f"{name}.npz", **arrays | {"expressions": arrays["expressions"][:, :10]})
    whole = files(corpus, ".npz")
    if command == "view":
        lines = view(ViewSettings(paths=(tmp_path, whole), output_file=tmp_path / "page.html")).lines
    else:
        lines = export_motion(ExportSettings(paths=(tmp_path, whole), format="npz", output_dir=tmp_path / "out")).lines
    assert [line for line in lines if line.startswith("warning")] == [
        "warning: expressions-extended: 10 expressions (a, b)"
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"source": {"start_tick": "x"}},
        {"source": {"start_tick": [1]}},
        {"source": {"start_tick": 1e308}},
        {"source": {"start_tick": -1}},
        {"source": {"key": 5}},
        {"source": {"key": "../x"}},
        {"source": {"key": "x" * 10**6}},
        {"source": {"manifest_sha256": 5}},
        {"source": {"shards": [1]}},
        {"source": []},
        {"measures": {"invalid_rotations": -5}},
        {"measures": {"invalid_rotations": 2}},
        {"absent": ("zzz",)},
        {"ticks": 2**59},
    ],
)
def test_every_field_of_a_record_that_readers_use_is_checked(
    corpus: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = put_result(tmp_path / "out", "talk", {"gesture": files(corpus, ".npz")}, **changes)
    with pytest.raises(DataError, match=r"talk\.json: .*expected .*found .*; generate it again") as caught:
        list(load_tracks([folder]))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["other.json", "other.npz"])
def test_a_link_to_nothing_is_a_fault_of_the_data(corpus: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "out"
    put_result(folder, "talk", {"gesture": files(corpus, ".npz")})
    if name == "other.npz":
        (folder / "talk.json").unlink()
    (folder / name).symlink_to("gone")
    with pytest.raises(DataError, match=rf"{name}: expected a file, found a link to nothing"):
        list(load_tracks([folder]))
