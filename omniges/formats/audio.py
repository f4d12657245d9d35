"""Decoding of WAV and FLAC bytes to samples, and encoding of samples as WAV.

This module parses the RIFF chunks of WAV files itself. So no C parser reads a malicious header, and every refused file
gets a reason. A WAV file may contain PCM of 8, 16, 24 or 32 bits, IEEE float of 32 or 64 bits, A-law or mu-law. The
container may be RIFF, RIFX (big-endian), RF64 or BW64, with a plain or an extensible format chunk.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from omniges.errors import Problem, RecordingFault
from omniges.storage.files import DOWNLOADED_INSTEAD

Array = npt.NDArray[Any]
ByteOrder = Literal["little", "big"]

MIN_RATE_HZ = 1_000
MAX_RATE_HZ = 768_000
LOUDEST = 8.0
"""Largest valid magnitude of float samples. Even amplified audio stays below it; larger values have another unit."""
MAX_CHANNELS = 32

_PCM, _FLOAT, _ALAW, _MULAW, _EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
_ENCODINGS = {
    (_PCM, 8): "pcm8",
    (_ALAW, 8): "alaw",
    (_MULAW, 8): "mulaw",
    (_PCM, 16): "pcm16",
    (_PCM, 24): "pcm24",
    (_PCM, 32): "pcm32",
    (_FLOAT, 32): "float32",
    (_FLOAT, 64): "float64",
}
_TAG_NAMES = {2: "MS ADPCM", 0x11: "IMA ADPCM", 0x31: "GSM 6.10", 0x50: "MPEG", 0x55: "MP3", 0x161: "WMA"}
_GUID_TAILS: Final[dict[ByteOrder, bytes]] = {
    "little": bytes.fromhex("00001000800000aa00389b71"),
    "big": bytes.fromhex("00000010800000aa00389b71"),
}
_READ = "PCM of 8, 16, 24 or 32 bits, float of 32 or 64 bits, A-law or mu-law"
_RARE = {"pcm8": "8-bit PCM", "alaw": "A-law", "mulaw": "mu-law"}

_UNKNOWN_SIZE = 0xFFFFFFFF
_LONG_FORMS = (b"RF64", b"BW64")  # RIFF with 64-bit sizes (EBU Tech 3306)
_BIG_ENDIAN: Final = b"RIFX"
FORMS: Final = frozenset({b"RIFF", _BIG_ENDIAN, *_LONG_FORMS})
"""The four bytes with which WAV files can begin, of all forms that this module reads."""
_MAX_CHUNKS: Final = 10_000
# Sizes that sox, arecord, ffmpeg and others write to a pipe when the length is unknown: about 2 or 4 GiB.
_PLACEHOLDERS = (range(0x7FFF0000, 0x80010000), range(0xFFFF0000, 1 << 32))
_SLACK_BYTES = 64  # a data size may be too large by this: some writers also count headers or padding
_SLACK_SHARE = 100  # but by at most 1/100 of the data; otherwise bytes are missing

_LOOKS_LIKE = (
    (b"ID3", "an MP3 file (ID3 tag)"),
    (b"fLaC", "a FLAC file"),
    (b"OggS", "an Ogg file"),
    (b"FORM", "an AIFF file"),
    (b"caff", "a Core Audio file"),
    (b".snd", "a Sun audio file"),
    (b"PK\x03\x04", "a ZIP archive"),
    *DOWNLOADED_INSTEAD,
)


@dataclass(frozen=True, slots=True)
class Wav:
    """The audio of one WAV file.

    ``samples``: n samples of each channel, float32, (n,) for mono, otherwise (n, channels). Integers are scaled to
    [-1, 1), floats are not scaled. The array may be a read-only view of the input. ``rate_hz``: samples per second.
    ``encoding``: pcm8, pcm16, pcm24, pcm32, float32, float64, alaw or mulaw. ``pcm``: the integer samples (n,) if the
    audio is mono and the encoding is pcm16 (int16) or pcm24 (int32), otherwise None.
    """

    samples: npt.NDArray[np.float32]
    rate_hz: int
    channels: int
    encoding: str
    pcm: npt.NDArray[np.int16] | npt.NDArray[np.int32] | None
    notes: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class _Format:
    encoding: str
    channels: int
    rate_hz: int
    frame_bytes: int
    order: ByteOrder


def decode_wav(data: bytes | memoryview) -> Wav:
    """Decode the bytes of a WAV file.

    Args:
        data: Bytes of the file.

    Returns:
        The audio. Its notes may be ``wav-rare-encoding``, ``wav-streamed-header`` and ``wav-length-mended``.

    Raises:
        RecordingFault: The audio cannot be used; the finding code begins with ``wav-``.
    """
    view = memoryview(data).cast("B")
    wav = open_wav(view)
    raw = _raw(view[wav._start : wav._start + wav.frames * wav.frame_bytes], wav)
    _refuse_silence(*_finite_range(raw, 0), len(raw))
    pcm = raw if wav.channels == 1 and wav.encoding in {"pcm16", "pcm24"} else None
    return Wav(_scaled(raw, wav), wav.rate_hz, wav.channels, wav.encoding, pcm, wav.notes)


def wav_from_array(samples: Array, rate_hz: float) -> Wav:
    """Convert an array from a user's program to audio, with the checks of `decode_wav`.

    Args:
        samples: (n,) or (n, channels): int16 or int32, scaled by their full range, or float32 or float64, usually
            in [-1, 1].
        rate_hz: Samples per second, a whole number.

    Returns:
        The samples and their rate, in the form of `decode_wav`.

    Raises:
        RecordingFault: The audio cannot be used; the finding code begins with ``wav-``.
    """
    encoding = {"<i2": "pcm16", "<i4": "pcm32", "<f4": "float32", "<f8": "float64"}.get(
        samples.dtype.newbyteorder("<").str, ""
    )
    channels = samples.shape[1] if samples.ndim == 2 else 1
    if not encoding:
        found = f"samples of dtype {samples.dtype}"
        raise RecordingFault("wav-unsupported-encoding", found, "int16, int32, float32 or float64")
    if samples.ndim not in {1, 2} or not 1 <= channels <= MAX_CHANNELS:
        expected = f"(n,) or (n, channels) with up to {MAX_CHANNELS} channels"
        raise RecordingFault("wav-damaged-header", f"samples of shape {samples.shape}", expected)
    if not len(samples):
        raise RecordingFault("wav-empty", "0 samples", "audio")
    if not (MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ and rate_hz == int(rate_hz)):
        raise RecordingFault("wav-damaged-header", f"{rate_hz:g} samples per second", f"{MIN_RATE_HZ} to {MAX_RATE_HZ}")
    raw = np.ascontiguousarray(samples, samples.dtype.newbyteorder("="))
    raw = raw[:, 0] if samples.ndim == 2 and channels == 1 else raw
    _refuse_silence(*_finite_range(raw, 0), len(raw))
    fmt = _Format(encoding, channels, int(rate_hz), channels * raw.itemsize, "little")
    return Wav(_scaled(raw, fmt), fmt.rate_hz, channels, encoding, raw if encoding == "pcm16" else None)


class ByteRanges(Protocol):
    """Interface of the bytes of a file: a slice is read from the file only when it is requested."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: slice, /) -> bytes | memoryview: ...


@dataclass(frozen=True, slots=True)
class WavStream(_Format):
    """A WAV file that is read block by block; for the fields see `Wav`."""

    frames: int
    notes: tuple[Problem, ...]
    _view: ByteRanges
    _start: int

    def blocks(self, frames: int) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the samples in blocks, each in the form of `Wav.samples`.

        Args:
            frames: Number of samples of each channel in a block.

        Yields:
            Blocks (n,) or (n, channels) float32.

        Raises:
            RecordingFault: Values are NaN, infinite or too large, the file became shorter, or all channels are constant
                from start to end.
        """
        lows, highs = [], []
        for first in range(0, self.frames, frames):
            begin, end = (self.frame_bytes * f for f in (first, min(first + frames, self.frames)))
            body = memoryview(self._view[self._start + begin : self._start + end])
            if len(body) < end - begin:
                raise RecordingFault("wav-truncated", f"the file became shorter than {self._start + end} bytes", "all")
            raw = _raw(body, self)
            low, high = _finite_range(raw, first)
            lows.append(low)
            highs.append(high)
            yield _scaled(raw, self)
        _refuse_silence(np.min(lows, axis=0), np.max(highs, axis=0), self.frames)


def open_wav(view: ByteRanges) -> WavStream:
    """Read and check the header of a WAV file; its samples are read later by `WavStream.blocks`."""
    riff_size = _check_riff(view)
    fmt, start, size = _find_data(view)
    available = len(view) - start
    complete = size - size % fmt.frame_bytes
    notes: tuple[Problem, ...] = ()
    form = bytes(view[:4]).decode("ascii")
    if form != "RIFF" or fmt.encoding in _RARE:
        found = ", ".join(
            [*([form] if form != "RIFF" else []), *([_RARE[fmt.encoding]] if fmt.encoding in _RARE else [])]
        )
        notes = (Problem("wav-rare-encoding", found, "RIFF with PCM of 16 bits or more, or float"),)
    if _has_no_length(view, start, size, fmt.order):
        claim, complete = size, available - available % fmt.frame_bytes
        found = (
            f"data size {claim:#x} and RIFF size {riff_size:#x}; "
            f"{complete} bytes of audio and {available - complete} left over to the end of the file"
        )
        notes += (Problem("wav-streamed-header", found, "a data chunk with its length"),)
    elif size > available or complete < size:
        complete = min(size, available) // fmt.frame_bytes * fmt.frame_bytes
        if size - complete > min(_SLACK_BYTES, complete // _SLACK_SHARE):
            raise _wrong_length(size, available, fmt)
        found = f"data size {size}, {available} bytes up to the end of the file, {fmt.frame_bytes} a sample"
        notes += (Problem("wav-length-mended", found, f"data size {complete}"),)
    else:
        _refuse_more_audio(view, start + size + size % 2, fmt.order)
    if complete == 0:
        raise RecordingFault("wav-empty", "the data chunk holds 0 samples", "audio")
    return WavStream(**asdict(fmt), frames=complete // fmt.frame_bytes, notes=notes, _view=view, _start=start)


def _chunks(view: ByteRanges, place: int, order: ByteOrder) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name, start and size of each chunk, until no complete chunk header is left.

    Args:
        view: Bytes of the file.
        place: Byte offset of the first chunk header.
        order: Byte order of the sizes.

    Yields:
        Name, byte offset of the content, and size in bytes; the size of the last chunk may exceed the file.

    Raises:
        RecordingFault: There are over 10,000 chunks. No recorder writes so many, and reading them would take long.
    """
    for _ in range(_MAX_CHUNKS):
        if place + 8 > len(view):
            return
        heading = bytes(view[place : place + 8])
        size = int.from_bytes(heading[4:], order)
        yield heading[:4], place + 8, size
        place += 8 + size + size % 2
    raise RecordingFault("wav-damaged-header", f"over {_MAX_CHUNKS} chunks", "fewer chunks")


def _is_chunk_name(name: bytes) -> bool:
    """Return whether four bytes can be the name of a chunk; for arbitrary bytes this is rarely True."""
    return name.isascii() and b"\0" not in name


def _refuse_more_audio(view: ByteRanges, place: int, order: ByteOrder) -> None:
    """Refuse a file with audio after the first data chunk, such as two WAV files that were joined."""
    for name, start, size in _chunks(view, place, order):
        if not _is_chunk_name(name):
            return
        if name in {b"data", *FORMS} and size:
            found = f"a second {name.decode('ascii')!r} chunk of {size} bytes at byte {start - 8}"
            raise RecordingFault("wav-damaged-header", found, "all audio in one data chunk")


def _has_no_length(view: ByteRanges, start: int, size: int, order: ByteOrder) -> bool:
    """Return whether the size of a data chunk is a placeholder, so that the audio extends to the end of the file.

    A writer that stops early, or cannot seek back, leaves a placeholder. The size 0 is a placeholder if bytes follow,
    unless these bytes are a complete sequence of other chunks. Any other size must meet two conditions to be a
    placeholder: it is larger than the rest of the file, and it is at least 4 GiB or a known placeholder value.
    """
    available = len(view) - start
    if size:
        return size > available and (size >= 1 << 32 or any(size in sizes for sizes in _PLACEHOLDERS))
    end = start
    for name, body, claim in _chunks(view, start, order):
        if not _is_chunk_name(name):
            return True  # audio, not chunks: silence, for example, would look like many empty chunks
        end = body + claim + claim % 2
    return available > 0 and not len(view) <= end <= len(view) + 1


def _wrong_length(size: int, available: int, fmt: _Format) -> RecordingFault:
    if size > available:
        have, claimed = available // fmt.frame_bytes, size // fmt.frame_bytes
        found = f"{have} of {claimed} samples ({available} of {size} bytes)"
        return RecordingFault("wav-truncated", found, "all of them")
    found = f"data size {size} with {fmt.frame_bytes} bytes per sample of all channels"
    return RecordingFault("wav-damaged-header", found, "a whole number of samples")


def encode_wav(
    samples: npt.NDArray[np.float32], rate_hz: int, encoding: Literal["float32", "pcm16"] = "float32"
) -> bytes:
    """Encode mono samples as a WAV file; equal input gives equal bytes.

    Args:
        samples: Samples (n,), usually in [-1, 1).
        rate_hz: Samples per second.
        encoding: ``float32`` stores the samples unchanged. ``pcm16`` rounds to the nearest step (ties to even) and
            clips to the range of 16 bits.

    Returns:
        Bytes of the file.

    Raises:
        ValueError: The shape is wrong, values are NaN or infinite, or the file would exceed 4 GiB.
    """
    if samples.ndim != 1:
        raise ValueError(f"expected samples (n,), found shape {samples.shape}")
    if not np.isfinite(samples).all():
        raise ValueError("expected finite samples, found NaN or infinite ones")
    if encoding == "pcm16":
        tag, bits, body = _PCM, 16, _pcm16(samples)
    elif encoding == "float32":
        tag, bits, body = _FLOAT, 32, samples.astype("<f4").tobytes()
    else:
        raise ValueError(f"encoding {encoding!r} is not float32 or pcm16")
    return _head(len(body), rate_hz, tag, bits) + body


def wav_parts(blocks: Iterable[npt.NDArray[np.float32]], count: int, rate_hz: int) -> Iterator[bytes]:
    """Encode blocks of mono samples as one 16-bit WAV file, with the same bytes as `encode_wav` with ``pcm16``.

    Args:
        blocks: Consecutive blocks of samples (n,).
        count: Total number of samples.
        rate_hz: Samples per second.

    Yields:
        Pieces of the file.

    Raises:
        ValueError: The number of samples is not `count`, or values are NaN or infinite.
    """
    yield _head(2 * count, rate_hz, _PCM, 16)
    left = count
    for block in blocks:
        left -= len(block)
        if not np.isfinite(block).all():
            raise ValueError("expected finite samples, found NaN or infinite ones")
        yield _pcm16(block)
    if left:
        raise ValueError(f"expected {count} samples, found {count - left}")


def _pcm16(samples: npt.NDArray[np.float32]) -> bytes:
    steps = np.clip(np.rint(samples.astype(np.float64) * 32768.0), -32768, 32767)
    return steps.astype("<i2").tobytes()


def encode_pcm_wav(pcm: npt.NDArray[np.int32], rate_hz: int, *, bits: Literal[16, 24]) -> bytes:
    """Encode mono integer samples as a WAV file without loss.

    Args:
        pcm: Samples (n,).
        rate_hz: Samples per second.
        bits: Number of bits of a sample.

    Returns:
        Bytes of the file.

    Raises:
        ValueError: The shape or `bits` is wrong, values do not fit in `bits`, or the file would exceed 4 GiB.
    """
    limit = 1 << (bits - 1)
    if pcm.ndim != 1 or bits not in {16, 24} or (pcm.size and not (-limit <= pcm.min() and pcm.max() < limit)):
        raise ValueError(f"expected {bits}-bit samples (n,), found shape {pcm.shape}")
    body = np.ascontiguousarray(pcm, "<i4").view(np.uint8).reshape(-1, 4)[:, : bits // 8].tobytes()
    return _head(len(body), rate_hz, _PCM, bits) + body


def _head(body_bytes: int, rate_hz: int, tag: int, bits: int) -> bytes:
    """Return the header of a WAV file, that is, all bytes before the samples."""
    if body_bytes + 36 > _UNKNOWN_SIZE - 1:
        raise ValueError(f"{body_bytes} bytes of audio do not fit into a WAV file")
    # As in the files of BEAT2: a format chunk of 16 bytes and no fact chunk, for float too.
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, tag, 1, rate_hz, rate_hz * bits // 8, bits // 8, bits)
    riff = struct.pack("<4sI4s", b"RIFF", 36 + body_bytes, b"WAVE")
    return riff + fmt + struct.pack("<4sI", b"data", body_bytes)


def _check_riff(view: ByteRanges) -> int:
    """Refuse a file that is not RIFF WAVE; return the size in bytes that its RIFF header states."""
    head = bytes(view[:64])
    if not head:
        raise RecordingFault("wav-empty", "a file of 0 bytes", "audio")
    if head[:4] not in FORMS:
        raise RecordingFault("wav-not-riff", f"it looks like {_guess(head)}", "RIFF ... WAVE")
    if len(head) < 12:
        raise RecordingFault("wav-truncated", f"{len(head)} bytes in all", "a RIFF header of 12 bytes")
    if head[8:12] != b"WAVE":
        raise RecordingFault("wav-not-riff", f"a RIFF file of kind {head[8:12]!r}", "kind b'WAVE'")
    return int.from_bytes(head[4:8], _order(view))


def _order(view: ByteRanges) -> ByteOrder:
    """Return the byte order of the numbers in a WAV file: big-endian for RIFX, otherwise little-endian."""
    return "big" if bytes(view[:4]) == _BIG_ENDIAN else "little"


def _guess(head: bytes) -> str:
    for magic, name in _LOOKS_LIKE:
        if head.startswith(magic):
            return name
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        return "an MP3 stream"
    if head[4:8] == b"ftyp":
        return "an MP4 file"
    if not head.strip(b"\0"):
        return "a file of zeros"
    return f"unknown data starting with {head[:4]!r}"


def _find_data(view: ByteRanges) -> tuple[_Format, int, int]:
    """Find the first data chunk; return the audio format, and the byte offset and stated size of the chunk's data."""
    fmt: _Format | None = None
    long_size: int | None = None
    order = _order(view)
    end = 12
    for name, pos, size in _chunks(view, end, order):
        if name == b"data":
            if fmt is None:
                raise RecordingFault("wav-damaged-header", "the data chunk comes before a fmt chunk", "fmt first")
            return fmt, pos, size if long_size is None or size != _UNKNOWN_SIZE else long_size
        if pos + size > len(view):
            found = f"{len(view) - pos} of {size} bytes of the chunk {name!r}"
            raise RecordingFault("wav-truncated", found, "a data chunk after it")
        if name == b"ds64" and size >= 16:  # RF64 and BW64: 64-bit sizes
            long_size = int.from_bytes(view[pos + 8 : pos + 16], "little")
        if name == b"fmt ":
            if fmt is not None:
                raise RecordingFault("wav-damaged-header", "two fmt chunks", "one")
            fmt = _parse_format(bytes(view[pos : pos + min(size, 40)]), order)
        end = pos + size + size % 2
    if end < len(view) or fmt is None:
        found = f"the file ends at byte {len(view)}, {'after' if fmt else 'before'} its format"
        raise RecordingFault("wav-truncated", found, "a fmt and a data chunk")
    raise RecordingFault("wav-damaged-header", f"no data chunk in {len(view)} bytes", "a data chunk")


def _parse_format(body: bytes, order: ByteOrder) -> _Format:
    if len(body) < 16:
        raise RecordingFault("wav-damaged-header", f"a fmt chunk of {len(body)} bytes", "16 or more")
    tag, channels, rate_hz, _, frame_bytes, bits = struct.unpack_from(f"{_ORDERS[order]}HHIIHH", body)
    name = ""
    if tag == _EXTENSIBLE:
        if len(body) < 40:
            found = f"an extensible fmt chunk of {len(body)} bytes"
            raise RecordingFault("wav-damaged-header", found, "40")
        tag = int.from_bytes(body[24:28], order)
        if body[28:40] != _GUID_TAILS[order]:
            name = f"extensible sub-format {body[24:40].hex()}"
    name = name or _TAG_NAMES.get(tag, "")
    encoding = None if name else _ENCODINGS.get((tag, bits))
    if encoding is None:
        kind = {_PCM: f"{bits}-bit PCM", _FLOAT: f"{bits}-bit float"}.get(tag, f"format tag {tag:#06x}")
        raise RecordingFault("wav-unsupported-encoding", name or kind, _READ)
    if not 1 <= channels <= MAX_CHANNELS:
        raise RecordingFault("wav-damaged-header", f"{channels} channels", f"1 to {MAX_CHANNELS}")
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise RecordingFault("wav-damaged-header", f"{rate_hz} samples per second", f"{MIN_RATE_HZ} to {MAX_RATE_HZ}")
    if frame_bytes != channels * bits // 8:
        found = f"block align {frame_bytes} for {channels} channels of {bits} bits"
        raise RecordingFault("wav-damaged-header", found, str(channels * bits // 8))
    return _Format(encoding, channels, rate_hz, frame_bytes, order)


def _raw(body: memoryview, fmt: _Format) -> Array:
    """Return the samples as stored, without scaling: (n,), or (n, channels)."""
    if fmt.encoding == "pcm24":
        wide = np.zeros((len(body) // 3, 4), np.uint8)
        triples = np.frombuffer(body, np.uint8).reshape(-1, 3)
        wide[:, 1:] = triples if fmt.order == "little" else triples[:, ::-1]
        raw: Array = np.right_shift(wide.view("<i4").reshape(-1), 8, dtype=np.int32)
    elif fmt.encoding == "pcm8":
        raw = np.frombuffer(body, np.uint8).astype(np.int16) - np.int16(128)
    elif fmt.encoding in _COMPANDED:
        raw = _COMPANDED[fmt.encoding][np.frombuffer(body, np.uint8)]
    else:  # a view; copied only if alignment or byte order require it
        raw = np.frombuffer(body, np.dtype(_DTYPES[fmt.encoding]).newbyteorder(_ORDERS[fmt.order]))
        raw = np.require(raw, dtype=raw.dtype.newbyteorder("="), requirements="A")
    return raw.reshape(-1, fmt.channels) if fmt.channels > 1 else raw


def _scaled(raw: Array, fmt: _Format) -> npt.NDArray[np.float32]:
    scale = _SCALES.get(fmt.encoding)
    if scale is None:
        return np.asarray(raw, np.float32)
    # float32 represents 16-bit and 24-bit values exactly, and rounds 32-bit values. Scaling by a power of two is exact.
    samples: npt.NDArray[np.float32] = np.multiply(raw, scale, dtype=np.float32, casting="same_kind")
    return samples


def _mulaw_values() -> npt.NDArray[np.int16]:
    """Return the 16-bit values of the 256 mu-law bytes (ITU-T G.711)."""
    byte = ~np.arange(256, dtype=np.uint8)
    magnitude = ((((byte & 0x0F).astype(np.int32) << 3) + 0x84) << ((byte & 0x70) >> 4)) - 0x84
    return np.where(byte & 0x80, -magnitude, magnitude).astype(np.int16)


def _alaw_values() -> npt.NDArray[np.int16]:
    """Return the 16-bit values of the 256 A-law bytes (ITU-T G.711)."""
    byte = np.arange(256, dtype=np.uint8) ^ np.uint8(0x55)
    segment = ((byte & 0x70) >> 4).astype(np.int32)
    step = ((byte & 0x0F).astype(np.int32) << 4) + 8
    magnitude = np.where(segment, (step + 0x100) << np.maximum(segment - 1, 0), step)
    return np.where(byte & 0x80, magnitude, -magnitude).astype(np.int16)


_COMPANDED: Final = {"alaw": _alaw_values(), "mulaw": _mulaw_values()}
_FLAC_BLOCK: Final = 1 << 16
_ORDERS: Final[dict[ByteOrder, Literal["<", ">"]]] = {"little": "<", "big": ">"}
_DTYPES = {"pcm16": "i2", "pcm32": "i4", "float32": "f4", "float64": "f8"}
_SCALES = {
    "pcm8": np.float32(2.0**-7),
    "pcm16": np.float32(2.0**-15),
    "pcm24": np.float32(2.0**-23),
    "pcm32": np.float32(2.0**-31),
}
_SCALES |= {name: np.float32(2.0**-15) for name in _COMPANDED}


def _finite_range(raw: Array, first: int) -> tuple[Array, Array]:
    """Return the lowest and highest value of each channel; refuse NaN, infinity and values far beyond full scale.

    `raw` is a block of samples, and `first` is the index of its first sample within the file.
    """
    low, high = raw.min(axis=0), raw.max(axis=0)  # NaN if any value is NaN
    if raw.dtype.kind == "f":
        limit = float(np.finfo(np.float32).max)
        if not (np.all(low >= -limit) and np.all(high <= limit)):
            bad = ~(np.abs(raw) <= limit)
            where = np.argwhere(bad)[0]
            channel = f" of channel {where[1]}" if raw.ndim == 2 else ""
            found = f"{raw[tuple(where)]} at sample {first + where[0]}{channel}, {int(bad.sum())} such in {raw.size}"
            raise RecordingFault("wav-not-finite", found, "finite float32 values")
        loudest = float(np.maximum(-low, high).max())
        if loudest > LOUDEST:
            raise RecordingFault("wav-out-of-range", f"values up to {loudest:g}", "floats in [-1, 1]")
    return low, high


def _refuse_silence(low: Array, high: Array, count: int) -> None:
    """Refuse audio in which every channel is constant.

    `low` and `high` have the lowest and highest value of each channel. `count` is the number of samples
    of each channel, for the error.
    """
    if np.all(low == high):
        found = f"{count} samples, all of them {np.ravel(low)[0]}"
        raise RecordingFault("wav-silent", found, "sound")


def decode_flac(data: bytes, max_samples: int) -> tuple[npt.NDArray[np.int32], Literal[16, 24]]:
    """Decode mono FLAC to PCM values.

    Args:
        data: Bytes of the FLAC stream.
        max_samples: Largest number of samples. Memory is allocated block by block, so a false count in the header does
            not cause a large allocation.

    Returns:
        Values (n,) int32, and the number of bits of a value, 16 or 24.

    Raises:
        RecordingFault: The data is not mono FLAC of 16 or 24 bits, or has more than `max_samples` samples.
    """
    import soundfile  # noqa: PLC0415

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.format != "FLAC" or file.channels != 1 or file.subtype not in {"PCM_16", "PCM_24"}:
                raise RecordingFault("wav-unsupported-encoding", f"{file.format} {file.subtype}", "mono FLAC")
            bits: Literal[16, 24] = 16 if file.subtype == "PCM_16" else 24
            blocks, count = [], 0
            while len(block := file.read(_FLAC_BLOCK, dtype="int32")):
                count += len(block)
                if count > max_samples:
                    raise RecordingFault("wav-damaged-header", f"{count} FLAC samples or more", f"{max_samples}")
                blocks.append(block)
    except soundfile.LibsndfileError as error:
        # The library's message contains a memory address, which differs between runs.
        raise RecordingFault("wav-truncated", error.error_string, "a FLAC member") from error
    samples = np.concatenate([np.empty(0, np.int32), *blocks])
    samples >>= 32 - bits
    return samples, bits
