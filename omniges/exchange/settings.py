"""Settings of `omniges export`; quick to import, so that `omniges --help` is fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from omniges.errors import UsageFault
from omniges.options import check, option

Format = Literal["npz", "bvh", "glb", "fbx", "arkit-csv"]
ENDINGS: Final = {"npz": "npz", "bvh": "bvh", "glb": "glb", "fbx": "fbx", "arkit-csv": "csv"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """All settings of `omniges export`."""

    paths: tuple[Path, ...] = option(
        (),
        "Motion files (.npz), or folders of them such as results of generate; without any, shards are exported.",
        argument=True,
        metavar="[PATH]...",
    )
    output_dir: Path = option(Path("export"), "New or empty folder for the files.", "--output-dir", "-o")
    shards: Path = option(Path("shards"), "Folder of shards.")
    keys: tuple[str, ...] = option((), "Only these samples, by key or stem.", "--key", commas=True, shown="all")
    format: Format = option(
        "npz",
        "npz: BEAT2 files, with TextGrid, and WAV where shards kept the audio. bvh, glb, fbx: skeleton and motion; fbx "
        "needs Blender. arkit-csv: blendshape weights of the face, by --arkit-matrix.",
    )
    body_model: Path | None = option(None, "SMPL-X model, .npz, for bone lengths.", shown="generic skeleton")
    arkit_matrix: Path | None = option(
        None, "Matrix between ARKit weights and FLAME coefficients, .npy, for arkit-csv.", shown="none"
    )
    blender: str = option("blender", "Blender's program, for fbx; the Python package bpy works too.", metavar="PROGRAM")

    def __post_init__(self) -> None:
        """Check the settings; raise UsageFault for values that contradict each other."""
        check(self)
        if (self.format == "arkit-csv") != (self.arkit_matrix is not None):
            raise UsageFault("--arkit-matrix: a matrix file expected with --format arkit-csv, and only there")
        if self.paths and self.keys:
            raise UsageFault("--key: samples of shards expected, found files: name the files to export instead")
        if self.body_model and self.format in {"npz", "arkit-csv"}:
            raise UsageFault(f"--body-model: bone lengths do not change {self.format}: remove it")
