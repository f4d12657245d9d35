"""`read_motion` and `write_motion`: functions with which Python programs read and write SMPL-X motion files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges import arguments
from omniges.errors import DataError, RecordingFault
from omniges.formats.npz import (
    BETAS_LENGTHS,
    EXPRESSION_COLUMNS,
    FRAME_RATE_HZ,
    decode_motion,
    encode_motion,
    motion_from_arrays,
)
from omniges.storage.atomic import publish_bytes
from omniges.storage.files import read_file, require_file

Array = npt.NDArray[Any]
_MODEL: Final = "smplx2020"  # name of the body model in BEAT2's files
_MAX_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class SmplxMotion:
    """Motion of one clip of T frames, +y upwards; the fields are named as in `omniges.Recording`."""

    poses: Array
    """(T, 165) axis-angle in radians: root 0:3, body 3:66, jaw 66:69, eyes 69:75, hands 75:165."""
    trans: Array
    """(T, 3) positions in metres."""
    expressions: Array
    """(T, 100) expression coefficients."""
    betas: Array
    """(10,), (16,) or (300,) shape coefficients, as many as in the file."""
    frame_rate_hz: int = FRAME_RATE_HZ
    """Frames per second of the arrays, always 30. From a file of 60 frames per second, every second frame is kept."""
    gender: str = ""
    """Gender in the file, or ""."""


def read_motion(path: str | Path, frame_rate_hz: float | None = None) -> SmplxMotion:
    """Read a BEAT2-style NPZ with the checks of `preprocess`, without unpickling.

    Args:
        path: A file with ``poses``, or with the keys of AMASS or of the package smplx; see
            docs/how-to/other-motion.md.
        frame_rate_hz: Frame rate in Hz, used only if the file does not state it.

    Returns:
        The motion; parts that the file lacks are NaN.

    Raises:
        UsageFault: The file does not exist.
        DataError: The file is damaged, lacks an array, or has impossible values.
    """
    path = arguments.path("path", path)
    rate_hz = None if frame_rate_hz is None else arguments.number("frame_rate_hz", frame_rate_hz, 1)
    require_file(path, "an NPZ file of SMPL-X motion")
    try:
        motion = decode_motion(read_file(path, _MAX_BYTES), rate_hz=rate_hz)
    except RecordingFault as fault:
        refusal = fault.refusal(path)
        refusal.reword(lambda text: text.replace("--motion-rate", "frame_rate_hz"))
        raise refusal from fault
    return SmplxMotion(
        poses=motion.poses,
        trans=motion.trans,
        expressions=motion.expressions,
        betas=motion.betas[: motion.betas_columns],
        gender=motion.gender,
    )


def encode_smplx(motion: SmplxMotion) -> bytes:
    """Encode a motion, with all its betas, as a BEAT2-style NPZ; return the bytes of the file."""
    arrays = {name: getattr(motion, name) for name in ("poses", "trans", "expressions", "betas")}
    return encode_motion(**arrays, gender=motion.gender, model=_MODEL, frame_rate_hz=motion.frame_rate_hz)


def write_motion(
    path: str | Path,
    poses: Array,
    trans: Array,
    expressions: Array,
    betas: Array,
    frame_rate_hz: float = FRAME_RATE_HZ,
    gender: str = "neutral",
) -> None:
    """Write a BEAT2-style NPZ that `read_motion` and `preprocess` can read.

    The file is written atomically. An existing file is replaced. Equal input gives equal bytes.

    Args:
        path: The file; its folder must exist.
        poses: (T, 165) axis-angle in radians, stored as float32.
        trans: (T, 3) positions in metres, stored as float64.
        expressions: (T, 100) coefficients, stored as float64.
        betas: (10,), (16,) or (300,) shape coefficients.
        frame_rate_hz: Frames per second, a whole multiple of 30. All frames are written. Readers reduce them to 30 per
            second.
        gender: Gender of the body model.

    Raises:
        DataError: An array has another shape or type, is not finite, or has impossible values.
        EnvironmentFault: The disk is full or not writable.
    """
    path, gender = arguments.path("path", path), arguments.text("gender", gender)
    frame_rate_hz = arguments.number("frame_rate_hz", frame_rate_hz, 1)
    given = {"poses": poses, "trans": trans, "expressions": expressions, "betas": betas}
    arrays = {name: np.asarray(array) for name, array in given.items()}
    try:
        rate = motion_from_arrays(arrays, frame_rate_hz).frame_rate_hz
    except RecordingFault as fault:
        raise fault.refusal(path) from fault
    betas = arrays.pop("betas")
    if arrays["expressions"].shape[1] != EXPRESSION_COLUMNS or len(betas) not in BETAS_LENGTHS:
        found = f"expressions {arrays['expressions'].shape}, betas {betas.shape}"
        raise DataError(
            f"{path}: expected expressions (T, {EXPRESSION_COLUMNS}) and betas (10,), (16,) or (300,), found {found}; "
            "correct the arrays"
        )
    publish_bytes(path, encode_motion(**arrays, betas=betas, gender=gender, model=_MODEL, frame_rate_hz=rate))
