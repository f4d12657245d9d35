"""Blender reads back the joints of every format that it can read."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from exchange_builders import random_motion

from omniges.exchange.export import export_motion
from omniges.exchange.settings import ExportSettings
from omniges.features.body import GENERIC
from omniges.features.gesture import JOINT_NAMES
from omniges.formats.motion import SmplxMotion, encode_smplx, read_motion

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not (shutil.which("blender") or find_spec("bpy")), reason="no Blender (Debian: blender python3-numpy)"
    ),
]
READER = Path(__file__).with_name("joints_in_blender.py")


def worst_mm(path: Path, motion: SmplxMotion) -> float:
    program = (
        [sys.executable] if find_spec("bpy") else ["blender", "--background", "--python-exit-code", "1", "--python"]
    )
    out = path.with_suffix(".npy")
    subprocess.run([*program, str(READER), "--", str(path), str(out), *JOINT_NAMES], check=True, capture_output=True)
    expected = GENERIC.joints(motion.poses, motion.trans)
    found = np.load(out)
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected, axis=-1).max() * 1000)


FORMATS = ("bvh", "fbx", "glb")


def worst_of_export(source: Path, format: str, folder: Path) -> float:  # noqa: A002 - the flag's name
    """Largest distance in mm of a joint of an exported file from plain forward kinematics, over all frames."""
    export_motion(ExportSettings(paths=(source,), format=format, output_dir=folder / "out"))
    (path,) = (folder / "out").iterdir()
    assert path.suffix == f".{format}"
    return worst_mm(path, read_motion(source))


@pytest.mark.parametrize("format", FORMATS)
def test_joints_of_all_frames(format: str, tmp_path: Path) -> None:  # noqa: A002
    (tmp_path / "clip.npz").write_bytes(encode_smplx(random_motion(90)))
    assert worst_of_export(tmp_path / "clip.npz", format, tmp_path) < 1


@pytest.mark.parametrize("stem", ["2_scott_0_1_1", "2_scott_0_2_2"])
@pytest.mark.parametrize("format", FORMATS)
def test_joints_of_a_real_recording(
    format: str,  # noqa: A002
    stem: str,
    beat2_sample: Path,
    beat2_more: Path,
    tmp_path: Path,
) -> None:
    (source,) = (path for folder in (beat2_sample, beat2_more) for path in folder.rglob(f"smplxflame_30/{stem}.npz"))
    assert worst_of_export(source, format, tmp_path) < 1
