"""Small builders of recording files, good and damaged, for the tests of this folder."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

SHARED = Path(os.environ.get("OMNIGES_SHARED", Path(__file__).parents[2].parent / "shared"))
SAMPLE = SHARED / "beat2_sample" / "beat_english_v2.0.0"
CORPUS = SHARED / "textgrid_corpus"

needs_sample = pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"the shared sample {SAMPLE} is absent")
needs_corpus = pytest.mark.skipif(not CORPUS.is_dir(), reason=f"the shared corpus {CORPUS} is absent")


def chunk(name: bytes, body: bytes, size: int | None = None) -> bytes:
    """One RIFF chunk; ``size`` overrides the size field."""
    return name + struct.pack("<I", len(body) if size is None else size) + body + b"\0" * (len(body) % 2)


def fmt_body(tag: int, bits: int, channels: int = 1, rate: int = 16_000) -> bytes:
    align = channels * bits // 8
    return struct.pack("<HHIIHH", tag, channels, rate, min(rate * align, 2**32 - 1), align, bits)


def riff(*chunks: bytes, size: int | None = None) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


def pcm16(values: list[int]) -> bytes:
    return np.asarray(values, "<i2").tobytes()


def motion(frames: int = 5, seed: int = 0, **changes: object) -> dict[str, np.ndarray]:
    """Arrays of a BEAT2 NPZ; a change to None leaves the key out."""
    rng = np.random.default_rng(seed)
    arrays = {
        "betas": rng.normal(size=300).astype(np.float32),
        "poses": rng.normal(scale=0.2, size=(frames, 165)).astype(np.float32),
        "expressions": rng.normal(size=(frames, 100)),
        "trans": rng.normal(size=(frames, 3)),
        "model": np.array("smplx2020"),
        "gender": np.array("neutral"),
        "mocap_frame_rate": np.array(30, np.int32),
    }
    arrays |= changes  # type: ignore[arg-type]
    return {key: np.asarray(value) for key, value in arrays.items() if value is not None}


def split_motion(frames: int = 5, **changes: object) -> dict[str, np.ndarray]:
    """The same motion in the older split key style."""
    whole = motion(frames)
    poses = whole.pop("poses")
    parts = {
        "root_orient": poses[:, :3],
        "pose_body": poses[:, 3:66],
        "pose_jaw": poses[:, 66:69],
        "pose_eye": poses[:, 69:75],
        "pose_hand": poses[:, 75:],
    }
    arrays = {**whole, **parts, **changes}
    return {key: np.asarray(value) for key, value in arrays.items() if value is not None}


def npz(arrays: dict[str, np.ndarray], *, compressed: bool = False) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz_raw(members: dict[str, bytes], *, method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of given member bytes, which need not be npy."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, body in members.items():
            archive.writestr(f"{name}.npy", body)
    return buffer.getvalue()


def npy_header(shape: str, descr: str = "'<f4'", order: str = "False") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def textgrid(*tiers: tuple[str, list[tuple[str, str, str]]], xmax: str = "10", short: bool = False) -> str:
    """A TextGrid whose names, times and labels stand in it exactly as given (quotes are not doubled)."""
    if short:
        out = f'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n{xmax}\n<exists>\n{len(tiers)}\n'
        for name, rows in tiers:
            out += f'"IntervalTier"\n"{name}"\n0\n{xmax}\n{len(rows)}\n'
            out += "".join(f'{start}\n{end}\n"{text}"\n' for start, end, text in rows)
        return out
    out = f'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0 \nxmax = {xmax} \n'
    out += f"tiers? <exists> \nsize = {len(tiers)} \nitem []: \n"
    for number, (name, rows) in enumerate(tiers, 1):
        out += f'    item [{number}]:\n        class = "IntervalTier" \n        name = "{name}" \n'
        out += f"        xmin = 0 \n        xmax = {xmax} \n        intervals: size = {len(rows)} \n"
        for index, (start, end, text) in enumerate(rows, 1):
            out += f"        intervals [{index}]:\n            xmin = {start} \n            xmax = {end} \n"
            out += f'            text = "{text}" \n'
    return out
