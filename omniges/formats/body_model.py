"""Reading of an SMPL-X body model file, without unpickling.

The file is the ``.npz`` of SMPL-X with 300 shape and 100 expression directions, such as the neutral model of 2020. Only
the arrays that this module names are read. Other arrays are skipped, because they may be pickled objects.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError, RecordingFault
from omniges.features.body import BodyModel
from omniges.formats.arrays import Archive, Member
from omniges.storage.files import read_file, require_file, sha256_hex

F64 = npt.NDArray[np.float64]

JOINTS = 55
SHAPES = 300
EXPRESSIONS = 100
POSE_FEATURES = 9 * (JOINTS - 1)
HAND_COLUMNS = 45
MAX_VERTICES = 200_000
_MAX_FACES = 3 * MAX_VERTICES
_MAX_BYTES = 1 << 30

_PICKLE = b"\x80"
_ROOT = (-1, 2**32 - 1)  # parent of the pelvis in the files: -1, or -1 as an unsigned 32-bit number
_WEIGHTS_TOLERANCE = 1e-3


def decode_body_model(data: bytes | memoryview) -> BodyModel:
    """Decode a body model to float64 arrays; refuse NaN and infinite values.

    Args:
        data: Bytes of the file.

    Returns:
        The arrays of the body model, with lengths in metres.

    Raises:
        RecordingFault: The file cannot be used; the finding code begins with ``npz-``.
        ValueError: The joint tree is not that of SMPL-X.
    """
    if bytes(data[:1]) == _PICKLE:
        raise RecordingFault("npz-not-zip", "a pickle, which runs code when it is opened", "the model as .npz")
    archive = Archive(data)
    wanted = ["v_template", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table"]
    wanted += ["hands_meanl", "hands_meanr", *(["exprdirs"] if "exprdirs" in archive else [])]
    missing = [key for key in wanted if key not in archive]
    if missing:
        found = ", ".join(key[:40] for key in archive.keys[:20]) or "no arrays"
        raise RecordingFault("npz-missing-key", f"no {missing[0]} among: {found}", "an SMPL-X model")
    wanted += [key for key in ("f",) if key in archive]
    archive.check_total(wanted)
    members = {key: archive.header(key) for key in wanted}
    _check_shapes(members)
    arrays = {key: archive.array(member) for key, member in members.items()}
    root, *parents = map(int, arrays.pop("kintree_table")[0])
    triangles = _triangles(arrays.pop("f"), len(arrays["v_template"])) if "f" in arrays else None
    if root not in _ROOT or not all(0 <= parent < joint for joint, parent in enumerate(parents, 1)):
        raise RecordingFault("npz-damaged", "a kintree_table that is no tree", "every parent before its children")
    for key, array in arrays.items():
        if not np.isfinite(array).all():  # before the cast, which gives a warning for some NaN values
            raise RecordingFault("npz-not-finite", f"{key} has values that are not finite", "finite numbers")
    numbers = {key: np.asarray(array, dtype=np.float64) for key, array in arrays.items()}
    weights, shapes = numbers["weights"], numbers["shapedirs"]
    sums = weights.sum(axis=1)
    wrong = (np.abs(sums - 1) > _WEIGHTS_TOLERANCE) | (weights.min(axis=1) < -_WEIGHTS_TOLERANCE)
    if wrong.any():
        vertex = int(np.argmax(wrong))
        found = f"weights of vertex {vertex} that sum to {sums[vertex]:g}"
        raise RecordingFault("npz-out-of-range", found, "weights of at least 0 that sum to 1")
    return BodyModel(
        template=numbers["v_template"],
        shape_directions=np.ascontiguousarray(shapes[..., :SHAPES]),
        expression_directions=numbers.get("exprdirs", np.ascontiguousarray(shapes[..., SHAPES:])),
        pose_directions=numbers["posedirs"],
        joint_regressor=numbers["J_regressor"],
        weights=weights,
        parents=(-1, *parents),
        mean_hands=np.concatenate([numbers["hands_meanl"], numbers["hands_meanr"]]),
        triangles=triangles,
    )


def _triangles(found: npt.NDArray[Any], vertices: int) -> npt.NDArray[np.int32]:
    if found.size and (found.min() < 0 or found.max() >= vertices):
        raise RecordingFault("npz-out-of-range", "faces f of vertices that are not there", f"0 to {vertices - 1}")
    return found.astype(np.int32)


def read_body_model(path: Path) -> tuple[BodyModel, str]:
    """Read a body model from a file.

    Args:
        path: The model's .npz file.

    Returns:
        The model, and the file's sha256 in hexadecimal digits.

    Raises:
        UsageFault: The file does not exist.
        DataError: The file is not an SMPL-X model.
    """
    require_file(path, "an SMPL-X model as .npz", "--body-model")
    data = read_file(path, _MAX_BYTES)
    try:
        return decode_body_model(data), sha256_hex(data)
    except (RecordingFault, ValueError) as fault:
        raise DataError(f"{path}: {fault}; give SMPL-X's own .npz, such as SMPLX_NEUTRAL_2020.npz") from fault


def _check_shapes(members: dict[str, Member]) -> None:
    """Check the data types and shapes of the arrays; only their headers are read."""
    template = members["v_template"].shape
    vertices = template[0] if len(template) == 2 else 0
    if not 1 <= vertices <= MAX_VERTICES:
        raise RecordingFault("npz-wrong-shape", f"v_template of shape {template}", "(vertices, 3)")
    directions = SHAPES if "exprdirs" in members else SHAPES + EXPRESSIONS
    expected: dict[str, tuple[int, ...]] = {
        "v_template": (vertices, 3),
        "shapedirs": (vertices, 3, directions),
        "exprdirs": (vertices, 3, EXPRESSIONS),
        "posedirs": (vertices, 3, POSE_FEATURES),
        "J_regressor": (JOINTS, vertices),
        "weights": (vertices, JOINTS),
        "kintree_table": (2, JOINTS),
        "hands_meanl": (HAND_COLUMNS,),
        "hands_meanr": (HAND_COLUMNS,),
    }
    if "f" in members:
        faces = members["f"].shape
        expected["f"] = (faces[0] if faces and faces[0] <= _MAX_FACES else _MAX_FACES, 3)
    for key, member in members.items():
        whole = key in {"kintree_table", "f"}
        kinds, sizes = ("iu", {4, 8}) if whole else ("f", {4, 8})
        if member.kind not in kinds or member.itemsize not in sizes:
            wanted = "whole numbers" if whole else "float32 or float64"
            raise RecordingFault("npz-wrong-dtype", f"{key} of dtype {member.dtype}", wanted)
        if member.shape != expected[key]:
            hint = ": SMPL-X with 55 joints, 300 shape and 100 expression directions"
            raise RecordingFault("npz-wrong-shape", f"{key} of shape {member.shape}", f"{expected[key]}{hint}")
