"""Decoding of SMPL-X motion from the bytes of an NPZ file, and encoding; nothing is unpickled.

`Archive` reads only the keys that are needed, and checks all sizes before it allocates memory. Columns of ``poses``
(axis-angle in radians): root 0:3, body 3:66, jaw 66:69, eyes 69:75, left hand 75:120, right hand 120:165.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import IO, Any, Self

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
_HAND_COLUMNS = 45
_POSE_KEYS: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "root": (3, ("root_orient", "global_orient")),
    "body": (63, ("pose_body", "body_pose")),
    "jaw": (3, ("pose_jaw", "jaw_pose")),
    "eyes": (6, ("pose_eye",)),
    "left_eye": (3, ("leye_pose",)),
    "right_eye": (3, ("reye_pose",)),
    "hands": (2 * _HAND_COLUMNS, ("pose_hand",)),
    "left_hand": (_HAND_COLUMNS, ("left_hand_pose",)),
    "right_hand": (_HAND_COLUMNS, ("right_hand_pose",)),
}
"""For each part of a pose: its number of columns, and its keys in files of AMASS, older BEAT2 and the package smplx."""
_RATE_KEYS = ("mocap_frame_rate", "mocap_framerate", "fps")

MAX_RATE_HZ = 3000
_RATE_ROUNDING = 1e-5  # relative tolerance for rates such as 59.9999885559082; it is 6 ms in ten minutes
# Limits of absolute values: human motion in radians, metres or model coefficients stays far below them.
LIMITS = {"poses": 4.0 * math.pi + 0.01, "trans": 1000.0, "expressions": 1e4, "betas": 100.0}
# Limits for a whole recording, so that a single wrong frame does not reject it. Other units give far larger values.
_MAX_EXPRESSION = 50.0  # 95 % of the coefficients must be below; their standard deviation is about 1
_MAX_HEIGHT_M = 10.0  # median height above or below the origin
_MAX_RANGE_M = 20.0  # largest distance between two positions of a speaking person
_PART_COLUMNS: Mapping[str, slice] = {
    "root": slice(0, 3),
    "body": slice(3, 66),
    "jaw": slice(66, 69),
    "eyes": slice(69, 75),
    "left_eye": slice(69, 72),
    "right_eye": slice(72, 75),
    "hands": slice(75, 165),
    "left_hand": slice(75, 120),
    "right_hand": slice(120, 165),
}
_SAME = 1e-3  # tolerance when two copies of an array are compared, for example float16 with float32


@dataclass(frozen=True, slots=True)
class Motion:
    """Motion of one clip of T frames at 30 frames per second, +y upwards, in C-contiguous arrays.

    All values are finite, except NaN in the columns of absent parts. ``poses``: (T, 165) axis-angle in radians.
    ``expressions``: (T, 100). ``trans``: (T, 3) in metres. ``betas``: (300,); the first ``betas_columns`` values come
    from the file, the others are 0. Arrays are float32 or float64, as stored; float16 becomes float32.
    ``frame_rate_hz`` and ``source_frames`` describe the file; every ``frame_stride``-th frame of it was kept.
    ``gender`` and ``model`` are "" if the file has no readable text for them. ``key_style`` is the kind of keys
    in the file: "beat2" (one array ``poses``), "split" (an array for each part of the pose) or "smplx" (keys of the
    package smplx). It is "arrays" for motion that is not from a file.
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

    @property
    def absent(self) -> frozenset[str]:
        """The parts that the motion lacks: some of upper, hands, lower, jaw_eyes, root and face."""
        return absent_parts_of(self.poses, self.expressions, self.trans)

    def at_rest(self) -> Self:
        """Return the motion with zeros for absent parts, for code that needs a complete body."""
        if not self.absent:
            return self
        arrays = {name: np.nan_to_num(getattr(self, name)) for name in MOTION_COLUMNS}
        return replace(self, **arrays)


def absent_parts_of(poses: Array, expressions: Array, trans: Array) -> frozenset[str]:
    """Return the parts that a motion lacks. A part is absent if its columns are NaN in the first frame.

    Args:
        poses: Axis-angles (T, 165).
        expressions: Coefficients (T, 100).
        trans: Positions (T, 3).

    Returns:
        Some of upper, hands, lower, jaw_eyes, root and face.
    """
    found = {part for part, joints in POSE_PARTS.items() if np.isnan(poses[0, [3 * joint for joint in joints]]).any()}
    found |= {part for part, array in (("root", trans), ("face", expressions)) if np.isnan(array[0]).any()}
    return frozenset(found)


def decode_motion(data: bytes | memoryview, *, standing: bool = True, rate_hz: float | None = None) -> Motion:
    """Decode an NPZ with the keys of BEAT2, with separate keys for body parts, or with the keys of the package smplx.

    Absent parts become NaN. Both hands are absent if one of them is missing or is stored as PCA coefficients. Jaw and
    eyes are absent if one of them is missing. The face is absent if the file has no expressions.

    Args:
        data: Bytes of the file.
        standing: Refuse a body that does not stand upright along +y, because its file probably has other axes. False
            for generated motion, in which a body may lie down.
        rate_hz: Frame rate in Hz, used only if the file does not state it.

    Returns:
        Motion of T frames at 30 frames per second, with notes.

    Raises:
        RecordingFault: The motion cannot be used; the finding code begins with ``npz-``.
    """
    archive = Archive(data)
    style, keys, others = _found_keys(archive)
    archive.check_total([*keys.values(), *(key for _, key in others)])
    rate = _frame_rate(archive, rate_hz)
    members = {name: archive.header(key) for name, key in keys.items()}
    lacking = _usable(members, style)
    frames = _check_members(members)
    arrays = {name: archive.array(member) for name, member in members.items()}
    notes: tuple[Problem, ...] = ()
    if half := sorted(members[name].key for name, array in arrays.items() if array.itemsize == 2):
        notes += (Problem("npz-float16", ", ".join(half), "float32 or float64"),)
        arrays = {name: array.astype(np.float32) if array.itemsize == 2 else array for name, array in arrays.items()}
    betas = _constant_betas(arrays.pop("betas")) if "betas" in arrays else np.zeros(0, np.float32)
    for name, array in arrays.items():
        _check_values(name if name in MOTION_COLUMNS else "poses", array)
    if style == "smplx":
        notes += (Problem("npz-smplx-keys", ", ".join(members[name].key for name in ("root", "body", "trans"))),)
    if lacking:
        notes += (Problem("motion-parts-absent", ", ".join(lacking), "all parts"),)
    motion = {"trans": arrays["trans"], "poses": arrays["poses"] if style == "beat2" else _poses(arrays, frames)}
    notes += _compared(archive, others, arrays | motion)
    motion["expressions"], more = _full_expressions(arrays.get("expressions"), frames)
    texts = {name: archive.text(name) for name in ("gender", "model")}
    notes += tuple(Problem("npz-text-unread", name, "a plain text") for name, text in texts.items() if text is None)
    named = _Named(texts["gender"] or "", texts["model"] or "", style)
    return _motion(motion, betas, rate, named, standing=standing, notes=notes + more)


def _usable(members: dict[str, Member], style: str) -> list[str]:
    """Remove incomplete parts and PCA coefficients of hands from `members`; return a text for each absent part."""
    lacking = []
    if (hands := _lacking_part(members, style, ("hands", "left_hand", "right_hand"))) is not None:
        lacking.append(f"hands{hands}")
    if (eyes := _lacking_part(members, style, ("eyes", "left_eye", "right_eye"), "jaw")) is not None:
        lacking.append(f"jaw and eyes{eyes}")
    if "expressions" not in members:
        lacking.append("face")
    return lacking


def _lacking_part(members: dict[str, Member], style: str, names: tuple[str, ...], beside: str = "") -> str | None:
    """Check whether the members of a part are complete. If not, remove them and return the reason.

    Args:
        members: Members of the file. The members of an incomplete part are removed from this dictionary.
        style: Key style of the file: "beat2", "split" or "smplx" (see `Motion`).
        names: Name of the member with the whole part, then the names of the members with its left and right side.
        beside: Name of one more member that the part needs, such as the jaw for the eyes; "": no other member.

    Returns:
        None if the part is complete, "" if a member is missing, or " (reason)" for PCA coefficients.
    """
    if style == "beat2":
        return None
    one, *sides = names
    given = [name for name in (*names, beside) if name in members]
    whole = one in members or all(side in members for side in sides)
    pca = [members[name] for name in given if name.removeprefix("left_").removeprefix("right_") in {"hand", "hands"}]
    pca = [member for member in pca if math.prod(member.shape[1:]) % _HAND_COLUMNS or not math.prod(member.shape[1:])]
    if whole and not pca and (not beside or beside in members):
        return None
    for name in given:
        del members[name]
    return f" ({pca[0].key} of {math.prod(pca[0].shape[1:])} PCA columns)" if pca else ""


def _poses(arrays: Mapping[str, Array], frames: int) -> Array:
    """Join parts to poses (T, 165); absent parts are NaN."""
    parts: list[Array] = []
    for names in (
        ("root",),
        ("body",),
        ("jaw",),
        ("eyes", "left_eye", "right_eye"),
        ("hands", "left_hand", "right_hand"),
    ):
        own = [arrays[name].reshape(frames, -1) for name in names if name in arrays]
        columns = _POSE_KEYS[names[0]][0]
        parts += own or [np.full((frames, columns), np.nan, np.float32)]
    return np.concatenate(parts, axis=1)


def _full_expressions(given: Array | None, frames: int) -> tuple[Array, tuple[Problem, ...]]:
    """Return expressions (T, 100) and notes. Absent expressions are NaN; missing columns are 0 and cause a note."""
    if given is None:
        return np.full((frames, EXPRESSION_COLUMNS), np.nan), ()
    columns = given.shape[1]
    if columns == EXPRESSION_COLUMNS:
        return given, ()
    note = Problem("expressions-extended", f"{columns} expressions", f"{EXPRESSION_COLUMNS}")
    return np.pad(given, ((0, 0), (0, EXPRESSION_COLUMNS - columns))), (note,)


def _constant_betas(array: Array) -> Array:
    """Return the shape coefficients (n,) from an array (n,) or (rows, n); refuse rows that differ from each other."""
    rows = array.reshape(-1, array.shape[-1])
    if (rows != rows[0]).any() and not np.isnan(rows[0]).any():
        row = int(np.argmax((rows != rows[0]).any(axis=1)))
        found = f"betas of shape {array.shape} whose row {row} differs from row 0"
        raise RecordingFault("npz-wrong-shape", found, "the same betas in all frames")
    _check_values("betas", rows[0])
    return np.array(rows[0])


def motion_from_arrays(
    arrays: Mapping[str, Array | None], rate_hz: float, *, absent: Collection[str] = (), gender: str = ""
) -> Motion:
    """Convert arrays from a user's program to a motion, with the checks of `decode_motion`.

    Args:
        arrays: ``poses`` (T, 165), ``trans`` (T, 3), ``expressions`` (T, n) with 1 ≤ n ≤ 100, and ``betas`` (n,) with
            n ≤ 300. Each is float32 or float64, or None. At least one of the first three must be an array.
        rate_hz: Frames per second, a whole multiple of 30.
        absent: Parts of ``poses`` (upper, hands, lower, jaw_eyes) whose columns are to be ignored.
        gender: Gender of the body, stored with the motion.

    Returns:
        Motion with NaN for absent columns and for arrays that are None. If betas are None, they become zeros and
        ``betas_columns`` is 0.

    Raises:
        RecordingFault: The motion cannot be used; the finding code begins with ``npz-``.
    """
    given = {name: np.asarray(array) for name, array in arrays.items() if array is not None}
    rate = checked_rate(rate_hz, "frame_rate_hz")
    widths = {"poses": (POSE_COLUMNS,) * 2, "trans": (3, 3), "expressions": (1, EXPRESSION_COLUMNS)}
    motion = {name: _checked_frames(name, given[name], *width) for name, width in widths.items() if name in given}
    frames = {name: len(array) for name, array in motion.items()}
    if len({*frames.values()}) > 1:
        found = ", ".join(f"{name} {length}" for name, length in frames.items())
        raise RecordingFault("npz-unequal-lengths", found, "the same number of frames in all arrays")
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
    motion["expressions"], notes = _full_expressions(motion["expressions"], count)
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
    """Texts that describe a motion: gender, model and key style."""

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
    """Build a `Motion` from checked arrays: reduce it to 30 frames per second, extend betas to 300, add notes."""
    source_frames, stride = len(arrays["poses"]), rate_hz // FRAME_RATE_HZ
    motion = {name: np.ascontiguousarray(array[::stride]) for name, array in arrays.items()}
    if stride > 1:
        found = f"{source_frames} frames at {rate_hz} per second, {len(motion['poses'])} kept"
        notes += (Problem("motion-decimated", found, "30 per second"),)
    if standing:
        _check_upright(motion["poses"][:, :3])
    if standing or named.key_style == "arrays":  # generated motion in metres may be at any position
        notes += _check_place(motion["trans"])
    columns = len(betas)
    if columns < BETAS_COLUMNS:
        if columns or named.key_style != "arrays":
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
    """Encode motion as an NPZ of BEAT2, uncompressed and without pickles; equal input gives equal bytes.

    Args:
        poses: Axis-angles (T, 165) in radians, stored as float32.
        expressions: Coefficients (T, 100), stored as float64.
        trans: Positions (T, 3) in metres, stored as float64.
        betas: Shape coefficients (n,), stored unchanged.
        gender: Gender of the body model.
        model: Name of the body model.
        frame_rate_hz: Frames per second.

    Returns:
        Bytes of the file.

    Raises:
        ValueError: A shape is wrong.
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
    """Write an NPZ of BEAT2 to a seekable stream, from blocks of frames, with the same bytes as `encode_motion`.

    Args:
        stream: Seekable binary stream, such as an open file.
        frames: Total number of frames.
        blocks: For each of ``poses``, ``expressions`` and ``trans``: blocks (n, columns) in order of time; an absent
            array is left out.
        betas: Shape coefficients (n,); None: the file gets no ``betas``.
        gender: Gender of the body model.
        model: Name of the body model.
        frame_rate_hz: Frames per second.

    Raises:
        ValueError: A shape or the number of frames is wrong.
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
    info.create_system = 3  # otherwise this byte depends on the operating system
    info.file_size = size
    return info


def _add_member(archive: zipfile.ZipFile, name: str, array: Array) -> None:
    body = io.BytesIO()
    np.lib.format.write_array(body, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)
    archive.writestr(_member_info(name, body.tell()), body.getbuffer())


def _found_keys(archive: Archive) -> tuple[str, dict[str, str], list[tuple[str, str]]]:
    """Choose the key of each array in a file, for files of all key styles.

    Names of arrays do not depend on the key style: the array ``trans``, for example, can have the key ``trans`` or
    ``transl``. A file may contain an array twice: files of AMASS have ``poses``, and the same data in separate parts.
    One key is then chosen, and the other is returned as a second key.

    Returns:
        The key style, the chosen key of each array by name, and a list of (name, second key).

    Raises:
        RecordingFault: A required array has no key (``npz-missing-key``).
    """
    style = "beat2" if "poses" in archive else "split" if "root_orient" in archive else "smplx"
    style = style if style != "smplx" or "global_orient" in archive else "beat2"
    parts = {name: keys for name, (_, keys) in _POSE_KEYS.items()}
    others = {"expressions": ("expressions", "expression"), "trans": ("trans", "transl"), "betas": ("betas",)}
    wanted: dict[str, tuple[str, ...]] = ({"poses": ("poses",)} if style == "beat2" else parts) | others
    keys = {}
    for name, choices in wanted.items():
        ordered = reversed(choices) if style == "smplx" else choices
        if key := next((choice for choice in ordered if choice in archive), None):
            keys[name] = key
        elif name in {"poses", "root", "body", "trans"}:
            found = ", ".join(key[:40] for key in archive.keys[:20]) or "no arrays"
            raise RecordingFault("npz-missing-key", f"no {choices[0]} among: {found}", choices[0])
    for whole, sides in (("eyes", ("left_eye", "right_eye")), ("hands", ("left_hand", "right_hand"))):
        if whole in keys:  # only one of the two forms is used, so that no part occurs twice
            dropped = (whole,) if style == "smplx" and keys.keys() >= {*sides} else sides
            keys = {name: key for name, key in keys.items() if name not in dropped}
    taken = {*keys.values()}
    twice = [(name, key) for name, choices in (parts | others).items() for key in choices if key in archive]
    twice = [(name, key) for name, key in twice if key not in taken]
    return style, keys, twice


def _compared(archive: Archive, others: list[tuple[str, str]], motion: Mapping[str, Array]) -> tuple[Problem, ...]:
    """Compare arrays that a file contains twice; refuse the file if their values differ.

    Args:
        archive: The opened NPZ file.
        others: (name, second key) of each array that occurs twice.
        motion: Arrays that were read by the chosen key: ``poses`` (T, 165), ``expressions`` (T, n), ``trans`` (T, 3).

    Returns:
        One note that lists the second keys whose arrays cannot be compared; an empty tuple if there are none.

    Raises:
        RecordingFault: The values of an array differ between its two keys (``npz-contradiction``).
    """
    unread = []
    for name, key in others:
        taken = motion["poses"][:, _PART_COLUMNS[name]] if name in _PART_COLUMNS else motion[name]
        member = archive.header(key)
        comparable = member.kind == "f" and member.itemsize in {2, 4, 8} and member.shape[:1] == taken.shape[:1]
        if not comparable or math.prod(member.shape) != taken.size or not np.isfinite(taken[0]).all():
            unread.append(key)
            continue
        given = archive.array(member).reshape(taken.shape)
        differs = ~np.isclose(given, taken, rtol=_SAME, atol=_SAME).all(axis=1)
        if differs.any():
            whole = "poses" if name in _PART_COLUMNS else name
            found = f"{key} and {whole} differ in {int(differs.sum())} frames, first in frame {int(differs.argmax())}"
            raise RecordingFault("npz-contradiction", found, "the same motion under both names")
    return (Problem("npz-keys-unread", ", ".join(unread), "each array once"),) if unread else ()


def _frame_rate(archive: Archive, override_hz: float | None) -> int:
    """Return the frame rate of a file in Hz, or `override_hz` if the file states no rate.

    The rate must be a multiple of 30 of at most 3000. A file is refused if its keys state different rates. A file
    without a rate needs `override_hz`; otherwise it is refused.
    """
    rates = {}
    for key in _RATE_KEYS:
        if key not in archive:
            continue
        member = archive.header(key)
        if member.kind not in "iuf" or member.itemsize not in {2, 4, 8} or math.prod(member.shape) != 1:
            found = f"{key} of dtype {member.dtype} and shape {member.shape}"
            raise RecordingFault("npz-wrong-dtype", found, "a single number")
        rates[key] = checked_rate(float(archive.array(member).reshape(-1)[0]), key)
    if len({*rates.values()}) > 1:
        found = " and ".join(f"{key} {rate}" for key, rate in rates.items())
        raise RecordingFault("npz-contradiction", found, "one frame rate")
    if rates:
        return next(iter(rates.values()))
    if override_hz is None:
        raise RecordingFault("npz-no-rate", f"no {_RATE_KEYS[0]}", "frames per second")
    return checked_rate(override_hz, "--motion-rate")


def checked_rate(rate_hz: float, name: str) -> int:
    """Return a frame rate as a whole number; refuse a rate that is not a multiple of 30 or is above 3000.

    Args:
        rate_hz: Frames per second; 59.9999885559082 counts as 60.
        name: Name of the value, for errors.

    Returns:
        Frames per second.

    Raises:
        RecordingFault: The rate is not a multiple of 30, or above 3000.
    """
    whole = FRAME_RATE_HZ * round(rate_hz / FRAME_RATE_HZ) if math.isfinite(rate_hz) else 0
    if not (FRAME_RATE_HZ <= whole <= MAX_RATE_HZ and abs(rate_hz - whole) <= _RATE_ROUNDING * whole):
        raise RecordingFault("npz-frame-rate", f"{name} {rate_hz:.12g}", "30, 60, 90, 120, ...")
    return whole


def _checked_frames(name: str, array: Array, minimum: int, maximum: int) -> Array:
    """Return an array of floats (T, columns) after checking that T ≥ 1 and `minimum` ≤ columns ≤ `maximum`."""
    if array.dtype.kind != "f" or array.dtype.itemsize not in {4, 8}:
        raise RecordingFault("npz-wrong-dtype", f"{name} of dtype {array.dtype}", "float32 or float64")
    if array.ndim != 2 or not minimum <= array.shape[1] <= maximum:
        columns = f"{maximum}" if minimum == maximum else f"{minimum} to {maximum}"
        raise RecordingFault("npz-wrong-shape", _shape_text(name, array.shape), f"(frames, {columns})")
    if not len(array):
        raise RecordingFault("npz-no-frames", f"{name} 0", "frames")
    return np.ascontiguousarray(array, array.dtype.newbyteorder("="))


def _check_members(members: dict[str, Member]) -> int:
    """Check the data types, shapes and lengths in the headers; return the number of frames."""
    frames: dict[str, int] = {}
    for name, member in members.items():
        if member.kind != "f" or member.itemsize not in {2, 4, 8}:
            raise RecordingFault("npz-wrong-dtype", f"{member.key} of dtype {member.dtype}", "float32 or float64")
        if name == "betas":
            continue
        maximum = _POSE_KEYS[name][0] if name in _POSE_KEYS else MOTION_COLUMNS[name][0]
        minimum = 1 if name == "expressions" else maximum
        axes = {2, 3} if name in _POSE_KEYS else {2}  # in files of smplx, joints may be a separate axis
        if len(member.shape) not in axes or not minimum <= math.prod(member.shape[1:]) <= maximum:
            columns = f"{maximum}" if minimum == maximum else f"{minimum} to {maximum}"
            raise RecordingFault("npz-wrong-shape", _shape_text(member.key, member.shape), f"(frames, {columns})")
        frames[member.key] = member.shape[0]
    count = next(iter(frames.values()))
    if any(length != count for length in frames.values()):
        found = ", ".join(f"{key} {length}" for key, length in frames.items())
        raise RecordingFault("npz-unequal-lengths", found, "the same number of frames in all arrays")
    if count == 0:
        raise RecordingFault("npz-no-frames", ", ".join(f"{key} 0" for key in frames), "frames")
    betas = members.get("betas")
    if betas is not None and not (
        1 <= len(betas.shape) <= 2
        and betas.shape[0] in ({1, count} if len(betas.shape) == 2 else {betas.shape[0]})
        and 1 <= betas.shape[-1] <= BETAS_COLUMNS
    ):
        found, expected = _shape_text(betas.key, betas.shape), f"up to {BETAS_COLUMNS} numbers, or equal rows of them"
        raise RecordingFault("npz-wrong-shape", found, expected)
    return count


def _shape_text(key: str, shape: tuple[int, ...]) -> str:
    hint = {
        ("poses", 156): ": SMPL-H without face?",
        ("poses", 72): ": SMPL without hands and face?",
        ("poses", 66): ": body without hands and face?",
    }.get((key, shape[-1] if shape else 0), "")
    return f"{key} of shape {shape}{hint}"


def _check_values(name: str, array: Array) -> None:
    """Refuse an array with NaN, infinity or values beyond `LIMITS`.

    Expressions are also refused if 5 % or more of their values have a magnitude above 50.
    """
    limit = LIMITS[name]
    if array.min() >= -limit and array.max() <= limit:  # false for NaN
        if name == "expressions" and max(-array.min(), array.max()) > _MAX_EXPRESSION:
            maximum = np.quantile(np.abs(array), 0.95, method="higher")
            if maximum > _MAX_EXPRESSION:
                expected = f"up to {_MAX_EXPRESSION:g} of coefficients whose deviation is about 1"
                raise RecordingFault("npz-out-of-range", f"expressions: 5 % are beyond {maximum:g}", expected)
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


def _check_place(trans: Array) -> tuple[Problem, ...]:
    """Refuse positions far above or below the origin, such as values in centimetres.

    Return a note if the positions along an axis have a range of more than `_MAX_RANGE_M` (20 m).

    Args:
        trans: Positions (T, 3) in metres, NaN if absent.

    Returns:
        One note, or an empty tuple.

    Raises:
        RecordingFault: The median height is impossible (``npz-out-of-range``).
    """
    if np.isnan(trans[0]).any():
        return ()
    height = float(np.quantile(trans[:, 1], 0.5, method="higher"))
    if abs(height) > _MAX_HEIGHT_M:
        found = f"trans: median height {height:.3g}, which would be metres"
        raise RecordingFault("npz-out-of-range", found, "about 1; divide centimetres by 100")
    span = (trans.max(axis=0) - trans.min(axis=0)).astype(np.float64)
    axis = int(np.argmax(span))
    if span[axis] <= _MAX_RANGE_M:
        return ()
    return (Problem("motion-far", f"trans moves {span[axis]:.3g} m along {'xyz'[axis]}", f"up to {_MAX_RANGE_M:g} m"),)


def _check_upright(root: Array) -> None:
    """Refuse motion in which the body's up axis, (0, 1, 0), does not mostly point along +y.

    `root` (T, 3) are axis-angles in radians. The y component of the up axis must be above 0.5 in
    the median over all frames.
    """
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
