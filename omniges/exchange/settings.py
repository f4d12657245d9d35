"""Settings of `omniges export`, `view`, `render` and `inspect`.

The module imports little, so that `omniges --help` is fast.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from omniges.errors import UsageFault
from omniges.options import Part, about, check, declared, motion_rate_option, option, shown
from omniges.storage.atomic import require_output_file
from omniges.storage.files import require_file

Camera = Literal["front", "three-quarter", "left", "right", "back"]
Framing = Literal["body", "upper", "face"]
_SIZE: Final = re.compile(r"(\d{2,4})x(\d{2,4})")
_MIN_PIXELS, _MAX_PIXELS = 64, 4096
Format = Literal["npz", "bvh", "glb", "fbx", "arkit-csv"]
ENDINGS: Final = {"npz": "npz", "bvh": "bvh", "glb": "glb", "fbx": "fbx", "arkit-csv": "csv"}


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """Settings of `omniges export`."""

    output_dir: Path = field(
        metadata=about("New or empty folder for the files.", "--output-dir", "-o", was=("out",), panel="Files")
    )
    paths: tuple[Path, ...] = option(
        (),
        "Motion files (.npz), folders of them, or results of generate; without any, the samples of --shards.",
        argument=True,
        metavar="PATH",
    )
    motion_rate_hz: float | None = motion_rate_option()
    shards: Path = option(Path("shards"), "Folder of shards.")
    keys: tuple[str, ...] = option((), "Write only these samples, by key or stem.", "--key", commas=True, shown="all")
    format: Format = option(
        "npz",
        "npz: BEAT2 files; for shards also the TextGrids and the kept audio. bvh, glb, fbx: skeleton and motion; fbx "
        "needs Blender. arkit-csv: blendshape weights of the face, by --arkit-matrix.",
        panel="Format",
    )
    body_model: Path | None = option(None, "SMPL-X model, .npz, for the bone lengths.", shown="generic skeleton")
    arkit_matrix: Path | None = option(
        None, "Matrix (.npy) that converts ARKit weights to FLAME coefficients, or the reverse; for arkit-csv."
    )
    blender: str = option("blender", "Blender's program, for fbx; the Python package bpy works too.", metavar="PROGRAM")

    def __post_init__(self) -> None:
        """Check the settings; raise UsageFault for values that contradict each other."""
        check(self)
        if (self.format == "arkit-csv") != (self.arkit_matrix is not None):
            raise UsageFault(
                "--arkit-matrix: expected a file with --format arkit-csv, and none with another format; "
                f"{'add' if self.arkit_matrix is None else 'remove'} --arkit-matrix"
            )
        if self.paths and self.keys:
            raise UsageFault("--key: expected samples of shards, found paths; name the files to export instead")
        if self.motion_rate_hz is not None and not self.paths:
            raise UsageFault(
                "--motion-rate: expected motion files, found shards, which state their rate; remove --motion-rate"
            )
        if self.body_model and self.format in {"npz", "arkit-csv"}:
            raise UsageFault(
                f"--body-model: expected a format with bones, such as bvh or glb, found {self.format}; remove "
                "--body-model"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown(Part):
    """Settings that `omniges view` and `omniges render` share."""

    paths: tuple[str, ...] = option(
        (),
        "Folders of shards, of results or of NPZ files; NPZ, WAV and TextGrid files; LABEL=PATH names a track.",
        argument=True,
        metavar="PATH...",
    )
    motion_rate_hz: float | None = motion_rate_option()
    output_file: Path
    keys: tuple[str, ...] = option(
        (),
        "Samples of shards, by key or stem.",
        "--key",
        commas=True,
        shown="all; if results or files are given too, only samples that belong to them",
    )
    together: bool = option(False, "Show the tracks of all recordings side by side, as if they were of one recording.")

    def __post_init__(self) -> None:
        """Refuse values out of range, and an empty list of paths."""
        check(self)
        if not self.paths:
            raise UsageFault(
                "PATH: expected at least one path, found none; give a folder of shards or of results, or a motion file"
            )


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSettings(_Shown):
    """Settings of `omniges view`."""

    output_file: Path = field(metadata=about("HTML file to write.", "--output-file", "-o"))
    body_model: Path | None = option(
        None, "SMPL-X model (.npz) whose mesh is drawn; needs --embed-body-model.", shown="a generic figure"
    )
    embed_body_model: bool = option(
        False, "Write the mesh of --body-model into the page; the licence forbids publishing such a page."
    )

    def __post_init__(self) -> None:
        """Refuse values out of range, a body model without --embed-body-model, and an unusable output file."""
        _Shown.__post_init__(self)
        if (self.body_model is not None) != self.embed_body_model:
            raise UsageFault(
                "--body-model, --embed-body-model: expected both, found one, because a page with the mesh "
                "contains the licensed model; give both or neither"
            )
        if self.output_file.is_dir():
            raise UsageFault(
                f"--output-file {self.output_file}: expected a file such as page.html, found a folder; name a file in "
                "it"
            )
        require_output_file("--output-file", self.output_file)


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class InspectSettings(Part):
    """Settings of `omniges inspect`."""

    path: Path = option(
        Path("shards"),
        "Folder of shards, of a run, of a checkpoint, of results or of motion files; or a file: .npz, .wav, .TextGrid, "
        "or the .json of a result.",
        argument=True,
        metavar="PATH",
    )
    key: str | None = option(None, "Sample of shards to show, by key or stem.", argument=True, metavar="KEY")
    format: Literal["text", "json"] = option("text", "Format of the facts.")
    png: Path | None = option(
        None,
        "PNG file for a picture of the sample, run, result or file; shows at most the first ten minutes; needs "
        "omniges[pictures].",
    )
    html: Path | None = option(None, "HTML file that shows and plays what was found.")
    motion_rate_hz: float | None = motion_rate_option()

    def __post_init__(self) -> None:
        """Check the settings; raise UsageFault for --start or --seconds without --png or --html."""
        check(self)
        require_output_file("--png", self.png)
        require_output_file("--html", self.html)
        if self.png is None and self.html is None and (self.start_s or self.seconds is not None):
            raise UsageFault(
                "--start, --seconds: expected with --png or --html, found neither; add one of the two flags"
            )


@declared
@dataclass(frozen=True, slots=True, kw_only=True)
class RenderSettings(_Shown):
    """Settings of `omniges render`."""

    output_file: Path = field(metadata=about("MP4 file to write.", "--output-file", "-o"))
    sound: str | None = option(
        None, "Name of the track whose sound is heard, or off.", metavar="TRACK", shown="first track with sound"
    )
    camera: Camera = option("front", "Side from which the figure is seen.", panel="Picture")
    framing: Framing = option("body", "Part of the figure that fills the picture.")
    size: str | None = option(
        None, "Size of the video in pixels.", metavar="WIDTHxHEIGHT", shown="640x720; wider for several tracks"
    )
    fps: int = option(30, "Frames a second.", minimum=1, maximum=60)
    body_model: Path | None = option(None, "SMPL-X model, .npz, to draw its mesh.", shown="a generic figure")
    font: Path | None = option(
        None, "Font file, .ttf or .otf, for labels and words.", shown="DejaVu Sans; it has no Chinese and Japanese"
    )

    def __post_init__(self) -> None:
        """Refuse values out of range, files that do not exist, and an output file that cannot be written."""
        _Shown.__post_init__(self)
        out, folder = self.output_file, self.output_file.parent
        if out.is_dir() or out.suffix.lower() != ".mp4":
            raise UsageFault(f"--output-file {out}: expected a file whose name ends in .mp4; choose such a name")
        if not folder.is_dir():
            raise UsageFault(f"--output-file {out}: expected the folder {folder}, found none; create it first")
        for flag, path in (("--body-model", self.body_model), ("--font", self.font)):
            if path is not None:
                require_file(path, "a file", flag)
        if self.size is not None and not (
            (found := _SIZE.fullmatch(self.size))
            and all(_MIN_PIXELS <= int(side) <= _MAX_PIXELS and int(side) % 2 == 0 for side in found.groups())
        ):
            raise UsageFault(
                f"--size {shown(self.size)}: expected 1280x720 or other even numbers from {_MIN_PIXELS} to "
                f"{_MAX_PIXELS}"
            )

    @property
    def pixels(self) -> tuple[int, int] | None:
        """Width and height of the video in pixels; None: the number of tracks determines them."""
        if self.size is None:
            return None
        width, height = map(int, self.size.split("x"))
        return width, height
