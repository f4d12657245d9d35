"""A protocol's row has the protocol's clips, cuts and formulas, and names every file that is missing or unknown."""

from __future__ import annotations

import csv
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import published_reference as plain
import pytest
from body_builders import body_arrays, body_file, slow_body
from encoder_builders import by_torch, random_tensors, saved
from evaluate_builders import put, write
from pipeline_helpers import omniges
from sample_set_builders import take, write_takes

from omniges.errors import UsageFault
from omniges.evaluation.motion import load_bodies, recorded_motion
from omniges.evaluation.protocol import PROTOCOLS
from omniges.evaluation.report import Report, render
from omniges.evaluation.run import evaluate
from omniges.evaluation.scores import Figure
from omniges.evaluation.settings import EvaluateSettings
from omniges.exchange.view import view_scores
from omniges.features.gesture import six_d_from_rotvec
from omniges.formats.npz import decode_motion, encode_motion
from omniges.metrics.frechet import frechet_distance, load_encoder
from omniges.metrics.gesture import audio_beats, beat_score, l1_diversity, motion_beats, scored_poses
from omniges.metrics.motion_encoder import PUBLISHED_LAYOUT
from omniges.metrics.profiles import BODY_MODEL, ENCODER, GRIDS, MEAN_SPEEDS, PROFILES
from omniges.options import ShownPart
from omniges.pipeline.export import motion_file
from omniges.pipeline.run import preprocess
from omniges.pipeline.settings import ConvertSettings, PreprocessSettings
from omniges.progress import make_reporter
from omniges.shards.reader import SampleArrays, ShardFolder
from omniges.testing.settings import CorpusSettings
from omniges.testing.synthetic_corpus import write_sample_corpus

FRAMES = 200
PROFILE = PROFILES["emage-2024"]


def shards_of(root: Path, folder: Path) -> Path:
    settings = PreprocessSettings(root=root, output_dir=folder, convert=ConvertSettings(keep_audio=True), num_workers=1)
    preprocess(settings, make_reporter("json"))
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of 8 s, of which three have names of the protocol."""
    folder = tmp_path_factory.mktemp("protocol")
    write_sample_corpus(folder / "corpus", CorpusSettings(clips=6, seconds=8.0, speakers=2, seed=3))
    for path in [path for path in (folder / "corpus").rglob("*") if path.is_file()]:
        if path.suffix == ".csv":
            path.write_text(path.read_text().replace("2_syntheticb", "2_scott"))
        path.rename(path.with_name(path.name.replace("2_syntheticb", "2_scott")))
    return shards_of(folder / "corpus", folder / "shards")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of a published row, with random numbers."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("files")
    saved(folder / ENCODER.name, random_tensors(PUBLISHED_LAYOUT))
    (folder / BODY_MODEL.name).write_bytes(body_file(6))
    np.save(folder / MEAN_SPEEDS.name, np.full(55, 0.1, np.float32))
    return {
        "gesture_encoder": folder / ENCODER.name,
        "body_model": folder / BODY_MODEL.name,
        "mean_speeds": folder / MEAN_SPEEDS.name,
    }


def moved(sample: SampleArrays) -> bytes:
    motion = decode_motion(motion_file(sample))
    noise = np.random.default_rng(len(sample.row.key)).normal(0, 0.02, (FRAMES, 165)).cumsum(axis=0)
    arrays = (motion.poses[:FRAMES] + 0.2 * noise, motion.expressions[:FRAMES], motion.trans[:FRAMES])
    return encode_motion(*arrays, motion.betas, gender="neutral", model="smplx2020")


@pytest.fixture(scope="module")
def results(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of 200 frames for all clips, named as EMAGE's tools name them."""
    folder = tmp_path_factory.mktemp("results") / "res"
    write(folder, shards, moved, ".npz")
    for path in list(folder.iterdir()):
        path.rename(path.with_name(f"res_{path.name}"))
    return folder


@pytest.mark.slow
def test_the_row_is_that_of_a_second_program(results: Path, shards: Path, files: dict[str, Path]) -> None:
    """Torch's layers, scipy's matrix root, a body by loops, and the formulas of `published_reference`."""
    report = report_of(results, shards, grid="emage", **files)
    found, source = figures_of(report), ShardFolder(shards)
    arrays, tensors = body_arrays(6), random_tensors(PUBLISHED_LAYOUT)
    latents: tuple[list[Any], list[Any]] = [], []
    clips, faces = [], []
    for row in [row for row in source.rows if row.stem.startswith("2_scott")]:
        output = decode_motion((results / f"res_{row.key}.npz").read_bytes())
        true = recorded_motion(source, row)
        betas = source.array(row, "betas.npy")
        sides = []
        for side, motion in zip(latents, (output, true), strict=True):
            poses = np.asarray(motion.poses, np.float64)[:184]
            matrices = six_d_from_rotvec(poses[:160].reshape(-1, 3)).reshape(160, 330)
            side.append(by_torch(tensors, PUBLISHED_LAYOUT, matrices))
            jaw = np.zeros((184, 165))
            jaw[:, 66:69] = poses[:, 66:69]
            pairs = zip(motion.expressions[:184], jaw, strict=True)
            sides.append(np.array([slow_body(arrays, betas, *pair, np.zeros(3))[1] for pair in pairs]).reshape(184, -1))
            if side is latents[0]:
                joints = np.array([slow_body(arrays, betas, np.zeros(100), pose, np.zeros(3))[0] for pose in poses])
        samples = source.waveform(row)
        assert samples is not None
        faces.append((sides[0], sides[1]))
        clips.append((joints, np.full(55, np.float32(0.1), np.float64), audio_beats(samples, 184, PROFILE.beats)))
    generated, recorded = (np.concatenate(side) for side in latents)
    frechet = found["Fréchet gesture distance"]
    assert frechet.value == pytest.approx(plain.frechet(generated, recorded, 2024), rel=1e-5)
    assert frechet.details["formula_2025"] == pytest.approx(plain.frechet(generated, recorded, 2025), rel=1e-5)
    assert found["beat consistency"].value == pytest.approx(plain.corpus_beats(clips, 2024), abs=1e-6)
    assert found["L1 diversity"].value == pytest.approx(plain.corpus_diversity([x for x, _, _ in clips]), rel=1e-6)
    mse, lvd = plain.corpus_faces(faces, 2024)
    assert found["face MSE"].value == pytest.approx(mse, rel=1e-6)
    assert found["face LVD"].value == pytest.approx(lvd, rel=1e-6)
    text = render(report, "markdown")
    beats = found["beat consistency"].value or 0
    assert f" {beats:.5g} [" in text
    assert f" {10 * beats:.5g} [" in text
    assert f" {1e8 * mse:.5g} [" in text
    assert f" {1e5 * lvd:.5g} [" in text


def report_of(results: Path, shards: Path, **changes: Any) -> Report:
    settings: dict[str, Any] = {"generated": (results,), "shards": shards, "protocol": "beat2-speaker2"} | changes
    return evaluate(EvaluateSettings(**{"resamples": 20} | settings))


def figures_of(report: Report) -> dict[str, Figure]:
    ((_, task),) = report.tasks.items()
    return {figure.metric: figure for figure in task.figures}


@pytest.mark.parametrize(("grid", "frames"), [("generated", FRAMES), ("emage", 184), ("gesturelsm", 128)])
def test_the_row_is_that_of_the_metrics_alone(
    results: Path, shards: Path, files: dict[str, Path], grid: str, frames: int
) -> None:
    report = report_of(results, shards, grid=grid, **files)
    found, source = figures_of(report), ShardFolder(shards)
    encoder, bodies = load_encoder(files["gesture_encoder"]), load_bodies(files["body_model"])
    sides: tuple[list[Any], list[Any]] = [], []
    beats, diversity = [], []
    rows = [row for row in source.rows if row.stem.startswith("2_scott")]
    for row in rows:
        own = np.asarray(decode_motion((results / f"res_{row.key}.npz").read_bytes()).poses, np.float64)[:frames]
        # the recording is cut before it is encoded
        true = recorded_motion(source, row).poses[:frames]
        for side, poses in zip(sides, (own, true), strict=True):
            side.append(encoder.encode(poses))
        body = bodies.of(source.array(row, "betas.npy"))
        joints = body.joints(scored_poses(own, PROFILE.positions), np.zeros((frames, 3)))
        samples = source.waveform(row)
        assert samples is not None
        times = audio_beats(samples, frames, PROFILE.beats)
        speeds = np.full(55, np.float32(0.1), np.float64)
        beats.append(beat_score(times, motion_beats(joints, speeds, PROFILE.beats), frames, PROFILE.beats))
        diversity.append(l1_diversity(joints))
    generated, recorded = (np.concatenate(side) for side in sides)
    expected = frechet_distance(generated, recorded, PROFILE.frechet, encoder="").value
    later = frechet_distance(generated, recorded, PROFILES["emage-eval-2025"].frechet, encoder="").value
    frechet = found["Fréchet gesture distance"]
    assert frechet.value == pytest.approx(expected, rel=1e-9)
    assert frechet.details["times_10"] == pytest.approx(10 * expected, rel=1e-9)
    assert frechet.details["formula_2025"] == pytest.approx(later, rel=1e-9)
    assert frechet.details["rows"] == [3 * 2 * (frames // 32)] * 2
    assert found["beat consistency"].value == pytest.approx(np.mean([each.value for each in beats]), rel=1e-9)
    assert found["L1 diversity"].value == pytest.approx(np.mean([each.value for each in diversity]), rel=1e-9)
    assert None not in (frechet.low, found["beat consistency"].low, found["L1 diversity"].low)
    assert report.facts["clips"] == [len(rows), 15]
    text = render(report, "markdown")
    assert f"| a2g | 3 of 15 | {3 * frames / 30:.1f} | {grid} | {3 * 2 * (frames // 32)} |" in text
    assert "left out: 3 results for clips that are not of beat2-speaker2" in text
    for name, each in report.facts["files"].items():
        assert f"{name.replace('_', ' ')}: {each['file']}, sha256 {each['sha256']}" in text
    assert "unknown mean speeds" in text
    assert "unknown encoder" in text


def test_every_missing_file_is_named_with_where_people_get_it(results: Path, shards: Path) -> None:
    report = report_of(results, shards)
    found = figures_of(report)
    assert {figure.value for figure in found.values()} == {None}
    assert len(found) == 5
    text = render(report, "table")
    assert "L1 diversity, face MSE, face LVD: not computed: missing --body-model" in text
    for flag, file in (("gesture-encoder", ENCODER), ("body-model", BODY_MODEL), ("mean-speeds", MEAN_SPEEDS)):
        assert f"missing --{flag}: {file.name} from {file.origin}" in text
        assert all(sha256 in text for sha256 in file.sha256)


@pytest.mark.slow
def test_the_command_of_a_row_repeats_it(results: Path, shards: Path, files: dict[str, Path]) -> None:
    report = report_of(results, shards, gesture_encoder=files["gesture_encoder"])
    run = omniges(*shlex.split(report.facts["command"])[1:])
    assert run.returncode == 0
    assert run.stdout.strip() == render(report, "markdown").strip()


def test_ground_truth_is_no_result_where_the_result_is_missing(results: Path, shards: Path, tmp_path: Path) -> None:
    """`gt_STEM` without `res_STEM`, as an interrupted test loop leaves it, would score as a perfect result."""
    shutil.copytree(results, tmp_path / "res")
    scott = sorted((tmp_path / "res").glob("res_2_scott*"))
    for path in scott:
        shutil.copy(path, path.with_name(path.name.replace("res_", "gt_")))
    scott[0].unlink()
    report = report_of(tmp_path / "res", shards)
    assert report.facts["clips"] == [2, 15]


def test_two_clips_have_intervals(results: Path, shards: Path, files: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(results, tmp_path / "res")
    min((tmp_path / "res").glob("res_2_scott*")).unlink()
    report = report_of(tmp_path / "res", shards, **files)
    for figure in figures_of(report).values():
        assert figure.low is not None
        assert figure.high is not None
        assert figure.value is not None
        assert figure.low <= figure.value <= figure.high
    assert "intervals over 2 recordings are too narrow" in render(report, "markdown")


def test_the_recordings_as_results_have_distance_zero(shards: Path, files: dict[str, Path], tmp_path: Path) -> None:
    write(tmp_path / "own", shards, motion_file, ".npz")
    frechet = figures_of(report_of(tmp_path / "own", shards, **files))["Fréchet gesture distance"]
    assert frechet.value == pytest.approx(0, abs=1e-5)  # rotations went through 6D in float32
    assert frechet.details["formula_2025"] == pytest.approx(-2e-6 * 240, abs=1e-5)


class TestWhatARowLacks:
    KEYS = ("2_scott_0_1_1", "2_scott_0_2_2", "2_scott_0_3_3")

    def parts(self, folder: Path, lacking: dict[str, tuple[str, ...]], **changes: Any) -> tuple[Path, Path]:
        """Results with records for recordings that lack parts."""
        takes = [take(key, 4.0, lacking=lacking.get(key, ())) for key in self.KEYS]
        shards = write_takes(folder / "shards", takes)
        motion = take(self.KEYS[0], 4.0).motion
        assert motion is not None
        arrays = (motion.poses, motion.expressions, motion.trans, motion.betas)
        for key in self.KEYS:
            for name in changes.get("names", ["{}"]):
                data = encode_motion(*arrays, gender="", model="")
                put(folder / "own", shards, key, changes.get("task", "a2g"), {".npz": data}, name=name.format(key))
        return folder / "own", shards

    def test_recordings_without_motion_are_left_out(self, tmp_path: Path) -> None:
        """A body at rest would be a ground truth that nobody recorded."""
        body = ("upper", "hands", "lower", "root", "face", "jaw_eyes")
        report = report_of(*self.parts(tmp_path, {self.KEYS[1]: body}))
        assert report.facts["clips"] == [2, 15]
        assert "1 of 3 results left out: no " in render(report, "table")

    def test_no_recording_has_motion(self, tmp_path: Path) -> None:
        body = ("upper", "hands", "lower", "root", "face", "jaw_eyes")
        results, shards = self.parts(tmp_path, dict.fromkeys(self.KEYS, body))
        with pytest.raises(UsageFault, match=r"3 of 3 results left out: no .*; give shards whose recordings have"):
            report_of(results, shards)

    def test_a_jaw_that_neither_side_has_is_named(self, tmp_path: Path) -> None:
        """Models of omniges generate none, while rows of papers have a jaw."""
        text = render(report_of(*self.parts(tmp_path, {self.KEYS[1]: ("jaw_eyes",)})), "table")
        assert "no jaw and eyes in 3 of 3 results, scored as zero" in text
        assert "no jaw and eyes in 1 of 3 recordings, scored as zero" in text

    def test_several_results_of_a_clip_are_named(self, tmp_path: Path) -> None:
        text = render(report_of(*self.parts(tmp_path, {}, names=["{}-1", "{}-2"])), "table")
        assert "6 results for 3 clips: rows of papers have one for each" in text

    def test_results_without_a_condition(self, tmp_path: Path) -> None:
        results, shards = self.parts(tmp_path, {}, task="joint")
        with pytest.raises(UsageFault, match="one task from speech or text to gesture, found joint"):
            report_of(results, shards)


def test_clips_seconds_and_rows_are_those_of_the_papers(beat2_sample: Path) -> None:
    """EMAGE's log says 956 s; a clip has 0 to 19 frames behind the last of its windows in PantoMatrix's list."""
    stems = PROTOCOLS["beat2-speaker2"].stems
    with (beat2_sample / "reference" / "speaker2_split.csv").open() as file:
        assert {row["id"] for row in csv.DictReader(file) if row["type"] == "test"} == {*stems}
    with (beat2_sample / "reference" / "speaker2_last_window_end.csv").open() as file:
        ends = {row["id"]: int(row["last_window_end_frame"]) for row in csv.DictReader(file)}
    found = {}
    for name, grid in GRIDS.items():
        each = [[grid.frames(frames, frames) for frames in range(ends[stem], ends[stem] + 20)] for stem in stems]
        least, most = [min(frames) for frames in each], [max(frames) for frames in each]
        found[name] = [(round(sum(one) / 30, 1), sum(2 * (n // 32) for n in one)) for one in (least, most)]
    assert found == {"emage": [(956.0, 1782)] * 2, "gesturelsm": [(945.1, 1764), (952.5, 1778)]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocol": None, "grid": "emage"}, "grid emage: expected with protocol"),
        ({"profile": "emage-eval-2025"}, "expected the profile emage-2024, found profile"),
        ({"features": (Path("a.npy"), Path("b.npy"))}, "found features; remove features and give the folders"),
        ({"generated": (), "checkpoint": Path("run")}, "found checkpoint; run omniges generate first"),
    ],
)
def test_settings_that_contradict_a_protocol(results: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageFault, match=words):
        EvaluateSettings(**{"generated": (results,), "protocol": "beat2-speaker2"} | changes)


def test_results_of_other_clips_alone(results: Path, shards: Path, tmp_path: Path) -> None:
    shutil.copytree(results, tmp_path / "others", ignore=lambda _, names: [n for n in names if "scott" in n])
    with pytest.raises(UsageFault, match="its 15 clips, such as 2_scott_0_1_1, found none among 3"):
        report_of(tmp_path / "others", shards)


def test_mambatalk_result_with_an_unknown_encoder(beat2_more: Path, fgd_parity: Path, tmp_path: Path) -> None:
    shards = shards_of(beat2_more / "beat_english_v2.0.0", tmp_path / "shards")
    encoder = fgd_parity / "published" / ENCODER.name
    results = beat2_more / "generated_by_mambatalk"
    report = report_of(results, shards, gesture_encoder=encoder)
    found = figures_of(report)
    assert found["Fréchet gesture distance"].value == pytest.approx(3.888841565900913, rel=1e-6)
    assert found["Fréchet gesture distance"].details["formula_2025"] == pytest.approx(3.8877492721849336, rel=1e-6)
    text = render(report, "table")
    assert "| a2g | 1 of 15 | 60.1 | generated | 112 | 3.8888 | 38.888 | 3.8877 | – | – | – | – | – |" in text
    assert "unknown encoder: AESKConv_240_100.bin" in text
    assert "beat consistency: not computed: missing --body-model" in text
    assert "L1 diversity, face MSE, face LVD: not computed: missing --body-model" in text
    # The recording at hand was cut to EMAGE's grid before (1854 -> 1804 frames); the rule cuts what it is given.
    for grid, rows in (("emage", 108), ("gesturelsm", 106)):
        details = figures_of(report_of(results, shards, gesture_encoder=encoder, grid=grid))
        assert details["Fréchet gesture distance"].details["rows"] == [rows] * 2
    page = tmp_path / "page.html"  # also where the only figure is of no clip alone
    view_scores(report, (results,), shards, page, ShownPart())
    assert "2_scott_0_2_2" in page.read_text(encoding="utf-8")
