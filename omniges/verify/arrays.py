"""Array members: the npy header read as text and held against the contract, then the values block by block."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from omniges.features.audio import LOG_FLOOR, MEL_BANDS
from omniges.features.gesture import BETAS, LAYOUT
from omniges.shards.latents import CodecEntry
from omniges.shards.manifest import ManifestRow
from omniges.shards.tar import NPY_MAGIC, npy_header
from omniges.verify.findings import Collector

_HEADER: Final = re.compile(
    rb"\{'descr': '(?P<dtype>[<>|=]?[a-zA-Z][0-9]{1,3})', 'fortran_order': False, 'shape': "
    rb"\((?P<shape>[0-9]{1,18}(?:, [0-9]{1,18})*),?\), \} *\n"
)
_BLOCK_FRAMES: Final = 512
_ORTHONORMAL: Final = 1e-5
_MEL_FLOOR: Final = float(np.float32(np.log(LOG_FLOOR))) - 1e-4
_JAW_EYES: Final = 9


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """What the contract says of an array: number types and shape."""

    dtypes: tuple[str, ...]
    shape: tuple[int, ...]


def array_specs(row: ManifestRow, samples_16k: int | None, codecs: Sequence[CodecEntry]) -> dict[str, ArraySpec]:
    """The arrays of a sample; `samples_16k` is the length of the kept audio, None where it is not known."""
    specs = {
        "gesture.npy": ArraySpec(("<f4",), (row.frames, LAYOUT.channels)),
        "mel.npy": ArraySpec(("<f4",), (row.mel_frames, MEL_BANDS)),
        "jaw_eyes.npy": ArraySpec(("<f4",), (row.frames, _JAW_EYES)),
        "betas.npy": ArraySpec(("<f4", "<f8"), (BETAS,)),
        "start_xz.npy": ArraySpec(("<f8",), (2,)),
    }
    specs |= {codec.member: ArraySpec(("<f4",), codec.shape_of(row)) for codec in codecs}
    if "audio.npy" in row.members and samples_16k is not None:
        specs["audio.npy"] = ArraySpec(("<f4",), (samples_16k,))
    return specs


def npy_array(
    data: memoryview | bytes, spec: ArraySpec, out: Collector, *, key: str, member: str, offset: int
) -> npt.NDArray[Any] | None:
    """A view of an array member, or None after a finding. Nothing is allocated and nothing unpickled."""
    head = bytes(data[:10])
    length = int.from_bytes(head[8:10], "little")
    text = bytes(data[10 : 10 + length])
    match = _HEADER.fullmatch(text)
    if head[:8] != NPY_MAGIC or len(text) != length or (10 + length) % 64 or match is None:
        out.add("array-invalid", f"{head + text[:80]!r}", "an npy 1.0 header", key=key, member=member, offset=offset)
        return None
    dtype, shape = match["dtype"].decode(), tuple(int(part) for part in match["shape"].split(b", "))
    if dtype not in spec.dtypes:
        out.add("array-dtype", dtype, " or ".join(spec.dtypes), key=key, member=member, offset=offset)
        return None
    if shape != spec.shape:
        code = "waveform-length" if member == "audio.npy" else "array-shape"
        out.add(code, f"{shape}", f"{spec.shape}", key=key, member=member, offset=offset)
        return None
    if head + text != npy_header(dtype, shape):
        found = f"{head + text[:80]!r}, {10 + length} bytes"
        out.add("array-invalid", found, "the header's one form", key=key, member=member, offset=offset)
        return None
    wanted = int(np.prod(shape, dtype=object)) * int(dtype[2:])
    if len(data) - 10 - length != wanted:
        found = f"{len(data) - 10 - length} bytes of data"
        out.add("array-invalid", found, f"{wanted}", key=key, member=member, offset=offset)
        return None
    array: npt.NDArray[Any] = np.frombuffer(data, dtype, offset=10 + length).reshape(shape)
    return array


def check_finite(array: npt.NDArray[Any], out: Collector, *, key: str, member: str, offset: int) -> bool:
    """Whether all values are finite; `offset` is where the array's data end in the shard."""
    place = _not_finite(array)
    if place is not None:
        index = tuple(int(k) for k in np.unravel_index(place, array.shape))
        found = f"{array.reshape(-1)[place]} at {index}"
        where = offset - array.nbytes + place * array.itemsize
        out.add("array-not-finite", found, "finite values", key=key, member=member, offset=where)
    return place is None


def _not_finite(array: npt.NDArray[Any]) -> int | None:
    """Flat place of the first value that is not finite."""
    flat = array.reshape(-1)
    step = 1 << 16
    for start in range(0, len(flat), step):
        finite = np.isfinite(flat[start : start + step])
        if not finite.all():
            return start + int(finite.argmin())
    return None


def check_gesture(gesture: npt.NDArray[np.float32], out: Collector, key: str) -> None:
    """Every 6D rotation has orthonormal rows, and the first root step is the repeated second one."""
    for start in range(0, len(gesture), _BLOCK_FRAMES):
        block = gesture[start : start + _BLOCK_FRAMES, LAYOUT.rotations]
        with np.errstate(over="ignore", invalid="ignore"):
            orthonormal = _orthonormal(np.ascontiguousarray(block.T).reshape(-1, 2, 3, len(block)))
        if not orthonormal and _report_rotation(block, start, out, key):
            break
    root = gesture[:2, LAYOUT.root]
    if len(root) == 2 and not np.array_equal(root[0, ::2], root[1, ::2]):
        found, expected = (f"dx, dz {root[k, ::2].tolist()}" for k in (0, 1))
        out.add("root-first-step", found, expected, key=key, member="gesture.npy")


def _orthonormal(planes: npt.NDArray[np.float32]) -> bool:
    """Whether all rows of planes (joints, 2, 3, T) are orthonormal with a little to spare.

    Extremes alone are looked at, and a clip that is near the limit is left to `_report_rotation`.
    """
    # |r|² − 1 is twice |r| − 1 this near to one.
    spare = 0.9 * _ORTHONORMAL
    work = planes * planes
    norms = work[:, :, 0] + work[:, :, 1]
    norms += work[:, :, 2]
    if not (norms.min() >= 1 - 2 * spare and norms.max() <= 1 + 2 * spare):
        return False
    inner = np.multiply(planes[:, 0], planes[:, 1], out=work[:, 0])
    products = np.add(inner[:, 0], inner[:, 1], out=norms[:, 0])
    products += inner[:, 2]
    return bool(products.max() <= spare and products.min() >= -spare)


def _report_rotation(block: npt.NDArray[np.float32], start: int, out: Collector, key: str) -> bool:
    """File the worst rotation of a block that is off by more than the contract allows; whether there is one."""
    planes = block.astype(np.float64).T.reshape(-1, 2, 3, len(block))
    norms = np.abs((planes**2).sum(axis=2) - 1).max(axis=1) / 2
    worst = np.maximum(norms, np.abs((planes[:, 0] * planes[:, 1]).sum(axis=1)))
    if (worst <= _ORTHONORMAL).all():
        return False
    joint, frame = np.unravel_index(int(worst.argmax()), worst.shape)
    found = f"frame {start + int(frame)}, channels {6 * joint} to {6 * joint + 5}: off by {worst.max():.3g}"
    out.add("rotation-broken", found, f"at most {_ORTHONORMAL:g}", key=key, member="gesture.npy")
    return True


def check_mel(mel: npt.NDArray[np.floating], out: Collector, key: str) -> None:
    """No value below the logarithm of the floor; the minima of the bands do as well as the mel itself."""
    least = float(mel.min()) if mel.size else 0.0
    if least < _MEL_FLOOR:
        out.add("mel-below-floor", f"{least}", f"at least {_MEL_FLOOR:.4f}", key=key, member="mel.npy")
