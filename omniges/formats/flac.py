"""Integer PCM to FLAC and back, bit-exactly."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
import numpy.typing as npt
import soundfile

from omniges.errors import RecordingFault


def encode_flac(pcm: npt.NDArray[np.integer], *, bits: int) -> bytes:
    """Mono 16 kHz PCM, int16 (bits=16) or int32 holding 24-bit values (bits=24), as FLAC bytes.

    Level 0 uses fixed integer predictors only. Higher levels choose theirs through floating-point autocorrelation,
    whose last bits, and so the file's bytes, differ between CPUs.
    """
    data = pcm.astype(np.int16) if bits == 16 else pcm.astype(np.int32) << 8
    buffer = io.BytesIO()
    try:
        soundfile.write(buffer, data, 16_000, format="FLAC", subtype=f"PCM_{bits}", compression_level=0.0)
    except AssertionError as error:  # soundfile drops the MemoryError of its callback and misses the bytes
        raise MemoryError("no memory for a FLAC member") from error
    return buffer.getvalue()


def decode_flac(data: bytes) -> tuple[npt.NDArray[np.int32], Literal[16, 24]]:
    """The PCM values as int32 and their width in bits (16 or 24).

    Raises RecordingFault for anything but mono FLAC of 16 or 24 bits.
    """
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.format != "FLAC" or file.channels != 1 or file.subtype not in {"PCM_16", "PCM_24"}:
                raise RecordingFault("wav-unsupported-encoding", f"{file.format} {file.subtype}", "mono FLAC")
            bits: Literal[16, 24] = 16 if file.subtype == "PCM_16" else 24
            samples = file.read(dtype="int32")
    except soundfile.LibsndfileError as error:
        raise RecordingFault("wav-truncated", str(error), "a FLAC member") from error
    return samples >> (32 - bits), bits
