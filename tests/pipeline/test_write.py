"""`write_shards` makes sound, complete sets of a program's recordings, or says in one line why not."""

from __future__ import annotations

import io
import json
import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pipeline_helpers import digests, report, run_preprocess
from rich.console import Console
from scipy.spatial.transform import Rotation
from write_builders import NO_AUDIO, NO_MOTION, recording

import omniges
from omniges.errors import DataError, EnvironmentFault, UsageFault
from omniges.exchange.inspect import draw, print_sample, sample_facts
from omniges.features.gesture import LAYOUT
from omniges.pipeline.export import export
from omniges.shards.reader import ShardFolder
from omniges.shards.schema import GESTURE_PARTS, PARTS, UNFINISHED_FILE
from omniges.storage.atomic import locked
from omniges.verify.run import verify
from omniges.verify.settings import VerifySettings

Timed = namedtuple("Timed", "word start end")


def findings(folder: Path) -> list[str]:
    found = verify(VerifySettings(folder=folder, level="deep", num_workers=1)).findings
    return [f"{finding.code}: {finding.found}" for finding in found]


def only(folder: Path) -> Any:
    source = ShardFolder(folder)
    (row,) = source.rows
    return source.sample(row)


class TestWhole:
    def test_a_set_is_sound_and_holds_what_was_given(self, tmp_path: Path) -> None:
        given = [recording(k, split=split) for k, split in enumerate(("train", "train", "val", "test"))]
        summary = omniges.write_shards(given, str(tmp_path / "s"), keep_audio=True)
        assert findings(tmp_path / "s") == []
        assert (summary.samples, summary.splits["train"][0], summary.notes) == (4, 2, {})
        source = ShardFolder(tmp_path / "s")
        assert summary.manifest_hash == source.dataset["manifest_hash"]
        for one in given:
            sample = source.sample(source.row(one.key))
            poses = np.asarray(one.poses)
            six = Rotation.from_rotvec(poses.reshape(-1, 3)).as_matrix()[:, :2].reshape(36, 55, 6)
            rotations = np.concatenate([six[:, joint] for joint in LAYOUT.joints], axis=1)
            assert np.abs(sample.gesture.gesture[:, LAYOUT.rotations] - rotations).max() < 3e-7
            assert np.array_equal(sample.gesture.gesture[:, LAYOUT.face], np.float32(one.expressions))
            assert np.array_equal(sample.gesture.jaw_eyes, np.float32(poses[:, 66:75]))
            assert np.array_equal(sample.betas, one.betas)
            assert np.array_equal(sample.audio, one.samples)
            assert [(w["word"], w["start"], w["end"]) for w in sample.words] == one.words
            assert sample.semantic == [{"name": "beat_align", "start": 0, "end": 1, "score": 0.1, "keywords": ""}]
            row = sample.row
            assert (row.stem, row.speaker, row.speaker_id, row.language) == (one.key, "anna", 3, "english")
            assert (row.labels, row.present) == ({"emotion": "anger"}, PARTS)
            assert {path for path, _ in row.sources.values()} == {one.source}

    def test_preprocess_gives_the_same_arrays_for_the_same_recordings(self, corpus: Path, tmp_path: Path) -> None:
        run_preprocess(corpus, tmp_path / "files", keep_audio=True)
        files = ShardFolder(tmp_path / "files")

        def recordings() -> Iterator[omniges.Recording]:
            for row in files.rows:
                motion = omniges.read_motion(next(corpus.rglob(f"{row.stem}.npz")))
                yield omniges.Recording(
                    key=row.stem, split=row.split, poses=motion.poses, trans=motion.trans,
                    expressions=motion.expressions, betas=motion.betas, frame_rate_hz=motion.frame_rate_hz,
                    gender=motion.gender, samples=files.waveform(row), sample_rate_hz=16_000, words=files.words(row),
                )  # fmt: skip

        omniges.write_shards(recordings(), tmp_path / "arrays", keep_audio=True)
        arrays = ShardFolder(tmp_path / "arrays")
        for row in files.rows:
            other = arrays.row(row.key)
            for member in set(row.members) - {"json", "sem.txt"}:
                assert row.members[member].sha256 == other.members[member].sha256, member

    def test_words_may_be_tuples_mappings_or_objects(self, tmp_path: Path) -> None:
        words = [["a", 0.1, np.float32(0.25)], {"word": " b\n", "start": 0.25, "end": 0.5}, Timed("", 0.5, 0.6)]
        omniges.write_shards([recording(words=[*words, Timed("c", 1, 1.25)])], tmp_path / "s")
        assert [word["word"] for word in only(tmp_path / "s").words] == ["a", "b", "c"]
        assert only(tmp_path / "s").words[2]["end"] == 1.2  # rounding past the end is cut to it
        assert [row["code"] for row in report(tmp_path / "s")] == ["words-clipped"]

    @pytest.mark.parametrize("dtype", ["int16", "int32", "float32", "float64"])
    def test_samples_of_every_type_and_several_channels(self, tmp_path: Path, dtype: str) -> None:
        rng = np.random.default_rng(1)
        mono = rng.normal(0, 0.1, 19_200).astype(np.float32)
        scale = {"int16": 2.0**15, "int32": 2.0**31}.get(dtype, 1.0)
        stereo = np.stack([mono, mono], axis=1) * scale
        omniges.write_shards([recording(samples=stereo.astype(dtype))], tmp_path / "s", keep_audio=True)
        assert np.abs(only(tmp_path / "s").audio - mono).max() <= (2.0**-15 if dtype == "int16" else 1e-8)
        assert findings(tmp_path / "s") == []
        assert [row["code"] for row in report(tmp_path / "s")] == ["audio-mixed-down"]

    def test_other_rates_and_fewer_coefficients_are_notes(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(2)
        poses, trans = rng.normal(0, 0.1, (72, 165)), rng.normal(0, 0.1, (72, 3))
        changed = {"poses": poses, "trans": trans, "expressions": np.ones((72, 10)), "betas": np.ones(12)}
        audio = {"samples": rng.normal(0, 0.1, 9_600), "sample_rate_hz": 8000.0}
        omniges.write_shards([recording(**changed, **audio, frame_rate_hz=60.0)], tmp_path / "s")
        sample = only(tmp_path / "s")
        codes = ["audio-resampled", "betas-extended", "expressions-extended", "motion-decimated"]
        assert [row["code"] for row in report(tmp_path / "s")] == codes == list(sample.row.notes)
        assert sample.row.frames == 36
        assert np.array_equal(sample.gesture.gesture[:, 315:415], np.repeat([[1.0] * 10 + [0.0] * 90], 36, axis=0))
        assert sample.metadata["motion"]["betas"] == 12
        assert findings(tmp_path / "s") == []

    def test_what_is_cut_to_the_common_length_is_noted(self, tmp_path: Path) -> None:
        poses = np.random.default_rng(3).normal(0, 0.1, (100, 165))
        changed = {"poses": poses, "trans": None, "expressions": None, "words": [("a", 0.1, 0.4), ("b", 2.0, 3.0)]}
        omniges.write_shards([recording(**changed)], tmp_path / "s")
        assert [row["code"] for row in report(tmp_path / "s")] == ["length-cut", "words-clipped"]
        assert only(tmp_path / "s").row.frames == 36
        assert findings(tmp_path / "s") == []

    def test_keys_may_be_any_file_names(self, tmp_path: Path) -> None:
        keys = ["Take 1.b", "Ünï", "a_x41_"]
        omniges.write_shards([recording(k, key=key) for k, key in enumerate(keys)], tmp_path / "s")
        assert sorted(row.stem for row in ShardFolder(tmp_path / "s").rows) == sorted(keys)
        assert findings(tmp_path / "s") == []

    def test_progress_is_called_for_each_recording(self, tmp_path: Path) -> None:
        calls: list[tuple[int, int]] = []
        given = [recording(0), recording(1)]
        omniges.write_shards(given, tmp_path / "a", progress=lambda *numbers: calls.append(numbers))
        omniges.write_shards(iter(given), tmp_path / "b", progress=lambda *numbers: calls.append(numbers))
        assert calls == [(1, 2), (2, 2), (1, 0), (2, 0)]


LACKING = {
    "text": {"words": None},
    "audio": NO_AUDIO,
    "face": {"expressions": None},
    "root": {"trans": None},
    "hands": {"absent": "hands"},
    "lower": {"absent": ("lower",)},
    "upper": {"absent": ("upper",)},
    "jaw_eyes": {"absent": ("jaw_eyes",)},
    "sem": {"semantic": None},
    "labels": {"labels": {}},
}


class TestAbsent:
    @pytest.mark.parametrize("part", LACKING)
    def test_a_sample_may_lack_any_part(self, tmp_path: Path, part: str) -> None:
        given = [recording(0), recording(1, **LACKING[part])]
        omniges.write_shards(given, tmp_path / "s", keep_audio=True)
        assert findings(tmp_path / "s") == []
        row = ShardFolder(tmp_path / "s").row("take_1")
        assert set(PARTS) - set(row.present) == {part}

    def test_columns_of_absent_parts_are_not_read(self, tmp_path: Path) -> None:
        poses = np.array(recording().poses)
        for name, value in (("a", 0.0), ("b", np.nan), ("c", 1e9)):
            poses[:, 75:165] = value
            omniges.write_shards([recording(poses=poses, absent=["hands"])], tmp_path / name)
        assert digests(tmp_path / "a") == digests(tmp_path / "b") == digests(tmp_path / "c")

    def test_arrays_that_nobody_may_write_to_are_read(self, tmp_path: Path) -> None:
        """Such as memory maps; the caller's arrays stay as they are."""
        poses, locked = np.array(recording().poses), np.array(recording().poses)
        locked.setflags(write=False)
        omniges.write_shards([recording(poses=locked)], tmp_path / "a")
        omniges.write_shards([recording(poses=poses)], tmp_path / "b")
        omniges.write_shards([recording(poses=locked, absent=["hands"])], tmp_path / "c")
        assert digests(tmp_path / "a") == digests(tmp_path / "b")
        np.testing.assert_array_equal(poses, locked)

    def test_words_of_a_sample_go_in_again(self, tmp_path: Path) -> None:
        omniges.write_shards([recording()], tmp_path / "a")
        omniges.write_shards([recording(words=omniges.open_shards(tmp_path / "a")[0].words)], tmp_path / "b")
        assert digests(tmp_path / "a") == digests(tmp_path / "b")

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (recording(), "expected an iterable of omniges.Recording, found Recording"),
            (recording, "found function; give a list, or call the function"),
            ([recording(key=["a"])], "expected a text as key"),
            ([recording(labels={"emotion": None})], "expected a text, found label emotion None"),
            ([recording(samples=np.random.default_rng(0).normal(0, 3000, 64000))], "by their full scale"),
            ([recording(samples=np.random.default_rng(1).normal(0, 0.1, (64000, 1)) * [1, -1])], "invert one channel"),
        ],
    )
    def test_what_is_no_recording_is_one_line(self, tmp_path: Path, given: Any, message: str) -> None:
        with pytest.raises(omniges.OmnigesError) as caught:
            omniges.write_shards(given, tmp_path / "s")
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("betas", [None, np.ones(3), np.ones(10)])
    def test_exported_motion_of_any_shape_is_read_again(self, tmp_path: Path, betas: Any) -> None:
        omniges.write_shards([recording(betas=betas)], tmp_path / "s")
        export(tmp_path / "s", tmp_path / "e")
        (file,) = (tmp_path / "e").rglob("*.npz")
        found = omniges.read_motion(file).betas
        assert len(found) in {10, 300}
        assert found.sum() == (0 if betas is None else len(betas))

    def test_an_empty_speaker_is_an_unknown_one(self, tmp_path: Path) -> None:
        omniges.write_shards([recording(speaker="", language="")], tmp_path / "s")
        (row,) = ShardFolder(tmp_path / "s").rows
        assert (row.speaker, row.language) == (None, None)
        with pytest.raises(DataError, match="expected a text, found gender None"):
            omniges.write_shards([recording(gender=None)], tmp_path / "t")

    @pytest.mark.parametrize("left", [NO_MOTION, {**NO_AUDIO, "words": None}], ids=["no motion", "motion alone"])
    def test_motion_or_audio_is_enough(self, tmp_path: Path, left: dict[str, Any]) -> None:
        omniges.write_shards([recording(semantic=None, **left)], tmp_path / "s", keep_audio=True)
        assert findings(tmp_path / "s") == []

    def test_all_parts_named_absent_is_no_motion(self, tmp_path: Path) -> None:
        absent = ("upper", "hands", "lower", "jaw_eyes", "root", "face")
        omniges.write_shards([recording(absent=absent, betas=None)], tmp_path / "s")
        assert findings(tmp_path / "s") == []
        assert only(tmp_path / "s").row.present == ("text", "audio", "sem", "labels")

    def test_labels_are_those_of_all_recordings(self, tmp_path: Path) -> None:
        given = [recording(0, labels={"mood": "calm"}), recording(1, labels={"scene": "talk"}), recording(2, labels={})]
        omniges.write_shards(given, tmp_path / "s", keep_audio=True)
        assert findings(tmp_path / "s") == []
        source = ShardFolder(tmp_path / "s")
        assert [row.labels for row in source.rows] == [
            {"mood": "calm", "scene": ""},
            {"mood": "", "scene": "talk"},
            {"mood": "", "scene": ""},
        ]
        assert [source.sample(row).metadata["labels"] for row in source.rows] == [row.labels for row in source.rows]
        assert [("labels" in row.present) for row in source.rows] == [True, True, False]


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "shape": ({"poses": np.zeros((36, 156))}, "poses of shape (36, 156): SMPL-H without face?"),
    "dimensions": ({"trans": np.zeros(36)}, "expected (frames, 3), found trans of shape (36,)"),
    "dtype": ({"trans": np.zeros((36, 3), int)}, "expected float32 or float64, found trans of dtype int64"),
    "lengths": ({"trans": np.zeros((35, 3))}, "same number of frames in all arrays, found poses 36, trans 35"),
    "no frames": ({"poses": np.zeros((0, 165)), "trans": None, "expressions": None}, "expected frames, found poses 0"),
    "NaN in trans": ({"trans": np.full((36, 3), np.nan)}, "trans: nan at frame 0, column 0"),
    "units": ({"poses": np.full((36, 165), 90.0)}, "radians and metres"),
    "z up": ({"poses": np.tile([np.pi / 2, 0, 0] + [0.0] * 162, (36, 1))}, "rotate the world so that y points up"),
    "betas": ({"betas": np.zeros((36, 300))}, "betas of shape (36, 300)"),
    "betas alone": (NO_MOTION | {"betas": np.zeros(300)}, "expected motion with betas, found none; remove betas"),
    "no frame rate": ({"frame_rate_hz": None}, "expected frames per second, found motion with frame_rate_hz None"),
    "frame rate": ({"frame_rate_hz": 25}, "expected 30, 60, 90, 120, ..., found frame_rate_hz 25; resample"),
    "absent": ({"absent": ["legs"]}, "expected one of upper, hands, lower, jaw_eyes, root, face, found absent 'legs'"),
    "no sample rate": ({"sample_rate_hz": None}, "expected samples per second, found samples with sample_rate_hz None"),
    "sample rate": ({"sample_rate_hz": 16}, "expected 1000 to 768000, found 16 samples per second"),
    "samples": ({"samples": np.zeros((2, 19_200))}, "expected (n,) or (n, channels), found samples of shape (2,"),
    "sample type": ({"samples": np.zeros(19_200, np.uint8)}, "found samples of dtype uint8"),
    "no sound": ({"samples": np.zeros(19_200)}, "expected sound, found 19200 samples, all of them 0.0"),
    "NaN in samples": ({"samples": np.r_[np.nan, np.ones(19_199)]}, "nan at sample 0"),
    "no samples": ({"samples": np.zeros(0)}, "give samples=None if there is no sound"),
    "too long": ({"samples": np.arange(600_000) / 600_000}, "raise max_length_mismatch_s"),
    "too short": ({"samples": np.arange(600.0) / 600}, "at least 3"),
    "nothing": (NO_MOTION | NO_AUDIO | {"words": None}, "expected at least one, found neither motion nor audio"),
    "words out of order": ({"words": [("b", 0.5, 0.8), ("a", 0.1, 0.2)]}, "intervals in order of time, found"),
    "words overlap": ({"words": [("a", 0.1, 0.5), ("b", 0.4, 0.8)]}, "overlaps up to 0.01 s, found"),
    "word outside": ({"words": [("a", 0.1, 7.5)]}, "an end within the recording, 1.2 s, found 7.5 s"),
    "word times": ({"words": [("a", 0.4, 0.1)]}, "start <= end in seconds, found ('a', 0.4, 0.1)"),
    "word NaN": ({"words": [("a", 0.1, np.nan)]}, "found ('a', 0.1, nan)"),
    "word columns": ({"words": [("a", 0.1, 0.2, 0.9)]}, "found ('a', 0.1, 0.2, 0.9)"),
    "word text": ({"words": [(b"a", 0.1, 0.2)]}, "found (b'a', 0.1, 0.2)"),
    "words as text": ({"words": "hello"}, "word 0: expected a text and 0 <= start <= end in seconds, found 'h'"),
    "no words": ({"words": []}, "give words=None if there is no transcript"),
    "score": ({"semantic": [("beat", 0.0, 1.0, 3.0)]}, "semantic span 0: start 0.0, end 1.0"),
    "span": ({"semantic": [("beat", 0.0)]}, "expected a name, numbers start, end and score, and optional keywords"),
    "split": ({"split": "dev"}, "expected one of train, val, test, additional, found split 'dev'"),
    "label name": ({"labels": {"Mood!": "calm"}}, "31 of a-z, 0-9 and _, found label name 'Mood!'"),
    "label value": ({"labels": {"mood": 3}}, "expected a text, found label mood 3"),
    "speaker": ({"speaker": 3}, "expected a text, found speaker 3"),
    "speaker id": ({"speaker_id": -1}, "expected a whole number of at least 0, found speaker_id -1"),
    "source": ({"source": "/home/anna/take.bvh"}, "a path relative to the data set"),
    "key": ({"key": "a/b"}, "recording 'a/b': expected a key that is a file name"),
    "long key": ({"key": "a" * 100}, "of at most 86 bytes"),
    "key again": ({"key": "take_0"}, "recording 'take_0': expected each key once, found this key twice; rename one"),
    "two splits": ({"poses": recording(0).poses, "trans": recording(0).trans, "expressions": recording(0).expressions,
                    "samples": recording(0).samples, "betas": recording(0).betas, "split": "val"},
                   "no split but val, found the same content in 'take_0' (train); remove one of the two"),
}  # fmt: skip


def nan_in(array: str, frame: int, column: int) -> dict[str, Any]:
    changed = np.array(getattr(recording(1), array))
    changed[frame, column] = np.nan
    return {array: changed}


class TestFaults:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_each_is_one_line_that_names_the_recording_and_nothing_is_written(self, tmp_path: Path, fault: str) -> None:
        changes, expected = FAULTS[fault]
        faulty = recording(1, **changes)
        with pytest.raises(DataError) as raised:
            omniges.write_shards([recording(0), faulty], tmp_path / "s")
        line = str(raised.value)
        assert line.startswith(f"recording {faulty.key!r}: ")
        assert expected in line
        assert "\n" not in line
        assert not (tmp_path / "s").exists()

    @pytest.mark.parametrize(("array", "frame", "column"), [("poses", 5, 100), ("trans", 35, 2), ("expressions", 0, 7)])
    def test_nan_is_named_by_array_frame_and_column(self, tmp_path: Path, array: str, frame: int, column: int) -> None:
        with pytest.raises(
            DataError, match=f"'take_1': expected .*{array}: nan at frame {frame}, column {column}, 1 such"
        ):
            omniges.write_shards([recording(0), recording(1, **nan_in(array, frame, column))], tmp_path / "s")

    def test_arguments_that_cannot_be_are_refused(self, tmp_path: Path) -> None:
        for recordings, options in (
            ([], {}),
            ([{"key": "a"}], {}),
            ([recording()], {"loudness": "loud"}),
            ([recording()], {"shard_bytes": 0}),
            ([recording()], {"max_length_mismatch_s": -1}),
        ):
            with pytest.raises(UsageFault):
                omniges.write_shards(recordings, tmp_path / "s", **options)  # type: ignore[arg-type]
            assert not (tmp_path / "s").exists()

    def test_what_the_iterable_raises_comes_through_and_nothing_stays(self, tmp_path: Path) -> None:
        def broken() -> Iterator[omniges.Recording]:
            yield recording()
            raise KeyError("mine")

        (tmp_path / "s").mkdir()
        with pytest.raises(KeyError, match="mine"):
            omniges.write_shards(broken(), tmp_path / "s")
        assert list((tmp_path / "s").iterdir()) == []


@pytest.fixture(scope="module")
def lacking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lacking") / "s"
    given = [recording(k, key=f"no_{part}", **LACKING[part]) for k, part in enumerate(LACKING)]
    given += [recording(20, key="sound", **NO_MOTION), recording(21, key="whole")]
    omniges.write_shards(given, out, keep_audio=True)
    return out


class TestAbsentInOtherTools:
    def test_a_sample_named_twice_is_exported_and_counted_once(self, lacking: Path, tmp_path: Path) -> None:
        first = ShardFolder(lacking).rows[0]
        summary = export(lacking, tmp_path / "e", [first.key, first.stem, first.key])
        assert summary.samples == 1

    def test_export_invents_nothing(self, lacking: Path, tmp_path: Path) -> None:
        summary = export(lacking, tmp_path / "e")
        assert (summary.with_motion, summary.with_text, summary.with_audio) == (11, 11, 11)
        for ending, without in (("npz", "sound"), ("TextGrid", "no_text"), ("wav", "no_audio")):
            written = {path.stem for path in tmp_path.rglob(f"*.{ending}")}
            assert written == {row.stem for row in ShardFolder(lacking).rows} - {without}

        def motion(key: str) -> dict[str, Any]:
            with np.load(tmp_path / f"e/smplxflame_30/{key}.npz", allow_pickle=False) as found:
                return dict(found)

        assert "expressions" not in motion("no_face")
        assert "trans" not in motion("no_root")
        for part, columns in (("hands", [*range(75, 165)]), ("jaw_eyes", [*range(66, 75)])):
            nan = np.isnan(motion(f"no_{part}")["poses"])
            assert nan[:, columns].all()
            assert not np.delete(nan, columns, axis=1).any()
        assert np.isnan(motion("no_lower")["poses"][:, :3]).all()
        whole = motion("whole")
        assert np.abs(whole["expressions"] - recording(21).expressions).max() < 1e-5
        assert not np.isnan(whole["poses"]).any()

    @pytest.mark.slow
    def test_inspect_shows_and_draws_what_is_there(self, lacking: Path) -> None:
        pytest.importorskip("matplotlib")
        source = ShardFolder(lacking)
        for row in source.rows:
            sample, text = source.sample(row), io.StringIO()
            print_sample(sample, Console(file=text, width=200))
            assert ("absent" in text.getvalue()) == (not {*GESTURE_PARTS} <= {*row.present})
            json.dumps(sample_facts(sample), allow_nan=False)
            assert draw(sample).startswith(b"\x89PNG")


class TestReplacing:
    def test_a_complete_set_is_replaced_by_force_alone(self, tmp_path: Path) -> None:
        out = tmp_path / "s"
        omniges.write_shards([recording(0), recording(1)], out)
        before = digests(out)
        with pytest.raises(UsageFault, match="force=True"):
            omniges.write_shards(iter([recording(2)]), out)
        assert digests(out) == before
        omniges.write_shards([recording(2)], out, force=True)
        omniges.write_shards([recording(2)], tmp_path / "new")
        assert digests(out) == digests(tmp_path / "new")

    def test_a_fault_leaves_the_earlier_set_as_it_was(self, tmp_path: Path) -> None:
        out = tmp_path / "s"
        omniges.write_shards([recording(0)], out)
        before = digests(out)
        with pytest.raises(DataError):
            omniges.write_shards([recording(0), recording(1, frame_rate_hz=None)], out, force=True)
        assert digests(out) == before

    def test_an_unfinished_run_of_preprocess_is_not_thrown_away(self, corpus: Path, tmp_path: Path) -> None:
        out = tmp_path / "s"
        run_preprocess(corpus, out)
        begun = {"settings": {"convert": {}}, "tool": {}, "anew": False}
        (out / UNFINISHED_FILE).mkdir()
        (out / UNFINISHED_FILE / "begun.json").write_text(json.dumps(begun))
        for path in out.glob("*.*"):
            if path.is_file():
                path.unlink()
        with pytest.raises(UsageFault, match="expected no unfinished run of another command"):
            omniges.write_shards([recording()], out)
        assert (out / UNFINISHED_FILE / "begun.json").exists()
        omniges.write_shards([recording()], out, force=True)
        assert findings(out) == []

    def test_preprocess_does_not_update_such_a_set(self, corpus: Path, tmp_path: Path) -> None:
        omniges.write_shards([recording()], tmp_path / "s")
        with pytest.raises(UsageFault, match='written_by was "write_shards"'):
            run_preprocess(corpus, tmp_path / "s")

    def test_files_of_others_and_other_runs_are_left_alone(self, tmp_path: Path) -> None:
        out = tmp_path / "s"
        out.mkdir()
        (out / "manifest.parquet").write_bytes(b"mine")
        with pytest.raises(UsageFault, match="not from an omniges run"):
            omniges.write_shards([recording()], out)
        (out / "manifest.parquet").unlink()
        with locked(out), pytest.raises(EnvironmentFault, match="another omniges run"):
            omniges.write_shards([recording()], out)
        assert list(out.iterdir()) == []


ORDERED = [
    recording(0, labels={"mood": "calm"}),
    recording(1, split="val", words=None),
    recording(2, labels={"scene": "talk"}, expressions=None),
    recording(3, split="test", absent=("hands",)),
    recording(4, split="additional", key="Ünï"),
]


class TestDeterminism:
    @settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(order=st.permutations(range(5)), whole=st.booleans())
    def test_bytes_do_not_depend_on_the_order_of_the_iteration(
        self, tmp_path: Path, order: list[int], whole: bool
    ) -> None:
        if not (tmp_path / "first").exists():
            omniges.write_shards(ORDERED, tmp_path / "first", keep_audio=True, shard_bytes=150_000)
        out = tmp_path / "other"
        shutil.rmtree(out, ignore_errors=True)
        given = [ORDERED[k] for k in order]
        omniges.write_shards(given if whole else iter(given), out, keep_audio=True, shard_bytes=150_000)
        assert digests(out) == digests(tmp_path / "first")

    def test_the_first_of_the_orders_is_sound(self, tmp_path: Path) -> None:
        omniges.write_shards(ORDERED, tmp_path / "s", keep_audio=True, shard_bytes=150_000)
        assert findings(tmp_path / "s") == []
