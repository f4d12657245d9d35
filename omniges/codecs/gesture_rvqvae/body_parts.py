"""The 415 gesture channels as the inputs of GestureLSM's four nets, and back.

Our channels have the nets' joints, order and units already (`omniges.features.gesture.LAYOUT`); what is added is
normalisation by the statistics that the nets were trained with. Letters: T frames, C channels of a part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from omniges.errors import DataError
from omniges.features.gesture import JOINT_NAMES, LAYOUT
from omniges.formats.arrays import read_array

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

Part = Literal["upper", "hands", "lower", "face"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)
"""In the order of their latents side by side."""

_FOLDER: Final = "mean_std"
_POSE: Final = "beatx_2_330"
_ROOT: Final = "beatx_2_trans"
_LOWER_AND_ROOT: Final = slice(LAYOUT.lower.start, LAYOUT.root.stop)
_COLUMNS: Final[Mapping[Part, tuple[slice, ...]]] = {
    "upper": (LAYOUT.upper,),
    "hands": (LAYOUT.hands,),
    "lower": (LAYOUT.lower, _LOWER_AND_ROOT),  # one net has the root channels beside the joints, one has not
    "face": (LAYOUT.face,),
}
_JOINTS: Final[Mapping[Part, tuple[int, ...]]] = {
    "upper": LAYOUT.upper_joints,
    "hands": LAYOUT.hand_joints,
    "lower": LAYOUT.lower_joints,
    "face": (),
}


@dataclass(frozen=True, slots=True, eq=False)
class PartScale:
    """What a part's channels are normalised by: no small number is added, nothing is clipped."""

    mean: F64
    """(C,)"""
    std: F64
    """(C,), positive."""

    def normalised(self, channels: npt.NDArray[np.floating]) -> F32:
        """(x − mean) / std of channels (T, C), in float64 and rounded once."""
        return ((channels - self.mean) / self.std).astype(np.float32)

    def restored(self, values: npt.NDArray[np.floating]) -> F32:
        """The inverse of `normalised`."""
        return (values * self.std + self.mean).astype(np.float32)


def part_columns(part: Part, channels: int, where: str) -> slice:
    """Which of the 415 channels a net of so many channels takes; raises DataError where it is none of the part."""
    widths = {columns.stop - columns.start: columns for columns in _COLUMNS[part]}
    if channels not in widths:
        wanted = " or ".join(str(width) for width in widths)
        raise DataError(
            f"{where}: found a net of {channels} channels; expected {wanted} of {part}: check the file's name"
        )
    return widths[channels]


def _has_root(columns: slice) -> bool:
    return columns == _LOWER_AND_ROOT


def statistics_files(columns: Mapping[Part, slice]) -> dict[str, str]:
    """Names of the files that the parts need, relative to the codec's folder, by what they hold."""
    roots = {"root": _ROOT} if any(map(_has_root, columns.values())) else {}
    return {
        f"{what} {kind}": f"{_FOLDER}/{stem}_{kind}.npy"
        for what, stem in ({"pose": _POSE} | roots).items()
        for kind in ("mean", "std")
    }


def read_scales(folder: Path, columns: Mapping[Part, slice]) -> dict[Part, PartScale]:
    """The scale of each part, from the statistics in a codec's folder; that of the face changes nothing.

    Only the columns of joints that the parts have are looked at: the deviations of jaw and eyes are next to zero.
    Raises UsageFault where a file is not there, DataError for one that holds something else.
    """
    files = {what: folder / name for what, name in statistics_files(columns).items()}
    found = {what: _statistics(path, 6 * len(JOINT_NAMES) if "pose" in what else 3) for what, path in files.items()}
    scales: dict[Part, PartScale] = {}
    for part, taken in columns.items():
        if part == "face":
            width = taken.stop - taken.start
            scales[part] = PartScale(np.zeros(width), np.ones(width))
            continue
        pose = (6 * np.array(_JOINTS[part])[:, None] + np.arange(6)).reshape(-1)
        mean, std = found["pose mean"][pose], found["pose std"][pose]
        _require_positive(std, files["pose std"], part)
        if _has_root(taken):
            _require_positive(found["root std"], files["root std"], "the root")
            mean, std = np.concatenate([mean, found["root mean"]]), np.concatenate([std, found["root std"]])
        scales[part] = PartScale(mean, std)
    return scales


def _statistics(path: Path, length: int) -> F64:
    wanted = f"expected {length} numbers of float32 or float64"
    array = read_array(path, wanted)
    if array.shape != (length,) or array.dtype not in {np.dtype(np.float32), np.dtype(np.float64)}:
        raise DataError(f"{path}: found {array.shape} of {array.dtype}; {wanted}")
    numbers = np.array(array, dtype=np.float64)
    if not np.isfinite(numbers).all():
        raise DataError(f"{path}: number {int(np.argmin(np.isfinite(numbers)))} is not finite; {wanted}")
    return numbers


def _require_positive(std: F64, path: Path, of: str) -> None:
    if not (std > 0).all():
        raise DataError(
            f"{path}: found {std.min():g} as a deviation of {of}; expected positive ones: is it the file of means?"
        )
