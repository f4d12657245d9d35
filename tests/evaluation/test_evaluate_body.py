"""Published profiles run with a body model, and their figures equal those of a slow body, frame by frame."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from body_builders import body_arrays, body_file, slow_body
from evaluate_builders import scored, shards_of, task_of, write
from safetensors.numpy import save_file

from omniges.errors import DataError, UsageFault
from omniges.evaluation.motion import load_bodies
from omniges.evaluation.report import Report, render
from omniges.features.gesture import motion_from_gesture
from omniges.formats.npz import Motion, decode_motion, encode_motion
from omniges.formats.semantic import SemanticSpan
from omniges.metrics.frechet import frechet_distance, load_encoder
from omniges.metrics.gesture import audio_beats, beat_score, motion_beats
from omniges.metrics.profiles import PROFILES
from omniges.pipeline.export import motion_file
from omniges.shards.reader import SampleArrays, ShardFolder

VERTICES, FRAMES = 6, 130
PUBLISHED = ("emage-2024", "emage-eval-2025")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A body model, an encoder and mean speeds, as one would download them."""
    folder = tmp_path_factory.mktemp("parts")
    (folder / "SMPLX_MADE_UP.npz").write_bytes(body_file(VERTICES))
    rng = np.random.default_rng(0)
    shapes = [(12, 330, 4), (6, 12, 4)]
    tensors = {f"layers.{k}.weight": rng.normal(0, 0.1, s).astype(np.float32) for k, s in enumerate(shapes)}
    tensors |= {f"layers.{k}.bias": rng.normal(0, 0.1, s[0]).astype(np.float32) for k, s in enumerate(shapes)}
    save_file(tensors, folder / "encoder.safetensors")
    layer = {"stride": 2, "padding": 1, "activation": "tanh"}
    settings = {"format": "omniges-encoder", "version": 1, "multiple_of_frames": 32, "layers": [layer, layer]}
    (folder / "encoder.json").write_text(json.dumps(settings))
    np.save(folder / "speeds.npy", np.full(55, 0.1, dtype=np.float32))
    return {
        "body_model": folder / "SMPLX_MADE_UP.npz",
        "gesture_encoder": folder / "encoder.safetensors",
        "mean_speeds": folder / "speeds.npy",
    }


def moved(sample: SampleArrays) -> bytes:
    """Recorded motion with errors everywhere, jaw and face too."""
    motion = decode_motion(motion_file(sample))
    rng = np.random.default_rng(len(sample.row.key))
    poses = motion.poses[:FRAMES] + rng.normal(0, 0.02, (FRAMES, 165)).cumsum(axis=0) * 0.2
    faces = motion.expressions[:FRAMES] + rng.normal(0, 0.3, (FRAMES, 100))
    return encode_motion(poses, faces, motion.trans[:FRAMES], motion.betas, gender="neutral", model="smplx2020")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Shards with audio, and results for two of their recordings."""
    folder = tmp_path_factory.mktemp("body")
    shards = shards_of(folder, keep_audio=True)
    write(folder / "own", shards, moved, ".npz")
    for path in sorted((folder / "own").iterdir())[2:]:
        path.unlink()
    return folder / "own", shards


class Slow:
    """A result and its recording by `slow_body`, as a profile scores them: faces are the same in all profiles."""

    def __init__(self, path: Path, shards: Path) -> None:
        self.folder = ShardFolder(shards)
        self.row = self.folder.row(path.stem)
        read: Motion = decode_motion(path.read_bytes())
        truth = motion_from_gesture(self.folder.gesture(self.row))
        self._arrays, self._betas = body_arrays(VERTICES), self.folder.array(self.row, "betas.npy")
        self._poses = [np.array(poses[:FRAMES], np.float64) for poses in (read.poses, truth.poses)]
        self.joints: list[Any] = []
        self.faces = []
        for own, expressions in zip(self._poses, (read.expressions, truth.expressions), strict=True):
            jaw = np.zeros((FRAMES, 165))
            jaw[:, 66:69] = own[:, 66:69]
            pairs = zip(jaw, expressions[:FRAMES], strict=True)
            self.faces.append(np.array([self._body(face, pose)[1] for pose, face in pairs]))

    def _body(self, face: Any, pose: Any) -> Any:
        return slow_body(self._arrays, self._betas, face, pose, np.zeros(3))

    def of(self, name: str) -> Slow:
        """Return the values with the joints of a profile."""
        found = copy.copy(self)
        found.joints = []
        for poses in self._poses:
            own = poses.copy()
            if name != "emage-2024":
                own[:, :3] = own[:, 66:75] = 0
            found.joints.append(np.array([self._body(np.zeros(100), pose)[0] for pose in own]))
        return found


@pytest.fixture(scope="module")
def slow_bodies(generated: tuple[Path, Path]) -> list[Slow]:
    """The results by `slow_body`, in order."""
    own, shards = generated
    return [Slow(path, shards) for path in sorted(own.iterdir())]


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_profiles_on_a_body_model_equal_a_slow_computation(
    name: str, parts: dict[str, Path], generated: tuple[Path, Path], slow_bodies: list[Slow]
) -> None:
    own, shards = generated
    found = scored(own, shards, task="a2g", profile=name, **parts)
    slow = [one.of(name) for one in slow_bodies]
    settings = PROFILES[name]
    stray = [float(np.abs(one.joints[0] - one.joints[0].mean(axis=0)).sum()) for one in slow]
    assert found["L1 diversity", "generated"].value == pytest.approx(sum(stray) / (2 * FRAMES), rel=1e-6)
    squares, distances = [], []
    for one in slow:
        p, g = (face.reshape(FRAMES, -1) for face in one.faces)
        squares.append(((p - g) ** 2).mean())
        if name == "emage-2024":
            distances.append(np.abs(p[1:] - g[1:]).mean())
        else:
            distances.append(np.abs((p[1:] - p[:-1]) - (g[1:] - g[:-1])).sum() / (FRAMES * 3 * VERTICES))
    assert found["face MSE", "generated"].value == pytest.approx(np.mean(squares), rel=1e-5)
    assert found["face LVD", "generated"].value == pytest.approx(np.mean(distances), rel=1e-5)
    assert found["face MSE", "generated"].details == {"vertices": VERTICES}
    assert (found["face MSE", "shuffled"].value or 0) > 0
    beats, recalls = [], []
    for one in slow:
        samples = one.folder.waveform(one.row)
        assert samples is not None
        times = audio_beats(samples, FRAMES, settings.beats)
        beats.append(
            beat_score(times, motion_beats(one.joints[0], np.full(55, 0.1), settings.beats), FRAMES, settings.beats)
        )
        recalls.append(recall_by_hand(name, one))
    assert found["beat consistency", "generated"].value == pytest.approx(np.mean([b.value for b in beats]), abs=1e-6)
    assert found["semantic recall", "generated"].value == pytest.approx(np.mean(recalls), abs=1e-6)
    encoder = load_encoder(parts["gesture_encoder"])
    poses = [decode_motion(path.read_bytes()).poses for path in sorted(own.iterdir())]
    truth = [motion_from_gesture(one.folder.gesture(one.row)).poses[:FRAMES] for one in slow]
    a, b = (np.concatenate([encoder.encode(np.asarray(p, np.float64)) for p in side]) for side in (poses, truth))
    expected = frechet_distance(a, b, settings.frechet, encoder="")
    figure = found["Fréchet gesture distance", "generated"]
    assert figure.value == pytest.approx(expected.value, rel=1e-5)
    assert figure.details["rows"] == [len(a), len(b)] == [64, 64]


def recall_by_hand(name: str, one: Slow) -> float:
    spans = [SemanticSpan(**span, duration=span["end"] - span["start"]) for span in one.folder.semantic(one.row) or []]
    assert spans
    total = 0.0
    for t in range(FRAMES):
        score = next((span.score for span in spans if span.start <= t / 30 <= span.end), 0.0)
        for p, g in zip(one.joints[0][t], one.joints[1][t], strict=True):
            away = [abs(x - y) for x, y in zip(p, g, strict=True)]
            error = sum(away) if name == "emage-2024" else math.sqrt(sum(x * x for x in away))
            total += (error < 0.1) * score / 0.165
    return total / FRAMES / 55


def test_a_clip_without_annotation_weighs_one_in_the_profile_of_2025_alone(
    parts: dict[str, Path], generated: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, shards = generated
    monkeypatch.setattr(ShardFolder, "semantic", lambda _self, _row: None)
    for name in PUBLISHED:
        figure = scored(own, shards, task="a2g", profile=name, **parts)["semantic recall", "generated"]
        if name == "emage-2024":
            assert figure.why_not == "2 × no sem annotation"
        else:
            assert 0 < (figure.value or 0) <= 1


def test_the_report_names_model_encoder_and_speeds(parts: dict[str, Path], generated: tuple[Path, Path]) -> None:
    own, shards = generated
    task = task_of(own, shards, task="a2g", **parts)
    table = render(Report(tasks={"a2g": task}, facts={}), "table")
    assert "face MSE (1e-8 m²)" in table
    assert "ranks 6 and 6 of 6" in table
    assert load_bodies(parts["body_model"]).name.startswith("SMPL-X:SMPLX_MADE_UP.npz:")
    assert load_bodies(None).name == "generic"


@pytest.mark.slow
def test_the_corrected_profile_takes_joints_of_the_model_too(
    parts: dict[str, Path], generated: tuple[Path, Path]
) -> None:
    own, shards = generated
    generic = scored(own, shards, task="a2g")["L1 diversity", "recorded"].value
    modelled = scored(own, shards, task="a2g", body_model=parts["body_model"])["L1 diversity", "recorded"].value
    assert generic != pytest.approx(modelled, rel=1e-3)


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (None, UsageFault, "expected an SMPL-X model as .npz, found that the file does not exist"),
        (b"", DataError, "a file of 0 bytes"),
        (body_file(VERTICES)[:5000], DataError, "give SMPL-X's own .npz"),
        (pickle.dumps({"v_template": 1}), DataError, "a pickle, which runs code when it is opened"),
        (body_file(VERTICES, shapedirs=np.zeros((VERTICES, 3, 20))), DataError, "300 shape and 100 expression"),
    ],
)
def test_what_is_no_body_model_is_one_line(tmp_path: Path, content: Any, kind: type[Exception], words: str) -> None:
    path = tmp_path / "model.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(kind, match=words) as caught:
        load_bodies(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
