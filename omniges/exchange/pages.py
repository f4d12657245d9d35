"""Build a self-contained HTML page that shows tracks (versions of a clip with motion, sound and words).

The page contains the data of the tracks (JSON and base64) and a JavaScript program that shows them. The program gets
the rotations of the joints as quaternions and computes positions by forward kinematics, as `omniges.features.body`
does. It moves the mesh of a body model with the joints (linear blend skinning), and the face of the mesh with the
expressions. It leaves out two effects of a body model. The first is the correction of the mesh for each pose, which
would need 40 MB in base64. The second is that expressions also move the joints of the rest pose.

Shape letters: T frames at 30 Hz, J = 55 joints, N audio samples, E expressions, V vertices, F triangles, W = 8 joints
that move a vertex, K vertices that expressions move.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError
from omniges.exchange import solid
from omniges.exchange.solid import vertex_normals
from omniges.exchange.tracks import Sound, Track
from omniges.features.body import BODY_COLUMNS, GENERIC, PARENTS, REST_OFFSETS, BodyModel, Skeleton
from omniges.features.gesture import EXPRESSIONS, JOINT_NAMES
from omniges.features.timebase import FRAME_RATE_HZ, MEL_RATE_HZ
from omniges.formats.audio import encode_wav
from omniges.formats.motion import SmplxMotion

Numbers = npt.NDArray[np.floating]
F64 = npt.NDArray[np.float64]

QUATERNION_STEP: Final = 1 / 32767
EXPRESSION_STEP: Final = 1e-3
FACE_STEP_M: Final = 2.5e-6
ENVELOPE_HZ: Final = 100
_BLOCK_FRAMES: Final = 1024
PLACE_STEP_M: Final = 5e-5
"""Step in metres to which vertex positions of the figure are rounded."""

_SCRIPTS: Final = ("skeleton.js", "figure.js", "mesh.js", "stage.js", "timeline.js", "player.js")
_FEET: Final = tuple(JOINT_NAMES.index(name) for name in ("left_ankle", "right_ankle", "left_foot", "right_foot"))
_SOLE_M: Final = 0.035  # height of the foot joints above the sole
_FLOOR_PERCENT: Final = 2.0  # percentage of frames in which a foot may be below the floor
_MEL_RANGE: Final = (-11.5, 2.0)  # log magnitudes shown as black and as white

JOINTS_OF_VERTEX: Final = 8
_STILL_M: Final = 1e-6  # metres per unit of an expression; a vertex that moves less is treated as still


@dataclass(frozen=True, slots=True, eq=False)
class PackedMesh:
    """Encoded mesh data that are the same for all persons, and the array sizes that the page needs."""

    content: bytes
    """Five arrays, one after the other:

    * triangles (F, 3), uint32;
    * indices of the vertices that expressions move (K,), uint32;
    * movement of these vertices by each expression (100, K, 3), int16 in units of ``directionStep`` metres;
    * weights of the joints (V, W), uint16 in units of 1/65535;
    * indices of the joints (V, W), uint8.
    """
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class PackedBody:
    """The encoded body of one person in the rest pose, and the person's skeleton."""

    content: bytes
    """Positions (V, 3) int16 relative to the pelvis in units of `step_m` metres, then normals (V, 3) int8 in units of
    1/127."""
    step_m: float
    skeleton: Skeleton


def pack_mesh(model: BodyModel, name: str) -> PackedMesh:
    """Encode the mesh data of a body model that are the same for all persons, in the format that the page reads.

    Args:
        model: Body model with the triangles of its mesh.
        name: Name of the model's file, for the error.

    Returns:
        The encoded arrays, and the sizes that a page needs to decode them.

    Raises:
        DataError: The file has no triangles.
    """
    if model.triangles is None:
        raise DataError(f"{name}: expected the triangles f of the mesh, found none; give SMPL-X's own .npz")
    joints = np.argsort(-model.weights, axis=1, kind="stable")[:, :JOINTS_OF_VERTEX]
    weights = np.take_along_axis(model.weights, joints, axis=1)
    weights = np.maximum(weights, 0) / np.maximum(weights, 0).sum(axis=1, keepdims=True)
    directions = model.expression_directions
    moved = np.flatnonzero(np.abs(directions).max(axis=(1, 2)) > _STILL_M)
    step = max(float(np.abs(directions[moved]).max(initial=0.0)), _STILL_M) / 32767
    parts = [
        model.triangles.astype("<u4"),
        moved.astype("<u4"),
        np.rint(directions[moved].transpose(2, 0, 1) / step).astype("<i2"),
        np.rint(weights * 65535).astype("<u2"),
        joints.astype(np.uint8),
    ]
    facts: dict[str, Any] = {"vertices": model.vertices, "triangles": len(model.triangles), "moved": len(moved)}
    facts |= {"directions": EXPRESSIONS, "directionStep": step, "joints": JOINTS_OF_VERTEX}
    return PackedMesh(b"".join(part.tobytes() for part in parts), facts)


def pack_body(model: BodyModel, betas: npt.NDArray[np.floating]) -> PackedBody:
    """Encode the body of a person in the rest pose for a page.

    Args:
        model: Body model of the mesh.
        betas: Shape coefficients (n,) with n ≤ 300; missing coefficients are 0.

    Returns:
        The encoded vertices and normals, and the person's skeleton.
    """
    person = model.person(betas)
    positions = person.rest_vertices - person.rest_joints[0]
    step = float(np.abs(positions).max()) / 32767
    triangles = np.zeros((0, 3), np.int32) if model.triangles is None else model.triangles
    normals = np.rint(vertex_normals(positions, triangles) * 127).astype(np.int8)
    content = np.rint(positions / step).astype("<i2").tobytes() + normals.tobytes()
    return PackedBody(content, step, person.skeleton)


@dataclass(frozen=True, slots=True)
class Clip:
    """Tracks that are shown side by side."""

    name: str
    tracks: tuple[Track, ...]

    @property
    def seconds(self) -> float:
        """Length of the longest track in seconds."""
        return max(track.seconds for track in self.tracks)


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """The scores of one task as rows of text, and for each row (metric) the clips to watch, such as the worst clip."""

    task: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    """Rows of text: the name of a metric, then its value for each further column of `head`."""
    clips: tuple[Mapping[str, str], ...]
    """For each row, names of clips by a label such as "worst"; empty if the metric has no values for single clips."""


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """The body model that a page draws, and the name of the model's file."""

    model: BodyModel
    name: str


def page(
    clips: Sequence[Clip], scores: Sequence[ScoreTable] = (), embedded: EmbeddedModel | None = None
) -> list[bytes]:
    """Build a page, and return its bytes in parts.

    Args:
        clips: Clips to show. All text in clips is data and never becomes markup.
        scores: Tables to show above the clips.
        embedded: Body model to draw; None: draw the generic figure of `omniges.exchange.solid`.

    Returns:
        The parts of an HTML document in UTF-8. The document loads no other files.

    Raises:
        DataError: The body model has no triangles.
    """
    blobs = _Blobs()
    bodies = None if embedded is None else _Bodies(embedded, blobs)
    document = {
        "rate": FRAME_RATE_HZ,
        "melRate": MEL_RATE_HZ,
        "envelopeRate": ENVELOPE_HZ,
        "quaternionStep": QUATERNION_STEP,
        "expressionStep": EXPRESSION_STEP,
        "expressions": 0 if bodies is None else EXPRESSIONS,
        "faceStep": FACE_STEP_M,
        "movements": solid.MOVEMENTS,
        "joints": JOINT_NAMES,
        "parents": PARENTS,
        "offsets": REST_OFFSETS.tolist(),
        "figure": _figure(blobs),
        "clips": [_clip(clip, blobs, bodies) for clip in clips],
        "mesh": None if bodies is None else bodies.mesh,
        "bodies": [] if bodies is None else bodies.entries,
        "scores": [asdict(table) for table in scores],
    }
    title = " · ".join(clip.name for clip in clips[:3]) + (" …" if len(clips) > 3 else "")
    style = _asset("page.css")
    script = '"use strict";\n(() => {\n' + "\n".join(map(_asset, _SCRIPTS)) + "\n})();\n"
    head, body = _asset("page.html").split("{{data}}")
    for name, text in (("policy", _policy(style, script)), ("style", style), ("title", html.escape(title))):
        head = head.replace("{{" + name + "}}", text)
    parts = [head.encode(), _json(document)]
    for number, blob in enumerate(blobs.parts):
        parts += [f'</script>\n<script type="text/plain" id="blob-{number}">'.encode(), blob]
    return [*parts, body.replace("{{script}}", script).encode()]


def _asset(name: str) -> str:
    return (resources.files("omniges.exchange") / "page" / name).read_text("utf-8")


def _policy(style: str, script: str) -> str:
    """Return a content security policy: the page may use only this style and this script, and may load nothing."""

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return f"default-src 'none'; style-src {digest(style)}; script-src {digest(script)}; media-src blob:"


def _json(document: Any) -> bytes:
    """Encode a document as JSON in ASCII. The characters <, > and & are escaped, so that HTML parsers see no markup."""
    text = json.dumps(document, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text.encode("ascii")


class _Blobs:
    """Binary parts of a page in base64; equal parts are stored once."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self._known: dict[bytes, int] = {}

    def add(self, data: bytes) -> int:
        """Add a part, unless an equal part exists, and return its index."""
        digest = hashlib.sha256(data).digest()
        if digest not in self._known:
            self._known[digest] = len(self.parts)
            self.parts.append(base64.b64encode(data))
        return self._known[digest]


class _Bodies:
    """The mesh of a body model and the bodies of all persons on a page; equal bodies are stored once."""

    def __init__(self, embedded: EmbeddedModel, blobs: _Blobs) -> None:
        packed = pack_mesh(embedded.model, embedded.name)
        self.mesh = packed.facts | {"blob": blobs.add(packed.content)}
        self.entries: list[dict[str, Any]] = []
        self._model, self._blobs = embedded.model, blobs
        self._known: dict[bytes, tuple[int, Skeleton]] = {}

    def of(self, motion: SmplxMotion) -> tuple[int, Skeleton]:
        """Return the index of a motion's body in the list `entries`, and the skeleton of this body.

        A body that is not in the list is encoded and added.
        """
        betas = np.asarray(motion.betas, np.float64)
        if (key := betas.tobytes()) not in self._known:
            body = pack_body(self._model, betas)
            self._known[key] = len(self.entries), body.skeleton
            entry = {"blob": self._blobs.add(body.content), "step": body.step_m}
            self.entries.append(entry | {"offsets": body.skeleton.offsets.tolist()})
        return self._known[key]


def _figure(blobs: _Blobs) -> dict[str, Any]:
    """Return the data of the solid figure: surfaces of body and mouth, movements of the mouth, and colours."""
    surfaces = (solid.solid_figure(), solid.mouth())
    return {
        "changes": blobs.add(solid.mouth_changes().astype("<f4").tobytes()),
        "surfaces": [
            {
                "blob": blobs.add(_surface(surface)),
                "step": PLACE_STEP_M,
                "vertices": len(surface.positions),
                "triangles": len(surface.triangles),
            }
            for surface in surfaces
        ],
        "brows": solid.BROWS,
        "colours": solid.COLOURS,
        "parts": solid.PARTS,
        "tints": solid.TINTS,
    }


def _surface(surface: solid.Surface) -> bytes:
    """Encode positions, triangles, normals, bones, weights and colours, in the order in which the page reads them."""
    parts = [
        np.rint(surface.positions / PLACE_STEP_M).astype("<i2"),
        surface.triangles.astype("<u2"),
        np.rint(surface.normals * 127).astype(np.int8),
        surface.bones,
        np.rint(surface.weights * 255).astype(np.uint8),
        surface.colours,
    ]
    return b"".join(part.tobytes() for part in parts)


def _clip(clip: Clip, blobs: _Blobs, bodies: _Bodies | None) -> dict[str, Any]:
    of_tracks = [None if bodies is None or track.motion is None else bodies.of(track.motion) for track in clip.tracks]
    skeletons = [GENERIC if of is None else of[1] for of in of_tracks]
    moved = [
        None if track.motion is None else _positions(track.motion, skeleton)
        for track, skeleton in zip(clip.tracks, skeletons, strict=True)
    ]
    speeds = [None if positions is None else joint_speeds(positions) for positions in moved]
    fastest = max((float(speed.max()) for speed in speeds if speed is not None), default=0.0) or 1.0
    tracks = []
    for track, positions, speed, of, skeleton in zip(clip.tracks, moved, speeds, of_tracks, skeletons, strict=True):
        entry: dict[str, Any] = {
            "name": track.name,
            "absent": track.absent,
            "words": [[word.word, word.start, word.end] for word in track.words or ()],
        }
        if track.motion is not None and positions is not None and speed is not None:
            entry["frames"] = len(positions)
            entry["motion"] = blobs.add(encode_motion(track.motion, skeleton, 0 if of is None else EXPRESSIONS))
            entry |= {} if of is None else {"body": of[0]}
            entry["floor"] = floor_of(positions)
            entry["speeds"] = blobs.add(np.rint(speed / fastest * 255).astype(np.uint8).tobytes())
        if track.audio is not None:
            entry["sound"] = blobs.add(_wav(track.audio, clip.seconds))
            entry["envelope"] = blobs.add(envelope(track.audio).tobytes())
        if track.mel is not None:
            low, high = _MEL_RANGE
            shades = np.clip((track.mel - low) / (high - low), 0, 1) * 255
            entry["mel"] = blobs.add(np.rint(shades).astype(np.uint8).tobytes())
            entry["melBands"] = track.mel.shape[1]
        tracks.append(entry)
    return {"name": clip.name, "seconds": clip.seconds, "fastest": fastest, "tracks": tracks}


def _positions(motion: SmplxMotion, skeleton: Skeleton) -> F64:
    """Return joint positions (T, J, 3), computed in blocks of frames."""
    blocks = range(0, len(motion.poses), _BLOCK_FRAMES)
    return np.concatenate(
        [skeleton.joints(motion.poses[k : k + _BLOCK_FRAMES], motion.trans[k : k + _BLOCK_FRAMES]) for k in blocks]
    )


def floor_of(positions: Numbers) -> float:
    """Return the floor height in metres, from joint positions (T, J, 3) in metres.

    For each frame, the height of the lowest foot joint is taken. The floor is the 2nd percentile of these heights,
    minus the distance from a foot joint to the sole.
    """
    return float(np.percentile(positions[:, _FEET, 1].min(axis=1), _FLOOR_PERCENT)) - _SOLE_M


def joint_speeds(positions: Numbers) -> F64:
    """Return the motion energy of a clip: the mean speed of the joints in each frame.

    Args:
        positions: Positions of the joints (T, J, 3) in metres.

    Returns:
        Mean joint speed (T,) in m/s since the previous frame; the first value repeats the second.
    """
    if len(positions) < 2:
        return np.zeros(len(positions))
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=-1).mean(axis=-1) * FRAME_RATE_HZ
    return np.concatenate([steps[:1], steps])


def encode_motion(motion: SmplxMotion, skeleton: Skeleton = GENERIC, expressions: int = 0) -> bytes:
    """Encode motion in the little-endian format that the page reads.

    Args:
        motion: Motion of T frames.
        skeleton: Skeleton that the motion moves.
        expressions: Number E of expressions to encode, counted from the first; only the mesh of a body model needs
            expressions.

    Returns:
        Four arrays, one after the other:

        * positions of the pelvis (T, 3), float32 in metres;
        * quaternions (x, y, z, w) of the joints relative to their parents (T, J, 4), int16 in units of 1/32767;
        * movements of the figure's face (T, 6), int16 in units of 2.5 µm;
        * expressions (T, E), int16 in units of 0.001.
    """
    poses = np.array(motion.poses, np.float64)
    poses[:, BODY_COLUMNS:] += skeleton.mean_hands
    root = skeleton.pelvis_positions(motion.trans)
    turns = np.rint(quaternions(poses.reshape(len(root), -1, 3)) / QUATERNION_STEP).astype("<i2")
    moved = np.rint(solid.Faces.of_motion(motion).table / FACE_STEP_M).astype("<i2")
    faces = np.clip(np.rint(motion.expressions[:, :expressions] / EXPRESSION_STEP), -32767, 32767).astype("<i2")
    return b"".join(part.tobytes() for part in (root.astype("<f4"), turns, moved, faces))


def quaternions(rotvec: Numbers) -> F64:
    """Convert rotation vectors (..., 3) in radians to unit quaternions (..., 4) in the order x, y, z, w."""
    vector = np.asarray(rotvec, dtype=np.float64)
    half = np.linalg.norm(vector, axis=-1, keepdims=True) / 2
    return np.concatenate([vector / 2 * np.sinc(half / np.pi), np.cos(half)], axis=-1)


def _wav(sound: Sound, seconds: float) -> bytes:
    """Encode a sound as WAV, with silence up to the end of the clip. The page uses the sound as its clock."""
    lacking = max(0, round(seconds * sound.rate_hz) - len(sound.samples))
    samples = np.clip(np.pad(sound.samples, (0, lacking)), -1, 1)
    return encode_wav(samples, sound.rate_hz, "pcm16")


def envelope(sound: Sound) -> npt.NDArray[np.uint8]:
    """Return the peak amplitude of each 0.01 s of a sound as uint8, scaled so that the highest peak is 255."""
    edges = np.arange(0, len(sound.samples), sound.rate_hz / ENVELOPE_HZ).astype(np.int64)
    peaks = np.maximum.reduceat(np.abs(sound.samples), edges) if len(edges) else np.zeros(0)
    return np.rint(peaks / max(float(peaks.max(initial=0.0)), 1e-9) * 255).astype(np.uint8)
