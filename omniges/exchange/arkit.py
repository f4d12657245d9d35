"""Convert facial expressions to ARKit blendshape weights, with a matrix that the user supplies.

BEAT2's expressions are FLAME coefficients. Published matrices map ARKit weights to FLAME coefficients: each row belongs
to an ARKit shape. This module uses the pseudo-inverse of such a matrix. It also accepts a matrix of the other
direction, from FLAME coefficients to ARKit weights, with a row for each coefficient. Such a matrix is used unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.errors import UsageFault
from omniges.formats.motion import SmplxMotion

F64 = npt.NDArray[np.float64]

_SIDED: Final = {
    "brow": ("DownLeft", "DownRight", "InnerUp", "OuterUpLeft", "OuterUpRight"),
    "cheek": ("Puff", "SquintLeft", "SquintRight"),
    "eye": tuple(
        f"{what}{side}"
        for what in ("Blink", "LookDown", "LookIn", "LookOut", "LookUp", "Squint", "Wide")
        for side in ("Left", "Right")
    ),
    "jaw": ("Forward", "Left", "Open", "Right"),
    "mouth": (
        *("Close", "DimpleLeft", "DimpleRight", "FrownLeft", "FrownRight", "Funnel", "Left", "LowerDownLeft"),
        *("LowerDownRight", "PressLeft", "PressRight", "Pucker", "Right", "RollLower", "RollUpper", "ShrugLower"),
        *("ShrugUpper", "SmileLeft", "SmileRight", "StretchLeft", "StretchRight", "UpperUpLeft", "UpperUpRight"),
    ),
    "nose": ("SneerLeft", "SneerRight"),
    "tongue": ("Out",),
}
NAMES: Final = tuple(f"{region}{shape}" for region, shapes in _SIDED.items() for shape in shapes)
"""Names of the 52 weights in alphabetical order, as in BEAT version 1. Some matrices lack the last, ``tongueOut``."""

_EXPRESSIONS, _JAW = 100, 3
_JAW_COLUMNS: Final = slice(66, 69)
_CLIPPED: Final = 1e-4  # weights outside of [0, 1] by less than this are rounding errors


@dataclass(frozen=True, slots=True, eq=False)
class FaceMatrix:
    """Linear map from FLAME coefficients to ARKit weights."""

    to_weights: F64
    """Matrix (100, n) for expressions, or (103, n) for expressions and the jaw's axis-angle rotation; n is 51 or 52."""

    @classmethod
    def of(cls, array: F64, name: str) -> FaceMatrix:
        """Build the map from a matrix of either direction.

        Args:
            array: Matrix (n, 100) or (n, 103) from ARKit weights to FLAME coefficients, or matrix (100, n) or (103, n)
                from FLAME coefficients to ARKit weights. n is the number of ARKit weights, 51 or 52.
            name: Name of the matrix file, for errors.

        Returns:
            The map.

        Raises:
            UsageFault: The matrix has another shape, or its rank is too low to determine all weights.
        """
        shapes, coefficients = {len(NAMES) - 1, len(NAMES)}, {_EXPRESSIONS, _EXPRESSIONS + _JAW}
        if array.ndim == 2 and {array.shape[0]} <= coefficients and {array.shape[1]} <= shapes:
            return cls(array)
        if not (array.ndim == 2 and {array.shape[0]} <= shapes and {array.shape[1]} <= coefficients):
            raise UsageFault(
                f"{name}: expected a matrix (51 or 52, 100 or 103) from ARKit weights to FLAME coefficients, or "
                f"its transpose for the other direction, found {array.shape}; give another file"
            )
        if (rank := int(np.linalg.matrix_rank(array))) < len(array):
            raise UsageFault(
                f"{name}: expected {len(array)} independent rows, found {rank}, so weights would be ambiguous; "
                "use another matrix"
            )
        return cls(np.asarray(np.linalg.pinv(array), np.float64))

    def weights(self, motion: SmplxMotion) -> tuple[F64, int]:
        """Return the n ARKit weights (T, n) of each frame of a motion, and how many values were clipped.

        Args:
            motion: Motion of T frames with expressions.

        Returns:
            Weights (T, n) clipped to [0, 1], and the number of values that the clipping changed by more than 1e-4.
        """
        parts = [motion.expressions, motion.poses[:, _JAW_COLUMNS]]
        found = np.concatenate(parts, axis=1, dtype=np.float64)[:, : len(self.to_weights)] @ self.to_weights
        kept = np.clip(found, 0.0, 1.0)
        return kept, int((np.abs(found - kept) > _CLIPPED).sum())


def encode_csv(weights: F64, frame_rate_hz: float) -> bytes:
    """Encode blendshape weights as CSV: a header, then the time in seconds and the weights of each frame.

    Args:
        weights: Blendshape weights (T, n) of T frames, for the first n of `NAMES`.
        frame_rate_hz: Frames per second.

    Returns:
        Content of the file: ASCII, numbers with six decimals.
    """
    lines = [",".join(["time_s", *NAMES[: weights.shape[1]]])]
    row = ",".join(["%.6f"] * (1 + weights.shape[1]))
    lines += [row % (frame / frame_rate_hz, *values) for frame, values in enumerate(weights.tolist())]
    return ("\n".join(lines) + "\n").encode("ascii")


def matrix_from_array(array: npt.NDArray[Any], name: str) -> FaceMatrix:
    """Build the map from an array that was read from a file.

    Args:
        array: The matrix, in one of the shapes that `FaceMatrix.of` accepts.
        name: Name of the matrix file, for errors.

    Returns:
        The map.

    Raises:
        UsageFault: A value is NaN or infinite, the shape is not accepted, or the rank is too low to determine all
            weights.
    """
    numbers = np.asarray(array, dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise UsageFault(f"{name}: expected finite numbers, found NaN or infinity; check the file")
    return FaceMatrix.of(numbers, name)
