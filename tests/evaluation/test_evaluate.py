"""`evaluate` from files: recordings score as recordings, known changes score what they are, faults are one line."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from evaluate_builders import put, put_mel, scored, shards_of, task_of, write
from pipeline_helpers import omniges

from omniges.errors import DataError, UsageFault
from omniges.evaluation import run
from omniges.evaluation.report import Report, TaskReport, render
from omniges.evaluation.results import _stem_of
from omniges.evaluation.scores import Figure
from omniges.evaluation.settings import EvaluateSettings
from omniges.features.body import GENERIC
from omniges.formats.npz import decode_motion, encode_motion
from omniges.formats.textgrid import WordInterval, encode_words
from omniges.metrics.gesture import scored_poses
from omniges.metrics.profiles import PROFILES
from omniges.pipeline.export import motion_file, text_file
from omniges.shards.reader import SampleArrays, ShardFolder


def _toes_near_the_floor(joints: np.ndarray[Any, Any]) -> tuple[int, int]:
    """Toe frames below 2.5 cm over the toe's 5th percentile, and all that a step begins at."""
    near = 0
    for toe in (10, 11):
        heights = joints[:, toe, 1]
        near += sum(height - np.percentile(heights, 5) < 0.025 for height in heights[:-1])
    return int(near), 2 * (len(joints) - 1)


@pytest.fixture(scope="module")
def with_audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards that kept the audio."""
    return shards_of(tmp_path_factory.mktemp("evaluate"), keep_audio=True)


class TestGesture:
    def test_recordings_score_as_recordings(self, with_audio: Path, tmp_path: Path) -> None:
        samples = write(tmp_path / "own", with_audio, motion_file, ".npz")
        found = scored(tmp_path / "own", with_audio, task="a2g")
        assert found["Fréchet gesture distance", "generated"].value == pytest.approx(0, abs=1e-6)
        assert found["semantic recall", "generated"].value == pytest.approx(1)
        for metric in ("L1 diversity", "beat consistency", "jerk", "foot skate", "root drift, end"):
            own, true = (found[metric, row].value for row in ("generated", "recorded"))
            assert own == pytest.approx(true, rel=2e-3), metric
        assert found["semantic recall", "generated"].details == {"joints": 55, "annotated": len(samples)}
        motions = [decode_motion(motion_file(sample)) for sample in samples]
        near = [_toes_near_the_floor(GENERIC.joints(one.poses, one.trans)) for one in motions]
        assert found["foot skate", "generated"].details["contact_share"] == pytest.approx(
            sum(count for count, _ in near) / sum(frames for _, frames in near)
        )
        poses = [motion.poses for motion in motions]
        total = frames = 0.0
        for each in poses:  # the formula of docs/reference/metrics.md, frame by frame
            joints = GENERIC.joints(
                scored_poses(each, PROFILES["corrected"].positions), np.zeros((len(each), 3))
            ).reshape(len(each), -1)
            centre = joints.mean(axis=0)
            total += sum(float(np.abs(frame - centre).sum()) for frame in joints)
            frames += len(each)
        assert found["L1 diversity", "generated"].value == pytest.approx(total / frames, rel=1e-6)

    def test_standing_still_has_no_diversity_and_no_beats(self, with_audio: Path, tmp_path: Path) -> None:
        def still(sample: SampleArrays) -> bytes:
            motion = decode_motion(motion_file(sample))
            poses, trans = np.zeros_like(motion.poses), np.tile(motion.trans[:1], (len(motion.trans), 1))
            return encode_motion(
                poses, motion.expressions, trans, motion.betas, gender=motion.gender, model=motion.model
            )

        write(tmp_path / "still", with_audio, still, ".npz")
        found = scored(tmp_path / "still", with_audio, task="t2g")
        assert found["L1 diversity", "generated"].value == pytest.approx(0, abs=1e-9)
        assert found["beat consistency", "generated"].value == 0
        assert found["beat consistency", "shuffled"].value == 0
        assert (found["beat consistency", "recorded"].value or 0) > 0
        assert (found["Fréchet gesture distance", "generated"].value or 0) > 0.1
        assert found["root drift, end", "generated"].value == 0

    def test_what_needs_the_waveform_or_a_body_says_so(self, tmp_path: Path) -> None:
        shards = shards_of(tmp_path, keep_audio=False)
        write(tmp_path / "own", shards, motion_file, ".npz")
        found = scored(tmp_path / "own", shards, task="a2g")
        assert found["beat consistency", "generated"].value is None
        assert found["beat consistency", "generated"].why_not == (
            "no audio in these shards; run preprocess with --keep-audio"
        )
        assert "vertices" in str(found["face MSE", "generated"].why_not)

    @pytest.mark.parametrize("extra", [1, 900, 901])
    def test_motion_longer_than_its_recording_is_cut_or_is_not_of_it(
        self, shards: Path, tmp_path: Path, extra: int
    ) -> None:
        """Audio, which generated motion is as long as, often goes on where the recorded motion has ended."""

        def longer(sample: SampleArrays) -> bytes:
            motion = decode_motion(motion_file(sample))
            arrays = [np.concatenate([a] * 9)[: len(a) + extra] for a in (motion.poses, motion.expressions)]
            trans = np.concatenate([motion.trans] * 9)[: len(motion.trans) + extra]
            return encode_motion(*arrays, trans, motion.betas, gender="neutral", model="smplx2020")

        write(tmp_path / "own", shards, longer, ".npz")
        if extra > 900:
            with pytest.raises(DataError, match=r"expected about 4\.0 s, the length of the recording, found 34\.0 s"):
                scored(tmp_path / "own", shards, task="a2g")
        else:
            found = scored(tmp_path / "own", shards, task="a2g")
            assert found["semantic recall", "generated"].value == pytest.approx(1)

    def test_seams_stand_beside_the_recordings_at_the_same_moments(self, shards: Path, tmp_path: Path) -> None:
        seam, source = 60, ShardFolder(shards)
        above = []
        for row in source.rows:
            motion = decode_motion(motion_file(source.sample(row)))
            away = motion.trans.copy()
            away[seam:] += 1.0
            jumped = encode_motion(
                motion.poses, motion.expressions, away, motion.betas, gender="neutral", model="smplx2020"
            )
            put(tmp_path / "made", shards, row.key, "a2g", {".npz": jumped}, seams_s=(seam / 30,))
            steps = np.diff(GENERIC.joints(motion.poses, motion.trans), axis=0)
            speeds = np.sqrt(np.square(steps).sum(axis=2).mean(axis=1))
            above.append(speeds[seam - 1] > np.percentile(np.delete(speeds, seam - 1), 99))
        found = scored(tmp_path / "made", shards)
        assert found["seams, velocity", "generated"].value == 1
        assert found["seams, acceleration", "generated"].value == 1
        assert found["seams, velocity", "recorded"].value == pytest.approx(np.mean(above))
        assert found["seams, acceleration", "recorded"].details["values"] == 2 * len(source.rows)

    def test_features_from_files_give_the_distance_and_nothing_is_encoded(self, shards: Path, tmp_path: Path) -> None:
        write(tmp_path / "own", shards, motion_file, ".npz")
        rng = np.random.default_rng(3)
        generated, true = rng.normal(size=(40, 5)), rng.normal(1.0, 2.0, size=(30, 5))
        files = tmp_path / "made.npy", tmp_path / "true.npy"
        for path, rows in zip(files, (generated, true), strict=True):
            np.save(path, rows)
        task = task_of(tmp_path / "own", shards, task="a2g", features=files)
        found = {(figure.metric, figure.row): figure for figure in task.figures}
        figure = found["Fréchet gesture distance", "generated"]
        first, second = np.cov(generated.T), np.cov(true.T)
        means = np.square(generated.mean(axis=0) - true.mean(axis=0)).sum()
        root = np.real(scipy.linalg.sqrtm(first @ second))
        assert figure.value == pytest.approx(means + np.trace(first + second - 2 * root), rel=1e-6)
        assert figure.details["rows"] == [40, 30]
        assert figure.details["encoder"].startswith("features:made.npy:")
        assert (figure.low, figure.high) == (None, None)
        assert found["Fréchet gesture distance", "recorded"].why_not == "--features has none of the train split"
        assert found["L1 diversity", "generated"].value is not None

    def test_features_that_do_not_say_of_what_are_refused(self, shards: Path, tmp_path: Path) -> None:
        write(tmp_path / "own", shards, motion_file, ".npz")
        write(tmp_path / "text", shards, text_file, ".TextGrid")
        for name, shape in (("a", (9, 4)), ("b", (9, 5)), ("one", (1, 4))):
            np.save(tmp_path / f"{name}.npy", np.zeros(shape))
        (tmp_path / "damaged.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-8])

        def refused(kind: type[Exception], match: str, own: str = "own", task: str = "a2g", **more: Any) -> None:
            settings = {"features": (tmp_path / "a.npy", tmp_path / "a.npy")} | more
            with pytest.raises(kind, match=match):
                task_of(tmp_path / own, shards, task=task, **settings)

        refused(
            UsageFault,
            "expected features of one encoder, found 4 columns in",
            features=(tmp_path / "a.npy", tmp_path / "b.npy"),
        )
        refused(UsageFault, "the file does not exist", features=(tmp_path / "a.npy", tmp_path / "none.npy"))
        refused(DataError, "one.npy", features=(tmp_path / "a.npy", tmp_path / "one.npy"))
        refused(DataError, "damaged.npy", features=(tmp_path / "a.npy", tmp_path / "damaged.npy"))
        refused(
            UsageFault, "features: expected only without gesture_encoder", gesture_encoder=tmp_path / "e.safetensors"
        )
        refused(UsageFault, "exactly one task that generates gesture, found none", own="text", task="a2t")

    def test_a_short_result_is_scored_where_it_can_be_and_said_to_be_short(self, shards: Path, tmp_path: Path) -> None:
        def short(sample: SampleArrays) -> bytes:
            motion = decode_motion(motion_file(sample))
            frames = 20 if sample.row.key.startswith("1") else len(motion.poses)
            arrays = [a[:frames] for a in (motion.poses, motion.expressions, motion.trans)]
            return encode_motion(*arrays, motion.betas, gender="neutral", model="smplx2020")

        samples = write(tmp_path / "own", shards, short, ".npz")
        task = task_of(tmp_path / "own", shards, task="a2g")
        found = {(figure.metric, figure.row): figure for figure in task.figures}
        few = sum(sample.row.key.startswith("1") for sample in samples)
        assert found["Fréchet gesture distance", "generated"].left_out == {"expected 32 or more rows, found 20": few}
        assert found["L1 diversity", "generated"].results == len(samples)
        seconds = [20 / 30 if s.row.key.startswith("1") else s.row.frames / 30 for s in samples]
        assert task.seconds == pytest.approx(sum(seconds))
        assert task.recorded_seconds == pytest.approx(sum(s.row.seconds for s in samples))
        table = render(Report(tasks={"a2g": task}, facts={}), "table")
        assert f"Fréchet gesture distance: without {few} × expected 32 or more rows, found 20" in table

    def test_train_recordings_that_an_encoder_fails_on_are_counted(
        self, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Picky:
            """Takes all but the first clip, which is one of the train split."""

            name = "picky"
            calls = 0

            def encode(self, poses: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
                self.calls += 1
                if self.calls == 1:
                    raise DataError("picky: no memory for this one")
                return np.asarray(poses[:32, :8], np.float64)

        monkeypatch.setattr(run, "load_encoder", lambda _path, **_: Picky())
        source = ShardFolder(shards)
        row = next(row for row in source.rows if row.split == "test")
        (tmp_path / "own").mkdir()
        (tmp_path / "own" / f"{row.key}.npz").write_bytes(motion_file(source.sample(row)))
        task = task_of(tmp_path / "own", shards, task="a2g", gesture_encoder=tmp_path / "picky.safetensors")
        (figure,) = [one for one in task.figures if one.row == "recorded" and one.metric.startswith("Fréchet")]
        train = sum(row.split == "train" for row in source.rows)
        assert (figure.results, figure.left_out) == (train - 1, {"no memory for this one": 1})
        table = render(Report(tasks={"a2g": task}, facts={}), "table")
        assert "Fréchet gesture distance, recorded: without 1 × no memory for this one" in table


class TestText:
    def test_recorded_words_have_no_error_and_others_words_have(self, shards: Path, tmp_path: Path) -> None:
        write(tmp_path / "own", shards, text_file, ".TextGrid")
        found = scored(tmp_path / "own", shards, task="a2t")
        assert found["word error rate", "generated"].value == 0
        assert found["character error rate", "generated"].value == 0
        assert found["word start error, median", "generated"].value == pytest.approx(0, abs=1e-9)
        assert (found["word error rate", "shuffled"].value or 0) > 0.2

    def test_a_word_left_out_of_every_clip_is_so_many_deletions(self, shards: Path, tmp_path: Path) -> None:
        def shorter(sample: SampleArrays) -> bytes:
            words = [WordInterval(word["word"], word["start"] + 0.02, word["end"]) for word in sample.words[1:]]
            return encode_words(words, sample.row.seconds)

        samples = write(tmp_path / "own", shards, shorter, ".TextGrid")
        found = scored(tmp_path / "own", shards, task="g2t")
        words = sum(len(sample.words) for sample in samples)
        rate = found["word error rate", "generated"]
        assert rate.value == pytest.approx(len(samples) / words)
        assert (rate.details["deletions"], rate.details["expected"]) == (len(samples), words)
        assert found["word start error, median", "generated"].value == pytest.approx(0.02, abs=1e-6)

    @pytest.mark.parametrize("extra_s", [29.9, 30.1])
    def test_words_far_beyond_the_recording_are_those_of_another(
        self, shards: Path, tmp_path: Path, extra_s: float
    ) -> None:
        def longer(sample: SampleArrays) -> bytes:
            words = [WordInterval(word["word"], word["start"], word["end"]) for word in sample.words]
            end_s = sample.row.seconds + extra_s
            return encode_words([*words, WordInterval("beyond", end_s - 0.1, end_s)], end_s)

        write(tmp_path / "own", shards, longer, ".TextGrid")
        if extra_s > 30:
            with pytest.raises(
                DataError, match=r"expected about 4\.0 s, the length of the recording, found 34\.1 s, so it was not"
            ):
                scored(tmp_path / "own", shards, task="a2t")
        else:
            assert scored(tmp_path / "own", shards, task="a2t")["word error rate", "generated"].value == 0

    def test_words_missing_at_the_end_of_files_without_records_are_deletions(
        self, shards: Path, tmp_path: Path
    ) -> None:
        def first(sample: SampleArrays) -> bytes:
            word = sample.words[0]
            return encode_words([WordInterval(word["word"], word["start"], word["end"])], word["end"])

        samples = write(tmp_path / "own", shards, first, ".TextGrid")
        rate = scored(tmp_path / "own", shards, task="a2t")["word error rate", "generated"]
        words = sum(len(sample.words) for sample in samples)
        assert (rate.details["deletions"], rate.details["expected"]) == (words - len(samples), words)


class TestSpeech:
    def test_a_gain_is_its_logarithm_and_no_distortion(self, shards: Path, tmp_path: Path) -> None:
        source = ShardFolder(shards)
        for row in source.rows:
            sample = source.sample(row)
            put_mel(tmp_path / "own", shards, sample, sample.mel + 0.5)
        found = scored(tmp_path / "own", shards)
        assert found["log-mel L1", "generated"].value == pytest.approx(0.5, abs=1e-6)
        assert found["mel-cepstral distortion", "generated"].value == pytest.approx(0, abs=1e-5)
        assert found["onset agreement", "generated"].value == 1
        assert found["log-mel L1", "generated"].details["of"] == "the model's mel"
        assert (found["log-mel L1", "shuffled"].value or 0) > 0.5

    def test_a_file_that_is_not_what_its_record_says_is_refused(self, shards: Path, tmp_path: Path) -> None:
        source = ShardFolder(shards)
        sample = source.sample(source.rows[0])
        put_mel(tmp_path / "own", shards, sample, sample.mel)
        path = tmp_path / "own" / f"{sample.row.key}.mel.npy"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"expected the sha256 in .*json, found another"):
            scored(tmp_path / "own", shards)
        path.unlink()
        with pytest.raises(DataError, match="expected a generated file, found none"):
            scored(tmp_path / "own", shards)

    def test_a_mel_that_is_no_number_is_refused_and_not_left_out(self, shards: Path, tmp_path: Path) -> None:
        """Left out, it would make the others' mean look better than the system is."""
        source = ShardFolder(shards)
        for number, row in enumerate(source.rows):
            sample = source.sample(row)
            put_mel(tmp_path / "own", shards, sample, sample.mel * (np.nan if number == 0 else 1))
        with pytest.raises(DataError, match=r"\.mel\.npy: expected finite mel values, found NaN or infinite ones"):
            scored(tmp_path / "own", shards)


def test_a_face_that_another_tool_did_not_make_is_not_scored(shards: Path, tmp_path: Path) -> None:
    def faceless(sample: SampleArrays) -> bytes:
        motion, buffer = decode_motion(motion_file(sample)), io.BytesIO()
        np.savez(buffer, poses=motion.poses, trans=motion.trans, betas=motion.betas, mocap_frame_rate=30)
        return buffer.getvalue()

    write(tmp_path / "own", shards, faceless, ".npz")
    found = scored(tmp_path / "own", shards, task="a2g")
    assert found["semantic recall", "generated"].value == pytest.approx(1)
    assert found["face MSE", "generated"].value is None


def test_motion_without_a_rate_is_scored_with_the_rate_that_is_given(shards: Path, tmp_path: Path) -> None:
    def nameless(sample: SampleArrays) -> bytes:
        motion, buffer = decode_motion(motion_file(sample)), io.BytesIO()
        np.savez(buffer, poses=motion.poses, trans=motion.trans, betas=motion.betas, expressions=motion.expressions)
        return buffer.getvalue()

    write(tmp_path / "own", shards, motion_file, ".npz")
    expected = scored(tmp_path / "own", shards, task="a2g")
    write(tmp_path / "other", shards, nameless, ".npz")
    with pytest.raises(DataError, match="npz-no-rate"):
        scored(tmp_path / "other", shards, task="a2g")
    assert scored(tmp_path / "other", shards, task="a2g", motion_rate_hz=30) == expected
    with pytest.raises(UsageFault, match="motion_rate_hz: expected only without checkpoint"):
        EvaluateSettings(checkpoint=tmp_path, motion_rate_hz=30)


class TestNamesOfOtherTools:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["res_{}", "{}_output", "res_{}_output", "gt_{}"])
    def test_results_are_found_by_stem(self, shards: Path, tmp_path: Path, name: str) -> None:
        samples = write(tmp_path / "own", shards, motion_file, ".npz")
        expected = scored(tmp_path / "own", shards, task="a2g")
        for sample in samples:
            key = sample.row.key
            (tmp_path / "own" / f"{key}.npz").rename(tmp_path / "own" / f"{name.format(key)}.npz")
        assert scored(tmp_path / "own", shards, task="a2g") == expected

    def test_ground_truth_beside_results_is_no_second_result(self, shards: Path, tmp_path: Path) -> None:
        samples = write(tmp_path / "own", shards, motion_file, ".npz")
        for sample in samples:
            file = tmp_path / "own" / f"{sample.row.key}.npz"
            file.with_name(f"res_{file.name}").write_bytes(file.read_bytes())
            file.rename(file.with_name(f"gt_{file.name}"))
        report = task_of(tmp_path / "own", shards, task="a2g")
        assert report.results == len(samples)
        first = tmp_path / "own" / f"{samples[0].row.key}.npz"
        first.write_bytes(first.with_name(f"res_{first.name}").read_bytes())
        with pytest.raises(UsageFault, match=r"expected one file of .*, found two"):
            task_of(tmp_path / "own", shards, task="a2g")

    def test_a_recording_that_is_called_so_comes_first(self) -> None:
        rows: Any = dict.fromkeys(["res_a", "a", "gt_b", "j\u00f6rg"])
        found = [_stem_of(name, rows) for name in ("res_a", "res_res_a", "gt_b", "a_output", "res_jo\u0308rg", "res_z")]
        assert found == ["res_a", "res_a", "gt_b", "a", "j\u00f6rg", "res_z"]

    def test_what_macos_leaves_beside_files_is_passed_by(self, shards: Path, tmp_path: Path) -> None:
        samples = write(tmp_path / "own", shards, motion_file, ".npz")
        expected = scored(tmp_path / "own", shards, task="a2g")
        for name in (f"._{samples[0].row.key}.npz", "._x.json", ".DS_Store", "._x.wav"):
            (tmp_path / "own" / name).write_bytes(b"\0\5\x16\7")
        assert scored(tmp_path / "own", shards, task="a2g") == expected


class TestRefusals:
    def test_names_that_are_no_samples(self, shards: Path, tmp_path: Path) -> None:
        (tmp_path / "nobody.npz").write_bytes(b"")
        with pytest.raises(UsageFault, match=r"expected a sample nobody in .*, found none"):
            scored(tmp_path, shards, task="a2g")

    def test_files_without_a_task(self, shards: Path, tmp_path: Path) -> None:
        write(tmp_path / "own", shards, motion_file, ".npz")
        with pytest.raises(UsageFault, match=r"a record \(\.json\) with its task, found none; add --task"):
            scored(tmp_path / "own", shards)

    def test_nothing_generated(self, shards: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageFault, match="expected generated results, found none"):
            scored(tmp_path, shards)

    @pytest.mark.parametrize("name", ["emage-2024", "emage-eval-2025"])
    def test_published_profiles_without_their_parts(self, shards: Path, tmp_path: Path, name: str) -> None:
        everything = {"body_model": tmp_path, "gesture_encoder": tmp_path, "mean_speeds": tmp_path}
        with pytest.raises(
            UsageFault, match="expected --body-model and --gesture-encoder and --mean-speeds too, because"
        ):
            scored(tmp_path, shards, profile=name)
        for part in everything:
            others = {own: path for own, path in everything.items() if own != part}
            with pytest.raises(UsageFault, match=f"expected --{part.replace('_', '-')} too, because"):
                scored(tmp_path, shards, profile=name, **others)

    def test_an_encoder_that_is_a_program(self, shards: Path, tmp_path: Path) -> None:
        write(tmp_path / "own", shards, motion_file, ".npz")
        with zipfile.ZipFile(
            tmp_path / "encoder.pt", "w"
        ) as archive:  # what torch.jit.save writes, as far as it matters
            archive.writestr("encoder/code/__torch__.py", "")
        with pytest.raises(UsageFault, match="a TorchScript program, which runs with your rights"):
            scored(tmp_path / "own", shards, task="a2g", gesture_encoder=tmp_path / "encoder.pt")
        with pytest.raises(UsageFault, match="trust_encoder_program: expected a gesture_encoder to trust"):
            scored(tmp_path / "own", shards, task="a2g", trust_encoder_program=True)

    def test_mean_speeds_of_another_shape(self, shards: Path, tmp_path: Path) -> None:
        write(tmp_path / "own", shards, motion_file, ".npz")
        for speeds, words in (
            (np.ones(3), r"expected .* \(55,\) floats.*found \(3,\) of float64"),
            (np.ones(55, dtype=np.int64), "floats"),
            (np.where(np.arange(55) == 7, np.nan, 1.0), "found nan for joint 7"),
            (np.where(np.arange(55) == 9, -1.0, 1.0), "found -1.0 for joint 9"),
        ):
            np.save(tmp_path / "speeds.npy", speeds)
            with pytest.raises(DataError, match=words):
                scored(tmp_path / "own", shards, task="a2g", mean_speeds=tmp_path / "speeds.npy")
        (tmp_path / "speeds.npy").write_bytes(b"")
        with pytest.raises(DataError, match=r"expected an \.npy file of \(55,\) floats for (--)?mean.speeds"):
            scored(tmp_path / "own", shards, task="a2g", mean_speeds=tmp_path / "speeds.npy")


def figure(row: Any, value: float | None, **more: Any) -> Figure:
    return Figure(metric="error", unit="s", row=row, value=value, **more)


def test_reports_say_the_same_in_every_form() -> None:
    found = [
        figure("generated", 0.25, low=0.2, high=0.3, recordings=4, results=4, left_out={"too short": 1}),
        figure("shuffled", 0.5, recordings=4, results=4),
        Figure(metric="other", unit="m", row="generated", value=None, why_not="no audio"),
    ]
    task = TaskReport(
        figures=found,
        recordings=["a", "b", "c", "d", "e"],
        results=10,
        splits={"test": (5, 7)},
        seconds=19.5,
        recorded_seconds=20,
    )
    report = Report(tasks={"a2t": task}, facts={"profile": "corrected"}, warnings=["other shards"])
    table = render(report, "table")
    assert "a2t: 5 of 7 test recordings, 10 results, 19.5 of 20.0 s" in table
    assert "0.25 [0.2, 0.3]" in table
    assert "error: without 1 × too short" in table
    assert "other (m)  not computed: no audio" in table
    assert "intervals over 4 recordings are too narrow" in table
    assert "warning: other shards" in table
    document = json.loads(render(report, "json"))
    assert document["tasks"]["a2t"]["figures"][0]["high"] == 0.3
    rows = list(csv.DictReader(io.StringIO(render(report, "csv"))))
    assert [row["value"] for row in rows] == ["0.25", "0.5", ""]
    assert [row["profile"] for row in rows] == ["corrected"] * 3
    assert rows[2]["why_not"] == "no audio"
    markdown = render(report, "markdown")
    assert "| a2t | 5 | 0.25 [0.2, 0.3] |" in markdown
    assert "* other: not computed: no audio" in markdown
    assert "* other shards" in markdown


def test_a_table_fits_a_hundred_columns(with_audio: Path, tmp_path: Path) -> None:
    write(tmp_path / "own", with_audio, motion_file, ".npz")
    task = task_of(tmp_path / "own", with_audio, task="a2g")
    table = render(Report(tasks={"a2g": task}, facts={"shards": str(with_audio)}), "table")
    assert max(map(len, table.splitlines())) <= 100
    assert "Fréchet gesture distance, generated: rows 84 and 84, ranks" in table  # 6 clips of 8 s
    assert "1 of 1 test recordings, 4 of 4 train recordings, 1 of 1 val recordings, 48.0 of 48.0 s" in table


def test_the_command_writes_a_report(shards: Path, tmp_path: Path) -> None:
    write(tmp_path / "own", shards, text_file, ".TextGrid")
    words = ["evaluate", str(tmp_path / "own"), "--shards", str(shards), "--task", "a2t", "--resamples", "20"]
    words += ["--format", "json", "-o", str(tmp_path / "report.json")]
    done = omniges(*words)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert document["tasks"]["a2t"]["figures"][0]["value"] == 0
    assert document["profile"] == "corrected"
    assert document["profile_settings"]["beats"]["threshold"] == 0.1
    assert document["profile_settings"]["semantic"]["weights"] == "by-sum"
