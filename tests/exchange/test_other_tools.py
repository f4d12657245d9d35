"""The programs on the pages about other tools run as they stand."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exchange_builders import random_motion
from page_builders import clicks

from omniges.exchange.arkit import NAMES, encode_csv
from omniges.exchange.gltf import encode_glb
from omniges.features.body import GENERIC
from omniges.formats.audio import encode_wav
from omniges.formats.textgrid import WordInterval, encode_words

PAGES = Path(__file__).resolve().parents[2] / "docs/how-to"


def program_of(page: str) -> str:
    (program,) = re.findall(r"^```python\n(.*?)^```$", (PAGES / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return str(program)


def run_here(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(compile(program_of(page), page, "exec"), names)  # noqa: S102 - our own page


def test_words_become_labels_of_an_audio_editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    words = [WordInterval("hello", 0.25, 0.5), WordInterval("Straße", 0.75, 1.5)]
    (tmp_path / "out/talk.TextGrid").write_bytes(encode_words(words, 2.0))
    run_here("praat.md", tmp_path, monkeypatch)
    lines = [line.split("\t") for line in (tmp_path / "labels.txt").read_text("utf-8").splitlines()]
    assert [(float(a), float(b), word) for a, b, word in lines] == [(0.25, 0.5, "hello"), (0.75, 1.5, "Straße")]


def test_weights_become_a_curve_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.random.default_rng(0).random((4, len(NAMES)))
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv/clip.csv").write_bytes(encode_csv(weights, 30))
    run_here("unreal-unity.md", tmp_path, monkeypatch)
    rows = [line.split(",") for line in (tmp_path / "curves.csv").read_text("utf-8").splitlines()]
    assert rows[0][0] == ""
    np.testing.assert_allclose([float(time) for time in rows[0][1:]], np.arange(4) / 30, atol=1e-6)
    assert [row[0] for row in rows[1:]] == list(NAMES)
    np.testing.assert_allclose([[float(x) for x in row[1:]] for row in rows[1:]], weights.T, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("blender") or find_spec("bpy")), reason="no Blender (Debian: blender python3-numpy)"
)
def test_blender_runs_the_script(tmp_path: Path) -> None:
    (tmp_path / "glb").mkdir()
    (tmp_path / "glb/clip.glb").write_bytes(encode_glb(random_motion(45), GENERIC, "clip"))
    (tmp_path / "clip.wav").write_bytes(encode_wav(clicks(1.5, [0.5]).samples, 16_000))
    old_numpy = "import numpy as np\nnp.bool = np.bool_\n"  # the importer of Debian's Blender 3.4 uses the old name
    report = "\nprint('scene', scene.frame_start, scene.frame_end, len(list(strips)), scene.render.fps)\n"
    report += "print('keys', max(len(each.data.shape_keys.key_blocks) for each in bpy.data.objects\n"
    report += "    if each.type == 'MESH' and each.data.shape_keys))\n"
    (tmp_path / "scene.py").write_text(old_numpy + program_of("blender.md") + report)
    program = (
        [sys.executable] if find_spec("bpy") else ["blender", "--background", "--python-exit-code", "1", "--python"]
    )
    run = subprocess.run(
        [*program, "scene.py"],
        cwd=tmp_path,
        env=os.environ | {"PWD": str(tmp_path)},  # as a shell sets it; Blender follows it
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    (scene,) = re.findall(r"^scene (\d+) (\d+) 1 30$", run.stdout, re.MULTILINE)
    assert int(scene[1]) - int(scene[0]) == 44
    assert "keys 11" in run.stdout
