"""`export` writes a file for each track, named after its clip, and refuses what it cannot write in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from body_builders import body_file
from bvh_reader import read_bvh
from exchange_builders import random_motion
from pipeline_helpers import omniges

from omniges.errors import EnvironmentFault, UsageFault
from omniges.exchange.export import export_motion
from omniges.exchange.settings import ExportSettings, Format
from omniges.features.body import GENERIC
from omniges.features.gesture import JOINT_NAMES
from omniges.formats.body_model import read_body_model
from omniges.formats.motion import encode_smplx, read_motion
from omniges.shards.reader import ShardFolder


def joints_m(path: Path) -> np.ndarray:
    places, _ = read_bvh(path.read_text())
    return np.stack([places[name] for name in JOINT_NAMES], axis=1) / 100


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.npz"
    path.write_bytes(encode_smplx(random_motion()))
    return path


def test_samples_of_shards_are_those_that_export_writes_as_npz(shards: Path, tmp_path: Path) -> None:
    done = omniges("export", "--shards", shards, "--format", "bvh", "-o", tmp_path / "bvh")
    assert done.returncode == 0, done.stderr
    omniges("export", "--shards", shards, "-o", tmp_path / "npz")
    stems = {row.stem for row in ShardFolder(shards).rows}
    assert {path.stem for path in (tmp_path / "bvh").iterdir()} == stems
    for stem in sorted(stems)[:2]:
        motion = read_motion(tmp_path / "npz" / "smplxflame_30" / f"{stem}.npz")
        expected = GENERIC.joints(motion.poses, motion.trans)
        np.testing.assert_allclose(joints_m(tmp_path / "bvh" / f"{stem}.bvh"), expected, atol=1e-4)


def test_a_body_model_gives_the_bones_of_the_person(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "body.npz").write_bytes(body_file())
    settings = ExportSettings(
        paths=(clip,), format="bvh", output_dir=tmp_path / "out", body_model=tmp_path / "body.npz"
    )
    assert export_motion(settings).written == 1
    motion = read_motion(clip)
    person = read_body_model(tmp_path / "body.npz")[0].person(np.zeros(300))
    np.testing.assert_allclose(
        joints_m(tmp_path / "out" / "clip.bvh"), person.joints(motion.poses, motion.trans), atol=1e-4
    )


def test_equal_names_get_files_of_their_own(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "Clip.npz").write_bytes(encode_smplx(random_motion()))
    (tmp_path / "b" / "clip.npz").write_bytes(encode_smplx(random_motion()))
    paths = tuple(sorted(tmp_path.glob("*/*.npz")))
    assert export_motion(ExportSettings(paths=paths, format="glb", output_dir=tmp_path / "out")).written == 3
    assert len({path.name.casefold() for path in (tmp_path / "out").iterdir()}) == 3


def test_counts_say_what_was_clipped_and_is_at_rest(clip: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "matrix.npy", np.eye(52, 100))
    settings = ExportSettings(
        paths=(clip,), format="arkit-csv", output_dir=tmp_path / "out", arkit_matrix=tmp_path / "matrix.npy"
    )
    counts = export_motion(settings)
    expected = read_motion(clip).expressions[:, :52]
    assert counts.clipped == int(((expected < -1e-4) | (expected > 1 + 1e-4)).sum()) > 0
    assert f"{counts.clipped} weights clipped" in counts.described


def test_what_cannot_be_written_is_one_line_and_leaves_nothing(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    good = ExportSettings(paths=(clip,), format="glb", output_dir=out)
    with pytest.raises(EnvironmentFault, match="expected Blender's program, found none"):
        export_motion(replace(good, format="fbx", blender="no-such-program"))
    with pytest.raises(EnvironmentFault, match="expected an FBX from Blender, found none"):
        export_motion(replace(good, format="fbx", blender="false"))
    with pytest.raises(UsageFault, match="arkit_matrix: expected a file"):
        replace(good, format="arkit-csv")
    with pytest.raises(UsageFault, match="found that the file does not exist"):
        export_motion(replace(good, paths=(tmp_path / "absent.npz",)))
    assert not out.exists()
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(UsageFault, match="expected a new or empty folder"):
        export_motion(good)


@pytest.mark.parametrize("kind", ["npz", "glb"])
def test_sources_without_motion_are_refused_and_leave_no_folder(tmp_path: Path, kind: Format) -> None:
    sound = tmp_path / "talk.wav"
    soundfile.write(sound, np.sin(np.arange(16_000)), 16_000)
    settings = ExportSettings(paths=(sound,), format=kind, output_dir=tmp_path / "out")
    with pytest.raises(UsageFault, match=r"talk\.wav: expected motion, found none in 1 sample; give "):
        export_motion(settings)
    assert not settings.output_dir.exists()
