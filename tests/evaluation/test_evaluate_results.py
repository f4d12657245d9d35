"""Files to score and files to refuse: one system, complete results, the right recordings, several samples."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluate_builders import npy, put, put_mel, scored, shards_of, task_of, write

from omniges.errors import DataError, UsageFault
from omniges.evaluation.gesture import BeatRows
from omniges.evaluation.report import render
from omniges.evaluation.results import find_results
from omniges.evaluation.run import evaluate
from omniges.evaluation.scores import Heading as Head
from omniges.evaluation.scores import Resampling, Values, figure_of_mean, partners
from omniges.evaluation.settings import EvaluateSettings
from omniges.evaluation.speech import score_text
from omniges.formats.npz import decode_motion, encode_motion
from omniges.formats.textgrid import WordInterval, encode_words
from omniges.metrics.clips import ClipValue, bootstrap
from omniges.metrics.frechet import frechet_distance
from omniges.metrics.profiles import PROFILES
from omniges.pipeline.export import motion_file, text_file
from omniges.pipeline.labels import _LANGUAGES as LANGUAGES
from omniges.shards.reader import SampleArrays, ShardFolder


def samples_of(shards: Path) -> list[SampleArrays]:
    source = ShardFolder(shards)
    return [source.sample(row) for row in source.rows]


def noisy(sample: SampleArrays, seed: int) -> bytes:
    motion = decode_motion(motion_file(sample))
    poses = motion.poses + np.random.default_rng(seed).normal(0, 0.05, motion.poses.shape).astype(np.float32)
    return encode_motion(
        poses, motion.expressions, motion.trans, motion.betas, gender=motion.gender, model=motion.model
    )


class TestSeveralResultsOfARecording:
    def test_each_counts_and_recordings_are_the_unit(self, shards: Path, tmp_path: Path) -> None:
        own = samples_of(shards)
        for sample in own:
            for k in range(3):
                put_mel(
                    tmp_path / "own",
                    shards,
                    sample,
                    sample.mel + 0.1 * (k + 1),
                    name=f"{sample.row.key}-{k + 1}",
                    sample=k,
                )
        task = task_of(tmp_path / "own", shards)
        found = {(figure.metric, figure.row): figure for figure in task.figures}
        figure = found["log-mel L1", "generated"]
        assert figure.value == pytest.approx(0.2, abs=1e-6)
        assert (figure.recordings, figure.results) == (len(own), 3 * len(own))
        assert (task.results, len(task.recordings)) == (3 * len(own), len(own))
        # Every recording has the same mean, so drawing recordings gives no width; drawing results would.
        assert figure.high - figure.low == pytest.approx(0, abs=1e-6)  # type: ignore[operator]
        assert set(figure.by_recording) == {sample.row.key for sample in own}

    def test_none_is_held_against_its_own_recording_in_the_shuffled_row(self, shards: Path, tmp_path: Path) -> None:
        own = samples_of(shards)
        for sample in own:
            for k in range(2):
                put_mel(tmp_path / "own", shards, sample, sample.mel, name=f"{sample.row.key}-{k + 1}", sample=k)
        found = scored(tmp_path / "own", shards)
        assert found["log-mel L1", "generated"].value == 0
        assert min(found["log-mel L1", "shuffled"].by_recording.values()) > 0.1

    @pytest.mark.slow
    def test_the_recordings_side_of_the_frechet_distance_has_each_once(self, shards: Path, tmp_path: Path) -> None:
        for sample in samples_of(shards):
            for k in range(2):
                files = {".npz": noisy(sample, k)}
                put(tmp_path / "own", shards, sample.row.key, "a2g", files, name=f"{sample.row.key}-{k + 1}", sample=k)
        figure = scored(tmp_path / "own", shards)["Fréchet gesture distance", "generated"]
        generated, recorded = figure.details["rows"]
        assert generated == 2 * recorded
        assert figure.low <= figure.value <= figure.high  # type: ignore[operator]

    def test_results_from_a_persons_own_files_belong_to_the_recording_they_are_called_like(
        self, shards: Path, tmp_path: Path
    ) -> None:
        sample = samples_of(shards)[0]
        for k in range(2):
            put_mel(
                tmp_path / "own", shards, sample, sample.mel, name=f"{sample.row.key}-{k + 1}", sample=k, source=None
            )
        task = task_of(tmp_path / "own", shards)
        assert (task.recordings, task.results) == ([sample.row.key], 2)
        shuffled = [figure for figure in task.figures if figure.row == "shuffled"]
        assert not shuffled  # one recording has no other

    def test_what_was_guessed_of_another_tools_motion_is_said(self, shards: Path, tmp_path: Path) -> None:
        samples = samples_of(shards)[:2]
        for sample in samples:
            arrays = dict(np.load(io.BytesIO(motion_file(sample))))
            arrays["expressions"] = arrays["expressions"][:, :10]
            (tmp_path / "own").mkdir(exist_ok=True)
            np.savez(tmp_path / "own" / f"{sample.row.stem}.npz", **arrays)
        report = evaluate(EvaluateSettings(generated=(tmp_path / "own",), shards=shards, task="a2g", resamples=10))
        names = ", ".join(sorted(sample.row.stem for sample in samples))
        assert f"expressions-extended: 10 expressions ({names})" in report.tasks["a2g"].warnings


class TestMixtures:
    def test_two_systems_are_not_averaged(self, shards: Path, tmp_path: Path) -> None:
        write(tmp_path / "one", shards, text_file, ".TextGrid")
        write(tmp_path / "two", shards, text_file, ".TextGrid")
        for folders in ((tmp_path / "one", tmp_path / "two"), (tmp_path,), (tmp_path / "one", tmp_path / "one")):
            with pytest.raises(UsageFault, match="score one system at a time"):
                evaluate(EvaluateSettings(generated=folders, shards=shards, task="a2t"))

    @pytest.mark.parametrize(
        "changes",
        [
            {"model": {"step": 2, "sha256": {"model.safetensors": "b"}}},
            {"settings": {"steps": 50}},
            {"settings": {"seed": 1}},
            {"settings": {"steps": 20, "quantised": False}},
        ],
    )
    def test_results_of_two_models_or_ways_of_sampling_are_refused(
        self, shards: Path, tmp_path: Path, changes: dict[str, Any]
    ) -> None:
        common: dict[str, Any] = {"model": {"step": 1, "sha256": {"model.safetensors": "a"}}, "settings": {"steps": 20}}
        first, second, *_ = samples_of(shards)
        put_mel(tmp_path / "own", shards, first, first.mel, **common)
        put_mel(tmp_path / "own", shards, second, second.mel, **(common | changes))
        with pytest.raises(UsageFault, match="one model with one set of settings"):
            scored(tmp_path / "own", shards)

    def test_speakers_and_bodies_of_results_may_differ(self, shards: Path, tmp_path: Path) -> None:
        for number, sample in enumerate(samples_of(shards)):
            put_mel(tmp_path / "own", shards, sample, sample.mel, settings={"steps": 20, "speaker": str(number)})
        assert scored(tmp_path / "own", shards)["log-mel L1", "generated"].value == 0

    def test_a_key_and_a_stem_of_one_recording(self, shards: Path, tmp_path: Path) -> None:
        sample = samples_of(shards)[0]
        (tmp_path / f"{sample.row.key}.TextGrid").write_bytes(text_file(sample))
        (tmp_path / f"{sample.row.key}.textgrid").write_bytes(text_file(sample))
        found = scored(tmp_path, shards, task="a2t")
        assert found["word error rate", "generated"].results == 1


class TestWholeness:
    def test_a_file_that_no_record_names_was_not_finished(self, shards: Path, tmp_path: Path) -> None:
        first, second, *_ = samples_of(shards)
        put_mel(tmp_path / "own", shards, first, first.mel)
        (tmp_path / "own" / f"{second.row.key}.wav").write_bytes(b"RIFF")
        with pytest.raises(DataError, match=r"\.wav: expected a record \(\.json\) that lists this file, found none"):
            scored(tmp_path / "own", shards)

    def test_a_report_beside_the_results_is_passed_over_and_other_json_is_not(
        self, shards: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "own"
        sample = samples_of(shards)[0]
        put_mel(folder, shards, sample, sample.mel)
        report = evaluate(EvaluateSettings(generated=(folder,), shards=shards))
        (folder / "report.json").write_text(render(report, "json"))
        assert scored(folder, shards)["log-mel L1", "generated"].value == 0
        (folder / "notes.json").write_text("{}")
        with pytest.raises(DataError, match="not a record of omniges generate"):
            scored(folder, shards)

    def test_a_forged_mel_allocates_nothing(self, shards: Path, tmp_path: Path) -> None:
        sample = samples_of(shards)[0]
        header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 64), }"
        put(tmp_path / "own", shards, sample.row.key, "t2a", {".mel.npy": header.ljust(127) + b"\n"})
        with pytest.raises(DataError, match=r"expected 25599999999744 bytes"):
            scored(tmp_path / "own", shards)

    @pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9])
    def test_files_that_were_cut_are_one_line(self, shards: Path, tmp_path: Path, share: float) -> None:
        for kind, content, ending, task in (
            ("motion", motion_file, ".npz", "a2g"),
            ("text", text_file, ".TextGrid", "a2t"),
        ):
            write(tmp_path / kind, shards, lambda s, c=content: c(s)[: int(len(c(s)) * share)], ending)  # type: ignore[misc]
            with pytest.raises(DataError, match=rf"{kind}/.*\{ending}: ") as caught:
                scored(tmp_path / kind, shards, task=task)
            assert "\n" not in str(caught.value)

    def test_two_kinds_of_file_are_needed_where_a_task_makes_two(self, shards: Path, tmp_path: Path) -> None:
        write(tmp_path / "own", shards, motion_file, ".npz")
        with pytest.raises(DataError, match=r"expected a \.TextGrid file beside it for task joint"):
            scored(tmp_path / "own", shards, task="unconditional")


class TestRightRecordings:
    def test_a_task_that_records_contradict(self, shards: Path, tmp_path: Path) -> None:
        sample = samples_of(shards)[0]
        put_mel(tmp_path / "own", shards, sample, sample.mel)
        assert scored(tmp_path / "own", shards, task="t2a")["log-mel L1", "generated"].value == 0
        with pytest.raises(UsageFault, match="expected a result of --task a2g, found one of t2a; remove --task"):
            scored(tmp_path / "own", shards, task="a2g")

    def test_one_window_of_motion_has_no_covariance(self, shards: Path, tmp_path: Path) -> None:
        """Two results of 40 frames are two rows, but their recording is one."""
        sample = samples_of(shards)[0]
        motion = decode_motion(motion_file(sample))
        arrays = [array[:40] for array in (motion.poses, motion.expressions, motion.trans)]
        content = encode_motion(*arrays, motion.betas, gender="neutral", model="smplx2020")
        for k in range(2):
            name = f"{sample.row.key}-{k + 1}"
            put(tmp_path / "own", shards, sample.row.key, "a2g", {".npz": content}, name=name, sample=k)
        figure = scored(tmp_path / "own", shards)["Fréchet gesture distance", "generated"]
        assert figure.why_not == "fewer than two rows of features"

    def test_tasks_by_any_order_of_letters_and_none_else(self, shards: Path, tmp_path: Path) -> None:
        write(tmp_path / "own", shards, text_file, ".TextGrid")
        report = evaluate(EvaluateSettings(generated=(tmp_path / "own",), shards=shards, task="ga2t"))
        assert list(report.tasks) == ["ag2t"]
        with pytest.raises(UsageFault, match="--task a3t: expected one of"):
            scored(tmp_path / "own", shards, task="a3t")

    def test_results_made_from_other_data_of_the_same_name(self, shards: Path, tmp_path: Path) -> None:
        sample = samples_of(shards)[0]
        key, digest = sample.row.key, sample.row.members["words.txt"].sha256
        given = {"stream": "text", "path": f"x.tar#{key}.words.txt", "sha256": digest, "remarks": []}
        put_mel(tmp_path / "same", shards, sample, sample.mel, inputs=(given,))
        assert scored(tmp_path / "same", shards)["log-mel L1", "generated"].value == 0
        put_mel(tmp_path / "other", shards, sample, sample.mel, inputs=(given | {"sha256": "0" * 64},))
        with pytest.raises(DataError, match=r"expected a result whose input was the words\.txt of"):
            scored(tmp_path / "other", shards)

    def test_unconditional_results_are_held_against_no_recording(self, shards: Path, tmp_path: Path) -> None:
        for sample in samples_of(shards):
            files = {".npz": motion_file(sample), ".TextGrid": text_file(sample), ".mel.npy": npy(sample.mel)}
            put(tmp_path / "own", shards, sample.row.key, "joint", files)
        found = scored(tmp_path / "own", shards)
        compared = (
            "beat consistency",
            "semantic recall",
            "face MSE",
            "word error rate",
            "log-mel L1",
            "onset agreement",
        )
        for metric in compared:
            assert found[metric, "generated"].value is None
            assert "generated without a condition" in str(found[metric, "generated"].why_not)
        assert found["Fréchet gesture distance", "generated"].value == pytest.approx(0, abs=1e-6)


class TestFairness:
    def test_partners_are_never_oneself(self) -> None:
        for count in range(2, 9):
            keys = [f"k{n}" for n in range(count)]
            for seed in range(20):
                found = partners(keys, seed)
                assert sorted(found.values()) == keys
                assert all(key != other for key, other in found.items())
        assert partners(["one"], 0) == {}

    def test_a_longer_recordings_sound_is_cut_to_the_motion_it_is_shuffled_to(self) -> None:
        """Onsets after the end of a motion would find no beat, and make the baseline lower than it is."""
        settings = PROFILES["corrected"].beats
        rows = BeatRows(settings, np.ones(55))
        short, long = (np.array([30, 60]),) * 13, (np.array([30, 60, 300, 330]),) * 13
        rows._audio = {"a": (220, np.array([1.0, 2.0])), "b": (520, np.array([1.0, 2.0, 10.0, 11.0]))}
        rows._motion = [("a", 220, short), ("b", 520, long)]
        rows._shuffle(0)
        a, b = rows._rows["shuffled"].found
        assert a.value == pytest.approx(1)
        assert (a.audio_beats, a.weight) == (2, 100)
        assert (b.value, b.audio_beats, b.motion_beats) == (pytest.approx(1), 2, 26)

    def test_text_is_shuffled_over_the_time_that_both_have(self, tmp_path: Path) -> None:
        shards = shards_of(tmp_path, keep_audio=False)
        own = samples_of(shards)
        for sample in own:
            words = [WordInterval(word["word"], word["start"], min(word["end"], 5.0)) for word in sample.words]
            files = {".TextGrid": encode_words(words[: sum(word.start < 4 for word in words)], 5.0)}
            put(tmp_path / "own", shards, sample.row.key, "a2t", files)  # 4 s of 8
        found = scored(tmp_path / "own", shards)
        assert found["word error rate", "generated"].value == 0
        expected = sum(sum(word["start"] < 4 for word in sample.words) for sample in own)
        for row in ("generated", "shuffled"):
            assert found["word error rate", row].details["expected"] == expected

    def test_word_times_are_percentiles_over_all_words(self, shards: Path, tmp_path: Path) -> None:
        rng, errors = np.random.default_rng(0), []

        def late(sample: SampleArrays) -> bytes:
            words = []
            for word in sample.words:
                by = float(rng.uniform(0, 0.05)) * (1 + len(words))
                errors.append(by)
                words.append(WordInterval(word["word"], word["start"] + by, word["end"] + by))
            kept = [WordInterval(a.word, a.start, min(a.end, b.start)) for a, b in itertools.pairwise(words)]
            return encode_words([*kept, words[-1]], sample.row.seconds + 2)

        write(tmp_path / "own", shards, late, ".TextGrid")
        found = scored(tmp_path / "own", shards, task="a2t")
        figure = found["word start error, 90 %", "generated"]
        assert figure.details == {"words": len(errors), "expected": len(errors)}
        assert figure.value == pytest.approx(np.percentile(errors, 90), abs=1e-6)
        assert found["word start error, median", "generated"].value == pytest.approx(np.median(errors), abs=1e-6)

    @pytest.mark.parametrize(("language", "warnings"), [("japanese", 1), ("chinese", 1), ("english", 0), (None, 0)])
    def test_words_of_languages_without_spaces_have_a_warning(
        self, shards: Path, tmp_path: Path, language: str | None, warnings: int
    ) -> None:
        assert language is None or language in LANGUAGES
        write(tmp_path / "own", shards, text_file, ".TextGrid")
        folder = ShardFolder(shards)
        found = find_results((tmp_path / "own",), folder, "a2t")["a2t"]
        results = [replace(one, row=replace(one.row, language=language)) for one in found]
        task = score_text(results, folder, Resampling(seed=0, resamples=5), lambda: None)
        assert [f"{language} recordings: the annotator chose" in warning for warning in task.warnings] == [
            True
        ] * warnings

    def test_a_mean_without_weight_has_no_value_and_is_counted(self) -> None:
        values = Values()
        for key, value, weight in (("a", 1.0, 1.0), ("b", 9.0, 0.0), ("c", 3.0, 3.0)):
            values.keep(key, ClipValue(value, weight))
        figure = figure_of_mean(Head("x", "m"), values, Resampling(seed=0, resamples=100))
        assert figure.value == pytest.approx(2.5)
        assert (figure.recordings, figure.left_out) == (2, {"its weight is 0": 1})
        assert (figure.low, figure.high) == (1.0, 3.0)

    def test_silent_sound_is_scored_and_named(self, shards: Path, tmp_path: Path) -> None:
        for sample in samples_of(shards):
            put_mel(tmp_path / "own", shards, sample, np.full_like(sample.mel, np.log(1e-5)))
        task = task_of(tmp_path / "own", shards)
        assert "results are silent" in task.warnings[0]
        found = {(figure.metric, figure.row): figure for figure in task.figures}
        assert found["onset agreement", "generated"].value == 0


def test_intervals_of_a_frechet_distance_hold_its_value() -> None:
    """Drawn with replacement, sets are poorer and further apart; the draws are shifted back."""
    rng = np.random.default_rng(0)
    generated, recorded = rng.normal(0, 1, (2, 8, 30, 20)) + rng.normal(0, 1, (2, 8, 1, 20))

    def distance(rows: Any) -> float:
        a, b = np.concatenate(generated[rows]), np.concatenate(recorded[rows])
        return frechet_distance(a, b, PROFILES["corrected"].frechet, encoder="").value

    plain = bootstrap(8, distance, seed=0, resamples=60)
    centred = bootstrap(8, distance, seed=0, resamples=60, centred=True)
    assert plain.low > plain.value
    assert centred.low < centred.value < centred.high
    assert centred.high - centred.low == pytest.approx(plain.high - plain.low)
