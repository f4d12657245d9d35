"""SMPL-X motion of an NPZ file: bytes to arrays and back, without unpickling.

`Archive` reads only the keys that are needed, and checks every claim before it allocates memory. Columns of ``poses``
(radians, axis-angle): root 0:3, body 3:66, jaw 66:69, eyes 69:75, left hand 75:120, right hand 120:165.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from omniges.errors import Problem, RecordingFault
from omniges.features.gesture import POSE_PARTS
from omniges.formats.arrays import Archive, Member

Array = npt.NDArray[Any]

FRAME_RATE_HZ = 30
POSE_COLUMNS = 165
EXPRESSION_COLUMNS = 100
BETAS_COLUMNS = 300
BETAS_LENGTHS = (10, 16, 300)
MOTION_COLUMNS = {"poses": (POSE_COLUMNS, "<f4"), "expressions": (EXPRESSION_COLUMNS, "<f8"), "trans": (3, "<f8")}
SPLIT_COLUMNS = {"root_orient": 3, "pose_body": 63, "pose_jaw": 3, "pose_eye": 6, "pose_hand": 90}

MAX_RATE_HZ = 3000
_RATE_ROUNDING = 1e-5  # of rates such as 59.9999885559082: 6 ms in ten minutes
# Motion of a person in radians, metres or model coefficients stays far below these.
LIMITS = {"poses": 4.0 * math.pi + 0.01, "trans": 1000.0, "expressions": 1e4, "betas": 1e3}


@dataclass(frozen=True, slots=True)
class Motion:
    """Motion of one clip at 30 frames per second, y up, T frames, all arrays C-contiguous.

    All values are finite, except NaN in the columns of absent parts. ``poses`` (T, 165) axis-angle radians;
    ``expressions`` (T, 100); ``trans`` (T, 3) metres; ``betas`` (300,), of which the first ``betas_columns`` were in
    the file; each float32 or float64 as stored. ``frame_rate_hz`` and ``source_frames`` describe the file, of which
    every ``frame_stride``-th frame was kept. ``gender`` and ``model`` are "" if the file has no plain string.
    ``key_style``: "beat2", "split", or "arrays" for motion that is not from a file.
    """

    poses: Array
    expressions: Array
    trans: Array
    betas: Array
    betas_columns: int
    frame_rate_hz: int
    frame_stride: int
    source_frames: int
    gender: str
    model: str
    key_style: str
    notes: tuple[Problem, ...] = ()


def decode_motion(data: bytes | memoryview, *, standing: bool = True) -> Motion:
    """Read an NPZ in the form of BEAT2 or in the older style with split keys.

    It may note ``motion-decimated`` and ``betas-extended``.

    Args:
        data: Bytes of the file.
        standing: Refuse a body that does not stand along +y, because its axes differ. Generated motion may lie down.

    Returns:
        The motion.

    Raises:
        RecordingFault: With one of the ``npz-`` codes.
    """
    archive = Archive(data)
    style, keys = _needed(archive)
    archive.check_total([*keys.values()])
    members = {name: archive.header(key) for name, key in keys.items()}
    rate_hz = _frame_rate(archive, members.pop("rate"))
    _check_members(members)
    arrays = {name: archive.array(member) for name, member in members.items()}
    poses = arrays["poses"] if style == "beat2" else np.concatenate([arrays[k] for k in SPLIT_COLUMNS], axis=1)
    motion = {"poses": poses, "expressions": arrays["expressions"], "trans": arrays["trans"]}
    for name, array in motion.items():
        _check_values(name, array)
    rows = arrays["betas"].reshape(-1, arrays["betas"].shape[-1])
    if (rows != rows[0]).any() and not np.isnan(rows[0]).any():
        row = int(np.argmax((rows != rows[0]).any(axis=1)))
        found = f"betas of shape {arrays['betas'].shape} whose row {row} differs from row 0"
        raise RecordingFault("npz-wrong-shape", found, "one shape per recording")
    _check_values("betas", rows[0])
    texts = {name: archive.text(name) for name in ("gender", "model")}
    notes = tuple(Problem("npz-text-unread", name, "a plain text") for name, text in texts.items() if text is None)
    named = _Named(texts["gender"] or "", texts["model"] or "", style)
    return _motion(motion, rows[0].copy(), rate_hz, named, standing=standing, notes=notes)


def motion_from_arrays(
    arrays: Mapping[str, Array | None], rate_hz: float, *, absent: Collection[str] = (), gender: str = ""
) -> Motion:
    """Return the motion of a program's own arrays, checked as `decode_motion` checks those of a file.

    Args:
        arrays: ``poses`` (T, 165), ``trans`` (T, 3), ``expressions`` (T, 1 to 100) and ``betas`` (1 to 300,), each
            float32 or float64, or None; at least one of the first three is there.
        rate_hz: Frames per second, a whole multiple of 30.
        absent: Parts of ``poses`` (upper, hands, lower, jaw_eyes) whose columns mean nothing.
        gender: Kept with the motion.

    Returns:
        Motion with NaN for absent columns and for arrays that are None; betas that are None are zeros, and
        ``betas_columns`` is 0.

    Raises:
        RecordingFault: As `decode_motion`.
    """
    given = {name: np.asarray(array) for name, array in arrays.items() if array is not None}
    rate = checked_rate(rate_hz, "frame_rate_hz")
    widths = {"poses": (POSE_COLUMNS,) * 2, "trans": (3, 3), "expressions": (1, EXPRESSION_COLUMNS)}
    motion = {name: _checked_frames(name, given[name], *width) for name, width in widths.items() if name in given}
    frames = {name: len(array) for name, array in motion.items()}
    if len({*frames.values()}) > 1:
        found = ", ".join(f"{name} {length}" for name, length in frames.items())
        raise RecordingFault("npz-unequal-lengths", found, "one number of frames")
    count = next(iter(frames.values()))
    for name, (_, columns) in widths.items():
        motion.setdefault(name, np.full((count, columns), np.nan))
    hidden = [3 * joint + k for part in absent for joint in POSE_PARTS[part] for k in range(3)]
    if hidden and "poses" in given:  # do not change the caller's array
        motion["poses"] = motion["poses"].copy()
        motion["poses"][:, hidden] = 0
    for name in frames:
        _check_values(name, motion[name])
    if hidden:
        motion["poses"][:, hidden] = np.nan
    notes: tuple[Problem, ...] = ()
    columns = motion["expressions"].shape[1]
    if columns < EXPRESSION_COLUMNS:
        notes = (Problem("expressions-extended", f"{columns} expressions", f"{EXPRESSION_COLUMNS}"),)
        motion["expressions"] = np.pad(motion["expressions"], ((0, 0), (0, EXPRESSION_COLUMNS - columns)))
    betas = given.get("betas", np.zeros(0))
    if betas.ndim != 1 or betas.dtype.kind != "f" or len(betas) > BETAS_COLUMNS:
        found = f"betas of shape {betas.shape} and dtype {betas.dtype}"
        raise RecordingFault("npz-wrong-shape", found, f"up to {BETAS_COLUMNS} numbers of float32 or float64")
    if len(betas):
        _check_values("betas", betas)
    standing = "poses" in given and "lower" not in absent
    return _motion(motion, betas, rate, _Named(gender, "", "arrays"), standing=standing, notes=notes)


@dataclass(frozen=True, slots=True)
class _Named:
    """Texts that describe a motion."""

    gender: str
    model: str
    key_style: str


def _motion(
    arrays: dict[str, Array],
    betas: Array,
    rate_hz: int,
    named: _Named,
    *,
    standing: bool,
    notes: tuple[Problem, ...] = (),
) -> Motion:
    """Reduce checked arrays to 30 frames per second and extend betas to full length, with notes."""
    source_frames, stride = len(arrays["poses"]), rate_hz // FRAME_RATE_HZ
    motion = {name: np.ascontiguousarray(array[::stride]) for name, array in arrays.items()}
    if stride > 1:
        found = f"{source_frames} frames at {rate_hz} per second, {len(motion['poses'])} kept"
        notes += (Problem("motion-decimated", found, "30 per second"),)
    if standing:
        _check_upright(motion["poses"][:, :3])
    columns = len(betas)
    if columns < BETAS_COLUMNS:
        if columns:
            notes += (Problem("betas-extended", f"{columns} shape coefficients", f"{BETAS_COLUMNS}"),)
        betas = np.concatenate([betas, np.zeros(BETAS_COLUMNS - columns, betas.dtype)])
    return Motion(
        **motion,
        betas=betas,
        betas_columns=columns,
        frame_rate_hz=rate_hz,
        frame_stride=stride,
        source_frames=source_frames,
        gender=named.gender,
        model=named.model,
        key_style=named.key_style,
        notes=notes,
    )


def encode_motion(
    poses: Array,
    expressions: Array,
    trans: Array,
    betas: Array,
    *,
    gender: str,
    model: str,
    frame_rate_hz: int = FRAME_RATE_HZ,
) -> bytes:
    """Encode motion in the form of BEAT2: stored members, no pickles; equal input gives equal bytes.

    Args:
        poses: Axis-angle (T, 165) in radians, stored as float32.
        expressions: Coefficients (T, 100), stored as float64.
        trans: Positions (T, 3) in metres, stored as float64.
        betas: Shape coefficients (n,), stored unchanged.
        gender: Gender of the body model.
        model: Name of the body model.
        frame_rate_hz: Frames per second.

    Returns:
        Bytes of the file.

    Raises:
        ValueError: A shape differs.
    """
    frames = len(poses)
    for name, array in (("poses", poses), ("expressions", expressions), ("trans", trans)):
        columns, _ = MOTION_COLUMNS[name]
        if array.shape != (frames, columns):
            raise ValueError(f"{name} has shape {array.shape}, expected ({frames}, {columns})")
    buffer = io.BytesIO()
    blocks = {"poses": [poses], "expressions": [expressions], "trans": [trans]}
    write_motion(buffer, frames, blocks, betas, gender=gender, model=model, frame_rate_hz=frame_rate_hz)
    return buffer.getvalue()


def write_motion(
    stream: IO[bytes],
    frames: int,
    blocks: Mapping[str, Iterable[Array]],
    betas: Array | None,
    *,
    gender: str,
    model: str,
    frame_rate_hz: int = FRAME_RATE_HZ,
) -> None:
    """Write the bytes of `encode_motion` to a seekable stream, with motion in blocks of frames.

    Args:
        stream: The stream.
        frames: Total number of frames.
        blocks: Blocks (n, columns) in order of time of ``poses``, ``expressions`` and ``trans``; an absent array is
            left out.
        betas: Shape coefficients (n,), or None.
        gender: Gender of the body model.
        model: Name of the body model.
        frame_rate_hz: Frames per second.

    Raises:
        ValueError: A shape or the number of frames differs.
    """
    if betas is not None and (betas.ndim != 1 or betas.dtype.kind != "f"):
        raise ValueError(f"betas has shape {betas.shape} of {betas.dtype}, expected one vector of floats")
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        if betas is not None:
            _add_member(archive, "betas", betas)
        for name, (columns, kind) in MOTION_COLUMNS.items():
            if name not in blocks:
                continue
            head = io.BytesIO()
            layout = {"descr": kind, "fortran_order": False, "shape": (frames, columns)}
            np.lib.format.write_array_header_1_0(head, layout)
            size = head.tell() + frames * columns * np.dtype(kind).itemsize
            with archive.open(_member_info(name, size), "w") as member:
                member.write(head.getvalue())
                left = frames
                for block in blocks[name]:
                    if block.ndim != 2 or block.shape[1] != columns or len(block) > left:
                        raise ValueError(f"{name} has a block {block.shape}, expected up to ({left}, {columns})")
                    left -= len(block)
                    member.write(np.ascontiguousarray(block, kind).data.cast("B") if len(block) else b"")
                if left:
                    raise ValueError(f"{name} has {frames - left} frames, expected {frames}")
        _add_member(archive, "model", np.array(model))
        _add_member(archive, "gender", np.array(gender))
        _add_member(archive, "mocap_frame_rate", np.array(frame_rate_hz, np.int32))


def _member_info(name: str, size: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
    info.create_system = 3  # otherwise the byte depends on the machine
    info.file_size = size
    return info


def _add_member(archive: zipfile.ZipFile, name: str, array: Array) -> None:
    body = io.BytesIO()
    np.lib.format.write_array(body, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)
    archive.writestr(_member_info(name, body.tell()), body.getbuffer())


def _needed(archive: Archive) -> tuple[str, dict[str, str]]:
    """Return the key style, and the archive's name of every needed array."""
    style = "split" if "poses" not in archive and "root_orient" in archive else "beat2"
    wanted: dict[str, tuple[str, ...]] = {name: (name,) for name in (SPLIT_COLUMNS if style == "split" else ["poses"])}
    wanted |= {"expressions": ("expressions", "expression"), "trans": ("trans",), "betas": ("betas",)}
    wanted["rate"] = ("mocap_frame_rate", "mocap_framerate")
    keys: dict[str, str] = {}
    for name, choices in wanted.items():
        key = next((choice for choice in choices if choice in archive), None)
        if key is None:
            found = ", ".join(key[:40] for key in archive.keys[:20]) or "no arrays"
            raise RecordingFault("npz-missing-key", f"no {choices[0]} among: {found}", choices[0])
        keys[name] = key
    return style, keys


def _frame_rate(archive: Archive, member: Member) -> int:
    """Return the frames per second of the file, a multiple of 30."""
    if member.kind not in "iuf" or member.itemsize not in {2, 4, 8} or math.prod(member.shape) != 1:
        found = f"{member.key} of dtype {member.dtype} and shape {member.shape}"
        raise RecordingFault("npz-wrong-dtype", found, "one number")
    return checked_rate(float(archive.array(member).reshape(-1)[0]), member.key)


def checked_rate(rate_hz: float, name: str) -> int:
    """Return a frame rate that can be reduced to 30; refuse others.

    Args:
        rate_hz: Frames per second; 59.9999885559082 counts as 60.
        name: Name of the value, for errors.

    Returns:
        Frames per second.

    Raises:
        RecordingFault: It is not a multiple of 30.
    """
    whole = FRAME_RATE_HZ * round(rate_hz / FRAME_RATE_HZ) if math.isfinite(rate_hz) else 0
    if not (FRAME_RATE_HZ <= whole <= MAX_RATE_HZ and abs(rate_hz - whole) <= _RATE_ROUNDING * whole):
        raise RecordingFault("npz-frame-rate", f"{name} {float(rate_hz)!r}", "30, 60, 90, 120, ...")
    return whole


def _checked_frames(name: str, array: Array, least: int, most: int) -> Array:
    """Return an array of frames after checking its type and shape."""
    if array.dtype.kind != "f" or array.dtype.itemsize not in {4, 8}:
        raise RecordingFault("npz-wrong-dtype", f"{name} of dtype {array.dtype}", "float32 or float64")
    if array.ndim != 2 or not least <= array.shape[1] <= most:
        columns = f"{most}" if least == most else f"{least} to {most}"
        raise RecordingFault("npz-wrong-shape", _shape_text(name, array.shape), f"(frames, {columns})")
    if not len(array):
        raise RecordingFault("npz-no-frames", f"{name} 0", "frames")
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _check_members(members: dict[str, Member]) -> None:
    """Check dtypes, shapes and lengths, from the headers alone."""
    frames: dict[str, int] = {}
    for name, member in members.items():
        if member.kind != "f" or member.itemsize not in {4, 8}:
            raise RecordingFault("npz-wrong-dtype", f"{member.key} of dtype {member.dtype}", "float32 or float64")
        if name == "betas":
            continue
        columns = {"poses": POSE_COLUMNS, "expressions": EXPRESSION_COLUMNS, "trans": 3, **SPLIT_COLUMNS}[name]
        if len(member.shape) != 2 or member.shape[1] != columns:
            raise RecordingFault("npz-wrong-shape", _shape_text(member.key, member.shape), f"(frames, {columns})")
        frames[member.key] = member.shape[0]
    count = next(iter(frames.values()))
    if any(length != count for length in frames.values()):
        found = ", ".join(f"{key} {length}" for key, length in frames.items())
        raise RecordingFault("npz-unequal-lengths", found, "one number of frames")
    if count == 0:
        raise RecordingFault("npz-no-frames", ", ".join(f"{key} 0" for key in frames), "frames")
    betas = members["betas"]
    if betas.shape not in {(n,) for n in BETAS_LENGTHS} | {(k, n) for n in BETAS_LENGTHS for k in (1, count)}:
        found = _shape_text(betas.key, betas.shape)
        raise RecordingFault("npz-wrong-shape", found, "(10,), (16,) or (300,), or equal rows of them")


def _shape_text(key: str, shape: tuple[int, ...]) -> str:
    hint = {
        ("poses", 156): ": SMPL-H without face?",
        ("poses", 72): ": SMPL without hands and face?",
        ("poses", 66): ": body without hands and face?",
        ("pose_hand", 12): ": PCA hands?",
        ("pose_hand", 24): ": PCA hands?",
    }.get((key, shape[-1] if shape else 0), "")
    return f"{key} of shape {shape}{hint}"


def _check_values(name: str, array: Array) -> None:
    """Refuse NaN, infinity and values beyond `LIMITS`."""
    limit = LIMITS[name]
    if array.min() >= -limit and array.max() <= limit:  # false for NaN too
        return
    finite = np.isfinite(array)
    bad, code, expected = (
        (~finite, "npz-not-finite", "finite numbers")
        if not finite.all()
        else (np.abs(array) > limit, "npz-out-of-range", f"magnitudes up to {limit:g}")
    )
    where = tuple(int(i) for i in np.argwhere(bad)[0])
    place = f"frame {where[0]}, column {where[1]}" if len(where) == 2 else f"column {where[0]}"
    found = f"{name}: {array[where]:g} at {place}, {int(bad.sum())} such values"
    raise RecordingFault(code, found, expected)


def _check_upright(root: Array) -> None:
    """Refuse motion in which the body's up axis, (0, 1, 0), does not mostly point along +y."""
    w = root.astype(np.float64)
    angle = np.sqrt(np.einsum("ti,ti->t", w, w))
    x, y, z = (w / np.maximum(angle, 1e-12)[:, None]).T
    sin, cos = np.sin(angle), np.cos(angle)
    up = np.median(
        np.stack([(1 - cos) * x * y - sin * z, cos + (1 - cos) * y * y, (1 - cos) * z * y + sin * x]), axis=1
    )
    if up[1] > 0.5:
        return
    axis = int(np.argmax(np.abs(up)))
    found = f"it stands along {'-' if up[axis] < 0 else '+'}{'xyz'[axis]} (median {up[axis]:.2f}, y {up[1]:.2f})"
    raise RecordingFault("npz-not-y-up", found, "+y above 0.5")
