"""Where joints and vertices come from: the user's SMPL-X model file, or the generic skeleton."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError, RecordingFault, UsageFault
from omniges.features.body import BodyModel, Person, joint_positions
from omniges.formats.body_model import decode_body_model
from omniges.storage.atomic import os_errors
from omniges.storage.canonical_json import sha256_hex

F64 = npt.NDArray[np.float64]

_MAX_BYTES: Final = 1 << 30


class Body(Protocol):
    """What places the joints of one person."""

    def joints(self, poses: npt.NDArray[np.floating], trans: npt.NDArray[np.floating]) -> F64:
        """Joints (T, 55, 3) m of poses (T, 165) rad at ``transl`` (T, 3) m."""


class _GenericBody:
    def joints(self, poses: npt.NDArray[np.floating], trans: npt.NDArray[np.floating]) -> F64:
        return joint_positions(poses, trans)


@dataclass(frozen=True, slots=True)
class Bodies:
    """Bodies of people by their shape coefficients."""

    name: str
    """What stands beside every figure that joints decide."""
    model: BodyModel | None

    def of(self, betas: npt.NDArray[np.floating]) -> Body:
        """The body of a person, the same for everybody without a model."""
        return _GenericBody() if self.model is None else self.model.person(betas)

    def person(self, betas: npt.NDArray[np.floating]) -> Person | None:
        """The same with vertices, where there is a model."""
        return None if self.model is None else self.model.person(betas)


GENERIC: Final = Bodies("generic", None)


def load_bodies(path: Path | None) -> Bodies:
    """The model of a file, or the generic skeleton.

    Raises UsageFault where there is no such file, DataError for another kind of file.
    """
    if path is None:
        return GENERIC
    with os_errors(path, "read"):
        if not path.is_file():
            raise UsageFault(f"--body-model {path}: an SMPL-X model as .npz expected, found no file there")
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path}: at most {_MAX_BYTES >> 20} MiB expected, found {path.stat().st_size} bytes")
        data = path.read_bytes()
    try:
        model = decode_body_model(data)
    except (RecordingFault, ValueError) as fault:
        raise DataError(f"{path}: {fault}: give SMPL-X's own .npz, such as SMPLX_NEUTRAL_2020.npz") from fault
    return Bodies(f"SMPL-X:{path.name}:{sha256_hex(data)[:12]}", model)
