"""Export the motion of shards, results and files to the formats of other tools."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from omniges.errors import EnvironmentFault, UsageFault, grouped_notes
from omniges.exchange.arkit import FaceMatrix, encode_csv, matrix_from_array
from omniges.exchange.bvh import encode_bvh
from omniges.exchange.gltf import encode_glb
from omniges.exchange.settings import ENDINGS, ExportSettings
from omniges.exchange.tracks import Track, find_tracks
from omniges.features.body import GENERIC, BodyModel, Skeleton
from omniges.formats.arrays import read_array
from omniges.formats.body_model import read_body_model
from omniges.formats.motion import SmplxMotion, encode_smplx
from omniges.options import shown
from omniges.progress import counted
from omniges.storage.atomic import new_folder, publish_bytes
from omniges.storage.redact import one_line

_IN_BLENDER: Final = Path(__file__).with_name("in_blender.py")
_BLENDER_S: Final = 600.0  # time limit of Blender, which needs about a minute for an hour of motion


@dataclass(slots=True)
class ExportedMotion:
    """Result of an export: counts of samples, and notes."""

    folder: Path
    written: int = 0
    without_motion: int = 0
    """Number of samples without motion or, for blendshape weights, without a face."""
    at_rest: int = 0
    """Number of samples in which a part of the body has no data and is written at rest."""
    clipped: int = 0
    """Number of blendshape weights outside of 0 to 1, which were clipped."""
    notes: list[tuple[str, str]] = field(default_factory=list)
    """Pairs of a clip's name and a note: a change or guess made when the clip's motion file was read."""

    @property
    def lines(self) -> tuple[str, ...]:
        """The counts as one line, and a line for each note."""
        return self.described, *(f"warning: {line}" for line in grouped_notes(self.notes))

    @property
    def described(self) -> str:
        """The counts as one line."""
        counts = {
            "skipped without motion": self.without_motion,
            "with parts at rest that have no data": self.at_rest,
            "weights clipped to 0 or 1": self.clipped,
        }
        more = "".join(f", {count} {what}" for what, count in counts.items() if count)
        return f"{counted(self.written, 'file')} written to {self.folder}{more}"


def export_motion(settings: ExportSettings, progress: Callable[[int, int], None] | None = None) -> ExportedMotion:
    """Write the motion of shards, results or files in the format of another tool.

    There is one output file for each track. A track is one version of a clip, such as the recording or a result.

    Args:
        settings: Sources, format and folder.
        progress: Function that is called with (done, total) samples.

    Returns:
        Counts of samples, and notes.

    Raises:
        UsageFault: A source is unknown, no source has motion, or the output folder contains files.
        DataError: A source is damaged.
        EnvironmentFault: Blender is missing or fails, or the disk prevents writing.
    """
    out = settings.output_dir
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageFault(
            f"--output-dir {out}: expected a new or empty folder, found files in it; choose another folder"
        )
    encode = _encoder(settings)
    counts, used = ExportedMotion(out), set[str]()
    with new_folder(out):
        tracks = find_tracks(settings.paths or [settings.shards], settings.keys, motion_rate_hz=settings.motion_rate_hz)
        for done, load in enumerate(tracks, 1):
            track = load()
            counts.notes += [(track.clip, note) for note in track.notes]
            if track.motion is None or (settings.format == "arkit-csv" and "face" in track.absent):
                counts.without_motion += 1
            else:
                content = encode(track, track.motion, counts)
                publish_bytes(out / f"{_file_stem(track, used)}.{ENDINGS[settings.format]}", content)
                counts.written += 1
                counts.at_rest += bool(track.absent)
            if progress:
                progress(done, len(tracks))
        if not counts.written:
            part = "face" if settings.format == "arkit-csv" else "motion"
            found = "; ".join(map(shown, settings.paths or [settings.shards]))
            raise UsageFault(
                f"{found}: expected {part}, found none in {counted(len(tracks), 'sample')}; give results of a "
                "task that generates gesture, or shards with motion"
            )
    return counts


_Encoder = Callable[[Track, SmplxMotion, ExportedMotion], bytes]


def _encoder(settings: ExportSettings) -> _Encoder:
    """Read the files that the chosen format needs, and return the function that encodes a track in this format."""
    if settings.format == "npz":
        return lambda _track, motion, _counts: encode_smplx(motion)
    if settings.arkit_matrix is not None:
        wanted = "expected a matrix between ARKit weights and FLAME coefficients"
        matrix = matrix_from_array(read_array(settings.arkit_matrix, wanted), str(settings.arkit_matrix))
        return partial(_weights, matrix)
    model = None if settings.body_model is None else read_body_model(settings.body_model)[0]
    if settings.format == "bvh":
        return lambda _track, motion, _counts: encode_bvh(motion, _skeleton(model, motion))
    if settings.format == "glb":
        return lambda track, motion, _counts: encode_glb(motion, _skeleton(model, motion), track.clip)
    command = _blender(settings.blender)
    return lambda track, motion, _counts: _fbx(
        command, encode_glb(motion, _skeleton(model, motion), track.clip), motion
    )


def _skeleton(model: BodyModel | None, motion: SmplxMotion) -> Skeleton:
    return GENERIC if model is None else model.person(motion.betas).skeleton


def _weights(matrix: FaceMatrix, track: Track, motion: SmplxMotion, counts: ExportedMotion) -> bytes:
    weights, clipped = matrix.weights(motion)
    counts.clipped += clipped
    return encode_csv(weights, motion.frame_rate_hz)


def _blender(program: str) -> list[str]:
    """Return a command that runs Python files in Blender; the caller appends the path of a Python file."""
    if found := shutil.which(program):
        return [found, "--background", "--factory-startup", "--python-exit-code", "1", "--python"]
    if program == "blender" and find_spec("bpy") is not None:
        return [sys.executable]
    raise EnvironmentFault(
        f"--blender {program}: expected Blender's program, found none; install it, or export glb, which needs none"
    )


def _fbx(command: list[str], glb: bytes, motion: SmplxMotion) -> bytes:
    """Convert a GLB file to FBX with Blender, and return the bytes of the FBX file."""
    with tempfile.TemporaryDirectory(prefix="omniges-fbx-") as folder:
        source, target = Path(folder, "motion.glb"), Path(folder, "motion.fbx")
        source.write_bytes(glb)
        arguments = [str(_IN_BLENDER), "--", str(source), str(target), str(motion.frame_rate_hz)]
        try:
            done = subprocess.run(
                [*command, *arguments],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_BLENDER_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EnvironmentFault(
                f"{command[0]}: expected Blender to finish, found an error ({error}); export glb and convert it"
            ) from error
        if done.returncode or not target.is_file():
            said = one_line((done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2])
            raise EnvironmentFault(
                f"{command[0]}: expected an FBX from Blender, found none (exit code {done.returncode}: {said}); "
                "export glb and convert it"
            )
        return target.read_bytes()


def _file_stem(track: Track, used: set[str]) -> str:
    """Return the first unused name of CLIP, CLIP-TRACK and CLIP-TRACK-NUMBER (from 2), and add it to `used`.

    The name has no ending. Upper and lower case count as equal.
    """
    label = re.sub(r"[^\w-]+", "-", track.name).strip("-") or "track"
    names: Iterator[str] = (
        track.clip if number == 0 else f"{track.clip}-{label}" if number == 1 else f"{track.clip}-{label}-{number}"
        for number in range(len(used) + 2)
    )
    found = next(name for name in names if name.casefold() not in used)
    used.add(found.casefold())
    return found
