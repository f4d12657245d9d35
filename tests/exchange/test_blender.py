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

from omniges.exchange.bvh import encode_bvh
from omniges.exchange.export import export_motion
from omniges.exchange.gltf import encode_glb
from omniges.exchange.settings import ExportSettings
from omniges.features.gesture import JOINT_NAMES
from omniges.features.skeleton import GENERIC
from omniges.formats.motion import SmplxMotion, encode_smplx, read_motion

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
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
    expected = GENERIC.joint_positions(motion.poses, motion.trans)
    found = np.load(out)
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected, axis=-1).max() * 1000)


@pytest.mark.parametrize("format", ["bvh", "glb", "fbx"])
def test_joints_of_all_frames(format: str, tmp_path: Path) -> None:  # noqa: A002 - the flag's name
    motion = random_motion(90)
    (tmp_path / "clip.npz").write_bytes(encode_smplx(motion))
    export_motion(ExportSettings(paths=(tmp_path / "clip.npz",), format=format, output_dir=tmp_path / "out"))
    assert worst_mm(tmp_path / "out" / f"clip.{format}", read_motion(tmp_path / "clip.npz")) < 1


@pytest.mark.parametrize("format", ["bvh", "glb"])
def test_joints_of_a_real_recording(format: str, beat2_sample: Path, tmp_path: Path) -> None:  # noqa: A002
    motion = read_motion(next(beat2_sample.rglob("2_scott_0_1_1.npz")))
    path = tmp_path / f"clip.{format}"
    path.write_bytes(encode_bvh(motion, GENERIC) if format == "bvh" else encode_glb(motion, GENERIC, "clip"))
    assert worst_mm(path, motion) < 1
